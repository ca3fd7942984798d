"""A seeded network sees images as the network that seeds it did, unless its own are asked for."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import config as configs
from experiments import data
from experiments import network as networks
from experiments.data import preprocessing
from experiments.data.preprocessing import Preprocessing
from experiments.runs import checkpoints, runs
from experiments.testing import classifier, evaluate, predictions
from experiments.training import train
from input_pipeline.resident import Normalisation
from launch import devices
from launch.planning import graph

# ------------------------------------------------------------------------------ small images


def tiny(**overrides):
    base = configs.base()
    base.model = configs.model("cifar_resnet:8", width=0.25)
    base.data.update(image_size=8, pad=1)
    overrides = {k.replace("__", "."): v for k, v in overrides.items()}
    return configs.override(base, overrides, "test")


def trained(c, folder):
    run = runs.create(c, data.open_data(c.data).fingerprint, folder, {"study": "s", "row": "r"})
    with run.lock():
        train.train(run, devices.mesh())
    return run


def npz(path, low, high, size=8, channels=1, seed=0):
    """Thirty images whose grey levels lie between two bounds, thirty to test on, three classes."""
    random = np.random.default_rng(seed)
    images = random.integers(low, high, (60, size, size, channels), dtype=np.uint8)
    labels = np.arange(60) % 3
    parts = {"train": slice(0, 30), "test": slice(30, 60)}
    np.savez(
        path,
        **{f"{part}_images": images[where] for part, where in parts.items()},
        **{f"{part}_labels": labels[where] for part, where in parts.items()},
    )
    return path


def small(path, **overrides):
    options = {"data__name": "npz", "data__path": str(path), "data__holdout": 0.0}
    options |= {"data__divide_by_std": True, "train__batch_size": 10, "train__steps": 1}
    return tiny(**{**options, **overrides})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    npz(folder / "dark.npz", 0, 100)
    npz(folder / "bright.npz", 120, 250, seed=1)
    return folder


@pytest.fixture(scope="module")
def donor(folder):
    """A run on dark images."""
    return trained(small(folder / "dark.npz"), folder / "runs")


def seeded(donor, path, **overrides):
    """A run that another seeds, as `train --seed-from` plans it, and its config."""
    c = small(path, **overrides)
    study = configs.Study("mine", "mine", c, ())
    graph.forget_data()
    job = graph._job(study, "row", c, c.seed, None, donor.folder.parent, donor)
    job.create()
    return job.run


def test_a_run_with_the_other_kind_of_dropout_is_no_seed(folder, tmp_path):
    """Whose weights expect inputs of another size."""
    narrow = {"model__arch": "nin:cifar10", "model__width": 1 / 32, "model__init": "he"}
    dark = folder / "dark.npz"
    run = trained(small(dark, model__inverted_dropout=True, **narrow), tmp_path)
    with pytest.raises(configs.ConfigError, match=r"add --set model.inverted_dropout=True"):
        seeded(run, dark, **narrow, seed=1)
    assert seeded(run, dark, model__inverted_dropout=True, **narrow, seed=1).id != run.id


def train_images(path):
    with np.load(path) as file:
        return file["train_images"].astype(np.float64)


@pytest.mark.parametrize("kind", ["copy", "grow"])
def test_a_seeded_run_normalises_as_its_donor_did(kind, donor, folder):
    bright = folder / "bright.npz"
    arch = {"copy": "cifar_resnet:8", "grow": "cifar_resnet:14"}[kind]
    run = seeded(donor, bright, model__arch=arch, seeding__kind=kind)
    with run.lock():
        train.train(run, devices.mesh())
    images = train_images(folder / "dark.npz")
    normalise = preprocessing.load(run.folder / preprocessing.FILE).normalise
    np.testing.assert_allclose(normalise.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(normalise.std, images.std(), rtol=1e-5)
    tested = predictions.load(run.folder / "predictions" / "test-center.npz").posteriors
    with np.load(bright) as file:
        posteriors = classifier.load(run.folder)(file["test_images"])
    np.testing.assert_allclose(posteriors, tested, rtol=1e-4, atol=1e-5)


def test_a_grown_network_computes_on_other_images_what_its_donor_does(donor, folder):
    bright = folder / "bright.npz"
    run = seeded(donor, bright, model__arch="cifar_resnet:14", seeding__kind="grow", seed=3)
    c = run.config()
    d = data.prepare(c, prep=preprocessing.inherited(run, c))
    values, summary = train._seeds(run, c, d)
    assert f"normalised as {donor.id} did" in summary
    params, stats = networks.initial(c, d.classes, d.channels)
    bones = networks.skeleton(c, d.classes, d.channels, train=False)
    net = bones.merge(*({n: values[n] for n in tree} for tree in (params, stats)))
    views = d.test_views(d.constants, {"indices": np.arange(30, 60)}, d.centre)[:, 0]
    with np.load(bright) as file:
        expected = classifier.load(donor.folder)(file["test_images"])
    np.testing.assert_allclose(jax.nn.softmax(net(views)), expected, rtol=1e-4, atol=1e-5)


def test_fit_takes_mean_and_deviation_anew(donor, folder):
    run = seeded(donor, folder / "bright.npz", seeding__normalise="fit")
    with run.lock():
        train.train(run, devices.mesh())
    images = train_images(folder / "bright.npz")
    normalise = preprocessing.load(run.folder / preprocessing.FILE).normalise
    np.testing.assert_allclose(normalise.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(normalise.std, images.std(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["per_channel", "per_pixel"])
def test_on_the_same_images_what_is_inherited_is_what_would_be_fitted(kind, folder):
    dark = folder / "dark.npz"
    donor = trained(small(dark, data__normalise=kind), folder / "runs")
    run = seeded(donor, dark, data__normalise=kind, seed=1)
    c = run.config()
    inherited = data.prepare(c, prep=preprocessing.inherited(run, c)).preprocessing.normalise
    fitted = data.prepare(small(dark, data__normalise=kind)).preprocessing.normalise
    for name, array in vars(fitted).items():
        np.testing.assert_array_equal(getattr(inherited, name), array, err_msg=name)


def test_a_run_that_has_begun_needs_its_donor_no_more(donor, folder, tmp_path):
    copy = runs.Run(shutil.copytree(donor.folder, tmp_path / donor.id))
    run = seeded(copy, folder / "bright.npz", train__steps=3, seed=5)
    steps = []
    with run.lock(), pytest.raises(train.Interrupted):
        train.train(
            run,
            devices.mesh(),
            on_event=lambda e: steps.append(e.get("step")),
            stop=lambda: steps[-1] == 1,
        )
    shutil.rmtree(copy.folder)
    with run.lock():
        train.train(run, devices.mesh())
    assert checkpoints.step_of(run.checkpoints) == 3
    assert evaluate.Subject(run, devices.mesh()).tested().to_json()["n"] == 30


def test_a_mean_image_of_another_size_is_refused_before_training(folder):
    donor = trained(small(folder / "dark.npz", data__normalise="per_pixel"), folder / "runs")
    large = npz(folder / "large.npz", 0, 255, size=16)
    with pytest.raises(
        configs.ConfigError, match=r"mean image of 8x8 .*need one of 16x16; seeding\.normalise=fit"
    ):
        seeded(donor, large)
    run = seeded(donor, large, seeding__normalise="fit")
    assert run.config().seeding.normalise == "fit"


def test_rows_of_a_sweep_are_refused_before_any_is_trained(folder, tmp_path):
    study, large = tmp_path / "study.py", str(npz(tmp_path / "large.npz", 0, 9, size=16))
    study.write_text(f"""
from experiments import config as configs
def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("cifar_resnet:8", width=0.25)
    config.data.update(name="npz", path={str(folder / "dark.npz")!r}, image_size=8)
    config.data.normalise = "per_pixel"
    config.train.batch_size = 10
    return config
def sweep():
    yield "A", {{}}
    yield "B", {{"seed_from": "A", "model.arch": "cifar_resnet:14", "seeding.kind": "grow"}}
    yield "C", {{"seed_from": "B", "model.arch": "cifar_resnet:14", "data.path": {large!r}}}
""")
    with pytest.raises(configs.ConfigError, match=r"mean image of 8x8 .*need one of 16x16"):
        graph.plan([str(study)], {}, 1, tmp_path / "runs")
    rows = graph.plan([str(study)], {"data.normalise": "per_channel"}, 1, tmp_path / "runs")
    assert [row.name for row in rows] == ["A", "B", "C"]


def test_identity_has_what_counts(donor, folder):
    plain = seeded(donor, folder / "bright.npz", seed=8)
    for same in ({"data__normalise": "per_pixel"}, {"data__divide_by_std": False}):
        assert seeded(donor, folder / "bright.npz", seed=8, **same).id == plain.id
    fit = {"seeding__normalise": "fit"}
    ids = {
        plain.id,
        seeded(donor, folder / "bright.npz", seed=8, **fit).id,
        seeded(donor, folder / "bright.npz", seed=8, **fit, data__normalise="per_pixel").id,
    }
    assert len(ids) == 3
    c = small(folder / "dark.npz", **fit)
    study = configs.Study("mine", "mine", c, ())
    with pytest.raises(configs.ConfigError, match=r"seeding\.normalise needs a `seed_from`"):
        graph._job(study, "row", c, 0, None, donor.folder.parent)


def test_a_seeded_run_of_an_older_version_fitted_its_own(donor, folder):
    content = seeded(donor, folder / "bright.npz", seed=9).read("run")["config"]
    assert configs.from_json(content).seeding.normalise == "inherit"
    del content["seeding"]["normalise"]
    assert configs.from_json(content).seeding.normalise == "fit"


# ---------------------------------------------------------------------------- what fits what


def seen(mean, std=1.0, channels=3, **further):
    normalise = Normalisation(np.asarray(mean, np.float32), np.asarray(std, np.float32))
    return Preprocessing(normalise, ("a", "b"), channels, **further)


def encoded(**overrides):
    own = {"data__name": "folder", "data__path": "x", "data__image_size": 24, "data__pad": 0}
    c = tiny(**{**own, **overrides})
    c.seeding.run = "donor"
    return c


RAMP = np.arange(24 * 24 * 3).reshape(24, 24, 3)
LARGE = np.arange(32 * 32 * 3).reshape(32, 32, 3)
SQUARE = {"data__view": "square", "data__S": (32, 32)}


@pytest.mark.parametrize(
    ("donor", "overrides", "stored", "mean"),
    [
        (seen([1, 2, 3], [4, 5, 6]), {}, None, [1, 2, 3]),  # published: one of a channel
        (seen([1, 2, 3]), {}, (8, 9), [1, 2, 3]),  # a fixed mean, of images on the device
        (seen(0.0, channels=1), {}, None, 0.0),  # nothing is taken off
        (seen(RAMP), {}, None, RAMP),  # of small images, as large as the crop
        (seen(RAMP, of_view=True, square_mean=LARGE), {}, None, RAMP),
        (seen(RAMP, of_view=True, square_mean=LARGE), SQUARE, None, LARGE),
        (seen(RAMP, of_view=True), SQUARE, None, RAMP),
        (seen(RAMP, of_view=True), {}, (24, 24), RAMP),
    ],
)
def test_what_is_inherited(donor, overrides, stored, mean):
    inherited = data.inherited(donor, encoded(**overrides), 3, stored)
    np.testing.assert_array_equal(inherited.mean, np.asarray(mean, np.float32))
    np.testing.assert_array_equal(inherited.std, donor.normalise.std)


@pytest.mark.parametrize(
    ("donor", "overrides", "stored", "said"),
    [
        (seen([1], channels=1), {}, None, "channels: 1, and those of 'folder' have 3"),
        (seen(LARGE), {}, None, "mean image of 32x32 .* need one of 24x24"),
        (seen(LARGE), {}, (16, 24), "mean image of 32x32 .* need one of 16x24"),
        (
            seen(RAMP[:9, :9]),
            SQUARE,
            None,
            "mean image of 9x9 .* need one of 32x32 or 24x24",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(donor, overrides, stored, said):
    with pytest.raises(configs.ConfigError, match=f"donor .*{said}; seeding.normalise=fit takes"):
        data.inherited(donor, encoded(**overrides), 3, stored)


def test_whitening_is_not_for_encoded_images():
    donor = seen(RAMP)
    white = Normalisation(donor.normalise.mean, donor.normalise.std, np.eye(2, dtype=np.float32))
    donor = Preprocessing(white, donor.class_names, 3)
    with pytest.raises(configs.ConfigError, match=r"whitened small images.*seeding\.normalise=fit"):
        data.inherited(donor, encoded(), 3, None)
    assert data.inherited(donor, encoded(), 3, (24, 24)).whitening is white.whitening


# ---------------------------------------------------------------------------- encoded images


def test_encoded_images_are_seen_as_those_of_imported_weights(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40, 37, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{i}.png")
    theirs = seen([100, 110, 120], [60, 61, 62], resize="bicubic")
    (tmp_path / "donor").mkdir()
    preprocessing.save(tmp_path / "donor" / preprocessing.FILE, theirs)
    c = encoded(
        data__path=str(tmp_path / "images"),
        data__normalise="per_pixel",
        data__holdout=0.0,
        train__batch_size=4,
    )
    run = runs.Run(tmp_path / "mine")
    d = data.prepare(c, prep=preprocessing.inherited(run, c))
    (batch,) = d.tested("test", devices.mesh(), 8, d.centre, np.arange(4))
    views = d.test_views(d.constants, batch.inputs, d.centre)[:, 0]
    file = tmp_path / "images" / "val" / "a" / "0.png"
    image = Image.open(file)
    scaled = np.asarray(image.resize((24, 25), Image.Resampling.BICUBIC), np.float64)[:24]
    expected = (scaled - [100, 110, 120]) / [60, 61, 62]
    np.testing.assert_allclose(views[0], expected, atol=1.01 / 60)
    feed = d.feed(c, devices.mesh(), 0)
    batch = {name: array[0] for name, array in feed.next(range(1)).items()}
    feed.close()
    shown, _ = d.train_views(d.constants, np.int32(0), batch)
    for place, view in zip(batch["indices"], np.asarray(shown), strict=True):
        name, i = ("a", "b")[place // 6], place % 6
        image = Image.open(tmp_path / "images" / "train" / name / f"{i}.png")
        scaled = np.asarray(image.resize((24, 25), Image.Resampling.BICUBIC), np.float64)
        crops = [(scaled[row : row + 24] - [100, 110, 120]) / [60, 61, 62] for row in range(2)]
        assert min(np.abs(view - crop).max() for crop in crops) < 1.01 / 60
    assert d.preprocessing.resize == "bicubic"
