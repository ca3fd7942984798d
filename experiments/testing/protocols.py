"""How the papers test a network: which views of an image are shown, and what is averaged.

A protocol is one or several passes over the test images. Each pass gives every image one posterior
distribution; a protocol's is the mean of its passes'. Sizes are the papers' at a crop of 224, and
are carried to other crops in ratio.
"""

from dataclasses import dataclass

import ml_collections

from experiments.config import ConfigError, one_of
from input_pipeline import crops

# Name -> what it is. The soft-max posteriors of crops are averaged, as all these papers say.
PROTOCOLS = {
    "center": "the central crop of the image scaled to short side Q; with flip, its mirror too",
    "ten_crop": "the four corner crops and the central one, and their mirrors: the mean of ten "
    "soft-max outputs (AlexNet section 4.1; there of the central square of side Q, as for runs "
    "trained on it, elsewhere of the whole scaled image)",
    "dense": "the network made fully convolutional over the whole image at short side Q: class "
    "scores averaged over the map, then the soft-max; the mean of the image's and its mirror's "
    "posteriors (VGG section 3.2)",
    "multi_crop": "a regular 5x5 grid of crops and their mirrors, 50 a scale: the mean of their "
    "soft-max outputs (VGG section 3.2)",
    "dense+multi_crop": "the mean of these two protocols' posteriors (VGG section 4.3)",
    "googlenet_144": "at short sides 256, 288, 320 and 352 three squares, of each its corners, its "
    "centre and itself shrunk to a crop, and their mirrors: the mean of 144 soft-max outputs "
    "(GoogLeNet section 7)",
}
# Words for several scales Q, whose posteriors are averaged.
SCALES = {
    "vgg": "S-32, S and S+32 of a run trained at scale S; the lowest, the middle and the highest "
    "of one trained at several (VGG section 4.2); none below the crop",
    "resnet": "224, 256, 384, 480 and 640 (ResNet section 3.4)",
}


@dataclass(frozen=True)
class Pass:
    """One look at every test image."""

    kind: str  # center, ten_crop, dense, multi_crop or googlenet_144
    scales: tuple[int, ...]  # short sides of the scaled image, pixels; one but for googlenet_144
    mirror: bool  # whether mirrors are shown too

    @property
    def name(self) -> str:
        """For files: `dense-Q256`."""
        flip = "_flip" if self.kind == "center" and self.mirror else ""
        return f"{self.kind}{flip}-Q{'_'.join(map(str, self.scales))}"

    def view(self, crop: int, *, square: bool = False, warp: bool = False) -> crops.TestView:
        """What is shown of an image. DataError: a crop is larger than the scaled image.

        square: the network was trained on central squares. warp: its images are scaled to a square
        whatever their aspect.
        """
        if self.kind == "googlenet_144":
            return crops.MultiSquareView(crop=crop, scales=self.scales, warp=warp)
        (Q,) = self.scales
        if self.kind == "ten_crop":
            return crops.TenCropView(crop=crop, Q=Q, square=square, warp=warp)
        if self.kind == "dense":
            return crops.WholeView(Q=Q, warp=warp)
        if self.kind == "multi_crop":
            return crops.GridView(crop=crop, Q=Q, warp=warp)
        return crops.CentreView(crop=crop, Q=Q, warp=warp)


def check(name: str, scales: str | None = None, *, flip: bool = False) -> None:
    """Raises ConfigError where `resolve` would, whatever the run."""
    one_of(name, PROTOCOLS, "protocol")
    if scales is not None and scales not in SCALES:
        _numbers(scales)
    if flip and name != "center":
        raise ConfigError(f"--flip is for the protocol center; {name} shows mirrors as it is")


def resolve(
    name: str,
    config: ml_collections.ConfigDict,
    scales: str | None = None,
    *,
    flip: bool = False,
) -> tuple[Pass, ...]:
    """The passes of the protocol called `name` for a run of `config`.

    scales: `256,288,320` or a word of `SCALES`; by default the config's test scale, and for
    googlenet_144 its paper's. ConfigError: no such protocol or scales, or one below the crop.
    """
    check(name, scales, flip=flip)
    crop = config.data.image_size
    sides = _sides(name, config, scales)
    small = [Q for Q in sides if crop > Q]
    if small:
        raise ConfigError(
            f"test scale {small[0]} is smaller than the crop, data.image_size={crop}; expected "
            f"scales of at least {crop}"
        )
    if name == "googlenet_144":
        return (Pass(name, sides, True),)
    kinds = name.split("+")
    mirror = flip or name != "center"
    return tuple(Pass(kind, (Q,), mirror) for kind in kinds for Q in sides)


def _sides(name: str, config: ml_collections.ConfigDict, scales: str | None) -> tuple[int, ...]:
    crop, (low, high) = config.data.image_size, config.data.S
    if scales is None and name == "googlenet_144":
        return tuple(crops.in_ratio(Q, crop) for Q in (256, 288, 320, 352))
    if scales is None:
        return (config.test.Q or crop,)
    if scales == "resnet":
        return tuple(crops.in_ratio(Q, crop) for Q in (224, 256, 384, 480, 640))
    if scales == "vgg":
        step = crops.in_ratio(32, crop)
        low, high = (low, high) if high else (crop, crop)
        sides = (low, (low + high) // 2, high) if low < high else (low - step, low, low + step)
        return tuple(dict.fromkeys(max(crop, Q) for Q in sides))
    return _numbers(scales)


def _numbers(scales: str) -> tuple[int, ...]:
    words = scales.split(",")
    if not all(word.isdecimal() and 0 < int(word) <= 10_000 for word in words):
        raise ConfigError(
            f"scales {scales!r}; expected pixels, such as 256,288,320, or {' or '.join(SCALES)}"
        )
    return tuple(dict.fromkeys(map(int, words)))


def listed(text: str) -> list[str]:
    """The protocols in `dense,multi_crop`, each once."""
    return list(dict.fromkeys(text.split(",")))
