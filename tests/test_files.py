"""Files appear whole, locks exclude, hashes are SHA-256."""

import subprocess
import sys

import pytest
from filelock import Timeout

from iqa_utils.files import atomic_folder, atomic_write, hash_file, lock


def test_a_file_appears_only_when_it_is_written_whole(tmp_path):
    path = tmp_path / "new" / "numbers.npy"
    with atomic_write(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.suffix == ".npy"  # NumPy would append it
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("old")

    def write_badly():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_badly()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_only_when_it_is_filled(tmp_path):
    path = tmp_path / "set"
    for content in ("old", "new"):
        with atomic_folder(path) as partial:
            assert list(partial.iterdir()) == []
            (partial / content).touch()
    assert [file.name for file in path.iterdir()] == ["new"]

    def fill_badly():
        with atomic_folder(path) as partial:
            (partial / "half").touch()
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fill_badly()
    assert [file.name for file in tmp_path.rglob("*")] == ["set", "new"]


def test_a_lock_keeps_another_process_out_until_its_holder_dies(tmp_path):
    path = tmp_path / "locks" / "one.lock"
    code = (
        "import sys; from iqa_utils.files import lock\n"
        "with lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            lock(path).acquire(timeout=0)
        holder.kill()
        holder.wait()
    with lock(path).acquire(timeout=0):
        pass


def test_a_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    start = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert hash_file(tmp_path / "abc") == start
