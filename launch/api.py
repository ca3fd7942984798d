"""The verbs for notebooks and scripts: `from launch import api`, then `api.sweep("vgg_depth")`.

Each function hands its keywords to the verb of its name, and returns what that prints with
`--json`: there is no second implementation. An option of the verb is a keyword with `_` for `-`, a
key of the config one with `__` for its dot: `seeds=3, train__epochs=2`; `cnn-depth VERB --help`
lists the options.

A verb runs in a process of its own, as from a terminal, with the same figures. An accelerator is
free again when a call returns, and an interrupt saves what is trained. The verb's messages are
printed line by line, without bars, which a notebook's cell can't draw.

The module is in `launch` because a sweep needs executors, which `experiments` never imports.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from experiments.text import nearest
from launch import cli, devices

if TYPE_CHECKING:
    from pandas import DataFrame

    from experiments.runs.runs import Run

    Runs = str | Path | Run

# Options that make a verb print something else than its figures, or that this module sets.
NOT_HERE = ("help", "json", "distributed", "dry_run", "plan", "record", "recorded", "watch")
ERROR = re.compile(rf"(usage: .*)?^{cli.PROGRAM}( \S+)?: error: ", re.DOTALL | re.MULTILINE)
# Variables that make Rich draw as on a terminal. Notebooks' kernels set them, and a cell would show
# each frame.
TERMINALS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


class ApiError(ValueError):
    """A call that failed; its text is the line that the verb ended with."""

    user_error = True


def train(study: str | Path, row: str | None = None, **options: Any) -> Run:
    """Trains one network: a study's config or one row of it, or a config file. Returns its run.

    What is trained already is not trained again. On a cluster (`backend="slurm"`) add `wait=True`.

    Raises ApiError for bad options and values, and where the training fails.
    """
    output = _output("train", study, row=row, **options)
    from experiments.runs.runs import Run

    return Run(Path(output["run"]).absolute())


def sweep(*study: str | Path, rows: Sequence[str] = (), **options: Any) -> DataFrame:
    """Trains the rows of one or more studies that are not trained yet, and writes their report.

    rows: names or patterns, as `["resnet-*"]`; all if not given. Often wanted: `seeds=3`,
    `parallel=2`, `grid={"schedule.lr": [0.01, 0.1]}`. On a cluster add `wait=True`.

    Returns a line a row, as the report's CSV has it: errors in percent with their intervals. A row
    that failed is there with its `state` and `reason`. Raises ApiError for bad options and values.
    """
    return _frame(_output("sweep", *study, rows=rows, **options)["rows"])


def table(*name: str, profile: str = "demo", rows: Sequence[str] = (), **options: Any) -> DataFrame:
    """Trains and tests what the papers' tables need, and writes their reports.

    name: of `cnn-depth list tables`. profile: demo, cifar, folder or paper. rows: names or
    patterns. On a cluster add `wait=True`.

    Returns a line for each row and column of the tables, as the reports' CSV: the `printed` and the
    `measured` figure, the latter's interval, their difference. Raises ApiError, as `sweep`.
    """
    documents = _output("table", *name, profile=profile, rows=rows, **options)
    from experiments.report import paper

    return _frame([line for document in documents for line in paper.lines(document)])


def evaluate(*run: Runs, **options: Any) -> DataFrame:
    """Tests runs on images, by default their own test images; what was tested before is kept.

    run: what `train` returned, a folder, an id, `study/row` or a pattern. Often wanted:
    `protocol="dense"`, `scales="vgg"`, `data="photographs/val"`.

    Returns a line for each run and protocol: n, and errors in percent with their intervals. Raises
    ApiError for unknown runs, bad options and unreadable images.
    """
    return _frame(_output("evaluate", *run, **options))


def transfer(*run: Runs, data: str | Path, **options: Any) -> DataFrame:
    """Learns the classes of other images, on the features of trained networks.

    data: a folder CLASS/*, or a set's name. Often wanted: `layer="all"`, `head="svm"`.

    Returns a line for each run and layer: `wrong`, percent of the test images, between `low` and
    `high`. Raises ApiError, as `evaluate`.
    """
    return _frame(_output("transfer", *run, data=data, **options)["results"])


def results(*study: str | Path, **options: Any) -> DataFrame:
    """The results so far; nothing is trained.

    For studies it returns what `sweep` does; without one, a line for each run of the folder: its
    id, study, row, state, step, loss, and error in percent. Raises ApiError for a bad study.
    """
    return _frame(_output("report" if study else "status", *study, **options)["rows"])


def _frame(lines: Sequence[Mapping[str, Any]]) -> DataFrame:
    from pandas import DataFrame

    return DataFrame(list(lines))


def _output(verb: str, *positional: Runs, **options: Any) -> Any:
    """The document that a verb prints with --json."""
    import json

    if verb != "train":
        _need_pandas()
    if options.get("backend") == "slurm" and not options.get("wait"):
        raise ApiError(
            f"{verb}(backend='slurm') returns figures: add wait=True, or use the command"
        )
    runs = [str(getattr(run, "folder", run)) for run in positional]
    words = [verb, *runs, *_words(verb, options), "--json"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        status, error = _run(words, out)
        out.seek(0)
        printed = out.read()
    if status == 2 or not printed:
        raise ApiError(error if status == 2 else f"{verb} ended with status {status}: {error}")
    return json.loads(printed)


def _need_pandas() -> None:
    """Raises ApiError before hours are spent on a frame that can't be made."""
    from importlib.util import find_spec

    from input_pipeline.errors import INSTALL

    if find_spec("pandas") is None:
        raise ApiError(f"frames need pandas: {INSTALL.format('notebooks')}")


def _words(verb: str, options: Mapping[str, Any]) -> list[str]:
    """Keywords as words of the command line."""
    parser = cli.parser_of(verb)
    flags = {a.dest: a for a in parser._actions if a.option_strings and a.dest not in NOT_HERE}
    words: list[str] = []
    for name, value in options.items():
        if "set" in flags and ("__" in name or "." in name):
            words += ["--set", f"{name.replace('__', '.')}={_text(value)}"]
        elif name in flags:
            words += _option(flags[name], value)
        else:
            hint = nearest("did you mean {!r}?", name, flags) or f"there are: {', '.join(flags)}"
            keys = "; a key of the config has __ for its dot" if "set" in flags else ""
            raise ApiError(f"{verb}() has no keyword {name!r}; {hint}{keys}")
    return words


def _option(action: argparse.Action, value: Any) -> Iterator[str]:
    """An option with its value, as words; none where it is left out."""
    option = action.option_strings[0]
    if value is None or value is False:
        return
    if value is True:
        yield option
    elif action.nargs is not None:  # several words behind it
        several = [value] if isinstance(value, str) else list(value)
        if several:
            yield from (option, *map(str, several))
    elif isinstance(value, Mapping):  # KEY=VALUE, for each
        for key, item in value.items():
            text = _values(item) if action.dest == "grid" else _text(item)
            yield from (option, f"{key}={text}")
    elif isinstance(action, argparse._AppendAction):
        for item in [value] if isinstance(value, str) else value:
            yield from (option, str(item))
    else:
        yield from (option, _text(value))


def _text(value: Any) -> str:
    """A value as it is typed on the command line; several with commas between."""
    if not isinstance(value, list | tuple):
        return str(value)
    if any(isinstance(part, list | tuple) for part in value):
        return repr(tuple(tuple(part) for part in value))
    return ",".join(map(str, value))


def _values(values: Any) -> str:
    """Several values of a key as they are typed, with commas between; tuples have brackets."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return str(values)
    return ",".join(repr(tuple(v)) if isinstance(v, list | tuple) else str(v) for v in values)


def _run(words: Sequence[str], out: IO[str]) -> tuple[int, str]:
    """Runs the command, and prints its messages; (exit status, the error that it ended with)."""
    process = subprocess.Popen(
        [*devices.PYTHON, "-m", "launch", *words],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={name: value for name, value in os.environ.items() if name not in TERMINALS},
        start_new_session=True,  # an interrupt reaches it once, from here
    )
    assert process.stderr is not None
    error: list[str] = []
    last = ""
    with process:
        try:
            for line in process.stderr:
                if error or line.startswith("usage: ") or ERROR.match(line):
                    error.append(line)
                else:
                    print(line, end="", flush=True)
                    last = line
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # it saves, and leaves
            for line in process.stderr:
                print(line, end="", flush=True)
            raise
    return process.returncode, ERROR.sub("", "".join(error) or last).strip()
