"""Helpers of train.py: its device and processes, what fits into memory, stops without loss."""
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import torch

from config import extra, require
from config._device import pick_device
from config._terminal import warn

TOKENS_ON_CPU = 8192            # that a CPU holds at once: more takes memory and is no faster
# Peak of dense matrix products in 16 bits, in TFLOP/s, by a word in the name of a GPU
PEAK_TFLOPS = {'H200': 989, 'H100': 989, 'A100': 312, 'L4': 121, 'T4': 65, '4090': 165, '3090': 71}


def max_speed(model: torch.nn.Module, device: torch.device) -> float | None:
    """Tokens per second at which training would use all FLOP/s of the GPUs, None if unknown.

    What a run reaches of it is its MFU (Chowdhery et al. 2022, appendix B)."""
    peak = peak_flops(device)
    if peak is None:
        return None
    shape = model.config
    attention = 12 * shape.n_layer * shape.n_head * shape.head_dim * shape.block_size
    flops_per_token = 6 * model.num_params() + attention
    return processes_of_run() * peak / flops_per_token


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that a device reaches at most, or None if it is not known."""
    if device.type != 'cuda':
        return None
    words = torch.cuda.get_device_name(device).replace('-', ' ').split()
    if 'H100' in words and ('PCIe' in words or 'NVL' in words):         # their clocks are lower
        return 756e12 if 'PCIe' in words else 835e12
    return next((tera * 1e12 for name, tera in PEAK_TFLOPS.items() if name in words), None)


def processes_of_run() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def start_device(device: str, world_size: int) -> torch.device:
    """Pick the device and, if torchrun started several processes, make them a group.

    Each process of a machine takes one of its GPUs. Raises Error if the device is not there."""
    if world_size > 1 and device in ('auto', 'cuda') and torch.cuda.is_available():
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
    device = pick_device(device)
    if device.type == 'cuda':
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision('high')          # TF32 for what stays in fp32
    if world_size > 1 and device.type == 'cuda':
        torch.distributed.init_process_group('cpu:gloo,cuda:nccl', device_id=device)
    elif world_size > 1:
        torch.distributed.init_process_group('gloo')
    return device


def pick_micro_batch(model: torch.nn.Module, autocast, share: int, wanted: int) -> int:
    """The number of sequences that the device computes at once: those wanted or, with 0, the most
    that it can hold and that divide a share of a step's. Warns if those wanted may be too many."""
    if wanted == 1:
        return 1
    most = min(share, most_sequences(model, autocast))
    fitting = max(n for n in range(1, most + 1) if share % n == 0)
    is_first = os.environ.get('RANK', '0') == '0'
    if wanted > fitting and is_first and model.wte.weight.device.type == 'cuda':
        warn(f'micro_batch_size={wanted} may need more memory than the GPU has; '
             f'{fitting} would fit')
    return wanted or fitting


def most_sequences(model: torch.nn.Module, autocast) -> int:
    """The most sequences that the device of every process can hold at once, and at least 1.

    On a GPU the memory of one and of two sequences is measured, so the model's kernels are run. It
    is compared with all memory of the card, not with what is free just now: the same card gives
    the same number each time."""
    device, block_size = model.wte.weight.device, model.config.block_size
    most = TOKENS_ON_CPU // block_size
    if device.type == 'cuda':
        peaks = []
        with contextlib.suppress(torch.OutOfMemoryError):
            for n in (1, 2):
                model.zero_grad()
                idx = torch.zeros(n, block_size, dtype=torch.long, device=device)
                torch.cuda.reset_peak_memory_stats(device)
                with autocast:
                    model(idx, idx).backward()
                peaks.append(torch.cuda.max_memory_allocated(device))
        model.zero_grad()                                   # after an OutOfMemoryError, too
        most = len(peaks)                                   # what did fit
        if most == 2:
            optimizer_states = 8 * model.num_params()       # bytes: AdamW's two numbers in fp32
            memory = 0.85 * torch.cuda.get_device_properties(device).total_memory
            most = int((memory - optimizer_states - peaks[0]) / (peaks[1] - peaks[0]))
    if torch.distributed.is_initialized():                  # the processes agree on the smallest
        smallest = torch.tensor(most, device=device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        most = smallest.item()
    return max(1, most)


def parallelize(model: torch.nn.Module, start: int, out: Path) -> torch.nn.Module:
    """The model, or with several processes one that averages their gradients.

    Raises Error if the processes start at different steps."""
    if not torch.distributed.is_initialized():
        return model
    starts = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(starts, start)
    require(len(set(starts)) == 1,
            f'the processes begin at steps {starts}: all need the same {out}')
    return torch.nn.parallel.DistributedDataParallel(model)


def use_faster_routines(model: torch.nn.Module, optimizers: list, dtype: torch.dtype):
    """Let a model use the loss of extras/loss.py and, on a CPU, the attention of extras/cpu.py,
    where these files are there and compute what the model computes; let Muon compute in dtype."""
    if extra('loss'):
        extra('loss').save_memory(model)
    if model.wte.weight.device.type == 'cpu' and extra('cpu'):
        extra('cpu').speed_up_training(model)
    for optimizer in optimizers:
        if type(optimizer) is torch.optim.Muon and extra('muon'):
            extra('muon').speed_up(optimizer, dtype)


def can_compile(compile: str | bool, device: torch.device) -> bool:
    """Whether to compile, by the knob, and as far as it works: torch.compile needs a C++ compiler,
    and for GPUs Triton. Warns if they are missing."""
    if compile is False or (compile == 'auto' and device.type != 'cuda'):
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1, device=device))
        return True
    except Exception as e:                  # compilers fail in many ways
        reason = str(e).strip().partition('\n')[0]
        print(f'warning: not compiled: {reason}', file=sys.stderr)
        return False


class PoliteStop:
    """Lets Ctrl-C, SIGTERM and a limit of minutes end a run after a step, when all processes know.

    A second signal ends the process at once, except within 2 s: launchers send duplicates."""

    def __init__(self, max_minutes: float):
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else float('inf')
        self.status = 0                         # the exit status that a signal asks for
        self.is_out_of_time = False
        self.first_signal = 0.0                 # when it came
        signal.signal(signal.SIGINT, self.ask)
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, number, frame):
        if not self.status:
            self.status = 128 + number
            self.first_signal = time.monotonic()
            if os.environ.get('RANK', '0') == '0':          # print() may be busy just now
                with contextlib.suppress(OSError):          # stderr may be closed
                    os.write(2, b'\nstopping after this step; interrupt again to stop at once\n')
        elif time.monotonic() - self.first_signal > 2:
            os._exit(128 + number)

    def is_agreed(self, device: torch.device, is_row_due: bool) -> bool:
        """Whether to stop now. Several processes ask each other, for which they wait, if a row
        is due."""
        self.is_out_of_time = time.monotonic() > self.deadline
        if torch.distributed.is_initialized():
            if not is_row_due:
                return False
            flags = torch.tensor([self.status, self.is_out_of_time], device=device)
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            status, self.is_out_of_time = flags.tolist()
            self.status = status or self.status             # one that came meanwhile waits its turn
            return bool(status or self.is_out_of_time)
        return bool(self.status or self.is_out_of_time)


def finish(status: int):
    """End the process with a status; several processes leave their group first."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)                        # a normal exit can crash in gloo's threads
    if status:
        sys.exit(status)
