"""One training step: a pure function over flat parameters, to be jitted."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

import cnn_arch
from cnn_arch import execution
from experiments import data as data_lib
from experiments import network
from experiments.localisation import regression
from experiments.training import optimizer

WEIGHTS = "/kernel"  # ends the names of a layer's weights; its biases are apart


def make_step(
    config: ConfigDict,
    skeleton: network.Skeleton,
    update: Callable[..., Any],
    data: data_lib.Data,
    mesh: Mesh,
    frozen: Collection[str] = (),
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """One training step as a pure function, to be jitted.

    `step(state, constants, seed, inputs)`: state has the trees `params`, `stats`, `optimizer`
    (`ema`, and `curvature`, which stays as it is); constants are the data's; inputs are `step`,
    `lr` (scalars) and `batch`, the arrays (B, ...) of the data's feed, laid out over the mesh axis
    `data`. Returns the state and the metrics `loss` (mean of the network's losses), `error`
    (training error of this batch, percent; NaN where images may be of several classes) and
    `finite`; with `train.log_gradients` `gradients`, by layer the mean square of the loss's
    gradient over its weights.

    frozen: names of parameters that stay as they are. The loss is differentiated by the others
    only, so nothing is computed backward before the first layer that has one of these.

    The batch is one global batch: gradients and BatchNorm groups are of all its examples, on
    however many devices they lie. Dropout masks are drawn for the global batch from (seed, step).

    With several processes, inputs have `asked` too, a `Request` of each device, and the metrics the
    largest of them: so all processes learn at the same step what one of them is to do.
    """
    t = config.train
    gradient = _gradient(config, skeleton, data, mesh)
    total = data_lib.total_steps(config, data.counts["train"])
    parts = optimizer.unfrozen(config, cnn_arch.flat_state(skeleton.params))
    starts = {name: round(part * total) for name, part in parts.items()}

    def step(
        state: dict[str, Any], constants: Any, seed: jax.Array, inputs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        fixed = {name: array for name, array in state["params"].items() if name in frozen}
        trained = {name: a for name, a in state["params"].items() if name not in frozen}
        with skeleton.multiplying():
            value, wrong, grads, stats = gradient(
                trained, fixed, state["stats"], constants, seed, inputs
            )
        measured = {"curvature": state["curvature"]} if "curvature" in state else {}
        grads = _from(starts, inputs["step"], grads)
        decayed = _from(starts, inputs["step"], trained)  # parameters that wait do not decay
        change, opt_state = update(grads, state["optimizer"], decayed, lr=inputs["lr"], **measured)
        trained = optax.apply_updates(trained, change)
        params = {name: trained.get(name, array) for name, array in state["params"].items()}
        new_state = {"params": params, "stats": stats, "optimizer": opt_state, **measured}
        if t.ema:
            share = jnp.maximum(1 - t.ema, 9 / (10 + inputs["step"]))
            latest = averaged(params, stats, frozen)
            # In this form a value that does not change stays the same bit for bit.
            new_state["ema"] = {
                n: mean + share * (latest[n] - mean) for n, mean in state["ema"].items()
            }
        # A gradient that is not finite leaves its parameter so.
        finite = _all_finite((value, trained, stats))
        metrics = {"loss": value, "error": 100 * wrong, "finite": finite}
        if t.log_gradients:
            metrics["gradients"] = {
                name.removesuffix(WEIGHTS): jnp.square(gradient.astype(jnp.float32)).mean()
                for name, gradient in grads.items()
                if name.endswith(WEIGHTS)
            }
        if "asked" in inputs:
            metrics["asked"] = inputs["asked"].max()
        return new_state, metrics

    return step


def _gradient(
    config: ConfigDict, skeleton: network.Skeleton, data: data_lib.Data, mesh: Mesh
) -> Callable[..., Any]:
    """`(trained, fixed, stats, constants, seed, inputs)` -> mean loss, share of wrong answers,
    gradients by `trained`, new running statistics; all over the micro-batches of a batch."""
    t, parts, several = config.train, config.train.accumulate, data.preprocessing.several
    spread = NamedSharding(mesh, P("data"))

    def loss(
        trained: network.Flat,
        fixed: network.Flat,
        stats: network.Flat,
        constants: Any,
        seed: jax.Array,
        batch: data_lib.Arrays,
        draw: jax.Array,
    ) -> tuple[jax.Array, tuple[network.Flat, jax.Array]]:
        x, y = data.train_views(constants, seed, batch)
        x = jax.lax.with_sharding_constraint(x, spread)
        net = skeleton.merge({**fixed, **trained}, stats)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), draw)
        targets = optax.smooth_labels(
            y.astype(jnp.float32) if several else jax.nn.one_hot(y, data.classes),
            t.label_smoothing,
        )
        tape = execution.tape(t.scan, t.remat, mesh.devices.flat[0].platform)
        rngs = nnx.Rngs(dropout=key)
        if several:
            targets = jnp.where(y < 0, -1.0, targets)  # those that count neither way
            losses, _ = net.losses(x, targets, rngs=rngs, tape=tape)
            wrong = jnp.full((), jnp.nan)
        elif t.boxes == "none":
            losses, logits = net.losses(x, targets, rngs=rngs, tape=tape)
            wrong = (logits.argmax(axis=-1) != y).astype(jnp.float32).mean()
        else:
            boxes = data.train_boxes(constants, seed, batch)
            outputs, crop = net(x, rngs=rngs, tape=tape), config.data.image_size
            losses = regression.losses(outputs, y, boxes, crop)
            wrong = regression.wrong(outputs, y, boxes, crop)
            wrong = jnp.stack([jnp.nansum(wrong), jnp.isfinite(wrong).sum()])
        return losses.mean(), (cnn_arch.flat_state(nnx.state(net, nnx.BatchStat)), wrong)

    of_micro_batch = jax.value_and_grad(loss, has_aux=True)

    def gradient(
        trained: network.Flat,
        fixed: network.Flat,
        stats: network.Flat,
        constants: Any,
        seed: jax.Array,
        inputs: dict[str, Any],
    ) -> tuple[jax.Array, jax.Array, network.Flat, network.Flat]:
        total: Any = None
        for part in range(parts):  # every parts-th example from this one on
            micro = {name: array[part::parts] for name, array in inputs["batch"].items()}
            draw = inputs["step"] * parts + part
            if total is not None:  # else XLA runs them side by side and holds the maps of all
                micro, total = jax.lax.optimization_barrier((micro, total))
            (value, (stats, wrong)), grads = of_micro_batch(
                trained, fixed, stats, constants, seed, micro, draw
            )
            terms = (value, wrong, grads)
            total = terms if total is None else jax.tree.map(jnp.add, total, terms)
        value, wrong, grads = jax.tree.map(lambda x: x / parts, total)
        if t.boxes != "none":  # of all views that show a box; NaN where none does
            wrong = wrong[0] / wrong[1]
        return value, wrong, grads, stats

    return gradient


def _from(starts: Mapping[str, int], step: jax.Array, tree: network.Flat) -> network.Flat:
    """Zeros for parameters whose first step is still to come."""
    waiting = {name: jnp.where(step < start, 0, tree[name]) for name, start in starts.items()}
    return {**tree, **waiting} if waiting else tree


def averaged(params: network.Flat, stats: network.Flat, frozen: Collection[str]) -> network.Flat:
    """What `train.ema` averages, by name: trained parameters and running statistics."""
    return {name: array for name, array in {**params, **stats}.items() if name not in frozen}


# Arrays looked at together: XLA on CPU takes time quadratic in what it fuses into one test.
LOOKED_AT = 32
LARGE = 2**18  # elements; larger arrays are looked at one by one


def _all_finite(tree: Any) -> jax.Array:
    """Whether every number is finite. Each is looked at: a norm would overflow before they do."""
    arrays = jax.tree.leaves(tree)
    return jax.lax.platform_dependent(*arrays, cpu=_all_finite_on_cpu, default=each_finite)


def each_finite(*arrays: jax.Array) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in arrays]))


def _all_finite_on_cpu(*arrays: jax.Array) -> jax.Array:
    """A large array's rows are summed first, times zero, which leaves NaN where a number is not
    finite: XLA on CPU reduces an array to one number on one core, and its maximum of a row drops
    NaN.
    """
    small = sorted((x for x in arrays if x.size <= LARGE), key=lambda x: x.size)
    parts = [small[at : at + LOOKED_AT] for at in range(0, len(small), LOOKED_AT)]
    vectors = [jnp.concatenate([x.ravel() for x in part]) for part in parts]
    vectors += [(x * 0).sum(axis=-1).ravel() for x in arrays if x.size > LARGE]
    return each_finite(*vectors)


def make_dispatch(step: Callable[..., Any]) -> Callable[..., Any]:
    """`dispatch(state, constants, seed, inputs)`: K steps, inputs with a leading axis K."""

    def dispatch(state: Any, constants: Any, seed: jax.Array, inputs: Any) -> Any:
        if len(inputs["lr"]) == 1:  # a loop of one still costs on CPU
            state, metrics = step(state, constants, seed, jax.tree.map(lambda x: x[0], inputs))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda carry, x: step(carry, constants, seed, x), state, inputs)

    return dispatch
