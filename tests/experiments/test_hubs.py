"""Weights by name: what stand-ins for the publishers' libraries are asked for."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cnn_arch.errors import WeightsError
from experiments import hubs

SHA = "0123456789abcdef"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cnn-depth" / "weights"


class NoNetwork(Exception):
    """As the library that makes requests has its own."""


@pytest.fixture
def hub(monkeypatch):
    """The requests that a stand-in for huggingface_hub gets."""
    requests = []

    class HfApi:
        def model_info(self, repository, revision):
            requests.append((repository, revision))
            if repository == "nobody/nothing":
                raise NoNetwork("Name or service not known\nPlease check your connection")
            return SimpleNamespace(sha=SHA)

    def snapshot_download(repository, *, revision, local_dir, allow_patterns):
        requests.append((repository, revision, allow_patterns))
        Path(local_dir).mkdir(parents=True)

    library = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return requests


def test_only_names_of_hubs_are_names():
    assert hubs.is_name("hf:a/b")
    assert hubs.is_name("torchvision:resnet50")
    assert not any(map(hubs.is_name, ("resnet50.pth", "hf", "c:/weights.pth", "./hf:a")))


def test_a_folder_of_the_hub_is_had_at_one_revision(hub, cache):
    fetched = hubs.fetch("hf:microsoft/resnet-50@v1")
    assert fetched.path == cache / "hf" / "microsoft" / "resnet-50" / SHA
    assert fetched.path.is_dir()
    assert hub == [
        ("microsoft/resnet-50", "v1"),
        ("microsoft/resnet-50", SHA, ["*.safetensors", "*.json"]),
    ]
    assert fetched.origin["revision"] == SHA
    hubs.fetch("hf:other/net")
    assert hub[2] == ("other/net", None)


def test_timms_networks_lie_on_the_hub(hub, cache, monkeypatch):
    configs = {"resnet50.a1_in1k": SimpleNamespace(hf_hub_id="timm/resnet50.a1_in1k")}
    timm = SimpleNamespace(
        get_pretrained_cfg=configs.get, list_pretrained=lambda: [*configs], __version__="1.0.31"
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    fetched = hubs.fetch("timm:resnet50.a1_in1k")
    assert fetched.path == cache / "hf" / "timm" / "resnet50.a1_in1k" / SHA
    assert fetched.origin["timm"] == "1.0.31"
    with pytest.raises(WeightsError, match=r"no such weights; did you mean timm:resnet50.a1_in1k"):
        hubs.fetch("timm:resnet50.a2_in1k")


def test_torchvisions_files_are_checked_by_their_digest_and_kept(cache, monkeypatch):
    url, downloads = "https://example.org/models/resnet50-11ad3fa6.pth", []
    weights = SimpleNamespace(url=url)

    def download(url, path, digest):
        downloads.append((url, digest))
        Path(path).write_bytes(b"weights")

    models = SimpleNamespace(
        get_weight={"ResNet50_Weights.IMAGENET1K_V2": weights}.__getitem__,
        get_model_weights={"resnet50": SimpleNamespace(DEFAULT=weights)}.__getitem__,
        list_models=lambda: ["resnet50"],
    )
    torchvision = SimpleNamespace(models=models, __version__="0.29.1")
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torch.hub", SimpleNamespace(download_url_to_file=download))
    fetched = hubs.fetch("torchvision:ResNet50_Weights.IMAGENET1K_V2")
    assert fetched.path == cache / "torchvision" / "resnet50-11ad3fa6.pth"
    assert fetched.path == hubs.fetch("torchvision:resnet50").path
    assert downloads == [(url, "11ad3fa6")]
    for name in ("resnet51", "ResNet50_Weights.IMAGENET1K_V3"):
        with pytest.raises(
            WeightsError, match="no such weights; did you mean torchvision:resnet50"
        ):
            hubs.fetch(f"torchvision:{name}")


def test_what_cannot_be_fetched_is_one_line(hub, monkeypatch):
    with pytest.raises(WeightsError) as refused:
        hubs.fetch("hf:nobody/nothing")
    assert str(refused.value) == ("hf:nobody/nothing can't be fetched: Name or service not known")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match="timm and huggingface_hub must be installed"):
        hubs.fetch("timm:resnet50")
