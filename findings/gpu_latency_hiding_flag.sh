#!/bin/bash
# XLA's flag for its latency hiding scheduler on GPUs (jax-cuda12-plugin 0.10.2, compiled for eight H100s,
# none is needed) changes nothing: the gradient of eight convolutions, their examples spread over the
# GPUs, is the same program, in the same order, with xla_gpu_enable_latency_hiding_scheduler true and
# false. What does begin exchanges earlier are two options together, of which each alone does not.
#
# Seen: "the flag true and false: same order True", and of the 23 convolutions 8 that run while an
# exchange does, with a limit of eight at once 7, as early as possible 8, with both 14. The script fails
# where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
cat > "$folder/compare.py" <<'PYTHON'
import re
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
gpus = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x8").devices
mesh = Mesh(np.array(gpus), ("data",))
everywhere, spread = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
C, LAYERS = 1024, 8


def loss(kernels, x):
    for kernel in kernels:
        x = jax.nn.relu(jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return x.astype(jnp.float32).sum()


kernels = [jax.ShapeDtypeStruct((3, 3, C, C), jnp.bfloat16, sharding=everywhere)] * LAYERS
x = jax.ShapeDtypeStruct((256, 14, 14, C), jnp.bfloat16, sharding=spread)


def program(**options):
    gradient = jax.jit(jax.grad(loss), out_shardings=everywhere)
    options = {"xla_gpu_autotune_level": 0, **options}
    return gradient.lower(kernels, x).compile(compiler_options=options).as_text()


def order(text):
    """The names of what runs, in turn."""
    return re.findall(r"^\s+(?:ROOT )?%(\S+) =", text[text.index("ENTRY") :], re.MULTILINE)


def hidden(text):
    """The convolutions that run while an exchange does."""
    found, begun = 0, set()
    for line in text.splitlines():
        if start := re.search(r"%(\S+) = .* all-reduce-start\(", line):
            begun.add(start[1])
        elif done := re.search(r" all-reduce-done\(%(\S+?)\)", line):
            begun.discard(done[1])
        elif "__cudnn$conv" in line and begun:
            found += 1
    return found


FLAG = "xla_gpu_enable_latency_hiding_scheduler"
LIMIT = {"xla_gpu_experimental_parallel_collective_overlap_limit": 8}
EARLY = {"xla_gpu_experimental_collective_start_as_early_as_possible": True}
on, off = (order(program(**{FLAG: value})) for value in (True, False))
print(f"the flag true and false: same order {on == off}")
settings = {"default": {}, "limit 8": LIMIT, "early": EARLY, "both": LIMIT | EARLY}
for name, options in settings.items():
    print(f"{name}: {hidden(program(**options))} convolutions while an exchange runs")
PYTHON
export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=-1
seen=$("$folder/venv/bin/python" "$folder/compare.py" 2>"$folder/errors")
echo "$seen"
[ "$seen" = "the flag true and false: same order True
default: 8 convolutions while an exchange runs
limit 8: 7 convolutions while an exchange runs
early: 8 convolutions while an exchange runs
both: 14 convolutions while an exchange runs" ]
