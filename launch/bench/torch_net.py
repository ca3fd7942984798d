"""A recorded network as PyTorch's: its own layers, maps laid out channels last."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from launch.bench.layer_graph import Graph, Node


def network(graph: Graph) -> Any:
    """A `torch.nn.Module`: images (B, c, h, w) -> logits; weights are drawn as He et al. did."""
    torch: Any = importlib.import_module("torch")
    freed = graph.last_used()

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [_layer(torch, graph, node) for node in graph.nodes]
            self.layers = torch.nn.ModuleList(layers)

        def forward(self, x: Any) -> Any:
            values = {0: x}
            for k, (node, layer) in enumerate(zip(graph.nodes, self.layers, strict=True)):
                x = layer(*(values[i] for i in node.inputs))
                for i in freed[k]:
                    del values[i]
                values[k + 1] = x
            return x

    net = Net()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return net.to(memory_format=torch.channels_last)


def _layer(torch: Any, graph: Graph, node: Node) -> Any:
    nn, o = torch.nn, node.options
    outputs = node.shape[-1]
    if node.op == "conv":
        sizes = (o["inputs"], outputs, o["size"], o["stride"], o["padding"])
        return nn.Conv2d(*sizes, groups=o["groups"], bias=o["bias"])
    if node.op == "fc":
        units = int(np.prod(o["inputs"]))
        return nn.Sequential(nn.Flatten(), nn.Linear(units, outputs))
    if node.op == "norm":
        return nn.BatchNorm2d(outputs, eps=o["epsilon"], momentum=0.1)
    if node.op == "lrn":  # torch divides alpha by the number of maps
        return nn.LocalResponseNorm(o["n"], alpha=o["alpha"] * o["n"], beta=o["beta"], k=o["k"])
    if node.op == "max_pool":
        return nn.MaxPool2d(o["size"], o["stride"], o["padding"], ceil_mode=o["ceil"])
    if node.op == "average_pool":
        ceil = {"ceil_mode": o["ceil"], "count_include_pad": False}
        return nn.AvgPool2d(o["size"], o["stride"], **ceil)
    if node.op == "global_pool":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if node.op == "dropout":
        return nn.Dropout(o["rate"])
    if node.op == "relu":
        used = sum(node.inputs[0] in other.inputs for other in graph.nodes)
        return nn.ReLU(inplace=used == 1)

    class Function(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, *inputs: Any) -> Any:
            return _apply(torch, node, inputs)

    return Function()


def _apply(torch: Any, node: Node, inputs: tuple[Any, ...]) -> Any:
    x, o = inputs[0], node.options
    if node.op == "tanh":
        return torch.tanh(x)
    if node.op == "scaled_tanh":
        return 1.7159 * torch.tanh(x * (2 / 3))
    if node.op == "add":
        return inputs[0] + inputs[1]
    if node.op == "concat":
        return torch.cat(inputs, dim=1)
    if node.op == "shortcut":
        x = x[:, :, :: o["stride"], :: o["stride"]]
        return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, o["outputs"] - x.shape[1]))
    raise AssertionError(node.op)
