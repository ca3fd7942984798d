"""The doctor finds what is wrong without dying of it, and says how to mend it."""

import json
import os

import jax
import pytest

from launch import devices
from launch.verbs import doctor


def backend(findings: list[doctor.Finding]) -> doctor.Finding:
    (finding,) = [f for f in findings if f.what == "JAX backend"]
    return finding


def test_healthy_machine_is_status_0_and_every_finding_is_named(tmp_path, told):
    report = told("doctor", "--runs", tmp_path)
    assert report["ok"] is True
    whats = {finding["what"] for finding in report["findings"]}
    named = {"Python", "jax", "CPU cores", "JAX backend", "compilation cache", "TensorFlow"}
    assert named | {"model.precision", "runs folder"} <= whats
    assert ("convolutions" in whats) == (jax.default_backend() == "cpu")


def test_probe_tells_the_devices_there_are():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    probed = doctor.probe(environment)
    assert not isinstance(probed, doctor.Finding)
    assert probed["backend"] == "cpu"
    assert len(probed["devices"]) == 3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--xla_no_such_flag=1", "--xla_no_such_flag=1"),
        ("--xla_cpu_enable_fast_math=perhaps", "perhaps"),
        ("xla_cpu_enable_fast_math", "'xla_cpu_enable_fast_math'"),
    ],
)
def test_flag_that_aborts_xla_is_reported_with_its_mend(flags, named, monkeypatch, tmp_path, call):
    monkeypatch.setenv("XLA_FLAGS", flags)
    status, out, _ = call("doctor", "--runs", tmp_path, "--json")
    report = json.loads(out)
    assert (status, report["ok"]) == (1, False)
    finding = backend([doctor.Finding(**f) for f in report["findings"]])
    assert finding.state == "bad"
    assert named in finding.found
    assert "XLA_FLAGS" in finding.mend


@pytest.mark.parametrize(
    ("platforms", "driver", "words"),
    [
        ("cuda", False, ["no NVIDIA driver"]),
        ("cuda", True, ["EXTRA=cuda"]),
        ("gpu", True, ["EXTRA=cuda"]),
        ("tpu", False, ["EXTRA=tpu"]),
        ("tpu", True, ["EXTRA=tpu"]),
        ("metal", True, ["'metal' is none of cpu, cuda, tpu"]),
    ],
)
def test_the_mend_is_of_the_platform_that_is_asked_for(
    platforms, driver, words, monkeypatch, tmp_path
):
    driver_file = tmp_path / "version"
    if driver:
        driver_file.touch()
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", driver_file)
    monkeypatch.setattr(devices, "version", lambda name: None)
    advice = devices.start_advice({"JAX_PLATFORMS": platforms})
    for word in ["unset JAX_PLATFORMS", *words]:
        assert word in advice
    assert ("EXTRA=" in advice) == ("EXTRA=" in words[0])


@pytest.mark.parametrize("words", [["doctor"], ["sweep"], ["train"], ["evaluate"], ["predict"]])
def test_a_platform_that_is_not_there_is_one_line_with_the_mend(words, tmp_path, fresh_python):
    study = {
        "doctor": [],
        "evaluate": ["some"],
        "predict": ["--run", "some", "x.png"],
    }.get(words[0], ["residual_depth"])
    command = ("-m", "launch", *words, *study, "--runs", str(tmp_path))
    process = fresh_python(*command, JAX_PLATFORMS="cuda")
    if words == ["doctor"]:
        assert process.returncode == 1
        assert "JAX_PLATFORMS=cuda does not start" in " ".join(process.stdout.split())
        assert "-> unset JAX_PLATFORMS" in process.stdout
    else:
        assert process.returncode == 2
        line = process.stderr.splitlines()[-1]
        assert "Traceback" not in process.stderr
        assert line.startswith("cnn-depth: error: JAX_PLATFORMS=cuda does not start (")
        assert "unset JAX_PLATFORMS" in line


@pytest.mark.parametrize(
    ("installed", "driver", "said"),
    [
        ([], False, ""),
        ([], True, "there is an NVIDIA driver"),
        (["jax-cuda12-plugin"], True, "jax-cuda12-plugin and an NVIDIA driver"),
        (["jax-cuda13-plugin"], False, "jax-cuda13-plugin is installed"),
        (["libtpu"], False, "libtpu is installed"),
    ],
)
def test_a_plugin_that_jax_does_not_use_is_a_warning(
    installed, driver, said, monkeypatch, tmp_path
):
    probed = {"backend": "cpu", "devices": [{"kind": "cpu", "memory_bytes": None}], "cache": None}
    probed["precision"] = {}
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(doctor, "probe", lambda environment: probed)
    monkeypatch.setattr(doctor, "_convolutions", lambda: iter(()))
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / ("" if driver else "none"))
    monkeypatch.setattr(devices, "version", lambda name: "1" if name in installed else None)
    finding = backend(list(doctor._accelerator()))
    assert finding.state == ("warn" if said else "ok")
    assert said in finding.found
    assert bool(finding.mend) == bool(said)


def test_backend_that_hangs_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(devices, "PROBE_SECONDS", 1)
    finding = doctor.probe(os.environ)
    assert isinstance(finding, doctor.Finding)
    assert finding.state == "bad"
    assert "did not start within 1 s" in finding.found


def test_what_a_precision_means_here_is_told():
    probed = doctor.probe({**os.environ, "JAX_PLATFORMS": "cpu"})
    assert not isinstance(probed, doctor.Finding)
    finding = doctor._precision(probed["precision"])
    assert finding.what == "model.precision"
    assert finding.found == "float32, at each (default, high, highest)"
    on_tpu = {"default": "bfloat16 (one pass)", "high": "x", "highest": "bfloat16 (six passes)"}
    meaning = doctor._precision(on_tpu).found
    assert meaning == "default: bfloat16 (one pass); high: x; highest: bfloat16 (six passes)"


@pytest.mark.parametrize(
    ("said", "count", "state", "found"),
    [
        ("", "2", "ok", "XLA's, on 2 devices"),
        ("xla", "1", "ok", "XLA's, as $CNN_DEPTH_CONVOLUTIONS says"),
        ("mkl", "1", "bad", "Known: auto, xla, onednn"),
    ],
)
def test_whose_convolutions_are_used_is_told(said, count, state, found, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", count)
    monkeypatch.setenv("CNN_DEPTH_CONVOLUTIONS", said)
    (finding,) = doctor._convolutions()
    assert (finding.what, finding.state) == ("convolutions", state)
    assert found in finding.found


def test_convolutions_are_not_told_where_packages_are_broken(monkeypatch):
    monkeypatch.setattr(doctor, "CONVOLUTIONS", "import no_such_package")
    assert list(doctor._convolutions()) == []


def test_runs_folder_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    *_, finding = doctor.examine(tmp_path / "runs")
    assert (finding.what, finding.state) == ("runs folder", "bad")
    assert finding.mend


def test_missing_and_outdated_packages_are_reported(monkeypatch):
    needs = ["no-such-package>=1", "numpy>=999", "scipy>=1", 'torch>=2; extra == "other"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    findings = {f.what: f for f in doctor._packages()}
    assert "torch" not in findings
    assert findings["scipy"].state == "ok"
    assert findings["no-such-package"].state == findings["numpy"].state == "bad"
    assert findings["numpy"].mend == "pip install 'numpy>=999'"


def test_cuda_plugin_of_another_version_than_jaxlib_is_reported(monkeypatch):
    versions = {"jaxlib": "0.10.2", "jax-cuda12-plugin": "0.9.0"}
    monkeypatch.setattr(devices, "version", versions.get)
    (plugin, *_) = doctor._plugins()
    assert (plugin.what, plugin.state) == ("jax-cuda12-plugin", "bad")
    assert "0.10.2" in plugin.found
    versions["jax-cuda12-plugin"] = "0.10.2"
    assert next(doctor._plugins()).state == "ok"


def test_slurm_that_does_not_answer_is_reported_with_its_mend(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._slurm().state == "absent"
    for name, text in (("sbatch", "exit 0"), ("sinfo", "echo 'sinfo: error: no host' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    finding = doctor._slurm()
    assert finding.state == "warn"
    assert "sinfo: error: no host" in finding.found
    assert "SLURM_CONF" in finding.mend
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho gpu\necho cpu\n")
    assert doctor._slurm() == doctor.Finding("Slurm", "ok", "partitions gpu, cpu")
