"""The GPT: config, layers, loss, and then generation with a KV cache.

It only needs torch, so you can copy this file into any project. Dimensions, in all files:
B batch, T time (tokens), C channels (n_embd), H heads, K key/value heads, D head size (head_dim),
V vocabulary, S number of keys/values: T, plus the tokens already in the cache if there is one."""
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

MAX_LOGITS = 2 ** 25        # largest chunk of logits in the loss: 128 MiB in fp32
# GPT-2: Radford et al. 2019. Qwen3: Yang et al. 2025
ARCHITECTURES = {
    'gpt2': {'positions': 'learned', 'norm': 'layer', 'mlp': 'gelu', 'qk_norm': 'none'},
    'qwen3': {'positions': 'rope', 'norm': 'rms', 'mlp': 'swiglu', 'qk_norm': 'rms'}}


@dataclass
class GPTConfig:
    """The config of a GPT. Fields with a default are settings of train.py. Raises ValueError
    if a field is invalid, naming the field.

    positions, norm, mlp and qk_norm default to those of arch."""
    vocab_size: int             # rows of the embedding matrix, possibly padded
    arch: Literal['qwen3', 'gpt2'] = 'qwen3'    # qwen3 or gpt2: presets for the switches below
    block_size: int = 256       # context length in tokens
    n_layer: int = 4            # number of blocks
    n_head: int = 4             # attention heads
    n_kv_head: int = 0          # key/value heads for GQA; 0 = n_head
    n_embd: int = 128           # channels of the residual stream
    head_dim: int = 0           # channels per head; 0 = n_embd / n_head
    n_inner: int = 0            # hidden size of the MLP; 0 = 4 n_embd, or 8/3 n_embd for swiglu
    dropout: float = 0.0        # dropout probability; above 0 helps when training for many epochs
    bias: bool = False          # biases in linear layers and LayerNorm
    tie_weights: bool = True    # share the embedding matrix with the output layer
    fused_attention: bool = True    # False = attend(), which is faster on CPUs up to block_size=512
    rope_theta: float = 10000.0     # base of the RoPE frequencies
    norm_eps: float = 0.0       # epsilon of the norms; 0 = 1e-5, or 1e-6 for rms
    # architecture switches; '' = as in arch
    positions: Literal['', 'rope', 'learned'] = ''  # rope or learned
    norm: Literal['', 'rms', 'layer'] = ''      # rms or layer
    mlp: Literal['', 'swiglu', 'gelu'] = ''     # swiglu or gelu
    qk_norm: Literal['', 'rms', 'none'] = ''    # norm of queries and keys: rms or none

    def __post_init__(self):
        check_ranges(self)
        for name, value in ARCHITECTURES[self.arch].items():
            setattr(self, name, getattr(self, name) or value)
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_kv_head = self.n_kv_head or self.n_head
        if self.n_inner == 0:
            multiple_of_32 = math.ceil(self.n_embd / 12) * 32       # 8/3 n_embd, rounded up
            self.n_inner = multiple_of_32 if self.mlp == 'swiglu' else 4 * self.n_embd
        if self.norm_eps == 0:
            self.norm_eps = 1e-6 if self.norm == 'rms' else 1e-5
        check_shape(self)


# ---- attention
def attend(q: Tensor, k: Tensor, v: Tensor, mask=None, dropout: float = 0.0) -> Tensor:
    """Attention (Vaswani et al. 2017): softmax(q k^T / sqrt(D) + mask) v, (B, H, T, D), for
    q (B, H, T, D), k and v (B, K, S, D). mask: broadcastable to (T, S); None = causal."""
    H, K, D = q.shape[1], k.shape[1], q.shape[3]
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2], q.device)            # (T, S)
    if H != K:                                              # GQA: repeat for each query head
        k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
    scores = (q / math.sqrt(D)) @ k.mT + mask.to(q.dtype)               # (B, H, T, S)
    weights = F.dropout(scores.softmax(dim=-1), dropout)                # (B, H, T, S)
    return weights @ v                                                  # (B, H, T, D)


def fused_attend(q: Tensor, k: Tensor, v: Tensor, mask=None, dropout: float = 0.0) -> Tensor:
    """The same with PyTorch's kernel, which never materializes the scores."""
    T, S = q.shape[2], k.shape[2]
    is_grouped = q.shape[1] != k.shape[1]
    is_causal = mask is None and 1 < T == S                 # faster than a mask
    if mask is None and 1 < T < S:
        mask = causal_mask(T, S, q.device)
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, enable_gqa=is_grouped)


def causal_mask(T: int, S: int, device) -> Tensor:
    """Mask (T, S) for the last T of S tokens: 0 at the tokens that each may attend to (itself and
    earlier ones), -inf at later ones."""
    return torch.full((T, S), -math.inf, device=device).triu(S - T + 1)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (T, 1, D/2) each, of the RoPE angles (Su et al. 2021) for positions (T,):
    one angle per channel pair."""
    channels = torch.arange(0, head_dim, 2, device=positions.device)
    frequencies = theta ** (-channels.float() / head_dim)               # (D/2,)
    angles = positions[:, None, None] * frequencies                     # (T, 1, D/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the channel pairs (x_i, x_(i + D/2)) of x (B, T, heads, D) by the angles
    of their position, so that query-key products depend only on relative position."""
    cos, sin = rope                                                     # (T, 1, D/2)
    a, b = x.chunk(2, dim=-1)                                           # (B, T, heads, D/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class RMSNorm(nn.RMSNorm):
    """RMS normalization (Zhang and Sennrich 2019), computed in the dtype of its weight: fp32 in
    training, where the squares of an fp16 x could overflow."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention: each token attends to itself and earlier tokens.

    With n_kv_head < n_head, it is grouped-query attention (GQA, Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.fused = config.fused_attention
        C, H, K, D = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
        self.q_proj = nn.Linear(C, H * D, config.bias)
        self.k_proj = nn.Linear(C, K * D, config.bias)
        self.v_proj = nn.Linear(C, K * D, config.bias)
        self.o_proj = nn.Linear(H * D, C, config.bias)
        self.q_norm = self.k_norm = nn.Identity()
        if config.qk_norm == 'rms':
            self.q_norm = RMSNorm(D, config.norm_eps)
            self.k_norm = RMSNorm(D, config.norm_eps)

    def forward(self, x: Tensor, rope=None, cache=None, mask=None) -> Tensor:
        B, T, _ = x.shape                                               # (B, T, C)
        H, K, D = self.n_head, self.n_kv_head, self.head_dim
        q = self.q_norm(self.q_proj(x).view(B, T, H, D))                # queries: what to look for
        k = self.k_norm(self.k_proj(x).view(B, T, K, D))                # keys: what to offer
        v = self.v_proj(x).view(B, T, K, D)                             # values: what to pass on
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))                # (B, H or K, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                       # (B, K, S, D)
            q = q.to(k.dtype)                                           # a cache may be in fp32
        dropout = self.dropout if self.training else 0.0
        attention = fused_attend if self.fused else attend
        y = attention(q, k, v, mask, dropout).to(x.dtype)               # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * D))      # (B, T, C)


# ---- the rest of the network
class MLP(nn.Module):
    """GELU (tanh approximation), or SwiGLU (Shazeer 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.is_gated = config.mlp == 'swiglu'
        if self.is_gated:
            self.gate_proj = nn.Linear(config.n_embd, config.n_inner, config.bias)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, config.bias)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up_proj(x)                                             # (B, T, n_inner)
        if self.is_gated:
            h = F.silu(self.gate_proj(x)) * h
        else:
            h = F.gelu(h, approximate='tanh')
        return self.down_proj(h)                                        # (B, T, C)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == 'layer':
        return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
    return RMSNorm(config.n_embd, config.norm_eps)


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each with a residual connection."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.norm_1 = make_norm(config)
        self.attn = Attention(config, layer)
        self.norm_2 = make_norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope=None, cache=None, mask=None) -> Tensor:
        x = x + self.drop(self.attn(self.norm_1(x), rope, cache, mask))
        x = x + self.drop(self.mlp(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == 'learned':
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        if not self.wte.weight.is_meta:                     # meta tensors have no values
            self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Each block adds two outputs to the residual stream. Scaling down the weights that produce
        # them keeps the stream's variance at init independent of depth (Radford et al. 2019).
        for block in self.h:
            for layer in (block.attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())            # a tied matrix counts once

    def hidden(self, idx: Tensor, cache=None, mask=None) -> Tensor:
        """Final hidden states (B, T, C) of ids (B, T). With a cache, the ids follow the tokens in
        it and are appended to it. A mask (T, S) of floats, added to the scores, replaces the
        causal one."""
        T, block_size = idx.shape[1], self.config.block_size
        check(T <= block_size, f'{T} tokens exceed block_size={block_size}')
        start = 0 if cache is None else cache.length
        positions = start + torch.arange(T, device=idx.device)          # (T,)
        x = self.wte(idx)                                               # (B, T, C)
        rope = None
        if self.config.positions == 'learned':
            x = x + self.wpe(positions)
        else:
            rope = rotary(positions, self.config.head_dim, self.config.rope_theta)
        x = self.drop(x)
        for block in self.h:
            x = block(x, rope, cache, mask)                             # (B, T, C)
        if cache is not None:
            cache.length += T
        return self.norm_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., C)."""
        return self.lm_head(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None, mask=None) -> Tensor:
        """Logits (B, T, V) for ids (B, T). With targets (B, T), their mean cross-entropy in nats
        instead; targets of -1 are ignored."""
        x = self.hidden(idx, mask=mask)                                 # (B, T, C)
        if targets is None:
            return self.logits(x)                                       # (B, T, V)
        return self.loss(x.flatten(0, 1), targets.flatten())

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of targets (N,) given final hidden states x (N, C)."""
        rows = max(1, MAX_LOGITS // self.config.vocab_size)
        if len(x) > rows and not torch.compiler.is_compiling():
            return chunked_cross_entropy(self.logits, x, targets, rows)     # needs less memory
        return F.cross_entropy(self.logits(x).float(), targets, ignore_index=-1)

    # ---- generation: on a first reading, you can stop here
    @torch.inference_mode()
    def generate(self, idx: Tensor, max_new_tokens: int, eot: int | None = None,
                 temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                 repetition_penalty: float = 1.0, seed: int = 0, n_tokens: int | None = None):
        """Yield the next ids (B,) after prompts idx (B, T), max_new_tokens times or until every row
        has produced eot. A row that ends early repeats eot. Row i depends only on its prompt and
        seed + i. Ids from n_tokens up are padding and never sampled.

        The model sees at most block_size tokens. A full context drops its first half, so the
        cache is rebuilt only every block_size / 2 steps. If hidden ignores the cache, its length
        stays 0, and every step recomputes the whole context."""
        B, block_size = len(idx), self.config.block_size
        generators = [torch.Generator().manual_seed(int(seed) + i) for i in range(B)]
        ended = torch.zeros(B, dtype=torch.bool, device=idx.device)
        cache = self.new_cache(B)
        start = max(0, idx.shape[1] - block_size)           # the model sees idx[:, start:]
        for _ in range(max_new_tokens):
            if idx.shape[1] - start > block_size:
                start = idx.shape[1] - max(1, block_size // 2)
                cache.length = 0
            new = idx[:, start + cache.length:]             # not in the cache yet
            logits = self.next_logits(new, cache)[:, :n_tokens]         # (B, V)
            if repetition_penalty != 1:
                logits = penalize(logits, idx, repetition_penalty, eot)
            draw = torch.cat([torch.rand(1, generator=generator) for generator in generators])
            next_id = sample_from(logits, draw.to(idx.device), temperature, top_k, top_p)    # (B,)
            if eot is not None:
                next_id = next_id.masked_fill(ended, eot)
                ended |= next_id == eot
            yield next_id
            if ended.all():
                return
            idx = torch.cat((idx, next_id[:, None]), dim=1)             # (B, T + 1)

    def new_cache(self, batch_size: int):
        """An empty KVCache; fp32 on CPUs, where attention is faster in fp32 than in bf16."""
        weight = self.wte.weight
        dtype = torch.float32 if weight.device.type == 'cpu' else weight.dtype
        return KVCache(self.config, batch_size, weight.device, dtype)

    def next_logits(self, idx: Tensor, cache, mask=None) -> Tensor:
        """fp32 logits (B, V) of the token after ids (B, T), which are not in the cache yet."""
        return self.logits(self.hidden(idx, cache, mask)[:, -1]).float()


# ---- generation: the KV cache and sampling
class KVCache:
    """Preallocated keys and values of all tokens so far, (B, K, block_size, D) per layer, so that
    generation computes them once per token rather than at every step."""

    def __init__(self, config: GPTConfig, batch_size: int, device, dtype):
        shape = (batch_size, config.n_kv_head, config.block_size, config.head_dim)
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0         # tokens cached so far; GPT.hidden advances it

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, D) of the next T tokens; return all S so far, (B, K, S, D)."""
        end = self.length + k.shape[2]
        self.k[layer][:, :, self.length:end] = k
        self.v[layer][:, :, self.length:end] = v
        return self.k[layer][:, :, :end], self.v[layer][:, :, :end]


def penalize(logits: Tensor, idx: Tensor, penalty: float, eot: int | None) -> Tensor:
    """Repetition penalty (Keskar et al. 2019): lower the logits (B, V) of the tokens that idx
    (B, T) contains, except end-of-text."""
    found = logits.gather(1, idx)                                       # (B, T)
    lower = torch.where(found > 0, found / penalty, found * penalty)
    if eot is not None:
        lower = torch.where(idx == eot, found, lower)
    return logits.scatter(1, idx, lower)


def sample_from(logits: Tensor, draw: Tensor, temperature: float, top_k: int,
                top_p: float) -> Tensor:
    """Ids (B,) sampled from logits (B, V), given uniform draws (B,) in [0, 1). top_k = 0 and
    top_p = 1 turn these filters off; temperature 0 is greedy."""
    if temperature < 1e-6:
        return logits.argmax(dim=-1)
    if 0 < top_k < logits.shape[-1]:
        values, ids = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(1, ids, values)
    logits = logits - logits.amax(dim=-1, keepdim=True)     # no overflow at low temperatures
    p = (logits / temperature).softmax(dim=-1)                          # (B, V)
    if top_p < 1:
        p = keep_top_p(p, top_p)
    # inverse transform sampling: the first id at which the cumulative probability exceeds the draw
    cumulative = p.cumsum(dim=-1)                                       # (B, V)
    threshold = draw.clamp(max=1 - 1e-6)[:, None] * cumulative[:, -1:]  # < the sum despite rounding
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def keep_top_p(p: Tensor, top_p: float) -> Tensor:
    """p (B, V) set to 0 outside the nucleus (Holtzman et al. 2020): the fewest tokens whose
    probabilities sum to at least top_p. Ties with the least likely of them are kept, too."""
    largest = p.topk(min(256, p.shape[-1])).values                      # (B, 256), descending
    if (largest.sum(dim=-1) < top_p).any():                 # rare; fall back to a full sort
        largest = p.sort(descending=True).values                        # (B, V)
    sum_before = largest.cumsum(dim=-1) - largest
    number_kept = (sum_before < top_p).sum(dim=-1, keepdim=True)        # (B, 1)
    smallest_kept = largest.gather(-1, number_kept - 1)                 # (B, 1)
    return p * (p >= smallest_kept)


# ---- memory
def chunked_cross_entropy(logits_of, x: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Mean cross-entropy of targets (N,) given final hidden states x (N, C), `rows` at a time.

    The logits of a large vocabulary dominate memory use: GPT-2's for 12 x 1,024 tokens take
    2.5 GB. Each chunk's logits are discarded, and recomputed in the backward pass."""
    def sum_of_losses(x, targets):
        return F.cross_entropy(logits_of(x).float(), targets, ignore_index=-1, reduction='sum')

    total = 0.0
    for chunk in zip(x.split(rows), targets.split(rows)):
        total += checkpoint.checkpoint(sum_of_losses, *chunk, use_reentrant=False)
    return total / (targets >= 0).sum()


# ---- validation of a GPTConfig
def check(condition: bool, message: str):
    """Raise ValueError(message) if the condition is false."""
    if not condition:
        raise ValueError(message)


def check_ranges(config: GPTConfig):
    """Raise ValueError if a field is out of range."""
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(field.type)      # of a Literal
        check(not choices or value in choices,
              f'{field.name}={value!r} is not {" or ".join(filter(None, choices))}')
    for name in ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd'):
        check(getattr(config, name) >= 1, f'{name}={getattr(config, name)} must be at least 1')
    for name in ('n_kv_head', 'head_dim', 'n_inner'):
        check(getattr(config, name) >= 0, f'{name}={getattr(config, name)} must not be negative')
    check(config.head_dim > 0 or config.n_embd % config.n_head == 0,
          f'n_embd={config.n_embd} is not divisible by n_head={config.n_head}')
    check(config.n_layer <= 1000, f'n_layer={config.n_layer} must be at most 1000')
    check(0 <= config.dropout < 1, f'dropout={config.dropout} must be at least 0 and below 1')
    check(0 < config.rope_theta < 1e12, f'rope_theta={config.rope_theta} is out of range')
    check(0 <= config.norm_eps < 1, f'norm_eps={config.norm_eps} must be at least 0 and below 1')


def check_shape(config: GPTConfig):
    """Raise ValueError if fields are inconsistent with each other or the architecture, once the
    defaults are filled in."""
    H, K, D = config.n_head, config.n_kv_head, config.head_dim
    for name in ('vocab_size', 'block_size', 'n_embd', 'head_dim', 'n_inner'):
        check(getattr(config, name) <= 1 << 24, f'{name}={getattr(config, name)} is too large')
    check(H % K == 0, f'n_head={H} is not divisible by n_kv_head={K}')
    check(config.positions == 'learned' or D % 2 == 0,
          f'head_dim={D} must be even: RoPE rotates channels in pairs')
