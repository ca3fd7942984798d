"""A folder of classes without parts, split for testing by the names of its files."""

import hashlib
import os
import shutil

import numpy as np
import pytest

from input_pipeline import DataError
from input_pipeline.sources import open_set


def write(root, **counts):
    """Files CLASS/K.png, `counts` of each class, of different sizes."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            (root / name / f"{k}.png").write_bytes(bytes(k + 1))
    return root


def where(source):
    return [source.where(i) for i in range(len(source))]


def lowest_hashes(name, count, of):
    """The files of a class that the rule tests on."""
    files = [f"{name}/{k}.png" for k in range(of)]
    return sorted(sorted(files, key=lambda f: hashlib.sha256(f.encode()).digest()[:8])[:count])


def test_each_class_gives_its_share_by_a_rule_that_never_changes(tmp_path):
    images = open_set("folder", write(tmp_path, cat=10, dog=25, emu=2), split=0.2)
    test, train = where(images.test), where(images.train)
    expected = lowest_hashes("cat", 2, 10) + lowest_hashes("dog", 5, 25)
    assert test == [*expected, *lowest_hashes("emu", 1, 2)]
    assert test[:2] == ["cat/0.png", "cat/8.png"]
    assert sorted(test + train) == sorted(
        f"{name}/{k}.png" for name, n in (("cat", 10), ("dog", 25), ("emu", 2)) for k in range(n)
    )
    assert np.bincount(images.train.labels).tolist() == [8, 20, 1]
    assert (images.class_names, images.name) == (("cat", "dog", "emu"), "folder")


def test_the_split_does_not_depend_on_the_order_of_a_file_system(tmp_path, monkeypatch):
    root = write(tmp_path, cat=10, dog=25)
    images = open_set("folder", root, split=0.3)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    again = open_set("folder", root, split=0.3)
    assert where(again.test) == where(images.test)
    assert again.fingerprint == images.fingerprint


def test_the_fingerprint_tells_shares_apart(tmp_path):
    root = write(tmp_path, cat=10, dog=25)
    prints = {open_set("folder", root, split=share).fingerprint for share in (0.2, 0.3, 0.2)}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("counts", "split", "said"),
    [
        ({"cat": 1, "dog": 9}, 0.2, r"too few images of 1 of 2 classes .* 'cat \(1\)'"),
        ({"cat": 0, "dog": 9}, 0.2, "no image files .* 'cat'"),
        ({"cat": 9}, 0.2, r"one class only \(cat\)"),
        ({"cat": 2, "dog": 2}, 0.9, "leaves no image of 'cat' to train on"),
        ({"cat": 9, "train": 0}, 0.2, "has a part 'train' already"),
        ({"cat": 9, "val": 3}, 0.2, "has a part 'val' already"),
    ],
)
def test_what_can_not_be_split_is_refused(tmp_path, counts, split, said):
    with pytest.raises(DataError, match=said):
        open_set("folder", write(tmp_path, **counts), split=split)


def test_only_folders_are_split(tmp_path):
    for name in ("shards", "ilsvrc", "tfds:cifar10"):
        with pytest.raises(DataError, match=f"a split is for folders of classes .*{name}"):
            open_set(name, tmp_path, split=0.2)


def test_a_split_set_is_known_by_its_contents_and_leaves_nothing_out_unsaid(tmp_path):
    root = write(tmp_path / "set", cat=10, dog=10)
    (root / "dog" / "deep").mkdir()
    (root / "dog" / "9.png").rename(root / "dog" / "deep" / "9.png")
    (root / "cat" / "notes.psd").write_bytes(b"")
    progress = []
    images = open_set("folder", root, lambda *step: progress.append(step), split=0.2)
    assert progress[-1] == (20, 20)
    assert len(images.train) == 16
    assert "dog/deep/9.png" in where(images.train) + where(images.test)
    assert images.notes == ("1 file of suffix .psd is not read, such as cat/notes.psd",)
    sizes = [(root / name).stat().st_size for name in where(images.test)]
    assert [images.test.size(i) for i in range(len(images.test))] == sizes
    copied = shutil.copytree(root, tmp_path / "copy")
    assert open_set("folder", copied, split=0.2).fingerprint == images.fingerprint
    (root / "cat" / "5.png").write_bytes(b"\1" * 6)  # as many bytes as before
    assert open_set("folder", root, split=0.2).fingerprint != images.fingerprint
