"""What the scripts show on terminals of several widths."""
import os
import re
import struct
import subprocess
import sys

import pytest
from conftest import ROOT

MODEL = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=32', '--batch_size=4',
         '--device=cpu']


def on_terminal(columns, script, *args) -> list[str]:
    """The lines that a script leaves on a terminal, and those that it overwrites."""
    fcntl, pty, termios = map(pytest.importorskip, ('fcntl', 'pty', 'termios'))
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack('HHHH', 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != 'COLUMNS'}
    process = subprocess.Popen([sys.executable, ROOT / script, *args], stdin=side, stdout=side,
                               stderr=side, env=environment | {'TERM': 'xterm'})
    os.close(side)
    shown = b''
    try:
        while block := os.read(main, 1 << 16):
            shown += block
    except OSError:                             # Linux says so when the other side is closed
        pass
    os.close(main)
    assert process.wait() == 0, shown
    text = re.sub(r'\x1b\[\w', '', shown.decode())
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
