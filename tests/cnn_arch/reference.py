"""The same layers and networks again, in NumPy and SciPy, from the papers' formulas."""

import numpy as np
from scipy.signal import correlate


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
                norm = [p[f"{name}/norm/{what}"] for what in ("scale", "bias", "mean", "var")]
                x = batch_norm_eval(x, *norm)
            x = relu(x)
        if lrn and stage == 1:
            x = local_response_norm(x)
        x = max_pool_2x2(x)
    x = x.reshape(len(x), -1)
    x = relu(x @ p["fc6/kernel"] + p["fc6/bias"])
    x = relu(x @ p["fc7/kernel"] + p["fc7/bias"])
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
