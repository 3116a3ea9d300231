"""benchmarks/suite.py: every step is one that its command takes, what it makes is what later steps read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency, parity, random_checkpoint, report, scaling, suite
from deploy import export

PARSERS = {"random_checkpoint.py": random_checkpoint.parser, "talent-export": export.parser,
           "latency.py": latency.parser, "parity.py": parity.parser, "scaling.py": scaling.parser,
           "report.py": report.parser}
both = pytest.mark.parametrize("steps", [suite.short, suite.full])


@both
def test_every_command_takes_its_arguments(tmp_path, steps):
    made = steps(tmp_path)
    names = [name for name in PARSERS if name != "random_checkpoint.py" or steps is suite.full]
    assert list(dict.fromkeys(name for name, _, _ in made)) == names
    for name, _, call in made:
        PARSERS[name]().parse_args(call)  # SystemExit for an option that it does not have


@both
def test_what_is_read_was_made_before(tmp_path, steps):
    made: set[str] = set()
    for _, _, call in steps(tmp_path):
        written = {call[place + 1] for place, word in enumerate(call) if word in ("-o", "--json", "--png", "--worst")}
        read = {word for word in call if word.startswith(str(tmp_path))} - written
        assert read <= made and not written & made
        made |= written
    assert str(tmp_path / "report.html") in made


@both
def test_the_report_has_every_result(tmp_path, steps):
    calls = [call for _, _, call in steps(tmp_path)]
    results = [call[call.index("--json") + 1] for call in calls if "--json" in call]
    assert len(results) >= 3 and calls[-1][:len(results)] == results


@both
def test_engines_are_built_where_a_gpu_can_run_them(tmp_path, monkeypatch, steps):
    for architecture in (None, "sm89"):
        monkeypatch.setattr(suite, "gpu_architecture", lambda architecture=architecture: architecture)
        exports = [call for name, _, call in steps(tmp_path) if name == "talent-export"]
        assert all(("--no-engine" in call) == (architecture is None) for call in exports)
    half = suite.full(tmp_path)  # base in FP16 is there for a GPU only
    assert any(str(tmp_path / "base-fp16") in call for name, _, call in half if name == "latency.py")


def played(calls, code=0):
    def steps(out: Path):
        return [(name, lambda call, name=name: calls.append((name, call)) or (code if name == "second" else 0),
                 [str(out)]) for name in ("first", "second", "third")]
    return steps


@pytest.mark.parametrize(("which", "more"), [("short", []), ("full", ["--full"])])
def test_the_steps_run_in_order(tmp_path, monkeypatch, capsys, which, more):
    calls = []
    monkeypatch.setattr(suite, which, played(calls))
    assert suite.main(["-o", str(tmp_path / "new" / "out"), *more]) == 0
    assert calls == [(name, [str(tmp_path / "new" / "out")]) for name in ("first", "second", "third")]
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {tmp_path / 'new' / 'out' / 'report.html'}")


def test_full_runs_do_not_replace_short_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "OUT", tmp_path / "out")
    for which, more, place in (("short", [], "out"), ("full", ["--full"], "out/full")):
        calls = []
        monkeypatch.setattr(suite, which, played(calls))
        assert suite.main(more) == 0 and calls[0] == ("first", [str(tmp_path / place)])


def test_a_step_that_fails_ends_it(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(suite, "short", played(calls, code=2))
    assert suite.main(["-o", str(tmp_path)]) == 2
    assert [name for name, _ in calls] == ["first", "second"]
    assert "second failed with exit code 2" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert suite.main(["-o", str(tmp_path / "file" / "out")]) == 2
    assert "name another one: -o DIR" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        suite.main(["--help"])
    assert stop.value.code == 0 and "python benchmarks/suite.py" in capsys.readouterr().out
