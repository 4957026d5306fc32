"""The notebook runs from top to bottom, as its reader would run it, with a small budget."""
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, read_log
from nbclient import NotebookClient


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


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tour, tmp_path, monkeypatch):
    for name in ('prepare.py', 'model.py', 'train.py', 'sample.py', 'config', 'data/stories/grammar.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MAX_ITERS', '30')
    NotebookClient(tour, timeout=600, kernel_name='python3').execute()      # raises what a cell raises
    outputs = [output for cell in tour.cells for output in cell.get('outputs', [])]
    text = ''.join(output.get('text', '') for output in outputs)
    assert 'error' not in text.lower() and 'Traceback' not in text
    assert [row['step'] for row in read_log('out/tour/log.csv')][-1] == '30'
    for name in ('out/tour/best.pt', 'out/tour/loss.png', 'attention.png', 'surprise.html',
                 'exported/model.safetensors', 'exported/tokenizer.json'):
        assert Path(name).stat().st_size > 1000, name
    for word in ('temperature 1.3: Once upon a time', 'overlap', 'resume', 'written: exported'):
        assert word in text
    assert {'image/png', 'text/html'} <= {kind for output in outputs for kind in output.get('data', {})}
