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
    """None: all."""
    if not text.isdecimal() and text != "all":
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, or all")
    return None if text == "all" else int(text)


# What an option takes, by its metavar; a text where it is none of these.
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
    """Options as they are typed, each with its help.

    `--seeds N` takes a number, `--which last|best` one of these, `--set KEY=VALUE...` may be
    repeated, and `-f --follow` takes nothing. defaults: by name, of the options that have one.
    """
    for typed, what in options.items():
        *names, takes = typed.split()
        if takes.startswith("-"):
            parser.add_argument(*names, takes, action="store_true", help=what)
            continue
        name = next(name for name in names if name.startswith("--"))
        more: dict[str, Any] = {"metavar": takes, "type": KINDS.get(takes, str)}
        if "|" in takes:
            more = {"choices": takes.split("|")}
        elif takes.endswith("..."):
            more = {"metavar": takes.removesuffix("..."), "action": "append", "default": []}
        more.setdefault("default", defaults.get(name[2:].replace("-", "_")))
        parser.add_argument(*names, **more, help=what)


def add_runs_and_json(parser: argparse.ArgumentParser, what: str = "JSON") -> None:
    """--runs, for `experiments.runs.runs.root`, and --json, which prints `what`."""
    add_options(parser, {"--runs DIR": RUNS_FOLDER, "--json": f"print {what}"})
