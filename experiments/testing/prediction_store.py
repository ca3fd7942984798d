"""Where the posteriors of tested runs are kept, and which there are.

Each pass of a protocol has a file of its own in the run's folder, predictions/PART-PASS.npz, which
other protocols, fusions and comparisons read too.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs import runs
from experiments.testing import predictions, protocols
from experiments.testing.predictions import Predictions, PredictionsError
from input_pipeline import crops

ENDED = {"mirror", "left_out"}  # keys that a file has only where its pass has ended


@dataclass(frozen=True)
class EvaluationSettings:
    """What of a run is tested, and on what."""

    which: str = "last"  # checkpoint: `last`, or `best` on held-out images
    data: str | None = None  # as `foreign.open_test` takes it; None: the run's own test images
    # If not 0, the running means and variances of batch normalisation are taken anew from so many
    # training images, as the authors of ResNet did after training.
    statistics_images: int = 0
    # The classes of `data` are the network's in their order, whatever they are called.
    classes_in_order: bool = False

    def file(self, run: runs.Run, part: protocols.Pass) -> Path:
        """Where a pass is kept."""
        words = ["test" if self.data is None else "other", part.name]
        words += ["best"] if self.which == "best" else []
        words += [f"statistics{self.statistics_images}"] if self.statistics_images else []
        words += ["in_order"] if self.classes_in_order else []
        if self.data is not None:
            place = str(Path(self.data).resolve()) if Path(self.data).exists() else self.data
            digest = hashlib.sha256(place.encode()).hexdigest()[:8]
            name = re.sub(r"[^A-Za-z0-9.]+", "_", Path(self.data).name)[-40:]
            words.append(f"{name}-{digest}")
        return run.folder / "predictions" / f"{'-'.join(words)}.npz"


OWN = EvaluationSettings()


@dataclass(frozen=True)
class PlannedTest:
    """A protocol with its scales, as `protocols.resolve` takes them."""

    protocol: str
    scales: str | None = None
    flip: bool = False

    @property
    def name(self) -> str:
        """`dense at 256,384`."""
        flip = "+flip" if self.flip else ""
        return self.protocol + flip + (f" at {self.scales}" if self.scales else "")


def read(file: Path, about: Mapping[str, Any], *, ended: bool = True) -> Predictions | None:
    """The predictions in a file; None where it is missing, damaged or not `about` this.

    ended: the pass must have ended, so that the file also says what was left out.
    """
    if not file.is_file():
        return None
    try:
        stored = predictions.about(file)
        if any(stored.get(key) != value for key, value in about.items()):
            return None
        return None if ended and not stored.keys() >= ENDED else predictions.load(file)
    except PredictionsError:
        return None


def load(
    run: runs.Run,
    protocol: str,
    scales: str | None = None,
    *,
    flip: bool = False,
    settings: EvaluationSettings = OWN,
) -> Predictions:
    """The posteriors of a run tested by a protocol; for `center` the test after training will do.

    RunError: the checkpoint was not tested so. PredictionsError: a file can't be read.
    """
    files = _files(run, PlannedTest(protocol, scales, flip), settings)
    return predictions.mean([predictions.load(file) for file in files])


def is_complete(run: runs.Run, test: PlannedTest) -> bool:
    """Whether `load` has the posteriors of a run's own test images; they are not read."""
    try:
        _files(run, test, OWN)
    except (runs.RunError, PredictionsError):
        return False
    return True


def _files(run: runs.Run, test: PlannedTest, settings: EvaluationSettings) -> list[Path]:
    """The files of a test's passes. Raises as `load` does."""
    config = run.config()
    parts = protocols.resolve(test.protocol, config, test.scales, flip=test.flip)
    final = run.folder / "predictions" / "test-center.npz"
    files = [settings.file(run, part) for part in parts]
    is_final = settings == OWN and parts == protocols.resolve("center", config) and final.is_file()
    if is_final:
        files = [final]
    missing = [part.name for part, file in zip(parts, files, strict=True) if not file.is_file()]
    if missing:
        raise runs.RunError(f"{run.id} was not tested so ({missing[0]} is missing)")
    abouts = [predictions.about(file) for file in files]
    if settings.data is not None and not all("classes" in about for about in abouts):
        raise runs.RunError(f"{run.id} was tested so before classes were matched by name")
    steps = {about.get("step") for about in abouts}
    saved_steps = sorted(int(p.name) for p in run.checkpoints.glob("*") if p.name.isdecimal())
    valid = saved_steps[-1:] if settings.which == "last" else saved_steps
    if not is_final and (len(steps) > 1 or (saved_steps and not steps <= set(valid))):
        raise runs.RunError(f"{run.id} was tested so at another checkpoint than it has now")
    if any(about.get("rounding") != crops.ROUNDING for about in abouts):
        raise runs.RunError(
            f"{run.id} was tested with views by an earlier rule, and has to be tested again"
        )
    return files
