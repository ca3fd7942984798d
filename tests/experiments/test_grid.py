"""Rows of a study at several values of keys."""

from dataclasses import replace

import pytest

from experiments import config as configs
from experiments.config import ConfigError, grid
from experiments.config.study import Row, Study


@pytest.fixture
def study():
    config = configs.base()
    config.model = configs.model("cifar_resnet:8")
    rows = (Row("one", {}), Row("two", {"model.arch": "cifar_resnet:14"}, "one"))
    return Study("made", "made", config, rows)


def test_a_product_of_values(study):
    expanded = grid.expanded(study, grid.axes(["schedule.lr=0.01,0.1", "model.width=1,2"]))
    assert [row.name for row in expanded.rows] == [
        f"{row}, lr={lr}, width={width}"
        for lr in ("0.01", "0.1")
        for width in "12"
        for row in ("one", "two")
    ]
    two = expanded.rows[-1]
    assert two.seed_from == "one, lr=0.1, width=2"
    assert two.overrides == {
        "model.arch": "cifar_resnet:14",
        "schedule.lr": "0.1",
        "model.width": "2",
    }
    config = configs.override(study.config, two.overrides, "test")
    assert (config.schedule.lr, config.model.width) == (0.1, 2.0)


def test_values_that_go_together(study):
    expanded = grid.expanded(
        study, grid.axes(["schedule.lr=0.01,0.1", "train.epochs=5,10"]), together=True
    )
    assert [row.name for row in expanded.rows if row.seed_from is None] == [
        *("one, lr=0.01, epochs=5", "one, lr=0.1, epochs=10")
    ]
    with pytest.raises(ConfigError, match=r"--zip needs as many .*lr: 2, train\.epochs: 1"):
        grid.expanded(study, grid.axes(["schedule.lr=1,2", "train.epochs=5"]), together=True)


def test_a_combination_of_values_comes_once(study):
    with pytest.raises(ConfigError, match=r"--grid schedule\.lr: '1' comes twice"):
        grid.expanded(study, grid.axes(["schedule.lr=1, 1"]))
    axes = grid.axes(["schedule.lr=1,1,2", "model.width=1,2,2"])
    names = [row.name for row in grid.expanded(study, axes, together=True).rows[::2]]
    assert names == ["one, lr=1, width=1", "one, lr=1, width=2", "one, lr=2, width=2"]
    axes = grid.axes(["schedule.lr=1,1", "model.width=2,2"])
    with pytest.raises(ConfigError, match=r"schedule\.lr, model\.width: '1, 2' comes twice"):
        grid.expanded(study, axes, together=True)


def test_commas_in_brackets_part_no_values():
    assert grid.axes(["data.S=(32,40),(40,48)"]) == [("data.S", ("(32,40)", "(40,48)"))]
    assert grid.axes(["model.arch=vgg:A,vgg:D"]) == [("model.arch", ("vgg:A", "vgg:D"))]
    pairs = ("(('a*',0.1),('b[12]',1))", "(('c',2),)", "()")
    assert grid.axes([f"x.rates={','.join(pairs)}"]) == [("x.rates", pairs)]
    assert grid.axes(["x.y=a),(b,c),d"]) == [("x.y", ("a)", "(b,c)", "d"))]


def test_spaces_around_values_are_no_part_of_them(study):
    assert grid.axes([" x.y = 1, 2\n, (3, 4) "]) == [("x.y", ("1", "2", "(3, 4)"))]
    expanded = grid.expanded(study, grid.axes(["data.path=a\nb"]))
    assert expanded.rows[0].name == "one, path=a\\nb"
    assert expanded.rows[0].overrides["data.path"] == "a\nb"


def test_keys_of_one_last_part_are_told_in_full(study):
    expanded = grid.expanded(study, grid.axes(["data.name=npz", "x.name=y"]))
    assert expanded.rows[0].name == "one, data.name=npz, x.name=y"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["schedule.lr"], "expected KEY=VALUE"),
        (["schedule.lr="], "expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
        (["schedule.lr=1,,2"], "expected KEY=VALUE"),
        (["schedule.lr=1, ,2"], "expected KEY=VALUE"),
        (["schedule.lr=1", "schedule.lr=2"], "given twice"),
    ],
)
def test_what_is_no_grid_is_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        grid.axes(given)


def test_too_many_rows_are_refused(study):
    many = ",".join(map(str, range(400)))
    with pytest.raises(ConfigError, match="320,000 rows"):
        grid.expanded(study, grid.axes([f"seed={many}", f"train.steps={many}"]))


def test_some_rows_come_with_those_that_seed_them(study):
    assert [row.name for row in grid.selected(study, ["two"]).rows] == ["one", "two"]
    assert [row.name for row in grid.selected(study, ["o*"]).rows] == ["one"]
    assert grid.selected(study, []) is study
    grid.check_some([study], ["o*", "two"])
    with pytest.raises(ConfigError, match="'twoo' fits no row of made; did you mean 'two'"):
        grid.check_some([study], ["two", "twoo"])


def test_some_rows_of_several_studies(study):
    """A pattern may fit rows of one of them only; of the others there may be none."""
    second = replace(study, name="other", rows=(Row("three", {}),))
    grid.check_some([study, second], ["one", "three"])
    assert grid.selected(second, ["one"]).rows == ()
    with pytest.raises(ConfigError, match="'x' fits no row of made or other; there are 'one', "):
        grid.check_some([study, second], ["one", "x"])


def test_a_row_is_named_with_all_values_of_a_grid(study):
    expanded = grid.expanded(study, grid.axes(["schedule.lr=1,2"]))
    assert [row.name for row in grid.selected(expanded, ["one"]).rows] == ["one, lr=1", "one, lr=2"]
    assert [row.name for row in grid.selected(expanded, ["one, lr=2"]).rows] == ["one, lr=2"]
    both = grid.expanded(study, grid.axes(["schedule.lr=1,2", "model.width=3"]))
    assert [row.name for row in grid.selected(both, ["o*, lr=2"]).rows] == ["one, lr=2, width=3"]
    with pytest.raises(ConfigError, match="there are 'one, lr=1', 'two, lr=1', 'one, lr=2'"):
        grid.check_some([expanded], ["x"])
