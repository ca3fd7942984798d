"""The layers of the networks: each knows its own cost and the window it looks through.

A layer that appears in a layer table has a `kind`; where it looks beyond one position it has
`window(input_shape)`, and where it multiplies weights `macs(output_shape)` (multiply-adds for one
example, biases not counted).
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cnn_arch.errors import ArchitectureError, choose, unknown
from cnn_arch.initial_weights import Init, Initializer, initializer
from cnn_arch.kernels import onednn
from cnn_arch.kernels.affine import Multiply, affine, affine_with_float32_gradients
from cnn_arch.kernels.barriers import relu
from cnn_arch.kernels.convolution import convolve, fuses
from cnn_arch.kernels.normalisation import batch_norm, local_response_norm, normalised
from cnn_arch.kernels.pooling import max_pool, sum_of_windows
from cnn_arch.network import Composite, Tape
from cnn_arch.window import Window

Dtype = Literal["float32", "bfloat16"]


def compute_dtype(name: Dtype) -> jnp.dtype:
    """float32 or bfloat16 by name. Raises ArchitectureError for another name."""
    dtypes = ("float32", "bfloat16")
    if name not in dtypes:
        raise unknown("dtype", name, dtypes)
    return jnp.dtype(name)


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, at least one. Raises ArchitectureError unless width > 0."""
    if not isinstance(width, int | float) or not width > 0:
        raise ArchitectureError(f"width must be a number above 0, got {width!r}.")
    return max(1, round(channels * width))


def weights(
    init: Init, dtype: Dtype, rngs: nnx.Rngs, width: float = 1.0, **spread: float
) -> dict[str, Any]:
    """What the layers of a network with weights share; `init`, `width`, `spread`: `initializer`'s.

    Raises ArchitectureError for another `init` or `dtype`.
    """
    return {"init": initializer(init, width, **spread), "dtype": compute_dtype(dtype), "rngs": rngs}


class Dropout(nnx.Dropout):
    """Dropout of its first papers (Hinton et al. 2012, arXiv:1207.0580; AlexNet, section 4.2).

    In training, values are dropped with probability `rate`, and what is kept stays as it is. In
    testing, all are multiplied by 1 - `rate`. Flax, Caffe and PyTorch have inverted dropout: they
    divide by 1 - `rate` in training. That is the same function of other weights. The next layer has
    larger inputs, though, and learns otherwise from the same initial weights and rate.
    """

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        """Any shape, to the same; `options` are Flax's."""
        return super().__call__(x, **options) * (1 - self.rate)


def dropout(rate: float, *, inverted: bool) -> nnx.Dropout:
    """Dropout of values with probability `rate`; inverted, as Flax has it, or `Dropout`."""
    return nnx.Dropout(rate) if inverted else Dropout(rate)


class Affine(nnx.Module):
    """What layers of weights and biases share.

    The weights, `kernel` and `bias`, are float32; the computation is in `dtype`, and so are their
    gradients, which devices exchange, unless `float32_gradients`.
    """

    dtype: jnp.dtype
    kernel: nnx.Param
    bias: nnx.Param | None
    float32_gradients = False

    def _apply(self, multiply: Multiply, x: jax.Array) -> jax.Array:
        """`multiply(x, kernel)` and the biases, in `dtype`."""
        x, kernel = x.astype(self.dtype), self.kernel.get_value()
        bias = None if self.bias is None else self.bias.get_value()
        if self.float32_gradients and self.dtype != jnp.float32:
            return affine_with_float32_gradients(multiply, x, kernel, bias)
        return affine(multiply, x, kernel, bias)


class Conv(Affine):
    """A square convolution with symmetric zero padding, (size - 1) / 2 by default.

    Weights have the shape (size, size, inputs / groups, outputs). With groups, output maps of
    group g see the input maps of group g only. Stride 2 with symmetric padding centres the windows
    on even positions, as in Caffe and PyTorch; XLA's 'SAME' would centre them between positions.
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
        stride, padding, groups = self.stride, self.padding, self.groups
        return self._apply(lambda x, kernel: convolve(x, kernel, stride, padding, groups), x)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size, self.stride, self.padding)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return output_shape[1] * output_shape[2] * self.kernel.get_value().size


class Dense(Affine):
    """A fully connected layer, weights of shape (inputs, outputs).

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
        return self._apply(_product, x.reshape(x.shape[0], -1))

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(input_shape[1] if len(input_shape) == 4 else 1)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return self.kernel.get_value().size


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return onednn.matmul(x, kernel) if onednn.takes(x) else x @ kernel


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
        near = lax.stop_gradient(self.mean.get_value())
        y, mean, var = batch_norm(x, scale, bias, near, groups, self.epsilon)
        self._update(mean.mean(axis=0), var.mean(axis=0), count=x[..., 0].size // groups)
        return y

    def _groups(self, batch: int) -> int:
        if batch % (self.group_size or batch):
            raise ArchitectureError(
                f"A batch of {batch} cannot be cut into groups of bn_group_size={self.group_size}."
            )
        return batch // (self.group_size or batch)

    def _update(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        unbiased = var * (count / max(count - 1, 1))
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            batch = lax.stop_gradient(batch)
            running.set_value(self.momentum * running.get_value() + (1 - self.momentum) * batch)

    def _normalise(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        scale, bias = self.scale.get_value(), self.bias.get_value()
        return normalised(x, scale, bias, mean, var, self.epsilon)


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
        return local_response_norm(x, self.n, self.k, self.alpha)


def response_norm(convention: LRN) -> LocalResponseNorm | None:
    """Local response normalisation by name.

    'paper': AlexNet's constants as printed. 'caffe': those of Caffe's AlexNet, CaffeNet and
    GoogLeNet, whose k is 1 and whose alpha of 1e-4 is divided by n. 'cuda-convnet': those of its
    CIFAR-10 net with 11% error (layers-conv-local-11pct), which are Caffe's with an alpha of 1e-3.
    'none': none.

    Raises ArchitectureError for another name.
    """
    norms: dict[str, Callable[[], LocalResponseNorm | None]] = {
        "paper": LocalResponseNorm,
        "caffe": partial(LocalResponseNorm, k=1.0, alpha=1e-4 / LocalResponseNorm.n),
        "cuda-convnet": partial(LocalResponseNorm, k=1.0, alpha=1e-3 / LocalResponseNorm.n),
        "none": lambda: None,
    }
    return choose("lrn", convention, norms)()


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
        return max_pool(x, self.window(x.shape))

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size, self.stride, self.padding, self.ceil)


class AveragePool(nnx.Module):
    """Average pooling without padding; with `ceil`, see `Window`, of what is inside the map."""

    kind = "average_pool"

    def __init__(self, size: int, stride: int, *, ceil: bool = False) -> None:
        self.size, self.stride, self.ceil = size, stride, ceil

    def __call__(self, x: jax.Array) -> jax.Array:
        window = self.window(x.shape)
        rows, columns = (
            [min(self.size, size - self.stride * i) for i in range(window.outputs(size))]
            for size in x.shape[1:3]
        )
        inside = jnp.outer(jnp.array(rows), jnp.array(columns))[..., None]  # (h, w, 1)
        return (sum_of_windows(x.astype(jnp.float32), window) / inside).astype(x.dtype)

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
        if self.activation in (None, relu) and self.fuses(tape, x):
            return self.fused(x, rectified=self.activation is relu)
        x = tape("conv", self.conv, x)
        if self.norm is not None:
            x = tape("norm", self.norm, x)
        if self.activation is None:
            return x
        return tape(self.activation.__name__, self.activation, x)

    def fuses(self, tape: Tape, x: jax.Array) -> bool:
        """Whether x is for `fused`."""
        conv = self.conv
        kernel = conv.kernel.get_value()
        return tape.fuses and fuses(x, kernel, conv.stride, conv.padding, conv.groups)

    def fused(self, x: jax.Array, addend: jax.Array | None = None, *, rectified: bool) -> jax.Array:
        """Convolution, normalisation, an addend and ReLU in one pass, of a folded network."""
        conv, kernel = self.conv, self.conv.kernel.get_value().astype(self.conv.dtype)
        bias = conv.bias if self.norm is None else self.norm.bias
        values = None if bias is None else bias.get_value()
        x = x.astype(conv.dtype)
        sizes = conv.stride, conv.padding
        return onednn.convolve_fused(x, kernel, values, addend, rectified, *sizes)
