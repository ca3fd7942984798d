"""The command line: fast help, one clear message for bad input, well-behaved exits."""

import ast
import errno
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments import config as configs
from launch import cli

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ("jax", "numpy", "flax", "rich", "cnn_arch", "experiments", "input_pipeline")


def run_in_process_of_its_own(fresh_python, words: list[str]) -> tuple[int, set[str]]:
    """Runs `cnn-depth WORDS` and returns its exit status and the heavy modules it imported."""
    code = (
        "import sys, launch.cli\n"
        f"sys.argv = ['cnn-depth', *{words!r}]\n"
        "try: status = launch.cli.entry()\n"
        "except SystemExit as leave: status = leave.code\n"
        f"print('STATUS', status, *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    process = fresh_python("-c", code)
    *_, last = [line for line in process.stdout.splitlines() if line.startswith("STATUS")]
    _, status, *heavy = last.split()
    return int(status), set(heavy)


# The same in a process of its own, which then sets `module.main` and goes on with ENTRY.
FAKE = (
    "import sys, types, launch.cli as cli\n"
    "module = types.ModuleType('fake_verb')\n"
    "module.HELP = module.EXAMPLE = 'x'\n"
    "module.add_arguments = lambda parser: None\n"
    "sys.modules['fake_verb'] = module\n"
    "cli.MODULES['fake'] = 'fake_verb'\n"
)
ENTRY = "sys.argv = ['cnn-depth', 'fake']\nsys.exit(cli.entry())\n"


def fake_verb(monkeypatch, main) -> None:
    """Registers a verb `fake` that runs `main`."""
    module = ModuleType("fake_verb")
    module.HELP, module.EXAMPLE = "Does nothing.", "cnn-depth fake"
    module.add_arguments, module.main = lambda parser: None, main
    monkeypatch.setitem(sys.modules, "fake_verb", module)
    monkeypatch.setitem(cli.MODULES, "fake", "fake_verb")


def raising(error: BaseException):
    def main(args):
        raise error

    return main


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["swep"]])
def test_help_imports_nothing_heavy(fresh_python, words):
    _, heavy = run_in_process_of_its_own(fresh_python, words)
    assert not heavy


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_shows_an_example_and_imports_nothing_heavy(fresh_python, verb, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main([verb, "--help"])
    assert raised.value.code == 0
    output = capsys.readouterr().out
    assert "example" in output
    assert f"\n  cnn-depth {verb}" in output
    status, heavy = run_in_process_of_its_own(fresh_python, [verb, "--help"])
    assert (status, heavy) == (0, set())


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    output = capsys.readouterr().out
    for name, summary in cli.VERBS.items():
        assert f"  {name} " in output
        assert summary in output


def test_no_verb_at_all_shows_the_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("swep", ["did you mean 'sweep'?"]),
        ("docter", ["did you mean 'doctor'?"]),
        ("xyzzy", cli.VERBS),
    ],
)
def test_unknown_verb_names_the_nearest_or_all(typed, told, capsys):
    assert cli.main([typed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cnn-depth: error: ")
    assert all(text in error for text in told)


def test_version_is_the_packages(capsys):
    from importlib import metadata

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cnn-depth {metadata.version('cnn-depth')}\n"


class BadInput(ValueError):
    user_error = True


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no run is called 'x'", "no run is called 'x'"),
        ("no file '\x1b[2J\u202ex'\nthere are: a", "no file '\\x1b[2J\\u202ex'\nthere are: a"),
    ],
)
def test_bad_input_is_one_message_that_steers_no_terminal_and_status_2(
    said, shown, monkeypatch, call
):
    fake_verb(monkeypatch, raising(BadInput(said)))
    assert call("fake") == (2, "", f"cnn-depth: error: {shown}\n")


@pytest.mark.parametrize(
    "bug", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "No such file", "x")]
)
def test_a_bug_shows_its_traceback(bug, monkeypatch):
    fake_verb(monkeypatch, raising(bug))
    with pytest.raises(type(bug), match=re.escape(str(bug))):
        cli.main(["fake"])


def test_status_of_the_verb_is_the_status_of_the_program(monkeypatch):
    fake_verb(monkeypatch, lambda args: 1)
    assert cli.main(["fake"]) == 1


def test_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    fake_verb(monkeypatch, raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys, "argv", ["cnn-depth", "fake"])
    assert cli.entry() == 130
    assert capsys.readouterr().err == "cnn-depth: interrupted\n"


def test_reader_that_leaves_early_is_no_traceback():
    writes_on = FAKE + "module.main = lambda args: print('line\\n' * 1_000_000) or 0\n" + ENTRY
    program = subprocess.Popen(
        [sys.executable, "-c", writes_on], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stderr is not None
    assert program.stdout.readline() == "line\n"
    program.stdout.close()
    error = program.stderr.read()
    program.stderr.close()
    assert (program.wait(60), error) == (141, "")


@pytest.mark.parametrize("words", [["list"], ["--help"], ["list", "--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_stdout_is_one_line_and_no_success(words, unbuffered):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "launch", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            cwd=ROOT,
        )
    message = "cnn-depth: error: standard output can't be written: No space left on device\n"
    # argparse leaves out what it can't write; without a buffer nothing else is left to fail.
    expected = (0, "") if (words, unbuffered) == (["--help"], "1") else (2, message)
    assert (process.returncode, process.stderr) == expected


def test_closed_stdout_is_one_line_and_no_success():
    process = subprocess.run(
        ["sh", "-c", 'exec "$0" -m launch list >&-', sys.executable],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert (process.returncode, process.stderr) == (
        2,
        "cnn-depth: error: standard output is closed\n",
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
)
def test_file_that_a_disk_does_not_take_is_one_message_and_status_2(
    number, words, monkeypatch, call
):
    fake_verb(monkeypatch, raising(OSError(number, os.strerror(number), "reports/x.md")))
    message = f"cnn-depth: error: reports/x.md can't be written: {words}\n"
    assert call("fake") == (2, "", message)


def test_alarms_about_slow_compilations_stay_out_of_what_a_verb_shows(fresh_python):
    # Some seconds of folding constants, of which XLA complains after one.
    code = (
        FAKE + "def main(args):\n"
        "    import jax, numpy as np\n"
        "    from jax import lax, numpy as jnp\n"
        "    kept = np.ones((80, 80), np.float32)\n"
        "    def folded(x):\n"
        "        window = ((25, 25), (1, 1), 'SAME')\n"
        "        return x + lax.reduce_window(jnp.asarray(kept), -np.inf, lax.max, *window).sum()\n"
        "    jax.jit(folded).lower(jnp.float32(1)).compile()\n"
        "    return 0\n"
        "module.main = main\n"
        "import os; os.environ.pop('TF_CPP_MIN_LOG_LEVEL')\n" + ENTRY
    )
    process = fresh_python("-c", code, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (process.returncode, process.stderr) == (0, "")


def test_broken_pipe_elsewhere_is_a_bug(monkeypatch):
    fake_verb(monkeypatch, raising(BrokenPipeError("a worker died")))
    monkeypatch.setattr(sys, "argv", ["cnn-depth", "fake"])
    monkeypatch.setattr(cli, "_stdout_fails", lambda error: False)
    with pytest.raises(BrokenPipeError):
        cli.entry()


def test_module_is_the_same_program(fresh_python):
    process = fresh_python("-m", "launch", "--help")
    assert process.returncode == 0
    assert process.stdout.startswith("usage: cnn-depth VERB")


def test_figures_are_drawn_whatever_backend_a_notebook_set(fresh_python):
    code = (
        "import sys, launch.cli\n"
        "sys.argv = ['cnn-depth', 'xyzzy']\n"
        "launch.cli.entry()\n"
        "from experiments.report.figures import Canvas, Figure\n"
        "print(len(Figure('a', 'A', [], Canvas(1)).svg))\n"
    )
    process = fresh_python("-c", code, MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 1000


def command_lines():
    """Those in the docstrings of the configs that ship, and in the examples of the verbs."""
    for path in sorted((ROOT / "experiments/studies").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield from (line.strip() for line in text.splitlines() if line.startswith("    cnn-depth"))
    for name in cli.MODULES.values():
        module = importlib.import_module(name)
        yield from (line.strip() for line in module.EXAMPLE.strip().splitlines())


def test_every_command_line_in_the_documentation_has_options_that_exist():
    lines = list(command_lines())
    assert len(lines) > 60
    for line in lines:
        program, verb, *words = shlex.split(line)
        assert program == "cnn-depth"
        try:
            args = cli.parser_of(verb).parse_args(words)
        except SystemExit:
            pytest.fail(f"{line}: its options are not understood")
        row = getattr(args, "row", None)
        if verb == "train" and row and ".py" not in line:
            assert row in [r.name for r in configs.read(args.study or args.config).rows], line


STUDY = """
import os, pathlib
pathlib.Path(os.environ["SEEN"]).write_text(os.environ.get("GLIBC_TUNABLES", "none"))
raise ValueError("read")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize(
    ("verb", "given", "expected"),
    [
        ("train", None, "glibc.malloc.hugetlb=1"),
        ("train", "glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2"),
        ("train", "", ""),
        ("config", None, "none"),
    ],
)
def test_a_verb_that_computes_has_the_memory_pages_of_sweeps(verb, given, expected, tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"SEEN": str(tmp_path / "seen"), "PYTHONPATH": str(ROOT)}
    environment |= {} if given is None else {"GLIBC_TUNABLES": given}
    command = [sys.executable, "-m", "launch", verb, str(tmp_path / "study.py")]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / "seen").read_text() == expected, process.stderr


def test_help_of_a_verb_that_computes_starts_nothing_anew(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    cli._take_huge_pages(["train", "--help"])
    cli._take_huge_pages(["list"])
    cli._take_huge_pages([])
