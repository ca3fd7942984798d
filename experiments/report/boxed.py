"""Images with boxes drawn on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.report.picture import drawn_text
from experiments.runs.runs import RunError
from input_pipeline.whole_files import whole_file

LEAST = 400  # pixels that the short side of a drawing has, at least
# Of the boxes in turn: blue, orange, green, purple, red; each is told from the others by any eye.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")


def boxed(image: np.ndarray, boxes: np.ndarray, texts: Sequence[str]) -> Image.Image:
    """An image with boxes and a text at each, the first ones on top.

    image: (H, W, 1 or 3) uint8; a small one is enlarged by a whole number. boxes: (n, 4), left,
    top, right and bottom in its pixels; what lies beyond the image is not seen. texts: '' for none.
    """
    scale = -(-LEAST // min(image.shape[:2]))
    enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
    drawing = Image.fromarray(np.broadcast_to(enlarged, (*enlarged.shape[:2], 3)).copy())
    pen, short = ImageDraw.Draw(drawing), min(drawing.size)
    width, size = max(3, short // 120), max(12, short // 28)
    font = ImageFont.load_default(size)
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(boxes))]
    for box, colour in reversed(list(zip(boxes * scale, colours, strict=True))):
        left, top, right, bottom = np.rint(box).astype(int).tolist()
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, colour, width)
    occupied: list[tuple[float, float, float, float]] = []
    for box, colour, text in zip(boxes * scale, colours, texts, strict=True):
        if not text:
            continue
        text = drawn_text(text)
        across, down = pen.textbbox((0, 0), text, font=font)[2:]
        place = _free((across + 6, down + 6), box, drawing.size, occupied)
        occupied.append(place)
        pen.rectangle(place, colour)
        pen.text((place[0] + 3, place[1] + 3), text, "white", font)
    return drawing


def _free(
    size: tuple[float, float],
    box: np.ndarray,
    image_size: tuple[int, int],
    occupied: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Where a text of this size goes: above its box, or below what is written there already."""
    (across, down), (width, height) = size, image_size
    left = float(np.clip(box[0], 0, max(0, width - across)))
    top = float(np.clip(box[1] - down, 0, max(0, height - down)))
    for _ in occupied:
        hit = [t for t in occupied if t[0] < left + across and left < t[2] and t[1] < top + down]
        hit = [t for t in hit if top < t[3]]
        if not hit:
            break
        top = max(t[3] for t in hit)
    return left, top, left + across, top + down


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture, whose folder is made. Raises RunError where it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            picture.save(stream, format="PNG")
    except OSError as error:
        raise RunError(f"the picture {path} can't be written: {error}") from error
