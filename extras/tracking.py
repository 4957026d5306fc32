"""Weights & Biases beside log.csv, for --wandb_project=NAME. A resumed run goes on in the same
run there."""
from pathlib import Path

import wandb

from config import Error, require


def start(project: str, out: Path, config: dict):
    """A run of wandb, with log(row, step) and finish(). Its id is kept in out_dir/wandb_id.txt.

    Raises Error without an account or a network."""
    id_file = out / 'wandb_id.txt'
    is_continued = config['init_from'] in ('resume', 'auto') and id_file.exists()
    run_id = id_file.read_text() if is_continued else None      # None: wandb makes one
    try:
        run = wandb.init(project=project, name=str(out), id=run_id, resume='allow',
                         config=dict(config), dir=str(out))
    except wandb.Error as e:
        raise Error(f'wandb_project={project}: {e}; WANDB_MODE=offline needs neither') from e
    require(run is not None, f'wandb_project={project}: wandb gave no run')
    id_file.write_text(run.id)
    return run
