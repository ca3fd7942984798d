"""Configs: files, overrides, and what is said of bad ones."""

import ast
import json

import pytest

import cnn_arch
from experiments import config as configs
from experiments.config import grid
from experiments.config import keys as config_keys


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


def of(arch, **options):
    c = configs.base()
    c.model = configs.model(arch, **options)
    return c


@pytest.fixture
def config():
    return of("vgg:A", width=0.5)


def test_file_argument_reaches_get_config(tmp_path):
    assert configs.read(study(tmp_path, GOOD) + ":7").config.train.epochs == 7


def test_row_with_data_of_its_own_keeps_them(tmp_path):
    text = (
        GOOD
        + """
def sweep():
    yield "other", {"own_data": {"name": "cifar100", "path": ""}, "data.mirror": True}
    yield "one", {"seed_from": "other"}
"""
    )
    loaded = configs.read(study(tmp_path, text))
    overrides = {"data.name": "npz", "data.path": "x.npz", "train.epochs": 2.0}
    own, plain = (loaded.config_of(row, overrides) for row in loaded.rows)
    assert (own.data.name, own.data.path, own.data.mirror) == ("cifar100", "", True)
    assert (plain.data.name, plain.data.path) == ("npz", "x.npz")
    assert own.train.epochs == plain.train.epochs == 2
    (row, _) = grid.expanded(loaded, [("data.name", ["digits"])]).rows
    assert loaded.config_of(row).data.name == "cifar100"


def test_every_shipped_study_reads_and_its_rows_check():
    for name in configs.names():
        shipped = configs.read(name)
        assert shipped.rows
        for row in shipped.rows:
            shipped.config_of(row)


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
        ("schedule.milestones", "0.5", (0.5,)),
        ("schedule.milestones", 0.5, (0.5,)),
        ("data.S", "256", (256, 256)),
        ("data.S", 256, (256, 256)),
        ("data.mean", "128", (128.0, 128.0, 128.0)),
        ("optimizer.freeze", "conv1*", ("conv1*",)),
        ("optimizer.freeze", "", ()),
    ],
)
def test_text_takes_the_type_of_its_key(config, key, text, value):
    config = configs.override(config, {key: text}, "test")
    result = configs.flatten(config)[key]
    assert result == value
    assert type(result) is type(value)


def test_another_architecture_keeps_the_options_it_shares(config):
    changed = configs.override(config, {"model.arch": "cifar_resnet:20"}, "test")
    assert changed.model.width == 0.5
    assert "dropout" not in changed.model
    assert config.model.arch == "vgg:A"  # the original is left alone
    with pytest.raises(ValueError, match="vgg:E"):
        configs.override(config, {"model.arch": "vgg:EE"}, "test")


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
        ({"data.S": (1, 2, 3)}, ["data.S", "2 numbers"]),
        ({"data.image_size": 32, "data.S": (16, 64)}, ["data.S", "32"]),
        ({"test.Q": 16}, ["test.Q=16", "32"]),
        ({"train.accumulate": 3}, ["128", "3"]),
        ({"train.epochs": 0.0}, ["nothing to train"]),
        ({"schedule.kind": "plateau", "data.holdout": 0.0}, ["plateau", "data.holdout"]),
        ({"model.arch": 3}, ["model.arch", "3"]),
        ({"schedule.milestones": (30, 60, 90)}, ["(30.0, 60.0, 90.0)", "30 of 90 is 30/90"]),
        ({"schedule.milestones": (0.0, 0.5)}, ["(0.0, 0.5)", "above 0 and below 1"]),
        ({"schedule.milestones": (0.5, 1.0)}, ["(0.5, 1.0)", "above 0 and below 1"]),
        ({"schedule.milestones": (0.75, 0.5)}, ["(0.75, 0.5)", "must rise"]),
        ({"schedule.milestones": (0.5, 0.5)}, ["(0.5, 0.5)", "must rise"]),
        ({"schedule.milestones": ()}, ["schedule.kind='constant'"]),
        ({"schedule.lr": -0.1}, ["schedule.lr=-0.1", "at least"]),
        ({"schedule.warmup_lr": -0.1}, ["schedule.warmup_lr=-0.1", "at least 0"]),
        ({"schedule.factor": 0.0}, ["schedule.factor=0.0", "above 0 and below 1"]),
        ({"schedule.factor": 1.0}, ["schedule.factor=1.0", "schedule.kind=constant"]),
        ({"schedule.kind": "plateau", "schedule.drops": 0}, ["drops=0", "'constant'"]),
        ({"schedule.warmup": "linear"}, ["has no end", "schedule.warmup_part", "5/90"]),
        ({"schedule.warmup_part": 5.0}, ["schedule.warmup_part=5.0", "5 epochs of 90 are 5/90"]),
        (
            {"schedule.warmup": "until_error", "schedule.warmup_lr": 0.0},
            ["schedule.warmup_lr=0 trains nothing"],
        ),
        ({"schedule.warmup_error": 0.0}, ["schedule.warmup_error=0.0", "above 0 and below 100"]),
        ({"optimizer.rates": (("*", -1.0),)}, ["optimizer.rates", "above 0"]),
        ({"optimizer.rates": (("*", 0.0),)}, ["optimizer.rates", "optimizer.freeze"]),
        ({"data.pad": 32}, ["data.pad=32", "data.image_size=32", "nothing of the image"]),
        ({"data.area": (0.5, 0.1)}, ["data.area=(0.5, 0.1)", "smallest, largest"]),
        ({"data.mean": (1.0, 2.0)}, ["data.mean=(1.0, 2.0)", "3 numbers"]),
        ({"seed": 10**5000}, ["seed=a number of 16610 bits"]),
        ({"model.lrn": "caffe"}, ["model.lrn='caffe'", "vgg:A:", "vgg:A-LRN", "'paper'"]),
        ({"model.bn_group_size": 8}, ["model.bn_group_size=8", "batch_norm=True"]),
        ({"train.epochs": "(" * 5000}, ["train.epochs", "float"]),
    ],
)
def test_bad_override_is_named_with_what_was_expected(config, overrides, words):
    with pytest.raises(configs.ConfigError) as error:
        configs.override(config, overrides, "row 'x'")
    for word in ["row 'x'", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vgg_dept", ["vgg_dept", "vgg_depth"]),
        ("vgg_depth:18", ["vgg_depth.py", "'18'", "takes none"]),
        ("vgg_depth:profile=cifar", ["'profile=cifar' is not understood"]),
        ("residual_depth:profile=cifar", ["'profile=cifar' is not understood"]),
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
        (GOOD.replace("train.epochs", "train.epoch"), ["study.py line 6", "epoch"]),
        ("x = 1\n", ["get_config"]),
        ("x = 1\nx = x / 0\n", ["study.py line 2", "ZeroDivisionError", "division by zero"]),
        ("import nowhere_to_be_found\n", ["study.py line 1", "nowhere_to_be_found"]),
        ("\nraise SystemExit(3)\n", ["study.py line 2", "SystemExit", "3"]),
        ("\n\nraise BaseException('two\\nlines')\n", ["study.py line 3", "two lines"]),
        ("def get_config(arg):\n    return len(5)\n", ["study.py line 2", "TypeError"]),
        ("def get_config(arg):\n    assert arg\n", ["study.py line 2", "AssertionError"]),
        ("def get_config():\n    pass\n", ["study.py", "TypeError", "0 positional"]),
        ("get_config = 5\n", ["get_config"]),
        (
            GOOD.replace('"vgg:A"', '"vgg:X"'),
            ["study.py line 5", "vgg:X"],
        ),
        (
            GOOD.replace("train.epochs", "schedule.milestones"),
            ["study.py line 6", "milestones", "write a tuple"],
        ),
        (GOOD + "def sweep():\n    yield 'a', {}\n    yield 1 / 0\n", ["line 10", "division"]),
        (GOOD + "def sweep():\n    while True:\n        yield 'a', {}\n", ["100,000 rows"]),
        (GOOD + "def sweep():\n    yield 'a\\x1b[2J', {}\n", ["'a\\x1b[2J'", "control"]),
        (GOOD + "def sweep():\n    yield 'a', {'own_data': 'x'}\n", ["'a': own_data is 'x'"]),
        (GOOD + "def sweep():\n    yield 'a\\nb', {}\n", ["'a\\nb'", "control"]),
        (GOOD + "def sweep():\n    yield 'a\u202eb', {}\n", ["'a\\u202eb'", "control"]),
        (GOOD + "def sweep():\n    yield ' ', {}\n", ["called ' '"]),
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
    assert "\n" not in str(error.value)


def test_the_line_is_the_studys_own_also_below_other_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "study_helper.py").write_text("\n\n\ndef f():\n    raise OSError('full')\n")
    text = "from study_helper import f\ndef get_config(arg):\n    return f()\n"
    with pytest.raises(configs.ConfigError, match=r"study\.py line 3: OSError: full$"):
        configs.read(study(tmp_path, text))
    (tmp_path / "study_typo.py").write_text("\nx = = 1\n")
    with pytest.raises(configs.ConfigError, match=r"study\.py line 1: .*study_typo"):
        configs.read(study(tmp_path, "import study_typo\n"))


def test_a_title_and_a_file_name_are_escaped(tmp_path):
    path = tmp_path / "st\x1b[31mudy.py"
    path.write_text('"""A \x1b]0;title\u202e."""\n' + GOOD)
    loaded = configs.read(str(path))
    assert loaded.title == "A \\x1b]0;title\\u202e"
    assert loaded.name == "st\\x1b[31mudy"


def test_what_get_config_sets_takes_the_type_of_its_key(tmp_path):
    text = GOOD.replace(
        "    return",
        "    config.optimizer.freeze = ['conv1*']\n    config.data.S = [37, 64]\n    return",
    )
    config = configs.read(study(tmp_path, text)).config
    assert (config.optimizer.freeze, config.data.S) == (("conv1*",), (37, 64))


# Numbers that a key takes beyond those that no key can mean.
MEANT = {
    "-1": set(),
    "nan": set(),
    "inf": set(),
    "-inf": set(),
    "1e300": set(),
    str(10**30): set(),
    str(10**400): set(),
    "1e-300": {
        *("data.split", "data.holdout", "data.max_bad", "data.area", "optimizer.momentum"),
        *("optimizer.weight_decay", "optimizer.clip_norm", "optimizer.rates", "optimizer.unfreeze"),
        *("schedule.milestones", "schedule.factor", "schedule.warmup_lr", "schedule.warmup_part"),
        *("schedule.warmup_error", "train.label_smoothing", "train.ema", "train.epochs"),
        "train.until_error",
        *("test.curve_epochs", "checkpoint.every_seconds", "data.mean", "data.distort"),
        "data.box_part",
    },
}


def numbers(flat):
    """The keys whose values are numbers, or hold some, and how one is written into them."""
    for key, value in flat.items():
        if key in ("optimizer.rates", "optimizer.unfreeze"):
            yield (
                key,
                lambda text: (("*", ast.literal_eval(text) if text.isdigit() else float(text)),),
            )
        elif isinstance(value, tuple) and key.split(".")[1] in (
            *("decay", "freeze", "mapping", "classes"),
        ):
            continue
        elif isinstance(value, int | float | tuple) and not isinstance(value, bool):
            yield key, lambda text: text


@pytest.mark.parametrize("text", MEANT)
def test_no_number_of_any_key_can_be_out_of_all_proportion(config, text):
    flat = configs.flatten(configs.base())
    keys = dict(numbers(flat))
    assert sorted(keys) == sorted(k.name for k in config_keys.KEYS.values() if k.bounds)
    assert len(keys) == 48
    for key, written in keys.items():
        if key in MEANT[text]:
            configs.override(config, {key: written(text)}, "test")
            continue
        with pytest.raises(configs.ConfigError, match=key):
            configs.override(config, {key: written(text)}, "test")


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "-inf", "1e300", str(10**400)])
def test_no_number_of_any_architecture_can_be_out_of_all_proportion(text):
    keys = set()
    for name in cnn_arch.variants():
        config = of(name)
        for key, value in cnn_arch.options(name).items():
            if isinstance(value, bool | str):
                continue
            keys.add(key)
            with pytest.raises(configs.ConfigError, match=f"model.{key}"):
                configs.override(config, {f"model.{key}": text}, "test")
    assert keys == {
        *("width", "hidden", "dropout", "aux_dropout", "head_dropout", "bn_group_size", "padding"),
        *("positive_bias", "first_scale", "aux_weight", "rubbish"),
    }


def test_two_spellings_of_one_training_are_one_run(config):
    def identity(**changes):
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        return configs.identity_part(configs.override(config, overrides, "test"))

    assert identity() == identity(data__S=32, test__Q=32)
    assert identity() == identity(schedule__patience=7, schedule__drops=1)
    assert identity() == identity(schedule__warmup_lr=0.5, schedule__warmup_steps=9)
    assert identity() != identity(schedule__factor=0.5)
    assert identity() != identity(data__S=33)
    plateau = {"schedule__kind": "plateau"}
    assert identity(**plateau) == identity(**plateau, schedule__milestones=0.3)
    assert identity(**plateau) != identity(**plateau, schedule__patience=7)
    steps = {"train__steps": 100}
    assert identity(**steps) == identity(**steps, train__epochs=3.0)
    assert identity(**steps) != identity(train__steps=101)
    warm = {"schedule__warmup": "linear", "schedule__warmup_part": 0.1}
    assert identity(**warm) == identity(**warm, schedule__warmup_steps=5)
    assert identity(**warm) != identity(**warm, schedule__warmup_lr=0.5)
    bare = {"optimizer__weight_decay": 0.0}
    assert identity(**bare) == identity(**bare, optimizer__decay="*")
    assert identity() != identity(optimizer__decay="*")


def test_another_architecture_drops_options_that_change_nothing_there(config):
    lrn = configs.override(config, {"model.arch": "vgg:A-LRN", "model.lrn": "caffe"}, "test")
    assert lrn.model.lrn == "caffe"
    assert configs.override(lrn, {"model.arch": "vgg:B"}, "test").model.lrn == "paper"


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_set_needs_key_and_value(text):
    with pytest.raises(configs.ConfigError, match="KEY=VALUE"):
        configs.parse_set([text])


def test_json_round_trip_keeps_types(config):
    again = configs.from_json(json.loads(json.dumps(config.to_dict())))
    assert configs.flatten(again) == configs.flatten(config)


def test_what_changes_nothing_is_no_part_of_what_a_run_is():
    def identity(**changes):
        changed = of("cifar_resnet:8")
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
    config = configs.from_json(older)
    assert config.data.view == "scale"
    assert config.data.max_bad == configs.base().data.max_bad
    assert config.data.S == (0, 0)


def test_precision_is_part_of_the_identity_only_where_it_is_not_the_default():
    base = of("cifar_resnet:8")
    plain = configs.identity_part(base)
    assert not any("precision" in key for key in plain)
    same = configs.override(base, {"model.arch": "cifar_resnet:20"}, "test")
    assert configs.identity_part(same) == {**plain, "model.arch": "cifar_resnet:20"}
    high = configs.override(base, {"model.precision": "high"}, "test")
    assert configs.identity_part(high) == {**plain, "model.precision": "high"}
    vgg = configs.override(high, {"model.arch": "vgg:A"}, "test")
    assert vgg.model.precision == "high"
    with pytest.raises(configs.ConfigError, match=r"model\.precision='hihg'.*did you mean 'high'"):
        configs.override(base, {"model.precision": "hihg"}, "test")
    with pytest.raises(configs.ConfigError, match=r"model\.precision='highest'.*bfloat16"):
        configs.override(high, {"model.dtype": "bfloat16", "model.precision": "highest"}, "test")


def test_run_of_an_older_version_has_the_default_precision():
    content = json.loads(json.dumps(of("cifar_resnet:8").to_dict()))
    del content["model"]["precision"]
    assert configs.from_json(content).model.precision == "default"
