"""A training run: its folder, progress, log and checkpoints."""
import math
from dataclasses import asdict
from pathlib import Path

from lib import checkpoint as checkpoints
from lib.device import is_first_process
from lib.errors import require
from lib.files import acquire_lock
from lib.log import Log
from lib.settings import PER_START


class Run:
    """step and best_val_loss are those of the checkpoint that the run resumes, or else 0 and inf.

    Creates out_dir and prints what will be trained. Raises Error if out_dir holds a run that is
    neither resumed nor replaced; in that case nothing is written."""

    def __init__(self, settings, hardware, model, opt, scaler, meta: dict, validation,
                 checkpoint: dict | None, micro: int):
        self.model, self.opt, self.scaler = model, opt, scaler
        self.validation = validation
        self.out = Path(settings['out_dir']).expanduser()
        self.about = {'tokenizer': meta['tokenizer'], 'settings': dict(settings),
                      'data': checkpoints.checksums(meta)}
        # A model that starts from weights has a best.pt from step 0 on.
        self.is_trained = checkpoint is not None and not settings.is_resumed
        self.step, self.best_val_loss = 0, math.inf
        self.saved_at = None                    # the step of ckpt.pt
        if settings.is_resumed:
            self.step, self.best_val_loss = checkpoint['step'], checkpoint['best_val_loss']
            if is_unchanged(settings, model, checkpoint):
                self.saved_at = self.step
        self.kept_steps = kept_steps(settings)
        claim_folder(self.out, settings)
        self.log = Log(settings, self.step, hardware, model, validation.floor)
        delete_old(self.out, settings)
        self.log.announce(meta, model, micro, self.kept_steps)
        if settings.is_resumed:
            self.log.announce_resume(checkpoint)

    def record(self, step: int, val_loss: float):
        """Log an evaluation, and save the weights if they are the best so far. Raises Error if the
        loss is not finite."""
        self.log.evaluation(step, val_loss, self.validation.bits_per_byte(val_loss))
        if val_loss < self.best_val_loss:
            self.best_val_loss = val_loss
            self.saved_at = None                # ckpt.pt has the old best_val_loss
            if step > 0 or self.is_trained:
                self.save('best.pt', step)

    def save(self, name: str, step: int, **more):
        """Write a checkpoint to out_dir."""
        checkpoints.save(self.out / name, self.model, step=step, best_val_loss=self.best_val_loss,
                         **self.about, **more)

    def save_to_resume(self, step: int):
        """Write ckpt.pt, unless it is already at this step. Raises Error instead if a loss since
        the last row of the log is not finite."""
        self.log.read_pending(step)
        if step != self.saved_at:
            self.save('ckpt.pt', step, optimizer=self.opt.state_dict(),
                      scaler=self.scaler.state_dict())
            self.saved_at = step

    def keep_weights(self, step: int):
        """Write the weights to a file of their own, if keep_weights asks for this step."""
        if step in self.kept_steps:
            self.save(f'weights/{step:07}.pt', step)

    def close(self, step: int):
        """Plot the losses, and print the results and the next command."""
        best = self.best_val_loss
        self.log.close(step, best, self.validation.bits_per_byte(best))


def is_unchanged(settings, model, checkpoint: dict) -> bool:
    """Whether a run is resumed with the settings that its checkpoint has."""
    saved = checkpoint['settings']
    return asdict(model.config) == checkpoint['model_config'] and all(
        settings[name] == saved.get(name) for name in settings if name not in PER_START)


def kept_steps(settings) -> set[int]:
    """The steps whose weights get a file of their own, as set by keep_weights and eval_interval."""
    kind, max_iters = settings['keep_weights'], settings['max_iters']
    if kind == 'best':
        return set()
    steps = {0, max_iters, *range(0, max_iters, settings['eval_interval'] or max_iters)}
    if kind == 'powers':
        steps |= {2 ** i for i in range(max_iters.bit_length()) if 2 ** i <= max_iters}
    return steps


def claim_folder(out: Path, settings):
    """Create and lock out_dir, on rank 0 only. Raises Error if it holds a run that is neither
    resumed nor replaced."""
    if not is_first_process():
        return
    log = out / 'log.csv'
    can_resume, has_best = (out / 'ckpt.pt').exists(), (out / 'best.pt').exists()
    has_rows = log.exists() and len(log.read_bytes().splitlines()) > 2      # header and step 0
    has_run = can_resume or has_best or has_rows
    advice = 'continue it with --init_from=resume, ' if can_resume else ''
    require(settings.is_resumed or settings['overwrite'] or not has_run,
            f'{out} holds a run: {advice}replace it with --overwrite=True, or choose a different '
            '--out_dir')
    acquire_lock(out)


def delete_old(out: Path, settings):
    """Delete the files of the run that a new one replaces."""
    if is_first_process() and not settings.is_resumed:
        for path in (out / 'ckpt.pt', out / 'best.pt', out / 'loss.png', *out.glob('weights/*.pt')):
            path.unlink(missing_ok=True)
