"""Models of Hugging Face and nanoGPT load exactly, and what cannot be loaded is named."""
import json
import os
import pickle
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import read_log, same_weights
from safetensors.torch import load_file, save_file
from test_export import TEXT, logits, make, make_lm, spec_of

from extras import huggingface
from extras.export import export
from extras.foreign import read_tokenizer
from extras.huggingface import read_model
from lib import checkpoint as checkpoints
from lib.errors import Error
from lib.tokenizer import load_tokenizer
from sample import load

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
NUMBERED = [f'{i} {text}' for i, text in enumerate(TEXT * 3)]
GPT2 = dict(vocab_size=320, n_positions=64, n_embd=48, n_layer=2, n_head=3, initializer_range=0.3)
QWEN3 = dict(vocab_size=320, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
             num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3)
THEIRS = {
    'gpt2': GPT2,
    'gpt2 untied': dict(GPT2, n_inner=80, layer_norm_epsilon=1e-3, tie_word_embeddings=False,
                        activation_function='gelu_pytorch_tanh'),
    'qwen3': dict(QWEN3, num_key_value_heads=2, head_dim=16),
    'qwen3 tied': dict(QWEN3, num_key_value_heads=4, head_dim=12, rms_norm_eps=1e-4,
                       tie_word_embeddings=True, hidden_act='swish',
                       rope_parameters={'rope_type': 'default', 'rope_theta': 5e5})}


def make_theirs(kind='gpt2'):
    """A model of transformers whose weights, biases and norms are random."""
    torch.manual_seed(1)
    if 'gpt2' in kind:
        hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**THEIRS[kind]))
    else:
        hf = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**THEIRS[kind]))
    for p in hf.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, p.mean().item(), 0.3)
    return hf.eval()


def save_tokenizer(folder, kind, **config):
    Path(folder, 'tokenizer.json').write_text(spec_of(kind)['json'], encoding='utf-8')
    Path(folder, 'tokenizer_config.json').write_text(json.dumps(config), encoding='utf-8')


def good_folder(folder, kind='qwen3'):
    """A folder that loads; tests spoil it."""
    make_theirs(kind).save_pretrained(folder)
    save_tokenizer(folder, 'bpe')
    return folder


def change_config(folder, **fields):
    path = Path(folder) / 'config.json'
    changed = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in changed.items() if v != 'remove'}))


def prepare_text(run, texts, *settings):
    """Make data/text of these documents."""
    Path('text.txt').write_text('<|endoftext|>'.join(texts), encoding='utf-8')
    run('prepare.py', '--input=text.txt', '--name=text', '--val_fraction=0.4', *settings)


# ---- Hugging Face models
@pytest.mark.parametrize('kind', THEIRS)
@pytest.mark.parametrize('how', ['whole', 'sharded', 'without head', 'bfloat16'])
def test_a_model_of_transformers_gives_the_same_logits(tmp_path, kind, how):
    hf = make_theirs(kind)
    if how == 'bfloat16':
        hf = hf.bfloat16()
    saved = hf.base_model if how == 'without head' else hf
    saved.save_pretrained(tmp_path, max_shard_size='50KB' if how == 'sharded' else '5GB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1 or how != 'sharded'
    if how == 'without head' and not hf.config.tie_word_embeddings:
        with pytest.raises(Error, match='lm_head.weight is missing'):
            read_model(tmp_path)
        return
    model = checkpoints.build_model(read_model(tmp_path)).eval()
    if how == 'bfloat16':
        hf = type(hf).from_pretrained(tmp_path, dtype=torch.float32)
    if 'gpt2' in kind:
        model.double(), hf.double()
    idx = torch.randint(320, (2, 64))
    found, expected = logits(model, idx), logits(hf, idx)
    assert expected.std() > 1
    tolerance = 1e-9 if 'gpt2' in kind else 1e-5 * expected.abs().max()
    assert (found - expected).abs().max() < tolerance
    assert model.num_params() == hf.num_parameters()
    shorter = checkpoints.build_model(read_model(tmp_path), block_size=32)
    assert shorter.config.block_size == 32 and shorter(idx[:, :32]).shape == (2, 32, 320)


def test_a_model_loads_by_its_hugging_face_name(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    repository = tmp_path / 'models--some--model'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs/main').write_text('abc')
    folder = good_folder(repository / 'snapshots/abc')
    found = checkpoints.load('some/model', from_hub=True)
    assert same_weights(found['model'], read_model(folder)['model'])
    assert found['tokenizer']['eot'] == 319


def test_other_weights_beside_the_model_are_not_read(tmp_path):
    expected = read_model(good_folder(tmp_path))['model']
    tensors = load_file(tmp_path / 'model.safetensors')
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for name in ('model.fp16', 'model_old', 'model-00001-of-00001'):
        save_file(zeros, tmp_path / f'{name}.safetensors')
    assert same_weights(read_model(tmp_path)['model'], expected)


def test_an_old_gpt2_file_without_prefix_and_with_masks_loads(tmp_path):
    hf = make_theirs()
    hf.save_pretrained(tmp_path)
    path = tmp_path / 'model.safetensors'
    tensors = {name.removeprefix('transformer.'): t for name, t in load_file(path).items()}
    tensors['h.0.attn.bias'] = torch.ones(1, 1, 64, 64).tril()
    tensors['h.0.attn.masked_bias'] = torch.tensor(-1e4)
    save_file(tensors, path)
    for field in ('n_inner', 'tie_word_embeddings', 'layer_norm_epsilon', 'dtype',
                  'scale_attn_weights'):
        change_config(tmp_path, **{field: 'remove'})
    idx = torch.randint(320, (2, 64))
    model = checkpoints.build_model(read_model(tmp_path)).eval()
    assert torch.allclose(logits(model, idx), logits(hf, idx), atol=1e-4)


# ---- training from a Hugging Face model
def test_training_starts_from_a_hugging_face_folder_and_its_tokenizer(run):
    hf = make_theirs('qwen3 tied')
    hf.resize_token_embeddings(310)                 # more rows than tokens, as is common
    hf.save_pretrained('there')
    save_tokenizer('there', 'hf', eos_token='<|im_end|>')
    prepare_text(run, NUMBERED, '--tokenizer=there')
    start = ('--dataset=text', '--init_from=there', '--block_size=32', '--batch_size=2',
             '--device=cpu', '--dtype=float32', '--max_iters=1', '--warmup_iters=0')
    run('train.py', *start, '--learning_rate=0.0', '--min_lr=0.0')
    saved = checkpoints.load('out/ckpt.pt')
    assert same_weights(saved['model'], read_model('there')['model'])
    shape = saved['model_config']
    assert (shape['arch'], shape['n_kv_head'], shape['rope_theta']) == ('qwen3', 4, 5e5)
    assert shape['block_size'] == 32 and saved['tokenizer']['eot'] == 1
    first = float(read_log()[-1]['val_loss'])
    run('train.py', *start, '--learning_rate=0.003', '--max_iters=8', '--overwrite=True')
    assert float(read_log()[-1]['val_loss']) < first
    run('train.py', '--init_from=resume', '--dataset=text', '--max_iters=9')
    export(load('out', 'cpu', 'float32'), 'again')
    assert read_model('again')['model_config'] == checkpoints.load('out')['model_config']
    assert load_tokenizer(read_tokenizer('again')).eot == 1
    run('sample.py', '--out_dir=again', '--max_new_tokens=5')       # and it can be sampled


def test_gpt2_from_a_folder_fits_data_prepared_with_tiktoken(run):
    lm = make_lm('gpt2', 'gpt2', n_embd=8)
    export(lm, 'there')
    prepare_text(run, NUMBERED[:12], '--tokenizer=gpt2')
    start = ('--dataset=text', '--init_from=there', '--batch_size=1', '--max_iters=1',
             '--learning_rate=0.0', '--min_lr=0.0', '--device=cpu', '--dtype=float32')
    run('train.py', *start, '--block_size=8')
    ours, theirs = checkpoints.load('out/ckpt.pt')['model'], lm.model.state_dict()
    theirs['wpe.weight'] = theirs['wpe.weight'][:8]
    assert same_weights(ours, theirs)
    with pytest.raises(Error, match='block_size=300 .* 256'):
        checkpoints.build_model(read_model('there'), block_size=300)
    prepare_text(run, NUMBERED, '--tokenizer=char', '--overwrite=True')
    with pytest.raises(Error, match='does not use the tokenizer'):
        run('train.py', *start, '--block_size=8', '--out_dir=new')


def test_a_tokenizer_that_does_not_fit_the_embedding_is_an_error(run):
    hf = make_theirs('qwen3')
    hf.resize_token_embeddings(299)
    hf.save_pretrained('there')
    save_tokenizer('there', 'hf')
    prepare_text(run, NUMBERED, '--tokenizer=there')
    with pytest.raises(Error, match='300 tokens.* vocab_size=299'):
        run('train.py', '--init_from=there', '--dataset=text', '--block_size=8')
    with pytest.raises(Error, match='300 tokens.* vocab_size=299'):
        load('there')


# ---- nanoGPT
class Bomb:
    def __reduce__(self):
        return os.system, ('touch exploded',)


def save_as_nanogpt(tensors, prefix='', **args):
    """out-x/ckpt.pt as nanoGPT writes it, from tensors by their names there."""
    Path('out-x').mkdir(exist_ok=True)
    torch.save({'model': {prefix + name: tensor for name, tensor in tensors.items()},
                'model_args': args, 'optimizer': {}, 'best_val_loss': torch.tensor(2.0),
                'config': {}}, 'out-x/ckpt.pt')


def make_nanogpt(rows=3, bias=True, prefix=''):
    """Save a small model as out-x/ckpt.pt of nanoGPT. Returns the same model of ours."""
    model = make('gpt2', vocab_size=rows, bias=bias, block_size=8, n_embd=16)
    tensors = {'lm_head.weight': model.lm_head.weight,
               'transformer.h.0.attn.bias': torch.ones(1, 1, 8, 8).tril()}     # in older versions
    for name, tensor in model.state_dict().items():
        for ours, theirs in (('norm_f', 'ln_f'), ('norm_', 'ln_'), ('o_proj', 'c_proj'),
                             ('up_proj', 'c_fc'), ('down_proj', 'c_proj')):
            name = name.replace(ours, theirs)
        if name != 'lm_head.weight' and '_proj' not in name.replace('c_proj', ''):
            tensors[f'transformer.{name}'] = tensor
    for layer, block in enumerate(model.h):
        for kind in ('weight', 'bias') if bias else ('weight',):
            parts = [getattr(projection, kind) for projection in
                     (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj)]
            tensors[f'transformer.h.{layer}.attn.c_attn.{kind}'] = torch.cat(parts).detach()
    save_as_nanogpt(tensors, prefix, vocab_size=rows, block_size=8, n_layer=2, n_head=4,
                    n_embd=16, bias=bias)
    Path('out-x/meta.pkl').write_bytes(pickle.dumps({'itos': {0: ' ', 1: 'a', 2: 'b'}}))
    return model


@pytest.mark.parametrize('rows, bias, prefix', [(50304, False, '_orig_mod.'), (50257, True, ''),
                                                (3, True, '')])
def test_a_checkpoint_of_nanogpt_loads_and_can_be_trained(run, capsys, rows, bias, prefix):
    model, kind = make_nanogpt(rows, bias, prefix), 'char' if rows == 3 else 'gpt2'
    lm = load('out-x', dtype='float32')
    assert capsys.readouterr().err.count('exact GELU') == 1 and lm.tokenizer.kind == kind
    idx = torch.tensor([[0, 2]])
    assert torch.allclose(logits(lm.model, idx)[..., :rows], logits(model, idx), atol=1e-5)
    assert lm.tokenizer.decode(lm.tokenizer.encode('a b')) == 'a b'
    assert lm.generate('a', max_new_tokens=20)
    texts = ['a b', 'b a', 'aa b', 'b aa', 'ba a', 'ab b']
    prepare_text(run, texts, f'--tokenizer={kind}')
    run('train.py', '--dataset=text', '--init_from=out-x/ckpt.pt', '--learning_rate=0.0',
        '--min_lr=0.0', '--device=cpu', '--dtype=float32', '--max_iters=1', '--batch_size=2',
        '--block_size=4')
    trained = checkpoints.load('out/ckpt.pt')['model']
    assert torch.equal(trained['wte.weight'], lm.model.wte.weight)


def test_the_end_of_text_of_nanogpt_characters_is_never_the_most_likely(run):
    make_nanogpt()
    lm = load('out-x', dtype='float32')
    scores = logits(lm.model, torch.randint(3, (8, 8)))
    assert (scores[..., lm.tokenizer.eot] < scores[..., :3].amax(-1)).all()


def test_a_checkpoint_of_nanogpt_that_cannot_be_loaded_is_an_error(run):
    make_nanogpt()
    good = torch.load('out-x/ckpt.pt')
    changes = ({'n_layer': 1}, {'n_embd': 32}, {'n_head': 3}, {'x': Bomb()}, {'n_layer': None},
               {'vocab_size': 50257})
    for change in changes:
        save_as_nanogpt(good['model'], **(good['model_args'] | change))
        with pytest.raises(Error, match='cannot read this nanoGPT checkpoint'):
            load('out-x')
    save_as_nanogpt(good['model'], **good['model_args'])
    meta = Path('out-x/meta.pkl')
    for content, named in ((pickle.dumps({'itos': {0: ' '}}), 'different dataset'),
                           (pickle.dumps(Bomb()), 'meta.pkl holds a '), (None, 'copy the meta')):
        meta.write_bytes(content) if content else meta.unlink()
        with pytest.raises(Error, match=named):
            load('out-x')
    assert not Path('exploded').exists()


@pytest.mark.skipif('NANOGPT' not in os.environ, reason='NANOGPT=FOLDER names a clone of nanoGPT')
def test_logits_are_those_of_nanogpt_except_for_its_gelu(run):
    theirs = runpy.run_path(Path(os.environ['NANOGPT'], 'model.py'))
    args = dict(vocab_size=50304, block_size=32, n_layer=4, n_head=4, n_embd=64, bias=True)
    model = theirs['GPT'](theirs['GPTConfig'](**args)).eval()
    save_as_nanogpt(model.state_dict(), '_orig_mod.', **args)
    ours, idx = load('out-x', 'cpu', 'float32').model, torch.randint(50257, (2, 32))
    exact = model(idx, idx)[0].detach()
    assert 1e-6 < (logits(ours, idx) - exact).abs().max() / exact.abs().max() < 1e-3
    for block in model.transformer.h:
        block.mlp.gelu.approximate = 'tanh'
    assert (logits(ours, idx) - model(idx, idx)[0]).abs().max() < 1e-5


# ---- bad input
@pytest.mark.parametrize('kind, fields, named', [
    ('qwen3', {'model_type': 'llama'}, 'llama'),
    ('qwen3', {'model_type': 'remove'}, 'model_type'),
    ('qwen3', {'model_type': ['qwen3']}, 'model_type'),
    ('qwen3', {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, 'rope_scaling'),
    ('qwen3', {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4}}, 'rope_type'),
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
    ('qwen3', {'num_hidden_layers': 10**9}, 'n_layer'),
    ('qwen3', {'hidden_size': 10**30}, 'hidden_size'),
    ('qwen3', {'vocab_size': 321}, 'embed_tokens.*321'),
    ('qwen3', {'vocab_size': 1 << 50}, 'vocab_size'),
    ('qwen3', {'intermediate_size': 64}, 'gate_proj'),
    ('gpt2', {'activation_function': 'relu'}, 'activation_function'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention'),
    ('gpt2', {'n_head': 5}, 'n_head=5'),
    ('gpt2', {'n_head': 'remove'}, 'n_head'),
    ('gpt2', {'n_positions': 65}, 'wpe.weight.*65'),
    ('gpt2', {'tie_word_embeddings': False}, 'lm_head.weight is missing')])
def test_a_config_that_is_not_supported_is_an_error_that_names_the_field(
        tmp_path, kind, fields, named):
    folder = good_folder(tmp_path / 'there', kind)
    assert huggingface.load(folder)['settings'] == {}
    change_config(folder, **fields)
    with pytest.raises(Error, match=named):
        huggingface.load(folder)


@pytest.mark.parametrize('change, named', [
    (lambda t: t.pop('model.layers.1.mlp.up_proj.weight'), 'layers.1.mlp.up_proj.weight is missi'),
    (lambda t: t.update({'model.layers.1.mlp.bias': torch.ones(3)}), 'model.layers.1.mlp.bias'),
    (lambda t: t.update({'model.norm.weight': torch.ones(3)}), r'model.norm.weight is \(3,\)'),
    (lambda t: t.update({'model.norm.weight': torch.ones(48, 1)}), r'norm.weight is \(48, 1\)'),
    (lambda t: t.clear(), 'model.safetensors')])
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path, change, named):
    path = good_folder(tmp_path) / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(Error, match=named):
        huggingface.load(tmp_path)


def test_damaged_files_and_missing_folders_are_errors(tmp_path):
    for name, content in (('model.safetensors', b'\xff' * 100), ('model.safetensors', b''),
                          ('config.json', b'{'), ('config.json', b'[]'),
                          ('config.json', b'\xff\xfe'), ('config.json', None),
                          ('model.safetensors', None)):
        path = good_folder(tmp_path / 'there') / name
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(Error, match='there'):
            huggingface.load(tmp_path / 'there')
    for name in ('nothing', 'no/model', '../..', 'a b', tmp_path / 'x'):
        with pytest.raises(Error, match='neither a checkpoint nor a Hugging Face model'):
            huggingface.load(name)


def test_pickled_weights_are_refused_and_no_code_in_them_runs(run, dataset):
    Path('pickle.pkl').write_bytes(pickle.dumps(Bomb()))
    pickle.loads(Path('pickle.pkl').read_bytes())
    assert Path('exploded').exists()                        # unpickling it would
    Path('exploded').unlink()
    torch.save({'x': Bomb()}, 'torch.pkl')
    for name in ('pytorch_model.bin', 'model.safetensors'):
        folder = good_folder('there')
        Path('there/model.safetensors').unlink()
        for pickled in ('torch.pkl', 'pickle.pkl'):
            shutil.copy(pickled, f'there/{name}')
            for script, setting in (('train.py', '--init_from'), ('sample.py', '--out_dir')):
                settings = ['--dataset=letters'] if script == 'train.py' else []
                with pytest.raises(Error, match='there'):
                    run(script, f'{setting}=there', *settings)
        shutil.rmtree(folder)
    assert not Path('exploded').exists()
