import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from config import Error, atomic, configure, lock, setup


def knobs(*argv, file=None, **more):
    base = {
        '__name__': 'somewhere',
        'n_layer': 4,
        'learning_rate': 1e-3,
        'start': '',
        'tie': True,
        'compile': 'auto',
        '_private': 1,
        'function': len,
        **more,
    }
    return configure(base, list(argv)), base


def test_values_take_the_type_of_their_default(tmp_path):
    config, base = knobs('--n_layer=6', '--learning_rate=1', '--start=a=b', '--tie=False', '--compile=True')
    assert config == {'n_layer': 6, 'learning_rate': 1.0, 'start': 'a=b', 'tie': False, 'compile': True}
    assert base['n_layer'] == 6 and type(config['learning_rate']) is float
    assert knobs('--start=123')[0]['start'] == '123' and knobs('--compile=max')[0]['compile'] == 'max'
    assert knobs('--n_layer=6', '--n_layer=7')[0]['n_layer'] == 7


def test_config_file_sees_the_knobs_and_the_command_line_wins(tmp_path):
    path = tmp_path / 'recipe.py'
    path.write_text('import math\n_half = n_layer // 2\nn_layer = _half + 10\nlearning_rate = 2\n')
    assert knobs(str(path))[0] == {**knobs()[0], 'n_layer': 12, 'learning_rate': 2.0}
    assert knobs(str(path), '--n_layer=3')[0]['n_layer'] == 3


def test_a_checkpoints_knobs_rank_between_defaults_and_arguments():
    config, base = knobs('--n_layer=6')
    again = configure(base, ['--n_layer=6'], below={'n_layer': 8, 'learning_rate': 0.5, 'compile': True})
    assert again == {**config, 'learning_rate': 0.5, 'compile': True}
    assert configure(base, ['--compile=auto'], below={'compile': True})['compile'] == 'auto'


@pytest.mark.parametrize(
    'argument, names',
    [
        ('--n_layers=3', 'n_layer'),
        ('--n_layer=3.5', 'int'),
        ('--n_layer=', 'int'),
        ('--learning_rate=fast', 'float'),
        ('--learning_rate=nan', 'float'),
        ('--learning_rate=inf', 'float'),
        ('--tie=1', 'bool'),
        ('--tie=false', 'bool'),
        ('--n_layer', '--key=value'),
        ('-n_layer=3', '--key=value'),
        ('--_private=2', 'unknown'),
        ('--=3', 'unknown'),
        ('--function=1', 'unknown'),
        ('no/such/file.py', 'no such config file'),
        ('--lr_decay_iters=5', 'max_iters'),
        ('config/shakespear_cpu.py', 'config/shakespeare_cpu.py'),
    ],
)
def test_bad_arguments_are_errors_that_say_what_is_meant(argument, names):
    with pytest.raises(Error, match=names):
        knobs(argument, max_iters=1)


@pytest.mark.parametrize(
    'text',
    [
        'n_layer = 1.5',
        'n_layers = 3',
        'tie = 1',
        'n_layer = True',
        'start = None',
        'n_layer =',
        '1 / 0',
        'learning_rate = float("nan")',
        'n_layer = [1]',
    ],
)
def test_bad_config_files_are_errors_that_name_the_file(tmp_path, text):
    path = tmp_path / 'recipe.py'
    path.write_text(text)
    with pytest.raises(Error, match='recipe.py'):
        knobs(str(path))


@pytest.mark.parametrize('script', ['prepare.py', 'train.py', 'sample.py'])
def test_help_is_quick_and_shows_every_knob_with_its_comment(script, tmp_path):
    clock = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, ROOT / script, '--help'], capture_output=True, text=True, cwd=tmp_path
    )
    assert time.perf_counter() - clock < 1.5  # it is 0.1 s where nothing else runs
    assert shown.returncode == 0 and '--seed=1337' in shown.stdout
    lines = [line for line in shown.stdout.splitlines() if line.startswith('  --')]
    assert len(lines) > 8 and all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line_and_status_2_and_a_bug_keeps_its_traceback(tmp_path):
    shown = subprocess.run(
        [sys.executable, ROOT / 'train.py', '--n_layers=3'], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stdout, shown.stderr.count('\n')) == (2, '', 1)
    assert shown.stderr.startswith('error: ')
    (tmp_path / 'script.py').write_text('from config import configure\nconfigure(globals())\n1 / 0\n')
    shown = subprocess.run(
        [sys.executable, tmp_path / 'script.py'],
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(ROOT)},
    )
    assert shown.returncode == 1 and 'Traceback' in shown.stderr and 'ZeroDivisionError' in shown.stderr


def test_atomic_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / 'folder' / 'file'
    with atomic(path) as temporary:
        temporary.write_text('old')
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and list(path.parent.iterdir()) == [path]
    with pytest.raises(Error, match='file'), atomic(path) as temporary:
        temporary.write_text('half')
        raise OSError(28, 'No space left on device')
    assert path.read_text() == 'old' and list(path.parent.iterdir()) == [path]


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=..., ...): torch's probes answer as on such a machine."""

    def answer(cuda=False, mps=False, capability=8, avx512_bf16=False, amx=False):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (capability, 0))
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *a, **k: True)  # if only emulated
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
        monkeypatch.setattr(  # setup() asks for an empty tensor to learn whether a device is there
            torch, 'empty', lambda size, device: SimpleNamespace(device=torch.device(device))
        )

    precision = torch.get_float32_matmul_precision()
    yield answer
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    'there, device, dtype',
    [
        (dict(cuda=True, mps=True), 'cuda', torch.bfloat16),
        (dict(cuda=True, capability=9), 'cuda', torch.bfloat16),
        (dict(cuda=True, capability=7), 'cuda', torch.float16),
        (dict(cuda=True, capability=6, amx=True), 'cuda', torch.float16),
        (dict(mps=True, amx=True), 'mps', torch.float32),
        (dict(), 'cpu', torch.float32),
        (dict(avx512_bf16=True), 'cpu', torch.bfloat16),
        (dict(amx=True), 'cpu', torch.bfloat16),
    ],
)
def test_auto_takes_the_best_device_and_its_native_precision(machine, there, device, dtype):
    machine(**there)
    torch.set_float32_matmul_precision('highest')
    found = setup('auto', 'auto', 0)
    assert (found[0].type, found[1]) == (device, dtype)
    assert torch.get_float32_matmul_precision() == ('high' if device == 'cuda' else 'highest')


def test_what_is_asked_for_wins_over_auto_and_what_cannot_be_is_an_error(machine):
    machine(cuda=True, amx=True)
    assert setup('cpu', 'auto', 0)[:2] == (torch.device('cpu'), torch.bfloat16)
    assert setup('cuda:1', 'float32', 0)[:2] == (torch.device('cuda:1'), torch.float32)
    assert setup('cuda', 'float16', 0)[1] == torch.float16
    for device, dtype in (('cpu', 'float16'), ('cpu', 'float64'), ('cuda', 'int8'), ('cpu', '')):
        with pytest.raises(Error, match=f'dtype={dtype} does not work on {device}'):
            setup(device, dtype, 0)
    for device in ('', 'gpu', 'meta', 'cpu:x'):
        with pytest.raises(Error, match='try --device=cpu'):
            setup(device, 'auto', 0)


def test_autocast_computes_in_the_precision_and_the_seed_is_set():
    ones = torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        _, number, autocast = setup('cpu', str(dtype).removeprefix('torch.'), 5)
        drawn = torch.rand(1)
        with autocast():
            assert (ones @ ones).dtype == number == dtype
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(1))


HOLD = """
import pathlib, sys, config
held = config.lock(pathlib.Path(sys.argv[1]))
print('held', flush=True)
input()
"""


def test_a_lock_is_held_against_other_processes_until_its_own_ends_however_it_does(tmp_path):
    path = tmp_path / 'out' / '.lock'
    command = [sys.executable, '-c', HOLD, path]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    for end in ('kill', 'terminate', 'communicate'):
        other = subprocess.Popen(command, **pipes)
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(Error, match='in use by another run'):
            lock(path)
        getattr(other, end)()
        other.communicate()
    held = lock(path)
    again = lock(path)  # the same process may, as in a notebook
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert second.returncode and 'in use by another run' in second.stderr
    del held, again
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT, input='\n').returncode == 0


def test_one_of_several_processes_leaves_an_error_at_once_whatever_would_go_wrong_at_its_end():
    script = 'import atexit, os, config; atexit.register(os.abort); x = 1; config.configure(globals())'
    command = [sys.executable, '-c', script, '--y=2']
    for rank, shown in ('0', 1), ('1', 0):                              # one line per machine
        ranks = os.environ | {'RANK': rank, 'LOCAL_RANK': rank}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ranks)
        lines = ended.stderr.splitlines()
        assert ended.returncode == 2 and len(lines) == shown and all('unknown knob' in line for line in lines)


def test_a_lock_where_nothing_can_be_written_is_an_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(Error, match='cannot write'):
        lock(tmp_path / 'file' / '.lock')
