"""Shared fixtures: the real files, where this machine has them.

``IQA_TEST_DATA`` names the folder with one folder per real data set (weights lie in ``weights``
beside it); without it that is ``../shared/data``. Tests that need what is absent are skipped.

Two workers share the cores, so each computes on one thread unless ``OMP_NUM_THREADS`` says more:
threads that wait for one another on busy cores made some tests ten times as long.
"""

import os
import tempfile
from pathlib import Path

import nbval.plugin
import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("IQA_TEST_DATA") or ROOT.parent / "shared" / "data")
collect_ignore = ["sixth_paper"]  # an example, tested in a copy of the repository
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers and kernels of this process inherit it


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"needs the real files in {folder} (IQA_TEST_DATA), which are not there")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with one folder per real data set; skips where it is absent."""
    return _there(REAL_DATA)


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder with real pretrained state dicts; skips where it is absent."""
    return _there(REAL_DATA.with_name("weights"))


def pytest_collection_modifyitems(items):
    """Mark what ``slow.txt`` names: tests, or files of them, of more than two seconds of CPU."""
    slow = set((ROOT / "tests" / "slow.txt").read_text().split())
    for item in items:
        if {item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]} & slow:
            item.add_marker(pytest.mark.slow)


class KernelElsewhere(nbval.plugin.RunningKernel):
    """nbval's kernel in a folder that is not the notebook's: no path may depend on it."""

    def __init__(self, kernel_name, cwd=None, **options):
        super().__init__(kernel_name, cwd=tempfile.gettempdir(), **options)


def pytest_configure(config):
    """Let nbval start its kernels elsewhere."""
    nbval.plugin.RunningKernel = KernelElsewhere


def pytest_terminal_summary(terminalreporter):
    """Print the golden numbers that the tests recorded beside ours."""
    reports = [
        r for kind in ("passed", "failed", "xfailed") for r in terminalreporter.getreports(kind)
    ]
    rows = [v for r in reports for key, v in getattr(r, "user_properties", ()) if key == "golden"]
    if rows:
        terminalreporter.section("golden numbers, at the largest difference of each comparison")
        terminalreporter.write_line(f"{'':52}{'golden':>16}{'ours':>16}{'difference':>12}")
    for name, golden, ours in rows:
        line = f"{name:52}{golden:16.8g}{ours:16.8g}{ours - golden:12.1e}"
        terminalreporter.write_line(line)
