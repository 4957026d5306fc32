"""A scaling study, run by hand: python tests/scaling.py [--tokens=N]

Models of 0.1M to 2.8M parameters train on the same tokens of the stories with config/stories.py,
each in a process of its own, on one thread. Their evaluations become rows of assets/scaling.csv. A
run that is there is not repeated: delete the file when recipe or grammar change.
assets/scaling.png shows how far the losses are above the entropy of the text. The learning rate has
decayed only at the end of a run: points before it are worse than a run that ends there."""
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

from lib.settings import configure  # noqa: E402

tokens = 1_600_000          # that each model trains on
settings = configure(globals())

# layers x heads x channels
SHAPES = '1x2x48 1x2x64 2x4x80 2x4x112 2x3x144 2x4x192 2x8x256 3x8x256'.split()
POINTS = 8                  # evaluations of a run
ITERS = tokens // (12 * 160 * POINTS) * POINTS      # batch_size x block_size of the recipe
COLUMNS = 'parameters,layers,heads,channels,iters,tokens,val_loss,bits_per_byte,train_seconds,floor'
TABLE = ROOT / 'assets/scaling.csv'
read_csv = partial(np.genfromtxt, delimiter=',', names=True, ndmin=1)


def python(script, *options) -> str:
    """The output of a script, run in the current folder; its progress bar shows."""
    command = [sys.executable, ROOT / script, *options]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def find_run(shape: str):
    """The rows of a run in the table, in order; none if it was not run yet."""
    table, key = read_csv(TABLE), [*map(int, shape.split('x')), ITERS]
    columns = COLUMNS.split(',')[1:5]
    return table[np.all([table[column] == n for column, n in zip(columns, key)], axis=0)]


def train(shape: str):
    """Train a model in the current folder, which has the stories, and append its evaluations to
    the table."""
    L, H, C = shape.split('x')
    output = python('train.py', 'config/stories.py', f'--n_layer={L}', f'--n_head={H}',
                    f'--n_embd={C}', f'--max_iters={ITERS}', f'--eval_interval={ITERS // POINTS}',
                    '--out_dir=out', '--overwrite=True')
    parameters = re.search(r' ([\d,]+) parameters', output)[1].replace(',', '')
    val = json.loads(Path('data/stories/meta.json').read_text())['val']
    floor, spent, last = val['nats'] / val['tokens'], 0.0, 0
    with open(TABLE, 'a') as f:
        for row in read_csv('out/log.csv'):
            if row['tokens_per_second'] > 0:                # nan in the row of an evaluation
                spent += (row['tokens'] - last) / row['tokens_per_second']
                last = row['tokens']
            elif row['step'] > 0:
                f.write(f'{parameters},{L},{H},{C},{ITERS},{row["tokens"]:.0f},'
                        f'{row["val_loss"]:.6f},{row["bits_per_byte"]:.6f},{spent:.1f},{floor}\n')
    best = re.search('^best +(.*)', output, re.M)[1]
    print(f'{shape:8}{parameters:>8} parameters, {spent:.0f} s, {best}', flush=True)


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
                python('prepare.py')                        # does nothing the second time
                train(shape)
        os.chdir(ROOT)
    draw([find_run(shape) for shape in SHAPES])
