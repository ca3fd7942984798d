"""The mean image and the colour statistics of the central squares of training images."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from input_pipeline import stream
from input_pipeline.colour import Statistics
from input_pipeline.crops import CentreView
from input_pipeline.sources import Source


@dataclass(frozen=True)
class SquareStatistics:
    """Statistics of central squares, 0 to 255."""

    mean_HWC: np.ndarray  # (side, side, C) float64
    pixels: Statistics

    @classmethod
    def fit(
        cls,
        source: Source,
        side: int,
        count: int,
        how: stream.Decoding,
        on_progress: Callable[[int, int], None],
    ) -> "SquareStatistics":
        """From `count` images, evenly spread, scaled to short side `side`. Raises DataError."""
        n = min(count, len(source))
        chosen = source.take(np.unique(np.linspace(0, len(source) - 1, n).astype(np.int64)))
        total = np.zeros((side, side, 3))
        batches = stream.eval_stream(chosen, CentreView(crop=side, Q=side), batch=64, how=how)

        def images() -> Iterator[np.ndarray]:
            processed = 0
            for batch in batches:
                for image in batch.views[batch.mask, 0]:
                    np.add(total, image, out=total)
                    yield image
                processed += int(batch.mask.sum())
                on_progress(processed, len(chosen))

        with contextlib.closing(batches):
            pixels = Statistics.fit(images())
        return cls(total / pixels.n, pixels)
