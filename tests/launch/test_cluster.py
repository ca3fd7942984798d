"""A cluster's file and options, and what they make of the scripts; no Slurm is needed."""

import json
import re
import subprocess
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from experiments.runs import runs
from experiments.runs.runs import Run
from experiments.testing.prediction_store import PlannedTest
from launch import cli
from launch.executors import backend, cluster, slurm, squeue
from launch.executors.cluster import Cluster, ClusterError
from launch.executors.squeue import Queued, SlurmError

STUDY = '''
"""A tiny study."""
from experiments import config as configs

def get_config(arg=None):
    config = configs.base()
    config.model = configs.model("cifar_resnet:8", width=0.25)
    config.data.update(name="digits", image_size=8)
    config.train.update(batch_size=64, steps=6)
    return config

def sweep():
    same = (("conv1/*", "conv1/*"),)
    yield "deep", {"model.arch": "cifar_resnet:14"}
    yield "shallow", {}
    for name in ("one", "two"):
        yield f"{name} seeded", {
            "model.arch": "cifar_resnet:14",
            "seed_from": "shallow",
            "seeding.mapping": same,
            "schedule.lr": 0.1 if name == "one" else 0.2,
        }
'''


@pytest.fixture(autouse=True)
def _nothing_of_a_cluster(monkeypatch):
    """No programs of Slurm, and no file of somebody's cluster."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(cluster.ENVIRONMENT, raising=False)


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(STUDY)
    return str(path)


# ------------------------------------------------------------------------------- the file

TOML = """
partition = "gpu"
nodes = 2
gpus_per_node = 8
processes_per_node = 8
time = "1-00:00:00"
max_parallel = 4
setup = ["module load cuda"]
python = ["apptainer", "exec", "net.sif", "python"]

[sbatch]
mem = "200G"
cpus_per_task = 16
exclusive = true
nice = false
"""
CLUSTER = Cluster(
    partition="gpu",
    nodes=2,
    gpus_per_node=8,
    processes_per_node=8,
    time="1-00:00:00",
    max_parallel=4,
    setup=("module load cuda",),
    python=("apptainer", "exec", "net.sif", "python"),
    sbatch={"mem": "200G", "cpus-per-task": 16, "exclusive": True},
)


def test_file_gives_defaults_and_options_count_more(tmp_path, monkeypatch):
    path = tmp_path / "cluster.toml"
    path.write_text(TOML)
    assert cluster.read(path, {}) == CLUSTER
    assert cluster.read(None, {"nodes": None}) == Cluster()
    monkeypatch.setenv(cluster.ENVIRONMENT, str(path))
    assert cluster.read(None, {"nodes": None}) == CLUSTER
    options = {"nodes": 1, "account": "lab", "sbatch": {"mem": "1G", "gres": "gpu:a100:8"}}
    assert cluster.read(None, options) == replace(
        CLUSTER, nodes=1, account="lab", sbatch={**CLUSTER.sbatch, **options["sbatch"]}
    )


def test_cluster_is_kept_as_json():
    assert cluster.from_json(json.loads(json.dumps(asdict(CLUSTER)))) == CLUSTER


BAD_FILES = {
    "nodse = 2": r"unknown key 'nodse'; did you mean 'nodes'\?",
    "gpus-per-node = 2": r"unknown key 'gpus-per-node'; did you mean 'gpus_per_node'\?",
    "mem = '3G'": r"other options of sbatch go under \[sbatch\]",
    "nodes = '2'": "nodes = '2': expected a whole number, at least 1",
    "nodes = 0": "nodes = 0: expected a whole number, at least 1",
    "nodes = true": "nodes = True: expected a whole number",
    "partition = 3": "partition = 3: expected a text",
    "time = '2 hours'": "time = '2 hours': expected minutes, MINUTES:SECONDS",
    "time = '2:00'": r"'2:00' is 120 s, and a job is warned 120 s before its end \(`grace`\)",
    "setup = 'module load'": "setup = 'module load': expected a list of shell lines",
    "python = 'python3'": "python = 'python3': expected a list of words, such as",
    "sbatch = 'mem'": r"expected a table, \[sbatch\]",
    "[sbatch]\nmem = 1.5": "sbatch: mem = 1.5: expected a text, a whole number, or true",
    "[sbatch]\npartition = 'a'": "sbatch: partition: it has an option of its own, --partition",
    "[sbatch]\nopen_mode = 'a'": "sbatch: open_mode is set for each job",
    "nodes = ": "Invalid value",
    "gpus_per_node = 8\nprocesses_per_node = 3": "8 GPUs can't be shared out among 3 processes",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_file_that_can_not_be_used_is_refused_precisely(tmp_path, text):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=BAD_FILES[text]):
        cluster.read(path, {})


@pytest.mark.parametrize("key", sorted(cluster.OURS))
def test_options_that_jobs_are_submitted_with_are_refused(key):
    with pytest.raises(ClusterError, match=f"--sbatch: {key} is set for each job: "):
        cluster.read(None, {"sbatch": {key: "x"}})


# As sbatch's manual has them.
TIMES = {"90": 5400, "90:30": 5430, "1:2:3": 3723, "1-12": 129600, "1-1:1": 90060}
TIMES |= {"1-1:1:1": 90061, "": None, "UNLIMITED": None}


@pytest.mark.parametrize("text", TIMES)
def test_time_limits_are_read_as_sbatch_reads_them(text):
    assert cluster.seconds(text) == TIMES[text]


@pytest.mark.parametrize("text", ["1h", "1-", "-1", "1:2:3:4", "a", "1 2"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(ClusterError, match="expected minutes"):
        cluster.read(None, {"time": text})


# ----------------------------------------------------------------------------- the options

BAD_OPTIONS = {
    "--partition gpu": "--partition goes with --backend slurm, not local",
    "--dry-run": "--dry-run goes with --backend slurm, not local",
    "--processes 0": "--processes 0: expected at least 1",
    "--backend slurm --parallel 2": "--parallel goes with --backend local, not slurm",
    "--backend slurm --processes 2": "--processes goes with --backend local, not slurm",
    "--backend slurm --dry-run --wait": "--dry-run submits nothing that --wait could wait for",
    "--backend slurm --nodes 0": "--nodes 0: expected a whole number, at least 1",
    "--backend slurm --gpus-per-node -1": "--gpus-per-node -1: expected a whole number, at least",
    "--backend slurm --time soon": "--time 'soon': expected minutes",
    "--backend slurm --sbatch =1": "--sbatch '=1': expected KEY=VALUE, such as mem=64G",
    "--backend slurm --sbatch mem=": "--sbatch 'mem=': expected KEY=VALUE",
    "--backend slurm --cluster none.toml": "cluster file none.toml can't be read: No such file",
}


@pytest.mark.parametrize("verb", ["sweep", "table"])
@pytest.mark.parametrize("words", BAD_OPTIONS)
def test_options_that_do_not_go_together_are_refused(capsys, verb, words):
    name = {"sweep": "vgg_depth", "table": "vgg-3"}[verb]
    assert cli.main([verb, name, *words.split()]) == 2
    assert BAD_OPTIONS[words] in capsys.readouterr().err


def test_devices_of_a_run_elsewhere_are_not_this_processes(capsys):
    assert cli.main(["train", "lenet", "--processes", "2", "--devices", "1"]) == 2
    assert "--devices goes with a run in this process" in capsys.readouterr().err


def test_submission_needs_slurm_and_says_so(study, tmp_path, capsys):
    words = ["sweep", study, "--backend", "slurm", "--runs", str(tmp_path / "runs")]
    assert cli.main(words) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


# ----------------------------------------------------------------------------- the scripts


def test_dry_run_shows_graph_and_scripts_where_there_is_no_slurm(study, tmp_path, capsys):
    folder = tmp_path / "runs"
    words = ["sweep", study, "--backend", "slurm", "--dry-run", "--runs", str(folder)]
    words += ["--max-parallel", "1", "--time", "1:00:00", "--sbatch", "mem=1G", "--json"]
    assert cli.main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    first, second = answer["arrays"]
    assert first["rows"] == ["shallow", "deep"]  # the one that others wait for comes first
    assert second["rows"] == ["one seeded", "two seeded"]
    assert (first["after"], second["after"]) == (None, first["runs"][0])
    options = set(re.findall(r"(?m)^#SBATCH --(.*)$", first["script"]))
    assert options >= {
        "array=0-1%1",
        "kill-on-invalid-dep=yes",
        "mem=1G",
        "nodes=1",
        "ntasks-per-node=1",
        "open-mode=append",
        "requeue",
        "signal=USR2@120",
        "time=1:00:00",
    }
    assert not any(option.startswith(("dependency", "wckey", "partition")) for option in options)
    assert "#SBATCH --dependency=afterok:JOB-OF-shallow" in second["script"]
    assert not folder.exists()  # nothing was made

    words.remove("--json")
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("deep ", "shallow ", "one seeded ", "two seeded ")
    tree = {n.strip(): line.index(n) for n in names for line in reversed(lines[:5]) if n in line}
    assert tree["deep"] == tree["shallow"] < tree["one seeded"] == tree["two seeded"]


def test_script_asks_for_what_the_file_says_and_is_a_shell_script(tmp_path):
    item = slurm.Item(Run(tmp_path / "a run"), "row (seed 2)")
    _, [(_, text)] = slurm.scripts([item], CLUSTER, tmp_path / "a folder")
    lines = text.splitlines()
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --exclusive",
        "#SBATCH --job-name='row (seed 2)'",
        "module load cuda",
    ):
        assert line in lines
    (command,) = [line for line in lines if line.startswith("srun")]
    for word in ("--kill-on-bad-exit=1", "--wait=300", "--cpus-per-task=16", " -P "):
        assert word in command
    own = [number for number, line in enumerate(lines) if line.startswith("export PYTHONPATH=")]
    assert lines.index("module load cuda") < own[0]  # what a module sets comes after ours
    assert 'export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"' in lines
    process = subprocess.run(["/bin/bash", "-n"], input=text, text=True, capture_output=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_zero_is_a_value_of_an_option_of_sbatch(tmp_path):
    item = slurm.Item(Run(tmp_path / "run"), "row")
    _, [(_, text)] = slurm.scripts([item], Cluster(sbatch={"mem": 0, "nice": "0"}), tmp_path)
    assert {"#SBATCH --mem=0", "#SBATCH --nice=0"} <= set(text.splitlines())
    assert "--partition" not in text
    assert "--gpus-per-node" not in text


def test_folder_whose_name_slurm_would_change_is_refused(tmp_path):
    item = slurm.Item(Run(tmp_path / "run"), "row")
    with pytest.raises(SlurmError, match="Slurm replaces % in names of files"):
        slurm.scripts([item], Cluster(), tmp_path / "100%")


# ----------------------------------------------------------------- which runs are submitted


@pytest.fixture
def item(tmp_path):
    """item(name, after, **files): of a run with these JSON files in its folder."""

    def make(name, after=None, **files):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file, content in {"run": {"config": {}}, **files}.items():
            runs.write_json(folder / f"{file}.json", content)
        return slurm.Item(Run(folder), f"row {name}", (PlannedTest("center"),), after)

    return make


def queued(*jobs, state="PENDING"):
    return {job: Queued(job, state, "", "", "") for job in jobs}


def arrays(plan):
    return [(array.after, [i.run.id for i in array.items]) for array in plan.arrays]


def test_rows_after_the_same_seed_are_arrays_of_no_more_than_slurm_takes(item, tmp_path):
    items = [item("a"), *(item(f"a{i}", "a") for i in range(5)), item("b"), item("aa", "a0")]
    plan = slurm.sort_out(items, {}, tmp_path, size=2)
    assert arrays(plan) == [
        ("", ["a", "b"]),
        ("a", ["a0", "a1"]),
        ("a", ["a2", "a3"]),
        ("a", ["a4"]),
        ("a0", ["aa"]),
    ]


def test_row_of_a_finished_seed_waits_for_nothing(item, tmp_path):
    item("a", result={"steps": 1, "top1_error": 1.0, "train_loss": 1.0})
    assert arrays(slurm.sort_out([item("b", "a")], {}, tmp_path)) == [("", ["b"])]


def test_what_slurm_has_already_is_not_submitted_again_and_is_waited_for(item, tmp_path):
    waits = item("a", job={"backend": "slurm", "job": "12_3"})
    plan = slurm.sort_out([waits, item("b", "a")], queued("12_3"), tmp_path)
    assert (arrays(plan), plan.queued) == ([("a", ["b"])], {"a": "12_3"})
    # The same where the seed is of an earlier command.
    assert slurm.sort_out([item("b", "a")], queued("12_3"), tmp_path) == plan
    # It is gone from the queue: lost, and submitted again.
    assert arrays(slurm.sort_out([waits, item("b", "a")], {}, tmp_path)) == [
        ("", ["a"]),
        ("a", ["b"]),
    ]


@pytest.mark.parametrize("file", ["cancelled", "failed"])
def test_job_that_is_ending_does_not_count(item, tmp_path, file):
    ending = item("a", job={"job": "12"}, **{file: {"reason": "", "time": 0.0, "by": "me"}})
    queue = queued("12", state="COMPLETING")
    assert arrays(slurm.sort_out([ending], queue, tmp_path)) == [("", ["a"])]


def test_row_that_diverged_and_those_it_seeds_are_left_out(item, tmp_path):
    failed = item("a", failed={"kind": "diverged", "reason": "NaN at step 3"})
    lost = item("lost", failed={"kind": "lost", "reason": "its job was lost 4 times"})
    items = [failed, item("b", "a"), item("c", "b"), lost]
    plan = slurm.sort_out(items, {}, tmp_path)
    assert arrays(plan) == [("", ["lost"])]
    reason = "row a failed, and would again: NaN at step 3"
    assert plan.left == {"a": reason, "b": reason, "c": reason}


def test_seed_that_a_local_process_trains_is_an_error_of_the_row_it_seeds(item, tmp_path):
    seed, row = item("a"), item("b", "a")
    with seed.run.lock():
        assert "is being trained by process" in slurm.sort_out([seed], {}, tmp_path).left["a"]
        message = r"row b starts from row a, which is neither .*: row a is being trained by process"
        with pytest.raises(SlurmError, match=message):
            slurm.sort_out([seed, row], {}, tmp_path)
        with pytest.raises(SlurmError, match=r"row b starts from the run a, .* being trained by"):
            slurm.sort_out([row], {}, tmp_path)
    with pytest.raises(SlurmError, match="it has to be submitted too"):
        slurm.sort_out([row], {}, tmp_path)


def test_run_that_slurm_will_train_is_not_started_here(item, monkeypatch):
    submitted = item("a", job={"backend": "slurm", "job": "12_3"})
    local = item("b", job={"backend": "local"})
    jobs = [
        SimpleNamespace(run=row.run, name=row.name, tests=(), seeding=None)
        for row in (submitted, local)
    ]
    monkeypatch.setattr(slurm, "queue", lambda items: queued("12_3"))
    with pytest.raises(backend.BackendError, match=r"row a is Slurm's job 12_3: .*cancel a`"):
        backend.refuse_queued(jobs)
    backend.refuse_queued(jobs[1:])
    monkeypatch.setattr(slurm, "queue", lambda items: {})
    backend.refuse_queued(jobs)


# --------------------------------------------------------------------- runs that are followed


@pytest.fixture
def follow(item, monkeypatch):
    """follow({run: its seed}, queue): a follower of these, and the events it tells."""

    def start(rows, queue):
        jobs = {}
        for name, after in rows.items():
            run = item(
                name, job={"backend": "slurm", "job": f"12_{name}", "log": f"{name}.err"}
            ).run
            job = SimpleNamespace(run=run, name=name, tests=(), seeding=jobs.get(after))
            jobs[name] = Finishes(**vars(job))
        monkeypatch.setattr(squeue, "recent_jobs", lambda users: queue)
        events = []
        follower = backend.Follower(
            list(jobs.values()), lambda job, e: events.append((job.name, e))
        )
        return follower, events

    return start


class Finishes(SimpleNamespace):
    @property
    def done(self):
        return self.run.trained


def test_followed_runs_end_as_their_folders_say(follow, tmp_path):
    queue = queued("12_a", state="RUNNING") | queued("12_b", "12_c", "12_d")
    follower, events = follow({"a": None, "b": None, "c": "b", "d": None}, queue)
    follower.look()
    assert [(name, e["event"]) for name, e in events] == [("a", "launched")]
    progress = {"time": time.time(), "state": "training", "step": 3, "images_per_s": 9.0}
    runs.write_json(tmp_path / "a" / "progress.json", progress)
    follower.look()
    follower.look()  # what is told once is not told again
    assert [(name, e["event"]) for name, e in events] == [("a", "launched"), ("a", "progress")]
    runs.write_json(
        tmp_path / "a" / "result.json", {"steps": 1, "top1_error": 1.0, "train_loss": 1.0}
    )
    runs.write_json(tmp_path / "b" / "failed.json", {"reason": "NaN", "kind": "diverged"})
    runs.write_json(tmp_path / "d" / "cancelled.json", {"time": 0.0, "by": "me"})
    queue.clear()
    events.clear()
    follower.look()
    assert [(name, e["event"]) for name, e in events] == [
        ("a", "finished"),
        ("b", "failed"),
        ("c", "blocked"),
        ("d", "failed"),
    ]
    assert follower.failed == {"b": "NaN", "c": "its seeding run, b, failed", "d": "cancelled"}
    assert not follower.waiting


def test_followed_run_whose_job_is_gone_is_given_up_once_that_is_certain(follow, monkeypatch):
    follower, _ = follow({"a": None}, queued("12_a"))
    monkeypatch.setattr(squeue, "recent_jobs", lambda users: None)  # Slurm does not answer
    for _ in range(9):
        follower.look()
    assert follower.waiting
    monkeypatch.setattr(squeue, "recent_jobs", lambda users: {})
    follower.look()
    assert follower.waiting  # its files may be seen here a little later
    for _ in range(9):
        follower.look()
    assert follower.failed == {"a": "its Slurm job 12_a is gone; see a.err"}
