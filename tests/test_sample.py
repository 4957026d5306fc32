import copy
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TEXT, TINY, read_log
from matplotlib.figure import Figure
from torch.nn.utils import parametrize, prune

from config import Error
from config._files import save_sealed
from data.tokenizer import Tokenizer
from extras.plots import plot_losses
from model import GPT, Attention, GPTConfig, load_checkpoint, save_checkpoint
from sample import LanguageModel, load


@pytest.fixture
def trained(run, dataset):
    """The model of a run in out/."""
    run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=40', '--learning_rate=0.02',
        '--eval_interval=20', '--head_gain=1', '--decay_power=1')
    return load('out', dtype='float32')


def test_the_end_of_a_reader_is_no_error(trained):
    command = [sys.executable, ROOT / 'sample.py', '--num_samples=1', '--max_new_tokens=2000', '--top_k=5']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait(60) == 141


def test_generate_returns_prompt_and_continuation_and_depends_on_the_seed_alone(trained):
    text = trained.generate('the cat', max_new_tokens=30)
    assert text.startswith('the cat') and 8 < len(text) <= 37
    assert text == trained.generate('the cat', max_new_tokens=30)
    assert text != trained.generate('the cat', max_new_tokens=30, seed=1)
    assert ''.join(trained.stream('the cat', max_new_tokens=30)) == text[7:]
    assert trained.generate(max_new_tokens=5)                       # a new document
    assert trained.generate('a dog', max_new_tokens=9, temperature=0) == trained.generate(
        'a dog', max_new_tokens=9, top_k=1)
    assert not trained.model.training and trained.tokenizer.vocab_size == trained.model.config.vocab_size
    plain = load('out', dtype='float32', fast=False)
    assert plain.generate('the cat', max_new_tokens=30) == text and trained.sampler and not plain.sampler


def continuation(lm):
    """What lm generates, which is what a plain model with its weights generates."""
    model = GPT(lm.model.config).to(lm.model.wte.weight.dtype).eval()
    model.load_state_dict(lm.model.state_dict())
    text = lm.generate('the', max_new_tokens=40)
    assert text == LanguageModel(model, lm.tokenizer).generate('the', max_new_tokens=40)
    return text


@torch.no_grad()
def move(parameters):
    """Change weights in place."""
    for i, p in enumerate(parameters):
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_loaded_model_is_an_ordinary_one_whatever_becomes_of_its_weights(trained, dtype):
    lm = load('out', dtype=dtype)
    assert lm.model.wte.weight.dtype == getattr(torch, dtype) and type(lm.model) is GPT
    assert lm.generate('the', max_new_tokens=40)            # any faster copy is made by now
    other, texts = GPT(lm.model.config).eval(), []
    move(other.parameters())
    first = {name: tensor.float() for name, tensor in copy.deepcopy(lm.model.state_dict()).items()}
    for change in (lm.model.double, lm.model.float, lambda: lm.model.load_state_dict(other.state_dict()),
                   lambda: move(lm.model.parameters()), lambda: move([lm.model.lm_head.weight]),
                   lambda: lm.model.load_state_dict(first, assign=True), lambda: setattr(lm, 'model', other),
                   other.half, lambda: other.to('cpu', torch.float32)):
        change()
        texts.append(continuation(lm))
    assert continuation(lm) == texts[-1] and type(other.lm_head) is torch.nn.Linear
    assert len(set(texts[1:5])) == 4 and texts[5:7] == texts[1:3]
    other.bfloat16()
    assert lm.generate('the', max_new_tokens=40)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_loaded_model_can_be_copied_saved_and_trained_on(trained, dtype):
    lm = load('out', dtype=dtype)
    text = lm.generate('the', max_new_tokens=40)
    torch.save(lm, 'whole.pt')
    again = torch.load('whole.pt', weights_only=False)
    for other in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm)), again):
        assert other.generate('the', max_new_tokens=40) == text and other.dataset == 'letters'
        move(other.model.parameters())
        assert other.generate('the', max_new_tokens=40) != text == lm.generate('the', max_new_tokens=40)
    ids = torch.tensor(lm.tokenizer.encode(TEXT)[:65])
    x, y = ids[:-1].view(4, 16), ids[1:].view(4, 16)
    optimizer, losses = torch.optim.AdamW(lm.model.train().parameters(), 1e-2), []
    for _ in range(20):
        loss = lm.model(x, y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lm.generate('the', max_new_tokens=2)
    assert losses[-1] < 0.8 * losses[0] and lm.model.training
    assert continuation(lm) != text if dtype == 'float32' else lm.generate('the', max_new_tokens=40) != text


def test_what_is_hung_into_a_loaded_model_takes_effect(trained):
    before = trained.generate('the', max_new_tokens=40)
    for hang in (lambda layer: layer.register_forward_hook(lambda *_: torch.zeros(())),
                 lambda layer: prune.l1_unstructured(layer, 'weight', 0.9),
                 lambda layer: parametrize.register_parametrization(layer, 'weight', torch.nn.Tanhshrink())):
        lm = copy.deepcopy(trained)
        lm.generate('the', max_new_tokens=2)                # the faster copy is made by now
        hang(lm.model.h[0].mlp.c_proj)
        plain = LanguageModel(lm.model, lm.tokenizer)
        assert before != lm.generate('the', max_new_tokens=40) == plain.generate('the', max_new_tokens=40)


def test_importing_and_loading_change_no_random_state_and_install_no_hook(trained):
    script = """if True:
        import logging, random, signal, sys
        import numpy, torch

        def state():
            signals = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
            return (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
                    sys.excepthook, signals, logging.root.manager.disable, torch.get_default_dtype(),
                    torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled())
        before = state()
        import prepare, sample
        assert state() == before
        lm = sample.load('out', dtype='float32')
        assert state() == before
        print(lm.generate('the', max_new_tokens=40), end='')
        assert state() == before"""
    shown = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                           env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (shown.stderr, shown.stdout) == ('', trained.generate('the', max_new_tokens=40))


@pytest.mark.parametrize('knobs, says', [
    ({'num_samples': 3}, 'num_samples'), ({'max_new_tokens': 2.0}, 'max_new_tokens=2.0'),
    ({'top_k': '5'}, "top_k='5'"), ({'seed': True}, 'seed=True'), ({'temperature': None}, 'temperature=None'),
    ({'temprature': 1}, 'temprature'), ({'prompt': ['the']}, 'prompt is a list'), ({'prompt': None}, 'NoneType')])
def test_a_wrong_argument_is_named(trained, knobs, says):
    with pytest.raises((Error, TypeError), match=says):
        trained.generate(**knobs)
    with pytest.raises(Error, match=r'\[-1\] is not the id of a token'):
        trained.tokenizer.decode([0, -1])
    assert trained.generate('the', max_new_tokens=numpy.int64(2), seed=numpy.int64(1), temperature=numpy.float32(1))


def test_ids_that_the_tokenizer_lacks_are_never_sampled(tmp_path):
    spec = {'kind': 'char', 'alphabet': 'ab'}
    for rows in (64, 2):
        model = GPT(GPTConfig(rows, block_size=16, n_layer=1, n_embd=8))
        save_checkpoint(tmp_path / f'{rows}.pt', model, spec, {})
    for fast in (False, True):
        lm = load(tmp_path / '64.pt', fast=fast)
        ids = torch.stack(list(lm.ids('a', 20, max_new_tokens=9)))
        assert ids.unique().tolist() == [0, 1, 2]
    with pytest.raises(Error, match='3 tokens do not fit vocab_size=2'):
        load(tmp_path / '2.pt')


@pytest.mark.slow
def test_samples_are_the_same_compiled_and_where_there_is_no_compiler(trained):
    def samples(*args, **env):
        command = [sys.executable, ROOT / 'sample.py', '--dtype=float32', '--start=the', *args]
        shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
        assert shown.returncode == 0 and ('not compiled: ' in shown.stderr) == bool(env), shown.stderr
        return shown.stdout

    plain = samples()
    assert len(plain) > 300 and samples('--compile=True') == plain
    assert samples('--compile=True', CXX='/none/g++', TORCHINDUCTOR_FORCE_DISABLE_CACHES='1') == plain


def test_the_data_is_not_needed_any_more(trained):
    before = trained.generate('the', max_new_tokens=20)
    shutil.rmtree('data')
    Path('out').rename('elsewhere')
    for path in ('elsewhere', 'elsewhere/best.pt'):
        assert load(path, dtype='float32').generate('the', max_new_tokens=20) == before
    best = load_checkpoint('elsewhere/best.pt')['step']
    assert best <= load_checkpoint('elsewhere/ckpt.pt')['step']


def test_streaming_never_yields_half_a_character(trained):
    class Bytes(Tokenizer):
        """A tokenizer of single bytes: each of these characters takes several tokens."""
        eot = 256

        def decode(self, ids):
            longest.append(len(ids))
            return bytes(i for i in ids if i < 256).decode(errors='replace')

    data, longest = 'aé漢🙂!'.encode(), []
    trained.tokenizer = object.__new__(Bytes)
    trained.ids = lambda prompt, **knobs: iter(torch.tensor([b]) for b in data)
    assert list(filter(None, trained.stream())) == ['a', 'é', '漢', '🙂', '!']
    data = data[:-2]
    assert ''.join(trained.stream()) == 'aé漢\ufffd'                # cut short, but not lost
    assert max(longest) <= 5                                        # nor is all decoded again and again
    for _ in range(200):
        data = random.choices('aé漢🙂!'.encode(), k=12)               # much of it are no characters
        assert ''.join(trained.stream()) == bytes(data).decode(errors='replace')


def test_the_script_prints_samples_and_its_speed(run, trained, capsys):
    capsys.readouterr()
    run('sample.py', '--start=the', '--max_new_tokens=40', '--num_samples=2', '--dtype=float32')
    two = capsys.readouterr()
    assert len(re.findall('-{60}', two.out)) == 2 and re.search(r'\d+ tokens per second', two.err)
    run('sample.py', '--start=the', '--max_new_tokens=40', '--num_samples=1', '--dtype=float32')
    one = capsys.readouterr().out
    assert two.out.startswith(one.rstrip('\n'))                     # sample 0 is the same, alone or not
    Path('prompt.txt').write_text('the')
    run('sample.py', '--start=FILE:prompt.txt', '--max_new_tokens=40', '--num_samples=1', '--dtype=float32')
    assert capsys.readouterr().out == one


@pytest.mark.parametrize('n', [1, 3])
def test_the_speed_is_that_of_all_tokens_that_are_shown(run, trained, capsys, monkeypatch, n):
    capsys.readouterr()
    monkeypatch.setattr('time.perf_counter', itertools.count().__next__)     # one second in all
    run('sample.py', '--start=the', '--max_new_tokens=40', f'--num_samples={n}', '--dtype=float32')
    shown = capsys.readouterr()
    letters = sum(len(text.removeprefix('the')) for text in re.split(r'\n-*\n?', shown.out))
    assert 0 <= int(shown.err.split()[0]) - letters <= 2        # an end-of-text counts, but does not show


# ---- a talk
def talk(*args, typed, **more):
    """What the script shows, talked to through a pipe; `typed` may be text or bytes."""
    command = [sys.executable, ROOT / 'sample.py', '--interactive=True', '--dtype=float32', *args]
    typed = typed if isinstance(typed, bytes) else typed.encode()
    return subprocess.run(command, input=typed, capture_output=True, timeout=120, **more)


def test_it_talks_until_an_empty_line_or_the_end_of_the_input(run, trained, capsys, monkeypatch):
    for typed, prompts in (('the cat\na dog\n\nmore\n', 3), ('the cat\n', 2), ('the cat\na dog', 3), ('', 1)):
        monkeypatch.setattr(sys, 'stdin', io.StringIO(typed))
        capsys.readouterr()
        run('sample.py', '--interactive=True', '--max_new_tokens=10', '--dtype=float32')
        shown = capsys.readouterr()
        assert shown.out.count('> ') == prompts and not shown.err
        if prompts > 1:
            assert '> ' + trained.generate('the cat', max_new_tokens=10)[7:] + '\n> ' in shown.out


def test_what_it_does_not_know_does_not_end_a_talk(trained):
    shown = talk('--max_new_tokens=9', typed='Ünknown\nthe cat\n')
    assert shown.returncode == 0 and shown.stdout.count(b'> ') == 3
    error, = shown.stderr.decode().splitlines()
    assert error.startswith('error: ') and "'Ü'" in error
    shown = talk(typed=b'the \xff cat\n', env={**os.environ, 'PYTHONUTF8': '1', 'PYTHONIOENCODING': 'utf-8:strict'})
    assert shown.returncode == 2 and shown.stderr == b'error: the input is not utf-8 text\n'


def test_a_prompt_of_a_talk_may_be_longer_than_the_window(trained):
    prompt = 'the cat sat on the mat. ' * 20
    assert trained.model.config.block_size == 16 and len(prompt) > 9 * 16
    shown = talk('--max_new_tokens=30', typed=prompt + '\n')
    text = trained.generate(prompt, max_new_tokens=30)[len(prompt):]
    assert shown.returncode == 0 and not shown.stderr and f'> {text}\n> ' in shown.stdout.decode()
    assert trained.generate('the ' + prompt, max_new_tokens=30).endswith(text)      # the last half counts


def test_the_knobs_of_a_text_can_be_shown_and_set_in_a_talk(trained):
    lines = ['/help', 'the cat', '/temperature 0', '/max_new_tokens 7', 'the cat', '/seed=5', '/top_k  3 ', '/help']
    shown = talk('--max_new_tokens=30', '--top_p=0.9', typed='\n'.join(lines))
    first, before, *said, after, _, _, last, _ = shown.stdout.decode().split('> ')[1:]
    assert shown.returncode == 0 and not shown.stderr
    helped = dict(re.findall(r'^/(\w+) (\S+)  +\S', first, re.M))
    assert helped == {'temperature': '0.8', 'top_k': '0', 'top_p': '0.9', 'repetition_penalty': '1.0',
                      'max_new_tokens': '30', 'seed': '1337'}
    assert 'below 1 safer, above 1 wilder' in first
    assert before[:-1] == trained.generate('the cat', max_new_tokens=30, top_p=0.9)[7:]
    assert said == ['temperature is 0.0 now\n', 'max_new_tokens is 7 now\n']
    assert after[:-1] == trained.generate('the cat', max_new_tokens=7, temperature=0)[7:]
    assert dict(re.findall(r'^/(\w+) (\S+)  +\S', last, re.M)) == helped | {
        'temperature': '0.0', 'max_new_tokens': '7', 'seed': '5', 'top_k': '3'}


@pytest.mark.parametrize('line, says', [
    ('/temp 1', 'did you mean /temperature'), ('/temperature', 'temperature'), ('/temperature -1', 'temperature'),
    ('/temperature x', 'temperature'), ('/temperature nan', 'temperature'), ('/temperature 1 2', '1 2'),
    ('/top_p 0', 'top_p'), ('/top_k 1.5', 'top_k'), ('/max_new_tokens 0', 'max_new_tokens'), ('/seed -1', 'seed'),
    ('/out_dir x', '/out_dir'), ('/', '/help'), ('/help me', '/help')])
def test_a_wrong_knob_in_a_talk_gets_one_line_and_changes_nothing(run, trained, capsys, monkeypatch, line, says):
    monkeypatch.setattr(sys, 'stdin', io.StringIO(f'/help\n{line}\n/help\n'))
    capsys.readouterr()
    run('sample.py', '--interactive=True')
    shown = capsys.readouterr()
    before, nothing, after, _ = shown.out.split('> ')[1:]
    error, = shown.err.splitlines()
    assert before == after and not nothing and error.startswith('error: ') and says in error


@pytest.fixture
def terminal(trained):
    """terminal(*args) starts a talk in a terminal of its own: send(text), expect(pattern), end()."""
    fcntl, pty, termios, _ = map(pytest.importorskip, ('fcntl', 'pty', 'termios', 'readline'))
    started = []

    class Terminal:
        def __init__(self, *args):
            self.ours, theirs = pty.openpty()
            command = [sys.executable, ROOT / 'sample.py', '--interactive=True', '--dtype=float32', *args]
            self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
                                            env={**os.environ, 'TERM': 'dumb'}, start_new_session=True,
                                            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
            os.close(theirs)
            self.shown = ''
            started.append(self)

        def send(self, text):
            os.write(self.ours, text.encode())

        def read(self):
            """Read what is there within a second; '' at the end."""
            try:
                ready, _, _ = select.select([self.ours], [], [], 1)
                self.shown += os.read(self.ours, 4096).decode(errors='replace') if ready else ''
                return True
            except OSError:                                 # the other side is closed
                return False

        def expect(self, pattern):
            """Wait until the pattern is shown, and forget all up to its end."""
            until = time.monotonic() + 60
            while not (found := re.search(pattern, self.shown)):
                assert self.read() and time.monotonic() < until, f'{pattern!r} is not in {self.shown[-500:]!r}'
            self.shown = self.shown[found.end():]
            return found

        def end(self):
            """Wait for the end; what was shown, and the exit status."""
            until = time.monotonic() + 60
            while self.read():
                assert time.monotonic() < until, self.shown[-500:]
            return self.shown, self.process.wait(20)

    yield Terminal
    for each in started:
        each.process.kill()
        each.process.wait()
        os.close(each.ours)


@pytest.mark.parametrize('key', ['\x03', '\x04', '\r'], ids=['Ctrl-C', 'Ctrl-D', 'Enter'])
def test_each_of_these_keys_ends_a_talk_in_order(terminal, key):
    t = terminal('--max_new_tokens=5')
    t.expect('> ')
    time.sleep(0.5)                                         # readline may miss one while it starts
    t.send(key)
    shown, status = t.end()
    assert status == 0 and 'Traceback' not in shown and shown.endswith('\n')


def test_ctrl_c_ends_the_text_and_not_the_talk(terminal):
    t = terminal('--max_new_tokens=200000')
    t.expect('> ')
    for prompt in ('the cat', 'a dog'):
        t.send(prompt + '\r')
        t.expect(prompt + r'\r\n[^>]{40}')                   # it writes, and would for a minute
        t.send('\x03')
        t.expect(r'\r\n> ')
    t.send('/max_new_tokens 5\r')
    t.expect('max_new_tokens is 5 now\r\n> ')
    t.send('the\r')
    t.expect('the\r\n[^>]+\r\n> ')
    t.send('\x04')
    shown, status = t.end()
    assert status == 0 and 'Traceback' not in shown and 'error' not in shown


def test_lines_can_be_edited_and_come_back(terminal):
    t = terminal('--max_new_tokens=5', '--temperature=0')
    t.expect('> ')
    t.send('/topk 3\x1b[D\x1b[D\x1b[D_\r')                 # left, left, left: before the k
    t.expect('top_k is 3 now\r\n> ')
    t.send('\x1b[A\x7f4\r')                               # the last line again, its 3 replaced by 4
    t.expect('top_k is 4 now\r\n> ')
    t.send('\x04')
    assert t.end()[1] == 0


# ---- plots
@pytest.fixture
def pictures(monkeypatch):
    """What is drawn from now on: a dict for each picture."""
    drawn, save = [], Figure.savefig

    def savefig(figure, *args, **knobs):
        axes, strip = figure.axes
        drawn.append({'unit': axes.get_ylabel(), 'labels': [text.get_text() for text in axes.texts],
                      'boxes': [text.get_window_extent().get_points()[:, 1].tolist() for text in axes.texts],
                      'lines': [line.get_ydata() for line in axes.lines], 'legend': axes.get_legend(),
                      'rates': [line.get_ydata() for line in strip.lines], 'dpi': knobs['dpi']})
        save(figure, *args, **knobs)
    monkeypatch.setattr(Figure, 'savefig', savefig)
    return drawn


def test_each_line_of_a_picture_ends_with_its_last_value(run, trained, pictures):
    plot_losses([Path('out')], 'loss.png', floor=2.345)
    picture, = pictures
    rows = read_log()
    assert Path('loss.png').read_bytes()[:4] == b'\x89PNG' and picture['dpi'] == 160 and picture['legend'] is None
    assert sorted(picture['labels']) == sorted([f'train loss {float(rows[-1]["train_loss"]):.4f}',
                                                f'val loss {float(rows[-1]["val_loss"]):.4f}', 'floor 2.3450'])
    assert picture['unit'] == 'nats per token' and len(picture['lines']) == 3
    boxes = sorted(picture['boxes'])
    assert all(a[1] <= b[0] + 1 for a, b in zip(boxes, boxes[1:]))          # none on another
    assert list(picture['rates'][0]) == [float(row['lr']) for row in rows[1:]]
    plot_losses([Path('out')], 'loss.png')
    assert len(pictures[1]['lines']) == 2


def test_a_picture_needs_a_loss_after_step_0(run, trained, pictures):
    rows = Path('out/log.csv').read_text().splitlines()
    Path('out/log.csv').write_text('\n'.join(rows[:2]))
    plot_losses([Path('out')], 'none.png')
    assert not Path('none.png').exists()
    with pytest.raises(Error, match='no loss yet'):
        run('sample.py', '--plot=out')
    Path('out/log.csv').write_text('\n'.join(rows[:3]))
    run('sample.py', '--plot=out')
    assert [len(line) for line in pictures[0]['lines']] == [1, 0]


def test_losses_of_several_runs_are_drawn_together(run, dataset, trained, pictures):
    run('train.py', f'--dataset={dataset}', *TINY, '--out_dir=other')
    pictures.clear()
    run('sample.py', '--plot=out,other')
    assert Path('out/plot.png').read_bytes()[:4] == b'\x89PNG'
    assert pictures[0]['unit'] == 'nats per token' and len(pictures[0]['labels']) == 4
    assert {label.split(':')[0] for label in pictures[0]['labels']} == {'out', 'other'}
    Path('other/log.csv').write_text('epoch,loss\n1,2.5\n')
    with pytest.raises(Error, match='other/log.csv'):
        run('sample.py', '--plot=out,other')


def test_runs_on_different_data_are_drawn_in_bits_per_byte(run, trained, pictures):
    Path('new.txt').write_text(TEXT[::-1] * 8, encoding='utf-8')
    run('prepare.py', '--input=new.txt', '--name=new', '--tokenizer=char', '--val_fraction=0.2')
    run('train.py', '--dataset=new', *TINY, '--out_dir=new')
    pictures.clear()
    run('sample.py', '--plot=out,new')
    run('sample.py', '--plot=new')
    bits = {name: float(read_log(f'{name}/log.csv')[-1]['bits_per_byte']) for name in ('out', 'new')}
    assert pictures[0]['unit'] == 'bits per byte' and pictures[1]['unit'] == 'nats per token'
    assert sorted(pictures[0]['labels']) == sorted(f'{name}: val loss {n:.4f}' for name, n in bits.items())
    for path in Path('new').glob('*.pt'):
        path.unlink()                                                       # its data is not known any more
    run('sample.py', '--plot=out,new')
    run('sample.py', '--plot=new')
    assert pictures[2]['unit'] == 'bits per byte' and pictures[3]['unit'] == 'nats per token'


def test_the_floor_is_drawn_where_all_runs_share_it(run, dataset, pictures):
    """Two tokenizers of the same stories have one floor in bits per byte, though not in nats per token."""
    for tokenizer in ('bpe', 'char'):
        run('prepare.py', '--num_stories=60', '--vocab_size=300', f'--name={tokenizer}', f'--tokenizer={tokenizer}')
        run('train.py', f'--dataset={tokenizer}', *TINY, f'--out_dir={tokenizer}')
    run('train.py', '--dataset=bpe', *TINY, '--out_dir=part', '--eval_tokens=99')
    run('train.py', f'--dataset={dataset}', *TINY, '--out_dir=other')
    meta = json.loads(Path('data/bpe/meta.json').read_text())['val']
    nats, bits = meta['entropy'] / meta['tokens'], meta['entropy'] / meta['bytes'] / math.log(2)
    for runs, floor in (('bpe', nats), ('bpe,bpe', nats), ('bpe,char', bits), ('bpe,part', nats), ('part', None),
                        ('bpe,other', None)):
        run('sample.py', f'--plot={runs}')
        found = [label for label in pictures[-1]['labels'] if label.startswith('floor')]
        assert found == ([f'floor {floor:.4f}'] if floor else []), runs
    for stories in (0, 50):                                     # the data is gone, then there are others
        shutil.rmtree('data/bpe')
        if stories:
            run('prepare.py', f'--num_stories={stories}', '--vocab_size=300', '--name=bpe')
        run('sample.py', '--plot=bpe')
        assert not [label for label in pictures[-1]['labels'] if label.startswith('floor')]
        Path('data/bpe').mkdir(exist_ok=True)


# ---- an export replaces only what it wrote
def files_in(folder='.'):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def test_an_export_can_be_repeated_and_leaves_what_lies_beside_it(run, trained):
    Path('empty').mkdir()
    for folder in ('empty', 'there/new'):
        run('sample.py', f'--export={folder}')
        assert (Path(folder, 'model.safetensors')).stat().st_size > 1000
    Path('empty/notes.txt').write_text('mine')
    before = files_in('empty')
    move(trained.model.parameters())
    save_checkpoint('moved.pt', trained.model, trained.tokenizer.spec, {})
    run('sample.py', '--out_dir=moved.pt', '--export=empty')
    changed = {path.name for path, content in files_in('empty').items() if before[path] != content}
    assert changed == {'model.safetensors', 'checksums.json'}
    assert load('empty', dtype='float32').generate('the') == trained.generate('the')


@pytest.mark.parametrize('change', ['other', 'foreign', 'weights', 'config', 'list', 'added', 'folder', 'file'])
def test_an_export_refuses_a_folder_with_files_that_it_did_not_write(run, trained, change):
    Path('mine').mkdir()
    if change in ('weights', 'config', 'folder', 'added'):
        run('sample.py', '--export=mine')
    if change == 'other':
        Path('mine/report.txt').write_text('years of work')
    elif change == 'foreign':                                   # a model of others, with a list of their own
        for name in ('config.json', 'model.safetensors'):
            Path('mine', name).write_text('theirs')
        Path('mine/checksums.json').write_text('{"sha256": "1"}')
    elif change == 'weights':                                   # trained on in place, elsewhere
        Path('mine/model.safetensors').write_bytes(b'better')
    elif change == 'config':
        Path('mine/config.json').write_text('{}')
    elif change == 'list':
        Path('mine/checksums.json').write_text('1')
    elif change == 'added':                                     # by hand, where an export wrote none
        sums = json.loads(Path('mine/checksums.json').read_text())
        del sums['generation_config.json']
        Path('mine/checksums.json').write_text(json.dumps(sums))
    elif change == 'folder':
        Path('mine/config.json').unlink()
        Path('mine/config.json').mkdir()
    else:
        Path('mine').rmdir()
        Path('mine').write_text('a file')
    before = files_in()
    with pytest.raises(Error, match='mine.*(new|another)'):
        run('sample.py', '--export=mine')
    assert files_in() == before


def test_an_export_for_llama_cpp_refuses_a_file_of_another_kind(run, dataset):
    run('prepare.py', '--input=letters.txt', '--name=bpe', '--vocab_size=280', '--val_fraction=0.2')
    run('train.py', '--dataset=bpe', *TINY)
    for _ in range(2):                                          # its own file may be replaced
        run('sample.py', '--export=model.gguf')
    assert Path('model.gguf').read_bytes()[:4] == b'GGUF'
    Path('mine.gguf').write_text('years of work')
    Path('empty.gguf').touch()
    Path('folder.gguf').mkdir()
    before = files_in()
    for name in ('mine.gguf', 'empty.gguf', 'folder.gguf'):
        with pytest.raises(Error, match=f'{name}.*another'):
            run('sample.py', f'--export={name}')
    assert files_in() == before


def test_an_export_wants_a_name(trained):
    command = [sys.executable, ROOT / 'sample.py', '--export=True']
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 2 and not Path('True').exists()
    assert shown.stderr == 'error: export=True: name a folder, or a file that ends in .gguf\n'


# ---- bad input
@pytest.mark.parametrize('args, names', [
    (['--out_dir=nothing'], 'nothing'), (['--start=Ünknown'], 'Ü'), (['--start=FILE:none.txt'], 'none.txt'),
    (['--temperature=-1'], 'temperature'), (['--top_p=0'], 'top_p'), (['--top_p=1.5'], 'top_p'),
    (['--top_k=-1'], 'top_k'),
    (['--num_samples=0'], 'num_samples'), (['--max_new_tokens=0'], 'max_new_tokens'), (['--seed=-1'], 'seed'),
    (['--repetition_penalty=0'], 'repetition_penalty'),
    (['--repetition_penalty=1e-39'], 'repetition_penalty'), (['--plot=nothing'], 'nothing'),
    (['--device=tpu'], 'tpu'),
    (['--interactive=True', '--evaluate=True'], 'interactive excludes evaluate'),
    (['--n_layer=3'], 'n_layer')])
def test_bad_input_is_an_error(run, trained, args, names):
    with pytest.raises(Error, match=names):
        run('sample.py', *args)


def test_a_checkpoint_that_lacks_something_is_an_error(run, trained):
    checkpoint = load_checkpoint('out/best.pt')
    save_sealed('whole.pt', checkpoint)
    run('sample.py', '--out_dir=whole.pt', '--max_new_tokens=2')
    for key in ('model', 'model_config', 'tokenizer', 'config', 'format'):
        save_sealed('half.pt', {k: v for k, v in checkpoint.items() if k != key})
        with pytest.raises(Error, match='half.pt'):
            run('sample.py', '--out_dir=half.pt')


def scaled_and_turned(layer, x, rope=None):
    return 0.5 * plain_forward(layer, x.flip(-1), rope)


def near_keys(layer, q, k, v):
    """A sliding window of 9 tokens."""
    T = q.shape[2]
    mask = torch.ones(T, T, dtype=torch.bool).tril().triu(-8)
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=layer.n_head != layer.n_kv_head)


plain_forward = Attention.forward


@pytest.mark.parametrize('method, change', [('forward', scaled_and_turned), ('attend', near_keys)])
def test_a_changed_attention_is_what_is_sampled_from(run, trained, monkeypatch, method, change):
    """The faster routines of extras/ step aside where they would compute something else."""
    prompt = 'the cat and the '
    before = load('out', dtype='float32').rows(prompt, temperature=0)
    monkeypatch.setattr(Attention, method, change)
    fast, slow = (load('out', dtype='float32', fast=fast).rows(prompt, temperature=0) for fast in (True, False))
    assert fast == slow != before
