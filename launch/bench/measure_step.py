"""`cnn-depth bench step`: the same training step here and in other libraries.

Every library trains one case at a time in a process of its own, and only one of them computes.
The arithmetic of a step is counted as three times that of the forward pass, two FLOP a multiply-add
of convolutions and fully connected layers.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from input_pipeline.errors import INSTALL
from launch import devices
from launch.bench import frame, ratios, step_runs, step_typed
from launch.bench.frame import Report
from launch.bench.layer_graph import Graph, record
from launch.bench.process import PeerEnded, Process
from launch.bench.ratios import NOT_TRUSTED, Item, Ratio, Table, core_time_ratio, rates, spread
from launch.bench.step_case import Case, Peak, choose
from launch.bench.step_workers import installed, worker
from launch.bench.timing import LEAST_STEPS, Series, Timing, in_turns
from launch.verbs.options import add_options

HELP = """\
Measure a training step: images/s of ours, of the same network in PyTorch and of it in Keras
(TensorFlow), layer for layer, with the same batch and cores, each in a process of its own, in
turns. Forward pass, soft-max cross-entropy, backward pass, SGD with momentum and weight decay, on
images that are made up and on the device already. Also the share of the arithmetic that a large
matrix product reaches here, and memory. A peer that is not installed is left out, and it is said
how to install it."""
EXAMPLE = """
cnn-depth bench step
cnn-depth bench step --arch vgg:D@32x128 --arch resnet:18@224x8 --peer torch
cnn-depth bench step --arch resnet:50 --batch 256 --dtype bfloat16 --compiled --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    nets = "six small ones on a CPU, the papers' ImageNet nets elsewhere"
    options = {
        frame.NETS: frame.NETS_HELP.format(nets),
        "--peer all|torch|keras|none": frame.PEERS,
    }
    add_options(parser, options, peer="all")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="PyTorch through torch.compile as well (default: yes)",
    )
    where = ", where --arch does not say (default: "
    options = {
        "--batch N": f"images{where}on a CPU 128 up to 64 pixels and 8 above, 256 elsewhere)",
        "--size PIXELS": f"of the images{where}the paper's); up to 64 pixels they are of 10 "
        "classes",
        **frame.PRECISION,
        "--seeds N": "also cifar_resnet:20 as a run trains it, many steps a dispatch: how long the "
        "paper's 64,000 take, N seeds in one program beside one, and deterministic kernels "
        "(default: 5; on a CPU 0, which leaves it out)",
        "--repeats N": "default: 5",
        "--steps N": "a measurement, at least; it takes two seconds or more (default: 5)",
    }
    add_options(parser, options, width=1.0, repeats=5)


VERSIONS = ("jax", "jaxlib", "flax", "torch", "keras", "tensorflow", "tensorflow-cpu")
CPU_CASES = (
    "cifar_resnet:20",
    "vgg:A@32x128",
    "vgg:D@32x128",
    "alexnet:two_gpu@224x8",
    "vgg:A@224x8",
    "resnet:18@224x8",
    "resnet:50@224x8",
    "lenet5:modern@32x32",
)
ELSEWHERE = (
    *(f"resnet:{depth}" for depth in (18, 50, 101, 152)),
    *(f"vgg:{variant}" for variant in "ADE"),
    "alexnet:two_gpu",
)
TITLES = {
    "ours": "ours",
    "torch": "PyTorch",
    "torch_compiled": "torch.compile",
    "torch_frozen": "PyTorch, frozen",
    "keras": "Keras",
    "typed": "ours, as typed",
}
# On a CPU with instructions for bfloat16 these cases are measured in it too: PyTorch by autocast.
BFLOAT16_CASES = (
    "cifar_resnet:20@32x128",
    "vgg:A@224x8",
    "resnet:18@224x8",
    "resnet:50@224x8, forward",
    "vgg:D@224x8, forward",
)
IN_BFLOAT16 = {f"{library}_bfloat16": library for library in ("ours", "torch", "torch_compiled")}
TITLES |= {name: f"{TITLES[library]}, bfloat16" for name, library in IN_BFLOAT16.items()}
# Of ours over a peer on a GPU; on a CPU, (target, aim) of any, by case.
TARGETS = {"torch": 1.15, "torch_compiled": 1.0, "keras": 1.0}
CPU_TARGETS: dict[str, tuple[float, float | None]] = {
    "cifar_resnet:20@32x128": (1.0, 1.1),
    "vgg:A@32x128": (1.25, None),
    "vgg:D@32x128": (1.25, None),
    "alexnet:two_gpu@224x8": (1.25, None),
    "vgg:A@224x8": (1.1, None),
    "resnet:18@224x8": (1.05, 1.2),
    "resnet:50@224x8": (1.05, 1.2),
    "lenet5:modern@32x32": (1.5, None),
    "resnet:50@224x8, forward": (1.05, None),
    "vgg:D@224x8, forward": (1.0, None),
}
CPU_TARGET = (0.8, 1.0)  # of other cases
BFLOAT16_TARGET = (1.5, 2.5)  # over ours in float32, a training step
BFLOAT16_FORWARD_TARGET = (3.0, None)
BFLOAT16_PEER_TARGET = (1.0, 1.2)
TYPED_TARGET = 0.97  # of the command's own rate over that of its step
# Images/s, (floor, aim), at 224 pixels in bfloat16 on one GPU of the H200's kind.
FLOORS = {
    "alexnet:two_gpu": (35_000, 60_000),
    "vgg:A": (6_500, 8_400),
    "vgg:D": (3_600, 4_600),
    "vgg:E": (3_000, 3_900),
    "resnet:18": (16_000, 22_000),
    "resnet:50": (5_000, 6_500),
    "resnet:101": (3_200, 4_100),
    "resnet:152": (2_200, 2_900),
}
SETTLE_SECONDS = 0.2  # in which the threads of the library before stop spinning


@dataclass
class Measurement:
    """The measurements of one case; dictionaries are by library."""

    case: Case
    flops: float  # of a step, an image
    params: int  # trained values
    timings: dict[str, Series[Timing]] = field(default_factory=dict)
    descriptions: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # what a worker says of itself
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    absent: dict[str, str] = field(default_factory=dict)  # why a library was not measured
    peak: dict[str, Series[Peak]] = field(default_factory=dict)  # FLOP/s of a large product
    bandwidth: Series[Peak] | None = None  # bytes/s of a large copy

    def rate(self, library: str) -> float | None:
        """The median images/s; None where it is not trusted."""
        series = self.timings[library]
        return None if series.doubt else median(rates(series))

    def flops_reached(self, library: str) -> float | None:
        """FLOP/s; None where the rate is not trusted."""
        rate = self.rate(library)
        return None if rate is None else rate * self.flops

    def share_of_peak(self, library: str) -> float | None:
        """The share of the faster large product's FLOP/s; None where a figure is not trusted, and
        in bfloat16 beside float32: the product is float32's."""
        reached = None if library in IN_BFLOAT16 else self.flops_reached(library)
        if reached is None or not self.peak or any(s.doubt for s in self.peak.values()):
            return None
        return reached / max(best(s) for s in self.peak.values())

    def share_of_bandwidth(self) -> float | None:
        """The share of a large copy's bytes/s that ours reaches, by the bytes that XLA counts."""
        step_bytes, rate = self.descriptions["ours"]["bytes_accessed"], self.rate("ours")
        if step_bytes is None or rate is None or self.bandwidth is None or self.bandwidth.doubt:
            return None
        return step_bytes * rate / self.case.batch / best(self.bandwidth)

    def named(self) -> dict[str, Series[Any]]:
        """All series, by their titles in notes."""
        series_of: dict[str, Series[Any]] = {TITLES[k]: s for k, s in self.timings.items()}
        series_of |= {f"large product, {TITLES[k]}": s for k, s in self.peak.items()}
        if self.bandwidth is not None:
            series_of["large copy"] = self.bandwidth
        return {f"{self.case}: {title}": s for title, s in series_of.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "flops_an_image": self.flops,
            "params": self.params,
            "peak_flops": {k: {"best": best(s), **s.to_json()} for k, s in self.peak.items()},
            "bandwidth": self.bandwidth
            and {"best": best(self.bandwidth), **self.bandwidth.to_json()},
            "share_of_bandwidth": self.share_of_bandwidth(),
            "not_measured": self.absent,
            "libraries": {
                library: {
                    **self.descriptions.get(library, {}),
                    "images_per_s": self.rate(library),
                    "flops": self.flops_reached(library),
                    "share_of_peak": self.share_of_peak(library),
                    "memory_bytes": self.memory.get(library),
                    **series.to_json(),
                }
                for library, series in self.timings.items()
            },
        }


def best(series: Series[Peak]) -> float:
    """The best rate of all bursts."""
    return max(peak.best for peak in series.bursts)


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Every case in turns, then the trainings of runs."""
    frame.at_least(args, repeats=1, steps=LEAST_STEPS, batch=1, size=1, seeds=0)
    platform = devices.probe(devices.Slot()).platform
    devices.use_cpu_only()
    cpu = platform == "cpu"
    seeds = args.seeds if args.seeds is not None else 0 if cpu else 5
    cases = cases_of(args, CPU_CASES if cpu else ELSEWHERE, platform)
    libraries = ["ours"]
    for peer in ("torch", "keras"):
        if args.peer in ("all", peer):
            libraries += [peer, "torch_compiled"] if args.compiled and peer == "torch" else [peer]
    runs, total = None, turns(cases, libraries, args, platform)
    total += (1 + len(step_runs.TITLES) * args.repeats) if seeds else 0
    with frame.turns_bar(console, total) as on_turn:
        measurements = in_turn(cases, libraries, args, platform, on_turn)
        if seeds:
            try:
                runs = step_runs.measure(seeds, args.repeats, on_turn)
            except PeerEnded as error:  # what was measured is not lost with it
                absent = dict.fromkeys(step_runs.TITLES, str(error))
                runs = step_runs.Runs(seeds, 0, {}, absent, cpu)
    return report(measurements, runs, platform, device_of(measurements, machine), args)


def turns(
    cases: Sequence[Case], libraries: Sequence[str], args: argparse.Namespace, platform: str
) -> int:
    """How many turns `in_turn` takes, if nothing is measured again."""
    rows = sum(len(rows_of(case, libraries, platform)) for case in cases)
    rows += any(measures_command(case, platform) for case in cases)
    return len(cases) + rows * (1 + args.repeats)


def in_turn(
    cases: Sequence[Case],
    libraries: Sequence[str],
    args: argparse.Namespace,
    platform: str,
    on_turn: Callable[[str], None],
) -> list[Measurement]:
    """The measurements of cases, one after the other, each in its libraries in turns."""
    from cnn_arch.census import census

    measurements = []
    for case in cases:
        options = {"image_size": case.size, "classes": case.classes, **case.options}
        flops = 2 * case.passes * census(case.arch, **options).macs
        measurements.append(Measurement(case, flops, 0))
        graph = None if args.peer == "none" else record(case.arch, **options)
        rows = rows_of(case, libraries, platform)
        in_libraries(measurements[-1], graph, rows, args, platform, on_turn)
    return measurements


def rows_of(case: Case, libraries: Sequence[str], platform: str) -> list[str]:
    """The libraries that a case is measured in, in bfloat16 too where the CPU multiplies it."""
    narrow = [name for name, library in IN_BFLOAT16.items() if library in libraries]
    return [*libraries, *(narrow if has_bfloat16(case, platform) else [])]


def device_of(measurements: Sequence[Measurement], machine: dict[str, Any]) -> str:
    """The device that cases were measured on, for people."""
    device = measurements[0].descriptions["ours"]["device"]
    return frame.cpu(machine) if device == "cpu" else f"1 x {device}"


def cases_of(args: argparse.Namespace, usual: Sequence[str], platform: str) -> list[Case]:
    """The cases of `--arch`, or the usual ones. Raises ConfigError, ArchitectureError."""
    return choose(
        args.arch or usual,
        platform,
        size=args.size,
        batch=args.batch,
        dtype=args.dtype,
        width=args.width,
    )


def in_libraries(
    measurement: Measurement,
    graph: Graph | None,
    libraries: Sequence[str],
    args: argparse.Namespace,
    platform: str,
    on_turn: Callable[[str], None],
) -> None:
    """Measures one case, in turns. Raises PeerEnded where ours can't be measured."""
    case = measurement.case
    with ExitStack() as stack:
        workers: dict[str, Process] = {}
        for library in libraries:
            on_turn(f"{case}: {TITLES[library]} starts")
            base = IN_BFLOAT16.get(library, library)
            dtype = case.dtype if base == library else "bfloat16"
            if base != "ours" and not installed(base):
                extras = "jpeg,peers" if library == "keras" else "peers"
                measurement.absent[library] = f"not installed: {INSTALL.format(extras)}"
                continue
            try:
                narrow = replace(case, dtype=dtype)
                process = stack.enter_context(worker(base, narrow, graph, platform))
            except PeerEnded as error:
                if library == "ours":
                    raise
                measurement.absent[library] = str(error)
                continue
            workers[library], measurement.descriptions[library] = process, process.description
        measurement.params = measurement.descriptions["ours"]["params"]
        check_params(measurement)
        answers: dict[str, Callable[..., Any]] = {k: process.ask for k, process in workers.items()}
        if measures_command(case, platform):
            on_turn(f"{case}: {TITLES['typed']} starts")
            try:
                command = stack.enter_context(step_typed.Typed())
                answers["typed"] = lambda _, steps: command.burst(steps)
            except PeerEnded as error:
                measurement.absent["typed"] = str(error)

        def ask(
            titles: dict[str, str], repeats: int, *question: Any, absent: Any = ()
        ) -> tuple[dict[str, Series[Any]], dict[str, str]]:
            def burst(library: str) -> Any:
                time.sleep(SETTLE_SECONDS)
                return answers[library](*question)

            subjects = {library: functools.partial(burst, library) for library in titles}
            titles = {library: f"{case}: {title}" for library, title in titles.items()}
            return in_turns(subjects, repeats, on_turn, titles=titles, absent=absent)

        question = ("burst", args.steps or LEAST_STEPS)
        titles = {library: TITLES[library] for library in answers}
        measurement.timings, reasons = ask(titles, args.repeats, *question, absent=(PeerEnded,))
        if "ours" in reasons:
            raise PeerEnded(reasons["ours"])
        measurement.absent |= reasons
        for library in workers.keys() & measurement.timings.keys():
            if doubt := measurement.descriptions[library]["doubt"]:
                measurement.timings[library] = replace(measurement.timings[library], doubt=doubt)
            with suppress(PeerEnded):  # its timings are there
                measurement.memory[library] = workers[library].ask("memory")
        libraries = [k for k in ("ours", "torch") if k in measurement.timings]
        products = {k: f"a large product, {TITLES[k]}" for k in libraries}
        measurement.peak, _ = ask(products, 1, "product", absent=(PeerEnded,))
        copies, _ = ask({"ours": "a large copy"}, 1, "copy", absent=(PeerEnded,))
        measurement.bandwidth = copies.get("ours")


def measures_command(case: Case, platform: str) -> bool:
    """Whether `cnn-depth train` is measured too, because its training is the case's."""
    on_linux_cpu = platform == "cpu" and sys.platform == "linux"
    return on_linux_cpu and str(case) == step_typed.CASE and case.dtype == "float32"


def has_bfloat16(case: Case, platform: str) -> bool:
    """Whether a case, which is of float32, is measured in bfloat16 too."""
    if platform != "cpu" or case.dtype != "float32" or str(case) not in BFLOAT16_CASES:
        return False
    from cnn_arch.kernels import onednn

    return onednn.multiplies_bfloat16()


def check_params(measurement: Measurement) -> None:
    """Raises PeerEnded where a peer trains another number of values: it is another network."""
    for library, description in measurement.descriptions.items():
        if description["params"] != measurement.params:
            raise PeerEnded(
                f"{measurement.case}: {TITLES[library]} trains {description['params']:,} values, "
                f"ours {measurement.params:,}: not the same network"
            )


def items(measurement: Measurement, platform: str) -> list[Item]:
    """Every comparison of a case with its target."""
    compared, case, cpu = [], measurement.case, platform == "cpu"
    for library in (*measurement.absent, *measurement.timings):
        if library == "ours":
            continue
        subject, base = "ours", library
        title = f"{case} over {TITLES[library]}"
        target, aim = (TARGETS.get(library, 1.0), None)
        if cpu:
            target, aim = CPU_TARGETS.get(str(case), CPU_TARGET)
        if library == "typed":
            subject, base, target, aim = "typed", "ours", TYPED_TARGET, None
            title = f"{case} {TITLES['typed'].removeprefix('ours, ')} over its bare step"
        elif library == "ours_bfloat16":
            subject, base, title = library, "ours", f"{case} in bfloat16 over float32"
            target, aim = BFLOAT16_FORWARD_TARGET if case.forward else BFLOAT16_TARGET
        elif library in IN_BFLOAT16:
            subject, (target, aim) = "ours_bfloat16", BFLOAT16_PEER_TARGET
        name = f"{case.arch}_{case.size}_{case.batch}_over_{library}"
        absent = [measurement.absent[k] for k in (base, subject) if k in measurement.absent]
        if absent:
            compared.append(Item(name, title, target, absent[0], aim))
            continue
        timings = measurement.timings[subject], measurement.timings[base]
        measured = ratios.compare(*timings, (TITLES[subject], TITLES[base]))
        compared.append(Item(name, title, target, measured, aim, core_time_ratio(*timings)))
    usual = case.dtype == "bfloat16" and case.size == 224 and case.width == 1
    if usual and not cpu and not case.forward and case.arch in FLOORS:
        floor, aim = FLOORS[case.arch]
        ours = measurement.timings["ours"]
        reached = Ratio(tuple(rate / floor for rate in rates(ours)))
        title = f"{case.arch}, over {floor:,} images/s"
        measured = ratios.trusted({TITLES["ours"]: ours}) or reached
        compared.append(Item(f"{case.arch}_floor", title, 1.0, measured, round(aim / floor, 2)))
    return compared


COLUMNS = ("case", "library", "images/s", "lowest", "highest", "GFLOP/s", "of peak", "MiB")
EXPLAINED = (
    "Cases: architecture, pixels, batch. GFLOP/s: of a training step three times the forward "
    "pass's, two FLOP a multiply-add; of peak: over the faster of the large matrix products of the "
    "case's dtype; MiB: what it took at most, on a CPU with what compiling took."
)


def _notes(measurements: list[Measurement]) -> list[str]:
    """Lines about each case that are not in the tables."""
    notes = []
    for m in measurements:
        peaks = ", ".join(
            f"{'JAX' if name == 'ours' else TITLES[name]} "
            + (NOT_TRUSTED if series.doubt else f"{best(series) / 1e9:,.0f} GFLOP/s")
            for name, series in m.peak.items()
        )
        note = f"{m.case} ({m.case.dtype}): {m.params:,} parameters; large product: {peaks}"
        share, bandwidth = m.share_of_bandwidth(), m.bandwidth
        if share is not None and bandwidth is not None:
            step_bytes = m.descriptions["ours"]["bytes_accessed"]
            note += (
                f"; bytes that XLA counts: {step_bytes / 1e9:,.2f} GB a step, {share:.0%} of the "
                f"{best(bandwidth) / 1e9:,.1f} GB/s of a large copy"
            )
        notes.append(note)
        if "keras" in m.descriptions:
            notes.append(f"{m.case}: Keras by {m.descriptions['keras']['note']}")
        notes += ratios.doubts(m.named())
        notes += [f"{m.case}: {TITLES[k]} not measured: {why}" for k, why in m.absent.items()]
    return notes


def report(
    measurements: list[Measurement],
    runs: step_runs.Runs | None,
    platform: str,
    device: str,
    args: argparse.Namespace,
) -> Report:
    compared = [item for m in measurements for item in items(m, platform)]
    notes = _notes(measurements)
    if runs is not None:
        compared += runs.items()
        notes += runs.notes
    rows = []
    for m in measurements:
        for library, series in m.timings.items():
            flops, share = m.flops_reached(library), m.share_of_peak(library)
            rows.append(
                (
                    str(m.case) if library == "ours" else "",
                    TITLES[library],
                    *spread(rates(series), ",.1f", series.doubt),
                    "" if flops is None else f"{flops / 1e9:,.0f}",
                    "" if share is None else f"{share:.0%}",
                    f"{m.memory[library] / 2**20:,.0f}" if library in m.memory else "",
                )
            )
    table = Table(COLUMNS, rows, "ll")
    settings = {"repeats": args.repeats, "steps": args.steps, "threads": devices.usable_cores()}
    return Report(
        device,
        {"settings": settings, "cases": measurements, "runs": runs, "items": compared},
        [
            (f"{device}; {args.repeats} repeats", None),
            (table, table),
            (EXPLAINED, f"{args.repeats} repeats. {EXPLAINED}"),
            ratios.items_tables(compared),
            frame.notes(notes),
        ],
        {"platform_of_jax": platform, "device": device},
    )
