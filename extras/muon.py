"""A faster Muon: torch.optim.Muon computes in bf16 on any hardware, matrix by matrix, which can
take longer than the rest of a step. Here all matrices of one shape are computed together, in the
precision of the run. The state is the same, so either continues a run of the other."""
import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)         # Jordan's, of the Newton-Schulz iteration
SETTINGS = {'adjust_lr_fn': 'match_rms_adamw', 'nesterov': True, 'ns_steps': 5,
            'ns_coefficients': COEFFICIENTS}    # the only ones that FastMuon knows


def speed_up(optimizer: torch.optim.Muon, dtype: torch.dtype):
    """Let an optimizer compute its matrix products in dtype, those of one shape together, unless
    it has other settings than FastMuon knows."""
    for group in optimizer.param_groups:
        if any(group[name] != value for name, value in SETTINGS.items()):
            return
    optimizer.__class__ = FastMuon
    optimizer.dtype = dtype


class FastMuon(torch.optim.Muon):
    """Momentum whose updates are made orthogonal (Jordan et al. 2024), at the scale
    match_rms_adamw (Liu et al. 2025)."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = {}
            for p in group['params']:
                if p.grad is not None:
                    same_shape.setdefault(p.shape, []).append(p)
            for shape, matrices in same_shape.items():
                gradients = self.nesterov(matrices, group['momentum'])
                gradients = torch.stack(gradients)                          # (n, rows, columns)
                updates = orthogonalize(gradients, self.dtype).float()
                size = 0.2 * math.sqrt(max(shape))          # as large as AdamW's updates
                torch._foreach_mul_(matrices, 1 - group['lr'] * group['weight_decay'])
                torch._foreach_add_(matrices, list(updates), alpha=-group['lr'] * size)

    def nesterov(self, matrices: list[Tensor], momentum: float) -> list[Tensor]:
        """The gradients, averaged over the last steps (Nesterov's momentum)."""
        for p in matrices:
            if 'momentum_buffer' not in self.state[p]:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        gradients = [p.grad for p in matrices]
        averages = [self.state[p]['momentum_buffer'] for p in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, averages, momentum)


def orthogonalize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices x (n, rows, columns) with their singular values moved to about 1: five steps of a
    Newton-Schulz iteration."""
    first, third, fifth = COEFFICIENTS          # of x, x x' x and x x' x x' x
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.to(dtype)
    for _ in range(5):
        a = torch.bmm(x, x.mT)                              # fewer launches than with @
        b = torch.baddbmm(a, a, a, beta=third, alpha=fifth)             # third a + fifth a a
        x = torch.baddbmm(x, b, x, beta=first)                          # first x + b x
    return x.mT if is_tall else x
