"""benchmarks/short.py: every step is one that its command takes, what it makes is what later steps read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency, parity, report, scaling, short
from deploy import export

PARSERS = {"talent-export": export.parser, "latency.py": latency.parser, "parity.py": parity.parser,
           "scaling.py": scaling.parser, "report.py": report.parser}


def test_every_command_takes_its_arguments(tmp_path):
    made = short.steps(tmp_path, short.WEIGHTS)
    assert [name for name, _, _ in made] == ["talent-export", *PARSERS]
    for name, _, call in made:
        PARSERS[name]().parse_args(call)  # SystemExit for an option that it does not have


def test_what_is_read_was_made_before(tmp_path):
    made: set[str] = set()
    for _, _, call in short.steps(tmp_path, short.WEIGHTS):
        written = {call[place + 1] for place, word in enumerate(call) if word in ("-o", "--json", "--png", "--worst")}
        read = {word for word in call if word.startswith(str(tmp_path))} - written
        assert read <= made
        made |= written
    assert str(tmp_path / "report.html") in made


def test_engines_are_built_where_a_gpu_can_run_them(tmp_path, monkeypatch):
    for architecture, without in ((None, True), ("sm89", False)):
        monkeypatch.setattr(short, "gpu_architecture", lambda architecture=architecture: architecture)
        assert ("--no-engine" in short.steps(tmp_path, short.WEIGHTS)[0][2]) == without


def played(calls, code=0):
    def steps(out: Path, checkpoint: Path):
        return [(name, lambda call, name=name: calls.append((name, call)) or (code if name == "second" else 0),
                 [str(out), str(checkpoint)]) for name in ("first", "second", "third")]
    return steps


def test_the_steps_run_in_order(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(short, "steps", played(calls))
    assert short.main(["-o", str(tmp_path / "new" / "out"), "--checkpoint", "mine"]) == 0
    assert calls == [(name, [str(tmp_path / "new" / "out"), "mine"]) for name in ("first", "second", "third")]
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {tmp_path / 'new' / 'out' / 'report.html'}")


def test_a_step_that_fails_ends_it(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(short, "steps", played(calls, code=2))
    assert short.main(["-o", str(tmp_path)]) == 2
    assert [name for name, _ in calls] == ["first", "second"]
    assert "second failed with exit code 2" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert short.main(["-o", str(tmp_path / "file" / "out")]) == 2
    assert "name another one: -o DIR" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        short.main(["--help"])
    assert stop.value.code == 0 and "python benchmarks/short.py" in capsys.readouterr().out
