"""Training steps as Flax's own ImageNet example writes them, as a yardstick for compiled programs.

Linen modules, `nn.max_pool`, `nn.BatchNorm` over the whole batch, optax's chain under `jax.jit`:
no kernel of ours. The layers are those of the papers, the same as our networks'.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_arch.googlenet import INCEPTIONS

CLASSES, SIDE = 1000, 224
RESNETS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
VGGS = {
    "A": (1, 1, 2, 2, 2),
    "B": (2, 2, 2, 2, 2),
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}


class Bottleneck(nn.Module):
    maps: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.maps, (1, 1), strides)(x)))
        y = nn.relu(norm()(conv(self.maps, (3, 3))(y)))
        y = norm()(conv(4 * self.maps, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.maps, (1, 1), strides)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    stages: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        padding = [(3, 3), (3, 3)]
        x = nn.Conv(64, (7, 7), (2, 2), padding=padding, use_bias=False, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = Bottleneck(64 * 2**stage, stride, self.dtype)(x, train)
        return [nn.Dense(CLASSES, dtype=self.dtype)(x.mean(axis=(1, 2)))]


class VGG(nn.Module):
    stages: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        for maps, layers in zip((64, 128, 256, 512, 512), self.stages, strict=True):
            for _ in range(layers):
                x = nn.relu(nn.Conv(maps, (3, 3), padding=1, dtype=self.dtype)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return [_hidden(x, train, self.dtype)]


def _hidden(x: jax.Array, train: bool, dtype: Any) -> jax.Array:
    """Two hidden layers of 4096 units with dropout, and the classifier."""
    x = x.reshape(len(x), -1)
    for _ in range(2):
        x = nn.relu(nn.Dense(4096, dtype=dtype)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(CLASSES, dtype=dtype)(x)


def _response_norm(x: jax.Array) -> jax.Array:
    squares = jnp.square(x.astype(jnp.float32))
    window, strides = (1, 1, 1, 5), (1, 1, 1, 1)
    total = lax.reduce_window(squares, 0.0, lax.add, window, strides, ((0, 0),) * 3 + ((2, 2),))
    return (x * (2 + 1e-4 * total) ** -0.75).astype(x.dtype)


class AlexNet(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        conv = partial(nn.Conv, dtype=self.dtype)
        pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
        x = pool(_response_norm(nn.relu(conv(96, (11, 11), (4, 4), padding=2)(x))))
        x = nn.relu(conv(256, (5, 5), padding=2, feature_group_count=2)(x))
        x = pool(_response_norm(x))
        x = nn.relu(conv(384, (3, 3), padding=1)(x))
        x = nn.relu(conv(384, (3, 3), padding=1, feature_group_count=2)(x))
        x = pool(nn.relu(conv(256, (3, 3), padding=1, feature_group_count=2)(x)))
        return [_hidden(x, train, self.dtype)]


class GoogLeNet(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=[(0, 1), (0, 1)])
        x = nn.relu(nn.Conv(64, (7, 7), (2, 2), padding=3, dtype=self.dtype)(x))
        x = _response_norm(pool(x))
        x = self._conv(x, 64, 1)
        x = pool(_response_norm(self._conv(x, 192, 3)))
        logits = []
        for name, maps in INCEPTIONS.items():
            x = self._inception(x, maps)
            if name in ("4a", "4d"):
                logits.append(self._auxiliary(x, train))
            if name in ("3b", "4e"):
                x = pool(x)
        x = nn.Dropout(0.4, deterministic=not train)(x.mean(axis=(1, 2)))
        return [nn.Dense(CLASSES, dtype=self.dtype)(x), *logits]

    def _conv(self, x: jax.Array, maps: int, size: int) -> jax.Array:
        return nn.relu(nn.Conv(maps, (size, size), padding=size // 2, dtype=self.dtype)(x))

    def _inception(self, x: jax.Array, maps: Any) -> jax.Array:
        ones, reduce3, threes, reduce5, fives, projected = maps
        pooled = nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
        return jnp.concatenate(
            [
                self._conv(x, ones, 1),
                self._conv(self._conv(x, reduce3, 1), threes, 3),
                self._conv(self._conv(x, reduce5, 1), fives, 5),
                self._conv(pooled, projected, 1),
            ],
            axis=-1,
        )

    def _auxiliary(self, x: jax.Array, train: bool) -> jax.Array:
        x = self._conv(nn.avg_pool(x, (5, 5), strides=(3, 3)), 128, 1)
        x = nn.relu(nn.Dense(1024, dtype=self.dtype)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.7, deterministic=not train)(x)
        return nn.Dense(CLASSES, dtype=self.dtype)(x)


def model(arch: str, dtype: str) -> nn.Module | None:
    """The plain net of an architecture; None where there is none."""
    family, _, variant = arch.partition(":")
    if family == "resnet" and variant in RESNETS:
        return ResNet(RESNETS[variant], dtype)
    if family == "vgg" and variant in VGGS:
        return VGG(VGGS[variant], dtype)
    return {"alexnet:two_gpu": AlexNet(dtype), "googlenet:paper": GoogLeNet(dtype)}.get(arch)


def lower(net: nn.Module, batch: int, mesh: Mesh) -> Any:
    """The lowered training step of a plain net, from shapes alone."""
    replicated, sharded = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def laid_out(tree: Any) -> Any:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), tree
        )

    def init() -> Any:
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return net.init(keys, jnp.zeros((1, SIDE, SIDE, 3)), True)

    variables = jax.eval_shape(init)
    params, stats = laid_out(variables["params"]), laid_out(variables.get("batch_stats", {}))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))

    def step(state: Any, images: jax.Array, labels: jax.Array, seed: jax.Array) -> Any:
        params, stats, opt_state = state

        def loss(params: Any) -> Any:
            x = (images.astype(jnp.float32) - 120.0) / 60.0
            logits, new_stats = net.apply(
                {"params": params, "batch_stats": stats},
                x,
                True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(seed)},
            )
            entropy = optax.softmax_cross_entropy_with_integer_labels
            losses = [entropy(head.astype(jnp.float32), labels).mean() for head in logits]
            return sum(losses), new_stats.get("batch_stats", {})

        (total, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), new_stats, opt_state), total

    images = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 3), jnp.uint8, sharding=sharded)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=sharded)
    state = (params, stats, laid_out(jax.eval_shape(optimizer.init, params)))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=replicated)
    return jitted.lower(state, images, labels, np.int32(0))
