"""How publishers prepare the images that their weights are tested on, from `preparation.csv`.

A line of the table is one published file, known by the first digits of its SHA-256, or the rule for
all other weights of a naming and an architecture, where it says so with a number of classes. Each
line names its source.
"""

import csv
import functools
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, cast

_Three = tuple[float, float, float]
Kernel = Literal["bilinear", "bicubic", "opencv_bilinear"]


@dataclass(frozen=True)
class Preprocessing:
    """How a source prepared the images that it tested its networks with."""

    weights: str  # the published file, if it is a known one; else ''
    colour_order: Literal["RGB", "BGR"]  # of the source's own images; networks here take RGB
    mean: _Three  # subtracted from pixels from 0 to 255, in the order R, G, B
    std: _Three  # divisor after that
    crop: int  # height and width of the central crop, in pixels
    short_side: int  # of the image it is cut from, in pixels; equal to `crop` where nothing is cut
    warp: bool  # whether that image is scaled to a square of that side, whatever the aspect
    resize: Kernel  # 'bilinear' and 'bicubic' are Pillow's
    source: str  # where all this was read


def find(arch: str, naming: str, sha256: str = "", classes: int = 0) -> Preprocessing | None:
    """The line for weights of an architecture; None where the table has none.

    sha256: of the weights file, in hexadecimal digits, or ''. classes: of the network; 0 finds only
    lines for any number.
    """
    lines = [
        line
        for line in _lines()
        if line["naming"] == naming
        and fnmatchcase(arch, line["arch"])
        and line["classes"] in ("", str(classes))
    ]
    published = [line for line in lines if line["sha256"] and sha256.startswith(line["sha256"])]
    chosen = published or [line for line in lines if not line["sha256"]]
    if not chosen:
        return None
    line = chosen[0]
    return Preprocessing(
        weights=line["weights"] if published else "",
        colour_order=cast(Literal["RGB", "BGR"], line["colour_order"]),
        mean=cast(_Three, tuple(map(float, line["mean"].split()))),
        std=cast(_Three, tuple(map(float, line["std"].split()))),
        crop=int(line["crop"]),
        short_side=int(line["short_side"]),
        warp=line["warp"] == "yes",
        resize=cast(Kernel, line["resize"]),
        source=line["source"],
    )


@functools.cache
def _lines() -> tuple[dict[str, str], ...]:
    with Path(__file__).with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))
