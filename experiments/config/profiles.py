"""The sizes at which a paper's study is reproduced.

A study's config is its paper's; a profile changes data, sizes, width and length, and never the
rows, what seeds what, or how they are tested. Sizes in pixels keep the paper's ratio to the crop.
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
        """A size of the paper's, in ratio to the crop."""
        return crops.in_ratio(pixels, self.crop, self.paper_crop)

    def adapt(self, config: ConfigDict, **changes: Mapping[str, Any]) -> ConfigDict:
        """A paper's config at this profile: the images it is about, then `changes[name]`.

        What only encoded images can be (views, colours) gives way on data that are kept on the
        device. A profile without changes is the paper's on other data.
        """
        found = ConfigDict(config.to_dict())
        found.data.image_size = self.crop
        if self.name in ("demo", "cifar"):
            usual = base().data
            found.data.update(name="digits" if self.name == "demo" else "cifar10")
            found.data.update(view=usual.view, colour=usual.colour)
            found.data.mirror = bool(found.data.mirror) and self.name == "cifar"
        elif self.name == "folder" or is_streamed(found.data.name):
            found.data.name = self.data
        return override(found, changes.get(self.name, {}), f"profile {self.name}")


def of(arg: str | None, paper_crop: int = crops.IMAGENET_CROP, **crop: int) -> Profile:
    """The profile that the argument of a study's `get_config` names, see `chosen`."""
    given = arguments(arg, profile="paper", crop="", data="folder")
    return chosen(given, paper_crop, **crop)


def chosen(given: Mapping[str, str], paper_crop: int = crops.IMAGENET_CROP, **crop: int) -> Profile:
    """The profile that a study's arguments name: `profile`, `crop` and `data`.

    crop: of each profile, where it is not the paper's. Raises ConfigError where there is no such
    profile, and for a crop that is no size.
    """
    name = given["profile"]
    one_of(name, PROFILES, "profile")
    text = given["crop"] or str(crop.get(name, paper_crop))
    if not text.isdecimal() or not 8 <= int(text) <= 1024:
        raise ConfigError(f"crop={text}: expected a number of pixels from 8 to 1024")
    return Profile(name, int(text), paper_crop, given["data"])
