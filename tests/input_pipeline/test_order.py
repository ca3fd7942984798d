"""The order of examples, and the words that views are drawn from."""

from collections import Counter

import numpy as np
import pytest

from input_pipeline import order

FIRST_TWO_EPOCHS = [3, 5, 2, 7, 0, 6, 1, 4, 0, 6, 5, 3, 4, 7, 2, 1]


def stream(seed, n, batch, batches):
    """`batches` batches from the start, joined."""
    parts = [order.training(seed, n, k * batch, batch) for k in range(batches)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


@pytest.mark.parametrize("batch", [1, 5, 7, 20, 64])
def test_each_epoch_holds_each_example_once(batch):
    n, epochs = 20, 4
    indices, epoch_of = stream(0, n, batch, batches=-(-n * epochs // batch))
    assert indices.dtype == epoch_of.dtype == np.int32
    for epoch in range(epochs):
        assert sorted(indices[epoch_of == epoch][:n]) == list(range(n))
    np.testing.assert_array_equal(epoch_of, np.arange(len(epoch_of)) // n)


def test_order_from_any_position_continues_the_stream():
    all_indices, all_epochs = order.training(7, 1297, 0, 5000)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 4900, 20).tolist():
        order.permutation.cache_clear()
        indices, epoch_of = order.training(7, 1297, position, 100)
        np.testing.assert_array_equal(indices, all_indices[position : position + 100])
        np.testing.assert_array_equal(epoch_of, all_epochs[position : position + 100])


def test_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(stream(3, 50, 7, 20)[0], stream(3, 50, 20, 7)[0])


def test_order_differs_by_seed_and_by_epoch():
    permutations = [tuple(order.training(s, 50, e * 50, 50)[0]) for s in (0, 1, 2) for e in (0, 1)]
    assert len(set(permutations)) == 6


def test_order_is_a_fair_shuffle():
    firsts = [int(order.training(0, 5, 5 * epoch, 1)[0][0]) for epoch in range(2000)]
    assert all(abs(count - 400) < 80 for count in Counter(firsts).values())


def test_order_never_changes():
    assert order.training(1, 8, 0, 16)[0].tolist() == FIRST_TWO_EPOCHS


@pytest.mark.parametrize("batch", [1, 64, 100, 500, 512])
def test_evaluation_covers_each_example_once(batch):
    batches = order.eval_batches(500, batch)
    assert all(indices.shape == mask.shape == (batch,) for indices, mask in batches)
    assert np.concatenate([i[mask] for i, mask in batches]).tolist() == list(range(500))
    assert all(i.min() >= 0 and i.max() < 500 and i.dtype == np.int32 for i, _ in batches)


def test_words_depend_on_seed_epoch_and_index_alone_and_never_change():
    assert order.words(1, 2, 3, 2) == (18321180822501203411, 17207267460092679952)
    assert order.words(1, 2, 3, 9)[:2] == order.words(1, 2, 3, 2)
    drawn = {order.words(*key, 1) for key in np.ndindex(4, 5, 6)}
    assert len(drawn) == 4 * 5 * 6


def test_words_are_uniform():
    units = np.array([order.words(0, 0, i, 4) for i in range(4000)]) / 2**64
    assert abs(units.mean(axis=0) - 0.5).max() < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(np.corrcoef(units.T) - np.eye(4)).max() < 4 / 4000**0.5
