"""Annotations of boxes as they are given out, read for the images of a set."""

import io
import tarfile

import numpy as np
import pytest

from input_pipeline import DataError
from input_pipeline.annotations import matching, read_boxes
from input_pipeline.sources import open_set
from tests.input_pipeline.encoded_images import write_files

pytestmark = pytest.mark.usefixtures("own_cache")
CLASSES = ("n01440764", "n02102040")
TRAIN = [f"{wnid}/{wnid}_{k}.JPEG" for wnid in CLASSES for k in (1, 2)]
VAL = [f"n02102040/ILSVRC2012_val_0000000{k}.JPEG" for k in (1, 2)]


def xml(*objects, database="ILSVRC_2012", size=(500, 375), more=""):
    """As ILSVRC's are written. objects: class, xmin, ymin, xmax, ymax. size: width, height."""
    text = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>\n"
        for name, a, b, c, d in objects
    )
    told = ""
    if size:
        told = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    head = f"<folder>x</folder><filename>%s</filename><source><database>{database}</database>"
    return f"<annotation>\n{head}</source>{told}<segmented>0</segmented>{text}{more}</annotation>"


@pytest.fixture
def images(tmp_path):
    files = {f"train/{name}": name for name in TRAIN} | {f"val/{name}": name for name in VAL}
    return open_set("folder", write_files(tmp_path / "set", files))


ILSVRC = {
    "train/n01440764/n01440764_1.xml": xml(("n01440764", 0, 10, 499, 374)),
    "train/n01440764/n01440764_2.xml": xml(
        ("n01440764", 1, 2, 3, 4), ("n01440764", 40, 30, 40, 30), size=(50, 40)
    ),
    "train/n02102040/n02102040_2.xml": xml(("n02102040", 5, 6, 7, 8)),
    "val/ILSVRC2012_val_00000002.xml": xml(("n02102040", 111, 108, 441, 193)),
}


def assert_is_ilsvrc(found):
    assert found.train.counts.tolist() == [1, 2, 0, 1]
    assert found.train.edges.tolist() == [
        [0, 10, 500, 375],
        [1, 2, 4, 5],
        [40, 30, 41, 31],
        [5, 6, 8, 9],
    ]
    assert found.train.sizes.tolist() == [[375, 500], [40, 50], [0, 0], [375, 500]]
    assert found.test.counts.tolist() == [0, 1]
    assert found.test.edges.tolist() == [[111, 108, 442, 194]]
    assert found.problems == {}
    assert found.notes == (
        "train: 1 of 4 images have no box",
        "test: 1 of 2 images have no box",
    )


def test_ilsvrc_counts_pixels_from_0_and_gives_the_last_one(images, tmp_path):
    told = []
    root = write_files(tmp_path / "Annotations", ILSVRC)
    assert_is_ilsvrc(read_boxes(str(root), images, lambda *done: told.append(done)))
    assert told == [(4, 4)]


def test_folders_of_annotations_may_be_named_one_by_one(images, tmp_path):
    root = write_files(tmp_path / "Annotations", ILSVRC)
    assert_is_ilsvrc(read_boxes(f"{root / 'train'}:{root / 'val'}", images))


@pytest.mark.parametrize("kind", ["gz", ""])
def test_tars_are_read_as_they_are_given_out(images, tmp_path, kind):
    paths = []
    for part, name in (("train", "train_v2.tar.gz"), ("val", "val_v3.tgz")):
        paths.append(tmp_path / f"ILSVRC2012_bbox_{name if kind else part + '.tar'}")
        with tarfile.open(paths[-1], f"w:{kind}") as tar:
            for file, text in ILSVRC.items():
                if file.startswith(part):
                    member = tarfile.TarInfo(file.removeprefix("train/"))
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text.encode()))
    assert_is_ilsvrc(read_boxes(":".join(map(str, paths)), images))
    paths[0].write_bytes(paths[0].read_bytes()[:-200] if kind else b"no tar" * 200)
    with pytest.raises(DataError, match="is truncated or damaged"):
        read_boxes(str(paths[0]), images)


def test_voc_counts_pixels_from_1(images, tmp_path):
    part = (
        "<object><name>n01440764</name><bndbox><xmax>3</xmax><xmin>1</xmin><ymax>9</ymax>"
        "<ymin>2</ymin></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
    )
    database = "The VOC2007 Database"
    files = {
        "n01440764_1.xml": xml(("n01440764", 1, 1, 500, 375), database=database, more=part),
        "n01440764_2.xml": xml(("n01440764", 1, 1, 2, 2), database="Unknown"),
    }
    root = write_files(tmp_path / "VOC2007/Annotations", files)
    found = read_boxes(str(root), images)
    assert found.train.edges.tolist() == [[0, 0, 500, 375], [0, 1, 3, 9], [0, 0, 2, 2]]
    assert found.problems == {}
    assert found.notes[-1] == (
        "1 annotations name no database that is known here, such as "
        f"{root}/n01440764_2.xml ('Unknown'); their pixels are counted from 1, as PASCAL VOC's are"
    )


DECLARED = '<!DOCTYPE annotation [<!ENTITY a "1">]>' + xml(("n01440764", "&a;", 1, 2, 2))
BAD_FILES = {
    "cut off": (xml(("n01440764", 1, 2, 3, 4))[:-60], "no XML, or cut off: "),
    "empty": ("", "no XML, or cut off: no element found"),
    "entity": (DECLARED, "declares a document type, with which entities come; expected none"),
    "in UTF-16": (DECLARED.encode("utf-16"), "declares a document type"),
    "another": ("<html></html>", "<html>; expected <annotation>"),
    "undeclared": (xml(more="&a;"), "no XML, or cut off: undefined entity"),
    "two sizes": (xml(more="<size><height>3</height></size>"), "has <size><height> twice"),
    "large": (" " * (1 << 20) + xml(), "more than 1 MB"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_annotation_is_named(images, tmp_path, text, reason):
    good = {"n01440764_1.xml": xml(("n01440764", 1, 2, 3, 4))}
    root = write_files(tmp_path / "boxes", good | {"n01440764_2.xml": text})
    found = read_boxes(str(root), images)
    assert found.train.counts.tolist() == [1, 0, 0, 0]
    assert list(found.problems) == [matching.UNREADABLE]
    (problem,) = found.problems[matching.UNREADABLE]
    assert problem.startswith(f"{root}/n01440764_2.xml: {reason}")
    assert found.notes[-1] == f"1 annotations that cannot be used: {problem}"
    assert "\n" not in problem


BAD_BOXES = {
    "unknown class": (
        ("n0144764", 1, 2, 3, 4),
        matching.UNKNOWN,
        "'n0144764' (is 'n01440764' meant?)",
    ),
    "other class": (("n02102040", 1, 2, 3, 4), matching.OTHER, "'n02102040'"),
    "word": (("n01440764", 1, "two", 3, 4), matching.NO_NUMBER, "1, two, 3, 4"),
    "nothing": (("n01440764", 1, 2, "", 4), matching.NO_NUMBER, "1, 2, , 4"),
    "NaN": (("n01440764", 1, 2, "nan", 4), matching.NO_NUMBER, "1, 2, nan, 4"),
    "infinity": (("n01440764", 1, 2, "inf", 4), matching.NO_NUMBER, "1, 2, inf, 4"),
    "turned": (("n01440764", 9, 2, 3, 4), matching.EMPTY, "9, 2, 3, 4"),
    "empty": (("n01440764", 4, 2, 3, 4), matching.EMPTY, "4, 2, 3, 4"),
    "beside": (("n01440764", 500, 2, 510, 4), matching.OUTSIDE, "500, 2, 510, 4"),
    "above": (("n01440764", 5, -9, 10, -4), matching.OUTSIDE, "5, -9, 10, -4"),
}


@pytest.mark.parametrize(("box", "kind", "said"), BAD_BOXES.values(), ids=BAD_BOXES)
def test_a_box_that_cannot_be_is_named_and_left_out(images, tmp_path, box, kind, said):
    root = write_files(tmp_path / "boxes", {"n01440764_1.xml": xml(("n01440764", 1, 2, 3, 4), box)})
    found = read_boxes(str(root), images)
    assert found.train.edges.tolist() == [[1, 2, 4, 5]]
    assert found.problems == {kind: [f"{root}/n01440764_1.xml: {said}"]}


def test_a_box_that_leaves_its_image_is_cut_at_the_border(images, tmp_path):
    text = xml(("n01440764", -1, -2, 500, 375.5), ("n01440764", 0, 0, 499, 374))
    root = write_files(tmp_path / "boxes", {"n01440764_1.xml": text})
    found = read_boxes(str(root), images)
    assert found.train.edges.tolist() == [[0, 0, 500, 375]] * 2
    assert found.problems == {matching.CUT: [f"{root}/n01440764_1.xml: -1, -2, 500, 375.5"]}


@pytest.mark.parametrize("size", [("500", ""), ("0", "375"), ("-500", "375"), ("a", "b")])
def test_a_size_that_is_none_is_named(images, tmp_path, size):
    text = xml(("n01440764", 1, 2, 3, 4), size=size)
    found = read_boxes(str(write_files(tmp_path / "boxes", {"n01440764_1.xml": text})), images)
    assert found.train.edges.tolist() == [[1, 2, 4, 5]]
    assert not found.train.sizes.any()
    assert list(found.problems) == [matching.NO_SIZE]


def test_a_file_of_no_image_and_a_second_one_are_named(images, tmp_path):
    box = xml(("n01440764", 1, 2, 3, 4))
    files = {"a/n01440764_1.xml": box, "b/n01440764_1.xml": box, "c/n01440764_100.xml": box}
    # In the folder of another class it is not that image's.
    files["n02102040/n01440764_2.xml"] = box
    root = write_files(tmp_path / "boxes", files)
    found = read_boxes(str(root), images)
    assert found.problems == {
        matching.SECOND: [f"{root}/b/n01440764_1.xml"],
        matching.NOT_THERE: [f"{root}/c/n01440764_100.xml", f"{root}/n02102040/n01440764_2.xml"],
    }
    assert found.train.counts.tolist() == [1, 0, 0, 0]


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    names = ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "train/dog/deep/1.jpg")
    files = dict.fromkeys(names, "an image") | {"val/dog/2.jpg": ""}
    images = open_set("folder", write_files(tmp_path / "set", files))
    boxes = {
        "train/cat/1.xml": xml(("cat", 1, 0, 5, 5)),
        "val/cat/1.xml": xml(("cat", 2, 0, 5, 5)),
        "dog/deep/1.xml": xml(("dog", 3, 0, 5, 5)),
        "cat/1.xml": xml(("cat", 4, 0, 5, 5)),
    }
    root = write_files(tmp_path / "boxes", boxes)
    found = read_boxes(str(root), images)
    where = [images.train.where(i) for i in range(3)]
    assert where == ["train/cat/1.jpg", "train/dog/1.jpg", "train/dog/deep/1.jpg"]
    assert found.train.counts.tolist() == [1, 0, 1]
    assert found.train.edges[:, 0].tolist() == [1, 3]
    assert found.test.edges[:, 0].tolist() == [2]
    assert found.problems == {matching.SEVERAL: [f"{root}/cat/1.xml"]}


def test_without_an_annotation_of_an_image_nothing_is_guessed(images, tmp_path):
    root = write_files(tmp_path / "boxes", {"a.xml": xml(("n01440764", 1, 2, 3, 4))})
    with pytest.raises(DataError) as raised:
        read_boxes(str(root), images)
    assert str(raised.value) == (
        f"boxes: none of 1 annotations in '{root}' is of an image of 'folder'; the first is "
        f"{root}/a.xml, and images are called such as train/n01440764/n01440764_1.JPEG"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, said in (
        (empty, "holds no XML files"),
        (empty / "a", "does not exist; expected a folder of XML files"),
        (root.parent / "set/train" / TRAIN[0], "is of no kind that is known"),
    ):
        with pytest.raises(DataError, match=said):
            read_boxes(str(path), images)


def test_boxes_tell_sets_apart_and_go_with_their_images():
    from input_pipeline.boxes import Boxes
    from input_pipeline.datasets import Examples, _dataset

    plain = Examples(np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 0], np.int32))
    boxes = Boxes.of([np.array([[0, 0, 1, 2]]), np.zeros((0, 4)), np.array([[1, 1, 2, 2]] * 2)])
    boxed = Examples(plain.images, plain.labels, boxes)
    assert plain.take(np.array([2, 0])).boxes is None
    taken = boxed.take(np.array([2, 0])).boxes
    assert taken.counts.tolist() == [2, 1]
    assert taken.edges.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 1, 2]]
    pairs = [(plain, plain), (boxed, plain), (plain, boxed), (boxed, boxed)]
    prints = {_dataset("a", *pair, "ab").fingerprint for pair in pairs}
    assert len(prints) == 4
