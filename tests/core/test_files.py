"""Files that are written whole or not at all: what is refused and kept, and what processes that are killed leave."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from multiopt import files

#: Writes a file, and says when it is in the middle; then it waits for a line, or for its end.
WRITER = """
import sys
from pathlib import Path
from multiopt.files import writing
with writing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.write(b" done")
"""


def write(path, content=b"new"):
    with files.writing(Path(path)) as file:
        file.write(content)


@contextlib.contextmanager
def writer(path):
    """A process in the middle of writing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "half\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextlib.contextmanager
def full_disk():
    resource = pytest.importorskip("resource", reason="limits on files are a thing of Unix")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))  # the signal that comes with it, Python ignores
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match=str(path)):
        write(path, bytes(1000))
    with pytest.raises(ZeroDivisionError), files.writing(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_an_error_of_somebody_else_keeps_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), files.writing(tmp_path / "x"):
        Path("absent").read_bytes()


def test_who_reads_while_another_writes_sees_one_file_whole(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with files.reading(path) as reader:
        write(path)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["folder", "pipe", "device", "link"])
def test_what_is_no_regular_file_is_refused(name, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    else:
        path = Path(os.devnull) if name == "device" else path
        if name == "link":
            path.symlink_to(os.devnull)
    for act in (write, files.reading):
        with pytest.raises(OSError, match=r"expected a regular file, got a (folder|device)"):
            act(path)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert not [entry for entry in os.listdir(tmp_path) if entry != name]


@pytest.mark.parametrize("path", ["absent/x", "file/x", "loop"])
def test_what_the_system_refuses_is_an_error_of_the_system(path, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=path):
        write(tmp_path / path)
    with pytest.raises(OSError, match=path):
        files.reading(tmp_path / path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_file_is_written(exists, tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(Path("far") / "target")
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "far") == ["target"]


def test_mode_and_owner_are_kept(tmp_path):
    path, usual = tmp_path / "x", tmp_path / "usual"
    usual.write_bytes(b"")
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    for mode in (0o600, 0o640, 0o604, 0o444):
        path.chmod(mode)
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
        write(path)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_nobody_else_may_read_what_replaces_a_private_file_and_a_group_that_cannot_be_kept_gains_nothing(
    tmp_path, monkeypatch
):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with files.writing(path) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def refuse(*args):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_the_system_allows(tmp_path):
    for name in ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"), "é" * (os.pathconf(tmp_path, "PC_NAME_MAX") // 2)):
        write(tmp_path / name)
        write(tmp_path / name, b"again")
        assert (tmp_path / name).read_bytes() == b"again"
    assert len(os.listdir(tmp_path)) == 2


def test_the_file_and_its_folder_are_synced(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def note(number):
        synced.append(os.fstat(number).st_ino)
        sync(number)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path / "x")
    assert synced == [(tmp_path / "x").stat().st_ino, tmp_path.stat().st_ino]


# --- strays ---


def test_what_a_killed_process_leaves_goes_with_the_next_file_of_that_name(tmp_path):
    path, other = tmp_path / "x", tmp_path / "y"
    path.write_bytes(b"old")
    with writer(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    write(other)
    assert len(os.listdir(tmp_path)) == 3
    write(path)
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]
    assert path.read_bytes() == b"new"


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    path = tmp_path / "x"
    with writer(path) as process:
        write(path)
        assert path.read_bytes() == b"new"
        process.communicate("\n")
        assert process.returncode == 0
    assert path.read_bytes() == b"half done"
    assert os.listdir(tmp_path) == ["x"]


def test_what_another_thread_is_writing_is_left_alone(tmp_path):
    path = tmp_path / "x"
    with files.writing(path) as file:
        file.write(b"outer")
        write(path, b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"
    contents = [bytes([i]) * 100_000 for i in range(8)]

    def repeat(content):
        for _ in range(20):
            write(path, content)

    threads = [threading.Thread(target=repeat, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in [b"outer", *contents]
    assert os.listdir(tmp_path) == ["x"]


def test_a_file_that_is_taken_for_a_stray_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, removed = files._lock, []

    def lock(number):
        for name in os.listdir(tmp_path) if not removed else []:
            removed.append(name)
            os.unlink(tmp_path / name)
        return real(number)

    monkeypatch.setattr(files, "_lock", lock)
    write(tmp_path / "x")
    assert len(removed) == 1
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_without_locks_nothing_is_removed(locks, tmp_path, monkeypatch):
    write(tmp_path / "x")
    with writer(tmp_path / "x") as process:
        process.kill()
        process.wait()
        stray = next(name for name in os.listdir(tmp_path) if name != "x")
        if locks == "none":
            monkeypatch.setattr(files, "fcntl", None)
        else:
            monkeypatch.setattr(files.fcntl, "flock", lambda *args: os.stat("absent"))
        write(tmp_path / "x", b"again")
    assert (tmp_path / "x").read_bytes() == b"again"
    assert sorted(os.listdir(tmp_path)) == sorted([stray, "x"])
