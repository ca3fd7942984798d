"""Whoever waits at a terminal hears of it."""

import io
import time

from launch import patience


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said(monkeypatch, screen, seconds):
    monkeypatch.setattr("sys.stderr", screen)
    with patience.waiting("planning the rows"):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not screen.getvalue():
            time.sleep(0.01)
    return screen.getvalue()


def test_what_takes_long_is_told_at_a_terminal_only(monkeypatch):
    monkeypatch.setattr(patience, "SECONDS", 0.05)
    assert said(monkeypatch, Terminal(), 60) == "planning the rows ...\n"
    assert said(monkeypatch, io.StringIO(), 0.2) == ""
    monkeypatch.setattr(patience, "SECONDS", 60)
    assert said(monkeypatch, Terminal(), 0.05) == ""
