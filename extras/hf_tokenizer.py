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
    """{name: content} of tokenizer.json and tokenizer_config.json. A prompt begins a document
    there, too: it is encoded after end-of-text, as in sampling here and in a GGUF file."""
    import tokenizers
    text = tokenizer_json(tokenizer.spec)
    end = tokenizers.Tokenizer.from_str(text).id_to_token(tokenizer.eot)
    content = {**json.loads(text), 'post_processor': begin_with(end, tokenizer.eot)}
    # The padding of prompts is on the left, as their continuations are on the right. Engines
    # require some unk_token, though every text has tokens.
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': end, 'eos_token': end,
              'pad_token': end, 'unk_token': end, 'padding_side': 'left',
              'model_input_names': ['input_ids', 'attention_mask'],
              'clean_up_tokenization_spaces': False, 'model_max_length': block_size}
    return {'tokenizer.json': json.dumps(content, ensure_ascii=False).encode(),
            'tokenizer_config.json': json.dumps(config, indent=2).encode()}


def begin_with(token: str, i: int) -> dict:
    """The post-processor of a tokenizer.json that puts a token, with id i, before each text."""
    begin = {'SpecialToken': {'id': token, 'type_id': 0}}
    first, second = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
    return {'type': 'TemplateProcessing', 'single': [begin, first],
            'pair': [begin, first, begin, second],
            'special_tokens': {token: {'id': token, 'ids': [i], 'tokens': [token]}}}
