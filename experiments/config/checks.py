"""Checks whether the values of a config make sense, each and together."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

import cnn_arch
from experiments.config.errors import ConfigError, shown
from experiments.config.keys import KEYS, Key, flatten
from experiments.config.values import builder_options
from experiments.text import nearest
from input_pipeline.sources import is_streamed


def check(config: ConfigDict, where: str) -> None:
    """Raises ConfigError with the first problem, where values make no sense."""
    flat = flatten(config)
    wrong = itertools.chain(
        *(_wrong_value(key, flat[key.name]) for key in KEYS.values()),
        _wrong_model(config.model),
        _wrong_sizes(flat),
        _wrong_schedule(flat),
        _wrong_training(flat),
        _wrong_boxes(flat),
    )
    for problem in wrong:
        raise ConfigError(f"{where}: {problem}")


def _wrong_value(key: Key, value: Any) -> Iterator[str]:
    """Problems of a value that is no choice of its key, or a number that is out of bounds."""
    if key.choices and value not in key.choices:
        hint = nearest("; did you mean {!r}?", str(value), key.choices)
        yield f"{key.name}={value!r} is none of {', '.join(key.choices)}{hint}"
    if key.bounds is None:
        return
    for part in value if isinstance(value, tuple) else (value,):
        number = part[1] if isinstance(part, tuple) else part  # of a pair: a pattern and a number
        if not key.bounds.hold(number):
            subject = "each number of it " if isinstance(value, tuple) else ""
            hint = f"; {key.hint}" if key.hint else ""
            yield f"{key.name}={shown(value)}: {subject}must be {key.bounds}{hint}"
    if key.length and len(value) != key.length:
        yield f"{key.name}={shown(value)} must be {key.length} numbers"


def _wrong_model(model: ConfigDict) -> Iterator[str]:
    """Problems of the network's options that are out of bounds or change nothing."""
    try:
        cnn_arch.check(model.arch, **builder_options(model))
        cnn_arch.check_source(model.arch, model.get("source"))
    except cnn_arch.ArchitectureError as error:
        yield f"model.{error}"
    if model.get("dtype") == "bfloat16" and model.precision != "default":
        yield (
            f"model.precision={model.precision!r} changes nothing with model.dtype='bfloat16', "
            "which is multiplied in bfloat16; set it to 'default', or model.dtype='float32'"
        )


def _wrong_sizes(flat: Mapping[str, Any]) -> Iterator[str]:
    crop = flat["data.image_size"]
    low_s, high_s = flat["data.S"]
    if low_s > high_s or (low_s and low_s < crop):
        yield (
            f"data.S={flat['data.S']!r} must be (smallest, largest) short side, neither below the "
            f"crop data.image_size={crop} (or (0, 0) for that size)"
        )
    if flat["test.Q"] and flat["test.Q"] < crop:
        yield (
            f"test.Q={flat['test.Q']} is smaller than the crop data.image_size={crop} (0 is the "
            "crop's size)"
        )
    if flat["data.pad"] >= crop:
        yield (
            f"data.pad={flat['data.pad']} leaves crops of data.image_size={crop} that show nothing "
            "of the image; pad by less"
        )
    for key in ("data.area", "data.aspect"):
        if flat[key][0] > flat[key][1]:
            yield f"{key}={flat[key]!r} must be (smallest, largest)"


def _wrong_schedule(flat: Mapping[str, Any]) -> Iterator[str]:
    """Problems of keys of the schedule that contradict each other."""
    milestones, factors = flat["schedule.milestones"], flat["schedule.factors"]
    kind, warmup = flat["schedule.kind"], flat["schedule.warmup"]
    if any(a >= b for a, b in itertools.pairwise(milestones)):
        yield f"schedule.milestones={milestones!r} must rise"
    if factors and kind == "steps" and len(factors) != len(milestones):
        yield (
            f"schedule.factors={factors!r} must be as many numbers as "
            f"schedule.milestones={milestones!r}, one from each on"
        )
    is_constant = "is schedule.kind='constant'; write that"
    if kind == "steps" and not milestones:
        yield f"schedule.kind='steps' without schedule.milestones {is_constant}"
    if kind == "plateau" and not flat["schedule.drops"]:
        yield f"schedule.kind='plateau' with schedule.drops=0 {is_constant}"
    if kind == "plateau" and not flat["data.holdout"]:
        yield (
            "schedule.kind='plateau' is judged on held-out training images, and data.holdout=0 "
            "keeps none; set it to 0.1, say"
        )
    end = flat["schedule.warmup_steps"] or flat["schedule.warmup_part"]
    if warmup in ("constant", "linear") and not end:
        yield (
            f"schedule.warmup={warmup!r} has no end; set schedule.warmup_steps, or "
            "schedule.warmup_part to a part of the training (5 epochs of 90 are 5/90)"
        )
    if warmup in ("constant", "until_error") and not flat["schedule.warmup_lr"]:
        yield (
            f"schedule.warmup={warmup!r} at schedule.warmup_lr=0 trains nothing; set a rate above 0"
        )


def _wrong_training(flat: Mapping[str, Any]) -> Iterator[str]:
    batch, parts = flat["train.batch_size"], flat["train.accumulate"]
    if batch % parts:
        yield f"train.batch_size={batch} is not divisible by train.accumulate={parts}"
    if flat["optimizer.kind"] == "sdlm":
        sgd = {"momentum": 0, "weight_decay": 0, "lr_in_velocity": False, "nesterov": False}
        for key, usual in sgd.items():
            if flat[f"optimizer.{key}"] != usual:
                yield (
                    f"optimizer.{key}={flat[f'optimizer.{key}']!r} is for optimizer.kind='sgd'; "
                    f"set it to {usual}, 'sdlm' has none"
                )
        if flat["train.loss"] == "binary":
            yield (
                "optimizer.kind='sdlm' knows the second derivatives of a network's own loss; set "
                "train.loss='network'"
            )
        if is_streamed(flat["data.name"]):
            yield (
                "optimizer.kind='sdlm' is for small data sets that are kept on the device, and "
                f"data.name is {flat['data.name']!r}"
            )
    if flat["train.patience"] and not flat["data.holdout"]:
        yield (
            f"train.patience={flat['train.patience']} is judged on held-out training images, and "
            "data.holdout=0 keeps none; set it to 0.1, say"
        )
    if not flat["train.steps"] and not flat["train.epochs"]:
        yield "train.epochs and train.steps are both 0: nothing to train"


def _wrong_boxes(flat: Mapping[str, Any]) -> Iterator[str]:
    """Problems of keys that do not go with a network whose last layer says a box."""
    kind = flat["train.boxes"]
    if flat["data.boxes"] and flat["data.exif"]:
        yield "data.exif=True turns images, and data.boxes are of images as they are stored"
    if kind == "none":
        return
    usual = {
        "train.loss": "network",
        "train.label_smoothing": 0,
        "optimizer.kind": "sgd",
        "data.distort": 0,
    }
    for key, value in usual.items():
        if flat[key] != value:
            problem = f"is not for train.boxes={kind!r}; set it to {value!r}"
            yield f"{key}={flat[key]!r} {problem}"
