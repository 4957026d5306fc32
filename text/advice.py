"""A model size for the amount of text: the training command that prepare.py prints."""
import math
import platform
import shlex
import shutil


def next_command(source: str, name: str, meta: dict) -> str:
    """The command that trains on data/NAME, quoted for a shell."""
    has_gpu = bool(shutil.which('nvidia-smi')) or platform.system() == 'Darwin'
    if source == 'stories':
        arguments = ['config/stories.py']
        if name != 'stories':
            arguments += [f'--dataset={name}', f'--out_dir=out/{name}']
    elif source == 'tinystories':
        recipe = 'config/tinystories.py' if has_gpu else 'config/tinystories_cpu.py'
        arguments = [recipe, f'--dataset={name}', f'--out_dir=out/{name}']
    else:
        arguments = ['config/papers.py', f'--dataset={name}', f'--out_dir=out/{name}']
        tokens = meta['train']['tokens']
        fitting = fitting_settings(tokens, has_gpu)
        arguments += [f'--{key}={value}' for key, value in fitting.items()]
    return shlex.join(['python', 'train.py', *arguments])


def fitting_settings(tokens: int, has_gpu: bool) -> dict:
    """Overrides of config/papers.py that suit this number of training tokens and this machine.

    Steps grow with the square root of the tokens: at 4,096 tokens per step, 0.2 MB is trained on
    for 16 epochs and 20 MB for 2. docs/measurements.md says how this was found."""
    max_iters = max(100, round(math.sqrt(tokens)))
    shape = {}
    if tokens < 200_000:
        shape = {'n_layer': 4, 'n_head': 3, 'n_embd': 192, 'dropout': 0.2}
    elif tokens < 1_000_000:
        shape = {'n_layer': 4, 'n_head': 4, 'n_embd': 256, 'dropout': 0.1}
    elif tokens < 2_000_000 or not has_gpu:
        shape = {'n_layer': 4, 'n_head': 4, 'n_embd': 256}
    if not has_gpu:
        shape['fused_attention'] = False
    if tokens <= 256:
        shape['block_size'] = max(1, tokens // 2)
    return {**shape, 'max_iters': max_iters, 'eval_interval': max_iters // 8}
