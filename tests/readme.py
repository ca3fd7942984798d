"""Runs the commands and the Python of README.md and docs/, as printed, in a fresh clone.

That is `make readme`.

The clone is of the files of this checkout, in a temporary folder; its `.venv` is made by the
README's own `make sweep`, so that packages are downloaded. What the commands read (photographs,
weights, arrays) are small stand-ins that lie in the clone. Commands run in the README's order, then
in that of each page, with the clone as their folder and with what came before: a line that only
works once `.venv` is active fails if the README does not say so earlier.

Long commands are shortened by the words of `RULES`, which are shown. A line whose comment ends with
`needs ...` can't run everywhere: `NEEDS` says how far it is run, or that it is left out.

Prints a line for each command and ends with status 1 if one failed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = ("recipes.md", "speed.md")  # by programs, from what was measured for hours
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in WRITTEN),
]
TIMEOUT = 600  # seconds, of one command
SHOWN = 15  # last lines of the output of one that failed

STEPS = "--set train.steps=4"
ARRAYS = "--set data.name=npz --set data.path=cifar10.npz"
TABLE = "--set train.steps=2"
# How a command begins -> the words that shorten it; the first that fits. '': it is run as printed.
RULES = {
    "git clone ": "",
    "make sweep": f"ARGS='{STEPS}'",
    "make test": "PYTEST=--collect-only",
    ". .venv/bin/activate": "",
    "pip install -e ": "",
    "cnn-depth sweep vgg_depth --seeds 5": f"{STEPS} --seeds 2",
    "cnn-depth sweep residual_depth --set data.name=npz ": f"{STEPS} --runs own-images",
    "cnn-depth sweep vgg_localisation:folder ": f"{TABLE} --set model.width=0.03125 "
    "--set train.batch_size=4",
    "cnn-depth sweep ": STEPS,
    "cnn-depth report ": STEPS,
    "cnn-depth train residual_depth ": STEPS,
    "cnn-depth config ": "",
    "cnn-depth train resnet:50,data=": "--set train.steps=1 --set train.batch_size=2 "
    "--set model.bn_group_size=2 --set model.width=0.125 --set data.statistics_images=8",
    "cnn-depth table vgg --profile paper --plan ": "",
    "cnn-depth table vgg-3 ": f"{TABLE} --rows 'A, S=256'",
    "cnn-depth table vgg-4 vgg-5 vgg-6 ": f"{TABLE} --rows 'D, dense'",
    "cnn-depth table vgg-8 ": f"{TABLE} --rows '*SCR'",
    "cnn-depth table vgg-9 ": "--plan",
    "cnn-depth table vgg-10 ": "--plan",
    "cnn-depth table vgg-11 ": f"{TABLE} --set model.width=0.03125 --rows 'VGG Net-D (16 layers)'",
    "cnn-depth table resnet-6 ": f"{TABLE} --rows ResNet-20 --seeds 1",
    "cnn-depth table resnet-2 ": f"{TABLE} --rows plain-18 ResNet-18 --set train.batch_size=4",
    "cnn-depth inspect ": "--parts filters,statistics --images 32",
    "cnn-depth bench input ": "--repeats 1 --images 16 --batch-size 4 --entries 1000 --peer none",
    "cnn-depth bench eval": "--repeats 1 --arch vgg:A --width 0.0625",
    "cnn-depth bench step": "--repeats 1 --peer none --arch cifar_resnet:8@32x8",
    "cnn-depth bench forward": "--repeats 1 --peer none --arch cifar_resnet:8@32x8",
    "cnn-depth bench compile": "--arch cifar_resnet:8@32x2",
    "cnn-depth bench end_to_end": "--repeats 1 --steps 20 --longest 100",
    "cnn-depth bench planning": "--rows 10",
    **{
        f"cnn-depth {verb}": ""
        for verb in (
            *("list", "describe ", "evaluate ", "compare ", "weights ", "predict ", "data "),
            *("features ", "localise ", "track ", "transfer "),
        )
    },
    "cnn-depth status": "",
    "cnn-depth doctor": "",
}
# What a line needs, as its comment says -> how a command begins -> the words with which it runs
# without that; where nothing fits, it is left out.
NEEDS: dict[str, dict[str, str]] = {
    "Slurm": {"cnn-depth sweep ": "--dry-run"},
    "CIFAR-10": {
        "cnn-depth table ": ARRAYS,
        "cnn-depth evaluate ": "--data cifar10.npz",
    },
    "several hosts": {},
    "libtpu": {},
    "the network": {},
    "such a file": {},
}


@dataclass(frozen=True)
class Command:
    """What a page prints. needs: what its comment says it needs. line: of the page."""

    text: str
    needs: str
    line: int
    python: bool = False
    page: str = "README.md"

    @property
    def words(self) -> str | None:
        """What is appended to it; None where it is left out.

        Raises:
            LookupError: no rule is for this command, or what it needs is unknown.
        """
        if self.python:
            return ""
        parts = []
        if self.needs:
            without = _begins(NEEDS[self.needs], self.text)
            if without is None:
                return None
            parts.append(without)
        rule = _begins(RULES, self.text)
        if rule is None:
            raise LookupError(f"{self.page}:{self.line}: no rule of {__file__} is for: {self.text}")
        return " ".join(filter(None, (rule, *parts)))


def _begins(rules: dict[str, str], text: str) -> str | None:
    return next((words for start, words in rules.items() if text.startswith(start)), None)


def blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """(language, line of its first line, content) of each code block of a Markdown text."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1], text[: match.start(2)].count("\n") + 1, match[2]


def printed() -> list[Command]:
    """The commands of all pages, in the order in which they are run."""
    texts = ((page.name, page.read_text(encoding="utf-8")) for page in PAGES)
    return [command for name, text in texts for command in commands(text, name)]


def commands(text: str, page: str = "README.md") -> list[Command]:
    """The commands of the blocks without a language, and the Python blocks."""
    listed = []
    for language, line, content in blocks(text):
        if language == "python":
            listed.append(Command(content, "", line, True, page))
        if language:
            continue
        start = line
        joined = ""
        for number, words in enumerate(content.splitlines(), line):
            start = start if joined else number
            joined += words.removesuffix("\\")
            if words.endswith("\\"):
                continue
            command, _, comment = joined.partition(" # ")
            needs = re.search(r"\bneeds (.+)$", comment)
            listed.append(Command(command.strip(), needs[1] if needs else "", start, page=page))
            joined = ""
    return listed


def _fresh_source(folder: Path) -> None:
    """A repository with the files of this checkout, those not yet committed too."""
    listed = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    author = ["-c", "user.name=readme", "-c", "user.email=readme@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "-qm", "as it is"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True, stdout=subprocess.DEVNULL)


class Session:
    """A terminal of a reader who follows the pages in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.before: list[str] = []  # what holds for all later commands
        places = {"XDG_CACHE_HOME": "cache", "TFDS_DATA_DIR": "tfds", "TMPDIR": "tmp"}
        for place in places.values():
            (folder / place).mkdir()
        own = {name: str(folder / place) for name, place in places.items()}
        unwanted = ("CNN_DEPTH_", "PYTHONPATH", "VIRTUAL_ENV", "MAKE", "MFLAGS")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        self.environment = inherited | own

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Status 124 where it takes longer than TIMEOUT."""
        script = "\n".join(["set -e", *self.before, command])
        words = ["timeout", "--kill-after=20", str(TIMEOUT), "bash", "-c", script]
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )


def follow(folder: Path) -> int:
    """Runs everything in `folder`; the number of commands that failed."""
    source = folder / "source"
    _fresh_source(source)
    session = Session(folder)
    counts = {"ok": 0, "failed": 0, "skipped": 0}
    started = time.monotonic()

    def tell(state: str, seconds: float, label: str) -> None:
        counts[state] += 1
        print(f"{state:<8}{seconds:6.1f} s  {label}", flush=True)

    for command in printed():
        words = command.words
        python = f"the Python of {command.page}, line {command.line}"
        shown = python if command.python else command.text
        if words is None:
            tell("skipped", 0, f"{shown}  (needs {command.needs})")
            continue
        text = command.text.replace("<this repository>", f"file://{source} cnn-depth")
        script = f"{text} {words}" if not command.python else f"python - <<'END'\n{text}END"
        start = time.monotonic()
        process = session.run(script)
        shown += f"  [+ {words}]" if words else ""
        tell("failed" if process.returncode else "ok", time.monotonic() - start, shown)
        if process.returncode:
            print(f"    exit status {process.returncode}")
            print(*(f"    {line}" for line in process.stdout.splitlines()[-SHOWN:]), sep="\n")
        if text.startswith("git clone "):
            session.before.append("cd cnn-depth")
        if text == ". .venv/bin/activate":
            session.before.append(text)
            setup = session.run(f"python -P '{__file__}' --stand-ins .")
            if setup.returncode:
                raise SystemExit(f"the stand-ins can't be made:\n{setup.stdout}")
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"{summary}; {(time.monotonic() - started) / 60:.1f} minutes")
    return counts["failed"]


# ------------------------------------------------------------------------------ stand-ins


def stand_ins(folder: Path) -> None:
    """What the pages' commands read, in `folder`."""
    import numpy as np
    from flax import nnx

    import cnn_arch
    from cnn_arch import pretrained, weight_files

    rng = np.random.default_rng(0)
    _image(rng, folder / "cat.jpg", 320, 240)
    for kind, classes, size in (
        ("imagenet", ("n01440764", "n01443537", "n01484850"), (320, 256)),
        ("photographs", ("boat", "house", "tree"), (144, 120)),
    ):
        for part, count in (("train", 8), ("val", 4)):
            for name in classes:
                for i in range(count):
                    _image(rng, folder / kind / part / name / f"{name}_{i}.JPEG", *size)
    for kind in ("imagenet", "photographs"):
        images = [file.relative_to(folder / kind) for file in folder.glob(f"{kind}/*/*/*")]
        rows = [f"{file},{file.parent.name},30,20,100,100" for file in images]
        lines = "\n".join(["file,class,x1,y1,x2,y2", *rows, ""])
        (folder / f"{kind}_boxes.csv").write_text(lines)
    for file, shape in (("my.npz", (28, 28)), ("cifar10.npz", (32, 32, 3))):
        arrays = {}
        for part, count in (("train", 300), ("test", 100)):
            arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"{part}_labels"] = np.arange(count) % 10
        np.savez(folder / file, **arrays)
    for file, arch, naming in (
        ("resnet50.pth", "resnet:50", "torchvision"),
        ("resnet50-0676ba61.pth", "resnet:50", "torchvision"),
        ("resnet20.th", "cifar_resnet:20", "cifar"),
    ):
        seed = len(file)  # two files, two networks
        options = {"shortcut": "A"} if naming == "cifar" else {"stride_in": "3x3"}
        network = cnn_arch.create(arch, rngs=nnx.Rngs(seed), **options)
        written = (folder / file).with_suffix(".pth")
        weight_files.write(written, pretrained.export(network, naming))
        written.rename(folder / file)


def _image(rng: object, file: Path, width: int, height: int) -> None:
    """A smooth picture, as photographs are."""
    from PIL import Image

    small = rng.integers(0, 256, (6, 8, 3), dtype="uint8")  # type: ignore[attr-defined]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")


def main() -> int:
    """Status 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stand-ins", type=Path, metavar="DIR", help="only make the stand-ins")
    args = parser.parse_args()
    if args.stand_ins is not None:
        stand_ins(args.stand_ins)
        return 0
    with tempfile.TemporaryDirectory(prefix="cnn-depth-readme-") as folder:
        return 1 if follow(Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
