"""Whether the values of a config can be meant, each and together."""

import itertools
from collections.abc import Mapping
from typing import Any

import ml_collections

import cnn_arch
from experiments.config.errors import ConfigError, shown
from experiments.config.keys import KEYS, Key, flatten
from experiments.config.values import builder_options
from experiments.text import nearest
from input_pipeline.sources import is_streamed


def check(config: ml_collections.ConfigDict, where: str) -> None:
    """Raises ConfigError where a value lies outside what its key can mean."""
    flat = flatten(config)
    for key in KEYS.values():
        _check_value(key, flat[key.name], where)
    _check_model(config.model, where)
    _check_sizes(flat, where)
    _check_schedule(flat, where)
    _check_training(flat, where)


def _check_value(key: Key, value: Any, where: str) -> None:
    """Raises ConfigError where a value is no choice of its key, or a number is out of bounds."""
    if key.choices and value not in key.choices:
        hint = nearest("; did you mean {!r}?", str(value), key.choices)
        raise ConfigError(
            f"{where}: {key.name}={value!r} is none of {', '.join(key.choices)}{hint}"
        )
    if key.bounds is None:
        return
    for part in value if isinstance(value, tuple) else (value,):
        number = part[1] if isinstance(part, tuple) else part  # of a pair: a pattern and a number
        if not key.bounds.hold(number):
            each = "each number of it " if isinstance(value, tuple) else ""
            hint = f"; {key.hint}" if key.hint else ""
            raise ConfigError(
                f"{where}: {key.name}={shown(value)}: {each}must be {key.bounds}{hint}"
            )
    if key.length and len(value) != key.length:
        raise ConfigError(f"{where}: {key.name}={shown(value)} must be {key.length} numbers")


def _check_model(model: ml_collections.ConfigDict, where: str) -> None:
    """Raises ConfigError where an option of the network is out of bounds or changes nothing."""
    options = builder_options(model)
    try:
        cnn_arch.check(model.arch, **options)
        cnn_arch.check_source(model.arch, model.get("source"))
    except cnn_arch.ArchitectureError as error:
        raise ConfigError(f"{where}: model.{error}") from error
    if model.get("dtype") == "bfloat16" and model.precision != "default":
        raise ConfigError(
            f"{where}: model.precision={model.precision!r} changes nothing with "
            "model.dtype='bfloat16', which is multiplied in bfloat16; set it to 'default', or "
            "model.dtype='float32'"
        )


def _check_sizes(flat: Mapping[str, Any], where: str) -> None:
    crop = flat["data.image_size"]
    low_s, high_s = flat["data.S"]
    if low_s > high_s or (low_s and low_s < crop):
        raise ConfigError(
            f"{where}: data.S={flat['data.S']!r} must be (smallest, largest) short side, neither "
            f"below the crop data.image_size={crop} (or (0, 0) for that size)"
        )
    if flat["test.Q"] and flat["test.Q"] < crop:
        raise ConfigError(
            f"{where}: test.Q={flat['test.Q']} is smaller than the crop "
            f"data.image_size={crop} (0 is the crop's size)"
        )
    if flat["data.pad"] >= crop:
        raise ConfigError(
            f"{where}: data.pad={flat['data.pad']} leaves crops of data.image_size={crop} that "
            "show nothing of the image; pad by less"
        )
    for key in ("data.area", "data.aspect"):
        if flat[key][0] > flat[key][1]:
            raise ConfigError(f"{where}: {key}={flat[key]!r} must be (smallest, largest)")


def _check_schedule(flat: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError where parts of the schedule contradict each other."""
    milestones = flat["schedule.milestones"]
    if any(a >= b for a, b in itertools.pairwise(milestones)):
        raise ConfigError(f"{where}: schedule.milestones={milestones!r} must rise")
    kind, warmup = flat["schedule.kind"], flat["schedule.warmup"]
    factors = flat["schedule.factors"]
    if factors and kind == "steps" and len(factors) != len(milestones):
        raise ConfigError(
            f"{where}: schedule.factors={factors!r} must be as many numbers as "
            f"schedule.milestones={milestones!r}, one from each on"
        )
    if kind == "steps" and not milestones:
        raise ConfigError(
            f"{where}: schedule.kind='steps' without schedule.milestones is "
            "schedule.kind='constant'; write that"
        )
    if kind == "plateau" and not flat["schedule.drops"]:
        raise ConfigError(
            f"{where}: schedule.kind='plateau' with schedule.drops=0 is "
            "schedule.kind='constant'; write that"
        )
    if kind == "plateau" and not flat["data.holdout"]:
        raise ConfigError(
            f"{where}: schedule.kind='plateau' is judged on held-out training images, and "
            "data.holdout=0 keeps none; set it to 0.1, say"
        )
    if warmup in ("constant", "linear") and not (
        flat["schedule.warmup_steps"] or flat["schedule.warmup_part"]
    ):
        raise ConfigError(
            f"{where}: schedule.warmup={warmup!r} has no end; set schedule.warmup_steps, or "
            "schedule.warmup_part to a part of the training (5 epochs of 90 are 5/90)"
        )
    if warmup in ("constant", "until_error") and not flat["schedule.warmup_lr"]:
        raise ConfigError(
            f"{where}: schedule.warmup={warmup!r} at schedule.warmup_lr=0 trains nothing; "
            "set a rate above 0"
        )


def _check_training(flat: Mapping[str, Any], where: str) -> None:
    batch, parts = flat["train.batch_size"], flat["train.accumulate"]
    if batch % parts:
        raise ConfigError(
            f"{where}: train.batch_size={batch} is not divisible by train.accumulate={parts}"
        )
    if flat["optimizer.kind"] == "sdlm":
        sgd = {"momentum": 0, "weight_decay": 0, "lr_in_velocity": False, "nesterov": False}
        for key, usual in sgd.items():
            if flat[f"optimizer.{key}"] != usual:
                raise ConfigError(
                    f"{where}: optimizer.{key}={flat[f'optimizer.{key}']!r} is for "
                    f"optimizer.kind='sgd'; set it to {usual}, 'sdlm' has none"
                )
        if is_streamed(flat["data.name"]):
            raise ConfigError(
                f"{where}: optimizer.kind='sdlm' is for small data sets that are kept on the "
                f"device, and data.name is {flat['data.name']!r}"
            )
    if not flat["train.steps"] and not flat["train.epochs"]:
        raise ConfigError(f"{where}: train.epochs and train.steps are both 0: nothing to train")
