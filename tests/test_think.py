"""What shows how a model thinks: attention, surprise (in a real browser, where there is one), overlap."""
import html
import json
import math
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from matplotlib.figure import Figure

from config import Error
from data.tokenizer import Tokenizer
from extras.attention import attention_weights, draw_attention
from extras.evaluation import longest_overlap
from extras.surprise import PAGE, draw_surprise, render, token_surprise
from model import GPT, Attention, GPTConfig
from sample import LanguageModel

SHAPES = {'gpt2': dict(arch='gpt2'), 'gpt2 with biases': dict(arch='gpt2', bias=True), 'qwen3': {},
          'qwen3 grouped': dict(n_kv_head=2), 'qwen3 own head_dim': dict(n_kv_head=1, head_dim=24)}
HOSTILE = ('</script><script>document.title = "no"</script><img src=x onerror="document.title = 1"> &amp; & '
           '\'"\n\n</main></small> <!-- {x} %s 50% $a$ ü – 日本語 🙂\ttab \\n \\ \u202e end')
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='no chromium here')


class Tokens(Tokenizer):
    """A tokenizer of these words and of single bytes: most characters of HOSTILE take several tokens."""
    words = ('</script>', '<script>', '<img src=x onerror="', '&amp;', '\'"\n', '</main></small>', ' <!-- ',
             '$\\frac$')
    eot, vocab_size = 256, 257 + len(words)

    def __init__(self):
        pass

    def split(self, text):
        return re.findall('|'.join(map(re.escape, self.words)) + '|.', text, re.S)

    def encode(self, text):
        parts = self.split(text)
        return [i for part in parts for i in
                ([257 + self.words.index(part)] if part in self.words else part.encode())]

    def decode(self, ids):
        parts = (self.words[i - 257].encode() if i > 256 else bytes([i]) for i in ids if i != 256)
        return b''.join(parts).decode(errors='replace')


def make(shape='qwen3', **more):
    """A language model with random weights, so large that it has opinions."""
    torch.manual_seed(0)
    small = dict(vocab_size=Tokens.vocab_size, block_size=64, n_layer=2, n_head=4, n_embd=64)
    model = GPT(GPTConfig(**{**small, **SHAPES[shape], **more})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.25)
    return LanguageModel(model, Tokens())


@pytest.fixture
def trained(run, dataset):
    run('train.py', f'--dataset={dataset}', *TINY)


# ---- attention
@pytest.mark.parametrize('shape', SHAPES)
def test_the_weights_drawn_are_those_the_model_attends_with(shape):
    """What softmax(QK) V of the weights makes is what fused attention made, in every layer."""
    model, seen = make(shape).model, []
    for block in model.h:
        block.attn.c_attn.register_forward_hook(lambda module, inputs, output: seen.append(output))
        block.attn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    ids = torch.randint(Tokens.vocab_size, (1, 40))
    layers = attention_weights(model, ids)
    assert len(layers) == 2 and len(seen) == 4
    c = model.config
    for block, weights, (qkv, out) in zip(model.h, layers, (seen[:2], seen[2:])):
        v = qkv[0, :, -c.n_kv_head * c.head_dim:].unflatten(1, (c.n_kv_head, -1)).transpose(0, 1)  # (H, T, D)
        y = weights @ v.repeat_interleave(c.n_head // c.n_kv_head, 0)
        y = block.attn.c_proj(y.transpose(0, 1).flatten(1))
        torch.testing.assert_close(y[None], out, atol=1e-4, rtol=1e-4)
        assert weights.shape == (4, 40, 40) and weights.triu(1).count_nonzero() == 0
        assert weights.max() > 0.5 > weights[:, -1].min()
    model(ids)                                          # and the model is left as it was
    assert len(seen) == 8 and all(type(block.attn) is Attention for block in model.h)
    assert not any('weights' in vars(block.attn) for block in model.h)


@pytest.mark.parametrize('n', [1, 10, 60])
def test_the_tokens_on_the_axes_can_be_read(n, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    lm = make(n_layer=2, n_head=4)
    ids = lm.tokenizer.encode('a "$\\frac$" and\n' * 8)[:n]
    draw_attention(lm, lm.tokenizer.decode(ids), tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'
    figure, = figures
    figure.set_dpi(220)                                                         # as it was saved
    *squares, bar = figure.axes
    assert len(squares) == 8 and bar.get_ylabel() == "share of a token's attention"
    assert [label.get_text() for label in bar.get_yticklabels()] == ['0%', '5%', '25%', '50%', '100%']
    shares = attention_weights(lm.model, torch.tensor([[256, *ids]]))[0][0]
    drawn = squares[0].images[0]
    assert np.allclose(drawn.get_array().filled(0), shares)                     # and not their roots
    assert drawn.norm(0.25) == pytest.approx(0.5) and drawn.norm(1) == 1
    width, height = struct.unpack('>II', (tmp_path / 'a.png').read_bytes()[16:24])
    assert width > 200 * 4 * 1.6 and height > 200 * 2 * 1.6                     # sharp at twice the size
    for axis, place in ((squares[0].yaxis, 'y'), (squares[4].xaxis, 'x')):
        labels = axis.get_ticklabels()
        assert [label.get_text() for label in labels] == ['<eot>', *map(lm.tokenizer.label, ids)]
        boxes = [getattr(label.get_window_extent(), f'interval{place}') for label in labels]
        assert all(abs(b - a) >= 18 for a, b in boxes)                           # pixels, at least
        boxes = sorted(tuple(sorted(box)) for box in boxes)
        assert all(a[1] <= b[0] + 2 for a, b in zip(boxes, boxes[1:]))          # none on another
    assert [lm.tokenizer.label(i) for i in (10, 32, 256)] == ['\\n', '·', '<eot>']


def test_the_picture_of_a_large_model_fits_into_memory(tmp_path, monkeypatch):
    dpis = []
    monkeypatch.setattr(Figure, 'savefig', lambda self, path, format, dpi: (
        dpis.append(dpi * max(self.get_size_inches())), Path(path).touch()))
    draw_attention(make(n_layer=1, n_head=16), 'x' * 63, tmp_path / 'a.png')
    assert 11_000 < dpis[0] <= 12_000                                           # pixels


# ---- surprise
@pytest.mark.parametrize('shape', SHAPES)
def test_surprise_is_that_of_the_model_with_at_least_half_a_context(shape):
    lm = make(shape, block_size=16)
    ids = torch.randint(256, (45,)).tolist()
    found = token_surprise(lm, ids)
    assert len(found) == 45
    contexts = [*range(1, 17), *10 * [*range(8, 17)]]           # as in generation
    for t, (bits, chances, likeliest) in enumerate(found):
        with torch.inference_mode():
            logits = lm.model(torch.tensor([[256, *ids][t + 1 - contexts[t]:t + 1]]))[0, -1]
        p = logits.softmax(-1)
        assert bits == pytest.approx(-math.log2(p[ids[t]]), abs=1e-3)
        assert likeliest == p.topk(5).indices.tolist()
        assert chances == pytest.approx(p.topk(5).values.tolist(), abs=1e-4)


def test_the_page_shows_a_text_or_a_held_out_one(run, trained, capsys):
    run('sample.py', '--surprise=there/page.html', '--dtype=float32')           # a folder is made
    assert 'written: there/page.html' in capsys.readouterr().out
    page = Path('there/page.html').read_text(encoding='utf-8')
    assert page.count('tabindex') == int(page.split('<p>')[1].split()[0]) and '&lt;eot&gt;' in page
    run('sample.py', '--surprise=page.html', '--start=the cat sat', '--dtype=float32')
    assert Path('page.html').read_text(encoding='utf-8').count('tabindex') == 11
    assert not {'http', 'src=', 'url(', '<script', '@import', '<link'} & set(page.split())


def browse(page: str, script: str, *flags, wait=False) -> dict:
    """What a script finds in the page, in a real browser: `found` is sent back. wait: until frames are loaded."""
    script += """
        document.documentElement.innerHTML = '<pre></pre>';
        document.querySelector('pre').textContent = JSON.stringify(found);"""
    script = f'onload = () => {{{script}}}' if wait else script
    Path('browse.html').write_text(f'{page}<script>{script}</script>', encoding='utf-8')
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom', *flags,
               f'--user-data-dir={Path("profile").resolve()}', Path('browse.html').resolve().as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, encoding='utf-8', timeout=120).stdout
    return json.loads(html.unescape(dom.split('<pre>')[1].split('</pre>')[0]))


@needs_browser
def test_a_browser_shows_the_text_exactly_and_what_was_expected_on_hover(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = make(block_size=256)
    lm.model.wte.weight.data[257:] *= 4                 # it expects what is bad for a page
    draw_surprise(lm, HOSTILE, 'page.html')
    found = browse(Path('page.html').read_text(encoding='utf-8'), """
        const spans = [...document.querySelectorAll('main > span')];
        const display = () => spans.map(s => getComputedStyle(s.querySelector('small')).display);
        const found = {before: display(), title: document.title, tips: [], scripts: document.scripts.length,
            images: document.images.length, loaded: performance.getEntriesByType('resource').length};
        for (const rule of document.styleSheets[0].cssRules)     // no mouse here: the same rules for a class
            if (rule.selectorText) rule.selectorText = rule.selectorText.replaceAll(':hover', '.hovered');
        spans[1].classList.add('hovered');
        found.after = display();
        const box = spans[1].querySelector('small').getBoundingClientRect();
        found.inside = box.width > 50 && box.left >= 0 && box.right <= innerWidth;
        for (const tip of document.querySelectorAll('small'))
            { found.tips.push(tip.textContent); tip.remove(); }
        found.text = document.querySelector('main').textContent;
        found.lines = document.querySelector('main').innerText.split('\\n').length;
        found.tokens = spans.map(s => s.textContent);""")
    assert found['text'] == HOSTILE and found['lines'] == 3
    assert found['tokens'] == lm.tokenizer.split(HOSTILE)       # each character is shown in one piece
    assert found['title'] == 'Surprise' and found['scripts'] == 1 and found['images'] == found['loaded'] == 0
    assert set(found['before']) == {'none'} and found['inside']
    assert [i for i, display in enumerate(found['after']) if display != 'none'] == [1]
    ids = iter(token_surprise(lm, lm.tokenizer.encode(HOSTILE)))
    for token, tip in zip(found['tokens'], found['tips'], strict=True):
        size = 1 if token in Tokens.words else len(token.encode())
        surprise = [next(ids) for _ in range(size)]     # those of a character's bytes add up
        title, *lines = tip.splitlines()
        assert title.startswith(f'{sum(bits for bits, *_ in surprise):.1f} bits')
        assert lines == [f'{p:6.1%}  {lm.tokenizer.label(i)}' for p, i in zip(*surprise[0][1:])]
    assert '<script>' in ''.join(found['tips']) and '&amp;' in ''.join(found['tips'])


@needs_browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_can_be_read_in_light_and_dark(tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    draw_surprise(make(), 'some words', 'page.html')
    found = browse(Path('page.html').read_text(encoding='utf-8'), """
        const span = document.querySelector('main > span');
        span.style.setProperty('--bits', 99);
        span.querySelector('small').style.color = 'Canvas';
        const numbers = color => color.match(/[\\d.]+/g).map(Number);
        const style = getComputedStyle(span.querySelector('b')), tip = getComputedStyle(span.querySelector('small'));
        const found = {token: numbers(style.backgroundColor), ink: numbers(style.color),
                       paper: numbers(tip.color)};""",
                   '--blink-settings=preferredColorScheme=' + str(int(scheme == 'light')))

    def luminance(color):
        r, g, b = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3])
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    alpha = found['token'][3]
    mixed = [alpha * a + (1 - alpha) * b for a, b in zip(found['token'], found['paper'])]
    ink, paper, token = map(luminance, (found['ink'], found['paper'], mixed))
    assert (ink > paper) == (scheme == 'dark') and alpha == pytest.approx(0.7)
    for ground in (paper, token):                       # the ratio that WCAG 2 asks for
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5


@needs_browser
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_no_color_hangs_at_the_end_of_a_line_and_an_end_of_text_is_no_text(tmp_path, monkeypatch, scheme, width):
    monkeypatch.chdir(tmp_path)
    lm = make()
    text = 'of all the words <eot> that were written here some end a line\n  and x = 3 ' * 9
    words = re.findall(' *[^ ]+| +$', text)
    monkeypatch.setattr(Tokens, 'words', tuple(words))
    monkeypatch.setattr(Tokens, 'vocab_size', 257 + len(words))
    ids = [*range(257, 257 + len(words) - 1), 256]
    page = PAGE % ('A page', render(lm, ids, [(5.0, [1.0], [97])] * len(ids)))
    found = browse(f"<iframe width={width} height=3000 srcdoc='{html.escape(page)}'></iframe>", """
        const inner = document.querySelector('iframe').contentDocument;
        const main = inner.querySelector('main'), all = [...main.querySelectorAll('span')];
        const clear = element => getComputedStyle(element).backgroundColor == 'rgba(0, 0, 0, 0)';
        const kind = element => { const s = getComputedStyle(element);
                                  return [s.fontSize, s.fontFamily, s.borderTopStyle, s.borderTopWidth]; };
        const found = {clear: all.every(clear), texts: all.map(s => s.querySelector('b').textContent),
            colored: all.every(s => !clear(s.querySelector('b'))), kinds: [...main.querySelectorAll('b')].map(kind),
            lines: new Set(all.map(s => s.getBoundingClientRect().top)).size,
            width: inner.documentElement.clientWidth, scroll: inner.documentElement.scrollWidth};""",
                   '--blink-settings=preferredColorScheme=' + str(int(scheme == 'light')),
                   '--window-size=1500,900', '--virtual-time-budget=3000', wait=True)
    assert found['clear'] and found['colored'] and found['lines'] > 9
    assert found['scroll'] <= found['width'] == width
    assert found['texts'] == [*(word.lstrip(' ') for word in words[:-1]), '<eot>']
    *text_kinds, end_kind = found['kinds']
    assert all(kind == text_kinds[0] for kind in text_kinds) and '<eot>' in found['texts'][:-1]
    assert end_kind[:2] != text_kinds[0][:2] and end_kind[2:] == ['solid', '1px'] and text_kinds[0][2] == 'none'


# ---- what it copies
def test_the_longest_overlap_is_found_wherever_it_stands():
    rng = random.Random(0)
    for _ in range(60):
        train = [rng.randrange(3) for _ in range(rng.randrange(1, 80))]
        rows = [[rng.randrange(3) for _ in range(rng.randrange(0, 20))] for _ in range(rng.randrange(1, 5))]
        text = ''.join(map(str, train))
        runs = [row[a:b] for row in rows for a in range(len(row)) for b in range(a + 1, len(row) + 1)
                if ''.join(map(str, row[a:b])) in text]
        found = longest_overlap(rows, np.array(train, np.uint16))
        assert len(found) == max(map(len, runs), default=0) and (found in runs or not found)
    train = np.random.default_rng(0).integers(0, 60000, 200_000).astype(np.uint16)
    for at in (0, 65536 - 30, 131072 - 1, 199_940):     # over the borders of the pieces it is read in
        row = train[at:at + 60].tolist()
        assert longest_overlap([[60001] * 9, [60002, *row, 60003]], train) == row
    assert longest_overlap([[60001], [60002]], train) == []
    assert longest_overlap([train[:50].tolist(), train[50:100].tolist()], train) != train[:100].tolist()


def test_evaluate_says_how_much_is_copied(run, trained, capsys):
    capsys.readouterr()
    run('sample.py', '--evaluate=True', '--dtype=float32')
    samples, held_out = (line for line in capsys.readouterr().out.splitlines() if line.startswith('overlap'))
    assert '20 samples' in samples and '1 held-out' in held_out
    words = 'the cat sat on the mat. a dog ran to the sun!'
    assert int(held_out.split()[1]) > len(words) and 'tokens' in held_out       # the text repeats itself


# ---- bad input
@pytest.mark.parametrize('args, names', [
    (['--attention=a.jpg', '--start=the'], 'attention=a.jpg.*png'), (['--attention=a.png'], 'has 0'),
    (['--attention=True', '--start=the'], 'png'), (['--attention=a.png', '--start=Ü'], 'Ü'),
    (['--attention=a.png', '--start=' + 'the ' * 9], '1 to 15 tokens.*36'),
    (['--surprise=page.txt'], 'surprise=page.txt.*html'), (['--surprise=page.html', '--start=Ü'], 'Ü'),
    (['--surprise=page.html', '--start=FILE:none.txt'], 'none.txt'),
    (['--surprise=page.html', '--dataset=none'], 'none'), (['--surprise=letters.txt/a.html'], 'letters.txt')])
def test_bad_input_is_an_error_and_nothing_is_written(run, trained, args, names):
    before = set(Path().rglob('*'))
    with pytest.raises(Error, match=names):
        run('sample.py', *args)
    assert set(Path().rglob('*')) == before
