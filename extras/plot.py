"""Plot the losses of a run, or compare runs: python -m extras.plot --runs=out/a,out/b

For one run: training and validation loss, as train.py plots when it ends. For several: validation
losses in bits per byte, which can be compared across tokenizers."""
from lib.settings import configure

runs = 'out'                # the out_dir of a run, or of several: A,B,...
to = ''                     # the picture, a .png file; '' = plot.png in the first run's folder
settings = configure(globals())

import contextlib
import csv
from pathlib import Path

from extras.picture import name_of, new_picture
from lib import checkpoint as checkpoints
from lib.dataset import bits_per_byte, open_dataset
from lib.errors import Error, require

COLORS = ('#c2410c', '#2563a8', '#15803d', '#7e22ce', '#a16207', '#be185d', '#0e7490', '#475569')
NOTE = 'training: windows cut at random, smoothed; validation: whole documents'


# ---- reading a run
def read_log(run: Path) -> list[dict]:
    """The rows of log.csv as {column: number}, without empty columns. Raises Error if there is
    none, or if train.py did not write it."""
    try:
        with open(run / 'log.csv', newline='', encoding='utf-8') as f:
            rows = csv.DictReader(f)
            columns = {'step', 'train_loss', 'val_loss', 'bits_per_byte', 'lr'}
            require(columns <= set(rows.fieldnames or ()), 'columns are missing')
            return [{name: float(value) for name, value in row.items() if value}
                    for row in rows if row['step']]
    except OSError as e:
        raise Error(f'{run}/log.csv: {e.strerror}; set runs to out_dirs: A,B,...') from e
    except (Error, TypeError, ValueError, csv.Error) as e:
        raise Error(f'{run}/log.csv is not a log of train.py: {e}') from e


def curve(run: Path, column: str) -> tuple[list, list]:
    """The steps and values of a column. Step 0, before training, is left out."""
    found = [row for row in read_log(run) if row['step'] > 0 and column in row]
    return [row['step'] for row in found], [row[column] for row in found]


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and its neighbors, fewer near the start, where the loss is steep."""
    widths = [min(i // 2, len(values) // 20) for i in range(len(values))]
    near = [values[i - width:i + width + 1] for i, width in enumerate(widths)]
    return [sum(window) / len(window) for window in near]


def describe(run: Path, in_bits: bool) -> tuple[str, float | None]:
    """What the run trained, if its checkpoint is there, and the floor of its validation loss, if
    the dataset has not changed and the run evaluated its whole validation split."""
    title, floor = '', None
    with contextlib.suppress(Error, KeyError):
        checkpoint = checkpoints.load(run)
        name, steps = checkpoint['settings']['dataset'], read_log(run)[-1]['step']
        size = sum({t.data_ptr(): t.numel() for t in checkpoint['model'].values()}.values())
        title = f'{size:,} parameters, trained on {name} for {steps:,.0f} steps'
        meta, _, val = open_dataset(name)
        is_whole = not 0 < checkpoint['settings']['eval_tokens'] < len(val)
        nats = meta['val']['nats']
        if nats and is_whole and checkpoint['data'] == checkpoints.checksums(meta):
            floor = bits_per_byte(nats, meta['val']['bytes']) if in_bits else nats / len(val)
    return title, floor


# ---- the picture
def read_lines(runs: list[Path]) -> list[tuple]:
    """(label, color, steps, values) of each line to plot, without empty ones."""
    if len(runs) == 1:
        steps, values = curve(runs[0], 'train_loss')
        lines = [('training', COLORS[1], steps, smooth(values)),
                 ('validation', COLORS[0], *curve(runs[0], 'val_loss'))]
    else:
        lines = [(name_of(run)[-30:], COLORS[i % len(COLORS)], *curve(run, 'bits_per_byte'))
                 for i, run in enumerate(runs)]
    return [line for line in lines if line[-1]]


def plot_losses(runs: list[Path], path, floor: float | None = None):
    """Plot the losses of runs to a picture at `path`: for one run in nats per token, for several
    in bits per byte. Plots nothing until there is a loss.

    floor: of the validation loss; None = that of the datasets, if it is the same for all runs."""
    lines = read_lines(runs)
    if not lines:
        return
    titles, floors = zip(*[describe(run, in_bits=len(runs) > 1) for run in runs])
    if floor is None and len(set(floors)) == 1:
        floor = floors[0]
    names = [name_of(run) for run in runs]
    title, notes = titles[0] or names[0], [names[0], NOTE]
    if len(runs) > 1:
        title = f'Validation loss of {len(runs)} runs'
        notes = [f'{name}: {text or "no checkpoint"}'
                 for name, text in zip(names, titles)]
    with new_picture(path, (9, 5), '\n'.join([title, *notes]), 'constrained') as figure:
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
        axes, strip = figure.subplots(2, sharex=True, height_ratios=[8, 1])
        axes.set_title(title, loc='left', pad=18 + 11 * len(notes), fontsize=13, weight='bold')
        axes.annotate('\n'.join(notes), (0, 1), (0, 8), xycoords='axes fraction', fontsize=9,
                      textcoords='offset points', color='0.35')
        axes.set_ylabel('loss, nats per token' if len(runs) == 1 else 'loss, bits per byte')
        if len(runs) == 1:
            axes.plot(*curve(runs[0], 'train_loss'), color=COLORS[1], lw=0.7, alpha=0.35)
        draw_lines(axes, lines, floor)
        draw_rates(strip, runs)
        for each in (axes, strip):
            each.spines[['top', 'right']].set_visible(False)


def draw_lines(axes, lines: list[tuple], floor: float | None):
    """Draw the lines, the floor, and each line's label and last value to its right."""
    last_step = max(steps[-1] for _, _, steps, _ in lines)
    shown = [floor] if floor else []
    for label, color, steps, values in lines:
        style = dict(lw=1.8) if label == 'training' else dict(lw=2.2, marker='o', ms=5)
        axes.plot(steps, values, color=color, **style)
        late = [value for step, value in zip(steps, values) if step > 0.05 * last_step]
        shown += late or values[-1:]            # the first ones would dwarf them
    bottom, top = min(shown), min(max(shown), 4 * max(values[-1] for *_, values in lines))
    margin = 0.1 * (top - bottom) or 0.1 * top or 1
    axes.set(xlim=(0, 1.01 * last_step), ylim=(bottom - margin, top + margin))
    axes.grid(axis='y', color='0.92')
    if floor:
        axes.axhline(floor, color='black', lw=0.9, zorder=1)
        axes.annotate(f'floor {floor:.4f}, the entropy of the text', (0, floor), (3, -3), va='top',
                      textcoords='offset points', fontsize=9)
    gap = (top - bottom + 2 * margin) / 15      # the height of a label
    height = bottom - margin - gap
    ends = sorted((values[-1], label, color) for label, color, _, values in lines)
    for value, label, color in ends:
        height = max(min(value, top), height + gap)         # absurd values stay in the picture
        axes.text(1.02, height, f'{label} {value:.4f}', transform=axes.get_yaxis_transform(),
                  va='center', fontsize=10, color=color,
                  weight='normal' if label == 'training' else 'bold')


def draw_rates(strip, runs: list[Path]):
    """Draw the learning rate of each run."""
    for i, run in enumerate(runs):
        color = COLORS[i % len(COLORS)] if len(runs) > 1 else '0.4'
        strip.plot(*curve(run, 'lr'), color=color, lw=1.2)
    peak = strip.dataLim.ymax
    strip.set_yticks([0, peak], ['0', f'{peak:.2g}'], fontsize=8)
    strip.locator_params(axis='x', nbins=8, integer=True)
    strip.xaxis.set_major_formatter('{x:,.0f}')
    strip.set_xlabel('step')
    strip.text(1.02, 0.5, 'learning rate', transform=strip.transAxes, va='center', fontsize=10,
               color='0.4')


def main():
    is_one = Path(runs).expanduser().is_dir()               # its name may have a comma
    names = [runs] if is_one else runs.split(',')
    folders = [Path(name.strip()).expanduser() for name in names]
    path = Path(to).expanduser() if to else folders[0] / 'plot.png'
    require(path.suffix == '.png', f'to={to}: the name must end in .png')
    require(read_lines(folders), f'{runs}: no loss after step 0 yet; train longer')
    plot_losses(folders, path)
    print(f'written: {path}')


if __name__ == '__main__':
    main()
