"""Annotations in XML: a file for each image, with the image's name.

    ILSVRC      n01440764/n01440764_10026.xml, val/ILSVRC2012_val_00000001.xml
    PASCAL VOC  Annotations/000005.xml, and what programs that follow it write

Both give the first and the last pixel of a box. VOC counts pixels from 1 (its development kit: "the
top-left pixel in the image has coordinates (1, 1)"). ILSVRC counts them from 0: of images 500 wide
its boxes run from 0 to 499, and its development kit measures them as max - min + 1. A file's
<database> says which of the two it follows.
"""

import contextlib
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat

from input_pipeline.annotations.annotation import Annotation, Object
from input_pipeline.errors import DataError
from input_pipeline.sources.source import Progress, as_data_errors, retried
from input_pipeline.sources.tars import whole_tar

LARGEST = 1 << 20  # bytes of a file; ILSVRC's and VOC's largest have some 30,000
FROM_0, FROM_1 = (0, 0, 1, 1), (-1, -1, 0, 0)  # first and last pixel -> edges
_ILSVRC = re.compile("ilsvrc|imagenet", re.IGNORECASE)
_VOC = re.compile("voc", re.IGNORECASE)
_EDGES = ("xmin", "ymin", "xmax", "ymax")
# The published names: ILSVRC2012_bbox_train_v2.tar.gz, ILSVRC2012_bbox_val_v3.tgz.
ILSVRC = re.compile(r"ILSVRC2012_bbox_(train|val)_v\d+\.(tar|tar\.gz|tgz)")
_ARCHIVE = re.compile(r".+\.(tar|tar\.gz|tgz)", re.IGNORECASE)
_BATCH, _THREADS = 256, 8  # of files; a network file system answers several requests at once


def is_archive(file: Path) -> bool:
    return bool(_ARCHIVE.fullmatch(file.name))


def read_folder(folder: Path, on_read: Progress | None) -> Iterator[Annotation]:
    """The annotations of all XML files in a folder and below it, by name. Raises DataError."""
    files = list(_xml_files(folder))
    if not files:
        raise DataError(
            f"boxes: {folder} holds no XML files; expected these, or ILSVRC's bbox tars, or "
            "Kaggle's tables; a table of one's own is named itself"
        )
    folder_parts, inner_start = folder.absolute().parts, len(os.path.join(folder, ""))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            for file, content in zip(batch, pool.map(_content, batch), strict=True):
                inner = file[inner_start:].split(os.sep)
                yield parse(file, (*folder_parts, *inner), content)
            if on_read is not None:
                on_read(start + len(batch), len(files))


def _xml_files(folder: Path) -> Iterator[str]:
    visited: set[tuple[int, int]] = set()  # folders: links may lead back to one

    def stop(error: OSError) -> None:
        raise error

    with as_data_errors(folder):
        for top, folders, names in os.walk(folder, onerror=stop, followlinks=True):
            stat = os.stat(top)
            if (stat.st_dev, stat.st_ino) in visited:
                folders.clear()
                continue
            visited.add((stat.st_dev, stat.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(top, name) for name in sorted(names) if _is_xml(name))


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def _content(file: str) -> bytes | str:
    """The content of a file, or, as a str, why it cannot be read."""

    def read() -> bytes:
        with open(file, "rb") as stream:
            return stream.read(LARGEST + 1)

    try:
        return retried(read)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def read_xml(file: Path) -> Annotation:
    """The annotation in one file."""
    return parse(str(file), file.absolute().parts, _content(str(file)))


def read_archive(file: Path, on_read: Progress | None) -> Iterator[Annotation]:
    """The annotations of all XML files in a tar, compressed or not. DataError if it is damaged."""
    total, count = file.stat().st_size, 0
    try:
        with _open_tar(file) as (stream, position), whole_tar(stream, str(file)) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # half a million would stay
                parts = tuple(member.name.split("/"))
                if not member.isreg() or not _is_xml(parts[-1]):
                    continue
                inner = tar.extractfile(member)
                assert inner is not None  # it is a file
                where = f"{file}: {member.name}"
                yield parse(where, (file.name, *parts), inner.read(LARGEST + 1))
                count += 1
                if on_read is not None and count % _BATCH == 0:
                    on_read(position(), total)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: {error}; the tar is truncated or damaged") from error
    if not count:
        raise DataError(f"boxes: {file} holds no XML files")


@contextlib.contextmanager
def _open_tar(file: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """(a tar, compressed or not; a function that tells how many bytes of its file are read).

    What is left of it is read on exit, which checks gzip's checksum.
    """
    with file.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        plain: IO[bytes] = gzip.GzipFile(fileobj=stream) if compressed else stream  # type: ignore
        yield plain, stream.tell
        while plain.read(1 << 20):
            pass


def parse(where: str, path: tuple[str, ...], content: bytes | str) -> Annotation:
    """The annotation in a file's content; content: a str says why the file cannot be read."""
    path = (*path[:-1], path[-1][: -len(".xml")])
    if isinstance(content, str):
        return Annotation(where, path, error=content)
    try:
        return _annotation(where, path, _root(content))
    except DataError as error:
        return Annotation(where, path, error=str(error))


def _root(content: bytes) -> ElementTree.Element:
    """The <annotation> of a file. DataError for other content, or where it declares entities."""
    if len(content) > LARGEST:
        raise DataError(f"more than {LARGEST >> 20} MB")
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse  # before an entity can be declared
    try:
        guard.Parse(content, True)
        root = ElementTree.fromstring(content)
    except DataError:
        raise
    # The last two are raised for unknown encodings, or for those without a table.
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"no XML, or cut off: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"<{root.tag}>; expected <annotation>")
    return root


def _refuse(*declared: object) -> None:
    raise DataError("declares a document type, with which entities come; expected none")


def _annotation(where: str, path: tuple[str, ...], root: ElementTree.Element) -> Annotation:
    objects = []
    for element in root.iterfind("object"):
        left, top, right, bottom = (_text(element, f"bndbox/{edge}") for edge in _EDGES)
        objects.append(Object(where, _text(element, "name"), (left, top, right, bottom)))
    size = None
    if root.find("size") is not None:
        size = _text(root, "size/height"), _text(root, "size/width")
    database = _text(root, "source/database")
    ilsvrc, voc = _ILSVRC.search(database), _VOC.search(database)
    shift = FROM_0 if ilsvrc else FROM_1
    unknown_database = None if ilsvrc or voc else database
    return Annotation(where, path, tuple(objects), shift, size, database=unknown_database)


def _text(element: ElementTree.Element, path: str) -> str:
    """The text at a path in an element; '' if there is none. DataError if there are two."""
    elements = element.findall(path)
    if len(elements) > 1:
        raise DataError(f"has <{path.replace('/', '><')}> twice where one is expected")
    return (elements[0].text or "").strip() if elements else ""
