"""README.md is true: its commands run, its names exist, its diffs apply and train, its links lead somewhere.

All is read out of README.md itself: what is added there is checked here, or fails as unknown."""
import ast
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, read_log

from config import configure

README = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.M | re.S)
PROSE = re.sub(r'^```.*?^```$', '', README, flags=re.M | re.S)
QUOTED = [text.replace('\n', ' ') for text in re.findall(r'`([^`]+)`', PROSE)]
SCRIPTS = ('prepare.py', 'train.py', 'sample.py')
# Appended to a command, these make it small; all else about it stays as README has it.
SMALL = {'prepare.py': ['--num_stories=200', '--vocab_size=300'],
         'train.py': ['--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=64', '--batch_size=4',
                      '--micro_batch_size=2', '--max_iters=2', '--eval_tokens=2000', '--device=cpu'],
         'sample.py': ['--max_new_tokens=20', '--device=cpu']}
# What takes the place of what is not here: the text, the download, the other machines and disks.
INSTEAD = {'--dataset=tinystories': ['--dataset=downloaded', '--name=tinystories_gpt2'],
           '--out_dir=/content/drive/MyDrive/tiny': ['--out_dir=out/drive']}
NOT_RUN = {
    'python3 -m venv .venv': 'the environment is there already; make demo makes it the same way',
    'source .venv/bin/activate': 'the same',
    'pip install -r requirements.txt': 'needs a network; make demo does it in the same way',
    'export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1': 'faults.py kills and restarts with it',
    'llama-server -m model.gguf': 'a program of others; test_hf.py runs its code, built as xllamacpp'}


def commands() -> list[str]:
    """The commands of the blocks, each in one line, without comments; && joins several."""
    body = ''.join(body for language, body in BLOCKS if language == 'sh').replace('\\\n', ' ')
    words = [shlex.split(line, comments=True) for line in body.splitlines()]
    return [part for line in words for part in shlex.join(line).replace("'&&'", '&&').split(' && ') if part]


def shown(command: str) -> str:
    return shlex.join(shlex.split(command))


COMMANDS = commands()
OURS = [c for c in COMMANDS if c not in map(shown, NOT_RUN)]
PYTHON = [c for c in OURS if c.startswith('python ')]
TORCHRUN = [c for c in OURS if c.startswith('torchrun ')]
MAKE = [c for c in (*OURS, *QUOTED) if c.startswith('make ')]
DIFFS = [body for language, body in BLOCKS if language == 'diff']
ADDED = {knob for diff in DIFFS for knob in re.findall(r'^\+    (\w+): \w+ = ', diff, re.M)}


def clone(folder: Path) -> Path:
    copy_project(folder, 'extras/*.py', 'Makefile', 'requirements.txt', 'tests/requirements.txt')
    return folder


def shell(*words, cwd, **more):
    """Run a command to its end as a user would, and return what it shows; fails if it does."""
    here = {'PYTHONPATH': '', 'MAKEFLAGS': '', 'GIT_CEILING_DIRECTORIES': str(cwd.parent)}
    p = subprocess.run(words, cwd=cwd, env=os.environ | here | more, stdin=subprocess.DEVNULL, text=True,
                       timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert p.returncode == 0, f'{shlex.join(map(str, words))}\n{p.stdout[-3000:]}'
    return p.stdout


def made_small(command: str) -> list[str]:
    """The words of a command of one of the scripts with what makes it small appended."""
    words = shlex.split(command)
    script = next(word for word in words if word.endswith('.py'))
    small = SMALL[script]
    if any(word.startswith(('--input=', '--dataset=')) for word in words):      # these are not stories
        small = [word for word in small if 'num_stories' not in word]
    return [*words, *small, *(word for old in words for word in INSTEAD.get(old, []))]


def write_texts(folder: Path):
    """What README takes as given: documents of one's own, and the dataset a download would bring."""
    import pyarrow
    from pyarrow import parquet
    texts = [f'It was day {i}, and the sea was {"calm" if i % 3 else "wild and grey"}.' for i in range(90)]
    (folder / 'my_texts/deep').mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / f'my_texts/deep/{i}{".md" if i % 2 else ".txt"}').write_text(text * 3, encoding='utf-8')
    (folder / 'my.csv').write_text('text\n' + ''.join(f'"{text}"\n' for text in texts), encoding='utf-8')
    (folder / 'downloaded/data').mkdir(parents=True)
    for split in ('train', 'validation'):
        table = pyarrow.table({'text': [f'{split}: {text}' for text in texts]})
        parquet.write_table(table, folder / f'downloaded/data/{split}-00000-of-00001.parquet')


# ---- what is there
def test_every_block_and_every_command_is_of_a_known_kind():
    assert {language for language, _ in BLOCKS} == {'sh', 'text', 'python', 'diff'}
    assert len(PYTHON) > 10 and len(TORCHRUN) == 2 and len(MAKE) > 2 and len(DIFFS) > 2
    assert sorted({*OURS} - {*PYTHON, *TORCHRUN, *MAKE}) == []
    assert sorted({*map(shown, NOT_RUN)} - {*COMMANDS}) == []           # nothing is excused that is not there


def test_make_runs_what_stands_there_to_do_by_hand(tmp_path):
    folder = clone(tmp_path / 'clone')
    for command in MAKE:
        todo = shell('make', '-n', *shlex.split(command)[1:], cwd=folder)
        assert '-m venv .venv' in todo and '-r requirements.txt' in todo
        assert ('python -m pytest' if 'test' in command else 'python train.py') in todo
    demo = re.findall(r'^.venv/bin/(python \w+\.py)', shell('make', '-n', 'demo', cwd=folder), re.M)
    assert demo == PYTHON[:3]


def test_make_destroys_no_trained_model(tmp_path):
    folder = clone(tmp_path / 'clone')
    demo = shell('make', '-n', 'demo', cwd=folder)
    for script in ('train', 'sample'):
        (place,) = re.findall(rf'{script}.py .*--out_dir=(\S+)', demo)
        assert place == 'out/demo' and f'--out_dir={place}' in README
    for name in ('out/best.pt', 'out/mine/best.pt', 'data/mine/train.bin', '.venv/installed', '.ruff_cache/x'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    before = {path for path in folder.rglob('*') if not re.search(r'\.venv|\.\w+_cache', str(path))}
    shell('make', 'clean', cwd=folder)
    assert set(folder.rglob('*')) == before


@pytest.mark.parametrize('command', sorted({c for c in (*OURS, *QUOTED) if re.search(r'\b[a-z]+\.py ', c)
                                            and not any(f'--{knob}=' in c for knob in ADDED)}))
def test_every_knob_of_every_command_is_one(command):
    words = shlex.split(command)
    script = next(word for word in words if word.endswith('.py'))
    knobs = runpy.run_path(str(ROOT / script))
    config = configure(knobs, [w for w in words[words.index(script) + 1:] if not w.endswith('…')])
    if script == 'train.py':
        launcher = dict(word[2:].split('=') for word in words[:words.index(script)] if '=' in word)
        processes = int(launcher.get('nnodes', 1)) * int(launcher.get('nproc_per_node', 1))
        knobs['check_knobs'].__globals__.update(config)
        knobs['check_knobs'](processes)


def test_every_knob_that_is_named_is_one():
    knobs = {key for script in SCRIPTS for key in runpy.run_path(str(ROOT / script))['config']}
    named = {name for text in QUOTED for name in re.findall(r'(?<!\S)--([a-z_]+)', text)}
    assert len(named) > 10 and sorted(named - knobs - ADDED) == ['help', 'knob']


def test_links_and_pictures_lead_somewhere():
    headings = re.findall(r'^#+ (.*)$', PROSE, re.M)
    anchors = {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}
    for picture, target in re.findall(r'(!?)\[[^\]]*\]\(([^)]+)\)', PROSE):
        if target.startswith('#'):
            assert target[1:] in anchors, target
        elif not target.startswith('https://'):
            assert (ROOT / target).is_file(), target
            assert not picture or (ROOT / target).stat().st_size <= 300_000, target
    for name in QUOTED:
        if re.fullmatch(r'[\w/]+\.(py|ipynb)|data/stories/\S+', name):
            assert (ROOT / name).is_file(), name


def test_the_table_of_recipes_is_whole_and_has_their_sizes():
    rows = dict(re.findall(r'^\| `(config/\w+\.py)` \|.*\| (.+) \|$', README, re.M))
    assert set(rows) == {f'config/{path.name}' for path in (ROOT / 'config').glob('[!_]*.py')}
    for name, sizes in rows.items():
        for size in sizes.split(' to '):                                # test_recipes.py checks the headers
            header = (ROOT / name).read_text(encoding='utf-8')
            assert f' {size} parameters' in header or f'({size})' in header, (name, size)


def test_every_error_of_the_table_is_one():
    source = ''.join(path.read_text(encoding='utf-8') for path in (*ROOT.glob('*.py'), *ROOT.glob('config/_*.py')))
    table = re.search(r'^\| it says \| do \|\n.*\n((?:\|.*\n)+)', README, re.M)[1]
    for said in re.findall(r'^\| .*?`([^`]+)`', table, re.M):
        assert said.replace('=cuda', '={device}') in source, said


def test_the_four_files_and_the_heart_of_them_have_the_lines_that_are_stated():
    stated = {name: int(lines) for name, lines in re.findall(r'^\| `(\w+\.py)` \| (\d+) \|', README, re.M)}
    counted = {name: len((ROOT / name).read_text(encoding='utf-8').splitlines()) for name in stated}
    assert set(stated) == {*SCRIPTS, 'model.py'} and stated == counted
    assert 60 <= sum(stated.values()) / 15 <= 120, 'minutes of an evening, at 15 lines a minute'
    network, loop = (re.search(pattern, (ROOT / name).read_text(encoding='utf-8'), re.M | re.S)[0] for name, pattern in (
        ('model.py', r'^def rotary.*    def loss.*?^$'), ('train.py', r'^    # ---- the loop.*(?=^    # ---- the end)')))
    heart = len((network + loop).splitlines())
    assert int(re.search(r'these\n(\d+) lines', README)[1]) == pytest.approx(heart, abs=5)
    assert 20 <= heart / 7.5 <= 40, 'minutes, at half of that speed'
    assert len(README.splitlines()) <= 250


# ---- what happens in a training step
def step_names() -> list[tuple[str, str]]:
    """(file, name) of each name in backticks in the section, each of the file that is named before it."""
    section = re.search(r'^## What happens in a training step\n(.*?)^## ', README, re.M | re.S)[1]
    file, found = '', []
    for name in re.findall(r'`([^`]+)`', section):
        file, found = (name, found) if name.endswith('.py') else (file, [*found, (file, name)])
    return found


def defined(tree, inside='') -> set[str]:
    """Names that are bound in a syntax tree: functions, classes, methods as Class.method, variables."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names |= {inside + node.name}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names |= {node.id}
        names |= defined(node, f'{node.name}.' if isinstance(node, ast.ClassDef) else inside)
    return names


def test_the_names_of_a_training_step_stand_in_their_files():
    names = step_names()
    assert len(names) > 25 and len({file for file, _ in names}) > 4
    for file in {file for file, _ in names}:
        tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        there = defined(tree) | {name for name in used if name.startswith('torch.')}
        assert [name for where, name in names if where == file and name not in there] == [], file


def test_a_training_step_calls_them_in_the_order_in_which_they_are_told(run, dataset):
    """Among the calls that a step makes stand the section's functions, one after the other."""
    names = step_names()
    calls, last = [], {name.rpartition('.')[2] for _, name in names} | {'__init__'}

    def keep(frame, event, _):
        code = frame.f_code
        if event == 'call' and code.co_name in last:
            calls.append((code.co_filename, code.co_qualname.rpartition('<locals>.')[2]))

    sys.setprofile(keep)
    try:
        run('train.py', f'--dataset={dataset}', '--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=16',
            '--batch_size=4', '--max_iters=1', '--eval_interval=0', '--device=cpu', '--dtype=float32')
    finally:
        sys.setprofile(None)
    functions, later, told = {name for _, name in calls}, iter(calls), 0
    for file, name in names:
        wanted = name.removeprefix('torch.optim.').removeprefix('torch.nn.utils.')
        wanted = wanted if wanted in functions else f'{wanted}.__init__'
        if wanted in functions:                                         # else it is a knob, or a variable
            told += 1
            assert any(called == wanted and (path == str(ROOT / file) or name.startswith('torch.'))
                       for path, called in later), f'{name} is not called after what is told before it'
    assert told > 20


# ---- what it runs
@pytest.mark.slow
def test_every_command_runs_in_turn_in_one_folder(tmp_path):
    folder = clone(tmp_path / 'clone')
    write_texts(folder)
    more = [c for c in QUOTED if c.startswith('python sample.py') and not re.search('[A-Z]{3}', c)]
    for command in (*PYTHON, *more):
        shell(sys.executable, *made_small(command)[1:], cwd=folder)
    for out in ('out', 'out/mine', 'out/drive', 'out/adamw'):
        assert [row['step'] for row in read_log(folder / out / 'log.csv')][-1] == '2'
    for name in ('attention.png', 'surprise.html', 'model/model.safetensors', 'model.gguf', 'out/loss.png'):
        assert (folder / name).stat().st_size > 1000
    for code in (body for language, body in BLOCKS if language == 'python'):
        assert 'Once upon a time' in shell(sys.executable, '-c', code, cwd=folder)


@pytest.mark.slow
def test_make_demo_ends_with_stories(tmp_path):
    folder = clone(tmp_path / 'clone')
    cases = ''.join(f'{script}) set -- "$@" {shlex.join(small)} ;; ' for script, small in SMALL.items())
    python = folder / '.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase $1 in {cases}esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / '.venv/installed').touch()                                # what pip would have done
    assert shell('make', 'demo', cwd=folder).count('-' * 60) == 3


def free_port() -> str:
    with socket.socket() as s:
        s.bind(('', 0))
        return str(s.getsockname()[1])


@pytest.mark.slow
def test_several_processes_on_one_machine_and_on_two(run, dataset, tmp_path):
    """README's lines with two processes of gloo; the machines are two launchers on this one."""
    clone(tmp_path)
    one, restarted = TORCHRUN
    commands = [c.replace('_node=8', '_node=2') for c in (one, restarted)]
    place = f'--nnodes=2 --master_addr=127.0.0.1 --master_port={free_port()}'
    commands += [one.replace('_node=8', '_node=1').replace('--standalone', f'{place} --node_rank={rank}')
                 for rank in (0, 1)]
    commands = [[sys.executable, '-m', 'torch.distributed.run', *made_small(c)[1:], f'--dataset={dataset}',
                 '--micro_batch_size=1', '--eval_tokens=0', '--dtype=float32'] for c in commands]
    for command in commands[:2]:
        shell(*command, '--out_dir=out/one', cwd=tmp_path)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    machines = [subprocess.Popen([*command, '--out_dir=out/two'], cwd=tmp_path, **pipes)
                for command in commands[2:]]
    try:
        said = [machine.communicate(timeout=200)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert 'device  2 x cpu, 2 x 1 sequences each' in said[0] and 'device' not in said[1]
    one, two = (read_log(tmp_path / f'out/{name}/log.csv') for name in ('one', 'two'))
    assert one == two and one[-1]['step'] == '2'


# ---- what it says can be added
@pytest.fixture
def patched(tmp_path, dataset):
    """patched(word): a copy with a small dataset, to which README's diff with this word is applied."""
    def patched(word):
        folder, (diff,) = clone(tmp_path / 'clone'), [diff for diff in DIFFS if word in diff]
        shutil.copytree(tmp_path / 'data' / dataset, folder / 'data' / dataset)
        (folder / 'idea.diff').write_text(diff, encoding='utf-8')
        reverse = subprocess.run(['git', 'apply', '--reverse', '--check', 'idea.diff'], cwd=folder)
        if reverse.returncode:                                          # else it has been applied here
            shell('git', 'apply', 'idea.diff', cwd=folder)
        return folder

    return patched


def train(folder, dataset, *args):
    """The losses of a small training with one of the scripts that were changed."""
    shell(sys.executable, 'train.py', *SMALL['train.py'], f'--dataset={dataset}', '--dtype=float32',
          '--log_interval=1', '--eval_tokens=0', *args, cwd=folder)
    out = next((arg[10:] for arg in args if arg.startswith('--out_dir=')), 'out')
    return [row['train_loss'] or row['val_loss'] for row in read_log(folder / out / 'log.csv')]


def test_every_diff_is_short_and_applies_to_lines_that_are_there(patched):
    assert all(len(diff.splitlines()) < 20 for diff in DIFFS)
    for word in ('rope: bool', 'NAdam', 'read_csv'):
        folder = patched(word)
        rules = ROOT / 'pyproject.toml'
        shell(sys.executable, '-m', 'ruff', 'check', '--no-cache', '--config', rules, cwd=folder)
        shutil.rmtree(folder)
    assert len(DIFFS) == 3                                              # each new one needs a test below


@pytest.mark.slow
def test_a_switch_in_the_architecture(patched, dataset):
    folder = patched('rope: bool')
    (command,) = [c for c in QUOTED if c.startswith('python train.py --rope')]
    args = [word for word in shlex.split(command) if word.startswith('--')]
    as_before, with_it = train(folder, dataset), train(folder, dataset, *args)
    assert len(as_before) == 3 and all(a != b for a, b in zip(as_before, with_it))
    assert len(train(folder, dataset, *args, '--init_from=resume', '--max_iters=3')) == 4
    shell(sys.executable, 'sample.py', *args[1:], *SMALL['sample.py'], cwd=folder)


@pytest.mark.slow
def test_an_optimizer(patched, dataset):
    folder = patched('NAdam')
    args = ('--optimizer=nadam', '--max_iters=6', '--eval_interval=2', '--learning_rate=0.01')
    whole = train(folder, dataset, *args)
    assert len(whole) == 7 and float(whole[-1]) < float(whole[1])
    train(folder, dataset, *args, '--out_dir=out/again', '--max_minutes=0.0001')
    assert train(folder, dataset, *args, '--out_dir=out/again', '--init_from=resume') == whole


@pytest.mark.slow
def test_a_dataset(patched, dataset):
    folder = patched('read_csv')
    write_texts(folder)
    (command,) = [c for c in QUOTED if 'my.csv' in c]
    shell(sys.executable, *made_small(command)[1:], cwd=folder)
    assert len(train(folder, 'my')) == 3
