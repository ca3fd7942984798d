import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state
from cnn_arch.seeding import classifier, seed
from tests.cnn_arch.reference import random_network

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


def test_layers_that_neither_vgg_has_are_not_asked_for():
    shallow, deep = (params(name, k, hidden=0) for k, name in enumerate(("vgg:A", "vgg:B")))
    seeded, report = seed(shallow, "vgg:A", deep, "vgg:B")
    started = {new.split("/")[0] for _, new in report.copied}
    assert started == {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc8"}
    np.testing.assert_array_equal(seeded["fc8/kernel"], shallow["fc8/kernel"])
    with pytest.raises(ArchitectureError, match=r"vgg:A has no parameter that matches 'fc6/\*'"):
        seed(shallow, "vgg:A", params("vgg:B", 1), "vgg:B")


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
    assert report.identity == []
    copied, fresh, left_over = report.summary().splitlines()
    assert copied == "copied from vgg:A (14): " + ", ".join(
        f"{layer}/*" for layer in ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
    )
    assert fresh.startswith("fresh in vgg:E (24): conv1_2/*, conv2_2/*, conv3_3/*, conv3_4/*, ")
    assert left_over == "left over of vgg:A (8): conv4_1/*, conv4_2/*, conv5_1/*, conv5_2/*"


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


def values(net):
    return flat_state(nnx.state(net))


VGG = {"image_size": 32, "classes": 4, "width": 1 / 16, "dropout": 0.0, "init": "he"}
RESNET = {"image_size": 32, "classes": 4, "width": 1 / 16}
CIFAR = {"image_size": 8, "classes": 4, "width": 0.25}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("shallow", "deep", "options"),
    [
        ("vgg:A", "vgg:B", VGG),
        ("vgg:A", "vgg:E", VGG),
        ("vgg:B", "vgg:C", VGG),
        ("vgg:C", "vgg:D", VGG),
        ("vgg:D", "vgg:E", VGG),
        ("resnet:18", "resnet:34", RESNET),
        pytest.param("resnet:50", "resnet:101", RESNET, marks=pytest.mark.slow),
        pytest.param(
            "resnet:50", "resnet:101", {**RESNET, "shortcut": "A"}, marks=pytest.mark.slow
        ),
        ("cifar_resnet:8", "cifar_resnet:20", CIFAR),
    ],
)
def test_a_grown_network_computes_what_the_shallow_one_does(shallow, deep, options, train):
    old = random_network(shallow, 1, **options)
    new = cnn_arch.create(deep, rngs=nnx.Rngs(2), **options)
    grown, report = seed(values(old), shallow, values(new), deep, kind="grow")
    nnx.update(new, cnn_arch.unflat_state(grown, nnx.state(new)))
    (old.train if train else old.eval)()
    (new.train if train else new.eval)()
    x = np.random.default_rng(3).normal(size=(4, old.image_size, old.image_size, 3))
    expected, logits = (
        np.asarray(net(jnp.asarray(x, jnp.float32), rngs=nnx.Rngs(0))) for net in (old, new)
    )
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert report.left_over == []
    assert bool(report.identity) == (len(grown) > len(values(old)))
    named = [new for _, new in report.copied] + report.fresh + report.identity
    assert sorted(named) == sorted(grown)


@pytest.mark.slow
def test_a_grown_network_s_new_layers_are_trained():
    old = random_network("cifar_resnet:8", 1, **CIFAR)
    new = cnn_arch.create("cifar_resnet:14", rngs=nnx.Rngs(2), **CIFAR)
    grown, report = seed(values(old), "cifar_resnet:8", values(new), "cifar_resnet:14", kind="grow")
    nnx.update(new, cnn_arch.unflat_state(grown, nnx.state(new)))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 8, 8, 3)), jnp.float32)
    gradient = nnx.grad(lambda net: net.losses(x, jnp.eye(4))[0].mean())(new)
    gradients = flat_state(nnx.state(gradient, nnx.Param))
    for name in report.identity:
        assert float(jnp.abs(gradients[name]).max()) > 0


@pytest.mark.parametrize(
    ("shallow", "deep", "options", "message"),
    [
        ("vgg:A", "resnet:18", {}, "cannot grow into"),
        ("vgg:A-LRN", "vgg:E", {}, "cannot grow into"),
        ("cifar_plain:8", "cifar_plain:14", {}, "cannot grow into"),
        ("vgg:A", "vgg:B", {"batch_norm": True}, "with batch_norm cannot grow"),
        ("resnet:18", "resnet:34", {"shortcut": "C"}, "kind C cannot grow"),
        ("resnet:34", "resnet:50", {}, "has shape"),
        ("resnet:34", "resnet:18", {}, "has no parameter stage1/block3/"),
    ],
)
def test_growth_that_would_change_the_function_is_refused(shallow, deep, options, message):
    sizes = {"image_size": 32, "width": 1 / 32, "classes": 4}
    old, new = (
        values(
            cnn_arch.create(
                name,
                rngs=nnx.Rngs(0),
                **sizes,
                **{key: value for key, value in options.items() if key in cnn_arch.options(name)},
            )
        )
        for name in (shallow, deep)
    )
    with pytest.raises(ArchitectureError, match=message):
        seed(old, shallow, new, deep, kind="grow")


def test_everything_is_copied_between_networks_of_the_same_architecture():
    old, new = random_network("resnet:18", 1, **RESNET), random_network("resnet:18", 2, **RESNET)
    seeded, report = seed(values(old), "resnet:18", values(new), "resnet:18")
    for name, value in seeded.items():
        np.testing.assert_array_equal(value, values(old)[name])
    assert report.fresh == report.left_over == []


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("vgg:A", VGG, {"fc8/kernel", "fc8/bias"}),
        ("resnet:18", RESNET, {"fc/kernel", "fc/bias"}),
    ],
)
def test_all_but_the_classifier_is_seeded_across_class_counts(name, options, layers):
    old = values(random_network(name, 1, **{**options, "classes": 7}))
    new = values(cnn_arch.create(name, rngs=nnx.Rngs(2), **options))
    with pytest.raises(ArchitectureError, match="has shape"):
        seed(old, name, new, name)
    sizes = {key: value for key, value in options.items() if key != "classes"}
    fresh = classifier(name, **sizes)
    assert fresh == layers
    seeded, report = seed(old, name, new, name, fresh=fresh)
    assert set(report.fresh) == set(report.left_over) == layers
    for key, value in seeded.items():
        np.testing.assert_array_equal(value, new[key] if key in layers else old[key])
