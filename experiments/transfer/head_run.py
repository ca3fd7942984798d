"""Makes a run of another one's network and a linear head: for `predict`, `evaluate` and export."""

import dataclasses
import hashlib
import json
from math import prod
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cnn_arch import flat_state, layer_outputs
from experiments import weights
from experiments.config.keys import base
from experiments.data import preprocessing
from experiments.network import classifier, for_tests, skeleton
from experiments.report.figures import slug
from experiments.runs import checkpoints, runs
from experiments.testing import protocols
from experiments.transfer import heads
from experiments.transfer.features import Extractor
from experiments.transfer.transfer import Result


def why_not(subject: Extractor, result: Result) -> str:
    """Why a head can't be the last layer of the run's architecture; '' where it can."""
    how = result.how
    if how.head == "knn":
        return "neighbours are no layer"
    if how.normalise == "l2":
        return "a network here does not divide features by their length; --normalise scale does not"
    (own,) = protocols.resolve("center", subject.config)
    if result.passes != (own.name,):
        return "a network sees one view, the central one at the run's own scale"
    try:
        last = layer_outputs.classifier_input(subject.bare)
    except ValueError as error:
        return str(error)
    if last != result.layer:
        return f"the head of a network here sees {last}, and this one {result.layer}"
    if prod(layer_outputs.check(subject.bare, last).shape) != result.features:
        return f"the head of a network here sees all places of {last}, and this one their means"
    return ""


def make(subject: Extractor, result: Result, folder: Path) -> runs.Run:
    """The run under `folder` with the network whose last layer is the head of the first split.

    A run that is there is returned as it is; `why_not` has to be ''. Its logits are the head's
    scores; where images may be of several classes, each class has its own posterior. Raises
    RunError where it can't be written, and CheckpointError where the network can't be read.
    """
    head = result.heads[0]
    assert isinstance(head.head, heads.Linear)
    config = subject.run.config()
    record = {
        "run": subject.run.id,
        "step": subject.step,
        "which": subject.settings.which,
        **json.loads(json.dumps(result.to_json())),
    }
    identity = {k: v for k, v in record.items() if k not in ("splits", "feature_seconds")}
    arrays = [head.head.weights / head.divisor, head.head.bias]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.asarray(array, np.float32).tobytes())
    name = digest.hexdigest()[:10]
    # Not named after the architecture: a part of an id names a run, and `subject.run` has that one.
    run = runs.Run(folder / f"{slug(result.data)}-{result.how.head}-{name}")
    if run.read("run") is not None:
        return run
    prep = preprocessing.load(subject.run.folder / preprocessing.FILE)
    _, trees = checkpoints.load_network(subject.run.checkpoints, subject.settings.which)
    params, stats = for_tests(trees)
    config = _without_training(config)
    classes = len(result.class_names)
    fresh = classifier(config, classes, prep.channels)
    network = skeleton(config, classes, prep.channels, train=False)
    merged = {key: value for key, value in params.items() if key not in fresh}
    for key in sorted(fresh):
        merged[key] = jnp.asarray(arrays[0] if key.endswith("kernel") else arrays[1], jnp.float32)
    used = flat_state(network.params)  # without auxiliary classifiers
    merged = {key: value for key, value in merged.items() if key in used}
    network.check(merged, stats, subject.run.checkpoints)
    prep = dataclasses.replace(prep, class_names=result.class_names, several=result.several)
    about = {"digest": name, "file": f"{result.how.head} on {result.layer} of {subject.run.id}"}
    weights.write_run(
        run,
        config,
        about | {"transfer": record},
        {"params": merged, "stats": dict(stats)},
        prep,
    )
    return run


def _without_training(config: ConfigDict) -> ConfigDict:
    """The config of a network that is not trained: only how it is built and tested."""
    plain = base()
    plain.model = config.model
    plain.data.image_size, plain.data.view = config.data.image_size, config.data.view
    plain.test = config.test
    if "auxiliary" in plain.model:
        plain.model.auxiliary = False
    return plain
