"""Text to token ids and back: the Tokenizer class, and training or loading a vocabulary.

bpe is trained on the text and gpt2 is GPT-2's: both are byte-level BPE, run by tiktoken. char is
character-level. hf is any other tokenizer.json; see lib/foreign.py."""
import json
import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from lib.settings import Error, brief

EOT = '<|endoftext|>'
PIECE = 1 << 12                 # maximum bytes of a piece of text
WORKERS = min(os.cpu_count() or 1, 16)
# Cutting text before a single space or after a single newline, between visible characters, does
# not change the tokens of bpe or gpt2: no token crosses such a border.
BORDER = re.compile(r'(?<=\S)(?= \S)|(?<=\S\n)(?=\S)')
# GPT-2's pre-tokenization regex, rearranged so that most words match without the slow lookahead.
WORDS = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s"


class Tokenizer:
    """Encodes text to ids and decodes them.

    eot is the id of end-of-text, which follows every document; no text encodes to it, and it
    decodes to ''. vocab_size counts all ids, including eot. spec is a dict of plain types that
    rebuilds the tokenizer: {'kind': 'bpe', 'json': content of a tokenizer.json}, {'kind': 'gpt2'},
    {'kind': 'char', 'alphabet': its characters} or {'kind': 'hf', 'json': ..., 'eot': id}."""
    waiting_ids = frozenset()   # ids after which decode_stream waits: bytes, special tokens

    def __init__(self, spec: dict):
        """Raises Error if the spec is damaged."""
        self.spec = spec
        try:
            self.kind = spec['kind']
            setup = {'bpe': self._setup_bpe, 'gpt2': self._setup_bpe,
                     'char': self._setup_char, 'hf': self._setup_hf}[self.kind]
            setup()
            if not 0 <= self.eot < self.vocab_size:
                raise ValueError(f'end-of-text id {self.eot} is outside the vocabulary')
        except Error:
            raise
        except Exception as e:                      # libraries raise plain Exception
            raise Error(f'the tokenizer is damaged ({type(e).__name__}: {brief(e)})') from e

    def __reduce__(self):
        return Tokenizer, (self.spec,)              # copy and pickle by spec

    def __eq__(self, other) -> bool:
        """Whether both produce the same ids, e.g. GPT-2's tokenizer as gpt2 and as hf."""
        if self.spec == other.spec:
            return True
        if (self.vocab_size, self.eot) != (other.vocab_size, other.eot):
            return False
        every_token = self.decode(range(self.vocab_size))
        return every_token == other.decode(range(other.vocab_size)) \
            and self.encode(every_token) == other.encode(every_token)

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
        from lib.foreign import ForeignTokenizer
        self.hf = ForeignTokenizer(self.spec['json'], self.spec['eot'])
        self.eot = self.hf.eot
        self.vocab_size = self.hf.vocab_size
        self.waiting_ids = self.hf.waiting_ids

    # ---- encoding
    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length. Raises Error if it cannot be encoded, e.g. because a
        character is not in the alphabet of char."""
        raw = to_utf8(text)
        if self.kind == 'hf':
            return self.hf.encode_documents([raw.decode()])[:-1].tolist()
        try:
            return self.encode_pieces([*cut(raw, 0, len(raw))])[:-1].tolist()
        except KeyError as e:
            character = e.args[0]
            raise Error(f'character {character!r} (U+{ord(character):04X}) is not in the alphabet '
                        'of this model') from e

    def encode_stream(self, pieces):
        """Yield arrays of the ids of documents, each followed by eot. Documents come in pieces
        (text, ends), as yielded by cut; `ends` marks a document's last piece."""
        if self.kind == 'hf':                       # its tokens may depend on the whole text
            yield from self.hf.encode_stream(pieces)
            return
        pieces, running = iter(pieces), deque()
        with ThreadPoolExecutor(WORKERS) as pool:
            while chunk := list(islice(pieces, 1000)):
                running.append(pool.submit(self.encode_pieces, chunk))
                if len(running) > 2 * WORKERS:
                    yield running.popleft().result()
            for future in running:
                yield future.result()

    def encode_pieces(self, pieces: list[tuple[str, bool]]) -> np.ndarray:
        """The ids of pieces (text, ends) for bpe, gpt2 or char, with eot after each document."""
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
        """The text of ids. Invalid UTF-8 becomes U+FFFD, special tokens ''. Raises Error for an id
        outside [0, vocab_size)."""
        ids = [int(i) for i in ids if i != self.eot]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise Error(f'{i} is not a token id: those are 0 to {self.vocab_size - 1}')
        if self.kind == 'char':
            return ''.join(self.spec['alphabet'][i] for i in ids)
        if self.kind == 'hf':
            return self.hf.decode(ids)
        return self.bpe.decode(ids)

    def decode_stream(self, ids, prompt=()):
        """Yield the text each id adds, '' while a character is incomplete; finally the rest.

        prompt: the ids before these. Many hf tokenizers drop the space before the first word, so
        without the prompt a continuation would be missing its leading space."""
        context, new = list(prompt), []
        shown = self.decode(context)
        for i in ids:
            new.append(i)
            text = shown if i in self.waiting_ids else self.decode(context + new)
            if text == shown or text.endswith('\ufffd'):
                yield ''
                continue
            yield text[len(shown):]
            context, new = [i], []                  # hf: the next id's text may depend on it
            shown = self.decode(context)
        yield self.decode(context + new)[len(shown):]

    def label(self, i: int) -> str:
        """The text of one id with visible spaces and newlines: '·named', '\\n', '<eot>'."""
        if i == self.eot:
            return '<eot>'
        text = self.hf.label(i) if self.kind == 'hf' else self.decode([i])
        return repr(text)[1:-1].replace(' ', '·')


# ---- texts
def to_utf8(text: str) -> bytes:
    """Encode text as UTF-8. A surrogate pair becomes its character, a lone surrogate U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


def cut(raw, start: int, end: int):
    """Yield (text, is_last) for the UTF-8 bytes raw[start:end], in pieces of at most PIECE bytes.

    A piece ends at the first BORDER in its second half, where cutting does not change tokens."""
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
        raise Error('cannot download the gpt2 vocabulary: go online once, set TIKTOKEN_CACHE_DIR '
                    'to a folder that has it, or use --tokenizer=bpe '
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


def train_bpe(texts, size: int) -> dict:
    """Train a byte-level BPE (Sennrich et al. 2016) with `size` tokens, including eot, on texts.
    Returns its spec. It has fewer tokens if too few pairs occur at least twice."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()    # without it, bytes not in texts are dropped
    trainer = trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, initial_alphabet=every_byte,
                                  show_progress=False)
    bpe.train_from_iterator(limit_words(texts), trainer)
    bpe.add_special_tokens([EOT])                       # after training, so it gets the last id
    return {'kind': 'bpe', 'json': bpe.to_str()}


def limit_words(texts, limit: int = 4_000_000):
    """Yield texts until their distinct words exceed `limit` characters, to limit memory: training
    takes 100 bytes for each. Words are split every 200 characters, because long ones are slow."""
    seen = set()
    for text in texts:
        new = set(text.split()) - seen
        seen |= new
        limit -= sum(map(len, new))
        yield re.sub(r'\S{200}', r'\g<0>\n', text)
        if limit < 0:
            return


def read_tokenizer(source: str) -> dict:
    """Spec of the tokenizer.json in a folder or Hugging Face repository, with its eos token as
    end-of-text. Raises Error if there is none."""
    from tokenizers import Tokenizer
    try:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            folder = Path(snapshot_download(source, allow_patterns='tokenizer*.json'))
        text = (folder / 'tokenizer.json').read_text(encoding='utf-8')
        config_file = folder / 'tokenizer_config.json'
        config = {}
        if config_file.exists():
            config = json.loads(config_file.read_text(encoding='utf-8'))
        tokenizer = Tokenizer.from_str(text)
        eos = config.get('eos_token')
        if isinstance(eos, dict):
            eos = eos['content']
    except Exception as e:
        raise Error(f'--tokenizer={source}: neither bpe, gpt2, char nor a folder or repository '
                    f'with a tokenizer.json ({type(e).__name__}: {brief(e)})') from e
    for token in (eos, EOT, '</s>', '<eos>'):
        if token and tokenizer.token_to_id(token) is not None:
            return {'kind': 'hf', 'json': text, 'eot': tokenizer.token_to_id(token)}
    raise Error(f'--tokenizer={source} has no end-of-text token: set eos_token in its '
                'tokenizer_config.json')
