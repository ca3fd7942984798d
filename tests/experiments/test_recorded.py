"""What is recorded with the project: how it gets there, and that docs/results.md says the same.

`python tests/experiments/test_recorded.py` writes that part of the page anew.
"""

import json
import re
from pathlib import Path

import pytest

from experiments import papers, recorded
from experiments.papers.table import AfterEpochs
from experiments.runs import runs
from launch import cli

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
BETWEEN = re.compile(r"(<!-- recorded -->\n).*?(<!-- /recorded -->)", re.DOTALL)


def gallery() -> str:
    """What is recorded, as Markdown of docs/results.md; of curves, the points that are printed."""
    tables = papers.tables()
    lines = ["| table | row | profile | printed | recorded | seeds | epochs, batch |"]
    lines.append("|---|---|---|---:|---:|---:|---|")
    for name in sorted(recorded.names(), key=list(tables).index):
        table = tables[name]
        printed = {row.name: row.printed for row in table.rows}
        points = {row.name for row in table.rows if isinstance(row.measured, AfterEpochs)}
        for row, profiles in recorded.read(name).items():
            for profile, record in profiles.items():
                for column in table.columns:
                    cell = record["cells"].get(column.key)
                    paper = printed[row].get(column.key)
                    if cell is None or (row in points and paper is None):
                        continue
                    batch = record["runs"][0]["config"]["train.batch_size"]
                    length = f"{recorded.lengths(record['runs'])}, {batch}"
                    figures = (
                        f"{paper.text if paper else ''} | {recorded.text(cell)} | {cell['seeds']}"
                    )
                    label = f"{row}, {column.header} | {profile}"
                    lines.append(f"| {name} | {label} | {figures} | {length} |")
    return "\n".join(lines)


def test_page_of_results_shows_what_is_recorded():
    match = BETWEEN.search(PAGE.read_text("utf-8"))
    assert match is not None
    section = match.group(0).removeprefix(match.group(1)).removesuffix(match.group(2))
    assert section == gallery() + "\n"


@pytest.mark.parametrize("name", recorded.names())
def test_records_are_of_rows_that_are_there_and_agree_with_themselves(name):
    table = papers.tables()[name]
    rows = {row.name for row in table.rows if row.measured is not None}
    columns = {column.key: column for column in table.columns}
    for row, profiles in recorded.read(name).items():
        assert row in rows
        assert set(profiles) <= set(recorded.PROFILES)
    for record in (
        record for profiles in recorded.read(name).values() for record in profiles.values()
    ):
        assert record["cells"].keys() <= columns.keys()
        for key, cell in record["cells"].items():
            assert cell["seeds"] == len({run["seed"] for run in record["runs"]})
            if len({run["row"] for run in record["runs"]}) == 1:  # not of nets that are compared
                assert cell["seeds"] == len(record["runs"])
            if columns[key].what == "top1":
                errors = [run["result"]["top1_errors_count"] for run in record["runs"]]
                mean = 100 * sum(errors) / len(errors) / cell["n"]
                assert cell["value"] == pytest.approx(mean)
        for run in record["runs"]:
            assert run["starts"][0]["versions"]["commit"]
            assert not any(s["versions"]["commit"].endswith("-changed") for s in run["starts"])
            assert all(len(curve) <= recorded.POINTS for curve in run["curves"].values())
            assert "data.path" not in run["config"]


@pytest.mark.parametrize(
    ("epochs", "text"),
    [((20, 20), "20"), ((163.84,), "163.8"), ((16.07424, 5.09184, 6.1), "5.092 to 16.07")],
)
def test_lengths_of_recorded_runs(epochs, text):
    assert recorded.lengths([{"result": {"epochs": length}} for length in epochs]) == text


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The arguments of a table of one row that was run; a folder for records of its own.

    What is recorded are recipes as they ship, which take hours: the profile and the length are let
    through here.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.verbs.table._check_record", lambda args: None)
    monkeypatch.setattr(recorded, "PROFILES", ("demo",))
    monkeypatch.setattr(recorded, "FOLDER", tmp_path / "records")
    words = ("table", "resnet-6", "--rows", "ResNet-20", "--set", "train.steps=3")
    words += ("--set", "train.epochs=0.1", "--set", "model.width=0.25")
    assert cli.main(words) == 0
    return words


def test_a_finished_row_is_recorded_and_printed_at_once(demo, capsys):
    (report,) = Path("runs/reports").glob("resnet-demo*/resnet-6.json")
    own = json.loads(report.read_text())
    (measured,) = (row["cells"]["top1"]["measured"] for row in own["rows"] if row["runs"])
    assert cli.main(["table", "resnet-6", "--recorded"]) == 1
    shown = capsys.readouterr().out
    assert "Nothing is recorded of resnet-6." in shown
    assert re.search(r"\bown\b", shown)
    assert "(demo)" in shown
    assert cli.main([*demo, "--record"]) == 0
    assert capsys.readouterr().out == "resnet-6, ResNet-20: recorded\n"
    record = recorded.read("resnet-6")["ResNet-20"]["demo"]
    assert record["cells"]["top1"] == pytest.approx(measured)
    (run,) = record["runs"]
    assert run["config"]["train.steps"] == 3
    assert [start["step"] for start in run["starts"]] == [0]
    assert run["starts"][0]["versions"] == runs.versions()
    assert len(run["curves"]["train_loss"]) > 0
    assert cli.main(["table", "resnet-6", "--recorded"]) == 0
    shown = capsys.readouterr().out
    assert f"{measured['value']:.2f} [{measured['low']:.2f}, {measured['high']:.2f}]" in shown
    expected = (
        r"ResNet-20, profile demo: digits at 16 pixels, 0\.\d+ epochs of batches of 32; n = 500"
    )
    assert re.search(expected, shown)
    assert cli.main(["table", "resnet-6", "--recorded", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    (row,) = (row for row in document["rows"] if row["runs"])
    assert row["cells"]["top1"]["own"] == row["cells"]["top1"]["recorded"]
    assert row["cells"]["top1"]["printed"] == "8.75"


def test_what_is_not_finished_is_not_recorded_and_stays_as_it_was(demo, capsys):
    assert cli.main([*demo, "--record"]) == 0
    before = (recorded.FOLDER / "resnet-6.json").read_text()
    capsys.readouterr()
    others = [word if word != "ResNet-20" else "ResNet-56" for word in demo]
    assert cli.main([*others, "--record"]) == 1
    assert "resnet-6, ResNet-56: not recorded: " in capsys.readouterr().out
    assert (recorded.FOLDER / "resnet-6.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--record",), "of the profiles paper and cifar, not of 'demo'"),
        (
            ("--record", "--profile", "cifar", "--set", "train.steps=3"),
            "leave out --set train.steps",
        ),
        (("--record", "--profile", "cifar", "--size", "24"), "leave out --size"),
        (("--record", "--profile", "paper", "--plan"), "--record runs nothing: without --plan"),
        (("--recorded", "--rows", "ResNet-20"), "runs nothing: without --rows"),
    ],
)
def test_only_recipes_as_they_ship_are_recorded(words, told, capsys):
    assert cli.main(["table", "resnet-6", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_cut_report_of_ones_own_is_passed_over(demo, capsys):
    (report,) = Path("runs/reports").glob("resnet-demo*/resnet-6.json")
    text = report.read_text()
    without_profile = {key: v for key, v in json.loads(text).items() if key != "profile"}
    for damaged in (text[:200], json.dumps(without_profile)):
        report.write_text(damaged)
        capsys.readouterr()
        assert cli.main(["table", "resnet-6", "--recorded"]) == 1
        assert "own" not in capsys.readouterr().out


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    text = BETWEEN.sub(lambda m: m.group(1) + gallery() + "\n" + m.group(2), text)
    PAGE.write_text(text, "utf-8")
