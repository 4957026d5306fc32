"""Models as GGUF files, in fp32, for llama.cpp and tools built on it."""
import json
from pathlib import Path

from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map
from torch import Tensor

from extras.hf_tokenizer import tokenizer_json
from extras.huggingface import is_conv1d
from lib.errors import require
from lib.files import atomic
from lib.tokenizer import Tokenizer
from model import GPTConfig

SIGNATURE = 'exported by slm'       # the first field of our files


def write(path: Path, config: GPTConfig, tokenizer: Tokenizer, tensors: dict[str, Tensor]):
    """Write a model, given its tensors by Hugging Face name. Raises Error if it would replace
    another file, or if llama.cpp does not support the tokenizer."""
    require(not path.exists() or is_ours(path), f'{path} was not written by this command: '
                                                'choose a different name')
    fields = {'description': SIGNATURE, 'name': path.stem, **model_fields(config),
              **tokenizer_fields(tokenizer, config.vocab_size)}
    names = get_tensor_name_map(MODEL_ARCH[config.arch.upper()], config.n_layer)
    with atomic(path) as temporary:
        writer = GGUFWriter(temporary, config.arch)
        for field, value in fields.items():
            getattr(writer, f'add_{field}')(value)
        for name, tensor in tensors.items():
            tensor = tensor.t().contiguous() if is_conv1d(name) else tensor
            writer.add_tensor(names.get_name(name, ('.weight', '.bias')), tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def is_ours(path: Path) -> bool:
    """Whether this command wrote the file."""
    if not path.is_file():
        return False
    with open(path, 'rb') as f:
        return SIGNATURE.encode() in f.read(256)


def model_fields(config: GPTConfig) -> dict:
    """The shape of a model, by the names of GGUFWriter's methods."""
    return {'context_length': config.block_size, 'embedding_length': config.n_embd,
            'block_count': config.n_layer, 'feed_forward_length': config.n_inner,
            'head_count': config.n_head, 'head_count_kv': config.n_kv_head,
            'key_length': config.head_dim, 'value_length': config.head_dim,
            'rope_freq_base': config.rope_theta, 'layer_norm_eps': config.norm_eps,
            'layer_norm_rms_eps': config.norm_eps}


def tokenizer_fields(tokenizer: Tokenizer, vocab_size: int) -> dict:
    """A tokenizer, by the names of GGUFWriter's methods."""
    bpe = json.loads(tokenizer_json(tokenizer.spec))
    splitter = bpe['pre_tokenizer'] or {}
    splits_like_gpt2 = (bpe['model']['type'] == 'BPE' and not bpe['normalizer']
                        and splitter.get('type') == 'ByteLevel' and splitter.get('use_regex', True)
                        and not splitter.get('add_prefix_space'))
    require(splits_like_gpt2, 'llama.cpp splits text into words like GPT-2, but this '
                              f'{tokenizer.kind} tokenizer does not: export to a folder')
    vocab = {i: (token, TokenType.NORMAL) for token, i in bpe['model']['vocab'].items()}
    vocab |= {token['id']: (token['content'], TokenType.CONTROL) for token in bpe['added_tokens']}
    padded = [vocab.get(i, (f'[PAD{i}]', TokenType.UNUSED)) for i in range(vocab_size)]
    tokens, types = zip(*padded)
    merges = [merge if isinstance(merge, str) else ' '.join(merge)
              for merge in bpe['model']['merges']]
    return {'tokenizer_model': 'gpt2', 'tokenizer_pre': 'gpt-2', 'token_list': tokens,
            'token_types': types, 'token_merges': merges, 'bos_token_id': tokenizer.eot,
            'eos_token_id': tokenizer.eot,
            'add_bos_token': True}                          # sample.py starts every prompt with it
