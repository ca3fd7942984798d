"""`cnn-depth bench eval`: the dense test beside 150 crops, and boxes beside the dense test.

All of them start from uint8 images.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
from experiments import config as config_lib
from experiments.data import StreamedTests, Tested
from experiments.data.preprocessing import Preprocessing
from experiments.localisation import merging
from experiments.localisation.candidates import Localiser, Net
from experiments.localisation.localise import CLASSES
from experiments.network import Skeleton
from experiments.runs.runs import Run
from experiments.testing import protocols
from experiments.testing.tester import MOST_VIEWS, Tester
from input_pipeline import DataError, crops, resident, stream, whole_images
from input_pipeline.image_files import SUFFIXES
from launch import devices
from launch.bench import frame, ratios, timing
from launch.bench.frame import Report
from launch.bench.measure_input import images_below
from launch.bench.ratios import Item, Ratio, Table, spread
from launch.bench.timing import Series, Timing, in_turns, watch_of
from launch.verbs.options import add_options

HELP = """\
Measure what the dense test costs beside crops: a network over whole images at three scales, with
mirrors, and over 150 crops of each (VGG section 3.2), in turns; and beside it the test of boxes, a
localiser and its classifier over the same images, without mirrors, and merging (appendix A). Also
the arithmetic of each; and, where PATH is given, how much of the dense test's arithmetic is spent
on padding on these images. Images are made up and weights are fresh: neither changes the time."""
EXAMPLE = """
cnn-depth bench eval
cnn-depth bench eval imagenet --arch resnet:50 --images 64
cnn-depth bench eval --arch vgg:D --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="a folder of images, as for `evaluate --data`"
    )
    options = {
        "--arch ARCH": "architecture (default: vgg:D)",
        "--width WIDTH": "of the network, as a share of the paper's",
        "--repeats N": "default: 3",
        "--images N": "images at a time (default: 1 on a CPU, 32 elsewhere)",
    }
    add_options(parser, options, arch="vgg:D", width=1.0, repeats=3)


VERSIONS = ("jax", "jaxlib", "flax")
SCALES = (256, 384, 512)  # at a crop of 224
SHAPE = (375, 500)  # of the stored images; the commonest of ImageNet's
BATCH = 128  # views a batch, where the device's memory allows it
TITLES = {"dense": "dense, three scales", "crops": "150 crops", "boxes": "boxes, three scales"}
KINDS = {"dense": "dense", "crops": "multi_crop", "boxes": "dense"}  # of their passes


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Measures all tests in turns, and the padding on the images of a PATH."""
    devices.set_up()
    frame.at_least(args, repeats=1, images=1)
    cpu = jax.default_backend() == "cpu"
    bench = Bench(args.arch, args.width, args.images or (1 if cpu else 32))
    padding = bench.padding(args.path, console) if args.path else None
    useful: Ratio | str = "give a folder of images"
    if padding is not None:  # of the worst scale
        useful = Ratio((1 - max(scale["share"] for scale in padding["scales"].values()),))
    items = [
        *bench.run(args.repeats, console),
        Item("useful_pixels", "pixels that are no padding", 0.85, useful),
    ]
    return report(bench, args.repeats, items, padding, machine)


class _MadeUp(StreamedTests):
    """Tests on made-up views, which need no decoding; all else is as with image files."""

    def stored(self, part: str, indices: np.ndarray) -> np.ndarray:
        return np.tile(SHAPE, (len(indices), 1))

    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        sharding, shown = NamedSharding(mesh, P("data")), view.places(*SHAPE)
        (height, width), views = shown[0].size, len(shown)
        crops_an_image = views * (1 + view.mirrored) * height * width / self.crop**2
        b = max(1, min(len(places), round(budget / crops_an_image)) // mesh.size) * mesh.size
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (b, views, height, width, 3), dtype=np.uint8)
        arrays: dict[str, Any] = {"images": images}
        if isinstance(view, crops.WholeView):
            arrays["sizes"] = np.full((b, 2), (height, width), np.int32)
        for start in range(0, len(places), b):
            numbers: np.ndarray = np.arange(start, start + b, dtype=np.int32)
            inputs = jax.device_put(arrays, sharding)
            zeros = np.zeros(b, np.int32)
            yield Tested(inputs, zeros, numbers, numbers < len(places), zeros.astype(bool))


class _Localiser(Localiser):
    """A localiser and its classifier with fresh weights, on images that are made up."""

    def __init__(self, tester: Tester, nets: tuple[Net, Net]) -> None:
        self.subject: Any = tester  # it has the mesh and the data
        self.config = config_lib.base()
        self.config.test.batch_size = BATCH
        self.nets = nets


def _fresh(arch: str, seed: int, mesh: Mesh, **options: Any) -> tuple[Any, Net]:
    """A network with fresh weights, in eval mode; and the same with its arrays on the devices."""
    net = cnn_arch.create(arch, rngs=nnx.Rngs(seed), **options)
    net.eval()
    graph, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
    arrays = (cnn_arch.flat_state(params), cnn_arch.flat_state(stats))
    arrays = jax.device_put(arrays, NamedSharding(mesh, P()))
    return net, Net(Run(Path()), 0, Skeleton(graph, params, stats), *arrays)


class Bench:
    """One network and a localiser of its kind, tested in every way on made-up images."""

    def __init__(self, arch: str, width: float, images: int) -> None:
        self.arch, self.width, self.images = arch, width, images
        self.timings: dict[str, Series[Timing]] = {}
        self.flops: dict[str, float] = {}
        self.crop = cnn_arch.inputs(arch).image_size
        options: dict[str, Any] = {} if width == 1 else {"width": width}
        self.scales = tuple(crops.in_ratio(Q, self.crop) for Q in SCALES)
        mesh = devices.mesh()
        net, classifier = _fresh(arch, 0, mesh, **options)
        self.arrays = (classifier.params, classifier.stats)
        normalise = resident.Normalisation(np.full(3, 117.0, np.float32), np.float32(58))
        data = _MadeUp(
            name="made up",
            fingerprint="",
            counts={"test": images},
            preprocessing=Preprocessing(
                normalise, tuple(map(str, range(net.classes))), net.channels
            ),
            constants={"mean": normalise.mean, "std": normalise.std},
            crop=self.crop,
            Q=self.crop,
            sources={},
            how=stream.DEFAULT_DECODING,
        )
        self.tester = Tester(
            skeleton=classifier.bones,
            data=data,
            constants=jax.device_put(data.constants, NamedSharding(mesh, P())),
            mesh=mesh,
            batch=BATCH,
        )
        _, localiser = _fresh(arch, 1, mesh, classes=4 * net.classes, **options)  # a box a class
        self.localiser = _Localiser(self.tester, (localiser, classifier))

    def views(self, name: str) -> list[crops.TestView]:
        """The views of an image that a test shows, one for each scale."""
        test_passes = (protocols.Pass(KINDS[name], (Q,), True) for Q in self.scales)
        return [p.view(self.crop) for p in test_passes]

    def once(self, name: str) -> int:
        """Tests all images at all scales once; gives the number of batches."""
        if name == "boxes":
            return self._boxes()
        return sum(
            1
            for view in self.views(name)
            for _ in self.tester.batches(*self.arrays, "test", view, mirror=True)
        )

    def _boxes(self) -> int:
        """Finds and merges the boxes of all images; gives the number of batches."""
        top = np.tile(np.arange(CLASSES, dtype=np.int32), (self.images, 1))
        boxes_of: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for Q in self.scales:
            for i, boxes, trust in self.localiser.said(Q, top):
                boxes_of[i].append((boxes, trust))
        merging.of_images(list(boxes_of.values()), CLASSES)
        return len(self.scales)

    def burst(self, name: str) -> Timing:
        """The time of testing all images, as often as a timing needs; a batch is a step."""
        lap = functools.partial(self.once, name)
        return timing.laps(lap, self.images, watch_of(jax.default_backend()))

    def run(self, repeats: int, progress: Any) -> list[Item]:
        """Measures in turns, after one round that compiles and touches all memory."""
        with frame.turns_bar(progress, len(TITLES) * (repeats + 1)) as on_turn:
            for name, title in TITLES.items():
                on_turn(f"compiling: {title}")
                self.once(name)
            subjects = {name: functools.partial(self.burst, name) for name in TITLES}
            self.timings, _ = in_turns(subjects, repeats, on_turn, titles=TITLES)
        self.flops = {name: self._flops(name) for name in TITLES}
        return [
            self._item("dense", "crops", "dense over 150 crops", 4.0),
            self._item("boxes", "dense", "boxes over dense", round(1 / 1.3, 2)),
        ]

    def _item(self, test: str, base: str, title: str, target: float) -> Item:
        """The speed of a test over that of another."""
        series, titles = (self.timings[test], self.timings[base]), (TITLES[test], TITLES[base])
        aim = round(self.flops[base] / self.flops[test], 2)
        return Item(f"{test}_over_{base}", title, target, ratios.compare(*series, titles), aim=aim)

    def _flops(self, name: str) -> float:
        """FLOP of one image at all scales, as XLA counts them before it optimises."""
        total, tester = 0.0, self.tester
        for view in self.views(name):
            places = np.arange(tester.mesh.size)
            (batch,) = tester.data.tested("test", tester.mesh, 1, view, places)
            if name == "boxes":
                assert isinstance(view, crops.WholeView)
                arrays = [a for net in self.localiser.nets for a in (net.params, net.stats)]
                top: np.ndarray = np.zeros((len(batch.labels), CLASSES), np.int32)
                program, inputs = self.localiser.program(view), {**batch.inputs, "top": top}
            else:
                arrays, inputs = list(self.arrays), batch.inputs
                program = tester.program(view, mirror=True)
            lowered = program.lower(*arrays, tester.constants, inputs)
            cost = lowered.cost_analysis() or {}
            total += cost.get("flops", float("nan")) / len(batch.labels)
        return total

    def padding(self, path: str, progress: Any) -> dict[str, Any]:
        """The share of padding among the dense test's pixels on the images of `path`."""
        from launch.console import images_bar

        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{root} is no folder of images")
        source = images_below(root, SUFFIXES)
        if not len(source):
            raise DataError(f"{root} holds no image files (of type {', '.join(SUFFIXES)})")
        with images_bar(progress, "sizes of images") as on_progress:
            how = stream.Decoding(max_unusable=1)
            sizes = whole_images.image_sizes(source, how, on_progress)
        budget = min(BATCH, MOST_VIEWS.get(jax.default_backend(), BATCH))
        pixels = budget * self.crop**2 // 2
        options: dict[str, Any] = {"pixels": pixels, "multiple": jax.device_count()}
        scales = {
            Q: {
                "share": whole_images.waste(sizes, Q, **options),
                "programs": len(whole_images.plan(sizes, Q, **options)),
            }
            for Q in self.scales
        }
        return {"path": path, "images": len(sizes), "scales": scales}


COLUMNS = ("measured", "seconds an image", "lowest", "highest", "GFLOP an image", "GFLOP/s")
EXPLAINED = (
    "aim: what the arithmetic alone would give; GFLOP as XLA counts them before it optimises"
)


def report(
    bench: Bench,
    repeats: int,
    items: list[Item],
    padding: dict[str, Any] | None,
    machine: dict[str, Any],
) -> Report:
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    height, width = SHAPE
    conditions = (
        f"{bench.arch} at width {bench.width:g}, crop {bench.crop}, scales "
        f"{', '.join(map(str, bench.scales))}; {bench.images} images of {width}x{height}, as often "
        f"as a measurement needs, {repeats} repeats; with mirrors"
    )
    rows = []
    for name, series in bench.timings.items():
        seconds, gflop = [1 / rate for rate in ratios.rates(series)], bench.flops[name] / 1e9
        gflop_rate = "" if series.doubt else f"{gflop / median(seconds):,.0f}"
        cells = spread(seconds, ".3f", series.doubt)
        rows.append((TITLES[name], *cells, f"{gflop:,.0f}", gflop_rate))
    table = Table(COLUMNS, rows)
    notes = ratios.doubts(bench.timings, TITLES)
    if padding is not None:
        notes += [
            f"{padding['images']:,} images at Q={Q}: {scale['share']:.1%} of the pixels are "
            f"padding or blank, in {scale['programs']} shapes"
            for Q, scale in padding["scales"].items()
        ]
    return Report(
        frame.cpu(machine) if jax.default_backend() == "cpu" else device,
        {
            "settings": {
                "arch": bench.arch,
                "width": bench.width,
                "crop": bench.crop,
                "scales": bench.scales,
                "stored": SHAPE,
                "images_per_measurement": bench.images,
                "repeats": repeats,
            },
            "timings": bench.timings,
            "flops_an_image": bench.flops,
            "padding": padding,
            "items": items,
        },
        [
            (f"{frame.cpu(machine)}; {device}", None),
            (conditions, f"{conditions}."),
            (table, table),
            ratios.items_tables(items),
            (EXPLAINED, f"{EXPLAINED[0].upper()}{EXPLAINED[1:]}."),
            frame.notes(notes),
        ],
        {"device": device},
    )
