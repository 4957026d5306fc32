"""The GPT: the network and its loss, generation, evaluation, and checkpoint file.

It knows nothing of text, datasets or the command line, and prints nothing. Dimensions, in all
files: B batch, T time (tokens in a window), C channels (n_embd), H heads, K heads of keys and
values, D channels of a head, V vocabulary."""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import require
from config._checkpoint import read_checkpoint
from config._device import attention_without_cudnn
from config._files import save_sealed
from config._shape import complete_shape

FORMAT = 1                  # version of the checkpoint's format


@dataclass
class GPTConfig:
    """The shape of a GPT. Fields with a default are knobs of train.py, and their comments its help;
    train.py has defaults of its own for some of them, which suit its stories.

    The two architectures differ in four places:
        arch                qwen3                           gpt2
        positions           rotate queries and keys         add a learned embedding
        norms               RMSNorm, also of q and k        LayerNorm
        MLP                 SwiGLU                          GELU
        keys and values     may have fewer heads            have n_head heads"""
    vocab_size: int             # rows of the embedding: as many as there are tokens, or more
    arch: str = 'qwen3'         # qwen3 (RoPE, RMSNorm, SwiGLU) or gpt2 (learned positions, GELU)
    block_size: int = 256       # tokens of context
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads
    n_kv_head: int = 0          # heads of keys and values, qwen3 only; 0 = n_head
    n_embd: int = 128           # channels
    head_dim: int = 0           # channels of a head, qwen3 only; 0 = n_embd / n_head
    n_inner: int = 0            # width of the MLP; 0 = 4 n_embd, or 8/3 n_embd for qwen3
    dropout: float = 0.0        # share of activations that are set to 0 in training
    bias: bool = False          # linear layers and norms have biases, gpt2 only
    tie_weights: bool = True    # embedding and output share one matrix
    head_gain: float = 1.0      # above 1, the output matrix learns faster: see init_weights
    rope_theta: float = 10000.0     # base of the rotary frequencies, qwen3 only
    norm_eps: float = 0.0       # added to variances in norms; 0 = 1e-5, or 1e-6 for qwen3

    def __post_init__(self):
        complete_shape(self)                # zeros get their values; Error for an impossible shape


# ---- the network, from its parts to the whole
class RMSNorm(nn.RMSNorm):
    """Root mean square norm (Zhang and Sennrich 2019), computed in the precision of its weight:
    in training that is fp32, as x may be in 16 bits, in which its squares could overflow."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.arch == 'gpt2':
        return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
    return RMSNorm(config.n_embd, config.norm_eps)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (T, 1, D/2) each, by which rotary embeddings (Su et al. 2021) rotate at
    positions (T,)."""
    channels = torch.arange(0, head_dim, 2, device=positions.device)
    frequencies = theta ** (-channels.float() / head_dim)               # (D/2,)
    angles = positions[:, None, None] * frequencies                     # (T, 1, D/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the channel pairs (x_i, x_(i + D/2)) of x (B, T, heads, D) by their position's
    angles. Then the product of a query and a key depends on how far apart they are, not where."""
    cos, sin = rope                                                     # (T, 1, D/2)
    a, b = x.chunk(2, dim=-1)                                           # (B, T, heads, D/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017): each token gathers from itself and those before.

    In qwen3, groups of queries share keys and values (Ainslie et al. 2023), and queries and keys
    are normed, then rotated by their positions."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        # Three matrices are stacked in one weight, as one large product is faster than three.
        # Who needs them one by one, as Muon does, reads how many rows each has.
        rows = [n * config.head_dim for n in (config.n_head, config.n_kv_head, config.n_kv_head)]
        self.c_attn = nn.Linear(config.n_embd, sum(rows), config.bias)
        self.c_attn.stacked_rows = rows
        self.c_proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, config.bias)
        self.q_norm = self.k_norm = nn.Identity()
        if config.arch == 'qwen3':
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rope=None) -> Tensor:
        B, T, _ = x.shape                                               # (B, T, C)
        H, K, D = self.n_head, self.n_kv_head, self.head_dim
        q, k, v = self.c_attn(x).split((H * D, K * D, K * D), dim=2)    # (B, T, heads D) each
        q = self.q_norm(q.view(B, T, H, D))                             # queries: what it looks for
        k = self.k_norm(k.view(B, T, K, D))                             # keys: what it offers
        v = v.view(B, T, K, D)                                          # values: what it passes on
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))                # (B, H or K, T, D)
        y = self.attend(q, k, v)                                        # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, H * D))      # (B, T, C)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each query's mean of the values, (B, H, T, D), weighted by how well their keys fit it.

        One fused kernel computes the following without ever storing the weights:
            scores = q @ k.mT / math.sqrt(D)                                     # (B, H, T, T)
            scores = scores.masked_fill(is_later, -math.inf)    # no token sees those after it
            weights = dropout(scores.softmax(dim=-1))                            # (B, H, T, T)
            return weights @ v                                                   # (B, H, T, D)"""
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.n_head != self.n_kv_head)


class MLP(nn.Module):
    """gpt2: GELU in its tanh form. qwen3: SwiGLU (Shazeer 2020), one matrix for gate and value."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.is_gated = config.arch == 'qwen3'
        rows = [config.n_inner] * (2 if self.is_gated else 1)
        self.c_fc = nn.Linear(config.n_embd, sum(rows), config.bias)
        self.c_fc.stacked_rows = rows
        self.c_proj = nn.Linear(config.n_inner, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)                                                # (B, T, width)
        if self.is_gated:
            gate, value = x.chunk(2, dim=-1)
            x = F.silu(gate) * value                                    # (B, T, n_inner)
        else:
            x = F.gelu(x, approximate='tanh')
        return self.c_proj(x)                                           # (B, T, C)


class Block(nn.Module):
    """Add to x what the attention computes from it, then what the MLP computes."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm_1 = make_norm(config)
        self.attn = Attention(config)
        self.norm_2 = make_norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope=None) -> Tensor:
        x = x + self.drop(self.attn(self.norm_1(x), rope))
        x = x + self.drop(self.mlp(self.norm_2(x)))
        return x


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
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        if not self.wte.weight.is_meta:                     # a meta tensor has a shape, no values
            self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, p in self.named_parameters():
            # Each layer adds the outputs of two c_proj to x. Smaller weights keep x from growing
            # with the number of layers (Radford et al. 2019).
            if name.endswith('c_proj.weight'):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer))
        # A trick for short runs; 1 leaves all as it is. A head_gain of 20 makes the last norm 20
        # times larger and the output matrix 20 times smaller. The first logits stay about the same,
        # but an AdamW step, whose size is the learning rate, moves them 20 times as far. A tied
        # embedding begins smaller as well, which the norms of the blocks mostly undo.
        self.norm_f.weight *= self.config.head_gain
        self.lm_head.weight /= self.config.head_gain

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())            # a tied matrix counts once

    def hidden(self, idx: Tensor, begin=0) -> Tensor:
        """Last hidden states (B, T, C) of ids (B, T). The first id has the position `begin`, which
        is not 0 where extras/sampling.py remembers the ids before it."""
        positions = begin + torch.arange(idx.shape[1], device=idx.device)       # (T,)
        x = self.wte(idx)                                               # (B, T, C)
        rope = None
        if self.config.arch == 'gpt2':
            x = x + self.wpe(positions)
        else:
            rope = rotary(positions, self.config.head_dim, self.config.rope_theta)
        x = self.drop(x)
        for block in self.h:
            x = block(x, rope)                                          # (B, T, C)
        return self.norm_f(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of ids (B, T). With targets (B, T): the mean of their cross-entropy,
        in nats; a target of -1 does not count."""
        x = self.hidden(idx)                                            # (B, T, C)
        if targets is None:
            return self.lm_head(x)                                      # (B, T, V)
        return self.loss(x.flatten(0, 1), targets.flatten())

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of targets (N,) after x (N, C). extras/loss.py has another way to
        compute it, which needs less memory."""
        logits = self.lm_head(x).float()                                # (N, V)
        return F.cross_entropy(logits, targets, ignore_index=-1)

    # ---- generation
    @torch.inference_mode()
    def generate(self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, repetition_penalty: float = 1.0, eot: int | None = None,
                 seed: int = 0, vocab_size: int | None = None):
        """Yield the ids (B,) that follow the prompts idx (B, T), until all rows have ended.

        Each step reads the whole context again; the copy of a model that extras/sampling.py makes
        remembers keys and values instead, and generates the same.

        The repetition_penalty is applied first, then temperature (0 = always the likeliest
        token), top_k (0 = off) and top_p (1 = off). A row that has produced eot repeats it.
        Row i depends on its prompt and seed + i only. Ids from vocab_size on are never chosen:
        they belong to no token."""
        B, block_size = len(idx), self.config.block_size
        draws = uniform_draws(B, max_new_tokens, seed).to(idx.device)
        ended = torch.zeros(B, dtype=torch.bool, device=idx.device)
        context = idx                       # the tokens that the model sees, (B, up to block_size)
        for step in range(max_new_tokens):
            if context.shape[1] > block_size:   # full: keep half, so that caches are rarely renewed
                context = context[:, -max(1, block_size // 2):]
            logits = self.next_logits(context)                          # (B, V)
            if vocab_size is not None:
                logits[:, vocab_size:] = -math.inf
            if repetition_penalty != 1:
                logits = penalize(logits, idx, repetition_penalty)
            next_id = choose(logits, draws[:, step, None], temperature, top_k, top_p)         # (B,)
            if eot is not None:
                next_id = next_id.masked_fill(ended, eot)
                ended |= next_id == eot
            idx = torch.cat((idx, next_id[:, None]), dim=1)
            context = torch.cat((context, next_id[:, None]), dim=1)
            yield next_id
            if eot is not None and ended.all():
                return

    def next_logits(self, idx: Tensor) -> Tensor:
        """Logits (B, V), fp32, of the token that follows ids (B, T)."""
        with attention_without_cudnn():
            return self.lm_head(self.hidden(idx)[:, -1]).float()


# ---- what generate consists of
def uniform_draws(B: int, n: int, seed: int) -> Tensor:
    """Random numbers (B, n) in [0, 1); row i depends on seed + i only, on every device."""
    generators = [torch.Generator().manual_seed(int(seed) + i) for i in range(B)]
    draws = torch.stack([torch.rand(n, generator=generator) for generator in generators])
    return draws.clamp(max=1 - 1e-6)        # else draw * sum could round up to the sum in sample()


def penalize(logits: Tensor, idx: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), lower for the tokens that occur in idx (B, T) (Keskar et al. 2019)."""
    old = logits.gather(1, idx)                                         # (B, T)
    lower = torch.where(old > 0, old / penalty, old * penalty)
    return logits.scatter(1, idx, lower)


def choose(logits: Tensor, draw: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Ids (B,) from logits (B, V) by draws (B, 1) in [0, 1)."""
    if temperature < 1e-6:
        return logits.argmax(dim=-1)
    if 0 < top_k < logits.shape[-1]:
        logits = keep_top_k(logits, top_k)
    logits = logits - logits.amax(dim=-1, keepdim=True)     # finite however low the temperature
    p = (logits / temperature).softmax(dim=-1)
    if top_p < 1:
        p = keep_top_p(p, top_p)
    return sample(p, draw)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """logits (B, V) with -inf for all but the k largest of each row."""
    values, ids = logits.topk(k)
    return torch.full_like(logits, -math.inf).scatter(1, ids, values)


def keep_top_p(p: Tensor, top_p: float) -> Tensor:
    """p (B, V) with 0 for all but its fewest largest values whose sum reaches top_p (nucleus
    sampling, Holtzman et al. 2020). Values equal to the smallest of these are kept as well."""
    ordered = p.sort(dim=-1, descending=True).values
    sum_before = ordered.cumsum(dim=-1) - ordered
    number_kept = (sum_before < top_p).sum(dim=-1, keepdim=True)        # (B, 1)
    smallest_kept = ordered.gather(-1, number_kept - 1)                 # (B, 1)
    return p * (p >= smallest_kept)


def sample(p: Tensor, draw: Tensor) -> Tensor:
    """Ids (B,) by inverse transform of draw (B, 1) from p (B, V), which need not sum to 1."""
    cumulative = p.cumsum(dim=-1)
    return torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)[:, 0]


# ---- evaluation
@torch.no_grad()
def evaluate(model: GPT, x: Tensor, y: Tensor, batch_size: int, autocast, rank: int = 0,
             world_size: int = 1) -> float:
    """Mean cross-entropy, in nats, of targets y after inputs x, (windows, T) each.

    Of several processes each computes every world_size-th batch; all return the same mean. All
    batches have the same size, so that a compiled model sees one shape. The model's mode and the
    random state do not change."""
    was_training = model.training
    model.eval()
    device = model.wte.weight.device
    nats = [torch.zeros((), device=device)]                 # of each batch; they stay on the device
    for i in range(rank * batch_size, len(x), world_size * batch_size):
        batch_x, batch_y = x[i:i + batch_size], y[i:i + batch_size]
        missing = batch_size - len(batch_x)
        batch_x = F.pad(batch_x, (0, 0, 0, missing))                    # rows of zeros
        batch_y = F.pad(batch_y, (0, 0, 0, missing), value=-1)          # which do not count
        with autocast:
            mean = model(batch_x.to(device), batch_y.to(device))
        nats.append(mean * (batch_y >= 0).sum())
    total = torch.stack(nats).cpu().double().sum()          # Apple's GPUs have no float64
    if world_size > 1:
        torch.distributed.all_reduce(total)
    model.train(was_training)
    return total.item() / (y >= 0).sum().item()


# ---- checkpoints
def save_checkpoint(path, model: GPT, tokenizer: dict, config: dict, **progress):
    """Write a checkpoint atomically and seal it. Raises Error if it cannot be written."""
    checkpoint = {
        'format': FORMAT,
        'model': model.state_dict(),
        'model_config': asdict(model.config),
        'tokenizer': tokenizer,         # spec of a data.tokenizer.Tokenizer
        'config': config,               # the knobs of train.py
        **progress,
        # best.pt: step, val_loss, best_val_loss, data {split: checksum};
        # ckpt.pt, to resume from: also optimizer [a state_dict each] and scaler, a state_dict
    }
    save_sealed(path, checkpoint)


def load_checkpoint(source, *needed: str, from_hub: bool = False) -> dict:
    """The checkpoint in a file, in a run's folder (best.pt, or else ckpt.pt), of nanoGPT, or of a
    Hugging Face model: a folder or, with from_hub, a name. It is on the CPU; no code in it can run.

    Raises Error if it is missing, damaged, inconsistent, or lacks a key in `needed`."""
    return read_checkpoint(source, FORMAT, needed, from_hub, GPT, GPTConfig)


def build_model(checkpoint: dict, **changes) -> GPT:
    """The model of a checkpoint; `changes` may give it other dropout or a smaller block_size."""
    config = GPTConfig(**{**checkpoint['model_config'], **changes})
    state = dict(checkpoint['model'])
    if config.arch == 'gpt2':
        positions = state['wpe.weight'][:config.block_size]
        require(len(positions) == config.block_size,
                f'block_size={config.block_size} is above the {len(positions)} of these weights')
        state['wpe.weight'] = positions
    model = GPT(config)
    model.load_state_dict(state)
    return model
