"""A paper's table from the command line: what is run, what is shared, what is shown."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score

from experiments import papers
from experiments.runs import runs
from experiments.testing import predictions
from launch import cli
from launch.planning import table_plan
from launch.verbs import table as verb
from tests.made_up import noise

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--size", "32", "--set", "train.steps=2", "--set", "model.width=0.03125")
N = 20  # test images


@pytest.fixture
def table(call):
    """table(words): exit status, document and errors of `cnn-depth table`."""

    def table(*words):
        status, out, err = call("table", *words, "--json")
        return status, json.loads(out), err

    return table


@pytest.fixture
def plan(table, tmp_path):
    """plan(words): the document of a plan."""
    return lambda *words: table(*words, "--plan", "--rate", "1T", "--runs", tmp_path)[1]


def cells(document, column="top1"):
    """Row -> measured figure."""
    return {row["row"]: row["cells"][column]["measured"] for row in document["rows"]}


# -------------------------------------------------------------------------------- running


@pytest.fixture(scope="module", autouse=True)
def little_compilation():
    """The workers' programs run for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What makes rows run within seconds: few images, narrow nets, two steps."""
    file = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(file, **noise(80, N, (8, 8), 7))
    return (*TINY, "--set", "data.name=npz", "--set", f"data.path={file}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """Runs of a row of VGG's table 3, B at S=256, which A seeds; tiny."""
    place = tmp_path_factory.mktemp("runs")
    words = ("--rows", "B, S=256", *tiny, "--runs", str(place), "--json")
    assert cli.main(["table", "vgg-3", *words]) == 0
    return place


def test_rows_bring_the_runs_that_seed_them(folder, tiny, table):
    status, (document,), err = table("vgg-3", "--rows", "B, S=256", *tiny, "--runs", str(folder))
    assert status == 0
    assert "starting" not in err  # the fixture has done all of it
    assert sorted(path.parent.name[:5] for path in folder.glob("*/result.json")) == [
        "vgg-A",
        "vgg-B",
    ]
    measured = {name for name, cell in cells(document).items() if cell}
    assert measured == {"B, S=256"}  # A is trained, and not tested so
    states = {row["row"]: row["state"] for row in document["rows"]}
    assert states["B, S=256"] == "measured"
    assert states["E, S=256"] == "on request"


def test_measured_errors_are_those_of_the_saved_posteriors(folder, tiny, table):
    _, (document,), _ = table("vgg-3", "--rows", "B, S=256", *tiny, "--runs", folder)
    (row,) = [row for row in document["rows"] if row["row"] == "B, S=256"]
    (run,) = row["runs"]
    saved = predictions.load(folder / run / "predictions" / "test-dense-Q37.npz")
    wrong = 100 * (1 - accuracy_score(saved.labels, saved.posteriors.argmax(axis=1)))
    assert row["cells"]["top1"]["measured"]["value"] == pytest.approx(wrong, abs=100 / N)  # ties
    assert row["cells"]["top1"]["printed"]["value"] == 28.7
    assert row["cells"]["top1"]["measured"]["n"] == N
    record = document["runs"][run]
    assert record["training_macs"] == 3 * row["macs"] * 2 * 16  # two steps of batches of 16
    assert record["config"]["data"]["S"] == [37, 37]


def test_another_table_trains_nothing_that_is_there(folder, tiny, table):
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/checkpoints/*/_CHECKPOINT_METADATA")}
    before |= {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}
    before |= {p: p.stat().st_mtime_ns for p in folder.glob("*/predictions/test-dense-Q37.npz")}
    status, (document,), err = table("vgg-4", "--rows", "B, S=256", *tiny, "--runs", str(folder))
    assert status == 0
    assert "0 runs to train, 1 to test, 1 there already" in err.replace("\n", " ")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (place,) = {p.parent for p in before if p.name == "test-dense-Q37.npz"}
    saved = [predictions.load(place / f"test-dense-Q{Q}.npz") for Q in (32, 37, 41)]
    mean = np.mean([scale.posteriors for scale in saved], axis=0)
    wrong = 100 * (1 - accuracy_score(saved[0].labels, mean.argmax(axis=1)))
    assert cells(document)["B, S=256"]["value"] == pytest.approx(wrong, abs=100 / N)


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "table", "vgg-3", *words, "--runs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def is_tested(result):
    """Whether the tests of a trained run have begun."""
    progress = runs.Run(result.parent).read("progress") or {}
    return progress.get("state") == "testing"


def test_interrupted_in_a_test_goes_on_from_there(tmp_path, tiny, table):
    words = ("--rows", "A, S=256", *tiny, "--set", "test.batch_size=2")
    process = start(tmp_path, *words)
    try:
        deadline = time.monotonic() + 240
        while not any(map(is_tested, tmp_path.glob("*/result.json"))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (result,) = tmp_path.glob("*/result.json")
    trained = result.stat().st_mtime_ns
    status, (document,), _ = table("vgg-3", *words, "--runs", str(tmp_path))
    assert status == 0
    assert cells(document)["A, S=256"]["n"] == N
    assert result.stat().st_mtime_ns == trained


def test_row_that_fails_is_told_and_the_others_are_shown(folder, tiny, table):
    (broken,) = [p.parent for p in folder.glob("vgg-A-*/result.json")]
    (broken / "result.json").rename(broken / "kept.json")
    runs.write_json(broken / "failed.json", {"reason": "NaN at step 1", "kind": "diverged"})
    try:
        status, (document,), _ = table(
            "vgg-3", "--rows", "B, S=256", "C, S=256", *tiny, "--runs", str(folder)
        )
    finally:
        (broken / "kept.json").rename(broken / "result.json")
        (broken / "failed.json").unlink()
    assert status == 1
    states = {row["row"]: (row["state"], row["reason"]) for row in document["rows"]}
    assert states["B, S=256"][0] == "measured"  # from before A's failure
    assert states["C, S=256"][0] == "failed"
    assert "A 256, failed" in states["C, S=256"][1]


def test_features_of_nets_tell_other_classes_apart(tmp_path, table):
    words = ("--rows", "VGG Net-D (16 layers)", *TINY, "--runs", str(tmp_path))
    status, (document,), err = table("vgg-11", *words)
    assert status == 0
    assert "1 head on features to learn" in " ".join(err.split())
    assert "8 classes of digits at 32x32" in document["about"]
    recall_of = {name: cell["value"] for name, cell in cells(document, "own").items() if cell}
    assert list(recall_of) == ["VGG Net-D (16 layers)"]
    assert {column["key"]: column["what"] for column in document["columns"]}["VOC-2007"] == ""
    files = [*tmp_path.glob("*/result.json"), *tmp_path.glob("*/features/*.np[yz]")]
    (worth,) = tmp_path.glob("*/transfer/*.json")
    result = json.loads(worth.read_text())
    assert result["class_names"] == ["8", "9"]
    assert {split["train"] for split in result["splits"]} == {50}
    assert result["passes"] == ["dense-Q37", "dense-Q55", "dense-Q73"]
    recalls = [split["mean_class_recall"] for split in result["splits"]]
    assert recall_of["VGG Net-D (16 layers)"] == pytest.approx(np.mean(recalls))
    # Nothing of it is done again; a head that is lost is learnt on the features that are there.
    before = {path: path.stat().st_mtime_ns for path in (*files, worth)}
    status, _, err = table("vgg-11", *words)
    assert (status, "on features to learn" in err) == (0, False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    worth.unlink()
    status, (again,), _ = table("vgg-11", *words)
    assert (status, cells(again, "own")) == (0, cells(document, "own"))
    assert {path: path.stat().st_mtime_ns for path in files} == {p: before[p] for p in files}


# ------------------------------------------------------------------------------- planning


def test_plan_of_vgg_is_the_papers_chain(plan):
    document = plan("vgg-3", "vgg-4", "vgg-5", "vgg-6", "--profile", "paper")
    names = {run["id"]: run["row"] for run in document["runs"]}
    edges = {(names[r["seeded_from"]], r["row"]) for r in document["runs"] if r["seeded_from"]}
    deeper, jittered = "BCDE", "CDE"
    assert edges == (
        {("A 256", f"{net} 256") for net in deeper}
        | {(f"{net} 256", f"{net} 384") for net in jittered}
        | {(f"{net} 384", f"{net} [256;512]") for net in jittered}
        | {("D 384", "D [256;512] FC")}
    )
    assert document["run_count"] == 13
    assert document["edges"] == len(edges) == 11
    assert {run["steps"] for run in document["runs"]} == {370_000}
    assert document["assumed_data"] == ["ILSVRC-2012"]


def test_plan_counts_multiply_adds_as_the_layer_tables_do(plan):
    document = plan("vgg-3", "--profile", "paper")
    macs = {  # ../experiments/papers/computed_params.csv has the same, from the layer tables
        "A": 7_609_090_048,
        "A-LRN": 7_609_090_048,
        "B": 11_308_466_176,
        "C": 11_770_888_192,
        "D": 15_470_264_320,
        "E": 19_632_062_464,
    }
    for run in document["runs"]:
        net = run["row"].split()[0]
        assert run["training_macs"] == 3 * macs[net] * 370_000 * 256
    (d,) = [run for run in document["runs"] if run["row"] == "D 256"]
    convolutions = 15_346_630_656 * 256**2 // 224**2
    places = (256 // 32 - 7 + 1) ** 2
    fully_connected = places * (25088 * 4096 + 4096 * 4096 + 4096 * 1000)
    assert d["testing_macs"] == 2 * 50_000 * (convolutions + fully_connected)
    total = sum(run["training_macs"] + run["testing_macs"] for run in document["runs"])
    assert document["left_macs"] == total
    assert document["device_hours"] == pytest.approx(total / 1e12 / 3600)


def test_plan_of_resnet_6_is_the_papers_recipe(plan):
    depths = (20, 32, 44, 56, 110)
    rows = [f"ResNet-{depth}" for depth in depths]
    document = plan("resnet-6", "--profile", "paper", "--rows", *rows)
    by_row = {}
    for run in document["runs"]:
        if run["study"] == "cifar_resnet":
            by_row.setdefault(run["row"], []).append(run)
    assert set(by_row) == {f"resnet-{depth}" for depth in depths}
    assert len(by_row["resnet-110"]) == 5
    for depth in depths:
        n = (depth - 2) // 6
        # 2n convolutions 3x3 at each of 32x32x16, 16x16x32 and 8x8x64, two of them half as wide
        # at their input, and the fully connected layer.
        maps = [(32, 16), (16, 32), (8, 64)]
        macs = 9 * 3 * 16 * 32 * 32 + sum(2 * n * 9 * c * c * s * s for s, c in maps)
        macs -= sum(9 * c * (c // 2) * s * s for s, c in maps[1:])
        macs += 640
        for run in by_row[f"resnet-{depth}"]:
            assert run["steps"] == 64_000
            assert run["batch_size"] == 128
            assert run["training_macs"] == 3 * macs * 64_000 * 128


def test_plan_of_starred_nets_has_another_set_first(plan):
    document = plan("alexnet-2", "--rows", "1 CNN[*]", "7 CNNs[*]")
    names = {run["id"]: run["row"] for run in document["runs"]}
    pairs = [(run["row"], names.get(run["seeded_from"])) for run in document["runs"]]
    chain = [("Fall 2011", None), ("six_conv", "Fall 2011")]
    assert sorted(pairs, key=str) == sorted(2 * chain + 5 * [("two_gpu", None)], key=str)


def write_classes(root, names):
    """Five images in the folder of each class."""
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(5):
            grey: np.ndarray = np.full((40, 40, 3), 50 * i, np.uint8)
            Image.fromarray(grey).save(root / name / f"{i}.png")


def test_starred_nets_learn_the_classes_of_a_folder_first(tmp_path, plan):
    own, sets = tmp_path / "own", tmp_path / "sets"
    write_classes(own / "train", "ab")
    write_classes(own / "val", "ab")
    write_classes(sets / "fall11_whole", "pqr")
    words = ("alexnet-2", "--profile", "folder", "--rows", "1 CNN[*]", "--set", f"data.path={own}")
    words += ("--set", "data.holdout=0.3", "--set", "train.batch_size=2", "--sets", sets)
    first, then = plan(*words)["runs"]
    assert not plan(*words, "--sets", tmp_path, "--rows", "1 CNN*")["edges"]
    assert then["seeded_from"] == first["id"]
    assert first["parameters"] - then["parameters"] == 4096 // 4 + 1  # of a third class


@pytest.mark.parametrize("tables", [[f"vgg-{n}" for n in range(2, 8)], ["vgg-11"]])
def test_profiles_change_sizes_and_never_the_graph(plan, tables):
    shapes = []
    for profile in ("demo", "paper"):
        document = plan(*tables, "--profile", profile)
        names = {run["id"]: run["row"] for run in document["runs"]}
        shapes.append(
            [(run["row"], names.get(run["seeded_from"]), run["tables"]) for run in document["runs"]]
        )
    assert shapes[0] == shapes[1]


def test_devices_share_a_plan_along_its_chains(plan):
    single = plan("vgg-3", "--profile", "paper", "--devices", "1")
    many = plan("vgg-3", "--profile", "paper", "--devices", "64")
    seconds = {run["row"]: run["seconds"] for run in many["runs"]}
    chain = [seconds[row] for row in ("A 256", "E 256", "E 384", "E [256;512]")]
    assert many["hours"] == pytest.approx(sum(chain) / 3600)
    assert single["hours"] == pytest.approx(single["device_hours"])


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vgg-33"], "unknown table 'vgg-33'; did you mean 'vgg-3'?"),
        (["vgg-3", "--profile", "dmo"], "unknown profile 'dmo'; did you mean 'demo'?"),
        (["vgg-3", "--rows", "A, S=265"], "did you mean 'A, S=256'?"),
        (["vgg-11", "--sets", "."], "--sets . goes with --profile folder or paper"),
        (["vgg-11", "--profile", "paper", "--sets", "no/such"], "--sets no/such is no folder"),
        (["vgg-12", "--rows", "Hoai 2014"], "--rows: vgg-12 has no rows that can be run"),
        (["vgg-3", "--seeds", "0"], "--seeds 0: expected 1 to 10,000"),
        (["vgg-3", "--size", "3"], "crop=3: expected a number of pixels"),
        (["vgg-3", "--rate", "3T"], "go with --plan"),
        (["vgg-3", "--plan", "--rate", "fast"], "--rate 'fast': expected multiply-adds a second"),
        (["vgg-3", "--set", "train.epoch=3"], "did you mean 'train.epochs'?"),
        (["vgg-3", "--profile", "folder"], "data.path=FOLDER"),
        (
            ["alexnet-2", "--profile", "folder", "--rows", "1 CNN[*]"],
            "alexnet_fall2011 learns another set first: --sets DIR, with fall11_whole in it",
        ),
        # Named data that are not there are not assumed.
        (["vgg-3", "--profile", "paper", "--plan", "--set", "data.path=no/such/place"], "no/such"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, told, tmp_path, call):
    status, _, err = call("table", *words, "--runs", tmp_path)
    assert status == 2
    assert told in err
    assert len(err.splitlines()) <= 3


# ------------------------------------------------------------------ what a command leaves alone


def test_reports_of_a_paper_keep_the_tables_they_held(folder, tiny, table):
    words = (*tiny, "--runs", folder)
    assert table("vgg-3", "--rows", "B, S=256", *words)[0] == 0
    status, documents, _ = table("vgg-2", *words)
    assert status == 0
    assert [document["table"] for document in documents] == ["vgg-2"]
    (page,) = (folder / "reports").glob("vgg-demo-*/report.html")
    text = page.read_text()
    assert "VGG, Table 2" in text
    assert "VGG, Table 3" in text
    (file,) = (folder / "reports").glob("vgg-demo-*/vgg-3.json")
    (row,) = [row for row in json.loads(file.read_text())["rows"] if row["row"] == "B, S=256"]
    assert row["state"] == "measured"


def test_rows_not_asked_for_do_not_stop_the_others(plan):
    changes = ("--set", "model.shortcut=B", "--rows", "ResNet-20")
    document = plan("resnet-6", *changes)
    assert [run["row"] for run in document["runs"]] == ["resnet-20"]


def test_outputs_name_what_was_changed(folder, tiny, table):
    _, (document,), _ = table("vgg-3", "--rows", "B, S=256", *tiny, "--runs", folder)
    assert "changed: " in document["about"]
    assert "train.steps=2" in document["about"]
    assert "npz at 32x32, width 0.03125, 2 steps" in document["about"]


def test_rows_that_overrides_make_one_run_are_named(tmp_path):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    same = "schedule.lr=0.01"
    args = parser.parse_args(["goyal-2", "--set", same, "--runs", str(tmp_path)])
    (planned,) = table_plan.plan(papers.named(["goyal-2"]), [], args, tmp_path)
    text = verb.about(planned, args)
    assert "the same run: kn=256 lr=0.05 and kn=256 lr=0.10 and kn=256 lr=0.20" in text


def test_rates_that_another_has_outrun_are_not_trained_on(tmp_path):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    args = parser.parse_args(["alexnet-relu", "--runs", str(tmp_path)])
    planned = table_plan.plan(papers.named(["alexnet-relu"]), [], args, tmp_path)
    jobs = {job.row: job for row in planned[0].rows for job in row.jobs}
    epochs_of_row = {"tanh 0.01": 3.0, "tanh 0.001": 3.0, "tanh 0.003": 2.0, "relu 0.01": 4.0}
    for row, epochs in epochs_of_row.items():
        run, reached = jobs[row].run, row == "tanh 0.01"
        run.folder.mkdir()
        line = {"step": 100, "epoch": epochs, "train_error": 20.0 if reached else 30.0}
        run.metrics.write_text(json.dumps(line) + "\n")
        if reached:
            result = {"n": N, "top1_errors_count": 1, "steps": 100, "epochs": epochs, "depth": 4}
            runs.write_json(run.folder / "run.json", {"config": {}})
            runs.write_json(run.folder / "result.json", result | {"train_loss": 1.0})
    needed = {job.row for job in table_plan.merged(planned).values()}
    assert needed == jobs.keys() - {"tanh 0.001"}
    ((run_id, why),) = table_plan.needless(planned).items()
    assert run_id == jobs["tanh 0.001"].run.id
    assert "below 25%" in why


@pytest.mark.parametrize("content", ['{"rows": [{"row": "a"}]}', "[]", "{", "null"])
def test_every_table_is_listed_and_no_damaged_report(content, tmp_path, call):
    place = tmp_path / "reports" / "vgg-demo"
    place.mkdir(parents=True)
    (place / "vgg-3.json").write_text(content)
    status, out, _ = call("list", "tables", "--json", "--runs", tmp_path)
    assert status == 0
    tables = json.loads(out)["tables"]
    assert [table["name"] for table in tables] == list(papers.tables())
    assert all(row["measured"] == {} for row in tables)
