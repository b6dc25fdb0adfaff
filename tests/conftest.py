"""Shared fixtures: the real files, where this machine has them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
collect_ignore = ["sixth_paper"]  # an example, tested in a copy of the repository


def _shared(name: str) -> Path:
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs the real files in ../shared/{name}, which are not on this machine")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with one sub-folder a real data set; skips where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder with two real pretrained state dicts; skips where it is absent."""
    return _shared("weights")


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
