"""The fields of a GPTConfig of model.py: values for those left out, and whether all fit."""
import math

from config import require


def complete_shape(config):
    """Give the fields that are 0 their values. Raises Error if the shape is impossible."""
    check_fields(config)
    is_gpt2 = config.arch == 'gpt2'
    config.head_dim = config.head_dim or config.n_embd // config.n_head
    config.n_kv_head = config.n_kv_head or config.n_head
    if config.n_inner == 0:
        multiple_of_32 = math.ceil(config.n_embd / 12) * 32     # 8/3 n_embd, rounded up
        config.n_inner = 4 * config.n_embd if is_gpt2 else multiple_of_32
    if config.norm_eps == 0:
        config.norm_eps = 1e-5 if is_gpt2 else 1e-6
    check_shape(config)


def check_fields(config):
    """Raise Error for a field that is out of range."""
    require(config.arch in ('gpt2', 'qwen3'), f'arch={config.arch!r} is not known: gpt2 or qwen3')
    for name in ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd'):
        value = getattr(config, name)
        require(value > 0, f'{name}={value} must be at least 1')
    require(config.n_layer <= 1000, f'n_layer={config.n_layer} must be at most 1000')
    dropout, head_gain = config.dropout, config.head_gain
    require(0 <= dropout < 1, f'dropout={dropout} must be at least 0 and less than 1')
    require(0 < head_gain < 1e6, f'head_gain={head_gain} must be above 0; 1 is plain')
    require(0 < config.rope_theta < 1e12, 'rope_theta must be between 0 and 1e12')
    require(0 <= config.norm_eps < 1, 'norm_eps must be between 0 and 1')
    require(config.head_dim or config.n_embd % config.n_head == 0,
            f'n_embd={config.n_embd} is not a multiple of n_head={config.n_head}; or set head_dim')


def check_shape(config):
    """Raise Error for sizes that do not fit each other, or the architecture."""
    heads, kv_heads, head_dim = config.n_head, config.n_kv_head, config.head_dim
    sizes = (config.vocab_size, config.block_size, config.n_embd, kv_heads, head_dim,
             config.n_inner, heads * head_dim)
    require(min(sizes) > 0 and max(sizes) <= 1 << 24,
            'no size may be negative, and none above 16 million')
    require(heads % kv_heads == 0, f'n_head={heads} is not a multiple of n_kv_head={kv_heads}')
    if config.arch == 'gpt2':
        require(kv_heads == heads and heads * head_dim == config.n_embd,
                'n_kv_head and head_dim are for qwen3; gpt2 has n_head of n_embd / n_head')
        require(config.rope_theta == 10000, 'rope_theta is for qwen3; gpt2 learns its positions')
    else:
        require(head_dim % 2 == 0, 'qwen3 rotates channels in pairs: make head_dim even')
        require(not config.bias, 'qwen3 has no biases: leave bias=False, or take arch=gpt2')
