"""Tests of downloads against a server on loopback that misbehaves, and of unsafe archives."""

import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iqa_utils.datasets.catalogue import DATASETS
from iqa_utils.workshop import downloads
from iqa_utils.workshop.downloads import (
    SOURCES,
    DownloadError,
    Source,
    download,
    fetch,
    instructions,
)
from iqa_utils.workshop.downloads.archives import ArchiveError, extract_zip

BODY = bytes(range(256)) * 400  # 102,400 bytes
OTHER = BODY[::-1]
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = {"timeout": 0.3, "attempts": 3, "pause": 0.0}


class Server:
    """Answers each request by the next behaviour of a list, the last one for ever."""

    def __init__(self):
        self.behaviours, self.requests, self.release = [], [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append(dict(self.headers))
                number = min(len(outer.requests), len(outer.behaviours)) - 1
                self.close_connection = True
                outer.behaviours[number](self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.bin"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def ranges(self):
        return [request.get("Range") for request in self.requests]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.release.set()
    server.http.shutdown()
    server.http.server_close()


def serve(
    body=BODY, *, tag='"one"', cut=None, announce=None, ranges=True, stall=None, if_range=True
):
    """A behaviour: honest but for what the options say."""

    def behave(request):
        wanted, start = request.headers.get("Range"), 0
        same = request.headers.get("If-Range") == tag or not if_range
        if wanted and ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        rest = body[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if tag:
            request.send_header("ETag", tag)
        request.send_header("Content-Length", str(announce or len(rest)))
        request.end_headers()
        request.wfile.write(rest[: len(rest) if cut is None else cut])
        if stall is not None:
            request.wfile.flush()
            stall.wait(5)

    return behave


def fail(code):
    return lambda request: request.send_error(code)


def source(server, **options):
    return Source(url=server.url, **options)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path):
    server.behaviours = [serve()]
    path = fetch(source(server, size=len(BODY), sha256=SHA), tmp_path / "a" / "set.bin", **QUICK)
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"]
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_a_truncated_file_is_continued_where_it_ended(server, tmp_path):
    server.behaviours = [serve(cut=30_000), serve(cut=20_000), serve()]
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert server.ranges() == [None, "bytes=30000-", "bytes=50000-"]
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_a_stalled_connection_is_given_up_and_continued(server, tmp_path):
    server.behaviours = [serve(cut=30_000, stall=server.release), serve()]
    start = time.monotonic()
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert time.monotonic() - start < 3
    assert server.ranges() == [None, "bytes=30000-"]


def test_a_dripping_connection_counts_as_stalled(server, tmp_path):
    def drip(request):
        serve(cut=1000)(request)
        for _ in range(30):
            request.wfile.write(b"x")
            request.wfile.flush()
            if server.release.wait(0.1):
                return

    server.behaviours = [drip, serve(tag='"two"')]  # what dripped was not the file
    start = time.monotonic()
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert time.monotonic() - start < 2


def test_a_killed_download_goes_on_in_the_next_process(server, tmp_path):
    server.behaviours = [serve(cut=40_000, stall=server.release), serve()]
    code = (
        "import sys; from pathlib import Path; "
        "from iqa_utils.workshop.downloads import Source, fetch; "
        "fetch(Source(url=sys.argv[1]), Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path / "set.bin")])
    part = tmp_path / "set.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held = part.stat().st_size
    assert 0 < held <= 40_000
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert server.ranges()[1] == f"bytes={held}-"
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_a_file_that_changed_between_requests_starts_over(server, tmp_path):
    server.behaviours = [serve(OTHER, tag='"old"', cut=30_000), serve()]
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert server.requests[1]["If-Range"] == '"old"'
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_a_server_that_sends_the_rest_of_another_version_is_caught(server, tmp_path):
    server.behaviours = [serve(OTHER, tag='"old"', cut=30_000), serve(if_range=False)]
    fetch(source(server), tmp_path / "set.bin", **QUICK)
    assert server.ranges() == [None, "bytes=30000-", None]
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_two_versions_under_one_tag_are_caught_by_the_hash(server, tmp_path):
    server.behaviours = [serve(OTHER, cut=30_000), serve()]
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert server.ranges() == [None, "bytes=30000-", None]
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_without_a_tag_nothing_is_joined(server, tmp_path):
    server.behaviours = [serve(OTHER, tag=None, cut=30_000), serve(tag=None)]
    fetch(source(server), tmp_path / "set.bin", **QUICK)
    assert server.ranges() == [None, None]
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_a_server_without_ranges_is_asked_again_from_the_start(server, tmp_path):
    server.behaviours = [serve(cut=30_000), serve(ranges=False)]
    fetch(source(server), tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_another_length_than_the_known_one_is_refused_before_the_download(server, tmp_path):
    server.behaviours = [serve(BODY + b"more")]
    with pytest.raises(DownloadError, match="expected 102400 bytes, the server announces 102404"):
        fetch(source(server, size=len(BODY)), tmp_path / "set.bin", **QUICK)
    assert not (tmp_path / "set.bin").exists()


def test_a_server_that_announces_too_much_is_named(server, tmp_path):
    server.behaviours = [serve(announce=len(BODY) + 9), fail(416), serve()]
    fetch(source(server, sha256=SHA), tmp_path / "honest.bin", **QUICK)
    server.requests.clear()
    server.behaviours = [serve(announce=len(BODY) + 9, ranges=False)]
    with pytest.raises(DownloadError, match="announced 102409 bytes and ended after 102400"):
        fetch(source(server), tmp_path / "set.bin", **QUICK)
    assert not (tmp_path / "set.bin").exists()


def test_a_server_that_announces_too_little_is_caught_by_the_hash(server, tmp_path):
    server.behaviours = [serve(announce=100)]
    with pytest.raises(DownloadError, match=f"expected SHA-256 {SHA}"):
        fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_ends_is_stopped(server, tmp_path):
    def endless(request):
        request.send_response(200)
        request.end_headers()  # no length: the end of the connection is the end
        request.wfile.write(BODY + BODY)

    server.behaviours = [endless]
    with pytest.raises(DownloadError, match="the server sent more"):
        fetch(source(server, size=len(BODY)), tmp_path / "set.bin", **QUICK)


def test_an_unusable_range_is_not_joined(server, tmp_path):
    def odd(request):
        request.send_response(206)
        request.send_header("Content-Range", "bytes 5-9")
        request.send_header("Content-Length", "5")
        request.end_headers()
        request.wfile.write(b"12345")

    server.behaviours = [serve(cut=30_000), odd, serve()]
    fetch(source(server, sha256=SHA), tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.behaviours = [fail(503), fail(429), serve()]
    fetch(source(server), tmp_path / "set.bin", **QUICK)
    server.requests.clear()
    server.behaviours = [fail(404)]
    with pytest.raises(DownloadError, match="HTTP 404"):
        fetch(source(server), tmp_path / "other.bin", **QUICK)
    assert len(server.requests) == 1
    server.requests.clear()
    server.behaviours = [fail(503)]
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(source(server), tmp_path / "other.bin", **QUICK)
    assert len(server.requests) == QUICK["attempts"]


def test_nobody_at_the_address_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1/x"):
        fetch(Source(url="http://127.0.0.1:1/x"), tmp_path / "x", **QUICK)


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


def test_a_data_set_is_fetched_unpacked_and_not_fetched_again(server, tmp_path, monkeypatch):
    body = zipped([("kadid10k/dmos.csv", "a,b\n"), ("kadid10k/images/I01.png", b"png")])
    server.behaviours = [serve(body, cut=100), serve(body)]
    found = Source(url=server.url, strip="kadid10k/", sha256=hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(SOURCES, "kadid10k", (found,))
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    lines = []
    assert download("kadid10k", tmp_path, tell=lines.append)
    assert (tmp_path / "images" / "I01.png").read_bytes() == b"png"
    assert json.loads((tmp_path / ".downloads" / "set.bin.done").read_text())["url"] == server.url
    assert not (tmp_path / ".downloads" / "set.bin").exists()
    assert "terms" in lines[0]
    assert download("kadid10k", tmp_path, tell=lines.append)
    assert len(server.requests) == 2


def test_a_plain_file_is_checked_when_it_is_there_already(server, tmp_path, monkeypatch):
    server.behaviours = [serve()]
    monkeypatch.setitem(SOURCES, "koniq10k", (source(server, target="scores.csv", sha256=SHA),))
    assert download("koniq10k", tmp_path, tell=lambda _: None)
    assert download("koniq10k", tmp_path, tell=lambda _: None)
    assert len(server.requests) == 1
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(DownloadError, match="another file of this name"):
        download("koniq10k", tmp_path, tell=lambda _: None)


def test_a_page_instead_of_an_archive_is_named_and_not_kept(server, tmp_path, monkeypatch):
    server.behaviours = [serve(b"<html>please log in</html>")]
    monkeypatch.setitem(SOURCES, "kadid10k", (source(server),))
    with pytest.raises(ArchiveError, match="not a zip archive"):
        download("kadid10k", tmp_path, tell=lambda _: None)
    assert not (tmp_path / ".downloads" / "set.bin").exists()


def test_a_set_without_a_confirmed_address_tells_what_to_do(tmp_path):
    lines = []
    assert not download("livec", tmp_path, tell=lines.append)
    text = "\n".join(lines)
    assert DATASETS["livec"].home in text
    assert all(name in text for name in DATASETS["livec"].files)
    with pytest.raises(KeyError, match="no data set 'nothing'"):
        download("nothing", tmp_path)


def test_every_set_either_has_an_address_or_instructions():
    for name in DATASETS:
        assert name in SOURCES or DATASETS[name].home in instructions(name, "data")
    for entry in (entry for entries in SOURCES.values() for entry in entries):
        assert entry.url.startswith("https://")
        assert entry.sha256 is None or len(entry.sha256) == 64


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
