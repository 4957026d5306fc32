"""Sample from a trained model: python sample.py [--key=value ...]

In Python: from sample import load; print(load('out').generate('Once upon a time'))."""
from lib.settings import configure

out_dir = 'out'             # a run's folder, a checkpoint, or the folder of a Hugging Face model
start = ''                  # the prompt, or FILE:path to read it from a file; '' = a new document
interactive = False         # read prompts from the keyboard instead of start
num_samples = 3             # number of samples, generated as one batch
max_new_tokens = 300        # maximum tokens per sample; end-of-text ends a sample early
temperature = 0.8           # lower is more conservative, higher more diverse; 0 = greedy
top_k = 0                   # sample from the k most likely tokens; 0 = off
top_p = 1.0                 # nucleus: smallest set of tokens with at least this total p; 1 = off
repetition_penalty = 1.0    # above 1 makes tokens already seen less likely; 1 = off
seed = 1337                 # random seed; sample i uses seed + i
device = 'auto'             # cuda, mps or cpu; auto = the first of these that is available
dtype = 'auto'              # dtype of the weights: bfloat16, float16 or float32; auto = the fastest
compile = False             # torch.compile first (half a minute): much faster for a single sample
settings = configure(globals())
SAMPLING = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'repetition_penalty', 'seed')

# Imported after the settings, so that --help and errors in settings appear immediately.
import sys
import time
from itertools import takewhile
from numbers import Integral, Real
from pathlib import Path

import torch

from lib import checkpoint as checkpoints
from lib.device import pick_device, pick_dtype
from lib.errors import Error, extra, require
from lib.terminal import fit, warn
from lib.tokenizer import Tokenizer, load_tokenizer
from model import GPT


class LanguageModel:
    """A model and its tokenizer. generate, stream and rows take the settings named in SAMPLING as
    keyword arguments, with the same defaults."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, settings: dict | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or {}          # those of the training run

    def generate(self, prompt: str = '', **sampling) -> str:
        """The prompt and its continuation."""
        return prompt + ''.join(self.stream(prompt, **sampling))

    def stream(self, prompt: str = '', **sampling):
        """Yield the continuation as it is generated, in strings of complete characters."""
        steps = self.sample_ids(prompt, num_samples=1, **sampling)
        yield from self.decode(prompt, (ids.item() for ids in steps))

    def decode(self, prompt: str, ids):
        """Yield the text of the ids that follow a prompt, in strings of complete characters."""
        return self.tokenizer.decode_stream(ids, prompt=self.tokenizer.encode(prompt))

    def rows(self, prompt: str = '', num_samples: int = num_samples, **sampling):
        """The ids of several continuations, one list each, without end-of-text."""
        steps = [ids.tolist() for ids in self.sample_ids(prompt, num_samples, **sampling)]
        return [list(takewhile(lambda i: i != self.tokenizer.eot, row)) for row in zip(*steps)]

    def sample_ids(self, prompt: str, num_samples: int = 1, **sampling):
        """Yield the next ids (num_samples,). Raises Error for a bad setting or prompt."""
        require(isinstance(prompt, str), f'the prompt must be a str, not {type(prompt).__name__}')
        sampling = {**{name: settings[name] for name in SAMPLING}, **sampling}
        check_sampling(num_samples=num_samples, **sampling)
        ids = [self.tokenizer.eot, *self.tokenizer.encode(prompt)]      # eot starts a document
        block_size = self.model.config.block_size
        if len(ids) > block_size:
            warn(f'the prompt has {len(ids):,} tokens; only the last {block_size:,} are used')
        idx = torch.tensor([ids] * num_samples, device=self.model.wte.weight.device)
        return self.model.generate(idx, **sampling, eot=self.tokenizer.eot,
                                   n_tokens=self.tokenizer.vocab_size)


def check_sampling(**sampling):
    """Raise Error for a setting that is unknown, not a number, or out of range."""
    for name, value in sampling.items():
        require(name in (*SAMPLING, 'num_samples'),
                f'{name} is not a sampling setting; choose from {", ".join(SAMPLING)}')
        kind = Real if type(settings[name]) is float else Integral
        require(isinstance(value, kind) and type(value) is not bool,
                f'{name}={value!r} must be {"an integer" if kind is Integral else "a number"}')
    for name in ('num_samples', 'max_new_tokens'):
        require(sampling[name] >= 1, f'{name}={sampling[name]} must be at least 1')
    for name in ('temperature', 'top_k', 'seed'):
        require(0 <= sampling[name] < 1 << 63, f'{name}={sampling[name]} is out of range')
    require(0 < sampling['top_p'] <= 1,
            f'top_p={sampling["top_p"]} must be above 0 and at most 1')
    penalty = sampling['repetition_penalty']
    require(0.01 <= penalty <= 100, f'repetition_penalty={penalty} must be between 0.01 and 100')


def load(path='out', device: str = 'auto', dtype: str = 'auto',
         compile: bool = False) -> LanguageModel:
    """Load a model from a run's folder, a checkpoint or a Hugging Face folder, to sample from it.

    Raises Error if there is none."""
    checkpoint = checkpoints.load(path)
    model = checkpoints.build_model(checkpoint, dropout=0.0)
    tokenizer = load_tokenizer(checkpoint['tokenizer'])
    found = pick_device(device)
    model.to(found, pick_dtype(dtype, found)).eval()
    checkpoints.require_finite_logits(model, path)
    if compile:
        model = extra('compiled', needed_by='compile').compile_decoding(model)
    return LanguageModel(model, tokenizer, checkpoint['settings'])


def read_prompt(text: str) -> str:
    """The text itself, or the contents of the file if it is FILE:path."""
    if not text.startswith('FILE:'):
        return text
    try:
        raw = Path(text[5:]).expanduser().read_bytes()
        has_utf16_mark = raw[:2] in (b'\xff\xfe', b'\xfe\xff')
        prompt = raw.decode('utf-16' if has_utf16_mark else 'utf-8-sig')
    except (OSError, UnicodeDecodeError) as e:
        raise Error(f'start: cannot read {text[5:]}: {getattr(e, "strerror", None) or e}') from e
    require('\0' not in prompt, f'start: {text[5:]} is not UTF-8; save it as UTF-8')
    return prompt


# ---- the command
def print_samples(lm: LanguageModel, prompt: str):
    """Print the samples, and the speed on stderr."""
    began = time.perf_counter()
    if num_samples == 1:
        tokens = print_stream(prompt, lm.stream(prompt))
    else:
        tokens = 0
        for row in lm.rows(prompt):
            tokens += len(row)
            text = prompt + ''.join(lm.decode(prompt, row))
            print('\n'.join(map(fit, text.split('\n'))), '-' * 60, sep='\n')
    print(f'{tokens / (time.perf_counter() - began):,.0f} tokens per second', file=sys.stderr)


def print_stream(prompt: str, texts) -> int:
    """Print a prompt and its continuation as it is generated. Returns the number of tokens."""
    tokens = -1                                 # one string per token, plus the rest at the end
    print(prompt, end='')
    for text in texts:
        print(text, end='', flush=True)
        tokens += 1
    print()
    return tokens


def talk(lm: LanguageModel):
    """Continue each line typed at the keyboard until an empty line, Ctrl-C or Ctrl-D."""
    print('Type a prompt. An empty line quits.')
    while True:
        try:
            prompt = input('> ')
        except (EOFError, KeyboardInterrupt):
            prompt = ''
        if not prompt:
            break
        try:
            print_stream('', lm.stream(prompt))
        except KeyboardInterrupt:               # stops this completion, not the loop
            print()
        except Error as e:                      # e.g. a character not in the alphabet
            print(f'error: {e}', file=sys.stderr)


def main():
    prompt = read_prompt(start)
    lm = load(out_dir, device, dtype, compile)
    if interactive:
        talk(lm)
    else:
        print_samples(lm, prompt)


if __name__ == '__main__':
    main()
