"""Which GPU an engine runs on, and the command that builds one."""

from __future__ import annotations

import shlex

import pytest

from deploy.build import parser
from deploy.targets import RTX_TARGETS, build_advice, build_command, portable_covers


@pytest.mark.parametrize(("arch", "covered"), [
    ("sm75", False), ("sm80", True), ("sm86", True), ("sm87", False), ("sm89", True), ("sm90", False), ("sm100", False),
    ("sm110", False), ("sm120", True), ("sm121", True)])
def test_a_portable_engine_runs_on_rtx_cards_from_ampere_on(arch, covered):
    assert portable_covers(arch) is covered


def test_the_targets_are_those_of_tensorrt_rtx():
    trt = pytest.importorskip("tensorrt_rtx")
    assert {f"SM{target}" for target in RTX_TARGETS} == set(trt.ComputeCapability.__members__) - {"NONE", "CURRENT"}


@pytest.mark.parametrize(("options", "words"), [
    ({}, []), ({"runtime": "tensorrt", "arch": "sm75"}, ["--runtime", "tensorrt"]),
    ({"runtime": "tensorrt_rtx", "arch": "sm89"}, ["--runtime", "tensorrt_rtx"]),
    ({"runtime": "tensorrt_rtx", "arch": "sm75"}, ["--runtime", "tensorrt_rtx", "--arch", "sm75"]),
    ({"runtime": "tensorrt", "force": True}, ["--runtime", "tensorrt", "--force"]),
    ({"runtime": "tensorrt", "plugin": "off"}, ["--runtime", "tensorrt", "--plugin", "off"])])
def test_the_command_is_one_that_talent_build_takes(options, words):
    command = shlex.split(build_command("my bundle", **options))
    assert command == ["talent-build", "my bundle", *words]
    parsed = parser().parse_args(command[1:])
    assert str(parsed.bundle) == "my bundle" and parsed.plugin == options.get("plugin", "auto")


@pytest.mark.parametrize(("runtime", "arch", "advice"), [
    ("tensorrt", "sm87", "run: talent-build b --runtime tensorrt"),
    ("tensorrt_rtx", "sm120", "run: talent-build b --runtime tensorrt_rtx"),
    ("tensorrt_rtx", "sm75", "run: talent-build b --runtime tensorrt_rtx --arch sm75"),
    ("tensorrt_rtx", "sm87", "TensorRT-RTX builds none for sm87, only for sm75, sm80, sm86, sm89, sm120, sm121; with "
                             "full TensorRT, run: talent-build b --runtime tensorrt"),
    ("tensorrt", "sm61", "no TensorRT of today builds for sm61: use the backend onnxruntime")])
def test_advice_leads_to_an_engine_that_fits(runtime, arch, advice):
    assert build_advice("b", runtime=runtime, arch=arch) == advice
