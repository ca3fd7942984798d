"""Results of heads, kept beside the run: transfer/KEY.json, where KEY is a hash of the request."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs import runs
from experiments.transfer import transfer
from experiments.transfer.features import Extractor, FeatureRequest
from experiments.transfer.transfer import HeadSettings, Result
from input_pipeline import crops

FOLDER = "transfer"


def learn(
    of: Sequence[tuple[Extractor, FeatureRequest]],
    how: HeadSettings,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """The result of a head on the features of networks, side by side, computed where needed.

    The result is kept if the networks are the last checkpoints' of trained runs, and features are
    kept as float32. Raises what `Extractor.found`, `transfer.run` and `save` do.
    """
    result = transfer.run([subject.features(request) for subject, request in of], how, on_progress)
    usual = ("last", "float32", True)
    if all(
        (subject.settings.which, request.dtype, subject.run.trained) == usual
        for subject, request in of
    ):
        save([subject.run for subject, _ in of], result)
    return result


def save(of: Sequence[runs.Run], result: Result) -> None:
    """Keeps a result with the first of the runs whose features it is of.

    Raises RunError where it can't be written.
    """
    file = _file(of, result.layer, result.passes, result.fingerprint, result.how)
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise runs.unwritten(file, error) from error
    runs.write_json(file, result.to_json())


def by_fingerprint(
    of: Sequence[runs.Run], layer: str, passes: Sequence[str], data: str, how: HeadSettings
) -> dict[str, Any] | None:
    """The result that `save` wrote, or None where there is none or it can't be read.

    of: the runs whose features are taken side by side. passes: their names, as of `PassFeatures`.
    data: the fingerprint of the set.
    """
    return _read(_file(of, layer, passes, data, how))


def by_name(
    of: Sequence[runs.Run], layer: str, passes: Sequence[str], name: str, how: HeadSettings
) -> dict[str, Any] | None:
    """The result that `save` wrote for a set of which only the name is known.

    None where there is no such result, and where several sets of this name have one.
    """
    results = {}
    for file in sorted((of[0].folder / FOLDER).glob("*.json")):
        result = _read(file)
        if (
            result
            and result["data"] == name
            and file == _file(of, layer, passes, result["fingerprint"], how)
        ):
            results[file] = result
    return next(iter(results.values())) if len(results) == 1 else None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    needed = {"wrong", "splits", "data", "fingerprint"}
    return result if isinstance(result, dict) and needed <= result.keys() else None


def _file(
    of: Sequence[runs.Run], layer: str, passes: Sequence[str], data: str, how: HeadSettings
) -> Path:
    request = {
        "runs": [run.id for run in of],
        "layer": layer,
        "passes": list(passes),
        "data": data,
        "how": asdict(how),
        "rounding": crops.ROUNDING,
    }
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return of[0].folder / FOLDER / f"{key}.json"
