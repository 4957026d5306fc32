"""Turn text, PDFs or a dataset into data/NAME/{train,val}.bin and meta.json, for train.py and sample.py.

Here live class Tokenizer, the reading and dividing of documents, and open_dataset; batches are train.py's.
A source is read once, into a temporary file (the spool), then divided and tokenized from there. So memory
holds some MB of text and 120 bytes per document, however large the corpus and its largest document are."""
from config import ROOT, Error, atomic, checksum, configure, lock, require

# what is read
dataset = 'stories'               # stories, tinystories, or a Hugging Face dataset: a name or a local folder
input = ''                        # or: files, folders, globs of .txt .md .pdf .jsonl .parquet, with commas
separator = '<|endoftext|>'       # stands between the documents of a .txt file; '' = a file is one document
text_column = 'text'              # of a dataset, .jsonl or .parquet
num_stories = 20000               # how many stories are told
# what is made of it
name = ''                         # writes data/NAME; '' = the source's last part (and _gpt2 or _char)
tokenizer = 'bpe'                 # bpe (trained here), gpt2, char, or a folder or name with a tokenizer.json
vocab_size = 0                    # of a bpe, end-of-text included; 0 = 2048 for stories, 4096 for all else
val_fraction = 0.05               # of documents, or of a single one's characters, if there is no split
seed = 1337                       # of the stories and the split
overwrite = False                 # replace another dataset of this name
config = configure(globals())

import contextlib
import json
import logging
import math
import mmap
import os
import random
import re
import shlex
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

FORMAT = 1                        # of the files in data/NAME
EOT = '<|endoftext|>'
PIECE = 1 << 12                   # bytes of a document that are tokenized in one go, at most
SAMPLE = 1 << 26                  # bytes of text that a bpe is trained on, at most
PDF_WORK = 20_000_000             # operators and characters of a PDF, at most: about a minute of reading
WORKERS = min(os.cpu_count() or 1, 16)
GRAMMAR = ROOT / 'data/stories/grammar.txt'
RULE = re.compile(r'^([a-z_]+)(?: \(([^()\n]*)\))?:(.*\n(?:[ \t]*\n|[ \t]+.*\n)*)', re.M)
PART = re.compile(r'([^{}]*)(?:{(?:([a-z_]+)=)?([A-Za-z][a-z_]*)(?:\.([a-z_]+))?}|$)')
# before one space, or after one newline, between visible characters: no token of bpe or gpt2 spans it
BORDER = re.compile(r'(?<=\S)(?= \S)|(?<=\S\n)(?=\S)')
# a document in the spool: its hash, offsets, split ('' where the source has none) and entropy (nan: unknown)
DOCUMENT = np.dtype([('hash', '<u8'), ('start', 'i8'), ('end', 'i8'), ('split', 'S5'), ('nats', 'f8')])


@contextlib.contextmanager
def blaming(what):
    """Show what a library raises, and be it a bare Exception, as an Error that says `what`."""
    try:
        yield
    except Error:
        raise
    except Exception as e:
        raise Error(f'{what} ({type(e).__name__}: {str(e)[:200]})') from e


class Tokenizer:
    """Text to ids and back. Kinds: bpe and gpt2 (run by tiktoken), char, and hf (any other tokenizer.json).

    eot ends every document; no text encodes to it, decode shows nothing for it, vocab_size counts it.
    spec is a dict for JSON with all that from_spec needs. encode_documents gives the ids of a list of valid
    texts of at most PIECE bytes in one array, eot after each."""

    def __init__(self, spec: dict):
        self.spec, kind = spec, spec['kind']
        if kind == 'char':
            index = {character: i for i, character in enumerate([*spec['alphabet'], ''])}   # '' ends a text
            self.eot, self.vocab_size = index[''], len(index)
            self.encode_documents = lambda texts: np.array([index[c] for text in texts for c in (*text, '')])
            self._decode = lambda ids: ''.join(spec['alphabet'][i] for i in ids)
        elif kind in ('bpe', 'gpt2'):
            bpe = _encoding(spec)
            self.eot, self.vocab_size, self._decode = bpe.eot_token, bpe.n_vocab, bpe.decode

            def encode_documents(texts):
                if any(EOT in text for text in texts):      # one by one, as there it is no special token
                    arrays = [bpe.encode_to_numpy(text, disallowed_special=()) for text in texts]
                    return np.concatenate([np.append(ids, np.uint32(self.eot)) for ids in arrays])
                joined = EOT.join([*texts, ''])
                return bpe.encode_to_numpy(joined, allowed_special={EOT}, disallowed_special=())

            self.encode_documents = encode_documents
        elif kind == 'hf':
            import tokenizers
            hf = tokenizers.Tokenizer.from_str(spec['json'])
            hf.no_truncation()
            hf.no_padding()
            hf.encode_special_tokens = True                 # a special token's name in a text is just text
            self.eot, self.vocab_size = spec['eot'], max(hf.get_vocab().values()) + 1
            encode_batch = partial(hf.encode_batch_fast, add_special_tokens=False)
            self.encode_documents = lambda texts: np.array([
                i for encoding in encode_batch(texts) for i in (*encoding.ids, self.eot)])
            self._decode = lambda ids: hf.decode(ids, skip_special_tokens=True)
        if not 0 <= self.eot < self.vocab_size:
            raise ValueError(f'end-of-text {self.eot} outside a vocabulary of {self.vocab_size}')

    @classmethod
    def from_spec(cls, spec: dict) -> 'Tokenizer':
        """The tokenizer of a spec. Raises Error on a damaged one."""
        with blaming('the tokenizer is damaged'):
            return cls(spec)

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length. Raises Error on a character outside a char tokenizer's alphabet."""
        raw = utf8(text)
        try:
            found = pieces(raw, {'start': [0], 'end': [len(raw)]})
            return np.concatenate([self.encode_documents([text])[:-1] for text, _ in found]).tolist()
        except KeyError as e:
            raise Error(f'character {e} (U+{ord(e.args[0]):04X}) is not in the alphabet of this model') from e

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids) -> str:
        """Text of ids in [0, vocab_size): U+FFFD for bytes that are no character, '' for special tokens."""
        return self._decode([int(i) for i in ids if i != self.eot])

    def __eq__(self, other) -> bool:
        """Whether both give the same ids, whatever their kind: GPT-2's may come as a tokenizer.json too."""
        if self.spec == other.spec:
            return True
        texts = [tok.decode(range(tok.vocab_size)) for tok in (self, other)]
        return (self.vocab_size, self.eot, texts[0]) == (other.vocab_size, other.eot, texts[1]) \
            and self.encode(texts[0]) == other.encode(texts[1])


def _encoding(spec):
    """GPT-2's or a trained byte-level BPE as tiktoken.Encoding, six times as fast as by tokenizers."""
    import tiktoken
    if spec['kind'] == 'gpt2':
        with blaming('cannot fetch the gpt2 vocabulary: go online once, set TIKTOKEN_CACHE_DIR to a folder '
                     'that has it, or use --tokenizer=bpe'):
            ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks
    else:
        visible = [b for b in range(256) if chr(b).isprintable() and b != 32]   # GPT-2 writes them so,
        hidden = [b for b in range(256) if b not in visible]                # and these as chr(256), ...
        byte = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
        vocabulary = json.loads(spec['json'])['model']['vocab']
        ranks = {bytes(byte[c] for c in token): rank for token, rank in vocabulary.items()}
        if sorted(ranks.values()) != [*range(len(ranks))] or any(bytes([b]) not in ranks for b in range(256)):
            raise ValueError('ids or bytes are missing')
    # GPT-2's pattern; the brackets keep the look-ahead, and the slow engine for it, out of most matches
    words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    return tiktoken.Encoding(spec['kind'], pat_str=rf'(?:{words})|\s+(?!\S)|\s', mergeable_ranks=ranks,
                             special_tokens={EOT: len(ranks)})


def train_bpe(texts, size: int) -> dict:
    """Spec of a byte-level BPE of `size` tokens, or fewer if texts hold too few pairs that occur twice."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()        # else bytes not seen in training would vanish
    trainer = trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, initial_alphabet=every_byte,
                                  show_progress=False)

    def sample():                                           # training takes 100 bytes per character of a word
        seen, left = set(), 4_000_000
        for text in texts:
            new = set(text.split()) - seen
            seen |= new
            left -= sum(map(len, new))
            yield re.sub(r'\S{200}', r'\g<0>\n', text)      # each merge goes through the words it changes
            if left < 0:
                return

    bpe.train_from_iterator(sample(), trainer)
    bpe.add_special_tokens([EOT])                           # after the training: its id is the last
    return {'kind': 'bpe', 'json': bpe.to_str()}


def read_tokenizer(place: str) -> dict:
    """Spec of the tokenizer.json in a folder or Hugging Face repository; its eos token is end-of-text."""
    from huggingface_hub import snapshot_download
    from tokenizers import Tokenizer
    files = ['tokenizer.json', 'tokenizer_config.json']
    with blaming(f'--tokenizer={place}: not bpe, gpt2, char or a place with a tokenizer.json'):
        folder = Path(place if Path(place).is_dir() else snapshot_download(place, allow_patterns=files))
        text, config = [path.read_text(encoding='utf-8') if path.exists() else '{}'
                        for path in (folder / file for file in files)]
        known, eos = Tokenizer.from_str(text), json.loads(config).get('eos_token')
        eos = eos['content'] if isinstance(eos, dict) else eos
    for token in (eos, EOT, '</s>', '<eos>'):
        if token and known.token_to_id(token) is not None:
            return {'kind': 'hf', 'json': text, 'eot': known.token_to_id(token)}
    raise Error(f'--tokenizer={place} has no end-of-text: name an eos_token in its tokenizer_config.json')


def utf8(text: str) -> bytes:
    """text as UTF-8: a pair of surrogates becomes its character, a lone one U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


def pieces(raw, documents):
    """Yield (text, whether it ends its document), at most PIECE of the UTF-8 bytes raw at once.

    A long document is cut where that changes no token if there is such a place."""
    for start, end in zip(documents['start'], documents['end']):
        while end - start > PIECE:
            text = str(raw[start:start + PIECE], 'utf-8', 'ignore')         # half a character is left out
            border = BORDER.search(text, len(text) // 2)
            text = text[:border.start()] if border else text
            start += len(text.encode())
            yield text, False
        yield str(raw[start:end], 'utf-8'), True


# ---- stories: the grammar of data/stories and the telling ----------------------------------------------
def read_grammar(path) -> dict:
    """Read a grammar (the header of its file explains the notation) as {rule: [(parts, word), ...]}.

    parts: tuples (text, variable, name, attribute), '' for none; word: {'': as written, attribute: value}.
    Raises Error, naming the rule, on bad notation and on what is empty or there twice."""
    grammar, text = {}, Path(path).read_text(encoding='utf-8') + '\n'
    text = re.sub(r'^[ \t]*#.*\n', '', text, flags=re.M)
    if stray := RULE.sub('', text).strip():
        raise Error(f'{path}: expected `rule:` or an indented line, got {stray.splitlines()[0]!r}')
    for rule, head, body in RULE.findall(text):
        names = [name.strip() for name in head.split(',') if name]
        with blaming(f'{path}: rule {rule} has a wrong number of attributes'):
            if body.lstrip().startswith('- '):                        # texts of paragraphs
                texts = [re.split(r'\n\s*\n', text) for text in re.split(r'^[ \t]+- ', body, flags=re.M)[1:]]
                words = [{'': '\n'.join(' '.join(p.split()) for p in text if p.strip())} for text in texts]
            elif names and '=' not in head:                             # a table
                rows = [map(str.strip, row.split(',')) for row in body.strip().split('\n')]
                words = [dict(zip(['', *names], row, strict=True)) for row in rows]
            else:                                                       # a list
                words = [dict([('', w.strip()), *(n.split('=') for n in names)]) for w in body.split(',')]
        texts = {word[''] for word in words}
        good = not any(PART.sub('', text) for text in texts) and all(all(word.values()) for word in words)
        require(good and rule not in grammar and len(texts) == len(words),
                f'{path}: rule {rule} has broken braces or an empty place, or something stands twice')
        grammar[rule] = [(PART.findall(word['']), word) for word in words]
    require('plot' in grammar, f'{path} has no rule plot')
    return grammar


def tell_stories(grammar, n, seed):
    """Yield n times (text, nats): a story and -ln of its probability, summed over the draws.

    Story i depends on seed and i only, on every machine: Python keeps the sequence of Random.random().
    Raises Error where a name is unknown or not drawn yet, has no such attribute or cannot be remembered."""
    def tell(rule):
        nonlocal nats
        told = {word[''] for word in memory.values()}
        options = [option for option in grammar[rule] if option[1][''] not in told]
        require(options, f'stories: all words of the list {rule} are in use')
        nats += math.log(len(options))
        parts, word = options[int(draw() * len(options))]
        text = ''
        for before, variable, name, attribute in parts:
            key, value = name.lower(), ''
            if attribute in memory.get(key, {}):
                value = memory[key][attribute]
            elif key in grammar and not attribute:
                value, drawn = tell(key)
                if variable and (variable in grammar or value != drawn['']):
                    raise Error(f'stories: rule {rule}: {variable}={name} needs a new name and a list')
                if variable:
                    memory[variable] = drawn
            elif key:
                raise Error(f'stories: rule {rule}: {name} is not drawn yet or has no {attribute!r}')
            text += before + (value if name == key else value[0].upper() + value[1:])
        return text, word

    for i in range(n):
        draw, memory, nats = random.Random(f'{seed} {i}').random, {}, 0.
        text, _ = tell('plot')
        yield re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text), nats


# ---- reading: a reader yields (text, whether its document ends) ----------------------------------------
def read_text(path, separator=''):
    """A .txt or .md file, in blocks as a document may be larger than memory; line ends become newlines."""
    with open(path, encoding='utf-8-sig', errors='replace') as f:
        rest, begins = '', False                            # begins: rest follows a separator
        while block := f.read(1 << 20):
            *documents, rest = (rest + block).split(separator) if separator else [rest + block]
            for document in documents:                      # the newlines around a separator belong to it
                yield (document.lstrip('\n') if begins else document).rstrip('\n'), True
                begins = True
            rest = rest.lstrip('\n') if begins else rest
            if len(rest) > 1 << 20:
                end = len(rest[:-len(separator) or None].rstrip('\n'))      # it may end within a separator
                yield rest[:end], False
                rest, begins = rest[end:], False
        yield rest, True


def read_rows(rows):
    """The texts of rows, which are dicts; one without text is an empty document."""
    for row in rows:
        if text_column not in row:
            raise ValueError(f'no column {text_column}, but {", ".join(row) or "none"}; set --text_column')
        text = row[text_column]
        if not isinstance(text, str | None):
            raise ValueError(f'column {text_column} holds {type(text).__name__}, not text; set --text_column')
        yield text or '', True


def read_jsonl(path):
    with open(path, 'rb') as f:
        while line := f.readline(1 << 26):
            if len(line) == 1 << 26:
                raise ValueError(f'a line is longer than {1 << 26} bytes')
            if line.strip():
                yield from read_rows([json.loads(line.decode('utf-8-sig', 'replace'))])


def read_batches(batches):
    """The texts of Arrow's batches, whose other columns are left as they are."""
    for batch in batches:
        found = text_column in batch.column_names
        yield from read_rows([{text_column: text} for text in batch[text_column].to_pylist()] if found
                             else batch.to_pylist())


def read_parquet(path):
    from pyarrow import parquet
    yield from read_batches(parquet.ParquetFile(path).iter_batches(1000))


def read_pdf(path):
    """The text of a .pdf file as one document. Raises what pypdf does, or ValueError, if there is none."""
    import pypdf
    left = PDF_WORK                                         # pypdf bounds each stream, this bounds the file

    def count(_, operands, *__):
        nonlocal left
        left -= 1 + sum(len(operand) for operand in operands if isinstance(operand, str | bytes | list))
        if left < 0:
            raise ValueError('it inflates without end')

    with open(path, 'rb') as f:
        pages = pypdf.PdfReader(f).pages
        text = clean_pdf([page.extract_text(visitor_operand_before=count) for page in pages])
    if not text:
        raise ValueError('it has no text; is it a scan?')
    yield text, True


def clean_pdf(pages: list[str]) -> str:
    """Join the text of pages, without running heads and page numbers, words and paragraphs whole again."""
    import ftfy
    table = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], ' ')       # control characters
    table |= {0xfb00: 'ff', 0xfb01: 'fi', 0xfb02: 'fl', 0xfb03: 'ffi', 0xfb04: 'ffl'}       # ligatures
    pages = [[ftfy.fix_encoding(line).translate(table).strip() for line in page.strip().split('\n')]
             for page in pages]

    digits = re.compile(r'\d+')                             # in which running heads may differ
    heads = [{digits.sub('#', line) for line in page[:2] + page[-2:]} for page in pages]
    counts = Counter(head for outer in heads for head in outer)
    often = max(1, len(pages) / 3)                          # left and right pages may differ
    pages = [[line for i, line in enumerate(page)
              if 2 <= i < len(page) - 2 or counts[digits.sub('#', line)] <= often] for page in pages]
    text = '\n'.join('\n'.join(page).strip() for page in pages)
    text = re.sub(r'(\w)-\n(\w)', lambda m: m[1] + m[2] if (m[1] + m[2]).islower() else m[0], text)

    lines = text.split('\n')
    wide = 0.7 * np.percentile([len(line) for line in lines if line] or [0], 75)
    text = lines[0]
    for last, line in zip(lines, lines[1:]):                # a short line is a heading, or ends its paragraph
        goes_on = last and line and (len(last) > wide or line[0].islower())
        text += (' ' if goes_on else '\n') + line
    return re.sub(r'\n{3,}', '\n\n', text).strip()


READERS = {'.txt': lambda path: read_text(path, separator), '.md': read_text, '.pdf': read_pdf,
           '.jsonl': read_jsonl, '.parquet': read_parquet}


def find_files(patterns: str) -> list[Path]:
    """The files with a reader that files, folders and globs name, in a fixed order."""
    found = []
    for pattern in [part.strip() for part in patterns.split(',') if part.strip()] or [patterns]:
        path = Path(pattern)
        root = Path(path.anchor)
        paths = [path] if path.exists() else root.glob(str(path.relative_to(root)))
        if path.is_dir():
            paths = path.rglob('*')                         # follows no links to folders, which may circle
        hits = sorted(path for path in paths if path.suffix.lower() in READERS and path.is_file())
        require(hits, f'--input={pattern}: no {" ".join(READERS)} file there')
        found += hits
    return found


def read_files(files):
    """The documents of files; a PDF that cannot be read is named and left out."""
    for path in files:
        try:
            yield from READERS[path.suffix.lower()](path)
        except Exception as e:
            if path.suffix.lower() != '.pdf':
                raise Error(f'{path} cannot be read: {e}') from e
            warn(f'{path} is left out: {e or type(e).__name__}')


def read_dataset(place):
    """{split: reader} and licence of a Hugging Face dataset. A folder is read in place, a download cached."""
    from datasets import load_dataset

    def read(table):
        with blaming(f'dataset {place} cannot be read'):
            yield from read_batches(table.with_format('arrow').iter(1000))

    with blaming(f'dataset {place} cannot be opened'):
        splits = load_dataset(place, streaming=Path(place).exists())
    require('train' in splits and splits['train'].info.builder_name != 'text',
            f'dataset {place} has no split train, or holds text files, for which there is --input')
    licence = splits['train'].info.license
    val = next((key for key in ('validation', 'valid', 'val', 'dev', 'test') if key in splits), None)
    if not val:
        return {'': read(splits['train'])}, licence
    return {'val': read(splits[val]), 'train': read(splits['train'])}, licence


# ---- dividing and writing ------------------------------------------------------------------------------
def spool(readers, f, alphabet):
    """Write the texts of {split or '': reader} to f, their characters to the set alphabet.

    Returns an array of DOCUMENT, whose hash is of seed and text."""
    documents, pack, start, end, lost = bytearray(), struct.Struct('=8sqq5sd').pack, 0, 0, 0     # as DOCUMENT
    key = blake2b(digest_size=8, key=str(seed).encode())
    for split, reader in readers.items():
        for text, ends, *nats in tqdm(reader, f'reading {split}', disable=None, leave=False):
            if start == end:
                digest = key.copy()
                if ends and not text.strip():
                    continue                                # an empty document
            raw = utf8(text)
            digest.update(raw)
            end += f.write(raw)
            lost += 0 if raw.isascii() else raw.count('\ufffd'.encode())
            if tokenizer == 'char':
                alphabet.update(raw.decode())
            if ends:
                documents += pack(digest.digest(), start, end, split.encode(), *(nats or [math.nan]))
                start = end
    if lost:
        warn(f'{lost:,} characters of the text are U+FFFD: invalid UTF-8, or lone surrogates')
    require(end, 'the source is empty')
    f.flush()
    return np.frombuffer(documents, DOCUMENT)


def divide(raw, documents):
    """{'train': documents, 'val': documents}, the first of equal ones; by hash where the source has no split.

    A single document of n characters is cut after int(n * (1 - val_fraction)) of them."""
    kept = documents[np.sort(np.unique(documents['hash'], return_index=True)[1])]
    if kept['split'][0]:
        val = kept['split'] == b'val'
    elif len(kept) > 1:
        val = kept['hash'] / 2**64 < val_fraction
        val[kept['hash'].argmin()], val[kept['hash'].argmax()] = True, False    # each side has at least one
    else:
        left, middle = int(sum(len(text) for text, _ in pieces(raw, kept)) * (1 - val_fraction)), 0
        for text, _ in pieces(raw, kept):
            middle += len(text[:left].encode())
            left -= len(text[:left])
        kept, val = kept.repeat(2), np.array([False, True])
        kept['end'][0] = kept['start'][1] = middle
        kept['nats'] = math.nan                             # of the halves it is not known
    sides = {'train': kept[~val], 'val': kept[val]}
    require(all((side['end'] > side['start']).any() for side in sides.values()),
            'the source is too short to be divided into train and val')
    return sides


def encode_pieces(tok, texts):
    """Yield arrays of the ids of (text, whether its document ends), in order, encoded in threads."""
    def encode(chunk):
        texts, ends = zip(*chunk)
        ids = tok.encode_documents(texts)
        eots = np.flatnonzero(ids == tok.eot)
        require(len(eots) == len(texts), 'this tokenizer makes end-of-text of ordinary text')
        return np.delete(ids, eots[~np.array(ends)])

    waiting = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        while chunk := list(islice(texts, 1000)):           # few calls, as each has to wait for Python's lock
            waiting.append(pool.submit(encode, chunk))
            if len(waiting) > 2 * WORKERS:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def write_dataset(folder, meta, tok, raw, sides):
    """Write all files beside what is there; when every one is whole they take its place, meta.json last."""
    dtype = np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.uint32)
    meta |= {'tokenizer': tok.spec, 'vocab_size': tok.vocab_size, 'eot': tok.eot, 'dtype': dtype.name}
    with contextlib.ExitStack() as stack:                   # renames in reverse order
        stack.callback(lock(folder / '.lock').release)      # two at once would mix their files
        meta_path = stack.enter_context(atomic(folder / 'meta.json'))
        for split, documents in sides.items():
            path = stack.enter_context(atomic(folder / f'{split}.bin'))
            with open(path, 'wb') as f:
                texts = tqdm(pieces(raw, documents), f'tokenizing {split}', disable=None, leave=False)
                size = sum(f.write(ids.astype(dtype)) for ids in encode_pieces(tok, iter(texts)))
            nats = documents['nats']
            meta[split] = {'tokens': size // dtype.itemsize, 'documents': len(documents),
                           'bytes': int((documents['end'] - documents['start']).sum()),
                           'checksum': checksum(path),
                           'entropy': None if np.isnan(nats).any() else float(nats.sum())}
        if 'json' in tok.spec:
            path = stack.enter_context(atomic(folder / 'tokenizer.json'))
            path.write_text(tok.spec['json'], encoding='utf-8')
        meta['checksum'] = _checksum(meta)
        meta_path.write_text(json.dumps(meta), encoding='utf-8')
        for name in ('meta.json', 'tokenizer.json'):        # old ones never stand beside new bins
            (folder / name).unlink(missing_ok=True)


def _checksum(meta):
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    return f'{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}'


# ---- opening, for train.py and sample.py ---------------------------------------------------------------
def open_dataset(name: str, verify: bool = False):
    """(meta, train, val) of data/NAME; train and val are read-only memory maps of ids, shape (tokens,).

    Checksums and ids are verified in files up to 1 GB, or with verify=True. Raises Error on any fault."""
    folder, (base, _, kind) = Path('data', name), name.rpartition('_')
    source, kind = (base, f' --tokenizer={kind}') if kind in ('gpt2', 'char') else (name, '')
    known = source in ('stories', 'tinystories')
    command = f'python prepare.py {f"--dataset={source}" if known else f"--input=FILES --name={name}"}{kind}'

    def require(condition, problem):
        if not condition:
            raise Error(f'{folder} {problem}; make it with: {command}')

    require(os.path.exists(folder / 'meta.json'), 'is not there, or only half written')
    command += ' --overwrite=True'
    try:
        meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
        require(meta['format'] == FORMAT, f'is of format {meta["format"]}, and this program reads {FORMAT}')
        require(meta['checksum'] == _checksum(meta), 'has a damaged meta.json')
        command = meta['command'].removesuffix(' --overwrite=True') + ' --overwrite=True'
        V, dtype = meta['vocab_size'], np.dtype({'uint16': np.uint16, 'uint32': np.uint32}[meta['dtype']])
        arrays = []
        for split in ('train', 'val'):
            side, path = meta[split], folder / f'{split}.bin'
            numbers = [V, meta['eot'] + 1, *(side[key] for key in ('tokens', 'bytes', 'documents'))]
            sane = all(type(n) is int and n > 0 for n in numbers) and 0 <= (side['entropy'] or 0) < math.inf
            sane = sane and meta['eot'] < V <= 1 << 8 * dtype.itemsize
            require(sane, 'has numbers in meta.json that cannot be')
            require(path.stat().st_size == side['tokens'] * dtype.itemsize, f'has a cut {path.name}')
            ids = np.memmap(path, dtype, 'r')
            if verify or ids.nbytes <= 10**9:
                require(checksum(path) == side['checksum'], f'has a damaged {path.name}')
                require(ids.max() < V, f'has ids in {path.name} that are not below its vocab_size of {V}')
            arrays.append(ids)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as e:
        require(False, f'is damaged ({type(e).__name__}: {e})')
    return meta, *arrays


def warn(text):
    print('warning:', text, file=sys.stderr)


def prepare(folder, meta, readers):
    """Make data/NAME of {split or '': reader}, and report; meta is what is known of it already."""
    start, alphabet = time.time(), set()
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.parent) as f:
        documents = spool(readers, f, alphabet)
        raw = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        sides = divide(raw, documents)
        if tokenizer == 'bpe':
            step = int((sides['train']['end'] - sides['train']['start']).sum()) // SAMPLE + 1
            texts = (text for text, _ in islice(pieces(raw, sides['train']), 0, None, step))
            spec = train_bpe(texts, vocab_size or (2048 if meta['source'] == 'stories' else 4096))
        elif tokenizer == 'char':
            spec = {'kind': 'char', 'alphabet': ''.join(sorted(alphabet))}
        else:
            spec = {'kind': 'gpt2'} if tokenizer == 'gpt2' else read_tokenizer(tokenizer)
        write_dataset(folder, meta, Tokenizer.from_spec(spec), raw, sides)
    train, val, nats = meta['train'], meta['val'], meta['val']['entropy']
    dropped = len(documents) - len(np.unique(documents['hash']))
    print(f'documents  {train["documents"]:,} train, {val["documents"]:,} val, {dropped:,} dropped as equal')
    print(f'tokens     {train["tokens"]:,} train, {val["tokens"]:,} val, {val["bytes"] / val["tokens"]:.2f} '
          f'bytes per token, vocabulary {meta["vocab_size"]:,}')
    if nats:
        print(f'floor      {nats / val["documents"]:.2f} nats per story, {nats / val["tokens"]:.4f} '
              f'per token, {nats / val["bytes"] / math.log(2):.4f} bits per byte')
    print(f'{folder} made in {time.time() - start:.1f} s')
    share = val['bytes'] / (val['bytes'] + train['bytes'])
    if input and share > 2 * val_fraction:                  # the only other document, say
        warn(f'{share:.0%} of the text is held out, as a document stays whole; smaller ones divide better')
    if val['tokens'] < 1000:
        warn(f'only {val["tokens"]} tokens for validation: their loss will say little')


def main():
    logging.disable(logging.CRITICAL)                       # of the libraries: what matters they raise
    require(0 < val_fraction < 1, f'val_fraction={val_fraction} is not between 0 and 1')
    require(not vocab_size or 257 <= vocab_size <= 1 << 24,
            f'vocab_size={vocab_size}: a bpe has 257 tokens (all bytes and end-of-text) or more')
    place = 'roneneldan/TinyStories' if dataset == 'tinystories' else dataset
    first = re.split(r'/?[^/]*[*?[]', (input or dataset).split(',')[0].strip())[0]          # up to a glob
    first = Path(first).resolve()
    target = first.stem if first.is_file() else first.name
    target = name or target + f'_{tokenizer}' * (tokenizer in ('gpt2', 'char'))
    require(target == Path(target).name not in ('', '..'),
            f'name={target} is not the name of a folder in data/')
    folder = Path('data', target)
    try:
        files = find_files(input) if input else [GRAMMAR] if place == 'stories' else Path(place).rglob('*')
        files = [path for path in sorted([*files, *Path(tokenizer).glob('*.json')]) if path.is_file()]
        knobs = {key: value for key, value in config.items() if key not in ('name', 'overwrite')}
        inputs = repr([knobs, [(path.name, checksum(path)) for path in files]])
        fingerprint = blake2b(inputs.encode(), digest_size=8).hexdigest()
        if (folder / 'meta.json').exists() and not overwrite:
            meta, *_ = open_dataset(target)
            require(meta.get('fingerprint') == fingerprint,
                    f'{folder} holds something else ({meta["command"]}); use another --name, '
                    'or --overwrite=True')
            print(f'{folder} is there already, of the same text and knobs: nothing to do')
        else:
            if input:
                readers, licence = {'': read_files(find_files(input))}, None
            elif place == 'stories':
                stories = tell_stories(read_grammar(GRAMMAR), num_stories, seed)
                readers, licence = {'': ((text, True, nats) for text, nats in stories)}, 'MIT'
            else:
                readers, licence = read_dataset(place)
            command = shlex.join(['python', *sys.argv])
            prepare(folder, {'format': FORMAT, 'source': input or place, 'licence': licence or None,
                             'command': command, 'fingerprint': fingerprint}, readers)
    except OSError as e:
        raise Error(f'{e.filename or folder}: {e.strerror or e}; what was there before is intact') from e
    print(f'next: python train.py --dataset={target}')


if __name__ == '__main__':
    main()
