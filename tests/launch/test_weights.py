"""Other people's weights from the command line: import, evaluate, predict, export, bad input."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cnn_arch
from cnn_arch import pretrained, weight_files
from experiments import weights
from experiments.runs import runs
from experiments.runs.names import find_run
from launch.planning import graph
from tests.made_up import noise


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A weights file, two images (one grey and not square), and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    weight_files.write(tmp_path / "net.pth", pretrained.export(net, "cifar"))
    weight_files.write(tmp_path / "odd.npz", {"a": np.ones(3, np.float32)})
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60, 3)), ("b.jpg", (33, 32))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_weights_are_imported_used_and_exported(files, call):
    status, out, _ = call(
        "weights", "import", "net.pth", "--as", "cifar_resnet:8", "--out", "mine", "--json"
    )
    assert status == 0
    assert json.loads(out)["naming"] == "cifar"
    status, out, _ = call("predict", "a.png", "b.jpg", "--run", "mine", "--json")
    assert status == 0
    answer = json.loads(out)
    with Image.open(answer["picture"]) as picture:
        assert picture.size[0] > 100
    for image in answer["images"]:
        shown = [row["probability"] for row in image["classes"]]
        assert len(shown) == 5
        assert shown == sorted(shown, reverse=True)
        assert 0 < sum(shown) <= 1 + 1e-6
    status, out, _ = call(
        "predict", "a.png", "--weights", "net.pth", "--as", "cifar_resnet:8", "--top", 2
    )
    assert status == 0
    name = answer["images"][0]["classes"][0]["name"]
    assert name in out
    status, out, _ = call("weights", "export", "mine", "--naming", "cifar", "--out", "again.npz")
    assert status == 0
    theirs, ours = (weight_files.read(files / name) for name in ("net.pth", "again.npz"))
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(value, ours[key])


def test_a_folder_of_hugging_faces_needs_no_as(files, call):
    options = {"width": 1 / 16, "stride_in": "3x3", "image_size": 32, "classes": 2}
    net = cnn_arch.create("resnet:50", rngs=nnx.Rngs(0), **options)
    weight_files.write(files / "net.npz", pretrained.export(net, "huggingface"))
    (files / "names.txt").write_text("yes\nno\n")
    words = [
        "--as",
        "resnet:50",
        "--classes",
        "names.txt",
        "--set",
        "image_size=32",
        "--set",
        "Q=40",
    ]
    assert call("weights", "import", "net.npz", *words, "--out", "mine")[0] == 0
    words = ["weights", "export", "mine", "--naming", "huggingface", "--out"]
    status, out, _ = call(*words, "lone.safetensors")
    assert (status, "one pixel" in out, Path("lone.safetensors").is_file()) == (0, False, True)
    status, out, _ = call(*words, "resnet50.v1")
    assert (status, len(out.splitlines())) == (0, 2)
    assert "transformers crops some images" in out
    status, out, _ = call("weights", "import", "resnet50.v1", "--json")
    assert json.loads(out)["images"]["weights"] == "resnet50.v1"
    status, out, _ = call("weights", "import", "resnet50.v1")
    assert "as published for resnet50.v1 (preprocessor_config.json; transformers crops" in out
    status, out, _ = call("predict", "a.png", "--weights", "resnet50.v1", "--json")
    assert status == 0
    (image,) = json.loads(out)["images"]
    assert sorted(row["name"] for row in image["classes"]) == ["no", "yes"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("weights import odd.npz", ["odd.npz does not say its architecture", "--as ARCH"]),
        ("weights import . --as resnet:50", ["no folder of Hugging Face's"]),
        ("weights import gone.pth --as cifar_resnet:8", ["gone.pth"]),
        ("weights import a.png --as cifar_resnet:8", ["a.png"]),
        ("weights import net.pth --as cifar_resnet:14", ["missing", "layer1.1.conv1.weight"]),
        ("weights import net.pth --as cifar_resnett:8", ["cifar_resnet:8"]),
        ("weights import net.pth --as cifar_resnet:8 --naming caff", ["'caffe'"]),
        ("weights import net.pth --as cifar_resnet:8 --set colour=3", ["model.colour"]),
        ("weights import net.pth --as cifar_resnet:8 --classes gone.txt", ["gone.txt"]),
        ("weights import net.pth --as cifar_resnet:8 --map gone.txt", ["--map gone.txt"]),
        ("weights import net.pth --as cifar_resnet:8 --map fc=a", ["no tensor is fc", "near"]),
        ("weights import net.pth --as resnet:18", ["net.pth", "--as cifar_resnet:8"]),
        ("weights import net.pth --as cifar_resnet:8 --which-weights average", ["no average"]),
        ("evaluate --map a=b", ["--map", "--weights"]),
        ("weights export gone --out x.npz", ["gone"]),
        ("evaluate --weights net.pth", ["--data"]),
        ("weights import hf:no/net", ["hf:no/net"]),
        ("evaluate --as cifar_resnet:8", ["--weights"]),
        ("evaluate", ["name a run"]),
        ("predict a.png --weights net.pth --as cifar_resnet:8 --top 0", ["--top"]),
        ("weights import net.pth --as cifar_resnet:8 --out .", ["can't be written"]),
        ("evaluate --weights net.pth --as cifar_resnet:8", ["--data"]),
        ("evaluate --weights net.pth --as cifar_resnet:8 --data digits", ["channels"]),
        ("evaluate --weights net.pth --as cifar_resnet:8 --data nowhere", ["nowhere"]),
        ("predict gone.png --weights net.pth --as cifar_resnet:8", ["gone.png"]),
        ("predict net.pth --weights net.pth --as cifar_resnet:8", ["net.pth"]),
    ],
)
def test_bad_input_is_one_clear_message_and_status_2(files, words, told, call):
    status, out, err = call(*words.split())
    assert status == 2
    assert not out
    assert err.startswith("cnn-depth: error: ")
    for word in told:
        assert word in err


def test_an_imported_network_starts_a_training_with_other_classes(files, call):
    config = files / "mine.py"
    config.write_text(
        "from experiments import config as configs\n"
        "def get_config(arg=None):\n"
        "    config = configs.base()\n"
        "    config.model = configs.model('cifar_resnet:14')\n"
        "    config.data.update(name='npz', path='mine.npz', image_size=32, holdout=0.0)\n"
        "    config.schedule.lr = 1e-9\n"
        "    config.train.update(batch_size=8, steps=1)\n"
        "    return config\n"
    )
    np.savez("mine.npz", **noise(24, 24, (32, 32, 3), 3))
    _, out, _ = call("weights", "import", "net.pth", "--as", "cifar_resnet:8", "--json")
    donor = json.loads(out)["run"]
    words = ["train", config, "--seed-from", donor, "--set", "seeding.kind=grow", "--json"]
    status, _, err = call(*words)
    assert status == 2
    assert "fc/bias of cifar_resnet:8 has shape (10,)" in err
    assert "networks of 10 and 3 classes; with seeding.classifier=fresh" in err
    status, out, err = call(*words, "--set", "seeding.classifier=fresh")
    assert status == 0, err
    report = json.loads((Path(json.loads(out)["run"]) / "seeding.json").read_text())
    assert report["from"] == donor
    assert sorted(report["left_over"]) == ["fc/bias", "fc/kernel"]
    assert {name.split("/")[1] for name in report["identity"]} == {"block2"}
    status, _, err = call("train", config, "--seed-from", "nowhere")
    assert (status, "nowhere" in err) == (2, True)


def test_a_last_layer_is_copied_for_the_same_classes_only(files, call):
    Path("small.py").write_text(
        "from experiments import config\n"
        "def get_config(arg):\n"
        "    c = config.base()\n"
        "    c.model = config.model('cifar_resnet:8')\n"
        "    more = {'data.name': 'npz', 'data.path': arg, 'train.batch_size': 10}\n"
        "    return config.override(c, {**more, 'train.steps': 1}, 'small')\n"
    )
    cifar = weights.CIFAR10_CLASSES
    german = ("Flugzeug", "Auto", *cifar[2:])
    images = np.zeros((20, 32, 32, 3), np.uint8)
    images[::2] = 255
    arrays = {f"{part}_images": images for part in ("train", "test")}
    arrays |= {f"{part}_labels": np.arange(20) % 10 for part in ("train", "test")}
    for name, names in (("same", cifar), ("moved", cifar[::-1]), ("german", german)):
        np.savez(f"{name}.npz", **arrays, class_names=np.array(names))
    _, out, _ = call("weights", "import", "net.pth", "--as", "cifar_resnet:8", "--json")
    words = ["--seed-from", json.loads(out)["run"], "--set", "seeding.classifier"]
    job = functools.partial(call, "train")
    status, _, err = job("small.py:german.npz", *words[:2])
    assert status == 2
    assert "has no class 'Flugzeug'" in err
    assert "in_order" in err
    assert "seeding.classifier=fresh" in err
    status, _, err = job("small.py:moved.npz", *words[:2])
    assert (status, "classes in another order" in err) == (2, True)
    names = ("same.npz", "german.npz", "moved.npz")
    for name, how in zip(names, ("copy", "in_order", "fresh"), strict=True):
        assert graph_of(f"small.py:{name}", words[1], how).config.seeding.classifier == how


def graph_of(study, donor, how):
    overrides = {"seeding.classifier": how}
    return graph.job_of_row(study, None, overrides, runs.root(), find_run(donor, runs.root()))


def test_a_picture_that_cannot_be_written_loses_no_prediction(files, call):
    words = ["predict", "a.png", "--weights", "net.pth", "--as", "cifar_resnet:8", "--json"]
    for picture in ("no/such/folder.png", "."):
        status, out, err = call(*words, "--picture", picture)
        assert status == 2
        assert len(json.loads(out)["images"][0]["classes"]) == 5
        assert err.startswith(f"cnn-depth: error: the picture {picture} can't be written")


def test_a_dollar_in_a_name_is_a_dollar_in_the_picture(files, call):
    (files / "a.png").rename("$x^$.png")
    words = ["predict", "$x^$.png", "--weights", "net.pth", "--as", "cifar_resnet:8"]
    assert call(*words)[0] == 0


def test_predict_says_which_orientations_it_ignores(files, call):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("b.jpg").convert("RGB").save("turned.jpg", exif=exif)
    words = ["--weights", "net.pth", "--as", "cifar_resnet:8"]
    status, _, err = call("predict", "a.png", "turned.jpg", *words)
    assert status == 0
    (line,) = [line for line in err.splitlines() if "EXIF" in line]
    assert line.startswith("turned.jpg: its EXIF orientation, 6, is ignored")
