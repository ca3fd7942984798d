"""Other people's weights: into a network by their names, and out of it again.

Everything here is about dicts of arrays; files are the business of `weight_files`. A naming is the
way one source names and lays out the tensors of the networks it publishes:

torchvision: torchvision.models' alexnet, vgg11 to vgg19 with and without _bn, resnet18 to resnet152
    and googlenet.
timm: pytorch-image-models' vgg and resnet. Its resnets have torchvision's names; its vgg has
    convolutions in place of the hidden fully connected layers.
cifar: the CIFAR-10 ResNets of github.com/akamaster/pytorch_resnet_cifar10, with shortcuts A or B.
pytorch-cifar-models: the CIFAR ResNets of github.com/chenyaofo/pytorch-cifar-models: torchvision's
    names in three stages, with shortcuts B.
huggingface: transformers' ResNetForImageClassification. A bottleneck's stride stands in its
    config.json, and is in the 3x3 convolution by default.
kuangliu, chengyangfu: the CIFAR-10 VGGs of github.com/kuangliu/pytorch-cifar, without hidden fully
    connected layers, and of github.com/chengyangfu/pytorch-vgg-cifar10, with 512 units in each.
caffe: `<layer>.0` (weights) and `<layer>.1` (bias) of CaffeNet, BVLC's AlexNet and GoogLeNet, and
    the Caffe models that the authors of VGG and of NiN (for CIFAR-10) released.
caffe-tensorflow: `<layer>/weights` and `<layer>/biases` of the same networks, as
    github.com/ethereon/caffe-tensorflow converts them: slashes in a layer's name are underscores.
frossard: `<layer>_W` and `<layer>_b` of vgg16_weights.npz, cs.toronto.edu/~frossard/post/vgg16.
keras: `<layer>/kernel`, `<layer>/gamma` and so on of keras.applications' VGG16, VGG19, ResNet50,
    ResNet101 and ResNet152, however a file of Keras's calls the variables.
keras-numbered: the same where a file has only the layers' numbers, `conv2d_1/kernel`, as those of
    Keras 3 before 3.6.
deep-learning-models: Keras's first ResNet50, `res2a_branch2a/kernel`, of
    github.com/fchollet/deep-learning-models, as keras_applications 1.0.8 computes it.
cnn-depth: the names and shapes of `flat_state`.

Kernels are (H, W, in / groups, out) here and in TensorFlow's and Keras's files, and
(out, in / groups, H, W) in all others. A map is flattened as (H, W, C) here and in TensorFlow's and
Keras's, as (C, H, W) in the others, which reorders the inputs of the first fully connected layer.
Some sources have their channels in another order than the networks here, which changes no logit but
must be undone:

- Caffe's and Keras's images are BGR where `preparation.csv` says so. Networks here always take RGB:
  the kernels of the first layer are reversed over their input channels.
- Shortcut A of 'cifar' puts its input in the middle of the added zeros, here it comes first
  (`IdentityShortcut`): the maps of the second and the third stage are permuted.

Both ways are exact: what is exported and loaded again is the same to the last bit. Keras's ResNets
are an exception: their biases and epsilon go into the running statistics (`keras`). A variance that
is exported and loaded again is the same within one rounding of float32, its own or that of 1e-8 (of
1e-3 with deep-learning-models), whichever is larger.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnn_arch import registry
from cnn_arch.errors import ArchitectureError, WeightsError, unknown
from cnn_arch.network import Network, flat_state, unflat_state
from cnn_arch.pretrained import keras, preparation
from cnn_arch.pretrained.preparation import Preprocessing
from cnn_arch.published import Layer, Shape, Source

NAMINGS = (
    *("torchvision", "timm", "huggingface", "cifar", "pytorch-cifar-models"),
    *("kuangliu", "chengyangfu", "caffe", "caffe-tensorflow", "frossard"),
    *("keras", "keras-numbered", "deep-learning-models"),
    "cnn-depth",
)
OWN = "cnn-depth"

Tensors = Mapping[str, np.ndarray]
# How the names of auxiliary classifiers begin.
_AUXILIARY = (
    *("aux1.", "aux2.", "auxiliary1/", "auxiliary2/"),
    *("loss1/", "loss2/", "loss1_", "loss2_"),  # the latter in TensorFlow
)
# A value's name in a layer here -> its suffix there. With `norm/`, of a batch normalisation alone.
_TORCH = {
    "kernel": ".weight",
    "scale": ".weight",
    "bias": ".bias",
    "mean": ".running_mean",
    "var": ".running_var",
}
_KERAS = ("keras", "keras-numbered", "deep-learning-models")
_KERAS_SUFFIXES = {
    "kernel": "/kernel",
    "bias": "/bias",
    "norm/scale": "/gamma",
    "norm/bias": "/beta",
    "norm/mean": "/moving_mean",
    "norm/var": "/moving_variance",
}
_SUFFIXES = {
    OWN: {"kernel": "/kernel"},
    "caffe": {"kernel": ".0", "bias": ".1"},
    "caffe-tensorflow": {"kernel": "/weights", "bias": "/biases"},
    "frossard": {"kernel": "_W", "bias": "_b"},
    **dict.fromkeys(_KERAS, _KERAS_SUFFIXES),
}
_OUR_LAYOUT = (OWN, "caffe-tensorflow", "frossard", *_KERAS)  # of kernels and of flattened maps
# Their fully connected layers may be convolutions over the whole map, with the same values.
_CONVOLVED = ("caffe", "caffe-tensorflow", "frossard")
_COUNT = "num_batches_tracked"
_VISIBLE = ("batch_norm", "auxiliary", "shortcut")  # options that the names of tensors show
_SHOWN = 10  # names of each kind in an error


@dataclass(frozen=True)
class Report:
    """What `load` did with each tensor."""

    naming: str  # by which the names were understood
    used: dict[str, str]  # name of a tensor -> name of the network's value that it became
    # Tensors that the network does not need: counts of batches, and auxiliary classifiers if it has
    # none.
    ignored: list[str]


def detect(arch: str, tensors: Iterable[str]) -> str:
    """The naming of an architecture's tensors, by the names of its first and last layer, and of
    the fully connected one that sees a map.

    timm's resnets are detected as torchvision's: the names are the same, and only the images are
    prepared differently. Raises ArchitectureError for an unknown architecture, and WeightsError,
    with the names seen and those looked for, when none fits.
    """
    names = list(tensors)
    name_set = set(names)
    ends_of = {naming: _ends(arch, naming) for naming in _sources(arch)}
    for naming, ends in ends_of.items():
        if naming == OWN:
            are_own = all("/" in name and "." not in name for name in names)
            if names and are_own and not keras.are_of_keras(names):
                return OWN
        elif name_set.issuperset(ends):
            return naming
    descriptions = [
        f"{naming} would have {', '.join(ends) or 'names such as conv1/conv/kernel'}"
        for naming, ends in ends_of.items()
    ]
    raise WeightsError(
        f"These are no weights of {arch} by any known naming. Seen: {some(names)}. "
        f"{'; '.join(descriptions)}."
    )


def arguments(arch: str, tensors: Tensors, naming: str | None = None) -> dict[str, Any]:
    """The arguments of `cnn_arch.create(arch, ...)` for a network that fits the tensors.

    Returns: image_size (pixels; the source's, or the smallest that its fully connected layers were
    made for), classes and channels; `width` unless it is 1; and the options in which the source's
    network differs from others with the same tensors, or which the tensors show.

    With 'cnn-depth', whose networks may have any options, only options that the tensors show; of
    networks that no other naming knows (LeNet, NiN and so on) the paper's sizes.

    Raises ArchitectureError as `detect` does, or when the naming does not have the architecture,
    and WeightsError when the first or last layer is missing or of no size that can be.
    """
    naming = detect(arch, tensors) if naming is None else naming
    source = _source(arch, naming)
    family, variant = registry.find(arch)
    options = _required_options(arch, naming, tensors)
    shape = family.shape
    if shape is None or (naming == OWN and f"{shape.last}/kernel" not in tensors):
        return {**vars(registry.inputs(arch)), **options}
    ends = source or shape
    first, channels = _sizes(tensors, ends.first, naming, is_dense=False)
    classes, inputs = _sizes(tensors, ends.last, naming)
    maps, usual = shape.variants.get(variant, (shape.maps, shape.inputs))
    spatial = ends.spatial
    usual = options.get("hidden", usual)
    if naming == OWN and "hidden" in family.options(variant):
        if _weight(spatial, naming) not in tensors:
            usual, spatial = 0, ends.last
        elif abs(first - maps * inputs / usual) > 1:
            _, values = _sizes(tensors, spatial, naming)
            usual = round(inputs / _width(shape, first, values))
        options |= {} if usual == shape.inputs else {"hidden": usual}
    width = inputs / usual if usual else _width(shape, first, inputs)
    if abs(first - maps * width) > 1:
        raise WeightsError(
            f"These are not the weights of {arch} at any width: its first layer has {maps} maps "
            f"where its last has {usual or shape.seen} inputs, here they have {first} and "
            f"{inputs}."
        )
    images = preparation.find(registry.full_name(arch), naming, classes=classes)
    image_size = registry.inputs(arch).image_size if images is None else images.crop
    if spatial:
        _, values = _sizes(tensors, spatial, naming)
        side = max(1, round((values / (shape.seen * width)) ** 0.5))
        smallest = 67 if options.get("padding") == 0 else family.minimum_image_size(variant)
        smallest += 32 * (side - 1)
        image_size = image_size if smallest <= image_size < smallest + 32 else smallest
    sizes = {"image_size": image_size, "classes": classes, "channels": channels}
    return {**sizes, **({} if width == 1 else {"width": width}), **options}


def _width(shape: Shape, first: int, values: int) -> float:
    """The width, from the maps of the first layer and the number of values of the last map."""
    side = max(1, round((values * shape.maps / (shape.seen * first)) ** 0.5))
    return values / (shape.seen * side**2)


def preprocessing(
    arch: str, naming: str, sha256: str = "", classes: int = 0
) -> Preprocessing | None:
    """How the source's images were prepared; None where nothing is known, as with 'cnn-depth'.

    sha256: of the weights file, by which published files are known. classes: of the network, where
    the source has several data sets.

    Raises ArchitectureError for an unknown architecture or naming, or when it does not have the
    architecture.
    """
    _source(arch, naming)
    return preparation.find(registry.full_name(arch), naming, sha256, classes)


def load(network: Network, tensors: Tensors, *, naming: str | None = None) -> Report:
    """Puts other people's tensors into a network, all of them or none.

    Args:
        network: of the architecture and the options that `arguments` gives.
        tensors: float16, float32 or float64, converted to float32, the running statistics of batch
            normalisation included. Counts of batches may be there or not. Caffe's older files,
            where biases are (1, 1, 1, n) and fully connected weights (1, 1, out, in), are fine, and
            so are those of its fully convolutional form, (out, in, H, W).
        naming: one of NAMINGS; by the names, see `detect`, unless given.

    Raises ArchitectureError when the naming cannot express the network, or its options are not
    those of the source or of these tensors; and WeightsError, with the names, when a tensor is
    missing, unknown or of another shape, not of floating point, NaN, infinite or too large for
    float32, or a variance below zero.
    """
    naming = detect(network.name, tensors) if naming is None else naming
    expected = {tensor.theirs: tensor for tensor in _tensors(network, naming)}
    if tensors.keys() >= set(_ends(network.name, naming)):  # otherwise they are of another network
        source = _source(network.name, naming)
        free = (
            {} if source is None else {k: x for k, x in source.options.items() if k not in _VISIBLE}
        )
        allowed = {key: (x,) for key, x in _required_options(network.name, naming, tensors).items()}
        allowed |= {key: values for key, values in free.items() if key in allowed}
        if not getattr(network, "auxiliary", True):
            allowed.pop("auxiliary", None)
        _check_options(network, naming, allowed)
    counts = {name.replace("running_mean", _COUNT) for name in expected if name.endswith("_mean")}
    unused_prefixes = () if getattr(network, "auxiliary", True) else _AUXILIARY
    ignored = [
        name
        for name in tensors
        if name not in expected and (name in counts or name.startswith(unused_prefixes))
    ]
    arrays = {name: np.asarray(tensors[name]) for name in tensors if name not in ignored}
    if naming == "caffe":
        for name in arrays.keys() & expected.keys():  # older files have leading dimensions of 1
            shape = arrays[name].shape
            extra = max(0, len(shape) - len(expected[name].shape))
            if shape[:extra] == (1,) * extra:
                arrays[name] = arrays[name].reshape(shape[extra:])
    if naming in _CONVOLVED:
        for name in arrays.keys() & expected.keys():
            if expected[name].kernel and arrays[name].shape == expected[name].convolution:
                arrays[name] = arrays[name].reshape(expected[name].shape)
    _check_names(f"{network.name} as {naming} has it", arrays, expected)
    values = {
        expected[name].ours: expected[name].load(_float32(name, arrays[name])) for name in arrays
    }
    used = {name: expected[name].ours for name in arrays}
    if (epsilon := _epsilon(network.name, naming)) is not None:
        values = keras.fold(network, values, epsilon)
        used = {name: keras.place(ours) for name, ours in used.items()}
    for name, ours in used.items():
        if ours.endswith("norm/var") and (values[ours] < 0).any():
            raise WeightsError(f"{name} is a variance, but has values below zero.")
    state = nnx.state(network)
    nnx.update(network, unflat_state({k: jnp.asarray(v) for k, v in values.items()}, state))
    return Report(naming, used, ignored)


def export(network: Network, naming: str) -> dict[str, np.ndarray]:
    """A network's values by the names and in the layout of a naming: the inverse of `load`.

    Returns: new float32 arrays in the source's order; with PyTorch's namings also int64 zeros for
    num_batches_tracked, so that it loads them strictly.

    Raises ArchitectureError when the naming does not have the architecture or one of the network's
    options.
    """
    state = flat_state(nnx.state(network))
    if (epsilon := _epsilon(network.name, naming)) is not None:
        state = keras.unfold(network, state, epsilon)
    exported = {}
    for tensor in _tensors(network, naming):
        exported[tensor.theirs] = tensor.export(np.asarray(state[tensor.ours]))
        if tensor.theirs.endswith("running_var"):
            exported[tensor.theirs.replace("running_var", _COUNT)] = np.zeros((), np.int64)
    return exported


@dataclass(frozen=True)
class _Tensor:
    """A value of a network, by its names here and in a source's files."""

    ours: str
    theirs: str
    our_shape: tuple[int, ...]
    shape: tuple[int, ...]  # in the source
    # Of weights, their shape here as a convolution's, (H, W, in, out).
    kernel: tuple[int, ...] | None = None
    inputs: list[int] | None = None  # see `Layer`
    outputs: list[int] | None = None
    convolution: tuple[int, ...] = ()  # of weights, their shape in the source as a convolution's
    our_layout: bool = False  # whether the source orders kernels and flattened maps as we do

    def load(self, values: np.ndarray) -> np.ndarray:
        """The source's values, of shape `shape`, as ours."""
        if self.kernel:
            values = values.reshape(self.convolution)
            values = values if self.our_layout else values.transpose(2, 3, 1, 0)
        if self.inputs:
            values = values.take(self.inputs, axis=-2)
        if self.outputs:
            values = values.take(self.outputs, axis=-1)
        return values.reshape(self.our_shape)

    def export(self, values: np.ndarray) -> np.ndarray:
        """Our values as the source's, a copy."""
        if self.kernel:
            values = values.reshape(self.kernel)
        if self.inputs:
            values = values.take(np.argsort(self.inputs), axis=-2)
        if self.outputs:
            values = values.take(np.argsort(self.outputs), axis=-1)
        if self.kernel and not self.our_layout:
            values = values.transpose(3, 2, 0, 1)
        return np.array(values, np.float32, order="C").reshape(self.shape)


def _tensors(network: Network, naming: str) -> list[_Tensor]:
    """All values of a network, in the source's order. Raises ArchitectureError as `export` does."""
    state = flat_state(nnx.state(network))
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    source = _source(network.name, naming)
    if source is None:
        return [_Tensor(name, name, shape, shape) for name, shape in shapes.items()]
    _check_options(network, naming, source.options)
    layers = source.layers(network)
    if source.epsilon is not None:
        shapes |= keras.biases(shapes)
    images = preparation.find(registry.full_name(network.name), naming)
    if images is not None and images.colour_order == "BGR":
        if network.channels not in (1, 3):
            raise ArchitectureError(
                f"Images of {network.channels} channels have no order of colours in {naming}."
            )
        blue_first = [2, 1, 0] if network.channels == 3 else None
        layers[0] = Layer(layers[0].ours, layers[0].theirs, inputs=blue_first)
    tensors = []
    for layer in layers:
        for kind, suffix in _suffixes(naming, layer).items():
            ours = f"{layer.ours}/{kind}"
            if ours in shapes:
                tensors.append(_tensor(network, layer, kind, suffix, shapes[ours], naming))
    unnamed = shapes.keys() - {tensor.ours for tensor in tensors}
    if unnamed:
        raise ArchitectureError(f"{naming} has no names for {some(sorted(unnamed))}.")
    return tensors


def _suffixes(naming: str, layer: Layer) -> dict[str, str]:
    """The suffixes of a layer's values in the source, by their names here."""
    suffixes = _SUFFIXES.get(naming, _TORCH)
    if naming not in _KERAS:
        return suffixes
    is_norm = layer.ours.endswith("/norm")
    return {
        kind.removeprefix("norm/"): suffix
        for kind, suffix in suffixes.items()
        if kind.startswith("norm/") == is_norm
    }


def _tensor(
    network: Network, layer: Layer, kind: str, suffix: str, shape: tuple[int, ...], naming: str
) -> _Tensor:
    """One value of a layer. shape: of the value here."""
    names = f"{layer.ours}/{kind}", layer.theirs + suffix
    if kind != "kernel":
        return _Tensor(*names, shape, shape, outputs=layer.outputs)
    is_dense = len(shape) == 2
    module = reduce(getattr, layer.ours.split("/"), network)
    kernel = (*module.map_shape, shape[-1]) if is_dense else shape
    height, width, inputs, outputs = kernel
    convolution: tuple[int, ...] = (outputs, inputs, height, width)
    flat: tuple[int, ...] = (outputs, height * width * inputs)
    if our_layout := naming in _OUR_LAYOUT:
        convolution, flat = kernel, shape
    their_shape = flat if is_dense and not layer.convolution else convolution
    return _Tensor(
        *names, shape, their_shape, kernel, layer.inputs, layer.outputs, convolution, our_layout
    )


def _sources(arch: str) -> dict[str, Source | None]:
    """The namings that an architecture's weights can have; None for this project's own.

    Raises ArchitectureError for an unknown architecture.
    """
    family, variant = registry.find(arch)
    sources = family.published.items()
    published = {naming: s for naming, s in sources if variant in (s.variants or (variant,))}
    return {naming: published.get(naming) for naming in NAMINGS if naming in (*published, OWN)}


def _source(arch: str, naming: str) -> Source | None:
    """The source that has a naming; None for this project's own.

    Raises ArchitectureError for an unknown naming, or one that does not have the architecture.
    """
    if naming not in NAMINGS:
        raise unknown("naming of weights", naming, NAMINGS)
    sources = _sources(arch)
    if naming not in sources:
        raise ArchitectureError(
            f"{naming} has no {arch}; its weights can be {' or '.join(sources)}."
        )
    return sources[naming]


def _epsilon(arch: str, naming: str) -> float | None:
    source = _source(arch, naming)
    return None if source is None else source.epsilon


def _weight(layer: str, naming: str) -> str:
    """The name of a layer's weights."""
    return layer + _SUFFIXES.get(naming, _TORCH)["kernel"]


def _ends(arch: str, naming: str) -> list[str]:
    """The names of weights that identify a naming, see `detect`; none for this project's own."""
    source = _source(arch, naming)
    layers = () if source is None else (source.first, source.spatial, source.last)
    return [_weight(name, naming) for name in dict.fromkeys(layers) if name]


def _sizes(tensors: Tensors, layer: str, naming: str, *, is_dense: bool = True) -> tuple[int, int]:
    """(outputs, inputs) of a layer: maps, or the values that a fully connected layer sees."""
    name = _weight(layer, naming)
    if name not in tensors:
        raise WeightsError(f"There is no {name}, which every {naming} network of this kind has.")
    shape = tuple(tensors[name].shape)
    if naming in _OUR_LAYOUT:
        shape = shape[::-1]
    if naming == "caffe" and is_dense and len(shape) == 4 and shape[:2] == (1, 1):
        shape = shape[2:]  # (1, 1, out, in) in older files
    if len(shape) not in (2, 4) or not prod(shape):
        raise WeightsError(
            f"{name} has shape {tensors[name].shape}, which no layer's weights have."
        )
    return shape[0], prod(shape[1:]) if is_dense else shape[1]


def _required_options(arch: str, naming: str, names: Iterable[str]) -> dict[str, Any]:
    """Options that a network must have for tensors of these names."""
    names = list(names)
    source = _source(arch, naming)
    family, variant = registry.find(arch)
    block = re.compile(r"(layer|stage)\d+[./](block)?\d+[./]conv1(\.weight|/conv/kernel)")
    shortcut = re.compile(r".*[./](downsample\.0\.weight|shortcut\.0\.weight|shortcut/conv/kernel)")
    blocks, shortcuts = (
        sum(map(bool, map(pattern.fullmatch, names))) for pattern in (block, shortcut)
    )
    detected = {
        "batch_norm": any(name.endswith(("running_mean", "/norm/mean")) for name in names),
        "auxiliary": any(name.startswith(_AUXILIARY) for name in names),
        "shortcut": "A" if not shortcuts else "B" if shortcuts < blocks else "C",
    }
    defaults = family.options(variant)
    options = {name: value for name, value in detected.items() if name in defaults}
    for option, values in {} if source is None else source.options.items():
        need = family.needs.get(option)
        if (len(values) == 1 or option not in _VISIBLE) and (
            need is None or need.is_met(variant, {**defaults, **options})
        ):
            options[option] = values[0]
    return options


def _check_options(network: Network, naming: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ArchitectureError, with the allowed values, where options have others."""
    idle = registry.idle(network.name, dict(network.options))
    wrong = {
        option: value
        for option, value in network.options
        if option in allowed and option not in idle and value not in allowed[option]
    }
    if wrong:
        created = ", ".join(f"{option}={value!r}" for option, value in wrong.items())
        needed = [f"{option}={' or '.join(map(repr, allowed[option]))}" for option in wrong]
        raise ArchitectureError(
            f"{network.name} with {created} is not what {naming} has: these weights need "
            f"{', '.join(needed)}."
        )


def _check_names(whose: str, arrays: Tensors, expected: Mapping[str, _Tensor]) -> None:
    """Raises WeightsError, with all problems, unless names and shapes are the expected ones."""
    missing = [name for name in expected if name not in arrays]
    unexpected = [name for name in arrays if name not in expected]
    misshapen = [
        f"{name} is {arrays[name].shape}, not {tensor.shape}"
        for name, tensor in expected.items()
        if name in arrays and arrays[name].shape != tensor.shape
    ]
    hints = []
    for name in unexpected[:_SHOWN]:
        near = get_close_matches(name, missing, n=1) or get_close_matches(name, expected, n=1)
        hints.append(f"{name} (near {near[0]})" if near else name)
    kinds = {
        "missing": (len(missing), missing),
        "unknown": (len(unexpected), hints),
        "of another shape": (len(misshapen), misshapen),
    }
    wrong = [f"{n} {kind}: {some(names, n)}" for kind, (n, names) in kinds.items() if n]
    if wrong:
        raise WeightsError(f"These are not the weights of {whose}. {'. '.join(wrong)}.")


def some(names: list[str], count: int | None = None) -> str:
    """The first few names, and how many more there are."""
    count = len(names) if count is None else count
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more


def _float32(name: str, values: np.ndarray) -> np.ndarray:
    """The values as float32. Raises WeightsError unless they are finite and of floating point."""
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        raise WeightsError(f"{name} is {values.dtype.name}, not float16, float32 or float64.")
    if not np.isfinite(values).all():
        raise WeightsError(f"{name} has a NaN or an infinity.")
    with np.errstate(over="ignore"):
        converted: np.ndarray = values.astype(np.float32)
    if not np.isfinite(converted).all():
        raise WeightsError(f"{name} has values that are too large for float32.")
    return converted
