from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import flat_state
from cnn_arch.census import census
from cnn_arch.googlenet import GridAveragePool
from cnn_arch.registry import NoKeys
from tests.cnn_arch.reference import rows

CLASSES = 5


def small(variant="paper", seed=0, **options):
    options = {"width": 1 / 16, "classes": CLASSES, "image_size": 64, **options}
    return cnn_arch.create(f"googlenet:{variant}", rngs=nnx.Rngs(seed), **options)


def images(n, size):
    return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


def targets(n):
    return np.random.default_rng(1).dirichlet(np.ones(CLASSES), size=n).astype(np.float32)


OURS = {"conv2": ("conv2_reduce", "conv2"), "avgpool": ("pool5",), "linear": ("fc",)}


def layers_of(row, layers):
    """Our layers that one row of Table 1 stands for."""
    name = row["row"]
    names = OURS.get(name, (f"inception{name}",) if row["type"] == "inception" else (name,))
    return [layer for layer in layers if layer.name.split("/")[0] in names]


def test_layers_equal_table_1():
    layers = census("googlenet").layers
    checked = []
    for row in rows("googlenet_table1.csv"):
        ours = layers_of(row, layers)
        if row["row"] in ("dropout", "softmax"):
            continue
        checked += ours
        shape = tuple(map(int, row["output_size"].split("x")))
        assert ours[-1].output_shape == (shape if len(ours[-1].output_shape) == 3 else shape[2:])
        assert sum(layer.params for layer in ours) == int(row["params_computed"] or 0), row["row"]
        assert sum(layer.macs for layer in ours) == int(row["macs_computed"] or 0), row["row"]
        if row["patch_stride"] and row["row"] != "avgpool":
            kernel, stride = row["patch_stride"].split("/")
            assert (ours[-1].kernel, ours[-1].stride) == (int(kernel.split("x")[0]), int(stride))
        if row["type"] == "inception":
            columns = ("n1x1", "n3x3_reduce", "n3x3", "n5x5_reduce", "n5x5", "pool_proj")
            convolutions = [layer for layer in ours if layer.kind == "conv"]
            assert [c.output_shape[2] for c in convolutions] == [int(row[c]) for c in columns]
            assert [c.kernel for c in convolutions] == [1, 1, 3, 1, 5, 1]
    assert [layer.name for layer in layers if layer not in checked] == ["lrn1", "lrn2"]


def test_multiply_adds_are_those_the_paper_printed():
    layers = census("googlenet").layers
    for row in rows("googlenet_table1.csv"):
        # Misprints: by the table's own columns conv1 has 118M and 5a has 51M.
        if row["ops_printed"] and row["row"] not in ("conv1", "5a"):
            millions = sum(layer.macs for layer in layers_of(row, layers)) / 1e6
            assert abs(int(row["ops_printed"].removesuffix("M")) - millions) < 1, row["row"]


def test_depth_is_the_sum_of_the_column_depth():
    depths = [int(row["depth"]) for row in rows("googlenet_table1.csv")]
    assert census("googlenet").depth == sum(depths) == 22


def test_normalisation_is_after_the_first_pooling_and_before_the_second():
    names = [row.name.removesuffix("/conv") for row in census("googlenet").layers]
    start = ["conv1", "pool1", "lrn1", "conv2_reduce", "conv2", "lrn2", "pool2"]
    assert names[:7] == start
    without = [row.name.removesuffix("/conv") for row in census("googlenet", lrn="none").layers]
    assert without == [name for name in names if not name.startswith("lrn")]


def test_totals_equal_the_tables():
    totals = {row["config"]: row for row in rows("computed_params.csv")}
    result = census("googlenet")
    assert result.name == "googlenet:paper"
    alone = totals["GoogLeNet (no aux; biases; no BN)"]
    assert (result.params, result.macs) == (int(alone["params"]), int(alone["macs"]))
    heads = int(totals["GoogLeNet with both aux heads"]["params"])
    assert result.training_params == heads
    assert census("googlenet", auxiliary=False).training_params == result.params


def test_torchvision_net_has_its_published_number_of_parameters():
    # num_params of GoogLeNet_Weights, and of googlenet(aux_logits=True); 1.498 GMAC there.
    result = census("googlenet:torchvision")
    assert result.params == 6624904
    assert result.training_params == 13004888
    assert round(result.macs / 1e9, 3) == 1.498


def called_in_training(name, **options):
    """(layer, first input, output) of every layer that `losses` calls, by name, for two images."""
    calls = {}

    class Table(cnn_arch.Tape):
        def note(self, name, layer, inputs, output):
            calls[name] = (layer, inputs[0], output)

    def losses(key):
        net = cnn_arch.create(name, rngs=NoKeys(), **options)
        x = jnp.zeros((2, net.image_size, net.image_size, 3))
        return net.losses(x, jnp.zeros((2, 1000)), rngs=nnx.Rngs(dropout=key), tape=Table())

    losses, logits = jax.eval_shape(losses, jax.random.key(0))
    assert (losses.shape, logits.shape) == ((2,), (2, 1000))
    return calls


def test_auxiliary_classifiers_equal_the_paper():
    calls = called_in_training("googlenet")
    names = {"avgpool": "pool", "conv": "conv/conv"}
    for row in rows("googlenet_aux_layers.csv"):
        head = "auxiliary" + row["config"][3]
        layer, x, y = calls[f"{head}/{names.get(row['name'], row['name'])}"]
        assert y.shape[-1] == int(row["out_ch"])
        if row["kind"] in ("avgpool", "conv"):
            assert x.shape[-1] == int(row["in_ch"])
            assert y.shape[1:3] == (int(row["out_size"]),) * 2
            window = layer.window(x.shape)
            assert (window.kernel, window.stride) == (int(row["kernel"]), int(row["stride"]))
        if row["macs"]:
            params = jax.tree.leaves(nnx.state(layer, nnx.Param))
            assert sum(p.size for p in params) == int(row["weights_and_biases"])
            assert layer.macs(y.shape) == int(row["macs"])
        if row["kind"].startswith("dropout"):
            assert layer.rate == float(row["kind"].split()[1])
    assert calls["dropout"][0].rate == 0.4
    assert calls["auxiliary1"][1].shape == (2, 14, 14, 512)
    assert calls["auxiliary2"][1].shape == (2, 14, 14, 528)


def cross_entropy(logits, y):
    return -(y * jax.nn.log_softmax(logits)).sum(1)


def test_training_adds_the_weighted_losses_of_classifiers_of_4a_and_4d():
    net = small(dropout=0.0, aux_dropout=0.0)
    x, y = images(2, 64), targets(2)

    @jax.jit
    def terms(net):
        losses, logits = net.losses(x, y)
        maps = net.endpoints(x)
        tape = cnn_arch.Tape()
        first = net.auxiliary1(tape, maps["inception4a"])
        second = net.auxiliary2(tape, maps["inception4d"])
        return losses, *(cross_entropy(z, y) for z in (maps["logits"], first, second)), logits

    losses, main, first, second, logits = terms(net)
    np.testing.assert_allclose(losses, main + 0.3 * (first + second), rtol=1e-5)
    np.testing.assert_allclose(cross_entropy(logits, y), main, rtol=1e-5)


def test_auxiliary_losses_have_gradients_in_themselves_and_the_layers_below():
    net = small(aux_weight=1.0, dropout=0.0, aux_dropout=0.0)
    graph, params = nnx.split(net)

    def auxiliary_loss(params):
        y = targets(2)
        losses, logits = nnx.merge(graph, params).losses(images(2, 64), y)
        return (losses - cross_entropy(logits, y)).mean()

    # Optimised, it would take several times longer to compile.
    quickly = {"xla_backend_optimization_level": 0}
    gradient = flat_state(jax.jit(jax.grad(auxiliary_loss), compiler_options=quickly)(params))
    sizes = {}
    for name, values in gradient.items():
        layer = name.split("/")[0]
        sizes[layer] = max(sizes.get(layer, 0), float(np.abs(values).max()))
    above = {"inception4e", "inception5a", "inception5b", "fc"}
    assert {layer for layer, size in sizes.items() if size < 1e-6} == above
    assert all(sizes[layer] > 1e-3 for layer in sizes.keys() - above)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_loss_in_eval_mode_is_that_of_the_main_classifier(auxiliary):
    net = small(auxiliary=auxiliary, dropout=0.0, **({"aux_dropout": 0.0} if auxiliary else {}))
    x, y = images(2, 64), targets(2)
    both = jax.jit(lambda net: (*net.losses(x, y), net(x)))
    in_training, _, _ = both(net)
    net.eval()
    losses, logits, called = both(net)
    np.testing.assert_array_equal(logits, called)
    np.testing.assert_allclose(losses, cross_entropy(logits, y), rtol=1e-6)
    if auxiliary:
        # Each head adds 0.3 times a cross-entropy of about ln(5) or more.
        assert np.all(in_training > losses + 0.3)
    else:
        np.testing.assert_allclose(in_training, losses, rtol=1e-6)


def test_every_dropout_draws_from_the_given_rngs():
    net = small(dropout=0.4, aux_dropout=0.7)
    losses = jax.jit(
        lambda net, key: net.losses(images(2, 64), targets(2), rngs=nnx.Rngs(dropout=key))
    )
    keys = [jax.random.key(seed) for seed in (1, 1, 2)]
    (first, logits), (again, _), (reseeded, reseeded_logits) = (losses(net, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, reseeded)
    assert not np.allclose(logits, reseeded_logits)
    net.dropout.rate = 0.0
    (first, logits), _, (reseeded, reseeded_logits) = (losses(net, key) for key in keys)
    np.testing.assert_array_equal(logits, reseeded_logits)
    assert not np.allclose(first, reseeded)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (14, [range(4), range(3, 7), range(7, 11), range(10, 14)]),
        (8, [range(2), range(2, 4), range(4, 6), range(6, 8)]),
        (5, [range(2), range(1, 3), range(2, 4), range(3, 5)]),
        (2, [range(1), range(1), range(1, 2), range(1, 2)]),
    ],
)
def test_grid_pooling_has_the_documented_windows(size, expected):
    x = images(2, size)
    y = np.asarray(jax.jit(GridAveragePool(4))(x))
    assert y.shape == (2, 4, 4, 3)
    for i, j in np.ndindex(4, 4):
        window = x[:, expected[i]][:, :, expected[j]]
        np.testing.assert_allclose(y[:, i, j], window.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "side"), [(32, 1), (96, 1), (128, 2), (224, 4)])
def test_auxiliary_classifiers_fit_smaller_images(size, side):
    calls = called_in_training("googlenet", image_size=size, width=1 / 16)
    for head in ("auxiliary1", "auxiliary2"):
        assert calls[f"{head}/pool"][2].shape[1:3] == (side, side)
        assert calls[f"{head}/fc2"][2].shape == (2, 1000)


def test_batch_normalisation_replaces_biases_and_comes_before_the_relu():
    result = census("googlenet", batch_norm=True)
    assert {row.kind for row in result.layers if "branch1/" in row.name} == {"conv", "norm"}
    scales = sum(row.params for row in result.layers if row.kind == "norm")
    assert result.params == census("googlenet").params + scales // 2
    net = small(batch_norm=True)
    net.eval()
    endpoints = jax.jit(net.endpoints)(images(1, 64))
    module = "inception3a/branch2"
    assert np.any(endpoints[f"{module}/norm"] < 0)
    np.testing.assert_array_equal(
        endpoints[f"{module}/relu"], np.maximum(endpoints[f"{module}/norm"], 0)
    )


# The same networks in PyTorch, with torchvision's names.


def torch_network(variant, net, batch_norm, lrn=(2, 1e-4)):
    """Only the numbers of maps are taken from `net`. lrn: (k, alpha), not divided by n."""
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional

    torchvision = variant == "torchvision"
    shapes = {name: v.shape for name, v in flat_state(nnx.state(net, nnx.Param)).items()}

    class Unit(nn.Module):
        def __init__(self, name, **options):
            super().__init__()
            size, _, inputs, outputs = shapes[f"{name}/conv/kernel"]
            self.conv = nn.Conv2d(
                inputs, outputs, size, padding=size // 2, bias=not batch_norm, **options
            )
            self.bn = nn.BatchNorm2d(outputs, eps=1e-3) if batch_norm else nn.Identity()

        def forward(self, x):
            return functional.relu(self.bn(self.conv(x)))

    class Inception(nn.Module):
        def __init__(self, name):
            super().__init__()
            unit = [Unit(f"{name}/{branch}") for branch in BRANCHES]
            assert unit[2].conv.kernel_size[0] == 3
            assert unit[4].conv.kernel_size[0] == (3 if torchvision else 5)
            self.branch1 = unit[0]
            self.branch2 = nn.Sequential(unit[1], unit[2])
            self.branch3 = nn.Sequential(unit[3], unit[4])
            self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit[5])

        def forward(self, x):
            return torch.cat(
                [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1
            )

    class Auxiliary(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.conv = Unit(f"{name}/conv")
            self.fc1 = nn.Linear(*shapes[f"{name}/fc1/kernel"])
            self.fc2 = nn.Linear(*shapes[f"{name}/fc2/kernel"])

        def forward(self, x):
            if torchvision:
                x = functional.adaptive_avg_pool2d(x, (4, 4))
            else:
                x = functional.avg_pool2d(x, 5, 3)
            x = torch.flatten(self.conv(x), 1)
            return self.fc2(functional.relu(self.fc1(x)))

    class GoogLeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = Unit("conv1", stride=2)
            self.conv2, self.conv3 = Unit("conv2_reduce"), Unit("conv2")
            for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
                setattr(self, f"inception{name}", Inception(f"inception{name}"))
            self.aux1, self.aux2 = Auxiliary("auxiliary1"), Auxiliary("auxiliary2")
            self.fc = nn.Linear(*shapes["fc/kernel"])

        def norm(self, x):
            """AlexNet's formula; PyTorch's own divides alpha by n."""
            if torchvision:
                return x
            places = torch.arange(x.shape[1])
            near = ((places[:, None] - places).abs() <= 2).to(x.dtype)
            return x / (lrn[0] + lrn[1] * torch.einsum("ij,bjhw->bihw", near, x**2)) ** 0.75

        def forward(self, x):
            pool = partial(functional.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
            x = self.norm(pool(self.conv1(x)))
            x = pool(self.norm(self.conv3(self.conv2(x))))
            x = pool(self.inception3b(self.inception3a(x)))
            x = self.inception4a(x)
            first = self.aux1(x)
            x = self.inception4d(self.inception4c(self.inception4b(x)))
            second = self.aux2(x)
            x = self.inception4e(x)
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True) if torchvision else pool(x)
            x = self.inception5b(self.inception5a(x))
            return self.fc(x.mean((2, 3))), first, second

    return GoogLeNet()


BRANCHES = {
    "branch1": "branch1",
    "branch2_reduce": "branch2.0",
    "branch2": "branch2.1",
    "branch3_reduce": "branch3.0",
    "branch3": "branch3.1",
    "branch4": "branch4.1",
}
MODULES = {
    "conv2_reduce": "conv2",
    "conv2": "conv3",
    "auxiliary1": "aux1",
    "auxiliary2": "aux2",
    "norm": "bn",
    **BRANCHES,
}
VALUES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def as_torch(net, name, values):
    """(PyTorch's name, values in its layout) of one of our values."""
    *modules, kind = name.split("/")
    values = np.asarray(values)
    if kind == "kernel" and modules[-1] == "conv":
        values = values.transpose(3, 2, 0, 1)
    elif kind == "kernel":
        layer = net
        for module in modules:
            layer = getattr(layer, module)
        values = values.reshape(*layer.map_shape, -1)
        values = values.transpose(3, 2, 0, 1).reshape(values.shape[-1], -1)
    return ".".join([*(MODULES.get(m, m) for m in modules), VALUES.get(kind, kind)]), values


def with_random_biases_and_statistics(net, bias):
    """Biases of about `bias`."""
    rng = np.random.default_rng(2)
    for path, variable in nnx.to_flat_state(nnx.state(net)):
        shape = variable.get_value().shape
        if path[-1] == "bias":
            new = bias * rng.normal(1, 0.5, size=shape)
        elif path[-1] == "mean":
            new = rng.normal(scale=0.3, size=shape)
        elif path[-1] in ("scale", "var"):
            new = rng.uniform(0.5, 1.5, size=shape)
        else:
            continue
        variable.set_value(jnp.asarray(new, jnp.float32))
        nnx.update(net, nnx.from_flat_state([(path, variable)]))
    return net


def peer_of(net, variant, batch_norm):
    """The same network with the same values, in float64 and in the same mode."""
    import torch

    peer = torch_network(variant, net, batch_norm).double().train(not net.dropout.deterministic)
    places = {**dict(peer.named_parameters()), **dict(peer.named_buffers())}
    with torch.no_grad():
        for name, values in flat_state(nnx.state(net)).items():
            theirs, values = as_torch(net, name, values)
            places.pop(theirs).copy_(torch.tensor(values, dtype=torch.float64))
    assert all(name.endswith("num_batches_tracked") for name in places)
    return peer


def peers_losses(peer, x, y):
    """(losses, main logits), the losses with 0.3 of each auxiliary one in train mode."""
    import torch

    outputs = peer(torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2))
    y = torch.tensor(y, dtype=torch.float64)
    main, first, second = (-(y * torch.log_softmax(logits, 1)).sum(1) for logits in outputs)
    return main + 0.3 * (first + second) if peer.training else main, outputs[0]


def assert_equal(ours, theirs, case):
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0, case
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max(), case


@pytest.mark.peers
@pytest.mark.parametrize(
    ("variant", "batch_norm", "size"),
    [("paper", False, 128), ("paper", True, 80), ("torchvision", True, 80)],
)
def test_losses_logits_and_gradients_equal_pytorch(variant, batch_norm, size):
    pytest.importorskip("torch")
    # One image, and a seed with which no branch is dead: gradients show it where rounding lets
    # another input pass a ReLU or a pooling, and with more positions that is sure to happen.
    x, y = images(1, size), targets(1)
    options = {"image_size": size, "batch_norm": batch_norm, "width": 1 / 8}
    net = small(variant, seed=4, dropout=0.0, aux_dropout=0.0, **options)
    if batch_norm:
        with_random_biases_and_statistics(net, 0.5)
        net.eval()
    else:
        # Large activations, so that local response normalisation depends on more than its k.
        x *= 30
        with_random_biases_and_statistics(net, 10.0)
    peer = peer_of(net, variant, batch_norm)
    expected_losses, expected_logits = peers_losses(peer, x, y)
    expected_losses.mean().backward()

    graph, params, statistics = nnx.split(net, nnx.Param, nnx.BatchStat)

    def mean_loss(params):
        losses, logits = nnx.merge(graph, params, statistics).losses(x, y)
        return losses.mean(), (losses, logits)

    # Optimised, it would take several times longer to compile.
    quickly = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(jax.grad(mean_loss, has_aux=True), compiler_options=quickly)
    gradient, (losses, logits) = compiled(params)

    assert_equal(logits, expected_logits, "logits")
    assert_equal(losses, expected_losses, "losses")
    expected = dict(peer.named_parameters())
    for name, values in flat_state(gradient).items():
        theirs, values = as_torch(net, name, values)
        if name.startswith("auxiliary") and not peer.training:
            assert not np.any(values), name
        else:
            assert_equal(values, expected[theirs].grad, name)


@pytest.mark.peers
@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_losses_and_statistics_of_a_training_step_equal_pytorch(variant):
    pytest.importorskip("torch")
    options = {"image_size": 80, "batch_norm": True, "width": 1 / 8}
    net = small(variant, dropout=0.0, aux_dropout=0.0, **options)
    with_random_biases_and_statistics(net, 0.5)
    x, y = images(4, 80), targets(4)
    peer = peer_of(net, variant, batch_norm=True)
    expected_losses, expected_logits = peers_losses(peer, x, y)

    graph, state = nnx.split(net)

    @jax.jit
    def step(state):
        net = nnx.merge(graph, state)
        return net.losses(x, y), nnx.state(net, nnx.BatchStat)

    (losses, logits), statistics = step(state)
    assert_equal(logits, expected_logits, "logits")
    assert_equal(losses, expected_losses, "losses")
    expected = dict(peer.named_buffers())
    for name, values in flat_state(statistics).items():
        theirs, values = as_torch(net, name, values)
        assert_equal(values, expected[theirs], name)
