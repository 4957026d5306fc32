"""Greedy continuations in every installed engine: python tests/engines.py

Small random models continue five prompts by 100 tokens. The table counts the prompts that an engine
continues exactly as GPT.generate does."""
import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ |= {'HF_HUB_OFFLINE': '1', 'VLLM_LOGGING_LEVEL': 'ERROR', 'VLLM_CPU_KVCACHE_SPACE': '1'}

from extras.export import export
from lib import checkpoint as checkpoints
from lib.errors import Error
from lib.settings import ROOT
from lib.tokenizer import Tokenizer, load_tokenizer
from model import GPT, GPTConfig
from sample import LanguageModel, load
from text.vocabulary import train_bpe

N, CONTEXT = 100, 256
HOSTILE = ("\t  'LL's \u0661\u0662 e\u0301\u0e01\u0e47 \U0001f469\u200d\U0001f680\u3000\x7f\r\n"
           '<|endoftext <|im_end|> ')
PROMPTS = ['', 'Once upon a time ', "It's 1234567890 dogs\nof \u65e5\u672c. ", HOSTILE,
           'the cat sat here. ' * 8]              # with N more, it fits into the context
SAMPLE = ['--num_samples=1', f'--max_new_tokens={N}', '--temperature=0', '--dtype=float32',
          '--device=cpu']
KINDS = ('bpe', 'gpt2', 'char', 'hf')


def make_tokenizer(kind: str) -> Tokenizer:
    bpe = train_bpe(PROMPTS * 4, 320)
    if kind == 'bpe':
        return load_tokenizer(bpe)
    if kind == 'char':
        return load_tokenizer({'kind': 'char', 'alphabet': ''.join(sorted(set(''.join(PROMPTS))))})
    if kind == 'gpt2':
        return load_tokenizer({'kind': 'gpt2'})
    unsplit = bpe['json'].replace('"use_regex":true', '"use_regex":false')     # into words
    return load_tokenizer({'kind': 'hf', 'json': unsplit, 'eot': load_tokenizer(bpe).eot})


class Case:
    """A model in each of its forms, and prompts with their continuations."""

    def __init__(self, arch: str, kind: str):
        self.tokenizer = make_tokenizer(kind)
        config = GPTConfig(self.tokenizer.vocab_size, arch, CONTEXT, n_layer=2, n_head=4,
                           n_embd=128, n_kv_head=2 if arch == 'qwen3' else 0, bias=arch == 'gpt2')
        for seed in range(1000):
            self.prompts = []                   # (text, its ids, the ids that follow) of each
            torch.manual_seed(seed)
            self.model = GPT(config).eval()
            for p in self.model.parameters():   # logits as far apart as those of a trained model
                torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0, 0.25)
            if all(self.add(prompt) for prompt in PROMPTS):
                break
        self.texts, self.ids, _ = zip(*self.prompts)
        self.lm = LanguageModel(self.model, self.tokenizer)
        checkpoints.save('out/best.pt', self.model, tokenizer=self.tokenizer.spec, settings={})
        export(self.lm, 'folder')

    @torch.no_grad()
    def add(self, prompt: str) -> bool:
        """Add the prompt, perhaps with a number at its end. Returns whether there is one where
        rounding decides no token."""
        for text in [prompt] + [f'{prompt}{i}' for i in range(20) if prompt]:
            ids = [self.tokenizer.eot, *self.tokenizer.encode(text)]
            steps = self.model.generate(torch.tensor([ids]), N, 0, eot=self.tokenizer.eot)
            new = [int(i) for i in steps]
            logits = self.model(torch.tensor([ids + new]))[0, len(ids) - 1:-1]
            first, second = logits.topk(2).values.T
            is_clear = ((first - second) / logits.std()).min() > 0.003
            if len(new) == N and len(set(new)) > 9 and is_clear:
                self.prompts.append((text, ids, new))
                return True
        return False


# ---- engines: each yields whole texts, or the ids that follow
def sample_py(case):
    for text in case.texts:
        sys.argv = ['sample.py', f'--start={text}', *SAMPLE]
        shown, ignored = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(ignored):
            runpy.run_path(str(ROOT / 'sample.py'), run_name='__main__')
        yield shown.getvalue().removesuffix('\n')


def generate(case, path='out'):
    lm = load(path, 'cpu', 'float32')
    for text in case.texts:
        yield lm.generate(text, max_new_tokens=N, temperature=0)


def from_folder(case):
    return generate(case, 'folder')


def transformers(case, model=None):
    from transformers import AutoModelForCausalLM
    model = model or AutoModelForCausalLM.from_pretrained('folder').eval()
    for ids in case.ids:
        idx = torch.tensor([ids])
        new = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=N,
                             do_sample=False)
        yield new[0, len(ids):].tolist()


def pipeline(case):
    from transformers import pipeline
    pipe = pipeline('text-generation', model='folder', device='cpu')
    for text in case.texts:
        found = pipe(text, max_new_tokens=N, do_sample=False, clean_up_tokenization_spaces=False)
        yield found[0]['generated_text']


def serve(case):
    main = 'from transformers.cli.transformers import main; main()'
    server = subprocess.Popen([sys.executable, '-c', main, 'serve', '--port=8765'],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for text in case.texts:
            answer = post('http://localhost:8765/v1/completions', model=os.path.abspath('folder'),
                          prompt=text, temperature=0, max_tokens=N)
            yield text + answer['choices'][0]['text']
    finally:
        server.kill()


def post(url, **body):
    """The answer of a server, which may still be starting."""
    content = json.dumps(body).encode()
    request = urllib.request.Request(url, content, {'Content-Type': 'application/json'})
    for _ in range(60):
        try:
            return json.load(urllib.request.urlopen(request, timeout=120))
        except OSError as e:
            if 'refused' not in str(e):
                raise
            time.sleep(1)


def llama_cpp(case):
    import xllamacpp
    export(case.lm, 'model.gguf')
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.port, p.verbosity = 'model.gguf', CONTEXT, 1, 0, 0
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # flash attention computes in fp16
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    for prompt in case.texts:
        body = dict(prompt=prompt, temperature=0, n_predict=N, return_tokens=True)
        yield post(server.listening_address + '/completion', **body)['tokens']


def vllm(case):
    from vllm import LLM, SamplingParams
    llm = LLM(os.path.abspath('folder'), dtype='float32', enforce_eager=True,
              max_model_len=CONTEXT)
    greedy = SamplingParams(temperature=0, max_tokens=N)
    for answer in llm.generate(list(case.texts), greedy, use_tqdm=False):
        yield list(answer.outputs[0].token_ids)


def ctranslate2(case):
    import ctranslate2
    ctranslate2.converters.TransformersConverter('folder').convert('converted', force=True)
    names = json.loads(Path('converted/vocabulary.json').read_text(encoding='utf-8'))
    generator = ctranslate2.Generator('converted')
    for ids in case.ids:
        tokens = [[names[i] for i in ids]]
        answer, = generator.generate_batch(tokens, max_length=N, include_prompt_in_result=False)
        yield answer.sequences_ids[0]


def merged_lora(case):
    """A random LoRA, merged by peft, makes a different model: compare transformers with it here."""
    import peft
    from transformers import AutoModelForCausalLM
    config = peft.LoraConfig(target_modules='all-linear', init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained('folder').eval()
    merged = peft.get_peft_model(model, config).merge_and_unload()
    export(case.lm, 'merged')                               # for the tokenizer
    merged.save_pretrained('merged')
    answers = zip(case.prompts, transformers(case, merged), generate(case, 'merged'))
    for (text, _, new), there, here in answers:
        yield new if here == text + case.tokenizer.decode(there) else []


ENGINES = {             # name: the function, and the packages that it needs
    'sample.py': (sample_py, ''), 'load': (generate, ''), 'folder': (from_folder, ''),
    'transformers': (transformers, 'transformers'), 'pipeline': (pipeline, 'transformers'),
    'serve': (serve, 'transformers fastapi uvicorn openai accelerate'),
    'vLLM': (vllm, 'vllm'), 'llama.cpp': (llama_cpp, 'xllamacpp gguf'),
    'ctranslate2': (ctranslate2, 'ctranslate2 transformers'),
    'merged LoRA': (merged_lora, 'peft transformers')}


def count(case, engine) -> str:
    """'4/5': of five prompts, four continue the same. '-': the engine does not support the
    tokenizer."""
    try:
        same = [found in (new, text + case.tokenizer.decode(new))
                for (text, _, new), found in zip(case.prompts, engine(case))]
    except Exception as e:                                  # engines raise anything
        return '-' if isinstance(e, Error) else f'{type(e).__name__}: {str(e)[:80]!r}'
    return f'{sum(same)}/{len(same)}'


def main():
    usable = {name: engine for name, (engine, needs) in ENGINES.items()
              if all(map(find_spec, needs.split()))}
    distributions = packages_distributions()
    found = {distributions[package][0] for name in usable for package in ENGINES[name][1].split()}
    print(', '.join(f'{name} {version(name)}' for name in sorted(found)), '\n')
    print('| model |', *(f'{name} |' for name in usable), '\n|---' + '|---' * len(usable) + '|')
    for arch, kind in [(arch, kind) for arch in ('gpt2', 'qwen3') for kind in KINDS]:
        # a folder each, as vLLM caches tokenizers by path
        with tempfile.TemporaryDirectory() as own, contextlib.chdir(own):
            case = Case(arch, kind)
            counts = [f'{count(case, engine)} |' for engine in usable.values()]
            print(f'| {arch}, {kind} |', *counts, flush=True)
    for name in ENGINES.keys() - usable.keys():
        print(f'skipped: {name}, which needs {ENGINES[name][1]}')


if __name__ == '__main__':
    main()
