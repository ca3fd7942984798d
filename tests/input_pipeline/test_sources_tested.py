"""The test images of any set, as a network numbers its classes."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError
from input_pipeline.image_files import imagenet_classes
from input_pipeline.sources import open_test


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def found(path, class_names):
    return open_test(str(path), class_names)[0]


def where(source):
    return [source.where(i) for i in range(len(source))]


def test_folders_are_matched_by_name_by_wnid_or_by_order(tmp_path):
    wnids, names = imagenet_classes()
    assert len(wnids) == len(names) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], names[0]) == ("n01440764", "tench, Tinca tinca")
    assert (wnids[999], names[999].split(",")[0]) == ("n15075141", "toilet tissue")
    for folder in ("n02102040", "n01440764"):
        save(tmp_path / "net" / "val" / folder / "1.png", pixels(4, 4))
        save(tmp_path / "net" / "train" / folder / "9.png", pixels(4, 4))
    (tmp_path / "net" / "val" / "n02102040" / "notes.txt").write_text("no image")
    by_wnid = found(tmp_path / "net", names)
    assert where(by_wnid) == ["n01440764/1.png", "n02102040/1.png"]
    assert by_wnid.labels.tolist() == [wnids.index("n01440764"), wnids.index("n02102040")]
    assert found(tmp_path / "net", ("a", "b")).labels.tolist() == [0, 1]
    by_name = found(tmp_path / "net", ("x", "n02102040", "n01440764"))
    assert where(by_name) == ["n02102040/1.png", "n01440764/1.png"]
    assert [by_name.read(i)[1] for i in range(2)] == by_name.labels.tolist() == [1, 2]
    some = (names[0], "x", names[wnids.index("n02102040")])  # a net of some of ImageNet's classes
    assert found(tmp_path / "net", some).labels.tolist() == [0, 2]


def test_folders_that_fit_no_class_are_a_clear_error(tmp_path):
    save(tmp_path / "cat" / "1.png", pixels(4, 4))
    with pytest.raises(DataError, match=r"none of these is called 'cat'"):
        open_test(str(tmp_path), ("dog", "horse"))
    with pytest.raises(DataError, match="holds no folders of classes"):
        open_test(str(tmp_path / "cat"), ("dog",))
    with pytest.raises(DataError, match="is no folder of images"):
        open_test(str(tmp_path / "nowhere"), ("dog",))
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match="holds no folders of classes with image files"):
        open_test(str(tmp_path), ("cat",))


def test_numbered_folders_are_labels_and_half_known_names_an_error(tmp_path):
    for name in ("10", "2"):
        save(tmp_path / "numbers" / name / "1.png", pixels(4, 4))
    names = tuple(f"class {i}" for i in range(11))
    assert found(tmp_path / "numbers", names).labels.tolist() == [2, 10]
    for name in ("plane", "bird", ".cache"):
        save(tmp_path / "birds" / name / "1.png", pixels(4, 4))
    with pytest.raises(DataError, match="called 'plane'"):
        found(tmp_path / "birds", ("airplane", "bird"))
    assert found(tmp_path / "birds", ("a", "b")).labels.tolist() == [0, 1]


def test_imagenet_s_flat_folder_is_tested_with_its_labels(tmp_path):
    wnids, names = imagenet_classes()
    for i in (1, 2):
        save(tmp_path / "val" / f"ILSVRC2012_val_{i:08}.JPEG", pixels(4, 4))
    (tmp_path / "val_labels.txt").write_text(f"{wnids[7]}\n{wnids[3]}\n")
    source = found(tmp_path, names)
    assert [source.read(i)[1] for i in range(2)] == source.labels.tolist() == [3, 7]
    assert where(source)[0].endswith("ILSVRC2012_val_00000002.JPEG")


def test_the_fingerprint_tells_other_images_and_other_classes(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", pixels(4, 4))
    prints = [open_test(str(tmp_path), ("a", "b"))[1] for _ in range(2)]
    save(tmp_path / "b" / "2.png", pixels(4, 5))
    prints.append(open_test(str(tmp_path), ("a", "b"))[1])
    assert prints[0] == prints[1] != prints[2]
    save(tmp_path / "b" / "2.png", 255 - pixels(4, 5))  # random pixels: as many bytes
    assert open_test(str(tmp_path), ("a", "b"))[1] not in prints


def test_nothing_in_a_tested_folder_is_left_out_without_a_word(tmp_path):
    save(tmp_path / "a" / "deep" / "1.png", pixels(4, 4))
    save(tmp_path / "__b" / "1.png", pixels(4, 4))
    (tmp_path / "a" / "2.psd").write_bytes(b"")
    (tmp_path / "c").mkdir()
    source = found(tmp_path, ("__b", "a", "c"))
    assert where(source) == ["__b/1.png", "a/deep/1.png"]
    assert list(source.notes) == [
        f"{tmp_path}: no images in the folders 'c'",
        "1 file of suffix .psd is not read, such as a/2.psd",
    ]
    save(tmp_path / "beside.png", pixels(4, 4))
    with pytest.raises(DataError, match=r"beside them, image files \(1\): 'beside.png'"):
        found(tmp_path, ("__b", "a", "c"))
