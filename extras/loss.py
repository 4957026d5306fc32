"""The loss in less memory, for models with a large vocabulary.

GPT-2's logits of 12 windows of 1,024 tokens take 2.5 GB in fp32, and their gradients as much."""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from model import GPT

MAX_LOGITS = 2 ** 25        # the most logits that are computed at once: 128 MiB in fp32


@torch.no_grad()
def save_memory(model: GPT):
    """Let a model compute its loss in pieces, unless GPT.loss was changed."""
    device, config = model.wte.weight.device, model.config
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, config.n_embd, generator=random).to(device)
    targets = torch.tensor([0, -1, config.vocab_size - 1, 0, 0], device=device)
    found = loss_in_pieces(model.lm_head, x, targets, rows=2)
    if type(model) is GPT and torch.allclose(found, model.loss(x, targets), rtol=1e-3):
        model.__class__ = SmallGPT


class SmallGPT(GPT):
    """A GPT whose loss never holds the logits of all tokens. Compiled, the plain loss is used: it
    needs less memory there, too."""

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, MAX_LOGITS // self.config.vocab_size)
        if len(x) <= rows or torch.compiler.is_compiling():
            return super().loss(x, targets)
        return loss_in_pieces(self.lm_head, x, targets, rows)


def loss_in_pieces(lm_head, x: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Mean cross-entropy of targets (N,) after x (N, C). The logits are computed for so many rows
    at once, and once more in the backward pass."""
    def sum_of_losses(x, targets):
        logits = lm_head(x).float()                                     # (rows, V)
        return F.cross_entropy(logits, targets, ignore_index=-1, reduction='sum')

    total = 0.0
    for piece_x, piece_targets in zip(x.split(rows), targets.split(rows)):
        total += recompute(sum_of_losses, piece_x, piece_targets, use_reentrant=False)
    return total / (targets >= 0).sum()
