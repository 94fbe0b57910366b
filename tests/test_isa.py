"""The limit of the instruction set of benchmarks."""

import argparse
import os

import jax
import pytest

from benchmarks import harness, isa


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The environment is as before after each test."""
    for name in ("XLA_FLAGS", *isa._NAMES):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")


def parsed(*arguments):
    return isa.parse(argparse.ArgumentParser(), arguments)


def test_a_limit_reaches_every_library_and_all_processes():
    given = parsed("--isa=avx2")
    assert vars(given) == {}
    assert isa.limited() == "avx2"
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_use_fusion_emitters=true --xla_cpu_max_isa=AVX2"
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"
    assert os.environ["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
    child = harness.in_child("tests.test_isa", [])
    assert child == "avx2"


def test_the_report_names_the_set():
    assert f", {isa.native()}, " in harness.describe(harness.machine())
    isa.limit("avx2")
    assert ", avx2, " in harness.describe(harness.machine())


def test_native_changes_nothing():
    before = dict(os.environ)
    assert vars(parsed()) == {}
    assert dict(os.environ) == before


def test_a_machine_without_the_set_is_named(monkeypatch, capsys):
    monkeypatch.setattr(isa, "native", lambda: "avx2")
    with pytest.raises(SystemExit):
        parsed("--isa=avx512")
    assert "this machine has avx2, not avx512; leave --isa out" in capsys.readouterr().err


if __name__ == "__main__":
    jax.devices()
    print(f'"{isa.limited()}"')
