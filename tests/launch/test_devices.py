"""What a process prepares before JAX starts in it."""

from types import SimpleNamespace

import pytest

from launch import devices

STEP = """
from launch import devices
devices.set_up()
import jax, jax.numpy as jnp
def folded(x):
    for _ in range(30):
        x = jnp.sin(x @ x) + jnp.cos(x)
    return x
for _ in range(2):
    print(float(jax.jit(folded)(jnp.ones((30, 30)))[0, 0]))
    jax.clear_caches()
"""


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_entry_of_the_compilation_cache_is_told_once_and_replaced(
    damage, fresh_python, tmp_path
):
    def start():
        process = fresh_python(
            "-W",
            "error",
            "-c",
            STEP,
            JAX_COMPILATION_CACHE_DIR=str(tmp_path),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.0",
        )
        assert process.returncode == 0, process.stderr
        return process.stdout, process.stderr

    first, quiet = start()
    assert quiet == ""
    (entry,) = tmp_path.glob("jit_folded-*-cache")
    content = entry.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "other": b"no program"}[damage]
    entry.write_bytes(damaged)
    again, warning = start()
    assert again == first
    assert warning.startswith(f"compilation cache: {entry} could not be read; it is deleted and ")
    assert len(warning.splitlines()) == 1
    assert len(entry.read_bytes()) > len(damaged)
    assert start() == (first, "")


def test_devices_are_ordered_by_slice_then_process():
    places = [(1, 2, 5), (0, 1, 9), (1, 3, 4), (0, 0, 8)]
    chips = [
        SimpleNamespace(slice_index=piece, process_index=process, id=number)
        for piece, process, number in places
    ]
    assert [d.id for d in sorted(chips, key=devices.by_place)] == [8, 9, 5, 4]
    assert devices.by_place(SimpleNamespace(process_index=3, id=7)) == (0, 3, 7)  # of no slice
