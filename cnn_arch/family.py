"""What a module of networks offers: families of architectures, each the networks of one paper.

A module, one here or a user's own, has a tuple FAMILIES of them; `registry` finds them by name.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from cnn_arch.network import Network
from cnn_arch.published import Shape, Source

Builder = Callable[..., Network]
Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class Inputs:
    """A paper's square images, `image_size` pixels a side, and how many classes they have."""

    image_size: int = 224
    channels: int = 3
    classes: int = 1000


@dataclass(frozen=True)
class Need:
    """What an option needs in order to change the network."""

    is_met: Callable[[str, Mapping[str, Any]], bool]  # by (variant, options)
    text: str  # what is needed, for a message


# What batch normalisation's options need, of networks that may be without it.
NORMALISED = {
    "bn_group_size": Need(lambda v, o: bool(o.get("batch_norm", True)), "batch_norm=True")
}


@dataclass(frozen=True)
class Growth:
    """Which networks of a family can start deeper ones that compute the same (Net2Net)."""

    variants: tuple[str, ...]  # those that can; none listed: all
    # (names of new values, all values, architecture) -> the values that make new layers pass on
    # what they get. Raises ArchitectureError where there are none.
    identity: Callable[[Collection[str], Arrays, str], Arrays]


@dataclass(frozen=True)
class Family:
    """The architectures of one paper."""

    name: str  # as in 'name:variant'
    variants: tuple[str, ...]  # the registered ones
    # A class, or a function that builds a Network; called with (variant, *, image_size, classes,
    # channels, rngs, **options), whose options all have default values.
    network: Builder
    depth: Callable[[str], int]  # variant -> number of weight layers as the paper counts them
    paper: str = ""  # where they are described
    # Options of a network -> the weight layers that they add to that number; below 0: leave out.
    more_depth: Callable[[Mapping[str, Any]], int] = lambda options: 0
    # Variant -> the smallest image it can be built for, in pixels.
    minimum_image_size: Callable[[str], int] = lambda variant: 1
    inputs: Callable[[str], Inputs] = lambda variant: Inputs()  # the paper's images and classes
    # Whether a variant that is not registered can be built too.
    accepts: Callable[[str], bool] = lambda variant: False
    default: str = ""  # the variant that the family's bare name means
    # Variant -> the options whose defaults differ from the network's.
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Arguments of the network that make it this family's.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # Variant -> its network where it is another one, with options of its own.
    networks: Mapping[str, Builder] = field(default_factory=dict)
    needs: Mapping[str, Need] = field(default_factory=dict)  # of options, to change anything
    seeded: tuple[str, ...] = ()  # layers that a variant gives to another one (VGG, section 3.1)
    growth: Growth | None = None  # how a variant grows into a deeper one, if it can
    shape: Shape | None = None  # sizes by which published weights tell the network's
    published: Mapping[str, Source] = field(default_factory=dict)  # by naming

    def options(self, variant: str) -> dict[str, Any]:
        """The options of a variant's network and their default values."""
        network = self.networks.get(variant, self.network)
        built = network.__init__ if isinstance(network, type) else network  # type: ignore[misc]
        parameters = inspect.signature(built).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        free = {name: value for name, value in defaults.items() if name not in self.fixed}
        return {**free, **self.presets.get(variant, {})}

    def build(self, variant: str, sizes: Mapping[str, int], rngs: Any, **options: Any) -> Network:
        """A network of these `image_size`, `classes` and `channels`, unchecked; it knows them."""
        settings = {**self.fixed, **self.presets.get(variant, {}), **options}
        network = self.networks.get(variant, self.network)(variant, rngs=rngs, **sizes, **settings)
        network.name = f"{self.name}:{variant}"
        network.options = tuple({**self.options(variant), **options}.items())
        for name, size in sizes.items():
            setattr(network, name, size)
        return network
