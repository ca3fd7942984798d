"""What a run's process decides before it starts, and what it tells while it runs."""

import json
import shutil

import pytest

from experiments.runs import runs
from launch.devices import Slot
from launch.executors import local, worker


@pytest.fixture
def run(tmp_path):
    new_run = runs.Run(tmp_path / "net-1")
    new_run.checkpoints.mkdir(parents=True)
    write(new_run, "job", cluster={"retries": 2})
    return new_run


def write(run, name, **content):
    runs.write_json(run.folder / f"{name}.json", content)


def starts(run, index=0):
    """Statuses with which further starts of a job end at once; None if they go on."""
    return worker._given_up(run, index)


def test_job_that_gets_no_further_is_given_up_and_one_that_does_is_not(run):
    for step in (10, 20):
        (run.checkpoints / str(step)).mkdir()
        assert [starts(run) for _ in range(3)] == [None] * 3
    assert starts(run, index=1) is None  # the first process counts
    assert starts(run) == worker.FAILED
    failed = run.read("failed")
    assert failed["kind"] == "lost"
    assert "3 times in a row at step 20" in failed["reason"]
    assert not run.diverged  # so that it may be started again
    local.record_start(run)
    assert starts(run) is None


def test_trained_run_whose_test_is_lost_again_and_again_still_seeds_others(run):
    write(run, "result", top1_error=1.0, steps=1, train_loss=0.1)
    assert [starts(run) for _ in range(4)] == [None, None, None, worker.FINISHED]
    assert "in its tests" in run.read("untested")["reason"]
    assert run.read("failed") is None
    # A pass that kept something got further.
    (run.folder / "untested.json").unlink()
    (run.folder / "predictions").mkdir()
    (run.folder / "predictions" / "partial-0-test.npz").write_bytes(b"")
    assert starts(run) is None


@pytest.mark.parametrize(
    ("names", "again", "status"),
    [
        (["cancelled"], "", worker.CANCELLED),
        (["cancelled"], "1", worker.CANCELLED),
        (["failed"], "", None),  # of an earlier submission
        (["failed"], "1", worker.FAILED),  # Slurm killed the others, and took it for lost
        (["untested"], "1", None),  # not trained yet
        (["untested", "result"], "1", worker.FINISHED),
    ],
)
def test_mark_in_the_folder_ends_a_job_that_is_started_again(
    run, monkeypatch, names, again, status
):
    monkeypatch.setenv("SLURM_RESTART_COUNT", again)
    for name in names:
        write(run, name, reason="x", top1_error=1.0, steps=1, train_loss=0.1)
    assert [starts(run, index) for index in (0, 1)] == [status, status]


def test_progress_is_told_from_start_to_end(run, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    recorder = worker.Recorder(run, 2)
    first = run.read("progress")
    assert (first["state"], first["job"], first["host"], first["processes"]) == (
        "starting",
        "12_3",
        "n7",
        2,
    )
    recorder({"event": "start", "step": 4, "steps": 9})
    assert run.read("progress")["state"] == "training"
    values = {"step": 5, "steps": 9, "loss": 1.5, "error": 50.0, "images_per_s": 8.0, "left": 2.0}
    recorder({"event": "progress", **values})
    recorder({"event": "testing", "what": "dense", "images": 1, "of": 2})
    assert run.read("progress")["state"] == "testing"
    recorder.close()
    last = run.read("progress")
    assert last["state"] == "ended"
    assert {name: last[name] for name in ("step", "loss")} == {"step": 5, "loss": 1.5}
    json.dumps(last)


def test_processes_of_a_slot_have_cores_and_accelerators_of_their_own():
    on_cpu = local._environments(Slot(cores=(0, 1, 2, 3)), 2)
    assert [e["CNN_DEPTH_CORES"] for e in on_cpu] == ["0,1", "2,3"]
    assert [e["JAX_PROCESS_ID"] for e in on_cpu] == ["0", "1"]
    assert len({e["JAX_COORDINATOR_ADDRESS"] for e in on_cpu}) == 1
    on_gpu = local._environments(Slot(device=1), 2)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in on_gpu] == ["2", "3"]
    assert "JAX_PROCESS_ID" not in local._environments(Slot(device=1), 1)[0]


def test_recorder_outlives_a_full_disk_and_ends_a_training_whose_folder_is_gone(run, monkeypatch):
    recorder = worker.Recorder(run, 1)
    monkeypatch.setattr(worker, "TOLD_SECONDS", 0.0)

    def full(*anything):
        raise runs.RunError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", full)
        recorder({"event": "testing", "what": "dense", "images": 1, "of": 2})
    shutil.rmtree(run.folder)
    with pytest.raises(runs.RunError, match="net-1 was deleted while it was trained"):
        recorder({"event": "testing", "what": "dense", "images": 2, "of": 2})
    recorder.close()


def test_failure_is_told_where_the_folder_can_not_hold_it(run, monkeypatch):
    from experiments.training import train

    def failing(*anything, **more):
        raise runs.RunError("the disk is full")

    heard = []
    monkeypatch.setattr(train, "train", failing)
    monkeypatch.setattr(runs, "write_json", failing)
    assert worker._train(run, heard.append, lambda: False, False) == worker.FAILED
    assert heard == [{"event": "failed", "reason": "the disk is full"}]
