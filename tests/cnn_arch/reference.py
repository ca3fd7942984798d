"""The same layers and networks again, in NumPy and SciPy, and the papers' tables of layers."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.signal import correlate

import cnn_arch
from cnn_arch import flat_state, unflat_state

PAPERS = Path(__file__).parents[2] / "experiments" / "papers"


def rows(file):
    """The lines of a paper's table."""
    with (PAPERS / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def moved(name, by=normal, **options):
    """A network whose every parameter is moved, biases too, and its parameters by name."""
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), **options)
    state = nnx.state(net, nnx.Param)
    values = {
        name: jnp.asarray(value + 0.2 * by(*value.shape, seed=i))
        for i, (name, value) in enumerate(flat_state(state).items())
    }
    nnx.update(net, unflat_state(values, state))
    return net, {name: np.asarray(value, np.float64) for name, value in values.items()}


def random_network(name, seed=0, spread=0.2, **options):
    """A network whose parameters and statistics are all random: scales above 0."""
    net = cnn_arch.create(name, rngs=nnx.Rngs(seed), **options)
    random = np.random.default_rng(seed)
    values = {
        key: jnp.asarray(
            random.uniform(0.5, 1.5, value.shape)
            if key.endswith(("scale", "var"))
            else random.normal(scale=spread, size=value.shape),
            jnp.float32,
        )
        for key, value in flat_state(nnx.state(net)).items()
    }
    nnx.update(net, unflat_state(values, nnx.state(net)))
    return net


@nnx.jit
def logits_of(net, x):
    return net(x)


def losses_and_gradient(net, x, targets):
    """(losses (B,), logits (B, classes), the gradient of the losses' sum by parameter name)."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    @jax.jit
    def differentiate(params):
        def total(params):
            merged = nnx.merge(graph, params, rest, copy=True)
            losses, logits = merged.losses(x, jnp.asarray(targets))
            return losses.sum(), (losses, logits)

        return jax.grad(total, has_aux=True)(params)

    gradient, (losses, logits) = differentiate(params)
    values = {name: np.asarray(value, np.float64) for name, value in flat_state(gradient).items()}
    return np.asarray(losses), np.asarray(logits), values


def conv(x, kernel, stride=1):
    """(B, H, W, C) * (k, k, C, F), zero padding k // 2, in float64."""
    pad = kernel.shape[0] // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = np.stack(
        [
            correlate(x, kernel[None, ..., f].astype(np.float64), mode="valid", method="direct")
            for f in range(kernel.shape[3])
        ],
        axis=-1,
    )[:, :, :, 0]
    return y[:, ::stride, ::stride]


def batch_norm_train(x, scale, bias, group_size=0):
    """Normalised groups, and the mean over groups of their means and unbiased variances."""
    groups = np.split(x, len(x) // (group_size or len(x)))
    means = [g.mean((0, 1, 2)) for g in groups]
    y = [
        (g - m) / np.sqrt(g.var((0, 1, 2)) + 1e-5) * scale + bias
        for g, m in zip(groups, means, strict=True)
    ]
    unbiased = [g.reshape(-1, g.shape[-1]).var(0, ddof=1) for g in groups]
    return np.concatenate(y), np.mean(means, 0), np.mean(unbiased, 0)


def batch_norm_eval(x, scale, bias, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def local_response_norm(x):
    """AlexNet, section 3.3: sum over maps max(0, i - 2) to min(N - 1, i + 2)."""
    y = np.empty_like(x)
    last = x.shape[-1] - 1
    for i in range(x.shape[-1]):
        total = sum(x[..., j] ** 2 for j in range(max(0, i - 2), min(last, i + 2) + 1))
        y[..., i] = x[..., i] / (2 + 1e-4 * total) ** 0.75
    return y


def max_pool_2x2(x):
    y = np.empty((x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return y


def relu(x):
    return np.maximum(x, 0)


def vgg(x, p, stages, *, lrn=False, batch_norm=False):
    """`stages`: number of convolutions in each; p: values by name, running statistics included."""
    for stage, count in enumerate(stages, start=1):
        for i in range(1, count + 1):
            name = f"conv{stage}_{i}"
            x = conv(x, p[f"{name}/conv/kernel"]) + p[f"{name}/conv/bias"]
            if batch_norm:
                norm = [p[f"{name}/norm/{key}"] for key in ("scale", "bias", "mean", "var")]
                x = batch_norm_eval(x, *norm)
            x = relu(x)
        if lrn and stage == 1:
            x = local_response_norm(x)
        x = max_pool_2x2(x)
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        x = relu(x @ p[f"{name}/kernel"] + p[f"{name}/bias"]) if f"{name}/kernel" in p else x
    return x @ p["fc8/kernel"] + p["fc8/bias"]


def cifar_net(x, p, blocks, *, residual, train, group_size=0):
    def unit(name, x, stride=1):
        x = conv(x, p[f"{name}/conv/kernel"], stride)
        scale, bias = p[f"{name}/norm/scale"], p[f"{name}/norm/bias"]
        if train:
            return batch_norm_train(x, scale, bias, group_size)[0]
        return batch_norm_eval(x, scale, bias, p[f"{name}/norm/mean"], p[f"{name}/norm/var"])

    x = relu(unit("conv1", x))
    for stage in (1, 2, 3):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}/block{block}"
            y = unit(f"{name}/conv2", relu(unit(f"{name}/conv1", x, stride)))
            if residual:
                identity = np.zeros_like(y)
                identity[..., : x.shape[-1]] = x[:, ::stride, ::stride]
                y = y + identity
            x = relu(y)
    return x.mean((1, 2)) @ p["fc/kernel"] + p["fc/bias"]
