"""Also log a training run to Weights & Biases: train.py --wandb_project=NAME."""
from pathlib import Path

import wandb

from lib.errors import Error, require


def start(settings: dict):
    """A wandb run with the settings of train.py, which has log(row, step) and finish(). Its id is
    in out_dir/wandb_id.txt, so that a resumed run continues it.

    Raises Error without an account or a network."""
    project, out = settings['wandb_project'], Path(settings['out_dir']).expanduser()
    id_file = out / 'wandb_id.txt'
    may_continue = settings['init_from'] in ('resume', 'auto') and id_file.exists()
    run_id = id_file.read_text(encoding='utf-8') if may_continue else None
    try:
        run = wandb.init(project=project, name=str(out), id=run_id, resume='allow',
                         config=dict(settings), dir=str(out))
    except wandb.Error as e:
        raise Error(f'wandb_project={project}: {e}; WANDB_MODE=offline needs no account') from e
    require(run is not None, f'wandb_project={project}: wandb did not start a run')
    id_file.write_text(run.id, encoding='utf-8')
    return run
