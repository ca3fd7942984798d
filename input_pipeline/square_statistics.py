"""What is taken off training images, or fitted to them, from their central squares."""

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
    """Of central squares, 0 to 255: the mean (side, side, C) float64, and that of their pixels."""

    mean_HWC: np.ndarray
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
        """From `count` of the images, spread evenly, at short side `side`. Raises DataError."""
        n = min(count, len(source))
        chosen = source.take(np.unique(np.linspace(0, len(source) - 1, n).astype(np.int64)))
        total = np.zeros((side, side, 3))
        batches = stream.eval_stream(chosen, CentreView(crop=side, Q=side), batch=64, how=how)

        def images() -> Iterator[np.ndarray]:
            done = 0
            for found in batches:
                for image in found.views[found.mask, 0]:
                    np.add(total, image, out=total)
                    yield image
                done += int(found.mask.sum())
                on_progress(done, len(chosen))

        with contextlib.closing(batches):
            pixels = Statistics.fit(images())
        return cls(total / pixels.n, pixels)
