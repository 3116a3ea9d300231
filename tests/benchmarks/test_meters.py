"""benchmarks/meters.py and nvml.py on recorded sensors: which meter is found, what it counts, why there is none."""

from __future__ import annotations

import ctypes
import sys
import time

import pytest

from benchmarks import meters
from benchmarks.meters import Counter, Power, find_meters, ina3221, parse_tegrastats, rapl
from benchmarks.nvml import Nvml, open_nvml

# tegrastats of an AGX Orin (JetPack 6), of an Orin Nano, and of a Nano and an AGX Xavier (JetPack 4).
AGX_ORIN = ("11-05-2024 10:10:10 RAM 5102/30698MB (lfb 7x4MB) SWAP 0/15349MB (cached 0MB) CPU [2%@729] "
            "GR3D_FREQ 0% cpu@49.3C soc2@45C tj@49.3C VDD_GPU_SOC 3195mW/3195mW VDD_CPU_CV 399mW/399mW "
            "VIN_SYS_5V0 3016mW/3016mW VDDQ_VDD2_1V8AO 402mW/402mW")
ORIN_NANO = "RAM 1957/7620MB EMC_FREQ 0%@2133 VDD_IN 4940mW/4960mW VDD_CPU_GPU_CV 680mW/690mW VDD_SOC 1422mW/1420mW"
NANO = "RAM 1/3964MB (lfb 1x4MB) IRAM 0/252kB(lfb 252kB) PLL@24.5C POM_5V_IN 2134/2140 POM_5V_GPU 40/40 POM_5V_CPU 24/1"
XAVIER = "AO@37.5C GPU 620/620 CPU 310/310 SOC 930/930 CV 0/0 VDDRQ 465/465 SYS5V 1960/1960"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def sensor(address: str, rails) -> dict[str, str]:
    """hwmon of JetPack 5 and later. rails: (name, millivolts, milliamperes)."""
    place = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon4"
    files = {f"{place}/in7_label": "sum of shunt voltages\n"}
    for number, (name, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {f"{place}/in{number}_label": f"{name}\n", f"{place}/in{number}_input": f"{millivolts}\n",
                  f"{place}/curr{number}_input": f"{milliamperes}\n"}
    return files


@pytest.mark.parametrize(("line", "watts"), [(AGX_ORIN, 3.195 + 0.399 + 3.016), (ORIN_NANO, 4.94), (NANO, 2.134),
                                             (XAVIER, 0.62 + 0.31 + 0.93 + 0.465 + 1.96)])
def test_a_line_of_tegrastats(line, watts):
    rails = parse_tegrastats(line)
    assert sum(rails[name] for name in meters.whole_board(rails)) == pytest.approx(watts)


def test_a_line_without_power():
    assert parse_tegrastats("RAM 2448/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [1%@729] GR3D_FREQ 0%") == {}


def test_an_orin_nano_is_measured_by_the_rail_that_all_hang_on(tmp_path):
    write(tmp_path, sensor("1-0040", [("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 300)]))
    found, reasons = find_meters(tmp_path, nvml=lambda: "no NVML")
    assert [meter.name for meter in found] == ["board (INA3221: VDD_IN)"]
    assert reasons["gpu"] == reasons["cpu"] == "measured with the whole board: board (INA3221: VDD_IN)"


def test_an_agx_orin_is_the_sum_of_its_rails_without_what_is_a_part(tmp_path):
    rails = [("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 50), ("VIN_SYS_5V0", 5000, 600)]
    write(tmp_path, sensor("1-0040", rails)
          | sensor("1-0041", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 19000, 40)]))
    board = ina3221(tmp_path)
    clock = Clock()
    board._clock, board._when = clock, 0.0
    clock.now = 2.0
    assert board.name == "board (INA3221: VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0)"
    assert board.joules() == pytest.approx(2 * (3.8 + 0.95 + 3.0))


def test_the_sensors_of_jetpack_4(tmp_path):
    place = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(tmp_path, {f"{place}/rail_name_0": "POM_5V_IN\n", f"{place}/in_power0_input": "2134\n",
                     f"{place}/rail_name_1": "POM_5V_GPU\n", f"{place}/in_power1_input": "40\n"})
    board = ina3221(tmp_path)
    assert board.name == "board (INA3221: POM_5V_IN)" and board._last == pytest.approx(2.134)


def test_a_jetson_whose_sensors_are_hidden_is_asked_by_tegrastats(tmp_path):
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\n"})
    talks = f"import time\nwhile True:\n print({ORIN_NANO!r}, flush=True)\n time.sleep(0.01)"
    (board,), _ = find_meters(tmp_path, nvml=lambda: "no NVML", tegrastats=(sys.executable, "-c", talks))
    try:
        assert board.name == "board (tegrastats: VDD_IN)" and board._last == pytest.approx(4.94)
    finally:
        board.close()
    assert board.close() is None  # twice is fine


def test_tegrastats_that_ends_counts_no_more(tmp_path):
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\n"})
    once = "import time; print('VDD_IN 4940mW/4940mW', flush=True); time.sleep(0.5)"
    (board,), _ = find_meters(tmp_path, nvml=lambda: "no NVML", tegrastats=(sys.executable, "-c", once))
    deadline = time.monotonic() + 10
    with pytest.raises(OSError, match="tegrastats ended"):
        while time.monotonic() < deadline:
            board.joules()
            time.sleep(0.01)
    board.close()


def test_a_gpu_that_stops_answering_is_no_energy():
    class Silent:
        answers = [5.0, 5.0, 6.0, None]

        def energy_joules(self):
            return self.answers.pop(0)

    counter = meters._gpu(Silent())
    assert counter.joules() == 1.0
    with pytest.raises(OSError, match="no longer tells the power"):
        counter.joules()


def test_tegrastats_that_is_missing_or_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(meters, "PATIENCE", 0.2)
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\n"})
    for command, reason in ((("no-such-tegrastats",), "tegrastats does not start"),
                            ((sys.executable, "-c", "import time; time.sleep(60)"), "tegrastats tells no power")):
        found, reasons = find_meters(tmp_path, nvml=lambda: "no NVML", tegrastats=command)
        assert found == [] and reason in reasons["board"] and "no INA3221 sensor" in reasons["board"]


def domain(number: str, name: str, energy: int, most: int = 262143328850) -> dict[str, str]:
    place = f"sys/class/powercap/intel-rapl:{number}"
    return {f"{place}/name": f"{name}\n", f"{place}/energy_uj": f"{energy}\n",
            f"{place}/max_energy_range_uj": f"{most}\n"}


def test_the_processor_is_its_packages_and_their_memory(tmp_path):
    write(tmp_path, domain("0", "package-0", 262143000000) | domain("0:0", "core", 5) | domain("0:1", "dram", 1_000_000)
          | domain("1", "package-1", 7_000_000))
    processor = rapl(tmp_path)
    assert processor.name == "processor (RAPL: package-0, dram, package-1)"
    write(tmp_path, domain("0", "package-0", 671150) | domain("0:0", "core", 99) | domain("0:1", "dram", 1_500_000)
          | domain("1", "package-1", 9_000_000))  # package-0 started again from 0
    assert processor.joules() == pytest.approx(1.0 + 0.5 + 2.0)
    assert processor.joules() == pytest.approx(3.5)  # it counts, it does not add the same twice


def test_a_processor_that_only_root_may_ask(tmp_path, monkeypatch):
    write(tmp_path, domain("0", "package-0", 5))

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(meters, "_number", refuse)
    assert f"run: sudo chmod a+r {tmp_path}/sys/class/powercap/intel-rapl:*/energy_uj" in rapl(tmp_path)


def test_nothing_to_measure_has_its_reasons(tmp_path):
    found, reasons = find_meters(tmp_path, nvml=lambda: "no NVIDIA driver is installed")
    assert found == [] and set(reasons) == {"board", "gpu", "cpu"}
    assert reasons["gpu"] == "no NVIDIA driver is installed" and "no intel-rapl" in reasons["cpu"]


def test_a_power_is_integrated_by_trapezoids():
    clock, watts = Clock(), iter([10.0, 20.0, 20.0])
    power = Power("p", lambda: next(watts), response_seconds=0.1, clock=clock)
    clock.now = 2.0
    assert power.joules() == pytest.approx(30.0)
    clock.now = 2.5
    assert power.joules() == pytest.approx(40.0)


def test_a_counter_that_starts_again():
    values = iter([90.0, 95.0, 5.0])
    counter = Counter("c", lambda: next(values), response_seconds=0.1, period=100.0)
    assert [counter.joules(), counter.joules()] == [5.0, 15.0]


class Card:
    """libnvidia-ml and libcuda of one GPU. answers: by function, a number; a missing one is not supported."""

    def __init__(self, **answers: int) -> None:
        self.answers, self.failing = answers, ""
        self.nvmlErrorString = type("Words", (), {"__call__": lambda self, code: b"Insufficient Permissions"})()

    def __call__(self, name: str) -> Card:
        return self

    def _fill(self, function, target) -> int:
        if function not in self.answers:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        if hasattr(target._obj, "used"):
            target._obj.used = self.answers[function]
        else:
            target._obj.value = self.answers[function]
        return 0

    def __getattr__(self, function: str):
        if function in ("cuDeviceGetPCIBusId", "nvmlDeviceGetHandleByPciBusId_v2"):
            return self._bus if function.startswith("cu") else lambda bus, handle: 4 if function == self.failing else 0
        if function in ("cuInit", "cuDeviceGet", "nvmlInit_v2"):
            return lambda *arguments: 4 if function == self.failing else 0
        return lambda device, target: self._fill(function, target)

    @staticmethod
    def _bus(text, length, number) -> int:
        text.value = b"0000:65:00.0"
        return 0


def test_a_gpu_with_an_energy_counter():
    nvml = open_nvml(Card(nvmlDeviceGetTotalEnergyConsumption=5_000, nvmlDeviceGetPowerUsage=72_310,
                          nvmlDeviceGetMemoryInfo=123))
    assert isinstance(nvml, Nvml)
    assert (nvml.energy_joules(), nvml.power_watts(), nvml.used_bytes()) == (5.0, 72.31, 123)
    assert meters._gpu(nvml).name == "GPU (NVML, energy counter)"


def test_a_gpu_that_tells_its_power_only_or_nothing():
    assert meters._gpu(open_nvml(Card(nvmlDeviceGetPowerUsage=72_310))).name == "GPU (NVML, power)"
    silent = open_nvml(Card())
    assert silent.used_bytes() is None and meters._gpu(silent) == "NVML does not tell the power of this GPU"


def missing(name: str):
    raise OSError(name)


@pytest.mark.parametrize(("failing", "reason"), [
    ("cuDeviceGet", "shows this process no GPU"), ("nvmlInit_v2", "NVML does not start (Insufficient Permissions)"),
    ("nvmlDeviceGetHandleByPciBusId_v2", "NVML does not know the GPU at 0000:65:00.0")])
def test_a_driver_that_refuses(failing, reason):
    card = Card()
    card.failing = failing
    assert reason in open_nvml(card)


def test_no_driver():
    assert open_nvml(missing) == "no NVIDIA driver is installed (no libnvidia-ml.so.1)"
    assert open_nvml(lambda name: ctypes.c_int() if "ml" in name else missing(name)).endswith("(no libcuda.so.1)")
