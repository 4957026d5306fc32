"""Text to token ids and back.

bpe is trained on the text and gpt2 is GPT-2's: both are byte-level BPE, using tiktoken. char is
character-level. Any other tokenizer.json is a ForeignTokenizer, in extras/foreign.py."""
import json
import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from lib.errors import Error, brief, extra, require

EOT = '<|endoftext|>'
PIECE = 1 << 12                 # maximum bytes of a piece of text
WORKERS = min(os.cpu_count() or 1, 16)
# Cutting text before a single space or after a single newline, between non-whitespace characters,
# does not change the tokens of bpe or gpt2: no token crosses such a boundary.
BORDER = re.compile(r'(?<=\S)(?= \S)|(?<=\S\n)(?=\S)')
# GPT-2's pre-tokenization regex, rearranged so that most words match without the slow lookahead.
WORDS = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s"


def load_tokenizer(spec: dict):
    """The tokenizer described by a spec. Raises Error if the spec is corrupted."""
    require(isinstance(spec, dict), 'the tokenizer is missing')
    if spec.get('kind') == 'hf':
        return extra('foreign', needed_by='this tokenizer').ForeignTokenizer(spec)
    return Tokenizer(spec)


class Tokenizer:
    """Encodes text to ids and decodes them.

    eot is the id of end-of-text, which follows every document; no text encodes to it, and it
    decodes to ''. vocab_size counts all ids, including eot. spec is a dict of plain types
    from which the tokenizer can be rebuilt: {'kind': 'bpe', 'json': contents of a tokenizer.json},
    {'kind': 'gpt2'} or {'kind': 'char', 'alphabet': its characters}."""
    waiting_ids = frozenset()   # ids after which decode_stream waits for the next

    def __init__(self, spec: dict):
        """Raises Error if the spec is corrupted."""
        self.spec = spec
        try:
            self.kind = spec['kind']
            self.setup()
            if not 0 <= self.eot < self.vocab_size:
                raise ValueError(f'end-of-text id {self.eot} is outside the vocabulary')
        except Error:
            raise
        except Exception as e:                      # libraries raise plain Exception
            raise Error(f'the tokenizer is corrupted ({type(e).__name__}: {brief(e)})') from e

    def __reduce__(self):
        return type(self), (self.spec,)             # copy and pickle by spec

    def __eq__(self, other) -> bool:
        """Whether both produce the same ids, e.g. GPT-2's tokenizer from tiktoken and from a
        tokenizer.json."""
        if self.spec == other.spec:
            return True
        if (self.vocab_size, self.eot) != (other.vocab_size, other.eot):
            return False
        every_token = self.decode(range(self.vocab_size))
        return every_token == other.decode(range(other.vocab_size)) \
            and self.encode(every_token) == other.encode(every_token)

    def setup(self):
        """Set eot, vocab_size and the encoder."""
        if self.kind == 'char':
            alphabet = self.spec['alphabet']
            self.index = {character: i for i, character in enumerate(alphabet)}
            self.eot = len(alphabet)
        else:
            import tiktoken
            ranks = gpt2_ranks() if self.kind == 'gpt2' else trained_ranks(self.spec['json'])
            self.eot = len(ranks)
            self.bpe = tiktoken.Encoding(self.kind, pat_str=WORDS, mergeable_ranks=ranks,
                                         special_tokens={EOT: self.eot})
        self.vocab_size = self.eot + 1

    # ---- encoding
    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length. Raises Error if it cannot be encoded, e.g. because a
        character is not in the alphabet of a char tokenizer."""
        raw = to_utf8(text)
        try:
            return self.encode_pieces([*cut(raw, 0, len(raw))])[:-1].tolist()
        except KeyError as e:
            character = e.args[0]
            raise Error(f'character {character!r} (U+{ord(character):04X}) is not in the alphabet '
                        'of this model') from e

    def encode_stream(self, pieces):
        """Yield arrays of the ids of documents, each followed by eot. Documents come in pieces
        (text, ends), as yielded by cut; `ends` marks a document's last piece."""
        pieces, running = iter(pieces), deque()
        with ThreadPoolExecutor(WORKERS) as pool:
            while chunk := list(islice(pieces, 1000)):
                running.append(pool.submit(self.encode_pieces, chunk))
                if len(running) > 2 * WORKERS:
                    yield running.popleft().result()
            for future in running:
                yield future.result()

    def encode_pieces(self, pieces: list[tuple[str, bool]]) -> np.ndarray:
        """The ids of pieces (text, ends), with eot after each document."""
        texts, ends = zip(*pieces)
        if self.kind == 'char':
            ids = np.array([i for text in texts
                            for i in (*(self.index[character] for character in text), self.eot)])
        elif any(EOT in text for text in texts):    # here it is ordinary text, so do not join
            arrays = [self.bpe.encode_to_numpy(text, disallowed_special=()) for text in texts]
            ids = np.concatenate([np.append(array, np.uint32(self.eot)) for array in arrays])
        else:
            joined = EOT.join([*texts, ''])
            ids = self.bpe.encode_to_numpy(joined, allowed_special={EOT}, disallowed_special=())
        eots = np.flatnonzero(ids == self.eot)      # one after each piece
        return np.delete(ids, eots[~np.array(ends)])

    # ---- decoding
    def decode(self, ids) -> str:
        """The text of ids. Invalid UTF-8 becomes U+FFFD, eot ''. Raises Error for an id outside
        [0, vocab_size)."""
        ids = [int(i) for i in ids if i != self.eot]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise Error(f'{i} is not a token id: valid ids are 0 to {self.vocab_size - 1}')
        return self.decode_ids(ids)

    def decode_ids(self, ids: list[int]) -> str:
        if self.kind == 'char':
            return ''.join(self.spec['alphabet'][i] for i in ids)
        return self.bpe.decode(ids)

    def decode_stream(self, ids, prompt=()):
        """Yield the text each id adds ('' while a character is incomplete), then what is left.

        prompt: the ids before these. Some tokenizers drop the space before the first word, so
        without the prompt a continuation would lose its leading space."""
        context, new = list(prompt), []
        shown = self.decode(context)
        for i in ids:
            new.append(i)
            text = shown if i in self.waiting_ids else self.decode(context + new)
            if text == shown or text.endswith('\ufffd'):
                yield ''
                continue
            yield text[len(shown):]
            context, new = [i], []                  # the next id's text may depend on it
            shown = self.decode(context)
        yield self.decode(context + new)[len(shown):]

    def label(self, i: int) -> str:
        """The text of one id with visible spaces and newlines: '·named', '\\n', '<eot>'."""
        return '<eot>' if i == self.eot else repr(self.text_of(i))[1:-1].replace(' ', '·')

    def text_of(self, i: int) -> str:
        """The text of one id as it appears mid-text."""
        return self.decode([i])


# ---- texts
def to_utf8(text: str) -> bytes:
    """Encode text as UTF-8. A surrogate pair becomes its character, a lone surrogate U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


def cut(raw, start: int, end: int):
    """Yield (text, is_last) for the UTF-8 bytes raw[start:end], in pieces of at most PIECE bytes.

    A piece ends at the first BORDER in its second half, where cutting does not change tokens, or
    else at PIECE bytes."""
    while end - start > PIECE:
        text = str(raw[start:start + PIECE], 'utf-8', 'ignore')     # drop a partial character
        border = BORDER.search(text, len(text) // 2)
        if border:
            text = text[:border.start()]
        start += len(text.encode())
        yield text, False
    yield str(raw[start:end], 'utf-8'), True


# ---- vocabularies
def gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's tokens and their ids, downloaded once by tiktoken. Raises Error if that fails."""
    import tiktoken
    try:
        gpt2 = tiktoken.get_encoding('gpt2')
    except Exception as e:
        raise Error('cannot download the gpt2 vocabulary: run this once with an internet '
                    'connection, set TIKTOKEN_CACHE_DIR to a folder that has it, or use '
                    '--tokenizer=bpe '
                    f'({type(e).__name__}: {brief(e)})') from e
    return {gpt2.decode_single_token_bytes(i): i for i in range(gpt2.eot_token)}


def trained_ranks(tokenizer_json: str) -> dict[bytes, int]:
    """The tokens of a byte-level BPE and their ids, which are also their merge ranks.

    A tokenizer.json represents each byte as a visible character: printable ones as themselves, the
    others as U+0100 and up."""
    visible = [b for b in range(256) if chr(b).isprintable() and b != 32]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    vocabulary = json.loads(tokenizer_json)['model']['vocab']
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
    has_all_bytes = all(bytes([b]) in ranks for b in range(256))
    if sorted(ranks.values()) != list(range(len(ranks))) or not has_all_bytes:
        raise ValueError('ids or bytes are missing')
    return ranks
