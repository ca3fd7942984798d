"""Classifier -> fully convolutional network (VGG, section 3.2).

"The fully-connected layers are first converted to convolutional layers (the first FC layer to a
7x7 conv. layer, the last two FC layers to 1x1 conv. layers). The resulting fully-convolutional net
is then applied to the whole (uncropped) image. The result is a class score map."
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from cnn_arch.errors import ArchitectureError
from cnn_arch.layers import BatchNorm, Dense, GlobalAveragePool
from cnn_arch.network import Composite, Network, Tape


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
        for _, module in nnx.iter_modules(self.network):
            if isinstance(module, BatchNorm) and not module.use_running_average:
                raise ArchitectureError("the network is in train mode; call its eval() first")
        tape = _ConvolutionalTape()
        features = self.network.features(images, tape=tape)
        return self.network.head(features, tape=tape)


def class_scores(class_map: jax.Array) -> jax.Array:
    """The class map's spatial average: (B, h, w, classes) -> (B, classes) logits."""
    return class_map.mean(axis=(1, 2))


class _ConvolutionalTape(Tape):
    """Calls fully connected layers as convolutions, and leaves out global averaging."""

    def __call__(
        self, name: str, layer: Callable[..., jax.Array], *inputs: jax.Array, **options: Any
    ) -> jax.Array:
        if isinstance(layer, GlobalAveragePool):
            return inputs[0]
        if isinstance(layer, Dense):
            return _convolve(name, layer, inputs[0])
        if isinstance(layer, Composite):
            return layer(self._inside(name), *inputs, **options)
        return layer(*inputs, **options)


def _convolve(name: str, layer: Dense, x: jax.Array) -> jax.Array:
    """Every window of the layer's map, (B, h, w, c) -> (B, h', w', outputs)."""
    height, width, _ = layer.map_shape
    if x.shape[1] < height or x.shape[2] < width:
        raise ArchitectureError(
            f"the image is too small: {name} looks at {height}x{width} features at once, and the "
            f"image has {x.shape[1]}x{x.shape[2]}"
        )
    kernel = layer.kernel.get_value().reshape(*layer.map_shape, -1).astype(layer.dtype)
    y = jax.lax.conv_general_dilated(
        x.astype(layer.dtype), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + layer.bias.get_value().astype(layer.dtype)
