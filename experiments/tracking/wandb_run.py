"""A run in Weights & Biases: one run with the same id, resumed by each start.

W&B's steps are the training's. It takes no step twice, nor an earlier one after a later one, so
that all that is logged at a step goes at once, when a later step is logged or the training ends.
Without a login, W&B's file is in `wandb/` of the run's folder, for `wandb sync`; each start writes
it anew, as metrics.jsonl holds all of it.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.runs.runs import Run, write_json
from experiments.tracking.sender import About, Ended, numbers

PROJECT = "cnn-depth"  # unless $WANDB_PROJECT names another
SENT = "sent.json"  # in `wandb/`: W&B's folder of each start -> the last step in it


class Tracker:
    """See `sender.Tracker`."""

    def __init__(self, run: Run, about: About):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb, folder = wandb, run.folder.absolute() / "wandb"
        folder.mkdir(exist_ok=True)
        self._sent_file = folder / SENT
        self._sent = _without_replaced(folder)
        # W&B would ask for a key, and wait.
        is_configured = bool(os.environ.get("WANDB_MODE")) or wandb.login(
            prompt=False, verify=False
        )
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id,
            name=about.name,
            group=about.study or None,
            config=about.config,
            allow_val_change=True,  # of what only says how a run executes
            dir=run.folder.absolute(),
            mode=None if is_configured else "offline",
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                console="off",
                disable_git=True,  # W&B would keep what is not committed
                save_code=False,
                silent=True,
                x_stats_pid=about.pid,
            ),
        )
        self._run.config.update({f"start.{k}": v for k, v in about.start.items()}, True)
        online = self._run.step - 1 if self._run.resumed else -1
        self._after = max([online, *self._sent.values()])
        self._name = Path(self._run.settings.sync_dir).name
        self._open: tuple[int, dict[str, Any]] | None = None  # a step that may get more

    def send(self, lines: Sequence[dict[str, Any]]) -> int | None:
        for line in lines:
            step = line["step"]
            if step <= self._after:
                continue
            if self._open is not None and self._open[0] < step:
                self._commit()
            values = self._open[1] if self._open is not None else {}
            self._open = step, {**values, **numbers(line)}
        return self._after if self._after >= 0 else None

    def _commit(self) -> None:
        assert self._open is not None
        step, values = self._open
        self._run.log(values, step=step, commit=True)
        self._open, self._after = None, step
        self._sent[self._name] = step
        write_json(self._sent_file, self._sent)

    def end(self, ended: Ended | None) -> None:
        if ended is not None:
            if self._open is not None:
                if ended.picture is not None:
                    self._open[1]["curves"] = self._wandb.Image(str(ended.picture))
                self._commit()
            self._run.summary.update({f"result.{k}": v for k, v in ended.result.items()})
            for path in ended.files:  # a copy: W&B would keep a link
                copy = shutil.copy(path, self._run.dir)
                self._run.save(copy, base_path=self._run.dir, policy="now", glob=False)
        finished = ended is not None and ended.state == "finished"
        self._run.finish(exit_code=0 if finished else 1)


def _without_replaced(folder: Path) -> dict[str, int]:
    """The content of SENT, without folders that `wandb sync` has not sent: these are deleted, and
    all that they hold is written again."""
    try:
        sent: dict[str, int] = json.loads((folder / SENT).read_bytes())
    except (FileNotFoundError, ValueError):
        sent = {}
    for offline in folder.glob("offline-run-*"):
        if not list(offline.glob("*.synced")):
            shutil.rmtree(offline, ignore_errors=True)
            sent.pop(offline.name, None)
    return sent
