"""Nearest images by what the last fully connected layer sees (AlexNet, section 6.1)."""

from dataclasses import dataclass

import numpy as np

from cnn_arch import ArchitectureError, layer_outputs
from experiments.inspection.looking import Looking, evenly
from experiments.transfer.features import FeatureRequest
from input_pipeline import DataError

# Of sets of more images than `WHOLE`, `TRAINING` training images are used, unless features of the
# whole set are kept already.
WHOLE, TRAINING = 6000, 5000
QUERIES = 1000  # test images whose neighbours are looked for
_BATCH = 1024  # queries at once


@dataclass(frozen=True)
class Features:
    """One layer's features of n training and q test images, with their ids."""

    layer: str
    training: np.ndarray  # (n, d) float32
    tested: np.ndarray  # (q, d) float32
    training_ids: np.ndarray  # (n,) int32, the images' places in the set, in order
    tested_ids: np.ndarray  # (q,) int32, in order
    training_images: int  # of the set


def features(looking: Looking, also: np.ndarray) -> Features:
    """Features of all training images or of TRAINING, and of about QUERIES test images.

    also: ids of test images that have to be among them. Features of a whole set are kept beside the
    run, as `Extractor` does. Raises ArchitectureError where logits are no fully connected layer's.
    """
    subject = looking.subject
    try:
        layer = layer_outputs.classifier_input(looking.bare)
    except ArchitectureError as error:
        raise ArchitectureError(
            f"{looking.bare.name} has no fully connected layer for its classes, by whose input "
            "images are compared"
        ) from error
    request = FeatureRequest(layer)
    training, tested = looking.training, np.union1d(evenly(looking.tested, QUERIES), also)
    n = len(training)
    if len(subject.collection) <= WHOLE or subject.is_kept(request):
        (set_features,) = subject.features(request)
        return _selected(layer, set_features.values, set_features.of.ids, training, tested, n)
    training = evenly(training, TRAINING)
    places = np.union1d(training, tested)
    tester, params, stats = subject.network
    parts, computed = [], 0
    with subject.bar(f"{subject.run.id} {layer}") as on_progress:
        for batch in tester.features(params, stats, "test", looking.view, layer, places=places):
            parts.append((batch.values, batch.ids))
            computed += len(batch.ids)
            on_progress(computed, len(places))
    values, ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _selected(layer, values, ids, training, tested, n)


def _selected(
    layer: str,
    values: np.ndarray,
    ids: np.ndarray,
    training: np.ndarray,
    tested: np.ndarray,
    n: int,
) -> Features:
    """The rows of these training and test images, but for images that can't be used.

    n: training images of the set.
    """
    rows, queries = (np.flatnonzero(np.isin(ids, chosen)) for chosen in (training, tested))
    if not len(rows) or not len(queries):
        raise DataError("images are compared with others, and too few can be used")
    x, y = (np.asarray(values[chosen], np.float32) for chosen in (rows, queries))
    return Features(layer, x, y, ids[rows], ids[queries], n)


def nearest(x: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of x (n, d) that are nearest to each query (q, d) by Euclidean distance.

    Returns (rows, distances), each (q, min(k, n)), the nearest first.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(k, len(x)), algorithm="brute").fit(x)
    parts = [index.kneighbors(queries[at : at + _BATCH]) for at in range(0, len(queries), _BATCH)]
    distances, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return rows, distances
