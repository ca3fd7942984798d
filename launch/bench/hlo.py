"""Reads a compiled program's text: what it moves, multiplies and exchanges.

The text is XLA's, after its passes and buffer assignment. What is counted follows from it exactly,
as far as an operation reads each operand and writes its result once: fusions and kernels keep what
is between them in registers, and memory spaces other than the main one are not counted.
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
# What moves nothing: names, and (besides these) the ends of what was counted where it began.
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
    """An array of a program. bytes: as its tiles are laid out in memory. main: in main memory."""

    dtype: str
    dims: tuple[int, ...]
    bytes: float
    main: bool


def shapes(text: str) -> list[Shape]:
    """The arrays of a type, which may be a tuple's."""
    found = []
    for dtype, listed, layout in _SHAPE.findall(text):
        dims = tuple(int(n) for n in listed.split(",") if n)
        tiled = list(dims)
        tiles = re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout)
        if tiles:
            order, tile = ([int(n) for n in part.split(",")] for part in tiles.groups())
            for axis, size in zip(order, reversed(tile), strict=False):
                tiled[axis] = -(-tiled[axis] // size) * size
        main = not re.search(r"S\([1-9]\)", layout)
        found.append(Shape(dtype, dims, math.prod(tiled) * BYTES[dtype], main))
    return found


def _main(types: Iterable[str]) -> float:
    """Bytes in main memory of arrays of these types."""
    return sum(s.bytes for type in types for s in shapes(type) if s.main)


@dataclass(frozen=True)
class Instruction:
    """A line of a program. rest: what follows the opening bracket of its operands."""

    name: str
    type: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def called(self) -> list[str]:
        return re.findall(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)", self.rest)

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None


def _results(i: Instruction) -> list[Shape]:
    """The arrays that an operation makes. What begins one names operands, or counters, as well."""
    arrays = shapes(i.type)
    if i.op == "copy-start":
        return arrays[:1]
    if i.op.endswith("-start") and i.op != "all-reduce-start":
        arrays = [array for array in arrays if (array.dtype, array.dims) != ("u32", ())]
        return arrays[len(arrays) // 2 :]
    return arrays


@dataclass(frozen=True)
class Exchange:
    """A collective operation between devices. bytes: of its results, on each device."""

    name: str
    kind: str
    times: int
    bytes: float
    dtypes: frozenset[str]

    def sent(self, devices: int) -> float:
        """Bytes that each device has to send at least, for all of them."""
        others = devices - 1
        parts = {"all-reduce": 2 * others / devices, "reduce-scatter": others}
        return self.times * self.bytes * parts.get(self.kind, others / devices)


@dataclass(frozen=True)
class Work:
    """An operation that runs, so many times in one run of the program.

    begins: the exchange that it begins. waits: the name of the exchange whose end it waits for,
    which is its own where nothing runs beside it.
    """

    instruction: Instruction
    times: int
    bytes: float
    flops: float
    convolves: bool
    begins: Exchange | None = None
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
                found = INSTRUCTION.match(line)
                if found:
                    self.computations[name].append(Instruction(*found.groups()))

    def _types(self, computation: str) -> dict[str, str]:
        return {i.name: i.type for i in self.computations[computation]}

    @cached_property
    def _runs(self) -> Counter[str]:
        """How often each computation runs that is not part of one operation."""
        found: Counter[str] = Counter()

        def walk(name: str, times: int) -> None:
            found[name] += times
            for i in self.computations[name]:
                if i.op == "while":
                    trips = int(i.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
                    walk(i.attribute(r"body=%?([\w.\-]+)") or "", times * trips)
                elif i.op in ("call", "conditional"):
                    for called in i.called:
                        walk(called, times)

        walk(self.entry, 1)
        return found

    @cached_property
    def work(self) -> list[Work]:
        """All operations that move, compute or exchange something, in the order that they run in
        (those of a loop once)."""
        found = []
        for name, times in self._runs.items():
            types = self._types(name)
            for i in self.computations[name]:
                if i.op in _FREE:
                    continue
                begins, waits = self._exchange(i, times)
                if i.op.endswith("-done"):
                    if waits:
                        found.append(Work(i, times, 0, 0, False, None, waits))
                    continue
                convolutions = list(self._convolutions(name, i))
                flops = times * sum(self._flops(*where) for where in convolutions)
                moved = times * self._moved(i, types)
                found.append(Work(i, times, moved, flops, bool(convolutions), begins, waits))
        return found

    def _exchange(self, i: Instruction, times: int) -> tuple[Exchange | None, str]:
        """Of an operation: the exchange that it begins, and the name of that which it waits for.

        libtpu's exchanges that run beside convolutions are parts of fusions, told by their channel;
        those of its SparseCores, and all of a GPU, are told by the operation that begins them.
        """

        def begun(of: Instruction, kind: str, name: str) -> Exchange:
            arrays = _results(of)
            size = sum(s.bytes for s in arrays)
            return Exchange(name, kind, times, size, frozenset(s.dtype for s in arrays))

        kind = i.op.removesuffix("-start")
        if kind in EXCHANGES:
            return begun(i, kind, i.name), i.name if kind == i.op else ""
        if i.op.endswith("-done"):
            start = self._by_name.get(i.operands[0])
            known = start is not None and self._exchange(start, times)[0] is not None
            return None, i.operands[0] if known else ""
        inside = self._inside(i) if i.op in _PARTS else []
        ends = {inner.attribute(r'custom_call_target="AsyncCollective(\w+)"') for inner in inside}
        for inner in inside:
            if inner.op not in EXCHANGES:
                continue
            if i.op == "async-start":
                return begun(inner, inner.op, i.name), ""
            channel = inner.attribute(r"(channel_id=\d+)") or ""
            begins = begun(inner, inner.op, channel) if "Start" in ends else None
            return begins, channel if "Done" in ends else ""
        return None, ""

    @cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {i.name: i for name in self._runs for i in self.computations[name]}

    def _inside(self, i: Instruction) -> list[Instruction]:
        """The operations of a fusion, or of what an operation begins."""
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
            inside = {each.name: each.type for each in inner}
            own = [name for name in inner[-1].operands if name not in carried]
            total = _main(inside[name] for name in own if inner[-1].op == "tuple")
            if any("AsyncCollectiveStart" in each.rest for each in inner):
                moved = [each for each in inner if each.op in EXCHANGES]
                total += _main(
                    inside[name] for each in moved for name in (each.name, *each.operands)
                )
        for place, operand in enumerate(i.operands):
            whole = _main([types.get(operand, "")])
            if whole and not any(
                each.name in carried and each.rest.startswith(f"{place})") for each in inner
            ):
                total += min(whole, self._taken(inner, place))
        return total

    @staticmethod
    def _carried(inner: list[Instruction]) -> set[str]:
        """Of a fusion that holds a part of an exchange: the names of that part, and of arrays that
        pass through for its sake, which stay where they are."""
        found = {i.name for i in inner if i.op in EXCHANGES or "AsyncCollective" in i.rest}
        for parameter in (i for i in inner if found and i.op == "parameter"):
            users = [i for i in inner if parameter.name in i.operands]
            if all(i.name in found or i is inner[-1] for i in users):
                found.add(parameter.name)
        return found

    @staticmethod
    def _taken(inner: list[Instruction], place: int) -> float:
        """Bytes that a fusion takes out of an operand, where it takes no more than parts."""
        named = [p.name for p in inner if p.op == "parameter" and p.rest.startswith(f"{place})")]
        users = [i for i in inner if named and named[0] in i.operands]
        parts = ("gather", "dynamic-slice", "slice")
        if not users or any(i.op not in parts or i.operands[0] != named[0] for i in users):
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
        """Of a convolution: two for each pair of values that are both inside their arrays."""
        types, labels = self._types(name), re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
        left, right = (shapes(types[operand])[0].dims for operand in i.operands[:2])
        result = shapes(i.type)[0].dims
        if labels is None:  # a product of matrices
            across = i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
            return 2 * math.prod(result) * math.prod(left[int(n)] for n in across.split(","))
        # cuDNN's gradients have the labels of the convolution whose gradients they are.
        which = i.attribute(_CUDNN)
        inputs, kernel, outputs = {
            "BackwardInput": (result, right, left),
            "BackwardFilter": (left, result, right),
        }.get(which or "", (left, right, result))
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
        """Of convolutions and products of matrices."""
        return sum(w.flops for w in self.work)

    @property
    def bytes(self) -> float:
        """Read from and written to main memory."""
        return sum(w.bytes for w in self.work)

    @property
    def exchanges(self) -> list[Exchange]:
        """All collective operations."""
        return [w.begins for w in self.work if w.begins is not None]

    @cached_property
    def multiplied(self) -> Counter[str]:
        """The dtypes of convolutions' and products' operands: `bf16 x f32`."""
        found: Counter[str] = Counter()
        for name, times in self._runs.items():
            for outer in self.computations[name]:
                for where, i in self._convolutions(name, outer):
                    types = self._types(where)
                    kinds = [shapes(types[operand])[0].dtype for operand in i.operands[:2]]
                    found[" x ".join(kinds)] += times
        return found

    def largest_copy(self) -> float:
        """Bytes of the largest array that is copied as it is, in main memory or to it."""
        copies = [
            shapes(w.instruction.type)[0].bytes
            for w in self.work
            if w.instruction.op in ("copy", "copy-start", "transpose")
        ]
        return max(copies, default=0)


def _pairs(window: dict[str, str], axis: int, inputs: int, kernel: int, outputs: int) -> int:
    """Places along an axis where an output and a value of the kernel meet an input."""

    def of(name: str, default: int) -> int:
        return int(window[name].split("x")[axis].split("_")[0]) if name in window else default

    stride, before = of("stride", 1), of("pad", 0)
    spread, dilated = of("lhs_dilate", 1), of("rhs_dilate", 1)
    return sum(
        0 <= (place := out * stride + tap * dilated - before) <= (inputs - 1) * spread
        and place % spread == 0
        for out in range(outputs)
        for tap in range(kernel)
    )
