"""GPT-2 and Qwen3 as transformers computes them, from a config.json and its tensors.

An export compares the model's logits with these. This file shares no code with model.py."""
import torch
import torch.nn.functional as F
from torch import Tensor


def reference_logits(config: dict, tensors: dict[str, Tensor], idx: Tensor) -> Tensor:
    """Logits (B, T, V) of ids (B, T)."""
    compute = gpt2_logits if config['model_type'] == 'gpt2' else qwen3_logits
    return compute(config, tensors, idx)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * D) to (B, heads, T, D)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (B, H, T, D) to k, v (B, K, T, D), as (B, T, H * D)."""
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


def gpt2_logits(config: dict, t: dict[str, Tensor], idx: Tensor) -> Tensor:
    def norm(x, name):
        weight, bias = t[name + '.weight'], t[name + '.bias']
        return F.layer_norm(x, weight.shape, weight, bias, config['layer_norm_epsilon'])

    def linear(x, name):                                    # Conv1D: weights are (in, out)
        return x @ t[name + '.weight'] + t[name + '.bias']

    x = t['transformer.wte.weight'][idx] + t['transformer.wpe.weight'][:idx.shape[1]]
    for layer in range(config['n_layer']):
        h = f'transformer.h.{layer}.'
        qkv = linear(norm(x, h + 'ln_1'), h + 'attn.c_attn').chunk(3, dim=-1)
        y = attention(*(split_heads(part, config['n_head']) for part in qkv))
        x = x + linear(y, h + 'attn.c_proj')
        y = F.gelu(linear(norm(x, h + 'ln_2'), h + 'mlp.c_fc'), approximate='tanh')
        x = x + linear(y, h + 'mlp.c_proj')
    head = t.get('lm_head.weight', t['transformer.wte.weight'])
    return norm(x, 'transformer.ln_f') @ head.T


def qwen3_logits(config: dict, t: dict[str, Tensor], idx: Tensor) -> Tensor:
    D, T = config['head_dim'], idx.shape[1]
    H, K = config['num_attention_heads'], config['num_key_value_heads']
    frequencies = config['rope_theta'] ** (-torch.arange(0, D, 2).float() / D)
    angles = (torch.arange(T)[:, None] * frequencies).repeat(1, 2)      # (T, D)

    def norm(x, name):
        weight = t[name + '.weight']
        return F.rms_norm(x, weight.shape, weight, config['rms_norm_eps'])

    def linear(x, name):
        return x @ t[name + '.weight'].T

    def rotate(x):
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()

    x = t['model.embed_tokens.weight'][idx]
    for layer in range(config['num_hidden_layers']):
        h = f'model.layers.{layer}.'
        y = norm(x, h + 'input_layernorm')
        q = split_heads(linear(y, h + 'self_attn.q_proj'), H)
        k = split_heads(linear(y, h + 'self_attn.k_proj'), K)
        v = split_heads(linear(y, h + 'self_attn.v_proj'), K)
        q = rotate(norm(q, h + 'self_attn.q_norm'))
        k = rotate(norm(k, h + 'self_attn.k_norm'))
        x = x + linear(attention(q, k, v), h + 'self_attn.o_proj')
        y = norm(x, h + 'post_attention_layernorm')
        y = F.silu(linear(y, h + 'mlp.gate_proj')) * linear(y, h + 'mlp.up_proj')
        x = x + linear(y, h + 'mlp.down_proj')
    head = t.get('lm_head.weight', t['model.embed_tokens.weight'])
    return norm(x, 'model.norm') @ head.T
