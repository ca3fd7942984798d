"""How verbs declare their options, and the options that several verbs share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RUN = "a run's folder or id, a part only its id has, a row (`B`, `B (seed 2)`), or STUDY/ROW"
RUNS = f"{RUN}; or a pattern such as 'vgg_depth/*'"
RUNS_FOLDER = "where runs are kept (default: $CNN_DEPTH_RUNS, or runs)"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
    return value


def _pair(text: str) -> tuple[int, int]:
    low, _, high = text.partition(",")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected LOW or LOW,HIGH in pixels") from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def whole_or_all(text: str) -> int | None:
    """The number that an option says; None for `all`."""
    if not text.isdecimal() and text != "all":
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, or all")
    return None if text == "all" else int(text)


# The type of an option's value by its metavar; a text where the metavar is none of these.
KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("C", "K", "N", "PIXELS", "SEED", "QUALITY"), int),
    **dict.fromkeys(("DIR", "FILE"), Path),
    **dict.fromkeys(("SHARE", "WIDTH", "GB/S", "US"), float),
    "SECONDS": _seconds,
    "LOW[,HIGH]": _pair,
    "X[,X,X]": _numbers,
    "LINES": whole_or_all,
}


def add_options(
    parser: argparse._ActionsContainer,
    options: Mapping[str, str | None],
    **defaults: Any,
) -> None:
    """Adds options: each as it is typed -> its help. defaults: of the options that have one.

    `--seeds N` takes a number, `--which last|best` one of these, `--set KEY=VALUE...` may be
    repeated, and `-f --follow` takes nothing.
    """
    for flags, description in options.items():
        *names, value = flags.split()
        if value.startswith("-"):
            parser.add_argument(*names, value, action="store_true", help=description)
            continue
        name = next(name for name in names if name.startswith("--"))
        settings: dict[str, Any] = {"metavar": value, "type": KINDS.get(value, str)}
        if "|" in value:
            settings = {"choices": value.split("|")}
        elif value.endswith("..."):
            settings = {"metavar": value.removesuffix("..."), "action": "append", "default": []}
        settings.setdefault("default", defaults.get(name[2:].replace("-", "_")))
        parser.add_argument(*names, **settings, help=description)


def add_runs_and_json(parser: argparse.ArgumentParser, printed: str = "JSON") -> None:
    """Adds --runs, for `experiments.runs.runs.root`, and --json, which prints `printed`."""
    add_options(parser, {"--runs DIR": RUNS_FOLDER, "--json": f"print {printed}"})
