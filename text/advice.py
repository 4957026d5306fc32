"""The training command that prepare.py prints, with the model sized to the amount of text."""
import math
import platform
import shlex
import shutil
import time

import numpy as np

TOKENS_PER_STEP = 4096          # of config/papers.py


def print_next(source: str, name: str, meta: dict):
    """Print the command that trains on data/NAME and, without a GPU, an estimate of the minutes;
    the other recipes state their own."""
    has_gpu = bool(shutil.which('nvidia-smi')) or platform.system() == 'Darwin'
    if source not in ('stories', 'tinystories') and not has_gpu:
        fitting = fitting_settings(meta['train']['tokens'], has_gpu)
        minutes = training_minutes(fitting, meta['vocab_size'])
        print(f'training   about {math.ceil(minutes)} min on this CPU')
    print('next: ' + next_command(source, name, meta, has_gpu))


def next_command(source: str, name: str, meta: dict, has_gpu: bool) -> str:
    """The command that trains on data/NAME, quoted for a shell."""
    arguments = [f'--dataset={name}', f'--out_dir=out/{name}']
    if source == name == 'stories':
        recipe, arguments = 'stories', []       # the recipe's own settings
    elif source == 'stories':
        recipe = 'stories'
    elif source == 'tinystories':
        recipe = 'tinystories' if has_gpu else 'tinystories_cpu'
    else:
        recipe = 'papers'
        fitting = fitting_settings(meta['train']['tokens'], has_gpu)
        arguments += [f'--{key}={value}' for key, value in fitting.items()]
    return shlex.join(['python', 'train.py', f'config/{recipe}.py', *arguments])


def fitting_settings(tokens: int, has_gpu: bool) -> dict:
    """Overrides of config/papers.py that suit this number of training tokens and this machine.

    The number of steps scales as the square root of the tokens: 16 epochs for 0.2 MB of text,
    2 for 20 MB. The experiments are in docs/measurements.md."""
    fitting = {}
    if tokens < 200_000:
        fitting = {'n_layer': 4, 'n_head': 3, 'n_embd': 192, 'dropout': 0.2}
    elif tokens < 1_000_000:
        fitting = {'n_layer': 4, 'n_head': 4, 'n_embd': 256, 'dropout': 0.1}
    elif tokens < 2_000_000 or not has_gpu:
        fitting = {'n_layer': 4, 'n_head': 4, 'n_embd': 256}
    if not has_gpu:
        fitting['fused_attention'] = False
    if tokens <= 256:
        fitting['block_size'] = max(1, tokens // 2)
    max_iters = max(100, round(math.sqrt(tokens)))
    return {**fitting, 'max_iters': max_iters, 'eval_interval': max_iters // 8}


def training_minutes(fitting: dict, vocab_size: int) -> float:
    """An estimate for fitting_settings without a GPU, from the measured speed of a matmul."""
    n_embd = fitting['n_embd']
    parameters = n_embd * (12 * fitting['n_layer'] * n_embd + vocab_size)   # used by each token
    flops = 6 * parameters * fitting['max_iters'] * TOKENS_PER_STEP
    matrix, seconds = np.ones((1024, 1024), np.float32), []
    for _ in range(5):                          # the first is a warmup
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    matmul_speed = 2 * 1024 ** 3 / min(seconds)             # FLOP/s
    return flops / (0.6 * matmul_speed) / 60                # training reaches about 60% of it
