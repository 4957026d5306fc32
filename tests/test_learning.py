"""docs/learning.md is true: the code that it names exists, its commands parse, its numbers hold."""
import ast
import math
import re
import runpy
import shlex
from functools import cache

import pytest
from conftest import ROOT, command

from model import GPT, GPTConfig

PAGE = (ROOT / 'docs/learning.md').read_text(encoding='utf-8')
STOPS = re.split(r'^## \d\. ', PAGE, flags=re.M)[1:]
NAMED = sorted(set(re.findall(r'`([\w/]+\.py): ([\w.]+)`', PAGE)))
COMMANDS = [line for block in re.findall(r'^```sh\n(.*?)^```$', PAGE, re.M | re.S)
            for line in block.splitlines()]


@cache
def names_of(file):
    """The functions, classes and methods (as Class.method) of a file."""
    found = set()
    for node in ast.parse((ROOT / file).read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{inner.name}' for inner in node.body
                      if isinstance(inner, ast.FunctionDef)}
    return found


@cache
def help_of(program):
    return command(program, '--help', cwd=ROOT).stdout


@pytest.mark.parametrize('file, name', NAMED, ids=map(': '.join, NAMED))
def test_the_code_that_it_names_exists(file, name):
    assert name in names_of(file)


@pytest.mark.parametrize('line', COMMANDS)
def test_its_commands_parse(line):
    python, *words = shlex.split(line, comments=True)
    assert python == 'python'
    program = words[1] if words[0] == '-m' else words[0]
    given = [word for word in words if re.match(r'--\w', word)]
    for word in given:
        assert re.search(rf'^  {word.partition("=")[0]}=', help_of(program), re.M), word
    configs = [word for word in words if word.startswith('config/')]
    assert all((ROOT / config).is_file() for config in configs)
    assert len(given) + len(configs) + words.index(program) + 1 == len(words)


def test_each_stop_names_code_and_has_a_command_and_a_small_picture():
    assert len(STOPS) == 6
    for stop in STOPS:
        title = stop.partition('\n')[0]
        assert re.search(r'`[\w/]+\.py: ', stop) and '```sh\npython ' in stop, title
        (picture,) = re.findall(r'^!\[.+\]\(\.\./(assets/\w+\.png)\)$', stop, re.M)
        assert (ROOT / picture).stat().st_size < 150_000, picture


def test_its_numbers_are_those_of_the_stories():
    shape = {name: value for name, value in runpy.run_path(str(ROOT / 'config/stories.py')).items()
             if name in GPTConfig.__dataclass_fields__}
    model = GPT(GPTConfig(vocab_size=1432, **shape))
    config, block = model.config, model.h[0]
    mlp, all_of_it = (sum(p.numel() for p in part.parameters()) for part in (block.mlp, block))
    for text in (f'1,432 rows of `n_embd` = {config.n_embd} numbers', f'{mlp:,} of {all_of_it:,}',
                 f'`n_inner` = {config.n_inner} channels', f'log 1,432 = {math.log(1432):.4f}'):
        assert text in ' '.join(PAGE.split())
