"""prepare.py: dividing documents, the files of a dataset, opening them, and mistakes."""
import math
import os
import random
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command, hold_lock, rewrite_meta, write, write_rows

from lib.dataset import bits_per_byte, open_dataset
from lib.errors import Error
from lib.tokenizer import load_tokenizer
from text.advice import fitting_settings, next_command, print_next, training_minutes
from text.stories.teller import read_grammar, tell_stories

EOT = '<|endoftext|>'


@pytest.fixture
def prepare(run, capsys):
    """prepare('--key=value', ...) -> (meta, train, val) of the dataset that it makes; .out and
    .err are what it printed."""
    def prepare(*args):
        capsys.readouterr()
        run('prepare.py', *args)
        prepare.out, prepare.err = capsys.readouterr()
        arguments = shlex.split(prepare.out.strip().split('next: ')[-1])
        assert arguments[:2] == ['python', 'train.py'] and Path(ROOT, arguments[2]).is_file()
        names = [word[10:] for word in arguments if word.startswith('--dataset=')]
        return open_dataset(names[0] if names else 'stories')
    return prepare


def documents(meta, *arrays):
    """The texts in arrays of ids, in order; asserts that each ends with end-of-text."""
    tokenizer, found = load_tokenizer(meta['tokenizer']), []
    for ids in arrays:
        assert ids[-1] == meta['eot']
        ends = np.flatnonzero(ids == meta['eot'])
        found += [tokenizer.decode(part).replace('\0', '') for part in np.split(ids, ends + 1)[:-1]]
    return found


def files_in(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# ---- documents and their split
@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'char'])
def test_documents_come_back_also_with_end_of_text_inside(prepare, kind):
    texts = [f'He said {EOT} and left {i} äöü日💡' for i in range(200)]
    write_rows('a.jsonl', texts)
    meta, train, val = prepare('--input=a.jsonl', f'--tokenizer={kind}')
    assert sorted(documents(meta, train, val)) == sorted(texts)
    for side, ids in (('train', train), ('val', val)):
        assert ids.dtype == np.uint16 and len(ids) == meta[side]['tokens']
        assert (ids == meta['eot']).sum() == meta[side]['documents']
        assert meta[side]['bytes'] == sum(len(text.encode()) for text in documents(meta, ids))
        assert meta[side]['nats'] is None
    assert meta['source'] == 'a.jsonl' and meta['vocab_size'] > meta['eot']


def test_duplicates_are_dropped_and_the_hash_of_a_document_decides_on_its_side(prepare):
    texts = [f'document {i % 700}' for i in range(1000)]
    write_rows('a.jsonl', texts)
    meta, train, val = prepare('--input=a.jsonl', '--val_fraction=0.1')
    assert '300 dropped as duplicates' in prepare.out
    assert sorted(documents(meta, train, val)) == sorted(texts[:700])
    assert 40 < meta['val']['documents'] < 100
    order = [texts.index(text) for text in documents(meta, train)]
    assert order == sorted(order)
    write_rows('b.jsonl', texts[100:600])       # the side does not depend on other documents
    fewer = prepare('--input=b.jsonl', '--val_fraction=0.1')
    expected = [text for text in documents(meta, val) if text in texts[100:600]]
    assert documents(fewer[0], fewer[2]) == expected
    other = prepare('--input=a.jsonl', '--val_fraction=0.1', '--seed=2', '--name=other')
    assert documents(other[0], other[2]) != documents(meta, val)


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.9])
def test_a_single_document_is_cut_at_its_tail(prepare, fraction):
    text = ''.join(f'Zeile {i} äöü日💡\n' for i in range(3000))
    write('a.txt', text)
    meta, train, val = prepare('--input=a.txt', f'--val_fraction={fraction}', '--tokenizer=char')
    (head,), (tail,) = documents(meta, train), documents(meta, val)
    assert head + tail == text and '\ufffd' not in text
    assert meta['val']['bytes'] / len(text.encode()) == pytest.approx(fraction, abs=1e-4)


def test_a_tail_is_cut_between_two_characters(prepare):
    text = 'x' + '💡' * 1000                    # byte 3,600 is inside of one
    write('a.txt', text)
    meta, train, val = prepare('--input=a.txt', '--val_fraction=0.1', '--tokenizer=char')
    assert documents(meta, val) == ['💡' * 100]
    assert documents(meta, train) == ['x' + '💡' * 900]


def test_of_a_few_large_documents_each_is_cut(prepare):
    texts = [f'{i} ' + 'a large document. ' * 100 * i for i in (1, 2, 9)]
    write_rows('a.jsonl', [*texts, texts[2]])
    meta, train, val = prepare('--input=a.jsonl', '--val_fraction=0.2')
    heads, tails = documents(meta, train), documents(meta, val)
    assert [head + tail for head, tail in zip(heads, tails)] == texts
    for tail, text in zip(tails, texts):
        assert len(tail) / len(text) == pytest.approx(0.2, abs=0.01)
    assert '3 train, 3 val, 1 dropped' in prepare.out


@pytest.mark.parametrize('fraction', [0.0501, 0.9499])
def test_there_is_a_document_on_both_sides_whatever_the_hashes_are(prepare, fraction):
    write_rows('a.jsonl', [f'document {i:02}' for i in range(20)])
    for seed in range(5):
        meta, train, val = prepare('--input=a.jsonl', f'--seed={seed}', f'--name=n{seed}',
                                   f'--val_fraction={fraction}', '--tokenizer=char')
        assert meta['train']['documents'] + meta['val']['documents'] == 20
        assert min(meta['train']['documents'], meta['val']['documents']) > 0


def test_a_dataset_keeps_its_own_split_without_what_is_in_both(prepare):
    write_rows('set/train.jsonl', ['a b', 'in both', 'c d', 'c d'])
    write_rows('set/test.jsonl', ['in both', 'e f'])
    meta, train, val = prepare('--dataset=set')
    assert documents(meta, val) == ['in both', 'e f'] and documents(meta, train) == ['a b', 'c d']
    prepare('--dataset=set')
    assert 'data/set is up to date' in prepare.out
    write_rows('set/test.jsonl', ['e f'])
    with pytest.raises(Error, match='overwrite'):
        prepare('--dataset=set')


def test_stories_have_their_floor_and_a_part_of_a_story_has_none(prepare):
    meta, train, val = prepare('--num_stories=300')
    told = list(tell_stories(read_grammar(), 300, 1337))
    nats = dict(told)
    for side, ids in (('train', train), ('val', val)):
        texts = documents(meta, ids)
        assert texts == [text for text, _ in told if text in set(texts)]
        expected = sum(nats[text] for text in texts)
        assert meta[side]['nats'] == pytest.approx(expected, rel=1e-12)
    floor = meta['val']['nats'] / meta['val']['tokens']
    assert f'{floor:.4f} per token' in prepare.out
    one, *_ = prepare('--num_stories=1', '--name=one')
    assert one['train']['nats'] is one['val']['nats'] is None


def test_invalid_text_is_counted(prepare):
    write('b.jsonl', r'{"text": "lone \ud800 here"}' + '\n{"text": "and more"}')
    found = documents(*prepare('--input=b.jsonl', '--tokenizer=char'))
    assert found[0] == 'lone \ufffd her'                     # its tail is held out
    assert 'the text has 1 U+FFFD characters' in prepare.err


def test_a_vocabulary_has_at_most_the_size_asked_for(prepare):
    write('a.txt', 'abab' * 100)                            # there is only one piece
    assert 257 < prepare('--input=a.txt')[0]['vocab_size'] < 300
    assert prepare('--input=a.txt', '--vocab_size=257', '--name=bytes')[0]['vocab_size'] == 257


# ---- the files
def test_preparing_again_changes_nothing_unless_text_or_settings_changed(prepare):
    path = write('a.txt', f'one{EOT}two{EOT}three')
    prepare('--input=a.txt')
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path('data/a').iterdir()}
    os.utime(path, (1, 1))
    prepare('--input=a.txt')
    for different in (['--input=a.txt', '--seed=3'], ['--input=a.txt', '--separator=x'],
                      ['--name=a']):
        with pytest.raises(Error, match='overwrite'):
            prepare(*different)
    write('a.txt', f'one{EOT}two{EOT}four')
    with pytest.raises(Error, match='overwrite'):
        prepare('--input=a.txt')
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before
    assert 'fou' in documents(*prepare('--input=a.txt', '--overwrite=True'))
    whole = ['.lock', 'meta.json', 'tokenizer.json', 'train.bin', 'val.bin']
    assert sorted(os.listdir('data/a')) == whole and os.listdir('data') == ['a']
    prepare('--input=a.txt', '--tokenizer=char', '--name=a', '--overwrite=True')
    assert sorted(os.listdir('data/a')) == [name for name in whole if name != 'tokenizer.json']


def test_the_same_settings_give_the_same_bytes(prepare):
    for name in 'ab':
        prepare('--num_stories=500', f'--name={name}')
    a, b = files_in('data/a'), files_in('data/b')
    assert all(a[name] == b[name] for name in ('train.bin', 'val.bin', 'tokenizer.json'))


def test_a_name_may_have_dots_and_blanks(prepare):
    for folder in ('my texts.v1', 'my texts.v2'):
        write(f'{folder}/a.txt', f'one {folder}{EOT}two{EOT}three')
        meta, *_ = prepare(f'--input={folder}')
        assert Path('data', folder).is_dir()
        assert shlex.split(meta['command'])[2:] == [f'--input={folder}']


def test_two_processes_do_not_mix_their_files(prepare):
    other = hold_lock('data/stories')
    with pytest.raises(Error, match='in use by another run'):
        prepare('--num_stories=20')
    other.communicate('\n')
    prepare('--num_stories=20')


@pytest.mark.parametrize('moment', range(3))
def test_a_stop_between_two_renames_leaves_no_mixture(small, prepare, monkeypatch, moment):
    renames, replace = [], os.replace

    def stopped(a, b):
        if len(renames) == moment:
            raise KeyboardInterrupt
        renames.append(b)
        replace(a, b)
    monkeypatch.setattr(os, 'replace', stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare('--input=a.jsonl', '--tokenizer=char', '--name=a_gpt2', '--overwrite=True')
    with pytest.raises(Error, match='incomplete'):
        open_dataset('a_gpt2')


@pytest.mark.parametrize('n', [20_000, 8_000])      # full while reading, and while tokenizing
def test_a_full_disk_is_an_error_and_changes_nothing(prepare, tmp_path, n):
    resource = pytest.importorskip('resource')
    write('b.txt', f'some older text{EOT}and more')
    prepare('--input=b.txt', '--name=x')
    before = files_in('data/x')
    write_rows('a.jsonl', [f'text {i:05}' for i in range(n)])
    limit = (100_000, 100_000)
    shown = command('prepare.py', '--input=a.jsonl', '--name=x', '--overwrite=True',
                    '--tokenizer=char', cwd=tmp_path,
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert shown.returncode == 2
    assert shown.stderr == 'error: data/x: File too large; nothing was written\n'
    assert files_in('data/x') == before and os.listdir('data') == ['x']


# ---- opening a dataset
@pytest.fixture
def small(prepare):
    write_rows('a.jsonl', [f'some text {i}' for i in range(50)])
    prepare('--input=a.jsonl', '--tokenizer=gpt2')
    return Path('data/a_gpt2')


def test_flipped_bits_and_cut_or_swapped_files_are_refused(small):
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
    for a, b in (('train', 'x'), ('val', 'train'), ('x', 'val')):
        os.rename(small / f'{a}.bin', small / f'{b}.bin')
    with pytest.raises(Error):
        open_dataset('a_gpt2')


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"format": 1}', b'\xff', '1' * 9**5])
def test_a_file_that_is_no_meta_json_is_refused(small, content):
    write(small / 'meta.json', content)
    with pytest.raises(Error, match='a_gpt2 is corrupted.*--overwrite=True'):
        open_dataset('a_gpt2')


def test_a_missing_dataset_names_its_command_and_those_there_are(small):
    with pytest.raises(Error, match=r'data/ has a_gpt2\); create it with: python prepare.py$'):
        open_dataset('stories')
    (small / 'meta.json').unlink()
    with pytest.raises(Error, match='incomplete.*no datasets yet.*prepare.py --name=a_gpt2'):
        open_dataset('a_gpt2')


def test_files_above_1_gb_are_verified_on_request(small, monkeypatch):
    with open(small / 'train.bin', 'rb+') as f:
        f.truncate(4_000_000_000)                           # a sparse file
    rewrite_meta(small, lambda meta: meta['train'].update(tokens=2_000_000_000))
    train = open_dataset('a_gpt2')[1]
    assert train.shape == (2_000_000_000,) and isinstance(train, np.memmap)
    monkeypatch.setattr('lib.dataset.checksum', lambda path: 'wrong')
    with pytest.raises(Error, match='train.bin'):
        open_dataset('a_gpt2', verify=True)


# ---- mistakes
@pytest.mark.parametrize('args, word', [
    ('--vocab=3', 'vocab_size'), ('--vocab_size=big', 'int'), ('--vocab_size=100', '257'),
    ('--val_fraction=0', 'val_fraction'), ('--val_fraction=1', 'val_fraction'),
    ('nosuch.py', 'nosuch.py'), ('--num_stories=0', 'no text'), ('--dataset=no/such', 'no/such'),
    ('--dataset=.', 'dataset'), ('--dataset=', 'dataset is an empty'),
    ('--input=empty.txt', 'no text'), ('--input=spaces.txt', 'no text'),
    ('--input=one.txt', 'short'),
    ('--input=bad.jsonl', 'bad.jsonl cannot be read: line 2'), ('--input=column.jsonl', 'title'),
    ('--input=good.txt --tokenizer=nosuch', 'nosuch'), ('--input=good.txt --name=../up', 'name'),
    ('--input=good.txt --name=..', 'name'), ('good.txt', '--key=value'),
    ('--input=good.txt --num_stories=5', 'omit it'),
    ('--input=good.txt --dataset=stories', 'omit one')])
def test_a_mistake_is_an_error_and_nothing_is_written(tmp_path, prepare, args, word):
    write('x.xyz', 'a,b')
    write('empty.txt', '')
    write('spaces.txt', f' \n{EOT}\n')
    write('one.txt', 'x')
    write('good.txt', f'one{EOT}two')
    write('bad.jsonl', '{"text": "x"}\n{"text": ')
    write('column.jsonl', '{"title": "x"}')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(Error) as e:
        prepare(*args.split())
    assert word in str(e.value)
    assert [path for path in sorted(tmp_path.rglob('*')) if path.name != 'data'] == before


# ---- memory
WORDS = 'little girl the was ball and happy dog Äpfel ran to it she'.split()


def grow(path, megabytes, between, gap):
    """Write varied text: sentences with `between` the words and a `gap` after each. Without
    `between`, new words only."""
    draw, size = random.Random(0), 0
    said = [''] if between is None else [between.join(draw.choices(WORDS, k=150))
                                         for _ in range(50)]
    with open(path, 'w', encoding='utf-8') as f:
        while size < megabytes * 1e6:
            number = f' {draw.randrange(10**9, 10**10)}.' if gap else ''
            size += f.write(draw.choice(said) + number + gap)


def peak_memory(program, cwd):
    """Peak anonymous memory in MB of a command, which has to succeed."""
    process, peak = subprocess.Popen(program, cwd=cwd, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        try:
            status = Path(f'/proc/{process.pid}/status').read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        found = re.search(r'RssAnon:\s+(\d+)', status)
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.02)
    assert process.wait() == 0
    return peak / 1024


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
@pytest.mark.parametrize('megabytes, between, gap, limit', [
    (20, ' ', '\n', 200), (3, '', '', 560), (8, None, ' ', 560),
    *(pytest.param(500, ' ', gap, 1000, marks=pytest.mark.slow)
      for gap in (f'\n{EOT}\n', '\n', ' '))])       # many documents, one of many lines, one line
def test_memory_stays_bounded(tmp_path, megabytes, between, gap, limit):
    path = tmp_path / 'a.txt'
    grow(path, megabytes, between, gap)
    peak = peak_memory([sys.executable, str(ROOT / 'prepare.py'), '--input=a.txt'], tmp_path)
    assert peak < limit, f'{peak:.0f} MB of anonymous memory'
    path.unlink()


# ---- advice
def test_the_next_command_suits_the_text_and_runs(prepare, tmp_path):
    letters = ''.join(random.Random(0).choices('abcdefghij ', k=1_100_000))
    write('mine.txt', letters)
    assert prepare('--input=mine.txt')[0]['vocab_size'] == 4096
    write('mine.txt', letters[:50_000])
    meta = prepare('--input=mine.txt', '--overwrite=True')[0]
    assert meta['vocab_size'] == 2048
    arguments = shlex.split(prepare.out.split('next: ')[1])
    max_iters = fitting_settings(meta['train']['tokens'], False)['max_iters']
    assert f'--max_iters={max_iters}' in arguments
    shown = command('train.py', *arguments[2:], '--max_iters=1', '--batch_size=1', '--device=cpu',
                    cwd=tmp_path)
    assert shown.returncode == 0 and '4 layers' in shown.stdout, shown.stderr
    assert Path('out/mine/best.pt').exists()


def test_the_next_command_of_stories_is_their_recipe():
    assert next_command('stories', 'stories', {}, False) == 'python train.py config/stories.py'
    assert next_command('stories', 'my own', {}, False) == \
        "python train.py config/stories.py '--dataset=my own' '--out_dir=out/my own'"
    assert re.match(r'python train.py config/tinystories_cpu.py --dataset=a ',
                    next_command('tinystories', 'a', {}, False))
    assert bits_per_byte(3 * math.log(2) * 5, 5) == pytest.approx(3)


def test_a_kill_at_any_moment_leaves_the_old_dataset_or_the_new_one(run):
    write('a.txt', EOT.join(f'this is {i} of {i * i} ' * 40 for i in range(3000)))
    write('b.txt', f'some older text{EOT}and more')
    allowed = []
    for source in 'ab':
        run('prepare.py', f'--input={source}.txt', '--name=x', '--overwrite=True')
        allowed.append(open_dataset('x')[0]['train']['checksum'])
    program = [sys.executable, str(ROOT / 'prepare.py'), '--input=a.txt', '--name=x',
               '--overwrite=True']
    for delay in (0.3, 0.6, 0.9):
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert open_dataset('x')[0]['train']['checksum'] in allowed
    assert subprocess.run(program, stdout=subprocess.DEVNULL).returncode == 0
    assert sorted(os.listdir('data/x')) == ['.lock', 'meta.json', 'tokenizer.json', 'train.bin',
                                            'val.bin']


def test_more_text_gets_a_larger_model_fewer_epochs_and_less_dropout():
    sizes, epochs, dropouts = [], [], []
    recipe = runpy.run_path(str(ROOT / 'config/papers.py'))
    for tokens in (1000, 70_000, 600_000, 6_000_000, 10**9):
        fitting = fitting_settings(tokens, has_gpu=True)
        sizes.append([fitting.get(name, recipe[name]) for name in ('n_layer', 'n_embd')])
        epochs.append(fitting['max_iters'] * 16 * 256 / tokens)
        dropouts.append(fitting.get('dropout', 0))
    assert sizes == sorted(sizes) and 12 < epochs[1] < 20 and 1 < epochs[3] < 3
    assert epochs == sorted(epochs, reverse=True) and dropouts == sorted(dropouts, reverse=True)


def test_the_estimate_of_the_minutes_grows_with_the_steps_and_is_printed_without_a_gpu(
        capsys, monkeypatch):
    fitting = {'n_layer': 4, 'n_embd': 256, 'max_iters': 100}
    few = training_minutes(fitting, 2048)
    many = training_minutes({**fitting, 'max_iters': 100_000}, 2048)
    assert 0 < few < 20 and many > 50 * few
    for program, lines in (None, 2), ('/usr/bin/nvidia-smi', 1):
        monkeypatch.setattr('shutil.which', lambda name, found=program: found)
        monkeypatch.setattr('platform.system', lambda: 'Linux')
        print_next('mine.txt', 'mine', {'vocab_size': 2048, 'train': {'tokens': 50_000}})
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == lines and shown[-1].startswith('next: python train.py')
        estimated = re.fullmatch(r'training   about \d+ min on this CPU', shown[0])
        assert bool(estimated) == (program is None)
