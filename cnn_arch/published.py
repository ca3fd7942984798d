"""How those who publish weights name the layers of their networks and order their channels.

A naming is data: of each family that a source has, pairs of layers by our path and by its name. It
stands with the family; the names were looked up in the files that the functions there are called
after. `pretrained` loads and exports weights by them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A layer by both names."""

    ours: str  # its path
    theirs: str  # without the suffix of the tensor
    inputs: list[int] | None = None  # for each of our maps the index of theirs, where these differ
    outputs: list[int] | None = None
    convolution: bool = False  # a fully connected layer is one there, over the whole map


@dataclass(frozen=True)
class Source:
    """How one source of weights has the networks of one family."""

    layers: Callable[[Any], list[Layer]]  # network -> its layers, in the source's order
    first: str  # the first and the last layer's name there
    last: str
    spatial: str = ""  # the fully connected layer that sees a map, if there is one
    variants: tuple[str, ...] = ()  # the family's that the source has; none listed: all
    # Option -> its values that the source has. More than one: the tensors decide; where they do not
    # show the option, the first is what the source has unless something else says otherwise.
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    # Of its batch normalisations, where it differs and convolutions before them have a bias there.
    epsilon: float | None = None


def conv_unit(
    ours: str,
    conv: str,
    norm: str,
    inputs: list[int] | None = None,
    outputs: list[int] | None = None,
) -> list[Layer]:
    """A `ConvUnit`; the network may be without its batch normalisation."""
    return [
        Layer(f"{ours}/conv", conv, inputs, outputs),
        Layer(f"{ours}/norm", norm, outputs=outputs),
    ]


def caffe_names(network: Any, convs: Iterable[str]) -> list[Layer]:
    """Networks whose layers have the same names here as in Caffe."""
    layers = [Layer(f"{name}/conv", name) for name in convs]
    return layers + [Layer(name, name) for name in ("fc6", "fc7", "fc8")]


def in_tensorflow(caffe: Source, **changes: Any) -> Source:
    """A source of Caffe's as caffe-tensorflow converts it (kaffe/tensorflow/transformer.py).

    changes: to fields of the source.
    """

    def layers(network: Any) -> list[Layer]:
        return [replace(x, theirs=x.theirs.replace("/", "_")) for x in caffe.layers(network)]

    ends = {end: getattr(caffe, end).replace("/", "_") for end in ("first", "last", "spatial")}
    return replace(caffe, layers=layers, **ends, **changes)


def numbered(keras: Source) -> Source:
    """A source of Keras's as its newer files had it before Keras 3.6: without layers' names.

    The layers of each class are numbered as Keras orders them: conv2d, conv2d_1 and so on.
    """

    def layers(network: Any) -> list[Layer]:
        counts: Counter[str] = Counter()
        layers_of_keras = []
        for layer in keras.layers(network):
            name = kinds.get(layer.ours.rpartition("/")[2], "dense")
            number = f"_{counts[name]}" if counts[name] else ""
            counts[name] += 1
            layers_of_keras.append(replace(layer, theirs=name + number))
        return layers_of_keras

    kinds = {"conv": "conv2d", "norm": "batch_normalization"}
    dense = ("dense", "dense_2") if keras.spatial else ("", "dense")
    return replace(keras, layers=layers, first="conv2d", spatial=dense[0], last=dense[1])


@dataclass(frozen=True)
class Shape:
    """Sizes of a family's networks at width 1."""

    first: str  # this one, `last` and `spatial`: layers as in `Source`, by their names here
    last: str
    maps: int  # of the first layer
    inputs: int  # of the last layer
    spatial: str = ""
    seen: int = 0  # maps that the spatial layer sees
    # Those that differ -> (maps, inputs).
    variants: Mapping[str, tuple[int, int]] = field(default_factory=dict)
