"""One compiled graph a training: full batches go through it, everything else runs eagerly."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo.utils import counters

from iqa_utils.training.batches import Batch


class CompiledNetwork:
    """Compiles a network for the shape of the first batch of an epoch.

    Dynamo counts recompilations over all networks of a process and at its limit runs the next one
    eagerly; so it forgets here what earlier trainings compiled.

    Args:
        model: Network, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        torch._dynamo.reset()
        counters.clear()
        on_gpu = next(model.parameters()).device.type == "cuda"
        how = "reduce-overhead" if on_gpu else "default"  # the former takes CUDA graphs
        self.model, self.compiled = model, torch.compile(model, mode=how, dynamic=False)
        self.shapes: list[torch.Size] = []
        self.through_graph = self.eager = 0
        self.told = False

    def see(self, batch: Batch) -> None:
        """Note the first batch of an epoch: the shape to compile for."""
        self.shapes = [x.shape for x in batch.inputs]

    def network_for(self, batch: Batch) -> nn.Module:
        """Return what a batch goes through."""
        full = [x.shape for x in batch.inputs] == self.shapes
        self.through_graph, self.eager = self.through_graph + full, self.eager + (not full)
        return self.compiled if full else self.model

    def report(self) -> None:
        """Say once what ran eagerly by design, and whenever it happens what dynamo refused."""
        refused = counters["frames"]["total"] - counters["frames"]["ok"]
        if not self.told:
            n = self.shapes[0][0]
            print(
                f"compiled for batches of {n}: {self.through_graph} ran through the graph; "
                f"{self.eager} of another size and the evaluation ran eagerly"
            )
            self.told = True
        if refused:
            why = "; ".join(reason.split("\n")[0] for reason in counters["unimplemented"])
            print(f"not compiled, runs eagerly: {refused} functions ({why or 'no reason given'})")
            counters.clear()
