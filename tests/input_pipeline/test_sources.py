"""Where encoded images lie: folders, ILSVRC's files.

What is expected is known from how the files were made: by this module with the standard library
and SciPy.
"""

import csv
import io
import itertools
import os
import pickle
import shutil
import tarfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from input_pipeline import DataError
from input_pipeline.image_files import imagenet_classes
from input_pipeline.sources import FolderSource, detect, folders, is_streamed, open_set, tars
from tests.input_pipeline.encoded_images import contents

pytestmark = pytest.mark.usefixtures("own_cache")
WNIDS = ("n01440764", "n02102040", "n03000684")
IDS = {"n01440764": 449, "n02102040": 7, "n03000684": 123}  # not in the order of the wnids
TRAIN = {
    f"{wnid}/{wnid}_{k}.JPEG": f"{wnid} train {k}".encode() * (k + 1)
    for wnid in WNIDS
    for k in (1, 10, 2)
}
# ILSVRC's validation images come in no order of classes.
VAL_WNIDS = [WNIDS[k] for k in (2, 0, 0, 1, 2, 0)]
VAL = {f"ILSVRC2012_val_{k:08d}.JPEG": b"val" * k for k in range(1, 7)}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def class_folders(folder):
    """The set as folders of classes, train and val."""
    write(folder / "train", TRAIN)
    by_class = {f"{w}/{name}": c for (name, c), w in zip(VAL.items(), VAL_WNIDS, strict=True)}
    write(folder / "val", by_class)
    return folder


def expected_train():
    """Sorted by class, then by file name."""
    return [(TRAIN[name], WNIDS.index(name.split("/")[0])) for name in sorted(TRAIN)]


def expected_val():
    rows = [(WNIDS.index(w), name, c) for (name, c), w in zip(VAL.items(), VAL_WNIDS, strict=True)]
    return [(content, label) for label, _, content in sorted(rows)]


def assert_is_the_set(images):
    assert contents(images.train) == expected_train()
    assert contents(images.test) == expected_val()
    for part in (images.train, images.test):
        assert part.labels.dtype == np.int32
        assert part.labels.tolist() == [label for _, label in contents(part)]
    wnids, names = imagenet_classes()
    assert images.class_names == tuple(names[wnids.index(wnid)] for wnid in WNIDS)
    assert images.folders == WNIDS
    assert images.classes == 3
    assert images.mirror_ok


# ------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("part", ["val", "validation", "test"])
def test_a_folder_of_classes_is_read_in_order_of_classes_and_names(tmp_path, part):
    root = class_folders(tmp_path / "set")
    (root / "val").rename(root / part)
    images = open_set("folder", root)
    assert_is_the_set(images)
    assert images.name == "folder"
    assert images.train.where(1) == "train/n01440764/n01440764_10.JPEG"
    assert images.test.where(5) == f"{part}/n03000684/ILSVRC2012_val_00000005.JPEG"
    assert detect(root) == "folder"


def test_hidden_entries_and_other_files_are_no_images(tmp_path):
    root = class_folders(tmp_path)
    write(
        root / "train",
        {".thumbs/a/1.jpg": b"", "n01440764/.1.jpg": b"", ".1.jpg": b"", ".DS_Store": b""}
        | {"n01440764/notes.TXT": b"", "n02102040/more.txt": b"", "n01440764/jpg": b""},
    )
    write(root / "val", {"n01440764/a.psd": b"", "n01440764/.cache/1.png": b""})
    os.mkfifo(root / "train" / "n01440764" / "pipe.jpg")
    images = open_set("folder", root)
    assert_is_the_set(images)
    assert images.notes == (
        "1 file without a suffix and 2 files of suffix .txt are not read, such as "
        "train/n01440764/jpg",
        "3 hidden image files are not read, such as train/n01440764/.1.jpg",
        "1 entry that is no file is not read, such as train/n01440764/pipe.jpg",
        "1 file of suffix .psd is not read, such as val/n01440764/a.psd",
        "1 hidden image file is not read, such as val/n01440764/.cache/1.png",
    )


def test_images_in_deeper_folders_are_of_their_class(tmp_path):
    write(
        tmp_path,
        {"train/a/x/y/2.jpg": b"2", "train/a/b.jpg/1.jpg": b"1", "train/__b/3.jpg": b"3"}
        | {"train/a/z.jpg": b"4", "val/a/deep/5.jpg": b"5"},
    )
    images = open_set("folder", tmp_path)
    assert images.class_names == ("__b", "a")
    assert contents(images.train) == [(b"3", 0), (b"1", 1), (b"2", 1), (b"4", 1)]
    assert images.train.where(2) == "train/a/x/y/2.jpg"
    assert contents(images.test) == [(b"5", 1)]
    assert images.notes == ()


def test_links_that_lead_in_circles_are_one_unusable_image_and_not_followed(tmp_path):
    root = class_folders(tmp_path)
    first = root / "train" / "n01440764"
    (first / "n01440764_20.JPEG").symlink_to("n01440764_20.JPEG")
    (first / "up").symlink_to(root / "train", target_is_directory=True)
    (first / "round").symlink_to("round")
    (root / "train" / "circle").symlink_to("circle")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "n01440764_3.JPEG").write_bytes(b"linked")
    (first / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    images = open_set("folder", root)
    names = [images.train.where(i).rpartition("n01440764/")[2] for i in range(5)]
    assert names[:2] == ["linked/n01440764_3.JPEG", "n01440764_1.JPEG"]
    assert names[4] == "n01440764_20.JPEG"
    assert list(images.train.missing) == [4]
    assert images.train.read(0) == (b"linked", 0)
    with pytest.raises(OSError, match="symbolic links"):
        images.train.read_again(4)
    assert images.notes == (
        "2 files without a suffix are not read, such as train/n01440764/round",
        "1 link to a folder that it lies in is not followed, such as train/n01440764/up",
    )


def test_of_several_test_parts_the_one_that_is_read_is_said(tmp_path):
    root = class_folders(tmp_path)
    write(root / "test", {"n01440764/1.jpg": b""})
    (note,) = open_set("folder", root).notes
    assert note == f"{root}: 'val' is the test part; 'test' is not read"


def test_suffixes_in_any_case_and_names_of_any_bytes_are_read(tmp_path):
    raw = b"\xff\xfe.Png"
    write(tmp_path, {"train/a b/1.JPG": b"1", "train/\u00e9/2.TIFF": b"2", "val/a b/3.webp": b"3"})
    names = ("a.jpe", "b.JFIF", "c.PnM", "d.pbm", "e.apng")
    write(tmp_path / "val" / "\u00e9", {name: name.encode() for name in names})
    with open(os.fsencode(tmp_path / "train" / "a b") + b"/" + raw, "wb") as stream:
        stream.write(b"raw")
    images = open_set("folder", tmp_path)
    assert contents(images.train) == [(b"1", 0), (b"raw", 0), (b"2", 1)]
    assert images.class_names == ("a b", "\u00e9")
    assert contents(images.test)[1:] == [(name.encode(), 1) for name in names]
    assert images.train.where(1).encode("utf-8", "surrogateescape") == b"train/a b/" + raw


def test_all_of_imagenet_s_wnids_get_its_names_in_its_order(tmp_path):
    wnids, names = imagenet_classes()
    write(tmp_path / "train", {f"{wnid}/1.JPEG": b"" for wnid in wnids})
    write(tmp_path / "val", {"n15075141/1.JPEG": b"x"})
    images = open_set("folder", tmp_path)
    assert images.class_names == names
    assert contents(images.test) == [(b"x", 999)]


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    root = class_folders(tmp_path / "set")
    file = root / "train" / "n01440764" / "n01440764_10.JPEG"
    file.rename(tmp_path / "elsewhere.jpg")
    file.symlink_to(tmp_path / "elsewhere.jpg")
    assert_is_the_set(open_set("folder", root))
    (tmp_path / "elsewhere.jpg").unlink()
    images = open_set("folder", root)
    assert len(images.train) == 9
    with pytest.raises(OSError, match="No such file"):
        images.train.read(1)
    assert (list(images.train.missing), list(images.test.missing)) == ([1], [])
    assert list(images.train.take(np.array([3, 1, 0, 1])).missing) == [1, 3]


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_beside_folders_of_classes_are_not_left_out_unnoticed(tmp_path, part):
    root = write(class_folders(tmp_path), {f"{part}/{k}.jpg": b"" for k in range(7)})
    with pytest.raises(
        DataError, match=rf"{part} holds folders of classes and, beside them, image files \(7\)"
    ) as e:
        open_set("folder", root)
    assert "'0.jpg', '1.jpg', '2.jpg', '3.jpg', '4.jpg' and 2 others" in str(e.value)


def test_folders_that_do_not_fit_are_clear_errors(tmp_path):
    def message(path):
        with pytest.raises(DataError) as caught:
            open_set("folder", path)
        return str(caught.value)

    assert "needs a path" in message(None)
    assert "does not exist" in message(tmp_path / "none")
    assert "no train folder" in message(tmp_path)
    loose = write(tmp_path / "loose", {"cat/1.jpg": b"", "dog/2.jpg": b""})
    assert "move some images of each class to" in message(loose)
    assert f"{loose}/val/CLASS/" in message(loose)
    assert "images but no classes" in message(loose / "cat")
    half = write(tmp_path / "half", {"train/cat/1.jpg": b"", "train/dog/2.jpg": b""})
    assert "none called val, validation or test" in message(half)
    (half / "val").mkdir()
    assert "holds no image files" in message(half)
    write(half / "val", {"cats/1.jpg": b"", "cat/1.jpg": b""})
    assert "classes that train has not: 'cats' (is 'cat' meant by 'cats'?)" in message(half)
    (half / "val" / "cats" / "1.jpg").unlink()
    (half / "val" / "cats").rmdir()
    (half / "train" / "bird").mkdir()
    assert "of 1 of 3 classes: 'bird'" in message(half)
    assert "one class only (a)" in message(
        write(tmp_path / "one", dict.fromkeys(("train/a/1.jpg", "val/a/1.jpg"), b""))
    )


def settled(root):
    """All files as if they had been changed days ago: what is known of younger ones is not kept."""
    for file in root.rglob("*"):
        if file.is_file():
            os.utime(file, ns=(0, 10**18 + len(file.name)))
    return root


@pytest.fixture
def read_files(monkeypatch):
    """The files that are read from folders, as they are named."""
    files, read = [], FolderSource.read
    monkeypatch.setattr(
        FolderSource, "read", lambda self, i: files.append(self.where(i)) or read(self, i)
    )
    return files


def test_contents_are_read_once_and_again_where_a_file_has_changed(
    tmp_path, read_files, own_cache, monkeypatch
):
    root = settled(class_folders(tmp_path / "set"))
    progress = []
    first = open_set("folder", root, lambda *step: progress.append(step)).fingerprint
    assert sorted(read_files) == sorted(
        (*TRAIN, *(f"{w}/{n}" for w, n in zip(VAL_WNIDS, VAL, strict=True)))
    )
    assert progress[-1] == (6, 6)
    assert (9, 9) in progress
    read_files.clear()
    assert open_set("folder", root).fingerprint == first
    (root / "val").rename(tmp_path / "aside")
    (tmp_path / "aside").rename(root / "val")
    assert open_set("folder", root).fingerprint == first
    assert read_files == []
    file = root / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    content = file.read_bytes()
    file.write_bytes(content[::-1])  # of the same size
    os.utime(file, ns=(0, 10**18 + 7 * 10**9))
    changed = open_set("folder", root).fingerprint
    assert read_files == [f"{WNIDS[1]}/{WNIDS[1]}_2.JPEG"]
    assert changed != first
    # More files and fewer ones: only what is new is read.
    (root / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG").unlink()
    write(root / "train", {f"{WNIDS[0]}/new/0.JPEG": b"new"})
    read_files.clear()
    open_set("folder", root)
    assert read_files == [f"{WNIDS[0]}/new/0.JPEG"]
    file.write_bytes(content)
    (root / "train" / WNIDS[0] / "new" / "0.JPEG").unlink()
    write(root / "train", {name: TRAIN[name] for name in (f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG",)})
    assert open_set("folder", root).fingerprint == first
    for cache in own_cache.iterdir():  # damaged
        cache.write_bytes(cache.read_bytes()[:-400])
    read_files.clear()
    assert open_set("folder", settled(root)).fingerprint == first
    assert len(read_files) == 15
    read_files.clear()
    assert open_set("folder", root).fingerprint == first
    assert read_files == []


def test_swapped_folders_of_files_alike_are_another_set(tmp_path):
    """Of one size, name and time, as unpacked BMPs may be."""
    for part, name in itertools.product(("train", "val"), "ab"):
        write(tmp_path / part / name, {"1.bmp": f"{part} {name}".encode()})
    for file in tmp_path.rglob("*.bmp"):
        os.utime(file, ns=(0, 10**18))
    prints = [open_set("folder", tmp_path).fingerprint]
    for _ in range(2):
        for old, new in ("ax", "ba", "xb"):
            (tmp_path / "train" / old).rename(tmp_path / "train" / new)
        prints.append(open_set("folder", tmp_path).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_a_file_that_has_just_changed_is_read_again(tmp_path, read_files):
    root = class_folders(tmp_path / "set")
    file = root / "val" / WNIDS[0] / "ILSVRC2012_val_00000002.JPEG"
    prints = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, ns=(0, time.time_ns()))
        prints.append(open_set("folder", root).fingerprint)
    assert prints[0] != prints[1]


def test_several_at_once_find_the_same(tmp_path, own_cache):
    root = settled(class_folders(tmp_path / "set"))
    with ThreadPoolExecutor(8) as pool:
        prints = set(pool.map(lambda k: open_set("folder", root).fingerprint, range(16)))
    assert len(prints) == 1
    assert not [file.name for file in own_cache.iterdir() if file.suffix != ".npz"]


def test_without_a_cache_folder_contents_are_read_each_time(tmp_path, monkeypatch, read_files):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = settled(class_folders(tmp_path / "set"))
    assert open_set("folder", root).fingerprint == open_set("folder", root).fingerprint
    assert len(read_files) == 30


def test_the_fingerprint_tells_images_names_and_classes_but_not_the_place(tmp_path):
    def fingerprint(name, change):
        root = class_folders(tmp_path / name)
        change(root)
        return open_set("folder", root).fingerprint

    def file(root):
        return root / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"

    changes = {
        "size": lambda root: file(root).write_bytes(b"longer" * 30),
        "content": lambda root: file(root).write_bytes(file(root).read_bytes()[::-1]),
        "swapped": lambda root: [
            (root / "train" / old).rename(root / "train" / new)
            for old, new in ((WNIDS[0], "x"), (WNIDS[1], WNIDS[0]), ("x", WNIDS[1]))
        ],
        "name": lambda root: file(root).rename(file(root).with_name(f"{WNIDS[1]}_3.JPEG")),
        # The order of the names stays the same.
        "label": lambda root: (root / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG").rename(
            root / "train" / WNIDS[0] / f"{WNIDS[1]}_1.JPEG"
        ),
        "classes": lambda root: [
            (root / p / WNIDS[2]).rename(root / p / "n09") for p in ("train", "val")
        ],
        "gone": lambda root: file(root).unlink(),
        "test": lambda root: (root / "val" / WNIDS[0] / "ILSVRC2012_val_00000002.JPEG").unlink(),
    }
    changed = [fingerprint(name, change) for name, change in changes.items()]
    same = fingerprint("first", lambda root: None)
    assert same == fingerprint("second", lambda root: os.utime(file(root), (1, 1)))
    shutil.copytree(tmp_path / "first", tmp_path / "copy", copy_function=shutil.copyfile)
    assert same == open_set("folder", tmp_path / "copy").fingerprint
    assert len({same, *changed}) == 1 + len(changes)


# -------------------------------------------------------------- ILSVRC's flat validation part


def solution(folder):
    with (folder / "LOC_val_solution.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["ImageId", "PredictionString"])
        for name, wnid in reversed(list(zip(VAL, VAL_WNIDS, strict=True))):
            rows.writerow([name.removesuffix(".JPEG"), f"{wnid} 1 2 30 40 {wnid} 5 6 7 8 "])


def synset_labels(folder):
    text = "".join(f"{wnid}\n" for wnid in VAL_WNIDS)
    (folder / "imagenet_2012_validation_synset_labels.txt").write_text(text)


def devkit_files():
    """(ground truth, meta.mat) as in ILSVRC's kit: MATLAB's struct array of synsets."""
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = sorted((number, wnid, "some words") for wnid, number in IDS.items())
    rows.append((1001, "n00001740", "an inner node of the tree"))
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": np.array(rows, kinds)[:, None]})
    truth = "".join(f"{IDS[wnid]}\n" for wnid in VAL_WNIDS)
    return {
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "ILSVRC2012_devkit_t12/data/meta.mat": stream.getvalue(),
    }


def devkit_folder(folder):
    write(folder, devkit_files())


def devkit_archive(folder):
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, content in devkit_files().items():
            add(tar, name, content)


LABEL_FILES = [solution, synset_labels, devkit_folder, devkit_archive]


def add(tar, name, content, **facts):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in facts.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def flat_folder(folder, labels):
    write(folder / "train", TRAIN)
    write(folder / "val", VAL)
    labels(folder)
    return folder


@pytest.mark.parametrize("labels", LABEL_FILES)
def test_a_flat_validation_folder_gets_its_labels_from_each_kind_of_file(tmp_path, labels):
    root = flat_folder(tmp_path / "flat", labels)
    images = open_set("folder", root)
    assert_is_the_set(images)
    assert images.fingerprint == open_set("folder", class_folders(tmp_path / "set")).fingerprint
    assert images.test.where(0) == "val/ILSVRC2012_val_00000002.JPEG"


def test_kaggle_s_copy_is_found_from_its_top(tmp_path):
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write(inner / "train", TRAIN)
    write(inner / "val", VAL)
    write(inner / "test", {"ILSVRC2012_test_00000001.JPEG": b"without a label"})
    solution(tmp_path)
    for root in (tmp_path, tmp_path / "ILSVRC", inner):
        if root != tmp_path / "ILSVRC":
            assert_is_the_set(open_set("folder", root))
        assert detect(root) == "folder"


def test_a_missing_validation_image_shifts_no_label(tmp_path):
    root = flat_folder(tmp_path, synset_labels)
    (root / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    rows = [row for row in expected_val() if row[0] != b"val" * 3]
    assert contents(open_set("folder", root).test) == rows


def test_files_of_other_names_take_the_lines_in_sorted_order(tmp_path):
    root = flat_folder(tmp_path, synset_labels)
    for k, file in enumerate(sorted((root / "val").iterdir())):
        file.rename(root / "val" / f"{'abcdef'[k]}.JPEG")
    assert contents(open_set("folder", root).test) == expected_val()
    (root / "val" / "c.JPEG").unlink()
    with pytest.raises(DataError, match="6 labels for 5 images"):
        open_set("folder", root)


def test_labels_that_do_not_fit_are_clear_errors(tmp_path):
    root = flat_folder(tmp_path, lambda folder: None)

    def message():
        with pytest.raises(DataError) as caught:
            open_set("folder", root)
        return str(caught.value)

    assert "no file with their labels was found; expected" in message()
    assert "LOC_val_solution.csv" in message()
    truth = root / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n" * 6)
    assert "meta.mat" in message()
    (root / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    assert "meta.mat: not ILSVRC's table" in message()
    devkit_folder(root)
    (root / "meta.mat").unlink()
    truth.write_text("449\n" * 5 + "1500\n")
    assert "'1500' is no class" in message()
    truth.write_text("449\n" * 5 + "1001\n")
    assert "classes that train has not: 'n00001740'" in message()
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"\x1f\x8b no archive")
    truth.unlink()
    (root / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    assert "damaged" in message()
    synset_labels(root)
    file = root / "imagenet_2012_validation_synset_labels.txt"
    file.write_text("\n".join(VAL_WNIDS[:5]))
    assert "5 labels for 6 images" in message()
    table = root / "LOC_val_solution.csv"
    table.write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000001,{WNIDS[0]} 1 2 3 4\n")
    assert "no row for the images 'ILSVRC2012_val_00000002'" in message()
    table.write_text("ImageId\n")
    assert "row ['ImageId']" in message()


# ------------------------------------------------------------------------------ ILSVRC's tars

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "folder/" * 30  # more than the 100 (255) bytes of a header


def original_tars(folder, tar_format=tarfile.GNU_FORMAT, prefix="", labels=solution):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w", format=tar_format) as outer:
        for wnid in reversed(WNIDS):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w", format=tar_format) as inner:
                for name, content in reversed(TRAIN.items()):
                    if name.startswith(wnid):
                        add(inner, prefix + name.split("/")[1], content, mtime=1e9 + 0.5)
            add(outer, f"{wnid}.tar", stream.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w", format=tar_format) as tar:
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        add(tar, "link.JPEG", b"", type=tarfile.SYMTYPE, linkname=(prefix or "./") + "x" * 20)
        for name, content in reversed(VAL.items()):
            add(tar, prefix + name, content)
    labels(folder)
    return folder


@pytest.mark.parametrize("tar_format", FORMATS)
def test_the_original_tars_are_the_same_set_as_the_folders(tmp_path, tar_format):
    images = open_set("ilsvrc", original_tars(tmp_path / "tars", tar_format))
    assert_is_the_set(images)
    assert images.fingerprint == open_set("folder", class_folders(tmp_path / "set")).fingerprint
    assert images.train.where(1) == "ILSVRC2012_img_train.tar: n01440764.tar: n01440764_10.JPEG"
    assert images.test.where(0) == "ILSVRC2012_img_val.tar: ILSVRC2012_val_00000002.JPEG"
    assert detect(tmp_path / "tars") == "ilsvrc"


@pytest.mark.parametrize("tar_format", FORMATS[1:])
def test_long_names_in_tars_are_understood(tmp_path, tar_format):
    assert_is_the_set(open_set("ilsvrc", original_tars(tmp_path, tar_format, prefix=LONG)))


@pytest.mark.parametrize("labels", LABEL_FILES)
def test_tars_take_each_kind_of_labels_file(tmp_path, labels):
    assert_is_the_set(open_set("ilsvrc", original_tars(tmp_path, labels=labels)))


def test_offsets_beyond_eight_gigabytes_are_understood(tmp_path):
    """A hole of 9 GB in front of the last class's tar, and a size in binary."""
    original_tars(tmp_path)
    train = tmp_path / "ILSVRC2012_img_train.tar"
    content = train.read_bytes()
    hole = 9 << 30
    pad = tarfile.TarInfo("n00000000.tar")
    pad.size = hole
    header = pad.tobuf(tarfile.GNU_FORMAT)
    assert header[124] == 0x80  # the size is in binary
    with train.open("wb") as stream:
        stream.write(header)  # an empty tar: zero blocks, and never read to its end
        stream.seek(hole, os.SEEK_CUR)
        stream.write(content)
    if train.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    with pytest.raises(DataError, match="of 1 of 4 classes: 'n00000000'"):
        open_set("ilsvrc", tmp_path)
    images = list(tars._walk_nested(train, None)["offsets"])
    with train.open("rb") as stream:
        stream.seek(images[1])
        assert stream.read(len(expected_train()[1][0])) == expected_train()[1][0]


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_truncated_and_damaged_tars_are_named(tmp_path, name):
    root = original_tars(tmp_path)
    content = (root / name).read_bytes()
    last = content.rstrip(b"\0")
    cuts = [0, 100, 600, len(last) - 5, -(-len(last) // 512) * 512]
    for cut in cuts:
        (root / name).write_bytes(content[:cut])
        with pytest.raises(DataError, match=rf"{name}.*truncated"):
            open_set("ilsvrc", root)
    for header in (0, content.rindex(b"ustar") - 257):  # of the first file and of the last
        damaged = bytearray(content)
        damaged[header + 3] ^= 1
        (root / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}.*damaged"):
            open_set("ilsvrc", root)
    (root / name).unlink()
    with pytest.raises(DataError, match=rf"{name} does not exist"):
        open_set("ilsvrc", root)


def test_a_train_tar_of_images_is_refused(tmp_path):
    root = original_tars(tmp_path)
    train, val = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
    train.write_bytes(val.read_bytes())
    with pytest.raises(DataError, match="expected one tar a class"):
        open_set("ilsvrc", root)


def test_two_tars_of_one_name_are_refused_and_hidden_ones_ignored(tmp_path):
    root = original_tars(tmp_path / "tars")
    train = root / "ILSVRC2012_img_train.tar"
    with tarfile.open(train, "a") as outer:
        add(outer, f"train/._{WNIDS[0]}.tar", b"what macOS adds")
    assert_is_the_set(open_set("ilsvrc", root))
    with tarfile.open(train, "a") as outer:
        add(outer, f"again/{WNIDS[0]}.tar", bytes(10240))
    with pytest.raises(DataError, match=f"holds two tars called '{WNIDS[0]}.tar'"):
        open_set("ilsvrc", root)


def test_tars_are_walked_once_and_again_when_they_change(tmp_path, monkeypatch, own_cache):
    root = settled(original_tars(tmp_path / "tars"))
    walked = []
    walk = tars._walk_nested
    monkeypatch.setattr(tars, "_walk_nested", lambda *args: walked.append(1) or walk(*args))
    monkeypatch.setattr(tars, "BETWEEN_UPDATES", 1000)
    progress = []
    open_set("ilsvrc", root, on_progress=lambda *args: progress.append(args))
    totals = [(root / f"ILSVRC2012_img_{part}.tar").stat().st_size for part in ("train", "val")]
    assert list(dict.fromkeys(total for _, total in progress)) == totals
    for size in totals:
        read = [part for part, total in progress if total == size]
        assert read == sorted(set(read))
        # Up to the last image: behind it are the padding of its class's tar, and of the whole.
        assert size - 2 * tarfile.RECORDSIZE <= read[-1] <= size
    assert_is_the_set(open_set("ilsvrc", root))
    assert len(walked) == 1
    os.utime(root / "ILSVRC2012_img_train.tar", (1, 1))
    assert_is_the_set(open_set("ilsvrc", root))
    assert len(walked) == 2
    for cache in own_cache.iterdir():
        cache.write_bytes(cache.read_bytes()[:700])
    assert_is_the_set(open_set("ilsvrc", root))
    assert len(walked) == 3
    for cache in own_cache.iterdir():  # an index that leads beyond the tar
        with np.load(cache) as archive:
            arrays = dict(archive)
        arrays["offsets"] = arrays["offsets"] + 10**9
        np.savez(cache, **arrays)
    assert_is_the_set(open_set("ilsvrc", root))
    assert len(walked) == 4


def test_without_a_cache_folder_tars_are_walked_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = original_tars(tmp_path / "tars")
    assert_is_the_set(open_set("ilsvrc", root))
    assert_is_the_set(open_set("ilsvrc", root))


def test_a_tar_cut_off_after_it_was_indexed_is_named(tmp_path):
    root = original_tars(tmp_path)
    images = open_set("ilsvrc", root)
    os.truncate(root / "ILSVRC2012_img_train.tar", 3000)
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar: ends before byte \d+, "):
        contents(images.train)


@pytest.mark.parametrize("kind", ["folder", "ilsvrc"])
def test_any_thread_and_any_process_reads_the_same(tmp_path, kind):
    root = class_folders(tmp_path) if kind == "folder" else original_tars(tmp_path)
    images = open_set(kind, root)
    places = [k % 9 for k in range(200)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(images.train.read, places))
    assert read == [expected_train()[k] for k in places]
    assert contents(pickle.loads(pickle.dumps(images.train))) == expected_train()


# -------------------------------------------------------------------------------- any source


def test_taken_images_are_those_asked_for(tmp_path):
    train = open_set("folder", class_folders(tmp_path)).train
    part = train.take(np.array([7, 0, 7])).take(np.array([1, 2]))
    assert contents(part) == [expected_train()[0], expected_train()[7]]
    assert part.labels.tolist() == [0, 2]
    assert part.where(1) == train.where(7)
    for wrong in ([9], [-1], [[0]]):
        with pytest.raises(DataError, match="from 0 to 8"):
            train.take(np.array(wrong))


def test_the_index_of_imagenet_would_take_some_forty_megabytes(monkeypatch):
    """100,000 names as long as ImageNet's: bytes an image kept, and at most while listing."""
    count = 1000

    def listed(folder: Path, unread, deep=True):
        return [
            (f"{folder.name}_{k}.JPEG".encode(), 110_000, 10**18, k)
            for k in range(10_000, 10_000 + count)
        ]

    monkeypatch.setattr(folders, "_list_folder", listed)
    monkeypatch.setattr(folders, "_add_beside", lambda *args: None)
    wnids = [f"n{k:08d}" for k in range(100)]
    tracemalloc.start()
    try:
        listing = folders.list_classes(Path("train"), wnids, range(100))
        source = FolderSource(Path("train"), wnids, listing.names, listing.labels)
        peak = tracemalloc.get_traced_memory()[1] / len(source)
    finally:
        tracemalloc.stop()
    memory = len(listing.names.blob) + listing.names.ends.nbytes + listing.labels.nbytes
    assert source.where(54_321) == "n00000054/n00000054_10321.JPEG"
    assert memory / len(source) < 32
    assert peak < 160


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'folder'"):
        open_set("foldr", tmp_path)
    with pytest.raises(DataError, match="known: folder, ilsvrc, shards, voc, tfds:NAME"):
        open_set("digits", tmp_path)
    assert [
        n for n in ("folder", "digits", "tfds:cifar10", "shards", "cifar10") if is_streamed(n)
    ] == ["folder", "tfds:cifar10", "shards"]


def test_what_no_set_is_found_in_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="holds no images that are known here; expected"):
        detect(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        detect(tmp_path / "none")
    with pytest.raises(DataError, match=r"data.split=0.2 tests on a fifth .* move some images"):
        open_set("folder", write(tmp_path / "loose", {"cat/1.jpg": b"", "dog/2.jpg": b""}))
