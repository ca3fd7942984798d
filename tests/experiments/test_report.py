"""The report on run folders with made-up figures, in the format that a finished run leaves."""

import csv
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from scipy import stats

from experiments.report import ReportError, study, write
from experiments.report.figures import (
    NETS,
    Canvas,
    Figure,
    draw,
    head,
    plot_curves,
    plot_depth,
    plot_seeding,
    plot_vgg_depth,
    spread,
    thin,
)
from experiments.report.findings import findings, p_text, points
from experiments.report.forms import to_json, to_terminal
from experiments.report.study import RAW
from experiments.report.text import count
from experiments.runs import results as results_module
from experiments.runs.results import Row, collect

N, CLASSES = 500, 10


def posteriors_with_error(rng, labels, error):
    """Random posteriors of which about `error` (0..1) are wrong at top-1."""
    raw = rng.random((labels.size, CLASSES))
    wrong = rng.random(labels.size) < error
    target = np.where(wrong, (labels + rng.integers(1, CLASSES, labels.size)) % CLASSES, labels)
    raw[np.arange(labels.size), target] = 1.5 + rng.random(labels.size)
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


def errors_count(posteriors, labels, k):
    """By sorting, unlike the code under test; the posteriors drawn here have no ties."""
    best = np.argsort(-posteriors, axis=1)[:, :k]
    return int((best != labels[:, None]).all(axis=1).sum())


def write_run(
    folder: Path, name, seed, depth, error, loss, *, seeded=None, epochs=12, noise=0, config=None
):
    """One finished run; `error` 0..1 and `loss` are what its curves end near."""
    rng = np.random.default_rng([noise, seed, depth, 1 if seeded else 0])
    labels = np.random.default_rng(7).integers(0, CLASSES, N).astype(np.int32)
    posteriors = posteriors_with_error(rng, labels, error)
    (folder / "predictions").mkdir(parents=True)
    ids = np.arange(N, dtype=np.int32)
    np.savez(
        folder / "predictions" / "test-center.npz", ids=ids, labels=labels, posteriors=posteriors
    )
    steps, per_epoch = 20 * epochs, 20
    lines = []
    for step in range(5, steps + 1, 5):
        decay = np.exp(-4 * step / steps * (2 if seeded else 1))
        train_loss = loss + (2.3 - loss) * decay + 0.05 * rng.random()
        train_error = 100 * (error * 0.8 + (0.9 - error * 0.8) * decay)
        lines.append(
            {
                "step": step,
                "epoch": step // per_epoch,
                "train_loss": train_loss,
                "train_error": train_error + rng.normal(),
                "lr": 0.1,
                "images_per_s": 4000.0,
            }
        )
        if step % per_epoch == 0:
            val_error = 100 * (error + (0.9 - error) * decay)
            lines.append(
                {"step": step, "epoch": step // per_epoch, "val_loss": 1.0}
                | {"val_top1_error": val_error}
            )
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text + '\n{"step": 9, "trai')
    count = {k: errors_count(posteriors, labels, k) for k in (1, 5)}
    result = {
        "n": N,
        "top1_error": 100 * count[1] / N,
        "top5_error": 100 * count[5] / N,
        "top1_errors_count": count[1],
        "top5_errors_count": count[5],
        "test_loss": loss * 1.1,
        "train_loss": loss,
        "train_error": 80 * error,
        "steps": steps,
        "epochs": epochs,
        "images_per_s": 4321.0 + depth,
        "seconds": 1.37 * depth,
        "compile_seconds": 3.1,
        "parameters": 13_600 * depth,
        "macs": 690_000 * depth,
        "depth": depth,
        "protocol": "center",
        "devices": "2 x cpu",
        "finished": "2025-01-01T00:02:00Z",
        "loss_is_finite": True,
    }
    run = {
        "id": f"{name}-{seed}-0a1b",
        "name": f"{name} seed {seed}",
        "study": "made up",
        "row": name,
        "seed": seed,
        "seed_from": {"row": seeded, "run": "x"} if seeded else None,
        "config": {"model": {"width": 0.25, "note": "<b>&"}, "optimizer": {"lr": 0.1}}
        | (config or {}),
        "created": "2025-01-01T00:00:00Z",
        "versions": {"jax": "0.10.2", "flax": "0.12.8", "commit": "12ab34c"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "run.json").write_text(json.dumps(run))
    if seeded:
        report = {
            "copied": [["conv1_1/conv/kernel", "conv1_1/conv/kernel"]],
            "fresh": ["conv5_4/conv/kernel", "conv5_4/conv/bias"],
            "used": ["conv1_1/conv/kernel"],
            "left_over": ["conv4_1/conv/kernel"],
        }
        (folder / "seeding.json").write_text(json.dumps(report))
    return folder


def demo_rows(folder: Path, seeds=1, unfinished=True) -> list[Row]:
    """Rows like those of the demo sweep: plain, residual, VGG from scratch and from A."""
    rows = []

    def add(study, name, architecture, depth, error, loss, seeded=None):
        runs = {
            seed: write_run(
                folder / f"{name}-{seed}".replace(" ", "_").replace(":", "-"),
                *(name, seed, depth, error * (1 + 0.1 * seed), loss * (1 + 0.05 * seed)),
                seeded=seeded,
                noise=len(rows),
            )
            for seed in range(seeds)
        }
        rows.append(Row(study, name, architecture, runs, seeded, "finished"))

    for depth, error, loss in ((8, 0.12, 0.3), (20, 0.18, 0.41), (44, 0.55, 1.4), (56, 0.7, 1.9)):
        add("residual_depth", f"plain-{depth}", f"cifar_plain:{depth}", depth, error, loss)
    for depth, error, loss in ((8, 0.13, 0.3), (20, 0.09, 0.12), (44, 0.1, 0.05), (56, 0.1, 0.008)):
        add("residual_depth", f"residual-{depth}", f"cifar_resnet:{depth}", depth, error, loss)
    vgg = (("A", 11, 0.06, 0.1), ("B", 13, 0.055, 0.09), ("D", 16, 0.08, 0.2), ("E", 19, 0.3, 0.9))
    for variant, depth, error, loss in vgg:
        add("vgg_depth", f"vgg:{variant}", f"vgg:{variant}", depth, error, loss)
        if variant != "A":
            name = f"vgg:{variant} from A"
            add("vgg_depth", name, f"vgg:{variant}", depth, 0.05, 0.05, seeded="vgg:A")
    if unfinished:
        runs = {seed: folder / "nothing" / str(seed) for seed in range(seeds)}
        failed = "the loss became NaN at step 120; the last good checkpoint is step 100"
        rows += [
            Row("residual_depth", "plain-110", "cifar_plain:110", runs, None, "failed", failed),
            Row("vgg_depth", "vgg:C", "vgg:C", runs, None, "running"),
            Row("vgg_depth", "vgg:C from A", "vgg:C", runs, "vgg:A", "waiting"),
        ]
    return rows


PROFILE = "demo: made-up digits, 16x16 & <32x32>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return demo_rows(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def seeded_runs(tmp_path_factory):
    return demo_rows(tmp_path_factory.mktemp("seeds"), seeds=3, unfinished=False)


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(collect(runs), folder)


def write_report(results, folder):
    return write(study.report(results, study.table(results, "Depth ablation", PROFILE)), folder)


def records_of(results):
    return study.table(results, "t", PROFILE).document["rows"]


def result_of(row, seed=0):
    return json.loads((row.runs[seed] / "result.json").read_text())


def saved_wrong(row, seed=0):
    """Wrong at top-1, by argmax, from the saved posteriors."""
    saved = np.load(row.runs[seed] / "predictions" / "test-center.npz")
    return saved["posteriors"].argmax(axis=1) != saved["labels"]


def terminal(results, width, tty=True):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=tty, color_system=None)
    to_terminal(study.table(results, "Depth ablation", PROFILE), console)
    return text.getvalue()


# ------------------------------------------------------------------------------- collect


def test_rows_without_a_result_have_a_state_and_no_figures(runs):
    records = json.loads(to_json(study.table(collect(runs), "t", PROFILE)))["rows"]
    by_name = {record["row"]: record for record in records}
    assert by_name["vgg:C"]["state"] == "running"
    assert by_name["plain-110"]["state"] == "failed"
    assert "step 120" in by_name["plain-110"]["reason"]
    filled = {"profile", "study", "row", "architecture", "seed_from", "state", "reason", "seeds"}
    for name in ("vgg:C", "plain-110", "vgg:C from A"):
        figures = {key: by_name[name][key] for key in set(RAW) - filled - {"seeds_asked"}}
        assert set(figures.values()) == {None}
        assert by_name[name]["seeds"] == []


@pytest.mark.parametrize("broken", ["{", '{"n": 500}', None])
def test_a_finished_row_without_a_readable_result_is_called_failed(tmp_path, broken):
    folder = write_run(tmp_path / "run", "plain-8", 0, 8, 0.1, 0.3)
    (folder / "result.json").unlink()
    if broken is not None:
        (folder / "result.json").write_text(broken)
    row = Row("s", "plain-8", "cifar_plain:8", {0: folder}, None, "finished")
    (result,) = collect([row])
    assert (result.state, result.runs) == ("failed", {})
    assert "seed 0" in result.reason


def test_of_a_half_finished_row_only_the_finished_seeds_count(tmp_path):
    folder = write_run(tmp_path / "run", "plain-8", 0, 8, 0.1, 0.3)
    row = Row("s", "plain-8", "cifar_plain:8", {0: folder, 1: tmp_path / "no"}, None, "running")
    (record,) = records_of(collect([row]))
    assert (record["seeds"], record["seeds_asked"], record["state"]) == ([0], 2, "running")
    assert "1 of 2" in terminal(collect([row]), 120)


# ------------------------------------------------------------------------------- tables


def test_table_of_one_seed_holds_result_json_and_wilson_intervals(runs):
    records = records_of(collect(runs))
    for row, record in zip(runs, records, strict=True):
        if row.state != "finished":
            continue
        result = result_of(row)
        for key in ("n", "depth", "parameters", "macs", "top1_error", "top5_error", "train_loss"):
            assert record[key] == pytest.approx(result[key], abs=1e-12)
        for k in (1, 5):
            interval = stats.binomtest(result[f"top{k}_errors_count"], 500).proportion_ci(
                method="wilson"
            )
            bounds = (record[f"top{k}_low"], record[f"top{k}_high"])
            assert bounds == pytest.approx((100 * interval.low, 100 * interval.high))
            assert "Wilson" in record[f"top{k}_interval"]


def test_table_of_several_seeds_holds_mean_deviation_range_and_t_interval(seeded_runs):
    records = records_of(collect(seeded_runs))
    for row, record in zip(seeded_runs, records, strict=True):
        errors = [result_of(row, seed)["top1_error"] for seed in range(3)]
        half = stats.t.ppf(0.975, 2) * np.std(errors, ddof=1) / np.sqrt(3)
        assert record["top1_error"] == pytest.approx(np.mean(errors))
        assert record["top1_deviation"] == pytest.approx(np.std(errors, ddof=1))
        assert (record["top1_min"], record["top1_max"]) == (min(errors), max(errors))
        low, high = max(np.mean(errors) - half, 0), min(np.mean(errors) + half, 100)
        assert (record["top1_low"], record["top1_high"]) == pytest.approx((low, high))
        assert "mean over seeds" in record["top1_interval"]


def test_seeds_with_the_same_error_have_no_interval(tmp_path):
    """Of counted errors, a deviation of nothing says nothing of other seeds."""
    runs = {}
    for seed in range(3):
        runs[seed] = write_run(tmp_path / str(seed), "E", seed, 19, 0.91, 0.3 + 0.01 * seed)
        result = json.loads((runs[seed] / "result.json").read_text())
        errors = {"top1_errors_count": 455, "top1_error": 91.0}
        (runs[seed] / "result.json").write_text(json.dumps(result | errors))
    results = collect([Row("s", "E", "vgg:E", runs, None, "finished")])
    (record,) = records_of(results)
    assert record["top1_error"] == 91.0
    assert [record[f"top1_{k}"] for k in ("low", "high", "interval")] == [None] * 3
    assert record["top5_low"] < record["top5_high"]
    shown = terminal(results, 200)
    assert "91.0" in shown
    assert "[91.0" not in shown
    assert "± 0.0, 91.0 to 91.0" in shown
    assert points(1.0, None, None) == "1.0 points higher"


def test_csv_and_json_hold_the_same_unrounded_figures(report, runs):
    document = json.loads(report["table/json"].read_text())
    with report["table/csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert document["profile"] == PROFILE
    assert [line["row"] for line in lines] == [row.name for row in runs]
    assert set(document["columns"]) == set(lines[0])
    for line, record in zip(lines, document["rows"], strict=True):
        assert line["profile"] == PROFILE
        for key in ("n", "top1_error", "top1_low", "top5_high", "macs", "images_per_s", "seconds"):
            assert (None if line[key] == "" else float(line[key])) == record[key]


def test_not_finite_losses_are_null_in_json_and_named_in_the_table(tmp_path):
    folder = write_run(tmp_path / "run", "plain-8", 0, 8, 0.1, float("nan"))
    results = collect([Row("s", "plain-8", "cifar_plain:8", {0: folder}, None, "finished")])
    text = to_json(study.table(results, "t", PROFILE))
    assert json.loads(text, parse_constant=pytest.fail)["rows"][0]["train_loss"] is None
    assert " nan " in terminal(results, 120)
    assert write_report(results, tmp_path / "report")["report"].exists()


def test_markdown_has_equally_many_cells_in_every_line_and_names_the_profile(report):
    text = report["table/markdown"].read_text()
    counts = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(counts) == 1
    assert PROFILE in text
    assert "0.76 M" in text  # 56 x 13,600 parameters
    assert "38.6 M" in text  # 56 x 690,000 multiply-adds


def test_names_are_the_same_in_markdown_as_in_the_json(tmp_path):
    """Read by markdown-it, which follows CommonMark and GitHub's tables."""
    names = [
        "*norm*",
        "_x_",
        "a_b",
        "<b>x</b>",
        "`y`",
        "\\*|",
        "c|d",
        "$x$ &amp; <8x8>",
        "[0.5, 0.75]",
    ]
    names = [f"8, note={name}" for name in names]
    runs = made(tmp_path, "8", "cifar_resnet:8", 8, 0.1, 0.1).runs
    rows = [Row("s", name, "cifar_resnet:8", runs, None, "finished") for name in names]
    text = write_report(collect(rows), tmp_path / "report")["table/markdown"].read_text()
    cells, shown = [], []
    for token in MarkdownIt().enable("table").parse(text):
        if token.type == "td_open":
            cells.append("")
        elif token.type == "inline" and cells:
            assert {child.type for child in token.children} <= {
                "text",
                "text_special",
                "html_inline",
            }
            cells[-1] += "".join(child.content for child in token.children)
        elif token.type == "tr_close" and cells:
            shown.append(cells[0])
            cells = []
    assert [name.replace("&amp;", "&") for name in names] == shown


def test_counts_are_written_with_three_figures():
    values = (270_000, 40_600_000, 75_290, 138_357_544, 19_632_062_464, 9_999_000, 512)
    texts = ["0.27 M", "40.6 M", "75.3 k", "138 M", "19.6 G", "10.0 M", "512"]
    assert list(map(count, values)) == texts


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_terminal_table_keeps_to_the_width_of_the_screen(runs, seeded_runs, width):
    for rows in (runs, seeded_runs):
        text = terminal(collect(rows), width)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "plain-56" in text


def test_terminal_at_100_columns_and_a_pipe_show_every_column(runs):
    finished = collect(row for row in runs if row.state == "finished")
    for text in (terminal(finished, 100), terminal(collect(runs), 40, tty=False)):
        for header in ("layers", "params", "MACs", "seeds", "top-1", "top-5", "loss", "images/s"):
            assert header in text
        assert "Left out" not in text
    assert "Left out for lack of room: speed" in terminal(finished, 90)


# ------------------------------------------------------------------------------- findings


def test_finding_of_one_seed_is_mcnemars_test_on_the_saved_posteriors(runs):
    by_pair = {finding.text.partition(" (")[0]: finding for finding in findings(collect(runs))}
    finding = by_pair["plain-56 against plain-20"]
    by_name = {row.name: row for row in runs}
    deep, shallow = saved_wrong(by_name["plain-56"]), saved_wrong(by_name["plain-20"])
    only = int((deep & ~shallow).sum()), int((shallow & ~deep).sum())
    assert (finding.figures["only_first"], finding.figures["only_second"]) == only
    assert finding.figures["p_value"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert f"{100 * deep.mean():.1f}% against {100 * shallow.mean():.1f}%" in finding.text
    assert "1.900 against 0.410" in finding.text
    assert "higher" in finding.text


def test_every_comparison_that_can_be_made_is_made_favourable_or_not(runs):
    pairs = [
        (finding.figures["first"], finding.figures["second"])
        for finding in findings(collect(runs))
        if finding.figures
    ]
    assert pairs == [
        ("plain-56", "plain-20"),
        ("plain-56", "residual-56"),
        ("residual-56", "residual-20"),
        ("vgg:B from A", "vgg:B"),
        ("vgg:D from A", "vgg:D"),
        ("vgg:E from A", "vgg:E"),
    ]


def test_finding_of_several_seeds_is_paired_by_seed(seeded_runs):
    by_name = {row.name: row for row in seeded_runs}
    values = [
        [result_of(by_name[name], seed)["top1_error"] for seed in range(3)]
        for name in ("vgg:E from A", "vgg:E")
    ]
    expected = stats.ttest_rel(*values)
    (finding,) = (f for f in findings(collect(seeded_runs)) if f.text.startswith("vgg:E from A"))
    assert finding.figures["top1_error"]["p_value"] == pytest.approx(expected.pvalue)
    for mean, deviation in ((np.mean(v), np.std(v, ddof=1)) for v in values):
        assert f"{mean:.1f} ± {deviation:.1f}%" in finding.text
    assert "lower" in finding.text


def made(folder, name, architecture, depth, error, lr, *, seed=0, seeded=None, epochs=12.0, **more):
    """A row of one run, whose config says all that its training depends on."""
    config = {
        "model": {"arch": architecture, "width": 0.25},
        "schedule": {"lr": lr},
        "train": {"epochs": epochs, "log_every_epochs": 0.5 if seeded else 0.25},
        "seed": seed,
        "seeding": {"run": "A-0a1b" if seeded else "", "kind": "copy"},
        **more,
    }
    run = write_run(
        folder / name, name, seed, depth, error, 0.3, seeded=seeded, config=config, noise=len(name)
    )
    return Row("made_up", name, architecture, {seed: run}, seeded, "finished")


def test_seeded_row_is_paired_with_the_scratch_row_of_its_settings(tmp_path):
    rows = [
        made(tmp_path, "A", "vgg:A", 11, 0.06, 0.01),
        made(tmp_path, "E short", "vgg:E", 19, 0.9, 0.01, epochs=0.5),
        made(tmp_path, "E", "vgg:E", 19, 0.06, 0.01),
        made(tmp_path, "E slow", "vgg:E", 19, 0.3, 0.005),
        made(tmp_path, "E seeded", "vgg:E", 19, 0.05, 0.01, seeded="A"),
        made(tmp_path, "E slow seeded", "vgg:E", 19, 0.05, 0.005, seeded="A"),
    ]
    results = collect(rows)
    by_first = {f.figures["first"]: f for f in findings(results) if f.figures}
    by_name = {row.name: row for row in rows}
    for seeded, scratch in (("E seeded", "E"), ("E slow seeded", "E slow")):
        finding = by_first[seeded]
        assert finding.figures["second"] == scratch
        seeded_wrong, scratch_wrong = saved_wrong(by_name[seeded]), saved_wrong(by_name[scratch])
        only = (
            int((seeded_wrong & ~scratch_wrong).sum()),
            int((scratch_wrong & ~seeded_wrong).sum()),
        )
        expected = stats.binomtest(only[0], sum(only)).pvalue
        assert finding.figures["p_value"] == pytest.approx(expected)
        assert "differ in" not in finding.text
    assert by_first["E seeded"].figures["p_value"] > 0.05  # against `E short` it is below 1e-80
    axes = plot_seeding(results).axes[0, 0]
    shown = {round(float(line.get_ydata()[0]), 6) for line in axes.lines}
    names = ("E", "E seeded", "E slow", "E slow seeded")
    assert shown == {round(result_of(by_name[name])["top1_error"], 6) for name in names}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["E seeded", "E slow seeded"]


def test_seeded_row_without_its_like_from_scratch_is_told_and_not_compared(tmp_path):
    rows = [
        made(tmp_path, "A", "vgg:A", 11, 0.06, 0.01),
        made(tmp_path, "E", "vgg:E", 19, 0.9, 0.01, epochs=0.5),
        made(tmp_path, "E seeded", "vgg:E", 19, 0.05, 0.01, seeded="A"),
    ]
    (finding,) = findings(collect(rows))
    assert finding.figures == {}
    assert finding.text == (
        "E seeded is compared with no net from scratch: none was trained in its settings (E comes "
        "nearest: train.epochs is 0.5 there and 12.0 here)."
    )
    assert plot_seeding(collect(rows)) is None
    run = rows[1].runs[0] / "run.json"
    content = json.loads(run.read_text())
    content["config"]["train"]["epochs"] = 12.0
    run.write_text(json.dumps(content | {"data": "other images"}))
    (finding,) = findings(collect(rows))
    assert "data is other images there and None here" in finding.text


@pytest.fixture
def two_rates(tmp_path):
    """Plain and residual nets of two depths, each at two learning rates."""
    rows = []
    for family, errors in (("plain", (0.1, 0.2, 0.3, 0.4)), ("resnet", (0.1, 0.15, 0.12, 0.18))):
        for k, (depth, lr) in enumerate(((8, 0.1), (20, 0.1), (8, 0.05), (20, 0.05))):
            name, architecture = f"{family}-{depth} {lr}", f"cifar_{family}:{depth}"
            rows.append(made(tmp_path, name, architecture, depth, errors[k], lr))
    return rows


def test_two_learning_rates_of_one_architecture_are_both_shown(two_rates):
    results = collect(two_rates)
    error_axes, _ = plot_depth(results).axes[0]
    assert len(error_axes.lines) == 4
    for line, first in zip(error_axes.lines, (0, 2, 4, 6), strict=True):
        assert line.get_xdata().tolist() == [8, 20]
        expected = [result_of(row)["top1_error"] for row in two_rates[first : first + 2]]
        assert line.get_ydata() == pytest.approx(expected)
    assert len({line.get_linestyle() for line in error_axes.lines[:2]}) == 2
    (svg,) = (figure.svg for figure in draw(results, PROFILE) if figure.name == "depth")
    labels = set(svg_text(svg))
    assert {"plain, lr 0.1", "plain, lr 0.05", "residual, lr 0.1", "residual, lr 0.05"} <= labels
    losses = plot_curves(results).axes[1]
    assert [len(axes.lines) for axes in losses] == [4, 4]
    pairs = [(f.figures["first"], f.figures["second"]) for f in findings(results) if f.figures]
    assert pairs == [(f"plain-20 {lr}", f"resnet-20 {lr}") for lr in (0.1, 0.05)]


def test_of_many_nets_some_are_drawn_and_few_compared(tmp_path, monkeypatch):
    n, compared = NETS + 10, []
    rows = [made(tmp_path, f"{k}", "cifar_plain:8", 8, (k + 1) / 100, 0.1 + k) for k in range(n)]
    monkeypatch.setattr(
        results_module, "differing", lambda *args, **more: compared.append(1) or ["schedule.lr"]
    )
    results = collect(rows)
    assert [len(group) for group in results_module.series(results).values()] == [1] * n
    assert not compared  # each has a rate of its own
    canvas = plot_curves(results)
    ((axes,), (losses,)) = canvas.axes
    ends = [line.get_ydata()[-1] for line in axes.lines[::2]]  # beside each its validation
    assert len(losses.lines) == len(ends) == NETS
    every = [row.curve("train_error")[1][-1] for result in results for row in result.runs.values()]
    assert (min(ends), max(ends)) == pytest.approx((min(every), max(every)))
    assert f"At most {NETS} nets a panel" in canvas.caption


def test_seeded_nets_of_two_rates_are_two_lines(tmp_path):
    rows = [
        made(tmp_path, f"{v} {lr}{' seeded' * s}", f"vgg:{v}", d, 0.1 + lr, lr, seeded="A" * s)
        for s in (0, 1)
        for lr in (0.01, 0.005)
        for v, d in (("B", 13), ("D", 16))
    ]
    rows = [Row(**{**vars(row), "seed_from": row.seed_from or None}) for row in rows]
    error_axes = plot_vgg_depth(collect(rows)).axes[0, 0]
    assert [line.get_xdata().tolist() for line in error_axes.lines] == [[13, 16]] * 4


def test_other_settings_of_what_is_compared_are_told(tmp_path):
    rows = [
        made(tmp_path, "plain-20", "cifar_plain:20", 20, 0.1, 0.1),
        made(tmp_path, "plain-56", "cifar_plain:56", 56, 0.3, 0.01),
        made(tmp_path, "residual-56", "cifar_resnet:56", 56, 0.1, 0.01),
    ]
    deep, residual = (finding for finding in findings(collect(rows)) if finding.figures)
    assert deep.text.endswith("They differ in schedule.lr too.")
    assert "differ in" not in residual.text


def test_posteriors_that_contradict_result_json_are_not_tested(tmp_path):
    rows = demo_rows(tmp_path, unfinished=False)[:4]
    path = rows[3].runs[0] / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"top1_errors_count": result["top1_errors_count"] + 1}))
    (finding,) = findings(collect(rows))
    assert "no paired test" in finding.text
    assert not finding.figures


def test_no_finding_without_two_rows_to_compare(runs):
    assert findings(collect(runs[:1])) == findings([]) == []


def test_p_values_are_never_written_as_zero():
    texts = [p_text(p) for p in (0.0, 9.7e-56, 0.0312)]
    assert texts == ["p < 1e-300", "p = 9.7e-56", "p = 0.031"]


# ------------------------------------------------------------------------------- figures


def smallest_text(text):
    """Of one drawing, or of all drawings in a page; in points, as their sizes are told in."""
    return min(map(float, re.findall(r"font-size: ([\d.]+)px", text)))


def svg_text(text):
    """The texts of a figure, at the ends of its lines too; it loads nothing and can be read."""
    root = ElementTree.fromstring(text)
    assert root.attrib["width"].endswith("pt")
    assert float(root.attrib["width"][:-2]) == float(root.attrib["viewBox"].split()[2])
    assert smallest_text(text) >= 9  # points of paper, 12 pixels of a screen
    for node in root.iter():
        for key, value in node.attrib.items():
            assert not key.endswith("href") or value.startswith("#")
    return [node.text or "" for node in root.iter() if node.tag.endswith("}text")]


def test_figures_name_profile_and_n(report):
    names = {name for name in report if name.startswith("figures/")}
    assert names == {"figures/depth", "figures/vgg_depth", "figures/curves", "figures/seeding"}
    for name in names:
        text = "".join(svg_text(report[name].read_text()))
        assert PROFILE in text
        assert "n = 500 test images" in text


def test_points_of_the_depth_figure_are_the_errors_of_result_json(runs):
    results = [result for result in collect(runs) if result.study == "residual_depth"]
    error_axes, loss_axes = plot_depth(results).axes[0]
    for line, family in zip(error_axes.lines, ("plain", "residual"), strict=True):
        rows = [row for row in runs if row.name in {f"{family}-{d}" for d in (8, 20, 44, 56)}]
        assert line.get_xdata().tolist() == [8, 20, 44, 56]
        assert line.get_ydata() == pytest.approx([result_of(row)["top1_error"] for row in rows])
    assert loss_axes.lines[1].get_ydata()[-1] == pytest.approx(0.008)


def test_figures_without_their_rows_are_notes_not_drawings(runs):
    figures = {figure.name: figure for figure in draw(collect(runs[:8]), PROFILE)}
    assert figures["depth"].svg
    for name in ("vgg_depth", "seeding"):
        assert figures[name].svg == ""
        assert "needs" in figures[name].note
    assert all(figure.note for figure in draw([], PROFILE))


def test_axes_say_that_they_are_logarithmic(runs):
    results = collect(runs)
    vgg = [result for result in results if result.study == "vgg_depth"]
    plotted = plot_depth(results), plot_vgg_depth(vgg), plot_curves(results), plot_seeding(vgg)
    logarithmic = 0
    for axes in (axes for canvas in plotted for axes in canvas.axes.flat):
        is_log = axes.get_yscale() == "log"
        assert axes.get_ylabel() == ("log scale" if is_log else "")
        logarithmic += is_log
    assert logarithmic >= 2


def test_titles_are_of_what_is_drawn(runs):
    for rows, family, absent in ((runs[:4], "plain", "residual"), (runs[4:8], "residual", "plain")):
        depth, _, curves, _ = draw(collect(rows), PROFILE)
        assert depth.title == f"What depth does to {family} nets"
        assert curves.title == f"How {family} nets train"
        for figure in (depth, curves):
            titles = [axes.get_title(loc="left") for axes in figure.canvas.axes.flat]
            assert absent not in " ".join([figure.canvas.caption, *titles]).lower()
    depth, vgg, curves, _ = draw(collect(runs), PROFILE)
    assert depth.title == "What depth does to plain and to residual nets"
    assert curves.title == "How plain and residual nets train"
    assert vgg.title.endswith("from scratch and seeded")
    scratch = [row for row in runs if row.study == "vgg_depth" and row.seed_from is None]
    assert draw(collect(scratch), PROFILE)[1].title == "What depth does to VGG, from scratch"


def test_labels_of_depths_do_not_touch(tmp_path):
    depths = (20, 32, 44, 56, 110, 1202)
    rows = [made(tmp_path, f"p{d}", f"cifar_plain:{d}", d, 0.1, 0.1) for d in depths]
    axes = plot_depth(collect(rows)).axes[0, 0]
    assert axes.get_xticks().tolist() == [20, 110, 1202]
    assert axes.lines[0].get_xdata().tolist() == list(depths)


def test_a_long_title_is_broken_and_its_figure_as_much_taller():
    def drawn(title):
        canvas = Canvas(1, width=4.5)
        svg = Figure("f", title, ["line"], canvas).svg
        return svg_text(svg), canvas.axes[0, 0].get_window_extent().height

    texts, height = drawn("short")
    assert texts[-2:] == ["short", "line"]
    words = "Confusion of the best head: stage3 of cifar_resnet-56-0123456789"
    texts, of_long = drawn(words)
    assert len(texts[-3]) < 45
    assert " ".join(texts[-3:-1]) == words
    assert of_long == pytest.approx(height)


def test_curves_are_thinned_by_means_that_keep_the_average():
    x, y = np.arange(1000.0), np.random.default_rng(0).random(1000)
    thin_x, thin_y = thin(x, y, points=50)
    assert len(thin_y) == 50
    assert thin_y.mean() == pytest.approx(y.mean())
    assert thin_x[0] == pytest.approx(9.5)
    # A rest of one in three is no point of its own, at which the curve would have a hook.
    assert thin(x[:7], y[:7], points=3)[1].tolist() == pytest.approx([y[:3].mean(), y[3:7].mean()])
    assert thin(x[:8], y[:8], points=3)[1][-1] == pytest.approx(y[6:8].mean())


def test_last_steps_that_are_few_make_no_hook(tmp_path):
    """The last line of a training of 296 steps, logged every 146, is of four."""
    folder = write_run(tmp_path / "run", "plain-8", 0, 8, 0.1, 0.3, epochs=2)
    lines = [
        {"step": 146, "train_loss": 2.0, "train_error": 80.0},
        {"step": 292, "train_loss": 1.0, "train_error": 40.0},
        {"step": 296, "train_loss": 5.0, "train_error": 99.0, "val_top1_error": 30.0},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"steps": 296, "epochs": 2}))
    row = Row("s", "plain-8", "cifar_plain:8", {0: folder}, None, "finished")
    run = collect([row])[0].runs[0]
    epochs, losses = run.curve("train_loss")
    assert epochs.tolist() == pytest.approx([2 * 146 / 296, 2.0])
    assert losses.tolist() == pytest.approx([2.0, (146 * 1.0 + 4 * 5.0) / 150])
    assert run.curve("train_error")[1][-1] == pytest.approx((146 * 40.0 + 4 * 99.0) / 150)
    assert run.curve("val_top1_error")[1].tolist() == [30.0]  # which is no mean over steps
    lines[2]["step"] = 292 + 73  # half a line is a point of its own
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert collect([row])[0].runs[0].curve("train_loss")[1].tolist() == [2.0, 1.0, 5.0]


def test_labels_are_moved_apart_and_keep_their_order():
    places = [0.5, 0.51, 0.1, 0.505]
    moved = spread(places, 0.05)
    assert np.argsort(moved).tolist() == np.argsort(places).tolist()
    assert np.diff(sorted(moved)).min() >= 0.05 - 1e-12
    assert moved[2] == 0.1


def test_labels_stay_in_their_panel():
    crowded = spread([1.2, 0.99, 0.98, 0.97, -0.5, 0.0], 0.2)
    assert crowded == pytest.approx([1, 0.8, 0.6, 0.4, 0, 0.2])
    assert spread([0.9, 1.0], 0.05) == pytest.approx([0.9, 1.0])
    assert spread([1.0, 1.0], 0.05) == pytest.approx([0.95, 1.0])


def panels_of(rows):
    """Each panel's extent and its labels', in pixels, of the figure of these rows against depth."""
    canvas = plot_depth(rows)
    head(canvas, "A title", ["A line"])
    canvas.figure.canvas.draw()
    return [
        (axes.get_window_extent(), [text.get_window_extent() for text in axes.texts])
        for axes in canvas.axes.flat
    ]


@pytest.mark.parametrize("rates", [5, 25, NETS + 10])
def test_a_row_for_each_of_many_rates_has_labels_that_do_not_touch(tmp_path, rates):
    rows = [
        made(tmp_path, f"{d} at {i}", f"cifar_resnet:{d}", d, 0.1 + 0.005 * i, 0.1 * (i + 1))
        for i, d in itertools.product(range(rates), (8, 20))
    ]
    results = collect(rows)
    for panel, labels in panels_of(results):
        assert len(labels) == min(rates, NETS)
        ends = sorted((label.y0, label.y1) for label in labels)
        assert all(below < above + 1 for (_, below), (above, _) in itertools.pairwise(ends))
        assert panel.y0 - 8 < ends[0][0]
        assert ends[-1][1] < panel.y1 + 8
    drawn = plot_depth(results)
    assert (f" Of {rates} lines {NETS} are drawn" in drawn.caption) == (rates > NETS)
    names = [name for *_, name, _ in drawn.end_labels]
    assert "residual, lr 0.3" in names or rates > NETS
    assert all(len(name) <= len("residual, lr 0.3") for name in names)


def names_of(rows):
    """The names of the series of rows with the names of the rows in each."""
    series = results_module.series(results_module.rows_of(collect(rows), "cifar_resnet"))
    return {name: [row.name for row in group] for name, group in series.items()}


def test_settings_of_one_last_part_are_told_in_full(tmp_path):
    rows = [
        made(
            tmp_path,
            f"{d}{a}{b}",
            f"cifar_resnet:{d}",
            d,
            0.1,
            0.1,
            data={"kind": a, "x": {"kind": b}},
        )
        for a, b, d in itertools.product("pq", "st", (8, 20))
    ]
    names = [f"data.kind {a}, data.x.kind {b}" for a, b in itertools.product("pq", "st")]
    assert list(names_of(rows)) == names


def test_a_fingerprint_names_a_series_only_where_nothing_else_does(tmp_path):
    rows = []
    for name, digest in (("mnist", "aa"), ("digits", "bb"), ("digits", "cc")):
        for d in (8, 20):
            data = {"name": name}
            rows.append(
                made(tmp_path, f"{d} {digest}", f"cifar_resnet:{d}", d, 0.1, 0.1, data=data)
            )
            file = rows[-1].runs[0] / "run.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"data": digest}))
    assert list(names_of(rows[:4])) == ["name mnist", "name digits"]
    assert list(names_of(rows)) == [
        "data aa, name mnist",
        "data bb, name digits",
        "data cc, name digits",
    ]


def test_a_series_has_each_depth_once(tmp_path):
    """Nets that differ only in their seed, or in what seeds them, are no line."""
    seeds = [
        made(tmp_path, f"{d} at {seed}", f"cifar_resnet:{d}", d, 0.1, 0.1, seed=seed)
        for d, seed in itertools.product((8, 20), (3, 4))
    ]
    assert names_of(seeds) == {"seed 3": ["8 at 3", "20 at 3"], "seed 4": ["8 at 4", "20 at 4"]}
    again = Row("made_up", "8 again", "cifar_resnet:8", seeds[0].runs, None, "finished")
    assert names_of([*seeds[::2], again]) == {"": ["8 at 3", "20 at 3"]}
    plain = [
        made(tmp_path, f"plain at {seed}", "cifar_plain:20", 20, 0.3, 0.1, seed=seed)
        for seed in (3, 4)
    ]
    all_findings = findings(collect([*seeds, *plain]))
    pairs = [
        (finding.figures["first"], finding.figures["second"])
        for finding in all_findings
        if finding.figures
    ]
    assert pairs == [("plain at 3", "20 at 3"), ("plain at 4", "20 at 4")]

    chains = [
        made(tmp_path, f"{v} from {source}", f"vgg:{v}", d, 0.1, 0.1, seeded=source)
        for v, d in (("B", 13), ("E", 19))
        for source in ("A", "A wide")
    ]
    seeded = results_module.rows_of(collect(chains), "vgg", seeded=True)
    named = {k: [r.name for r in group] for k, group in results_module.series(seeded).items()}
    assert named == {
        "from A": ["B from A", "E from A"],
        "from A wide": ["B from A wide", "E from A wide"],
    }


def test_labels_of_many_settings_make_their_figure_wider(tmp_path):
    def wide(notes):
        rows = [
            made(tmp_path / note, f"{d}", f"cifar_resnet:{d}", d, 0.1, 0.1, data={"note": note})
            for note, d in itertools.product(notes, (8, 20))
        ]
        results = collect(rows)
        panels = [panel for panel, _ in panels_of(results)]
        for panel, labels in panels_of(results):
            assert panel.width > 1.5 * plot_depth(results).figure.dpi
            right = [neighbour.x0 for neighbour in panels if neighbour.x0 > panel.x0]
            assert all(label.x1 < min(right, default=np.inf) for label in labels)
        canvas = plot_depth(results)
        head(canvas, "A title", ["A line"])
        return canvas.figure.get_size_inches()[0]

    assert wide(["a", "b"]) == 9
    assert wide(["c" * 70, "d" * 70]) > 9


@pytest.mark.parametrize("rates", [4, NETS + 5])
def test_seeded_nets_at_many_values_have_labels_that_do_not_touch(tmp_path, rates):
    rows = []
    for i in range(rates):
        name, rate = f"E, lr=0.00{i}, milestones=(0.5, 0.75)", 0.1 * (i + 1)
        rows.append(made(tmp_path, name, "vgg:E", 19, 0.1, rate))
        name = name.replace("E", "E from A")
        rows.append(made(tmp_path, name, "vgg:E", 19, 0.1 + 0.01 * i, rate, seeded="A"))
    canvas = plot_seeding(collect(rows))
    head(canvas, "A title", ["A line"])
    canvas.figure.canvas.draw()
    (axes,) = canvas.axes
    assert len(axes) == min(rates, NETS) + 1
    texts = [panel.get_title("left") for panel in axes[1:]]
    assert texts[0] == "1: E from A, lr=0.000,\nmilestones=(0.5, 0.75):\ntraining loss"
    titles = [panel._left_title.get_window_extent() for panel in axes[1:]]
    assert all(first.x1 < second.x0 for first, second in itertools.pairwise(titles))
    lowest_line = min(text.get_window_extent().y0 for text in canvas.figure.texts)
    assert max(title.y1 for title in titles) < lowest_line
    ticks = [label.get_window_extent() for label in axes[0].get_xticklabels()]
    assert all(first.x1 < second.x0 for first, second in itertools.pairwise(ticks))
    assert (f" Of {rates} nets {NETS} are drawn" in canvas.caption) == (rates > NETS)


def test_signs_of_formulas_are_drawn_as_they_are(tmp_path):
    rows = [
        made(tmp_path, f"{d} {note}", f"cifar_resnet:{d}", d, 0.1, 0.1, data={"note": note})
        for note, d in itertools.product(("$x$", "${"), (8, 20))
    ]
    drawn = [figure for figure in draw(collect(rows), "of $1 and $2") if figure.canvas]
    assert drawn
    for figure in drawn:
        assert "note $x$" in figure.svg
        assert "of $1 and $2" in figure.svg


def test_a_curve_of_one_point_is_seen(tmp_path):
    (row,) = collect([made(tmp_path, "8", "cifar_resnet:8", 8, 0.1, 0.1)])
    run = row.runs[0]
    assert {line.get_marker() for line in plot_curves([row]).axes[0, 0].lines} == {""}
    run.metrics[:] = [line for line in run.metrics if line["step"] == 20]
    lines = plot_curves([row]).axes[0, 0].lines
    assert [(len(line.get_xdata()), line.get_marker()) for line in lines] == [(1, ".")] * 2


def test_settings_that_differ_in_their_last_digits_keep_them(tmp_path):
    rows = [
        made(tmp_path, f"{d} at {i}", f"cifar_resnet:{d}", d, 0.1, 0.1 + 1e-9 * i)
        for i, d in itertools.product((1, 2), (8, 20))
    ]
    assert list(results_module.series(collect(rows))) == ["lr 0.100000001", "lr 0.100000002"]


def test_curve_of_a_step_logged_twice_has_one_value_and_epochs_by_step(runs):
    (result,) = collect(runs[:1])
    run = result.runs[0]
    epochs, values = run.curve("train_loss")
    assert epochs[-1] == 12
    assert (np.diff(epochs) > 0).all()
    assert len(values) == 48
    assert run.curve("val_top1_error")[0].tolist() == list(range(1, 13))


# ------------------------------------------------------------------------------- page

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags balance; keeps ids, references, and numbers with the link around them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.references, self.numbers = [], [], [], []
        self.link, self.around = None, []  # classes of the elements that are open
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag in ("table", "svg"):  # which may be wider than a phone
            assert self.around[-1] == "wide"
        if tag not in VOID:
            self.open.append(tag)
            self.around.append(dict(attrs).get("class", ""))
        self._note(tag, dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.around.pop()
        if tag == "a":
            self.link = None

    def _note(self, tag, attrs):
        if "id" in attrs:
            self.ids.append(attrs["id"])
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if name in attrs:
                self.references.append(attrs[name])
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(filter(None, attrs.values())))
        if tag == "a":
            self.link = attrs["href"]
        if tag == "data":
            self.numbers.append((float(attrs["value"]), self.link))
        assert tag not in {"script", "link", "iframe", "img"}
        assert not any(name.startswith("on") for name in attrs)


def test_page_has_the_table_before_prose_and_fits_a_phone(report):
    text = report["report"].read_text()
    places = [text.index(part) for part in ("<tbody>", 'class="note"', ">Findings<", "<figure>")]
    assert places == sorted(places)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert ".wide{overflow-x:auto}" in text
    (rule,) = re.findall(r"^figure svg{(.*)}$", text, re.MULTILINE)
    assert "width" not in rule  # on a screen a drawing has its own size, and so have its letters


def test_numbers_in_the_page_equal_result_json(report, runs):
    numbers = [value for value, _ in Page(report["report"].read_text()).numbers]
    expected = []
    for row in sorted(runs, key=lambda row: row.study):  # 'residual_depth', 'vgg_depth'
        if row.state != "finished":
            expected.append(0)  # seeds that have finished
            continue
        result = result_of(row)
        expected += [result["depth"], result["parameters"], result["macs"], 1, result["n"]]
        expected += [result["top1_error"], result["top5_error"], result["train_loss"]]
        expected += [result["images_per_s"], result["seconds"]]
    assert numbers == pytest.approx(expected)


def test_page_shows_config_versions_and_what_seeding_copied(report):
    text = report["report"].read_text()
    assert "seeding report: 1 copied, 2 fresh, 1 used, 1 left over" in text
    for fact in ("conv5_4/conv/kernel", "conv4_1/conv/kernel", "jax 0.10.2", "plain-56-0"):
        assert fact in text


def test_writing_the_report_again_gives_the_same_bytes_and_leaves_no_stale_figure(runs, tmp_path):
    first = {
        name: path.read_bytes() for name, path in write_report(collect(runs), tmp_path).items()
    }
    again = write_report(collect(runs), tmp_path)
    assert {name: path.read_bytes() for name, path in again.items()} == first
    write_report(collect(runs[:8]), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"depth.svg", "curves.svg"}
    assert not list(tmp_path.rglob("*.partial"))


def test_report_that_cannot_be_written_is_one_line(runs, tmp_path, monkeypatch):
    results = collect(runs)
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(ReportError, match=r"can't be written into .*reports/s \(Not a directory\)"):
        write_report(results, tmp_path / "reports" / "s")

    def full(source, target):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ReportError, match=r"\(Read-only file system\)") as raised:
        write_report(results, tmp_path / "other")
    assert raised.value.user_error
    assert "\n" not in str(raised.value)
    assert [path for path in (tmp_path / "other").rglob("*") if path.is_file()] == []
