"""Notebooks as a person runs them: cell by cell, through a running Jupyter server."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from jupyter_client import BlockingKernelClient

ROOT = Path(__file__).resolve().parents[1]
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
TOKEN = "token-of-this-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose root is the whole disk, so that kernels can start in any folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    runtime = tmp_path_factory.mktemp("runtime")
    command = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--ServerApp.root_dir={elsewhere}", "--ServerApp.log_level=ERROR"]
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime)}
    process = subprocess.Popen(command, cwd=elsewhere, env=environment)
    try:
        yield _address(runtime, process), runtime, elsewhere
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _address(runtime, process):
    for _ in range(300):
        for path in runtime.glob("jpserver-*.json"):
            return json.loads(path.read_text())["url"]
        assert process.poll() is None, "the server stopped"
        time.sleep(0.2)
    pytest.fail("the server did not start")


def _call(url, method="GET", body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@pytest.mark.parametrize("stem", STEMS)
def test_a_notebook_runs_top_to_bottom_from_any_folder(server, stem):
    url, runtime, _ = server
    body = {
        "kernel": {"name": "python3"},
        "name": stem,
        "path": f"{stem}.ipynb",
        "type": "notebook",
    }
    session = _call(f"{url}api/sessions", "POST", body)
    kernel = session["kernel"]["id"]
    client = BlockingKernelClient(connection_file=str(runtime / f"kernel-{kernel}.json"))
    client.load_connection_file()
    client.start_channels()
    try:
        _wait_until_it_answers(client)
        for cell in nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                reply = client.execute_interactive(
                    cell.source, timeout=600, output_hook=lambda message: None
                )
                content = reply["content"]
                assert content["status"] == "ok", content.get("evalue")
        listens = "'JPY_SESSION_NAME' in __import__('os').environ"
        assert _value(client, listens) == "True"  # what `browse` asks
    finally:
        client.stop_channels()
        _call(f"{url}api/sessions/{session['id']}", "DELETE")


def _wait_until_it_answers(client):
    for _ in range(12):
        try:
            client.kernel_info(reply=True, timeout=10)
        except TimeoutError:
            continue
        return
    pytest.fail("the kernel did not answer for two minutes")


def _value(client, expression):
    reply = client.execute("", user_expressions={"it": expression}, reply=True, timeout=60)
    return reply["content"]["user_expressions"]["it"]["data"]["text/plain"]
