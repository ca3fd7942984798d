"""Encoded images for tests, in memory."""

import io

import numpy as np

from input_pipeline.sources import Source


class Memory(Source):
    """Encoded images in memory; label i % 7. `broken` can't be read."""

    def __init__(self, contents, broken=()):
        self.contents, self.broken = contents, broken
        self.labels = np.arange(len(contents), dtype=np.int32) % 7

    def __len__(self):
        return len(self.contents)

    def read(self, i):
        if i in self.broken:
            raise OSError("a broken disk")
        return self.contents[i], int(self.labels[i])

    def where(self, i):
        return f"image-{i}"


def encoded(image, kind="JPEG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def without_tables(content):
    """A JPEG without its quantisation tables: plain from outside, and no decoder can read it."""
    at, segments = 2, [content[:2]]
    while content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] != 0xDB:
            segments.append(content[at:end])
        at = end
    return b"".join([*segments, content[at:]])


def contents(source):
    return [source.read(i) for i in range(len(source))]


def write_files(folder, files):
    """Files in a folder: by their names in it, bytes or text."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
