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

from extras.picture import new_picture
from lib import checkpoint as checkpoints
from lib.dataset import bits_per_byte, open_dataset
from lib.settings import Error, require

NOTE = 'train: the batch of one step, cut at random; validation: whole documents'


# ---- reading a run
def read_log(run: Path) -> list[dict]:
    """The rows of log.csv as {column: number}, without empty columns. Raises Error if there is
    none, or if train.py did not write it."""
    try:
        with open(run / 'log.csv', newline='', encoding='utf-8') as f:
            rows = csv.DictReader(f)
            columns = {'step', 'train_loss', 'val_loss', 'bits_per_byte', 'lr'}
            require(columns <= set(rows.fieldnames or ()), 'columns are missing')
            return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except OSError as e:
        raise Error(f'{run}/log.csv: {e.strerror}; set runs to out_dirs: A,B,...') from e
    except (Error, TypeError, ValueError, csv.Error) as e:
        raise Error(f'{run}/log.csv is not a log of train.py: {e}') from e


def curve(rows: list[dict], column: str) -> tuple[list, list]:
    """The steps and values of a column. Step 0, before training, is left out."""
    found = [row for row in rows if row.get('step', 0) > 0 and column in row]
    return [row['step'] for row in found], [row[column] for row in found]


def describe(run: Path, in_bits: bool) -> tuple[str, float | None]:
    """A line that says what the run trained, if its checkpoint is there, and the floor of its
    validation loss. The floor is known if the dataset is still the same and the run evaluated all
    of its validation split."""
    title, floor = str(run), None
    with contextlib.suppress(Error, KeyError):
        checkpoint = checkpoints.load(run, 'settings', 'data')
        config, run_settings = checkpoint['model_config'], checkpoint['settings']
        title += (f': {config["arch"]}, {config["n_layer"]} layers, {config["n_head"]} heads, '
                  f'{config["n_embd"]} channels, trained on {run_settings["dataset"]}')
        meta, _, val = open_dataset(run_settings['dataset'])
        is_whole = not 0 < run_settings['eval_tokens'] < len(val)
        nats = meta['val']['nats']
        if nats and is_whole and checkpoint['data'] == checkpoints.checksums(meta):
            floor = bits_per_byte(nats, meta['val']['bytes']) if in_bits else nats / len(val)
    return title, floor


# ---- the picture
def read_lines(runs: list[Path]) -> list[tuple]:
    """(label, color, steps, values) of each line to plot, without empty ones."""
    if len(runs) == 1:
        rows = read_log(runs[0])
        lines = [('train', 'C0', *curve(rows, 'train_loss')),
                 ('validation', 'C1', *curve(rows, 'val_loss'))]
    else:
        lines = [(str(run)[-30:], f'C{i}', *curve(read_log(run), 'bits_per_byte'))
                 for i, run in enumerate(runs)]
    return [line for line in lines if line[-1]]


def plot_losses(runs: list[Path], path, floor: float | None = None):
    """Plot the losses of runs to a picture at `path`: for one run in nats per token, for several
    in bits per byte. Plots nothing until there is a loss.

    floor: of the validation loss; None = the dataset's, if it is known and the same for all
    runs."""
    lines = read_lines(runs)
    if not lines:
        return
    titles, floors = zip(*[describe(run, in_bits=len(runs) > 1) for run in runs])
    if floor is None and len(set(floors)) == 1:
        floor = floors[0]
    title, unit = '\n'.join(titles), 'validation loss, bits per byte'
    if len(runs) == 1:
        title, unit = f'{title}\n{NOTE}', 'loss, nats per token'
    with new_picture(path, (9, 5), title, 'constrained') as figure:
        figure.suptitle(title, x=0.01, ha='left', fontsize=9, parse_math=False)
        axes, strip = figure.subplots(2, sharex=True, height_ratios=[8, 1])
        axes.set_ylabel(unit)
        for label, color, steps, values in lines:
            style = dict(lw=0.9, marker='.', ms=2) if label == 'train' else dict(marker='o', ms=4)
            axes.plot(steps, values, color=color, **style)
        highest = max(max(values) for *_, values in lines)
        if floor:
            axes.axhline(floor, color='black', lw=0.8, zorder=1)
            lines.append(('floor', 'black', [], [floor]))
        last = [values[-1] for *_, values in lines]             # the first ones would dwarf them
        axes.set_ylim(0.8 * min(last), min(4 * max(last), 1.05 * highest))
        label_ends(axes, lines)
        draw_rates(strip, runs)
        for each in (axes, strip):
            each.spines[['top', 'right']].set_visible(False)


def label_ends(axes, lines: list[tuple]):
    """Write each line's label and last value to the right of the axes, without overlaps."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) / 20                                   # the height of a label
    height = bottom - gap
    for value, label, color in sorted((line[3][-1], line[0], line[1]) for line in lines):
        height = max(min(value, top), height + gap)         # absurd values stay in the picture
        axes.annotate(f'{label} {value:.4f}', (1.02, height), xycoords=('axes fraction', 'data'),
                      va='center', fontsize=9, color=color, parse_math=False,
                      annotation_clip=False)


def draw_rates(strip, runs: list[Path]):
    """Draw the learning rate of each run."""
    peak = 0.0
    for i, run in enumerate(runs):
        steps, rates = curve(read_log(run), 'lr')
        strip.plot(steps, rates, color=f'C{i}' if len(runs) > 1 else '0.4', lw=1)
        peak = max([peak, *rates])
    strip.set_ylim(0, 1.1 * peak or 1)
    strip.set_yticks([0, peak], ['0', f'{peak:.2g}'], fontsize=8)
    strip.set_xlabel('step')
    strip.annotate('learning rate', (1.02, 0.5), xycoords='axes fraction', va='center',
                   fontsize=9, annotation_clip=False)


def main():
    folders = [Path(run.strip()).expanduser() for run in runs.split(',')]
    path = Path(to).expanduser() if to else folders[0] / 'plot.png'
    require(path.suffix == '.png', f'to={to}: the name must end in .png')
    require(read_lines(folders), f'{runs}: no loss after step 0 yet; train longer')
    plot_losses(folders, path)
    print(f'written: {path}')


if __name__ == '__main__':
    main()
