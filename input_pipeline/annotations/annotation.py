"""An annotation as it is read, before it is matched with an image."""

import dataclasses
from typing import NamedTuple


class Object(NamedTuple):
    """An object as an annotation has it."""

    where: str  # for messages
    class_name: str
    # Left, top, right, bottom, in the annotation's own pixels; a text need not be a number.
    edges: tuple[str | float, str | float, str | float, str | float]


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The objects of one image."""

    where: str  # for messages
    # The known parts of the image's path; the last is its name, with or without a suffix.
    path: tuple[str, ...]
    objects: tuple[Object, ...] = ()
    # Added to the edges, so that they lie between pixels.
    shift: tuple[int, int, int, int] = (0, 0, 0, 0)
    size: tuple[str, str] | None = None  # height and width of the image, as the annotation has them
    error: str = ""  # why the annotation cannot be used
    database: str | None = None  # the XML file's, where how it counts pixels is a guess
