"""Names of tensors as files have them: wrappers, rules, and which network's they are."""

import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import pretrained
from cnn_arch.errors import WeightsError
from cnn_arch.pretrained import names

ONE = np.ones(1, np.float32)


def tensors(*keys):
    return dict.fromkeys(keys, ONE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["module.a", "module.b.c"], ["a", "b.c"]),
        (["module._orig_mod.a"], ["a"]),
        (["_orig_mod.module.model.net.a"], ["a"]),
        (["n_averaged", "module.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["features.module.0.a", "classifier.6.b"], ["features.0.a", "classifier.6.b"]),
        (["n_averaged", "a"], ["n_averaged", "a"]),
        (["features.module.0.a", "features.0.a"], ["features.module.0.a", "features.0.a"]),
        (["conv1.weight", "fc.bias"], ["conv1.weight", "fc.bias"]),
        ([], []),
    ],
)
def test_wrappers_that_all_names_have_are_taken_off(given, expected):
    assert list(names.unwrapped(tensors(*given))) == expected


def test_rules_rename_the_first_that_matches(tmp_path):
    file = tmp_path / "rules.txt"
    file.write_text("# of the old net\n\nlinear.* = fc.*\n")
    rules = names.rules(["a.weight=b.weight", str(file), "*.running_count="])
    assert rules == [("a.weight", "b.weight"), ("linear.*", "fc.*"), ("*.running_count", "")]
    weights = tensors("a.weight", "linear.weight", "linear.bias", "bn.running_count", "c")
    assert list(names.renamed(weights, rules)) == ["b.weight", "fc.weight", "fc.bias", "c"]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("no file", "--map no file is no FROM=TO, and no file: .*No such file"),
        ("=fc", "is no rule; expected FROM=TO"),
        ("a*b*=c", "is no rule"),
        ("a=b*", "is no rule"),
        ("a.*=b", "would give many tensors one name"),
    ],
)
def test_what_is_no_rule_is_refused(rule, reason):
    with pytest.raises(WeightsError, match=reason):
        names.rules([rule])


def test_rules_that_match_nothing_or_make_one_name_twice_are_refused():
    weights = tensors("conv1.weight", "conv2.weight")
    with pytest.raises(WeightsError, match=r"--map conv3.weight=a: no tensor is .*near conv"):
        names.renamed(weights, [("conv3.weight", "a")])
    with pytest.raises(WeightsError, match=r"would both be conv2\.weight"):
        names.renamed(weights, [("conv1.weight", "conv2.weight")])
    with pytest.raises(WeightsError, match=r"no tensor is aXb\*"):  # its halves may not overlap
        names.renamed(tensors("aX"), [("aXb*", "*")])


@pytest.mark.parametrize(
    ("arch", "naming", "options"),
    [
        ("resnet:34", "torchvision", {}),
        ("alexnet:torchvision", "torchvision", {"image_size": 64, "classes": 7}),
        ("cifar_resnet:20", "cifar", {}),
    ],
)
def test_networks_that_fit_are_found_by_names_and_shapes(arch, naming, options):
    network = cnn_arch.create(arch, rngs=nnx.Rngs(0), width=0.25, **options)
    exported = pretrained.export(network, naming)
    assert names.fitting(exported) == [arch]
    assert names.fitting(tensors("weight", "bias")) == []
