"""Sample from a trained model, or talk to it: python sample.py [--knob=value ...]

In Python: from sample import load; print(load('out').generate('Once upon a time'))."""
from config import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
start = ''                  # the prompt, or FILE:path to read it from; '' = a new document
num_samples = 3             # number of samples, drawn together
max_new_tokens = 300        # maximum tokens per sample; end-of-text ends it earlier
temperature = 0.8           # below 1 safer, above 1 wilder; 0 = always the likeliest token
top_k = 0                   # choose among the k likeliest tokens only; 0 = off
top_p = 1.0                 # choose among the likeliest with this probability together; 1 = off
repetition_penalty = 1.0    # above 1, tokens that occurred already become less likely
seed = 1337                 # sample i is drawn with seed + i
device = 'auto'             # auto (cuda, mps or cpu), or one of them by name
dtype = 'auto'              # of the weights: bfloat16, float16, float32; auto = the fastest
fast = True                 # use the faster routines that extras/ has for this machine
compile = False             # compile first, for half a minute; makes one text several times faster
# Each of these does something else instead of sampling; extras/ has a file for each.
interactive = False         # continue prompts from the keyboard, until an empty line
plot = ''                   # draw the losses of these runs (A,B,...) into plot.png of the first
attention = ''              # draw the attention of every layer and head in `start`: FILE.png
surprise = ''         # show how unexpected each token of `start` (or a held-out text) is: FILE.html
evaluate = False            # measure the loss on the validation text, and how much samples copy
compare = ''           # measure it and Hugging Face models (names or folders, A,B,...) on that text
export = ''           # write a folder for Hugging Face, or if it ends in .gguf a file for llama.cpp
dataset = ''                # data/NAME that has the validation text; '' = what it was trained on
eval_tokens = 0             # tokens of the validation text to measure on; 0 = all
config = configure(globals())
SAMPLING = ('temperature', 'top_k', 'top_p', 'repetition_penalty', 'max_new_tokens', 'seed')
sampling = {name: config[name] for name in SAMPLING}        # the knobs of a text

# The other imports come after the knobs, so that --help and a mistyped knob are answered at once.
import sys
import time
from itertools import takewhile
from numbers import Integral, Real
from pathlib import Path

import torch

from config import Error, extra, require
from config._device import pick_device, pick_dtype
from config._terminal import Screen
from data.tokenizer import Tokenizer
from model import GPT, build_model, load_checkpoint


class LanguageModel:
    """A trained model with its tokenizer. Its methods take the sampling knobs above as keywords,
    with the same defaults."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, dataset: str = '', sampler=None):
        self.model = model
        self.tokenizer = tokenizer
        self.dataset = dataset          # NAME of the dataset that it was trained on; '' = unknown
        self.sampler = sampler          # makes a faster copy of the model: extras/sampling.py

    def generate(self, prompt: str = '', **knobs) -> str:
        """The prompt and its continuation."""
        return prompt + ''.join(self.stream(prompt, **knobs))

    def stream(self, prompt: str = '', **knobs):
        """Yield the continuation as it comes, in strings of whole characters."""
        steps = self.ids(prompt, num_samples=1, **knobs)
        yield from self.tokenizer.decode_stream(ids.item() for ids in steps)

    def rows(self, prompt: str = '', num_samples: int = num_samples, **knobs) -> list[list[int]]:
        """The ids of several continuations, without their end-of-text."""
        steps = [ids.tolist() for ids in self.ids(prompt, num_samples, **knobs)]
        return [list(takewhile(lambda i: i != self.tokenizer.eot, row)) for row in zip(*steps)]

    def ids(self, prompt: str, num_samples: int = 1, **knobs):
        """Yield the next ids (num_samples,). Raises Error for knobs or a prompt that do not fit."""
        require(isinstance(prompt, str), f'the prompt is a {type(prompt).__name__}, not a str')
        knobs = {**sampling, **knobs}
        check_sampling(num_samples=num_samples, **knobs)
        model = self.sampler.copy_of(self.model) if self.sampler else self.model
        prompt_ids = [self.tokenizer.eot, *self.tokenizer.encode(prompt)]
        idx = torch.tensor([prompt_ids] * num_samples, device=model.wte.weight.device)
        return model.generate(idx, **knobs, eot=self.tokenizer.eot,
                              vocab_size=self.tokenizer.vocab_size)


def check_sampling(**knobs):
    """Raise Error for a sampling knob that is not known, not a number, or out of range."""
    for name, value in knobs.items():
        require(name in (*SAMPLING, 'num_samples'),
                f'{name} is not a sampling knob; these are {", ".join(SAMPLING)}')
        kind = Real if type(config[name]) is float else Integral
        require(isinstance(value, kind) and type(value) is not bool,
                f'{name}={value!r} is not a number like {config[name]}')
    for name in ('num_samples', 'max_new_tokens'):
        require(knobs[name] >= 1, f'{name}={knobs[name]} must be at least 1')
    for name in ('temperature', 'top_k', 'seed'):
        require(0 <= knobs[name] < 1 << 63, f'{name}={knobs[name]} must not be negative, or huge')
    require(0 < knobs['top_p'] <= 1, f'top_p={knobs["top_p"]} must be above 0 and at most 1')
    penalty = knobs['repetition_penalty']
    require(0.01 <= penalty <= 100, f'repetition_penalty={penalty} must be 0.01 to 100')


def load(path='out', device: str = 'auto', dtype: str = 'auto', fast: bool = True,
         compile: bool = False) -> LanguageModel:
    """The model of a run's folder, a checkpoint or a Hugging Face folder, ready to generate.

    Raises Error if there is none, or if its embedding has too few rows for its tokenizer."""
    with torch.random.fork_rng(devices=[]):     # a new GPT is drawn at random, then overwritten
        checkpoint = load_checkpoint(path, 'config')
        model = build_model(checkpoint, dropout=0.0)
    tokenizer = Tokenizer(checkpoint['tokenizer'])
    rows = model.config.vocab_size
    require(tokenizer.vocab_size <= rows,
            f'{path}: {tokenizer.vocab_size} tokens do not fit vocab_size={rows}')
    device = pick_device(device)
    model.to(device, pick_dtype(dtype, device)).eval()
    sampler = None
    if compile:
        sampler = extra('sampling', needed_by='compile').Sampler(compile=True)
    elif fast and extra('sampling'):
        sampler = extra('sampling').Sampler()
    return LanguageModel(model, tokenizer, checkpoint['config'].get('dataset', ''), sampler)


def read_prompt(text: str) -> str:
    """The text itself, or, if it is FILE:path, the content of that file."""
    if not text.startswith('FILE:'):
        return text
    try:
        return Path(text[5:]).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as e:
        raise Error(f'start: cannot read {text[5:]}: {getattr(e, "strerror", None) or e}') from e


# ---- what the script does
def sample_texts(lm: LanguageModel, prompt: str):
    """Print the samples and their speed. A single one is shown while it is generated."""
    tokens, began = 0, time.perf_counter()
    screen = Screen()
    if num_samples == 1:
        screen.write(prompt)
        for text in lm.stream(prompt):
            screen.write(text)
            tokens += 1
        screen.end_line()
    else:
        for row in lm.rows(prompt):
            tokens += len(row)
            screen.write(prompt + lm.tokenizer.decode(row))
            screen.end_line()
            print('-' * 60)
    print(f'{tokens / (time.perf_counter() - began):,.0f} tokens per second', file=sys.stderr)


def hand_over():
    """Run the features of extras/ that the knobs ask for; in fp32, so that they are exact."""
    for name, ending in (('attention', '.png'), ('surprise', '.html')):
        require(not config[name] or config[name].endswith(ending),
                f'{name}={config[name]}: name a file that ends in {ending}')
    lm = load(out_dir, device, 'float32')
    prompt = read_prompt(start)
    if export.endswith('.gguf'):
        extra('gguf', needed_by='export').export_gguf(lm, export)
    elif export:
        extra('hf_export', needed_by='export').export_folder(lm, export)
    if attention:
        extra('attention', needed_by='attention').draw_attention(lm, prompt, attention)
    if surprise:
        extra('surprise', needed_by='surprise').draw_surprise(
            lm, prompt, surprise, dataset, eval_tokens)
    for path in filter(None, (export, attention, surprise)):
        print(f'written: {path}')
    if evaluate:
        extra('evaluation', needed_by='evaluate').print_evaluation(lm, dataset, eval_tokens)
    if compare:
        names = [name.strip() for name in compare.split(',')]
        extra('comparison', needed_by='compare').print_comparison(
            lm, out_dir, names, prompt, dataset, eval_tokens, sampling)


def main():
    instead = [name for name in ('plot', 'attention', 'surprise', 'evaluate', 'compare', 'export')
              if config[name]]
    require(not interactive or not instead, f'interactive excludes {", ".join(instead)}')
    if plot:
        runs = [Path(run.strip()) for run in plot.split(',')]
        extra('plots', needed_by='plot').compare_runs(runs, runs[0] / 'plot.png')
        print(f'written: {runs[0] / "plot.png"}')
    elif instead:
        hand_over()
    else:
        prompt = read_prompt(start)
        talk = extra('interactive', needed_by='interactive').talk if interactive else None
        lm = load(out_dir, device, dtype, fast, compile)
        if compile:
            print('compiling, which takes about half a minute', file=sys.stderr)
            # The third token is the first that the compiled step computes.
            lm.rows(num_samples=1 if interactive else num_samples, max_new_tokens=3)
        if interactive:
            talk(lm, sampling)
        else:
            sample_texts(lm, prompt)


if __name__ == '__main__':
    main()
