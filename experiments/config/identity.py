"""What of a config can change a run's result."""

from typing import Any

import ml_collections

from experiments.config.keys import ADDED, DEFAULTS, KEYS, OWN, flatten


def identity_part(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What of a config can change a run's result, flat and JSON-ready."""
    flat = flatten(config)
    crop = flat["data.image_size"]
    for name, usual in (("data.S", (0, 0)), ("test.Q", 0)):  # two spellings of the crop's size
        if flat[name] == (crop if usual == 0 else (crop, crop)):
            flat[name] = usual
    whole = {**DEFAULTS, **flat}
    skip = {name for name, key in KEYS.items() if not key.identity.holds(whole)}
    skip.add("model.folder")  # where a user's network lies; `model.source` is what it is
    skip |= {name for name, usual in ADDED.items() if flat.get(name) == usual}
    return {name: value for name, value in sorted(flat.items()) if name not in skip}


def inherits(config: ml_collections.ConfigDict) -> bool:
    """Whether a config's network sees images as the one that seeds it did."""
    return not OWN.holds(flatten(config))
