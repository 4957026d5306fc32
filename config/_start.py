"""How a run of train.py starts: from a checkpoint, on a dataset that fits it, in a folder."""
from pathlib import Path

from config import Config, extra, require
from config._files import acquire_lock
from config._log import FILES, Log
from data.tokenizer import Tokenizer

OF_A_START = ('init_from', 'out_dir', 'overwrite', 'eval_only', 'max_minutes')  # not of a run


def adopt_knobs(config: Config, saved: dict, model_knobs: list):
    """Take the knobs of the run that is resumed, except those given now.

    Raises Error for a change that the weights, batches or optimizer states cannot follow."""
    saved = {name: value for name, value in saved.items() if name not in OF_A_START}
    config.adopt(saved)
    fixed = {*model_knobs, 'seed', 'optimizer'} - {'dropout'}
    wrong = [f'{name}: {saved[name]} -> {config[name]}' for name in config
             if name in fixed & saved.keys() and config[name] != saved[name]]
    require(not wrong, f'{", ".join(wrong)}: this cannot change on resume; leave out what sets it, '
                       'or use a different out_dir')


def adopt_shape(config: Config, weights: dict, model_knobs: list):
    """Take the shape of the weights that the run starts from, except dropout and block_size.
    Raises Error for a knob that contradicts it."""
    shape = {name: weights[name] for name in model_knobs if name not in ('dropout', 'head_gain')}
    for name in config.given & shape.keys() - {'block_size'}:
        require(config[name] == shape[name],
                f'{name}={config[name]} contradicts the weights of {config["init_from"]}, which '
                f'have {shape[name]}: leave it out')
    config.adopt(shape)


def check_data(config: Config, meta: dict, tokenizer: Tokenizer, checkpoint: dict | None,
               is_resumed: bool):
    """Raise Error unless the dataset is consistent, long enough, and that of the checkpoint, which
    has steps left."""
    folder = f'data/{config["dataset"]}'
    require((tokenizer.vocab_size, tokenizer.eot) == (meta['vocab_size'], meta['eot']),
            f'{folder}/meta.json does not fit its tokenizer; prepare it again')
    tokens = meta['train']['tokens']
    require(tokens > config['block_size'],
            f'the train split has {tokens} tokens; lower block_size below that')
    if checkpoint is None:
        return
    checksums = {split: meta[split]['checksum'] for split in ('train', 'val')}
    require(not is_resumed or checkpoint['data'] == checksums,
            f'{folder} is not what {config["out_dir"]}/ckpt.pt was trained on; use a different '
            'out_dir')
    require(not is_resumed or 0 <= checkpoint['step'] <= config['max_iters'],
            f'{config["out_dir"]}/ckpt.pt is at step {checkpoint.get("step")}: '
            f'raise max_iters={config["max_iters"]}')
    require(Tokenizer(checkpoint['tokenizer']) == tokenizer,
            f'{folder} has a different tokenizer from the checkpoint; prepare it with that one')
    rows = checkpoint['model_config']['vocab_size']
    require(tokenizer.vocab_size <= rows,
            f'{config["init_from"]}: {tokenizer.vocab_size} tokens do not fit vocab_size={rows}')


def open_folder(config: Config, is_resumed: bool):
    """Make out_dir ready and lock it until this process ends, and return the run at Weights &
    Biases, if one is asked for.

    Raises Error if the folder holds another run, and before it deletes anything."""
    out = Path(config['out_dir'])
    acquire_lock(out / '.lock')                 # a resumed run has it already
    require(is_resumed or config['overwrite'] or not (out / 'ckpt.pt').exists(),
            f'{out} holds a run already: continue it with --init_from=resume, replace it with '
            '--overwrite=True, or choose a different --out_dir')
    tracker = None
    if config['wandb_project']:
        tracker = extra('tracking').start(config['wandb_project'], out, config)
    if not is_resumed:
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    return tracker


def announce_resume(log: Log, config: dict, checkpoint: dict):
    """Print from which step a run goes on, and the knobs that it changes."""
    saved = checkpoint['config']
    changes = [f', {name}: {saved[name]} -> {config[name]}' for name in config
               if name in saved and name not in OF_A_START and config[name] != saved[name]]
    log.say(f'resume  {config["out_dir"]}/ckpt.pt at step {checkpoint["step"]}' + ''.join(changes))
