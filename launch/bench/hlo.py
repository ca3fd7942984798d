"""Reads a compiled program's text: what it moves, multiplies and exchanges.

The text is XLA's, after its passes and buffer assignment. The counts follow from it exactly, as
far as an operation reads each operand and writes its result once: fusions and kernels keep values
in between in registers, and memory spaces other than the main one are not counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

BYTES: dict[str, float] = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
}
BYTES |= {"s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "s4": 0.5, "u4": 0.5}
_SHAPE = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](\{{[^}}]*\}})?")
_NESTED = r"\((?:[^()]|\([^()]*\))*\)"
_TUPLE = rf"\((?:[^()]|{_NESTED})*\)"
INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?([\w.\-]+) = ({_TUPLE}|\S+) ([\w\-]+)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
# Operations that move nothing. The ends of exchanges and copies, which are counted where they
# begin, move nothing either.
_FREE = {
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "while",
    "partition-id",
    "replica-id",
    "after-all",
}
_CUDNN = r'custom_call_target="__cudnn\$conv(\w+)"'
_PARTS = ("fusion", "async-start")
EXCHANGES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)


@dataclass(frozen=True)
class Shape:
    """An array of a program."""

    dtype: str
    dims: tuple[int, ...]
    bytes: float  # with the padding of its tiles in memory
    main: bool  # whether it is in main memory


def shapes(text: str) -> list[Shape]:
    """The arrays of a type, which may be a tuple's."""
    arrays = []
    for dtype, sides, layout in _SHAPE.findall(text):
        dims = tuple(int(n) for n in sides.split(",") if n)
        tiled = list(dims)
        tiles = re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout)
        if tiles:
            order, tile = ([int(n) for n in part.split(",")] for part in tiles.groups())
            for axis, size in zip(order, reversed(tile), strict=False):
                tiled[axis] = -(-tiled[axis] // size) * size
        main = not re.search(r"S\([1-9]\)", layout)
        arrays.append(Shape(dtype, dims, math.prod(tiled) * BYTES[dtype], main))
    return arrays


def _main(types: Iterable[str]) -> float:
    """Bytes in main memory of arrays of these types."""
    return sum(s.bytes for type in types for s in shapes(type) if s.main)


@dataclass(frozen=True)
class Instruction:
    """A line of a program."""

    name: str
    type: str
    op: str
    rest: str  # the text after the opening bracket of its operands

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def called(self) -> list[str]:
        return re.findall(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)", self.rest)

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.rest)
        return match[1] if match else None


def _results(i: Instruction) -> list[Shape]:
    """The arrays that an operation makes, without the operands and counters that the type of a
    `-start` operation names as well."""
    arrays = shapes(i.type)
    if i.op == "copy-start":
        return arrays[:1]
    if i.op.endswith("-start") and i.op != "all-reduce-start":
        arrays = [array for array in arrays if (array.dtype, array.dims) != ("u32", ())]
        return arrays[len(arrays) // 2 :]
    return arrays


@dataclass(frozen=True)
class Exchange:
    """A collective operation between devices."""

    name: str
    kind: str  # one of EXCHANGES
    times: int  # in one run of the program
    bytes: float  # of its results, on each device
    dtypes: frozenset[str]

    def sent(self, devices: int) -> float:
        """The least bytes that each device has to send, in one run of the program."""
        others = devices - 1
        parts = {"all-reduce": 2 * others / devices, "reduce-scatter": others}
        return self.times * self.bytes * parts.get(self.kind, others / devices)


@dataclass(frozen=True)
class Work:
    """An operation that runs; its figures are of all times that it runs in a program's run."""

    instruction: Instruction
    times: int  # in one run of the program
    bytes: float  # of main memory, read and written
    flops: float
    convolves: bool  # or multiplies matrices
    begins: Exchange | None = None  # the exchange that it begins
    # Name of the exchange whose end it waits for, its own where nothing runs beside it.
    waits: str = ""


class Program:
    """A compiled program, by its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, name = "", None
        # Results that take the memory of an argument.
        self.aliased = len(re.findall("(?:may|must)-alias", text.partition("\n")[0]))
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                name = head[2]
                self.computations[name] = []
                self.entry = name if head[1] else self.entry
            elif line.startswith("}"):
                name = None
            elif name is not None:
                match = INSTRUCTION.match(line)
                if match:
                    self.computations[name].append(Instruction(*match.groups()))

    def _types(self, computation: str) -> dict[str, str]:
        return {i.name: i.type for i in self.computations[computation]}

    @cached_property
    def _runs(self) -> Counter[str]:
        """How often each computation runs, of those that are not part of an operation."""
        counts: Counter[str] = Counter()

        def walk(name: str, times: int) -> None:
            counts[name] += times
            for i in self.computations[name]:
                if i.op == "while":
                    trips = int(i.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
                    walk(i.attribute(r"body=%?([\w.\-]+)") or "", times * trips)
                elif i.op in ("call", "conditional"):
                    for called in i.called:
                        walk(called, times)

        walk(self.entry, 1)
        return counts

    @cached_property
    def work(self) -> list[Work]:
        """All operations that move, compute or exchange something, in the order of execution, those
        of a loop once."""
        work = []
        for name, times in self._runs.items():
            types = self._types(name)
            for i in self.computations[name]:
                if i.op in _FREE:
                    continue
                begins, waits = self._exchange(i, times)
                if i.op.endswith("-done"):
                    if waits:
                        work.append(Work(i, times, 0, 0, False, None, waits))
                    continue
                convolutions = list(self._convolutions(name, i))
                flops = times * sum(self._flops(*convolution) for convolution in convolutions)
                moved = times * self._moved(i, types)
                work.append(Work(i, times, moved, flops, bool(convolutions), begins, waits))
        return work

    def _exchange(self, i: Instruction, times: int) -> tuple[Exchange | None, str]:
        """The exchange that an operation begins, and the name of the one that it waits for.

        libtpu's exchanges beside convolutions are parts of fusions, and are named by their channel.
        Those of its SparseCores, and all of a GPU, are named by the operation that begins them.
        """

        def exchange(instruction: Instruction, kind: str, name: str) -> Exchange:
            arrays = _results(instruction)
            size = sum(s.bytes for s in arrays)
            return Exchange(name, kind, times, size, frozenset(s.dtype for s in arrays))

        kind = i.op.removesuffix("-start")
        if kind in EXCHANGES:
            return exchange(i, kind, i.name), i.name if kind == i.op else ""
        if i.op.endswith("-done"):
            start = self._by_name.get(i.operands[0])
            is_exchange = start is not None and self._exchange(start, times)[0] is not None
            return None, i.operands[0] if is_exchange else ""
        inside = self._inside(i) if i.op in _PARTS else []
        stages = {inner.attribute(r'custom_call_target="AsyncCollective(\w+)"') for inner in inside}
        for inner in inside:
            if inner.op not in EXCHANGES:
                continue
            if i.op == "async-start":
                return exchange(inner, inner.op, i.name), ""
            channel = inner.attribute(r"(channel_id=\d+)") or ""
            begins = exchange(inner, inner.op, channel) if "Start" in stages else None
            return begins, channel if "Done" in stages else ""
        return None, ""

    @cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {i.name: i for name in self._runs for i in self.computations[name]}

    def _inside(self, i: Instruction) -> list[Instruction]:
        """The operations inside a fusion, or inside an operation that begins asynchronous work."""
        own = [inner for name in i.called for inner in self.computations.get(name, [])]
        return own + [inner for part in own if part.op == "call" for inner in self._inside(part)]

    def _moved(self, i: Instruction, types: dict[str, str]) -> float:
        """Bytes of main memory that an operation reads and writes."""
        inner = self.computations.get(i.called[0], []) if i.op in _PARTS and i.called else []
        carried = self._carried(inner) if i.op == "fusion" else set()
        results = _results(inner[-1] if i.op == "async-start" else i)
        total = sum(s.bytes for s in results if s.main)
        if i.op == "custom-call" and not i.attribute(_CUDNN):
            return total
        if carried:
            type_of = {part.name: part.type for part in inner}
            names = [name for name in inner[-1].operands if name not in carried]
            total = _main(type_of[name] for name in names if inner[-1].op == "tuple")
            if any("AsyncCollectiveStart" in part.rest for part in inner):
                exchanged = [part for part in inner if part.op in EXCHANGES]
                total += _main(
                    type_of[name] for part in exchanged for name in (part.name, *part.operands)
                )
        for number, operand in enumerate(i.operands):
            size = _main([types.get(operand, "")])
            if size and not any(
                part.name in carried and part.rest.startswith(f"{number})") for part in inner
            ):
                total += min(size, self._sliced(inner, number))
        return total

    @staticmethod
    def _carried(inner: list[Instruction]) -> set[str]:
        """Names of the part of an exchange that a fusion holds, and of arrays that pass through for
        its sake and do not move; empty where it holds none."""
        carried = {i.name for i in inner if i.op in EXCHANGES or "AsyncCollective" in i.rest}
        for parameter in (i for i in inner if carried and i.op == "parameter"):
            users = [i for i in inner if parameter.name in i.operands]
            if all(i.name in carried or i is inner[-1] for i in users):
                carried.add(parameter.name)
        return carried

    @staticmethod
    def _sliced(inner: list[Instruction], number: int) -> float:
        """Bytes that a fusion reads of an operand of which it only takes slices, else infinity."""
        names = [p.name for p in inner if p.op == "parameter" and p.rest.startswith(f"{number})")]
        users = [i for i in inner if names and names[0] in i.operands]
        parts = ("gather", "dynamic-slice", "slice")
        if not users or any(i.op not in parts or i.operands[0] != names[0] for i in users):
            return math.inf
        return sum(s.bytes for i in users for s in shapes(i.type))

    def _convolutions(self, name: str, i: Instruction) -> Iterator[tuple[str, Instruction]]:
        if i.op in ("convolution", "dot") or (i.op == "custom-call" and i.attribute(_CUDNN)):
            yield name, i
        elif i.op == "fusion":
            for called in i.called:
                for inner in self.computations.get(called, []):
                    yield from self._convolutions(called, inner)

    def _flops(self, name: str, i: Instruction) -> float:
        """FLOP of a convolution or product: two for each pair of values inside their arrays."""
        types, labels = self._types(name), re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
        left, right = (shapes(types[operand])[0].dims for operand in i.operands[:2])
        result = shapes(i.type)[0].dims
        if labels is None:  # a product of matrices
            contracted = i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
            return 2 * math.prod(result) * math.prod(left[int(n)] for n in contracted.split(","))
        # cuDNN's gradients have the labels of the convolution whose gradients they are.
        target = i.attribute(_CUDNN)
        inputs, kernel, outputs = {
            "BackwardInput": (result, right, left),
            "BackwardFilter": (left, result, right),
        }.get(target or "", (left, right, result))
        window = dict(
            part.split("=") for part in (i.attribute(r"window=\{([^}]*)\}") or "").split()
        )
        pairs = 1
        for axis, label in enumerate(sorted(c for c in labels[3] if c.isdigit())):
            sides = [
                dims[names.index(label)]
                for dims, names in zip((inputs, kernel, outputs), labels.groups(), strict=True)
            ]
            pairs *= _pairs(window, axis, *sides)
        outer = math.prod(n for n, c in zip(outputs, labels[3], strict=True) if not c.isdigit())
        groups = int(i.attribute(r"batch_group_count=(\d+)") or 1)
        return 2 * outer * pairs * kernel[labels[2].index("i")] / groups

    @property
    def flops(self) -> float:
        """FLOP of convolutions and products of matrices."""
        return sum(w.flops for w in self.work)

    @property
    def bytes(self) -> float:
        """Bytes that are read from and written to main memory."""
        return sum(w.bytes for w in self.work)

    @property
    def exchanges(self) -> list[Exchange]:
        """All collective operations."""
        return [w.begins for w in self.work if w.begins is not None]

    @cached_property
    def multiplied(self) -> Counter[str]:
        """The operands' dtypes of convolutions and products, such as `bf16 x f32` -> how many."""
        counts: Counter[str] = Counter()
        for name, times in self._runs.items():
            for outer in self.computations[name]:
                for computation, i in self._convolutions(name, outer):
                    types = self._types(computation)
                    dtypes = [shapes(types[operand])[0].dtype for operand in i.operands[:2]]
                    counts[" x ".join(dtypes)] += times
        return counts

    def largest_copy(self) -> float:
        """Bytes of the largest array that is copied as it is, in main memory or to it."""
        copies = [
            shapes(w.instruction.type)[0].bytes
            for w in self.work
            if w.instruction.op in ("copy", "copy-start", "transpose")
        ]
        return max(copies, default=0)


def _pairs(window: dict[str, str], axis: int, inputs: int, kernel: int, outputs: int) -> int:
    """The number of places along an axis where an output and a kernel's value meet an input."""

    def option(name: str, default: int) -> int:
        return int(window[name].split("x")[axis].split("_")[0]) if name in window else default

    stride, pad = option("stride", 1), option("pad", 0)
    lhs_dilation, rhs_dilation = option("lhs_dilate", 1), option("rhs_dilate", 1)
    return sum(
        0 <= (place := out * stride + tap * rhs_dilation - pad) <= (inputs - 1) * lhs_dilation
        and place % lhs_dilation == 0
        for out in range(outputs)
        for tap in range(kernel)
    )
