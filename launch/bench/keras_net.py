"""A recorded network as a Keras functional model, for its TensorFlow backend."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from launch.bench.layer_graph import Graph, Node


def network(graph: Graph) -> Any:
    """A `keras.Model`: images (B, h, w, c) -> logits, float32; kernels are drawn as He's."""
    keras: Any = importlib.import_module("keras")
    images = keras.Input(graph.image_shape)
    values = [images]
    for node in graph.nodes:
        values.append(_call(keras, node, [values[i] for i in node.inputs]))
    logits = keras.layers.Activation("linear", dtype="float32")(values[-1])
    return keras.Model(images, logits)


def _name(node: Node, group: int | None = None) -> str:
    """Keras takes no slashes in names."""
    name = node.name.replace("/", ".")
    return name if group is None else f"{name}.{group}"


def _call(keras: Any, node: Node, inputs: list[Any]) -> Any:
    layers, ops, o = keras.layers, keras.ops, node.options
    x, name = inputs[0], _name(node)
    if node.op == "conv":
        return _convolution(keras, node, x)
    if node.op == "fc":
        x = layers.Flatten()(x) if len(x.shape) == 4 else x
        return layers.Dense(node.shape[-1], kernel_initializer="he_normal", name=name)(x)
    if node.op == "norm":
        return layers.BatchNormalization(momentum=0.9, epsilon=o["epsilon"], name=name)(x)
    if node.op == "lrn":
        return _response_norm(keras, o)(x)
    if node.op == "max_pool":
        lowest = {"constant_values": -np.inf}
        return layers.MaxPooling2D(o["size"], o["stride"])(_reach(ops, node, x, lowest))
    if node.op == "average_pool":
        if o["ceil"] and _short(node, x):
            raise ValueError(f"{node.name}: Keras has no average of windows beyond the border")
        return layers.AveragePooling2D(o["size"], o["stride"])(x)
    if node.op == "global_pool":
        return layers.GlobalAveragePooling2D()(x)
    if node.op == "dropout":
        return layers.Dropout(o["rate"])(x)
    if node.op in ("relu", "tanh"):
        return layers.Activation(node.op)(x)
    if node.op == "scaled_tanh":
        return 1.7159 * ops.tanh(x * (2 / 3))
    if node.op == "add":
        return layers.Add()(inputs)
    if node.op == "concat":
        return layers.Concatenate()(inputs)
    if node.op == "shortcut":
        x = x[:, :: o["stride"], :: o["stride"]]
        return ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, o["outputs"] - x.shape[-1])))
    raise AssertionError(node.op)


def _convolution(keras: Any, node: Node, x: Any) -> Any:
    """Groups one by one: TensorFlow has no gradient of grouped convolutions on CPU."""
    layers, o = keras.layers, node.options
    size, padding, groups = o["size"], o["padding"], o["groups"]
    border = "valid"
    if padding and o["stride"] == 1 and size == 2 * padding + 1:
        border = "same"
    elif padding:
        x = layers.ZeroPadding2D(padding)(x)
    parts = keras.ops.split(x, groups, axis=-1) if groups > 1 else [x]
    made = [
        layers.Conv2D(
            node.shape[-1] // groups,
            size,
            o["stride"],
            padding=border,
            use_bias=o["bias"],
            kernel_initializer="he_normal",
            name=_name(node, group if groups > 1 else None),
        )(part)
        for group, part in enumerate(parts)
    ]
    return layers.Concatenate()(made) if groups > 1 else made[0]


def _short(node: Node, x: Any) -> int:
    """By how much the last window reaches beyond the map and its padding on the far side."""
    o = node.options
    reach = (node.shape[0] - 1) * o["stride"] + o["size"]
    return max(0, reach - x.shape[1] - o.get("padding", 0))


def _reach(ops: Any, node: Node, x: Any, value: dict[str, float]) -> Any:
    """Pads a map so that all windows of a pooling lie inside."""
    side = (node.options["padding"], _short(node, x))
    return ops.pad(x, ((0, 0), side, side, (0, 0)), **value) if any(side) else x


def _response_norm(keras: Any, o: dict[str, Any]) -> Any:
    """TensorFlow's own, where Keras runs on it, as its users would take it."""
    reach, ops = o["n"] // 2, keras.ops

    class ResponseNorm(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            if keras.backend.backend() == "tensorflow":
                tensorflow: Any = importlib.import_module("tensorflow")
                return tensorflow.nn.local_response_normalization(
                    x, depth_radius=reach, bias=o["k"], alpha=o["alpha"], beta=o["beta"]
                )
            squares = ops.pad(ops.square(x), ((0, 0),) * 3 + ((reach, reach),))
            total = sum(squares[..., i : i + x.shape[-1]] for i in range(o["n"]))
            return x * ops.power(o["k"] + o["alpha"] * total, -o["beta"])

    return ResponseNorm()
