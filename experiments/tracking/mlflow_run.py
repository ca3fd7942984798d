"""A run in MLflow: one run of the experiment of its study, found again by a tag."""

import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from experiments.runs.runs import Run
from experiments.tracking import MLFLOW_STORE
from experiments.tracking.sender import About, Ended, numbers

PREFIX = "cnn_depth"  # of tags
STORE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"  # in the runs folder, without a server
STATES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
MOST_METRICS, MOST_OTHERS = 1000, 100  # of a request, as MLflow's documentation has them


class Tracker:
    """See `sender.Tracker`. MLflow keeps a point each time that it is logged, so the points that
    it has are read first, by name and step, and not logged again."""

    def __init__(self, run: Run, about: About):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        folder = run.folder.absolute().parent
        self._local = not os.environ.get(MLFLOW_STORE)
        if self._local:
            mlflow.set_tracking_uri(f"sqlite:///{folder / STORE}")
        with _alone(folder) if self._local else nullcontext():
            self._client = mlflow.MlflowClient()
            remote = self._find(run, about, folder)
        self._id = remote.info.run_id
        if mlflow.active_run() is None:  # its own system metrics, where they are switched on
            mlflow.start_run(run_id=self._id)
        self._steps: dict[str, set[int]] = defaultdict(set)
        for name in remote.data.metrics:
            if not name.startswith("system/"):
                history = self._client.get_metric_history(self._id, name)
                self._steps[name] = {point.step for point in history}
        params = {k: _text(v) for k, v in about.config.items() if k not in remote.data.params}
        self._log(params=params, tags={f"{PREFIX}.{k}": v for k, v in about.start.items()})

    def _find(self, run: Run, about: About, folder: Path) -> Any:
        """MLflow's run with a run's id, which is made where there is none."""
        experiment = self._experiment(about.study or "cnn-depth", folder)
        runs = self._client.search_runs([experiment], f"tags.`{PREFIX}.run` = '{run.id}'")
        if runs:
            return runs[0]
        tags = {f"{PREFIX}.run": run.id}
        return self._client.create_run(experiment, tags=tags, run_name=about.name)

    def _experiment(self, study: str, folder: Path) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or study
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        artifacts = (folder / ARTIFACTS).as_uri() if self._local else None
        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # another run has made it just now
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return experiment.experiment_id

    def send(self, lines: Sequence[dict[str, Any]]) -> int | None:
        self._points([(line["step"], numbers(line)) for line in lines])
        return lines[-1]["step"]

    def end(self, ended: Ended | None) -> None:
        import mlflow

        state = "stopped" if ended is None else ended.state
        if ended is not None:
            step, result = ended.result.get("steps", 0), ended.result
            self._points([(step, {f"result.{k}": v for k, v in numbers(result).items()})])
            texts = {k: v for k, v in result.items() if isinstance(v, str)}
            self._log(tags={f"{PREFIX}.result.{name}": text for name, text in texts.items()})
            for path in (*ended.files, *filter(None, [ended.picture])):
                self._client.log_artifact(self._id, str(path))
        mlflow.end_run(STATES[state])

    def _points(self, points: Sequence[tuple[int, dict[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        missing = {  # `epoch` is in several lines of a step
            (name, step): value
            for step, values in points
            for name, value in values.items()
            if step not in self._steps[name]
        }
        metrics = [Metric(name, value, now, step) for (name, step), value in missing.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            chunk = metrics[start : start + MOST_METRICS]
            self._client.log_batch(self._id, metrics=chunk)
            for point in chunk:
                self._steps[point.key].add(point.step)

    def _log(
        self, params: dict[str, str] | None = None, tags: dict[str, str] | None = None
    ) -> None:
        from mlflow.entities import Param, RunTag

        for pairs, kind, name in ((params, Param, "params"), (tags, RunTag, "tags")):
            entities = [kind(key, value) for key, value in (pairs or {}).items()]
            for start in range(0, len(entities), MOST_OTHERS):
                self._client.log_batch(self._id, **{name: entities[start : start + MOST_OTHERS]})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock, so that the processes of several runs do not make the store at once."""
    with (folder / f"{STORE}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _text(value: Any) -> str:
    """A value of the config as a text that is not empty, which MLflow's server would refuse."""
    return value if isinstance(value, str) and value else json.dumps(value)
