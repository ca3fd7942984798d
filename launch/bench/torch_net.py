"""A recorded network as PyTorch's, with its own layers, and how it is trained there."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from launch.bench import step_case
from launch.bench.layer_graph import Graph, Node
from launch.bench.step_case import Case, Peak, Runner, most_resident


def network(graph: Graph) -> Any:
    """A `torch.nn.Module`: images (B, c, h, w) -> logits; weights are drawn as He et al. did."""
    torch: Any = importlib.import_module("torch")
    unneeded = graph.last_used()

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [_layer(torch, graph, node) for node in graph.nodes]
            self.layers = torch.nn.ModuleList(layers)

        def forward(self, x: Any) -> Any:
            values = {0: x}
            for k, (node, layer) in enumerate(zip(graph.nodes, self.layers, strict=True)):
                x = layer(*(values[i] for i in node.inputs))
                for i in unneeded[k]:
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
        dropout, factor = nn.Dropout(o["rate"]), o["factor"]
        scaled = _module(torch, lambda x: x * factor)
        return dropout if factor == 1 else nn.Sequential(dropout, scaled)
    if node.op == "relu":
        reads = sum(node.inputs[0] in reader.inputs for reader in graph.nodes)
        return nn.ReLU(inplace=reads == 1)

    functions = {
        "tanh": torch.tanh,
        "scaled_tanh": lambda x: 1.7159 * torch.tanh(x * (2 / 3)),
        "add": lambda x, y: x + y,
        "concat": lambda *maps: torch.cat(maps, dim=1),
        "shortcut": lambda x: nn.functional.pad(
            x[:, :, :: o["stride"], :: o["stride"]], (0, 0, 0, 0, 0, o["outputs"] - x.shape[1])
        ),
    }
    return _module(torch, functions[node.op])


def _module(torch: Any, function: Callable[..., Any]) -> Any:
    class Function(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    return Function()


class Torch(Runner):
    """PyTorch: maps channels last, its own SGD in one fused kernel, autocast for bfloat16."""

    def __init__(
        self, case: Case, graph: Graph | None, platform: str, threads: int, *, compiled: bool
    ):
        assert graph is not None
        torch: Any = importlib.import_module("torch")
        if platform != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"this PyTorch ({torch.__version__}) finds no GPU")
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.case = torch, case
        self.place = "cpu" if platform == "cpu" else "cuda"
        self.device = "cpu" if platform == "cpu" else torch.cuda.get_device_name()
        if self.place == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does
        self.before = most_resident()
        net = network(graph).to(self.place)
        self.params = sum(parameter.numel() for parameter in net.parameters())
        kernels = [p for p in net.parameters() if p.ndim > 1]
        vectors = [p for p in net.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": step_case.DECAY}, {"params": vectors}]
        self.optimizer = torch.optim.SGD(
            groups, lr=step_case.RATE, momentum=step_case.MOMENTUM, fused=True
        )
        images, labels = step_case.made_up(case)
        x = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(self.place)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.from_numpy(labels.astype(np.int64)).to(self.place)
        self.net: Any = torch.compile(net) if compiled else net
        self.note = f"{threads} threads"
        self.peaks = {"product": self._product}

    def steps(self, number: int) -> None:
        torch = self.torch
        for _ in range(number):
            is_bfloat16 = self.case.dtype == "bfloat16"
            with torch.autocast(self.place, torch.bfloat16, enabled=is_bfloat16):
                logits = self.net(self.x)
            loss = torch.nn.functional.cross_entropy(logits.float(), self.y)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        loss.item()

    def peak_bytes(self) -> int | None:
        return None if self.place == "cpu" else int(self.torch.cuda.max_memory_allocated())

    def _product(self) -> Peak:
        torch = self.torch
        side = step_case.SIDE["cpu" if self.place == "cpu" else "elsewhere"]
        a = torch.randn(side, side, device=self.place, dtype=getattr(torch, self.case.dtype))

        def once() -> None:
            torch.matmul(a, a)
            if self.place == "cuda":
                torch.cuda.synchronize()

        return step_case.peak(once, 2 * side**3, self.place)


class TorchForward(Torch):
    """PyTorch's forward pass in eval mode; frozen, it folds normalisations and merges ReLUs."""

    def __init__(
        self, case: Case, graph: Graph | None, platform: str, threads: int, *, frozen: bool
    ):
        super().__init__(case, graph, platform, threads, compiled=False)
        jit = self.torch.jit
        self.net.eval()
        if frozen:
            with self.torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
                self.net = jit.optimize_for_inference(jit.freeze(jit.trace(self.net, self.x)))

    def steps(self, number: int) -> None:
        torch, is_bfloat16 = self.torch, self.case.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.place, torch.bfloat16, is_bfloat16):
            for _ in range(number):
                logits = self.net(self.x)
            torch.nn.functional.log_softmax(logits.float(), dim=1).sum().item()
