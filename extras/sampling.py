"""A faster copy of a model for sampling, for load(..., fast=True) and --compile=True

The copy has the same Parameters: the model stays as it is, and may be trained, moved or given other
weights, all of which takes effect."""
import operator
from copy import copy as shallow_copy
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import extras.cpu as cpu
import extras.cuda as cuda
from extras.cache import (
    CachedAttention,
    FloatCache,
    KVCache,
    attending_to,
    compiled_step,
    plain_step,
)
from model import GPT, Attention


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
        else:
            pack(self.copy)             # the weights may have changed in place
        return self.copy


def has_own_calls(layer: nn.Module) -> bool:
    """Whether a layer has hooks, or computes its weights, as when it is pruned."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or is_parametrized(layer)


def make_copy(model: GPT, compile: bool) -> GPT:
    """A FastGPT with the Parameters of the model; the model itself if it would compute something
    else, as the network was changed in a way that caches do not follow."""
    weight, block_size = model.wte.weight, model.config.block_size
    if not all(cpu.is_plain_attention(block.attn, block_size) for block in model.h):
        return model
    shared = {id(p): p for p in model.parameters()}
    copy = deepcopy(model, shared).eval()
    copy.__class__ = type('FastGPT', (FastGPT, type(model)), {})
    for layer in (copy, *copy.h):
        layer.drop = nn.Identity()      # in sampling nothing is dropped
    try:
        swap_layers(copy, compile)
        is_same = computes_the_same(copy, model)
    except Exception:                   # changed layers may want other arguments
        is_same = False
    if not is_same:
        return model
    if compile:
        copy.step = compiled_step(copy)
    elif weight.device.type == 'cuda':
        copy.step = plain_step(copy)
    return copy


def swap_layers(copy: GPT, compile: bool):
    """Give the layers of a copy the classes that are fastest on its device."""
    weight = copy.wte.weight
    for block in copy.h:
        kind = Attention
        if weight.device.type == 'cpu':
            can_join = not compile and cpu.can_sample_with(block.attn)
            kind = cpu.SamplingAttention if can_join else cpu.CPUAttention
        block.attn.__class__ = type('Cached', (CachedAttention, kind), {})
    if weight.device.type == 'cpu' and weight.dtype == torch.bfloat16:
        copy.cache_class = FloatCache
    if weight.device.type == 'cpu' and (compile or cpu.can_pack(weight)):
        for layer in copy.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = cpu.RowSumLinear if compile else cpu.PackedLinear
    pack(copy)


def pack(copy: GPT):
    """Let the layers of a copy prepare what they compute from the weights, which may be new."""
    for layer in copy.modules():
        if isinstance(layer, cpu.PackedLinear | cpu.SamplingAttention):
            layer.pack()


@torch.inference_mode()
def computes_the_same(copy: GPT, model: GPT) -> bool:
    """Whether a copy that remembers its text gives the logits of the model, up to rounding."""
    was_training = model.training
    model.eval()
    n = min(24, model.config.block_size)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, n), generator=random)
    ids = ids.to(model.wte.weight.device)
    text = copy.new_text()
    try:
        for end in range(max(1, n - 4), n + 1):         # the first ones at once, then one by one
            found = text.next_logits(ids[:, :end])
        expected = model.next_logits(ids)
    finally:
        model.train(was_training)
    is_precise = expected.device.type == 'cpu' and model.wte.weight.dtype == torch.float32
    tolerance = 1e-3 if is_precise else 0.05            # fp32 may be TF32 on a GPU
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


class FastGPT(GPT):
    """A GPT that remembers the keys and values of a text, and whose steps of one token can be
    compiled."""
    cache_class = KVCache
    caches = None                       # a cache for each layer
    graph = None                        # on a GPU: the CapturedStep that uses these caches
    step = None                         # plain_step or compiled_step of it, if they are faster

    def new_text(self) -> GPT:
        """A model that shares all with this one, but has caches of its own."""
        text = shallow_copy(self)
        text.caches = None
        return text

    def generate(self, *args, **knobs):
        return super(FastGPT, self.new_text()).generate(*args, **knobs)

    def next_logits(self, idx: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, T), which begin with those that the caches have read, unless
        a context begins: a prompt, or the last half of one."""
        if self.caches is None or idx.shape[1] <= self.caches[0].length:
            room = self.config.block_size
            if not idx.is_cuda:
                room += 1                   # a slice up to the very end would be compiled anew
            self.caches = [self.cache_class(room) for _ in self.h]
            self.graph = None
        read = self.caches[0].length
        new = idx[:, read:]                                             # (B, T - read)
        if read == 0:
            with attending_to(self, self.caches):
                return super().next_logits(new)
        if self.step is None:
            with attending_to(self, self.caches):
                return self.lm_head(self.hidden(new, read)[:, -1]).float()
        # A copy, as the strides of this slice change, and the step would be compiled anew.
        new = new.clone(memory_format=torch.contiguous_format)
        for cache in self.caches:
            cache.length += 1
        keys, values = [cache.k for cache in self.caches], [cache.v for cache in self.caches]
        if not new.is_cuda:
            return self.step(new, read, keys, values)
        if self.graph is None:
            self.graph = cuda.CapturedStep(self.step, new, read, keys, values)
        return self.graph(new)
