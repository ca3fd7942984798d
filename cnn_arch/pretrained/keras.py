"""Converts the values of Keras's networks where more than names and layouts differ.

Its residual networks have biases in the convolutions before batch normalisation, and another
epsilon there. Both go into the statistics: with a bias b, mean m, variance v and epsilon e,

    (x + b - m) / sqrt(v + e) = (x - m') / sqrt(v' + e')  for  m' = m - b and v' = v + e - e'.

Values are in float64 in between, so that each is rounded once to float32.
"""

from collections.abc import Iterable, Mapping
from functools import reduce

import numpy as np

from cnn_arch.errors import WeightsError
from cnn_arch.network import Network
from cnn_arch.weight_files.hdf5_files import NETWORKS, VARIABLES

Values = Mapping[str, np.ndarray]  # of a network, by their names here
_MEAN, _VAR, _BIAS = "/norm/mean", "/norm/var", "/conv/bias"
_FIRST = {"block1_conv1", "conv1_conv", "res2a_branch2a"}  # layers near the image


def biases(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the biases that only Keras has, by the names that they would have here."""
    return {
        name.removesuffix(_MEAN) + _BIAS: shape
        for name, shape in shapes.items()
        if name.endswith(_MEAN)
    }


def place(name: str) -> str:
    """The name of the network's value that a value is folded into."""
    return name.removesuffix(_BIAS) + _MEAN if name.endswith(_BIAS) else name


def fold(network: Network, values: Values, epsilon: float) -> dict[str, np.ndarray]:
    """The values of the same network without biases and with the epsilon of here.

    Raises WeightsError where a bias and a mean are further apart than float32 reaches.
    """
    folded = {name: value for name, value in values.items() if not name.endswith(_BIAS)}
    for name, value in folded.items():
        exact = np.asarray(value, np.float64)
        if name.endswith(_MEAN):
            exact = exact - values[name.removesuffix(_MEAN) + _BIAS]
        elif name.endswith(_VAR):
            exact = exact + (epsilon - _epsilon(network, name))
        else:
            continue
        with np.errstate(over="ignore"):
            folded[name] = exact.astype(np.float32)
        if not np.isfinite(folded[name]).all():
            raise WeightsError(f"{name}: a bias and a mean are too far apart for float32.")
    return folded


def unfold(network: Network, values: Values, epsilon: float) -> dict[str, np.ndarray]:
    """The inverse of `fold`, with biases of zero.

    A variance that is smaller than the difference of the epsilons becomes negative.
    """
    unfolded = dict(values)
    for name, value in values.items():
        if name.endswith(_MEAN):
            unfolded[name.removesuffix(_MEAN) + _BIAS] = np.zeros_like(value)
        elif name.endswith(_VAR):
            exact = np.asarray(value, np.float64) - (epsilon - _epsilon(network, name))
            unfolded[name] = exact.astype(np.float32)
    return unfolded


def _epsilon(network: Network, name: str) -> float:
    """The epsilon of the normalisation that has this value."""
    norm = reduce(getattr, name.split("/")[:-1], network)
    return float(norm.epsilon)  # type: ignore[attr-defined]


def named_as_today(tensors: Values) -> dict[str, np.ndarray]:
    """The tensors with today's name of the last layer.

    ResNet50, 101 and 152 had `probs` up to keras_applications 1.0.8 (resnet_common.py).
    """
    if "conv1_conv/kernel" not in tensors or "predictions/kernel" in tensors:
        return dict(tensors)
    return {
        f"predictions/{name.removeprefix('probs/')}" if name.startswith("probs/") else name: values
        for name, values in tensors.items()
    }


def are_of_keras(names: Iterable[str]) -> bool:
    """Whether only Keras has such names, though maybe of networks that are unknown here."""
    parts = [name.split("/") for name in names]
    return all(len(part) == 2 and part[1] in VARIABLES for part in parts) and any(
        layer in _FIRST or variable == "gamma" for layer, variable in parts
    )


def why_none_fits(names: Iterable[str]) -> str:
    """Why no naming fits tensors of Keras, with the networks that are known; '' for others."""
    names = list(names)
    if not are_of_keras(names):
        return ""
    layers = {name.partition("/")[0] for name in names}
    reason = ""
    if "post_bn" in layers:
        reason = "they are of a ResNet V2, which is another network than ResNet; "
    elif layers & _FIRST and not layers & {"predictions", "fc1000"}:
        reason = "they lack the last layer (include_top=False); "
    return f"{reason}of Keras's networks {NETWORKS} are known"
