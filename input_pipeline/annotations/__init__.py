"""Boxes around the objects of a set's images, read from the annotations that people give out.

    annotated = read_boxes("Annotations/CLS-LOC", found)
    annotated.train.inside(7, height, width)

Every annotation becomes edges that lie between pixels (`input_pipeline.boxes`). Where a box lies is
counted differently by each format, which `xml_files` and `tables` say. What is wrong in an
annotation is named and counted, and nothing of it is guessed.

`xml_files`: ILSVRC's and PASCAL VOC's XML, in folders or tars. `matching`: which image an
annotation is of, and which of its boxes count.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.annotations.annotation import Annotation
from input_pipeline.annotations.matching import Annotated, Matching
from input_pipeline.annotations.xml_files import is_archive, read_archive, read_folder, read_xml
from input_pipeline.errors import DataError
from input_pipeline.sources.source import ImageSet, Progress

__all__ = ["Annotated", "read_boxes"]

EXPECTED = (
    "a folder of XML files, a tar of them such as ILSVRC2012_bbox_val_v3.tgz, or several of these "
    f"with {os.pathsep!r} between"
)


def read_boxes(path: str, found: ImageSet, on_read: Progress | None = None) -> Annotated:
    """The boxes of a set's images, as the annotations at `path` tell them.

    path: what `EXPECTED` says. on_read: of annotations, by source, in any unit. Raises DataError
    where nothing can be read or no annotation is of an image of the set.
    """
    matching = Matching(path, found)
    for place in path.split(os.pathsep):
        for annotation in _read(Path(place).expanduser(), on_read):
            matching.add(annotation)
    return matching.result()


def _read(place: Path, on_read: Progress | None) -> Iterator[Annotation]:
    if place.is_dir():
        return read_folder(place, on_read)
    if not place.is_file():
        raise DataError(f"boxes: {str(place)!r} does not exist; expected {EXPECTED}")
    if is_archive(place):
        return read_archive(place, on_read)
    if place.suffix.lower() == ".xml":
        return iter([read_xml(place)])
    raise DataError(f"boxes: {place} is of no kind that is known; expected {EXPECTED}")
