"""Turns the names of tensors in a file into those of a naming."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from cnn_arch import pretrained, registry
from cnn_arch.errors import ArchitectureError, WeightsError

# Prefixes of wrapped networks: DataParallel and averages, torch.compile, and modules of users.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
# PyTorch's ImageNet example wraps only the convolutions of AlexNet and VGG.
WRAPPED_FEATURES = "features.module."
AVERAGED = "n_averaged"  # the count that torch's AveragedModel keeps beside `module`
Rule = tuple[str, str]


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without wrappers that all names, or all names of `features.`, begin with."""
    inner = dict(tensors)
    while wrapper := next(
        (
            w
            for w in WRAPPERS
            if inner and all(name.startswith(w) for name in inner.keys() - {AVERAGED})
        ),
        None,
    ):
        inner.pop(AVERAGED, None)
        inner = {name.removeprefix(wrapper): values for name, values in inner.items()}
    features = [name for name in inner if name.startswith("features.")]
    if not all(name.startswith(WRAPPED_FEATURES) for name in features):
        return inner
    return {name.replace(WRAPPED_FEATURES, "features.", 1): x for name, x in inner.items()}


def rules(texts: Sequence[str]) -> list[Rule]:
    """Parses rules as on the command line: FROM=TO, or files with one a line.

    Empty lines of a file, and lines that begin with #, are left out. Raises WeightsError for a file
    that can't be read, and for a text that is no rule: both sides have a `*`, or neither.
    """
    parsed = []
    for text in texts:
        lines, where = [text], "--map"
        if "=" not in text:
            where = text
            try:
                lines = Path(text).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise WeightsError(f"--map {text} is no FROM=TO, and no file: {error}.") from error
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            name, equals, target = (part.strip() for part in line.partition("="))
            stars = name.count("*"), target.count("*")
            if not equals or not name or stars not in ((0, 0), (1, 1), (1, 0)):
                raise WeightsError(
                    f"{where}: {line!r} is no rule; expected FROM=TO, with one * on both sides or "
                    "on neither, or FROM= to leave a tensor out."
                )
            if stars == (1, 0) and target:
                raise WeightsError(f"{where}: {line!r} would give many tensors one name.")
            parsed.append((name, target))
    return parsed


def renamed(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The tensors by new names, each by the first rule that its name matches, if any.

    A rule is (from, to); a `*` stands for any text. With an empty `to` a tensor is left out. Raises
    WeightsError where a rule matches nothing, or two tensors would have one name.
    """
    by_name: dict[str, np.ndarray] = {}
    idle = dict.fromkeys(rules)
    for name, values in tensors.items():
        new_name = name
        for rule in rules:
            prefix, star, suffix = rule[0].partition("*")
            if name == rule[0] or (
                star
                and name.startswith(prefix)
                and name.endswith(suffix)
                and len(name) >= len(prefix) + len(suffix)
            ):
                middle = name[len(prefix) : len(name) - len(suffix)] if star else ""
                new_name = rule[1].replace("*", middle)
                idle.pop(rule, None)
                break
        if new_name in by_name:
            raise WeightsError(f"--map: {name} and another tensor would both be {new_name}.")
        if new_name:
            by_name[new_name] = values
    for name, new_name in idle:
        near = get_close_matches(name, tensors, n=1, cutoff=0)
        raise WeightsError(f"--map {name}={new_name}: no tensor is {name} (near {near[0]}).")
    return by_name


def fitting(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """All architectures whose weights these can be, by the names and shapes of a naming."""
    archs = []
    for arch in registry.variants():
        try:
            naming = pretrained.detect(arch, tensors)
            if naming == pretrained.OWN:
                continue
            network = registry.abstract(arch, **pretrained.arguments(arch, tensors, naming))
            pretrained.load(network, tensors, naming=naming)
        except (ArchitectureError, WeightsError):
            continue
        archs.append(arch)
    return archs
