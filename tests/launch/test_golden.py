"""What the verbs print and write, against copies that were kept: words and structure, no figures.

Two rows of a small study are trained for two steps, and every verb that says something about them
is called. Numbers, digests and folders are masked, as they depend on the machine and the day. Where
a change of an output is meant, write the copies anew and read their difference:

    python tests/launch/test_golden.py
"""

import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.runs.runs import versions
from launch import cli

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent / "golden"
STUDY = '''"""Two nets: a study of the tests."""
from experiments import config as configs

def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("cifar_resnet:8")
    config.model.width = 0.25
    config.data.update(name="npz", path="noise.npz", image_size=8, holdout=0.0)
    config.train.update(batch_size=8, steps=2)
    return config

def sweep():
    yield "plain", {"model.arch": "cifar_plain:8"}
    yield "residual", {}
'''
PROGRESS = re.compile(": (step #|test on)")  # lines that a slow machine has more of
FORMS = (".md", ".csv", ".json", ".html", ".tex")  # of a report


def outputs() -> Iterator[tuple[str, str]]:
    """(name, text) of every output, masked; called in an empty folder."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 20)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 5
    np.savez("noise.npz", **arrays)
    study, runs = Path("two.py"), Path("runs")
    study.write_text(STUDY)

    def call(name: str, *words: str) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(words))
        assert status == 0, (words, err.getvalue())
        return name, masked(out.getvalue())

    options = ("--runs", str(runs))
    yield call("sweep.txt", "sweep", str(study), *options, "--parallel", "1")
    yield call("sweep.json.txt", "sweep", str(study), *options, "--json")
    yield call("status.txt", "status", *options)
    yield call("status.json.txt", "status", *options, "--json")
    yield call("report.txt", "report", str(study), *options)
    yield call("evaluate.txt", "evaluate", "two/plain", *options, "--protocol", "ten_crop")
    yield call("evaluate.json.txt", "evaluate", "two/residual", *options, "--json")
    yield call("compare.json.txt", "compare", "two/plain", "two/residual", *options, "--json")
    yield call("cancel.json.txt", "cancel", "two/plain", *options, "--json")
    yield call("describe.json.txt", "describe", "cifar_resnet:8", "--json")
    yield call("list.txt", "list")
    yield call("list.json.txt", "list", "--json")
    small = ("--set", "data.name=npz", "--set", "data.path=noise.npz")
    small += ("--set", "train.steps=2", "--set", "model.width=0.25", *options)
    table = ("table", "resnet-6", "--rows", "ResNet-20", "ResNet-56", "--size", "16", *small)
    yield call("table.plan.txt", *table, "--plan", "--rate", "1T")
    yield call("table.txt", *table, "--parallel", "1")
    yield call("table.json.txt", *table, "--json")
    slurm = ("--backend", "slurm", "--dry-run", "--runs", "cluster")
    yield call(
        "slurm.txt", "sweep", str(study), *slurm, "--time", "1:00:00", "--gpus-per-node", "1"
    )
    for path in sorted((runs / "reports").rglob("*")):
        if path.suffix in FORMS:
            name = "reports." + ".".join(path.relative_to(runs / "reports").parts)
            yield masked(name).strip() + ".txt", masked(path.read_text())


def masked(text: str) -> str:
    """Without folders, digests, numbers, drawings, widths of columns, and lines that repeat."""
    text = text.replace(os.getcwd(), "FOLDER").replace(str(ROOT), "ROOT")
    text = re.sub(r"<svg.*?</svg>", "<svg/>", text, flags=re.DOTALL)
    text = re.sub(r"base64,[\w+/=]+", "base64", text)
    if commit := versions()["commit"]:  # its digest may hold no letter
        text = text.replace(commit, "DIGEST")
    text = re.sub(r"\b(?=\d*[a-f])[0-9a-f]{6,64}\b(-changed)?", "DIGEST", text)
    text = re.sub(r"\d+([.,:]\d+)*(e[+-]?\d+)?", "#", text)
    text = re.sub(r"[─━-]{2,}", "--", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if not PROGRESS.search(line)]
    return "".join(f"{line}\n" for line, _ in itertools.groupby(lines))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("COLUMNS", "100")
        patch.chdir(tmp_path_factory.mktemp("golden"))
        yield dict(outputs())


def test_outputs_are_those_that_were_kept(found):
    assert sorted(found) == sorted(path.name for path in GOLDEN.iterdir())
    for name, text in found.items():
        assert text == (GOLDEN / name).read_text(), name


if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "COLUMNS": "100"}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        kept = dict(outputs())
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.iterdir():
        old.unlink()
    for name, text in kept.items():
        (GOLDEN / name).write_text(text)
    sys.exit(0)
