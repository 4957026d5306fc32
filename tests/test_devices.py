"""Devices, precision and memory: what can be tried without a GPU, and all of it with one."""
import contextlib
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command, read_log
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from lib import checkpoint as checkpoints
from lib import device as device_file
from lib.dataset import Validation
from lib.device import Hardware, pick_device, pick_dtype, start_hardware
from lib.errors import Error
from lib.muon import Muon
from model import GPT, GPTConfig, sample_from
from sample import load

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
SHAPE = {'vocab_size': 50, 'block_size': 16, 'n_layer': 2, 'n_head': 2, 'n_embd': 32}


# ---- device and precision
@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=..., ...): torch's probes answer as on such a machine."""
    def answer(cuda=False, mps=False, capability=8, avx512_bf16=False, amx=False):
        values = {
            'cuda.is_available': lambda: cuda,
            'cuda.get_device_capability': lambda device=None: (capability, 0),
            'cuda.is_bf16_supported': lambda *a, **k: True,         # also if only emulated
            'cuda.set_device': lambda device: None,
            'backends.mps.is_available': lambda: mps,
            'cpu.get_capabilities': lambda: {'avx512_bf16': avx512_bf16, 'amx_bf16': amx},
            'empty': lambda size, device: SimpleNamespace(device=torch.device(device))}
        for name, value in values.items():
            monkeypatch.setattr(f'torch.{name}', value)
        monkeypatch.setattr(device_file, 'keep_memory', lambda: None)
    precision = torch.get_float32_matmul_precision()
    yield answer
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize('has, device, dtype', [
    ({'cuda': True, 'mps': True}, 'cuda', torch.bfloat16),
    ({'cuda': True, 'capability': 9}, 'cuda', torch.bfloat16),
    ({'cuda': True, 'capability': 7}, 'cuda', torch.float16),
    ({'cuda': True, 'capability': 6, 'amx': True}, 'cuda', torch.float16),
    ({'mps': True, 'amx': True}, 'mps', torch.float32),
    ({}, 'cpu', torch.float32),
    ({'avx512_bf16': True}, 'cpu', torch.bfloat16),
    ({'amx': True}, 'cpu', torch.bfloat16)])
def test_auto_picks_the_best_device_and_its_native_precision(machine, has, device, dtype):
    machine(**has)
    torch.set_float32_matmul_precision('highest')
    hardware = start_hardware('auto', 'auto')
    assert (hardware.device.type, hardware.dtype) == (device, dtype)
    assert (hardware.rank, hardware.world_size) == (0, 1)
    is_fp32 = dtype == torch.float32
    assert hardware.autocast._enabled == (not is_fp32)
    expected = 'high' if device == 'cuda' else 'highest'
    assert torch.get_float32_matmul_precision() == expected


def test_what_is_asked_for_wins_over_auto_or_is_an_error(machine):
    machine(cuda=True, amx=True)
    cpu, cuda = torch.device('cpu'), torch.device('cuda:1')
    assert pick_device('cpu') == cpu and pick_device('cuda:1') == cuda
    assert pick_dtype('auto', cpu) == torch.bfloat16
    assert pick_dtype('float32', cuda) == torch.float32
    assert pick_dtype('float16', cuda) == torch.float16
    for device, dtype in ((cpu, 'float16'), (cpu, 'float64'), (cuda, 'int8'), (cpu, '')):
        with pytest.raises(Error, match=f'dtype={dtype} does not work on {device.type}'):
            pick_dtype(dtype, device)
    for device in ('', 'gpu', 'meta', 'cpu:x', 'True'):
        with pytest.raises(Error, match='try --device=cpu'):
            pick_device(device)


def test_auto_compiles_on_cuda_only():
    for compile in ('auto', 'False'):
        assert not device_file.can_compile(compile, torch.device('cpu'))
    assert not device_file.can_compile('False', torch.device('cuda'))


# ---- what a GPU is asked to compute
class Precisions(TorchDispatchMode):
    """Notes the dtypes of all tensors on a device without values, as a GPU's are far away."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen += [t.dtype for t in tree_leaves(out)
                      if isinstance(t, torch.Tensor) and t.is_meta]
        return out


@pytest.mark.parametrize('arch', ['gpt2', 'qwen3'])
def test_training_and_generation_read_no_value_of_a_gpu_and_use_no_float64(arch):
    with torch.device('meta'), Precisions() as precisions:
        model = GPT(GPTConfig(arch=arch, dropout=0.1, **SHAPE))
        idx = torch.zeros(3, 16, dtype=torch.long)
        model(idx, idx).backward()
        with torch.inference_mode():
            cache = model.eval().new_cache(3)
            logits = model.next_logits(idx[:, :5], cache)
            new = sample_from(logits, torch.rand(3), 0.8, 5, 1.0)
    assert new.shape == (3,) and len(precisions.seen) > 100
    assert torch.float64 not in precisions.seen


def test_muon_reads_no_value_of_a_gpu_and_uses_no_float64():
    with torch.device('meta'), Precisions() as precisions:
        matrices = [torch.nn.Parameter(torch.empty(4, 8)) for _ in range(3)]
        muon = Muon([{'params': matrices, 'use_muon': True, 'weight_decay': 0.1}], 0.1, (0.9, 0.9))
        for p in matrices:
            p.grad = torch.empty(4, 8)
            muon.state[p] = {'step': torch.tensor(0.0, device='cpu'),
                             'momentum': torch.empty(4, 8)}
        muon.step()
    assert len(precisions.seen) > 20 and torch.float64 not in precisions.seen


def test_evaluation_uses_no_float64_on_a_gpu():
    with torch.device('meta'):
        model = GPT(GPTConfig(**SHAPE))
    meta = {'eot': 49, 'val': {'bytes': 100, 'nats': None}}
    hardware = Hardware(torch.device('meta'), torch.float32, contextlib.nullcontext(), 0, 1)
    validation = Validation(meta, np.zeros(7 * 16, np.uint16), None, 0, 16)
    with Precisions() as precisions, pytest.raises(NotImplementedError):    # its end has no value
        train.evaluate(model, validation, 2, hardware)
    assert precisions.seen.count(torch.float32) > 4 * 20, 'four batches were computed'
    assert torch.float64 not in precisions.seen


# ---- memory
@pytest.mark.parametrize('peaks, share, sequences', [
    ([], 12, 1), ([900], 12, 1), ([100, 900], 12, 1),                  # one fits, or seems to
    ([100, 110], 136, 68), ([100, 110], 12, 12), ([100, 220], 12, 4), ([100, 220], 7, 1)])
def test_a_micro_batch_is_what_fits_and_divides_the_share(peaks, share, sequences, monkeypatch):
    """Of a card with 1,000 bytes, 85% may be used, and 8 a parameter are the optimizer's."""
    monkeypatch.setattr(device_file, 'measure_peaks', lambda *_: peaks)
    monkeypatch.setattr(torch.cuda, 'get_device_properties',
                        lambda device: SimpleNamespace(total_memory=1000))
    weight = SimpleNamespace(device=torch.device('cuda'))
    model = SimpleNamespace(wte=SimpleNamespace(weight=weight), num_params=lambda: 8,
                            config=SimpleNamespace(block_size=16, vocab_size=1))
    assert device_file.fit_micro_batch(model, None, share, 'False') == sequences
    if sequences == 68:                                     # compiled: 10 bytes more for a logit
        assert device_file.fit_micro_batch(model, None, share, 'auto') == 4


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_built(dataset, run):
    with pytest.raises(Error, match='training 19,.* parameters needs about 3.. GB'):
        run('train.py', f'--dataset={dataset}', '--n_layer=96', '--n_embd=4096', '--n_head=32')
    assert not os.path.exists('out')


def test_max_speed_counts_six_flops_a_parameter_and_those_of_attention(monkeypatch):
    model, cuda = GPT(GPTConfig(**SHAPE)), torch.device('cuda')
    flops = 6 * model.num_params() + 12 * 2 * 32 * 16           # of one token
    for name, peak in (('NVIDIA H100 PCIe', 756e12), ('Tesla T4', 65e12), ('unknown', None)):
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device, name=name: name)
        assert device_file.max_speed(model, cuda) == (peak and pytest.approx(peak / flops))


# ---- with a GPU
@on_gpu
def test_training_waits_for_the_gpu_only_for_a_row(dataset, tmp_path):
    """Steps without a row add no synchronizing operation: 40 have as many as 20."""
    script, counts = tmp_path / 'script.py', []
    script.write_text('import runpy, sys, torch\ntorch.cuda.set_sync_debug_mode("warn")\n'
                      f'runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")\n')
    for steps in (20, 40):
        ran = command(str(script), *TINY, f'--dataset={dataset}', '--device=cuda',
                      f'--max_iters={steps}', '--log_interval=1000', '--eval_interval=0',
                      '--compile=False', f'--out_dir=out{steps}', '--dropout=0.1',
                      env={'PYTHONWARNINGS': 'always'})
        assert ran.returncode == 0, ran.stderr
        counts.append(len(re.findall('synchronizing CUDA', ran.stderr)))
    assert counts[0] == counts[1] > 0


@on_gpu
@pytest.mark.parametrize('arch', ['gpt2', 'qwen3'])
def test_a_captured_step_gives_what_the_model_gives(arch, tmp_path):
    model = GPT(GPTConfig(arch=arch, **{**SHAPE, 'vocab_size': 64}))
    for p in model.parameters():
        p.data.mul_(2)
    alphabet = ''.join(map(chr, range(0x100, 0x100 + 63)))
    checkpoints.save(tmp_path / 'm.pt', model, tokenizer={'kind': 'char', 'alphabet': alphabet},
                     settings={}, step=0)
    plain, compiled = (load(tmp_path / 'm.pt', 'cuda', 'float32', compile=compile)
                       for compile in (False, True))
    for sampling in ({'temperature': 0.0}, {'temperature': 1.0, 'top_p': 0.9},
                     {'repetition_penalty': 1.5}):
        expected = plain.rows('', 3, max_new_tokens=60, **sampling)     # longer than the window
        assert compiled.rows('', 3, max_new_tokens=60, **sampling) == expected
    both = [[compiled.sample_ids('', 1, max_new_tokens=20, seed=seed) for seed in (1, 2)],
            [plain.sample_ids('', 1, max_new_tokens=20, seed=seed) for seed in (1, 2)]]
    mixed, alone = ([(a.item(), b.item()) for a, b in zip(*steps)] for steps in both)
    assert mixed == alone


@on_gpu
def test_a_step_too_large_for_the_gpu_is_one_line(dataset):
    ran = command('train.py', *TINY, f'--dataset={dataset}', '--device=cuda', '--compile=False',
                  '--n_embd=512', '--n_layer=8', '--batch_size=131072',
                  '--micro_batch_size=65536')
    assert ran.returncode == 2 and 'out of memory' in ran.stderr
    assert ran.stderr.count('error: ') == 1 and 'Traceback' not in ran.stderr


@on_gpu
def test_a_run_resumes_on_a_gpu_and_on_a_cpu(run, dataset):
    args = (f'--dataset={dataset}', *TINY[:-2], '--device=cuda', '--compile=False')
    run('train.py', *args)
    run('train.py', *args, '--out_dir=stopped', '--max_minutes=0.0001')
    run('train.py', '--out_dir=stopped', '--init_from=resume')
    whole, resumed = ([float(row['train_loss'] or 'nan') for row in read_log(f'{out}/log.csv')]
                      for out in ('out', 'stopped'))
    assert len(whole) == 16 and resumed == pytest.approx(whole, rel=1e-3, nan_ok=True)
    assert checkpoints.read('out/ckpt.pt')['model_config']['vocab_size'] % 64 == 0
    run('train.py', '--out_dir=out', '--init_from=resume', '--device=cpu', '--max_iters=14')
    assert checkpoints.read('out/ckpt.pt')['step'] == 14
