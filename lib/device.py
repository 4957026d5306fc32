"""Device, precision, processes, memory, and stopping a run."""
import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import NamedTuple

import torch
from torch import distributed, nn

from lib.errors import Error, require
from lib.terminal import warn

TOKENS_ON_CPU = 8192            # per micro-batch, except on CUDA; more only costs memory
# Peak dense 16-bit TFLOP/s, keyed by a word in the GPU's name
PEAK_TFLOPS = {'H200': 989, 'H100': 989, 'A100': 312, 'L4': 121, 'T4': 65, '4090': 165, '3090': 71}


# ---- device and precision
def pick_device(device: str = 'auto') -> torch.device:
    """The torch.device of that name; auto = the first available of cuda, mps and cpu. Raises Error
    if it is not available."""
    if device == 'auto':
        device = 'cpu'
        if torch.backends.mps.is_available():
            device = 'mps'
        if torch.cuda.is_available():
            device = 'cuda'
    try:
        found = torch.empty(0, device=device).device
        torch.autocast(found.type)                          # raises for an unsupported device
    except Exception as e:
        raise Error(f'device={device} is not available here; try --device=cpu') from e
    return found


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch.dtype of matmuls; auto = the fastest that the hardware supports natively.

    torch.cuda.is_bf16_supported() is also true where bf16 is emulated, which is slow."""
    if dtype == 'auto':
        dtype = 'float32'
        if device.type == 'cuda':
            is_ampere = torch.cuda.get_device_capability(device)[0] >= 8
            dtype = 'bfloat16' if is_ampere else 'float16'
        if device.type == 'cpu':
            has = getattr(torch.cpu, 'get_capabilities', dict)()
            if has.get('avx512_bf16') or has.get('amx_bf16'):
                dtype = 'bfloat16'
    allowed = ['float32', 'bfloat16']
    if device.type == 'cuda':
        allowed.append('float16')
    require(dtype in allowed,
            f'dtype={dtype} does not work on {device.type}: use one of auto, {", ".join(allowed)}')
    return getattr(torch, dtype)


class Hardware(NamedTuple):
    """The device, dtype and rank of this process."""
    device: torch.device
    dtype: torch.dtype          # dtype of matmuls
    autocast: torch.autocast    # context manager that applies it
    rank: int                   # index of this process
    world_size: int             # number of processes


def start_hardware(device: str, dtype: str) -> Hardware:
    """Pick device and dtype for training. Under torchrun, also join the process group; each process
    gets a GPU of its own. Raises Error if they are not available."""
    rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    if world_size > 1 and device in ('auto', 'cuda') and torch.cuda.is_available():
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
    found = pick_device(device)
    if found.type == 'cuda':
        torch.cuda.set_device(found)
        torch.set_float32_matmul_precision('high')          # TF32 for what stays in fp32
    else:
        keep_memory()
    if world_size > 1 and found.type == 'cuda':
        distributed.init_process_group('cpu:gloo,cuda:nccl', device_id=found)
    elif world_size > 1:
        distributed.init_process_group('gloo')
    kind = pick_dtype(dtype, found)
    autocast = torch.autocast(found.type, kind, enabled=kind != torch.float32)
    return Hardware(found, kind, autocast, rank, world_size)


def keep_memory():
    """Make glibc keep freed memory for the next step. By default it returns large blocks to the
    OS, and every step pays for the page faults."""
    if sys.platform != 'linux':
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        trim_threshold, mmap_threshold = -1, -3             # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(mmap_threshold, 1 << 25)
        libc.mallopt(trim_threshold, 1 << 30)


def can_compile(compile: str, device: torch.device) -> bool:
    """Whether to compile; auto = only on CUDA. torch.compile needs a C++ compiler, plus Triton on
    a GPU. Warns if either is missing."""
    if compile == 'False' or (compile == 'auto' and device.type != 'cuda'):
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1, device=device))
        return True
    except Exception as e:                                  # compilers fail in many ways
        warn('torch.compile failed, running eagerly: ' + str(e).strip().partition('\n')[0])
        return False


# ---- processes
def compile_and_parallelize(model: nn.Module, compile: str) -> nn.Module:
    """Compile the model in place, if requested and possible. With multiple processes, wrap it in
    DDP, which averages their gradients."""
    if can_compile(compile, next(model.parameters()).device):
        model.compile(dynamic=False)
    if distributed.is_initialized():
        return nn.parallel.DistributedDataParallel(model)
    return model


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


def is_first_process() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


# ---- memory
def require_memory(num_params: int, device: torch.device):
    """Raise Error if a model is too large to train: its weights, gradients and the optimizer's two
    moments do not fit in memory."""
    size = 16 * num_params                                  # bytes: four fp32 numbers per parameter
    if device.type == 'cuda':
        memory = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, 'sysconf'):
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        with contextlib.suppress(OSError, ValueError), open('/sys/fs/cgroup/memory.max') as limit:
            memory = min(memory, int(limit.read()))         # in a container; 'max' = no limit
    else:                                                   # Windows
        return
    require(size < memory, f'training {num_params:,} parameters needs about {size / 1e9:.0f} GB '
                           f'of memory; {device} has {memory / 1e9:.0f} GB: use a smaller model')


def fit_micro_batch(model: nn.Module, autocast, share: int, compile: str) -> int:
    """Sequences per micro-batch: the largest divisor of `share` (the number of sequences that each
    process handles per step) that fits on every process.

    On a GPU it is extrapolated from the peak memory of one and two sequences, based on the
    card's total memory rather than what is free now: the same card always gives the same number."""
    device = model.wte.weight.device
    most = TOKENS_ON_CPU // model.config.block_size
    if device.type == 'cuda':
        peaks = measure_peaks(model, autocast, device)
        most = len(peaks)
        if most == 2:
            optimizer_state = 8 * model.num_params()        # bytes: two fp32 numbers per parameter
            memory = 0.85 * torch.cuda.get_device_properties(device).total_memory
            per_sequence = max(1, peaks[1] - peaks[0])
            if compile != 'False':              # compiling disables chunking in the loss:
                config = model.config           # add bf16 logits, an fp32 copy and its gradient
                per_sequence += 10 * config.block_size * config.vocab_size
            most = int((memory - optimizer_state - peaks[0]) / per_sequence)
    if distributed.is_initialized():                        # all processes take the smallest
        smallest = torch.tensor(most, device=device)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
        most = smallest.item()
    most = max(1, min(most, share))
    return max(n for n in range(1, most + 1) if share % n == 0)


def measure_peaks(model: nn.Module, autocast, device: torch.device) -> list[int]:
    """Peak bytes on a GPU with one and with two sequences; a shorter list if memory runs out."""
    peaks = []
    with contextlib.suppress(torch.OutOfMemoryError):
        for n in (1, 2):
            model.zero_grad()
            idx = torch.zeros(n, model.config.block_size, dtype=torch.long, device=device)
            torch.cuda.reset_peak_memory_stats(device)
            with autocast:
                model(idx, idx).backward()
            peaks.append(torch.cuda.max_memory_allocated(device))
    model.zero_grad()
    return peaks


def max_speed(model: nn.Module, device: torch.device) -> float | None:
    """Tokens per second at the GPUs' peak FLOP/s; None if the peak is unknown. The fraction of it
    that a run reaches is its MFU (Chowdhery et al. 2022, appendix B)."""
    if device.type != 'cuda':
        return None
    words = torch.cuda.get_device_name(device).replace('-', ' ').split()
    peak = next((tera * 1e12 for name, tera in PEAK_TFLOPS.items() if name in words), None)
    if 'H100' in words and 'PCIe' in words:                 # lower clocks
        peak = 756e12
    if peak is None:
        return None
    config = model.config
    parameters = 6 * model.num_params()                     # 2 FLOPs forward, 4 backward
    attention = 12 * config.n_layer * config.n_head * config.head_dim * config.block_size
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    return processes * peak / (parameters + attention)


# ---- stopping
class StopSignals:
    """Stops a run after the current micro-batch or evaluation: at a time limit, or on SIGINT
    (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1. A second signal ends the process at once, unless it comes
    within 2 s of the first: launchers send duplicates."""

    def __init__(self, max_minutes: float):
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else float('inf')
        self.status = 0                         # exit status: 128 + the signal's number
        self.first_signal = 0.0
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'):
            number = getattr(signal, name, None)            # Windows lacks the last two
            is_ignored = number and signal.getsignal(number) is signal.SIG_IGN     # e.g. by nohup
            if number and not is_ignored:
                signal.signal(number, self.handle)

    def handle(self, number, frame):
        if not self.status:
            self.status = 128 + number
            self.first_signal = time.monotonic()
            if is_first_process():
                with contextlib.suppress(OSError):          # stderr may be closed
                    os.write(2, b'\nstopping; interrupt again to stop at once\n')
        elif time.monotonic() - self.first_signal > 2:
            os._exit(128 + number)

    def requested(self) -> bool:
        """Whether to stop now. The answer is the same on all processes of a run."""
        is_late = time.monotonic() > self.deadline
        if distributed.is_initialized():
            flags = torch.tensor([self.status, is_late])    # on the CPU: no GPU sync
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
            status, is_late = flags.tolist()
            self.status = self.status or status             # a signal may have arrived since
            return bool(status or is_late)
        return bool(self.status or is_late)

    def end_process(self, is_finished: bool):
        """Exit, with the signal's status if one stopped the run."""
        status = 0 if is_finished else self.status
        if distributed.is_initialized():
            distributed.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)                    # a normal exit can crash in gloo's threads
        if status:
            sys.exit(status)
