"""What is found inside a network, against plain loops, finite differences and brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, layer_outputs
from cnn_arch.census import receptive_fields
from experiments.config import ConfigError
from experiments.inspection import attention, codes, filters, inspection, neighbours, units
from experiments.inspection import statistics as layer_statistics
from experiments.inspection.filters import Filters
from experiments.inspection.looking import Looking
from experiments.inspection.neighbours import Features
from experiments.report import inspection as inspection_report
from experiments.report import write
from experiments.testing import classifier
from experiments.transfer.features import Extractor, FeatureRequest
from launch import devices
from tests import made_up
from tests.experiments.test_report import smallest_text

SIDE, CLASSES, TRAIN, TEST = 16, 5, 60, 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def pictures(folder):
    """All images of the set, training images first."""
    return made_up.squares(folder / "set.npz", SIDE, 1, CLASSES, TRAIN, TEST)


@pytest.fixture(scope="module")
def looking(folder, pictures):
    run = made_up.run(folder, "cifar_resnet:8", SIDE, 1, CLASSES, {"width": 0.5})
    return Looking(Extractor(run, devices.mesh(), str(folder / "set.npz")))


@pytest.fixture(scope="module")
def network(looking):
    return classifier.load(looking.subject.run.folder).network


def normalised(pictures):
    return (pictures.astype(np.float32) - 60) / 50


# ------------------------------------------------------------------------------- images


def test_images_are_seen_as_the_network_sees_them(looking, pictures):
    ids = np.array([3, 70, 0])
    shown = looking.shown(ids)
    assert shown.ids.tolist() == ids.tolist()
    assert shown.labels.tolist() == [3, 0, 0]
    np.testing.assert_array_equal(shown.pictures, pictures[ids])
    np.testing.assert_allclose(shown.x, normalised(pictures[ids]), atol=1e-6)


def test_parts_are_the_sets_and_of_sets_without_parts_every_fifth(looking):
    assert looking.training.tolist() == list(range(TRAIN))
    assert looking.tested.tolist() == list(range(TRAIN, TRAIN + TEST))

    class Mixed:
        collection = dataclasses.replace(
            looking.subject.collection, parts=np.zeros(TRAIN + TEST, np.uint8)
        )

    mixed = Looking(Mixed())
    assert mixed.tested.tolist() == list(range(0, TRAIN + TEST, 5))
    assert not set(mixed.tested) & set(mixed.training)


def test_images_are_spread_over_classes(looking):
    chosen = looking.spread(looking.tested, CLASSES)
    assert sorted(looking.shown(chosen).labels.tolist()) == list(range(CLASSES))


# ------------------------------------------------------------------------------- filters


def test_filters_are_scaled_each_to_its_own_range(looking, network):
    result = filters.first(looking)
    kernel = np.asarray(network.conv1.conv.kernel.get_value())
    assert result.layer == "conv1/conv"
    np.testing.assert_array_equal(result.kernels, kernel)
    for k, picture in enumerate(result.pictures):
        own = kernel[..., k]
        expected = np.round(255.0 * (own - own.min()) / (own.max() - own.min()))
        np.testing.assert_allclose(picture, expected, atol=1)
        assert (picture.min(), picture.max()) == (0, 255)
    flat = Filters("flat", np.ones((3, 3, 1, 1), np.float32))
    assert not flat.pictures.any()


# ------------------------------------------------------------------------------- units

FIELDS = [
    ("lenet5:modern", 32, ("C1", "S2", "C3", "S4", "C5"), {}),
    ("cifar_resnet:8", 32, ("conv1", "stage1/block1", "stage2/block1", "stage3"), {"width": 0.5}),
    ("nin:mnist", 33, ("conv1", "pool1", "conv2", "pool2", "pool"), {"width": 0.1}),
    ("vgg:A", 64, ("conv1_1", "pool1", "conv3_2/conv", "pool3", "fc6"), {"width": 1 / 32}),
    ("googlenet:paper", 64, ("conv1", "pool1", "lrn1", "inception3a"), {"width": 0.1}),
    ("alexnet:two_gpu", 67, ("conv1", "pool1", "conv2"), {"width": 1 / 32}),
]


def reached(output, x, step=100.0):
    """Rows and columns of the image whose change changes `output(x)`, each perturbed alone."""
    ranges = []
    for axis in (0, 1):
        changed = np.repeat(x[None], x.shape[axis], axis=0)
        for k, image in enumerate(changed):
            image[(slice(None),) * axis + (k,)] += step
        same = np.repeat(x[None], x.shape[axis], axis=0)  # by the same program, to the bit
        before, after = (np.asarray(output(jnp.asarray(y))) for y in (same, changed))
        differs = (after != before).reshape(len(changed), -1).any(axis=1)
        ranges.append((int(np.flatnonzero(differs)[0]), int(np.flatnonzero(differs)[-1]) + 1))
    return tuple(ranges)


@pytest.mark.parametrize(("arch", "side", "layers", "options"), FIELDS)
def test_a_receptive_field_is_what_a_perturbed_pixel_reaches(arch, side, layers, options):
    sizes = {"image_size": side, "channels": 1, "classes": 4}
    net = cnn_arch.create(arch, rngs=nnx.Rngs(1), **sizes, **options)
    net.eval()
    # With positive weights nothing cancels, and a bright pixel passes ReLU and maxima.
    nnx.update(net, jax.tree.map(jnp.abs, nnx.state(net, nnx.Param)))
    x = np.random.default_rng(0).uniform(0.1, 1, size=(side, side, 1)).astype(np.float32)
    fields = receptive_fields(net)
    assert fields.keys() == layer_outputs.layer_outputs(net).keys()
    outputs = jax.jit(lambda x: layer_outputs.outputs(net, layers, x))
    for layer in layers:
        shape = layer_outputs.check(net, layer).shape
        size = shape[0] if len(shape) == 3 else 1
        for place in {0, size // 2, size - 1}:

            def output(x, layer=layer, place=place):
                values = outputs(x)[layer]
                return values[:, place, place] if values.ndim == 4 else values

            expected = tuple(map(int, fields[layer][place]))
            assert reached(output, x) == (expected, expected), (layer, place)


def test_units_are_excited_most_by_these_images(looking, network, pictures):
    ids = looking.tested
    heard = []
    results = units.most_exciting(
        looking, ["conv1", "stage2", "pool"], ids, 3, lambda n, total: heard.append(n)
    )
    assert heard[-1] == TEST
    ends = network.endpoints(jnp.asarray(normalised(pictures[ids])))
    for result in results:
        outputs = np.asarray(ends[result.layer])
        flat = outputs.reshape(TEST, -1, outputs.shape[-1])
        responses = flat.max(axis=1)
        varied = np.argsort(-responses.var(axis=0))[:3]
        assert result.units.tolist() == sorted(varied)
        assert (result.layer_units, result.images) == (outputs.shape[-1], TEST)
        for row, unit in enumerate(result.units):
            order = np.argsort(-responses[:, unit])[: units.IMAGES]
            assert result.ids[row].tolist() == ids[order].tolist()
            np.testing.assert_allclose(result.values[row], responses[order, unit], rtol=1e-5)
            if outputs.ndim == 4:
                places = [
                    np.unravel_index(outputs[i, ..., unit].argmax(), outputs.shape[1:3])
                    for i in order
                ]
                assert result.places[row].tolist() == [list(map(int, place)) for place in places]


def test_patches_are_all_that_a_response_depends_on(looking, network, pictures):
    (result,) = units.most_exciting(looking, ["stage2/block1"], looking.tested, 4)
    for row, column in ((0, 0), (3, 2)):
        unit, place = result.units[row], result.places[row, column]
        image = normalised(pictures[result.ids[row, column]])

        def response(x, unit=unit, place=place):
            return network.endpoints(x)["stage2/block1"][:, place[0], place[1], unit]

        top, left, bottom, right = result.boxes[row, column]
        (first, last), (start, end) = reached(response, image)
        assert (top <= first, left <= start, last <= bottom, end <= right) == (True,) * 4
        noise = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
        noise[top:bottom, left:right] = image[top:bottom, left:right]
        alone = float(response(jnp.asarray(noise[None]))[0])
        assert alone == pytest.approx(result.values[row, column], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        ("cifar_resnet:20", ["conv1", "stage1", "stage2", "stage3"]),
        ("vgg:A", ["conv1_1", "conv3_2", "conv5_1", "fc7"]),
        ("lenet5:modern", ["C1", "C3", "C5", "F6"]),
        ("googlenet:paper", ["conv1", "inception3b", "inception4c", "inception5b"]),
    ],
)
def test_layers_are_chosen_over_the_depth(arch, wanted):
    assert units.layers(cnn_arch.abstract(arch)) == wanted


# ------------------------------------------------------------------------------- neighbours, codes


def brute(x, queries, k):
    distances = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in queries])
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, axis=1)


def test_neighbours_are_training_images_nearest_to_test_images(looking, network, pictures):
    features = neighbours.features(looking, np.array([TRAIN + 2]))
    assert features.layer == "pool"
    assert features.training_ids.tolist() == list(range(TRAIN))
    assert features.tested_ids.tolist() == list(range(TRAIN, TRAIN + TEST))
    pooled = network.endpoints(jnp.asarray(normalised(pictures)))["pool"]
    np.testing.assert_allclose(features.training, pooled[:TRAIN], rtol=1e-4, atol=1e-6)
    rows, distances = neighbours.nearest(features.training, features.tested, 4)
    expected_rows, expected_distances = brute(features.training, features.tested, 4)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-4, atol=1e-5)


def test_large_sets_are_not_seen_whole_unless_they_are_kept(looking, monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours, "WHOLE", 10)
    monkeypatch.setattr(neighbours, "TRAINING", 7)
    monkeypatch.setattr(neighbours, "QUERIES", 3)
    looking.subject.features(FeatureRequest("pool"))
    also = np.array([TRAIN + 1])
    complete = neighbours.features(looking, also)
    assert len(complete.training) == TRAIN
    assert complete.tested_ids.tolist() == [TRAIN, TRAIN + 1, TRAIN + 10, TRAIN + TEST - 1]
    for file in (looking.subject.run.folder / "features").glob("pool-*"):
        file.unlink()
    some = neighbours.features(looking, also)
    assert some.training_ids.tolist() == [0, 10, 20, 30, 39, 49, 59]
    assert some.tested_ids.tolist() == complete.tested_ids.tolist()
    np.testing.assert_allclose(some.training, complete.training[some.training_ids], rtol=1e-5)
    np.testing.assert_allclose(some.tested, complete.tested, rtol=1e-5)
    assert (some.training_images, complete.training_images) == (TRAIN, TRAIN)


@pytest.fixture
def clusters():
    """Features of 300 training and 40 test images, of rank 10 but for little noise."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(10, 24)) * np.geomspace(4, 1, 10)[:, None]
    x = rng.normal(size=(340, 10)) @ directions + 0.01 * rng.normal(size=(340, 24)) + 3
    x = x.astype(np.float32)
    ids = np.arange(340)
    return Features("made", x[:300], x[300:], ids[:300], ids[300:], 300)


def test_codes_of_principal_components_are_those_of_the_svd(clusters):
    x, y = clusters.training, clusters.tested
    bits = codes.principal(x, 6)(y)
    mean = x.mean(axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(x - mean, full_matrices=False)
    projected = (y - mean) @ directions[:6].T
    sure = np.abs(projected) > 1e-3
    for bit in range(6):  # the sign of a component is free
        same = (projected[:, bit] > 0) == bits[:, bit]
        assert same[sure[:, bit]].all() or not same[sure[:, bit]].any()
    assert codes.principal(x, 99)(y).shape == (40, 24)


def test_recall_is_what_brute_force_counts(clusters):
    for result in codes.compared(clusters, 16):
        truth, _ = brute(clusters.training, clusters.tested, 10)
        shares = []
        for row, code in zip(truth, result.tested, strict=True):
            distances = [int((code != training_code).sum()) for training_code in result.training]
            nearest = sorted(range(300), key=lambda i, distances=distances: (distances[i], i))[:10]
            shares.append(len({*nearest} & {*map(int, row)}) / 10)
        assert result.recall == pytest.approx(np.mean(shares))
        assert result.training.shape == (300, 16)


def test_equal_distances_are_in_the_order_of_rows():
    all_codes = np.array([[1, 1], [0, 0], [1, 0], [0, 1], [1, 1]], bool)
    rows = codes.hamming_nearest(all_codes, np.array([[1, 1], [0, 0]], bool), 4)
    assert rows.tolist() == [[0, 4, 2, 3], [1, 2, 3, 0]]
    assert codes.hamming_nearest(all_codes, all_codes[:1], 9).tolist() == [[0, 4, 2, 3, 1]]


def test_the_autoencoder_is_the_same_each_time_and_gives_features_back(clusters):
    x = clusters.training
    first, again = (codes.autoencoder(x, 16)(x) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    by_way = {result.how: result.recall for result in codes.compared(clusters, 16)}
    assert by_way["autoencoder"] > by_way["projections"]


# ------------------------------------------------------------------------------- attention


def test_occlusion_is_that_of_a_plain_loop(looking, network):
    shown = looking.shown(looking.tested[:2])
    classes = looking.classes_of(shown)
    assert classes.tolist() == shown.labels.tolist()
    heard = []
    result = attention.occlusion(looking, shown, classes, lambda n, total: heard.append((n, total)))
    assert heard[-1][0] == heard[-1][1]
    assert result.square == 3
    assert result.firsts.tolist() == list(range(14))
    for i, (x, k) in enumerate(zip(shown.x, classes, strict=True)):
        uncovered = jax.nn.softmax(network(jnp.asarray(x[None])))[0, k]
        assert result.whole[i] == pytest.approx(float(uncovered), rel=1e-5)
        for a, b in ((0, 0), (4, 11), (13, 13)):
            covered = x.copy()
            for row in range(a, a + 3):
                for column in range(b, b + 3):
                    covered[row, column] = 0
            expected = jax.nn.softmax(network(jnp.asarray(covered[None])))[0, k]
            assert result.covered[i, a, b] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("side", [1, 2, 16, 28, 32, 224])
def test_squares_reach_both_borders(side):
    square, firsts = attention.places(side)
    assert firsts[0] == 0
    assert firsts[-1] + square == side
    assert (np.diff(firsts) <= max(1, round(side / 16))).all()


def test_saliency_is_that_of_finite_differences(looking, network):
    shown = looking.shown(looking.tested[:2])
    classes = looking.classes_of(shown)
    maps = attention.saliency(looking, shown, classes).maps
    assert maps.shape == (2, SIDE, SIDE)
    with jax.enable_x64():
        net = as_float64(network)
        for i, (x, k) in enumerate(zip(shown.x, classes, strict=True)):
            for row, column in ((0, 0), (5, 9), (15, 7)):
                step = np.zeros((1, SIDE, SIDE, 1))
                step[0, row, column, 0] = 1e-6 / 50  # of a grey level
                high, low = (net(jnp.asarray(x[None] + s)) for s in (step, -step))
                slope = abs(float((high - low)[0, k])) / 2e-6
                assert maps[i, row, column] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def as_float64(network):
    """The same function, computed in float64."""

    def scores(x):
        state = {
            name: np.asarray(array, np.float64)
            for name, array in cnn_arch.flat_state(nnx.state(network)).items()
        }

        def unit(name, x, stride=1, relu=True):
            y = jax.lax.conv_general_dilated(
                x,
                state[f"{name}/conv/kernel"],
                (stride, stride),
                [(1, 1), (1, 1)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            scale = state[f"{name}/norm/scale"] / np.sqrt(state[f"{name}/norm/var"] + 1e-5)
            y = (y - state[f"{name}/norm/mean"]) * scale + state[f"{name}/norm/bias"]
            return jnp.maximum(y, 0) if relu else y

        x = unit("conv1", x)
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            name = f"stage{stage}/block1"
            y = unit(f"{name}/conv2", unit(f"{name}/conv1", x, stride), relu=False)
            x = x[:, ::stride, ::stride]
            x = jnp.pad(x, ((0, 0),) * 3 + ((0, y.shape[-1] - x.shape[-1]),))
            x = jnp.maximum(y + x, 0)
        return x.mean(axis=(1, 2)) @ state["fc/kernel"] + state["fc/bias"]

    return scores


# ------------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_all_outputs(looking, network, pictures):
    results = layer_statistics.of_layers(looking, looking.tested)
    ends = network.endpoints(jnp.asarray(normalised(pictures[TRAIN:])))
    names = ["conv1", *(f"stage{k}/block1" for k in (1, 2, 3)), "pool"]
    assert [result.layer for result in results] == names
    assert [result.depth for result in results] == [1, 3, 5, 7, 7]
    for result in results:
        outputs = np.asarray(ends[result.layer], np.float64)
        assert result.mean == pytest.approx(outputs.mean(), rel=1e-4)
        assert result.deviation == pytest.approx(outputs.std(), rel=1e-4)
        axes = tuple(range(outputs.ndim - 1))
        assert result.dead == int((outputs.max(axis=axes) <= 0).sum())
        assert (result.units, result.images) == (outputs.shape[-1], TEST)


def test_dead_units_are_counted(folder, pictures):
    """Of a network whose first layer has three units that never respond, and one that seldom
    does."""
    run = made_up.run(folder / "dead", "lenet5:modern", SIDE, 1, CLASSES)
    subject = Extractor(run, devices.mesh(), str(folder / "set.npz"))
    _, params, _ = subject.network
    kernel, bias = (np.array(params[f"C1/{name}"]) for name in ("kernel", "bias"))
    kernel[..., :4], bias[:3], bias[3] = 0, (-1, 0, -0.001), -1
    brightest = normalised(pictures[TRAIN:]).max()
    kernel[0, 0, 0, 3] = 1.001 / brightest  # above zero at the brightest pixel only
    params["C1/kernel"], params["C1/bias"] = jnp.asarray(kernel), jnp.asarray(bias)
    first, *_ = layer_statistics.of_layers(Looking(subject), Looking(subject).tested)
    assert (first.layer, first.units) == ("C1", 6)
    x = jnp.asarray(normalised(pictures[TRAIN:]))
    reach = np.asarray(x)[:, : SIDE - 4, : SIDE - 4, 0].max()
    assert first.dead == 3 + int(reach < brightest)


def test_gradients_are_those_of_the_mean_loss(looking, network, pictures):
    ids = np.arange(TRAIN)
    results = layer_statistics.gradients(looking, ids)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    x, labels = jnp.asarray(normalised(pictures[ids])), jnp.asarray(ids % CLASSES)

    def loss(params):
        logits = nnx.merge(graphdef, params, rest)(x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    grads = cnn_arch.flat_state(jax.jit(jax.grad(loss))(params))
    assert results[0].layer == "conv1/conv"
    assert len(results) == 8
    for result in results:
        expected = float(np.square(np.asarray(grads[f"{result.layer}/kernel"], np.float64)).mean())
        assert result.mean_square == pytest.approx(expected, rel=1e-3)
        assert (result.images, result.weights) == (TRAIN, grads[f"{result.layer}/kernel"].size)


# ------------------------------------------------------------------------------- the whole

FAMILIES = [
    ("cifar_resnet:8", {"width": 0.5}, {}),
    pytest.param("googlenet:paper", {"width": 0.1}, {}, marks=pytest.mark.slow),
    ("lenet5:original", {}, {"nearest", "codes"}),
    ("nin:mnist", {"width": 0.1}, {"nearest", "codes"}),
]


@pytest.mark.parametrize(("arch", "options", "left_out"), FAMILIES)
def test_all_families_can_be_looked_at(tmp_path, arch, options, left_out):
    side = 32
    made_up.squares(tmp_path / "set.npz", side, 1, CLASSES, 40, 12)
    run = made_up.run(tmp_path, arch, side, 1, CLASSES, options)
    looking = Looking(Extractor(run, devices.mesh(), str(tmp_path / "set.npz")))
    heard = []
    settings = inspection.InspectionSettings(units=3, images=8, bits=16)
    result = inspection.inspect(looking, settings, heard.append)
    assert tuple(heard) == inspection.PARTS
    assert result.left_out.keys() == set(left_out)
    report = inspection_report.report(result)
    paths = write(report, tmp_path / "told")
    page = paths["report"].read_text()
    for part in inspection.PARTS:
        drawn = [figure for figure in report.figures if figure.name.partition("-")[0] == part]
        if part in left_out:
            assert "no fully connected layer" in drawn[0].note
            assert "Left out:" in page
        elif part != "codes":
            assert drawn
            assert all(figure.svg and figure.canvas.caption for figure in drawn), part
    (gradients,) = (figure for figure in report.figures if figure.name == "gradients")
    assert gradients.canvas.axes[0, 0].get_ylabel() == "root mean square, log scale"
    assert smallest_text(page) >= 9
    tables = {table.name for table in report.tables}
    assert tables == {"layers"} | (set() if left_out else {"codes"})
    inspection.write(result, tmp_path / "told" / inspection.FILE)
    with np.load(tmp_path / "told" / inspection.FILE) as file:
        for name in file.files:
            documented = [pattern for pattern in inspection.ARRAYS if fits(name, pattern)]
            assert len(documented) == 1, name


def fits(name, pattern):
    begins, _, ends = pattern.partition("LAYER" if "LAYER" in pattern else "HOW")
    if not ends:
        return name == pattern
    return name.startswith(begins) and name.endswith(ends)


def test_pictures_of_a_mosaic_have_one_scale_and_lie_in_the_middle_of_their_cells():
    large, small = np.full((16, 16, 1), 200, np.uint8), np.full((16, 8, 1), 100, np.uint8)
    mosaic, cell = inspection_report.mosaic([[large, small], [small]])
    assert mosaic.shape == (2 * cell, 2 * cell, 3)
    assert cell == 48 + inspection_report.GAP
    assert [int((mosaic == value).all(axis=2).sum()) for value in (200, 100)] == [
        48**2,
        2 * 48 * 24,
    ]
    columns = np.flatnonzero((mosaic[:cell, cell:] == 100).all(axis=2).any(axis=0))
    assert abs(columns[0] - (cell - 1 - columns[-1])) <= 1
    photograph = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    shrunk = inspection_report.crisp(photograph)
    assert shrunk.shape == (40, 60, 3)
    np.testing.assert_allclose(shrunk[1, 2], photograph[5:10, 10:15].mean(axis=(0, 1)), atol=0.5)


def test_a_reason_keeps_its_dots_and_ends_in_one():
    for reason in ("../sets/a.npz is not there", "../sets/a.npz is not there."):
        result = inspection.Inspection(
            "run", 1, "set", ("a", "b"), ("a", "b"), True, True, left_out={"codes": reason}
        )
        (figure,) = inspection_report.draw_codes(result)
        assert figure.note == "Left out: ../sets/a.npz is not there."


def test_other_classes_than_the_networks_are_said(folder, pictures):
    run = made_up.run(folder / "others", "cifar_resnet:8", SIDE, 1, CLASSES + 2, {"width": 0.5})
    looking = Looking(Extractor(run, devices.mesh(), str(folder / "set.npz")))
    settings = inspection.InspectionSettings(("saliency", "occlusion", "statistics"), images=8)
    result = inspection.inspect(looking, settings)
    assert not result.own_classes
    model = classifier.load(run.folder)
    expected = model(result.images.pictures).argmax(axis=1)
    assert result.saliency.classes.tolist() == expected.tolist()
    assert "not the network's" in result.left_out["gradients"]
    captions = [f.canvas.caption for f in inspection_report.report(result).figures if f.canvas]
    assert sum("the class that the network finds" in caption for caption in captions) == 2


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"layers": ("conv2",)}, ArchitectureError, "Did you mean 'conv1'"),
        ({"parts": ("unit",)}, ConfigError, "is 'units' meant"),
        ({"units": 0}, ConfigError, "--units 0; expected at least 1"),
        ({"images": -1}, ConfigError, "--images -1"),
        ({"bits": 0}, ConfigError, "--bits 0"),
    ],
)
def test_what_cannot_be_asked(looking, asked, error, told):
    with pytest.raises(error, match=told):
        inspection.inspect(looking, inspection.InspectionSettings(**asked))
