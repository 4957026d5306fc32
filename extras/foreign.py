"""Any tokenizer.json, run by the tokenizers package.

Most of these tokenizers prepend a space or process the text as a whole, so documents are not cut
into pieces as they are for the other kinds."""
import json
import unicodedata
from pathlib import Path

import numpy as np

from lib.errors import Error, brief, require
from lib.tokenizer import EOT, Tokenizer, to_utf8

WINDOW = 1 << 18                # characters encoded at once
OVERLAP = 1 << 13               # characters shared by neighboring windows


class ForeignTokenizer(Tokenizer):
    """The tokenizer of a spec {'kind': 'hf', 'json': a tokenizer.json, 'eot': id of end-of-text}.

    Its vocabulary may not cover the text: over all text encoded so far, `unknown` counts unknown
    tokens, `visible` non-whitespace characters, and `lost` those of them that decoding loses."""

    def setup(self):
        import tokenizers
        self.unknown = self.visible = self.lost = 0
        self.hf = tokenizers.Tokenizer.from_str(self.spec['json'])
        self.hf.no_truncation()
        self.hf.no_padding()
        self.hf.encode_special_tokens = True        # special token names in text are just text
        self.eot = self.spec['eot']
        self.vocab_size = max(self.hf.get_vocab().values()) + 1
        model = json.loads(self.spec['json'])['model']
        require(not model.get('dropout'), 'this tokenizer uses BPE dropout: set "dropout" to null '
                                          'in its tokenizer.json')
        unk_token = model.get('unk_token')
        self.unk = self.hf.token_to_id(unk_token) if unk_token else model.get('unk_id')
        added = self.hf.get_added_tokens_decoder()
        specials = {i for i, token in added.items() if token.special}
        single_bytes = {self.hf.token_to_id(f'<0x{byte:02X}>') for byte in range(256)}
        self.waiting_ids = specials | single_bytes | {self.eot}     # see Tokenizer
        # RoBERTa-style tokenizers prepend a space (spelled Ġ) that their decoder does not remove.
        splitter = self.hf.pre_tokenizer
        adds_space = splitter and 'Ġe' in str(splitter.pre_tokenize_str('e'))
        self.added_space = ' ' if adds_space else ''

    def encode(self, text: str) -> list[int]:
        return self.encode_documents([to_utf8(text).decode()])[:-1].tolist()

    def encode_stream(self, pieces):
        """Yield arrays of the ids of documents, each followed by eot; pieces are (text, ends)."""
        yield from map(self.encode_documents, join(pieces))

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        """The ids of whole documents, each followed by eot. Counts lost text."""
        try:
            if max(map(len, texts)) > WINDOW:
                rows = [self.encode_long(text) for text in texts]
            else:
                encodings = self.hf.encode_batch_fast(texts, add_special_tokens=False)
                rows = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        except Exception as e:
            raise Error(f'this tokenizer cannot encode the text ({brief(e)})') from e
        for text, ids in zip(texts, rows):
            require(self.eot not in ids, 'this tokenizer encodes ordinary text as end-of-text, '
                    f'{self.hf.id_to_token(self.eot)}: use another tokenizer')
            self.unknown += int((ids == self.unk).sum())
            before = count_visible(text)
            parts = np.array_split(ids, len(ids) // WINDOW + 1)         # to limit memory
            after = sum(count_visible(self.decode_ids(part)) for part in parts)
            self.visible += before
            self.lost += max(0, before - after)
        return np.concatenate([np.append(ids, np.uint32(self.eot)) for ids in rows])

    def encode_long(self, text: str) -> np.ndarray:
        """The ids of the whole text, encoded in overlapping windows: encoding it at once takes up
        to 300 bytes of memory per character.

        Tokens depend on nearby text: where two windows agree on 100 tokens in the middle of
        their overlap, the second takes over. If they disagree, e.g. in a word of thousands of
        letters, the first is re-encoded at twice the length."""
        def encode(begin, end):                     # (tokens, 2): id, position in text
            found = self.hf.encode(text[begin:end], add_special_tokens=False)
            positions = [begin + first for first, _ in found.offsets]
            return np.array([found.ids, positions], np.uint32).T

        begin, end = 0, WINDOW
        window = encode(begin, end)
        ids, done = [], 0                           # done: tokens of window already in ids
        while end < len(text):
            next_window = encode(end - OVERLAP, end + WINDOW)
            middle = end - OVERLAP // 2
            i = np.searchsorted(window[:, 1], middle)
            j = np.searchsorted(next_window[:, 1], middle)
            if np.array_equal(window[max(0, i - 50):i + 50], next_window[max(0, j - 50):j + 50]):
                ids.append(window[done:i, 0])
                begin, end = end - OVERLAP, end + WINDOW
                window, done = next_window, j
            else:
                end += end - begin
                window = encode(begin, end)
        return np.concatenate([*ids, window[done:, 0]])

    def decode_ids(self, ids: list[int]) -> str:
        return self.hf.decode(ids, skip_special_tokens=True).removeprefix(self.added_space)

    def text_of(self, i: int) -> str:
        """The text of one id inside a text, where it keeps its space; if empty, its name."""
        return self.decode([i, i])[len(self.decode([i])):] or self.hf.id_to_token(i) or ''


def join(pieces):
    """Join pieces (text, ends) into documents and yield lists of about WINDOW characters."""
    documents, parts, size = [], [], 0
    for text, ends in pieces:
        parts.append(text)
        size += len(text)
        require(size < 100_000_000, 'a document has 100 million characters, too many for this '
                                    'tokenizer: split it, or use --tokenizer=bpe')
        if ends:
            documents.append(''.join(parts))
            parts = []
        if ends and size > WINDOW:
            yield documents
            documents, size = [], 0
    if documents:
        yield documents


def count_visible(text: str) -> int:
    """Number of non-whitespace characters, however accents are encoded."""
    return len(''.join(unicodedata.normalize('NFKC', text).split()))


def find_folder(source, files) -> Path:
    """The folder `source`, or one with these files of the Hugging Face repository of that name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    return Path(snapshot_download(str(source), allow_patterns=files))


def read_tokenizer(source: str) -> dict:
    """Spec of the tokenizer.json in a folder or Hugging Face repository, with its eos token as
    end-of-text. Raises Error if there is none."""
    from tokenizers import Tokenizer
    try:
        folder = find_folder(source, 'tokenizer*.json')
        text = (folder / 'tokenizer.json').read_text(encoding='utf-8')
        config_file = folder / 'tokenizer_config.json'
        config = {}
        if config_file.exists():
            config = json.loads(config_file.read_text(encoding='utf-8'))
        tokenizer = Tokenizer.from_str(text)
        eos = config.get('eos_token')
        if isinstance(eos, dict):
            eos = eos['content']
        for token in (eos, EOT, '</s>', '<eos>'):
            if token and tokenizer.token_to_id(token) is not None:
                return {'kind': 'hf', 'json': text, 'eot': tokenizer.token_to_id(token)}
    except Exception as e:
        raise Error(f'--tokenizer={source}: neither bpe, gpt2, char nor a folder or repository '
                    f'with a tokenizer.json ({type(e).__name__}: {brief(e)})') from e
    raise Error(f'--tokenizer={source} has no end-of-text token: set eos_token in its '
                'tokenizer_config.json to a token of its vocabulary')
