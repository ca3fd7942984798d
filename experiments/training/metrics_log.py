"""metrics.jsonl, and TensorBoard's events beside it where they are wanted."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import tracking
from experiments.runs import processes, runs
from experiments.testing.predictions import Predictions
from experiments.testing.tester import Tester
from experiments.training.state import Training, Window


class MetricsLog:
    """metrics.jsonl and TensorBoard events; lines after the step that a run goes on from are cut.

    Of several processes only the first one's writes. on_line: called after each line.
    """

    def __init__(self, run: runs.Run, step: int):
        self.on_line: Callable[[], None] = lambda: None
        if not processes.first():
            return
        lines = [json.dumps(line) + "\n" for line in run.logged() if line["step"] <= step]
        runs.write_text(run.metrics, "".join(lines))
        self.path = run.metrics
        self.file = run.metrics.open("a")
        self.board = None
        if tracking.TENSORBOARD in tracking.chosen():
            self.board = _board(run.folder / "tensorboard", step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        if not processes.first():
            return
        self.check()  # a deleted file could still be written to
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        except OSError as error:
            raise runs.unwritten(self.path, error) from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        self.on_line()

    def check(self) -> None:
        """Raises RunError where the run's folder was deleted: Orbax would make another."""
        if processes.first():
            try:
                os.stat(self.path)
            except OSError as error:
                raise runs.unwritten(self.path, error) from error

    def training(self, training: Training) -> float | None:
        """Writes the means since the last line and starts the next ones; returns the error
        (percent), None where no view showed a box, or images may be of several classes."""
        w = training.window
        error = w.mean_error
        self.write(
            training.position,
            {
                "epoch": training.epoch,
                "train_loss": w.loss / w.steps,
                **({} if error is None else {"train_error": error}),
                "lr": training.schedule.rate(training.position - 1),
                "images_per_s": training.images_per_second,
                "seconds": training.seconds,
                **{runs.GRADIENT + n: math.sqrt(s / w.steps) for n, s in w.gradients.items()},
            },
        )
        training.window = Window()
        return error

    def validation(self, training: Training, tester: Tester) -> float:
        """Tests on the held-out images, writes and returns their error (percent)."""
        predictions = tester.run(*training.tested(), "holdout")
        values = _figures("val", predictions)
        self.write(training.position, {"epoch": training.epoch, **values})
        return predictions.error

    def curve(self, training: Training, tester: Tester) -> None:
        """Tests on the test images, and on the training images where that is asked for, and writes
        their errors (percent); nothing depends on them."""
        predictions = tester.run(*training.tested(), "test")
        values = _figures("test", predictions)
        if training.config.test.curve_seen:
            predictions = tester.run(*training.tested(), "seen")
            values |= _figures("seen", predictions)
        self.write(training.position, {"epoch": training.epoch, **values})

    def close(self) -> None:
        if processes.first():
            with contextlib.suppress(OSError):  # `write` has raised for a full disk
                self.file.close()
            if self.board is not None:
                self.board.close()


def _figures(part: str, predictions: Predictions) -> dict[str, float]:
    """A test's mean loss and its error, or with several classes its mean average precision."""
    if predictions.targets is not None:
        figure = {f"{part}_mean_average_precision": predictions.mean_average_precision()}
    else:
        figure = {f"{part}_top1_error": predictions.error}
    return {f"{part}_loss": predictions.mean_loss, **figure}


def _board(folder: Path, step: int) -> Any:
    """A writer of TensorBoard events after `step`.

    Its thread drops what it can't write: writing metrics.jsonl raises where the disk is full.
    Where PyTorch is installed tensorboardX would import it, which takes seconds, for arrays that
    it never gets here; so it is hidden.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory
    finally:
        if hidden:
            del sys.modules["torch"]
    register_writer_factory(_Events.prefix, _Events)
    return SummaryWriter(f"{_Events.prefix}:{folder}", purge_step=step + 1)


class _Events:
    """A file of TensorBoard's events, as tensorboardX opens it by the prefix of its name.

    Its writer is a thread that an error would end; the training would then wait for it for ever.
    """

    prefix = "events"

    def __init__(self, path: str):
        self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115

    @classmethod
    def open(cls, path: str) -> "_Events":
        return cls(path.removeprefix(f"{cls.prefix}:"))

    @classmethod
    def directory_check(cls, path: str) -> None:
        os.makedirs(path.removeprefix(f"{cls.prefix}:"), exist_ok=True)

    def write(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self._file.write(content)

    def flush(self) -> None:
        """It has no buffer."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
