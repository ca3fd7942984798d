"""`cnn-depth doctor`: what this machine offers, what is wrong with it, and the mend for each.

The accelerator is started in another process first: XLA aborts the whole process on a flag that
it does not know, and a driver that hangs must not hang the doctor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from launch import devices
from launch.executors import squeue
from launch.patience import waiting
from launch.verbs.options import add_runs_and_json

HELP = """\
Report Python, packages, devices, flags, caches, optional parts and the runs folder.
Exit status 1 when something is wrong; each problem comes with its mend."""
EXAMPLE = """
cnn-depth doctor
cnn-depth doctor --json
"""

GIB = 2**30
# With the settings of the verbs that train.
PROBE = """
import json
from launch import devices
devices.set_up()
devices.start()
import jax
found = [
    {"kind": d.device_kind, "memory_bytes": (d.memory_stats() or {}).get("bytes_limit")}
    for d in jax.local_devices()
]
try:
    from cnn_arch import execution
    first = jax.local_devices()[0]
    precision = {p: execution.multiplied_in(p, "float32", first) for p in execution.PRECISIONS}
except Exception:  # a package is missing or broken, which its own line says
    precision = {}
print(json.dumps({
    "backend": jax.default_backend(),
    "precision": precision,
    "devices": found,
    "cache": jax.config.jax_compilation_cache_dir,
}))
"""
CONVOLUTIONS = """
from launch import devices
devices.set_up()
import jax
from cnn_arch.kernels import onednn
print("convolutions", jax.local_device_count(), onednn.wished(), onednn.works())
"""
MEMORY = """
import json, sys
from launch import devices
devices.use_cpu_only()
from launch.planning import fit
kind, memory = sys.argv[1:]
print(json.dumps(fit.too_large(fit.KINDS[kind], float(memory))))
"""
# How a finding's state is shown: word and style.
MARKS = {
    "ok": ("ok", "green"),
    "absent": ("-", "dim"),
    "warn": ("warn", "yellow"),
    "bad": ("BAD", "bold red"),
}
# What XLA says before it aborts -> what is wrong, how to mend it.
FLAG_ERRORS = (
    (
        r"Unknown flags? in XLA_FLAGS: (.+)",
        "XLA does not know {}",
        "take it out of XLA_FLAGS (check its spelling; flags come and go with jaxlib)",
    ),
    (
        r"Couldn't interpret value (.+ for flag .+?)\.?$",
        "XLA cannot read the value {}",
        "correct that value in XLA_FLAGS",
    ),
    (
        r'Could not open file "(.+?)" to read flags',
        "XLA takes '{}' for the name of a file of flags",
        "write the flags in XLA_FLAGS with two leading dashes: --xla_...",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    `state` is "ok"; "absent" (an optional part that is not there); "warn" (works, could be
    better); or "bad" (will not work). `mend` says what to do about the last two.
    """

    what: str
    state: Literal["ok", "absent", "warn", "bad"]
    found: str
    mend: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs_and_json(parser, "JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Print the findings; 1 if any is bad."""
    # As `experiments.runs.runs` has it; that package is not imported, for it may be what is broken.
    runs = args.runs or Path(os.environ.get("CNN_DEPTH_RUNS", "runs"))
    found = list(examine(runs))
    healthy = all(finding.state != "bad" for finding in found)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(f) for f in found]}, indent=2))
    else:
        _print_table(found)
    return 0 if healthy else 1


def examine(runs: Path) -> Iterator[Finding]:
    """Every finding, in the order of the report."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    cores = f"{devices.usable_cores()} of {os.cpu_count() or 1} usable"
    yield Finding("CPU cores", "ok", cores)
    yield from _environment()
    yield from _accelerator()
    yield from _optional_parts()
    yield _runs_folder(runs)


def _packages() -> Iterator[Finding]:
    """Each requirement in the project's own metadata against what is installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("cnn-depth") or []
    except metadata.PackageNotFoundError:
        found = "runs from a folder, not installed"
        yield Finding("cnn-depth", "warn", found, "pip install -e . in it")
        return
    yield Finding("cnn-depth", "ok", metadata.version("cnn-depth"))
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, version = requirement.name, devices.version(requirement.name)
        mend = f"pip install '{name}{requirement.specifier}'"
        if version is None:
            yield Finding(name, "bad", "not installed", mend)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(name, "bad", f"{version}, needs {requirement.specifier}", mend)
        else:
            yield Finding(name, "ok", version)


def _environment() -> Iterator[Finding]:
    names = [n for n in sorted(os.environ) if n.startswith("JAX_") or n == "XLA_FLAGS"]
    for name in names:
        yield Finding(name, "ok", os.environ[name])
    if not names:
        yield Finding("XLA_FLAGS, JAX_*", "ok", "none set")


def _accelerator() -> Iterator[Finding]:
    probed = probe(os.environ)
    if isinstance(probed, Finding):
        yield probed
        return
    kinds = sorted({_device(device) for device in probed["devices"]})
    found = f"{probed['backend']}: {len(probed['devices'])} x {', '.join(kinds)}"
    unused = probed["backend"] == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if unused and (why := _unused_accelerator()):
        yield Finding("JAX backend", "warn", f"{found}, though {why[0]}", why[1])
    else:
        yield Finding("JAX backend", "ok", found)
    if probed["precision"]:
        yield _precision(probed["precision"])
    yield _compilation_cache(probed["cache"])
    if probed["backend"] == "cpu":
        yield from _convolutions()
    elif probed["devices"] and (memory := probed["devices"][0]["memory_bytes"]):
        yield from _memory(probed["backend"], memory)


def _unused_accelerator() -> tuple[str, str] | None:
    """What speaks for an accelerator that JAX does not use, and what to do; None if nothing."""
    from input_pipeline.errors import INSTALL

    cuda, tpu = devices.plugins("cuda"), devices.plugins("tpu")
    driver = devices.NVIDIA_DRIVER.exists()
    if driver and not cuda:
        return "there is an NVIDIA driver", INSTALL.format("cuda")
    if driver:
        mend = f"see that nvidia-smi lists a GPU and that its driver is new enough for {cuda[0]}"
        return f"{cuda[0]} and an NVIDIA driver are installed", mend
    if cuda:
        mend = f"start where there is a GPU (in a container, with its driver), or remove {cuda[0]}"
        return f"{cuda[0]} is installed: this machine has no NVIDIA driver", mend
    if tpu:
        mend = "start on a TPU host, and see that no other process holds its chips; or remove it"
        return f"{tpu[0]} is installed: it finds no TPU", mend
    return None


def _precision(multiplied_in: Mapping[str, str]) -> Finding:
    """What the values of `model.precision` mean on the device, for networks in float32."""
    default = multiplied_in["default"]
    others = [f"{name}: {numbers}" for name, numbers in multiplied_in.items() if name != "default"]
    found = f"default: {default}; {'; '.join(others)}"
    if set(multiplied_in.values()) == {default}:
        found = f"{default}, at each (default, {', '.join(list(multiplied_in)[1:])})"
    return Finding("model.precision", "ok", found)


def probe(environment: Mapping[str, str]) -> dict[str, Any] | Finding:
    """Start JAX in another process: its backend, devices and cache, or what is wrong with it."""
    try:
        own = devices.environment(devices.Slot(), environment)
        with waiting("starting JAX in a process of its own"):
            done = devices.run_code(PROBE, environment=own, seconds=devices.PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        found = f"did not start within {devices.PROBE_SECONDS:g} s"
        mend = "see whether another process holds the device, or set JAX_PLATFORMS=cpu"
        return Finding("JAX backend", "bad", found, mend)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    for pattern, problem, mend in FLAG_ERRORS:
        said = re.search(pattern, done.stderr, re.MULTILINE)
        if said:
            return Finding("JAX backend", "bad", problem.format(said[1].strip()), mend)
    last = devices.last_words(done)
    if environment.get("JAX_PLATFORMS"):
        found, _, mend = last.partition("DeviceError: ")[2].partition("; ")
        if not mend:
            found = f"JAX_PLATFORMS={environment['JAX_PLATFORMS']} does not start ({last})"
        return Finding("JAX backend", "bad", found, mend or devices.mend(environment))
    flags = bool(environment.get("XLA_FLAGS"))
    mend = "unset XLA_FLAGS" if flags else "reinstall: make clean, then make sweep"
    return Finding("JAX backend", "bad", f"does not start ({last})", mend)


def _convolutions() -> Iterator[Finding]:
    """Whose convolutions long trainings on this CPU have: oneDNN's where its trial passes."""
    what = "convolutions"
    try:
        own, seconds = devices.environment(devices.Slot()), 2 * devices.PROBE_SECONDS
        # The trial ends by itself before.
        with waiting("trying oneDNN's convolutions"):
            done = devices.run_code(CONVOLUTIONS, environment=own, seconds=seconds)
    except subprocess.TimeoutExpired:
        return
    wrong = re.search(r"ArchitectureError: (.+CNN_DEPTH_CONVOLUTIONS.+)", done.stderr)
    if wrong:
        yield Finding(what, "bad", wrong[1], "unset it, or choose one of these")
    said = re.search(r"^convolutions (\d+) (\w+) (\w+)$", done.stdout, re.MULTILINE)
    if said is None:  # a package is missing or broken, which its own line says
        return
    count, wish, works = said.groups()
    if count != "1":
        yield Finding(what, "ok", f"XLA's, on {count} devices")
    elif wish == "xla":
        yield Finding(what, "ok", "XLA's, as $CNN_DEPTH_CONVOLUTIONS says")
    elif works == "True":
        yield Finding(what, "ok", "oneDNN's, in long trainings" if wish == "auto" else "oneDNN's")
    elif wish == "onednn":
        found = "oneDNN's, which failed their trial, or did not end it"
        yield Finding(what, "bad", found, "unset CNN_DEPTH_CONVOLUTIONS")
    else:
        yield Finding(what, "ok", "XLA's; oneDNN's failed their trial, or did not end it")


def _memory(backend: str, memory: int) -> Iterator[Finding]:
    """Which rows of the papers' tables do not fit one accelerator, by the estimate of `--plan`."""
    try:
        own, seconds = devices.environment(devices.Slot()), 2 * devices.PROBE_SECONDS
        with waiting("estimating which rows of the papers fit this device"):
            done = devices.run_code(MEMORY, backend, str(memory), environment=own, seconds=seconds)
        rows = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return  # a package is missing or broken, which its own line says
    if not rows:
        yield Finding("memory", "ok", "one device is enough for each row of the profile paper")
        return
    ways: dict[str, list[str]] = {}
    for row, mend in rows:
        ways.setdefault(mend, []).append(row)
    found = f"one device is too small for {len(rows)} of the profile paper's rows"
    told = "; ".join(f"{mend}: {', '.join(of)}" for mend, of in ways.items())
    yield Finding("memory", "warn", found, f"train on several devices, or --set what {told}")


def _device(device: Mapping[str, Any]) -> str:
    memory = device["memory_bytes"]
    return f"{device['kind']} ({memory / GIB:.1f} GiB)" if memory else device["kind"]


def _compilation_cache(folder: str | None) -> Finding:
    what = "compilation cache"
    if not folder:
        return Finding(what, "ok", "off (JAX_COMPILATION_CACHE_DIR=FOLDER turns it on)")
    if "://" in folder:
        return Finding(what, "ok", folder)
    path = Path(folder).expanduser()
    if not _writable(path):
        return Finding(what, "bad", f"{path} cannot be written", "choose another folder for it")
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    return Finding(what, "ok", f"{path}: {len(files)} files, {size / 2**20:.0f} MiB")


def _optional_parts() -> Iterator[Finding]:
    """Parts that some uses need. They are looked up, never imported."""
    from input_pipeline.errors import INSTALL

    need = "only data sets that TFDS has yet to prepare, and JPEG, need it"
    yield _part("TensorFlow", "tensorflow", need)
    data = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    prepared = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
    found = f"{data}: {', '.join(prepared) or 'none prepared'}"
    yield Finding("TFDS data sets", "ok" if prepared else "absent", found)
    yield from _plugins()
    yield _slurm()
    need = "only the viewer of the logs: pip install tensorboard"
    yield _part("tensorboard", "tensorboard", need)
    for tracker, what in (("wandb", "W&B"), ("mlflow", "MLflow")):
        yield _part(what, tracker, f"only --track {tracker} needs it: {INSTALL.format(tracker)}")


def _part(what: str, module: str, use: str) -> Finding:
    version = devices.version(module)
    if version is None and find_spec(module) is None:
        return Finding(what, "absent", f"not installed; {use}")
    return Finding(what, "ok", version or "installed")


def _slurm() -> Finding:
    """Whether a cluster can be reached from here."""
    if shutil.which("sbatch") is None:
        return Finding("Slurm", "absent", "no sbatch here; only --backend slurm needs it")
    mend = "set SLURM_CONF to the cluster's slurm.conf, or log in to a machine of the cluster"
    try:
        done = squeue.run("sinfo", "-h", "-o", "%R")
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    else:
        if not done.returncode:
            return Finding("Slurm", "ok", f"partitions {', '.join(done.stdout.split())}")
        wrong = devices.last_words(done)
    return Finding("Slurm", "warn", f"sbatch is here, and no answer: {wrong}", mend)


def _plugins() -> Iterator[Finding]:
    """The CUDA and TPU plugins; a CUDA plugin must be of jaxlib's own version."""
    from input_pipeline.errors import INSTALL

    jaxlib, installed = devices.version("jaxlib"), devices.plugins("cuda")
    for name in installed:
        version = devices.version(name)
        if version == jaxlib:
            yield Finding(name, "ok", str(version))
        else:
            mend = INSTALL.format("cuda")
            yield Finding(name, "bad", f"{version}, but jaxlib is {jaxlib}", mend)
    if not installed:
        yield Finding("CUDA", "absent", f"not installed; a GPU needs it: {INSTALL.format('cuda')}")
    yield _part("TPU", "libtpu", f"a TPU needs it: {INSTALL.format('tpu')}")


def _runs_folder(runs: Path) -> Finding:
    runs = runs.absolute()
    if not _writable(runs):
        found = f"{runs} cannot be written"
        return Finding("runs folder", "bad", found, "start where you may write")
    free = shutil.disk_usage(_existing(runs)).free / GIB
    found = f"{runs}, {free:.1f} GiB free"
    if free < 1:
        return Finding("runs folder", "warn", found, "make room: checkpoints are kept there")
    return Finding("runs folder", "ok", found)


def _existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _writable(path: Path) -> bool:
    nearest = _existing(path)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _print_table(found: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        table.add_row(Text(*MARKS[finding.state]), finding.what, Text(finding.found))
        if finding.mend:
            table.add_row("", "", Text(f"-> {finding.mend}", "bold"))
    console = Console()
    console.print(table)
    count = sum(finding.state == "bad" for finding in found)
    problems = f"{count} problem{'s' * (count > 1)}; the arrows say what to do."
    console.print(problems if count else "Nothing is wrong.")
