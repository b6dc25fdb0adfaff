"""Model files from strangers: no code is run, and no advice to run it is passed on."""

import time

import pytest
import torch

from iqa_utils.backbones import read_state_dict
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.scorer import Scorer
from iqa_utils.training.checkpoints import load_checkpoint, save_model


class Hostile:
    def __reduce__(self):
        return print, ("this code was run",)


@pytest.mark.parametrize("read", [read_state_dict, load_checkpoint])
def test_a_file_with_code_is_refused_without_the_advice_to_run_it(read, tmp_path, capsys):
    torch.save({"state": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt.*would run code when loaded") as error:
        read(tmp_path / "last.pt")
    text = str(error.value)
    assert "print" in text  # what it would have called
    assert "weights_only" not in text
    assert "succeed" not in text
    assert "\n" not in text
    assert "this code was run" not in capsys.readouterr().out


def test_a_model_that_asks_for_a_giant_size_is_refused_at_once(tmp_path):
    model = IMQNet(width=0.125, high_level_side=48, mos_mean=50.0, mos_std=10.0)
    pixels = {"size": [100_000, 100_000], "fit": "squash", "resampler": "bilinear"}
    told = {"preprocessing": pixels | {"mean": [0.5] * 3, "std": [0.5] * 3}, "metrics": {}}
    told |= {"training_data": {"dataset": "x", "demo": True}, "scores_seen": "x"}
    path = save_model(tmp_path / "m.safetensors", model, told)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"at most 8192 px a side, found \(100000, 100000\)"):
        Scorer.load(path)
    assert time.perf_counter() - started < 5
