"""The picture of a run's losses, for out_dir/loss.png and --plot=RUN,RUN,..."""
import csv
from pathlib import Path

from config import Error, require
from config._files import atomic


def read_log(run: Path) -> list[dict]:
    """The rows of a run's log.csv. Raises Error if there is none, or if it is another program's."""
    try:
        with open(run / 'log.csv', newline='', encoding='utf-8') as f:
            rows = list(csv.DictReader(f))
    except OSError as e:
        raise Error(f'{run}/log.csv: {e.strerror}; plot takes the out_dir of runs: A,B,...') from e
    has_columns = not rows or {'step', 'train_loss', 'val_loss', 'lr'} <= set(rows[0])
    require(has_columns, f'{run}/log.csv is not a log of train.py: it has other columns')
    return rows


def points(rows: list[dict], column: str) -> tuple[list, list]:
    """Steps and values of a column, where it has values."""
    found = [(int(row['step']), float(row[column])) for row in rows if row[column]]
    return [step for step, _ in found], [value for _, value in found]


def plot_losses(runs: list[Path], path, floor: float | None = None):
    """Draw each run's losses, and the floor in nats per token if it is known, into a picture at
    path."""
    from matplotlib.figure import Figure
    figure = Figure((8, 4.5), layout='constrained')
    axes = figure.subplots()
    rate_axes = axes.twinx()
    highest = 0
    for i, run in enumerate(runs):
        rows = read_log(run)
        train, val, rate = (points(rows, column) for column in ('train_loss', 'val_loss', 'lr'))
        color = f'C{i}'
        axes.plot(*train, color=color, lw=0.8, alpha=0.45,
                  label=f'{run}: train loss, in windows cut anywhere')
        axes.plot(*val, color=color, marker='o', ms=3, label=f'{run}: val loss, in whole documents')
        rate_axes.plot(*rate, color=color, lw=0.8, ls=':')
        for _, losses in (train, val):
            highest = max([highest, *losses[-1:]])
    if floor:
        axes.axhline(floor, color='black', lw=1, ls='--', label='floor: the entropy of the text')
    axes.set(xlabel='step', ylabel='nats per token')
    axes.set_ylim(bottom=0, top=3 * highest or None)        # the first steps would hide the rest
    rate_axes.set_ylabel('learning rate, dotted')
    axes.legend(fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format='png', dpi=110)
