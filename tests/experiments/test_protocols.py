"""The papers' protocols as data: which passes, which scales."""

import pytest

from experiments import config as configs
from experiments.config import ConfigError
from experiments.testing import protocols
from experiments.testing.protocols import Pass, resolve
from input_pipeline import crops


def settings(crop=224, S=(0, 0), Q=0):
    config = configs.base()
    config.model = configs.model("vgg:D")
    config.data.image_size, config.data.S, config.test.Q = crop, S, Q
    return config


def scales(config, words, name="dense"):
    return tuple(dict.fromkeys(Q for part in resolve(name, config, words) for Q in part.scales))


def test_the_default_scale_is_the_config_s():
    assert scales(settings(), None) == (224,)
    assert scales(settings(Q=384), None) == (384,)
    assert scales(settings(Q=384), "256,512,256") == (256, 512)


@pytest.mark.parametrize(
    ("S", "expected"),
    [
        ((256, 256), (224, 256, 288)),  # VGG's Table 4, printed
        ((384, 384), (352, 384, 416)),
        ((256, 512), (256, 384, 512)),
        ((0, 0), (224, 256)),  # trained at the crop's size: nothing is tested below it
    ],
)
def test_vgg_s_scales_follow_from_how_a_run_was_trained(S, expected):
    assert scales(settings(S=S), "vgg") == expected


def test_scales_keep_their_ratio_to_the_crop():
    assert scales(settings(), "resnet") == (224, 256, 384, 480, 640)
    assert scales(settings(crop=32), "resnet") == (32, 37, 55, 69, 91)
    assert scales(settings(crop=32, S=(37, 73)), "vgg") == (37, 55, 73)
    assert scales(settings(), None, "googlenet_144") == (256, 288, 320, 352)


def test_views_and_their_number_are_the_papers():
    config = settings(Q=256)
    shown = {}
    for name in protocols.PROTOCOLS:
        passes = resolve(name, config)
        views = [part.view(224, square=False) for part in passes]
        shown[name] = sum(
            len(view.places(375, 500)) * (2 if part.mirror else 1)
            for part, view in zip(passes, views, strict=True)
        )
    assert shown == {
        "center": 1,
        "ten_crop": 10,
        "dense": 2,
        "multi_crop": 50,
        "dense+multi_crop": 52,
        "googlenet_144": 144,
    }
    assert len(resolve("multi_crop", config, "256,384,512")) == 3  # 150 crops
    both = resolve("dense+multi_crop", config, "256,384")
    assert [part.name for part in both] == [
        "dense-Q256",
        "dense-Q384",
        "multi_crop-Q256",
        "multi_crop-Q384",
    ]


def test_alexnet_s_ten_crops_are_of_its_square():
    part = Pass("ten_crop", (256,), True)
    assert part.view(224, square=True) == crops.TenCropView(crop=224, Q=256, square=True)
    assert part.view(224, square=False) == crops.TenCropView(crop=224, Q=256)


def test_flip_is_of_the_centre_only():
    (part,) = resolve("center", settings(), flip=True)
    assert (part.mirror, part.name) == (True, "center_flip-Q224")
    assert not resolve("center", settings())[0].mirror
    with pytest.raises(ConfigError, match="dense shows mirrors as it is"):
        resolve("dense", settings(), flip=True)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("densee", None, "did you mean 'dense'"),
        ("10crop", None, "known: center, ten_crop"),
        ("dense", "256,", "expected pixels, such as 256,288,320, or vgg or resnet"),
        ("dense", "-3", "expected pixels"),
        ("dense", "200", "test scale 200 is smaller than the crop, data.image_size=224"),
        ("googlenet_144", "200,256", "test scale 200"),
    ],
)
def test_what_can_not_be_tested_says_why(name, words, said):
    with pytest.raises(ConfigError, match=said):
        resolve(name, settings(), words)
