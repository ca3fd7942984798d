#!/bin/bash
# clu 0.0.12, the newest: `clu.metrics.Std` collects values and merges, but its `compute` raises a
# TypeError for every input. It calls `jnp.clip` with the keyword `a_min`, which JAX has dropped. pip
# installs the two together without a word, as clu names no upper bound for JAX. A `Collection` with a
# `Std` therefore fails at the first line of a log, after the steps before it were made.
#
# Seen, for the values 1, 2, 3 and 4: "Average: 2.5; Std: TypeError: clip() got an unexpected keyword
# argument 'a_min'". The script fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet clu==0.0.12 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/std.py" <<'PYTHON'
import jax.numpy as jnp
from clu import metrics

values = jnp.arange(1.0, 5.0)
seen = []
for metric in (metrics.Average, metrics.Std):
    try:
        result = f"{float(metric.from_model_output(values).compute()):.4g}"
    except TypeError as error:
        result = f"TypeError: {str(error).splitlines()[0]}"
    seen.append(f"{metric.__name__}: {result}")
print("; ".join(seen))
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/std.py")
echo "$seen"
[ "$seen" = "Average: 2.5; Std: TypeError: clip() got an unexpected keyword argument 'a_min'" ]
