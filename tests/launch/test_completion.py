"""What shells complete, asked of the shells themselves; some may be skipped."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest
import shtab

from launch import cli
from launch.verbs import completion

SECONDS = 60  # that a shell may take before it counts as hung
BASH = """\
source "$SCRIPT"
COMP_WORDS=({words}); COMP_CWORD={place}; COMPREPLY=()
_shtab_cnn_depth
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# What is typed -> what is offered, and what is not.
TYPED = {
    "cnn-depth sw": ({"sweep"}, {"table"}),
    "cnn-depth sweep res": ({"residual_depth"}, {"vgg_depth"}),
    "cnn-depth table resnet-": ({"resnet-2", "resnet-6"}, {"vgg-3"}),
    "cnn-depth evaluate vgg": ({"vgg-A-0123456789"}, {"vgg-no-run", "residual_depth"}),
    "cnn-depth train --seed-from lenet": ({"lenet-0123456789"}, {"vgg-A-0123456789"}),
    "cnn-depth train --backend ": ({"local", "slurm"}, {"vgg_depth"}),
    "cnn-depth evaluate --prot": ({"--protocol"}, {"--scales"}),
    "cnn-depth data ch": ({"check"}, {"preview"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs, and the scripts; a Python or a cnn-depth that starts leaves `started`."""
    folder = tmp_path_factory.mktemp("shells")
    for name in ("vgg-A-0123456789", "lenet-0123456789", "vgg-no-run"):
        (folder / "kept" / name).mkdir(parents=True)
        if "no-run" not in name:
            (folder / "kept" / name / "run.json").write_text("{}")
    (folder / "bin").mkdir()
    for name in ("python", "python3", "cnn-depth"):
        (folder / "bin" / name).write_text(f"#!/bin/sh\ntouch {folder}/started\n")
        (folder / "bin" / name).chmod(0o755)
    for shell in completion.SHELLS:
        file = folder / ("functions/_cnn-depth" if shell == "zsh" else shell)
        file.parent.mkdir(exist_ok=True)
        file.write_text(shtab.complete(completion.program(), shell))
    return folder


def environment(place, shell):
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "CNN_DEPTH_RUNS": str(place / "kept"), "SCRIPT": str(place / shell)}
    return {**variables, "HOME": str(place), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def run(place, shell, *words):
    process = subprocess.run(
        [shell, *words],
        cwd=place,
        env=environment(place, shell),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert not process.stderr
    return {line.split("\t")[0].strip() for line in process.stdout.splitlines()}


def of_bash(place, text):
    words = [*text.split(), *([""] if text.endswith(" ") else [])]
    quoted = " ".join(f"'{word}'" for word in words)
    return run(place, "bash", "-c", BASH.format(words=quoted, place=len(words) - 1))


def of_fish(place, text):
    return run(place, "fish", "--no-config", "-c", f'source $SCRIPT; complete -C "{text}"')


def of_zsh(place, text):
    """Of a terminal in which the text is typed, and then Tab."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "zsh", "-f", "-i"],  # pytest's process must not fork
        cwd=place,
        env=environment(place, "zsh"),
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    try:
        setup = "fpath=(functions $fpath); autoload -U compinit; compinit -u -D; echo REA''DY\n"
        os.write(terminal, setup.encode())
        until(terminal, lambda output: "READY\r" in output)
        os.write(terminal, f"{text}\t".encode())
        offered, _ = TYPED[text]
        output = until(terminal, lambda output: all(word in output for word in offered))
        return set(output.split())
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def until(terminal, enough):
    """What a terminal shows until it is enough."""
    output, end = "", time.monotonic() + SECONDS
    while not enough(output):
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"the shell shows only {output!r}"
        output += os.read(terminal, 4096).decode(errors="replace")
    return output


@pytest.mark.parametrize("text", TYPED)
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_shells_complete_what_is_typed(place, shell, text):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    offered, others = TYPED[text]
    completions = {"bash": of_bash, "fish": of_fish, "zsh": of_zsh}[shell](place, text)
    assert offered <= completions
    assert not others & completions
    assert not (place / "started").exists()  # Tab is instant


def test_bash_knows_every_option_of_every_verb(place):
    for verb in cli.VERBS:
        parser = cli.parser_of(verb)
        options = {option for action in parser._actions for option in action.option_strings}
        assert options <= of_bash(place, f"cnn-depth {verb} -")


def test_the_verb_prints_the_script(capsys, place):
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == (place / "bash").read_text() + "\n"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["completion", "tcsh"])
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
