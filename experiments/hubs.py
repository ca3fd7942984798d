"""Weights by the names that their publishers give them, fetched by the publishers' own libraries.

    hf:USER/REPO@REVISION                        a folder of Hugging Face's hub
    timm:resnet50.a1_in1k                        timm's network of that name, from the same hub
    torchvision:ResNet50_Weights.IMAGENET1K_V2   torchvision's file; of resnet50, its default one

What was fetched is kept in `~/.cache/cnn-depth/weights`, and is read as any other file: nothing in
it is executed.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cnn_arch.errors import WeightsError
from experiments.text import nearest

FILES = ("*.safetensors", "*.json")  # of a hub's folder


@dataclass(frozen=True)
class Fetched:
    """A file or folder that was fetched."""

    path: Path
    origin: dict[str, str]  # the name it was asked for by, and what tells its content


def is_name(text: str) -> bool:
    """Whether the text names weights of a hub, and is no file."""
    hub, colon, _ = text.partition(":")
    return bool(colon) and hub in HUBS


def fetch(name: str) -> Fetched:
    """The weights of a name, from the cache or from the network.

    Raises WeightsError where the library is not installed, there is no such name, or it can't be
    fetched.
    """
    hub, _, rest = name.partition(":")
    try:
        return HUBS[hub](name, rest)
    except ImportError as error:
        needed = {
            "hf": "huggingface_hub",
            "timm": "timm and huggingface_hub",
            "torchvision": "torch and torchvision",
        }[hub]
        raise WeightsError(f"{name}: {needed} must be installed ({error}).") from error
    except WeightsError:
        raise
    except Exception as error:  # of the network, by whatever library makes its requests
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{name} can't be fetched: {lines[0][:300]}") from error


def _folder(*parts: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "cnn-depth", "weights", *parts)


def _hugging_face(name: str, rest: str) -> Fetched:
    api: Any = import_module("huggingface_hub")
    repository, _, revision = rest.partition("@")
    sha = api.HfApi().model_info(repository, revision=revision or None).sha
    # A folder of its own: the library's cache has links out of the folder, which are not followed.
    folder = _folder("hf", *repository.split("/"), sha)
    api.snapshot_download(repository, revision=sha, local_dir=folder, allow_patterns=list(FILES))
    return Fetched(folder, {"name": name, "repository": repository, "revision": sha})


def _timm(name: str, rest: str) -> Fetched:
    library: Any = import_module("timm")
    config = library.get_pretrained_cfg(rest)
    if config is None or not config.hf_hub_id:
        near = nearest("; did you mean timm:{}?", rest, library.list_pretrained())
        raise WeightsError(f"{name}: timm has no such weights{near}")
    fetched = _hugging_face(name, config.hf_hub_id)
    return Fetched(fetched.path, {**fetched.origin, "timm": library.__version__})


def _torchvision(name: str, rest: str) -> Fetched:
    library: Any = import_module("torchvision")
    try:
        enum = library.models.get_weight(rest) if "." in rest else None
        weights = enum or library.models.get_model_weights(rest).DEFAULT
    except (KeyError, ValueError) as error:
        models, model = library.models.list_models(), rest.partition("_")[0].lower()
        near = nearest("; did you mean torchvision:{}?", model, models)
        raise WeightsError(f"{name}: torchvision has no such weights{near}") from error
    file = weights.url.rpartition("/")[2]
    path = _folder("torchvision", file)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", file)
        hub: Any = import_module("torch.hub")
        hub.download_url_to_file(weights.url, str(path), digest and digest[1])
    origin = {"name": name, "weights": str(weights), "url": weights.url}
    return Fetched(path, {**origin, "torchvision": library.__version__})


HUBS: dict[str, Callable[[str, str], Fetched]] = {
    "hf": _hugging_face,
    "timm": _timm,
    "torchvision": _torchvision,
}
