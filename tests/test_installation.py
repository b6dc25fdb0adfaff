"""What is installed: the small core stands alone, and the extras add the rest."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from iqa_utils.models.imqnet import IMQNet
from iqa_utils.training.checkpoints import save_model

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

ALONE = """
import importlib.machinery, pkgutil, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

blocked = set(sys.argv[1].split(","))
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
import iqa_utils
for module in pkgutil.walk_packages(iqa_utils.__path__, "iqa_utils."):
    if not module.name.startswith("iqa_utils.workshop"):
        if module.name != "iqa_utils.__main__":
            importlib.import_module(module.name)
from iqa_utils.workshop.cli import main
sys.argv = ["iqa", "score", *sys.argv[2:]]
main()
"""


def name_of(requirement):
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


def closure(names):
    """What is installed with these distributions, without extras of theirs."""
    found, waiting = set(), list(names)
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(name_of(line))
    return found


def test_the_core_imports_and_scores_without_the_extras(tmp_path):
    core = closure({name_of(line) for line in PROJECT["dependencies"]})
    extra = {name_of(line) for lines in EXTRAS.values() for line in lines} - core
    blocked = {
        module
        for module, owners in metadata.packages_distributions().items()
        if any(name_of(owner) in extra for owner in owners)
    }
    assert blocked >= {"jupyterlab", "snakemake", "nbval", "optuna", "great_tables", "pytest"}
    assert not blocked & {"torch", "numpy", "yaml"}
    model = IMQNet(width=0.125, high_level_side=48, mos_mean=50.0, mos_std=10.0)
    pixels = {"size": [64, 64], "fit": "squash", "resampler": "bilinear"}
    told = {"preprocessing": pixels | {"mean": [0.5] * 3, "std": [0.5] * 3}, "metrics": {}}
    told |= {"training_data": {"dataset": "synthetic", "demo": True}, "scores_seen": "synthetic"}
    save_model(tmp_path / "m.safetensors", model, told)
    Image.fromarray(np.zeros((70, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--checkpoint", tmp_path / "m.safetensors", "--out"]
    command = [sys.executable, "-c", ALONE, ",".join(sorted(blocked)), *words, tmp_path / "s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.csv").read_text().count("a.png") == 1


@pytest.mark.parametrize("name", ["batch", "dev", "notebooks", "onnx"])
def test_an_extra_lists_its_packages_once_and_in_order(name):
    names = [name_of(line) for line in EXTRAS[name]]
    assert names == sorted(set(names))
    assert not set(names) & {name_of(line) for line in PROJECT["dependencies"]}
