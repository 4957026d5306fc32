"""A faster copy of a model for sampling, for load(..., fast=True) and --compile=True

The copy shares the model's weights, and takes them anew at each call: the model itself stays as
it is, may be trained, moved or replaced, and all of it takes effect."""
import warnings

import torch
from torch import Tensor, nn

from extras import cpu
from model import GPT, KVCache


class Sampler:
    """copy_of(model) is a GPT that generates the same, faster."""

    def __init__(self, compile: bool = False):
        self.compile = compile
        self.model = None               # the copy is of this model
        self.copy = None

    def __reduce__(self):
        return Sampler, (self.compile,)

    def copy_of(self, model: GPT) -> GPT:
        if model is not self.model:
            self.model, self.copy = model, make_copy(model, self.compile)
        self.copy.load_state_dict(model.state_dict(), assign=True)      # shares the tensors
        self.copy.eval()
        for layer in self.copy.modules():
            if isinstance(layer, cpu.PackedLinear):
                layer.pack()
        return self.copy


def make_copy(model: GPT, compile: bool) -> GPT:
    weight = model.wte.weight
    with torch.device('meta'):          # the weights come later
        copy = type('FastGPT', (FastGPT, type(model)), {})(model.config)
    if weight.device.type == 'cpu':
        copy.keep_top_p = cpu.keep_top_p
        copy.cache_dtype = torch.float32 if weight.dtype == torch.bfloat16 else None
        for block in copy.h:
            block.attn.__class__ = cpu.CPUAttention
        if compile or cpu.can_pack(weight):
            for layer in copy.modules():
                if type(layer) is nn.Linear:
                    layer.__class__ = cpu.RowSumLinear if compile else cpu.PackedLinear
    if compile:
        copy.step = compiled_step(copy)
    return copy


class FastGPT(GPT):
    """A GPT whose step of one token can be compiled."""
    cache_dtype = None
    step = None

    def new_caches(self) -> list[KVCache]:
        block_size, device = self.config.block_size, self.wte.weight.device
        return [KVCache(block_size, device, self.cache_dtype) for _ in self.h]

    def next_logits(self, idx: Tensor, caches: list[KVCache]) -> Tensor:
        if self.step is None or idx.shape[1] > 1 or caches[0].length == 0:
            return super().next_logits(idx, caches)
        position = torch.tensor([caches[0].length], device=idx.device)
        for cache in caches:
            cache.length += 1
        keys, values = [cache.k for cache in caches], [cache.v for cache in caches]
        return self.step(idx, position, keys, values)


class StaticCache:
    """Within a compiled step: a KVCache whose shapes do not depend on the position of the token."""

    def __init__(self, k: Tensor, v: Tensor, position: Tensor):
        self.k, self.v, self.position = k, v, position

    def place(self, T: int) -> tuple[Tensor, Tensor]:
        keys = torch.arange(self.k.shape[2], device=self.k.device)
        return self.position, keys <= self.position[:, None]            # (1,), (1, block_size)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k.index_copy_(2, self.position, k.to(self.k.dtype))
        self.v.index_copy_(2, self.position, v.to(self.v.dtype))
        return self.k, self.v


def compiled_step(copy: GPT):
    """A compiled function: ids (B, 1), position (1,), keys and values of each layer -> logits
    (B, V)."""
    def step(idx, position, keys, values):
        caches = [StaticCache(k, v, position) for k, v in zip(keys, values)]
        return GPT.next_logits(copy, idx, caches)

    compiled = torch.compile(step, fullgraph=True, dynamic=False)

    def step_or_warn(*inputs):
        try:
            return compiled(*inputs)
        except Exception as e:        # no compiler here, or too many shapes: the step runs as it is
            if 'dynamo' not in type(e).__module__:
                raise
            warnings.warn('not compiled: ' + str(e).partition('\n')[0], stacklevel=2)
            copy.step = step
            return step(*inputs)

    return step_or_warn
