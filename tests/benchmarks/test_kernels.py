"""benchmarks/kernels.py with timers that are given: shapes, floors, rounds, the report, the table and the chart."""

from __future__ import annotations

import json
from collections import Counter

import cv2
import pytest
import torch

from benchmarks import kernel_rows, kernels
from benchmarks.kernel_cases import (
    AUTO,
    BYTES,
    CUBLAS,
    EAGER,
    ROWS,
    SHAPES,
    TENSOR_CORE,
    Case,
    Contender,
    Opened,
)
from benchmarks.kernel_rows import Passes, by_cublas, make_inputs, relative_error
from benchmarks.kernels import benchmark, main, measure, read_cases, table
from talent import native
from talent.config import preset
from talent.model.rca import rca_reference
from talent.model.rca_kernels import installed_library

COPIED, BANDWIDTH, LAUNCH = 4_000_000, 1e9, 2e-6  # of the machine that is made up below
SPEED = {AUTO: 1.5, CUBLAS: 4.0, EAGER: 10.0}  # floors that a row takes
ERROR = 2.5e-4


class Given:
    """A Machine whose every timer returns what SPEED says; the first call of a row, the warm-up, is far off."""

    copied_bytes = COPIED

    def __init__(self) -> None:
        self.calls: Counter = Counter()
        self.order: list = []

    def copy(self) -> float:
        return COPIED / BANDWIDTH

    def launch(self) -> float:
        return LAUNCH

    def open(self, case: Case) -> Opened:
        def timer(row):
            def time() -> float:
                self.calls[case, row] += 1
                self.order.append(row)
                return 1.0 if self.calls[case, row] == 1 else SPEED[row] * case.floor_seconds(BANDWIDTH, LAUNCH)

            return time

        return Opened({row: Contender(timer(row), ERROR) for row in SPEED}, {TENSOR_CORE: "no such units"})

    def describe(self) -> dict:
        return {"name": "made up"}


def cases(*arguments: str) -> list[Case]:
    return read_cases(kernels.parser().parse_args(arguments))


@pytest.fixture
def report() -> dict:
    return benchmark(Given(), cases("--batches", "1,4"), rounds=3)


def test_the_shapes_are_those_of_the_published_networks():
    assert [(shape.tokens, shape.words, shape.width, shape.activation) for shape in SHAPES] == [
        (1024, 17, 128, "none"), (1024, 22, 128, "none"), (1024, 1, 512, "relu"),
        (1369, 17, 128, "none"), (1369, 22, 128, "none"), (1369, 1, 512, "relu")]
    for name in ("base", "large"):
        config = preset(name)
        assert (config.vision_adapter_width, config.width, config.context_length) == (128, 512, 17)


def test_bytes_and_floor_are_those_of_the_tensors():
    for case in cases("--types", "fp16,bf16,fp32"):
        inputs = make_inputs(case, 0, "cpu")
        tensors = (*inputs, rca_reference(*inputs, case.shape.activation))
        assert case.bytes == sum(tensor.nbytes for tensor in tensors)
        assert case.sizes == (*tensors[4].shape[:2], tensors[1].shape[1], tensors[4].shape[2])
    case = Case(SHAPES[0], "fp16", 1)
    assert case.bytes == 2 * (2 * 1024 * 128 + 17 * 128 + 128 * 17 + 128)
    assert case.floor_seconds(1e9, 3e-6) == pytest.approx(case.bytes / 1e9 + 3e-6)


def test_the_sets_are_twice_as_large_as_the_cache():
    for case in cases("--batches", "1,16"):
        for cache in (4 << 20, 50 << 20):
            sets = case.sets(cache)
            assert sets >= 2 and sets * case.bytes >= 2 * cache
            assert sets == 2 or (sets - 1) * case.bytes < 2 * cache


def test_every_type_shape_and_batch_once():
    found = cases("--types", "fp16,fp32,fp16", "--batches", "4,1,4")
    assert len(found) == len(set(found)) == 2 * 6 * 2
    assert {case.type for case in found} == {"fp16", "fp32"} and {case.batch for case in found} == {1, 4}
    assert {case.type for case in cases()} == {"fp16"} and {case.batch for case in cases()} == {1, 4, 16}


def test_rounds_are_interleaved_and_rotated_and_warm_up_is_not_counted():
    seen = []

    def timer(name, values):
        times = iter(values)

        def time() -> float:
            seen.append(name)
            return next(times)

        return time

    seconds = measure({"a": timer("a", [9, 1, 2]), "b": timer("b", [9, 3, 4])}, rounds=2)
    assert seen == ["a", "b", "a", "b", "b", "a"]
    assert seconds == {"a": [1, 2], "b": [3, 4]}


def test_the_report_has_every_row_with_its_median_and_floor(report):
    assert len(report["rows"]) == 12 * len(SPEED)
    for record in report["rows"]:
        case = next(case for case in cases("--batches", "1,4") if case.shape.label == record["shape"]
                    and case.batch == record["batch"])
        speed = next(speed for row, speed in SPEED.items() if (row.name, row.how) == (record["row"], record["how"]))
        assert record["floor_microseconds"] == pytest.approx(1e6 * (case.bytes / BANDWIDTH + LAUNCH))
        assert record["of_floor"] == pytest.approx(speed) and len(record["rounds_microseconds"]) == 3
        assert record["microseconds"] == pytest.approx(speed * record["floor_microseconds"])
        assert record["relative_error"] == ERROR and record["bytes"] == case.bytes
    assert report["copy_bytes_per_second"] == pytest.approx(BANDWIDTH)
    assert report["launch_microseconds"] == pytest.approx(1e6 * LAUNCH)
    assert len(report["rounds_launch_microseconds"]) == 6  # before the cases and after them
    assert {(entry["row"], entry["reason"]) for entry in report["not_run"]} == {("tensor core", "no such units")}
    assert {"commit", "versions", "device", "card", "gpu_after"} <= report.keys()
    assert json.loads(json.dumps(report)) == report


def test_the_table_shows_what_was_measured_and_nothing_else(report):
    lines = table(report).splitlines()
    header = lines[0].split("  ")
    assert [cell.strip() for cell in header if cell][-3:] == ["auto", "cuBLAS", "eager*"]
    floor = 1e6 * (Case(SHAPES[0], "fp16", 1).bytes / BANDWIDTH + LAUNCH)
    assert lines[1].startswith("block, 17 words, 448 px") and f"{floor:.2f}" in lines[1]
    assert f"{1.5 * floor:.2f} (1.50x)" in lines[1] and f"{10 * floor:.2f} (10.00x)" in lines[1]
    assert "not run: tensor core in fp16: no such units" in lines
    assert "made up" in lines[-1] and "1 GB/s" in lines[-2] and "2.00 us" in lines[-2]


def test_every_row_is_explained():
    assert len({(row.name, row.how) for row in ROWS}) == len(ROWS) and all(ROWS.values())


def test_the_command_writes_the_numbers_and_the_chart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_rows, "Card", Given)
    data, chart = tmp_path / "kernels.json", tmp_path / "kernels.png"
    assert main(["--types", "fp16,fp32", "--rounds", "2", "-o", str(data), "--png", str(chart)]) == 0
    assert len(json.loads(data.read_text())["rows"]) == 2 * 18 * len(SPEED)
    picture = cv2.imread(str(chart))
    assert picture is not None and picture.std() > 10
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote the numbers to {data} and the chart to {chart}"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--types", "fp8"], "--types: expected some of fp16, bf16, fp32 by commas, received 'fp8'"),
    (["--types", ""], "received ''"),
    (["--batches", "1,0"], "--batches: expected whole numbers of at least 1 by commas, received '0'"),
    (["--batches", "1,x"], "received 'x'"),
    (["--rounds", "0"], "--rounds: expected at least 1, received 0"),
    (["-o", "no-such-folder/kernels.json"], "mkdir -p no-such-folder"),
    (["--png", "kernels.txt"], "kernels.txt"),
])
def test_bad_input_is_refused(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernel_rows, "Card", lambda: pytest.fail("the card was asked for before the input was read"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "kernels.py: error: expected an NVIDIA GPU that PyTorch can use, received none" in capsys.readouterr().err


def test_a_machine_without_the_library_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(native.LIBRARIES, str(tmp_path))
    installed_library.cache_clear()
    assert main([]) == 2
    installed_library.cache_clear()
    assert "expected the kernels libtalent_kernels.so, received none; run: make plugin" in capsys.readouterr().err


@pytest.mark.parametrize("type_name", BYTES)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=lambda shape: shape.label)
def test_the_cublas_row_computes_rca(shape, type_name):
    inputs = make_inputs(Case(shape, type_name, 2), 0, "cpu")
    received = by_cublas(*inputs, shape.activation)
    assert relative_error(received, inputs, shape.activation) <= kernel_rows.TOLERANCE[type_name]
    wrong = by_cublas(*inputs, "none" if shape.activation == "relu" else "relu")
    assert relative_error(wrong, inputs, shape.activation) > kernel_rows.TOLERANCE[type_name]


def test_passes_rotate_over_all_sets_and_keep_the_results():
    seen = []
    sets = [(torch.tensor([float(i)]),) for i in range(30)]
    passes = Passes(lambda x: seen.append(int(x)) or x + 1, sets)
    passes.run()
    assert passes.calls == len(seen) == 120 and seen == list(range(30)) * 4
    assert [int(result) for result in passes.results] == list(range(1, 31))


@pytest.mark.gpu
def test_a_card_measures_every_row(tmp_path):
    data = tmp_path / "kernels.json"
    assert main(["--types", "fp16,fp32", "--batches", "1", "--rounds", "2", "-o", str(data)]) == 0
    report = json.loads(data.read_text())
    assert {(record["row"], record["how"]) for record in report["rows"]} == {(row.name, row.how) for row in ROWS}
    assert all(record["microseconds"] > 0 for record in report["rows"])
    assert report["copy_bytes_per_second"] > 1e9 and report["launch_microseconds"] < 1000
