"""Run folders: identity, states and the lock."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from experiments import config as configs
from experiments.config import keys
from experiments.runs import names, results, runs, state


def of(arch):
    c = configs.base()
    c.model = configs.model(arch)
    return c


@pytest.fixture
def config():
    return of("cifar_resnet:8")


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("seed", 1, False),
        ("model.width", 0.5, False),
        ("optimizer.weight_decay", 1e-3, False),
        ("seeding.run", "vgg-A-0123456789", False),
        ("checkpoint.every_seconds", 5.0, True),
        ("train.steps_per_dispatch", 4, True),
        ("train.log_every_epochs", 2.0, True),
    ],
)
def test_identity_changes_with_what_can_change_the_result(config, key, value, same):
    changed = configs.override(config, {key: value}, "test")
    assert (runs.identity(changed, "data") == runs.identity(config, "data")) is same
    assert runs.identity(changed, "data") != runs.identity(changed, "other")


@pytest.mark.parametrize(
    ("arch", "options"),
    [("cifar_resnet:8", {}), ("nin:cifar10", {"model.inverted_dropout": True})],
)
def test_keys_that_were_added_later_leave_identities_as_they_were(arch, options, monkeypatch):
    config = configs.override(of(arch), options, "test")
    now = runs.identity(config, "data")
    older = type(config)(config.to_dict())
    for key in keys.ADDED:
        part, name = key.split(".")
        if name in older[part]:
            del older[part][name]
    assert runs.identity(older, "data") == now
    monkeypatch.setattr(keys, "ADDED", {})
    assert runs.identity(older, "data") == now != runs.identity(config, "data")


@pytest.mark.parametrize(
    ("arch", "option", "older", "other"),
    [
        ("nin:cifar10", "inverted_dropout", True, False),
        ("alexnet:two_gpu", "inverted_dropout", True, False),
        ("alexnet:cifar", "first_scale", 1.0, 0.01),
    ],
)
def test_a_run_from_before_there_was_an_option_is_what_it_was(arch, option, older, other):
    config, another = (
        configs.override(of(arch), {f"model.{option}": value}, "test") for value in (older, other)
    )
    saved = json.loads(json.dumps(config.to_dict()))
    del saved["model"][option]
    read = configs.from_json(saved)
    assert read.model[option] == older
    result = results.RunResult(Path(), {"config": saved}, {}, [], None)
    assert result.settings[f"model.{option}"] == older
    assert runs.identity(read, "data") == runs.identity(config, "data")
    assert runs.identity(another, "data") != runs.identity(config, "data")


def test_a_key_says_which_value_older_runs_had():
    counts = {
        arch: configs.network_keys(arch)["model.inverted_dropout"].counts
        for arch in ("nin:cifar10", "alexnet:caffenet")
    }
    assert counts == {"nin:cifar10": "yes", "alexnet:caffenet": "yes, where not the default"}


@pytest.mark.parametrize(
    ("arch", "beside", "key", "value"),
    [
        (
            "cifar_resnet:8",
            {"schedule.warmup": "linear", "schedule.warmup_steps": 5},
            "schedule.warmup_part",
            0.5,
        ),
        ("cifar_resnet:8", {}, "optimizer.rates", (("*/bias", 2.0),)),
        ("vgg:A", {}, "model.hidden", 512),
        ("nin:cifar10", {}, "model.head", "fc"),
        ("nin:cifar10", {"model.head": "fc"}, "model.head_dropout", 0.5),
        ("nin:cifar10", {"model.inverted_dropout": True}, "model.inverted_dropout", False),
        ("alexnet:caffenet", {}, "model.inverted_dropout", False),
    ],
)
def test_keys_that_were_added_later_count_at_other_values(arch, beside, key, value):
    config = configs.override(of(arch), beside, "test")
    changed = configs.override(config, {key: value}, "test")
    assert runs.identity(changed, "data") != runs.identity(config, "data")


def test_lines_of_the_log_are_part_of_a_run_that_ends_by_them(config):
    ending = configs.override(config, {"train.until_error": 25.0}, "test")
    changed = configs.override(ending, {"train.log_every_epochs": 2.0}, "test")
    assert runs.identity(changed, "data") != runs.identity(ending, "data")


def test_created_run_reads_back_and_is_shared(config, tmp_path):
    run = runs.create(config, "data", tmp_path, {"study": "s", "row": "first"})
    again = runs.create(config, "data", tmp_path, {"study": "t", "row": "second"})
    assert again == run
    assert run.read("run")["row"] == "first"
    assert configs.flatten(run.config()) == configs.flatten(config)


def test_states(config, tmp_path):
    run = runs.create(config, "data", tmp_path, {})
    assert state.of(run) == ("not run", "")
    runs.write_json(run.folder / "failed.json", {"reason": "NaN at step 3"})
    assert state.of(run) == ("failed", "NaN at step 3")
    result = {"steps": 1, "top1_error": 3.0, "train_loss": 0.1}
    runs.write_json(run.folder / "result.json", result)
    assert state.of(run) == ("finished", "")


def _hold(folder, ready):
    with runs.Run(folder).lock():
        ready.set()
        time.sleep(60)


def test_second_process_on_a_run_is_told_who_has_it(config, tmp_path):
    run = runs.create(config, "data", tmp_path, {})
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(run.folder, ready))
    process.start()
    assert ready.wait(60)
    assert state.of(run)[0] == "running"
    with pytest.raises(runs.RunLocked, match=f"process {process.pid}"), run.lock():
        pass
    os.kill(process.pid, signal.SIGKILL)  # the lock goes with its holder, however that ends
    process.join()
    with run.lock():
        pass


def test_lock_that_leads_out_of_the_folder_is_no_lock(config, tmp_path):
    run = runs.create(config, "data", tmp_path / "runs", {})
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run.folder / "lock").symlink_to(precious)
    with pytest.raises(runs.RunError, match="lock can't be written"), run.lock():
        pass
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vgg", "no run"),
        ("cifar_resnet-8", "fits 2 runs"),
        ("x" * 300, "no run"),
        (f"./{'x' * 300}", "no run"),
    ],
)
def test_find_says_what_does_not_fit(config, tmp_path, text, words):
    for seed in (0, 1):
        changed = configs.override(config, {"seed": seed}, "test")
        runs.create(changed, "data", tmp_path, {})
    with pytest.raises(runs.RunError, match=words):
        names.find_run(text, tmp_path)


def test_find_takes_a_unique_part_of_the_id(config, tmp_path):
    run = runs.create(config, "data", tmp_path, {})
    assert names.find_run(run.id[:-4], tmp_path) == run
    assert names.find_run(str(run.folder), tmp_path) == run


def test_find_takes_study_and_row_of_status(config, tmp_path):
    by_row = {}
    for name, seed, rate in (("D", 0, 0.1), ("D", 2, 0.1), ("D seeded", 0, 0.2)):
        changed = configs.override(config, {"seed": seed, "schedule.lr": rate}, "test")
        run = runs.create(changed, "data", tmp_path, {"study": "vgg_depth", "row": name})
        by_row[name, seed] = run
    assert names.find_run("vgg_depth/D", tmp_path) == by_row["D", 0]
    assert names.find_run("vgg_depth/D (seed 2)", tmp_path) == by_row["D", 2]
    assert names.find_run("vgg_depth/D seeded", tmp_path) == by_row["D seeded", 0]
    with pytest.raises(runs.RunError) as error:
        names.find_run(by_row["D", 0].id[:-11], tmp_path)
    assert "fits 3 runs" in str(error.value)
    assert f"{by_row['D seeded', 0].id} (vgg_depth/D seeded)" in str(error.value)
    assert names.find_run("D (seed 2)", tmp_path) == by_row["D", 2]
    assert set(names.find_runs(["vgg_depth/D (*", "D seeded"], tmp_path)) == {
        by_row["D", 2],
        by_row["D seeded", 0],
    }
    with pytest.raises(runs.RunError, match="fits 3 runs; expected one"):
        names.find_run("vgg_depth/*", tmp_path)
    with pytest.raises(runs.RunError, match=r"no run .* did you mean 'vgg_depth/D'"):
        names.find_run("vgg_depth/E", tmp_path)


@pytest.mark.parametrize(
    ("studies", "hint"),
    [
        ([], "none has a study"),
        ([""], "none has a study"),
        (["", "nin", "nin"], "there are: nin"),
        (["vgg_depth"], "did you mean 'vgg_depth'?"),
    ],
)
def test_unknown_study_names_those_there_are(tmp_path, studies, hint):
    labelled = [names.Labelled(tmp_path / str(k), name, "A") for k, name in enumerate(studies)]
    with pytest.raises(runs.RunError) as error:
        names.of_study("vgg_dept", labelled, tmp_path)
    assert str(error.value) == f"no run in '{tmp_path}' belongs to the study 'vgg_dept'; {hint}"


def test_two_runs_of_one_row_are_told_by_id(config, tmp_path):
    for rate in (0.1, 0.2):
        changed = configs.override(config, {"schedule.lr": rate}, "test")
        runs.create(changed, "data", tmp_path, {"study": "vgg_depth", "row": "D"})
    with pytest.raises(runs.RunError, match="fits 2 runs"):
        names.find_run("vgg_depth/D", tmp_path)


BROKEN = {
    "not JSON": (b"{", "can't be read"),
    "not UTF-8": (b'{"config": "\xff"}', "can't be read"),
    "a list": (b"[]", "it holds no JSON object"),
    "nothing": (b"", "can't be read"),
    "a cut result": (b"{}", "lacks 'steps'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_result_is_told_and_is_no_finished_run(kind, config, tmp_path):
    run = runs.create(config, "data", tmp_path, {})
    content, words = BROKEN[kind]
    (run.folder / "result.json").write_bytes(content)
    with pytest.raises(runs.RunError) as error:
        run.read("result")
    assert words in str(error.value)
    assert str(run.folder / "result.json") in str(error.value)
    assert state.of(run) == ("unreadable", str(error.value))


@pytest.mark.parametrize("kind", ["not JSON", "not UTF-8", "a list"])
def test_damaged_run_json_is_told(kind, config, tmp_path):
    run = runs.create(config, "data", tmp_path, {})
    (run.folder / "run.json").write_bytes(BROKEN[kind][0])
    for read in (run.config, lambda: run.imported, lambda: runs.check_data(run, "data")):
        with pytest.raises(runs.RunError, match=r"run\.json can't be read"):
            read()
    assert state.of(run)[0] == "unreadable"
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(runs.RunError, match=r"run\.json is not whole: it lacks 'config'"):
        run.config()


def test_lines_of_metrics_that_can_not_be_read_are_left_out(config, tmp_path):
    run = runs.create(config, "data", tmp_path, {})
    assert run.logged() == []
    run.metrics.write_bytes(b'{"step": 1}\n\xff\n[]\n{"loss": 1}\n{"step": 2}\n{"st')
    assert run.logged() == [{"step": 1}, {"step": 2}]


def test_file_in_place_of_the_runs_folder_is_told(tmp_path, monkeypatch):
    file = tmp_path / "runs"
    file.write_text("x")
    monkeypatch.setenv("CNN_DEPTH_RUNS", str(file))
    for folder in (None, file):
        with pytest.raises(runs.RunError, match="runs is a file; see --runs"):
            runs.root(folder)
    assert runs.root(tmp_path) == tmp_path
    assert runs.root(tmp_path / "new") == tmp_path / "new"


def test_file_that_can_not_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*anything):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(runs.RunError, match=r"a\.json can't be written: No space left on device"):
        runs.write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(runs.RunError, match="gone was deleted"):
        runs.write_json(tmp_path / "gone" / "a.json", {})
