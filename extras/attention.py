"""A picture of what each head of each layer looks at, for --attention=FILE.png"""
import math

import torch

from config import require
from config._files import atomic
from model import Attention

MOST_TOKENS = 64                # more could not be read in the picture


class WatchedAttention(Attention):
    """Attention that keeps its weights, (H, T, T) of the first sequence, as `weights`."""

    def attend(self, q, k, v, mask):
        # Fused attention does not return its weights, but weights @ identity are the weights.
        B, K, S, D = v.shape
        identity = torch.eye(S, dtype=v.dtype, device=v.device).expand(B, K, S, S)
        self.weights = super().attend(q, k, identity, mask)[0]
        return super().attend(q, k, v, mask)


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
    from matplotlib.figure import Figure
    config, ids = lm.model.config, [lm.tokenizer.eot, *lm.tokenizer.encode(prompt)]
    T, most = len(ids), min(MOST_TOKENS, config.block_size)
    require(2 <= T <= most, f'attention draws a start of 1 to {most - 1} tokens, and this one has '
                            f'{T - 1}: set start')
    side = max(1.6, 0.11 * T)                               # inches of a head's square
    figure = Figure((config.n_head * side + 1, config.n_layer * side + 1), layout='compressed')
    figure.supylabel('each token', fontsize=9)
    figure.supxlabel('what it looks at: the darker, the more', fontsize=9)
    axes = figure.subplots(config.n_layer, config.n_head, sharex=True, sharey=True, squeeze=False)
    idx = torch.tensor([ids], device=lm.model.wte.weight.device)
    style = dict(labels=[lm.tokenizer.label(i) for i in ids], fontsize=7, parse_math=False)
    future = torch.ones(T, T).triu(1) > 0
    for layer, weights in enumerate(attention_weights(lm.model, idx)):
        for head, shares in enumerate(weights.float().cpu()):
            axis = axes[layer, head]
            shown = shares.sqrt().masked_fill(future, math.nan)     # sqrt: small shares can be seen
            axis.imshow(shown.numpy(), cmap='Blues', vmin=0, vmax=1)
            axis.set_facecolor('0.92')                      # of the future
            axis.set_title(f'layer {layer + 1}, head {head + 1}', fontsize=9)
            axis.set_xticks(range(T), rotation=90, **style)
            axis.set_yticks(range(T), **style)
    with atomic(path) as temporary:
        figure.savefig(temporary, format='png', dpi=110)
