"""What a run keeps of its training, for journey.py: weights and the loss."""
import math
from collections import Counter
from pathlib import Path

from extras.plot import read_log
from model import GPT

MAX_POINTS = 400                # of a curve


def kept_files(run: Path) -> list[tuple[int, Path]]:
    """(step, file) of the weights that a run kept."""
    return sorted((int(path.stem), path) for path in run.glob('weights/*.pt')
                  if path.stem.isdigit())


def spread(files: list[tuple], most: int) -> list[tuple]:
    """`most` of these (step, file), spread evenly over log(step): with the last and, if there are
    two or more, the first."""
    files = list(files) if most > 1 else files[-1:]
    while len(files) > most:
        gaps = [math.log1p(after) - math.log1p(before)
                for (before, _), (after, _) in zip(files, files[2:])]
        del files[1 + gaps.index(min(gaps))]                # the one with the nearest neighbors
    return files


def part_of(parameter: str) -> str:
    """The part of the network that a parameter belongs to."""
    if not parameter.startswith('h.'):
        return 'embedding' if parameter.startswith(('wte.', 'wpe.')) else 'output'
    _, layer, module, *_ = parameter.split('.')
    return f'layer {int(layer) + 1}, {"attention" if module in ("norm_1", "attn") else "MLP"}'


def weight_changes(before: GPT, after: GPT) -> dict[str, float]:
    """For each part the norm of its change, divided by that of its weights before."""
    change, size = Counter(), Counter()
    for (name, old), new in zip(before.named_parameters(), after.parameters()):
        change[part_of(name)] += (new - old).square().sum().item()
        size[part_of(name)] += old.square().sum().item()
    return {part: math.sqrt(square / size[part]) if size[part] else 0.0
            for part, square in change.items()}


def read_curves(run: Path) -> dict[str, list]:
    """[step, value] of the columns of log.csv that the page shows, at most MAX_POINTS each; {} if
    there is no log."""
    if not (run / 'log.csv').exists():
        return {}
    rows, curves = read_log(run), {}
    for column in ('train_loss', 'val_loss', 'lr', 'grad_norm'):
        points = [[int(row['step']), row[column]] for row in rows
                  if math.isfinite(row.get(column, math.nan))]
        every = 1 + len(points) // MAX_POINTS
        curves[column] = points[:-1:every] + points[-1:]
    return curves
