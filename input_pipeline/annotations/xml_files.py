"""Annotations in XML: a file an image, called as the image is.

    ILSVRC      n01440764/n01440764_10026.xml, val/ILSVRC2012_val_00000001.xml
    PASCAL VOC  Annotations/000005.xml, and what programs that follow it write

Both give the first and the last pixel of a box. VOC counts pixels from 1 (its development kit: "the
top-left pixel in the image has coordinates (1, 1)"). ILSVRC counts them from 0: of images 500 wide
its boxes run from 0 to 499, and its development kit measures them as max - min + 1. Which of the
two a file follows, its <database> says.
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
from input_pipeline.sources.source import Progress, again, reading
from input_pipeline.sources.tars import whole_tar

LARGEST = 1 << 20  # bytes of a file; ILSVRC's and VOC's largest have some 30,000
FROM_0, FROM_1 = (0, 0, 1, 1), (-1, -1, 0, 0)  # first and last pixel -> edges
_ZERO = re.compile("ilsvrc|imagenet", re.IGNORECASE)
_VOC = re.compile("voc", re.IGNORECASE)
_EDGES = ("xmin", "ymin", "xmax", "ymax")
# As they are given out: ILSVRC2012_bbox_train_v2.tar.gz, ILSVRC2012_bbox_val_v3.tgz.
ILSVRC = re.compile(r"ILSVRC2012_bbox_(train|val)_v\d+\.(tar|tar\.gz|tgz)")
_ARCHIVE = re.compile(r".+\.(tar|tar\.gz|tgz)", re.IGNORECASE)
_TOGETHER, _THREADS = 256, 8  # files; a network's file system answers several at once


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
    above, start_of_inner = folder.absolute().parts, len(os.path.join(folder, ""))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), _TOGETHER):
            some = files[start : start + _TOGETHER]
            for file, content in zip(some, pool.map(_content, some), strict=True):
                inner = file[start_of_inner:].split(os.sep)
                yield parse(file, (*above, *inner), content)
            if on_read is not None:
                on_read(start + len(some), len(files))


def _xml_files(folder: Path) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()  # folders: links may lead back to one

    def stop(error: OSError) -> None:
        raise error

    with reading(folder):
        for top, folders, names in os.walk(folder, onerror=stop, followlinks=True):
            own = os.stat(top)
            if (own.st_dev, own.st_ino) in seen:
                folders.clear()
                continue
            seen.add((own.st_dev, own.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(top, name) for name in sorted(names) if _is_xml(name))


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def _content(file: str) -> bytes | str:
    """What a file holds, or why it cannot be read."""

    def read() -> bytes:
        with open(file, "rb") as stream:
            return stream.read(LARGEST + 1)

    try:
        return again(read)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def read_xml(file: Path) -> Annotation:
    """The annotation in one file."""
    return parse(str(file), file.absolute().parts, _content(str(file)))


def read_archive(file: Path, on_read: Progress | None) -> Iterator[Annotation]:
    """The annotations of all XML files in a tar, compressed or not. DataError if it is damaged."""
    total, count = file.stat().st_size, 0
    try:
        with _opened(file) as (stream, place), whole_tar(stream, str(file)) as tar:
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
                if on_read is not None and count % _TOGETHER == 0:
                    on_read(place(), total)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: {error}; the tar is truncated or damaged") from error
    if not count:
        raise DataError(f"boxes: {file} holds no XML files")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """A tar, compressed or not, and how far its file is read. It is read to its checksum."""
    with file.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        plain: IO[bytes] = gzip.GzipFile(fileobj=stream) if compressed else stream  # type: ignore
        yield plain, stream.tell
        while plain.read(1 << 20):
            pass


def parse(where: str, path: tuple[str, ...], content: bytes | str) -> Annotation:
    """An annotation from a file's content, or from why there is none."""
    path = (*path[:-1], path[-1][: -len(".xml")])
    if isinstance(content, str):
        return Annotation(where, path, error=content)
    try:
        return _annotation(where, path, _root(content))
    except DataError as error:
        return Annotation(where, path, error=str(error))


def _root(content: bytes) -> ElementTree.Element:
    """The <annotation> of a file. DataError for what is none, or declares entities."""
    if len(content) > LARGEST:
        raise DataError(f"more than {LARGEST >> 20} MB")
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse  # before an entity can be declared
    try:
        guard.Parse(content, True)
        root = ElementTree.fromstring(content)
    except DataError:
        raise
    # The last two are of encodings that are unknown, or have no table.
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"no XML, or cut off: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"<{root.tag}>; expected <annotation>")
    return root


def _refuse(*declared: object) -> None:
    raise DataError("declares a document type, with which entities come; expected none")


def _annotation(where: str, path: tuple[str, ...], root: ElementTree.Element) -> Annotation:
    objects = []
    for one in root.iterfind("object"):
        left, top, right, bottom = (_text(one, f"bndbox/{edge}") for edge in _EDGES)
        objects.append(Object(where, _text(one, "name"), (left, top, right, bottom)))
    size = None
    if root.find("size") is not None:
        size = _text(root, "size/height"), _text(root, "size/width")
    database = _text(root, "source/database")
    zero, voc = _ZERO.search(database), _VOC.search(database)
    shift = FROM_0 if zero else FROM_1
    known = None if zero or voc else database
    return Annotation(where, path, tuple(objects), shift, size, database=known)


def _text(element: ElementTree.Element, path: str) -> str:
    """What stands at a path in an element; '' without it. DataError where it is there twice."""
    found = element.findall(path)
    if len(found) > 1:
        raise DataError(f"has <{path.replace('/', '><')}> twice where one is expected")
    return (found[0].text or "").strip() if found else ""
