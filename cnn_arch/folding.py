"""A network's weights as a test reads them: batch normalisations are part of convolutions."""

import jax.numpy as jnp
from flax import nnx
from jax import lax

from cnn_arch.layers import Affine, BatchNorm, Conv, ConvUnit
from cnn_arch.network import Network


def fold(network: Network) -> None:
    """Changes a network in eval mode, in place, so that each batch normalisation only adds.

    What it multiplies by goes into the kernel of the convolution before it. Kernels are then of the
    dtype that their layers compute in. What units and the network give is the same but for
    rounding; what the convolution inside a unit gives is not.
    """
    for _, layer in nnx.iter_modules(network):
        if type(layer) is ConvUnit and layer.norm is not None:
            _fold(layer.conv, layer.norm)
    for _, layer in nnx.iter_modules(network):
        if isinstance(layer, Affine):
            layer.kernel.set_value(layer.kernel.get_value().astype(layer.dtype))


def _fold(conv: Conv, norm: BatchNorm) -> None:
    factor = norm.scale.get_value() * lax.rsqrt(norm.var.get_value() + norm.epsilon)
    mean = norm.mean.get_value()
    if conv.bias is not None:
        mean = mean - conv.bias.get_value()
        conv.bias.set_value(jnp.zeros_like(mean))
    conv.kernel.set_value(conv.kernel.get_value() * factor)
    norm.bias.set_value(norm.bias.get_value() - mean * factor)
    norm.scale.set_value(jnp.ones_like(factor))
    norm.mean.set_value(jnp.zeros_like(factor))
    norm.var.set_value(jnp.full_like(factor, 1 - norm.epsilon))
