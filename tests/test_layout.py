"""How the project is put together: what each file imports, that nothing is patched, and that
all but extras/ works without extras/."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT, TEXT, copy_project

SCRIPTS = ('prepare', 'model', 'train', 'sample')
FOLDERS = ('lib', 'text', 'extras', 'config')
PRODUCT = sorted([*ROOT.glob('*.py'),
                  *(path for name in FOLDERS for path in (ROOT / name).rglob('*.py'))])


def parse(path):
    return list(ast.walk(ast.parse(path.read_bytes())))


def imports(path):
    """All that a file imports, wherever in it: 'a', 'a.b', and for `from a import b` 'a.b'."""
    names = set()
    for node in parse(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def packages(path):
    return {name.partition('.')[0] for name in imports(path)}


# ---- imports
def test_of_the_four_scripts_only_train_and_sample_import_the_model():
    for script in SCRIPTS:
        others = packages(ROOT / f'{script}.py') & {*SCRIPTS, 'extras', 'tests', 'config'}
        assert others == ({'model'} if script in ('train', 'sample') else set())


def test_lib_and_text_import_no_script_and_no_extra():
    for path in PRODUCT:
        if path.parent.name == 'lib':
            assert packages(path).isdisjoint({'prepare', 'train', 'sample', 'extras', 'text'}), path
        if 'text' in path.relative_to(ROOT).parts:
            assert packages(path).isdisjoint({*SCRIPTS, 'extras'}), path
        if path.parent.name == 'extras':
            assert packages(path).isdisjoint({'prepare', 'tests'}), path
        assert 'tests' not in packages(path), path


def test_model_py_imports_torch_and_the_standard_library_only():
    assert packages(ROOT / 'model.py') <= {'torch', *sys.stdlib_module_names}
    for name in ('lib', *SCRIPTS):
        assert name not in sys.stdlib_module_names


# ---- what is read is what runs
@pytest.mark.parametrize('path', PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_class_is_swapped_and_no_method_patched(path):
    """No `x.__class__ = `, no mock, and no assignment to an attribute of a class or module."""
    nodes = parse(path)
    assert 'unittest' not in packages(path) and 'mock' not in packages(path)
    modules = {alias.asname or alias.name.partition('.')[0] for node in nodes
               if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    owners = {*modules, *classes, 'cls'} - {'torch'}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            assert node.attr not in ('__class__', '__dict__', 'forward', '__call__'), node.lineno
            owner = ast.unparse(node.value)
            is_ours = owner == 'sys' and re.fullmatch('excepthook|std(in|out|err)', node.attr)
            assert is_ours or owner not in owners, (node.lineno, ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'setattr':
            assert ast.unparse(node.args[0]) not in owners, node.lineno


# ---- without extras/
def test_without_extras_all_else_works(tmp_path):
    copy_project(tmp_path)
    (tmp_path / 'text.txt').write_text(TEXT * 8)

    def run(script, *args):
        done = subprocess.run([sys.executable, f'{script}.py', *args], cwd=tmp_path, text=True,
                              capture_output=True)
        return done.returncode, done.stderr, done.stdout
    prepare = ['prepare', '--input=text.txt', '--name=text', '--tokenizer=char']
    assert run(*prepare, '--val_fraction=0.2')[0] == 0
    train = ['train', '--dataset=text', '--n_embd=24', '--block_size=16', '--device=cpu']
    assert run(*train, '--max_iters=3')[0] == 0
    status, _, said = run(*train, '--max_iters=5', '--init_from=resume')
    assert status == 0 and 'resume  out/ckpt.pt at step 3' in said
    assert run('sample', '--start=the ', '--max_new_tokens=9')[2].count('the ') >= 3
    for setting, words in (('compile', ['sample', '--compile=True']),
                           ('wandb_project', [*train, '--out_dir=new', '--wandb_project=x'])):
        status, said, _ = run(*words)
        assert status == 2 and re.fullmatch(rf'error: {setting} needs extras/.*\n', said), said


def test_train_py_imports_at_most_twelve_names_from_lib():
    names = {name for name in imports(ROOT / 'train.py') if name.startswith('lib.')}
    assert 0 < len(names) <= 12, sorted(names)


def test_the_four_scripts_use_no_private_part_of_a_library():
    for script in SCRIPTS:
        path = ROOT / f'{script}.py'
        attributes = {ast.unparse(node) for node in parse(path) if isinstance(node, ast.Attribute)}
        private = {name for name in attributes | imports(path) if re.search(r'\._(?!_)', name)}
        assert not private
        assert not re.search('_dynamo|_inductor|ctypes', path.read_text(encoding='utf-8'))


TRACE = f"""
import runpy, sys
ROOT = {str(ROOT)!r}
executed = set()

def trace(frame, event, argument):
    executed.add(frame.f_code.co_filename)

sys.setprofile(trace)
for line in sys.stdin.read().splitlines():
    sys.argv = line.split()
    runpy.run_path(ROOT + '/' + sys.argv[0], run_name='__main__')
sys.setprofile(None)
print('\\n'.join(sorted(executed)), file=sys.stderr)
"""


def test_a_default_run_and_default_sampling_execute_no_extra_but_the_plot(tmp_path):
    commands = ['prepare.py --num_stories=60 --vocab_size=300',
                'train.py --max_iters=2 --batch_size=2 --device=cpu',
                'sample.py --max_new_tokens=5']
    shown = subprocess.run([sys.executable, '-c', TRACE], cwd=tmp_path, text=True,
                           input='\n'.join(commands), capture_output=True,
                           env={'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert shown.returncode == 0, shown.stderr
    files = {line.removeprefix(f'{ROOT}/') for line in shown.stderr.splitlines()
             if line.startswith(f'{ROOT}/')}
    files = {file for file in files if not file.startswith('.venv')}
    assert {'prepare.py', 'model.py', 'train.py', 'sample.py', 'lib/settings.py'} <= files
    extras = {file for file in files if file.startswith('extras/')}
    assert extras <= {'extras/__init__.py', 'extras/plot.py', 'extras/picture.py'}
    assert {file.partition('/')[0] for file in files if '/' in file} <= {'lib', 'text', 'extras'}
