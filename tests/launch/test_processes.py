"""Several processes as one data-parallel job: what one process does with the same global batch."""

import os
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import config, data
from experiments.runs import checkpoints, runs
from experiments.testing import predictions
from launch import devices
from launch.executors import local, worker
from tests import made_up


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of JPEGs of two classes that differ by colour: 24 to train on, 10 to test on."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photographs")
    for part, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (*rng.integers(30, 60, 2), 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg", quality=95)
    return root


def settings(photographs=None, **overrides):
    base = config.base()
    base.model = config.model("cifar_resnet:8")
    chosen = {"data.holdout": 0.2, "train.batch_size": 8, "train.validate_every_epochs": 0.5}
    if photographs is None:
        chosen |= {"data.name": "digits", "data.image_size": 8}
    else:
        chosen |= {"data.name": "folder", "data.path": str(photographs), "data.image_size": 16}
        chosen |= {"data.S": (20, 28), "data.mirror": True, "data.divide_by_std": True}
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return config.override(base, {**chosen, **overrides}, "test")


def create(c, where):
    return runs.create(c, data.open_data(c.data).fingerprint, where, {"study": "t", "row": "r"})


def start(run, count, tests="[]"):
    """The processes of a job."""
    command = [*devices.PYTHON, "-m", "launch.executors.worker", str(run.folder), tests]
    return [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        for environment in local._environments(devices.Slot(), count)
    ]


def end(processes):
    return [process.wait(timeout=240) for process in processes]


def network(run):
    step, trees = checkpoints.load_network(run.checkpoints)
    return step, {f"{kind}.{n}": np.asarray(a) for kind in trees for n, a in trees[kind].items()}


def until(condition, processes):
    while not condition():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.parametrize("source", [pytest.param("on the device", marks=pytest.mark.slow), "JPEGs"])
def test_one_step_of_two_processes_equals_one_of_one(source, photographs, tmp_path):
    c = settings(photographs if source == "JPEGs" else None, train__steps=1)
    alone, together = create(c, tmp_path / "1"), create(c, tmp_path / "2")
    tests = '[{"protocol": "center", "scales": null, "flip": false}]'
    first, second = start(alone, 1, tests), start(together, 2, tests)
    assert end(first) + end(second) == [0, 0, 0]
    (_, of_one), (_, of_two) = network(alone), network(together)
    for name, array in of_one.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(of_two[name], array, rtol=0, atol=1e-6 * scale, err_msg=name)
    # Each process tested its share; what is kept is the whole, in order.
    tested = [
        predictions.load(r.folder / "predictions" / "test-center.npz") for r in (alone, together)
    ]
    np.testing.assert_array_equal(tested[0].ids, tested[1].ids)
    np.testing.assert_array_equal(tested[0].labels, tested[1].labels)
    np.testing.assert_allclose(tested[0].posteriors, tested[1].posteriors, rtol=0, atol=1e-4)
    assert (together.read("progress") or {})["processes"] == 2
    assert not list(together.folder.glob("*.partial"))


@pytest.mark.slow
def test_localiser_of_two_processes_is_that_of_one(tmp_path):
    boxes = {"data__name": "placed_digits", "data__image_size": 32, "data__boxes": "own"}
    c = settings(**boxes, train__boxes="per_class", train__steps=2)
    alone, together = create(c, tmp_path / "1"), create(c, tmp_path / "2")
    assert end(start(alone, 1)) + end(start(together, 2)) == [0, 0, 0]
    tested = [
        predictions.load(r.folder / "predictions" / "test-center.npz") for r in (alone, together)
    ]
    np.testing.assert_array_equal(tested[0].ids, tested[1].ids)
    np.testing.assert_allclose(tested[0].boxes, tested[1].boxes, rtol=0, atol=1e-3)
    errors = [
        [line["val_top1_error"] for line in r.logged() if "val_top1_error" in line]
        for r in (alone, together)
    ]
    assert errors[0] == errors[1] != []


@pytest.mark.slow
def test_signal_to_any_process_stops_all_at_one_step_and_they_go_on_exactly(tmp_path):
    c = settings(train__steps=60, train__validate_every_epochs=0.1)
    undisturbed, stopped = create(c, tmp_path / "1"), create(c, tmp_path / "2")
    assert end(start(undisturbed, 2)) == [0, 0]
    for signalled in (1, 0):
        processes = start(stopped, 2)
        before = stopped.read("progress") or {}
        until(
            lambda before=before: (
                (stopped.read("progress") or {}).get("state") == "training"
                and (stopped.read("progress") or {}).get("pid") != before.get("pid")
            ),
            processes,
        )
        processes[signalled].send_signal(signal.SIGUSR2)
        assert end(processes) == [worker.STOPPED] * 2
        assert 0 < network(stopped)[0] < 60
    # All fall back from a checkpoint that was damaged since.
    arrays = (stopped.checkpoints / str(newest(stopped)) / "state").rglob("*")
    largest = max((p for p in arrays if p.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert end(start(stopped, 2)) == [0, 0]
    assert (
        f"checkpoint {largest.relative_to(stopped.checkpoints).parts[0]} is damaged"
        in (stopped.folder / "log.txt").read_text()
    )
    (_, first), (_, second) = network(undisturbed), network(stopped)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.slow
def test_kills_in_the_middle_of_a_checkpoints_write_leave_whole_ones(tmp_path):
    c = settings(train__steps=100, checkpoint__every_steps=4, train__validate_every_epochs=9)
    undisturbed, killed = create(c, tmp_path / "1"), create(c, tmp_path / "2")
    assert end(start(undisturbed, 2)) == [0, 0]
    caught = 0
    for delay in (0.0, 0.003, 0.01, 0.03):  # before, at and after the rename
        before = newest(killed)
        processes = start(killed, 2)
        until(lambda before=before: newest(killed) > before, processes)
        until(lambda: unfinished(killed), processes)
        time.sleep(delay)
        for process in processes:
            process.kill()
        end(processes)
        caught += bool(unfinished(killed))
        step, _ = network(killed)
        assert step == newest(killed) > before
    assert caught, "no kill hit the middle of a write"
    assert end(start(killed, 2)) == [0, 0]
    assert not unfinished(killed)
    (_, first), (_, second) = network(undisturbed), network(killed)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def newest(run):
    return max((int(p.name) for p in run.checkpoints.glob("*") if p.name.isdecimal()), default=0)


def unfinished(run):
    """Checkpoints that are being written, or were."""
    return [p for p in run.checkpoints.glob("*") if not p.name.isdecimal()]


def test_loss_of_a_process_ends_its_job_here(tmp_path, monkeypatch):
    c = settings(train__steps=100_000)
    run = create(c, tmp_path)
    job = JobOfOneRun(run, c)

    def kill(job, event):
        if event["event"] == "progress" and event["step"] == 3:
            progress = run.read("progress")
            assert progress is not None
            children = subprocess.run(
                ["pgrep", "-f", f"launch.executors.worker {run.folder}"],
                capture_output=True,
                text=True,
            ).stdout.split()
            peer = next(int(pid) for pid in children if int(pid) != progress["pid"])
            os.kill(peer, signal.SIGKILL)

    failed = local.run([job], devices.cpu_slots(1), kill, processes=2)
    assert "its process ended" in failed[run.id]


class JobOfOneRun:
    """What `local.run` needs to know of a job."""

    tests, seeding, name, modules, training_macs, done = (), None, "r", "", 1, False

    def __init__(self, run, c):
        self.run, self.config = run, c

    def create(self):
        pass


def test_one_process_needs_no_others(monkeypatch):
    """An interactive shell of a cluster has some of Slurm's variables."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert devices.process_index() == (0, 1)
    devices.join()
    assert jax.process_count() == 1
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(devices.DeviceError, match="only JAX_PROCESS_ID is set"):
        devices.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(devices.DeviceError, match="only JAX_NUM_PROCESSES and JAX_PROCESS_ID are"):
        devices.join()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    for ask in (devices.process_index, devices.join):
        with pytest.raises(devices.DeviceError, match="JAX_NUM_PROCESSES=two: expected a whole"):
            ask()


def test_tasks_of_a_node_share_its_gpus(monkeypatch):
    for name, value in (("GPUS_ON_NODE", "8"), ("STEP_TASKS_PER_NODE", "2(x3)"), ("LOCALID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert devices._of_slurm_task() == [4, 5, 6, 7]
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x2),4,2(x3)")
    monkeypatch.setenv("SLURM_NODEID", "2")
    assert devices._of_slurm_task() == [2, 3]
    monkeypatch.setenv("SLURM_NODEID", "5")
    assert devices._of_slurm_task() == [4, 5, 6, 7]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    assert devices._of_slurm_task() == [4, 5, 6, 7]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")  # bound to the task
    assert devices._of_slurm_task() == [0, 1]
    monkeypatch.delenv("SLURM_GPUS_ON_NODE")
    assert devices._of_slurm_task() == [1]


@pytest.mark.slow
def test_images_of_several_classes_are_trained_and_tested_by_two_processes_as_by_one(tmp_path):
    made_up.voc(tmp_path / "VOC2007")
    of_several = {"data__name": "voc", "train__loss": "binary", "train__steps": 2}
    c = settings(tmp_path / "VOC2007", **of_several)
    alone, together = create(c, tmp_path / "1"), create(c, tmp_path / "2")
    assert end(start(alone, 1)) + end(start(together, 2)) == [0, 0, 0]
    tested = [
        predictions.load(r.folder / "predictions" / "test-center.npz") for r in (alone, together)
    ]
    np.testing.assert_array_equal(tested[0].ids, tested[1].ids)
    np.testing.assert_array_equal(tested[0].targets, tested[1].targets)
    np.testing.assert_allclose(tested[0].posteriors, tested[1].posteriors, rtol=0, atol=1e-4)
    losses = [
        [line["val_loss"] for line in r.logged() if "val_mean_average_precision" in line]
        for r in (alone, together)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0]
