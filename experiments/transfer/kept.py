"""What heads were worth, kept beside the run: transfer/KEY.json, where KEY tells what was asked."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs import runs
from experiments.transfer import transfer
from experiments.transfer.features import Extractor, Wanted
from experiments.transfer.transfer import How, Result
from input_pipeline import crops

FOLDER = "transfer"


def learn(
    of: Sequence[tuple[Extractor, Wanted]],
    how: How,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """A head on the features of networks, side by side, which are computed where they have to be.

    The result is kept if the networks are the last checkpoints' of trained runs, and features are
    kept as float32.
    Raises what `Extractor.found`, `transfer.run` and `keep` do.
    """
    result = transfer.run([subject.found(wanted) for subject, wanted in of], how, on_progress)
    usual = ("last", "float32", True)
    if all((one.asked.which, wanted.dtype, one.run.trained) == usual for one, wanted in of):
        keep([subject.run for subject, _ in of], result)
    return result


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
    return _read(_file(of, layer, passes, data, how))


def called(
    of: Sequence[runs.Run], layer: str, passes: Sequence[str], name: str, how: How
) -> dict[str, Any] | None:
    """What `keep` wrote for this, of a set that is not at hand but for its name.

    None too where that was of several sets of this name.
    """
    found = {}
    for file in sorted((of[0].folder / FOLDER).glob("*.json")):
        told = _read(file)
        if (
            told
            and told["data"] == name
            and file == _file(of, layer, passes, told["fingerprint"], how)
        ):
            found[file] = told
    return next(iter(found.values())) if len(found) == 1 else None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    needed = {"wrong", "splits", "data", "fingerprint"}
    return found if isinstance(found, dict) and needed <= found.keys() else None


def _file(of: Sequence[runs.Run], layer: str, passes: Sequence[str], data: str, how: How) -> Path:
    asked = {
        "runs": [run.id for run in of],
        "layer": layer,
        "passes": list(passes),
        "data": data,
        "how": asdict(how),
        "rounding": crops.ROUNDING,
    }
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    return of[0].folder / FOLDER / f"{key}.json"
