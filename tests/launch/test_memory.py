"""The estimate of a training step's memory against closed forms, and against compiled programs."""

import dataclasses
import json

import pytest

from experiments import network
from experiments.data.resident import Resident
from launch import devices
from launch.bench import measure_programs as programs
from launch.chips import ChipSet
from launch.planning import fit, graph, memory, table_plan
from launch.verbs import doctor

RESIDENT = 60_000 * (32 * 32 * 3 + 4)  # as many images as CIFAR-10 has, and their labels
CHIP, GPU = "v5e:1x1", "h100:1"


def need(arch, chips=CHIP, dtype="bfloat16", batch=256, **changes):
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config = programs.config_of(arch, dtype, batch, keys)
    data = programs.data_of(config)
    census = network.cost(config, data.classes, data.channels)
    resident = RESIDENT if isinstance(data, Resident) else 0
    return memory.need(
        census, config, fit.KINDS[ChipSet(chips).chip.platform], ChipSet(chips).count, resident
    )


# ---------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("chips", [CHIP, GPU, "h100:8"])
def test_state_is_parameters_and_momentum_and_what_keys_add(chips):
    params = 4 * network.cost(programs.config_of("resnet:50", "float32", 256), 1000, 3).params
    assert need("resnet:50", chips).state == need("resnet:50", chips, "float32").state == 2 * params
    assert need("resnet:50", chips, train__ema=0.99).state == 3 * params
    assert need("resnet:50", chips, train__accumulate=2).state == 3 * params
    assert need("googlenet", chips).state > 8 * 6_998_552  # auxiliary classifiers are trained too


@pytest.mark.parametrize("chips", [CHIP, GPU])
@pytest.mark.parametrize("arch", ["resnet:50", "vgg:D"])
def test_maps_go_with_the_images_of_a_micro_batch_on_a_device(arch, chips):
    def grows(**changes):
        return need(arch, chips, **{"batch": 512, **changes}).maps - base

    zero = 2 * need(arch, chips, batch=256).maps - need(arch, chips, batch=512).maps
    base = zero  # gradients, and parameters in bfloat16: the same at any batch
    growth = grows()
    assert grows(batch=1024) == pytest.approx(2 * growth, rel=0.01)
    assert grows(train__accumulate=2) == pytest.approx(growth / 2, rel=0.01)


@pytest.mark.parametrize("name", ["v5e:2x4", "h100:8"])
def test_devices_share_maps_and_each_has_the_state(name):
    device = "v5e:1x1" if name.startswith("v5e") else GPU
    many, single = need("resnet:18", name, batch=2048), need("resnet:18", device, batch=256)
    assert many.state == single.state
    assert many.images == single.images
    assert many.maps == pytest.approx(single.maps, rel=0.05)


def test_bfloat16_halves_maps_and_a_resident_set_lies_on_each_device():
    narrow, wide = (need("cifar_resnet:20", GPU, dtype, 512) for dtype in ("bfloat16", "float32"))
    assert narrow.maps == pytest.approx(wide.maps / 2, rel=0.02)
    assert narrow.data == wide.data == need("cifar_resnet:20", "h100:8", batch=512).data == RESIDENT


def test_a_tpu_pads_images_or_channels_to_its_lanes():
    assert need("resnet:18", batch=64).maps > 1.5 * need("resnet:18", GPU, batch=64).maps
    assert need("resnet:18", batch=65).maps == pytest.approx(need("resnet:18", batch=72).maps)


@pytest.mark.parametrize("chips", [CHIP, GPU])
@pytest.mark.parametrize("arch", ["resnet:50", "vgg:D", "cifar_resnet:110"])
def test_stages_that_forget_their_inner_maps_need_less(arch, chips):
    assert need(arch, chips, train__remat=True).maps < 0.8 * need(arch, chips).maps


# ------------------------------------------------------------------------------- mends


def mended(arch, batch, room, count=1, dtype="float32", **changes):
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config = programs.config_of(arch, dtype, batch, keys)
    census = network.cost(config, 1000, 3)
    mends = memory.mends(census, config, "tpu", room, count)
    for mend in mends:
        assert memory.need(census, config, "tpu", count, 0, mend).total <= room
        if parts := mend.get("train.accumulate"):
            assert batch % (parts * count) == 0
            assert (batch // parts) % (config.model.get("bn_group_size") or 1) == 0
    return mends


def test_mends_are_the_least_that_fit():
    assert mended("resnet:152", 256, 16e9) == [{"train.accumulate": 4}, {"train.remat": True}]
    both = mended("resnet:152", 256, 5e9)
    assert both
    assert {len(mend) for mend in both} == {min(map(len, both))}
    assert mended("vgg:D", 256, 1e9) == []  # parameters and momentum alone are more


def test_mends_keep_groups_whole_and_spread_over_the_devices():
    (first, *_) = mended("resnet:152", 2048, 16e9, count=8, model__bn_group_size=32)
    assert first["train.accumulate"] in (2, 4, 8)
    only = mended("resnet:152", 256, 16e9, train__remat=True, model__bn_group_size=256)
    assert all("train.accumulate" not in mend for mend in only)


@pytest.mark.parametrize(
    ("devices_", "group", "parts", "times"),
    [(1, 0, 1, 0), (8, 0, 1, 2), (8, 0, 2, 4), (8, 32, 1, 0), (8, 64, 1, 2), (4, 48, 1, 2)],
)
def test_groups_that_span_devices_exchange_twice_a_micro_batch(devices_, group, parts, times):
    keys = {"model.bn_group_size": group, "train.accumulate": parts}
    config = programs.config_of("resnet:50", "float32", 256 if group != 48 else 192 * 4, keys)
    census = network.cost(config, 1000, 3)
    if group == 48:
        config.train.batch_size = 4 * 40
    assert memory.exchanges(census, config, devices_) == times * 53


# ------------------------------------------------------------------------------ what is told


@pytest.fixture
def plan(tmp_path, call):
    def plan(*words):
        result = call(
            "table",
            "resnet",
            "--profile",
            "paper",
            "--plan",
            "--rate",
            "1T",
            *words,
            "--runs",
            tmp_path,
        )
        return result

    return plan


def test_a_plan_names_rows_that_do_not_fit_and_what_makes_them_fit(plan):
    status, out, _ = plan("--rows", "ResNet-152*", "--chips", "v5e:1x1", "--json")
    assert status == 0
    document = json.loads(out)
    (warning,) = document["warnings"]
    assert "152" in warning
    for word in ("GiB on each device of v5e:1x1", "14.9", "train.accumulate=", "train.remat=true"):
        assert word in warning
    (misfit,) = document["runs"][0]["fits"]
    assert misfit["needed"] > misfit["there"] == 16e9
    assert {"train.remat": True} in misfit["mends"]


def test_a_plan_names_groups_that_span_devices(plan):
    _, out, _ = plan("--rows", "ResNet-50*", "--chips", "2*h100:8", "--json")
    (warning, *_) = json.loads(out)["warnings"]
    assert "exchanged 106 times a step" in warning
    assert "model.bn_group_size=16" in warning


def test_without_accelerators_nothing_is_warned_of(plan):
    _, out, _ = plan("--rows", "ResNet-152*", "--json")
    document = json.loads(out)
    assert document["warnings"] == []
    assert document["runs"][0]["fits"] == []


def test_accelerators_of_this_machine_are_warned_of(plan, monkeypatch):
    probe = devices.Probe("tpu", 4, 1e12, memory=2 * 2**30, kind="TPU v9")
    monkeypatch.setattr(devices, "plugins", lambda platform: ["some"])
    monkeypatch.setattr(devices, "probe", lambda slot: probe)
    assert fit.targets(None) == [fit.Devices("4 x TPU v9", "tpu", 4, 2 * 2**30)]
    monkeypatch.setattr(devices, "probe", lambda slot: dataclasses.replace(probe, platform="gpu"))
    assert fit.targets(None)[0].count == 1  # a row has one GPU
    monkeypatch.setattr(devices, "probe", lambda slot: dataclasses.replace(probe, platform="cpu"))
    assert fit.targets(None) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--chips", "v5e"), "expected KIND:SHAPE"),
        (("--chips", "b9:8"), "expected KIND:SHAPE"),
        (("--rate", "fast"), "--rate 'fast': expected multiply-adds a second"),
    ],
)
def test_unknown_chips_and_rates_are_one_line_before_anything_is_planned(
    plan, monkeypatch, words, expected
):
    monkeypatch.setattr(table_plan, "plan", None)
    status, _, error = plan(*words)
    assert status == 2
    assert error.strip().count("\n") == 0
    assert expected in error


def test_unknown_chips_of_a_sweep_are_one_line_before_anything_is_planned(
    call, monkeypatch, tmp_path
):
    monkeypatch.setattr(graph, "plan", None)
    words = ("--backend", "slurm", "--dry-run", "--chips", "v5e", "--runs", tmp_path)
    status, _, error = call("sweep", "vgg_depth", *words)
    assert (status, error.strip().count("\n")) == (2, 0)
    assert "expected KIND:SHAPE" in error


def test_chips_of_a_sweep_go_with_a_dry_run(call, tmp_path):
    status, _, error = call("sweep", "vgg_depth", "--chips", "h100:8", "--runs", tmp_path)
    assert status == 2
    assert "--chips goes with --dry-run" in error


def test_doctor_tells_what_does_not_fit_and_survives_what_is_broken(monkeypatch):
    rows = json.dumps([["resnet/resnet-152", "train.remat=true makes it fit"]])
    monkeypatch.setattr(doctor, "MEMORY", f"print('''{rows}''')")
    (finding,) = doctor._memory("tpu", 16 * 2**30)
    assert (finding.what, finding.state) == ("memory", "warn")
    assert "train.remat=true makes it fit: resnet/resnet-152" in finding.mend
    monkeypatch.setattr(doctor, "MEMORY", "print('[]')")
    (finding,) = doctor._memory("tpu", 16 * 2**30)
    assert finding.state == "ok"
    monkeypatch.setattr(doctor, "MEMORY", "import no_such_package")
    assert list(doctor._memory("tpu", 16 * 2**30)) == []


def test_a_share_of_memory_that_is_no_number_is_told(monkeypatch):
    for value in ("half", "nan", "-0.5", "0"):
        monkeypatch.setenv(fit.FRACTION, value)
        with pytest.raises(devices.DeviceError, match=f"{fit.FRACTION}={value}: expected a number"):
            fit.targets("h100:8")
    assert fit.targets("v5e:1x1")[0].memory == 16e9


@pytest.mark.slow
def test_rows_of_the_paper_profile_are_looked_at():
    mends = dict(fit.too_large("tpu", 16e9))
    assert any("152" in row for row in mends)
    assert not any("resnet-18" in row for row in mends)


# --------------------------------------------------------------- with the compilers installed

ACCUMULATE, REMAT = (("train.accumulate", 4),), (("train.remat", True),)
COMPILED = [
    ("resnet:18", CHIP, "float32", 64, ()),
    ("resnet:18", CHIP, "bfloat16", 256, ()),
    ("resnet:18", GPU, "float32", 64, ()),
    ("resnet:18", GPU, "bfloat16", 256, ()),
    ("resnet:34", CHIP, "bfloat16", 128, ()),
    ("resnet:50", CHIP, "float32", 64, ()),
    ("resnet:50", CHIP, "bfloat16", 256, ()),
    ("resnet:50", CHIP, "bfloat16", 256, ACCUMULATE),
    ("resnet:50", CHIP, "bfloat16", 256, REMAT),
    ("resnet:50", GPU, "float32", 64, ()),
    ("resnet:50", GPU, "bfloat16", 256, ()),
    ("resnet:50", GPU, "bfloat16", 256, ACCUMULATE),
    ("resnet:50", GPU, "bfloat16", 256, REMAT),
    ("resnet:101", GPU, "bfloat16", 128, ()),
    ("resnet:152", CHIP, "bfloat16", 64, ()),
    ("resnet:152", GPU, "bfloat16", 64, ()),
    ("googlenet:torchvision", CHIP, "bfloat16", 128, ()),
    ("googlenet:torchvision", GPU, "bfloat16", 128, ()),
    ("vgg:A", CHIP, "bfloat16", 64, ()),
    ("vgg:A", CHIP, "float32", 256, ()),
    ("vgg:A", GPU, "bfloat16", 64, ()),
    ("vgg:A", GPU, "float32", 256, ()),
    ("vgg:D", CHIP, "float32", 64, ()),
    ("vgg:D", CHIP, "bfloat16", 256, ()),
    ("vgg:D", CHIP, "bfloat16", 256, ACCUMULATE),
    ("vgg:D", CHIP, "bfloat16", 256, REMAT),
    ("vgg:D", "v5e:2x4", "bfloat16", 256, ()),
    ("vgg:D", GPU, "float32", 64, ()),
    ("vgg:D", GPU, "bfloat16", 256, ()),
    ("vgg:D", GPU, "bfloat16", 256, ACCUMULATE),
    ("vgg:D", GPU, "bfloat16", 256, REMAT),
    ("vgg:D", "h100:8", "bfloat16", 256, ()),
    ("vgg:E", CHIP, "float32", 64, ()),
    ("vgg:E", CHIP, "bfloat16", 256, ()),
    ("vgg:E", GPU, "float32", 64, ()),
    ("vgg:E", GPU, "bfloat16", 256, ()),
    *(
        (arch, chips, dtype, batch, ())
        for arch, wide, narrow in (
            ("alexnet:two_gpu", 128, 512),
            ("googlenet:paper", 128, 256),
            ("nin:cifar10", 512, 512),
        )
        for chips in (CHIP, GPU)
        for dtype, batch in (("float32", wide), ("bfloat16", narrow))
    ),
    ("cifar_resnet:20", CHIP, "float32", 128, ()),
    ("cifar_resnet:20", GPU, "bfloat16", 512, ()),
    ("cifar_resnet:110", CHIP, "float32", 512, ()),
    ("cifar_resnet:110", CHIP, "bfloat16", 512, REMAT),
    ("cifar_resnet:110", GPU, "float32", 128, ()),
    ("cifar_resnet:110", GPU, "bfloat16", 512, ()),
    ("alexnet:two_gpu", CHIP, "float32", 512, ()),
    ("alexnet:two_gpu", "v5e:2x4", "bfloat16", 128, ()),
    ("vgg:D", "v5e:2x4", "bfloat16", 512, ()),
]


@pytest.mark.programs
@pytest.mark.parametrize(("arch", "chips", "dtype", "batch", "changes"), COMPILED)
def test_the_estimate_is_near_the_compiled_program(arch, chips, dtype, batch, changes):
    case = programs.Case(arch, chips, dtype, batch, changes=changes)
    keys = {key.replace(".", "__"): value for key, value in changes}
    estimate = need(arch, chips, dtype, batch, **keys).total
    assert estimate == pytest.approx(programs.compiled(case).memory, rel=0.15, abs=0.2e9)
