"""The encoding of a text file: UTF-8, UTF-16, UTF-32 or Windows-1252."""
import codecs
import gzip
import io
import re

from lib.terminal import warn

BLOCK = 1 << 20                 # bytes or characters of a text file to read at once
BYTE_ORDER_MARKS = {            # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: 'utf-32', codecs.BOM_UTF32_BE: 'utf-32', codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}
ASCII = bytes(range(128))
# Bytes that are common in Western European Windows-1252 text and rarer in other encodings
SMALL = 'àâäáãåæçèéêëìíîïñòóôöõøœùúûüÿ'
ACCENTED = (SMALL + SMALL.upper() + 'ß').encode('cp1252')
SIGNS = '“”‘’„‚–—…•€£§°©®™«»¡¿·ªº²½\xa0'.encode('cp1252')
QUOTE_IN_WORD = rb'[a-zA-Z][\x82\x84\x91\x93-\x95][a-zA-Z]'
RARE = re.compile(rb'[^\x01-\x7f' + ACCENTED + SIGNS + b']|' + QUOTE_IN_WORD)


def open_text(path):
    """Open a text file, gzipped or not, in its encoding. Invalid bytes become U+FFFD."""
    file = gzip.open(path) if str(path).endswith('.gz') else open(path, 'rb')
    encoding = guess_encoding(file)
    file.seek(0)
    return io.TextIOWrapper(file, encoding, 'replace')


def blocks(file):
    """Yield the rest of an open file, BLOCK bytes or characters at a time."""
    block = file.read(BLOCK)
    while block:
        yield block
        block = file.read(BLOCK)


def guess_encoding(file) -> str:
    """The encoding of an open file: from its byte order mark, else UTF-16 or UTF-8 if most bytes
    fit, else Windows-1252 if they clearly do. Otherwise warns and returns UTF-8."""
    start = file.read(BLOCK)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    # Most characters of European text in UTF-16 have one zero byte, always on the same side.
    even, odd = start[::2].count(0), start[1::2].count(0)
    if even + odd > 0.35 * len(start) and min(even, odd) < 0.05 * (even + odd):
        return 'utf-16-le' if odd > even else 'utf-16-be'
    for encoding, fits in (('utf-8', is_utf8), ('cp1252', is_western)):
        file.seek(0)
        if fits(blocks(file)):
            return encoding
    warn(f'{file.name} is not UTF-8, and its encoding is unclear; is it text at all? Invalid bytes '
         'become U+FFFD: convert it to UTF-8, or remove it')
    return 'utf-8'


def is_utf8(blocks) -> bool:
    """Whether most non-ASCII bytes are valid UTF-8: a corrupted UTF-8 file still counts."""
    decode = codecs.getincrementaldecoder('utf-8')('ignore').decode
    not_ascii = invalid = 0
    for block in blocks:
        not_ascii += len(block.translate(None, ASCII))
        invalid += len(block) - len(decode(block).encode())
    return invalid <= not_ascii / 4


def is_western(blocks) -> bool:
    """Whether this is clearly Windows-1252, or its subset Latin-1: nothing rare, and few accented
    letters."""
    accented = letters = 0
    for block in blocks:
        if RARE.search(block):
            return False
        accented += len(block.translate(None, ASCII + SIGNS))
        letters += len(re.findall(rb'[a-zA-Z]', block))
    return accented <= 0.1 * letters
