#!/bin/bash
# A program for a TPU (libtpu 0.0.42.1 with jax 0.10.2, compiled for one v5e chip, none is needed) that
# takes a batch of images out of a data set on the device copies the whole set first, where it lies as
# (N, 32, 32, 3) uint8: its temporary memory is larger than the set. Where the same bytes lie as rows,
# (N, 3072), and the batch is reshaped afterwards, nothing but the batch is moved.
#
# Seen: "images: temporary memory 4.0 of the set" and "rows: temporary memory 0.0 of the set". The
# script fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1 numpy==2.4.6
cat > "$folder/compare.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

one = {"chips_per_host_bounds": (1, 1, 1)}
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", **one).devices
everywhere = NamedSharding(Mesh(np.array(chips), ("data",)), PartitionSpec())
N, B = 60_000, 128


def take(images, indices):
    return images[indices].reshape(B, 32, 32, 3).astype(jnp.float32) / 255


for name, shape in (("images", (N, 32, 32, 3)), ("rows", (N, 3072))):
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=everywhere)
    indices = jax.ShapeDtypeStruct((B,), jnp.int32, sharding=everywhere)
    program = jax.jit(take, out_shardings=everywhere).lower(images, indices).compile()
    used = program.memory_analysis().temp_size_in_bytes / (N * 3072)
    print(f"{name}: temporary memory {used:.1f} of the set")
PYTHON
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
seen=$("$folder/venv/bin/python" "$folder/compare.py" 2>"$folder/errors")
echo "$seen"
[ "$seen" = "images: temporary memory 4.0 of the set
rows: temporary memory 0.0 of the set" ]
