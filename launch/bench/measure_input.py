"""`cnn-depth bench input`: JPEGs to uint8 batches on the host, beside other ways.

Every rate is a steady one: laps have the same examples of the same stream, and are timed from one
batch's arrival to another's while the pipeline goes on. Ratios are of measurements of the same
repeat, which follow each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from input_pipeline import DataError, image_files, jpeg, sources
from input_pipeline.crops import AreaView, ScaleView, TrainView
from input_pipeline.pixels import Pixels
from input_pipeline.sources.source import Wrapped
from input_pipeline.stream import AHEAD, Decoding, Stream, cores
from input_pipeline.tools.prepare import prepare
from launch.bench import frame, input_memory, input_peers, ratios, timing
from launch.bench.frame import Report
from launch.bench.input_memory import Memory
from launch.bench.input_peers import (
    cropped_decoding,
    flax_example,
    loaders_process,
    plain_tf_data,
    timed,
    watched,
)
from launch.bench.process import PeerEnded
from launch.bench.ratios import Item, Ratio, compare, core_time_ratio
from launch.bench.timing import Series, Timing, in_turns
from launch.verbs.options import add_options

IMAGES_PER_THREAD = 512
HELP = """\
Measure how fast JPEG files become batches of training views: images/s of our pipeline, of cropped
decoding alone, of plain tf.data, of the Flax ImageNet example's way, of a PyTorch DataLoader with
Pillow, with simplejpeg and OpenCV, or with torchvision's transforms v2, and of Grain with
simplejpeg and OpenCV, on the same images and cores; the same views out of decoded shards, in memory
and off the disk; one core against two; a training loop whose device only sleeps; memory at
ImageNet's size. PATH is any data set that `cnn-depth data check` reads, or a folder with JPEGs
anywhere below it; without it, images like ImageNet's are made."""
EXAMPLE = """
cnn-depth bench input
cnn-depth bench input imagenet/val --repeats 7
cnn-depth bench input imagenet --peer none --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="PATH", help="images (default: made for this)")
    options = {
        "--repeats N": "default: 5",
        "--images N": f"images a measurement, at least (default: {IMAGES_PER_THREAD} a thread)",
        "--threads N": "default: the usable cores",
        "--batch-size N": "default: 64",
        "--peer all|torch|tf|none": frame.PEERS,
        "--entries N": "images of the set whose memory is measured (default: 1280000; 0: leave it "
        "out)",
    }
    add_options(parser, options, repeats=5, batch_size=64, peer="all", entries=1_280_000)


VERSIONS = (
    *("tensorflow", "tensorflow-cpu", "cykooz-resizer", "pillow", "torch", "torchvision", "grain"),
    *("simplejpeg", "opencv-python-headless"),
)
SEED = 0
DISTINCT = 512  # images taken of a larger set, evenly over it
MADE = 100
DEVICE = (0.5, 0.9, 1.1, 2.0)  # a stand-in device's time for a batch over the input's


class Way(NamedTuple):
    """A way from files to batches."""

    title: str
    short: str  # title in comparisons
    view: str
    # How a peer makes its batches (work, threads, batch); None for ours and for loaders.
    peer: Callable[[input_peers.Work, int, int], Iterator[Any]] | None = None
    needs: str = ""  # a key of `_absent`
    cores: int | None = None  # that it is bound to
    source: Literal["files", "pixels", "disk"] = "files"  # of `Bench.sources`, that ours reads


WAYS = {
    "decode_scale": Way("VGG view: decoding alone", "decoding alone", "scale", cropped_decoding),
    "ours_scale": Way("VGG view: ours", "VGG view", "scale"),
    "tf_scale": Way("VGG view: plain tf.data", "plain tf.data", "scale", plain_tf_data, "tf"),
    "torch_scale": Way("VGG view: PyTorch, Pillow", "PyTorch, Pillow", "scale", needs="torch"),
    "opencv_scale": Way(
        "VGG view: PyTorch, simplejpeg, OpenCV", "PyTorch, OpenCV", "scale", needs="opencv"
    ),
    "torchvision_scale": Way(
        "VGG view: PyTorch, torchvision v2", "torchvision v2", "scale", needs="torchvision"
    ),
    "grain_scale": Way(
        "VGG view: Grain, simplejpeg, OpenCV", "Grain, OpenCV", "scale", needs="grain"
    ),
    "pixels_scale": Way("VGG view: ours, decoded shards", "decoded", "scale", source="pixels"),
    "disk_scale": Way(
        "VGG view: ours, decoded shards off the disk", "disk", "scale", needs="disk", source="disk"
    ),
    "decode_area": Way("area crop: decoding alone", "decoding alone", "area", cropped_decoding),
    "ours_area": Way("area crop: ours", "area crop", "area"),
    "flax_area": Way(
        "area crop: Flax example, float32", "Flax example", "area", flax_example, "tf"
    ),
    "torch_area": Way("area crop: PyTorch, Pillow", "PyTorch, Pillow", "area", needs="torch"),
    "opencv_area": Way(
        "area crop: PyTorch, simplejpeg, OpenCV", "PyTorch, OpenCV", "area", needs="opencv"
    ),
    "torchvision_area": Way(
        "area crop: PyTorch, torchvision v2", "torchvision v2", "area", needs="torchvision"
    ),
    "grain_area": Way(
        "area crop: Grain, simplejpeg, OpenCV", "Grain, OpenCV", "area", needs="grain"
    ),
    "pixels_area": Way("area crop: ours, decoded shards", "decoded", "area", source="pixels"),
    "two_cores": Way("VGG view: ours on two cores", "two cores", "scale", needs="cores", cores=2),
    "one_core": Way("VGG view: ours on one core", "one", "scale", needs="cores", cores=1),
}
TITLES = {name: way.title for name, way in WAYS.items()}


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Measures all ways in turns, then memory; raises DataError for a PATH without usable JPEGs."""
    frame.at_least(args, repeats=1, images=1, threads=1, batch_size=1, entries=0)
    threads = cores() if args.threads is None else args.threads
    images = IMAGES_PER_THREAD * threads if args.images is None else args.images
    with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as folder:
        scratch = Path(folder)
        with console.status("gathering images") if console.is_terminal else ExitStack():
            data = gather(args.path, scratch)
        bench = Bench(data, threads, args.batch_size, images, args.peer)
        measurements = bench.run(args.repeats, console)
        if args.entries:
            measurements.memory = input_memory.measure(
                data.files, scratch, args.entries, threads, console
            )
    return report(data, bench.settings(args.repeats), measurements, machine)


# ---------------------------------------------------------------------------- the images


@dataclass(frozen=True)
class Images:
    """JPEGs that everyone can decode: as a source, and copied to one file each for the peers."""

    path: str | None  # of the set they are from; None for made ones
    source: sources.Source
    files: tuple[str, ...]  # the copies
    sizes: tuple[tuple[int, int], ...]  # (height, width)
    mean_bytes: float
    set_images: int  # of the whole set
    left_out: int  # images tried that are damaged or no plain JPEG
    pixels: Path  # where decoded shards of them lie, twice: `pixels`, and `disk` for `OffDisk`

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "made": self.path is None,
            "images": len(self.files),
            "of": self.set_images,
            "left_out": self.left_out,
            "mean_bytes": self.mean_bytes,
            "mean_height": float(np.mean([height for height, _ in self.sizes])),
            "mean_width": float(np.mean([width for _, width in self.sizes])),
        }

    def __str__(self) -> str:
        fields = self.to_json()
        kind = (
            f"{fields['images']} made images" if self.path is None else f"{fields['images']} JPEGs"
        )
        where = "" if self.path is None else f" of {self.set_images:,} in {self.path}"
        odd = f"; {self.left_out} left out (damaged, or no plain JPEG)" if self.left_out else ""
        return (
            f"{kind}{where}, {fields['mean_width']:.0f}x{fields['mean_height']:.0f} pixels and "
            f"{fields['mean_bytes'] / 1e3:.0f} kB on average{odd}"
        )


def gather(path: str | None, scratch: Path) -> Images:
    """Up to `DISTINCT` images in `path`, spread evenly over it, or made ones.

    Raises DataError if there is none.
    """
    if path is None:
        make_images(scratch / "made", MADE)
    source = _source(Path(path or scratch / "made"))
    places = np.unique(np.linspace(0, len(source) - 1, DISTINCT).round().astype(np.int64))
    copies = scratch / "copies"
    copies.mkdir()
    usable, files, sizes, labels = [], [], [], []
    for place in places.tolist():
        try:
            content, label = source.read(place)
            header = jpeg.header(content)
            if header is None:
                continue
            image_files.read_image(source.where(place), 3, content)
        except (OSError, DataError):
            continue
        file = copies / f"{place}.jpg"
        file.write_bytes(content)
        usable.append(place)
        files.append(str(file))
        sizes.append((header.height, header.width))
        labels.append(label)
    if not usable:
        raise DataError(f"{path}: none of {len(places)} images tried is a JPEG that can be decoded")
    subset = source.take(np.array(usable))
    mean_bytes = float(np.mean([os.path.getsize(file) for file in files]))
    classes = tuple(map(str, range(max(labels) + 1)))
    images = sources.ImageSet("bench", subset, subset.take(np.arange(1)), classes, "bench")
    for name in ("pixels", "disk"):
        prepare(images, scratch / "decoded" / name, processes=1, decoded=True)
    return Images(
        path=path,
        source=subset,
        files=tuple(files),
        sizes=tuple(sizes),
        mean_bytes=mean_bytes,
        set_images=len(source),
        left_out=len(places) - len(usable),
        pixels=scratch / "decoded",
    )


class OffDisk(Wrapped):
    """Decoded images whose shards leave memory after each read, so that the next reads the disk.

    Where the shards lie on no disk, as in /tmp of some machines, that changes nothing.
    """

    def __init__(self, source: sources.Source, files: Iterable[Path]):
        super().__init__(source)
        self._files = list(files)

    def pixels(self, i: int) -> Pixels | None:
        pixels = super().pixels(i)
        return None if pixels is None else pixels._replace(read=partial(self._read, pixels.read))

    def _read(self, read: Callable[[int, int], bytes], top: int, bottom: int) -> bytes:
        rows = read(top, bottom)
        for file in self._files:
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return rows

    def read(self, i: int) -> tuple[bytes, int]:
        return self.source.read(i)


def _source(root: Path) -> sources.Source:
    """The training part of a set of images, or all JPEGs anywhere below a folder."""
    try:
        return sources.open_set(sources.detect(root), root).train
    except DataError:
        jpegs = images_below(root, (".jpg", ".jpeg"))
        if not len(jpegs):
            raise
        return jpegs


def images_below(root: Path, suffixes: Collection[str]) -> sources.Source:
    """All images anywhere below a folder, sorted."""
    files = sorted(
        (os.path.relpath(folder, root), name)
        for folder, _, names in os.walk(root)
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes
    )
    label_of = {folder: k for k, folder in enumerate(sorted({folder for folder, _ in files}))}
    labels = np.array([label_of[folder] for folder, _ in files], np.int32)
    names = sources.Names.of(os.fsencode(name) for _, name in files)
    return sources.FolderSource(root, [*label_of], names, labels)


def make_images(folder: Path, count: int) -> None:
    """Writes JPEGs as large as ImageNet's on average: 500x375 pixels, about 110 kB, at quality 90.

    They show smooth noise, edges and grain, the same every time.
    """
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        size = (500, 375) if k % 4 else (375, 500)
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(40):
            corners = rng.integers(-50, 550, 6).tolist()
            pen.polygon(corners, fill=tuple(rng.integers(0, 256, 3).tolist()))
        grain = rng.normal(0, 20, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.jpg", quality=90)


# ------------------------------------------------------------------------------- the run


@dataclass
class Measurements:
    """Everything that was measured."""

    timings: dict[str, Series[Timing]] = field(default_factory=dict)  # by `WAYS`
    # By the stand-in device's time for a batch over the input's.
    end_to_end: dict[float, Series[EndToEnd]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    memory: Memory | str | None = None  # or why it was not measured

    def to_json(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "timings": self.timings,
            "end_to_end": {
                f"{times:g}": {**series.to_json(), "each": series.bursts}
                for times, series in self.end_to_end.items()
            },
            "memory": self.memory,
        }


class Bench:
    """Our pipeline and its peers on the same images."""

    def __init__(self, data: Images, threads: int, batch: int, images: int, peer: str):
        self.data, self.threads, self.batch = data, threads, batch
        copies = {name: data.pixels / name for name in ("pixels", "disk")}
        decoded = {name: sources.open_set("shards", copy).train for name, copy in copies.items()}
        decoded["disk"] = OffDisk(decoded["disk"], copies["disk"].glob("*.tfrecord"))
        self.sources = {"files": data.source, **decoded}
        # A DataLoader's workers take batches in turns: the same number for each.
        self.warm, self.count = threads, -(-images // (batch * threads)) * threads
        scale, area = ScaleView(crop=224, S=(256, 512)), AreaView(crop=224)
        self.views: dict[str, TrainView] = {"scale": scale, "area": area}
        beyond = 2 * threads + 2  # batches under way when the time is taken
        examples = (self.warm + self.count + beyond) * batch
        self.tasks = {
            name: input_peers.work(data.files, data.sizes, view, SEED, examples)
            for name, view in self.views.items()
        }
        self.absent = _absent(peer)

    def settings(self, repeats: int) -> dict[str, Any]:
        """The settings that figures depend on, besides the machine and the images."""
        return {
            "threads": self.threads,
            "batch_size": self.batch,
            "images_per_measurement": self.count * self.batch,
            "repeats": repeats,
            "seed": SEED,
        }

    def run(self, repeats: int, progress: Any) -> Measurements:
        """All measurements, in turns: forwards in one repeat and backwards in the next."""
        measurements = Measurements()
        with ExitStack() as stack:
            if not input_peers.LOADERS.keys() <= self.absent.keys():
                try:
                    self.loaders = stack.enter_context(
                        loaders_process(self.tasks, self.threads, self.batch)
                    )
                except PeerEnded as error:
                    self.absent |= dict.fromkeys(input_peers.LOADERS, str(error))
            subjects: dict[str, Callable[[], Any]] = {
                name: partial(self.burst, way)
                for name, way in WAYS.items()
                if way.needs not in self.absent
            }
            titles = dict(TITLES)
            for times in DEVICE:
                subjects[f"device_{times:g}"] = partial(self.with_device, times)
                titles[f"device_{times:g}"] = _device_title(times)
            on_turn = stack.enter_context(frame.turns_bar(progress, repeats * len(subjects)))
            timings: dict[str, Series[Any]]
            timings, reasons = in_turns(
                subjects, repeats, on_turn, titles=titles, absent=(PeerEnded,)
            )
        for name, reason in reasons.items():
            self.absent[WAYS[name].needs] = reason
        for name, series in timings.items():
            if name in WAYS and WAYS[name].needs not in self.absent:
                measurements.timings[name] = series
        measurements.end_to_end = {times: timings[f"device_{times:g}"] for times in DEVICE}
        measurements.items = items(measurements, self.absent)
        return measurements

    def burst(self, way: Way) -> Timing:
        if way.needs in input_peers.LOADERS:
            return self.loaders.ask(way.view, way.needs, self.warm, self.count)
        if way.peer is not None:
            batches = way.peer(self.tasks[way.view], self.threads, self.batch)
            return timed(batches, self.warm, self.count, self.batch, self.threads)
        threads = way.cores or self.threads
        with (
            only_cores(way.cores) if way.cores else nullcontext(),
            self._stream(way.view, threads, way.source) as stream,
        ):
            return timed(stream, self.warm, self.count, self.batch, threads)

    def _stream(self, view: str, threads: int, source: str = "files") -> Stream:
        how, images = Decoding(threads=threads), self.sources[source]
        return Stream(images, self.views[view], seed=SEED, batch=self.batch, how=how)

    def with_device(self, times: float) -> EndToEnd:
        """A training loop whose device takes `times` the input's own time for a batch.

        One stream, first alone, then with the device, then alone again.
        """
        half = max(1, self.count // 2)
        with self._stream("scale", self.threads) as batches:
            before = timed(batches, self.warm, half, self.batch, self.threads)
            device = times * self.batch / before.rate
            slower = max(device, self.batch / before.rate)
            steps = max(self.count, timing.LEAST_STEPS, ceil(1.1 * timing.LEAST_SECONDS / slower))
            loop = train(batches, device, self.warm, steps, self.batch, self.threads)
            after = timed(batches, self.warm + AHEAD + 1, half, self.batch, self.threads)
        alone = (before.seconds + after.seconds) / (before.images + after.images)
        return EndToEnd(device, alone * self.batch, self.batch / loop.rate, (before, loop, after))


def items(measurements: Measurements, absent: dict[str, str]) -> list[Item]:
    """Every comparison with its target; absent: why a way was not measured, by `Way.needs`."""

    def item(ours: str, theirs: str, target: float, aim: float | None = None) -> Item:
        name, title = f"{ours}_over_{theirs}", f"{WAYS[ours].short} over {WAYS[theirs].short}"
        if WAYS[ours].source != "files":
            title = f"{WAYS[theirs].short}: decoded over JPEG"
        missing = [key for key in (ours, theirs) if key not in measurements.timings]
        if missing:
            return Item(name, title, target, absent[WAYS[missing[0]].needs], aim)
        own, peer = measurements.timings[ours], measurements.timings[theirs]
        ratio = compare(own, peer, (TITLES[ours], TITLES[theirs]))
        core_time = None if ours == "two_cores" else core_time_ratio(own, peer)
        return Item(name, title, target, ratio, aim, core_time)

    compared = [
        item("ours_scale", "tf_scale", 2.2),
        item("ours_scale", "torch_scale", 2.0),
        item("ours_scale", "opencv_scale", 1.35),
        item("ours_scale", "torchvision_scale", 1.35),
        item("ours_scale", "grain_scale", 1.35),
        item("ours_scale", "decode_scale", 0.45, 0.6),
        item("pixels_scale", "ours_scale", 2.5),
        item("ours_area", "flax_area", 1.25),
        item("ours_area", "torch_area", 2.0),
        item("ours_area", "opencv_area", 1.35),
        item("ours_area", "torchvision_area", 1.35),
        item("ours_area", "grain_area", 1.35),
        item("ours_area", "decode_area", 0.65),
        item("pixels_area", "ours_area", 2.5),
        item("two_cores", "one_core", 1.8),
    ]
    for times, series in measurements.end_to_end.items():
        title = _device_title(times)
        ratio = Ratio(tuple(burst.reached for burst in series.bursts))
        reached = ratios.trusted({title: series}) or ratio
        compared.append(Item(f"end_to_end_{times:g}", title, 0.95, reached))
    return compared


def _device_title(times: float) -> str:
    return f"end to end, device {times:g} x input"


NEEDED = {  # modules of a loader
    "torch": ("torch",),
    "opencv": ("torch", "simplejpeg", "cv2"),
    "torchvision": ("torch", "torchvision"),
    "grain": ("grain", "simplejpeg", "cv2"),
}
PACKAGES = {"cv2": "opencv-python-headless"}  # where a module is called otherwise


def _absent(peer: str) -> dict[str, str]:
    """`Way.needs` that can't be met, or are left out by `--peer` -> why."""
    reasons = {
        name: f"--peer {peer}"
        for name in ("tf", *input_peers.LOADERS)
        if peer not in ("all", "torch" if name in ("opencv", "torchvision") else name)
    }
    for name, modules in NEEDED.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if name not in reasons and missing:
            reasons[name] = f"{PACKAGES.get(missing[0], missing[0])} is not installed"
    if not hasattr(os, "sched_setaffinity") or not Path("/proc/self/task").is_dir():
        reasons["cores"] = "this system cannot bind a process to cores"
    elif len(os.sched_getaffinity(0)) < 2:
        reasons["cores"] = "this process may use one core only"
    if not hasattr(os, "posix_fadvise"):
        reasons["disk"] = "this system cannot be asked to drop files from memory"
    return reasons


@contextmanager
def only_cores(count: int) -> Iterator[None]:
    """Binds all threads of this process, and those they start, to `count` of its cores."""
    usable = os.sched_getaffinity(0)

    def bind(cores: Sequence[int]) -> None:
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), cores)

    bind(sorted(usable)[:count])
    try:
        yield
    finally:
        bind(sorted(usable))


# ---------------------------------------------------------------- a device that only sleeps


@dataclass(frozen=True)
class EndToEnd:
    """A training loop beside its device alone and its input alone, in seconds for a batch."""

    device: float
    input: float
    together: float  # in the loop
    parts: tuple[Timing, ...]  # of the input before, of the loop, of the input after

    @property
    def timing(self) -> tuple[Timing, ...]:
        return self.parts

    @property
    def reached(self) -> float:
        """The loop's rate over that of its slower part."""
        return max(self.device, self.input) / self.together


def train(
    batches: Iterator[Any], device_seconds: float, warm: int, count: int, size: int, threads: int
) -> Timing:
    """The time of a training loop that keeps one step in flight behind the running one.

    The device sleeps for each step in turn; `count` steps are timed, after `warm` others.
    """
    finished = 0
    watch: timing.Watch | None = None
    measured: Timing | None = None

    def step(batch: Any) -> None:
        nonlocal finished, watch, measured
        time.sleep(device_seconds)
        finished += 1
        if finished == warm:
            watch = watched(threads, waits=True)
        elif finished == warm + count and watch is not None:
            measured = watch.stop(count * size, count)

    with ThreadPoolExecutor(1) as device:
        in_flight: Future[None] | None = None
        for batch in itertools.islice(batches, warm + count):
            dispatched = device.submit(step, batch)
            if in_flight is not None:
                in_flight.result()
            in_flight = dispatched
    assert measured is not None
    return measured


def report(
    data: Images, settings: dict[str, Any], measurements: Measurements, machine: dict[str, Any]
) -> Report:
    conditions = (
        f"{settings['threads']} threads, batches of {settings['batch_size']}, "
        f"{settings['images_per_measurement']:,} images a lap, "
        f"{settings['repeats']} repeats; 224x224 uint8 where not said otherwise; decoding alone: "
        "the windows that ours decodes, out of memory"
    )
    missing = {
        item.title: item.measured for item in measurements.items if isinstance(item.measured, str)
    }
    memory = str(measurements.memory) if isinstance(measurements.memory, Memory) else None
    if isinstance(measurements.memory, str):
        missing["memory"] = measurements.memory
    doubts = ratios.doubts(measurements.timings, TITLES)
    doubts += ratios.doubts(
        {_device_title(k): series for k, series in measurements.end_to_end.items()}
    )
    return Report(
        frame.cpu(machine),
        {"data": data.to_json(), "settings": settings, **measurements.to_json()},
        [
            (f"{frame.cpu(machine)}; {data}", f"{data}. {conditions}."),
            (conditions, None),
            ratios.rates_tables(measurements.timings, TITLES),
            ratios.items_tables(measurements.items),
            (EXPLAINED, None),
            (
                "\n".join(f"{title}: not measured: {reason}" for title, reason in missing.items()),
                None,
            ),
            (memory, None),
            frame.notes(doubts),
            (None, memory and f"In use: {memory}."),
        ],
    )


EXPLAINED = (
    "measured: median of the repeats [lowest, highest]; core time: the same of processor time. "
    "End to end: over the slower of device and input alone."
)
