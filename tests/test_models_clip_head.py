"""The frozen encoder in both libraries, and the residual head on its vectors."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from iqa_utils.models.clip_head import PAPER_ENCODER, ClipHead, ImageEncoder, ResidualBlock
from iqa_utils.training.checkpoints import load_model, save_model

EDGES = [float(edge) for edge in range(11)]
METADATA = {"preprocessing": {}, "scores_seen": [], "metrics": {}}
METADATA["training_data"] = {"dataset": "none", "demo": True}


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("vit_base_patch32_224_clip_laion2b", "timm"),
        (PAPER_ENCODER, "timm"),
        ("ViT-B-32", "open_clip"),
    ],
)
def test_both_libraries_give_the_papers_768_values_before_the_projection(name, library):
    with torch.device("meta"):  # shapes without weights: 87 million of them cost nothing
        encoder = ImageEncoder(name, library=library)
        vectors = encoder(torch.zeros(2, 3, 224, 224))
    assert vectors.shape == (2, 768) == (2, encoder.n_features)
    assert sum(p.numel() for p in encoder.parameters()) == 87_456_000
    assert encoder.mean == pytest.approx(timm.get_pretrained_cfg(PAPER_ENCODER).mean)


def test_images_are_normalised_as_the_encoder_was_trained():
    encoder = ImageEncoder("test_resnet", pooling="mean_std")
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)


def test_the_papers_old_name_means_the_new_one():
    with torch.device("meta"):
        encoder = ImageEncoder("vit_base_patch32_224_clip_laion2b")
    assert encoder.settings["name"] == PAPER_ENCODER == "vit_base_patch32_clip_224.laion2b"


def test_a_small_tower_of_open_clip_and_its_timm_twin_give_equal_vectors():
    torch.manual_seed(0)
    theirs = OpenClipTower(32, 16, width=64, layers=2, heads=2, mlp_ratio=4, output_dim=8).eval()
    nn.init.normal_(theirs.class_embedding)
    twin = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=2, num_classes=0,
        pre_norm=True, norm_layer=nn.LayerNorm,
    ).eval()  # fmt: skip
    state = {f"visual.{key}": value for key, value in theirs.state_dict().items()}
    twin.load_state_dict({k: v for k, v in checkpoint_filter_fn(state, twin).items()
                          if not k.startswith("head.")})  # fmt: skip
    theirs.proj = None
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(theirs(images), twin(images), rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_neither_learns_nor_changes_with_the_mode():
    encoder = ImageEncoder("mobilenetv2_035", pooling="mean_std").train()
    images = torch.randn(2, 3, 64, 64)
    before = encoder(images)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert before.shape == (2, 2 * 1280) == (2, encoder.n_features)
    assert torch.equal(before, encoder(images))
    places = encoder.trunk.forward_features(images)
    torch.testing.assert_close(before[:, :1280], places.mean((2, 3)))


def test_encoders_that_pool_otherwise_do_not_look_the_same_to_a_cache():
    with torch.device("meta"):
        named = {repr(ImageEncoder("mobilenetv2_035", pooling=p)) for p in ("own", "mean_std")}
    assert len(named) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"library": "torchvision"}, "torchvision"),
        (
            {"name": "ViT-B-32", "library": "open_clip", "pooling": "mean_std"},
            "library and pooling",
        ),
        ({"name": "ViT-B-16", "library": "open_clip", "pretrained": "hub"}, "weights are known"),
        ({"name": "RN50", "library": "open_clip"}, "not a vision transformer"),
        ({"name": "clip"}, "must be a timm model name"),
    ],
)
def test_impossible_encoders_are_refused(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ImageEncoder(**arguments)


def test_missing_weights_are_an_error_and_never_random_ones(monkeypatch):
    def offline(*_, pretrained, **__):
        raise RuntimeError(f"no route to {pretrained}")

    monkeypatch.setattr("open_clip.create_model", offline)
    with pytest.raises(ConnectionError, match="laion2b_s34b_b79k of ViT-B-32: no route"):
        ImageEncoder("ViT-B-32", library="open_clip", pretrained="hub")


def test_weights_of_a_tower_come_from_a_file_and_must_fit(tmp_path, monkeypatch):
    def small(*_, **__):
        tower = OpenClipTower(32, 16, width=32, layers=1, heads=1, mlp_ratio=2, output_dim=8)
        return SimpleNamespace(visual=tower)

    monkeypatch.setattr("open_clip.create_model", small)
    state = small().visual.state_dict()
    state = {k: torch.full_like(v, 0.5) for k, v in state.items() if k != "proj"}
    torch.save(state, tmp_path / "tower.pth")
    encoder = ImageEncoder("ViT-B-32", library="open_clip", pretrained=str(tmp_path / "tower.pth"))
    assert encoder.n_features == 32
    assert all((p == 0.5).all() for p in encoder.trunk.parameters())
    del state["conv1.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="1 parameters missing"):
        ImageEncoder("ViT-B-32", library="open_clip", pretrained=str(tmp_path / "cut.pth"))


def test_the_head_counts_its_parameters_and_predicts_on_the_scale_of_the_scores():
    head = ClipHead(768, mos_mean=58.7, mos_std=15.4)
    layers = [*[768 * 768 + 768] * 3, 768 * 256 + 256, 256 + 1]
    norms = 2 * (768 + 768 + 768 + 256)  # before both blocks and the neck, and behind it
    assert sum(p.numel() for p in head.parameters()) == sum(layers) + norms
    plain = ClipHead(768, form="plain")
    assert sum(p.numel() for p in plain.parameters()) == sum(layers)
    nn.init.zeros_(head.last.weight)
    nn.init.constant_(head.last.bias, 2.0)
    torch.testing.assert_close(head(torch.randn(3, 768)), torch.full((3,), 58.7 + 2 * 15.4))


def test_width_depth_and_neck_are_named_and_blocks_are_residual():
    head = ClipHead(10, width=6, depth=3, neck=4)
    assert [m.linear.in_features for m in head.body if hasattr(m, "linear")] == [6, 6, 6]
    assert head.embed(torch.randn(2, 10)).shape == (2, 4)
    block = head.body[1]
    nn.init.zeros_(block.linear.weight)
    nn.init.zeros_(block.linear.bias)
    x = torch.randn(2, 6)
    assert torch.equal(block(x), x)


def test_inputs_are_standardised_by_the_training_vectors_and_constants_only_centred():
    vectors = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]])
    head = ClipHead(3, width=4, neck=2).standardise(vectors)
    assert head.input_mean.tolist() == [2, 5, 0]
    assert head.input_std.tolist() == [1, 1, 1]
    plain = head.body(torch.tensor([[4.0, 0.0, 7.0]]))
    torch.testing.assert_close(head.embed(torch.tensor([[6.0, 5.0, 7.0]])), plain)


def test_smoothing_acts_before_the_last_layer_while_training_only():
    torch.manual_seed(0)
    head = ClipHead(8, width=8, depth=1, neck=4, fds={"edges": EDGES, "kernel_size": 3})
    x, mos = torch.randn(60, 8), torch.linspace(0, 10, 60)
    plain = head(x, mos)
    head.end_epochs(1, x, mos)
    expected = head.last(head.fds(head.embed(x), mos)).squeeze(1)
    torch.testing.assert_close(head(x, mos), expected)
    assert (head(x, mos) - plain).abs().max() > 1e-3
    torch.testing.assert_close(head.eval()(x), plain)


def test_an_epoch_is_shown_to_the_smoothing_layer_once():
    x, mos = torch.randn(1500, 8), torch.linspace(0, 10, 1500)
    head = ClipHead(8, width=8, neck=4, fds={"edges": np.arange(11.0), "kernel_size": 3})
    head.end_epochs(0, x, mos)
    assert head.fds.epoch == 0
    head.end_epochs(1, x, mos)
    means = head.fds.mean.clone()
    expected = head.embed(x)[mos < 1].mean(0)  # over two parts of 1,024 and 476 rows
    torch.testing.assert_close(means[0], expected)
    head.end_epochs(1, x + 1, mos)  # resumed in the same epoch
    assert torch.equal(head.fds.mean, means)
    ClipHead(8, width=8, neck=4).end_epochs(1, x, mos)  # nothing to show it to


def test_a_saved_head_comes_back_with_its_smoothing_statistics(tmp_path):
    head = ClipHead(8, width=8, neck=4, mos_mean=5.0, mos_std=2.0,
                    fds={"edges": np.arange(11.0), "kernel_size": 3})  # fmt: skip
    x, mos = torch.randn(40, 8), torch.linspace(0, 10, 40)
    head.end_epochs(1, x, mos)
    again, metadata = load_model(save_model(tmp_path / "head.safetensors", head, METADATA))
    assert metadata["architecture"]["name"] == "clip_head"
    torch.testing.assert_close(again(x), head.eval()(x))
    torch.testing.assert_close(again.train()(x, mos), head.train()(x, mos))


def test_a_head_with_its_encoder_scores_images_and_survives_saving(tmp_path):
    encoder = ImageEncoder("mobilenetv2_035", pooling="mean_std")
    head = ClipHead(2560, width=8, depth=1, neck=4, fds={"edges": EDGES}).eval()
    head.standardise(torch.randn(5, 2560) + 3)
    whole = head.with_encoder(encoder)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole(images), head(encoder(images)))
    again, _ = load_model(save_model(tmp_path / "whole.safetensors", whole, METADATA))
    torch.testing.assert_close(again(images), whole(images))


def trained_as_the_paper(form, seed):
    """Adam at 0.1 on raw 0-100 targets: spread over that of the scores, MAE over the median's."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(360, 64, generator=generator), torch.randn(360, generator=generator)
    mos = 60 + 12 * (x[:, 0] + 0.5 * torch.tanh(x[:, 1] * x[:, 2]) + 0.3 * noise)
    mos = mos.clamp(0, 100)
    torch.manual_seed(seed)
    head = ClipHead(64, width=256, neck=64, form=form, mos_mean=float(mos[:240].mean()))
    adam = torch.optim.Adam(head.standardise(x[:240]).parameters(), lr=0.1)
    for _ in range(60):
        rows = torch.randint(240, (64,), generator=generator)
        adam.zero_grad()
        (head(x[rows]) - mos[rows]).abs().mean().backward()
        adam.step()
    pred, test = head.eval()(x[240:]).detach(), mos[240:]
    error = (pred - test).abs().mean() / (test - mos[:240].median()).abs().mean()
    return float(pred.std() / test.std()), float(error)


def test_the_papers_setting_leaves_normalised_heads_alive_and_kills_plain_ones():
    alive = np.array([trained_as_the_paper("normalised", seed) for seed in range(10)])
    assert (alive[:, 0] > 0.2).all(), alive
    assert (alive[:, 1] < 1).all(), alive
    plain = np.array([trained_as_the_paper("plain", seed) for seed in range(4)])
    assert (plain[:, 0] < 0.2).all(), plain


PARTS = ("inputs", "bias", "no relu", "norm")  # inputs standardised, bias at the mean score
DIED = {  # of ten seeds, at least and at most
    (): (10, 10),
    ("inputs",): (10, 10),
    ("inputs", "bias"): (2, 8),
    ("inputs", "bias", "no relu"): (0, 1),
    ("inputs", "bias", "norm"): (0, 0),
    PARTS: (0, 0),
    ("no relu", "norm"): (10, 10),
}


def died(parts, seed):
    """Train a head of these parts at 0.1 on raw targets; notebook 05 counts deaths the same way."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(360, 64, generator=generator), torch.randn(360, generator=generator)
    mos = 60 + 12 * (x[:, 0] + 0.5 * torch.tanh(x[:, 1] * x[:, 2]) + 0.3 * noise)
    mos, vectors = mos.clamp(0, 100), 3 * x * torch.linspace(0.2, 2, 64) + 2
    if "inputs" in parts:
        vectors = (vectors - vectors[:240].mean(0)) / vectors[:240].std(0)
    norm = nn.LayerNorm if "norm" in parts else lambda _: nn.Identity()
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.Linear(64, 128),
        *[ResidualBlock(128, normalised="norm" in parts) for _ in range(2)],
        norm(128),
        nn.Linear(128, 64),
        norm(64),
        nn.Identity() if "no relu" in parts else nn.ReLU(),
        nn.Linear(64, 1),
    )
    if "bias" in parts:
        nn.init.constant_(head[-1].bias, float(mos[:240].mean()))
    adam = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        rows = torch.randint(240, (64,), generator=generator)
        adam.zero_grad()
        (head(vectors[rows]).squeeze(1) - mos[rows]).abs().mean().backward()
        adam.step()
    pred, test = head(vectors[240:]).detach().squeeze(1), mos[240:]
    error = (pred - test).abs().mean() / (test - mos[:240].median()).abs().mean()
    return bool(pred.std() / test.std() < 0.2 or error >= 1)


@pytest.mark.parametrize(("parts", "bounds"), DIED.items(), ids=lambda p: "+".join(map(str, p)))
def test_which_part_of_the_normalised_head_keeps_it_alive(parts, bounds):
    assert bounds[0] <= sum(died(parts, seed) for seed in range(10)) <= bounds[1]


def test_a_normalised_head_knows_no_scale_of_its_blocks_and_its_neck_is_not_cut_off_at_zero():
    torch.manual_seed(0)
    head, x = ClipHead(8, width=16, depth=2, neck=6), torch.randn(50, 8)
    features = head.embed(x)
    torch.testing.assert_close(features.mean(1), torch.zeros(50), atol=1e-5, rtol=0)
    assert (features < 0).any()
    assert (ClipHead(8, width=16, neck=6, form="plain").embed(x) >= 0).all()
    with torch.no_grad():
        head.body[0].weight *= 1e3
        head.body[0].bias *= 1e3
    assert head.embed(x).abs().max() < 6**0.5
    with pytest.raises(ValueError, match="form must be normalised or plain, got 'relu'"):
        ClipHead(8, form="relu")


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": -1}, {"mos_std": 0.0}, {"neck": 0}])
def test_impossible_heads_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        ClipHead(8, **wrong)
