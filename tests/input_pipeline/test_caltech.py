"""Caltech-101 and Caltech-256, from folders and archives that this module writes."""

import tarfile

import pytest

from input_pipeline import DataError
from input_pipeline.collections import open_collection
from input_pipeline.sources import detect, open_set
from input_pipeline.sources.collection import ANY

pytestmark = pytest.mark.usefixtures("own_cache")
# Folders in their order: BACKGROUND_Google lies between others, as capital letters come first.
CALTECH_101 = ("BACKGROUND_Google", "Faces", "Faces_easy", "accordion")
CALTECH_256 = ("001.ak47", "056.dog", "198.spider", "257.clutter")


def write_101(root):
    for k, name in enumerate(CALTECH_101):
        (root / name).mkdir(parents=True)
        for i in range(1, k + 2):
            (root / name / f"image_{i:04}.jpg").write_bytes(f"{name} {i}".encode())
    return root


def write_256(root):
    """With what the original has beside images."""
    for name in CALTECH_256:
        (root / name).mkdir(parents=True)
        for i in (2, 10, 1):
            (root / name / f"{name[:3]}_{i:04}.jpg").write_bytes(f"{name} {i}".encode())
    (root / "056.dog/greg/vision309").mkdir(parents=True)
    (root / "198.spider/RENAME2").write_text("#!/bin/sh")
    return root


def contents(collection):
    return [collection.images.read(i) for i in range(len(collection))]


@pytest.mark.parametrize(
    ("at", "named"),
    [
        ("101_ObjectCategories", "101_ObjectCategories"),
        ("101_ObjectCategories", "."),
        ("caltech-101/101_ObjectCategories", "."),
        ("caltech-101/101_ObjectCategories", "caltech-101"),
        ("other", "other"),  # known by its background class
    ],
)
def test_caltech_101(tmp_path, at, named):
    write_101(tmp_path / at)
    collection = open_collection(str(tmp_path / named))
    assert collection.name == "Caltech-101"
    assert collection.class_names == CALTECH_101
    assert collection.background == 0
    assert collection.targets is None
    assert contents(collection) == [
        (f"{name} {i}".encode(), k) for k, name in enumerate(CALTECH_101) for i in range(1, k + 2)
    ]
    assert collection.parts.tolist() == [ANY] * 10
    assert not collection.images.notes


def is_256(collection):
    assert collection.name == "Caltech-256"
    assert collection.class_names == ("ak47", "dog", "spider", "clutter")
    assert collection.background == 3
    assert contents(collection) == [
        (f"{name} {i}".encode(), k) for k, name in enumerate(CALTECH_256) for i in (1, 2, 10)
    ]
    assert collection.images.labels.tolist() == [label for _, label in contents(collection)]
    assert collection.parts.tolist() == [ANY] * 12


def test_caltech_256_from_its_folder_and_its_tar_are_one_set(tmp_path):
    folder = write_256(tmp_path / "unpacked/256_ObjectCategories")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar/256_ObjectCategories.tar", "w") as tar:
        tar.add(folder, "256_ObjectCategories")
    unpacked = open_collection(str(tmp_path / "unpacked"))
    packed = open_collection(str(tmp_path / "tar"))
    for collection in (unpacked, packed, open_collection(str(tmp_path / "tar"))):
        is_256(collection)
    assert packed.fingerprint == unpacked.fingerprint
    note = "1 file without a suffix is not read, such as 198.spider/RENAME2"
    assert unpacked.images.notes == packed.images.notes == (note,)
    (folder / "001.ak47/001_0001.jpg").write_bytes(b"another")
    assert open_collection(str(tmp_path / "unpacked")).fingerprint != packed.fingerprint


def test_classes_of_a_tar_are_in_the_order_of_their_folders(tmp_path):
    """Of whole names that with a minus comes first, as it is before the slash."""
    folder = write_101(tmp_path / "unpacked/101_ObjectCategories")
    (folder / "Faces_easy").rename(folder / "Faces-easy")
    with tarfile.open(tmp_path / "101_ObjectCategories.tar", "w") as tar:
        tar.add(folder, "101_ObjectCategories")
    unpacked, packed = (open_collection(str(path)) for path in (folder, tmp_path))
    assert packed.class_names == ("BACKGROUND_Google", "Faces", "Faces-easy", "accordion")
    assert contents(packed) == contents(unpacked)
    assert packed.fingerprint == unpacked.fingerprint


def test_set_without_its_background_has_none(tmp_path):
    root = write_101(tmp_path / "101_ObjectCategories")
    (root / "BACKGROUND_Google/image_0001.jpg").unlink()
    collection = open_collection(str(root))
    assert collection.class_names == CALTECH_101[1:]
    assert collection.background is None
    assert "no images in the folders 'BACKGROUND_Google'" in collection.images.notes[0]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("101_ObjectCategories.tar.gz", r"tar -xzf {0}/101_ObjectCategories.tar.gz -C {0}$"),
        ("caltech-101/101_ObjectCategories.tar.gz", r"tar -xzf {0}/caltech-101/101.* -C {0}/calt"),
        ("caltech-101.zip", r"unzip {0}/caltech-101.zip -d {0} && tar -xzf {0}/caltech-101/101_Ob"),
    ],
)
def test_compressed_archives_are_refused_with_the_command_that_unpacks_them(tmp_path, file, told):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(DataError, match=told.format(tmp_path)):
        open_collection(str(tmp_path))


def test_set_that_was_split_into_parts_is_a_folder_of_images(tmp_path):
    for part in ("train", "val"):
        write_101(tmp_path / "101_ObjectCategories" / part)
    collection = open_collection(str(tmp_path / "101_ObjectCategories"))
    assert (collection.name, len(collection)) == ("101_ObjectCategories", 20)


def test_two_sets_in_one_folder_are_named(tmp_path):
    write_101(tmp_path / "101_ObjectCategories")
    write_256(tmp_path / "256_ObjectCategories")
    with pytest.raises(DataError, match=r"101_ObjectCategories and .*256_ObjectCategories; expect"):
        open_collection(str(tmp_path))


def test_tar_of_something_else_is_refused(tmp_path):
    write_256(tmp_path / "x/001.ak47")
    with tarfile.open(tmp_path / "256_ObjectCategories.tar", "w") as tar:
        tar.add(tmp_path / "x", "other")
    with pytest.raises(DataError, match=r"256_ObjectCategories.tar holds no folders of classes"):
        open_collection(str(tmp_path))


def test_check_and_preview_read_the_folder_of_classes_and_say_so_of_others(tmp_path):
    root = write_101(tmp_path / "101_ObjectCategories")
    assert detect(root) == "folder"
    assert open_set("folder", root, for_test=True).class_names == CALTECH_101
    with pytest.raises(DataError, match=f"{tmp_path} holds {root}, .*expected the folder of cl"):
        detect(tmp_path)
