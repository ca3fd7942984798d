"""Images turned as their EXIF orientation says."""

from input_pipeline import image_files
from input_pipeline.pixels import Pixels, ppm
from input_pipeline.sources.source import Wrapped


class Upright(Wrapped):
    """The same images; those that state an orientation are turned and handed on as PPM files."""

    def read(self, i: int) -> tuple[bytes, int]:
        content, label = self.source.read(i)
        if image_files.orientation(content) != 1:
            image = image_files.read_image(self.where(i), content=content, exif=True)
            content = ppm(image)
        return content, label

    def pixels(self, i: int) -> Pixels | None:
        pixels = self.source.pixels(i)
        return pixels if pixels is None or pixels.orientation == 1 else None
