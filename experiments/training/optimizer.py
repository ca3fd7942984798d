"""The papers' optimisers and their learning-rate schedules.

Nearly all train by SGD with momentum and L2 decay; LeNet-5's has a module of its own,
`levenberg_marquardt`.

The rate is an argument of each step, so that every schedule, also one that watches an error, is
plain Python on the host and its state is a few numbers in the checkpoint.
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from experiments.config import ConfigError
from experiments.config.keys import MOST
from experiments.training import levenberg_marquardt


def matching(names: Iterable[str], patterns: Iterable[str], key: str) -> set[str]:
    """The parameter names that any shell-style pattern matches.

    Raises ConfigError for a pattern that matches no name.
    """
    names = list(names)
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            shown = ", ".join(names[:3])
            raise ConfigError(f"{key}: {pattern!r} matches no parameter; they are {shown}, ...")
        matched.update(hits)
    return matched


def _scale_by_rate(factors: Mapping[str, float]) -> optax.GradientTransformationExtraArgs:
    """Multiplies by -lr, where lr is handed to each update, and by a parameter's factor."""

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any, **_: Any) -> Any:
        scaled = {
            name: -lr * u if name not in factors else -(factors[name] * lr) * u
            for name, u in updates.items()
        }
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def frozen(config: ConfigDict, names: Iterable[str]) -> set[str]:
    """The names of the parameters that `optimizer.freeze` keeps as they are.

    Raises ConfigError for a pattern that matches no parameter, or where nothing is left to train.
    """
    names = list(names)
    fixed = matching(names, config.optimizer.freeze, "optimizer.freeze")
    if fixed and len(fixed) == len(names):
        raise ConfigError(
            f"optimizer.freeze={tuple(config.optimizer.freeze)!r} freezes all {len(names)} "
            "parameters: nothing is left to train; leave out the pattern of those to train"
        )
    return fixed


def unfrozen(config: ConfigDict, names: Iterable[str]) -> dict[str, float]:
    """The part of the training after which `optimizer.unfreeze` lets each parameter be trained.

    Raises ConfigError for a pattern that matches no parameter, or one that stays frozen.
    """
    names = list(names)
    fixed = frozen(config, names)
    parts: dict[str, float] = {}
    for pattern, part in config.optimizer.unfreeze:
        hits = matching(names, (pattern,), "optimizer.unfreeze")
        both = sorted(hits & fixed)
        if both:
            raise ConfigError(
                f"optimizer.unfreeze: {both[0]} is frozen by optimizer.freeze for good"
            )
        parts |= dict.fromkeys(hits, part)
    return parts


def create(config: ConfigDict, names: Iterable[str]) -> optax.GradientTransformationExtraArgs:
    """The optimiser of `config.optimizer` over `{name: array}` of the parameters that are trained.

    names: of all parameters; those that `freeze` matches have no gradient, no state and no part in
    the norm that `clip_norm` bounds.

    `update(grads, state, params, lr=lr)` gives the change of the parameters. `sdlm` needs
    `curvature` too, see `levenberg_marquardt`. With `sgd`, L2 decay joins the gradient before the
    momentum, as in Caffe and all the papers, on the names that `decay` matches. With
    `lr_in_velocity`, v <- mu v - lr g and w <- w + v (AlexNet, section 5); without, v <- mu v + g
    and w <- w - lr v. They differ only when lr changes.

    Raises ConfigError for a pattern of `decay`, `freeze`, `unfreeze` or `rates` that matches no
    parameter, or where nothing is left to train.
    """
    names = list(names)
    o = config.optimizer
    unfrozen(config, names)
    decayed = matching(names, o.decay, "optimizer.decay")
    fixed = frozen(config, names)
    factors: dict[str, float] = {}
    for pattern, factor in o.rates:
        for name in matching(names, (pattern,), "optimizer.rates"):
            factors[name] = factors.get(name, 1.0) * factor
    steps: list[optax.GradientTransformation] = []
    if o.clip_norm:
        steps.append(optax.clip_by_global_norm(o.clip_norm))
    rate, trace = _scale_by_rate(factors), optax.trace(decay=o.momentum, nesterov=o.nesterov)
    if o.kind == "sdlm":
        steps += [levenberg_marquardt.scale_by_curvature(o.mu), rate]
    else:
        mask = {name: name in decayed for name in names if name not in fixed}
        steps.append(optax.add_decayed_weights(o.weight_decay, mask))
        steps += (rate, trace) if o.lr_in_velocity else (trace, rate)
    return optax.with_extra_args_support(optax.chain(*steps))


class Schedule:
    """The learning rate of each step, from `config.schedule`, and what it has observed so far.

    kind: `constant`; `steps`, times `factor` at each of `milestones`, or from each on times its own
    one of `factors`; `cosine` to zero; `plateau`, times `factor` after `patience` validations
    without a lower error, at most `drops` times (VGG: ten, thrice).

    warmup: until `warmup_steps`, or `warmup_part` of the training, `linear` from `warmup_lr` to
    `lr` or `constant` at `warmup_lr` (Goyal et al. 2017, section 2.2). With `until_error` the rate
    is `warmup_lr` until the training error falls below `warmup_error` (ResNet-110, section 4.2);
    that error is a running mean over about ten steps.

    Raises ConfigError for a warm-up as long as the training, or more steps than are counted.
    """

    def __init__(self, config: ConfigDict, total_steps: int):
        self.config = config.schedule
        self.total = total_steps
        part = self.config.warmup_part
        self.warmup_steps = round(part * total_steps) if part else self.config.warmup_steps
        if total_steps > MOST:
            raise ConfigError(
                f"train.epochs={config.train.epochs:g} are {total_steps:,} steps; expected at most "
                f"{MOST:,}"
            )
        if self.config.warmup != "none" and self.warmup_steps >= total_steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} is no part of a training of "
                f"{total_steps} steps: it must be less, or write schedule.warmup_part, such as "
                "0.05, which goes with the training's length"
            )
        self.state: dict[str, Any] = {
            "best": math.inf,  # validation error, percent
            "waited": 0,
            "stale": 0,
            "drops": 0,
            "warming": self.config.warmup == "until_error",
            "training_error": None,  # running mean while warming up, percent
        }

    @property
    def stale(self) -> int:
        """Validations in a row without a lower error; older checkpoints lack it."""
        return int(self.state.get("stale", 0))

    @property
    def watches_every_step(self) -> bool:
        """Whether the next rate depends on the error of the step before it."""
        return bool(self.state["warming"])

    def rate(self, step: int) -> float:
        """The learning rate of the step with this 0-based number."""
        c = self.config
        if self.state["warming"]:
            return c.warmup_lr
        if c.warmup == "constant" and step < self.warmup_steps:
            return c.warmup_lr
        if c.warmup == "linear" and step < self.warmup_steps:
            return c.warmup_lr + (c.lr - c.warmup_lr) * step / self.warmup_steps
        if c.kind == "steps":
            passed = sum(step >= m * self.total for m in c.milestones)
            return c.lr * ((1.0, *c.factors)[passed] if c.factors else c.factor**passed)
        if c.kind == "cosine":
            return c.lr * 0.5 * (1 + math.cos(math.pi * step / self.total))
        if c.kind == "plateau":
            return c.lr * c.factor ** self.state["drops"]
        return c.lr

    def observe_training(self, step: int, error: float) -> None:
        """Takes the training error (percent) of the step with this number.

        NaN where it has none, as no view shows a box: the mean stays as it is.
        """
        c = self.config
        mean = self.state["training_error"]
        if not math.isnan(error):
            mean = error if mean is None else 0.9 * mean + 0.1 * error
            self.state["training_error"] = mean
        low = mean is not None and mean < c.warmup_error
        if low or (self.warmup_steps and step + 1 >= self.warmup_steps):
            self.state["warming"] = False

    def observe_validation(self, error: float) -> bool:
        """Takes a validation error (percent); True if it is the best so far."""
        s, c = self.state, self.config
        if error < s["best"]:
            s["best"], s["waited"], s["stale"] = error, 0, 0
            return True
        s["waited"], s["stale"] = s["waited"] + 1, self.stale + 1
        if s["waited"] >= c.patience and s["drops"] < c.drops:
            s["drops"] += 1
            s["waited"] = 0
        return False

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved `state`."""
        self.state = dict(state)
