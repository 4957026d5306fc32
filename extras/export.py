"""Export a model: python -m extras.export --to=model.gguf

--to=FILE.gguf writes one file for llama.cpp and tools built on it; any other name writes a folder
for transformers, vLLM and others. Weights are in fp32."""
from lib.settings import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
to = ''                     # FILE.gguf or FOLDER
settings = configure(globals())

import json
import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

from extras.hf_tokenizer import tokenizer_files
from extras.huggingface import FIXED, SETTINGS, by_their_name, read_checksums, to_theirs
from extras.reference import reference_logits
from lib.errors import Error, extra, require
from lib.files import atomic, checksum
from model import ARCHITECTURES, GPT
from sample import LanguageModel, load


def export(lm: LanguageModel, path):
    """Write an fp32 model on the CPU to FILE.gguf or a folder.

    Raises Error if the format cannot express what model.py computes, or if this would replace a
    file that no export wrote."""
    path = Path(path).expanduser()
    config, tensors = to_hugging_face(lm.model, lm.tokenizer.eot)
    if path.suffix.lower() == '.gguf':
        gguf = extra('gguf', needed_by='exporting to GGUF')
        gguf.write(path, lm.model.config, lm.tokenizer, tensors)
    else:
        write_folder(path, lm, config, tensors)


@torch.no_grad()
def to_hugging_face(model: GPT, eot: int) -> tuple[dict, dict[str, Tensor]]:
    """The config.json and tensors of a model. Raises Error if their logits differ from its own."""
    config = model.config
    parts = dict(ARCHITECTURES[config.arch])
    if config.arch == 'gpt2':
        parts |= {'n_kv_head': config.n_head, 'head_dim': config.n_embd // config.n_head}
    else:
        parts['bias'] = False
    mixed = [f'{name}={getattr(config, name)}' for name in parts
             if getattr(config, name) != parts[name]]
    require(not mixed, f'{", ".join(mixed)}: not {config.arch}, so no other program can run it')
    theirs = {'model_type': config.arch, 'bos_token_id': eot, 'eos_token_id': eot,
              'torch_dtype': 'float32', **FIXED[config.arch]}
    theirs |= {name: getattr(config, ours) for ours, name in SETTINGS[config.arch].items()}
    tensors = {name: to_theirs(name, parts).contiguous()
               for name, parts in by_their_name(model).items()}
    if config.arch == 'gpt2':
        theirs |= {'architectures': ['GPT2LMHeadModel'], 'n_ctx': config.block_size,
                   'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}
        if not config.bias:                                 # GPT2LMHeadModel always has biases
            tensors |= {name.replace('weight', 'bias'): tensor.new_zeros(tensor.shape[-1])
                        for name, tensor in tensors.items() if '.c_' in name or '.ln_' in name}
    else:                                                   # rope_parameters: transformers 5
        theirs |= {'architectures': ['Qwen3ForCausalLM'],
                   'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_theta}}
    check_same_logits(model, theirs, tensors)
    return theirs, tensors


def check_same_logits(model: GPT, config: dict, tensors: dict[str, Tensor]):
    """Raise Error unless the tensors give the model's logits: an edited model.py may not."""
    refused = f'{config["architectures"][0]} cannot express this model (was model.py changed?): '
    T = min(1024, model.config.block_size)
    idx = torch.randint(model.config.vocab_size, (1, T), generator=torch.Generator().manual_seed(0))
    ours = model.eval()(idx)
    try:
        theirs = reference_logits(config, tensors, idx)
    except KeyError as e:
        raise Error(f'{refused}it has no {e}') from e
    difference = ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-6)).item()
    require(difference < 1e-4,                              # rounding gives 3e-6
            f'{refused}its logits would differ by {difference:.2%} of the largest')


def write_folder(folder: Path, lm: LanguageModel, config: dict, tensors: dict[str, Tensor]):
    """Write the files that transformers loads. Raises Error rather than replace other files."""
    from safetensors.torch import save
    eot = lm.tokenizer.eot
    generation = {'bos_token_id': eot, 'eos_token_id': eot, 'pad_token_id': eot}
    files = {'config.json': json.dumps(config, indent=2).encode(),
             'generation_config.json': json.dumps(generation, indent=2).encode(),
             **tokenizer_files(lm.tokenizer, lm.model.config.block_size),
             'model.safetensors': save(tensors, {'format': 'pt'})}
    require_own(folder, files)
    checksums = {name: f'{zlib.crc32(content):08x}' for name, content in files.items()}
    files['checksums.json'] = json.dumps(checksums, indent=2).encode()
    for name, content in files.items():
        with atomic(folder / name) as path:
            path.write_bytes(content)


def require_own(folder: Path, names):
    """Raise Error if the folder has a file of these names that no export wrote, or that changed."""
    advice = 'is not an unmodified export: choose a new folder, or delete the file'
    checksums = read_checksums(folder)
    for path in (folder / name for name in names):
        is_own = path.is_file() and checksum(path) == checksums.get(path.name)
        require(is_own or not os.path.lexists(path), f'{path} {advice}')
    path = folder / 'checksums.json'
    require(checksums or not os.path.lexists(path), f'{path} {advice}')


def main():
    require(to, 'set --to=FILE.gguf or --to=FOLDER')
    lm = load(out_dir, device='cpu', dtype='float32')
    export(lm, to)
    print(f'written: {Path(to).expanduser()}')


if __name__ == '__main__':
    main()
