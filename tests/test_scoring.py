import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage import data

from iqa_utils import decoding, natural_scenes
from iqa_utils.images import build_store, to_float
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.scorer import Scorer
from iqa_utils.training.checkpoints import load_model, save_model
from iqa_utils.workshop import scoring

PIXELS = {
    "size": [64, 80], "fit": "squash", "resampler": "bilinear",
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip
TOLD = {"scores_seen": "synthetic training set", "metrics": {}}
TOLD["training_data"] = {"dataset": "synthetic", "demo": True}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.jpg", "deep/c.bmp", "d.png", "e.png"]):
        pixels = rng.integers(0, 255, (70 + 10 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)
    return images


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = IMQNet(width=0.125, high_level_side=48, mos_mean=50.0, mos_std=10.0)
    return save_model(tmp_path / "m.safetensors", model, {"preprocessing": PIXELS, **TOLD})


def test_scores_are_the_models_own_predictions_in_the_order_found(folder, checkpoint, tmp_path):
    scores = scoring.score_images([folder], checkpoint, batch_size=2, progress=False)
    names = ["a.jpg", "b.png", "d.png", "deep/c.bmp", "e.png"]
    assert scores["image"].tolist() == [str(folder / name) for name in names]
    store = build_store(folder, names, tmp_path / "stores", size=(64, 80), progress=False)
    model, _ = load_model(checkpoint)
    with torch.inference_mode():
        batch = to_float(store.batch(range(5)), mean=PIXELS["mean"], std=PIXELS["std"])
        expected = model(batch).reshape(-1)
    np.testing.assert_allclose(scores["score"], expected, atol=2e-4)
    assert scores["score"].std() > 1e-4


def test_a_model_of_synthetic_data_says_so_above_its_scores(checkpoint, folder, tmp_path):
    note = scoring.describe_model(checkpoint)
    assert note.startswith("Scores by imqnet, trained on synthetic (synthetic training set).")
    assert note.endswith("say nothing about quality.")
    scores = scoring.score_images([folder / "b.png"], checkpoint, progress=False)
    scoring.write_contact_sheet(scores, tmp_path / "sheet.html", note=note)
    assert f"<p>{note}</p>" in (tmp_path / "sheet.html").read_text()


def test_the_contact_sheet_says_once_which_file_is_bad_and_sets_warnings_apart(folder, tmp_path):
    good, bad = folder / "b.png", folder / "torn.jpg"
    rows = {"image": [str(good), str(bad)], "score": [50.0, np.nan], "warning": ["grey", ""]}
    scores = pd.DataFrame(rows | {"error": ["", f"{bad}: not an image"]})
    scoring.write_contact_sheet(scores, tmp_path / "sheet.html", note="")
    text = (tmp_path / "sheet.html").read_text()
    assert f"<li><code>{bad}</code> not an image</li>" in text
    assert "<b>50.0</b> b.png (grey)</figcaption>" in text
    assert "color-scheme: light dark" in text


def test_a_model_that_does_not_tell_its_data_is_refused(checkpoint, tmp_path):
    with safe_open(checkpoint, framework="pt") as file:
        header = json.loads(file.metadata()["iqa_utils"])
    path = tmp_path / "silent.safetensors"
    silent = header | {"training_data": ["synthetic"]}
    save_file(load_file(checkpoint), path, metadata={"iqa_utils": json.dumps(silent)})
    with pytest.raises(ValueError, match=r"silent\.safetensors must tell the data set .*\['synth"):
        scoring.describe_model(path)
    del header["scores_seen"]
    save_file(load_file(checkpoint), path, metadata={"iqa_utils": json.dumps(header)})
    with pytest.raises(
        ValueError, match=r"silent\.safetensors must tell .*missing \['scores_seen'\]"
    ):
        scoring.describe_model(path)


def test_a_bad_file_is_listed_and_the_others_are_scored(folder, checkpoint):
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    scores = scoring.score_images([folder], checkpoint, progress=False)
    assert scores["score"].isna().tolist() == [True, False, False, False, False]
    assert "a.jpg" in scores["error"][0]
    [alone] = scoring.score_images([folder / "a.jpg"], checkpoint, progress=False)["score"]
    assert np.isnan(alone)


def test_a_file_named_twice_is_scored_once(folder, checkpoint):
    paths = [folder / "b.png", folder, folder / "b.png"]
    assert len(scoring.score_images(paths, checkpoint, progress=False)) == 5


def test_what_looks_like_an_image_and_is_none_is_reported(folder, checkpoint):
    (folder / "x.png").mkdir()
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    Image.fromarray(np.zeros((90, 90), np.uint8)).save(folder / "still.gif")
    (folder / "notes.txt").write_text("no image")
    scores = scoring.score_images([folder], checkpoint, progress=False)
    errors = dict(zip(scores["image"], scores["error"], strict=True))
    assert errors.pop(str(folder / "x.png")) == "a folder"
    assert errors.pop(str(folder / "gone.jpg")).startswith("a link to nothing")
    assert errors.pop(str(folder / "still.gif")).startswith("a format that is not read")
    assert list(errors.values()) == [""] * 5


def test_an_image_larger_than_the_limit_is_refused(folder, checkpoint, monkeypatch):
    monkeypatch.setattr(decoding, "MEGAPIXELS", 1)
    Image.new("L", (2000, 1500)).save(folder / "bomb.png")
    scores = scoring.score_images([folder], checkpoint, progress=False)
    [error] = scores.loc[scores["error"] != "", "error"]
    assert "bomb.png: 2000x1500 pixels are more than 1 million" in error


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": -1}, {"method": "x"}])
def test_options_out_of_bounds_are_refused_by_name(folder, checkpoint, wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=f"{name}: expected"):
        scoring.score_images([folder], checkpoint, progress=False, **wrong)


def test_the_next_batch_is_decoded_while_the_network_works(folder, checkpoint, monkeypatch):
    events, decoded = [], threading.Event()
    real_read, real_look = scoring.read_image, Scorer.look

    def read(path):
        events.append("read")
        if len(events) == 5:
            decoded.set()
        return real_read(path)

    def look(self, *args, **options):
        assert decoded.wait(5)  # would never come if decoding waited for the first batch
        return real_look(self, *args, **options)

    for i in range(4):
        Image.fromarray(np.full((70, 90, 3), i, np.uint8)).save(folder / f"z{i}.png")
    monkeypatch.setattr(scoring, "read_image", read)
    monkeypatch.setattr(Scorer, "look", look)
    scores = scoring.score_images([folder], checkpoint, batch_size=3, progress=False)
    assert scores["error"].eq("").all()


@pytest.mark.parametrize(("apart", "warning"), [(4, "grey"), (5, "")])
def test_grey_is_within_three_levels_of_the_mean_of_the_channels(apart, warning):
    pixels = np.random.default_rng(0).integers(0, 250, (200, 200, 1)).repeat(3, axis=2)
    pixels[..., 2] += apart  # 2/3 of that above the mean
    assert scoring.unusual(Image.fromarray(pixels.astype(np.uint8))) == warning


@pytest.mark.parametrize(("share", "flat"), [(0.45, True), (0.35, False)])
def test_areas_of_one_colour_count_where_all_channels_stay(share, flat):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    pixels[:, : int(200 * share), :2] = 7  # two of three channels: no area yet
    assert scoring.unusual(Image.fromarray(pixels)) == ""
    pixels[:, : int(200 * share)] = 7
    assert scoring.unusual(Image.fromarray(pixels)).startswith("large areas") == flat


def test_unusual_images_get_a_warning(folder):
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)
    assert scoring.unusual(Image.fromarray(noisy)) == ""
    assert scoring.unusual(Image.fromarray(noisy[:100])) == "tiny (300x100)"
    assert scoring.unusual(Image.fromarray(noisy[..., 0]).convert("RGB")) == "grey"
    long = np.tile(noisy[:200], (1, 18, 1))
    assert scoring.unusual(Image.fromarray(long)) == "huge (5400x200)"
    drawn = Image.new("RGB", (300, 300), "orange")
    ImageDraw.Draw(drawn).ellipse((40, 40, 200, 250), fill="navy")
    assert scoring.unusual(drawn).startswith("large areas of one colour: drawn")


def test_a_name_that_a_spreadsheet_would_run_is_quoted_in_the_csv_only(
    folder, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    (folder / "b.png").rename("=cmd.png")
    scores, _ = scoring.score_to_files(["=cmd.png"], checkpoint, tmp_path / "s", progress=False)
    assert scores["image"].tolist() == ["=cmd.png"]
    [back] = pd.read_csv(tmp_path / "s.csv")["image"]
    assert back == "'=cmd.png"


def test_niqe_and_brisque_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(Scorer, "load", lambda *_: pytest.fail("a network was loaded"))
    photograph = Image.fromarray(data.coffee()[:200, :240])
    blurred = photograph.filter(ImageFilter.GaussianBlur(3))
    photograph.save(tmp_path / "clean.png")
    blurred.save(tmp_path / "blurred.png")
    job = {"progress": False}
    best = {}
    for method, measure in (("niqe", natural_scenes.niqe), ("brisque", natural_scenes.brisque)):
        scores, note = scoring.score_to_files(
            [tmp_path], None, tmp_path / "s", method=method, **job
        )
        best[method] = scores["image"].iloc[0]
        expected = [measure(np.asarray(image)) for image in (photograph, blurred)]
        assert sorted(scores["score"]) == sorted(expected)
        assert ("lower is better" in note) == (method == "niqe")
    assert set(best.values()) == {str(tmp_path / "clean.png")}


def test_a_foreign_and_an_altered_model_file_are_refused_by_name(folder, checkpoint, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match=r"foreign\.safetensors has no 'iqa_utils' header"):
        scoring.score_images([folder], foreign)
    state = load_file(checkpoint)
    state[next(iter(state))][0] += 1

    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    altered = tmp_path / "altered.safetensors"
    save_file(state, altered, metadata=header)
    with pytest.raises(ValueError, match=r"altered\.safetensors was altered"):
        scoring.score_images([folder], altered)
    text = tmp_path / "text.safetensors"
    text.write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a safetensors file"):
        scoring.score_images([folder], text)


def test_a_model_that_needs_more_than_pixels_says_so(folder, tmp_path):
    model = IMQNet(width=0.125, high_level_side=48)
    pixels = {**PIXELS, "inputs": ["image", "indicators"]}
    path = save_model(tmp_path / "both.safetensors", model, {"preprocessing": pixels, **TOLD})
    with pytest.raises(ValueError, match=r"both\.safetensors needs image, indicators"):
        scoring.score_images([folder], path)
    half = {key: PIXELS[key] for key in ("size", "fit")}
    path = save_model(tmp_path / "half.safetensors", model, {"preprocessing": half, **TOLD})
    with pytest.raises(ValueError, match="does not tell resampler, mean, std"):
        scoring.score_images([folder], path)


def test_the_command_writes_both_files_and_fails_when_a_file_was_bad(folder, checkpoint, tmp_path):
    (folder / "e.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "iqa_utils.workshop.cli", "score", str(folder)]
    command += ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "scores")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "4 images scored, 1 not" in done.stdout
    assert "e.png" in done.stderr
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(lines) == 6
    page = (tmp_path / "scores.html").read_text()
    assert page.count("<figure>") == 4
    assert "http" not in page.replace("http-equiv", "")
    assert json.dumps(str(folder / "e.png"))[1:-1] in page


def test_a_folder_that_is_missing_is_found_before_anything_is_scored(
    folder, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(scoring, "score_images", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(FileNotFoundError, match=r"folder for the scores: nothing at .*absent"):
        scoring.score_to_files([folder], checkpoint, tmp_path / "absent" / "scores")


def test_a_killed_run_goes_on_with_what_it_had_scored(folder, checkpoint, tmp_path, monkeypatch):
    look, seen = Scorer.look, []

    def once(self, batch, **options):
        seen.append(len(batch))
        if len(seen) == 4:
            raise RuntimeError("killed")
        return look(self, batch, **options)

    monkeypatch.setattr(Scorer, "look", once)
    (folder / "b.png").write_bytes(b"no image")  # of the first batch, which holds a.jpg too
    job = {"batch_size": 2, "progress": False, "device": "cpu"}
    with pytest.raises(RuntimeError, match="killed"):
        scoring.score_to_files([folder], checkpoint, tmp_path / "scores", **job)
    partial = tmp_path / "scores.csv.partial"
    assert sorted(tmp_path.glob("scores*")) == [partial]
    assert len(partial.read_text().splitlines()) == 4
    with partial.open("a") as file:
        file.write('["half a li')
    scores, _ = scoring.score_to_files([folder], checkpoint, tmp_path / "scores", **job)
    assert seen == [1, 1, 1, 1, 1]  # each alone on a CPU; one file was left
    whole = scoring.score_images([folder], checkpoint, **job)
    expected = whole.sort_values("score", ascending=False, ignore_index=True)
    assert scores.equals(expected)
    assert scores["error"].ne("").tolist() == [False] * 4 + [True]
    written = (tmp_path / "scores.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in written] == ["image", *scores["image"]]
    assert not partial.exists()


def test_a_file_that_changed_and_another_model_are_scored_again(folder, checkpoint, tmp_path):
    partial, options = tmp_path / "partial", {"progress": False}
    scoring.score_images([folder], checkpoint, partial=partial, **options)
    lines = len(partial.read_text().splitlines())
    scoring.score_images([folder], checkpoint, partial=partial, **options)
    assert len(partial.read_text().splitlines()) == lines == 5
    Image.fromarray(np.zeros((70, 90, 3), dtype=np.uint8)).save(folder / "b.png")
    scoring.score_images([folder], checkpoint, partial=partial, **options)
    assert len(partial.read_text().splitlines()) == 6
    torch.manual_seed(1)
    model = IMQNet(width=0.125, high_level_side=48)
    other = save_model(tmp_path / "o.safetensors", model, {"preprocessing": PIXELS, **TOLD})
    again = scoring.score_images([folder], other, partial=partial, **options)
    assert len(partial.read_text().splitlines()) == 11
    assert again.equals(scoring.score_images([folder], other, **options))


def test_images_of_any_size_are_scored_in_the_order_asked_for(folder, checkpoint, tmp_path):
    names = ["e.png", "b.png", "deep/c.bmp", "d.png"]
    store = build_store(folder, names, tmp_path, size=None, fit="native", progress=False)
    scorer = Scorer(load_model(checkpoint)[0])
    scores = scorer.score_store(store, np.array([2, 1, 0, 1]), batch_size=4)
    alone = [scorer.score(store.image(i)[None]).item() for i in (2, 1, 0, 1)]
    np.testing.assert_allclose(scores, alone, rtol=1e-6)
    assert scores.std() > 1e-4


def test_files_that_are_not_read_are_rows_with_their_reason(folder, checkpoint):
    (folder / "moving.gif").touch()
    (folder / "album.png").mkdir()
    scores = scoring.score_images([folder], checkpoint, progress=False).set_index("image")
    told = scores.loc[[f"{folder}/album.png", f"{folder}/moving.gif"], "error"].tolist()
    assert told[0] == "a folder"
    assert told[1].startswith("a format that is not read")
    assert scores["score"].isna()[[f"{folder}/album.png", f"{folder}/moving.gif"]].all()
    assert scores["score"].notna().any()


HEADERS = {  # what a stranger's header holds in place of ours
    "no architecture": lambda header: header.pop("architecture"),
    "architecture null": lambda header: header.update(architecture=None),
    "preprocessing null": lambda header: header.update(preprocessing=None),
    "inputs 5": lambda header: header["preprocessing"].update(inputs=5),
    "std 0": lambda header: header["preprocessing"].update(std=[0, 0.5, 0.5]),
    "mean of two": lambda header: header["preprocessing"].update(mean=[0.5, 0.5]),
    "mean text": lambda header: header["preprocessing"].update(mean="abc"),
    "gain NaN": lambda header: header["preprocessing"].update(gain=float("nan")),
    "gain text": lambda header: header["preprocessing"].update(gain="2"),
    "offset endless": lambda header: header["preprocessing"].update(offset=float("inf")),
    "far without distances": lambda header: header.update(far=1.0),
    "percentiles text": lambda header: header.update(percentiles="abc"),
    "scores_seen 5": lambda header: header.update(scores_seen=5),
    "demo text": lambda header: header["training_data"].update(demo="yes"),
}


@pytest.mark.parametrize("case", [*HEADERS, "5", "null", "not JSON", "[[]]"])
def test_a_header_of_another_form_is_refused_in_one_sentence_that_names_the_file(
    folder, checkpoint, tmp_path, case
):
    with safe_open(checkpoint, framework="pt") as file:
        header = json.loads(file.metadata()["iqa_utils"])
    if case in HEADERS:
        HEADERS[case](header)
    text = json.dumps(header) if case in HEADERS else case
    path = tmp_path / "odd.safetensors"
    save_file(load_file(checkpoint), path, metadata={"iqa_utils": text})
    with pytest.raises(ValueError, match=r"^model odd\.safetensors") as told:
        scoring.score_images([folder], path, progress=False)
    assert "\n" not in str(told.value)


def test_scores_that_are_not_finite_are_refused(folder, tmp_path):
    model = IMQNet(width=0.125, high_level_side=48)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    path = save_model(tmp_path / "nan.safetensors", model, {"preprocessing": PIXELS, **TOLD})
    with pytest.raises(ValueError, match=r"model nan\.safetensors gives scores that are not fin"):
        scoring.score_images([folder], path, progress=False)


@pytest.mark.parametrize("bad", [b"garbage", b"\0\0\0", b"[1, 2]", b'["caf\xe9"]', b"null", b""])
def test_a_bad_line_among_rows_that_were_scored_costs_that_row_alone(
    folder, checkpoint, tmp_path, capsys, bad
):
    partial, job = tmp_path / "s.csv.partial", {"progress": False}
    whole = scoring.score_images([folder], checkpoint, partial=partial, **job)
    lines = partial.read_bytes().splitlines()
    partial.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]) + b"\n")
    again = scoring.score_images([folder], checkpoint, partial=partial, **job)
    assert again.equals(whole)
    assert len(partial.read_bytes().splitlines()) == 6  # one was scored again
    assert f"{partial}: 1 damaged lines are left out" in capsys.readouterr().err


def test_names_that_are_not_text_are_scored_and_shown_escaped(folder, checkpoint, tmp_path):
    names = [b"bad\xff.png", b"red\x1b[31m.png", b"two\nlines.png"]
    for name in names:
        os.link(os.fsencode(folder / "b.png"), os.path.join(os.fsencode(folder), name))
    os.link(folder / "b.png", folder / "bad\udcfe.gif")
    out = tmp_path / "scores"
    scores, _ = scoring.score_to_files([folder], checkpoint, out, progress=False)
    shown = {Path(image).name for image in scores["image"]}
    assert shown >= {r"bad\udcff.png", r"red\x1b[31m.png", r"two\x0alines.png", r"bad\udcfe.gif"}
    assert scores["score"].notna().sum() == 8
    page, table = (out.with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".csv"))
    for text in (page, table, scoring.text_table(scores)):
        assert r"red\x1b[31m.png" in text
        assert "\x1b" not in text
    assert page.count("<img ") == 8


def test_a_model_of_a_set_called_cards_has_a_contact_sheet(folder, tmp_path):
    told = {**TOLD, "training_data": {"dataset": "CARDS {n}", "demo": False}}
    model = IMQNet(width=0.125, high_level_side=48)
    path = save_model(tmp_path / "m.safetensors", model, {"preprocessing": PIXELS, **told})
    _, note = scoring.score_to_files([folder], path, tmp_path / "s", progress=False)
    page = (tmp_path / "s.html").read_text()
    assert "trained on CARDS {n}" in note
    assert "trained on CARDS {n}" in page
    assert page.count("<figure>") == 5


@pytest.mark.parametrize("ending", ["csv", "html"])
def test_a_folder_in_the_place_of_a_result_is_found_before_scoring(
    folder, checkpoint, tmp_path, monkeypatch, ending
):
    monkeypatch.setattr(scoring, "score_images", lambda *_, **__: pytest.fail("scored"))
    (tmp_path / f"s.{ending}").mkdir()
    with pytest.raises(ValueError, match=rf"s\.{ending} is a folder"):
        scoring.score_to_files([folder], checkpoint, tmp_path / "s")


def test_an_image_that_goes_during_the_scoring_stops_nothing(
    folder, checkpoint, tmp_path, monkeypatch
):
    find, gone = scoring.find_images, []

    def find_one_more(paths):
        return find(paths) | {folder / "z.png": ""}  # deleted since it was found

    monkeypatch.setattr(scoring, "find_images", find_one_more)
    write = scoring.write_csv

    def write_and_delete(*arguments):
        gone.append((folder / "b.png").unlink())
        write(*arguments)

    monkeypatch.setattr(scoring, "write_csv", write_and_delete)
    scores, _ = scoring.score_to_files([folder], checkpoint, tmp_path / "s", progress=False)
    told = dict(zip(scores["image"], scores["error"], strict=True))
    assert told[str(folder / "z.png")] == "cannot be read (No such file or directory)"
    assert gone == [None]
    page = (tmp_path / "s.html").read_text()
    assert (page.count("<figure>"), page.count("<img ")) == (5, 4)
    assert "no longer readable" in page


def test_an_image_that_becomes_too_large_for_the_model_is_refused_by_name(folder, tmp_path):
    Image.new("RGB", (100, 5000)).save(folder / "z.png")
    pixels = {**PIXELS, "size": 300, "fit": "short_side"}
    model = IMQNet(width=0.125, high_level_side=48)
    path = save_model(tmp_path / "m.safetensors", model, {"preprocessing": pixels, **TOLD})
    scores = scoring.score_images([folder / "b.png", folder / "z.png"], path, progress=False)
    told = "100x5000 becomes 300x15000 for the model, more than 4 million pixels; crop it"
    assert scores["error"].tolist() == ["", told]


def test_the_shipped_model_is_named_and_its_percentile_explained(folder):
    scores = scoring.score_images([folder / "b.png"], progress=False)
    note = scores.attrs["note"]
    assert note.startswith("Scores by the shipped model, trained on BIQ2021")
    assert note.endswith("Percentile: among its predictions for the training photographs.")
