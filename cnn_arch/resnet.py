"""Residual and plain networks (He et al., arXiv:1512.03385).

Section 4.2, CIFAR-10: a 3x3 convolution to 16 maps, then three stages of n blocks of two 3x3
convolutions with 16, 32 and 64 maps; the first convolution of stages 2 and 3 has stride 2; global
average pooling and one fully connected layer: 6n + 2 weight layers. Batch normalisation after
each convolution and before its ReLU; shortcuts by option A; ReLU after the addition. The plain
networks are the same without shortcuts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch.layers import (
    Add,
    ConvUnit,
    Dense,
    Dtype,
    GlobalAveragePool,
    IdentityShortcut,
    Init,
    compute_dtype,
    initializer,
    scaled,
)
from cnn_arch.network import Composite, Network, Tape

CIFAR_MAPS = (16, 32, 64)
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)


def is_cifar_depth(variant: str) -> bool:
    """Whether it is 6n + 2 for an n of at least 1."""
    return variant.isdecimal() and int(variant) >= 8 and int(variant) % 6 == 2


def minimum_cifar_image_size(variant: str) -> int:
    """Two halvings must leave one pixel."""
    return 4


class BasicBlock(Composite):
    """Two 3x3 convolutions, and around them a shortcut if the network is residual (Figure 2)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, residual: bool, **unit: Any
    ) -> None:
        self.conv1 = ConvUnit(inputs, outputs, 3, stride, use_bias=False, **unit)
        self.conv2 = ConvUnit(outputs, outputs, 3, use_bias=False, relu=False, **unit)
        self.add = Add() if residual else None
        grows = residual and (stride != 1 or inputs != outputs)
        self.shortcut = IdentityShortcut(outputs, stride) if grows else None

    def __call__(self, tape: Tape, x: jax.Array) -> jax.Array:
        y = tape("conv1", self.conv1, x)
        y = tape("conv2", self.conv2, y)
        if self.shortcut is not None:
            x = tape("shortcut", self.shortcut, x)
        if self.add is not None:
            y = tape("add", self.add, y, x)
        return tape("relu", nnx.relu, y)


class Stage(Composite):
    """`blocks` blocks at one map size, named block1, block2, ...; the first has the stride."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, blocks: int, **block: Any
    ) -> None:
        self.blocks = blocks
        for i in range(1, blocks + 1):
            setattr(self, f"block{i}", BasicBlock(inputs, outputs, stride, **block))
            inputs, stride = outputs, 1

    def __call__(self, tape: Tape, x: jax.Array) -> jax.Array:
        for i in range(1, self.blocks + 1):
            x = tape(f"block{i}", getattr(self, f"block{i}"), x)
        return x


class CifarNet(Network):
    """A network of section 4.2.

    Args:
        variant: the depth, 6n + 2.
        residual: with shortcuts (cifar_resnet) or without (cifar_plain).
        width: multiplies the maps of every convolution.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        init: initial weights, see `layers.initializer`; the paper's are 'he', here for the fully
            connected layer too, whose bias starts at zero.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    def __init__(
        self,
        variant: str,
        *,
        residual: bool,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        width: float = 1.0,
        bn_group_size: int = 0,
        init: Init = "he",
        dtype: Dtype = "float32",
    ) -> None:
        self.name = f"{'cifar_resnet' if residual else 'cifar_plain'}:{variant}"
        self.image_size, self.channels, self.classes = image_size, channels, classes
        first, second, third = (scaled(maps, width) for maps in CIFAR_MAPS)
        weights = {"init": initializer(init, width), "dtype": compute_dtype(dtype), "rngs": rngs}
        unit = {"group_size": bn_group_size, **weights}
        block = {"blocks": (int(variant) - 2) // 6, "residual": residual, **unit}
        self.conv1 = ConvUnit(channels, first, 3, use_bias=False, **unit)
        self.stage1 = Stage(first, first, 1, **block)
        self.stage2 = Stage(first, second, 2, **block)
        self.stage3 = Stage(second, third, 2, **block)
        self.pool = GlobalAveragePool()
        self.fc = Dense(third, classes, **weights)

    def features(self, x: jax.Array, *, tape: Tape | None = None) -> jax.Array:
        self.check_images(x)
        tape = tape or Tape()
        x = tape("conv1", self.conv1, x)
        x = tape("stage1", self.stage1, x)
        x = tape("stage2", self.stage2, x)
        return tape("stage3", self.stage3, x)

    def head(
        self, features: jax.Array, *, rngs: nnx.Rngs | None = None, tape: Tape | None = None
    ) -> jax.Array:
        tape = tape or Tape()
        return tape("fc", self.fc, tape("pool", self.pool, features)).astype(jnp.float32)
