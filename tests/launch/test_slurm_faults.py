"""Jobs of two nodes on a real Slurm, and everything that can end them before they are done."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments import statistics
from experiments.runs import checkpoints
from experiments.runs.runs import Run

pytestmark = pytest.mark.slurm
TWO_NODES = ("--backend", "slurm", "--nodes", "2")
LENGTH = 1200  # steps: enough for all that happens to a run on the way


def words(folder, **settings):
    """Of `cnn-depth train`: a small net on digits."""
    settings = {
        "model.arch": "cifar_resnet:8",
        "train.batch_size": 16,
        "train.steps": LENGTH,
        "checkpoint.every_steps": 20,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ("train", "residual_depth", *sets, "--runs", str(folder))


def submitted(slurm, folder, *more, **settings):
    """The run and the job of a submission."""
    process = slurm.cnn_depth(*words(folder, **settings), *TWO_NODES, *more, "--json")
    assert process.returncode == 0, process.stderr
    ((name, job),) = json.loads(process.stdout)["submitted"].items()
    return Run(Path(folder) / name), job


def latest(run):
    """The step of the latest whole checkpoint."""
    return max((int(p.name) for p in run.checkpoints.glob("*") if p.name.isdecimal()), default=0)


def network(run):
    step, trees = checkpoints.load_network(run.checkpoints)
    return step, {f"{kind}.{n}": np.asarray(a) for kind in trees for n, a in trees[kind].items()}


def told(run):
    log = run.folder / "log.txt"
    return f"{run.read('failed')} {log.read_text()[-2000:] if log.is_file() else ''}"


def tasks(run):
    """Process numbers of the tasks of a run's job: they hold its logs open."""
    pids = []
    for place in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            target = os.readlink(place)
        except OSError:
            continue
        if Path(target).parent == run.folder and Path(target).name.startswith("log"):
            pids.append(int(place.parts[2]))
    return pids


def test_two_nodes_are_one_process_with_the_same_batch(slurm, tmp_path, fresh_python):
    run, job = submitted(slurm, tmp_path / "two", train__steps=1)
    process = fresh_python("-m", "launch", *words(tmp_path / "one", train__steps=1))
    assert process.returncode == 0, process.stderr
    assert slurm.until_over(job)[job] == "COMPLETED", told(run)
    result = run.read("result")
    assert result is not None
    assert result["devices"].startswith("2 x ")
    (_, of_two), (_, of_one) = network(run), network(Run(tmp_path / "one" / run.id))
    for name, array in of_one.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(of_two[name], array, rtol=0, atol=1e-6 * scale, err_msg=name)


@pytest.mark.slow
def test_two_nodes_reach_the_error_of_one_process(slurm, tmp_path, fresh_python):
    run, job = submitted(slurm, tmp_path / "two", train__steps=300)
    process = fresh_python("-m", "launch", *words(tmp_path / "one", train__steps=300))
    assert process.returncode == 0, process.stderr
    assert slurm.until_over(job, seconds=300)[job] == "COMPLETED", told(run)
    of_two, of_one = run.read("result"), Run(tmp_path / "one" / run.id).read("result")
    assert of_two is not None
    assert of_one is not None
    errors = [statistics.error_rate(r["top1_errors_count"], r["n"]) for r in (of_two, of_one)]
    assert errors[0].low <= errors[1].high
    assert errors[1].low <= errors[0].high


@pytest.mark.slow  # minutes
def test_run_that_is_ended_in_every_way_ends_as_an_undisturbed_one(slurm, tmp_path):
    undisturbed, first = submitted(slurm, tmp_path / "undisturbed")
    assert slurm.until_over(first, seconds=600)[first] == "COMPLETED", told(undisturbed)
    run, job = submitted(slurm, tmp_path / "disturbed")

    def restarts():
        return int(slurm.detail(job)["Restarts"])

    def trained_on():
        """Waits until it is training again, and has saved something new."""
        slurm.until(lambda: slurm.states(job)[job] == "RUNNING" and tasks(run), "its start")
        before = latest(run)
        slurm.until(lambda: latest(run) > before, f"a checkpoint after {before}", 180)
        assert latest(run) < LENGTH, "the run is too short for this machine"

    def signalled():
        slurm.run("scancel", "--signal=USR2", job)

    def terminated():
        slurm.run("scancel", "--signal=TERM", job)

    def requeued():
        slurm.run("scontrol", "requeue", job)

    def killed():
        os.kill(tasks(run)[-1], signal.SIGKILL)

    def down():
        node = slurm.run("squeue", "-h", "-j", job, "-o", "%B").strip()
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        slurm.until(lambda: restarts() > before, "the restart after the loss of a node")
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")

    def out_of_time():
        slurm.run("scontrol", "update", f"jobid={job}", "timelimit=1")

    for harm in (signalled, terminated, requeued, killed, down, out_of_time):
        trained_on()
        before = restarts()
        harm()
        slurm.until(lambda before=before: restarts() > before, harm.__name__, 150)
        if harm is out_of_time:
            slurm.until(lambda: slurm.states(job)[job] == "PENDING", "the requeue")
            slurm.run("scontrol", "update", f"jobid={job}", "timelimit=60")

    # The daemon of a node is killed and comes back: its job goes on.
    trained_on()
    node = slurm.run("squeue", "-h", "-j", job, "-o", "%B").strip()
    os.kill(int((slurm.conf.parent / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
    trained_on()
    slurm.start_node(node)

    assert slurm.until_over(job, seconds=600)[job] == "COMPLETED", told(run)
    (step, expected), (last_step, arrays) = network(undisturbed), network(run)
    assert step == last_step == LENGTH
    for name in expected:
        np.testing.assert_array_equal(expected[name], arrays[name], err_msg=name)
    assert not (run.folder / "attempts.json").exists()


@pytest.mark.slow
def test_run_that_is_lost_again_and_again_is_given_up(slurm, tmp_path):
    run, job = submitted(slurm, tmp_path, "--cluster", str(no_retries(tmp_path)))
    slurm.until(lambda: (run.read("progress") or {}).get("state") == "training", "the training")
    for pid in tasks(run):
        os.kill(pid, signal.SIGKILL)
    assert slurm.until_over(job)[job] == "FAILED"
    failed = run.read("failed")
    assert failed is not None
    assert failed["kind"] == "lost"
    assert "in a row" in failed["reason"]
    status = slurm.cnn_depth("status", "--runs", str(tmp_path), "--json")
    assert "in a row" in status.stdout
    # Asked for, it is tried again.
    process = slurm.cnn_depth("retry", run.id, "--runs", str(tmp_path))
    assert process.returncode == 0, process.stderr
    slurm.until(lambda: tasks(run), "a start", 120)
    assert run.read("failed") is None
    process = slurm.cnn_depth("cancel", run.id, "--runs", str(tmp_path))
    assert process.returncode == 0, process.stderr
    new = (run.read("job") or {})["job"]
    assert slurm.until_over(new)[new] == "CANCELLED"


def no_retries(folder):
    file = folder / "cluster.toml"
    file.write_text("retries = 0\n")
    return file


@pytest.mark.slow
def test_run_that_fails_for_its_own_reason_is_not_started_again(slurm, tmp_path):
    run, job = submitted(slurm, tmp_path, schedule__lr=1e4)
    assert slurm.until_over(job)[job] == "FAILED", told(run)
    assert slurm.detail(job)["ExitCode"].startswith("2:")
    failed = run.read("failed")
    assert failed is not None
    assert failed["kind"] == "diverged"
    process = slurm.cnn_depth(*words(tmp_path, schedule__lr=1e4), *TWO_NODES)
    assert process.returncode == 1
    assert "NaN or Inf" in process.stdout
