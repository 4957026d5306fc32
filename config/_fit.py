"""Which model fits how much text: prepare.py prints it as the next command."""
import math

TOKENS_PER_STEP = 16 * 256          # of config/papers.py


def fitting_knobs(tokens: int) -> dict:
    """Knobs of train.py, on top of config/papers.py, for a train split of so many tokens.

    With four times the text a run has twice the steps, so it reads the text half as often. The
    rule was found with documentation of 0.2, 2 and 20 MB: tests/README.md."""
    max_iters = max(100, round(math.sqrt(tokens)))
    epochs = max_iters * TOKENS_PER_STEP / tokens
    if tokens < 200_000:
        shape = {'n_layer': 4, 'n_head': 3, 'n_embd': 192}
    elif tokens < 2_000_000:
        shape = {'n_layer': 4, 'n_head': 4, 'n_embd': 256}
    else:
        shape = {'n_layer': 6, 'n_head': 6, 'n_embd': 384}
    if epochs > 10:
        dropout = 0.2
    elif epochs > 3:
        dropout = 0.1
    else:
        dropout = 0.0
    return shape | {'dropout': dropout, 'max_iters': max_iters, 'eval_interval': max_iters // 8}
