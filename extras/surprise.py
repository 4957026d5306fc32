"""A page that colours each token of a text by how unexpected it was, for --surprise=FILE.html"""
import math
from html import escape

import torch

from config._files import atomic
from data.files import bits_per_byte

MOST_TOKENS = 2000              # of the text that is shown
GUESSES = 5                     # tokens that the model expected, beside each one that came
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Surprise</title>
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><style>
body { font: 17px/1.9 Georgia, serif; max-width: 42rem; margin: 2rem auto 11rem; padding: 0 1rem }
p, small { font: 14px/1.6 ui-monospace, monospace }
main, small { white-space: pre-wrap; overflow-wrap: anywhere }
span { position: relative }
b { font-weight: normal; border-radius: 3px;
    background: rgb(255 100 0 / calc(.07 * min(10, var(--bits)))) }
span:focus { outline: none }
span:hover b, span:focus b { outline: 2px solid #ff6400 }
.eot { font: 12px/1 ui-monospace, monospace; padding: .1em .5em; border: 1px solid #888;
       border-radius: 1em }
small { display: none; position: absolute; left: 0; top: 1.7em; z-index: 1; width: 12rem;
        padding: .5em .8em; background: Canvas; border: 1px solid; border-radius: 6px }
span:hover small, span:focus small { display: block }
s { text-decoration: none; opacity: .4 } s::before { content: "\\21b5" }
@media (max-width: 72rem) { small { position: fixed; inset: auto 0 0 0; width: auto } }
</style><p>%s of <b style="--bits:0">&nbsp;0&nbsp;</b><b
style="--bits:5">&nbsp;5&nbsp;</b><b
style="--bits:10">&nbsp;10&nbsp;</b> bits: the model gave it a chance of 1 in 2<sup>bits</sup>.
Point at a token to see what the model expected in its place.
<b class="eot" style="--bits:0">&lt;eot&gt;</b> ends a text.</p>
<main>%s</main></html>
"""


def token_surprise(lm, ids: list[int]) -> list[tuple[float, list, list]]:
    """For each id: its surprise, -log2 of its probability; and the likeliest ids, as
    probabilities and ids.

    The model reads a long text as in generation: when its window is full, it goes on from the
    last half."""
    stream = torch.tensor([lm.tokenizer.eot, *ids], device=lm.model.wte.weight.device)
    inputs, targets = stream[:-1], stream[1:]
    block_size = lm.model.config.block_size
    surprises, start = [], 0                                # start of the window in inputs
    while len(surprises) < len(ids):
        read = inputs[start:start + block_size]
        known = len(surprises) - start                      # inputs that an earlier window has read
        with torch.inference_mode():
            log_p = lm.model(read[None])[0, known:].float().log_softmax(-1)         # (new, V)
        new = targets[start + known:start + len(read), None]                        # (new, 1)
        bits = -log_p.gather(1, new)[:, 0] / math.log(2)
        tokens = lm.tokenizer.vocab_size                    # the embedding may have more rows
        best = log_p[:, :tokens].topk(min(GUESSES, tokens))
        surprises += zip(bits.tolist(), best.values.exp().tolist(), best.indices.tolist())
        start += len(read) - max(1, block_size // 2) + 1
    return surprises


def colored(text: str) -> str:
    """A token as HTML. Its color begins behind its space, which may be at the end of a line."""
    word = text.lstrip(' ') or text
    space = text[:len(text) - len(word)]
    shown = escape(word).replace('\n', '<s>\n</s>')
    return f'{space}<b>{shown}</b>' if text else ''


def render(lm, ids: list[int], surprises: list) -> str:
    """The tokens as HTML. Tokens that make up one character are shown together."""
    html, bits, guesses = '', 0.0, ''
    *texts, rest = lm.tokenizer.decode_stream(ids)
    for i, text, (surprise, chances, likeliest) in zip(ids, texts, surprises):
        bits += surprise
        if not guesses:
            guesses = '\n'.join(f'{p:6.1%}  {lm.tokenizer.label(j)}'
                                for p, j in zip(chances, likeliest))
        if i == lm.tokenizer.eot:
            shown = f'<b class="eot">{escape(lm.tokenizer.label(i))}</b>'
        else:
            shown = colored(text)
        if shown:                                           # else its character is not complete
            html += (f'<span tabindex="0" style="--bits:{bits:.1f}">{shown}'
                     f'<small>{bits:.1f} bits; expected:\n{escape(guesses)}</small></span>')
            bits, guesses = 0.0, ''
    return html + escape(rest)


def draw_surprise(lm, prompt: str, path, dataset: str = '', eval_tokens: int = 0):
    """Write a page of the prompt or, if there is none, of the first validation document."""
    if prompt:
        ids = lm.tokenizer.encode(prompt)
    else:
        from extras.evaluation import open_validation
        ids = open_validation(lm, dataset, eval_tokens).documents[0].tolist()
    of_all = f' of {len(ids):,}' if len(ids) > MOST_TOKENS else ''
    ids = ids[:MOST_TOKENS]
    surprises = token_surprise(lm, ids)
    bits = sum(surprise for surprise, *_ in surprises)
    size = len(lm.tokenizer.decode(ids).encode())
    per_byte = bits_per_byte(bits * math.log(2), size)
    summary = (f'{len(ids):,}{of_all} tokens, {bits / len(ids):.2f} bits each, '
               f'{per_byte:.2f} per byte. A surprise')
    with atomic(path) as temporary:
        temporary.write_text(PAGE % (summary, render(lm, ids, surprises)), encoding='utf-8')
