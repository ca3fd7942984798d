"""Writing a set of encoded images as TFRecord shards, which `sources.shards` describes and reads.

Several processes write a shard each. Whatever ends them, finished shards stay and no half one
does; the same call goes on with the others. Neither writing nor reading needs TensorFlow.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from input_pipeline import image_files
from input_pipeline.errors import DataError
from input_pipeline.sources import ImageSet, Source, contents
from input_pipeline.sources.shards import (
    FORMAT,
    INDEX_FILE,
    KINDS,
    PARTS,
    SHARDS_FILE,
    VERSION,
    file_size,
    index_digest,
    is_strings,
    read_state,
    shard_file,
)
from input_pipeline.sources.source import some
from input_pipeline.stream import cores
from input_pipeline.tfrecords import (
    checked_records,
    example,
    example_features,
    span,
    write_record,
)

_IMAGES_A_SHARD, _MOST_SHARDS = 1024, 1024
_PART = ".part"  # behind the name of a file that is being written
_LOCK_FILE = ".lock"  # stays: who waits for it may have opened it
_NAMED = 1000  # undecodable images that are listed by name

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What lies in the folder, and how many shards this call wrote."""

    counts: dict[str, int]  # part -> images
    size: int  # bytes of all shards
    written: int
    shrunk: int
    undecodable: int
    undecodable_names: tuple[str, ...]


def prepare(
    images: ImageSet,
    out: str | Path,
    *,
    short_side: int | None = None,
    shards: int | None = None,
    quality: int = 95,
    processes: int | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Write `images` into the folder `out`, in their order; what lies there finished is kept.

    short_side: images whose short side is longer are shrunk to it (Lanczos, JPEG of `quality`
    without chroma subsampling); the others, and those that cannot be decoded, are copied byte for
    byte. shards: of the training part (default: one for every 1024 images, 1024 at most).
    processes: default one a core. `on_progress(stage, images done, images in all)`, the stages
    being "write" and "verify". Every shard is read again in the end: its checksums, its count and
    its labels. Raises DataError; finished shards stay then, and a second call goes on.
    """
    _check_options(short_side, shards, quality)
    out = Path(out).expanduser()
    _check_listed(images)
    with contextlib.ExitStack() as until_the_end:
        with _writing(out, "expected a new folder, or an unfinished one"):
            out.mkdir(parents=True, exist_ok=True)
            until_the_end.enter_context(_alone(out))
        with _writing(out, "finished shards stay, and the same command goes on with the others"):
            state = _state(images, out, short_side, shards, quality)
            return _write_missing(images, out, state, processes, on_progress or _silent)


def _silent(*progress: object) -> None:
    pass


def _check_options(short_side: int | None, shards: int | None, quality: int) -> None:
    for name, value, low, high in (
        ("short_side", short_side, 8, 1 << 14),
        ("shards", shards, 1, 99_999),
        ("quality", quality, 1, 100),
    ):
        if value is not None and not low <= value <= high:
            raise DataError(f"{name} {value}; expected {low} to {high}")


def _check_listed(images: ImageSet) -> None:
    """Found out now, not hours later."""
    missing = [source.where(i) for source in (images.train, images.test) for i in source.missing]
    if missing:
        raise DataError(
            f"image files that are links that lead nowhere ({len(missing)}): {some(missing)}; "
            "mend or delete them"
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
def _alone(out: Path) -> Iterator[None]:
    """Two calls that write to one folder would take each other's unfinished files away."""
    # A file, as network file systems lock nothing that is not open for writing.
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


# ------------------------------------------------------------------------- what is to be done


def _state(
    images: ImageSet, out: Path, short_side: int | None, shards: int | None, quality: int
) -> dict[str, Any]:
    """dataset.json as it is while shards are written; DataError if other ones lie there."""
    counts = {"train": len(images.train), "val": len(images.test)}
    if not all(counts.values()):
        raise DataError(
            f"{counts['train']} training and {counts['val']} test images; expected both"
        )
    state: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "name": images.name,
        "class_names": list(images.class_names),
        "folders": list(images.folders),
        "mirror_ok": images.mirror_ok,
        "source": images.fingerprint,
        "short_side": short_side,
        "quality": None if short_side is None else quality,
        "counts": counts,
    }
    file = out / SHARDS_FILE
    if not file.exists():
        begun = SHARDS_FILE + _PART  # of a process that was killed
        others = [n for n in os.listdir(out) if not n.startswith(".") and n != begun]
        if others:
            raise DataError(f"{out} holds other files ({sorted(others)[0]!r}); expected none")
        state["shards"] = _shard_counts(counts, shards)
        _write_json(file, state)
        return state
    known = read_state(file)
    # Without a number of shards: as many as they were begun with.
    state["shards"] = known["shards"] if shards is None else _shard_counts(counts, shards)
    _check_same(out, known, state)
    return known


def _check_same(out: Path, known: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, what in (
        ("source", "from images with the fingerprint"),
        ("short_side", "with short_side"),
        ("quality", "with quality"),
        ("shards", "with shards"),
        ("counts", "from as many images as"),
        ("class_names", "with the classes"),
    ):
        if asked[key] != known[key]:
            raise DataError(
                f"{out} was prepared {what} {known[key]}, and {asked[key]} is asked for; use "
                "another folder, or delete this one"
            )


def _shard_counts(counts: dict[str, int], shards: int | None) -> dict[str, int]:
    train, val = counts["train"], counts["val"]
    if shards is None:
        shards = min(_MOST_SHARDS, math.ceil(train / _IMAGES_A_SHARD))
    shards = min(shards, train)
    return {"train": shards, "val": max(1, min(val, round(shards * val / train)))}


def _write_json(file: Path, content: object) -> None:
    with _whole_or_none(file) as stream:
        stream.write(json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def _whole_or_none(file: Path) -> Iterator[BinaryIO]:
    """To write a file under another name first: whatever ends this leaves no half file."""
    part = file.with_name(file.name + _PART)
    try:
        with part.open("wb", buffering=1 << 20) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):  # gives the disk its space back
            part.unlink(missing_ok=True)
        raise


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Images `start` to `stop` of a part."""

    part: str
    number: int
    of: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return shard_file(self.part, self.number, self.of)

    @property
    def note(self) -> str:
        return self.file.replace(".tfrecord", ".json")


def _all_shards(state: dict[str, Any]) -> list[_Shard]:
    found = []
    for part in PARTS:
        count, of = state["counts"][part], state["shards"][part]
        bounds = [k * count // of for k in range(of + 1)]
        found += [_Shard(part, k, of, bounds[k], bounds[k + 1]) for k in range(of)]
    return found


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a worker needs to write any shard."""

    out: Path
    sources: dict[str, Source]
    classes: int
    short_side: int | None
    quality: int


def _write_missing(
    images: ImageSet,
    out: Path,
    state: dict[str, Any],
    processes: int | None,
    on_progress: Progress,
) -> Prepared:
    everything = _all_shards(state)
    sizes = [file_size(out / shard.file) for shard in everything]
    if state["complete"] and state["bytes"] == sizes and _has_own_index(out, state):
        return _summary(state, written=0)
    for stray in out.glob("*" + _PART):
        stray.unlink()
    if state["complete"]:
        state = state | {"complete": False}
        _write_json(out / SHARDS_FILE, state)
    sources = {"train": images.train, "val": images.test}
    work = _Work(out, sources, images.classes, state["short_side"], state["quality"] or 95)
    total = sum(state["counts"].values())
    missing = [s for s in everything if not (out / s.file).exists() or _read_note(out, s) is None]
    with _Workers(work, processes, len(everything)) as workers:
        done = total - sum(shard.stop - shard.start for shard in missing)
        workers.run(_write_shard, missing, functools.partial(on_progress, "write"), done, total)
        verify = functools.partial(on_progress, "verify")
        read = workers.run(_verify_shard, everything, verify, 0, total)
        damaged = [s for s, one in zip(everything, read, strict=True) if isinstance(one, str)]
        if damaged:  # by someone else, since they were written
            workers.run(_write_shard, damaged, _silent, 0, total)
            again = iter(workers.run(_verify_shard, damaged, _silent, 0, total))
            read = [next(again) if isinstance(one, str) else one for one in read]
    for one in read:
        if isinstance(one, str):
            raise DataError(f"{one}, just after it was written: is the disk in order?")
    _write_index(out, everything, read)
    return _summary(_finish(images, out, state, everything, read), len(missing) + len(damaged))


def _has_own_index(out: Path, state: dict[str, Any]) -> bool:
    try:
        return index_digest((out / INDEX_FILE).read_bytes()) == state.get("index")
    except OSError:
        return False


def _read_note(out: Path, shard: _Shard) -> dict[str, Any] | None:
    """What was done to the images of a finished shard; None if it cannot be read."""
    try:
        note = json.loads((out / shard.note).read_text(encoding="utf-8"))
        good = type(note["shrunk"]) is int and is_strings(note["undecodable"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if good else None


def _finish(
    images: ImageSet,
    out: Path,
    state: dict[str, Any],
    everything: Sequence[_Shard],
    read: Sequence["_Contents"],
) -> dict[str, Any]:
    """dataset.json with `complete`: the sizes of all shards, and what was done to the images."""
    notes = [note for shard in everything if (note := _read_note(out, shard)) is not None]
    undecodable = [name for note in notes for name in note["undecodable"]]
    fingerprint = images.fingerprint
    if state["short_side"] is not None:  # else the images are the same
        digest = hashlib.sha256(f"{fingerprint} {state['short_side']} {state['quality']}".encode())
        for one in read:
            digest.update(one.checksums.astype("<u4").tobytes())
        fingerprint = f"images-{digest.hexdigest()[:16]}"
    state = state | {
        "complete": True,
        "fingerprint": fingerprint,
        "bytes": [file_size(out / shard.file) for shard in everything],
        "index": index_digest((out / INDEX_FILE).read_bytes()),
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
_STOP = -(1 << 62)  # as a count of images: workers end at their next image
_here: tuple[_Work, Any] | None = None  # in a worker process: the work, and images done


class _Workers:
    """Runs tasks on shards in processes, or here if one is enough."""

    def __init__(self, work: _Work, processes: int | None, most: int):
        self._work = work
        self._processes = min(processes or cores(), most)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:
                self._counter.value = _STOP
            self._pool.shutdown(cancel_futures=True)

    def run(
        self,
        task: Task,
        shards: Sequence[_Shard],
        progress: Callable[[int, int], None],
        done: int,
        total: int,
    ) -> list[Any]:
        """`task` of each shard; `progress` starts at `done`."""
        if self._processes == 1 or not shards:
            ticks = iter(range(done + 1, total + 1))
            return [
                task(self._work, shard, lambda: progress(next(ticks, total), total))
                for shard in shards
            ]
        if self._pool is None:
            # Not forked: JAX and TensorFlow may be running threads here.
            context = multiprocessing.get_context("spawn")
            self._counter = context.Value("q", 0)
            self._pool = ProcessPoolExecutor(
                self._processes, context, _start_worker, (self._work, self._counter)
            )
        self._counter.value = 0
        futures = [self._pool.submit(_run_task, task, shard) for shard in shards]
        waiting: set[Future] = set(futures)
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                progress(done + self._counter.value, total)
                for future in ended:
                    future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{self._work.out}: a process that wrote shards was killed (out of memory?); "
                "finished shards stay, and the same command goes on with the others"
            ) from error
        return [future.result() for future in futures]


def _start_worker(work: _Work, counter: Any) -> None:
    global _here
    _here = work, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked for it says when to end
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A worker must not write on where the process that asked for it was killed."""
    wait_for([sentinel])
    os._exit(1)


def _run_task(task: Task, shard: _Shard) -> Any:
    assert _here is not None
    work, counter = _here

    def tick() -> None:
        with counter.get_lock():
            counter.value += 1
            if counter.value < 0:
                raise InterruptedError("stopped")

    return task(work, shard, tick)


# ------------------------------------------------------------------------------ writing a shard


def _write_shard(work: _Work, shard: _Shard, tick: Callable[[], None]) -> None:
    """Its note first: a shard that is there has one."""
    with _whole_or_none(work.out / shard.file) as stream:
        note = _write_images(stream, work, shard, tick)
        _write_json(work.out / shard.note, note)


def _write_images(
    stream: BinaryIO, work: _Work, shard: _Shard, tick: Callable[[], None]
) -> dict[str, Any]:
    """Writes the records of a shard; returns what was done to the images."""
    source = work.sources[shard.part]
    shrunk = 0
    undecodable: list[str] = []
    for i in range(shard.start, shard.stop):
        where = source.where(i)
        try:
            content, label = source.read(i)
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
        if work.short_side is not None:
            try:
                smaller = _shrink(content, where, work.short_side, work.quality)
            except DataError:
                undecodable.append(where)
            else:
                shrunk += smaller is not None
                content = smaller or content
        write_record(stream, example(_features(content, label, where)))
        tick()
    return {"shrunk": shrunk, "undecodable": undecodable}


def _features(content: bytes, label: int, name: str) -> dict[bytes, bytes | int]:
    """The image comes last: `ShardSource.where` counts on it."""
    return {
        b"image/class/label": label,
        b"image/filename": os.fsencode(name),
        b"image/encoded": content,
    }


def _shrink(content: bytes, where: str, short_side: int, quality: int) -> bytes | None:
    """The image with that short side as JPEG; None if it is no larger. DataError if damaged."""
    height, width = image_files.stated_size(content)
    short = min(height, width)
    if 0 < short <= short_side:
        return None
    pixels = image_files.read_image(where, content=content)
    if (pixels == pixels[..., :1]).all():  # grey: a third of the work for who decodes it
        pixels = pixels[..., 0]
    size = (round(width * short_side / short), round(height * short_side / short))
    scaled = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    exif = Image.Exif()
    turned = image_files.orientation(content)
    if turned != 1:  # the pixels are not turned: what is said of them stays
        exif[ExifTags.Base.Orientation] = turned
    stream = io.BytesIO()
    scaled.save(stream, "JPEG", quality=quality, subsampling=0, exif=exif)
    return stream.getvalue()


# ----------------------------------------------------------------------------- reading it again


@dataclasses.dataclass(frozen=True, eq=False)
class _Contents:
    """Where the images of one shard lie, and their labels."""

    offsets: np.ndarray  # (n,) int64
    sizes: np.ndarray  # (n,) uint32
    labels: np.ndarray  # (n,) int32
    checksums: np.ndarray  # (n,) uint32, of the records
    hashes: np.ndarray  # (n, 16) uint8, of the images


def _verify_shard(work: _Work, shard: _Shard, tick: Callable[[], None]) -> _Contents | str:
    """The shard's contents, or what is wrong with it."""
    labels = work.sources[shard.part].labels
    expected = None if labels is None else labels[shard.start : shard.stop]
    try:
        found = _read_shard(work.out / shard.file, work.classes, tick)
    except DataError as error:
        return str(error)
    if len(found.labels) != shard.stop - shard.start:
        return (
            f"{work.out / shard.file}: {len(found.labels)} records; expected "
            f"{shard.stop - shard.start}"
        )
    if expected is not None and not np.array_equal(found.labels, expected):
        return f"{work.out / shard.file}: other labels than the images it was made from"
    return found


def _read_shard(file: Path, classes: int, tick: Callable[[], None]) -> _Contents:
    """Raises DataError at the first record that is damaged."""
    rows: list[tuple[int, int, int, int]] = []
    hashes = b""
    for at, record, checksum in checked_records(file):
        try:
            features = example_features(record)
            start, stop = span(features[b"image/encoded"])
            label = features[b"image/class/label"]
        except (KeyError, ValueError) as error:
            raise DataError(f"{file}: record {len(rows)} has no image and label") from error
        if not isinstance(label, int) or label >= classes:
            raise DataError(f"{file}: record {len(rows)} has no label of {classes} classes")
        rows.append((at + start, stop - start, label, checksum))
        hashes += contents.of_bytes(record[start:stop])
        tick()
    kinds = (np.int64, np.uint32, np.int32, np.uint32)
    columns = list(zip(*rows, strict=True)) or [()] * 4
    arrays = [np.array(c, kind) for c, kind in zip(columns, kinds, strict=True)]
    arrays.append(np.frombuffer(hashes, np.uint8).reshape(-1, contents.BYTES))
    return _Contents(*arrays)


def _write_index(out: Path, everything: Sequence[_Shard], read: Sequence[_Contents]) -> None:
    arrays = {}
    for part in PARTS:
        own = [one for shard, one in zip(everything, read, strict=True) if shard.part == part]
        arrays[f"{part}_counts"] = np.array([len(one.labels) for one in own], np.int64)
        for name in KINDS:
            if name == "counts":
                continue
            arrays[f"{part}_{name}"] = np.concatenate([getattr(one, name) for one in own])
    with _whole_or_none(out / INDEX_FILE) as stream:
        np.savez(stream, **arrays)
