"""A network of a user's own: one file beside the study, and nothing of the project is touched."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cnn_arch
from cnn_arch import user_modules
from launch import cli

ROOT = Path(__file__).resolve().parents[2]
NETS = '''
"""Nets of one and two convolutions, with a part that lies in a file of its own."""
import jax.numpy as jnp
from flax import nnx

from cnn_arch import Family, Inputs, Network
from cnn_arch.initial_weights import initializer
from cnn_arch.layers import ConvUnit, Dense, GlobalAveragePool
from my_parts import MAPS


class Net(Network):
    def __init__(self, variant, *, image_size, classes, channels, rngs, maps: int = MAPS):
        weights = {"init": initializer("he"), "dtype": jnp.dtype("float32"), "rngs": rngs}
        self.convs = int(variant[-1])
        for i in range(self.convs):
            conv = ConvUnit(maps if i else channels, maps, use_bias=True, **weights)
            setattr(self, f"conv{i}", conv)
        self.pool = GlobalAveragePool()
        self.fc = Dense(maps, classes, **weights)

    def map_features(self, tape, x, rngs):
        names = [f"conv{i}" for i in range(self.convs)]
        return tape.chain([(name, getattr(self, name)) for name in names], x)

    def map_logits(self, tape, x, rngs):
        return tape("fc", self.fc, tape("pool", self.pool, x))


FAMILIES = (
    Family(
        name=__name__,
        variants=("net1", "net2"),
        network=Net,
        depth=lambda variant: int(variant[-1]) + 1,
        inputs=lambda variant: Inputs(8, 1, 10),
    ),
)
'''
STUDY = '''
"""Nets of my own."""
from experiments import config as configs

def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("my_nets:net1")
    config.data.update(name="digits", image_size=8)
    config.train.update(batch_size=64, steps=24)
    config.checkpoint.every_steps = 2
    return config

def sweep():
    yield "one", {}
    yield "two", {"model.arch": "my_nets:net2", "seed_from": "one",
                  "seeding.mapping": (("conv0/*", "conv0/*"), ("fc/*", "fc/*"))}
'''


PLANNED = ("--backend", "slurm", "--dry-run", "--time", "1:00:00")  # read, and nothing is trained


@pytest.fixture
def project(tmp_path):
    """A folder with the study, the nets and their part."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in (("study", STUDY), ("my_nets", NETS), ("my_parts", "MAPS = 4\n")):
        (folder / f"{name}.py").write_text(text)
    return folder


def command(*words):
    return [sys.executable, "-P", "-m", "launch", *map(str, words)]


def call(*words, cwd, **environment):
    """(exit status, standard output, standard error) of a command in a process of its own."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.run(
        command(*words), cwd=cwd, env=variables, capture_output=True, text=True, timeout=300
    )
    return process.returncode, process.stdout, process.stderr


def test_own_network_is_swept_stopped_resumed_and_known_by_its_source(project, tmp_path):
    folder = tmp_path / "runs"
    words = ("sweep", "project/study.py", "--runs", folder, "--json")
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command(*words), cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL
    ) as process:
        end = time.monotonic() + 120
        while not list(folder.glob("*/checkpoints/[1-9]*")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert list(folder.glob("*/checkpoints/[1-9]*"))
    assert len(list(folder.glob("*/result.json"))) < 2
    status, out, err = call(*words, cwd=tmp_path)
    assert status == 0, err
    assert [row["state"] for row in json.loads(out)["rows"]] == ["finished", "finished"]
    ids = {path.parent.name for path in folder.glob("*/run.json")}
    assert {name.rpartition("-")[0] for name in ids} == {"my_nets-net1", "my_nets-net2"}
    assert not (project / "__pycache__").exists()

    # A run's folder may be a stranger's: it can't say where code is, and neither can a place.
    (run,) = (name for name in ids if "net1" in name)
    evaluate = ("evaluate", run, "--runs", folder, "--json")
    for cwd in ("/", project):
        status, _, err = call(*evaluate, cwd=cwd)
        assert (status, "beside the study's file or on PYTHONPATH" in err) == (2, True)
    mine = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(project)))}
    assert call(*evaluate, cwd="/", **mine)[0] == 0

    # Another file in the folder changes nothing; one that the module imports does.
    (project / "unused.py").write_text("MAPS = 6\n")
    assert call(*words, cwd=tmp_path)[0] == 0
    assert {path.parent.name for path in folder.glob("*/run.json")} == ids
    (project / "my_parts.py").write_text("MAPS = 5\n")
    status, _, err = call(*evaluate, "--protocol", "ten_crop", cwd="/", **mine)
    assert status == 2
    assert "is another version of my_nets:net1" in err
    assert len(err.splitlines()) == 1
    assert call(*words, cwd=tmp_path)[0] == 0
    after = {path.parent.name for path in folder.glob("*/run.json")}
    assert ids < after
    assert len(after) == 4


@pytest.mark.parametrize("where", ["beside", "PYTHONPATH"])
def test_own_network_is_found(project, tmp_path, where):
    study = project / "study.py"
    if where != "beside":
        study = tmp_path / "study.py"
        study.write_text(STUDY)
    path = str(ROOT) if where == "beside" else os.pathsep.join((str(ROOT), str(project)))
    words = ("sweep", study, "--runs", tmp_path / "runs", *PLANNED)
    status, out, err = call(*words, cwd=tmp_path, PYTHONPATH=path)
    assert status == 0, err
    code = rf"{re.escape(str(tmp_path / 'runs' / '.slurm' / 'code'))}/\d+/[0-9a-f]+"
    # A file beside the study hides no package: the project comes first.
    assert re.search(rf"export PYTHONPATH={code}:{code}/user_modules/0\$\{{PYTHONPATH", out)
    if where == "PYTHONPATH":
        status, out, _ = call("describe", "my_nets:net2", cwd="/", PYTHONPATH=path)
        assert status == 0
        assert "conv1" in out


@pytest.mark.parametrize(
    ("arch", "text", "told"),
    [
        ("no_nets:net1", None, ["no_nets:net1", "There is no module 'no_nets'"]),
        ("my_nets:net3", NETS, ["my_nets:net3", "Did you mean 'my_nets:net2'"]),
        ("my_nets:net1", "import no_such\n", ["can't be imported", "no_such", "line 1"]),
        ("my_nets:net1", "x = 1 / 0\n", ["ZeroDivisionError", "my_nets.py", "line 1"]),
        ("my_nets:net1", "def f(:\n", ["SyntaxError", "my_nets.py, line 1"]),
        ("my_nets:net1", "raise SystemExit(3)\n", ["SystemExit"]),
        ("my_nets:net1", "FAMILIES = ()\n", ["offers no family", "FAMILIES"]),
        ("my_nets:net1", "FAMILIES = 3\n", ["offers no family", "FAMILIES"]),
    ],
)
def test_what_is_wrong_with_a_network_is_one_line(
    project, tmp_path, monkeypatch, capsys, arch, text, told
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_modules, "_imported_modules", {})
    monkeypatch.setattr(user_modules, "_looked_in", [])
    for name in ("my_nets", "my_parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if text is not None:
        (project / "my_nets.py").write_text(text)
    (project / "study.py").write_text(STUDY.replace("my_nets:net1", arch))
    study = str(project / "study.py")
    assert cli.main(["sweep", study, "--runs", str(tmp_path / "runs"), *PLANNED]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in told), err


def test_only_a_users_modules_are_imported_by_a_name(project, tmp_path, monkeypatch):
    """Folders without `__init__.py`, as runs lie in beside a study, and installed packages."""
    monkeypatch.setattr(user_modules, "_looked_in", [str(project)])
    monkeypatch.syspath_prepend(str(project))
    (project / "runs" / "strange").mkdir(parents=True)
    (project / "runs" / "strange" / "net.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name in ("runs.strange.net:a", "antigravity:a", "experiments.network:a"):
        with pytest.raises(cnn_arch.ArchitectureError, match="There is no module"):
            cnn_arch.full_name(name)
    assert not (tmp_path / "ran").exists()


def test_networks_of_the_project_have_no_source():
    assert cnn_arch.origin("vgg:A") == {}
    cnn_arch.check_source("vgg:A", None)
    with pytest.raises(cnn_arch.ArchitectureError, match="another version"):
        cnn_arch.check_source("vgg:A", "0123456789ab")
