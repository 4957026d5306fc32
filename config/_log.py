"""What train.py writes to log.csv and shows on the screen."""
import csv
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from config import Error, drop_output
from config._files import atomic
from config._run import processes_of_run
from config._terminal import columns, fit

FILES = ['best.pt', 'ckpt.pt', 'log.csv', 'loss.png']       # what a run writes to out_dir
COLUMNS = ['step', 'tokens', 'train_loss', 'val_loss', 'bits_per_byte', 'lr', 'grad_norm',
           'tokens_per_second']


class Log:
    """Rows of log.csv; on the screen a progress bar, or where there is no terminal a line for
    each row."""

    def __init__(self, path: Path, step: int, last_step: int, is_shown: bool, is_written: bool,
                 floor: float | None = None, max_speed: float | None = None, tracker=None):
        """step: the steps done so far. Rows of log.csv after it are dropped: a crash may have
        left them, and their steps are trained again.
        floor: the lowest possible loss; max_speed: tokens per second at an MFU of 100%;
        tracker: a run of extras/tracking.py."""
        self.path = path
        self.is_shown = is_shown
        self.is_written = is_written
        self.floor = floor
        self.max_speed = max_speed
        self.tracker = tracker
        self.bar = tqdm(total=last_step, initial=step, disable=None if is_shown else True,
                        smoothing=0, dynamic_ncols=True,
                        bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt} steps, {remaining} left'
                                   '{postfix}')
        if is_written:
            rows = []
            if path.exists():
                with open(path, newline='', encoding='utf-8') as f:
                    rows = [row for row in csv.reader(f) if len(row) == len(COLUMNS)]
            rows = [row for row in rows if row[0].isdigit() and int(row[0]) <= step]
            with atomic(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as f:
                csv.writer(f).writerows([COLUMNS, *rows])

    def say(self, text: str = '', indent: str = ''):
        """Print a text, in lines that fit the screen."""
        self.print_line(fit(text, indent, hang=' ' * 8))

    def print_line(self, text: str):
        """Print a text above the bar. A run goes on if that fails, as when a pipe is closed."""
        if self.is_shown and sys.stdout:
            try:
                tqdm.write(text)
                sys.stdout.flush()
            except OSError:
                self.is_shown = False
                drop_output()

    def note(self, text: str):
        """Show behind the bar what is done at the moment."""
        self.bar.set_postfix_str(text)

    def add(self, row: dict, to_file: bool = True):
        """Show a row, and append it to log.csv."""
        self.show(row)
        if to_file and self.is_written:
            self.write(row)

    def write(self, row: dict):
        """Append a row to log.csv, where columns without a value stay empty."""
        try:
            with open(self.path, 'a', newline='', encoding='utf-8') as f:
                csv.writer(f).writerow([row.get(column, '') for column in COLUMNS])
        except OSError as e:
            raise Error(f'cannot write {self.path}: {e}; the last checkpoint is intact') from e
        if self.tracker:
            self.tracker.log(row, step=row['step'])

    def show(self, row: dict):
        """Move the bar, or print the row if there is none; print its validation loss anyway."""
        step = f'step {row["step"]:>6}  '
        if 'train_loss' in row:
            loss, speed = row['train_loss'], row['tokens_per_second']
            mfu = f'  MFU {speed / self.max_speed:.1%}' if self.max_speed else ''
            skips = f'  {row["skipped"]} skipped' if row.get('skipped') else ''
            if self.bar.disable:
                self.say(f'{step}loss {loss:.4f}  lr {row["lr"]:.2e}  norm {row["grad_norm"]:.2f}  '
                         f'{speed:>9,} tokens/s{mfu}{skips}')
            postfix = f'loss {loss:.3f}'
            if columns() >= 80:
                postfix += f', {speed:,} tokens/s'
            self.bar.set_postfix_str(postfix, refresh=False)
        else:
            self.bar.unpause()                  # the time of the first evaluation is not a step's
        self.bar.update(row['step'] - self.bar.n)
        if 'val_loss' in row:
            text = f'{step}val {row["val_loss"]:.4f}  {row["bits_per_byte"]:.4f} bits/byte'
            if self.floor and row['step'] > 0:
                text += f'  {row["val_loss"] / self.floor - 1:.1%} above the floor'
            self.say(text)
            if self.floor and row['val_loss'] < 0.995 * self.floor:
                self.say(f'warning: the validation loss {row["val_loss"]:.4f} is below the floor '
                         f'{self.floor:.4f}: validation text has leaked into the training text')

    def close(self, config: dict, progress: dict, bits: float, steps: int, seconds: float):
        """End the bar and the tracker, and print what came out. `bits` per byte are the best."""
        self.bar.close()
        if self.tracker:
            self.tracker.finish()
        if not self.is_written:
            return
        out, step, best = config['out_dir'], progress['step'], progress['best_val_loss']
        self.say()
        if best < float('inf'):
            above = f', {best / self.floor - 1:.1%} above the floor' if self.floor else ''
            self.say(f'best    val loss {best:.4f}, {bits:.4f} bits per byte{above}')
        if step < config['max_iters']:
            self.say(f'stopped at step {step:,} of {config["max_iters"]:,}')
        memory = ''
        if torch.cuda.is_initialized():
            memory = f', {torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GiB at most'
        self.say(f'spent   {seconds / 60:.1f} minutes, '
                 f'{steps * config["batch_size"] * config["block_size"]:,} tokens{memory}')
        files = [f'{out}/{name}' for name in FILES if os.path.exists(f'{out}/{name}')]
        self.say('saved   ' + ', '.join(files))
        command = 'train.py --init_from=resume' if step < config['max_iters'] else 'sample.py'
        where = f' --out_dir={out}' if out != 'out' else ''
        self.print_line(f'next    python {command}{where}')      # whole, so that it can be copied


def announce(log: Log, config: dict, model: torch.nn.Module, meta: dict, val_ids,
             device: torch.device, dtype: torch.dtype, micro: int):
    """Print what is about to be trained."""
    train_tokens = meta['train']['tokens']
    max_iters, batch_size = config['max_iters'], config['batch_size']
    block_size = config['block_size']
    log.say('model   {arch}, {} parameters: {n_layer} layers, {n_head} heads, {n_embd} channels, '
            'vocabulary {}'.format(f'{model.num_params():,}', f'{meta["vocab_size"]:,}', **config))
    entropy = f', whose entropy is {log.floor:.4f} nats per token' if log.floor else ''
    log.say(f'data    {config["dataset"]}: {train_tokens:,} tokens to train on, '
            f'{len(val_ids):,} held out{entropy}')
    log.say(f'steps   {max_iters:,} of {batch_size} x {block_size} tokens, '
            f'{max_iters * batch_size * block_size / train_tokens:.2f} epochs')
    processes = processes_of_run()
    log.say(f'device  {processes} x {device.type}, {batch_size // processes // micro} x {micro} '
            f'sequences each, {str(dtype).removeprefix("torch.")}')
