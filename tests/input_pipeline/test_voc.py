"""PASCAL VOC, from folders and tars of its layout that this module writes."""

import tarfile

import numpy as np
import pytest

from input_pipeline import DataError
from input_pipeline.collections import open_collection
from input_pipeline.sources import detect
from input_pipeline.sources.collection import TEST, TRAIN

pytestmark = pytest.mark.usefixtures("own_cache")
# The devkit's values: 1 there, -1 not there, 0 difficult objects only. `train` is also a class.
LISTS = {
    "train": {"cow": {"000005": 1, "000007": -1}, "train": {"000005": 0, "000007": 1}},
    "val": {"cow": {"000009": 0}, "train": {"000009": -1}},
    "test": {"cow": {"000001": -1, "000002": 1}, "train": {"000001": 1, "000002": 1}},
}
LISTS["trainval"] = {name: LISTS["train"][name] | LISTS["val"][name] for name in ("cow", "train")}
IMAGES = ("000001", "000002", "000005", "000007", "000009")


def write(year, parts=("train", "val", "trainval", "test"), images=IMAGES):
    """A year's folder, as the devkit has it: two blanks before a 1, one before -1."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (year / name).mkdir(parents=True, exist_ok=True)
    for name in images:
        (year / f"JPEGImages/{name}.jpg").write_bytes(f"image {name}".encode())
        (year / f"Annotations/{name}.xml").write_text("<annotation/>")
    for part in parts:
        main = year / "ImageSets/Main"
        (main / f"{part}.txt").write_text("".join(f"{i}\n" for i in LISTS[part]["cow"]))
        for name, values in LISTS[part].items():
            lines = "".join(f"{i} {value:2}\n" for i, value in values.items())
            (main / f"{name}_{part}.txt").write_text(lines)
    return year


def pack(tar, folder):
    with tarfile.open(tar, "w") as stream:
        stream.add(folder, "VOCdevkit")


def contents(collection):
    return [collection.images.read(i) for i in range(len(collection))]


def images(*names):
    """Labels are 0 where an image may be of several classes."""
    return [(f"image {name}".encode(), 0) for name in names]


def is_2007(collection):
    assert collection.name == "VOC2007"
    assert collection.class_names == ("cow", "train")
    assert contents(collection) == images("000005", "000007", "000009", "000001", "000002")
    assert collection.parts.tolist() == [TRAIN] * 3 + [TEST] * 2
    assert collection.targets.dtype == np.int8
    assert collection.targets.tolist() == [[1, -1], [0, 1], [-1, 0], [0, 1], [1, 1]]
    assert collection.images.labels.tolist() == [0] * 5
    assert collection.mirror_ok
    assert collection.background is None


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_trainval_and_test_are_read_from_any_folder_above(tmp_path, inside):
    write(tmp_path / "VOCdevkit/VOC2007")
    collection = open_collection(str(tmp_path / inside))
    is_2007(collection)
    assert not collection.images.notes
    assert collection.images.where(3) == "JPEGImages/000001.jpg"


def test_original_tars_are_the_same_set(tmp_path):
    parts = {
        "VOCtrainval_06-Nov-2007.tar": (("train", "val", "trainval"), IMAGES[2:]),
        "VOCtest_06-Nov-2007.tar": (("test",), IMAGES[:2]),
    }
    (tmp_path / "tars").mkdir()
    for tar, (names, files) in parts.items():
        write(tmp_path / tar.removesuffix(".tar") / "VOC2007", names, files)
        pack(tmp_path / "tars" / tar, tmp_path / tar.removesuffix(".tar"))
    collection = open_collection(str(tmp_path / "tars"))
    is_2007(collection)
    is_2007(open_collection(str(tmp_path / "tars")))  # by what was kept of the tars
    write(tmp_path / "unpacked/VOC2007")
    assert open_collection(str(tmp_path / "unpacked")).fingerprint == collection.fingerprint
    member = "VOCdevkit/VOC2007/JPEGImages/000001.jpg"
    assert collection.images.where(3) == f"VOCtest_06-Nov-2007.tar: {member}"


@pytest.mark.parametrize("lists", ["none", "zeros"])
def test_without_annotations_of_the_test_val_is_the_test_part(tmp_path, lists):
    year = write(tmp_path / "VOC2012", ("train", "val", "trainval"))
    if lists == "zeros":
        for name in ("cow", "train"):
            (year / f"ImageSets/Main/{name}_test.txt").write_text("000001 0\n000002 0\n")
    collection = open_collection(str(tmp_path))
    assert contents(collection) == images("000005", "000007", "000009")
    assert collection.parts.tolist() == [TRAIN, TRAIN, TEST]
    assert collection.targets.tolist() == [[1, -1], [0, 1], [-1, 0]]
    note, unlisted = collection.images.notes
    assert note == "VOC2012: its test images have no annotations here; val is the test part"
    assert unlisted == "VOC2012: 2 of its images are in no list that is used"


def test_fingerprint_tells_contents_lists_and_parts_apart(tmp_path):
    def changed(name, change):
        year = write(tmp_path / name / "VOC2007")
        change(year)
        return open_collection(str(year)).fingerprint

    def edit(file, text):
        return lambda year: (year / file).write_text(text)

    def only_trainval(year):
        for name in ("cow", "train"):
            (year / f"ImageSets/Main/{name}_test.txt").unlink()

    same = changed("same", lambda year: None)
    assert changed("copy", lambda year: None) == same
    others = [
        changed("image", edit("JPEGImages/000001.jpg", "another")),
        changed("target", edit("ImageSets/Main/cow_test.txt", "000001  0\n000002  1\n")),
        changed("parts", only_trainval),
    ]
    assert len({same, *others}) == 4


def test_two_years_are_named(tmp_path):
    write(tmp_path / "VOC2007")
    write(tmp_path / "VOC2012")
    with pytest.raises(DataError, match=r"VOC2007 and .*VOC2012; expected one year.*name its fold"):
        open_collection(str(tmp_path))
    assert open_collection(str(tmp_path / "VOC2012")).name == "VOC2012"
    (tmp_path / "tars").mkdir()
    for name in ("VOCtrainval_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar"):
        (tmp_path / "tars" / name).touch()
    with pytest.raises(DataError, match=r"2007.tar and .*2012.tar; expected one year"):
        open_collection(str(tmp_path / "tars"))


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("train_test", "000001  1\n", "train_test.txt: 1 lines; expected 2, as in .*cow_test.txt"),
        ("train_test", "000001  1\n000003  1\n", "line 2: 000003; expected 000002, as in .*cow_te"),
        ("cow_test", "000001 -1\n000002  2\n", "cow_test.txt, line 2: '000002 2'; expected ID and"),
        ("cow_test", "000001\n000002  1\n", "cow_test.txt, line 1: '000001'; expected ID and"),
        ("cow_trainval", "", "line 1: 000005|trainval.txt: 3 lines; expected 0"),
    ],
)
def test_lists_that_do_not_fit_are_named_with_the_line(tmp_path, file, text, told):
    year = write(tmp_path / "VOC2007")
    (year / f"ImageSets/Main/{file}.txt").write_text(text)
    with pytest.raises(DataError, match=told):
        open_collection(str(year))


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (["000001", "000004"], "cow_test.txt, line 2: image 000004, of .*no JPEGImages/000004.jpg"),
        (["000001", "000001"], "cow_test.txt, line 2: image 000001 is listed twice, .*line 1"),
        (["000001", "000005"], "line 2: image 000005 is listed twice, .*cow_trainval.txt, line 1"),
    ],
)
def test_images_that_are_not_there_or_listed_twice_are_named(tmp_path, ids, told):
    year = write(tmp_path / "VOC2007")
    for name in ("cow", "train"):
        (year / f"ImageSets/Main/{name}_test.txt").write_text("".join(f"{i}  1\n" for i in ids))
    with pytest.raises(DataError, match=told):
        open_collection(str(year))


def test_lists_that_are_missing_are_named(tmp_path):
    year = write(tmp_path / "VOC2007")
    (year / "ImageSets/Main/train_test.txt").unlink()
    with pytest.raises(DataError, match=r"cow_test.txt: class 'train' has no list beside it or"):
        open_collection(str(year))
    for file in (year / "ImageSets/Main").glob("*.txt"):
        file.unlink()
    with pytest.raises(DataError, match=r"CLASS_train.txt: no such lists"):
        open_collection(str(year))


def test_damaged_tar_is_named(tmp_path):
    write(tmp_path / "in/VOC2012", ("train", "val", "trainval"))
    tar = tmp_path / "VOCtrainval_11-May-2012.tar"
    pack(tar, tmp_path / "in")
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"2012.tar: .*truncated or damaged"):
        open_collection(str(tmp_path))


def test_sets_of_one_class_an_image_are_expected_by_check_and_preview(tmp_path):
    write(tmp_path / "VOCdevkit/VOC2007")
    for folder in (tmp_path, tmp_path / "VOCdevkit/VOC2007"):
        with pytest.raises(DataError, match="holds PASCAL VOC, whose images are of several classe"):
            detect(folder)
