"""Tries an installed cnn-depth, outside any checkout. That is `make test-dist`.

Run by the Python of the environment that it is installed in, with the wheel as its argument. Ends
with status 1 at the first thing that is wrong.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {"cnn_arch", "experiments", "input_pipeline", "launch"}
# Each is run in an empty folder; what its output has to hold.
COMMANDS = (
    (("--version",), "cnn-depth"),
    (("list",), "lenet-fig9"),
    (("list", "keys", "schedule.lr"), "schedule.lr"),
    (("describe", "resnet:50"), "25,557,032"),
    (("table", "vgg-2"), "144"),
    (("table", "lenet-fig9", "--recorded"), "0.95"),
    (("sweep", "residual_depth", "--rows", "plain-8", "--set", "train.steps=2"), "report:"),
    (("features", "residual_depth/plain-8", "--data", "digits"), "kept in"),
    (("sweep", "residual_depth", "--backend", "slurm", "--dry-run"), "PYTHONPATH"),
)


def check_wheel(file: Path) -> None:
    """The wheel holds the packages and what they read, and nothing else."""
    names = zipfile.ZipFile(file).namelist()
    tops = {name.partition("/")[0] for name in names}
    others = {top for top in tops if not top.endswith(".dist-info")} - PACKAGES
    assert not others, f"{file} holds {', '.join(sorted(others))}"
    needed = ("papers/vgg_table3.csv", "templates/page.html", "records/lenet-fig9.json")
    missing = [end for end in needed if not any(name.endswith(end) for name in names)]
    assert not missing, f"{file} lacks {', '.join(missing)}"


def main() -> None:
    check_wheel(Path(sys.argv[1]))
    program = Path(sys.executable).with_name("cnn-depth")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CNN_DEPTH_RUNS")}
    with tempfile.TemporaryDirectory(prefix="cnn-depth-dist-") as folder:
        for words, expected in COMMANDS:
            process = subprocess.run(
                [program, *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            output = process.stdout + process.stderr
            assert process.returncode == 0, f"{words}: status {process.returncode}\n{output}"
            assert expected in output, f"{words}: no {expected!r} in\n{output}"
            print(f"ok  cnn-depth {' '.join(words)}", flush=True)
        result = next(Path(folder).glob("runs/*/result.json"))
        assert json.loads(result.read_text())["steps"] == 2
    place = importlib.metadata.distribution("cnn-depth").locate_file("cnn_arch")
    assert "site-packages" in str(place), place
    print(f"cnn-depth {importlib.metadata.version('cnn-depth')} works from {place}")


if __name__ == "__main__":
    main()
