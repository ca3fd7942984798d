"""A sweep from the command line: order, seeds, restarts, failures, and bad input."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.runs import checkpoints, runs
from experiments.runs.names import find_run
from experiments.testing import predictions
from launch import cli, devices
from launch.executors import local
from launch.verbs import sweep as sweep_verb
from tests.made_up import noise

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sweep(call):
    """sweep(words): exit status, rows and errors of `cnn-depth sweep`."""

    def sweep(*words):
        status, out, err = call("sweep", *words, "--json")
        return status, json.loads(out)["rows"], err

    return sweep


def test_sweep_trains_seeds_reports_and_repeats_nothing(study, tmp_path, sweep, told):
    folder = tmp_path / "runs"
    status, rows, _ = sweep(study, "--runs", folder)
    assert status == 0
    by_name = {row["row"]: row for row in rows}
    assert list(by_name) == ["shallow", "deep", "deep seeded"]
    for row in rows:
        assert row["state"] == "finished"
        run = find_run(f"cifar_resnet-{row['depth']}", folder) if row["row"] == "shallow" else None
        if run is not None:
            tested = predictions.load(run.folder / "predictions" / "test-center.npz")
            wrong = (tested.posteriors.argmax(axis=1) != tested.labels).sum()
            assert row["top1_error"] == pytest.approx(100 * wrong / 500)
    (seeding,) = folder.glob("*/seeding.json")
    report = json.loads(seeding.read_text())
    copied = {new for _, new in report["copied"]}
    seeded = runs.Run(seeding.parent)
    _, trees = checkpoints.load_network(seeded.checkpoints)
    assert copied | set(report["fresh"]) == {*trees["params"], *trees["stats"]}
    norm = {f"conv1/norm/{name}" for name in ("bias", "scale", "mean", "var")}
    assert copied == {"conv1/conv/kernel", *norm, "fc/kernel", "fc/bias"}
    assert report["left_over"]
    page = (folder / "reports" / "tiny" / "report.html").read_text()
    assert "deep seeded" in page

    # A second start trains nothing; so does another study that needs the same runs.
    times = {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}
    assert len(times) == 3
    renamed = tmp_path / "other.py"
    renamed.write_text(Path(study).read_text().replace('"shallow"', '"first"'))
    for again in (study, str(renamed)):
        status, rows, err = sweep(again, "--runs", folder)
        assert status == 0
        assert "to train" not in err
        assert {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")} == times

    # `evaluate` finds the same errors in the checkpoint.
    (tested,) = told("evaluate", seeded.id, "--runs", folder)
    assert tested["top1_errors_count"] == seeded.read("result")["top1_errors_count"]


def test_row_that_fails_blocks_only_the_rows_it_seeds(study, tmp_path, sweep):
    folder = tmp_path / "runs"
    status, rows, _ = sweep(f"{study}:lr=1e4", "--runs", folder)
    assert status == 1
    states = {row["row"]: row for row in rows}
    assert states["shallow"]["state"] == "failed"
    assert "NaN or Inf at step" in states["shallow"]["reason"]
    assert states["deep"]["state"] == "finished"
    assert "shallow" in states["deep seeded"]["reason"]
    assert states["deep seeded"]["top1_error"] is None

    # It would fail again: a second start does not try.
    status, again, err = sweep(f"{study}:lr=1e4", "--runs", folder)
    assert status == 1
    assert again == rows
    assert "to train" not in err


def test_killed_sweep_goes_on_where_it_stopped(study, tmp_path):
    folder = tmp_path / "runs"
    command = [sys.executable, "-m", "launch", "sweep", f"{study}:24", "--runs", str(folder)]
    command += ["--set", "checkpoint.every_steps=2"]

    def start():
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    with start() as process:
        end = time.monotonic() + 120
        while not list(folder.glob("*/checkpoints/[1-9]*")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert list(folder.glob("*/checkpoints/[1-9]*"))
    assert len(list(folder.glob("*/result.json"))) < 3
    with start() as process:  # workers of the first may still be leaving: it waits for them
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert len(list(folder.glob("*/result.json"))) == 3


# ------------------------------------------------------------------------------- bad input


def npz(path, classes=10, n=40):
    np.savez(path, **noise(n, n, (8, 8), classes))
    return str(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sweep vgg_dept", ["vgg_dept", "vgg_depth"]),
        ("sweep missing.py", ["missing.py", "does not exist"]),
        ("sweep STUDY --set train.epoch=1", ["train.epoch", "train.epochs", "shallow"]),
        ("sweep STUDY --set train.batch_size=lots", ["batch_size", "int", "lots"]),
        ("sweep STUDY --set model.arch=cifar_resnt:8", ["cifar_resnt:8", "cifar_resnet"]),
        ("sweep STUDY --set model.arch=cifar_resnet:9", ["cifar_resnet:9"]),
        ("sweep STUDY --set data.image_size=2", ["2x2", "4x4"]),
        ("sweep STUDY --set data.name=digit", ["digit", "digits"]),
        ("sweep STUDY --set data.mirror=true", ["mirror"]),
        ("sweep STUDY --set optimizer.freeze=fc8/*", ["freeze", "fc8/*"]),
        ("sweep STUDY --set data.name=npz --set data.path=no.npz", ["no.npz"]),
        ("sweep STUDY --set data.name=npz --set data.path=ONE", ["one.npz", "class"]),
        ("sweep STUDY --set data.name=npz --set data.path=EMPTY", ["empty.npz"]),
        ("sweep STUDY --seeds 0", ["--seeds 0: expected 1 to 10,000"]),
        ("sweep STUDY --seeds 1000000000", ["--seeds 1000000000: expected 1 to"]),
        ("train STUDY --row deeper", ["deeper", "deep seeded"]),
        ("train STUDY --row 'deep seeded'", ["shallow", "not trained yet"]),
        (
            "sweep STUDY --set schedule.warmup=linear --set schedule.warmup_steps=6",
            ["schedule.warmup_steps=6 is no part of a training of 6 steps"],
        ),
        ("evaluate vgg-Z", ["vgg-Z"]),
    ],
)
def test_bad_input_is_one_clear_message_and_status_2(study, tmp_path, call, words, said):
    files = {
        "STUDY": study,
        "ONE": npz(tmp_path / "one.npz", classes=1),
        "EMPTY": npz(tmp_path / "empty.npz", n=0),
    }
    for name, path in files.items():
        words = words.replace(name, path)
    status, out, err = call(*shlex.split(words), "--runs", tmp_path / "runs")
    assert (status, out) == (2, "")
    assert err.startswith("cnn-depth: error: ")
    assert "Traceback" not in err
    for word in said:
        assert word in err
    assert not list((tmp_path / "runs").glob("*/run.json"))


def test_own_images_are_one_option_away(study, tmp_path, told):
    path = npz(tmp_path / "mine.npz", classes=3, n=300)
    folder = tmp_path / "runs"
    words = ["train", study, "--runs", folder, "--row", "shallow", "--set", "data.name=npz"]
    words += ["--set", f"data.path={path}"]
    result = told(*words)
    assert result["n"] == 300
    before = result["run"]
    # Other content under the same name is another run.
    npz(Path(path), classes=3, n=310)
    result = told(*words)
    assert result["n"] == 310
    assert result["run"] != before


def test_second_process_leaves_a_run_alone(study, tmp_path, told, fresh_python):
    folder = tmp_path / "runs"
    words = [study, "--row", "shallow", "--runs", str(folder)]
    run = Path(told("train", *words)["run"])
    (run / "result.json").unlink()
    with runs.Run(run).lock():
        process = fresh_python("-m", "launch", "train", *words)
    assert process.returncode == 2
    assert f"process {os.getpid()}" in process.stderr
    assert "Traceback" not in process.stderr


def test_rows_that_wait_are_there_from_the_start(study, tmp_path, monkeypatch, told, call):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "run", interrupted)
    monkeypatch.setattr(devices, "probe", lambda slot: devices.Probe("cpu", 1, 1e9))
    with pytest.raises(KeyboardInterrupt):
        call("sweep", study, "--runs", tmp_path / "runs")
    rows = told("status", "--runs", tmp_path / "runs")["rows"]
    assert [row["row"] for row in rows] == ["shallow", "deep", "deep seeded"]
    assert {row["state"] for row in rows} == {"not run"}


def test_damaged_run_is_told_and_loses_no_other_row(study, tmp_path, monkeypatch, sweep, call):
    folder = tmp_path / "runs"
    assert sweep(f"{study}:2", "--runs", folder)[0] == 0
    (shallow,) = (p.parent for p in folder.glob("cifar_resnet-8-*/result.json"))
    deep, _ = sorted(p.parent for p in folder.glob("cifar_resnet-14-*/result.json"))
    intact = (shallow / "result.json").read_bytes()
    os.truncate(deep / "metrics.jsonl", 20)
    for content in (b"{}", b"[]", b"\xff", b'{"steps": 2'):
        (shallow / "result.json").write_bytes(content)
        _, out, err = call("report", f"{study}:2", "--runs", folder, "--json")
        rows = {row["row"]: row for row in json.loads(out)["rows"]}
        assert rows["shallow"]["state"] == "unreadable"
        assert str(shallow / "result.json") in rows["shallow"]["reason"]
        for name in ("deep", "deep seeded"):
            assert rows[name]["state"] == "finished"
            assert rows[name]["top1_error"] is not None
        assert err.startswith(f"{deep / 'metrics.jsonl'} ends at step 0 of 2")
        assert len(err.splitlines()) == 1
    (shallow / "result.json").write_bytes(intact)

    # What a report can't be written to costs the report, not the table.
    def read_only(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    monkeypatch.setattr(os, "replace", read_only)
    status, out, err = call("report", f"{study}:2", "--runs", folder)
    assert status == 2
    assert "deep seeded" in out
    place = folder / "reports" / "tiny"
    assert err.splitlines()[-1].startswith(
        f"cnn-depth: error: the report can't be written into {place} (Read-only file system)"
    )


def test_every_verb_says_the_same_of_how_a_run_stands(study, tmp_path, sweep, told):
    folder = tmp_path / "runs"
    assert sweep(study, "--runs", folder)[0] == 0
    (shallow,) = (path.parent for path in folder.glob("cifar_resnet-8-*/result.json"))
    for name in ("result", "progress"):
        (shallow / f"{name}.json").unlink()
    marks = {"": "interrupted", "cancelled": "cancelled", "failed": "failed"}
    for mark, state in marks.items():
        if mark:
            runs.write_json(shallow / f"{mark}.json", {"reason": "a reason", "by": "ann"})
        for words in (["status"], ["report", study]):
            rows = told(*words, "--runs", folder)["rows"]
            assert [row["state"] for row in rows if row["row"] == "shallow"] == [state], words


def test_a_grid_is_swept_and_reported(study, tmp_path, told, call):
    words = (study, "--runs", tmp_path / "runs", "--rows", "shallow*")
    grid = ("--grid", "schedule.lr=0.05,0.1", "--grid", "train.batch_size=32,64")
    report = told("report", *words, *grid)
    assert [row["row"] for row in report["rows"]] == [
        f"shallow, lr={lr}, batch_size={batch}" for lr in ("0.05", "0.1") for batch in (32, 64)
    ]
    status, out, err = call("sweep", *words, *grid, "--zip", "--set", "train.steps=2", "--json")
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert [row["state"] for row in rows] == ["finished"] * 2
    places = [path.name for path in (tmp_path / "runs" / "reports").iterdir()]
    assert len(places) == 2
    assert all(name.startswith("tiny-some-") for name in places)
    for changed in ([], ["--set", "train.steps=2"], ["--set", "train.steps=3"]):
        told("report", study, "--runs", tmp_path / "runs", *changed)
    more = {path.name for path in (tmp_path / "runs" / "reports").iterdir()} - {*places}
    assert len(more) == 3  # none takes the place of another
    assert all(re.fullmatch("tiny(-[0-9a-f]{6})?", name) for name in more)
    status, _, err = call("report", *words, "--zip")
    assert (status, "--zip goes with several --grid" in err) == (2, True)
    status, _, err = call("report", *words, "--grid", "schedule.lt=1,2")
    assert (status, "schedule.lt" in err) == (2, True)
    status, _, err = call("report", *words, *grid, "--set", "schedule.lr=1")
    assert (status, "schedule.lr is in --grid and in --set" in err) == (2, True)
    for same in ("schedule.lr=0.1,1e-1", "train.remat=true,false"):  # one value, and no result's
        key, values = same.split("=")
        first, second = values.split(",")
        status, out, err = call("report", *words, "--grid", same)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert f"--grid {key}: '{first}' and '{second}' make the same runs" in err
    some = ("schedule.kind=steps,constant", "schedule.milestones=(0.5,),(0.3,)")
    both = [word for axis in some for word in ("--grid", axis)]
    assert len(told("report", *words, *both)["rows"]) == 4  # of steps, milestones change results
    exact = [word.rstrip("*") if word == "shallow*" else word for word in map(str, words)]
    assert len(told("report", *exact, *grid)["rows"]) == 4


def test_an_error_names_the_row_of_a_network_that_cannot_be(study, tmp_path, call):
    words = (study, "--runs", tmp_path / "runs", "--rows", "shallow")
    wrong = {"model.shortcut=A,Q": "Unknown shortcut 'Q'", "optimizer.freeze=x*": "matches no"}
    for values, message in wrong.items():
        status, _, err = call("report", *words, "--grid", values)
        name = f"shallow, {values.split('.')[1].replace('A,', '')}"
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"cnn-depth: error: tiny, row '{name}': ")
        assert message in err


def test_an_error_of_data_names_the_row_whose_data_it_is(study, tmp_path, call):
    words = (study, "--runs", tmp_path / "runs", "--rows", "shallow")
    here, gone = tmp_path / "here.npz", tmp_path / "gone.npz"
    np.savez(here, **noise(80, 20, (8, 8), 7))
    words += ("--set", "data.name=npz")
    status, _, err = call("report", *words, "--grid", f"data.path={here},{gone}")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"cnn-depth: error: tiny, row 'shallow, path={gone}': ")
    status, _, of_all_rows = call("report", *words, "--set", f"data.path={gone}")
    assert (status, of_all_rows.count("\n")) == (2, 1)
    assert f"{gone}" in of_all_rows
    assert "row" not in of_all_rows


def test_reasons_of_seeds_name_them(study, tmp_path, told):
    words = (study, "--runs", tmp_path / "runs", "--rows", "shallow", "--seeds", "3")
    folder = tmp_path / "runs"
    rows = sweep_verb.plan(cli.parser_of("report").parse_args([*map(str, words)]), folder)
    for seed, job in rows[0].jobs.items():
        job.create()
        if seed:
            runs.write_json(job.run.folder / "failed.json", {"reason": f"reason {seed % 2}"})
    (row,) = told("report", *words)["rows"]
    assert row["reason"] == "seed 1: reason 1; seed 2: reason 0"


def test_some_rows_of_several_studies_are_reported(study, tmp_path, told, call):
    words = ("--runs", tmp_path / "runs", "--rows", "resnet-8", "shallow")
    rows = told("report", "residual_depth", study, *words)["rows"]
    assert [(row["study"], row["row"]) for row in rows] == [
        ("residual_depth", "resnet-8"),
        ("tiny", "shallow"),
    ]
    status, _, err = call("report", study, study, *words)
    assert (status, "two studies are called 'tiny'" in err) == (2, True)
