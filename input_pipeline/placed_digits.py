"""Small digits at known places of a larger field with clutter.

A synthetic set, to try localisation without annotations. All arithmetic is in integers, so that it
is the same on every machine.
"""

import numpy as np

from input_pipeline.boxes import Boxes

FIELD = 64  # pixels a side
FACTORS = (4, 5, 6)  # one of these, each way, enlarges a digit's 8 pixels
CLUTTER = 6  # pieces of other digits in each image
PIECE = 4  # pixels of a digit's side, before they are doubled
INK = 64  # of 255: darker pixels are not part of the digit's box


def placed(
    digits: np.ndarray, labels: np.ndarray, times: int, key: int
) -> tuple[np.ndarray, np.ndarray, Boxes]:
    """Images (times n, 64, 64, 1) uint8, their labels and the box of each one's digit.

    digits: (n, 8, 8) uint8, 0 to 255. key: of the random generator.
    """
    n = len(digits)
    words = np.random.Philox(key=key).random_raw(times * n * (4 + 4 * CLUTTER))
    draws = words.reshape(times * n, -1)
    images: np.ndarray = np.zeros((times * n, FIELD, FIELD, 1), np.uint8)
    boxes = []
    for i, draw in enumerate(draws.tolist()):
        rows, columns = (FACTORS[word % len(FACTORS)] for word in draw[:2])
        digit = enlarged(digits[i % n], rows, columns)
        height, width = digit.shape
        top, left = draw[2] % (FIELD - height + 1), draw[3] % (FIELD - width + 1)
        field = images[i, :, :, 0]
        for k in range(CLUTTER):
            _add(field, _piece(digits, draw[4 + 4 * k :]), draw[6 + 4 * k :])
        part = field[top : top + height, left : left + width]
        np.maximum(part, digit, out=part)
        boxes.append(_ink(digit) + np.array([left, top, left, top]))
    digit_boxes = Boxes.of([box[None] for box in boxes])
    return images, np.tile(labels, times), digit_boxes


def enlarged(digit: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The digit, (h, w) uint8, enlarged by these factors with linear interpolation."""
    down, across = (
        _weights(size, factor) for size, factor in zip(digit.shape, (rows, columns), strict=True)
    )
    total = down @ digit.astype(np.int64) @ across.T
    return (total // (4 * rows * columns)).astype(np.uint8)


def _weights(size: int, factor: int) -> np.ndarray:
    """(size factor, size) integers, whose rows sum to 2 factor."""
    # In units of 1 / (2 factor) pixels.
    numerators: np.ndarray = 2 * np.arange(size * factor) + 1 - factor
    low, part = np.divmod(numerators, 2 * factor)
    weights: np.ndarray = np.zeros((size * factor, size), np.int64)
    for offset, weight in ((0, 2 * factor - part), (1, part)):
        np.add.at(weights, (np.arange(size * factor), (low + offset).clip(0, size - 1)), weight)
    return weights


def _piece(digits: np.ndarray, words: list[int]) -> np.ndarray:
    """A piece of some digit, doubled: (8, 8)."""
    last = digits.shape[1] - PIECE + 1
    top, left = words[1] % last, (words[1] // last) % last
    cut = digits[words[0] % len(digits), top : top + PIECE, left : left + PIECE]
    return enlarged(cut, 2, 2)


def _add(field: np.ndarray, piece: np.ndarray, words: list[int]) -> None:
    side = len(piece)
    top, left = (word % (FIELD - side + 1) for word in words[:2])
    part = field[top : top + side, left : left + side]
    np.maximum(part, piece, out=part)


def _ink(digit: np.ndarray) -> np.ndarray:
    """The box of all pixels but the background: (left, top, right, bottom)."""
    rows, columns = (np.flatnonzero((digit > INK).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
