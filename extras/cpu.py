"""Faster routines for training and sampling on CPUs, swapped into a model from outside.

Training: memory is kept between steps, and in bf16 attention is computed by plain products.
Sampling, used by extras/sampling.py: packed weights in bf16, sums of rows when compiled."""
import ctypes
import math
import sys
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Attention, rotary, rotate

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3     # of glibc's mallopt
LONGEST = 512                                   # tokens up to which plain products are faster


def speed_up_training(model: nn.Module):
    """Swap the faster routines into a model on a CPU."""
    keep_memory()
    for block in model.h:
        if is_plain_attention(block.attn, model.config.block_size):
            block.attn.__class__ = CPUAttention


@torch.no_grad()
def is_plain_attention(layer: Attention, block_size: int) -> bool:
    """Whether a layer has causal attention as it comes: not if Attention.attend was changed, so
    that a routine in this folder would compute something else."""
    if type(layer) is not Attention:
        return False
    random, weight = torch.Generator().manual_seed(0), layer.c_attn.weight
    q, k, v = (torch.randn(1, heads, block_size, layer.head_dim, generator=random).to(weight)
               for heads in (layer.n_head, layer.n_kv_head, layer.n_kv_head))
    was_training = layer.training
    layer.eval()                                            # without dropout
    try:
        found = layer.attend(q, k, v)
    except TypeError:                                       # it wants other arguments
        return False
    finally:
        layer.train(was_training)
    expected = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=layer.n_head != layer.n_kv_head)
    return torch.allclose(found, expected, atol=1e-4)


def keep_memory():
    """Make glibc keep freed memory: it would give large tensors back, and every step fault them
    in anew."""
    if sys.platform == 'linux':
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
            libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


class CPUAttention(Attention):
    """The same attention in bf16: by plain products in training, elsewhere by the fused kernel
    in fp32, which is faster there than in bf16."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch.bfloat16 not in (q.dtype, v.dtype):
            return super().attend(q, k, v)
        if torch.is_grad_enabled() and q.shape[2] == k.shape[2] <= LONGEST:
            return self.plain_products(q.bfloat16(), k.bfloat16(), v.bfloat16())
        q, k, v = q.float(), k.float(), v.float()
        if not torch.is_autocast_enabled('cpu'):
            return super().attend(q, k, v).bfloat16()
        with torch.autocast('cpu', enabled=False):
            return super().attend(q, k, v).bfloat16()

    def plain_products(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention from q (B, H, T, D) and k, v (B, K, T, D), as (B, H, T, D)."""
        B, H, T, D = q.shape
        k, v = k.flatten(0, 1), v.flatten(0, 1)             # (B K, T, D)
        q = q.reshape(len(k), -1, D)                  # (B K, H/K T, D): those that share their keys
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1).repeat(q.shape[1] // T, 1)
        weights = torch.baddbmm(future, q, k.mT, alpha=D ** -0.5).softmax(-1)
        y = F.dropout(weights, self.dropout, self.training) @ v
        return y.view(B, H, T, D)


class SamplingAttention(CPUAttention):
    """CPUAttention of qwen3 that norms and rotates queries and keys together: for single tokens
    the number of operations counts, not their size."""

    def pack(self):
        weights = [self.q_norm.weight] * self.n_head + [self.k_norm.weight] * self.n_kv_head
        self.qk_weight = torch.stack(weights).detach().float()          # (H + K, D)

    def forward(self, x: Tensor, rope=None) -> Tensor:
        B, T, _ = x.shape
        H, K, D = self.n_head, self.n_kv_head, self.head_dim
        qk, v = self.c_attn(x).split(((H + K) * D, K * D), dim=2)
        qk = F.rms_norm(qk.view(B, T, H + K, D).float(), (D,), eps=self.q_norm.eps) * self.qk_weight
        if rope is not None:
            qk = rotate(qk, rope)
        q, k = qk.transpose(1, 2).split((H, K), dim=1)
        v = v.view(B, T, K, D).transpose(1, 2)                          # (B, K, T, D)
        y = self.attend(q.type_as(x), k.type_as(x), v)                  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, H * D))


def can_sample_with(layer: Attention) -> bool:
    """Whether SamplingAttention computes what the forward of this layer does."""
    norms, dtype = (layer.q_norm, layer.k_norm), layer.c_attn.weight.dtype
    if not all(isinstance(norm, nn.RMSNorm) for norm in norms):
        return False
    if dtype not in (torch.float32, torch.bfloat16):        # it computes in float32
        return False
    tokens = torch.arange(5)
    x = torch.randn(1, 5, layer.c_attn.in_features, generator=torch.Generator().manual_seed(0))
    fast = deepcopy(layer).float()
    rope = rotary(tokens, layer.head_dim, 10000.0)
    expected = fast(x, rope)
    fast.__class__ = SamplingAttention
    fast.pack()
    return torch.allclose(fast(x, rope), expected, atol=1e-4)


class PackedLinear(nn.Linear):
    """A linear layer with its bf16 weights in the layout that oneDNN reads fastest, as a copy."""

    def pack(self):
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, 'none', [], '')


def can_pack(weight: Tensor) -> bool:
    """Whether PackedLinear works with this weight, on this machine."""
    if weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class RowSumLinear(nn.Linear):
    """A linear layer for compiled steps of one token: Inductor reads weights faster in sums of
    rows than in a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-1].numel() > 1:
            return super().forward(x)
        y = (x.unsqueeze(-2).float() * self.weight.float()).sum(-1)
        return (y if self.bias is None else y + self.bias).to(x.dtype)
