"""The memory of a process that reads a large set of images, for `cnn-depth bench input`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.bench import process
from launch.bench.step_case import most_resident


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process with a large index, in MiB."""

    entries: int  # images
    batch_size: int
    batches: int
    imported: float  # with TensorFlow imported and nothing else
    index: float  # that opening the set added
    stream: float  # that the batches then added
    peak: float  # the most at any time
    open_seconds: float  # to open the set
    first_batch_seconds: float  # from then on to the first batch

    def __str__(self) -> str:
        return (
            f"memory with {self.entries:,} images: index {self.index:,.0f} MiB "
            f"({self.index * 2**20 / self.entries:.0f} bytes an image, opened in "
            f"{self.open_seconds:.1f} s), stream {self.stream:,.0f} MiB after {self.batches} "
            f"batches, TensorFlow {self.imported:,.0f} MiB, peak of all {self.peak:,.0f} MiB"
        )


def measure(
    files: Sequence[str], scratch: Path, entries: int, threads: int, console: Any
) -> Memory | str:
    """Measures a fresh process that reads a folder of about `entries` links to files, in classes.

    Returns the reason where that can't be measured; raises PeerEnded where the process fails.
    """
    if not Path("/proc/self/statm").exists():
        return "this system does not tell a process's memory"
    # Every class is a link to one folder of links to the files: few entries on the disk.
    classes = max(2, min(1000, entries // 2))
    links, root = max(1, entries // classes), scratch / "large"
    for part in ("train", f"val/n{0:08}", "images"):
        (root / part).mkdir(parents=True)
    for k in range(links):
        (root / "images" / f"n01440764_{k}.JPEG").symlink_to(files[k % len(files)])
    for k in range(classes):
        (root / "train" / f"n{k:08}").symlink_to(root / "images", target_is_directory=True)
    (root / "val" / f"n{0:08}" / "0.JPEG").symlink_to(files[0])
    code = "import sys; from launch.bench import input_memory as m; m.tell(*sys.argv[1:])"
    title = f"memory with {classes * links:,} images"
    with console.status(title) if console.is_terminal else nullcontext():
        failure = "the process that measures memory failed"
        *_, fields = process.run(failure, code, str(root), str(threads))
    return Memory(**fields)


def tell(path: str, threads: str, batch: int = 64, batches: int = 16) -> None:
    """Prints a `Memory` as JSON. For a process of its own."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from input_pipeline import jpeg, sources
    from input_pipeline.crops import ScaleView
    from input_pipeline.stream import Decoding, Stream

    jpeg.tensorflow()
    imported, start = _resident(), time.perf_counter()
    source = sources.open_set("folder", path).train
    opened, ready = _resident(), time.perf_counter()
    view, how = ScaleView(crop=224, S=(256, 512)), Decoding(threads=int(threads))
    stream = Stream(source, view, seed=0, batch=batch, how=how)
    iterator = iter(stream)
    next(iterator)
    first = time.perf_counter()
    for _ in range(batches - 1):
        next(iterator)
    mebibytes = (imported, opened - imported, _resident() - opened, most_resident() / 2**20)
    stream.close()
    memory = Memory(len(source), batch, batches, *mebibytes, ready - start, first - ready)
    print(json.dumps(asdict(memory)))


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
