#!/bin/bash
# libtpu's flags that make all-reduces parts of other operations (libtpu 0.0.42.1 with jax 0.10.2,
# compiled for eight v5e chips, none is needed) change nothing in the gradient of six convolutions whose
# examples are spread over the chips. XLA first combines the six exchanges into one, which begins when the
# last gradient is there, and that one is left as it is. Where a flag for the size of what is combined,
# xla_jf_crs_combiner_threshold_in_bytes, is lowered too, five of the six run beside other operations.
#
# Seen: "default: 0 of 6", "flags: 0 of 6", "flags and size: 5 of 6". The script, which compiles for some
# minutes, fails where that changes.
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

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
mesh = Mesh(np.array(chips), ("data",))
everywhere, spread = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
C, LAYERS = 512, 6


def loss(kernels, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    for kernel in kernels:
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(y)
    return x.astype(jnp.float32).sum()


kernels = [jax.ShapeDtypeStruct((3, 3, C, C), jnp.bfloat16, sharding=everywhere)] * LAYERS
x = jax.ShapeDtypeStruct((256, 14, 14, C), jnp.bfloat16, sharding=spread)
FLAGS = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
}
SIZE = {"xla_jf_crs_combiner_threshold_in_bytes": 2 * 2**20}

for name, options in (("default", {}), ("flags", FLAGS), ("flags and size", FLAGS | SIZE)):
    gradient = jax.jit(jax.grad(loss), out_shardings=everywhere)
    text = gradient.lower(kernels, x).compile(compiler_options=options).as_text()
    print(f"{name}: {text.count('AsyncCollectiveStart')} of {LAYERS}")
PYTHON
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
seen=$("$folder/venv/bin/python" "$folder/compare.py" 2>"$folder/errors")
echo "$seen"
[ "$seen" = "default: 0 of 6
flags: 0 of 6
flags and size: 5 of 6" ]
