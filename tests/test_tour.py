"""The notebook runs from top to bottom, as its reader would run it, with a small budget."""
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from conftest import ROOT, copy_project, read_log
from nbclient import NotebookClient

from config import configure


@pytest.fixture
def tour():
    return nbformat.read(ROOT / 'tour.ipynb', as_version=4)


def test_no_output_is_stored_and_every_file_called_is_there(tour):
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == 'code']
    assert not any(cell.outputs or cell.execution_count for cell in code)
    words = ' '.join(cell.source for cell in tour.cells).replace('`', ' ').split()
    named = {word.strip(',:.') for word in words if word.strip(',:.').endswith('.py')}
    assert len(named) > 4 and all((ROOT / name).is_file() for name in named)


def test_every_knob_that_it_sets_or_proposes_is_one(tour):
    knobs = {script: runpy.run_path(str(ROOT / script)) for script in ('prepare.py', 'train.py', 'sample.py')}
    text = '\n'.join(cell.source for cell in tour.cells).replace('{MAX_ITERS}', '9')
    commands = re.findall(r'^!{python} (.+)|`((?:prepare|train|sample)\.py\s[^`]+)`', text, re.M)
    assert len(commands) > 9
    for command in commands:
        script, *args = shlex.split(''.join(command))
        configure(dict(knobs[script]), args)
    proposed = set(re.findall(r'`--(\w+)', text)) - {'help'}
    assert len(proposed) > 3 and proposed <= {key for script in knobs for key in knobs[script]['config']}


def refuse(place):
    raise ValueError('mount failed')


@pytest.mark.parametrize('mount, run', [(None, 'out/tour'), (refuse, 'out/tour'),
                                        (lambda place: None, '/content/drive/MyDrive/slm/tour')])
def test_on_colab_the_run_is_kept_on_the_drive_unless_it_is_refused(tour, monkeypatch, capsys, mount, run):
    if mount:
        for name in ('google', 'google.colab'):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules['google.colab'].drive = SimpleNamespace(mount=mount)
    (source,) = [cell.source for cell in tour.cells if 'drive.mount' in cell.source]
    exec(source, names := {'sys': sys})
    assert names['RUN'] == run and ('a disconnect loses' in capsys.readouterr().out) == (mount is refuse)


def test_the_page_is_shown_without_a_warning(tour, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('surprise.html').write_text('<p title="x">& so on</p>', encoding='utf-8')
    (source,) = [cell.source for cell in tour.cells if 'srcdoc' in cell.source]
    *lines, last = [line for line in source.splitlines() if not line.startswith('!')]
    exec('from IPython.display import HTML\n' + '\n'.join(lines), names := {})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        shown = eval(last, names).data
    assert 'srcdoc="&lt;p title=&quot;x&quot;&gt;&amp; so on&lt;/p&gt;"' in shown


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tour, tmp_path, monkeypatch):
    copy_project(tmp_path, 'extras/*.py')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MAX_ITERS', '30')
    NotebookClient(tour, timeout=600, kernel_name='python3').execute()      # raises what a cell raises
    outputs = [output for cell in tour.cells for output in cell.get('outputs', [])]
    text = ''.join(output.get('text', '') for output in outputs)
    assert 'error' not in text.lower() and 'Traceback' not in text and 'Warning' not in text
    assert [row['step'] for row in read_log('out/tour/log.csv')][-1] == '30'
    for name in ('out/tour/best.pt', 'out/tour/loss.png', 'attention.png', 'surprise.html',
                 'exported/model.safetensors', 'exported/tokenizer.json'):
        assert Path(name).stat().st_size > 1000, name
    for word in ('temperature 1.3: Once upon a time', 'overlap', 'resume', 'written: exported'):
        assert word in text
    assert {'image/png', 'text/html'} <= {kind for output in outputs for kind in output.get('data', {})}
