"""Folders of Hugging Face's hub: a network, its classes, and how its images are prepared.

    config.json                 the network and the names of its classes
    preprocessor_config.json    the preparation of images
    model.safetensors           the tensors, named as by `huggingface`
    README.md                   a model card

A folder of timm's has no preprocessor_config.json: its config.json says both, in timm's words.

Those that are read come from strangers: every value is checked for its type and its bounds, and
nothing outside of the folder is read. The keys are those of transformers 5.24, of ResNetConfig
and of the image processors ConvNext, Bit, CLIP and ViT.
"""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from cnn_arch import weight_files
from cnn_arch.errors import WeightsError
from cnn_arch.network import Network
from cnn_arch.pretrained import Preprocessing
from cnn_arch.pretrained.preparation import Kernel
from cnn_arch.resnet import BLOCKS, BOTTLENECKS
from experiments.data import preprocessing
from experiments.text import visible
from input_pipeline.crops import CentreView

NAMING = "huggingface"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SEVERAL = "multi_label_classification"  # `problem_type` where an image may be of several classes
LARGEST = 64 << 20  # bytes of a JSON file
MOST_CLASSES = 1_000_000
LONGEST = 10_000  # pixels of a side
KERNELS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
WARPED_FROM = 384  # pixels: ConvNext's processor crops smaller images only
# Image processors that are read -> whether they crop the centre where their file does not say.
PROCESSORS = {"ConvNext": False, "Bit": True, "CLIP": True, "ViT": False}
# Steps of a processor that are understood; any other that a file asks for is refused.
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True)
class ModelFolder:
    """What a folder says of its network."""

    weights: Path  # the file of tensors
    arch: str
    options: dict[str, Any]  # of the architecture
    class_names: tuple[str, ...] | None  # by label; None where the folder has none
    images: Preprocessing | None  # None where the folder does not say
    naming: str | None = None  # None where the tensors tell
    several: bool = False  # whether an image may be of several classes

    def metadata(self) -> dict[str, Any]:
        """What the folder says, which goes before the defaults of an import."""
        class_names = {} if self.class_names is None else {"class_names": self.class_names}
        return {"options": self.options, "several": self.several, **class_names}


@dataclass(frozen=True)
class _Json:
    """A JSON object and the file it was read from; its methods check values."""

    path: Path
    content: Mapping[str, Any]

    def get(self, key: str, fits: Callable[[Any], bool], expected: str, default: Any = None) -> Any:
        """A value that fits, or the default where the key is missing or null."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        if not fits(value):
            self.refuse(key, value, expected)
        return value

    def flag(self, key: str, default: bool) -> bool:
        return cast(bool, self.get(key, lambda x: isinstance(x, bool), "true or false", default))

    def refuse(self, key: str, value: object, expected: str) -> NoReturn:
        actual = "missing" if value is None else f"{value!r:.100}"
        raise WeightsError(f"{self.path}: {visible(key):.100} is {actual}; expected {expected}.")


def read(folder: Path) -> ModelFolder:
    """What is in a folder as `save_pretrained` writes it, but for the tensors.

    Raises WeightsError, naming the file and the key, where a file is missing or leads out of the
    folder, or a value can't be used.
    """
    config = _read_json(folder, CONFIG)
    if config is None:
        raise WeightsError(f"{folder} is no folder of Hugging Face's: it has no {CONFIG}.")
    of_timm = "architecture" in config.content and "model_type" not in config.content
    arch, options = _timms_network(config) if of_timm else _network(config)
    weights = next(filter(None, (_inside(folder, name) for name in WEIGHTS)), None)
    if weights is None:
        raise WeightsError(f"{folder} has neither {' nor '.join(WEIGHTS)}.")
    if of_timm:
        return ModelFolder(weights, arch, options, None, _timms_images(config), "timm")
    processor = _read_json(folder, PROCESSOR)
    images = None if processor is None else _images(processor)
    several = config.content.get("problem_type") == SEVERAL
    return ModelFolder(weights, arch, options, _class_names(config), images, several=several)


def _inside(folder: Path, name: str) -> Path | None:
    """A file of the folder; None where there is none. Raises WeightsError if it leads elsewhere."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise WeightsError(
            f"{path} is a link out of its folder; `hf download` with --local-dir makes a folder "
            "without such links."
        )
    if not path.is_file():
        raise WeightsError(f"{path} is no regular file.")
    return path


def _read_json(folder: Path, name: str) -> _Json | None:
    path = _inside(folder, name)
    if path is None:
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} can't be read as JSON: {error}.") from error
    return _Json(path, content)


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_triple(value: Any, low: float, high: float) -> bool:
    is_list_of_three = isinstance(value, list) and len(value) == 3
    return is_list_of_three and all(_is_number(x, low, high) for x in value)


def _network(config: _Json) -> tuple[str, dict[str, Any]]:
    """The architecture and its options. The tensors tell how many maps there are."""
    config.get("model_type", lambda x: x == "resnet", "'resnet'")
    config.get("hidden_act", lambda x: x == "relu", "'relu'", "relu")
    if config.flag("downsample_in_first_stage", False):
        config.refuse("downsample_in_first_stage", True, "false")
    kinds = ("basic", "bottleneck")
    kind = config.get("layer_type", kinds.__contains__, "'basic' or 'bottleneck'")
    depths = {d: list(n) for d, n in BLOCKS.items() if (d in BOTTLENECKS) == (kind == "bottleneck")}
    choices = " or ".join(f"{n} (resnet:{d})" for d, n in depths.items())
    blocks = config.get(
        "depths", list(depths.values()).__contains__, f"{choices}, of {kind} layers"
    )
    in_first = config.flag("downsample_in_bottleneck", False)
    options = {"stride_in": "1x1" if in_first else "3x3"} if kind == "bottleneck" else {}
    return f"resnet:{next(d for d, n in depths.items() if n == blocks)}", options


TIMMS = {
    **{f"resnet{depth}": f"resnet:{depth}" for depth in BLOCKS},
    **{
        f"vgg{layers}{norm}": f"vgg:{variant}"
        for layers, variant in {11: "A", 13: "B", 16: "D", 19: "E"}.items()
        for norm in ("", "_bn")
    },
}


def _timms_network(config: _Json) -> tuple[str, dict[str, Any]]:
    """The architecture by timm's name for it. The tensors tell its options."""
    expected = f"one of {', '.join(TIMMS)}"
    name = config.get("architecture", lambda x: isinstance(x, str) and x in TIMMS, expected)
    if config.content.get("model_args"):
        config.refuse("model_args", config.content["model_args"], "none: they change the network")
    return TIMMS[name], {}


def _timms_images(config: _Json) -> Preprocessing:
    """How timm prepares images, by `create_transform(**resolve_model_data_config(model))`.

    Source: timm 1.0.31, `transforms_imagenet_eval` of timm/data/transforms_factory.py.
    """
    pretrained_cfg = config.get("pretrained_cfg", lambda x: isinstance(x, dict), "an object")
    images = _Json(config.path, pretrained_cfg)
    images.get("crop_mode", lambda x: x == "center", "'center'", "center")
    is_size = lambda x: isinstance(x, list) and len(x) == 3 and x[0] == 3 and x[1] == x[2]  # noqa: E731
    size = images.get("input_size", is_size, "3 channels of a square")[1]
    if type(size) is not int or not 0 < size <= LONGEST:
        images.refuse("input_size", size, f"1 to {LONGEST} pixels")
    is_part = partial(_is_number, low=0.01, high=1)
    part = images.get("crop_pct", is_part, "at least 0.01 and at most 1")
    kernels = tuple(KERNELS.values())
    kernel = images.get("interpolation", kernels.__contains__, " or ".join(kernels))

    def three(key: str, low: float) -> tuple[float, float, float]:
        fits = partial(_is_triple, low=low, high=1e3)
        first, second, third = images.get(key, fits, f"three numbers from {low:g} to 1000")
        return 255.0 * first, 255.0 * second, 255.0 * third

    tag = images.get("tag", lambda x: isinstance(x, str), "text", "no tag")
    return Preprocessing(
        weights=f"{config.content['architecture']}.{visible(tag):.100}",
        colour_order="RGB",
        mean=three("mean", -1e3),
        std=three("std", 1e-3),
        crop=size,
        short_side=math.floor(size / part),
        warp=False,
        resize=cast(Kernel, kernel),
        source=f"{CONFIG} of timm's, pretrained_cfg",
    )


def _class_names(config: _Json) -> tuple[str, ...] | None:
    """Names of classes by label. A name that several classes have gets the label too."""
    if config.content.get("id2label") is None:
        return None
    id2label = config.get("id2label", lambda x: isinstance(x, dict), "an object: label to name")
    if not 0 < len(id2label) <= MOST_CLASSES:
        config.refuse("id2label", f"{len(id2label)} classes", f"1 to {MOST_CLASSES} classes")
    names = [id2label.get(str(label)) for label in range(len(id2label))]
    for label, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            config.refuse(f"id2label.{label}", name, "a name in printable characters")
    count = Counter(names)
    return tuple(f"{n} ({label})" if count[n] > 1 else n for label, n in enumerate(names))


def _images(processor: _Json) -> Preprocessing:
    """How images are prepared."""
    is_extractor = "image_processor_type" not in processor.content
    key = "feature_extractor_type" if is_extractor else "image_processor_type"
    name = processor.get(key, lambda x: isinstance(x, str), "the name of an image processor")
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)
    if kind not in PROCESSORS:
        processor.refuse(key, name, f"the image processor of {', '.join(PROCESSORS)}")
    for step in processor.content:
        if step.startswith("do_") and processor.flag(step, False) and step not in STEPS:
            processor.refuse(step, True, "false: it is not known here")
    if not processor.flag("do_resize", True):
        processor.refuse("do_resize", False, "true")
    crops = processor.flag("do_center_crop", PROCESSORS[kind])
    warp = processor.content.get("size")
    warp = kind == "ViT" if not isinstance(warp, dict) else "shortest_edge" not in warp
    side = crop = _side(processor, "size", {"height", "width"} if warp else {"shortest_edge"})
    if kind == "ConvNext":
        if crops or warp:
            processor.refuse(*(("do_center_crop", True, "false") if crops else _NO_EDGE))
        warp = side >= WARPED_FROM
        is_part = partial(_is_number, low=0.01, high=1)
        part = processor.get("crop_pct", is_part, "at least 0.01 and at most 1", 224 / 256)
        side = side if warp else int(side / part)
    elif crops:
        crop = _side(processor, "crop_size", {"height", "width"})
        if crop > side:
            processor.refuse("crop_size", crop, f"at most {side}, the side of the scaled image")
    elif not warp:
        processor.refuse("do_center_crop", False, "true: networks here take squares")
    is_kernel = lambda x: type(x) is int and x in KERNELS  # noqa: E731
    kernel = KERNELS[processor.get("resample", is_kernel, "2 (bilinear) or 3 (bicubic)")]
    mean, std = _constants(processor)
    return Preprocessing(
        weights=processor.path.parent.resolve().name,
        colour_order="RGB",
        mean=mean,
        std=std,
        crop=crop,
        short_side=side,
        warp=warp,
        resize=cast(Kernel, kernel),
        source=f"{PROCESSOR}{crop_difference(side, crop, warp)}",
    )


_NO_EDGE = ("size", "a height and a width", "a shortest_edge")


def _side(processor: _Json, key: str, names: set[str]) -> int:
    """A side in pixels: one number, or an object with these sides, which are alike."""
    value = processor.content.get(key)
    sides = [value]
    if isinstance(value, dict):
        sides = list(value.values()) if set(value) == names else []
    first = sides[0] if sides else None
    if type(first) is not int or sides.count(first) < len(sides) or not 0 < first <= LONGEST:
        expected = " and ".join(sorted(names)) + (" alike" if len(names) > 1 else "")
        processor.refuse(key, value, f"{expected}, 1 to {LONGEST} pixels")
    return first


def _constants(processor: _Json) -> tuple[Any, Any]:
    """Mean and deviation on the scale of 0 to 255."""

    def three(key: str, low: float) -> list[float]:
        value = processor.content.get(key)
        values: list[Any] = value if isinstance(value, list) else [value] * 3
        if len(values) != 3 or not all(_is_number(x, low, 1e6) for x in values):
            processor.refuse(key, value, f"three numbers from {low:g} to 1e+06")
        return values

    scale = 1.0
    if processor.flag("do_rescale", True):
        is_factor = partial(_is_number, low=1e-6, high=1e6)
        factor = processor.get("rescale_factor", is_factor, "a number such as 1/255", 1 / 255)
        scale = 255.0 if factor == 1 / 255 else 1 / factor
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.flag("do_normalize", True):
        mean, std = three("image_mean", -1e6), three("image_std", 1e-6)
    return tuple(scale * x for x in mean), tuple(scale * x for x in std)


def crop_difference(side: int, crop: int, warp: bool) -> str:
    """How transformers, which rounds down, places a centred crop otherwise; '' if it does not.

    Here halves go to even, as in torchvision: it differs where 3, 7, 11, ... pixels are cut off.
    """
    if warp and (side - crop) % 4 != 3:
        return ""
    which = "all images" if (side - crop) % 4 == 3 else "some images that are not square"
    return f"; transformers crops {which} one pixel further up or left than is done here"


def config_of(
    network: Network,
    tensors: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    several: bool = False,
) -> str:
    """config.json of a ResNet with these tensors.

    names: of the classes, by label. several: whether an image may be of several classes.
    """
    variant = network.name.partition(":")[2]
    bottleneck = variant in BOTTLENECKS
    last = "resnet.encoder.stages.{}.layers.0.layer.{}.convolution.weight"
    content = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": network.channels,
        "embedding_size": len(tensors["resnet.embedder.embedder.convolution.weight"]),
        "hidden_sizes": [len(tensors[last.format(s, 2 if bottleneck else 1)]) for s in range(4)],
        "depths": BLOCKS[variant],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": bottleneck and dict(network.options)["stride_in"] == "1x1",
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        **({"problem_type": SEVERAL} if several else {}),
    }
    return json.dumps(content, indent=1) + "\n"


def processor_of(preparation: preprocessing.Preprocessing, view: CentreView) -> str:
    """preprocessor_config.json of a network whose images are prepared so.

    Raises WeightsError where it has no words for that.
    """
    mean, std = (
        np.asarray(x, np.float32) for x in (preparation.normalise.mean, preparation.normalise.std)
    )
    reasons = {
        "whitened images": preparation.normalise.whitening is not None,
        "a mean image": mean.ndim == 3,
        "a black frame": preparation.frame > 0,
        "images turned as EXIF says": preparation.exif,
        f"images of {preparation.channels} channel": preparation.channels != 3,
        f"images scaled by {preparation.resize}": preparation.resize not in KERNELS.values(),
    }
    if reason := next((feature for feature, is_so in reasons.items() if is_so), ""):
        raise WeightsError(
            f"{PROCESSOR} has no words for {reason}; export a file, with --out NAME.safetensors."
        )
    side, crop = view.Q, view.crop
    numbers = {kernel: number for number, kernel in KERNELS.items()}
    content = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if preparation.warp else {"shortest_edge": side},
        "resample": numbers[preparation.resize],
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_in_parts(x) for x in np.broadcast_to(mean, 3)],
        "image_std": [_in_parts(x) for x in np.broadcast_to(std, 3)],
    }
    return json.dumps(content, indent=1) + "\n"


def _in_parts(value: np.float32) -> float:
    """The shortest number that is the value again after multiplication by 255."""
    exact = float(value) / 255
    digits = max(1, -math.floor(math.log10(abs(exact) or 1)))
    tries = (round(exact, digits + more) for more in range(17))
    return next((x for x in tries if np.float32(255 * x) == value), exact)


def write(folder: Path, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Makes the folder, of the tensors and of files of text by name, at once or not at all.

    Raises WeightsError where it is there already or can't be written.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        if os.path.lexists(folder):
            raise WeightsError(f"{folder} is there already; expected a new folder.")
        partial.mkdir(parents=True)
        weight_files.write(partial / WEIGHTS[0], tensors)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        os.rename(partial, folder)
    except OSError as error:
        raise WeightsError(f"{folder} can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
