"""Checks on train.py's settings, made before anything is written."""
from lib.errors import require


def check_settings(settings: dict, world_size: int):
    """Raise Error for settings that are out of range or contradict each other."""
    choices = {'optimizer': ('adamw', 'muon'), 'schedule': ('cosine', 'linear'),
               'compile': ('auto', 'True', 'False')}
    for name, allowed in choices.items():
        require(settings[name] in allowed,
                f'{name}={settings[name]!r} is not one of {", ".join(allowed)}')
    for name, value in settings.items():
        is_number = type(value) in (int, float)
        require(not is_number or value >= 0, f'{name}={value} must not be negative')
    for name, most in (('max_iters', 1 << 31), ('log_interval', 1 << 31), ('batch_size', 1 << 20)):
        require(1 <= settings[name] <= most,
                f'{name}={settings[name]} must be between 1 and {most:,}')
    for name in ('beta1', 'beta2'):
        require(settings[name] < 1, f'{name}={settings[name]} must be below 1')
    for name in ('embedding_lr_scale', 'output_lr_scale'):
        require(settings[name] > 0, f'{name}={settings[name]} must be above 0')
    require(settings['out_dir'], 'out_dir is an empty string')
    require(settings['min_lr'] <= settings['learning_rate'],
            f'min_lr={settings["min_lr"]} is above learning_rate={settings["learning_rate"]}')

    batch_size, micro_batch_size = settings['batch_size'], settings['micro_batch_size']
    require(batch_size % world_size == 0,
            f'batch_size={batch_size} is not divisible by the number of processes ({world_size})')
    share = batch_size // world_size
    require(micro_batch_size == 0 or share % micro_batch_size == 0,
            f'micro_batch_size={micro_batch_size} does not evenly divide the {share} sequences '
            'that each process handles per step')


def check_fit(settings: dict, config, tokens: int):
    """Raise Error for settings that do not fit the model's GPTConfig or the number of tokens."""
    require(settings['output_lr_scale'] == 1 or not config.tie_weights,
            'output_lr_scale needs tie_weights=False: a tied output matrix is the embedding')
    require(tokens > config.block_size,
            f'the train split has {tokens} tokens; set block_size below that')
