"""Shared fixtures: the real files, where this machine has them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
