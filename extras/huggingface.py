"""Models of Hugging Face, in and out: GPT2LMHeadModel and Qwen3ForCausalLM, folders with
safetensors.

The two tables say how modules and settings are called there. Several names for one module are
matrices that are stacked in ours. GPT-2's linear layers are transposed there (Conv1D). In:
load(). Out: export_folder()."""
import copy
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from config import Error, require
from config._files import atomic, checksum
from data.tokenizer import read_tokenizer
from extras.hf_tokenizer import tokenizer_files
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


def their_tensors(model: GPT):
    """Yield (name, tensor) for each tensor there, as a view of ours: read for export, written
    for import."""
    config, modules = model.config, dict(model.named_modules())
    heads = [config.n_head, config.n_kv_head, config.n_kv_head]
    for pattern, theirs in MODULES[config.arch].items():
        for layer in range(config.n_layer if 'N' in pattern else 1):
            ours = pattern.replace('N', str(layer))
            if ours == 'lm_head' and config.tie_weights:
                continue
            for kind, tensor in modules[ours].named_parameters(recurse=False):
                sizes = [n * config.head_dim for n in heads] if len(theirs) == 3 \
                    else len(tensor) // len(theirs)
                for name, part in zip(theirs, tensor.data.split(sizes)):
                    if config.arch == 'gpt2' and '.c_' in name:
                        part = part.t()                     # Conv1D: (in, out)
                    yield f'{name.replace("N", str(layer))}.{kind}', part


# ---- out
def to_hugging_face(model: GPT, eot: int) -> tuple[dict, dict[str, Tensor]]:
    """config.json and tensors of a model. Raises Error for what transformers' classes cannot
    express."""
    config = model.config
    theirs = {'model_type': config.arch, 'bos_token_id': eot, 'eos_token_id': eot,
              **FIXED[config.arch]}
    for ours, name in SETTINGS[config.arch].items():
        theirs[name] = getattr(config, ours)
    tensors = {name: part.cpu().contiguous().clone() for name, part in their_tensors(model)}
    if config.arch == 'gpt2':
        # n_ctx is for llama.cpp's converter
        theirs |= {'architectures': ['GPT2LMHeadModel'], 'n_ctx': config.block_size,
                   'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}
        if not config.bias:                                 # there are always biases
            biases = {name.replace('weight', 'bias'): tensor.new_zeros(tensor.shape[-1])
                      for name, tensor in tensors.items() if '.c_' in name or '.ln_' in name}
            tensors |= biases
    else:
        # transformers 5 reads rope_parameters, earlier ones read rope_theta
        theirs |= {'architectures': ['Qwen3ForCausalLM'],
                   'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_theta}}
    check_same_logits(model, theirs, tensors)
    return theirs, tensors


def check_same_logits(model: GPT, config: dict, tensors: dict[str, Tensor]):
    """Raise Error unless the tensors give the model's logits in the architecture of the config.

    What a fork of model.py adds, whether a field, a parameter or a line, cannot be lost in
    silence."""
    from extras.reference import reference_logits
    T = min(1024, model.config.block_size)
    idx = torch.randint(model.config.vocab_size, (1, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = copy.deepcopy(model).eval().cpu().float()(idx)
        theirs = reference_logits(config, {name: t.float() for name, t in tensors.items()}, idx)
    difference = (ours - theirs).abs().max().item() / ours.abs().max().clamp(min=1e-6).item()
    require(difference < 1e-4,                              # rounding makes 3e-6
            f'export: {config["architectures"][0]} cannot express this model: its logits would '
            f'differ by {difference:.2%} of the largest. Was model.py changed?')


def export_folder(lm, folder):
    """Write the config, weights and tokenizer that transformers, vLLM and others load."""
    from safetensors.torch import save
    config, tensors = to_hugging_face(lm.model, lm.tokenizer.eot)
    eot = lm.tokenizer.eot
    generation = {'bos_token_id': eot, 'eos_token_id': eot, 'pad_token_id': eot}
    files = {'config.json': json.dumps(config, indent=2).encode(),
             'generation_config.json': json.dumps(generation, indent=2).encode(),
             **tokenizer_files(lm.tokenizer, lm.model.config.block_size)}
    files['model.safetensors'] = save(tensors, {'format': 'pt'})
    for name, content in files.items():
        with atomic(Path(folder, name)) as path:
            path.write_bytes(content)
    checksums = {name: checksum(Path(folder, name)) for name in files}      # which load() verifies
    with atomic(Path(folder, 'checksums.json')) as path:
        path.write_text(json.dumps(checksums, indent=2), encoding='utf-8')


# ---- in
def load(source) -> dict:
    """A checkpoint of a GPT-2 or Qwen3 and its tokenizer, from a folder or by its Hugging Face
    name.

    Raises Error if there is none, and for what GPT cannot compute."""
    try:
        return {**read_model(source), 'tokenizer': read_tokenizer(str(source)), 'config': {}}
    except Exception as e:                  # no such name, no network, damaged files: any exception
        raise Error(f'{source}: neither a checkpoint nor a Hugging Face model that can be used: '
                    f'{str(e)[:200]}') from e


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
    checksums = folder / 'checksums.json'       # an export of this project has it
    if checksums.exists():
        for name, expected in json.loads(checksums.read_text(encoding='utf-8')).items():
            require(checksum(folder / name) == expected,
                    f'{name} is damaged; if it was changed on purpose, remove checksums.json')
    whole = folder / 'model.safetensors'
    files = [whole] if whole.exists() else sorted(folder.glob('model-*-of-*.safetensors'))
    require(files, 'there is no model.safetensors; other formats are not read')
    tensors = {}
    for file in files:
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
        require(theirs.get(name) in (value, None), f'{name}={theirs.get(name)!r} is not known here')
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
