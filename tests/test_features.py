"""Tapped layers, the feature cache, crops, and the matrices of wide features."""

import doctest
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from iqa_utils import features as features_module
from iqa_utils.features import (
    Crop,
    brisque_features,
    encoder,
    frozen_features,
    frozen_layers,
    grams as grams_module,
    iterate_layers,
    pool_activation,
    tap_layers,
)
from iqa_utils.features.grams import (
    disk_use,
    gram_from_panels,
    layer_grams,
    pack,
    squared_distances,
    unpack,
)
from iqa_utils.images import build_store, to_float

POOLED = {"0": "mean_std", "4": "mean_std"}  # layer to pooling
PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def made_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(7):
        pixels = rng.integers(0, 256, size=(24 + k, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k}.png")
    return root


def made_store(folder, tmp_path, *, size=(20, 20), fit="squash"):
    names = [f"{k}.png" for k in range(7)]
    return build_store(folder, names, tmp_path / "stores", size=size, fit=fit, progress=False)


def test_taps_are_the_activations_before_the_in_place_relu():
    network, images = made_network().eval(), torch.randn(2, 3, 20, 20)
    with tap_layers(network, ["0", "3", "2:input"]) as taps:
        network(images)
    first = network[0](images)
    assert torch.equal(taps["0"], first)
    assert (first < 0).any()  # an alias would have been rectified
    assert torch.equal(taps["2:input"], first.relu())
    assert not network[0]._forward_hooks


def test_an_unknown_layer_is_refused_with_the_nearest_names():
    with (
        pytest.raises(ValueError, match=r"no layer 'blocks.9'"),
        tap_layers(made_network(), ["blocks.9"]),
    ):
        pass


def test_a_layer_that_is_never_reached_is_an_error(folder, tmp_path):
    network = made_network()
    network.forward = lambda x: nn.Sequential.__call__(network[:3], x)
    with pytest.raises(ValueError, match=r"never reached the layers \['7'\]"):
        frozen_features(network, made_store(folder, tmp_path), layer="7", cache_dir=None)


def test_pooling_by_hand():
    activation = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])  # (1, 2, 1, 2)
    assert pool_activation(activation, "flatten").tolist() == [[1, 3, 5, 5]]
    assert pool_activation(activation, "mean_std").tolist() == [[2, 5, 1, 0]]
    assert pool_activation(activation, "max").tolist() == [[3, 5]]
    tokens = activation[:, :, 0].transpose(1, 2)  # (1, 2, 2)
    assert pool_activation(tokens, "mean").tolist() == [[2, 5]]
    assert pool_activation(torch.ones(3, 4), "mean").shape == (3, 4)


@pytest.mark.parametrize(("pooling", "message"), [("mean_std", "needs places"), ("sum", "one of")])
def test_a_pooling_that_does_not_fit_is_refused(pooling, message):
    with pytest.raises(ValueError, match=message):
        pool_activation(torch.ones(3, 4), pooling)


def test_one_pass_gives_the_same_tensors_as_a_pass_a_layer(folder, tmp_path):
    network, store = made_network(), made_store(folder, tmp_path)
    layers = ["0", "2", "4"]
    together = frozen_layers(network, store, layers, pooling="flatten", cache_dir=None, **PLAIN)
    for layer in layers:
        alone = frozen_features(
            network, store, layer=layer, pooling="flatten", cache_dir=None, **PLAIN
        )
        np.testing.assert_array_equal(together[layer], alone)
    assert network.training  # left as it was


def test_cached_features_are_those_of_encoding_again_to_the_last_bit(folder, tmp_path, monkeypatch):
    network, store = made_network(), made_store(folder, tmp_path)
    options = {"layer": "4", "cache_dir": tmp_path / "cache", "batch_size": 3, **PLAIN}
    first = frozen_features(network, store, **options)
    fresh = frozen_features(network, store, **{**options, "cache_dir": None})

    def never(*_, **__):
        raise AssertionError("the network was run again")

    monkeypatch.setattr(features_module, "iterate_layers", never)
    cached = frozen_features(network, store, **options)
    assert cached.dtype == np.float32
    assert cached.tobytes() == first.tobytes() == fresh.tobytes()
    with pytest.raises(AssertionError, match="run again"):  # other weights, other key
        frozen_features(made_network(seed=1), store, **options)
    with pytest.raises(AssertionError, match="run again"):  # other pixels, other key
        frozen_features(network, made_store(folder, tmp_path, size=(20, 22)), **options)
    with pytest.raises(AssertionError, match="run again"):  # other normalisation, other key
        frozen_features(network, store, **{**options, "mean": (0.4, 0.5, 0.5)})


class Dies(nn.Module):
    """A network whose first layer fails at its second batch, once."""

    def __init__(self):
        super().__init__()
        self.layers, self.calls = made_network(), []

    def forward(self, images):
        self.calls.append(len(images))
        if len(self.calls) == 2:
            raise RuntimeError("killed")
        return self.layers(images)


def test_an_interrupted_pass_goes_on_where_it_stopped_and_repeats_nothing(folder, tmp_path):
    network, store = Dies(), made_store(folder, tmp_path)
    options = {"cache_dir": tmp_path / "cache", "batch_size": 3, **PLAIN}
    with pytest.raises(RuntimeError, match="killed"):
        frozen_layers(network, store, ["layers.0", "layers.4"], **options)
    found = frozen_layers(network, store, ["layers.0", "layers.4"], **options)
    assert network.calls == [3, 3, 3, 1]  # of the second call: images 4 to 7
    fresh = frozen_layers(
        network, store, ["layers.0", "layers.4"], **{**options, "cache_dir": None}
    )
    for layer, features in found.items():
        assert features.tobytes() == fresh[layer].tobytes()


def test_some_rows_are_read_from_the_cache_of_more_and_more_adds_to_that_of_some(folder, tmp_path):
    network, store = Dies(), made_store(folder, tmp_path)
    options = {"layer": "layers.4", "cache_dir": tmp_path / "cache", "batch_size": 7, **PLAIN}
    some = frozen_features(network, store, rows=[5, 0, 2], **options)
    network.calls += [0]  # the failing call
    everything = frozen_features(network, store, **options)
    assert network.calls == [3, 0, 4]
    np.testing.assert_array_equal(everything[[5, 0, 2]], some)
    np.testing.assert_array_equal(
        frozen_features(network, store, rows=[6, 6, 1], **options), everything[[6, 6, 1]]
    )
    assert len(network.calls) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cached_row_that_was_damaged_is_computed_again(folder, tmp_path):
    network, store = made_network(), made_store(folder, tmp_path)
    options = {"layer": "4", "cache_dir": tmp_path / "cache", "batch_size": 1, **PLAIN}
    first = frozen_features(network, store, **options)
    (path,) = (tmp_path / "cache").iterdir()
    with path.open("r+b") as file:
        file.seek(3 * path.stat().st_size // 7)  # the first value of image 3
        file.write(b"\0\0\0\0")
    np.testing.assert_array_equal(frozen_features(network, store, **options), first)


@pytest.mark.parametrize("length", [100, 7 * 4 * 5, 7 * 4 * 10])
def test_a_feature_cache_of_another_length_is_named_and_computed_again(
    folder, tmp_path, capsys, length
):
    network, store = made_network(), made_store(folder, tmp_path)
    options = {"layer": "4", "cache_dir": tmp_path / "cache", "batch_size": 1, **PLAIN}
    first = frozen_features(network, store, **options)
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:length].ljust(length, b"x"))
    np.testing.assert_array_equal(frozen_features(network, store, **options), first)
    assert capsys.readouterr().out.count(f"{path} is damaged and is made again") == 1
    assert path.read_bytes() == whole


def test_statistics_of_brisque_that_were_cut_are_computed_again(folder, tmp_path, capsys):
    store = made_store(folder, tmp_path)
    first = brisque_features(store, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    np.testing.assert_array_equal(brisque_features(store, cache_dir=tmp_path / "cache"), first)
    assert capsys.readouterr().out == f"{path} is damaged and is made again\n"


def test_a_gram_matrix_that_was_damaged_is_computed_again(folder, tmp_path, capsys):
    network, store = made_network(), made_store(folder, tmp_path)
    options = {"cache_dir": tmp_path / "cache", **PLAIN}
    first = layer_grams(network, store, {"4": "mean"}, **options)["4"]
    (path,) = (tmp_path / "cache").glob("gram-*.npy")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], whole[:150] + b"x" + whole[151:]):
        path.write_bytes(damaged)
        again = layer_grams(network, store, {"4": "mean"}, **options)["4"]
        np.testing.assert_array_equal(again, first)
        assert f"{path} is damaged and is made again" in capsys.readouterr().out


@pytest.mark.parametrize("pooling", ["own", "mean", "mean_std"])
def test_an_encoder_gives_the_features_of_the_network_run_by_hand(folder, tmp_path, pooling):
    torch.manual_seed(0)
    encode = encoder("test_resnet", pooling=pooling)
    store = made_store(folder, tmp_path)
    images = store.batch(range(7)).clone()
    mean, std = encode.network.pretrained_cfg["mean"], encode.network.pretrained_cfg["std"]
    with torch.no_grad():
        pixels = to_float(images, mean=mean, std=std)
        expected = encode.network.eval()(pixels)  # its own pooling is the mean
        if pooling == "mean_std":
            places = encode.network.forward_features(pixels).flatten(2)
            expected = torch.cat([expected, places.std(2, correction=0)], 1)
    np.testing.assert_allclose(encode(store, cache_dir=tmp_path / "cache"), expected, atol=1e-5)
    np.testing.assert_allclose(encode(images, batch_size=3), expected, atol=1e-5)


def test_an_encoder_normalises_as_its_network_wants_and_reads_its_cache(tmp_path):
    encode = encoder("test_vit2")
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    first = encode(images, cache_dir=tmp_path)
    encode.network.forward = None  # a second pass would fail
    np.testing.assert_array_equal(encode(images, cache_dir=tmp_path), first)
    assert encode.mean == encode.network.pretrained_cfg["mean"]


def test_an_encoder_refuses_an_unknown_pooling():
    with pytest.raises(ValueError, match="pooling must be 'own' or one of"):
        encoder("test_resnet", pooling="sum")


def test_features_equal_the_network_run_by_hand(folder, tmp_path):
    network, store = made_network().eval(), made_store(folder, tmp_path)
    ours = frozen_features(network, store, pooling="flatten", cache_dir=None, **PLAIN)
    with torch.no_grad():
        expected = network(to_float(store.batch(range(7)), **PLAIN))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_crop_depends_on_its_number_and_seed_and_on_nothing_else(folder, tmp_path):
    network, store = made_network(), made_store(folder, tmp_path, size=None, fit="native")
    common = {"pooling": "flatten", "layer": "0", "cache_dir": None, **PLAIN}
    small = frozen_features(network, store, crop=Crop((16, 16), 1), batch_size=2, **common)
    large = frozen_features(network, store, crop=Crop((16, 16), 1), batch_size=7, **common)
    np.testing.assert_allclose(small, large, atol=1e-6)
    others = [Crop((16, 16), 0), Crop((16, 16), 1, seed=5)]
    for crop in others:
        assert np.abs(frozen_features(network, store, crop=crop, **common) - large).max() > 0.1


def test_a_crop_larger_than_an_image_names_the_image(folder, tmp_path):
    store = made_store(folder, tmp_path, size=None, fit="native")
    with pytest.raises(ValueError, match=r"0\.png is only 24x30"):
        frozen_features(made_network(), store, crop=Crop((25, 25)), cache_dir=None)


def test_features_that_are_not_finite_name_their_images(folder, tmp_path):
    network = made_network()
    with torch.no_grad():
        network[7].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"7 images are not: \['0.png'"):
        frozen_features(network, made_store(folder, tmp_path), pooling="flatten", cache_dir=None)


def test_batches_cover_every_row_once(folder, tmp_path):
    store = made_store(folder, tmp_path)
    batches = iterate_layers(made_network(), store, ["4"], batch_size=3, **PLAIN)
    assert [(rows.start, rows.stop) for rows, _ in batches] == [(0, 3), (3, 6), (6, 7)]


def test_the_consumer_of_a_pass_is_not_put_into_inference_mode(folder, tmp_path):
    store = made_store(folder, tmp_path)
    for _ in iterate_layers(made_network(), store, ["4"], batch_size=3, **PLAIN):
        assert not torch.is_inference_mode_enabled()
    assert not store.batch([0, 1]).is_inference()


def test_chosen_rows_are_encoded_in_their_order(folder, tmp_path):
    network, store = made_network(), made_store(folder, tmp_path)
    options = {"layer": "4", "cache_dir": tmp_path / "cache", **PLAIN}
    everything = frozen_features(network, store, **options)
    some = frozen_features(network, store, rows=[5, 0, 2], **options)
    np.testing.assert_allclose(some, everything[[5, 0, 2]], atol=1e-6)


def test_pooled_features_come_from_the_pass_of_the_gram_matrices(folder, tmp_path, monkeypatch):
    network, store = made_network(), made_store(folder, tmp_path)
    options = {"cache_dir": tmp_path / "cache", **PLAIN}
    layer_grams(network, store, {"4": "mean_std", "7": "flatten"}, **options)
    fresh = frozen_features(network, store, layer="4", cache_dir=None, **PLAIN)
    monkeypatch.setattr(features_module, "iterate_layers", None)  # calling it would fail
    np.testing.assert_array_equal(frozen_features(network, store, layer="4", **options), fresh)
    vectors = frozen_features(network, store, layer="7", pooling="flatten", **options)
    assert vectors.shape == (7, 5)


def test_gram_in_panels_is_the_gram_of_centred_features(monkeypatch):
    monkeypatch.setattr("iqa_utils.features.grams._STRIP", 7)  # several strips a panel
    x = np.random.default_rng(0).normal(3, 1, size=(40, 50))
    z = x - x.mean(0)
    gram = gram_from_panels([x[:, :20], x[:, 20:40], x[:, 40:]])
    np.testing.assert_allclose(gram, z @ z.T, atol=1e-11)
    np.testing.assert_array_equal(gram, gram.T)


def test_a_common_part_a_thousand_times_the_spread_leaves_single_precision_products_exact():
    x = np.random.default_rng(0).normal(1000, 1, size=(40, 500)).astype(np.float32)
    z = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    gram, scale = gram_from_panels([x]), (z**2).sum(1).mean()
    assert np.abs(gram - z @ z.T).max() < 1e-6 * scale
    rounded = (x @ x.T).astype(np.float64)  # what a product of the raw features leaves
    centre = np.eye(40) - 1 / 40
    assert np.abs(centre @ rounded @ centre - z @ z.T).max() > 1e-2 * scale


def test_distances_from_a_gram_matrix_are_euclidean():
    x = np.random.default_rng(0).normal(size=(9, 50))
    direct = ((x[:, None] - x[None]) ** 2).sum(2)
    np.testing.assert_allclose(squared_distances(x @ x.T), direct, atol=1e-12)


def test_a_panel_that_is_not_finite_is_refused_by_row():
    panel = np.ones((4, 3), dtype=np.float32)
    panel[2, 1] = np.inf
    with pytest.raises(ValueError, match=r"rows \[2\]"):
        gram_from_panels(iter([panel]))


def test_features_whose_products_overflow_are_refused():
    panel = np.array([[3e30, 0], [0, 3e30]], dtype=np.float32)
    with pytest.raises(ValueError, match=r"reach 3e\+30, their products are beyond float32"):
        gram_from_panels([panel])


def test_layer_grams_equal_those_of_features_in_memory_and_leave_no_spool(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("iqa_utils.features.grams.PANEL", 100)
    network, store = made_network(), made_store(folder, tmp_path)
    cache = tmp_path / "cache"
    options = {"cache_dir": cache, "batch_size": 3, **PLAIN}
    grams = layer_grams(network, store, POOLED, **options)
    for layer in ("0", "4"):
        x = frozen_features(network, store, layer=layer, pooling="flatten", **options)
        x = x.astype(np.float64)
        x -= x.mean(0)
        scale = np.abs(np.diagonal(grams[layer])).mean()
        np.testing.assert_allclose(grams[layer], x @ x.T, atol=1e-6 * scale)
    grams_on_disk = sorted(cache.glob("gram-*"))
    assert len(grams_on_disk) == 2
    assert not list(cache.glob("**/*.bin"))
    again = layer_grams(network, store, POOLED, **options)
    np.testing.assert_array_equal(again["0"], grams["0"])
    stated = disk_use(7, {"one": [1]})["grams"]
    assert grams_on_disk[0].stat().st_size == pytest.approx(stated, abs=200)  # .npy header


JOB = """
import sys, time
from pathlib import Path
from tests.test_features import PLAIN, POOLED, made_network, made_store
from iqa_utils.features.grams import layer_grams

folder, work = map(Path, sys.argv[1:])
network = made_network()
network[0].register_forward_hook(lambda *_: time.sleep(0.2))
layer_grams(
    network, made_store(folder, work), POOLED, cache_dir=work / "cache", batch_size=1,
    save_seconds=0.0, **PLAIN,
)
"""


def test_a_gram_pass_killed_in_its_middle_ends_with_the_same_matrices_to_the_last_bit(
    folder, tmp_path, capsys
):
    options = {"batch_size": 1, **PLAIN}
    network, store = made_network(), made_store(folder, tmp_path)
    whole = layer_grams(network, store, POOLED, cache_dir=tmp_path / "whole", **options)
    cache, root = tmp_path / "cache", Path(__file__).parents[1]
    job = subprocess.Popen([sys.executable, "-c", JOB, folder, tmp_path], cwd=root)
    until = time.monotonic() + 60
    while time.monotonic() < until and job.poll() is None:
        notes = [json.loads(path.read_text()) for path in cache.glob("pass-*/note.json")]
        if notes and notes[0]["done"] >= 2:
            break
        time.sleep(0.02)
    job.kill()
    assert job.wait() == -9
    calls = []
    network[0].register_forward_hook(lambda *_: calls.append(1))
    found = layer_grams(network, store, POOLED, cache_dir=cache, **options)
    begun = int(re.search(r"resumed at image (\d) of 7", capsys.readouterr().out)[1])
    assert begun >= 2
    assert len(calls) == 7 - begun
    for layer, gram in whole.items():
        assert found[layer].tobytes() == gram.tobytes()
    pooled = {"layer": "4", "pooling": "mean_std", **options}
    ours = frozen_features(network, store, cache_dir=cache, **pooled)
    assert len(calls) == 7 - begun  # the pooled features came from the same pass
    np.testing.assert_array_equal(ours, frozen_features(network, store, cache_dir=None, **pooled))
    assert not list(cache.glob("**/*.bin"))


def test_a_pass_that_died_between_two_layers_multiplies_only_the_rest(
    folder, tmp_path, monkeypatch
):
    network, store = made_network(), made_store(folder, tmp_path)
    whole = layer_grams(network, store, POOLED, cache_dir=tmp_path / "whole", **PLAIN)
    multiply, cache = grams_module.gram_from_panels, tmp_path / "cache"

    def once(panels, **options):
        if list(cache.glob("gram-0-*")):
            raise RuntimeError("killed")
        return multiply(panels, **options)

    monkeypatch.setattr(grams_module, "gram_from_panels", once)
    with pytest.raises(RuntimeError, match="killed"):
        layer_grams(network, store, POOLED, cache_dir=cache, **PLAIN)
    monkeypatch.setattr(grams_module, "gram_from_panels", multiply)
    network.register_forward_hook(lambda *_: pytest.fail("the network was run again"))
    found = layer_grams(network, store, POOLED, cache_dir=cache, **PLAIN)
    assert all(np.array_equal(found[layer], whole[layer]) for layer in whole)


def note_of(cache):
    (path,) = cache.glob("pass-*/note.json")
    return path


def without_checksums(note):
    content = json.loads(note.read_text())
    del content["sums"]
    note.write_text(json.dumps(content))


DAMAGE = {  # of the first layer's file and of the note
    "cut": lambda file, note: file.write_bytes(file.read_bytes()[:-9]),
    "overwritten": lambda file, note: file.write_bytes(b"\7" * 9 + file.read_bytes()[9:]),
    "gone": lambda file, note: file.unlink(),
    "empty note": lambda file, note: note.write_text(""),
    "torn note": lambda file, note: note.write_text('{"sizes": {"0":'),
    "note of an earlier form": lambda file, note: without_checksums(note),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_killed_pass_whose_files_were_damaged_starts_anew(
    folder, tmp_path, monkeypatch, capsys, damage
):
    network, store = made_network(), made_store(folder, tmp_path)
    options, cache = {"batch_size": 2, "save_seconds": 0.0, **PLAIN}, tmp_path / "cache"
    whole = layer_grams(network, store, POOLED, cache_dir=tmp_path / "whole", **options)
    hook = network[0].register_forward_hook(lambda *_: calls.append(1) or killed())
    calls = []

    def killed():
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer_grams(network, store, POOLED, cache_dir=cache, **options)
    hook.remove()
    assert json.loads(note_of(cache).read_text())["done"] == 4
    DAMAGE[damage](note_of(cache).with_name("0.bin"), note_of(cache))
    capsys.readouterr()
    found = layer_grams(network, store, POOLED, cache_dir=cache, **options)
    told = capsys.readouterr().out
    assert "resumed" not in told
    assert ("the pass starts anew" in told) == (damage != "note of an earlier form")
    for layer, gram in whole.items():
        assert found[layer].tobytes() == gram.tobytes()


def test_packing_keeps_a_symmetric_matrix():
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    matrix += matrix.T
    np.testing.assert_array_equal(unpack(pack(matrix)), matrix)


def test_a_disk_too_small_says_what_is_needed(folder, tmp_path, monkeypatch):
    store = made_store(folder, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="7 images at 1 layers need"):
        layer_grams(made_network(), store, POOLED, cache_dir=tmp_path / "c")


def test_a_disk_that_holds_one_layer_takes_a_pass_a_layer(folder, tmp_path, monkeypatch):
    network, store = made_network(), made_store(folder, tmp_path)
    expected = layer_grams(network, store, POOLED, cache_dir=tmp_path / "whole", **PLAIN)
    sizes = [array.shape[1] for array in frozen_layers(
        network, store, ["0", "4"], pooling="flatten", cache_dir=None, **PLAIN
    ).values()]  # fmt: skip
    free = 4 * 7 * max(sizes)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    found = layer_grams(network, store, POOLED, cache_dir=tmp_path / "small", **PLAIN)
    for layer in ("0", "4"):
        np.testing.assert_array_equal(found[layer], expected[layer])


def test_an_activation_that_is_not_finite_names_layer_and_image(folder, tmp_path):
    network, store = made_network(), made_store(folder, tmp_path)
    with torch.no_grad():
        network[0].bias[0] = torch.nan
    with pytest.raises(ValueError, match=rf"layer 4: .*7 images are not: \['{store.names[0]}"):
        layer_grams(network, store, {"4": "mean_std"}, cache_dir=tmp_path / "c", **PLAIN)


def test_the_examples_of_the_documentation_run():
    found = doctest.testmod(features_module)
    assert found.failed == 0
    assert found.attempted >= 5
