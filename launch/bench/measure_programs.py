"""`cnn-depth bench programs`: what chips that are not here would execute.

XLA compiles a network's real training step for them. Memory, arithmetic, memory traffic and
exchanges are read from the program; nothing runs. Each program is compiled in a process of its own,
which is stopped before XLA generates code: that takes most of the time and changes no figure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from launch import devices
from launch.bench import frame
from launch.bench.frame import BenchError, Report
from launch.bench.hlo import Program, Work
from launch.bench.process import PeerEnded
from launch.bench.ratios import Item, Ratio, Table, items_tables
from launch.bench.step_case import SMALL
from launch.chips import GPU_EXAMPLE, Chip, ChipSet, check_plugins, parse, without_accelerators
from launch.verbs.options import add_options

HELP = """\
Compile training steps for TPUs and NVIDIA's GPUs that are not here, and say of each program: GiB of
memory a chip, arithmetic, bytes moved to and from main memory, what the chips exchange, and the
images a second that these allow at most. Beside it the same network written plainly in Flax. Needs
libtpu, or for GPUs jax-cuda12-plugin and jax-cuda12-pjrt of jaxlib's version."""
EXAMPLE = """
cnn-depth bench programs
cnn-depth bench programs --chips v5e:1x1,v5e:2x4 --arch resnet:50 --json
cnn-depth bench programs --chips h100:8,2*h100:8 --arch vgg:D
cnn-depth bench programs --chips v5p:2x2x1 --arch vgg:D --dtype float32
cnn-depth bench programs --chips v5e:1x1 --arch resnet:50 --set train.accumulate=4
"""
VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax")
NETS = ("resnet:50", "vgg:D", "alexnet:two_gpu", "googlenet", "cifar_resnet:20")
CHIPS = "v5e:1x1,v5e:2x4"
MOST_BYTES = 1.05  # of the plain net's
PROGRAMS = ("step", "center", "dense")  # of training, and of these two tests
SECONDS = 900.0  # for one program
# Studies of families that have no study of their name.
STUDIES = {"plain": "resnet", "cifar_plain": "cifar_resnet", "lenet5": "lenet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench programs`."""
    options = {
        "--arch NAME...": f"architecture, may be given several times (default: {', '.join(NETS)})",
        "--chips [N*]KIND:SHAPE": "chips that need not be there, N slices or machines of them, "
        f"with commas between, such as {GPU_EXAMPLE} (default: {CHIPS})",
        f"--program {'|'.join(PROGRAMS)}": "the training step, or the test of central or of whole "
        "images (default: step)",
        "--batch N": "images in all (default: the study's)",
        "--dtype float32|bfloat16": "of the computation (default: bfloat16)",
        "--set KEY=VALUE...": "override a key (`cnn-depth list keys`) of ours, such as "
        "train.accumulate=4; without plain nets",
    }
    add_options(parser, options, chips=CHIPS, program=PROGRAMS[0], dtype="bfloat16")


@dataclass(frozen=True)
class Case:
    """A network's program on chips."""

    arch: str
    chips: str
    dtype: str
    batch: int
    plain: bool = False  # whether the network is written plainly in Flax
    kind: str = "step"  # one of PROGRAMS
    changes: tuple[tuple[str, Any], ...] = ()  # (key, value) of the study's config

    @property
    def net(self) -> str:
        """The network, with its program and changed keys, for messages and tables."""
        parts = ["" if self.kind == "step" else self.kind, *(f"{k}={v}" for k, v in self.changes)]
        return ", ".join([f"{'plain ' if self.plain else ''}{self.arch}", *filter(None, parts)])

    @property
    def config(self) -> Any:
        return config_of(self.arch, self.dtype, self.batch, dict(self.changes))

    def __str__(self) -> str:
        return f"{self.net} {self.dtype}, batch {self.batch}, on {self.chips}"


@dataclass(frozen=True)
class Compiled:
    """A program for absent chips."""

    case: Case
    program: Program
    memory: int  # bytes a chip

    @property
    def chip(self) -> Chip:
        return ChipSet(self.case.chips).chip

    def least(self, work: Work) -> float:
        """The least seconds of an operation: its arithmetic or its traffic, whichever is longer."""
        return max(work.flops / self.chip.peak, work.bytes / self.chip.hbm)

    @cached_property
    def working(self) -> float:
        """Seconds of all operations, one after the other, without exchanges."""
        return sum(map(self.least, self.program.work))

    @cached_property
    def exchanging(self) -> float:
        """Seconds of all exchanges, one after the other."""
        n = ChipSet(self.case.chips).count
        return sum(e.sent(n) for e in self.program.exchanges) / self.chip.link

    @cached_property
    def seconds(self) -> float:
        """The least time of a step: operations one after the other, beside them the exchanges.

        An exchange runs from the operation that begins it to the one that waits for it.
        """
        n = ChipSet(self.case.chips).count
        now = link_free = 0.0
        ends: dict[str, float] = {}
        for work in self.program.work:
            if work.begins is not None:
                link_free = max(now, link_free) + work.begins.sent(n) / self.chip.link
                ends[work.begins.name] = link_free
            now = max(now, ends.get(work.waits, 0.0)) + self.least(work)
        return now

    @property
    def hidden(self) -> float | None:
        """The share of the exchanges' time in which operations run; None without exchanges."""
        if not self.exchanging:
            return None
        return max(0.0, 1 - (self.seconds - self.working) / self.exchanging)

    def to_json(self) -> dict[str, Any]:
        p = self.program
        return {
            **asdict(self.case),
            "memory_bytes": self.memory,
            "flops": p.flops,
            "hbm_bytes": p.bytes,
            "exchanges": [{**asdict(e), "dtypes": sorted(e.dtypes)} for e in p.exchanges],
            "exchanges_hidden": self.hidden,
            "multiplied": dict(p.multiplied),
            "largest_copy_bytes": p.largest_copy(),
            "seconds_at_least": self.seconds,
            "images_per_s_at_most": self.case.batch / self.seconds,
        }


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Compiles every network for all chips, ours and plain."""
    import cnn_arch
    from experiments import config as configs
    from experiments.data.base import check_batch
    from launch.bench import plain_nets

    if args.batch is not None:
        frame.at_least(args, batch=1)
    chips = parse(args.chips)
    check_plugins(chips)
    devices.use_cpu_only()
    changes = configs.parse_set(args.set)
    cases = []
    for name in map(cnn_arch.full_name, args.arch or NETS):
        config = config_of(name, args.dtype, args.batch, changes)
        batch, data = int(config.train.batch_size), data_of(config)
        if args.program == "step":
            check_batch(config, data.counts["train"], data.name)
        with_plain = (
            args.program == "step"
            and not changes
            and plain_nets.model(name, args.dtype) is not None
        )
        for absent in chips:
            if batch % absent.count:
                raise BenchError(
                    f"--chips {absent.name}: a batch of {batch} can't be spread over "
                    f"{absent.count} devices; --batch takes another"
                )
            options = {"kind": args.program, "changes": tuple(changes.items())}
            case = Case(name, absent.name, args.dtype, batch, **options)
            cases += [case, replace(case, plain=True)] if with_plain else [case]
    compilations = {}
    with frame.turns_bar(console, len(cases)) as on_turn:
        for case in cases:
            on_turn(str(case))
            compilations[case] = compiled(case)
    return report(compilations)


def config_of(
    arch: str, dtype: str, batch: int | None, changes: Mapping[str, Any] | None = None
) -> Any:
    """The config of the study of an architecture's family, with these changes of keys."""
    from experiments import config as configs

    family = arch.partition(":")[0]
    config = configs.read(STUDIES.get(family, family)).config
    overrides: dict[str, Any] = {"model.arch": arch}
    if "dtype" in config.model:
        overrides["model.dtype"] = dtype
    elif dtype != "float32":
        raise BenchError(f"--dtype {dtype}: {arch} computes in float32")
    if batch is not None:
        overrides["train.batch_size"] = batch
    return configs.override(configs.override(config, overrides, "--arch"), changes or {}, "--set")


def data_of(config: Any) -> Any:
    """The shapes of a study's images."""
    import cnn_arch
    from experiments.data import absent

    inputs = cnn_arch.inputs(config.model.arch)
    if inputs.image_size > SMALL:
        return absent.imagenet(config)
    return absent.small(config, inputs.image_size, inputs.channels, inputs.classes)


def compiled(case: Case) -> Compiled:
    """Compiles a case's program, in a process that is stopped after XLA's passes.

    Raises PeerEnded where the process ends, or takes too long, without a program.
    """
    code = (
        "import sys; from launch.bench import measure_programs as m; m.compile_here(sys.argv[1:])"
    )
    with tempfile.TemporaryDirectory(prefix="cnn-depth-programs-") as folder:
        errors = Path(folder, "errors")
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [*devices.PYTHON, "-c", code, json.dumps(asdict(case)), folder],
                stdout=stderr,
                stderr=stderr,
                env={**devices.environment(devices.Slot()), **without_accelerators()},
            )
        try:
            program, memory = _await(process, Path(folder))
        except TimeoutError:
            raise PeerEnded(f"{case}: no program in {SECONDS:.0f} s") from None
        finally:
            process.kill()
            process.wait()
        if program is None:
            lines = [line for line in errors.read_text().splitlines() if line.strip()]
            last = next((s for s in reversed(lines) if "Error" in s or "RESOURCE" in s), "")
            raise PeerEnded(f"{case}: {last.strip()[:300] or 'its process ended'}")
    return Compiled(case, Program(program), memory)


def _await(process: subprocess.Popen[Any], folder: Path) -> tuple[str | None, int]:
    """The text of the program that XLA wrote into a folder, and the bytes it needs a chip.

    Gives (None, 0) where the process ends without one; raises TimeoutError after SECONDS.
    """
    texts = ("*jit_*after_buffer_assignment.txt", "*jit_*gpu_after_optimizations.txt")
    usage, last_size = "*jit_*memory-usage-report.txt", -1
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        programs = [path for pattern in texts for path in folder.glob(pattern)]
        reports = [*folder.glob(usage)]
        if programs and reports:
            match = re.search(r"Total bytes: (\d+)", reports[0].read_text())
            size = programs[0].stat().st_size
            if match and size and (size == last_size or has_ended):
                return programs[0].read_text(), int(match[1])
            last_size = size
        elif has_ended:
            return None, 0
        time.sleep(0.5)
    raise TimeoutError


def traced(kind: str, config: Any, data: Any, mesh: Any) -> Any:
    """A program of `PROGRAMS`, traced from shapes."""
    from experiments.testing import program as test_program
    from experiments.training import program
    from input_pipeline import crops

    if kind == "step":
        return program.trace(config, data, mesh)
    view = crops.WholeView(Q=data.Q) if kind == "dense" else data.centre
    return test_program.trace(config, data, mesh, view, config.train.batch_size)


def compile_here(arguments: list[str]) -> None:
    """In a process of its own: compiles a case, and has XLA write the program into a folder.

    arguments: the fields of a `Case` as JSON, and the folder.
    """
    from launch.bench import plain_nets

    case, folder = Case(**json.loads(arguments[0])), arguments[1]
    mesh = ChipSet(case.chips).mesh()
    if case.plain:
        net = plain_nets.model(case.arch, case.dtype)
        assert net is not None
        lowered = plain_nets.lower(net, case.batch, mesh)
    else:
        lowered = traced(case.kind, case.config, data_of(case.config), mesh).lower()
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    if ChipSet(case.chips).chip.gpu:  # there is none to time kernels on
        options |= {"xla_gpu_autotune_level": 0}
    lowered.compile(compiler_options=options)
    sys.exit()


COLUMNS = (
    "program",
    "chips",
    "GiB a chip",
    "TFLOP",
    "GB moved",
    "of plain",
    "exchanges",
    "MB",
    "hidden",
    "convolving",
    "ms",
    "images/s",
)
EXPLAINED = (
    "GB moved: to and from main memory, each operation reading its operands and writing its result "
    "once; of plain: over the plain net's. Exchanges: operations between chips, with the size of "
    "their results; hidden: the share of their time in which other operations run. Convolving: the "
    "share of the time in operations that multiply matrices. ms and images/s are bounds, not "
    "measurements: every operation at the chip's full arithmetic or memory bandwidth, one after "
    "the other, and exchanges at that of its links. A chip that is there is slower."
)


def _rows(compilations: dict[Case, Compiled]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for case, compilation in compilations.items():
        program, chip = compilation.program, compilation.chip
        share = sum(compilation.least(w) for w in program.work if w.convolves) / compilation.working
        plain = compilations.get(replace(case, plain=True))
        fits = "" if compilation.memory <= chip.memory else " (does not fit)"
        exchanged = sum(e.times for e in program.exchanges)
        ratio = f"{program.bytes / plain.program.bytes:.2f}" if plain and not case.plain else ""
        rows.append(
            (
                f"{case.net} x{case.batch}",
                case.chips,
                f"{compilation.memory / 2**30:.1f}{fits}",
                f"{program.flops / 1e12:.3g}",
                f"{program.bytes / 1e9:.2f}",
                ratio,
                f"{exchanged}",
                f"{sum(e.times * e.bytes for e in program.exchanges) / 1e6:.1f}",
                "" if compilation.hidden is None else f"{compilation.hidden:.0%}",
                f"{100 * share:.0f}%",
                f"{1e3 * compilation.seconds:.2f}",
                f"{case.batch / compilation.seconds:,.0f}",
            )
        )
    return rows


def items(compilations: dict[Case, Compiled]) -> list[Item]:
    """The memory traffic of each network over the plain one's, beside its target."""
    items = []
    for case, compilation in compilations.items():
        plain = compilations.get(replace(case, plain=True))
        if plain is not None and not case.plain:
            ratio = Ratio.of([compilation.program.bytes], [plain.program.bytes])
            title = f"{case}: bytes moved over plain Flax's"
            name = f"{case.arch}_{case.chips}_bytes"
            items.append(Item(name, title, MOST_BYTES, ratio, at_most=True))
    return items


def report(compilations: dict[Case, Compiled]) -> Report:
    """The programs and comparisons, for all outputs."""
    compared, table = items(compilations), Table(COLUMNS, _rows(compilations), "ll")
    programs = [compilation.to_json() for compilation in compilations.values()]
    device = "compiled for " + ", ".join(dict.fromkeys(case.chips for case in compilations))
    return Report(
        device,
        {"programs": programs, "items": compared},
        [(device, None), (table, table), *frame.both(EXPLAINED), items_tables(compared)],
    )
