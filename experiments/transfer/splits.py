"""Random splits of a set whose images belong to no parts, as Caltech-101 and Caltech-256."""

from collections.abc import Sequence

import numpy as np

from input_pipeline import DataError


def random_split(
    labels: np.ndarray,
    classes: Sequence[str],
    train_per_class: int,
    seed: int,
    test_per_class: int | None = None,
    *,
    least_left: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, test), both rising, of images drawn class by class without replacement.

    VGG's section B.3 has three such splits of Caltech-101, with 30 training images a class and up
    to 50 test images. Of Caltech-256 it has three with 60, and tests on all others. Its class of
    background or clutter counts as a class in both, which gives 102 and 257.

    labels: (N,) int, from 0. classes: their K names, for messages. test_per_class: the most test
    images of a class; None: all that remain. least_left: images of each class that have to remain,
    0 where others are the test. The split depends on labels, numbers and seed alone. Raises
    DataError for a class that has too few.
    """
    if train_per_class < 1 or (test_per_class is not None and test_per_class < 1) or seed < 0:
        raise DataError(
            f"train_per_class {train_per_class}, test_per_class {test_per_class}, seed {seed}; "
            "expected at least 1, at least 1 or None, and at least 0"
        )
    counts = np.bincount(labels, minlength=len(classes))
    smallest = int(counts.argmin())
    limit = int(counts[smallest]) - least_left
    if limit < train_per_class:
        least = "more than" if least_left else "at least"
        raise DataError(
            f"class {classes[smallest]!r} has {counts[smallest]} images; expected {least} the "
            f"{train_per_class} to train on; choose at most {max(limit, 0)}"
        )
    # Raw Philox words are the same in every NumPy version; shuffles need not be.
    draws = np.random.Philox(key=seed).random_raw(len(labels))
    order = np.lexsort((draws, labels))
    # Of each image in that order, how many of its class come before it.
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    end = len(labels) if test_per_class is None else train_per_class + test_per_class
    train = order[rank_in_class < train_per_class]
    test = order[(rank_in_class >= train_per_class) & (rank_in_class < end)]
    return np.sort(train), np.sort(test)
