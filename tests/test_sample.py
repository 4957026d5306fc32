import io
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY

from config import Error
from model import load_checkpoint, save_checkpoint


@pytest.fixture
def trained(run, dataset):
    """A run in out/ and the folder it is in; sample.py is imported from the project."""
    run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=40', '--learning_rate=0.02',
        '--eval_interval=20')
    import sample
    return sample.load('out', dtype='float32')


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
    import shutil

    import sample
    before = trained.generate('the', max_new_tokens=20)
    shutil.rmtree('data')
    Path('out').rename('elsewhere')
    for path in ('elsewhere', 'elsewhere/best.pt'):
        assert sample.load(path, dtype='float32').generate('the', max_new_tokens=20) == before
    best = load_checkpoint('elsewhere/best.pt')['step']
    assert best <= load_checkpoint('elsewhere/ckpt.pt')['step']


def test_streaming_never_yields_half_a_character(trained):
    class Bytes:
        """A tokenizer of single bytes: each of these characters takes several tokens."""
        eot, vocab_size = 256, 257

        def encode(self, text):
            return list(text.encode())

        def decode(self, ids):
            longest.append(len(ids))
            return bytes(i for i in ids if i < 256).decode(errors='replace')

    data, longest = 'aé漢🙂!'.encode(), []
    trained.tokenizer = Bytes()
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
    assert len(re.findall('-{80}', two.out)) == 2 and re.search(r'\d+ tokens per second', two.err)
    run('sample.py', '--start=the', '--max_new_tokens=40', '--num_samples=1', '--dtype=float32')
    one = capsys.readouterr().out
    assert two.out.startswith(one.rstrip('\n'))                     # sample 0 is the same, alone or not
    Path('prompt.txt').write_text('the')
    run('sample.py', '--start=FILE:prompt.txt', '--max_new_tokens=40', '--num_samples=1', '--dtype=float32')
    assert capsys.readouterr().out == one


def test_it_talks_until_an_empty_line(run, trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('the cat\na dog\n\nmore\n'))
    capsys.readouterr()
    run('sample.py', '--interactive=True', '--max_new_tokens=10')
    assert capsys.readouterr().out.count('> ') == 3
    monkeypatch.setattr(sys, 'stdin', io.StringIO('Ünknown\nthe cat\n'))      # and at the end of the input
    run('sample.py', '--interactive=True', '--max_new_tokens=10')
    shown = capsys.readouterr()
    assert shown.out.count('> ') == 3 and "'Ü'" in shown.err        # what it does not know ends nothing


def test_losses_of_several_runs_are_drawn_together(run, dataset, trained):
    run('train.py', f'--dataset={dataset}', *TINY, '--out_dir=other')
    for name in ('out', 'other'):
        Path(name, 'loss.png').unlink()
    run('sample.py', '--plot=out,other')
    assert Path('out/plot.png').read_bytes()[:4] == b'\x89PNG'
    Path('other/log.csv').write_text('epoch,loss\n1,2.5\n')
    with pytest.raises(Error, match='other/log.csv'):
        run('sample.py', '--plot=out,other')


@pytest.mark.parametrize('args, names', [
    (['--out_dir=nothing'], 'nothing'), (['--start=Ünknown'], 'Ü'), (['--start=FILE:none.txt'], 'none.txt'),
    (['--temperature=-1'], 'temperature'), (['--top_p=0'], 'top_p'), (['--top_p=1.5'], 'top_p'),
    (['--top_k=-1'], 'top_k'),
    (['--num_samples=0'], 'num_samples'), (['--max_new_tokens=0'], 'max_new_tokens'), (['--seed=-1'], 'seed'),
    (['--repetition_penalty=0'], 'repetition_penalty'),
    (['--repetition_penalty=1e-39'], 'repetition_penalty'), (['--plot=nothing'], 'nothing'),
    (['--device=tpu'], 'tpu'),
    (['--n_layer=3'], 'n_layer')])
def test_bad_input_is_an_error(run, trained, args, names):
    with pytest.raises(Error, match=names):
        run('sample.py', *args)


def test_a_checkpoint_that_lacks_something_is_an_error(run, trained):
    checkpoint = load_checkpoint('out/best.pt')
    for key in ('model', 'model_config', 'tokenizer'):
        save_checkpoint('half.pt', {k: v for k, v in checkpoint.items() if k != key})
        with pytest.raises(Error, match='half.pt'):
            run('sample.py', '--out_dir=half.pt')
