"""Documents from files, folders and datasets: encodings, rows, splits, what is left out."""
import csv
import gzip
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write, write_rows

from lib.errors import Error
from text.hub import read_dataset
from text.inputs import find_files, read_files

EOT = '<|endoftext|>'


def join(pieces):
    """The documents in an iterator of Piece."""
    documents, parts = [], []
    for text, ends, _ in pieces:
        parts.append(text)
        if ends:
            documents.append(''.join(parts))
            parts = []
    assert not parts
    return documents


def read(patterns, text_column='text', separator=EOT):
    """The documents of --input=patterns that are not empty."""
    pieces = read_files(find_files(str(patterns)), text_column, separator)
    return [document for document in join(pieces) if document]


def error_of(path, text_column='text'):
    """The message for a file that cannot be read, without its beginning."""
    with pytest.raises(Error, match='cannot be read') as e:
        read(path, text_column)
    message = str(e.value)
    assert message.startswith(str(path)) and '\n' not in message
    return message.partition(' cannot be read: ')[2]


# ---- kinds of files
def test_every_kind_of_file(tmp_path):
    write(tmp_path / 'a.txt', f'first one\n{EOT}\nsecond one\n\n{EOT}{EOT}third\n')
    write(tmp_path / 'b/b.md', f'# A title\n{EOT}\nis no separator here')
    rows = ['{"x": 1, "text": "two"}', '\ufeff{"text": "\\u00e9 \\ud83d\\ude00"}',
            '', '{"text": null}']
    write(tmp_path / 'b/c.jsonl', '\n'.join(rows))
    write(tmp_path / 'b/d.jsonl.gz', gzip.compress(b'{"text": "zipped"}\n{"text": "twice"}', mtime=0))
    table = pa.table({'x': [1, 2, 3], 'text': ['parquet 1', None, 'parquet 2']})
    pq.write_table(table, tmp_path / 'b/e.parquet')
    write(tmp_path / 'f.csv', 'id,text\n1,"a, b\nand ""c"""\n2,\n3,d\n')
    assert read(tmp_path) == [
        'first one', 'second one', 'third\n', f'# A title\n{EOT}\nis no separator here',
        'two', 'é 😀', 'zipped', 'twice', 'parquet 1', 'parquet 2', 'a, b\nand "c"', 'd']


def test_an_empty_separator_keeps_a_text_file_whole(tmp_path):
    text = f'\n\none {EOT}\n\ntwo\n'
    assert read(write(tmp_path / 'a.txt', text), separator='') == [text]


@pytest.mark.parametrize('separator, gap', [(EOT, '\n'), (EOT, '\n\n'), ('---', '')])
def test_documents_do_not_depend_on_where_blocks_end(tmp_path, separator, gap):
    for shift in range(-5, len(separator) + 8):
        long = 'x' * ((2 << 20) - shift) + '\n\ny'
        texts = [long, 'one\n\nmore', 'x\n' * (5 << 18) + 'x', 'end']
        path = write(tmp_path / 'a.txt', f'{gap}{separator}{gap}'.join(texts))
        assert read(path, separator=separator) == texts


@pytest.mark.parametrize('separator, text, expected', [
    (r'\n\n', 'a\nb\n\nc\n\n\nd', ['a\nb', 'c', 'd']), ('\n\n', 'a\n\nb', ['a', 'b']),
    (r'\t', 'a\tb', ['a', 'b']), (r'\\n', r'a\nb', ['a', 'b']), (r'\n--\n', 'a\n--\nb', ['a', 'b']),
    ('\n--\n', '\n--\na\n--\n\n--\nb\n', ['a', 'b\n'])])
def test_a_separator_may_have_escapes(tmp_path, capsys, separator, text, expected):
    assert read(write(tmp_path / 'a.txt', text), separator=separator) == expected
    assert capsys.readouterr().err == ''


def test_a_separator_that_never_occurs_gets_a_warning(tmp_path, capsys):
    write(tmp_path / 'a.txt', 'one\n\ntwo')
    write(tmp_path / 'b.txt', 'three')
    read(tmp_path)                                          # the default separator
    read(tmp_path, separator='')
    assert read(tmp_path, separator='\n\n') == ['one', 'two', 'three']      # it is in one of two
    assert capsys.readouterr().err == ''
    read(tmp_path, separator='***')
    assert "'***' is not in any" in capsys.readouterr().err


def test_nul_and_byte_order_marks_inside_a_text_are_dropped_with_a_warning(tmp_path, capsys):
    joined = b'\xef\xbb\xbffirst\r\nline\n' + '\ufeffse\0cond'.encode()
    assert read(write(tmp_path / 'a.txt', joined)) == ['first\nline\nsecond']
    (warning,) = capsys.readouterr().err.splitlines()
    assert 'a.txt' in warning and 'dropped 2' in warning


def test_a_pdf_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, capsys):
    write(tmp_path / 'broken.pdf', 'no PDF')
    write(tmp_path / 'good.md', 'good')
    assert read(tmp_path) == ['good']
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if 'broken.pdf' in line]
    assert 'left out' in warning


# ---- encodings
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be',
                                      'utf-32', 'latin-1', 'cp1252'])
def test_encodings_of_text(tmp_path, encoding, capsys):
    text = ('Der Müller aß heute Äpfel im Café nebenan.\nEl niño «está» aquí con todos los otros, '
            '¿no? ' + 'and so on ' * 4)
    text += '' if encoding == 'latin-1' else '“So—it’s 5 €…” '
    path = write(tmp_path / 'a.txt', (text * 3 + '\nend').encode(encoding))
    assert read(path) == [text * 3 + '\nend']
    rows = [{'text': text}, {'text': 'end'}]
    assert read(write_rows(tmp_path / 'a.jsonl', rows, encoding)) == [text, 'end']
    table = f'text\n"{text}"\n'.encode(encoding)
    assert read(write(tmp_path / 'a.csv', table)) == [text]
    zipped = gzip.compress((tmp_path / 'a.jsonl').read_bytes())
    assert read(write(tmp_path / 'a.jsonl.gz', zipped)) == [text, 'end']
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('encoding, text', [
    ('koi8-r', 'Жили-были старик со старухой у самого синего моря. '),
    ('cp850', 'Der Müller aß Äpfel. '), ('cp850', 'Der gelbe Käse liegt dort. '),
    ('cp1250', 'Příliš žluťoučký kůň úpěl ďábelské ódy. '),
    ('iso-8859-2', 'Zażółć gęślą jaźń, proszę. '), ('iso-8859-7', 'Στην αρχή ήταν ο λόγος. '),
    ('cp1254', 'Işık ılık süt içti, ağaç. '), ('shift-jis', 'むかしむかし、おじいさんが'),
    ('gb18030', '从前有一个小女孩,她住在森林旁边的小房子里。'),
    ('mac-roman', 'Le café est fermé, où aller à Noël? '),
    ('cp1252', 'a line that is long enough \0é')])
def test_an_unclear_encoding_gets_a_warning(tmp_path, capsys, encoding, text):
    path = write(tmp_path / 'bad.txt', f'{text * 30}{EOT}two'.encode(encoding))
    assert read(path)[1] == 'two'
    warning = capsys.readouterr().err
    assert 'bad.txt' in warning and 'not UTF-8' in ' '.join(warning.split())


def test_random_bytes_get_a_warning(tmp_path, capsys):
    for seed in range(20):
        read(write(tmp_path / f'{seed}.txt', random.Random(seed).randbytes(3000)))
        assert f'{seed}.txt is not UTF-8' in ' '.join(capsys.readouterr().err.split())


def test_damaged_utf_8_stays_utf_8(tmp_path, capsys):
    path = write(tmp_path / 'a.txt', 'Müller, é, ü and à '.encode() + b'\xfc \xe9 end')
    assert read(path) == ['Müller, é, ü and à \ufffd \ufffd end']
    once = write(tmp_path / 'b.txt', 'was corrupted before: \ufffd')
    assert read(once) == ['was corrupted before: \ufffd']
    at_border = write(tmp_path / 'c.txt', 'x' * ((1 << 20) - 1) + 'é')
    assert read(at_border)[0].endswith('xé')
    assert capsys.readouterr().err == ''


def test_the_whole_file_decides_on_its_encoding(tmp_path, capsys):
    path = write(tmp_path / 'a.txt', b'x' * 3_000_000 + 'é'.encode('cp1252'))
    assert read(path)[0].endswith('xé') and capsys.readouterr().err == ''


# ---- rows
@pytest.mark.parametrize('line, message', [
    ('"a text"', 'line 2 is not an object'), ('["a text"]', 'line 2 is not an object'),
    ('5', 'line 2 is not an object'), ('null', 'line 2 is not an object'),
    ('{"title": "x", "n": 1}', 'line 2 has no column text, but title, n; set --text_column'),
    ('{}', 'line 2 has no column text, but none'), ('{"text": 5}', 'line 2 has int in column text'),
    ('{"text": ["a"]}', 'line 2 has list in column text'), ('{"text": ', 'line 2 is not JSON (Expecting value): fix'),
    ('[' * 100_000, 'recursion'),
    ('{"messages": [{"role": "user", "content": "hi"}]}', 'join each chat into one text'),
    ('{"conversations": [{"from": "human", "value": "hi"}]}', 'join each chat into one text')])
def test_bad_rows_are_named_by_their_line(tmp_path, line, message):
    path = write(tmp_path / 'a.jsonl', '{"text": "good"}\n' + line + '\n')
    assert message in error_of(path)


def test_parquet_without_the_column_names_the_others(tmp_path):
    path = tmp_path / 'a.parquet'
    pq.write_table(pa.table({'story': ['x'], 'n': [1]}), path)
    assert error_of(path).startswith('it has no column text, but story, n; set')
    assert 'int in column n' in error_of(path, 'n')
    pq.write_table(pa.table({'messages': [[{'role': 'user', 'content': 'hi'}]]}), path)
    assert 'join each chat' in error_of(path) and 'list in column' in error_of(path, 'messages')


@pytest.mark.parametrize('kind', [pa.string(), pa.large_string(), pa.string_view(),
                                  pa.dictionary(pa.int32(), pa.string())])
def test_parquet_columns_of_every_kind_of_text(tmp_path, kind):
    texts = pa.array([None, 'one', '', 'two'], pa.string()).cast(kind)
    pq.write_table(pa.table({'text': texts}), tmp_path / 'a.parquet')
    assert read(tmp_path / 'a.parquet') == ['one', 'two']


@pytest.mark.parametrize('name, content', [
    ('a.parquet', b'PAR1 and nothing'), ('a.jsonl.gz', gzip.compress(b'{"text": "x"}' * 9, mtime=0)[:20]),
    ('a.jsonl.gz', b'not zipped')])
def test_damaged_files_are_an_error(tmp_path, name, content):
    error_of(write(tmp_path / name, content))


@pytest.mark.parametrize('delimiter', ',;\t')
def test_csv_delimiters(tmp_path, delimiter):
    with open(tmp_path / 'a.csv', 'w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerows([['n', 'text'], [1, 'a, b; c\td\n"e"'], [2, 'x' * 200_000]])
    assert read(tmp_path / 'a.csv') == ['a, b; c\td\n"e"', 'x' * 200_000]


def test_csv_errors(tmp_path):
    path = tmp_path / 'a.csv'
    assert 'no column text, but a, b;' in error_of(write(path, 'a,b\n1,2'))
    assert 'two columns text' in error_of(write(path, 'text,id,text\na,1,b'))
    assert 'line 3 has too many cells' in error_of(write(path, 'text\nfine\nHello, you'))
    assert 'no column text' in error_of(write(path, ''.join(f'{i},{i}\n' for i in range(3))))
    assert 'after line 2: unexpected end' in error_of(write(path, 'text\na\n"open\nb\n'))


def test_csv_with_spaces_after_commas(tmp_path):
    assert read(write(tmp_path / 'a.csv', 'n, text\n1, "a, b"\n2, c')) == ['a, b', 'c']


# ---- memory
def arrow_peak(pieces):
    """The largest memory, in MB, that Arrow holds while the pieces are read."""
    before = pa.total_allocated_bytes()
    return max(pa.total_allocated_bytes() - before for _ in pieces) / 1e6


@pytest.mark.parametrize('table, most', [
    ({'text': [f'{i} ' + 'word ' * 200_000 for i in range(150)]}, 60),
    ({'text': ['text'] * 100, 'samples': [[{'output': 'step ' * 200_000}]] * 100}, 5)],
    ids=['rows of a megabyte', 'other columns of a megabyte'])
def test_only_a_few_rows_and_the_column_of_the_text_are_in_memory(tmp_path, table, most):
    path = tmp_path / 'set/train.parquet'
    path.parent.mkdir()
    small_pages = {'use_dictionary': False, 'write_batch_size': 4}      # in one group of rows
    pq.write_table(pa.table(table), path, **small_pages)
    assert arrow_peak(read_files([path], 'text', '')) < most
    splits, _ = read_dataset(str(path.parent), 'text')
    assert arrow_peak(splits['']) < most


# ---- paths, folders and globs
def test_globs_and_lists(tmp_path, monkeypatch):
    for name in ('a.txt', 'b.md', 'in/c.txt', 'in/deep/d.txt', 'in/.hidden.txt', '.x/e.txt'):
        write(tmp_path / name, name)
    monkeypatch.chdir(tmp_path)
    assert read('a.txt, *.md,in/../a.txt') == ['a.txt', 'b.md', 'a.txt']
    assert read('in/**/*.txt') == ['in/c.txt', 'in/deep/d.txt']
    assert read('**/*.txt') == ['a.txt', 'in/c.txt', 'in/deep/d.txt']
    assert read(f'{tmp_path}/i*/*.txt') == ['in/c.txt']
    assert read('.x') == read('.x/*') == ['.x/e.txt']       # hidden, but asked for


def test_names_with_commas_brackets_and_blanks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('Doe, John - [1].txt', 'a*b.txt', 'what?, yes/x.txt'):
        write(tmp_path / name, name)
        assert read(name) == [name]
    assert read('what?, yes') == ['what?, yes/x.txt']


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    write(tmp_path / 'texts, old/a.txt', 'one')
    assert read('~/texts, old') == read('~/*/a.txt') == ['one']
    write_rows(tmp_path / 'set/train.jsonl', [{'text': 'two'}])
    assert read_splits('~/set', 'text') == {'': ['two']}


@pytest.mark.parametrize('patterns, message', [
    ('nothing.txt', 'no such file'), (',', 'input=,'), ('x.html', 'can be read'),
    ('a.txt,nothing*', 'nothing'), ('a**b', 'no such file'), ('empty', 'can be read'),
    ('x' * 3000, 'no such file'), ('a.txt,' * 1000 + 'nothing.txt', 'no such file')])
def test_what_names_no_text_is_an_error(tmp_path, monkeypatch, patterns, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    write(tmp_path / 'a.txt', 'x')
    write(tmp_path / 'x.html', 'x')
    with pytest.raises(Error, match='--input=') as e:
        find_files(patterns)
    assert message in str(e.value)


def test_what_a_folder_holds_beside_texts_is_counted(tmp_path, capsys):
    write(tmp_path / 'in/a.txt', f'one{EOT}two')
    for name in ('a.html', 'b.HTML', 'deep/c.docx', 'LICENSE', '._a.txt', '.DS_Store',
                 'deep/.b.txt', '__MACOSX/a.txt', '.git/a.txt', '.ipynb_checkpoints/a.txt',
                 'env/a.txt', 'env/pyvenv.cfg', 'deep/node_modules/a.md'):
        write(tmp_path / 'in' / name, 'x')
    assert read(tmp_path / 'in') == ['one', 'two']
    (line,) = capsys.readouterr().out.splitlines()
    left_out = set(line.removeprefix('left out').strip().split(', '))
    assert left_out == {'2 .html', '1 .docx', '1 without a suffix', '3 hidden', '1 __MACOSX/',
                        '1 .git/', '1 .ipynb_checkpoints/', '1 env/', '1 node_modules/'}
    read(f'{tmp_path}/in/a.txt,{tmp_path}/in/*.txt')
    assert capsys.readouterr().out == ''


def test_links_to_folders_are_followed_once(tmp_path, capsys):
    write(tmp_path / 'other/b.txt', 'two')
    write(tmp_path / 'in/a.txt', 'one')
    write(tmp_path / 'in/deep/c.txt', 'three')
    for name, target in (('loop', 'in'), ('deep/loop', 'in'), ('up', '.'), ('more', 'other'),
                         ('again', 'other'), ('b.txt', 'missing'), ('self.txt', 'in/self.txt')):
        (tmp_path / 'in' / name).symlink_to(tmp_path / target)
    assert sorted(read(tmp_path / 'in')) == ['one', 'three', 'two']
    left_out = capsys.readouterr().out
    assert all(f'{name}/' in left_out for name in ('loop', 'up')) and '2 broken link' in left_out
    assert sorted(read(f'{tmp_path}/in/**/*.txt')) == ['one', 'three']


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_special_files_and_unreadable_folders_are_counted(tmp_path, capsys):
    write(tmp_path / 'a.txt', 'one')
    write(tmp_path / 'locked/b.txt', 'two')
    os.mkfifo(tmp_path / 'pipe.txt')
    (tmp_path / 'locked').chmod(0)
    is_locked = not os.access(tmp_path / 'locked', os.R_OK)         # not for root
    assert read(tmp_path) == ['one', 'two'][:2 - is_locked]
    shown = capsys.readouterr().out
    (tmp_path / 'locked').chmod(0o700)
    assert '1 special file' in shown and ('1 unreadable folder' in shown) == is_locked


# ---- datasets
def read_splits(*args, **kwargs):
    splits, _ = read_dataset(*map(str, args), **kwargs)
    return {split: join(pieces) for split, pieces in splits.items()}


def write_configs(folder, **configs):
    """A dataset with these configurations: {name: its splits}. Each split has one document."""
    lines = ['---', 'configs:']
    for config, splits in configs.items():
        lines += [f'- config_name: {config}', '  data_files:']
        for split in splits:
            lines += [f'  - split: {split}', f'    path: {config}/{split}.jsonl']
            write_rows(folder / f'{config}/{split}.jsonl', [{'text': f'{config} {split}'}])
    write(folder / 'README.md', '\n'.join([*lines, '---', '']))
    return folder


def test_a_dataset_folder_keeps_its_splits(tmp_path):
    (tmp_path / 'data').mkdir()
    for split, texts in (('train', ['a', 'b', None]), ('test', ['c'])):
        pq.write_table(pa.table({'story': texts}), tmp_path / f'data/{split}-0.parquet')
    assert read_splits(tmp_path, 'story') == {'val': ['c'], 'train': ['a', 'b', '']}
    assert list(read_dataset(str(tmp_path), 'story')[0]) == ['val', 'train']
    with pytest.raises(Error, match='no column text, but story'):
        read_splits(tmp_path, 'text')


def test_files_of_a_dataset_may_differ_in_their_other_columns(tmp_path):
    pq.write_table(pa.table({'text': ['one'], 'score': [0.5]}), tmp_path / 'a.parquet')
    pq.write_table(pa.table({'url': ['x'], 'text': ['two']}), tmp_path / 'b.parquet')
    assert read_splits(tmp_path, 'text') == {'': ['one', 'two']}
    rows = [{'text': 'one', 'meta': 5}, {'text': 'two', 'meta': {'a': []}}, {'text': 'three'}]
    write_rows(tmp_path / 'rows/a.jsonl', rows)
    assert read_splits(tmp_path / 'rows', 'text') == {'': ['one', 'two', 'three']}


def test_kinds_of_files_that_only_the_library_reads(tmp_path):
    write(tmp_path / 'train.json', json.dumps([{'text': 'one', 'n': 1}, {'text': None, 'n': 2}]))
    assert read_splits(tmp_path, 'text') == {'': ['one', '']}
    with pytest.raises(Error, match='no column x, but text, n'):
        read_splits(tmp_path, 'x')


@pytest.mark.parametrize('splits, held_out', [
    ('train test dev val valid validation', 'validation'), ('train test dev val valid', 'valid'),
    ('train test dev val', 'val'), ('train test dev', 'dev'), ('train test', 'test')])
def test_the_held_out_split_may_have_any_of_these_names(tmp_path, splits, held_out):
    write_configs(tmp_path, all=splits.split())
    assert read_splits(tmp_path, 'text') == {'val': [f'all {held_out}'], 'train': ['all train']}


def test_a_split_of_another_name_can_be_chosen(tmp_path):
    write_configs(tmp_path, all=['train_sft', 'test_sft', 'train_gen', 'english'])
    with pytest.raises(Error, match='no split train, but train_sft, test_sft, train_gen, english'):
        read_splits(tmp_path, 'text')
    with pytest.raises(Error, match='no split german'):
        read_splits(tmp_path, 'text', split='german')
    sft = read_splits(tmp_path, 'text', split='train_sft')
    assert sft == {'val': ['all test_sft'], 'train': ['all train_sft']}
    for split in ('train_gen', 'english', 'test_sft'):      # without a held-out one
        assert read_splits(tmp_path, 'text', split=split) == {'': [f'all {split}']}


def test_a_configuration_can_be_chosen(tmp_path):
    write_configs(tmp_path, big=['train', 'test'], little=['train'])
    assert read_splits(tmp_path, 'text', config='little') == {'': ['little train']}
    assert set(read_splits(tmp_path, 'text', config='big')) == {'train', 'val'}
    for config in ('', 'huge'):
        with pytest.raises(Error, match='big.*little.*set --dataset_config'):
            read_splits(tmp_path, 'text', config=config)


def test_datasets_from_save_to_disk(tmp_path):
    import datasets
    rows = datasets.Dataset.from_dict({'text': ['one', None]})
    rows.save_to_disk(tmp_path / 'rows')
    datasets.DatasetDict({'train_a': rows, 'part': rows}).save_to_disk(tmp_path / 'splits')
    assert read_splits(tmp_path / 'rows', 'text') == {'': ['one', '']}
    assert read_splits(tmp_path / 'splits', 'text', split='part') == {'': ['one', '']}
    with pytest.raises(Error, match='no split train, but train_a, part'):
        read_splits(tmp_path / 'splits', 'text')


def test_no_dataset(tmp_path):
    with pytest.raises(Error, match='nosuch'):
        read_dataset(str(tmp_path / 'nosuch'), 'text')
    write(tmp_path / 'train.txt', 'line\nline')
    with pytest.raises(Error, match='use --input'):
        read_dataset(str(tmp_path), 'text')
