"""Checkpoints, saved atomically with a checksum. Loading verifies it and never executes code.

A checkpoint is a dict of plain types and tensors: format, model (a state_dict), model_config,
tokenizer (the spec of a Tokenizer), settings (of train.py), step, best_val_loss, and data
(checksums of the dataset). ckpt.pt also has optimizer and scaler, for resuming."""
import difflib
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from lib.device import is_first_process, require_memory
from lib.errors import Error, brief, extra, require
from lib.files import acquire_lock, atomic, checksum
from lib.tokenizer import Tokenizer, load_tokenizer
from model import GPT, GPTConfig

FORMAT = 2
MAY_DIFFER = {'dropout', 'fused_attention', 'block_size'}      # when starting from a checkpoint
FOOTER = b'slm:'                # marks the end; the CRC-32 of everything before it follows


# ---- files
def save(path: Path, model: GPT, **content):
    """Write a checkpoint atomically, on rank 0 only. Raises Error if it cannot be written."""
    if not is_first_process():
        return
    content = {'format': FORMAT, 'model': model.state_dict(),
               'model_config': asdict(model.config), **content}
    with atomic(path) as temporary:
        torch.save(content, temporary)
        footer = FOOTER + checksum(temporary).encode()      # torch.save writes no checksum
        with open(temporary, 'ab') as f:
            f.write(footer)


def load(source, from_hub: bool = False) -> dict:
    """Load a checkpoint onto the CPU. `source` is a file, a run's folder (best.pt, or else
    ckpt.pt), a nanoGPT checkpoint, or a Hugging Face model (a folder or, with from_hub=True, a
    name).

    Raises Error if it is missing or corrupted."""
    source = os.path.expanduser(source)
    candidates = (source, os.path.join(source, 'best.pt'), os.path.join(source, 'ckpt.pt'))
    file = next((path for path in candidates if os.path.isfile(path)), None)
    if file is None and (from_hub or os.path.isfile(os.path.join(source, 'config.json'))):
        near = difflib.get_close_matches(source, ('scratch', 'resume', 'auto'), 1)
        require(os.path.exists(source) or not near,
                f'init_from={source}: did you mean {"".join(near)}?')
        return extra('huggingface', needed_by=f'loading {source}').load(source)
    if file and not has_footer(file) and extra('nanogpt') and extra('nanogpt').is_checkpoint(file):
        return extra('nanogpt').load(file)
    return read(file or source)


def has_footer(path) -> bool:
    """Whether a file ends with the footer that save writes."""
    with open(path, 'rb') as f:
        f.seek(max(0, os.path.getsize(path) - len(FOOTER) - 8))
        return f.read(len(FOOTER)) == FOOTER


def read(path) -> dict:
    """The checkpoint that save wrote to `path`. Raises Error if it is missing or corrupted."""
    require(os.path.isfile(path), f'{path}: no such checkpoint; train a model with python train.py '
                                  'or set --out_dir')
    try:
        with open(path, 'rb') as f:             # opened once, because a run may replace it
            size = f.seek(-len(FOOTER) - 8, os.SEEK_END)
            f.seek(0)
            footer = FOOTER + checksum(f, size).encode()
            require(f.read() == footer, 'it is corrupted, or not an slm checkpoint')
            f.seek(0)
            checkpoint = torch.load(f, map_location='cpu', weights_only=True)
        require(checkpoint['format'] == FORMAT,
                f'it has format {checkpoint["format"]}; this version reads {FORMAT}')
    except Exception as e:                      # corrupted files can raise any exception
        raise Error(f'{path}: cannot read this checkpoint: {brief(e)}; use another one') from e
    return checkpoint


def read_settings(path) -> dict:
    """A checkpoint's settings, without loading its tensors. Raises Error if it cannot be read."""
    require(os.path.isfile(path), f'{path}: there is no run to resume; drop init_from')
    try:
        return dict(torch.load(path, 'cpu', mmap=True, weights_only=True)['settings'])
    except Exception as e:                      # corrupted files can raise any exception
        raise Error(f'{path}: cannot read this checkpoint: {brief(e)}; use another one') from e


# ---- a checkpoint's model and optimizer
def make_config(**fields) -> GPTConfig:
    """GPTConfig(**fields), but an unknown field or an invalid shape raises Error."""
    unknown = fields.keys() - GPTConfig.__dataclass_fields__
    require(not unknown, f'this model.py has no {", ".join(sorted(unknown))}: use the one that the '
                         'model was trained with')
    try:
        return GPTConfig(**fields)
    except ValueError as e:
        raise Error(str(e)) from e


def new_model(device: torch.device, **fields) -> GPT:
    """A freshly initialized GPT with these config fields, on the device. Raises Error if a field is
    invalid, or if the model is too large for the device's memory."""
    config = make_config(**fields)
    with torch.device('meta'):                  # allocates no memory
        require_memory(GPT(config).num_params(), device)
    return GPT(config).to(device)


def build_model(checkpoint: dict, **changes) -> GPT:
    """The model saved in a checkpoint. `changes` override those fields of its GPTConfig that are in
    MAY_DIFFER. Raises Error if a change is invalid."""
    config = make_config(**{**checkpoint['model_config'], **changes})
    state = dict(checkpoint['model'])
    if config.positions == 'learned':
        learned = len(state['wpe.weight'])
        require(config.block_size <= learned, f'block_size={config.block_size} exceeds the '
                                              f'{learned} positions that this model has learned')
        state['wpe.weight'] = state['wpe.weight'][:config.block_size]
    with torch.random.fork_rng(devices=[]):     # initializing must not change the RNG state
        model = GPT(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise Error(f'the weights of the checkpoint do not match its config: {brief(e)}') from e
    return model


def require_finite_logits(model: GPT, source):
    """Raise Error if a model's logits are not finite: its weights are corrupted, or too large for
    their dtype."""
    with torch.inference_mode():
        logits = model(torch.zeros(1, 1, dtype=torch.long, device=model.wte.weight.device))
    require(logits.isfinite().all(),
            f'{source}: its logits are not finite: the weights are corrupted, or overflow in this '
            'dtype; try --dtype=float32')


def load_optimizer(optimizer, scaler, checkpoint: dict):
    """Restore the optimizer and GradScaler; the weight decay still comes from the settings."""
    groups = optimizer.state_dict()['param_groups']
    for group, saved in zip(groups, checkpoint['optimizer']['param_groups']):
        group['lr'] = saved['lr']               # until the next step sets it
    optimizer.load_state_dict({**checkpoint['optimizer'], 'param_groups': groups})
    if checkpoint['scaler']:                    # empty unless the run used fp16
        scaler.load_state_dict(checkpoint['scaler'])


# ---- starting a run
def load_start(settings, meta: dict, tokenizer: Tokenizer) -> dict | None:
    """The checkpoint a run starts from: its own if it is resumed, the one init_from names, or None.

    Raises Error if it does not match the dataset, the tokenizer or a setting that cannot change."""
    out = Path(settings['out_dir']).expanduser()
    checkpoint = None
    if settings.is_resumed:
        checkpoint = read(out / 'ckpt.pt')
        check_resume(settings, meta, checkpoint, out)
    elif settings['init_from'] not in ('scratch', 'auto'):
        checkpoint = load(settings['init_from'], from_hub=True)
    require_same_start(checkpoint['step'] if settings.is_resumed else 0, out)
    if checkpoint is None:
        return None
    require(load_tokenizer(checkpoint['tokenizer']) == tokenizer,
            f'data/{settings["dataset"]} does not use the tokenizer that the model was trained '
            'with; prepare it again with that tokenizer')
    saved = asdict(make_config(**checkpoint['model_config']))
    given = asdict(make_config(**{**saved, **settings.model}))
    fixed = saved.keys() - MAY_DIFFER
    if settings.is_resumed:
        fixed.add('block_size')
    wrong = [f'{name}={given[name]} (the checkpoint has {saved[name]})'
             for name in saved if name in fixed and given[name] != saved[name]]
    require(not wrong, f'{", ".join(wrong)}: the architecture of a trained model is fixed; '
                       'omit these, or train a new model in a different out_dir')
    return checkpoint


def check_resume(settings, meta: dict, checkpoint: dict, out: Path):
    """Raise Error for a change that is not possible on resume."""
    require('optimizer' in checkpoint, f'{out}/ckpt.pt has no optimizer state: start from its '
                                       'weights with --init_from and a different out_dir')
    require(not settings['overwrite'], f'init_from={settings["init_from"]} continues the run that '
                                       'overwrite=True replaces: drop one of the two')
    fixed = [f'{name}: {checkpoint["settings"].get(name)} -> {settings[name]}'
             for name in ('seed', 'optimizer', 'dataset')
             if settings[name] != checkpoint['settings'].get(name)]
    require(not fixed, f'{", ".join(fixed)}: cannot be changed on resume; keep the old values, or '
                       'use a different out_dir')
    require(checkpoint['data'] == checksums(meta),
            f'data/{settings["dataset"]} is not what {out}/ckpt.pt was trained on; use a different '
            'out_dir')
    require(checkpoint['step'] <= settings['max_iters'],
            f'{out}/ckpt.pt is already at step {checkpoint["step"]}, past max_iters='
            f'{settings["max_iters"]}: raise max_iters')


def require_same_start(step: int, out: Path):
    """Raise Error if the processes of a run start at different steps, e.g. because only one
    machine has the checkpoint."""
    if distributed.is_initialized():
        steps = [0] * distributed.get_world_size()
        distributed.all_gather_object(steps, step)
        require(len(set(steps)) == 1,
                f'the processes start at steps {steps}: every machine needs the same {out}/ckpt.pt')


def claim_run(settings) -> Path:
    """Create and lock out_dir, on rank 0 only, and return its path. Raises Error if it holds a run
    that is neither resumed nor replaced; in that case nothing is written."""
    out = Path(settings['out_dir']).expanduser()
    if is_first_process():
        log = out / 'log.csv'
        can_resume, has_best = (out / 'ckpt.pt').exists(), (out / 'best.pt').exists()
        has_rows = log.exists() and len(log.read_bytes().splitlines()) > 2      # header and step 0
        has_run = can_resume or has_best or has_rows
        advice = 'continue it with --init_from=resume, ' if can_resume else ''
        require(settings.is_resumed or settings['overwrite'] or not has_run,
                f'{out} already contains a run: {advice}replace it with --overwrite=True, or '
                'choose a different --out_dir')
        acquire_lock(out)
    return out


def delete_run(out: Path):
    """Delete the weights and the loss plot of the run that a new one replaces."""
    if is_first_process():
        for path in (out / 'ckpt.pt', out / 'best.pt', out / 'loss.png', *out.glob('weights/*.pt')):
            path.unlink(missing_ok=True)


def checksums(meta: dict) -> dict:
    """The checksums of a dataset's splits, which a checkpoint records."""
    return {split: meta[split]['checksum'] for split in ('train', 'val')}
