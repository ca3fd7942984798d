"""Trains every row of every study in one profile, shortened, and writes docs/recipes.md.

    python tests/recipes.py cifar --runs DIR --set data.name=npz --set data.path=cifar10.npz
    python tests/recipes.py folder --runs DIR --set data.path=imagenette
    python tests/recipes.py demo --runs DIR
    python tests/recipes.py --runs DIR            # writes the page from the runs that are there

The page shows whether a recipe leaves chance, and where its loss goes. A row of the demo is trained
whole, others for as many steps as `BUDGET` multiply-adds allow, at most `MOST`. A network that
would get fewer than `LEAST` steps is made narrower first. A row that the page has, or whose run is
there, is not trained again: take its line out of the page to have it trained.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from experiments import config as configs
from experiments.data import total_steps
from experiments.runs import runs
from launch.planning import graph

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
BUDGET = {"demo": 1e15, "cifar": 3e12, "folder": 2e12}
LEAST, MOST = 400, 1500
WIDTHS = (1.0, 0.5, 0.25, 0.125)  # of the profile's own
# Steps of studies of the profile cifar whose nets stay as wide: narrow ones lose classes for good.
WHOLE = {"nin": 640}
WINDOWS = 10  # lines of a run's log
TRAINED = {"cifar": 50_000}  # images of the profile's own data, held-out ones included
HEAD = """\
# Does every recipe learn?

The recipes of the small profiles are ours: the papers have none for digits, or for nets this
narrow. The rows of their studies are therefore trained as their profile says, or for as many steps
as two CPU cores allow, and this page says what came of it. It shows whether a row leaves chance,
and where its loss goes. It is no result of a paper, and no row was tuned on its test error. A row
that is not listed was not run yet, or is the same run as one above it.

A shortened row keeps the whole recipe: what changes at a part of the training, such as the rate,
does so at that part of the shorter one. Where a network is too costly, a narrower one was trained.
Loss and training error are means over the first and the last tenth of the steps, as training sees
the images: with dropout, shifts and mirrors. Errors are percent; that of the test is the last.

`python tests/recipes.py PROFILE --runs DIR` trains what is missing and writes this page."""
ABOUT = {
    "demo": "scikit-learn's handwritten digits, whole trainings. Chance is 90%.",
    "cifar": """\
The first 10,000 training images and the first 1,000 test images of CIFAR-10; for LeNet-5, of MNIST.
The rows of other sets of small images were trained on CIFAR-10 too. Chance is 90%.

Two rows stay at chance. The error of plain-110 is above 60% in the paper, too, and `relu 0.03` has
the largest rate of a grid. Nets of `nin` are trained at their own width: at a half of it, with the
rate 0.1, all maps of classes are zero for good after 400 steps. The row of `nin` that is listed has
only begun to leave chance.""",
    "folder": """\
600 photographs of 10 classes of ImageNet, tested on 200. Chance is 90%. So few are hard to learn
from: VGG's rows A 256 and E 256 stay at chance.""",
}
COLUMNS = """\
| study, row | width | steps | batch | loss | training error | test error |
|---|---|---:|---:|---:|---:|---:|"""


def words(settings: Iterable[str]) -> list[str]:
    """As the command line has them."""
    return [word for setting in settings for word in ("--set", setting)]


def studies(profile: str) -> Iterator[tuple[str, configs.Study]]:
    """Those that have the profile, and for `demo` those that have none; how each is called."""
    for name in configs.names():
        try:
            spec = f"{name}:profile={profile}"
            yield spec, configs.read(spec)
        except configs.ConfigError:
            if profile == "demo":
                yield name, configs.read(name)


def planned(
    study: configs.Study, row: configs.Row, settings: list[str], folder: Path
) -> dict[tuple[str, int], graph.Job]:
    """The row's job, and that of the row that seeds it."""
    return graph.jobs(study, {row.name: range(1)}, configs.parse_set(settings), folder)


def shortened(
    study: configs.Study, row: configs.Row, profile: str, settings: list[str], folder: Path
) -> list[str]:
    """What is changed in the row beside `settings`, so that it keeps within its budget."""
    job = planned(study, row, settings, folder)[row.name, 0]
    width, changes = job.config.model.get("width", 1.0), list[str]()
    whole = WHOLE.get(study.name) if profile == "cifar" else None
    for narrower in () if whole else WIDTHS:
        if narrower != 1:
            changes = [f"model.width={width * narrower}"]
            job = planned(study, row, settings + changes, folder)[row.name, 0]
        affordable = int(BUDGET[profile] * job.steps / job.training_macs)
        if affordable >= min(job.steps, LEAST):
            break
    most = MOST if profile != "demo" else job.steps
    steps = max(1, min(job.steps, whole or affordable, most))
    window = steps * job.config.train.batch_size / job.data.train / WINDOWS  # epochs
    if not job.config.train.get("until_error"):
        changes.append(f"train.log_every_epochs={window:.4g}")
    return changes if steps == job.steps else [*changes, f"train.steps={steps}"]


def train(profile: str, settings: list[str], folder: Path, only: list[str]) -> Iterator[str]:
    """Trains what is not there; gives the rows that failed."""
    listed = written().get(profile, {})
    for spec, study in studies(profile):
        for row in study.rows if not only or study.name in only else ():
            if f"{study.name}, {row.name}" in listed:
                continue
            changes = settings + shortened(study, row, profile, settings, folder)
            for (name, _), job in planned(study, row, changes, folder).items():
                if job.run.read("result") or job.run.read("failed"):
                    continue
                print(f"{spec}, {name}: {' '.join(changes)}", flush=True)
                command = [sys.executable, "-m", "launch", "train", spec, "--row", name]
                command += [*words(changes), "--runs", str(folder)]
                process = subprocess.run(command, capture_output=True, text=True)
                if process.returncode:
                    print(process.stdout[-2000:], process.stderr[-2000:], flush=True)
                    yield f"{spec}, {name}"


def page(folder: Path) -> str:
    """docs/recipes.md, of the runs in the folders of the profiles and of what it says already."""
    parts, before = [HEAD], written()
    for profile in BUDGET:
        rows = list(lines(profile, folder / profile, before.get(profile, {})))
        if rows:
            parts += [f"\n## {profile}\n\n{ABOUT[profile]}\n", COLUMNS, *rows]
    return "\n".join(parts) + "\n"


def written() -> dict[str, dict[str, str]]:
    """The page's lines as they stand, by profile and by study and row."""
    by_profile: dict[str, dict[str, str]] = {}
    for text in PAGE.read_text().splitlines() if PAGE.exists() else ():
        if text.startswith("## "):
            rows = by_profile.setdefault(text[3:], {})
        elif text.startswith("| ") and not text.startswith("| study, row"):
            rows[text.split(" | ")[0].removeprefix("| ")] = text
    return by_profile


def lines(profile: str, folder: Path, before: dict[str, str]) -> Iterator[str]:
    """Of each row that was trained, its line of the page: of its run, or the one of `before`."""
    trained = {}
    there = (runs.Run(path.parent) for path in folder.glob("*/run.json"))
    # A row may also be there as narrow as one that it seeds: the widest counts.
    for run in sorted(there, key=lambda run: run.config().model.get("width", 1.0)):
        about = run.read("run") or {}
        trained[about["study"], about["row"]] = run
    for _, study in studies(profile):
        for row in study.rows:
            run, name = trained.get((study.name, row.name)), f"{study.name}, {row.name}"
            if run is not None and (run.read("result") or run.read("failed")):
                yield "| " + " | ".join([name, *line(profile, study, row, run)]) + " |"
            elif name in before:
                yield before[name]


def line(profile: str, study: configs.Study, row: configs.Row, run: runs.Run) -> list[str]:
    """What a run shows: its width, length, losses and errors."""
    full = study.config_of(row)
    config, result = run.config(), run.read("result")
    logged = [line for line in run.logged() if "train_loss" in line]
    if result is None:
        return ["", "", "", "", "", (run.read("failed") or {})["reason"]]
    n = round(TRAINED[profile] * (1 - config.data.holdout)) if profile in TRAINED else 0
    full_steps = total_steps(full, n or result["train_images"])
    width, wide = (c.model.get("width", 1.0) for c in (config, full))
    return [
        f"{width:g}" + (f" (of {wide:g})" if width != wide else ""),
        f"{result['steps']:,} of {full_steps:,}",
        str(config.train.batch_size),
        f"{logged[0]['train_loss']:.2f} to {logged[-1]['train_loss']:.2f}",
        f"{logged[-1]['train_error']:.1f}",
        f"{100 * result['top1_errors_count'] / result['n']:.1f}",
    ]


def main() -> int:
    """1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("profile", nargs="?", choices=BUDGET)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--studies", nargs="*", default=[])
    args = parser.parse_args()
    failed = []
    if args.profile:
        folder = args.runs / args.profile
        failed = list(train(args.profile, args.set, folder, args.studies))
        print(*(f"failed: {name}" for name in failed), sep="\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(args.runs))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
