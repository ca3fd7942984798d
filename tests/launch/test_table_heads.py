"""Heads on features that a table asks for: on which images, computed once, what is shown."""

import argparse
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from experiments import config as configs
from experiments import data as data_lib
from experiments import papers
from experiments.papers.heads import Head, Sets
from experiments.papers.measured import RowRuns, measure
from experiments.papers.table import Column, Net, Row, Table, Target, Transferred
from experiments.report import paper
from experiments.runs import runs
from experiments.training import train
from launch import devices
from launch.executors import heads
from launch.planning import table_plan
from launch.verbs import table as verb
from tests.made_up import noise

OWN, CALTECH, VOC = "own", "Caltech-101", "VOC-2007"
ON = {
    OWN: (Target("8,12", "concatenate", ("demo",), train_per_class=5, splits=3),),
    CALTECH: (
        Target(
            "8,12",
            "mean",
            place="101_ObjectCategories",
            name="Caltech-101",
            train_per_class=3,
            test_per_class=4,
            splits=2,
        ),
    ),
    VOC: (Target("8", "mean", place="VOCdevkit/VOC2007", name="VOC2007"),),
}
NETS = (Net("a", "dense"), Net("b", "dense"))
ROWS = (
    Row("a", {}, Transferred(NETS[:1], ON, "pool")),
    Row("a & b", {}, Transferred(NETS, ON, "pool")),
)
COLUMNS = (
    Column(VOC, "VOC, mean AP", "%", "ap"),
    Column(CALTECH, "Caltech, recall", "%", "recall"),
    Column(OWN, "others, recall", "%", "recall"),
)
TABLE = Table("test-11", "a table", "study", "data", COLUMNS, ROWS, crop=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Runs of two nets that learnt three of five classes of small images."""
    file = tmp_path_factory.mktemp("data") / "noise.npz"
    arrays = noise(100, 40, (8, 8, 3), 5)
    for part in ("train", "test"):  # the classes are told apart by colour, mostly
        labels = arrays[f"{part}_labels"]
        arrays[f"{part}_images"][np.arange(len(labels)), :, :, labels % 3] //= 2
    np.savez(file, **arrays)
    config = configs.base()
    config.model = configs.model("cifar_resnet:8", width=0.25)
    config.data.update(name="npz", path=str(file), image_size=8, classes=("0", "1", "2"))
    config.train.update(batch_size=8, steps=1)
    nets = []
    for seed in (0, 1):
        config.seed = seed
        opened = data_lib.open_data(config.data)
        run = runs.create(config, opened.fingerprint, folder, {"study": "t", "row": "r"})
        with run.lock():
            train.train(run, devices.mesh())
        nets.append(run)
    return nets


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of the papers' sets, in their layout: noise, some of it of one colour."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("sets")

    def write(file, colour):
        pixels = rng.integers(0, 100, (14, 12, 3), np.uint8)
        pixels[..., colour] += 90
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)

    for k, name in enumerate(("BACKGROUND_Google", "accordion", "bass")):
        for i in range(6 + k):
            write(root / "101_ObjectCategories" / name / f"image_{i:04}.jpg", k)
    year = root / "VOCdevkit" / "VOC2007"
    lists = year / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    classes = {"cow": (0, 1), "train": (1, 2)}  # the colours of images in which they are
    for part, ids in (("trainval", range(24)), ("test", range(24, 48))):
        for i in ids:
            write(year / "JPEGImages" / f"{i:06}.jpg", i % 3)
        for name, colours in classes.items():
            lines = [f"{i:06} {1 if i % 3 in colours else -1:2}\n" for i in ids]
            (lists / f"{name}_{part}.txt").write_text("".join(lines))
    return root


def shown(trained, sets, profile, row_runs=None):
    """The rows of the table by name."""
    both = {0: tuple((run,) for run in trained)}
    row_runs = row_runs or {"a": RowRuns({0: both[0][:1]}), "a & b": RowRuns(both)}
    return {row.row.name: row for row in measure(TABLE, profile, "", row_runs, sets).rows}


def learn(*needed):
    """Learns heads, unless a test before has."""
    assert not heads.run([head for head in needed if head.result() is None])


def of_row(sets, profile, trained):
    """The heads of both nets together, by column."""
    return sets.heads(ROWS[1].measured, profile, trained, 8)


def test_a_tables_head_is_that_of_transfer(trained, folder, call):
    before = shown(trained, Sets(), "demo")["a & b"]
    assert (before.state, before.reason, before.cells) == (
        "not measured",
        "others: its head is not learnt yet",
        {},
    )
    how = "--head svm --normalise l2 --combine concatenate --train-per-class 5 --splits 3"
    which = "--together --only 3,4 --layer pool --protocol dense --scales 8,12"
    words = [*how.split(), *which.split(), "--runs", folder, "--json"]
    status, out, err = call("transfer", *(run.folder for run in trained), *words)
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    counts = np.array([split["confusion"] for split in result["splits"]], float)
    recalls = 100 * (np.diagonal(counts, axis1=1, axis2=2) / counts.sum(axis=2)).mean(axis=1)
    row = shown(trained, Sets(), "demo")["a & b"]
    cell = row.cells[OWN]
    assert (row.state, row.reason) == ("measured", "")
    assert cell.value == pytest.approx(recalls.mean())
    assert cell.deviation == pytest.approx(recalls.std(ddof=1))
    low, high = stats.t.interval(0.95, 2, recalls.mean(), stats.sem(recalls))
    assert (cell.low, cell.high) == pytest.approx((max(low, 0), min(high, 100)))
    assert (cell.seeds, cell.n) == (1, 16)
    assert row.tested == "pool, dense at 8,12 side by side"


def test_heads_are_computed_in_a_process_and_features_once(trained):
    together = of_row(Sets(), "demo", trained)[OWN]
    learn(together)
    alone = replace(together, runs=together.runs[:1])
    too_few = replace(alone, how=replace(alone.how, train_per_class=1000))
    features = {
        p: p.stat().st_mtime_ns for run in trained for p in run.folder.glob("features/*.npy")
    }
    assert len(features) == 4
    assert alone.result() is None
    errors = heads.run([too_few, alone])
    assert list(errors) == [too_few]  # the next one is not kept from its turn
    assert "has 20 images; expected" in errors[too_few]
    assert {p: p.stat().st_mtime_ns for p in features} == features
    assert alone.result()["run"] == trained[0].id
    rows = shown(trained, Sets(), "demo")
    assert {row.state for row in rows.values()} == {"measured"}
    assert rows["a"].costs["depth"] == 8
    assert rows["a & b"].costs == {}


def test_a_process_that_ends_is_told(trained, monkeypatch):
    head = of_row(Sets(), "demo", trained)[OWN]
    monkeypatch.setattr(devices, "PYTHON", ("/bin/sh", "-c", "exit 3"))
    assert heads.run([head]) == {head: "its process ended with exit status 3"}


def test_several_seeds_are_averaged_over_their_splits(trained):
    seeds = {"a": RowRuns({s: ((run,),) for s, run in enumerate(trained)}), "a & b": RowRuns()}
    head = replace(of_row(Sets(), "demo", trained)[OWN], runs=(trained[1],))
    learn(replace(head, runs=(trained[0],)), head)
    row = shown(trained, Sets(), "demo", seeds)["a"]
    means = []
    for run in trained:
        result = replace(head, runs=(run,)).result()
        means.append(np.mean([split["mean_class_recall"] for split in result["splits"]]))
    cell = row.cells[OWN]
    assert (cell.seeds, cell.value) == (2, pytest.approx(np.mean(means)))
    assert cell.deviation == pytest.approx(np.std(means, ddof=1))


def test_sets_that_are_not_there_leave_their_cells_blank(trained, tmp_path, sets):
    row = shown(trained, Sets(), "paper")["a"]
    expected = "Caltech, VOC: --sets says where the images are"
    assert (row.state, row.reason) == ("not measured", expected)
    row = shown(trained, Sets(tmp_path), "paper")["a"]
    assert f"{tmp_path / '101_ObjectCategories'} is not there" in row.reason
    for part in ("train", "val"):
        shutil.copytree(sets / "101_ObjectCategories", tmp_path / "101_ObjectCategories" / part)
    row = shown(trained, Sets(tmp_path), "paper")["a"]
    assert "expected Caltech-101 as it is given out" in row.reason


def test_the_papers_sets_are_measured_and_known_again_without_them(trained, sets, tmp_path):
    by_column = of_row(Sets(sets), "paper", trained)
    assert [key for key, head in by_column.items() if isinstance(head, Head)] == [CALTECH, VOC]
    assert not heads.run(list(by_column.values()))
    row = shown(trained, Sets(sets), "paper")["a & b"]
    assert (row.state, row.reason) == ("measured", "")
    voc, caltech = row.cells[VOC], row.cells[CALTECH]
    assert (voc.n, voc.low, voc.interval, voc.deviation) == (24, None, "", None)
    splits = by_column[CALTECH].result()["splits"]
    assert [(s["train"], s["test"]) for s in splits] == [(9, 11)] * 2  # 3, 4 and 4 of 6, 7 and 8
    assert (caltech.n, caltech.deviation is not None) == (11, True)
    assert shown(trained, Sets(), "paper")["a & b"].cells == row.cells
    # Other images of the same name: which of them are meant, only --sets says.
    shutil.copytree(sets, tmp_path / "sets")
    (tmp_path / "sets/101_ObjectCategories/bass/image_0000.jpg").unlink()
    changed = of_row(Sets(tmp_path / "sets"), "paper", trained)[CALTECH]
    assert not heads.run([changed])
    assert set(shown(trained, Sets(), "paper")["a & b"].cells) == {VOC}
    assert shown(trained, Sets(sets), "paper")["a & b"].cells == row.cells
    row = shown(trained, Sets(tmp_path / "sets"), "paper")["a & b"]
    assert (row.state, row.cells[VOC]) == ("measured", voc)  # VOC is the same, copied


def test_columns_of_other_profiles_are_printed_only(trained, sets):
    own = of_row(Sets(), "demo", trained)[OWN]
    learn(own, replace(own, runs=own.runs[:1]))
    both = {0: tuple((run,) for run in trained)}
    row_runs = {"a": RowRuns({0: both[0][:1]}), "a & b": RowRuns(both)}
    printed = replace(ROWS[0], printed={VOC: papers.tables()["vgg-12"].rows[0].printed["ap"]})
    table = replace(TABLE, rows=(printed, ROWS[1]))
    demo, full = (
        measure(table, profile, "", row_runs, Sets(sets)) for profile in ("demo", "paper")
    )
    assert [(c.key, c.what) for c in demo.table.columns] == [(VOC, ""), (OWN, "recall")]
    assert [(c.key, c.what) for c in full.table.columns] == [(VOC, "ap"), (CALTECH, "recall")]
    text = " ".join(paper.table(demo).legend)
    assert "± is the sample deviation over random splits." in text
    assert "95% t-interval of the mean over random splits" in text


@pytest.mark.parametrize("learnt", [(), ("0", "1", "2", "3")])
def test_nets_that_learnt_the_classes_have_none_to_tell_apart(trained, learnt, tmp_path):
    config = trained[0].config()
    config.data.classes = learnt
    run = runs.create(config, "", tmp_path, {"study": "t", "row": "r"})
    (why,) = of_row(Sets(), "demo", [run]).values()
    assert "data.classes has to leave two at least" in why


# ------------------------------------------------------------------------------- planning


def planned(tmp_path, *words, name="vgg-11"):
    """The tables of a paper, or one, as they are planned."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    args = parser.parse_args([name, *map(str, words), "--runs", str(tmp_path)])
    return table_plan.plan(papers.named([name]), [], args, tmp_path)


def test_nets_learn_the_first_four_fifths_of_a_folders_classes(tmp_path):
    def photographs(classes):
        for name in classes:
            for part, n in (("train", 20), ("val", 2)):
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                for i in range(n):
                    Image.new("RGB", (70, 70)).save(tmp_path / part / name / f"{i}.png")
        return ("--profile", "folder", "--set", f"data.path={tmp_path}")

    words = photographs("abc")
    few = r"has 3 classes; .*expected four at least"
    with pytest.raises(configs.ConfigError, match=few):
        planned(tmp_path, *words)
    plans = planned(tmp_path, *words, name="vgg")  # the others are not kept from it
    requests = {row.request for plan in plans for row in plan.rows if plan.table.name == "vgg-11"}
    assert any(re.search(few, request) for request in requests)
    assert sum(row.selected for plan in plans for row in plan.rows) > 10
    words = photographs("defghijkl")
    (plan,) = planned(tmp_path, *words)
    learnt = {job.config.data.classes for row in plan.rows for job in row.jobs}
    assert learnt == {tuple("abcdefghi")}
    (plan,) = planned(tmp_path, *words, "--set", "data.classes=b,c")
    learnt = {job.config.data.classes for row in plan.rows for job in row.jobs}
    assert learnt == {("b", "c")}


@pytest.mark.parametrize(("classes", "learnt"), [(7, 5), (10, 8)])
def test_other_images_of_a_profile_have_classes_of_their_own(tmp_path, classes, learnt):
    np.savez(tmp_path / "noise.npz", **noise(80, 20, (8, 8), classes))
    words = ("--set", "data.name=npz", "--set", f"data.path={tmp_path / 'noise.npz'}")
    (plan,) = planned(tmp_path, *words, "--set", "train.steps=2")
    for job in (job for row in plan.rows for job in row.jobs):
        assert job.config.data.classes == tuple(map(str, range(learnt)))


def test_the_paper_takes_vggs_own_nets(tmp_path):
    """In its own profile: the runs of table 4 serve, as their ids say."""
    words = ("--profile", "paper", "--plan")
    (eleven,), (four,) = (planned(tmp_path, *words, name=name) for name in ("vgg-11", "vgg-4"))
    jobs = {job.run.id: job for row in four.rows for job in row.jobs}
    for row in eleven.rows:
        assert all(job.run.id in jobs and job.study == "vgg" for job in row.jobs)
    assert sorted(j.row for j in eleven.rows[-1].jobs) == ["D [256;512]", "E [256;512]"]
    assert eleven.assumed == {"ILSVRC-2012"}


def test_a_cluster_leaves_the_heads_to_the_next_command(tmp_path, call):
    words = ("--backend", "slurm", "--dry-run", "--runs", tmp_path)
    status, out, _ = call("table", "vgg-11", *words)
    assert status == 0
    assert "vgg-11: features, and the heads on them, are computed here" in " ".join(out.split())
    status, out, _ = call("table", "vgg-3", *words)
    assert "features" not in out
