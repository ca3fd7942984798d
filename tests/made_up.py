"""Made-up data that several tests train on."""

import numpy as np


def noise(train: int, test: int, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    """Images of this shape that are noise, as an .npz has them; labels 0, 1, ... in turns."""
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % classes
    return arrays
