"""How verbs declare their options, and the options that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN = "a run's folder or id, a part only its id has, a row (`B`, `B (seed 2)`), or STUDY/ROW"
RUNS = f"{RUN}; or a pattern such as 'vgg_depth/*'"
RUNS_FOLDER = "where runs are kept (default: $CNN_DEPTH_RUNS, or runs)"
# What an option takes, by its metavar; a text where it is none of these.
KINDS = {
    **dict.fromkeys(("C", "K", "N", "PIXELS", "SEED", "QUALITY"), int),
    **dict.fromkeys(("DIR", "FILE"), Path),
    **dict.fromkeys(("SHARE", "WIDTH", "GB/S", "US"), float),
}


def add_options(
    parser: argparse._ActionsContainer,
    options: Mapping[str, str | None],
    **defaults: Any,
) -> None:
    """Options as they are typed, each with its help.

    `--seeds N` takes a number, `--which last|best` one of these, `--set KEY=VALUE...` may be
    repeated, and `--all` takes nothing. defaults: by name, of the options that have one.
    """
    for typed, what in options.items():
        *names, takes = typed.split()
        if not names:
            parser.add_argument(takes, action="store_true", help=what)
            continue
        more: dict[str, Any] = {"metavar": takes, "type": KINDS.get(takes, str)}
        if "|" in takes:
            more = {"choices": takes.split("|")}
        elif takes.endswith("..."):
            more = {"metavar": takes.removesuffix("..."), "action": "append", "default": []}
        more.setdefault("default", defaults.get(names[0].lstrip("-").replace("-", "_")))
        parser.add_argument(*names, **more, help=what)


def add_runs_and_json(parser: argparse.ArgumentParser, what: str = "JSON") -> None:
    """--runs, for `experiments.runs.runs.root`, and --json, which prints `what`."""
    add_options(parser, {"--runs DIR": RUNS_FOLDER, "--json": f"print {what}"})
