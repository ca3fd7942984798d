"""Text as it can be printed: what others wrote, durations, and how processes ended."""

import signal
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters (ESC, newlines), invisible ones that change the order of others, halves of
# surrogate pairs, separators of lines and of paragraphs.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # parts of words in Persian, Hindi and others, and of emoji


def visible(text: str) -> str:
    r"""`text` with what would steer a terminal, a table or the order of reading as escapes.

    ESC becomes `\x1b`, a newline `\n`, a right-to-left override `\u202e`. For names, titles,
    classes and paths, wherever they are printed or written into a table.
    """
    if text.isprintable():
        return text
    hidden = {c for c in text if unicodedata.category(c) in HIDDEN and c not in JOINERS}
    return "".join(c.encode("unicode_escape").decode() if c in hidden else c for c in text)


def nearest(hint: str, word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`hint` with the nearest of the names in it, as `did you mean {!r}?`; '' without one.

    cutoff: how near it has to be, from 0 to 1.
    """
    matches = get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return hint.format(matches[0]) if matches else ""


def clock(seconds: float | None) -> str:
    """A duration as `1:05`, `2:03:04` or `3d 02:03`; `?` where it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    days, of_day = divmod(hours, 24)
    if days:
        return f"{days}d {of_day:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ending(code: int) -> str:
    """How a process ended, from its return code: `exit status 3` or `signal SIGSEGV`."""
    if code >= 0:
        return f"exit status {code}"
    names = {number.value: number.name for number in signal.Signals}  # not of all real-time ones
    return f"signal {names.get(-code, -code)}"


def numbered(n: int, thing: str) -> str:
    """'1 run', '2 runs'."""
    return f"{n} {thing}" + ("" if n == 1 else "s")
