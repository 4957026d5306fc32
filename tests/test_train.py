import csv
import io
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, read_log, same_weights

import sample
from config import Error, _run
from config._files import acquire_lock
from data.tokenizer import Tokenizer
from model import GPT, load_checkpoint
from prepare import get_batch

COMBINATIONS = [('adamw', 'gpt2'), ('adamw', 'qwen3'), ('muon', 'gpt2'), ('muon', 'qwen3')]


def weights(path='out/ckpt.pt'):
    return load_checkpoint(path)['model']


def interrupt_forward(monkeypatch, calls, action):
    """Call action() in the middle of the step that does the calls-th forward pass in training mode."""
    forward, left = GPT.forward, [calls]

    def wrapped(self, *args, **kwargs):
        left[0] -= self.training
        if left[0] == 0:
            action()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(GPT, 'forward', wrapped)


def crash():
    raise RuntimeError('as if the power went')


def test_a_run_has_exactly_max_iters_updates_and_measures_and_saves_its_last_weights(run, dataset, capsys):
    done = run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=10')
    rows = read_log()
    assert [int(row['step']) for row in rows] == list(range(11))
    assert [row['step'] for row in rows if row['val_loss']] == ['0', '4', '8', '10']
    assert all(bool(row['train_loss']) == (row['step'] != '0') for row in rows)
    assert int(rows[-1]['tokens']) == 10 * 8 * 16
    last, best = load_checkpoint('out/ckpt.pt'), load_checkpoint('out/best.pt')
    assert last['step'] == 10 and last['val_loss'] == float(rows[-1]['val_loss'])
    assert same_weights(last['model'], done['model'].state_dict())
    assert best['val_loss'] == min(float(row['val_loss']) for row in rows if row['val_loss'])
    assert 'optimizer' in last and 'optimizer' not in best
    assert last['optimizer'][0]['state'][0]['step'] == 10
    assert Path('out/loss.png').read_bytes()[:4] == b'\x89PNG' and 'best' in capsys.readouterr().out
    assert not _run.can_compile('auto', torch.device('cpu'))    # compile=auto is for GPUs


def test_it_learns(run, dataset):
    run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=150', '--eval_interval=150',
        '--learning_rate=0.02')
    first, last = (float(row['val_loss']) for row in read_log() if row['val_loss'])
    assert first > 3 and last < 0.6 * first


def test_the_loss_that_is_logged_is_that_of_the_steps_batch(run, dataset):
    done = run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=1', '--learning_rate=0.0',
               '--weight_decay=0.0')
    x, y = map(torch.from_numpy, get_batch(done['train_data'], 16, 1337, range(8)))
    assert float(read_log()[-1]['train_loss']) == pytest.approx(done['model'](x, y).item(), rel=1e-6)
    meta, val = done['meta'], torch.from_numpy(done['val_data'].astype(np.int64))
    nats = math.log(2) * float(read_log()[-1]['bits_per_byte']) * meta['val']['bytes']
    assert nats == pytest.approx(float(read_log()[-1]['val_loss']) * len(val), rel=1e-9)


@pytest.mark.parametrize('optimizer, arch', COMBINATIONS)
def test_a_crashed_and_a_stopped_run_resume_to_the_same_log_and_weights(
    run, dataset, optimizer, arch, monkeypatch
):
    args = (
        'train.py',
        f'--dataset={dataset}',
        *TINY,
        f'--optimizer={optimizer}',
        f'--arch={arch}',
        '--dropout=0.2',
        '--micro_batch_size=4',
        '--log_interval=5',  # it stops between two rows of the log
    )
    run(*args, '--out_dir=whole')
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='power'):
        interrupt_forward(patch, 14, crash)  # there are two forward passes in a step
        run(*args, '--out_dir=crashed')
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        interrupt_forward(patch, 11, lambda: signal.raise_signal(signal.SIGTERM))
        run(*args, '--out_dir=stopped')
    assert stopped.value.code == 143
    assert load_checkpoint('crashed/ckpt.pt')['step'] == 4 and load_checkpoint('stopped/ckpt.pt')['step'] == 6
    for out in ('crashed', 'stopped'):
        run('train.py', f'--out_dir={out}', '--init_from=resume')  # all other knobs come from the checkpoint
        assert read_log(f'{out}/log.csv') == read_log('whole/log.csv')
        assert same_weights(weights(f'{out}/ckpt.pt'), weights('whole/ckpt.pt'))
        assert same_weights(weights(f'{out}/best.pt'), weights('whole/best.pt'))


def test_a_torn_log_line_does_not_survive_a_resume(run, dataset, monkeypatch):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args, '--out_dir=whole')
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        interrupt_forward(patch, 7, crash)
        run(*args)
    with open('out/log.csv', 'a') as f:
        f.write('5,64')
    run(*args, '--init_from=auto')
    assert read_log() == read_log('whole/log.csv')


CALM = ('--n_embd=32', '--max_iters=50', '--learning_rate=1e-3', '--warmup_iters=10', '--head_gain=1')


def losses(path='out/log.csv'):
    return [float(row['train_loss']) for row in read_log(path) if row['train_loss']]


@pytest.mark.parametrize(
    'optimizer, dtype, tolerance',
    [('adamw', 'float32', 1e-6), ('muon', 'float32', 1e-5), ('adamw', 'bfloat16', 5e-4)],
)
def test_micro_batches_change_nothing(run, dataset, optimizer, dtype, tolerance):
    seen = []
    for micro in (0, 2, 1):
        run('train.py', f'--dataset={dataset}', *TINY, *CALM, '--eval_interval=0',
            f'--optimizer={optimizer}', f'--dtype={dtype}', f'--micro_batch_size={micro}',
            f'--out_dir=m{micro}')
        seen.append(losses(f'm{micro}/log.csv'))
    assert len(seen[0]) == 50 and seen[0][-1] < seen[0][0]
    for other in seen[1:]:
        assert other == pytest.approx(seen[0], rel=tolerance)


def torchrun(n, *args):
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        f'--nproc_per_node={n}',
        ROOT / 'train.py',
    ]
    return subprocess.run(
        [*command, *args], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )


def test_dropout_masks_are_a_function_of_the_seed_and_the_first_sequence_of_a_micro_batch(run, dataset):
    first_losses = []
    for micro in (8, 4):
        done = run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=1', '--learning_rate=0.0',
                   '--dropout=0.2', f'--micro_batch_size={micro}', f'--out_dir=m{micro}')
        model, parts = done['model'], []
        for first in range(8, 16, micro):  # those of step 2
            x, y = map(torch.from_numpy, get_batch(done['train_data'], 16, 1337, range(first, first + micro)))
            torch.manual_seed(hash((1337, first)))
            parts.append(model(x, y).item())
        torch.manual_seed(0)  # whatever was drawn before
        batches = done['micro_batches'](2, done['train_data'], 0, 8, micro, torch.device('cpu'))
        assert [model(*batch).item() for batch in batches] == parts
        first_losses += losses(f'm{micro}/log.csv')
    assert first_losses[0] != pytest.approx(first_losses[1], rel=1e-4)  # other masks


@pytest.mark.parametrize(
    'optimizer, knobs, tolerance',
    [('adamw', (), 1e-6), ('muon', ('--dropout=0.2', '--micro_batch_size=4'), 1e-5)],
)
def test_two_processes_train_as_one(run, dataset, optimizer, knobs, tolerance):
    args = (f'--dataset={dataset}', *TINY, *CALM, '--eval_interval=25', f'--optimizer={optimizer}', *knobs)
    run('train.py', *args)
    shown = torchrun(2, *args, '--out_dir=two')
    assert shown.returncode == 0, shown.stderr
    assert losses('two/log.csv') == pytest.approx(losses(), rel=tolerance)
    for a, b in zip(read_log(), read_log('two/log.csv')):
        assert a['step'] == b['step'] and bool(a['val_loss']) == bool(b['val_loss'])
        if a['val_loss']:
            assert float(a['val_loss']) == pytest.approx(float(b['val_loss']), rel=tolerance)


def test_evaluating_more_often_changes_no_weight(run, dataset):
    for interval in (1, 5, 0):
        run('train.py', f'--dataset={dataset}', *TINY, '--dropout=0.1', f'--eval_interval={interval}',
            f'--out_dir=e{interval}')
    assert same_weights(weights('e1/ckpt.pt'), weights('e5/ckpt.pt')) and same_weights(
        weights('e1/ckpt.pt'), weights('e0/ckpt.pt')
    )


def test_eval_tokens_change_no_weight_and_no_training_loss(run):
    run('prepare.py', '--num_stories=100', '--vocab_size=300')
    measured = []
    for tokens in (0, 99, 10**9):
        done = run('train.py', *TINY, f'--eval_tokens={tokens}', f'--out_dir=e{tokens}')
        rows = read_log(f'e{tokens}/log.csv')
        assert losses(f'e{tokens}/log.csv') == losses('e0/log.csv') and len(losses('e0/log.csv')) == 12
        assert same_weights(weights(f'e{tokens}/ckpt.pt'), weights('e0/ckpt.pt'))
        assert (done['validation'].floor() is None) == (tokens == 99)  # it is known of the whole text only
        ids = done['val_data'][: tokens or None]
        size = len(Tokenizer(done['meta']['tokenizer']).decode(ids).encode())
        nats = math.log(2) * float(rows[-1]['bits_per_byte']) * size
        assert nats == pytest.approx(float(rows[-1]['val_loss']) * len(ids), rel=1e-9)
        measured.append([row['val_loss'] for row in rows if row['val_loss']])
    assert measured[0] == measured[2] and not set(measured[0]) & set(measured[1])


def test_head_gain_changes_the_training_but_not_the_start(run, dataset):
    ends = []
    for gain, knob in ((1, ['--head_gain=1']), (20, [])):  # 20 is the default, on any dataset
        args = (f'--dataset={dataset}', *TINY, '--tie_weights=False', *knob, f'--out_dir=g{gain}')
        done = run('train.py', *args)
        assert done['model'].norm_f.weight.mean().item() == pytest.approx(gain, rel=0.1)
        rows = [float(row['val_loss']) for row in read_log(f'g{gain}/log.csv') if row['val_loss']]
        ends.append((rows[0], rows[-1]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)
    assert ends[0][1] != pytest.approx(ends[1][1], rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_last_checkpoint(
    run, dataset, monkeypatch
):
    forward = GPT.forward
    calls = [0]

    def poisoned(self, *args, **kwargs):
        calls[0] += self.training
        return forward(self, *args, **kwargs) * (math.nan if self.training and calls[0] == 7 else 1)

    monkeypatch.setattr(GPT, 'forward', poisoned)
    for interval in (1, 10):  # also when steps are read together
        calls[0] = 0
        with pytest.raises(Error, match='step 7'):
            run('train.py', f'--dataset={dataset}', *TINY, f'--log_interval={interval}',
                f'--out_dir=l{interval}')
        checkpoint = load_checkpoint(f'l{interval}/ckpt.pt')
        assert checkpoint['step'] == 4 and all(t.isfinite().all() for t in checkpoint['model'].values())


def test_batches_deal_out_every_window_once_an_epoch_whatever_the_slices():
    data = np.arange(1000)
    n = (1000 - 16) // 16
    rows = get_batch(data, 16, 5, range(16 * n))[0]
    for epoch in rows.reshape(16, n, 16):
        assert len(np.unique(epoch)) == n * 16  # no token twice
        assert len(set(epoch[:, 0] % 16)) == 1  # one phase
    assert len({epoch[0, 0] % 16 for epoch in rows.reshape(16, n, 16)}) > 5
    assert not np.array_equal(np.sort(rows[:n], axis=0), rows[:n])
    short = get_batch(data, 400, 5, range(3200))[1]  # hardly longer than a window: yet all is trained on
    assert set(np.unique(short)) == set(range(1, 1000))
    x, y = get_batch(data, 16, 5, range(88, 96))
    assert np.array_equal(y, x + 1) and np.array_equal(x, rows[88:96])
    parts = [get_batch(data, 16, 5, range(i, i + 2))[0] for i in range(88, 96, 2)]
    assert np.array_equal(np.concatenate(parts), x)
    assert not np.array_equal(get_batch(data, 16, 6, range(88, 96))[0], x)
    few = get_batch(np.arange(17), 16, 5, range(24, 32))  # the least data there can be
    assert few[0].shape == (8, 16) and few[1].max() == 16


@pytest.mark.parametrize('schedule', ['cosine', 'wsd'])
def test_schedules_warm_up_peak_and_end_where_they_should(run, dataset, schedule):
    done = run('train.py', f'--dataset={dataset}', *TINY, '--max_iters=100', '--eval_interval=0',
               '--warmup_iters=10', f'--schedule={schedule}', '--decay_fraction=0.5', '--decay_power=1',
               '--learning_rate=1.0', '--min_lr=0.1')
    rates = [done['learning_rate_at'](step) for step in range(1, 101)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates) and rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.1 <= rates[-1] < 0.12
    if schedule == 'wsd':
        assert rates[50] == pytest.approx(1.0) and rates[75] == pytest.approx(0.55, abs=0.01)
        knobs = done['learning_rate_at'].__globals__
        knobs['decay_power'] = 3.0  # half of the decay leaves an eighth of the rate
        assert done['learning_rate_at'](76) == pytest.approx(0.1 + 0.9 / 8) and done['learning_rate_at'](50) == 1.0
        knobs['decay_fraction'] = 1.0  # it never begins within the warm-up
        assert 0.97 < done['learning_rate_at'](11) <= 1.0


def test_gradients_are_shortened_to_grad_clip_and_0_leaves_them_as_they_are(run, dataset):
    """AdamW hardly moves when gradients are much smaller than its eps."""
    def moved(grad_clip):
        args = ('train.py', f'--dataset={dataset}', *TINY, '--optimizer=adamw', '--weight_decay=0.0')
        first = run(*args, '--seed=7', '--max_iters=1', '--learning_rate=0.0', '--out_dir=first', '--overwrite=True')
        done = run(*args, '--seed=7', '--max_iters=5', f'--grad_clip={grad_clip}', '--overwrite=True')
        old, new = first['model'].state_dict(), done['model'].state_dict()
        return max((new[name] - old[name]).abs().max().item() for name in old)

    assert moved(1e-12) < 1e-5 < 1e-4 < moved(0.0)


def test_weights_of_another_run_start_a_new_one_of_their_shape(run, dataset):
    shape = ('--arch=gpt2', '--bias=True', '--n_inner=40', '--tie_weights=False', '--head_gain=3')
    run('train.py', f'--dataset={dataset}', *TINY, *shape)
    old = load_checkpoint('out/best.pt')
    args = ('train.py', f'--dataset={dataset}', '--init_from=out', '--device=cpu', '--dtype=float32')
    still = ('--learning_rate=0.0', '--weight_decay=0.0', '--max_iters=1')
    done = run(*args, *still, '--out_dir=tuned', '--n_head=2', '--dropout=0.1')
    new = load_checkpoint('tuned/ckpt.pt')
    assert same_weights(new['model'], old['model']) and done['step'] == 1
    assert new['model_config'] == old['model_config'] | {'dropout': 0.1}
    run('train.py', '--out_dir=tuned', '--init_from=resume', '--max_iters=2')
    run(*args, *still, '--out_dir=short', '--block_size=8')
    new = load_checkpoint('short/ckpt.pt')
    assert new['model_config'] == old['model_config'] | {'block_size': 8}
    assert torch.equal(new['model']['wpe.weight'], old['model']['wpe.weight'][:8])
    for knob in ('n_layer=9', 'arch=qwen3', 'bias=False', 'tie_weights=True', 'n_inner=64', 'block_size=32'):
        with pytest.raises(Error, match=knob):
            run(*args, '--out_dir=wrong', f'--{knob}')
    assert not Path('wrong').exists()


def test_a_finished_run_can_go_on_for_longer(run, dataset, capsys):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args)
    run(*args, '--init_from=resume', '--max_iters=16')
    assert 'max_iters: 12 -> 16' in capsys.readouterr().out and load_checkpoint('out/ckpt.pt')['step'] == 16
    assert [int(row['step']) for row in read_log()] == list(range(17))


def test_evaluation_alone_trains_and_writes_nothing(run, dataset, capsys):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args)
    before = {p.name: p.read_bytes() for p in Path('out').iterdir()}
    capsys.readouterr()
    run(*args, '--init_from=resume', '--eval_only=True')
    assert {p.name: p.read_bytes() for p in Path('out').iterdir()} == before
    shown = float(re.search(r'val (\d+\.\d+)', capsys.readouterr().out)[1])
    assert shown == pytest.approx(float(read_log()[-1]['val_loss']), abs=1e-4)


def test_time_limit_ends_a_run_politely(run, dataset):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args, '--max_minutes=1e-6', '--max_iters=100000')
    step = load_checkpoint('out/ckpt.pt')['step']
    assert step < 50
    run(*args, '--init_from=resume', f'--max_iters={step + 3}')
    assert load_checkpoint('out/ckpt.pt')['step'] == step + 3


def test_a_run_out_of_time_is_measured_and_saved_as_at_its_last_step(run, dataset, monkeypatch):
    now = time.monotonic
    with monkeypatch.context() as patch:
        interrupt_forward(patch, 3, lambda: patch.setattr(time, 'monotonic', lambda: now() + 1e6))
        run('train.py', f'--dataset={dataset}', *TINY, '--eval_interval=100', '--max_minutes=1000')
    best, last = load_checkpoint('out/best.pt'), load_checkpoint('out/ckpt.pt')
    assert best['step'] == last['step'] == 3 and best['val_loss'] == last['best_val_loss'] < 10
    run('train.py', '--init_from=resume')
    assert load_checkpoint('out/best.pt')['step'] == load_checkpoint('out/ckpt.pt')['step'] == 12
    run('train.py', f'--dataset={dataset}', *TINY, '--eval_interval=100', '--out_dir=whole')
    assert read_log() == read_log('whole/log.csv')
    assert same_weights(weights('out/ckpt.pt'), weights('whole/ckpt.pt'))


def test_a_run_stopped_before_its_first_step_leaves_no_row_of_its_own(run, dataset, monkeypatch):
    args = (f'--dataset={dataset}', *TINY, '--eval_interval=0', '--log_interval=5')
    run('train.py', *args, '--out_dir=whole')

    def stop(stop, *args):  # it is the last thing before the loop
        prepared(stop, *args)
        signal.raise_signal(signal.SIGTERM)

    prepared = _run.PoliteStop.__init__
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(_run.PoliteStop, '__init__', stop)
        run('train.py', *args)
    assert stopped.value.code == 143 and load_checkpoint('out/ckpt.pt')['step'] == 1 and not read_log()
    run('train.py', '--init_from=resume')
    assert read_log() == read_log('whole/log.csv')


def test_several_processes_agree_on_a_stop_where_a_row_is_due_and_lose_no_signal(monkeypatch):
    asked, cpu = [], torch.device('cpu')

    def all_reduce(flags, op):
        asked.append(flags.tolist())
        if len(asked) == 1:
            stop.ask(signal.SIGINT, None)
        if len(asked) == 3:
            flags.fill_(143)

    monkeypatch.setattr(signal, 'signal', lambda number, handler: None)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'all_reduce', all_reduce)
    stop = _run.PoliteStop(0.0)
    assert not stop.is_agreed(cpu, is_row_due=True)  # the others do not know of this signal yet
    assert not stop.is_agreed(cpu, is_row_due=False)
    assert stop.is_agreed(cpu, is_row_due=True) and asked == [[0, 0], [130, 0]]
    stop = _run.PoliteStop(0.0)
    assert stop.is_agreed(cpu, is_row_due=True) and stop.status == 143  # another process's


def test_processes_that_see_different_checkpoints_do_not_train(run, dataset):
    run('train.py', f'--dataset={dataset}', *TINY)
    acquire_lock(Path('out/.lock')).lock.release(force=True)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank, out in enumerate(('out', 'elsewhere')):
        variables = {'RANK': str(rank), 'LOCAL_RANK': '0', 'WORLD_SIZE': '2'}
        variables |= {'MASTER_ADDR': 'localhost', 'MASTER_PORT': port}
        command = [sys.executable, ROOT / 'train.py', f'--dataset={dataset}', *TINY, '--max_iters=14']
        ranks.append(
            subprocess.Popen(
                [*command, '--init_from=auto', f'--out_dir={out}'],
                env=os.environ | variables,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    shown = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert all('steps [12, 0]' in error for error in shown)  # each machine's first process says so
    assert load_checkpoint('out/ckpt.pt')['step'] == 12


def test_a_run_stopped_before_it_was_measured_is_sampled_from_its_last_weights(run, dataset, monkeypatch, capfd):
    args = ('train.py', f'--dataset={dataset}', *TINY, '--eval_interval=6')
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_forward(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        run(*args)
    assert 'stopping after this step' in capfd.readouterr().err
    assert [row['step'] for row in read_log() if row['val_loss']] == ['0']
    assert not Path('out/best.pt').exists()                     # the weights of step 0 are never the best
    stopped = load_checkpoint('out/ckpt.pt')
    assert stopped['step'] == 3
    for place in ('out', 'out/ckpt.pt'):
        assert same_weights(sample.load(place, dtype='float32').model.state_dict(), stopped['model'])
    run('sample.py', '--max_new_tokens=5')
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_forward(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        run(*args, '--init_from=resume')
    assert load_checkpoint('out/ckpt.pt')['step'] == 8 and load_checkpoint('out/best.pt')['step'] == 6
    assert same_weights(sample.load('out', dtype='float32').model.state_dict(), weights('out/best.pt'))


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_goes_on_and_is_stopped_without_loss(dataset):
    command = [sys.executable, ROOT / 'train.py', f'--dataset={dataset}', *TINY, '--max_iters=100000',
               '--log_interval=1', '--eval_interval=0']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.readline()
    process.stdout.close()                                      # as `| head -1` does
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (Path('out/log.csv').exists() and len(read_log()) > 50):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert load_checkpoint('out/ckpt.pt')['step'] == int(read_log()[-1]['step']) > 50
    full = subprocess.run([*command, '--max_iters=20', '--overwrite=True'], stdout=open('/dev/full', 'w'),
                          stderr=subprocess.PIPE, text=True)
    assert (full.returncode, full.stderr) == (0, '') and load_checkpoint('out/ckpt.pt')['step'] == 20


@pytest.mark.slow
def test_what_the_output_cannot_encode_ends_no_run(run, dataset):
    command = [sys.executable, ROOT / 'train.py', f'--dataset={dataset}', *TINY]
    shown = subprocess.run(command, env=os.environ | {'PYTHONIOENCODING': 'ascii:strict'}, capture_output=True)
    assert shown.returncode == 0 and not shown.stderr and shown.stdout.isascii()
    assert load_checkpoint('out/ckpt.pt')['step'] == 12


def test_the_speed_in_the_log_is_that_of_its_steps(run, dataset):
    began = time.perf_counter()
    run('train.py', f'--dataset={dataset}', *TINY, '--log_interval=1', '--max_iters=30')
    with open('out/log.csv', newline='') as f:
        rows = [row for row in csv.DictReader(f) if row['lr']]
    tokens = int(rows[0]['tokens'])                             # of each step
    seconds = sum(tokens / float(row['tokens_per_second']) for row in rows)
    assert len(rows) == 30 and 0 < seconds < time.perf_counter() - began


def test_a_terminal_shows_loss_bits_per_byte_speed_and_time_left(run, dataset, monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    run('train.py', f'--dataset={dataset}', *TINY)
    bar = r'12/12 steps, (\d\d:\d\d) left, loss (\S+), [\d,]+ tokens/s'
    left, loss = re.findall(bar, terminal.getvalue())[-1]
    last = read_log()[-1]
    assert left == '00:00' and float(loss) == pytest.approx(float(last['train_loss']), abs=1e-3)
    shown = re.findall(r'step +(\d+) .*val (\S+)  (\S+) bits/byte', capsys.readouterr().out)
    assert [step for step, *_ in shown] == ['0', '4', '8', '12']  # the other rows move the bar alone
    assert shown[-1][1:] == tuple(f'{float(last[name]):.4f}' for name in ('val_loss', 'bits_per_byte'))


def test_fp16_counts_and_shows_the_updates_it_skips(run, dataset, monkeypatch, capsys):
    """The scaler's logic without a GPU: a real GradScaler on the CPU, gradients made to overflow."""
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, 'GradScaler', lambda kind, enabled: real('cpu', init_scale=2.0**16, growth_interval=2)
    )
    interrupted = []
    interrupt_forward(monkeypatch, 3, lambda: interrupted.append(1))
    unscale = real.unscale_

    def overflow_once(self, optimizer):
        if interrupted:
            interrupted.pop()
            optimizer.param_groups[0]['params'][0].grad[0, 0] = math.inf
        return unscale(self, optimizer)

    monkeypatch.setattr(real, 'unscale_', overflow_once)
    run('train.py', f'--dataset={dataset}', *TINY)
    checkpoint = load_checkpoint('out/ckpt.pt')
    assert (
        checkpoint['step'] == 12 and checkpoint['optimizer'][0]['state'][0]['step'] == 11
    )  # all optimizers skip
    assert checkpoint['scaler']['scale'] != 2.0**16 and '1 skipped' in capsys.readouterr().out


@pytest.mark.parametrize(
    'args, names',
    [
        (['--dataset=nothing'], 'prepare.py'),
        (['--schedule=linear'], 'wsd'),
        (['--min_lr=1.0'], 'min_lr'),
        (['--micro_batch_size=3'], 'micro_batch_size=3'),
        (['--batch_size=0'], 'batch_size'),
        (['--max_iters=0'], 'max_iters'),
        (['--block_size=-1'], 'block_size'),
        (['--warmup_iters=-1'], 'warmup_iters'),
        (['--block_size=100000'], 'block_size'),
        (['--device=tpu'], 'tpu'),
        (['--dtype=int8'], 'int8'),
        (['--dtype=float16'], 'float16'),
        (['--arch=rnn'], 'gpt2'),
        (['--optimizer=sgd'], 'muon'),
        (['--init_from=resume'], 'checkpoint'),
        (['--init_from=nowhere'], 'nowhere'),
        (['--dataset=shakespeare'], '--tokenizer=char --val_fraction=0.1'),
        (['--init_from=resum'], 'did you mean resume?'),
        (['--init_from=resume', '--overwrite=True'], 'leave one out'),
        (['--eval_only=True'], '--init_from=resume'),
        (['--out_dir='], 'out_dir'),
        (['--arch=gpt2', '--rope_theta=5.0'], 'rope_theta'),
        ([f'--batch_size={2 ** 31}'], 'less than 2'),
        (['--beta1=1.0'], 'beta1'),
        (['--compile=maybe'], 'compile'),
        (['--eval_interval=-5'], 'eval_interval'),
        (['--decay_fraction=2'], 'decay_fraction'),
    ],
)
def test_bad_knobs_are_errors_and_nothing_is_written(run, dataset, args, names):
    with pytest.raises(Error, match=names):
        run('train.py', f'--dataset={dataset}', *TINY, *args)
    assert not Path('out').exists()


def test_a_run_is_not_replaced_by_accident(run, dataset):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args)
    before = Path('out/ckpt.pt').read_bytes()
    with pytest.raises(Error, match='overwrite=True'):
        run(*args)
    assert Path('out/ckpt.pt').read_bytes() == before
    run(*args, '--overwrite=True', '--max_iters=4')
    assert [int(row['step']) for row in read_log()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    'arg', ['--n_layer=3', '--arch=gpt2', '--seed=7', '--optimizer=adamw', '--block_size=8']
)
def test_what_cannot_change_on_resume_is_an_error(run, dataset, arg):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args)
    before = Path('out/ckpt.pt').read_bytes()
    with pytest.raises(Error, match='resume'):
        run(*args, '--init_from=resume', arg)
    assert Path('out/ckpt.pt').read_bytes() == before


def test_other_data_or_another_tokenizer_is_an_error(run, dataset):
    args = ('train.py', *TINY)
    run(*args, f'--dataset={dataset}')
    Path('more.txt').write_text('another text, with other letters: xyz. ' * 60)
    run('prepare.py', '--input=more.txt', '--name=more', '--tokenizer=char')
    with pytest.raises(Error, match='more'):
        run(*args, '--dataset=more', '--init_from=resume')
    with pytest.raises(Error, match='tokenizer'):
        run(*args, '--dataset=more', '--init_from=out', '--out_dir=tuned')


def test_damaged_checkpoints_stop_a_resume(run, dataset):
    args = ('train.py', f'--dataset={dataset}', *TINY)
    run(*args)
    whole = Path('out/ckpt.pt').read_bytes()
    for bad in (whole[: len(whole) // 2], whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:], b''):
        Path('out/ckpt.pt').write_bytes(bad)
        with pytest.raises(Error, match='ckpt.pt'):
            run(*args, '--init_from=resume')
        assert Path('out/ckpt.pt').read_bytes() == bad


@pytest.mark.slow
def test_without_a_compiler_the_model_runs_uncompiled(run, dataset):
    env = {**os.environ, 'CXX': '/nonexistent/g++', 'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1'}
    shown = subprocess.run(
        [sys.executable, ROOT / 'train.py', f'--dataset={dataset}', *TINY, '--max_iters=2', '--compile=True'],
        capture_output=True,
        text=True,
        env=env,
    )
    assert shown.returncode == 0, shown.stderr
    assert load_checkpoint('out/ckpt.pt')['step'] == 2


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_its_checkpoint_is_plain(run, dataset):
    args = ('train.py', f'--dataset={dataset}', *TINY, '--eval_interval=0')
    run(*args)
    run(*args, '--compile=True', '--out_dir=compiled')
    assert losses('compiled/log.csv') == pytest.approx(losses(), rel=1e-5)
    assert weights('compiled/ckpt.pt').keys() == weights().keys()


def test_the_log_is_a_csv_that_others_can_read(run, dataset):
    run('train.py', f'--dataset={dataset}', *TINY)
    with open('out/log.csv', newline='') as f:
        header = next(csv.reader(f))
    assert header == [
        'step',
        'tokens',
        'train_loss',
        'val_loss',
        'bits_per_byte',
        'lr',
        'grad_norm',
        'tokens_per_second',
    ]


def train_with_wandb(dataset, *args, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith('WANDB')}
    command = [sys.executable, ROOT / 'train.py', f'--dataset={dataset}', *TINY, '--wandb_project=letters']
    return subprocess.run([*command, *args], capture_output=True, text=True, env=environment | variables)


def test_weights_and_biases_gets_the_log_and_a_resumed_run_keeps_its_id(run, dataset):
    Path('out').mkdir()
    Path('out/wandb_id.txt').write_text('before')  # of a run that was there before this one
    ids, seen = ['before'], set()
    for init_from, steps in (('scratch', range(5)), ('resume', range(5, 9))):
        args = (f'--init_from={init_from}', f'--max_iters={steps[-1]}')
        done = train_with_wandb(dataset, *args, WANDB_MODE='offline')  # without account or network
        assert done.returncode == 0, done.stderr
        (file,) = set(Path('out').glob('wandb/offline-run-*/run-*.wandb')) - seen
        for step in steps:
            assert all(value.encode() in file.read_bytes() for value in read_log()[step].values())
        seen.add(file)
        ids.append(file.stem.removeprefix('run-'))
        assert Path('out/wandb_id.txt').read_text() == ids[-1]
    assert ids[0] != ids[1] == ids[2]


def test_weights_and_biases_without_a_key_leaves_the_run_before_as_it_was(run, dataset, tmp_path):
    before = run('train.py', f'--dataset={dataset}', *TINY)
    acquire_lock(Path('out/.lock')).lock.release(force=True)
    place = {'HOME': str(tmp_path), 'NETRC': str(tmp_path / 'none')}
    failed = train_with_wandb(dataset, '--overwrite=True', **place)
    assert failed.returncode == 2 and 'WANDB_MODE=offline' in failed.stderr.splitlines()[-1]
    assert same_weights(load_checkpoint('out/best.pt')['model'], before['model'].state_dict())


def test_weights_and_biases_is_asked_for_before_anything_is_written(run, dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    run('train.py', f'--dataset={dataset}', *TINY)  # which is not needed otherwise
    Path('out').rename('before')
    with pytest.raises(Error, match='pip install wandb'):
        run('train.py', f'--dataset={dataset}', *TINY, '--wandb_project=letters')
    assert not Path('out').exists()


def test_an_interrupt_that_a_library_would_swallow_as_it_is_loaded(tmp_path):
    (tmp_path / 'numpy.py').write_text('import signal, sys\ntry:\n    signal.raise_signal(signal.SIGINT)\n'
                                       'except KeyboardInterrupt:\n    sys.exit("it went on")\n')
    p = subprocess.run([sys.executable, str(ROOT / 'train.py')], cwd=tmp_path, capture_output=True, text=True,
                       env=os.environ | {'PYTHONPATH': str(tmp_path)})
    assert (p.returncode, p.stderr) == (-signal.SIGINT, '')
