"""Several runs in one job of a cluster: each as if alone. No Slurm is needed here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import config as configs
from experiments import data
from experiments.runs import checkpoints, runs, state
from experiments.runs.runs import Run, write_json
from launch import row_states
from launch.executors import pack, squeue
from launch.executors import slurm as backend
from launch.executors.cluster import Cluster, ClusterError, read
from launch.executors.squeue import Queued
from launch.verbs import cancel, retry

ROOT = Path(__file__).resolve().parents[2]
JOB = "7_1"

started = []  # the processes of the jobs that a test has started


@pytest.fixture(autouse=True)
def no_job_is_left():
    """A test that fails leaves no job behind that trains on beside the next ones."""
    yield
    for job in started:
        if job.poll() is None:
            job.terminate()  # it ends its runs
            job.wait(timeout=60)
    started.clear()


def tiny(seed, steps):
    config = configs.base()
    config.seed = seed
    config.model = configs.model("cifar_resnet:8", width=0.25)
    config.data.update(name="digits", image_size=8)
    config.train.update(batch_size=64, steps=steps, log_every_epochs=0.1)
    config.checkpoint.every_steps = 5
    return config


def create(folder, seed, steps=30):
    c = tiny(seed, steps)
    label = {"study": "t", "row": f"row {seed}", "seed_from": None}
    run = runs.create(c, data.open_data(c.data).fingerprint, folder, label)
    write_json(
        run.folder / "job.json",
        {"backend": "slurm", "job": JOB, "packed": 2, "cluster": {"retries": 2}},
    )
    return run


def start(folder, members, restarts=0):
    """The process of a job's task."""
    tasks = [[str(run.folder), "[]", ""] for run in members]
    file = folder / "tasks.json"
    file.write_text(json.dumps([["other", "[]", ""], tasks]))
    environment = {name: v for name, v in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    environment |= {"SLURM_RESTART_COUNT": str(restarts)}
    words = [sys.executable, "-P", "-m", "launch.executors.worker", "--jobs", str(file)]
    job = subprocess.Popen(words, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)})
    started.append(job)
    return job


def network(run):
    _, trees = checkpoints.load_network(run.checkpoints)
    return {f"{kind}.{n}": np.asarray(a) for kind in trees for n, a in trees[kind].items()}


def has_saved(run):
    """Whether the run has a whole checkpoint; which one it is changes, as older ones go."""
    return any(folder.name.isdigit() for folder in run.checkpoints.glob("*"))


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes(run):
    """The process that holds a run; 0, which is this group of processes, if there is none."""
    holder = state.holder(run.folder)
    return holder[0] if holder else 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two undisturbed runs, by seed."""
    folder = tmp_path_factory.mktemp("alone")
    members = [create(folder, seed) for seed in (0, 1)]
    assert start(folder, members).wait(timeout=300) == 0
    return {run.config().seed: network(run) for run in members}


def test_stopped_and_lost_runs_go_on_as_if_alone(alone, tmp_path):
    members = [create(tmp_path, seed) for seed in (0, 1)]
    job = start(tmp_path, members)
    until(lambda: all(map(has_saved, members)))
    if process := processes(members[0]):
        os.kill(process, signal.SIGKILL)  # it is started again in the same job
    time.sleep(0.5)
    job.send_signal(signal.SIGUSR2)
    assert job.wait(timeout=120) not in (2, 3)  # or it would not be started again
    assert start(tmp_path, members, restarts=1).wait(timeout=300) == 0
    for run in members:
        arrays = network(run)
        assert arrays.keys() == alone[run.config().seed].keys()
        for name, expected in alone[run.config().seed].items():
            np.testing.assert_array_equal(arrays[name], expected, err_msg=name)


def test_run_that_is_cancelled_or_fails_leaves_the_others_alone(alone, tmp_path):
    cancelled, failing, intact = (
        create(tmp_path, seed, steps) for seed, steps in ((0, 100_000), (2, 30), (1, 30))
    )
    about = json.loads((failing.folder / "run.json").read_text())
    about["config"]["schedule"]["lr"] = 1e4
    (failing.folder / "run.json").write_text(json.dumps(about))
    job = start(tmp_path, [cancelled, failing, intact])
    until(lambda: has_saved(cancelled))
    write_json(cancelled.folder / "cancelled.json", {"time": time.time(), "by": "me"})
    assert job.wait(timeout=300) == 3
    assert state.of(cancelled)[0] == "cancelled"
    assert state.of(failing)[0] == "failed"
    arrays = network(intact)
    for name, expected in alone[1].items():
        np.testing.assert_array_equal(arrays[name], expected, err_msg=name)


def test_run_of_another_job_is_left_to_it(tmp_path):
    own, moved = create(tmp_path, 0, steps=1), create(tmp_path, 1, steps=1)
    write_json(moved.folder / "job.json", {"backend": "slurm", "job": "8"})
    assert start(tmp_path, [own, moved]).wait(timeout=300) == 0
    assert own.trained
    assert not moved.checkpoints.exists()


def test_job_that_begins_before_it_is_written_down_does_its_runs(tmp_path):
    missing, before = create(tmp_path, 0, steps=1), create(tmp_path, 1, steps=1)
    (missing.folder / "job.json").unlink()
    write_json(before.folder / "job.json", {"backend": "slurm", "job": "6_4"})
    assert start(tmp_path, [missing, before]).wait(timeout=300) == 0
    assert missing.trained
    assert before.trained


def test_process_that_never_starts_is_given_up(tmp_path, monkeypatch):
    run = create(tmp_path, 0)
    monkeypatch.setattr(pack, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pack.sys, "executable", "/bin/false")
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    try:
        assert pack.run([[str(run.folder), "[]", ""]], JOB) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "ended 3 times, the last one with status 1" in run.read("failed")["reason"]


def test_gpus_are_shared_with_their_memory(monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(pack.MEMORY, raising=False)
    envs = pack.environments(5)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in envs] == ["0", "1", "0", "1", "0"]
    assert [env[pack.MEMORY] for env in envs] == ["0.300", "0.450", "0.300", "0.450", "0.300"]
    assert all(pack.MEMORY not in env for env in pack.environments(2))
    monkeypatch.delenv("SLURM_GPUS_ON_NODE")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 5, 7}, raising=False)
    assert [env["CNN_DEPTH_CORES"] for env in pack.environments(2)] == ["2,3", "5,7"]


# ------------------------------------------------------------------------------ submission


def items(folder, rows):
    to_submit = []
    for name, after in rows.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").write_text('{"config": {}}')
        to_submit.append(backend.Item(Run(folder / name), name, (), after))
    return to_submit


def test_rows_that_seed_none_share_jobs(tmp_path):
    rows = {"seed": None, **{f"row-{i}": None for i in range(7)}, "late": "seed"}
    plan = backend.sort_out(items(tmp_path, rows), {}, tmp_path, pack=3)
    groups = [[[item.name for item in group] for group in array.groups] for array in plan.arrays]
    first = [f"row-{i}" for i in range(7)]
    assert groups == [[["seed"], first[:3], first[3:6], first[6:]], [["late"]]]
    (array, text), _ = backend.scripts(items(tmp_path / "b", rows), Cluster(pack=3), tmp_path)[1]
    assert "#SBATCH --array=0-3%4" in text
    assert len(array.items) == 8


def test_a_thousand_rows_are_125_jobs(tmp_path):
    rows = items(tmp_path, {f"row-{i}": None for i in range(1000)})
    (array,) = backend.sort_out(rows, {}, tmp_path, pack=8).arrays
    assert len(array.groups) == 125


def test_state_of_a_run_whose_job_goes_on_with_others(tmp_path):
    run = create(tmp_path, 0)
    queue = {JOB: Queued(JOB, "RUNNING", "n1", "", "")}
    write_json(run.folder / "failed.json", {"reason": "NaN"})
    run_files = state.read_files(run.folder)
    assert state.decide(run_files, queue)[0] == "running"  # a failed run that is tried again
    progress = {"state": "ended", "job": JOB, "time": time.time(), "host": "n1"}
    write_json(run.folder / "progress.json", progress)
    assert state.decide(state.read_files(run.folder), queue) == ("failed", "NaN")
    assert backend.queued_as(run, queue) == ""  # it can be submitted again
    write_json(run.folder / "job.json", {"backend": "slurm", "job": JOB, "packed": 1})
    assert state.decide(state.read_files(run.folder), queue)[0] == "running"
    assert backend.queued_as(run, queue) == JOB


def test_run_is_tried_again_while_its_job_goes_on_with_others(tmp_path, monkeypatch):
    failed, running = create(tmp_path, 0), create(tmp_path, 1)
    write_json(failed.folder / "failed.json", {"reason": "a bad file"})
    progress = {"state": "ended", "job": JOB, "time": time.time(), "host": "n1"}
    write_json(failed.folder / "progress.json", progress)
    queue, cancelled, submitted = {JOB: Queued(JOB, "RUNNING", "n1", "", "")}, [], []

    def submit(array, after, cluster, folder):
        submitted.extend(item.run.id for item in array.items)
        write_json(array.items[0].run.folder / "job.json", {"backend": "slurm", "job": "8"})
        return dict.fromkeys(submitted, "8")

    monkeypatch.setattr(squeue, "recent_jobs", lambda users: queue)
    monkeypatch.setattr(squeue, "cancel", cancelled.append)
    monkeypatch.setattr(backend, "queue", lambda runs: queue)
    monkeypatch.setattr(backend, "_submit", submit)
    monkeypatch.setattr(backend.shutil, "which", lambda name: name)
    rows = row_states.read(tmp_path).rows
    assert {row.run: row.state for row in rows} == {failed.id: "failed", running.id: "running"}
    chosen = [row for row in rows if row.state == "failed"]
    jobs, _ = retry.again(chosen, tmp_path, {"sbatch": {}}, print)
    assert jobs == {failed.id: "8"}
    assert not cancelled  # the job goes on with the other run


def test_cancelled_run_of_a_job_that_waits_is_cancelled_at_once(tmp_path, monkeypatch):
    first, second = create(tmp_path, 0), create(tmp_path, 1)
    queue, ended = {JOB: Queued(JOB, "PENDING", "", "Priority", "")}, []

    def end(jobs):
        ended.extend(jobs)
        return {}

    monkeypatch.setattr(squeue, "recent_jobs", lambda users: queue)
    monkeypatch.setattr(squeue, "cancel", end)

    def cancel_one(run):
        rows = row_states.read(tmp_path).rows
        assert cancel.cancel([row for row in rows if row.run == run.id], rows) == {}
        return {row.run: row.state for row in row_states.read(tmp_path).rows}

    assert cancel_one(first) == {first.id: "cancelled", second.id: "queued"}
    assert not ended  # the job still is to do the other run
    assert backend.queued_as(first, queue) == ""  # it can be submitted again
    with first.lock():  # by hand, on this machine
        assert state.decide(state.read_files(first.folder), queue)[0] == "stopping"
    assert cancel_one(second) == {first.id: "cancelled", second.id: "cancelled"}
    assert ended == [JOB]  # nothing is left for it to do


@pytest.mark.parametrize("answers", [True, False])
def test_cancelling_a_job_that_slurm_refuses_fails_for_each_of_its_runs(
    answers, tmp_path, monkeypatch
):
    first, second = create(tmp_path, 0), create(tmp_path, 1)
    queue = {JOB: Queued(JOB, "PENDING", "", "Priority", "")}

    def refuse(jobs):
        if not answers:
            raise squeue.SlurmError("not yours")
        return dict.fromkeys(jobs, "not yours")

    monkeypatch.setattr(squeue, "recent_jobs", lambda users: queue)
    monkeypatch.setattr(squeue, "cancel", refuse)
    rows = row_states.read(tmp_path).rows
    assert cancel.cancel(rows, rows) == {first.id: "not yours", second.id: "not yours"}
    states = {row.run: row.state for row in row_states.read(tmp_path).rows}
    assert states == {first.id: "queued", second.id: "queued"}  # no mark is left


def test_packs_have_one_process_a_run():
    with pytest.raises(ClusterError, match="--pack 4 puts several runs into one process's place"):
        read(None, {"pack": 4, "nodes": 2})
    with pytest.raises(ClusterError, match="--pack 0: expected a whole number, at least 1"):
        read(None, {"pack": 0})
