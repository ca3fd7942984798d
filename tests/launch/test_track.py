"""`--track` reaches whatever trains, here and as jobs of Slurm, and keys stay where they were."""

import json
import os
import re
from pathlib import Path

import pytest

from experiments import tracking
from experiments.runs.runs import Run
from experiments.tracking import following
from launch import cli
from launch.executors import slurm as backend
from launch.executors.cluster import Cluster

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """`--track` sets a variable of this process; after the test it is what it was."""
    monkeypatch.setenv(tracking.VARIABLE, "none")
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


VERBS = {
    "train": ("--row", "shallow"),
    "sweep": (),
    "sweep on a cluster": ("--backend", "slurm"),
    "table": (),
    "retry": ("--all",),
}


@pytest.mark.parametrize("verb", VERBS)
def test_trackers_that_are_not_there_end_a_command_before_anything_is_trained(
    study, tmp_path, capsys, monkeypatch, verb
):
    name = verb.partition(" ")[0]
    subject = {"table": "vgg-3", "retry": None}.get(name, study)
    words = [name, *filter(None, [subject]), *VERBS[verb], "--runs", str(tmp_path / "runs")]
    assert cli.main([*words, "--track", "tensorbord"]) == 2
    output = capsys.readouterr().err
    assert "--track tensorbord: unknown tracker 'tensorbord'; did you mean 'tensorboard'?" in output
    monkeypatch.setattr(tracking, "_is_installed", lambda package: package != "wandb")
    assert cli.main([*words, "--track", "none,"]) == 2
    assert cli.main([*words, "--track", "tensorboard,wandb"]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "the tracker wandb needs wandb, not installed here: pip install" in line
    assert not (tmp_path / "runs").exists()


def test_rows_of_a_sweep_are_tracked_as_it_was_asked(study, tmp_path, call):
    words = ["sweep", study, "--rows", "shallow", "--runs", tmp_path]
    assert call(*words, "--track", "none")[0] == 0
    (metrics,) = tmp_path.glob("*/metrics.jsonl")
    assert not (metrics.parent / "tensorboard").exists()
    metrics.with_name("result.json").unlink()
    assert call(*words, "--track", "tensorboard")[0] == 0
    assert list((metrics.parent / "tensorboard").iterdir())
    assert list(tmp_path.glob("*/metrics.jsonl")) == [metrics]  # it is the same run


# -------------------------------------------------------------------------------- on Slurm


def script(tmp_path, **more):
    item = backend.Item(Run(tmp_path / "run"), "row", **more)
    cluster = Cluster(setup=("export CNN_DEPTH_TRACK=mlflow",))
    _, [(_, text)] = backend.scripts([item], cluster, tmp_path)
    return text


def test_script_names_the_trackers_that_were_asked_for_and_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:{KEY}@there")
    lines = script(tmp_path, track="wandb,tensorboard").splitlines()
    chosen = lines.index("export CNN_DEPTH_TRACK=wandb,tensorboard")
    # What the cluster's file sets comes before, so the option overrides it.
    assert lines.index("export CNN_DEPTH_TRACK=mlflow") < chosen
    assert not [line for line in lines if KEY in line or "WANDB" in line or "MLFLOW" in line]
    assert script(tmp_path).count("CNN_DEPTH_TRACK") == 1


# sbatch and squeue that take everything, and keep the environment that a job would have.
SBATCH = "#!/bin/sh\nenv >{where}/environment\necho 7\n"
EMPTY = "#!/bin/sh\n"


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", EMPTY), ("scontrol", EMPTY)):
        program = tmp_path / "bin" / name
        program.write_text(text.format(where=tmp_path))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "environment"


def test_submitted_jobs_inherit_trackers_and_keys_which_no_file_holds(
    study, tmp_path, call, told, monkeypatch, made_up
):
    monkeypatch.setattr(tracking, "_is_installed", lambda package: True)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = tmp_path / "runs"
    words = ["sweep", study, "--rows", "shallow", "--backend", "slurm", "--runs", folder]
    told(*words, "--track", "wandb,mlflow")
    inherited = made_up.read_text().splitlines()
    assert {f"WANDB_API_KEY={KEY}", "CNN_DEPTH_TRACK=wandb,mlflow"} <= {*inherited}
    made_up.unlink()
    (job,) = folder.glob("*/job.json")
    assert json.loads(job.read_text())["track"] == "wandb,mlflow"
    (text,) = [path.read_text() for path in folder.glob(".slurm/*.sh")]
    assert "export CNN_DEPTH_TRACK=wandb,mlflow" in text.splitlines()
    assert_nowhere(folder)

    # The rows are tried again with the same trackers, or with others.
    for words, track in (((), "wandb,mlflow"), (("--track", "none"), "none")):
        (job.parent / "failed.json").write_text('{"reason": "x"}')
        monkeypatch.setenv(tracking.VARIABLE, "tensorboard")
        told("retry", "--all", *words, "--runs", folder)
        assert json.loads(job.read_text())["track"] == track
        (text,) = [path.read_text() for path in folder.glob(".slurm/*.sh")]
        assert f"export CNN_DEPTH_TRACK={track}" in text.splitlines()
    assert_nowhere(folder)


def assert_nowhere(folder: Path):
    """The key is in no file below the folder, snapshots of the code among them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("code" in path.parts for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


FAKE = """
import os
Settings = dict
def login(**how):
    return True
def init(**how):
    raise ValueError(f"{how['id']}: {os.environ['WANDB_API_KEY']}")
"""


@pytest.mark.slurm
def test_jobs_of_slurm_have_the_trackers_and_keep_the_key_to_themselves(slurm, study, tmp_path):
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes" / "wandb.py").write_text(FAKE)
    folder = tmp_path / "runs"
    words = ["sweep", study, "--rows", "shallow", "--backend", "slurm", "--wait"]
    words += ["--track", "wandb", "--runs", str(folder)]
    process = slurm.cnn_depth(*words, WANDB_API_KEY=KEY, PYTHONPATH=str(tmp_path / "fakes"))
    assert process.returncode == 0, process.stderr
    (result,) = folder.glob("*/result.json")
    log = result.with_name("log.txt").read_text()
    assert f"wandb: ValueError: {result.parent.name}: ***" in log
    assert re.search(r"^wandb has nothing", log, re.MULTILINE)
    assert_nowhere(folder)
    assert KEY not in process.stdout + process.stderr


# ------------------------------------------------------------------------ `cnn-depth track`


@pytest.fixture
def sent(monkeypatch):
    """What is sent, run by run; those of `mlflow` fail."""
    calls = []

    def send(run, name):
        assert run.locked()
        calls.append((run.id, name))
        return "mlflow: OSError: no network" if name == "mlflow" else ""

    monkeypatch.setattr(following, "send", send)
    monkeypatch.setattr(tracking, "_is_installed", lambda package: True)
    return calls


@pytest.fixture
def made(tmp_path):
    for name in ("vgg-a", "vgg-b"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"config": {}, "study": "depth"}')
        (folder / "metrics.jsonl").touch()
    return tmp_path / "runs"


def test_runs_are_sent_to_the_trackers_that_are_named(made, sent, call):
    assert call("track", "depth/*", "--to", "wandb", "--runs", made) == (
        0,
        "vgg-a: wandb has all of it\nvgg-b: wandb has all of it\n",
        "",
    )
    status, out, _ = call("track", "vgg-a", "--to", "mlflow,wandb", "--runs", made)
    assert (status, out) == (1, "vgg-a: mlflow: OSError: no network\nvgg-a: wandb has all of it\n")
    assert sent == [("vgg-a", "wandb"), ("vgg-b", "wandb"), ("vgg-a", "mlflow"), ("vgg-a", "wandb")]


def test_runs_that_train_or_were_never_trained_are_told(made, sent, call):
    (made / "vgg-a" / "metrics.jsonl").unlink()
    with Run(made / "vgg-b").lock():
        status, out, _ = call("track", "depth/*", "--to", "wandb", "--runs", made)
    assert status == 1
    first, second = out.splitlines()
    assert first == "vgg-a: nothing is logged"
    assert re.fullmatch(r"vgg-b: .*/vgg-b is being written by process \d+ on .*", second)
    assert not sent


@pytest.mark.parametrize("words", [(), ("--to", "tensorboard")])
def test_runs_are_sent_to_no_tracker_that_reads_their_folders(made, call, words):
    status, _, err = call("track", "vgg-a", *words, "--runs", made)
    assert status == 2
    assert "expected wandb or mlflow, such as --to wandb" in err
