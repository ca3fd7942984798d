"""The parser of the command line's options, whose errors are one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know in one line, with the nearest thing that it does know.

    argparse shows the usage of all options before an error, which hides the error itself.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but words that are left over are an error of this very parser.

        argparse hands those of a subcommand to the parser above, which has other options.
        """
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                self.error(f"unexpected argument {unknown[0]!r}")
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"there is no option {word!r}" + nearest(word, options))
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Prints one line to stderr, and ends the process with status 2."""
        message = re.sub(r"^argument \S+\|\S+: ", "", message)  # names all subcommands, as below
        choice = re.fullmatch(r"(.*invalid choice: (.*)) \(choose from (.*)\)", message)
        if choice:
            names = [name.strip(" '") for name in choice[3].split(",")]
            hint = nearest(choice[2].strip("'"), names)
            message = f"{choice[1]}{hint or ';'} known: {', '.join(names)}"
        elif not message.endswith("?"):
            message += f"; see `{self.prog} --help`"
        self.exit(2, f"{self.prog}: error: {message}\n")


def nearest(word: str, names: Iterable[str]) -> str:
    """`; did you mean 'NAME'?` with the nearest name, dashes aside; '' without one."""
    import difflib  # as `experiments.text.nearest` does it, without importing that package

    bare = {name.lstrip("-"): name for name in names}
    near = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f"; did you mean {bare[near[0]]!r}?" if near else ""
