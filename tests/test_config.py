import dataclasses
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from config import Error, configure, extra
from config._device import pick_device, pick_dtype
from config._files import acquire_lock, atomic
from config._run import start_device
from model import GPTConfig


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


def test_a_saved_config_fills_in_the_knobs_that_are_not_given(tmp_path):
    path = tmp_path / 'recipe.py'
    path.write_text('start = start\nn_layer = 4\n')  # their defaults: given all the same
    config = knobs(str(path), '--tie=True')[0]
    assert config == knobs()[0] and config.given == {'start', 'n_layer', 'tie'}
    config.adopt({'n_layer': 8, 'start': 'x', 'tie': False, 'learning_rate': 2, 'compile': True, 'gone': 1})
    assert config == {**knobs()[0], 'learning_rate': 2.0, 'compile': True}
    assert type(config['learning_rate']) is float


@pytest.mark.parametrize(
    'saved',
    [{'tie': 1}, {'n_layer': 2.0}, {'learning_rate': float('nan')}, {'start': None}, {'compile': 1}],
)
def test_a_saved_value_of_the_wrong_type_is_an_error_unless_the_knob_is_given(saved):
    with pytest.raises(Error, match=f'checkpoint: {"".join(saved)} expects'):
        knobs()[0].adopt(saved)
    given = knobs('--tie=False', '--n_layer=3', '--learning_rate=1', '--start=x', '--compile=max')[0]
    before = dict(given)
    given.adopt(saved)
    assert given == before


@pytest.mark.parametrize(
    'argument, names',
    [
        ('--n_layers=3', 'n_layer'),
        ('--n_layer=3.5', 'int'),
        ('--n_layer=', 'int'),
        ('--learning_rate=fast', 'float'),
        ('--learning_rate=nan', 'float'),
        ('--learning_rate=inf', 'float'),
        ('--tie=1', 'True or False'),
        ('--tie=false', 'True or False'),
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


def test_fields_of_the_models_config_are_knobs_of_training_with_their_comments(tmp_path):
    command = [sys.executable, ROOT / 'train.py', '--help']
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    lines = dict(line.strip().split(maxsplit=1) for line in shown.splitlines() if line.startswith('  --'))
    assert lines['--rope_theta=10000.0'] == 'base of the rotary frequencies, qwen3 only'
    assert lines['--tie_weights=True'] == 'embedding and output share one matrix'
    assert lines['--dropout=0.0'] == 'share of activations set to 0; helps over many epochs'  # train.py's own
    base = {'__name__': 'somewhere', 'n_layer': 2}
    config = configure(base, ['--n_embd=8', '--bias=True'], dataclass=('model.py', 'GPTConfig'))
    fields = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
    assert fields.pop('vocab_size') is dataclasses.MISSING  # no default, no knob
    assert config == {**fields, 'n_layer': 2, 'n_embd': 8, 'bias': True}
    assert base == {**config, '__name__': 'somewhere'}
    assert {line.partition('=')[0].strip('-') for line in lines} > fields.keys()


def test_an_extra_that_is_missing_is_none_or_an_error_that_says_what_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr('extras.__path__', [str(tmp_path)])
    (tmp_path / 'needs_extra.py').write_text('import extras.gone as gone')
    (tmp_path / 'needs_package.py').write_text('import gone')
    assert extra('gone') is extra('needs_extra') is None
    for name in ('gone', 'needs_extra'):
        with pytest.raises(Error, match='^plot needs extras/gone.py, which is not there$'):
            extra(name, needed_by='plot')
    with pytest.raises(Error, match='^plot needs gone: pip install gone$'):
        extra('needs_package', needed_by='plot')


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
        monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
        has = {'avx512_bf16': avx512_bf16, 'amx_bf16': amx}
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: has)
        monkeypatch.setattr(  # pick_device() asks for an empty tensor to learn whether a device is there
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
    found = start_device('auto', 1)
    assert (found.type, pick_dtype('auto', found)) == (device, dtype)
    assert torch.get_float32_matmul_precision() == ('high' if device == 'cuda' else 'highest')


def test_what_is_asked_for_wins_over_auto_and_what_cannot_be_is_an_error(machine):
    machine(cuda=True, amx=True)
    cpu, cuda = torch.device('cpu'), torch.device('cuda:1')
    assert pick_device('cpu') == cpu and pick_device('cuda:1') == cuda
    assert pick_dtype('auto', cpu) == torch.bfloat16 and pick_dtype('float32', cuda) == torch.float32
    assert pick_dtype('float16', cuda) == torch.float16
    for device, dtype in ((cpu, 'float16'), (cpu, 'float64'), (cuda, 'int8'), (cpu, '')):
        with pytest.raises(Error, match=f'dtype={dtype} does not work on {device.type}'):
            pick_dtype(dtype, device)
    for device in ('', 'gpu', 'meta', 'cpu:x'):
        with pytest.raises(Error, match='try --device=cpu'):
            pick_device(device)


HOLD = """
import pathlib, sys
from config._files import acquire_lock
held = acquire_lock(pathlib.Path(sys.argv[1]))
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
            acquire_lock(path)
        getattr(other, end)()
        other.communicate()
    with acquire_lock(path), acquire_lock(path):  # the same process may, as in a notebook
        second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert second.returncode and 'in use by another run' in second.stderr
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
        acquire_lock(tmp_path / 'file' / '.lock')
