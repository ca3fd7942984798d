"""What heads were worth, kept beside the run: transfer/KEY.json, where KEY tells what was asked."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs import runs
from experiments.transfer.transfer import How, Result

FOLDER = "transfer"


def keep(of: Sequence[runs.Run], result: Result) -> None:
    """Keeps a result with the first of the runs whose features it is of.

    Raises RunError where it can't be written.
    """
    file = _file(of, result.layer, result.passes, result.fingerprint, result.how)
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise runs.unwritten(file, error) from error
    runs.write_json(file, result.to_json())


def find(
    of: Sequence[runs.Run], layer: str, passes: Sequence[str], data: str, how: How
) -> dict[str, Any] | None:
    """What `keep` wrote for this, None where it is not there or can't be read.

    of: the runs whose features are taken side by side; passes: their names, as of `Found`; data:
    the fingerprint of the set.
    """
    try:
        found = json.loads(_file(of, layer, passes, data, how).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"wrong", "splits"} <= found.keys() else None


def _file(of: Sequence[runs.Run], layer: str, passes: Sequence[str], data: str, how: How) -> Path:
    asked = {
        "runs": [run.id for run in of],
        "layer": layer,
        "passes": list(passes),
        "data": data,
        "how": asdict(how),
    }
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    return of[0].folder / FOLDER / f"{key}.json"
