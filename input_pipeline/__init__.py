"""Images, and every view of them that a network is shown.

    from input_pipeline import load, order, resident
    digits = load("digits")
    normalise = resident.Normalisation.fit(digits.train.images, "per_pixel")
    view = resident.TrainView(crop=16, pad=2)
    indices, epochs = order.training(seed=0, n=len(digits.train), position=0, batch=64)
    x_BHWC, y_B = resident.train_batch(
        digits.train.images, digits.train.labels, indices, epochs, 0, view, normalise
    )

`resident` imports JAX, and is therefore not imported here.
"""

from input_pipeline.datasets import (
    Dataset,
    Examples,
    balanced,
    load,
    load_npz_test,
    must_be_downloaded,
    names,
    split_holdout,
)
from input_pipeline.errors import DataError

__all__ = [
    "DataError",
    "Dataset",
    "Examples",
    "balanced",
    "load",
    "load_npz_test",
    "must_be_downloaded",
    "names",
    "split_holdout",
]
