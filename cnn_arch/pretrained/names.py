"""Names of tensors as files have them, on the way to those of a naming."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from cnn_arch import pretrained, registry
from cnn_arch.errors import ArchitectureError, WeightsError

# What a network is wrapped in: DataParallel and averages, torch.compile, and modules of users.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
# PyTorch's ImageNet example wraps only the convolutions of AlexNet and VGG.
WRAPPED_FEATURES = "features.module."
AVERAGED = "n_averaged"  # how many were averaged, which torch's AveragedModel keeps beside `module`
Rule = tuple[str, str]


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the wrappers that all of their names begin with, or those in features."""
    found = dict(tensors)
    while wrapper := next(
        (
            w
            for w in WRAPPERS
            if found and all(name.startswith(w) for name in found.keys() - {AVERAGED})
        ),
        None,
    ):
        found.pop(AVERAGED, None)
        found = {name.removeprefix(wrapper): values for name, values in found.items()}
    features = [name for name in found if name.startswith("features.")]
    if not all(name.startswith(WRAPPED_FEATURES) for name in features):
        return found
    return {name.replace(WRAPPED_FEATURES, "features.", 1): x for name, x in found.items()}


def rules(given: Sequence[str]) -> list[Rule]:
    """Rules as the command line has them: FROM=TO, or files with one a line.

    Empty lines of a file, and lines that begin with #, are left out. Raises WeightsError where a
    file can't be read, or a rule is none: both sides have a `*`, or neither.
    """
    found = []
    for words in given:
        lines, where = [words], "--map"
        if "=" not in words:
            where = words
            try:
                lines = Path(words).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise WeightsError(f"--map {words} is no FROM=TO, and no file: {error}.") from error
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            name, equals, wanted = (part.strip() for part in line.partition("="))
            stars = name.count("*"), wanted.count("*")
            if not equals or not name or stars not in ((0, 0), (1, 1), (1, 0)):
                raise WeightsError(
                    f"{where}: {line!r} is no rule; expected FROM=TO, with one * on both sides or "
                    "on neither, or FROM= to leave a tensor out."
                )
            if stars == (1, 0) and wanted:
                raise WeightsError(f"{where}: {line!r} would give many tensors one name.")
            found.append((name, wanted))
    return found


def renamed(tensors: Mapping[str, np.ndarray], given: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The tensors by other names, each by the first rule that it matches, if any.

    A rule is (from, to); a `*` stands for any text. A tensor that is to have no name is left out.
    Raises WeightsError where a rule matches nothing, or two tensors would have one name.
    """
    found: dict[str, np.ndarray] = {}
    idle = dict.fromkeys(given)
    for name, values in tensors.items():
        wanted = name
        for rule in given:
            begins, star, ends = rule[0].partition("*")
            if name == rule[0] or (
                star
                and name.startswith(begins)
                and name.endswith(ends)
                and len(name) >= len(begins) + len(ends)
            ):
                middle = name[len(begins) : len(name) - len(ends)] if star else ""
                wanted = rule[1].replace("*", middle)
                idle.pop(rule, None)
                break
        if wanted in found:
            raise WeightsError(f"--map: {name} and another tensor would both be {wanted}.")
        if wanted:
            found[wanted] = values
    for name, wanted in idle:
        near = get_close_matches(name, tensors, n=1, cutoff=0)
        raise WeightsError(f"--map {name}={wanted}: no tensor is {name} (near {near[0]}).")
    return found


def fitting(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The architectures whose weights these are, by a naming's names and shapes: all of them."""
    found = []
    for arch in registry.variants():
        try:
            naming = pretrained.detect(arch, tensors)
            if naming == pretrained.OWN:
                continue
            network = registry.abstract(arch, **pretrained.arguments(arch, tensors, naming))
            pretrained.load(network, tensors, naming=naming)
        except (ArchitectureError, WeightsError):
            continue
        found.append(arch)
    return found
