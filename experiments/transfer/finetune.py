"""Training a run's network on for other classes: all of it by a config, or its last layer alone.

The config is a study like any other, which can be edited, swept and sent to a cluster. Where only
the last layer is trained, and on central crops, its features are computed once and it is trained
on them. It sees the same examples in the same batches, at the same rates, from the same fresh
weights as by the config.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cnn_arch import layer_outputs
from cnn_arch.errors import unknown
from cnn_arch.network import counted_losses, flat_state
from experiments import config as configs
from experiments import data as data_lib
from experiments import network
from experiments.config import ConfigError
from experiments.data import preprocessing
from experiments.testing import protocols
from experiments.testing.metrics import Interpolation
from experiments.training import optimizer
from experiments.transfer import heads
from experiments.transfer.features import Extractor, PassFeatures
from experiments.transfer.transfer import HeadSettings, Result, Split, check_classes, tested
from input_pipeline import DataError, balanced, order, sources
from input_pipeline.sources.collection import ANY, TEST, TRAIN, Collection, InMemory

HEAD, ALL = "head", "all"  # in place of a layer's name: the last layer only, or every layer
RATE = 10.0  # of the last layer, as a multiple of the other layers'
DROPOUTS = ("dropout", "head_dropout")  # options of networks
# Keys that mean the same for the last layer trained on features as on images.
ON_FEATURES = frozenset(
    (
        *("seed", "data.balanced", "train.batch_size", "train.epochs", "train.steps"),
        *(f"schedule.{key}" for key in ("kind", "lr", "milestones", "factor", "factors")),
        *(f"schedule.warmup{key}" for key in ("", "_lr", "_steps", "_part")),
        *(f"optimizer.{key}" for key in ("momentum", "nesterov", "weight_decay", "decay")),
        "optimizer.lr_in_velocity",
    )
)
# Keys that --data and the run decide, and no override.
DECIDED = ("data.name", "data.path", "data.split", "data.classes", "data.image_size", "model.arch")
SPLIT = 0.25  # of a folder of classes without parts: the share that is the test


@dataclass(frozen=True)
class Tuning:
    """How a network is trained on."""

    first: str = ALL  # the first layer that is trained, of those in no block; or HEAD, or ALL
    head_rate: float = RATE  # a factor of the last layer's rate
    overrides: Mapping[str, Any] | None = None  # of the config


def config_of(subject: Extractor, tuning: Tuning) -> ConfigDict:
    """The config that trains a run's network on the set of `subject`, to be seeded by the run.

    Where images may be of several classes its loss is `binary`. Raises ConfigError for overrides
    that can't be, DataError for unfit classes, and ArchitectureError for an unknown layer.
    """
    own, collection = subject.config, subject.collection
    for key in DECIDED:
        if key in (tuning.overrides or {}):
            raise ConfigError(f"--set {key}: the run and --data say that; leave it out")
    if collection.targets is not None:
        for part, code in (("training", TRAIN), ("test", TEST)):
            targets = collection.targets[collection.parts == code]
            check_classes(collection, targets, True, part)
    prep = preprocessing.load(subject.run.folder / preprocessing.FILE)
    config = configs.base()
    config.model = own.model
    if "auxiliary" in config.model:
        config.model.auxiliary = False
    config.data.update(_data_of(subject))
    streamed = sources.is_streamed(config.data.name)
    Q = own.test.Q or own.data.image_size
    config.data.update(
        image_size=own.data.image_size,
        S=(Q, Q) if streamed else (0, 0),
        mirror=bool(collection.mirror_ok and prep.mirror_ok),
        frame=0 if streamed else prep.frame,
        exif=prep.exif if streamed else False,
    )
    config.test = own.test
    config.seeding.classifier = "fresh"
    config.schedule.update(kind="cosine", lr=0.01)
    if tuning.first == HEAD:  # so that what the last layer sees can be computed once
        config.data.update(mirror=False, holdout=0.0)
        if config.model.get("inverted_dropout", True):
            config.model.update({key: 0.0 for key in DROPOUTS if key in config.model})
        else:  # what is not dropped is scaled
            config.train.dropout = False
    n = int((collection.parts != TEST).sum())
    config.train.update(batch_size=min(32, max(1, n // 4)), epochs=20.0)
    config.train.loss = "network" if collection.targets is None else "binary"
    frozen, last = _layers(subject, tuning.first)
    config.optimizer.freeze = frozen
    if tuning.first != HEAD and tuning.head_rate != 1:
        config.optimizer.rates = tuple((pattern, tuning.head_rate) for pattern in last)
    return configs.override(config, tuning.overrides or {}, "--set")


def _data_of(subject: Extractor) -> dict[str, Any]:
    """The keys of `data` that name a set; for the run's own images, those of its config."""
    if subject.own_images:
        return {key: subject.config.data[key] for key in ("name", "path", "split")}
    name, parts = str(subject.settings.data), subject.collection.parts
    root = Path(name).expanduser()
    if root.suffix == ".npz" and not root.is_dir():
        return {"name": "npz", "path": name}
    if not root.is_dir():
        return {"name": name}
    if subject.collection.targets is not None:
        return {"name": "voc", "path": name}
    split = SPLIT if (parts == ANY).all() else 0.0
    return {"name": sources.detect(root), "path": name, "split": split}


def _layers(subject: Extractor, first: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns of parameters: (those that stay as they are, those of the last layer)."""
    net = subject.bare
    params = network.skeleton(subject.config, net.classes, net.channels, train=False).params
    fresh = network.classifier(subject.config, net.classes, net.channels)
    last = tuple(dict.fromkeys(f"{name.rpartition('/')[0]}/*" for name in sorted(fresh)))
    tops = dict.fromkeys(name.partition("/")[0] for name in layer_outputs.layer_outputs(net))
    with_params = {name.partition("/")[0] for name in flat_state(params)}
    layers = [name for name in tops if name in with_params]
    if first == ALL:
        return (), last
    last_layers = {pattern.partition("/")[0] for pattern in last}
    if first == HEAD:
        frozen = [name for name in layers if name not in last_layers]
    elif first in layers:
        frozen = layers[: layers.index(first)]
    else:
        raise unknown(f"layer to train from of {net.name}", first, [*layers, HEAD, ALL])
    frozen = [name for name in frozen if not name.startswith("auxiliary")]
    return tuple(f"{name}/*" for name in frozen), last


def on_features(subject: Extractor, config: ConfigDict, tuning: Tuning) -> str:
    """Why the last layer can't be trained on features of central crops; '' if it can.

    It can where it alone is trained, by keys whose meaning does not need the images.
    """
    if tuning.first != HEAD:
        return "other layers are trained too"
    needs = [key for key in tuning.overrides or {} if key not in ON_FEATURES]
    if needs:
        return f"{needs[0]} needs the images"
    if config.schedule.warmup == "until_error":
        return "schedule.warmup='until_error' needs the training error of each step"
    try:
        layer_outputs.classifier_input(subject.bare)
    except ValueError as error:
        return str(error)
    return ""


def rows_of(
    features: PassFeatures, collection: Collection, config: ConfigDict
) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, test rows) of features, in the order of the parts of a config's data.

    Images that can't be used are in neither.
    """
    row_of: np.ndarray = np.full(len(collection), -1)
    row_of[features.of.ids] = np.arange(len(features.of.ids))
    if isinstance(collection.images, InMemory):
        ids = [np.flatnonzero(collection.parts == part) for part in (TRAIN, TEST)]
    else:
        places = {collection.images.where(i): i for i in range(len(collection))}
        d = config.data
        dataset = sources.open_set(d.name, d.path or None, split=d.split)
        parts = (dataset.train, dataset.test)
        ids = [
            np.array([places[part.where(i)] for i in range(len(part))], np.int64) for part in parts
        ]
    train, test = (row_of[part][row_of[part] >= 0] for part in ids)
    return train, test


def train_head(
    subject: Extractor,
    config: ConfigDict,
    features: PassFeatures,
    rows: np.ndarray,
    classes: Sequence[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> heads.Linear:
    """The last layer, trained on features as `config` trains it on images.

    features: what the last layer sees of each image. rows: those that are trained on, in the order
    of the training part. on_progress: of steps. Raises DataError where the loss is not finite.
    """
    targets = features.of.targets
    if config.data.balanced:
        rows = rows[balanced(features.of.labels[rows], seed=0)]
    x = np.asarray(features.values, np.float32)[rows]
    y = (features.of.labels if targets is None else targets)[rows]
    params, _ = network.initial(config, len(classes), subject.bare.channels)
    fresh = sorted(network.classifier(config, len(classes), subject.bare.channels))
    trained = {name: params[name] for name in fresh}
    transform = optimizer.create(config, params)
    total = data_lib.total_steps(config, len(rows))
    schedule = optimizer.Schedule(config, total)
    kernel, bias = (next(n for n in fresh if n.endswith(end)) for end in ("kernel", "bias"))

    def loss(trained: network.Flat, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = jnp.matmul(x, trained[kernel], precision="highest") + trained[bias]
        if targets is not None:
            return counted_losses(logits, y.astype(jnp.float32)).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

    @jax.jit
    def steps(carry: Any, inputs: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            trained, state = carry
            indices, lr = batch
            value, grads = jax.value_and_grad(loss)(trained, x[indices], y[indices])
            change, state = transform.update(grads, state, trained, lr=lr)
            trained = {name: trained[name] + change[name] for name in trained}
            return (trained, state), value

        return jax.lax.scan(step, carry, inputs)

    carry: Any = (trained, transform.init(trained))
    on_device = jnp.asarray(x), jnp.asarray(y)
    size, at_once = config.train.batch_size, 1000
    for start in range(0, total, at_once):
        numbers = range(start, min(start + at_once, total))
        batches = [order.training(config.seed, len(rows), k * size, size)[0] for k in numbers]
        rates = np.array([schedule.rate(k) for k in numbers], np.float32)
        carry, losses = steps(carry, (np.stack(batches), rates), *on_device)
        if not np.isfinite(np.asarray(losses)).all():
            raise DataError(
                f"NaN or Inf in steps {start} to {numbers[-1]}; take a lower schedule.lr"
            )
        on_progress(numbers[-1] + 1, total)
    trained = carry[0]
    return heads.Linear(
        np.asarray(trained[kernel], np.float64), np.asarray(trained[bias], np.float64)
    )


def result_of(
    subject: Extractor,
    config: ConfigDict,
    tuning: Tuning,
    scores: np.ndarray,
    targets: np.ndarray,
    train: int,
    seconds: float,
    feature_seconds: float = 0.0,
    precision: Interpolation = "all_points",
) -> Result:
    """The test of a network that was trained on, as a `Result`.

    scores: (n, K) of the test images; targets: as of `targets_of`; train: number of training
    images. precision: how average precision is taken, where images may be of several classes.
    """
    classes, several = subject.collection.class_names, subject.collection.targets is not None
    how = HeadSettings(head="finetune", normalise="none", precision=precision)
    figures = tested(scores, targets, several=several, how=how)
    rate = config.schedule.lr
    split = Split(train, len(targets), rate, {}, seconds=round(seconds, 3), **figures)
    outputs = layer_outputs.layer_outputs(subject.bare)
    first = tuning.first
    depth = outputs[first].depth if first in outputs else max(o.depth for o in outputs.values())
    (own,) = protocols.resolve("center", subject.config)
    return Result(
        run=subject.run.id,
        layer=f"from {first}",
        depth=0 if first == ALL else depth,
        passes=(own.name,),
        data=subject.collection.name,
        fingerprint=subject.collection.fingerprint,
        class_names=classes,
        features=0,
        left_out=0,
        how=how,
        splits=(split,),
        feature_seconds=feature_seconds,
    )
