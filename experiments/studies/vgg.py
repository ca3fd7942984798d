"""VGG on ImageNet: every net of the paper's tables (VGG paper, sections 3 and 4).

    cnn-depth table vgg-3 --profile demo
    cnn-depth sweep vgg:demo
    cnn-depth sweep vgg:data=tfds:imagenet2012 --parallel 8

The argument is the profile, `paper` by default; crop= is the side of the network's input, and
data= says where the images are, as in `resnet`. The paper's recipe: SGD with momentum 0.9 in
batches of 256, weight decay 5e-4, dropout, rate 0.01 divided by ten when the error stalls, thrice,
370k iterations; random crops at scale S, mirrors, AlexNet's colour shifts, the mean colour taken
off. A starts from normal weights; B to E take A's conv1_1, conv2_1, conv3_1, conv3_2 and fully
connected layers, the rest random, at the full rate; S=384 starts from S=256 at a tenth of the rate,
and [256;512] from S=384, all layers. Rows are named `D 384`; `D [256;512] FC` trains nothing but
fully connected layers (section 4.4).

What the paper leaves open: it prints a *variance* of 1e-2 for the initial weights; the deviation
0.01 is AlexNet's and what He et al. 2015 report of it. S is drawn uniformly from whole pixels. The
370k iterations are said once, in general, and serve for S=384 and the jitter too, which are given
two drops, so that all nets end at 1e-5; the rate of the jittered nets is not said, and is that of
S=384. Weights of plateaus are judged on 1% of the training images, which are held out. Which A's
"first four" convolutions are is decided by stage (B to E have no layer like A's second).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles

# Initial weights are He's and inputs are divided by their deviation: the paper's normal weights
# need its width, its unscaled inputs and far more steps. The crop is 64 for the dense test, whose
# class map has a place every 32 pixels: from a crop of 32, S=384 would give it one place only.
SMALL = {
    "model.init": "he",
    "data.divide_by_std": True,
    "data.holdout": 0.1,
    "train.steps": 0,
    "train.batch_size": 32,
}
CHANGES = {
    "demo": {
        **SMALL,
        "model.width": 0.125,
        "schedule.lr": 0.003,
        "schedule.patience": 2,
        "train.batch_size": 16,
        "train.epochs": 8.0,
    },
    "cifar": {**SMALL, "model.width": 0.25, "train.batch_size": 128, "train.epochs": 60.0},
    "folder": {**SMALL, "model.width": 0.25, "train.epochs": 40.0},
}
_profile = partial(profiles.of, demo=64, cifar=64, folder=64)


def get_config(arg: str | None = None) -> ConfigDict:
    profile = _profile(arg)
    config = configs.base()
    config.model = configs.model("vgg:A")
    config.data.update(name="folder", image_size=224, mirror=True, colour="pca_public")
    config.data.update(S=_scales(profile, "256"), normalise="per_channel", holdout=0.01)
    config.optimizer.weight_decay = 5e-4
    config.schedule.update(kind="plateau", lr=0.01, drops=3)
    config.train.update(batch_size=256, steps=370_000)
    config.test.Q = profile.side(256)
    config.checkpoint.every_seconds = 600.0
    return profile.adapt(config, **CHANGES)


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    profile, config = _profile(arg), get_config(arg)

    def row(net: str, scale: str, **more: Any) -> dict[str, Any]:
        middle = 384 if scale == "[256;512]" else int(scale)
        sizes = {"data.S": _scales(profile, scale), "test.Q": profile.side(middle)}
        return {"model.arch": f"vgg:{net}", **sizes, **more}

    slower = {"schedule.lr": config.schedule.lr / 10, "schedule.drops": config.schedule.drops - 1}
    for net in ("A", "A-LRN", "B-5x5"):
        yield f"{net} 256", row(net, "256")
    for net in ("B", "C", "D", "E"):
        yield f"{net} 256", row(net, "256", seed_from="A 256")
    for net in ("C", "D", "E"):
        yield f"{net} 384", row(net, "384", seed_from=f"{net} 256", **slower)
        yield f"{net} [256;512]", row(net, "[256;512]", seed_from=f"{net} 384", **slower)
    frozen = {"optimizer.freeze": ("conv*",), **slower}
    yield "D [256;512] FC", row("D", "[256;512]", seed_from="D 384", **frozen)


def _scales(profile: profiles.Profile, scale: str) -> tuple[int, int]:
    """`256`, `384` or `[256;512]` in ratio to the crop."""
    low, _, high = scale.strip("[]").partition(";")
    return profile.side(int(low)), profile.side(int(high or low))
