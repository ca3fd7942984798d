"""The layers of the networks: each knows its own cost and the window it looks through.

A layer that appears in a layer table has a `kind`; where it looks beyond one position it has
`window(input_shape)`, and where it multiplies weights `macs(output_shape)` (multiply-adds for one
example, biases not counted).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from math import prod
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cnn_arch import onednn
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.network import Composite, Tape
from cnn_arch.phases import merge

# (key, shape, dtype) -> values; without a key, for shapes only, anything.
Initializer = Callable[[jax.Array | None, tuple[int, ...], jnp.dtype], jax.Array]
_Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Dtype = Literal["float32", "bfloat16"]
Init = Literal["gaussian", "glorot", "he", "lecun", "uniform"]
Size = TypeVar("Size", int, jax.Array)
Tree = TypeVar("Tree")


def _apart(tree: Tree) -> Tree:
    """These arrays, as values that XLA on CPU computes once and keeps.

    What else it would fuse into each use of them, and compute there again, can be all that led to
    them. Elsewhere nothing: other compilers weigh that. Needs `execution.compiler_options`.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda same: same)


@dataclass(frozen=True)
class Window:
    """What one output position sees along one axis: `kernel` inputs, from `-padding` on.

    Windows that would reach beyond the far border (and its padding) are left out, or, with
    `ceil`, kept where they still start inside, as Caffe's pooling does.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    ceil: bool = False

    def outputs(self, size: int) -> int:
        """Positions along an axis of `size` inputs. Raises ArchitectureError if there are none."""
        count = self.count(size)
        if count < 1:
            raise ArchitectureError(
                f"a window of {self.kernel} pixels does not fit into a map of {size}; take larger "
                "images"
            )
        return count

    def count(self, size: Size) -> Size:
        """As `outputs`, of one size or of an array of sizes; less than 1 where there are none."""
        room = size + 2 * self.padding - self.kernel
        if not self.ceil:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - ((count - 1) * self.stride >= size + self.padding)


def initializer(init: Init, width: float = 1.0, *, deviation: float = 0.01) -> Initializer:
    """The initial weights by name, for kernels with the output channels last.

    'gaussian': N(0, deviation^2), 0.01 in AlexNet and VGG, the deviation divided by sqrt(width) so
    that a net of reduced width has activations of the same size. 'glorot': uniform, variance
    2 / (fan_in + fan_out) (Glorot & Bengio 2010). 'he': normal, variance 2 / fan_in (He et al.
    2015, arXiv:1502.01852). 'lecun': uniform between -2.4 / fan_in and 2.4 / fan_in (LeCun et al.
    1998, appendix A). 'uniform': between -0.05 and 0.05 (Ciresan et al. 2011).

    Raises ArchitectureError for another name.
    """
    known: dict[str, tuple[_Draw, Callable[[tuple[int, ...]], float]]] = {
        "gaussian": (np.random.Generator.standard_normal, lambda shape: deviation / width**0.5),
        "glorot": (_unit_uniform, lambda shape: (2 / (_fan_in(shape) + _fan_out(shape))) ** 0.5),
        "he": (np.random.Generator.standard_normal, lambda shape: (2 / _fan_in(shape)) ** 0.5),
        "lecun": (_unit_uniform, lambda shape: 2.4 / _fan_in(shape) / 3**0.5),
        "uniform": (_unit_uniform, lambda shape: 0.05 / 3**0.5),
    }
    if init not in known:
        raise unknown("init", init, known)
    distribution, spread = known[init]

    def draw(key: jax.Array | None, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        # NumPy draws at once; JAX would first compile a program for each shape.
        if key is None:
            return jnp.empty(shape, dtype)
        if isinstance(key, jax.core.Tracer):
            raise ArchitectureError(
                "weights are drawn on the host: create networks outside of jit and other "
                "transformations, or take cnn_arch.abstract for shapes only"
            )
        words = np.asarray(jax.random.key_data(key)).astype(np.uint64)
        random = np.random.Generator(np.random.Philox(key=words))
        values = distribution(random, shape) * spread(shape)
        return jnp.asarray(values, dtype)

    return draw


def _unit_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform with deviation 1."""
    return random.uniform(-(3**0.5), 3**0.5, shape)


def _fan_in(shape: tuple[int, ...]) -> int:
    """Inputs of a unit whose kernel has this shape, output channels last."""
    return prod(shape[:-1])


def _fan_out(shape: tuple[int, ...]) -> int:
    return prod(shape[:-2]) * shape[-1]


def compute_dtype(name: Dtype) -> jnp.dtype:
    """float32 or bfloat16 by name. Raises ArchitectureError for another name."""
    known = ("float32", "bfloat16")
    if name not in known:
        raise unknown("dtype", name, known)
    return jnp.dtype(name)


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, at least one. Raises ArchitectureError unless width > 0."""
    if not isinstance(width, int | float) or not width > 0:
        raise ArchitectureError(f"width must be a number above 0, got {width!r}.")
    return max(1, round(channels * width))


def dropout_rate(rate: float) -> float:
    """Checks a probability of dropping a unit. Raises ArchitectureError unless in [0, 1)."""
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ArchitectureError(f"dropout must be at least 0 and below 1, got {rate!r}.")
    return rate


class Conv(nnx.Module):
    """A square convolution with symmetric zero padding, (size - 1) / 2 by default.

    Weights are float32, shape (size, size, inputs / groups, outputs); the computation is in
    `dtype`. With groups, output maps of group g see the input maps of group g only. Stride 2 with
    symmetric padding centres the windows on even positions, as in Caffe and PyTorch; XLA's 'SAME'
    would centre them between positions.
    """

    kind = "conv"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        *,
        use_bias: bool,
        init: Initializer,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        padding: int | None = None,
        groups: int = 1,
        bias: float = 0.0,
    ) -> None:
        if inputs % groups or outputs % groups:
            raise ArchitectureError(
                f"{inputs} maps in and {outputs} maps out can't be cut into {groups} groups."
            )
        self.size, self.stride, self.dtype, self.groups = size, stride, dtype, groups
        self.padding = size // 2 if padding is None else padding
        shape = (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.full((outputs,), bias, jnp.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel.get_value().astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.stride, self.padding, self.groups)
        return y if self.bias is None else y + self.bias.get_value().astype(self.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size, self.stride, self.padding)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return output_shape[1] * output_shape[2] * self.kernel.get_value().size


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation (B, H, W, C) * (k, k, C / groups, F), zero padding k // 2 by default.

    On maps so small that every position sees all others (up to 2x2 for k = 3) it is one matrix
    product a position: fewer multiplications, and about 10 times faster with XLA on CPU. Groups
    are convolved one by one: XLA's grouped convolution has slow weight gradients on CPU.
    Where `onednn.using` says so, oneDNN convolves.
    """
    if groups > 1:
        parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        return jnp.concatenate([convolve(x, k, stride, padding) for x, k in parts], axis=-1)
    radius = kernel.shape[0] // 2
    padding = radius if padding is None else padding
    small = max(x.shape[1:3]) <= radius + 1
    if stride == 1 and padding == radius > 0 and kernel.shape[0] % 2 and small:
        return _convolve_small_map(x, kernel)
    if onednn.takes(x):
        return onednn.convolve(x, kernel, stride, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def _convolve_small_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _position_by_position(x, kernel)


def _position_by_position(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, inputs = x.shape
    radius, outputs = kernel.shape[0] // 2, kernel.shape[3]
    x = x.reshape(batch, -1)
    positions = []
    for row in range(radius, radius - height, -1):
        for column in range(radius, radius - width, -1):
            seen = kernel[row : row + height, column : column + width]  # (H, W, C, F)
            positions.append(x @ seen.reshape(height * width * inputs, outputs))
    return jnp.stack(positions, axis=1).reshape(batch, height, width, outputs)


def _small_map_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_small_map(x, kernel), (x, kernel)


def _small_map_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    _, back = jax.vjp(lambda x: _position_by_position(x, kernel), x)
    # One product a tap: summed over the examples of several devices, they are no more than the
    # kernel, as the gradients of the forward pass's products would be.
    radius, (height, width) = kernel.shape[0] // 2, x.shape[1:3]

    def tap(row: int, column: int) -> jax.Array:
        if abs(row) >= height or abs(column) >= width:  # sees nothing but padding
            return jnp.zeros(kernel.shape[2:], kernel.dtype)
        seen, to = (
            (slice(None), *(slice(max(n, 0), size + min(n, 0)) for n, size in shift))
            for shift in (
                ((row, height), (column, width)),
                ((-row, height), (-column, width)),
            )
        )
        return lax.dot_general(x[seen], gradient[to], (((0, 1, 2), (0, 1, 2)), ((), ())))

    around = range(-radius, radius + 1)
    taps = jnp.stack([jnp.stack([tap(row, column) for column in around]) for row in around])
    return *back(gradient), taps


_convolve_small_map.defvjp(_small_map_forward, _small_map_backward)


class Dense(nnx.Module):
    """A fully connected layer, float32 weights of shape (inputs, outputs).

    Args:
        inputs: units, or the shape (h, w, c) of a map, which is flattened in that order.
        bias: initial value of the biases.
    """

    kind = "fc"

    def __init__(
        self,
        inputs: int | tuple[int, int, int],
        outputs: int,
        *,
        init: Initializer,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        bias: float = 0.0,
    ) -> None:
        self.dtype = dtype
        self.map_shape = (1, 1, inputs) if isinstance(inputs, int) else tuple(inputs)
        shape = (prod(self.map_shape), outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.full((outputs,), bias, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, inputs) or (B, h, w, c) -> (B, outputs); another map is an ArchitectureError."""
        if x.ndim == 4 and x.shape[1:] != self.map_shape:
            raise ArchitectureError(
                f"a fully connected layer for maps of {self.map_shape} got {x.shape[1:]}: images "
                "of another size than the network was built for need its fully convolutional form "
                "(cnn_arch.dense)"
            )
        x = x.astype(self.dtype).reshape(x.shape[0], -1)
        kernel = self.kernel.get_value().astype(self.dtype)
        y = onednn.matmul(x, kernel) if onednn.takes(x) else x @ kernel
        return y + self.bias.get_value().astype(self.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(input_shape[1] if len(input_shape) == 4 else 1)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return self.kernel.get_value().size


class BatchNorm(nnx.Module):
    """Batch normalisation over groups of consecutive examples (Ioffe & Szegedy 2015).

    In train mode each group of `group_size` consecutive examples (0: the whole batch) is
    normalised with its own mean and biased variance, whatever device an example lies on. The
    running mean and variance move by a tenth towards the groups' average; the variance kept is
    the unbiased one, n / (n - 1) times larger, as in the paper's Algorithm 2, Caffe and PyTorch
    (Flax keeps the biased one). Statistics are float32 in every compute dtype.
    """

    kind = "norm"
    momentum = 0.9

    def __init__(self, channels: int, *, group_size: int = 0, epsilon: float = 1e-5) -> None:
        if not isinstance(group_size, int) or group_size < 0:
            raise ArchitectureError(f"bn_group_size must be 0 or more, got {group_size!r}.")
        self.group_size, self.epsilon = group_size, epsilon
        self.use_running_average = False
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            return self._normalise(x, self.mean.get_value(), self.var.get_value())
        groups = self._groups(x.shape[0])
        scale, bias = self.scale.get_value(), self.bias.get_value()
        if groups == 1:
            y, mean, var = _batch_norm(x, scale, bias, self.epsilon)
            self._update(mean, var, count=x[..., 0].size)
            return y
        grouped = x.reshape(groups, -1, *x.shape[1:])
        normalise = jax.vmap(_batch_norm, in_axes=(0, None, None, None))
        y, mean, var = normalise(grouped, scale, bias, self.epsilon)  # (groups, C)
        self._update(mean.mean(axis=0), var.mean(axis=0), count=grouped[0, ..., 0].size)
        return y.reshape(x.shape)

    def _groups(self, batch: int) -> int:
        if batch % (self.group_size or batch):
            raise ArchitectureError(
                f"A batch of {batch} cannot be cut into groups of bn_group_size={self.group_size}."
            )
        return batch // (self.group_size or batch)

    def _update(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        unbiased = var * (count / max(count - 1, 1))
        for kept, new in ((self.mean, mean), (self.var, unbiased)):
            new = lax.stop_gradient(new)
            kept.set_value(self.momentum * kept.get_value() + (1 - self.momentum) * new)

    def _normalise(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        scale, bias = self.scale.get_value(), self.bias.get_value()
        return _normalised(x, scale, bias, mean, var, self.epsilon)


def _normalised(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
) -> jax.Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x normalised with its own moments, (B, H, W, C), and these, which have no gradient.

    Its own gradient, since that of `_moments` and `_normalised` keeps and reads more maps: here x
    is read for the two sums over the gradient, and once more.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    mean, var = _moments(x)
    y = _normalised(x, scale, bias, mean, var, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(
    epsilon: float, residuals: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    x, scale, mean, var = residuals
    values, gradient = x.astype(jnp.float32), gradients[0].astype(jnp.float32)
    axes, count = tuple(range(x.ndim - 1)), x[..., 0].size
    inverse = lax.rsqrt(var + epsilon)
    # The barriers keep XLA from writing `values - mean` down once to read it three times.
    mean = _apart(mean)
    of_bias = gradient.sum(axes)
    along = (gradient * (values - mean)).sum(axes)
    mean, along = _apart((mean, along))
    slope = along * jnp.square(inverse) / count
    of_x = (gradient - of_bias / count - (values - mean) * slope) * (scale * inverse)
    return of_x.astype(x.dtype), along * inverse, of_bias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each map, (B, H, W, C) -> (C,) twice, float32.

    One pass over x, about 1.3 times faster a training step on CPU than the variance around the
    mean. The values are first shifted by one of their own, so that mean^2 is never much larger
    than the variance and their difference keeps its digits.
    """
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    # Two names for one value: XLA would write `x - shift` down to read it twice.
    shift, again = _apart((x[(0,) * len(axes)],) * 2)
    mean = (x - shift).mean(axes)
    return mean + shift, jnp.square(x - again).mean(axes) - jnp.square(mean)


LRN = Literal["paper", "caffe", "cuda-convnet", "none"]


class LocalResponseNorm(nnx.Module):
    """x / (k + alpha * sum of squares over the n neighbouring maps)^0.75 (AlexNet, section 3.3).

    The paper's constants are k=2, n=5, alpha=1e-4 (not divided by n).
    """

    kind = "lrn"
    n = 5

    def __init__(self, k: float = 2.0, alpha: float = 1e-4) -> None:
        self.k, self.alpha = k, alpha

    def __call__(self, x: jax.Array) -> jax.Array:
        return _response_norm(x, self.n, self.k, self.alpha)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _response_norm(x: jax.Array, n: int, k: float, alpha: float) -> jax.Array:
    """x (k + alpha * sum of squares over the n maps around each)^-0.75, computed in float32.

    Its own gradient, which keeps two maps of x's dtype; and barriers, since XLA would compute sums
    of neighbours for each neighbour.
    """
    return _response_norm_forward(x, n, k, alpha)[0]


def _response_norm_forward(
    x: jax.Array, n: int, k: float, alpha: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    values = x.astype(jnp.float32)
    root = _apart(lax.rsqrt(k + alpha * _sum_of_neighbours(jnp.square(values), n)))
    y = values * root * jnp.sqrt(root)  # no power, which is slow on CPU
    return y.astype(x.dtype), (x, root.astype(x.dtype))


def _response_norm_backward(
    n: int, k: float, alpha: float, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    dtype = gradient.dtype
    x, root, gradient = (array.astype(jnp.float32) for array in (*residuals, gradient))
    gradient = _apart(gradient)
    factor = root * jnp.sqrt(root)
    through = _apart(gradient * x * factor * jnp.square(root))
    of_x = gradient * factor - 1.5 * alpha * x * _sum_of_neighbours(through, n)
    return (of_x.astype(dtype),)


_response_norm.defvjp(_response_norm_forward, _response_norm_backward)


def _sum_of_neighbours(x: jax.Array, n: int) -> jax.Array:
    """Over the n maps around each, itself in the middle."""
    reach, channels = n // 2, x.shape[-1]
    x = jnp.pad(x, ((0, 0),) * 3 + ((reach, reach),))
    return reduce(jnp.add, (x[..., i : i + channels] for i in range(n)))


def response_norm(convention: LRN) -> LocalResponseNorm | None:
    """Local response normalisation by name.

    'paper': AlexNet's constants as printed. 'caffe': those of Caffe's AlexNet, CaffeNet and
    GoogLeNet, whose k is 1 and whose alpha of 1e-4 is divided by n. 'cuda-convnet': those of its
    CIFAR-10 net with 11% error (layers-conv-local-11pct), which are Caffe's with an alpha of 1e-3.
    'none': none.

    Raises ArchitectureError for another name.
    """
    known: dict[str, Callable[[], LocalResponseNorm | None]] = {
        "paper": LocalResponseNorm,
        "caffe": partial(LocalResponseNorm, k=1.0, alpha=1e-4 / LocalResponseNorm.n),
        "cuda-convnet": partial(LocalResponseNorm, k=1.0, alpha=1e-3 / LocalResponseNorm.n),
        "none": lambda: None,
    }
    if convention not in known:
        raise unknown("lrn", convention, known)
    return known[convention]()


class MaxPool(nnx.Module):
    """Max-pooling; where a window reaches beyond the map it sees only what is inside.

    `padding` and `ceil` are those of `Window`. It is the maximum of strided slices: XLA on CPU
    takes ten times longer for the gradient of a window reduction. As there, the first of equal
    values gets the gradient.
    """

    kind = "max_pool"

    def __init__(
        self, size: int = 2, stride: int = 2, *, padding: int = 0, ceil: bool = False
    ) -> None:
        self.size, self.stride, self.padding, self.ceil = size, stride, padding, ceil

    def __call__(self, x: jax.Array) -> jax.Array:
        lowest = jnp.array(-jnp.inf, x.dtype)
        return _max_pool(_fill_windows(x, self.window(x.shape), lowest), self.size, self.stride)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size, self.stride, self.padding, self.ceil)


def _fill_windows(x: jax.Array, window: Window, value: jax.typing.ArrayLike) -> jax.Array:
    """Pads height and width so that every window of `window` lies inside."""
    sides = [(0, 0)]
    for size in x.shape[1:3]:
        reach = (window.outputs(size) - 1) * window.stride + window.kernel
        sides.append((window.padding, max(0, reach - size - window.padding)))
    return jnp.pad(x, (*sides, (0, 0)), constant_values=value) if any(map(any, sides)) else x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    return reduce(jnp.maximum, _window_slices(x, size, stride))


def _window_slices(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """The values at each place of the window, row by row: size * size maps of the output's size."""
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]


def _max_pool_forward(
    x: jax.Array, size: int, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest = _max_pool(x, size, stride)
    return largest, (x, largest)


def _max_pool_backward(
    size: int, stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    x, largest = residuals
    # The place in its window that each output came from: of equal values the first.
    place = jnp.full(largest.shape, size * size, jnp.int8 if size <= 11 else jnp.int32)
    for i, values in reversed(list(enumerate(_window_slices(x, size, stride)))):
        place = jnp.where(values == largest, jnp.array(i, place.dtype), place)
    # Each phase of x is seen by windows from `reach` before to its own.
    (_, height, width, _), (_, rows, columns, _) = x.shape, largest.shape
    reach = (size - 1) // stride
    phase_height, phase_width = -(-height // stride), -(-width // stride)
    sides = ((0, 0), (reach, phase_height - rows), (reach, phase_width - columns), (0, 0))
    padded = [jnp.pad(place, sides, constant_values=size * size), jnp.pad(gradient, sides)]
    place, gradient = _apart(padded)

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((len(x), phase_height, phase_width, x.shape[-1]), x.dtype)
        for i in range(row, size, stride):
            for j in range(column, size, stride):
                top, left = reach - i // stride, reach - j // stride
                seen = (
                    slice(None),
                    slice(top, top + phase_height),
                    slice(left, left + phase_width),
                )
                total += jnp.where(place[seen] == i * size + j, gradient[seen], 0)
        return total

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    return (merge(phases, height, width),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


class AveragePool(nnx.Module):
    """Average pooling without padding; with `ceil`, see `Window`, of what is inside the map."""

    kind = "average_pool"

    def __init__(self, size: int, stride: int, *, ceil: bool = False) -> None:
        self.size, self.stride, self.ceil = size, stride, ceil

    def __call__(self, x: jax.Array) -> jax.Array:
        window = self.window(x.shape)
        padded = _fill_windows(x.astype(jnp.float32), window, 0)
        rows, columns = (
            [min(self.size, size - self.stride * i) for i in range(window.outputs(size))]
            for size in x.shape[1:3]
        )
        inside = jnp.outer(jnp.array(rows), jnp.array(columns))[..., None]  # (h, w, 1)
        return (sum(_window_slices(padded, self.size, self.stride)) / inside).astype(x.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size, self.stride, ceil=self.ceil)


class GlobalAveragePool(nnx.Module):
    """The mean of each map: (B, h, w, c) -> (B, c)."""

    kind = "average_pool"

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32).mean(axis=(1, 2)).astype(x.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(input_shape[1])


class IdentityShortcut(nnx.Module):
    """Option A of the ResNet paper: subsampling, and zeros for the added maps; no parameters."""

    kind = "shortcut"

    def __init__(self, outputs: int, stride: int) -> None:
        self.outputs, self.stride = outputs, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0),) * 3 + ((0, self.outputs - x.shape[-1]),))

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(1, self.stride)


class Add(nnx.Module):
    """The sum of two maps of the same shape."""

    kind = "add"

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a + b


class Concat(nnx.Module):
    """Maps of the same size, one behind the other."""

    kind = "concat"

    def __call__(self, *maps: jax.Array) -> jax.Array:
        return jnp.concatenate(maps, axis=-1)


Activation = Callable[[jax.Array], jax.Array]


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), whose gradient (0 at 0) is taken from the result: x need not be kept.

    Both are computed once: XLA on CPU would compute a residual block's sum again, and those of all
    blocks before it, for each use, in time quadratic in the depth.
    """
    return _apart(jnp.maximum(x, 0))


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (_apart(jnp.where(y > 0, gradient, 0)),)


relu.defvjp(_relu_forward, _relu_backward)


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159 tanh(2x / 3), which is +1 at +1 and -1 at -1 (LeCun et al. 1998, appendix A)."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


class ConvUnit(Composite):
    """Convolution, batch normalisation if `group_size` is given, and ReLU by default.

    `conv` are further arguments of `Conv`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        *,
        group_size: int | None = None,
        epsilon: float = 1e-5,
        activation: Activation | None = relu,
        **conv: Any,
    ) -> None:
        self.activation = activation
        self.conv = Conv(inputs, outputs, size, stride, **conv)
        norm = None
        if group_size is not None:
            norm = BatchNorm(outputs, group_size=group_size, epsilon=epsilon)
        self.norm = norm

    def __call__(self, tape: Tape, x: jax.Array) -> jax.Array:
        x = tape("conv", self.conv, x)
        if self.norm is not None:
            x = tape("norm", self.norm, x)
        if self.activation is None:
            return x
        return tape(self.activation.__name__, self.activation, x)
