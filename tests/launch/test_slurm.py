"""Runs as jobs of a real Slurm: how a job ends, the order of the rows, what is submitted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.runs import checkpoints
from experiments.runs.runs import Run, write_json
from experiments.testing import predictions
from launch.executors import slurm as backend
from launch.executors.cluster import Cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]

STARTED = 'rm -f "$CNN_DEPTH_UNSTARTED"; '  # as the worker does


@pytest.fixture
def submit_shell(slurm, tmp_path):
    """submit_shell(program, rows=1, ...): the id of a job, or an array of jobs, with our script and
    bash in place of our program. more: options of sbatch."""

    def submit(program, rows=1, cluster=Cluster(), started=STARTED, more=()):  # noqa: B008
        items = [backend.Item(Run(tmp_path / f"run-{i}"), f"row {i}") for i in range(rows)]
        _, [(_, text)] = backend.scripts(items, cluster, tmp_path)
        inner = tmp_path / f"program-{len(list(tmp_path.glob('program-*')))}.sh"
        inner.write_text(started + program)
        text, count = re.subn(r"(?m)(--wait=300).*$", rf"\1 bash {inner}", text)
        assert count == 1
        script = tmp_path / "script.sh"
        script.write_text(text)
        (tmp_path / ".slurm").mkdir(exist_ok=True)
        return slurm.run("sbatch", "--parsable", *more, str(script)).strip()

    yield submit
    for job in slurm.run("squeue", "-h", "-o", "%A").split():
        if str(tmp_path) in slurm.detail(job).get("Command", ""):
            slurm.run("scancel", job)


def test_job_ends_with_its_program_and_is_started_again_when_that_was_stopped(slurm, submit_shell):
    ends = ["exit 0", "exit 2", "exit 3", "exit 75", "kill -9 $$", "kill -TERM $$; sleep 9"]
    again = '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0; '
    cases = " ".join(f"{i}) {end};;" for i, end in enumerate(ends))
    job = submit_shell(f"{again} case $SLURM_ARRAY_TASK_ID in {cases} esac", len(ends))
    slurm.until_over(job)
    details = {name: slurm.detail(f"{job}_{i}") for i, name in enumerate(ends)}
    outcomes = {name: (d["JobState"], d["ExitCode"], d["Restarts"]) for name, d in details.items()}
    stopped = ("COMPLETED", "0:0", "1")  # started again, it was done
    assert outcomes == {
        "exit 0": ("COMPLETED", "0:0", "0"),
        "exit 2": ("FAILED", "2:0", "0"),
        "exit 3": ("FAILED", "3:0", "0"),
        "exit 75": stopped,
        "kill -9 $$": stopped,
        "kill -TERM $$; sleep 9": stopped,
    }


SAVES = "trap 'exit 75' TERM USR2; touch {}; while true; do sleep 0.1; done"


def test_cancelled_job_is_not_started_again_and_a_signalled_one_is(slurm, submit_shell, tmp_path):
    cancelled = submit_shell(SAVES.format(tmp_path / "up"))
    signalled = submit_shell(
        '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0; ' + SAVES.format(tmp_path / "up-2")
    )
    slurm.until(lambda: len(list(tmp_path.glob("up*"))) == 2, "both started")
    slurm.run("scancel", cancelled)
    slurm.run("scancel", "--signal=USR2", signalled)
    slurm.until_over(cancelled, signalled)
    ended = slurm.detail(cancelled)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    ended = slurm.detail(signalled)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")


@pytest.mark.slow
def test_preempted_job_that_leaves_in_time_is_started_again(slurm, submit_shell, tmp_path):
    node = ("-w", "n4", "--exclusive")
    again = '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0; '
    job = submit_shell(again + SAVES.format(tmp_path / "up"), more=node)
    slurm.until(lambda: (tmp_path / "up").exists(), "the start")
    urgent = slurm.run(
        "sbatch", "--parsable", "-p", "urgent", *node, "-o", "/dev/null", "--wrap", "true"
    ).strip()
    assert slurm.until_over(urgent, job) == {urgent: "COMPLETED", job: "COMPLETED"}
    assert slurm.detail(job)["Restarts"] == "1"


@pytest.mark.slow
def test_job_waits_for_its_seed_through_restarts_and_ends_with_a_failed_one(
    slurm, submit_shell, tmp_path
):
    order = tmp_path / "order"
    seed = submit_shell(
        f'[ "${{SLURM_RESTART_COUNT:-0}}" = 1 ] || exit 75; sleep 1; echo seed >>{order}'
    )
    child = submit_shell(f"echo child >>{order}", more=(f"--dependency=afterok:{seed}",))
    failed = submit_shell("sleep 2; exit 2")
    blocked = submit_shell(f"echo blocked >>{order}", more=(f"--dependency=afterok:{failed}",))
    states = slurm.until_over(seed, child, failed, blocked)
    assert states == {
        seed: "COMPLETED",
        child: "COMPLETED",
        failed: "FAILED",
        blocked: "CANCELLED",
    }
    assert order.read_text().split() == ["seed", "child"]


@pytest.mark.slow
def test_program_that_never_starts_is_not_tried_for_ever(slurm, submit_shell, tmp_path):
    job = submit_shell("exit 1", cluster=Cluster(retries=1), started="")
    assert slurm.until_over(job) == {job: "FAILED"}
    assert slurm.detail(job)["Restarts"] == "1"
    (log,) = Path(tmp_path / ".slurm").glob("*.err")
    assert "the program did not start" in log.read_text()


# --------------------------------------------------------------------------- submission

# Items as a sweep makes them, without its planning.
SUBMIT = """
import json, sys
from pathlib import Path
from experiments.runs.runs import Run
from launch.executors import slurm
from launch.executors.cluster import Cluster

folder, rows = Path(sys.argv[1]), json.loads(sys.argv[2])  # name -> name of its seed
items = []
for name, after in rows.items():
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "run.json").write_text('{"config": {}}')
    items.append(slurm.Item(Run(folder / name), name, (), after))
sbatch = {"hold": True, **json.loads(sys.argv[3])}
try:
    print(json.dumps(slurm.submit(items, Cluster(sbatch=sbatch), folder, sys.stderr.write)))
except slurm.SlurmError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def submit(slurm, tmp_path):
    """submit({row: its seed}, **sbatch): the job ids by row, held by Slurm, or the error."""
    jobs = []

    def submitted(rows, path=None, **sbatch):
        words = [sys.executable, "-c", SUBMIT, str(tmp_path), json.dumps(rows), json.dumps(sbatch)]
        more = {} if path is None else {"PATH": f"{path}:{os.environ['PATH']}"}
        answer = json.loads(slurm.run(*words, PYTHONPATH=str(ROOT), timeout=300, **more))
        jobs.extend(job for row in rows for job in [read(tmp_path / row).get("job")] if job)
        return answer

    yield submitted
    ids = {job.partition("_")[0] for job in jobs}
    if ids:
        slurm.run("scancel", *ids)


def read(folder, name="job"):
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_thousands_of_rows_are_few_arrays_and_are_submitted_once(slurm, submit, tmp_path):
    rows = {"seed": None, **{f"row-{i}": None for i in range(1200)}}
    rows |= {f"seeded-{i}": "seed" for i in range(1001)}
    ids = submit(rows)
    assert ids.keys() == rows.keys()
    assert len(set(ids.values())) == len(rows)
    arrays = Counter(job.partition("_")[0] for job in ids.values())
    assert sorted(arrays.values()) == [200, 1001, 1001]  # MaxArraySize is 1001
    assert {read(tmp_path / row)["job"] for row in rows} == set(ids.values())
    detail = slurm.detail(ids["seeded-0"].partition("_")[0])
    assert detail["Dependency"].startswith(f"afterok:{ids['seed']}")
    assert submit(rows) == {}  # Slurm has them all


def test_refusal_is_told_in_slurms_words_and_what_was_taken_before_is_recorded(
    slurm, submit, tmp_path
):
    error = submit({"a": None}, reservation="none")
    assert re.fullmatch(r"sbatch refused a: .*[Rr]eservation.*", error)
    assert "\n" not in error
    assert not read(tmp_path / "a")

    sbatch = shutil.which("sbatch")
    (tmp_path / "bin").mkdir()
    once = tmp_path / "bin" / "sbatch"
    once.write_text(
        f'#!/bin/bash\nmkdir {tmp_path}/once 2>/dev/null && exec {sbatch} "$@"\n'
        'echo "sbatch: error: no more jobs" >&2; exit 1\n'
    )
    once.chmod(0o755)
    error = submit({"a": None, "b": "a"}, path=once.parent)
    assert error == "sbatch refused b: no more jobs (1 of 2 runs are submitted)"
    first = read(tmp_path / "a")["job"]
    assert not read(tmp_path / "b")
    ids = submit({"a": None, "b": "a"})  # goes on from there
    assert list(ids) == ["b"]
    assert slurm.detail(ids["b"])["Dependency"].startswith(f"afterok:{first}")


def test_submission_takes_away_what_an_earlier_job_left(submit, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("failed", "untested", "cancelled", "attempts", "seeding"):
        write_json(tmp_path / "a" / f"{name}.json", {"reason": "an earlier one"})
    assert list(submit({"a": None})) == ["a"]
    files = {p.name for p in (tmp_path / "a").glob("*.json")}
    assert files == {"run.json", "job.json", "seeding.json"}


# ------------------------------------------------------------------------------- sweeps

MEASURED = ("row", "state", "top1_error", "top5_error", "train_loss", "test_loss", "n", "steps")


def table(process):
    assert process.returncode in (0, 1), process.stderr
    return [{key: row[key] for key in MEASURED} for row in json.loads(process.stdout)["rows"]]


def arrays_of(run):
    """All numbers of a run's network, and its posteriors of the test images."""
    _, trees = checkpoints.load_network(run.checkpoints)
    tested = predictions.load(run.folder / "predictions" / "test-center.npz")
    flat = {f"{tree}/{k}": v for tree, part in trees.items() for k, v in part.items()}
    return {**flat, "posteriors": tested.posteriors}


def test_sweep_through_slurm_is_the_sweep_here(slurm, study, tmp_path):
    words = ("sweep", study, "--json", "--runs")
    slurm_folder, local_folder = tmp_path / "there", tmp_path / "here"
    on_slurm = slurm.cnn_depth(*words, str(slurm_folder), "--backend", "slurm", "--wait")
    assert on_slurm.returncode == 0, on_slurm.stderr
    locally = slurm.cnn_depth(*words, str(local_folder), "--parallel", "1")
    assert table(on_slurm) == table(locally)

    runs = {p.parent.name: Run(p.parent) for p in slurm_folder.glob("*/result.json")}
    assert len(runs) == 3
    for name, run in runs.items():
        arrays, expected = arrays_of(run), arrays_of(Run(local_folder / name))
        assert arrays.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value, err_msg=f"{name}: {key}")

    jobs = {run.read("run")["row"]: run.read("job")["job"] for run in runs.values()}
    shallow, deep, seeded = (slurm.detail(jobs[r]) for r in ("shallow", "deep", "deep seeded"))
    assert shallow["ArrayJobId"] == deep["ArrayJobId"]  # side by side
    assert shallow["EndTime"] <= seeded["StartTime"]
    again = slurm.cnn_depth(*words, str(slurm_folder), "--backend", "slurm")
    assert table(again) == table(locally)  # nothing is left to submit: the table


def test_packed_sweep_is_the_sweep_here(slurm, study, tmp_path):
    words = ("sweep", study, "--rows", "shallow", "deep", "--json", "--runs")
    slurm_folder, local_folder = tmp_path / "there", tmp_path / "here"
    more = ("--backend", "slurm", "--pack", "2", "--wait")
    on_slurm = slurm.cnn_depth(*words, str(slurm_folder), *more)
    assert on_slurm.returncode == 0, on_slurm.stderr
    locally = slurm.cnn_depth(*words, str(local_folder), "--parallel", "2")
    assert table(on_slurm) == table(locally)
    runs = {p.parent.name: Run(p.parent) for p in slurm_folder.glob("*/result.json")}
    assert len({run.read("job")["job"] for run in runs.values()}) == 1
    for name, run in runs.items():
        arrays, expected = arrays_of(run), arrays_of(Run(local_folder / name))
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value, err_msg=f"{name}: {key}")


@pytest.mark.slow
def test_row_that_fails_on_slurm_blocks_only_those_it_seeds(slurm, study, tmp_path):
    words = ("sweep", f"{study}:lr=1e4", "--json", "--runs", str(tmp_path), "--backend", "slurm")
    process = slurm.cnn_depth(*words, "--wait")
    assert process.returncode == 1, process.stderr
    states = {row["row"]: row for row in json.loads(process.stdout)["rows"]}
    assert "NaN or Inf at step" in states["shallow"]["reason"]
    assert states["deep"]["state"] == "finished"
    assert "shallow" in states["deep seeded"]["reason"]
    jobs = {p.parent.name: Run(p.parent).read("job")["job"] for p in tmp_path.glob("*/job.json")}
    assert slurm.detail(jobs[next(n for n in jobs if "resnet-8" in n)])["ExitCode"] == "2:0"
    again = slurm.cnn_depth(*words)
    assert again.returncode == 1
    assert {
        p.parent.name: Run(p.parent).read("job")["job"] for p in tmp_path.glob("*/job.json")
    } == jobs


@pytest.mark.slow
def test_row_is_trained_by_one_job_after_that_of_its_seed(slurm, study, tmp_path):
    words = ("train", study, "--runs", str(tmp_path), "--backend", "slurm", "--json", "--row")
    refused = slurm.cnn_depth(*words, "deep seeded")
    assert refused.returncode == 2
    assert "deep seeded starts from the run" in refused.stderr
    first = slurm.cnn_depth(*words, "shallow")
    assert first.returncode == 0, first.stderr
    (job,) = json.loads(first.stdout)["submitted"].values()
    last = slurm.cnn_depth(*words, "deep seeded", "--wait")
    assert last.returncode == 0, last.stderr
    run = Run(Path(json.loads(last.stdout)["run"]))
    assert run.read("job")["after"] == run.read("run")["seed_from"]["run"]
    assert slurm.states(job) == {job: "COMPLETED"}


@pytest.mark.slow
def test_interrupt_of_the_command_that_waits_leaves_the_runs_to_slurm(slurm, study, tmp_path):
    words = ["sweep", study, "--runs", str(tmp_path), "--backend", "slurm", "--wait"]
    words += ["--sbatch", "hold"]
    with subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        env=slurm.environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("3 runs submitted"), line + process.stdout.read()
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
    jobs = {read(path.parent)["job"] for path in tmp_path.glob("*/job.json")}
    states = {job: slurm.detail(job)["JobState"] for job in jobs}
    slurm.run("scancel", *jobs)
    assert process.returncode == 130
    assert "still in Slurm: 3 runs" in output
    assert list(states.values()) == ["PENDING"] * 3


def test_jobs_start_the_python_of_the_cluster_file(slurm, study, tmp_path):
    """A stand-in for a container's: its words come first, and the code is the submitted one."""
    stand_in, runs, called = tmp_path / "container", tmp_path / "runs", tmp_path / "called"
    stand_in.write_text(f'#!/bin/sh\necho "$1" >> {called}; shift\nexec {sys.executable} "$@"\n')
    stand_in.chmod(0o755)
    (tmp_path / "cluster.toml").write_text(f'python = ["{stand_in}", "net.sif"]\n')
    words = ["train", study, "--row", "shallow", "--set", "train.steps=2", "--runs", str(runs)]
    words += ["--backend", "slurm", "--cluster", str(tmp_path / "cluster.toml"), "--wait", "--json"]
    process = slurm.cnn_depth(*words)
    assert process.returncode == 0, process.stderr
    assert called.read_text() == "net.sif\n"
    run = Run(Path(json.loads(process.stdout)["run"]))
    assert run.read("job")["cluster"]["python"] == [str(stand_in), "net.sif"]
    (start,) = run.read("starts")["starts"]
    assert start["versions"]["snapshot"]
