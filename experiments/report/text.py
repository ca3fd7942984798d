"""Numbers for people."""

import math
from datetime import timedelta

MINUS = "−"


def count(value: float) -> str:
    """75.3 k, 0.27 M, 40.6 M, 19.6 G: three figures at most."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (size / 10 if unit == "M" else size):
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:,.{digits}f} {unit}"
    return f"{value:.0f}"


def whole(value: float) -> str:
    """Without decimals."""
    return f"{value:,.0f}"


def loss(value: float) -> str:
    """Three decimals, for small losses four, for tiny ones 4e-06."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 0.01:
        return f"{value:,.3f}"
    return f"{value:.4f}" if abs(value) >= 0.0005 else f"{value:.0e}"


def duration(seconds: float) -> str:
    """'3:10:00', hours first."""
    return str(timedelta(seconds=max(1, round(seconds))))


def error_digits(n: int) -> int:
    """Decimals of an error in percent: one for some hundreds of images, two for thousands."""
    return 1 if n < 5000 else 2


def decimal(value: float, digits: int, sign: str = "") -> str:
    """Fixed digits, with a minus as long as a plus; sign: `+` to have that too."""
    text = f"{value:{sign},.{digits}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)
