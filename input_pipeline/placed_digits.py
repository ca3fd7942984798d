"""Small digits somewhere in a larger field with clutter: where each of them is, is known.

A made set, to try localisation on without any annotations. Everything is whole numbers, so that it
is the same on every machine.
"""

import numpy as np

from input_pipeline.boxes import Boxes

FIELD = 64  # pixels a side
FACTORS = (4, 5, 6)  # of which one, each way, a digit's 8 pixels are enlarged by
CLUTTER = 6  # pieces of other digits in each image
PIECE = 4  # pixels of a digit's side, before they are doubled
INK = 64  # of 255: darker pixels are no part of the digit, for its box


def placed(
    digits: np.ndarray, labels: np.ndarray, times: int, key: int
) -> tuple[np.ndarray, np.ndarray, Boxes]:
    """Images (times n, 64, 64, 1) uint8, their labels and the box of each one's digit.

    digits: (n, 8, 8) uint8, 0 to 255. key: of what is drawn.
    """
    n = len(digits)
    words = np.random.Philox(key=key).random_raw(times * n * (4 + 4 * CLUTTER))
    draws = words.reshape(times * n, -1)
    images: np.ndarray = np.zeros((times * n, FIELD, FIELD, 1), np.uint8)
    boxes = []
    for i, drawn in enumerate(draws.tolist()):
        rows, columns = (FACTORS[word % len(FACTORS)] for word in drawn[:2])
        digit = enlarged(digits[i % n], rows, columns)
        height, width = digit.shape
        top, left = drawn[2] % (FIELD - height + 1), drawn[3] % (FIELD - width + 1)
        field = images[i, :, :, 0]
        for k in range(CLUTTER):
            _add(field, _piece(digits, drawn[4 + 4 * k :]), drawn[6 + 4 * k :])
        part = field[top : top + height, left : left + width]
        np.maximum(part, digit, out=part)
        boxes.append(_ink(digit) + np.array([left, top, left, top]))
    found = Boxes.of([box[None] for box in boxes])
    return images, np.tile(labels, times), found


def enlarged(digit: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The digit, (h, w) uint8, with so many pixels for each of its own, interpolated linearly."""
    down, across = (
        _weights(size, by) for size, by in zip(digit.shape, (rows, columns), strict=True)
    )
    total = down @ digit.astype(np.int64) @ across.T
    return (total // (4 * rows * columns)).astype(np.uint8)


def _weights(size: int, by: int) -> np.ndarray:
    """(size by, size) whole numbers, whose rows sum to 2 by."""
    at: np.ndarray = 2 * np.arange(size * by) + 1 - by  # in units of 1 / (2 by) pixels
    low, part = np.divmod(at, 2 * by)
    found: np.ndarray = np.zeros((size * by, size), np.int64)
    for offset, weight in ((0, 2 * by - part), (1, part)):
        np.add.at(found, (np.arange(size * by), (low + offset).clip(0, size - 1)), weight)
    return found


def _piece(digits: np.ndarray, drawn: list[int]) -> np.ndarray:
    """A piece of some digit, doubled: (8, 8)."""
    last = digits.shape[1] - PIECE + 1
    top, left = drawn[1] % last, (drawn[1] // last) % last
    cut = digits[drawn[0] % len(digits), top : top + PIECE, left : left + PIECE]
    return enlarged(cut, 2, 2)


def _add(field: np.ndarray, piece: np.ndarray, drawn: list[int]) -> None:
    side = len(piece)
    top, left = (word % (FIELD - side + 1) for word in drawn[:2])
    part = field[top : top + side, left : left + side]
    np.maximum(part, piece, out=part)


def _ink(digit: np.ndarray) -> np.ndarray:
    """The box of what is not background: (left, top, right, bottom)."""
    rows, columns = (np.flatnonzero((digit > INK).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
