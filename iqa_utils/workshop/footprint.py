"""What a network takes: bytes on the device, operations an image, and the time that follows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

# where nothing was measured: what one large GPU sustains in such networks, and the least time of a
# step, which at small batches is spent on starting kernels, one by one or as a graph
FLOPS = {"fp32": 15e12, "bf16": 60e12, "fp16": 60e12}
LAYER_SECONDS = {False: 60e-6, True: 15e-6}  # compiled?
FILES_A_SECOND = 1500  # photographs decoded and cropped on 16 cores
ASSUMED = (
    f"{FLOPS['bf16'] / 1e12:.0f} TFLOP/s sustained in bf16 and {FLOPS['fp32'] / 1e12:.0f} in fp32, "
    f"at least {1e6 * LAYER_SECONDS[False]:.0f} µs a layer and step "
    f"({1e6 * LAYER_SECONDS[True]:.0f} compiled), {FILES_A_SECOND:,} files decoded a second"
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Equal trainings, or passes without gradients (``steps`` 0).

    ``images`` and ``steps`` are those of one training over all epochs, ``watched`` the images it
    predicts for validation and test. ``size`` is the shape of an image or vector; with ``network``
    it tells footprints apart. ``frozen`` networks are built with real weights, because freezing
    compares values; ``files`` are decoded at every step; ``saved`` ones leave a checkpoint.
    """

    name: str
    network: str
    size: tuple[int, ...]
    build: Callable[[], nn.Module]
    batch: int
    images: int
    steps: int = 0
    count: int = 1
    watched: int = 0
    precision: str = "fp32"
    compile: bool = False
    frozen: bool = False
    files: bool = False
    saved: bool = True
    inputs: Callable[[nn.Module, Tensor], tuple[Tensor, ...]] = lambda network, x: (x,)

    @property
    def is_image(self) -> bool:
        """Whether it takes images, and not what a frozen network made of them."""
        return self.size[0] == 3


class Footprint(NamedTuple):
    """Bytes of weights, of gradients and moments, of activations; operations an image; layers."""

    weights: int
    training: int
    activations: int
    flops: float
    layers: int

    @property
    def memory(self) -> int:
        """Bytes on the device in a step."""
        return self.weights + self.training + self.activations


def footprint(job: Job) -> Footprint:
    """Count a network without computing it, at the true batch, size and precision.

    Activations are what autograd keeps for the backward pass on the meta device: unique storages,
    parameters and buffers excluded. In bf16 the same is counted under autocast, which needs fake
    tensors that stand for a CPU's: what it stores in bf16 takes half, its copies of the weights
    included, and what it keeps in float32 does not.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    half = job.precision != "fp32"
    device, mode = ("cpu", FakeTensorMode(allow_non_fake_inputs=True)) if half else ("meta", None)
    with nullcontext() if job.frozen else torch.device("meta"):
        network = job.build().train(job.steps > 0)
    own: set[int] = set()
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no address comes twice
        return tensor

    with mode or nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        network.to_empty(device=device)
        inputs = job.inputs(network, torch.empty(job.batch, *job.size, device=device))
        owned = [*network.parameters(), *network.buffers()]
        own.update(tensor.untyped_storage()._cdata for tensor in owned)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.set_grad_enabled(job.steps > 0), hooks, FlopCounterMode(display=False) as ops:
            network(*inputs)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in owned)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad and job.steps)
    activations = sum(storage.nbytes() for storage in kept.values())
    layers = sum(not list(module.children()) for module in network.modules())
    flops = ops.get_total_flops() / job.batch
    return Footprint(weights, 12 * trained, activations, flops, layers)


def kind(job: Job) -> str:
    """Name what a measured speed belongs to: network, batch, size, precision."""
    size = "x".join(map(str, (job.batch, *job.size)))
    how = "pass" if not job.steps else "compiled" if job.compile else "eager"
    return f"{job.network}, {size}, {job.precision}, {how}"


def seconds(job: Job, seen: Footprint, rate: float | None = None) -> float:
    """Estimate all trainings of a job: from images/s, or from operation counts.

    The backward pass takes twice the operations of the forward pass.
    """
    forward = seen.flops / FLOPS[job.precision]
    if rate is not None:
        time = job.images / rate + job.watched / (3 * rate)
    elif job.steps:
        step = max(3 * forward * job.images / job.steps, LAYER_SECONDS[job.compile] * seen.layers)
        time = job.steps * step + job.watched * forward
    else:
        time = job.images * forward
    decoded = (job.images + job.watched) / FILES_A_SECOND if job.files else 0.0
    return job.count * max(time, decoded)
