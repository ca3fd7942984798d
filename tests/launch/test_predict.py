"""`cnn-depth predict` of many files: bad ones, long paths, pictures that are there."""

import json
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cnn_arch
from cnn_arch import pretrained, weight_files
from experiments.report import picture
from experiments.testing import classifier
from launch import cli
from launch.verbs import predict

LONG = "a long folder's name/" * 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of an imported network."""
    folder = tmp_path_factory.mktemp("net")
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    weight_files.write(folder / "net.pth", pretrained.export(net, "cifar"))
    words = ("weights", "import", folder / "net.pth", "--as", "cifar_resnet:8", "--out")
    assert cli.main([*map(str, words), str(folder / "mine")]) == 0
    return str(folder / "mine")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Five images in the present folder."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    names = [f"{k}.png" for k in range(5)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(name)
    return names


@pytest.fixture
def predicted(call, run):
    return lambda *words: call("predict", *words, "--run", run)


def test_bad_files_are_named_and_the_others_classified(run, images, predicted):
    Path("text.jpg").write_text("no image")
    words = [images[0], "text.jpg", "gone.png", images[1]]
    status, out, err = predicted(*words, "--json")
    answer = json.loads(out)
    assert status == 1
    assert [image["image"] for image in answer["images"]] == images[:2]
    assert [bad["image"] for bad in answer["bad"]] == ["text.jpg", "gone.png"]
    assert "left out: text.jpg is no image that Pillow can read" in err
    assert "left out: image gone.png does not exist" in err
    status, out, _ = predicted(*images[:2], "--json")
    assert (status, json.loads(out)["images"], json.loads(out)["bad"]) == (0, answer["images"], [])
    status, out, err = predicted("text.jpg", "gone.png")
    assert (status, out) == (2, "")
    assert err.endswith("cnn-depth: error: none of 2 files can be used\n")
    assert not Path("prediction-3.png").exists()


def test_many_images_are_classified_batch_by_batch(run, images, monkeypatch, predicted):
    sizes, original = [], classifier.Classifier.log_posteriors

    def log_posteriors(self, views, batch):
        sizes.append(len(views))
        return original(self, views, batch)

    drawn = []
    monkeypatch.setattr(predict, "BATCH", 2)
    monkeypatch.setattr(predict, "PICTURED", 3)
    monkeypatch.setattr(classifier.Classifier, "log_posteriors", log_posteriors)
    monkeypatch.setattr(picture, "draw", lambda views, shown, path: drawn.append((views, shown)))
    Path("text.jpg").write_text("no image")
    status, out, _ = predicted(*images[:3], "text.jpg", *images[3:], "text.jpg", "--json")
    answers = json.loads(out)["images"]
    assert (status, sizes) == (1, [2, 2, 1])
    ((views, shown),) = drawn
    assert (len(views), shown) == (3, answers[:3])
    model = classifier.load(run)
    for name, image in zip(images, answers, strict=True):
        p = np.exp(original(model, model.read(name)[None]))[0]
        best = np.argsort(-p)[:5].tolist()
        assert [row["label"] for row in image["classes"]] == best
        np.testing.assert_allclose([r["probability"] for r in image["classes"]], p[best], rtol=1e-4)
    assert "of the first 3 of 5 images" in predicted(*images)[1]


def test_a_picture_that_is_there_is_kept(run, images, predicted):
    Path("prediction.png").write_text("mine")
    Path("prediction-2.png").write_text("mine too")
    status, out, _ = predicted(images[0])
    assert status == 0
    assert out.endswith("picture: prediction-3.png (prediction.png is there already, and kept)\n")
    assert Path("prediction.png").read_text() == "mine"
    assert Path("prediction-2.png").read_text() == "mine too"
    with Image.open("prediction-3.png") as drawn:
        assert drawn.width > 100
    _, out, _ = predicted(images[0], "--picture", "prediction-3.png", "--json")
    assert json.loads(out)["picture"] == "prediction-3-2.png"


def test_of_a_long_path_the_end_is_shown_and_drawn(run, images, monkeypatch, predicted):
    titles, set_title = [], matplotlib.axes.Axes.set_title

    def noted(self, text, **options):
        titles.append(text)
        return set_title(self, text, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "set_title", noted)
    Path(LONG).mkdir(parents=True)
    path = f"{LONG}cat 0001.png"
    Path(images[0]).rename(path)
    status, out, _ = predicted(path, images[1])
    assert status == 0
    cells = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert "".join(cells).replace(" ", "").startswith(path.replace(" ", ""))
    assert titles == ["...long folder's name/cat 0001.png", "1.png"]


def test_names_that_are_no_text_are_shown(run, images, predicted):
    odd = b"\xff\x1b[31m.png"
    with open(odd, "wb") as file:
        file.write(Path(images[0]).read_bytes())
    with open(b"bad" + odd, "wb") as file:
        file.write(b"no image")
    words = [name.decode("utf-8", "surrogateescape") for name in (odd, b"bad" + odd)]
    status, out, err = predicted(*words)
    assert status == 1
    assert "\\udcff\\x1b[31m.png" in out
    assert "left out: bad\\udcff\\x1b[31m.png" in err
