"""What runs on GPUs: as far as it can be tried without one, and all of it where there is one."""
import contextlib
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, read_log
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config._run import pick_micro_batch
from model import GPT, GPTConfig, choose, evaluate, load_checkpoint, save_checkpoint
from sample import load

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
SHAPE = dict(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32)


class Precisions(TorchDispatchMode):
    """Keeps the precisions of all tensors on a device that has no values, as a GPU's are far away."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen += [t.dtype for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_meta]
        return out


@pytest.mark.parametrize('arch', ['gpt2', 'qwen3'])
def test_training_and_generation_read_no_value_of_a_gpu_and_use_no_float64(arch):
    with torch.device('meta'), Precisions() as precisions:
        model = GPT(GPTConfig(arch=arch, dropout=0.1, **SHAPE))
        idx = torch.zeros(3, 16, dtype=torch.long)
        model(idx, idx).backward()
        with torch.inference_mode():
            logits = model.eval().next_logits(idx[:, :5])
            new = choose(logits, torch.rand(3, 1), 0.8, 5, 0.9)
    assert new.shape == (3,) and len(precisions.seen) > 100
    assert torch.float64 not in precisions.seen


def test_evaluation_uses_no_float64_on_a_gpu():
    with torch.device('meta'):
        model = GPT(GPTConfig(**SHAPE))
    x = torch.zeros(7, 16, dtype=torch.long)
    with Precisions() as precisions, pytest.raises(NotImplementedError):    # at the end it has no value
        evaluate(model, x, x, 2, contextlib.nullcontext())
    assert precisions.seen.count(torch.float32) > 4 * 20, 'four batches were computed'
    assert torch.float64 not in precisions.seen


@pytest.mark.parametrize(('wanted', 'held', 'picked', 'warning'), [
    (0, 100, 12, ''), (0, 5, 4, ''), (0, 1, 1, ''), (4, 5, 4, ''), (1, 1, 1, ''),
    (12, 5, 12, 'micro_batch_size=12 may need more memory than the GPU has; 4 would fit'),
    (2, 1, 2, 'micro_batch_size=2 may need more memory than the GPU has; 1 would fit')])
def test_as_many_sequences_as_fit_and_a_warning_with_their_number(wanted, held, picked, warning, monkeypatch,
                                                                  capsys):
    monkeypatch.setattr('config._run.most_sequences', lambda *_: held)
    gpu = SimpleNamespace(wte=SimpleNamespace(weight=SimpleNamespace(device=torch.device('cuda'))))
    assert pick_micro_batch(gpu, None, 12, wanted) == picked
    assert ' '.join(capsys.readouterr().err.split()) == (warning and f'warning: {warning}')


@pytest.mark.slow
def test_evaluation_adds_one_compiled_graph_and_changes_none(run, dataset, monkeypatch):
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr('extras.loss.MAX_LOGITS', 100)            # many pieces, if it were not compiled
    knobs = run('train.py', f'--dataset={dataset}', *TINY, '--compile=True', '--batch_size=6')
    assert len(knobs['val_x']) % 6, 'the last batch of an evaluation is smaller'
    assert counters['stats']['unique_graphs'] == 3          # of the trial, training and evaluation
    assert not counters['graph_break']


# ---- where there is a GPU
@on_gpu
def test_training_waits_for_the_gpu_only_for_a_row(dataset):
    """Steps without a row add no synchronizing operation: 40 have as many as 20."""
    code = ('import runpy, sys, torch; torch.cuda.set_sync_debug_mode("warn"); '
            'runpy.run_path(sys.argv[0], run_name="__main__")')
    counts = []
    for steps in (20, 40):
        args = [*TINY, f'--dataset={dataset}', '--device=cuda', f'--max_iters={steps}', '--log_interval=1000',
                '--eval_interval=0', '--compile=False', f'--out_dir=out{steps}', '--dropout=0.1']
        ran = subprocess.run([sys.executable, '-W', 'always', '-c', f'import sys; sys.argv = {[str(ROOT / "train.py"), *args]}; {code}'],
                             capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
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
    save_checkpoint(tmp_path / 'm.pt', model, {'kind': 'char', 'alphabet': alphabet}, config={})
    plain, fast = (load(tmp_path / 'm.pt', 'cuda', 'float32', fast=fast) for fast in (False, True))
    for knobs in ({'temperature': 0.0}, {'temperature': 1.0, 'top_p': 0.9}, {'repetition_penalty': 1.5}):
        expected = plain.rows('', 3, max_new_tokens=60, **knobs)        # longer than the window
        assert fast.rows('', 3, max_new_tokens=60, **knobs) == expected
    mixed = zip(fast.ids('', 1, max_new_tokens=20, seed=1), fast.ids('', 1, max_new_tokens=20, seed=2))
    assert [(a.item(), b.item()) for a, b in mixed] == list(zip(
        *([i.item() for i in plain.ids('', 1, max_new_tokens=20, seed=seed)] for seed in (1, 2))))


@on_gpu
def test_a_step_too_large_for_the_gpu_says_what_would_fit(dataset):
    args = [*TINY, f'--dataset={dataset}', '--device=cuda', '--compile=False', '--n_embd=512', '--n_layer=8',
            '--batch_size=131072', '--micro_batch_size=65536']
    ran = subprocess.run([sys.executable, str(ROOT / 'train.py'), *args], capture_output=True, text=True)
    assert ran.returncode == 2
    assert 'micro_batch_size=65536 may need more memory' in ' '.join(ran.stderr.split())
    assert ran.stderr.count('error: ') == 1 and 'Traceback' not in ran.stderr


@on_gpu
def test_a_run_resumes_on_a_gpu_and_on_a_cpu(run, dataset):
    args = (f'--dataset={dataset}', *TINY[:-2], '--device=cuda', '--compile=False')
    run('train.py', *args)
    run('train.py', *args, '--out_dir=stopped', '--max_minutes=0.0001')
    run('train.py', '--out_dir=stopped', '--init_from=resume')
    whole, resumed = ([float(row['train_loss'] or 'nan') for row in read_log(f'{out}/log.csv')]
                      for out in ('out', 'stopped'))
    assert len(whole) == 13 and resumed == pytest.approx(whole, rel=1e-3, nan_ok=True)
    assert load_checkpoint('out/ckpt.pt')['model_config']['vocab_size'] % 64 == 0
    run('train.py', '--out_dir=out', '--init_from=resume', '--device=cpu', '--max_iters=14')
    assert load_checkpoint('out/ckpt.pt')['step'] == 14
