#!/bin/bash
# clu 0.0.12: `clu.metrics.Average` keeps its total in the dtype of the values that it began with, and
# `merge` adds in it. The loop that the module's own documentation shows begins with the first batch's
# metric, not with `Average.empty()`. With losses in bfloat16 the total then stops growing at 256 times a
# loss, as the next bfloat16 after 256 is 258, while the count goes on: the average falls towards 0,
# without a warning. One that begins with `Average.empty()` has a float32 total.
#
# Seen, the average of 1,000 losses that are all 1, one a batch: "float32: 1, from empty 1; bfloat16: 0.256,
# from empty 1". The script fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet clu==0.0.12 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/average.py" <<'PYTHON'
import functools

import jax.numpy as jnp
from clu import metrics

for dtype in (jnp.float32, jnp.bfloat16):
    batches = [metrics.Average.from_model_output(jnp.ones(1, dtype)) for _ in range(1000)]
    merged = functools.reduce(metrics.Average.merge, batches)
    from_empty = functools.reduce(metrics.Average.merge, batches, metrics.Average.empty())
    averages = [f"{float(average.compute()):.3g}" for average in (merged, from_empty)]
    print(f"{jnp.dtype(dtype)}: {averages[0]}, from empty {averages[1]}")
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/average.py")
echo "$seen"
[ "$seen" = "float32: 1, from empty 1
bfloat16: 0.256, from empty 1" ]
