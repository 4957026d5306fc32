"""The tokenizer of a model as the files that Hugging Face and llama.cpp read."""
import json

from data.tokenizer import EOT, Tokenizer


def tokenizer_json(spec: dict) -> str:
    """A tokenizer.json that gives the same ids as the tokenizer of this spec."""
    if 'json' in spec:
        return spec['json']
    if spec['kind'] == 'char':
        return char_json(spec['alphabet'])
    return gpt2_json()


def char_json(alphabet: str) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({character: i for i, character in enumerate(alphabet)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOT])
    return tokenizer.to_str()


def gpt2_json() -> str:
    """GPT-2 numbers the 256 bytes, then its merges, which are in a file that tiktoken has
    fetched."""
    from tiktoken.load import read_file_cached
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    url = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe'
    lines = read_file_cached(url).decode().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOT])
    return tokenizer.to_str()


def tokenizer_files(tokenizer: Tokenizer, block_size: int) -> dict[str, bytes]:
    """{name: content} of tokenizer.json and tokenizer_config.json."""
    import tokenizers
    text = tokenizer_json(tokenizer.spec)
    end = tokenizers.Tokenizer.from_str(text).id_to_token(tokenizer.eot)
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': end, 'eos_token': end,
              'clean_up_tokenization_spaces': False, 'model_max_length': block_size}
    return {'tokenizer.json': text.encode(),
            'tokenizer_config.json': json.dumps(config, indent=2).encode()}
