"""The last step of every network keeps its precision, whatever the trunk runs in."""

import pytest
import torch

from iqa_utils.deep_quality import ScoreNetwork
from iqa_utils.models.clip_head import ClipHead
from iqa_utils.models.dual_xception import DualXception, KonCept, PooledHead
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.models.monotonic import MonotonicTransformers

SMALL, N = "test_efficientnet", 64
SCALE = {"mos_mean": 59.0, "mos_std": 15.0}
PIXELS = torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(N, 256, generator=torch.Generator().manual_seed(1))
QUALITY, FIRST = torch.linspace(-1, 1, N), torch.zeros(N, dtype=torch.long)
NETWORKS = {
    "dual-Xception": (lambda: DualXception(SMALL, inputs="images", **SCALE), PIXELS),
    "KonCept512": (lambda: KonCept(SMALL, **SCALE), PIXELS),
    "a teacher's head": (lambda: PooledHead(KonCept(SMALL, **SCALE)), VECTORS),
    "CLIP's head": (lambda: ClipHead(256, width=8, depth=1, neck=8, **SCALE), VECTORS),
    "IMQNet": (lambda: IMQNet(width=0.25, **SCALE), PIXELS),
    "a tuned classifier": (lambda: ScoreNetwork(torch.nn.Linear(256, 1000)), VECTORS),
    "monotone curves": (lambda: MonotonicTransformers(2), (QUALITY, FIRST)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_in_bfloat16_do_not_fall_on_a_few_values(name):
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    network = build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pred = network(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    assert pred.dtype == torch.float32
    assert len(pred.unique()) == N
