"""Data of the rehearsal: official layouts at official counts, read by the official readers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iqa_utils.datasets import DATASETS, check_dataset, check_images, load_scores
from iqa_utils.datasets.readers import LIVE_FOLDERS
from iqa_utils.decoding import BadImageError
from iqa_utils.distill.unlabelled import central_crop, scan_images
from iqa_utils.indicators import NAMES
from iqa_utils.workshop import notebooks, rehearsal
from iqa_utils.workshop.disk import folder_bytes
from iqa_utils.workshop.rehearsal import NETWORK_SETS, SETS, ensure_rehearsal_data

WHOLE = ("koniq10k", "live", "csiq", "tid2008", "tid2013", "bid", "livec")
SHARE = 0.02


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    ensure_rehearsal_data(root, sets=WHOLE)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    ensure_rehearsal_data(root, share=SHARE)
    return root


def brightness(path: Path) -> float:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), float).mean()


def test_koniq_has_the_official_number_of_images_in_every_range_of_every_set(whole: Path) -> None:
    frame = load_scores("koniq10k", whole / "koniq10k")
    official = {
        "training": [129, 833, 2157, 3790, 149],
        "validation": [18, 118, 307, 536, 21],
        "test": [36, 238, 617, 1082, 42],
    }
    for part, counts in official.items():
        scores = frame.loc[frame["split"] == part, "mos"]
        assert np.histogram(scores, [0, 20, 40, 60, 80, 100])[0].tolist() == counts
    assert frame["mos"].corr(frame["mos_raw"]) > 0.9  # the votes go with the scores
    assert frame["reference"].nunique() == 10073  # every image a content, as in the real set


@pytest.mark.parametrize("name", WHOLE)
def test_a_set_of_the_rehearsal_is_whole_and_marked_as_synthetic(name: str, whole: Path) -> None:
    report = check_dataset(name, whole / name)
    assert report["whole"]
    assert report["rows"] == DATASETS[name].n_images
    assert report["statistics"]["demo"]


def test_whole_sets_share_their_pictures_and_take_less_than_100_mb(whole: Path) -> None:
    assert folder_bytes(whole) < 100e6  # 178 MB where each picture is a file of its own


def test_the_originals_of_live_and_the_training_images_of_livec_are_there(whole: Path) -> None:
    images = {folder: len(list((whole / "live" / folder).glob("*.bmp"))) for folder in LIVE_FOLDERS}
    assert images == LIVE_FOLDERS  # 982, of which 203 are originals
    live = load_scores("live", whole / "live")["distortion"].value_counts()
    assert live.to_dict() == rehearsal.UNEVEN["live"]
    assert len(list((whole / "livec" / "Images" / "trainingImages").iterdir())) == 7


@pytest.mark.parametrize("name", SETS)
def test_every_set_of_the_rehearsal_is_read_with_its_images(name: str, small: Path) -> None:
    frame = load_scores(name, small / name)
    check_images(frame, small / name)
    assert frame.attrs["demo"]
    low, high = frame.attrs["scale"]
    assert frame["mos"].std() > 0.1 * (high - low)
    sample = frame.sample(60, random_state=0, replace=len(frame) < 60)
    shown = sample["image"].map(lambda image: brightness(small / name / image))
    assert sample["mos"].corr(shown, method="spearman") > 0.4


@pytest.mark.parametrize("name", NETWORK_SETS)
def test_the_true_networks_get_sixty_images_of_five_references(name: str, small: Path) -> None:
    root = small / "networks" / name
    frame = load_scores(name, root)
    check_images(frame, root)
    assert frame["reference"].value_counts().tolist() == [12] * 5
    with Image.open(root / frame["image"].iloc[0]) as image:
        assert image.size == (128, 128)


def test_the_unlabelled_folder_is_as_untidy_as_a_real_one(small: Path) -> None:
    files = list((small / "open_images" / "train_0").iterdir())
    assert all(path.stat().st_nlink == 1 for path in files)
    with pytest.raises(BadImageError, match="1 images cannot be read"):
        scan_images(small / "open_images", crop=(48, 64))
    found = scan_images(small / "open_images", crop=(48, 64), on_bad_image="drop")
    sizes = Counter(found.left_out["detail"].str.extract(r"(\d+x\d+), the crop")[0].dropna())
    assert sizes == {"43x64": 1, "64x48": 1, "30x40": 1}  # 3:2, upright, too small
    reasons = found.left_out["reason"].value_counts().to_dict()
    assert reasons == {"wrong shape": 2, "too small": 1, "corrupt": 1}  # an empty file
    assert len(found) == 74
    truncated = 0
    for path in found:
        try:
            central_crop(path, (48, 64))
        except BadImageError:
            truncated += 1
    assert truncated == 1
    labelled = {path.read_bytes() for path in (small / "koniq10k" / "1024x768").iterdir()}
    assert sum(path.read_bytes() in labelled for path in files) == 1


def test_pictures_follow_real_scores_and_stay_marked_as_synthetic(
    real_data: Path, tmp_path: Path
) -> None:
    made = ensure_rehearsal_data(tmp_path, real_data, sets=("livec", "csiq"))
    assert made == {"livec": 1169, "csiq": 866}  # the official score file of CSIQ is not there
    frame = load_scores("livec", tmp_path / "livec")
    real = load_scores("livec", real_data / "livec")
    assert frame["mos"].tolist() == real["mos"].tolist()
    assert frame.attrs["demo"]
    assert not real.attrs["demo"]
    assert check_dataset("livec", tmp_path / "livec")["whole"]
    sample = frame.sample(60, random_state=0)
    shown = sample["image"].map(lambda image: brightness(tmp_path / "livec" / image))
    assert sample["mos"].corr(shown, method="spearman") > 0.4
    ensure_rehearsal_data(tmp_path, sets=("livec",))
    assert load_scores("livec", tmp_path / "livec")["mos"].tolist() != real["mos"].tolist()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of a set: empty files in their places, and indicators of one value."""

    def touch(self: rehearsal.Linker, picture: object, path: Path, **options: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(rehearsal.Linker, "save", touch)
    monkeypatch.setattr(rehearsal.Linker, "measure", lambda *_: dict.fromkeys(NAMES, 0.5))


@pytest.mark.parametrize("name", [name for name in SETS if name not in WHOLE])
def test_score_files_of_large_sets_have_the_official_number_of_rows(
    name: str, tmp_path: Path, no_pictures: None
) -> None:
    ensure_rehearsal_data(tmp_path, sets=(name,))
    official = DATASETS[name].n_images or 500  # of NRTID none is known, and 500 is ours
    assert len(load_scores(name, tmp_path / name)) == official


@pytest.mark.parametrize("name", ["koniq10k", "livec", "tid2013", "bid", "flive"])
def test_real_score_files_become_the_scores_of_a_set(
    name: str, real_data: Path, tmp_path: Path, no_pictures: None
) -> None:
    try:
        real = load_scores(name, real_data / name)
    except FileNotFoundError as error:
        pytest.skip(f"needs the real score files of {name}: {error}")
    ensure_rehearsal_data(tmp_path, real_data, sets=(name,))
    frame = load_scores(name, tmp_path / name)
    assert frame["image"].tolist() == real["image"].tolist()
    assert frame["mos"].tolist() == real["mos"].tolist()
    assert frame.attrs["demo"]
    assert not real.attrs["demo"]


def test_a_set_is_made_once_and_again_when_its_version_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"sets": ("bid", "nrtid"), "share": SHARE}
    first = ensure_rehearsal_data(tmp_path, **options)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "bid: 12 images",
        "nrtid: 10 images",
    ]
    assert ensure_rehearsal_data(tmp_path, **options) == first == {"bid": 12, "nrtid": 10}
    assert not capsys.readouterr().out
    monkeypatch.setattr(rehearsal, "VERSION", rehearsal.VERSION + 1)
    ensure_rehearsal_data(tmp_path, **options)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_set_that_fails_is_not_there_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, studio: rehearsal.Linker) -> dict[str, str]:
        (root / "half.txt").write_text("half")
        raise OSError("disk full")

    options = {"sets": ("bid", "nrtid"), "share": SHARE}
    with monkeypatch.context() as patch:
        patch.setitem(SETS, "nrtid", fail)
        with pytest.raises(OSError, match="disk full"):
            ensure_rehearsal_data(tmp_path, **options)
    assert not (tmp_path / "nrtid").exists()
    before = (tmp_path / "bid" / "demo.json").stat().st_mtime_ns
    ensure_rehearsal_data(tmp_path, **options)
    assert (tmp_path / "bid" / "demo.json").stat().st_mtime_ns == before
    found = sorted(path.name for path in (tmp_path / "nrtid").iterdir())
    assert found == ["demo.json", "images", "scores.csv"]


def test_enough_unlabelled_images_fit_the_crop_of_the_rehearsal():
    wanted = notebooks.read_profile("06_distillation", "rehearsal")
    fitting = rehearsal.OPEN_SHAPES[tuple(wanted["CROP"])] - 1  # one is truncated
    assert fitting >= wanted["N_UNLABELLED"][-1] + wanted["N_KEPT"]
