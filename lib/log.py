"""What train.py writes to log.csv and shows on the terminal."""
import csv
import math
import shlex
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from lib.device import max_speed, mean_over_processes
from lib.errors import Error, drop_output, extra, require
from lib.files import atomic
from lib.settings import PER_START
from lib.terminal import fit, warn

COLUMNS = ['step', 'tokens', 'train_loss', 'val_loss', 'bits_per_byte', 'lr', 'grad_norm',
           'tokens_per_second']
FILES = ['best.pt', 'ckpt.pt', 'log.csv', 'loss.png']       # named at the end of a run


class Log:
    """Writes log.csv; shows a progress bar on a terminal and prints a line per row elsewhere. Only
    rank 0 writes and prints."""

    def __init__(self, settings, hardware, model, validation, step: int):
        """step: steps done so far. Rows of log.csv after it, left by a crash, are dropped: those
        steps run again."""
        self.settings, self.hardware = settings, hardware
        self.model, self.validation = model, validation
        self.floor = validation.floor
        self.out = Path(settings['out_dir']).expanduser()
        self.path = self.out / 'log.csv'
        self.max_iters = settings['max_iters']
        self.is_writer = is_writer = hardware.rank == 0
        self.tokens_per_step = settings['batch_size'] * model.config.block_size
        self.max_speed = max_speed(model, hardware.device)
        self.tracker = None                     # a Weights & Biases run
        self.first_step = step
        self.began = self.clock = time.perf_counter()
        self.last_lr = None                     # of the step before the resume
        self.pending = []                       # (loss, norm) since the last row, on the device
        self.steps_since_row = 0                # counts steps whose losses have been checked
        self.loss = self.norm = self.lr = math.nan      # of the last of those steps
        self.first_val_loss = ''                # at first_step, as in log.csv
        if is_writer:
            self.begin()
        self.bar = tqdm(total=self.max_iters, initial=step, disable=None if is_writer else True,
                        smoothing=0, dynamic_ncols=True,
                        bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt} steps, {remaining} left'
                                   '{postfix}')

    def begin(self):
        """Start log.csv with the rows of the run that this one continues."""
        if self.settings['wandb_project']:      # first, because it can fail
            tracking = extra('tracking', needed_by='wandb_project')
            self.tracker = tracking.start(self.settings)
        rows = read_rows(self.path, self.first_step) if self.settings.is_resumed else []
        for row in rows:
            if row['val_loss'] and int(row['step']) == self.first_step:
                self.first_val_loss = row['val_loss']
        with atomic(self.path) as temporary:
            with open(temporary, 'w', newline='', encoding='utf-8') as f:
                writer = csv.DictWriter(f, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)

    # ---- printing
    def say(self, text: str = '', indent: str = ''):
        """Print text above the progress bar. The run continues if stdout is closed, e.g. by
        `| head`."""
        if not self.is_writer:
            return
        try:
            tqdm.write(fit(text, indent, hang=' ' * 8))
            sys.stdout.flush()
        except OSError:
            drop_output()

    def announce(self, meta: dict, micro: int, checkpoint: dict | None):
        """Print a summary of the run: model, data, steps and device."""
        config, settings = self.model.config, self.settings
        tokens, device = meta['train']['tokens'], self.hardware.device
        self.say(f'model   {config.arch}, {self.model.num_params():,} parameters: {config.n_layer} '
                 f'layers, {config.n_head} heads, {config.n_embd} channels, vocabulary '
                 f'{meta["vocab_size"]:,}')
        floor = f', floor {self.floor:.4f} nats per token' if self.floor else ''
        self.say(f'data    {settings["dataset"]}: {tokens:,} tokens for training, '
                 f'{meta["val"]["tokens"]:,} for validation{floor}')
        epochs = self.max_iters * self.tokens_per_step / tokens
        self.say(f'steps   {self.max_iters:,} ({settings["batch_size"]} x {config.block_size} '
                 f'tokens each), {epochs:.2f} epochs')
        name = str(device)
        if device.type == 'cuda':
            name = torch.cuda.get_device_name(device)
        dtype = str(self.hardware.dtype).removeprefix('torch.')
        self.say(f'device  {name}, {dtype}, {self.hardware.world_size} process(es), micro-batches '
                 f'of {micro} sequences')
        if settings.is_resumed:
            self.announce_resume(checkpoint)

    def announce_resume(self, checkpoint: dict):
        """Print where a run resumes and which settings changed. The next step warns if the
        learning rate jumps, e.g. after raising max_iters."""
        saved, settings = checkpoint['settings'], self.settings
        changes = [f', {name}: {saved[name]} -> {settings[name]}' for name in settings
                   if name in saved and settings[name] != saved[name]
                   and name not in PER_START]
        self.say(f'resume  {self.out}/ckpt.pt at step {checkpoint["step"]}' + ''.join(changes))
        if checkpoint['step'] > 1:
            self.last_lr = checkpoint['optimizer']['param_groups'][0]['lr']

    def sample(self, text: str):
        """Print a sample, indented."""
        for line in text.splitlines():
            self.say(line, indent=' ' * 8)

    # ---- rows
    def step(self, step: int, loss: torch.Tensor, norm: torch.Tensor, lr: float):
        """Record a step's loss and gradient norm (scalars on the device). Every log_interval steps,
        write a row."""
        if self.last_lr is not None and self.is_writer and lr > 1.5 * self.last_lr:
            warn(f'the learning rate jumps from {self.last_lr:.1e} to {lr:.1e}')
        self.last_lr = None
        self.pending.append((loss, norm))
        self.lr = lr
        if step % self.settings['log_interval'] == 0:
            self.write_losses(step)
        self.bar.update(step - self.bar.n)

    def check_losses(self, step: int):
        """Raise Error if a loss or gradient norm since the last check is not finite. Between
        evaluations, only this syncs with the device."""
        if not self.pending:
            return
        losses, norms = (torch.stack(values) for values in zip(*self.pending))
        losses, norms = mean_over_processes(losses).tolist(), norms.tolist()
        self.pending = []
        for at, (loss, norm) in enumerate(zip(losses, norms), step - len(losses) + 1):
            self.require_finite(at, 'loss', loss)
            if self.hardware.dtype != torch.float16:        # GradScaler skips steps that overflow
                self.require_finite(at, 'gradient norm', norm)
        self.steps_since_row += len(losses)
        self.loss, self.norm = losses[-1], norms[-1]

    def write_losses(self, step: int):
        """Write a row with the last step's loss and gradient norm, and print it. Raises Error if a
        loss is not finite."""
        self.check_losses(step)
        if self.steps_since_row == 0:
            return
        tokens = self.steps_since_row * self.tokens_per_step
        speed = round(tokens / (time.perf_counter() - self.clock))
        self.clock = time.perf_counter()
        self.steps_since_row = 0
        self.write({'step': step, 'tokens': step * self.tokens_per_step, 'train_loss': self.loss,
                    'grad_norm': self.norm, 'lr': self.lr, 'tokens_per_second': speed})
        if self.bar.disable:
            mfu = f'  MFU {speed / self.max_speed:.1%}' if self.max_speed else ''
            seconds = (self.max_iters - step) * self.tokens_per_step / max(1, speed)
            self.say(f'step {step:>6}  loss {self.loss:.4f}  lr {self.lr:.2e}  norm '
                     f'{self.norm:.2f}  {speed:>9,} tokens/s{mfu}  '
                     f'{tqdm.format_interval(seconds)} left')
        self.bar.set_postfix_str(f'loss {self.loss:.3f}, {speed:,} tokens/s', refresh=False)

    def require_finite(self, step: int, name: str, value: float):
        require(math.isfinite(value), f'step {step}: the {name} is {value}: lower learning_rate; '
                                      f'the last good checkpoint, if any, is in {self.out}')

    def evaluation(self, step: int, val_loss: float):
        """Write a row with the validation loss. Raises Error if it is not finite."""
        self.require_finite(step, 'validation loss', val_loss)
        bits_per_byte = self.validation.bits_per_byte(val_loss)
        text = f'step {step:>6}  val {val_loss:.4f}  {bits_per_byte:.4f} bits/byte'
        if self.floor and step > 0:
            text += f'  {val_loss / self.floor - 1:.1%} above the floor'
        self.say(text)
        if self.floor and val_loss < 0.995 * self.floor and self.is_writer:
            warn(f'the validation loss {val_loss:.4f} is below the floor {self.floor:.4f}: '
                 'validation data has probably leaked into the training data')
        is_repeated = step == self.first_step and str(val_loss) == self.first_val_loss
        if not is_repeated:                     # a resumed run repeats the last evaluation
            self.write({'step': step, 'tokens': step * self.tokens_per_step, 'val_loss': val_loss,
                        'bits_per_byte': bits_per_byte})

    def write(self, row: dict):
        """Append a row to log.csv; columns without a value stay empty."""
        if not self.is_writer:
            return
        try:
            with open(self.path, 'a', newline='', encoding='utf-8') as f:
                csv.writer(f).writerow([row.get(column, '') for column in COLUMNS])
        except OSError as e:
            raise Error(f'cannot write {self.path}: {e}; the last checkpoint is intact') from e
        if self.tracker:
            self.tracker.log(row, step=row['step'])

    def restart_clock(self):
        """Do not count the time since the last row towards tokens/s."""
        self.clock = time.perf_counter()
        self.bar.unpause()

    # ---- the end
    def close(self, step: int, best_val_loss: float):
        """Plot the losses, and print the results and the next command."""
        self.bar.close()
        if self.tracker:
            self.tracker.finish()
        if not self.is_writer:
            return
        draw_losses(self.out, self.floor)
        self.say()
        if best_val_loss < math.inf:
            above = f', {best_val_loss / self.floor - 1:.1%} above the floor' if self.floor else ''
            self.say(f'best    val loss {best_val_loss:.4f}, '
                     f'{self.validation.bits_per_byte(best_val_loss):.4f} bits per byte{above}')
        if step < self.max_iters:
            self.say(f'stopped at step {step:,} of {self.max_iters:,}')
        minutes = (time.perf_counter() - self.began) / 60
        memory = ''
        if torch.cuda.is_initialized():
            memory = f', {torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GiB of GPU memory'
        tokens = (step - self.first_step) * self.tokens_per_step
        self.say(f'used    {minutes:.1f} minutes, {tokens:,} tokens{memory}')
        files = [str(self.out / name) for name in FILES if (self.out / name).exists()]
        self.say('saved   ' + ', '.join(files))
        command = ['python', 'sample.py']
        if step < self.max_iters:
            command = ['python', 'train.py', '--init_from=resume']
        if self.settings['out_dir'] != 'out':
            command.append(f'--out_dir={self.settings["out_dir"]}')
        self.say('next    ' + shlex.join(command))


def read_rows(path: Path, step: int) -> list[dict]:
    """The rows of log.csv up to a step; [] if there is no log. One that another program has
    rewritten is kept as log.csv.old."""
    if not path.exists():
        if step > 0:
            warn(f'{path} is missing: the new one starts after step {step}')
        return []
    with open(path, newline='', encoding='utf-8', errors='replace') as f:
        header, *rows = list(csv.reader(f)) or [[]]
    if header != COLUMNS:
        copy = path.with_name('log.csv.old')
        path.replace(copy)
        warn(f'{path} was changed by another program: it is kept as {copy.name}')
        return []
    whole = [dict(zip(COLUMNS, row)) for row in rows if len(row) == len(COLUMNS)]
    return [row for row in whole if row['step'].isdigit() and int(row['step']) <= step]


def draw_losses(out: Path, floor: float | None):
    """Draw loss.png if extras/plot.py and matplotlib are available."""
    try:
        if extra('plot'):
            extra('plot').plot_losses([out], out / 'loss.png', floor)
    except Error as e:
        warn(f'no loss.png: {e}')
