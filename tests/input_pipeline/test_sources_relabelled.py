"""The test images of any set, as a network numbers its classes."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError
from input_pipeline.image_files import imagenet_classes
from input_pipeline.sources import detect, open_set, open_test


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def save_in(root, names, file="1.png"):
    """An image in each class."""
    for name in names:
        save(root / name / file, pixels(4, 4))


def found(path, class_names):
    return open_test(str(path), class_names).source


def where(source):
    return [source.where(i) for i in range(len(source))]


def test_folders_are_matched_by_name_or_by_wnid(tmp_path):
    wnids, names = imagenet_classes()
    assert len(wnids) == len(names) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], names[0]) == ("n01440764", "tench, Tinca tinca")
    assert (wnids[999], names[999].split(",")[0]) == ("n15075141", "toilet tissue")
    for part in ("val/n02102040", "val/n01440764", "train/n02102040", "train/n01440764"):
        save(tmp_path / "net" / part / "1.png", pixels(4, 4))
    (tmp_path / "net" / "val" / "n02102040" / "notes.txt").write_text("no image")
    by_wnid = found(tmp_path / "net", names)
    assert where(by_wnid) == ["n01440764/1.png", "n02102040/1.png"]
    assert by_wnid.labels.tolist() == [wnids.index("n01440764"), wnids.index("n02102040")]
    by_name = found(tmp_path / "net", ("x", "n02102040", "n01440764"))
    assert where(by_name) == ["n02102040/1.png", "n01440764/1.png"]
    assert [by_name.read(i)[1] for i in range(2)] == by_name.labels.tolist() == [1, 2]
    some = (names[0], "x", names[wnids.index("n02102040")])  # a net of some of ImageNet's classes
    assert found(tmp_path / "net", some).labels.tolist() == [0, 2]


def test_folders_that_fit_no_class_are_a_clear_error(tmp_path):
    save(tmp_path / "cat" / "1.png", pixels(4, 4))
    with pytest.raises(DataError, match=r"has 1 classes \('cat'\) and the network 2"):
        open_test(str(tmp_path), ("dog", "horse"))
    with pytest.raises(DataError, match="holds images without folders of classes"):
        open_test(str(tmp_path / "cat"), ("dog",))
    with pytest.raises(DataError, match="is no folder of images"):
        open_test(str(tmp_path / "nowhere"), ("dog",))
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match="holds no folders of classes with image files"):
        open_test(str(tmp_path), ("cat",))


def test_numbered_folders_are_labels_and_half_known_names_an_error(tmp_path):
    save_in(tmp_path / "numbers", ("10", "2"))
    names = tuple(f"class {i}" for i in range(10))
    assert found(tmp_path / "numbers", names).labels.tolist() == [1, 9]
    assert found(tmp_path / "numbers", ("10", "2")).labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"numbers are 0\.\.10, with 0, or"):  # from 0 or from 1?
        found(tmp_path / "numbers", (*names, "class 10"))
    save_in(tmp_path / "birds", ("plane", "bird", ".cache"))
    with pytest.raises(DataError, match=r"no class 'plane' \(is 'airplane' meant\?\)"):
        found(tmp_path / "birds", ("airplane", "bird"))
    with pytest.raises(DataError, match="insist on their order with --classes-in-order"):
        found(tmp_path / "birds", ("a", "b"))
    insisted = open_test(str(tmp_path / "birds"), ("a", "b"), in_order=True)
    assert insisted.source.labels.tolist() == [0, 1]
    assert where(insisted.source) == ["bird/1.png", "plane/1.png"]


def test_folders_from_1_to_10_are_numbers_not_text(tmp_path):
    save_in(tmp_path, map(str, range(1, 11)))
    names = tuple(f"class {i}" for i in range(10))
    for in_order, how in ((False, "matched by number, 1..10 for 0..9"), (True, "taken in order")):
        tested = open_test(str(tmp_path), names, in_order=in_order)
        assert where(tested.source) == [f"{k}/1.png" for k in range(1, 11)]
        assert tested.source.labels.tolist() == list(range(10))
        assert how in tested.matched.how


def test_a_set_without_a_train_part_is_one_for_tests(tmp_path):
    for folder in ("whole", "val only/val"):
        save_in(tmp_path / folder, ("cat", "dog"))
    for root in (tmp_path / "whole", tmp_path / "val only"):
        assert detect(root) == "folder"
        with pytest.raises(DataError, match="no train"):
            open_set("folder", root)
        images = open_set("folder", root, for_test=True)
        assert (len(images.train), images.class_names) == (0, ("cat", "dog"))
        assert where(images.test) == ["cat/1.png", "dog/1.png"]
        assert found(root, ("dog", "cat")).labels.tolist() == [0, 1]


def test_imagenet_s_flat_folder_is_tested_with_its_labels(tmp_path):
    wnids, names = imagenet_classes()
    for i in (1, 2):
        save(tmp_path / "val" / f"ILSVRC2012_val_{i:08}.JPEG", pixels(4, 4))
    (tmp_path / "val_labels.txt").write_text(f"{wnids[7]}\n{wnids[3]}\n")
    source = found(tmp_path, names)
    assert [source.read(i)[1] for i in range(2)] == source.labels.tolist() == [3, 7]
    assert where(source)[0].endswith("ILSVRC2012_val_00000002.JPEG")


def test_the_fingerprint_tells_other_images_and_other_classes(tmp_path):
    save_in(tmp_path, "ab")
    prints = [open_test(str(tmp_path), ("a", "b")).fingerprint for _ in range(2)]
    save(tmp_path / "b" / "2.png", pixels(4, 5))
    prints.append(open_test(str(tmp_path), ("a", "b")).fingerprint)
    assert prints[0] == prints[1] != prints[2]
    save(tmp_path / "b" / "2.png", 255 - pixels(4, 5))  # random pixels: as many bytes
    assert open_test(str(tmp_path), ("a", "b")).fingerprint not in prints


def test_nothing_in_a_tested_folder_is_left_out_without_a_word(tmp_path):
    save(tmp_path / "a" / "deep" / "1.png", pixels(4, 4))
    save(tmp_path / "__b" / "1.png", pixels(4, 4))
    (tmp_path / "a" / "2.psd").write_bytes(b"")
    (tmp_path / "c").mkdir()
    source = found(tmp_path, ("__b", "a", "c"))
    assert where(source) == ["__b/1.png", "a/deep/1.png"]
    notes = [
        f"{tmp_path}: no images in the folders 'c'",
        "1 file of suffix .psd is not read, such as a/2.psd",
    ]
    assert list(source.notes) == notes
    assert list(open_set("folder", tmp_path, for_test=True).notes) == notes
    save(tmp_path / "beside.png", pixels(4, 4))
    for tested in (
        lambda: found(tmp_path, ("__b", "a", "c")),
        lambda: open_set("folder", tmp_path, for_test=True),
    ):
        with pytest.raises(DataError, match=r"beside them, image files \(1\): 'beside.png'"):
            tested()


def test_a_set_for_tests_is_known_by_its_contents(tmp_path):
    def fingerprint():
        images = open_set("folder", tmp_path, for_test=True)
        assert images.fingerprint == open_test(str(tmp_path), ("a", "b")).fingerprint
        return images.fingerprint

    for name, image in (("a", pixels(4, 4)), ("b", 255 - pixels(4, 4))):
        save(tmp_path / name / "1.bmp", image)
    first = fingerprint()
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    swapped = fingerprint()
    assert swapped != first
    save(tmp_path / "b" / "1.bmp", 255 - pixels(4, 4))  # of as many bytes
    save(tmp_path / "a" / "1.bmp", pixels(4, 4))
    assert fingerprint() == first


def test_folders_of_deep_images_only_are_a_set_for_tests(tmp_path):
    save_in(tmp_path, ("cat", "dog"), "deep/1.png")
    assert detect(tmp_path) == "folder"
    images = open_set("folder", tmp_path, for_test=True)
    assert where(images.test) == ["cat/deep/1.png", "dog/deep/1.png"]
    source = found(tmp_path, ("dog", "cat"))
    assert where(source) == ["dog/deep/1.png", "cat/deep/1.png"]
    files = [tmp_path / name / "deep" / "1.png" for name in ("dog", "cat")]
    assert [source.size(i) for i in range(2)] == [file.stat().st_size for file in files]


def test_images_that_a_link_promises_are_known_to_be_missing(tmp_path):
    save(tmp_path / "a" / "1.png", pixels(4, 4))
    (tmp_path / "a" / "2.png").symlink_to("nowhere")
    assert list(found(tmp_path, ("a", "b")).missing) == [1]
