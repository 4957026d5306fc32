"""Settings from config files and the command line, errors, atomic files, locks."""
import dataclasses
import os
import subprocess
import sys
import time
from functools import partial

import pytest
from conftest import ROOT, command, hold_lock

from lib.errors import Error, extra, message_of
from lib.files import acquire_lock, atomic, checksum
from lib.settings import configure
from model import GPTConfig


def settings_of(*argv, **more):
    """(settings, globals) of a script with a setting of each kind."""
    script = {'__name__': 'somewhere', '__annotations__': {'compile': bool | str},
              'n_layer': 4, 'learning_rate': 1e-3, 'start': '', 'tie': True, 'compile': 'auto',
              '_private': 1, 'function': len, **more}
    return configure(script, argv=list(argv)), script


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        (tmp_path / 'recipe.py').write_text(text)
        return str(tmp_path / 'recipe.py')
    return write


# ---- values
def test_values_take_the_type_of_their_setting():
    settings, script = settings_of('--n_layer=6', '--learning_rate=1', '--start=a=b',
                                   '--tie=False', '--compile=True')
    assert settings == {'n_layer': 6, 'learning_rate': 1.0, 'start': 'a=b', 'tie': False,
                        'compile': 'True'}
    assert script['n_layer'] == 6 and type(settings['learning_rate']) is float
    assert settings_of('--start=123')[0]['start'] == '123'
    assert settings_of('--start=True')[0]['start'] == 'True'
    assert settings_of('--compile=max')[0]['compile'] == 'max'
    assert settings_of('--n_layer=6', '--n_layer=7')[0]['n_layer'] == 7


def test_a_config_file_sees_the_settings_and_later_arguments_win(recipe):
    path = recipe('import math\n_half = n_layer // 2\nn_layer = _half + 10\nlearning_rate = 2\n')
    settings = settings_of(path)[0]
    assert settings == {**settings_of()[0], 'n_layer': 12, 'learning_rate': 2.0}
    assert settings.given == {'n_layer', 'learning_rate'}
    assert settings_of(path, '--n_layer=3')[0]['n_layer'] == 3
    assert settings_of('--n_layer=8', path)[0]['n_layer'] == 14
    assert settings_of(recipe('start = start\nn_layer = 4'))[0].given == {'start', 'n_layer'}


def test_loops_helpers_and_branches_of_a_config_file_are_its_own(recipe):
    path = recipe('def double(n):\n    tie = n\n    layers = 2 * n\n    return layers\n'
                  'class Plan:\n    start = "no setting"\n'
                  'for layers in (1, 2):\n    n_layer = double(layers)\n'
                  'if n_layer == 4:\n    learning_rate, start = 1, "x"\n'
                  'else:\n    compile = True\n'
                  'wide = [layers for layers in (8, 9)]\ndel wide\n')
    settings = settings_of(path)[0]
    assert settings == {**settings_of()[0], 'n_layer': 4, 'learning_rate': 1.0, 'start': 'x'}
    assert settings.given >= {'n_layer', 'learning_rate', 'start'}
    assert 'tie' not in settings.given


@pytest.mark.parametrize('argument, says', [
    ('--n_layers=3', 'did you mean n_layer'), ('--n_layer=3.5', 'int'), ('--n_layer=', 'int'),
    ('--n_layer=True', 'int'), ('--learning_rate=fast', 'float'), ('--learning_rate=nan', 'range'),
    ('--learning_rate=inf', 'range'), (f'--n_layer={2 ** 63}', 'range'), ('--tie=1', 'bool'),
    ('--tie=false', 'bool'), ('--n_layer', 'expected --n_layer='), ('-n_layer=3', '--key=value'),
    ('--_private=2', 'unknown'), ('--=3', 'unknown'), ('--function=1', 'unknown'),
    ('no/such/file.py', 'no such config file'), ('pyproject.toml', 'not a config file'),
    ('config/shakespear_cpu.py', 'config/shakespeare_cpu.py'),
    ('--n_layer=' + '9' * 5000, 'int|range'), ('--n_layer=0x10', 'int'), ('--n_layer=1e3', 'int'),
    ('--\0=1', 'unknown'), ('--lr_decay_iters=5', 'unknown setting')])
def test_bad_arguments_are_errors_that_say_what_is_meant(argument, says):
    with pytest.raises(Error, match=says):
        settings_of(argument, max_iters=1, output_lr_scale=1.0)


@pytest.mark.parametrize('text', [
    'n_layer = 1.5', 'n_layers = 3', 'tie = 1', 'n_layer = True', 'start = None', 'n_layer =',
    'start = True', '1 / 0', 'learning_rate = float("nan")', 'n_layer = [1]', 'x: int = 3'])
def test_bad_config_files_are_errors_that_name_the_file(recipe, text):
    with pytest.raises(Error, match='recipe.py'):
        settings_of(recipe(text))


# ---- help
@pytest.mark.parametrize('script', ['prepare.py', 'train.py', 'sample.py'])
def test_help_is_quick_and_shows_every_setting_with_its_comment(script, tmp_path):
    began = time.perf_counter()
    shown = command(script, '--help', cwd=tmp_path)
    assert time.perf_counter() - began < 1.5        # it takes 0.1 s where nothing else runs
    assert shown.returncode == 0 and '--seed=1337' in shown.stdout
    lines = [line for line in shown.stdout.splitlines() if line.startswith('  --')]
    assert len(lines) > 8 and all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_the_fields_of_gptconfig_are_settings_of_training(tmp_path):
    shown = command('train.py', '--help', cwd=tmp_path).stdout
    lines = dict(line.strip().split(maxsplit=1) for line in shown.splitlines()
                 if line.startswith('  --'))
    assert lines['--rope_theta=10000.0'] == 'base of the RoPE frequencies'
    fields = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
    assert fields.pop('vocab_size') is dataclasses.MISSING      # no default, no setting
    assert {f'--{name}={value!r}' for name, value in fields.items()} < lines.keys()
    script = {'__name__': 'somewhere', 'seed': 2}
    settings = configure(script, dataclass='model.py:GPTConfig', argv=['--n_embd=8', '--seed=3'])
    assert settings == {'seed': 3} and settings.model == {'n_embd': 8} and 'n_embd' not in script
    with pytest.raises(Error, match='bias expects bool'):
        configure(script, dataclass='model.py:GPTConfig', argv=['--bias=1'])


# ---- errors
def test_a_missing_extra_is_none_or_an_error_that_says_what_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr('extras.__path__', [str(tmp_path)], raising=False)
    (tmp_path / 'needs_extra.py').write_text('import extras.gone')
    (tmp_path / 'needs_package.py').write_text('import gone')
    assert extra('gone') is extra('needs_extra') is None
    for name in ('gone', 'needs_extra'):
        with pytest.raises(Error, match='^a plot needs extras/gone.py, which is missing$'):
            extra(name, needed_by='a plot')
    with pytest.raises(Error, match='^a plot needs gone: pip install gone$'):
        extra('needs_package', needed_by='a plot')


@pytest.mark.parametrize('bug', [
    '1 / 0', 'raise RuntimeError("NCCL ran out of memory")', 'raise ValueError("bad setting")',
    'import no_such_package'])
def test_an_error_is_one_line_with_status_2_and_a_bug_keeps_its_traceback(tmp_path, bug):
    script = tmp_path / 'script.py'
    script.write_text(f'from lib.settings import configure\nn = 1\nconfigure(globals())\n{bug}\n')
    shown = command(str(script), '--m=2')
    assert (shown.returncode, shown.stdout, shown.stderr.count('\n')) == (2, '', 1)
    assert shown.stderr.startswith('error: --m=2: unknown setting')
    shown = command(str(script))
    assert shown.returncode == 1 and 'Traceback' in shown.stderr


def test_a_required_package_that_is_missing_is_one_line(tmp_path):
    (tmp_path / 'numpy.py').write_text('import numpy.core')
    env = {'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    code = 'from lib.settings import configure; configure(globals()); import numpy'
    shown = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, text=True,
                           capture_output=True)
    assert shown.returncode == 2 and shown.stderr.startswith('error: numpy is not installed')


def test_a_closed_stream_reads_and_writes_nothing():
    code = 'import lib, sys; assert sys.stdin.read() == ""; sys.stdout.write(""), sys.stderr.flush()'
    for closed in (0, 1, 2):
        subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdin=subprocess.DEVNULL, check=True,
                       preexec_fn=partial(os.close, closed))


def test_a_full_disk_and_a_file_that_may_not_be_read_are_errors_of_one_line():
    with open('/dev/full', 'w') as full:
        shown = command('train.py', '--help', stdout=full)
    assert (shown.returncode, shown.stderr) == (2, 'error: [Errno 28] No space left on device\n')
    assert 'Permission' in message_of(PermissionError, PermissionError(13, 'Permission denied'))


# ---- files
def test_an_atomic_write_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / 'folder/file'
    with atomic(path) as temporary:
        temporary.write_text('old')
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    with pytest.raises(Error, match='No space.*no file was changed'):
        with atomic(path) as temporary:
            temporary.write_text('half')
            raise OSError(28, 'No space left on device')
    with pytest.raises(Error, match='the disk may be full'), atomic(path):
        raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0')
    assert path.read_text() == 'old' and list(path.parent.iterdir()) == [path]


def test_a_checksum_is_of_a_file_or_of_the_bytes_ahead(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'123456789' * 300_000)
    with open(path, 'rb') as f:
        assert checksum(f, 9) == 'cbf43926'         # the published check value of CRC-32
        assert f.tell() == 9
    assert checksum(path) != 'cbf43926'


@pytest.mark.parametrize('end', ['kill', 'terminate', 'communicate'])
def test_a_lock_is_held_until_its_process_ends_however_it_ends(tmp_path, end):
    other = hold_lock(tmp_path / 'out')
    with pytest.raises(Error, match='in use by another run'):
        acquire_lock(tmp_path / 'out')
    getattr(other, end)()
    other.communicate()
    with acquire_lock(tmp_path / 'out'), acquire_lock(tmp_path / 'out'):
        pass                                    # the same process may, as in a notebook


def test_a_lock_in_a_folder_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(Error, match='cannot write to .*file'):
        acquire_lock(tmp_path / 'file')


def test_a_file_is_written_where_fsync_is_not_supported(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(22, 'Invalid argument')
    monkeypatch.setattr(os, 'fsync', fsync)
    with atomic(tmp_path / 'file') as temporary:
        temporary.write_text('b')
    assert (tmp_path / 'file').read_text() == 'b'
