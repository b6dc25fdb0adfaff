"""Files appear whole, locks exclude, hashes are SHA-256."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import Timeout

from iqa_utils.files import (
    atomic_folder,
    atomic_write,
    hash_file,
    load_array,
    lock,
    read_mapping,
    replace_folder,
    restore_folder,
    save_array,
    sweep,
)


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


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped bit", "no checksum"])
def test_a_damaged_array_is_not_read_and_is_named(tmp_path, capsys, damage):
    path = tmp_path / "cache" / "a.npy"
    array = np.arange(12.0).reshape(3, 4)
    save_array(path, array)
    np.testing.assert_array_equal(load_array(path, (3, None)), array)
    np.testing.assert_array_equal(np.load(path), array)  # still a plain file of NumPy
    assert [load_array(path, shape) for shape in ((4, None), (12,))] == [None, None]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    np.save(tmp_path / "plain.npy", array)
    plain = (tmp_path / "plain.npy").read_bytes()
    damaged = {"empty": b"", "cut": plain[:-9], "flipped bit": bytes(content), "no checksum": plain}
    path.write_bytes(damaged[damage])
    assert capsys.readouterr().out == ""
    assert load_array(path, (3, 4)) is None
    assert capsys.readouterr().out == f"{path} is damaged and is made again\n"
    assert load_array(tmp_path / "absent.npy", (3, 4)) is None


def test_what_a_killed_process_left_in_a_cache_goes_when_nobody_holds_it(tmp_path):
    names = ["pass-0a1b", "pass-0c1d", "pass-0e1f", ".123-a.npy", ".123-00ff-b.npy"]
    names += ["a.npy", "passes"]
    old = time.time() - 2 * 86400
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.bin").touch()
        for path in (tmp_path / name / "0.bin", tmp_path / name):
            os.utime(path, (old, old))
    os.utime(tmp_path / "pass-0c1d/0.bin")  # touched today: a rerun may go on from it
    with lock(tmp_path / "pass-0e1f.lock"):
        sweep(tmp_path)
    left = {"pass-0c1d", "pass-0e1f", "pass-0e1f.lock", "a.npy", "passes"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_file_that_is_put_in_its_place_during_a_sweep_does_not_stop_it(tmp_path, monkeypatch):
    for name in (".1-a", ".2-b"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    lstat = type(tmp_path).lstat

    def vanish(path):
        if path.name == ".1-a":
            path.unlink(missing_ok=True)
        return lstat(path)

    monkeypatch.setattr(type(tmp_path), "lstat", vanish)
    sweep(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_two_containers_with_one_process_number_do_not_write_to_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # it ended last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"SEED": 1, "SEED": 2}'),
        ("a.json", '{"inner": {"SEED": 1, "SEED": 1}}'),
        ("a.yaml", "SEED: 1\nSETS: []\nSEED: 2\n"),
        ("a.yaml", "inner: {SEED: 1, SEED: 2}\n"),
    ],
)
def test_a_name_that_is_there_twice_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: expected .*SEED is there twice"):
        read_mapping(tmp_path / name)


def test_references_and_merges_of_yaml_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert read_mapping(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_a_file_that_stands_for_endless_text_is_refused_at_once(tmp_path):
    lines = ["- &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"- &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]  # 1e12 words
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"expected names and values, found list '\[\['lol'|\[\["):
        read_mapping(tmp_path / "a.yaml")
    assert time.monotonic() - started < 5


def test_a_kill_between_the_renames_of_a_replacement_is_mended(tmp_path):
    for name, content in (("run", "old"), ("new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"is": content}))
    aside = (tmp_path / "run").rename(tmp_path / ".run.old")
    assert restore_folder(aside) == tmp_path / "run"
    assert read_mapping(tmp_path / "run" / "metrics.json") == {"is": "old"}
    replace_folder(tmp_path / "new", tmp_path / "run")
    assert read_mapping(tmp_path / "run" / "metrics.json") == {"is": "new"}
    (tmp_path / "run").rename(aside)
    with lock(tmp_path / ".run.lock"):
        assert restore_folder(aside) == aside  # its writer is between the two
    assert restore_folder(tmp_path / ".gone.old") == tmp_path / ".gone.old"


def test_the_name_of_a_new_file_is_on_disk_before_anybody_relies_on_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with atomic_write(tmp_path / "metrics.json") as partial:
        partial.write_text("{}")
    assert synced == [(tmp_path / "metrics.json").stat().st_ino, tmp_path.stat().st_ino]
