"""Classifiers on given features: linear ones, and the nearest neighbours.

A linear head minimises, over weights (d, K) and biases (K,) of features x,

    logistic    1/2 |W|^2 + C sum_i  -log softmax(x_i W + b)[label_i]
    svm         1/2 |W|^2 + 1/2 |b|^2 + C sum_i sum_k max(0, 1 - y_ik (x_i W + b)_k)^2

with y_ik = 1 where image i is of class k and -1 elsewhere: scikit-learn's LogisticRegression and
LinearSVC (one class against the rest), which solve them. Where images may be of several classes,
each class is learnt for itself from the images that count for it, and `logistic` is binary.

Features that do not fit in memory are learnt from chunk by chunk, on the device, by L-BFGS on the
same sums.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["svm", "logistic", "knn"]
# The strengths that are tried: C of linear heads, k of the neighbours.
GRID: dict[str, tuple[float, ...]] = {
    "svm": (0.01, 0.1, 1.0, 10.0, 100.0),
    "logistic": (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    "knn": (1, 3, 5, 10, 20, 50),
}
CHUNK = 4096  # images that are on the device at once
MOST_ITERATIONS = 2000
_BATCH = 1024  # images whose neighbours are looked for at once


class Rows:
    """Rows of features (n, d), which are read from `x` and prepared when they are indexed."""

    def __init__(
        self, x: np.ndarray, rows: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray]
    ):
        self._x, self._rows, self._prepare = x, rows, prepare
        self.shape = (len(rows), x.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, places: slice) -> np.ndarray:
        return self._prepare(np.asarray(self._x[self._rows[places]], np.float32))


class Head(Protocol):
    """A fitted classifier."""

    def scores(self, x: np.ndarray | Rows) -> np.ndarray:
        """Features (n, d) -> scores (n, K) float64, the higher the likelier."""


@dataclass(frozen=True)
class Linear:
    """x -> x W + b."""

    weights: np.ndarray  # (d, K) float64
    bias: np.ndarray  # (K,)

    def scores(self, x: np.ndarray | Rows) -> np.ndarray:
        parts = [x[at : at + CHUNK] @ self.weights for at in range(0, len(x), CHUNK)]
        return np.concatenate([np.zeros((0, len(self.bias))), *parts]) + self.bias


@dataclass(frozen=True)
class Neighbours:
    """Of each class the share among the k nearest training images, by Euclidean distance."""

    x: np.ndarray  # (n, d) of training images
    targets: np.ndarray  # (n, K) bool: the classes of each
    k: int

    def scores(self, x: np.ndarray | Rows) -> np.ndarray:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=min(self.k, len(self.x)), algorithm="brute")
        index.fit(self.x)
        parts = [np.zeros((0, self.targets.shape[1]))]
        for at in range(0, len(x), _BATCH):
            nearest = index.kneighbors(x[at : at + _BATCH], return_distance=False)
            parts.append(self.targets[nearest].mean(axis=1))
        return np.concatenate(parts)


def fit(
    kind: Kind,
    x: np.ndarray | Rows,
    targets: np.ndarray,
    strength: float,
    *,
    several: bool = False,
    on_device: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Head:
    """A head on features (n, d).

    targets: (n, K) int8, 1 for an image's classes, 0 for others, and -1 where an image does not
    count for a class. several: whether images may be of several classes. strength: C, or k of
    `knn`. on_device: linear heads are fitted chunk by chunk on the device. on_note: called with a
    message where a solver did not converge.
    """
    if on_device and kind != "knn":
        return _on_device(kind, x, targets, strength, several=several, on_note=on_note)
    x = x[:]
    if kind == "knn":
        return Neighbours(x, targets == 1, int(strength))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        head = (
            _by_class(kind, x, targets, strength) if several else _joint(kind, x, targets, strength)
        )
    if any("converge" in str(warning.message) for warning in caught):
        on_note(f"{kind} with C={strength:g} did not converge in {MOST_ITERATIONS} iterations")
    return head


def _joint(kind: Kind, x: np.ndarray, targets: np.ndarray, C: float) -> Linear:
    """A head for images of one class each."""
    labels = targets.argmax(axis=1)
    estimator = _solver(kind, C).fit(x, labels)
    W, b = estimator.coef_.T, estimator.intercept_
    if W.shape[1] == 1:
        head = _of_two(W, b, 0.5 if kind == "logistic" else 1.0)
        W, b = head.weights, head.bias
    classes = targets.shape[1]
    weights, bias = np.zeros((x.shape[1], classes)), np.full(classes, -np.inf)
    weights[:, estimator.classes_], bias[estimator.classes_] = W, b
    return Linear(weights, bias)


def _of_two(W: np.ndarray, b: np.ndarray, share: float) -> Linear:
    """The head of two classes whose second has these scores, times `share`, and the first their
    negatives. With a share of a half, its soft-max is the logistic function of the scores."""
    weights, bias = np.concatenate([-W, W], axis=1), np.concatenate([-b, b])
    return Linear(weights * share, bias * share)


def _by_class(kind: Kind, x: np.ndarray, targets: np.ndarray, C: float) -> Linear:
    """A head each of whose classes is learnt for itself, from the images that count for it."""
    columns = []
    for target in targets.T:
        counts = target >= 0
        estimator = _solver(kind, C).fit(x[counts], target[counts])
        columns.append((estimator.coef_[0], estimator.intercept_[0]))
    W, b = zip(*columns, strict=True)
    return Linear(np.stack(W, axis=1), np.array(b))


def _solver(kind: Kind, C: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if kind == "svm":
        return LinearSVC(C=C, max_iter=MOST_ITERATIONS, random_state=0)
    return LogisticRegression(C=C, max_iter=MOST_ITERATIONS)


# ------------------------------------------------------------------------------ on the device


def _on_device(
    kind: Kind,
    x: np.ndarray | Rows,
    targets: np.ndarray,
    C: float,
    *,
    several: bool,
    on_note: Callable[[str], None],
) -> Linear:
    from scipy.optimize import minimize

    if kind == "logistic" and not several and targets.shape[1] == 2:
        head = _on_device(kind, x, targets[:, 1:], C, several=True, on_note=on_note)
        return _of_two(head.weights, head.bias, 0.5)
    d, classes = x.shape[1], targets.shape[1]
    step = jax.jit(jax.value_and_grad(partial(_loss, kind=kind, several=several)))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W = flat.reshape(d + 1, classes)
        penalised = W if kind == "svm" else W[:-1]
        value, slope = 0.5 * float(np.square(penalised).sum()), np.zeros_like(W)
        slope[: len(penalised)] = penalised
        on_device = jnp.asarray(W, jnp.float32)
        for chunk, chunk_targets in _chunks(x, targets):
            loss, gradient = step(on_device, chunk, chunk_targets)
            value += C * float(loss)
            slope += C * np.asarray(gradient, np.float64)
        return value, slope.reshape(-1)

    options = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS}
    start = np.zeros((d + 1) * classes)
    solution = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    if not solution.success:
        on_note(f"{kind} with C={C:g} did not converge in {solution.nit} iterations")
    W = solution.x.reshape(d + 1, classes)
    return Linear(W[:-1], W[-1])


def _loss(
    W: jax.Array, x: jax.Array, targets: jax.Array, *, kind: Kind, several: bool
) -> jax.Array:
    """The sum of losses over a chunk, without C. W: (d + 1, K), the biases last."""
    scores = jnp.matmul(x, W[:-1], precision="highest") + W[-1]
    counts = targets >= 0
    if kind == "svm":
        margins = jnp.maximum(0, 1 - jnp.where(targets == 1, scores, -scores))
        return jnp.sum(jnp.where(counts, margins**2, 0))
    if several:
        losses = jax.nn.softplus(jnp.where(targets == 1, -scores, scores))
        return jnp.sum(jnp.where(counts, losses, 0))
    return -jnp.sum(jnp.where(targets == 1, jax.nn.log_softmax(scores), 0))


def _chunks(x: np.ndarray | Rows, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(features, targets) of CHUNK images at a time."""
    for at in range(0, len(x), CHUNK):
        chunk, chunk_targets = x[at : at + CHUNK], targets[at : at + CHUNK]
        yield np.asarray(chunk, np.float32), chunk_targets
