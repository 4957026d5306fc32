"""nanoGPT checkpoints (github.com/karpathy/nanoGPT): sample from its out-*/ckpt.pt with --out_dir,
or fine-tune it with --init_from. Loading never executes code."""
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from extras.huggingface import is_conv1d, to_state_dict
from lib.errors import Error, brief, require
from lib.terminal import warn
from model import GPTConfig

GPT2_SIZES = range(50257, 50305)        # nanoGPT pads GPT-2's vocabulary up to 50,304


def is_checkpoint(path) -> bool:
    """Whether nanoGPT wrote this file: it holds a model_args."""
    try:
        with zipfile.ZipFile(path) as file:
            pickled = next(name for name in file.namelist() if name.endswith('/data.pkl'))
            return file.getinfo(pickled).file_size < 1 << 26 and b'model_args' in file.read(pickled)
    except Exception:                           # not a zip file, or a corrupted one: anything
        return False


def load(path) -> dict:
    """A checkpoint: model, model_config, tokenizer and settings. Raises Error if it is corrupted,
    or if its characters cannot be found."""
    try:
        found = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        checkpoint = convert(found, read_tokenizer(found, Path(path)))
    except Exception as e:                      # corrupt files can raise any exception
        raise Error(f'{path}: cannot read this nanoGPT checkpoint: {brief(e)}') from e
    warn('nanoGPT uses the exact GELU and slm its tanh approximation: logits differ by about '
         '0.1% of the largest')
    return checkpoint


def convert(found: dict, tokenizer: dict) -> dict:
    """An slm checkpoint, from a nanoGPT checkpoint and the spec of its tokenizer."""
    shape, tensors = found['model_args'], {}
    for name, tensor in found['model'].items():
        name = name.removeprefix('_orig_mod.')  # added by torch.compile
        tensors[name] = tensor.t() if is_conv1d(name) else tensor       # as in Hugging Face
    names = ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd')
    config = {'arch': 'gpt2', 'bias': shape.get('bias', True), **{n: shape[n] for n in names}}
    state = to_state_dict(GPTConfig(**config), tensors)
    if tokenizer['kind'] == 'char':
        # Its vocabulary has no end-of-text. With the mean of all rows as its embedding, its logit
        # is the mean of all logits: it is never the most likely token.
        embedding = state['wte.weight']
        embedding = torch.cat((embedding, embedding.mean(0, keepdim=True)))
        state['wte.weight'] = state['lm_head.weight'] = embedding
        config['vocab_size'] += 1
    return {'model': state, 'model_config': asdict(GPTConfig(**config)), 'tokenizer': tokenizer,
            'settings': {}}


def read_tokenizer(found: dict, path: Path) -> dict:
    """The spec of a checkpoint's tokenizer: GPT-2's by its size, or else the characters in the
    meta.pkl of its dataset."""
    vocab_size = found['model_args']['vocab_size']
    if vocab_size in GPT2_SIZES:
        return {'kind': 'gpt2'}
    dataset = str(found.get('config', {}).get('dataset', ''))
    folders = [path.parent, path.parent.parent / 'data' / dataset, Path('data') / dataset]
    files = [folder / 'meta.pkl' for folder in folders if (folder / 'meta.pkl').is_file()]
    require(files, "it does not use GPT-2's tokens: copy the meta.pkl of its dataset, which "
                   f'lists its characters, to {path.parent}')
    with open(files[0], 'rb') as f:
        characters = PlainUnpickler(f).load()['itos']
    require(len(characters) == vocab_size,
            f'{files[0]} is from a different dataset: copy the right one to {path.parent}')
    return {'kind': 'char', 'alphabet': ''.join(characters[i] for i in range(vocab_size))}


class PlainUnpickler(pickle.Unpickler):
    """Reads only plain types, so loading never executes code."""

    def find_class(self, module, name):
        raise Error(f'meta.pkl holds a {module}.{name}')
