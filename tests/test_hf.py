"""Hugging Face and GGUF, in and out, against the real transformers and llama.cpp; no model is downloaded."""
import json
import math
import os
import pickle
import random
import runpy
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import TINY, read_log, same_weights
from safetensors.torch import load_file, save_file

from config import Error
from data.tokenizer import Tokenizer, read_tokenizer, train_bpe
from extras import huggingface
from extras.gguf import export_gguf
from extras.hf_export import export_folder, to_hugging_face
from extras.hf_tokenizer import tokenizer_json
from extras.huggingface import read_model
from extras.reference import reference_logits
from model import GPT, MLP, Attention, GPTConfig, build_model, load_checkpoint, save_checkpoint
from prepare import open_dataset
from sample import LanguageModel, load

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TEXT = ['The cat sat on the mat, 1234 times. "Was it a dog?" No!\n\nÜnïcode and 日本語 too.',
        "it's what we're here for"] * 9
NUMBERED = [f'{i} {text}' for i, text in enumerate(TEXT * 3)]
SHAPES = {
    'gpt2': dict(arch='gpt2', bias=True),
    'gpt2 without biases': dict(arch='gpt2'),
    'gpt2 untied': dict(arch='gpt2', bias=True, tie_weights=False),
    'gpt2 untied without biases, narrow': dict(arch='gpt2', tie_weights=False, n_inner=100, norm_eps=0.1),
    'qwen3': dict(arch='qwen3'),
    'qwen3 untied': dict(arch='qwen3', tie_weights=False),
    'qwen3 grouped': dict(arch='qwen3', n_kv_head=2),
    'qwen3 grouped untied, own head_dim': dict(arch='qwen3', n_kv_head=1, head_dim=24, tie_weights=False,
                                               rope_theta=1e6, norm_eps=0.1, n_inner=96)}


def make(shape='qwen3', **more):
    """A small model with random weights everywhere, large enough that its logits are far apart."""
    torch.manual_seed(0)
    small = dict(vocab_size=384, block_size=256, n_layer=2, n_head=4, n_embd=64)
    model = GPT(GPTConfig(**{**small, **SHAPES[shape], **more})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0, 0.25)
    return model


@pytest.fixture(scope='session')
def specs():
    """Specs of all kinds of tokenizer."""
    import tokenizers
    qwen = tokenizers.Tokenizer(tokenizers.models.BPE())
    pattern = tokenizers.Regex(r'\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+')
    splits = [tokenizers.pre_tokenizers.Split(pattern, 'isolated'),
              tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    qwen.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
    qwen.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    qwen.train_from_iterator(TEXT, tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=['<|endoftext|>', '<|im_end|>'], initial_alphabet=alphabet,
        show_progress=False))
    return {'bpe': train_bpe(TEXT, 320), 'gpt2': {'kind': 'gpt2'},
            'char': {'kind': 'char', 'alphabet': ''.join(sorted(set(''.join(TEXT)) | set('<|>x\r\t')))},
            'hf': {'kind': 'hf', 'json': qwen.to_str(), 'eot': 1}}


def checkpoint(spec, shape='qwen3', dataset='letters', path='out/best.pt', **more):
    """Save a model with this tokenizer as a run's checkpoint."""
    model = make(shape, vocab_size=Tokenizer(spec).vocab_size, **more)
    save_checkpoint(path, model, spec, {'dataset': dataset})
    return model


def hostile(n=300, letters=None):
    """Texts that break tokenizers: spaces, contractions, scripts, controls, special tokens' names."""
    rng = random.Random(0)
    letters = letters or [
        ' ', '  ', '\n', '\r\n', '\t', 'a', 'dog', "'s", "'LL", '12', '3', '.', '...', 'é', 'e\u0301', '日本',
        '💡', 'ß', '👩\u200d🚀', '\u3000', '\xa0', '\x00', '\x7f', '\u200b', 'ﬁ', '<|endoftext|>',
        '<|im_end|>', '<|', '|>', 'İ', '\ufffd', '١٢', 'ก็', '_', '#', '\U000e0001']
    texts = [''.join(rng.choices(letters, k=rng.randint(1, 20))) for _ in range(n)]
    return [*texts, '', ' ', '<|endoftext|>']


def prepare_text(run, texts, *knobs):
    """Make data/text of these documents; returns meta.json and the validation documents."""
    Path('text.txt').write_text('<|endoftext|>'.join(texts), encoding='utf-8')
    run('prepare.py', '--input=text.txt', '--name=text', '--val_fraction=0.4', *knobs)
    meta, _, ids = open_dataset('text')
    tokenizer, documents = Tokenizer(meta['tokenizer']), [[]]
    for i in ids:
        documents[-1].append(i) if i != meta['eot'] else documents.append([])
    documents = [tokenizer.decode(document) for document in documents[:-1]]
    assert len(documents) == meta['val']['documents']
    assert sum(len(text.encode()) for text in documents) == meta['val']['bytes']
    return meta, documents


def logits(model, *ids):
    with torch.no_grad():
        out = model(*ids)
    return out[0] if isinstance(out, tuple) else getattr(out, 'logits', out)


@pytest.mark.parametrize('shape', SHAPES)
def test_an_export_is_the_same_model_in_transformers_and_back_here(run, specs, shape):
    model = checkpoint(specs['bpe'], shape)
    run('sample.py', '--export=exported')
    hf, info = transformers.AutoModelForCausalLM.from_pretrained('exported', output_loading_info=True)
    hf.eval()
    assert type(hf).__name__ == ('GPT2LMHeadModel' if model.config.arch == 'gpt2' else 'Qwen3ForCausalLM')
    assert not any(info.values()), info
    assert hf.config.eos_token_id == hf.config.bos_token_id == 319
    zeros = 2 * (3 * 64 + 64 + model.config.n_inner + 64 + 2 * 64) + 64 if 'without' in shape else 0
    assert hf.num_parameters() == model.num_params() + zeros

    torch.manual_seed(0)
    idx = torch.randint(319, (1, 30))
    hf.generation_config.eos_token_id = None                # ours is not told to stop there, either
    same = transformers.GenerationConfig(max_new_tokens=200, do_sample=False, pad_token_id=0)
    theirs = hf.generate(idx, attention_mask=torch.ones_like(idx), generation_config=same)[0, 30:]
    ours = torch.stack(list(model.generate(idx, 200, temperature=0)))[:, 0]
    assert len(theirs) == 200 and len(set(theirs.tolist())) > 3
    assert torch.equal(ours, theirs)

    back = build_model(read_model('exported')).eval()
    idx = torch.randint(320, (2, 256))
    config = json.loads(Path('exported/config.json').read_text())
    tensors = load_file('exported/model.safetensors')
    assert model.config.arch == 'gpt2' or config['sliding_window'] is None     # 4,096 in some versions
    if model.config.arch == 'gpt2':
        model.double(), hf.double(), back.double()
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    a, b, c, plain = (*(logits(m, idx) for m in (model, hf, back)), reference_logits(config, tensors, idx))
    assert a.std() > 1
    for ours in (a, plain):
        difference = (ours - b).abs().max().item()
        print(f'{shape}: {difference:.1e}, of the largest {difference / b.abs().max():.1e}')
        assert difference < (1e-9 if model.config.arch == 'gpt2' else 1e-5 * b.abs().max())
    assert torch.equal(a, c)


THEIRS = {
    'gpt2': lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=320, n_positions=64, n_embd=48, n_layer=2, n_head=3, initializer_range=0.3)),
    'gpt2 untied': lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=320, n_positions=64, n_embd=48, n_layer=2, n_head=3, n_inner=80, layer_norm_epsilon=1e-3,
        initializer_range=0.3, tie_word_embeddings=False, activation_function='gelu_pytorch_tanh')),
    'qwen3': lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        vocab_size=320, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, initializer_range=0.3)),
    'qwen3 tied': lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        vocab_size=320, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=12, max_position_embeddings=64, initializer_range=0.3,
        rms_norm_eps=1e-4, tie_word_embeddings=True, hidden_act='swish',
        rope_parameters={'rope_type': 'default', 'rope_theta': 5e5}))}


def theirs(kind='gpt2'):
    """A model of transformers with random weights, biases and norms included."""
    torch.manual_seed(1)
    hf = THEIRS[kind]().eval()
    for p in hf.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, p.mean().item(), 0.3)
    return hf


def relu_squared(mlp, x):
    x = mlp.c_fc(x)
    gate, value = x.chunk(2, -1) if mlp.is_gated else (x, 1)
    return mlp.c_proj(gate.relu().square() * value)


def gelu(mlp, x):                   # not in its tanh form: the logits differ by 0.03 % of the largest only
    x = mlp.c_fc(x)
    gate, value = x.chunk(2, -1) if mlp.is_gated else (x, 1)
    return mlp.c_proj(F.gelu(gate) * value)


def near_keys(attention, q, k, v):
    positions = torch.arange(q.shape[2])
    distance = positions[:, None] - positions
    return F.scaled_dot_product_attention(q, k, v, (distance >= 0) & (distance < 128),
                                          enable_gqa=q.shape[1] != k.shape[1])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', ['gpt2', 'qwen3 grouped'])
@pytest.mark.parametrize('part, method, change', [
    (MLP, 'forward', relu_squared), (MLP, 'forward', gelu), (Attention, 'attend', near_keys)])
def test_a_model_that_was_changed_in_code_is_not_exported(
        tmp_path, specs, monkeypatch, shape, dtype, part, method, change):
    lm = LanguageModel(make(shape, vocab_size=320).to(dtype), Tokenizer(specs['bpe']))

    def export():
        export_folder(lm, tmp_path)
        export_gguf(lm, tmp_path / 'model.gguf')
        return [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    before = export()
    monkeypatch.setattr(part, method, change)
    for refused in (lambda: to_hugging_face(lm.model, 319), lambda: export_folder(lm, tmp_path),
                    lambda: export_gguf(lm, tmp_path / 'model.gguf')):
        with pytest.raises(Error, match='cannot express this model'):
            refused()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before
    monkeypatch.undo()
    assert export() == before


@pytest.mark.parametrize('kind', THEIRS)
@pytest.mark.parametrize('how', ['whole', 'sharded', 'without head', 'bfloat16'])
def test_a_model_of_transformers_comes_in_exactly(tmp_path, kind, how):
    hf = theirs(kind)
    if how == 'bfloat16':
        hf = hf.bfloat16()
    untied = not hf.config.tie_word_embeddings
    saved = hf.base_model if how == 'without head' else hf
    saved.save_pretrained(tmp_path, max_shard_size='50KB' if how == 'sharded' else '5GB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1 or how != 'sharded'
    if how == 'without head' and untied:
        with pytest.raises(Error, match='lm_head.weight is missing'):
            read_model(tmp_path)
        return
    model = build_model(read_model(tmp_path)).eval()
    hf = type(hf).from_pretrained(tmp_path, dtype=torch.float32) if how == 'bfloat16' else hf
    if 'gpt2' in kind:
        model.double(), hf.double()
    idx = torch.randint(320, (2, 64))
    a, b = logits(model, idx), logits(hf, idx)
    assert b.std() > 1
    assert (a - b).abs().max() < (1e-9 if 'gpt2' in kind else 1e-5 * b.abs().max())
    assert model.num_params() == hf.num_parameters()
    shorter = build_model(read_model(tmp_path), block_size=32)
    assert shorter.config.block_size == 32 and shorter(idx[:, :32]).shape == (2, 32, 320)


def test_other_files_of_weights_beside_the_model_are_not_read(tmp_path):
    expected = read_model(good(tmp_path))['model']
    zeros = {name: torch.zeros_like(t) for name, t in load_file(tmp_path / 'model.safetensors').items()}
    for name in ('model.fp16.safetensors', 'model_old.safetensors', 'model-00001-of-00001.safetensors'):
        save_file(zeros, tmp_path / name)
    assert all(torch.equal(t, expected[name]) for name, t in read_model(tmp_path)['model'].items())


def test_an_old_gpt2_file_has_no_prefix_and_holds_masks(tmp_path):
    hf = theirs()
    hf.save_pretrained(tmp_path)
    path = tmp_path / 'model.safetensors'
    tensors = {name.removeprefix('transformer.'): t for name, t in load_file(path).items()}
    tensors['h.0.attn.bias'] = torch.ones(1, 1, 64, 64).tril()
    tensors['h.0.attn.masked_bias'] = torch.tensor(-1e4)
    save_file(tensors, path)
    for field in ('n_inner', 'tie_word_embeddings', 'layer_norm_epsilon', 'dtype', 'scale_attn_weights'):
        change_config(tmp_path, **{field: 'remove'})
    idx = torch.randint(320, (2, 64))
    assert torch.allclose(logits(build_model(read_model(tmp_path)).eval(), idx), logits(hf, idx), atol=1e-4)


def test_gpt2_at_full_size_has_its_number_of_parameters():
    with torch.device('meta'):
        model = GPT(GPTConfig(50257, arch='gpt2', bias=True, block_size=1024, n_layer=12, n_head=12,
                              n_embd=768))
    assert model.num_params() == 124_439_808


# ---- tokenizers
@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'char', 'hf'])
def test_an_exported_tokenizer_gives_the_same_ids(tmp_path, specs, kind):
    ours = Tokenizer(specs[kind])
    export_folder(LanguageModel(make(vocab_size=ours.vocab_size, n_embd=8, n_head=1), ours), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == ours.eot
    for text in hostile(letters=specs['char']['alphabet'] if kind == 'char' else None):
        begin, *ids = tokenizer(text, split_special_tokens=True)['input_ids']
        assert begin == ours.eot and ids == ours.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == ours.decode(ids) == text
    there = Tokenizer(read_tokenizer(str(tmp_path)))
    assert there == ours and ours == there and there.eot == ours.eot


@pytest.mark.parametrize('kind, shape', [('bpe', 'gpt2'), ('char', 'qwen3'), ('hf', 'qwen3 grouped')])
def test_a_prompt_continues_the_same_in_transformers(tmp_path, specs, kind, shape):
    tokenizer = Tokenizer(specs[kind])
    lm = LanguageModel(make(shape, vocab_size=tokenizer.vocab_size), tokenizer)
    export_folder(lm, tmp_path)
    pipe = transformers.pipeline('text-generation', model=str(tmp_path), device='cpu')
    knobs, prompts = dict(max_new_tokens=40, do_sample=False), ['', 'The', "it's what we're here for"]
    expected = [lm.generate(prompt, max_new_tokens=40, temperature=0) for prompt in prompts]
    for found in ([pipe(prompt, **knobs) for prompt in prompts], pipe(prompts, batch_size=3, **knobs)):
        assert [texts[0]['generated_text'] for texts in found] == expected
    batch = pipe.tokenizer(prompts, padding=True, return_tensors='pt')
    ids = pipe.model.generate(**batch, **knobs)
    assert batch.keys() == {'input_ids', 'attention_mask'}
    assert pipe.tokenizer.batch_decode(ids, skip_special_tokens=True) == expected


def test_tokenizers_that_give_other_ids_are_not_equal(specs):
    gpt2 = Tokenizer(specs['gpt2'])
    text = tokenizer_json(specs['gpt2'])

    def other(change):
        changed = json.loads(text)
        change(changed)
        return Tokenizer({'kind': 'hf', 'json': json.dumps(changed), 'eot': 50256})

    def swap(spec):
        merges = spec['model']['merges']
        merges[300], merges[40000] = merges[40000], merges[300]
    assert gpt2 == other(lambda spec: None)
    assert gpt2 != other(swap)
    assert gpt2 != other(lambda spec: spec['pre_tokenizer'].update(add_prefix_space=True))
    assert gpt2 != other(lambda spec: spec.update(normalizer={'type': 'Lowercase'}))
    assert gpt2 != Tokenizer(specs['bpe'])


# ---- fine-tuning
def test_training_starts_from_a_hugging_face_folder_and_its_tokenizer(run, specs, capsys):
    hf = theirs('qwen3 tied')
    hf.resize_token_embeddings(310)                     # more rows than the tokenizer has tokens, as usual
    hf.save_pretrained('there')
    Path('there/tokenizer.json').write_text(specs['hf']['json'], encoding='utf-8')
    Path('there/tokenizer_config.json').write_text(json.dumps({'eos_token': '<|im_end|>'}), encoding='utf-8')
    prepare_text(run, NUMBERED, '--tokenizer=there')
    knobs = ('--dataset=text', '--init_from=there', '--block_size=32', '--batch_size=2', '--device=cpu',
             '--dtype=float32', '--max_iters=1', '--warmup_iters=0')
    left = run('train.py', *knobs, '--learning_rate=0.0')
    assert left['arch'] == 'qwen3' and left['n_kv_head'] == 4 and left['model'].config.rope_theta == 5e5
    saved = load_checkpoint('out/ckpt.pt')
    assert same_weights(saved['model'], read_model('there')['model'])
    assert saved['model_config']['block_size'] == 32 and saved['tokenizer']['eot'] == 1
    first = read_log()[-1]['val_loss']
    run('train.py', *knobs, '--learning_rate=0.003', '--optimizer=adamw', '--max_iters=8', '--overwrite=True')
    assert float(read_log()[-1]['val_loss']) < float(first)
    run('train.py', '--init_from=resume', '--dataset=text', '--max_iters=9')
    capsys.readouterr()
    run('sample.py', '--export=again', '--evaluate=True', '--device=cpu', '--dtype=float32')
    assert f'{float(read_log()[-1]["val_loss"]):.4f} nats' in capsys.readouterr().out
    assert read_model('again')['model_config'] == load_checkpoint('out/best.pt')['model_config']
    assert Tokenizer(read_tokenizer('again')).eot == 1
    run('sample.py', '--out_dir=again', '--max_new_tokens=5')     # such a folder can be sampled too


def test_gpt2_from_a_folder_fits_data_prepared_with_tiktoken(run, specs):
    lm = LanguageModel(make('gpt2', vocab_size=50257, n_embd=8), Tokenizer(specs['gpt2']))
    export_folder(lm, 'there')
    prepare_text(run, NUMBERED, '--tokenizer=gpt2')
    knobs = ('--dataset=text', '--init_from=there', '--batch_size=1', '--eval_only=True')
    left = run('train.py', *knobs, '--block_size=8')
    ours = left['model'].state_dict()
    assert torch.equal(ours['wpe.weight'], lm.model.wpe.weight[:8])
    assert same_weights(ours | {'wpe.weight': lm.model.wpe.weight}, lm.model.state_dict())
    for knob, message in (('--block_size=300', 'block_size=300 .* 256'), ('--n_embd=16', 'n_embd=16 .* 8')):
        with pytest.raises(Error, match=message):
            run('train.py', *knobs, knob)
    assert run('train.py', *knobs)['block_size'] == 256
    prepare_text(run, NUMBERED, '--tokenizer=char', '--overwrite=True')
    with pytest.raises(Error, match='different tokenizer'):
        run('train.py', *knobs, '--block_size=8')


def test_a_folder_that_was_trained_in_place_loads_with_a_warning(run, specs, capsys):
    checkpoint(specs['bpe'])
    run('sample.py', '--export=there')
    again = transformers.AutoModelForCausalLM.from_pretrained('there')
    transformers.AutoTokenizer.from_pretrained('there').save_pretrained('there')
    for is_changed in (False, True):                        # at first only the other files are
        again.save_pretrained('there')
        lm = load('there', dtype='float32')
        assert ('there/model.safetensors is not as it was' in capsys.readouterr().err) == is_changed
        assert lm.model.h[0].mlp.c_proj.weight.any() != is_changed
        again.model.layers[0].mlp.down_proj.weight.data.zero_()


# ---- nanoGPT
def save_as_nanogpt(state, prefix='', **args):
    """out-x/ckpt.pt as nanoGPT writes it, from tensors by their names there."""
    Path('out-x').mkdir(exist_ok=True)
    torch.save({'model': {prefix + name: tensor for name, tensor in state.items()}, 'model_args': args,
                'optimizer': {}, 'best_val_loss': torch.tensor(2.0), 'config': {}}, 'out-x/ckpt.pt')


def tiny_nanogpt(rows=3, bias=True, prefix=''):
    model = make('gpt2', vocab_size=rows, bias=bias, block_size=8, n_embd=16)
    names = {f'transformer.{ours}'.replace('norm_f', 'ln_f').replace('.norm_', '.ln_'): tensor
             for ours, tensor in model.state_dict().items()}
    names['lm_head.weight'] = names.pop('transformer.lm_head.weight')
    names['transformer.h.0.attn.bias'] = torch.ones(1, 1, 8, 8).tril()      # a mask, in older versions
    save_as_nanogpt(names, prefix, vocab_size=rows, block_size=8, n_layer=2, n_head=4, n_embd=16, bias=bias)
    Path('out-x/meta.pkl').write_bytes(pickle.dumps({'itos': {0: ' ', 1: 'a', 2: 'b'}}))
    return model


@pytest.mark.parametrize('rows, bias, prefix', [(50304, False, '_orig_mod.'), (50257, True, ''), (3, True, '')])
def test_a_checkpoint_of_nanogpt_comes_in(run, capsys, rows, bias, prefix):
    model, kind = tiny_nanogpt(rows, bias, prefix), 'char' if rows == 3 else 'gpt2'
    lm = load('out-x', dtype='float32')
    assert capsys.readouterr().err.count('exact GELU') == 1 and lm.tokenizer.kind == kind
    assert torch.allclose(lm.model(torch.tensor([[0, 2]]))[..., :rows], model(torch.tensor([[0, 2]])), atol=1e-5)
    assert lm.tokenizer.decode(lm.tokenizer.encode('a b')) == 'a b' and lm.generate('a', max_new_tokens=20)
    prepare_text(run, ['a b', 'b a', 'aa b', 'b aa', 'ba a', 'ab b'], f'--tokenizer={kind}')
    run('train.py', '--dataset=text', '--init_from=out-x/ckpt.pt', '--learning_rate=0.0', '--device=cpu',
        '--max_iters=1', '--batch_size=2', '--block_size=4')
    assert torch.equal(load_checkpoint('out/ckpt.pt')['model']['wte.weight'], lm.model.wte.weight)


def test_a_checkpoint_of_nanogpt_that_cannot_come_in_is_an_error(run):
    tiny_nanogpt()
    good = torch.load('out-x/ckpt.pt')
    for spoiled in ({'n_layer': 1}, {'n_embd': 32}, {'x': Bomb()}, {'n_layer': None}, {'vocab_size': 50257}):
        save_as_nanogpt(good['model'], **(good['model_args'] | spoiled))
        with pytest.raises(Error, match='this checkpoint of nanoGPT cannot be read'):
            load('out-x')
    save_as_nanogpt(good['model'], **good['model_args'])
    one = pickle.dumps({'itos': {0: ' '}})
    for content, named in ((one, 'different dataset'), (pickle.dumps(Bomb()), 'meta.pkl holds a '), (None, 'put the ')):
        Path('out-x/meta.pkl').write_bytes(content) if content else Path('out-x/meta.pkl').unlink()
        with pytest.raises(Error, match=named):
            load('out-x')
    assert not Path('exploded').exists()


@pytest.mark.skipif('NANOGPT' not in os.environ, reason='NANOGPT=FOLDER names a clone of nanoGPT')
def test_logits_are_those_of_nanogpt_up_to_its_gelu(run):
    theirs = runpy.run_path(Path(os.environ['NANOGPT'], 'model.py'))
    args = dict(vocab_size=50304, block_size=32, n_layer=4, n_head=4, n_embd=64, bias=True)
    model = theirs['GPT'](theirs['GPTConfig'](**args)).eval()
    save_as_nanogpt(model.state_dict(), '_orig_mod.', **args)
    ours, idx = load('out-x', 'cpu', 'float32').model, torch.randint(50257, (2, 32))
    exact = logits(model, idx, idx)
    assert 1e-6 < (logits(ours, idx) - exact).abs().max() / exact.abs().max() < 1e-3
    for block in model.transformer.h:
        block.mlp.gelu.approximate = 'tanh'
    assert (logits(ours, idx) - logits(model, idx, idx)).abs().max() < 1e-5


# ---- llama.cpp
class Llama:
    """The real llama.cpp and its HTTP server, with an f32 cache."""

    def __init__(self, path):
        import xllamacpp
        p = xllamacpp.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.port = str(path), 256, 1, 0
        p.cpuparams.n_threads, p.warmup, p.verbosity = 1, False, 0
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # is fp16
        self.server = xllamacpp.Server(p)

    def post(self, path, **body):
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(),
                                         {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.mark.parametrize('kind, shape', [
    ('bpe', 'gpt2'), ('gpt2', 'gpt2 untied without biases, narrow'), ('bpe', 'qwen3 grouped'),
    ('bpe', 'qwen3 grouped untied, own head_dim')])
def test_llama_cpp_runs_an_exported_gguf(run, specs, kind, shape):
    checkpoint(specs[kind], shape)
    run('sample.py', '--export=exported/model.gguf')
    lm, llama = load('out', 'cpu', 'float32'), Llama('exported/model.gguf')
    for text in hostile(100):
        if '\0' not in text:
            ids = llama.post('/tokenize', content=text, add_special=False, parse_special=False)['tokens']
            assert ids == lm.tokenizer.encode(text)
    for prompt in TEXT[0].split():      # llama.cpp's GELU reads an fp16 table: a text without close calls
        idx = torch.tensor([[lm.tokenizer.eot, *lm.tokenizer.encode(prompt)]])
        here = torch.stack(list(lm.model.generate(idx, 100, temperature=0)))[:, 0].tolist()
        scores = logits(lm.model, torch.cat((idx, torch.tensor([here])), 1))[0, idx.shape[1] - 1:-1]
        first, second = scores.topk(2).values.T
        if (first - second).min() > 0.01:
            break
    greedy = dict(prompt=prompt, temperature=0)
    there = llama.post('/completion', **greedy, n_predict=100, return_tokens=True, ignore_eos=True)
    assert here == there['tokens'] and len(here) == 100 and len(set(here)) > 3
    answer = llama.post('/v1/completions', **greedy, max_tokens=9)
    assert answer['choices'][0]['text'] == lm.tokenizer.decode(here[:9])
    assert answer['usage']['completion_tokens'] == 9


@pytest.mark.parametrize('kind', ['char', 'hf', 'lower', 'prefix', 'whole'])
def test_a_tokenizer_that_llama_cpp_does_not_have_is_an_error(tmp_path, specs, kind):
    if kind in ('lower', 'prefix', 'whole'):
        like = json.loads(specs['bpe']['json'])
        like |= {'normalizer': {'type': 'Lowercase'}} if kind == 'lower' else {}
        like['pre_tokenizer'] |= {'add_prefix_space': kind == 'prefix', 'use_regex': kind != 'whole'}
        specs, kind = {'hf': {'kind': 'hf', 'json': json.dumps(like), 'eot': 319}}, 'hf'
    tokenizer = Tokenizer(specs[kind])
    with pytest.raises(Error, match=f'this {kind} tokenizer'):
        export_gguf(LanguageModel(make(vocab_size=tokenizer.vocab_size), tokenizer), tmp_path / 'model.gguf')
    assert not any(tmp_path.iterdir())


# ---- measuring
def test_evaluate_says_what_training_said(run, dataset, capsys):
    run('train.py', *TINY, '--dataset=letters')
    capsys.readouterr()
    run('sample.py', '--evaluate=True', '--device=cpu', '--dtype=float32')
    row, out = read_log()[-1], capsys.readouterr().out
    loss = float(row['val_loss'])
    assert f'{loss:.4f} nats' in out and f'{math.exp(loss):.3f}' in out
    assert f'bits/byte   {float(row["bits_per_byte"]):.4f}' in out and 'floor' not in out
    with pytest.raises(Error, match='different tokenizer'):
        Path('new.txt').write_text('something else' * 50, encoding='utf-8')
        run('prepare.py', '--input=new.txt', '--tokenizer=char')
        run('sample.py', '--evaluate=True', '--dataset=new_char')


def test_the_comparison_is_fair_across_tokenizers(run, specs, capsys):
    """Models that find all tokens equally likely: their bits per byte are known, whatever the tokenizer."""
    meta, documents = prepare_text(run, NUMBERED, '--tokenizer=gpt2')
    expected = {}
    for kind in ('gpt2', 'bpe', 'hf', 'char'):
        tokenizer = Tokenizer(specs[kind])
        if kind == 'char':
            spec = {'kind': 'char', 'alphabet': ''.join(sorted(set(''.join(NUMBERED))))}
            tokenizer = Tokenizer(spec)
        model = make(vocab_size=tokenizer.vocab_size, n_embd=8, n_head=1, block_size=32)
        torch.nn.init.zeros_(model.wte.weight)
        export_folder(LanguageModel(model, tokenizer), kind)
        if kind == 'gpt2':
            save_checkpoint('out/best.pt', model, tokenizer.spec, {'dataset': 'text'})
        tokens = sum(len(tokenizer.encode(document)) for document in documents)
        expected[kind] = tokens * math.log2(tokenizer.vocab_size) / meta['val']['bytes']
    capsys.readouterr()
    run('sample.py', '--compare=gpt2,bpe,hf,char', '--max_new_tokens=8', '--device=cpu', '--dtype=float32')
    out = capsys.readouterr().out
    table = {line.split()[0]: line.split() for line in out.splitlines()[1:6]}
    assert table['out'][1:3] == table['gpt2'][1:3]
    for kind, bits in expected.items():
        assert float(table[kind][2]) == pytest.approx(bits, abs=1e-4), kind
        assert int(table[kind][1].replace(',', '')) == build_model(read_model(kind)).num_params()
        assert int(table[kind][3].replace(',', '')) > 0                 # tokens per second
        assert f'\n{kind}: ' in out


@pytest.mark.parametrize('kind', ['gpt2', 'qwen3 tied'])
def test_the_comparison_agrees_with_a_plain_count_for_a_model_of_transformers(run, specs, capsys, kind):
    """Nats of every document on its own, where each fills more than half a window and is alone in it."""
    texts = [f'{i}, ' + 'a dog, a cat, or a mat? ' * 3 for i in range(8)]
    meta, documents = prepare_text(run, texts, '--tokenizer=char')
    checkpoint(meta['tokenizer'], dataset='text')
    hf, tokenizer = theirs(kind), Tokenizer(specs['bpe'])
    hf.save_pretrained('there')
    Path('there/tokenizer.json').write_text(specs['bpe']['json'], encoding='utf-8')
    Path('there/tokenizer_config.json').write_text(json.dumps(
        {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|endoftext|>'}), encoding='utf-8')
    nats = 0.0
    for document in documents:
        ids = tokenizer.encode(document)
        assert 32 < len(ids) <= 64
        p = logits(hf, torch.tensor([[tokenizer.eot, *ids[:-1]]])).log_softmax(-1)
        nats -= p[0, range(len(ids)), ids].sum().item()
    capsys.readouterr()
    run('sample.py', '--compare=there', '--max_new_tokens=8', '--temperature=0', '--device=cpu',
        '--dtype=float32')
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('there '))
    assert float(line.split()[2]) == pytest.approx(nats / math.log(2) / meta['val']['bytes'], abs=1e-4)


# ---- bad input
def good(folder, kind='qwen3'):
    """A folder that comes in; the tests below spoil it."""
    theirs(kind).save_pretrained(folder)
    Path(folder, 'tokenizer.json').write_text(train_bpe(TEXT, 320)['json'], encoding='utf-8')
    return folder


def change_config(folder, **fields):
    path = Path(folder) / 'config.json'
    new = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in new.items() if v != 'remove'}))


@pytest.mark.parametrize('kind, fields, named', [
    ('qwen3', {'model_type': 'llama'}, 'llama'),
    ('qwen3', {'model_type': 'remove'}, 'model_type'),
    ('qwen3', {'model_type': ['qwen3']}, 'model_type'),
    ('qwen3', {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, 'rope_scaling'),
    ('qwen3', {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0}}, 'rope_type'),
    ('qwen3', {'rope_parameters': 5}, 'there'),
    ('qwen3', {'hidden_act': 'gelu'}, 'hidden_act'),
    ('qwen3', {'attention_bias': True}, 'attention_bias'),
    ('qwen3', {'use_sliding_window': True}, 'use_sliding_window'),
    ('qwen3', {'layer_types': ['full_attention', 'sliding_attention']}, 'layer_types'),
    ('qwen3', {'num_attention_heads': 6}, 'q_proj'),
    ('qwen3', {'num_key_value_heads': 4}, 'k_proj'),
    ('qwen3', {'num_key_value_heads': 3}, 'n_kv_head=3'),
    ('qwen3', {'head_dim': 32}, 'q_proj'),
    ('qwen3', {'head_dim': 'remove'}, 'q_proj'),
    ('qwen3', {'head_dim': 15}, 'head_dim'),
    ('qwen3', {'num_hidden_layers': 3}, 'model.layers.2.*missing'),
    ('qwen3', {'num_hidden_layers': 1}, r'model.layers.1.*'),
    ('qwen3', {'num_hidden_layers': 'remove'}, 'num_hidden_layers'),
    ('qwen3', {'num_hidden_layers': 'two'}, 'num_hidden_layers'),
    ('qwen3', {'num_hidden_layers': -1}, 'n_layer'),
    ('qwen3', {'vocab_size': 321}, 'embed_tokens.*321'),
    ('qwen3', {'intermediate_size': 64}, 'gate_proj'),
    ('qwen3', {'tie_word_embeddings': True, 'num_hidden_layers': 'x'}, 'num_hidden_layers'),
    ('gpt2', {'activation_function': 'relu'}, 'activation_function'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention'),
    ('gpt2', {'n_head': 5}, 'n_head=5'),
    ('gpt2', {'n_head': 'remove'}, 'n_head'),
    ('gpt2', {'n_positions': 65}, 'wpe.weight.*65'),
    ('gpt2', {'tie_word_embeddings': False}, 'lm_head.weight is missing')])
def test_a_config_that_cannot_be_mapped_is_an_error_that_names_the_field(tmp_path, kind, fields, named):
    folder = good(tmp_path / 'there', kind)
    huggingface.load(folder)
    change_config(folder, **fields)
    with pytest.raises(Error, match=named):
        huggingface.load(folder)


def spoil(folder, change):
    path = Path(folder) / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize('change, named', [
    (lambda t: t.pop('model.layers.1.mlp.up_proj.weight'), 'tensor .*layers.1.mlp.up_proj.weight is missing'),
    (lambda t: t.update({'model.layers.1.mlp.bias': torch.ones(3)}), 'model.layers.1.mlp.bias'),
    (lambda t: t.update({'model.norm.weight': torch.ones(3)}), r'model.norm.weight is \(3,\)'),
    (lambda t: t.update({'model.norm.weight': torch.ones(48, 1)}), r'model.norm.weight is \(48, 1\)'),
    (lambda t: t.clear(), 'model.safetensors')])
def test_missing_superfluous_and_misshapen_tensors_are_named(tmp_path, change, named):
    spoil(good(tmp_path), change)
    with pytest.raises(Error, match=named):
        huggingface.load(tmp_path)


def test_damaged_files_and_missing_folders_are_errors(tmp_path):
    for name, content in (('model.safetensors', b'\xff' * 100), ('model.safetensors', b''),
                          ('config.json', b'{'), ('config.json', b'[]'),
                          ('config.json', b'\xff\xfe'), ('config.json', None),
                          ('model.safetensors', None)):
        folder = good(tmp_path / 'there')
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(Error, match='there'):
            huggingface.load(folder)
    for name in ('nothing', 'no/model', '../..', 'a b', ''):
        with pytest.raises(Error):
            huggingface.load(tmp_path / 'x' if not name else name)


class Bomb:
    def __reduce__(self):
        return os.system, ('touch exploded',)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(run, specs, dataset):
    with open('proof.pkl', 'wb') as f:
        pickle.dump(Bomb(), f)
    with open('proof.pkl', 'rb') as f:
        pickle.load(f)
    assert Path('exploded').exists()                    # it would
    Path('exploded').unlink()
    for name in ('pytorch_model.bin', 'model.safetensors'):
        folder = good('there')
        Path('there/model.safetensors').unlink()
        Path('there/tokenizer.json').write_text(specs['bpe']['json'], encoding='utf-8')
        torch.save({'x': Bomb()}, 'torch.pkl')
        for pickled in ('torch.pkl', 'proof.pkl'):
            shutil.copy(pickled, f'there/{name}')
            for script, knob in (('train.py', '--init_from=there'), ('sample.py', '--out_dir=there')):
                with pytest.raises(Error, match='there'):
                    run(script, knob, '--dataset=letters')
        shutil.rmtree(folder)
    assert not Path('exploded').exists()


def test_code_in_a_compared_folder_does_not_run(run, dataset):
    checkpoint(json.loads(Path('data/letters/meta.json').read_text())['tokenizer'])
    Path('evil').mkdir()
    Path('evil/config.json').write_text(json.dumps({'model_type': 'evil', 'auto_map': {
        'AutoConfig': 'evil.Evil', 'AutoModelForCausalLM': 'evil.Evil',
        'AutoTokenizer': ['evil.Evil', None]}}))
    Path('evil/evil.py').write_text('open("exploded", "w")\nclass Evil: pass\n')
    with pytest.raises(Error, match='compare=evil'):
        run('sample.py', '--compare=evil', '--max_new_tokens=2')
    good('evil', 'gpt2')
    Path('evil/tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': 'Evil', 'auto_map': {'AutoTokenizer': ['evil.Evil', 'evil.Evil']}}))
    with pytest.raises(Error, match='compare=evil'):
        run('sample.py', '--compare=evil', '--max_new_tokens=2')
    assert not Path('exploded').exists()


def test_a_tokenizer_that_does_not_fit_the_embedding_is_an_error(run, specs):
    hf = theirs('qwen3')
    hf.resize_token_embeddings(299)
    hf.save_pretrained('there')
    Path('there/tokenizer.json').write_text(specs['hf']['json'], encoding='utf-8')
    prepare_text(run, NUMBERED, '--tokenizer=there')
    with pytest.raises(Error, match='300 tokens .* vocab_size=299'):
        run('train.py', '--init_from=there', '--dataset=text', '--block_size=8')
    with pytest.raises(Error, match='300 tokens .* vocab_size=299'):
        load('there')


@pytest.mark.parametrize('module, knob', [
    ('transformers', '--compare=there'), ('gguf', '--export=model.gguf')])
def test_a_missing_package_is_asked_for_in_one_line(run, dataset, monkeypatch, module, knob):
    checkpoint(json.loads(Path('data/letters/meta.json').read_text())['tokenizer'])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Error, match=f'pip install {module}'):
        run('sample.py', knob)


def test_what_cannot_be_compared_or_measured_is_an_error(run, specs, dataset):
    checkpoint(json.loads(Path('data/letters/meta.json').read_text())['tokenizer'])
    for name in ('nothing', 'no/model', 'a b'):
        with pytest.raises(Error, match=f'compare={name}'):
            run('sample.py', f'--compare={name}')
    change_config(good('there', 'gpt2'), eos_token_id=319)
    Path('there/tokenizer.json').write_text(specs['bpe']['json'], encoding='utf-8')
    Path('there/tokenizer_config.json').write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(Error, match='compare=there.* no token to begin'):
        run('sample.py', '--compare=there')
    with pytest.raises(Error, match='set dataset'):
        run('sample.py', '--evaluate=True', '--out_dir=there')
