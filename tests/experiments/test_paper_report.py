"""Papers' tables in all their forms, from made-up printed figures and made-up finished runs."""

import csv
import io
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from experiments.papers.measured import PAIRED, RowResult, TableResult
from experiments.papers.table import (
    TEST5,
    TOP1,
    TOP5,
    Column,
    Count,
    Difference,
    Error,
    Net,
    Printed,
    Row,
    Table,
)
from experiments.report import paper, write
from experiments.report import paper_figures as figures
from experiments.report.forms import latex_text, to_markdown, to_terminal
from experiments.report.text import duration
from experiments.runs.results import T_INTERVAL, WILSON, Measurement, provenance, read_run
from experiments.statistics import RankAgreement
from tests.experiments import test_report as study_report
from tests.experiments.test_report import Page, svg_text

N, CLASSES = 300, 10
PROFILE, ABOUT = "demo", "digits & <8x8> made up_here, 10% of them, nets an eighth as wide"
SOURCE = "github:some/repository@0a1b2c:paper_v6.pdf (arXiv 1409.1556v6)"
PRINTED_SET = "ILSVRC-2012"


def write_run(folder, architecture, row, seed, depth, error, *, logged=True, full=True):
    """One finished run, seeded by A; what it tells of itself only if it is `full`."""
    config = {"model": {"arch": architecture, "note": "<b>&"}, "train": {"batch_size": 32}}
    study_report.write_run(
        *(folder, row, seed, depth, error / 100, 0.4), seeded="A 256", epochs=4, config=config
    )
    if not logged:
        (folder / "metrics.jsonl").write_text("")
    run = read_run(folder)
    if full:
        return run
    result = {k: v for k, v in run.result.items() if k not in ("seconds", "devices", "finished")}
    record = {k: v for k, v in run.run.items() if k not in ("seed_from", "versions")}
    return replace(run, run=record | {"config": {"model": config["model"]}}, result=result)


def posteriors(seed, mixed):
    """(N, CLASSES), of which this share is the same whatever the seed."""
    common = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.3), N)
    own = np.random.default_rng(seed).dirichlet(np.full(CLASSES, 0.3), N)
    return (mixed * common + (1 - mixed) * own).astype(np.float32)


def one_seed(value):
    return Measurement(value, value - 2.345, value + 2.7, WILSON, n=N)


def several_seeds(value, n=N):
    return Measurement(value, value - 1.05, value + 1.05, T_INTERVAL, 0.4567, 3, n)


def measured_row(row, cells, runs, **more):
    result = runs[0].result
    seed = zlib.crc32(row.name.encode())
    compared = (np.arange(N, dtype=np.int32), posteriors(seed, 0.3 + seed % 60 / 100))
    costs = {key: result[key] for key in ("depth", "parameters", "macs")}
    return RowResult(
        row, "measured", cells=cells, runs=tuple(runs), compared=compared, costs=costs, **more
    )


def printed(text, std=None, note="", source=SOURCE):
    return Printed(text, float(text.lstrip("<>")), std, source, note)


VGG = (("A", 11, 29.6, 4.25), ("A-LRN", 11, 29.7, 5.0), ("B", 13, 28.7, 3.5), ("C", 16, 28.1, 4.1))
ON_REQUEST = "several hours; ask for it with --costly"


def vgg_table(folder):
    """Of nets that were measured, and of those that were not, for each of the reasons."""
    rows = []
    for name, depth, top1, error in VGG:
        arch = f"vgg:{name}"
        run = write_run(folder / f"vgg-{name}-0a1b", arch, f"{name} 256", 0, depth, error)
        row = Row(
            f"{name}, S=256",
            {"top1": printed(str(top1)), "top5": printed("9.9")},
            Error((Net(f"{name} 256", "dense"),)),
        )
        cells = {"top1": one_seed(error), "top5": one_seed(error / 3)}
        rows.append(measured_row(row, cells, [run], tested="dense at 36"))
    costly = Row(
        "E, S=[256;512]", {"top1": printed("25.5", note="best_single")}, Error((Net("E"),))
    )
    others = [
        RowResult(costly, "on request", ON_REQUEST, 11_400.0),
        RowResult(Row("D, 100%_sure", {"top1": printed("27.0")}), "not run", "D was not trained"),
        RowResult(Row("D | E", {"top1": printed("27.3")}), "failed", "the loss became NaN"),
        RowResult(
            Row("[others]", {"top1": printed(">60", source="memory")}, note="another group's"),
            "printed only",
        ),
    ]
    table = Table(
        *("vgg-3", "VGG, Table 3: one test scale", "vgg", PRINTED_SET, (TOP1, TOP5)),
        tuple(row.row for row in [*rows, *others]),
        notes=("Both errors are of the validation set.",),
    )
    agreement = {"top1": RankAgreement(4, 0.42, -0.1, 0.75), "top5": RankAgreement(4, 1, 0.5, 1)}
    return TableResult(table, PROFILE, ABOUT, (*rows, *others), agreement)


def residual_table(folder):
    """Of several seeds, one of a row's missing; with a column that nobody else can measure."""
    rows = []
    printed_errors = {"plain": (9.0, 9.5, 12.0), "ResNet": (8.75, 7.2, 6.61)}
    for family, errors in printed_errors.items():
        for depth, error in zip((20, 32, 56), errors, strict=True):
            arch = f"cifar_{'plain' if family == 'plain' else 'resnet'}:{depth}"
            runs = [
                write_run(
                    folder / f"{family}-{depth}-{seed}",
                    *(arch, f"{family}-{depth}", seed, depth, error),
                )
                for seed in range(3)
            ]
            cells = {"top1": printed(f"{error:.2f}", 0.16), "test5": printed("7.3")}
            row = Row(f"{family}-{depth}", cells, Error((Net(f"{family}-{depth}"),)), runs=3)
            measured_cells = {"top1": several_seeds(2 * error)}
            rows.append(measured_row(row, measured_cells, runs, tested="center"))
    rows[-1] = replace(rows[-1], state="partly", reason="3 of 5 seeds; run x was not tested so")
    row = Row(
        "plain-56 less plain-20",
        {"top1": printed("-0.5")},
        Difference(Net("plain-56"), Net("plain-20")),
    )
    cells = {"top1": Measurement(-3.04, -4, 1.5, PAIRED, 0.9, 3, N)}
    rows.append(RowResult(row, "measured", cells=cells, runs=rows[2].runs, tested="center"))
    table = Table(
        *("residual-6", "ResNet, Table 6", "cifar_resnet", "CIFAR-10"),
        (TOP1, TOP5, TEST5),
        tuple(row.row for row in rows),
    )
    return TableResult(
        table, PROFILE, ABOUT, tuple(rows), {"top1": RankAgreement(6, -0.9, -1, -0.6)}
    )


def counted_table():
    columns = (Column("params", "parameters", "M", "params"),)
    rows = []
    for name, text, counted in (("A", "133", 132.863336), ("E", "144", 143.667240)):
        row = Row(name, {"params": printed(text)}, Count(f"vgg:{name}"))
        cells = {"params": Measurement(counted)}
        rows.append(
            RowResult(
                *(row, "measured"),
                cells=cells,
                tested="counted at the paper's size",
                costs={"depth": 11, "parameters": round(counted * 1e6), "macs": 7_600_000_000},
            )
        )
    table = Table("vgg-2", "VGG, Table 2", "vgg", PRINTED_SET, columns, tuple(r.row for r in rows))
    return TableResult(table, PROFILE, ABOUT, tuple(rows), {})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [counted_table(), vgg_table(folder), residual_table(folder)]


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("report"))


def write_report(results, folder):
    return write(paper.report(results, "VGG & ResNet, made up"), folder)


def terminal(result, width, tty=True):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=tty, color_system=None)
    to_terminal(paper.table(result), console)
    return text.getvalue()


def figures_of(result):
    """(row, column) -> (printed, measured, low, high, deviation), None for what there is not."""
    return {
        (row.row.name, column.key): (
            row.row.printed[column.key].value if column.key in row.row.printed else None,
            *(
                getattr(row.cells.get(column.key), key, None)
                for key in ("value", "low", "high", "deviation")
            ),
        )
        for row in result.rows
        for column in result.table.columns
    }


# ------------------------------------------------------------------------------- programs


def test_csv_holds_the_printed_and_measured_figures_unrounded(results, written):
    for result in results:
        expected = figures_of(result)
        with written[f"{result.table.name}/csv"].open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(expected)
        for line in lines:
            keys = ("printed", "measured", "low", "high", "deviation")
            values = tuple(float(line[key]) if line[key] else None for key in keys)
            assert values == expected[line["row"], line["column"]]
            printed_value, measured_value = values[:2]
            bound = line["printed_text"].startswith(">")
            difference = (
                measured_value - printed_value
                if printed_value is not None and measured_value is not None and not bound
                else None
            )
            assert (float(line["difference"]) if line["difference"] else None) == difference
            assert (line["profile"], line["about"]) == (PROFILE, ABOUT)
            assert (line["seeds"] == "") == (measured_value is None)


def test_json_holds_the_same_figures_and_where_they_come_from(results, written):
    for result in results:
        table = json.loads(written[f"{result.table.name}/json"].read_text())
        assert (table["profile"], table["dataset"]) == (PROFILE, result.table.dataset)
        expected = figures_of(result)
        for row, row_result in zip(table["rows"], result.rows, strict=True):
            assert row["state"] == row_result.state
            assert row["runs"] == [run.folder.name for run in row_result.runs]
            assert set(row["runs"]) <= set(table["runs"])
            for key, cell in row["cells"].items():
                figures = (
                    (cell["printed"] or {}).get("value"),
                    (cell["measured"] or {}).get("value"),
                )
                assert figures == expected[row["row"], key][:2]
        assert set(table["agreement"]) == set(result.agreement)
    cell = table["rows"][0]["cells"]["top1"]
    assert cell["printed"] == {
        "text": "9.00",
        "value": 9.0,
        "std": 0.16,
        "source": SOURCE,
        "note": "",
    }
    assert (cell["measured"]["seeds"], cell["measured"]["interval"]) == (3, T_INTERVAL)


def test_provenance_multiplies_out_what_a_run_cost(tmp_path):
    run = write_run(tmp_path / "vgg-A-1", "vgg:A", "A 256", 1, 11, 4.0)
    record = provenance(run)
    assert record["device_seconds"] == 2 * run.result["seconds"]  # on 2 devices
    assert record["images"] == 80 * 32
    assert record["training_macs"] == 3 * 11 * 690_000 * 80 * 32
    assert (record["commit"], record["seed"]) == ("12ab34c", 1)


def test_a_run_that_tells_less_of_itself_has_blanks(tmp_path, results):
    run = write_run(tmp_path / "runs" / "x-1", "vgg:A", "A 256", 1, 11, 4.0, full=False)
    record = provenance(run)
    keys = ("device_seconds", "images", "training_macs", "commit", "versions", "seconds")
    assert [record[key] for key in keys] == [None] * 6
    row = replace(results[1].rows[0], runs=(run,))
    result = replace(results[1], rows=(row, *results[1].rows[1:]))
    assert "x-1" in write_report([result], tmp_path / "report")["report"].read_text()


# ------------------------------------------------------------------------------- people


def number(text):
    return float(text.replace("−", "-").replace("+", "")) if text else None


def parts(text):
    """(measured, deviation, low, high) of a measured figure for people."""
    match = (
        re.fullmatch(r"(\S+)(?: ± (\S+))?(?:(?: |<br>)\[(\S+), (\S+)\])?", text) if text else None
    )
    return tuple(map(number, match.groups(default=""))) if match else (None,) * 4


def check_line(name, cells, expected, digits):
    """The cells of a line for people are the rounded figures of a row."""
    for key, (shown_printed, shown, shown_difference) in cells.items():
        unrounded = expected[name, key]
        text = re.sub(r"(?: |<br>)± .*", "", shown_printed)
        assert number(text.lstrip(">")) == unrounded[0]
        value, deviation, low, high = parts(shown)
        pairs = (
            (value, unrounded[1]),
            (low, unrounded[2]),
            (high, unrounded[3]),
            (deviation, unrounded[4]),
        )
        for shown_figure, figure in pairs:
            assert shown_figure == (
                None if figure is None else pytest.approx(figure, abs=0.51 * 10**-digits)
            )
        difference = None
        if unrounded[0] is not None and unrounded[1] is not None:
            difference = pytest.approx(unrounded[1] - unrounded[0], abs=0.51 * 10**-digits)
        assert number(shown_difference) == difference


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    header, _, *rows = [[cell.strip() for cell in line] for line in cells]
    return [dict(zip(header, row, strict=True)) for row in rows]


def plain_name(text):
    """A row's name without its state and the signs of its notes."""
    name = re.sub(r"\\(.)", r"\1", re.split(r"<br>", text)[0])
    return re.sub(r"( [⁰¹²³⁴⁵⁶⁷⁸⁹]+)+$", "", name)


def test_markdown_holds_the_rounded_figures_and_blanks_where_nothing_was_measured(results, written):
    for result in results[1:]:
        rows = markdown_rows(written[f"{result.table.name}/markdown"].read_text())
        assert [plain_name(row["row"]) for row in rows] == [r.row.name for r in result.rows]
        for row in rows:
            cells = {
                column.key: tuple(
                    row.get(f"{column.header}, %: {part}", "")
                    for part in ("printed", f"measured ({PROFILE})", "difference")
                )
                for column in result.table.columns
            }
            check_line(plain_name(row["row"]), cells, figures_of(result), 1)


def test_a_table_that_is_counted_says_so_and_has_a_decimal_more_than_is_printed(results, written):
    rows = markdown_rows(text := written["vgg-2/markdown"].read_text())
    shown = [
        tuple(row[f"parameters, M: {part}"] for part in ("printed", "counted")) for row in rows
    ]
    assert shown == [("133", "132.9"), ("144", "143.7")]
    assert [row["parameters, M: difference"] for row in rows] == ["−0.1", "−0.3"]
    assert "Counted here at the paper's size; nothing is trained" in text
    assert "measured" not in text
    assert "says nothing about" not in text


UNDO = {v: k for k, v in {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$"}.items()}
UNDO |= {"-{}-": "--", "$-$": "−", r"$\pm$": "±", r"\textgreater{}": ">", r"\textless{}": "<"}
UNDO |= {r"\textbar{}": "|", "{[}": "["}


def undone(text):
    text = re.sub(r"( ?\\textsuperscript\{\d\})+", "", text)
    for latex, plain in UNDO.items():
        text = text.replace(latex, plain)
    return text.strip()


def latex_rows(text):
    """The cells of the table's lines; `&` and `\\\\` that are escaped do not count."""
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    lines = [line for line in body.split("\\\\\n") if line.strip()]
    return [[undone(cell) for cell in re.split(r"(?<!\\)&", line)] for line in lines]


def test_latex_holds_the_same_figures_in_as_many_cells_as_the_table_has_columns(results, written):
    text = written["vgg-3/latex"].read_text()
    rows = latex_rows(text)
    (format_of,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert format_of == "lrrrrrr"
    assert {len(row) for row in rows} == {7}
    assert rows[4][0] == "E, S=[256;512] (on request, about 3:10:00 here)"
    for (name, *cells), row_result in zip(rows, results[1].rows, strict=True):
        assert name.startswith(row_result.row.name)
        by_column = {"top1": tuple(cells[:3]), "top5": tuple(cells[3:])}
        check_line(row_result.row.name, by_column, figures_of(results[1]), 1)


@pytest.mark.parametrize("name", ["vgg-2", "vgg-3", "residual-6"])
def test_latex_is_plain_ascii_with_balanced_groups_and_nothing_left_unescaped(written, name):
    text = written[f"{name}/latex"].read_text()
    assert text.isascii()
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    assert text.count("$") % 2 == 0
    first, *lines = text.splitlines()
    assert first.startswith("%")
    for line in lines:
        assert not re.search(r"(?<!\\)[%#_~^\"<>]", line.removeprefix(rf"\label{{tab:{name}}}"))
        assert not re.match(r"\s*[\[*]", line)  # after \\ it would be that command's option
    spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d)\}", text)]
    (format_of,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert sum(spans) + 1 + (r"& seeds \\" in text) == len(format_of)
    assert text.count(r"\begin{") == text.count(r"\end{")


def test_latex_text_of_awkward_signs():
    assert latex_text("E, S=[256;512] & 50%_#$") == r"E, S=[256;512] \& 50\%\_\#\$"
    assert latex_text("{a}\\b~^") == r"\{a\}\textbackslash{}b\textasciitilde{}\textasciicircum{}"
    assert latex_text("−0.5 ± 1, >60") == r"$-$0.5 $\pm$ 1, \textgreater{}60"
    assert latex_text("Cireşan é ü") == r"Cire\c{s}an \'{e} \"{u}"
    assert latex_text("日本") == "??"
    assert latex_text("ask with --costly") == "ask with -{}-costly"


@pytest.mark.parametrize("width", [60, 70, 80, 100, 120])
def test_terminal_keeps_to_the_width_of_the_screen(results, width):
    for result in results:
        text = terminal(result, width)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "printed" in text
        assert all(words in text for words in ("measured", "(demo)")) or "counted" in text


def test_terminal_of_80_columns_has_all_of_two_columns(results):
    text = terminal(results[1], 80)
    assert "Left out" not in text
    line = next(line for line in text.splitlines() if line.startswith("A, S=256"))
    assert line.split()[2:] == ["29.6", "4.2", "−25.4", "9.9", "1.4", "−8.5"]
    below = text.splitlines()[text.splitlines().index(line) + 1]
    assert re.findall(r"\[[^]]*\]", below) == ["[1.9, 7.0]", "[−0.9, 4.1]"]


def test_terminal_too_narrow_says_what_it_left_out_and_a_pipe_gets_all(results):
    flat = " ".join(terminal(results[1], 60).split())
    left_out = "Left out for lack of room: top-5 error, %: difference; top-1 error, %: difference."
    assert left_out in flat
    line = next(line for line in terminal(results[1], 60).splitlines() if "A, S=256" in line)
    assert line.split()[2:] == ["29.6", "4.2", "9.9", "1.4"]
    text = terminal(results[2], 40, tty=False)
    assert "Left out" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("row "))
    assert line.split() == ["row", "printed", "(demo)", "diff.", "printed", "seeds"]


def test_states_are_words_and_reasons_are_footnotes(results, written):
    result = results[1]
    for text in (terminal(result, 120), written["vgg-3/markdown"].read_text()):
        flat = " ".join(text.split())
        assert "on request, about 3:10:00 here" in flat
        for words in ("printed only", "not run", "failed"):
            assert words in flat
        assert f"¹ on request: {ON_REQUEST}" in flat
        assert "² printed: best_single" in flat
        assert "⁵ another group's" in flat
        assert re.search(r"E, S=\[256;512\] ¹ ²", flat)
    flat = " ".join(terminal(results[2], 120).split())
    assert "partly measured" in flat
    assert "partly: 3 of 5 seeds; run x was not tested so" in flat


def test_deviation_and_seeds_are_shown_where_there_are_several(results):
    text = terminal(results[2], 120)
    line = next(line for line in text.splitlines() if line.startswith("plain-20"))
    assert line.split() == ["plain-20", "9.00", "18.0", "±", "0.5", "+9.0", "7.3", "3"]
    below = text.splitlines()[text.splitlines().index(line) + 1]
    assert below.split() == ["±", "0.16", "[16.9,", "19.1]"]
    assert "seeds" not in terminal(results[1], 120).partition("\n\n")[2].partition("A, S")[0]


def test_errors_of_many_images_have_two_decimals(results):
    row = results[2].rows[0]
    row = replace(row, cells={"top1": several_seeds(17.456, n=10_000)})
    text = terminal(replace(results[2], rows=(row,)), 120)
    assert "17.46 ± 0.46" in text
    assert "[16.41, 18.51]" in text
    assert "+8.46" in text


def test_a_column_that_nobody_can_measure_is_printed_only(results, written):
    (header, *_) = markdown_rows(written["residual-6/markdown"].read_text())
    about = [key for key in header if key.startswith("top-5 error, test server")]
    assert about == ["top-5 error, test server, %: printed"]


def test_a_bound_has_no_difference(results):
    (first, *others) = results[1].rows
    row = replace(first, row=replace(first.row, printed={"top1": printed(">60")}))
    cell = paper.document(replace(results[1], rows=(row, *others)))["rows"][0]["cells"]["top1"]
    assert (cell["printed"]["text"], cell["difference"]) == (">60", None)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (RankAgreement(12, 0.42, -0.1, 0.75), "tau-b 0.42 [−0.10, 0.75] over 12 rows: not told"),
        (
            RankAgreement(4, 1.0, 0.5, 1.0),
            "tau-b 1.00 [0.50, 1.00] over 4 rows: the same order more than the reverse",
        ),
        (RankAgreement(4, -0.8, -1.0, -0.3), "[−1.00, −0.30] over 4 rows: the reverse order more"),
        (RankAgreement(2, None, None, None), "all alike over 2 rows, no tau-b"),
    ],
)
def test_agreement_says_whether_its_interval_excludes_zero(results, found, words):
    result = replace(results[1], agreement={"top1": found})
    start = "Order of the rows, printed against measured (top-1 error): "
    for text in (terminal(result, 100), to_markdown(paper.table(result))):
        flat = " ".join(text.split())
        assert start in flat
        assert words in flat


# ------------------------------------------------------------------------------- whose figures


def every_text(result, written):
    """What a reader sees of a table, by form."""
    texts = {
        form: written[f"{result.table.name}/{form}"].read_text() for form in ("markdown", "csv")
    }
    texts["latex"] = undone(written[f"{result.table.name}/latex"].read_text())
    texts["json"] = json.dumps(json.loads(written[f"{result.table.name}/json"].read_text()))
    texts["terminal"] = " ".join(terminal(result, 100).split())
    texts["pipe"] = " ".join(terminal(result, 40, tty=False).split())
    return texts


def test_every_form_names_profile_data_printed_data_and_source(results, written):
    for result in results:
        for form, text in every_text(result, written).items():
            about = ABOUT.replace("\\", "")
            for words in (PROFILE, about, result.table.dataset, SOURCE):
                assert words in text, form
    page = written["report"].read_text()
    assert ABOUT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page
    for name, path in written.items():
        if name.startswith("figures/"):
            assert f"profile {PROFILE}" in path.read_text()


def test_a_demo_names_the_papers_data_as_what_is_printed_only(results, written):
    texts = [text for form, text in every_text(results[1], written).items() if form != "json"]
    texts += [path.read_text() for name, path in written.items() if name.endswith(("report", "3"))]
    for text in texts:
        if text.startswith("table,"):  # its columns are named
            continue
        for match in re.finditer(PRINTED_SET, text):
            assert re.search(r"[Pp]rinted(: | \()$", text[: match.start()])
    assert "dataset" in json.loads(written["vgg-3/json"].read_text())


def test_a_profile_that_is_not_the_papers_says_nothing_of_the_printed_figures(results):
    words = "says nothing about whether the printed figures are right"
    assert words in " ".join(terminal(results[1], 100).split())
    assert words not in " ".join(terminal(replace(results[1], profile="paper"), 100).split())


def test_a_table_that_nothing_was_measured_of_says_so(results, tmp_path):
    rows = tuple(RowResult(row.row, "not run") for row in results[1].rows)
    result = replace(results[1], rows=rows, agreement={})
    flat = " ".join(terminal(result, 80).split())
    assert f"Profile {PROFILE}, {ABOUT}: nothing was measured here." in flat
    assert "(demo)" in flat  # the columns that are to be filled
    text = write_report([result], tmp_path)["report"].read_text()
    assert not [value for value, link in Page(text).numbers if link]
    assert "needs two nets" in text


def test_a_figure_of_the_paper_has_no_printed_column_and_says_that_it_is_a_curve(results):
    rows = tuple(replace(row, row=replace(row.row, printed={})) for row in results[1].rows[:2])
    text = terminal(replace(results[1], rows=rows, agreement={}), 80)
    assert f"Printed: {PRINTED_SET}; no figures, but curves." in " ".join(text.split())
    (line,) = (line for line in text.splitlines() if line.startswith("row "))
    assert line.split() == ["row", "(demo)", "(demo)"]


def test_a_source_that_is_not_of_all_rows_is_given_with_its_rows(results):
    text = " ".join(terminal(results[1], 200).split())
    assert f"read in {SOURCE}; from memory, unchecked ([others])." in text


# ------------------------------------------------------------------------------- figures


def test_figures_are_svg_that_loads_nothing_and_names_the_profile(written):
    names = {name.partition("/")[2] for name in written if name.startswith("figures/")}
    assert names == {
        "errors-vgg-3",
        "errors-residual-6",
        "curves-cifar_resnet",
        "curves-others",
        "alike",
    }
    for name in names:
        texts = svg_text(written[f"figures/{name}"].read_text())
        assert any(f"profile {PROFILE}" in text for text in texts)


def test_points_are_the_rows_of_one_net_and_lines_are_what_their_names_say(results):
    vgg, residual = results[1:]
    groups = figures.grouped(figures.points(vgg, TOP1))
    assert {name: [p.name for p in group] for name, group in groups.items()} == {
        "S=256": [f"{name}, S=256" for name, *_ in VGG]
    }
    groups = figures.grouped(figures.points(residual, TOP1))
    assert [p.costs["depth"] for p in groups["plain"]] == [20, 32, 56]
    assert [p.measured.value for p in groups["ResNet"]] == [17.5, 14.4, 13.22]
    assert [p.printed for p in groups["ResNet"]] == [8.75, 7.2, 6.61]


def test_drawn_points_are_the_measured_and_printed_errors(results):
    (drawn, _) = figures.plot_errors(results)
    depth_axes = drawn.canvas.axes[0, 0]
    marked = [line for line in depth_axes.lines if line.get_marker() == "o"]
    hollow, filled = marked
    assert hollow.get_ydata() == pytest.approx([top1 for _, _, top1, _ in VGG])
    assert filled.get_ydata() == pytest.approx([error for *_, error in VGG])
    assert filled.get_xdata().tolist() == [11, 11, 13, 16]
    line = next(line for line in depth_axes.lines if line.get_linestyle() == "-")
    assert line.get_ydata() == pytest.approx([(4.25 + 5) / 2, 3.5, 4.1])


def test_axes_of_costs_say_that_they_are_logarithmic(results):
    for drawn in figures.plot_errors(results):
        *panels, _ = drawn.canvas.axes.flat
        for axes, (_, cost) in zip(panels, figures.COSTS, strict=True):
            scale = ", log scale" if axes.get_xscale() == "log" else ""
            assert axes.get_xlabel() == cost + scale
    axes = figures.Canvas(1).axes[0, 0]
    figures._cost_scale(axes, "macs", [1.0, 9.0])
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "log scale")


def test_costs_that_are_the_same_for_all_nets_have_no_panel(results):
    table = results[1]
    alike = [replace(row, costs={**row.costs, "depth": 16, "macs": 2.015e7}) for row in table.rows]
    alike[0] = replace(alike[0], costs={**alike[0].costs, "macs": 2.017e7})
    (drawn,) = figures.plot_errors([replace(table, rows=tuple(alike))])
    panel, key = drawn.canvas.axes.flat
    assert panel.get_xlabel() == "parameters"
    assert not key.axison
    same = [replace(row, costs={**row.costs, "parameters": 1e6}) for row in alike]
    assert figures.plot_errors([replace(table, rows=tuple(same))]) == []


def test_no_two_ticks_of_a_cost_read_the_same():
    for low, high in ((6.28e5, 6.46e5), (2.00e7, 2.03e7), (1.5e10, 1.96e10)):
        axes = figures.Canvas(1).axes[0, 0]
        figures._cost_scale(axes, "macs", [low, high])
        read = [axes.xaxis.get_major_formatter()(place) for place in axes.get_xticks()]
        assert len(read) == len(set(read)) > 0


def test_each_net_has_one_curve_though_tables_and_seeds_share_it(results):
    architectures = [
        figures.architecture(run) for _, run in figures.curve_runs([*results, *results])
    ]
    assert sorted(architectures) == sorted(set(architectures))
    assert len(architectures) == 4 + 6
    assert {run.run["seed"] for _, run in figures.curve_runs(results)} == {0}
    sides = figures.plot_curves(results)[1].canvas.axes[0]
    assert [axes.get_title(loc="left")[:5] for axes in sides] == ["Plain", "Resid"]
    assert [len(axes.lines) for axes in sides] == [6, 6]  # training and validation of three nets


def test_one_architecture_in_two_settings_has_two_curves(tmp_path, results):
    row = results[1].rows[0]
    runs = []
    for name, rate in (("A 256", 0.01), ("A slow", 0.005)):
        run = write_run(tmp_path / f"{name}-1", "vgg:A", name, 0, 11, 4.0)
        run.run["config"]["schedule"] = {"lr": rate}
        runs.append(run)
    table = replace(results[1], rows=tuple(replace(row, runs=(run,)) for run in runs))
    assert [run.run["row"] for _, run in figures.curve_runs([table])] == ["A 256", "A slow"]
    (drawn,) = figures.plot_curves([table])
    labels = dict.fromkeys(text for *_, text, _ in drawn.canvas.end_labels)  # of error and loss
    assert list(labels) == ["A 256", "A slow"]
    assert "left out" not in drawn.canvas.caption


def test_heat_map_holds_the_overlap_of_every_two_nets(results, written):
    rows = [row for result in results for row in result.rows if row.compared is not None]
    texts = svg_text(written["figures/alike"].read_text())
    assert len(rows) == 10
    for i, first in enumerate(rows):
        assert any(text.startswith(first.row.name) for text in texts)
        for second in rows[:i]:
            alike = 1 - np.abs(first.compared[1] - second.compared[1]).sum(axis=1).mean() / 2
            assert f"{alike:.2f}" in texts


def test_figures_without_their_rows_are_notes(results):
    drawn = {figure.name: figure for figure in figures.draw(results[:1])}
    assert set(drawn) == set(figures.KINDS)
    for figure in drawn.values():
        assert figure.svg == ""
        assert "needs" in figure.note


def test_nets_without_metrics_have_no_curves(tmp_path, results):
    run = write_run(tmp_path / "x-1", "vgg:A", "A 256", 1, 11, 4.0, logged=False)
    row = replace(results[1].rows[0], runs=(run,))
    assert figures.plot_curves([replace(results[1], rows=(row,))]) == []


# ------------------------------------------------------------------------------- page


@pytest.fixture(scope="module", params=["paper", "study"])
def page(request, written, tmp_path_factory):
    """A paper's page, and a study's."""
    if request.param == "paper":
        return written["report"].read_text()
    rows = study_report.demo_rows(tmp_path_factory.mktemp("study"))
    folder = tmp_path_factory.mktemp("page")
    return study_report.write_report(study_report.collect(rows), folder)["report"].read_text()


def test_page_is_balanced_html_whose_every_reference_is_in_it(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    for reference in parsed.references:
        assert reference.startswith("#")
        assert reference[1:] in parsed.ids
    for loading in ("@import", "@font-face", "http:", "https:"):
        assert loading not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)


def test_measured_figures_in_the_page_are_unrounded_and_linked_to_their_run(results, written):
    page = Page(written["report"].read_text())
    expected = []
    for result in results:
        for row in result.rows:
            for column in result.table.columns:
                if column.key in row.cells and row.runs:
                    link = f"#run-{row.runs[0].folder.name.lower()}"
                    expected.append((row.cells[column.key].value, link))
    assert [(value, link) for value, link in page.numbers if link] == expected
    values = [value for value, _ in page.numbers]
    assert 132.863336 in values
    assert set(values) >= {29.6, 25.5, 60.0}  # printed


def test_page_has_each_run_once_with_what_it_cost(results, written):
    text = written["report"].read_text()
    runs = {run.folder.name for result in results for row in result.rows for run in row.runs}
    assert text.count('<details class="run"') == len(runs) == 4 + 18
    seconds = 2 * 1.37 * (11 + 11 + 13 + 16 + 6 * (20 + 32 + 56))  # of nets by their depth
    assert f"{len(runs)} runs, {duration(seconds)} device time" in text
    for words in ("12ab34c", "jax 0.10.2", "2 x cpu", duration(2 * 1.37 * 16), "A 256, x", "2,560"):
        assert words in text


def test_page_escapes_what_it_shows(page):
    assert "<b>&" not in page  # stands in the config
    assert "&lt;b&gt;&amp;" in page
    assert re.search("&amp; &lt;(8x8|32x32)&gt;", page)
    assert not re.search("<(8x8|32x32)>", page)


def test_writing_again_gives_the_same_bytes_and_leaves_no_stale_figure(results, tmp_path):
    first = {name: path.read_bytes() for name, path in write_report(results, tmp_path).items()}
    again = write_report(results, tmp_path)
    assert {name: path.read_bytes() for name, path in again.items()} == first
    write_report(results[:2], tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"errors-vgg-3.svg", "curves.svg", "alike.svg"}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_terminal_table_is_made_without_matplotlib(fresh_python):
    modules = "sys, experiments.report.paper, experiments.report.forms"
    code = f"import {modules}; sys.exit('matplotlib' in sys.modules)"
    assert fresh_python("-c", code).returncode == 0
