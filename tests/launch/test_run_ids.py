"""The identities of all runs that ship with the package, against those that were written down.

A changed default, a renamed key or a reordered sweep would orphan the runs that people keep. This
test then fails and lists what moved. Where the change is meant, raise the FORMAT of
`experiments.runs.runs` or say so in CHANGELOG.md, and write the file anew:

    python tests/launch/test_run_ids.py
"""

import json
from pathlib import Path

from experiments import config as configs
from experiments.config.profiles import PROFILES
from launch.planning import graph

GOLDEN = Path(__file__).parent / "run_ids.json"
# One made-up data set for all: what real ones contain is no part of this test.
IMAGES = graph.Images(classes=10, channels=3, fingerprint="golden", train=50_000, test=10_000)


def specs() -> list[str]:
    """Every shipped study, as it is and at each profile that it knows."""
    shipped = []
    for name in configs.names():
        shipped.append(name)
        for profile in PROFILES:
            try:
                configs.read(f"{name}:profile={profile}")
            except configs.ConfigError:
                continue
            shipped.append(f"{name}:profile={profile}")
    return shipped


def identities(spec: str) -> dict[str, str]:
    """Row -> identity, of two seeds each."""
    study = configs.read(spec)
    seeds = {row.name: range(2) for row in study.rows}
    jobs = graph.jobs(study, seeds, {}, Path(), find=lambda config: IMAGES, check=False)
    return {job.name: job.run.id for job in jobs.values()}


def test_identities_of_shipped_runs_are_those_written_down():
    written = json.loads(GOLDEN.read_text())
    now = {spec: identities(spec) for spec in specs()}
    assert now.keys() == written.keys()
    moved = [
        f"{spec}, {row}: {written[spec].get(row)} -> {now[spec].get(row)}"
        for spec in now
        for row in {**written[spec], **now[spec]}
        if written[spec].get(row) != now[spec].get(row)
    ]
    assert not moved, "\n".join(["identities moved (see the head of this file):", *moved])


def test_every_profile_of_a_paper_is_among_them():
    written = json.loads(GOLDEN.read_text())
    for study in ("vgg", "resnet", "cifar_resnet", "googlenet", "alexnet", "nin", "lenet"):
        for profile in PROFILES:
            assert f"{study}:profile={profile}" in written


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({spec: identities(spec) for spec in specs()}, indent=1) + "\n")
