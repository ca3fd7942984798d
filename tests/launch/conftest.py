"""Commands, and a real Slurm for the tests that need one, once for all processes of a test run."""

import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch import cli

SCRIPT = Path(__file__).with_name("slurm.sh")
ROOT = Path(__file__).resolve().parents[2]
PORTS = 5  # that the cluster listens on
OVER = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED OUT_OF_MEMORY BOOT_FAIL DEADLINE"


STUDY = '''
"""A tiny study."""
from experiments import config as configs

def get_config(arg=None):
    given = configs.arguments(arg, steps="6", lr="0.1")
    config = configs.base()
    config.model = configs.model("cifar_resnet:8", width=0.25)
    config.data.update(name="digits", image_size=8)
    config.train.update(batch_size=64, steps=int(given["steps"]))
    config.schedule.lr = float(given["lr"])
    return config

def sweep():
    yield "shallow", {}
    yield "deep", {"model.arch": "cifar_resnet:14", "schedule.lr": 0.1}
    yield "deep seeded", {
        "model.arch": "cifar_resnet:14",
        "seed_from": "shallow",
        "seeding.mapping": (("conv1/*", "conv1/*"), ("fc/*", "fc/*")),
    }
'''


@pytest.fixture
def study(tmp_path: Path) -> str:
    """The file of a study of three rows; `:steps=24,lr=0.2` changes both."""
    path = tmp_path / "tiny.py"
    path.write_text(STUDY)
    return str(path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """call(words): exit status, standard output and errors of a command, run in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def told(call: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """told(words): the JSON that a command prints, which must succeed."""

    def run(*words: object) -> Any:
        status, out, err = call(*words, "--json")
        assert status == 0, err
        return json.loads(out)

    return run


@dataclass(frozen=True)
class SlurmCluster:
    """A Slurm with nodes n1 to n4, of 2 CPUs each, whose names resolve to this machine.

    Partition `main` is the default; a job of `urgent` preempts jobs of `main`, which are requeued
    20 s after SIGTERM and their --signal. A requeued job starts again after 5 s; a cancelled one is
    killed 5 s after SIGTERM. Ended jobs are remembered for an hour; there is no sacct. All tests of
    a test run share it, so that a test looks at its own jobs only, and leaves none.

    conf: its slurm.conf; logs of its daemons lie in `conf.parent / "log"`, a node's daemon can be
    killed by the number in `conf.parent / "slurmd.n1.pid"` and started by `start_node`.
    """

    conf: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process that is to use the cluster runs with."""
        hidden = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SALLOC_", "SCANCEL_")
        own = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        return {**own, "SLURM_CONF": str(self.conf)}

    def run(self, *words: str, check: bool = True, timeout: float = 60, **more: str) -> str:
        """What a program such as `sbatch` prints. more: environment variables."""
        process = subprocess.run(
            words,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or process.returncode == 0, f"{words}: {process.stderr}"
        return process.stdout

    def cnn_depth(
        self, *words: str, timeout: float = 600, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `cnn-depth WORDS` there. more: environment variables."""
        return subprocess.run(
            [sys.executable, "-m", "launch", *words],
            env={**self.environment, **more},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def states(self, job: str) -> dict[str, str]:
        """State by id of a job, or of an array's jobs (of those also that have ended)."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i %T").split("\n")
        return dict(line.split() for line in lines if line)

    def detail(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job: JobState, Reason, Restarts, ExitCode, ..."""
        text = self.run("scontrol", "show", "job", "-o", job)
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def until(self, ready: Callable[[], object], awaited: str, seconds: float = 120) -> None:
        """Waits until `ready()`; fails with `awaited` and the queue after so many seconds."""
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"{awaited}: not within {seconds:g} s\n" + self.run(
                "squeue", "-r", "-t", "all"
            )
            time.sleep(0.2)

    def until_over(self, *jobs: str, seconds: float = 120) -> dict[str, str]:
        """Waits until all of these have ended for good; their states by id."""
        states: dict[str, str] = {}

        def over() -> bool:
            for job in jobs:
                states.update(self.states(job))
            return all(state in OVER.split() for state in states.values())

        self.until(over, f"the end of {', '.join(jobs)}", seconds)
        return states

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node (`n1`) again."""
        self.run("slurmd", "-f", str(self.conf), "-N", node)
        self.until(lambda: self.run("sinfo", "-h", "-n", node, "-o", "%t").strip() != "down*", node)


def unavailable() -> str:
    """Why no Slurm can be set up here; '' if one can."""
    if not sys.platform.startswith("linux"):
        return "a Slurm is set up on Linux only"
    if os.geteuid() != 0:
        return "a Slurm is set up by root only"
    if not shutil.which("slurmctld") and not shutil.which("apt-get"):
        return "there is no slurmctld, and no apt-get to install it"
    return ""


def _free_ports() -> int:
    """The first of some ports that nobody listens on."""
    while True:
        first = random.randrange(20000, 32000, PORTS)  # below those that are handed out
        with suppress(OSError):
            for port in range(first, first + PORTS):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
            return first


def _start(owner: int) -> str:
    """Starts a cluster that ends with the process `owner`; its folder, or why there is none."""
    installed = subprocess.run(["bash", SCRIPT, "install"], capture_output=True, text=True)
    if installed.returncode:
        lines = installed.stderr.strip().splitlines() or ["apt-get failed"]
        return f"skip: Slurm can't be installed: {lines[-1]}"
    root = tempfile.mkdtemp(prefix="cnn-depth-slurm-")
    started = subprocess.run(
        ["bash", SCRIPT, "start", root, str(_free_ports()), str(owner)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=180,
    )
    return f"fail: {started.stderr}" if started.returncode else root


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A Slurm of this test run alone; the test is skipped where none can be had.

    The processes of pytest-xdist share it. It ends when the test run does, whichever way.
    """
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    several = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if several else folder
    with (folder / "slurm.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        outcome = lock.read()
        if not outcome:
            outcome = _start(os.getppid() if several else os.getpid())
            lock.write(outcome)
    if outcome.startswith("skip: "):
        pytest.skip(outcome.removeprefix("skip: "))
    assert not outcome.startswith("fail: "), outcome
    yield SlurmCluster(Path(outcome) / "slurm.conf")
    if not several:
        subprocess.run(["bash", SCRIPT, "stop", outcome], check=True, timeout=120)
