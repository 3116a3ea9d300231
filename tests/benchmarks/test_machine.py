"""benchmarks/machine.py on machines that are played: what each tells, and why it does not tell the rest."""

from __future__ import annotations

import dataclasses
import os

import pytest

from benchmarks.machine import busy, conditions, describe, machine
from deploy.diagnosis.system import Outcome
from tests.deploy import machines

CLOCKS = "2520, 10501, 3105, 10501, 41, 72.31, 450.00, P2, 0x0000000000000004\n"


def told(reader, clocks: str):
    """A reader whose nvidia-smi also answers about clocks."""
    def run(command):
        return Outcome(clocks) if any("clocks.sm" in word for word in command) else reader.run(command)

    return dataclasses.replace(reader, run=run)


def cpufreq(cores: int, governor: str) -> dict[str, str]:
    files = {}
    for core in range(cores):
        place = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files |= {f"{place}/scaling_governor": f"{governor}\n", f"{place}/cpuinfo_max_freq": "4700000\n",
                  f"{place}/scaling_cur_freq": f"{1000 * (800 + core)}\n"}
    return files


def test_a_desktop(tmp_path):
    files = cpufreq(11, "schedutil") | {"proc/loadavg": "0.52 0.58 0.59 1/810 4711\n", "proc/cpuinfo":
                                        "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\n",
                                        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
                                        "sys/class/thermal/thermal_zone0/temp": "48250\n"}
    facts = machine(told(machines.desktop(tmp_path, files=files), CLOCKS))
    assert (facts["cpu"], facts["cpu_governor"], facts["driver"]) == ("AMD Ryzen 9 7950X", "schedutil", "580.95.05")
    assert facts["cpu_max_clock_mhz"] == [4700] * 11 and facts["memory_bytes"] == 32 * machines.GIB
    assert facts["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090" and facts["gpu_architecture"] == "sm89"
    before = facts["before"]
    assert before["cpu_clock_mhz"] == [800 + core for core in range(11)]  # in the order of their numbers
    assert before["temperatures_celsius"] == {"x86_pkg_temp": 48.25} and before["load_average"] == [0.52, 0.58, 0.59]
    gpu, = before["gpus"]
    assert (gpu["sm_clock_mhz"], gpu["max_sm_clock_mhz"], gpu["power_watts"]) == (2520, 3105, 72.31)
    assert (gpu["performance_state"], gpu["throttle_reasons"]) == ("P2", "0x0000000000000004")
    assert facts["unknown"] == {"board": "no Jetson", "jetpack": "no Jetson", "power_mode": "no Jetson"}
    assert describe(facts)["gpu"] == "NVIDIA GeForce RTX 4090, driver 580.95.05, 2520 of 3105 MHz, 450 W"


def test_a_jetson(tmp_path):
    files = cpufreq(2, "schedutil") | {
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "51343\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n", "sys/class/thermal/thermal_zone1/temp": "\n"}
    facts = machine(machines.orin(tmp_path, files=machines.JETSON_FILES | files))
    assert (facts["jetpack"], facts["l4t"], facts["power_mode"]) == ("6.1", "36.4.0", "MODE_30W")
    assert facts["before"]["temperatures_celsius"] == {"cpu-thermal": 51.343}
    gpu, = facts["before"]["gpus"]
    assert (gpu["sm_clock_mhz"], gpu["max_sm_clock_mhz"], gpu["power_watts"]) == (306.0, 1300.5, None)
    described = describe(facts)
    assert described["board"] == "NVIDIA Jetson AGX Orin Developer Kit, JetPack 6.1"
    assert described["power_mode"] == "MODE_30W" and described["gpu"].endswith("306 of 1300 MHz")


def test_what_is_not_known_has_a_reason(tmp_path):
    facts = machine(machines.bare(tmp_path))
    for name in ("cpu_governor", "cpu_max_clock_mhz", "driver", "board", "power_mode"):
        assert facts[name] is None and facts["unknown"][name]
    assert facts["gpus"] == [] and "no CUDA driver" in facts["unknown"]["gpus"]
    assert facts["unknown"]["gpu_clocks"] == "nvidia-smi: not found"
    assert facts["unknown"]["temperatures_celsius"] == "the kernel shows no thermal zone"
    assert describe(facts) == {"cpu": facts["cpu"], "cores": facts["cores"], "cpu_governor": None, "board": None,
                               "power_mode": None, "gpu": None}


def test_a_power_mode_that_is_not_told(tmp_path):
    facts = machine(machines.orin(tmp_path, answers={"nvpmodel": Outcome(failure="Permission denied")}))
    assert facts["power_mode"] is None and facts["unknown"]["power_mode"] == "nvpmodel -q does not say"


@pytest.mark.parametrize(("used", "found"), [(0.9, "other programs used 0.9 of 4 cores"), (0.7, None), (None, None)])
def test_a_busy_machine(used, found):
    assert busy({"cores_of_machine": 4, "before": {"cores_in_use": used}}) == found


def stat(idle: int, busy_ticks: int) -> str:
    """/proc/stat of two cores: user nice system idle iowait irq softirq steal guest guest_nice."""
    return f"cpu  {busy_ticks} 0 0 {idle} 0 0 0 0 7 0\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n"


def test_cores_in_use_are_those_of_a_moment(tmp_path, monkeypatch):
    reader = machines.play(tmp_path, files={"proc/stat": stat(1000, 500)})
    assert conditions(reader)["cores_in_use"] is None, "no time went by"
    monkeypatch.setattr("time.sleep", lambda seconds: (tmp_path / "proc/stat").write_text(stat(1025, 575)))
    (tmp_path / "proc/stat").write_text(stat(1000, 500))
    assert conditions(reader)["cores_in_use"] == pytest.approx(2 * 0.75)
    (tmp_path / "proc/stat").unlink()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert conditions(reader)["cores_in_use"] is None


def test_the_cores_of_this_machine():
    used = conditions()["cores_in_use"]
    assert used is None or 0 <= used <= os.cpu_count()


def test_conditions_are_those_of_now(tmp_path):
    reader = machines.play(tmp_path, files={"proc/loadavg": "3.00 1.00 0.50 1/2 3\n"})
    assert conditions(reader)["load_average"][0] == 3.0
    (tmp_path / "proc/loadavg").write_text("7.00 1.00 0.50 1/2 3\n")
    assert conditions(reader)["load_average"][0] == 7.0
    assert conditions(reader)["memory_available_bytes"] == 16 * machines.GIB
