"""The command line: `cnn-depth VERB ...`, the same as `python -m launch VERB ...`.

A verb is a module with

    HELP                     what it does, shown by `cnn-depth VERB --help`
    EXAMPLE                  one or more command lines, shown below the options
    add_arguments(parser)    its options
    main(args) -> int        its exit status

and is imported only when it is used, so that `cnn-depth --help` starts nothing heavy.

Exit status: 0 done, 1 the verb's own "something is wrong", 2 bad input or a file that can't be
written (one clear message), 130 interrupted, 141 the reader of the output went away. An exception
with `user_error = True` means bad input, an OSError about a disk means a file that can't be
written. Any other is a bug here, and shows its traceback.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from launch.parser import Parser, nearest

PROGRAM = "cnn-depth"


# The line of each verb in `cnn-depth --help`.
VERBS = {
    "list": "the architectures, studies, tables and keys of configs there are",
    "describe": "an architecture, layer by layer: shapes, parameters, MACs",
    "config": "a row's config as a file that can be edited and run",
    "train": "train one network from a config",
    "sweep": "train every row of a sweep, print its table, write its report",
    "table": "a paper's table as a program: printed and measured figures",
    "status": "how runs stand, here and on a cluster",
    "logs": "what a run's processes wrote",
    "cancel": "end runs, here and on a cluster; what is trained is kept",
    "retry": "submit rows again that failed, were cancelled or lost",
    "track": "what W&B or MLflow lacks of runs, sent there",
    "evaluate": "test a run, or a weights file, on images",
    "compare": "tested runs with each other: paired tests, image by image",
    "localise": "where objects are: boxes over whole images, merged, and the top-5 error of them",
    "features": "what a layer makes of every image of a set, computed once",
    "transfer": "a trained network for other classes: heads on its features, or fine-tuned",
    "inspect": "a look inside a network: filters, units, neighbours, saliency, gradients",
    "predict": "classify image files: top-5 with names, and a picture",
    "weights": "other people's weights into a run, and out of one",
    "data": "image data: check it, look at what a network sees, write shards",
    "report": "the table and report of runs that are there already",
    "bench": "speed beside peers, measured here and now",
    "completion": "what makes a shell complete these verbs, their options, and names",
    "doctor": "what this machine offers, and what is wrong with it",
}
COMPUTING = ("train", "evaluate", "localise", "features", "transfer", "inspect", "predict")
MODULES = {name: f"launch.verbs.{name}" for name in VERBS}
MODULES |= {"list": "launch.verbs.listing", "bench": "launch.bench"}
MODULES["inspect"] = "launch.verbs.inspection"


def entry() -> int:
    """The console script: `main` with the process around it (log noise, interrupts, pipes)."""
    # Silences XLA's notes, and its alarms about slow compilations; its errors are raised anyway.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Figures are drawn into files only. The environment may name a notebook's backend, which
    # Matplotlib could not load here.
    os.environ["MPLBACKEND"] = "agg"
    if not _standard_streams():
        return _fail("standard output is closed")
    _take_huge_pages(sys.argv[1:])
    try:
        try:
            status = main()
        except SystemExit as ended:  # of argparse, or of Rich where a pipe is broken
            status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if not _stdout_fails(error):
            raise
        # Python flushes stdout once more on exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        return _fail(f"standard output can't be written: {error.strerror}")
    return status


def _take_huge_pages(words: Sequence[str]) -> None:
    """Restarts a verb that computes in this process, once, with the memory pages of sweeps'
    processes: glibc reads $GLIBC_TUNABLES only when a process starts. If it is set, it stays."""
    named = "GLIBC_TUNABLES" in os.environ or sys.platform != "linux"
    if named or not words or words[0] not in COMPUTING or {"-h", "--help"} & {*words}:
        return
    from launch.devices import HUGE_PAGES

    os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; its exit status. argv: what follows the program's name, by default sys.argv's.

    Raises SystemExit, by argparse, with status 0 after `--help` and 2 after bad options.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        _program_parser().print_help(sys.stderr)
        return 2
    if words[0].startswith("-"):
        if _program_parser().parse_args(words).version:
            from importlib import metadata

            print(f"{PROGRAM} {metadata.version(PROGRAM)}")
        return 0
    name, *rest = words
    if name not in MODULES:
        hint = nearest(name, VERBS) or f"; there are: {', '.join(VERBS)}."
        return _fail(f"there is no verb '{name}'{hint}")
    return _run(name, rest)


def _run(name: str, words: Sequence[str]) -> int:
    verb = importlib.import_module(MODULES[name])
    args = parser_of(name).parse_args(words)
    try:
        return verb.main(args)
    except OSError as error:
        from experiments.runs import runs

        if _stdout_fails(error) or error.errno not in runs.STORAGE:
            raise
        return _fail(f"{error.filename or 'a file'} can't be written: {error.strerror}")
    except Exception as error:
        if not getattr(error, "user_error", False):
            raise
        from experiments.text import visible

        return _fail("\n".join(map(visible, str(error).split("\n"))))


def parser_of(name: str) -> argparse.ArgumentParser:
    verb = importlib.import_module(MODULES[name])
    examples = [f"  {line.strip()}" for line in verb.EXAMPLE.strip().splitlines()]
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        description=verb.HELP,
        epilog="\n".join(["example:" if len(examples) == 1 else "examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    return parser


def _program_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in VERBS.items()]
    end = f"`{PROGRAM} VERB --help` shows a verb's options and an example."
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB [options]",
        description="Measure what depth buys in convolutional networks.",
        epilog="\n".join(["verbs:", *lines, "", end]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    return parser


def _fail(message: str) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return 2


def _standard_streams() -> bool:
    """Whether stdout is open. Opens stdin and stderr on the null device where they are closed:
    the next file that is opened would take their numbers."""
    for number, stream in ((0, sys.stdin), (2, sys.stderr)):
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    return sys.stdout is not None


def _stdout_fails(error: OSError) -> bool:
    """Whether an error means that stdout can't be written: its reader is gone, or a disk full."""
    import select

    if error.filename is not None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return True
    if error.errno == errno.EPIPE:
        return False
    try:
        print(flush=True)  # without a buffer, what could not be written is not tried again
    except OSError:
        return True
    return False
