"""Train a GPT on a dataset from prepare.py: python train.py [config/NAME.py] [--key=value ...]

Settings first, then helper functions, then the run from top to bottom. On several GPUs:
torchrun --standalone --nproc_per_node=8 train.py [config/NAME.py] [--key=value ...]"""
from lib.settings import configure

# run
out_dir = 'out'             # folder for checkpoints, log.csv and loss.png
dataset = 'stories'         # NAME in data/NAME, written by prepare.py
init_from = 'scratch'       # scratch, resume, auto (resume if there is a run), or a model to load
overwrite = False           # replace the run in out_dir
seed = 1337                 # random seed for weights, batches and dropout
max_minutes = 0.0           # stop and save after this many minutes; 0 = no limit
# evaluation and logs
eval_interval = 250         # steps between evaluations and checkpoints; 0 = only at the end
eval_tokens = 0             # number of validation tokens to evaluate on; 0 = all
log_interval = 10           # steps between rows of log.csv
keep_weights = 'best'       # best; evaluations = at each one; powers = also at steps 1, 2, 4, ...
wandb_project = ''          # also log to this Weights & Biases project; '' = off
# model: n_layer, n_head, n_embd, block_size, dropout and the other fields of GPTConfig in model.py
# optimization
optimizer = 'adamw'         # adamw, or muon (for matrices, with AdamW for the rest)
learning_rate = 1e-3        # peak learning rate, reached after the warmup
min_lr = 1e-4               # final learning rate
schedule = 'cosine'         # learning rate decay after the warmup: cosine or linear
warmup_iters = 100          # linear warmup steps
max_iters = 2000            # number of optimizer steps
batch_size = 16             # sequences per optimizer step, across all devices
micro_batch_size = 0        # sequences per forward pass on each device; 0 = as many as fit
weight_decay = 0.1          # applied to matrices and embeddings, not to norms and biases
beta1 = 0.9                 # AdamW: decay rate of the first moment
beta2 = 0.95                # AdamW: decay rate of the second moment
grad_clip = 1.0             # clip the gradient norm to this; 0 = off
embedding_lr_scale = 1.0    # learning rate multiplier for the embeddings
output_lr_scale = 1.0       # learning rate multiplier for the output matrix, if tie_weights=False
# system
device = 'auto'             # cuda, mps or cpu; auto = the first of these that is available
dtype = 'auto'              # bfloat16, float16 or float32; auto = the fastest on this hardware
compile = 'auto'            # use torch.compile; auto = only on CUDA
verify = False              # also verify the checksums of dataset files over 1 GB

# The fields of GPTConfig are settings, too, e.g. --n_layer=4; settings.model holds those given.
settings = configure(globals(), dataclass='model.py:GPTConfig', resume=True)

# Imported after the settings, so that --help and errors in settings appear immediately.
import math
from functools import lru_cache, partial

import numpy as np
import torch
from torch import nn

from lib import checkpoint as checkpoints
from lib import checks
from lib.dataset import Validation, open_dataset
from lib.device import StopSignals, compile_and_parallelize, fit_micro_batch, start_hardware
from lib.log import Log
from lib.muon import Muon
from lib.tokenizer import load_tokenizer
from model import GPT


def learning_rate_at(step: int) -> float:
    """Learning rate for steps 1 to max_iters: linear warmup, then decay to min_lr."""
    if step <= warmup_iters:
        return learning_rate * step / warmup_iters
    progress = (step - warmup_iters) / max(1, max_iters - warmup_iters)         # 0 to 1
    remaining = 1 - progress
    if schedule == 'cosine':
        remaining = 0.5 * (1 + math.cos(math.pi * progress))                    # 1 to 0
    return min_lr + (learning_rate - min_lr) * remaining


def make_model(checkpoint: dict | None, n_tokens: int, device: torch.device) -> GPT:
    """The model of a checkpoint, or a new one, on the device."""
    torch.manual_seed(seed)
    if checkpoint:
        changes = {name: settings.model[name] for name in checkpoints.MAY_DIFFER
                   if name in settings.model}
        return checkpoints.build_model(checkpoint, **changes).to(device)
    if device.type == 'cuda':
        n_tokens = math.ceil(n_tokens / 64) * 64        # faster matmuls on GPUs
    return checkpoints.new_model(device, vocab_size=n_tokens, **settings.model)


def make_optimizer(model: GPT, torch_dtype: torch.dtype) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices and AdamW for the rest. Norms and biases are not decayed.

    A group's learning rate is the scheduled one times lr_scale. Its weight decay is divided by
    lr_scale, so that all weights decay at the same rate."""
    params = {'matrices': [], 'vectors': [], 'embeddings': [], 'output': []}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                params['embeddings'].append(p)
            elif module is not model.lm_head:
                params['matrices' if p.ndim > 1 else 'vectors'].append(p)
            elif p is not model.wte.weight:                 # tied: already in embeddings
                params['output'].append(p)
    scales = {'embeddings': embedding_lr_scale, 'output': output_lr_scale}
    groups = []
    for kind in params:
        scale = scales.get(kind, 1.0)
        decay = 0.0 if kind == 'vectors' else weight_decay / scale
        groups.append({'params': params[kind], 'lr_scale': scale, 'weight_decay': decay,
                       'use_muon': kind == 'matrices'})
    if optimizer == 'muon':
        return Muon(groups, learning_rate, (beta1, beta2), torch_dtype)
    is_fused = next(model.parameters()).device.type in ('cpu', 'cuda')
    return torch.optim.AdamW(groups, learning_rate, (beta1, beta2), fused=is_fused)


def get_batch(data, block_size: int, seed: int, sequences: range, device='cpu') -> tuple:
    """Inputs x and targets y, (B, T) each, of the given sequences, as tensors on the device.

    Sequences are numbered from 0 across the whole run, so a batch depends only on the arguments:
    a resumed run continues with the right one, and several processes take slices of the same
    batch. Windows may begin and end within a document."""
    starts = [window_start(i, len(data), block_size, seed) for i in sequences]
    ids = np.stack([data[start:start + block_size + 1] for start in starts])
    ids = torch.from_numpy(ids.astype(np.int64))                        # (B, T + 1)
    if torch.device(device).type == 'cuda':                 # copy while the GPU computes
        ids = ids.pin_memory()
    ids = ids.to(device, non_blocking=True)
    return ids[:, :-1], ids[:, 1:]


def window_start(sequence: int, tokens: int, block_size: int, seed: int) -> int:
    """Where a sequence starts in the tokens. Each epoch shuffles all windows, which do not overlap,
    and shifts them by a new random offset.

    For example, 14 tokens and block_size 4 give 2 windows. With offset 3 their inputs are tokens
    3 to 6 and 7 to 10, their targets 4 to 7 and 8 to 11; the starts are 3 and 7, or 7 and 3."""
    windows = max(1, tokens // block_size - 1)              # per epoch, with room for an offset
    epoch, at = divmod(sequence, windows)
    offset, order = shuffle(windows, tokens - windows * block_size, seed, epoch)
    return offset + block_size * order[at]


@lru_cache(2)
def shuffle(windows: int, offsets: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """The offset of an epoch, below `offsets`, and the order of its windows."""
    rng = np.random.default_rng((seed, epoch))
    return rng.integers(offsets), rng.permutation(windows)


def accumulate_gradients(model: nn.Module, data, block_size: int, step: int, micro: int, hardware,
                         scaler, stop: StopSignals) -> torch.Tensor | None:
    """Compute the gradients of this process's share of a step, one micro-batch at a time, and
    return the mean loss. Returns None if the run has to stop before the last micro-batch.

    Each loss is divided by the number of micro-batches, so that the accumulated gradient is that of
    the mean loss."""
    share = batch_size // hardware.world_size
    grad_accum_steps = share // micro
    first = step * batch_size + hardware.rank * share       # this process's sequences
    total_loss = 0.0
    for i in range(first, first + share, micro):
        if i > first and stop.requested():
            return None
        x, y = get_batch(data, block_size, seed, range(i, i + micro), hardware.device)
        torch.manual_seed(seed + i)                         # the same dropout after a resume
        if hardware.world_size > 1:                         # all-reduce only on the last
            model.require_backward_grad_sync = i + micro == first + share
        with hardware.autocast:
            loss = model(x, y) / grad_accum_steps
        scaler.scale(loss).backward()                       # scaling is a no-op except in fp16
        total_loss += loss.detach()
    return total_loss


@torch.no_grad()
def evaluate(model: GPT, validation: Validation, micro: int, autocast, rank: int = 0,
             world_size: int = 1) -> float:
    """Mean cross-entropy, in nats per token, over all validation windows: each token counts once.

    micro: windows per forward pass. With several processes, each evaluates every world_size-th
    batch, and all return the same mean.
    The train/eval mode and the RNG state are left unchanged."""
    was_training = model.training
    model.eval()
    device = model.wte.weight.device
    nats = [torch.zeros((), device=device)]     # one sum per batch; they stay on the device
    for first in range(rank * micro, len(validation), world_size * micro):
        x, y = (torch.from_numpy(ids).to(device) for ids in validation.batch(first, micro))
        with autocast:
            mean = model(x, y)
        nats.append(mean * (y >= 0).sum())
    total = torch.stack(nats).cpu().double().sum()          # MPS has no float64
    if world_size > 1:
        torch.distributed.all_reduce(total)
    model.train(was_training)
    return total.item() / len(validation.ids)


def sample_text(model: GPT, tokenizer) -> str:
    """A sample from the current model."""
    prompt = torch.tensor([[tokenizer.eot]], device=model.wte.weight.device)
    model.eval()
    ids = model.generate(prompt, 150, temperature=0.8, eot=tokenizer.eot, seed=seed,
                         n_tokens=tokenizer.vocab_size)
    text = tokenizer.decode([int(i) for i in ids])
    model.train()
    return text


def is_due(step: int, interval: int) -> bool:
    """Whether this is the last step or a multiple of `interval`; 0 = only the last."""
    return step == max_iters or (interval > 0 and step % interval == 0)


def is_kept(step: int) -> bool:
    """Whether keep_weights asks for a file with the weights at this step."""
    is_power_of_two = step & (step - 1) == 0                # 0 counts, too
    return keep_weights != 'best' and (
        step == 0 or is_due(step, eval_interval) or keep_weights == 'powers' and is_power_of_two)


def is_trained(step: int) -> bool:
    """Whether the weights at this step are trained, not just initialized."""
    return step > 0 or init_from not in ('scratch', 'resume', 'auto')


# ---- the run
if __name__ == '__main__':
    hardware = start_hardware(device, dtype)
    checks.check_settings(settings, hardware.world_size)

    # data and model
    meta, train_data, val_data = open_dataset(dataset, verify)
    tokenizer = load_tokenizer(meta['tokenizer'])
    checkpoint = checkpoints.load_start(settings, meta, tokenizer)      # None for a new model
    model = make_model(checkpoint, tokenizer.vocab_size, hardware.device).train()
    block_size = model.config.block_size
    checks.check_fit(settings, model.config, len(train_data))
    validation = Validation(meta, val_data, tokenizer, eval_tokens, block_size)

    # optimizer; each process trains on its share of a step's sequences, in micro-batches
    opt = make_optimizer(model, hardware.dtype)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.dtype == torch.float16)
    share = batch_size // hardware.world_size
    micro = micro_batch_size or fit_micro_batch(model, hardware.autocast, share, compile)
    parallel_model = compile_and_parallelize(model, compile)
    step, best_val_loss = 0, math.inf
    if settings.is_resumed:
        checkpoints.load_optimizer(opt, scaler, checkpoint)
        step, best_val_loss = checkpoint['step'], checkpoint['best_val_loss']

    # the run's folder, created last so that a run that fails a check leaves none behind
    out = checkpoints.claim_run(settings)
    log = Log(settings, hardware, model, validation, step)
    if not settings.is_resumed:
        checkpoints.delete_run(out)             # the one that this run replaces, if any
    log.announce(meta, micro, checkpoint)
    checkpoint = None                           # free its memory
    save = partial(checkpoints.save, model=model, tokenizer=meta['tokenizer'],
                   settings=dict(settings), data=checkpoints.checksums(meta))
    stop = StopSignals(max_minutes)

    # ---- the training loop: evaluate and save when due, then stop or take one more step
    while True:
        is_stopped = step < max_iters and stop.requested()
        if is_due(step, eval_interval) and not is_stopped:
            val_loss = evaluate(model, validation, micro, hardware.autocast, hardware.rank,
                                hardware.world_size)
            log.evaluation(step, val_loss)
            if val_loss < best_val_loss:
                best_val_loss = val_loss
                if is_trained(step):
                    save(out / 'best.pt', step=step, best_val_loss=best_val_loss)
            log.sample(sample_text(model, tokenizer))
        if is_kept(step):
            save(out / f'weights/{step:07}.pt', step=step, best_val_loss=best_val_loss)
        if is_due(step, eval_interval) or is_stopped:
            log.check_losses(step)                          # never save after a NaN or inf loss
            save(out / 'ckpt.pt', step=step, best_val_loss=best_val_loss,
                 optimizer=opt.state_dict(), scaler=scaler.state_dict())
            log.restart_clock()
        if step == max_iters or is_stopped:
            break

        # one optimizer step
        loss = accumulate_gradients(parallel_model, train_data, block_size, step, micro, hardware,
                                    scaler, stop)
        if loss is None:                                    # drop this step, save and stop
            continue
        step += 1
        lr = learning_rate_at(step)
        for group in opt.param_groups:
            group['lr'] = lr * group['lr_scale']
        scaler.unscale_(opt)
        norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        scaler.step(opt)                                    # fp16: skipped if gradients overflow
        scaler.update()
        opt.zero_grad()
        log.step(step, loss, norm, lr, is_due(step, log_interval) or is_due(step, eval_interval))

    log.close(step, best_val_loss)
    stop.end_process(is_finished=step == max_iters)
