"""Figures of papers' tables that were measured with this software, and are kept with it.

A file of `records/` is a table's; `record` writes it from finished runs (`cnn-depth table NAME
--record`), nobody by hand. Reading one imports nothing that takes time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.papers.measured import RowResult, TableResult
    from experiments.runs.results import RunResult

FOLDER = Path(__file__).parent / "records"
CURVES = ("train_loss", "train_error", "val_top1_error", "test_top1_error", "seen_top1_error")
PAIR = re.compile(r"\[\s+([-\d.e+]+),\s+([-\d.e+]+)\s+\]")
POINTS = 200  # of a curve, at most
RESULT_KEYS = (  # of a run's result that are recorded
    "data",
    *("n", "top1_errors_count", "top5_errors_count", "test_loss", "train_loss", "train_error"),
    *("train_tested", "train_images", "holdout_images", "steps", "epochs", "seconds", "devices"),
    *("multiplied_in", "finished"),
)


def names() -> list[str]:
    """The tables of which something is recorded."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


PROFILES = ("paper", "cifar")  # whose rows are the papers', or as near as small images allow


def read(table: str) -> dict[str, dict[str, Any]]:
    """What is recorded of a table: row -> profile -> cells by column, and runs."""
    path = FOLDER / f"{table}.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text("utf-8"))
    rows: dict[str, dict[str, Any]] = content["rows"]
    for entry in (entry for profiles in rows.values() for entry in profiles.values()):
        entry["runs"] = [content["runs"][run] for run in entry["runs"]]
    return rows


def text(cell: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A measured figure with its deviation or its interval: `1.02 ± 0.04`, `1.09 [0.91, 1.31]`."""
    if cell is None:
        return ""
    figure = f"{cell['value']:.{digits}f}"
    if cell["deviation"] is not None:
        return f"{figure} ± {cell['deviation']:.{digits}f}"
    if cell["low"] is not None:
        return f"{figure} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
    return figure


def lengths(runs: Sequence[Mapping[str, Any]]) -> str:
    """The epochs that recorded runs took: `20`, or `5.092 to 16.07` where they differ."""
    epochs = sorted(run["result"]["epochs"] for run in runs)
    return " to ".join(dict.fromkeys(f"{length:.4g}" for length in (epochs[0], epochs[-1])))


def record(result: TableResult, rows: Sequence[str]) -> dict[str, str]:
    """Records the rows of these names that are measured: row -> '' or why not.

    What is recorded of a row in this profile is replaced. Raises RunError where the file can't be
    written.
    """
    recorded, reasons = read(result.table.name), {}
    for row in result.rows:
        if row.row.name not in rows:
            continue
        if row.state == "measured" and row.runs:
            profiles = {**recorded.get(row.row.name, {}), result.profile: _row(row)}
            recorded[row.row.name] = {p: profiles[p] for p in PROFILES if p in profiles}
            reasons[row.row.name] = ""
        elif row.row.measured is not None:
            reasons[row.row.name] = row.reason or row.state
    order = [row.row.name for row in result.rows]
    recorded = {name: recorded[name] for name in sorted(recorded, key=order.index) if name in order}
    if recorded:
        _write(result, recorded)
    return reasons


def _write(result: TableResult, rows: dict[str, dict[str, Any]]) -> None:
    """Each run once, by its id."""
    from experiments.runs import runs

    run_by_id: dict[str, Any] = {}
    for entry in (entry for profiles in rows.values() for entry in profiles.values()):
        run_by_id |= {run["id"]: run for run in entry["runs"]}
        entry["runs"] = [run["id"] for run in entry["runs"]]
    content = {
        "table": result.table.name,
        "title": result.table.title,
        "rows": rows,
        "runs": run_by_id,
    }
    lines = json.dumps(content, indent=1, ensure_ascii=False, default=float)
    lines = PAIR.sub(r"[\1, \2]", lines)  # the points of a curve, one a line
    FOLDER.mkdir(exist_ok=True)
    runs.write_text(FOLDER / f"{result.table.name}.json", lines + "\n")


def _row(row: RowResult) -> dict[str, Any]:
    from dataclasses import asdict

    from experiments.papers.measured import COSTS

    return {
        "tested": row.tested,
        **{key: row.costs.get(key) for key in COSTS},
        "cells": {key: asdict(cell) for key, cell in row.cells.items()},
        "runs": [_run(run) for run in row.runs],
    }


def _run(run: RunResult) -> dict[str, Any]:
    from experiments import config as configs
    from experiments.report.figures import thin
    from experiments.runs.runs import Run

    stored = Run(run.folder)
    started = (stored.read("starts") or {}).get("starts")
    if started is None:  # a run from before starts were kept
        started = [{"step": 0, "versions": run.run.get("versions", {})}]
    curves = {}
    for key in CURVES:
        epochs, values = thin(*run.curve(key), points=POINTS)
        if len(values):
            curves[key] = [[_short(x), _short(y)] for x, y in zip(epochs, values, strict=True)]
    return {
        "id": run.folder.name,
        "study": run.run.get("study"),
        "row": run.run.get("row"),
        "seed": run.run.get("seed"),
        "data": run.run.get("data"),
        "config": configs.identity_part(stored.config()),
        "starts": started,
        "result": {key: run.result[key] for key in RESULT_KEYS if key in run.result},
        "curves": curves,
    }


def _short(value: float) -> float:
    """Five digits, which a curve needs at most."""
    return float(f"{value:.5g}")


def latest_measured(table: str, paper: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The figures of a table that were measured under `folder` last: their profile, and the cells
    of each row, as its report has them. ('', {}) where there are none."""
    reports = sorted(
        folder.glob(f"reports/{paper}-*/{table}.json"), key=os.path.getmtime, reverse=True
    )
    for path in reports:
        try:
            report = json.loads(path.read_text("utf-8"))
            profile = str(report["profile"])
            cells = {
                row["row"]: {key: cell["measured"] for key, cell in row["cells"].items()}
                for row in report["rows"]
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # cut, or of another version: the next `table` writes it anew
        if any(cell for row in cells.values() for cell in row.values()):
            return profile, cells
    return "", {}
