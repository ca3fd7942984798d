"""Testing where objects are: VGG's full protocol (appendix A.2).

    found = localise.localise([(localiser, (352, 384))])
    found.rate(5).percent

The classes of an image are the five most probable ones of its classifiers, tested densely. For each
of them the boxes of all localisers, scales and places are merged (`merging`), and the most trusted
one is the answer. An image counts as right where one of the five is its class, and that class's box
shares more than half with a true one, over their union.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config import ConfigError
from experiments.localisation import localised, merging
from experiments.localisation.candidates import Localiser, Net
from experiments.localisation.localised import Localised, LocaliserAt
from experiments.localisation.regression import RIGHT
from experiments.runs import checkpoints, processes
from experiments.testing import evaluate, predictions, protocols
from input_pipeline import DataError, crops
from input_pipeline.boxes import iou

CLASSES = 5  # classes that an image may be said to be of
AT_ONCE = 100  # images whose boxes are merged between two updates of the progress bar


def localise(
    members: Sequence[tuple[Localiser, tuple[int, ...]]],
    classifiers: Sequence[LocaliserAt] = (),
    bar: evaluate.Bar = evaluate.no_bar,
) -> Localised:
    """The merged boxes of several localisers; they are kept with the first, and then read there.

    members: localisers with their test scales. classifiers: with theirs; by default the members'
    own. bar: makes progress bars. Raises RunError, ConfigError, DataError or PredictionsError.
    """
    first = members[0][0]
    run_scales = [(localiser.run, scales) for localiser, scales in members]
    classifiers = tuple(classifiers) or localised.own_classifiers(run_scales)
    about = localised.about(run_scales, classifiers)
    stored = processes.read(lambda: localised.load(first.run, about))
    if stored is not None:
        return stored
    for localiser, _ in members:
        if localiser.data.fingerprint != first.data.fingerprint:
            raise ConfigError(f"{localiser.run.id} and {first.run.id} were trained on other images")
    posteriors = _posteriors(first, classifiers, bar)
    usable = posteriors.ids
    k = min(CLASSES, first.data.classes)
    top: np.ndarray = np.zeros((first.n, k + 1), np.int32)
    top[usable, :k] = np.argsort(-posteriors.posteriors, axis=1, kind="stable")[:, :k]
    top[usable, k] = posteriors.labels  # the class that is given
    candidates: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {int(i): [] for i in usable}
    for localiser, scales in members:
        for Q in scales:
            with bar(f"{localiser.run.id} boxes-Q{Q}") as on_progress:
                for i, boxes, trust in localiser.candidates(Q, top, on_progress):
                    if i in candidates:
                        candidates[i].append((boxes, trust))
    result = _merged(first, about, top, posteriors.labels, candidates, bar)
    if processes.first():
        localised.save(first.run, result)
    processes.meet("the boxes are kept")
    return result


def _posteriors(
    first: Localiser,
    classifiers: Sequence[LocaliserAt],
    bar: evaluate.Bar,
) -> predictions.Predictions:
    """The mean of the classifiers' dense posteriors of the localiser's test images."""
    means = []
    for run, scales in classifiers:
        first.check(run)
        net: Net | None = None
        for Q in scales:
            part = protocols.Pass("dense", (Q,), True)
            file = first.run.folder / "predictions" / f"classes-{run.id}-{part.name}.npz"
            about = {
                "run": run.id,
                "made": localised.made(run),
                "step": checkpoints.step_of(run.checkpoints, "last"),
                "of": first.data.fingerprint,
                "rounding": crops.ROUNDING,
            }
            view = part.view(first.data.crop, warp=first.data.preprocessing.warp)
            label = f"{run.id} {part.name}"
            with bar(f"{label}: sizes of images") as on_progress:
                first.data.prepare("test", view, on_progress)
            net = net or first.net(run)
            mirror = first.data.preprocessing.mirror_ok
            with bar(label) as on_progress:
                posteriors = evaluate.collect(
                    *(first.tester(net), net.params, net.stats, "test", view, file, about),
                    on_progress,
                    mirror=mirror,
                )
            if posteriors is None:
                raise DataError(f"none of the {first.n} test images can be used")
            means.append(posteriors)
    return predictions.mean(means)


def _merged(
    first: Localiser,
    about: dict[str, Any],
    top: np.ndarray,
    labels: np.ndarray,
    candidates: dict[int, list[tuple[np.ndarray, np.ndarray]]],
    bar: evaluate.Bar,
) -> Localised:
    """Merges each image's boxes of each class to one, and compares it with the true ones."""
    assert first.data.boxes is not None
    n, k = len(candidates), top.shape[1] - 1
    ids = np.array(list(candidates), np.int32)
    best: np.ndarray = np.full((n, k + 1, 4), np.nan, np.float32)
    right: np.ndarray = np.zeros((n, k + 1), bool)
    sizes = first.data.stored("test", ids)
    with bar(f"{first.run.id} merging boxes") as on_progress:
        for start in range(0, n, AT_ONCE):
            rows = range(start, min(start + AT_ONCE, n))
            merged = merging.of_images([candidates[int(ids[row])] for row in rows], k + 1)
            for row, boxes in zip(rows, merged, strict=True):
                true_boxes = first.data.boxes["test"].inside(int(ids[row]), *sizes[row].tolist())
                best[row], right[row] = boxes, iou(boxes[:, None], true_boxes).max(axis=1) > RIGHT
            on_progress(rows.stop, n)
    classes = top[ids, :k]
    return Localised(
        about=about,
        ids=ids,
        labels=labels,
        classes=classes,
        boxes=best[:, :k],
        right=right[:, :k] & (classes == labels[:, None]),
        given=right[:, k],
        left_out=first.n - n,
    )
