"""The README's tables of numbers are those of the result files that its markers name, with machine and commit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results_file
from benchmarks.contenders import ONNX_RUNTIME
from benchmarks.report import main
from benchmarks.report_markdown import BLOCK, RESULTS, UPDATE, markdown, stale, updated
from talent.errors import UserError
from tests.benchmarks.made_results import latency_result, parity_result, timed_row

ROOT = Path(__file__).resolve().parent.parent
EMPTY = f"""# Title
Text before.

<!-- numbers: {RESULTS}/latency.json {RESULTS}/parity.json -->
<!-- end -->

Text between.

<!-- numbers: {RESULTS}/parity.json -->
| an | old table |
<!-- end -->
Text after.
"""


def write_latency(project: Path, milliseconds: float) -> None:
    rows = [timed_row(ONNX_RUNTIME, milliseconds, source="base")]
    results_file.write(project / RESULTS / "latency.json", latency_result(rows))


@pytest.fixture
def project(tmp_path):
    """A folder with two result files and a README whose tables are not filled in."""
    (tmp_path / RESULTS).mkdir(parents=True)
    write_latency(tmp_path, 962)
    results_file.write(tmp_path / RESULTS / "parity.json", parity_result({(ONNX_RUNTIME, "fp32", "base"): 0.6123}))
    (tmp_path / "README.md").write_text(EMPTY, encoding="utf-8")
    return tmp_path


def update(project) -> int:
    return main(["--update-readme", "--readme", str(project / "README.md")])


def test_the_numbers_of_this_readme_are_those_of_its_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) >= 3 and stale(text, ROOT) == []


def test_published_results_are_of_a_commit_and_of_no_folder_of_somebody():
    for path in sorted((ROOT / RESULTS).glob("*-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "schema" in result:
            assert len(result["commit"]) == 40 and not result["dirty"], path.name
            named = [*result["command"], *(row["source"] for row in result["rows"])]
            assert not any(word.startswith(("/", "..")) for word in named), path.name


def test_an_update_fills_every_table_and_nothing_else(project, capsys):
    assert update(project) == 0
    text = (project / "README.md").read_text(encoding="utf-8")
    latency, parity = (results_file.read(project / RESULTS / name) for name in ("latency.json", "parity.json"))
    assert markdown([latency, parity]) in text and f"json -->\n{markdown([parity])}<!-- end -->" in text
    assert text.startswith("# Title\nText before.\n\n<!-- numbers: ") and text.endswith("<!-- end -->\nText after.\n")
    assert "\nText between.\n" in text and "old table" not in text
    assert stale(text, project) == [] and updated(text, project) == text
    assert capsys.readouterr().out.startswith("wrote the numbers of ")
    assert update(project) == 0 and "wrote nothing" in capsys.readouterr().out


@pytest.mark.parametrize(("old", "new"), [("0.6123", "0.6124"), ("`0123456789`", "`0123456780`"),
                                          ("Processor <8>", "Processor <9>"), ("2 threads", "3 threads")])
def test_a_number_a_commit_or_a_machine_that_was_changed_is_found(project, old, new):
    update(project)
    text = (project / "README.md").read_text(encoding="utf-8")
    assert old in text
    found = stale(text.replace(old, new, 1), project)
    assert len(found) == 1 and new in found[0] and found[0].endswith(f"run: {UPDATE}")


def test_a_result_that_was_measured_again_is_found(project):
    update(project)
    write_latency(project, 900)
    found = stale((project / "README.md").read_text(encoding="utf-8"), project)
    assert len(found) == 1 and f"{RESULTS}/latency.json" in found[0]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("<!-- end -->\n\nText between.", "Text between.", "3 markers that make 1 pairs"),
    (f"<!-- numbers: {RESULTS}/parity.json -->\n", "", "received 3 markers"),
    (f"{RESULTS}/latency.json ", "latency.json ", "move the file to benchmarks/results"),
    (f"{RESULTS}/latency.json ", f"{RESULTS}/../../latency.json ", "move the file to benchmarks/results"),
    (f"{RESULTS}/latency.json ", f"{RESULTS}/none.json ", "cannot read"),
    (f"{RESULTS}/latency.json {RESULTS}/parity.json", "", "expected at least one result file")])
def test_markers_that_cannot_be_right(project, old, new, message, capsys):
    broken = EMPTY.replace(old, new, 1)
    assert broken != EMPTY
    (project / "README.md").write_text(broken, encoding="utf-8")
    assert update(project) == 2
    assert message in capsys.readouterr().err and (project / "README.md").read_text(encoding="utf-8") == broken
    with pytest.raises(UserError):
        stale(broken, project)
