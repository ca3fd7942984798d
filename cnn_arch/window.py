"""What the outputs of a layer see of its inputs, along one axis."""

from dataclasses import dataclass
from typing import TypeVar

import jax

from cnn_arch.errors import ArchitectureError

Size = TypeVar("Size", int, jax.Array)


@dataclass(frozen=True)
class Window:
    """What one output position sees along one axis: `kernel` inputs, from `-padding` on.

    Windows that would reach beyond the far border (and its padding) are left out, or, with
    `ceil`, kept where they still start inside, as Caffe's pooling does.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    ceil: bool = False

    def outputs(self, size: int) -> int:
        """Positions along an axis of `size` inputs. Raises ArchitectureError if there are none."""
        count = self.count(size)
        if count < 1:
            raise ArchitectureError(
                f"a window of {self.kernel} pixels does not fit into a map of {size}; take larger "
                "images"
            )
        return count

    def count(self, size: Size) -> Size:
        """As `outputs`, of one size or of an array of sizes; less than 1 where there are none."""
        room = size + 2 * self.padding - self.kernel
        if not self.ceil:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - ((count - 1) * self.stride >= size + self.padding)
