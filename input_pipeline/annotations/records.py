"""Boxes in the records of TFDS's sets.

TFDS has ymin, xmin, ymax, xmax as shares of an image's height and width. They stay shares: boxes in
an image of 1 x 1 pixels.
"""

from collections.abc import Iterator

from input_pipeline.annotations.annotation import Annotation, Object
from input_pipeline.errors import DataError
from input_pipeline.sources import TfdsSource
from input_pipeline.sources.source import ImageSet, Progress

RECORDS = "records"  # in place of a path; on the command line it is `own`
_OFTEN = 256  # records between two calls of `on_read`


def read_records(
    images: ImageSet, on_read: Progress | None
) -> Iterator[tuple[int, int, Annotation]]:
    """(number in both parts, label, annotation) of every image. Raises DataError.

    Images are read with their records, as these hold both.
    """
    parts = [part for part in (images.train, images.test) if len(part)]
    total, number = sum(map(len, parts)), 0
    for part in parts:
        if not isinstance(part, TfdsSource) or part.box_feature is None:
            raise DataError(
                f"boxes: {images.name!r} has no records of TFDS with boxes in them, as REL_YXYX; "
                "expected the path of annotations"
            )
        for i in range(len(part)):
            label, edges, names = part.objects(i)
            objects = tuple(
                Object(part.where(i), images.folders[label] if name is None else name, box)
                for name, box in zip(names, edges, strict=True)
            )
            yield number, label, Annotation(part.where(i), (), objects, size=("1", "1"))
            number += 1
            if on_read is not None and (number % _OFTEN == 0 or number == total):
                on_read(number, total)
