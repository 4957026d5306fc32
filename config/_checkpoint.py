"""Reading checkpoints: where they are, whether they are whole, and those of other projects."""
import difflib
import os
from dataclasses import asdict

import torch

from config import Error, brief, extra, require
from config._files import load_sealed

TYPES = {'tokenizer': dict, 'config': dict, 'data': dict, 'optimizer': list, 'scaler': dict,
         'step': int, 'val_loss': float, 'best_val_loss': float}    # of what a checkpoint holds


def check_init_from(source: str):
    """Raise Error for a mistyped word, before it is looked up at Hugging Face."""
    near = difflib.get_close_matches(source, ('scratch', 'resume', 'auto'), 1)
    if near and '/' not in source and not os.path.exists(source):
        raise Error(f'init_from={source}: did you mean {near[0]}?')


def find_checkpoint(source) -> str | None:
    """The path of a checkpoint: the source itself, or best.pt or else ckpt.pt in that folder."""
    candidates = (source, os.path.join(source, 'best.pt'), os.path.join(source, 'ckpt.pt'))
    return next((path for path in candidates if os.path.isfile(path)), None)


def load_foreign(source, file: str | None, from_hub: bool) -> dict | None:
    """The checkpoint if it is a Hugging Face model or one of nanoGPT; None if it is neither."""
    is_hugging_face = os.path.isfile(os.path.join(source, 'config.json')) or from_hub
    if file is None and is_hugging_face:
        return extra('huggingface', needed_by=f'loading {source}').load(source)
    if file and extra('nanogpt') and extra('nanogpt').is_checkpoint(file):
        return extra('nanogpt').load(file)
    return None


def read_checkpoint(source, format: int, needed: tuple, from_hub: bool, GPT, GPTConfig) -> dict:
    """The checkpoint at source, with the keys in `needed`: see load_checkpoint of model.py."""
    file = find_checkpoint(source)
    checkpoint = load_foreign(source, file, from_hub)
    if checkpoint is None:
        return read_own(file or source, format, needed, GPT, GPTConfig)
    check_keys(checkpoint, needed, f'{source}: ')
    return checkpoint


def read_own(path, format: int, needed: tuple, GPT, GPTConfig) -> dict:
    """What save_sealed wrote to path, of this format and with the keys in `needed`. Raises Error
    if it is missing, damaged, or no GPT."""
    require(os.path.isfile(path),
            f'{path}: there is no such checkpoint; train one with python train.py, or set out_dir')
    try:
        checkpoint, size = load_sealed(path)
        require(checkpoint['format'] == format, f'it is not of format {format}')
        check_keys(checkpoint, ('tokenizer', *needed))
        check_weights(checkpoint, GPT, GPTConfig)
        check_size(checkpoint, size)
    except Exception as e:                      # corrupt files can raise any exception
        raise Error(f'{path}: cannot read this checkpoint: {brief(e)}; use another one') from e
    return checkpoint


def check_keys(checkpoint: dict, needed: tuple, where: str = ''):
    """Raise Error unless a checkpoint has these keys, with values of the right types."""
    for key in needed:
        require(isinstance(checkpoint.get(key), TYPES[key]),
                f'{where}its {key} is missing, or of the wrong type')


def check_weights(checkpoint: dict, GPT, GPTConfig):
    """Raise an exception unless the tensors fit the model_config, which is completed. The two
    classes are model.py's."""
    with torch.device('meta'):                  # takes no memory, whatever the numbers say
        model = GPT(GPTConfig(**checkpoint['model_config']))
        model.load_state_dict(checkpoint['model'], assign=True)
    checkpoint['model_config'] = asdict(model.config)


def check_size(checkpoint: dict, size: int):
    """Raise Error if the tensors would take more memory than a file of `size` bytes can hold."""
    require(sum(t.nbytes for t in checkpoint['model'].values()) <= 2 * size,
            'its tensors are larger than the file')


def load_training_state(checkpoint: dict, optimizers: list, scaler):
    """Load the saved states of optimizers, but not their learning rates, and of the scaler. Raises
    Error if they do not fit."""
    if checkpoint['scaler']:
        scaler.load_state_dict(checkpoint['scaler'])
    try:
        for optimizer, saved in zip(optimizers, checkpoint['optimizer'], strict=True):
            knobs = optimizer.state_dict()['param_groups']
            optimizer.load_state_dict({'state': saved['state'], 'param_groups': knobs})
            parameters = [p for group in optimizer.param_groups for p in group['params']]
            keys = optimizer.state[parameters[0]].keys()
            for p in parameters:
                require(optimizer.state[p].keys() == keys, 'parts are missing')
                for tensor in optimizer.state[p].values():
                    require(tensor.shape in (p.shape, ()), 'tensors have other shapes')
    except Exception as e:                      # corrupt states can raise any exception
        raise Error(f"the checkpoint's optimizer does not fit its model: {brief(e)}") from e
