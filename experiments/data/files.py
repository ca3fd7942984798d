"""Image files that are no data set, as images that a network is tested on."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from experiments.data import base, foreign
from experiments.data.base import TestData
from experiments.data.preprocessing import Preprocessing
from experiments.data.streamed import StreamedTests
from input_pipeline import DataError, crops, image_files, stream, whole_images
from input_pipeline.boxes import in_image


@dataclass(frozen=True)
class Files:
    """The image files that can be used, as part `test` of `data`."""

    data: TestData
    paths: tuple[Path, ...]
    sizes: np.ndarray  # (n, 2) int32: their heights and widths
    # Side of the central square that is shown, where a mean image or a frame needs small images.
    side: int | None = None

    def in_file(self, i: int, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) of image i of the data in the pixels of its file."""
        if self.side is None:
            return boxes
        view = crops.CentreView(crop=self.side, Q=self.side)
        return in_image(
            boxes - self.data.preprocessing.frame, view.places(*self.sizes[i].tolist())[0]
        )


def open_files(
    paths: Sequence[Path],
    prep: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[Path, str], None] = lambda path, reason: None,
    on_progress: base.Progress = lambda n, total: None,
) -> Files:
    """Image files as a network sees them, for whole views.

    on_bad: is called with each file that can't be used, and why. Raises DataError where none can.
    """
    side, view = prep.small_side(config.data.image_size), None
    if side is not None:
        view = crops.CentreView(crop=side, Q=side)
    usable, sizes, squares, reason = [], [], [], ""
    for n, path in enumerate(paths, 1):
        on_progress(n, len(paths))
        try:
            image = image_files.read_image(path, prep.channels, exif=prep.exif)
        except DataError as error:
            reason = str(error)
            on_bad(path, reason)
            continue
        usable.append(path)
        sizes.append(image.shape[:2])
        if view is not None:
            square = image_files.central_view(image, view, prep.resize)
            squares.append(image_files.framed(square, prep.frame))
    if not usable:
        raise DataError(reason if len(paths) == 1 else f"none of {len(paths)} files can be used")
    stored = np.array(sizes, np.int32)
    options = {
        "name": "image files",
        "fingerprint": "",
        "preprocessing": prep,
        "counts": {"test": len(usable)},
        **base.test_sizes(config),
    }
    if view is not None:
        options["preprocessing"] = dataclasses.replace(prep, of_view=False)
        labels: np.ndarray = np.zeros(len(usable), np.int32)
        data: TestData = foreign.on_device(np.stack(squares), labels, **options)
    else:
        data = _FileTests(
            **options,
            constants=foreign.constants(prep),
            sources={},
            sizes={"test": stored},
            how=stream.Decoding(channels=prep.channels, kernel=prep.resize),
            paths=tuple(usable),
        )
    return Files(data, tuple(usable), stored, side)


@dataclass(frozen=True, kw_only=True)
class _FileTests(StreamedTests):
    """Files that are read and scaled when they are shown, without TensorFlow."""

    paths: tuple[Path, ...]

    def _batches(
        self, part: str, mesh: Mesh, budget: int, view: Any, places: np.ndarray
    ) -> Generator[stream.TestBatch]:
        def read(i: int) -> np.ndarray:
            path = self.paths[places[i]]
            return image_files.read_image(path, self.channels, exif=self.preprocessing.exif)

        return whole_images.whole_batches(
            read,
            view.Q,
            self.sizes[part][places],
            pixels=budget * self.crop**2 // (1 + view.mirrored),
            multiple=mesh.size,
            warp=view.warp,
            how=self.how,
        )
