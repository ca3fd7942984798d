"""Numbers and texts for people, and the columns of tables that hold them."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MINUS = "−"


@dataclass(frozen=True)
class Cell:
    """A figure for people: its raw value, its text, and a second line for several seeds."""

    value: object
    text: str
    below: str = ""

    def joined(self, between: str) -> str:
        return between.join(filter(None, (self.text, self.below)))


@dataclass(frozen=True)
class Column:
    """A column for people; `drop` > 0: left out first (highest number first) on a narrow screen.

    group: what this column and its neighbours of the same group are parts of.
    """

    header: str
    unit: str
    right: bool
    cell: Callable[[dict], Cell]
    drop: int = 0
    group: str = ""


def plain(key: str, show: Callable[[Any], str]) -> Callable[[dict], Cell]:
    """The cell of a record's entry; an empty one where it is None."""
    return lambda record: Cell(record[key], "" if record[key] is None else show(record[key]))


def count(value: float | None) -> str:
    """75.3 k, 0.27 M, 40.6 M, 19.6 G: three figures at most."""
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (size / 10 if unit == "M" else size):
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:,.{digits}f} {unit}"
    return f"{value:.0f}"


def number(value: float | None, digits: int) -> str:
    """Fixed digits with thousands separators; '' for None, 'nan' or 'inf' as they are."""
    return "" if value is None else f"{value:,.{digits}f}"


def whole(value: float) -> str:
    """Without decimals."""
    return number(value, 0)


def loss(value: float | None) -> str:
    """Three decimals, for small losses four, for tiny ones 4e-06."""
    if value is None or not math.isfinite(value) or value == 0 or abs(value) >= 0.01:
        return number(value, 3)
    return f"{value:.4f}" if abs(value) >= 0.0005 else f"{value:.0e}"


def error_digits(n: int) -> int:
    """Decimals of an error in percent: one for some hundreds of images, two for thousands."""
    return 1 if n < 5000 else 2


def decimal(value: float, digits: int, sign: str = "") -> str:
    """Fixed digits, with a minus as long as a plus; sign: `+` to have that too."""
    text = f"{value:{sign},.{digits}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(document: Any) -> str:
    """A file of this. Not finite -> null."""
    return json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(columns: Iterable[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """A file of these lines; an empty field is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Text that breaks no table."""
    return text.replace("|", "\\|").replace("\n", " ")
