"""Nothing half-written; and where a result came from."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import talent
from talent import files, provenance
from talent.errors import UserError
from talent.files import atomic_directory, atomic_write, check_writable, remove_leftovers


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_new_and_replace(tmp_path):
    for content in ("first", "second"):
        with atomic_write(tmp_path / "a.txt") as temporary:
            assert temporary.suffix == ".txt" and temporary.parent == tmp_path
            temporary.write_text(content)
        assert (tmp_path / "a.txt").read_text() == content
    assert names(tmp_path) == ["a.txt"]


def test_reader_of_the_old_file_keeps_it(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (tmp_path / "a.txt").open() as reader:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert reader.read() == "old"  # the name moved on; the file itself was not written into
    assert (tmp_path / "a.txt").read_text() == "new"


def test_write_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_written_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_write(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_refuses(tmp_path):
    with pytest.raises(UserError, match="mkdir -p"), atomic_write(tmp_path / "no" / "a.txt"):
        pass
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="is a directory"), atomic_write(tmp_path / "directory"):
        pass


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    for name, kind in (("fifo", "a FIFO"), ("link", "a FIFO"), ("socket", "a socket")):
        for ask in (check_writable, lambda path: atomic_write(path).__enter__()):
            with pytest.raises(UserError, match=f"{name}: expected a file or a free name, received {kind}"):
                ask(tmp_path / name)
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "link").is_symlink() and (tmp_path / "socket").is_socket()
    assert names(tmp_path) == ["fifo", "link", "socket"]


def test_an_open_file_of_a_process_is_not_replaced(tmp_path):
    """As /dev/stdout is one, whatever it leads to."""
    with (tmp_path / "log").open("w") as log:
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{log.fileno()}")
        with pytest.raises(UserError, match="received an open file of a process"):
            check_writable(tmp_path / "stdout")
    (tmp_path / "link").symlink_to("log")  # any other link to a file is replaced, and the file stays
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").read_text() == "new" and (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("can_exchange", [True, False])
def test_directory_new_and_replace(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for content in ("first", "second"):
        with atomic_directory(tmp_path / "bundle", marker="m.json") as temporary:
            (temporary / "m.json").write_text(content)
            (temporary / content).mkdir()
        assert (tmp_path / "bundle" / "m.json").read_text() == content
        assert names(tmp_path / "bundle") == sorted([content, "m.json"])
    assert names(tmp_path) == ["bundle"]


def test_exchange_swaps_on_this_system(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").touch()
    if not files._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("no renameat2 on this system")
    assert names(tmp_path / "a") == [] and names(tmp_path / "b") == ["x"]


def test_directory_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "m.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "bundle", marker="m.json") as temporary:
        (temporary / "m.json").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "bundle" / "m.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_directory_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.jpg").touch()
    for marker in (None, "bundle.json"):
        with pytest.raises(UserError, match="will not replace"), atomic_directory(tmp_path / "pictures", marker=marker):
            pytest.fail("the block must not run")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="it is a file"), atomic_directory(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="mkdir -p"), atomic_directory(tmp_path / "no" / "bundle"):
        pass
    assert names(tmp_path) == ["file", "pictures"] and names(tmp_path / "pictures") == ["holiday.jpg"]


def test_empty_directory_may_be_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as temporary:
        (temporary / "x").touch()
    assert names(tmp_path / "empty") == ["x"]


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str]]:
    """In order: ("flush", name of the file or directory), ("move", name that something got)."""
    noted = []
    fsync, rename, replace, exchange = os.fsync, os.rename, os.replace, files._exchange

    def note(what: str, path: str | Path) -> None:
        noted.append((what, Path(path).name))

    monkeypatch.setattr(os, "fsync", lambda at: (note("flush", os.readlink(f"/proc/self/fd/{at}")), fsync(at))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (note("move", b), rename(a, b))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (note("move", b), replace(a, b))[1])
    monkeypatch.setattr(files, "_exchange", lambda a, b: (note("move", b), exchange(a, b))[1])
    return noted


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files come from /proc")


@needs_proc
def test_a_file_is_on_the_disk_before_its_name(tmp_path, events):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert events == [("flush", temporary.name), ("move", "a.txt")]


@needs_proc
@pytest.mark.parametrize("there", [False, True])
def test_a_directory_is_on_the_disk_before_its_name(tmp_path, events, there):
    if there:
        (tmp_path / "bundle").mkdir()
    with atomic_directory(tmp_path / "bundle") as temporary:
        (temporary / "inner").mkdir()
        for name in ("weights", "inner/b"):
            (temporary / name).write_text("x")
    *flushed, moved, parent = events
    assert sorted(flushed) == [("flush", name) for name in sorted([temporary.name, "inner", "b", "weights"])]
    assert moved == ("move", "bundle") and parent == ("flush", tmp_path.name), "then its name is on the disk, too"


def test_disk_that_takes_no_bytes(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "m.json").write_text("old")

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"), atomic_directory(tmp_path / "bundle", marker="m.json") as new:
        (new / "m.json").write_text("new")
    assert (tmp_path / "bundle" / "m.json").read_text() == "old" and names(tmp_path) == ["bundle"]


def test_leftovers(tmp_path):
    """Of these names only, and what was put aside comes back where nothing has taken its place."""
    for name in (".last.0a.tmp", ".last.1b.old", ".best.2c.old", ".other.3d.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    (tmp_path / ".run.4e.tmp.json").touch()
    (tmp_path / "last").mkdir()
    for name in ("last", "best", "run.json", "never"):
        remove_leftovers(tmp_path / name)
    assert names(tmp_path) == [".other.3d.tmp", "best", "last"]
    assert (tmp_path / "best" / "content").read_text() == ".best.2c.old" and names(tmp_path / "last") == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_killed_run_leaves_the_old_one_whole(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
        body = f"with atomic_write({str(target)!r}) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    else:
        target.mkdir()
        (target / "m").write_text("old")
        body = (f"with atomic_directory({str(target)!r}, marker='m') as t: "
                "(t / 'm').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    code = f"import os, signal\nfrom talent.files import atomic_write, atomic_directory\n{body}"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(talent.__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (target if kind == "file" else target / "m").read_text() == "old"


def test_sha256(tmp_path):
    content = np.random.default_rng(0).bytes(3 * (1 << 20) + 17)
    (tmp_path / "weights").write_bytes(content)
    assert provenance.sha256(tmp_path / "weights") == hashlib.sha256(content).hexdigest()


def test_versions():
    found = provenance.versions("numpy", "no-such-package-anywhere")
    assert found["numpy"] == np.__version__
    assert found["no-such-package-anywhere"] == "not installed"
    assert found["python"] == platform.python_version() and found["platform"]


def git(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *identity, *arguments], cwd=directory, env=environment, check=True,
                          capture_output=True, text=True).stdout.strip()


@pytest.fixture
def source_tree(tmp_path, monkeypatch) -> Path:
    """A git repository with a package in it, which `provenance` takes for its own."""
    (tmp_path / "talent").mkdir()
    (tmp_path / "talent" / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "talent")
    git(tmp_path, "init", "-q")
    return tmp_path


def test_commit_clean_and_dirty(source_tree):
    git(source_tree, "add", ".")
    git(source_tree, "commit", "-q", "-m", "x")
    head = git(source_tree, "rev-parse", "HEAD")
    (source_tree / "untracked").touch()
    assert provenance.commit() == head and len(head) == 40
    (source_tree / "talent" / "__init__.py").write_text("x = 2\n")
    assert provenance.commit() == f"{head}-dirty"


def test_commit_ignores_the_repository_of_a_hook(source_tree, monkeypatch, tmp_path_factory):
    git(source_tree, "add", ".")
    git(source_tree, "commit", "-q", "-m", "x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("elsewhere")))
    assert provenance.commit() == git_head(source_tree)


def git_head(directory: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=directory, env=environment, check=True,
                          capture_output=True, text=True).stdout.strip()


def test_commit_is_the_version_outside_a_source_tree(source_tree, monkeypatch):
    git(source_tree, "commit", "-q", "--allow-empty", "-m", "x")  # the package itself is not tracked here
    assert provenance.commit() == talent.__version__
    monkeypatch.setenv("PATH", "")  # no git
    assert provenance.commit() == talent.__version__
