"""Sample from a trained model, talk to it, measure, compare, export it. python sample.py [--knob=value ...]

In Python: `from sample import load; print(load('out').generate('Once upon a time', max_new_tokens=100))`."""
from config import Error, atomic, configure, require, setup

out_dir = 'out'             # the run to sample from, a checkpoint, or the folder of a Hugging Face model
start = ''                  # the prompt, or FILE:path to read it from; '' = begin a new document
num_samples = 3             # samples to draw, all at once
max_new_tokens = 300        # most tokens of a sample; it ends earlier at its end-of-text
temperature = 0.8           # below 1 safer, above 1 wilder, 0 = always the likeliest token
top_k = 0                   # only among the k likeliest tokens; 0 = off
top_p = 1.0                 # only among the likeliest tokens that make up this probability; 1 = off
repetition_penalty = 1.0    # above 1, tokens that occurred already become less likely
seed = 1337                 # sample i is drawn with seed + i
interactive = False         # read prompts from the keyboard until an empty line
plot = ''                   # draw the losses of these runs (A,B,...) into plot.png of the first
attention = ''              # draw the attention of every layer and head in `start`: FILE.png
surprise = ''               # show how unexpected each token of `start` (or a held-out text) is: FILE.html
evaluate = False            # measure the loss on the validation text, and how much samples copy
compare = ''                # measure it and Hugging Face models (names or folders, A,B,...) on that text
dataset = ''                # data/NAME that has the validation text; '' = what the model was trained on
eval_tokens = 0             # tokens of the validation text to measure on; 0 = all
export = ''                 # write a folder for Hugging Face, or if it ends in .gguf a file for llama.cpp
device = 'auto'             # auto (cuda, mps or cpu), or one of them by name
dtype = 'auto'              # bfloat16, float16 or float32, to sample in; auto = the best that is native
compile = False             # compile first, half a minute: then a text comes several times faster
config = configure(globals())

import contextlib
import csv
import json
import math
import os
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Surprise</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"><style>
body { font: 17px/1.9 Georgia, serif; max-width: 42rem; margin: 2rem auto 11rem; padding: 0 1rem }
p, small { font: 14px/1.6 ui-monospace, monospace }
main, small { white-space: pre-wrap; overflow-wrap: anywhere }
span { position: relative; border-radius: 3px; background: rgb(255 100 0 / calc(.07 * min(10, var(--bits)))) }
span:hover, span:focus { outline: 2px solid #ff6400 }
small { display: none; position: absolute; left: 0; top: 1.7em; z-index: 1; width: 12rem; padding: .5em .8em;
        background: Canvas; border: 1px solid; border-radius: 6px }
span:hover small, span:focus small { display: block }
s { text-decoration: none; opacity: .4 } s::before { content: "\\21b5" }
@media (max-width: 60rem) { small { position: fixed; inset: auto 0 0 0; width: auto } }
</style><p>%s of <span style="--bits:0">&nbsp;0&nbsp;</span><span style="--bits:5">&nbsp;5&nbsp;</span><span
style="--bits:10">&nbsp;10&nbsp;</span> bits: the model gave it a chance of 1 in 2<sup>bits</sup>.
Point at a token to see what the model expected in its place. &lt;eot&gt; ends a text.</p>
<main>%s</main></html>
"""


@dataclass
class LanguageModel:
    """A trained model with its tokenizer: generate() returns text, stream() yields it as it comes."""
    model: object
    tokenizer: object
    dataset: str = ''           # what it was trained on

    def ids(self, prompt: str, num_samples: int = 1, max_new_tokens: int = 300, temperature: float = 0.8,
            top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0, seed: int = 1337):
        """Yield the next ids (num_samples,) after end-of-text and the prompt."""
        import torch
        require(min(num_samples, max_new_tokens) >= 1 and min(temperature, top_k, seed) >= 0,
                'num_samples, max_new_tokens are at least 1; temperature, top_k, seed at least 0')
        require(0 < top_p <= 1 and 0.01 <= repetition_penalty <= 100,
                'top_p is above 0 and at most 1; repetition_penalty is 0.01 to 100')
        eot = self.tokenizer.eot
        idx = torch.tensor([[eot, *self.tokenizer.encode(prompt)]] * num_samples)
        return self.model.generate(idx.to(self.model.wte.weight.device), max_new_tokens, temperature, top_k,
                                   top_p, repetition_penalty, eot, seed)

    def generate(self, prompt: str = '', **knobs) -> str:
        """The prompt and its continuation; knobs as in sample.py, except num_samples."""
        return prompt + ''.join(self.stream(prompt, **knobs))

    def stream(self, prompt: str = '', **knobs):
        """Yield the continuation piece by piece, each a string of whole characters."""
        yield from self.pieces(next_id.item() for next_id in self.ids(prompt, **knobs))

    def pieces(self, ids):
        """Yield the text that each id adds, '' while its character's bytes are still to come, and a rest."""
        seen, text = [], ''
        for i in ids:
            seen.append(i)
            longer = self.tokenizer.decode(seen)
            if longer.endswith('\ufffd'):
                yield ''
            else:
                yield longer[len(text):]
                seen, text = [i], self.tokenizer.decode([i])        # the next may depend on this one
        yield self.tokenizer.decode(seen)[len(text):]

    def rows(self, prompt: str = '', **knobs) -> list[list[int]]:
        """The ids of num_samples continuations, without their end-of-text."""
        steps = [ids.tolist() for ids in self.ids(prompt, **knobs)]
        return [list(takewhile(lambda i: i != self.tokenizer.eot, row)) for row in zip(*steps)]

    def label(self, i: int) -> str:
        """What an id looks like where spaces and line ends must be seen."""
        return repr(self.tokenizer.decode([i]))[1:-1].replace(' ', '·') or '<eot>'


def read_weights(place, *needed: str, hub: bool = False) -> dict:
    """What load_checkpoint reads, from a file, the best or else last model of a run's folder, or a model of
    Hugging Face: a folder or, with hub, a name. Error if there is none, or if its tokenizer does not fit."""
    from model import from_hf, load_checkpoint
    from prepare import Tokenizer, read_tokenizer
    files = (place, os.path.join(place, 'best.pt'), os.path.join(place, 'ckpt.pt'))
    found = next(filter(os.path.isfile, files), None)
    if not found and (hub or os.path.isfile(os.path.join(place, 'config.json'))):
        checkpoint = from_hf(place) | {'tokenizer': read_tokenizer(str(place)), 'config': {}}
    else:
        checkpoint = load_checkpoint(found or place, *needed)
    tokens = Tokenizer.from_spec(checkpoint['tokenizer']).vocab_size
    rows = checkpoint['model_config']['vocab_size']
    require(tokens <= rows, f'{place}: {tokens} tokens do not fit vocab_size={rows}')
    return checkpoint


def load(path='out', device: str = 'auto', dtype: str = 'auto', compile: bool = False) -> LanguageModel:
    """The model that read_weights finds at path, ready to generate."""
    from model import model_from
    from prepare import Tokenizer
    place, number, _ = setup(device, dtype, 0)
    checkpoint = read_weights(path, 'config')
    model = model_from(checkpoint, dropout=0.0).to(place, number).eval()
    model.pack()
    if compile:
        model.compile_step()
    return LanguageModel(model, Tokenizer.from_spec(checkpoint['tokenizer']),
                         checkpoint['config'].get('dataset', ''))


def read_prompt(text: str) -> str:
    if not text.startswith('FILE:'):
        return text
    try:
        return Path(text[5:]).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as e:
        raise Error(f'start: cannot read {text[5:]}: {getattr(e, "strerror", 0) or e}') from e


def plot_losses(runs: list, path, floor: float | None = None):
    """Draw each run's log.csv, and the floor in nats per token where known, into a picture at `path`."""
    from matplotlib.figure import Figure
    figure = Figure((8, 4.5), layout='constrained')
    axes = figure.subplots()
    rate = axes.twinx()
    for i, run in enumerate(runs):
        try:
            with open(Path(run) / 'log.csv', newline='', encoding='utf-8') as f:
                rows = list(csv.DictReader(f))
        except OSError as e:
            raise Error(f'{run}/log.csv: {e.strerror}; plot takes the out_dir of runs: A,B,...') from e
        require(not rows or {'step', 'train_loss', 'val_loss', 'lr'} <= {*rows[0]},
                f'{run}/log.csv is not a log of train.py: its columns are others')
        for column, label, axis, style in (
                ('train_loss', 'train loss, in windows cut anywhere', axes, dict(lw=0.8, alpha=0.45)),
                ('val_loss', 'val loss, in whole documents', axes, dict(marker='o', ms=3)),
                ('lr', None, rate, dict(lw=0.8, ls=':'))):
            points = [(int(row['step']), float(row[column])) for row in rows if row[column]]
            if axis is axes:                                                # the first steps are no news
                points = [(step, loss) for step, loss in points if loss <= 3 * points[-1][1]]
            axis.plot(*zip(*points), color=f'C{i}', label=label and f'{run}: {label}', **style)
    if floor:
        axes.axhline(floor, color='black', lw=1, ls='--', label='floor: the entropy of the text')
    axes.set(xlabel='step', ylabel='nats per token')
    axes.set_ylim(bottom=0)
    rate.set_ylabel('learning rate, dotted')
    axes.legend(*axes.get_legend_handles_labels(), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format='png', dpi=110)


def attention_weights(model, ids) -> list:
    """The weights (H, T, T) of each layer for ids (1, T): how much row i takes from each token up to i.

    Fused attention never holds them, but it returns them where the values are an identity matrix."""
    from unittest.mock import patch

    import torch
    import torch.nn.functional as F
    layers, attend = [], F.scaled_dot_product_attention

    def keep(q, k, v, *mask, **options):
        identity = torch.eye(ids.shape[1], dtype=v.dtype, device=v.device).expand(*v.shape[:2], -1, -1)
        layers.append(attend(q, k, identity, *mask, **options)[0])
        return attend(q, k, v, *mask, **options)

    with torch.inference_mode(), patch.object(F, 'scaled_dot_product_attention', keep):
        model(ids)
    return layers


def draw_attention(lm: LanguageModel, prompt: str, path):
    """Draw the attention of each layer (down) and head (across) in the prompt into a picture at `path`."""
    import torch
    from matplotlib.figure import Figure
    c, ids = lm.model.config, [lm.tokenizer.eot, *lm.tokenizer.encode(prompt)]
    T, most = len(ids), min(64, c.block_size)
    if not 2 <= T <= most:
        raise Error(f'attention draws a start of 1 to {most - 1} tokens, and this one has {T - 1}: set start')
    side = max(1.6, 0.11 * T)                               # inches
    figure = Figure((c.n_head * side + 1, c.n_layer * side + 1), layout='compressed')
    figure.supylabel('each token', fontsize=9)
    figure.supxlabel('what it looks at: the darker, the more', fontsize=9)
    axes = figure.subplots(c.n_layer, c.n_head, sharex=True, sharey=True, squeeze=False)
    layers = attention_weights(lm.model, torch.tensor([ids], device=lm.model.wte.weight.device))
    style = dict(labels=[lm.label(i) for i in ids], fontsize=7, parse_math=False)
    for layer, (row, weights) in enumerate(zip(axes, layers), 1):
        for head, (axis, w) in enumerate(zip(row, weights.cpu()), 1):
            past = torch.ones_like(w).tril() > 0
            axis.imshow(w.sqrt().where(past, math.nan).numpy(), cmap='Blues', vmin=0, vmax=1)
            axis.set_facecolor('0.92')                      # the future
            axis.set_title(f'layer {layer}, head {head}', fontsize=9)
            axis.set_xticks(range(T), rotation=90, **style)
            axis.set_yticks(range(T), **style)
    with atomic(path) as temporary:
        figure.savefig(temporary, format='png', dpi=110)


def token_surprise(lm: LanguageModel, ids: list[int]) -> list:
    """For each id (its surprise, -log2 of its probability; what was likeliest: 5 probabilities, 5 ids).

    Each is read after end-of-text and what precedes it, at least half a context where there is as much."""
    import torch
    stream = torch.tensor([lm.tokenizer.eot, *ids], device=lm.model.wte.weight.device)
    x, y, surprises, T = stream[:-1], stream[1:], [], lm.model.config.block_size
    half = max(1, T // 2)
    for a in range(0, len(ids), half):
        start = max(0, a + half - T)
        with torch.inference_mode():
            logp = lm.model(x[None, start:a + half])[0, a - start:].float().log_softmax(-1)     # (half, V)
        bits = -logp.gather(1, y[a:a + half, None])[:, 0] / math.log(2)
        best = logp.topk(min(5, logp.shape[1]))
        surprises += zip(bits.tolist(), best.values.exp().tolist(), best.indices.tolist())
    return surprises


def draw_surprise(lm: LanguageModel, prompt: str, path):
    """Write a page of the prompt, or of the first validation document, coloured by each token's surprise."""
    ids = (lm.tokenizer.encode(prompt) if prompt else validation_text(lm)[3][0].tolist())[:2000]
    *pieces, rest = lm.pieces(ids)
    surprises = token_surprise(lm, ids)
    spans, bits, tip = '', 0.0, ''
    for i, piece, (surprise, *best) in zip(ids, pieces, surprises):
        bits += surprise
        tip = tip or '\n'.join(f'{p:6.1%}  {lm.label(j)}' for p, j in zip(*best))
        if text := lm.label(i) if i == lm.tokenizer.eot else piece:     # else its character is not whole yet
            text = escape(text).replace('\n', '<s>\n</s>')
            spans += (f'<span tabindex="0" style="--bits:{bits:.1f}">{text}'
                      f'<small>{bits:.1f} bits; expected:\n{escape(tip)}</small></span>')
            bits, tip = 0.0, ''
    total, size = sum(bits for bits, *_ in surprises), len((''.join(pieces) + rest).encode())
    about = f'{len(ids):,} tokens, {total / len(ids):.2f} bits each, {total / size:.2f} per byte. A surprise'
    with atomic(path) as temporary:
        temporary.write_text(PAGE % (about, spans + escape(rest)), encoding='utf-8')


def validation_text(lm: LanguageModel):
    """meta.json, training ids, validation ids (N,) and the documents among those, of the model's dataset.

    Each document ends with its end-of-text; one that is cut counts only if it is alone."""
    import torch

    from prepare import Tokenizer, open_dataset
    name = dataset or lm.dataset
    require(name, 'this model does not say what it was trained on: set dataset')
    meta, train, val = open_dataset(name)
    if Tokenizer.from_spec(meta['tokenizer']) != lm.tokenizer:
        raise Error(f'data/{name} has another tokenizer than the model: set another dataset')
    ids = torch.from_numpy(val[:eval_tokens or None].astype('int64'))
    ends = (ids == meta['eot']).nonzero()[:, 0] + 1
    return meta, train, ids, ids.tensor_split(ends)[:len(ends) or 1]


def longest_overlap(rows: list, train):
    """The longest run of ids (n,) of one of the rows that stands in train (N,), read piece by piece."""
    import numpy as np

    def hashes(ids, n):                                     # of all runs of n ids, modulo 2**64
        total = np.zeros(max(0, len(ids) - n + 1), np.uint64)
        for i in range(n):
            total = total * np.uint64(0x9E3779B97F4A7C15) + ids[i:i + len(total)]
        return total

    ids = np.concatenate([[*row, 1 << 32] for row in rows]).astype(np.uint64)   # no run goes past a row's end
    best, longest = ids[:0], max(map(len, rows))
    for start in range(0, len(train), 1 << 16):
        piece = train[start:start + (1 << 16) + longest].astype(np.uint64)
        while (found := np.isin(hashes(ids, len(best) + 1), hashes(piece, len(best) + 1))).any():
            best = ids[found.argmax():][:len(best) + 1]
    return best.tolist()


def print_loss(lm: LanguageModel, autocast):
    """Print the validation loss, measured as in training, its perplexity, bits per byte and floor."""
    from model import evaluate as mean_loss
    from model import pack_documents
    meta, train, ids, documents = validation_text(lm)
    loss = mean_loss(lm.model, *pack_documents(ids, meta['eot'], lm.model.config.block_size), 8, autocast)
    val = meta['val']
    print(f'loss        {loss:.4f} nats per token, of {len(ids):,} tokens\nperplexity  {math.exp(loss):.3f}')
    print(f'bits/byte   {loss * val["tokens"] / val["bytes"] / math.log(2):.4f}')
    if val['entropy'] and not eval_tokens:
        floor = val['entropy'] / val['tokens']
        print(f'floor       {floor:.4f} nats per token, the entropy of the text: {loss / floor - 1:+.1%}')
    held_out = [document[:-1][:300].tolist() for document in documents[:20]]
    samples = lm.rows(num_samples=20, temperature=temperature, seed=seed)
    for name, rows in (('samples', samples), ('held-out documents', held_out)):
        run = longest_overlap(rows, train)
        text = lm.tokenizer.decode(run)
        print(f'overlap     {len(run)} tokens, {len(text.split())} words of a training text, at most, in '
              f'{len(rows)} {name}: {text[:60]!r}')


def print_comparison(lm: LanguageModel, names: list[str], prompt: str, place, autocast):
    """Print a table of this and other Hugging Face models, all run by transformers in the same way.

    Each reads the validation documents in its own tokens, whole where they fit into its context (1,024 tokens
    at most are used), each after its beginning-of-text, else end-of-text. The nats of all their tokens are
    divided by the bytes of the text. The ends of documents do not count, as not every model knows them."""
    import torch
    import torch.nn.functional as F

    from model import pack_documents
    require(find_spec('transformers'), 'compare needs transformers: pip install transformers')
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = [lm.tokenizer.decode(document) for document in validation_text(lm)[3]]
    bits = math.log(2) * sum(len(text.encode()) for text in texts)
    prompt, samples = prompt or ' '.join(texts[0].split()[:5]), ''
    print(f'{"model":32}{"parameters":>16}{"bits per byte":>16}{"tokens/s":>12}')
    with tempfile.TemporaryDirectory() as ours, torch.inference_mode(), autocast():
        export_hf(lm, ours)
        for name, source in [*zip(names, names), (out_dir, ours)]:
            try:
                hf = AutoModelForCausalLM.from_pretrained(source, dtype='float32', trust_remote_code=False)
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
                if begin is None:
                    raise ValueError('its tokenizer has no token to begin a text with')
                *rows, first = (tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
                                for text in (*texts, prompt))
                stream = torch.tensor([i for row in rows for i in (*row, begin)])
            except Exception as e:
                raise Error(f'compare={name}: {type(e).__name__}: {str(e)[:150]}') from e
            hf = hf.to(place).eval()
            T = min(1024, getattr(hf.config, 'max_position_embeddings', None) or 1024)
            x, y = pack_documents(stream, begin, T)
            y[y == begin] = -1
            nats, step = 0.0, max(1, 2048 // T)
            for a, b in zip(x.to(place).split(step), y.to(place).split(step)):
                logits = hf(a, use_cache=False).logits.float().flatten(0, 1)
                nats += F.cross_entropy(logits, b.flatten(), ignore_index=-1, reduction='sum').item()
            torch.manual_seed(seed)
            idx, clock = torch.tensor([[begin, *first[:T // 2]]], device=place), time.perf_counter()
            ids = hf.generate(idx, attention_mask=torch.ones_like(idx), pad_token_id=begin,
                              max_new_tokens=min(max_new_tokens, T - idx.shape[1]), do_sample=temperature > 0,
                              temperature=temperature or None, top_k=top_k, top_p=top_p,
                              repetition_penalty=repetition_penalty)[0, idx.shape[1]:]
            speed = len(ids) / (time.perf_counter() - clock)
            print(f'{name[-31:]:32}{hf.num_parameters():16,}{nats / bits:16.4f}{speed:12,.0f}')
            samples += f'\n{name}: {prompt}{tokenizer.decode(ids, skip_special_tokens=True)}\n'
    print(samples, end='')


def tokenizer_json(spec: dict) -> str:
    """A tokenizer.json that gives the same ids as the tokenizer of this spec."""
    if 'json' in spec:
        return spec['json']
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    if spec['kind'] == 'char':
        hf = Tokenizer(models.WordLevel({c: i for i, c in enumerate(spec['alphabet'])}))
        hf.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
        hf.decoder = decoders.Fuse()
    else:                       # gpt2 numbers the bytes, then the merges, of a file that tiktoken has fetched
        from tiktoken.load import read_file_cached
        lines = read_file_cached('https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe')
        merges = [tuple(line.split()) for line in lines.decode().splitlines()[1:]]
        tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
        hf = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(['<|endoftext|>'])
    return hf.to_str()


def export_hf(lm: LanguageModel, folder):
    """Write the config, weights and tokenizer that transformers, vLLM and others load."""
    from safetensors.torch import save
    from tokenizers import Tokenizer

    from model import to_hf
    eot, tokenizer = lm.tokenizer.eot, tokenizer_json(lm.tokenizer.spec)
    end = Tokenizer.from_str(tokenizer).id_to_token(eot)
    hf_config, tensors = to_hf(lm.model, eot)
    settings = {'config.json': hf_config,
                'generation_config.json': {'bos_token_id': eot, 'eos_token_id': eot, 'pad_token_id': eot},
                'tokenizer_config.json': {
                    'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': end, 'eos_token': end,
                    'clean_up_tokenization_spaces': False, 'model_max_length': lm.model.config.block_size}}
    files = {name: json.dumps(content, indent=2).encode() for name, content in settings.items()}
    files |= {'model.safetensors': save(tensors, {'format': 'pt'}), 'tokenizer.json': tokenizer.encode()}
    seals = {name: f'{zlib.crc32(content):08x}' for name, content in files.items()}     # for from_hf
    for name, content in (files | {'checksums.json': json.dumps(seals, indent=2).encode()}).items():
        with atomic(Path(folder, name)) as path:
            path.write_bytes(content)


def export_gguf(lm: LanguageModel, path: str):
    """Write a file for llama.cpp, in fp32. Error if llama.cpp does not split text as this tokenizer does."""
    require(find_spec('gguf'), 'export to GGUF needs gguf: pip install gguf')
    from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map

    from model import to_hf
    c, eot = lm.model.config, lm.tokenizer.eot
    bpe = json.loads(tokenizer_json(lm.tokenizer.spec))
    split = bpe['pre_tokenizer'] or {}
    if not (bpe['model']['type'] == 'BPE' and not bpe['normalizer'] and split.get('type') == 'ByteLevel'
            and split.get('use_regex', True) and not split.get('add_prefix_space')):
        raise Error(f'export={path}: llama.cpp can only split text as GPT-2 does, and this '
                    f'{lm.tokenizer.spec["kind"]} tokenizer does not; exporting to a folder works')
    vocab = {i: (token, TokenType.NORMAL) for token, i in bpe['model']['vocab'].items()}
    vocab |= {token['id']: (token['content'], TokenType.CONTROL) for token in bpe['added_tokens']}
    tokens, kinds = zip(*(vocab.get(i, (f'[PAD{i}]', TokenType.UNUSED)) for i in range(c.vocab_size)))
    merges = [m if isinstance(m, str) else ' '.join(m) for m in bpe['model']['merges']]
    names = get_tensor_name_map(MODEL_ARCH[c.arch.upper()], c.n_layer)
    with atomic(path) as temporary:
        writer = GGUFWriter(temporary, c.arch)
        for field, value in dict(
                name=Path(path).stem, context_length=c.block_size, embedding_length=c.n_embd,
                block_count=c.n_layer, feed_forward_length=c.n_inner, head_count=c.n_head,
                head_count_kv=c.n_kv_head, key_length=c.head_dim, value_length=c.head_dim,
                rope_freq_base=c.rope_theta, layer_norm_eps=c.norm_eps, layer_norm_rms_eps=c.norm_eps,
                tokenizer_model='gpt2', tokenizer_pre='gpt-2', token_list=tokens, token_types=kinds,
                token_merges=merges, bos_token_id=eot, eos_token_id=eot,
                add_bos_token=True).items():            # a prompt begins a document, as it does here
            getattr(writer, f'add_{field}')(value)
        for name, tensor in to_hf(lm.model, eot)[1].items():
            tensor = tensor.t().contiguous() if c.arch == 'gpt2' and '.c_' in name else tensor
            writer.add_tensor(names.get_name(name, ('.weight', '.bias')), tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def main():
    if plot:
        runs = plot.split(',')
        plot_losses(runs, Path(runs[0]) / 'plot.png')
        print(f'written: {Path(runs[0]) / "plot.png"}')
        return
    for key, ending in (('attention', '.png'), ('surprise', '.html')):
        require(not config[key] or config[key].endswith(ending),
                f'{key}={config[key]}: name a file that ends in {ending}')
    prompt = read_prompt(start)
    exact = export or attention or surprise or evaluate or compare      # not sampled, but measured or shown
    lm = load(out_dir, device, 'float32' if exact else dtype, compile and not exact)
    place, _, autocast = setup(device, dtype, seed)
    if export:
        (export_gguf if export.endswith('.gguf') else export_hf)(lm, export)
    if attention:
        draw_attention(lm, prompt, attention)
    if surprise:
        draw_surprise(lm, prompt, surprise)
    for path in filter(None, (export, attention, surprise)):
        print(f'written: {path}')
    if evaluate:
        print_loss(lm, autocast)
    if compare:
        print_comparison(lm, compare.split(','), prompt, place, autocast)
    if exact:
        return

    if compile:
        print('compiling, which takes about half a minute', file=sys.stderr)
        lm.rows(num_samples=1 if interactive else num_samples, max_new_tokens=2)
    names = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'repetition_penalty', 'seed')
    knobs = {k: config[k] for k in names}
    tokens, clock = 0, time.perf_counter()
    if num_samples != 1 and not interactive:
        for row in lm.rows(prompt, num_samples=num_samples, **knobs):
            tokens += len(row)
            print(prompt + lm.tokenizer.decode(row) + '\n' + '-' * 80)
    else:
        if interactive:
            print('Write the beginning of a text and press Enter; an empty line ends.')
        with contextlib.suppress(EOFError):
            for text in iter(lambda: input('> '), '') if interactive else [prompt]:
                print('' if interactive else text, end='')
                try:
                    for piece in lm.stream(text, **knobs):
                        tokens += 1
                        print(piece, end='', flush=True)
                    print()
                except Error as e:              # such as of a character that the model does not know
                    if not interactive:
                        raise
                    print(f'error: {e}', file=sys.stderr)
    if not interactive:
        print(f'{tokens / (time.perf_counter() - clock):,.0f} tokens per second', file=sys.stderr)


if __name__ == '__main__':
    main()
