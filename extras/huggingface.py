"""Hugging Face models: GPT2LMHeadModel and Qwen3ForCausalLM in safetensors.

The tables map our names to theirs, for import and for export. Their GPT-2 differs in two ways: one
matrix, c_attn, stacks queries, keys and values, and linear layers (Conv1D) store their weight as
(in, out)."""
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from extras.foreign import find_folder, read_tokenizer
from lib.errors import Error, brief, require
from lib.files import checksum
from lib.terminal import warn
from lib.tokenizer import load_tokenizer
from model import GPT, GPTConfig

PREFIX = {'gpt2': 'transformer.', 'qwen3': 'model.'}
NAMES = {               # parts of parameter names
    'gpt2': {'norm_1': 'ln_1', 'q_proj': 'c_attn', 'k_proj': 'c_attn', 'v_proj': 'c_attn',
             'o_proj': 'c_proj', 'norm_2': 'ln_2', 'up_proj': 'c_fc', 'down_proj': 'c_proj',
             'norm_f': 'ln_f'},
    'qwen3': {'wte': 'embed_tokens', 'h': 'layers', 'norm_1': 'input_layernorm',
              'attn': 'self_attn', 'norm_2': 'post_attention_layernorm', 'norm_f': 'norm'},
}
SETTINGS = {            # GPTConfig -> config.json
    'gpt2': {'vocab_size': 'vocab_size', 'block_size': 'n_positions', 'n_layer': 'n_layer',
             'n_head': 'n_head', 'n_embd': 'n_embd', 'n_inner': 'n_inner',
             'norm_eps': 'layer_norm_epsilon', 'tie_weights': 'tie_word_embeddings'},
    'qwen3': {'vocab_size': 'vocab_size', 'block_size': 'max_position_embeddings',
              'n_layer': 'num_hidden_layers', 'n_head': 'num_attention_heads',
              'n_kv_head': 'num_key_value_heads', 'n_embd': 'hidden_size', 'head_dim': 'head_dim',
              'n_inner': 'intermediate_size', 'rope_theta': 'rope_theta',
              'norm_eps': 'rms_norm_eps', 'tie_weights': 'tie_word_embeddings'},
}
OPTIONAL = ('n_kv_head', 'head_dim', 'n_inner', 'norm_eps', 'tie_weights')     # have defaults there
FIXED = {               # what model.py computes, among the variants that a config.json can ask for
    'gpt2': {'activation_function': 'gelu_new', 'scale_attn_weights': True,
             'scale_attn_by_inverse_layer_idx': False, 'add_cross_attention': False},
    'qwen3': {'hidden_act': 'silu', 'attention_bias': False, 'use_sliding_window': False,
              'sliding_window': None, 'rope_scaling': None},
}
SYNONYMS = {'swish': 'silu', 'gelu_pytorch_tanh': 'gelu_new', 'gelu_fast': 'gelu_new'}


# ---- names and tensors
def their_name(name: str, arch: str) -> str:
    """Hugging Face's name for one of our parameters."""
    renamed = '.'.join(NAMES[arch].get(part, part) for part in name.split('.'))
    return renamed if renamed.startswith('lm_head') else PREFIX[arch] + renamed


def by_their_name(model: GPT) -> dict[str, dict[str, Tensor]]:
    """{their name: {our name: parameter}}, with three parameters per c_attn."""
    groups = {}
    for name, parameter in model.named_parameters():        # without a tied lm_head
        groups.setdefault(their_name(name, model.config.arch), {})[name] = parameter.detach()
    return groups


def is_conv1d(name: str) -> bool:
    return '.c_' in name


def to_theirs(name: str, parts: dict[str, Tensor]) -> Tensor:
    """The tensor that holds these parameters of ours."""
    stacked = torch.cat([*parts.values()])
    return stacked.t() if is_conv1d(name) else stacked


def to_state_dict(config: GPTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fp32 state_dict of a GPT. Raises Error if their tensors do not fit its config."""
    with torch.device('meta'):                  # allocates nothing, whatever config.json says
        groups = by_their_name(GPT(config))
    unused, state = dict(tensors), {}
    for name, parts in groups.items():
        found = name if name in unused else name.partition('.')[2]      # saved without lm_head
        require(found in unused, f'tensor {name} is missing')
        tensor = unused.pop(found)
        shape, expected = tuple(tensor.shape), tuple(to_theirs(name, parts).shape)
        require(shape == expected, f'tensor {name} is {shape}, but its config says {expected}')
        ours = tensor.t() if is_conv1d(name) else tensor
        for our_name, part in zip(parts, ours.split([len(part) for part in parts.values()])):
            state[our_name] = part.float().contiguous()
    for name in unused:                         # causal masks and a tied lm_head are not parameters
        require(re.search(r'attn\.(masked_)?bias$|^lm_head', name), f'tensor {name} is unknown')
    if config.tie_weights:
        state['lm_head.weight'] = state['wte.weight']
    return state


# ---- loading
def load(source) -> dict:
    """A checkpoint made from a GPT-2 or Qwen3 and its tokenizer, by folder or Hugging Face name.

    Raises Error if there is none, or if model.py does not support it."""
    try:
        folder = find_folder(source, ['*.json', 'model*.safetensors'])
        model, spec = read_model(folder), read_tokenizer(str(folder))
        tokens, rows = load_tokenizer(spec).vocab_size, model['model_config']['vocab_size']
        require(tokens <= rows, f'its tokenizer has {tokens} tokens, more than vocab_size={rows}')
        return {**model, 'tokenizer': spec, 'settings': {}}
    except Exception as e:                      # a bad name, no network, corrupted files: anything
        raise Error(f'{source}: neither a checkpoint nor a Hugging Face model that can be loaded: '
                    f'{brief(e)}') from e


def read_model(folder) -> dict:
    """The model_config and model of a checkpoint, from a folder."""
    folder = Path(folder)
    theirs = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    theirs |= theirs.get('rope_parameters') or {}           # where transformers 5 puts rope_theta
    config = GPTConfig(**read_config(theirs))
    return {'model_config': asdict(config), 'model': to_state_dict(config, read_tensors(folder))}


def read_config(theirs: dict) -> dict:
    """GPTConfig's fields for a config.json. Raises Error for what model.py does not support."""
    arch = theirs.get('model_type')
    require(arch in ('gpt2', 'qwen3'), f'model_type={arch!r} is not supported, only gpt2 and qwen3')
    all_full = ['full_attention'] * len(theirs.get('layer_types') or [])
    fixed = {**FIXED[arch], 'rope_type': 'default', 'layer_types': all_full}
    for name, value in fixed.items():
        found = theirs.get(name)
        if isinstance(found, str):
            found = SYNONYMS.get(found, found)
        require(found in (value, None), f'{name}={found!r} in config.json is not supported')
    config = {'arch': arch, 'bias': arch == 'gpt2', 'tie_weights': arch == 'gpt2'}
    for ours, name in SETTINGS[arch].items():
        value = theirs.get(name)
        if value is None and ours in OPTIONAL:
            continue
        require(isinstance(value, int | float) and abs(value) < 1e12,
                f'{name}={str(value)[:50]} in config.json is not a number in range')
        default = getattr(GPTConfig, ours, 0)
        config[ours] = type(default)(value)
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors in model.safetensors or its shards. Warns if they changed since their export."""
    from safetensors.torch import load_file
    whole = folder / 'model.safetensors'
    files = [whole] if whole.exists() else sorted(folder.glob('model-*-of-*.safetensors'))
    require(files, 'model.safetensors is missing; other formats are not supported')
    checksums = read_checksums(folder)
    tensors = {}
    for file in files:
        if file.name in checksums and checksums[file.name] != checksum(file):
            warn(f'{file} has changed since it was exported: it was fine-tuned, or is corrupted')
        tensors |= load_file(file)
    require(tensors, 'model.safetensors is empty')
    return tensors


def read_checksums(folder: Path) -> dict:
    """{name: CRC-32} of the files that extras/export.py wrote to a folder; {} if it wrote none."""
    try:
        checksums = json.loads((folder / 'checksums.json').read_text(encoding='utf-8'))
        return checksums if 'model.safetensors' in checksums else {}
    except (OSError, ValueError, TypeError):
        return {}
