"""Numbers for people."""

import math
from datetime import timedelta

MINUS = "−"


def count(value: float) -> str:
    """A count with at most three digits: '75.3 k', '0.27 M', '40.6 M', '19.6 G'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (size / 10 if unit == "M" else size):
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:,.{digits}f} {unit}"
    return f"{value:.0f}"


def rounded(value: float) -> str:
    """A number without decimals, with commas."""
    return f"{value:,.0f}"


def with_interval(value: float, low: float | None, high: float | None, digits: int) -> str:
    """'4.5 [3.2, 6.1]'; '4.5' where there is no interval."""
    text = f"{value:.{digits}f}"
    return text if low is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def shortened(text: str, length: int) -> str:
    """A text of at most `length` characters; a longer one ends in an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def loss(value: float) -> str:
    """A loss with three decimals, small ones with four; tiny ones as '4e-06'."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 0.01:
        return f"{value:,.3f}"
    return f"{value:.4f}" if abs(value) >= 0.0005 else f"{value:.0e}"


def duration(seconds: float) -> str:
    """A duration as '3:10:00', hours first."""
    return str(timedelta(seconds=max(1, round(seconds))))


def error_digits(n: int) -> int:
    """Decimals of an error in percent: one for some hundreds of images, two for thousands."""
    return 1 if n < 5000 else 2


def decimal(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals, and a minus as long as a plus. sign: '+' shows a plus too."""
    text = f"{value:{sign},.{digits}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)
