"""Boxes around the objects of a set's images, read from published annotations.

    annotated = read_boxes("Annotations/CLS-LOC", image_set)
    annotated.train.inside(7, height, width)

Boxes become edges that lie between pixels (`input_pipeline.boxes`). `xml_files` and `tables` say
how each format counts pixels. Errors in annotations are named and counted; nothing is guessed.

`xml_files`: ILSVRC's and PASCAL VOC's XML, in folders or tars. `tables`: Kaggle's, and one's own.
`records`: TFDS's. `matching`: which image an annotation is of, and which of its boxes count.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.annotations.annotation import Annotation
from input_pipeline.annotations.matching import Annotated, Gathered, Matching
from input_pipeline.annotations.records import RECORDS, read_records
from input_pipeline.annotations.tables import KAGGLES, read_table
from input_pipeline.annotations.xml_files import (
    ILSVRC,
    is_archive,
    read_archive,
    read_folder,
    read_xml,
)
from input_pipeline.errors import DataError
from input_pipeline.sources.source import ImageSet, Progress, as_data_errors

__all__ = ["RECORDS", "Annotated", "read_boxes"]

EXPECTED = (
    "a folder with XML files, ILSVRC's bbox tars or Kaggle's tables in it; an XML file, a tar of "
    f"them, or a .csv; several of these with {os.pathsep!r} between; or 'own': in TFDS's records"
)


def read_boxes(path: str, images: ImageSet, on_read: Progress | None = None) -> Annotated:
    """The boxes of a set's images, from the annotations at `path`.

    path: as `EXPECTED` says, with `records` for `own`. on_read: of annotations, source by source,
    in any unit. Raises DataError where nothing can be read, or no annotation is of an image of the
    set.
    """
    if path == RECORDS:
        gathered = Gathered(images)
        for i, label, annotation in read_records(images, on_read):
            gathered.labels[i] = label
            gathered.give(i, annotation)
        return gathered.result()
    matching = Matching(path, images)
    for place in path.split(os.pathsep):
        if not place:
            raise DataError(f"boxes: {path!r} names no place; expected {EXPECTED}")
        for annotation in _read(Path(place).expanduser(), on_read):
            matching.add(annotation)
    return matching.result()


def _read(place: Path, on_read: Progress | None) -> Iterator[Annotation]:
    if place.is_dir():
        return _read_in(place, on_read)
    if not place.is_file():
        raise DataError(f"boxes: {str(place)!r} does not exist; expected {EXPECTED}")
    if is_archive(place):
        return read_archive(place, on_read)
    if place.suffix.lower() == ".xml":
        return iter([read_xml(place)])
    if place.suffix.lower() == ".csv":
        return read_table(place, on_read)
    raise DataError(f"boxes: {place} is of no kind that is known; expected {EXPECTED}")


def _read_in(folder: Path, on_read: Progress | None) -> Iterator[Annotation]:
    """The annotations in a folder: published tars or tables, or else XML files."""
    with as_data_errors(folder):
        names = sorted(os.listdir(folder))
    tables = [name for name in names if name in KAGGLES]
    tars = [name for name in names if ILSVRC.fullmatch(name)]
    if tables and tars:
        raise DataError(
            f"boxes: {folder} holds both {tables[0]} and {tars[0]}; expected one of them, or its "
            "name"
        )
    for name in tables:
        yield from read_table(folder / name, on_read)
    for name in tars:
        yield from read_archive(folder / name, on_read)
    if not tables + tars:
        yield from read_folder(folder, on_read)
