"""Turn text, PDFs or a dataset into data/NAME/{train,val}.bin and meta.json, for train.py and sample.py.

Here live class Tokenizer, the reading and dividing of documents, and open_dataset; batches are train.py's.
A source is read once, into a temporary file (the spool), then divided and tokenized from there. So memory
holds a few MB of text and 25 bytes per document, however large the corpus and its largest document are."""
from config import ROOT, Error, atomic, checksum, configure

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

import codecs
import contextlib
import json
import logging
import math
import os
import random
import re
import sys
import tempfile
import time
import zlib
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np

FORMAT = 1                        # of the files in data/NAME
EOT = '<|endoftext|>'
PIECE = 1 << 15                   # characters that are tokenized in one go, at most
SAMPLE = 1 << 26                  # bytes of text that a bpe is trained on, at most
PDF_WORK = 20_000_000             # operators and characters of a PDF, at most: about a minute of reading
WORKERS = min(os.cpu_count() or 1, 16)
GRAMMAR = ROOT / 'data/stories/grammar.txt'
RULE = re.compile(r'^([a-z_]+)(?: \(([^()\n]*)\))?( =|:)(.*\n(?:[ \t]*\n|[ \t]+.*\n)*)', re.M)
PART = re.compile(r'([^{}]*)(?:{(?:([a-z_]+)=)?([A-Za-z][a-z_]*)(?:\.([a-z_]+))?}|$)')
# before one space, or after one newline, between visible characters: no token spans such a place
BORDER = re.compile(r'(?<=\S)(?= \S)|(?<=\S\n)(?=\S)')


class Tokenizer:
    """Text to ids and back. Kinds: bpe and gpt2 (run by tiktoken), char, and hf (any other tokenizer.json).

    eot ends every document; no text encodes to it, decode shows nothing for it, vocab_size counts it.
    spec is a dict for JSON with all that from_spec needs. arrays encodes a list of valid, short texts."""

    def __init__(self, spec: dict):
        self.spec, kind = spec, spec['kind']
        if kind == 'char':
            index = {character: i for i, character in enumerate(spec['alphabet'])}
            self.arrays = lambda texts: [np.array([index[c] for c in text], np.uint32) for text in texts]
            self._decode = lambda ids: ''.join(spec['alphabet'][i] for i in ids)
            self.eot, self.vocab_size = len(index), len(index) + 1
        elif kind in ('bpe', 'gpt2'):
            bpe = _encoding(spec)
            self.arrays = lambda texts: [bpe.encode_to_numpy(text, disallowed_special=()) for text in texts]
            self._decode = bpe.decode
            self.eot, self.vocab_size = bpe.eot_token, bpe.n_vocab
        elif kind == 'hf':
            import tokenizers
            hf = tokenizers.Tokenizer.from_str(spec['json'])
            hf.no_truncation()
            hf.no_padding()
            hf.encode_special_tokens = True                 # a special token's name in a text is just text
            self.arrays = lambda texts: [np.array(encoding.ids, np.uint32) for encoding in
                                         hf.encode_batch_fast(texts, add_special_tokens=False)]
            self._decode = lambda ids: hf.decode(ids, skip_special_tokens=True)
            self.eot, self.vocab_size = spec['eot'], max(hf.get_vocab().values()) + 1
        if not 0 <= self.eot < self.vocab_size:
            raise ValueError(f'end-of-text {self.eot} outside a vocabulary of {self.vocab_size}')

    @classmethod
    def from_spec(cls, spec: dict) -> 'Tokenizer':
        """The tokenizer of a spec. Raises Error on a damaged one."""
        try:
            return cls(spec)
        except Error:
            raise
        except Exception as e:                              # tokenizers raises bare Exceptions
            raise Error(f'the tokenizer is damaged ({type(e).__name__}: {e})') from e

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length. Raises Error on a character outside a char tokenizer's alphabet."""
        try:
            return np.concatenate(self.arrays(list(cut(valid(text))))).tolist()
        except KeyError as e:
            raise Error(f'character {e} (U+{ord(e.args[0]):04X}) is not in the alphabet of this model') from e

    def encode_batch(self, texts) -> list[list[int]]:
        """encode of each text, in threads."""
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids) -> str:
        """Text of ids in [0, vocab_size): U+FFFD for bytes that are no character, '' for special tokens."""
        return self._decode([int(i) for i in ids if i != self.eot])

    def __eq__(self, other) -> bool:
        """Whether both give the same ids, whatever their kind: GPT-2's may come as a tokenizer.json too."""
        if (self.vocab_size, self.eot) != (other.vocab_size, other.eot):
            return False
        every = self.decode(range(self.vocab_size))
        return self.spec == other.spec or (every == other.decode(range(self.vocab_size))
                                           and self.encode(every) == other.encode(every))


def _encoding(spec):
    """GPT-2's or a trained byte-level BPE as tiktoken.Encoding, five times as fast as by tokenizers."""
    import tiktoken
    if spec['kind'] == 'gpt2':
        try:
            return tiktoken.get_encoding('gpt2')
        except Exception as e:                              # no network, or something else came from there
            raise Error(f'cannot fetch the gpt2 vocabulary ({type(e).__name__}): go online once, set '
                        'TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer=bpe') from e
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]     # how GPT-2 writes bytes as characters
    hidden = [byte for byte in range(256) if byte not in visible]
    byte = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    vocabulary = json.loads(spec['json'])['model']['vocab']
    ranks = {bytes(byte[c] for c in token): rank for token, rank in vocabulary.items()}
    if sorted(ranks.values()) != [*range(len(ranks))] or not {bytes([b]) for b in range(256)} <= ranks.keys():
        raise ValueError('ids or bytes are missing')
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"   # GPT-2's
    return tiktoken.Encoding('bpe', pat_str=pattern, mergeable_ranks=ranks, special_tokens={EOT: len(ranks)})


def train_bpe(texts, size: int) -> dict:
    """Spec of a byte-level BPE of `size` tokens, or fewer if texts hold too few pairs that occur twice.

    Reads on until it has 4M characters of distinct words, as training takes some 100 bytes for each, and
    breaks words of more than 200, as each merge goes through the words it changes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()        # else bytes not seen in training would vanish
    trainer = trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, initial_alphabet=every_byte,
                                  show_progress=False)

    def sample():
        seen, size = set(), 0
        for text in texts:
            new = set(text.split()) - seen
            seen |= new
            size += sum(map(len, new))
            yield re.sub(r'(\S{200})', r'\1\n', text) if max(map(len, new), default=0) > 200 else text
            if size > 4_000_000:
                return

    bpe.train_from_iterator(sample(), trainer)
    bpe.add_special_tokens([EOT])                           # after the training: its id is the last
    return {'kind': 'bpe', 'json': bpe.to_str()}


def read_tokenizer(place: str) -> dict:
    """Spec of the tokenizer.json in a folder or Hugging Face repository; its eos token is end-of-text."""
    from huggingface_hub import snapshot_download
    from tokenizers import Tokenizer
    files = ['tokenizer_config.json', 'config.json', 'tokenizer.json']
    try:
        folder = Path(place if Path(place).is_dir() else snapshot_download(place, allow_patterns=files))
        *configs, text = [(folder / file).read_text(encoding='utf-8') if (folder / file).exists() else '{}'
                          for file in files]
        known = Tokenizer.from_str(text)
        named = [json.loads(text).get(key) for text in configs for key in ('eos_token', 'eos_token_id')]
    except Exception as e:
        raise Error(f'--tokenizer={place}: not bpe, gpt2, char or a place with a tokenizer.json ({e})') from e
    for eos in [*named, EOT, '</s>', '<eos>']:
        eos = eos[0] if isinstance(eos, list) else eos.get('content') if isinstance(eos, dict) else eos
        eot = known.token_to_id(eos) if isinstance(eos, str) else eos
        if eot is not None:
            return {'kind': 'hf', 'json': text, 'eot': eot}
    raise Error(f'--tokenizer={place} has no end-of-text: name an eos_token in its tokenizer_config.json')


def valid(text: str) -> str:
    """text as valid Unicode: a pair of surrogates becomes its character, a lone one U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def cut(text: str):
    """Yield text in pieces of at most PIECE characters, cut where that changes no token if possible."""
    start = 0
    while len(text) - start > PIECE:
        border = BORDER.search(text, start + PIECE // 2, start + PIECE)
        end = border.start() if border else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


# ---- stories: the grammar of data/stories and the telling ----------------------------------------------
def read_grammar(path) -> dict:
    """Read a grammar (the header of its file explains the notation) as {rule: [(parts, word), ...]}.

    parts: tuples (text, variable, name, attribute), '' for none; word: {'': as written, attribute: value}.
    Raises Error, naming the rule, on bad notation, on what is empty or there twice, and on unknown names."""
    grammar, text = {}, Path(path).read_text(encoding='utf-8') + '\n'
    text = re.sub(r'^[ \t]*#.*\n', '', text, flags=re.M)
    if stray := RULE.sub('', text).strip():
        raise Error(f'{path}: expected `rule:` or an indented line, got {stray.splitlines()[0]!r}')
    for rule, head, sign, body in RULE.findall(text):
        names = [name.strip() for name in head.split(',') if name]
        try:
            if sign == ' =':                                            # a sum of lists
                words = [word for name in body.split('+') for _, word in grammar[name.strip()]]
            elif body.lstrip().startswith('- '):                        # texts of paragraphs
                texts = [re.split(r'\n\s*\n', text) for text in re.split(r'^[ \t]+- ', body, flags=re.M)[1:]]
                words = [{'': '\n'.join(' '.join(p.split()) for p in text if p.strip())} for text in texts]
            elif names and '=' not in head:                             # a table
                rows = [map(str.strip, row.split(',')) for row in body.strip().split('\n')]
                words = [dict(zip(['', *names], row, strict=True)) for row in rows]
            else:                                                       # a list
                words = [dict([('', w.strip()), *(n.split('=') for n in names)]) for w in body.split(',')]
        except (KeyError, ValueError) as e:
            raise Error(f'{path}: rule {rule} has an unknown list or a wrong number of attributes') from e
        texts = {word[''] for word in words}
        bad = any(PART.sub('', text) for text in texts) or not all(all(word.values()) for word in words)
        if bad or rule in grammar or len(texts) < len(words):
            raise Error(f'{path}: rule {rule} has broken braces or an empty place, or something stands twice')
        grammar[rule] = [(PART.findall(word['']), word) for word in words]
    used = [(rule, *part) for rule in grammar for parts, _ in grammar[rule] for part in parts if part[2]]
    variables, rules = {variable for _, _, variable, _, _ in used if variable}, grammar.keys()
    lists = rules - {rule for rule, *_ in used}                         # only words are remembered, not texts
    for rule, _, variable, name, _ in [*used, ('plot', '', '', 'plot', '')]:
        if variable in rules or name.lower() not in (lists if variable else rules | variables):
            wanted = 'a new name and a list of words' if variable else 'a rule, a list or a variable'
            raise Error(f'{path}: rule {rule}: {{{variable or name}}} needs {wanted}')
    return grammar


def tell_stories(grammar, n, seed):
    """Yield n times (text, nats): a story and -ln of its probability, summed over the draws.

    Story i depends on seed and i only, on every machine: Python keeps the sequence of Random.random().
    Raises Error where a variable is not drawn yet or has no such attribute, or where a list is used up."""
    def tell(rule):
        nonlocal nats
        told = {word[''] for word in memory.values()}
        options = [option for option in grammar[rule] if option[1][''] not in told]
        if not options:
            raise Error(f'stories: all words of the list {rule} are in use')
        nats += math.log(len(options))
        parts, word = options[int(draw() * len(options))]
        text = ''
        for before, variable, name, attribute in parts:
            key, value = name.lower(), ''
            if attribute in memory.get(key, {}):
                value = memory[key][attribute]
            elif key in grammar and not attribute:
                value, drawn = tell(key)
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
                end = len(rest) - len(separator)            # the block may end within a separator
                yield rest[:end], False
                rest, begins = rest[end:], False
        yield rest, True


def read_rows(rows):
    """The texts of rows, which are dicts; one without text is an empty document."""
    for row in rows:
        if text_column not in row:
            raise ValueError(f'no column {text_column}, but {", ".join(row) or "none"}; set --text_column')
        if not isinstance(row[text_column], str | None):
            kind = type(row[text_column]).__name__
            raise ValueError(f'column {text_column} holds {kind}, not text; set --text_column')
        yield row[text_column] or '', True


def read_jsonl(path):
    with open(path, 'rb') as f:
        for number, line in enumerate(iter(lambda: f.readline(1 << 26), b''), 1):
            if len(line) == 1 << 26:
                raise ValueError(f'line {number} is longer than {1 << 26} bytes')
            if line.strip():
                row = json.loads(line.decode('utf-8-sig', 'replace'))
                yield row if isinstance(row, dict) else {}


def read_parquet(path):
    from pyarrow import parquet
    for batch in parquet.ParquetFile(path).iter_batches(1000):
        yield from batch.to_pylist()


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
    pages = [[ftfy.fix_encoding(line).translate(table).strip() for line in page.split('\n')]
             for page in pages]

    def edges(page):                                        # {index: text, its digits ignored} of outer lines
        filled = [i for i, line in enumerate(page) if line]
        return {i: re.sub(r'\d+', '#', page[i]) for i in filled[:2] + filled[-2:]}

    heads = Counter(head for page in pages for head in set(edges(page).values()))
    often = {head for head, n in heads.items() if n > max(1, len(pages) / 3)}      # left and right may differ
    kept = [[line for i, line in enumerate(page) if edges(page).get(i) not in often] for page in pages]
    text = '\n'.join('\n'.join(page).strip() for page in kept)
    text = re.sub(r'(\w)-\n(\w)', lambda m: m[1] + m[2] if (m[1] + m[2]).islower() else m[0], text)

    lines = text.split('\n')
    widths = sorted(len(line) for line in lines if line) or [0]
    wide = 0.7 * widths[len(widths) * 3 // 4]
    text = lines[0]
    for last, line in zip(lines, lines[1:]):                # a short line is a heading, or ends its paragraph
        goes_on = last and line and (len(last) > wide or line[0].islower())
        text += (' ' if goes_on else '\n') + line
    return re.sub(r'\n{3,}', '\n\n', text).strip()


READERS = {'.txt': lambda path: read_text(path, separator), '.md': read_text, '.pdf': read_pdf,
           '.jsonl': lambda path: read_rows(read_jsonl(path)),
           '.parquet': lambda path: read_rows(read_parquet(path))}


def find_files(patterns: str) -> list[Path]:
    """The files with a reader that files, folders and globs name, in a fixed order."""
    found = []
    for pattern in filter(None, map(str.strip, patterns.split(','))):
        path = Path(pattern)
        if path.is_dir():
            paths = path.rglob('*')                         # follows no links to folders, which may circle
        else:
            root = Path(path.anchor)
            paths = [path] if path.exists() else root.glob(str(path.relative_to(root)))
        hits = sorted(path for path in paths if path.suffix.lower() in READERS and path.is_file())
        if not hits:
            raise Error(f'--input={pattern}: no {" ".join(READERS)} file there')
        found += hits
    if not found:
        raise Error(f'--input={patterns} names no files')
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
        try:
            batches = table.with_format('arrow').iter(1000)
            yield from read_rows(row for batch in batches for row in batch.to_pylist())
        except Exception as e:
            raise Error(f'dataset {place} cannot be read: {e}') from e

    try:
        splits = load_dataset(place, streaming=Path(place).exists())
    except Exception as e:
        raise Error(f'dataset {place} cannot be opened: {e}') from e
    if 'train' not in splits or splits['train'].info.builder_name == 'text':
        raise Error(f'dataset {place} has no split train, or holds text files, for which there is --input')
    val = next((key for key in ('validation', 'valid', 'val', 'dev', 'test') if key in splits), None)
    tables = {'val': splits[val], 'train': splits['train']} if val else {'': splits['train']}
    return {split: read(table) for split, table in tables.items()}, splits['train'].info.license


# ---- dividing and writing ------------------------------------------------------------------------------
def spool(readers, f, alphabet):
    """Write the texts of all documents of {split or '': reader} to f, their characters to the set alphabet.

    Returns arrays with an entry for each document: hash (of seed and text), end (offset in f), split (0 none,
    1 train, 2 val), entropy (nats, nan for unknown)."""
    from tqdm import tqdm
    hashes, document_ends, splits, entropies = array('Q'), array('q'), bytearray(), array('d')
    size = start = lost = 0
    for split, reader in readers.items():
        digest = None
        for text, ends, *nats in tqdm(reader, f'reading {split}', disable=None, leave=False):
            if ends and size == start and not text.strip():
                continue                                    # an empty document
            text = valid(text)
            raw = text.encode()
            size += f.write(raw)
            lost += text.count('\ufffd')
            if tokenizer == 'char':
                alphabet.update(text)
            digest = digest or blake2b(digest_size=8, key=str(seed).encode())
            digest.update(raw)
            if ends:
                hashes.append(int.from_bytes(digest.digest(), 'little'))
                document_ends.append(size)
                splits.append(['', 'train', 'val'].index(split))
                entropies.append(*nats or [math.nan])
                digest, start = None, size
    if lost:
        warn(f'{lost:,} characters of the text are U+FFFD: invalid UTF-8, or lone surrogates')
    return [np.array(values) for values in (hashes, document_ends, splits, entropies)]


def divide(f, hashes, ends, splits, nats):
    """Divide what was spooled: {'train': (spans, nats), 'val': ...}; spans (D, 2) are offsets in f.

    The first of equal documents stays. A single document of n characters is cut after
    int(n * (1 - val_fraction)) of them; others are divided by their hash, if they do not come divided."""
    kept = np.sort(np.unique(hashes, return_index=True)[1])
    spans = np.stack([np.append(0, ends)[:-1], ends], 1)[kept]
    hashes, splits, nats = hashes[kept], splits[kept], nats[kept]
    if splits.any():
        val = splits == 2
    elif len(kept) == 1:
        left = int(sum(len(text) for text, _ in pieces(f, spans)) * (1 - val_fraction))
        start, end = spans[0].tolist()
        middle = start
        for text, _ in pieces(f, spans):
            middle += len(text[:left].encode())
            left -= len(text[:left])
        spans, nats, val = np.array([[start, middle], [middle, end]]), nats.repeat(2), np.array([False, True])
    else:
        val = hashes / 2**64 < val_fraction
        if len(kept):                                       # each side has at least one
            val[hashes.argmin()], val[hashes.argmax()] = True, False
    sides = {'train': (spans[~val], nats[~val]), 'val': (spans[val], nats[val])}
    if not all((spans[:, 1] > spans[:, 0]).any() for spans, _ in sides.values()):
        raise Error('the source is empty, or too short to be divided into train and val')
    return sides


def pieces(f, spans):
    """Yield (text, whether its document ends) for spans of the spool, at most PIECE characters at once."""
    for start, end in spans:
        f.seek(int(start))
        decode, rest, left = codecs.getincrementaldecoder('utf-8')().decode, '', int(end - start)
        while left:
            raw = f.read(min(left, 1 << 20))
            left -= len(raw)
            *whole, rest = cut(rest + decode(raw))
            yield from ((text, False) for text in whole)
        yield rest, True


def encode_pieces(tok, texts):
    """Yield arrays of the ids of (text, whether its document ends), in order, encoded in threads."""
    eot = np.array([tok.eot], np.uint32)

    def encode(batch):
        parts = []
        for ids, (_, ends) in zip(tok.arrays([text for text, _ in batch]), batch, strict=True):
            parts += (ids, eot) if ends else (ids,)
        return np.concatenate(parts)

    batches = iter(lambda: list(islice(texts, 128)), [])
    with ThreadPoolExecutor(WORKERS) as pool:
        while group := list(islice(batches, 4 * WORKERS)):
            yield from pool.map(encode, group)


def write_dataset(folder, meta, tok, f, sides):
    """Write all files beside what is there; when every one is whole they take its place, meta.json last."""
    from tqdm import tqdm
    dtype = np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.uint32)
    meta |= {'tokenizer': tok.spec, 'vocab_size': tok.vocab_size, 'eot': tok.eot, 'dtype': dtype.name}
    with contextlib.ExitStack() as stack:                   # renames in reverse order
        meta_path = stack.enter_context(atomic(folder / 'meta.json'))
        for split, (spans, nats) in sides.items():
            path = stack.enter_context(atomic(folder / f'{split}.bin'))
            texts = tqdm(pieces(f, spans), f'tokenizing {split}', len(spans), disable=None, leave=False)
            with open(path, 'wb') as out:
                size = sum(out.write(ids.astype(dtype)) for ids in encode_pieces(tok, iter(texts)))
            meta[split] = {'tokens': size // dtype.itemsize, 'bytes': int((spans[:, 1] - spans[:, 0]).sum()),
                           'documents': len(spans), 'checksum': checksum(path),
                           'entropy': None if np.isnan(nats).any() else float(nats.sum())}
        if 'json' in tok.spec:
            path = stack.enter_context(atomic(folder / 'tokenizer.json'))
            path.write_text(tok.spec['json'], encoding='utf-8')
        meta['checksum'] = _checksum(meta)
        meta_path.write_text(json.dumps(meta), encoding='utf-8')
        (folder / 'meta.json').unlink(missing_ok=True)      # an old one never stands beside new bins


def _checksum(meta):
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    return f'{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}'


# ---- opening, for train.py and sample.py ---------------------------------------------------------------
def open_dataset(name: str, verify: bool = False):
    """(meta, train, val) of data/NAME; train and val are read-only memory maps of ids, shape (tokens,).

    Checksums and ids are verified up to 1 GB, above with verify=True. Raises Error on anything wrong."""
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
        counts = [meta[split][key] for split in ('train', 'val') for key in ('tokens', 'bytes', 'documents')]
        sane = all(type(n) is int and n > 0 for n in [V, meta['eot'] + 1, *counts]) and meta['eot'] < V
        sane = sane and all(0 <= (meta[split]['entropy'] or 0) < math.inf for split in ('train', 'val'))
        require(sane and V <= 1 << 8 * dtype.itemsize, 'has numbers in meta.json that cannot be')
        arrays = []
        for split in ('train', 'val'):
            path = folder / f'{split}.bin'
            require(path.stat().st_size == meta[split]['tokens'] * dtype.itemsize, f'has a cut {path.name}')
            arrays.append(np.memmap(path, dtype, 'r'))
        if verify or sum(ids.nbytes for ids in arrays) <= 10**9:
            for split, ids in zip(('train', 'val'), arrays, strict=True):
                require(checksum(ids.filename) == meta[split]['checksum'], f'has a damaged {split}.bin')
                require(ids.max() < V, f'has ids in {split}.bin that are not below its vocab_size of {V}')
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
        sides = divide(f, *documents)
        if tokenizer == 'bpe':
            spans = sides['train'][0]
            step = int((spans[:, 1] - spans[:, 0]).sum()) // SAMPLE + 1
            sample = (text for text, _ in islice(pieces(f, spans), 0, None, step))
            spec = train_bpe(sample, vocab_size or (2048 if meta['source'] == 'stories' else 4096))
        elif tokenizer == 'char':
            spec = {'kind': 'char', 'alphabet': ''.join(sorted(alphabet))}
        else:
            spec = {'kind': 'gpt2'} if tokenizer == 'gpt2' else read_tokenizer(tokenizer)
        write_dataset(folder, meta, Tokenizer.from_spec(spec), f, sides)
    train, val, entropy = meta['train'], meta['val'], meta['val']['entropy']
    dropped = len(documents[0]) - len(np.unique(documents[0]))
    print(f'documents  {train["documents"]:,} train, {val["documents"]:,} val, {dropped:,} dropped as equal')
    print(f'tokens     {train["tokens"]:,} train, {val["tokens"]:,} val, {val["bytes"] / val["tokens"]:.2f} '
          f'bytes per token, vocabulary {meta["vocab_size"]:,}')
    if entropy:
        print(f'floor      {entropy / val["documents"]:.2f} nats per story, {entropy / val["tokens"]:.4f} '
              f'per token, {entropy / val["bytes"] / math.log(2):.4f} bits per byte')
    print(f'{folder} made in {time.time() - start:.1f} s')
    if val['tokens'] < 1000:
        warn(f'only {val["tokens"]} tokens for validation: their loss will say little')


def main():
    logging.disable(logging.CRITICAL)                       # of the libraries: what matters they raise
    if not 0 < val_fraction < 1:
        raise Error(f'val_fraction={val_fraction} is not between 0 and 1')
    if vocab_size and not 257 <= vocab_size <= 1 << 24:
        raise Error(f'vocab_size={vocab_size}: a bpe has 257 tokens (all bytes and end-of-text) or more')
    place = 'roneneldan/TinyStories' if dataset == 'tinystories' else dataset
    first = re.split(r'/?[^/]*[*?[]', (input or dataset).split(',')[0].strip())[0]          # up to a glob
    target = Path(first).resolve().stem if input else Path(first).resolve().name
    target = name or target + f'_{tokenizer}' * (tokenizer in ('gpt2', 'char'))
    if target != Path(target).name or target in ('', '..'):
        raise Error(f'name={target} is not the name of a folder in data/')
    folder = Path('data', target)
    try:
        files = find_files(input) if input else [GRAMMAR] if place == 'stories' else Path(place).rglob('*')
        files = [path for path in [*sorted(files), *sorted(Path(tokenizer).glob('*.json'))] if path.is_file()]
        marks = [(path.name, checksum(path)) for path in files]
        same = {'knobs': {key: value for key, value in config.items() if key not in ('name', 'overwrite')},
                'fingerprint': blake2b(repr(marks).encode(), digest_size=8).hexdigest()}
        if (folder / 'meta.json').exists() and not overwrite:
            meta, *_ = open_dataset(target)
            if any(meta.get(key) != value for key, value in same.items()):
                raise Error(f'{folder} holds something else ({meta["command"]}); use another --name, '
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
            meta = {'format': FORMAT, 'source': input or place, 'licence': licence or None,
                    'command': ' '.join(['python', *sys.argv])}
            prepare(folder, meta | same, readers)
    except OSError as e:
        raise Error(f'{e.filename or folder}: {e.strerror or e}; what was there before is intact') from e
    print(f'next: python train.py --dataset={target}')


if __name__ == '__main__':
    main()
