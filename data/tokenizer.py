"""Text to token ids and back: class Tokenizer, in four kinds, and how a vocabulary is learned
or read.

bpe is trained on the text, gpt2 is GPT-2's (both byte-level BPE, run by tiktoken), char has one
token for each character, and hf is any other tokenizer.json, run by the package tokenizers."""
import json
import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from config import Error, brief, require

EOT = '<|endoftext|>'
PIECE = 1 << 12                 # bytes of text that are tokenized in one call, at most
WORKERS = min(os.cpu_count() or 1, 16)
# A text may be cut before a single space or after a single newline, if both neighbours are visible:
# no token of bpe or gpt2 reaches across such a border.
BORDER = re.compile(r'(?<=\S)(?= \S)|(?<=\S\n)(?=\S)')
# GPT-2's pattern of words. The group keeps the look-ahead, which is slow, out of most matches.
WORDS = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s"


class Tokenizer:
    """Text to ids and back.

    eot is the id that ends every document: no text encodes to it, and it decodes to nothing.
    vocab_size counts all ids, eot included. spec is a dict of plain types that Tokenizer(spec)
    is made from again: {'kind': 'bpe', 'json': the text of a tokenizer.json}, {'kind': 'gpt2'},
    {'kind': 'char', 'alphabet': its characters}, or {'kind': 'hf', 'json': ..., 'eot': id}."""

    def __init__(self, spec: dict):
        """Raises Error for a damaged spec."""
        self.spec = spec
        try:
            self.kind = spec['kind']
            setup = {'bpe': self._setup_bpe, 'gpt2': self._setup_bpe,
                     'char': self._setup_char, 'hf': self._setup_hf}[self.kind]
            setup()
            if not 0 <= self.eot < self.vocab_size:
                raise ValueError(f'end-of-text {self.eot}, but {self.vocab_size} tokens')
        except Error:
            raise
        except Exception as e:                  # the libraries raise bare exceptions, too
            raise Error(f'the tokenizer is damaged ({type(e).__name__}: {brief(e)})') from e

    def __reduce__(self):
        return Tokenizer, (self.spec,)          # copies and pickles are made from the spec

    def __eq__(self, other) -> bool:
        """Whether both give the same ids, whatever their kind: GPT-2's may come as a
        tokenizer.json."""
        if self.spec == other.spec:
            return True
        if (self.vocab_size, self.eot) != (other.vocab_size, other.eot):
            return False
        every_token = self.decode(range(self.vocab_size))
        return every_token == other.decode(range(other.vocab_size)) \
            and self.encode(every_token) == other.encode(every_token)

    # ---- kinds
    def _setup_bpe(self):
        import tiktoken
        ranks = gpt2_ranks() if self.kind == 'gpt2' else trained_ranks(self.spec['json'])
        self.eot = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.bpe = tiktoken.Encoding(self.kind, pat_str=WORDS, mergeable_ranks=ranks,
                                     special_tokens={EOT: self.eot})

    def _setup_char(self):
        alphabet = self.spec['alphabet']
        self.eot = len(alphabet)
        self.vocab_size = len(alphabet) + 1
        self.index = {character: i for i, character in enumerate(alphabet)}

    def _setup_hf(self):
        import tokenizers
        self.hf = tokenizers.Tokenizer.from_str(self.spec['json'])
        self.hf.no_truncation()
        self.hf.no_padding()
        self.hf.encode_special_tokens = True    # the name of a special token in a text is just text
        self.eot = self.spec['eot']
        self.vocab_size = max(self.hf.get_vocab().values()) + 1

    # ---- encoding
    def encode_documents(self, texts: list[str]) -> np.ndarray:
        """The ids of valid texts of at most PIECE bytes, in one array, eot after each text."""
        if self.kind == 'char':
            index = self.index
            return np.array([i for text in texts
                             for i in (*(index[character] for character in text), self.eot)])
        if self.kind == 'hf':
            encodings = self.hf.encode_batch_fast(texts, add_special_tokens=False)
            return np.array([i for encoding in encodings for i in (*encoding.ids, self.eot)])
        if any(EOT in text for text in texts):  # as ordinary text: each text is encoded by itself
            arrays = [self.bpe.encode_to_numpy(text, disallowed_special=()) for text in texts]
            return np.concatenate([np.append(ids, np.uint32(self.eot)) for ids in arrays])
        joined = EOT.join([*texts, ''])
        return self.bpe.encode_to_numpy(joined, allowed_special={EOT}, disallowed_special=())

    def encode_pieces(self, pieces: list[tuple[str, bool]]) -> np.ndarray:
        """The ids of pieces (text, ends), in one array, eot after each that ends a document."""
        texts, ends = zip(*pieces)
        ids = self.encode_documents(list(texts))
        eots = np.flatnonzero(ids == self.eot)  # one after every piece
        require(len(eots) == len(texts), 'this tokenizer encodes ordinary text as end-of-text')
        return np.delete(ids, eots[~np.array(ends)])

    def encode_stream(self, pieces):
        """Yield the ids of pieces (text, ends) in arrays, eot after each document. Several threads
        encode a thousand pieces each; the arrays come in order."""
        pieces, waiting = iter(pieces), deque()
        with ThreadPoolExecutor(WORKERS) as pool:
            while chunk := list(islice(pieces, 1000)):
                waiting.append(pool.submit(self.encode_pieces, chunk))
                if len(waiting) > 2 * WORKERS:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length. Raises Error for a character that the alphabet of char
        lacks."""
        raw = to_utf8(text)
        try:
            return [i for piece, _ in cut(raw, 0, len(raw))
                    for i in self.encode_documents([piece])[:-1].tolist()]
        except KeyError as e:
            character = e.args[0]
            raise Error(f'character {character!r} (U+{ord(character):04X}) is not in the alphabet '
                        'of this model') from e

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    # ---- decoding
    def decode(self, ids) -> str:
        """Text of ids. Bytes that are no character become U+FFFD, special tokens ''. Raises Error
        for an id that is not in [0, vocab_size)."""
        ids = [int(i) for i in ids if i != self.eot]
        unknown = [i for i in ids if not 0 <= i < self.vocab_size]
        require(not unknown, f'{unknown[:1]} is not the id of a token: they are 0 to '
                             f'{self.vocab_size - 1}')
        if self.kind == 'char':
            return ''.join(self.spec['alphabet'][i] for i in ids)
        if self.kind == 'hf':
            return self.hf.decode(ids, skip_special_tokens=True)
        return self.bpe.decode(ids)

    def decode_stream(self, ids):
        """Yield the text that each id adds, '' while bytes of its character are missing; then
        the rest."""
        pending, shown = [], ''
        for i in ids:
            pending.append(i)
            text = self.decode(pending)
            if text.endswith('\ufffd'):
                yield ''
            else:
                yield text[len(shown):]
                pending, shown = [i], self.decode([i])      # hf may decode the next id by this one
        yield self.decode(pending)[len(shown):]

    def label(self, i: int) -> str:
        """The text of one id where spaces and line ends must be seen: '·named', '\\n', '<eot>'."""
        return repr(self.decode([i]))[1:-1].replace(' ', '·') or '<eot>'


# ---- texts
def to_utf8(text: str) -> bytes:
    """text as UTF-8: a pair of surrogates becomes its character, a lone one U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


def cut(raw, start: int, end: int):
    """Yield (text, whether it is the last) for raw[start:end], UTF-8 bytes, in pieces of at
    most PIECE bytes.

    A piece ends where the cut changes no token (BORDER), if its second half has such a place."""
    while end - start > PIECE:
        text = str(raw[start:start + PIECE], 'utf-8', 'ignore')     # without half a character
        border = BORDER.search(text, len(text) // 2)
        if border:
            text = text[:border.start()]
        start += len(text.encode())
        yield text, False
    yield str(raw[start:end], 'utf-8'), True


# ---- vocabularies
def gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's tokens and their ids, which tiktoken downloads once. Error if it cannot."""
    import tiktoken
    try:
        gpt2 = tiktoken.get_encoding('gpt2')
    except Exception as e:
        raise Error('cannot fetch the gpt2 vocabulary: go online once, set TIKTOKEN_CACHE_DIR to a '
                    'folder that has it, or use --tokenizer=bpe '
                    f'({type(e).__name__}: {brief(e)})') from e
    return {gpt2.decode_single_token_bytes(i): i for i in range(gpt2.eot_token)}


def trained_ranks(tokenizer_json: str) -> dict[bytes, int]:
    """The tokens of a byte-level BPE and their ids, which are also the ranks of its merges.

    A tokenizer.json spells bytes as visible characters: printable ones as they are, the others
    from U+0100."""
    visible = [b for b in range(256) if chr(b).isprintable() and b != 32]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    vocabulary = json.loads(tokenizer_json)['model']['vocab']
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
    has_all_bytes = all(bytes([b]) in ranks for b in range(256))
    if sorted(ranks.values()) != list(range(len(ranks))) or not has_all_bytes:
        raise ValueError('ids or bytes are missing')
    return ranks


def train_bpe(texts, size: int) -> dict:
    """Spec of a byte-level BPE (Sennrich et al. 2016) of `size` tokens, eot included, trained
    on texts.

    It has fewer tokens if the texts hold too few pairs that occur twice."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()    # otherwise bytes not seen here would vanish
    trainer = trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, initial_alphabet=every_byte,
                                  show_progress=False)
    bpe.train_from_iterator(limit_words(texts), trainer)
    bpe.add_special_tokens([EOT])                   # after the training, so that its id is the last
    return {'kind': 'bpe', 'json': bpe.to_str()}


def limit_words(texts, limit: int = 4_000_000):
    """Yield texts until their distinct words have more than `limit` characters together:
    training a vocabulary takes 100 bytes for each. Words are broken after 200 characters, as
    merges in them are slow."""
    seen = set()
    for text in texts:
        new = set(text.split()) - seen
        seen |= new
        limit -= sum(map(len, new))
        yield re.sub(r'\S{200}', r'\g<0>\n', text)
        if limit < 0:
            return


def read_tokenizer(source: str) -> dict:
    """Spec of the tokenizer.json in a folder or Hugging Face repository; its eos token is
    end-of-text."""
    from tokenizers import Tokenizer
    files = ['tokenizer.json', 'tokenizer_config.json']
    try:
        if Path(source).is_dir():
            folder = Path(source)
        else:
            from huggingface_hub import snapshot_download
            folder = Path(snapshot_download(source, allow_patterns=files))
        text = (folder / 'tokenizer.json').read_text(encoding='utf-8')
        config = {}
        if (folder / 'tokenizer_config.json').exists():
            config = json.loads((folder / 'tokenizer_config.json').read_text(encoding='utf-8'))
        tokenizer = Tokenizer.from_str(text)
        eos = config.get('eos_token')
        if isinstance(eos, dict):
            eos = eos['content']
    except Exception as e:
        raise Error(f'--tokenizer={source}: neither bpe, gpt2, char nor a place with a '
                    f'tokenizer.json ({type(e).__name__}: {brief(e)})') from e
    for token in (eos, EOT, '</s>', '<eos>'):
        if token and tokenizer.token_to_id(token) is not None:
            return {'kind': 'hf', 'json': text, 'eot': tokenizer.token_to_id(token)}
    raise Error(f'--tokenizer={source} has no end-of-text: name an eos_token in its '
                'tokenizer_config.json')
