"""Statistics of a data set that are kept beside a run."""

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np


def read_statistics(file: Path | None, *names: str) -> dict[str, np.ndarray] | None:
    """Arrays that `keep_statistics` wrote; None where they are not there, or not whole."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            return {name: found[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error):
        return None


def keep_statistics(file: Path | None, **arrays: Any) -> None:
    """Writes the file whole or not at all."""
    if file is not None:
        part = file.with_name(f"part-{file.name}")
        np.savez(part, **arrays)
        part.replace(file)
