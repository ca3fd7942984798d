"""What a module of networks offers: families of architectures, each the networks of one paper.

A module, one here or a user's own, has a tuple FAMILIES of them; `registry` finds them by name.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cnn_arch.network import Network

Builder = Callable[..., Network]


@dataclass(frozen=True)
class Inputs:
    """A paper's square images, `image_size` pixels a side, and how many classes they have."""

    image_size: int = 224
    channels: int = 3
    classes: int = 1000


@dataclass(frozen=True)
class Need:
    """What an option needs in order to change the network.

    there: whether (variant, options) have it; told: what they must have.
    """

    there: Callable[[str, Mapping[str, Any]], bool]
    told: str


# What batch normalisation's options need, of networks that may be without it.
NORMALISED = {
    "bn_group_size": Need(lambda v, o: bool(o.get("batch_norm", True)), "batch_norm=True")
}


@dataclass(frozen=True)
class Family:
    """The architectures of one paper.

    Attributes:
        name: as in 'name:variant'.
        variants: the registered ones.
        network: a class, or a function that builds a Network; called with (variant, *, image_size,
            classes, channels, rngs, **options), whose options all have default values.
        depth: variant -> number of weight layers as the paper counts them.
        paper: where they are described.
        minimum_image_size: variant -> the smallest image it can be built for, in pixels.
        inputs: variant -> the paper's images and classes.
        accepts: whether a variant that is not registered can be built too.
        default: the variant that the family's bare name means.
        presets: variant -> the options whose defaults differ from the network's.
        fixed: arguments of the network that make it this family's.
        networks: variant -> its network where it is another one, with options of its own.
        needs: option -> what it needs in order to change anything.
    """

    name: str
    variants: tuple[str, ...]
    network: Builder
    depth: Callable[[str], int]
    paper: str = ""
    minimum_image_size: Callable[[str], int] = lambda variant: 1
    inputs: Callable[[str], Inputs] = lambda variant: Inputs()
    accepts: Callable[[str], bool] = lambda variant: False
    default: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, Builder] = field(default_factory=dict)
    needs: Mapping[str, Need] = field(default_factory=dict)

    def options(self, variant: str) -> dict[str, Any]:
        """The options of a variant's network and their default values."""
        network = self.networks.get(variant, self.network)
        built = network.__init__ if isinstance(network, type) else network  # type: ignore[misc]
        parameters = inspect.signature(built).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        free = {name: value for name, value in defaults.items() if name not in self.fixed}
        return {**free, **self.presets.get(variant, {})}
