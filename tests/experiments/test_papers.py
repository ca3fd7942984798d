"""The papers' tables beside the CSVs they print, and the studies that are to measure them."""

import csv
import dataclasses
import importlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnn_arch
from experiments import config as configs
from experiments import data as data_lib
from experiments import papers
from experiments.config.profiles import PROFILES
from experiments.papers import recipe
from experiments.papers.table import (
    FOLDER,
    HEADS,
    Count,
    Difference,
    EpochsRatio,
    Error,
    Transferred,
)
from experiments.runs.results import RunResult
from experiments.testing import protocols
from experiments.training import optimizer
from input_pipeline import crops
from input_pipeline.sources import is_streamed

STUDIES = (
    *("vgg", "vgg_transfer", "resnet", "cifar_resnet", "alexnet", "alexnet_cifar"),
    *("googlenet", "nin", "lenet", "dan_net", "goyal"),
)
IMAGENET = ("vgg", "vgg_transfer", "resnet", "alexnet", "googlenet", "goyal")
# Lines of the CSVs that no table shows: file, column, its value, why.
LEFT_OUT = (
    ("alexnet_ablations", "row", "fall2009_top1", "the data are not given out"),
    ("alexnet_ablations", "row", "fall2009_top5", "the data are not given out"),
    ("alexnet_ablations", "row", "second_2012", "in Table 2, as SIFT + FVs"),
    ("alexnet_ablations", "row", "aug_factor", "no result"),
    ("alexnet_ablations", "row", "neurons", "no result"),
    ("dannet_results", "row", "MNIST", "the best of the table of MNIST"),
    ("dannet_results", "row", "NORB", "the best of the table of NORB"),
    ("dannet_results", "row", "CIFAR10", "the best of the table of CIFAR-10"),
    ("googlenet_table3", "metric", "cost", "in the names of the rows"),
    ("googlenet_table3", "metric", "change_vs_base", "differences of the errors beside them"),
    ("lenet_text_numbers", "row", "distorted set", "no result"),
    ("lenet_text_numbers", "row", "misclassified", "0.8% in the figure"),
    *(("lenet_text_numbers", "metric", size, "no result") for size in ("connections", "params")),
    ("resnet_table6", "metric", "layers", "in the names of the rows"),
    ("resnet_table6", "metric", "params", "counts beside the errors"),
    ("resnet_table6", "value", "6.43", "the best of the five runs, in the row's note"),
    ("resnet_table6", "value", "7.72", "the mean of the runs whose best is shown"),
    ("resnet_text_numbers", "row", "ResNet-1202 train", "a training error"),
    ("resnet_text_numbers", "metric", "top5_localisation_error", "no classification"),
    ("resnet_text_numbers", "metric", "localisation_error_gt_class", "no classification"),
    *(("resnet_text_numbers", "table", number, "detection") for number in "78"),
    ("vgg_text_numbers", "row", "4.2 E test", "on the test server"),
    ("vgg_text_numbers", "row", "4.4 best single", "in Table 5"),
    ("vgg_text_numbers", "row", "4.5 Clarifai with outside data", "another group's system"),
    ("vgg_text_numbers", "row", "B VOC scales", "other tasks"),
)


@cache
def study(name, profile):
    return configs.read(f"{name}:profile={profile}")


def resolved(name, profile, row_name):
    """The config of a row of a study."""
    definition = study(name, profile)
    (row,) = [row for row in definition.rows if row.name == row_name]
    return definition.config_of(row)


def every_table():
    """Of every paper's module, also those whose names are the same."""
    modules = [importlib.import_module(f"experiments.papers.{p}") for p in papers.PAPERS]
    return [table for module in modules for table in module.tables()]


def every_net(profile="paper"):
    """(table, row, net, the study the net is of in a profile)."""
    return [
        (table, row, net, table.study_of(net, profile))
        for table in every_table()
        for row in table.rows
        for net in row.nets
    ]


def test_names_are_unique():
    names = [table.name for table in every_table()]
    assert len(set(names)) == len(names)
    assert list(papers.tables()) == names
    for table in every_table():
        rows = [row.name for row in table.rows]
        assert len(set(rows)) == len(rows), table.name
        assert len({column.key for column in table.columns}) == len(table.columns)


def test_tables_are_named_after_the_module_of_their_paper():
    for paper in papers.PAPERS:
        assert papers.title(paper)
        for table in importlib.import_module(f"experiments.papers.{paper}").tables():
            assert table.paper == paper


def test_printed_figures_have_a_column_and_rows_that_are_not_measured_say_why():
    for table in every_table():
        for row in table.rows:
            where = f"{table.name}, {row.name}"
            assert set(row.printed) <= {column.key for column in table.columns}, where
            assert row.measured is not None or row.note, where
            assert row.measured is not None or not row.borrowed, where
            assert row.printed or row.measured is not None, where
            assert set(row.costly) <= set(PROFILES), where


@pytest.mark.parametrize("profile", PROFILES)
def test_every_net_is_a_row_of_its_study_in_every_profile(profile):
    missing = [
        f"{table.name}, {row.name}: {net.row!r} of {name}"
        for table, row, net, name in every_net(profile)
        if net.row not in {r.name for r in study(name, profile).rows}
    ]
    assert not missing, "\n".join(missing)


def test_every_row_of_the_papers_studies_is_in_a_table():
    used = {(name, net.row) for p in PROFILES for *_, net, name in every_net(p)}
    used |= {  # what seeds a row that is in a table
        (name, row.seed_from) for name in STUDIES for row in study(name, "paper").rows
    }
    rows = {(name, row.name) for name in STUDIES for row in study(name, "paper").rows}
    assert not rows - used


@pytest.mark.parametrize("profile", PROFILES)
def test_every_net_can_be_tested_as_its_table_says(profile):
    for table, row, net, name in every_net(profile):
        config = resolved(name, profile, net.row)
        scales = net.scales
        if scales and scales not in protocols.SCALES:
            sides = (int(Q) for Q in scales.split(","))
            crop = config.data.image_size
            scales = ",".join(str(crops.in_ratio(Q, crop, table.crop)) for Q in sides)
        passes = protocols.resolve(net.protocol, config, scales)
        assert passes, f"{table.name}, {row.name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((32, 32, 3), 40 * i, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg")
    return str(root)


def opened(d, folder):
    """Digits, or a folder that is as large as ILSVRC; sets that are downloaded are not opened."""
    if d.name == "digits":
        return data_lib.open_data(d)
    if is_streamed(d.name):
        d = type(d)({**d, "name": "folder", "path": folder})
        return dataclasses.replace(data_lib.open_data(d), train=1_281_167)
    return None


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_can_be_trained_on_the_images_of_its_profile(name, profile, folder):
    small = configs.read("vgg:profile=demo").config.data  # any that opens
    for row in study(name, profile).rows:
        config = resolved(name, profile, row.name)
        cnn_arch.registry.check(
            config.model.arch,
            image_size=config.data.image_size,
            **configs.builder_options(config.model),
        )
        opened_data = opened(config.data, folder)
        if opened_data is None:  # digits stand in: whether the view is one of sets on the device
            config.data.update(mirror=False, frame=0)
            opened_data = dataclasses.replace(data_lib.open_data(small), train=50_000)
        data_lib.check(config, opened_data)


@pytest.mark.parametrize("name", STUDIES)
def test_profiles_are_of_the_images_they_say_and_the_paper_is_at_full_width(name):
    for row in study(name, "demo").rows:
        assert resolved(name, "demo", row.name).data.name == "digits"
    for row in study(name, "folder").rows:
        assert is_streamed(resolved(name, "folder", row.name).data.name)
    for row in study(name, "paper").rows:
        config = resolved(name, "paper", row.name)
        assert config.model.get("width", 1.0) == 1.0
        assert is_streamed(config.data.name) == (name in IMAGENET)
        if name in IMAGENET:
            assert config.data.image_size == 224


def result_files():
    """The CSVs of results, and the lines of each."""
    files = {}
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        if "metric" in rows[0]:
            files[path.stem] = rows
    return files


def as_printed(line):
    return line["value"].lstrip("<>"), line["std"], line["verified"], line["note"]


def is_left_out(file, line):
    return any(file == f and line[column] == value for f, column, value, _ in LEFT_OUT)


def test_every_printed_figure_is_a_line_of_a_csv():
    lines = {as_printed(line) for lines in result_files().values() for line in lines}
    lines = {(value, float(std) if std else None, *rest) for value, std, *rest in lines}
    for table in every_table():
        for row in table.rows:
            for printed in row.printed.values():
                entry = (printed.text.lstrip("<>"), printed.std, printed.source, printed.note)
                assert entry in lines, f"{table.name}, {row.name}: {printed}"
                number = printed.text.removeprefix("about").strip().lstrip("<>")
                assert printed.value == float(number)


@pytest.mark.parametrize("file", result_files())
def test_every_line_of_a_csv_is_in_a_table_or_left_out_with_a_reason(file):
    paper = {"dannet": "dan_net"}.get(file.split("_")[0], file.split("_")[0])
    counts = Counter(
        (printed.text.lstrip("<>"), printed.source, printed.note)
        for table in every_table()
        if table.paper == paper
        for row in table.rows
        for printed in row.printed.values()
    )
    for line in result_files()[file]:
        value, _, *where = as_printed(line)
        if not is_left_out(file, line):
            assert counts[(value, *where)], f"{file}: {line}"
            counts[(value, *where)] -= 1


def test_lines_that_are_left_out_are_there_and_have_a_reason():
    files = result_files()
    for file, column, value, reason in LEFT_OUT:
        assert reason
        assert any(line[column] == value for line in files[file]), (file, value)


def figure(table, row_name, column):
    (row,) = [row for row in papers.tables()[table].rows if row.name == row_name]
    return row, row.printed[column]


@pytest.mark.parametrize(
    ("table", "row", "column", "text", "std", "nets"),
    [
        ("alexnet-1", "CNN, one crop (footnote)", "top5", "18.3", None, ["two_gpu center 1"]),
        ("alexnet-2", "5 CNNs", "top1", "38.1", None, ["two_gpu ten_crop 5"]),
        ("alexnet-cifar", "normalisation", "top1", "11", None, ["LRN ten_crop 1"]),
        ("googlenet-3", "7 models, 144 crops (cost 1008)", "top5", "6.67", None, None),
        ("nin-1", "NIN + Dropout + Data Augmentation", "top1", "8.81", None, None),
        ("nin-5", "mlpconv + Fully Connected", "top1", "11.59", None, ["CIFAR-10 fc center 1"]),
        ("lenet-fig9", "LeNet-5", "top1", "0.95", None, ["LeNet-5 center 1"]),
        ("goyal-1", "no warmup kn=8k", "top1", "24.84", 0.37, ["kn=8k no warm-up center 1"]),
        ("goyal-2", "2b kn=256 gamma=0.0", "top1", "23.60", 0.12, ["kn=256 lr=0.10 center 1"]),
        ("goyal-2", "2a kn=8k lr=0.10", "top1", "41.67", 0.10, ["kn=8k lr=0.10 center 1"]),
    ],
)
def test_figures_are_beside_the_nets_that_measure_them(table, row, column, text, std, nets):
    table_row, printed = figure(table, row, column)
    assert (printed.text, printed.std) == (text, std)
    if nets is not None:
        assert [f"{n.row} {n.protocol} {n.members}" for n in table_row.nets] == nets


def test_differences_grow_where_the_paper_says_that_something_helps():
    for row in papers.tables()["alexnet-text"].rows:
        assert isinstance(row.measured, Difference)
        assert row.measured.second.row == "two_gpu"
        assert row.measured.first.row != "two_gpu"
        assert all(printed.value > 0 for printed in row.printed.values())
    rows = papers.tables()["alexnet-relu"].rows
    for row, divided in zip(rows, (False, True), strict=True):
        assert isinstance(row.measured, EpochsRatio)
        assert row.measured.error == 25.0
        for nets, activation in ((row.measured.slow, "tanh"), (row.measured.fast, "relu")):
            net_configs = [resolved("alexnet_cifar", "cifar", net.row) for net in nets]
            assert {c.model.activation for c in net_configs} == {activation}
            assert {c.data.divide_by_std for c in net_configs} == {divided}
            assert len({c.schedule.lr for c in net_configs}) == len(nets) == (4 if divided else 5)
    assert [row.printed["speed"].value for row in rows if row.printed] == [6.0]


def test_recalled_figures_keep_their_source():
    rows = {r.name: r for r in papers.tables()["dan_net-cifar"].rows}
    sources = {name: r.printed["top1"].source for name, r in rows.items()}
    assert sum(source == "memory" for source in sources.values()) == 7
    best = sources["300 maps, translation 5%, image processing no"]
    assert best.startswith("abstract http")


def test_nets_of_one_paper_that_another_prints_are_that_papers_rows():
    tables = papers.tables()
    (vgg,) = [r for r in tables["googlenet-2"].rows if r.name.startswith("VGG 2014")]
    assert {net.study for net in vgg.nets} == {"vgg"}
    assert len(vgg.nets) == 7
    borrowed = [r for t in every_table() for r in t.rows if r.borrowed]
    assert borrowed
    for row in borrowed:
        assert isinstance(row.measured, Error)
        assert all(net.study for net in row.nets), row.name


def test_heads_are_of_a_tables_columns_and_tested_on_one_set_in_each_profile():
    (eleven,) = {
        t.name for t in every_table() for r in t.rows if isinstance(r.measured, Transferred)
    }
    table = papers.tables()[eleven]
    for row in (row for row in table.rows if row.nets):
        on = row.measured.on
        assert set(on) == {column.key for column in table.columns if column.what in HEADS}
        for profile in PROFILES:
            keys = {key for key in on if row.measured.target(key, profile)}
            assert keys == (set(row.printed) if profile == "paper" else {"own"})
        for targets in on.values():
            meant = [profile for target in targets for profile in target.profiles]
            assert len(meant) == len(set(meant))
    both = table.rows[-1]
    assert (both.name, [net.row for net in both.nets]) == (
        "VGG Net-D & Net-E",
        ["D [256;512]", "E [256;512]"],
    )


def test_recipes_of_features_are_the_papers():
    """Section B of arXiv:1409.1556."""
    targets = {
        key: target for key, (target, *_) in papers.tables()["vgg-11"].rows[-1].measured.on.items()
    }
    voc = ("256,384,512,640,768", "mean", None, None, 1)
    for key, expected in {
        "VOC-2007": voc,
        "VOC-2012": voc,
        "Caltech-101": ("256,384,512", "concatenate", 30, 50, 3),
        "Caltech-256": ("256,384,512", "concatenate", 60, None, 3),
    }.items():
        target = targets[key]
        recipe = (
            target.scales,
            target.combine,
            target.train_per_class,
            target.test_per_class,
            target.splits,
        )
        assert recipe == expected, key
    assert targets["VOC-2007"].precision == "eleven_points"
    assert targets["VOC-2012"].precision == "all_points"
    assert figure("vgg-11", "VGG Net-D & Net-E", "Caltech-256")[1].std == 0.3


@pytest.mark.parametrize("profile", PROFILES)
def test_nets_of_some_classes_are_those_of_all_but_for_these(profile):
    classes = {"demo": 8, "cifar": 6}.get(profile, 0)
    for row in study("vgg_transfer", profile).rows:
        config, full_config = (
            resolved(name, profile, row.name) for name in ("vgg_transfer", "vgg")
        )
        assert len(config.data.classes) == classes
        config.data.classes = ()
        assert config == full_config


def test_counted_rows_name_networks():
    for table in every_table():
        for row in table.rows:
            if isinstance(row.measured, Count):
                assert set(row.measured.options) <= set(cnn_arch.options(row.measured.arch))


def rates(config, epochs):
    """The learning rate at these epochs of `train.epochs`, of a training of 9,000 steps."""
    schedule = optimizer.Schedule(config, 9000)
    return [schedule.rate(round(9000 * epoch / config.train.epochs)) for epoch in epochs]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # Goyal et al., sections 2.2 and 5.1, at the start and at epochs 2.5, 5, 30, 60 and 80.
        ("kn=256 lr=0.10", [0.1, 0.1, 0.1, 0.01, 0.001, 0.0001]),
        ("kn=8k lr=0.10*32", [0.1, 1.65, 3.2, 0.32, 0.032, 0.0032]),
        ("kn=8k constant warm-up", [0.1, 0.1, 3.2, 0.32, 0.032, 0.0032]),
        ("kn=8k no warm-up", [3.2, 3.2, 3.2, 0.32, 0.032, 0.0032]),
        ("kn=8k lr=0.20*32", [0.2, 3.3, 6.4, 0.64, 0.064, 0.0064]),
        ("kn=8k lr=0.10", [0.1, 0.1, 0.1, 0.01, 0.001, 0.0001]),
    ],
)
def test_rates_of_large_batches_are_the_papers(row, expected):
    config = resolved("goyal", "paper", row)
    np.testing.assert_allclose(rates(config, (0, 2.5, 5, 30, 60, 80)), expected)
    assert config.train.batch_size == (8192 if "8k" in row else 256)


@pytest.mark.parametrize("profile", PROFILES)
def test_large_batches_stay_in_ratio_and_are_normalised_in_the_small_ones_groups(profile):
    small, large = (resolved("goyal", profile, f"kn={n}") for n in ("256 lr=0.10", "8k lr=0.10*32"))
    assert large.train.batch_size == 32 * small.train.batch_size
    assert large.schedule.lr == pytest.approx(32 * small.schedule.lr)
    assert large.schedule.warmup_lr == small.schedule.lr
    group = small.model.bn_group_size
    assert group == large.model.bn_group_size > 0
    assert small.train.batch_size % group == 0


def test_rates_of_the_older_papers_are_theirs():
    google = resolved("googlenet", "paper", "googlenet")
    google.train.epochs = 60.0
    np.testing.assert_allclose(
        rates(google, (0, 7.9, 8, 16)), 0.01 * 0.96 ** np.array([0, 0, 1, 2])
    )
    dan = resolved("dan_net", "paper", "300 maps, 5%")
    dan_rates = rates(dan, (0, 100, 499))
    np.testing.assert_allclose(dan_rates, [1e-3, 1e-3 * 0.993**100, 3e-5], rtol=0.1)
    lenet = rates(resolved("lenet", "paper", "LeNet-5"), (0, 2, 19))
    np.testing.assert_allclose(np.divide(lenet, lenet[0]), [1, 2 / 5, 1 / 50], rtol=0.3)


@pytest.mark.parametrize(
    ("profile", "changes", "same"),
    [
        ("cifar", {"data.name": "npz", "data.path": "images.npz", "seed": 3}, True),
        ("cifar", {"train.steps_per_dispatch": 4}, True),
        ("cifar", {"train.steps": 300}, False),
        ("cifar", {"data.holdout": 0.1}, False),
        ("demo", {}, False),
    ],
)
def test_a_run_has_the_papers_recipe_just_where_its_config_does(profile, changes, same):
    definition = study("cifar_resnet", profile)
    (row,) = [row for row in definition.rows if row.name == "resnet-20"]
    config = definition.config_of(row, changes)
    content = {"config": json.loads(json.dumps(config.to_dict())), "row": row.name}

    def run(**others):
        return RunResult(Path(), {**content, "study": definition.name, **others}, {}, [], None)

    assert recipe.is_papers(run()) is same
    assert not recipe.is_papers(run(row="resnet-32"))
    assert not recipe.is_papers(run(study="another"))


@pytest.mark.parametrize("row", ["LRN", "no LRN"])
def test_the_recipe_of_alexnets_cifar_net_is_cuda_convnets(row):
    # layer-params-conv-local-11pct.cfg: 300 epochs on batches 1-4, 150 on all of them, "10 more
    # epochs" at a tenth, and 10 at "another factor of 10".
    config = resolved("alexnet_cifar", "paper", row)
    at = (0, 389, 391, 399, 401, 409)
    np.testing.assert_allclose(rates(config, at), [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    steps = config.train.epochs * 50_000 / config.train.batch_size
    assert steps == pytest.approx((300 * 40_000 + 170 * 50_000) / 128)
    assert dict(config.optimizer.rates) == {"*/bias": 2.0}
    assert config.optimizer.weight_decay == 0.004
    assert config.optimizer.decay == ("local*kernel", "fc5/kernel")
    assert (config.optimizer.momentum, config.optimizer.lr_in_velocity) == (0.9, True)
    assert config.model.first_scale == 0.01  # initW 0.0001


@pytest.mark.parametrize(
    ("row", "length", "coefficient", "decay", "last"),
    [
        # epsW, coeff, wc and cccp6's epsW of NIN/svhn_params and NIN/cifar-100_params.
        ("CIFAR-10", 1, 0.1, 1e-5, 0.1),
        ("SVHN", 1, 0.1, 1e-5, 0.1),
        ("CIFAR-100", 0.01, 2, 1e-3, 0.01),
    ],
)
def test_the_recipe_of_nin_is_its_authors(row, length, coefficient, decay, last):
    config = resolved("nin", "paper", row)
    # README.md: 200 epochs, 30 with "one tenth", and 30 with "one tenth again".
    expected = length * coefficient * np.array([1, 1, 0.1, 0.1, 0.01, 0.01])
    np.testing.assert_allclose(rates(config, (0, 199, 201, 229, 231, 259)), expected)
    # A step without a gradient takes epsW * wc of a weight.
    assert config.schedule.lr * config.optimizer.weight_decay == pytest.approx(length * decay)
    factors = dict(config.optimizer.rates)
    assert factors["*/bias"] == 2
    assert factors.get("cccp6/*", 1) == last / length
    assert (config.optimizer.momentum, config.optimizer.lr_in_velocity) == (0.9, True)
    assert (config.train.epochs, config.train.steps, config.train.batch_size) == (260, 0, 128)
    assert (config.model.dropout, config.model.inverted_dropout) == (0.5, False)
