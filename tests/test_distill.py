"""Merged scores, unlabelled images and the teacher pass: nothing lost, repeated or relabelled."""

import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from iqa_utils.decoding import BadImageError, Fit
from iqa_utils.distill import (
    Teacher,
    choose_teachers,
    endless_rows,
    read_pass,
    run_passes,
    teacher_pass,
    unlabelled,
)
from iqa_utils.distill.merging import (
    TEACHER_WEIGHTS,
    aggregate,
    coverage,
    join_sets,
    merge_by_features,
    merge_scores,
    weighted_srocc,
)
from iqa_utils.distill.unlabelled import central_crop, crop_batches, file_batches, scan_images
from iqa_utils.images import build_store
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.scorer import AS_IS
from iqa_utils.training.batches import store_batches
from iqa_utils.training.checkpoints import save_model
from iqa_utils.workshop import cli
from iqa_utils.workshop.scoring import score_images

CROP = (24, 32)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Brightness(nn.Module):
    """Mean of the normalised pixels, counted in images it has seen."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.gain * images.mean(dim=(1, 2, 3))


def make_teacher(gain=1.0, **options):
    return Teacher(Brightness(gain), options.pop("fit", AS_IS), *IMAGENET, **options)


@pytest.fixture
def folder(tmp_path):
    """Twenty PNGs of random grey, one too small."""
    generator = np.random.default_rng(0)
    target = tmp_path / "photos"
    (target / "more").mkdir(parents=True)
    for i in range(20):
        pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels // (1 + i % 4)).save(target / ("more" * (i % 2)) / f"{i:02}.png")
    Image.fromarray(pixels[:20, :30]).save(target / "small.png")
    return target


def save_teacher(path):
    torch.manual_seed(0)
    model = IMQNet(width=0.125, high_level_side=16, hidden=(8, 4))
    how = {"size": list(CROP), "fit": "squash", "resampler": "bilinear"}
    how |= {"mean": IMAGENET[0], "std": IMAGENET[1]}
    told = {
        "training_data": {"dataset": "synthetic", "demo": True},
        "scores_seen": ["koniq10k/training"],
        "metrics": {},
    }
    return save_model(path, model, {"preprocessing": how, **told})


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-200])


# merged scores


def synthetic_sets(n=400):
    """Two sets of one quality on two scales, and what a common predictor says of them."""
    generator = np.random.default_rng(1)
    latent = generator.uniform(0, 1, 2 * n)
    names = np.repeat(["a", "b"], n)
    mos = np.where(names == "a", 100 * latent, 1 + 4 * latent**3)
    labelled = pd.DataFrame({"dataset": names, "mos": mos, "part": "training"})
    return latent, labelled, latent + generator.normal(0, 0.1, 2 * n)


def test_monotone_merging_finds_a_curved_scale_that_a_line_cannot():
    latent, labelled, predictor = synthetic_sets()
    b, error = labelled["dataset"] == "b", {}
    for method in ("monotone", "linear"):
        merged = merge_scores(labelled, predictor, ["a", "b"], method=method)
        error[method] = np.abs(merged - 100 * latent)[b].mean()
    assert error["monotone"] < 2  # points of 100
    assert error["linear"] > 4 * error["monotone"]


@pytest.mark.parametrize("method", ["monotone", "linear"])
def test_merging_keeps_the_order_within_a_set_and_the_first_set_as_it_is(method):
    _, labelled, predictor = synthetic_sets()
    merged = labelled.assign(merged=merge_scores(labelled, predictor, ["a", "b"], method=method))
    for _, part in merged.groupby("dataset"):
        assert spearmanr(part["mos"], part["merged"])[0] == pytest.approx(1, abs=1e-12)
    a = merged[merged["dataset"] == "a"]
    np.testing.assert_array_equal(a["merged"], a["mos"])


def test_the_linear_merging_is_exact_where_scales_are_affine_copies():
    _, labelled, predictor = synthetic_sets()
    a = labelled["mos"][:400]
    labelled["mos"] = np.concatenate([a, a / 25 + 1])
    predictor[400:] = predictor[:400]
    merged = merge_scores(labelled, predictor, ["a", "b"], method="linear")
    np.testing.assert_allclose(merged[400:], a, atol=1e-9)


def test_merging_refuses_a_predictor_that_does_not_rise():
    _, labelled, predictor = synthetic_sets()
    predictor[400:] *= -1
    with pytest.raises(ValueError, match=r"b: the predictor must rise"):
        merge_scores(labelled, predictor, ["a", "b"])
    with pytest.raises(ValueError, match="method must be 'monotone' or 'linear', got 'curved'"):
        merge_scores(labelled, predictor, ["a", "b"], method="curved")


def test_merging_never_reads_a_test_score():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 4))
    labelled = pd.DataFrame({"dataset": ["a"] * 100 + ["b"] * 100})
    labelled["mos"] = features[:, 0] * 10 + generator.normal(size=200)
    labelled["part"] = ["training", "test"] * 100
    merged = merge_by_features(labelled, features, ["a", "b"])
    test = labelled["part"] == "test"
    lied = labelled.assign(mos=np.where(test, -labelled["mos"], labelled["mos"]))
    again = merge_by_features(lied, features, ["a", "b"])
    np.testing.assert_allclose(again[~test], merged[~test])
    assert np.isnan(merge_by_features(labelled, features, ["b"])[:100]).all()


def test_joined_sets_keep_only_the_scores_that_are_asked_for():
    names = [f"{i}.jpg" for i in range(50)]
    frame = pd.DataFrame({"image": names, "mos": np.arange(50.0), "reference": names})
    frames = {"a": frame.assign(split=pd.NA), "b": frame.assign(split=["training", "test"] * 25)}
    table = join_sets(frames, n_training=10, seed=1)
    assert table["part"].value_counts().to_dict() == {"unused": 55, "test": 35, "training": 10}
    assert table["image"].iloc[[0, 50]].tolist() == ["a/0.jpg", "b/0.jpg"]
    whole = join_sets(frames, seed=1)
    assert set(whole["part"]) == {"training", "validation", "test"}
    pd.testing.assert_frame_equal(table[table["part"] == "test"], whole[whole["part"] == "test"])
    with pytest.raises(ValueError, match=r"n_training is 99, but there are 50 scores"):
        join_sets(frames, n_training=99, seed=1)


def test_the_aggregate_is_equation_one():
    row = {"koniq10k": 0.83, "flive": 0.45, "nrtid": 0.69, "livec": 0.79, "htid": 0.66}
    assert sum(TEACHER_WEIGHTS.values()) == pytest.approx(1)
    assert round(weighted_srocc(row), 2) == 0.71  # first row of Table 1
    assert weighted_srocc({k: -v for k, v in row.items()}) == weighted_srocc(row)
    with pytest.raises(ValueError, match="expected SROCC of"):
        weighted_srocc({"koniq10k": 0.8})


def test_aggregates_need_all_their_sets_and_are_leaky_where_one_of_them_is():
    sets = ["koniq10k", "flive", "nrtid", "livec", "htid", "spaq"]
    row = {"method": "m", "variant": "v", "metric": "SRCC"}
    rows = [
        {**row, "table": t, "dataset": s, "value": 0.1 * i, "mark": "held-out"}
        for t in ("Table 1", "Table 4")
        for i, s in enumerate(sets)
    ]
    rows[11]["mark"] = "leaky"  # SPAQ, which only Table 4 averages
    table = pd.DataFrame(rows)
    found = aggregate(table).set_index("dataset").loc[["average", "weighted"]]
    weighted = 0.15 * 0.1 + 0.2 * 0.2 + 0.25 * 0.3 + 0.15 * 0.4
    np.testing.assert_allclose(found["value"], [0.25, weighted])
    assert found["mark"].tolist() == ["leaky", "held-out"]
    pd.testing.assert_frame_equal(aggregate(table)[:12], table)
    short = table[table["dataset"] != "htid"]
    pd.testing.assert_frame_equal(aggregate(short), short)


def test_coverage_counts_what_lies_inside():
    unlabelled = pd.DataFrame({"score": [0.0, 1.0, 2.0, 3.0]})
    labelled = pd.DataFrame({"score": [-1.0, 1.0, 2.0, 4.0]})
    row = coverage(unlabelled, labelled, bins=5).iloc[0]  # edges -1, 0, 1, 2, 3, 4
    assert row["inside"] == 0.5
    assert row["overlap"] == pytest.approx(0.75)  # bins 1, 2 and 3
    assert coverage(labelled, labelled).iloc[0][["inside", "overlap"]].tolist() == [1, 1]


# unlabelled images


def test_too_small_images_are_counted_and_left_out(folder):
    found = scan_images(folder, crop=CROP)
    assert len(found) == 20
    assert found.images["image"].is_monotonic_increasing
    assert found.left_out.to_dict("records") == [
        {"image": "photos/small.png", "reason": "too small", "detail": "20x30, the crop is 24x32"}
    ]


def test_a_3_2_photograph_that_a_4_3_crop_does_not_fit_has_the_wrong_shape(folder):
    Image.new("RGB", (34, 23)).save(folder / "wide.png")
    Image.new("RGB", (23, 34)).save(folder / "upright.png")
    left_out = scan_images(folder, crop=CROP).left_out
    assert left_out["reason"].value_counts().to_dict() == {"wrong shape": 2, "too small": 1}


def test_a_copy_of_a_labelled_image_is_found_by_its_bytes_and_left_out(folder, tmp_path):
    (tmp_path / "lab").mkdir()
    labelled = [tmp_path / "lab" / f"{i}.png" for i in range(2)]
    labelled[0].write_bytes((folder / "00.png").read_bytes())
    twin = bytearray((folder / "02.png").read_bytes())
    twin[-1] ^= 1  # as long as the other, and not its copy
    labelled[1].write_bytes(twin)
    found = scan_images(folder, crop=CROP, exclude=labelled)
    copies = found.left_out[found.left_out["reason"] == "copy of a labelled image"]
    assert copies[["image", "detail"]].values.tolist() == [["photos/00.png", str(labelled[0])]]
    assert len(found) == 19


def test_held_out_images_can_be_excluded_wherever_they_lie(folder, tmp_path):
    found = scan_images(folder, crop=CROP, exclude=[folder / "00.png", tmp_path / "elsewhere.png"])
    assert "photos/00.png" not in set(found.images["image"])
    assert ["photos/00.png", "labelled image", ""] in found.left_out.values.tolist()


def test_an_empty_or_missing_folder_is_named(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image .* in .*nothing"):
        scan_images(tmp_path / "nothing", crop=CROP)
    with pytest.raises(FileNotFoundError, match=r"nothing at .*absent"):
        scan_images(tmp_path / "absent", crop=CROP)


def test_no_image_large_enough_is_an_error(folder):
    with pytest.raises(ValueError, match=r"none of 21 images can be used: too small: 30x40"):
        scan_images(folder, crop=(64, 64))


def test_a_file_that_is_no_image_is_named_or_dropped(folder):
    (folder / "notes.jpg").write_text("not a picture")
    (folder / "empty.jpg").touch()
    with pytest.raises(BadImageError, match=r"2 images cannot be read: .*notes\.jpg"):
        scan_images(folder, crop=CROP)
    found = scan_images(folder, crop=CROP, on_bad_image="drop")
    assert len(found) == 20
    names = ["photos/empty.jpg", "photos/notes.jpg", "photos/small.png"]
    assert found.left_out["image"].tolist() == names
    assert found.left_out["reason"].tolist() == ["corrupt", "corrupt", "too small"]
    with pytest.raises(ValueError, match="on_bad_image must be"):
        scan_images(folder, crop=CROP, on_bad_image="skip")


def test_what_only_looks_like_an_image_is_counted(folder):
    (folder / "moving.gif").touch()
    (folder / "album.png").mkdir()
    found = scan_images(folder, crop=CROP)
    assert found.left_out["reason"].value_counts().to_dict() == {"not read": 2, "too small": 1}
    assert found.left_out["image"].tolist()[:2] == ["photos/album.png", "photos/moving.gif"]


def test_a_million_names_take_little_memory(tmp_path, monkeypatch):
    def walk(_):
        return ((f"some/folder/0123456789abcdef-{i:06}.jpg", "") for i in range(n))

    monkeypatch.setattr(unlabelled, "walk_images", walk)
    monkeypatch.setattr(unlabelled, "_measure", lambda *_: ("", "", (768, 1024), 100_000))
    peaks = []
    for n in (4096, 12_288):
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        found = scan_images(tmp_path, crop=CROP)
        peaks.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before)
        tracemalloc.stop()
        assert len(found) == n
    assert found[n - 1] == tmp_path / f"some/folder/0123456789abcdef-{n - 1:06}.jpg"
    assert (peaks[1] - peaks[0]) / 8192 < 200  # bytes


def test_the_crop_is_the_centre_pixel_for_pixel(folder):
    whole = np.asarray(Image.open(folder / "00.png"))
    np.testing.assert_array_equal(central_crop(folder / "00.png", CROP), whole[3:27, 4:36])


def test_batches_hold_the_crops_in_order(folder):
    paths = list(scan_images(folder, crop=CROP))
    groups = np.array_split(np.arange(20), 7)
    seen = [(rows, crops.clone()) for rows, crops, _ in crop_batches(paths, groups, CROP)]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in seen]), np.arange(20))
    expected = np.stack([central_crop(path, CROP) for path in paths])
    pixels = torch.cat([crops for _, crops in seen])  # (20, 3, 24, 32)
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), expected)


def test_files_and_a_store_give_the_same_batches(folder, tmp_path):
    names = [f"{i:02}.png" for i in range(0, 20, 2)]
    store = build_store(folder, names, tmp_path, size=CROP, fit="center_crop", progress=False)
    scores, rows = np.arange(10.0), np.array([4, 1, 9, 3, 7])
    files = file_batches([folder / name for name in names], CROP, rows, scores, batch_size=2)
    for a, b in zip(files, store_batches(store, rows, scores, batch_size=2), strict=True):
        torch.testing.assert_close(a.inputs[0], b.inputs[0])
        torch.testing.assert_close(a.mos, b.mos)


def test_the_endless_stream_shows_every_row_once_before_any_again():
    rows = np.array([3, 5, 8, 13, 21])
    whole = endless_rows(rows, 0, 15, seed=0)
    for start in (0, 5, 10):
        assert sorted(whole[start : start + 5]) == rows.tolist()
    pieces = [endless_rows(rows, start, 3, seed=0) for start in range(0, 15, 3)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (whole[:5] != whole[5:10]).any()


# the teacher pass


def test_teachers_see_what_their_names_say():
    chosen = choose_teachers(["a", "b"], ["training", "all", "without"])
    assert chosen["training"] == (["a", "b"], ("training",))
    assert chosen["without a"] == (["b"], ("training", "validation", "test"))
    assert list(choose_teachers(["a"], ["training", "without"])) == ["training"]
    with pytest.raises(ValueError, match="teachers must be some of"):
        choose_teachers(["a"], ["some"])


def test_the_pass_stores_what_the_teacher_says(folder, tmp_path):
    found, teacher = scan_images(folder, crop=CROP), make_teacher()
    teacher_pass(teacher, found, tmp_path / "pass", batch_size=3, part_size=7, progress=False)
    scores, errors = read_pass(tmp_path / "pass", found, teacher)
    assert errors.empty
    assert scores["image"].tolist() == found.images["image"].tolist()
    assert set(scores["teacher"]) == {teacher.hash}
    crops = np.stack([central_crop(path, CROP) for path in found]) / 255
    expected = ((crops - IMAGENET[0]) / IMAGENET[1]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores["score"], expected, atol=1e-5)
    assert len(list((tmp_path / "pass").glob("part-*.parquet"))) == 3


def test_a_second_pass_scores_nothing_again(folder, tmp_path):
    found, teacher = scan_images(folder, crop=CROP), make_teacher()
    assert teacher_pass(teacher, found, tmp_path / "pass", progress=False) == (20, 0)
    assert teacher_pass(teacher, found, tmp_path / "pass", progress=False) == (0, 0)
    assert teacher.model.seen == 20
    Image.new("RGB", (40, 30), "red").save(folder / "new.png")
    more = scan_images(folder, crop=CROP)
    assert teacher_pass(teacher, more, tmp_path / "pass", progress=False) == (1, 0)
    assert len(read_pass(tmp_path / "pass", more, teacher)[0]) == 21


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_distill import CROP, make_teacher
from iqa_utils import distill
write, out = distill._write_part, Path({out!r})
def dying(*arguments):
    counts = write(*arguments)
    if len(list(out.glob("part-*"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return counts
distill._write_part = dying
distill.teacher_pass(make_teacher(), distill.scan_images(Path({folder!r}), crop=CROP), out,
                     batch_size=2, part_size=4, progress=False)
"""


def test_a_pass_counts_what_it_stored(folder, tmp_path):
    found, teacher = scan_images(folder, crop=CROP), make_teacher()
    assert teacher_pass(teacher, found, tmp_path / "none", batch_size=-1, progress=False) == (0, 0)
    assert teacher_pass(teacher, found, tmp_path / "all", batch_size=6, part_size=8) == (20, 0)
    assert len(read_pass(tmp_path / "all", found, teacher)[0]) == 20


def test_a_killed_pass_goes_on_without_repeating_or_losing_an_image(folder, tmp_path):
    out = tmp_path / "pass"
    script = KILLED.format(tests=os.path.dirname(__file__), folder=str(folder), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    (out / ".part-half.parquet.1").write_bytes(b"PAR1 a temporary file of the killed process")
    found, teacher = scan_images(folder, crop=CROP), make_teacher()
    with pytest.raises(ValueError, match=r"12 of 20 images have no score yet"):
        read_pass(out, found, teacher)
    assert teacher_pass(teacher, found, out, part_size=4, progress=False) == (12, 0)
    assert teacher.model.seen == 12
    raw = pd.concat(pd.read_parquet(p) for p in out.glob("part-*.parquet"))
    assert sorted(raw["image"]) == found.images["image"].tolist()
    whole = tmp_path / "whole"
    teacher_pass(teacher, found, whole, progress=False)
    pd.testing.assert_frame_equal(
        read_pass(out, found, teacher)[0], read_pass(whole, found, teacher)[0]
    )


def test_two_processes_share_the_list(folder, tmp_path):
    save_teacher(tmp_path / "teacher.safetensors")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    label = [
        "-m",
        "iqa_utils.workshop.cli",
        "label",
        str(folder),
        "--crop",
        "24",
        "32",
        "--part-size",
        "4",
    ]
    label += ["--teacher", str(tmp_path / "teacher.safetensors"), "--out", str(tmp_path / "pass")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *torchrun, *label], env=environment, check=True, capture_output=True
    )
    found = scan_images(folder, crop=CROP)
    teacher = Teacher.load(tmp_path / "teacher.safetensors")
    assert teacher.saw == ("koniq10k/training",)
    shared, _ = read_pass(tmp_path / "pass", found, teacher)  # refuses a repeated image
    assert len(list((tmp_path / "pass").glob("part-*.parquet"))) == 2 * 3  # 10 images each, by 4
    teacher_pass(teacher, found, tmp_path / "one", progress=False)
    alone, _ = read_pass(tmp_path / "one", found, teacher)
    np.testing.assert_allclose(shared["score"], alone["score"], atol=1e-5)


@pytest.mark.parametrize(
    ("fit", "size"),
    [
        *(("shrink_short_side", side) for side in (12, 24, 48)),
        ("short_side", 48),
        ("squash", [9, 7]),
    ],
)
def test_a_teacher_sees_the_pixels_that_it_is_scored_on(fit, size, tmp_path):
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    model = IMQNet(width=0.125, high_level_side=16, hidden=(8, 4), mos_std=1e6)  # far from 0
    how = {"size": size, "fit": fit, "resampler": "bilinear"}
    how |= {"mean": IMAGENET[0], "std": IMAGENET[1], "gain": 3.0, "offset": -2.0}
    told = {
        "training_data": {"dataset": "synthetic", "demo": True},
        "scores_seen": [],
        "metrics": {},
    }
    path = save_model(tmp_path / "m.safetensors", model, {"preprocessing": how, **told})
    given = Teacher.load(path).score(torch.from_numpy(noise).permute(2, 0, 1)[None])
    [expected] = score_images([tmp_path / "noise.png"], path, progress=False)["score"]
    assert float(given) == pytest.approx(expected, rel=0.02)


def test_ranks_take_disjoint_shares_that_cover_the_list(folder, tmp_path, monkeypatch):
    found, teacher, shares = scan_images(folder, crop=CROP), make_teacher(), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        shares.append(teacher_pass(teacher, found, tmp_path / "pass", progress=False))
    assert shares == [(7, 0), (7, 0), (6, 0)]
    assert len(read_pass(tmp_path / "pass", found, teacher)[0]) == 20


def test_scores_of_another_teacher_are_refused_by_name(folder, tmp_path):
    found, out = scan_images(folder, crop=CROP), tmp_path / "pass"
    teacher_pass(make_teacher(), found, out, progress=False)
    other = make_teacher(gain=2.0)
    before = [p.read_bytes() for p in out.iterdir()]
    for use in (lambda: teacher_pass(other, found, out), lambda: read_pass(out, found, other)):
        with pytest.raises(ValueError, match=rf"part-\w+\.parquet is of teacher .*{other.hash}"):
            use()
    assert [p.read_bytes() for p in out.iterdir()] == before


def test_scores_of_another_crop_are_refused_by_name(folder, tmp_path):
    teacher_pass(make_teacher(), scan_images(folder, crop=CROP), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"is of crop 24x32, this pass takes 20x20"):
        teacher_pass(make_teacher(), scan_images(folder, crop=(20, 20)), tmp_path)


def test_a_file_cut_short_is_refused_by_name(folder, tmp_path):
    found, teacher, out = scan_images(folder, crop=CROP), make_teacher(), tmp_path / "pass"
    teacher_pass(teacher, found, out, part_size=8, progress=False)
    path = sorted(out.iterdir())[1]
    corrupt(path)
    for use in (lambda: teacher_pass(teacher, found, out), lambda: read_pass(out, found, teacher)):
        with pytest.raises(ValueError, match=rf"{path.name} is cut short"):
            use()
    path.unlink()
    assert teacher_pass(teacher, found, out, progress=False) in ((4, 0), (8, 0))
    assert len(read_pass(out, found, teacher)[0]) == 20


def test_an_image_that_changed_after_it_was_scored_is_named(folder, tmp_path):
    found, teacher = scan_images(folder, crop=CROP), make_teacher()
    teacher_pass(teacher, found, tmp_path / "pass", progress=False)
    Image.new("RGB", (40, 30), "red").save(folder / "00.png")
    with pytest.raises(ValueError, match=r"scores photos/00\.png, which has changed since"):
        teacher_pass(teacher, scan_images(folder, crop=CROP), tmp_path / "pass")


def test_a_corrupt_image_is_named_and_nothing_scored_is_lost(folder, tmp_path):
    (folder / "08.png").unlink()
    Image.new("RGB", (400, 300), "red").save(folder / "08.jpg")
    corrupt(folder / "08.jpg")  # its header is intact, so only decoding finds it
    found, teacher, out = scan_images(folder, crop=CROP), make_teacher(), tmp_path / "pass"
    with pytest.raises(BadImageError, match=r"08\.jpg: truncated or corrupt"):
        teacher_pass(teacher, found, out, batch_size=2, part_size=100, progress=False)
    kept = teacher.model.seen
    assert kept >= 4
    left = teacher_pass(teacher, found, out, on_bad_image="drop", progress=False)
    assert left == (19 - kept, 1)
    assert teacher.model.seen == 19
    scores, errors = read_pass(out, found, teacher)
    assert len(scores) == 19
    assert errors["image"].tolist() == ["photos/08.jpg"]
    assert "truncated or corrupt" in errors["error"].iloc[0]


def test_a_corrupt_file_leaves_the_set_and_every_teacher_scores_the_same_rest(folder, tmp_path):
    Image.new("RGB", (400, 300), "red").save(folder / "00.jpg")
    corrupt(folder / "00.jpg")
    found, pair = scan_images(folder, crop=CROP), {"a": make_teacher(), "b": make_teacher(2.0)}
    with pytest.raises(BadImageError, match=r"00\.jpg: truncated or corrupt"):
        run_passes(pair, found, tmp_path / "passes", on_bad_image="raise")
    usable, labels = run_passes(pair, found, tmp_path / "passes", on_bad_image="drop")
    assert len(usable) == len(labels["a"]) == 20
    np.testing.assert_allclose(labels["b"], 2 * labels["a"], rtol=1e-5)
    assert usable.left_out["reason"].value_counts().to_dict() == {"corrupt": 1, "too small": 1}
    seen = pair["a"].model.seen
    run_passes(pair, found, tmp_path / "passes", on_bad_image="drop")
    assert pair["a"].model.seen == seen  # found again
    with pytest.raises(BadImageError, match="1 images could not be decoded"):
        run_passes(pair, found, tmp_path / "passes", on_bad_image="raise")


def test_label_counts_what_was_stored(folder, tmp_path, capsys):
    Image.new("RGB", (400, 300), "red").save(folder / "00.jpg")
    corrupt(folder / "00.jpg")
    model = save_teacher(tmp_path / "teacher.safetensors")
    cli.label([folder], model, tmp_path / "pass", crop=CROP, drop_bad=True)
    said = capsys.readouterr().out
    assert "left out, too small: 1\n" in said
    assert "20 images scored, 1 corrupt -> " in said


def test_a_score_that_is_not_finite_is_named(folder, tmp_path):
    found = scan_images(folder, crop=CROP)
    with pytest.raises(ValueError, match=r"gave photos/00\.png a score that is not finite"):
        teacher_pass(make_teacher(float("nan")), found, tmp_path / "pass", progress=False)
    assert not list((tmp_path / "pass").glob("part-*"))


def test_the_hash_tells_weights_and_preprocessing_apart():
    hashes = [
        make_teacher().hash,
        make_teacher(2.0).hash,
        make_teacher(fit=Fit((8, 8), "squash", "bilinear")).hash,
    ]
    assert len(set(hashes)) == 3
    assert make_teacher().hash == hashes[0]
    assert make_teacher(saw=("koniq10k/training",)).hash == hashes[0]


def test_a_test_is_leaky_where_the_teacher_saw_its_scores():
    teacher = make_teacher(saw=("koniq10k/all", "livec/training"))
    assert teacher.knows("koniq10k", "test") == "leaky"
    assert teacher.knows("livec", "training") == "leaky"
    assert teacher.knows("livec", "all") == "leaky"
    assert teacher.knows("livec", "test") == "held-out"
    assert teacher.knows("spaq", "all") == "held-out"
