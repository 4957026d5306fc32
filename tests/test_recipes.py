"""Every recipe: what its header states is what it builds, and a small copy of it trains."""
import re
import runpy
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TEXT, read_log

from config import configure
from data.files import name_dataset
from model import GPT, GPTConfig

RECIPES = sorted(p for p in (ROOT / 'config').glob('[!_]*.py'))
VOCABULARY = {'gpt2': 50257, 'char': 66, 'bpe': 4096}


def knobs_of(command):
    return [word for word in command.split() if word.startswith('--') and '=' in word]


def configured(script, *args):
    """(globals of a script, its knobs) as with these arguments."""
    knobs = runpy.run_path(str(ROOT / script))
    return knobs, configure(knobs, args)


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_a_recipe_builds_what_it_states(recipe):
    lines = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith('#')]
    text = ' '.join(lines)
    said = configured('prepare.py', *knobs_of(next(line for line in lines if 'prepare.py' in line)))[1]
    dataset = said['name'] or name_dataset(said['input'] or said['dataset'], said['tokenizer'])
    commands = [line.split(recipe.name)[1] for line in lines if f'train.py config/{recipe.name}' in line]
    (stated,) = re.findall(r'([\d.]+)M parameters', text)
    assert commands
    for command in commands:                                # `(9.9M)` behind it, if there are several
        train, config = configured('train.py', str(recipe), *knobs_of(command))
        millions = re.search(r'\(([\d.]+)M', command)[1] if len(commands) > 1 else stated
        assert config['out_dir'] == f'out/{recipe.stem}' and config['dataset'] == dataset
        assert config['min_lr'] < config['learning_rate'] or config['init_from'] != 'scratch'
        train['check_knobs'].__globals__.update(config, config=config)
        train['check_knobs'](1)
        for number, unit in re.findall(r'([\d.]+)([MB]) tokens', text):
            tokens = config['max_iters'] * config['batch_size'] * config['block_size']
            assert f'{tokens / {"M": 1e6, "B": 1e9}[unit]:.3g}' == number
        if config['init_from'] == 'gpt2':                   # the shape is that of these weights
            config = configured('train.py', str(ROOT / 'config/gpt2.py'))[1]
        vocabulary = said['vocab_size'] or VOCABULARY[said['tokenizer']]
        with torch.device('meta'):
            model = GPT(GPTConfig(vocabulary, **{name: config[name] for name in train['MODEL_KNOBS']}))
        assert f'{model.num_params() / 1e6:.1f}' == millions


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_a_small_copy_of_a_recipe_trains(recipe, run):
    Path('text.txt').write_text('\n'.join(TEXT[i % 50:] for i in range(60)))
    run('prepare.py', '--input=text.txt', '--name=small', '--tokenizer=char')
    small = ['--dataset=small', '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=32',
             '--batch_size=4', '--micro_batch_size=2', '--max_iters=6', '--warmup_iters=1',
             '--log_interval=1', '--eval_interval=6', '--eval_tokens=0', '--compile=False']
    if 'init_from' in recipe.read_text():                   # the weights of another run
        run('train.py', *small, '--out_dir=weights')
        small.append('--init_from=weights')
    run('train.py', str(recipe), *small, '--out_dir=out')
    rows = read_log()
    first, last = (float(row['val_loss']) for row in rows if row['val_loss'])
    assert len([row for row in rows if row['train_loss']]) == 6 and last < first
