"""Sampling: from Python, from the command line, in a talk, and compiled."""
import copy
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pexpect
import pytest
import torch
from conftest import ROOT, TEXT, TINY, command
from test_model import make

import model as model_file
from lib import checkpoint as checkpoints
from lib.errors import Error
from model import GPT, GPTConfig
from sample import load, read_prompt


@pytest.fixture
def trained(run, dataset):
    """The model of a run in out/."""
    run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=40', '--learning_rate=0.02',
        '--eval_interval=20', '--tie_weights=False')
    return load('out', dtype='float32')


# ---- in Python
def test_generate_returns_prompt_and_continuation_and_depends_on_the_seed_only(trained):
    text = trained.generate('the cat', max_new_tokens=30)
    assert text.startswith('the cat') and 8 < len(text) <= 37
    assert text == trained.generate('the cat', max_new_tokens=30)
    assert text != trained.generate('the cat', max_new_tokens=30, seed=1)
    assert ''.join(trained.stream('the cat', max_new_tokens=30)) == text[7:]
    rows = trained.rows('the cat', 3, max_new_tokens=30)
    assert [trained.tokenizer.decode(row) for row in rows] == [
        trained.generate('the cat', max_new_tokens=30, seed=1337 + i)[7:] for i in range(3)]
    assert trained.generate(max_new_tokens=5)                       # a new document
    greedy = trained.generate('a dog', max_new_tokens=9, temperature=0)
    assert greedy == trained.generate('a dog', max_new_tokens=9, top_k=1)
    assert not trained.model.training and trained.settings['dataset'] == 'letters'
    assert trained.tokenizer.vocab_size == trained.model.config.vocab_size


def test_a_prompt_longer_than_the_window_is_read_as_its_last_tokens_with_a_warning(trained,
                                                                                capsys):
    prompt = 'the cat sat on the mat'
    assert trained.model.config.block_size == 16
    ids = torch.stack(list(trained.sample_ids(prompt, max_new_tokens=20, temperature=0)), 1)
    last = torch.tensor([trained.tokenizer.encode(prompt)[-16:]])
    expected = trained.model.generate(last, 20, temperature=0, eot=trained.tokenizer.eot)
    assert torch.equal(ids, torch.stack(list(expected), 1))
    assert capsys.readouterr().err == \
        'warning: the prompt has 23 tokens; only the last 16 are used\n'
    trained.generate('the cat sat on ')                             # and end-of-text before it
    assert capsys.readouterr().err == ''


def test_a_loaded_model_is_an_ordinary_one(trained):
    """It can be copied, pickled and trained on, and a changed weight changes what it samples."""
    text = trained.generate('the', max_new_tokens=40)
    for other in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert other.generate('the', max_new_tokens=40) == text
        with torch.no_grad():
            other.model.h[0].mlp.up_proj.weight.mul_(-3)
        assert other.generate('the', max_new_tokens=40) != text
    assert trained.generate('the', max_new_tokens=40) == text and type(trained.model) is GPT
    ids = torch.tensor([trained.tokenizer.encode(TEXT)[:17]])
    model = trained.model.train()
    for _ in range(2):
        model(ids[:, :-1], ids[:, 1:]).backward()
        trained.generate('the', max_new_tokens=2)
    assert model.training and all(p.grad is not None for p in model.parameters())


def test_an_edited_model_is_what_is_sampled(trained, monkeypatch):
    before, rotary = trained.rows('the cat', temperature=0), model_file.rotary
    monkeypatch.setattr(model_file, 'rotary', lambda positions, *rest: (
        rotary(torch.zeros_like(positions), *rest)))
    assert trained.rows('the cat', temperature=0) != before


def test_importing_and_loading_change_no_random_state_and_install_no_hook(trained):
    code = """if True:
        import random, signal, sys
        import numpy, torch

        def state():
            signals = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
            return (random.getstate(), numpy.random.get_state()[1].tolist(),
                    torch.get_rng_state().tolist(), sys.excepthook, signals,
                    torch.get_float32_matmul_precision(), torch.get_num_threads())
        before = state()
        import prepare, sample, train
        assert state() == before
        lm = sample.load('out', dtype='float32')
        assert state() == before
        print(lm.generate('the', max_new_tokens=40), end='')
        assert state() == before"""
    Path('script.py').write_text(code)
    shown = command(str(Path('script.py').absolute()))
    expected = trained.generate('the', max_new_tokens=40)
    assert (shown.stderr, shown.stdout) == ('', expected)


@pytest.mark.parametrize('sampling, says', [
    ({'num_samples': 3}, 'num_samples'), ({'max_new_tokens': 2.0}, 'max_new_tokens=2.0'),
    ({'top_k': '5'}, "top_k='5'"), ({'seed': True}, 'seed=True'), ({'temprature': 1}, 'temprature'),
    ({'temperature': None}, 'temperature=None'), ({'temperature': float('nan')}, 'temperature'),
    ({'prompt': ['the']}, 'prompt must be a str, not list'), ({'prompt': None}, 'NoneType')])
def test_a_wrong_argument_is_named(trained, sampling, says):
    with pytest.raises((Error, TypeError), match=says):
        trained.generate(**sampling)
    assert trained.generate('the', max_new_tokens=numpy.int64(2), temperature=numpy.float32(1),
                            seed=numpy.int64(3))


def test_ids_that_the_tokenizer_lacks_are_never_sampled(tmp_path):
    model = GPT(GPTConfig(64, block_size=16, n_layer=1, n_embd=8))
    tokenizer = {'kind': 'char', 'alphabet': 'ab'}
    checkpoints.save(tmp_path / 'a.pt', model, tokenizer=tokenizer, settings={})
    ids = torch.stack(list(load(tmp_path / 'a.pt').sample_ids('a', 20, max_new_tokens=9)))
    assert ids.unique().tolist() == [0, 1, 2]


def test_the_data_is_not_needed_any_more(trained):
    before = trained.generate('the', max_new_tokens=20)
    shutil.rmtree('data')
    Path('out').rename('elsewhere')
    for path in ('elsewhere', 'elsewhere/best.pt', Path('elsewhere')):
        assert load(path, dtype='float32').generate('the', max_new_tokens=20) == before
    Path('elsewhere/best.pt').unlink()
    last = load('elsewhere', dtype='float32').model.state_dict()
    assert torch.equal(last['wte.weight'], checkpoints.read('elsewhere/ckpt.pt')['model']['wte.weight'])


# ---- from the command line
def test_the_script_prints_samples_and_their_speed(run, trained, capsys):
    capsys.readouterr()
    args = ('--start=the', '--max_new_tokens=40', '--dtype=float32')
    run('sample.py', *args, '--num_samples=2')
    two = capsys.readouterr()
    samples = [text.strip('\n') for text in re.split('-{60}\n', two.out)]
    assert samples == [trained.generate('the', max_new_tokens=40, seed=seed).strip('\n')
                       for seed in (1337, 1338)] + ['']
    assert re.fullmatch(r'[\d,]+ tokens per second\n', two.err)
    run('sample.py', *args, '--num_samples=1')
    one = capsys.readouterr().out
    assert two.out.startswith(one.rstrip('\n'))         # sample 0 is the same, alone or not
    Path('prompt.txt').write_text('the')
    run('sample.py', *args, '--num_samples=1', '--start=FILE:prompt.txt')
    assert capsys.readouterr().out == one
    run('sample.py', *args, '--num_samples=1', '--temperature=0', '--top_p=0.5', '--seed=3')
    assert capsys.readouterr().out == trained.generate('the', max_new_tokens=40, top_k=1) + '\n'


@pytest.mark.parametrize('raw', ['für'.encode(), b'\xef\xbb\xbff\xc3\xbcr', 'für'.encode('utf-16')])
def test_a_prompt_is_read_from_a_file(tmp_path, raw):
    (tmp_path / 'prompt.txt').write_bytes(raw)
    assert read_prompt(f'FILE:{tmp_path}/prompt.txt') == 'für' and read_prompt('FILE') == 'FILE'


def test_the_end_of_the_reader_is_no_error(trained):
    program = [sys.executable, ROOT / 'sample.py', '--num_samples=1', '--max_new_tokens=2000',
               '--top_k=5']
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()                                          # as `| head` does
    assert process.stderr.read() == b'' and process.wait(60) == 141


@pytest.mark.parametrize('argument, says', [
    ('--out_dir=nothing', 'nothing: no such checkpoint'), ('--start=Ünknown', 'Ü'),
    ('--start=FILE:none.txt', 'none.txt'), ('--start=FILE:latin.txt', 'latin.txt'),
    ('--temperature=-1', 'temperature'), ('--top_p=0', 'top_p'), ('--top_p=1.5', 'top_p'),
    ('--top_k=-1', 'top_k'), ('--num_samples=0', 'num_samples'), ('--seed=-1', 'seed'),
    ('--max_new_tokens=0', 'max_new_tokens'), ('--repetition_penalty=0', 'repetition_penalty'),
    ('--repetition_penalty=1e-39', 'repetition_penalty'), ('--device=tpu', 'tpu'),
    ('--dtype=float16', 'float16'), ('--n_layer=3', 'n_layer'), ('--prompt=x', 'unknown setting')])
def test_bad_input_is_an_error(run, trained, argument, says):
    Path('latin.txt').write_bytes(b'f\xfcr')
    with pytest.raises(Error, match=says):
        run('sample.py', argument)


# ---- a talk
def talk(*args, typed):
    """What the script shows, talked to through a pipe."""
    return command('sample.py', '--interactive=True', '--dtype=float32', *args, input=typed,
                   timeout=120)


@pytest.mark.parametrize('typed, prompts', [('the cat\na dog\n\nmore\n', 3), ('the cat\na dog', 3),
                                            ('', 1)])
def test_a_talk_goes_on_until_an_empty_line_or_the_end_of_the_input(trained, typed, prompts):
    shown = talk('--max_new_tokens=10', typed=typed)
    assert (shown.returncode, shown.stderr) == (0, '') and shown.stdout.count('> ') == prompts
    if typed:
        text = trained.generate('the cat', max_new_tokens=10)[7:]
        assert f'> {text}\n> ' in shown.stdout


def test_an_unknown_character_and_a_long_prompt_do_not_end_a_talk(trained):
    prompt = 'the cat sat on the mat. ' * 20
    shown = talk('--max_new_tokens=9', typed=f'Ünknown\n{prompt}\nthe cat\n')
    assert shown.returncode == 0 and shown.stdout.count('> ') == 4
    error, warning = shown.stderr.splitlines()
    assert error.startswith('error: ') and "'Ü'" in error
    assert warning == 'warning: the prompt has 481 tokens; only the last 16 are used'
    assert f'> {trained.generate(prompt, max_new_tokens=9)[480:]}\n' in shown.stdout


def in_terminal(*args):
    """A talk in a terminal of its own, which has shown its first prompt."""
    program = [str(ROOT / 'sample.py'), '--interactive=True', '--dtype=float32', *args]
    terminal = pexpect.spawn(sys.executable, program, env=os.environ | {'TERM': 'dumb'},
                             encoding='utf-8', codec_errors='replace', timeout=90)
    terminal.expect('> ')
    return terminal


def assert_ends_well(terminal):
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0 and not re.search('Traceback|error', terminal.before)


@pytest.mark.parametrize('key', ['\x03', '\x04', '\r'], ids=['Ctrl-C', 'Ctrl-D', 'Enter'])
def test_each_of_these_keys_ends_a_talk(trained, key):
    terminal = in_terminal('--max_new_tokens=5')
    time.sleep(0.5)
    terminal.send(key)
    assert_ends_well(terminal)


def test_ctrl_c_ends_the_text_but_not_the_talk(trained):
    terminal = in_terminal('--max_new_tokens=200000')
    for prompt in ('the cat', 'a dog'):
        terminal.send(prompt + '\r')
        terminal.expect(prompt + r'\r\n[^>]{40}')           # it writes, and would for a minute
        terminal.send('\x03')
        terminal.expect(r'\r\n> ')
    terminal.send('\x04')
    assert_ends_well(terminal)


# ---- compiled
@pytest.mark.parametrize('shape', ['gpt2', 'qwen3 grouped'])
def test_the_step_that_is_compiled_gives_the_logits_of_the_model(shape):
    """Also as a GPU takes it: with the cache whole, and its length a tensor."""
    compiled, model = pytest.importorskip('extras.compiled'), make(shape)
    idx = torch.randint(50, (2, 9))
    with torch.inference_mode():
        for kind in (compiled.StepCache, compiled.GraphCache):
            cache = model.new_cache(2)
            model.next_logits(idx[:, :5], cache)
            for n in range(5, 9):
                length = torch.tensor([n]) if kind is compiled.GraphCache else n
                step = kind(length, cache.k, cache.v)
                found = model.next_logits(idx[:, n:n + 1], step, step.mask)
                expected = model(idx[:, :n + 1])[:, -1]
                assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize('shape', ['gpt2', 'qwen3 grouped'])
def test_a_compiled_model_gives_the_same_logits_for_one_row_and_for_several(shape, monkeypatch):
    from extras.compiled import compile_decoding
    model, seen, sample_from = make(shape), [], model_file.sample_from
    monkeypatch.setattr(model_file, 'sample_from', lambda *a: seen.append(a[0]) or sample_from(*a))
    counts = torch._dynamo.utils.counters
    for rows in (1, 3):
        idx = torch.randint(50, (rows, 4))
        torch._dynamo.reset()
        counts.clear()
        compiled = compile_decoding(model)
        for factor in (1, 1.5):                             # new weights need no compilation
            model.wte.weight.data.mul_(factor)
            seen.clear()
            plain = list(model.generate(idx, 40))
            logits = torch.stack(seen)
            seen.clear()
            assert torch.equal(torch.stack(list(compiled.generate(idx, 40))), torch.stack(plain))
            assert (torch.stack(seen) - logits).abs().max() < 1e-5 * logits.abs().max()
            assert logits.std() > 1 and counts['stats']['unique_graphs'] == 1


@pytest.mark.slow
def test_compiled_models_of_one_process_are_not_mistaken_for_each_other():
    from extras.compiled import compile_decoding
    idx = torch.randint(50, (1, 4))
    for model in (make(), make(tie_weights=False), make(n_inner=64)):
        expected = torch.stack(list(model.generate(idx, 30)))
        assert torch.equal(torch.stack(list(compile_decoding(model).generate(idx, 30))), expected)


@pytest.mark.slow
def test_samples_are_the_same_compiled_and_where_there_is_no_compiler(trained):
    def samples(*args, **env):
        shown = command('sample.py', '--dtype=float32', '--start=the', *args, env=env)
        assert shown.returncode == 0 and ('torch.compile failed' in shown.stderr) == bool(env)
        return shown.stdout
    plain = samples()
    assert len(plain) > 300 and samples('--compile=True') == plain
    assert samples('--compile=True', CXX='/none/g++',
                   TORCHINDUCTOR_FORCE_DISABLE_CACHES='1') == plain
