"""Compiled sampling, for compile=True: the single-token step is compiled once.

On a CPU each matrix product becomes one loop over the weights, limited by memory bandwidth. On a
GPU the step also becomes one CUDA graph, because launching its hundreds of kernels one by one takes
longer than running them. The code that runs is still that of model.py."""
import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.terminal import warn
from model import GPT, KVCache


def compile_decoding(model: GPT) -> nn.Module:
    """A module that generates like `model`, with a compiled step and the same weights."""
    print('compiling (takes about half a minute)', file=sys.stderr)
    return CompiledGPT(model)


class CompiledGPT(nn.Module):
    """Generates like GPT, but the step of a single token is compiled."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model
        self.config = model.config
        self.wte = model.wte
        is_cuda = model.wte.weight.is_cuda
        backend = 'inductor' if is_cuda else compile_for_cpu
        self.step = torch.compile(decode, fullgraph=True, dynamic=not is_cuda, backend=backend)

    def generate(self, *args, **sampling):
        return GPT.generate(self, *args, **sampling)

    def new_cache(self, batch_size: int) -> KVCache:
        cache = self.model.new_cache(batch_size)
        # One position more than is ever read: a slice to the very end would trigger a recompile.
        cache.k = [F.pad(k, (0, 0, 0, 1)) for k in cache.k]
        cache.v = [F.pad(v, (0, 0, 0, 1)) for v in cache.v]
        return cache

    def next_logits(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) after ids (B, T), like GPT.next_logits."""
        is_decoding = idx.shape[1] == 1 and cache.length > 1    # 0 and 1 would recompile
        if self.step is None or not is_decoding:            # None: compiling has failed
            return self.model.next_logits(idx, cache)
        idx = idx.clone(memory_format=torch.contiguous_format)  # so would other strides
        try:
            if idx.is_cuda:
                logits = replay(self.model, self.step, idx, cache)
            else:
                logits = self.step(self.model, idx, cache.length, cache.k, cache.v)
        except Exception as e:                  # e.g. no C++ compiler
            if not type(e).__module__.startswith(('torch._dynamo', 'torch._inductor')):
                raise
            warn('torch.compile failed, running eagerly: ' + str(e).strip().partition('\n')[0])
            self.step = None
            return self.model.next_logits(idx, cache)
        cache.length += 1
        return logits


class StepCache(KVCache):
    """The tensors of a KVCache, for one step. On a CPU `length` is a number."""
    mask = None

    def __init__(self, length, k: list[Tensor], v: list[Tensor]):
        self.length, self.k, self.v = length, k, v


class GraphCache(StepCache):
    """A StepCache whose length is a tensor (1,): then no shape depends on it, and one CUDA graph
    serves every step. A mask hides positions not written yet, which must be finite: zeros."""

    def __init__(self, length: Tensor, k: list[Tensor], v: list[Tensor]):
        super().__init__(length, k, v)
        is_later = torch.arange(k[0].shape[2], device=length.device) > length
        mask = torch.zeros_like(is_later, dtype=k[0].dtype).masked_fill(is_later, -math.inf)
        self.mask = mask[None]                                          # (1, S)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k[layer].index_copy_(2, self.length, k)
        self.v[layer].index_copy_(2, self.length, v)
        return self.k[layer], self.v[layer]


def decode(model: GPT, idx: Tensor, length, k: list[Tensor], v: list[Tensor]) -> Tensor:
    """Logits (B, V) after ids (B, 1), which follow `length` tokens with keys k and values v."""
    cache = GraphCache(length, k, v) if idx.is_cuda else StepCache(length, k, v)
    return model.next_logits(idx, cache, cache.mask)


# ---- CPU
def compile_for_cpu(graph: torch.fx.GraphModule, inputs: list):
    """torch.compile's inductor backend, with linear_by_rows in place of F.linear."""
    from torch._inductor.compile_fx import compile_fx
    for node in graph.graph.nodes:
        if node.target in (F.linear, torch._C._nn.linear):
            node.target = linear_by_rows
    graph.recompile()
    # Compute the input of a matrix product once rather than once per row of the matrix.
    options = {'realize_opcount_threshold': 8, 'realize_reads_threshold': 1}
    return compile_fx(graph, inputs, config_patches=options)


def linear_by_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear. For a single token, inductor reads the weights faster as sums than as a product."""
    if x.shape[:-1].numel() > 1:
        return F.linear(x, weight, bias)
    y = (x.unsqueeze(-2).float() * weight.float()).sum(-1)
    return (y if bias is None else y + bias).to(x.dtype)


# ---- GPU
def replay(model: GPT, step, idx: Tensor, cache: KVCache) -> Tensor:
    """Run `step` as a CUDA graph, captured on a cache's first step."""
    if not hasattr(cache, 'graph'):
        cache.idx = idx.clone()                                         # (B, 1)
        cache.position = torch.tensor([cache.length], device=idx.device)        # (1,)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):         # once without the graph, to compile
            step(model, cache.idx, cache.position, cache.k, cache.v)
        torch.cuda.current_stream().wait_stream(stream)
        cache.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(cache.graph):
            cache.logits = step(model, cache.idx, cache.position, cache.k, cache.v)     # (B, V)
    cache.idx.copy_(idx)
    cache.position.fill_(cache.length)
    cache.graph.replay()
    return cache.logits.clone()
