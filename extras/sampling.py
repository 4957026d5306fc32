"""A faster copy of a model for sampling, for load(..., fast=True) and --compile=True

The copy has the same Parameters: the model stays as it is, and may be trained, moved or given other
weights, all of which takes effect."""
import operator
import warnings
import weakref
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import extras.cpu as cpu
import extras.cuda as cuda
from model import GPT, Attention, KVCache


class Sampler:
    """copy_of(model) is a GPT that generates the same, faster."""

    def __init__(self, compile: bool = False):
        self.compile = compile
        self.copy = None
        self.copied = []                # the modules and Parameters that the copy is of
        self.place = None               # their precision and device

    def __reduce__(self):
        return Sampler, (self.compile,)

    def copy_of(self, model: GPT) -> GPT:
        layers = list(model.modules())
        if any(has_own_calls(layer) for layer in layers):
            return model                # what was hung into it acts there only
        copied = [*layers, *model.parameters()]
        place = model.wte.weight.dtype, model.wte.weight.device
        is_same = len(copied) == len(self.copied) and all(map(operator.is_, copied, self.copied))
        if not is_same or place != self.place:
            self.copy, self.copied, self.place = make_copy(model, self.compile), copied, place
        for layer in self.copy.modules():
            if isinstance(layer, cpu.PackedLinear | cpu.SamplingAttention):
                layer.pack()            # the weights may have changed in place
        return self.copy


def has_own_calls(layer: nn.Module) -> bool:
    """Whether a layer has hooks, or computes its weights, as when it is pruned."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or is_parametrized(layer)


def make_copy(model: GPT, compile: bool) -> GPT:
    shared = {id(p): p for p in model.parameters()}
    copy = deepcopy(model, shared).eval()
    copy.__class__ = type('FastGPT', (FastGPT, type(model)), {})
    copy.graphs = weakref.WeakKeyDictionary()
    for layer in (copy, *copy.h):
        layer.drop = nn.Identity()      # in sampling nothing is dropped
    weight, block_size = model.wte.weight, model.config.block_size
    is_plain = {block: cpu.is_plain_attention(block.attn, block_size) for block in copy.h}
    if weight.device.type == 'cpu':
        if weight.dtype == torch.bfloat16:
            copy.cache_class = cpu.FloatCache
        for block in copy.h:
            if is_plain[block]:
                can_join = not compile and cpu.can_sample_with(block.attn)
                block.attn.__class__ = cpu.SamplingAttention if can_join else cpu.CPUAttention
        if compile or cpu.can_pack(weight):
            for layer in copy.modules():
                if type(layer) is nn.Linear:
                    layer.__class__ = cpu.RowSumLinear if compile else cpu.PackedLinear
    if (compile or weight.device.type == 'cuda') and all(is_plain.values()):
        for block in copy.h:
            block.attn.__class__ = type('Static', (StaticAttention, type(block.attn)), {})
        copy.step = compiled_step(copy) if compile else plain_step(copy)
    return copy


class FastGPT(GPT):
    """A GPT whose step of one token can be compiled."""
    cache_class = KVCache
    step = None                         # of a single token, with a StaticCache
    graphs = None                       # on GPUs: the CapturedStep of each text, by its first cache

    def new_caches(self) -> list[KVCache]:
        return [self.cache_class(self.config.block_size) for _ in self.h]

    def next_logits(self, idx: Tensor, caches: list[KVCache]) -> Tensor:
        if self.step is None and not idx.is_cuda:           # no cuDNN that must be avoided
            return self.lm_head(self.hidden(idx, caches)[:, -1]).float()
        if self.step is None or idx.shape[1] > 1 or caches[0].length == 0:
            return super().next_logits(idx, caches)
        # A copy, as each text has other strides, for which the step would be compiled anew.
        idx = idx.clone(memory_format=torch.contiguous_format)
        first = caches[0]
        position = first.length
        for cache in caches:
            cache.length += 1
        keys, values = [cache.k for cache in caches], [cache.v for cache in caches]
        if not idx.is_cuda:
            return self.step(idx, torch.tensor([position]), keys, values)
        if first not in self.graphs:
            self.graphs[first] = cuda.CapturedStep(self.step, idx, position, keys, values)
        return self.graphs[first](idx)


class StaticCache:
    """Within a compiled step: a KVCache whose shapes do not depend on the number of tokens that
    were read: length is a tensor (1,). Unused memory is zeros, as a mask hides no inf or nan."""

    def __init__(self, k: Tensor, v: Tensor, length: Tensor):
        self.k, self.v, self.length = k, v, length

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k.index_copy_(2, self.length, k.to(self.k.dtype))
        self.v.index_copy_(2, self.length, v.to(self.v.dtype))
        return self.k, self.v


class StaticAttention(Attention):
    """Attention that may have a StaticCache, whose unused keys a token must not see."""

    def forward(self, x: Tensor, rope=None, cache=None) -> Tensor:
        self.length = cache.length if isinstance(cache, StaticCache) else None
        return super().forward(x, rope, cache)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.length is None:
            return super().attend(q, k, v)
        mask = (torch.arange(k.shape[2], device=k.device) <= self.length)[None]         # (1, S)
        y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, mask,
                                           enable_gqa=self.n_head != self.n_kv_head)
        return y.type_as(q)


def plain_step(copy: GPT):
    """A function: ids (B, 1), position (1,), keys and values of each layer -> logits (B, V)."""
    def step(idx, position, keys, values):
        caches = [StaticCache(k, v, position) for k, v in zip(keys, values)]
        return copy.lm_head(copy.hidden(idx, caches)[:, -1]).float()

    return step


def compiled_step(copy: GPT):
    """plain_step, compiled."""
    step = plain_step(copy)
    compiled = torch.compile(step, fullgraph=True, dynamic=False)

    def step_or_warn(*inputs):
        try:
            return compiled(*inputs)
        except Exception as e:          # no compiler, or too many shapes
            if not type(e).__module__.startswith(('torch._dynamo', 'torch._inductor')):
                raise
            warnings.warn('not compiled: ' + str(e).partition('\n')[0], stacklevel=2)
            copy.step = step
            return step(*inputs)

    return step_or_warn
