"""A run's checkpoints: the latest to go on from and the best on held-out images, through Orbax.

A checkpoint holds flat `{name: array}` trees (parameters, BatchNorm statistics, optimiser, average)
and a few host numbers (schedule, position, open averages). It is written in the background and
appears under its final name only when complete, so a kill at any moment leaves whole ones only.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import SingleDeviceSharding

from experiments import processes

T = TypeVar("T")
# Orbax tells each save and load on the root logger's warning level through absl.
logging.getLogger("absl").setLevel(logging.ERROR)


class CheckpointError(ValueError):
    """A checkpoint that is missing, unreadable or of another network."""

    user_error = True


class Checkpoints:
    """The checkpoints in `folder`; only the writer of a run opens it.

    Keeps the latest and, of those saved with a validation error, the best.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: Any = None
        if folder.exists() or processes.several():
            self._open()

    @property
    def _checkpointer(self) -> Any:
        """Orbax's; opened with the first checkpoint, as a fresh run need not wait for it."""
        if self._opened is None:
            self._open()
        return self._opened

    def _open(self) -> None:
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        try:
            self._opened = ocp.training.Checkpointer(
                self.folder.absolute(),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(1),
                        policies.BestN(
                            get_metric_fn=lambda metrics: metrics["val_error"],
                            reverse=True,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
            )
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"checkpoints in {self.folder} can't be opened: {error}"
            ) from error

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint."""
        if self._opened is None:
            return None
        latest = self._opened.latest
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
        """
        self._checkpointer.save_async(
            step,
            dict(arrays),
            metrics=None if val_error is None else {"val_error": val_error},
            custom_metadata={"host": json.dumps(host)},
        )

    def restore(self, like: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(step, arrays, host) of the latest checkpoint, laid out as the arrays of `like`.

        Raises:
            CheckpointError: it can't be read, or holds other arrays than `like`.
        """
        step = self.latest
        assert step is not None
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like)
        )
        try:
            metadata = self._checkpointer.metadata(step)
            arrays = self._checkpointer.load(step, abstract)
            host = json.loads((metadata.custom_metadata or {})["host"])
        except Exception as error:  # Orbax raises many types; each means the same here
            if processes.several() and not isinstance(error, (ValueError, LookupError)):
                raise  # rather another process was lost
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} can't be read ({_first_line(error)}); "
                "delete the run's folder to train it anew"
            ) from error
        return step, arrays, host

    def close(self) -> None:
        """Waits until all is written."""
        if self._opened is not None:
            self._opened.close()


def step_of(folder: Path, which: str = "last") -> int:
    """The step of a run's `last` or `best` checkpoint. Raises CheckpointError."""
    return _opened(folder, which, lambda checkpointer, step: step)


def load_network(folder: Path, which: str = "last") -> tuple[int, dict[str, Any]]:
    """(step, trees) of a run's `last` or `best` checkpoint, on the first device.

    The trees have `params`, `stats` and, where the run averages its parameters, `ema`.

    Raises:
        CheckpointError: there is none, or it can't be read.
    """

    def load(checkpointer: Any, step: int) -> tuple[int, dict[str, Any]]:
        tree = checkpointer.metadata(step).metadata
        one = SingleDeviceSharding(jax.local_devices()[0])
        abstract = {
            kind: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), tree[kind]
            )
            for kind in tree
        }
        arrays = checkpointer.load(step, abstract)
        return step, {kind: arrays[kind] for kind in ("params", "stats", "ema") if kind in arrays}

    return _opened(folder, which, load)


def _opened(folder: Path, which: str, read: Callable[[Any, int], T]) -> T:
    """What `read` makes of the open checkpoints and the step asked for."""
    if which not in ("last", "best"):
        raise CheckpointError(f"checkpoint {which!r}: expected 'last' or 'best'")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} has no checkpoints")
    from orbax.checkpoint import v1 as ocp

    try:
        with ocp.training.Checkpointer(folder.absolute()) as checkpointer:
            found = list(checkpointer.checkpoints)
            if which == "best":
                found = [c for c in found if c.metrics is not None]
                found.sort(key=lambda c: (-c.metrics["val_error"], c.step))
            else:
                found.sort(key=lambda c: c.step)
            if not found:
                raise CheckpointError(f"{folder} has no {which} checkpoint")
            return read(checkpointer, found[-1].step)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises many types; each means the same here
        raise CheckpointError(
            f"checkpoint in {folder} can't be read: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
