"""Measure slm beside its peers: python tests/bench.py ROW [--nanogpt=FOLDER --llama2c=FOLDER ...]

ROW is throughput, busy, shakespeare, tinystories, sampling, preparation, memory, or all. Each
prints rows of a Markdown table: the medians of runs in processes of their own that alternate
A B A B, the ratio slm / peer, and the smallest and largest ratio of a pair. Peers run from their
own unchanged files; where a number in one had to change, the function that runs it says so. Needs
Linux."""
import csv
import itertools
import json
import os
import pickle
import random
import re
import runpy
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from lib.errors import require  # noqa: E402
from lib.settings import configure  # noqa: E402

nanogpt = ''                # a clone of github.com/karpathy/nanoGPT
llama2c = ''                # a clone of github.com/karpathy/llama2.c
input = ''                  # shakespeare: the text of tinyshakespeare
tinystories = ''            # tinystories, preparation: TinyStories, a folder with data/*.parquet
pairs = 3                   # how often slm and a peer are measured in turn
steps = 300                 # throughput, busy: steps; the larger model takes a tenth of them
iters = 2000                # shakespeare: nanoGPT's steps, as in its README
shakespeare_train = 'config/shakespeare_cpu.py'     # shakespeare: slm's arguments of train.py
tinystories_prepare = '--vocab_size=1024'           # tinystories: of prepare.py
tinystories_train = ('config/tinystories_cpu.py --compile=False --batch_size=8 --warmup_iters=40 '
                     '--max_iters=225')             # tinystories: of train.py
setups = 'char:64,gpt2:64'  # tinystories: nanoGPT's tokenizer:block_size; the best one counts
minutes = 5.0               # tinystories: nanoGPT's training
sharp = 13.0                # sampling: scale of the logits; 13 is like a trained model's
mb = 100                    # preparation: MB of text
num_proc = 0                # preparation: processes of nanoGPT; 0 = as many as cores
shape = '12x12x768'         # memory: layers x heads x channels
device = 'auto'             # cpu, cuda: only the rows of that device; auto = both
_row, *_options = sys.argv[1:] or ['--help']
if _row.startswith('-'):
    _options = ['--help']
settings = configure(globals(), argv=[] if _row == 'child' else _options)

NEEDS = {'throughput': 'nanogpt', 'busy': '', 'shakespeare': 'nanogpt input',
         'tinystories': 'nanogpt tinystories', 'sampling': 'nanogpt llama2c',
         'preparation': 'nanogpt tinystories', 'memory': 'nanogpt'}
EXAMPLE = ('config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 '
           '--log_interval=1 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 '
           '--dropout=0.0 ')                        # nanoGPT's own example for a CPU
QUIET = ('--eval_iters=1 --eval_interval=1000000 --log_interval=1 '
         '--gradient_accumulation_steps=1 ')
UNEVALUATED = '--eval_interval=0 --eval_tokens=1000 '
NEW = 256                   # tokens to sample
CORES = len(os.sched_getaffinity(0))


# ---- processes. All work in one temporary folder, with slm/ and peer/ to run the scripts in
class Run:
    """A command, run to its end: its seconds, output and peak resident MB."""

    def __init__(self, *command, cwd='.', **environment):
        words = []
        for part in command:
            words += part.split() if type(part) is str else [part]
        words = [sys.executable if word == 'python' else str(word) for word in words]
        clock = time.perf_counter()
        with tempfile.TemporaryFile('w+') as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, cwd=cwd,
                                       env=os.environ | environment)
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds, self.resident = time.perf_counter() - clock, usage.ru_maxrss / 1024
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            self.output = output.read()
        require(process.returncode == 0, f'{" ".join(words)} ended with {process.returncode}: '
                                         f'{self.output[-400:]}')


def ask(function, *arguments, **environment):
    """What function(*arguments) returns in a process of its own."""
    ran = Run('python', Path(__file__).resolve(), 'child', function.__name__,
              ARGUMENTS=json.dumps(arguments), **environment)
    return json.loads(re.findall('^result: (.*)$', ran.output, re.M)[-1])


def prepare_slm(options=''):
    return Run('python', ROOT / 'prepare.py', '--overwrite=True', options, cwd='slm')


def train_slm(*options):
    """Run train.py; returns the Run and (tokens, seconds) between log rows, without evaluations."""
    ran = Run('python', ROOT / 'train.py', *options, '--out_dir=out --overwrite=True', cwd='slm')
    parts, last = [], 0
    with open('slm/out/log.csv', newline='') as f:
        for row in csv.DictReader(f):
            if row['lr']:
                tokens = int(row['tokens']) - last
                parts.append((tokens, tokens / float(row['tokens_per_second'])))
                last += tokens
    return ran, parts


def training_seconds(options) -> float:
    return sum(seconds for _, seconds in train_slm(options)[1])


def train_nanogpt(options):
    """Run nanoGPT's train.py; returns the Run and the seconds of its iterations, with
    evaluations."""
    ran = Run('python ../nanoGPT/train.py', options, '--out_dir=out', cwd='peer')
    times = re.findall(r'^iter \d+: .* time ([\d.]+)ms', ran.output, re.M)
    return ran, [float(ms) / 1000 for ms in times]


# ---- the table
def row(*cells):
    print('| ' + ' | '.join(cells) + ' |', flush=True)


def judged(value, wanted) -> str:
    """wanted, a sign and a bound, and whether a value misses it."""
    sign, bound, *_ = wanted.split() or ('>=', 0)
    is_met = value >= float(bound) if sign == '>=' else value <= float(bound)
    return wanted if is_met else wanted + ', MISSED'


def in_turn(ours, theirs):
    """What ours() returned in each pair, and what theirs() did."""
    return list(zip(*[(ours(), theirs()) for _ in range(pairs)]))


def compare(name, ours, peer, theirs, wanted='', unit='tokens/s'):
    """Print the row of two functions that return a number each."""
    measured = in_turn(ours, theirs)
    a, b = map(statistics.median, measured)
    ratios = [x / y for x, y in zip(*measured)]
    row(name, f'{a:,.1f} {unit}', f'{peer}: {b:,.1f} {unit}', f'{a / b:.2f}',
        f'{min(ratios):.2f}..{max(ratios):.2f}', judged(a / b, wanted))


def race(name, ours, theirs, unit, most_time, size_counts):
    """Print the row of two functions that return seconds, loss and parameters each."""
    measured = in_turn(ours, theirs)
    (a, _, size), (b, bound, most) = (map(statistics.median, zip(*side)) for side in measured)
    losses = [loss for _, loss, _ in measured[0]]           # one for each seed: all must be low
    ratios = [x[0] / y[0] for x, y in zip(*measured)]
    wanted = [judged(a / b, f'<= {most_time:.3f}'), judged(max(losses) - bound, '<= 0 in loss')]
    if size_counts:
        wanted.append(judged(size - most, '<= 0 in parameters'))
    row(name, f'{a:,.1f} s, {min(losses):.4f}..{max(losses):.4f} {unit}, {size:,} parameters',
        f'nanoGPT: {b:,.1f} s, {bound:.4f} {unit}, {most:,} parameters', f'{a / b:.3f}',
        f'{min(ratios):.3f}..{max(ratios):.3f}', '; '.join(wanted))


def on_gpu(name) -> bool:
    if not _gpu and device != 'cpu':
        row(name, 'not measured: no GPU', '', '', '', '')
    return _gpu and device != 'cpu'


# ---- training speed
def middle_speed(parts) -> float:
    """Tokens per second of a run from its (tokens, seconds): the median after the first fifth."""
    return statistics.median(tokens / seconds for tokens, seconds in parts[len(parts) // 5:])


def slm_speed(options, n):
    options += f'--arch=gpt2 --warmup_iters=2 --log_interval={n // 10} '
    return middle_speed(train_slm(options + UNEVALUATED)[1])


def nanogpt_speed(options, size, n):
    times, part = train_nanogpt(QUIET + options)[1][1:], n // 10        # the first evaluates
    return middle_speed([(part * size, sum(times[i:i + part])) for i in range(0, 10 * part, part)])


def transformers_speed(dataset, V, L, H, C, T, B, n):
    """Tokens per second of GPT2LMHeadModel in a loop like nanoGPT's."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    data = np.memmap(f'slm/data/{dataset}/train.bin', np.uint16, 'r')
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=V, n_positions=T, n_layer=L, n_head=H, n_embd=C, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.1)
    parts = []
    for _ in range(n):
        clock = time.perf_counter()
        starts = torch.randint(len(data) - T, (B,))
        ids = torch.stack([torch.from_numpy(data[i:i + T].astype(np.int64)) for i in starts])
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        parts.append((B * T, time.perf_counter() - clock))
    return middle_speed(parts)


def throughput():
    """Tokens per second in both loops, with GPT-2's architecture and AdamW, in the precision that
    each chooses."""
    if device != 'cuda':
        train_in_turn(65, 4, 4, 128, 64, 12, max(10, steps), '>= 1.9')
        train_in_turn(4096, 6, 6, 384, 256, 16, max(10, steps // 10), '>= 2.5')
    if on_gpu('training, 124M parameters, GPU'):
        for B in (12, 32):
            train_in_turn(50257, 12, 12, 768, 1024, B, max(10, steps // 3), '')


def train_in_turn(V, L, H, C, T, B, n, wanted):
    name = f'training, {L}x{H}x{C}, context {T}, batch {B}, vocabulary {V:,}'
    options = (f'--dataset={write_letters(V)} --n_layer={L} --n_head={H} --n_embd={C} '
               f'--block_size={T} --batch_size={B} --max_iters={n} --bias=False ')
    if V == 50257:
        options += '--device=cuda '
        compare(name + ', GPU', lambda: slm_speed(options, n), 'nanoGPT compiled',
                lambda: nanogpt_speed(options, B * T, n), wanted)
        return
    eager, compiled = (options + f'--device=cpu --compile={value} ' for value in (False, True))
    formula = '--fused_attention=False '                    # faster on a CPU at these lengths
    compare(name, lambda: slm_speed(eager + formula, n), 'nanoGPT',
            lambda: nanogpt_speed(eager, B * T, n), wanted)
    compare(name + ', slm compiled', lambda: slm_speed(compiled + formula, n),
            'nanoGPT as in its example', lambda: nanogpt_speed(eager, B * T, n), wanted)
    compare(name + ', compiled', lambda: slm_speed(compiled + formula, n), 'nanoGPT compiled',
            lambda: nanogpt_speed(compiled, B * T, n))
    compare(name, lambda: slm_speed(eager + formula, n), 'transformers GPT2LMHeadModel',
            lambda: ask(transformers_speed, f'letters_{V}', V, L, H, C, T, B, n))


def write_letters(V) -> str:
    """The name of a dataset of random letters with a vocabulary of V; made if it is missing."""
    name = f'letters_{V}'
    if not Path('slm/data', name).exists():
        letters = [chr(0xe000 + i) for i in range(V - 1)]               # and an end-of-text make V
        content = random.Random(0).choices(letters, k=300_000) + letters
        Path('letters.txt').write_text(''.join(content))
        prepare_slm(f'--input=../letters.txt --tokenizer=char --name={name}')
        if V != 50257:                                      # without it nanoGPT takes 50,304 rows
            Path('slm/data', name, 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': V}))
    return name


def busy():
    """Speeds with the default settings on two cores beside one busy process: training, evaluation
    (one of all validation tokens, as seconds of the whole command) and sampling."""
    prepare_slm()
    n = max(10, steps)
    options = f'--max_iters={n} --log_interval={n // 10} --device=cpu ' + UNEVALUATED

    def training():
        return middle_speed(train_slm(options)[1])

    def evaluation():
        return train_slm('--max_iters=1 --eval_interval=0 --device=cpu')[0].seconds

    def sampling(num_samples):
        ran = Run('python', ROOT / 'sample.py', f'--num_samples={num_samples} --device=cpu',
                  cwd='slm')
        return float(re.search(r'([\d,]+) tokens per second', ran.output)[1].replace(',', ''))

    def beside_busy(function):
        process = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
        try:
            return function()
        finally:
            process.kill()
            process.wait()

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])              # the processes started here inherit it
    for name, function, unit, wanted in (
            ('training', training, 'tokens/s', '>= 0.5'),
            ('evaluation', evaluation, 's', '<= 2'),
            ('sampling, one text', partial(sampling, 1), 'tokens/s', '>= 0.5'),
            ('sampling, 16 texts', partial(sampling, 16), 'tokens/s', '>= 0.5')):
        compare(f'{name}, default, two cores, beside a busy process',
                partial(beside_busy, function), 'alone', function, wanted, unit)
    os.sched_setaffinity(0, cores)


# ---- time to a loss
def write_nanogpt_data(name, splits, kind, ends):
    """Write data/NAME as nanoGPT's prepare.py of that kind does; with ends, a token ends a
    document."""
    folder = Path('slm/data', name)
    folder.mkdir(exist_ok=True)
    characters = sorted({c for texts in splits.values() for text in texts for c in text})
    stoi = {c: i for i, c in enumerate(characters)}
    if kind == 'char':
        meta = {'vocab_size': len(stoi) + ends, 'stoi': stoi}
        (folder / 'meta.pkl').write_bytes(pickle.dumps(meta))
    encode, eot = nanogpt_tokenizer(name)
    for split, texts in splits.items():
        ids = [i for text in texts for i in (*encode(text), *[eot] * ends)]
        np.array(ids, np.uint16).tofile(folder / f'{split}.bin')
    Path('val.json').write_text(json.dumps(splits['val']))


def nanogpt_tokenizer(name):
    """encode, and the id that ends a document: by characters if the data has a meta.pkl, else
    GPT-2's."""
    path = Path('slm/data', name, 'meta.pkl')
    if path.exists():
        stoi = pickle.loads(path.read_bytes())['stoi']
        return lambda text: [stoi[c] for c in text], len(stoi)
    import tiktoken
    gpt2 = tiktoken.get_encoding('gpt2')
    return gpt2.encode_ordinary, gpt2.eot_token


def judge(window, data):
    """The one evaluator: nats of val.json's texts under a checkpoint, its parameters, and
    nanoGPT's iteration.

    With a window: of the only text, cut into windows of so many tokens; all but its first token
    are targets. Without: documents packed whole into the model's windows; end-of-text counts, too.
    data: of nanoGPT's model; '' = judge slm's, whatever its tokenizer."""
    import torch
    import torch.nn.functional as F

    from lib.dataset import read_windows, window_cuts
    texts, iteration = json.loads(Path('val.json').read_text()), 0
    if data:
        model, iteration = load_nanogpt()
        encode, eot = nanogpt_tokenizer(data)
    else:
        from sample import load
        lm = load('slm/out', 'cpu', 'float32')
        model, encode, eot = lm.model, lm.tokenizer.encode, lm.tokenizer.eot
    T = model.config.block_size
    if window:
        ids, T = torch.tensor(encode(texts[0])), min(window, T)
        rest = -(len(ids) - 1) % T
        x = F.pad(ids[:-1], (0, rest)).view(-1, T)
        y = F.pad(ids[1:], (0, rest), value=-1).view(-1, T)
    else:
        ids = np.array([i for text in texts for i in (*encode(text), eot)])
        x, y = map(torch.from_numpy, read_windows(ids, eot, T, window_cuts(ids, eot, T)))
    nats = 0.0
    with torch.inference_mode():
        for a, b in zip(x.split(16), y.split(16)):
            logits = model(a, a)[0] if data else model(a)   # nanoGPT's needs targets for all logits
            logits, b = logits.flatten(0, 1).double(), b.flatten()
            nats += F.cross_entropy(logits, b, ignore_index=-1, reduction='sum').item()
    return nats, sum(p.numel() for p in model.parameters()), iteration


def load_nanogpt():
    """The model of nanoGPT's checkpoint, and its iteration."""
    import torch
    saved = torch.load('peer/out/ckpt.pt', map_location='cpu', weights_only=False)
    theirs = runpy.run_path('nanoGPT/model.py')
    model = theirs['GPT'](theirs['GPTConfig'](**saved['model_args'])).eval()
    model.load_state_dict(saved['model'])
    return model, saved['iter_num']


def shakespeare():
    """Training time, without evaluations, to the loss that nanoGPT's CPU example ends with.

    Of nanoGPT the weights after the last step are judged, not those of its best evaluation."""
    text = Path('input.txt').read_text(encoding='utf-8')
    cut = int(0.9 * len(text))
    targets = len(text) - cut - 1
    splits = {'train': [text[:cut]], 'val': [text[cut:]]}
    write_nanogpt_data('shakespeare_char', splits, 'char', False)
    prepare_slm('--input=../input.txt --name=shakespeare --tokenizer=char --val_fraction=0.1')
    seeds = itertools.cycle((1, 2, 3))

    def ours():
        seconds = training_seconds(f'{shakespeare_train} --dataset=shakespeare --eval_interval=0 '
                                   f'--seed={next(seeds)}')
        nats, size, _ = ask(judge, 64, '')
        return seconds, nats / targets, size

    def theirs():
        times = train_nanogpt(f'{EXAMPLE} --block_size=64 --max_iters={iters} '
                              f'--eval_interval={iters} --lr_decay_iters={iters} '
                              '--always_save_checkpoint=True')[1]
        seconds = statistics.median(times) + sum(times[1:iters])    # the first one evaluates
        nats, size, _ = ask(judge, 64, 'shakespeare_char')
        return seconds, nats / targets, size

    race("Shakespeare by characters, to nanoGPT's loss", ours, theirs, 'nats', 0.09, True)


def tinystories_splits() -> dict:
    from pyarrow import parquet
    names = {'train': 'train*.parquet', 'val': 'validation*.parquet'}
    return {split: [text for path in sorted(Path('tinystories').rglob(name))
                    for text in parquet.read_table(path)['text'].to_pylist() if text.strip()]
            for split, name in names.items()}


def tinystories_race():
    """Training time, without evaluations, to nanoGPT's bits per byte with the best of its setups.

    Its shape is its CPU example's; max_iters ends its cosine after `minutes`. The checkpoint that
    it keeps, its best, is judged, and the time until then counts. slm's time is of its whole
    run."""
    splits = tinystories_splits()
    bits = sum(len(text.encode()) for text in splits['val']) * np.log(2)
    prepare_slm('--dataset=../tinystories --name=tinystories ' + tinystories_prepare)
    seeds, tried = itertools.cycle((1, 2, 3)), {}

    def ours():
        seconds = training_seconds(f'{tinystories_train} --dataset=tinystories --eval_interval=0 '
                                   f'--seed={next(seeds)}')
        nats, size, _ = ask(judge, 0, '')
        return seconds, nats / bits, size

    def theirs(kind, T):
        options = EXAMPLE + f'--dataset=tinystories_{kind} --block_size={T} '
        probe = train_nanogpt(options + QUIET + '--max_iters=30')[1]
        n = max(120, round(60 * minutes / statistics.median(probe[5:])))    # it warms up for 100
        every = n // 20
        options += f'--max_iters={n} --lr_decay_iters={n} --eval_interval={every}'
        times = train_nanogpt(options)[1]
        usual = statistics.median(times)
        times = [usual if i % every == 0 else seconds for i, seconds in enumerate(times)]
        nats, size, iteration = ask(judge, 0, f'tinystories_{kind}')
        return sum(times[:iteration]), nats / bits, size

    for setup in setups.split(','):
        kind, T = setup.split(':')
        if not Path(f'slm/data/tinystories_{kind}').exists():
            write_nanogpt_data(f'tinystories_{kind}', splits, kind, True)
        tried[kind, T] = theirs(kind, T)
        told = '{:,.1f} s, {:.4f} bits per byte, {:,} parameters'.format(*tried[kind, T])
        row(f'nanoGPT on TinyStories, {kind}, context {T}', '', told, '', '', '')
    best = min(tried, key=lambda setup: tried[setup][1])
    name = f"TinyStories, to nanoGPT's bits per byte, {best[0]}, context {best[1]}"
    # The trial of the best setup is the first of its pairs.
    race(name, ours, lambda: tried.pop(best, None) or theirs(*best), 'bits per byte', 0.13, False)


# ---- sampling: the shape of llama2.c's stories15M, with random weights
SAMPLER = {'n_layer': 6, 'n_head': 6, 'n_embd': 288, 'block_size': 256, 'vocab_size': 32000}
GREEDY = 0.0, 1.0           # temperature, top_p


def make_samplers(sharp):
    """Write sampler.pt for slm, model.bin and tokenizer.bin for llama2.c.

    The row of end-of-text is nearly 0 in both, so no text ends early. The scale of the last norm
    makes logits as unequal as a trained model's: if all were equal, llama2.c would sort all 32,000
    for top-p."""
    import torch

    from lib import checkpoint as checkpoints
    from model import GPT, GPTConfig
    model = GPT(GPTConfig(arch='qwen3', n_inner=768, **SAMPLER))
    model.wte.weight.data[-1] *= 0.05
    model.norm_f.weight.data.fill_(sharp)
    alphabet = ''.join(map(chr, range(0x100, 0x100 + 31_999)))
    checkpoints.save('sampler.pt', model, tokenizer={'kind': 'char', 'alphabet': alphabet},
                     settings={})
    C, L, wte = 288, 6, torch.randn(32_000, 288) * 0.02
    wte[1] *= 0.05                                          # its id 1 begins and ends a text
    attention, mlp = torch.randn(4 * L * C * C) * 0.02, torch.randn(3 * L * C * 768) * 0.02
    norms, last, skipped = torch.ones(L * C), torch.full((C,), sharp), torch.zeros(256 * 48)
    tensors = wte, norms, attention, norms, mlp, last, skipped
    Path('model.bin').write_bytes(struct.pack('7i', C, 768, L, 6, 6, 32_000, 256)
                                  + b''.join(t.numpy().tobytes() for t in tensors))
    words = struct.pack('fi1s', 0.0, 1, b'x') * 32_000
    Path('tokenizer.bin').write_bytes(struct.pack('i', 1) + words)


def speed_of(generate, tokens) -> float:
    """Tokens per second of generate(), after a first call: the median of those in 2 s."""
    generate()
    seconds = []
    while sum(seconds) < 2:
        clock = time.perf_counter()
        generate()
        seconds.append(time.perf_counter() - clock)
    return tokens / statistics.median(seconds)


def slm_sampling(temperature, top_p, rows, device, compile):
    """Tokens per second as sample.py samples, with an empty prompt; each id is read at once."""
    from sample import load
    lm = load('sampler.pt', device, compile=compile)

    def generate():
        steps = lm.sample_ids('', rows, max_new_tokens=NEW, temperature=temperature, top_p=top_p)
        assert len([ids.tolist() for ids in steps]) == NEW, 'it ended early'

    return speed_of(generate, rows * NEW)


def ours(temperature, top_p, rows=1, device='cpu', compile=True):
    return lambda: ask(slm_sampling, temperature, top_p, rows, device, compile)


def llama2c_sampling(options=''):
    """Tokens per second as run.c prints them: of its 256 steps without the first."""
    output = Run('./run model.bin -s 1', options).output
    require(output.count('x') >= NEW, f'llama2.c ended after {output.count("x")} tokens')
    return float(output.rpartition('tok/s:')[2])


def nanogpt_sampling(rows, device):
    import torch
    theirs = runpy.run_path('nanoGPT/model.py')
    model = theirs['GPT'](theirs['GPTConfig'](bias=False, **SAMPLER)).to(device).eval()
    prompt = torch.zeros(rows, 1, dtype=torch.long, device=device)
    return speed_of(lambda: model.generate(prompt, NEW, top_k=1).tolist(), rows * NEW)


def transformers_sampling(rows, device):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(
        n_positions=256, n_layer=6, n_head=6, n_embd=288, vocab_size=32_000, bos_token_id=0,
        eos_token_id=None, pad_token_id=0)).to(device).eval()
    prompt = torch.zeros(rows, 1, dtype=torch.long, device=device)
    options = {'attention_mask': torch.ones_like(prompt), 'max_new_tokens': NEW, 'do_sample': False}
    return speed_of(lambda: model.generate(prompt, **options).tolist(), rows * NEW)


def sampling():
    name = f'sampling, 15M parameters, {NEW} tokens, '
    ask(make_samplers, sharp)
    if device != 'cuda':
        sampling_on_cpu(name)
    name += 'greedy, GPU'
    if on_gpu(name):
        for rows, compile, wanted in ((1, False, '>= 3'), (1, True, '>= 3'), (64, False, ''),
                                      (64, True, '')):
            compare(name + f', {rows} together' + ', compiled' * compile,
                    ours(*GREEDY, rows, 'cuda', compile), 'nanoGPT',
                    lambda rows=rows: ask(nanogpt_sampling, rows, 'cuda'), wanted)
        compare(name + ', compiled', ours(*GREEDY, 1, 'cuda'), 'transformers GPT2LMHeadModel',
                lambda: ask(transformers_sampling, 1, 'cuda'), '>= 10')


def sampling_on_cpu(name):
    Run('gcc -Ofast -fopenmp -march=native llama2.c/run.c -lm -o run')
    for scale, kind, wanted in ((1.0, 'nearly equal logits', '>= 2'),
                                (sharp, 'logits as if trained', '')):
        ask(make_samplers, scale)
        compare(name + f'temperature 1, top-p 0.9, {kind}, compiled', ours(1.0, 0.9), 'llama2.c',
                llama2c_sampling, wanted)
    compare(name + 'greedy, compiled', ours(*GREEDY), 'llama2.c', lambda: llama2c_sampling('-t 0'),
            '>= 0.5')
    compare(name + 'greedy, compiled', ours(*GREEDY), 'nanoGPT',
            lambda: ask(nanogpt_sampling, 1, 'cpu'), '>= 20')
    compare(name + 'greedy', ours(*GREEDY, compile=False), 'transformers GPT2LMHeadModel',
            lambda: ask(transformers_sampling, 1, 'cpu'))
    compare(name + 'greedy, 16 together', ours(*GREEDY, 16, compile=False), 'llama2.c, one',
            lambda: llama2c_sampling('-t 0'), '>= 4')


# ---- preparation, memory
def make_corpus(size):
    """Write `size` MB of distinct stories: the shuffled sentences of given ones, and a number."""
    import pyarrow
    from pyarrow import parquet
    r, texts, written, known = random.Random(0), [], 0, tinystories_splits()['train']
    while written < size * 1e6:
        sentences = r.choice(known).split('. ')
        texts.append('. '.join(r.sample(sentences, len(sentences))) + f' Story {len(texts)}.')
        written += len(texts[-1].encode())
    Path('openwebtext').mkdir()
    table = pyarrow.table({'text': texts})
    parquet.write_table(table, 'openwebtext/train.parquet', row_group_size=1000)
    return written / 1e6


def prepare_as_nanogpt(processes):
    """Run nanoGPT's data/openwebtext/prepare.py; load_dataset takes the folder of that name for the
    dataset.

    Three numbers change: processes, as the machine has fewer cores than its author's; and, as it
    needs a document for each of 1,024 shards of either split, the shards and the size of the
    validation split."""
    source = Path('nanoGPT/data/openwebtext/prepare.py').read_text()
    for old, new in (
            ('num_proc = 8', f'num_proc = {processes}'),
            ('total_batches = 1024', 'total_batches = min(1024, len(dset))'),
            ('test_size=0.0005', 'test_size=max(2, round(0.0005 * len(dataset["train"])))')):
        assert source.count(old) == 1, f'this nanoGPT has no single {old}'
        source = source.replace(old, new)
    Path('prepare.py').write_text(source)                   # it writes beside itself
    runpy.run_path('prepare.py', run_name='__main__')


def preparation():
    megabytes = ask(make_corpus, mb)

    def ours():
        ran = prepare_slm('--input=../openwebtext/train.parquet --name=corpus --tokenizer=gpt2')
        return megabytes / ran.seconds

    def theirs():
        with tempfile.TemporaryDirectory() as cache:        # without the last run's work
            clock = time.perf_counter()
            ask(prepare_as_nanogpt, num_proc or CORES, HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE='1')
            return megabytes / (time.perf_counter() - clock)

    compare(f"preparation, {megabytes:.0f} MB, GPT-2's tokens",
            ours, 'nanoGPT', theirs, '>= 8', 'MB/s')


def memory():
    """Peak resident memory of two steps on a CPU."""
    L, H, C = shape.split('x')
    both = (f'--n_layer={L} --n_head={H} --n_embd={C} --block_size=1024 --max_iters=2 '
            f'--dataset={write_letters(50257)} --warmup_iters=1 --bias=False --out_dir=out ')
    both += '--batch_size=4 --device=cpu --compile=False '
    ours = both + '--arch=gpt2 --overwrite=True ' + UNEVALUATED
    compare(f'memory, {shape}, context 1024, batch 4, resident',
            lambda: train_slm(ours)[0].resident, 'nanoGPT',
            lambda: train_nanogpt(both + QUIET)[0].resident, '<= 0.7', 'MB')


# ---- the command
def machine():
    """What this runs on, in a line, and whether that has a GPU."""
    import torch
    cpu = re.search('model name\\s*: (.*)', Path('/proc/cpuinfo').read_text())
    gpu = torch.cuda.is_available()
    return (f'{cpu[1] if cpu else "CPU"}, {CORES} cores, {torch.get_num_threads()} threads, torch '
            f'{torch.__version__}, {torch.cuda.get_device_name() if gpu else "no GPU"}', gpu)


def main():
    global _gpu, nanogpt
    require(_row in ('all', *NEEDS), f'{_row}: no such row; there are all, {", ".join(NEEDS)}')
    chosen = list(NEEDS) if _row == 'all' else [_row]
    for key in sorted({key for name in chosen for key in NEEDS[name].split()}):
        require(os.path.exists(settings[key]),
                f'{_row} needs --{key}=PATH, and it must exist; --help says what it is')
    nanogpt = Path(nanogpt).resolve()
    links = {'nanoGPT': nanogpt, 'llama2.c': Path(llama2c).resolve(),
             'input.txt': Path(input).resolve(), 'tinystories': Path(tinystories).resolve(),
             'peer/data': '../slm/data', 'peer/config': '../nanoGPT/config',
             'peer/configurator.py': '../nanoGPT/configurator.py'}      # nanoGPT reads them there
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path('slm/data').mkdir(parents=True)
        Path('peer').mkdir()
        for name, place in links.items():
            os.symlink(place, name)
        about, _gpu = ask(machine)
        print(f'{about}; {pairs} pairs\n')
        row('row', 'slm', 'peer', 'slm / peer', 'spread', 'wanted')
        row(*['---'] * 6)
        for name in chosen:
            try:
                (tinystories_race if name == 'tinystories' else globals()[name])()
            except Exception as e:                          # the next row can still be measured
                row(name, f'failed: {" ".join(str(e).split())[-300:]}', '', '', '', '')
        os.chdir(ROOT)


if __name__ == '__main__':
    if _row == 'child':
        function = globals()[_options[0]]
        print('result:', json.dumps(function(*json.loads(os.environ['ARGUMENTS']))))
    else:
        main()
