"""`cnn-depth data` from the command line: what check says of known files, previews, shards."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from input_pipeline.tools import check
from tests.input_pipeline.encoded_images import encoded, write_files


def picture(i, mode="RGB", size=(300, 250)):
    random = np.random.default_rng(i)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    low = random.integers(0, 256, (8, 8, *channels), dtype=np.uint8)
    return Image.fromarray(low, mode=None if mode != "CMYK" else "CMYK").resize(size)


@pytest.fixture
def good(tmp_path, monkeypatch):
    """A folder of two classes, all whose images can be used."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 5), ("val", 2)):
        for k, name in enumerate(("ant", "bee")):
            folder = tmp_path / "good" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = picture(100 * k + 10 * count + i)
                (folder / f"{i}.JPEG").write_bytes(encoded(image))
    return tmp_path


def deep(size=(40, 30)):
    levels = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[::-1]) * 50
    return encoded(Image.fromarray(levels), "PNG")


WHOLE = encoded(picture(0))
# File -> (content, format, way), by how each was made.
ODD = {
    "grey.JPEG": (encoded(picture(1, "L", (300, 200))), "JPEG, grey", "fast"),
    "progressive.JPEG": (encoded(picture(2), progressive=True), "JPEG, progressive", "fast"),
    "tiny.JPEG": (encoded(picture(3, size=(7, 5))), "JPEG", "fast"),
    "cmyk.JPEG": (encoded(picture(4, "CMYK")), "JPEG, CMYK", "careful"),
    "named.JPEG": (encoded(picture(5), "PNG"), "PNG, named .JPEG", "careful"),
    "deep.png": (deep(), "PNG, 16 bits, grey", "careful"),
    "glass.png": (encoded(picture(6, "RGBA"), "PNG"), "PNG, transparent", "careful"),
    "truncated.JPEG": (WHOLE[: len(WHOLE) // 2], "JPEG", "unusable"),
    "empty.JPEG": (b"", "empty file", "unusable"),
    "text.JPEG": (b"<html>404 Not Found</html>", "unknown, named .JPEG", "unusable"),
}


@pytest.fixture
def odd(good):
    """`good` with odd files in a class `cat`, of which `val` has the whole and a twin each way."""
    root = good / "good"
    for name, (content, _, _) in ODD.items():
        folder = root / "train" / "cat"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (root / "train" / "cat" / "gone.JPEG").symlink_to("nowhere")
    (root / "val" / "cat").mkdir()
    (root / "val" / "cat" / "twin.JPEG").write_bytes(ODD["grey.JPEG"][0])
    (root / "val" / "cat" / "other.JPEG").write_bytes((root / "train/ant/0.JPEG").read_bytes())
    return root


def test_check_passes_what_can_be_used(good, call):
    status, out, err = call("data", "check", "good")
    assert (status, err) == (0, "")
    assert "every image can be used" in out
    assert "no two files have the same content" in out


def test_check_says_of_each_odd_file_what_it_is(odd, call):
    status, out, _ = call("data", "check", odd, "--json")
    assert status == 1
    report = json.loads(out)
    train = report["parts"]["train"]
    assert (train["images"], train["usable"]) == (10 + len(ODD) + 1, 10 + 7)
    rows = {(row["format"], row["decoded"]): row["images"] for row in train["formats"]}
    expected = {("JPEG", "fast"): 10, ("not read", "unusable"): 1}
    for _, kind, way in ODD.values():
        expected[kind, way] = expected.get((kind, way), 0) + 1
    assert rows == expected
    unusable = {entry["file"]: entry["reason"] for entry in report["unusable"]}
    bad = [name for name, (_, _, way) in ODD.items() if way == "unusable"] + ["gone.JPEG"]
    assert sorted(unusable) == sorted(f"train/cat/{name}" for name in bad)
    assert "truncated" in unusable["train/cat/truncated.JPEG"]
    assert "no image" in unusable["train/cat/text.JPEG"]
    assert "No such file" in unusable["train/cat/gone.JPEG"]
    shorts = [250] * 10 + [200, 250, 5, 250, 250, 30, 250]
    assert train["short_side"] == {"min": 5, "median": 250, "max": max(shorts)}
    assert train["long_side"] == {"min": 7, "median": 300, "max": 300}
    assert train["smaller_than_224"] == 3
    files = [file for file in (odd / "train").rglob("*.*") if not file.is_symlink()]
    assert train["bytes"] == sum(file.stat().st_size for file in files)
    assert train["images_per_class"] == {"min": 5, "median": 5, "max": 7}


def test_check_agrees_with_training_on_what_is_unusable(odd, call):
    from input_pipeline.crops import ScaleView
    from input_pipeline.sources import open_set
    from input_pipeline.stream import Decoding, Stream

    report = json.loads(call("data", "check", odd, "--json")[1])
    train = open_set("folder", odd).train
    view, left_out = ScaleView(crop=16, S=(16, 32)), []
    how = Decoding(max_unusable=1.0, on_bad=left_out.append)
    with Stream(train, view, seed=0, batch=len(train), how=how) as stream:
        next(stream)
    assert sorted(left_out) == sorted(entry["reason"] for entry in report["unusable"])


def test_check_finds_twins_across_the_parts(odd, call):
    twins = json.loads(call("data", "check", odd, "--json")[1])["duplicates"]
    assert twins.pop("examples") == [
        {"test": "val/cat/other.JPEG", "train": "train/ant/0.JPEG"},
        {"test": "val/cat/twin.JPEG", "train": "train/cat/grey.JPEG"},
    ]
    assert twins == {
        "test_in_train": 2,
        "within_train": 0,
        "within_test": 0,
        "of_another_class": 1,
    }
    shutil.copy(odd / "train/bee/1.JPEG", odd / "train/ant/twin.JPEG")
    shutil.copy(odd / "val/bee/1.JPEG", odd / "val/bee/twin.JPEG")
    twins = json.loads(call("data", "check", odd, "--json")[1])["duplicates"]
    assert [twins[key] for key in ("within_train", "within_test", "of_another_class")] == [1, 1, 2]


def test_check_names_what_cannot_be_used_and_lists_all_of_it(odd, monkeypatch, call):
    monkeypatch.setattr("launch.verbs.data.SHOWN", 2)
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = call("data", "check", odd, "--list", "bad.txt")
    assert status == 1
    assert "4 of 27 images can't be used" in out
    assert "and 2 others: bad.txt has all of them" in out
    assert "training stops at so many; mend or delete them first" in out
    assert "max_bad" not in out
    assert "2 of test are also in train" in out
    for kind in ("PNG, named .JPEG", "JPEG, CMYK", "PNG, 16 bits, grey"):
        assert kind in out
    lines = [line.split("\t") for line in (odd.parent / "bad.txt").read_text().splitlines()]
    assert [part for part, _, _ in lines] == ["train"] * 4
    names = [file for _, file, _ in lines]
    assert names == [f"train/cat/{n}.JPEG" for n in ("empty", "gone", "text", "truncated")]
    monkeypatch.setattr("launch.verbs.data.MOST_LEFT_OUT", 0.2)
    _, out, _ = call("data", "check", odd)
    assert "training stops at so many; with --set data.max_bad=0.191 it leaves them out" in out


def test_check_names_classes_with_few_usable_images(good, call):
    root = good / "good"
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "a.JPEG").write_bytes(b"")
    status, out, _ = call("data", "check", root, "--json")
    report = json.loads(out)
    assert status == 1
    assert report["parts"]["train"]["classes_with_few"] == [{"class": "cat", "images": 0}]
    assert report["parts"]["test"]["classes_with_few"] == [{"class": "cat", "images": 0}]
    _, out, _ = call("data", "check", root)
    assert "classes with few usable images in train: cat (0)" in out


def test_check_survives_names_that_are_no_text(good, call):
    root = good / "good"
    name = b"evil\xff\x1b[31m[red].JPEG"
    with open(bytes(root / "train" / "ant") + b"/" + name, "wb") as file:
        file.write(b"no image")
    status, out, _ = call("data", "check", root, "--list", "bad.txt")
    assert status == 1
    assert "evil\\udcff\\x1b[31m[red].JPEG" in out
    assert name in (good / "bad.txt").read_bytes()


def test_check_tells_how_far_it_is(good):
    from input_pipeline.sources import open_set

    progress: list[tuple[int, int]] = []
    report = check.check(
        open_set("folder", "good"),
        threads=3,
        on_progress=lambda count, total: progress.append((count, total)),
    )
    assert progress[-1] == (14, 14)
    assert [count for count, _ in progress] == sorted(count for count, _ in progress)
    assert {total for _, total in progress} == {14}
    assert report.threads == 3


def test_check_counts_what_is_turned_and_names_what_is_not_read(good, call):
    exif = Image.Exif()
    exif[0x0112] = 3
    for i in (0, 3):
        file = good / "good" / "train" / "bee" / f"{i}.JPEG"
        file.write_bytes(encoded(picture(50 + i), exif=exif))
    (good / "good" / "val" / "ant" / "a.psd").write_bytes(b"8BPS")
    (good / "good" / "test").mkdir()
    report = json.loads(call("data", "check", "good", "--json")[1])
    assert [report["parts"][part]["exif_turned"] for part in ("train", "test")] == [2, 0]
    notes = [
        "good: 'val' is the test part; 'test' is not read",
        "1 file of suffix .psd is not read, such as val/ant/a.psd",
    ]
    assert report["notes"] == notes
    status, out, _ = call("data", "check", "good")
    assert status == 0
    assert "EXIF orientation other than 1 in train: 2, such as train/bee/0.JPEG; ignored" in out
    assert all(note in out for note in notes)


def test_check_decodes_no_two_large_images_at_once(good, monkeypatch):
    from input_pipeline import image_files
    from input_pipeline.sources import open_set

    monkeypatch.setattr(check, "MAX_PIXELS", 2 * 300 * 250)
    running, most, decode, lock = [0], [0], image_files.image_size, threading.Lock()

    def counted(*args):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        size = decode(*args)
        with lock:
            running[0] -= 1
        return size

    monkeypatch.setattr(image_files, "image_size", counted)
    check.check(open_set("folder", "good"), threads=8)
    assert most == [2]
    monkeypatch.setattr(check, "MAX_PIXELS", 300 * 250 - 1)
    most[0] = 0
    check.check(open_set("folder", "good"), threads=8)
    assert most == [1]


VOC = (
    "<annotation><source><database>The VOC2007 Database</database></source><size><width>{0}</width>"
    "<height>{1}</height></size><object><name>{2}</name><bndbox><xmin>{3}</xmin><ymin>{4}</ymin>"
    "<xmax>{5}</xmax><ymax>{6}</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def boxed(good):
    """`good`, with annotations of which each is odd in its own way."""
    files = {
        "train/ant/0.xml": VOC.format(300, 250, "ant", 1, 1, 300, 250),
        "train/ant/1.xml": VOC.format(150, 125, "ant", 1, 1, 50, 125),
        "train/ant/2.xml": VOC.format(250, 300, "ant", 1, 1, 50, 125),
        "train/ant/3.xml": VOC.format(0, 0, "ant", 1, 1, 300, 251),
        "train/ant/4.xml": VOC.format(300, 250, "bee", 1, 1, 50, 50),
        "val/bee/0.xml": VOC.format(300, 250, "bee", 1, 1, 50, 50),
        "val/bee/1.xml": "<annotation>",
    }
    write_files(good / "boxes", files)
    return good


def test_check_counts_boxes_and_what_is_wrong_with_them(boxed, call):
    words = ("data", "check", "good", "--boxes", "boxes", "--list", "odd.txt")
    status, out, _ = call(*words, "--json")
    boxes = json.loads(out)["boxes"]
    assert status == 0
    assert boxes["parts"] == {
        "train": {"boxes": 4, "images": 4, "images_without": 6},
        "test": {"boxes": 1, "images": 1, "images_without": 3},
    }
    assert boxes["problems"] == {
        "annotations whose size is none": [
            "boxes/train/ant/3.xml: height and width ('0', '0')",
        ],
        "boxes of another class than their image": ["boxes/train/ant/4.xml: 'bee'"],
        "annotations that cannot be used": [
            "boxes/val/bee/1.xml: no XML, or cut off: no element found: line 1, column 12"
        ],
        "images of another size than their annotation's, to which boxes are scaled": [
            "train/ant/1.JPEG: 300 x 250, annotated as 150 x 125"
        ],
        "images of another shape than their annotation's, to which boxes are stretched": [
            "train/ant/2.JPEG: 300 x 250, annotated as 250 x 300"
        ],
        "boxes that leave their image, whose size the annotation does not tell": [
            "train/ant/3.JPEG: 300 x 250"
        ],
    }
    lines = [line.split("\t") for line in (boxed / "odd.txt").read_text().splitlines()]
    assert lines == [
        ["boxes", problem, kind]
        for kind, problems in boxes["problems"].items()
        for problem in problems
    ]
    status, out, _ = call(*words)
    assert status == 0
    assert "boxes in train: 4 around 4 of 10 images" in out
    for kind, (problem,) in boxes["problems"].items():
        assert f"1 {kind}: {problem}" in out
    assert json.loads(call("data", "check", "good", "--json")[1])["boxes"] is None


def test_preview_draws_the_boxes_that_it_is_given(boxed, call):
    sheets = []
    for more in ((), ("--boxes", "boxes")):
        words = ("data", "preview", "good", "--crop", 32, "--images", 10, *more, "--view")
        for view in ("vgg", "center"):
            assert call(*words, view, "--part", "train")[0] == 0
            sheets.append(np.asarray(Image.open("preview.png")))
    yellow = [(sheet == (255, 255, 0)).all(axis=2).sum() for sheet in sheets]
    assert yellow[:2] == [0, 0]
    assert min(yellow[2:]) > 300


RARE = "JPEG, rare coding, 12 bits"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encoded(picture(1)), "JPEG"),
        (encoded(picture(1, "L"), progressive=True), "JPEG, progressive, grey"),
        (encoded(picture(1, "CMYK")), "JPEG, CMYK"),
        (encoded(picture(1, "L"), "PNG"), "PNG, grey"),
        (encoded(picture(1).quantize(16), "PNG"), "PNG, palette"),
        (encoded(picture(1).quantize(16), "GIF"), "GIF"),
        (encoded(picture(1), "BMP"), "BMP"),
        (encoded(picture(1), "WEBP"), "WEBP"),
        (encoded(picture(1), "TIFF"), "TIFF"),
        (encoded(picture(1), "PPM"), "PPM"),
        (b"\0\0\0 ftypavif", "AVIF"),
        (b"\0\0\0 ftypheic", "HEIF"),
        (encoded(picture(1)).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc9\0\x11\x0c"), RARE),
        (b"", "empty file"),
        (b"\xff\xd8\xff", "JPEG, no header"),
        (b"Pillow", "unknown"),
    ],
)
def test_formats_are_what_pillow_wrote(content, kind):
    assert check.image_format(content) == kind


def test_preview_writes_the_picture_that_it_names(good, call):
    words = ("data", "preview", "good", "--images", 2, "--crop", 32, "--out")
    status, out, err = call(*words, "a.png", "--view", "vgg", "--epochs", 3)
    assert (status, err) == (0, "")
    assert out.startswith("a.png: 6 views of 2 images, ")
    with Image.open("a.png") as drawn:
        assert f"{drawn.width} x {drawn.height} pixels" in out
    assert call(*words, "b.png", "--view", "vgg", "--epochs", 3)[0] == 0
    assert (good / "a.png").read_bytes() == (good / "b.png").read_bytes()
    assert call(*words, "c.png", "--view", "vgg", "--epochs", 3, "--seed", 1)[0] == 0
    views = []
    for name in ("a.png", "c.png"):
        with Image.open(name) as drawn:
            views.append(np.asarray(drawn)[100:])  # below what the title says of the seed
    assert views[0].shape != views[1].shape or (views[0] != views[1]).any()


@pytest.mark.parametrize(
    ("view", "count"),
    [
        ("resnet", 4),
        ("alexnet", 4),
        ("googlenet", 4),
        ("center", 1),
        ("ten_crop", 5),
        ("grid", 25),
        ("googlenet_144", 72),
        ("whole", 1),
    ],
)
def test_preview_knows_the_papers_views(good, view, count, call):
    words = ("data", "preview", "good", "--view", view, "--crop", 28, "--images", 1)
    status, out, _ = call(*words)
    assert status == 0
    assert out.startswith(f"preview.png: {count} views of 1 images, ")


def test_views_carry_the_papers_names_and_scales():
    from argparse import Namespace

    from input_pipeline import crops
    from launch.verbs import data

    def view(name, **options):
        arguments = dict.fromkeys(("S", "Q", "epochs", "colour")) | {"crop": 224} | options
        return data._view(Namespace(view=name, **arguments))[0]

    assert view("vgg") == crops.ScaleView(crop=224, S=(256, 512))
    assert view("vgg", S=(384, 384)) == crops.ScaleView(crop=224, S=(384, 384))
    assert view("resnet") == crops.ScaleView(crop=224, S=(256, 480))
    assert view("alexnet") == crops.SquareView(crop=224, S=256)
    assert view("googlenet") == crops.AreaView(crop=224)
    assert view("ten_crop") == crops.TenCropView(crop=224, Q=256)
    assert view("grid", Q=384) == crops.GridView(crop=224, Q=384)
    assert view("googlenet_144") == crops.MultiSquareView(crop=224)
    assert view("vgg", crop=32) == crops.ScaleView(crop=32, S=(37, 73))


def test_preview_shows_usable_images_and_names_the_others(odd, call):
    shutil.rmtree(odd / "val" / "cat")
    for name in ("ant", "bee"):
        (odd / "val" / name / "0.JPEG").write_bytes(b"")
    words = ("data", "preview", odd, "--view", "center", "--crop", 32, "--images")
    for images, usable in ((2, 2), (4, 2)):
        status, out, err = call(*words, images)
        assert status == 0
        assert f"{usable} views of {usable} images" in out
    assert err.count("left out: ") == 2
    for name in ("ant", "bee"):
        (odd / "val" / name / "1.JPEG").write_bytes(b"")
    status, _, err = call(*words, 2)
    assert status == 2
    assert "none of the images" in err


def test_prepared_shards_are_found_checked_and_shown(good, call):
    words = ("data", "prepare", "good", "my shards", "--short-side", 64, "--processes", 1)
    status, out, _ = call(*words)
    assert status == 0
    assert "10 train images, 4 val images, 2 classes" in out
    assert "images shrunk: 14" in out
    assert "cnn-depth train resnet:50,data=shards --set 'data.path=my shards'" in out
    size = sum(file.stat().st_size for file in (good / "my shards").glob("*.tfrecord"))
    assert f"{size / 1000:.1f} kB" in out
    answer = json.loads(call(*words, "--json")[1])
    assert (answer["shards_written"], answer["bytes"]) == (0, size)
    assert answer["images"] == {"train": 10, "val": 4}
    status, out, _ = call("data", "check", "my shards", "--json")
    answer = json.loads(out)
    assert (status, answer["data"]) == (0, "shards")
    assert answer["parts"]["train"]["short_side"] == {"min": 64, "median": 64, "max": 64}
    assert call("data", "preview", "my shards", "--view", "center", "--crop", 32)[0] == 0


def test_prepared_pixels_are_found_checked_and_shown(odd, call):
    """Sheets and sizes are those of the images that they were made of."""
    (odd / "train" / "cat" / "gone.JPEG").unlink()
    words = ("data", "prepare", odd, "pixels", "--decoded", "--processes", 1)
    status, out, err = call(*words)
    assert status == 0
    assert "pixels to be written: " in err
    assert "free at pixels: " in err
    assert "copied as they are, as they can't be decoded: 3 (train/cat/empty.JPEG, " in out
    assert "cnn-depth train resnet:50,data=shards --set data.path=pixels" in out
    answer = json.loads(call(*words, "--json")[1])
    assert (answer["shards_written"], answer["undecodable"], answer["decoded"]) == (0, 3, True)
    reports = [json.loads(call("data", "check", path, "--json")[1]) for path in (odd, "pixels")]
    for part in ("train", "test"):
        before, now = (report["parts"][part] for report in reports)
        for key in ("images", "usable", "short_side", "long_side", "images_per_class"):
            assert now[key] == before[key]
        (pixels,) = [row for row in now["formats"] if row["format"] == "pixels"]
        assert (pixels["decoded"], pixels["images"]) == ("before", now["usable"])
    status, out, _ = call("data", "check", "pixels")
    assert (status, "pixels" in out, "before" in out) == (1, True, True)
    for view in ("vgg", "googlenet", "grid"):
        sheets = []
        for path in (odd, "pixels"):
            words = ("data", "preview", path, "--view", view, "--crop", 32, "--out", "sheet.png")
            assert call(*words)[0] == 0
            sheets.append(np.asarray(Image.open("sheet.png"))[200:])
        np.testing.assert_array_equal(*(sheet[:, 400:] for sheet in sheets))


def test_a_disk_without_room_for_pixels_is_one_line(good, call, monkeypatch):
    usage = shutil.disk_usage(good)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    status, out, err = call("data", "prepare", "good", "out", "--decoded", "--processes", 1)
    assert (status, out) == (2, "")
    assert "out: decoded images of 0.0 GB are to be written, and its disk has 0.0 GB free" in err


def test_a_folder_without_a_train_part_is_checked_shown_and_split(good, call):
    _, out, _ = call("data", "check", "good/train", "--json")
    parts = json.loads(out)["parts"]
    assert {name: part["images"] for name, part in parts.items()} == {"test": 10}
    assert "no train part" in call("data", "check", "good/train")[1]
    _, out, _ = call("data", "check", "good/train", "--split", 0.4, "--json")
    parts = json.loads(out)["parts"]
    assert {name: part["images"] for name, part in parts.items()} == {"train": 6, "test": 4}
    assert parts["test"]["images_per_class"] == {"min": 2, "median": 2, "max": 2}
    words = ("data", "preview", "good/train", "--crop", 32, "--images", 2, "--view")
    for view in ("vgg", "center"):
        assert call(*words, view)[0] == 0
    words = ("data", "prepare", "good/train", "shards", "--split", 0.4, "--processes", 1)
    assert "6 train images, 4 val images, 2 classes" in call(*words)[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("check nowhere", ["nowhere", "does not exist"]),
        ("prepare good/train out", ["train and val", "data.split"]),
        ("prepare good/train out --split 0.9", ["split=0.9 leaves no image of 'ant'"]),
        ("check good --split 0.2", ["good has a part 'train'", "good/train as the folder"]),
        ("check good/train --split 2", ["split 2.0", "less than 1"]),
        ("preview good/train --view vgg --part train", ["--part train", "no such part"]),
        ("preview good/train --view vgg --colour pca_fitted", ["needs a train part"]),
        ("check good --data foldr", ["did you mean 'folder'?"]),
        ("check good --data shards", ["good/dataset.json", "prepare"]),
        ("check good --boxes nowhere", ["'nowhere' does not exist", "a folder with XML files"]),
        ("preview good --boxes good --view vgg", ["good holds no XML files"]),
        ("check good --threads 0", ["--threads 0", "1 to 1024"]),
        ("check good --list no/such/folder", ["--list no/such/folder", "can't be written"]),
        ("preview good --view ten_cropp", ["did you mean 'ten_crop'?"]),
        ("preview good --view xyzzy", ["vgg", "googlenet_144"]),
        ("preview good --view vgg --Q 256", ["--Q", "vgg", "--S"]),
        ("preview good --view grid --S 256", ["--S", "grid", "--Q"]),
        ("preview good --view googlenet --S 256", ["--S", "googlenet", "--colour"]),
        ("preview good --view googlenet_144 --Q 256", ["--Q", "googlenet_144"]),
        ("preview good --view center --epochs 2", ["--epochs", "center"]),
        ("preview good --view vgg --colour pca_publik", ["did you mean 'pca_public'?"]),
        ("preview good --view vgg --S 200,300", ["crop=224", "S=(200, 300)"]),
        ("preview good --view alexnet --S 256,512", ["alexnet", "--S 256"]),
        ("preview good --view center --Q 100", ["Q=100"]),
        ("preview good --view vgg --crop 0", ["--crop 0"]),
        ("preview good --view vgg --images 0", ["--images 0", "1 to"]),
        ("preview good --view vgg --epochs 99", ["--epochs 99"]),
        ("preview good --view vgg --seed -1", ["--seed -1"]),
        ("preview good --view vgg --out a.jpg", ["a.jpg", ".png"]),
        ("preview good --view vgg --out no/a.png", ["no folder no"]),
        ("prepare nowhere out", ["nowhere"]),
        ("prepare good good", ["OUT good is PATH itself"]),
        ("prepare good good/shards", ["OUT is in PATH", "outside PATH"]),
        ("prepare good/train .", ["PATH in OUT", "outside PATH"]),
        ("prepare good good/train/ant/1.JPEG/x", ["OUT is in PATH"]),
        ("prepare good out --quality 101", ["quality 101"]),
        ("prepare good out --processes 0", ["--processes 0"]),
    ],
)
def test_bad_input_is_one_clear_message_and_status_2(good, words, told, call):
    status, out, err = call("data", *words.split())
    assert (status, out) == (2, "")
    assert err.startswith("cnn-depth: error: ")
    assert err.count("\n") == 1
    for word in told:
        assert word in err


def test_planning_says_what_is_not_read_once(good, capsys):
    from experiments import config
    from launch.planning import graph

    (good / "good" / "val" / "ant" / "a.psd").write_bytes(b"8BPS")
    c = config.base()
    c.model = config.model("cifar_resnet:8")
    set_ = {"data.name": "folder", "data.path": "good", "train.batch_size": 2}
    c = config.override(c, {**set_, "data.holdout": 0.2}, "test")
    graph.forget_data()
    for _ in range(3):
        graph.images_of(c)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "1 file of suffix .psd is not read, such as val/ant/a.psd\n")
