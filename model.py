"""The GPT: two architectures, loss, optimizers, generation with a key/value cache, evaluation, checkpoints.

Nothing here reads a knob, opens a dataset or prints. Dimensions, everywhere in this project:
B batch, T time (tokens in a window), C channels (n_embd), H heads, D head size, V vocabulary."""
import json
import math
import os
import re
import warnings
import zipfile
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from config import Error, atomic, checksum, require

LOSS_CHUNK = 2 ** 25        # logits the loss holds at once, 128 MiB in fp32; more are recomputed in pieces
FORMAT = 1                  # of checkpoints
KINDS = {'tokenizer': dict, 'config': dict, 'data': dict, 'scaler': dict, 'optimizer': list, 'step': int,
         'val_loss': float, 'best_val_loss': float}     # of what they hold besides the model
SEAL = b'slm:'              # with the CRC-32 of what precedes it, a checkpoint's end: torch.load checks none


@dataclass
class GPTConfig:
    arch: str = 'qwen3'         # 'gpt2' or 'qwen3'
    vocab_size: int = 50257
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    n_kv_head: int = 0          # qwen3: heads of keys and values; 0 = n_head
    head_dim: int = 0           # 0 = n_embd / n_head
    n_inner: int = 0            # width of the MLP; 0 = 4 C for gpt2, 8/3 C up to a multiple of 32 for qwen3
    dropout: float = 0.0
    bias: bool = False          # gpt2: biases in linear layers and norms
    tie_weights: bool = True    # the embedding is also the output layer
    rope_theta: float = 10000.0
    norm_eps: float = 0.0       # 0 = 1e-5 for gpt2, 1e-6 for qwen3

    def __post_init__(self):
        gpt2 = self.arch == 'gpt2'
        require(gpt2 or self.arch == 'qwen3', f'arch={self.arch!r} is not known: gpt2 or qwen3')
        sizes = self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd
        require(min(sizes) > 0, 'vocab_size, block_size, n_layer, n_head and n_embd must be at least 1')
        require(self.head_dim or self.n_embd % self.n_head == 0,
                f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; or set head_dim')
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_kv_head = self.n_kv_head or self.n_head
        self.n_inner = self.n_inner or (4 * self.n_embd if gpt2 else math.ceil(self.n_embd / 12) * 32)
        self.norm_eps = self.norm_eps or (1e-5 if gpt2 else 1e-6)
        sizes += self.n_kv_head, self.n_inner, self.n_head * self.head_dim
        require(min(sizes) > 0 and max(sizes) <= 1 << 24 and self.n_layer <= 1000,
                'no size may be negative, none above 16 million, n_layer not above 1,000')
        require(self.n_head % self.n_kv_head == 0,
                f'n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}')
        require(not gpt2 or (self.n_kv_head, self.n_head * self.head_dim) == (self.n_head, self.n_embd),
                'n_kv_head and head_dim belong to qwen3; gpt2 has n_head heads of n_embd / n_head')
        require(gpt2 or self.head_dim % 2 == 0, 'qwen3 rotates pairs of channels: head_dim must be even')
        require(gpt2 or not self.bias, 'qwen3 has no biases: leave bias=False, or take arch=gpt2')
        require(0 <= self.dropout < 1, f'dropout={self.dropout} must be at least 0 and less than 1')
        require(0 < self.rope_theta < 1e12 and 0 < self.norm_eps < 1, 'rope_theta or norm_eps is not sane')


def make_norm(config: GPTConfig) -> nn.Module:
    if config.arch == 'gpt2':
        return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
    return nn.RMSNorm(config.n_embd, config.norm_eps)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, D/2), fp32, of rotary embeddings (Su et al. 2021) at positions (T,)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angle = (positions[:, None] * frequency)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the channel pairs (i, i + D/2) of x (B, T, H, D) by their position's angles."""
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Linear(nn.Linear):
    """As nn.Linear, but faster for few tokens on a CPU: in bf16 once packed, and for one token compiled."""
    packed = None               # the weights again, as oneDNN wants them: GPT.pack

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if x.device.type == 'cpu' and x.shape[:-1].numel() == 1:
                y = (x.unsqueeze(-2).float() * self.weight.float()).sum(-1)     # a product reads slower
                return (y if self.bias is None else y + self.bias).to(x.dtype)
        elif self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, 'none', [], '')
        return super().forward(x)


class Attention(nn.Module):
    """Causal self-attention; in qwen3 with grouped queries, normed queries and keys, rotary positions."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.dropout, self.block_size = config.dropout, config.block_size
        rows = (config.n_head + 2 * config.n_kv_head) * config.head_dim         # of q, k and v
        self.c_attn = Linear(config.n_embd, rows, config.bias)
        self.c_proj = Linear(config.n_head * config.head_dim, config.n_embd, config.bias)
        if config.arch == 'qwen3':
            self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rope=None, cache=None, start: int = 0) -> Tensor:
        B, T, _ = x.shape
        H, K = self.n_head, self.n_kv_head
        qk, v = self.c_attn(x).view(B, T, H + 2 * K, -1).split((H + K, K), 2)                   # (B, T, H, D)
        if rope is not None:
            weight = torch.cat((self.q_norm.weight.expand(H, -1), self.k_norm.weight.expand(K, -1)))
            qk = F.rms_norm(qk.float(), qk.shape[-1:], None, self.q_norm.eps)
            qk = rotate(qk * weight, rope)
        q, k = qk.split((H, K), 2)
        if v.is_cpu and v.dtype == torch.bfloat16 and torch.is_grad_enabled() and T <= 512 and cache is None:
            return self.c_proj(self.unfused(q.to(v.dtype), k.to(v.dtype), v).to(x.dtype))
        # The CPU's fused kernel is faster in fp32, by far when it has one query.
        dtype = torch.promote_types(v.dtype, torch.float32) if v.is_cpu else v.dtype
        q, k, v = (t.transpose(1, 2).to(dtype) for t in (q, k, v))                              # (B, H, T, D)
        if cache is not None:
            if not cache:                       # at first; then it has the keys and values of all positions
                cache += [t.new_empty(B, K, self.block_size, t.shape[-1]) for t in (k, v)]
            cache[0][:, :, start:start + T], cache[1][:, :, start:start + T] = k, v
            k, v = cache[0][:, :, :start + T], cache[1][:, :, :start + T]
        with torch.autocast(x.device.type, enabled=False):
            y = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=T > 1,
                enable_gqa=H != K)
        return self.c_proj(y.transpose(1, 2).flatten(2).to(x.dtype))                            # (B, T, C)

    def unfused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same from q, k, v (B, T, H, D) to (B, T, H * D) by plain products: for training in bf16 on a
        CPU, where they are so fast that they beat the fused kernel, but for long contexts."""
        B, T, H, D = q.shape
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))            # (B * H, T, D)
        q = q.view(len(k), -1, D)               # queries that share their keys stand together
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1).repeat(q.shape[1] // T, 1)
        weight = torch.baddbmm(future, q, k.transpose(1, 2), alpha=D ** -0.5).softmax(-1)
        y = F.dropout(weight, self.dropout, self.training) @ v
        return y.view(B, H, T, D).transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """gpt2: tanh GELU. qwen3: SwiGLU (Shazeer 2020), its gate and its value in one matrix."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gated = config.arch == 'qwen3'
        self.c_fc = Linear(config.n_embd, config.n_inner * (2 if self.gated else 1), config.bias)
        self.c_proj = Linear(config.n_inner, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        if self.gated:
            gate, x = x.chunk(2, -1)
            x = F.silu(gate) * x
        else:
            x = F.gelu(x, approximate='tanh')
        return self.c_proj(x)


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm_1 = make_norm(config)
        self.attn = Attention(config)
        self.norm_2 = make_norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope=None, cache=None, start: int = 0) -> Tensor:
        x = x + self.drop(self.attn(self.norm_1(x), rope, cache, start))
        return x + self.drop(self.mlp(self.norm_2(x)))


class GPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V). GPT-2: Radford et al. 2019; Qwen3: Yang et al. 2025."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.arch == 'gpt2':
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = make_norm(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith('c_proj.weight'):      # the 2 L that add to the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, 'bias', None) is not None:
                nn.init.zeros_(module.bias)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())        # a tied matrix counts once

    def hidden(self, idx: Tensor, cache=None, start: int = 0) -> Tensor:
        """Last hidden states (B, T, C) of ids (B, T) from position start on; cache holds those before it."""
        T = idx.shape[1]
        positions = torch.arange(start, start + T, device=idx.device)
        x = self.wte(idx)
        rope = None
        if self.config.arch == 'gpt2':
            x = x + self.wpe(positions)
        else:
            rope = rotary(positions, self.config.head_dim, self.config.rope_theta)
        x = self.drop(x)
        for i, block in enumerate(self.h):
            x = block(x, rope, None if cache is None else cache[i], start)
        return self.norm_f(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction: str = 'mean') -> Tensor:
        """Logits (B, T, V), or with targets (B, T) their cross-entropy in nats; targets -1 do not count."""
        x = self.hidden(idx)
        if targets is None:
            return self.lm_head(x)
        x, targets = x.flatten(0, 1), targets.flatten()
        rows = max(1, LOSS_CHUNK // self.config.vocab_size)
        if len(x) <= rows:
            loss = self._loss(x, targets)
        else:
            loss = sum(recompute(self._loss, *piece, use_reentrant=False)
                       for piece in zip(x.split(rows), targets.split(rows)))
        return loss / (targets >= 0).sum() if reduction == 'mean' else loss

    def _loss(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.lm_head(x).float(), targets, ignore_index=-1, reduction='sum')

    def make_optimizers(self, optimizer: str, learning_rate: float, weight_decay: float,
                        betas: tuple[float, float]) -> list:
        """Optimizers that hold each parameter once; matrices and embeddings decay, norms and biases do not.

        muon (Jordan et al. 2024) takes the blocks' matrices, scaled to fit AdamW's rate (Liu et al. 2025)."""
        if optimizer not in ('adamw', 'muon'):
            raise Error(f'optimizer={optimizer!r} is not known: adamw or muon')
        matrices = [p for p in self.h.parameters() if p.ndim == 2] if optimizer == 'muon' else []
        taken = {id(p) for p in matrices}
        rest = [p for p in self.parameters() if id(p) not in taken]
        groups = [{'params': [p for p in rest if p.ndim >= 2], 'weight_decay': weight_decay},
                  {'params': [p for p in rest if p.ndim < 2], 'weight_decay': 0.0}]
        made = [torch.optim.AdamW(groups, learning_rate, betas, fused=rest[0].device.type in ('cpu', 'cuda'))]
        if matrices:
            made.append(torch.optim.Muon(matrices, learning_rate, weight_decay,
                                         adjust_lr_fn='match_rms_adamw'))
        return made

    @staticmethod
    def load_optimizers(optimizers: list, saved: list):
        """Give optimizers the state of saved ones, not their knobs; Error if it does not fit."""
        try:
            for o, old in zip(optimizers, saved, strict=True):
                o.load_state_dict({**o.state_dict(), 'state': old['state']})
                states = [(p.shape, o.state[p]) for group in o.param_groups for p in group['params']]
                for shape, state in states:
                    require(state.keys() == states[0][1].keys(), 'parts are missing')
                    require(all(t.shape in (shape, ()) for t in state.values()), 'other shapes')
        except Exception as e:
            raise Error(f"the checkpoint's optimizer does not fit its model: {str(e)[:150]}") from e

    def next_logits(self, idx: Tensor, cache=None, start: int = 0) -> Tensor:
        """Logits (B, V), fp32, of what follows ids (B, T); cache and start as in hidden."""
        return self.lm_head(self.hidden(idx, cache, start)[:, -1]).float()

    step = next_logits                                      # of one token, until compile_step compiles it

    def pack(self):
        """Copy bf16 weights, which must not change then, into the layout that a CPU reads fastest."""
        w, mkldnn = self.wte.weight, torch.backends.mkldnn.is_available() and torch.ops.mkldnn
        if w.dtype == torch.bfloat16 and w.is_cpu and mkldnn and mkldnn._is_mkldnn_bf16_supported():
            for layer in self.modules():
                if isinstance(layer, Linear):
                    layer.packed = mkldnn._reorder_linear_weight(layer.weight.detach())

    def compile_step(self):
        """Let generate compile its steps of one token, when it takes the first. No module may change then."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._inductor.compile_fx import compile_fx
        # On a CPU what a product takes is computed once, not again for each row of its matrix; the 6
        # operations that convert and multiply a weight stay in the loop that adds.
        once = dict(realize_opcount_threshold=8, realize_reads_threshold=1) if self.wte.weight.is_cpu else {}

        def own_backend(graph, inputs):                     # as it serves one model, no step need check which
            return compile_fx(graph, inputs, config_patches=once)

        compiled = torch.compile(
            self.next_logits, fullgraph=True, dynamic=True, backend=own_backend,
            options={'guard_filter_fn': torch.compiler.skip_guard_on_all_nn_modules_unsafe})

        def step(*inputs):
            try:
                return compiled(*inputs)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:        # no compiler here, say
                warnings.warn('not compiled: ' + str(error).partition('\n')[0], stacklevel=2)
                self.step = self.next_logits
                return self.step(*inputs)

        self.step = step

    def context_length(self, n: int) -> int:
        """How many of n tokens the model sees: all; past block_size the last half, growing until full."""
        T = self.config.block_size
        half = max(1, T // 2)
        return n if n <= T else half + (n - T - 1) % (T - half + 1)

    @torch.inference_mode()
    def generate(self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, repetition_penalty: float = 1.0, eot: int | None = None, seed: int = 0,
                 use_cache: bool = True):
        """Yield the ids (B,) that follow the prompts idx (B, T >= 1), step by step, until all rows ended.

        First repetition_penalty (Keskar et al. 2019), then temperature (0 = greedy), top_k (0 = off), top_p
        (Holtzman et al. 2020; 1 = off). An ended row emits eot. Row i depends on its prompt and seed + i."""
        B, T = idx.shape
        device = idx.device
        ended = torch.zeros(B, dtype=torch.bool, device=device)
        seen = torch.zeros(B, self.config.vocab_size, dtype=torch.bool, device=device).scatter_(1, idx, True)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(B)]
        draws = torch.stack([torch.rand(max_new_tokens, generator=g) for g in generators])
        draws = draws.clamp(max=1 - 1e-6).to(device)            # below 1 when rounded: no id of probability 0
        cache, start = [[] for _ in self.h] if use_cache else None, 0
        for step in range(max_new_tokens):
            length = self.context_length(idx.shape[1])
            if cache is None or length != start + 1 or start == 0:
                start = 0                                    # read the whole context, else its newest token
            read = self.step if start else self.next_logits
            logits = read(idx[:, idx.shape[1] - length + start:], cache, start)
            start = length
            if repetition_penalty != 1:
                lower = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
                logits = torch.where(seen, lower, logits)
            next_id = pick(logits, draws[:, step, None], temperature, top_k, top_p)
            if eot is not None:
                next_id = next_id.masked_fill(ended, eot)
                ended |= next_id == eot
            seen.scatter_(1, next_id[:, None], True)
            idx = torch.cat((idx, next_id[:, None]), 1)
            yield next_id
            if eot is not None and ended.all():
                return


def pick(logits: Tensor, draw: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Ids (B,) from logits (B, V) by inverse transform of draw (B, 1), uniform in [0, 1)."""
    if temperature == 0:
        return logits.argmax(-1)
    ids, V = None, logits.shape[-1]
    if 0 < top_k < V:
        logits, ids = logits.topk(top_k)                        # sorted
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)    # finite however cold
    if top_p < 1:
        p = p * (p >= least_kept(p, top_p))
    cdf = p.cumsum(-1)
    choice = torch.searchsorted(cdf, draw * cdf[:, -1:], right=True)
    return (choice if ids is None else ids.gather(-1, choice))[:, 0]


def least_kept(p: Tensor, top_p: float) -> Tensor:
    """The least (B, 1) of the fewest, largest values of p (B, V), none above 1, whose sum reaches top_p.

    No sort: floats are ordered as their bits are, which are found 15 by 15, by a histogram of the sums."""
    below, found = 0x3f800000 - p.view(torch.int32), 0      # by how many bit patterns a value is below 1.0
    for shift in 15, 0:
        digits = (below - found >> shift).clamp(-1, 1 << 15) + 1        # 0: above what was found
        sums = p.new_zeros(len(p), (1 << 15) + 2).scatter_add_(1, digits.long(), p).cumsum(-1)
        digit = torch.searchsorted(sums, p.new_full((len(p), 1), top_p)).clamp(max=1 << 15)
        found = found + (digit.int() - 1 << shift)
    return (0x3f800000 - found).view(torch.float32)


def pack_documents(ids: Tensor, eot: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Cut ids (N,), documents ended by eot, into windows: inputs and targets, each (windows, block_size).

    Documents stay whole unless longer than a window. Every id is a target once; eot and -1 fill up the rest.
    The first input is the token before the first target: for a document's first token an eot."""
    ends, cuts = [0, *((ids == eot).nonzero()[:, 0] + 1).tolist(), len(ids)], [0]
    while cuts[-1] < len(ids):
        most = cuts[-1] + block_size
        whole = ends[bisect(ends, most) - 1]                # where the last document that fits ends
        cuts.append(whole if whole > cuts[-1] else most)
    x = torch.full((len(cuts) - 1, block_size), eot)
    y = torch.full_like(x, -1)
    ids = torch.cat((ids.new_tensor([eot]), ids))
    for i, (a, b) in enumerate(zip(cuts, cuts[1:])):
        x[i, :b - a], y[i, :b - a] = ids[a:b], ids[a + 1:b + 1]
    return x, y


@torch.no_grad()
def evaluate(model: GPT, x: Tensor, y: Tensor, batch_size: int, autocast, rank: int = 0,
             world_size: int = 1) -> float:
    """Mean nats per target of packed windows, over all ranks; changes no mode and no random state."""
    training = model.training
    model.eval()
    device = model.wte.weight.device
    nats = torch.zeros((), dtype=torch.float64)
    for i in range(rank * batch_size, len(x), world_size * batch_size):
        with autocast():
            loss = model(x[i:i + batch_size].to(device), y[i:i + batch_size].to(device), reduction='sum')
        nats += loss.double().cpu()
    if world_size > 1:
        torch.distributed.all_reduce(nats)
    model.train(training)
    return nats.item() / (y >= 0).sum().item()


def save_checkpoint(path, checkpoint: dict):
    """Write plain types and tensors atomically, sealed with a checksum; Error if it cannot be written."""
    with atomic(path) as temporary:
        torch.save({'format': FORMAT, **checkpoint}, temporary)
        with open(temporary, 'ab') as f:
            f.write(SEAL + checksum(temporary).encode())


def load_checkpoint(path, *needed: str) -> dict:
    """Read a checkpoint onto the CPU; Error if it is missing, damaged, without what is needed, or lies."""
    require(os.path.isfile(path),
            f'{path}: no such checkpoint; train one with python train.py, or set out_dir')
    try:
        with open(path, 'rb') as f:                 # once, as training may put a new one in its place
            size = f.seek(-12, 2)
            f.seek(0)
            seal = SEAL + checksum(f, size).encode()
            require(f.read() == seal, 'damaged, or not of this project')
            inflated = sum(entry.file_size for entry in zipfile.ZipFile(f).infolist())
            require(inflated <= size, 'what is packed inflates')
            f.seek(0)
            checkpoint = torch.load(f, map_location='cpu', weights_only=True)
        require(checkpoint['format'] == FORMAT, f'not of format {FORMAT}')
        for key in ('tokenizer', *needed):
            require(isinstance(checkpoint.get(key), KINDS[key]), f'its {key} is missing, or of another kind')
        with torch.device('meta'):                  # takes no memory, whatever the numbers say
            model = GPT(GPTConfig(**checkpoint['model_config']))
            model.load_state_dict(checkpoint['model'], assign=True)
        checkpoint['model_config'] = vars(model.config)
        require(sum(t.nbytes for t in checkpoint['model'].values()) <= 2 * size, 'tensors larger than it')
    except Exception as e:                          # what lies raises all sorts
        raise Error(f'{path}: this checkpoint cannot be read: {str(e)[:150]}; use another') from e
    return checkpoint


def model_from(checkpoint: dict, **changes) -> GPT:
    """The model of a checkpoint, with other dropout or a smaller block_size where changes say so."""
    config = GPTConfig(**{**checkpoint['model_config'], **changes})
    state = dict(checkpoint['model'])
    if config.arch == 'gpt2':
        held = state['wpe.weight'][:config.block_size]
        require(len(held) == config.block_size, f'block_size={config.block_size} is above its {len(held)}')
        state['wpe.weight'] = held
    model = GPT(config)
    model.load_state_dict(state)
    return model


# ---- Hugging Face, in and out. Ours: theirs, where a tensor's name differs; several are stacked in ours.
HF_TENSORS = {
    'gpt2': {'body': 'transformer', 'norm_1': 'ln_1', 'norm_2': 'ln_2', 'norm_f': 'ln_f'},
    'qwen3': {'body': 'model', 'wte': 'embed_tokens', 'h': 'layers', 'norm_f': 'norm',
              'norm_1': 'input_layernorm', 'norm_2': 'post_attention_layernorm',
              'attn.c_attn': 'self_attn.q_proj self_attn.k_proj self_attn.v_proj',
              'attn.q_norm': 'self_attn.q_norm', 'attn.k_norm': 'self_attn.k_norm',
              'attn.c_proj': 'self_attn.o_proj', 'mlp.c_fc': 'mlp.gate_proj mlp.up_proj',
              'mlp.c_proj': 'mlp.down_proj'}}
HF_FIELDS = {
    'gpt2': dict(vocab_size='vocab_size', block_size='n_positions', n_layer='n_layer', n_head='n_head',
                 n_embd='n_embd', n_inner='n_inner', norm_eps='layer_norm_epsilon',
                 tie_weights='tie_word_embeddings'),
    'qwen3': dict(vocab_size='vocab_size', block_size='max_position_embeddings', n_layer='num_hidden_layers',
                  n_head='num_attention_heads', n_kv_head='num_key_value_heads', n_embd='hidden_size',
                  head_dim='head_dim', n_inner='intermediate_size', rope_theta='rope_theta',
                  norm_eps='rms_norm_eps', tie_weights='tie_word_embeddings')}
HF_FIXED = {                # what can vary there and not here
    'gpt2': dict(activation_function='gelu_new', scale_attn_weights=True,
                 scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    'qwen3': dict(hidden_act='silu', attention_bias=False, use_sliding_window=False, rope_scaling=None)}


def hf_tensors(model: GPT):
    """Yield each tensor's name and layout there, as a view of ours: read for export, written for import."""
    c, names = model.config, HF_TENSORS[model.config.arch]
    rows = [heads * c.head_dim for heads in (c.n_head, c.n_kv_head, c.n_kv_head)]
    for name, p in model.named_parameters():                            # a tied head is not among them
        block, number, module, kind = re.fullmatch(r'(h?)(\.\d+\.|)(.+)\.(\w+)', name).groups()
        body = '' if module == 'lm_head' else names['body'] + '.' + names.get(block, block) + number
        theirs = names.get(module, module).split()
        for part_name, part in zip(theirs, p.data.split(rows if len(theirs) == 3 else len(p) // len(theirs))):
            part = part.t() if c.arch == 'gpt2' and '.c_' in name else part     # Conv1D is (in, out)
            yield f'{body}{part_name}.{kind}', part


def to_hf(model: GPT, eot: int) -> tuple[dict, dict[str, Tensor]]:
    """config.json and tensors of this model as transformers' GPT2LMHeadModel or Qwen3ForCausalLM."""
    c = model.config
    known = {*HF_FIELDS['gpt2'], *HF_FIELDS['qwen3'], 'arch', 'bias', 'dropout'}
    for field, value in vars(c).items():            # a fork's: nothing is lost without a word
        require(field in known or value == getattr(GPTConfig, field), f'{field}={value} has no place there')
    config = {'model_type': c.arch, 'bos_token_id': eot, 'eos_token_id': eot, **HF_FIXED[c.arch],
              **{theirs: getattr(c, ours) for ours, theirs in HF_FIELDS[c.arch].items()}}
    tensors = {name: part.cpu().contiguous().clone() for name, part in hf_tensors(model)}
    if c.arch == 'gpt2':    # llama.cpp's converter wants n_ctx
        config |= {'architectures': ['GPT2LMHeadModel'], 'n_ctx': c.block_size,
                   'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}
        if not c.bias:
            tensors |= {name.replace('weight', 'bias'): t.new_zeros(t.shape[-1])
                        for name, t in tensors.items() if '.c_' in name or '.ln_' in name}
    else:                   # transformers 5 wants rope_parameters, others rope_theta
        config |= {'architectures': ['Qwen3ForCausalLM'],
                   'rope_parameters': {'rope_type': 'default', 'rope_theta': c.rope_theta}}
    return config, tensors


def from_hf(source) -> dict:
    """model_config and model, as in a checkpoint, of a GPT-2 or Qwen3: a folder or a Hugging Face name.

    Raises Error if there is none, or if it has or lacks what GPT cannot do without or with."""
    try:
        from safetensors.torch import load_file
        folder, tensors = Path(source), {}
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            folder = Path(snapshot_download(str(source), allow_patterns=['*.json', 'model*.safetensors']))
        theirs = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        theirs |= theirs.get('rope_parameters') or {}
        seals = folder / 'checksums.json'           # our export has it: loading checks nothing
        for name, crc in json.loads(seals.read_text(encoding='utf-8')).items() if seals.exists() else ():
            require(checksum(folder / name) == crc,
                    f'{name} is damaged; if it was changed on purpose, remove checksums.json')
        whole = folder / 'model.safetensors'            # or else in parts; other files may lie beside it
        for file in [whole] if whole.exists() else folder.glob('model-*-of-*.safetensors'):
            tensors |= load_file(file)
        arch = theirs.get('model_type')
        require(arch in ('gpt2', 'qwen3'), f'model_type={arch!r} is not known here, only gpt2 and qwen3')
        full = ['full_attention'] * len(theirs.get('layer_types') or [])
        for field, value in {**HF_FIXED[arch], 'rope_type': 'default', 'layer_types': full}.items():
            require(theirs.get(field) in (value, None), f'{field}={theirs.get(field)!r} is not known here')
        config = {'arch': arch, 'bias': arch == 'gpt2', 'tie_weights': arch == 'gpt2'}
        for ours, field in HF_FIELDS[arch].items():
            value, default = theirs.get(field), getattr(GPTConfig, ours)
            if value is not None or (default and ours not in config):   # what is 0 by default may be missing
                require(isinstance(value, int | float) and abs(value) < 1e12,
                        f'{field}={str(value)[:50]} in config.json is no sensible number')
                config[ours] = type(default)(value)
        require(tensors, 'there is no model.safetensors; other formats are not read')
        with torch.device('meta'):                      # takes no memory, whatever the numbers say
            size = GPT(GPTConfig(**config)).num_params()
        held = sum(t.numel() for t in tensors.values())
        require(size <= 2 * held, 'config.json says more than the tensors hold')
        model = GPT(GPTConfig(**config))
        for name, part in hf_tensors(model):
            found = name if name in tensors else name.partition('.')[2]     # a model saved without its head
            require(found in tensors, f'tensor {name} is missing')
            shape = tuple(tensors[found].shape)
            require(shape == part.shape, f'tensor {name} is {shape}, config.json says {tuple(part.shape)}')
            part.copy_(tensors.pop(found))
        for name in tensors:                            # only masks, or a head that is tied, may be left
            require(re.search(r'attn\.(masked_)?bias$|^lm_head', name), f'tensor {name} has no place here')
        return {'model_config': vars(model.config), 'model': model.state_dict()}
    except Exception as e:                          # no such name, no network, damaged: they raise all sorts
        raise Error(f'{source}: no checkpoint, and no Hugging Face model to take: {str(e)[:150]}') from e
