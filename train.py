"""Train a GPT on a dataset of prepare.py: python train.py [config/NAME.py] [--knob=value ...]

First the knobs, then functions of them, then the run itself, from top to bottom. On several
devices: torchrun --standalone --nproc_per_node=8 train.py [config/NAME.py] [--knob=value ...]"""
from config import configure

# run
out_dir = 'out'             # where checkpoints, log.csv and loss.png go
dataset = 'stories'         # NAME of data/NAME, made by prepare.py
init_from = 'scratch'       # scratch, resume, auto (resume if there is a run), or a model's path
overwrite = False           # replace the run that out_dir holds
seed = 1337                 # of weights, batches and dropout
max_minutes = 0.0           # stop and save after this many minutes; 0 = no limit
# evaluation and logs
eval_interval = 850         # steps between evaluations, which also save; 0 = only at the end
eval_tokens = 0             # tokens of the validation split to evaluate; 0 = all
eval_only = False           # evaluate the model of init_from, and stop
log_interval = 10           # steps between rows of log.csv
wandb_project = ''          # also log to this Weights & Biases project; '' = off
# model; all other fields of GPTConfig in model.py are knobs as well
arch = 'qwen3'              # qwen3 (RoPE, RMSNorm, SwiGLU) or gpt2 (learned positions, GELU)
n_layer = 2                 # blocks
n_head = 4                  # attention heads
n_embd = 128                # channels
block_size = 160            # tokens of context
dropout = 0.0               # share of activations set to 0; helps over many epochs
head_gain = 20.0            # 20 suits the stories, 4 documents, 1 text by characters
# optimization
optimizer = 'muon'          # muon (for the blocks' matrices, AdamW for the rest) or adamw
learning_rate = 2.5e-3      # the highest, after the warm-up
min_lr = 0.0                # the schedule falls towards it
schedule = 'wsd'            # wsd (warm-up, stable, then decay) or cosine
decay_fraction = 0.9        # wsd: share of the run in which the rate decays
decay_power = 3.0           # wsd: 1 = in a straight line; 3 suits the stories, 1 other text
warmup_iters = 50           # steps of linear warm-up
max_iters = 3400            # optimizer steps
batch_size = 12             # sequences in an optimizer step, over all devices
micro_batch_size = 0        # sequences that a device computes at once; 0 = as many as fit
weight_decay = 0.1          # for matrices and embeddings
beta1 = 0.9                 # AdamW's
beta2 = 0.95                # AdamW's
grad_clip = 1.0             # longer gradients are shortened to this norm; 0 = off
# system
device = 'auto'             # auto (cuda, mps or cpu), or one of them by name
dtype = 'auto'              # of matrix products: bfloat16, float16, float32; auto = the fastest
compile = 'auto'            # torch.compile the model; auto = on CUDA only
fast = True                 # use routines of extras/ that need less time or memory
verify = False              # verify checksums of datasets above 1 GB, too
config = configure(globals(), dataclass=('model.py', 'GPTConfig'))      # changes the knobs above

import signal

if __name__ == '__main__':  # Ctrl-C ends the process at once, before an import can swallow it
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# The other imports come after the knobs, so that --help and a mistyped knob are answered at once.
import dataclasses
import math
import os
import time
from pathlib import Path

import torch

# A first reading can skip these files of config/: their functions do what their names say.
from config import extra, require
from config._checkpoint import check_init_from, load_training_state
from config._device import pick_dtype
from config._files import acquire_lock
from config._log import Log, announce
from config._muon import lend_gradients, split_matrices
from config._run import (
    PoliteStop,
    can_compile,
    finish,
    max_speed,
    parallelize,
    pick_micro_batch,
    start_device,
    use_faster_routines,
)
from config._start import adopt_knobs, adopt_shape, announce_resume, check_data, open_folder
from data.tokenizer import Tokenizer
from model import GPT, GPTConfig, build_model, evaluate, load_checkpoint, save_checkpoint
from prepare import evaluation_windows, get_batch, open_dataset, validation_text

MODEL_KNOBS = [field.name for field in dataclasses.fields(GPTConfig) if field.name in config]


# ---- functions of the knobs
def learning_rate_at(step: int) -> float:
    """Learning rate of update `step`, from 1 to max_iters: a linear warm-up, then the schedule."""
    if step <= warmup_iters:
        return learning_rate * step / warmup_iters
    if schedule == 'cosine':
        progress = (step - warmup_iters) / max(1, max_iters - warmup_iters)         # 0 to 1
        return min_lr + (learning_rate - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    decay_iters = max(1, min(round(decay_fraction * max_iters), max_iters - warmup_iters))
    left = (max_iters - step + 1) / decay_iters             # above 1 before the decay
    return min_lr + (learning_rate - min_lr) * min(1, left) ** decay_power


def check_knobs(world_size: int):
    """Raise Error for knobs that are out of range or contradict each other."""
    require(out_dir, 'out_dir is empty')
    require(compile in ('auto', True, False), f'compile={compile!r} is not auto, True or False')
    require(schedule in ('wsd', 'cosine'), f'schedule={schedule!r} is not wsd or cosine')
    for name, value in config.items():
        is_number = type(value) in (int, float)
        require(not is_number or value >= 0, f'{name}={value} must not be negative')
    for name in ('max_iters', 'batch_size', 'block_size', 'log_interval'):
        require(1 <= config[name] < 1 << 31,
                f'{name}={config[name]} must be at least 1, and less than 2 ** 31')
    require(batch_size % world_size == 0,
            f'batch_size={batch_size} does not divide among {world_size} processes')
    share = batch_size // world_size
    require(share % (micro_batch_size or 1) == 0,
            f'micro_batch_size={micro_batch_size} does not divide the {share} sequences of a '
            'process in a step')
    require(min_lr <= learning_rate, f'min_lr={min_lr} is above learning_rate={learning_rate}')
    require(0 <= decay_fraction <= 1, f'decay_fraction={decay_fraction} must be between 0 and 1')
    require(0 <= beta1 < 1 and 0 <= beta2 < 1, 'beta1 and beta2 must be at least 0 and less than 1')
    if wandb_project:
        extra('tracking', needed_by='wandb_project')        # an Error now if it is missing


# ---- parts of the setup
def read_start(out: Path, is_writer: bool) -> tuple[dict | None, bool]:
    """The checkpoint to start from, if any, and whether it is the run's own, which then goes on.

    In config, knobs that are not given now take the values of the checkpoint. Raises Error for one
    that is given and contradicts it."""
    has_run = os.path.exists(out / 'ckpt.pt')
    is_resumed = init_from == 'resume' or (init_from == 'auto' and has_run)
    require(not (is_resumed and overwrite),
            f'init_from={init_from} continues the run that overwrite=True replaces: leave one out')
    checkpoint = None
    if is_resumed:
        if is_writer and has_run:               # before reading: another run may be writing
            acquire_lock(out / '.lock')
        checkpoint = load_checkpoint(out / 'ckpt.pt', 'config', 'data', 'step', 'val_loss',
                                     'best_val_loss', 'optimizer', 'scaler')
        adopt_knobs(config, checkpoint['config'], MODEL_KNOBS)
    elif init_from not in ('scratch', 'auto'):
        check_init_from(init_from)
        checkpoint = load_checkpoint(init_from, from_hub=True)
        adopt_shape(config, checkpoint['model_config'], MODEL_KNOBS)
    require(checkpoint or not eval_only,
            'eval_only=True needs a model: --init_from=resume, or a path')
    return checkpoint, is_resumed


def make_model(checkpoint: dict | None, tokenizer: Tokenizer, device: torch.device) -> GPT:
    """The model of the checkpoint, or a new one, on the device."""
    torch.manual_seed(seed)
    if checkpoint:
        return build_model(checkpoint, block_size=block_size, dropout=dropout).to(device)
    rows = tokenizer.vocab_size
    if device.type == 'cuda':
        rows = math.ceil(rows / 64) * 64        # GPUs multiply matrices of such sizes faster
    shape = {name: config[name] for name in MODEL_KNOBS}
    return GPT(GPTConfig(vocab_size=rows, **shape)).to(device)


def make_optimizers(model: GPT) -> list:
    """Optimizers that hold each parameter once. Matrices and embeddings decay, norms and biases do
    not. `adamw` takes all parameters. With `muon`, Muon (Jordan et al. 2024) takes the blocks'
    matrices, at a scale that fits AdamW's rate (Liu et al. 2025), and AdamW takes the rest."""
    require(optimizer in ('adamw', 'muon'), f'optimizer={optimizer!r} is not adamw or muon')
    of_muon = [p for p in model.h.parameters() if p.ndim == 2 and optimizer == 'muon']
    ids = {id(p) for p in of_muon}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [{'params': [p for p in rest if p.ndim >= 2], 'weight_decay': weight_decay},
              {'params': [p for p in rest if p.ndim < 2], 'weight_decay': 0.0}]
    is_fused = rest[0].device.type in ('cpu', 'cuda')
    optimizers = [torch.optim.AdamW(groups, learning_rate, (beta1, beta2), fused=is_fused)]
    if of_muon:
        optimizers.append(torch.optim.Muon(split_matrices(model, of_muon), learning_rate,
                                           weight_decay, adjust_lr_fn='match_rms_adamw'))
    return optimizers


# ---- parts of a step
def micro_batches(step: int, data, rank: int, share: int, micro: int, device: torch.device):
    """Yield the sequences of process `rank` in a step, `share` in all, as inputs and targets
    (micro, T) on the device. Of 480 on 8 GPUs that hold 20 at once, each takes 60, in 3 parts."""
    begin = (step - 1) * batch_size + rank * share
    for first in range(begin, begin + share, micro):
        batch = get_batch(data, block_size, seed, range(first, first + micro))
        x, y = (torch.from_numpy(ids) for ids in batch)
        if device.type == 'cuda':               # pinned memory is copied while the host goes on
            x, y = x.pin_memory(), y.pin_memory()
        if dropout:                             # so that a resumed run draws the same masks
            torch.manual_seed(hash((seed, first)))
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def update(model: GPT, optimizers: list, scaler, step: int) -> torch.Tensor:
    """Let the optimizers update the weights. Returns the norm of the gradients."""
    for opt in optimizers:
        for group in opt.param_groups:
            group['lr'] = learning_rate_at(step)
            if isinstance(opt, torch.optim.Muon):
                # At first the weights change so fast that old gradients say little.
                group['momentum'] = 0.85 + 0.1 * min(1, step / 300)
                lend_gradients(group['params'])
        scaler.unscale_(opt)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    # In fp16 gradients can overflow. Then no optimizer steps; scaler.step would let each decide.
    if not scaler.is_enabled() or norm.isfinite():
        for opt in optimizers:
            opt.step()
    scaler.update()
    for holder in (model, *optimizers):         # Muon's matrices keep gradients in memory, too
        holder.zero_grad()
    return norm


def training_row(step: int, losses: list, norms: list, seconds: float, world_size: int,
                 is_fp16: bool) -> dict:
    """The row of log.csv for the updates since the last row, up to `step`. It waits for the device.

    Raises Error if a loss or a norm is not finite, except the norms of fp16, which may overflow."""
    losses, norms = torch.stack(losses), torch.stack(norms)                     # (updates,) each
    if world_size > 1:
        torch.distributed.all_reduce(losses)
        losses /= world_size
    losses, norms = losses.tolist(), norms.tolist()
    for at, (loss, norm) in enumerate(zip(losses, norms), step - len(losses) + 1):
        is_finite = math.isfinite(loss) and (math.isfinite(norm) or is_fp16)
        require(is_finite, f'step {at}: the loss is {loss:.4f}, the gradient norm {norm:.4f}: '
                           f'lower learning_rate; the last good checkpoint is in {out_dir}')
    tokens = batch_size * block_size
    return {'step': step, 'tokens': step * tokens, 'train_loss': losses[-1],
            'grad_norm': norms[-1], 'lr': learning_rate_at(step),
            'tokens_per_second': round(len(losses) * tokens / seconds),
            'skipped': sum(not math.isfinite(norm) for norm in norms)}


def sample_text(model: GPT, tokenizer: Tokenizer) -> str:
    """A text by the model as it is now."""
    prompt = torch.tensor([[tokenizer.eot]], device=model.wte.weight.device)
    model.eval()
    new = model.generate(prompt, 150, temperature=0.8, eot=tokenizer.eot, seed=seed,
                         vocab_size=tokenizer.vocab_size)
    text = tokenizer.decode([int(i) for i in new])
    model.train()
    return text


# ---- the run
# The setup in order: checkpoint, device, data, model, optimizers, log. What trains is the loop.
if __name__ == '__main__':
    rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    is_writer = rank == 0 and not eval_only     # whether this process writes to out_dir
    out = Path(out_dir)
    checkpoint, is_resumed = read_start(out, is_writer)
    globals().update(config)        # the last change of the knobs: a resumed run has its saved ones
    check_knobs(world_size)

    # device and precision
    torch_device = start_device(device, world_size)
    torch_dtype = pick_dtype(dtype, torch_device)
    autocast = torch.autocast(torch_device.type, torch_dtype, enabled=torch_dtype != torch.float32)

    # data
    meta, train_data, val_data = open_dataset(dataset, verify)
    tokenizer = Tokenizer(meta['tokenizer'])
    check_data(config, meta, tokenizer, checkpoint, is_resumed)         # do they fit each other?
    validation = validation_text(meta, val_data, tokenizer, eval_tokens)
    windows = evaluation_windows(validation.ids, tokenizer.eot, block_size)
    val_x, val_y = (torch.from_numpy(ids) for ids in windows)           # (windows, T) each

    # model and optimizers
    model = make_model(checkpoint, tokenizer, torch_device).train()
    optimizers = make_optimizers(model)
    if fast:        # the same Attention.attend, GPT.loss and Muon, in less time or memory; with
        use_faster_routines(model, optimizers, torch_dtype)     # --fast=False, as model.py has them
    share = batch_size // world_size            # sequences of this process in a step
    micro = pick_micro_batch(model, autocast, share, micro_batch_size)      # that it holds at once

    # progress
    scaler = torch.amp.GradScaler(torch_device.type, enabled=torch_dtype == torch.float16)
    progress = {'step': 0, 'val_loss': math.inf, 'best_val_loss': math.inf}
    if is_resumed:
        progress = {name: checkpoint[name] for name in progress}
        load_training_state(checkpoint, optimizers, scaler)
    start = progress['step']
    if can_compile(compile, torch_device):
        model.compile(dynamic=False)
    parallel = parallelize(model, start, out)   # several processes average their gradients

    # the run's folder; only now, as a refused run leaves no folder behind
    tracker = open_folder(config, is_resumed) if is_writer else None
    log = Log(out / 'log.csv', start, max_iters, is_shown=rank == 0, is_written=is_writer,
              floor=validation.floor(), max_speed=max_speed(model, torch_device), tracker=tracker)
    announce(log, config, model, meta, validation.ids, torch_device, torch_dtype, micro)
    if is_resumed:
        announce_resume(log, config, checkpoint)
    checkpoint = None                           # to free its memory
    stop = PoliteStop(max_minutes)              # Ctrl-C and the like end a run after a step

    # ---- functions of the run
    def validation_row(step: int) -> dict:
        """The columns of log.csv for the validation text."""
        log.note('evaluating')
        loss = evaluate(model, val_x, val_y, micro, autocast, rank, world_size)
        require(math.isfinite(loss), f'step {step}: the validation loss is {loss}: '
                f'lower learning_rate; the last good checkpoint is in {out}')
        return {'val_loss': loss, 'bits_per_byte': validation.bits_per_byte(loss)}

    def save(name: str, **state):
        """Write a checkpoint to out_dir; `state` is what only a resumed run needs."""
        if is_writer:
            checksums = {split: meta[split]['checksum'] for split in ('train', 'val')}
            save_checkpoint(out / name, model, meta['tokenizer'], dict(config), data=checksums,
                            **progress, **state)

    def save_best(val_loss: float):
        """Note the validation loss, and write best.pt if none was lower."""
        progress['val_loss'] = val_loss
        if val_loss < progress['best_val_loss']:
            progress['best_val_loss'] = val_loss
            save('best.pt')

    def save_to_resume():
        save('ckpt.pt', optimizer=[opt.state_dict() for opt in optimizers],
             scaler=scaler.state_dict())

    # ---- before the first update
    began = time.perf_counter()
    step = start
    if eval_only or (eval_interval > 0 and not is_resumed):
        row = {'step': start, 'tokens': start * batch_size * block_size, **validation_row(start)}
        log.add(row)
        if not eval_only:
            progress['val_loss'] = row['val_loss']
            save_to_resume()

    # ---- the loop: an update, then what is due after it
    losses, norms = [], []                      # of the updates since the last row, on the device
    clock = time.perf_counter()
    last_step = start if eval_only else max_iters
    is_eval_due = False
    for step in range(start + 1, last_step + 1):
        # The gradients of the micro-batches add up to those of the mean loss of the whole batch.
        loss = torch.zeros((), device=torch_device)
        batches = micro_batches(step, train_data, rank, share, micro, torch_device)
        for i, (x, y) in enumerate(batches, 1):
            if world_size > 1:                  # only the last one averages over the processes
                parallel.require_backward_grad_sync = i == share // micro
            with autocast:
                micro_loss = parallel(x, y) * micro / share             # its part of the mean
            scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        norm = update(model, optimizers, scaler, step)
        losses.append(loss)
        norms.append(norm)
        progress['step'] = step

        # Due after an update: at times a row of log.csv; less often, and at the end, also an
        # evaluation, a sample and a checkpoint. A run that is stopped writes a checkpoint, too.
        is_eval_due = step == max_iters or (eval_interval > 0 and step % eval_interval == 0)
        is_row_due = is_eval_due or step % log_interval == 0
        # Several processes must stop at the same step: they agree on it when a row is due.
        is_stopping = stop.is_agreed(torch_device, is_row_due)
        if not is_row_due and not is_stopping:
            continue
        row = training_row(step, losses, norms, time.perf_counter() - clock, world_size,
                           scaler.is_enabled())
        if is_eval_due:
            row |= validation_row(step)
            save_best(row['val_loss'])
        log.add(row, to_file=is_row_due)        # a stop leaves no trace in log.csv
        if is_eval_due:
            for line in sample_text(model, tokenizer).splitlines():
                log.say(line, indent=' ' * 8)
        if is_eval_due or is_stopping:
            save_to_resume()
        if is_stopping:
            break
        losses, norms, clock = [], [], time.perf_counter()

    # ---- the end
    if stop.is_out_of_time and not is_eval_due:     # the last weights may be the best
        row = {'step': step, **validation_row(step)}
        save_best(row['val_loss'])
        save_to_resume()
        log.add(row, to_file=False)
    if is_writer and extra('plots'):
        extra('plots').plot_losses([out], out / 'loss.png', validation.floor())
    bits = validation.bits_per_byte(progress['best_val_loss'])
    log.close(config, progress, bits, step - start, time.perf_counter() - began)
    finish(0 if step == max_iters else stop.status)         # a signal's status, if one ended it
