"""extras.journey: the numbers on the page are those of the network, and the page shows them all."""
import base64
import json
import math
import re
import shutil
import string
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, TINY, write
from test_export import make as make_model
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models

from extras import heads
from extras.attention import attention_weights
from extras.draws import WORD, draws, next_words
from extras.export import export
from extras.heads import Measure, find_patterns, introduced_words
from extras.journey import collect, write_page
from extras.kept import kept_files, spread, weight_changes
from extras.lens import describe_tokens, look_through
from lib import checkpoint as checkpoints
from lib.errors import Error
from lib.tokenizer import Tokenizer, load_tokenizer
from model import GPT, GPTConfig
from sample import LanguageModel, load
from text.stories.teller import read_grammar, tell_stories
from text.vocabulary import train_bpe

SHAPES = ('gpt2', 'qwen3 untied', 'qwen3 grouped untied, own head_dim')
GRAMMAR = read_grammar()
STORIES = list(tell_stories(GRAMMAR, 20, 0))
PROMPT = 'Once upon a time, there was a '
NASTY = '</script><img src=x onerror="document.title=1"> {data} {js} & 日\n'
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


def make(shape='qwen3 untied', **more):
    """A language model whose embedding has more rows than its tokenizer has tokens."""
    small = dict(vocab_size=420, block_size=64, n_layer=3, n_head=2, n_embd=32)
    return LanguageModel(make_model(shape, **{**small, **more}), bpe())


def bpe(size=400):
    return Tokenizer(train_bpe([text for text, _ in STORIES] + [TEXT] * 2, size))


def some_ids(n=40):
    return torch.randint(300, (n,), generator=torch.Generator().manual_seed(1)).tolist()


def read_page(path='journey.html'):
    """What the page holds, with the attention as (L, H, T, T) per step; and its HTML."""
    html = Path(path).read_text(encoding='utf-8')
    start, text = re.search(r'(<script type="application/json" id="data">)(.*?)</script>', html,
                            re.S).groups()
    data = json.loads(text)
    T = len(data['tokens'])
    for step in data['steps']:
        raw = np.frombuffer(base64.b64decode(step['attention']), np.uint8)
        raw = torch.tensor(raw / 255).view(data['layers'], data['heads'], -1)
        step['attention'] = torch.zeros(*raw.shape[:2], T, T, dtype=raw.dtype)
        step['attention'][:, :, *torch.tril_indices(T, T)] = raw
    return data, html


def decided(scores, measure):
    return measure.name(dict(zip(measure.even, scores)))


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache') / 'run'


@pytest.fixture
def kept(run, request, cache):
    """A run of the dataset `letters` in out/ that kept the weights of six steps."""
    if not cache.exists():
        run('train.py', f'--dataset={request.getfixturevalue("dataset")}', *TINY,
            '--keep_weights=True')
        shutil.copytree('.', cache)
    shutil.copytree(cache, '.', dirs_exist_ok=True)


# ---- one text
@pytest.mark.parametrize('shape', SHAPES)
def test_after_each_layer_the_model_says_what_one_of_that_many_layers_would(shape):
    model, ids = make(shape).model, some_ids()
    lens = look_through(model, ids, vocab_size=400)
    assert lens.top_p.shape == lens.top_ids.shape == (4, 40, 5) and lens.next_p.shape == (4, 39)
    assert not model.h[0]._forward_hooks and not model.h[0]._forward_pre_hooks
    with torch.inference_mode():
        loss = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])).item()
        assert sum(lens.bits) * math.log(2) / 39 == pytest.approx(loss, rel=1e-5)
        for layers in (3, 2, 1, 0):
            model.h = model.h[:layers]
            p = model(torch.tensor([ids]))[0].softmax(-1)                       # (T, V)
            best = p[:, :400].topk(5)
            torch.testing.assert_close(lens.top_p[layers], best.values)
            assert torch.equal(lens.top_ids[layers], best.indices)
            torch.testing.assert_close(lens.next_p[layers], p[range(39), ids[1:]])


def byte_fallback():
    """A tokenizer as of Llama: what is not in its vocabulary becomes bytes."""
    names = ['</s>', '▁', 'a', *(f'<0x{byte:02X}>' for byte in range(256))]
    theirs = Theirs(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    theirs.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                        decoders.Fuse()])
    return load_tokenizer({'kind': 'hf', 'json': theirs.to_str(), 'eot': 0})


def test_tokens_that_are_part_of_a_character_show_its_bytes():
    byte_level = load_tokenizer({'kind': 'hf', 'json': bpe().spec['json'], 'eot': bpe().eot})
    for tokenizer in (bpe(), byte_level, byte_fallback(), Tokenizer({'kind': 'gpt2'})):
        found = describe_tokens(tokenizer, tokenizer.encode('a日ü'))
        shown = {part: ' '.join(token['bytes'] for token in found if token.get('part_of') == part)
                 for part in '日ü'}
        assert shown['日'] == 'e6 97 a5' and shown['ü'] in ('c3 bc', '')    # GPT-2 has a token of ü
        assert found[0]['text'] == 'a' and 'bytes' not in found[0]
    found = describe_tokens(tokenizer, [220, *tokenizer.encode('🙂🙂'), 64])
    assert {token.get('part_of') for token in found[1:-1]} == {'🙂'} and 'bytes' not in found[-1]
    assert ' '.join(token['bytes'] for token in found[1:-1]) == 'f0 9f 99 82 f0 9f 99 82'
    found = describe_tokens(Tokenizer({'kind': 'char', 'alphabet': 'a日ü'}), [3, 0, 1, 2])
    assert [token['text'] for token in found] == ['<eot>', 'a', '日', 'ü']
    assert [token['id'] for token in found] == [3, 0, 1, 2]


# ---- heads
def test_patterns_by_hand():
    """Token by token, where a head of each kind looks in: 9 1 2 3 1 2 7, 7 begins a name."""
    found = find_patterns([9, 1, 2, 3, 1, 2, 7, 4, 5, 7], [[[7], [8, 8]]])
    looks = {name: {(i, j) for i, j in torch.nonzero(pattern).tolist()}
             for name, pattern in found.items()}
    assert looks == {
        'introduced word': {(8, 6)},                        # 7 comes next
        'after the same token': {(4, 2), (5, 3), (9, 7)},
        'same token before': {(4, 1), (5, 2), (9, 6)},
        'previous token': {(i, i - 1) for i in range(2, 10)},
        'first token': {(i, 0) for i in range(2, 10)}}
    found = find_patterns([9, 8, 8, 1, 7, 3, 8, 8], [[[7], [8, 8]]])
    assert torch.nonzero(found['introduced word']).tolist() == [[3, 1], [5, 1], [5, 2]]
    found = find_patterns([9, *6 * [8]], [[[8, 8, 8]]])          # a mention ends before the next
    assert not found['introduced word'].any()
    assert 'introduced word' not in find_patterns([9, 1])


def test_the_words_of_the_stories_are_found():
    """Before each name that was mentioned before, and nowhere else."""
    lm = make()
    text = 'Lily saw a big dog.\n"Lily!" said Tom. The big dog saw Lily'
    ids = [lm.tokenizer.eot, *lm.tokenizer.encode(text)]
    texts = [lm.tokenizer.decode(ids[:t + 1]) for t in range(len(ids))]
    mask = find_patterns(ids, introduced_words(lm))['introduced word']
    after = {texts[t] for t in torch.nonzero(mask.any(dim=1))[:, 0].tolist()}
    assert after == {'Lily saw a big dog.\n"', 'Lily saw a big dog.\n"Lily!" said Tom. The big',
                     text.removesuffix(' Lily')}


def test_the_weights_of_an_edited_model_have_its_mask_or_are_refused(monkeypatch):
    model, idx = make().model, torch.arange(1, 13)[None]
    hidden = GPT.hidden
    i, j = torch.arange(12)[:, None], torch.arange(12)
    window = torch.where((j <= i) & (i - j < 4), 0.0, -math.inf)
    monkeypatch.setattr(GPT, 'hidden', lambda self, idx, **_: hidden(self, idx, mask=window))
    for weights in attention_weights(model, idx):
        assert weights[:, window < 0].max() == 0 and torch.allclose(weights.sum(-1), torch.ones(1))
    model.h[1].attn = torch.nn.Identity()
    with pytest.raises(Error, match='has no Attention'):
        attention_weights(model, idx)


def test_a_high_score_gives_a_name_and_that_of_even_attention_does_not():
    measure = Measure([[9, 1, 2, 3, 1, 2, 7], [9, 1, 1, 4, 5, 1, 4, 6, 4]])
    even = np.mean([1 / (i + 1) for n in (7, 9) for i in range(2, n)])
    assert measure.even['previous token'] == pytest.approx(even)
    assert decided(measure.even.values(), measure) == ''
    for k, name in enumerate(measure.even):
        exact = [found[name].float()[None, None] for found in measure.patterns]
        exact = [w / w.sum(-1, keepdim=True).clamp(min=1) for w in exact]
        scores = {name: score.item() for name, score in measure.add_up(exact).items()}
        assert scores[name] == pytest.approx(1) and measure.name(scores) == name
        least = max(heads.THRESHOLD, 2 * measure.even[name])
        for score, expected in ((least - .01, ''), (least + .01, name)):
            assert decided([score if i == k else 0 for i in range(4)], measure) == expected


# ---- what the grammar draws
def test_all_of_the_notation_is_followed(tmp_path):
    """Words in use are not drawn again; attributes, capitals, and `an` before a vowel."""
    (tmp_path / 'grammar.txt').write_text("""plot:
  - {Who} saw a {x=n} and a {y=n}, a {n}.

    {one=who} ate {x.food}. {Ending}
who: Ann, old Tom
ending:
  - the end.
  - {n}!
n (food):
    apple, ice
    owl, mice
    cat, fish
""")
    grammar = read_grammar(tmp_path / 'grammar.txt')
    for text, nats in set(tell_stories(grammar, 300, 3)):
        words = [*WORD.findall(text), '']
        possible = list(next_words(grammar, words))
        assert -sum(math.log(p[word]) for p, word in zip(possible, words)) == pytest.approx(nats)
        assert possible[words.index(' saw') + 1] == pytest.approx({' a': 1 / 3, ' an': 2 / 3})


def test_the_next_words_are_those_of_stories_that_begin_alike():
    told = [text for text, _ in tell_stories(GRAMMAR, 3000, 1)]
    for begin in ('', 'Once upon a time, there was a', 'Once upon a time, there was a kind girl'):
        after = [WORD.match(text, len(begin))[0] for text in told if text.startswith(begin)]
        possible = list(next_words(GRAMMAR, [*WORD.findall(begin), '']))[-1]
        assert set(after) == set(possible)
        for word, p in possible.items():
            assert after.count(word) / len(after) == pytest.approx(p, abs=.12)
    text = 'Once there was a kind girl named Emma who lived in an'              # `a` is not alone
    assert next_words(GRAMMAR, WORD.findall(text)) and draws(GRAMMAR, bpe(), text) is None


@pytest.mark.parametrize('kind', ['bpe', 'larger bpe', 'char'])
def test_tokens_are_drawn_or_determined(kind):
    tokenizer = bpe(900 if kind == 'larger bpe' else 400)
    if kind == 'char':
        tokenizer = Tokenizer({'kind': 'char', 'alphabet': string.printable})
        few = Tokenizer({'kind': 'char', 'alphabet': 'Once'})
        assert draws(GRAMMAR, few, 'Once') is None          # it cannot spell what else can come
    for text, nats in STORIES[:3]:
        ids, bits = tokenizer.encode(text), draws(GRAMMAR, tokenizer, text)
        assert len(bits) == len(ids)
        assert sum(bits) * math.log(2) == pytest.approx(nats)           # a story ends by itself
        assert all(b == 0 or b > .01 for b in bits) and bits.count(0) > len(bits) / 2
    begin = tokenizer.decode(ids[:30])
    assert draws(GRAMMAR, tokenizer, begin) == pytest.approx(bits[:30])
    name = re.search(r'named (\w+)', text)[1]
    for other in ('a cat', text.replace(name, 'Amy', 1), text + 'x', text.replace('. ', '.  ', 1)):
        assert draws(GRAMMAR, tokenizer, other) is None


# ---- the training
def test_of_many_kept_weights_twelve_are_shown_spread_evenly(tmp_path):
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, *range(250, 3001, 250)]
    (tmp_path / 'weights').mkdir()
    for name in [*(f'{step:07}.pt' for step in steps), '0000250.pt.tmp', 'best.pt']:
        (tmp_path / 'weights' / name).touch()
    files = kept_files(tmp_path)
    assert [step for step, _ in files] == steps
    chosen = [step for step, _ in spread(files, 12)]
    assert len(chosen) == 12 and chosen[0] == 0 and chosen[-1] == 3000 and set(chosen) < set(steps)
    gaps = np.diff(np.log1p(chosen))
    assert gaps.max() < 2.5 * gaps.min()
    assert spread(files[:12], 12) == files[:12] and spread(files, 2) == [files[0], files[-1]]
    assert spread(files, 1) == files[-1:] and kept_files(tmp_path / 'none') == []


@pytest.mark.parametrize('is_tied', [True, False])
def test_changes_of_the_weights_are_relative_to_their_part(is_tied):
    before, after = (make('gpt2', n_layer=2, tie_weights=is_tied).model for _ in range(2))
    assert set(weight_changes(before, after).values()) == {0.0}
    with torch.no_grad():
        after.wte.weight += .1
        after.h[1].attn.q_proj.weight[0, :4] += 1
        after.h[1].norm_1.weight[0] += 2
        after.norm_f.weight[:2] += 3
    h = before.h[1]
    expected = {'embedding': (.01 * before.wte.weight.numel(), before.wte, before.wpe),
                'layer 1, attention': (0, before), 'layer 1, MLP': (0, before),
                'layer 2, attention': (8, h.attn, h.norm_1), 'layer 2, MLP': (0, before),
                'output': (18, before.norm_f, *([] if is_tied else [before.lm_head]))}
    changes = weight_changes(before, after)
    assert list(changes) == list(expected)
    for part, (square, *modules) in expected.items():
        norm = torch.cat([p.flatten() for m in modules for p in m.parameters()]).norm().item()
        assert changes[part] == pytest.approx(math.sqrt(square) / norm, rel=1e-4), part


# ---- the page
def test_the_page_shows_each_kept_step_as_it_was(run, kept, capsys):
    rng = torch.get_rng_state()
    run('extras.journey', '--start=the cat sat', '--to=new/page.html')
    assert torch.equal(rng, torch.get_rng_state())
    assert 'written: new/page.html' in capsys.readouterr().out
    data, html = read_page('new/page.html')
    assert [step['step'] for step in data['steps']] == [0, 1, 2, 4, 8, 12]
    assert data['prompt'] == 'the cat sat' and data['draws'] is None and data['is_tied']
    assert re.fullmatch(r'8 held-out texts of data/letters, \d+ tokens', data['measured'])
    assert [token['text'] for token in data['tokens']] == ['<eot>', *'the·cat·sat']
    ids = [token['id'] for token in data['tokens']]
    for step in data['steps']:
        lm = load(f'out/weights/{step["step"]:07}.pt', dtype='float32')
        weights = torch.stack(attention_weights(lm.model, torch.tensor([ids])))
        assert (step['attention'] - weights).abs().max() <= .5 / 255 + 1e-6
        with torch.inference_mode():
            p = lm.model(torch.tensor([ids]))[0].softmax(-1)                    # (T, V)
        for t, (next_p, *top) in enumerate(step['lens'][-1]):
            best = p[t].topk(5)
            assert [i for i, _ in top] == best.indices.tolist()
            assert [q for _, q in top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert all(data['labels'][str(i)] == lm.tokenizer.label(i) for i, _ in top)
            if t + 1 < len(ids):
                assert next_p == pytest.approx(p[t, ids[t + 1]].item(), abs=1e-4)
                assert step['bits'][t] == pytest.approx(-math.log2(p[t, ids[t + 1]]), abs=1e-3)
        assert step['sample'] == lm.generate('the cat sat', max_new_tokens=60)[11:]
    changes = [step['changes'] for step in data['steps']]
    assert changes[0] is None
    assert all(0 < change < 10 for each in changes[1:] for change in each.values())
    curves = data['curves']
    assert [step for step, _ in curves['val_loss']][:4] == [0, 4, 8, 12]
    assert [step for step, _ in curves['lr']][:12] == list(range(1, 13))
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)|src=|@import|url\(', html)


def test_a_page_of_weights_alone_says_how_to_keep_more(run, kept):
    shutil.rmtree('out/weights')
    for source in ('out', 'out/ckpt.pt'):
        run('extras.journey', f'--out_dir={source}', '--start=the')
        data, html = read_page()
        assert [step['step'] for step in data['steps']] == [None]
        assert '--keep_weights=True' in html
        assert bool(data['curves']) == (source == 'out')


@pytest.mark.parametrize('shape', SHAPES)
def test_imported_models_are_measured_on_what_they_write(run, shape):
    lm = make(shape)
    export(lm, 'theirs')
    run('extras.journey', '--out_dir=theirs', f'--start={PROMPT}日')
    data, _ = read_page()
    ids = [token['id'] for token in data['tokens']]
    assert ids == [lm.tokenizer.eot, *lm.tokenizer.encode(f'{PROMPT}日')]
    assert 'wrote itself' in data['measured']
    assert [token['part_of'] for token in data['tokens'] if 'bytes' in token] == ['日'] * 3
    weights = torch.stack(attention_weights(lm.model, torch.tensor([ids])))
    assert (data['steps'][0]['attention'] - weights).abs().max() <= .5 / 255 + 1e-4


def test_on_a_story_the_page_shows_what_the_grammar_draws(run):
    lm = make()
    checkpoints.save('a.pt', lm.model, tokenizer=lm.tokenizer.spec, settings={'dataset': 'stories'})
    text = 'Once upon a time, there was a quiet girl named Lucy'
    run('extras.journey', '--out_dir=a.pt', f'--start={text}')
    data, _ = read_page()
    assert data['draws'] == pytest.approx(draws(GRAMMAR, lm.tokenizer, text), abs=1e-3)
    assert len(data['draws']) == len(data['tokens']) - 1 == len(data['steps'][0]['bits'])
    assert data['patterns'][0]['name'] == 'introduced word'
    run('extras.journey', '--out_dir=a.pt', '--start=Once upon a table')
    assert read_page()[0]['draws'] is None


def large_page(folder, prompt, **shape):
    """The page of a model, of 4 layers and 4 heads if not given, that kept twelve steps."""
    lm = make(**{'n_layer': 4, 'n_head': 4, **shape})
    for k in range(12):
        checkpoints.save(folder / f'out/weights/{2 ** k:07}.pt', lm.model,
                         tokenizer=lm.tokenizer.spec, settings={})
    log = 'step,train_loss,val_loss,bits_per_byte,lr\n1,2.0,2.0,1.0,0.1\n2048,1.0,1.0,0.5,0.1\n'
    write(folder / 'out/log.csv', log)
    write_page(collect(folder / 'out', prompt, ''), folder / 'a.html')
    return 1 + len(lm.tokenizer.encode(prompt))


@pytest.mark.parametrize('size, n_steps', [(4, 12), (8, 8), (12, 4)])
def test_a_large_page_is_small(tmp_path, size, n_steps):
    path = tmp_path / 'a.html'
    tokens = large_page(tmp_path, (PROMPT * 9)[:140], n_layer=size, n_head=size, n_embd=48)
    assert 55 <= tokens <= 64 and path.stat().st_size < 2_000_000
    assert abs(len(read_page(path)[0]['steps']) - n_steps) <= (size > 4)


def test_no_text_ends_the_script(tmp_path):
    large_page(tmp_path, NASTY[:40])
    data, html = read_page(tmp_path / 'a.html')
    assert data['prompt'] == NASTY[:40] and '<img' not in html
    assert html.count('</script>') == 2 and html.rstrip().endswith('</html>')


@pytest.mark.skipif(not CHROMIUM, reason='no browser')
def test_a_browser_draws_the_page(tmp_path):
    tokens = large_page(tmp_path, NASTY[:40])
    dom = subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
                          f'--user-data-dir={tmp_path}', (tmp_path / 'a.html').as_uri()],
                         text=True, capture_output=True, timeout=60).stdout
    page = dom.partition('<script type')[0]
    assert page.count('role="radio"') == tokens and page.count('<canvas') == 16
    assert page.count('aria-checked="true"') == page.count('aria-pressed="true"') == 1
    assert page.count('class="guesses"') == 5                       # the embedding and 4 layers
    assert re.search(r'<output for="step" id="step_output">2,048</output>', page)
    assert re.search(r'class="this"', page) and '<title>How' in page
    token = re.findall(r'aria-checked="(\w+)"', page).index('true')
    head = re.findall(r'aria-pressed="(\w+)"', page).index('true')
    step = read_page(tmp_path / 'a.html')[0]['steps'][-1]
    shown = [float(weight) for weight in re.findall(r'--weight: ([\d.e-]+)', page)]
    assert token > 1 and shown == pytest.approx(step['attention'].flatten(0, 1)[head, token].tolist())
    p = step['lens'][-1][token][0] if token < tokens - 1 else 0
    bits = step['bits'][token - 1]
    assert re.search(rf'id="bits"[^>]*>‘[^<]*’: {bits:.1f} bits', page)
    assert f'{p:.0%}</small></div></div>' in page or p < .1


# ---- what can go wrong
def damage(name):
    """Damage kept weights of out/, or replace them by some of another shape or tokenizer."""
    path, checkpoint = Path('out/weights/0000002.pt'), checkpoints.load('out')
    if name == 'corrupted':
        path.write_bytes(path.read_bytes()[:-300] + bytes(300))
        return
    model, spec = checkpoints.build_model(checkpoint), checkpoint['tokenizer']
    if name == 'shape':
        model = GPT(GPTConfig(model.config.vocab_size, n_layer=2, n_embd=24, block_size=16))
    if name == 'tokenizer':
        spec = {'kind': 'char', 'alphabet': spec['alphabet'][::-1]}
    checkpoints.save(path, model, tokenizer=spec, settings={})


@pytest.mark.parametrize('corrupted', ['corrupted', 'shape', 'tokenizer'])
def test_kept_weights_that_do_not_fit_are_an_error_and_nothing_is_written(run, kept, corrupted):
    damage(corrupted)
    before = set(Path().rglob('*'))
    with pytest.raises(Error, match=f'0000002.pt.*{corrupted}'):
        run('extras.journey', '--start=the')
    assert set(Path().rglob('*')) == before
