"""What the doctor reads of a machine: files, commands that hang or fail, GPUs from three sources, packages."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from deploy.diagnosis import gpus, probe, software, system
from deploy.diagnosis.gpus import Gpu, read_gpus
from deploy.diagnosis.software import read_software
from deploy.diagnosis.system import NO_ANSWER, NOT_FOUND, Outcome, Reader, read_machine, run
from tests.deploy import machines


def outcomes_of(reader: Reader) -> dict[str, Outcome]:
    return reader.run_all({**system.COMMANDS, **gpus.COMMANDS, **software.COMMANDS})


def machine_of(reader: Reader):
    return read_machine(reader, outcomes_of(reader))


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(system, "TIMEOUT", 0.3)


def test_a_command_that_hangs_is_cut_off_with_its_children(impatient):
    started = time.monotonic()
    outcome = run([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"])
    assert outcome == Outcome(failure=NO_ANSWER)
    assert time.monotonic() - started < 10


def test_commands_run_at_the_same_time(impatient):
    reader = Reader(run=lambda command: run(["sleep", "60"]))
    started = time.monotonic()
    assert {outcome.failure for outcome in reader.run_all({str(n): () for n in range(40)}).values()} == {NO_ANSWER}
    assert time.monotonic() - started < 40 * 0.3


@pytest.mark.parametrize(("command", "outcome"), [
    (["no-such-command-anywhere"], Outcome(failure=NOT_FOUND)),
    ([sys.executable, "-c", "print('fine')"], Outcome("fine\n")),
    ([sys.executable, "-c", "print('a'); raise SystemExit('first\\nlast words')"], Outcome("a\n", "last words")),
    ([sys.executable, "-c", "raise SystemExit(3)"], Outcome(failure="exit code 3")),
    ([sys.executable, "-c", "import os; os.abort()"], Outcome(failure="killed by SIGABRT")),
])
def test_outcomes_of_commands(command, outcome):
    assert run(command) == outcome


def test_a_jetson_is_read_from_its_files(tmp_path):
    machine = machine_of(machines.orin(tmp_path, memory=64 * machines.GIB))
    jetson = machine.jetson
    assert (jetson.model, jetson.l4t, jetson.jetpack) == ("NVIDIA Jetson AGX Orin Developer Kit", "36.4.0", "6.1")
    assert (jetson.power_mode, jetson.fastest_mode, jetson.l4t_major) == ("MODE_30W", "0", 36)
    assert (machine.memory_bytes, machine.swap_bytes) == (64 * machines.GIB, 0)
    assert machine.distribution == "Ubuntu 24.04.1 LTS" and machine.system == "Linux 6.8.0"


@pytest.mark.parametrize(("revision", "jetpack"), [
    ("R36 (release), REVISION: 4.3", "6.2"), ("R36 (release), REVISION: 4.9", "6.x"),
    ("R35 (release), REVISION: 4.1", "5.1.2"), ("R38 (release), REVISION: 2.0", "7.0"),
    ("R39 (release), REVISION: 2.0", "7.2"), ("R99 (release), REVISION: 1.0", None)])
def test_jetpack_follows_from_the_release(tmp_path, revision, jetpack):
    reader = machines.orin(tmp_path, files={"etc/nv_tegra_release": f"# {revision}, GCID: 1, BOARD: generic\n"})
    assert machine_of(reader).jetson.jetpack == jetpack


def test_the_power_mode_survives_an_nvpmodel_that_wants_root(tmp_path):
    modes = "".join(f"< POWER_MODEL ID={n} NAME={name} >\n" for n, name in enumerate(("15W", "25W", "MAXN_SUPER")))
    reader = machines.orin(tmp_path, answers={"nvpmodel": Outcome(failure="root is needed")},
                           files={"etc/nvpmodel.conf": modes, "var/lib/nvpmodel/status": "pmode:0001\n"})
    jetson = machine_of(reader).jetson
    assert (jetson.power_mode, jetson.fastest_mode) == ("25W", "2")


def test_a_container_on_a_jetson_has_the_device_tree_only(tmp_path):
    reader = machines.orin(tmp_path, answers={"nvpmodel": Outcome(failure=NOT_FOUND)})
    for name in ("etc/nv_tegra_release", "etc/nvpmodel.conf"):
        (tmp_path / name).unlink()
    jetson = machine_of(reader).jetson
    assert jetson.model.startswith("NVIDIA Jetson AGX Orin")
    assert (jetson.l4t, jetson.jetpack, jetson.power_mode, jetson.fastest_mode, jetson.l4t_major) == (None,) * 5


def test_a_machine_without_proc_is_read_all_the_same(tmp_path):
    reader = machines.bare(tmp_path)
    for name in ("proc/meminfo", "etc/os-release"):
        (tmp_path / name).unlink()
    machine = machine_of(reader)
    assert machine.jetson is machine.memory_bytes is machine.distribution is machine.processor is None


@pytest.mark.parametrize(("vendor", "kind", "found"), [
    ("0x10de", "0x030000", True), ("0x10de", "0x030200", True), ("0x10de", "0x040300", False),
    ("0x1002", "0x030000", False)])
def test_an_nvidia_gpu_shows_on_the_bus_without_a_driver(tmp_path, vendor, kind, found):
    device = "sys/bus/pci/devices/0000:01:00.0"
    reader = machines.bare(tmp_path, files={f"{device}/vendor": f"{vendor}\n", f"{device}/class": f"{kind}\n"})
    assert machine_of(reader).nvidia_device is found


def test_nvidia_smi_is_asked_where_nvml_is_not_installed(tmp_path):
    found = read_gpus(outcomes_of(machines.desktop(tmp_path)))
    assert found.gpus == (Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564 * 2**20, 23500 * 2**20, 450.0, 3105, 41),)
    assert (found.driver, found.cuda, found.arch, found.capability, found.failure) == (
        "580.95.05", "13.0", "sm89", 89, None)


def test_nvml_is_believed_before_nvidia_smi(tmp_path):
    found = read_gpus(outcomes_of(machines.server(tmp_path, answers={"nvidia-smi": Outcome("x, 1, 1, 1, 1, 1, 1, 1")})))
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA H100 80GB HBM3"] and found.gpus[0].temperature_celsius == 33
    assert found.arch == "sm90"


def test_what_a_jetsons_nvidia_smi_does_not_say_comes_from_the_driver(tmp_path):
    found = read_gpus(outcomes_of(machines.orin(tmp_path)))
    assert found.gpus == (Gpu("Orin (nvgpu)", "8.7", 24 * machines.GIB, None, None, 2520, None),)
    assert (found.driver, found.cuda, found.arch) == ("540.4.0", "12.6", "sm87")


def test_the_driver_alone_is_enough(tmp_path):
    reader = machines.orin(tmp_path, answers={"nvidia-smi": Outcome(failure=NOT_FOUND)})
    found = read_gpus(outcomes_of(reader))
    assert found.gpus[0].name == "Orin" and found.arch == "sm87" and found.driver is None


def test_engines_are_for_the_gpu_that_this_process_may_use(tmp_path):
    row = "{}, {}, 1024, 1000, 580.95.05, 100.00, 2000, 40\n"
    reader = machines.desktop(tmp_path, answers={
        "nvidia-smi": Outcome(row.format("Tesla T4", "7.5") + row.format("RTX 4090", "8.9"))})
    found = read_gpus(outcomes_of(reader))
    assert [gpu.name for gpu in found.gpus] == ["Tesla T4", "RTX 4090"] and found.arch == "sm89"


@pytest.mark.parametrize(("said", "arch", "failure"), [
    ({"cuda": "13.0", "gpus": []}, None, "the CUDA driver shows this process no GPU"),
    ({"failure": "the CUDA driver does not start: x (error 803)"}, None, "error 803"),
    (Outcome(failure=NO_ANSWER), "sm89", None), (Outcome(failure="killed by SIGSEGV"), "sm89", None)])
def test_a_driver_that_does_not_answer(tmp_path, said, arch, failure):
    found = read_gpus(outcomes_of(machines.desktop(tmp_path, answers={"cuda": said})))
    assert found.arch == arch and len(found.gpus) == 1
    assert (failure in found.failure) if failure else found.failure is None


@pytest.mark.parametrize("printed", ["No devices were found\n", "", "1, 2, 3\n"])
def test_odd_answers_of_nvidia_smi_show_no_gpu(tmp_path, printed):
    found = read_gpus(outcomes_of(machines.bare(tmp_path, answers={"nvidia-smi": Outcome(printed)})))
    assert found.gpus == () and found.arch is None and "libcuda" in found.failure


def test_packages_are_installed_broken_missing_or_slow(tmp_path):
    reader = machines.desktop(tmp_path, packages={"tensorrt": "10.9.0"}, answers={
        "import tensorrt": {"failure": "ImportError: libnvinfer.so.10"},
        "import onnxruntime": Outcome(failure=NO_ANSWER), "import cv2": Outcome(failure="killed by SIGABRT")})
    found = read_software(reader, outcomes_of(reader))
    broken, slow, crashed, fine = (found.loaded[name] for name in ("tensorrt", "onnxruntime", "cv2", "tensorrt_rtx"))
    assert broken.installed and broken.loads is False and "libnvinfer" in broken.failure
    assert slow.installed and slow.loads is None and slow.version == "1.24.4"
    assert crashed.installed and crashed.failure == "killed by SIGABRT"
    assert fine.loads and fine.numbers == (1, 7, 1)
    assert found.cuda_toolkit == "13.0" and found.cuda_libraries == ("tensorrt_rtx_cu13_libs",)
    assert found.missing("onnxruntime", "torch") == ["onnxruntime"]


def test_a_slow_import_of_what_is_not_installed_is_not_an_installation(tmp_path):
    reader = machines.bare(tmp_path, answers={"import tensorrt": Outcome(failure=NO_ANSWER)})
    assert not read_software(reader, outcomes_of(reader)).loaded["tensorrt"].installed


def test_a_package_of_the_system_has_a_version_without_a_distribution(tmp_path):
    reader = machines.orin(tmp_path, packages={"tensorrt": None}, answers={"import tensorrt": {"version": "10.3.0"}})
    found = read_software(reader, outcomes_of(reader))
    assert found.packages["tensorrt"] == "10.3.0" and found.loaded["tensorrt"].loads


def probed(*arguments: str, cwd: Path) -> dict:
    done = subprocess.run([sys.executable, probe.__file__, *arguments], capture_output=True, text=True, check=True,
                          cwd=cwd, timeout=60)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_probe_answers_from_a_process_of_its_own(tmp_path):
    assert probed("import", "no_such_package", cwd=tmp_path) == {"failure": probe.NOT_INSTALLED}
    assert set(probed("import", "numpy", cwd=tmp_path)) == {"version"}
    for name in ("cuda", "nvml"):
        assert {"failure", "gpus"} & set(probed(name, cwd=tmp_path))


def test_the_probe_takes_neither_its_own_folder_nor_the_working_directory_for_a_package(tmp_path):
    (tmp_path / "software").mkdir()
    assert probed("import", "software", cwd=tmp_path) == {"failure": probe.NOT_INSTALLED}


@pytest.mark.parametrize(("body", "answer"), [
    ("import no_such_thing", "No module named 'no_such_thing'"),
    ("raise OSError('libx.so.1: cannot open\\nshared object')", "OSError: libx.so.1: cannot open shared object")])
def test_a_broken_package_is_not_a_missing_one(tmp_path, monkeypatch, body, answer):
    (tmp_path / "broken_package.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    assert probe.load_package("broken_package") == {"failure": answer}


class FakeDriver:
    """libcuda with one GPU of compute capability 8.7. start: what cuInit answers."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def cuInit(self, flags: int) -> int:
        return self.start

    def cuGetErrorString(self, code: int, text) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDriverGetVersion(self, version) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, length: int, device: int) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, memory, device: int) -> int:
        memory._obj.value = 8 * machines.GIB
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, device: int) -> int:
        value._obj.value = {75: 8, 76: 7, 13: 1_020_000}[attribute]
        return 0


def test_the_driver_is_asked_through_ctypes():
    assert probe.cuda(lambda name: FakeDriver()) == {"cuda": "12.6", "gpus": [
        {"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8 * machines.GIB, "max_clock_mhz": 1020}]}
    assert "no CUDA-capable device is detected (error 100)" in probe.cuda(lambda name: FakeDriver(100))["failure"]


def test_no_driver_library_is_an_answer():
    def load(name: str) -> ctypes.CDLL:
        raise OSError(name)

    assert "no CUDA driver is installed" in probe.cuda(load)["failure"]


def test_nvml_is_asked_question_by_question(monkeypatch):
    class NVMLError(Exception):
        pass

    def refuse(*arguments):
        raise NVMLError("Not Supported")

    fake = ModuleType("pynvml")
    fake.__dict__.update(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlSystemGetDriverVersion=lambda: b"580.95.05",
        nvmlDeviceGetName=lambda handle: b"NVIDIA L4", nvmlDeviceGetCudaComputeCapability=lambda handle: (8, 9),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=24, free=20),
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 72_000, nvmlDeviceGetMaxClockInfo=lambda handle, clock: 2040,
        nvmlDeviceGetTemperature=refuse)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    said = probe.nvml()
    assert said["driver"] == "580.95.05"
    assert Gpu(**said["gpus"][0]) == Gpu("NVIDIA L4", "8.9", 24, 20, 72.0, 2040, None)
    fake.nvmlInit = refuse
    assert probe.nvml() == {"failure": "Not Supported"}
