"""Training: steps, batches, evaluation, stopping, resuming, fine-tuning, logs, mistakes."""
import csv
import io
import math
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command, read_log, rewrite_meta, same_weights

import sample
import train
from lib import checkpoint as checkpoints
from lib import device as device_file
from lib.dataset import Validation
from lib.errors import Error
from lib.files import acquire_lock
from lib.tokenizer import load_tokenizer
from model import GPT

COMBINATIONS = [('adamw', 'gpt2'), ('adamw', 'qwen3'), ('muon', 'gpt2'), ('muon', 'qwen3')]
FROZEN = ('--learning_rate=0', '--min_lr=0', '--weight_decay=0')


@pytest.fixture
def letters(run, dataset):
    """letters('--key=value', ...) trains a tiny model on `letters`."""
    return lambda *args: run('train.py', f'--dataset={dataset}', *TINY, *args)


def read(path='out/ckpt.pt'):
    return checkpoints.read(path)


def column(name, path='out/log.csv'):
    """The values of a column, where it has any."""
    return [float(row[name]) for row in read_log(path) if row[name]]


def in_training(monkeypatch, calls, action):
    """Call action() in the middle of the step with that forward pass in training mode."""
    forward, left = GPT.forward, [calls]

    def wrapped(self, *args, **kwargs):
        left[0] -= self.training
        if left[0] == 0:
            action()
        return forward(self, *args, **kwargs)
    monkeypatch.setattr(GPT, 'forward', wrapped)


def crash():
    raise RuntimeError('as if the power went')


@pytest.fixture
def stop_in(monkeypatch):
    """stop_in(n, train, ...): train, and send a signal in that forward pass of the training, or
    before the first step if n is 0. Returns the exit status."""
    start = device_file.StopSignals.__init__

    def stop_in(calls, train, *args, number=signal.SIGTERM):
        def start_and_stop(self, *arguments):
            start(self, *arguments)
            signal.raise_signal(number)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            if calls:
                in_training(patch, calls, lambda: signal.raise_signal(number))
            else:
                patch.setattr(device_file.StopSignals, '__init__', start_and_stop)
            train(*args)
        return stopped.value.code
    return stop_in


def assert_same_run(out, whole):
    assert read_log(f'{out}/log.csv') == read_log(f'{whole}/log.csv')
    for name in ('ckpt.pt', 'best.pt'):
        a, b = read(f'{out}/{name}'), read(f'{whole}/{name}')
        assert same_weights(a['model'], b['model'])
        assert (a['step'], a['best_val_loss']) == (b['step'], b['best_val_loss'])


# ---- a run
def test_a_run_takes_max_iters_steps_and_evaluates_and_saves_its_last_weights(letters, capsys):
    done = letters('--max_iters=10')
    rows = read_log()
    assert list(rows[0]) == ['step', 'tokens', 'train_loss', 'val_loss', 'bits_per_byte', 'lr',
                             'grad_norm']
    assert [int(row['step']) for row in rows if row['train_loss']] == list(range(1, 11))
    assert [int(row['step']) for row in rows if row['val_loss']] == [0, 4, 8, 10]
    assert [int(row['tokens']) for row in rows] == [int(row['step']) * 8 * 16 for row in rows]
    last, best = read(), read('out/best.pt')
    assert last['step'] == 10
    assert same_weights(last['model'], done['model'].state_dict())
    assert best['best_val_loss'] == last['best_val_loss'] == min(column('val_loss'))
    assert 'optimizer' in last and 'optimizer' not in best
    assert {int(state['step']) for state in last['optimizer']['state'].values()} == {10}
    shown = capsys.readouterr().out
    assert 'best    val loss' in shown and 'next    python sample.py\n' in shown


def test_the_defaults_are_adamw_and_train_any_dataset(run, dataset):
    done = run('train.py', f'--dataset={dataset}', '--max_iters=12', '--device=cpu')
    assert done['settings'].model == {} and done['settings']['batch_size'] == train.batch_size
    assert type(done['opt']) is torch.optim.AdamW and done['model'].config.tie_weights
    first, last = column('val_loss')
    assert last < first - 0.05 and len(column('train_loss')) == 2       # steps 10 and 12


def test_the_logged_losses_are_those_of_the_batch_and_of_the_validation_text(letters):
    done = letters('--max_iters=1', *FROZEN)
    x, y = train.get_batch(done['train_data'], 16, 1337, range(8))
    assert column('train_loss') == [pytest.approx(done['model'](x, y).item(), rel=1e-6)]
    nats = math.log(2) * column('bits_per_byte')[-1] * done['meta']['val']['bytes']
    assert nats == pytest.approx(column('val_loss')[-1] * len(done['val_data']), rel=1e-9)


def test_the_logged_speed_is_that_of_the_steps(letters, monkeypatch):
    forward = GPT.forward

    def slow(self, *args, **kwargs):
        time.sleep(0.05 if self.training else 0.8)
        return forward(self, *args, **kwargs)
    monkeypatch.setattr(GPT, 'forward', slow)
    letters('--max_iters=30', '--log_interval=5', '--eval_interval=15')
    with open('out/log.csv', newline='') as f:
        speeds = [float(row['tokens_per_second']) for row in csv.DictReader(f) if row['lr']]
    seconds = sum(5 * 8 * 16 / speed for speed in speeds)
    assert len(speeds) == 6 and 1.5 < seconds < 3.0, 'without the evaluation of step 15, 1.6 s'


@pytest.mark.parametrize('schedule, quarter', [('cosine', 0.1 + 0.9 * (2 + 2 ** 0.5) / 4),
                                               ('linear', 0.775)])
def test_schedules_warm_up_to_the_peak_and_decay_to_min_lr(monkeypatch, schedule, quarter):
    for name, value in {'max_iters': 110, 'warmup_iters': 10, 'schedule': schedule,
                        'learning_rate': 1.0, 'min_lr': 0.1}.items():
        monkeypatch.setattr(train, name, value)
    rates = [train.learning_rate_at(step) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert [rates[34], rates[59], rates[-1]] == pytest.approx([quarter, 0.55, 0.1])
    monkeypatch.setattr(train, 'warmup_iters', 0)
    assert 0.99 < train.learning_rate_at(1) <= 1


def test_the_groups_of_the_optimizer_have_their_scaled_learning_rates(letters):
    done = letters('--tie_weights=False', '--output_lr_scale=3', '--embedding_lr_scale=0.5')
    rate = column('lr')[-1]
    rates = {id(p): group['lr'] for group in done['opt'].param_groups for p in group['params']}
    model = done['model']
    assert rates[id(model.lm_head.weight)] == pytest.approx(3 * rate)
    assert rates[id(model.wte.weight)] == pytest.approx(0.5 * rate)
    assert rates[id(model.h[0].attn.q_proj.weight)] == pytest.approx(rate)
    assert rate == pytest.approx(train.min_lr)


def test_the_gradient_norm_is_clipped_unless_grad_clip_is_0(letters):
    """AdamW hardly moves when gradients are much smaller than its eps."""
    def moved(grad_clip):
        first = letters('--max_iters=1', *FROZEN, '--overwrite=True')
        done = letters('--max_iters=5', f'--grad_clip={grad_clip}', '--weight_decay=0',
                       '--overwrite=True')
        old, new = first['model'].state_dict(), done['model'].state_dict()
        return max((new[name] - old[name]).abs().max().item() for name in old)
    assert moved(1e-12) < 1e-5 < 1e-4 < moved(0)


# ---- batches
def test_batches_deal_out_every_window_once_an_epoch_however_they_are_sliced():
    def get_batch(*args):
        return [ids.numpy() for ids in train.get_batch(*args)]
    data = np.arange(1000)
    n = (1000 - 16) // 16
    rows = get_batch(data, 16, 5, range(16 * n))[0]
    for epoch in rows.reshape(16, n, 16):
        assert len(np.unique(epoch)) == n * 16                      # no token twice
        assert len(set(epoch[:, 0] % 16)) == 1                      # one offset
    assert len({epoch[0, 0] % 16 for epoch in rows.reshape(16, n, 16)}) > 5
    assert not np.array_equal(np.sort(rows[:n], axis=0), rows[:n])
    short = get_batch(data, 400, 5, range(3200))[1]                 # hardly longer than a window
    assert set(np.unique(short)) == set(range(1, 1000))
    x, y = get_batch(data, 16, 5, range(88, 96))
    assert np.array_equal(y, x + 1) and np.array_equal(x, rows[88:96])
    parts = [get_batch(data, 16, 5, range(i, i + 2))[0] for i in range(88, 96, 2)]
    assert np.array_equal(np.concatenate(parts), x)
    assert not np.array_equal(get_batch(data, 16, 6, range(88, 96))[0], x)
    least = get_batch(np.arange(17), 16, 5, range(24, 32))
    assert least[0].shape == (8, 16) and least[1].max() == 16


CALM = ('--n_embd=32', '--max_iters=50', '--learning_rate=1e-3', '--warmup_iters=10')


@pytest.mark.parametrize('optimizer, dtype, tolerance', [
    ('adamw', 'float32', 1e-6), ('muon', 'float32', 1e-5), ('adamw', 'bfloat16', 5e-4)])
def test_one_micro_batch_of_8_two_of_4_and_eight_of_1_train_the_same(letters, optimizer, dtype,
                                                                     tolerance):
    seen = []
    for micro in (8, 4, 1):
        letters(*CALM, '--eval_interval=0', f'--optimizer={optimizer}', f'--dtype={dtype}',
                f'--micro_batch_size={micro}', f'--out_dir=m{micro}')
        seen.append(column('train_loss', f'm{micro}/log.csv'))
    assert len(seen[0]) == 50 and seen[0][-1] < seen[0][0]
    for other in seen[1:]:
        assert other == pytest.approx(seen[0], rel=tolerance)


# ---- several processes
def torchrun(processes, *args, script=ROOT / 'train.py'):
    return command('torch.distributed.run', '--standalone', f'--nproc_per_node={processes}',
                   str(script), *args)


@pytest.mark.parametrize('optimizer, more, tolerance', [
    ('adamw', (), 1e-6), ('muon', ('--dropout=0.2', '--micro_batch_size=4'), 1e-5)])
def test_two_processes_train_as_one(letters, dataset, optimizer, more, tolerance):
    args = (*CALM, '--eval_interval=25', f'--optimizer={optimizer}', *more)
    letters(*args)
    shown = torchrun(2, f'--dataset={dataset}', *TINY, *args, '--out_dir=two')
    assert shown.returncode == 0, shown.stderr
    for name in ('step', 'train_loss', 'val_loss', 'bits_per_byte', 'grad_norm'):
        assert column(name, 'two/log.csv') == pytest.approx(column(name), rel=20 * tolerance)
    losses = column('train_loss')
    assert column('train_loss', 'two/log.csv') == pytest.approx(losses, rel=tolerance)


@pytest.mark.parametrize('rank', [0, 1])
def test_an_error_of_one_process_is_one_line_whichever_met_it(tmp_path, rank):
    script = tmp_path / 'script.py'
    script.write_text('import os, time\nfrom lib.settings import Error, configure\n'
                      f'configure(globals())\nif os.environ["RANK"] == "{rank}":\n'
                      '    raise Error("a mistake")\ntime.sleep(60)\n')
    shown = torchrun(2, script=script)
    assert shown.returncode
    lines = [line for line in shown.stderr.splitlines() if line.startswith('error: ')]
    assert lines == ['error: a mistake']


def test_an_error_that_all_processes_meet_is_one_line_and_writes_nothing(run, dataset):
    shown = torchrun(2, f'--dataset={dataset}', *TINY, '--batch_size=7')
    lines = [line for line in shown.stderr.splitlines() if line.startswith('error: ')]
    assert lines == ['error: batch_size=7 is not divisible by the number of processes (2)']
    assert shown.returncode and not Path('out').exists()


def test_processes_agree_on_a_stop_at_every_step_and_lose_no_signal(monkeypatch):
    asked = []

    def all_reduce(flags, op):
        asked.append(flags.tolist())
        if len(asked) == 1:
            stop.handle(signal.SIGINT, None)
        if len(asked) == 3:
            flags[0] = 143
    monkeypatch.setattr(signal, 'signal', lambda number, handler: None)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 1)
    monkeypatch.setattr(torch.distributed, 'all_reduce', all_reduce)
    stop = device_file.StopSignals(0.0)
    stop.requested()                                    # a signal arrives meanwhile
    assert stop.requested() and asked[1] == [130, 0]
    stop = device_file.StopSignals(0.0)
    assert stop.requested() and stop.status == 143      # another process's


# ---- evaluation
def test_evaluating_more_often_changes_no_weight(letters):
    for interval in (1, 5, 0):
        letters('--dropout=0.1', f'--eval_interval={interval}', f'--out_dir=e{interval}')
    weights = [read(f'e{interval}/ckpt.pt')['model'] for interval in (1, 5, 0)]
    assert same_weights(weights[0], weights[1]) and same_weights(weights[0], weights[2])
    assert [len(column('val_loss', f'e{n}/log.csv')) for n in (1, 5, 0)] == [13, 4, 1]


def test_eval_tokens_change_the_measure_but_not_the_training(run):
    run('prepare.py', '--num_stories=100', '--vocab_size=300')
    seen = []
    for tokens in (0, 99, 10**9):
        done = run('train.py', *TINY, f'--eval_tokens={tokens}', f'--out_dir=e{tokens}')
        log = f'e{tokens}/log.csv'
        assert column('train_loss', log) == column('train_loss', 'e0/log.csv')
        assert same_weights(read(f'e{tokens}/ckpt.pt')['model'], read('e0/ckpt.pt')['model'])
        assert (done['validation'].floor is None) == (tokens == 99)     # it is of the whole text
        ids = done['val_data'][:tokens or None]
        size = len(load_tokenizer(done['meta']['tokenizer']).decode(ids).encode())
        nats = math.log(2) * column('bits_per_byte', log)[-1] * size
        assert nats == pytest.approx(column('val_loss', log)[-1] * len(ids), rel=1e-9)
        seen.append(column('val_loss', log))
    assert seen[0] == seen[2] and not set(seen[0]) & set(seen[1])


def test_validation_stays_a_memory_map(letters, tmp_path):
    done = letters('--max_iters=1')
    large = np.memmap(tmp_path / 'large.bin', np.uint16, 'w+', shape=20_000_000)
    large[99::100] = done['meta']['eot']
    tracemalloc.start()
    validation = Validation(done['meta'], large, done['tokenizer'], 0, 256)
    validation.batch(len(validation.cuts) - 4, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6              # the tokens in int64 take 160 MB


# ---- stopping and resuming
@pytest.mark.parametrize('optimizer, arch', COMBINATIONS)
def test_a_crashed_and_a_stopped_run_resume_to_the_same_log_and_weights(
        letters, run, stop_in, optimizer, arch, monkeypatch):
    args = (f'--optimizer={optimizer}', f'--arch={arch}', '--dropout=0.2', '--micro_batch_size=4',
            '--log_interval=5')                         # it stops between two rows of the log
    letters(*args, '--out_dir=whole')
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='power'):
        in_training(patch, 14, crash)                   # there are two forward passes in a step
        letters(*args, '--out_dir=crashed')
    with open('crashed/log.csv', 'a') as f:
        f.write('5,64')                                 # of a torn line
    assert stop_in(13, letters, *args, '--out_dir=stopped') == 143      # so step 7 is dropped
    assert (read('crashed/ckpt.pt')['step'], read('stopped/ckpt.pt')['step']) == (4, 6)
    letters(*args, '--out_dir=crashed', '--init_from=auto')
    run('train.py', '--out_dir=stopped', '--init_from=resume')          # with the saved settings
    assert_same_run('crashed', 'whole')
    assert_same_run('stopped', 'whole')


def run_out_of_time(monkeypatch, letters, at):
    """Train until the time is over, in this step."""
    now = time.monotonic
    with monkeypatch.context() as patch:
        in_training(patch, at, lambda: patch.setattr(time, 'monotonic', lambda: now() + 1e6))
        letters('--max_minutes=1000')
    assert read()['step'] == at and len(column('val_loss')) == 1 + (at == 4)    # steps 0 and 4


@pytest.mark.parametrize('at', [3, 4])          # at 4 an evaluation is due
def test_a_run_out_of_time_saves_and_resumes_unchanged(letters, run, at, monkeypatch, capsys):
    run_out_of_time(monkeypatch, letters, at)
    assert 'next    python train.py --init_from=resume' in capsys.readouterr().out
    run('train.py', '--init_from=resume')
    letters('--out_dir=whole')
    assert_same_run('out', 'whole')


def test_a_run_that_stopped_between_evaluations_evaluates_if_it_is_to_end_there(letters, run,
                                                                              monkeypatch):
    run_out_of_time(monkeypatch, letters, 3)
    run('train.py', '--init_from=resume', '--max_iters=3')
    assert len(column('val_loss')) == 2 and read()['best_val_loss'] == min(column('val_loss'))
    run('train.py', '--init_from=resume')                               # nothing is left to do
    assert len(column('val_loss')) == 2


def test_a_run_stopped_before_its_first_step_resumes_unchanged(letters, run, stop_in):
    args = ('--eval_interval=0', '--log_interval=5')
    letters(*args, '--out_dir=whole')
    for out in ('out', 'again'):
        assert stop_in(0, letters, *args, f'--out_dir={out}') == 143
        assert read(f'{out}/ckpt.pt')['step'] == 0
    run('train.py', '--init_from=resume')
    assert_same_run('out', 'whole')
    stop_in(1, letters, '--out_dir=again', '--init_from=resume', '--eval_interval=4',
            '--micro_batch_size=4')
    assert read('again/ckpt.pt')['step'] == 0
    assert not Path('again/best.pt').exists()           # before a step there are no best weights


def test_a_new_run_stopped_before_its_first_evaluation_is_sampled_as_it_is(letters, stop_in, capfd):
    assert stop_in(3, letters, '--eval_interval=6', number=signal.SIGINT) == 130
    assert 'stopping; interrupt again' in capfd.readouterr().err
    assert not Path('out/best.pt').exists() and read()['step'] == 3
    for path in ('out', 'out/ckpt.pt'):
        model = sample.load(path, dtype='float32').model
        assert same_weights(model.state_dict(), read()['model'])
    stop_in(5, letters, '--eval_interval=6', '--init_from=resume', number=signal.SIGINT)
    assert (read()['step'], read('out/best.pt')['step']) == (8, 6)


def test_a_run_extended_keeps_its_evaluations_and_its_new_settings_if_stopped_at_once(letters, run,
                                                                                  stop_in):
    letters('--max_iters=12', '--eval_interval=5', '--micro_batch_size=4')
    stop_in(1, run, 'train.py', '--init_from=resume', '--max_iters=24')         # within step 13
    assert read()['step'] == 12 and read()['settings']['max_iters'] == 24
    run('train.py', '--init_from=resume')
    evaluated = [int(row['step']) for row in read_log() if row['val_loss']]
    assert evaluated == [0, 5, 10, 12, 15, 20, 24]


def test_a_resumed_run_measures_memory_before_it_loads_the_optimizer(letters, run, monkeypatch):
    letters('--max_iters=4')
    opts, make = [], torch.optim.AdamW.__init__
    monkeypatch.setattr(torch.optim.AdamW, '__init__',
                        lambda self, *args, **kwargs: make(self, *args, **kwargs) or opts.append(self))
    monkeypatch.setattr(device_file, 'fit_micro_batch',
                        lambda *_: 8 if not opts[-1].state else pytest.fail('it is loaded'))
    run('train.py', '--init_from=resume', '--max_iters=6')
    assert len(opts) == 1 and opts[0].state


def test_a_checkpoint_of_another_model_py_is_refused_in_one_line():
    with pytest.raises(Error, match='this model.py has no window: use the one'):
        checkpoints.make_config(vocab_size=50, window=8)


def test_a_finished_run_can_go_on_and_a_jump_of_the_schedule_is_warned_of(letters, capsys):
    letters('--min_lr=0')
    letters('--min_lr=0', '--init_from=resume')         # nothing to do
    capsys.readouterr()
    letters('--min_lr=0', '--init_from=resume', '--max_iters=24')
    shown = capsys.readouterr()
    assert 'resume  out/ckpt.pt at step 12, max_iters: 12 -> 24' in shown.out
    assert re.search('warning: the learning rate jumps from 0.0e.00 to 5.0e-04', shown.err)
    assert [int(row['step']) for row in read_log() if row['train_loss']] == list(range(1, 25))


@pytest.mark.parametrize('step', [1, 2, 6])
def test_a_resume_that_follows_its_schedule_gets_no_warning(letters, run, stop_in, capsys, step):
    stop_in(step, letters, '--warmup_iters=4')
    capsys.readouterr()
    run('train.py', '--init_from=resume')
    assert 'warning' not in capsys.readouterr().err and read()['step'] == 12


@pytest.mark.parametrize('argument', ['--n_layer=3', '--arch=gpt2', '--block_size=8', '--seed=7',
                                      '--optimizer=muon'])
def test_what_cannot_change_on_resume_is_an_error(letters, argument):
    letters('--max_iters=4')
    before = Path('out/ckpt.pt').read_bytes()
    with pytest.raises(Error, match=argument.strip('-').partition('=')[0]):
        letters('--init_from=resume', argument)
    assert Path('out/ckpt.pt').read_bytes() == before
    Path('out/ckpt.pt').write_bytes(Path('out/best.pt').read_bytes())
    with pytest.raises(Error, match='ckpt.pt has no optimizer state'):
        letters('--init_from=resume')


def test_other_data_or_another_tokenizer_is_an_error(letters, run, dataset):
    letters('--max_iters=4')
    Path('more.txt').write_text('another text, with other letters: xyz. ' * 60)
    run('prepare.py', '--input=more.txt', '--name=more', '--tokenizer=char')
    with pytest.raises(Error, match='dataset: letters -> more'):
        letters('--dataset=more', '--init_from=resume')
    with pytest.raises(Error, match='tokenizer'):
        letters('--dataset=more', '--init_from=out', '--out_dir=tuned')
    run('prepare.py', '--input=more.txt', f'--name={dataset}', '--tokenizer=char',
        '--overwrite=True')
    with pytest.raises(Error, match='is not what out/ckpt.pt was trained on'):
        letters('--init_from=resume')

def test_damaged_checkpoints_stop_a_resume(letters):
    letters('--max_iters=4')
    whole = Path('out/ckpt.pt').read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:]
    for bad in (whole[:len(whole) // 2], flipped, b''):
        Path('out/ckpt.pt').write_bytes(bad)
        with pytest.raises(Error, match='ckpt.pt: cannot read'):
            letters('--init_from=resume')
        assert Path('out/ckpt.pt').read_bytes() == bad


# ---- starting from weights
def test_trained_weights_start_a_run_of_their_shape(letters, run, dataset):
    letters('--arch=gpt2', '--bias=True', '--n_inner=40', '--tie_weights=False', '--max_iters=4')
    old = read('out/best.pt')
    args = ('train.py', f'--dataset={dataset}', '--init_from=out', '--device=cpu',
            '--dtype=float32', *FROZEN, '--max_iters=1')
    run(*args, '--out_dir=tuned', '--n_head=2', '--dropout=0.1')
    new = read('tuned/ckpt.pt')
    assert same_weights(new['model'], old['model']) and new['step'] == 1
    assert new['model_config'] == old['model_config'] | {'dropout': 0.1}
    run('train.py', '--out_dir=tuned', '--init_from=resume', '--max_iters=2')
    run(*args, '--out_dir=short', '--block_size=8')
    new = read('short/ckpt.pt')
    assert new['model_config'] == old['model_config'] | {'block_size': 8}
    assert torch.equal(new['model']['wpe.weight'], old['model']['wpe.weight'][:8])
    for field in ('n_layer=9', 'arch=qwen3', 'bias=False', 'tie_weights=True', 'n_inner=64',
                  'block_size=32', 'norm=rms', 'positions=rope'):
        with pytest.raises(Error, match=field):
            run(*args, '--out_dir=wrong', f'--{field}')
    assert not Path('wrong').exists()


def test_fine_tuning_that_only_gets_worse_keeps_the_weights_it_started_from(letters):
    letters('--max_iters=40', '--eval_interval=20', '--learning_rate=0.02')
    assert column('val_loss')[-1] < 0.8 * column('val_loss')[0]
    letters('--init_from=out', '--out_dir=tuned', '--learning_rate=3', '--grad_clip=0')
    losses = column('val_loss', 'tuned/log.csv')
    assert len(losses) == 4 and min(losses[1:]) > losses[0] + 1
    best = read('tuned/best.pt')
    assert best['step'] == 0 and best['best_val_loss'] == losses[0]
    assert same_weights(best['model'], read('out/best.pt')['model'])
    assert same_weights(sample.load('tuned', dtype='float32').model.state_dict(), best['model'])


# ---- losses that are not finite
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(letters,
                                                                            monkeypatch):
    forward, calls = GPT.forward, [0]

    def poisoned(self, *args, **kwargs):
        calls[0] += self.training
        is_poisoned = self.training and calls[0] == 7
        return forward(self, *args, **kwargs) * (math.nan if is_poisoned else 1)
    monkeypatch.setattr(GPT, 'forward', poisoned)
    for interval in (1, 10):                            # also if steps are read together
        calls[0] = 0
        with pytest.raises(Error, match=f'step 7: the loss is nan.*good checkpoint, if any, is in l{interval}'):
            letters(f'--log_interval={interval}', f'--out_dir=l{interval}')
        checkpoint = read(f'l{interval}/ckpt.pt')
        assert checkpoint['step'] == 4
        assert all(t.isfinite().all() for t in checkpoint['model'].values())


@pytest.mark.parametrize('floor, warns', [(10.0, True), (0.1, False)])
def test_a_loss_below_the_floor_is_warned_of_as_a_leak(letters, capsys, floor, warns):
    rewrite_meta(Path('data/letters'),
                 lambda meta: meta['val'].update(nats=floor * meta['val']['tokens']))
    letters('--max_iters=1')
    assert ('leaked' in capsys.readouterr().err) == warns


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_fp16_skips_steps_that_overflow(letters, optimizer, monkeypatch):
    """On the CPU, with a loss scale that overflows for some steps."""
    start, scaler = torch.optim.AdamW.__init__, torch.amp.GradScaler
    if optimizer == 'muon':             # on a GPU, it uses no fused kernel
        monkeypatch.setattr(torch.optim.AdamW, '__init__', lambda *args, fused: start(*args))
    monkeypatch.setattr(device_file, 'pick_dtype', lambda dtype, device: torch.float16)
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda kind, enabled: scaler(
        'cpu', init_scale=2.0 ** 22, enabled=enabled))
    letters('--learning_rate=0.01', f'--optimizer={optimizer}')
    skipped = 22 - math.log2(read()['scaler']['scale'])
    assert 0 < skipped < 12
    assert column('val_loss')[-1] < column('val_loss')[0]
    taken = {int(state['step']) for state in read()['optimizer']['state'].values()}
    assert taken == {12 - skipped}


# ---- what is shown
@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_goes_on_and_stops_without_loss(dataset):
    program = [sys.executable, ROOT / 'train.py', f'--dataset={dataset}', *TINY,
               '--max_iters=100000', '--eval_interval=0']
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.readline()
    process.stdout.close()                                          # as `| head -1` does
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if Path('out/log.csv').exists() and len(read_log()) > 50:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert read()['step'] == int(read_log()[-1]['step']) > 50
    with open('/dev/full', 'w') as full:
        ended = subprocess.run([*program, '--max_iters=20', '--overwrite=True'], stdout=full,
                               stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, '') and read()['step'] == 20


@pytest.mark.slow
def test_what_the_output_cannot_encode_ends_no_run(dataset):
    shown = command('train.py', f'--dataset={dataset}', *TINY,
                    env={'PYTHONIOENCODING': 'ascii:strict'})
    assert (shown.returncode, shown.stderr) == (0, '') and shown.stdout.isascii()
    assert read()['step'] == 12


def test_an_interrupt_that_a_library_would_swallow_while_it_loads_ends_the_run(tmp_path):
    (tmp_path / 'torch.py').write_text('import signal, sys\n'
                                       'try:\n    signal.raise_signal(signal.SIGINT)\n'
                                       'except KeyboardInterrupt:\n    sys.exit("it went on")\n')
    shown = command('train.py', cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)})
    assert (shown.returncode, shown.stderr) == (-signal.SIGINT, '')


# ---- compiling
@pytest.mark.slow
def test_without_a_compiler_the_model_runs_uncompiled(dataset):
    shown = command('train.py', f'--dataset={dataset}', *TINY, '--max_iters=2', '--compile=True',
                    env={'CXX': '/none/g++', 'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1'})
    assert shown.returncode == 0 and 'warning: torch.compile failed' in shown.stderr, shown.stderr
    assert read()['step'] == 2


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_its_checkpoint_is_plain(letters):
    letters('--eval_interval=0')
    letters('--eval_interval=0', '--compile=True', '--out_dir=compiled')
    assert column('train_loss', 'compiled/log.csv') == pytest.approx(column('train_loss'), rel=1e-5)
    assert read('compiled/ckpt.pt')['model'].keys() == read()['model'].keys()


# ---- Weights & Biases
def train_with_wandb(dataset, *args, **variables):
    return command('train.py', f'--dataset={dataset}', *TINY, '--wandb_project=letters', *args,
                   env=variables)


@pytest.mark.slow
def test_weights_and_biases_gets_the_log_and_a_resumed_run_keeps_its_id(run, dataset):
    Path('out').mkdir()
    Path('out/wandb_id.txt').write_text('before')       # of a run that was there before this one
    ids, seen = ['before'], set()
    for init_from, steps in (('scratch', range(5)), ('resume', range(5, 9))):
        done = train_with_wandb(dataset, f'--init_from={init_from}', f'--max_iters={steps[-1]}',
                                WANDB_MODE='offline')   # without account or network
        assert done.returncode == 0, done.stderr
        file, = set(Path('out').glob('wandb/offline-run-*/run-*.wandb')) - seen
        rows = [row for row in read_log() if int(row['step']) in steps]
        assert all(value.encode() in file.read_bytes() for row in rows for value in row.values())
        seen.add(file)
        ids.append(file.stem.removeprefix('run-'))
        assert Path('out/wandb_id.txt').read_text() == ids[-1]
    assert ids[0] != ids[1] == ids[2]


def test_weights_and_biases_without_a_key_leaves_the_previous_run_as_it_was(letters, dataset,
                                                                          tmp_path):
    before = letters()['model'].state_dict()
    acquire_lock(Path('out')).lock.release(force=True)
    failed = train_with_wandb(dataset, '--overwrite=True', HOME=str(tmp_path),
                              NETRC=str(tmp_path / 'none'))
    assert failed.returncode == 2 and 'WANDB_MODE=offline' in failed.stderr.splitlines()[-1]
    assert same_weights(read()['model'], before)


def test_weights_and_biases_is_needed_only_if_asked_for(letters, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    letters('--max_iters=2')
    Path('out').rename('before')
    with pytest.raises(Error, match='pip install wandb'):
        letters('--wandb_project=letters')
    assert not Path('out/ckpt.pt').exists()


# ---- mistakes
@pytest.mark.parametrize('args, says', [
    ('--dataset=nothing', 'prepare.py --name=nothing'), ('--dataset=stories', 'python prepare.py'),
    ('--schedule=wsd', 'cosine, linear'), ('--min_lr=1', 'min_lr'),
    ('--micro_batch_size=3', 'micro_batch_size=3'), ('--batch_size=0', 'batch_size'),
    ('--max_iters=0', 'max_iters'), ('--block_size=-1', 'block_size'),
    ('--warmup_iters=-1', 'warmup_iters'), ('--block_size=100000', 'block_size'),
    ('--device=tpu', 'tpu'), ('--dtype=int8', 'int8'), ('--dtype=float16', 'float16'),
    ('--arch=rnn', 'qwen3 or gpt2'), ('--optimizer=sgd', 'adamw, muon'),
    ('--init_from=resume', 'no run to resume'), ('--init_from=nowhere', 'nowhere'),
    ('--init_from=resum', 'did you mean'), ('--out_dir=', 'out_dir is an empty'),
    ('--arch=gpt2 --n_kv_head=3', 'n_kv_head'), (f'--batch_size={2 ** 31}', 'between 1'),
    ('--beta1=1', 'beta1'), ('--compile=maybe', 'compile'), ('--eval_interval=-5', 'eval_interval'),
    ('--embedding_lr_scale=0', 'embedding_lr_scale'), ('--output_lr_scale=2', 'tie_weights'),
    ('--head_gain=20', 'unknown setting'), ('--fast=True', 'unknown setting')])
def test_a_mistake_is_an_error_and_nothing_is_written(letters, args, says):
    with pytest.raises(Error, match=says):
        letters(*args.split())
    assert not Path('out').exists()


def test_a_run_is_not_replaced_by_accident(letters):
    letters('--max_iters=2')
    before = Path('out/ckpt.pt').read_bytes()
    with pytest.raises(Error, match='overwrite=True'):
        letters()
    with pytest.raises(Error, match='drop one of the two'):
        letters('--init_from=resume', '--overwrite=True')
    assert Path('out/ckpt.pt').read_bytes() == before
    Path('out/ckpt.pt').unlink()
    with pytest.raises(Error, match='a run: replace it'):   # resume has nothing to continue
        letters('--init_from=auto')
    letters('--overwrite=True', '--max_iters=4')
    assert [int(row['step']) for row in read_log() if row['train_loss']] == [1, 2, 3, 4]


def test_a_run_in_the_same_folder_at_the_same_time_is_refused(letters, dataset):
    letters('--max_iters=2')                            # this process holds the lock
    for option in ('--init_from=resume', '--overwrite=True'):
        shown = command('train.py', f'--dataset={dataset}', *TINY, option)
        assert shown.returncode == 2 and 'in use by another run' in shown.stderr
    assert read()['step'] == 2 and os.path.exists('out/.lock')


def test_dropout_masks_are_a_function_of_the_seed_and_the_first_sequence(letters):
    second_losses = []
    for micro in (8, 4):
        done = letters('--max_iters=2', *FROZEN, '--dropout=0.2', f'--micro_batch_size={micro}',
                       f'--out_dir=m{micro}')
        model, parts = done['model'], []
        for first in range(8, 16, micro):                           # those of step 2
            x, y = train.get_batch(done['train_data'], 16, 1337, range(first, first + micro))
            torch.manual_seed(1337 + first)
            parts.append(model(x, y).item())
        losses = column('train_loss', f'm{micro}/log.csv')
        assert losses[1] == pytest.approx(sum(parts) / len(parts), rel=1e-6)
        second_losses.append(losses[1])
    assert second_losses[0] != pytest.approx(second_losses[1], rel=1e-4)


def test_a_saved_setting_of_the_wrong_type_is_an_error_unless_it_is_given(letters, run):
    done = letters('--max_iters=4')
    path, content = 'out/ckpt.pt', read()
    settings = {**content['settings'], 'batch_size': 'eight'}
    del content['model'], content['model_config']
    checkpoints.save(path, done['model'], **{**content, 'settings': settings})
    with pytest.raises(Error, match='batch_size expects int'):
        run('train.py', '--init_from=resume')
    run('train.py', '--init_from=resume', '--batch_size=8', '--max_iters=5')


def test_a_terminal_shows_loss_bits_per_byte_speed_and_time_left(letters, monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    letters()
    bar = r'12/12 steps, (\d\d:\d\d) left, loss (\S+), [\d,]+ tokens/s'
    left, loss = re.findall(bar, terminal.getvalue())[-1]
    assert left == '00:00' and float(loss) == pytest.approx(column('train_loss')[-1], abs=1e-3)
    shown = re.findall(r'step +(\d+)  val (\S+)  (\S+) bits/byte', capsys.readouterr().out)
    assert [step for step, *_ in shown] == ['0', '4', '8', '12']    # other rows move the bar only
    last = tuple(f'{column(name)[-1]:.4f}' for name in ('val_loss', 'bits_per_byte'))
    assert shown[-1][1:] == last


@pytest.mark.parametrize('args, steps', [
    (['--keep_weights=True'], [0, 1, 2, 4, 8, 12]),
    (['--keep_weights=True', '--eval_interval=0'], [0, 1, 2, 4, 8, 12]),
    (['--keep_weights=True', '--eval_interval=5'], [0, 1, 2, 4, 5, 8, 10, 12])])
def test_weights_are_kept_at_the_steps_that_are_asked_for(letters, args, steps):
    letters(*args)
    kept = sorted(Path('out/weights').iterdir())
    assert [int(path.stem) for path in kept] == steps
    assert [read(path)['step'] for path in kept] == steps
    assert same_weights(read(kept[-1])['model'], read()['model'])


def test_a_signal_in_the_last_step_leaves_a_finished_run(letters, monkeypatch):
    in_training(monkeypatch, 12, lambda: signal.raise_signal(signal.SIGTERM))
    letters()
    assert read()['step'] == 12
    assert [row['step'] for row in read_log() if row['val_loss']] == ['0', '4', '8', '12']
