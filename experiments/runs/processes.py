"""What the processes of one run do together; `jax.distributed` knows how many there are.

All run the same program in step, and only the first writes a run's own files. Whatever depends on a
clock, a signal or a file is decided by what all of them know. With one process all this is free.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")
PATIENCE = 5.0  # seconds for a network's file system to show what another process wrote


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def meet(name: str) -> None:
    """Waits until all processes have called this, each with the same name."""
    if several():
        multihost_utils.sync_global_devices(name)


def from_first(flags: bool | list[bool]) -> Any:
    """The first process's `flags`, on all processes."""
    if not several():
        return flags
    decided = multihost_utils.broadcast_one_to_all(np.array(flags, np.int32))
    return np.asarray(decided).astype(bool).tolist()


def read(find: Callable[[], T | None]) -> T | None:
    """`find()` of each process; None on all of them where the first finds nothing."""
    content = find()
    if not several():
        return content
    return wait_for(find) if from_first(content is not None) else None


def wait_for(find: Callable[[], T | None]) -> T | None:
    """`find()` of a file that exists, which a network file system may show here only later."""
    end = time.monotonic() + PATIENCE
    while (content := find()) is None and time.monotonic() < end:
        time.sleep(0.1)
    return content


def first_then_others(make: Callable[[], T], name: str) -> T:
    """`make()` of each process; the others begin when the first has ended and written its files."""
    if not several():
        return make()
    if not first():
        meet(name)
    output = make()
    if first():
        meet(name)
    return output


def share(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process is the i-th of the n whose devices are in the mesh."""
    indices = sorted({device.process_index for device in mesh.devices.flat})
    return indices.index(jax.process_index()), len(indices)


def own_mesh(mesh: Mesh) -> Mesh:
    """The part of a mesh whose devices are this process's."""
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if len(devices) == mesh.size:
        return mesh
    return Mesh(np.array(devices), mesh.axis_names, axis_types=(AxisType.Auto,))


def put(tree: Any, sharding: Sharding) -> Any:
    """Lays out arrays that each process has whole; each fills its own devices only."""
    if not several():
        return jax.device_put(tree, sharding)

    def lay(array: Any) -> jax.Array:
        full = np.asarray(array)
        return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])

    return jax.tree.map(lay, tree)


def put_share(tree: Any, sharding: NamedSharding, axis: int) -> Any:
    """Lays out arrays of which each process has its share along `axis`, in the order of `share`."""
    _, n = share(sharding.mesh)
    if n == 1:
        return jax.device_put(tree, sharding)

    def lay(local: np.ndarray) -> jax.Array:
        shape = (*local.shape[:axis], local.shape[axis] * n, *local.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(lay, tree)


def to_own_mesh(tree: Any, mesh: Mesh) -> Any:
    """Arrays that lie whole on every device, as arrays on `mesh`, which is this process's own."""
    if not several():
        return tree
    everywhere = NamedSharding(mesh, P())

    def own(array: jax.Array) -> jax.Array:
        parts = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, everywhere, parts)

    return jax.tree.map(own, tree)


def gathered(arrays: list[np.ndarray], most: int) -> list[np.ndarray]:
    """The rows of all processes, one process's after another's; none has more than `most`."""
    if not several():
        return arrays

    def pad(array: np.ndarray) -> np.ndarray:
        zeros = np.zeros((most - len(array), *array.shape[1:]), array.dtype)
        return np.concatenate([array, zeros])

    counts, *padded = multihost_utils.process_allgather(
        [np.int32(len(arrays[0])), *map(pad, arrays)]
    )
    rows = np.arange(most) < np.asarray(counts).reshape(-1, 1)
    return [np.asarray(array)[rows] for array in padded]
