"""Short binary codes of images, and how well they find a feature's nearest neighbours.

AlexNet's section 6.1 proposes to train an auto-encoder on the features of the last hidden layer, so
that images are compared by short binary codes. Three ways to get codes of `bits` bits are compared:

    autoencoder   signs of the hidden units of an auto-encoder with one hidden layer of tanh units
    PCA           signs of the projections on the first principal components
    projections   signs of random projections, which do not depend on the images: the baseline

Each is fitted to the training images, after features are centred at their mean.

recall@10 is the mean over queries of the share of a query's 10 nearest training images (Euclidean
distance of real-valued features) that are among its 10 nearest by the Hamming distance of codes. Of
equal distances the training image that comes first is the nearer one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.inspection.neighbours import Features, nearest

BITS = 64
NEIGHBOURS = 10
STEPS, BATCH, RATE = 500, 256, 1e-2  # of the auto-encoder's training, by Adam
NOISE = 1.0  # deviation of the noise on its hidden units' inputs in training
SEED = 0
_ROWS = 256  # queries at once


@dataclass(frozen=True)
class Codes:
    """Codes of n training and q test images."""

    how: str
    training: np.ndarray  # (n, bits) bool
    tested: np.ndarray  # (q, bits) bool
    recall: float  # recall@10

    @property
    def bits(self) -> int:
        return self.training.shape[1]


Encoder = Callable[[np.ndarray], np.ndarray]  # features (n, d) -> codes (n, bits) bool


def compared(features: Features, bits: int = BITS) -> list[Codes]:
    """The codes of each way, with their recall. PCA has no more bits than there are features."""
    x, queries = features.training, features.tested
    truth, _ = nearest(x, queries, NEIGHBOURS)
    codes = []
    for how, fit in WAYS.items():
        encode = fit(x, bits)
        training, tested = encode(x), encode(queries)
        by_code = hamming_nearest(training, tested, NEIGHBOURS)
        codes.append(Codes(how, training, tested, recall(by_code, truth)))
    return codes


def principal(x: np.ndarray, bits: int) -> Encoder:
    """Signs of the projections on the principal components of largest variance of x (n, d)."""
    from sklearn.decomposition import PCA

    pca = PCA(min(bits, *x.shape), random_state=SEED).fit(x)
    return lambda y: pca.transform(y) > 0


def random_projections(x: np.ndarray, bits: int) -> Encoder:
    """Signs of projections on directions drawn from a normal distribution."""
    mean = x.mean(axis=0)
    directions = np.random.default_rng(SEED).normal(size=(x.shape[1], bits)).astype(np.float32)
    return lambda y: (y - mean) @ directions > 0


def autoencoder(x: np.ndarray, bits: int) -> Encoder:
    """Signs of the hidden units of tanh(z W + b) V + c, which is trained to give back z.

    z are the centred features, divided by one number so that their mean square is 1. It minimises
    the mean square error by Adam in STEPS batches that are drawn with a fixed seed. Noise on the
    inputs of the hidden units makes them binary (Salakhutdinov & Hinton 2009, Semantic Hashing).
    """
    mean = x.mean(axis=0)
    scale = float(np.sqrt(np.square(x - mean, dtype=np.float64).mean())) or 1.0
    z = jnp.asarray((x - mean) / scale, jnp.float32)
    d = z.shape[1]
    first, second, order, noises = jax.random.split(jax.random.key(SEED), 4)
    glorot = jax.nn.initializers.glorot_normal()
    weights = {
        "W": glorot(first, (d, bits)),
        "b": jnp.zeros(bits),
        "V": glorot(second, (bits, d)),
        "c": jnp.zeros(d),
    }
    adam = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def loss(weights: dict[str, jax.Array], z: jax.Array, key: jax.Array) -> jax.Array:
        noise = NOISE * jax.random.normal(key, (BATCH, bits))
        hidden = jnp.tanh(z @ weights["W"] + weights["b"] + noise)
        return jnp.square(hidden @ weights["V"] + weights["c"] - z).mean()

    @jax.jit
    def trained(z: jax.Array, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        rows = jax.random.randint(order, (STEPS, BATCH), 0, len(z))
        keys = jax.random.split(noises, STEPS)

        def step(carry: tuple, drawn: tuple) -> tuple[tuple, None]:
            weights, state = carry
            rows, key = drawn
            change, state = adam.update(jax.grad(loss)(weights, z[rows], key), state)
            return (optax.apply_updates(weights, change), state), None

        return jax.lax.scan(step, (weights, adam.init(weights)), (rows, keys))[0][0]

    fitted = {name: np.asarray(array) for name, array in trained(z, weights).items()}
    return lambda y: (y - mean) / np.float32(scale) @ fitted["W"] + fitted["b"] > 0


WAYS: dict[str, Callable[[np.ndarray, int], Encoder]] = {
    "autoencoder": autoencoder,
    "PCA": principal,
    "projections": random_projections,
}


def hamming_nearest(codes: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The rows of codes (n, bits) bool nearest to each query (q, bits), (q, min(k, n)).

    The nearest first; of equal distances the first row.
    """
    n, bits = codes.shape
    signs = np.where(codes, 1, -1).astype(np.float32)
    rows = []
    for at in range(0, len(queries), _ROWS):
        chunk = np.where(queries[at : at + _ROWS], 1, -1).astype(np.float32)
        distances = ((bits - chunk @ signs.T) / 2).astype(np.int64)
        keys = distances * n + np.arange(n)  # no two are the same
        keys = np.partition(keys, min(k, n) - 1, axis=1)[:, :k]
        rows.append(np.sort(keys, axis=1) % n)
    return np.concatenate(rows)


def recall(retrieved: np.ndarray, truth: np.ndarray) -> float:
    """The mean share of each row of truth (q, k) that is in the same row of retrieved (q, k)."""
    is_retrieved = (retrieved[:, :, None] == truth[:, None, :]).any(axis=1)
    return float(is_retrieved.mean())
