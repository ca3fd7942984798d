"""The code that is submitted is the code that runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cnn_arch
from experiments.runs.runs import Run, RunError
from launch.executors import snapshot

STUDY = '''
"""Two rows."""
from experiments import config as configs

def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("{arch}", width=0.25)
    config.data.update(name="digits", image_size=8)
    config.train.update(batch_size=64, steps=6)
    return config
'''
NETS = """
from cnn_arch import Family
from cnn_arch.resnet import CifarNet
from helpers import RESIDUAL

FAMILIES = (
    Family(
        name=__name__, variants=("8",), network=CifarNet, depth=int, fixed={"residual": RESIDUAL}
    ),
)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the project that may be edited, from which snapshots are taken."""
    root = tmp_path / "project"
    for package in snapshot.PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(snapshot.ROOT / package, root / package, ignore=ignored)
    monkeypatch.setattr(snapshot, "ROOT", root)
    return root


def test_equal_code_is_kept_once_and_edited_code_apart(project, tmp_path):
    first = snapshot.make(tmp_path, {})
    assert first.root == tmp_path / ".slurm" / "code" / str(os.getuid()) / first.root.name
    assert snapshot.make(tmp_path, {}) == snapshot.planned(tmp_path, {}) == first
    edited = project / "experiments" / "training" / "train.py"
    before = edited.read_text()
    edited.write_text(before + "raise SystemExit\n")
    second = snapshot.planned(tmp_path, {})
    assert second.root != first.root
    assert not second.root.exists()  # it was only asked where it would be
    assert snapshot.make(tmp_path, {}) == second
    name = edited.relative_to(project)
    assert (first.root / name).read_text() == before
    assert (second.root / name).read_text() == edited.read_text()
    assert len(list(first.root.parent.iterdir())) == 2


def test_it_has_all_that_is_imported_and_read_and_is_small(project, tmp_path, fresh_python):
    (project / "launch" / ".hidden").write_text("x")
    (project / "launch" / "__pycache__").mkdir()
    (project / "launch" / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"x")
    root = snapshot.make(tmp_path, {}).root
    files = [path for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert not any("__pycache__" in path.parts or path.name.startswith(".") for path in files)
    code = (
        "import launch, experiments, cnn_arch; from experiments import papers;"
        "from experiments.runs import runs;"
        "papers.tables(); print(launch.__file__); print(runs.versions()['snapshot'])"
    )
    process = fresh_python("-P", "-c", code, PYTHONPATH=str(root))
    assert process.stdout.split() == [str(root / "launch" / "__init__.py"), root.name], (
        process.stderr
    )


def test_networks_of_a_user_come_along(project, tmp_path, monkeypatch):
    nets = tmp_path / "nets"
    nets.mkdir()
    (nets / "snapshot_nets.py").write_text(NETS)
    (nets / "helpers.py").write_text("RESIDUAL = True\n")
    (nets / "other.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(nets))
    monkeypatch.setenv("PYTHONPATH", str(nets))
    assert cnn_arch.abstract("snapshot_nets:8", classes=10, channels=3, image_size=32).name
    code = snapshot.make(tmp_path, {str(nets): ["snapshot_nets"]})
    copy = Path(code.modules[str(nets)])
    assert copy.is_relative_to(code.root)
    assert sorted(path.name for path in copy.iterdir()) == ["helpers.py", "snapshot_nets.py"]
    assert code.root != snapshot.planned(tmp_path, {}).root


def test_code_of_someone_else_is_not_run(project, tmp_path):
    if os.getuid():
        pytest.skip("only root can give a folder away")
    root = snapshot.make(tmp_path, {}).root
    os.chown(root, 12345, 12345)
    for ask in (lambda: snapshot.make(tmp_path, {}), lambda: snapshot.find(tmp_path, root.name)):
        with pytest.raises(RunError, match="is not a folder of yours, and no code is run from it"):
            ask()
    shutil.rmtree(root)
    (tmp_path / "mine").mkdir()
    root.symlink_to(tmp_path / "mine", target_is_directory=True)
    with pytest.raises(RunError, match="is not a folder of yours"):
        snapshot.make(tmp_path, {})


@pytest.mark.parametrize("name", ["../../etc", "0123456789abcdef", "", "x"])
def test_code_that_is_gone_is_told(tmp_path, name):
    with pytest.raises(RunError, match="is gone; submit it anew"):
        snapshot.find(tmp_path, name)


def test_it_is_cleaned_when_no_run_needs_it(project, tmp_path, monkeypatch):
    roots = []
    for k in range(3):
        (project / "launch" / "edited.py").write_text(f"K = {k}\n")
        roots.append(snapshot.make(tmp_path, {}).root)
    for k, root in enumerate(roots[:2]):
        run = Run(tmp_path / f"run-{k}")
        run.folder.mkdir()
        (run.folder / "run.json").write_text(json.dumps({"config": {}}))
        job = {"backend": "slurm", "job": "1", "code": root.name}
        (run.folder / "job.json").write_text(json.dumps(job))
    snapshot.clean(tmp_path, ())
    assert all(root.is_dir() for root in roots)  # they are young
    monkeypatch.setattr(snapshot, "SPARED_SECONDS", -1.0)
    snapshot.clean(tmp_path, ())
    assert [root.is_dir() for root in roots] == [True, True, False]
    result = {"steps": 1, "top1_error": 1, "train_loss": 1}
    (tmp_path / "run-0" / "result.json").write_text(json.dumps(result))
    snapshot.clean(tmp_path, ("1",))  # its job goes on: it tests
    assert [root.is_dir() for root in roots] == [True, True, False]
    snapshot.clean(tmp_path, ())
    assert [root.is_dir() for root in roots] == [False, True, False]


def test_scripts_name_the_code(project, tmp_path, call, study):
    words = ("sweep", study, "--backend", "slurm", "--dry-run", "--runs", tmp_path / "runs")
    status, out, _ = call(*words)
    assert status == 0
    name = snapshot.planned(tmp_path / "runs", {}).root
    assert f"export PYTHONPATH={name}$" in out
    assert not name.exists()
    status, out, _ = call(*words, "--live")
    assert f"export PYTHONPATH={project}$" in out
    status, _, err = call("sweep", study, "--live", "--runs", tmp_path / "runs")
    assert (status, "--live goes with --backend slurm" in err) == (2, True)


@pytest.mark.slurm
def test_code_edited_while_jobs_wait_changes_nothing(project, slurm, tmp_path):
    study, folder = tmp_path / "held.py", tmp_path / "runs"
    study.write_text(STUDY.format(arch="cifar_resnet:8"))

    def cnn_depth(*words):
        process = subprocess.run(
            [sys.executable, "-P", "-m", "launch", *map(str, words), "--runs", str(folder)],
            env={**slurm.environment, "PYTHONPATH": str(project)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    train = ("train", study, "--set", "train.steps=3000", "--set", "train.log_every_epochs=1")
    output = cnn_depth(*train, "--backend", "slurm", "--sbatch", "hold", "--json")
    ((run, job),) = json.loads(output)["submitted"].items()
    edited = project / "experiments" / "training" / "train.py"
    edited.write_text("raise SystemExit('edited')\n" + edited.read_text())
    slurm.run("scontrol", "release", job)
    progress = folder / run / "progress.json"
    slurm.until(lambda: progress.exists() and json.loads(progress.read_text()).get("step"), "steps")
    slurm.run("scontrol", "requeue", job)
    slurm.until_over(job, seconds=240)
    assert slurm.detail(job)["JobState"] == "COMPLETED"
    starts = json.loads((folder / run / "starts.json").read_text())["starts"]
    code = json.loads((folder / run / "job.json").read_text())["code"]
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    assert [start["versions"]["snapshot"] for start in starts] == [code] * 2
    assert (folder / run / "result.json").exists()
