"""What `cnn-depth logs` prints of files that are there, that grow, and that come later."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from experiments.runs.runs import Run
from launch import cli
from launch.verbs import logs


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "runs" / "vgg-0")
    run.folder.mkdir(parents=True)
    about = {"id": run.id, "study": "depth", "row": "A", "seed": 0, "config": {}}
    (run.folder / "run.json").write_text(json.dumps(about))
    return run


@pytest.fixture
def printed(run, capfdbinary):
    """printed(*options): exit status, and what was written to standard output and error."""

    def print_logs(*words):
        status = cli.main(["logs", "A", "--runs", str(run.folder.parent), *words])
        captured = capfdbinary.readouterr()
        return status, captured.out, captured.err.decode()

    return print_logs


@pytest.mark.parametrize("lines", [0, 1, 2, 99, 100, 101, 5000])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"one",
        b"one\n",
        b"\n\n\n",
        b"".join(b"line %d\n" % n for n in range(1000)),
        b"".join(b"%d " % n + b"x" * 3000 + b"\n" for n in range(100)),  # over several blocks
        b"x" * 3 * logs.BLOCK + b"\n",
        b"x" * logs.BLOCK + b"\n" + b"y" * (logs.BLOCK - 1) + b"\nend without a line end",
    ],
)
def test_tail_is_the_last_lines(tmp_path, text, lines):
    (tmp_path / "log").write_bytes(text)
    expected = b"".join(text.splitlines(keepends=True)[-lines:]) if lines else b""
    assert logs.tail(tmp_path / "log", lines) == (expected, len(text))


def test_tail_of_a_huge_file_reads_its_end_only(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        os.truncate(file.fileno(), 1 << 36)  # a hole of 64 GiB
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\nlast\n")
    lines, size = logs.tail(tmp_path / "log", 2)
    assert lines == b"last but one\nlast\n"
    assert size == (1 << 36) + 19


def test_logs_prints_the_last_lines_as_they_are(run, printed):
    text = b"".join(b"line %d \xff\xfe\n" % n for n in range(300))
    (run.folder / "log.txt").write_bytes(text)
    assert printed("-n", "2") == (0, b"line 298 \xff\xfe\nline 299 \xff\xfe\n", "")
    assert printed()[1].count(b"\n") == logs.LINES
    assert printed("-n", "all")[1] == text


def test_logs_of_every_process_have_headers(run, printed):
    for name in ("log.txt", "log-1.txt", "log-2.txt", "log-10.txt"):
        (run.folder / name).write_text(f"from {name}\n")
    assert printed()[1] == b"from log.txt\n"
    assert printed("--process", "2")[1] == b"from log-2.txt\n"
    output = printed("--process", "all")[1].decode()
    assert output.split("\n\n") == [
        "==> log.txt <==\nfrom log.txt",
        "==> log-1.txt <==\nfrom log-1.txt",
        "==> log-2.txt <==\nfrom log-2.txt",
        "==> log-10.txt <==\nfrom log-10.txt\n",
    ]


def test_log_of_the_slurm_job_is_shown_where_the_run_has_none(run, printed, tmp_path):
    outer = tmp_path / "12_0.err"
    outer.write_text("ModuleNotFoundError\n")
    (run.folder / "job.json").write_text(json.dumps({"backend": "local", "log": str(outer)}))
    (run.folder / "log.txt").touch()
    assert printed()[1] == b"ModuleNotFoundError\n"
    (run.folder / "log.txt").write_text("step 1\n")
    assert printed()[1] == b"step 1\n"


def test_row_that_wrote_nothing_says_how_it_stands(printed):
    status, out, error = printed()
    assert (status, out) == (1, b"")
    assert error == "A is not run; it has written nothing yet\n"


def test_empty_log_of_a_run_that_ended_leads_to_its_losses(run, printed):
    (run.folder / "failed.json").write_text(json.dumps({"reason": "NaN at step 3"}))
    assert printed()[2] == "A is failed: NaN at step 3; its log is empty\n"
    run.metrics.write_text("{}\n")
    assert printed()[2].endswith(f"its log is empty, and its losses are in {run.metrics}\n")


@pytest.mark.parametrize("words", [["-n", "-3"], ["-n", "x"], ["--process", "first"]])
def test_what_is_no_number_is_bad_input(printed, words):
    with pytest.raises(SystemExit) as raised:
        printed(*words)
    assert raised.value.code == 2


# With -f.


@pytest.fixture
def writer(run, monkeypatch):
    """writer(steps) does one of the steps every 0.3 s, while `logs -f` looks on."""
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(logs, "FOLDER_SECONDS", 0.05)
    monkeypatch.setattr(logs, "SLURM_SECONDS", 0.2)
    threads = []

    def start(*steps):
        def work():
            for step in steps:
                time.sleep(0.3)
                step()

        thread = threading.Thread(target=work)
        threads.append(thread)
        thread.start()

    yield start
    for thread in threads:
        thread.join()


def add(path: Path, text: str):
    def step():
        with path.open("a") as file:
            file.write(text)

    return step


def put(path: Path, content):
    def step():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content) if path.suffix == ".json" else content)
        os.replace(partial, path)

    return step


RESULT = {"steps": 200, "train_loss": 0.1, "top1_error": 3.0}


def test_follow_prints_what_is_added_until_the_run_is_finished(run, printed, writer):
    log = run.folder / "log.txt"
    log.write_text("step 1\n")
    writer(
        add(log, "step 2\nstep"),
        add(log, " 3\n"),
        add(log, "step 4\n"),
        put(run.folder / "result.json", RESULT),
    )
    status, out, error = printed("-f")
    assert (status, out) == (0, b"step 1\nstep 2\nstep 3\nstep 4\n")
    assert error == "A is finished\n"


def test_follow_waits_for_a_log_that_is_not_there_and_for_a_new_file(run, printed, writer):
    log = run.folder / "log.txt"
    writer(
        put(log, "a first start, of which much was written\n"),
        put(log, "another file\n"),
        put(run.folder / "failed.json", {"reason": "NaN at step 3"}),
    )
    status, out, error = printed("-f")
    assert (status, out) == (1, b"a first start, of which much was written\nanother file\n")
    assert error.splitlines()[-1] == "A is failed: NaN at step 3"


def test_follow_goes_from_the_job_s_log_to_the_run_s_own(run, printed, writer, tmp_path):
    outer = tmp_path / "12.err"
    outer.write_text("starting\n")
    (run.folder / "job.json").write_text(json.dumps({"backend": "local", "log": str(outer)}))
    writer(
        add(outer, "started\n"),
        put(run.folder / "log.txt", "step 1\n"),
        put(run.folder / "result.json", RESULT),
    )
    assert printed("-f")[:2] == (0, b"starting\nstarted\nstep 1\n")


def test_follow_of_a_finished_run_ends_at_once(run, printed):
    (run.folder / "log.txt").write_text("step 1\n")
    (run.folder / "result.json").write_text(json.dumps(RESULT))
    assert printed("-f") == (0, b"step 1\n", "A is finished\n")


def test_follow_goes_on_through_a_requeue(run, printed, writer, monkeypatch):
    """Between two starts the job is queued, and for a moment may be nowhere."""
    from launch.executors import squeue

    answers = ["RUNNING", "RUNNING", None, "PENDING", "RUNNING"]

    def recent_jobs(user):
        state = answers.pop(0) if len(answers) > 1 else answers[0]
        return {} if state is None else {"12": squeue.Queued("12", state, "n1", "", "")}

    monkeypatch.setattr(squeue, "recent_jobs", recent_jobs)
    job = {"backend": "slurm", "job": "12", "user": "ann", "log": ""}
    (run.folder / "job.json").write_text(json.dumps(job))
    log = run.folder / "log.txt"
    log.write_text("first start\n")
    writer(
        *[lambda: None] * 4,
        add(log, "second start\n"),
        lambda: answers.append(None),
        put(run.folder / "result.json", RESULT),
    )
    status, out, _ = printed("-f")
    assert (status, out) == (0, b"first start\nsecond start\n")


def test_control_characters_are_escaped(run, printed):
    text = "a\x1b[2Jb\x9b\ttab é\r\n".encode()
    (run.folder / "log.txt").write_bytes(text)
    _, out, _ = printed()
    assert out == "a\\x1b[2Jb\\x9b\ttab é\r\n".encode()
