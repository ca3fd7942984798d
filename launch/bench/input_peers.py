"""The same views of the same images the way others make them, as iterators of batches.

`Work` says which image each example of the stream is and what is shown of it, so that every peer
decodes the same files at the same S and in the same order. A peer is written as its users write it
and given its best settings: tf.data may return batches out of order, as it likes.

PyTorch and Grain run in a process of their own: PyTorch's workers are forked, which TensorFlow does
not survive, and torchvision crashed beside it.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import crops, jpeg, order
from launch import devices
from launch.bench import timing
from launch.bench.process import Answer, Process
from launch.bench.timing import Timing

# ImageNet's channel means and deviations on the 0-255 scale, as the Flax example takes them off.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class Work:
    """What is shown of each of the first N examples of the stream.

    Arrays are int32; boxes and windows are top, left, height, width.
    """

    files: tuple[str, ...]  # of the images
    crop: int
    picks: np.ndarray  # (N,): which file an example is
    scaled: np.ndarray  # (N, 2): height and width of the whole scaled image
    offsets: np.ndarray  # (N, 2): row and column of the crop in it
    boxes: np.ndarray  # (N, 4): the part of the stored image that is shown
    windows: np.ndarray  # (N, 4): the part that has to be decoded for it


def work(
    files: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    view: crops.TrainView,
    seed: int,
    count: int,
) -> Work:
    """The first `count` examples of a Stream with this seed over images of these sizes."""
    indices, epochs = order.training(seed, len(files), 0, count)
    scaled, offsets, boxes, windows = [], [], [], []
    for index, epoch in zip(indices.tolist(), epochs.tolist(), strict=True):
        height, width = sizes[index]
        place = view.place(height, width, order.words(seed, epoch, index, view.WORDS))
        scaled.append(place.scaled)
        offsets.append(place.offset)
        boxes.append([round(edge) for edge in place.box])
        windows.append(jpeg.window(place.box, place.size, height, width, beyond=view.BEYOND_BOX))
    arrays = [np.array(rows, np.int32) for rows in (scaled, offsets, boxes, windows)]
    return Work(tuple(files), view.crop, indices, *arrays)


def timed(
    batches: Iterator[Any],
    warm: int,
    count: int,
    size: int,
    threads: int,
    core_seconds: Callable[[], float | None] = time.process_time,
) -> Timing:
    """The time of laps of `count` batches of `size`, after `warm` others that touch all memory.

    A lap has the same examples for everyone. The pipeline goes on beyond the last one, so that as
    much is under way at the end as at the start. `core_seconds()` gives the processor time so far,
    None if unknown.
    """

    def take(number: int) -> int:
        return sum(1 for _ in itertools.islice(batches, number))

    take(warm)
    return timing.laps(lambda: take(count), count * size, watched(threads, core_seconds))


def watched(
    threads: int,
    core_seconds: Callable[[], float | None] = time.process_time,
    *,
    waits: bool = False,
) -> timing.Watch:
    """A watch of work by so many threads."""
    return timing.Watch(core_seconds, min(threads, devices.usable_cores()), waits=waits)


# ---------------------------------------------------------------------------- TensorFlow


def _batches(dataset: Any, function: Callable[..., Any], threads: int, batch: int) -> Iterator[Any]:
    """The mapped dataset in batches, endlessly."""
    tf = jpeg.tensorflow()
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = False
    batches = dataset.repeat().map(function, num_parallel_calls=threads)
    batches = batches.batch(batch, drop_remainder=True).prefetch(2).with_options(options)
    return batches.as_numpy_iterator()


def cropped_decoding(task: Work, threads: int, batch: int) -> Iterator[Any]:
    """Decode only the windows that our view decodes, of files in memory; one number an image."""
    tf = jpeg.tensorflow()
    contents = tf.constant([Path(file).read_bytes() for file in task.files])

    def decode(pick: Any, window: Any) -> Any:
        image = tf.image.decode_and_crop_jpeg(
            contents[pick], window, channels=3, dct_method="INTEGER_ACCURATE"
        )
        return image[0, 0, 0]

    examples = tf.data.Dataset.from_tensor_slices((task.picks, task.windows))
    return _batches(examples, decode, threads, batch)


def plain_tf_data(task: Work, threads: int, batch: int) -> Iterator[Any]:
    """Decode the whole image, scale it to S with antialiasing, cut out a random crop; uint8."""
    tf = jpeg.tensorflow()
    files = tf.constant(task.files)

    def view(pick: Any, scaled: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(files[pick]), channels=3)
        image = tf.image.resize(image, scaled, antialias=True)
        return tf.cast(tf.image.random_crop(image, [task.crop, task.crop, 3]), tf.uint8)

    examples = tf.data.Dataset.from_tensor_slices((task.picks, task.scaled))
    return _batches(examples, view, threads, batch)


def flax_example(task: Work, threads: int, batch: int) -> Iterator[Any]:
    """A random area as the ImageNet example of Flax takes it, with its own draws.

    Bicubic without antialiasing, mirrored and normalised on the host, float32.
    """
    tf = jpeg.tensorflow()
    files = tf.constant(task.files)
    mean, deviation = tf.constant(MEAN), tf.constant(DEVIATION)
    size = (task.crop, task.crop)

    def area(content: Any, shape: Any) -> Any:
        start, length, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([start[:2], length[:2]], 0)
        return tf.image.decode_and_crop_jpeg(content, window, channels=3)

    def centre(content: Any, shape: Any) -> Any:
        side = tf.cast(0.875 * tf.cast(tf.reduce_min(shape[:2]), tf.float32), tf.int32)
        start = (shape[:2] - side + 1) // 2
        window = tf.concat([start, [side, side]], 0)
        return tf.image.decode_and_crop_jpeg(content, window, channels=3)

    def view(pick: Any) -> Any:
        content = tf.io.read_file(files[pick])
        shape = tf.image.extract_jpeg_shape(content)
        image = area(content, shape)
        no_area_found = tf.reduce_all(tf.equal(tf.shape(image)[:2], shape[:2]))
        image = tf.cond(no_area_found, lambda: centre(content, shape), lambda: image)
        image = tf.image.resize(image[None], size, method=tf.image.ResizeMethod.BICUBIC)[0]
        image = tf.image.random_flip_left_right(tf.reshape(image, [*size, 3]))
        return (image - mean) / deviation

    examples = tf.data.Dataset.from_tensor_slices(task.picks)
    return _batches(examples, view, threads, batch)


# ----------------------------------------------------------------------- PyTorch and Grain


def loaders_process(tasks: dict[str, Work], threads: int, batch: int) -> Process:
    """The loaders of LOADERS in a process of their own, which answers as `start_loaders` says.

    Raises PeerEnded where it can't go on.
    """
    code = "from launch.bench import input_peers as p, process; process.serve(p.start_loaders)"
    return Process("the loaders", code, {"OMP_NUM_THREADS": "1"}, tasks, threads, batch)


def start_loaders(tasks: dict[str, Work], threads: int, batch: int) -> tuple[None, Answer]:
    """No description, and the function that answers with the time of laps of `count` batches, by
    task and name in LOADERS."""

    def answer(task: str, loader: str, warm: int, count: int) -> Timing:
        load, resize = LOADERS[loader]
        batches = load(_Views(tasks[task], resize, area=task == "area"), threads, batch)
        elapsed = timed(batches, warm, count, batch, threads, _with_children)
        del batches  # its workers leave
        gc.collect()
        return elapsed

    return None, answer


def _data_loader(views: _Views, workers: int, batch: int) -> Iterator[Any]:
    """PyTorch's DataLoader with so many worker processes."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        views, batch_size=batch, num_workers=workers, drop_last=True
    )
    return iter(loader)


def _grain(views: _Views, _: int, batch: int) -> Iterator[Any]:
    """Grain with its default of 16 threads: decoding and scaling leave Python's lock to others.

    It was tried with a thread a core, and with processes: none was faster in both views.
    """
    grain = importlib.import_module("grain")
    dataset = grain.MapDataset.source(views).to_iter_dataset().batch(batch, drop_remainder=True)
    return iter(dataset)


Shape = tuple[int, int]


def _by_pillow(file: str, box: Sequence[int] | None, size: Shape) -> np.ndarray:
    """A part (top, left, height, width) of an image, or all of it, scaled to (height, width)."""
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if box is not None:
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
    return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _by_opencv(file: str, box: Sequence[int] | None, size: Shape) -> np.ndarray:
    """As `_by_pillow`, decoded by libjpeg-turbo; bilinear without antialiasing, as OpenCV's is."""
    cv2, simplejpeg = (importlib.import_module(name) for name in ("cv2", "simplejpeg"))
    cv2.setNumThreads(0)  # a worker is one of several
    image = simplejpeg.decode_jpeg(Path(file).read_bytes())
    if box is not None:
        top, left, height, width = box
        image = image[top : top + height, left : left + width]
    resized: np.ndarray = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def _by_torchvision(file: str, box: Sequence[int] | None, size: Shape) -> np.ndarray:
    """As `_by_pillow`, by torchvision's decoder and its transforms v2, with antialiasing."""
    io = importlib.import_module("torchvision.io")
    v2 = importlib.import_module("torchvision.transforms.v2.functional")
    image = io.decode_jpeg(io.read_file(file), mode=io.ImageReadMode.RGB)
    if box is not None:
        image = v2.crop(image, *box)
    resized: np.ndarray = v2.resize(image, list(size), antialias=True).permute(1, 2, 0).numpy()
    return resized


class _Views:
    """A map-style data set: example k -> its view, (crop, crop, 3) uint8; endless."""

    def __init__(self, task: Work, resize: Callable[..., np.ndarray], *, area: bool):
        self.task, self.resize, self.area = task, resize, area

    def __len__(self) -> int:
        return 2**40  # after the last example the first one follows again

    def __getitem__(self, k: int) -> np.ndarray:
        task, crop = self.task, self.task.crop
        k %= len(task.picks)
        file = task.files[task.picks[k]]
        if self.area:  # as torchvision's RandomResizedCrop
            return self.resize(file, task.boxes[k].tolist(), (crop, crop))
        # As its Resize, then RandomCrop.
        top, left = task.offsets[k].tolist()
        image = self.resize(file, None, tuple(task.scaled[k].tolist()))
        return np.ascontiguousarray(image[top : top + crop, left : left + crop])


# Peer -> how it loads (views, workers, batch), and the function that decodes and scales.
LOADERS: dict[str, tuple[Callable[[_Views, int, int], Iterator[Any]], Callable[..., np.ndarray]]]
LOADERS = {
    "torch": (_data_loader, _by_pillow),
    "opencv": (_data_loader, _by_opencv),
    "torchvision": (_data_loader, _by_torchvision),
    "grain": (_grain, _by_opencv),
}


def _with_children() -> float | None:
    """Processor time of this process and its live children, in seconds; None if unknown."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            total += timing.process_seconds(child.pid or 0)
        except OSError:
            return None
    return total
