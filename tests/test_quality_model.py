"""What the shipped model must do. Levels, seeds, pictures and the bound were fixed before it was
trained; none of these pictures was trained on or looked at for a choice.
"""

import json
import subprocess
import sys

import default_model as recipe
import distortion_levels
import model_card
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from iqa_utils.backbones import create_backbone
from iqa_utils.files import hash_file
from iqa_utils.natural_scenes import BRISQUE_FILE
from iqa_utils.scorer import Scorer
from iqa_utils.training.checkpoints import load_model, read_metadata
from iqa_utils.workshop import cli

PICTURES = ("astronaut", "camera", "chelsea", "rocket", "motorcycle_left", "grass")
LEVELS = {
    "gaussian blur": (0.8, 1.4, 2.2, 3.5, 5.5),  # standard deviation, pixels
    "white noise": (6, 12, 22, 38, 60),  # standard deviation, grey levels
    "jpeg": (50, 28, 16, 9, 5),  # quality
    "down and up": (1.5, 2.0, 3.0, 4.5, 7.0),  # factor, bicubic both ways
}


@pytest.fixture(scope="module")
def falls():
    assert distortion_levels.LEVELS == LEVELS
    assert recipe.TEST_PICTURES == PICTURES
    scorer = Scorer.load(recipe.MODEL)
    scorer.model.fold()
    return recipe.falling_pairs(scorer, recipe.photographs(PICTURES), seed=0)


def test_the_score_falls_between_neighbouring_levels_of_distorted_photographs(falls):
    assert len(falls) == 6 * 4 * 5  # from the original to level 1, to level 2, ...
    assert falls["falls"].mean() >= 0.95, falls[~falls["falls"]]


def test_the_strongest_level_of_every_distortion_scores_low(falls):
    strongest = falls[falls["level"] == 5].groupby("distortion")["score"].max()
    assert (strongest < 60).all(), strongest


def test_it_is_the_only_weights_file_that_is_tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=recipe.ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    endings = (".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".bin", ".h5", ".tflite", ".pkl")
    found = [name for name in listed.stdout.split("\0") if name.endswith(endings)]
    assert found == ["iqa_utils/weights/quality.safetensors"]
    assert recipe.MODEL.stat().st_size <= 10e6
    assert BRISQUE_FILE.stat().st_size < 1e6


def test_its_card_is_what_the_recipe_writes_from_its_numbers():
    facts = json.loads((recipe.DOCS / "model_card.json").read_text())
    assert facts["sha256"] == hash_file(recipe.MODEL)
    assert (recipe.DOCS / "model_card.md").read_text(encoding="utf-8") == model_card.card(facts)
    assert read_metadata(recipe.MODEL)["scores_seen"] == ["biq2021/training"]


def result(name, n, **changed):
    cell = {"SRCC": [0.8, 0.7, 0.9], "PLCC": [0.81, 0.71, 0.91]}
    row = {"n": n, "n_training": 1600 - n, "steps": 600, "passes": 3.6} | changed
    row |= {"seed": 0, "device": "NVIDIA H100"}
    gain = {"whole recipe minus ridge on all maps": {"SRCC": [0.041, -0.01, 0.09]}}
    return row | dict.fromkeys(model_card.METHODS, cell) | gain


def test_the_card_says_what_is_missing_until_the_whole_recipe_was_left_without_each_subset(
    tmp_path,
):
    facts = json.loads(model_card.CARD.read_text())
    without = model_card.card({**facts, "left_out": {}})
    assert "the whole recipe was not run three times" in without
    assert "| the two others -> ss01 | 266 | 0.837 | 0.785 |" in without
    for name, n in (("ss01", 266), ("ss02", 251), ("ss03", 1083)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(name, n)))
    card = model_card.card({**facts, "left_out": model_card.left_out(tmp_path)})
    cells = " | ".join(["0.800 [0.700, 0.900]"] * 3)
    assert f"| the two others -> ss03 | 1083 | {cells} | 0.041 [-0.010, 0.090] |" in card
    assert "(600, 0), trained on NVIDIA H100, beside" in card
    assert "3.6, 3.6, 3.6 passes" in card
    assert "not run three times" not in card


def test_a_trial_or_a_missing_subset_does_not_reach_the_card(tmp_path):
    (tmp_path / "ss01.json").write_text(json.dumps(result("ss01", 266)))
    with pytest.raises(FileNotFoundError, match="--leave-out ss02"):
        model_card.left_out(tmp_path)
    for changed, match in (({"steps": 2}, "has 2 and 1600"), ({"n_training": 9}, "600 and 275")):
        (tmp_path / "ss01.json").write_text(json.dumps(result("ss01", 266, **changed)))
        with pytest.raises(ValueError, match=match):
            model_card.left_out(tmp_path)


def leave_out(monkeypatch, data, work, mos):
    """Run the command on synthetic photographs in the official layout, without test images."""
    (data / "Images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in mos:
        image = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(image).resize((64, 64)).save(data / "Images" / name)
    rows = [f"{name},{value}" for name, value in mos.items()]
    for stem, lines in (("Train", rows), ("Test", ["ss01 (999).jpg,0.5"])):
        table = "\n".join(["Image Name,MOS", *lines]) + "\n"
        (data / f"{stem} (Images and MOS).csv").write_text(table)
    for key, value in {"WORK": work, "WHOLE_SIDE": 64, "SIDE": 32, "CHAIN_SIDE": 32}.items():
        monkeypatch.setattr(recipe, key, value)
    options = ["--data", str(data), "--trunk", "shipped", "--leave-out", "ss01", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["default_model.py", *options])
    recipe.main()
    return json.loads((work / "ss01.json").read_text())


def test_the_whole_recipe_without_a_subset_learns_nothing_from_it_and_resumes(
    tmp_path, monkeypatch, capsys
):
    shipped = hash_file(recipe.MODEL), model_card.CARD.read_bytes()
    mos = {f"ss0{1 + i % 3} ({i}).jpg": round(0.2 + 0.02 * (7 * i % 30), 2) for i in range(30)}
    found = leave_out(monkeypatch, tmp_path / "a", tmp_path / "work_a", mos)
    assert (found["n"], found["n_training"], found["steps"]) == (10, 20, 2)
    for method in model_card.METHODS:
        for value, low, high in found[method].values():
            assert -1 <= low <= value <= high <= 1
    assert "0/2: scores" in capsys.readouterr().out
    recipe.main()
    again = json.loads((tmp_path / "work_a" / "ss01.json").read_text())
    assert "0/2: scores" not in capsys.readouterr().out  # goes on where it stopped: at the end
    assert again["whole recipe"] == found["whole recipe"]
    others = {
        name: 0.9 - value if name.startswith("ss01") else value for name, value in mos.items()
    }
    turned = leave_out(monkeypatch, tmp_path / "b", tmp_path / "work_b", others)
    for method in model_card.METHODS:
        assert turned[method]["SRCC"][0] == pytest.approx(-found[method]["SRCC"][0])
    assert shipped == (hash_file(recipe.MODEL), model_card.CARD.read_bytes())


def test_its_trunk_is_what_shipped_weights_are():
    trunk = create_backbone("tf_efficientnet_lite0", pretrained="shipped", num_classes=0)
    own = load_model(recipe.MODEL)[0].trunk.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in trunk.state_dict().items())


def test_scores_lie_between_0_and_100_whatever_the_size_and_unlike_images_are_told():
    scorer, rng = Scorer.load(recipe.MODEL), np.random.default_rng(0)
    noise = rng.integers(0, 255, (384, 384, 3), dtype=np.uint8)
    stripes = np.tile(np.repeat([[[255, 0, 0]], [[0, 0, 255]]], 8, axis=0), (24, 384, 1))
    pictures = recipe.photographs(["page", "text", "coffee", "astronaut"])
    batches = [noise, stripes.astype(np.uint8), *pictures.values()]
    found = [scorer.look(torch.tensor(one.transpose(2, 0, 1).copy())[None]) for one in batches]
    assert all(0 < score < 100 for [score], _ in found)
    assert [unlike for _, [unlike] in found] == [True, True, True, True, False, False]
    for side in (24, 600):
        [small] = scorer.score(torch.zeros(1, 3, side, side, dtype=torch.uint8)).tolist()
        assert 0 < small < 100


def test_percentiles_are_those_of_the_training_photographs_by_a_model_that_saw_others():
    scorer = Scorer.load(recipe.MODEL)
    assert len(scorer.percentiles) == 101
    assert list(scorer.percentiles) == sorted(scorer.percentiles)
    assert scorer.percentile(scorer.percentiles[37]) == pytest.approx(37)
    assert (scorer.percentile(-5), scorer.percentile(105)) == (0, 100)
    assert scorer.scale == "0 to 100, higher is better"
    assert scorer.knows("biq2021", "test") == "held-out"


def test_iqa_score_needs_no_checkpoint_and_tells_scale_percentile_and_warning(tmp_path):
    [photograph] = recipe.photographs(["coffee"]).values()
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    Image.new("RGB", (200, 200), "orange").save(tmp_path / "drawn.png")
    done = CliRunner().invoke(cli.app, ["score", str(tmp_path), "--out", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(tmp_path / "s.csv", index_col="image")
    photo, drawn = rows.loc[str(tmp_path / "photo.png")], rows.loc[str(tmp_path / "drawn.png")]
    assert photo["scale"] == "0 to 100, higher is better"
    assert 0 <= photo["percentile"] <= 100
    assert photo["warning"] != photo["warning"]  # none
    assert "drawn" in drawn["warning"]
    assert f"{photo['score']:6.1f}  {photo['percentile']:4.0f} %" in done.output
    assert "0 to 100, higher is better" in done.output
