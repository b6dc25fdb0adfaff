"""Downloads from a server on loopback that misbehaves, unsafe archives, and the small BIQ2021."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import requests

from iqa_utils.datasets import DATASETS
from iqa_utils.workshop.downloads import (
    BIQ2021_CUT,
    BIQ2021_FILES,
    SOURCES,
    ArchiveError,
    Source,
    cut_biq2021,
    download,
    extract_zip,
    fetch,
)

BODY = bytes(range(256)) * 400  # 102,400 bytes
SHA = hashlib.sha256(BODY).hexdigest()


class Server:
    """Answers each request by the next behaviour of a list, the last one for ever."""

    def __init__(self):
        self.behaviours, self.n_requests, self.release = [], 0, threading.Event()
        self.paths = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.n_requests += 1
                outer.paths.append(self.path)
                number = min(outer.n_requests, len(outer.behaviours)) - 1
                self.close_connection = True
                outer.behaviours[number](self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.bin"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    server = Server()
    yield server
    server.release.set()
    server.http.shutdown()
    server.http.server_close()


def serve(body=BODY, *, cut=None, stall=None):
    """A behaviour: the whole body, or its start and then nothing."""

    def behave(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:cut])
        if stall is not None:
            request.wfile.flush()
            stall.wait(5)

    return behave


def fail(code):
    return lambda request: request.send_error(code)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path):
    server.behaviours = [serve()]
    path = fetch(Source(server.url, sha256=SHA), tmp_path / "a" / "set.bin")
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_a_stalled_and_a_busy_connection_are_tried_again(server, tmp_path):
    server.behaviours = [
        serve(cut=30_000),
        serve(cut=30_000, stall=server.release),
        fail(503),
        serve(),
    ]
    path = fetch(Source(server.url), tmp_path / "set.bin", timeout=0.3)  # no hash: length counts
    assert path.read_bytes() == BODY
    assert server.n_requests == 4


def test_another_content_than_the_known_one_is_not_kept(server, tmp_path):
    server.behaviours = [serve(BODY[::-1])]
    with pytest.raises(ValueError, match=f"does not match the known hash: expected {SHA}"):
        fetch(Source(server.url, sha256=SHA), tmp_path / "set.bin", retries=1)
    assert server.n_requests == 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_server_does_not_have_is_an_error_that_names_it(server, tmp_path):
    server.behaviours = [fail(404)]
    with pytest.raises(requests.HTTPError, match=rf"404 .*{server.url}"):
        fetch(Source(server.url), tmp_path / "other.bin")
    with pytest.raises(OSError, match=r"127\.0\.0\.1.*/x"):
        fetch(Source("http://127.0.0.1:1/x"), tmp_path / "x")


# --- whole data sets -------------------------------------------------------------------------


def zipped(files, **attributes):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def test_a_data_set_is_fetched_unpacked_and_not_fetched_again(
    server, tmp_path, monkeypatch, capsys
):
    body = zipped([("kadid10k/dmos.csv", "a,b\n"), ("kadid10k/images/I01.png", b"png")])
    server.behaviours = [serve(body, cut=100), serve(body)]
    found = Source(server.url, strip="kadid10k/", sha256=hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(SOURCES, "kadid10k", (found,))
    assert download("kadid10k", tmp_path)
    assert (tmp_path / "images" / "I01.png").read_bytes() == b"png"
    assert (tmp_path / ".downloads" / "set.bin.done").read_text().startswith(server.url)
    assert not (tmp_path / ".downloads" / "set.bin").exists()
    assert "terms" in capsys.readouterr().out.splitlines()[0]
    assert download("kadid10k", tmp_path)
    assert server.n_requests == 2


@pytest.mark.slow
def test_a_killed_download_starts_over_and_its_remains_go(server, tmp_path, monkeypatch):
    body = zipped([("dmos.csv", "a,b\n")])
    server.behaviours = [serve(body, cut=100, stall=server.release), serve(body)]
    work = tmp_path / ".downloads"
    code = (
        "import sys; from pathlib import Path; "
        "from iqa_utils.workshop.downloads import Source, fetch; "
        "fetch(Source(sys.argv[1]), Path(sys.argv[2]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, server.url, work / "set.bin"]) as child:
        deadline = time.monotonic() + 60
        while not list(work.glob("tmp*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill()
    assert list(work.glob("tmp*"))
    monkeypatch.setitem(SOURCES, "kadid10k", (Source(server.url),))
    assert download("kadid10k", tmp_path)
    assert (tmp_path / "dmos.csv").read_text() == "a,b\n"
    assert sorted(path.name for path in work.iterdir()) == ["lock", "set.bin.done"]


def test_a_plain_file_is_checked_when_it_is_there_already(server, tmp_path, monkeypatch):
    server.behaviours = [serve()]
    found = Source(server.url, target="scores.csv", sha256=SHA)
    monkeypatch.setitem(SOURCES, "koniq10k", (found,))
    assert download("koniq10k", tmp_path)
    assert download("koniq10k", tmp_path)
    assert server.n_requests == 1
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(ValueError, match="another file of this name"):
        download("koniq10k", tmp_path)
    assert (tmp_path / "scores.csv").read_text() == "mine"


def test_a_page_instead_of_an_archive_is_named_and_not_kept(server, tmp_path, monkeypatch):
    server.behaviours = [serve(b"PK or not")]
    monkeypatch.setitem(SOURCES, "kadid10k", (Source(server.url),))
    with pytest.raises(ArchiveError, match="not a zip archive"):
        download("kadid10k", tmp_path)
    assert not (tmp_path / ".downloads" / "set.bin").exists()


PAGES = [
    b"\n<!DOCTYPE html><title>please log in</title>",
    b"\xef\xbb\xbf<!DOCTYPE html><title>please log in</title>",
    b"<!-- " + b"long " * 900 + b"-->\n<html>",
    b'<?xml version="1.0"?><!DOCTYPE html>',
    "\ufeff<html>".encode("utf-16-le"),
]


@pytest.mark.parametrize("page", PAGES, ids=["plain", "mark", "comment", "xml", "utf-16"])
@pytest.mark.parametrize("target", [None, "scores.csv"])
def test_a_log_in_page_is_never_kept_as_data(server, tmp_path, monkeypatch, target, page):
    server.behaviours = [serve(page)]
    monkeypatch.setitem(SOURCES, "kadid10k", (Source(server.url, target=target),))
    with pytest.raises(OSError, match=r"set\.bin answered with a web page"):
        download("kadid10k", tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]
    assert server.n_requests == 1


def test_a_mirror_of_the_user_serves_files_of_the_same_names(server, tmp_path, monkeypatch):
    body = zipped([("kadid10k/dmos.csv", "a,b\n")])
    server.behaviours = [serve(body), serve(BODY)]
    digest = hashlib.sha256(body).hexdigest()
    official = Source("https://nowhere.invalid/deep/kadid10k.zip", strip="kadid10k/", sha256=digest)
    monkeypatch.setitem(SOURCES, "kadid10k", (official,))
    mirror = server.url.replace("set.bin", "mirror/")
    assert download("kadid10k", tmp_path / "a", mirror=mirror)
    assert (tmp_path / "a" / "dmos.csv").read_text() == "a,b\n"
    assert server.paths == ["/mirror/kadid10k.zip"]
    with pytest.raises(ValueError, match="does not match the known hash"):
        download("kadid10k", tmp_path / "b", mirror=mirror)
    with pytest.raises(ValueError, match=r"expected a mirror as http\(s\)://"):
        download("kadid10k", tmp_path / "b", mirror="/mnt/sets")


@pytest.mark.slow
def test_the_hub_of_weights_is_the_one_that_the_user_named(server, tmp_path):
    server.behaviours = [fail(404)]
    code = (
        "from iqa_utils.backbones import create_backbone\n"
        "try:\n    create_backbone('mobilenetv2_100', pretrained='hub')\n"
        "except ConnectionError as error:\n    print(error)\n"
    )
    endpoint = server.url.removesuffix("/set.bin")
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "pretrained='hub' could not fetch the weights of mobilenetv2_100" in done.stdout
    assert "/timm/mobilenetv2_100.ra_in1k/resolve/main/model.safetensors" in server.paths


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(SOURCES)))
def test_a_set_without_a_confirmed_address_tells_what_to_do(name, tmp_path, capsys):
    assert not download(name, tmp_path)
    told = capsys.readouterr().out.partition("\n")[2]
    assert DATASETS[name].home in told
    assert all(file in told for file in DATASETS[name].files)


def test_addresses_are_encrypted_and_unknown_sets_refused(tmp_path):
    for source in (source for sources in SOURCES.values() for source in sources):
        assert source.url.startswith("https://")
        assert source.sha256 is None or len(source.sha256) == 64
    with pytest.raises(KeyError, match="no data set 'nothing'"):
        download("nothing", tmp_path)


# --- archives --------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    def write(files, **attributes):
        path = tmp_path / "a.zip"
        path.write_bytes(zipped(files, **attributes))
        return path

    return write


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("/etc/passwd", "absolute path"),
        ("C:/x", "a drive"),
        ("a\\..\\b", "foreign separator"),
        ("../x", "climbs out"),
        ("a/../../x", "climbs out"),
    ],
)
def test_entries_that_reach_outside_are_refused(archive, tmp_path, name, match):
    with pytest.raises(ArchiveError, match=match):
        extract_zip(archive([("good.txt", "x"), (name, "x")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", [".downloads/set.zip.done", "demo.json", "deep/demo.json", "DEMO.JSON"]
)
def test_an_archive_may_not_write_this_programs_own_notes(archive, tmp_path, name):
    with pytest.raises(ArchiveError, match="gives its own notes"):
        extract_zip(archive([("good.txt", "x"), (name, "x")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(archive, tmp_path, kind):
    path = archive([("link", "/etc/passwd")], external_attr=(kind | 0o777) << 16)
    with pytest.raises(ArchiveError, match="link or a device"):
        extract_zip(path, tmp_path / "out")


def test_a_bomb_is_refused_before_it_expands(archive, tmp_path):
    path = archive([("zeros", bytes(200 * 2**20))])
    assert path.stat().st_size < 2**20
    with pytest.raises(ArchiveError, match="expands to 209,715,200 bytes"):
        extract_zip(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bomb_that_lies_about_its_size_is_stopped(archive, tmp_path):
    path = archive([("zeros", bytes(2**20))])
    data = path.read_bytes()
    path.write_bytes(data.replace((2**20).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match="damaged"):
        extract_zip(path, tmp_path / "out")
    assert not (tmp_path / "out" / "zeros").exists()


def test_a_name_twice_and_a_stray_entry_are_refused(archive, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns when it writes a name twice
        path = archive([("a", "x"), ("a", "y")])
    with pytest.raises(ArchiveError, match="'a' is there twice"):
        extract_zip(path, tmp_path / "out")
    path = archive([("set/a", "x"), ("b", "y")])
    with pytest.raises(ArchiveError, match="'b' is outside of 'set/'"):
        extract_zip(path, tmp_path / "out", strip="set/")


def test_a_flipped_bit_is_noticed_and_nothing_is_left_in_place(archive, tmp_path):
    path = archive([("a", os.urandom(5000)), ("b", b"x")])
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        extract_zip(path, tmp_path / "out")
    assert not (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_damage_is_an_error_of_the_archive_in_every_compression(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as opened:
        opened.writestr("a", bytes(range(256)) * 40)
    whole, kinds = path.read_bytes(), set()
    for place in range(31, 31 + 60):  # behind the local header and the name
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            extract_zip(path, tmp_path / "out")
        except ArchiveError as error:
            kinds.add(type(error.__cause__).__name__)  # any other error fails
    assert kinds


def test_a_name_that_is_not_text_is_an_error_of_the_archive(archive, tmp_path):
    path = archive([("é", "x")])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(ArchiveError, match=r"a\.zip: damaged, or not a zip archive"):
        extract_zip(path, tmp_path / "out")


def test_a_file_beside_a_folder_of_its_name_is_refused_and_the_archive_goes(
    server, tmp_path, monkeypatch
):
    server.behaviours = [serve(zipped([("a/b", "x"), ("a", "y")]))]
    monkeypatch.setitem(SOURCES, "kadid10k", (Source(server.url),))
    with pytest.raises(ArchiveError, match="a is a file and a folder of a/b"):
        download("kadid10k", tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]


def test_a_full_disk_is_no_error_of_the_archive(archive, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        extract_zip(archive([("a", "x")]), tmp_path / "out")


def test_what_is_unpacked_is_on_disk_before_the_note_that_says_so(server, tmp_path, monkeypatch):
    server.behaviours = [serve(zipped([("a", "x"), ("deep/b", "y")]))]
    monkeypatch.setitem(SOURCES, "kadid10k", (Source(server.url),))
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    download("kadid10k", tmp_path)
    (done,) = (tmp_path / ".downloads").glob("*.done")
    wanted = ["a", "deep/b", "deep", "."]
    places = [synced.index((tmp_path / name).stat().st_ino) for name in wanted]
    assert max(places) < synced.index(done.stat().st_ino)


def test_an_existing_file_is_never_replaced_by_another(archive, tmp_path):
    path = archive([("a", "theirs"), ("b", "x")])
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("mine")
    with pytest.raises(FileExistsError, match="another file of this name"):
        extract_zip(path, out)
    assert (out / "a").read_text() == "mine"
    assert not (out / "b").exists()
    (out / "a").write_text("theirs")
    assert extract_zip(path, out) == 2


# --- the small BIQ2021 ------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    """Six images, one of them spelt differently on disk; the test file has no stray commas."""
    root = tmp_path / "full"
    (root / "Images").mkdir(parents=True)
    rows = [f"ss01 ({i}).jpg,0.{i}00{i}" for i in range(1, 7)]
    (root / BIQ2021_FILES["training"]).write_bytes(
        b"Image Name,MOS,,\r\n" + "".join(f"{row},,\r\n" for row in rows[:5]).encode()
    )
    (root / BIQ2021_FILES["test"]).write_bytes(f"Image Name,MOS\n{rows[5]}\n".encode())
    for i in range(1, 7):
        name = f"ss01 ({i}).JPG" if i == 3 else f"ss01 ({i}).jpg"
        (root / "Images" / name).write_bytes(bytes([i]))
    names = tmp_path / "names.csv"
    names.write_text(
        "image,part\nss01 (4).jpg,training\nss01 (3).jpg,test\nss01 (1).jpg,training\n"
    )
    return root, names


def test_a_cut_keeps_order_scores_and_bytes(full, tmp_path):
    root, names = full
    out = tmp_path / "mini"
    assert cut_biq2021(root, out, names=names) == {"training": 2, "test": 1}
    training = (out / BIQ2021_FILES["training"]).read_bytes()
    assert training == b"Image Name,MOS,,\r\nss01 (4).jpg,0.4004,,\r\nss01 (1).jpg,0.1001,,\r\n"
    assert (out / BIQ2021_FILES["test"]).read_bytes() == b"Image Name,MOS\nss01 (3).jpg,0.3003\r\n"
    assert (out / "Images" / "ss01 (3).JPG").read_bytes() == b"\x03"
    assert len(list((out / "Images").iterdir())) == 3
    assert cut_biq2021(root, out, names=names) == {"training": 2, "test": 1}


@pytest.mark.parametrize("name", ["Images", *BIQ2021_FILES.values()])
def test_a_cut_never_writes_through_a_link_into_the_full_set(full, tmp_path, name):
    root, names = full
    out = tmp_path / "mini"
    out.mkdir()
    (out / name).symlink_to(root / name)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="is that of the full set, which a cut would overwrite"):
        cut_biq2021(root, out, names=names)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_what_is_missing_is_named(full, tmp_path):
    root, names = full
    (root / "Images" / "ss01 (4).jpg").unlink()
    with pytest.raises(ValueError, match=r"1 images have no file or score: ss01 \(4\)\.jpg"):
        cut_biq2021(root, tmp_path / "mini", names=names)
    with pytest.raises(ValueError, match="another folder"):
        cut_biq2021(root, root, names=names)
    (root / BIQ2021_FILES["test"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected Test \(Images and MOS\)\.csv in "):
        cut_biq2021(root, tmp_path / "mini", names=names)
    with pytest.raises(FileNotFoundError, match=r"Images in .*nothing.*iqa data download biq2021"):
        cut_biq2021(tmp_path / "nothing", tmp_path / "mini", names=names)


def test_the_list_is_the_real_cut(real_data, tmp_path):
    root, out = real_data / "biq2021", tmp_path / "biq2021"
    assert cut_biq2021(root, out) == {"training": 1600, "test": 400}
    for file_name in BIQ2021_FILES.values():
        assert (out / file_name).read_bytes() == (root / file_name).read_bytes()


def test_the_list_names_each_image_once():
    table = pd.read_csv(BIQ2021_CUT)
    assert table["image"].is_unique
    assert table["part"].value_counts().to_dict() == {"training": 1600, "test": 400}
