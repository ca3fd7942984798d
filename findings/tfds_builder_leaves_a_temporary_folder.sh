#!/bin/bash
# tensorflow-datasets 4.9.10: each builder of a data set that is not prepared yet leaves an empty folder
# in the temporary folder, for good. `DatasetInfo.initialize_from_bucket` makes one before it asks
# whether the project's bucket has facts on the set, which by default it does not ask at all, and never
# removes it. Who looks for a set again and again until it is there, as the jobs of a sweep do, fills a
# node's temporary folder with them.
#
# Seen, of three builders of MNIST: "3 folders, 0 files in them". The script fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 tensorflow-cpu==2.21.0
cat > "$folder/build.py" <<'PYTHON'
import pathlib
import sys
import tempfile

import tensorflow_datasets as tfds

for _ in range(3):
    assert not tfds.builder("mnist", data_dir=sys.argv[1]).is_prepared()
left = [p for p in pathlib.Path(tempfile.gettempdir()).iterdir() if p.name.endswith("tfds")]
print(f"{len(left)} folders, {sum(len(list(p.iterdir())) for p in left)} files in them")
PYTHON
mkdir "$folder/tmp" "$folder/data"
seen=$(TMPDIR="$folder/tmp" "$folder/venv/bin/python" "$folder/build.py" "$folder/data" 2> /dev/null)
echo "$seen"
[ "$seen" = "3 folders, 0 files in them" ]
