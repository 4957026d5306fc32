"""Every recipe: what its header states is what it builds, it repeats no default, and it trains."""
import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TEXT, read_log

from lib.checks import check_settings
from lib.settings import assigned_names, configure, read_fields
from model import GPT, GPTConfig
from text.source import dataset_folder

RECIPES = sorted((ROOT / 'config').glob('*.py'))
VOCABULARY = {'gpt2': 50257, 'char': 66, 'bpe': 4096}       # and 1,440 of the stories
each_recipe = pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: path.stem)


def arguments_of(command):
    return [word for word in shlex.split(command) if word.startswith('--') and '=' in word]


def configured(script, *args):
    """(globals of a script, its settings) as with these arguments."""
    values = runpy.run_path(str(ROOT / script))
    dataclass = 'model.py:GPTConfig' if script == 'train.py' else ''
    return values, configure(values, dataclass=dataclass, argv=list(args))


@each_recipe
def test_a_recipe_builds_what_it_states(recipe):
    lines = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith('#')]
    text = ' '.join(lines)
    prepared = next(line for line in lines if 'python prepare.py' in line)
    prepare, said = configured('prepare.py', *arguments_of(prepared))
    commands = [line.split(recipe.name)[1] for line in lines
                if f'train.py config/{recipe.name}' in line]
    stated, = re.findall(r'([\d.]+)M parameters', text)
    assert commands
    for command in commands:                        # `(9.9M)` behind each, if there are several
        train, settings = configured('train.py', str(recipe), *arguments_of(command))
        config = {**read_fields('model.py:GPTConfig'), **settings.model}
        millions = (re.search(r'\(([\d.]+)M', command) or [0, stated])[1]
        assert settings['out_dir'] == f'out/{recipe.stem}'
        assert dataset_folder(said) == Path('data', settings['dataset'])
        check_settings(settings, world_size=1)
        for number, unit in re.findall(r'([\d.]+)([MB]) tokens', text):
            tokens = settings['max_iters'] * settings['batch_size'] * config['block_size']
            assert f'{tokens / {"M": 1e6, "B": 1e9}[unit]:.3g}' == number
        if settings['init_from'] == 'gpt2':         # the shape is that of these weights
            shape = configured('train.py', str(ROOT / 'config/gpt2.py'))[1].model
            config = {**config, **shape}
        vocabulary = said['vocab_size'] or VOCABULARY[said['tokenizer']]
        if said['dataset'] == 'stories' and not said['input']:
            vocabulary = 1440
        with torch.device('meta'):
            model = GPT(GPTConfig(vocabulary, **config))
        assert f'{model.num_params() / 1e6:.1f}' == millions


@each_recipe
def test_a_small_copy_of_a_recipe_trains(recipe, run):
    Path('text.txt').write_text('\n'.join(TEXT[i % 50:] for i in range(60)))
    run('prepare.py', '--input=text.txt', '--name=small', '--tokenizer=char')
    small = ['--dataset=small', '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=32',
             '--batch_size=4', '--micro_batch_size=2', '--max_iters=6', '--warmup_iters=1',
             '--log_interval=1', '--eval_interval=6', '--eval_tokens=0', '--compile=False',
             '--device=cpu']
    if 'init_from' in recipe.read_text():           # the weights of another run
        run('train.py', *small, '--out_dir=weights')
        small.append('--init_from=weights')
    run('train.py', str(recipe), *small, '--out_dir=out')
    rows = read_log()
    first, last = (float(row['val_loss']) for row in rows if row['val_loss'])
    assert len([row for row in rows if row['train_loss']]) == 6 and last < first


@each_recipe
def test_a_recipe_repeats_no_default(recipe):
    defaults = {**configured('train.py')[1], **read_fields('model.py:GPTConfig')}
    names = assigned_names(ast.parse(recipe.read_text()))
    assert len(names) == len(set(names)) > 3
    _, settings = configured('train.py', str(recipe))
    if settings['init_from'] != 'scratch':          # the weights have a shape of their own
        names = [name for name in names if name not in settings.model]
    for name in names:
        value = {**settings, **settings.model}[name]
        assert value != defaults[name], f'{name} = {value!r} is the default'
