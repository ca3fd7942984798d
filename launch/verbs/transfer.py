"""`cnn-depth transfer`: a trained network for other classes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.executors.backend import TRACK
from launch.verbs.features import DEFAULTS, FEATURES, extractors, requested_features
from launch.verbs.options import RUNS, add_options, add_runs_and_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from experiments.runs.runs import Run
    from experiments.transfer.features import Extractor
    from experiments.transfer.finetune import Tuning
    from experiments.transfer.transfer import Result

HELP = """\
Use a trained network for the classes of another set: a classifier learns from the network's
features of the training images, and is tested on the test images. The features are computed once
and kept (see `cnn-depth features`, whose options are here too).

  logistic  multinomial logistic regression (default)
  svm       a linear support vector machine, one class against the rest
  knn       the nearest training images
  finetune  no features: the network itself is trained on, from --from on

C, or the number of neighbours, is chosen on a fifth of the training images that is held out; then
the head learns from all of them. Several runs and layers are ranked, and a report shows the error
against the depth of the layer.

Sets with parts are tested on their test part. Of others so many images of each class are drawn as
--train-per-class says, or a share is the test. Images may be of several classes (VOC); then average
precision is what counts, and finetune has train.loss=binary. A linear head on what the last layer
sees becomes a run, which `evaluate`, `predict` and `weights export` take."""
EXAMPLE = """
cnn-depth transfer resnet-50 --data photos
cnn-depth transfer residual_depth/resnet-44 --data digits --layer stage1,stage2,stage3,pool
cnn-depth transfer vgg-D --data 101_ObjectCategories --head svm --normalise l2 --protocol dense \
--scales 256,384,512 --combine concatenate --train-per-class 30 --test-per-class 50 --splits 3
"""

HEAD = {
    "--head logistic|svm|knn|finetune": "what learns (default: logistic)",
    "--normalise scale|l2|none": "features are divided by their root mean square length over the "
    "training images, each image's by its own, or left alone (default: scale)",
    "--strength SHARE": "C, or the number of neighbours; it is not chosen then",
    "--only CLASS[,CLASS...]": "classes that are told apart (default: all of the set)",
    "--train-per-class N": "training images of each class, drawn anew in each split",
    "--test-per-class N": "test images of each class, at most, of a set without parts",
    "--test-share SHARE": "of a set without parts (default: 0.25)",
    "--splits N": "that are drawn (default: 1)",
    "--precision all_points|eleven_points": "average precision, where images may be of several "
    "classes: VOC's from 2010 on, or before (default: all_points)",
    "--together": "one classifier on the features of all runs, side by side",
    "--solver auto|sklearn|device": "of linear heads: scikit-learn in memory, or chunk by chunk on "
    "the device; auto takes the latter where features outgrow half of the memory (default: auto)",
}
TUNING = {
    "--from LAYER": "the first layer that is trained, of those in no block; `all`; or `head`, the "
    "last one alone, on what it sees of central crops, computed once (default: all)",
    "--head-rate SHARE": "what the last layer's rate is multiplied by (default: 10)",
    "--set KEY=VALUE...": "a key of the training, such as schedule.lr=0.001, data.balanced=true, "
    "train.patience=3 or optimizer.unfreeze",
    TRACK: "where the training is tracked, as of `cnn-depth train`",
}
HEAD_RATE = 10.0
HEAD_DEFAULTS: dict[str, Any] = {
    "head": "logistic",
    "normalise": "scale",
    "test_share": 0.25,
    "splits": 1,
    "precision": "all_points",
    "solver": "auto",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help=RUNS)
    layer_help = (
        "layers, each for itself (default: what the last fully connected one sees); `all`: each "
    )
    add_options(parser, {"--layer L[,L...]": f"{layer_help}that is in no block"})
    features = {name: description for name, description in FEATURES.items() if name != "--l2"}
    add_options(parser, features, **DEFAULTS)
    add_options(parser, HEAD, **HEAD_DEFAULTS)
    add_options(parser.add_argument_group("with --head finetune"), TUNING, head_rate=HEAD_RATE)
    add_options(
        parser, {"--report DIR": "where the report goes (default: reports/transfer-SET in --runs)"}
    )
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from experiments import report
    from experiments.report import transfer as transfer_report
    from experiments.report.figures import slug
    from experiments.runs import runs

    _check(args)
    results, runs_made, reason = _tune(args) if args.head == "finetune" else _learn(args)
    if not results:
        return 130
    folder = args.report or runs.root(args.runs) / "reports" / f"transfer-{slug(results[0].data)}"
    written = report.write(transfer_report.report(results), folder)["report"]
    if args.json:
        documents = [result.to_json() for result in results]
        folders = [str(run.folder) for run in runs_made]
        print(json.dumps({"results": documents, "runs": folders}, indent=1))
    else:
        _print(results, runs_made, reason, written)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that don't go together."""
    from experiments.config import ConfigError

    tuning = args.head == "finetune"
    options = (vars(args)["from"], args.set, args.track, args.head_rate != HEAD_RATE)
    if not tuning and any(options):
        raise ConfigError("--from, --head-rate, --set and --track go with --head finetune")
    defaults = HEAD_DEFAULTS | DEFAULTS
    names = [name for name in HEAD_DEFAULTS if name not in ("head", "precision")]
    names += ["strength", "only", "train_per_class", "test_per_class", "layer", "together"]
    names += [*DEFAULTS, "scales", "flip"]
    for name in names:
        if tuning and (getattr(args, name) or None) != defaults.get(name):
            raise ConfigError(f"--{name.replace('_', '-')} goes with features, not with finetune")
    if args.together and (len(args.run) < 2 or "," in (args.layer or "") or args.layer == "all"):
        raise ConfigError("--together is for several runs, and one layer of each")
    if vars(args)["from"] == "head" and args.head_rate != HEAD_RATE:
        raise ConfigError("--head-rate is for trainings of other layers too, not --from head")
    if args.head_rate <= 0:
        raise ConfigError(f"--head-rate {args.head_rate:g}; expected more than 0")


def _learn(args: argparse.Namespace) -> tuple[list[Result], list[Run], str]:
    """Learns heads on features. Returns their results, the runs made of them, and why not more."""
    from rich.console import Console

    from experiments.runs import runs
    from experiments.transfer import head_run, result_store, transfer

    settings = transfer.HeadSettings(
        head=args.head,
        normalise=args.normalise,
        combine=args.combine,
        strength=args.strength,
        only=tuple(args.only.split(",")) if args.only else (),
        train_per_class=args.train_per_class,
        test_per_class=args.test_per_class,
        test_share=args.test_share,
        splits=args.splits,
        precision=args.precision,
        solver=args.solver,
    )
    transfer.check(settings)
    subjects, screen = extractors(args), Console(stderr=True)
    requests = [(subject, request) for subject in subjects for request in _requests(args, subject)]
    for subject, request in requests:  # before hours are spent on the first one
        subject.layer(request.layer)
    results: list[Result] = []
    runs_made: list[Run] = []
    reason = ""
    if args.together:
        tell = progress(screen, " + ".join(subject.run.id for subject in subjects), "")
        return (
            [result_store.learn(requests, settings, tell)],
            [],
            "its features are of several networks",
        )
    for subject, request in requests:
        tell = progress(screen, subject.run.id, subject.layer(request.layer))
        result = result_store.learn([(subject, request)], settings, tell)
        results.append(result)
        reason = head_run.why_not(subject, result)
        if not reason:
            runs_made.append(head_run.make(subject, result, runs.root(args.runs)))
    return results, runs_made, reason


def _tune(args: argparse.Namespace) -> tuple[list[Result], list[Run], str]:
    """Trains the networks on, and returns what `_learn` does; nothing where it was stopped."""
    from rich.console import Console

    from experiments import config as configs
    from experiments.transfer import finetune
    from launch.console import say

    tuning = finetune.Tuning(
        vars(args)["from"] or finetune.ALL, args.head_rate, configs.parse_set(args.set)
    )
    subjects = extractors(args)
    tuned = [(subject, finetune.config_of(subject, tuning)) for subject in subjects]
    if subjects[0].collection.targets is not None and "train.loss" not in (tuning.overrides or {}):
        note = "images may be of several classes, each of which is learnt for itself"
        say(Console(stderr=True), f"{subjects[0].collection.name}: {note} (train.loss=binary)")
    results, runs_made = [], []
    for subject, config in tuned:
        if not finetune.on_features(subject, config, tuning):
            result, run = _tune_head(args, subject, config, tuning)
        else:
            trained = _train(args, subject, config, tuning)
            if trained is None:
                return [], [], ""
            result, run = trained
        results.append(result)
        runs_made.append(run)
    return results, runs_made, ""


def _tune_head(
    args: argparse.Namespace, subject: Extractor, config: ConfigDict, tuning: Tuning
) -> tuple[Result, Run]:
    """Trains the last layer alone, on its inputs for central crops."""
    import time
    from dataclasses import replace

    import numpy as np
    from rich.console import Console

    from experiments.runs import runs
    from experiments.transfer import finetune, head_run
    from experiments.transfer.features import FeatureRequest
    from experiments.transfer.transfer import Scaled, targets_of
    from launch.console import SOON_SECONDS, at_times

    (features,) = subject.features(FeatureRequest())
    train, test = finetune.rows_of(features, subject.collection, config)
    tell = at_times(Console(stderr=True), soon=SOON_SECONDS)
    start = time.monotonic()
    head = finetune.train_head(
        subject,
        config,
        features,
        train,
        subject.collection.class_names,
        lambda done, total: tell(f"{subject.run.id}: step {done:,} of {total:,}"),
    )
    seconds = time.monotonic() - start
    scores, targets = head.scores(np.asarray(features.values[test])), targets_of(features.of)[test]
    result = finetune.result_of(
        subject,
        config,
        tuning,
        scores,
        targets,
        len(train),
        seconds,
        features.seconds,
        precision=args.precision,
    )
    result = replace(result, layer=features.layer, heads=(Scaled(head, "none", 1.0),))
    return result, head_run.make(subject, result, runs.root(args.runs))


def _train(
    args: argparse.Namespace, subject: Extractor, config: ConfigDict, tuning: Tuning
) -> tuple[Result, Run] | None:
    """Trains the network with `train` in this process. Returns None where that was stopped."""
    import hashlib
    import sys
    from contextlib import redirect_stdout

    import numpy as np

    from experiments import config as configs
    from experiments.config import writing
    from experiments.report.figures import slug
    from experiments.runs import runs
    from experiments.testing import predictions
    from experiments.transfer import finetune
    from launch.planning import graph
    from launch.verbs import train

    folder = runs.root(args.runs)
    stem = f"{slug(subject.collection.name)}-from-{slug(tuning.first)}-{subject.run.id}"
    digest = hashlib.sha256(repr(sorted(configs.flatten(config).items())).encode()).hexdigest()
    name = f"{stem}-{digest[:6]}"  # other settings get another file, and an edited file stays
    file = folder / "finetune" / f"{name}.py"
    study = configs.Study(name, f"{subject.run.id} on {subject.collection.name}", config, ())
    command = f"cnn-depth transfer {subject.run.id} --head finetune"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = writing.study_file(study, [(config.model.arch, config)], command, str(file))
    runs.write_text(file, text)
    arguments = [str(file), "--seed-from", str(subject.run.folder), "--runs", str(folder)]
    arguments += ["--track", args.track] if args.track else []
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    with redirect_stdout(sys.stderr):
        if train.main(parser.parse_args(arguments)) != 0:
            return None
    job = graph.job_of_row(str(file), None, {}, folder, subject.run)
    run_result = job.run.read("result") or {}
    tested = predictions.load(job.run.folder / "predictions" / "test-center.npz")
    scores, targets = tested.posteriors, tested.targets
    if targets is None:
        with np.errstate(divide="ignore"):
            scores = np.log(scores)
        targets = np.eye(scores.shape[1], dtype=np.int8)[tested.labels]
    result = finetune.result_of(
        subject,
        config,
        tuning,
        scores,
        targets,
        run_result["train_images"],
        run_result["seconds"],
        precision=args.precision,
    )
    return result, job.run


def _requests(args: argparse.Namespace, subject: Any) -> list[Any]:
    """The features that are requested of a run; `all`: of each layer in no block or module."""
    from dataclasses import replace

    from cnn_arch import layer_outputs

    first, *_ = requests = requested_features(args)
    if args.layer != "all":
        return requests
    return [replace(first, layer=name) for name in layer_outputs.outer(subject.bare)]


def progress(screen: Any, run: str, layer: str) -> Any:
    """A function that prints how many heads are fitted, now and then, where no bar can be drawn."""
    from launch.console import SOON_SECONDS, at_times

    tell = at_times(screen, soon=SOON_SECONDS)
    return lambda done, total: tell(f"{run} {layer}: {done} of {total} heads are fitted")


def _print(results: Sequence[Result], runs_made: Sequence[Run], reason: str, report: Path) -> None:
    from rich.console import Console

    from experiments.report import forms
    from experiments.report import transfer as transfer_report
    from launch.console import say

    console = Console()
    forms.to_terminal(transfer_report.table(results), console)
    best = transfer_report.ranked(results)[0]
    limit = transfer_report.MOST if best.several else transfer_report.NAMED
    if len(best.class_names) <= limit:
        forms.to_terminal(transfer_report.classes(best), console)
    for run in runs_made:
        say(console, f"a run with this head: {run.folder}")
    if reason and not runs_made:
        say(console, f"no run is made: {reason}")
    say(console, f"report: {report}")
