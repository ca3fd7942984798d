"""The order of training examples, and the random words from which their views are drawn.

The stream of training examples is the concatenation of one permutation an epoch. A position in it
is a single integer, and any position is reached at once. Nothing is dropped at the end of an epoch;
a batch may straddle two. All of it follows from integers alone, so that hosts, threads and restarts
agree without communication.
"""

import functools
import hashlib
import struct

import numpy as np


def training(seed: int, n: int, position: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The `batch` examples of the training stream from `position` on.

    `position` counts examples since the start of training. Returns (indices, epochs), both (batch,)
    int32: which of the `n` examples, and the epoch (from 0) that each belongs to. Every epoch holds
    each example once.
    """
    if n < 1 or batch < 1 or position < 0 or seed < 0:
        raise ValueError(f"training(seed={seed}, n={n}, position={position}, batch={batch})")
    epochs, places = np.divmod(np.arange(position, position + batch, dtype=np.int64), n)
    indices: np.ndarray = np.empty(batch, np.int32)
    for epoch in range(epochs[0], epochs[-1] + 1):
        in_epoch = epochs == epoch
        indices[in_epoch] = permutation(seed, epoch, n)[places[in_epoch]]
    return indices, epochs.astype(np.int32)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The ranks of raw Philox words, which no NumPy version changes, unlike a shuffle."""
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    permutation = np.argsort(words, kind="stable").astype(np.int32)
    permutation.setflags(write=False)
    return permutation


def eval_batches(n: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every one of `n` examples once, as (indices (batch,) int32, mask (batch,) bool).

    The last batch is filled up with example 0, masked False.
    """
    if batch < 1:
        raise ValueError(f"eval_batches(n={n}, batch={batch})")
    places: np.ndarray = np.arange(-(-n // batch) * batch, dtype=np.int32).reshape(-1, batch)
    return [(np.where(row < n, row, 0), row < n) for row in places]


def words(seed: int, epoch: int, index: int, count: int) -> tuple[int, ...]:
    """`count` random 64-bit words of one example in one epoch.

    A hash (SHAKE-256) of the three numbers: the same in every version and on every machine, and
    reached without drawing any other.
    """
    digest = hashlib.shake_256(struct.pack("<3Q", seed, epoch, index)).digest(8 * count)
    return struct.unpack(f"<{count}Q", digest)
