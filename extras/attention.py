"""Draw what each head of each layer attends to: python -m extras.attention --start=TEXT"""
from lib.settings import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
start = ''                  # the text, or FILE:path to read it from; at most 63 tokens
to = 'attention.png'        # the picture, a .png file
settings = configure(globals())

import math
from pathlib import Path

import torch
from torch import Tensor

from extras.picture import new_picture
from lib.errors import require
from model import GPT, Attention, GPTConfig, attend, rotate
from sample import LanguageModel, load, read_prompt

MAX_TOKENS = 64                 # with more, labels are too small to read
MAX_PIXELS = 12_000             # on the longer side, to fit in memory


def attention_weights(model: GPT, idx: Tensor) -> list[Tensor]:
    """The attention weights of each layer, (H, T, T) each, for ids (1, T). Row i is how much
    token i attends to each token. Raises Error if a block has no Attention."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    require(len(layers) == len(model.h),
            'a block of this model has no Attention, so its weights cannot be shown')
    weights = []

    def record(layer: Attention, inputs: tuple):
        x, rope, _, mask = inputs                                   # x (1, T, C)
        weights.append(layer_weights(layer, x, rope, mask))

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    with torch.inference_mode():
        model.hidden(idx)
    for hook in hooks:
        hook.remove()
    return weights


def layer_weights(layer: Attention, x: Tensor, rope, mask) -> Tensor:
    """The weights (H, T, T) of one layer, for its inputs x (1, T, C). attend multiplies them by the
    values, so with the identity as values it returns the weights."""
    T, H, K, D = x.shape[1], layer.n_head, layer.n_kv_head, layer.head_dim
    q = layer.q_norm(layer.q_proj(x).view(1, T, H, D))
    k = layer.k_norm(layer.k_proj(x).view(1, T, K, D))
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    identity = torch.eye(T, device=x.device).expand(1, K, T, T)
    return attend(q.transpose(1, 2), k.transpose(1, 2), identity, mask)[0]


def read_ids(lm: LanguageModel, prompt: str) -> list[int]:
    """The ids of a prompt, after end-of-text. Raises Error if it has no tokens, or too many."""
    ids = [lm.tokenizer.eot, *lm.tokenizer.encode(prompt)]
    T, most = len(ids), min(MAX_TOKENS, lm.model.config.block_size)
    require(2 <= T <= most, f'start has {T - 1:,} tokens; set it to a text of 1 to {most - 1}')
    return ids


def draw_attention(lm: LanguageModel, prompt: str, path):
    """Draw the attention weights of a prompt: a row per layer, a column per head."""
    ids = read_ids(lm, prompt)
    config, T = lm.model.config, len(ids)
    idx = torch.tensor([ids], device=lm.model.wte.weight.device)
    labels = [lm.tokenizer.label(i) for i in ids]
    side = max(1.6, 0.11 * T)                                       # inches per head
    size = (config.n_head * side + 2, config.n_layer * side + 1)
    dpi = min(220, MAX_PIXELS / max(size))
    with new_picture(path, size, ''.join(labels), 'compressed', dpi) as figure:
        draw_heads(figure, config, attention_weights(lm.model, idx), labels)


def draw_heads(figure, config: GPTConfig, weights: list[Tensor], labels: list[str]):
    """Draw the weights (H, T, T) of each layer as squares, with a label per token."""
    from matplotlib.colors import PowerNorm

    T = len(labels)
    ticks = dict(ticks=range(T), labels=labels, fontsize=7)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    norm = PowerNorm(0.5, 0, 1)                                     # makes small weights visible
    figure.supylabel('token', fontsize=9)
    figure.supxlabel('tokens it attends to', fontsize=9)
    axes = figure.subplots(config.n_layer, config.n_head, sharex=True, sharey=True, squeeze=False)
    for layer in range(config.n_layer):
        for head in range(config.n_head):
            axis = axes[layer, head]
            shown = weights[layer][head].cpu().masked_fill(future, math.nan)
            image = axis.imshow(shown.numpy(), cmap='Blues', norm=norm)
            axis.set_facecolor('0.92')                              # later tokens
            axis.set_title(f'layer {layer + 1}, head {head + 1}', fontsize=9)
            axis.set_xticks(**ticks, rotation=90)
            axis.set_yticks(**ticks)
    bar = figure.colorbar(image, ax=axes, fraction=0.2 / figure.get_figwidth(), aspect=40,
                          ticks=[0, 0.05, 0.25, 0.5, 1], format='{x:.0%}')
    bar.set_label('attention weight', fontsize=9)
    bar.ax.tick_params(labelsize=8)


def main():
    path = Path(to).expanduser()
    require(path.suffix == '.png', f'to={to}: the name must end in .png')
    draw_attention(load(out_dir, dtype='float32'), read_prompt(start), path)
    print(f'written: {path}')


if __name__ == '__main__':
    main()
