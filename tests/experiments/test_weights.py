import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cnn_arch import flat_state, pretrained, weight_files
from cnn_arch.errors import ArchitectureError, WeightsError
from experiments import weights
from experiments.config import ConfigError
from experiments.runs import runs, state
from experiments.testing import classifier, evaluate
from launch import devices
from tests.cnn_arch import reference


def random_network(name, **options):
    net = reference.random_network(name, spread=0.1, **options)
    net.eval()
    return net


@pytest.fixture
def cifar_file(tmp_path):
    net = random_network("cifar_resnet:8")
    path = tmp_path / "resnet8.pth"
    weight_files.write(path, pretrained.export(net, "cifar"))
    return net, path


def images(n, size=32, seed=3):
    shape = (n, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_an_imported_run_sees_images_as_its_source_did(cifar_file, tmp_path):
    net, path = cifar_file
    run = weights.import_run(path, "cifar_resnet:8", tmp_path / "runs")
    assert state.of(run) == ("imported", "")
    model = classifier.load(run.folder)
    assert model.class_names[0] == "airplane"
    x = images(5)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    logits = net(jnp.asarray((x / 255 - mean) / std, jnp.float32))
    np.testing.assert_allclose(model(x), jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(model.log_posteriors(x)), model(x), rtol=1e-5, atol=1e-7)


def test_nin_of_caffe_wants_to_know_how_its_images_were_prepared(tmp_path):
    path = tmp_path / "cifar10_nin.npz"
    net = random_network("nin:cifar10", pool2="average", inverted_dropout=True)
    weight_files.write(path, pretrained.export(net, "caffe"))
    with pytest.raises(runs.RunError, match="do not say how the images of nin:cifar10 were"):
        weights.import_run(path, "nin:cifar10", tmp_path)
    run = weights.import_run(path, "nin:cifar10", tmp_path, mean=[0.0], std=[64.0])
    x = images(5)
    logits = net(jnp.asarray(x / 64, jnp.float32))
    np.testing.assert_allclose(
        classifier.load(run.folder)(x), jax.nn.softmax(logits), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("naming", "hidden", "std"),
    [("kuangliu", 0, (0.2023, 0.1994, 0.201)), ("chengyangfu", 512, (0.229, 0.224, 0.225))],
)
def test_a_cifar_vgg_is_imported_and_keeps_its_hidden_units_in_our_own_files(
    naming, hidden, std, tmp_path
):
    sizes = {"image_size": 32, "classes": 10, "width": 1 / 8}
    net = random_network("vgg:A", hidden=hidden, batch_norm=True, **sizes)
    path, own = tmp_path / "vgg.pth", tmp_path / "own.npz"
    weight_files.write(path, pretrained.export(net, naming))
    run = weights.import_run(path, "vgg:A", tmp_path / "runs")
    model = classifier.load(run.folder)
    assert run.config().model.hidden == hidden
    assert model.class_names == weights.CIFAR10_CLASSES
    np.testing.assert_allclose(model.preprocessing.normalise.std, np.multiply(std, 255), rtol=1e-6)
    x = images(5)
    weights.export_run(run, own, "cnn-depth")
    again = classifier.load(weights.import_run(own, "vgg:A", tmp_path / "again").folder)
    np.testing.assert_array_equal(again(x), model(x))


def test_a_file_from_before_there_was_another_dropout_keeps_its_own(tmp_path):
    net = random_network("nin:cifar10", width=1 / 16, inverted_dropout=True)
    path, own = tmp_path / "nin.npz", tmp_path / "own.npz"
    weight_files.write(path, pretrained.export(net, "cnn-depth"))
    options = {"width": 1 / 16, "inverted_dropout": True}
    run = weights.import_run(path, "nin:cifar10", tmp_path, options=options, mean=[0.0], std=[64.0])
    weights.export_run(run, own, "cnn-depth")
    tensors = weight_files.read(own)
    header = json.loads(tensors[weights.HEADER].astype(np.uint8).tobytes())
    assert header["options"].pop("inverted_dropout") is True
    tensors[weights.HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    weight_files.write(own, tensors)
    again = weights.import_run(own, None, tmp_path / "again")
    assert again.config().model.inverted_dropout is True
    x = images(3)
    np.testing.assert_array_equal(classifier.load(again.folder)(x), classifier.load(run.folder)(x))


def test_cifar_100s_networks_see_its_images_and_other_numbers_of_classes_ask(tmp_path):
    for classes, names in ((10, weights.CIFAR10_CLASSES), (100, tuple(map(str, range(100))))):
        net = random_network("cifar_resnet:8", shortcut="B", classes=classes)
        path = tmp_path / f"resnet8-{classes}.npz"
        weight_files.write(path, pretrained.export(net, "pytorch-cifar-models"))
        model = classifier.load(weights.import_run(path, "cifar_resnet:8", tmp_path).folder)
        assert model.class_names == names
        assert model.preprocessing.normalise.mean[0] == pytest.approx(
            255 * (0.4914 if classes == 10 else 0.507)
        )
    net = random_network("cifar_resnet:8", shortcut="B", classes=20)
    weight_files.write(path, pretrained.export(net, "pytorch-cifar-models"))
    with pytest.raises(runs.RunError, match="do not say how the images"):
        weights.import_run(path, "cifar_resnet:8", tmp_path)


def test_importing_twice_makes_one_run_and_other_weights_another(cifar_file, tmp_path):
    _, path = cifar_file
    first = weights.import_run(path, "cifar_resnet:8", tmp_path / "runs")
    modified = (first.folder / "run.json").stat().st_mtime_ns
    assert weights.import_run(path, "cifar_resnet:8", tmp_path / "runs").folder == first.folder
    assert (first.folder / "run.json").stat().st_mtime_ns == modified
    names = [f"class {i}" for i in range(10)]
    second = weights.import_run(path, "cifar_resnet:8", tmp_path / "runs", class_names=names)
    assert second.folder != first.folder
    assert classifier.load(second.folder).class_names == tuple(names)
    with pytest.raises(runs.RunError, match="is another run"):
        weights.import_run(path, "cifar_resnet:8", tmp_path, out=first.folder, class_names=names)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == sorted([first.id, second.id])


def test_what_is_exported_and_imported_again_is_the_same_to_the_last_bit(cifar_file, tmp_path):
    _, path = cifar_file
    run = weights.import_run(path, "cifar_resnet:8", tmp_path / "runs")
    for naming in ("cifar", "cnn-depth"):
        for suffix in ("npz", "safetensors", "pth"):
            file = tmp_path / f"{naming}.{suffix}"
            weights.export_run(run, file, naming)
            again = weights.import_run(file, "cifar_resnet:8", tmp_path / f"{naming}-{suffix}")
            for old, new in zip(
                *(
                    sorted(flat_state(nnx.state(classifier.load(r.folder).network)).items())
                    for r in (run, again)
                ),
                strict=True,
            ):
                assert old[0] == new[0]
                np.testing.assert_array_equal(old[1], new[1])


def test_an_imported_run_is_tested_on_folders_files_and_arrays_alike(cifar_file, tmp_path):
    _, path = cifar_file
    run = weights.import_run(path, "cifar_resnet:8", tmp_path / "runs")
    x = images(30)
    y = np.random.default_rng(4).integers(0, 10, 30).astype(np.uint8)
    npz = tmp_path / "test.npz"
    np.savez(npz, train_images=x, train_labels=np.arange(30) % 10, test_images=x, test_labels=y)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        folder = tmp_path / "folder" / weights.CIFAR10_CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    progress = []
    mesh = devices.mesh()

    @contextlib.contextmanager
    def bar(label):
        yield lambda *counts: progress.append(counts)

    by_array, by_file = (
        evaluate.Subject(run, mesh, evaluate.EvaluationSettings(data=str(data)), bar)
        .tested()
        .to_json()
        for data in (npz, tmp_path / "folder")
    )
    posteriors = classifier.load(run.folder)(x)
    wrong = int((posteriors.argmax(axis=1) != y).sum())
    for result in (by_array, by_file):
        assert (result["n"], result["top1_errors_count"]) == (30, wrong)
    assert progress[-1] == (30, 30)
    saved = sorted(path.name for path in (run.folder / "predictions").iterdir())
    assert [name.rpartition("-")[0] for name in saved] == [
        "other-center-Q32-folder",
        "other-center-Q32-test.npz",
    ]
    with pytest.raises(runs.RunError, match="has no data of its own"):
        evaluate.Subject(run, mesh).tested()


def test_an_import_that_fails_leaves_nothing_behind(cifar_file, tmp_path):
    _, path = cifar_file
    folder = tmp_path / "runs"
    for arch in ("cifar_resnet:14", "vgg:D"):
        with pytest.raises(WeightsError):
            weights.import_run(path, arch, folder)
    with pytest.raises(ConfigError, match=r"did you mean 'model\.shortcut'"):
        weights.import_run(path, "cifar_resnet:8", folder, options={"shortcutt": "A"})
    with pytest.raises(ArchitectureError, match="Unknown shortcut"):
        weights.import_run(path, "cifar_resnet:8", folder, options={"shortcut": "D"})
    with pytest.raises(runs.RunError, match="has 10 classes, and 2 are named"):
        weights.import_run(path, "cifar_resnet:8", folder, class_names=("a", "b"))
    for odd in ("\x1b[31m", " ", "a"):
        with pytest.raises(runs.RunError, match="each once"):
            weights.import_run(path, "cifar_resnet:8", folder, class_names=(*"abcdefghi", odd))
    assert not folder.exists() or not list(folder.iterdir())


def test_the_options_that_follow_from_the_source_are_in_the_run_s_config(tmp_path):
    net = random_network("resnet:50", width=1 / 16, stride_in="3x3", classes=1000, image_size=224)
    path = tmp_path / "resnet50.safetensors"
    weight_files.write(path, pretrained.export(net, "torchvision"))
    run = weights.import_run(path, "resnet:50", tmp_path, options={"width": "0.0625"})
    config = run.config()
    assert config.model.stride_in == "3x3"
    assert (config.data.image_size, config.test.Q) == (224, 256)
    imported = json.loads((run.folder / "run.json").read_text())["imported"]
    assert (imported["file"], imported["naming"]) == ("resnet50.safetensors", "torchvision")
    assert classifier.load(run.folder).class_names[0] == "tench, Tinca tinca"


def test_how_images_were_prepared_is_asked_for_where_the_file_does_not_say(tmp_path):
    net = random_network("cifar_resnet:8", channels=1, image_size=16)
    path = tmp_path / "mine.npz"
    weight_files.write(path, pretrained.export(net, "cnn-depth"))
    size = {"image_size": "16"}
    with pytest.raises(runs.RunError, match="--mean 0 --std 1"):
        weights.import_run(path, "cifar_resnet:8", tmp_path, options=size)
    for wrong in ({"mean": [0.0, 1.0], "std": [1.0]}, {"mean": [0.0], "std": [0.0]}):
        with pytest.raises(runs.RunError, match="must be"):
            weights.import_run(path, "cifar_resnet:8", tmp_path, options=size, **wrong)
    run = weights.import_run(
        path, "cifar_resnet:8", tmp_path, options=size, mean=[100.0], std=[50.0]
    )
    x = images(3, 16)[..., :1]
    logits = net(jnp.asarray((x - 100.0) / 50, jnp.float32))
    np.testing.assert_allclose(
        classifier.load(run.folder)(x), jax.nn.softmax(logits), rtol=1e-4, atol=1e-6
    )


def test_a_file_of_our_own_says_what_its_tensors_do_not(tmp_path):
    options = {"width": 1 / 16, "stride_in": "3x3", "classes": 3, "image_size": 32}
    net = random_network("resnet:50", **options)
    tensors = tmp_path / "theirs.npz"
    weight_files.write(tensors, pretrained.export(net, "cnn-depth"))
    run = weights.import_run(
        tensors,
        "resnet:50",
        tmp_path,
        options={"width": "0.0625", "stride_in": "3x3", "image_size": "32", "Q": "40"},
        class_names=("a", "b", "c"),
        mean=[120.0, 110.0, 100.0],
        std=[50.0],
    )
    for suffix in ("npz", "safetensors", "pth"):
        file = tmp_path / f"ours.{suffix}"
        weights.export_run(run, file, "cnn-depth")
        again = weights.import_run(file, "resnet:50", tmp_path / suffix)
        old, new = classifier.load(run.folder), classifier.load(again.folder)
        x = images(3, 60)
        np.testing.assert_array_equal(new(x), old(x))
        assert new.class_names == ("a", "b", "c")
        assert new.view == old.view
    with pytest.raises(WeightsError, match="weights of resnet:50, not of resnet:101"):
        weights.import_run(file, "resnet:101", tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100000,
        b'{"arch": "cifar_resnet:8", "options": [], "class_names": [], "mean": 0, "std": 1}',
        b'{"arch": "cifar_resnet:8", "options": {}, "class_names": [], "mean": "x", "std": 1}',
        b'{"arch": "cifar_resnet:8", "options": {}, "class_names": [1], "mean": 0, "std": 1}',
        b'{"arch": "vgg:D", "options": {}, "class_names": [], "mean": 0, "std": 1}',
    ],
)
def test_a_header_that_is_not_ours_is_refused(tmp_path, header):
    tensors = pretrained.export(random_network("cifar_resnet:8"), "cnn-depth")
    tensors[weights.HEADER] = np.frombuffer(header or b" ", np.uint8)
    weight_files.write(tmp_path / "odd.npz", tensors)
    with pytest.raises(WeightsError, match=r"odd\.npz"):
        weights.import_run(tmp_path / "odd.npz", "cifar_resnet:8", tmp_path)


def test_imported_weights_are_tested_at_the_highest_precision(cifar_file, tmp_path):
    _, path = cifar_file
    for options, expected in (
        ({}, "highest"),
        ({"precision": "default"}, "default"),
        ({"dtype": "bfloat16"}, "default"),
    ):
        run = weights.import_run(path, "cifar_resnet:8", tmp_path / "runs", options=options)
        assert run.config().model.precision == expected
        assert classifier.load(run.folder).precision == expected
    assert len(list((tmp_path / "runs").iterdir())) == 3
    options = {"dtype": "bfloat16", "precision": "high"}
    with pytest.raises(ConfigError, match=r"model\.precision='high'.*bfloat16"):
        weights.import_run(path, "cifar_resnet:8", tmp_path / "runs", options=options)


def test_tensors_are_renamed_before_they_are_understood(cifar_file, tmp_path):
    net, path = cifar_file
    odd = {f"module.{name}": values for name, values in weight_files.read(path).items()}
    odd["module.head.weight"] = odd.pop("module.linear.weight")
    odd["module.mean"] = np.zeros(3, np.float32)
    weight_files.write(tmp_path / "odd.npz", odd)
    rules = [("head.*", "linear.*"), ("mean", "")]
    run = weights.import_run(
        tmp_path / "odd.npz", "cifar_resnet:8", tmp_path / "runs", renaming=rules
    )
    own = flat_state(nnx.state(classifier.load(run.folder).network))
    for name, values in flat_state(nnx.state(net)).items():
        np.testing.assert_array_equal(values, own[name])


def test_average_and_raw_weights_of_a_file_are_two_runs(cifar_file, tmp_path):
    torch = pytest.importorskip("torch")
    _, path = cifar_file
    raw = torch.load(path, weights_only=True)
    average = {f"module.{k}": v + 1 if k == "linear.bias" else v for k, v in raw.items()}
    both, folder = tmp_path / "both.pth", tmp_path / "runs"
    averaged = {"n_averaged": torch.tensor(3), **average}
    torch.save({"model": raw, "model_ema": averaged}, both)
    notes = []

    def bias(which):
        run = weights.import_run(both, "cifar_resnet:8", folder, which=which, on_note=notes.append)
        state = flat_state(nnx.state(classifier.load(run.folder).network))
        return run.id, np.asarray(state["fc/bias"])

    (first, default_bias), (second, average_bias), (third, raw_bias) = map(
        bias, (None, "average", "raw")
    )
    assert first == second != third
    np.testing.assert_array_equal(default_bias, raw["linear.bias"].numpy() + 1)
    np.testing.assert_array_equal(average_bias, default_bias)
    np.testing.assert_array_equal(raw_bias, raw["linear.bias"].numpy())
    assert [note.endswith("(--which-weights raw takes that)") for note in notes] == [1, 1, 0]
    assert notes[0].startswith(f"{both}: its 'model_ema' was taken, not 'model'")


def test_refused_weights_say_what_network_they_are_of(cifar_file, tmp_path):
    _, path = cifar_file
    with pytest.raises(WeightsError) as refused:
        weights.import_run(path, "resnet:18", tmp_path / "runs")
    assert str(refused.value).startswith(f"{path}: These are no weights of resnet:18")
    assert str(refused.value).endswith("They are those of cifar_resnet:8: --as cifar_resnet:8.")
    weight_files.write(tmp_path / "odd.npz", {"a": np.ones(3, np.float32)})
    with pytest.raises(WeightsError, match="Seen: a") as refused:
        weights.import_run(tmp_path / "odd.npz", "resnet:18", tmp_path / "runs")
    assert "--as" not in str(refused.value)


KERAS = [
    ("resnet:50", {"width": 1 / 16}, "keras"),
    ("vgg:D", {"width": 1 / 16, "image_size": 64}, "keras-numbered"),
]


@pytest.mark.parametrize(("arch", "options", "naming"), KERAS)
def test_a_file_of_keras_is_found_out_and_sees_blue_first(arch, options, naming, tmp_path):
    net = random_network(arch, **{"image_size": 64, "classes": 10, **options})
    path = tmp_path / "net.h5"
    weight_files.write(path, pretrained.export(net, naming))
    options = {"image_size": 64, "Q": 64}
    run = weights.import_run(path, None, tmp_path / "runs", options=options)
    imported = run.read("run")["imported"]
    assert (run.config().model.arch, imported["naming"]) == (arch, naming)
    assert imported["images"]["colour_order"] == "BGR"
    x = images(3, 64)
    logits = net(jnp.asarray(x - np.float32([123.68, 116.779, 103.939])))
    np.testing.assert_allclose(
        classifier.load(run.folder)(x), jax.nn.softmax(logits), rtol=1e-3, atol=1e-6
    )
    again = tmp_path / "again.h5"
    weights.export_run(run, again, naming)
    ours, theirs = weight_files.read(again), weight_files.read(path)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-7, atol=0)


def test_an_older_name_of_kerass_last_layer_is_known(tmp_path):
    net = random_network("resnet:50", width=1 / 16, image_size=64, classes=10)
    tensors = pretrained.export(net, "keras")
    older = {name.replace("predictions", "probs"): values for name, values in tensors.items()}
    weight_files.write(tmp_path / "net.h5", older)
    run = weights.import_run(tmp_path / "net.h5", None, tmp_path / "runs")
    assert run.config().model.arch == "resnet:50"


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (("conv1_conv", "predictions", "post_bn"), "they are of a ResNet V2, which is another"),
        (("conv1_conv", "conv1_bn"), r"they lack the last layer \(include_top=False\)"),
        (("stem_conv", "top_bn"), "of Keras's networks VGG16, VGG19, ResNet50, .* are known"),
    ],
)
def test_other_networks_of_keras_are_named_and_those_that_are_known(tmp_path, layers, reason):
    path = tmp_path / "net.h5"
    tensors = {f"{layer}/kernel": np.ones((3, 3, 3, 4), np.float32) for layer in layers[:-1]}
    tensors[f"{layers[-1]}/gamma"] = np.ones(4, np.float32)
    weight_files.write(path, tensors)
    with pytest.raises(WeightsError, match=reason) as refused:
        weights.import_run(path, None, tmp_path / "runs")
    assert f"{path} does not say its architecture" in str(refused.value)
    assert f"{layers[0]}/kernel" in str(refused.value)
    with pytest.raises(WeightsError, match=reason):
        weights.import_run(path, "resnet:50", tmp_path / "runs")
