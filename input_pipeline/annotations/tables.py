"""Annotations in CSV tables.

    Kaggle's   ImageId,PredictionString       n01440764_10026,n01440764 13 20 459 310 n01440764 ...
    one's own  file,class,x1,y1,x2,y2         cat/001.jpg,cat,12,0,100.5,98

Kaggle's table has a row for each image, with pixels as in ILSVRC's XML: the first and the last of
each box, from 0 on. One's own has a row for each box, whose edges lie between pixels: 0, 0, width,
height is the whole image. It names files by their paths in the data folder, or by their names alone
where these are unique. Neither has the size of images.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.annotations.annotation import Annotation, Object
from input_pipeline.annotations.xml_files import FROM_0
from input_pipeline.errors import DataError
from input_pipeline.sources.source import Progress, as_data_errors

KAGGLES = ("LOC_train_solution.csv", "LOC_val_solution.csv")
_KAGGLE = ["ImageId", "PredictionString"]
_OWN = ["file", "class", "x1", "y1", "x2", "y2"]
_OFTEN = 4096  # rows between two calls of `on_read`

Row = tuple[str, list[str]]  # (where it is, for messages; its cells)


def read_table(file: Path, on_read: Progress | None) -> Iterator[Annotation]:
    """The annotations of a table. DataError if it is none, or has another header."""
    with as_data_errors(file):
        rows = _rows(file, on_read)
        _, header = next(rows, ("", []))
        if header == _KAGGLE:
            yield from map(_kaggle_annotation, rows)
        elif header == _OWN:
            yield from _own_annotations(rows)
        else:
            raise DataError(
                f"{file}: the header {','.join(header)!r}; expected {','.join(_OWN)!r}, or "
                f"Kaggle's {','.join(_KAGGLE)!r}"
            )


def _rows(file: Path, on_read: Progress | None) -> Iterator[Row]:
    total = file.stat().st_size
    with file.open("rb") as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        try:
            for k, cells in enumerate(reader, 1):
                if cells:
                    yield f"{file}, line {reader.line_num}", [cell.strip() for cell in cells]
                if on_read is not None and k % _OFTEN == 0:
                    on_read(stream.tell(), total)
        except csv.Error as error:
            raise DataError(f"{file}, line {reader.line_num}: no CSV: {error}") from error


def _kaggle_annotation(row: Row) -> Annotation:
    where, cells = row
    words = cells[1].split() if len(cells) == 2 else []
    if len(words) % 5 and len(words) != 1:  # a class alone: an image without boxes
        words = []
    if not words:
        error = f"{','.join(cells)!r}; expected an image, and class, left, top, right, bottom"
        return Annotation(where, (cells[0],), error=error)
    starts = range(0, len(words) - 1, 5)
    objects = tuple(Object(where, words[k], _edges(words[k + 1 : k + 5])) for k in starts)
    return Annotation(where, (cells[0],), objects, FROM_0)


def _own_annotations(rows: Iterator[Row]) -> Iterator[Annotation]:
    """An annotation for each image, in the order of their first rows."""
    objects_of: dict[str, list[Object]] = {}
    for where, cells in rows:
        if len(cells) != len(_OWN):
            error = f"{','.join(cells)!r}; expected {','.join(_OWN)}"
            yield Annotation(where, (), error=error)
        else:
            objects_of.setdefault(cells[0], []).append(Object(where, cells[1], _edges(cells[2:])))
    for name, objects in objects_of.items():
        yield Annotation(objects[0].where, tuple(os.path.normpath(name).split("/")), tuple(objects))


def _edges(cells: Sequence[str]) -> tuple[str, str, str, str]:
    left, top, right, bottom = cells
    return left, top, right, bottom
