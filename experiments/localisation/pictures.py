"""What a localiser says of image files that are no data set: `cnn-depth predict`."""

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
class Seen:
    """What is said of one image, of its k most probable classes, best first."""

    path: Path
    classes: np.ndarray  # (k,) int
    probabilities: np.ndarray  # (k,) float32
    boxes: np.ndarray  # (k, 4) float64: left, top, right, bottom, pixels of the file


@dataclass
class _Shown:
    """Image files that are shown to a run."""

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
) -> list[Seen]:
    """Where a run says that the objects of image files are, as `localise` finds boxes.

    The classes are the most probable ones of the classifier that the run was started from. scales:
    short sides, pixels. on_bad: hears of each file that can't be used, and why. Raises RunError,
    CheckpointError or ConfigError where the run says no boxes, and DataError where no file is left.
    """
    config, seen = run.config(), preprocessing.load(run.folder / preprocessing.FILE)
    with bar("reading") as on_progress:
        files = open_files(paths, seen, config, on_bad, on_progress)
    shown = _Shown(run, config, processes.own_mesh(mesh), files.data)
    localiser = Localiser(shown, which)
    posteriors = _posteriors(localiser, scales, bar)
    k = min(top, posteriors.shape[1])
    classes = np.argsort(-posteriors, axis=1, kind="stable")[:, :k].astype(np.int32)
    said: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in files.paths]
    for Q in scales:
        with bar(f"boxes at {Q}") as on_progress:
            for i, boxes, trust in localiser.said(Q, classes, on_progress):
                said[i].append((boxes, trust))
    merged = merging.of_images(said, k)
    return [
        Seen(path, classes[i], posteriors[i, classes[i]], files.in_file(i, merged[i]))
        for i, path in enumerate(files.paths)
    ]


def _posteriors(localiser: Localiser, scales: Sequence[int], bar: evaluate.Bar) -> np.ndarray:
    """The classifier's dense posteriors, (n, classes), the mean of all scales."""
    net, data = localiser.nets[1], localiser.data
    tester = localiser.tester(net)
    total: np.ndarray = np.zeros((localiser.n, data.classes))
    for Q in scales:
        view, done = crops.WholeView(Q=Q, warp=data.seen.warp), 0
        mirror = data.seen.mirror_ok
        batches = tester.batches(net.params, net.stats, "test", view, mirror=mirror)
        with bar(f"classes at {Q}") as on_progress:
            for batch in batches:
                total[batch.ids] += batch.posteriors / len(scales)
                done += len(batch.ids)
                on_progress(done, localiser.n)
    return total
