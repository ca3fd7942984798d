"""The commands of README.md, docs/ and `--help`, without running them; `make readme` runs those."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from launch import cli

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "readme.py"
_spec = importlib.util.spec_from_file_location("readme", FILE)
readme = importlib.util.module_from_spec(_spec)
sys.modules["readme"] = readme
_spec.loader.exec_module(readme)

COMMANDS = readme.printed()
PRINTED = [command for command in COMMANDS if "cnn-depth " in command.text and not command.python]
OWN = [command for command in PRINTED if "git clone" not in command.text]
EXAMPLES = [
    line.strip()
    for name in cli.VERBS
    for line in re.findall(r"^  (cnn-depth .*)$", cli.parser_of(name).format_help(), re.MULTILINE)
]


def parsed(text: str) -> None:
    """Raises SystemExit where the verb's parser does not take a command line."""
    words = shlex.split(text)
    words = words[words.index("cnn-depth") + 1 :]  # variables of the environment come first
    cli.parser_of(words[0]).parse_args(words[1:])


@pytest.mark.parametrize("command", OWN, ids=lambda command: f"{command.page}, line {command.line}")
def test_commands_of_the_pages_parse_as_printed_and_shortened(command):
    parsed(command.text)
    if command.words:
        parsed(f"{command.text} {command.words}")


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_help_parse(text):
    parsed(text)


def test_each_command_of_the_pages_is_run_or_marked():
    assert len(OWN) > 40  # the blocks are found
    assert all(command.needs in readme.NEEDS for command in COMMANDS if command.needs)
    left_out = [command for command in COMMANDS if command.words is None]  # no rule: LookupError
    assert all(command.needs for command in left_out)
    unused = [
        start
        for start in readme.RULES
        if not any(command.text.startswith(start) for command in COMMANDS)
    ]
    assert not unused


def test_commands_are_read_with_their_lines_and_needs():
    text = "a\n```\ncnn-depth list  # all\nX=1 \\\n  cnn-depth status # jobs; needs Slurm\n```\n"
    text += "```python\nprint(1)\n```\n```toml\na = 1\n```\n"
    assert readme.commands(text) == [
        readme.Command("cnn-depth list", "", 3),
        readme.Command("X=1   cnn-depth status", "Slurm", 4),
        readme.Command("print(1)\n", "", 8, python=True),
    ]


def test_the_package_is_never_installed_by_its_name():
    """It is on no registry: its extras are installed from the checkout."""
    wrong = [
        f"{path.relative_to(ROOT)}: {command}"
        for path in [*readme.PAGES, *ROOT.glob("[ceil]*/**/*.py")]
        for command in re.findall(r"pip install ['\"]?cnn-depth.*", path.read_text("utf-8"))
    ]
    assert not wrong
