"""README.md and docs/ are true: commands run, names exist, diffs apply and train, links work.

All is read from the files themselves: what is added there is checked here, or fails as unknown."""
import json
import math
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from functools import cache

import pytest
import torch
from conftest import ROOT, copy_project, read_log

from lib.checks import check_settings
from lib.settings import configure, read_fields
from model import GPT, GPTConfig

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
         for path in (ROOT / 'README.md', ROOT / 'tests/README.md', *ROOT.glob('docs/*.md'))}
README = PAGES['README.md']
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
PROSE = {name: BLOCK.sub('', page) for name, page in PAGES.items()}
QUOTED = [text.replace('\n', ' ') for page in PROSE.values()
          for text in re.findall(r'`([^`]+)`', page)]
# Appended to a command, these make it small.
SMALL = {'prepare.py': '--num_stories=200 --vocab_size=300',
         'train.py': '--n_layer=2 --n_head=2 --n_embd=32 --block_size=64 --batch_size=4 '
                     '--micro_batch_size=2 --max_iters=2 --eval_tokens=2000 --device=cpu',
         'sample.py': '--max_new_tokens=20 --device=cpu'}
# These need a network or another program, or are given in another way.
NOT_RUN = ('python3 -m venv .venv', 'source .venv/bin/activate', 'llama-server -m model.gguf',
           'pip install -r requirements.txt', 'export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1')
PROGRAM = re.compile(r'(\w+\.py|-m extras\.\w+)(?= |$)')
NEEDS_EDIT = re.compile(r'--(rope|window)=|=radam|my\.json')
# {title: (commands, diff)} of each section of docs/extending.md
EDITS = {section.partition('\n')[0]: (re.findall(r'`(python [^`]+)`', BLOCK.sub('', section)), diff)
         for section in PAGES['docs/extending.md'].split('\n## ')[1:]
         for _, diff in BLOCK.findall(section)}


def commands(*pages: str) -> list[str]:
    """The commands in the shell blocks, one per line, without comments; && joins several."""
    text = ''.join(body for page in pages for language, body in BLOCK.findall(PAGES[page])
                   if language == 'sh')
    lines = [shlex.join(shlex.split(line, comments=True)) for line in text.splitlines()]
    return [part for part in '\n'.join(lines).replace(" '&&' ", '\n').splitlines() if part]


OURS = [command for command in commands(*PAGES) if command not in NOT_RUN]
RUNNABLE = sorted({command for command in (*OURS, *QUOTED)
                   if re.match('(python|torchrun) ', command) and PROGRAM.search(command)
                   and 'tests/' not in command})


def program_of(command: str) -> str:
    """train.py, extras.plot or the like."""
    return PROGRAM.search(command)[0].removeprefix('-m ')


@cache
def imported(program: str) -> dict:
    """The globals of a script or a command in extras/."""
    if program.endswith('.py'):
        return runpy.run_path(str(ROOT / program))
    return runpy.run_module(program)


def parse(command: str) -> dict:
    """The settings of a command. Raises Error for one that does not exist."""
    program = program_of(command)
    names = imported(program)
    script = {**names['settings'], '__name__': program,
              '__annotations__': names.get('__annotations__', {})}
    dataclass = 'model.py:GPTConfig' if program == 'train.py' else ''
    arguments = shlex.split(command[PROGRAM.search(command).end():].replace('…', ''))
    return configure(script, dataclass=dataclass, argv=arguments)


def small(command: str) -> list[str]:
    """The words of a command, run by this Python, with what makes it small appended."""
    words = shlex.split(command)
    launcher = ['-m', 'torch.distributed.run'] if words[0] == 'torchrun' else []
    options = SMALL.get(program_of(command), '')
    if '--input=' in command:
        options = options.replace('--num_stories=200', '')
    return [sys.executable, *launcher, *words[1:], *options.split()]


def shell(*words, cwd) -> str:
    """Run a command to its end and return its output; fails if it fails."""
    environment = {**os.environ, 'PYTHONPATH': '', 'MAKEFLAGS': ''}
    result = subprocess.run(words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert result.returncode == 0, f'{words}\n{result.stdout[-3000:]}'
    return result.stdout


@pytest.fixture
def clone(tmp_path):
    """A fresh clone, as far as a user needs it, with documents to train on."""
    folder = tmp_path / 'clone'
    copy_project(folder, 'extras/*.*', 'Makefile', 'tests/requirements.txt')
    texts = [f'It was day {i} of {i % 7} weeks, and the sea was calm.' for i in range(90)]
    (folder / 'my.json').write_text(json.dumps([{'text': text} for text in texts]))
    (folder / 'my_texts/deep').mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / f'my_texts/deep/{i}{".md" if i % 2 else ".txt"}').write_text(text * 3)
    return folder


# ---- names
def test_every_command_is_of_a_known_kind():
    assert len(RUNNABLE) > 25 and len(EDITS) == 6
    assert set(OURS) <= set(RUNNABLE) and set(NOT_RUN) <= set(commands(*PAGES))


@pytest.mark.parametrize('command', [c for c in RUNNABLE if not NEEDS_EDIT.search(c)])
def test_every_setting_of_every_command_exists(command):
    settings = parse(command)
    if program_of(command) == 'train.py':
        numbers = re.findall(r'--(?:nnodes|nproc_per_node)=(\d+)', command)
        check_settings(settings, math.prod(int(number) for number in numbers))


def test_every_setting_that_is_named_exists():
    programs = ('prepare.py', 'train.py', 'sample.py')
    known = {name for program in programs for name in imported(program)['settings']}
    known |= read_fields('model.py:GPTConfig').keys()
    named = set(re.findall(r'^--([a-z_]+)(?=[= ]|$)', '\n'.join(QUOTED), re.M))
    assert len(named) > 8 and sorted(named - known - {'help', 'key'}) == []


def test_every_file_link_and_picture_exists():
    for page, text in PROSE.items():
        for target in re.findall(r'\]\(([^)#]+)\)', text):
            assert ((ROOT / page).parent / target).is_file(), target
    for name in QUOTED:
        if re.fullmatch(r'[\w/]+\.(py|md|ipynb)|(text|assets)/\S+\.\w+', name):
            assert any((ROOT / folder / name).is_file() for folder in ('', 'tests')), name


def test_the_table_of_recipes_is_complete_and_has_their_sizes():
    rows = dict(re.findall(r'^\| `(config/\w+\.py)` \|.*\| (.+) \|$', README, re.M))
    assert set(rows) == {f'config/{path.name}' for path in ROOT.glob('config/*.py')}
    for name, sizes in rows.items():
        header = (ROOT / name).read_text(encoding='utf-8')
        for size in sizes.split(' to '):
            assert f' {size} parameters' in header or f'({size}' in header, (name, size)


def test_every_speed_is_one_that_was_measured():
    measured = [line for line in PAGES['docs/measurements.md'].splitlines() if line[:1] == '|']
    section = ' '.join(README.partition('## Speed')[2].split())
    pairs = re.findall(r'([\d.]+) (?:s|tokens/s|compiled) \((\S+): ([\d.]+)', section)
    assert len(pairs) == 3
    for ours, peer, theirs in pairs:
        assert any(f'| {ours} ' in line and f'| {peer} {theirs}' in line for line in measured)


def test_make_demo_runs_the_commands_of_the_readme(clone):
    todo = shell('make', '-n', 'demo', cwd=clone)
    demo = re.findall(r'^\.venv/bin/(python .*)', todo.replace(' --overwrite=True', ''), re.M)
    assert demo == [command for command in commands('README.md') if command[:7] == 'python '][:3]
    assert '-m venv .venv' in todo and '-r requirements.txt' in todo
    assert '-m pytest' in shell('make', '-n', 'test', cwd=clone)


# ---- a training step
def test_a_training_step_calls_the_functions_in_the_order_described(run, dataset):
    calls = []

    def note(frame, event, _):
        if event == 'call':
            calls.append((frame.f_code.co_filename, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        run('train.py', f'--dataset={dataset}', *SMALL['train.py'].split(), '--max_iters=1',
            '--eval_interval=0', '--dtype=float32', '--block_size=16', '--optimizer=muon',
            '--fused_attention=False')
    finally:
        sys.setprofile(None)
    steps = README.partition('## How training works, step by step')[2].partition('\n## ')[0]
    names = [name for name in re.findall(r'`([^`]+)`', steps) if name != 'grad_clip']
    assert len(names) > 23
    later = iter(calls)
    for name in names:
        if name.endswith('.py'):                            # the file of the names after it
            file = name
            continue
        wanted = name.removeprefix('torch.nn.utils.')
        found = any(called in (wanted, f'{wanted}.__init__')
                    and (path == str(ROOT / file) or 'torch.' in name) for path, called in later)
        assert found, f'{name} of {file} is not called after what is described before it'


# ---- running what is written
@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_turn(clone):
    for command in commands('README.md'):
        if command not in NOT_RUN:
            shell(*small(command), cwd=clone)
    (code,) = (body for language, body in BLOCK.findall(README) if language == 'python')
    assert 'Once upon a time' in shell(sys.executable, '-c', code, cwd=clone)
    for name in ('out/stories/loss.png', 'losses.png', 'attention.png', 'surprise.html',
                 'model/model.safetensors', 'model.gguf', 'out/mine/best.pt'):
        assert (clone / name).stat().st_size > 1000, name


@pytest.mark.slow
def test_several_processes_on_one_machine_and_on_two(run, dataset, tmp_path):
    """The commands of docs/scaling.md with two processes; the machines are two launchers."""
    copy_project(tmp_path)
    one, two, restarted = (c for c in commands('docs/scaling.md') if c.startswith('torchrun'))
    with socket.socket() as s:
        s.bind(('', 0))
        two = two.replace('29500', str(s.getsockname()[1]))
    two = two.replace('10.0.0.1', '127.0.0.1').replace('node=8', 'node=1')
    options = [f'--dataset={dataset}', '--dtype=float32', '--eval_tokens=0']
    for command in (one.replace('node=8', 'node=2'), restarted.replace('node=8', 'node=2')):
        shell(*small(command), *options, '--out_dir=out/one', cwd=tmp_path)
    machines = [subprocess.Popen([*small(command), *options, '--out_dir=out/two'], cwd=tmp_path)
                for command in (two, two.replace('node_rank=0', 'node_rank=1'))]
    try:
        assert [machine.wait(timeout=200) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
    one, two = (read_log(tmp_path / f'out/{name}/log.csv') for name in ('one', 'two'))
    assert one == two and one[-1]['step'] == '2'


# ---- docs/extending.md
def apply(diff: str, folder):
    """Apply a diff and lint the file."""
    (folder / 'idea.diff').write_text(diff, encoding='utf-8')
    shell('patch', '-p1', '--fuzz=0', '--input=idea.diff', cwd=folder)
    file = re.match(r'--- a/(.*)', diff)[1]
    if file.endswith('.py'):
        rules = ROOT / 'pyproject.toml'
        shell(sys.executable, '-m', 'ruff', 'check', '--config', rules, file, cwd=folder)


@pytest.mark.parametrize('title, change', [('A switch in the architecture', {'rope': False}),
                                           ('Another mask', {'window': 3}),
                                           ('Another activation', {'arch': 'gpt2'})])
def test_an_edited_model_differs_and_its_cache_changes_nothing(title, change, clone):
    apply(EDITS[title][1], clone)
    names = runpy.run_path(str(clone / 'model.py'))
    shape = {'vocab_size': 50, 'n_layer': 2, 'n_embd': 32, 'block_size': 16}
    edited = names['GPT'](names['GPTConfig'](**shape, **change))
    original = GPT(GPTConfig(**shape, arch=edited.config.arch))
    original.load_state_dict(edited.state_dict())
    idx = torch.randint(50, (1, 12))
    edited(idx, idx).backward()
    assert not torch.equal(edited(idx), original(idx))
    cache = edited.new_cache(1)
    with torch.inference_mode():
        parts = [edited.next_logits(part, cache) for part in idx.split([5] + [1] * 7, dim=1)]
        torch.testing.assert_close(torch.stack(parts, dim=1), edited(idx)[:, 4:])


@pytest.mark.slow
@pytest.mark.parametrize('title', EDITS)
def test_every_edit_runs_with_its_commands(title, run, dataset, clone, tmp_path):
    apply(EDITS[title][1], clone)
    (tmp_path / 'data').rename(clone / 'data')
    for command in EDITS[title][0]:
        words = small(command)
        if 'train.py' in command:
            words += ['--dtype=float32', '--eval_tokens=0', '--block_size=16']
            words += [] if '--dataset' in command else [f'--dataset={dataset}']
            shell(*words, cwd=clone)
            words += ['--init_from=resume', '--max_iters=3']
        shell(*words, cwd=clone)
    logs = clone.glob('out/*/log.csv')
    assert EDITS[title][0] and all(read_log(log)[-1]['step'] == '3' for log in logs)


# ---- docs/learning.md
NAMED = sorted(set(re.findall(r'`([\w/]+\.py): ([\w.]+)`', PAGES['docs/learning.md'])))


@pytest.mark.parametrize('file, name', NAMED, ids=map(': '.join, NAMED))
def test_the_code_that_the_tour_names_exists(file, name):
    """A function, a class, or a method as Class.method."""
    found = runpy.run_path(str(ROOT / file))
    owner, _, method = name.partition('.')
    assert owner in found and (not method or hasattr(found[owner], method))


def test_the_numbers_of_the_tour_are_those_of_the_stories():
    shape = {name: value for name, value in runpy.run_path(str(ROOT / 'config/stories.py')).items()
             if name in GPTConfig.__dataclass_fields__}
    model = GPT(GPTConfig(vocab_size=1432, **shape))
    config, block = model.config, model.h[0]
    mlp, all_of_it = (sum(p.numel() for p in part.parameters()) for part in (block.mlp, block))
    for text in (f'1,432 rows of `n_embd` = {config.n_embd} numbers', f'{mlp:,} of {all_of_it:,}',
                 f'`n_inner` = {config.n_inner} channels', f'log 1,432 = {math.log(1432):.4f}'):
        assert text in ' '.join(PAGES['docs/learning.md'].split())
