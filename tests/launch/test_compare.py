"""`cnn-depth compare` on made-up run folders: figures from saved predictions alone."""

import json
import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, proportion

from experiments import config
from experiments.runs import runs
from experiments.runs.names import find_run
from experiments.statistics import bootstrap_difference
from experiments.testing import predictions, protocols
from experiments.testing.prediction_store import EvaluationSettings
from experiments.testing.predictions import Predictions
from input_pipeline import crops

N, CLASSES = 400, 8
CONFIG = config.base().to_dict()
LABELS = np.random.default_rng(7).integers(0, CLASSES, N).astype(np.int32)


def posteriors(seed, error):
    """Of which about `error` (0..1) are wrong at top-1."""
    rng = np.random.default_rng(seed)
    raw = rng.random((N, CLASSES))
    wrong = rng.random(N) < error
    target = np.where(wrong, (LABELS + rng.integers(1, CLASSES, N)) % CLASSES, LABELS)
    raw[np.arange(N), target] += 1.5
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


RULE = {"rounding": crops.ROUNDING}  # by which the tests' views were cut


def make_run(folder, name, seed, error, *, order=None, data="digits-1", rule=RULE):
    """A finished run's folder, with what its test left; returns which images are wrong."""
    run = runs.Run(folder / name)
    run.folder.mkdir(parents=True)
    content = {"id": name, "config": CONFIG, "data": data}
    runs.write_json(run.folder / "run.json", content)
    order = np.arange(N) if order is None else order
    probabilities = posteriors(seed, error)
    tested = Predictions(order.astype(np.int32), LABELS[order], probabilities[order])
    path = run.folder / "predictions" / "test-center.npz"
    predictions.save(path, tested, rule)
    best = np.argsort(-probabilities, axis=1)
    return {k: (best[:, :k] != LABELS[:, None]).all(axis=1) for k in (1, 5)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def compared(told, folder):
    return lambda *words: told("compare", *words, "--runs", folder)


@pytest.fixture
def shown(call, folder):
    """shown(words): standard output and errors."""
    return lambda *words: call("compare", *words, "--runs", folder)[1:]


@pytest.fixture
def error_of(call, folder):
    def error_of(*words):
        status, out, err = call("compare", *words, "--runs", folder)
        assert (status, out) == (2, "")
        assert err.startswith("cnn-depth: error: ")
        assert "Traceback" not in err
        return err

    return error_of


@pytest.mark.parametrize("top", [1, 5])
def test_figures_equal_statsmodels_on_the_same_images(folder, top, compared):
    shuffled = np.random.default_rng(3).permutation(N)
    first = make_run(folder, "plain-20-aa", 1, 0.4)[top]
    second = make_run(folder, "resnet-20-bb", 2, 0.25, order=shuffled)[top]
    answer = compared("plain", "resnet", "--top", str(top))
    assert answer["top"] == top
    for tested, wrong in zip(answer["tested"], (first, second), strict=True):
        assert (tested["n"], tested["errors_count"]) == (N, wrong.sum())
        assert tested["error"] == pytest.approx(100 * wrong.mean())
        interval = 100 * np.array(proportion.proportion_confint(wrong.sum(), N, method="wilson"))
        np.testing.assert_allclose((tested["low"], tested["high"]), interval)
    (test,) = answer["comparisons"]
    cells = [
        [(first & second).sum(), (first & ~second).sum()],
        [(~first & second).sum(), (~first & ~second).sum()],
    ]
    assert (test["only_first"], test["only_second"]) == (cells[0][1], cells[1][0])
    assert test["difference"] == pytest.approx(100 * (first.mean() - second.mean()))
    assert test["p_value"] == pytest.approx(contingency_tables.mcnemar(cells, exact=True).pvalue)
    assert (test["low"], test["high"]) == bootstrap_difference(first, second)
    assert test["low"] < test["difference"] < test["high"]


def test_every_further_run_is_compared_with_the_first(folder, compared):
    wrong = {
        name: make_run(folder, name, seed, error)[1]
        for seed, (name, error) in enumerate((("a", 0.3), ("b", 0.2), ("c", 0.5)))
    }
    answer = compared("b", "a", "c")
    assert [test["name"] for test in answer["tested"]] == ["b center", "a center", "c center"]
    pairs = [(test["first"], test["second"]) for test in answer["comparisons"]]
    assert pairs == [("b center", "a center"), ("b center", "c center")]
    for name, test in zip("ac", answer["comparisons"], strict=True):
        only = [int((wrong["b"] & ~wrong[name]).sum()), int((wrong[name] & ~wrong["b"]).sum())]
        assert [test["only_first"], test["only_second"]] == only
        assert test["p_value"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)


def test_table_holds_the_figures_and_says_what_they_are(folder, monkeypatch, compared, shown):
    for seed, name in enumerate(("plain-20-aa", "cifar_resnet-110-4fa04dd1a5")):
        make_run(folder, name, seed, 0.4 - 0.3 * seed)
    answer = compared("plain", "resnet")
    monkeypatch.setenv("COLUMNS", "80")
    text, _ = shown("plain", "resnet")
    assert all(len(line) <= 80 for line in text.splitlines())
    for tested in answer["tested"]:
        assert f" {tested['run']} " in text
        assert f"{tested['error']:.2f}" in text
        assert f"[{tested['low']:.2f}, {tested['high']:.2f}]" in text
    (test,) = answer["comparisons"]
    assert f"{test['difference']:+.2f}" in text
    assert f"[{test['low']:+.2f}, {test['high']:+.2f}]" in text
    assert f"{test['only_first']} / {test['only_second']}" in text
    assert f"{test['p_value']:.2g}" in text
    flat = " ".join(text.split())
    assert "400 images, the same for all. first: plain-20-aa center" in flat
    assert "McNemar" in flat


def test_runs_are_told_by_their_rows_and_seeds(folder, compared, shown):
    for name, row, seed in (("net-1", "lr=0.1", 0), ("net-2", "lr=0.1", 2), ("net-3", None, 0)):
        make_run(folder, name, seed, 0.2)
        record = json.loads((folder / name / "run.json").read_text())
        record |= {"study": "vgg_depth", "row": row, "seed": seed} if row else {}
        (folder / name / "run.json").write_text(json.dumps(record))
    tested = compared("net-1", "net-2", "net-3")["tested"]
    rows = ["vgg_depth/lr=0.1", "vgg_depth/lr=0.1 (seed 2)", "net-3"]
    assert [(entry["run"], entry["row"]) for entry in tested] == [
        *zip(("net-1", "net-2", "net-3"), rows, strict=True)
    ]
    text, _ = shown("net-1", "net-2", "net-3")
    assert all(row in text for row in rows)
    assert text.count("net-3") == 1


def test_one_run_is_compared_over_its_protocols(folder, compared):
    make_run(folder, "a", 1, 0.3)
    run, settings, tested = find_run("a", folder), EvaluationSettings(which="best"), {}
    for seed, (name, Q) in enumerate((p, Q) for p in ("center", "dense") for Q in ("32", "40")):
        (part,) = protocols.resolve(name, run.config(), Q)
        prediction = Predictions(np.arange(N), LABELS, posteriors(seed, 0.1 * seed))
        predictions.save(settings.file(run, part), prediction, RULE)
        tested.setdefault(name, []).append(predictions.load(settings.file(run, part)))
    words = ("a", "--protocol", "center,dense", "--scales", "32,40", "--which", "best")
    answer = compared(*words)
    names = ["a center 32,40 best", "a dense 32,40 best"]
    assert [tested["name"] for tested in answer["tested"]] == names
    both = [predictions.mean(tested[name]) for name in ("center", "dense")]
    counts = [int(prediction.topk_wrong().sum()) for prediction in both]
    assert [tested["errors_count"] for tested in answer["tested"]] == counts


def test_runs_of_other_data_are_compared_with_a_note(folder, shown):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3)
    make_run(folder, "c", 3, 0.3, data="npz-2")
    assert shown("a", "b")[1] == ""
    _, note = shown("a", "c")
    assert "a: digits-1, c: npz-2" in note


def test_same_predictions_differ_in_nothing(folder, compared, shown):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 1, 0.3)
    (test,) = compared("a", "b")["comparisons"]
    assert (test["difference"], test["p_value"]) == (0, 1)
    assert (test["low"], test["high"]) == (None, None)  # [0, 0] would say that none can differ
    assert re.search(r"0 / 0 .*p = 1\.000", shown("a", "b")[0], re.DOTALL)


# ----------------------------------------------------------------------------------- bad input


def test_tests_of_other_images_are_refused_and_both_named(folder, error_of):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3, order=np.arange(N - 3))
    error = error_of("a", "b")
    assert "b center and a center were not tested on the same images" in error
    path = folder / "b" / "predictions" / "test-center.npz"
    labels = (LABELS + 1) % CLASSES
    predictions.save(path, Predictions(np.arange(N), labels, posteriors(2, 0.3)), RULE)
    error = error_of("a", "b")
    assert "b center and a center" in error
    assert f"{N} of {N} labels differ" in error


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--protocol", "dense"], "--protocol dense"),
        (["--scales", "40,48"], "--protocol center --scales 40,48"),
        (["--which", "best"], "--protocol center --which best"),
        (["--flip"], "--protocol center --flip"),
    ],
)
def test_a_test_that_was_not_made_names_the_command_that_makes_it(folder, words, command, error_of):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3)
    error = error_of("a", "b", *words)
    assert f"cnn-depth evaluate {folder / 'a'} {command}\n" in error


def test_run_without_predictions_names_the_command_too(folder, error_of):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3)
    path = folder / "b" / "predictions" / "test-center.npz"
    path.write_bytes(b"PK\3\4 cut short")
    assert f"{path} can't be read" in error_of("a", "b")
    path.unlink()
    error = error_of("a", "b")
    assert f"cnn-depth evaluate {folder / 'b'} --protocol center\n" in error


def test_a_test_whose_views_were_cut_by_an_earlier_rule_is_not_compared(folder, error_of):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3, rule={})
    error = error_of("a", "b")
    assert "b was tested with views by an earlier rule" in error
    assert f"cnn-depth evaluate {folder / 'b'} --protocol center\n" in error


def test_too_few_and_repeated_tests_are_refused(folder, error_of):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3)
    assert "only a center is named; expected two" in error_of("a")
    assert "a center is named twice" in error_of("a", "b", str(folder / "a"))
    assert "no run" in error_of("a", "xyz")


def test_comparing_starts_no_device(folder, fresh_python):
    make_run(folder, "a", 1, 0.3)
    make_run(folder, "b", 2, 0.3)
    words = ("-m", "launch", "compare", "a", "b", "--runs", str(folder), "--json")
    process = fresh_python(*words, JAX_PLATFORMS="no_such_platform")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert json.loads(process.stdout)["comparisons"]
