"""A recorded network as a Keras functional model on TensorFlow, and how it is trained there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from launch.bench import timing
from launch.bench.layer_graph import Graph, Node
from launch.bench.step_case import DECAY, MOMENTUM, RATE, Case, Runner, made_up, most_resident
from launch.bench.timing import watch_of


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
        pad = (o["padding"], _short(node, x))  # so that all windows lie inside
        if any(pad):
            x = ops.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-np.inf)
        return layers.MaxPooling2D(o["size"], o["stride"])(x)
    if node.op == "average_pool":
        if o["ceil"] and _short(node, x):
            raise ValueError(f"{node.name}: Keras has no average of windows beyond the border")
        return layers.AveragePooling2D(o["size"], o["stride"])(x)
    if node.op == "global_pool":
        return layers.GlobalAveragePooling2D()(x)
    if node.op == "dropout":
        x = layers.Dropout(o["rate"])(x)
        return x if o["factor"] == 1 else x * o["factor"]
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
    """A convolution, its groups one by one: on a CPU TensorFlow has no gradient of groups."""
    layers, o = keras.layers, node.options
    size, padding, groups = o["size"], o["padding"], o["groups"]
    border = "valid"
    if padding and o["stride"] == 1 and size == 2 * padding + 1:
        border = "same"
    elif padding:
        x = layers.ZeroPadding2D(padding)(x)
    parts = keras.ops.split(x, groups, axis=-1) if groups > 1 else [x]
    maps = [
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
    return layers.Concatenate()(maps) if groups > 1 else maps[0]


def _short(node: Node, x: Any) -> int:
    """How far, in pixels, the last window reaches beyond the map and its padding."""
    o = node.options
    reach = (node.shape[0] - 1) * o["stride"] + o["size"]
    return max(0, reach - x.shape[1] - o.get("padding", 0))


def _response_norm(keras: Any, o: dict[str, Any]) -> Any:
    """The layer; where Keras runs on TensorFlow, with TensorFlow's own function."""
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


class Keras(Runner):
    """Keras on TensorFlow, the faster of two steps: `train_on_batch` of a compiled model, with
    `jit_compile` as Keras chooses it, and a `tf.function` with a gradient tape.
    """

    def __init__(self, case: Case, graph: Graph | None, platform: str, threads: int):
        assert graph is not None
        tf: Any = importlib.import_module("tensorflow")
        keras: Any = importlib.import_module("keras")
        gpus = tf.config.list_physical_devices("GPU")
        if platform != "cpu" and not gpus:
            raise RuntimeError(f"this TensorFlow ({tf.__version__}) finds no GPU")
        if platform == "cpu":
            tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        keras.utils.set_random_seed(0)
        is_bfloat16 = case.dtype == "bfloat16"
        keras.config.set_dtype_policy("mixed_bfloat16" if is_bfloat16 else "float32")
        self.tf, self.keras, self.case, self.cpu = tf, keras, case, platform == "cpu"
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        self.device = "cpu" if self.cpu else details.get("device_name", "gpu")
        self.before = most_resident()
        self.model = network(graph)
        self.params = sum(int(np.prod(v.shape)) for v in self.model.trainable_weights)
        images, labels = made_up(case)
        self.x, self.y = tf.constant(images), tf.constant(labels)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.model.compile(optimizer=optimizer, loss=self.loss)
        ways = {"train_on_batch": self._on_batch, "tf.function": self._function(optimizer)}
        self._choose(ways, platform)

    def _choose(self, ways: dict[str, Callable[[int], None]], platform: str) -> None:
        """Chooses the faster way, and says in `doubt` why another may be faster."""
        subjects = {}
        for name, steps in ways.items():
            steps(2)
            subjects[name] = partial(timing.timed, steps, 1, lambda: watch_of(platform))
        measured, _ = timing.in_turns(subjects, 1, lambda title: None)
        if doubts := [f"{name}: {s.doubt}" for name, s in measured.items() if s.doubt]:
            self.doubt = f"which of its steps is faster is not known: {'; '.join(doubts)}"
        seconds = {name: 1 / s.bursts[0].rate for name, s in measured.items()}
        best = min(seconds, key=lambda name: seconds[name])
        self._fastest = ways[best]
        times = ", ".join(f"{name} {s * 1e3:.0f} ms" for name, s in seconds.items())
        self.note = f"{best} (a step by {times}; jit_compile {self.model.jit_compile})"

    def _on_batch(self, number: int) -> None:
        for _ in range(number):
            self.model.train_on_batch(self.x, self.y)

    def _function(self, optimizer: Any) -> Any:
        tf, model = self.tf, self.model

        @tf.function
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.loss(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        def steps(number: int) -> None:
            for _ in range(number):
                loss = step(self.x, self.y)
            loss.numpy()

        return steps

    def steps(self, number: int) -> None:
        self._fastest(number)

    def peak_bytes(self) -> int | None:
        return (
            None if self.cpu else int(self.tf.config.experimental.get_memory_info("GPU:0")["peak"])
        )
