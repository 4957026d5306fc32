"""Preparing text: tokenizers, readers, the split, the files written, and what happens to bad input."""
import importlib.util
import json
import math
import os
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Error
from config._files import checksum
from config._fit import fitting_knobs, next_command
from data.files import bits_per_byte, checksum_of_meta
from data.layout import Line, glued, text_of_pages
from data.pdf import mend_spaces, read_pdf_file
from data.readers import read_pdf, read_text
from data.stories.teller import read_grammar, tell_stories
from data.tokenizer import BORDER, Tokenizer, cut, read_tokenizer, train_bpe
from model import GPT, GPTConfig
from prepare import open_dataset, validation_text

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / 'shared/data'
PROSE = ['The cat sat on the mat. It wasn\'t a dog!', 'Ünïcode  and\n\nnew lines', 'numbers 12 4567 and 日本',
         'if x:\n        return  {\n\n\n}   # 8  spaces,  or\t\ttabs'] + [' ' * n + '.' for n in range(8)]
text = st.text(st.characters(exclude_categories=['Cs']), max_size=60)
parts = ['a', 'dog', ' ', '  ', '\n', '\r\n', '\t', '.', '\'s', '12', 'é', '日', '\u3000', '\xa0', '\x1c',
         '<|endoftext|>', '<|', '\'', '\u200b', '💡']
pieces_of_text = st.lists(st.sampled_from(parts), max_size=40).map(''.join)


@pytest.fixture(scope='session')
def tokenizers(tmp_path_factory):
    bpe = train_bpe(PROSE * 5 + [str(i) + ' a little girl named Lily' for i in range(50)], 320)
    folder = tmp_path_factory.mktemp('hf')
    (folder / 'tokenizer.json').write_text(bpe['json'], encoding='utf-8')
    (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': {'content': '<|endoftext|>'}}))
    char = {'kind': 'char', 'alphabet': ''.join(sorted(set(''.join(PROSE))))}
    specs = {'bpe': bpe, 'gpt2': {'kind': 'gpt2'}, 'hf': read_tokenizer(str(folder)), 'char': char}
    return {kind: Tokenizer(spec) for kind, spec in specs.items()} | {'folder': folder}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run prepare.py in an empty folder as from the command line; return (meta, train, val) of data/NAME."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['prepare.py', *args])
        runpy.run_path(str(ROOT / 'prepare.py'), run_name='__main__')
        run.out, run.err = capsys.readouterr()
        script, *command = shlex.split(run.out.strip().split('next: ')[-1])[1:]
        is_stories = not any(arg.startswith(('--input=', '--dataset=')) for arg in args)
        assert script == 'train.py' and (command[0] == 'config/papers.py') == (not is_stories)
        return open_dataset(next(arg for arg in command if '--dataset=' in arg).partition('=')[2])

    hook = sys.excepthook
    yield run
    sys.excepthook = hook


def documents(meta, *arrays):
    """The texts in arrays of ids, in order; asserts that each ends with end-of-text."""
    tok, found = Tokenizer(meta['tokenizer']), []
    for ids in arrays:
        ids = ids.tolist()
        assert ids[-1] == tok.eot
        start = 0
        while start < len(ids):
            end = ids.index(tok.eot, start)
            found.append(tok.decode(ids[start:end]))
            start = end + 1
    return found


def shell(*args, cwd, **kwargs):
    command = [sys.executable, str(ROOT / 'prepare.py'), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **kwargs)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8', 'surrogatepass'))
    return path


# ---- tokenizers
@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'hf'])
@given(text=st.one_of(text, pieces_of_text))
@settings(deadline=None, max_examples=150)
def test_any_text_round_trips_and_never_ends_itself(tokenizers, kind, text):
    tok = tokenizers[kind]
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.eot not in ids and all(0 <= i < tok.vocab_size for i in ids)


@given(st.lists(st.one_of(text, pieces_of_text), max_size=5))
@settings(deadline=None, max_examples=60)
def test_trained_bpe_is_the_tokenizer_json(tokenizers, texts):
    assert tokenizers['bpe'].encode_batch(texts) == tokenizers['hf'].encode_batch(texts)


@given(st.one_of(text, pieces_of_text))
@settings(deadline=None, max_examples=150)
def test_gpt2_is_gpt2(tokenizers, text):
    import tiktoken
    assert tokenizers['gpt2'].encode(text) == tiktoken.get_encoding('gpt2').encode_ordinary(text)


@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'hf'])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_cut_pieces_give_the_tokens_of_the_whole(tokenizers, kind, data):
    """Cut at every border there is, not only at those that a long text would be cut at."""
    text = data.draw(pieces_of_text)
    borders = [0, *(border.start() for border in BORDER.finditer(text)), len(text)]
    ids = [i for a, b in zip(borders, borders[1:]) for i in tokenizers[kind].encode(text[a:b])]
    assert ids == tokenizers[kind].encode(text)


def test_long_text_is_cut_without_a_trace(tokenizers, monkeypatch):
    long = ''.join(f'{i} little girls, and\n{"a dog" * (i % 3)}  \n\n it\'s' for i in range(300))
    for kind in ('bpe', 'gpt2'):
        monkeypatch.setattr('data.tokenizer.PIECE', 1 << 30)
        whole = tokenizers[kind].encode(long)
        monkeypatch.setattr('data.tokenizer.PIECE', 100)
        raw = long.encode()
        texts, ends = zip(*cut(raw, 0, len(raw)))
        assert max(map(len, texts)) <= 100 and ''.join(texts) == long
        assert ends == (False,) * (len(texts) - 1) + (True,)
        assert tokenizers[kind].encode(long) == whole


@pytest.mark.parametrize('text', [' ' * 1_500_000 + 'x', 'x' * 1_500_000, '\n' * 10**6 + 'x', '日' * 10**5])
def test_text_without_a_border(tokenizers, text):
    for kind in ('bpe', 'gpt2'):
        assert tokenizers[kind].decode(tokenizers[kind].encode(text)) == text


def test_special_ids_and_halves_of_characters(tokenizers):
    for kind in ('bpe', 'gpt2', 'hf', 'char'):
        tok = tokenizers[kind]
        assert tok.decode([tok.eot]) == '' and tok.decode([]) == '' and tok.encode('') == []
        assert isinstance(tok.decode(np.arange(tok.vocab_size)), str)
        again = Tokenizer(json.loads(json.dumps(tok.spec)))
        assert again.encode(PROSE[0]) == tok.encode(PROSE[0]) and again.vocab_size == tok.vocab_size
        assert all(type(i) is int for i in tok.encode(PROSE[1]))
    for kind in ('bpe', 'gpt2', 'hf'):
        assert tokenizers[kind].decode(tokenizers[kind].encode('é')[:1]) in ('\ufffd', 'é')
        assert tokenizers[kind].decode(tokenizers[kind].encode('𐍈')[:1]) == '\ufffd'
        assert tokenizers[kind].decode(tokenizers[kind].encode('a\ud800b \ud83d\ude00')) == 'a\ufffdb 😀'


def test_bpe_has_the_size_asked_for_and_end_of_text_last(tokenizers):
    tok = tokenizers['bpe']
    assert (tok.vocab_size, tok.eot) == (320, 319)
    assert Tokenizer(train_bpe(['ab'], 5000)).vocab_size == 257        # no pair occurs twice
    transformers = pytest.importorskip('transformers')
    auto = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizers['folder'] / 'tokenizer.json'))
    for text in PROSE:
        assert auto.encode(text) == tok.encode(text)
    assert auto.convert_tokens_to_ids('<|endoftext|>') == 319


def test_unknown_character_is_named(tokenizers):
    with pytest.raises(Error, match='☃.*2603'):
        tokenizers['char'].encode('The ☃')


@pytest.mark.parametrize('spec', [
    {'kind': 'none'}, {}, {'kind': 'bpe'}, {'kind': 'bpe', 'json': '{'}, {'kind': 'hf', 'json': '{}'}, None,
    {'kind': 'bpe', 'json': '{"model": {"vocab": {"ab": 1}}}'},
    {'kind': 'bpe', 'json': '{"model": {"vocab": {"ab": 0}}}'},
    {'kind': 'hf', 'json': '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', 'eot': 1},
    {'kind': 'char', 'alphabet': 3}, 7])
def test_damaged_spec(spec):
    with pytest.raises(Error):
        Tokenizer(spec)


def test_hf_tokenizer_that_truncates_pads_and_frames(tokenizers, tmp_path):
    """What a tokenizer.json does to sentences must not happen to documents."""
    import tokenizers as library
    tok = library.Tokenizer.from_file(str(tokenizers['folder'] / 'tokenizer.json'))
    tok.enable_truncation(4)
    tok.enable_padding(length=50)
    frame = library.processors.TemplateProcessing('$A <|endoftext|>', special_tokens=[('<|endoftext|>', 319)])
    tok.post_processor = frame
    tok.save(str(tmp_path / 'tokenizer.json'))
    spec = read_tokenizer(str(tmp_path))                # finds end-of-text without a config, too
    assert spec['eot'] == 319
    assert Tokenizer(spec).encode(PROSE[0]) == tokenizers['bpe'].encode(PROSE[0])


def test_gpt2_without_its_vocabulary(monkeypatch, tmp_path):
    import tiktoken
    monkeypatch.setattr(tiktoken.registry, 'ENCODINGS', {})
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    with pytest.raises(Error, match='TIKTOKEN_CACHE_DIR'):
        Tokenizer({'kind': 'gpt2'})


# ---- reading
def test_every_kind_of_file(run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    write(tmp_path / 'in/a.txt', 'first one\n<|endoftext|>\nsecond one\n\n<|endoftext|><|endoftext|>third\n')
    write(tmp_path / 'in/deep/b.md', '# A title\n<|endoftext|>\nis no border here')
    rows = ['{"x": 1, "text": "row two"}', '{"text": "row \\u00e9 \\ud83d\\ude00"}', '', '{"text": null}']
    write(tmp_path / 'in/deep/c.jsonl', '\n'.join(rows))
    table = pa.table({'x': [1, 2, 3], 'text': ['parquet 1', None, 'parquet 2']})
    pq.write_table(table, tmp_path / 'in/deep/d.parquet')
    write(tmp_path / 'in/ignored.csv', 'nothing')
    expected = sorted(['first one', 'second one', 'third\n', '# A title\n<|endoftext|>\nis no border here',
                       'row é 😀', 'row two', 'parquet 1', 'parquet 2'])
    dataset = run('--input=in')
    assert sorted(documents(*dataset)) == expected and '0 dropped' in run.out
    train, val = dataset[0]['train'], dataset[0]['val']
    assert train['documents'] + val['documents'] == len(expected)
    assert train['bytes'] + val['bytes'] == sum(len(text.encode()) for text in expected)
    assert dataset[0]['source'] == 'in' and train['entropy'] is None
    globs = run('--input=in/*.txt, in/**/*.[mjp]*,in/a.txt,in/deep/../a.txt', '--name=globs')
    assert sorted(documents(*globs)) == expected
    whole = run('--input=in/a.txt', '--separator=', '--name=whole')
    assert ''.join(documents(*whole)) == (tmp_path / 'in/a.txt').read_text()
    absolute = run(f'--input={tmp_path}/in/d*/*.jsonl', '--name=absolute')
    assert sorted(documents(*absolute)) == ['row two', 'row é 😀']


def test_separator_and_block_borders(tmp_path):
    """Documents come out the same wherever the blocks end in which a file is read."""
    for separator, gap in (('<|endoftext|>', '\n'), ('---', '')):
        for shift in range(len(separator) + 4):
            texts = ['x' * ((2 << 20) - shift) + '\n\ny', 'one\n\nmore', 'x\n' * (5 << 18) + 'x', 'end']
            path = write(tmp_path / 'a.txt', f'{gap}{separator}{gap}'.join(texts))
            found, rest = [], ''
            for text, ends, _ in read_text(path, 'text', separator):
                rest += text
                if ends:
                    found, rest = [*found, rest], ''
            assert found == texts


def test_end_of_text_inside_a_document(run, tmp_path):
    evil = 'He said <|endoftext|> and left'
    write(tmp_path / 'a.jsonl', '\n'.join(json.dumps({'text': f'{evil} {i}'}) for i in range(20)))
    for kind in ('bpe', 'gpt2', 'char'):
        meta, train, val = run('--input=a.jsonl', f'--tokenizer={kind}')
        assert sorted(documents(meta, train, val)) == sorted(f'{evil} {i}' for i in range(20))
        assert (train == meta['eot']).sum() == meta['train']['documents']


def test_duplicates_and_split(run, tmp_path):
    texts = [f'document {i % 700}' for i in range(1000)]
    write(tmp_path / 'a.jsonl', '\n'.join(json.dumps({'text': text}) for text in texts))
    meta, train, val = run('--input=a.jsonl', '--val_fraction=0.1')
    assert '300 dropped' in run.out and 'held out' not in run.err       # as much as was asked for
    assert documents(meta, train) + documents(meta, val) != texts[:700]
    assert sorted(documents(meta, train, val)) == sorted(texts[:700])
    assert 40 < meta['val']['documents'] < 100
    order = [texts.index(text) for text in documents(meta, train)]
    assert order == sorted(order)
    # the split is a property of seed and text, not of the company a document is in
    write(tmp_path / 'b.jsonl', '\n'.join(json.dumps({'text': text}) for text in texts[100:600]))
    fewer = run('--input=b.jsonl')
    assert set(documents(fewer[0], fewer[2])) <= set(documents(meta, val))
    other = run('--input=a.jsonl', '--val_fraction=0.1', '--seed=2', '--name=other')
    assert documents(other[0], other[2]) != documents(meta, val)


def test_a_vocabulary_is_learned_from_the_first_piece_on(run, tmp_path):
    write(tmp_path / 'a.txt', 'abab' * 100)                     # there is no second one
    assert run('--input=a.txt')[0]['vocab_size'] > 257
    assert run('--input=a.txt', '--vocab_size=257', '--name=bytes')[0]['vocab_size'] == 257     # the fewest


@pytest.mark.parametrize('n', [2, 3, 5])
def test_few_documents_leave_one_for_each_side(run, tmp_path, n):
    for seed in range(4):
        write(tmp_path / 'a.jsonl', '\n'.join(json.dumps({'text': f'only document {i}'}) for i in range(n)))
        meta, train, val = run('--input=a.jsonl', f'--seed={seed}', f'--name=n{seed}', '--val_fraction=0.01')
        assert meta['val']['documents'] == 1 and len(documents(meta, train, val)) == n
        assert f'{1 / n:.0%} of the text is held out' in run.err


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.9])
def test_a_single_document_is_cut_at_its_tail(run, tmp_path, fraction):
    text = ''.join(f'Zeile {i} äöü日💡\n' for i in range(7000))
    write(tmp_path / 'a.txt', text)
    meta, train, val = run('--input=a.txt', f'--val_fraction={fraction}', '--tokenizer=char')
    n = int(len(text) * (1 - fraction))
    assert documents(meta, train) == [text[:n]] and documents(meta, val) == [text[n:]]
    assert len(train) == n + 1 and meta['val']['bytes'] == len(text[n:].encode())


def test_equal_documents_are_one_which_is_cut(run, tmp_path):
    text = ''.join(f'line {i} äöü\n' for i in range(2000))
    write(tmp_path / 'a.jsonl', '\n'.join([json.dumps({'text': text})] * 3))
    meta, train, val = run('--input=a.jsonl', '--val_fraction=0.25')
    n = int(len(text) * 0.75)
    assert documents(meta, train) == [text[:n]] and documents(meta, val) == [text[n:]]
    assert '1 train, 1 val, 2 dropped' in run.out


def test_of_a_part_of_the_validation_split_its_own_bytes_count(run, tmp_path):
    write(tmp_path / 'a.jsonl', '\n'.join(json.dumps({'text': f'{i} äöü日💡'}) for i in range(40)))
    meta, train, val = run('--input=a.jsonl', '--tokenizer=char', '--val_fraction=0.2')
    meta['val']['entropy'] = 5.0
    characters = [c for text in documents(meta, val) for c in (*text, '')]          # '' for end-of-text
    for n in (1, 30, len(val) - 2):
        ids, size, entropy = validation_text(meta, val, Tokenizer(meta['tokenizer']), n)
        assert ids.tolist() == val[:n].tolist() and entropy is None
        assert size == len(''.join(characters[:n]).encode()) < meta['val']['bytes']
        assert bits_per_byte(3 * math.log(2) * size, size) == pytest.approx(3)
    for n in (0, len(val), 10**9):
        ids, *rest = validation_text(meta, val, Tokenizer(meta['tokenizer']), n)
        assert ids.tolist() == val.tolist() and rest == [meta['val']['bytes'], 5.0]


@pytest.mark.skipif(not DATA.exists(), reason='needs ../shared/data')
def test_tinyshakespeare(run):
    text = (DATA / 'tinyshakespeare.txt').read_text()
    for kind in ('char', 'gpt2', 'bpe'):
        knobs = f'--tokenizer={kind}', '--val_fraction=0.1'
        meta, train, val = run(f'--input={DATA}/tinyshakespeare.txt', *knobs)
        assert documents(meta, train) == [text[:1003854]] and documents(meta, val) == [text[1003854:]]
    tok = Tokenizer(meta['tokenizer'])
    assert (meta['vocab_size'], train.dtype) == (4096, np.uint16)
    assert train[:-1].tolist() == tok.encode(text[:1003854])


@pytest.mark.skipif(not DATA.exists(), reason='needs ../shared/data')
def test_dataset_folder_keeps_its_split(run):
    import pyarrow.parquet as pq
    meta, train, val = run(f'--dataset={DATA}/tinystories', '--name=tinystories_sample')
    for split, ids in (('train', train), ('validation', val)):
        path = next((DATA / 'tinystories/data').glob(f'{split}*'))
        texts = pq.read_table(path)['text'].to_pylist()
        assert documents(meta, ids) == list(dict.fromkeys(texts))
    assert '--dataset=tinystories_sample ' in run.out


def test_dataset_folder(run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    (tmp_path / 'set/data').mkdir(parents=True)
    for split, texts in (('train', ['a b', 'in both', 'c d', 'c d']), ('test', ['in both', 'e f'])):
        table = pa.table({'story': texts, 'n': list(range(len(texts)))})
        pq.write_table(table, tmp_path / f'set/data/{split}-0.parquet')
    meta, train, val = run('--dataset=set', '--text_column=story')
    assert documents(meta, val) == ['in both', 'e f']
    assert documents(meta, train) == ['a b', 'c d']             # what stands in both is kept for validation
    with pytest.raises(Error, match='story, n'):
        run('--dataset=set', '--name=x')
    with pytest.raises(Error, match='int'):
        run('--dataset=set', '--name=x', '--text_column=n')
    run('--dataset=set', '--text_column=story')
    assert 'nothing to do' in run.out
    pq.write_table(table.slice(1), tmp_path / 'set/data/test-0.parquet')
    with pytest.raises(Error, match='overwrite'):
        run('--dataset=set', '--text_column=story')


@pytest.mark.parametrize('name, others', [
    ('validation', 'valid val dev test'), ('valid', 'val dev test'), ('val', 'dev test'), ('dev', 'test'),
    ('test', '')])
def test_the_held_out_split_of_a_dataset_may_have_any_of_these_names(run, tmp_path, name, others):
    splits = ['train', name, *others.split()]
    files = ''.join(f'  - split: {split}\n    path: {split}.jsonl\n' for split in splits)
    write(tmp_path / 'set/README.md', f'---\nconfigs:\n- config_name: all\n  data_files:\n{files}---\n')
    for split in splits:
        write(tmp_path / f'set/{split}.jsonl', json.dumps({'text': f'of {split}'}))
    meta, train, val = run('--dataset=set')
    assert (documents(meta, train), documents(meta, val)) == (['of train'], [f'of {name}'])


def test_stories_have_their_floor(run):
    meta, train, val = run('--num_stories=300')
    assert meta['vocab_size'] <= 2048 and meta['source'] == 'stories'
    told = list(tell_stories(read_grammar(), 300, 1337))
    nats = dict(told)
    for split, ids in (('train', train), ('val', val)):
        texts = documents(meta, ids)
        assert texts == [text for text, _ in told if text in set(texts)]
        assert meta[split]['entropy'] == pytest.approx(sum(nats[text] for text in texts), rel=1e-12)


def test_broken_text_is_mended_and_counted(run, tmp_path):
    write(tmp_path / 'a.txt', b'\xef\xbb\xbfgood\r\nline \x00 bad \xff\xfe\n<|endoftext|>two')
    write(tmp_path / 'b.jsonl', '{"text": "lone \\ud800 here"}')
    texts = sorted(documents(*run('--input=a.txt,b.jsonl')))
    assert texts == ['good\nline \x00 bad \ufffd\ufffd', 'lone \ufffd here', 'two']
    assert sum('U+FFFD' in line for line in run.err.splitlines()) == 1 and '3 char' in run.err
    assert ''.join(documents(*run('--input=b.jsonl', '--tokenizer=char'))) == 'lone \ufffd here'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'latin-1', 'cp1252'])
def test_encodings_of_text(tmp_path, encoding, capsys):
    text = 'Der Müller aß heute Äpfel im Café nebenan.\nEl niño «está» aquí con todos los otros, ¿no? ' + 'and so on ' * 4
    text += '' if encoding == 'latin-1' else '“So—it’s 5 €…” '
    path = write(tmp_path / 'a.txt', (text * 3 + '\nend').encode(encoding))
    assert ''.join(piece.text for piece in read_text(path, 'text', '')) == text * 3 + '\nend'
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('encoding, text', [
    ('koi8-r', 'Жили-были старик со старухой у самого синего моря. '), ('cp850', 'Der Müller aß Äpfel. '), ('cp850', 'Der gelbe Käse liegt dort. '),
    ('cp1250', 'Příliš žluťoučký kůň úpěl ďábelské ódy. '), ('iso-8859-2', 'Zażółć gęślą jaźń, proszę. '),
    ('iso-8859-7', 'Στην αρχή ήταν ο λόγος. '), ('cp1254', 'Işık ılık süt içti, ağaç. '),
    ('shift-jis', 'むかしむかし、おじいさんが'), ('mac-roman', 'Le café est fermé, où aller à Noël? '), ('cp1252', 'a line that is long enough \0é')])
def test_an_encoding_that_is_not_clear_is_named(run, tmp_path, encoding, text):
    write(tmp_path / 'bad.txt', f'{text * 30}<|endoftext|>two'.encode(encoding))
    assert 'two' in documents(*run('--input=bad.txt'))
    (named,) = [line for line in run.err.splitlines() if 'bad.txt' in line]
    assert 'UTF-8' in named and 'U+FFFD' in run.err


def test_damaged_utf_8_stays_utf_8(tmp_path, capsys):
    path = write(tmp_path / 'a.txt', 'Müller, é, ü and à '.encode() + b'\xfc \xe9 end')
    assert ''.join(piece.text for piece in read_text(path, '', '')) == 'Müller, é, ü and à \ufffd \ufffd end'
    long = write(tmp_path / 'b.txt', b'x' * 3_000_000 + 'é'.encode('cp1252'))       # known by its last byte alone
    assert ''.join(piece.text for piece in read_text(long, '', '')).endswith('xé')
    split = write(tmp_path / 'c.txt', ('x' * ((1 << 20) - 1) + 'é').encode())       # between two blocks
    assert ''.join(piece.text for piece in read_text(split, '', '')).endswith('xé')
    assert capsys.readouterr().err == ''


def test_what_a_folder_holds_of_other_kinds_is_counted(run, tmp_path):
    write(tmp_path / 'in/a.txt', 'one<|endoftext|>two')
    for name in ('a.html', 'b.HTML', 'deep/c.docx', 'LICENSE', '.DS_Store', '.git/config', 'deep/.x/y.png'):
        write(tmp_path / 'in' / name, 'x')
    run('--input=in')
    (line,) = [line for line in run.out.splitlines() if line.startswith('left out')]
    assert line.split(maxsplit=2)[2] == '2 .html, 1 .docx, 1 without a suffix'
    run('--input=in/a.txt,in/*.txt', '--name=files')
    assert 'left out' not in run.out


def test_circles_of_links_end(run, tmp_path):
    write(tmp_path / 'in/a.txt', 'one<|endoftext|>two')
    (tmp_path / 'in/loop').symlink_to(tmp_path / 'in')
    (tmp_path / 'in/loop2').symlink_to(tmp_path / 'in')
    (tmp_path / 'in/self.txt').symlink_to(tmp_path / 'in/self.txt')
    assert sorted(documents(*run('--input=in'))) == ['one', 'two']
    assert sorted(documents(*run('--input=in/**/*.txt', '--name=glob'))) == ['one', 'two']


# ---- PDF
def pdf(path, pages, encrypt=None):
    """A PDF with pages of [(x, y, line)], or of lines below each other."""
    from reportlab.pdfgen.canvas import Canvas
    canvas = Canvas(str(path), encrypt=encrypt)
    for page in pages:
        for i, line in enumerate(page):
            canvas.drawString(*(line if isinstance(line, tuple) else (72, 760 - 14 * i, line)))
        canvas.showPage()
    canvas.save()
    return path


def test_pdf_is_read_as_running_text(run, tmp_path):
    from reportlab.lib.utils import simpleSplit
    words = 'the small cat sees a bird over an old wall near some trees'.split()
    bodies = [simpleSplit('ple ' * (page > 0) + ' '.join(random.Random(page).choices(words, k=99)), 'Helvetica', 12, 330)
              for page in range(5)]
    ends = ['small exam-', 'trees exam-', 'other exam-', 'birds exam-', 'brown exam-']
    pages = [['A Journal of Cats', *body[:5], ends[i], f'1{i}'] for i, body in enumerate(bodies)]
    pdf(tmp_path / 'a.pdf', pages)
    pdf(tmp_path / 'b.pdf', [['Another paper with plain text.', 'It goes on here.']])
    texts = documents(*run('--input=a.pdf,b.pdf'))
    cats = next(text for text in texts if 'cat' in text)
    assert cats.count('example') == 4 and cats.count('exam-') == 1 and cats.endswith('exam-')
    assert not any(unwanted in cats for unwanted in ('Journal', '13', '\n'))
    assert ' '.join(bodies[2][1:5]) in cats
    assert 'Another paper with plain text.' in next(text for text in texts if 'Another' in text)


def test_pdf_columns_stay_apart(tmp_path):
    left = [(72, 700 - 14 * i, f'left column line {i} of the text') for i in range(5)]
    right = [(330, 700 - 14 * i, f'right column line {i} of it') for i in range(5)]
    (text, ends, _), = read_pdf(pdf(tmp_path / 'a.pdf', [left + right]), 'text', '')
    assert ends and text.index('left column line 4') < text.index('right column line 0')


def page(*lines, top=700, left=72, size=10, code=False):
    """Lines of a page, one below the other. Letters are as wide as half their height; '' is a gap."""
    return [Line(text, left, left + len(text) * size / 2, top - 1.2 * size * i, size,
                 len(text.split()[0]) * size / 2, code) for i, text in enumerate(lines) if text]


def text_of(*pages):
    return text_of_pages([page(*lines) for lines in pages])


def test_letters_of_a_pdf_are_repaired():
    assert text_of(['The eﬃcient ﬁre oﬀ\x07 the ﬂoor']) == 'The efficient fire off the floor'
    assert text_of(['itâ€™s a â€œtestâ€\x9d of cafÃ© “kept” ½ … ™ ²']) == 'it’s a “test” of café “kept” ½ … ™ ²'
    assert text_of(['M¨oller, Garc´ıa, Fran¸cois, ˇCech, `code` and x´2']) == 'Möller, García, François, Čech, `code` and x´2'
    assert text_of(['cafe\u0301 \uf0b7 \uf8f4and\xadso']) == 'café • and so'


@pytest.mark.parametrize('indent, between', [(0, ' '), (2, ' '), (10, '\n')])
def test_a_line_that_is_indented_by_more_than_half_a_letter_begins_a_paragraph(indent, between):
    first, second = 'the first line is as full as it can be, it', 'goes on in the second line, it seems to be'
    assert text_of_pages([[*page(first), *page(second, top=688, left=72 + indent)]]) == first + between + second


def test_words_of_a_pdf_are_whole():
    def divided(a, b, *more):
        return text_of([f'{a}\ufffe', b, '', *more]).split('\n')[0]

    assert divided('a line that breaks a long', 'term word') == 'a line that breaks a longterm word'
    assert divided('breaks a long', 'term word', 'the long-term plan') == 'breaks a long-term word'
    assert divided('this is for Jean', 'Paul') == 'this is for Jean-Paul'
    assert divided('it is US', 'based') == 'it is US-based' and divided('Impor', 'tant') == 'Important'
    assert divided('the year 19', '45 was') == 'the year 19-45 was'
    assert text_of(['むかしむかし、おじいさ', 'んがいました。']) == 'むかしむかし、おじいさんがいました。'
    assert text_of(['the path /usr/share/doc/', 'package_of_all and foo_', 'bar']) == 'the path /usr/share/doc/package_of_all and foo_bar'


def test_paragraphs_of_a_pdf():
    body = ['The first paragraph runs over the whole line', 'Anna as one more of the same length, then', 'ends.',
            'Another begins here and is as long again as', 'the others are.', '', '', 'Last.']
    assert text_of(body).split('\n') == [
        'The first paragraph runs over the whole line Anna as one more of the same length, then ends.',
        'Another begins here and is as long again as the others are.', '', 'Last.']
    long = 'this line is as long as lines of the page are'
    assert text_of(['• ' + long, 'which goes on', '• a short item', '2. another one']).split('\n') == [
        f'• {long} which goes on', '• a short item', '2. another one']
    assert text_of([long, long], ['and goes on there.'], ['Not here', '']) == f'{long} {long} and goes on there.\n\nNot here'
    indented = page(long, long) + page(long, top=676, left=90) + page(long, top=664)
    assert text_of_pages([indented]) == f'{long} {long}\n{long} {long}'
    assert text_of([long, long, f'{long}\ufffe', '', '', 'word']) == f'{long} {long} {long}-\n\nword'
    assert text_of_pages([page(long), page('a footnote', size=7)]) == f'{long}\n\na footnote'
    assert text_of(['short one', 'of two', '', long]) == f'short one\nof two\n\n{long}'
    heading = page('A heading of its own', top=720, size=14) + page(long, 'and more')
    assert text_of_pages([heading]) == f'A heading of its own\n\n{long} and more'


def test_tables_and_code_of_a_pdf_keep_their_lines():
    rows = ['bin Essential binaries', 'lib Essential shared libraries and kernel modules', 'media Where media go',
            'opt Add-on application software', 'run Data of running processes']
    assert text_of(rows) == '\n'.join(rows)
    left, right = page('one', 'two', 'three'), page('1.5', '12.5', '3', left=200)
    cells = [cell for row in zip(left, right) for cell in row]
    assert text_of_pages([cells]) == 'one 1.5\ntwo 12.5\nthree 3'
    square = page('i') + [Line('2', 77, 80, 704, 7, 3)] + page('. Then', left=80)
    assert text_of_pages([square]) == 'i2. Then'
    code = page('def f():', code=True) + page('return 123', 'x = 1', top=688, left=92, code=True)
    assert text_of_pages([code]) == 'def f():\n    return 123\n    x = 1'


def test_contents_of_a_pdf_have_no_leaders():
    contents = ['1 Cats . . . . . . . . . . . . . . . . . 7', '1.1 Of them............................12',
                '2 Their friends · · · · · · · · · · · xi', 'Index ............ iv']
    assert text_of(contents) == '1 Cats\n1.1 Of them\n2 Their friends\nIndex'
    assert text_of(['he said ... and went']) == 'he said ... and went'


def test_running_heads_of_a_pdf_are_gone():
    pages = [[f'{"Left" if i % 2 else "Right"} head {i}', 'A second line', f'Number {"abcdefghij"[i]} is here', 'and on',
              f'for {"abcdefghij"[i]}', f'Page {i} of 10'] for i in range(10)]
    text = text_of(*pages)
    assert not re.search('head|second|Page', text) and text.count('is here and on\nfor') == 10
    names = ['Cats', 'Dogs', 'Mice', 'Hens', 'Cows', 'Bees']
    chapters = [[f'Chapter {2 * i}: {name} {i + 5}', '', f'{name} are here', f'and {name} there', '', ('i', 'iv', 'ix', 'xii', 'l', 'c')[i]] for i, name in enumerate(names)]
    assert text_of(*chapters) == '\n\n'.join(f'{name} are here and {name} there' for name in names)
    assert text_of([]) == text_of_pages([]) == ''


def test_spaces_that_are_only_gaps_are_found():
    """groff places words without spaces, and has some spaces under the letters."""
    def mended(text, gaps):
        """The text, its letters 5 wide and 10 high, with these gaps after its letters, else none."""
        boxes, left = [], 0
        for i in range(len(text)):
            boxes.append((left, 0, left + 5, 10))
            left += 5 + gaps.get(i, 0)
        return mend_spaces(text, boxes)

    assert mended('ofwords.Then', {1: 2.5, 7: 3}) == 'of words. Then'
    assert mended('nev er', {3: -5}) == 'never' and mended('a jar', {1: -2}) == 'a jar'
    assert mended('letter', {1: 1}) == 'letter' and mended('x=1', {0: 3, 1: 3}) == 'x=1'


def test_a_pdf_without_spaces_is_named_and_kept(run, tmp_path):
    glued_line = 'TheDebiansystemismaintainedanddistributedasacollection'
    assert glued(glued_line) == 1 and glued('a short text') == glued('') == glued('日本語' * 20) == 0
    pdf(tmp_path / 'a.pdf', [[glued_line, 'and others']])
    pdf(tmp_path / 'b.pdf', [['A good paper.']])
    assert any(glued_line in text for text in documents(*run('--input=a.pdf,b.pdf')))
    (warning,) = [line for line in run.err.splitlines() if '.pdf' in line]
    assert 'a.pdf' in warning and '83' in warning and '%' in warning


def inflating(path, part: bytes, times: int, pages=1):
    """A PDF of pages that share one content stream, which is a part many times."""
    deflate = zlib.compressobj(9)
    data = b''.join(deflate.compress(part) for _ in range(times)) + deflate.flush()
    kids = b' '.join(b'%d 0 R' % (i + 5) for i in range(pages))
    objects = [b'<</Type/Catalog/Pages 2 0 R>>', b'<</Type/Pages/Kids[%s]/Count %d>>' % (kids, pages),
               b'<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>',
               b'<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream' % (len(data), data)]
    objects += [b'<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R'
                b'/Resources<</Font<</F 3 0 R>>>>>>'] * pages
    body = b'%PDF-1.4\n' + b''.join(b'%d 0 obj\n%s\nendobj\n' % item for item in enumerate(objects, 1))
    path.write_bytes(body + b'trailer<</Size %d/Root 1 0 R>>\n%%%%EOF\n' % (len(objects) + 1))
    return path


def test_a_pdf_that_inflates_costs_its_process_only(tmp_path, monkeypatch):
    text = b'BT /F 12 Tf 72 700 Td (Hello) Tj ET '
    assert read_pdf_file(inflating(tmp_path / 'good.pdf', text, 1)) == 'Hello'
    monkeypatch.setattr('data.pdf.SECONDS', 2)
    with pytest.raises(ValueError, match='more than 2 s'):
        read_pdf_file(inflating(tmp_path / 'slow.pdf', b'0 0 m ' * 100_000, 100, pages=100))


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere memory cannot be limited')
def test_a_pdf_is_read_in_limited_memory(tmp_path):
    bomb = inflating(tmp_path / 'bomb.pdf', bytes(1 << 20), 3000)
    with pytest.raises(ValueError, match='memory'):
        read_pdf_file(bomb)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1.1 * (1 << 20)


def test_without_pypdfium2_a_pdf_is_an_error_and_the_rest_works(run, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *rest: None if name == 'pypdfium2' else find_spec(name, *rest))
    pdf(tmp_path / 'a.pdf', [['A good paper.']])
    write(tmp_path / 'b.txt', 'one<|endoftext|>two')
    with pytest.raises(Error, match='a.pdf.*pip install pypdfium2'):
        run('--input=a.pdf,b.txt', '--name=both')
    assert sorted(documents(*run('--input=b.txt'))) == ['one', 'two']


def test_bad_pdfs_are_named_and_the_rest_is_kept(run, tmp_path):
    pdf(tmp_path / 'good.pdf', [['A good paper.']])
    pdf(tmp_path / 'good2.pdf', [['A second good paper.']])
    pdf(tmp_path / 'scan.pdf', [[], []])
    pdf(tmp_path / 'locked.pdf', [['secret']], encrypt='password')
    write(tmp_path / 'broken.pdf', (tmp_path / 'good.pdf').read_bytes()[:300])
    write(tmp_path / 'empty.pdf', b'')
    write(tmp_path / 'noise.pdf', b'%PDF-1.4\n' + np.random.default_rng(0).bytes(5000))
    dataset = run('--input=*.pdf', '--name=pdfs')
    assert sorted(documents(*dataset)) == ['A good paper.', 'A second good paper.']
    for name in ('scan', 'locked', 'broken', 'empty', 'noise'):
        assert sum(f'{name}.pdf' in line for line in run.err.splitlines()) == 1


# ---- what is written
def test_preparing_again(run, tmp_path):
    path = write(tmp_path / 'a.txt', 'one<|endoftext|>two<|endoftext|>three')
    run('--input=a.txt')
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / 'data/a').iterdir()}
    os.utime(path, (1, 1))
    run('--input=a.txt')                                                # the same text: nothing is written
    for different in (['--input=a.txt', '--seed=3'], ['--input=a.txt', '--separator=x'], ['--name=a']):
        with pytest.raises(Error, match='overwrite'):
            run(*different)
    write(path, 'one<|endoftext|>two<|endoftext|>four')
    with pytest.raises(Error, match='overwrite'):
        run('--input=a.txt')
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / 'data/a').iterdir()} == before
    assert 'four' in documents(*run('--input=a.txt', '--overwrite=True'))
    assert sorted(os.listdir('data/a')) == ['.lock', 'meta.json', 'tokenizer.json', 'train.bin', 'val.bin']
    run('--input=a.txt', '--tokenizer=char', '--name=a', '--overwrite=True')
    assert sorted(os.listdir('data/a')) == ['.lock', 'meta.json', 'train.bin', 'val.bin']
    assert os.listdir(tmp_path / 'data') == ['a']


def test_a_separator_at_the_border_of_a_block_takes_its_newlines_along(tmp_path):
    path, border = tmp_path / 'a.txt', 2 << 20
    for size in range(border - 20, border + 3):
        write(path, 'x' * size + '\n\n<|endoftext|>\n\n' + 'y' * border)
        told = ''.join(text + '|' * end for text, end, _ in read_text(path, 'text', '<|endoftext|>'))
        assert told == 'x' * size + '|' + 'y' * border + '|'


def test_two_at_once_do_not_mix_their_files(run, tmp_path):
    (tmp_path / 'data/stories').mkdir(parents=True)
    hold = 'from config._files import *; held = acquire_lock(Path("data/stories/.lock")); print(); input()'
    other = subprocess.Popen([sys.executable, '-c', hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=os.environ | {'PYTHONPATH': str(ROOT)})
    other.stdout.readline()
    with pytest.raises(Error, match='in use by another run'):
        run('--num_stories=20')
    other.communicate(b'\n')
    run('--num_stories=20')


def test_a_name_may_have_dots_and_a_command_blanks(run, tmp_path):
    for folder in ('my texts.v1', 'my texts.v2'):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / 'a.txt', f'one {folder}<|endoftext|>two<|endoftext|>three')
        meta, *_ = run(f'--input={folder}')
        assert Path('data', folder).is_dir()
        assert shlex.split(meta['command'])[2:] == [f'--input={folder}']


def test_of_a_story_cut_in_two_no_entropy_is_known(run):
    meta, *_ = run('--num_stories=1')
    assert meta['train']['entropy'] is meta['val']['entropy'] is None


def test_a_tokenizer_whose_unknown_is_its_end_of_text_is_refused(run, tmp_path):
    import tokenizers
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'</s>': 0, 'one': 1}, unk_token='</s>'))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / 'tokenizer.json'))
    write(tmp_path / 'a.txt', 'one two<|endoftext|>two one')
    with pytest.raises(Error, match='ordinary text as end-of-text'):
        run('--input=a.txt', f'--tokenizer={tmp_path}')


def test_the_same_twice_gives_the_same_bytes(run, tmp_path):
    for name in 'ab':
        run('--num_stories=500', f'--name={name}')
    for file in ('train.bin', 'val.bin', 'tokenizer.json'):
        assert (tmp_path / 'data/a' / file).read_bytes() == (tmp_path / 'data/b' / file).read_bytes()


@pytest.fixture
def small(run, tmp_path):
    write(tmp_path / 'a.jsonl', '\n'.join(json.dumps({'text': f'some text {i}'}) for i in range(50)))
    run('--input=a.jsonl', '--tokenizer=gpt2')
    return tmp_path / 'data/a_gpt2'


def rewrite(folder, change):
    """Change meta.json and make its checksum right again, as a hostile hand would."""
    meta = json.loads((folder / 'meta.json').read_text())
    change(meta)
    meta['checksum'] = checksum_of_meta(meta)
    (folder / 'meta.json').write_text(json.dumps(meta))


def test_flipped_bits_cut_and_swapped_files(small):
    rng = np.random.default_rng(0)
    for name in ('meta.json', 'train.bin', 'val.bin'):
        whole = (small / name).read_bytes()
        for i in range(40):
            data = bytearray(whole)
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            data = data if i < 30 else data[:rng.integers(len(data))]
            (small / name).write_bytes(data)
            with pytest.raises(Error, match='prepare.py .* --overwrite=True'):
                open_dataset('a_gpt2')
        (small / name).write_bytes(whole)
    open_dataset('a_gpt2')
    os.rename(small / 'train.bin', small / 'x')
    os.rename(small / 'val.bin', small / 'train.bin')
    os.rename(small / 'x', small / 'val.bin')
    with pytest.raises(Error):
        open_dataset('a_gpt2')


@pytest.mark.parametrize('keys, value', [
    (['vocab_size'], 10**400), (['vocab_size'], -1), (['vocab_size'], True), (['vocab_size'], 10),
    (['vocab_size'], '50257'), (['eot'], 50257), (['eot'], -1), (['dtype'], 'float64'), (['dtype'], [1]),
    (['train'], None), (['train', 'tokens'], 10**30), (['val', 'tokens'], 0), (['val', 'documents'], -5),
    (['val', 'bytes'], 1.5), (['val', 'entropy'], float('nan')), (['val', 'entropy'], -1),
    (['val', 'entropy'], math.inf), (['val', 'entropy'], [1]), (['format'], 99), (['command'], None)])
def test_absurd_numbers(small, keys, value):
    def change(meta):
        for key in keys[:-1]:
            meta = meta[key]
        meta[keys[-1]] = value
    rewrite(small, change)
    with pytest.raises(Error):
        open_dataset('a_gpt2')


def test_ids_outside_the_vocabulary(small):
    ids = np.fromfile(small / 'val.bin', np.uint16)
    ids[3] = 50257
    ids.tofile(small / 'val.bin')
    rewrite(small, lambda meta: meta['val'].update(checksum=checksum(small / 'val.bin')))
    with pytest.raises(Error, match='val.bin.*50257'):
        open_dataset('a_gpt2')


@pytest.mark.parametrize('content', ['', '[]', '{}', '[' * 10**5, '{"format": 1}', b'\xff', '1' * 9**5])
def test_meta_that_is_none(small, content):
    write(small / 'meta.json', content)
    with pytest.raises(Error, match='--tokenizer=gpt2 --overwrite=True'):
        open_dataset('a_gpt2')


def test_half_written_dataset_names_its_command(small):
    (small / 'meta.json').unlink()
    with pytest.raises(Error, match='prepare.py .*--name=a_gpt2'):
        open_dataset('a_gpt2')
    with pytest.raises(Error, match='prepare.py --dataset=stories --tokenizer=char$'):
        open_dataset('stories_char')
    with pytest.raises(Error, match='prepare.py --dataset=tinystories$'):
        open_dataset('tinystories')


def test_large_bins_are_verified_on_demand(small, monkeypatch):
    """Above 1 GB opening reads meta.json alone; with verify=True everything. The data is a sparse file."""
    with open(small / 'train.bin', 'rb+') as f:
        f.truncate(4_000_000_000)
    rewrite(small, lambda meta: meta['train'].update(tokens=2_000_000_000))
    start = time.time()
    _, train, _ = open_dataset('a_gpt2')
    assert time.time() - start < 0.5 and train.shape == (2_000_000_000,)
    monkeypatch.setattr('data.files.checksum', lambda path: 'wrong')
    with pytest.raises(Error, match='train.bin'):
        open_dataset('a_gpt2', verify=True)


def test_killed_while_writing(tmp_path, monkeypatch):
    """Killed at any moment, there is the old dataset or the new one: never a mixture."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'a.txt', '<|endoftext|>'.join(f'this is {i} of {i * i} ' * 40 for i in range(3000)))
    write(tmp_path / 'b.txt', 'some older text<|endoftext|>and more')
    allowed = []
    for source in 'ab':
        assert shell(f'--input={source}.txt', '--name=x', '--overwrite=True', cwd=tmp_path).returncode == 0
        allowed.append(open_dataset('x')[0]['train']['checksum'])
    command = [sys.executable, str(ROOT / 'prepare.py'), '--input=a.txt', '--name=x', '--overwrite=True']
    for delay in (0.1, 0.3, 0.4, 0.5):
        p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert open_dataset('x')[0]['train']['checksum'] in allowed
    kill = 'import os, prepare as p; p.input, p.name, p.overwrite = "b.txt", "x", True\n' \
           'os.replace = lambda *paths: os.kill(os.getpid(), 9); p.main()'
    killed = subprocess.run([sys.executable, '-c', kill], env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(Error, match='half written'):
        open_dataset('x')
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert sorted(os.listdir('data/x')) == ['.lock', 'meta.json', 'tokenizer.json', 'train.bin', 'val.bin']


@pytest.mark.parametrize('moment', range(3))
def test_stopped_between_two_renames(small, run, monkeypatch, moment):
    """Also at the worst moment: after some files took their place and before meta.json did."""
    renames = []

    def replace(a, b, really=os.replace):
        if len(renames) == moment:
            raise KeyboardInterrupt
        renames.append(b)
        really(a, b)

    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(KeyboardInterrupt):
        run('--input=a.jsonl', '--tokenizer=char', '--name=a_gpt2', '--overwrite=True')
    with pytest.raises(Error, match='half written'):
        open_dataset('a_gpt2')


@pytest.mark.parametrize('n', [20_000, 8_000])                          # full in the spool, and in a bin
def test_full_disk(tmp_path, n):
    resource = pytest.importorskip('resource')
    write(tmp_path / 'b.txt', 'some older text<|endoftext|>and more')
    assert shell('--input=b.txt', '--name=x', cwd=tmp_path).returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / 'data/x').iterdir()}
    write(tmp_path / 'a.jsonl', '\n'.join(json.dumps({'text': f'text {i:05}'}) for i in range(n)))
    p = shell('--input=a.jsonl', '--name=x', '--overwrite=True', '--tokenizer=char', cwd=tmp_path,
              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    message = 'error: data/x: File too large; what was there before is intact\n'
    assert (p.returncode, p.stderr) == (2, message)
    assert {p.name: p.read_bytes() for p in (tmp_path / 'data/x').iterdir()} == before
    assert os.listdir(tmp_path / 'data') == ['x']


# ---- bad input: one line, exit status 2, nothing written
@pytest.mark.parametrize('args, word', [
    ('--vocab=3', 'vocab_size'), ('--vocab_size=big', 'int'), ('--vocab_size=100', '257'),
    ('--val_fraction=0', 'val_fraction'), ('--val_fraction=1', 'val_fraction'), ('nosuch.py', 'nosuch.py'),
    ('--num_stories=0', 'no text was found'), ('--dataset=no/such', 'no/such'), ('--dataset=texts', '--input'),
    ('--dataset=.', 'dataset'), ('--dataset=', 'dataset'), ('--input=nothing.txt', 'nothing.txt'),
    ('--input=x.csv', '.jsonl'), ('--input=,', 'input'), ('--input=empty.txt', 'no text was found'),
    ('--input=spaces.txt', 'no text'), ('--input=one.txt', 'short'), ('--input=bad.jsonl', 'bad.jsonl cannot be read: line 2 '),
    ('--input=column.jsonl', 'title'), ('--input=list.jsonl', 'list.jsonl'), ('--input=type.jsonl', 'int'),
    ('--input=deep.jsonl', 'deep.jsonl'), ('--input=bad.parquet', 'bad.parquet'),
    ('--input=good.txt --tokenizer=nosuch', 'nosuch'), ('--input=good.txt --tokenizer=broken', 'broken'),
    ('--input=good.txt --tokenizer=noeos', 'eos'), ('--input=good.txt --name=../up', 'name'),
    ('--input=good.txt --name=..', 'name'), ('good.txt', 'did you mean --input=good.txt?'),
    ('--input=good.txt --num_stories=5', 'leave it out'), ('--input=good.txt --dataset=stories', 'leave one out')])
def test_bad_input(tmp_path, args, word, run):
    write(tmp_path / 'x.csv', 'a,b')
    write(tmp_path / 'empty.txt', '')
    write(tmp_path / 'spaces.txt', ' \n<|endoftext|>\n')
    write(tmp_path / 'one.txt', 'x')
    write(tmp_path / 'good.txt', 'one<|endoftext|>two')
    write(tmp_path / 'bad.jsonl', '{"text": "x"}\n{"text": ')
    write(tmp_path / 'column.jsonl', '{"title": "x"}')
    write(tmp_path / 'list.jsonl', '["x"]')
    write(tmp_path / 'type.jsonl', '{"text": 5}')
    write(tmp_path / 'deep.jsonl', '[' * 200_000)
    write(tmp_path / 'bad.parquet', 'PAR1 and nothing')
    write(tmp_path / 'broken/tokenizer.json', '{"model": 3}')
    write(tmp_path / 'texts/train.txt', 'line\nline')
    model = {'type': 'WordLevel', 'vocab': {'a': 0}, 'unk_token': 'a'}
    write(tmp_path / 'noeos/tokenizer.json', json.dumps({'model': model, 'added_tokens': []}))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(Error) as e:
        run(*args.split())
    assert word in str(e.value)
    assert [path for path in sorted(tmp_path.rglob('*')) if path.name != 'data'] == before


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = {'tiktoken', 'tokenizers', 'datasets', 'pypdfium2', 'ftfy', 'torch'}
    code = f'import sys, prepare; print({heavy} & {{*sys.modules}})'
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert p.stdout == 'set()\n'


# ---- memory
def grow(path, megabytes, shape):
    """Varied text: many documents, one of many lines, one line, one word, or words that do not recur."""
    rng, size = np.random.default_rng(0), 0
    words = np.array('little girl the was ball and happy dog Äpfel ran to it she'.split())
    gap = {'many': '\n<|endoftext|>\n', 'one': '\n', 'word': ''}.get(shape, ' ')
    with open(path, 'w', encoding='utf-8') as f:
        while size < megabytes * 1e6:
            numbers = rng.integers(10**9, 10**10, 1000)
            draws = rng.integers(0, len(words), (50, 150))
            said = [('' if shape == 'word' else ' ').join(words[draw]) for draw in draws]
            if shape == 'words':
                size += f.write(' '.join(map(str, rng.integers(10**9, 10**10, 50_000))) + ' ')
            else:
                size += f.write(''.join(f'{said[n % 50]}{gap and f" {n}."}{gap}' for n in numbers))


def peak_memory(command, cwd):
    """Peak anonymous memory of a command in MB, which has to succeed."""
    p, peak = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL), 0
    while p.poll() is None:
        try:
            status = Path(f'/proc/{p.pid}/status').read_text()
            peak = max(peak, int(re.search(r'RssAnon:\s+(\d+)', status)[1]) if 'RssAnon' in status else 0)
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.02)
    assert p.wait() == 0
    return peak / 1024


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
@pytest.mark.parametrize('shape, megabytes', [
    ('many', 20), ('one', 20), ('line', 3), ('word', 3), ('words', 8),
    *[pytest.param(shape, 500, marks=pytest.mark.slow) for shape in 'many one line'.split()]])
def test_memory_stays_bounded(tmp_path, shape, megabytes):
    grow(tmp_path / 'a.txt', megabytes, shape)
    peak = peak_memory([sys.executable, str(ROOT / 'prepare.py'), '--input=a.txt'], tmp_path)
    print(f'{shape}: {megabytes} MB, peak {peak:.0f} MB of anonymous memory')
    assert peak < (1000 if megabytes == 500 else 560 if 'word' in shape else 200)
    shutil.rmtree(tmp_path)


def test_the_next_command_trains_a_model_that_fits_the_text(run, tmp_path):
    """More text: a larger model, fewer epochs, and less dropout. What is printed can be run as it is."""
    sizes, epochs, dropouts = [], [], []
    recipe = runpy.run_path(str(ROOT / 'config/papers.py'))
    for tokens in (1000, 70_000, 600_000, 6_000_000, 10**9):
        knobs = fitting_knobs(tokens)
        shape = {name: value for name, value in knobs.items() if name.startswith('n_')}
        with torch.device('meta'):
            sizes.append(GPT(GPTConfig(vocab_size=4096, **shape)).num_params())
        epochs.append(knobs['max_iters'] * recipe['batch_size'] * recipe['block_size'] / tokens)
        dropouts.append(knobs['dropout'])
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 4
    assert 12 < epochs[1] < 20 and 1 < epochs[3] < 3
    assert epochs == sorted(epochs, reverse=True) and dropouts == sorted(dropouts, reverse=True)

    words = random.Random(0)
    text = ''.join(''.join(words.choices('abcdefghij', k=5)) + ' ' for _ in range(190_000))
    (tmp_path / 'mine.txt').write_text(text)
    assert run('--input=mine.txt')[0]['vocab_size'] == 4096                 # 1.1 MB
    (tmp_path / 'mine.txt').write_text(text[:50_000])
    meta = run('--input=mine.txt', '--overwrite=True')[0]
    assert meta['vocab_size'] == 2048 and next_command('stories', 'a', 9) == 'python train.py --dataset=a'
    assert next_command('roneneldan/TinyStories', 'a', 9).startswith('python train.py config/tinystories.py --d')
    command = shlex.split(run.out.split('next: ')[1])
    assert f"--max_iters={fitting_knobs(meta['train']['tokens'])['max_iters']}" in command
    shown = subprocess.run([sys.executable, ROOT / 'train.py', *command[2:], '--max_iters=1', '--batch_size=1',
                            '--device=cpu'], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0 and '4 layers' in shown.stdout, shown.stderr
    assert (tmp_path / 'out/mine/best.pt').exists()


@pytest.mark.parametrize('documents, warns', [(2, True), (400, False)])
def test_a_val_split_that_is_much_larger_than_asked_for_is_warned_of(run, tmp_path, documents, warns):
    (tmp_path / 'text.txt').write_text('<|endoftext|>'.join(f'document {i}, {PROSE[0]}' for i in range(documents)))
    run('--input=text.txt', '--tokenizer=char')
    assert ('of the text is held out' in run.err) == warns
