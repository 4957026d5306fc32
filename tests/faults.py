"""Break the project on purpose: python tests/faults.py NAME [--n=50] [--seed=0]

Each fault causes the real thing n times, asserts that nothing is lost, accepted or silently wrong,
and returns what it saw. The scripts run in processes forked from this one, which has torch loaded:
they start in 0.2 s instead of 3. test_faults.py runs short versions. Needs Linux."""
import contextlib
import ctypes
import io
import itertools
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

os.environ['OMP_NUM_THREADS'] = '1'         # a fork does not inherit threads
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import torch  # noqa: E402
import torch._dynamo  # noqa: E402
from conftest import read_log  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from lib.checkpoint import read as read_checkpoint  # noqa: E402
from lib.settings import read_fields  # noqa: E402
from model import GPT  # noqa: E402

SMALL = ('--dataset=letters --n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=8 '
         '--device=cpu --dtype=float32 --warmup_iters=2 --log_interval=1 --eval_interval=1').split()


# ---- processes
def start(*command, shown='shown.txt', memory=0, file_size=0, **environment) -> int:
    """Fork a process that runs a script as the command line would; its output goes to the file
    `shown`. Returns its pid. memory, file_size: limits in bytes."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)          # it ends when this process does
        out = os.open(shown, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
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
    except SystemExit as e:                                 # raised by the excepthook
        code = e.code
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def ended(pid, timeout=60.0) -> int:
    """The exit status of a process, negative for a signal. A process that hangs fails the test."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f'still running after {timeout} s:\n{text()}')


def text(shown='shown.txt') -> str:
    return Path(shown).read_text(errors='replace')


def run(*command, timeout=60.0, **limits) -> int:
    """Exit status of a script that has to end well (0), or with one line of error (2)."""
    code, said = ended(start(*command, **limits), timeout), text()
    errors = re.findall('^error: ', said, re.M)
    is_clean = 'Traceback' not in said and code in (0, 2) and len(errors) == (code == 2)
    assert is_clean, f'{command} ended with {code}:\n{said[-3000:]}'
    return code


def ok(*command, **limits) -> float:
    """Run a script that has to end well; its seconds."""
    clock = time.monotonic()
    assert run(*command, **limits) == 0, f'{command}:\n{text()}'
    return time.monotonic() - clock


def refused(*command, **limits) -> str:
    """The output of a script that has to end with one line of error."""
    assert run(*command, **limits) == 2, f'{command} was accepted:\n{text()}'
    return text()


def until(condition, timeout=90.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f'did not happen:\n{text()}'
        time.sleep(0.005)


# ---- what runs leave
def letters():
    """Make a dataset of short documents: short samples keep evaluations quick."""
    r = random.Random(0)
    words = ['cat', 'sat', 'on', 'a', 'mat']
    documents = (f'the {r.choice(words)} {r.choice(words)} {i}' for i in range(300))
    Path('letters.txt').write_text('<|endoftext|>'.join(documents))
    ok('prepare.py', '--input=letters.txt', '--name=letters', '--tokenizer=char')


def equal(a, b) -> bool:
    """Whether trees of dicts and lists are equal, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(a, b):
    """Logs and checkpoints are equal bit for bit, settings aside."""
    assert read_log(f'{a}/log.csv') == read_log(f'{b}/log.csv')
    for name in ('best.pt', 'ckpt.pt'):
        one, other = read_checkpoint(f'{a}/{name}'), read_checkpoint(f'{b}/{name}')
        for key in (one.keys() | other.keys()) - {'settings'}:
            assert equal(one[key], other[key]), f'{name}: {key} differs'


def step_of(out) -> int:
    """The step of the checkpoint, which must be whole; -1 if there is none."""
    path = Path(out, 'ckpt.pt')
    return read_checkpoint(path)['step'] if path.exists() else -1


def until_step(out, step):
    until(lambda: step_of(out) >= step)


def logged_step(out='out') -> int:
    """The last step in log.csv."""
    return max((int(row['step']) for row in read_log(f'{out}/log.csv')), default=0)


def losses(out) -> list[float]:
    rows = read_log(f'{out}/log.csv')
    return [float(row['train_loss']) for row in rows if row['train_loss']]


def assert_close(a, b, tolerance=1e-4):
    assert len(a) == len(b), (a, b)
    assert all(abs(x - y) <= tolerance * abs(y) for x, y in zip(a, b)), (a, b)


# ---- signals
def kill(n, r, steps=60):
    """SIGKILL at random moments, n for each optimizer and architecture, with a checkpoint after
    every step: runs end bit for bit as undisturbed ones."""
    letters()
    torn = runs = 0
    for optimizer, arch in itertools.product(('adamw', 'muon'), ('gpt2', 'qwen3')):
        args = ['train.py', *SMALL, f'--optimizer={optimizer}', f'--arch={arch}', '--dropout=0.2',
                f'--max_iters={steps}']
        whole, kills = f'whole_{arch}_{optimizer}', 0
        seconds = ok(*args, f'--out_dir={whole}')
        while kills < n:
            out, code, runs = f'out{runs}', None, runs + 1
            while code != 0:
                pid = start(*args, f'--out_dir={out}', '--init_from=auto')
                if kills < n:
                    time.sleep(r.uniform(0, 0.7 * seconds))
                    os.kill(pid, signal.SIGKILL)
                code = ended(pid)
                assert code in (0, -signal.SIGKILL), text()
                kills += code != 0
                torn += any(Path(out).glob('*.tmp'))
                step_of(out)                                # raises if it is corrupted
            assert_same_run(out, whole)
            shutil.rmtree(out)
    return f'{4 * n} kills, {torn} while a file was written; {runs} runs ended as undisturbed'


def signals(n, r, steps=30):
    """SIGINT and SIGTERM at random moments, half of them sent twice, as launchers do."""
    letters()
    args = ['train.py', *SMALL, '--dropout=0.2', f'--max_iters={steps}', '--init_from=auto']
    seconds = ok(*args, '--out_dir=whole')
    polite = premature = 0
    for i in range(n):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        pid = start(*args)
        time.sleep(r.uniform(0.02, 0.9 * seconds))
        for _ in range(r.choice([1, 2]) if '\nstep ' in text() else 1):
            os.kill(pid, number)                            # a zombie takes it, too
            time.sleep(0.02)
        code, said = ended(pid), text()
        assert 'Traceback' not in said, said
        if code and 'stopping; interrupt again' not in said:     # before the loop began
            premature += 1                                  # 130: while the settings were read
            assert code in (-number, 130 if number == signal.SIGINT else None), (code, said)
            continue
        step = step_of('out')
        assert code in (0, 128 + number) and step == logged_step(), (code, said)
        polite += code != 0
        assert ('next    python train.py --init_from=resume' in said) == (step < steps), said
        if step == steps:
            assert_same_run('out', 'whole')
            shutil.rmtree('out')
    ok(*args)
    assert_same_run('out', 'whole')
    return f'{n} signals: {polite} saved, {premature} came before the loop'


def impatience(n, r):
    """A second signal more than 2 s after the first ends a run at once, in the middle of a step."""
    letters()
    forward = GPT.forward

    def slow(self, *args, **kwargs):
        time.sleep(10 * self.training)
        return forward(self, *args, **kwargs)
    for i in range(n):
        number, out = (signal.SIGTERM, signal.SIGINT)[i % 2], f'out{i}'
        with patch.object(GPT, 'forward', slow):
            pid = start('train.py', *SMALL, f'--out_dir={out}')
        until_step(out, 0)
        os.kill(pid, number)
        time.sleep(2.2)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), 'it goes on with its micro-batch'
        os.kill(pid, number)
        assert ended(pid, 1) == 128 + number and step_of(out) == 0
    return f'{n} runs ended within 1 s of the second signal'


# ---- disk and memory
@contextlib.contextmanager
def disk_of(size):
    """An empty disk of this size in the folder disk. Yields a function that remounts it with other
    options, or None without root."""
    def mount(options):
        command = ['mount', '-t', 'tmpfs', '-o', options, 'none', 'disk']
        return subprocess.run(command, capture_output=True)

    Path('disk').mkdir(exist_ok=True)
    if mount(f'size={size}').returncode:
        yield None
        return
    try:
        yield lambda options: mount(f'remount,{options}')
    finally:
        subprocess.run(['umount', '-l', 'disk'], check=True)


def disk(n, r, steps=4):
    """A full disk, and a limit on the size of a file: one clear line; with room the run goes on."""
    letters()
    args = ['train.py', *SMALL, f'--max_iters={steps}', '--init_from=auto']
    ok(*args, '--out_dir=whole')
    need = sum(path.stat().st_size for path in Path('whole').iterdir())         # bytes
    hit = {}
    for i in range(n):
        out, limits, size = f'disk/out{i}', {}, '10m'
        if i % 2:
            limits = {'file_size': r.randrange(100, need // 2)}
        else:
            size = r.randrange(4096, 2 * need)
        with disk_of(size) as change:
            if not change:
                return 'this needs root'
            train_until_full(args, out, hit, **limits)
            change('size=10m')
            ok(*args, f'--out_dir={out}')
            assert_same_run(out, 'whole')
            if i % 4 == 0:
                fill_while_logging(args, hit)
            change('ro')
            said = refused(*args, '--out_dir=disk/new')
            assert 'cannot write' in said and 'step' not in said, said
    Path('file').write_text('')
    refused(*args, '--out_dir=file')
    refused(*args, '--out_dir=file/out')
    return f'{n} limits, hit by ' + ', '.join(f'{name} {hit[name]}' for name in sorted(hit))


def train_until_full(args, out, hit, **limits):
    """Train where a file may not fit; count in `hit` which one did not. No checkpoint is lost."""
    before = step_of(out)
    if run(*args, f'--out_dir={out}', **limits) == 0:
        return
    assert not any(Path(out).glob('*.tmp')) and step_of(out) >= before
    name = re.search(r'^error: cannot write (?:to )?([^\s:]+)', text(), re.M)[1].split('/')[-1]
    hit[name] = hit.get(name, 0) + 1


def fill_while_logging(args, hit):
    """Fill the disk when only log.csv is still to be written."""
    args = [*args, '--out_dir=disk/log']
    ok(*args, '--max_iters=2')
    before = Path('disk/log/ckpt.pt').read_bytes()
    space = shutil.disk_usage('disk').free
    Path('disk/rest').write_bytes(bytes(max(0, space - 8192)))
    said = refused(*args, '--max_iters=500', '--eval_interval=400')
    assert 'cannot write disk/log/log.csv' in said and 'step' in said, said
    assert Path('disk/log/ckpt.pt').read_bytes() == before
    hit['log.csv'] = hit.get('log.csv', 0) + 1


def memory(n, r):
    """Out of memory: one line names the setting that helps, and the folder can be used again."""
    letters()
    for i in range(n):
        out = f'--out_dir=out{i}'
        said = refused('train.py', *SMALL, '--max_iters=2', out, '--batch_size=80000',
                       '--micro_batch_size=80000', memory=3 << 30)
        assert 'micro_batch_size' in said, said
        ok('train.py', *SMALL, '--max_iters=1', out, '--overwrite=True')
    return f'{n} runs ended with the line'


# ---- settings
def values(n, r):
    """Training runs with absurd values of one or two settings: a valid run, or one line."""
    letters()
    train = runpy.run_path(str(ROOT / 'train.py'), run_name='fuzzed')['settings']
    settings = {**train, **read_fields('model.py:GPTConfig')}
    for name in ('out_dir', 'max_minutes', 'wandb_project', 'compile', 'dataset'):
        settings.pop(name, None)
    absurd = {
        int: [-1, 0, 1, 2, 3, 7, 10**3, 10**6, 10**9, 10**12, 2**31, 2**63 - 1, 2**63, 10**40],
        float: [-1.0, 0.0, 1e-300, 1e-9, 0.5, 0.999999, 1.0, 2.0, 1e9, 1e300],
        bool: [True, False],
        str: ['', 'x', 'auto', 'cpu', 'cuda', 'mps', 'meta', 'cpu:3', 'gpt2', 'adamw', 'cosine',
              'bfloat16', 'float64', 'resume', '.', '/', 'letters.txt', '\x7f', 'x' * 5000]}
    codes = {0: 0, 2: 0}
    for _ in range(n):
        args = []
        for key in r.sample(sorted(settings), r.choice([1, 1, 2])):
            value = r.choice(absurd[type(settings[key])])
            if key == 'batch_size' and value == 10**6:      # is valid, but a step takes minutes
                value = 10**5
            args.append(f'--{key}={value}')
        command = ['train.py', *SMALL, '--max_iters=2', '--eval_interval=2', *args]
        codes[run(*command, '--max_minutes=0.01', timeout=400, memory=12 << 30)] += 1
        shutil.rmtree('out', ignore_errors=True)
    return f'{n} runs: {codes[2]} refused, {codes[0]} valid'


# ---- several processes
def ranks(world_size, *command) -> list[int]:
    """Fork the processes that torchrun would start for a script; their pids."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))                            # a free port
        port = s.getsockname()[1]
    return [start(*command, shown=f'shown{i}.txt', RANK=str(i), LOCAL_RANK=str(i),
                  WORLD_SIZE=str(world_size), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
            for i in range(world_size)]


def distributed(n, r, world_size=4, steps=40):
    """Other numbers of processes, lost processes, signals: the same losses, and no checkpoint is
    lost."""
    letters()
    args = ['train.py', *SMALL, '--init_from=auto', f'--max_iters={steps}']
    half = f'--max_iters={steps // 2}'

    def together(*command):
        assert not any(ended(pid) for pid in ranks(world_size, *args, *command)), text('shown0.txt')

    def alone(*command):
        ok(*args, *command)

    for out, first, second in (('alone', alone, alone), ('fewer', together, alone),
                               ('more', alone, together)):
        first(f'--out_dir={out}', half)
        second(f'--out_dir={out}')
        assert_close(losses(out), losses('alone'))
    alone('--out_dir=whole')
    seconds = []
    for i in range(n):
        seconds += lose_a_process(i, args, world_size)
        stop_by_signal(i, args, world_size, r)
        for out in (f'lost{i}', f'stopped{i}'):
            alone(f'--out_dir={out}')
            assert_close(losses(out), losses('whole'))
    longest = max(seconds, default=0)
    return f'{len(seconds)} of {n} runs lost a process and ended in {longest:.1f} s; {n} stops'


def lose_a_process(i, args, world_size) -> list[float]:
    """Kill a process of a run, whose others must end with one line; the seconds until then."""
    pids = ranks(world_size, *args, f'--out_dir=lost{i}')
    until_step(f'lost{i}', 1 + i % 4)
    clock = time.monotonic()
    os.kill(pids[i % world_size], signal.SIGKILL)
    codes = [ended(pid) for pid in pids]
    if max(codes) <= 0:                                     # it was killed after the last step
        return []
    said = ''.join(text(f'shown{k}.txt') for k in range(world_size) if codes[k] > 0)
    assert 'Traceback' not in said and 'init_from=resume' in said, said
    return [time.monotonic() - clock]


def stop_by_signal(i, args, world_size, r):
    """SIGTERM to one process, some, or all: they stop at the same step, which is saved."""
    pids = ranks(world_size, *args, f'--out_dir=stopped{i}')
    until_step(f'stopped{i}', 1 + i % 4)
    for pid in r.sample(pids, r.randint(1, world_size)):
        os.kill(pid, signal.SIGTERM)
    codes = [ended(pid) for pid in pids]
    assert {*codes} <= {143, 0}, f'{codes} {text("shown0.txt")} {text("shown1.txt")}'
    assert step_of(f'stopped{i}') == logged_step(f'stopped{i}'), text('shown0.txt')


# ---- a long run
def long(n, r):
    """n seconds of a run that evaluates, samples and saves at every step: nothing grows."""
    letters()
    pid = start('train.py', *SMALL, '--max_iters=10000000', f'--max_minutes={n / 60}')
    memory, files = [], []
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        with contextlib.suppress(OSError, TypeError):       # the process has just begun or ended
            resident = re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1]
            memory.append(int(resident) / 1024)
            files.append(len(os.listdir(f'/proc/{pid}/fd')))
        time.sleep(n / 400)
    third = len(memory) // 3
    before, after = (statistics.mean(memory[i * third:(i + 1) * third]) for i in (1, 2))
    fewer, more = (statistics.mean(files[i * third:(i + 1) * third]) for i in (1, 2))
    said = (f'{len(losses("out"))} steps, each evaluated and saved; from the second to the last '
            f'third {before:.1f} to {after:.1f} MB, {fewer:.1f} to {more:.1f} open files')
    assert after - before < 1 + 0.01 * before and more < fewer + 1, said
    return said


FAULTS = {fault.__name__: fault for fault in (
    kill, signals, impatience, disk, memory, values, distributed, long)}


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
