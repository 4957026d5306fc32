"""Pictures of losses: a run's out_dir/loss.png, and --plot=RUN,RUN,... of several"""
import contextlib
import csv
from pathlib import Path
from typing import NamedTuple

from config import Error, require
from config._files import atomic
from data.files import bits_per_byte
from model import load_checkpoint
from prepare import open_dataset


class Curve(NamedTuple):
    """A column of a log."""
    name: str
    steps: list[int]
    values: list[float]
    style: dict                     # how its line is drawn


class Data(NamedTuple):
    """What a run was trained on; None where it is not known."""
    checksums: dict | None = None
    floor: float | None = None      # the entropy of its validation text, in nats per token
    floor_bits: float | None = None     # and in bits per byte


def read_log(run: Path) -> list[dict]:
    """The rows of a run's log.csv. Raises Error if there is none, or if it is another program's."""
    try:
        with open(run / 'log.csv', newline='', encoding='utf-8') as f:
            rows = list(csv.DictReader(f))
    except OSError as e:
        raise Error(f'{run}/log.csv: {e.strerror}; plot takes the out_dir of runs: A,B,...') from e
    columns = {'step', 'train_loss', 'val_loss', 'bits_per_byte', 'lr'}
    has_columns = not rows or columns <= set(rows[0])
    require(has_columns, f'{run}/log.csv is not a log of train.py: it has other columns')
    return rows


def read_curve(rows: list[dict], column: str, name: str, **style) -> Curve:
    """The values of a column, where it has any. Step 0 is left out: it is the untrained model."""
    found = [(int(row['step']), float(row[column])) for row in rows if row[column]]
    found = [(step, value) for step, value in found if step > 0]
    return Curve(name, [step for step, _ in found], [value for _, value in found], style)


def read_data(run: Path) -> Data:
    """What a run was trained on. The floor is known where the dataset is, and all of its
    validation text was evaluated."""
    checksums = None
    with contextlib.suppress(Error):            # without checkpoint or dataset, it is not known
        checkpoint = load_checkpoint(run, 'config', 'data')
        checksums, knobs = checkpoint['data'], checkpoint['config']
        meta, _, val = open_dataset(knobs['dataset'])
        is_same = all(meta[split]['checksum'] == checksums[split] for split in ('train', 'val'))
        is_whole = not 0 < knobs['eval_tokens'] < len(val)
        entropy = meta['val']['entropy']
        if is_same and is_whole and entropy:
            bits = bits_per_byte(entropy, meta['val']['bytes'])
            return Data(checksums, entropy / len(val), bits)
    return Data(checksums)


# ---- what goes into a picture
def plot_losses(runs: list[Path], path, floor: float | None = None):
    """Draw the losses of runs on the same data, and the floor in nats per token if it is known,
    into a picture at path; none if no run has a loss after step 0."""
    curves = []
    for i, run in enumerate(runs):
        rows, prefix = read_log(run), f'{run}: ' if len(runs) > 1 else ''
        color = f'C{i}'
        curves += [
            read_curve(rows, 'train_loss', f'{prefix}train loss', color=color, alpha=0.4, lw=0.9),
            read_curve(rows, 'val_loss', f'{prefix}val loss', color=color, marker='o', ms=3.5)]
    title = 'train loss: in windows cut anywhere; val loss: in whole documents'
    if any(curve.values for curve in curves):
        draw(runs, curves, floor, 'nats per token', title, path)


def compare_runs(runs: list[Path], path):
    """Draw the losses of runs into a picture at path. Those on different data are drawn in bits
    per byte, as nats per token cannot be compared across tokenizers."""
    has_loss = [any(read_curve(read_log(run), 'train_loss', '').values) for run in runs]
    require(any(has_loss), f'{runs[0]}/log.csv has no loss yet')
    found = [read_data(run) for run in runs]
    first = found[0]
    is_same = all(data.checksums == first.checksums for data in found) and first.checksums
    if is_same or len(runs) == 1:
        return plot_losses(runs, path, first.floor)
    curves = []
    for i, run in enumerate(runs):
        curves.append(read_curve(read_log(run), 'bits_per_byte', f'{run}: val loss',
                                 color=f'C{i}', marker='o', ms=3.5))
    floors = {data.floor_bits for data in found}
    floor = floors.pop() if len(floors) == 1 else None
    draw(runs, curves, floor, 'bits per byte', 'val loss of runs on different data', path)


# ---- the picture
def draw(runs: list[Path], curves: list[Curve], floor: float | None, unit: str, title: str, path):
    """Draw the curves, each with its last value at its end, and below them the learning rates."""
    from matplotlib.figure import Figure
    figure = Figure((9, 5), layout='constrained')
    axes, strip = figure.subplots(2, sharex=True, height_ratios=[8, 1])
    axes.set_title(title, fontsize=9, color='0.4', loc='left')
    axes.set_ylabel(unit)
    strip.set_xlabel('step')
    ends = []                                               # (value, name, style) of each line
    for curve in curves:
        style = curve.style
        if len(curve.values) == 1:                          # a line needs two
            style = {'marker': 'o', 'ms': 3.5, **style}
        axes.plot(curve.steps, curve.values, **style)
        if curve.values:
            ends.append((curve.values[-1], curve.name, curve.style))
    if floor:
        axes.axhline(floor, color='black', lw=0.8, zorder=1)
        ends.append((floor, 'floor', {'color': 'black'}))
    if ends:                                                # the first steps would hide the rest
        lasts = [value for value, *_ in ends]
        axes.set_ylim(0.8 * min(lasts), 2.5 * max(lasts) or 1)
    label_ends(axes, ends)
    draw_rates(strip, runs)
    for each in (axes, strip):
        each.spines[['top', 'right']].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format='png', dpi=160)


def label_ends(axes, ends: list):
    """Write name and last value of each line to the right of the axes, none over another."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) / 20                               # the height of a label
    height = bottom
    for value, name, style in sorted(ends, key=lambda end: end[0]):
        height = max(value, height + gap)
        axes.annotate(f'{name} {value:.4f}', (1.02, height), xycoords=('axes fraction', 'data'),
                      va='center', fontsize=9, color=style['color'], parse_math=False,
                      annotation_clip=False, alpha=0.7 if 'alpha' in style else 1)


def draw_rates(strip, runs: list[Path]):
    """Draw the learning rate of each run, in pale grey, or if there are several in its color."""
    label = 'learning rate'
    for i, run in enumerate(runs):
        rate = read_curve(read_log(run), 'lr', '')
        color = f'C{i}' if len(runs) > 1 else '0.75'
        strip.plot(rate.steps, rate.values, color=color, lw=1, alpha=0.6)
        if len(runs) == 1 and rate.values:
            label += f' {rate.values[-1]:.1e}'
    strip.annotate(label, (1.02, 0.5), xycoords='axes fraction', va='center', fontsize=9,
                   color='0.5', annotation_clip=False)
    strip.set_ylim(bottom=0)
    strip.tick_params(axis='y', labelsize=7, labelcolor='0.5')
