"""Which model fits how much text: the command that prepare.py prints as the next one."""
import math
import shlex


def next_command(source: str, name: str, tokens: int) -> str:
    """The command that trains on data/NAME, which has so many tokens to train on; all but the
    stories need a recipe."""
    options = [f'--dataset={name}']
    if source != 'stories':
        options.append(f'--out_dir=out/{name}')
    if source == 'roneneldan/TinyStories':
        options.insert(0, 'config/tinystories.py')
    elif source != 'stories':
        options.insert(0, 'config/papers.py')
        options += [f'--{knob}={value}' for knob, value in fitting_knobs(tokens).items()]
    return shlex.join(['python', 'train.py', *options])


def fitting_knobs(tokens: int) -> dict:
    """Knobs of train.py, on top of config/papers.py, for so many tokens to train on.

    With four times the text a run has twice the steps, so it reads the text half as often: at 4,096
    tokens a step, 0.2 MB 16 times and 20 MB twice. How the rule was found: tests/README.md."""
    max_iters = max(100, round(math.sqrt(tokens)))
    if tokens < 200_000:
        shape = {'n_layer': 4, 'n_head': 3, 'n_embd': 192, 'dropout': 0.2}
    elif tokens < 1_000_000:
        shape = {'n_layer': 4, 'n_head': 4, 'n_embd': 256, 'dropout': 0.1}
    elif tokens < 2_000_000:
        shape = {'n_layer': 4, 'n_head': 4, 'n_embd': 256, 'dropout': 0.0}
    else:
        shape = {'n_layer': 6, 'n_head': 6, 'n_embd': 384, 'dropout': 0.0}
    return shape | {'max_iters': max_iters, 'eval_interval': max_iters // 8}
