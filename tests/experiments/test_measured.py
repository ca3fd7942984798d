"""What is made of a table's runs, on runs with made-up posteriors."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from experiments import config as configs
from experiments.papers import measured
from experiments.papers.measured import RowRuns
from experiments.papers.table import (
    TOP1,
    TOP5,
    AfterEpochs,
    Column,
    Count,
    Difference,
    EpochsRatio,
    Error,
    Net,
    Printed,
    Row,
    Table,
)
from experiments.runs import runs
from experiments.statistics import error_rate, mcnemar
from experiments.testing import predictions
from experiments.testing.predictions import Predictions
from input_pipeline import crops

N, CLASSES = 200, 10
LABELS = np.random.default_rng(7).integers(0, CLASSES, N).astype(np.int32)


@pytest.fixture
def make(tmp_path):
    """make(name, error, seed): a finished run whose posteriors err about so often."""

    def finished_run(name, error, seed=0, curve=()):
        rng = np.random.default_rng([len(name), seed, round(1000 * error)])
        posteriors = rng.random((N, CLASSES))
        guess = np.where(rng.random(N) < error, (LABELS + 1) % CLASSES, LABELS)
        posteriors[np.arange(N), guess] += 1
        posteriors = (posteriors / posteriors.sum(1, keepdims=True)).astype(np.float32)
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        config = configs.base()
        config.model = configs.model("cifar_resnet:20")
        runs.write_json(folder / "run.json", {"config": config.to_dict(), "seed": seed})
        order = rng.permutation(N)  # a test's images come in any order
        tested = Predictions(order.astype(np.int32), LABELS[order], posteriors[order])
        about = {"rounding": crops.ROUNDING}
        predictions.save(folder / "predictions" / "test-center.npz", tested, about)
        wrong = int(tested.topk_wrong(1).sum())
        result = {"n": N, "top1_errors_count": wrong, "steps": 100, "epochs": 10.0}
        result["top1_error"] = 100 * wrong / N
        result |= {"train_loss": 0.1, "depth": 20, "parameters": 272474, "macs": 1000}
        runs.write_json(folder / "result.json", result)
        lines = [{"step": 10 * i, "train_error": e} for i, e in enumerate(curve, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return runs.Run(folder), posteriors

    return finished_run


def table(rows, *columns):
    return Table("test-1", "a table", "study", "data", columns or (TOP1, TOP5), tuple(rows))


def number(value):
    return Printed(str(value), value)


def percent_wrong(posteriors):
    return 100 * (1 - accuracy_score(LABELS, posteriors.argmax(1)))


def test_several_nets_and_members_are_averaged_before_they_are_judged(make):
    pairs = [make(name, 0.3, seed) for name in ("a", "bb") for seed in (0, 1)]
    row = Row("all", {"top1": number(10.0)}, Error((Net("a", members=2), Net("bb", members=2))))
    (a0, p0), (a1, p1), (b0, p2), (b1, p3) = pairs
    row_runs = {"all": RowRuns({0: ((a0, a1), (b0, b1))})}
    (result,) = measured.measure(table([row]), "demo", "digits", row_runs).rows
    expected = percent_wrong(np.mean([p0, p1, p2, p3], axis=0))
    assert result.cells["top1"].value == pytest.approx(expected)
    assert result.cells["top1"].n == N
    assert not result.costs  # of several nets
    assert [run.folder.name for run in result.runs] == ["a-0", "a-1", "bb-0", "bb-1"]


def test_seeds_give_mean_deviation_and_students_interval(make):
    pairs = [make("a", 0.2, seed) for seed in range(4)]
    row = Row("a", {"top1": number(6.61)}, Error((Net("a"),)))
    row_runs = {"a": RowRuns({seed: ((run,),) for seed, (run, _) in enumerate(pairs)})}
    (result,) = measured.measure(table([row]), "demo", "digits", row_runs).rows
    errors = [percent_wrong(posteriors) for _, posteriors in pairs]
    cell = result.cells["top1"]
    assert cell.value == pytest.approx(np.mean(errors))
    assert cell.deviation == pytest.approx(np.std(errors, ddof=1))
    low, high = stats.t.interval(0.95, 3, np.mean(errors), stats.sem(errors))
    assert (cell.low, cell.high) == pytest.approx((low, high))


def test_seeds_with_the_same_errors_have_no_interval(make):
    """As if all seeds had found the same nets: what others would find is not known."""
    (first, p1), (second, p2) = make("a", 0.4), make("bb", 0.2)
    column = Column("difference", "less", "points", "top1")
    rows = [
        Row("a", {}, Error((Net("a"),))),
        Row("d", {"difference": number(2.0)}, Difference(Net("a"), Net("bb"))),
    ]
    row_runs = {
        "a": RowRuns(dict.fromkeys(range(3), ((first,),))),
        "d": RowRuns(dict.fromkeys(range(3), ((first,), (second,)))),
    }
    results = measured.measure(table(rows, TOP1, column), "demo", "", row_runs).rows
    cells = [results[0].cells["top1"], results[1].cells["difference"]]
    expected = [percent_wrong(p1), percent_wrong(p1) - percent_wrong(p2)]
    assert [cell.value for cell in cells] == pytest.approx(expected)
    for cell in cells:
        assert (cell.low, cell.high, cell.interval, cell.seeds) == (None, None, "", 3)
        assert cell.deviation == pytest.approx(0, abs=1e-12)


def test_missing_seeds_are_said_and_missing_runs_leave_blanks(make, tmp_path):
    run, _ = make("a", 0.2)
    gone = runs.Run(tmp_path / "gone")
    rows = [Row(name, {}, Error((Net(name),))) for name in ("some", "none")]
    row_runs = {"some": RowRuns({0: ((run,),), 1: ((gone,),)}), "none": RowRuns({0: ((gone,),)})}
    some, none = measured.measure(table(rows), "demo", "digits", row_runs).rows
    assert some.state == "partly"
    assert "1 of 2 seeds" in some.reason
    assert none.state == "not run"
    assert none.cells == {}


def test_untested_protocol_is_not_measured(make):
    run, _ = make("a", 0.2)
    row = Row("a", {}, Error((Net("a", "multi_crop", "224"),)))
    (result,) = measured.measure(table([row]), "demo", "", {"a": RowRuns({0: ((run,),)})}).rows
    assert (result.state, result.cells) == ("not run", {})
    assert "multi_crop-Q32" in result.reason


def test_difference_is_paired_by_image(make):
    (first, p1), (second, p2) = make("a", 0.4), make("bb", 0.2)
    column = Column("difference", "less", "points", "top1")
    row = Row("d", {"difference": number(2.0)}, Difference(Net("a"), Net("bb")))
    row_runs = {"d": RowRuns({0: ((first,), (second,))})}
    (result,) = measured.measure(table([row], column), "demo", "", row_runs).rows
    cell = result.cells["difference"]
    assert cell.value == pytest.approx(percent_wrong(p1) - percent_wrong(p2))
    test = mcnemar(p1.argmax(1) != LABELS, p2.argmax(1) != LABELS)
    assert (cell.low, cell.high) == pytest.approx((test.low, test.high))


def test_fewest_epochs_to_an_error_are_compared(make):
    """Of each kind's rates the one that gets there first; one may diverge, or never get there."""
    slow, _ = make("a", 0.2, curve=(80, 70, 60, 50, 40, 24, 20))
    slower, _ = make("aa", 0.2, curve=(80, 70, 60, 50, 40, 30, 20))
    fast, _ = make("bb", 0.2, curve=(60, 20, 10))
    stuck, _ = make("b", 0.2, curve=(90, 90, 90))
    gone, _ = make("bbb", 0.2)
    (gone.folder / "result.json").unlink()
    column = Column("ratio", "times", "times", "")
    nets = (Net("a"), Net("aa")), (Net("b"), Net("bb"), Net("bbb"))
    rows = [
        Row("r", {"ratio": number(6.0)}, EpochsRatio(*nets, 25.0)),
        Row("never", {}, EpochsRatio(*nets, 5.0)),
    ]
    runs_of = {0: ((slow,), (slower,), (stuck,), (fast,), (gone,))}
    row_runs = {name: RowRuns(runs_of) for name in ("r", "never")}
    results = measured.measure(table(rows, column), "demo", "", row_runs).rows
    assert [row.state for row in results] == ["not run", "not run"]
    runs.write_json(gone.folder / "failed.json", {"reason": "NaN", "kind": "diverged"})
    ratio, never = measured.measure(table(rows, column), "demo", "", row_runs).rows
    assert ratio.state == "measured"
    assert ratio.cells["ratio"].value == pytest.approx(6 / 2)
    assert (
        ratio.tested
        == "epochs to a training error below 25%: a 6, bb 2; not finished: bbb (diverged)"
    )
    assert never.cells == {}
    assert "5%" in never.reason
    assert ": never;" in never.tested


@pytest.mark.parametrize(
    ("epochs", "error", "ended"),
    [
        pytest.param(3.0, 26.0, True, id="as many epochs as another, and not there"),
        pytest.param(2.9, 26.0, False, id="fewer epochs than another"),
        pytest.param(4.0, 24.0, False, id="there, and not stopped"),
    ],
)
def test_trainings_that_another_has_outrun_need_not_be_finished(make, epochs, error, ended):
    slow, _ = make("a", 0.2, curve=(80, 70, 60, 50, 40, 24, 20))
    fast, _ = make("bb", 0.2, curve=(80, 60, 20, 10))
    slower, _ = make("b", 0.2)
    (slower.folder / "result.json").unlink()
    lines = [{"step": 1, "epoch": 1.0, "train_error": 80.0, "train_loss": 1.0}]
    lines.append({"step": 2, "epoch": epochs, "train_error": error, "train_loss": 1.0})
    lines.append({"step": 2, "epoch": epochs, "test_top1_error": 10.0})
    slower.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    measures = EpochsRatio((Net("a"),), (Net("b"), Net("bb")), 25.0)
    row = Row("r", {"ratio": number(6.0)}, measures)
    nets = ((slow,), (slower,), (fast,))
    assert measured.outrun(measures, nets) == ({slower.id: epochs} if ended else {})
    (result,) = measured.measure(
        table([row], Column("ratio", "times", "times", "")), "demo", "", {"r": RowRuns({0: nets})}
    ).rows
    if ended:
        assert result.cells["ratio"].value == pytest.approx(6 / 3)
        assert result.tested.endswith("a 6, bb 3; not finished: b (3 epochs)")
    else:
        assert (result.state, result.cells) == ("not run", {})
        assert f"{slower.id} is not trained" in result.reason
    kept = slower.metrics.rename(slower.folder / "kept")
    slower.metrics.mkdir()  # can't be read
    assert measured.outrun(measures, nets) == {}
    slower.metrics.rmdir()
    kept.rename(slower.metrics)
    (fast.folder / "result.json").write_text("{")  # cut
    assert measured.outrun(measures, nets) == {}


def test_errors_after_some_epochs_are_those_that_the_training_logged(make):
    runs_made = []
    for seed, (train_error, test_error) in enumerate(((2.5, 4.0), (1.5, 3.0))):
        run, _ = make("a", 0.2, seed)
        result = run.read("result") | {"train_tested": 1000}
        runs.write_json(run.folder / "result.json", result)
        lines = [  # of 100 steps in 10 epochs
            {"step": 10, "test_top1_error": 50.0, "seen_top1_error": 60.0},
            # Two steps beside the end of the fifth epoch, as after whole steps.
            {"step": 48 + 4 * seed, "test_top1_error": test_error, "seen_top1_error": train_error},
        ]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs_made.append(run)
    columns = (
        Column("train", "training error", "%", "seen"),
        Column("test", "test error", "%", "test"),
    )
    rows = [Row(f"{n}", {"test": number(3.5)}, AfterEpochs(Net("a"), n)) for n in (1.0, 5.0, 7.0)]
    row_runs = {row.name: RowRuns({0: ((runs_made[0],),)}) for row in rows}
    first, fifth, seventh = measured.measure(table(rows, *columns), "demo", "", row_runs).rows
    assert (first.cells["train"].value, first.cells["test"].value) == (60.0, 50.0)
    assert (fifth.cells["train"].value, fifth.cells["train"].n) == (2.5, 1000)
    assert (fifth.cells["test"].value, fifth.cells["test"].n) == (4.0, N)
    assert fifth.cells["test"].low == pytest.approx(error_rate(8, N).low)
    assert seventh.cells == {}
    assert "logged no" in seventh.reason
    both = {"5.0": RowRuns({seed: ((run,),) for seed, run in enumerate(runs_made)})}
    (row,) = measured.measure(table(rows[1:2], *columns), "demo", "", both).rows
    assert (row.cells["train"].value, row.cells["test"].value) == (2.0, 3.5)
    assert row.cells["test"].seeds == 2


def test_counts_need_no_run():
    columns = (Column("params", "p", "M", "params"), Column("macs", "m", "G", "macs"))
    row = Row("E", {"params": number(144.0)}, Count("vgg:E"))
    (result,) = measured.measure(table([row], *columns), "demo", "", {"E": RowRuns()}).rows
    assert result.cells["params"].value == pytest.approx(143.667240)
    assert result.cells["macs"].value == pytest.approx(19.632062464)


def test_agreement_is_over_rows_with_both_figures(make):
    rows, row_runs, errors = [], {}, []
    printed = (10.0, 20.0, 30.0, 15.0)
    for i, (value, error) in enumerate(zip(printed, (0.1, 0.3, 0.2, 0.5), strict=True)):
        run, posteriors = make("a" * (i + 1), error)
        rows.append(Row(f"r{i}", {"top1": number(value)}, Error((Net("a"),))))
        row_runs[f"r{i}"] = RowRuns({0: ((run,),)})
        errors.append(percent_wrong(posteriors))
    rows.append(Row("others", {"top1": number(1.0)}))
    row_runs["others"] = RowRuns(state="printed only")
    result = measured.measure(table(rows), "demo", "", row_runs)
    assert set(result.agreement) == {"top1"}
    assert result.agreement["top1"].rows == 4
    expected = stats.kendalltau(printed, errors).statistic
    assert result.agreement["top1"].tau == pytest.approx(expected)


def test_overlap_is_one_for_the_same_posteriors(make):
    rows, row_runs, posteriors = [], {}, []
    for name in ("a", "bb"):
        run, p = make(name, 0.4)
        rows.append(Row(name, {}, Error((Net(name),))))
        row_runs[name] = RowRuns({0: ((run,),)})
        posteriors.append(p)
    compared = [r.compared for r in measured.measure(table(rows), "demo", "", row_runs).rows]
    assert [ids.tolist() for ids, _ in compared] == [list(range(N))] * 2
    overlaps = measured.overlap([p for _, p in compared])
    assert np.diag(overlaps) == pytest.approx(1)
    expected = np.minimum(*posteriors).sum(axis=1).mean()
    assert overlaps[0, 1] == pytest.approx(expected, abs=1e-3)
    assert overlaps[0, 1] == overlaps[1, 0]


def test_scales_keep_their_ratio_to_the_crop():
    assert measured.scales_here(Net("a", scales="256,384,512"), 32, 224) == "37,55,73"
    assert measured.scales_here(Net("a", scales="resnet"), 32, 224) == "resnet"
    assert measured.scales_here(Net("a"), 32, 224) is None
    assert measured.scales_here(Net("a", scales="224,225"), 16, 224) == "16"
