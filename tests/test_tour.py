"""The notebook runs from top to bottom, as its reader would run it, with a small budget."""
import math
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from conftest import ROOT, copy_project, read_log
from nbclient import NotebookClient

TOUR = nbformat.read(ROOT / 'tour.ipynb', as_version=4)
SOURCES = {cell.id: cell.source for cell in TOUR.cells}
BY_HAND = ('tokens-run', 'batch-run', 'guess-run', 'step-loss', 'step-backward', 'step-apply')
PROSE = ' '.join(cell.source for cell in TOUR.cells if cell.cell_type == 'markdown')


@pytest.fixture
def python_path(monkeypatch):
    """Undoes what the notebook's first cell does to sys.path."""
    monkeypatch.setattr(sys, 'path', sys.path[:])


def test_no_output_is_stored_and_every_named_file_exists():
    nbformat.validate(TOUR)
    code = [cell for cell in TOUR.cells if cell.cell_type == 'code']
    assert not any(cell.outputs or cell.execution_count for cell in code)
    named = re.findall(r'\w[\w/]*\.py\b', ' '.join(SOURCES.values()))
    assert len(set(named)) > 4 and all((ROOT / name).is_file() for name in named)
    assert 'OWNER' not in str(TOUR) and 'git clone' not in str(TOUR)


def test_every_setting_it_proposes_exists():
    proposed = set(re.findall(r'--(\w+)', PROSE))
    programs = [runpy.run_path(str(ROOT / f'{name}.py')) for name in ('prepare', 'train')]
    known = {'n_layer', 'arch', 'to', 'runs', 'help'}       # of the model's shape, and of extras/
    known = known.union(*(program['settings'] for program in programs))
    assert len(proposed) > 8 and proposed <= known


@pytest.mark.parametrize('place', ['.', 'upload', 'upload/deep'])
def test_it_finds_the_folder_it_is_in_or_beside(place, tmp_path, monkeypatch, python_path):
    copy_project(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    if place == 'upload/deep':
        with pytest.raises(AssertionError, match='train.py is not here'):
            exec(SOURCES['setup'], {})
    else:
        exec(SOURCES['setup'], {})
        assert Path.cwd() == (tmp_path / place).resolve()


def test_a_command_that_fails_stops_the_notebook(tmp_path, monkeypatch, capsys, python_path):
    monkeypatch.chdir(ROOT)
    exec(SOURCES['setup'], names := {})
    with pytest.raises(AssertionError, match='lacks.py failed'):
        names['run']('lacks.py')
    assert 'No such file' in capsys.readouterr().out
    names['run']("-c 'print(6 * 7)'")
    assert capsys.readouterr().out == '42\n'


def refuse(place):
    raise ValueError('mount failed')


@pytest.mark.parametrize('mount, run', [(None, 'out/tour'), (refuse, 'out/tour'),
                                        (lambda place: None, '/content/drive/MyDrive/slm/tour')])
def test_on_colab_the_run_is_kept_on_the_drive(mount, run, monkeypatch, capsys):
    if mount:
        for name in ('google', 'google.colab'):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules['google.colab'].drive = SimpleNamespace(mount=mount)
    exec(SOURCES['where'], names := {'sys': sys})
    assert names['RUN'] == run
    assert ('a disconnect loses' in capsys.readouterr().out) == (mount is refuse)


def test_one_step_by_hand_is_right(run, capsys):
    run('prepare.py', '--num_stories=300')
    capsys.readouterr()
    shown, names = {}, {}
    for cell in BY_HAND:
        exec(SOURCES[cell], names)
        shown[cell] = capsys.readouterr().out
    V = names['meta']['vocab_size']
    guessed, measured = map(float, re.findall(r'\d\.\d{4}$', shown['guess-run'], re.M))
    assert guessed == pytest.approx(math.log(V), abs=1e-4) and abs(measured - guessed) < 0.2
    x, y = (line.split()[1:] for line in shown['batch-run'].splitlines()[:2])
    assert len(x) == 10 and x[1:] == y[:-1]                 # the same tokens, one later
    assert names['by_formula'].sum(-1).abs().max() < 1e-6
    assert float(re.search(r': (.+)', shown['step-backward'])[1]) < 1e-6
    before, after = (list(map(float, line.split()[2:]))
                     for line in shown['step-apply'].splitlines()[-2:])
    assert len(before) == len(names['y']) and all(b < a for b, a in zip(before, after))


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    copy_project(tmp_path / 'slm', 'extras/*.*')
    shutil.copy(ROOT / 'tour.ipynb', tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, 'MAX_ITERS', '30')
    tour = nbformat.read('tour.ipynb', as_version=4)
    NotebookClient(tour, timeout=600, kernel_name='python3').execute()      # raises a cell's errors
    outputs = [output for cell in tour.cells for output in cell.get('outputs', [])]
    text = ''.join(output.get('text', '') for output in outputs)
    assert not re.search('error|traceback|warning', text, re.I)
    assert '\r' not in text                                 # a progress bar would fill the page
    for name in ('out/tour/best.pt', 'out/tour/loss.png', 'attention.png', 'journey.html',
                 'surprise.html', 'model/model.safetensors', 'model/tokenizer.json'):
        assert Path('slm', name).stat().st_size > 1000, name
    assert read_log('slm/out/tour/log.csv')[-1]['step'] == '30'
    for word in ('temperature 2.0', 'random weights', 'resume', 'overlap'):
        assert word in text
    told = re.findall(r'seed \d: (Once upon a time.*)', text)
    assert len(told) == 9 and len(set(told[:3])) == 1 and len(set(told[3:])) == 6
    kinds = [kind for output in outputs for kind in output.get('data', {})]
    assert kinds.count('image/png') == kinds.count('text/html') == 2
