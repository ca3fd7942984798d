"""A run's checkpoints: the latest to go on from and the best on held-out images, through Orbax.

A checkpoint holds flat `{name: array}` trees (parameters, BatchNorm statistics, optimiser, average)
and a few host numbers (schedule, position, open averages). It is written in the background and
appears under its final name only when complete, so a kill at any moment leaves whole ones only.
What a disk or a copy damages later is found by digests of the arrays before any of it is used.
"""

import errno
import functools
import json
import logging
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from experiments.runs import processes

# Orbax logs each save and load through absl, and its errors before it raises them.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# Where the latest checkpoint is damaged, the run goes on from the one before.
KEPT = 2
NO_SPACE = os.strerror(errno.ENOSPC)


class CheckpointError(ValueError):
    """A checkpoint that is missing, unreadable or of another network."""

    user_error = True


class _First:
    """A policy that keeps the best checkpoint. Orbax's own takes NaN for the best, and the later of
    equals."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = _best(checkpoints)
        return [checkpoint.step == best for checkpoint in checkpoints]


def _best(checkpoints: Sequence[Any]) -> int | None:
    """The first step with the lowest validation error, None without any."""
    errors = [((c.metrics or {}).get("val_error", math.nan), c.step) for c in checkpoints]
    return min((e for e in errors if not math.isnan(e[0])), default=(None, None))[1]


class Checkpoints:
    """The checkpoints in `folder`; only the writer of a run opens it.

    Keeps the latest two and, of those saved with a validation error, the first of the best.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: Any = None
        if folder.exists() or processes.several():
            self._opened = self._checkpointer

    @property
    def _checkpointer(self) -> Any:
        """Orbax's checkpointer; it is opened late, so that a fresh run need not wait for it."""
        if self._opened is not None:
            return self._opened
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        _quiet()
        try:
            self._opened = ocp.training.Checkpointer(
                self.folder.absolute(),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(KEPT), _First()]
                ),
                cleanup_tmp_directories=True,
            )
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"checkpoints in {self.folder} can't be opened: {error}"
            ) from error
        return self._opened

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint."""
        latest = None if self._opened is None else self._opened.latest
        return None if latest is None else latest.step

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        host: Mapping[str, Any],
        val_error: float | None = None,
    ) -> None:
        """Starts to write the checkpoint of `step`; waits only for one still being written.

        arrays: trees of arrays. host: JSON-ready numbers, restored exactly. val_error: the error
        (percent) on held-out images at this step, where it was measured.

        Raises CheckpointError where this one, or the one before, can't be written.
        """
        with self._writing():
            self._checkpointer.save_async(
                step,
                dict(arrays),
                metrics=None if val_error is None else {"val_error": val_error},
                custom_metadata={"host": json.dumps(host), "digests": _digests(arrays)},
            )

    def restore(
        self, like: Mapping[str, Any], on_damaged: Callable[[str], None] = lambda reason: None
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(step, arrays, host) of the latest whole checkpoint, laid out as the arrays of `like`.

        Damaged ones after it are deleted, and `on_damaged` is called with the reason.

        Raises CheckpointError where none can be read, or it holds other arrays than `like`.
        """
        steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
        reasons: list[str] = []
        for step in steps:
            reason = _damage(self.folder / str(step)) if processes.first() else ""
            if not processes.from_first(bool(reason)):
                break
            reasons.append(reason or "it is damaged")
        else:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read (step {steps[0]}: {reasons[0]}); "
                "delete the run's folder to train it anew"
            )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like)
        )
        try:
            metadata = self._checkpointer.metadata(step)
            arrays = self._checkpointer.load(step, abstract)
            host = json.loads((metadata.custom_metadata or {})["host"])
            for damaged in steps[: len(reasons)]:
                self._checkpointer.delete(damaged)
        except Exception as error:  # Orbax raises many types; each means the same here
            if processes.several() and not isinstance(error, (ValueError, LookupError)):
                raise  # more likely another process was lost
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} can't be read ({_first_line(error)}); "
                "delete the run's folder to train it anew"
            ) from error
        for damaged, reason in zip(steps, reasons, strict=False):
            on_damaged(f"checkpoint {damaged} is damaged ({reason}); going on from step {step}")
        return step, arrays, host

    def finish(self) -> None:
        """Waits until all is written."""
        if self._opened is not None:
            with self._writing():
                self._opened.wait()

    def prune(self) -> None:
        """Deletes all but the latest and the best checkpoint of a finished training."""
        checkpoints = self._checkpointer.checkpoints
        for step in {c.step for c in checkpoints} - {_best(checkpoints), checkpoints[-1].step}:
            self._checkpointer.delete(step)

    def close(self) -> None:
        """Waits until all is written."""
        if self._opened is not None:
            with self._writing():
                self._opened.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # else the error that ended the block is raised
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever Orbax raises becomes a CheckpointError that says what is kept."""
        try:
            yield
        except Exception as error:
            if processes.several() and not isinstance(error, (ValueError, LookupError, OSError)):
                raise  # more likely another process was lost
            if not self.folder.is_dir():
                message = f"{self.folder.parent} was deleted while it was written"
                raise CheckpointError(message) from error
            steps = [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()]
            rest = f"; step {max(steps)} is kept, and the run goes on from there" if steps else ""
            reason = NO_SPACE if NO_SPACE.lower() in str(error).lower() else _first_line(error)
            message = f"a checkpoint can't be written in {self.folder}: {reason}{rest}"
            raise CheckpointError(message) from error


@functools.cache
def _quiet() -> None:
    """Hides what TensorStore's threads print after a failed write, which is raised anyway: that the
    event loop, which Orbax has closed, is closed."""
    previous = sys.unraisablehook

    def hook(error: Any) -> None:
        if error.exc_type is not RuntimeError or str(error.exc_value) != "Event loop is closed":
            previous(error)

    sys.unraisablehook = hook


def _digests(arrays: Mapping[str, Any]) -> dict[str, list[int]]:
    """The sorted CRC-32s of each tree's arrays. Their names need none: the format of the file that
    holds them has a checksum."""
    return {kind: sorted(map(_crc, jax.tree.leaves(tree))) for kind, tree in arrays.items()}


def _crc(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _damage(folder: Path, kinds: Sequence[str] = ("",)) -> str:
    """Why a checkpoint can't be read, '' if it can: all of it, or the trees of these kinds.

    Everything is read without Orbax, whose threads print tracebacks where a file is damaged.
    """
    import tensorstore as ts

    try:
        for path in [folder / "state" / "_METADATA", *folder.glob("state/array_metadatas/*")]:
            _json(path)
        metadata = _json(folder / "_CHECKPOINT_METADATA")["custom_metadata"]
        store = {"driver": "ocdbt", "base": (folder / "state").absolute().as_uri() + "/"}
        names = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
        names = [n.removesuffix("zarr.json") for n in names if n.endswith("/zarr.json")]
        names = [name for name in names if name.startswith(tuple(kinds))]
        if not names:
            return "it has no arrays"
        checksums: dict[str, list[int]] = {}
        for name in names:
            array_store = {**store, "path": name}
            array = ts.open({"driver": "zarr3", "kvstore": array_store}).result().read().result()
            checksums.setdefault(name.split(".")[0], []).append(_crc(array))
        digests = metadata.get("digests", {})  # earlier versions had none
        for kind in digests:
            if kind.startswith(tuple(kinds)) and sorted(checksums.get(kind, [])) != digests[kind]:
                return f"its arrays ({kind}) are not those that were saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except Exception as error:  # TensorStore and damaged JSON raise many types
        return _first_line(error)
    return ""


def step_of(folder: Path, which: str = "last") -> int:
    """The step of a run's `last` or `best` checkpoint. Raises CheckpointError."""
    with _opened(folder, which) as (_, step):
        return step


def load_network(folder: Path, which: str = "last") -> tuple[int, dict[str, Any]]:
    """(step, trees) of a run's `last` or `best` checkpoint, on the first device.

    The trees have `params`, `stats` and, where the run averages its parameters, `ema`.

    Raises CheckpointError where there is none, or it can't be read.
    """
    kinds = ("params", "stats", "ema")
    with _opened(folder, which) as (checkpointer, step):
        if reason := _damage(folder / str(step), kinds):
            raise CheckpointError(f"checkpoint {folder / str(step)} can't be read: {reason}")
        tree = checkpointer.metadata(step).metadata
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), dict(tree)
        )
        arrays = checkpointer.load(step, abstract)
        return step, {kind: arrays[kind] for kind in kinds if kind in arrays}


@contextmanager
def _opened(folder: Path, which: str) -> Iterator[tuple[Any, int]]:
    """(open checkpointer, step of its `last` or `best` checkpoint). Raises CheckpointError."""
    if which not in ("last", "best"):
        raise CheckpointError(f"checkpoint {which!r}: expected 'last' or 'best'")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} has no checkpoints")
    from orbax.checkpoint import v1 as ocp

    try:
        with ocp.training.Checkpointer(folder.absolute()) as checkpointer:
            saved = list(checkpointer.checkpoints)
            step = _best(saved) if which == "best" else max((c.step for c in saved), default=None)
            if step is None:
                raise CheckpointError(f"{folder} has no {which} checkpoint")
            yield checkpointer, step
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises many types; each means the same here
        reason = _first_line(error)
        raise CheckpointError(f"checkpoint in {folder} can't be read: {reason}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} can't be read: {error}") from error


def _first_line(error: Exception) -> str:
    """The first line of a message, without TensorStore's description of the file after it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = line.split(" [tensorstore_spec")[0].split(" See full TensorStore")[0]
    # A long path stands in the middle, and the reason behind it.
    return line if len(line) <= 300 else f"{line[:120]} ... {line[-175:]}"
