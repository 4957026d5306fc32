"""One file for llama.cpp, in fp32, for --export=FILE.gguf"""
import json
from importlib.util import find_spec
from pathlib import Path

from config import require
from config._files import atomic
from extras.hf_export import to_hugging_face
from extras.hf_tokenizer import tokenizer_json


def export_gguf(lm, path: str):
    """Write the model. Raises Error if llama.cpp does not divide text as this tokenizer does, and
    if path is a file of another kind."""
    require(find_spec('gguf'), 'export to GGUF needs gguf: pip install gguf')
    require(not Path(path).exists() or is_gguf(path),
            f'export={path}: there is something else of this name; choose another')
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
    config = lm.model.config
    fields = model_fields(config, Path(path).stem) | tokenizer_fields(lm, path)
    names = get_tensor_name_map(MODEL_ARCH[config.arch.upper()], config.n_layer)
    _, tensors = to_hugging_face(lm.model, lm.tokenizer.eot)
    with atomic(path) as temporary:
        writer = GGUFWriter(temporary, config.arch)
        for field, value in fields.items():
            getattr(writer, f'add_{field}')(value)
        for name, tensor in tensors.items():
            if config.arch == 'gpt2' and '.c_' in name:     # Conv1D: back to (out, in)
                tensor = tensor.t().contiguous()
            writer.add_tensor(names.get_name(name, ('.weight', '.bias')), tensor.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def is_gguf(path) -> bool:
    """Whether a file begins as a GGUF file does."""
    if not Path(path).is_file():
        return False
    with open(path, 'rb') as f:
        return f.read(4) == b'GGUF'


def model_fields(config, name: str) -> dict:
    """Fields of a GGUF file that describe the model, by the names of GGUFWriter's methods."""
    return {'name': name, 'context_length': config.block_size, 'embedding_length': config.n_embd,
            'block_count': config.n_layer, 'feed_forward_length': config.n_inner,
            'head_count': config.n_head, 'head_count_kv': config.n_kv_head,
            'key_length': config.head_dim, 'value_length': config.head_dim,
            'rope_freq_base': config.rope_theta, 'layer_norm_eps': config.norm_eps,
            'layer_norm_rms_eps': config.norm_eps}


def tokenizer_fields(lm, path: str) -> dict:
    """Fields of a GGUF file that describe the tokenizer."""
    from gguf import TokenType
    bpe = json.loads(tokenizer_json(lm.tokenizer.spec))
    split = bpe['pre_tokenizer'] or {}
    is_like_gpt2 = (bpe['model']['type'] == 'BPE' and not bpe['normalizer']
                    and split.get('type') == 'ByteLevel' and split.get('use_regex', True)
                    and not split.get('add_prefix_space'))
    require(is_like_gpt2, f'export={path}: llama.cpp can only divide text as GPT-2 does, and this '
                          f'{lm.tokenizer.kind} tokenizer does not; exporting to a folder works')
    vocab = {i: (token, TokenType.NORMAL) for token, i in bpe['model']['vocab'].items()}
    vocab |= {token['id']: (token['content'], TokenType.CONTROL) for token in bpe['added_tokens']}
    rows = range(lm.model.config.vocab_size)
    tokens, types = zip(*(vocab.get(i, (f'[PAD{i}]', TokenType.UNUSED)) for i in rows))
    merges = [merge if isinstance(merge, str) else ' '.join(merge)
              for merge in bpe['model']['merges']]
    return {'tokenizer_model': 'gpt2', 'tokenizer_pre': 'gpt-2', 'token_list': tokens,
            'token_types': types, 'token_merges': merges, 'bos_token_id': lm.tokenizer.eot,
            'eos_token_id': lm.tokenizer.eot,
            'add_bos_token': True}                     # a prompt begins a document, as it does here
