"""Text as it can be printed."""

import signal

import pytest

from experiments.text import ending, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ResNet-20, [bold]x[/]", "ResNet-20, [bold]x[/]"),
        ("Zürich 東京 é ½ 👩\u200d🚀 می\u200cخواهم", "Zürich 東京 é ½ 👩\u200d🚀 می\u200cخواهم"),
        ("\x1b[2Ja\x1b]0;b\x07", r"\x1b[2Ja\x1b]0;b\x07"),
        ("a\nb\tc\r\x00\x7f\x9b", r"a\nb\tc\r\x00\x7f\x9b"),
        ("a\u202eb\u2066c\u200bd\ufeff", r"a\u202eb\u2066c\u200bd\ufeff"),
        ("a\u2028b\u2029c\ud800", r"a\u2028b\u2029c\ud800"),
    ],
)
def test_what_would_steer_a_terminal_is_shown_as_an_escape(text, shown):
    assert visible(text) == shown


def test_endings_of_processes_have_names_where_their_signals_have():
    assert ending(3) == "exit status 3"
    assert ending(-signal.SIGSEGV) == "signal SIGSEGV"
    assert ending(-(signal.SIGRTMIN + 1)) == f"signal {signal.SIGRTMIN + 1}"
