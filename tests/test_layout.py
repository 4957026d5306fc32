"""The four scripts are whole by themselves: what they import, and that they run without extras/."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT, TEXT, copy_project

SCRIPTS = ['prepare', 'model', 'train', 'sample']       # each may import those before it
PARTS = sorted([*(ROOT / 'config').glob('*.py'), *(ROOT / 'data').rglob('*.py')])


def imports(path):
    """All that a file imports, wherever in it: 'a', 'a.b', and for `from a import b` 'a.b'."""
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom))
    return names | {f'{node.module}.{alias.name}' for node in nodes if isinstance(node, ast.ImportFrom)
                    for alias in node.names}


def packages(path):
    return {name.partition('.')[0] for name in imports(path)}


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_script_uses_no_private_part_of_a_library(script):
    path = ROOT / f'{script}.py'
    tree = ast.parse(path.read_bytes())
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private = {name for name in attributes | imports(path) if re.search(r'\._(?!_)', name)}
    assert {name for name in private if not name.startswith('config._')} <= {'os._exit'}
    assert not re.search('_dynamo|_inductor|mkldnn|ctypes|unittest|mock', path.read_text(encoding='utf-8'))


def test_imports_go_one_way():
    for i, script in enumerate(SCRIPTS):
        assert packages(ROOT / f'{script}.py').isdisjoint([*SCRIPTS[i:], 'extras', 'tests'])
    for path in PARTS:
        assert packages(path).isdisjoint([*SCRIPTS, 'extras', 'tests']), path
    assert packages(ROOT / 'model.py') <= {'torch', 'config', *sys.stdlib_module_names}


@pytest.mark.slow
def test_without_extras_all_else_works(tmp_path):
    copy_project(tmp_path)

    def start(script, *args):
        return subprocess.Popen([sys.executable, f'{script}.py', *args], cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(*command):
        process = start(*command)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out
    (tmp_path / 'text.txt').write_text(TEXT * 8)
    run('prepare', '--input=text.txt', '--name=text', '--tokenizer=char', '--val_fraction=0.2')
    train = ['train', '--dataset=text', '--n_embd=24', '--block_size=16', '--log_interval=1', '--device=cpu']
    run(*train, '--max_iters=3')
    assert 'resume  out/ckpt.pt at step 3' in run(*train, '--max_iters=5', '--init_from=resume')
    rows = (tmp_path / 'out/log.csv').read_text().split()
    assert [row.split(',')[0] for row in rows] == ['step', *'012345']
    assert run('sample', '--start=the ', '--num_samples=2', '--max_new_tokens=9').count('the ') >= 2
    refused = {('sample', '--plot=out'): 'plot', ('sample', '--export=x'): 'export',
               ('sample', '--compile=True'): 'compile', ('sample', '--interactive=True'): 'interactive',
               ('train', '--dataset=text', '--out_dir=new', '--wandb_project=x'): 'wandb_project'}
    processes = [start(*command) for command in refused]
    for process, knob in zip(processes, refused.values()):
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 2 and re.fullmatch(rf'error: {knob} needs extras/.*\n', said), said
