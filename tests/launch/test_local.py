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


# What a process that could not do all of its work tells.
TOLD = {
    "trained": {"event": "untested", "reason": "no memory"},
    "full": {"event": "failed", "reason": "No space left on device"},
}


@pytest.fixture
def run(monkeypatch):
    """run(jobs, outcome): what `local.run` returns, which jobs were launched, and what it tells.

    outcome(job): `done`, `trained` (and not tested), `failed`, or `full`, which a full disk keeps
    out of the run's folder.
    """

    def run_jobs(jobs, outcome):
        launched, heard = [], []

        def launch(job, slot, events, processes):
            launched.append(job.name)
            how = outcome(job)
            job.run.trained, job.done = how in ("done", "trained"), how == "done"
            if how in TOLD:
                events.put((job.run.id, TOLD[how]))
            events.put((job.run.id, None))
            process = SimpleNamespace(poll=lambda: 0 if how == "done" else 2)
            process.wait = lambda timeout: None
            return local._Worker(job, slot, [process])

        monkeypatch.setattr(local, "_launch", launch)
        failed = local.run(jobs, ["a slot"], lambda job, event: heard.append((job.name, event)))
        return failed, launched, heard

    return run_jobs


def test_seeds_come_before_what_they_seed(run):
    a = job("a")
    b = job("b", a)
    assert run([b, a], lambda job: "done")[:2] == ({}, ["a", "b"])


def test_nothing_below_a_failed_seed_is_launched(run):
    a = job("a", failed={"kind": "diverged", "reason": "NaN at step 3"})
    b = job("b", a)
    c = job("c", b)
    failed, launched, _ = run([a, b, c, job("d")], lambda job: "done")
    assert launched == ["d"]
    assert set(failed) == {"a", "b", "c"}
    assert failed["c"] == "its seeding run, b, failed"
    assert not any(local.can_run(job) for job in (a, b, c))


def test_seed_that_could_not_be_tested_still_seeds(run):
    a = job("a")
    b = job("b", a)
    failed, launched, _ = run([a, b], lambda job: "trained" if job.name == "a" else "done")
    assert launched == ["a", "b"]
    assert failed == {"a": "no memory"}


def test_run_whose_folder_can_not_be_used_stops_no_other(run):
    reason = "run.json can't be read"

    def outcome(job):
        if job.name == "broken":
            raise RunError(reason)
        return "done"

    failed, _, heard = run([job("broken"), job("whole")], outcome)
    assert failed == {"broken": reason}
    assert ("broken", {"event": "failed", "reason": reason}) in heard
    assert ("whole", {"event": "finished"}) in heard


def test_runs_that_need_not_go_on_save_and_leave_and_have_not_failed(monkeypatch):
    """Of two that are active one is stopped; one that waits is not begun."""
    stopped, heard, events_of = [], [], {}

    def launch(job, slot, events, processes):
        events_of[job.run.id] = events
        process = SimpleNamespace(poll=lambda: local.STOPPED if job.name in stopped else None)

        def terminate():
            stopped.append(job.name)
            events.put((job.run.id, None))

        process.terminate, process.wait = terminate, lambda timeout: None
        return local._Worker(job, slot, [process])

    def needless():
        if "slow" in stopped and not jobs["fast"].done:  # the other one ends
            jobs["fast"].done = True
            events_of["fast"].put(("fast", None))
        names = ("slow", "waiting", "elsewhere") if len(events_of) == 2 else ()
        return dict.fromkeys(names, "too slow")

    jobs = {name: job(name) for name in ("slow", "fast", "waiting")}
    monkeypatch.setattr(local, "_launch", launch)
    monkeypatch.setattr(local, "CHECK_SECONDS", 0.0)
    failed = local.run(
        list(jobs.values()),
        ["a", "b"],
        lambda job, event: heard.append((job.name, event)),
        needless=needless,
    )
    assert failed == {}
    ended = {"event": "ended", "reason": "too slow"}
    assert [(name, event) for name, event in heard if event["event"] != "launched"] == [
        ("waiting", ended),
        ("slow", ended),
        ("fast", {"event": "finished"}),
    ]
    assert stopped == ["slow"]


def test_failure_that_a_full_disk_keeps_out_of_the_folder_is_told(run):
    assert run([job("a")], lambda job: "full")[0] == {"a": "No space left on device"}
