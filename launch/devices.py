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
# Of $GLIBC_TUNABLES: a step's temporary arrays are new memory each time, and on CPU a sixth of its
# time went into their page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# Of platforms that $JAX_PLATFORMS can name: what JAX needs for them, and what installs that.
PLUGINS = {"cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}
# For processes of our own: the folder they are started in is not where their modules are.
PYTHON = (sys.executable, "-P")


class DeviceError(ValueError):
    """A device that is not there or does not start."""

    user_error = True


@dataclass(frozen=True)
class Slot:
    """A share of the machine for one process: CPU cores, or one accelerator."""

    cores: tuple[int, ...] = ()
    device: int | None = None


def environment(slot: Slot, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process of our own on a slot. given: of the process that starts it."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, given.get("PYTHONPATH"))))
    pages = given.get("GLIBC_TUNABLES", HUGE_PAGES)
    found = {**given, "GLIBC_TUNABLES": pages, "PYTHONPATH": path}
    if slot.cores:
        found["CNN_DEPTH_CORES"] = ",".join(map(str, slot.cores))
    if slot.device is not None:
        names = os.environ.get("CUDA_VISIBLE_DEVICES")  # of the GPUs that this process may use
        found["CUDA_VISIBLE_DEVICES"] = names.split(",")[slot.device] if names else str(slot.device)
    return found


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


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a program's errors; its exit status where it said nothing."""
    said = done.stderr.strip().splitlines()
    return said[-1].strip() if said else f"exit status {done.returncode}"


@dataclass(frozen=True)
class Probe:
    """What a process on a slot found: platform, local devices, training MACs a second.

    memory: bytes that a device lets a program have, where it says; kind: what it calls itself.
    """

    platform: str
    count: int
    macs_per_s: float
    memory: int | None = None
    kind: str = ""


def probe(slot: Slot) -> Probe:
    """Starts JAX in another process, on a slot, and times one convolution there.

    Raises DeviceError where JAX does not start; `cnn-depth doctor` says more.
    """
    try:
        done = run_code(PROBE, environment=environment(slot), seconds=PROBE_SECONDS)
    except subprocess.TimeoutExpired as error:
        told = f"JAX did not start within {PROBE_SECONDS:g} s; see `cnn-depth doctor`"
        raise DeviceError(told) from error
    if done.returncode:
        _, ours, said = last_words(done).partition("DeviceError: ")
        raise DeviceError(said if ours else _trouble(last_words(done)))
    return Probe(**json.loads(done.stdout.strip().splitlines()[-1]))


def cpu_slots(number: int) -> list[Slot]:
    """The usable cores, shared out evenly among this many processes."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores:
        return [Slot()] * number
    share = max(1, len(cores) // number)
    starts = [i * share % len(cores) for i in range(number)]
    return [Slot(cores=tuple(cores[start : start + share])) for start in starts]


def slots(found: Probe, number: int, parallel: int | None) -> list[Slot]:
    """Shares for `number` processes: of the cores, or one accelerator each.

    A TPU host's chips belong to one process at a time. `parallel` is what the user asked for.
    """
    if found.platform == "cpu":
        return cpu_slots(number)
    if found.platform in ("gpu", "cuda", "rocm"):
        return [Slot(device=i) for i in range(min(found.count, parallel or found.count))]
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


def _trouble(said: str) -> str:
    """What is wrong where JAX does not start, and what can be done. said: JAX's own words."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    what = f"JAX_PLATFORMS={wanted} does not start" if wanted else "JAX does not start here"
    said = " ".join(said.partition("(set JAX_PLATFORMS")[0].split())
    return f"{what} ({said or 'there is no such device'}); {mend(os.environ)}"


def mend(environment: Mapping[str, str]) -> str:
    """What to do where JAX does not start with the platforms that $JAX_PLATFORMS names."""
    wanted = environment.get("JAX_PLATFORMS", "")
    if not wanted:
        return "see `cnn-depth doctor`"
    from input_pipeline.errors import INSTALL

    found = "unset JAX_PLATFORMS, and JAX takes what there is"
    for name in wanted.split(","):
        platform = {"gpu": "cuda"}.get(name, name)
        if platform == "cuda" and not NVIDIA_DRIVER.exists():
            found += "; this machine has no NVIDIA driver"
        elif platform in PLUGINS and not plugins(platform):
            found += f"; or install what it names: {INSTALL.format(platform)}"
        elif platform not in ("cpu", *PLUGINS):
            found += f"; {name!r} is none of cpu, {', '.join(PLUGINS)}"
    return found


def plugins(platform: str) -> list[str]:
    """Those of the packages that JAX needs for a platform that are installed."""
    return [name for name in PLUGINS[platform] if version(name)]


def version(distribution: str) -> str | None:
    """Of an installed package; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def use_cpu_only() -> None:
    """Keeps JAX in this process, and not in those it starts, off the accelerators."""
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
    """Has entries of the compilation cache that can't be read or written deleted, and told once.

    JAX never replaces one that is there, and warns of it in every process that needs it.
    """
    import jax
    from jax._src import compilation_cache

    if hasattr(compilation_cache.get_executable_and_time, "__wrapped__"):
        return
    told: set[str] = set()

    def mended(original: Callable[..., Any], what: str, instead: Any) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(key: str, *args: Any, **options: Any) -> Any:
            try:
                return original(key, *args, **options)
            except Exception as error:  # damaged entries raise nearly anything
                entry = Path(jax.config.jax_compilation_cache_dir or "", f"{key}-cache")
                for file in (entry, entry.with_name(f"{key}-atime")):
                    with suppress(OSError):
                        file.unlink()
                if what not in told:
                    told.add(what)
                    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
                    print(f"compilation cache: {entry} {what} ({first})", file=sys.stderr)
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
    """A run's start: until what this gives hears of an event of its steps, or until the end.

    Importing JAX and tracing a step make millions of objects that stay; Python does not look for
    cycles among them meanwhile, which takes a sixth of the time.
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


def one_of(index: int, count: int, address: str) -> dict[str, str]:
    """What makes a process one of several, in its environment. address: HOST:PORT of the first."""
    return {COORDINATOR: address, COUNT: str(count), INDEX: str(index)}


def place(*, slurm: bool = False) -> tuple[int, int]:
    """(i, n): this process is the i-th of n, as the environment says. The argument is `join`'s."""
    if os.environ.get(INDEX):
        return int(os.environ[INDEX]), int(os.environ.get(COUNT) or 1)
    if slurm:
        return int(os.environ.get("SLURM_PROCID") or 0), int(os.environ.get("SLURM_NTASKS") or 1)
    return 0, 1


def join(*, slurm: bool = False, detect: bool = False) -> None:
    """Makes this process one of the several of a job, where it is; before JAX starts in it.

    $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID say so (as local runs of
    several processes do); slurm: else Slurm's environment, in a task of a step; detect: else
    whatever JAX finds (TPU pods, Kubernetes, Open MPI).

    Raises DeviceError where some of these variables are missing, or the others are not found.
    """
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return
    given = [name for name in (COORDINATOR, COUNT, INDEX) if os.environ.get(name)]
    how: dict[str, Any]
    if len(given) == 3:
        how = {
            "coordinator_address": os.environ[COORDINATOR],
            "num_processes": int(os.environ[COUNT]),
            "process_id": int(os.environ[INDEX]),
            "cluster_detection_method": "deactivate",
        }
    elif given:
        raise DeviceError(f"of {COORDINATOR}, {COUNT} and {INDEX}, only {given[0]} is set")
    elif slurm and place(slurm=True)[1] > 1:
        how = {"cluster_detection_method": "slurm", "local_device_ids": _of_slurm_task()}
    elif detect:
        how = {}
    else:
        return
    import jax

    # A signal is the worker's, which says at which step all stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**how, initialization_timeout=JOIN_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"the processes of this job do not find each other: {error}") from error
    os.environ |= one_of(jax.process_index(), jax.process_count(), os.environ.get(COORDINATOR, ""))


def _of_slurm_task() -> list[int]:
    """A task's part of its node's GPUs, by number; [0] where there are none."""
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    tasks = int(os.environ["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0])
    own = max(1, gpus // tasks)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if 0 < len(visible) <= own:  # bound to this task by Slurm
        return list(range(len(visible)))
    start = int(os.environ["SLURM_LOCALID"]) * own
    return list(range(start, start + own))


def by_place(device: Any) -> tuple[int, int, int]:
    """Orders devices so that a process's are side by side, as its part of a batch is, and those of
    a slice of TPUs too, whose links are faster than the network between slices."""
    return getattr(device, "slice_index", 0), device.process_index, device.id


def mesh(count: int | None = None) -> Mesh:
    """The mesh axis `data` over the first `count` devices of all processes, by default all.

    Raises DeviceError where JAX does not start, or has not so many.
    """
    import numpy as np
    from jax.sharding import AxisType, Mesh

    found = start()
    if count is not None and not 1 <= count <= len(found):
        raise DeviceError(f"--devices {count}: there are {len(found)}")
    found = sorted(found[:count], key=by_place)
    return Mesh(np.array(found), ("data",), axis_types=(AxisType.Auto,))
