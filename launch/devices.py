"""The devices of this machine, shared out among processes, and the mesh of one process."""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

# A convolution of the demo nets, forward and backward, on whatever device this process has.
PROBE = """
import json, time
from launch import devices
devices.set_up()
devices.start()
import jax, jax.numpy as jnp
x, k = jnp.ones((64, 16, 16, 16)), jnp.full((3, 3, 16, 16), 0.01)
def layer(x, k):
    return jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
def loss(x, k):
    return layer(jax.nn.relu(layer(x, k)), k).sum()
step = jax.jit(jax.grad(loss, argnums=(0, 1)))
jax.block_until_ready(step(x, k))
start, n = time.perf_counter(), 0
while time.perf_counter() - start < 0.3:
    jax.block_until_ready(step(x, k))
    n += 1
macs = 3 * 2 * 64 * 16 * 16 * 9 * 16 * 16
first = jax.local_devices()[0]
print(json.dumps({"platform": jax.default_backend(), "count": jax.local_device_count(),
                  "macs_per_s": n * macs / (time.perf_counter() - start),
                  "memory": (first.memory_stats() or {}).get("bytes_limit"),
                  "kind": first.device_kind}))
"""
PROBE_SECONDS = 120.0  # a cold GPU or TPU takes tens of seconds
# For $GLIBC_TUNABLES: a step's temporary arrays are new memory each time, and on a CPU a sixth of
# its time went into page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# A platform of $JAX_PLATFORMS, which is also the extra that installs it -> packages JAX needs.
PLUGINS = {"cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}
# How this project starts Python: no modules are imported from the folder it is started in.
PYTHON = (sys.executable, "-P")


class DeviceError(ValueError):
    """A device that is not there or does not start."""

    user_error = True


@dataclass(frozen=True)
class Slot:
    """A share of the machine for one process: CPU cores, or one accelerator."""

    cores: tuple[int, ...] = ()
    device: int | None = None


def environment(slot: Slot, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process on a slot. base: that of the process that starts it."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, base.get("PYTHONPATH"))))
    pages = base.get("GLIBC_TUNABLES", HUGE_PAGES)
    env = {**base, "GLIBC_TUNABLES": pages, "PYTHONPATH": path}
    if slot.cores:
        env["CNN_DEPTH_CORES"] = ",".join(map(str, slot.cores))
    if slot.device is not None:
        names = os.environ.get("CUDA_VISIBLE_DEVICES")  # of the GPUs that this process may use
        env["CUDA_VISIBLE_DEVICES"] = names.split(",")[slot.device] if names else str(slot.device)
    return env


def run_code(
    code: str, *words: str, environment: Mapping[str, str], seconds: float | None
) -> subprocess.CompletedProcess[str]:
    """Runs Python code with arguments in another process. Raises subprocess.TimeoutExpired."""
    return subprocess.run(
        [*PYTHON, "-c", code, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def last_words(process: subprocess.CompletedProcess[str]) -> str:
    """The last line of a program's standard error; without one, its exit status."""
    lines = process.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {process.returncode}"


@dataclass(frozen=True)
class Probe:
    """The devices that a process on a slot found."""

    platform: str
    count: int  # of local devices
    macs_per_s: float  # multiply-adds a second of training, measured
    memory: int | None = None  # bytes of a device that a program may have; None if it does not say
    kind: str = ""  # the device's own name


def probe(slot: Slot) -> Probe:
    """Starts JAX in another process, on a slot, and times one convolution there.

    Raises DeviceError where JAX does not start; `cnn-depth doctor` says more.
    """
    try:
        process = run_code(PROBE, environment=environment(slot), seconds=PROBE_SECONDS)
    except subprocess.TimeoutExpired as error:
        message = f"JAX did not start within {PROBE_SECONDS:g} s; see `cnn-depth doctor`"
        raise DeviceError(message) from error
    if process.returncode:
        _, ours, reason = last_words(process).partition("DeviceError: ")
        raise DeviceError(reason if ours else _trouble(last_words(process)))
    return Probe(**json.loads(process.stdout.strip().splitlines()[-1]))


def cpu_slots(number: int) -> list[Slot]:
    """The usable cores, shared out evenly among this many processes."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores:
        return [Slot()] * number
    share = max(1, len(cores) // number)
    starts = [i * share % len(cores) for i in range(number)]
    return [Slot(cores=tuple(cores[start : start + share])) for start in starts]


def slots(probed: Probe, number: int, parallel: int | None) -> list[Slot]:
    """Shares for `number` processes: of the cores, or one accelerator each.

    A TPU host's chips belong to one process at a time. parallel: the user's `--parallel`.
    """
    if probed.platform == "cpu":
        return cpu_slots(number)
    if probed.platform in ("gpu", "cuda", "rocm"):
        return [Slot(device=i) for i in range(min(probed.count, parallel or probed.count))]
    return [Slot()]


def start() -> list[Any]:
    """Starts JAX in this process, after `set_up`: its devices.

    Raises DeviceError where it does not start, with what can be done about it.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no platform is left to try
        raise DeviceError(_trouble(str(error))) from error


def _trouble(message: str) -> str:
    """Why JAX does not start, and what can be done. message: JAX's own error."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    fault = f"JAX_PLATFORMS={platforms} does not start" if platforms else "JAX does not start here"
    message = " ".join(message.partition("(set JAX_PLATFORMS")[0].split())
    return f"{fault} ({message or 'there is no such device'}); {start_advice(os.environ)}"


def start_advice(environment: Mapping[str, str]) -> str:
    """Advice for a JAX that does not start with the platforms of $JAX_PLATFORMS."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if not platforms:
        return "see `cnn-depth doctor`"
    from input_pipeline.errors import INSTALL

    advice = "unset JAX_PLATFORMS, and JAX takes what there is"
    for name in platforms.split(","):
        platform = {"gpu": "cuda"}.get(name, name)
        if platform == "cuda" and not NVIDIA_DRIVER.exists():
            advice += "; this machine has no NVIDIA driver"
        elif platform in PLUGINS and not plugins(platform):
            advice += f"; or install what it names: {INSTALL.format(platform)}"
        elif platform not in ("cpu", *PLUGINS):
            advice += f"; {name!r} is none of cpu, {', '.join(PLUGINS)}"
    return advice


def plugins(platform: str) -> list[str]:
    """The installed packages among those that JAX needs for a platform."""
    return [name for name in PLUGINS[platform] if version(name)]


def version(distribution: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def use_cpu_only() -> None:
    """Keeps JAX off the accelerators in this process, but not in those that it starts."""
    set_up()
    import jax

    jax.config.update("jax_platforms", "cpu")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up() -> None:
    """Prepares this process before JAX starts in it: its cores, and the compilation cache."""
    cores = os.environ.get("CNN_DEPTH_CORES")
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(c) for c in cores.split(",")})
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cnn-depth" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # A network's parameters are drawn by a small program for each shape.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
    _mend_cache()


def _mend_cache() -> None:
    """Makes JAX delete entries of its compilation cache that can't be read or written; the first
    of each is reported.

    JAX itself never replaces a damaged entry, and warns of it in every process that needs it.
    """
    import jax
    from jax._src import compilation_cache

    if hasattr(compilation_cache.get_executable_and_time, "__wrapped__"):
        return
    reported: set[str] = set()

    def mended(original: Callable[..., Any], fault: str, instead: Any) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(key: str, *args: Any, **options: Any) -> Any:
            try:
                return original(key, *args, **options)
            except Exception as error:  # damaged entries raise nearly anything
                entry = Path(jax.config.jax_compilation_cache_dir or "", f"{key}-cache")
                for file in (entry, entry.with_name(f"{key}-atime")):
                    with suppress(OSError):
                        file.unlink()
                if fault not in reported:
                    reported.add(fault)
                    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
                    print(f"compilation cache: {entry} {fault} ({first})", file=sys.stderr)
                return instead

        return wrapped

    unread = "could not be read; it is deleted and written anew"
    compilation_cache.get_executable_and_time = mended(
        compilation_cache.get_executable_and_time, unread, (None, None)
    )
    compilation_cache.put_executable_and_time = mended(
        compilation_cache.put_executable_and_time, "could not be written", None
    )


# Events of a run before its first step.
BEFORE_STEPS = ("launched", "locked", "seeded", "start")


@contextmanager
def starting() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Switches garbage collection off for a run's start. Yields a function for the run's events,
    which switches it on again at the first event of its steps.

    Importing JAX and tracing a step make millions of objects that stay. To look for cycles among
    them takes a sixth of the time.
    """

    def on_event(event: Mapping[str, Any]) -> None:
        trained = event.get("step", 0) == event.get("steps")  # no steps are left
        if trained or event["event"] not in BEFORE_STEPS:
            gc.enable()

    gc.disable()
    try:
        yield on_event
    finally:
        gc.enable()


JOIN_SECONDS = 1800  # the first process may wait for the run's lock
COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def process_variables(index: int, count: int, address: str) -> dict[str, str]:
    """The variables that make a process one of several. address: HOST:PORT of the first one."""
    return {COORDINATOR: address, COUNT: str(count), INDEX: str(index)}


def process_index(*, slurm: bool = False) -> tuple[int, int]:
    """(i, n): this process is the i-th of n, as the environment says. slurm: see `join`.

    Raises DeviceError where a variable is no number.
    """
    if os.environ.get(INDEX):
        return _whole_number(INDEX), _whole_number(COUNT) if os.environ.get(COUNT) else 1
    if slurm:
        return int(os.environ.get("SLURM_PROCID") or 0), int(os.environ.get("SLURM_NTASKS") or 1)
    return 0, 1


def _whole_number(variable: str) -> int:
    value = os.environ[variable]
    try:
        return int(value)
    except ValueError:
        raise DeviceError(f"{variable}={value}: expected a whole number, such as 2") from None


def join(*, slurm: bool = False, detect: bool = False) -> None:
    """Connects this process with the others of its job, if there are any, before JAX starts.

    $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID say which they are; local runs
    of several processes set these. slurm: else Slurm's environment says so, in a task of a step.
    detect: else JAX looks for them itself (TPU pods, Kubernetes, Open MPI).

    Raises DeviceError where only some of the variables are set, one is no number, or the others do
    not answer.
    """
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return
    names = [name for name in (COORDINATOR, COUNT, INDEX) if os.environ.get(name)]
    options: dict[str, Any]
    if len(names) == 3:
        options = {
            "coordinator_address": os.environ[COORDINATOR],
            "num_processes": _whole_number(COUNT),
            "process_id": _whole_number(INDEX),
            "cluster_detection_method": "deactivate",
        }
    elif names:
        listed = " and ".join(names) + (" are set" if len(names) > 1 else " is set")
        raise DeviceError(f"of {COORDINATOR}, {COUNT} and {INDEX}, only {listed}")
    elif slurm and process_index(slurm=True)[1] > 1:
        options = {"cluster_detection_method": "slurm", "local_device_ids": _of_slurm_task()}
    elif detect:
        options = {}
    else:
        return
    import jax

    # The worker handles signals itself, and says at which step all processes stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options, initialization_timeout=JOIN_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"the processes of this job do not find each other: {error}") from error
    os.environ |= process_variables(
        jax.process_index(), jax.process_count(), os.environ.get(COORDINATOR, "")
    )


def _of_slurm_task() -> list[int]:
    """A task's part of its node's GPUs, by number; [0] where there are none."""
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    tasks: list[int] = []  # of each node, which Slurm writes as 2(x3),1
    for part in os.environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        number, _, times = part.rstrip(")").partition("(x")
        tasks += [int(number)] * int(times or 1)
    share = max(1, gpus // tasks[int(os.environ.get("SLURM_NODEID") or 0)])
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if 0 < len(visible) <= share:  # bound to this task by Slurm
        return list(range(len(visible)))
    start = int(os.environ["SLURM_LOCALID"]) * share
    return list(range(start, start + share))


def by_place(device: Any) -> tuple[int, int, int]:
    """A key that sorts devices by TPU slice and process. The parts of a batch lie side by side
    likewise, and links within a slice are faster than the network between slices."""
    return getattr(device, "slice_index", 0), device.process_index, device.id


def mesh(count: int | None = None) -> Mesh:
    """The mesh axis `data` over the first `count` devices of all processes, by default all.

    Raises DeviceError where JAX does not start, or has not so many.
    """
    import numpy as np
    from jax.sharding import AxisType, Mesh

    devices = start()
    if count is not None and not 1 <= count <= len(devices):
        raise DeviceError(f"--devices {count}: there are {len(devices)}")
    devices = sorted(devices[:count], key=by_place)
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
