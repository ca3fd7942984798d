"""The sizes at which a paper's study is reproduced.

A study's config is its paper's. A profile changes data, sizes, width and length, and never the
rows, their seeding or their tests. Sizes in pixels keep the paper's ratio to the crop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from experiments.config.errors import ConfigError, one_of
from experiments.config.keys import base
from experiments.config.overrides import override
from experiments.config.study import arguments
from input_pipeline import crops
from input_pipeline.sources import is_streamed

PROFILES = {
    "demo": "scikit-learn's 1,797 handwritten digits, narrow nets, minutes on two CPU cores",
    "cifar": "CIFAR-10 (or the small images that the paper itself used)",
    "folder": "any folder of images ({train,val}/CLASS/*), at a small crop (--size)",
    "paper": "as printed: the paper's data, sizes, widths and iterations",
}


@dataclass(frozen=True)
class Profile:
    """A profile for one study."""

    name: str
    crop: int  # side of the network's input, pixels
    paper_crop: int
    data: str = "folder"  # the `data.name` of encoded images, for the profiles folder and paper

    def side(self, pixels: int) -> int:
        """A size of the paper, scaled by this crop over the paper's; both in pixels."""
        return crops.in_ratio(pixels, self.crop, self.paper_crop)

    def adapt(self, config: ConfigDict, **changes: Mapping[str, Any]) -> ConfigDict:
        """A paper's config at this profile: with its images, and then with `changes[name]`.

        Data that are kept on the device get the default view and colour, since others need encoded
        images. A profile without changes is the paper's config on other data.
        """
        adapted = ConfigDict(config.to_dict())
        adapted.data.image_size = self.crop
        if self.name in ("demo", "cifar"):
            usual = base().data
            adapted.data.update(name="digits" if self.name == "demo" else "cifar10")
            adapted.data.update(view=usual.view, colour=usual.colour)
            adapted.data.mirror = bool(adapted.data.mirror) and self.name == "cifar"
        elif self.name == "folder" or is_streamed(adapted.data.name):
            adapted.data.name = self.data
        return override(adapted, changes.get(self.name, {}), f"profile {self.name}")


def of(arg: str | None, paper_crop: int = crops.IMAGENET_CROP, **crop: int) -> Profile:
    """The profile that the argument of a study's `get_config` names, see `chosen`."""
    args = arguments(arg, profile="paper", crop="", data="folder")
    return chosen(args, paper_crop, **crop)


def chosen(args: Mapping[str, str], paper_crop: int = crops.IMAGENET_CROP, **crop: int) -> Profile:
    """The profile that a study's arguments name: `profile`, `crop` and `data`.

    crop: the default crop of each profile where it is not the paper's, pixels. Raises ConfigError
    for an unknown profile, and for a crop that is no size.
    """
    name = args["profile"]
    one_of(name, PROFILES, "profile")
    text = args["crop"] or str(crop.get(name, paper_crop))
    if not text.isdecimal() or not 8 <= int(text) <= 1024:
        raise ConfigError(f"crop={text}: expected a number of pixels from 8 to 1024")
    return Profile(name, int(text), paper_crop, args["data"])
