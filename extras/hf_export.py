"""A model as a folder of Hugging Face, for --export=FOLDER"""
import contextlib
import copy
import json
import zlib
from pathlib import Path

import torch
from torch import Tensor

from config import Error, require
from config._files import atomic, checksum
from extras.hf_tokenizer import tokenizer_files
from extras.huggingface import FIXED, SETTINGS, their_tensors
from extras.reference import reference_logits
from model import GPT


def to_hugging_face(model: GPT, eot: int) -> tuple[dict, dict[str, Tensor]]:
    """config.json and tensors of a model. Raises Error for what transformers' classes cannot
    express."""
    config = model.config
    theirs = {'model_type': config.arch, 'bos_token_id': eot, 'eos_token_id': eot,
              **FIXED[config.arch]}
    for ours, name in SETTINGS[config.arch].items():
        theirs[name] = getattr(config, ours)
    theirs['torch_dtype'] = str(model.wte.weight.dtype).removeprefix('torch.')
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
    """Write the config, weights and tokenizer that transformers, vLLM and others load. Raises
    Error if that would replace files that no export wrote."""
    from safetensors.torch import save
    folder = Path(folder)
    require(folder.name not in ('True', 'False'),
            f'export={folder}: name a folder, or a file that ends in .gguf')
    config, tensors = to_hugging_face(lm.model, lm.tokenizer.eot)
    eot = lm.tokenizer.eot
    generation = {'bos_token_id': eot, 'eos_token_id': eot, 'pad_token_id': eot}
    files = {'config.json': json.dumps(config, indent=2).encode(),
             'generation_config.json': json.dumps(generation, indent=2).encode(),
             **tokenizer_files(lm.tokenizer, lm.model.config.block_size),
             'model.safetensors': save(tensors, {'format': 'pt'})}
    require_own(folder, files)
    # load() warns if the weights differ from these, and another export if any file does
    sums = {name: f'{zlib.crc32(content):08x}' for name, content in files.items()}
    files['checksums.json'] = json.dumps(sums, indent=2).encode()
    for name, content in files.items():
        with atomic(folder / name) as path:
            path.write_bytes(content)


def require_own(folder: Path, names):
    """Raise Error unless the folder is new or empty, or holds an export whose files of these
    names are as it wrote them. Any other files in it may stay there."""
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return
    except OSError as e:
        raise Error(f'export={folder}: {e.strerror}; name another folder') from e
    sums = {}
    with contextlib.suppress(OSError, ValueError):
        sums = json.loads((folder / 'checksums.json').read_text(encoding='utf-8'))
    require(isinstance(sums, dict) and 'model.safetensors' in sums,
            f'export={folder}: this folder holds other files; name a new one')
    for path in (folder / name for name in names):
        is_own = path.is_file() and checksum(path) == sums.get(path.name)
        require(is_own or not path.exists(),
                f'{path} was changed since it was exported: export to a new folder')
