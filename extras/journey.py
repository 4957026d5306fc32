"""Show how a model reads a text, and how it came to do so in training, as a web page:
python -m extras.journey --start=TEXT

With the weights that train.py --keep_weights=True keeps, a slider runs through the training, in
12 steps at most, and fewer of a large model, so that the page stays below 2 MB."""
from lib.settings import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
start = ''                  # the text, or FILE:path to read it from; at most 63 tokens
to = 'journey.html'         # the page, a .html file
dataset = ''                # NAME of data/NAME to measure heads on; '' = the one it was trained on
settings = configure(globals())

import base64
import json
from pathlib import Path

import torch
from torch import Tensor

from extras.attention import attention_weights, read_ids
from extras.draws import draws
from extras.heads import Measure, introduced_words, read_texts
from extras.kept import kept_files, read_curves, spread, weight_changes
from extras.lens import Lens, describe_tokens, look_through
from lib.errors import require
from lib.files import atomic
from model import GPTConfig
from sample import LanguageModel, load, read_prompt
from text.stories.teller import read_grammar

TEMPLATE = Path(__file__).with_name('journey.html')
SAMPLE_TOKENS = 60
MAX_STEPS = 12
STEPS_SIZE = 1_800_000          # characters for all steps, so that a page has at most 2 MB


# ---- the model at one step
def encode_weights(weights: Tensor) -> str:
    """Attention weights (L, H, T, T) in base64: the lower triangle of each head, row by row, a byte
    per weight, in 255ths."""
    T = weights.shape[-1]
    rows, columns = torch.tril_indices(T, T)
    whole = (weights.cpu()[:, :, rows, columns] * 255).round().to(torch.uint8)
    return base64.b64encode(whole.numpy().tobytes()).decode()


def rounded(p: Tensor) -> list:
    """Probabilities to four digits, to keep the page small."""
    return p.double().numpy().round(4).tolist()


def pack_lens(lens: Lens) -> list[list[list]]:
    """For each layer and token [p of the token that comes next, [id, p] of the likeliest, ...];
    after the last token none comes next."""
    layers = []
    for next_p, top_p, top_ids in zip(lens.next_p, lens.top_p, lens.top_ids):
        rows = zip([*rounded(next_p), None], top_ids.tolist(), rounded(top_p))
        layers.append([[p, *zip(ids, likeliest)] for p, ids, likeliest in rows])
    return layers


def read_step(lm: LanguageModel, prompt: str, measure: Measure) -> dict:
    """All that the page shows of a model as it is at one step."""
    ids, model = read_ids(lm, prompt), lm.model
    idx = torch.tensor([ids], device=model.wte.weight.device)
    lens = look_through(model, ids, lm.tokenizer.vocab_size)
    return {'attention': encode_weights(torch.stack(attention_weights(model, idx))),
            'heads': measure.describe(model), 'lens': pack_lens(lens),
            'bits': [round(bits, 3) for bits in lens.bits],
            'sample': lm.generate(prompt, max_new_tokens=SAMPLE_TOKENS)[len(prompt):]}


def read_steps(lm: LanguageModel, files: list[tuple], prompt: str, measure: Measure):
    """Yield what the page shows at each step; lm: the model of the last."""
    before = None
    for step, file in files:
        now = lm if file == files[-1][1] else load(file, dtype='float32')
        require(now.model.config == lm.model.config and now.tokenizer == lm.tokenizer,
                f'{file}: its model has a different shape or tokenizer from that of '
                f'{files[-1][1]}: move one of them away')
        changes = weight_changes(before, now.model) if before else None
        yield {'step': step, 'changes': changes, **read_step(now, prompt, measure)}
        before = now.model


# ---- the page
def steps_that_fit(config: GPTConfig, T: int) -> int:
    """How many steps a page of T tokens shows: fewer of a large model."""
    heads = config.n_layer * config.n_head
    attention = heads * T * (T + 1) // 2 * 4 // 3
    lens = (config.n_layer + 1) * T * 90        # five ids and probabilities
    scores = heads * 80                         # and names
    return min(MAX_STEPS, max(1, STEPS_SIZE // (attention + lens + scores)))


def collect(run: Path, prompt: str, dataset: str) -> dict:
    """The content of the page. Raises Error if the prompt has no tokens or too many."""
    files = kept_files(run) or [(None, run)]
    lm = load(files[-1][1], dtype='float32')
    ids, config = read_ids(lm, prompt), lm.model.config
    files = spread(files, steps_that_fit(config, len(ids)))
    is_stories = lm.settings.get('dataset') == 'stories'
    texts, source = read_texts(lm, dataset)
    measure = Measure(texts, introduced_words(lm) if is_stories else [])
    steps = list(read_steps(lm, files, prompt, measure))
    drawn = draws(read_grammar(), lm.tokenizer, prompt) if is_stories else None
    shown = {i for step in steps for layer in step['lens'] for _, *top in layer for i, _ in top}
    return {
        'model': f'{config.arch}, {lm.model.num_params():,} parameters',
        'layers': config.n_layer, 'heads': config.n_head, 'is_tied': config.tie_weights,
        'tokens': describe_tokens(lm.tokenizer, ids), 'prompt': prompt,
        'labels': {i: lm.tokenizer.label(i) for i in shown},
        'draws': drawn, 'is_other_text': is_stories and drawn is None,
        'measured': f'{len(texts)} {source}, {sum(map(len, texts)):,} tokens',
        **measure.explain(), 'curves': read_curves(run), 'steps': steps}


def write_page(content: dict, path: Path):
    """Write the page. In the content `<` is escaped, so that no text ends the script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(',', ':')).replace('<', '\\u003c')
    page = TEMPLATE.read_text(encoding='utf-8')
    for name in ('journey.css', 'journey.js', 'journey_step.js'):
        part = TEMPLATE.with_name(name).read_text(encoding='utf-8')
        page = page.replace('{' + name + '}', part)
    with atomic(path) as temporary:
        temporary.write_text(page.replace('{data}', text), encoding='utf-8')


def main():
    path = Path(to).expanduser()
    require(path.suffix == '.html', f'to={to}: the name must end in .html')
    write_page(collect(Path(out_dir).expanduser(), read_prompt(start), dataset), path)
    print(f'written: {path}')


if __name__ == '__main__':
    main()
