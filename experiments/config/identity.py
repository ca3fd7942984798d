"""What of a config can change a run's result."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments.config.keys import ADDED, EXECUTION, FITTED, STREAMED_ONLY, flatten
from input_pipeline.sources import is_streamed


def identity_part(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What of a config can change a run's result, flat and JSON-ready."""
    flat = flatten(config)
    crop = flat["data.image_size"]
    for key, usual in (("data.S", (0, 0)), ("test.Q", 0)):  # two spellings of the crop's size
        if flat[key] == (crop if usual == 0 else (crop, crop)):
            flat[key] = usual
    skip = {k for k in flat if any(k == e or k.startswith(e + ".") for e in EXECUTION)}
    skip.add("model.folder")  # where a user's network lies; `model.source` is what it is
    skip |= _unused(config) | _idle(flat)
    skip |= {k for k, usual in ADDED.items() if flat.get(k) == usual}
    if flat.get("train.until_error"):
        skip.discard("train.log_every_epochs")
    return {k: v for k, v in sorted(flat.items()) if k not in skip}


def inherits(config: ml_collections.ConfigDict) -> bool:
    """Whether a config's network sees images as the one that seeds it did."""
    return bool(config.seeding.run) and config.seeding.normalise == "inherit"


def _unused(config: ml_collections.ConfigDict) -> set[str]:
    """Keys of the data that change nothing for data of this kind."""
    d, own = config.data, not inherits(config)
    skip = set() if own else {"data.normalise", "data.divide_by_std"}
    if not is_streamed(d.name):
        return {*skip, *(f"data.{key}" for key in STREAMED_ONLY)}
    fitted = d.normalise in ("per_pixel", "per_channel") or d.divide_by_std
    fitted = (fitted and own) or d.colour in FITTED
    used = {
        "mean": d.normalise == "fixed" and own,
        "area": d.view == "area",
        "aspect": d.view == "area",
        "S": d.view != "area",
        "statistics_images": fitted,
    }
    return {*skip, *(f"data.{key}" for key, matters in used.items() if not matters)}


def _idle(flat: Mapping[str, Any]) -> set[str]:
    """Keys of the training that change nothing beside the others."""
    kind, warmup = flat["schedule.kind"], flat["schedule.warmup"]
    used = {
        "train.epochs": not flat["train.steps"],
        "optimizer.decay": flat["optimizer.weight_decay"] > 0,
        "optimizer.mu": flat.get("optimizer.kind") == "sdlm",
        "optimizer.patterns": flat.get("optimizer.kind") == "sdlm",
        "optimizer.momentum": flat.get("optimizer.kind") != "sdlm",
        "optimizer.nesterov": flat.get("optimizer.kind") != "sdlm",
        "schedule.milestones": kind == "steps",
        "schedule.factors": kind == "steps",
        "schedule.factor": kind == "plateau"
        or (kind == "steps" and not flat.get("schedule.factors")),
        "schedule.drops": kind == "plateau",
        "schedule.patience": kind == "plateau",
        "schedule.warmup_lr": warmup != "none",
        "schedule.warmup_steps": warmup != "none" and not flat.get("schedule.warmup_part"),
        "schedule.warmup_part": warmup != "none",
        "schedule.warmup_error": warmup == "until_error",
    }
    return {key for key, matters in used.items() if not matters}
