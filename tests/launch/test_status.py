"""How runs stand, and how they are ended and submitted again: made-up folders, a made-up Slurm."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from shutil import rmtree

import pytest

from experiments.runs import names
from experiments.runs.runs import Run, RunError
from launch import cli, row_states
from launch.executors import slurm as backend
from launch.executors import squeue
from launch.executors.cluster import Cluster
from launch.verbs import cancel, status

# What Slurm is asked is kept in `asked`, and what it answers is in `queue` and `accounts`.
SQUEUE = """#!/bin/sh
echo squeue "$@" >>{where}/asked
[ -e {where}/queue ] || {{ echo "squeue: error: Unable to contact slurm controller" >&2; exit 1; }}
cat {where}/queue
"""
SACCT = """#!/bin/sh
echo sacct "$@" >>{where}/asked
[ -e {where}/accounts ] || {{ echo "Slurm accounting storage is disabled" >&2; exit 1; }}
cat {where}/accounts
"""
# Takes jobs out of the queue, but for those of another user; says which were marked before.
SCANCEL = """#!/bin/sh
echo scancel "$@" >>{where}/asked
ls {where}/runs/*/cancelled.json >{where}/marked 2>/dev/null
for job in "$@"; do
  if grep -q "^$job|.*|other$" {where}/queue; then
    echo "scancel: error: Kill job error on job id $job: Access/permission denied" >&2; status=1
  else
    sed -i "/^$job|/d" {where}/queue
  fi
done
exit $status
"""


class MadeUpSlurm:
    """`answers(queue)` sets what squeue prints: lines JOB|STATE|LEFT|NODE|REASON."""

    def __init__(self, where: Path):
        self.where = where

    def answers(self, *lines: str, accounts: str | None = None) -> None:
        (self.where / "queue").write_text("".join(line + "\n" for line in lines))
        if accounts is not None:
            (self.where / "accounts").write_text(accounts)

    @property
    def asked(self) -> list[list[str]]:
        """The command lines so far."""
        file = self.where / "asked"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, text in (("squeue", SQUEUE), ("sacct", SACCT), ("scancel", SCANCEL)):
        program = tmp_path / "bin" / name
        program.write_text(text.format(where=tmp_path))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return MadeUpSlurm(tmp_path)


@pytest.fixture
def make(tmp_path):
    """make(row, after=a run, result={...}, job="12", ...): a run's folder with such JSON files."""
    runs = []

    def make_run(row, *, study="depth", seed=0, after=None, **files):
        number = len(runs)
        run = Run(tmp_path / "runs" / f"vgg-{number:04x}")
        run.folder.mkdir(parents=True)
        donor = None if after is None else {"row": after.read("run")["row"], "run": after.id}
        about = {"id": run.id, "study": study, "row": row, "seed": seed, "seed_from": donor}
        about["config"] = {}
        about["created"] = f"2026-01-02T03:{number // 60:02}:{number % 60:02}+0000"
        files = {"run": about, **files}
        if isinstance(files.get("job"), str):
            files["job"] = {"backend": "slurm", "job": files["job"], "user": "ann"}
        for name, content in files.items():
            (run.folder / f"{name}.json").write_text(json.dumps(content))
        runs.append(run)
        return run

    return make_run


def progress(age=0.0, host="elsewhere", **fields):
    usual = {"state": "training", "step": 50, "steps": 200, "loss": 1.5, "error": 40.0}
    usual |= {"images_per_s": 100.0, "left": 30.0, "job": ""}
    return {"time": time.time() - age, **usual, "host": host, **fields}


@pytest.fixture
def ask(tmp_path, capsys):
    """ask(words, expect=0): what a verb printed, on standard output and of errors."""

    def ask(*words, expect=0):
        assert cli.main([*words, "--runs", str(tmp_path / "runs")]) == expect
        return capsys.readouterr()

    return ask


RESULT = {"steps": 200, "train_loss": 0.1, "top1_error": 3.0, "images_per_s": 90.0}
LATELY = {"job": "12", "progress": {"age": 5}}
SILENT = {"job": "12", "progress": {"age": 500, "job": "12"}}
TESTED = {"job": "12", "result": RESULT, "progress": {"state": "testing"}}
UNTESTED = "trained, but not tested: x"


def look(tmp_path):
    """Run id -> how it stands."""
    return {row.run: row for row in row_states.read(tmp_path / "runs").rows}


@pytest.mark.parametrize(
    ("files", "queue", "state", "reason"),
    [
        ({}, "", "not run", ""),
        ({"result": RESULT}, "", "finished", ""),
        ({"result": RESULT, "job": "12_3"}, "", "finished", ""),
        ({"failed": {"reason": "NaN at step 3"}}, "", "failed", "NaN at step 3"),
        ({"progress": {"age": 5}}, "", "running", ""),
        ({"progress": {"age": 500}}, "", "interrupted", ""),
        # The process is known not to be here, as nobody holds the lock.
        ({"progress": {"age": 5, "host": socket.gethostname()}}, "", "interrupted", ""),
        ({"job": "12_3"}, "12_3|RUNNING|1:00|n1|None", "running", ""),
        ({"job": "12_3"}, "12_3|PENDING|1:00||Priority", "queued", "Priority"),
        ({"job": "12_3"}, "12_4|PENDING|1:00||Priority", "lost", "its Slurm job is gone"),
        ({"job": "12"}, "12|COMPLETING|1:00|n1|None", "stopping", "its Slurm job is ending"),
        ({"job": "12"}, "12|NODE_FAIL|1:00|n1|None", "lost", "its Slurm job ended: NODE_FAIL"),
        (LATELY, "12|CANCELLED|1:00|n1|None", "lost", "its Slurm job ended: CANCELLED"),
        (LATELY, "", "running", ""),
        ({**LATELY, "cancelled": {"by": "bob"}}, "", "cancelled", "by bob"),
        # Started again after it was lost: it waits, whatever its progress said a moment ago.
        (LATELY, "12|PENDING|1:00||BeginTime", "queued", "BeginTime"),
        ({"job": "12", "failed": {"reason": "x"}}, "12|PENDING|1:00||None", "queued", "pending"),
        ({"job": "12", "failed": {"reason": "x"}}, "12|COMPLETING|1:00|n1|None", "failed", "x"),
        ({"job": "12", "cancelled": {"by": "bob"}}, "12|RUNNING|1|n1|None", "stopping", "by bob"),
        ({"job": "12", "cancelled": {"by": "bob"}}, "12|CANCELLED|1||None", "cancelled", "by bob"),
        (SILENT, "12|RUNNING|1:00|n1|None", "running", "silent for 8:20"),
        (TESTED, "12|RUNNING|1:00|n1|None", "running", ""),
        (TESTED, "12|COMPLETING|1:00|n1|None", "finished", ""),
        ({"result": RESULT, "untested": {"reason": "x"}}, "", "failed", UNTESTED),
    ],
)
def test_state_of_a_run(make, pretended, tmp_path, files, queue, state, reason):
    if "progress" in files:  # its age is counted from now on
        files = {**files, "progress": progress(**files["progress"])}
    pretended.answers(queue)
    run = make("A", **files)
    row = look(tmp_path)[run.id]
    assert (row.state, row.reason) == (state, reason)
    assert row_states.read_one(row) == row or state == "running"  # its age is another


def test_run_whose_lock_is_held_is_running_and_then_stopping(make, tmp_path):
    run = make("A")
    with run.lock():
        assert look(tmp_path)[run.id].state == "running"
        (run.folder / "cancelled.json").write_text('{"by": "ann"}')
        assert look(tmp_path)[run.id].state == "stopping"
    assert look(tmp_path)[run.id].state == "cancelled"


def test_failed_row_that_is_tried_again_is_running(make, tmp_path):
    run = make("A", failed={"reason": "a typing error"})
    with run.lock():
        assert look(tmp_path)[run.id].state == "running"
    later = {**progress(), "time": time.time() + 5}
    (run.folder / "progress.json").write_text(json.dumps(later))
    assert look(tmp_path)[run.id].state == "running"


def test_figures_of_running_rows_are_the_progress_and_of_finished_ones_the_result(make, tmp_path):
    a = make("A", progress=progress(age=10))
    running = look(tmp_path)[a.id]
    assert (running.step, running.steps, running.loss, running.error) == (50, 200, 1.5, 40.0)
    assert (running.rate, running.node, running.doing) == (100.0, "elsewhere", "training")
    assert running.left == pytest.approx(20, abs=5)  # 30 s when it was told, 10 s ago
    b = make("B", result=RESULT, progress=progress())
    finished = look(tmp_path)[b.id]
    assert (finished.step, finished.loss, finished.error, finished.rate) == (200, 0.1, 3.0, 90.0)


def test_run_without_progress_file_shows_the_last_line_of_its_metrics(make, tmp_path):
    run = make("A")
    lines = [{"step": step, "train_loss": step / 100, "train_error": 9.0} for step in range(500)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 499, "val_loss": 1.0}])
    run.metrics.write_text(text + '{"step": 500, "train_lo')
    row = look(tmp_path)[run.id]
    assert (row.state, row.step, row.loss) == ("interrupted", 499, 4.99)


def test_what_a_failed_seed_would_have_started_is_blocked(make, pretended, tmp_path):
    pretended.answers("12_1|PENDING|1:00||Dependency")
    a = make("A", failed={"reason": "NaN"})
    b = make("B", after=a, job="12_1")
    c = make("C", after=b)
    d = make("D", after=a, result=RESULT)  # trained before A was tried again
    e = make("E", after=d)
    rows = look(tmp_path)
    assert [rows[run.id].state for run in (a, b, c, d, e)] == [
        *("failed", "blocked", "blocked", "finished", "not run")
    ]
    assert rows[b.id].reason == "its seeding run, A, failed"
    assert rows[c.id].reason == "its seeding run, B, is blocked"


def test_seed_that_could_only_not_be_tested_blocks_nothing(make, tmp_path):
    a = make("A", result=RESULT, untested={"reason": "no memory"})
    b = make("B", after=a)
    assert look(tmp_path)[b.id].state == "not run"


def test_slurm_is_asked_once_and_only_about_what_is_not_finished(make, pretended, tmp_path):
    make("done", result=RESULT, job="11")
    look(tmp_path)
    assert not pretended.asked
    pretended.answers(*(f"12_{n}|RUNNING|1:00|n1|None" for n in range(30)))
    for n in range(30):
        make(f"row {n}", job=f"12_{n}")
    assert set(row_states.count(look(tmp_path).values())) == {"running", "finished"}
    ((program, *options),) = pretended.asked
    assert program == "squeue"
    assert options[options.index("-u") + 1] == "ann"
    assert {"-r", "-h"} <= set(options)


def test_users_own_settings_of_slurms_programs_do_not_count(pretended, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "squeue"
    program.write_text('#!/bin/sh\n[ -z "$SQUEUE_PARTITION" ] && echo "1|RUNNING|1:00|n1|None"\n')
    monkeypatch.setenv("SQUEUE_PARTITION", "empty")
    assert set(squeue.queue("ann") or {}) == {"1"}


def test_job_that_ends_between_the_folder_and_the_queue_is_not_lost(make, tmp_path, monkeypatch):
    run = make("A", job="12")

    def known(user):
        (run.folder / "result.json").write_text(json.dumps(RESULT))
        return {}

    monkeypatch.setattr(squeue, "recent_jobs", known)
    assert look(tmp_path)[run.id].state == "finished"


def test_accounting_says_how_lost_jobs_ended(make, pretended, tmp_path):
    accounts = "12_1|CANCELLED by 1000|0:15\n12_2|TIMEOUT|0:0\n"
    pretended.answers(accounts=accounts)
    runs = [make("A", job="12_1"), make("B", job="12_2"), make("C", job="12_3")]
    rows = look(tmp_path)
    assert [rows[run.id].reason for run in runs] == [
        "its Slurm job ended: CANCELLED, exit status 0:15",
        "its Slurm job ended: TIMEOUT, exit status 0:0",
        "its Slurm job is gone",
    ]
    assert [words[0] for words in pretended.asked] == ["squeue", "sacct"]


def test_where_slurm_does_not_answer_the_folders_speak_and_status_says_so(make, pretended, ask):
    make("A", job="12_1")
    make("B", job="12_2", progress=progress(age=500))
    make("C", job="12_3", progress=progress(age=5))
    shown = ask("status").out
    assert "1 running, 1 queued, 1 interrupted" in shown
    assert "Slurm does not answer here" in shown
    assert json.loads(ask("status", "--json").out)["slurm"] == "does not answer"


def test_slurm_programs_that_hang_are_given_up(pretended, tmp_path, monkeypatch):
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(squeue, "SECONDS", 0.2)
    assert squeue.queue("ann") is None


def test_jobs_that_ended_are_not_in_the_queue(pretended):
    pretended.answers(
        "1|PENDING|1:00||(Resources)",
        "2_0|COMPLETED|1:00|n1|None",
        "2_1|RUNNING|1:00|n[1-2]|None",
        "2_2|CANCELLED|1:00||None",
        "3|COMPLETING|1:00|n1|None",
    )
    queue = squeue.queue("ann") or {}
    assert set(queue) == {"1", "2_1", "3"}
    assert queue["2_1"] == squeue.Queued("2_1", "RUNNING", "n[1-2]", "", "1:00")


def test_rows_are_by_study_and_seeds_before_what_they_seed(make, tmp_path):
    first = make("z", study="one")
    make("y", study="two")
    late = make("a seed", study="one")
    early = Run(make("seeded", study="one", after=late).folder)
    about = early.read("run") | {"created": "2026-01-01T00:00:00+0000"}
    (early.folder / "run.json").write_text(json.dumps(about))
    names = [(row.study, row.name) for row in row_states.read(tmp_path / "runs").rows]
    assert names == [("one", "a seed"), ("one", "seeded"), ("one", "z"), ("two", "y")]
    assert first.id in look(tmp_path)


def test_imported_networks_and_other_folders_are_no_rows(make, tmp_path):
    make("A")
    make("B", run={"name": "vgg:A", "config": {}, "imported": {"digest": "12"}})
    (tmp_path / "runs" / "reports").mkdir()
    assert [row.name for row in row_states.read(tmp_path / "runs").rows] == ["A"]


def test_seeds_in_a_circle_end_the_look(make, tmp_path):
    a = make("A")
    b = make("B", after=a)
    (a.folder / "run.json").write_text(
        json.dumps(a.read("run") | {"seed_from": {"row": "B", "run": b.id}})
    )
    assert set(look(tmp_path)) == {a.id, b.id}


# Words that name rows.


@pytest.fixture
def named(make, tmp_path):
    """find(words) -> the names of `study/name` that they name."""
    for study in ("depth", "width"):
        for row in ("A", "B"):
            for seed in (0, 2):
                make(row, study=study, seed=seed)
    make("only", study="depth")
    table = row_states.read(tmp_path / "runs")

    def find(*words):
        return [f"{row.study}/{row.name}" for row in names.find(words, table.rows, table.folder)]

    return find


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["depth/A"], ["depth/A"]),
        (["depth/A (seed 2)", "vgg-0000"], ["depth/A", "depth/A (seed 2)"]),
        (["only"], ["depth/only"]),
        (["0007"], ["width/B (seed 2)"]),
        (["depth/*(seed 2)"], ["depth/A (seed 2)", "depth/B (seed 2)"]),
        (["width/B*"], ["width/B", "width/B (seed 2)"]),
    ],
)
def test_words_name_rows(named, words, expected):
    assert named(*words) == expected


def test_word_that_fits_several_rows_or_none_says_which_there_are(named):
    with pytest.raises(RunError, match=r"'A' fits 2 runs.*vgg-0000 \(depth/A\)"):
        named("A")
    with pytest.raises(RunError, match="did you mean 'only'"):
        named("onyl")
    with pytest.raises(RunError, match="is called 'C/'; there are: A, A"):
        named("C/")


def test_folder_of_a_run_names_it(make, tmp_path):
    run = make("A")
    rows = row_states.read(tmp_path / "runs").rows
    assert [row.run for row in names.find([f"{run.folder}/"], rows, tmp_path)] == [run.id]


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "retry"])
def test_unknown_rows_are_bad_input(make, tmp_path, verb, ask):
    make("A")
    assert "is called 'xyz'" in ask(verb, "xyz", expect=2).err
    rmtree(tmp_path / "runs")
    assert "no runs can be read" in ask(verb, "xyz", expect=2).err


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_looking_and_ending_start_no_jax(make, tmp_path, fresh_python, verb):
    make("A", result=RESULT)
    code = (
        "import sys, launch.cli\n"
        f"launch.cli.main([{verb!r}, '--runs', {str(tmp_path / 'runs')!r}, 'A'])\n"
        "print(*sorted({'jax', 'numpy', 'flax', 'tensorflow'} & set(sys.modules)), 'end')\n"
    )
    assert fresh_python("-c", code).stdout.splitlines()[-1] == "end"


# What status shows.


def test_status_shows_every_figure_of_a_running_row(make, ask):
    make("A", progress=progress(host="n7"))
    text = ask("status").out
    (line,) = [line for line in text.splitlines() if line.startswith("A ")]
    assert line.split() == (
        ["A", "vgg-0000", "running", "50", "of", "200", "25%", "1.500", "40.0", "100", "0:30", "n7"]
    )
    assert "1 row: 1 running; 100 images/s in all" in text


def test_status_says_why(make, ask):
    a = make("A", failed={"reason": "the loss is NaN after step 3"})
    make("B", after=a)
    text = ask("status").out
    assert "A: failed, the loss is NaN after step 3" in text
    assert "B: blocked, its seeding run, A, failed" in text


def test_words_of_status_are_rows_studies_and_states(make, ask):
    make("A", study="depth", result=RESULT)
    make("B", study="depth", failed={"reason": "x"})
    make("A", study="width", result=RESULT)

    def listed(*words):
        answer = json.loads(ask("status", "--json", *words).out)
        return [f"{row['study']}/{row['name']}" for row in answer["rows"]]

    assert listed("finished") == ["depth/A", "width/A"]
    assert listed("width") == listed("--study", "width") == ["width/A"]
    assert listed("A") == ["depth/A", "width/A"]
    assert listed("failed", "width/*") == ["depth/B", "width/A"]
    assert listed("running") == []
    assert "did you mean 'width'?" in ask("status", "--study", "wdth", expect=2).err


def test_of_many_rows_those_that_need_a_look_are_shown_and_all_are_counted(make, ask):
    for n in range(100):
        make(f"row {n}", result=RESULT | {"finished": f"2026-01-01T00:00:{n % 60:02}"})
    make("broken", failed={"reason": "NaN"})
    make("alive", progress=progress())
    text = ask("status").out
    assert "broken" in text
    assert "alive" in text
    assert sum(line.startswith("row ") and "finished" in line for line in text.splitlines()) == 3
    assert "row 59" in text  # the last that ended
    assert "and 97 more: 97 finished" in text
    assert "102 rows: 1 running, 1 failed, 100 finished" in text
    every = ask("status", "--all").out
    assert sum("finished" in line for line in every.splitlines()) == 101  # and the summary


def test_narrow_screens_leave_columns_out_and_never_the_state(make, tmp_path):
    make("A", progress=progress())
    table = row_states.read(tmp_path / "runs")
    columns = status._columns(table.rows)
    wide = [c.header for c in status._fitting(columns, table.rows, 200)]
    narrow = [c.header for c in status._fitting(columns, table.rows, 50)]
    assert len(narrow) < len(wide) == len(columns)
    assert {"row", "state", "step", "error, %"} <= set(narrow)


def test_rows_of_one_name_are_told_apart_however_narrow_the_screen(make, tmp_path):
    make("A", result=RESULT)
    make("A", result=RESULT)
    rows = row_states.read(tmp_path / "runs").rows
    columns = status._fitting(status._columns(rows), rows, 20)
    assert "run" in [column.header for column in columns]


def test_json_has_every_row_with_every_figure(make, ask):
    run = make("A", seed=2, progress=progress(loss=float("nan")))
    answer = json.loads(ask("status", "--json").out)
    assert answer["counts"] == {"running": 1}
    (row,) = answer["rows"]
    assert (row["run"], row["name"], row["loss"]) == (run.id, "A (seed 2)", None)
    assert set(row) >= {"state", "step", "steps", "error", "rate", "left", "node", "reason", "job"}


def test_watch_ends_when_nothing_is_left_to_wait_for(make, monkeypatch, ask):
    run = make("A", progress=progress())

    def sleep(seconds):
        assert seconds == 3
        (run.folder / "result.json").write_text(json.dumps(RESULT))
        (run.folder / "progress.json").unlink()

    monkeypatch.setattr(status.time, "sleep", sleep)
    text = ask("status", "--watch", "3").out
    assert text.index("1 row: 1 running") < text.index("1 row: 1 finished")


# What cancel ends.


def test_cancel_ends_queued_and_running_jobs_with_one_call_and_marks_them_first(
    make, pretended, tmp_path, ask
):
    pretended.answers("12_0|RUNNING|1:00|n1|None", "12_1|PENDING|1:00||Priority")
    a, b = make("A", job="12_0"), make("B", job="12_1")
    c = make("C", after=b, job="12_2")
    finished = make("D", result=RESULT, job="12_3")
    output = ask("cancel", "A", "B", "D").out
    calls = [words for words in pretended.asked if words[0] == "scancel"]
    assert calls == [["scancel", "12_0", "12_1"]]
    marked = (tmp_path / "marked").read_text().split()
    assert {Path(path).parent.name for path in marked} == {a.id, b.id}
    assert "saves and ends: A\n" in output
    assert "was queued: B\n" in output
    assert "will not run, as these seed them: C" in output
    assert "not touched: 1 finished (D)" in output
    rows = look(tmp_path)
    assert [rows[r.id].state for r in (a, b, c)] == ["cancelled", "cancelled", "blocked"]
    assert rows[finished.id].state == "finished"
    assert not (finished.folder / "cancelled.json").exists()


def test_cancel_of_a_job_that_slurm_refuses_leaves_it_as_it_was(make, pretended, tmp_path, ask):
    pretended.answers("12_0|RUNNING|1:00|n1|None", "12_1|RUNNING|1:00|n1|other")
    a, b = make("A", job="12_0"), make("B", job="12_1")
    output = ask("cancel", "--all", expect=1)
    assert f"{b.id} can't be cancelled: Access/permission denied" in output.err
    rows = look(tmp_path)
    assert [rows[run.id].state for run in (a, b)] == ["cancelled", "running"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"job": "12_0"}, "Slurm does not answer here, and it was given job 12_0"),
        ({"progress": {"host": "n7"}}, "it runs on n7"),
    ],
)
def test_cancel_of_a_run_out_of_reach_is_an_error_and_marks_nothing(
    make, pretended, ask, files, said
):
    files = {
        name: progress(**content) if name == "progress" else content
        for name, content in files.items()
    }
    run = make("A", **files)
    assert said in ask("cancel", "--study", "depth", expect=1).err
    assert not (run.folder / "cancelled.json").exists()


HOLDER = """
import signal, sys, time
from pathlib import Path
from experiments.runs.runs import Run
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_cancel_terminates_the_process_that_holds_the_lock(make, tmp_path, ask):
    run = make("A")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        output = ask("cancel", "A").out
        assert process.wait(30) == 75
    assert "saves and ends: A" in output
    assert look(tmp_path)[run.id].state == "cancelled"


def test_cancel_signals_nobody_whose_lock_is_not_held(make, tmp_path, monkeypatch, ask):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    run = make("A", progress=progress(age=500))
    (run.folder / "lock").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    ask("cancel", "A")
    assert cancel._terminate(look(tmp_path)[run.id]) == ""  # as when it ends just before
    assert not sent
    assert not (run.folder / "cancelled.json").exists()


@pytest.mark.parametrize("words", [[], ["A", "--all"], ["--study", "depth", "--all"]])
@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_cancel_and_retry_want_to_be_told_what(make, verb, words, ask):
    make("A")
    assert "expected rows, or --study NAME, or --all" in ask(verb, *words, expect=2).err


# What retry submits.

CLUSTER = {"partition": "gpu", "gpus_per_node": 8, "sbatch": {"mem": "64G"}}


def job(number, after=None, **fields):
    return {
        "backend": "slurm",
        "job": number,
        "user": "ann",
        "cluster": CLUSTER,
        "tests": [{"protocol": "dense", "scales": "256", "flip": False}],
        "after": None if after is None else after.id,
        "log": "",
        **fields,
    }


@pytest.fixture
def submitted(monkeypatch):
    """What was submitted: (rows, cluster) of each submission; set `refuses` to make it fail."""

    class Submitted(list):
        refuses = False

    submissions = Submitted()

    def submit(items, cluster, folder, tell, done_with=()):
        if submissions.refuses:
            raise squeue.SlurmError("sbatch refused")
        submissions.append((list(items), cluster))
        for item in items:
            (item.run.folder / "job.json").write_text(json.dumps(job("99")))
        return {item.run.id: f"99_{n}" for n, item in enumerate(items)}

    monkeypatch.setattr(backend, "submit", submit)
    return submissions


def test_retry_submits_what_did_not_finish_with_its_tests_and_cluster_seeds_first(
    make, pretended, submitted, ask
):
    pretended.answers("12_9|PENDING|1:00||Priority")
    a = make("A", failed={"reason": "NaN", "kind": "diverged"}, job=job("12_0"))
    b = make("B", after=a, job=job("12_1", a))
    make("C", result=RESULT, job=job("12_2"))
    make("D", job=job("12_9"))
    (a.folder / "attempts.json").write_text("{}")
    output = ask("retry", "--all").out
    ((items, cluster),) = submitted
    assert [(item.run.id, item.name, item.after) for item in items] == [
        (a.id, "A", None),
        (b.id, "B", a.id),
    ]
    assert [test.name for test in items[0].tests] == ["dense at 256"]
    assert (cluster.partition, cluster.gpus_per_node, cluster.sbatch) == ("gpu", 8, {"mem": "64G"})
    assert not (a.folder / "failed.json").exists()
    assert not (a.folder / "attempts.json").exists()
    assert "submitted: A, B\n" in output
    assert "not touched: 1 queued, 1 finished" in output


@pytest.mark.parametrize("word", ["B", "C"])
def test_retry_of_a_row_takes_the_seeds_that_it_misses_and_the_rows_that_wait_for_it(
    make, pretended, submitted, ask, word
):
    pretended.answers()
    a = make("A", failed={"reason": "x"}, job=job("1"))
    b = make("B", after=a, job=job("2", a))
    c = make("C", after=b, job=job("3", b))
    make("other", failed={"reason": "y"}, job=job("4"))
    ask("retry", word)
    ((items, _),) = submitted
    assert [item.run.id for item in items] == [a.id, b.id, c.id]


def test_options_of_retry_override_what_was_submitted(make, pretended, submitted, ask):
    pretended.answers()
    make("A", job=job("1"))
    ask("retry", "A", "--time", "2-00:00:00", "--sbatch", "qos=long")
    ((_, cluster),) = submitted
    assert (cluster.partition, cluster.time) == ("gpu", "2-00:00:00")
    assert cluster.sbatch == {"mem": "64G", "qos": "long"}


def test_rows_with_other_options_are_another_submission_never_before_their_seeds(
    make, pretended, submitted, ask
):
    pretended.answers()
    long = {**CLUSTER, "time": "9:00:00"}
    a = make("A", job=job("1"))
    b = make("B", after=a, job=job("2", a, cluster=long))
    c = make("C", after=b, job=job("3", b))
    d = make("D", job=job("4"))
    ask("retry", "--all")
    assert [[item.run.id for item in items] for items, _ in submitted] == [
        [a.id, d.id],
        [b.id],
        [c.id],
    ]


def test_retry_that_slurm_refuses_leaves_the_rows_as_they_were(make, pretended, submitted, ask):
    pretended.answers()
    submitted.refuses = True
    run = make("A", failed={"reason": "NaN"}, job=job("1"))
    assert "sbatch refused" in ask("retry", "A", expect=2).err
    assert run.read("failed") == {"reason": "NaN"}


def test_retry_ends_jobs_that_wait_for_a_seed_that_failed(make, pretended, submitted, ask):
    pretended.answers("2|PENDING|1:00||DependencyNeverSatisfied")
    a = make("A", failed={"reason": "x"}, job=job("1"))
    make("B", after=a, job=job("2", a))
    ask("retry", "--all")
    assert ["scancel", "2"] in pretended.asked
    assert len(submitted[0][0]) == 2


def test_retry_of_rows_of_this_machine_clears_them_and_names_the_command(make, ask):
    local = {"backend": "local", "command": "cnn-depth sweep vgg_depth", "started": 1.0}
    run = make("A", failed={"reason": "NaN", "kind": "diverged"}, job=local)
    output = ask("retry", "A").out
    assert not (run.folder / "failed.json").exists()
    assert "`cnn-depth sweep vgg_depth` goes on with A" in output


def test_retry_says_how_a_row_goes_on_that_was_never_begun(make, ask):
    local = {"backend": "local", "command": "cnn-depth sweep vgg_depth", "started": 1.0}
    first = make("A", failed={"reason": "NaN", "kind": "diverged"}, job=local)
    make("B", after=first)
    output = ask("retry", "--all").out
    assert "the command of its study, such as `cnn-depth sweep`, goes on with B" in output


def test_retry_finds_the_users_module_that_a_network_is_of(make, pretended, tmp_path, ask):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 7\n")
    sbatch.chmod(0o755)
    pretended.answers()
    run = make("A")
    items = [backend.Item(run, "A", modules="/nets")]
    backend.submit(items, Cluster(), tmp_path / "runs", print)
    (run.folder / "failed.json").write_text('{"reason": "x"}')
    (first,) = (tmp_path / "runs" / ".slurm").glob("*.json")
    text = first.read_text()
    first.unlink()
    ask("retry", "A")
    assert first.read_text() == text
    assert json.loads(text)[0][2] == "/nets"


# And with a real Slurm.


@pytest.mark.slow
@pytest.mark.slurm
def test_real_slurm_is_understood_and_obeyed(make, slurm, tmp_path):
    def submit(*options):
        words = ("sbatch", "--parsable", "--output=/dev/null", "--kill-on-invalid-dep=yes")
        return slurm.run(*words, *options, "--wrap=sleep 300").strip()

    def own_job(number, after=None):
        return job(number, after, user=row_states.user())

    def states(*words):
        process = slurm.cnn_depth("status", "--runs", str(tmp_path / "runs"), "--json", *words)
        assert process.returncode == 0, process.stderr
        return {row["row"]: row for row in json.loads(process.stdout)["rows"]}

    array = submit("--array=0-2", "--nodes=1")
    child, on_hold = submit(f"--dependency=afterok:{array}_0"), submit("--hold")
    jobs = (array, child, on_hold)
    try:
        a, *_ = [make(f"A{n}", job=own_job(f"{array}_{n}")) for n in range(3)]
        make("B", after=a, job=own_job(child, a))
        make("C", job=own_job(on_hold))
        slurm.until(lambda: states()["A2"]["state"] == "running", "the array's start")
        rows = states()
        assert rows["A0"]["node"] in ("n1", "n2", "n3", "n4")
        assert (rows["B"]["state"], rows["B"]["reason"]) == ("queued", "Dependency")
        assert (rows["C"]["state"], rows["C"]["reason"]) == ("queued", "JobHeldUser")
        words = ("cancel", "--runs", str(tmp_path / "runs"))
        process = slurm.cnn_depth(*words, "A0", "A1", "C")
        assert (process.returncode, process.stderr) == (0, "")
        assert "will not run, as these seed them: B" in process.stdout
        slurm.run("scancel", f"{array}_2")  # by hand: nobody says so in the folder
        slurm.until(
            lambda: {row["state"] for row in states().values()} <= {"cancelled", "lost", "blocked"},
            "the jobs' end",
        )
        rows = states()
        assert {name: row["state"] for name, row in rows.items()} == {
            "A0": "cancelled",
            "A1": "cancelled",
            "A2": "lost",
            "B": "blocked",
            "C": "cancelled",
        }
        assert rows["A2"]["reason"] == "its Slurm job ended: CANCELLED"
    finally:
        slurm.run("scancel", *jobs)


def test_what_would_steer_a_terminal_is_escaped(make, ask):
    make("a\x1b[2J", study="s\u202ex", failed={"reason": "bad\nfile \x1b[31m[red]"})
    shown = ask("status").out
    assert not {"\x1b", "\u202e"} & set(shown)
    for text in ("a\\x1b[2J", "s\\u202ex", "bad\\nfile \\x1b[31m[red]"):
        assert text in shown


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run", b"[]"),
        ("run", b'{"row": "\xff"}'),
        ("run", b"{}"),
        ("run", b'{"study": "depth", "row": "A", "seed": "x", "config": {}}'),
        ("result", b"{}"),
        ("result", b"[]"),
        ("failed", b"not JSON"),
        ("job", b'"text"'),
    ],
)
def test_unreadable_run_is_told_of_and_hides_no_other(name, content, make, tmp_path, ask):
    broken, finished = make("A"), make("B", result=RESULT)
    after = make("C", after=broken)
    (broken.folder / f"{name}.json").write_bytes(content)
    rows = {row.run: row for row in row_states.read(tmp_path / "runs").rows}
    assert rows[finished.id].state == "finished"
    assert rows[broken.id].state == "unreadable"
    assert str(broken.folder) in rows[broken.id].reason
    assert rows[after.id].state == "blocked"
    answer = json.loads(ask("status", "--json").out)
    assert answer["counts"] == {"unreadable": 1, "blocked": 1, "finished": 1}


def test_runs_that_are_a_file_are_told_by_every_verb(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    for words in (
        "status",
        "report residual_depth",
        "sweep residual_depth",
        "train residual_depth --row resnet-20",
        "logs B",
        "cancel B",
        "retry B",
        "compare A B",
        "evaluate A",
        "predict x.jpg --run A",
        "weights export A --out x.npz",
        "table vgg-3 --plan",
    ):
        assert cli.main([*words.split(), "--runs", str(file)]) == 2
        err = capsys.readouterr().err
        assert f"{file} is a file; see --runs" in err, words
        assert len(err.splitlines()) == 1, words
