"""Multiply-adds of tests: what a plan and an estimate count beside training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from cnn_arch.census import Census, census
from experiments import config as configs
from experiments.testing import protocols
from experiments.testing.kept import PlannedTest
from input_pipeline import crops
from launch.planning.graph import Job


def testing_macs(job: Job, tests: Sequence[PlannedTest]) -> int:
    """Multiply-adds of tests on all test images of a job; each pass counts once.

    Of dense passes they are those of square images: wider ones cost more. Mirrors are counted.
    """
    passes = {
        part.name: part
        for test in tests
        for part in protocols.resolve(test.protocol, job.config, test.scales, flip=test.flip)
    }
    views = sum(_macs_an_image(job, part) for part in passes.values())
    return job.data.test * views


def _macs_an_image(job: Job, part: protocols.Pass) -> int:
    mirrored = 1 + (part.mirror and job.data.mirror_ok)
    view = part.view(job.config.data.image_size)
    if isinstance(view, crops.WholeView):
        return mirrored * dense_macs(job.census, view.Q, _options(job))
    return mirrored * len(view.places(512, 512)) * job.census.macs


def _options(job: Job) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(configs.builder_options(job.config.model).items()))


def dense_macs(counted: Census, side: int, options: tuple[tuple[str, Any], ...]) -> int:
    """Multiply-adds of a network over a whole image of side x side pixels (VGG, section 3.2).

    Fully connected layers that look at a map of places work at each place of it; after a global
    average they work once.
    """
    here = _layers(counted.name, counted.channels, counted.classes, counted.image_size, options)
    there = _layers(counted.name, counted.channels, counted.classes, side, options)
    first = next((i for i, layer in enumerate(here) if layer.kind == "fc"), len(here))
    places = 1
    if 0 < first < len(here) and len(here[first - 1].output_shape) == 3:
        trained, seen = here[first - 1].output_shape[0], there[first - 1].output_shape[0]
        places = (seen - trained + 1) ** 2
    after = sum(layer.macs for layer in here[first:])
    return sum(layer.macs for layer in there[:first]) + places * after


@cache
def _layers(
    name: str, channels: int, classes: int, side: int, options: tuple[tuple[str, Any], ...]
) -> list[Any]:
    found = census(name, image_size=side, channels=channels, classes=classes, **dict(options))
    return found.layers
