"""`describe` and `list` agree with the papers' counts and with the registry."""

import csv
import re
from pathlib import Path

import pytest

import experiments

COMPUTED = Path(experiments.__file__).parent / "papers" / "computed_params.csv"


def computed() -> dict[str, tuple[int, int]]:
    """Config -> (parameters, MACs), counted from the papers' layer tables."""
    with COMPUTED.open(encoding="utf-8", newline="") as file:
        return {
            row["config"]: (int(row["params"]), int(row["macs"]))
            for row in csv.DictReader(file)
            if row["macs"]
        }


VGG = [(f"vgg:{v}", f"VGG-{v}") for v in ("A", "A-LRN", "B", "C", "D", "E")]
CIFAR = [
    (f"{family}:{n}", f"CIFAR ResNet-{n} A (= plain-{n})")
    for family in ("cifar_resnet", "cifar_plain")
    for n in (20, 32, 44, 56, 110)
]
DEEPEST = pytest.param(
    "cifar_resnet:1202", "CIFAR ResNet-1202 A (= plain-1202)", marks=pytest.mark.slow
)


@pytest.mark.parametrize(("architecture", "config"), [*VGG, *CIFAR, DEEPEST])
def test_totals_are_those_of_the_papers_layer_tables(architecture, config, told):
    answer = told("describe", architecture)
    assert (answer["params"], answer["macs"]) == computed()[config]
    assert sum(layer["params"] for layer in answer["layers"]) == answer["params"]
    assert sum(layer["macs"] for layer in answer["layers"]) == answer["macs"]


def test_sizes_and_options_are_taken(told):
    # conv1_1 of VGG at width 1/8 has 8 maps: 3*3*1*8 + 8 parameters, at 32*32 positions.
    words = ["vgg:A", "--image-size", "32", "--channels", "1", "--classes", "10"]
    answer = told("describe", *words, "--set", "width=0.125")
    first = next(layer for layer in answer["layers"] if layer["params"])
    assert first["params"] == 9 * 8 + 8
    assert first["macs"] == 9 * 8 * 32 * 32


def test_table_shows_every_layer_and_the_totals(told, call):
    answer = told("describe", "vgg:E")
    _, shown, _ = call("describe", "vgg:E")
    for layer in answer["layers"]:
        assert layer["name"] in shown
    assert f"{answer['params']:,}" in shown
    assert f"{answer['macs']:,}" in shown
    assert "19 weight layers" in shown


def test_parameters_are_listed_without_being_allocated(call):
    _, shown, _ = call("describe", "vgg:A", "--parameters")
    assert re.search(r"conv1_1/conv/kernel +\| \(3, 3, 3, 64\) +\|", shown)
    assert "Total: 132,863,336 -- 531,453,344 bytes" in shown


def test_parameters_in_json_add_up_to_the_total(told):
    import math

    answer = told("describe", "cifar_resnet:20", "--parameters")
    sizes = [math.prod(parameter["shape"]) for parameter in answer["parameters"].values()]
    assert sum(sizes) == answer["params"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("describe vvg:A", "vgg:A"),
        ("describe vgg:F", "vgg:"),
        ("describe vgg:A --image-size 8", "8x8"),
        ("describe vgg:A --image-size 16", "32x32"),
        ("describe vgg:A --set widht=0.5", "width"),
        ("describe vgg:A --set width=wide", "wide"),
        ("describe vgg:A --set width", "KEY=VALUE"),
        ("list keys data.nmae", "unknown key 'data.nmae'; did you mean 'data.name'?"),
        ("list tables vgg", "list tables vgg: only keys are listed by a pattern"),
    ],
)
def test_bad_input_is_one_message_that_names_it(words, named, call):
    status, _, error = call(*words.split())
    assert status == 2
    assert error.startswith("cnn-depth: error: ")
    assert named in error


def test_list_names_every_architecture_and_study(told):
    import cnn_arch
    from experiments import config

    answer = told("list")
    listed = {f"{row['family']}:{v}" for row in answer["architectures"] for v in row["variants"]}
    assert listed == set(cnn_arch.variants())
    depths = {row["family"]: row["variants"] for row in answer["architectures"]}
    # VGG's Table 1: 11, 11, 13, 16, 16 and 19 weight layers; section 4.1: five and three.
    assert depths["vgg"] == {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19, "B-5x5": 8}
    assert [row["name"] for row in answer["studies"]] == config.names()
    assert all(row["about"] for row in answer["studies"])


@pytest.mark.parametrize("what", ["architectures", "studies"])
def test_list_shows_one_kind_when_asked(what, told, call):
    assert set(told("list", what)) == {what}
    assert what in call("list", what)[1]


def test_list_keys_shows_every_key_of_every_config(told):
    import cnn_arch
    from experiments import config

    rows = told("list", "keys")["keys"]
    names = {row["name"] for row in rows}
    assert names >= config.flatten(config.base()).keys()
    assert names >= {f"model.{o}" for arch in cnn_arch.variants() for o in cnn_arch.options(arch)}
    assert all(row["meaning"].endswith(".") and row["values"] and row["identity"] for row in rows)


def test_list_keys_takes_a_part_of_a_name_or_a_pattern(told):
    assert {row["name"] for row in told("list", "keys", "batch_size")["keys"]} == {
        "train.batch_size",
        "test.batch_size",
    }
    assert all(
        row["name"].startswith("seeding.") for row in told("list", "keys", "seeding.*")["keys"]
    )
    (row,) = told("list", "keys", "optimizer.mu")["keys"]
    assert row["default"] == 0.02
    assert row["bounds"] == {"low": 1e-9, "high": 1e9, "above": False, "below": False}
    assert row["identity"] == "with optimizer.kind=sdlm, where not the default"
    (row,) = told("list", "keys", "model.pool2")["keys"]
    assert row["choices"] == ["max", "average"]
    assert {name.partition(":")[0] for name in row["architectures"]} == {"nin"}


def test_list_keys_is_read_by_people_too(monkeypatch, call):
    monkeypatch.setenv("COLUMNS", "60")
    assert call("list", "keys", "data.area")[1] == (
        "data.area = (0.08, 1.0)\n"
        "    View area: the share of the image, drawn from\n"
        "    area[0]..area[1].\n"
        "    2 numbers, each above 0 and at most 1; identity: with\n"
        "    encoded images, with data.view=area\n"
    )
