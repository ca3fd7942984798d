"""The scripts of examples/, with a stand-in for what takes hours."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """\
#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *"$BROKEN"*) echo half; exit 1;; esac
echo "{}"
"""


def test_the_gpu_script_keeps_what_is_measured_and_tries_the_rest_again(tmp_path):
    tools, calls = tmp_path / "venv" / "bin", tmp_path / "calls"
    tools.mkdir(parents=True)
    (tools / "python").touch()
    (tools / "cnn-depth").write_text(STAND_IN)
    (tools / "cnn-depth").chmod(0o755)
    (tmp_path / "venv" / ".installed-test").touch()
    results = tmp_path / "results"

    def script(broken):
        calls.write_text("")
        environment = {
            **os.environ,
            "NETS": "resnet:50 vgg:D@32x8",
            "EXTRA": "test",
            "VENV": str(tmp_path / "venv"),
            "CALLS": str(calls),
            "BROKEN": broken,
        }
        command = [ROOT / "examples" / "gpu.sh", results, "--set", "data.path=here"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    table = f"table resnet-6 --profile cifar --seeds 1 --runs {results}/runs --set data.path=here"
    done, called = script(broken="resnet:50")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert [line.split()[0] for line in called] == ["doctor", "bench", "bench", "bench", "table"]
    assert called[-1] == table
    assert not (results / "step-resnet-50.json").exists()
    assert (results / "step-vgg-D-32x8.json").read_text() == "{}\n"

    done, called = script(broken="nothing that is called")
    assert (done.returncode, len(called)) == (0, 2), done.stderr
    assert "--arch resnet:50 " in called[0]
    assert called[1] == table


def test_the_gpu_script_without_a_folder_says_how_it_is_used():
    done = subprocess.run([ROOT / "examples" / "gpu.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: examples/gpu.sh RESULTS")
