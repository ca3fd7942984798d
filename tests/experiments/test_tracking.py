"""Trackers: one run through restarts, no point twice, and never in a training's way."""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import jax
import pytest

from experiments import config, data, tracking
from experiments.runs import runs
from experiments.tracking import following, sender
from experiments.training import train

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "model.width": 0.25,
    "data.image_size": 8,
    "data.pad": 1,
    "train.batch_size": 32,
    "train.steps": 12,
    "train.validate_every_epochs": 0.1,  # at steps 4, 8 and 12, as the log
    "train.log_every_epochs": 0.1,
    "checkpoint.every_steps": 5,
}


def installed(*names):
    try:
        for name in names:
            tracking.check_installed(name)
    except tracking.TrackingError:
        return False
    return True


with_wandb = pytest.mark.skipif(not installed("wandb"), reason="W&B is not installed")
with_mlflow = pytest.mark.skipif(not installed("mlflow"), reason="MLflow is not installed")


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """Without the trackers' settings of whoever runs the tests, and without logins."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", tracking.VARIABLE)):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def tiny(**overrides):
    base = config.base()
    base.model = config.model("cifar_resnet:8")
    overrides = {k.replace("__", "."): v for k, v in overrides.items()}
    return config.override(base, {**TINY, **overrides}, "test")


def create(c, folder):
    label = {"study": "tiny", "row": "shallow"}
    return runs.create(c, data.open_data(c.data).fingerprint, folder, label)


def finish(run, heard=None, **more):
    """Trains a run from wherever it is; the notes that it was told."""
    kind = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=kind)
    notes = []

    def on_event(event):
        if event["event"] == "note":
            notes.append(event["text"])
        if heard is not None:
            heard(event)

    with run.lock():
        train.train(run, mesh, on_event=on_event, **more)
    return notes


def until(ready, message, seconds=120):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, message
        time.sleep(0.05)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that is tracked nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(tracking.VARIABLE, "none")
        run = create(tiny(), tmp_path_factory.mktemp("plain"))
        assert finish(run) == []
    return run


def untimed(lines):
    return [{k: v for k, v in e.items() if k not in ("images_per_s", "seconds")} for e in lines]


def points(lines):
    """(name, step) -> value."""
    return {
        (name, line["step"]): value
        for line in untimed(lines)
        for name, value in line.items()
        if name != "step"
    }


# ------------------------------------------------------------------------------- the choice

CHOICES = {
    "": ("tensorboard",),
    "none": (),
    "wandb": ("wandb",),
    "mlflow,wandb": ("mlflow", "wandb"),
    "tensorboard, mlflow,tensorboard": ("tensorboard", "mlflow"),
}


@pytest.mark.parametrize("text", CHOICES)
def test_environment_chooses_trackers_and_tensorboard_is_the_default(monkeypatch, text):
    assert tracking.chosen() == ("tensorboard",)
    monkeypatch.setenv(tracking.VARIABLE, text)
    assert tracking.chosen() == CHOICES[text]


WRONG = {
    "wnadb": "--track wnadb: unknown tracker 'wnadb'; did you mean 'wandb'? known: wandb, mlflow,",
    "wandb,none": "--track wandb,none: none goes alone",
    "wandb,": "--track wandb,: unknown tracker ''; known: wandb, mlflow, tensorboard, none",
}


@pytest.mark.parametrize("text", WRONG)
def test_trackers_that_there_are_not_are_refused(monkeypatch, text):
    with pytest.raises(tracking.TrackingError, match="^" + re.escape(WRONG[text])):
        tracking.choose(text)
    assert tracking.VARIABLE not in os.environ
    monkeypatch.setenv(tracking.VARIABLE, text)
    with pytest.raises(tracking.TrackingError, match=r"^\$CNN_DEPTH_TRACK "):
        tracking.choose(None)


def test_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setenv(tracking.VARIABLE, "none")
    (tmp_path / "wandb").mkdir()  # as W&B leaves it in the present folder
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "mlflow", "sqlalchemy", "alembic"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(tracking.TrackingError) as error:
        tracking.choose("tensorboard,wandb")
    assert str(error.value).startswith("the tracker wandb needs wandb, not installed here: pip ")
    assert "'.[wandb]'" in str(error.value)
    with pytest.raises(tracking.TrackingError, match="mlflow and sqlalchemy and alembic,"):
        tracking.choose("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    with pytest.raises(tracking.TrackingError, match="needs mlflow, not installed"):
        tracking.choose("mlflow")


def test_tensorboard_is_written_where_it_is_wanted_and_changes_nothing(plain, tmp_path):
    run = create(tiny(), tmp_path)
    assert run.id == plain.id
    assert finish(run) == []
    assert list((run.folder / "tensorboard").iterdir())
    assert not (plain.folder / "tensorboard").exists()
    assert untimed(run.logged()) == untimed(plain.logged())


# ---------------------------------------------------------------------- trackers that fail

HANGS = "import time; time.sleep(1e6)"
OPENS = "Settings = dict\ndef login(**how): return True\ndef init(**how): "
FAKES = {
    "hangs at its import": HANGS,
    "hangs when it is opened": OPENS + HANGS,
    "raises when it is opened": OPENS + "raise ValueError('no\\nway')",
    "exits": "raise SystemExit(3)",
    "kills its process": "import os; os.kill(os.getpid(), 9)",
    "is another package": "",
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """fake(code): W&B is this code in trackers' processes, and is chosen."""

    def put(code):
        folder = tmp_path / "fakes"
        folder.mkdir(exist_ok=True)
        (folder / "wandb.py").write_text(code)
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv(tracking.VARIABLE, "wandb")

    return put


@pytest.mark.parametrize("how", FAKES)
def test_tracker_that_fails_costs_a_run_nothing_but_a_line(plain, fake, tmp_path, monkeypatch, how):
    fake(FAKES[how])
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.5 if "hangs" in how else 20.0)
    run = create(tiny(), tmp_path / "runs")
    notes = finish(run)
    match = re.search(r"process (\d+) goes on for at most 10 minutes", notes[-1])
    if match:
        process = int(match[1])
        # Linux weighs priorities within a session only; interrupts go to a group of processes.
        assert os.getsid(process) == os.getsid(0)
        assert os.getpgid(process) == process
        assert os.getpriority(os.PRIO_PROCESS, process) > os.getpriority(os.PRIO_PROCESS, 0)
        os.kill(process, signal.SIGKILL)
    assert untimed(run.logged()) == untimed(plain.logged())
    assert run.read("result")["test_loss"] == plain.read("result")["test_loss"]
    assert bool(match) == ("hangs" in how)
    assert notes[-1].startswith("wandb has nothing")
    assert f"`cnn-depth track {run.id} --to wandb` sends" in notes[-1]
    assert all("\n" not in note for note in notes)
    assert len(notes) <= 2
    if how == "raises when it is opened":
        assert notes[:-1] == ["wandb: ValueError: no way"]


def test_tracker_of_a_run_that_is_stopped_leaves_with_it(fake, tmp_path, monkeypatch):
    fake(HANGS)
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.5)
    senders = []
    begin = following.Sender.__init__
    monkeypatch.setattr(
        following.Sender, "__init__", lambda self, *a: senders.append(self) or begin(self, *a)
    )
    run = create(tiny(), tmp_path / "runs")
    with pytest.raises(train.Interrupted):
        finish(run, stop=lambda: True)
    assert senders[0].process.returncode < 0  # it was ended, and does not go on


def test_errors_are_told_without_keys(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open sesame")
    error = ValueError("0123456789abcdef at https://ann:open%20sesame@there/api:\n open sesame")
    assert sender._why(error) == "ValueError: *** at https://***@there/api: ***"
    assert len(sender._why(ValueError("long " * 1000))) < 400


# ----------------------------------------------------------------------- restarts, by a fake

# W&B with a server: a file of what each run's id has. Steps must rise, as W&B's do.
SERVER = """
import json, os
from pathlib import Path
from types import SimpleNamespace

FILE = Path(os.environ["FAKE_SERVER"])

def login(**how):
    assert how == {"prompt": False, "verify": False}
    return True

Settings = Image = lambda *a, **k: (a, k)

class Run:
    def __init__(self, id, name, group, config, dir, mode, resume, **more):
        assert (mode, resume) == (None, "allow")
        self.all = json.loads(FILE.read_text()) if FILE.exists() else {}
        self.resumed = id in self.all
        self.own = self.all.setdefault(id, {"rows": [], "starts": 0, "summary": {}})
        self.own.update(name=name, group=group, config=config, starts=self.own["starts"] + 1)
        self.dir = str(FILE.parent)
        self.config = SimpleNamespace(update=lambda values, changed: self.keep())
        self.summary = SimpleNamespace(update=self.own["summary"].update)
        self.settings = SimpleNamespace(sync_dir=f"{dir}/wandb/run-{self.own['starts']}")
        self.keep()

    def keep(self):
        FILE.with_suffix(".new").write_text(json.dumps(self.all))
        FILE.with_suffix(".new").rename(FILE)

    @property
    def step(self):
        return self.own["rows"][-1][0] + 1 if self.own["rows"] else 0

    def log(self, values, step, commit):
        assert commit and step >= self.step, (step, self.step)
        values.pop("curves", None)
        self.own["rows"].append([step, values])
        self.keep()

    def save(self, path, **how):
        pass

    def finish(self, exit_code):
        self.own["exit"] = exit_code
        self.keep()

init = lambda **how: Run(**how)
"""
# A worker that kills itself after a step, once a file is there.
KILLED = """
import os, signal, sys, time
from pathlib import Path
import jax
from experiments.runs.runs import Run
from experiments.training import train

folder, step, go = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

def on_event(event):
    if event["event"] == "progress" and event["step"] == step:
        while not go.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

run = Run(folder)
kind = (jax.sharding.AxisType.Auto,)
with run.lock():
    train.train(run, jax.make_mesh((1,), ("data",), axis_types=kind), on_event=on_event)
"""


def killed(run, step, ready):
    """Trains a run, and kills that with SIGKILL after a step, once `ready()`."""
    go = run.folder.parent / "go"
    go.unlink(missing_ok=True)
    words = [sys.executable, "-c", KILLED, str(run.folder), str(step), str(go)]
    log = (run.folder / "killed.txt").open("a")
    with log, subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log) as process:
        try:
            until(
                lambda: ready() or process.poll() is not None,
                f"sent before the kill: {(run.folder / 'killed.txt').read_text()}",
            )
        finally:
            go.touch()
    assert process.returncode == -signal.SIGKILL, (run.folder / "killed.txt").read_text()


@pytest.fixture
def patient(monkeypatch):
    """A training that waits until all is sent."""
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 300.0)


def test_run_that_is_killed_and_started_again_is_one_run_without_doubled_points(
    plain, fake, patient, tmp_path, monkeypatch
):
    server = tmp_path / "server.json"
    monkeypatch.setenv("FAKE_SERVER", str(server))
    fake(SERVER)

    def rows():
        with suppress(FileNotFoundError, KeyError):
            return json.loads(server.read_text())[plain.id]["rows"]
        return []

    run = create(tiny(), tmp_path / "runs")
    # Step 8 is in the log then, and trained anew: step 5 is the last that is saved.
    killed(run, 9, lambda: len(rows()) >= 1)
    assert [step for step, _ in rows()] == [4]  # of step 8 there may come more
    stopping = iter([False, False, True])
    with pytest.raises(train.Interrupted):
        finish(run, stop=lambda: next(stopping))
    assert json.loads(server.read_text())[run.id]["exit"] == 1
    assert [step for step, _ in rows()] == [4, 8]
    assert finish(run) == []
    (record,) = json.loads(server.read_text()).values()
    assert [step for step, _ in record["rows"]] == [4, 8, 12]
    assert record["starts"] == 3
    assert record["exit"] == 0
    lines = [{"step": step, **values} for step, values in record["rows"]]
    assert points(lines) == points(plain.logged())
    assert (record["name"], record["group"]) == ("tiny/shallow", "tiny")
    assert record["config"] == json.loads(json.dumps(config.flatten(tiny())))
    assert record["summary"]["result.test_loss"] == plain.read("result")["test_loss"]


def test_tracker_that_comes_back_gets_all_that_was_logged(
    plain, fake, patient, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAKE_SERVER", str(tmp_path / "server.json"))
    fake(
        SERVER.replace(
            "init = lambda **how: Run(**how)",
            f"""
def init(**how):
    if not Path({str(tmp_path / "up")!r}).exists():
        raise OSError("no network")
    return Run(**how)
""",
        )
    )
    run = create(tiny(), tmp_path / "runs")

    def heard(event):
        if event["event"] == "testing":
            (tmp_path / "up").touch()

    assert finish(run, heard) in ([], ["wandb: OSError: no network"])
    (record,) = json.loads((tmp_path / "server.json").read_text()).values()
    lines = [{"step": step, **values} for step, values in record["rows"]]
    assert points(lines) == points(plain.logged())


# ------------------------------------------------------------------------------ the libraries

MLFLOW = """
import json, sys
import mlflow
client = mlflow.MlflowClient(sys.argv[1])
found = []
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        id = run.info.run_id
        found.append({
            "experiment": experiment.name, "name": run.info.run_name, "status": run.info.status,
            "params": run.data.params, "tags": run.data.tags,
            "files": sorted(file.path for file in client.list_artifacts(id)),
            "points": [(name, point.step, point.value) for name in run.data.metrics
                       for point in client.get_metric_history(id, name)]})
print(json.dumps(found))
"""


def of_mlflow(folder):
    """The runs of the store in a runs folder, as MLflow's own client reads them."""
    words = [sys.executable, "-c", MLFLOW, f"sqlite:///{folder / 'mlflow.db'}"]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def assert_in_mlflow(stored, run):
    """What was logged is there, each point once."""
    curves = {(name, step): value for name, step, value in stored if "." not in name}
    assert len(curves) == len([name for name, _, _ in stored if "." not in name])
    timed = ("images_per_s", "seconds")
    assert {k: v for k, v in curves.items() if k[0] not in timed} == points(run.logged())
    assert {k for k, _ in curves} >= {*timed}


@with_mlflow
def test_mlflow_has_a_run_once_however_often_it_is_killed(plain, patient, tmp_path, monkeypatch):
    monkeypatch.setenv(tracking.VARIABLE, "mlflow")
    monkeypatch.chdir(tmp_path)
    run = create(tiny(), tmp_path / "runs")

    def sent():
        name = f"file:{tmp_path}/runs/mlflow.db?mode=ro"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(name, uri=True)) as store:
            return store.execute("select max(step) from metrics").fetchone()[0] == 8
        return False

    killed(run, 9, sent)
    assert finish(run) == []
    (record,) = of_mlflow(tmp_path / "runs")
    assert (record["experiment"], record["name"]) == ("tiny", "tiny/shallow")
    assert record["status"] == "FINISHED"
    assert_in_mlflow(record["points"], plain)
    flat = config.flatten(tiny())
    assert record["params"].keys() == flat.keys()
    assert record["params"]["train.batch_size"] == "32"
    assert record["params"]["model.arch"] == "cifar_resnet:8"
    assert record["params"]["seeding.run"] == '""'
    result = run.read("result")
    own = {name: value for name, step, value in record["points"] if name.startswith("result.")}
    assert own == {f"result.{name}": value for name, value in sender.numbers(result).items()}
    assert record["tags"]["cnn_depth.run"] == run.id
    assert record["tags"]["cnn_depth.jax"] == jax.__version__
    assert record["tags"]["cnn_depth.result.devices"] == result["devices"]
    assert record["files"] == ["curves.png", *sorted(sender.KEPT)]
    assert not (tmp_path / "mlruns").exists()
    files = list((tmp_path / "runs" / "mlflow-artifacts").rglob("result.json"))
    assert [json.loads(path.read_text()) for path in files] == [result]


def of_wandb(run):
    """The records of W&B's only offline file of a run, as its own reader has them, by kind."""
    (file,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    return records(file)


def records(file):
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    process = subprocess.run(
        words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert process.returncode == 0, process.stderr
    entries = [json.loads(line) for line in process.stdout.splitlines()]
    return {
        kind: [entry[kind] for entry in entries if entry["type"] == kind]
        for kind in ("run", "history", "summary", "exit")
    }


def rows_of(history):
    return [
        {"step": int(row["step"]["num"])}
        | {k: v for k, v in row["item"].items() if not k.startswith(("_", "curves"))}
        for row in history
    ]


@with_wandb
def test_wandb_has_a_run_once_however_often_it_is_killed(plain, patient, tmp_path, monkeypatch):
    monkeypatch.setenv(tracking.VARIABLE, "wandb")
    monkeypatch.chdir(tmp_path)
    run = create(tiny(), tmp_path / "runs")
    killed(run, 9, (run.folder / "wandb" / "sent.json").exists)
    assert finish(run) == []
    by_kind = of_wandb(run)
    (about,) = by_kind["run"]
    assert about["run_id"] == run.id
    assert (about["display_name"], about["run_group"]) == ("tiny/shallow", "tiny")
    own = about["config"]["update"]
    assert own.items() >= json.loads(json.dumps(config.flatten(tiny()))).items()
    assert [row["step"] for row in rows_of(by_kind["history"])] == [4, 8, 12]
    assert points(rows_of(by_kind["history"])) == points(plain.logged())
    summary = {k: v for record in by_kind["summary"] for k, v in record["update"].items()}
    for name, value in run.read("result").items():
        assert summary[f"result.{name}"] == value or math.isclose(summary[f"result.{name}"], value)
    assert any("curves" in key for key in by_kind["history"][-1]["item"])
    (file,) = run.folder.glob("wandb/offline-run-*/files/result.json")
    assert json.loads(file.read_text()) == run.read("result")
    assert not (tmp_path / "wandb").exists()


@with_wandb
def test_what_wandb_has_sent_already_is_not_written_again(plain, patient, tmp_path, monkeypatch):
    monkeypatch.setenv(tracking.VARIABLE, "wandb")
    run = create(tiny(), tmp_path / "runs")

    def stop():
        logged = [line["step"] for line in run.logged()]
        return 8 in logged

    with pytest.raises(train.Interrupted):
        finish(run, stop=stop)
    (first,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    assert [row["step"] for row in rows_of(records(first)["history"])] == [4, 8]
    first.with_suffix(".wandb.synced").touch()  # as `wandb sync` marks it
    assert finish(run) == []
    (second,) = {*run.folder.glob("wandb/offline-run-*/*.wandb")} - {first}
    assert [row["step"] for row in rows_of(records(second)["history"])] == [12]


@pytest.mark.skipif(not installed("wandb", "mlflow"), reason="W&B and MLflow are not installed")
def test_keys_are_in_no_file(patient, tmp_path, monkeypatch):
    key, password = "0123456789abcdef0123456789abcdef01234567", "open-sesame"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{password}@127.0.0.1:9")  # nobody there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv(tracking.VARIABLE, "wandb,mlflow")
    run = create(tiny(), tmp_path / "runs")
    notes = finish(run)
    assert [note for note in notes if note.startswith("mlflow: MlflowException: ")]
    assert notes[-1].startswith("mlflow has nothing")
    assert not [note for note in notes if password in note or key in note]
    files = [path for path in run.folder.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert key.encode() not in content, path
        assert password.encode() not in content, path


@with_mlflow
@pytest.mark.slow
def test_sending_later_and_twice_gives_each_point_once(plain, tmp_path):
    shutil.copytree(plain.folder, tmp_path / plain.id)
    run = runs.Run(tmp_path / plain.id)
    for _ in range(2):
        assert following.send(run, "mlflow") == ""
    (record,) = of_mlflow(tmp_path)
    assert_in_mlflow(record["points"], plain)
    assert record["status"] == "FINISHED"
