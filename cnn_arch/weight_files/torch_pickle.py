"""Reads the pickle of a state dict without running it.

A pickle is a small program that can call any function. It is interpreted here, opcode by opcode, by
a machine that has only the opcodes a state dict is made of and the names in `_FUNCTIONS`,
`_STORAGE_TYPES`, `_DTYPES` and `_INERT`; Python's own unpickler is not used.
"""

import io
import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cnn_arch.weight_files.values import MOST_DIMENSIONS, NO_MEMORY, STORED, Refused, itemsize

_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}

# A thousand tensors with their optimizer's state take a tenth of this.
_MOST_STEPS = 1 << 20

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_STORAGE_TYPES = {
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}": dtype for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": "uint8",
    "torch.UntypedStorage": "uint8",
}
_DTYPES = {f"torch.{name}": name for name in STORED}
_FUNCTIONS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch.nn.parameter.Parameter",
    }
)
# Types that training scripts save beside a state dict: options, NumPy's numbers, paths. None of
# them is needed, so their values are not computed.
_OF_PYTHON = ("bool", "bytearray", "dict", "float", "frozenset", "int", "list", "set", "str")
_OF_NUMPY = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
_INERT = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "collections.defaultdict",
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _OF_PYTHON),
        *(f"numpy.{module}.{name}" for module in ("core", "_core") for name in _OF_NUMPY),
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "torch.device",
        "types.SimpleNamespace",
    }
)


@dataclass(frozen=True)
class Storage:
    """A range of bytes in the file."""

    key: str
    dtype: str  # of its elements; uint8 where untyped
    numel: int  # number of elements

    @property
    def nbytes(self) -> int:
        return self.numel * itemsize(self.dtype)


@dataclass(frozen=True)
class Tensor:
    """A view into a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class _Global:
    """A name of something outside of the pickle: it is compared, never looked up."""

    name: str


@dataclass(frozen=True)
class _Inert:
    """The result of calling a name of `_INERT`, whose value is not computed."""

    name: str


@dataclass(frozen=True)
class _Interpreted:
    """The result of a pickle."""

    value: object
    end: int  # offset of the byte behind the pickle
    storages: dict[str, Storage]  # of its tensors, by key


@dataclass
class _Machine:
    """The state of the pickle machine, with a method for each kind of opcode.

    Everything on the stack is a plain value, a `_Global`, a `Storage` or a `Tensor`. Values are
    never compared, hashed, printed, copied or walked through: a few opcodes nest tuples a million
    deep, make them 2^1000 long when written out, or name a long one again and again.
    """

    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)  # the stacks below each open MARK
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    steps: int = 0

    def spend(self, steps: int) -> None:
        """Counts steps, so that a short pickle cannot keep the machine busy for years."""
        self.steps += steps
        if self.steps > _MOST_STEPS:
            raise Refused(f"its pickle takes more than {_MOST_STEPS} steps")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, count: int = 1) -> list[Any]:
        """Removes the last `count` values, and returns them in the order of the stack."""
        if len(self.stack) < count:
            raise Refused("its pickle takes more values than it has made")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def top(self) -> Any:
        if not self.stack:
            raise Refused("its pickle takes more values than it has made")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Removes and returns all values since the last MARK."""
        if not self.marks:
            raise Refused("its pickle takes a mark that it has not made")
        values, self.stack = self.stack, self.marks.pop()
        return values

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Refused("its pickle recalls a value that it has not stored")
        self.push(self.memo[index])

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, _Inert):
            return
        if not isinstance(target, list):
            raise Refused(f"its pickle appends to a {kind(target)}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, _Inert):
            return
        if not isinstance(target, dict):
            raise Refused(f"its pickle sets items of a {kind(target)}")
        _set_items(target, values)

    def name(self, name: str) -> None:
        if all(name not in names for names in (_FUNCTIONS, _STORAGE_TYPES, _DTYPES, _INERT)):
            raise Refused(
                f"its pickle uses {name}, which no state dict needs and which is not run; save "
                f"only the state dict"
            )
        self.push(_Global(name))

    def stack_name(self) -> None:
        match self.pop(2):
            case [str(module), str(name)]:
                self.name(f"{module}.{name}")
            case _:
                raise Refused("its pickle makes a name of what is not text")

    def call(self) -> None:
        match self.pop(2):
            case [_Global("collections.OrderedDict"), (list(pairs),)]:  # of Python 2
                self.spend(len(pairs))
                self.push(_ordered(pairs))
            case [_Global(name), tuple()] if name in _INERT:
                self.push(_Inert(name))
            case [_Global(name), tuple(arguments)]:
                self.push(_called(name, arguments))
            case _:
                raise Refused("its pickle calls what is not a function")

    def inert(self) -> None:
        """Replaces all values since the last MARK by one that is not needed."""
        self.pop_mark()
        self.push(_Inert("builtins.frozenset"))

    def new(self) -> None:
        """Makes an object of a class, `cls.__new__(cls, *arguments)`."""
        match self.pop(2):
            case [_Global(name), tuple()] if name in _INERT:
                self.push(_Inert(name))
            case _:
                raise Refused("its pickle makes by NEWOBJ what no state dict needs")

    def build(self) -> None:
        """Sets attributes: `_metadata` of a state dict, flags of a parameter. Neither matters."""
        self.pop()
        if not isinstance(target := self.top(), OrderedDict | Tensor | _Inert):
            raise Refused(f"its pickle sets attributes of a {kind(target)}")

    def persistent(self) -> None:
        """Makes a storage of ('storage', type, key, device, elements), in the older container with
        a None after these."""
        match self.pop()[0]:
            case ("storage", _Global(kind), str(key), str(), int(numel), *rest) if (
                kind in _STORAGE_TYPES
                and 0 <= numel < NO_MEMORY
                and (not rest or (len(rest) == 1 and rest[0] is None))
            ):
                storage = Storage(key, _STORAGE_TYPES[kind], numel)
            case _:
                raise Refused("its pickle refers to what is not a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise Refused(f"its storage {key!r} has two sizes or types")
        self.push(storage)


# The effect of each opcode that a state dict needs, by its argument.
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine.push),  # text of Python 2
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_SET": lambda machine, _: machine.push(_Inert("builtins.set")),
    "FROZENSET": lambda machine, _: machine.inert(),
    "ADDITEMS": lambda machine, _: machine.append(machine.pop_mark()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.append(machine.pop()),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, names: machine.name(names.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.new(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
    "STOP": lambda machine, _: None,
}


def interpret(data: bytes, start: int = 0) -> _Interpreted:
    """Interprets the pickle that begins at `start` of `data`."""
    machine = _Machine()
    stream = io.BytesIO(data)
    stream.seek(start)
    steps = pickletools.genops(stream)
    while True:
        machine.spend(1)
        position = stream.tell()
        if position >= len(data):
            raise Refused("its pickle is cut short")
        # Before the argument is read: those of other opcodes may be anything.
        name = _OPCODES.get(data[position], f"0x{data[position]:02x}")
        if name not in _OPERATIONS:
            raise Refused(f"its pickle has the opcode {name}, which no state dict needs")
        try:
            _, argument, _ = next(steps)
        except Exception as error:  # see `refusing`, too slow to enter for every opcode
            raise Refused(f"its pickle is damaged at byte {position}: {error}") from error
        _OPERATIONS[name](machine, argument)
        if name == "STOP":
            return _Interpreted(machine.pop()[0], stream.tell(), machine.storages)


def _called(name: str, arguments: tuple[Any, ...]) -> object:
    """The result of calling a function that a state dict's pickle needs."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return OrderedDict()
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, shape, strides):
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case (
            "torch._utils._rebuild_tensor_v2",
            (Storage() as storage, offset, shape, strides, _, _, *_),
        ):
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case (
            "torch._utils._rebuild_tensor_v3",
            (Storage() as storage, offset, shape, strides, _, _, _Global(dtype), *_),
        ) if dtype in _DTYPES:
            return _tensor(storage, _DTYPES[dtype], offset, shape, strides)
        case (
            "torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter",
            (Tensor() as tensor, *_),
        ):
            return tensor
    raise Refused(f"its pickle calls {name} in a way that no state dict does")


def _tensor(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor whose numbers are integers; `view` checks that it lies within its storage."""
    for numbers in ((offset,), shape, strides):
        if (
            not isinstance(numbers, tuple)
            or len(numbers) > MOST_DIMENSIONS
            or any(type(number) is not int for number in numbers)
        ):
            raise Refused("its pickle has a tensor whose shape, strides or offset are not numbers")
    return Tensor(storage, dtype, offset, shape, strides)


def _ordered(pairs: list[Any]) -> OrderedDict[Any, Any]:
    """The OrderedDict of [[key, value], ...], which is how Python 2 wrote one."""
    ordered: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refused("its pickle makes an OrderedDict of what are not pairs")
        _set_items(ordered, pair)
    return ordered


def _set_items(target: dict[Any, Any], values: list[Any]) -> None:
    """Sets keys and values, which alternate."""
    if len(values) % 2:
        raise Refused("its pickle has a dict with a key that lacks its value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        # Tuples could take for ever to hash, and large numbers be chosen to hash alike.
        small = type(key) is int and abs(key) < 1 << 60
        if not small and type(key) not in (str, bool, type(None)):
            raise Refused(f"its pickle has a dict with a {kind(key)} as a key")
        if key in target:
            raise Refused(f"its pickle has a dict with the key {key!r} twice")
        target[key] = value


def kind(value: object) -> str:
    return type(value).__name__.removeprefix("_").lower()
