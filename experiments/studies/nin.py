"""Network in network on four sets of small images (NiN, section 4).

    cnn-depth table nin-1 --profile cifar
    cnn-depth train nin --row CIFAR-100
    cnn-depth table nin-5 --profile demo

The argument is the profile; `paper` and `cifar` are CIFAR-10, CIFAR-100, SVHN and MNIST at the
paper's length and at a shorter one; `demo` and `folder` show every net the one set that they have.
The paper's recipe: batches of 128, dropout after the first two blocks, weight decay, the rate
divided by ten twice when training stalls; CIFAR after global contrast normalisation and ZCA
whitening. `CIFAR-10 shifted` is trained on shifts and mirrors. `CIFAR-10 fc` has a linear layer in
place of global average pooling, with dropout before it or not (section 4.6).

What the paper leaves open is taken from its authors' github.com/mavenlin/cuda-convnet. Its
README.md trains for 260 epochs: 200, 30 at a tenth of the rate, and 30 at a hundredth. Momentum is
0.9, the rate is inside the velocity, and biases have twice the rate. NIN/svhn_params, like the
authors' model for Caffe, has the rate 0.1, a tenth of it in the last layer, and the weight decay
1e-4. All sets but CIFAR-100 have these here. NIN/cifar-100_params has the rate 0.02 in every layer
and the decay 5e-4. (The rate is `epsW` times the cost's `coeff` there, and the decay is `wc`
divided by `coeff`.)

Shifts are by up to 4 pixels. SVHN is its 73,257 training images without the extra ones; its local
contrast normalisation is not there, and the mean colour is taken off instead, as of MNIST, and both
are divided by their deviation. No net of this recipe was trained to its end here yet.

Of the net without dropout the paper prints the error only. Its rate here, 0.02, was chosen on
images held out of a fifth of CIFAR-10. With 0.1 all its class maps were zero for good after 600
steps. With 0.05, at half the width, they were after 400 steps; with 0.02 they were not.

`demo` and `folder` take the mean colour off, start from He's weights and normalise batches: narrow
nets of the paper's kind lose classes for good, whose map is zero on every image from the start.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles
from input_pipeline.crops import CIFAR_CROP

MNIST_CROP = 28
PLAIN = {"data.normalise": "per_channel", "data.divide_by_std": True}
SMALL = {
    **PLAIN,
    "model.init": "he",
    "model.inverted_dropout": True,
    "model.batch_norm": True,
    "data.holdout": 0.1,
    "optimizer.rates": (),
    "schedule.lr": 0.025,
    "train.batch_size": 32,
}
WITHOUT_DROPOUT = {"schedule.lr": 0.02}
CIFAR_100 = {
    "schedule.lr": 0.02,
    "optimizer.weight_decay": 5e-4,
    "optimizer.rates": (("*/bias", 2.0),),
}
CHANGES: dict[str, dict[str, Any]] = {
    "demo": {
        **SMALL,
        "model.width": 0.25,
        "train.epochs": 16.0,
        "train.validate_every_epochs": 2.0,
    },
    "cifar": {"train.steps": 40_000},
    "folder": {**SMALL, "model.width": 0.5, "train.epochs": 60.0},
}
_profile = partial(profiles.of, paper_crop=CIFAR_CROP, demo=16)


def get_config(arg: str | None = None) -> ConfigDict:
    profile = _profile(arg)
    config = configs.base()
    config.model = configs.model("nin:cifar10")
    config.data.update(name="cifar10", normalise="gcn_zca", holdout=0.0)
    config.optimizer.update(rates=_rates("cccp6"), lr_in_velocity=True)
    config.schedule.update(kind="steps", lr=0.1, milestones=(200 / 260, 230 / 260))
    config.train.update(batch_size=128, epochs=260.0)
    return profile.adapt(config, **CHANGES)


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    profile, config = _profile(arg), get_config(arg)

    def row(net: str, **more: Any) -> dict[str, Any]:
        return {"model.arch": f"nin:{net}", "data.name": _set(profile, net), **more}

    yield "CIFAR-10", {}
    yield "CIFAR-10 shifted", _shifted(profile)
    authors = bool(config.optimizer.rates)  # whether the recipe is theirs
    slower = WITHOUT_DROPOUT if authors else {}
    yield "CIFAR-10 without dropout", {"model.dropout": 0.0, **slower}
    for name, rate in (("fc", 0.0), ("fc dropout", 0.5)):
        head: dict[str, Any] = {"model.head": "fc", "model.head_dropout": rate}
        if authors:
            head["optimizer.rates"] = _rates("fc")
        yield f"CIFAR-10 {name}", head
    yield "CIFAR-100", row("cifar100", **(CIFAR_100 if authors else {}))
    yield "SVHN", row("svhn", **PLAIN)
    yield "MNIST", row("mnist", **PLAIN, **{"data.image_size": profile.side(MNIST_CROP)})


def _rates(last: str) -> tuple[tuple[str, float], ...]:
    """Factors of the rate for biases, and for the layer of this name."""
    return (("*/bias", 2.0), (f"{last}/*", 0.1))


def _set(profile: profiles.Profile, net: str) -> str:
    """The data set that a net of this name learns from."""
    return {"demo": "digits", "folder": profile.data}.get(profile.name, net)


def _shifted(profile: profiles.Profile) -> dict[str, Any]:
    """Encoded images are not padded: a crop of a larger image shifts as far."""
    by = profile.side(4)
    mirror = {"data.mirror": profile.name != "demo"}
    if profile.name == "folder":
        return {"data.S": (profile.crop + 2 * by,) * 2, "test.Q": profile.crop + 2 * by, **mirror}
    return {"data.pad": by, **mirror}
