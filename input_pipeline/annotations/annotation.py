"""What an annotation says, before it is known of which image it is."""

import dataclasses
from typing import NamedTuple


class Object(NamedTuple):
    """An object as it is written down."""

    where: str  # for messages
    class_name: str
    # Left, top, right, bottom, in the annotation's own pixels; texts may be no numbers.
    edges: tuple[str | float, str | float, str | float, str | float]


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The objects of one image."""

    where: str  # for messages
    # The image's path, as much of it as is told; the last is its name, with or without a suffix.
    path: tuple[str, ...]
    objects: tuple[Object, ...] = ()
    # What is added to the edges as they are written, so that they lie between pixels.
    shift: tuple[int, int, int, int] = (0, 0, 0, 0)
    size: tuple[str, str] | None = None  # height and width of the image that it is given for
    error: str = ""  # why nothing of it can be used
    database: str | None = None  # that an XML file names, where its pixels are a guess
