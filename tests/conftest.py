"""What all tests share: a CPU backend, and fresh interpreters for what a process does only once."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before JAX is imported anywhere. JAX_PLATFORMS=cuda runs the tests on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("MPLBACKEND", "agg")

ROOT = Path(__file__).resolve().parent.parent
# Tests compile the same programs again and again, also in processes of their own.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "user")  # not the user's own
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture
def fresh_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a fresh interpreter: `fresh_python("-c", code, devices=8, XLA_FLAGS=...)`.

    `devices` is the number of host devices JAX shows there; further keywords are environment
    variables. Nothing is raised on a non-zero exit status.
    """

    def run(
        *arguments: str, devices: int = 1, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environment}
        return subprocess.run(
            [sys.executable, *arguments],
            env=variables,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
