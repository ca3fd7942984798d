"""Trains the demo under ten ways of rounding, with three seeds, and writes what holds in all.

    python tests/demo.py --runs DIR [residual_depth] [vgg_depth]
    python tests/demo.py --runs DIR --page       # writes the tables from the runs that are there

A claim of the README must not depend on the processor. Processors differ by rounding, and so do
these variants: other instructions, other libraries, another number of threads, initial weights that
are off by a millionth. The tables are those of docs/results.md. A run that is there is not trained
again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnn_arch import execution
from experiments import network
from experiments import statistics as st
from experiments.runs import runs

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
SEEDS = range(3)
ROWS = {
    "residual_depth": ("plain-20", "plain-44", "resnet-44"),
    "vgg_depth": ("A", "B", "B seeded", "D", "D seeded", "E", "E seeded"),
}
OFF = 1e-6  # of a weight


def _one_thread() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _ynnpack() -> None:
    execution._YNN.clear()


def _off_by_a_millionth(number: int) -> Callable[[], None]:
    def patch() -> None:
        drawn = network.initial

        def initial(*arguments: Any) -> Any:
            params, stats = drawn(*arguments)
            rng = np.random.default_rng(number)
            return {
                k: x * (1 + OFF * rng.standard_normal(x.shape).astype(np.float32))
                for k, x in params.items()
            }, stats

        network.initial = initial

    return patch


# What each changes in the environment, and in the process.
VARIANTS: dict[str, tuple[dict[str, str], Callable[[], None]]] = {
    "as it is": ({}, lambda: None),
    "one thread": ({}, _one_thread),
    "oneDNN": ({"CNN_DEPTH_CONVOLUTIONS": "onednn"}, lambda: None),
    "YNNPACK": ({}, _ynnpack),
    "AVX, no FMA": ({"XLA_FLAGS": "--xla_cpu_max_isa=AVX"}, lambda: None),
    "SSE 4.2": ({"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}, lambda: None),
    "fast math": ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}, lambda: None),
    **{f"weights off, {k}": ({}, _off_by_a_millionth(k)) for k in (1, 2, 3)},
}


def train(folder: Path, studies: list[str]) -> int:
    """How many runs failed."""
    failed = 0
    for variant, (environment, _) in VARIANTS.items():
        for seed in SEEDS:
            for study in studies:
                for row in ROWS[study]:
                    command = [sys.executable, __file__, "--runs", str(folder)]
                    command += ["--one", variant, study, row, str(seed)]
                    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **environment}
                    process = subprocess.run(command, env=env, capture_output=True, text=True)
                    print(f"{variant}, {study}, {row}, {seed}: {process.returncode}", flush=True)
                    if process.returncode:
                        failed += 1
                        print(process.stdout[-500:], process.stderr[-1500:], flush=True)
    return failed


def one(folder: Path, variant: str, study: str, row: str, seed: str) -> int:
    """The exit status of one training, in this process."""
    from launch import cli

    VARIANTS[variant][1]()
    words = ["--row", row, "--seed", seed, "--runs", str(folder / variant)]
    return cli.main(["train", study, *words])


Found = dict[tuple[str, int], runs.Run]  # of a row and seed


def found(folder: Path, study: str) -> Found:
    """The finished runs of a variant."""
    finished: Found = {}
    for path in sorted(folder.glob("*/run.json")):
        run = runs.Run(path.parent)
        about = run.read("run") or {}
        if about.get("study") == study and run.read("result"):
            finished[about["row"], run.config().seed] = run
    return finished


def errors(finished: Found, row: str) -> list[float]:
    """Test errors in percent, in the order of the seeds."""
    results = [finished[row, seed].read("result") or {} for seed in SEEDS]
    return [100 * result["top1_errors_count"] / result["n"] for result in results]


def losses(finished: Found, row: str) -> list[float]:
    """Mean training losses of the first two epochs, in the order of the seeds."""
    logged = [finished[row, seed].logged() for seed in SEEDS]
    return [next(line["train_loss"] for line in log if "train_loss" in line) for log in logged]


def difference(first: list[float], second: list[float], digits: int) -> str:
    """Its mean and interval, paired by seed."""
    paired = st.paired_difference(first, second)
    interval = "" if paired.low is None else f" [{paired.low:.{digits}f}, {paired.high:.{digits}f}]"
    return f"{paired.mean:.{digits}f}{interval}"


def spread(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def lines(folder: Path, study: str) -> Iterator[str]:
    """The study's table: a line for each variant all of whose runs are there."""
    rows = ROWS[study]
    if study == "residual_depth":
        yield f"| rounding | {' | '.join(rows)} | less plain-20 | less resnet-44 |"
    else:
        pairs = [row for row in rows if f"{row} seeded" in rows]
        yield "| rounding | " + " | ".join(f"{row} | seeded | less" for row in pairs) + " |"
    for variant in VARIANTS:
        finished = found(folder / variant, study)
        if any((row, seed) not in finished for row in rows for seed in SEEDS):
            continue
        if study == "residual_depth":
            by_row = {row: errors(finished, row) for row in rows}
            cells = [spread(by_row[row], 1) for row in rows]
            cells += [
                difference(by_row["plain-44"], by_row[row], 1) for row in ("plain-20", "resnet-44")
            ]
        else:
            cells = []
            for row in pairs:
                scratch, seeded = losses(finished, row), losses(finished, f"{row} seeded")
                cells += [spread(scratch, 2), spread(seeded, 2), difference(scratch, seeded, 2)]
        yield f"| {variant} | {' | '.join(cells)} |"


def write(folder: Path) -> None:
    """The tables into the page, between its marks."""
    page = PAGE.read_text()
    for study in ROWS:
        head, *rest = lines(folder, study)
        if rest:
            table = "\n".join([head, "|---|" + "---:|" * (head.count("|") - 2), *rest])
            before, begin, after = page.partition(f"<!-- rounding {study} -->\n")
            _, end, after = after.partition(f"<!-- /rounding {study} -->")
            page = f"{before}{begin}{table}\n{end}{after}"
    PAGE.write_text(page)


def main() -> int:
    """1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("studies", nargs="*", default=[])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--page", action="store_true", help="train nothing")
    parser.add_argument("--one", nargs=4, metavar=("VARIANT", "STUDY", "ROW", "SEED"))
    args = parser.parse_args()
    if args.one:
        return one(args.runs, *args.one)
    failed = 0 if args.page else train(args.runs, args.studies or list(ROWS))
    write(args.runs)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
