"""Train a GPT on a dataset from prepare.py: python train.py [config/NAME.py] [--key=value ...]

Settings first, then helper functions, then the run from top to bottom. On multiple GPUs:
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
keep_weights = False        # also save the weights at each evaluation and at steps 1, 2, 4, ...
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
from functools import partial

import numpy as np
import torch
from torch import nn

from lib import checkpoint as checkpoints
from lib import checks
from lib import device as devices
from lib.dataset import Validation, open_dataset, sequence_start
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
    """The model saved in a checkpoint, or a new one, on the device."""
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
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for p in model.parameters():                # a tied output matrix is among the embeddings
        if p in embeddings:
            params['embeddings'].append(p)
        elif p is model.lm_head.weight:
            params['output'].append(p)
        elif p.ndim < 2:
            params['vectors'].append(p)
        else:
            params['matrices'].append(p)
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
    a resumed run continues with the right one, and multiple processes take slices of the same
    batch. Each epoch visits the windows of the text in a new random order; they may begin and end
    within a document."""
    starts = [sequence_start(i, len(data), block_size, seed) for i in sequences]
    ids = np.stack([data[start:start + block_size + 1] for start in starts])
    ids = torch.from_numpy(ids.astype(np.int64))                        # (B, T + 1)
    if torch.device(device).type == 'cuda':                 # copy while the GPU computes
        ids = ids.pin_memory()
    ids = ids.to(device, non_blocking=True)
    return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def evaluate(model: GPT, validation: Validation, micro: int, hardware: devices.Hardware) -> float:
    """Mean cross-entropy, in nats per token, over all validation windows: each token counts once.

    micro: windows per forward pass. With multiple processes, each evaluates every world_size-th
    batch, and all return the same mean.
    The train/eval mode and the RNG state are left unchanged."""
    was_training = model.training
    model.eval()
    device = model.wte.weight.device
    nats = [torch.zeros((), device=device)]     # one sum per batch; they stay on the device
    for first in range(hardware.rank * micro, len(validation), hardware.world_size * micro):
        x, y = (torch.from_numpy(ids).to(device) for ids in validation.batch(first, micro))
        with hardware.autocast:
            mean = model(x, y)
        nats.append(mean * (y >= 0).sum())
    total = torch.stack(nats).cpu().double().sum()          # MPS has no float64
    if hardware.world_size > 1:
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


def is_power_of_two(n: int) -> bool:
    return n & (n - 1) == 0                     # 0 counts, too


# ---- the run
if __name__ == '__main__':
    hardware = devices.start_hardware(device, dtype)
    checks.check_settings(settings, hardware.world_size)

    # data and model
    meta, train_data, val_data = open_dataset(dataset, verify)
    tokenizer = load_tokenizer(meta['tokenizer'])
    checkpoint = checkpoints.load_start(settings, meta, tokenizer)      # None for a new model
    is_pretrained = checkpoint is not None and not settings.is_resumed
    model = make_model(checkpoint, tokenizer.vocab_size, hardware.device).train()
    block_size = model.config.block_size
    checks.check_fit(settings, model.config, len(train_data))
    validation = Validation(meta, val_data, tokenizer, eval_tokens, block_size)

    # optimizer
    opt = make_optimizer(model, hardware.dtype)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.dtype == torch.float16)

    # each process trains on its share of a step's sequences, in micro-batches
    share = batch_size // hardware.world_size
    micro = micro_batch_size or devices.fit_micro_batch(model, hardware.autocast, share, compile)
    grad_accum_steps = share // micro
    parallel_model = devices.compile_and_parallelize(model, compile)

    step, best_val_loss = 0, math.inf
    if settings.is_resumed:                     # only now: fit_micro_batch measures memory
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
    stop = devices.StopSignals(max_minutes)
    is_stopped = False

    # ---- the training loop: evaluate and save when due, then stop or take one more step
    while True:
        is_due = step == max_iters or (eval_interval > 0 and step % eval_interval == 0)
        if is_due and not is_stopped:
            log.write_losses(step)
            val_loss = evaluate(model, validation, micro, hardware)
            log.evaluation(step, val_loss)
            log.sample(sample_text(model, tokenizer))
            if val_loss < best_val_loss:
                best_val_loss = val_loss
                if step > 0 or is_pretrained:   # never save untrained weights as best.pt
                    save(out / 'best.pt', step=step, best_val_loss=best_val_loss)
        if is_due or is_stopped:
            log.check_losses(step)              # never save after a NaN or inf loss
            save(out / 'ckpt.pt', step=step, best_val_loss=best_val_loss,
                 optimizer=opt.state_dict(), scaler=scaler.state_dict())
        if keep_weights and (is_due or is_power_of_two(step)):
            save(out / f'weights/{step:07}.pt', step=step, best_val_loss=best_val_loss)
        if step == max_iters or is_stopped:
            break
        if is_due:
            log.restart_clock()

        # one step: accumulate the gradients of its micro-batches, then update the weights
        mean_loss = 0.0
        first = step * batch_size + hardware.rank * share       # this process's sequences
        for i in range(first, first + share, micro):
            is_stopped = stop.requested()
            if is_stopped:
                break
            torch.manual_seed(seed + i)                         # the same dropout after a resume
            x, y = get_batch(train_data, block_size, seed, range(i, i + micro), hardware.device)
            if hardware.world_size > 1:     # all-reduce only after the last micro-batch
                parallel_model.require_backward_grad_sync = i + micro == first + share
            with hardware.autocast:
                loss = parallel_model(x, y) / grad_accum_steps
            scaler.scale(loss).backward()                       # scaling: a no-op except in fp16
            mean_loss += loss.detach()
        if is_stopped:                                          # drop this step, save and stop
            continue

        step += 1
        lr = learning_rate_at(step)
        for group in opt.param_groups:
            group['lr'] = lr * group['lr_scale']
        scaler.unscale_(opt)
        norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        scaler.step(opt)                                        # fp16: skipped on overflow
        scaler.update()
        opt.zero_grad()
        log.step(step, mean_loss, norm, lr)

    log.close(step, best_val_loss)
    stop.end_process(is_finished=step == max_iters)
