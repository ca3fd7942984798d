"""Nearest images by what the last fully connected layer sees (AlexNet, section 6.1)."""

from dataclasses import dataclass

import numpy as np

from cnn_arch import ArchitectureError, layer_outputs
from experiments.inspection.looking import Looking, evenly
from experiments.transfer.features import Wanted
from input_pipeline import DataError

# Of sets of more images than `WHOLE`, `TRAINING` training images are used, unless features of the
# whole set are kept already.
WHOLE, TRAINING = 6000, 5000
QUERIES = 1000  # test images whose neighbours are looked for
_BATCH = 1024  # queries at once


@dataclass(frozen=True)
class Features:
    """One layer's features of n training and q test images, with their ids and labels."""

    layer: str
    training: np.ndarray  # (n, d) float32
    tested: np.ndarray  # (q, d) float32
    training_ids: np.ndarray  # (n,) int32, the images' places in the set, in order
    tested_ids: np.ndarray  # (q,) int32, in order
    training_labels: np.ndarray  # (n,) int32, of the set's classes
    tested_labels: np.ndarray  # (q,) int32
    of: int  # training images of the set


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
    request = Wanted(layer)
    training, tested = looking.training, np.union1d(evenly(looking.tested, QUERIES), also)
    if len(subject.collection) <= WHOLE or subject.kept(request):
        (layer_features,) = subject.found(request)
        images = layer_features.of
        return _chosen(
            layer, layer_features.values, images.ids, images.labels, training, tested, len(training)
        )
    sample = evenly(training, TRAINING)
    places = np.union1d(sample, tested)
    tester, params, stats = subject.network
    view = looking.view
    parts, computed = [], 0
    with subject.bar(f"{subject.run.id} {layer}") as on_progress:
        for batch in tester.features(params, stats, "test", view, layer, places=places):
            parts.append((batch.values, batch.ids, batch.labels))
            computed += len(batch.ids)
            on_progress(computed, len(places))
    values, ids, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _chosen(layer, values, ids, labels, sample, tested, len(training))


def _chosen(
    layer: str,
    values: np.ndarray,
    ids: np.ndarray,
    labels: np.ndarray,
    training: np.ndarray,
    tested: np.ndarray,
    n_training: int,
) -> Features:
    sides = []
    for chosen in (training, tested):
        rows = np.flatnonzero(np.isin(ids, chosen))  # without images that can't be used
        sides.append([np.asarray(values[rows], np.float32), ids[rows], labels[rows]])
    (x, x_ids, x_labels), (y, y_ids, y_labels) = sides
    if not len(x) or not len(y):
        raise DataError("images are compared with others, and too few can be used")
    return Features(layer, x, y, x_ids, y_ids, x_labels, y_labels, n_training)


def nearest(x: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of x (n, d) that are nearest to each query (q, d) by Euclidean distance.

    Returns (rows, distances), each (q, min(k, n)), the nearest first.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(k, len(x)), algorithm="brute").fit(x)
    parts = [index.kneighbors(queries[at : at + _BATCH]) for at in range(0, len(queries), _BATCH)]
    distances, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return rows, distances
