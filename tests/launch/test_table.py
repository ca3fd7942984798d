"""A paper's table from the command line: what is run, what is shared, what is shown."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from experiments import papers, predictions, runs
from launch import cli

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--set", "train.steps=2", "--set", "model.width=0.03125")


def table(capsys, *words):
    status = cli.main(["table", *words, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


def plan(capsys, folder, *words):
    return table(capsys, *words, "--plan", "--rate", "1T", "--runs", str(folder))[1]


def cells(document, column="top1"):
    """Row -> measured figure."""
    return {row["row"]: row["cells"][column]["measured"] for row in document["rows"]}


# -------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of VGG's table 3 in two rows, A at S=256 and D up to the jitter, tiny."""
    place = tmp_path_factory.mktemp("runs")
    rows = ("--rows", "A, S=256", "D, S=[256;512]")
    assert cli.main(["table", "vgg-3", *rows, *TINY, "--runs", str(place), "--json"]) == 0
    return place


def test_rows_bring_the_runs_that_seed_them(folder, capsys):
    status, (document,), err = table(
        capsys, "vgg-3", "--rows", "A, S=256", "D, S=[256;512]", *TINY, "--runs", str(folder)
    )
    assert status == 0
    assert "4 there already" in err
    made = sorted(path.parent.name[:5] for path in folder.glob("*/result.json"))
    assert made == ["vgg-A", "vgg-D", "vgg-D", "vgg-D"]
    measured = {name for name, cell in cells(document).items() if cell}
    assert measured >= {"A, S=256", "D, S=256", "D, S=384", "D, S=[256;512]"} - {
        "D, S=256",
        "D, S=384",
    }
    states = {row["row"]: row["state"] for row in document["rows"]}
    assert states["A, S=256"] == "measured"
    assert states["E, S=256"] == "on request"


def test_measured_errors_are_those_of_the_saved_posteriors(folder, capsys):
    _, (document,), _ = table(capsys, "vgg-3", "--rows", "A, S=256", *TINY, "--runs", str(folder))
    (row,) = [row for row in document["rows"] if row["row"] == "A, S=256"]
    (run,) = row["runs"]
    saved = predictions.load(folder / run / "predictions" / "test-dense-Q37.npz")
    wrong = 100 * (1 - accuracy_score(saved.labels, saved.posteriors.argmax(axis=1)))
    assert row["cells"]["top1"]["measured"]["value"] == pytest.approx(wrong, abs=0.25)  # ties
    assert row["cells"]["top1"]["printed"]["value"] == 29.6
    assert row["cells"]["top1"]["measured"]["n"] == 500


def test_another_table_trains_nothing_that_is_there(folder, capsys):
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/checkpoints/*/_CHECKPOINT_METADATA")}
    before |= {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}
    status, (document,), err = table(
        capsys, "vgg-5", "--rows", "D, *", *TINY, "--runs", str(folder)
    )
    assert status == 0
    assert "0 runs to train, 1 to test, 3 there already" in err.replace("\n", " ")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    found = cells(document)
    assert all(found[f"D, {how}"] for how in ("dense", "multi-crop", "multi-crop & dense"))
    assert found["E, dense"] is None
    (run,) = [p.parent for p in folder.glob("*/predictions/test-multi_crop-Q73.npz")]
    each = [
        predictions.load(run / "predictions" / f"test-{kind}-Q{Q}.npz").posteriors
        for kind in ("dense", "multi_crop")
        for Q in (37, 55, 73)
    ]
    labels = predictions.load(run / "predictions" / "test-dense-Q37.npz").labels
    wrong = 100 * (1 - accuracy_score(labels, np.mean(each, axis=0).argmax(axis=1)))
    assert found["D, multi-crop & dense"]["value"] == pytest.approx(wrong, abs=0.25)


def test_tables_that_were_made_can_be_shown_again_without_work(folder, capsys):
    began = time.monotonic()
    status = cli.main(["table", "vgg-3", "--rows", "A, S=256", *TINY, "--runs", str(folder)])
    out = capsys.readouterr().out
    assert status == 0
    assert "demo" in out
    assert "29.6" in out
    assert time.monotonic() - began < 120
    (report,) = (folder / "reports").glob("vgg-demo-*/report.html")
    assert "demo" in report.read_text()


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "table", "vgg-3", *words, "--runs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_interrupted_in_a_test_goes_on_from_there(tmp_path, capsys):
    words = ("--rows", "A, S=256", *TINY, "--set", "test.batch_size=2")
    process = start(tmp_path, *words)
    try:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("*/result.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(4)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (result,) = tmp_path.glob("*/result.json")
    trained = result.stat().st_mtime_ns
    status, (document,), _ = table(capsys, "vgg-3", *words, "--runs", str(tmp_path))
    assert status == 0
    assert cells(document)["A, S=256"]["n"] == 500
    assert result.stat().st_mtime_ns == trained


def test_seeds_give_mean_and_deviation(folder, capsys):
    words = ("vgg-3", "--rows", "A, S=256", "--seeds", "2", *TINY, "--runs", str(folder))
    status, (document,), _ = table(capsys, *words)
    assert status == 0
    (row,) = [row for row in document["rows"] if row["row"] == "A, S=256"]
    errors = []
    for run in row["runs"]:
        saved = predictions.load(folder / run / "predictions" / "test-dense-Q37.npz")
        errors.append(100 * saved.topk_wrong(1).mean())
    measured = row["cells"]["top1"]["measured"]
    assert measured["seeds"] == 2
    assert measured["value"] == pytest.approx(np.mean(errors))
    assert measured["deviation"] == pytest.approx(np.std(errors, ddof=1))


def test_row_that_fails_is_told_and_the_others_are_shown(folder, capsys):
    broken = next(p.parent for p in folder.glob("vgg-A-*/result.json"))
    (broken / "result.json").rename(broken / "kept.json")
    runs.write_json(broken / "failed.json", {"reason": "NaN at step 1", "kind": "diverged"})
    try:
        status, (document,), _ = table(
            capsys, "vgg-3", "--rows", "A, S=256", "B, S=256", *TINY, "--runs", str(folder)
        )
    finally:
        (broken / "kept.json").rename(broken / "result.json")
        (broken / "failed.json").unlink()
    assert status == 1
    states = {row["row"]: (row["state"], row["reason"]) for row in document["rows"]}
    assert states["A, S=256"][0] == "failed"
    assert "NaN at step 1" in states["A, S=256"][1]
    assert "A 256, failed" in states["B, S=256"][1]


# ------------------------------------------------------------------------------- planning


def test_plan_of_vgg_is_the_papers_chain(tmp_path, capsys):
    document = plan(capsys, tmp_path, "vgg-3", "vgg-4", "vgg-5", "vgg-6", "--profile", "paper")
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


def test_plan_counts_multiply_adds_as_the_layer_tables_do(tmp_path, capsys):
    document = plan(capsys, tmp_path, "vgg-3", "--profile", "paper")
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


def test_plan_of_resnet_6_is_the_papers_recipe(tmp_path, capsys):
    document = plan(capsys, tmp_path, "resnet-6", "--profile", "paper", "--all")
    found = {}
    for run in document["runs"]:
        if run["study"] == "cifar_resnet":
            found.setdefault(run["row"], []).append(run)
    depths = (20, 32, 44, 56, 110, 1202)
    assert set(found) == {f"resnet-{depth}" for depth in depths}
    assert len(found["resnet-110"]) == 5
    for depth in depths:
        n = (depth - 2) // 6
        # 2n convolutions 3x3 at each of 32x32x16, 16x16x32 and 8x8x64, two of them half as wide
        # at their input, and the fully connected layer.
        maps = [(32, 16), (16, 32), (8, 64)]
        macs = 9 * 3 * 16 * 32 * 32 + sum(2 * n * 9 * c * c * s * s for s, c in maps)
        macs -= sum(9 * c * (c // 2) * s * s for s, c in maps[1:])
        macs += 640
        for run in found[f"resnet-{depth}"]:
            assert run["steps"] == 64_000
            assert run["batch_size"] == 128
            assert run["training_macs"] == 3 * macs * 64_000 * 128


def test_profiles_change_sizes_and_never_the_graph(tmp_path, capsys):
    shapes = []
    for profile in ("demo", "paper"):
        document = plan(capsys, tmp_path, "vgg", "--profile", profile)
        names = {run["id"]: run["row"] for run in document["runs"]}
        shapes.append(
            [(run["row"], names.get(run["seeded_from"]), run["tables"]) for run in document["runs"]]
        )
    assert shapes[0] == shapes[1]


def test_devices_share_a_plan_along_its_chains(tmp_path, capsys):
    one = plan(capsys, tmp_path, "vgg-3", "--profile", "paper", "--devices", "1")
    many = plan(capsys, tmp_path, "vgg-3", "--profile", "paper", "--devices", "64")
    seconds = {run["row"]: run["seconds"] for run in many["runs"]}
    chain = [seconds[row] for row in ("A 256", "E 256", "E 384", "E [256;512]")]
    assert many["hours"] == pytest.approx(sum(chain) / 3600)
    assert one["hours"] == pytest.approx(one["device_hours"])


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vgg-33"], "no table is called 'vgg-33'; did you mean 'vgg-3'?"),
        (["vgg-3", "--profile", "dmo"], "unknown profile 'dmo'; did you mean 'demo'?"),
        (["vgg-3", "--rows", "A, S=265"], "did you mean 'A, S=256'?"),
        (["vgg-3", "--seeds", "0"], "--seeds 0: expected at least 1"),
        (["vgg-3", "--size", "3"], "crop=3: expected a number of pixels"),
        (["vgg-3", "--rate", "3T"], "go with --plan"),
        (["vgg-3", "--plan", "--rate", "fast"], "--rate 'fast': expected multiply-adds a second"),
        (["vgg-3", "--set", "train.epoch=3"], "did you mean 'train.epochs'?"),
        (["vgg-3", "--profile", "folder"], "data.path"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, told, tmp_path, capsys):
    status = cli.main(["table", *words, "--runs", str(tmp_path)])
    err = capsys.readouterr().err
    assert status == 2
    assert told in err
    assert len(err.splitlines()) <= 3


def test_every_table_is_listed(capsys):
    assert cli.main(["list", "tables", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tables"]
    assert [table["name"] for table in found] == list(papers.tables())
