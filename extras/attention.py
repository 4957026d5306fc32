"""A picture of what each head of each layer looks at, for --attention=FILE.png"""
import math

import torch

from config import require
from config._files import atomic
from model import Attention

MOST_TOKENS = 64                # more could not be read in the picture
MOST_PIXELS = 12000             # on its longer side: more would not fit into memory


class WatchedAttention(Attention):
    """Attention that keeps its weights, (H, T, T) of the first sequence, as `weights`."""

    def attend(self, q, k, v):
        # Fused attention does not return its weights, but weights @ identity are the weights.
        B, K, S, D = v.shape
        identity = torch.eye(S, dtype=v.dtype, device=v.device).expand(B, K, S, S)
        self.weights = super().attend(q, k, identity)[0]
        return super().attend(q, k, v)


def attention_weights(model, idx) -> list:
    """The weights (H, T, T) of each layer for ids (1, T): how much token i takes from each
    token up to i."""
    layers = [block.attn for block in model.h]
    classes = [type(layer) for layer in layers]
    try:
        for layer, kind in zip(layers, classes):
            layer.__class__ = type('Watched', (WatchedAttention, kind), {})
        with torch.inference_mode():
            model(idx)
        return [layer.__dict__.pop('weights') for layer in layers]
    finally:
        for layer, kind in zip(layers, classes):
            layer.__class__ = kind


def draw_attention(lm, prompt: str, path):
    """Draw the attention of each layer (down) and head (across) in the prompt into a picture at
    path."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    config, ids = lm.model.config, [lm.tokenizer.eot, *lm.tokenizer.encode(prompt)]
    T, most = len(ids), min(MOST_TOKENS, config.block_size)
    require(2 <= T <= most, f'attention draws a start of 1 to {most - 1} tokens, and this one has '
                            f'{T - 1}: set start')
    side = max(1.6, 0.11 * T)                               # inches of a head's square
    size = config.n_head * side + 2, config.n_layer * side + 1
    figure = Figure(size, layout='compressed')
    figure.supylabel('each token', fontsize=9)
    figure.supxlabel('the tokens that it looks at', fontsize=9)
    axes = figure.subplots(config.n_layer, config.n_head, sharex=True, sharey=True, squeeze=False)
    idx = torch.tensor([ids], device=lm.model.wte.weight.device)
    style = dict(labels=[lm.tokenizer.label(i) for i in ids], fontsize=7, parse_math=False)
    future = torch.ones(T, T).triu(1) > 0
    norm = PowerNorm(0.5, 0, 1)                             # so that small shares can be seen
    for layer, weights in enumerate(attention_weights(lm.model, idx)):
        for head, shares in enumerate(weights.float().cpu()):
            axis = axes[layer, head]
            shown = shares.masked_fill(future, math.nan)
            image = axis.imshow(shown.numpy(), cmap='Blues', norm=norm)
            axis.set_facecolor('0.92')                      # of the future
            axis.set_title(f'layer {layer + 1}, head {head + 1}', fontsize=9)
            axis.set_xticks(range(T), rotation=90, **style)
            axis.set_yticks(range(T), **style)
    bar = figure.colorbar(image, ax=axes, fraction=0.2 / size[0], aspect=40,
                          ticks=[0, 0.05, 0.25, 0.5, 1], format='{x:.0%}')
    bar.set_label("share of a token's attention", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format='png', dpi=min(220, MOST_PIXELS / max(size)))
