"""Train a GPT on a prepared dataset: python train.py [config/NAME.py] [--knob=value ...]

The knobs, then the pieces (batches, schedule, log), then one flat run: set up, load, loop. On several
devices: torchrun --nproc_per_node=8 train.py ... The data is prepare.py's, the mathematics model.py's."""
from config import Error, atomic, configure, lock, require, setup

# run
out_dir = 'out'             # where checkpoints, log.csv and loss.png go
dataset = 'stories'         # NAME of data/NAME, made by prepare.py
init_from = 'scratch'       # scratch, resume, auto (resume if it can), a checkpoint or Hugging Face model
overwrite = False           # start anew in an out_dir that holds another run
seed = 1337                 # of weights, batches and dropout
max_minutes = 0.0           # stop and save after this many minutes; 0 = no limit
# evaluation and logs, all counted in optimizer steps
eval_interval = 800         # evaluate and save every so many steps, and at the end; 0 = only at the end
eval_tokens = 0             # tokens of the validation split an evaluation takes; 0 = all
eval_only = False           # evaluate what init_from names, and stop
log_interval = 10           # steps between two lines of the log
wandb_project = ''          # also log to this Weights & Biases project; '' = off
# model
arch = 'qwen3'              # qwen3 (RoPE, RMSNorm, SwiGLU) or gpt2 (learned positions, LayerNorm, GELU)
n_layer = 2                 # blocks
n_head = 3                  # attention heads
n_kv_head = 0               # heads of keys and values, qwen3 only; 0 = n_head
n_embd = 144                # channels
head_dim = 0                # channels of a head, qwen3 only; 0 = n_embd / n_head
block_size = 160            # tokens of context
dropout = 0.0               # 0 unless epochs are many
bias = False                # biases in linear layers and norms, gpt2 only
tie_weights = True          # one matrix for embedding and output
head_gain = 0.0             # initial last norm, the output matrix divided by it; 0 = 20 for stories, else 1
# optimization
optimizer = 'muon'          # muon (for the blocks' matrices, AdamW for the rest) or adamw
learning_rate = 2e-3        # its peak
min_lr = 0.0                # where the schedule ends
schedule = 'wsd'            # wsd (flat, then linear decay) or cosine
decay_fraction = 0.9        # wsd: the last part of the run, in which the rate decays
warmup_iters = 50           # steps of linear warm-up
max_iters = 3200            # optimizer steps
batch_size = 12             # sequences in an optimizer step, over all devices
micro_batch_size = 0        # sequences a device holds at once: lower it if memory runs out; 0 = all its share
weight_decay = 0.1          # of matrices and embeddings
beta1 = 0.9                 # AdamW's
beta2 = 0.95                # AdamW's
grad_clip = 1.0             # largest norm of the gradient; 0 = off
# system
device = 'auto'             # auto (cuda, mps or cpu), or one of them by name
dtype = 'auto'              # of matrix products: bfloat16, float16, float32; auto = the best that is native
compile = 'auto'            # torch.compile the model; auto = on CUDA only
verify = False              # check the dataset's checksums also above 1 GB
config = configure(globals())

import os
import signal

if __name__ == '__main__':      # Ctrl-C as an exception can be lost in what a library does as it is loaded
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

# The heavy imports come after the knobs, so that --help and a typo answer at once.
import csv
import importlib.util
import math
import sys
import textwrap
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model import GPT, GPTConfig, evaluate, model_from, pack_documents, save_checkpoint
from prepare import Tokenizer, open_dataset
from sample import LanguageModel, plot_losses, read_weights

MODEL_KNOBS = 'arch n_layer n_head n_kv_head n_embd head_dim block_size bias tie_weights'.split()
RESUMED = ('config', 'data', 'step', 'val_loss', 'best_val_loss', 'optimizer', 'scaler')
COLUMNS = 'step tokens train_loss val_loss bits_per_byte lr grad_norm tokens_per_second'.split()
FILES = ('best.pt', 'ckpt.pt', 'log.csv', 'loss.png')
PEAK_TFLOPS = {'H200': 989, 'H100': 989, 'A100': 312, 'L4': 121, 'T4': 65, '4090': 165, '3090': 71}    # dense


def batches(data, T: int, size: int, seed: int):
    """Return batch(step, first, count) -> inputs, targets (count, T): rows first.. of a step's `size`.

    A pure function: each epoch cuts data (N,) into windows at a new phase and deals them out in a new order,
    without replacement. So resuming needs no state, and ranks and micro-batches take slices."""
    require(len(data) > T, f'the train split has {len(data)} tokens; lower block_size below that')
    n = max(1, (len(data) - T) // T)                            # windows in an epoch

    @lru_cache(2)
    def epoch_starts(epoch):
        rng = np.random.default_rng((seed, epoch))
        return rng.integers(len(data) - n * T) + T * rng.permutation(n)

    def batch(step, first, count):
        index = step * size + first + np.arange(count)
        starts = [epoch_starts(e)[i] for e, i in zip(index // n, index % n)]
        ids = torch.from_numpy(np.stack([data[s:s + T + 1] for s in starts]).astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    return batch


def learning_rate_at(step: int) -> float:
    """Rate of update `step`, 1 to max_iters: linear warm-up, then cosine, or flat and linear decay (wsd)."""
    if step <= warmup_iters:
        return learning_rate * step / warmup_iters
    if schedule == 'cosine':
        done = (step - warmup_iters) / max(1, max_iters - warmup_iters)
        return min_lr + (learning_rate - min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    decay = max(1, min(round(decay_fraction * max_iters), max_iters - warmup_iters))
    left = (max_iters - step + 1) / decay
    return min_lr + (learning_rate - min_lr) * min(1, left)


def begin_log(path, last_step: int):
    """Write log.csv anew: what there is of it up to last_step, without what a crash wrote past it."""
    rows = []
    if os.path.exists(path):
        with open(path, newline='', encoding='utf-8') as f:
            rows = [row for row in csv.reader(f) if len(row) == len(COLUMNS) and row[0].isdigit()]
    with atomic(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows([COLUMNS, *(row for row in rows if int(row[0]) <= last_step)])


def check(knobs: dict, world_size: int):
    """Raise Error on knobs that contradict each other."""
    require(compile in ('auto', True, False), f'compile={compile!r} is not known: auto, True or False')
    require(schedule in ('wsd', 'cosine'), f'schedule={schedule!r} is not known: wsd or cosine')
    require(min_lr <= learning_rate, f'min_lr={min_lr} is above learning_rate={learning_rate}; lower it')
    require(batch_size % world_size == 0,
            f'batch_size={batch_size} does not divide among {world_size} processes')
    require((batch_size // world_size) % (micro_batch_size or 1) == 0,
            f'micro_batch_size={micro_batch_size} does not divide a share of {batch_size // world_size}')
    for key in ('max_iters', 'batch_size', 'block_size', 'log_interval'):
        require(knobs[key] >= 1, f'{key}={knobs[key]} must be at least 1')
    for key, value in knobs.items():
        require(type(value) not in (int, float) or value >= 0, f'{key}={value} must not be negative')
    require(not wandb_project or importlib.util.find_spec('wandb'), 'wandb_project needs: pip install wandb')
    require(batch_size < 1 << 31, f'batch_size={batch_size} is out of reach')
    require(head_gain < 1e6, f'head_gain={head_gain} is out of reach; 1 is plain')
    require(0 <= decay_fraction <= 1, f'decay_fraction={decay_fraction} must be between 0 and 1')
    require(0 <= beta1 < 1 and 0 <= beta2 < 1, 'beta1 and beta2 must be at least 0 and less than 1')


if __name__ == '__main__':
    # ---- where the run starts: from nothing, from its own checkpoint, or from other weights
    out = Path(out_dir)
    rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    main = rank == 0
    checkpoint = None
    resumed = init_from == 'resume' or (init_from == 'auto' and os.path.exists(out / 'ckpt.pt'))
    if resumed:
        if main and not eval_only and (out / 'ckpt.pt').exists():
            held = lock(out / '.lock')                          # what is read is the last, also after a wait
        checkpoint = read_weights(out / 'ckpt.pt', *RESUMED)
        kept = {k: v for k, v in checkpoint['config'].items()
                if k in config and k not in ('init_from', 'out_dir', 'overwrite', 'eval_only', 'max_minutes')}
        config = configure(globals(), below=kept)
        changed = {k: f'{v} -> {config[k]}' for k, v in kept.items() if config[k] != v}
        fixed = changed.keys() & {*MODEL_KNOBS, 'seed', 'optimizer'}
        require(not fixed, f'{", ".join(sorted(fixed))} cannot change on resume: use another out_dir')
    elif init_from not in ('scratch', 'auto'):
        checkpoint = read_weights(init_from, hub=True)
        shape = {k: checkpoint['model_config'][k] for k in MODEL_KNOBS if k != 'block_size'}
        config.update(shape)
        globals().update(shape)
    check(config, world_size)

    # ---- device, precision, processes
    if world_size > 1:
        if device == 'cuda' or (device == 'auto' and torch.cuda.is_available()):
            device = f'cuda:{os.environ["LOCAL_RANK"]}'
            torch.cuda.set_device(device)
        torch.distributed.init_process_group()                  # nccl for tensors on GPUs, gloo for others
    device, dtype, autocast = setup(device, dtype, seed)
    on_cuda = device.type == 'cuda'
    share = batch_size // world_size                            # sequences of this process in a step
    micro = micro_batch_size or share
    tokens_per_step = batch_size * block_size

    # ---- data
    meta, train_data, val_data = open_dataset(dataset, verify)
    tokenizer = Tokenizer.from_spec(meta['tokenizer'])
    fingerprint = {split: meta[split]['checksum'] for split in ('train', 'val')}
    require(not resumed or checkpoint['data'] == fingerprint,
            f'data/{dataset} is not what {out}/ckpt.pt was trained on; use another out_dir')
    require((tokenizer.vocab_size, tokenizer.eot) == (meta['vocab_size'], meta['eot']),
            f'data/{dataset}/meta.json does not fit its tokenizer; prepare it again')
    require(not checkpoint or Tokenizer.from_spec(checkpoint['tokenizer']) == tokenizer,
            f'data/{dataset} has another tokenizer than the checkpoint; prepare it with that one')
    batch = batches(train_data, block_size, batch_size, seed)
    val_ids = torch.from_numpy(val_data[:eval_tokens or None].astype(np.int64))
    val_x, val_y = pack_documents(val_ids, meta['eot'], block_size)
    to_bits = {k: meta[k]['tokens'] / meta[k]['bytes'] / math.log(2) for k in ('train', 'val')}  # bits/byte
    entropy = None if eval_tokens else meta['val']['entropy']   # it is known of the whole text only
    floor = entropy / meta['val']['tokens'] if entropy else None

    # ---- model and optimizers
    if checkpoint:
        model = model_from(checkpoint, dropout=dropout, block_size=block_size)
    else:
        shape = {k: config[k] for k in (*MODEL_KNOBS, 'dropout')}
        model = GPT(GPTConfig(vocab_size=meta['vocab_size'], **shape))
        # Adam moves the logits faster: the improbable soon become impossible, too soon for natural text.
        gain = head_gain or (20.0 if floor else 1.0)
        with torch.no_grad():
            model.norm_f.weight *= gain
            model.lm_head.weight /= gain
    model.to(device)
    optimizers = model.make_optimizers(optimizer, learning_rate, weight_decay, (beta1, beta2))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    start, val_loss, best_val_loss = 0, math.inf, math.inf
    if resumed:
        require(0 <= checkpoint['step'] <= max_iters,
                f'{out}/ckpt.pt is at step {checkpoint["step"]}: raise max_iters={max_iters}')
        start, val_loss, best_val_loss = (checkpoint[k] for k in ('step', 'val_loss', 'best_val_loss'))
        model.load_optimizers(optimizers, checkpoint['optimizer'])
        if checkpoint['scaler']:
            scaler.load_state_dict(checkpoint['scaler'])
    del checkpoint
    if world_size > 1:
        starts = [0] * world_size
        torch.distributed.all_gather_object(starts, start)
        require(len({*starts}) == 1, f'the processes begin at steps {starts}: all need the same {out}')
    if compile is True or (compile == 'auto' and on_cuda):
        torch._dynamo.config.suppress_errors = True             # no compiler here: warn and run uncompiled
        model.compile()
    ddp = torch.nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    groups = [group for o in optimizers for group in o.param_groups]
    flops_per_token = 6 * model.num_params() + 12 * n_layer * n_head * model.config.head_dim * block_size
    chip = torch.cuda.get_device_name(device).replace('-', ' ').split() if on_cuda else []
    peak = next((tera * 1e12 for name, tera in PEAK_TFLOPS.items() if name in chip), None)

    # ---- the run's folder and its log
    log_path = out / 'log.csv'
    wandb = None
    if main and not eval_only:
        held = lock(out / '.lock')
        require(resumed or overwrite or not (out / 'ckpt.pt').exists(),
                f'{out} holds a run already: continue it with --init_from=resume, replace it with '
                '--overwrite=True, or choose another --out_dir')
        if wandb_project:                                       # before anything is removed, as it may fail
            import wandb
            try:
                wandb.init(project=wandb_project, name=out_dir, config=config, dir=out_dir)
            except wandb.Error as e:                            # no account, no network
                raise Error(f'wandb_project={wandb_project}: {e}; WANDB_MODE=offline needs neither') from e
        if not resumed:
            for name in FILES:
                (out / name).unlink(missing_ok=True)
        begin_log(log_path, start)

    def say(text=''):
        if main:
            tqdm.write(text)

    say(f'model   {arch}, {model.num_params():,} parameters: {n_layer} layers, {n_head} heads, '
        f'{n_embd} channels, vocabulary {meta["vocab_size"]:,}')
    say(f'data    {dataset}: {len(train_data):,} tokens to train on, {len(val_ids):,} held out'
        + (f', whose entropy is {floor:.4f} nats per token' if floor else ''))
    say(f'steps   {max_iters:,} of {batch_size} x {block_size} tokens, '
        f'{max_iters * tokens_per_step / len(train_data):.2f} epochs')
    say(f'device  {world_size} x {device.type}, {share // micro} x {micro} sequences each, '
        + str(dtype).removeprefix('torch.'))
    if resumed:
        say(f'resume  {out}/ckpt.pt at step {start}' + ''.join(f', {k}: {v}' for k, v in changed.items()))

    # ---- polite stops: finish the step and save; a second signal, if not a launcher's echo, ends at once
    stop, stop_time = 0, 0.0

    def ask_to_stop(number, frame):
        global stop, stop_time
        if not stop:
            stop, stop_time = 128 + number, time.monotonic()
        elif time.monotonic() - stop_time > 2:
            os._exit(128 + number)

    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)

    def save(name, **more):
        if main:
            save_checkpoint(out / name, dict(
                model=model.state_dict(), model_config=vars(model.config), tokenizer=meta['tokenizer'],
                step=step, val_loss=val_loss, best_val_loss=best_val_loss, config=config, data=fingerprint,
                versions={'torch': str(torch.__version__), 'python': sys.version.split()[0]}, **more))

    # ---- the loop: after `step` updates evaluate, log and save; the last weights are measured and saved too
    pending = []                    # (step, loss, gradient norm) on the device: no step waits for them
    seconds = 0.0                   # spent in these updates
    skipped = 0                     # updates fp16 had to skip because the gradient overflowed
    advice = f': lower learning_rate; the last good checkpoint is in {out}'
    lm = LanguageModel(model, tokenizer)
    step, stopping, began = start, 0, time.monotonic()
    first = start + 1 if resumed and not eval_only else start   # a resumed run has logged its start already
    bar = tqdm(total=max_iters, initial=start, disable=None if main else True,
               bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}')
    for step in range(first, max_iters + 1):
        if step > start:
            clock = time.perf_counter()
            lr = learning_rate_at(step)
            for group in groups:
                group['lr'] = lr
            train_loss = 0.0
            for m in range(share // micro):
                x, y = (t.to(device) for t in batch(step - 1, rank * share + m * micro, micro))
                if dropout:
                    torch.manual_seed(hash((seed, step, rank, m)))
                ddp.require_backward_grad_sync = m == share // micro - 1
                with autocast():
                    loss = ddp(x, y) / (share // micro)         # windows are equally long: a mean of means
                scaler.scale(loss).backward()
                train_loss += loss.detach()
            for o in optimizers:
                scaler.unscale_(o)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
            if scaler.is_enabled() and not norm.isfinite():
                skipped += 1
            else:
                for o in optimizers:
                    o.step()
            scaler.update()
            model.zero_grad()
            pending.append((step, train_loss, norm))

        flags = torch.tensor([stop, int(max_minutes and time.monotonic() - began > 60 * max_minutes)])
        if world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        stopping, out_of_time = flags.tolist()                  # on all ranks at the same step
        due = step == max_iters or (eval_interval > 0 and step % eval_interval == 0)
        in_log = due or (pending and step % log_interval == 0)  # no row that an unbroken run would not have
        evaluating = due or out_of_time or eval_only
        logging = in_log or evaluating or stopping
        if logging and on_cuda:
            torch.cuda.synchronize(device)
        if pending:
            seconds += time.perf_counter() - clock
        if not logging:
            continue

        # ---- read what the updates measured
        for at, loss, norm in pending:
            if world_size > 1:
                torch.distributed.all_reduce(loss)
                loss /= world_size
            require(math.isfinite(loss) and (math.isfinite(norm) or scaler.is_enabled()),
                    f'step {at}: the loss is {float(loss):.4f}, the gradient norm {float(norm):.4f}{advice}')
        row = {'step': step, 'tokens': step * tokens_per_step}
        text = f'step {step:>6}'
        if pending:
            train_loss, norm, speed = float(loss), float(norm), len(pending) * tokens_per_step / seconds
            row |= {'train_loss': train_loss, 'lr': lr, 'grad_norm': norm, 'tokens_per_second': round(speed)}
            text += f'  loss {train_loss:.4f}  lr {lr:.2e}  norm {norm:.2f}  {speed:>9,.0f} tokens/s'
            text += f'  MFU {speed / world_size * flops_per_token / peak:.1%}' if peak else ''
            bar.set_postfix_str(f'train loss {train_loss:.3f} = {train_loss * to_bits["train"]:.3f} '
                                f'bits/byte, {speed:,.0f} tokens/s', refresh=False)
        text += f'  {skipped} skipped' if skipped else ''
        bar.update(step - bar.n)
        pending, seconds = [], 0.0

        # ---- measure and save
        if evaluating:
            val_loss = evaluate(model, val_x, val_y, micro, autocast, rank, world_size)
            require(math.isfinite(val_loss), f'step {step}: the validation loss is {val_loss}{advice}')
            if due:
                row |= {'val_loss': val_loss, 'bits_per_byte': val_loss * to_bits['val']}
            text += f'  val {val_loss:.4f}  {val_loss * to_bits["val"]:.4f} bits/byte'
            if floor:
                text += f'  {val_loss / floor - 1:+.1%} of the floor'
                if val_loss < 0.995 * floor:
                    say(f'warning: validation loss under its floor of {floor:.4f}: training text leaked')
        if evaluating or bar.disable:
            say(text)
        if eval_only:
            break
        if main and in_log:
            try:
                with open(log_path, 'a', newline='', encoding='utf-8') as f:
                    csv.writer(f).writerow([row.get(c, '') for c in COLUMNS])
            except OSError as e:
                raise Error(f'cannot write {log_path}: {e}; the last checkpoint is intact') from e
        if wandb and in_log:
            wandb.log(row, step=step)
        if evaluating and step and val_loss < best_val_loss:    # what has learned nothing is never the best
            best_val_loss = val_loss
            save('best.pt')
        if evaluating and main and step:
            model.eval()
            with autocast():
                for line in lm.generate(max_new_tokens=150).splitlines():
                    say(textwrap.fill(line, 108, initial_indent=' ' * 8, subsequent_indent=' ' * 8))
            model.train()
        if evaluating or stopping:
            save('ckpt.pt', optimizer=[o.state_dict() for o in optimizers], scaler=scaler.state_dict())
        if stopping or out_of_time:
            break

    # ---- the end
    bar.close()
    if main and not eval_only:
        plot_losses([out_dir], out / 'loss.png', floor)
        say()
        if best_val_loss < math.inf:
            say(f'best    val loss {best_val_loss:.4f}, {best_val_loss * to_bits["val"]:.4f} bits per byte'
                + (f', {best_val_loss / floor - 1:+.1%} of the floor' if floor else ''))
        if step < max_iters:
            say(f'stopped at step {step:,} of {max_iters:,}')
        say(f'spent   {(time.monotonic() - began) / 60:.1f} minutes, '
            f'{(step - start) * tokens_per_step:,} tokens'
            + (f', {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most' if on_cuda else ''))
        say('saved   ' + ', '.join(f'{out}/{name}' for name in FILES if (out / name).exists()))
        flag = '' if out_dir == 'out' else f' --out_dir={out_dir}'
        say('next    python ' + ('sample.py' if step == max_iters else 'train.py --init_from=resume') + flag)
    if wandb:
        wandb.finish()
    if world_size > 1:
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stopping)                                      # gloo's threads can abort an ordinary end
    if stopping:
        sys.exit(stopping)
