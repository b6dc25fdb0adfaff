"""A notebook as a person runs it: opened in Jupyter, run cell by cell, saved."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from jupyter_client import BlockingKernelClient

from iqa_utils.workshop import report

ROOT = Path(__file__).resolve().parents[1]
STEM = "07_scoreboard"  # runs here in place of nbval, which runs the others: see pyproject.toml
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


@pytest.mark.slow
def test_a_notebook_runs_top_to_bottom_from_any_folder(server):
    url, runtime, _ = server
    body = {
        "kernel": {"name": "python3"},
        "name": STEM,
        "path": f"{STEM}.ipynb",
        "type": "notebook",
    }
    session = _call(f"{url}api/sessions", "POST", body)
    kernel = session["kernel"]["id"]
    client = BlockingKernelClient(connection_file=str(runtime / f"kernel-{kernel}.json"))
    client.load_connection_file()
    client.start_channels()
    try:
        _wait_until_it_answers(client)
        for cell in nbformat.read(ROOT / "notebooks" / f"{STEM}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                own = cell.source.replace('RUN_NAME: str = ""', 'RUN_NAME: str = "jupyter"')
                reply = client.execute_interactive(
                    own, timeout=600, output_hook=lambda message: None
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


def as_jupyterlab_saves_it(path, folder):
    """Write a notebook with outputs, counts and what JupyterLab adds; return where."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["language_info"] |= {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.12.1",
    }
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text="done")]
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


def test_opening_running_and_saving_leaves_git_clean(tmp_path):
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    saved = [as_jupyterlab_saves_it(path, tmp_path) for path in paths]
    recipe = ["make", "--dry-run", "--always-make", "-o", ".venv/.ready", "hooks"]
    told = subprocess.run(recipe, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [command] = re.findall(r'filter\.notebook\.clean "(.+)"', told)
    run = functools.partial(subprocess.run, shell=True, cwd=ROOT, check=True)
    piped = run(command, input=saved[0].read_bytes(), capture_output=True)  # as git does
    assert piped.stdout == paths[0].read_bytes()
    run(f"{command} {shlex.join(map(str, saved))}")  # the same for all, without a process each
    for path, cleaned in zip(paths, saved, strict=True):
        assert cleaned.read_bytes() == path.read_bytes(), path.stem


def test_the_index_that_the_laboratory_opens_leads_to_every_notebook_and_the_readme():
    page = report.write_index()
    [cell] = nbformat.read(page, as_version=4).cells
    links = re.findall(r"\]\(([^)]+)\)", cell.source)
    assert len(links) == 1 + len(list((ROOT / "notebooks").glob("*.ipynb")))
    assert all((page.parent / link).is_file() for link in links)
    assert cell.source.count("?") >= 7  # their questions
    told = subprocess.run(
        ["make", "--dry-run", "-o", ".venv/.ready", "lab"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"default_url=/lab/tree/{page.relative_to(ROOT)}" in told
    assert "root_dir=." in told
