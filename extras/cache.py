"""Attention that remembers the keys and values of a text, for extras/sampling.py. S: all tokens
that were read so far, T: the new ones."""
import contextlib
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT, Attention


class KVCache:
    """Keys and values of the tokens that a layer has read, so that each is computed once."""

    def __init__(self, room: int, length=0, k: Tensor | None = None, v: Tensor | None = None):
        self.room = room                                    # the most tokens that it holds
        self.length = length                                # tokens read so far
        self.k, self.v = k, v                               # (B, K, room, D) each

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the next T tokens' keys and values, (B, K, T, D) each; return those of all tokens
        read so far, (B, K, S, D) each."""
        B, K, T, D = k.shape
        if self.k is None:
            self.k = k.new_zeros(B, K, self.room, D)
            self.v = v.new_zeros(B, K, self.room, D)
        start, self.length = self.length, self.length + T
        self.k[:, :, start:self.length] = k
        self.v[:, :, start:self.length] = v
        return self.k[:, :, :self.length], self.v[:, :, :self.length]


class FloatCache(KVCache):
    """Keys and values in fp32, in which CPUs attend faster, of a model in bf16."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return super().append(k.float(), v.float())


class StaticCache(KVCache):
    """For a step that is captured as a CUDA graph: length is a tensor (1,), so no shape depends on
    it. Unused memory must be zeros, as a mask does not hide inf or nan."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k.index_copy_(2, self.length, k.to(self.k.dtype))
        self.v.index_copy_(2, self.length, v.to(self.v.dtype))
        return self.k, self.v


class CachedAttention(Attention):
    """Attention to the tokens of its cache and the new ones: the first tokens of a text, or one."""
    cache = None                        # set by attending_to

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.cache.append(k, v)                                  # (B, K, S, D)
        mask = None                     # a single token sees all
        if isinstance(self.cache, StaticCache):
            mask = (torch.arange(k.shape[2], device=k.device) <= self.cache.length)[None]   # (1, S)
        elif q.shape[2] > 1:
            return super().attend(q, k, v)
        y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, mask,
                                           enable_gqa=self.n_head != self.n_kv_head)
        return y.type_as(q)


@contextlib.contextmanager
def attending_to(copy: GPT, caches: list):
    """Let each layer use its cache."""
    for block, cache in zip(copy.h, caches):
        block.attn.cache = cache
    yield
    for block in copy.h:
        block.attn.cache = None


# ---- a step of one token
def plain_step(copy: GPT):
    """A function: ids (B, 1), the number of tokens read before, keys and values of each layer ->
    logits (B, V). On a GPU that number is a tensor (1,), so that one graph serves every step."""
    kind = StaticCache if copy.wte.weight.is_cuda else copy.cache_class

    def step(idx, read, keys, values):
        caches = [kind(k.shape[2], read, k, v) for k, v in zip(keys, values)]
        with attending_to(copy, caches):
            return copy.lm_head(copy.hidden(idx, read)[:, -1]).float()

    return step


def compiled_step(copy: GPT):
    """plain_step, compiled once for all numbers of tokens from 2 on."""
    step, is_cuda = plain_step(copy), copy.wte.weight.is_cuda
    # On CPUs, compute the input of a matrix product once, not again for each row of the matrix;
    # only the conversion of a weight stays in the loop that adds.
    options = {} if is_cuda else {'realize_opcount_threshold': 8, 'realize_reads_threshold': 1}
    compiled = torch.compile(step, fullgraph=True, dynamic=not is_cuda, options=options)

    def step_or_warn(idx, read, keys, values):
        nonlocal compiled
        inputs = idx, read, keys, values
        if not is_cuda and read == 1:           # for which torch.compile would make another one
            return step(*inputs)
        try:
            return compiled(*inputs)
        except Exception as e:          # no compiler, or too many shapes
            if not type(e).__module__.startswith(('torch._dynamo', 'torch._inductor')):
                raise
            warnings.warn('not compiled: ' + str(e).partition('\n')[0], stacklevel=2)
            compiled = step
            return step(*inputs)

    return step_or_warn
