"""Color each token of a text by its surprise, as a web page: python -m extras.surprise

Surprise, -log2 of a token's probability, is high where a text branches and low where the context
determines what follows."""
from lib.settings import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
start = ''                  # the text, or FILE:path; '' = the first held-out document
to = 'surprise.html'        # the page, a .html file
dataset = ''                # NAME of data/NAME; '' = the one the model was trained on
settings = configure(globals())

import math
from html import escape
from pathlib import Path

import torch

from extras.evaluate import open_validation
from lib.dataset import bits_per_byte
from lib.errors import require
from lib.files import atomic
from sample import LanguageModel, load, read_prompt

MAX_TOKENS = 2000               # of the text
TOP = 5                         # predicted tokens to show for each position
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Surprise</title>
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><style>
body { font: 17px/1.9 Georgia, serif; max-width: 42rem; margin: 2rem auto 11rem; padding: 0 1rem }
p, small, .eot { font: 14px/1.6 ui-monospace, monospace }
main, small { white-space: pre-wrap; overflow-wrap: anywhere }
b { font-weight: normal; border-radius: 3px;
    background: rgb(255 100 0 / calc(.07 * min(10, var(--bits)))) }
.eot { padding: .1em .5em; border: 1px solid #888; border-radius: 1em }
small { display: none; position: fixed; inset: auto 0 0 0; padding: .5em 1em; background: Canvas;
        border-top: 1px solid }
span:is(:hover, :focus) small { display: block }
span:is(:hover, :focus) b { outline: 2px solid #ff6400 }
s { text-decoration: none; opacity: .4 } s::before { content: "\\21b5" }
</style><p>%s. Color is surprise: <b style="--bits:0">&nbsp;0&nbsp;</b><b
style="--bits:5">&nbsp;5&nbsp;</b><b
style="--bits:10">&nbsp;10&nbsp;</b> bits, -log<sub>2</sub> of a token's probability.
Hover over a token to see what the model predicted.
<b class="eot" style="--bits:0">&lt;eot&gt;</b> ends a text.</p>
<main>%s</main></html>
"""


def token_surprise(lm: LanguageModel, ids: list[int]) -> list[tuple]:
    """For each id its surprise in bits, and the probabilities and ids of the likeliest tokens.

    A long text is read as in generation: a full context restarts from its last half."""
    stream = torch.tensor([lm.tokenizer.eot, *ids], device=lm.model.wte.weight.device)
    inputs, targets = stream[:-1], stream[1:]
    block_size, vocab_size = lm.model.config.block_size, lm.tokenizer.vocab_size
    found, start = [], 0                                    # start of the window in inputs
    while len(found) < len(ids):
        window = inputs[start:start + block_size]
        known = len(found) - start                          # positions done in the last window
        with torch.inference_mode():
            log_p = lm.model(window[None])[0, known:].log_softmax(-1)               # (new, V)
        new = targets[len(found):start + len(window), None]                         # (new, 1)
        bits = -log_p.gather(1, new)[:, 0] / math.log(2)                            # (new,)
        best = log_p[:, :vocab_size].topk(min(TOP, vocab_size))     # the model may have more rows
        found += zip(bits.tolist(), best.values.exp().tolist(), best.indices.tolist())
        start += len(window) - max(1, block_size // 2) + 1
    return found


def render(lm: LanguageModel, ids: list[int], surprises: list[tuple]) -> str:
    """The tokens as HTML. Tokens that make up one character are shown as one."""
    html, bits, predicted = '', 0.0, ''
    *texts, rest = lm.tokenizer.decode_stream(ids)
    for i, text, (surprise, probabilities, likeliest) in zip(ids, texts, surprises):
        bits += surprise
        if not predicted:
            predicted = '\n'.join(f'{p:6.1%}  {lm.tokenizer.label(j)}'
                                  for p, j in zip(probabilities, likeliest))
        shown = render_text(text)
        if i == lm.tokenizer.eot:
            shown = f'<b class="eot">{escape(lm.tokenizer.label(i))}</b>'
        if shown:                                           # else its character is incomplete
            html += (f'<span tabindex="0" style="--bits:{bits:.1f}">{shown}'
                     f'<small>{bits:.1f} bits; predicted:\n{escape(predicted)}</small></span>')
            bits, predicted = 0.0, ''
    return html + escape(rest)


def render_text(text: str) -> str:
    """A token's text as HTML. The space before a word, which may end a line, gets no color."""
    word = text.lstrip(' ') or text
    space = text[:len(text) - len(word)]
    shown = escape(word).replace('\n', '<s>\n</s>')
    return f'{space}<b>{shown}</b>' if text else ''


def write_page(lm: LanguageModel, ids: list[int], path):
    """Write the page of a text's first MAX_TOKENS ids. Raises Error if it is empty."""
    of_all = f' of {len(ids):,}' if len(ids) > MAX_TOKENS else ''
    ids = ids[:MAX_TOKENS]
    size = len(lm.tokenizer.decode(ids).encode())
    require(size > 0, 'the text is empty: set start to a different one, or omit it')
    surprises = token_surprise(lm, ids)
    bits = sum(surprise for surprise, *_ in surprises)
    summary = (f'{len(ids):,}{of_all} tokens, {bits / len(ids):.2f} bits per token, '
               f'{bits_per_byte(bits * math.log(2), size):.2f} bits per byte')
    with atomic(path) as temporary:
        temporary.write_text(PAGE % (summary, render(lm, ids, surprises)), encoding='utf-8')


def main():
    path = Path(to).expanduser()
    require(path.suffix == '.html', f'to={to}: the name must end in .html')
    prompt = read_prompt(start)
    lm = load(out_dir, dtype='float32')
    if start:
        ids = lm.tokenizer.encode(prompt)
    else:
        ids = open_validation(lm, dataset, eval_tokens=0)[1][0].tolist()
    write_page(lm, ids, path)
    print(f'written: {path}')


if __name__ == '__main__':
    main()
