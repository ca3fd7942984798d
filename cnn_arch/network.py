"""What every network here is: features, a head, and named endpoints.

Networks call their layers through a `Tape`, by name. The plain tape only calls; other tapes look
on, which is how endpoints are collected and how the census follows shapes and receptive fields.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch.errors import ArchitectureError

Layer = Callable[..., jax.Array]
Named = tuple[str, Layer]


class Composite(nnx.Module):
    """A module made of named layers; it is called with the tape that calls them."""

    def __call__(self, tape: "Tape", *inputs: jax.Array) -> jax.Array:
        raise NotImplementedError


class Tape:
    """Calls layers by name: `tape(name, layer, *inputs)` returns what `layer(*inputs)` returns.

    Names of layers inside a `Composite` are prefixed with its own: 'stage2/block1/conv1/norm'.
    """

    # Whether composites may compute several of their layers at once, which it then does not see.
    # Such programs have no gradients, and need a network that was folded (`folding.fold`).
    fuses = False

    def __init__(self) -> None:
        self.prefix = ""

    def __call__(self, name: str, layer: Layer, *inputs: jax.Array, **options: Any) -> jax.Array:
        name = self.prefix + name
        if isinstance(layer, Composite):
            output = layer(self._inside(name), *inputs, **options)
        else:
            output = layer(*inputs, **options)
        self.note(name, layer, inputs, output)
        return output

    def chain(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        """Calls layers one after another: one stage of a network, whose inner maps a tape may
        forget and compute again for the gradients.
        """
        for name, layer in layers:
            x = self(name, layer, x)
        return x

    def repeat(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        """Calls blocks of the same structure one after another, each a chain of its own."""
        for layer in layers:
            x = self.chain([layer], x)
        return x

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        """Called after every layer, and after every composite once its own layers were noted."""

    def _inside(self, name: str) -> Self:
        inner = object.__new__(type(self))
        inner.__dict__.update(self.__dict__, prefix=name + "/")
        return inner


class EndpointTape(Tape):
    """Keeps the output of every layer under its name."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, jax.Array] = {}

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        self.outputs[name] = output


def passes_on(layer: Layer, inputs: tuple[jax.Array, ...]) -> bool:
    """Whether a layer only changes the values of one other: a non-linearity, or dropout."""
    return len(inputs) == 1 and (
        isinstance(layer, nnx.Dropout) or not isinstance(layer, nnx.Module)
    )


class RecordedOutput:
    """The output of one layer, as it is passed on to the next: behind its non-linearity.

    Of a layer inside a composite it is the layer's own.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.output: jax.Array | None = None

    def see(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        """What `Tape.note` hears of every layer."""
        follows = self.output is not None and inputs and inputs[0] is self.output
        if name == self.layer or (follows and "/" not in self.layer and passes_on(layer, inputs)):
            self.output = output


class Network(nnx.Module):
    """A classifier of images: `head(features(x))`.

    Its state is `nnx.Param` (what is trained) and `nnx.BatchStat` (running statistics) and nothing
    else: random numbers for dropout come in with the call. `train()` and `eval()` switch dropout
    and batch normalisation; a new network is in train mode.
    """

    name: str  # as it is registered, such as 'vgg:E'
    image_size: int  # height and width of the images it was built for, in pixels
    channels: int  # of these images
    classes: int  # number of logits
    options: tuple[tuple[str, Any], ...]  # all that it was built with, (name, value)
    binary_loss = False  # see `loss_of`
    several_classes = False  # whether images may be of several, see `loss_of`

    @abstractmethod
    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Calls the layers of `features` through the tape. Every network has its own."""

    @abstractmethod
    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Calls the layers of `head` through the tape. Every network has its own."""

    def features(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, tape: Tape | None = None
    ) -> jax.Array:
        """The last map before the classifier: images (B, H, W, C) -> (B, h, w, c)."""
        self.check_images(x)
        return self.map_features(tape or Tape(), x, rngs)

    def head(
        self, features: jax.Array, *, rngs: nnx.Rngs | None = None, tape: Tape | None = None
    ) -> jax.Array:
        """Features (B, h, w, c) -> logits (B, classes), float32."""
        return self.map_logits(tape or Tape(), features, rngs).astype(jnp.float32)

    def __call__(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, tape: Tape | None = None
    ) -> jax.Array:
        """Normalised images (B, H, W, C) -> logits (B, classes), float32.

        `rngs` is needed only in train mode by networks with dropout.
        """
        return self.head(self.features(x, rngs=rngs, tape=tape), rngs=rngs, tape=tape)

    def losses(
        self,
        x: jax.Array,
        targets: jax.Array,
        *,
        rngs: nnx.Rngs | None = None,
        tape: Tape | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """What training minimises: (losses (B,), logits (B, classes)), float32.

        targets: (B, classes), each row summing to 1, unless images may be of several classes.
        """
        logits = self(x, rngs=rngs, tape=tape)
        return self.loss_of(logits, targets), logits

    def loss_of(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The losses of logits: (..., classes) twice -> (...,).

        The soft-max cross-entropy in nats, unless the network's paper has another. With
        `binary_loss` each class for itself: the mean of the logistic cross-entropies; of images
        that may be of `several_classes` as `counted_losses` has it.
        """
        if self.binary_loss and self.several_classes:
            return counted_losses(logits, targets)
        if self.binary_loss:
            return jnp.mean(jax.nn.softplus(logits) - targets * logits, axis=-1)
        return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)

    def curvature(self, last: jax.Array, targets: jax.Array) -> jax.Array:
        """Second derivatives of the losses by each output of the last layer with weights, (B, n).

        last: these outputs, (B, n), logits as a rule; targets: (B, classes). None is negative.
        """
        posteriors = jax.nn.softmax(last)
        return posteriors * (1 - posteriors)

    def endpoints(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """Every layer's output by name, with 'features' and 'logits' among them."""
        tape = EndpointTape()
        features = self.features(x, rngs=rngs, tape=tape)
        logits = self.head(features, rngs=rngs, tape=tape)
        return {**tape.outputs, "features": features, "logits": logits}

    def check_images(self, x: jax.Array) -> None:
        """Raises ArchitectureError unless x is (B, H, W, channels)."""
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ArchitectureError(
                f"{self.name} takes images of shape (B, H, W, {self.channels}), got {x.shape}."
            )


def counted_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean logistic cross-entropies of the classes that count: logits, targets (..., classes) ->
    (...,), in nats.

    Of logits x and targets t it is 1/n sum_k (log(1 + exp(x_k)) - t_k x_k), over the n classes k
    whose target is not below 0. It is 0 where no class counts.
    """
    counts = targets >= 0
    losses = jnp.where(counts, jax.nn.softplus(logits) - targets * logits, 0)
    return losses.sum(axis=-1) / jnp.maximum(counts.sum(axis=-1), 1)


def flat_state(state: nnx.State) -> dict[str, jax.Array]:
    """Values of a state by name: the path joined by '/', such as 'conv1_1/conv/kernel'."""
    return {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def unflat_state(values: dict[str, jax.Array], like: nnx.State) -> nnx.State:
    """The inverse of `flat_state`: `like` with its values replaced by `values`.

    Raises ArchitectureError when the names or shapes are not those of `like`.
    """
    flat = {"/".join(map(str, item[0])): item for item in nnx.to_flat_state(like)}
    if flat.keys() != values.keys():
        odd = sorted(flat.keys() ^ values.keys())
        raise ArchitectureError(f"Parameter names do not match: {', '.join(odd[:5])}.")
    replaced = []
    for name, (path, variable) in flat.items():
        if values[name].shape != variable.get_value().shape:
            raise ArchitectureError(
                f"{name} has shape {variable.get_value().shape}, got {values[name].shape}."
            )
        replaced.append((path, variable.replace(values[name])))
    return nnx.from_flat_state(replaced)
