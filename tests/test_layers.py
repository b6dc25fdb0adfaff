"""The map of the paper's layers, sizes checked on the meta device."""

import csv
import math
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from iqa_utils.backbones import create_backbone
from iqa_utils.features import tap_layers
from iqa_utils.features.layers import (
    LAYERS,
    NETWORKS,
    create_network,
    feature_sizes,
    layers_of,
)
from iqa_utils.workshop.notebooks import read_profile
from iqa_utils.workshop.rehearsal import rehearsals

LEDGER = Path(__file__).resolve().parents[1] / "data" / "claims.csv"


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_layer_has_the_size_the_map_states(name):
    assert feature_sizes(name) == {layer.name: layer.size for layer in layers_of(name)}


def test_the_map_covers_tables_1_and_2_of_the_ledger_with_the_printed_sizes():
    with LEDGER.open() as file:
        printed = {
            (row["table"], row["method"]): int(float(row["value"]))
            for row in csv.DictReader(file)
            if row["paper"] == "ahmed2020"
            and row["table"] in ("Table 1", "Table 2")
            and row["metric"] == "feature count"
        }
    assert len(printed) == 39 + 24
    ours = {
        (table, layer.in_ledger(table)): layer.printed for layer in LAYERS for table in layer.tables
    }
    assert ours == printed


def test_printed_sizes_that_differ_are_explained_and_no_others():
    wrong = {(row.network, row.name) for row in LAYERS if row.printed not in (None, row.size)}
    assert wrong == {
        ("resnet50", "add_14"),
        ("resnet101", "res5a"),
        ("resnet101", "res5b"),
        ("xception", "add_12"),
        ("shufflenet", "node_174"),
        ("shufflenet", "node_186"),
        ("shufflenet", "node_198"),
    }
    assert all(row.note for row in LAYERS if (row.network, row.name) in wrong)


def test_shapes_multiply_out_to_the_sizes_of_the_map():
    with (LEDGER.parent / "layer_shapes.csv").open() as file:
        shapes = {row["layer"]: row["shape"] for row in csv.DictReader(file)}
    counts = {layer: math.prod(map(int, shape.split(" x "))) for layer, shape in shapes.items()}
    sizes = {"complete architecture": 1000}  # Table 10: the last layers of NASNet removed
    sizes |= {f"without last {n} layers": 487_872 for n in (41, 82)}
    for layer in LAYERS:
        # of the paper's ShuffleNet v1, of which ours is version 2
        size = layer.printed if layer.network == "shufflenet" else layer.size
        titles = NETWORKS[layer.network].titles
        sizes |= {f"{titles[table]} / {layer.name}": size for table in layer.tables}
    assert counts == sizes


def test_mobilenet_and_lite0_are_tapped_at_the_end_of_every_stage_but_the_first():
    for name in ("mobilenetv2_100", "tf_efficientnet_lite0"):
        network = create_network(name, pretrained="random")
        ends = [f"blocks.{k}.{len(stage) - 1}" for k, stage in enumerate(network.blocks) if k]
        rows = layers_of(name)
        assert [row.module for row in rows] == [*ends, "conv_head", "classifier"]
        assert all(row.printed is None and not row.tables for row in rows)  # ours


def test_thirteen_networks_are_the_papers_and_eight_were_fine_tuned():
    assert sum("Table 1" in network.titles for network in NETWORKS.values()) == 13
    assert sum("Table 2" in network.titles for network in NETWORKS.values()) == 8


def test_squeezenet_1_0_never_answers_for_a_row_of_the_paper():
    with pytest.raises(ValueError, match="prints no layer"):
        layers_of("squeezenet1_0", "Table 1")


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network must be one of"):
        create_network("lenet", pretrained="random")


def test_densenet_concatenation_is_what_its_next_layer_sees():
    network = create_network("densenet201", pretrained="random").eval()
    layers = [row.module for row in layers_of("densenet201", "Table 1")]
    with torch.no_grad(), tap_layers(network, layers) as taps:
        network(torch.randn(1, 3, 32, 32))
    block30, block31, block32 = (taps[name] for name in layers)
    assert torch.equal(block32[:, :1888], block31)
    assert torch.equal(block31[:, :1856], block30)


BEFORE = {row for row in LAYERS if row.module.endswith(".relu:input")}


def test_fourteen_rows_of_the_tables_are_additions_tapped_before_their_relu():
    assert sum(len(row.tables) for row in BEFORE) == 14
    for row in LAYERS:
        named = row.name.startswith(("add_", "res", "block8_"))
        assert (row in BEFORE) == (named and row.network != "xception")


@pytest.mark.parametrize("name", ["resnet50", "inception_resnet_v2"])
def test_additions_hold_negatives_and_their_variant_behind_the_relu_does_not(name):
    torch.manual_seed(0)
    network = create_network(name, pretrained="random").eval()
    before, after = (
        [row.module for row in layers_of(name, choice=choice) if not row.is_vector]
        for choice in ("paper", "after")
    )
    with torch.no_grad(), tap_layers(network, [*before, *after]) as taps:
        network(torch.randn(2, 3, 75, 75))
    for addition, rectified in zip(before, after, strict=True):
        assert float(taps[addition].min()) < 0
        assert torch.equal(taps[addition].relu(), taps[rectified])


def test_the_variant_behind_the_relu_answers_for_no_row_of_the_paper():
    after = {row.name: row for row in layers_of("resnet50", choice="after")}
    assert list(after)[-2:] == ["add_16, after ReLU", "fc1000"]
    assert after["add_16, after ReLU"].tables == ()
    assert after["fc1000"].tables == ("Table 2",)


@pytest.mark.parametrize(
    ("name", "n_taps", "last"),
    [
        ("squeezenet1_0", 16, ("features.12.expand1x1+features.12.expand3x3", "features.12")),
        ("resnet50", 32, ("layer4.2.relu:input", "layer4.2")),
        ("mobilenetv2_100", 17, ("blocks.5.2", "blocks.6.0")),  # linear: one tap a block
        ("xception", 25, ("conv3", "conv4")),
        ("tf_efficientnet_lite0", 16, ("blocks.5.3", "blocks.6.0")),  # linear as well
        ("legacy_xception", 25, ("conv3", "conv4")),
    ],
)
def test_the_depth_profile_taps_every_block_before_and_after_its_activation(name, n_taps, last):
    layers = layers_of(name, choice="depth")
    assert len(layers) == n_taps
    assert tuple(row.module for row in layers[-2:]) == last
    torch.manual_seed(0)
    network = create_network(name, pretrained="random").eval()
    modules = [row.module for row in layers]
    with torch.no_grad(), tap_layers(network, modules) as taps:
        for n in (2, 1):  # what an earlier pass left is not joined
            network(torch.randn(n, 3, 64, 64))
    pairs = [(a.module, b.module) for a, b in pairwise(layers) if a.name.endswith(", before")]
    assert all(torch.equal(taps[a].relu(), taps[b]) for a, b in pairs)
    assert len(pairs) == sum(row.name.endswith(", after") for row in layers)
    assert all(len(taps[module]) == 1 for module in modules)


def test_an_unknown_choice_of_layers_is_refused():
    with pytest.raises(ValueError, match="choice of layers must be one of"):
        layers_of("resnet50", choice="all")


def test_real_squeezenet_weights_load_into_the_map(real_weights):
    network = create_network("squeezenet1_0", pretrained=real_weights)
    assert network.classifier[1].weight.abs().sum() > 0
    with pytest.raises(ValueError, match="another architecture"):
        create_network("squeezenet", pretrained=real_weights / "squeezenet1_0-imagenet.pth")


@pytest.mark.parametrize("change", ["without", "other size"])
def test_weights_without_the_classifier_whose_logits_are_features_are_refused(tmp_path, change):
    state = create_network("mobilenetv2_100", pretrained="random").state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        whole = state.pop(name)
        if change == "other size":
            state[name] = whole[:10].clone()
    torch.save(state, tmp_path / "mobilenetv2_100-imagenet.pth")
    with pytest.raises(ValueError, match="classifier"):
        create_network("mobilenetv2_100", pretrained=tmp_path / "mobilenetv2_100-imagenet.pth")


@pytest.mark.parametrize("change", ["without", "other size"])
def test_a_trunk_only_file_is_refused_by_a_network_that_has_a_classifier(tmp_path, change):
    whole = create_backbone("test_resnet", pretrained="random")
    state = whole.state_dict()
    state |= {name: state[name][:10].clone() for name in ("fc.weight", "fc.bias")}
    if change == "without":
        del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "trunk.pth")
    with pytest.raises(ValueError, match=r"another architecture .*'?fc\.weight"):
        create_backbone("test_resnet", pretrained=tmp_path / "trunk.pth")
    create_backbone("test_resnet", pretrained=tmp_path / "trunk.pth", num_classes=0)


def test_the_rehearsal_of_all_networks_keeps_the_papers_lists_at_the_smallest_legal_side():
    paper = read_profile("04_deep_features_gpr", "paper")
    ((_, values),) = [run for run in rehearsals(["04"]) if "RUN_NAME" in run[1]]
    for name in ("NETWORKS_TAPPED", "NETWORKS_TUNED", "FINAL", "TUNING", "BATCH_SIZE"):
        assert values[name] == paper[name]
    assert values["PROFILE"] == "rehearsal"
    refused = {values["SIDE"]: [], values["SIDE"] - 1: []}
    for (side, names), name in product(refused.items(), paper["NETWORKS_TAPPED"]):
        with torch.device("meta"), torch.no_grad():
            network = create_network(name, pretrained="random").eval()
            try:
                network(torch.empty(1, 3, side, side))
            except RuntimeError:
                names.append(name)
    assert list(refused.values()) == [[], ["inception_v3", "inception_resnet_v2"]]


def test_the_shipped_trunk_has_a_random_classifier_and_is_that_of_the_quality_model():
    torch.manual_seed(0)
    network = create_network("tf_efficientnet_lite0", pretrained="shipped")
    torch.manual_seed(0)
    random = create_network("tf_efficientnet_lite0", pretrained="random")
    options = {"pretrained": "shipped", "num_classes": 0}
    trunk = create_backbone("tf_efficientnet_lite0", **options).state_dict()
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in trunk.items())
    assert set(state) - set(trunk) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(network.classifier.weight, random.classifier.weight)
    with pytest.raises(ValueError, match="is a tf_efficientnet_lite0, got backbone"):
        create_network("mobilenetv2_100", pretrained="shipped")


def test_the_shipped_trunk_is_refused_under_another_name():
    with pytest.raises(ValueError, match=r"is a tf_efficientnet_lite0, got backbone 'resnet18'"):
        create_backbone("resnet18", pretrained="shipped")


@pytest.mark.parametrize(
    ("name", "word"),
    [("legacy_xception", "imagenet"), ("vit_base_patch16_clip_quickgelu_224", "openai")],
)
def test_a_trunk_reads_a_file_with_or_without_a_classifier_under_its_own_word(name, word, tmp_path):
    trunk = create_network(name, pretrained="random")
    state = trunk.state_dict() | {"fc.weight": torch.zeros(3, 2), "head.weight": torch.zeros(3, 2)}
    torch.save(state, tmp_path / f"{name}-{word}.pth")
    again = create_network(name, pretrained=tmp_path)
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert layers_of(name)[-1].size == (768 if word == "openai" else 204_800)
    del state[next(iter(state))]
    torch.save(state, tmp_path / f"{name}-{word}.pth")
    with pytest.raises(ValueError, match="1 parameters missing"):
        create_network(name, pretrained=tmp_path)


def test_every_second_block_of_clip_is_tapped_as_tokens_and_the_class_token_as_a_vector():
    clip = "vit_base_patch16_clip_quickgelu_224"
    layers = layers_of(clip)
    assert [row.name for row in layers[:-1]] == [f"block_{k}" for k in (2, 4, 6, 8, 10, 12)]
    assert [row.is_vector for row in layers] == [False] * 6 + [True]
    assert len(layers_of(clip, choice="depth")) == 13  # the patches, then twelve blocks
