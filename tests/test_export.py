"""A model as ONNX gives the scores that PyTorch gives."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from iqa_utils.models.imqnet import IMQNet
from iqa_utils.scorer import Scorer
from iqa_utils.training.checkpoints import save_model
from iqa_utils.workshop import cli, scoring

ONNX = "needs the extra [onnx]"
onnxruntime = pytest.importorskip("onnxruntime", reason=ONNX)
pytest.importorskip("onnxscript", reason=ONNX)


def save(folder, seed):
    torch.manual_seed(seed)
    network = IMQNet(width=0.125, high_level_side=48, mos_mean=50.0, mos_std=10.0)
    pixels = {
        "size": [64, 80],
        "fit": "squash",
        "resampler": "bilinear",
        "gain": 2.0,
        "offset": 1.0,
    }
    told = {"preprocessing": pixels | {"mean": [0.4] * 3, "std": [0.2] * 3}, "metrics": {}}
    told |= {"training_data": {"dataset": "x", "demo": True}, "scores_seen": "x"}
    return save_model(folder / f"{seed}.safetensors", network, told)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_file_scores_as_its_model_does_and_another_is_not_kept(tmp_path, monkeypatch):
    model, out = save(tmp_path, seed=0), tmp_path / "m.onnx"
    done = CliRunner().invoke(cli.app, ["export", str(model), str(out)])
    assert done.exit_code == 0, done.exception
    assert "scores equal within" in done.output
    assert "of 64 rows and 80 columns, no other size" in done.output.replace("\n", "")
    photograph = Image.fromarray(data.astronaut()).resize((80, 64))
    pixels = np.random.default_rng(3).integers(0, 256, (3, 3, 64, 80), dtype=np.uint8)
    pixels[0] = np.asarray(photograph).transpose(2, 0, 1)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    [theirs] = session.run(None, {"images": (pixels / 255).astype(np.float32)})
    ours = Scorer.load(model).score(torch.from_numpy(pixels))
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    assert np.ptp(theirs) > 1e-3

    def export_another(network, images, path, **options):
        path.write_bytes(out.read_bytes())

    monkeypatch.setattr("torch.onnx.export", export_another)
    with pytest.raises(ValueError, match=r"o\.onnx: scores of ONNX Runtime differ by"):
        scoring.export_onnx(save(tmp_path, seed=1), tmp_path / "o.onnx")
    assert not list(tmp_path.glob("*o.onnx"))
