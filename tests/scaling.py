"""A scaling study, run by hand: python tests/scaling.py [--tokens=N]

Models of 0.1M to 2.8M parameters train on the same tokens of the stories by train.py's own recipe, each in a
process of its own, on one thread. Their evaluations become rows of assets/scaling.csv; a run that is there is
not repeated: remove the file when recipe or grammar change. assets/scaling.png shows how far the losses are
above the entropy of the text. The learning rate has decayed only at the end of a run: what lies before is
worse than a run would be that ends there."""
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from config import configure  # noqa: E402

tokens = 1_600_000          # that each model trains on
config = configure(globals())

SHAPES = '1x2x48 1x2x64 2x4x80 2x4x112 2x3x144 2x4x192 2x8x256 3x8x256'.split()     # layers, heads, channels
POINTS = 8                  # evaluations of a run
ITERS = tokens // (12 * 160 * POINTS) * POINTS      # steps of train.py's own batch_size and block_size
COLUMNS = 'parameters,layers,heads,channels,iters,tokens,val_loss,bits_per_byte,train_seconds,floor'
TABLE = ROOT / 'assets/scaling.csv'
read_csv = partial(np.genfromtxt, delimiter=',', names=True, ndmin=1)


def python(script, *options) -> str:
    """What a script prints, run in the current folder; its progress bar shows."""
    command = [sys.executable, ROOT / script, *options]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def find_run(shape: str):
    """The rows of a run in the table, in order; none if it is yet to be made."""
    table, key = read_csv(TABLE), [*map(int, shape.split('x')), ITERS]
    return table[np.all([table[column] == n for column, n in zip(COLUMNS.split(',')[1:], key)], 0)]


def train(shape: str):
    """Train a model in the current folder, which has the stories, and append its evaluations to the table."""
    shown = python('train.py', *map('--{}={}'.format, ('n_layer', 'n_head', 'n_embd'), shape.split('x')),
                   f'--max_iters={ITERS}', f'--eval_interval={ITERS // POINTS}', '--overwrite=True')
    parameters = re.search(r' ([\d,]+) parameters', shown)[1].replace(',', '')
    val = json.loads(Path('data/stories/meta.json').read_text())['val']
    floor = val['entropy'] / val['tokens']
    log = read_csv('out/log.csv')[1:]                       # without step 0
    seconds = np.cumsum(np.diff(log['tokens'], prepend=0) / log['tokens_per_second'])
    with open(TABLE, 'a') as f:
        for row, spent in zip(log, seconds):
            if row['val_loss'] > 0:                         # it is nan between evaluations
                f.write(f'{parameters},{shape.replace("x", ",")},{ITERS},{row["tokens"]:.0f},'
                        f'{row["val_loss"]:.6f},{row["bits_per_byte"]:.6f},{spent:.1f},{floor}\n')
    print(f'{shape:8}{parameters:>8} parameters,{spent:4.0f} s', *re.findall('\nbest(.*)', shown), flush=True)


def draw(runs: list):
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    figure = Figure((10, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    sizes = [run['parameters'][0] for run in runs]
    losses = np.stack([run['val_loss'] - run['floor'] for run in runs])     # (models, POINTS)
    for tokens, ys in zip(runs[0]['tokens'], losses.T):
        left.plot(sizes, ys, color='0.75', lw=0.8, zorder=1)
        left.annotate(f'  {tokens / 1e6:.1f}M tokens', (sizes[-1], ys[-1]), va='center', fontsize=7)
    colors = colormaps['viridis_r'].resampled(len(runs) + 2)(range(1, len(runs) + 1))
    for shape, size, run, ys, color in zip(SHAPES, sizes, runs, losses, colors):
        left.plot(size, ys[-1], 'o', color=color)
        name = f'{size / 1e6:.2f}M parameters, ' + shape.replace('x', ' x ')
        right.plot(6 * size * run['tokens'], ys, '.-', color=color, label=name)
    left.set(xlabel='parameters', ylabel='nats per token above the entropy of the text')
    right.set(xlabel='training compute in flops: 6 x parameters x tokens')
    right.legend(loc='lower left', fontsize=8, title_fontsize=8, title='layers x heads x channels')
    for axes in (left, right):
        axes.loglog()
        axes.grid(which='both', color='0.93')
    left.set_xticks([1e5, 3e5, 1e6, 3e6], ['0.1M', '0.3M', '1M', '3M'])
    right.set_xlim(1.2e10)                                  # room for the legend
    left.margins(x=0.22)                                    # for the lines' labels
    left.yaxis.set_major_formatter('{x:g}')
    figure.savefig(ROOT / 'assets/scaling.png', dpi=160)


if __name__ == '__main__':
    os.environ['OMP_NUM_THREADS'] = '1'
    if not TABLE.exists():
        TABLE.write_text(COLUMNS + '\n')
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for shape in SHAPES:
            if not len(find_run(shape)):
                python('prepare.py')                        # does nothing where the stories are already
                train(shape)
        os.chdir(ROOT)
    draw([find_run(shape) for shape in SHAPES])
