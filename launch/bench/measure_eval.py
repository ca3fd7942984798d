"""`cnn-depth bench eval`: the dense test beside 150 crops, from uint8 images on."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
from experiments.data import StreamedTests, Tested
from experiments.data.preprocessing import Preprocessing
from experiments.network import Skeleton
from experiments.testing import protocols
from experiments.testing.tester import MOST_VIEWS, Tester
from input_pipeline import DataError, crops, resident, stream, whole_images
from input_pipeline.image_files import SUFFIXES
from input_pipeline.sources import Source
from launch import devices
from launch.bench import frame, ratios
from launch.bench.frame import Report
from launch.bench.ratios import NOT_TRUSTED, Item, Ratio
from launch.bench.tables import Table
from launch.bench.timing import LEAST_SECONDS, LEAST_STEPS, Series, Timing, in_turns, watch_of

HELP = """\
Measure what the dense test costs beside crops: a network over whole images at three scales, with
mirrors, and over 150 crops of each (VGG section 3.2), in turns; the arithmetic of both; and, where
PATH is given, how much of the dense test's arithmetic is spent on padding on these images. Images
are made up and weights are fresh: neither changes the time."""
EXAMPLE = """
cnn-depth bench eval
cnn-depth bench eval imagenet --arch resnet:50 --images 64
cnn-depth bench eval --arch vgg:D --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench eval`."""
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="a folder of images, as for `evaluate --data`"
    )
    parser.add_argument("--arch", default="vgg:D", help="architecture (default: vgg:D)")
    parser.add_argument(
        "--width", type=float, default=1.0, help="of the network, as a share of the paper's"
    )
    frame.add_repeats(parser, 3)
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images at a time (default: 1 on a CPU, 32 elsewhere)",
    )


VERSIONS = ("jax", "jaxlib", "flax")
SCALES = (256, 384, 512)  # at a crop of 224
SHAPE = (375, 500)  # of the stored images; the commonest of ImageNet's
BATCH = 128  # views a batch, where the device's memory allows it
TITLES = {"dense": "dense, three scales", "crops": "150 crops"}


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Both tests, in turns; and the padding on the images of a PATH."""
    devices.set_up()
    frame.at_least(args, repeats=1, images=1)
    cpu = jax.default_backend() == "cpu"
    bench = Bench(args.arch, args.width, args.images or (1 if cpu else 32))
    padding = bench.padding(args.path, console) if args.path else None
    items = [bench.run(args.repeats, console), _useful(padding)]
    return report(bench, args.repeats, items, padding, machine)


class _Files(Source):
    """All image files below a folder."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise DataError(f"{root} is no folder of images")
        self.files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES)
        if not self.files:
            raise DataError(f"{root} holds no image files (of type {', '.join(SUFFIXES)})")
        self.labels: np.ndarray = np.zeros(len(self.files), np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> tuple[bytes, int]:
        return self.files[i].read_bytes(), 0

    def where(self, i: int) -> str:
        return str(self.files[i])


class _MadeUp(StreamedTests):
    """Views that are there already; all else is as with image files."""

    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        spread, shown = NamedSharding(mesh, P("data")), view.places(*SHAPE)
        (height, width), views = shown[0].size, len(shown)
        share = views * (1 + view.mirrored) * height * width / self.crop**2
        b = max(1, min(len(places), round(budget / share)) // mesh.size) * mesh.size
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (b, views, height, width, 3), dtype=np.uint8)
        arrays: dict[str, Any] = {"images": images}
        if isinstance(view, crops.WholeView):
            arrays["sizes"] = np.full((b, 2), (height, width), np.int32)
        for at in range(0, len(places), b):
            numbers: np.ndarray = np.arange(at, at + b, dtype=np.int32)
            inputs = jax.device_put(arrays, spread)
            nothing = np.zeros(b, np.int32)
            yield Tested(inputs, nothing, numbers, numbers < len(places), nothing.astype(bool))


@dataclass
class Bench:
    """One network, tested both ways on made-up images."""

    arch: str
    width: float
    images: int
    timings: dict[str, Series[Timing]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.crop = cnn_arch.inputs(self.arch).image_size
        options: dict[str, Any] = {} if self.width == 1 else {"width": self.width}
        net = cnn_arch.create(self.arch, rngs=nnx.Rngs(0), **options)
        net.eval()
        self.scales = tuple(crops.in_ratio(Q, self.crop) for Q in SCALES)
        self.seen = Preprocessing(
            resident.Normalisation(np.full(3, 117.0, np.float32), np.float32(58)),
            tuple(map(str, range(net.classes))),
            net.channels,
        )
        skeleton = Skeleton(*nnx.split(net, nnx.Param, nnx.BatchStat))
        _, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
        mesh = devices.mesh()
        everywhere = NamedSharding(mesh, P())
        arrays = (cnn_arch.flat_state(params), cnn_arch.flat_state(stats))
        self.arrays = jax.device_put(arrays, everywhere)
        data = _MadeUp(
            name="made up",
            fingerprint="",
            counts={"test": self.images},
            seen=self.seen,
            constants={"mean": self.seen.normalise.mean, "std": self.seen.normalise.std},
            crop=self.crop,
            Q=self.crop,
            sources={},
            how=stream.USUAL,
        )
        self.tester = Tester(
            skeleton=skeleton,
            data=data,
            constants=jax.device_put(data.constants, everywhere),
            mesh=mesh,
            batch=BATCH,
        )

    def passes(self, kind: str) -> list[protocols.Pass]:
        return [protocols.Pass(kind, (Q,), True) for Q in self.scales]

    def once(self, name: str) -> int:
        """All images, at all scales, once; the number of batches."""
        kind, steps = {"dense": "dense", "crops": "multi_crop"}[name], 0
        for one in self.passes(kind):
            view = one.view(self.crop)
            params, stats = self.arrays
            for _ in self.tester.batches(params, stats, "test", view, mirror=True):
                steps += 1
        return steps

    def burst(self, name: str) -> Timing:
        """All images as often as a timing needs; a batch is a step."""
        steps, times, watch = 0, 0, watch_of(jax.default_backend())
        while steps < LEAST_STEPS or watch.seconds < LEAST_SECONDS:
            steps += self.once(name)
            times += 1
        return watch.stop(times * self.images, steps)

    def run(self, repeats: int, progress: Any) -> Item:
        """In turns, after one round that compiles and touches all memory."""
        with frame.turns_bar(progress, len(TITLES) * (repeats + 1)) as on_turn:
            for name, title in TITLES.items():
                on_turn(f"compiling: {title}")
                self.once(name)
            subjects = {name: functools.partial(self.burst, name) for name in TITLES}
            self.timings, _ = in_turns(subjects, repeats, on_turn, titles=TITLES)
        self.flops = {
            name: self._flops(kind) for name, kind in (("dense", "dense"), ("crops", "multi_crop"))
        }
        return Item(
            "dense_over_crops",
            "dense over 150 crops",
            4.0,
            ratios.compare(
                self.timings["dense"], self.timings["crops"], (TITLES["dense"], TITLES["crops"])
            ),
            aim=round(self.flops["crops"] / self.flops["dense"], 2),
        )

    def _flops(self, kind: str) -> float:
        """Of one image at all scales, as XLA counts them before it optimises."""
        total = 0.0
        for one in self.passes(kind):
            view = one.view(self.crop)
            (batch,) = self.tester.data.tested(
                "test", self.tester.mesh, 1, view, np.arange(self.tester.mesh.size)
            )
            program = self.tester.program(view, mirror=True)
            lowered = program.lower(*self.arrays, self.tester.constants, batch.inputs)
            cost = lowered.cost_analysis() or {}
            total += cost.get("flops", float("nan")) / len(batch.labels)
        return total

    def padding(self, path: str, progress: Any) -> dict[str, Any]:
        """How much of the dense test's pixels on the images of `path` are padding."""
        from launch.console import images_bar

        source = _Files(Path(path))
        with images_bar(progress, "sizes of images") as on_progress:
            how = stream.Decoding(most=1)
            sizes = whole_images.image_sizes(source, how, on_progress)
        budget = min(BATCH, MOST_VIEWS.get(jax.default_backend(), BATCH))
        pixels = budget * self.crop**2 // 2
        told: dict[str, Any] = {"path": path, "images": len(sizes), "scales": {}}
        for Q in self.scales:
            options: dict[str, Any] = {"pixels": pixels, "multiple": jax.device_count()}
            told["scales"][Q] = {
                "share": whole_images.waste(sizes, Q, **options),
                "programs": len(whole_images.plan(sizes, Q, **options)),
            }
        return told

    def settings(self, repeats: int) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "width": self.width,
            "crop": self.crop,
            "scales": list(self.scales),
            "stored": list(SHAPE),
            "images_per_measurement": self.images,
            "repeats": repeats,
        }


def _useful(padding: dict[str, Any] | None) -> Item:
    """The share of the dense test's pixels that are the images' own, the worst scale's."""
    measured: Ratio | str = "give a folder of images"
    if padding is not None:
        measured = Ratio((1 - max(scale["share"] for scale in padding["scales"].values()),))
    return Item("useful_pixels", "pixels that are no padding", 0.85, measured)


COLUMNS = ("measured", "seconds an image", "lowest", "highest", "GFLOP an image", "GFLOP/s")
EXPLAINED = (
    "aim: what the arithmetic alone would give; GFLOP as XLA counts them before it optimises"
)


def _conditions(bench: Bench, repeats: int) -> str:
    height, width = SHAPE
    return (
        f"{bench.arch} at width {bench.width:g}, crop {bench.crop}, scales "
        f"{', '.join(map(str, bench.scales))}; {bench.images} images of {width}x{height}, as often "
        f"as a measurement needs, {repeats} repeats; with mirrors"
    )


def _rows(bench: Bench) -> list[tuple[str, ...]]:
    rows = []
    for name, series in bench.timings.items():
        spent, gflop = [1 / rate for rate in ratios.rates(series)], bench.flops[name] / 1e9
        middle, reached = f"{median(spent):.3f}", f"{gflop / median(spent):,.0f}"
        if series.doubt:
            middle, reached = NOT_TRUSTED, ""
        ends = (f"{cell:.3f}" for cell in (min(spent), max(spent)))
        rows.append((TITLES[name], middle, *ends, f"{gflop:,.0f}", reached))
    return rows


def _padded(padding: dict[str, Any] | None) -> list[str]:
    if padding is None:
        return []
    return [
        f"{padding['images']:,} images at Q={Q}: {scale['share']:.1%} of the pixels are "
        f"padding or blank, in {scale['programs']} shapes"
        for Q, scale in padding["scales"].items()
    ]


def report(
    bench: Bench,
    repeats: int,
    items: list[Item],
    padding: dict[str, Any] | None,
    machine: dict[str, Any],
) -> Report:
    """What was found, for all outputs."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    conditions = _conditions(bench, repeats)
    table = Table(COLUMNS, _rows(bench))
    doubts = ratios.doubts({TITLES[name]: series for name, series in bench.timings.items()})
    return Report(
        frame.cpu(machine) if jax.default_backend() == "cpu" else device,
        {
            "settings": bench.settings(repeats),
            "timings": {name: series.to_json() for name, series in bench.timings.items()},
            "flops_an_image": bench.flops,
            "padding": padding,
            "items": [item.to_json() for item in items],
        },
        [
            (f"{frame.cpu(machine)}; {device}", None),
            (conditions, f"{conditions}."),
            (table, table),
            frame.items(items),
            (EXPLAINED, f"{EXPLAINED[0].upper()}{EXPLAINED[1:]}."),
            frame.notes([*doubts, *_padded(padding)]),
        ],
        {"device": device},
    )
