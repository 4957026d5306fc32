import subprocess
import sys
import time

import pytest
from conftest import ROOT

from config import Error, atomic, configure


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
