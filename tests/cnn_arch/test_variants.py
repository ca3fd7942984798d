"""What every registered architecture keeps to, checked for each of them."""

import re
from functools import partial
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import flat_state
from cnn_arch.census import census
from cnn_arch.errors import ArchitectureError

# Narrow, so that all of them take seconds; deep ones are the code of shallow ones again.
WIDTHS = {
    "vgg": {"width": 1 / 32, "init": "he"},
    "alexnet": {"width": 1 / 8, "init": "he"},
    "googlenet": {"width": 1 / 4},  # at 1/8 all six maps of a branch are negative everywhere
    "resnet": {"width": 1 / 16},
    "plain": {"width": 1 / 16},
    "cifar_resnet": {"width": 0.25},
    "cifar_plain": {"width": 0.25},
    "nin": {"width": 1 / 16, "init": "he"},
    "dan_net": {"init": "he"},
    "lenet5": {},
}
SLOW = {
    *("resnet:34", "resnet:101", "resnet:152", "plain:34"),
    *("googlenet:paper", "googlenet:torchvision"),
    *("nin:cifar100", "nin:svhn", "dan_net:200", "dan_net:300"),
    *(f"cifar_{kind}:{depth}" for kind in ("resnet", "plain") for depth in (32, 44, 56, 110)),
}
VARIANTS = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in cnn_arch.variants()
    if not name.endswith(":1202")  # test_census counts it; it is 110's code
]


def sizes(name):
    """Two image sizes: the smallest and the next at which the last map is larger."""
    family, variant = cnn_arch.registry.find(name)
    least = family.minimum_image_size(variant)
    return least, least + max(row.jump for row in census(name, image_size=least).layers)


def build(name, image_size, **options):
    options = {**WIDTHS[name.split(":")[0]], **options}
    return cnn_arch.create(name, image_size=image_size, classes=5, rngs=nnx.Rngs(0), **options)


def images(net, n=4):
    shape = (n, net.image_size, net.image_size, net.channels)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# Many small programs, each run once: compiled without optimisation.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(*case.values, {}, marks=case.marks) for case in VARIANTS),
        ("vgg:A", {"batch_norm": True}),
        ("vgg:A", {"hidden": 0}),
        ("nin:cifar10", {"head": "fc", "head_dropout": 0.5}),
    ],
)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name, options):
    # At the smallest size, the outer weights of many kernels see padding only.
    net = build(name, 2 * sizes(name)[0], **options)
    graphdef, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
    x, targets = images(net), jax.nn.one_hot(jnp.arange(4), 5)

    @jit
    def gradient(params):
        def loss(params):
            net = nnx.merge(graphdef, params, stats, copy=True)
            return net.losses(x, targets, rngs=nnx.Rngs(dropout=1))[0].mean()

        return jax.grad(loss)(params)

    for key, value in flat_state(gradient(params)).items():
        assert bool(jnp.isfinite(value).all()), key
        # A bias before batch normalisation has no effect but for rounding.
        if not (options.get("batch_norm") and key.endswith("conv/bias")):
            assert float(jnp.abs(value).max()) > 0, key


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_at_two_image_sizes_and_bfloat16(name):
    least, larger = sizes(name)
    full, half = (build(name, least, dtype=dtype) for dtype in ("float32", "bfloat16"))
    full.eval()
    half.eval()
    x = images(full)
    logits, rounded = jit(lambda full, half, x: (full(x), half(x)))(full, half, x)
    assert logits.shape == rounded.shape == (4, 5)
    assert logits.dtype == rounded.dtype == jnp.float32
    if (
        name != "cifar_plain:110"
    ):  # whose maps vanish, without shortcuts, as their rounding does not
        assert float(jnp.abs(rounded - logits).max()) < 0.1 * float(jnp.abs(logits).max())
    net = build(name, larger)
    net.eval()
    logits = jit(lambda net, x: net(x))(net, images(net))
    assert logits.shape == (4, 5)
    assert bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("name", cnn_arch.variants())
def test_described_numbers_are_those_of_the_network(name):
    if name.endswith(":1202"):
        pytest.skip("test_census counts it")
    net = cnn_arch.abstract(name)
    counted = census(name)
    shapes = [value.shape for value in flat_state(nnx.state(net, nnx.Param)).values()]
    assert counted.training_params == sum(int(np.prod(shape)) for shape in shapes)
    assert counted.params <= counted.training_params
    assert (counted.image_size, counted.channels, counted.classes) == (
        net.image_size,
        net.channels,
        net.classes,
    )
    assert counted.depth == cnn_arch.depth(name)
    assert counted.macs > 0
    assert counted.name == net.name == name


# Values beside the defaults, of options whose types do not list them.
OTHERS = {
    "width": (3 / 64,),
    "hidden": (0, 512),
    "dropout": (0.125,),
    "aux_dropout": (0.125,),
    "head_dropout": (0.125,),
    "bn_group_size": (2,),
    "padding": (1,),
    "positive_bias": (0.25,),
    "first_scale": (0.25,),
    "aux_weight": (0.125,),
    "rubbish": (2.0,),
    "without": ("conv3",),
}
# Where options that need others have what they need.
CONTEXTS = (
    *({}, {"batch_norm": True}, {"batch_norm": False}, {"auxiliary": False}, {"head": "fc"}),
    {"hidden": 0},
)
ONE_OF_A_KIND = [
    *(name for name in cnn_arch.variants() if name.startswith(("lenet5:", "alexnet:"))),
    *("vgg:A", "vgg:A-LRN", "vgg:B-5x5", "dan_net:100", "nin:cifar10", "resnet:18", "plain:18"),
    *("cifar_resnet:8", "cifar_plain:8"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet:50", "googlenet:paper", "googlenet:torchvision")
    ),
]


def program(name, options):
    """The training and test of a network as text, the constants in it, and its first weights.

    It is built without the checks of `create`.
    """
    family, variant = cnn_arch.registry.find(name)
    size = family.minimum_image_size(variant) + 8  # room for every padding
    sizes = {"image_size": size, "classes": 5, "channels": 3}
    net = family.build(variant, sizes, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(net)

    def both(state, x, targets):
        net = nnx.merge(graph, state)
        net.train()
        losses, _ = net.losses(x, targets, rngs=nnx.Rngs(dropout=0))
        net.eval()
        return losses, net(x), nnx.state(net)

    x, targets = jnp.ones((4, size, size, 3)), jnp.full((4, 5), 0.2)
    traced = jax.make_jaxpr(both)(state, x, targets)
    weights = {name: np.asarray(value).tobytes() for name, value in flat_state(state).items()}
    return re.sub("0x[0-9a-f]+", "", str(traced)), list(map(str, traced.consts)), weights


def values(name, option, usual):
    """Other values of an option: the other one, those its type lists, or one of OTHERS."""
    family, variant = cnn_arch.registry.find(name)
    types = get_type_hints(family.networks.get(variant, family.network).__init__)
    if isinstance(usual, bool):
        return (not usual,)
    return [v for v in (get_args(types[option]) or OTHERS[option]) if v != usual]


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_an_option_is_refused_just_where_it_changes_nothing(name):
    usual = {**cnn_arch.options(name), **WIDTHS[name.split(":")[0]]}
    needs = cnn_arch.registry.find(name)[0].needs
    for context in CONTEXTS:
        if not context.keys() <= usual.keys() or (context and context.items() <= usual.items()):
            continue
        options = {**usual, **context}
        before = program(name, options)
        for option in (needs if context else options).keys() & options.keys():
            for value in values(name, option, options[option]):
                changed = {**options, option: value}
                same = program(name, changed) == before
                assert same == (option in cnn_arch.idle(name, changed)), (name, context, option)
                if same:
                    with pytest.raises(ArchitectureError, match=f"{option}=.* changes nothing"):
                        cnn_arch.check(name, **changed)
                else:
                    cnn_arch.check(name, **changed)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("cifar_resnet:08", "cifar_resnet:8"),
        ("cifar_resnet:+20", "cifar_resnet:20"),
        ("cifar_plain:26 ", "cifar_plain:26"),
        ("cifar_resnet:\uff12\uff10", "cifar_resnet:20"),
        ("resnet:050", "resnet:50"),
        ("vgg:a", "vgg:A"),
        ("VGG:a-lrn", "vgg:A-LRN"),
    ],
)
def test_another_spelling_is_refused_and_the_right_one_named(given, meant):
    with pytest.raises(ArchitectureError, match=f"Did you mean '{meant}'"):
        cnn_arch.full_name(given)


def test_a_network_deeper_than_any_use_is_refused():
    with pytest.raises(ArchitectureError, match="cifar_resnet:600000000000002"):
        cnn_arch.full_name("cifar_resnet:600000000000002")
