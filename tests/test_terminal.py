"""What the scripts show on terminals of several widths."""
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT

MODEL = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=32', '--batch_size=4', '--device=cpu']


def on_terminal(columns, *command, typed='') -> list[str]:
    """The lines that a script leaves on a terminal, and those that it overwrites, as they were."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack('HHHH', 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != 'COLUMNS'}
    process = subprocess.Popen([sys.executable, ROOT / command[0], *command[1:]], stdin=side, stdout=side,
                               stderr=side, env=environment | {'TERM': 'xterm'})
    os.close(side)
    os.write(main, typed.encode())
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


WIDTHS = [80, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (60, 100, 120))]


@pytest.mark.parametrize('columns', WIDTHS)
def test_every_line_fits_and_breaks_between_words(tmp_path, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    lines = on_terminal(columns, 'train.py', '--help')
    lines += on_terminal(columns, 'prepare.py', '--num_stories=300', '--overwrite=True')
    lines += on_terminal(columns, 'train.py', *MODEL, '--max_iters=60', '--eval_interval=30')
    lines += on_terminal(columns, 'sample.py', '--max_new_tokens=80', '--num_samples=2')
    lines += on_terminal(columns, 'sample.py', '--max_new_tokens=80', '--num_samples=1')
    lines += on_terminal(columns, 'sample.py', '--interactive=True', typed='/help\n\n')
    assert max(map(len, lines)) <= columns
    text = ' '.join(' '.join(lines).split())
    for words in ('2 heads, 32 channels, vocabulary', 'whose entropy is', 'saved out/best.pt, out/ckpt.pt',
                  'below 1 safer, above 1 wilder; 0 = always the likeliest token'):
        assert words in text
    bars = [line for line in lines if 'steps' in line and 'left' in line and 'loss' in line]
    assert bars and all(re.search(r'\d/60 steps, [\d:?]+ left, loss \d\.\d+', bar) for bar in bars), bars[-1]
    assert all(('tokens/s' in bar) == (columns >= 80) for bar in bars)
