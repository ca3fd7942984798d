"""`cnn-depth completion`: what makes a shell complete verbs, options, and names behind them."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from launch import cli

HELP = """\
Print a script with which a shell completes verbs, options and their choices, studies, tables, files
and the ids of runs. Pressing Tab starts no Python: studies and tables are those of the moment when
the script was made, and runs are looked up in $CNN_DEPTH_RUNS, or in runs.

Put it into one of these files, or `source` it in an open bash:

  ~/.local/share/bash-completion/completions/cnn-depth    (with the package bash-completion)
  ~/.zfunc/_cnn-depth                                     (with ~/.zfunc in $fpath before compinit)
  ~/.config/fish/completions/cnn-depth.fish"""
EXAMPLE = """
cnn-depth completion bash
"""
SHELLS = ("bash", "zsh", "fish")
# Arguments that ids of runs complete, by the name that the parser has for them.
RUN = ("run", "row", "word", "seed_from")
# Executed by sh, whatever the user's shell is, so that one script serves all of them.
RUNS = """\
for file in "${CNN_DEPTH_RUNS:-runs}"/*/run.json; do
[ -f "$file" ] || continue; folder="${file%/run.json}"; echo "${folder##*/}"; done"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def main(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    print(shtab.complete(program(), args.shell))
    return 0


def program() -> argparse.ArgumentParser:
    """The whole command line as one parser, whose arguments know what completes them."""
    from experiments import config, papers

    tables = papers.tables().values()
    lists = {
        "study": _list("studies", _words(config.names()) + "; ls *.py 2>/dev/null"),
        "table": _list("tables", _words([*(t.name for t in tables), *(t.paper for t in tables)])),
        **dict.fromkeys(RUN, _list("runs", RUNS)),
    }
    parser = argparse.ArgumentParser(prog=cli.PROGRAM, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers()
    for name, summary in cli.VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        importlib.import_module(cli.MODULES[name]).add_arguments(verb)
        _complete(verb, lists)
    return parser


def _complete(parser: argparse.ArgumentParser, lists: dict[str, dict[str, object]]) -> None:
    """Attaches to each argument what completes it."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete(child, lists)
        elif action.dest in lists:
            action.complete = lists[action.dest]  # type: ignore[attr-defined]
        elif action.type is Path:
            kind = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
            action.complete = kind  # type: ignore[attr-defined]


def _words(names: Iterable[str]) -> str:
    return shlex.join(["printf", "%s\\n", *dict.fromkeys(names)]).replace("'", '"')


def _list(kind: str, script: str) -> dict[str, object]:
    """shtab's completion by the lines that an sh script prints. It must have no single quotes."""
    assert "'" not in script
    function, command = f"_cnn_depth_{kind}", f"sh -c '{script}'"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "$({command})" -- "$1"\n}}',
            "zsh": f'{function}() {{\n  compadd -- ${{(f)"$({command})"}}\n}}',
            "fish": f"function {function}\n  {command}\nend",
        },
    }
