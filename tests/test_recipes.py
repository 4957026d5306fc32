"""Every recipe: what its header states is what it builds, and a small copy of it trains."""
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TEXT, read_log

from config import configure
from model import GPT, GPTConfig

RECIPES = sorted(p for p in (ROOT / 'config').glob('[!_]*.py'))
VOCABULARY = {'gpt2': 50257, 'char': 66, 'bpe': 4096}


def commands(recipe):
    """(its prepare command, {train command: millions of parameters stated}) of a recipe's header."""
    header = [line.removeprefix('#') for line in recipe.read_text().splitlines() if line.startswith('#')]
    prepare = next(line for line in header if 'prepare.py' in line)
    stated = [re.search(r'([\d.]+)M parameters', line) for line in header]
    train = {line: m for line, m in zip(header, stated) if 'train.py' in line and m}
    if not train:
        train = {f'train.py config/{recipe.name}': next(m for m in stated if m)}
    return shlex.split(prepare), {line: float(m[1]) for line, m in train.items()}


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_a_recipe_builds_what_it_states(recipe):
    prepare, train = commands(recipe)
    said = dict(arg[2:].split('=') for arg in prepare if arg.startswith('--') and '=' in arg)
    vocabulary = int(said.get('vocab_size', VOCABULARY[said.get('tokenizer', 'bpe')]))
    prepared = runpy.run_path(str(ROOT / 'prepare.py'))
    assert set(said) <= set(prepared['config'])
    for line, millions in train.items():
        knobs = runpy.run_path(str(ROOT / 'train.py'))
        args = [a for a in shlex.split(line) if a.startswith('--') and '=' in a]
        config = configure(knobs, [str(recipe), *args])
        assert config['out_dir'] == f'out/{recipe.stem}' and config['min_lr'] < config['learning_rate']
        knobs['check'].__globals__.update(config)
        knobs['check'](config, 1)
        shape = {k: config[k] for k in (*knobs['MODEL_KNOBS'], 'dropout')}
        with torch.device('meta'):
            model = GPT(GPTConfig(vocab_size=vocabulary, **shape))
        assert f'{model.num_params() / 1e6:.1f}' == f'{millions:.1f}', line


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_a_small_copy_of_a_recipe_trains(recipe, run):
    Path('text.txt').write_text('\n'.join(TEXT[i % 50:] for i in range(60)))
    run('prepare.py', '--input=text.txt', '--name=small', '--tokenizer=char')
    run('train.py', str(recipe), '--dataset=small', '--n_layer=2', '--n_head=2', '--n_embd=32',
        '--block_size=32', '--batch_size=4', '--micro_batch_size=2', '--max_iters=6', '--warmup_iters=1',
        '--log_interval=1', '--eval_interval=0', '--eval_tokens=0', '--compile=False', '--out_dir=out')
    losses = [float(row['train_loss']) for row in read_log() if row['train_loss']]
    assert len(losses) == 6 and losses[-1] < losses[0]
