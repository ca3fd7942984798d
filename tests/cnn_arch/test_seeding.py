import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state
from cnn_arch.seeding import seed

COPIED = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}


def params(name, seed, **options):
    options = {"image_size": 32, "classes": 4, "width": 1 / 32, **options}
    net = cnn_arch.create(name, rngs=nnx.Rngs(seed), **options)
    return flat_state(nnx.state(net, nnx.Param))


@pytest.mark.parametrize("deep_name", ["vgg:B", "vgg:C", "vgg:D", "vgg:E"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_seven_layers_of_a_start_the_deeper_vgg(deep_name, batch_norm):
    shallow = params("vgg:A", 0, batch_norm=batch_norm)
    deep = params(deep_name, 1, batch_norm=batch_norm)
    seeded, report = seed(shallow, "vgg:A", deep, deep_name)
    assert {new.split("/")[0] for _, new in report.copied} == COPIED
    assert all(old == new for old, new in report.copied)
    for name, value in seeded.items():
        source = shallow if name.split("/")[0] in COPIED else deep
        np.testing.assert_array_equal(value, source[name])
    assert any("norm" in new for _, new in report.copied) == batch_norm


def test_every_parameter_of_both_networks_is_named_once():
    shallow, deep = params("vgg:A", 0), params("vgg:E", 1)
    seeded, report = seed(shallow, "vgg:A", deep, "vgg:E")
    assert list(seeded) == list(deep)
    assert sorted([new for _, new in report.copied] + report.fresh) == sorted(deep)
    assert sorted(report.used + report.left_over) == sorted(shallow)
    assert {name.split("/")[0] for name in report.left_over} == {
        "conv4_1",
        "conv4_2",
        "conv5_1",
        "conv5_2",
    }
    assert set(report.to_json()) == {"shallow", "deep", "copied", "fresh", "used", "left_over"}
    for name in [*deep, *shallow]:
        assert name in report.summary()


def test_a_mismatch_names_both_parameters_and_both_shapes():
    shallow, deep = params("vgg:A", 0), params("vgg:B", 1, width=1 / 16)
    message = r"conv1_1/conv/bias of vgg:A .*\(2,\).*conv1_1/conv/bias of vgg:B .*\(4,\)"
    with pytest.raises(ArchitectureError, match=message):
        seed(shallow, "vgg:A", deep, "vgg:B")


def test_a_mapping_moves_layers_between_other_networks():
    options = {"image_size": 8, "width": 0.25}
    shallow = params("cifar_plain:8", 0, **options)
    deep = params("cifar_resnet:14", 1, **options)
    mapping = [("stage*/block1/*", "stage*/block2/*"), ("fc/*", "fc/*")]
    with pytest.raises(ArchitectureError, match=r"stage2/block1/conv1/conv/kernel .* has shape"):
        seed(shallow, "cifar_plain:8", deep, "cifar_resnet:14", mapping)
    mapping = [("stage1/block1/*", "stage1/block2/*"), ("fc/*", "fc/*")]
    seeded, report = seed(shallow, "cifar_plain:8", deep, "cifar_resnet:14", mapping)
    np.testing.assert_array_equal(
        seeded["stage1/block2/conv2/norm/scale"], shallow["stage1/block1/conv2/norm/scale"]
    )
    np.testing.assert_array_equal(
        seeded["stage1/block2/conv2/conv/kernel"], shallow["stage1/block1/conv2/conv/kernel"]
    )
    assert "conv1/conv/kernel" in report.fresh
    assert "conv1/conv/kernel" in report.left_over


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, "name them in a mapping"),
        ([("fc6/*", "fc6/*")], "no parameter that matches 'fc6/"),
        ([("fc/*", "fd/*")], "has no parameter fd/"),
        ([("fc/*", "fc/kernel")], "number of"),
        ([("fc/*", "fc/*"), ("fc/bias", "fc/bias")], "filled by both"),
    ],
)
def test_a_mapping_that_cannot_be_followed_is_a_clear_error(mapping, message):
    values = params("cifar_plain:8", 0, image_size=8)
    with pytest.raises(ArchitectureError, match=message):
        seed(values, "cifar_plain:8", values, "cifar_resnet:8", mapping)
