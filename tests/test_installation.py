"""What is installed: the small core stands alone, and the extras add the rest."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
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


@pytest.mark.slow
def test_the_core_imports_and_scores_without_the_extras(tmp_path):
    core = closure({name_of(line) for line in PROJECT["dependencies"]})
    extra = {name_of(line) for lines in EXTRAS.values() for line in lines} - core
    blocked = {
        module
        for module, owners in metadata.packages_distributions().items()
        if any(name_of(owner) in extra for owner in owners)
    }
    assert blocked >= {"jupyterlab", "snakemake", "nbval", "optuna", "pytest"}
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


IMPORTS = """
import importlib, pkgutil, iqa_utils
for module in pkgutil.walk_packages(iqa_utils.__path__, "iqa_utils."):
    if not module.name.startswith(("iqa_utils.workshop", "iqa_utils.__main__")):
        importlib.import_module(module.name)
from iqa_utils.features.layers import LAYERS
print(iqa_utils.__file__, len(LAYERS))
"""


@pytest.mark.slow
def test_a_copy_of_the_package_alone_imports_every_science_module(tmp_path):
    """What pip installs: the modules and what is declared as package data, without a clone."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "iqa_utils"
    patterns = setup["package-data"]["iqa_utils"]
    files = [*package.rglob("*.py"), *(path for one in patterns for path in package.glob(one))]
    for path in files:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    command = [sys.executable, "-c", IMPORTS]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "IQA_ROOT": ""}
    done = subprocess.run(command, env=environment, **options)
    assert done.returncode == 0, done.stderr
    with (package / "features" / "layers.csv").open() as file:
        n_layers = len(file.readlines()) - 1
    assert done.stdout.split() == [str(tmp_path / "iqa_utils" / "__init__.py"), str(n_layers)]


@pytest.mark.parametrize("name", ["batch", "dev", "notebooks", "onnx"])
def test_an_extra_lists_its_packages_once_and_in_order(name):
    names = [name_of(line) for line in EXTRAS[name]]
    assert names == sorted(set(names))
    assert not set(names) & {name_of(line) for line in PROJECT["dependencies"]}


PROGRAM = """#!/bin/sh
echo "$*" >> uv.log
case "$*" in *--torch-backend*) exit {status};; esac
"""


def set_up(folder, *, status, **environment):
    """Run setup.sh with programs that only note their arguments; return what it said and noted."""
    for name in ("setup.sh", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text("#!/bin/sh\n")
    (programs / "uv").write_text(PROGRAM.format(status=status))
    for path in programs.iterdir():
        path.chmod(0o755)
    command = ["sh", folder / "setup.sh"]
    options = {"env": os.environ | environment, "capture_output": True, "text": True}
    done = subprocess.run(command, check=True, **options)
    return done.stdout, (folder / "uv.log").read_text().splitlines()


def test_the_cpu_route_leaves_out_cuda_and_checks_all_but_torch_by_hash(tmp_path):
    _, [torch, others, ours] = set_up(tmp_path, status=0, TORCH="cpu")
    lock = (ROOT / "requirements.lock").read_text()
    versions = re.findall(r"^(?:torch|torchvision)==\S+", lock, re.MULTILINE)
    assert torch.endswith(f"--no-deps --torch-backend cpu {' '.join(versions)}")
    assert others.endswith("--no-deps --require-hashes -r .venv/cpu.lock")
    assert ours.endswith("--no-deps --editable .")
    assert "--compile-bytecode" not in torch + others  # half a gigabyte
    entries = [set(re.split(r"\n(?=\S)", text)) for text in (lock, cpu_lock(tmp_path))]
    left_out = {entry.partition("==")[0] for entry in entries[0] - entries[1]}
    assert left_out > {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit"}
    assert not left_out & {"open-clip-torch", "timm", "numpy"}
    assert all("--hash=sha256:" in entry for entry in entries[1])


def cpu_lock(folder):
    return (folder / ".venv" / "cpu.lock").read_text()


def test_where_there_is_no_cpu_build_one_line_says_so_and_the_ordinary_one_comes(tmp_path):
    said, [_, all_of_it, _] = set_up(tmp_path, status=1, TORCH="cpu")
    assert "no CPU build of torch within reach; the ordinary one is installed\n" in said
    assert all_of_it.endswith("--require-hashes -r requirements.lock")


def test_without_a_wish_the_ordinary_build_comes_by_hash(tmp_path):
    said, [all_of_it, _] = set_up(tmp_path, status=1, TORCH="")
    assert said == "setup: .venv is ready\n"
    assert all_of_it.endswith("--compile-bytecode --require-hashes -r requirements.lock")
    for gate in (".ci/run", ".github/workflows/ci.yml"):
        assert "TORCH" not in (ROOT / gate).read_text()


def test_the_conda_environment_for_the_cpu_is_the_other_with_one_build():
    whole, cpu = (
        yaml.safe_load((ROOT / name).read_text())
        for name in ("environment.yml", "environment-cpu.yml")
    )
    both = [one for one in cpu["dependencies"] if one not in ("pytorch-cpu", "torchvision")]
    assert both == whole["dependencies"]
    assert len(cpu["dependencies"]) == len(both) + 2


def test_the_containers_run_the_same_commands():
    """Each makes .venv as `make setup` does, then the reader's commands are those of the README."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    docker = "\n".join(line for line in lines if not line.startswith("#"))
    assert re.findall(r"^RUN (make .*)", docker, re.MULTILINE) == ["make setup TORCH=$TORCH"]
    assert "ARG TORCH=cpu" in docker
    assert re.findall(r"^CMD (.*)", docker, re.MULTILINE) == ['["make", "demo"]']
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert told["postCreateCommand"] == "make setup TORCH=cpu && make demo"
    tools = [
        re.findall(r"^(?:FROM .*|RUN apt-get(?:.*\\\n)*.*)", text, re.MULTILINE)
        for text in (docker, (ROOT / ".devcontainer" / "Dockerfile").read_text())
    ]
    assert tools[0] == tools[1]
    assert len(tools[0]) == 2
    first = re.search(r"## Set up\n+```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert re.findall(r"^make (\w+)", first[1], re.MULTILINE) == ["demo", "test"]
