"""The scripts of examples/, with a stand-in for what takes hours."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

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
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return process, calls.read_text().splitlines()

    table = f"table resnet-6 --profile cifar --seeds 1 --runs {results}/runs --set data.path=here"
    process, called = script(broken="resnet:50")
    assert process.returncode == 1
    assert "failed: " in process.stderr
    assert [line.split()[0] for line in called] == ["doctor", "bench", "bench", "bench", "table"]
    assert called[-1] == table
    assert not (results / "step-resnet-50.json").exists()
    assert (results / "step-vgg-D-32x8.json").read_text() == "{}\n"

    process, called = script(broken="nothing that is called")
    assert (process.returncode, len(called)) == (0, 2), process.stderr
    assert "--arch resnet:50 " in called[0]
    assert called[1] == table


def test_the_gpu_script_without_a_folder_says_how_it_is_used():
    process = subprocess.run([ROOT / "examples" / "gpu.sh"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("usage: examples/gpu.sh RESULTS")


# What a recipe for a container copies, and what its `pip install` gets.
CONTAINERS = {
    "Dockerfile": (r"^COPY (.+) (/source\S*)$", r"^RUN pip install \S+ (\".+?\")"),
    "cnn-depth.def": (r"^    (\S+) (/source/\S+)$", r"^    pip install \S+ (\".+?\")"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_gets_what_the_package_is_made_of(name, tmp_path):
    text = (ROOT / "examples" / "containers" / name).read_text()
    copied, installed = CONTAINERS[name]
    for words, to in re.findall(copied, text, re.MULTILINE):
        for word in words.split():
            place = tmp_path / to.lstrip("/")
            place = place / word if to.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / word).is_dir() else shutil.copy)(ROOT / word, place)

    def files(source):
        (wheel,) = WheelBuilder(str(source)).build(
            directory=str(tmp_path / "dist"), versions=["standard"]
        )
        return set(zipfile.ZipFile(wheel).namelist())

    assert files(tmp_path / "source") == files(ROOT)
    (requirement,) = re.findall(installed, text, re.MULTILINE)
    assert re.fullmatch(r'"/source\[(\$\{EXTRA\}|\{\{ EXTRA \}\})\]"', requirement)
    extras = re.search(r"EXTRA=(\S+)$", text, re.MULTILINE)[1].split(",")
    assert {f"{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras} == {True}
    assert "python:3.12" in text  # within requires-python
