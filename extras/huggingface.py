"""Models of Hugging Face come in: GPT2LMHeadModel and Qwen3ForCausalLM, folders with safetensors.

The tables say how modules and settings are called there; extras/hf_export.py uses them, too.
Several names for one module are matrices that are stacked in ours. GPT-2's linear layers are
transposed there (Conv1D)."""
import contextlib
import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from config import Error, brief, require
from config._files import checksum
from data.tokenizer import read_tokenizer
from model import GPT, GPTConfig

MODULES = {
    'gpt2': {
        'wte': ['transformer.wte'],
        'wpe': ['transformer.wpe'],
        'h.N.norm_1': ['transformer.h.N.ln_1'],
        'h.N.attn.c_attn': ['transformer.h.N.attn.c_attn'],
        'h.N.attn.c_proj': ['transformer.h.N.attn.c_proj'],
        'h.N.norm_2': ['transformer.h.N.ln_2'],
        'h.N.mlp.c_fc': ['transformer.h.N.mlp.c_fc'],
        'h.N.mlp.c_proj': ['transformer.h.N.mlp.c_proj'],
        'norm_f': ['transformer.ln_f'],
        'lm_head': ['lm_head'],
    },
    'qwen3': {
        'wte': ['model.embed_tokens'],
        'h.N.norm_1': ['model.layers.N.input_layernorm'],
        'h.N.attn.c_attn': ['model.layers.N.self_attn.q_proj', 'model.layers.N.self_attn.k_proj',
                            'model.layers.N.self_attn.v_proj'],
        'h.N.attn.q_norm': ['model.layers.N.self_attn.q_norm'],
        'h.N.attn.k_norm': ['model.layers.N.self_attn.k_norm'],
        'h.N.attn.c_proj': ['model.layers.N.self_attn.o_proj'],
        'h.N.norm_2': ['model.layers.N.post_attention_layernorm'],
        'h.N.mlp.c_fc': ['model.layers.N.mlp.gate_proj', 'model.layers.N.mlp.up_proj'],
        'h.N.mlp.c_proj': ['model.layers.N.mlp.down_proj'],
        'norm_f': ['model.norm'],
        'lm_head': ['lm_head'],
    },
}
SETTINGS = {            # GPTConfig: config.json
    'gpt2': {'vocab_size': 'vocab_size', 'block_size': 'n_positions', 'n_layer': 'n_layer',
             'n_head': 'n_head', 'n_embd': 'n_embd', 'n_inner': 'n_inner',
             'norm_eps': 'layer_norm_epsilon', 'tie_weights': 'tie_word_embeddings'},
    'qwen3': {'vocab_size': 'vocab_size', 'block_size': 'max_position_embeddings',
              'n_layer': 'num_hidden_layers', 'n_head': 'num_attention_heads',
              'n_kv_head': 'num_key_value_heads', 'n_embd': 'hidden_size', 'head_dim': 'head_dim',
              'n_inner': 'intermediate_size', 'rope_theta': 'rope_theta',
              'norm_eps': 'rms_norm_eps', 'tie_weights': 'tie_word_embeddings'},
}
FIXED = {               # settings that can differ there, and not here
    'gpt2': {'activation_function': 'gelu_new', 'scale_attn_weights': True,
             'scale_attn_by_inverse_layer_idx': False, 'add_cross_attention': False},
    'qwen3': {'hidden_act': 'silu', 'attention_bias': False, 'use_sliding_window': False,
              'sliding_window': None, 'rope_scaling': None},
}
SAME = {'swish': 'silu', 'gelu_pytorch_tanh': 'gelu_new', 'gelu_fast': 'gelu_new'}


def their_tensors(model: GPT):
    """Yield (name, tensor) for each tensor there, as a view of ours: read for export, written
    for import."""
    config, modules = model.config, dict(model.named_modules())
    for pattern, theirs in MODULES[config.arch].items():
        for layer in range(config.n_layer if 'N' in pattern else 1):
            ours = pattern.replace('N', str(layer))
            if ours == 'lm_head' and config.tie_weights:
                continue
            for kind, tensor in modules[ours].named_parameters(recurse=False):
                sizes = modules[ours].stacked_rows if len(theirs) > 1 else len(tensor)
                for name, part in zip(theirs, tensor.data.split(sizes)):
                    if config.arch == 'gpt2' and '.c_' in name:
                        part = part.t()                     # Conv1D: (in, out)
                    yield f'{name.replace("N", str(layer))}.{kind}', part


def load(source) -> dict:
    """A checkpoint of a GPT-2 or Qwen3 and its tokenizer, from a folder or by its Hugging Face
    name.

    Raises Error if there is none, and for what GPT cannot compute."""
    try:
        return {**read_model(source), 'tokenizer': read_tokenizer(str(source)), 'config': {}}
    except Exception as e:                  # no such name, no network, damaged files: any exception
        raise Error(f'{source}: neither a checkpoint nor a Hugging Face model that can be used: '
                    f'{brief(e)}') from e


def read_model(source) -> dict:
    """{'model_config', 'model'} of a Hugging Face model."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        files = ['*.json', 'model*.safetensors']
        folder = Path(snapshot_download(str(source), allow_patterns=files))
    theirs = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    theirs |= theirs.get('rope_parameters') or {}
    tensors = read_tensors(folder)
    config = read_config(theirs)
    with torch.device('meta'):                  # takes no memory, whatever the numbers say
        size = GPT(GPTConfig(**config)).num_params()
    held = sum(tensor.numel() for tensor in tensors.values())
    require(size <= 2 * held, 'config.json describes a larger model than the tensors hold')
    model = GPT(GPTConfig(**config))
    for name, part in their_tensors(model):
        found = name if name in tensors else name.partition('.')[2]         # saved without a head
        require(found in tensors, f'tensor {name} is missing')
        shape = tuple(tensors[found].shape)
        require(shape == part.shape,
                f'tensor {name} is {shape}, config.json says {tuple(part.shape)}')
        part.copy_(tensors.pop(found))
    for name in tensors:                        # masks, or a head that is tied, may be left
        require(re.search(r'attn\.(masked_)?bias$|^lm_head', name),
                f'tensor {name} has no place here')
    return {'model_config': vars(model.config), 'model': model.state_dict()}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors or of its shards; other files may be beside them."""
    from safetensors.torch import load_file
    whole = folder / 'model.safetensors'
    files = [whole] if whole.exists() else sorted(folder.glob('model-*-of-*.safetensors'))
    require(files, 'there is no model.safetensors; other formats are not read')
    checksums = {}
    with contextlib.suppress(OSError, ValueError):          # only an export of this project has it
        checksums = json.loads((folder / 'checksums.json').read_text(encoding='utf-8'))
    tensors = {}
    for file in files:
        if file.name in checksums and checksums[file.name] != checksum(file):
            print(f'warning: {file} is not as it was exported: trained since, or damaged',
                  file=sys.stderr)
        tensors |= load_file(file)
    require(tensors, 'model.safetensors is empty')
    return tensors


def read_config(theirs: dict) -> dict:
    """The fields of GPTConfig for a config.json. Raises Error, with the setting's name."""
    arch = theirs.get('model_type')
    require(arch in ('gpt2', 'qwen3'),
            f'model_type={arch!r} is not known here, only gpt2 and qwen3')
    all_full = ['full_attention'] * len(theirs.get('layer_types') or [])
    known = {**FIXED[arch], 'rope_type': 'default', 'layer_types': all_full}
    for name, value in known.items():
        found = theirs.get(name)
        if isinstance(found, str):
            found = SAME.get(found, found)
        require(found in (value, None), f'{name}={found!r} is not known here')
    config = {'arch': arch, 'bias': arch == 'gpt2', 'tie_weights': arch == 'gpt2'}
    for ours, name in SETTINGS[arch].items():
        value = theirs.get(name)
        default = getattr(GPTConfig, ours, None)            # vocab_size has none
        may_be_missing = ours in config or default == 0
        if value is None and may_be_missing:
            continue
        require(isinstance(value, int | float) and abs(value) < 1e12,
                f'{name}={str(value)[:50]} in config.json is not a sensible number')
        config[ours] = int(value) if default is None else type(default)(value)
    return config
