"""The commands that look into a model: evaluate, compare, attention, surprise, plot."""
import json
import math
import random
import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, TINY, command, read_log
from matplotlib.figure import Figure
from test_export import make as make_model
from test_export import spec_of
from test_import import make_theirs, save_tokenizer

from extras.attention import attention_weights, draw_attention
from extras.evaluate import longest_overlap
from extras.export import export
from extras.picture import fonts_for, new_picture
from extras.plot import plot_losses
from extras.surprise import token_surprise, write_page
from lib import checkpoint as checkpoints
from lib.errors import Error
from lib.tokenizer import Tokenizer, load_tokenizer
from model import GPT, GPTConfig
from sample import LanguageModel
from text.vocabulary import train_bpe

COMMANDS = ('attention', 'compare', 'evaluate', 'export', 'journey', 'plot', 'surprise')
SHAPES = ('gpt2', 'gpt2 without biases', 'qwen3', 'qwen3 grouped',
          'qwen3 grouped untied, own head_dim')
HOSTILE = ('</script><script>document.title = "no"</script><img src=x onerror="alert(1)"> &amp; & '
           '\'"\n\n</main></small> <!-- {x} %s 50% $a$ ü – 日本語 🙂\ttab \\n \\ \u202e end')


class Words(Tokenizer):
    """A tokenizer of these words and of single bytes: many characters of HOSTILE take several."""
    kind, eot, waiting_ids = 'words', 256, ()
    words = ('</script>', '<script>', '<img src=x onerror="', '&amp;', '</main></small>', ' <!-- ')
    vocab_size = 257 + len(words)

    def __init__(self):
        pass

    def split(self, text):
        return re.findall('|'.join(map(re.escape, self.words)) + '|.', text, re.S)

    def encode(self, text):
        ids = []
        for part in self.split(text):
            ids += [257 + self.words.index(part)] if part in self.words else part.encode()
        return ids

    def decode(self, ids):
        parts = (self.words[i - 257].encode() if i > 256 else bytes([i]) for i in ids if i != 256)
        return b''.join(parts).decode(errors='replace')


def make(shape='qwen3', **more):
    model = make_model(shape, **{'vocab_size': Words.vocab_size, 'block_size': 64, **more})
    return LanguageModel(model, Words())


@pytest.fixture
def trained(run, dataset):
    """A run of the dataset `letters` in out/."""
    run('train.py', f'--dataset={dataset}', *TINY)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved from now on."""
    saved, save = [], Figure.savefig

    def savefig(figure, *args, **options):
        saved.append(figure)
        save(figure, *args, **options)
    monkeypatch.setattr(Figure, 'savefig', savefig)
    return saved


# ---- every command
@pytest.mark.parametrize('name', COMMANDS)
def test_help_lists_the_settings(name, tmp_path):
    shown = command(f'extras.{name}', '--help', cwd=tmp_path)
    assert shown.returncode == 0 and f'extras.{name}' in shown.stdout
    assert len(re.findall(r'^  --\w+=', shown.stdout, re.M)) >= 2


@pytest.mark.parametrize('name, settings, says', [
    *((name, *mistake) for name in ('attention', 'journey') for mistake in (
        (['--start=the', '--to=a.txt'], 'to=a.txt.*(png|html)'),
        ([], 'start has 0 tokens'),
        (['--start=' + 'the ' * 9], '36 tokens.* 1 to 15'))),
    *((name, *mistake) for name in ('journey', 'surprise') for mistake in (
        (['--start=Ü'], 'Ü'),
        (['--start=FILE:none.txt'], 'none.txt'),
        (['--start=the', '--to=letters.txt/a.html'], 'letters.txt'))),
    ('journey', ['--start=the', '--dataset=none'], 'none'),
    ('surprise', ['--dataset=none'], 'none'),
    ('surprise', ['--to=page.txt'], 'to=page.txt.*html'),
    ('surprise', ['--start=FILE:empty.txt'], 'the text is empty'),
    ('evaluate', ['--out_dir=none'], 'none'),
    ('evaluate', ['--eval_tokens=-1'], 'eval_tokens=-1'),
    ('compare', [], 'set --models'),
    ('compare', ['--models=none', '--temperature=-1'], 'temperature'),
    ('plot', ['--runs=none'], 'none/log.csv'),
    ('plot', ['--runs=out', '--to=a.txt'], 'to=a.txt.*png')])
def test_bad_input_is_an_error_and_nothing_is_written(run, trained, name, settings, says):
    Path('empty.txt').touch()
    before = set(Path().rglob('*'))
    with pytest.raises(Error, match=says):
        run(f'extras.{name}', *settings)
    assert set(Path().rglob('*')) == before


# ---- attention
@pytest.mark.parametrize('shape', SHAPES)
def test_the_weights_drawn_are_those_of_the_fused_kernel(shape):
    """In each layer, weights @ v is what the model's attention passes on to o_proj."""
    model, seen = make(shape).model, []
    for block in model.h:
        block.attn.v_proj.register_forward_hook(lambda module, inputs, v: seen.append(v[0]))
        block.attn.o_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ids = torch.randint(257, (1, 40))
    layers = attention_weights(model, ids)
    c = model.config
    assert len(layers) == 2 and len(seen) == 4
    for weights, v, y in zip(layers, seen[::2], seen[1::2]):
        v = v.unflatten(1, (c.n_kv_head, c.head_dim)).transpose(0, 1)           # (K, T, D)
        v = v.repeat_interleave(c.n_head // c.n_kv_head, dim=0)                 # (H, T, D)
        expected = (weights @ v).transpose(0, 1).flatten(1)                     # (T, H * D)
        torch.testing.assert_close(expected, y[0], atol=1e-5, rtol=1e-5)
        assert weights.shape == (4, 40, 40) and weights.triu(1).count_nonzero() == 0
        assert weights.max() > 0.5 > weights[:, -1].min()
    model(ids)                                          # nothing is left in the model
    assert len(layers) == 2 and not any(block.attn._forward_pre_hooks for block in model.h)


@pytest.mark.parametrize('n', [1, 10, 60])
def test_the_labels_of_an_attention_picture_are_readable(n, tmp_path, figures):
    lm = make(n_head=2)
    ids = lm.tokenizer.encode('a "$x$" and\n' * 8)[:n]
    draw_attention(lm, lm.tokenizer.decode(ids), tmp_path / 'a.png')
    figure, = figures
    figure.set_dpi(220)                                                         # as it was saved
    *squares, bar = figure.axes
    assert len(squares) == 4 and bar.get_ylabel() == 'attention weight'
    weights = attention_weights(lm.model, torch.tensor([[256, *ids]]))[0][0]
    assert np.allclose(squares[0].images[0].get_array().filled(0), weights)
    for axis, side in ((squares[0].yaxis, 'y'), (squares[2].xaxis, 'x')):
        labels = axis.get_ticklabels()
        assert [label.get_text() for label in labels] == ['<eot>', *map(lm.tokenizer.label, ids)]
        boxes = [getattr(label.get_window_extent(), f'interval{side}') for label in labels]
        assert all(abs(b - a) >= 18 for a, b in boxes)                          # pixels
        boxes = sorted(tuple(sorted(box)) for box in boxes)
        assert all(a[1] <= b[0] + 2 for a, b in zip(boxes, boxes[1:]))          # no overlap


def test_characters_without_a_font_get_one_warning(tmp_path, capsys, recwarn):
    assert fonts_for('Größe, Ωμέγα, Привет\n') == ['DejaVu Sans'] and not capsys.readouterr().err
    draw_attention(make(), 'a \ue123\ue124', tmp_path / 'a.png')     # bytes: U+FFFD, which is there
    assert not capsys.readouterr().err
    with new_picture(tmp_path / 'b.png', (2, 2), '\U0010fffd', 'constrained') as figure:
        figure.suptitle('\U0010fffd')                               # for private use
    assert re.fullmatch('warning: no installed font has .*\n', capsys.readouterr().err)
    assert not recwarn.list


# ---- surprise
@pytest.mark.parametrize('shape', SHAPES)
def test_surprise_is_that_of_the_model_with_at_least_half_a_context(shape):
    lm = make(shape, block_size=16)
    ids = torch.randint(256, (45,)).tolist()
    found = token_surprise(lm, ids)
    assert len(found) == 45
    contexts = [*range(1, 17), *10 * [*range(8, 17)]]           # as in generation
    for t, (bits, probabilities, likeliest) in enumerate(found):
        context = [256, *ids][t + 1 - contexts[t]:t + 1]
        with torch.inference_mode():
            p = lm.model(torch.tensor([context]))[0, -1].softmax(-1)
        assert bits == pytest.approx(-math.log2(p[ids[t]]), abs=1e-3)
        assert likeliest == p.topk(5).indices.tolist()
        assert probabilities == pytest.approx(p.topk(5).values.tolist(), abs=1e-4)


def test_the_page_shows_the_text_exactly_and_what_was_predicted(tmp_path):
    lm = make(block_size=256)
    write_page(lm, lm.tokenizer.encode(HOSTILE), tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    main = page.partition('<main>')[2].partition('</main>')[0]
    tips = [unescape(tip) for tip in re.findall('<small>(.*?)</small>', main, re.S)]
    assert unescape(re.sub('<small>.*?</small>|<[^>]*>', '', main, flags=re.S)) == HOSTILE
    assert not re.search('<(script|img|link)', page)
    surprises = iter(token_surprise(lm, lm.tokenizer.encode(HOSTILE)))
    for token, tip in zip(lm.tokenizer.split(HOSTILE), tips, strict=True):
        size = 1 if token in Words.words else len(token.encode())
        found = [next(surprises) for _ in range(size)]  # those of a character's bytes add up
        title, *lines = tip.splitlines()
        assert title.startswith(f'{sum(bits for bits, *_ in found):.1f} bits')
        assert lines == [f'{p:6.1%}  {lm.tokenizer.label(i)}' for p, i in zip(*found[0][1:])]


def test_the_page_shows_a_prompt_or_the_first_held_out_document(run, trained, capsys):
    run('extras.surprise', '--to=new/page.html')
    assert 'written: new/page.html' in capsys.readouterr().out
    page = Path('new/page.html').read_text(encoding='utf-8')
    assert page.count('tabindex') == int(page.split('<p>')[1].split()[0])
    assert '<b class="eot">&lt;eot&gt;</b>' in page
    run('extras.surprise', '--start=the cat sat')
    assert Path('surprise.html').read_text(encoding='utf-8').count('tabindex') == 11


# ---- evaluate
def test_evaluate_prints_the_loss_of_training(run, trained, capsys):
    capsys.readouterr()
    run('extras.evaluate')
    out, row = capsys.readouterr().out, read_log()[-1]
    loss = float(row['val_loss'])
    assert f'{loss:.4f} nats per token' in out and f'{math.exp(loss):.3f}' in out
    assert f'bits/byte   {float(row["bits_per_byte"]):.4f}' in out
    assert 'in float32' in out and 'floor' not in out
    held_out = re.search(r'held-out documents: up to (\d+) tokens', out)
    assert int(held_out[1]) > 40                        # the text repeats itself
    assert 'overlap     samples: up to' in out
    Path('new.txt').write_text('something else' * 50, encoding='utf-8')
    run('prepare.py', '--input=new.txt', '--tokenizer=char', '--name=new')
    with pytest.raises(Error, match='different tokenizer'):
        run('extras.evaluate', '--dataset=new')


def test_the_longest_overlap_is_found_wherever_it_is():
    rng = random.Random(0)
    for _ in range(60):
        train = [rng.randrange(3) for _ in range(rng.randrange(1, 80))]
        rows = [[rng.randrange(3) for _ in range(rng.randrange(20))]
                for _ in range(rng.randrange(1, 5))]
        text = ''.join(map(str, train))
        runs = [row[a:b] for row in rows for a in range(len(row))
                for b in range(a + 1, len(row) + 1) if ''.join(map(str, row[a:b])) in text]
        found = longest_overlap(rows, np.array(train, np.uint16))
        assert len(found) == max(map(len, runs), default=0) and (found in runs or not found)
    train = np.random.default_rng(0).integers(0, 60000, 200_000).astype(np.uint16)
    for start in (0, 65536 - 30, 131072 - 1, 199_940):      # across the pieces it is read in
        row = train[start:start + 60].tolist()
        assert longest_overlap([[60001] * 9, [60002, *row, 60003]], train) == row
    assert longest_overlap([[60001], [60002]], train) == []
    assert len(longest_overlap([train[:50].tolist(), train[50:100].tolist()], train)) == 50


# ---- compare
def save_theirs(folder, kind='gpt2', **tokenizer_config):
    """A random model of transformers with a BPE tokenizer, and this tokenizer."""
    tokenizer, model = load_tokenizer(spec_of('bpe')), make_theirs(kind)
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eot
    model.save_pretrained(folder)
    save_tokenizer(folder, 'bpe', tokenizer_class='PreTrainedTokenizerFast', **tokenizer_config)
    return tokenizer


def read_table(out):
    return {line.split()[0]: line.split() for line in out.splitlines() if line[:1] not in (' ', '')}


def test_compare_is_fair_across_tokenizers(run, trained, capsys):
    """Models that find all tokens equally likely have known bits per byte in any tokenizer."""
    letters = checkpoints.load('out')['tokenizer']
    expected, val = {}, json.loads(Path('data/letters/meta.json').read_text())['val']
    for name, spec in (('bpe', train_bpe([TEXT] * 9, 300)), ('char', letters)):
        tokenizer = load_tokenizer(spec)
        model = GPT(GPTConfig(tokenizer.vocab_size, block_size=32, n_layer=1, n_head=1, n_embd=8))
        torch.nn.init.zeros_(model.wte.weight)
        lm = LanguageModel(model.eval(), tokenizer)
        export(lm, name)
        text = load_tokenizer(letters).decode(np.fromfile('data/letters/val.bin', np.uint16))
        tokens = len(tokenizer.encode(text))
        expected[name] = tokens * math.log2(tokenizer.vocab_size) / val['bytes']
    checkpoints.save('uniform.pt', model, tokenizer=letters, settings={'dataset': 'letters'})
    capsys.readouterr()
    run('extras.compare', '--out_dir=uniform.pt', '--models=bpe,char', '--max_new_tokens=8')
    out = capsys.readouterr().out
    table = read_table(out)
    assert table['uniform.pt'][1:3] == table['char'][1:3]
    assert int(table['char'][1].replace(',', '')) == model.num_params()
    for name, bits in expected.items():
        assert float(table[name][2]) == pytest.approx(bits, abs=1e-4)
        assert int(table[name][3].replace(',', '')) > 0 and f'\n{name}: ' in out


@pytest.mark.parametrize('kind', ['gpt2', 'qwen3'])
def test_compare_agrees_with_a_plain_count_in_transformers(run, kind, capsys):
    """The nats of each document, where each fills more than half a window and so is alone in it."""
    from transformers import AutoModelForCausalLM
    texts = [f'{i} <|endoftext|> ' + 'a dog, a cat, or a mat? ' * 2 for i in range(8)]
    Path('text.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts))
    run('prepare.py', '--input=text.jsonl', '--name=text', '--tokenizer=char',
        '--val_fraction=0.5')
    run('train.py', '--dataset=text', *TINY)
    meta = json.loads(Path('data/text/meta.json').read_text())
    tokenizer = save_theirs('theirs', kind, eos_token='<|endoftext|>')
    model = AutoModelForCausalLM.from_pretrained('theirs').eval()
    ids = np.fromfile('data/text/val.bin', meta['dtype'])
    ends = np.flatnonzero(ids == meta['eot'])
    nats = 0.0
    for document in np.split(ids, ends + 1)[:-1]:
        document = tokenizer.encode(load_tokenizer(meta['tokenizer']).decode(document))
        assert 32 < len(document) <= 64
        with torch.no_grad():
            p = model(torch.tensor([[tokenizer.eot, *document[:-1]]])).logits.log_softmax(-1)
        nats -= p[0, range(len(document)), document].sum().item()
    capsys.readouterr()
    run('extras.compare', '--models=theirs', '--max_new_tokens=8', '--temperature=0')
    bits = float(read_table(capsys.readouterr().out)['theirs'][2])
    assert bits == pytest.approx(nats / math.log(2) / meta['val']['bytes'], abs=1e-4)


def test_models_that_cannot_be_compared_are_errors_and_their_code_does_not_run(run, trained):
    for name in ('nothing', 'no/model', 'a b'):
        with pytest.raises(Error, match=f'models={name}'):
            run('extras.compare', f'--models={name}')
    save_theirs('theirs')
    with pytest.raises(Error, match='models=theirs.* no token to begin'):
        run('extras.compare', '--models=theirs')
    Path('evil').mkdir()
    Path('evil/evil.py').write_text('open("exploded", "w")\nclass Evil: pass\n')
    Path('evil/config.json').write_text(json.dumps({'model_type': 'evil', 'auto_map': {
        'AutoConfig': 'evil.Evil', 'AutoModelForCausalLM': 'evil.Evil'}}))
    with pytest.raises(Error, match='models=evil'):
        run('extras.compare', '--models=evil')
    save_theirs('evil')
    save_tokenizer('evil', 'bpe', tokenizer_class='Evil',
                   auto_map={'AutoTokenizer': ['evil.Evil', 'evil.Evil']})
    with pytest.raises(Error, match='models=evil'):
        run('extras.compare', '--models=evil')
    assert not Path('exploded').exists()


def test_without_transformers_compare_gives_the_pip_command(run, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(Error, match='pip install transformers'):
        run('extras.compare', '--models=there')


# ---- plot
def labels_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_plot_of_one_run_shows_what_it_was_and_both_losses(run, trained, figures):
    plot_losses([Path('out')], 'loss.png', 2.345)
    (axes, strip), rows = figures[0].axes, read_log()
    train = [row for row in rows if row['train_loss']]
    val = [float(row['val_loss']) for row in rows if row['val_loss'] and row['step'] != '0']
    assert Path('loss.png').read_bytes()[:4] == b'\x89PNG'
    size = GPT(GPTConfig(**checkpoints.load('out')['model_config'])).num_params()
    assert axes.get_title('left') == f'{size:,} parameters, trained on letters for 12 steps'
    raw, smoothed, validation, floor = (list(line.get_ydata()) for line in axes.lines)
    assert raw == [float(row['train_loss']) for row in train]
    assert validation == val and floor == [2.345, 2.345]
    note, *labels = labels_of(figures[0])
    assert note.startswith('out\ntraining: ') and sorted(labels) == [
        'floor 2.3450, the entropy of the text', f'training {smoothed[-1]:.4f}',
        f'validation {val[-1]:.4f}']
    boxes = sorted(text.get_window_extent().intervaly.tolist() for text in axes.texts)
    assert all(a[1] <= b[0] + 2 for a, b in zip(boxes, boxes[1:]))          # no overlap
    assert list(strip.lines[0].get_ydata()) == [float(row['lr']) for row in train]
    plot_losses([Path('out')], 'loss.png')
    assert len(figures[1].axes[0].lines) == 3                               # no floor is known


@pytest.mark.parametrize('losses, least, low, most', [
    ([9.0] * 2 + [2.0] * 92 + [1.0] * 6, 0.8, 1, 2.5),
    ([2.0] * 50 + [1e9] * 20 + [2.0] * 30, 0, 2, 10)])
def test_the_range_of_a_plot_leaves_out_the_first_steps_and_absurd_values(
        trained, figures, losses, least, low, most):
    header = Path('out/log.csv').read_text().split('\n')[0]
    rows = [f'{step},0,{loss},,,0.001,1,1' for step, loss in enumerate(losses, 1)]
    Path('out/log.csv').write_text('\n'.join([header, *rows]))
    plot_losses([Path('out')], 'loss.png')
    bottom, top = figures[-1].axes[0].get_ylim()
    assert least < bottom < low and 2 < top < most


def test_a_plot_needs_a_loss_after_step_0(run, trained):
    rows = Path('out/log.csv').read_text().splitlines()
    Path('out/log.csv').write_text('\n'.join(rows[:2]))
    plot_losses([Path('out')], 'none.png')
    assert not Path('none.png').exists()
    with pytest.raises(Error, match='no loss'):
        run('extras.plot')


@pytest.mark.parametrize('text', ['epoch,loss\n1,2.5\n', '', 'step,train_loss,val_loss,'
                                  'bits_per_byte,lr\nx,1,,,\n', '\x00\xff'])
def test_a_log_of_another_program_is_an_error(run, trained, text):
    Path('out/log.csv').write_text(text, encoding='latin-1')
    with pytest.raises(Error, match='out/log.csv is not a log'):
        run('extras.plot')


def test_several_runs_are_compared_in_bits_per_byte(run, trained, figures, capsys):
    Path('new.txt').write_text(TEXT[::-1] * 8, encoding='utf-8')
    run('prepare.py', '--input=new.txt', '--name=new', '--tokenizer=char', '--val_fraction=0.2')
    run('train.py', '--dataset=new', *TINY, '--out_dir=new')
    figures.clear()
    for path in Path('new').glob('*.pt'):
        path.unlink()                                       # so its size is unknown
    run('extras.plot', '--runs=out, new')
    assert 'written: out/plot.png' in capsys.readouterr().out
    bits = {name: float(read_log(f'{name}/log.csv')[-1]['bits_per_byte'])
            for name in ('out', 'new')}
    notes, *labels = labels_of(figures[0])
    assert sorted(labels) == sorted(f'{name} {n:.4f}' for name, n in bits.items())
    assert 'bits per byte' in figures[0].axes[0].get_ylabel()
    assert 'out: ' in notes and ' parameters, trained on letters for 12 steps' in notes


def test_an_out_dir_may_have_a_comma_and_an_accent(trained):
    Path('out').rename('a,é')
    ascii_only = {'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'LC_ALL': 'C'}
    shown = command('extras.plot', '--runs=a,é', env=ascii_only)
    assert shown.returncode == 0, shown.stderr
    assert Path('a,é/plot.png').stat().st_size > 1000


def test_the_floor_is_drawn_where_all_runs_have_the_same(run, dataset, figures):
    """The same stories in two tokenizers have the same floor in bits per byte."""
    for tokenizer in ('bpe', 'char'):
        run('prepare.py', '--num_stories=60', f'--name={tokenizer}',
            f'--tokenizer={tokenizer}')
        run('train.py', f'--dataset={tokenizer}', *TINY, f'--out_dir={tokenizer}')
    run('train.py', '--dataset=bpe', *TINY, '--out_dir=part', '--eval_tokens=99')
    meta = json.loads(Path('data/bpe/meta.json').read_text())['val']
    nats = meta['nats'] / meta['tokens']
    bits = meta['nats'] / meta['bytes'] / math.log(2)
    for runs, floor in (('bpe', nats), ('bpe,char', bits), ('bpe,part', None), ('part', None)):
        run('extras.plot', f'--runs={runs}')
        found = [label for label in labels_of(figures[-1]) if label.startswith('floor')]
        assert found == ([f'floor {floor:.4f}, the entropy of the text'] if floor else []), runs
    run('prepare.py', '--num_stories=50', '--vocab_size=300', '--name=bpe', '--overwrite=True')
    run('extras.plot', '--runs=bpe')                            # other stories than it trained on
    assert not [label for label in labels_of(figures[-1]) if label.startswith('floor')]


def test_without_matplotlib_training_ends_with_a_warning(run, dataset, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    run('train.py', '--dataset=letters', *TINY)
    assert re.search('^warning: no loss.png: .*pip install matplotlib', capsys.readouterr().err,
                     re.M)
    assert Path('out/best.pt').exists() and not Path('out/loss.png').exists()
    with pytest.raises(Error, match='pip install matplotlib'):
        run('extras.plot')
