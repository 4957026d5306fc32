"""The same words everywhere: python tests/engines.py

Small random models continue five prompts by 100 greedy tokens in every engine that is installed. The table
counts the prompts that continue as by GPT.generate, of those that the engine takes. One is longer than the
window: engines that take ids get what is read of it here, its last half window."""
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

from config import Error
from data.tokenizer import Tokenizer, train_bpe
from extras.gguf import export_gguf
from extras.hf_export import export_folder
from model import GPT, GPTConfig, save_checkpoint
from sample import LanguageModel, load

N, WINDOW = 100, 256
HOSTILE = "\t  'LL's \u0661\u0662 e\u0301\u0e01\u0e47 \U0001f469\u200d\U0001f680\u3000\x7f\r\n<|endoftext <|im_end|> "
PROMPTS = ['', 'Once upon a time ', "It's 1234567890 dogs\nof \u65e5\u672c. ", HOSTILE, 'the cat sat here. ' * 99]
SAMPLE = ['--num_samples=1', f'--max_new_tokens={N}', '--temperature=0', '--dtype=float32', '--device=cpu']


class Case:
    """A model in all its forms, and prompts with what follows them."""

    def __init__(self, arch: str, kind: str):
        bpe = train_bpe(PROMPTS * 4, 320)
        whole = bpe['json'].replace('"use_regex":true', '"use_regex":false')    # it is not cut into words
        self.tokenizer = Tokenizer({
            'bpe': bpe, 'gpt2': {'kind': 'gpt2'},
            'char': {'kind': 'char', 'alphabet': ''.join(sorted(set(''.join(PROMPTS))))},
            'hf': {'kind': 'hf', 'json': whole, 'eot': Tokenizer(bpe).eot}}[kind])
        for seed in range(1000):
            self.prompts = []                               # (text, its ids, the ids that follow) of each
            torch.manual_seed(seed)
            self.model = GPT(GPTConfig(self.tokenizer.vocab_size, arch, WINDOW, n_layer=2, n_head=4, n_embd=128,
                                       n_kv_head=2 * (arch == 'qwen3'), bias=arch == 'gpt2')).eval()
            for p in self.model.parameters():               # logits as far apart as a trained model's
                torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0, 0.25)
            if all(self.add(prompt) for prompt in PROMPTS):
                break
        self.texts, self.ids, _ = zip(*self.prompts)
        self.lm = LanguageModel(self.model, self.tokenizer)
        save_checkpoint('out/best.pt', self.model, self.tokenizer.spec, {})
        export_folder(self.lm, 'folder')

    def add(self, prompt: str):
        """Add the prompt, maybe with a number. True: no choice after it is so close that rounding decides."""
        for text in [prompt] + [f'{prompt}{i}' for i in range(20) if prompt]:
            ids = [self.tokenizer.eot, *self.tokenizer.encode(text)]
            ids = ids if len(ids) <= WINDOW else ids[-WINDOW // 2:]
            new = [int(i) for i in self.model.generate(torch.tensor([ids]), N, 0, eot=self.tokenizer.eot)]
            logits = self.model(torch.tensor([ids + new]))[0, len(ids) - 1:-1]
            first, second = logits.topk(2).values.T
            if len(new) == N and len(set(new)) > 9 and ((first - second) / logits.std()).min() > 0.003:
                self.prompts.append((text, ids, new))
                return True


# ---- engines: each yields the whole texts, or the ids that follow the prompts; some do not take the last one
def sample_py(case):
    for text in case.texts:
        sys.argv = ['sample.py', f'--start={text}', *SAMPLE]
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(sys.path[0] + '/sample.py', run_name='__main__')
        yield shown.getvalue().removesuffix('\n')


def generate(case, path='out'):
    lm = load(path, 'cpu', 'float32')
    for text in case.texts:
        yield lm.generate(text, max_new_tokens=N, temperature=0)


def transformers(case, model=None):
    from transformers import AutoModelForCausalLM
    model = model or AutoModelForCausalLM.from_pretrained('folder').eval()
    for ids in case.ids:
        idx = torch.tensor([ids])
        new = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=N, do_sample=False)
        yield new[0, len(ids):].tolist()


def pipeline(case):
    from transformers import pipeline
    pipe = pipeline('text-generation', model='folder', device='cpu')
    for text in case.texts[:-1]:
        yield pipe(text, max_new_tokens=N, do_sample=False, clean_up_tokenization_spaces=False)[0]['generated_text']


def serve(case):
    command = [sys.executable, '-c', 'from transformers.cli.transformers import main; main()', 'serve', '--port=8765']
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for text in case.texts[:-1]:
            yield text + post('http://localhost:8765/v1/completions', model=os.path.abspath('folder'),
                              prompt=text, temperature=0, max_tokens=N)['choices'][0]['text']
    finally:
        server.kill()


def post(url, **body):
    """The answer of a server, which may still be starting."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {'Content-Type': 'application/json'})
    for _ in range(60):
        try:
            return json.load(urllib.request.urlopen(request, timeout=120))
        except OSError as e:
            if 'refused' not in str(e):
                raise
            time.sleep(1)


def llama_cpp(case):
    import xllamacpp
    export_gguf(case.lm, 'model.gguf')
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.port, p.verbosity = 'model.gguf', WINDOW, 1, 0, 0
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED     # is fp16
    server = xllamacpp.Server(p)
    for prompt in [*case.texts[:-1], case.ids[-1]]:
        body = dict(prompt=prompt, temperature=0, n_predict=N, return_tokens=True)
        yield post(server.listening_address + '/completion', **body)['tokens']


def vllm(case):
    from vllm import LLM, SamplingParams
    llm = LLM(os.path.abspath('folder'), dtype='float32', enforce_eager=True, max_model_len=WINDOW)
    prompts = [*case.texts[:-1], {'prompt_token_ids': case.ids[-1]}]
    for answer in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=N), use_tqdm=False):
        yield list(answer.outputs[0].token_ids)


def ctranslate2(case):
    import ctranslate2
    ctranslate2.converters.TransformersConverter('folder').convert('converted', force=True)
    names = json.loads(Path('converted/vocabulary.json').read_text(encoding='utf-8'))
    generator = ctranslate2.Generator('converted')
    for ids in case.ids:
        yield generator.generate_batch([[names[i] for i in ids]], max_length=N,
                                       include_prompt_in_result=False)[0].sequences_ids[0]


def merged_lora(case):
    """A random LoRA, merged by peft, is another model: it is compared there and here."""
    import peft
    from transformers import AutoModelForCausalLM
    config = peft.LoraConfig(target_modules='all-linear', init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained('folder').eval()
    merged = peft.get_peft_model(model, config).merge_and_unload()
    export_folder(case.lm, 'merged')                        # for the tokenizer
    merged.save_pretrained('merged')
    for (text, _, new), there, here in zip(case.prompts, transformers(case, merged), generate(case, 'merged')):
        yield new if here == text + case.tokenizer.decode(there) else []


ENGINES = {             # name: what it is, and the packages that it needs
    'sample.py': (sample_py, ''), 'load': (generate, ''), 'folder': (lambda case: generate(case, 'folder'), ''),
    'transformers': (transformers, 'transformers'), 'pipeline': (pipeline, 'transformers'), 'vLLM': (vllm, 'vllm'),
    'serve': (serve, 'transformers fastapi uvicorn openai accelerate'), 'llama.cpp': (llama_cpp, 'xllamacpp gguf'),
    'ctranslate2': (ctranslate2, 'ctranslate2 transformers'), 'merged LoRA': (merged_lora, 'peft transformers')}


def count(case, engine) -> str:
    """'4/5': of five prompts that the engine took four continue the same. '-': it has no such tokenizer."""
    try:
        same = [found in (new, text + case.tokenizer.decode(new))
                for (text, _, new), found in zip(case.prompts, engine(case))]
    except Exception as e:                                  # engines raise anything
        return '-' if isinstance(e, Error) else f'{type(e).__name__}: {str(e)[:80]!r}'
    return f'{sum(same)}/{len(same)}'


if __name__ == '__main__':
    usable = {name: engine for name, (engine, needs) in ENGINES.items() if all(map(find_spec, needs.split()))}
    found = {packages_distributions()[package][0] for name in usable for package in ENGINES[name][1].split()}
    print(', '.join(f'{name} {version(name)}' for name in sorted(found)), '\n')
    print('| model |', *(f'{name} |' for name in usable), '\n|---' + '|---' * len(usable) + '|')
    for arch, kind in [(arch, kind) for arch in ('gpt2', 'qwen3') for kind in ('bpe', 'gpt2', 'char', 'hf')]:
        with tempfile.TemporaryDirectory() as own, contextlib.chdir(own):   # vLLM keeps tokenizers by their path
            case = Case(arch, kind)
            print(f'| {arch}, {kind} |', *(f'{count(case, engine)} |' for engine in usable.values()), flush=True)
    print(*(f'skipped: {name}, which needs {ENGINES[name][1]}' for name in ENGINES if name not in usable), sep='\n')
