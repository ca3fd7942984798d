"""The kernels of the first convolution, as figure 3 of AlexNet's paper prints them."""

from dataclasses import dataclass

import numpy as np

from cnn_arch import ArchitectureError, layer_outputs
from experiments.inspection.looking import Looking


@dataclass(frozen=True)
class Filters:
    """The n kernels of a layer whose input is images."""

    layer: str
    kernels: np.ndarray  # (h, w, C, n) float32

    @property
    def pictures(self) -> np.ndarray:
        """(n, h, w, C) uint8: each kernel from its own smallest weight, 0, to its largest, 255.

        A kernel whose weights are all the same is 0.
        """
        kernels: np.ndarray = np.moveaxis(self.kernels, -1, 0).astype(np.float64)
        low = kernels.min(axis=(1, 2, 3), keepdims=True)
        extent = kernels.max(axis=(1, 2, 3), keepdims=True) - low
        scaled = (kernels - low) / np.where(extent > 0, extent, 1)
        return (255 * scaled).round().astype(np.uint8)


def first(looking: Looking) -> Filters:
    """Those of the first convolution. Raises ArchitectureError where a network begins otherwise."""
    _, params, _ = looking.subject.network
    for layer in layer_outputs.layer_outputs(looking.bare):
        kernel = params.get(f"{layer}/kernel")
        if kernel is not None:
            if kernel.ndim == 4:
                return Filters(layer, np.asarray(kernel))
            break
    raise ArchitectureError(f"{looking.bare.name} does not begin with a convolution")
