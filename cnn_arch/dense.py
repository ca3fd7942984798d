"""Classifier -> fully convolutional network (VGG, section 3.2).

"The fully-connected layers are first converted to convolutional layers (the first FC layer to a
7x7 conv. layer, the last two FC layers to 1x1 conv. layers). The resulting fully-convolutional net
is then applied to the whole (uncropped) image. The result is a class score map with the number of
channels equal to the number of classes, and a variable spatial resolution, dependent on the input
image size. Finally, to obtain a fixed-size vector of class scores for the image, the class score
map is spatially averaged (sum-pooled)."
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch.errors import ArchitectureError
from cnn_arch.layers import AveragePool, BatchNorm, Conv, Dense, GlobalAveragePool, MaxPool
from cnn_arch.lenet import PartialConv
from cnn_arch.network import Composite, Layer, Network, RecordedOutput, Tape
from cnn_arch.window import Window

# What layers see beyond the border of a map.
BEYOND = {Conv: 0.0, PartialConv: 0.0, AveragePool: 0.0, MaxPool: -jnp.inf}


class FullyConvolutional(nnx.Module):
    """A network for images of any size from the network's own up; it shares its parameters.

    Images (B, H, W, C) -> class map (B, h, w, classes) of logits, float32. Where the network
    flattens its features, the map has a place for every window of the size it was trained with,
    and is 1x1 at the training size. Where it averages them (GoogLeNet, ResNet, NiN), the map has a
    place for every feature. In both cases its mean over the places is, at the training size, the
    classifier's logits: what averages class scores over the map (`class_scores`) tests the same
    network.

    Raises ArchitectureError for images that are smaller than a window, and for a network in train
    mode.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, images: jax.Array) -> jax.Array:
        return self._apply(images, _ConvolutionalTape(averages=False))

    def scores(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """Each image's class scores, the mean of its class map: (B, classes) logits, float32.

        Args:
            images: (B, H, W, C).
            sizes: (B, 2) integers, for images that are smaller than H x W: image i is the
                `sizes[i]` = (height, width) pixels in the top-left corner of `images[i]`. Its
                scores are those it has alone, whatever lies around it: layers see its own borders.
                They are NaN if it is smaller than a window.

        Raises ArchitectureError as the class does, and with `sizes` for layers of which it is not
        known here what they see beyond a border.
        """
        if sizes is None:
            return class_scores(self._apply(images, _ConvolutionalTape(averages=True)))
        tape = _SizedTape(images, jnp.asarray(sizes))
        return tape.mean(self._apply(images, tape))[:, 0, 0]

    def pooled(self, layer: str, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """A layer's output over the whole image, the mean of each of its maps: (B, c) float32.

        layer: as in `layer_outputs`, which takes the same of crops. images, sizes: as of `scores`.

        Raises ArchitectureError as `scores` does, and for an unknown layer.
        """
        recorded = RecordedOutput(layer)
        if sizes is None:
            tape = _ConvolutionalTape(averages=True, recorded=recorded)
        else:
            tape = _SizedTape(images, jnp.asarray(sizes), recorded)
        self._apply(images, tape)
        if recorded.output is None:
            raise ArchitectureError(f"{self.network.name} has no layer {layer}.")
        return tape.mean(recorded.output)[:, 0, 0]

    def windows(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """What the network says of every window of its own size: (B, h, w, outputs), float32.

        The place (i, j) is the window that begins `stride` i rows down and `stride` j columns to
        the right; at the training size it is the network's output. Where the network averages its
        features, that is done window by window.

        images, sizes: as of `scores`; an image of r x c pixels has `count(r)` by `count(c)` places,
        and what lies beyond these means nothing. Raises ArchitectureError as `scores` does.
        """
        _, rows, columns, _ = self._shape(self.network.image_size, features=True)
        if sizes is None:
            tape = _ConvolutionalTape(averages=False, window=(rows, columns))
        else:
            tape = _SizedTape(images, jnp.asarray(sizes), window=(rows, columns))
        return self._apply(images, tape)

    @cached_property
    def stride(self) -> int:
        """Pixels between two neighbouring windows."""
        low, high = self.network.image_size, 2 * self.network.image_size
        while high - low > 1:  # low has one window, high has more
            middle = (low + high) // 2
            if self._shape(middle)[1] > 1:
                high = middle
            else:
                low = middle
        # Pooling that rounds up has a window that leaves the image before one fits into it.
        steps = self._shape(self.network.image_size + 512)[1] - 1
        return max(high - self.network.image_size, round(512 / steps))

    def count(self, side: int) -> int:
        """How many windows begin at one, and fit, along a side of so many pixels."""
        return max(0, (side - self.network.image_size) // self.stride + 1)

    def _shape(self, side: int, *, features: bool = False) -> tuple[int, ...]:
        """The shape of the windows' map of a square image, or of its features."""
        images = jax.ShapeDtypeStruct((1, side, side, self.network.channels), jnp.float32)
        function = self.network.features if features else self.windows
        return tuple(jax.eval_shape(function, images).shape)

    def _apply(self, images: jax.Array, tape: Tape) -> jax.Array:
        for _, module in nnx.iter_modules(self.network):
            if isinstance(module, BatchNorm) and not module.use_running_average:
                raise ArchitectureError("the network is in train mode; call its eval() first")
        features = self.network.features(images, tape=tape)
        return self.network.head(features, tape=tape)


def class_scores(class_map: jax.Array) -> jax.Array:
    """The class map's spatial average: (B, h, w, classes) -> (B, classes) logits."""
    batch, height, width, classes = class_map.shape
    # A product: XLA on CPU joins a sum over one image's map with the fully connected layers before
    # it, and then computes these 15 times.
    share = jnp.full((height * width,), 1 / (height * width))
    places = class_map.reshape(batch, height * width, classes)
    return jnp.einsum("p,bpc->bc", share, places, precision="highest")


class _ConvolutionalTape(Tape):
    """Calls fully connected layers as convolutions.

    averages: whether it averages globally, (B, h, w, c) -> (B, 1, 1, c) float32, or leaves it out.
        The layers that follow are linear: their outputs for the mean are the mean of their outputs.
    recorded: a layer whose output is recorded. window: if not None, it averages over every window
        of so many rows and columns.
    """

    def __init__(
        self,
        *,
        averages: bool,
        recorded: RecordedOutput | None = None,
        window: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.averages, self.recorded, self.window = averages, recorded, window

    def __call__(self, name: str, layer: Layer, *inputs: jax.Array, **options: Any) -> jax.Array:
        output = self.call(name, layer, *inputs, **options)
        if self.recorded is not None:
            self.recorded.see(self.prefix + name, layer, inputs, output)
        return output

    def mean(self, x: jax.Array) -> jax.Array:
        """Of a map, see `_mean`."""
        return _mean(x)

    def call(self, name: str, layer: Layer, *inputs: jax.Array, **options: Any) -> jax.Array:
        """The layer's output."""
        if isinstance(layer, GlobalAveragePool):
            if self.window is not None:
                return _window_means(inputs[0], self.window)
            return _mean(inputs[0]) if self.averages else inputs[0]
        if isinstance(layer, Dense):
            return _convolve(name, layer, inputs[0])
        if isinstance(layer, Composite):
            return layer(self._inside(name), *inputs, **options)
        return layer(*inputs, **options)


class _SizedTape(_ConvolutionalTape):
    """The averaging tape for images that are smaller than the array they lie in.

    It follows the sizes (B, 2) of their maps. What lies beyond these is arbitrary; before a layer
    that would look at it, it is replaced by what the layer sees beyond the border of an array.
    """

    def __init__(
        self,
        images: jax.Array,
        sizes: jax.Array,
        recorded: RecordedOutput | None = None,
        window: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(averages=True, recorded=recorded, window=window)
        # Arrays are kept beside their sizes so that no other array can take their id.
        self.maps = {id(images): (images, sizes)}

    def call(self, name: str, layer: Layer, *inputs: jax.Array, **options: Any) -> jax.Array:
        if isinstance(layer, Composite):
            return super().call(name, layer, *inputs, **options)
        x, sizes = self.maps[id(inputs[0])]
        if isinstance(layer, GlobalAveragePool) and self.window is not None:
            output, after = super().call(name, layer, x), sizes - jnp.array(self.window) + 1
        elif isinstance(layer, GlobalAveragePool):
            output, after = _mean(x, sizes), jnp.ones_like(sizes)
        else:
            if isinstance(layer, Dense):
                window = Window(layer.map_shape[0])
            else:
                window = layer.window(x.shape) if hasattr(layer, "window") else Window(1)
            after = window.count(sizes)
            if window.kernel > 1 or window.padding:
                inputs = (self._bordered(name, layer, window, x, sizes),)
            output = super().call(name, layer, *inputs, **options)
            if isinstance(layer, AveragePool):
                # It divided by the pixels inside the array; of these, this part is in the image.
                part = layer(_inside(x, sizes).astype(jnp.float32))
                output = (output / part).astype(x.dtype)
        self.maps[id(output)] = output, after
        return output

    def _bordered(
        self, name: str, layer: Layer, window: Window, x: jax.Array, sizes: jax.Array
    ) -> jax.Array:
        if type(layer) in BEYOND:
            return jnp.where(_inside(x, sizes), x, jnp.array(BEYOND[type(layer)], x.dtype))
        if window.padding or window.ceil:
            raise ArchitectureError(
                f"images of several sizes in one batch: what {self.prefix}{name} sees beyond their "
                f"borders is not known ({type(layer).__name__}); take images of one size"
            )
        return x

    def mean(self, x: jax.Array) -> jax.Array:
        *_, last = self.maps.values()  # that of the logits, as float32
        _, sizes = self.maps.get(id(x), last)
        return _mean(x, sizes)


def _inside(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """What lies within the sizes: (B, H, W, C), (B, 2) -> (B, H, W, 1) bool."""
    rows = jnp.arange(x.shape[1]) < sizes[:, :1]  # (B, H)
    columns = jnp.arange(x.shape[2]) < sizes[:, 1:]  # (B, W)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _mean(x: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
    """The mean of each map, within the sizes (B, 2): (B, H, W, C) -> (B, 1, 1, C), float32."""
    x = x.astype(jnp.float32)
    if sizes is None:
        return x.mean(axis=(1, 2), keepdims=True)
    total = jnp.where(_inside(x, sizes), x, 0).sum(axis=(1, 2), keepdims=True)
    places = jnp.maximum(sizes, 0).prod(axis=1)  # NaN where there are none
    return total / places[:, None, None, None]


def _window_means(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """The mean of every window of a map: (B, H, W, C) -> (B, H - h + 1, W - w + 1, C), float32."""
    height, width = window
    total = jax.lax.reduce_window(
        x.astype(jnp.float32), 0.0, jax.lax.add, (1, height, width, 1), (1, 1, 1, 1), "VALID"
    )
    return total / (height * width)


def _convolve(name: str, layer: Dense, x: jax.Array) -> jax.Array:
    """Every window of the layer's map, (B, h, w, c) -> (B, h', w', outputs)."""
    height, width, _ = layer.map_shape
    if x.shape[1] < height or x.shape[2] < width:
        raise ArchitectureError(
            f"the image is too small: {name} looks at {height}x{width} features at once, and the "
            f"image has {x.shape[1]}x{x.shape[2]}"
        )
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    # As one matrix product, three times faster than XLA's convolution on CPU.
    windows = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    y = layer(jnp.concatenate(windows, axis=-1).reshape(x.shape[0] * rows * columns, -1))
    return y.reshape(x.shape[0], rows, columns, -1)
