"""Configs: files, overrides, and what is said of bad ones."""

import json

import pytest

from experiments import config as configs


def study(tmp_path, text):
    path = tmp_path / "study.py"
    path.write_text(text)
    return str(path)


GOOD = """
from experiments import config as configs
def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("vgg:A", width=0.5)
    config.train.epochs = float(arg or 1)
    return config
"""


@pytest.fixture
def config():
    c = configs.base()
    c.model = configs.model("vgg:A", width=0.5)
    return c


def test_file_argument_reaches_get_config(tmp_path):
    assert configs.read(study(tmp_path, GOOD) + ":7").config.train.epochs == 7


def test_every_shipped_study_reads_and_its_rows_check():
    for name in configs.names():
        found = configs.read(name)
        assert found.rows
        for row in found.rows:
            configs.override(found.config, row.overrides, row.name)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.batch_size", "32", 32),
        ("train.epochs", "3", 3.0),
        ("data.mirror", "true", True),
        ("schedule.kind", "cosine", "cosine"),
        ("data.S", "37,73", (37, 73)),
        ("data.S", "(37, 73)", (37, 73)),
        ("optimizer.freeze", "conv1_1/*,conv2_1/*", ("conv1_1/*", "conv2_1/*")),
        ("model.dropout", "0", 0.0),
    ],
)
def test_text_takes_the_type_of_its_key(config, key, text, value):
    config = configs.override(config, {key: text}, "test")
    found = configs.flatten(config)[key]
    assert found == value
    assert type(found) is type(value)


def test_override_leaves_the_original_alone(config):
    configs.override(config, {"train.epochs": 99.0}, "test")
    assert config.train.epochs != 99


def test_another_architecture_keeps_the_options_it_shares(config):
    changed = configs.override(config, {"model.arch": "cifar_resnet:20"}, "test")
    assert changed.model.width == 0.5
    assert "dropout" not in changed.model


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.batchsize": 3}, ["train.batchsize", "train.batch_size"]),
        ({"batch_size": 3}, ["train.batch_size", "test.batch_size"]),
        ({"model.droput": 0.1}, ["model.dropout"]),
        ({"train.batch_size": "many"}, ["train.batch_size", "int", "many"]),
        ({"train.batch_size": 1.5}, ["train.batch_size", "int", "1.5"]),
        ({"data.mirror": 1}, ["data.mirror", "bool"]),
        ({"schedule.kind": "plato"}, ["plato", "plateau"]),
        ({"train.epochs": -1.0}, ["train.epochs", "at least 0"]),
        ({"train.label_smoothing": float("nan")}, ["label_smoothing", "nan"]),
        ({"data.S": (20, 10)}, ["data.S"]),
        ({"data.S": (1, 2, 3)}, ["data.S", "two whole numbers"]),
        ({"data.image_size": 32, "data.S": (16, 64)}, ["data.S", "32"]),
        ({"test.Q": 16}, ["test.Q=16", "32"]),
        ({"train.accumulate": 3}, ["128", "3"]),
        ({"train.epochs": 0.0}, ["nothing to train"]),
        ({"schedule.kind": "plateau", "data.holdout": 0.0}, ["plateau", "data.holdout"]),
        ({"model.arch": 3}, ["model.arch", "3"]),
    ],
)
def test_bad_override_is_named_with_what_was_expected(config, overrides, words):
    with pytest.raises(configs.ConfigError) as error:
        configs.override(config, overrides, "row 'x'")
    for word in ["row 'x'", *words]:
        assert word in str(error.value)


def test_unknown_architecture_names_the_nearest(config):
    with pytest.raises(ValueError, match="vgg:E"):
        configs.override(config, {"model.arch": "vgg:EE"}, "test")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vgg_dept", ["vgg_dept", "vgg_depth"]),
        ("nowhere/to/be/found.py", ["nowhere/to/be/found.py", "does not exist"]),
    ],
)
def test_missing_study_names_the_nearest(spec, words):
    with pytest.raises(configs.ConfigError) as error:
        configs.read(spec)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(arg:\n", ["line 1"]),
        (GOOD.replace("train.epochs", "train.epoch"), ["study.py", "epoch"]),
        ("x = 1\n", ["get_config"]),
        ("def get_config(arg):\n    return None\n", ["ConfigDict", "None"]),
        (GOOD + "def sweep():\n    yield 'a'\n", ["sweep()", "pairs"]),
        (GOOD + "def sweep():\n    yield 'a', {}\n    yield 'a', {}\n", ["two rows", "'a'"]),
        (
            GOOD + "def sweep():\n    yield 'b', {'seed_from': 'a'}\n    yield 'a', {}\n",
            ["'b'", "'a'", "no row before"],
        ),
    ],
)
def test_broken_study_is_told_plainly(tmp_path, text, words):
    with pytest.raises(configs.ConfigError) as error:
        configs.read(study(tmp_path, text))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_set_needs_key_and_value(text):
    with pytest.raises(configs.ConfigError, match="KEY=VALUE"):
        configs.parse_set([text])


def test_json_round_trip_keeps_types(config):
    import json

    again = configs.from_json(json.loads(json.dumps(config.to_dict())))
    assert configs.flatten(again) == configs.flatten(config)


def test_what_changes_nothing_is_no_part_of_what_a_run_is():
    def identity(**changes):
        changed = configs.base()
        changed.model = configs.model("cifar_resnet:8")
        overrides = {f"data.{key}": value for key, value in changes.items()}
        return configs.identity_part(configs.override(changed, overrides, "test"))

    assert identity() == identity(view="area", mean=(1.0, 2.0, 3.0), threads=3, path="/x")
    folder = {"name": "folder", "normalise": "fixed"}
    assert identity(**folder) != identity()
    assert identity(**folder) == identity(**folder, area=(0.5, 1.0), statistics_images=5)
    assert identity(**folder) != identity(**folder, mean=(1.0, 2.0, 3.0))
    assert identity(**folder) != identity(**folder, view="area")
    area = {**folder, "view": "area"}
    assert identity(**area) != identity(**area, area=(0.5, 1.0))
    fitted = {"name": "folder", "normalise": "per_channel"}
    assert identity(**fitted) != identity(**fitted, statistics_images=5)


def test_a_run_of_an_older_version_gets_the_newer_keys():
    older = configs.base().to_dict()
    del older["data"]["view"], older["data"]["max_bad"]
    found = configs.from_json(older)
    assert found.data.view == "scale"
    assert found.data.max_bad == configs.base().data.max_bad
    assert found.data.S == (0, 0)


def test_precision_is_part_of_the_identity_only_where_it_is_not_the_default():
    base = configs.base()
    base.model = configs.model("cifar_resnet:8")
    plain = configs.identity_part(base)
    assert not any("precision" in key for key in plain)
    same = configs.override(base, {"model.arch": "cifar_resnet:20"}, "test")
    assert configs.identity_part(same) == {**plain, "model.arch": "cifar_resnet:20"}
    high = configs.override(base, {"model.precision": "high"}, "test")
    assert configs.identity_part(high) == {**plain, "model.precision": "high"}
    kept = configs.override(high, {"model.arch": "vgg:A"}, "test")
    assert kept.model.precision == "high"
    with pytest.raises(configs.ConfigError, match=r"model\.precision='hihg'.*did you mean 'high'"):
        configs.override(base, {"model.precision": "hihg"}, "test")
    with pytest.raises(configs.ConfigError, match=r"model\.precision='highest'.*bfloat16"):
        configs.override(high, {"model.dtype": "bfloat16", "model.precision": "highest"}, "test")


def test_run_of_an_older_version_has_the_default_precision():
    base = configs.base()
    base.model = configs.model("cifar_resnet:8")
    content = json.loads(json.dumps(base.to_dict()))
    del content["model"]["precision"]
    assert configs.from_json(content).model.precision == "default"
