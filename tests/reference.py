"""Writes docs/keys.md and docs/verbs.md from the program: `python tests/reference.py`."""

import argparse
import os
from pathlib import Path

from experiments import config as configs
from launch import cli
from launch.verbs import listing

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEYS = """\
# Keys

Every key of a config, as `cnn-depth list keys` prints them; written by `python tests/reference.py`.
Sizes are pixels, errors percent. The last column says whether a key is part of a run's identity,
which tells runs apart: `no` is for keys that change how a run is executed, not what it computes.
"""
OPTIONS = """
## Options of the architectures

One name can be there several times, as defaults and meanings differ between networks. All are part
of the identity.
"""
VERBS = """\
# Verbs

What `cnn-depth VERB --help` prints; written by `python tests/reference.py`.
"""


def keys() -> str:
    """docs/keys.md: a table for each part of a config, and one of the architectures' options."""
    rows = listing.keys()
    text = KEYS
    for part in dict.fromkeys(name.rpartition(".")[0] for name in configs.KEYS):
        own = [row for row in rows if row["name"].rpartition(".")[0] == part]
        own = [row for row in own if not row["architectures"]]
        text += f"\n## {part or 'The run'}\n\n"
        text += _table(("key", "default", "meaning", "what it may be", "identity"))
        for row in own:
            text += _row(
                f"`{row['name']}`",
                f"`{row['default']!r}`",
                row["meaning"],
                row["values"],
                row["identity"],
            )
    text += OPTIONS + "\n" + _table(("key", "default", "meaning", "what it may be"))
    for row in rows:
        if row["architectures"]:
            default = f"`{row['default']!r}`"
            text += _row(f"`{row['name']}`", default, listing.meaning(row), row["values"])
    return text


def _table(columns: tuple[str, ...]) -> str:
    return _row(*columns) + "|" + "---|" * len(columns) + "\n"


def _row(*cells: str) -> str:
    cells = tuple(cell.replace("|", "\\|") for cell in cells)
    plain = (cell if cell.startswith("`") else cell.replace("*", "\\*") for cell in cells)
    return f"| {' | '.join(plain)} |\n"


def verbs() -> str:
    """docs/verbs.md: the help of every verb, 100 columns wide."""
    text = VERBS
    for name, summary in cli.VERBS.items():
        parser = cli.parser_of(name)
        text += f"\n## {name}\n\n{summary[:1].upper()}{summary[1:]}.\n\n"
        for command in (parser, *_children(parser)):
            text += f"```text\n{command.format_help().strip()}\n```\n"
    return text


def _children(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of a verb's own verbs, such as `data check`."""
    return [
        child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for child in action.choices.values()
    ]


def pages() -> dict[Path, str]:
    """The generated pages, each with its text."""
    os.environ["COLUMNS"] = "100"  # argparse wraps at the width of the terminal
    return {DOCS / "keys.md": keys(), DOCS / "verbs.md": verbs()}


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, encoding="utf-8")
