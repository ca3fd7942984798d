"""The boxes that a localiser says of image files that are no data set: `cnn-depth predict`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_collections
import numpy as np
from jax.sharding import Mesh

from experiments.data import TestData, preprocessing
from experiments.data.files import open_files
from experiments.localisation import merging
from experiments.localisation.candidates import Localiser
from experiments.runs import processes, runs
from experiments.testing import evaluate
from input_pipeline import crops


@dataclass(frozen=True)
class LocalisedFile:
    """The k most probable classes of one image, best first, with their boxes."""

    path: Path
    classes: np.ndarray  # (k,) int
    probabilities: np.ndarray  # (k,) float32
    boxes: np.ndarray  # (k, 4) float64: left, top, right, bottom, pixels of the file


@dataclass
class _Shown:
    """A run and the image files that it is shown; a `candidates.Subject`."""

    run: runs.Run
    config: ml_collections.ConfigDict
    mesh: Mesh
    data: TestData


def localise_files(
    run: runs.Run,
    paths: Sequence[Path],
    scales: Sequence[int],
    mesh: Mesh,
    *,
    top: int = 5,
    which: str = "last",
    on_bad: Callable[[Path, str], None] = lambda path, reason: None,
    bar: evaluate.Bar = evaluate.no_bar,
) -> list[LocalisedFile]:
    """The boxes that a run says of image files, merged as `localise` does.

    The classes are the most probable ones of the classifier that the run was started from. scales:
    short sides, pixels. on_bad: called with each unusable file and the reason. Raises RunError,
    CheckpointError or ConfigError where the run says no boxes, and DataError without usable files.
    """
    config, prep = run.config(), preprocessing.load(run.folder / preprocessing.FILE)
    with bar("reading") as on_progress:
        files = open_files(paths, prep, config, on_bad, on_progress)
    shown = _Shown(run, config, processes.own_mesh(mesh), files.data)
    localiser = Localiser(shown, which)
    posteriors = _posteriors(localiser, scales, bar)
    k = min(top, posteriors.shape[1])
    classes = np.argsort(-posteriors, axis=1, kind="stable")[:, :k].astype(np.int32)
    candidates: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in files.paths]
    for Q in scales:
        with bar(f"boxes at {Q}") as on_progress:
            for i, boxes, trust in localiser.said(Q, classes, on_progress):
                candidates[i].append((boxes, trust))
    merged = merging.of_images(candidates, k)
    return [
        LocalisedFile(path, classes[i], posteriors[i, classes[i]], files.in_file(i, merged[i]))
        for i, path in enumerate(files.paths)
    ]


def _posteriors(localiser: Localiser, scales: Sequence[int], bar: evaluate.Bar) -> np.ndarray:
    """The classifier's dense posteriors, (n, classes), averaged over all scales."""
    net, data = localiser.nets[1], localiser.data
    tester = localiser.tester(net)
    total: np.ndarray = np.zeros((localiser.n, data.classes))
    for Q in scales:
        view, tested = crops.WholeView(Q=Q, warp=data.preprocessing.warp), 0
        mirror = data.preprocessing.mirror_ok
        batches = tester.batches(net.params, net.stats, "test", view, mirror=mirror)
        with bar(f"classes at {Q}") as on_progress:
            for batch in batches:
                total[batch.ids] += batch.posteriors / len(scales)
                tested += len(batch.ids)
                on_progress(tested, localiser.n)
    return total
