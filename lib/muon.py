"""The Muon optimizer, with AdamW for everything except weight matrices."""
import torch
from torch import Tensor


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the matrices in groups with use_muon=True, AdamW for the rest.

    Muon orthogonalizes each matrix's momentum, so that the update is about equally large in all
    directions.
    Updates are scaled to the RMS of AdamW's (Liu et al. 2025), so both can share a learning rate
    and weight decay. The Newton-Schulz matmuls run in `dtype`."""

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float],
                 dtype: torch.dtype = torch.bfloat16):
        # Fused on the CPU only: on a GPU, GradScaler leaves it to a fused optimizer to skip an
        # overflowed fp16 step, and then the Muon updates would not be skipped.
        is_on_cpu = groups[0]['params'][0].device.type == 'cpu'
        super().__init__(groups, lr, betas, fused=is_on_cpu)
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if group['use_muon']:
                matrices = [p for p in group['params'] if p.ndim == 2 and p.grad is not None]
                self.update_matrices(matrices, group)
                for p in matrices:
                    p.grad = None               # done; AdamW skips parameters without a gradient
        super().step()

    def update_matrices(self, matrices: list[Tensor], group: dict):
        """Update matrices of a group, batching those of the same shape."""
        same_shape = {}
        for p in matrices:
            same_shape.setdefault(p.shape, []).append(p)
        for shape, matrices in same_shape.items():
            momenta = self.nesterov_momenta(matrices)
            updates = orthogonalize(torch.stack(momenta), self.dtype).float()   # (n, rows, columns)
            size = 0.2 * max(shape) ** 0.5                  # matches the RMS of an AdamW update
            torch._foreach_mul_(matrices, 1 - group['lr'] * group['weight_decay'])
            torch._foreach_add_(matrices, list(updates), alpha=-group['lr'] * size)

    def nesterov_momenta(self, matrices: list[Tensor]) -> list[Tensor]:
        """Update each matrix's momentum and return its Nesterov momentum.

        The momentum warms up from 0.85 to 0.95 over 300 steps: early gradients go stale fast."""
        momenta = []
        for p in matrices:
            state = self.state[p]
            if not state:
                state['step'] = torch.tensor(0.0)
                state['momentum'] = torch.zeros_like(p)
            state['step'] += 1
            decay = 0.85 + 0.1 * min(1, state['step'].item() / 300)
            state['momentum'].lerp_(p.grad, 1 - decay)
            momenta.append(p.grad.lerp(state['momentum'], decay))
        return momenta


def orthogonalize(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of matrices x (n, rows, columns) close to 1 with five steps of
    Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        s = x @ x.mT                                        # (n, rows, rows)
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if is_tall else x
