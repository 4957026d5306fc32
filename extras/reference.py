"""GPT-2 and Qwen3 as transformers computes them, from a config.json and its tensors.

An export compares the model's logits with these. This file shares no code with model.py."""
import torch
import torch.nn.functional as F
from torch import Tensor


def reference_logits(config: dict, tensors: dict[str, Tensor], idx: Tensor) -> Tensor:
    """Logits (B, T, V) of ids (B, T)."""
    compute = gpt2_logits if config['model_type'] == 'gpt2' else qwen3_logits
    return compute(config, tensors, idx)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (B, T, H, D) to k, v (B, T, K, D), as (B, T, H * D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
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
        qkv = linear(norm(x, h + 'ln_1'), h + 'attn.c_attn')
        y = attention(*qkv.unflatten(2, (3, config['n_head'], -1)).unbind(2))
        x = x + linear(y, h + 'attn.c_proj')
        y = F.gelu(linear(norm(x, h + 'ln_2'), h + 'mlp.c_fc'), approximate='tanh')
        x = x + linear(y, h + 'mlp.c_proj')
    head = t.get('lm_head.weight', t['transformer.wte.weight'])
    return norm(x, 'transformer.ln_f') @ head.T


def qwen3_logits(config: dict, t: dict[str, Tensor], idx: Tensor) -> Tensor:
    D, T = config['head_dim'], idx.shape[1]
    frequencies = config['rope_theta'] ** (-torch.arange(0, D, 2).float() / D)
    angles = (torch.arange(T)[:, None, None] * frequencies).repeat(1, 1, 2)     # (T, 1, D)

    def norm(x, name):
        weight = t[name + '.weight']
        return F.rms_norm(x, weight.shape, weight, config['rms_norm_eps'])

    def linear(x, name):
        return x @ t[name + '.weight'].T

    def heads(x, name):                                     # (B, T, heads, D)
        return linear(x, name).unflatten(2, (-1, D))

    def rotate(x):
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()

    x = t['model.embed_tokens.weight'][idx]
    for layer in range(config['num_hidden_layers']):
        h = f'model.layers.{layer}.'
        y = norm(x, h + 'input_layernorm')
        q = rotate(norm(heads(y, h + 'self_attn.q_proj'), h + 'self_attn.q_norm'))
        k = rotate(norm(heads(y, h + 'self_attn.k_proj'), h + 'self_attn.k_norm'))
        v = heads(y, h + 'self_attn.v_proj')
        x = x + linear(attention(q, k, v), h + 'self_attn.o_proj')
        y = norm(x, h + 'post_attention_layernorm')
        y = F.silu(linear(y, h + 'mlp.gate_proj')) * linear(y, h + 'mlp.up_proj')
        x = x + linear(y, h + 'mlp.down_proj')
    head = t.get('lm_head.weight', t['model.embed_tokens.weight'])
    return norm(x, 'model.norm') @ head.T
