"""Break the project on purpose and count what is lost: python tests/faults.py NAME [--n=50] [--seed=0]

A fault is a function that causes the real thing n times, asserts that nothing is lost, let in or silently
wrong, and returns what it saw. The scripts run in processes of their own, forked from this one, which has
torch loaded: so one takes 0.2 s and not 3. test_faults.py runs each in short form; this needs Linux."""
import contextlib
import ctypes
import io
import json
import math
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'         # as a fork must not inherit threads, and small work needs none
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import safetensors.torch  # noqa: F401, E402
import tiktoken  # noqa: F401, E402
import tokenizers  # noqa: F401, E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
from conftest import read_log  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import sample  # noqa: F401, E402
from config import Error, configure  # noqa: E402
from config._files import SEAL, checksum, save_sealed  # noqa: E402
from data.files import checksum_of_meta  # noqa: E402
from model import FORMAT, GPT, GPTConfig, load_checkpoint  # noqa: E402

SMALL = ('--dataset=letters --n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=8 --device=cpu '
         '--dtype=float32 --warmup_iters=2 --log_interval=1 --eval_interval=1').split()


# ---- processes
def start(*command, shown='shown.txt', memory=0, file_size=0, **environment):
    """Fork a process that runs a script as the command line would, its output into the file `shown`."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)          # it ends when this process does
        out = os.open(shown, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout = sys.stderr = open(1, 'w', buffering=1, closefd=False)
        for kind, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_FSIZE, file_size)):
            if limit:
                resource.setrlimit(kind, (limit, limit))
        os.environ.update(environment)
        sys.argv = list(command)
        try:
            runpy.run_path(str(ROOT / command[0]), run_name='__main__')
            code = 0
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
    except SystemExit as e:                                 # as the hook says
        code = e.code
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def ended(pid, timeout=60.0):
    """The exit status of a process, negative for a signal. One that hangs fails the test."""
    clock = time.monotonic()
    while time.monotonic() - clock < timeout:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f'still running after {timeout} s:\n{text()}')


def text(shown='shown.txt'):
    return Path(shown).read_text(errors='replace')


def run(*command, timeout=60.0, **knobs):
    """Exit status of a script that has to end well (0), or with one line that says what is wrong (2)."""
    code, said = ended(start(*command, **knobs), timeout), text()
    assert 'Traceback' not in said and code in (0, 2), f'{command} ended with {code}:\n{said[-3000:]}'
    assert sum(line.startswith('error: ') for line in said.splitlines()) == (code == 2), said[-3000:]
    return code


def ok(*command, **knobs):
    assert run(*command, **knobs) == 0, f'{command}:\n{text()}'


def seconds(function, *args):
    clock = time.monotonic()
    function(*args)
    return time.monotonic() - clock


def until(condition, *args, timeout=90.0):
    clock = time.monotonic()
    while not condition(*args):
        assert time.monotonic() - clock < timeout, f'did not happen:\n{text()}'
        time.sleep(0.005)


# ---- what runs leave
def letters(tokenizer='char', **knobs):
    """A dataset of documents so short that the sample of each evaluation is, too."""
    r = random.Random(0)
    words = ['cat', 'sat', 'on', 'a', 'mat']
    documents = (f'the {r.choice(words)} {r.choice(words)} {i}' for i in range(300))
    Path('letters.txt').write_text('<|endoftext|>'.join(documents))
    ok('prepare.py', '--input=letters.txt', '--name=letters', f'--tokenizer={tokenizer}', **knobs)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(a, b):
    """Logs and checkpoints are equal bit for bit."""
    assert read_log(f'{a}/log.csv') == read_log(f'{b}/log.csv')
    for name in ('best.pt', 'ckpt.pt'):
        one, other = load_checkpoint(f'{a}/{name}'), load_checkpoint(f'{b}/{name}')
        for key in one.keys() - {'config'}:
            assert equal(one[key], other[key]), f'{name}: {key} differs'


def step_of(out):
    """The step of the checkpoint, which has to be whole; -1 if there is none."""
    path = Path(out, 'ckpt.pt')
    return load_checkpoint(path)['step'] if path.exists() else -1


def reached(out, step):
    return step_of(out) >= step


# ---- the faults
def kill(n, r, combinations=('adamw gpt2', 'adamw qwen3', 'muon gpt2', 'muon qwen3'), steps=60):
    """SIGKILL at random moments, n for each optimizer and architecture, a checkpoint after every step."""
    letters()
    torn = runs = 0
    for combination in combinations:
        optimizer, arch = combination.split()
        args = ['train.py', *SMALL, f'--optimizer={optimizer}', f'--arch={arch}', '--dropout=0.2',
                f'--max_iters={steps}']
        duration = seconds(ok, *args, f'--out_dir=whole_{arch}_{optimizer}')
        kills, out = 0, None
        while out or kills < n:
            if not out:
                out, runs = f'out{runs}', runs + 1
            pid = start(*args, f'--out_dir={out}', '--init_from=auto')
            if kills < n:
                time.sleep(r.uniform(0, 0.7 * duration))
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL), text()
            kills += code != 0
            torn += any(Path(out).glob('*.tmp'))
            step_of(out)                                    # raises if it is damaged
            if code == 0:
                assert_same_run(out, f'whole_{arch}_{optimizer}')
                shutil.rmtree(out)
                out = None
    return f'{len(combinations) * n} kills, {torn} while a file was written; {runs} runs ended as undisturbed'


def signals(n, r, steps=30):
    """SIGINT and SIGTERM at random moments, half of them twice as launchers send them."""
    letters()
    args = ['train.py', *SMALL, '--dropout=0.2', f'--max_iters={steps}', '--init_from=auto']
    duration = seconds(ok, *args, '--out_dir=whole')
    polite = early = 0
    for i in range(n):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        pid = start(*args)
        time.sleep(r.uniform(0.02, 0.9 * duration))
        for _ in range(r.choice([1, 2]) if '\nstep ' in text() else 1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.02)
        code, said = ended(pid), text()
        assert 'Traceback' not in said, said
        if code and '\nstep ' not in said:                  # before the run had begun
            early += 1                                      # 130: while the knobs were read
            assert code in (-number, 130 if number == signal.SIGINT else None), (code, said)
            continue
        step = step_of('out')
        assert code in (0, 128 + number) and step == int(read_log()[-1]['step']), (code, said)
        polite += code != 0
        assert ('next    python train.py --init_from=resume' in said) == (step < steps), said
        if step == steps:
            assert_same_run('out', 'whole')
            shutil.rmtree('out')
    ok(*args)
    assert_same_run('out', 'whole')
    return f'{n} signals: {polite} finished the step and saved, {early} came before the first step'


def impatience(n, r):
    """A second signal more than 2 s after the first ends a run in the middle of a step, at once."""
    letters()
    for i in range(n):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        pid = start('train.py', *SMALL, f'--out_dir=out{i}', '--batch_size=100000', '--micro_batch_size=1')
        until(reached, f'out{i}', 0)
        os.kill(pid, number)
        time.sleep(2.2)
        os.kill(pid, number)
        assert ended(pid, 1) == 128 + number and step_of(f'out{i}') == 0
    return f'{n} runs ended within 1 s of the second signal'


def early(n, r):
    """Ctrl-C while the libraries are still being imported, which takes seconds: no traceback."""
    letters()
    for _ in range(n):
        command = [sys.executable, ROOT / 'train.py', *SMALL, '--max_iters=100000', '--init_from=auto']
        p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(r.uniform(0.3, 1.2))
        p.send_signal(signal.SIGINT)
        said = p.communicate(timeout=20)[1]
        has_begun = p.returncode == 130 and Path('out/ckpt.pt').exists()
        assert (p.returncode == -signal.SIGINT or has_begun) and not said, (p.returncode, said)
        shutil.rmtree('out', ignore_errors=True)
    return f'{n} runs ended by the signal'


@contextlib.contextmanager
def disk_of(kilobytes):
    """An empty disk of this size in the folder disk, and a function that changes it; None without root."""
    Path('disk').mkdir(exist_ok=True)

    def mount(options):
        return subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'none', 'disk'], capture_output=True)
    if mount(f'size={kilobytes}k').returncode:
        yield None
        return
    try:
        yield lambda options: mount(f'remount,{options}')
    finally:
        subprocess.run(['umount', '-l', 'disk'], check=True)


def disk(n, r, steps=4):
    """A full disk, and a limit on the size of a file: a clear line, and with more room the run goes on."""
    letters()
    args = ['train.py', *SMALL, f'--max_iters={steps}', '--init_from=auto']
    ok(*args, '--out_dir=whole')
    need = sum(p.stat().st_size for p in Path('whole').iterdir()) // 1024 + 1
    hit = {}

    def attempt(out, **limits):
        before = step_of(out)
        if run(*args, f'--out_dir={out}', **limits):
            assert not any(Path(out).glob('*.tmp')) and step_of(out) >= before
            line = next(line for line in text().splitlines() if line.startswith('error: '))
            assert 'cannot write' in line, line
            name = line.split('cannot write')[1].split(':')[0].split('/')[-1]
            hit[name] = hit.get(name, 0) + 1

    def free():
        return os.statvfs('disk').f_bavail * os.statvfs('disk').f_frsize

    for i in range(n):
        if i % 2:
            attempt(f'out{i}', file_size=r.randrange(100, 1024 * need // 2))
            ok(*args, f'--out_dir=out{i}')
            assert_same_run(f'out{i}', 'whole')
            continue
        with disk_of(r.randrange(4, 2 * need)) as change:
            if not change:
                return 'this needs root'
            attempt('disk/out')
            change('size=10m')
            ok(*args, '--out_dir=disk/out')
            assert_same_run('disk/out', 'whole')
            shutil.rmtree('disk/out')
            if i % 4 == 0:                                  # full while only the log is written
                ok(*args, '--out_dir=disk/out', '--max_iters=2', '--schedule=cosine')
                before = Path('disk/out/ckpt.pt').read_bytes()
                with open('disk/rest', 'wb') as f:
                    f.write(bytes(max(0, free() - 8192)))
                assert run(*args, '--out_dir=disk/out', '--max_iters=500', '--eval_interval=400') == 2
                assert 'cannot write disk/out/log.csv' in text() and 'step' in text(), text()
                assert Path('disk/out/ckpt.pt').read_bytes() == before
                hit['log.csv'] = hit.get('log.csv', 0) + 1
                Path('disk/rest').unlink()
            change('ro')
            assert run(*args, '--out_dir=disk/new') == 2
            assert 'cannot write' in text() and 'step' not in text(), text()
    Path('file').write_text('')
    assert run(*args, '--out_dir=file') == 2 and run(*args, '--out_dir=file/out') == 2
    return f'{n} limits, hit by ' + ', '.join(f'{name} {count}' for name, count in sorted(hit.items()))


def damage(data: bytes, r) -> bytes:
    """data with bits flipped, or a range cut, doubled, emptied or exchanged with another, or random."""
    kind, size = r.choice([0, 0, 0, 0, 2, 3, 4, 5, 6, 7]), len(data)
    a, b = sorted(r.randrange(size + 1) for _ in range(2))
    if kind < 3:
        changed = bytearray(data)
        for _ in range(20 if kind else 1):
            changed[r.randrange(size)] ^= 1 << r.randrange(8)
        return bytes(changed)
    if kind == 3:
        return data[:a]
    if kind == 4:
        return data[:a] + data[b:]
    if kind == 5:
        return data[:a] + bytes(b - a) + data[b:]
    if kind == 6:
        return data[b:] + data[a:b] + data[:a]
    return data[:a] + r.randbytes(b - a) + data[b:]


def corrupt(n, r):
    """Damaged files are named, or what comes of them is the same as of whole ones."""
    letters('bpe', shown='shown.txt')
    ok('train.py', *SMALL, '--max_iters=3')
    ok('sample.py', '--out_dir=out', '--export=hf')
    new = ' '.join(['train.py', *SMALL, '--max_iters=2 --out_dir=new'])
    same = {'train.py --init_from=resume --max_iters=6': ['out/ckpt.pt'] * 3,
            f'{new} --init_from=out/best.pt': ['out/best.pt'],
            new:
                [f'data/letters/{name}' for name in ('meta.json', 'train.bin', 'val.bin', 'tokenizer.json')],
            'sample.py --out_dir=hf --num_samples=1 --max_new_tokens=10 --device=cpu':
                ['hf/model.safetensors']}
    cases = [(command, victim) for command, victims in same.items() for victim in victims]
    whole = {p: Path(p).read_bytes() for _, p in cases} | {'out/log.csv': Path('out/log.csv').read_bytes()}

    def result(command):
        code = run(*command.split())
        if code:
            return text()
        if 'train' not in command:
            return 0, text().split('\n')[:-2]               # the last line says how fast it was
        out = 'new' if 'new' in command else 'out'
        found = 0, read_log(f'{out}/log.csv'), *(load_checkpoint(f'{out}/{name}.pt')['model']
                                                 for name in ('ckpt', 'best'))
        shutil.rmtree('new', ignore_errors=True)
        return found

    def restore():
        for path, data in whole.items():
            Path(path).write_bytes(data)

    expected = {}
    for command in same:
        expected[command] = result(command)
        assert expected[command][0] == 0, expected[command]
        restore()
    found = {'detected': 0, 'harmless': 0}
    for i in range(n):
        command, victim = cases[i % len(cases)]
        data = damage(whole[victim], r)
        Path(victim).write_bytes(data)
        if r.random() < 0.05:                               # files of the same kind exchanged
            other = r.choice([p for _, p in cases if Path(p).suffix == Path(victim).suffix])
            Path(victim).write_bytes(whole[other])
            Path(other).write_bytes(whole[victim])
            data = whole[other]
        got = result(command)
        if isinstance(got, str) or 'warning: hf/model.safetensors' in str(got):
            found['detected'] += 1
            assert data != whole[victim], f'{victim} is whole: {got}'
        else:
            found['harmless'] += data != whole[victim]
            assert equal(list(got), list(expected[command])), f'{victim}: silently wrong'
        restore()
    return f'{n} damaged files: {found["detected"]} detected, {found["harmless"]} harmless'


ABSURD = [None, True, -1, 0, 1.5, math.nan, math.inf, -1e300, 10**9, 10**30, -10**30, '', 'x', '\0' * 9,
          [], [1], {}, {'x': 1}, [[[]]] * 3]


def seal(path):
    """Give a file the checksum of a checkpoint, as whoever means harm would."""
    with open(path, 'rb+') as f:
        f.seek(0, 2)
        f.write(SEAL + checksum(path).encode())


def hostile(n, r):
    """Checkpoints, meta.json and config.json that are whole but lie, and PDFs that inflate or are damaged: no
    code run, memory and time bounded."""
    letters('bpe')
    ok('train.py', *SMALL, '--max_iters=2')
    ok('sample.py', '--out_dir=out', '--export=hf')
    good, meta = load_checkpoint('out/ckpt.pt'), json.loads(Path('data/letters/meta.json').read_text())
    hf, log = json.loads(Path('hf/config.json').read_text()), Path('out/log.csv').read_bytes()
    Path('hf/checksums.json').unlink()
    few = '--max_iters=3', '--max_minutes=0.02'
    train = ['train.py', *SMALL, *few]
    codes = {0: 0, 2: 0}

    def attempt(*command):
        code = run(*command, timeout=30, memory=16 << 30)
        codes[code] += 1
        return code

    class Bomb:
        def __reduce__(self):
            return os.mkdir, ('harm',)

    def bomb(path):
        torch.save({'format': FORMAT, 'model': Bomb()}, path)
        seal(path)

    def inflating(path):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
            with z.open('a/data.pkl', 'w', force_zip64=True) as f:
                for _ in range(3000):
                    f.write(bytes(1 << 20))
            z.writestr('a/version', '3')
            z.writestr('a/byteorder', 'little')
        seal(path)

    def stretched(path):
        c = GPTConfig(**good['model_config'])
        c.vocab_size, c.n_embd = 1 << 22, 4096
        c.n_inner, c.head_dim = 32, 16
        with torch.device('meta'):
            shapes = {k: v.shape for k, v in GPT(c).state_dict().items()}
        save_sealed(path, {**good, 'model_config': vars(c),
                           'model': {k: torch.zeros(1).expand(s) for k, s in shapes.items()}})

    def weights_only(path):
        shutil.copy('out/best.pt', path)

    Path('evil').mkdir()
    for make in (bomb, inflating, stretched, weights_only):
        make('evil/ckpt.pt')
        assert attempt('train.py', '--out_dir=evil', '--init_from=resume', '--max_iters=3') == 2, make
        if make != weights_only:
            assert attempt('sample.py', '--out_dir=evil/ckpt.pt', '--max_new_tokens=5') == 2, make
    assert not Path('harm').exists()

    def change(tree):
        """Put something absurd, or nothing, somewhere into a tree of dicts and lists; return a copy."""
        tree = dict(tree) if isinstance(tree, dict) else list(tree)
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = r.choice(keys)
        if isinstance(tree[key], dict | list) and tree[key] and r.random() < 0.8:
            tree[key] = change(tree[key])
        elif r.random() < 0.1:
            del tree[key]
        else:
            tree[key] = r.choice(ABSURD + [torch.zeros(3)] * isinstance(tree[key], torch.Tensor))
        return tree

    named = hostile_pdfs(n, r)
    for i in range(n):
        if i % 4 < 2:
            key = r.choice(['model_config', 'model_config', 'config', 'optimizer', 'scaler', 'model', ''])
            evil = change({key: good[key]}) if key else change(good)
            save_sealed('evil/ckpt.pt', {**good, **evil} if key else evil)
            Path('evil/log.csv').write_bytes(log)
            if i % 4:
                attempt('train.py', '--out_dir=evil', '--init_from=resume', *few)
            elif r.random() < 0.5:
                attempt(*train, '--out_dir=new', '--init_from=evil/ckpt.pt')
            else:
                attempt('sample.py', '--out_dir=evil/ckpt.pt', '--max_new_tokens=5', '--device=cpu')
        elif i % 4 == 2:
            evil = change(meta)
            evil['checksum'] = checksum_of_meta(evil)
            Path('data/letters/meta.json').write_text(json.dumps(evil))
            attempt(*train, '--out_dir=new')
            Path('data/letters/meta.json').write_text(json.dumps(meta))
        else:
            Path('hf/config.json').write_text(json.dumps(change(hf)))
            attempt('sample.py', '--out_dir=hf', '--max_new_tokens=5', '--device=cpu')
        shutil.rmtree('new', ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    assert peak < 3000, f'{peak} MB'
    return (f'{sum(codes.values())} lies: {codes[2]} refused, {codes[0]} valid runs; of {n + 1} PDFs {named} left out; '
            f'{peak} MB at most')


def hostile_pdfs(n, r):
    """How many PDFs are named of one that inflates and n that are damaged. Each costs one line at most."""
    from test_prepare import inflating, pdf
    Path('pdfs').mkdir()
    pdf(Path('pdfs/good.pdf'), [[f'line {i} of a good text'] * 5 for i in range(9)])
    whole = Path('pdfs/good.pdf').read_bytes()
    inflating(Path('pdfs/zeros.pdf'), bytes(1 << 20), 3000)
    for i in range(n):
        Path(f'pdfs/damaged{i}.pdf').write_bytes(damage(whole, r))
    ok('prepare.py', '--input=pdfs', '--tokenizer=char', timeout=300)
    warned = [line for line in text().splitlines() if '.pdf' in line]
    names = [re.search(r'pdfs/(\w+).pdf', line)[1] for line in warned]
    assert len(names) == len({*names}) and {'zeros'} <= {*names} and 'good' not in names, text()
    assert all(line.startswith('warning: ') for line in warned), text()
    return len(names)


def fuzz(n, r):
    """Command lines of any text: knobs of the right types, or Error."""
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st
    scripts = {name: runpy.run_path(str(ROOT / name), run_name='fuzzed')
               for name in ('train.py', 'prepare.py', 'sample.py')}
    known = [key for knobs in scripts.values() for key in knobs['config']]
    odd = ['True', 'False', 'auto', 'None', '1e400', '9' * 5000, '0x10', '１２', '1_0', '\0', '..', 'x' * 300]
    places = ['--help', '-h', '--', '-', '.', '/', 'config', '/dev/null', 'config/gpt2.py']
    values = st.one_of(st.text(), st.integers().map(str), st.floats().map(str), st.sampled_from(odd))
    pairs = st.builds('--{}={}'.format, st.sampled_from(known) | st.text(max_size=9), values)
    words = st.one_of(pairs, pairs, values, st.sampled_from(places))
    seen = {'accepted': 0, 'refused': 0}

    @seed(r.randrange(1 << 32))
    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(list(scripts)), st.lists(words, max_size=4))
    def attempt(script, argv):
        before = scripts[script]['config']
        knobs = before | {name: scripts[script][name] for name in ('__name__', '__doc__', '__file__')}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                config = configure(knobs, argv, ('model.py', 'GPTConfig') if script == 'train.py' else None)
        except SystemExit as e:
            assert e.code == 0 and {'--help', '-h'} & {*argv}
        except Error as e:
            seen['refused'] += 1
            assert str(e)
        else:
            seen['accepted'] += 1
            assert config.keys() == before.keys()
            for key, value in config.items():
                kinds = (str, bool) if before[key] == 'auto' else (type(before[key]),)
                assert type(value) in kinds and knobs[key] == value
                assert type(value) is str or abs(value) < 1 << 63 or math.isfinite(value)

    attempt()
    return f'{n} command lines: {seen["accepted"]} accepted, {seen["refused"]} refused'


def values(n, r):
    """Training runs with absurd values of one or two knobs: a valid run, or one line."""
    letters()
    knobs = runpy.run_path(str(ROOT / 'train.py'), run_name='fuzzed')['config']
    rest = set(knobs) - {'out_dir', 'max_minutes', 'wandb_project', 'compile', 'dataset'}
    numbers = [-1, 0, 1, 2, 3, 7, 10**3, 10**6, 10**9, 10**12, 2**31, 2**63 - 1, 2**63, 10**40]
    words = ['', 'x', 'auto', 'cpu', 'cuda', 'mps', 'meta', 'cpu:3', 'gpt2', 'adamw', 'cosine', 'bfloat16',
             'float64', 'resume', '.', '/', 'letters.txt', '\x7f', 'x' * 5000]
    codes = {0: 0, 2: 0}
    for _ in range(n):
        args = []
        for key in r.sample(sorted(rest), r.choice([1, 1, 2])):
            if key == 'batch_size':             # a step of 10**6 sequences is valid and takes minutes
                value = r.choice([-1, 0, 1, 2, 3, 7, 10**3, 10**5, 2**31, 2**63 - 1, 2**63, 10**40])
            elif type(knobs[key]) is int:
                value = r.choice(numbers)
            elif type(knobs[key]) is float:
                value = r.choice([-1.0, 0.0, 1e-300, 1e-9, 0.5, 0.999999, 1.0, 2.0, 1e9, 1e300])
            elif type(knobs[key]) is bool:
                value = r.choice([True, False])
            else:
                value = r.choice(words)
            args.append(f'--{key}={value}')
        codes[run('train.py', *SMALL, '--max_iters=2', '--eval_interval=2', *args, '--max_minutes=0.01',
                  timeout=400, memory=12 << 30)] += 1
        shutil.rmtree('out', ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    return f'{n} runs: {codes[2]} refused, {codes[0]} valid; {peak} MB at most'


def memory(n, r):
    """Out of memory: one line that names the knob which helps, and the run can go on with it."""
    letters()
    for i in range(n):
        args = ['train.py', *SMALL, '--max_iters=2', f'--out_dir=out{i}', '--batch_size=80000',
                '--micro_batch_size=80000']
        assert run(*args, memory=3 << 30) == 2 and 'micro_batch_size' in text(), text()
        ok('train.py', *SMALL, '--max_iters=1', f'--out_dir=out{i}', '--overwrite=True')
    return f'{n} runs ended with the line'


def numbers(n, r):
    """A rate that explodes stops a run and names the step; a loss under the floor warns of a leak."""
    letters()
    for i in range(n):
        assert run('train.py', *SMALL, '--max_iters=20', '--learning_rate=1e18', f'--out_dir=out{i}',
                   '--grad_clip=0', f'--arch={("gpt2", "qwen3")[i % 2]}') == 2
        assert 'step' in text() and 'learning_rate' in text(), text()
        checkpoint = load_checkpoint(f'out{i}/ckpt.pt')
        assert all(t.isfinite().all() for t in checkpoint['model'].values())
    meta = json.loads(Path('data/letters/meta.json').read_text())
    for entropy, warns in ((10.0 * meta['val']['tokens'], True), (0.1 * meta['val']['tokens'], False)):
        meta['val']['entropy'] = entropy
        meta['checksum'] = checksum_of_meta(meta)
        Path('data/letters/meta.json').write_text(json.dumps(meta))
        ok('train.py', *SMALL, '--max_iters=1', '--overwrite=True')
        assert ('warning' in text() and 'leak' in text()) == warns
    return f'{n} explosions'


def ranks(world_size, *command):
    """Fork the processes that torchrun would start for a script; their pids."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))                            # a port that is free
        port = s.getsockname()[1]
    return [start(*command, shown=f'shown{i}.txt', RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE=str(world_size),
                  MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)) for i in range(world_size)]


def losses(out):
    return [float(row['train_loss']) for row in read_log(f'{out}/log.csv') if row['train_loss']]


def assert_close(a, b, tolerance=1e-4):
    assert len(a) == len(b) and all(abs(x - y) <= tolerance * abs(y) for x, y in zip(a, b)), (a, b)


def distributed(n, r, world_size=4, steps=40):
    """Other numbers of processes, lost processes, signals: the same losses, and no checkpoint lost."""
    letters()
    args = ['train.py', *SMALL, '--optimizer=adamw', '--learning_rate=1e-3', '--init_from=auto']
    half, full = f'--max_iters={steps // 2}', f'--max_iters={steps}'

    def together(*command):
        assert not any(ended(pid) for pid in ranks(world_size, *args, *command)), text('shown0.txt')

    def alone(*command):
        ok(*args, *command)

    outs = {'whole': (alone, alone), 'less': (together, alone), 'more': (alone, together)}
    for out, (first, second) in outs.items():
        first(half, f'--out_dir={out}')
        second(full, f'--out_dir={out}')
        assert_close(losses(out), losses('whole'))
    longest, lost = 0.0, 0
    for i in range(n):
        alone(full, f'--out_dir=alone{i}') if i == 0 else None
        pids = ranks(world_size, *args, full, f'--out_dir=lost{i}')
        until(reached, f'lost{i}', 1 + i % 4)
        clock = time.monotonic()
        os.kill(pids[i % world_size], signal.SIGKILL)
        codes = [ended(pid, 60 - time.monotonic() + clock) for pid in pids]
        if max(codes) > 0:                                  # else it was lost after the last step
            lost += 1
            said = ''.join(text(f'shown{k}.txt') for k in range(world_size) if codes[k] > 0)
            assert 'Traceback' not in said and 'init_from=resume' in said, said
            longest = max(longest, time.monotonic() - clock)
        alone(full, f'--out_dir=lost{i}')
        assert_close(losses(f'lost{i}'), losses('alone0'))

        pids = ranks(world_size, *args, full, f'--out_dir=stopped{i}')
        until(reached, f'stopped{i}', 1 + i % 4)
        for pid in r.sample(pids, r.randint(1, world_size)):            # one rank or all, in any order
            os.kill(pid, signal.SIGTERM)
        assert {ended(pid) for pid in pids} <= {143, 0}
        said = text('shown0.txt')
        assert step_of(f'stopped{i}') == int(read_log(f'stopped{i}/log.csv')[-1]['step']), said
        alone(full, f'--out_dir=stopped{i}')
        assert_close(losses(f'stopped{i}'), losses('alone0'))
    return f'{lost} of {n} lost processes, all ended in {longest:.1f} s at most; {n} stops'


def torchrun(n, r):
    """The launcher itself: it starts anew after a lost process, and passes a signal on to all."""
    letters()
    args = [*SMALL, '--optimizer=adamw', '--learning_rate=1e-3', '--max_iters=400', '--init_from=auto']
    ok('train.py', *args, '--out_dir=whole')
    # Else the new processes may be told where the dead ones were: github.com/pytorch/pytorch/issues/135712
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    for i in range(n):
        with open('shown.txt', 'w') as f:
            launcher = subprocess.Popen(
                [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
                 '--max-restarts=1', ROOT / 'train.py', *args, f'--out_dir=out{i}'], stdout=f, stderr=f)
        try:
            until(reached, f'out{i}', 3)
            worker = r.choice(Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split())
            os.kill(int(worker), signal.SIGKILL)
            until(lambda: 'resume  ' in text())
            until(reached, f'out{i}', step_of(f'out{i}') + 1)
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(60)
        finally:
            launcher.kill()
        assert 'next    python train.py --init_from=resume' in text(), text()
        assert step_of(f'out{i}') == int(read_log(f'out{i}/log.csv')[-1]['step'])
        ok('train.py', *args, f'--out_dir=out{i}')
        assert_close(losses(f'out{i}'), losses('whole'), 1e-3)
    return f'{n} times a process was lost, the rest started anew and stopped at a signal'


def lock(n, r):
    """Of two runs in one out_dir the second is refused, whatever it wants, and a dead one holds nothing."""
    letters()
    args = ['train.py', *SMALL, '--max_iters=100000']
    for _ in range(n):
        first = start(*args, '--init_from=auto')
        until(reached, 'out', 0)
        for knob in ('--init_from=resume', '--init_from=auto', '--overwrite=True'):
            pid = start(*args, knob, shown='second.txt')
            assert ended(pid) == 2 and 'in use by another run' in text('second.txt'), text('second.txt')
        ok('sample.py', '--max_new_tokens=5', shown='shown.txt')
        os.kill(first, r.choice([signal.SIGTERM, signal.SIGKILL]))
        assert ended(first) in (143, -9)
    ok(*args, '--init_from=resume', f'--max_iters={step_of("out") + 1}')
    return f'{3 * n} second runs refused'


def long(n, r):
    """n seconds of a run that evaluates, samples and saves at every step: nothing grows, nothing slows."""
    letters()
    pid = start('train.py', *SMALL, '--max_iters=10000000', f'--max_minutes={n / 60}')
    seen = []
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f'/proc/{pid}/status').read_text()
            resident = int(next(line for line in status.splitlines() if line.startswith('VmRSS')).split()[1])
            seen.append((resident / 1024, len(os.listdir(f'/proc/{pid}/fd'))))
        time.sleep(n / 400)
    rows, third = read_log_speed(), len(seen) // 3
    middle, end = seen[third:2 * third], seen[2 * third:]
    first, last = (sum(x for x, _ in part) / len(part) for part in (middle, end))
    files = [sorted(y for _, y in part)[len(part) // 2] for part in (middle, end)]
    third = len(rows) // 3
    slow = sum(1 / v for v in rows[-third:]) / sum(1 / v for v in rows[:third])
    said = (f'{len(rows)} steps, each evaluated and saved; from the second to the last third {first:.1f} to '
            f'{last:.1f} MB, {files[0]} to {files[1]} open files; a step takes {slow:.3f} of the first third')
    assert last - first < 1 + 0.01 * first and files[1] <= files[0], said
    assert n < 300 or (slow < 1.1 and len(rows) >= 1000), said
    return said


def read_log_speed():
    import csv
    with open('out/log.csv', newline='') as f:
        return [float(row['tokens_per_second']) for row in csv.DictReader(f) if row['tokens_per_second']]


FAULTS = {f.__name__: f for f in (kill, signals, impatience, early, disk, corrupt, hostile, fuzz, values,
                                  memory, numbers, distributed, torchrun, lock, long)}


def main(name, n=50, seed=0, **more):
    """Run a fault in an empty folder, and print what it saw."""
    clock = time.monotonic()
    Figure().savefig(io.BytesIO(), format='png')            # finds its fonts once
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            said = FAULTS[name](n, random.Random(seed), **more)
        finally:
            os.chdir(ROOT)
    print(f'{name:12} {said}; {time.monotonic() - clock:.0f} s')


if __name__ == '__main__':
    name, *options = sys.argv[1:] or ['']
    if name not in FAULTS:
        sys.exit(f'{__doc__}\n\nNAME is one of {", ".join(FAULTS)}')
    main(name, **{key: int(value) for key, value in (option[2:].split('=') for option in options)})
