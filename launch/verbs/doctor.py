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
works = onednn.works(), onednn.works("bfloat16")
print("convolutions", jax.local_device_count(), onednn.wished(), *works)
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
    """One line of the doctor's report."""

    what: str  # what was examined
    # absent: an optional part that is not installed; warn: works, could be better; bad: can't work
    state: Literal["ok", "absent", "warn", "bad"]
    found: str
    mend: str = ""  # what to do about `warn` or `bad`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs_and_json(parser, "JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Prints the findings. Returns 1 if any is bad."""
    # The default of `experiments.runs.runs`, which is not imported here: it may be what is broken.
    runs = args.runs or Path(os.environ.get("CNN_DEPTH_RUNS", "runs"))
    findings = list(examine(runs))
    healthy = all(finding.state != "bad" for finding in findings)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        _print_table(findings)
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
    """Compares each requirement in the project's metadata with what is installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("cnn-depth") or []
    except metadata.PackageNotFoundError:
        detail = "runs from a folder, not installed"
        yield Finding("cnn-depth", "warn", detail, "pip install -e . in it")
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
    detail = f"{probed['backend']}: {len(probed['devices'])} x {', '.join(kinds)}"
    falls_back = probed["backend"] == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if falls_back and (unused := _unused_accelerator()):
        yield Finding("JAX backend", "warn", f"{detail}, though {unused[0]}", unused[1])
    else:
        yield Finding("JAX backend", "ok", detail)
    if probed["precision"]:
        yield _precision(probed["precision"])
    yield _compilation_cache(probed["cache"])
    if probed["backend"] == "cpu":
        yield from _convolutions()
    elif probed["devices"] and (memory := probed["devices"][0]["memory_bytes"]):
        yield from _memory(probed["backend"], memory)


def _unused_accelerator() -> tuple[str, str] | None:
    """The sign of an accelerator that JAX does not use, and what to do; None without a sign."""
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
    """The formats that each `model.precision` multiplies in on the device, of float32 networks."""
    default = multiplied_in["default"]
    others = [f"{name}: {formats}" for name, formats in multiplied_in.items() if name != "default"]
    detail = f"default: {default}; {'; '.join(others)}"
    if set(multiplied_in.values()) == {default}:
        detail = f"{default}, at each (default, {', '.join(list(multiplied_in)[1:])})"
    return Finding("model.precision", "ok", detail)


def probe(environment: Mapping[str, str]) -> dict[str, Any] | Finding:
    """Starts JAX in another process. Returns its backend, devices and cache, or the problem."""
    try:
        env = devices.environment(devices.Slot(), environment)
        with waiting("starting JAX in a process of its own"):
            process = devices.run_code(PROBE, environment=env, seconds=devices.PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        detail = f"did not start within {devices.PROBE_SECONDS:g} s"
        mend = "see whether another process holds the device, or set JAX_PLATFORMS=cpu"
        return Finding("JAX backend", "bad", detail, mend)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    for pattern, problem, mend in FLAG_ERRORS:
        match = re.search(pattern, process.stderr, re.MULTILINE)
        if match:
            return Finding("JAX backend", "bad", problem.format(match[1].strip()), mend)
    last = devices.last_words(process)
    if environment.get("JAX_PLATFORMS"):
        detail, _, mend = last.partition("DeviceError: ")[2].partition("; ")
        if not mend:
            detail = f"JAX_PLATFORMS={environment['JAX_PLATFORMS']} does not start ({last})"
        return Finding("JAX backend", "bad", detail, mend or devices.start_advice(environment))
    flags = bool(environment.get("XLA_FLAGS"))
    mend = "unset XLA_FLAGS" if flags else "reinstall: make clean, then make sweep"
    return Finding("JAX backend", "bad", f"does not start ({last})", mend)


def _convolutions() -> Iterator[Finding]:
    """Whose convolutions long trainings on this CPU use: oneDNN's where its trial passes."""
    name = "convolutions"
    try:
        env, seconds = devices.environment(devices.Slot()), 2 * devices.PROBE_SECONDS
        # The trial has a shorter limit of its own.
        with waiting("trying oneDNN's convolutions"):
            process = devices.run_code(CONVOLUTIONS, environment=env, seconds=seconds)
    except subprocess.TimeoutExpired:
        return
    refused = re.search(r"ArchitectureError: (.+CNN_DEPTH_CONVOLUTIONS.+)", process.stderr)
    if refused:
        yield Finding(name, "bad", refused[1], "unset it, or choose one of these")
    match = re.search(r"^convolutions (\d+) (\w+) (\w+) (\w+)$", process.stdout, re.MULTILINE)
    if match is None:  # a package is missing or broken, which its own line says
        return
    n_devices, choice, works, in_bfloat16 = match.groups()
    bfloat16 = ", also of bfloat16" if in_bfloat16 == "True" else ""
    if n_devices != "1":
        yield Finding(name, "ok", f"XLA's, on {n_devices} devices")
    elif choice == "xla":
        yield Finding(name, "ok", "XLA's, as $CNN_DEPTH_CONVOLUTIONS says")
    elif works == "True":
        when = ", in long trainings" if choice == "auto" else ""
        yield Finding(name, "ok", f"oneDNN's{bfloat16}{when}")
    elif choice == "onednn":
        detail = "oneDNN's, which failed their trial, or did not end it"
        yield Finding(name, "bad", detail, "unset CNN_DEPTH_CONVOLUTIONS")
    else:
        yield Finding(name, "ok", "XLA's; oneDNN's failed their trial, or did not end it")


def _memory(backend: str, memory: int) -> Iterator[Finding]:
    """The rows of the papers' tables that don't fit one accelerator, as `--plan` estimates."""
    try:
        env, seconds = devices.environment(devices.Slot()), 2 * devices.PROBE_SECONDS
        with waiting("estimating which rows of the papers fit this device"):
            process = devices.run_code(
                MEMORY, backend, str(memory), environment=env, seconds=seconds
            )
        rows = json.loads(process.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return  # a package is missing or broken, which its own line says
    if not rows:
        yield Finding("memory", "ok", "one device is enough for each row of the profile paper")
        return
    rows_by_mend: dict[str, list[str]] = {}
    for row, mend in rows:
        rows_by_mend.setdefault(mend, []).append(row)
    detail = f"one device is too small for {len(rows)} of the profile paper's rows"
    advice = "; ".join(f"{mend}: {', '.join(names)}" for mend, names in rows_by_mend.items())
    yield Finding("memory", "warn", detail, f"train on several devices, or --set what {advice}")


def _device(device: Mapping[str, Any]) -> str:
    memory = device["memory_bytes"]
    return f"{device['kind']} ({memory / GIB:.1f} GiB)" if memory else device["kind"]


def _compilation_cache(folder: str | None) -> Finding:
    name = "compilation cache"
    if not folder:
        return Finding(name, "ok", "off (JAX_COMPILATION_CACHE_DIR=FOLDER turns it on)")
    if "://" in folder:
        return Finding(name, "ok", folder)
    path = Path(folder).expanduser()
    if not _writable(path):
        return Finding(name, "bad", f"{path} cannot be written", "choose another folder for it")
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    return Finding(name, "ok", f"{path}: {len(files)} files, {size / 2**20:.0f} MiB")


def _optional_parts() -> Iterator[Finding]:
    """The packages and tools that only some uses need. They are looked up, never imported."""
    from input_pipeline.errors import INSTALL

    need = "only data sets that TFDS has yet to prepare, and JPEG, need it"
    yield _part("TensorFlow", "tensorflow", need)
    data = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    prepared = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
    detail = f"{data}: {', '.join(prepared) or 'none prepared'}"
    yield Finding("TFDS data sets", "ok" if prepared else "absent", detail)
    yield from _plugins()
    yield _slurm()
    need = "only the viewer of the logs: pip install tensorboard"
    yield _part("tensorboard", "tensorboard", need)
    for tracker, name in (("wandb", "W&B"), ("mlflow", "MLflow")):
        yield _part(name, tracker, f"only --track {tracker} needs it: {INSTALL.format(tracker)}")


def _part(name: str, module: str, use: str) -> Finding:
    version = devices.version(module)
    if version is None and find_spec(module) is None:
        return Finding(name, "absent", f"not installed; {use}")
    return Finding(name, "ok", version or "installed")


def _slurm() -> Finding:
    """Whether a cluster can be reached from here."""
    if shutil.which("sbatch") is None:
        return Finding("Slurm", "absent", "no sbatch here; only --backend slurm needs it")
    mend = "set SLURM_CONF to the cluster's slurm.conf, or log in to a machine of the cluster"
    try:
        process = squeue.run("sinfo", "-h", "-o", "%R")
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    else:
        if not process.returncode:
            return Finding("Slurm", "ok", f"partitions {', '.join(process.stdout.split())}")
        problem = devices.last_words(process)
    return Finding("Slurm", "warn", f"sbatch is here, and no answer: {problem}", mend)


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
        detail = f"{runs} cannot be written"
        return Finding("runs folder", "bad", detail, "start where you may write")
    free = shutil.disk_usage(_existing(runs)).free / GIB
    detail = f"{runs}, {free:.1f} GiB free"
    if free < 1:
        return Finding("runs folder", "warn", detail, "make room: checkpoints are kept there")
    return Finding("runs folder", "ok", detail)


def _existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _writable(path: Path) -> bool:
    nearest = _existing(path)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _print_table(findings: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(*MARKS[finding.state]), finding.what, Text(finding.found))
        if finding.mend:
            table.add_row("", "", Text(f"-> {finding.mend}", "bold"))
    console = Console()
    console.print(table)
    count = sum(finding.state == "bad" for finding in findings)
    problems = f"{count} problem{'s' * (count > 1)}; the arrows say what to do."
    console.print(problems if count else "Nothing is wrong.")
