"""`cnn-depth config`: files that train the same runs as the rows they were written from."""

import json
import shlex
from pathlib import Path

import pytest

from experiments import config as configs
from experiments.config import writing
from experiments.config.profiles import PROFILES
from launch.planning import graph

# One made-up data set for all: what real ones contain is no part of this test.
IMAGES = graph.Images(classes=10, channels=3, fingerprint="golden", train=50_000, test=10_000)
STUDIES = [*configs.names(), *(f"vgg:profile={profile}" for profile in PROFILES)]


def identities(spec: str, overrides=None) -> dict[str, str]:
    """Row -> identity of its run."""
    study = configs.read(spec)
    requested = {row.name: range(1) for row in study.rows}
    jobs = graph.jobs(study, requested, overrides or {}, Path(), find=lambda c: IMAGES, check=False)
    return {job.row: job.run.id for job in jobs.values()}


@pytest.mark.parametrize("spec", STUDIES)
def test_a_written_row_is_the_same_run(spec, tmp_path):
    study, expected = configs.read(spec), identities(spec)
    file = tmp_path / "written.py"
    for row in study.rows:
        chain = writing.resolved(study, row.name, {})
        for full in (False, True):
            file.write_text(writing.study_file(study, chain, "cnn-depth", file.name, full))
            ids = identities(str(file))
            assert list(ids.values()) == [expected[name] for name, _ in chain], row.name
            if row.seed_from is None:
                assert len(configs.read(str(file)).rows) == 1


def test_a_changed_row_is_written_with_its_changes_and_the_command(tmp_path, call):
    file = tmp_path / "my row.py"
    words = ("vgg_depth", "--row", "D seeded", "--set", "schedule.lr=0.005")
    words += ("--set", "seeding.classifier=fresh")
    assert call("config", *words[:-2], "--out", str(file)) == (0, "", "")
    changed = identities("vgg_depth", {"schedule.lr": "0.005"})
    assert identities(str(file)) == {name: changed[name] for name in ("A", "D seeded")}
    text = file.read_text()
    assert "config.schedule.lr = 0.005" in text
    assert "# The first rate after the warm-up.\n" in text
    assert f"cnn-depth train {shlex.quote(str(file))} --row 'D seeded'" in text
    assert "`cnn-depth config vgg_depth --row 'D seeded' --set=schedule.lr=0.005`" in text.replace(
        "\n", " "
    )
    status, out, _ = call("config", *words[:-4], "--set", "train.steps=7", "--json")
    answer = json.loads(out)
    assert (status, answer["row"], answer["seed_from"]) == (0, "D seeded", "A")
    assert answer["config"]["train.steps"] == 7
    assert "data.path" not in answer["config"]


def test_all_shows_every_key_that_can_be_set(call):
    _, out, _ = call("config", "lenet", "--all", "--json")
    study = configs.read("lenet").config
    assert set(json.loads(out)["config"]) == set(configs.flatten(study)) - set(
        writing.SET_BY_SEEDING
    )
    _, out, _ = call("config", "lenet", "--all")
    assert all(f"config.{key} = " in out for key in ("data.threads", "model.rubbish", "test.Q"))


def test_text_of_a_study_can_not_leave_its_quotes(tmp_path):
    file = tmp_path / "odd.py"
    text = "from experiments import config as configs\n"
    text += "def get_config(arg=None):\n    c = configs.base()\n"
    text += "    c.model = configs.model('lenet5')\n    c.data.path = 'a\"\\'\\\\b'\n    return c\n"
    text += 'def sweep():\n    yield \'a"""\\\\\', {}\n'
    file.write_text("'''An \"\"\" odd \\\\ one'''\n" + text)
    study = configs.read(str(file))
    chain = writing.resolved(study, 'a"""\\', {})
    (tmp_path / "written.py").write_text(writing.study_file(study, chain, 'a """', "x.py"))
    written = configs.read(str(tmp_path / "written.py"))
    assert written.config.data.path == "a\"'\\b"
    assert written.title.startswith('An """ odd \\ one')


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vgg_depth", "--row", "AA"], "unknown row of vgg_depth 'AA'; did you mean 'A'?"),
        (["vgg_depht"], "did you mean 'vgg_depth'?"),
        (["vgg_depth", "--set", "train.epoch=1"], "did you mean 'train.epochs'?"),
        (["vgg_depth", "--out", "here.py"], "here.py is there already"),
        (["vgg_depth", "--out", "here.txt"], "a study file's name ends in .py"),
        (["vgg_depth", "--out", "new.py", "--json"], "without --json"),
    ],
)
def test_what_can_not_be_written_is_one_message(words, told, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("here.py").write_text("")
    status, _, err = call("config", *words)
    assert status == 2
    assert told in err
    assert len(err.splitlines()) == 1
    assert Path("here.py").read_text() == ""
