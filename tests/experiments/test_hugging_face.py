"""Folders of Hugging Face's transformers, written and read; hostile ones refused.

What needs the library is marked `peers`; the keys of the others were written down from its source.
"""

import json
import math
import os

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cnn_arch
from cnn_arch import flat_state, pretrained, weight_files
from cnn_arch.errors import WeightsError
from experiments import hugging_face, weights
from experiments.runs import runs
from experiments.testing import classifier
from tests.cnn_arch import reference

NAMES = ("cat", "dog", "bird", "fish", "frog")
SIZES = {"image_size": "64", "Q": "72"}
# As microsoft/resnet-50 has them, but for the numbers of maps.
CONFIG = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "downsample_in_first_stage": False,
    "embedding_size": 4,
    "hidden_act": "relu",
    "hidden_sizes": [16, 32, 64, 128],
    "id2label": {str(label): name for label, name in enumerate(NAMES)},
    "layer_type": "bottleneck",
    "model_type": "resnet",
    "num_channels": 3,
    "torch_dtype": "float32",
}
PROCESSOR = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}


def network(arch="resnet:50", width=1 / 16, **options):
    options = {"stride_in": "3x3", **options} if arch == "resnet:50" else options
    net = reference.random_network(
        arch, spread=0.1, width=width, classes=len(NAMES), image_size=64, **options
    )
    net.eval()
    return net


@pytest.fixture(scope="module")
def tensors():
    return pretrained.export(network(), "huggingface")


@pytest.fixture
def folder(tmp_path, tensors):
    """A network's folder as others publish it."""
    path = tmp_path / "resnet-50"
    path.mkdir()
    weight_files.write(path / "model.safetensors", tensors)
    put(path, "config.json", CONFIG)
    put(path, "preprocessor_config.json", PROCESSOR)
    return path


def put(folder, name, content):
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path, tensors):
    """A run to export: it sees images of 64 pixels out of 72."""
    file = tmp_path / "net.safetensors"
    weight_files.write(file, tensors)
    return weights.import_run(file, "resnet:50", tmp_path, options=SIZES, class_names=NAMES)


def same(first_run, second_run):
    """Whether two runs are one network that sees images in one way, to the last bit."""
    first, second = (classifier.load(run.folder) for run in (first_run, second_run))
    states = (flat_state(reference.nnx.state(c.network)) for c in (first, second))
    arrays = [{k: np.asarray(v) for k, v in state.items()} for state in states]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(value, arrays[1][key]) for key, value in arrays[0].items())
    assert dict(first.network.options) == dict(second.network.options)
    assert (first.view, first.class_names) == (second.view, second.class_names)
    for name in ("mean", "std"):
        values = [
            np.broadcast_to(getattr(c.preprocessing.normalise, name), 3) for c in (first, second)
        ]
        np.testing.assert_array_equal(*values)
    return (first.preprocessing.resize, first.preprocessing.warp) == (
        second.preprocessing.resize,
        second.preprocessing.warp,
    )


@pytest.mark.parametrize(("arch", "stride_in"), [("resnet:18", ""), ("resnet:50", "1x1")])
def test_what_is_exported_and_imported_again_is_the_same_to_the_last_bit(tmp_path, arch, stride_in):
    options = {"stride_in": stride_in} if stride_in else {}
    file = tmp_path / "net.safetensors"
    weight_files.write(file, pretrained.export(network(arch, **options), "huggingface"))
    for i, (mean, std, size) in enumerate(
        [
            ([123.68, 116.779, 103.939], [1.0], {"image_size": "64", "Q": "64"}),
            ([0.1, 7e-5, 254.9], [58.395, 57.12, 57.375], SIZES),
        ]
    ):
        first = weights.import_run(
            file, arch, tmp_path, options=options | size, class_names=NAMES, mean=mean, std=std
        )
        weights.export_run(first, tmp_path / f"folder{i}", "huggingface")
        assert sorted(os.listdir(tmp_path / f"folder{i}")) == [
            "README.md",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        ]
        assert same(first, weights.import_run(tmp_path / f"folder{i}", None, tmp_path / "again"))
        assert same(first, weights.import_run(tmp_path / f"folder{i}", arch, tmp_path / "again"))


def test_the_configs_written_have_the_librarys_keys(run, tmp_path):
    weights.export_run(run, tmp_path / "new", "huggingface")
    config, processor = (
        json.loads((tmp_path / "new" / name).read_text())
        for name in ("config.json", "preprocessor_config.json")
    )
    labels = {name: label for label, name in enumerate(NAMES)}
    added = {"downsample_in_bottleneck": False, "label2id": labels}
    assert config == {k: v for k, v in CONFIG.items() if k != "torch_dtype"} | added
    assert processor["size"] == {"shortest_edge": 72}
    assert processor["crop_size"] == {"height": 64, "width": 64}
    assert (processor["image_mean"], processor["image_std"]) == (
        PROCESSOR["image_mean"],
        PROCESSOR["image_std"],
    )


def test_a_published_folder_says_what_network_and_how_images_are_seen(folder, tmp_path):
    model = classifier.load(weights.import_run(folder, None, tmp_path).folder)
    assert model.network.name == "resnet:50"
    assert dict(model.network.options)["stride_in"] == "3x3"
    assert model.class_names == NAMES
    assert (model.view.crop, model.view.Q, model.view.warp) == (224, 256, False)
    assert model.preprocessing.resize == "bicubic"
    np.testing.assert_allclose(
        model.preprocessing.normalise.mean, [123.675, 116.28, 103.53], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"size": {"shortest_edge": 64}, "crop_pct": None}, (64, 73, False)),
        ({"size": 384}, (384, 384, True)),
        ({"size": 383}, (383, 437, False)),
        (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 96, "resample": 2},
            (96, 96, True),
        ),
        (
            {
                "image_processor_type": "BitImageProcessorFast",
                "size": {"shortest_edge": 80},
                "crop_size": {"height": 70, "width": 70},
            },
            (70, 80, False),
        ),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"height": 80, "width": 80},
                "crop_size": 70,
            },
            (70, 80, True),
        ),
    ],
)
def test_processors_are_understood(folder, tmp_path, change, seen):
    put(folder, "preprocessor_config.json", PROCESSOR | change)
    images = hugging_face.read(folder).images
    assert (images.crop, images.short_side, images.warp) == seen
    assert images.resize == ("bilinear" if change.get("resample") == 2 else "bicubic")


def test_pixels_that_are_not_rescaled_or_normalised(folder):
    put(folder, "preprocessor_config.json", PROCESSOR | {"do_normalize": False})
    images = hugging_face.read(folder).images
    assert (images.mean, images.std) == ((0, 0, 0), (255, 255, 255))
    put(folder, "preprocessor_config.json", PROCESSOR | {"do_rescale": False, "image_std": 2})
    images = hugging_face.read(folder).images
    assert (images.mean, images.std) == ((0.485, 0.456, 0.406), (2, 2, 2))
    change = {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 0.5}
    put(folder, "preprocessor_config.json", PROCESSOR | change)
    images = hugging_face.read(folder).images
    np.testing.assert_allclose((images.mean, images.std), ((127.5,) * 3, (63.75,) * 3))


def test_without_a_processor_images_are_seen_as_the_library_does(folder, tmp_path):
    (folder / "preprocessor_config.json").unlink()
    model = classifier.load(weights.import_run(folder, None, tmp_path).folder)
    assert (model.view.crop, model.view.Q, model.preprocessing.resize) == (224, 256, "bicubic")


def test_classes_of_one_name_are_told_apart(folder):
    names = CONFIG["id2label"] | {"1": "crane", "4": "crane"}
    put(folder, "config.json", CONFIG | {"id2label": names})
    assert hugging_face.read(folder).class_names == (
        "cat",
        "crane (1)",
        "bird",
        "fish",
        "crane (4)",
    )


DEEP = "[" * 100_000
BAD_CONFIGS = [
    ({"model_type": "bert"}, "model_type is 'bert'; expected 'resnet'"),
    ({"model_type": None}, "model_type is missing"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'relu'"),
    ({"layer_type": ["basic"]}, "layer_type is ['basic']"),
    ({"depths": [3, 4, 6]}, "depths is [3, 4, 6]; expected [3, 4, 6, 3] (resnet:50) or"),
    ({"depths": 10**400}, "depths is 1000"),
    ({"depths": [2, 2, 2, 2]}, "of bottleneck layers"),
    ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
    ({"downsample_in_bottleneck": 1}, "downsample_in_bottleneck is 1; expected true or false"),
    ({"id2label": ["cat"]}, "id2label is ['cat']"),
    ({"id2label": {}}, "id2label is '0 classes'"),
    ({"id2label": {"0": "cat", "2": "dog"}}, "id2label.1 is missing"),
    ({"id2label": {"0": "\x1b[31m"}}, "id2label.0 is '\\x1b[31m'; expected a name"),
    ({"id2label": {"0": 7}}, "id2label.0 is 7"),
    ({"id2label": {"0": " "}}, "id2label.0 is ' '"),
]
BAD_PROCESSORS = [
    ({"feature_extractor_type": None}, "feature_extractor_type is missing"),
    ({"image_processor_type": "os.system"}, "image_processor_type is 'os.system'"),
    (
        {"image_processor_type": "EfficientNetImageProcessor"},
        "processor of ConvNext, Bit, CLIP, ViT",
    ),
    ({"do_pad": True}, "do_pad is True; expected false"),
    ({"do_\x1b[31m": True}, "do_\\x1b[31m is True"),
    ({"do_resize": False}, "do_resize is False; expected true"),
    ({"do_center_crop": True}, "do_center_crop is True; expected false"),
    ({"size": None}, "size is missing"),
    ({"size": -1}, "size is -1; expected shortest_edge, 1 to 10000 pixels"),
    ({"size": 10**9}, "size is 1000000000"),
    ({"size": True}, "size is True"),
    ({"size": 224.0}, "size is 224.0"),
    ({"size": [224, 224]}, "size is [224, 224]"),
    ({"size": {"shortest_edge": {}}}, "size is {'shortest_edge': {}}"),
    ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "size is {"),
    ({"size": {"height": 224, "width": 224}}, "expected a shortest_edge"),
    ({"crop_pct": 0}, "crop_pct is 0; expected at least 0.01 and at most 1"),
    ({"crop_pct": math.nan}, "crop_pct is nan"),
    ({"crop_pct": "0.9"}, "crop_pct is '0.9'"),
    ({"resample": 1}, "resample is 1; expected 2 (bilinear) or 3 (bicubic)"),
    ({"resample": [3]}, "resample is [3]"),
    ({"resample": None}, "resample is missing"),
    ({"image_mean": None}, "image_mean is missing"),
    ({"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]; expected three numbers"),
    ({"image_mean": [0.5, 0.5, math.inf]}, "image_mean is"),
    ({"image_std": [0.5, 0.5, 0]}, "image_std is [0.5, 0.5, 0]; expected three numbers from 1e-06"),
    ({"image_std": "abc"}, "image_std is 'abc'"),
    ({"rescale_factor": 0}, "rescale_factor is 0"),
    (
        {"image_processor_type": "BitImageProcessor", "size": 64, "crop_size": 65},
        "crop_size is 65; expected at most 64",
    ),
    (
        {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 64, "width": 60}},
        "crop_size is {'height': 64, 'width': 60}; expected height and width alike",
    ),
    (
        {"image_processor_type": "BitImageProcessor", "do_center_crop": False},
        "do_center_crop is False",
    ),
]


@pytest.mark.parametrize(
    ("name", "whole", "change", "told"),
    [("config.json", CONFIG, *bad) for bad in BAD_CONFIGS]
    + [("preprocessor_config.json", PROCESSOR, *bad) for bad in BAD_PROCESSORS],
)
def test_a_value_that_cannot_be_is_one_line(folder, tmp_path, name, whole, change, told):
    put(folder, name, whole | change)
    with pytest.raises(WeightsError) as error:
        weights.import_run(folder, None, tmp_path / "runs")
    message = str(error.value)
    assert message.startswith(f"{folder / name}: ")
    assert told in message
    assert len(message) < len(str(folder)) + 500
    assert message.isprintable()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", DEEP, '{"depths": ' + DEEP, "\udcff", "1" * 5000])
def test_what_is_no_json_object_is_one_line(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError, match=r"config\.json can't be read as JSON"):
        hugging_face.read(folder)


def test_nothing_outside_of_the_folder_is_read(folder, tmp_path):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(WeightsError, match="is a link out of its folder"):
            hugging_face.read(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / f"its-{name}")
        (folder / name).symlink_to(f"its-{name}")
        hugging_face.read(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(WeightsError, match="no regular file"):
        hugging_face.read(folder)


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    with pytest.raises(WeightsError, match="holds the weights of resnet:50, not of resnet:18"):
        weights.import_run(folder, "resnet:18", tmp_path)
    put(folder, "config.json", CONFIG | {"depths": [3, 4, 23, 3]})
    with pytest.raises(WeightsError, match="not the weights of resnet:101"):
        weights.import_run(folder, None, tmp_path)
    put(folder, "config.json", CONFIG | {"id2label": {"0": "cat"}})
    with pytest.raises(runs.RunError, match="has 5 classes, and 1 are named"):
        weights.import_run(folder, None, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        weights.import_run(folder, None, tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="no folder of Hugging Face's"):
        weights.import_run(folder, None, tmp_path)


def test_a_folder_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    new = tmp_path / "deep" / "new"
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(WeightsError, match="new can't be written: full"):
            weights.export_run(run, new, "huggingface")
    assert not list(new.parent.iterdir())
    weights.export_run(run, new, "huggingface")
    before = {path.name: path.read_bytes() for path in new.iterdir()}
    with pytest.raises(WeightsError, match="is there already"):
        weights.export_run(run, new, "huggingface")
    assert before == {path.name: path.read_bytes() for path in new.iterdir()}
    assert [path.name for path in new.parent.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mean": np.zeros((64, 64, 3), np.float32)}, "a mean image"),
        ({"frame": np.array(2)}, "a black frame"),
        ({"exif": np.array(True)}, "EXIF"),
        ({"resize": np.array("opencv_bilinear")}, "opencv_bilinear"),
    ],
)
def test_what_the_librarys_file_has_no_words_for_is_refused(run, tmp_path, change, told):
    path = run.folder / "preprocessing.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | change))
    with pytest.raises(WeightsError, match=f"has no words for .*{told}"):
        weights.export_run(run, tmp_path / "new", "huggingface")
    assert not (tmp_path / "new").exists()


def test_classes_of_which_an_image_may_have_several_stay_so(run, tmp_path):
    path = run.folder / "preprocessing.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"several": np.array(True)}))
    weights.export_run(run, tmp_path / "new", "huggingface")
    content = json.loads((tmp_path / "new" / "config.json").read_text())
    assert content["problem_type"] == "multi_label_classification"
    back = weights.import_run(tmp_path / "new", None, tmp_path)
    assert classifier.load(back.folder).preprocessing.several


def test_the_card_tells_what_was_measured_and_what_the_paper_prints(run, tmp_path):
    weights.export_run(run, tmp_path / "blank", "huggingface")
    card = (tmp_path / "blank" / "README.md").read_text()
    assert "| top-1 error |  |" in card
    assert "the paper's" not in card
    assert "net.safetensors" in card
    record = json.loads((run.folder / "run.json").read_text())
    del record["imported"]
    record |= {"study": "resnet", "row": "resnet-50"}
    (run.folder / "run.json").write_text(json.dumps(record))
    result = {
        "protocol": "center",
        "n": 400,
        "top1_errors_count": 100,
        "train_loss": 0.1,
        "steps": 1000,
        "epochs": 2.5,
        "top1_error": 25.0,
        "train_images": 51200,
        "data": "a|b\n# c",
    }
    (run.folder / "result.json").write_text(json.dumps(result))
    weights.export_run(run, tmp_path / "told", "huggingface")
    card = (tmp_path / "told" / "README.md").read_text()
    # Wilson's interval by its formula.
    z, p, n = 1.959963984540054, 0.25, 400
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"| top-1 error | 25.00% ({low:.2f} to {high:.2f}, 95% Wilson" in card
    assert "| top-5 error |  |" in card
    assert "2.5 epochs, 1,000 steps" in card
    assert r"a\|b\\n\# c" in card
    assert "resnet-3, ResNet-50 | top-1 error 22.85%, top-5 error 6.71% (ILSVRC-2012, ten" in card
    assert '"optimizer.momentum": 0.9' in card


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def theirs(transformers, folder):
    """A function of an image: its pixels, and logarithms of posteriors."""
    torch = pytest.importorskip("torch")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()

    def of(image):
        pixels = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits
        return pixels[0].permute(1, 2, 0).numpy(), logits.log_softmax(1).numpy()

    return model, of


def check_equal(model, of, shapes):
    """Pixels are equal but for rounding, and log posteriors to 1e-4, unless the crop is moved."""
    rng = np.random.default_rng(0)
    for height, width in shapes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        view = model.see(image)
        ours = (view - model.preprocessing.normalise.mean) / model.preprocessing.normalise.std
        pixels, posteriors = of(image)
        (place,) = model.view.places(height, width)
        moved = any((side - model.view.crop) % 4 == 3 for side in place.scaled)
        assert (np.abs(pixels - ours).max() < 1e-5) == (not moved)
        if not moved:
            np.testing.assert_allclose(posteriors, model.log_posteriors(view[None]), rtol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("change", [{}, {"Q": "75"}, {"Q": "64"}])
def test_transformers_reads_the_folder(transformers, tensors, tmp_path, change):
    file = tmp_path / "net.safetensors"
    weight_files.write(file, tensors)
    run = weights.import_run(file, "resnet:50", tmp_path, options=SIZES | change, class_names=NAMES)
    _, note = weights.export_run(run, tmp_path / "new", "huggingface")
    assert ("all images" in note) == (change == {"Q": "75"})
    library, of = theirs(transformers, tmp_path / "new")
    assert library.config.id2label == dict(enumerate(NAMES))
    shapes = [(90, 130), (80, 80), (72, 75), (200, 70)]
    check_equal(classifier.load(run.folder), of, shapes)


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["convnext", "convnext-384", "bit", "vit"])
@pytest.mark.parametrize("in_bottleneck", [False, True])
def test_what_transformers_writes_is_read(transformers, tmp_path, kind, in_bottleneck):
    if kind != "bit" and in_bottleneck:
        pytest.skip("one processor is enough")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[16, 32, 64, 128],
        downsample_in_bottleneck=in_bottleneck,
        id2label=dict(enumerate(NAMES)),
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "net")
    processor = {
        "convnext": lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 64}),
        "convnext-384": lambda: transformers.ConvNextImageProcessorPil(resample=2),
        "bit": lambda: transformers.BitImageProcessorPil(size=70, crop_size=64),
        "vit": lambda: transformers.ViTImageProcessorPil(size=64),
    }[kind]()
    processor.save_pretrained(tmp_path / "net")
    model = classifier.load(weights.import_run(tmp_path / "net", None, tmp_path).folder)
    assert dict(model.network.options)["stride_in"] == ("1x1" if in_bottleneck else "3x3")
    _, of = theirs(transformers, tmp_path / "net")
    check_equal(model, of, [(90, 130), (80, 80), (75, 200)])


TIMM = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


@pytest.fixture
def timms(tmp_path):
    """Makes a folder of timm's with this config.json."""
    net = cnn_arch.create("resnet:18", width=0.0625, rngs=nnx.Rngs(0))
    folder = tmp_path / "timm"
    weight_files.write(folder / "model.safetensors", pretrained.export(net, "timm"))

    def make(**changes):
        images = {**TIMM["pretrained_cfg"], **changes.pop("pretrained_cfg", {})}
        content = {**TIMM, "pretrained_cfg": images, **changes}
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


def test_a_folder_of_timms_says_how_images_are_prepared(timms, tmp_path):
    run = weights.import_run(timms(), None, tmp_path / "runs")
    imported = run.read("run")["imported"]
    images = imported["images"]
    assert imported["naming"] == "timm"
    assert images["weights"] == "resnet18.a1_in1k"
    assert (images["crop"], images["short_side"], images["resize"]) == (224, 235, "bicubic")
    assert images["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert images["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert (run.config().data.image_size, run.config().test.Q) == (224, 235)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "resnet26"}, "architecture is 'resnet26'; expected one of resnet18"),
        ({"architecture": ["resnet18"]}, "architecture is "),
        ({"model_args": {"output_stride": 16}}, "model_args is "),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "crop_mode is 'squash'; expected 'center'"),
        ({"pretrained_cfg": {"input_size": [3, 224, 256]}}, "input_size is "),
        ({"pretrained_cfg": {"input_size": [3, -1, -1]}}, "input_size is -1; expected 1 to"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct is 0; expected at least 0.01"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation is 'random'"),
        ({"pretrained_cfg": {"mean": [0.5, "0.5", 0.5]}}, "mean is "),
        ({"pretrained_cfg": {"std": [0.5, 0.0, 0.5]}}, "std is "),
    ],
)
def test_what_a_folder_of_timms_must_not_say_is_refused(timms, changes, told):
    with pytest.raises(WeightsError, match=f"config.json: {told}"):
        hugging_face.read(timms(**changes))


def test_weights_without_a_name_are_those_of_the_one_that_fits(tmp_path):
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    weight_files.write(tmp_path / "net.npz", pretrained.export(net, "cifar"))
    origin = {"name": "hf:a/b"}
    first = weights.import_run(tmp_path / "net.npz", None, tmp_path / "runs", origin=origin)
    weights.export_run(first, tmp_path / "own.npz", "cnn-depth")  # a file of ours says it itself
    second = weights.import_run(tmp_path / "own.npz", None, tmp_path / "runs")
    assert [run.config().model.arch for run in (first, second)] == ["cifar_resnet:8"] * 2
    assert first.read("run")["imported"]["origin"] == origin
