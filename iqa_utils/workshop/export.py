"""Write a model as ONNX, and check that it still gives the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from iqa_utils.files import atomic_write
from iqa_utils.scorer import Scorer

FREE_SIDE = 256  # px, of the images that a model of any size is traced and checked with
TOLERANCE = 1e-4  # of the range of the checked scores, or of 1


class _Scores(nn.Module):
    """RGB in [0, 1], shape (B, 3, H, W), to scores (B,) on the scale of the training."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer, self.model = scorer, scorer.model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(scorer, name)).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        output = self.model((images - self.mean) / self.std).reshape(-1)
        return output * self.scorer.gain + self.scorer.offset


def export_onnx(model: str | Path, out: str | Path) -> float:
    """Write a model file as ONNX with the input ``images`` and the output ``scores``.

    Images are RGB in [0, 1], float32, already of the model's size; batches may be of any size. The
    file is kept only where ONNX Runtime gives the same scores of random images as PyTorch.

    Returns:
        The largest difference found, on the scale of the scores.

    Raises:
        ImportError: If ONNX, its scripts or its runtime is not installed.
        ValueError: If the scores differ.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 - PyTorch's exporter needs it

    scorer = Scorer.load(model)
    size = scorer.fit.target(FREE_SIDE, FREE_SIDE) if scorer.fit.resamples else [FREE_SIDE] * 2
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((2, 3, *size), dtype=np.float32))
    network = _Scores(scorer).eval()
    with atomic_write(out) as partial:
        batch = {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
        how = {"dynamic_shapes": batch, "dynamo": True, "external_data": False, "verbose": False}
        how |= {"input_names": ["images"], "output_names": ["scores"]}
        torch.onnx.export(network, (images,), partial, **how)
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        checked = torch.from_numpy(rng.random((5, 3, *size), dtype=np.float32))
        [theirs] = session.run(None, {"images": checked.numpy()})
        with torch.inference_mode():
            ours = network(checked).numpy()
        difference = float(np.abs(theirs - ours).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise ValueError(f"{out}: scores of ONNX Runtime differ by {difference:.3g}; not kept")
    return difference
