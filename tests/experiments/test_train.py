"""Training: exact resumption, device independence, BatchNorm groups, and honest ends."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch.kernels import onednn
from experiments import config, data
from experiments import network as experiments_network
from experiments.data import preprocessing
from experiments.inspection import statistics as layer_statistics
from experiments.inspection.looking import Looking
from experiments.runs import checkpoints, runs
from experiments.runs import state as run_state
from experiments.statistics import true_class_rank
from experiments.testing import classifier, evaluate, predictions, tester
from experiments.training import convolutions, metrics_log, train
from experiments.training import state as training_state
from experiments.training import step as training_step
from experiments.transfer.features import Extractor
from input_pipeline import crops

ROOT = runs.Path(__file__).resolve().parents[2]
TINY = {
    "model.arch": "cifar_resnet:8",
    "model.width": 0.25,
    "data.image_size": 8,
    "data.pad": 1,
    "train.batch_size": 32,
    "train.steps": 12,
    "train.validate_every_epochs": 0.1,
    "train.log_every_epochs": 0.1,
}

with_onednn = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not onednn.works(),
    reason="oneDNN's convolutions do not work with this jaxlib on this processor",
)


def tiny(**overrides):
    base = config.base()
    base.model = config.model("cifar_resnet:8")
    overrides = {k.replace("__", "."): v for k, v in overrides.items()}
    return config.override(base, {**TINY, **overrides}, "test")


def mesh(devices=1):
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=kind)


def create(c, folder):
    return runs.create(c, data.open_data(c.data).fingerprint, folder, {"study": "test", "row": "r"})


def finish(run, **heard):
    """Trains a run to its end, from wherever it is."""
    with run.lock():
        return train.train(run, mesh(), **heard)


def trained(c, folder):
    run = create(c, folder)
    finish(run)
    return run


def started(c, steps=1, whose="xla", devices=1):
    """A training that has made some steps, one by one."""
    training = training_state.start(c, data.prepare(c), mesh(devices), None, whose)
    for _ in range(steps):
        training.advance(1)
    training.finish_steps()
    return training


def network(run, which="last"):
    """Every array of a run's checkpoint, by name."""
    _, trees = checkpoints.load_network(run.checkpoints, which)
    return {f"{kind}.{n}": np.asarray(a) for kind in trees for n, a in trees[kind].items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run of TINY."""
    return trained(tiny(), tmp_path_factory.mktemp("runs"))


# ------------------------------------------------------------------------------ resumption


def test_interrupted_run_ends_bit_for_bit_like_an_undisturbed_one(finished, tmp_path):
    run = create(tiny(), tmp_path)
    for at in (1, 5, 6, 11):
        stop_at(run, at)
        assert checkpoints.step_of(run.checkpoints) == at
    finish(run)
    assert_same_bits(network(run), network(finished))
    assert lines(run) == lines(finished)


def test_training_ends_where_its_error_is_reached(finished, tmp_path):
    errors = {e["step"]: e["train_error"] for e in lines(finished) if "train_error" in e}
    limit = (errors[4] + errors[8]) / 2
    assert errors[8] < limit < errors[4]
    ended = trained(tiny(train__until_error=limit), tmp_path / "undisturbed")
    assert ended.read("result")["steps"] == 8
    assert lines(ended) == [line for line in lines(finished) if line["step"] <= 8]
    # One that is stopped before that, and in the test that ends it, is the same.
    run = create(tiny(train__until_error=limit), tmp_path)
    stop_at(run, 7)
    heard = []
    with run.lock(), pytest.raises(train.Interrupted, match="final test"):
        train.train(run, mesh(), on_event=heard.append, stop=lambda: "images" in heard[-1])
    finish(run)
    assert_same_bits(network(run), network(ended))
    assert lines(run) == lines(ended)
    assert run.read("result")["steps"] == 8


def kill_at(run, step, environment):
    """Trains a run in a process of its own until `step`, then kills that with SIGKILL."""
    command = [sys.executable, "-m", "launch.executors.worker", str(run.folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        for line in process.stdout:
            if json.loads(line)["step"] >= step:
                process.send_signal(signal.SIGKILL)
                break
    return process.returncode


def test_killed_run_ends_bit_for_bit_like_an_undisturbed_one(finished, tmp_path):
    # A checkpoint at every step, so that the kills fall among and into writes.
    run = create(tiny(checkpoint__every_steps=1), tmp_path)
    assert run.id == finished.id  # how often it writes is no part of what a run is
    environment = dict(os.environ)
    random = np.random.default_rng(int(time.time()))
    for step in sorted(random.choice(np.arange(1, 11), 3, replace=False)):
        assert kill_at(run, step, environment) == -signal.SIGKILL, f"killed at step {step}"
        assert run_state.of(run)[0] == "interrupted"
    process = subprocess.run(
        [sys.executable, "-m", "launch.executors.worker", str(run.folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, (run.folder / "log.txt").read_text()
    first = json.loads(process.stdout.splitlines()[0])
    assert first["event"] == "start"
    assert first["step"] > 0, "it started anew instead of going on"
    assert_same_bits(network(run), network(finished))


@with_onednn
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_run_with_onednn_goes_on_with_it_bit_for_bit(dtype, monkeypatch, tmp_path):
    if not onednn.works(dtype):
        pytest.skip(f"oneDNN does not multiply {dtype} on this processor")
    monkeypatch.setattr(convolutions, "_gains", lambda *_: True)
    config = tiny(train__steps=4, model__dtype=dtype)
    undisturbed = trained(config, tmp_path / "undisturbed")
    assert undisturbed.read("execution") == {"convolutions": "onednn"}
    run = create(config, tmp_path)
    stop_at(run, 2)
    monkeypatch.setattr(convolutions, "_gains", lambda *_: False)
    finish(run)
    assert_same_bits(network(run), network(undisturbed))


@pytest.mark.parametrize(("flags", "least"), [("fma avx512f", 1e12), ("fma avx2", 1e13)])
def test_onednn_gains_in_long_trainings_of_large_steps(flags, least, monkeypatch):
    monkeypatch.setattr(onednn, "_processor", lambda: [f"flags : {flags}"])
    c = tiny(train__batch_size=1024)
    prepared = data.prepare(c)
    macs = 3 * experiments_network.cost(c, prepared.classes, prepared.channels).macs
    c.train.steps = int(least / (macs * 1024))
    assert not convolutions._gains(c, prepared)
    c.train.steps += 1
    assert convolutions._gains(c, prepared)
    c.train.batch_size = int(convolutions.STEP_FROM_MACS / macs)
    c.train.steps *= 1024
    assert not convolutions._gains(c, prepared)
    c.train.batch_size += 1
    assert convolutions._gains(c, prepared)


def test_run_begun_with_onednn_where_that_does_not_work(monkeypatch, tmp_path):
    run = create(tiny(train__steps=1), tmp_path)
    runs.write_json(run.folder / "execution.json", {"convolutions": "onednn"})
    monkeypatch.setattr(onednn, "works", lambda dtype: False)
    with run.lock(), pytest.raises(runs.RunError, match=r"oneDNN.*CNN_DEPTH_CONVOLUTIONS=xla"):
        train.train(run, mesh())
    monkeypatch.setenv(onednn.VARIABLE, "xla")
    finish(run)
    assert run.read("execution") == {"convolutions": "xla"}


def test_finished_run_is_not_trained_again(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.name != "lock"}
    result = finish(finished, on_event=lambda e: pytest.fail(f"it trains: {e}"))
    assert result == finished.read("result")
    after = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.name != "lock"}
    assert before == after


def test_best_checkpoint_is_the_best_on_held_out_images(finished):
    logged = lines(finished)
    errors = {line["step"]: line["val_top1_error"] for line in logged if "val_top1_error" in line}
    assert len(errors) > 2
    step, _ = checkpoints.load_network(finished.checkpoints, "best")
    assert errors[step] == min(errors.values())
    last, _ = checkpoints.load_network(finished.checkpoints, "last")
    assert last == finished.read("result")["steps"] == 12


ERRORS = [60.0, 50.0, 50.0, np.nan, 40.0, 40.0, 45.0, 40.0, np.nan, 40.0, 50.0, 40.0]
FIRST_LOWEST = 5  # the step of the first 40


def scripted(log, training, tester):
    """The error that a validation is said to find."""
    return ERRORS[training.position - 1]


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """The best checkpoint of a run whose validations find ERRORS, saved nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.MetricsLog, "validation", scripted)
        run = trained(tiny(train__validate_every_epochs=1e-9), tmp_path_factory.mktemp("runs"))
    assert checkpoints.step_of(run.checkpoints, "best") == FIRST_LOWEST
    return network(run, "best")


@pytest.mark.parametrize(
    ("stops", "every"), [((8,), 0), ((6, 10), 0), ((4, 9), 0), ((), 1), ((11,), 3)]
)
def test_best_is_the_same_however_a_run_is_stopped_or_saved(
    stops, every, best, tmp_path, monkeypatch
):
    monkeypatch.setattr(train.MetricsLog, "validation", scripted)
    run = create(tiny(train__validate_every_epochs=1e-9, checkpoint__every_steps=every), tmp_path)
    for at in stops:
        stop_at(run, at)
    finish(run)
    assert checkpoints.step_of(run.checkpoints, "best") == FIRST_LOWEST
    assert_same_bits(network(run, "best"), best)


def stop_at(run, step):
    """Trains a run until it has made `step` steps; it is saved there."""
    steps = [0]
    with run.lock(), pytest.raises(train.Interrupted):
        train.train(
            run,
            mesh(),
            on_event=lambda event: steps.append(event.get("step", 0)),
            stop=lambda: steps[-1] >= step,
        )


def lines(run):
    """Of metrics.jsonl, without what depends on the clock."""
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("images_per_s", "seconds")} for line in logged
    ]


# ----------------------------------------------------------------------------------- damage


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def lose(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


def copy_in_part(folder):
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)


def flip(folder):
    """One bit of an array's bytes, which the format has no check for."""
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 1
    largest(folder).write_bytes(content)


@pytest.mark.parametrize("damage", [cut, lose, copy_in_part, flip])
def test_damaged_newest_checkpoint_falls_back_to_the_older_and_says_so(
    damage, finished, tmp_path, capfd
):
    run = create(tiny(checkpoint__every_steps=4), tmp_path)
    stop_at(run, 7)
    damage(run.checkpoints / "7")
    notes, started = [], []

    def on_event(event):
        if event["event"] == "note":
            notes.append(event["text"])
        if event["event"] == "start":
            started.append(event["step"])

    finish(run, on_event=on_event)
    assert started == [4]
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint 7 is damaged (")
    assert notes[0].endswith("; going on from step 4")
    assert "\n" not in notes[0]
    assert capfd.readouterr().err == ""
    assert_same_bits(network(run), network(finished))
    assert lines(run) == lines(finished)


def test_run_whose_checkpoints_are_all_damaged_is_told_so(tmp_path, capfd):
    run = create(tiny(checkpoint__every_steps=4), tmp_path)
    stop_at(run, 7)
    for step in ("4", "7"):
        cut(run.checkpoints / step)
    with run.lock(), pytest.raises(checkpoints.CheckpointError) as error:
        train.train(run, mesh())
    assert str(run.checkpoints) in str(error.value)
    assert "\n" not in str(error.value)
    assert "delete the run's folder to train it anew" in str(error.value)
    assert capfd.readouterr().err == ""
    for which in ("last", "best"):
        with pytest.raises(checkpoints.CheckpointError):
            checkpoints.load_network(run.checkpoints, which)


def test_one_more_checkpoint_is_kept_while_training_and_none_after(finished, tmp_path):
    run = create(tiny(checkpoint__every_steps=1, train__validate_every_epochs=5.0), tmp_path)
    stop_at(run, 7)

    def saved_steps(r):
        return sorted(int(p.name) for p in r.checkpoints.iterdir() if p.name.isdecimal())

    assert saved_steps(run) == [6, 7]
    best = checkpoints.step_of(finished.checkpoints, "best")
    assert saved_steps(finished) == sorted({best, 12})


def test_cut_metrics_are_told_when_the_run_goes_on(tmp_path):
    run = create(tiny(), tmp_path)
    stop_at(run, 9)
    os.truncate(run.metrics, run.metrics.stat().st_size // 3)
    notes = []
    finish(run, on_event=lambda e: notes.append(e.get("text")))
    (message,) = filter(None, notes)
    assert message.startswith(f"{run.metrics} lacks lines before step 9")


# ------------------------------------------------------------------------------- failing kindly


def full(*anything, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def goes_on(run, finished, step):
    """Trains a run from `step` to its end, which is that of an undisturbed one."""
    started = []
    finish(run, on_event=lambda e: e["event"] == "start" and started.append(e))
    assert [event["step"] for event in started] == [step]
    assert_same_bits(network(run), network(finished))
    assert lines(run) == lines(finished)


def test_full_disk_under_a_checkpoint_is_one_line_and_loses_nothing(finished, tmp_path):
    run = create(tiny(checkpoint__every_steps=4), tmp_path)
    from orbax.checkpoint import v1 as ocp

    save = ocp.training.Checkpointer.save_async

    def until_full(self, step, *rest, **more):
        if step > 4:
            self.wait()
            raise ValueError(
                'RESOURCE_EXHAUSTED: Failed writing: "8/d/3f": Failed to write: '
                "No space left on device [tensorstore_spec='{...}']\nmore"
            )
        return save(self, step, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.training.Checkpointer, "save_async", until_full)
        with run.lock(), pytest.raises(checkpoints.CheckpointError) as error:
            train.train(run, mesh())
    assert str(error.value) == (
        f"a checkpoint can't be written in {run.checkpoints}: No space left on device; step 4 is "
        "kept, and the run goes on from there"
    )
    assert run.read("failed") is None
    goes_on(run, finished, 4)


LITTLE_ROOM = """
import resource, sys
import test_train as t
run = t.create(t.tiny(checkpoint__every_steps=4), t.runs.Path(sys.argv[1]))
# A file of more than so many bytes fails as on a full disk: the first checkpoint's arrays do.
resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
try:
    with run.lock():
        t.train.train(run, t.mesh())
except t.checkpoints.CheckpointError as error:
    print(error)
"""


# What the threads say depends on who is first.
@pytest.mark.parametrize("attempt", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_checkpoint_whose_files_can_not_be_written_says_nothing_else(
    fresh_python, tmp_path, attempt
):
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "experiments")))
    off = {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": path}
    process = fresh_python("-c", LITTLE_ROOM, str(tmp_path), **off)
    assert "checkpoints: " in process.stdout, process.stderr
    assert "File too large" in process.stdout
    assert len(process.stdout.splitlines()) == 1
    assert (process.returncode, process.stderr) == (0, "")


class Full:
    """A file on a full disk."""

    write = staticmethod(full)

    def flush(self):
        pass

    def close(self):
        full()


def test_full_disk_under_the_log_is_one_line_and_loses_nothing(finished, tmp_path, monkeypatch):
    run = create(tiny(checkpoint__every_steps=2), tmp_path)
    begin = train.MetricsLog.__init__

    def with_little_room(self, *arguments):
        begin(self, *arguments)
        write, close = self.file.write, self.file.close
        self.file.close = lambda: full(close())
        self.file.write = lambda line: full() if json.loads(line)["step"] > 5 else write(line)

    with monkeypatch.context() as patch:
        patch.setattr(train.MetricsLog, "__init__", with_little_room)
        with run.lock(), pytest.raises(runs.RunError) as error:
            train.train(run, mesh())
    assert str(error.value) == f"{run.metrics} can't be written: No space left on device"
    saved = max(int(p.name) for p in run.checkpoints.iterdir() if p.name.isdecimal())
    assert saved >= 4
    goes_on(run, finished, saved)


def test_tensorboard_on_a_full_disk_does_not_hold_a_training_up(finished, tmp_path, monkeypatch):
    run = create(tiny(), tmp_path)
    monkeypatch.setattr(
        metrics_log._Events, "__init__", lambda self, path: setattr(self, "_file", Full())
    )
    goes_on(run, finished, 0)


@pytest.mark.parametrize("name", ["preprocessing.npz", "result.json"])
def test_other_files_on_a_full_disk_are_named(name, tmp_path, monkeypatch):
    run = create(tiny(train__steps=1), tmp_path)
    replace, savez = os.replace, np.savez
    monkeypatch.setattr(os, "replace", lambda a, b: full() if b.name == name else replace(a, b))
    monkeypatch.setattr(np, "savez", lambda p, **a: full() if p.name == name else savez(p, **a))
    with run.lock(), pytest.raises(runs.RunError, match="No space left on device") as error:
        train.train(run, mesh())
    assert str(run.folder) in str(error.value)
    assert not list(run.folder.glob("*.partial"))


DELETED = """
import os, shutil, sys
import test_train as t
run = t.create(t.tiny(), t.runs.Path(sys.argv[1]))
def on_event(event):
    if event.get("step") == 5:
        while run.folder.exists():  # a checkpoint may be written into it meanwhile
            shutil.rmtree(run.folder, ignore_errors=True)
try:
    with run.lock():
        t.train.train(run, t.mesh(), on_event=on_event)
except t.runs.RunError as error:
    print(str(error).replace(str(run.folder), "it"), run.metrics.exists(), flush=True)
os._exit(0)  # a thread of Orbax may wait five minutes for a folder that is gone
"""


def test_folder_that_is_deleted_under_a_training_ends_it_in_one_line(fresh_python, tmp_path):
    """In a process of its own: what Orbax leaves of a save that fails is told when it is collected,
    which may be in another test."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "experiments")))
    process = fresh_python("-c", DELETED, str(tmp_path), PYTHONPATH=path)
    assert process.stdout == "it was deleted while it was written False\n", process.stderr


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9000 bytes.\nmore"


def test_memory_that_is_too_small_for_a_step_names_what_makes_less_do(
    finished, tmp_path, monkeypatch
):
    run = create(tiny(checkpoint__every_steps=4), tmp_path)
    advance = training_state.Training.advance

    def small(self, steps):
        if self.position == 7:
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)
        advance(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(training_state.Training, "advance", small)
        with run.lock(), pytest.raises(runs.RunError) as error:
            train.train(run, mesh())
    for words in ("train.accumulate (1)", "train.remat=True", "model.dtype=bfloat16", "9000 bytes"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not run.diverged
    goes_on(run, finished, 4)


def test_memory_that_is_too_small_for_a_test_names_what_makes_less_do(tmp_path, monkeypatch):
    run = create(tiny(train__steps=1, test__batch_size=50), tmp_path)

    def small(self, view, mirror, layer, fuses):
        def forward(*arguments):
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)

        return forward

    monkeypatch.setattr(tester.Tester, "_program", small)
    with run.lock(), pytest.raises(runs.RunError) as error:
        train.train(run, mesh())
    assert "test 50 images at once" in str(error.value)
    assert "test.batch_size" in str(error.value)
    assert "train.accumulate" not in str(error.value)


def test_other_errors_of_a_device_are_no_want_of_memory(tmp_path, monkeypatch):
    run = create(tiny(), tmp_path)

    def lost(self, steps):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device was lost")

    monkeypatch.setattr(training_state.Training, "advance", lost)
    with run.lock(), pytest.raises(jax.errors.JaxRuntimeError, match="the device was lost"):
        train.train(run, mesh())


# ----------------------------------------------------------------------------------- final test


@pytest.mark.parametrize("part", ["on training images", "on test images"])
def test_final_test_shows_progress_and_goes_on_where_it_was_stopped(part, tmp_path):
    small = tiny(test__batch_size=64, train__steps=2)
    undisturbed, run = create(small, tmp_path / "whole"), create(small, tmp_path / "stopped")
    progress = {}
    finish(undisturbed, on_event=lambda e: note(progress, e))
    tests = {"on training images", "on test images"}
    assert progress.keys() == tests
    n = undisturbed.read("result")["n"]
    assert progress["on test images"][-1] == (n, n)
    assert len(progress["on test images"]) == -(-n // 64)

    before_stop = {}
    with run.lock(), pytest.raises(train.Interrupted, match="goes on from there"):
        train.train(
            run,
            mesh(),
            on_event=lambda e: note(before_stop, e),
            stop=lambda: part in before_stop and before_stop[part][-1][0] >= 128,
        )
    assert before_stop[part][-1][0] == 128
    assert run.read("result") is None
    after_stop = {}
    finish(run, on_event=lambda e: note(after_stop, e))
    assert after_stop[part] == [pair for pair in progress[part] if pair[0] > 128]
    clock = {"images_per_s", "seconds", "compile_seconds", "finished"}
    for name in undisturbed.read("result").keys() - clock:
        assert run.read("result")[name] == undisturbed.read("result")[name], name
    files = [r.folder / "predictions" / "test-center.npz" for r in (undisturbed, run)]
    first, second = map(predictions.load, files)
    for name, column in vars(first).items():
        np.testing.assert_array_equal(column, getattr(second, name))
    assert sorted(p.name for p in files[1].parent.iterdir()) == ["test-center.npz"]


def note(progress, event):
    if event["event"] == "testing":
        progress.setdefault(event["what"], []).append((event["images"], event["of"]))


# ------------------------------------------------------------------------- what a step computes


def first_steps(c, devices=1, steps=1):
    """Parameters and statistics after some steps on some devices."""
    training = started(c, steps, devices=devices)
    return {
        f"{kind}.{name}": np.asarray(array)
        for kind in ("params", "stats")
        for name, array in training.state[kind].items()
    }


DEVICES = """
import sys
sys.path.insert(0, "tests/experiments")
import numpy as np
import test_train
options = dict(eval(sys.argv[2]))
found = {n: test_train.first_steps(test_train.tiny(**options), n) for n in (1, 2, 4, 8)}
flat = {f"{n} {name}": a for n, arrays in found.items() for name, a in arrays.items()}
np.savez(sys.argv[1], **flat)
"""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {
            "model__arch": "cifar_resnet:20",  # of equal blocks
            "model__width": 0.125,
            "model__bn_group_size": 8,
            "train__accumulate": 2,
        },
        {
            "model__arch": "vgg:A",
            "data__image_size": 32,
            "model__width": 0.0625,
            "model__init": "he",
            "data__divide_by_std": True,  # large logits round to more
        },
        {
            "model__arch": "lenet5:modern",
            "data__image_size": 16,
            "data__distort": 0.5,
            "data__normalise": "lenet",
            "optimizer__kind": "sdlm",
            "optimizer__momentum": 0.0,
            "optimizer__weight_decay": 0.0,
            "optimizer__mu": 0.5,
            "schedule__lr": 0.001,
        },
    ],
    ids=["batch-norm", "groups and accumulation", "dropout", "rates of weights"],
)
def test_one_step_is_the_same_on_1_2_4_and_8_devices(options, tmp_path, fresh_python):
    out = tmp_path / "steps.npz"
    arguments = (str(out), repr(list(options.items())))
    # Four programs: what devices exchange is settled before code is optimised.
    flags = "--xla_backend_optimization_level=0"
    process = fresh_python("-c", DEVICES, *arguments, devices=8, XLA_FLAGS=flags)
    assert process.returncode == 0, process.stderr
    with np.load(out) as file:
        arrays = {key: file[key] for key in file.files}
    names = [key.removeprefix("1 ") for key in arrays if key.startswith("1 ")]
    for devices in (2, 4, 8):
        differ = {name: arrays[f"{devices} {name}"] - arrays[f"1 {name}"] for name in names}
        reference = np.concatenate([arrays[f"1 {name}"].ravel() for name in names])
        off = np.concatenate([differ[name].ravel() for name in names])
        assert np.linalg.norm(off) < 1e-6 * np.linalg.norm(reference), devices
        # Biases start at zero: what is in them after one step is a sum of rounded terms.
        for name in names:
            size = np.linalg.norm(arrays[f"1 {name}"])
            assert np.linalg.norm(differ[name]) <= 1e-5 * size, (devices, name)


@pytest.mark.parametrize(
    ("log", "curve", "save", "most", "expected"),
    [
        (391, 781, 0, 32, {30, 1}),  # the paper's CIFAR-10 training
        (40, 40, 0, 32, {20}),
        (10, 20, 0, 32, {10}),
        (391, 781, 100, 1, {1}),
        (40, 40, 7, 32, {7, 1}),
    ],
)
def test_few_programs_reach_all_that_is_due(log, curve, save, most, expected):
    total = 10 * log + 1
    intervals = {"log": log, "curve": curve, "save": save}
    most = train._even(most, intervals)
    ends, lengths = [0], []
    while ends[-1] < total:
        lengths.append(train._chunk(ends[-1], most, intervals, total))
        ends.append(ends[-1] + lengths[-1])
    assert ends[-1] == total
    assert set(lengths) - {1} == expected - {1}
    assert sum(n == 1 for n in lengths) <= 0.06 * total or expected == {1} or save
    for interval in filter(None, intervals.values()):
        assert set(range(interval, total, interval)) <= set(ends)


def test_the_time_left_is_told_from_the_recent_rate():
    state = training_state.Training(
        SimpleNamespace(train=SimpleNamespace(batch_size=32)),
        *[None] * 5,
        constants=None,
        total=10_000,
        convolutions="xla",
    )

    def steps(number: int, seconds: float) -> float:
        for _ in range(number):
            state.position, state.seconds = state.position + 1, state.seconds + seconds
            state.mark()
        return state.recent_images_per_second

    assert steps(1, 2.0) == pytest.approx(16)
    assert steps(100, 1.0) == pytest.approx(32)
    steps(1, 7_200.0)  # the process was suspended
    assert steps(130, 0.5) == pytest.approx(64)
    assert state.images_per_second == pytest.approx(32 * 232 / 7_367)
    host = {"seconds": 5_000.0, "compile_seconds": 1.0, "schedule": None, "window": {}}
    state.schedule = SimpleNamespace(restore=lambda saved: None)
    state.resume(100, {}, host)
    assert steps(1, 0.25) == pytest.approx(128)


def test_many_steps_a_dispatch_equal_single_steps():
    c = tiny()
    training = started(c, 0)
    training.advance(3)
    training.finish_steps()
    single = first_steps(c, steps=3)
    for name, array in training.state["params"].items():
        np.testing.assert_allclose(array, single[f"params.{name}"], rtol=1e-4, atol=1e-6)


def test_accumulated_gradient_is_that_of_the_whole_batch():
    # Without BatchNorm, whose groups would differ, and without dropout.
    options = {"model__arch": "vgg:A", "data__image_size": 32, "model__width": 0.0625}
    options |= {"model__dropout": 0.0, "model__init": "he", "data__divide_by_std": True}
    at_once = first_steps(tiny(**options))
    parts = first_steps(tiny(**options, train__accumulate=4))
    for name in at_once:
        np.testing.assert_allclose(parts[name], at_once[name], rtol=1e-4, atol=1e-6, err_msg=name)


def weighted_mean(arrays, decay):
    """Of arrays after steps 1, 2, ...: each step's share, times what later steps leave of it."""
    shares = [max(1 - decay, 9 / (10 + step)) for step in range(len(arrays))]
    weights = [share * np.prod([1 - s for s in shares[i + 1 :]]) for i, share in enumerate(shares)]
    start = np.prod([1 - s for s in shares])  # what is left of the initial values
    assert sum(weights) + start == pytest.approx(1)
    return sum(w * a for w, a in zip(weights, arrays, strict=True)), start


@pytest.mark.parametrize("decay", [0.4, 0.9999])
def test_average_is_a_weighted_mean_of_parameters_and_statistics(decay):
    c = tiny(train__ema=decay, train__steps=6, model__bn_group_size=16)
    training = started(c, 0)
    start, by_step = {n: np.asarray(a) for n, a in training.state["ema"].items()}, []
    for _ in range(6):
        training.advance(1)
        now = {**training.state["params"], **training.state["stats"]}
        by_step.append({n: np.asarray(a, np.float64) for n, a in now.items()})
    assert start.keys() == by_step[0].keys()
    tested = {n: a for tree in training.tested() for n, a in tree.items()}
    for name, array in tested.items():
        mean, start_share = weighted_mean([arrays[name] for arrays in by_step], decay)
        expected = mean + start_share * start[name]
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_average_with_a_long_decay_leaves_the_start_behind():
    # A plain average of decay 0.9999 would be 99.5% the initial values after 50 steps.
    steps = [np.full(1, 1.0)] * 50
    mean, start_share = weighted_mean(steps, 0.9999)
    assert start_share < 1e-9
    assert mean == pytest.approx(1)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """An undisturbed run of TINY with averages, whose stem is frozen."""
    c = tiny(train__ema=0.9, optimizer__freeze=("conv1/*",))
    return trained(c, tmp_path_factory.mktemp("averaged"))


def test_interrupted_average_ends_bit_for_bit_like_an_undisturbed_one(averaged, tmp_path):
    run = create(averaged.config(), tmp_path)
    for at in (2, 7):
        stop_at(run, at)
    finish(run)
    assert_same_bits(network(run), network(averaged))


def test_the_averaged_network_is_what_is_tested_exported_and_seeds(averaged, tmp_path):
    _, trees = checkpoints.load_network(averaged.checkpoints)
    params, stats = experiments_network.for_tests(trees)
    moved = [
        n
        for n in trees["ema"]
        if not np.array_equal(params.get(n, stats.get(n)), {**trees["params"], **trees["stats"]}[n])
    ]
    assert any(n.endswith("/mean") for n in moved)
    assert any(n.endswith("/kernel") for n in moved)
    net = classifier.load(averaged.folder).network
    used = cnn_arch.flat_state(nnx.state(net))
    assert_same_bits(used, {**params, **stats})
    test = data.open_data(averaged.config().data).dataset.test
    wrong = (classifier.load(averaged.folder)(test.images).argmax(axis=1) != test.labels).sum()
    assert abs(averaged.read("result")["top1_errors_count"] - wrong) <= 1
    seeded = tiny(seeding__run=averaged.id, train__steps=1)
    run = create(seeded, averaged.folder.parent)
    d = data.prepare(seeded, prep=preprocessing.inherited(run, seeded))
    values, _ = train._seeds(run, seeded, d)
    assert_same_bits(values, {**params, **stats})


# ------------------------------------------------------------------------------- freezing


FROZEN = ("conv1/*", "stage1/*", "stage2/*")


def test_frozen_layers_stay_with_their_running_statistics():
    c = tiny(optimizer__freeze=FROZEN, optimizer__weight_decay=0.1, train__ema=0.9)
    training = started(c, 0)
    before = jax.tree.map(np.asarray, {**training.state["params"], **training.state["stats"]})
    for _ in range(3):
        training.advance(1)
    training.finish_steps()
    after = {**training.state["params"], **training.state["stats"]}
    averages = {n: a for tree in training.tested() for n, a in tree.items()}
    still = {n for n in after if n.startswith(("conv1/", "stage1/", "stage2/"))}
    assert any(n.endswith("/var") for n in still)
    assert any(n.endswith("/var") for n in after.keys() - still)
    for name, array in after.items():
        assert np.array_equal(array, before[name]) == (name in still), name
        if name in still:
            np.testing.assert_array_equal(averages[name], before[name])
    momentum = jax.tree_util.tree_leaves_with_path(training.state["optimizer"])
    assert not any("stage1/" in str(path) for path, _ in momentum)


def test_frozen_norm_uses_its_statistics_in_training():
    """The head's first gradient, from features that NumPy normalises with the stored statistics."""
    c = tiny(optimizer__freeze=("conv1/*", "stage*"), optimizer__weight_decay=0.0, seed=3)
    c = config.override(c, {"schedule.kind": "constant", "schedule.lr": 0.5}, "t")
    d = data.prepare(c)
    params, stats = experiments_network.initial(c, d.classes, d.channels)
    random = np.random.default_rng(0)
    stats = {
        n: jax.numpy.asarray(random.uniform(0.5, 2, a.shape), a.dtype) for n, a in stats.items()
    }
    training = training_state.start(c, d, mesh(), {**params, **stats})
    start = {n: np.array(params[n]) for n in ("fc/kernel", "fc/bias")}  # a step takes them away
    batch = d.feed(c, mesh(), 0).next(range(1))
    x, y = d.train_views(d.constants, np.int32(3), {n: a[0] for n, a in batch.items()})
    net = experiments_network.skeleton(c, d.classes, d.channels, train=False).merge(params, stats)
    features = np.asarray(net.features(x)).mean(axis=(1, 2))
    logits = features @ start["fc/kernel"] + start["fc/bias"]
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    gradient = features.T @ (soft - np.eye(d.classes)[np.asarray(y)]) / len(x)
    training.advance(1)
    kernel = np.asarray(training.state["params"]["fc/kernel"])
    expected = start["fc/kernel"] - 0.5 * gradient
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train__remat": True, "train__accumulate": 2},
        {"train__scan": "always", "model__arch": "cifar_resnet:14"},
    ],
    ids=["plain", "remat and accumulation", "scan"],
)
@pytest.mark.parametrize(
    ("freeze", "least", "most"),
    [((), 2, 3.1), (("conv1/*", "stage1/*"), 1.2, 2), (("conv1/*", "stage*"), 0.6, 1.05)],
    ids=["nothing", "first stage", "all but the head"],
)
def test_nothing_is_computed_backward_before_the_first_trained_layer(options, freeze, least, most):
    c = tiny(optimizer__freeze=freeze, model__width=1.0, **options)
    training = started(c)
    flops = training.compiled[1].cost_analysis()["flops"]
    forward = (
        2
        * experiments_network.cost(c, training.data.classes, training.data.channels).macs
        * c.train.batch_size
    )
    assert least < flops / forward < most  # twice more for all gradients, less what is padding


@with_onednn
def test_frozen_layers_with_onednn_are_those_of_xla():
    params, calls = {}, {}
    for whose, freeze in (("xla", FROZEN), ("onednn", FROZEN), ("onednn", ())):
        c = tiny(optimizer__freeze=freeze)
        training = started(c, whose=whose)
        params[whose, freeze] = training.state["params"]
        calls[whose, freeze] = training.compiled[1].as_text().count("__onednn$convolution")
    assert 0 < calls["onednn", FROZEN] < calls["onednn", ()] / 1.5
    for name, array in params["xla", FROZEN].items():
        np.testing.assert_allclose(params["onednn", FROZEN][name], array, rtol=1e-4, atol=1e-5)


def test_batch_statistics_of_a_frozen_norm_are_not_taken_anew(averaged):
    c = averaged.config()
    d = data.prepare(c)
    params, stats = experiments_network.for_tests(checkpoints.load_network(averaged.checkpoints)[1])
    anew = evaluate.batch_statistics(c, d, mesh(), params, stats, 32)
    for name, array in anew.items():
        assert np.array_equal(array, stats[name]) == name.startswith("conv1/"), name
    c = config.override(c, {"optimizer.freeze": ("*/norm/*",)}, "test")
    with pytest.raises(config.ConfigError, match="no batch normalisation that was not frozen"):
        evaluate.batch_statistics(c, d, mesh(), params, stats, 32)


# ------------------------------------------------------------------------------- precision


def precisions(lowered):
    """Of every convolution and product in a lowered program, the precisions of its operands."""
    lines = [
        line
        for line in lowered.as_text().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    # Views are resampled, and class scores averaged, at the highest precision whatever is asked.
    return Counter(tuple(re.findall(r"<?(DEFAULT|HIGHEST|HIGH)>?\b", line)) for line in lines)


def lowered_step(c):
    training = started(c, 0)
    inputs = {
        "step": np.zeros(1, np.int32),
        "lr": np.zeros(1, np.float32),
        "batch": training.data.feed(c, mesh(), 0).next(range(1)),
    }
    arguments = (training.state, training.constants, np.int32(0), inputs)
    return training, training.dispatch.lower(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"model__arch": "cifar_resnet:8"},
        {"model__arch": "vgg:A", "data__image_size": 32, "train__remat": True},
        {"model__arch": "alexnet:two_gpu", "data__image_size": 67, "train__accumulate": 2},
    ],
    ids=["residual", "small maps and dense layers, rematerialised", "groups, accumulated"],
)
def test_every_product_of_a_step_and_of_its_tests_has_the_precision_asked_for(options):
    counts = {}
    for precision in ("default", "high", "highest"):
        c = tiny(**options, model__width=0.125, model__precision=precision)
        training, step = lowered_step(c)
        tester_ = train._tester(c, training.data, mesh(), training)
        params, stats = training.tested()
        counts[precision] = [precisions(step)]
        size = c.data.image_size
        for view in (training.data.centre, crops.WholeView(Q=size)):
            inputs = {"indices": np.zeros(4, np.int32)}
            program = tester_.program(view)
            counts[precision].append(
                precisions(program.lower(params, stats, training.constants, inputs))
            )
    for plain, high, highest in zip(*counts.values(), strict=True):
        own, always = plain["DEFAULT", "DEFAULT"], plain["HIGHEST", "HIGHEST"]
        assert own > always
        assert plain == {("DEFAULT", "DEFAULT"): own, ("HIGHEST", "HIGHEST"): always}
        assert high == {("HIGH", "HIGH"): own, ("HIGHEST", "HIGHEST"): always}
        assert highest == {("HIGHEST", "HIGHEST"): own + always}


def test_classifier_and_batch_statistics_have_the_precision_of_their_run(
    finished, tmp_path, monkeypatch
):
    run = create(tiny(model__precision="highest", train__steps=1), tmp_path)
    assert run.id != finished.id
    result = finish(run)
    assert result["precision"] == "highest"
    used = []
    monkeypatch.setattr(jax.lax, "conv_general_dilated", noting(jax.lax.conv_general_dilated, used))
    classifier.load(run.folder)(np.zeros((2, 8, 8, 1), np.uint8))
    _, trees = checkpoints.load_network(run.checkpoints)
    d = data.prepare(run.config())
    evaluate.batch_statistics(run.config(), d, mesh(), *experiments_network.for_tests(trees), 32)
    assert used
    assert set(used) == {"highest"}


def noting(function, used):
    """`function`, which notes at which precision JAX multiplies while it is traced."""

    def noted(*args, **options):
        used.append(jax.config.jax_default_matmul_precision)
        return function(*args, **options)

    return noted


def test_different_seeds_give_different_networks():
    first, second = (first_steps(tiny(seed=seed)) for seed in (0, 1))
    assert any(not np.allclose(first[n], second[n]) for n in first)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is of CPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_with_xla_on_a_cpu_is_said_to_be_no_faster(dtype, tmp_path):
    heard = []
    run = create(tiny(model__dtype=dtype, train__steps=1), tmp_path)
    finish(run, on_event=heard.append)
    notes = [event["text"] for event in heard if event["event"] == "note"]
    expected = "model.dtype=bfloat16 is no faster than float32 with XLA's convolutions on a CPU"
    assert notes == [expected] * (dtype == "bfloat16")


def test_bfloat16_trains():
    arrays = first_steps(tiny(model__dtype="bfloat16"))
    reference = first_steps(tiny())
    for name, array in arrays.items():
        assert array.dtype == np.float32
        scale = np.abs(reference[name]).max()
        assert np.abs(array - reference[name]).max() < 0.1 * scale + 0.02, name


def test_averages_of_bfloat16_losses_do_not_stop_growing():
    training = started(tiny(), steps=0)
    ones = jax.numpy.ones(1000, "bfloat16")  # in bfloat16 they add up to 256, one by one
    training.pending.append((0, {"loss": ones, "error": ones, "finite": ones > 0}))
    training.take_in()
    assert (training.window.loss, training.window.mean_error) == (1000, 1)


# ----------------------------------------------------------------------------------- the end


def test_test_errors_for_curves_are_logged_and_change_nothing(finished, tmp_path):
    with_curves = tiny(test__curve_epochs=0.1)
    run = trained(with_curves, tmp_path)
    assert run.id == finished.id
    assert_same_bits(network(run), network(finished))
    curve = {line["step"]: line["test_top1_error"] for line in lines(run) if "test_loss" in line}
    assert sorted(curve) == [4, 8, 12]  # 1,168 images in batches of 32, a tenth of an epoch each
    result = run.read("result")
    assert curve[12] == pytest.approx(result["top1_error"])
    assert not any("test_loss" in line for line in lines(finished))


def test_gradients_are_logged_by_layer_however_a_run_is_stopped(tmp_path):
    plain = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "train__steps": 4}
    c = tiny(**plain, train__log_gradients=True, train__log_every_epochs=2 / 36)
    run, stopped = trained(c, tmp_path / "a"), create(c, tmp_path / "b")
    for at in (1, 3):
        stop_at(stopped, at)
    finish(stopped)
    logged = [line for line in lines(run) if "train_loss" in line]
    assert [line["step"] for line in logged] == [2, 4]
    assert lines(stopped) == lines(run)
    before, squares = started(c, 0), {}
    for _ in range(2):
        weights = {n: np.asarray(a, np.float64) for n, a in before.state["params"].items()}
        lr = before.schedule.rate(before.position)
        before.advance(1)
        before.finish_steps()
        for name, array in before.state["params"].items():
            square = np.square((weights[name] - np.asarray(array)) / lr).mean()
            squares[name] = squares.get(name, 0) + square / 2
    layers = {name.removesuffix("/kernel") for name in squares if name.endswith("/kernel")}
    assert {k for k in logged[0] if k.startswith("gradient/")} == {f"gradient/{n}" for n in layers}
    for layer in layers:
        expected = np.sqrt(squares[f"{layer}/kernel"])
        assert logged[0][f"gradient/{layer}"] == pytest.approx(expected, rel=1e-2)
    gradients = layer_statistics.logged(Looking(Extractor(run, mesh(), "digits")))
    assert {gradient.layer for gradient in gradients} == layers
    for gradient in gradients:
        assert gradient.values.tolist() == [line[f"gradient/{gradient.layer}"] for line in logged]
        assert gradient.epochs.tolist() == [line["epoch"] for line in logged]
    assert [gradient.depth for gradient in gradients] == sorted(
        gradient.depth for gradient in gradients
    )


def test_result_counts_every_test_image_once(finished):
    result = finished.read("result")
    tested = predictions.load(finished.folder / "predictions" / "test-center.npz")
    test = data.open_data(finished.config().data).dataset.test
    assert result["n"] == len(test) == 500
    np.testing.assert_array_equal(tested.ids, np.arange(500))
    np.testing.assert_array_equal(tested.labels, test.labels)
    np.testing.assert_allclose(tested.posteriors.sum(axis=1), 1, rtol=1e-4)
    for k in (1, 5):
        assert result[f"top{k}_errors_count"] == tested.topk_wrong(k).sum()
    wrong = (tested.posteriors.argmax(axis=1) != test.labels).sum()
    assert abs(result["top1_errors_count"] - wrong) <= 1  # rounding may tie two classes


def test_loaded_run_classifies_as_it_was_tested(finished):
    model = classifier.load(finished.folder)
    test = data.open_data(finished.config().data).dataset.test
    saved = finished.folder / "predictions" / "test-center.npz"
    expected = predictions.load(saved).posteriors
    # An odd batch: the last part is of another size.
    np.testing.assert_allclose(model(test.images, batch=77), expected, rtol=1e-4, atol=3.3e-5)
    again = evaluate.Subject(finished, mesh()).tested().to_json()
    assert again["top1_errors_count"] == finished.read("result")["top1_errors_count"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(600, 700), (3, 3, 200, 256), (2**18 + 1,), (40, 3), ()])
@pytest.mark.parametrize("platform", ["cpu", "others"])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(shape, value, platform):
    on = {
        "cpu": training_step._all_finite,
        "others": lambda tree: training_step.each_finite(*jax.tree.leaves(tree)),
    }
    is_finite = jax.jit(on[platform])
    tree = {"a": jax.numpy.ones(shape), "b": [jax.numpy.zeros((5, 7))] * 40}
    assert is_finite(tree)
    for place in (0, tree["a"].size // 2, tree["a"].size - 1):
        broken = np.ones(shape, np.float32)
        broken.flat[place] = value
        assert not is_finite({**tree, "a": jax.numpy.asarray(broken)})


def test_diverged_run_names_step_and_last_good_checkpoint(tmp_path):
    c = tiny(schedule__lr=1e4, checkpoint__every_steps=1, schedule__kind="constant")
    run = create(c, tmp_path)
    with run.lock(), pytest.raises(train.Diverged, match=r"step \d+ .*last good checkpoint"):
        train.train(run, mesh())
    state, reason = run_state.of(run)
    assert state == "failed"
    assert "NaN or Inf at step" in reason
    if run.checkpoints.is_dir() and "checkpoint: none" not in reason:
        assert all(np.isfinite(array).all() for array in network(run).values())


def test_batch_that_does_not_divide_over_the_devices_is_an_error(fresh_python):
    code = (
        "import sys; sys.path.insert(0, 'tests/experiments'); import test_train as t;"
        "t.first_steps(t.tiny(train__batch_size=30), 8)"
    )
    process = fresh_python("-c", code, devices=8)
    assert process.returncode == 1
    message = "train.batch_size=30 in train.accumulate=1 parts can't be spread over 8 devices"
    assert f"ConfigError: {message}" in process.stderr


@pytest.fixture
def copy(finished, tmp_path):
    """The folder of a run that may be damaged."""
    return shutil.copytree(finished.folder, tmp_path / finished.id)


def test_checkpoint_of_another_network_is_an_error(copy):
    content = json.loads((copy / "run.json").read_text())
    content["config"]["model"]["width"] = 0.5
    (copy / "run.json").write_text(json.dumps(content))
    with pytest.raises(checkpoints.CheckpointError, match=r"does not fit.*\(3, 3, 1, 4\)"):
        classifier.load(copy)


def test_unreadable_checkpoint_is_an_error(copy):
    for path in copy.glob("checkpoints/*/state/**/*"):
        if path.is_file():
            path.write_bytes(b"not a checkpoint")
    with pytest.raises(checkpoints.CheckpointError, match="can't be read"):
        classifier.load(copy)


def test_error_percent_agrees_with_topk(finished):
    tested = predictions.load(finished.folder / "predictions" / "test-center.npz")
    labels, posteriors = tested.labels, np.maximum(tested.posteriors, 1e-30)
    wrong = (true_class_rank(posteriors, labels) > 1).mean() * 100
    assert tested.error == pytest.approx(wrong)
