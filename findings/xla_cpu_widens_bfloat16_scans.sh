#!/bin/bash
# jaxlib 0.10.2, CPU: a `lax.scan` over the rows of a bfloat16 array first copies all of it to float32, so
# a program in bfloat16 takes more memory than the same one in float32. XLA's pass for dtypes that a
# device lacks widens what does not compute, too: slices, reversals, padding, concatenations. Their
# conversions are then hoisted out of the loop. The same bits as uint16 are sliced as they are.
#
# Seen, of a scan over 32 rows of 128 x 256 values, 2 MiB in bfloat16: the loop holds "bfloat16 as
# float32, with 4 MiB of temporary memory; uint16 as uint16, with none; float32 as float32, with none".
# The script fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/scan.py" <<'PYTHON'
import re

import jax
import jax.numpy as jnp

NAMES = {"f32": "float32", "bf16": "bfloat16", "u16": "uint16"}


def largest(rows):
    return jax.lax.scan(lambda most, row: (jnp.maximum(most, row[::-1]), None), rows[0], rows)[0]


for dtype in (jnp.bfloat16, jnp.uint16, jnp.float32):
    program = jax.jit(largest).lower(jnp.zeros((32, 128, 256), dtype)).compile()
    (held,) = re.findall(r"\b(\w+)\[32,128,256\]\S* *\) while\(", program.as_text())
    memory = program.memory_analysis().temp_size_in_bytes
    print(f"{jnp.dtype(dtype)} as {NAMES[held]}, with {memory >> 20 or 'no'} MiB of temporary memory")
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/scan.py")
echo "$seen"
[ "$seen" = "bfloat16 as float32, with 4 MiB of temporary memory
uint16 as uint16, with no MiB of temporary memory
float32 as float32, with no MiB of temporary memory" ]
