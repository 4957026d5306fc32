"""What the scripts show on terminals of several widths."""
import os
import re
import sys

import pexpect
import pytest
from conftest import ROOT

MODEL = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=32', '--batch_size=4',
         '--device=cpu']


def on_terminal(columns, script, *args) -> list[str]:
    """The lines that a script leaves on a terminal, and those that it overwrites."""
    environment = {name: value for name, value in os.environ.items() if name != 'COLUMNS'}
    terminal = pexpect.spawn(sys.executable, [str(ROOT / script), *args], encoding='utf-8',
                             env=environment | {'TERM': 'xterm'}, dimensions=(40, columns),
                             timeout=300)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0, terminal.before
    text = re.sub(r'\x1b\[\w', '', terminal.before)
    return [line.rstrip() for line in re.split(r'[\r\n]+', text)]


@pytest.mark.parametrize('columns', [
    80, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (60, 100, 120))])
def test_every_line_fits_and_breaks_between_words(tmp_path, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    lines = on_terminal(columns, 'train.py', '--help')
    lines += on_terminal(columns, 'prepare.py', '--num_stories=300')
    lines += on_terminal(columns, 'train.py', *MODEL, '--max_iters=60', '--eval_interval=30')
    lines += on_terminal(columns, 'sample.py', '--max_new_tokens=80', '--num_samples=2')
    assert max(map(len, lines)) <= columns
    text = ' '.join(' '.join(lines).split())
    for words in ('2 heads, 32 channels, vocabulary', 'floor 0.3', 'saved out/best.pt, out/ckpt',
                  'bfloat16, float16 or float32; auto = the fastest on this hardware'):
        assert words in text
    bars = [line for line in lines if 'steps' in line and 'left' in line and 'loss' in line]
    bar = r'\d/60 steps, [\d:?]+ left, loss \d\.\d+'
    assert bars and all(re.search(bar, each) for each in bars), bars[-1]
