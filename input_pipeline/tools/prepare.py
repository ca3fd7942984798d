"""Writes a set of encoded images as TFRecord shards, which `sources.shards` describes and reads.

Several processes write a shard each. Whatever ends them, only finished shards stay, and the same
call goes on with the others. Neither writing nor reading needs TensorFlow.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from input_pipeline import image_files
from input_pipeline.errors import DataError
from input_pipeline.pixels import ppm_header
from input_pipeline.sources import ImageSet, Source, contents
from input_pipeline.sources import shards as layout
from input_pipeline.sources.shards import INDEX_FILE, PARTS, SHARDS_FILE
from input_pipeline.sources.source import as_data_errors, first_names
from input_pipeline.stream import cores
from input_pipeline.tfrecords import checked_records, example, example_features, write_record
from input_pipeline.tools import decoding
from input_pipeline.whole_files import PARTIAL, Arrays, whole_file

_IMAGES_A_SHARD, _MOST_SHARDS = 1024, 1024
_LOCK_FILE = ".lock"  # never deleted, as a waiting process may have opened it
_NAMED = 1000  # undecodable images that are listed by name

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The shards in the folder after a call of `prepare`."""

    counts: dict[str, int]  # part -> images
    size: int  # bytes of all shards
    written: int  # shards that this call wrote
    shrunk: int  # images
    undecodable: int  # images
    undecodable_names: tuple[str, ...]  # the first of them


def prepare(
    images: ImageSet,
    out: str | Path,
    *,
    short_side: int | None = None,
    shards: int | None = None,
    quality: int = 95,
    decoded: bool = False,
    processes: int | None = None,
    on_progress: Progress = lambda stage, done, total: None,
    on_room: Callable[[int, int], None] = lambda needed, free: None,
) -> Prepared:
    """Write `images` into the folder `out`, in their order. Finished shards there are kept.

    short_side: images whose short side is longer are shrunk to it (Lanczos, JPEG of `quality`
    without chroma subsampling). The others, and those that cannot be decoded, are copied byte for
    byte. shards: of the training part (default: one for every 1024 images, 1024 at most). decoded:
    write pixels instead of these images, unless they can't be decoded. Their views are the same bit
    for bit. `on_room(bytes needed, bytes free)` is called first. processes: one a core by default.

    `on_progress(stage, images done, images in all)` has the stages "measure" (if decoded), "write"
    and "verify". The last reads every shard again: its checksums, its count and its labels. Raises
    DataError, also where a disk has no room for decoded images. Finished shards stay then, and a
    second call goes on.
    """
    _check_options(short_side, shards, quality)
    out = Path(out).expanduser()
    _check_images(images)
    state = _state(images, short_side, quality, decoded)
    with contextlib.ExitStack() as stack:
        with _writing(out, "expected a new folder, or an unfinished one"):
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(out))
        with _writing(out, "finished shards stay, and the same command goes on with the others"):
            state = _start_or_resume(out, state, shards)
            return _write_missing(images, out, state, processes, on_progress, on_room)


def _check_options(short_side: int | None, shards: int | None, quality: int) -> None:
    for name, value, low, high in (
        ("short_side", short_side, 8, 1 << 14),
        ("shards", shards, 1, 99_999),
        ("quality", quality, 1, 100),
    ):
        if value is not None and not low <= value <= high:
            raise DataError(f"{name} {value}; expected {low} to {high}")


def _check_images(images: ImageSet) -> None:
    """DataError, now rather than hours later, for images that can't be prepared."""
    if any(part.pixels(i) for part in (images.train, images.test) for i in range(len(part))):
        raise DataError(
            f"{images.name}: these images are kept decoded; expected those that they were made of"
        )
    missing = [source.where(i) for source in (images.train, images.test) for i in source.missing]
    if missing:
        raise DataError(
            f"image files that are links that lead nowhere ({len(missing)}): "
            f"{first_names(missing)}; mend or delete them"
        )


@contextlib.contextmanager
def _writing(out: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}; {advice}"
        ) from error


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Locks the folder, as two calls would delete each other's unfinished files there."""
    # A file, as network file systems lock only what is open for writing.
    descriptor = os.open(out / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise DataError(f"{out}: another process is writing shards here") from None
        yield
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------- what has to be done


def _state(images: ImageSet, short_side: int | None, quality: int, decoded: bool) -> dict[str, Any]:
    """dataset.json while shards are written, without the number of shards."""
    counts = {"train": len(images.train), "val": len(images.test)}
    if not all(counts.values()):
        raise DataError(
            f"{counts['train']} training and {counts['val']} test images; expected both"
        )
    return {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "complete": False,
        "name": images.name,
        "class_names": list(images.class_names),
        "folders": list(images.folders),
        "mirror_ok": images.mirror_ok,
        "source": images.fingerprint,
        "short_side": short_side,
        "quality": None if short_side is None else quality,
        "decoded": decoded,
        "counts": counts,
    }


def _start_or_resume(out: Path, state: dict[str, Any], shards: int | None) -> dict[str, Any]:
    """dataset.json in the folder, written now if it is new. DataError if it has other files."""
    file, counts = out / SHARDS_FILE, state["counts"]
    if not file.exists():
        # Files of a call that was killed.
        unfinished = {file.name for file in out.glob(f"{SHARDS_FILE}.*{PARTIAL}")}
        others = [n for n in os.listdir(out) if not n.startswith(".") and n not in unfinished]
        if others:
            raise DataError(f"{out} holds other files ({sorted(others)[0]!r}); expected none")
        state["shards"] = _shard_counts(counts, shards)
        _write_json(file, state)
        return state
    stored = layout.read_state(file)
    # Without a number of shards, as many as the first call had.
    state["shards"] = stored["shards"] if shards is None else _shard_counts(counts, shards)
    _check_unchanged(out, stored, state)
    return stored


def _check_unchanged(out: Path, stored: dict[str, Any], state: dict[str, Any]) -> None:
    for key, phrase in (
        ("source", "from images with the fingerprint"),
        ("short_side", "with short_side"),
        ("quality", "with quality"),
        ("decoded", "with decoded"),
        ("shards", "with shards"),
        ("counts", "from as many images as"),
        ("class_names", "with the classes"),
    ):
        if state[key] != stored[key]:
            raise DataError(
                f"{out} was prepared {phrase} {stored[key]}, and {state[key]} is asked for; use "
                "another folder, or delete this one"
            )


def _shard_counts(counts: dict[str, int], shards: int | None) -> dict[str, int]:
    train, val = counts["train"], counts["val"]
    if shards is None:
        shards = min(_MOST_SHARDS, math.ceil(train / _IMAGES_A_SHARD))
    shards = min(shards, train)
    return {"train": shards, "val": max(1, min(val, round(shards * val / train)))}


def _write_json(file: Path, content: object) -> None:
    with whole_file(file, synced=True) as stream:
        stream.write(json.dumps(content, indent=1).encode())


class _Shard(NamedTuple):
    """Images `start` to `stop` of a part."""

    part: str
    number: int
    shards: int  # of the part
    start: int
    stop: int

    @property
    def file(self) -> str:
        return layout.shard_file(self.part, self.number, self.shards)

    @property
    def note(self) -> str:
        return self.file.replace(".tfrecord", ".json")


def _all_shards(state: dict[str, Any]) -> list[_Shard]:
    shards = []
    for part in PARTS:
        count, n = state["counts"][part], state["shards"][part]
        bounds = [k * count // n for k in range(n + 1)]
        shards += [_Shard(part, k, n, bounds[k], bounds[k + 1]) for k in range(n)]
    return shards


class _Work(NamedTuple):
    """All that a worker needs to write any shard."""

    out: Path
    sources: dict[str, Source]
    classes: int
    short_side: int | None
    quality: int
    decoded: bool


def _write_missing(
    images: ImageSet,
    out: Path,
    state: dict[str, Any],
    processes: int | None,
    on_progress: Progress,
    on_room: Callable[[int, int], None],
) -> Prepared:
    shards = _all_shards(state)
    sizes = [layout.file_size(out / shard.file) for shard in shards]
    if state["complete"] and state["bytes"] == sizes and _index(out) == state.get("index"):
        return _summary(state, written=0)
    for stray in out.glob("*" + PARTIAL):
        stray.unlink()
    if state["complete"]:
        state = state | {"complete": False}
        _write_json(out / SHARDS_FILE, state)
    sources = {"train": images.train, "val": images.test}
    options = state["short_side"], state["quality"] or 95, state["decoded"]
    work = _Work(out, sources, images.classes, *options)
    total = sum(state["counts"].values())
    missing = [s for s in shards if not (out / s.file).exists() or _read_note(out, s) is None]
    written = total - sum(shard.stop - shard.start for shard in missing)
    if work.decoded and missing:
        ranges = [(sources[shard.part], range(shard.start, shard.stop)) for shard in missing]
        needed = decoding.room(ranges, work.short_side, partial(on_progress, "measure"))
        decoding.check_room(out, needed, on_room)
    with _workers(work, min(processes or cores(), len(shards))) as run:
        run(_write_shard, missing, lambda n: on_progress("write", written + n, total))
        verified = run(_verify_shard, shards, lambda n: on_progress("verify", n, total))
        damaged = [k for k, entry in enumerate(verified) if isinstance(entry, str)]
        if damaged:  # since they were written
            mended = [shards[k] for k in damaged]
            run(_write_shard, mended, lambda n: None)
            for k, entry in zip(damaged, run(_verify_shard, mended, lambda n: None), strict=True):
                if isinstance(entry, str):
                    raise DataError(f"{entry}, just after it was written: is the disk in order?")
                verified[k] = entry
    _write_index(out, state, shards, verified)
    return _summary(_finish(images, out, state, shards, verified), len(missing) + len(damaged))


def _index(out: Path) -> str:
    """The hash of the index in the folder; '' if there is none."""
    with contextlib.suppress(OSError):
        return layout.index_digest((out / INDEX_FILE).read_bytes())
    return ""


def _read_note(out: Path, shard: _Shard) -> dict[str, Any] | None:
    """What `_write_images` did to the images of a finished shard; None if it cannot be read."""
    try:
        note = json.loads((out / shard.note).read_text(encoding="utf-8"))
        good = type(note["shrunk"]) is int and layout.is_strings(note["undecodable"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if good else None


def _finish(
    images: ImageSet,
    out: Path,
    state: dict[str, Any],
    shards: Sequence[_Shard],
    verified: Sequence[Arrays],
) -> dict[str, Any]:
    """Writes dataset.json as complete, with the sizes of all shards; returns it."""
    notes = [note for shard in shards if (note := _read_note(out, shard)) is not None]
    undecodable = [name for note in notes for name in note["undecodable"]]
    fingerprint = images.fingerprint
    if state["short_side"] is not None:  # else the images are the same
        digest = hashlib.sha256(f"{fingerprint} {state['short_side']} {state['quality']}".encode())
        for entry in verified:
            digest.update(entry["checksums"].astype("<u4").tobytes())
        fingerprint = f"images-{digest.hexdigest()[:16]}"
    state = state | {
        "complete": True,
        "fingerprint": fingerprint,
        "bytes": [layout.file_size(out / shard.file) for shard in shards],
        "index": _index(out),
        "shrunk": sum(note["shrunk"] for note in notes),
        "undecodable": len(undecodable),
        "undecodable_names": undecodable[:_NAMED],
    }
    _write_json(out / SHARDS_FILE, state)
    return state


def _summary(state: dict[str, Any], written: int) -> Prepared:
    return Prepared(
        state["counts"],
        sum(state["bytes"]),
        written,
        state["shrunk"],
        state["undecodable"],
        tuple(state["undecodable_names"]),
    )


# ---------------------------------------------------------------------------- worker processes

Task = Callable[[_Work, _Shard, Callable[[], None]], Any]
# Runs a task on each shard, in order, and calls its last argument with the number of images done.
Run = Callable[[Task, Sequence[_Shard], Callable[[int], None]], list[Any]]
_STOP = -(1 << 62)  # as the count of images: workers then end at their next image
_worker: tuple[_Work, Any] | None = None  # in a worker process: (work, counter of images done)


@contextlib.contextmanager
def _workers(work: _Work, processes: int) -> Iterator[Run]:
    """A function that runs tasks in worker processes, or in this process if `processes` is 1."""

    def run_here(task: Task, shards: Sequence[_Shard], on_done: Callable[[int], None]) -> list[Any]:
        ticks = itertools.count(1)
        return [task(work, shard, lambda: on_done(next(ticks))) for shard in shards]

    def run(task: Task, shards: Sequence[_Shard], on_done: Callable[[int], None]) -> list[Any]:
        counter.value = 0
        futures = [pool.submit(_run_task, task, shard) for shard in shards]
        waiting: set[Future] = set(futures)
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                on_done(counter.value)
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{work.out}: a process that wrote shards was killed (out of memory?); finished "
                "shards stay, and the same command goes on with the others"
            ) from error
        return [future.result() for future in futures]

    if processes == 1:
        yield run_here
        return
    # Not forked: JAX and TensorFlow may be running threads here.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (work, counter))
    try:
        yield run
    except BaseException:
        counter.value = _STOP
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(work: _Work, counter: Any) -> None:
    global _worker
    _worker = work, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to end
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()


def _exit_with_parent(sentinel: int) -> None:
    """Ends this worker once its parent has ended, even if that was killed."""
    wait_for([sentinel])
    os._exit(1)


def _run_task(task: Task, shard: _Shard) -> Any:
    assert _worker is not None
    work, counter = _worker

    def tick() -> None:
        with counter.get_lock():
            counter.value += 1
            if counter.value < 0:
                raise InterruptedError("stopped")

    return task(work, shard, tick)


# ------------------------------------------------------------------------------ writing a shard


def _write_shard(work: _Work, shard: _Shard, tick: Callable[[], None]) -> None:
    """Writes a shard. Its note appears first, so that every finished shard has one."""
    with whole_file(work.out / shard.file, synced=True) as stream:
        note = _write_images(stream, work, shard, tick)
        _write_json(work.out / shard.note, note)


def _write_images(
    stream: BinaryIO, work: _Work, shard: _Shard, tick: Callable[[], None]
) -> dict[str, Any]:
    """Writes the records of a shard; returns its note on what was done to the images."""
    source = work.sources[shard.part]
    shrunk = 0
    undecodable: list[str] = []
    for i in range(shard.start, shard.stop):
        where, usable = source.where(i), True
        with as_data_errors(where):
            content, label = source.read(i)
        if work.short_side is not None:
            try:
                smaller = _shrink(content, where, work.short_side, work.quality)
            except DataError:
                usable = False
            else:
                shrunk += smaller is not None
                content = smaller or content
        features: layout.Features = {
            b"image/class/label": label,
            b"image/filename": os.fsencode(where),
            layout.ENCODED: content,  # last: `ShardSource.where` counts on it
        }
        record = example(features)
        if work.decoded:
            decoded = decoding.decoded(where, features, record)
            usable = decoded is not None
            record = record if decoded is None else example(decoded)
        if not usable:
            undecodable.append(where)
        write_record(stream, record)
        tick()
    return {"shrunk": shrunk, "undecodable": undecodable}


def _shrink(content: bytes, where: str, short_side: int, quality: int) -> bytes | None:
    """The image with that short side as JPEG; None if it is no larger. DataError if damaged."""
    height, width = image_files.stated_size(content)
    short = min(height, width)
    if 0 < short <= short_side:
        return None
    pixels = image_files.read_image(where, content=content)
    if (pixels == pixels[..., :1]).all():  # grey, which is a third of the work to decode
        pixels = pixels[..., 0]
    rows, columns = decoding.shrunk(height, width, short_side)
    scaled = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    orientation = image_files.orientation(content)
    if orientation != 1:  # still needed, as the pixels are not turned
        exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    scaled.save(stream, "JPEG", quality=quality, subsampling=0, exif=exif)
    return stream.getvalue()


# ----------------------------------------------------------------------------- reading it again


def _verify_shard(work: _Work, shard: _Shard, tick: Callable[[], None]) -> Arrays | str:
    """The arrays of `_read_shard`, or, as a str, what is wrong with the shard."""
    try:
        return _read_shard(work, shard, tick)
    except DataError as error:
        return str(error)


def _read_shard(work: _Work, shard: _Shard, tick: Callable[[], None]) -> Arrays:
    """The shard's part of the index, and the `checksums` of its records (n,) uint32.

    Raises DataError at the first record that is damaged or differs from what was written.
    """
    file = work.out / shard.file
    rows: list[tuple[int, int, int, int]] = []
    pixel_rows: list[tuple[int, int, bool, int]] = []
    hashes = b""
    for offset, record, checksum in checked_records(file):
        try:
            features = example_features(record)
            image, label = features[layout.ENCODED], features[b"image/class/label"]
            if not isinstance(image, bytes) or not record.endswith(image):
                raise ValueError("the image is not the last feature")
        except (KeyError, ValueError) as error:
            raise DataError(f"{file}: record {len(rows)} has no image and label") from error
        if not isinstance(label, int) or not 0 <= label < work.classes:
            raise DataError(f"{file}: record {len(rows)} has no label of {work.classes} classes")
        if work.decoded:
            checksum = int(features.get(layout.CHECKSUM, checksum))
            pixel_rows.append(_pixel_row(f"{file}: record {len(rows)}", features, image))
        rows.append((offset + len(record) - len(image), len(image), label, checksum))
        hashes += contents.of_bytes(image)
        tick()
    if len(rows) != shard.stop - shard.start:
        raise DataError(f"{file}: {len(rows)} records; expected {shard.stop - shard.start}")
    offsets, sizes, labels, checksums = zip(*rows, strict=True)
    expected = work.sources[shard.part].labels
    if expected is not None and not np.array_equal(labels, expected[shard.start : shard.stop]):
        raise DataError(f"{file}: other labels than the images it was made from")
    return {
        **({"pixels": np.array(pixel_rows, np.uint32)} if work.decoded else {}),
        "counts": np.array([len(rows)], np.int64),
        "offsets": np.array(offsets, np.int64),
        "sizes": np.array(sizes, np.uint32),
        "labels": np.array(labels, np.int32),
        "hashes": np.frombuffer(hashes, np.uint8).reshape(-1, contents.BYTES),
        "checksums": np.array(checksums, np.uint32),
    }


def _pixel_row(where: str, features: layout.Features, image: bytes) -> tuple[int, int, bool, int]:
    """A record's row in the index's `pixels`. Raises DataError where pixels are missing."""
    if layout.PLAIN not in features:
        return 0, 0, False, 0
    header = ppm_header(image)
    if header is None:
        raise DataError(f"{where} has no whole pixels")
    return header.height, header.width, bool(features[layout.PLAIN]), header.orientation


def _write_index(
    out: Path, state: dict[str, Any], shards: Sequence[_Shard], verified: Sequence[Arrays]
) -> None:
    arrays = {}
    for part in PARTS:
        entries = [e for s, e in zip(shards, verified, strict=True) if s.part == part]
        for name in layout.kinds(state):
            arrays[f"{part}_{name}"] = np.concatenate([entry[name] for entry in entries])
    with whole_file(out / INDEX_FILE, synced=True) as stream:
        np.savez(stream, **arrays)
