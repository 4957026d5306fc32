"""Checkpoints of nanoGPT (github.com/karpathy/nanoGPT) come in: --init_from and --out_dir take
the ckpt.pt of an out-*/ folder there. Only weights are taken, and no code in the file can run."""
import os
import pickle
import sys
import zipfile
from pathlib import Path

import torch

from config import Error, brief, require
from config._checkpoint import check_size, check_weights
from model import FORMAT, GPT, GPTConfig

GPT2_TOKENS = range(50257, 50305)       # nanoGPT rounds the rows of GPT-2's embedding up to 50,304
MODULES = {'transformer.wte.': 'wte.', 'transformer.wpe.': 'wpe.', 'transformer.h.': 'h.',
           'transformer.ln_f.': 'norm_f.', '.ln_1.': '.norm_1.', '.ln_2.': '.norm_2.'}
NOTE = ('note: nanoGPT computes the exact GELU and this its tanh form: the logits differ, by about '
        '0.1 % of the largest')


def is_checkpoint(path) -> bool:
    """Whether nanoGPT wrote this file: the shape of its model is called model_args there."""
    try:
        with zipfile.ZipFile(path) as file:
            pickled = next(name for name in file.namelist() if name.endswith('/data.pkl'))
            return file.getinfo(pickled).file_size < 1 << 26 and b'model_args' in file.read(pickled)
    except Exception:                           # not a zip, or a damaged one: any exception
        return False


def load(path) -> dict:
    """The checkpoint. Raises Error if it is damaged, or its characters are not known."""
    try:
        size = os.path.getsize(path)
        with zipfile.ZipFile(path) as file:
            require(sum(entry.file_size for entry in file.infolist()) <= size,
                    'its content inflates')
        found = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        checkpoint = convert(found, Path(path))
        check_weights(checkpoint, GPT, GPTConfig)
        check_size(checkpoint, size)
        state = {name: tensor.float().clone() for name, tensor in checkpoint['model'].items()}
    except Exception as e:                      # corrupt files can raise any exception
        raise Error(f'{path}: this checkpoint of nanoGPT cannot be read: {brief(e)}') from e
    if checkpoint['tokenizer']['kind'] == 'char':
        # nanoGPT's characters have no end-of-text. The mean of their rows becomes its row: then
        # it is never likelier than 1 in as many as there are.
        embedding = state['wte.weight']
        state['wte.weight'] = torch.cat((embedding, embedding.mean(0, keepdim=True)))
        checkpoint['model_config']['vocab_size'] += 1
    state['lm_head.weight'] = state['wte.weight']
    print(NOTE, file=sys.stderr)
    return {**checkpoint, 'model': state}


def convert(found: dict, path: Path) -> dict:
    """A checkpoint of this project from what torch.load found at path."""
    shape, state = found['model_args'], {}
    for name, tensor in found['model'].items():
        name = name.removeprefix('_orig_mod.')              # of a compiled model
        for theirs, ours in MODULES.items():
            name = name.replace(theirs, ours)
        is_mask = name.endswith('.attn.bias')
        if not is_mask:
            state[name] = tensor
    config = {name: shape[name] for name in ('vocab_size', 'block_size', 'n_layer', 'n_head',
                                             'n_embd')}
    tokenizer = {'kind': 'gpt2'}
    if config['vocab_size'] not in GPT2_TOKENS:
        dataset = found.get('config', {}).get('dataset', '')
        tokenizer = {'kind': 'char', 'alphabet': read_alphabet(path, str(dataset))}
        require(len(tokenizer['alphabet']) == config['vocab_size'],
                f'its meta.pkl is of a different dataset: put the right one into {path.parent}')
    return {'format': FORMAT, 'model': state, 'tokenizer': tokenizer, 'config': {},
            'model_config': {'arch': 'gpt2', 'bias': shape.get('bias', True), **config}}


class PlainUnpickler(pickle.Unpickler):
    """It makes plain types only, so that nothing in the file can run."""

    def find_class(self, module, name):
        raise Error(f'meta.pkl holds a {module}.{name}')


def read_alphabet(path: Path, dataset: str) -> str:
    """The characters of a model, from the meta.pkl beside its checkpoint or in data/DATASET."""
    folders = [path.parent, path.parent.parent / 'data' / dataset, Path('data') / dataset]
    files = [folder / 'meta.pkl' for folder in folders if (folder / 'meta.pkl').is_file()]
    require(files, f'its tokens are not those of GPT-2: put the meta.pkl of its dataset, which has '
                   f'its characters, into {path.parent}')
    with open(files[0], 'rb') as f:
        characters = PlainUnpickler(f).load()['itos']
    return ''.join(characters[i] for i in range(len(characters)))
