"""A model's tokenizer as the files that Hugging Face and llama.cpp read."""
import json

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors

from lib.tokenizer import EOT, Tokenizer

GPT2_MERGES = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe'


def tokenizer_json(spec: dict) -> str:
    """A tokenizer.json that gives the same ids as the tokenizer of this spec."""
    if 'json' in spec:
        return spec['json']
    tokenizer = char(spec['alphabet']) if spec['kind'] == 'char' else gpt2()
    tokenizer.add_special_tokens([EOT])                     # gets the next id, the last one
    return tokenizer.to_str()


def char(alphabet: str) -> tokenizers.Tokenizer:
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def gpt2() -> tokenizers.Tokenizer:
    """GPT-2's ids are the 256 bytes, then the merges, which tiktoken caches."""
    from tiktoken.load import read_file_cached
    lines = read_file_cached(GPT2_MERGES).decode().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer, block_size: int) -> dict[str, bytes]:
    """{name: content} of tokenizer.json and tokenizer_config.json. They put end-of-text before a
    prompt, like sample.py."""
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer.spec))
    eot = theirs.id_to_token(tokenizer.eot)
    theirs.post_processor = processors.TemplateProcessing(
        single=[eot, '$A'], pair=[eot, '$A', eot, '$B'], special_tokens=[(eot, tokenizer.eot)])
    # Prompts are padded on the left, because continuations go on the right. Some engines require an
    # unk_token, although no text encodes to it.
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': eot, 'eos_token': eot,
              'pad_token': eot, 'unk_token': eot, 'padding_side': 'left',
              'model_input_names': ['input_ids', 'attention_mask'],
              'clean_up_tokenization_spaces': False, 'model_max_length': block_size}
    return {'tokenizer.json': theirs.to_str().encode(),
            'tokenizer_config.json': json.dumps(config, indent=2).encode()}
