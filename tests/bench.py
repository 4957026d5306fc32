"""Measure slm beside its peers: python tests/bench.py BAR [--nanogpt=FOLDER --llama2c=FOLDER --pairs=N ...]

BAR is throughput, shakespeare, stories, default, sampling, preparation, start, memory, recipes, or all. Each
prints rows of a Markdown table. A figure is a ratio of medians, slm's over the peer's, of runs in processes of their
own that alternate A B A B; beside it the smallest and largest ratio of a pair. Peers run from their own,
unchanged files; where a number in one had to change, the function that runs it says so. This needs Linux."""
import csv
import importlib.util
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from config import Error, configure  # noqa: E402

nanogpt = ''                # a clone of github.com/karpathy/nanoGPT
llama2c = ''                # a clone of github.com/karpathy/llama2.c
input = ''                  # shakespeare: the text of tinyshakespeare
tinystories = ''            # stories, preparation: a part of TinyStories, a folder with data/*.parquet
pairs = 3                   # how often slm and a peer are measured in turn
steps = 300                 # throughput: steps of the small model; the large one takes a tenth
recipe = 'config/shakespeare_cpu.py'            # shakespeare: slm's config file
iters = 2000                # shakespeare: nanoGPT's steps, as in its README
stories_prepare = '--vocab_size=1024'           # stories: slm's options of prepare.py
stories_recipe = 'config/tinystories_cpu.py'    # stories: slm's config file
stories_train = '--compile=False --batch_size=8 --warmup_iters=40 --max_iters=225'   # stories: of train.py
setups = 'char:64,gpt2:64'  # stories: nanoGPT's tokenizer:block_size, the best one counts
minutes = 5.0               # stories: nanoGPT's training
sharp = 13.0                # sampling: scales the logits; 13 makes them as unequal as a trained model's
mb = 100                    # preparation: MB of text
num_proc = 0                # preparation: processes of nanoGPT's way; 0 = as many as cores (its file says 8)
shape = '12x12x768'         # memory: layers x heads x channels
device = 'auto'             # cpu, cuda: only the rows of that device; auto = both
_bar, *_options = sys.argv[1:] or ['--help']
config = configure(globals(), ['--help'] if _bar[:1] == '-' else [] if _bar == 'child' else _options)

NEEDS = {'throughput': 'nanogpt', 'shakespeare': 'nanogpt input', 'stories': 'nanogpt tinystories',
         'default': 'nanogpt input', 'sampling': 'nanogpt llama2c', 'preparation': 'nanogpt tinystories', 'start': '',
         'memory': 'nanogpt', 'recipes': ''}
EXAMPLE = ('config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 '
           '--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0 ')    # nanoGPT's, for a CPU
QUIET = '--eval_iters=1 --eval_interval=1000000 --log_interval=1 --gradient_accumulation_steps=1 '
GPUS = 0.3 * 65e12, 0.3 * 989e12    # flops per second of a T4 (fp16) and an H100 (bf16), 30% of their peak
VOCABULARIES = {'=char': 'letters_65', '=gpt2': 'letters_50257', '_size=8192': 'letters_8192',
                '_size=4096': 'letters_4096', '': 'letters_1431'}       # recipes: by a word of their header
NEW = 256                   # tokens that are sampled
CORES = len(os.sched_getaffinity(0))


# ---- processes: all work in one temporary folder, with slm/ and peer/ to run the scripts in
class Run:
    """A command, run to its end: its seconds, output, peak resident MB and, if watched, peak anonymous MB."""

    def __init__(self, *command, cwd='.', watch=False, **environment):
        words = [word for part in command for word in (part.split() if type(part) is str else [part])]
        words = [sys.executable if word == 'python' else str(word) for word in words]
        self.anonymous, clock = 0.0, time.perf_counter()
        with tempfile.TemporaryFile('w+') as shown:
            process = subprocess.Popen(words, stdout=shown, stderr=subprocess.STDOUT, cwd=cwd,
                                       env=os.environ | environment)
            while not (ended := os.wait4(process.pid, os.WNOHANG if watch else 0))[0]:
                self.anonymous = max(self.anonymous, anonymous_memory(process.pid) / 1024)
                time.sleep(0.02)
            self.seconds, self.resident = time.perf_counter() - clock, ended[2].ru_maxrss / 1024
            process.returncode = os.waitstatus_to_exitcode(ended[1])
            shown.seek(0)
            self.shown = shown.read()
        if process.returncode:
            raise Error(f'{" ".join(words)} ended with {process.returncode}: {self.shown[-400:]}')


def anonymous_memory(pid) -> int:
    """kB of anonymous memory of a process and those it started; 0 if it has just ended."""
    try:
        own = re.search(r'^Anonymous: +(\d+)', Path(f'/proc/{pid}/smaps_rollup').read_text(), re.M)
        started = ' '.join(task.read_text() for task in Path(f'/proc/{pid}/task').glob('*/children'))
        return int(own[1]) + sum(map(anonymous_memory, started.split()))
    except (OSError, TypeError):
        return 0


def ask(function, *arguments, **environment):
    """What function(*arguments) returns in a process of its own."""
    ran = Run('python', Path(__file__).resolve(), 'child', function.__name__, ARGUMENTS=json.dumps(arguments),
              **environment)
    return json.loads(re.findall('^result: (.*)$', ran.shown, re.M)[-1])


def prepare_slm(options, **more):
    return Run('python', ROOT / 'prepare.py', '--overwrite=True', options, cwd='slm', **more)


def train_slm(*options):
    """Run train.py; returns the Run and (tokens, seconds) between log lines, evaluations left out."""
    ran = Run('python', ROOT / 'train.py', *options, '--out_dir=out --overwrite=True', cwd='slm')
    with open('slm/out/log.csv', newline='') as f:
        log = [(int(r['tokens']), float(r['tokens_per_second'])) for r in csv.DictReader(f) if r['lr']]
    return ran, [(n - last, (n - last) / speed) for (last, _), (n, speed) in zip([(0, 0), *log], log)]


def train_nanogpt(options):
    """Run nanoGPT's train.py; returns the Run and the seconds of its iterations, evaluations included."""
    ran = Run('python ../nanoGPT/train.py', options, '--out_dir=out', cwd='peer')
    return ran, [float(ms) / 1000 for ms in re.findall(r'^iter \d+: .* time ([\d.]+)ms', ran.shown, re.M)]


def nanogpt_module():
    spec = importlib.util.spec_from_file_location('nanogpt_model', 'nanoGPT/model.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- rows
def row(*cells):
    print('| ' + ' | '.join(cells) + ' |', flush=True)


def judged(value, wanted) -> str:
    """wanted, a sign and a bound, and whether a value misses it."""
    sign, bound, *_ = wanted.split() or ('>=', 0)
    return wanted + ('' if (value >= float(bound) if sign == '>=' else value <= float(bound)) else ', MISSED')


def in_turn(ours, theirs):
    """What ours() returned in each pair, and what theirs() did."""
    return list(zip(*[(ours(), theirs()) for _ in range(pairs)]))


def compare(bar, ours, peer, theirs, wanted='', unit='tokens/s'):
    """Print the row of a bar whose two sides return a number each."""
    measured = in_turn(ours, theirs)
    a, b = map(statistics.median, measured)
    ratios = [x / y for x, y in zip(*measured)]
    row(bar, f'{a:,.1f} {unit}', f'{peer}: {b:,.1f} {unit}', f'{a / b:.2f}',
        f'{min(ratios):.2f}..{max(ratios):.2f}', judged(a / b, wanted))


def race(bar, ours, theirs, unit, most_time, size_counts):
    """Print the row of a bar whose two sides return seconds, loss and parameters each."""
    measured = in_turn(ours, theirs)
    (a, _, size), (b, bound, most) = (map(statistics.median, zip(*side)) for side in measured)
    losses = [loss for _, loss, _ in measured[0]]           # one for each seed: all must be low enough
    ratios = [x[0] / y[0] for x, y in zip(*measured)]
    row(bar, f'{a:,.1f} s, {min(losses):.4f}..{max(losses):.4f} {unit}, {size:,} parameters',
        f'nanoGPT: {b:,.1f} s, {bound:.4f} {unit}, {most:,} parameters',
        f'{a / b:.3f}', f'{min(ratios):.3f}..{max(ratios):.3f}', '; '.join(
            [judged(a / b, f'<= {most_time:.3f}'), judged(max(losses) - bound, '<= 0 in loss')]
            + [judged(size - most, '<= 0 in parameters')] * size_counts))


def alone(bar, values, unit, wanted):
    """Print the row of a bar that has no peer."""
    value = statistics.median(values)
    row(bar, f'{value:,.2f} {unit}', '', '', f'{min(values):,.2f}..{max(values):,.2f}', judged(value, wanted))


def on_gpu(bar) -> bool:
    if not _gpu and device != 'cpu':
        row(bar, 'not measured: no GPU', '', '', '', '')
    return _gpu and device != 'cpu'


# ---- training speed
def middle_speed(parts) -> float:
    """Tokens per second of a run from its (tokens, seconds): the median after the first fifth."""
    return statistics.median(tokens / seconds for tokens, seconds in parts[len(parts) // 5:])


def slm_speed(knobs, n):
    knobs += f'--arch=gpt2 --optimizer=adamw --warmup_iters=2 --log_interval={n // 10} '
    return middle_speed(train_slm(knobs + '--eval_interval=0 --eval_tokens=1000')[1])


def nanogpt_speed(knobs, size, n):
    times, part = train_nanogpt(QUIET + knobs)[1][1:], n // 10          # the first holds an evaluation
    return middle_speed([(part * size, sum(times[i:i + part])) for i in range(0, 10 * part, part)])


def transformers_speed(dataset, V, L, H, C, T, B, n):
    """Tokens per second of GPT2LMHeadModel in the loop that nanoGPT has."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    data = np.memmap(f'slm/data/{dataset}/train.bin', np.uint16, 'r')
    c = GPT2Config(vocab_size=V, n_positions=T, n_layer=L, n_head=H, n_embd=C, use_cache=False,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(c).train()
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


def train_in_turn(dataset, V, L, H, C, T, B, n, wanted):
    size, n = (L, H, C, T, B), max(10, n)
    bar = f'training, {L}x{H}x{C}, context {T}, batch {B}, vocabulary {V:,}'
    knobs = (f'--dataset={dataset} --n_layer={L} --n_head={H} --n_embd={C} --block_size={T} --batch_size={B} '
             f'--max_iters={n} --bias=False ')
    if V == 50257:
        compare(bar + ', GPU', lambda: slm_speed(knobs + '--device=cuda ', n), 'nanoGPT compiled',
                lambda: nanogpt_speed(knobs + '--device=cuda', B * T, n), wanted)
        ran = train_slm(knobs + '--arch=gpt2 --optimizer=adamw --device=cuda --eval_tokens=1000')[0]
        alone(bar + ', GPU, MFU', [float(p) for p in re.findall(r'MFU ([\d.]+)%', ran.shown)[2:]], '%', '>= 45')
        return
    eager, compiled = (knobs + f'--device=cpu --compile={compile} ' for compile in (False, True))
    compare(bar, lambda: slm_speed(eager, n), 'nanoGPT', lambda: nanogpt_speed(eager, B * T, n), wanted)
    compare(bar + ', slm compiled', lambda: slm_speed(compiled, n),
            'nanoGPT, not compiled as in its example', lambda: nanogpt_speed(eager, B * T, n), wanted)
    compare(bar + ', compiled', lambda: slm_speed(compiled, n),
            'nanoGPT compiled', lambda: nanogpt_speed(compiled, B * T, n))
    compare(bar, lambda: slm_speed(eager, n), 'transformers GPT2LMHeadModel',
            lambda: ask(transformers_speed, dataset, V, *size, n))


def throughput():
    """Tokens per second in both loops, with gpt2's architecture and AdamW, in the precision each chooses."""
    if device != 'cuda':
        for V in (65, 4096):
            write_letters(V)
        train_in_turn('letters_65', 65, 4, 4, 128, 64, 12, steps, '>= 1.9')
        train_in_turn('letters_4096', 4096, 6, 6, 384, 256, 16, steps // 10, '>= 2.5')
    if on_gpu('training, 124M parameters, GPU'):
        write_letters(50257)
        for B in (12, 32):
            train_in_turn('letters_50257', 50257, 12, 12, 768, 1024, B, steps // 3, '')


def write_letters(V):
    letters = [chr(0xe000 + i) for i in range(V - 1)]                   # and an end-of-text make V
    Path('letters.txt').write_text(''.join(random.Random(0).choices(letters, k=300_000) + letters))
    prepare_slm(f'--input=../letters.txt --tokenizer=char --name=letters_{V}')
    if V != 50257:                                          # without it nanoGPT takes 50,304 rows
        Path(f'slm/data/letters_{V}/meta.pkl').write_bytes(pickle.dumps({'vocab_size': V}))


# ---- time to a loss
def write_nanogpt_data(name, splits, kind, ends):
    """Write data/NAME as nanoGPT's prepare.py of that kind does; with ends, a token ends a document."""
    folder = Path('slm/data', name)
    folder.mkdir(exist_ok=True)
    stoi = {c: i for i, c in enumerate(sorted(set(''.join(map(''.join, splits.values())))))}
    if kind == 'char':
        (folder / 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': len(stoi) + ends, 'stoi': stoi}))
    encode, eot = nanogpt_tokenizer(name)
    for split, texts in splits.items():
        ids = [i for text in texts for i in (*encode(text), *[eot] * ends)]
        np.array(ids, np.uint16).tofile(folder / f'{split}.bin')
    Path('val.json').write_text(json.dumps(splits['val']))


def nanogpt_tokenizer(name):
    """encode and the id that ends a document: by characters if the data has a meta.pkl, else GPT-2's."""
    path = Path('slm/data', name, 'meta.pkl')
    if path.exists():
        stoi = pickle.loads(path.read_bytes())['stoi']
        return lambda text: [stoi[c] for c in text], len(stoi)
    import tiktoken
    gpt2 = tiktoken.get_encoding('gpt2')
    return gpt2.encode_ordinary, gpt2.eot_token


def judge(window, data):
    """The one evaluator: nats of val.json's texts under a checkpoint, its parameters and nanoGPT's iteration.

    With a window: of the only text, cut into windows of so many tokens without overlap; all but its first
    token are targets. Without: documents packed whole into the model's windows, their ends are targets too.
    data: of nanoGPT's model; '' = judge slm's, whatever its tokenizer."""
    import torch
    import torch.nn.functional as F

    from prepare import evaluation_windows
    from sample import load
    texts, iteration = json.loads(Path('val.json').read_text()), 0
    if data:
        saved = torch.load('peer/out/ckpt.pt', map_location='cpu', weights_only=False)
        module, iteration = nanogpt_module(), saved['iter_num']
        model = module.GPT(module.GPTConfig(**saved['model_args'])).eval()
        model.load_state_dict(saved['model'])
        encode, eot = nanogpt_tokenizer(data)
    else:
        lm = load('slm/out', 'cpu', 'float32')
        model, encode, eot = lm.model, lm.tokenizer.encode, lm.tokenizer.eot
    if window:
        ids, T = torch.tensor(encode(texts[0])), min(window, model.config.block_size)
        rest = -(len(ids) - 1) % T
        x, y = F.pad(ids[:-1], (0, rest)).view(-1, T), F.pad(ids[1:], (0, rest), value=-1).view(-1, T)
    else:
        ids = np.array([i for text in texts for i in (*encode(text), eot)])
        x, y = map(torch.from_numpy, evaluation_windows(ids, eot, model.config.block_size))
    nats = 0.0
    with torch.inference_mode():
        for a, b in zip(x.split(16), y.split(16)):
            logits = model(a, a)[0] if data else model(a)   # nanoGPT's shows all of them only beside targets
            logits, b = logits.flatten(0, 1).double(), b.flatten()
            nats += F.cross_entropy(logits, b, ignore_index=-1, reduction='sum')
    return float(nats), sum(p.numel() for p in model.parameters()), iteration


def shakespeare():
    """Training time, evaluations excluded, to the loss that nanoGPT's CPU example ends with.

    Of nanoGPT the weights after the last step are judged; its rule would keep its best evaluation's."""
    targets = write_shakespeare()
    prepare_slm('--input=../input.txt --name=shakespeare --tokenizer=char --val_fraction=0.1')

    def ours():
        options = f'--dataset=shakespeare --eval_interval=0 --seed={next(seeds)}'
        seconds = sum(s for _, s in train_slm(recipe, options)[1])
        nats, size, _ = ask(judge, 64, '')
        return seconds, nats / targets, size

    def theirs():
        seconds = train_nanogpt_example()
        nats, size, _ = ask(judge, 64, 'shakespeare_char')
        return seconds, nats / targets, size

    seeds = itertools.cycle((1, 2, 3))
    race("Shakespeare by characters, to nanoGPT's loss", ours, theirs, 'nats', 0.09, True)


def write_shakespeare() -> int:
    """Write the text for nanoGPT and the judge; returns the number of targets in the val split."""
    text = Path('input.txt').read_text(encoding='utf-8')
    cut = int(0.9 * len(text))
    write_nanogpt_data('shakespeare_char', {'train': [text[:cut]], 'val': [text[cut:]]}, 'char', False)
    return len(text) - cut - 1


def train_nanogpt_example() -> float:
    """The seconds of nanoGPT's CPU example, its evaluations left out."""
    times = train_nanogpt(EXAMPLE + f'--block_size=64 --max_iters={iters} --lr_decay_iters={iters} '
                          f'--eval_interval={iters} --always_save_checkpoint=True')[1]
    return statistics.median(times) + sum(times[1:iters])       # [0] evaluates: a usual step in its place


def default():
    """The default run beside nanoGPT's CPU example: seconds, distance from the floor, samples that are right."""
    write_shakespeare()
    prepare_slm('')
    seeds, found = itertools.cycle((1, 2, 3)), []

    def ours():
        parts = train_slm(f'--eval_interval=0 --seed={next(seeds)}')[1]
        found.append(ask(examine_stories))
        return sum(s for _, s in parts)

    compare('default run', ours, "nanoGPT's CPU example", train_nanogpt_example, '<= 1.8', 's')
    above, right = zip(*found)
    alone('default run, above the floor', above, '%', '<= 0.3')
    alone('default run, samples without a mistake', right, '%', '>= 99')


def examine_stories():
    """How many percent the loss of slm's model is above the floor, and how many of 3,000 samples the grammar
    could have told, at temperature 1. Sample i of a call is drawn with seed + i."""
    from grammar_parser import parse

    from data.stories.teller import read_grammar
    from sample import load
    with open('slm/out/log.csv', newline='') as f:
        loss = [float(r['val_loss']) for r in csv.DictReader(f) if r['val_loss']][-1]
    val = json.loads(Path('slm/data/stories/meta.json').read_text())['val']
    lm, grammar = load('slm/out'), read_grammar()
    knobs = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0}
    rows = [ids for seed in range(0, 3000, 100) for ids in lm.rows(num_samples=100, seed=seed, **knobs)]
    right = sum(len(parse(grammar, lm.tokenizer.decode(ids))) == 1 for ids in rows)
    return 100 * (loss / (val['entropy'] / val['tokens']) - 1), 100 * right / len(rows)


def stories():
    """Training time, evaluations excluded, to nanoGPT's bits per byte with the best of its set-ups.

    Its shape is its CPU example's; max_iters ends its cosine at `minutes`. The checkpoint that it keeps, its
    best, is judged, and the time until then counts. slm's time is that of its whole run."""
    from pyarrow import parquet
    splits = {split: [text for path in sorted(Path('tinystories').rglob(f'{name}*.parquet'))
                      for text in parquet.read_table(path)['text'].to_pylist() if text.strip()]
              for split, name in (('train', 'train'), ('val', 'validation'))}
    bits = sum(len(text.encode()) for text in splits['val']) * np.log(2)
    prepare_slm('--dataset=../tinystories --name=tinystories ' + stories_prepare)

    def ours():
        options = f'{stories_train} --dataset=tinystories --eval_interval=0 --seed={next(seeds)}'
        seconds = sum(s for _, s in train_slm(stories_recipe, options)[1])
        nats, size, _ = ask(judge, 0, '')
        return seconds, nats / bits, size

    def theirs(kind, T):
        knobs = EXAMPLE + f'--dataset=stories_{kind} --block_size={T} '
        probe = train_nanogpt(knobs + QUIET + '--max_iters=30')[1]
        n = max(120, round(60 * minutes / statistics.median(probe[5:])))        # its warm-up is 100
        every = n // 20
        times = train_nanogpt(knobs + f'--max_iters={n} --lr_decay_iters={n} --eval_interval={every}')[1]
        times = [statistics.median(times) if i % every == 0 else s for i, s in enumerate(times)]
        nats, size, iteration = ask(judge, 0, f'stories_{kind}')
        return sum(times[:iteration]), nats / bits, size

    seeds, tried = itertools.cycle((1, 2, 3)), {}
    for setup in setups.split(','):
        kind, T = setup.split(':')
        if not Path(f'slm/data/stories_{kind}').exists():
            write_nanogpt_data(f'stories_{kind}', splits, kind, True)
        tried[kind, T] = theirs(kind, T)
        bar = f'nanoGPT on TinyStories, {kind}, context {T}'
        row(bar, '', '{:,.1f} s, {:.4f} bits per byte, {:,} parameters'.format(*tried[kind, T]), '', '', '')
    best = min(tried, key=lambda setup: tried[setup][1])
    # The trial of the best is the first of its pairs.
    race(f"TinyStories, to nanoGPT's bits per byte, {best[0]}, context {best[1]}", ours,
         lambda: tried.pop(best, None) or theirs(*best), 'bits per byte', 0.13, False)


# ---- sampling: the shape of llama2.c's stories15M, with random weights
SAMPLER = dict(n_layer=6, n_head=6, n_embd=288, block_size=256, vocab_size=32000)


def make_samplers(sharp):
    """Write sampler.pt for slm, model.bin and tokenizer.bin for llama2.c.

    The row of the token that ends a text is nearly 0 in both: no text ends early. The last norm's scale makes
    logits as unequal as a trained model's: among equal ones llama2.c would sort all 32,000 for top-p."""
    import torch

    from model import GPT, GPTConfig, save_checkpoint
    model = GPT(GPTConfig(arch='qwen3', n_inner=768, **SAMPLER))
    model.wte.weight.data[-1] *= 0.05
    model.norm_f.weight.data.fill_(sharp)
    alphabet = ''.join(map(chr, range(0x100, 0x100 + 31_999)))
    save_checkpoint('sampler.pt', model, {'kind': 'char', 'alphabet': alphabet}, config={})
    C, L, wte = 288, 6, torch.randn(32_000, 288) * 0.02
    wte[1] *= 0.05                                          # its id 1 begins and ends a text
    attention, mlp = torch.randn(4 * L * C * C) * 0.02, torch.randn(3 * L * C * 768) * 0.02
    norms, last, skipped = torch.ones(L * C), torch.full((C,), sharp), torch.zeros(256 * 48)
    tensors = wte, norms, attention, norms, mlp, last, skipped
    Path('model.bin').write_bytes(struct.pack('7i', C, 768, L, 6, 6, 32_000, 256)
                                  + b''.join(t.numpy().tobytes() for t in tensors))
    Path('tokenizer.bin').write_bytes(struct.pack('i', 1) + struct.pack('fi1s', 0.0, 1, b'x') * 32_000)


def timed(generate) -> float:
    """Seconds of generate() once it has run before: the median of the runs that begin within 2 s."""
    generate()
    seconds, clock = [], time.perf_counter()
    while not seconds or sum(seconds) < 2:
        generate()
        seconds.append(time.perf_counter() - clock - sum(seconds))
    return statistics.median(seconds)


def slm_sampling(temperature, top_p, rows, device, compile=True):
    """Tokens per second as sample.py samples, with an empty prompt; each id is read as it comes."""
    from sample import load
    lm = load('sampler.pt', device, compile=compile)

    def generate():
        ids = lm.ids('', rows, max_new_tokens=NEW, temperature=temperature, top_p=top_p)
        assert len([i.tolist() for i in ids]) == NEW, 'it ended early'

    return rows * NEW / timed(generate)


def compile_seconds(device):
    """From the first token to the second, compiled, with nothing kept from earlier runs."""
    os.environ['TORCHINDUCTOR_FORCE_DISABLE_CACHES'] = '1'
    from sample import load
    ids = load('sampler.pt', device, compile=True).ids('', max_new_tokens=2)
    next(ids)
    clock = time.perf_counter()
    next(ids).tolist()
    return time.perf_counter() - clock


def llama2c_sampling(options):
    """Tokens per second as run.c prints them: of its 256 steps without the first."""
    shown = Run('./run model.bin -s 1', options).shown
    if shown.count('x') < NEW:
        raise Error(f'llama2.c ended after {shown.count("x")} tokens')
    return float(shown.rpartition('tok/s:')[2])


def nanogpt_sampling(device, rows=1):
    import torch
    module = nanogpt_module()
    model = module.GPT(module.GPTConfig(bias=False, **SAMPLER)).to(device).eval()
    prompt = torch.zeros(rows, 1, dtype=torch.long, device=device)
    return rows * NEW / timed(lambda: model.generate(prompt, NEW, top_k=1).tolist())


def transformers_sampling(rows, device):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(n_positions=256, n_layer=6, n_head=6, n_embd=288, vocab_size=32_000,
                                       bos_token_id=0, eos_token_id=None, pad_token_id=0)).to(device).eval()
    prompt = torch.zeros(rows, 1, dtype=torch.long, device=device)
    knobs = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
    return rows * NEW / timed(lambda: model.generate(prompt, **knobs).tolist())


def greedy(rows=1, device='cpu', compile=True):
    return lambda: ask(slm_sampling, 0.0, 1.0, rows, device, compile)


def sampling():
    bar = f'sampling, 15M parameters, {NEW} tokens, '
    ask(make_samplers, sharp)
    if device != 'cuda':
        sampling_on_cpu(bar)
    bar += 'greedy, GPU'
    if on_gpu(bar):
        for rows, compile, wanted in ((1, False, 3), (1, True, 3), (64, False, ''), (64, True, '')):
            compare(bar + f', {rows} together' + ', compiled' * compile, greedy(rows, 'cuda', compile), 'nanoGPT',
                    lambda rows=rows: ask(nanogpt_sampling, 'cuda', rows), f'>= {wanted}' if wanted else '')
        compare(bar + ', compiled', greedy(1, 'cuda'), 'transformers GPT2LMHeadModel',
                lambda: ask(transformers_sampling, 1, 'cuda'), '>= 10')
        alone('sampling, 15M parameters, to compile it, GPU', [ask(compile_seconds, 'cuda')], 's', '')


def sampling_on_cpu(bar):
    Run('gcc -Ofast -fopenmp -march=native llama2.c/run.c -lm -o run')
    for scale, kind, wanted in ((1.0, 'nearly equal logits', '>= 2'), (sharp, 'logits as if trained', '')):
        ask(make_samplers, scale)
        compare(bar + f'temperature 1, top-p 0.9, {kind}, compiled',
                lambda: ask(slm_sampling, 1.0, 0.9, 1, 'cpu'), 'llama2.c',
                lambda: llama2c_sampling(''), wanted)
    compare(bar + 'greedy, compiled', greedy(), 'llama2.c', lambda: llama2c_sampling('-t 0'), '>= 0.5')
    compare(bar + 'greedy, compiled', greedy(), 'nanoGPT', lambda: ask(nanogpt_sampling, 'cpu'), '>= 20')
    compare(bar + 'greedy', greedy(compile=False), 'transformers GPT2LMHeadModel',
            lambda: ask(transformers_sampling, 1, 'cpu'))
    compare(bar + 'greedy, 16 together', greedy(16, compile=False), 'llama2.c, one',
            lambda: llama2c_sampling('-t 0'), '>= 4')
    alone('sampling, 15M parameters, to compile it', [ask(compile_seconds, 'cpu')], 's', '')


# ---- preparation, start, memory
def make_corpus(size):
    """Write `size` MB of distinct stories: of given ones the sentences, shuffled, and a number."""
    import pyarrow
    from pyarrow import parquet
    r, texts, written = random.Random(0), [], 0
    known = [text for path in sorted(Path('tinystories').rglob('train*.parquet'))
             for text in parquet.read_table(path)['text'].to_pylist()]
    while written < size * 1e6:
        sentences = r.choice(known).split('. ')
        texts.append('. '.join(r.sample(sentences, len(sentences))) + f' Story {len(texts)}.')
        written += len(texts[-1].encode())
    Path('openwebtext').mkdir()
    parquet.write_table(pyarrow.table({'text': texts}), 'openwebtext/train.parquet', row_group_size=1000)
    return written / 1e6


def prepare_as_nanogpt(processes):
    """Run nanoGPT's data/openwebtext/prepare.py; load_dataset takes the folder of that name for the dataset.

    Three numbers change: processes, as the machine has fewer cores than its author's; and, as it needs a
    document for each of 1,024 shards of either split, the shards and the size of the validation split."""
    source = Path('nanoGPT/data/openwebtext/prepare.py').read_text()
    for old, new in (('num_proc = 8', f'num_proc = {processes}'),
                     ('total_batches = 1024', 'total_batches = min(1024, len(dset))'),
                     ('test_size=0.0005', 'test_size=max(2, round(0.0005 * len(dataset["train"])))')):
        assert source.count(old) == 1, f'this nanoGPT has no single {old}'
        source = source.replace(old, new)
    Path('prepare.py').write_text(source)                   # it writes beside itself
    runpy.run_path('prepare.py', run_name='__main__')


def preparation():
    megabytes = ask(make_corpus, mb)

    def ours(watch=False):
        return prepare_slm('--input=../openwebtext/train.parquet --name=corpus --tokenizer=gpt2', watch=watch)

    def theirs():
        with tempfile.TemporaryDirectory() as cache:        # where datasets would find its last run's work
            clock = time.perf_counter()
            ask(prepare_as_nanogpt, num_proc or CORES, HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE='1')
            return megabytes / (time.perf_counter() - clock)

    compare(f"preparation, {megabytes:.0f} MB, GPT-2's tokens", lambda: megabytes / ours().seconds,
            'nanoGPT', theirs, '>= 8', 'MB/s')
    alone('preparation, peak of anonymous memory', [ours(watch=True).anonymous], 'MB', '<= 1000')


def start():
    """Seconds from the command to the first step in log.csv, on the default stories, and of --help."""
    prepare_slm('')
    log, seconds = Path('slm/out/log.csv'), []
    for _ in range(pairs):
        log.unlink(missing_ok=True)
        clock = time.perf_counter()
        words = [sys.executable, ROOT / 'train.py', '--log_interval=1', '--overwrite=True']
        train = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd='slm')
        while train.poll() is None and not (log.exists() and re.search('^[1-9]', log.read_text(), re.M)):
            time.sleep(0.01)
        seconds.append(time.perf_counter() - clock)
        if train.poll() is not None:
            raise Error('train.py ended before its first step')
        train.kill()
        train.wait()
    alone('python train.py, to its first step', seconds, 's', '<= 5')
    for name in ('prepare.py', 'train.py', 'sample.py'):
        seconds = [Run('python', ROOT / name, '--help').seconds for _ in range(pairs)]
        alone(f'python {name} --help', seconds, 's', '<= 0.5')


def peak_on_gpu(folder, script, options):
    """MB that torch held on the GPU at most while a script ran as the command line would run it."""
    import torch
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *options]
    os.chdir(folder)
    runpy.run_path(script, run_name='__main__')
    return torch.cuda.max_memory_allocated() / 2**20


def memory():
    """Peak of two steps; on a CPU of all resident memory, on a GPU of what torch held."""
    write_letters(50257)
    both = '--n_layer={} --n_head={} --n_embd={} '.format(*shape.split('x')) + (
        '--block_size=1024 --dataset=letters_50257 --max_iters=2 --warmup_iters=1 --bias=False --out_dir=out ')
    ours = both + '--arch=gpt2 --optimizer=adamw --eval_interval=0 --eval_tokens=1000 --overwrite=True '
    theirs, bar = both + QUIET, f'memory, {shape}, context 1024, batch '
    if device != 'cuda':
        compare(bar + '4, resident', lambda: train_slm(ours + '--batch_size=4 --device=cpu')[0].resident,
                'nanoGPT',
                lambda: train_nanogpt(theirs + '--batch_size=4 --device=cpu --compile=False')[0].resident,
                '<= 0.7', 'MB')
    if on_gpu(bar + '12, GPU'):
        ours, theirs = ((knobs + '--batch_size=12').split() for knobs in (ours, theirs))
        compare(bar + '12, GPU', lambda: ask(peak_on_gpu, 'slm', str(ROOT / 'train.py'), ours),
                'nanoGPT compiled', lambda: ask(peak_on_gpu, 'peer', f'{nanogpt}/train.py', theirs),
                '<= 0.7', 'MB')


def recipes():
    """Each recipe at full size: memory and time here, from four steps; time on GPUs, from its flops."""
    print()
    row('recipe', 'parameters', 'tokens', 'memory, of so many sequences', f'{CORES} cores', 'T4', 'H100')
    row(*['---'] * 7)
    defaults = runpy.run_path(str(ROOT / 'train.py'), run_name='knobs')['config']
    for path in (ROOT / 'train.py', *sorted((ROOT / 'config').glob('[!_]*.py'))):
        knobs = defaults | ({} if path.stem == 'train' else runpy.run_path(str(path)))
        data = next(name for word, name in VOCABULARIES.items() if word in path.read_text())
        if not Path('slm/data', data).exists():
            write_letters(int(data[8:]))
        L, C, T = (knobs[k] for k in ('n_layer', 'n_embd', 'block_size'))
        B = min(knobs['micro_batch_size'] or knobs['batch_size'], 8192 // T)
        ran, parts = train_slm(*[path] * (path.stem != 'train'), f'--dataset={data} --eval_interval=0',
                               '--eval_tokens=1000 --max_iters=5 --warmup_iters=1 --log_interval=1',
                               f'--batch_size={B} --micro_batch_size=0 --device=cpu')
        N = int(re.search(r' ([\d,]+) parameters', ran.shown)[1].replace(',', ''))
        tokens = knobs['batch_size'] * T * knobs['max_iters']
        flops = tokens * (6 * N + 12 * L * C * T)                       # Chowdhery et al. 2022, appendix B
        hours = [tokens / middle_speed(parts) / 3600, *(flops / speed / 3600 for speed in GPUS)]
        row(path.stem, f'{N:,}', f'{tokens / 1e6:,.1f}M', f'{ran.resident / 1000:.1f} GB of {B}',
            *(f'{h:,.1f} h' if h > 1 else f'{h * 60:.1f} min' for h in hours))


def machine():
    """What this runs on, in a line, and whether that has a GPU."""
    import torch
    cpu, gpu = re.search('model name\\s*: (.*)', Path('/proc/cpuinfo').read_text()), torch.cuda.is_available()
    return (f'{cpu[1] if cpu else "CPU"}, {CORES} cores, {torch.get_num_threads()} threads, torch '
            f'{torch.__version__}, {torch.cuda.get_device_name() if gpu else "no GPU"}', gpu)


def main():
    global _gpu
    if _bar not in ('all', *NEEDS):
        raise Error(f'{_bar}: no such bar; there are all, {", ".join(NEEDS)}')
    chosen = list(NEEDS) if _bar == 'all' else [_bar]
    for key in sorted({key for bar in chosen for key in NEEDS[bar].split()}):
        if not os.path.exists(config[key]):
            raise Error(f'{_bar} needs --{key}=PATH, and it must exist; --help tells what it is')
    for key in ('nanogpt', 'llama2c', 'input', 'tinystories', 'recipe', 'stories_recipe'):
        place = Path(config[key]).resolve()
        globals()[key] = place if place.exists() else ROOT / config[key]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path('slm/data').mkdir(parents=True)
        Path('peer').mkdir()
        for name, place in (('nanoGPT', nanogpt), ('llama2.c', llama2c), ('input.txt', input),
                            ('tinystories', tinystories), ('peer/data', '../slm/data'),
                            ('peer/config', '../nanoGPT/config'),       # nanoGPT reads them where it runs
                            ('peer/configurator.py', '../nanoGPT/configurator.py')):
            os.symlink(place, name)
        about, _gpu = ask(machine)
        print(f'{about}; {pairs} pairs\n')
        if chosen != ['recipes']:
            row('bar', 'slm', 'peer', 'slm / peer', 'spread', 'wanted')
            row(*['---'] * 6)
        for bar in chosen:
            try:
                globals()[bar]()
            except Exception as e:                          # the next bar can still be measured
                row(bar, f'failed: {" ".join(str(e).split())[-300:]}', '', '', '', '')
        os.chdir(ROOT)


if __name__ == '__main__':
    if _bar == 'child':
        print('result:', json.dumps(globals()[_options[0]](*json.loads(os.environ['ARGUMENTS']))))
    else:
        main()
