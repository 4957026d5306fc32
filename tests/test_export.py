"""Exports run the same in the real transformers and llama.cpp, and never replace other files."""
import json
import random
import sys
import urllib.request
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

import model as model_module
from extras import huggingface
from extras.export import export
from extras.foreign import read_tokenizer
from extras.hf_tokenizer import tokenizer_json
from extras.reference import reference_logits
from lib import checkpoint as checkpoints
from lib.errors import Error
from lib.tokenizer import load_tokenizer
from model import GPT, MLP, GPTConfig
from sample import LanguageModel, load
from text.vocabulary import train_bpe

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TEXT = ['The cat sat on the mat, 1234 times. "Was it a dog?" No!\n\nÜnïcode and 日本語 too.',
        "it's what we're here for"] * 9
PROMPTS = ['', 'The', "it's what we're here for"]
KINDS = ['bpe', 'gpt2', 'char', 'hf']
SHAPES = {
    'gpt2': dict(arch='gpt2', bias=True),
    'gpt2 without biases': dict(arch='gpt2'),
    'gpt2 untied': dict(arch='gpt2', bias=True, tie_weights=False),
    'gpt2 untied without biases, narrow': dict(arch='gpt2', tie_weights=False, n_inner=100,
                                               norm_eps=0.1),
    'qwen3': dict(arch='qwen3'),
    'qwen3 untied': dict(arch='qwen3', tie_weights=False),
    'qwen3 grouped': dict(arch='qwen3', n_kv_head=2),
    'qwen3 grouped untied, own head_dim': dict(arch='qwen3', n_kv_head=1, head_dim=24,
                                               tie_weights=False, rope_theta=1e6, norm_eps=0.1,
                                               n_inner=96)}


def make(shape='qwen3', **more):
    """A small model. All its weights are random, and large enough to tell its logits apart."""
    torch.manual_seed(0)
    small = dict(vocab_size=384, block_size=256, n_layer=2, n_head=4, n_embd=64)
    model = GPT(GPTConfig(**{**small, **SHAPES[shape], **more})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0, 0.25)
    return model


@cache
def spec_of(kind):
    """The spec of a small tokenizer of each kind."""
    if kind == 'gpt2':
        return {'kind': 'gpt2'}
    if kind == 'bpe':
        return train_bpe(TEXT, 320)
    if kind == 'char':
        alphabet = sorted(set(''.join(TEXT)) | set('<|>x\r\t'))
        return {'kind': 'char', 'alphabet': ''.join(alphabet)}
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HfTokenizer
    qwen = HfTokenizer(models.BPE())
    pattern = Regex(r'\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+')
    qwen.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    qwen.decoder = decoders.ByteLevel()
    qwen.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=300, special_tokens=['<|endoftext|>', '<|im_end|>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return {'kind': 'hf', 'json': qwen.to_str(), 'eot': 1}


def make_lm(kind='bpe', shape='qwen3', **more):
    tokenizer = load_tokenizer(spec_of(kind))
    return LanguageModel(make(shape, vocab_size=tokenizer.vocab_size, **more), tokenizer)


def save(lm, path='out/best.pt'):
    """Save a model as a run does."""
    checkpoints.save(path, lm.model, tokenizer=lm.tokenizer.spec, settings={})


def hostile_texts(n=300, letters=None):
    """Texts that break tokenizers: spaces, contractions, scripts, controls, special tokens."""
    rng = random.Random(0)
    letters = letters or [
        ' ', '  ', '\n', '\r\n', '\t', 'a', 'dog', "'s", "'LL", '12', '3', '.', '...', 'é',
        'e\u0301', '日本', '💡', 'ß', '👩\u200d🚀', '\u3000', '\xa0', '\x00', '\x7f', '\u200b', 'ﬁ',
        '<|endoftext|>', '<|im_end|>', '<|', '|>', 'İ', '\ufffd', '١٢', 'ก็', '_', '#',
        '\U000e0001']
    texts = [''.join(rng.choices(letters, k=rng.randint(1, 20))) for _ in range(n)]
    return [*texts, '', ' ', '<|endoftext|>']


@torch.no_grad()
def logits(model, idx):
    out = model(idx)
    return getattr(out, 'logits', out)


def greedy(model, idx, n):
    return torch.stack(list(model.generate(idx, n, temperature=0)))[:, 0]


# ---- Hugging Face folders
@pytest.mark.parametrize('shape', SHAPES)
def test_an_export_gives_the_same_logits_in_transformers_and_back_here(run, shape):
    lm = make_lm('bpe', shape)
    save(lm)
    run('extras.export', '--to=exported')
    model, config = lm.model, lm.model.config
    hf, info = transformers.AutoModelForCausalLM.from_pretrained('exported',
                                                                 output_loading_info=True)
    hf.eval()
    is_gpt2 = config.arch == 'gpt2'
    assert type(hf).__name__ == ('GPT2LMHeadModel' if is_gpt2 else 'Qwen3ForCausalLM')
    assert not any(info.values()), info
    assert hf.config.eos_token_id == hf.config.bos_token_id == 319
    zeros = 2 * (3 * 64 + 64 + config.n_inner + 64 + 2 * 64) + 64 if 'without' in shape else 0
    assert hf.num_parameters() == model.num_params() + zeros

    torch.manual_seed(0)
    idx = torch.randint(319, (1, 30))
    hf.generation_config.eos_token_id = None                # so that it does not stop there
    options = transformers.GenerationConfig(max_new_tokens=200, do_sample=False, pad_token_id=0)
    theirs = hf.generate(idx, attention_mask=torch.ones_like(idx), generation_config=options)
    assert len(set(theirs[0, 30:].tolist())) > 3
    assert torch.equal(greedy(model, idx, 200), theirs[0, 30:])

    back = checkpoints.build_model(huggingface.read_model('exported')).eval()
    idx = torch.randint(320, (2, 256))
    their_config = json.loads(Path('exported/config.json').read_text())
    tensors = load_file('exported/model.safetensors')
    assert is_gpt2 or their_config['sliding_window'] is None    # some versions default to 4,096
    if is_gpt2:
        model.double(), hf.double(), back.double()
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    expected = logits(hf, idx)
    assert expected.std() > 1
    tolerance = 1e-9 if is_gpt2 else 1e-5 * expected.abs().max()
    assert (logits(model, idx) - expected).abs().max() < tolerance
    assert (reference_logits(their_config, tensors, idx) - expected).abs().max() < tolerance
    assert torch.equal(logits(model, idx), logits(back, idx))


def relu_squared(mlp, x):
    h = mlp.up_proj(x).relu().square()
    return mlp.down_proj(h * mlp.gate_proj(x) if mlp.is_gated else h)


def exact_gelu(mlp, x):             # logits differ by as little as 0.03 % of the largest
    h = mlp.up_proj(x)
    return mlp.down_proj(F.gelu(mlp.gate_proj(x)) * h if mlp.is_gated else F.gelu(h))


def sliding_window(q, k, v, mask=None, dropout=0.0):
    positions = torch.arange(q.shape[2])
    distance = positions[:, None] - positions
    return F.scaled_dot_product_attention(q, k, v, (distance >= 0) & (distance < 128),
                                          enable_gqa=q.shape[1] != k.shape[1])


@pytest.mark.parametrize('shape', ['gpt2', 'qwen3 grouped'])
@pytest.mark.parametrize('owner, name, change', [
    (MLP, 'forward', relu_squared), (MLP, 'forward', exact_gelu),
    (model_module, 'fused_attend', sliding_window)])
def test_a_changed_model_is_refused_before_anything_is_written(
        tmp_path, monkeypatch, shape, owner, name, change):
    lm = make_lm('bpe', shape)
    paths = [tmp_path / 'folder', tmp_path / 'model.gguf']

    def contents():
        return {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}

    for path in paths:
        export(lm, path)
    before = contents()
    monkeypatch.setattr(owner, name, change)
    for path in paths:
        with pytest.raises(Error, match='cannot express this model'):
            export(lm, path)
    assert contents() == before
    monkeypatch.undo()
    for path in paths:
        export(lm, path)
    assert contents() == before


@pytest.mark.parametrize('shape, more', [
    ('gpt2', {'positions': 'rope'}), ('gpt2', {'n_kv_head': 2}), ('gpt2', {'head_dim': 6}),
    ('qwen3 grouped', {'bias': True}), ('qwen3 grouped', {'mlp': 'gelu'})])
def test_a_mixture_of_architectures_is_refused(tmp_path, shape, more):
    (name, value), = more.items()
    with pytest.raises(Error, match=f'{name}={value}: not {shape[:5].strip()}'):
        export(make_lm('bpe', shape, **more), tmp_path / 'folder')
    assert not any(tmp_path.iterdir())


# ---- tokenizers
@pytest.mark.parametrize('kind', KINDS)
def test_an_exported_tokenizer_gives_the_same_ids(tmp_path, kind):
    lm = make_lm(kind, n_embd=8, n_head=1)
    ours = lm.tokenizer
    export(lm, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == ours.eot
    for text in hostile_texts(letters=ours.spec.get('alphabet')):
        begin, *ids = tokenizer(text, split_special_tokens=True)['input_ids']
        assert begin == ours.eot and ids == ours.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == ours.decode(ids) == text
    back = load_tokenizer(read_tokenizer(str(tmp_path)))
    assert back == ours and ours == back and back.eot == ours.eot


@pytest.mark.parametrize('kind, shape', [('bpe', 'gpt2'), ('char', 'qwen3'),
                                         ('hf', 'qwen3 grouped')])
def test_a_prompt_continues_the_same_in_transformers(tmp_path, kind, shape):
    lm = make_lm(kind, shape)
    export(lm, tmp_path)
    pipe = transformers.pipeline('text-generation', model=str(tmp_path), device='cpu')
    options = dict(max_new_tokens=40, do_sample=False)
    expected = [lm.generate(prompt, max_new_tokens=40, temperature=0) for prompt in PROMPTS]
    one_by_one = [pipe(prompt, **options) for prompt in PROMPTS]
    for found in (one_by_one, pipe(PROMPTS, batch_size=3, **options)):
        assert [texts[0]['generated_text'] for texts in found] == expected
    batch = pipe.tokenizer(PROMPTS, padding=True, return_tensors='pt')
    ids = pipe.model.generate(**batch, **options)
    assert batch.keys() == {'input_ids', 'attention_mask'}
    assert pipe.tokenizer.batch_decode(ids, skip_special_tokens=True) == expected


def test_tokenizers_that_give_other_ids_are_not_equal():
    gpt2, text = load_tokenizer(spec_of('gpt2')), tokenizer_json(spec_of('gpt2'))

    def changed(change):
        content = json.loads(text)
        change(content)
        return load_tokenizer({'kind': 'hf', 'json': json.dumps(content), 'eot': 50256})

    def swap_merges(content):
        merges = content['model']['merges']
        merges[300], merges[40000] = merges[40000], merges[300]

    assert gpt2 == changed(lambda content: None)
    assert gpt2 != changed(swap_merges)
    assert gpt2 != changed(lambda content: content['pre_tokenizer'].update(add_prefix_space=True))
    assert gpt2 != changed(lambda content: content.update(normalizer={'type': 'Lowercase'}))
    assert gpt2 != load_tokenizer(spec_of('bpe'))


# ---- llama.cpp
class Llama:
    """llama.cpp's HTTP server, with an fp32 cache."""

    def __init__(self, path):
        import xllamacpp
        p = xllamacpp.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.port = str(path), 256, 1, 0
        p.cpuparams.n_threads, p.warmup, p.verbosity = 1, False, 0
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # flash attention computes in fp16
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(p)

    def post(self, path, **body):
        url, content = self.server.listening_address + path, json.dumps(body).encode()
        request = urllib.request.Request(url, content, {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def clear_continuation(lm, prompts):
    """The first prompt after which rounding decides no token, and the 100 ids that follow."""
    for prompt in prompts:
        idx = torch.tensor([[lm.tokenizer.eot, *lm.tokenizer.encode(prompt)]])
        new = greedy(lm.model, idx, 100)
        whole = torch.cat((idx, new[None]), dim=1)
        first, second = logits(lm.model, whole)[0, idx.shape[1] - 1:-1].topk(2).values.T
        if (first - second).min() > 0.01 and lm.tokenizer.eot not in new:
            break
    assert len(set(new.tolist())) > 3
    return prompt, new.tolist()


@pytest.mark.parametrize('kind, shape', [
    ('bpe', 'gpt2'), ('gpt2', 'gpt2 untied without biases, narrow'), ('bpe', 'qwen3 grouped'),
    ('bpe', 'qwen3 grouped untied, own head_dim')])
def test_llama_cpp_continues_a_prompt_the_same(run, kind, shape):
    lm = make_lm(kind, shape)
    save(lm)
    run('extras.export', '--to=exported/model.gguf')
    llama = Llama('exported/model.gguf')
    for text in hostile_texts(100):
        if '\0' not in text:
            body = dict(content=text, add_special=False, parse_special=False)
            assert llama.post('/tokenize', **body)['tokens'] == lm.tokenizer.encode(text)
    prompt, here = clear_continuation(lm, TEXT[0].split())       # its GELU is an fp16 table
    options = dict(prompt=prompt, temperature=0)
    there = llama.post('/completion', n_predict=100, return_tokens=True, ignore_eos=True, **options)
    assert here == there['tokens']
    answer = llama.post('/v1/completions', max_tokens=9, **options)
    assert answer['choices'][0]['text'] == lm.tokenizer.decode(here[:9])


@pytest.mark.parametrize('kind', ['char', 'hf', 'lower', 'prefix', 'whole'])
def test_a_tokenizer_that_llama_cpp_does_not_have_is_an_error(tmp_path, kind):
    if kind in ('lower', 'prefix', 'whole'):
        content = json.loads(spec_of('bpe')['json'])
        content['normalizer'] = {'type': 'Lowercase'} if kind == 'lower' else None
        content['pre_tokenizer'] |= {'add_prefix_space': kind == 'prefix',
                                     'use_regex': kind != 'whole'}
        spec, named = {'kind': 'hf', 'json': json.dumps(content), 'eot': 319}, 'hf'
    else:
        spec, named = spec_of(kind), kind
    tokenizer = load_tokenizer(spec)
    lm = LanguageModel(make(vocab_size=tokenizer.vocab_size), tokenizer)
    with pytest.raises(Error, match=f'this {named} tokenizer'):
        export(lm, tmp_path / 'model.gguf')
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('shape', ['gpt2', 'qwen3 grouped'])
def test_vllm_if_installed_continues_a_prompt_the_same(tmp_path, monkeypatch, shape):
    monkeypatch.setenv('VLLM_CPU_KVCACHE_SPACE', '1')
    vllm = pytest.importorskip('vllm')
    lm = make_lm('bpe', shape)
    export(lm, tmp_path)
    prompt, here = clear_continuation(lm, TEXT[0].split())
    llm = vllm.LLM(str(tmp_path), dtype='float32', enforce_eager=True, max_model_len=256)
    greedily = vllm.SamplingParams(temperature=0, max_tokens=100)
    answer, = llm.generate([prompt], greedily, use_tqdm=False)
    assert list(answer.outputs[0].token_ids) == here


# ---- the command and its files
def test_the_command_says_what_it_wrote(run, capsys):
    save(make_lm('char'))
    run('extras.export', '--out_dir=out/best.pt', '--to=new/folder')
    assert capsys.readouterr().out == 'written: new/folder\n'
    assert load('new/folder').tokenizer.kind == 'hf'
    with pytest.raises(Error, match='--to=FILE.gguf'):
        run('extras.export')
    with pytest.raises(Error, match='nothing: no such checkpoint'):
        run('extras.export', '--out_dir=nothing', '--to=new')


def test_exports_are_replaced_by_newer_ones_and_other_files_beside_them_stay(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/README.md').write_text('mine')
    for path in (tmp_path / 'folder', tmp_path / 'model.gguf'):
        for n_layer in (1, 2):
            export(make_lm(n_layer=n_layer), path)
    config = json.loads((tmp_path / 'folder/config.json').read_text())
    assert config['num_hidden_layers'] == 2
    assert (tmp_path / 'folder/README.md').read_text() == 'mine'
    assert {file.name for file in tmp_path.rglob('*') if file.is_file()} == {
        'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json',
        'model.safetensors', 'checksums.json', 'README.md', 'model.gguf'}


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'checksums.json',
                                  'tokenizer.json'])
def test_other_files_in_a_folder_are_not_replaced(tmp_path, name):
    lm = make_lm('char')
    (tmp_path / 'new').mkdir()
    for folder in ('new', 'exported'):
        if folder == 'exported':
            export(lm, tmp_path / folder)
        file = tmp_path / folder / name
        file.write_text('[]')
        before = sorted(tmp_path.rglob('*'))
        with pytest.raises(Error, match=r'not an unmodified export'):
            export(lm, tmp_path / folder)
        assert file.read_text() == '[]' and sorted(tmp_path.rglob('*')) == before


def test_other_files_are_not_replaced_by_a_gguf(tmp_path):
    path, lm = tmp_path / 'model.gguf', make_lm()
    for content in (b'notes', b'GGUF\3\0\0\0 of someone else', b''):
        path.write_bytes(content)
        with pytest.raises(Error, match='not written by this command'):
            export(lm, path)
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(Error, match='not written by this command'):
        export(lm, path)
    (tmp_path / 'file').write_text('notes')
    with pytest.raises(Error, match='cannot write'):
        export(lm, tmp_path / 'file')


def test_a_folder_that_was_trained_in_place_loads_with_a_warning(run, capsys):
    export(make_lm(), 'there')
    again = transformers.AutoModelForCausalLM.from_pretrained('there')
    transformers.AutoTokenizer.from_pretrained('there').save_pretrained('there')
    for has_changed in (False, True):                       # at first, other files have
        again.save_pretrained('there')
        lm = load('there', dtype='float32')
        assert ('model.safetensors has changed' in capsys.readouterr().err) == has_changed
        assert lm.model.h[0].mlp.down_proj.weight.any() != has_changed
        again.model.layers[0].mlp.down_proj.weight.data.zero_()


def test_a_missing_package_is_one_line_with_the_pip_command(run, monkeypatch):
    save(make_lm())
    monkeypatch.delitem(sys.modules, 'extras.gguf', raising=False)
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(Error, match='GGUF needs gguf: pip install gguf'):
        run('extras.export', '--to=model.gguf')
    assert not Path('model.gguf').exists()
