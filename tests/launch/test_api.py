"""The functions for notebooks beside the verbs that they call."""

import io
import json
from pathlib import Path

import numpy
import pandas
import pytest

from experiments.config import grid
from launch import api


def test_keywords_become_the_words_of_the_command():
    keywords = {
        "rows": ["a-*", "b"],
        "seeds": 3,
        "zip": True,
        "parallel": None,
        "grid": {"schedule.lr": [0.01, 0.1]},
        "set": ["data.pad=1"],
        "train__epochs": 2,
        "schedule__milestones": (0.5, 0.75),
        "runs": Path("there"),
    }
    assert api._words("sweep", keywords) == [
        *("--rows", "a-*", "b", "--seeds", "3", "--zip", "--grid", "schedule.lr=0.01,0.1"),
        *("--set", "data.pad=1", "--set", "train.epochs=2"),
        *("--set", "schedule.milestones=0.5,0.75", "--runs", "there"),
    ]
    assert api._words("evaluate", {"scales": [256, 384], "flip": False}) == ["--scales", "256,384"]
    grids = {
        "schedule.milestones": [(0.5, 0.75), (0.3,)],
        "optimizer.rates": [[("*kernel", 0.1), ("*bias", 2)], ()],
        "schedule.lr": numpy.array([0.5, 1e-05]),
        "train.remat": True,
        "data.name": "digits,npz",
    }
    words = api._words("report", {"grid": grids})[1::2]
    assert [values for _, values in grid.axes(words)] == [
        ("(0.5, 0.75)", "(0.3,)"),
        ("(('*kernel', 0.1), ('*bias', 2))", "()"),
        *(("0.5", "1e-05"), ("True",), ("digits", "npz")),
    ]
    pairs = {"seeding.mapping": [("conv1/*", "conv1/*")]}
    assert api._words("train", {"set": pairs})[1] == "seeding.mapping=(('conv1/*', 'conv1/*'),)"


@pytest.mark.parametrize(
    ("verb", "given", "told"),
    [
        ("sweep", {"row": "a"}, "sweep() has no keyword 'row'; did you mean 'rows'?; a key"),
        ("sweep", {"dry_run": True}, "sweep() has no keyword 'dry_run'"),
        (
            "evaluate",
            {"protocols": "dense"},
            "evaluate() has no keyword 'protocols'; did you mean 'protocol'?",
        ),
    ],
)
def test_a_keyword_that_is_none_is_told_with_the_nearest(verb, given, told):
    with pytest.raises(api.ApiError) as raised:
        api._words(verb, given)
    assert str(raised.value).startswith(told)


def test_frames_hold_what_the_verbs_print(study, told, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    for name in api.TERMINALS:  # as the kernel of a notebook has them
        monkeypatch.setenv(name, "1")
    lines = []
    monkeypatch.setattr(api, "print", lambda line, **_: lines.append(line), raising=False)
    swept = api.sweep(study, rows=["shallow"], runs=runs, train__steps=3)
    output = "".join(lines)
    assert "[1/1] shallow: test error" in output
    assert "\x1b" not in output
    assert "\r" not in output
    assert len(lines) < 20

    words = [study, "--rows", "shallow", "--set", "train.steps=3", "--runs", runs]
    pandas.testing.assert_frame_equal(swept, pandas.DataFrame(told("report", *words)["rows"]))
    assert list(swept["state"]) == ["finished"]
    assert api.results(study, rows=["shallow"], runs=runs, train__steps=3).equals(swept)
    run = api.train(study, "shallow", runs=runs, train__steps=3)  # it is there: the same run
    assert list(api.results(runs=runs)["run"]) == [run.id]
    tested = api.evaluate(run, runs=runs)
    assert list(tested["top1_errors_count"]) == [run.read("result")["top1_errors_count"]]
    assert list(tested["top1_low"]) == list(swept["top1_low"])


def test_a_tables_frame_is_the_csv_of_its_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = api.table("vgg-2")  # parameters, which are counted: nothing is trained
    (written,) = tmp_path.glob("runs/reports/*/vgg-2.csv")
    as_csv = pandas.read_csv(io.StringIO(frame.to_csv(index=False)))
    pandas.testing.assert_frame_equal(as_csv, pandas.read_csv(written))
    assert frame["printed"].notna().all()


def test_what_is_wrong_is_raised_in_one_line(tmp_path, capfd):
    with pytest.raises(api.ApiError, match=r"^unknown profile 'demmo'; did you mean 'demo'\?"):
        api.table("vgg-2", profile="demmo", runs=tmp_path)
    with pytest.raises(api.ApiError, match=r"^argument --backend: invalid choice: 'slur'"):
        api.train("residual_depth", backend="slur", runs=tmp_path)
    with pytest.raises(api.ApiError, match="add wait=True"):
        api.sweep("residual_depth", backend="slurm", runs=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_saves_what_is_trained(study, tmp_path, monkeypatch):
    lines = []

    def interrupted(line, **options):
        lines.append(line)
        if len(lines) == 1:
            raise KeyboardInterrupt  # as a notebook's stop button while a line is waited for

    monkeypatch.setattr(api, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        api.train(study, "shallow", runs=tmp_path / "runs", train__steps=50_000)
    assert "the same command goes on from there" in lines[-1]
    (folder,) = (tmp_path / "runs").glob("*/checkpoints")
    assert any(folder.iterdir())
    assert not (folder.parent / "result.json").exists()
    assert json.loads((folder.parent / "run.json").read_text())["row"] == "shallow"


def test_a_frame_without_pandas_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(api.ApiError, match=r"frames need pandas: pip install -e '\.\[notebooks\]'"):
        api.sweep("residual_depth")
