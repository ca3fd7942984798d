"""The order in which jobs are run here, and what their failures stop, with made-up processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.runs.runs import RunError
from launch.executors import local


class MadeUpRun:
    def __init__(self, name, failed=None):
        self.id, self.folder, self.failed, self.trained = name, Path("nowhere"), failed, False

    def read(self, name):
        return self.failed if name == "failed" else None

    @property
    def diverged(self):
        return (self.failed or {}).get("kind") == "diverged"


def job(name, after=None, failed=None):
    return SimpleNamespace(
        run=MadeUpRun(name, failed), seeding=after, name=name, training_macs=1, done=False
    )


@pytest.fixture
def run(monkeypatch):
    """run(jobs, outcome): what `local.run` returns, and which jobs were launched.

    outcome(job): `done`, `trained` (and not tested) or `failed`.
    """

    def one(jobs, outcome):
        launched = []

        def launch(job, slot, events, processes):
            launched.append(job.name)
            how = outcome(job)
            job.run.trained, job.done = how != "failed", how == "done"
            if how == "trained":
                events.put((job.run.id, {"event": "untested", "reason": "no memory"}))
            events.put((job.run.id, None))
            process = SimpleNamespace(returncode=0 if how == "done" else 2, poll=lambda: 2)
            process.wait = lambda timeout: None
            return local._Worker(job, slot, [process])

        monkeypatch.setattr(local, "_launch", launch)
        failed = local.run(jobs, ["a slot"], lambda job, event: None)
        return failed, launched

    return one


def test_seeds_come_before_what_they_seed(run):
    a = job("a")
    b = job("b", a)
    assert run([b, a], lambda job: "done") == ({}, ["a", "b"])


def test_nothing_below_a_failed_seed_is_launched(run):
    a = job("a", failed={"kind": "diverged", "reason": "NaN at step 3"})
    b = job("b", a)
    c = job("c", b)
    failed, launched = run([a, b, c, job("d")], lambda job: "done")
    assert launched == ["d"]
    assert set(failed) == {"a", "b", "c"}
    assert failed["c"] == "its seeding run, b, failed"
    assert not any(local.can_run(one) for one in (a, b, c))


def test_seed_that_could_not_be_tested_still_seeds(run):
    a = job("a")
    b = job("b", a)
    failed, launched = run([a, b], lambda job: "trained" if job.name == "a" else "done")
    assert launched == ["a", "b"]
    assert failed == {"a": "no memory"}


def test_run_whose_folder_can_not_be_used_stops_no_other(monkeypatch):
    broken, whole = job("broken"), job("whole")
    said = "run.json can't be read"

    def launch(job, slot, events, processes):
        if job is broken:
            raise RunError(said)
        job.done = True
        events.put((job.run.id, None))
        process = SimpleNamespace(returncode=0, poll=lambda: 0, wait=lambda timeout: None)
        return local._Worker(job, slot, [process])

    heard = []
    monkeypatch.setattr(local, "_launch", launch)
    failed = local.run([broken, whole], ["a slot"], lambda j, e: heard.append((j.name, e)))
    assert failed == {"broken": said}
    assert ("broken", {"event": "failed", "reason": said}) in heard
    assert ("whole", {"event": "finished"}) in heard


def test_failure_that_a_full_disk_keeps_out_of_the_folder_is_told(monkeypatch):
    a = job("a")

    def launch(job, slot, events, processes):
        events.put((job.run.id, {"event": "failed", "reason": "No space left on device"}))
        events.put((job.run.id, None))
        process = SimpleNamespace(returncode=2, poll=lambda: 2, wait=lambda timeout: None)
        return local._Worker(job, slot, [process])

    monkeypatch.setattr(local, "_launch", launch)
    assert local.run([a], ["a slot"], lambda j, e: None) == {"a": "No space left on device"}
