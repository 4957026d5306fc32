"""The model, generation, optimizers, evaluation and checkpoints."""
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, same_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import model as model_file
import train
from extras.export import to_hugging_face
from lib import checkpoint as checkpoints
from lib.dataset import Validation, read_windows, window_cuts
from lib.device import start_hardware
from lib.errors import Error
from lib.muon import Muon, orthogonalize
from lib.tokenizer import load_tokenizer
from model import (
    GPT,
    GPTConfig,
    attend,
    causal_mask,
    fused_attend,
    keep_top_p,
    rotary,
    rotate,
    sample_from,
)

SHAPES = {
    'gpt2': {'arch': 'gpt2', 'bias': True},
    'gpt2 untied': {'arch': 'gpt2', 'tie_weights': False},
    'qwen3': {'arch': 'qwen3'},
    'qwen3 grouped': {'arch': 'qwen3', 'n_kv_head': 2, 'head_dim': 6, 'tie_weights': False},
    'mixed': {'arch': 'gpt2', 'bias': True, 'n_kv_head': 2, 'head_dim': 6, 'positions': 'rope'}}
SPEC = {'kind': 'char', 'alphabet': ''.join(map(chr, range(300, 349)))}


def make(shape='qwen3', **more):
    """A small model with weights large enough that its logits differ."""
    torch.manual_seed(0)
    small = {'n_layer': 2, 'n_head': 4, 'n_embd': 32, 'vocab_size': 50, 'block_size': 16}
    model = GPT(GPTConfig(**{**small, **SHAPES[shape], **more})).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10)
    return model


def rows_of(model, idx, n, **sampling):
    return torch.stack(list(model.generate(idx, n, **sampling)), 1)


# ---- the network
@pytest.mark.parametrize('shape', SHAPES)
def test_a_token_does_not_attend_to_later_ones(shape):
    model = make(shape)
    a = torch.randint(50, (1, 16))
    b = a.clone()
    b[0, 9:] = (b[0, 9:] + 7) % 50
    x, y = model(a), model(b)
    assert torch.equal(x[0, :9], y[0, :9]) and not torch.allclose(x[0, 9:], y[0, 9:])


def test_gpt2_has_its_published_size_and_a_new_model_predicts_uniformly():
    with torch.device('meta'):
        config = GPTConfig(50257, 'gpt2', 1024, n_layer=12, n_head=12, n_embd=768, bias=True)
        assert GPT(config).num_params() == 124_439_808
    torch.manual_seed(0)
    ids = torch.randint(300, (8, 32))
    for arch in ('gpt2', 'qwen3'):
        loss = GPT(GPTConfig(300, arch, block_size=32))(ids, ids.roll(1)).item()
        assert abs(loss - math.log(300)) < 0.1


def test_residual_projections_start_smaller_and_tied_weights_stay_tied():
    model = GPT(GPTConfig(300, n_layer=8))
    for block in model.h:
        for layer in (block.attn.o_proj, block.mlp.down_proj):
            assert abs(layer.weight.std().item() - 0.02 / 4) < 5e-4
        assert abs(block.attn.q_proj.weight.std().item() - 0.02) < 1e-3
    again = checkpoints.build_model({'model_config': vars(model.config),
                                     'model': model.state_dict()})
    assert model.lm_head.weight is model.wte.weight and again.lm_head.weight is again.wte.weight


def exact_attention(q, k, v):
    """Causal attention, one query at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        keys, values = k[:, head // group], v[:, head // group]
        for t in range(q.shape[2]):
            scores = (keys[:, :t + 1] @ q[:, head, t, :, None])[..., 0] / q.shape[3] ** 0.5
            out[:, head, t] = (scores.softmax(-1)[:, None] @ values[:, :t + 1])[:, 0]
    return out


@pytest.mark.parametrize('n_kv_head', [4, 2, 1])
def test_fused_attention_and_the_formula_are_causal_attention(n_kv_head):
    torch.manual_seed(0)
    q, k, v = qkv = [torch.randn(3, heads, 12, 8, requires_grad=True)
                     for heads in (4, n_kv_head, n_kv_head)]
    causal = causal_mask(12, 12, 'cpu')
    exact, formula, fused = exact_attention(*qkv), attend(*qkv, causal), fused_attend(*qkv, None)
    shut = torch.zeros(12).masked_fill(torch.arange(12) >= 7, -math.inf)
    for y in (formula, fused, fused_attend(*qkv, causal)):
        assert torch.allclose(y.double(), exact, atol=1e-5)
    assert torch.allclose(fused_attend(q[:, :, -1:], k, v, None), formula[:, :, -1:], atol=1e-6)
    for function in (attend, fused_attend):
        some = function(q[:, :, -5:], k, v, causal_mask(5, 12, 'cpu'))
        assert torch.allclose(some, formula[:, :, -5:], atol=1e-5)
        masked = function(q[:, :, 6:7], k, v, shut[None])
        assert torch.allclose(masked, formula[:, :, 6:7], atol=1e-6)
    direction = torch.randn_like(formula)
    for a, b in zip(*(torch.autograd.grad(y, qkv, direction) for y in (formula, fused))):
        assert torch.allclose(a, b, atol=1e-5)
    mean = sum(attend(*qkv, causal, dropout=0.5) for _ in range(2000)) / 2000
    assert (mean - formula).abs().max() < 0.25
    assert not torch.equal(attend(*qkv, causal, dropout=0.5), formula)


@pytest.mark.parametrize('change', [
    {'arch': 'gpt2', 'positions': 'rope'}, {'positions': 'learned'}, {'norm': 'layer'},
    {'mlp': 'gelu'}, {'qk_norm': 'none'}, {'arch': 'gpt2', 'mlp': 'swiglu', 'qk_norm': 'rms'}])
def test_parts_of_one_architecture_fit_the_other(change):
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, block_size=16, n_layer=2, n_head=2, n_embd=32, **change)).eval()
    idx, cache = torch.randint(50, (1, 12)), model.new_cache(1)
    with torch.inference_mode():
        parts = [model.next_logits(part, cache) for part in idx.split([5] + [1] * 7, dim=1)]
        torch.testing.assert_close(torch.stack(parts, dim=1), model(idx)[:, 4:])
    assert vars(model.config).items() >= change.items()
    model(idx, idx).backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(Error, match='so no other program can run it'):
        to_hugging_face(model, eot=0)


def test_rotated_products_depend_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8)

    def product(i, j):
        return (rotate(q, rotary(torch.tensor([i]), 8, 100.0))
                * rotate(k, rotary(torch.tensor([j]), 8, 100.0))).sum()
    assert torch.allclose(product(3, 7), product(40, 44), atol=1e-5)
    assert not torch.allclose(product(3, 7), product(3, 8), atol=1e-3)
    a, b, c, d = 1.0, 2.0, 3.0, 4.0                 # pairs (a, c) and (b, d), by 1 and by 0.1
    turned = rotate(torch.tensor([a, b, c, d])[None, None, None], rotary(torch.ones(1), 4, 100.0))
    assert torch.allclose(turned[0, 0, 0], torch.tensor([
        a * math.cos(1) - c * math.sin(1), b * math.cos(.1) - d * math.sin(.1),
        c * math.cos(1) + a * math.sin(1), d * math.cos(.1) + b * math.sin(.1)]), atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_in_bf16_are_near_those_in_fp32(shape):
    model, ids = make(shape), torch.randint(50, (4, 16))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.div_(5)

    def gradient(bf16):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            model(ids, ids.roll(1, 1)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    exact = gradient(False)
    assert 0 < (gradient(True) - exact).norm() < 0.02 * exact.norm()


def test_the_loss_is_the_mean_cross_entropy_of_targets_other_than_minus_1(monkeypatch):
    """Also if it is computed in pieces, which need less memory."""
    model, idx = make(), torch.randint(50, (4, 16))
    targets = idx.roll(-1, 1)
    targets[1:3, 5:] = -1
    p = model(idx).double().log_softmax(-1)
    exact = -p[targets >= 0].gather(1, targets[targets >= 0][:, None]).mean().item()
    held, grads = [], []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: held.append(len(logits)))
    for most, pieces in ((2 ** 25, [64]), (50 * 7, [7] * 9 + [1])):
        monkeypatch.setattr('model.MAX_LOGITS', most)
        model.zero_grad()
        held.clear()
        loss = model(idx, targets)
        assert held == pieces and loss.item() == pytest.approx(exact, rel=1e-6)
        loss.backward()
        grads.append(model.wte.weight.grad.clone())
    assert torch.allclose(*grads, atol=1e-6)


def test_dropout_applies_in_training_only():
    for changes in ({'dropout': 0.5}, {'dropout': 0.5, 'arch': 'gpt2'}):
        model, idx = make(**changes), torch.randint(50, (1, 16))
        assert torch.equal(model(idx), model(idx))
        assert not torch.equal(model.train()(idx), model(idx))


@pytest.mark.parametrize('fields', [
    {'arch': 'llama'}, {'n_embd': 30}, {'n_kv_head': 3}, {'n_layer': 0}, {'block_size': 0},
    {'head_dim': 5}, {'dropout': 1.0}, {'dropout': -0.1}, {'vocab_size': 0}, {'n_inner': -1},
    {'n_layer': 1001}, {'n_inner': 1 << 25}, {'norm_eps': 1.0}, {'rope_theta': 0.0},
    {'n_head': 0}, {'n_head': -4}, {'vocab_size': 1 << 25}])
def test_impossible_shapes_are_value_errors_that_name_a_field(fields):
    possible = {'vocab_size': 50, 'n_head': 4, 'n_embd': 32}
    GPTConfig(**possible)
    with pytest.raises(ValueError, match='|'.join(fields)):
        GPTConfig(**{**possible, **fields})


# ---- generation
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('prompt', [1, 16, 17, 40])
def test_the_cache_gives_what_rereading_the_window_gives(shape, prompt, dtype, tolerance,
                                                         monkeypatch):
    """The window restarts on its last half when it is full; of a longer prompt it is the end."""
    model, idx, logits = make(shape).to(dtype), torch.randint(50, (2, prompt)), []
    monkeypatch.setattr(model_file, 'sample_from', lambda *a: logits.append(a[0]) or sample_from(*a))
    text = torch.cat((idx, rows_of(model, idx, 40)), 1)
    lengths = [*range(min(prompt, 16), 17), *5 * [*range(8, 17)]][:40]
    model.float()
    with torch.no_grad():
        exact = torch.stack([model(text[:, end - length:end])[:, -1]
                             for end, length in zip(range(prompt, prompt + 40), lengths)])
    assert exact.std() > 1
    assert (torch.stack(logits) - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.parametrize('shape', ['gpt2', 'qwen3'])
def test_generation_reads_each_token_once_between_restarts(shape, monkeypatch):
    read, hidden = [], GPT.hidden
    monkeypatch.setattr(GPT, 'hidden', lambda self, idx, cache, mask: (
        read.append((cache.length, idx.shape[1])) or hidden(self, idx, cache, mask)))
    rows_of(make(shape), torch.randint(50, (2, 5)), 30)
    restart = [(0, 8), *((n, 1) for n in range(8, 16))]
    assert read == [(0, 5), *((n, 1) for n in range(5, 16)), *restart, *restart]


@pytest.mark.parametrize('shape', SHAPES)
def test_with_a_window_of_one_token_each_follows_from_the_one_before(shape):
    model, start = make(shape, block_size=1), torch.zeros(1, 3, dtype=torch.long)
    ids = torch.cat((start, rows_of(model, start, 20, temperature=0)), 1)[0, 2:]
    assert torch.equal(ids[1:], model(ids[:-1, None])[:, 0].argmax(-1))


def test_a_model_that_ignores_the_cache_generates_the_same(monkeypatch):
    model, idx = make(), torch.randint(50, (2, 5))
    expected = rows_of(model, idx, 40, seed=3)
    hidden = GPT.hidden
    monkeypatch.setattr(GPT, 'hidden', lambda self, idx, cache=None, mask=None: hidden(self, idx))
    assert torch.equal(rows_of(model, idx, 40, seed=3), expected)


def test_sampling_at_its_limits_is_greedy():
    model, idx = make(), torch.randint(50, (3, 5))
    greedy = rows_of(model, idx, 30, temperature=0)
    for sampling in ({'top_k': 1}, {'top_p': 1e-9}, {'temperature': 1e-4}, {'temperature': 1e-39},
                     {'temperature': 0, 'seed': 9}):
        assert torch.equal(rows_of(model, idx, 30, **sampling), greedy)
    five, six = (rows_of(model, idx, 30, seed=seed) for seed in (5, 6))
    assert torch.equal(rows_of(model, idx, 30, seed=5), five) and not torch.equal(five, six)


def test_sampling_follows_the_distribution_of_its_settings():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0, -torch.inf]])
    draws = torch.arange(4000) / 4000

    def shares(*sampling):
        ids = sample_from(logits.expand(4000, -1), draws, *sampling)
        return torch.bincount(ids, minlength=5) / 4000

    p = logits[0].softmax(-1)
    assert torch.allclose(shares(1.0, 0, 1.0), p, atol=1e-3)
    assert torch.allclose(shares(0.5, 0, 1.0), (logits[0] / 0.5).softmax(-1), atol=1e-3)
    two = torch.tensor([0, 0, 0, p[1], p[0]]) / p[:2].sum()
    assert torch.allclose(shares(1.0, 2, 1.0).sort()[0], two, atol=1e-3)
    for top_p, kept in ((0.5, 1), (0.6, 3), (0.9, 3), (0.99, 4)):       # equals stay together
        expected = p * (torch.arange(5) < kept)
        assert torch.allclose(shares(1.0, 0, top_p), expected / expected.sum(), atol=1e-3)
    assert sample_from(logits, torch.tensor([1 - 1e-7]), 1.0, 0, 1.0) == 3
    assert sample_from(logits, torch.tensor([0.0]), 1.0, 0, 1.0) == 0


@pytest.mark.parametrize('sharpness', [0, 0.1, 1, 10, 100])
def test_top_p_keeps_what_a_full_sort_keeps(sharpness):
    """Also where the 256 most likely tokens do not reach top_p, in one row or in all."""
    torch.manual_seed(0)
    p = (torch.randn(4, 5000) * sharpness).softmax(-1)
    p[3] = (torch.randn(5000) * 10).softmax(-1)
    reaches = p.topk(256).values.sum(-1) >= 0.9
    assert reaches.tolist() == [sharpness >= 10] * 3 + [True]
    for top_p in (1e-9, 0.1, 0.5, 0.9, 0.99):
        kept = keep_top_p(p, top_p)
        assert torch.equal(kept, p * (kept > 0))
        for row, kept_row in zip(p, kept):
            least = kept_row[kept_row > 0].min()
            assert torch.equal(kept_row > 0, (row >= least) & (row > 0))
            likelier = row[row > least].double().sum().item()
            equal = row[row == least].double().sum().item()
            assert likelier < top_p + 1e-4 and likelier + equal > top_p - 1e-4
            assert torch.equal(keep_top_p(row[None], top_p)[0], kept_row)


def test_repetition_penalty_lowers_tokens_that_occurred_but_not_end_of_text():
    model, idx = make(), torch.randint(50, (1, 8))
    plain = rows_of(model, idx, 30, temperature=0)[0].tolist()
    varied = rows_of(model, idx, 30, temperature=0, repetition_penalty=1e9)[0].tolist()
    assert len(set(varied)) == 30 > len(set(plain)) and not set(varied) & set(idx[0].tolist())
    logits, eot = torch.tensor([[2.0, -1.0, 1.0, 3.0]]), 3
    penalized = model_file.penalize(logits, torch.tensor([[3, 1, 0, 1]]), 2.0, eot)
    assert penalized.tolist() == [[1.0, -2.0, 1.0, 3.0]]
    with torch.no_grad():               # end-of-text begins the prompt and is the likeliest next
        model.lm_head.weight[:] = 0
    first = next(model.generate(torch.zeros(1, 1, dtype=torch.long), 1, temperature=0, eot=0,
                                repetition_penalty=9.0))
    assert first == 0


def test_a_row_ends_at_end_of_text_and_depends_on_its_own_seed_and_prompt_only():
    model, idx = make(), torch.randint(1, 50, (6, 4))
    rows = rows_of(model, idx, 100, eot=0, seed=10)
    ends = [row.tolist().index(0) if 0 in row else 100 for row in rows]
    assert 1 < len(set(ends)) and rows.shape[1] == min(100, max(ends) + 1)
    for i, (row, end) in enumerate(zip(rows, ends)):
        assert not row[end:].any()
        alone = rows_of(model, idx[i:i + 1], 100, eot=0, seed=10 + i)[0]
        assert torch.equal(alone, row[:end + 1])


def test_ids_without_a_token_are_never_sampled_however_large_their_logits():
    model, idx = make('gpt2', tie_weights=False), torch.randint(40, (8, 4))
    with torch.no_grad():
        model.norm_f.weight.zero_()
        model.norm_f.bias.fill_(1)
        model.lm_head.weight[40:] = 1                   # their logits are 32, others far below
    assert (rows_of(model, idx, 20) >= 40).all()
    for sampling in ({'temperature': 0}, {'temperature': 0, 'repetition_penalty': 9.0},
                     {'temperature': 9.0}, {'top_k': 45}, {'top_p': 0.9},
                     {'top_k': 3, 'top_p': 0.99}):
        assert (rows_of(model, idx, 20, n_tokens=40, **sampling) < 40).all()


# ---- optimizers
def groups_of(model, monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setattr(train, name, value)
    return train.make_optimizer(model, torch.float32)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('shape', SHAPES)
def test_optimizers_hold_each_parameter_once_and_only_matrices_decay(optimizer, shape,
                                                                     monkeypatch):
    model = make(shape)
    opt = groups_of(model, monkeypatch, optimizer=optimizer, embedding_lr_scale=3.0)
    assert type(opt).__name__.lower() == optimizer
    parameters = [p for group in opt.param_groups for p in group['params']]
    assert sorted(map(id, parameters)) == sorted(map(id, model.parameters()))
    blocks = {id(p) for p in model.h.parameters()}
    embeddings = {id(layer.weight) for layer in model.children() if hasattr(layer, 'embedding_dim')}
    for group in opt.param_groups:
        for p in group['params']:
            is_matrix_of_block = id(p) in blocks and p.ndim == 2
            assert group['use_muon'] == is_matrix_of_block
            assert group['lr_scale'] == (3 if id(p) in embeddings else 1)
            decay = group['weight_decay'] * group['lr_scale']
            assert decay == pytest.approx(0.1 if p.ndim == 2 else 0)


def test_muon_updates_matrices_as_torch_does(monkeypatch):
    """Several matrices of one shape, square, tall and wide, beside a vector that AdamW updates;
    the momentum decays by 0.85 at first and by 0.95 from step 300 on."""
    shapes = (12, 8), (8, 8), (8, 24), (12, 8), (1, 8)
    torch.manual_seed(0)
    start = [torch.randn(shape) / 50 for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    vectors = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    frozen = torch.nn.Parameter(torch.ones(3, 3))
    muon = Muon([{'params': [*ours, frozen], 'use_muon': True, 'weight_decay': 0.1},
                 {'params': vectors[:1], 'use_muon': False, 'weight_decay': 0.0}],
                0.02, (0.9, 0.95), torch.float32)
    theirs_muon = torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn='match_rms_adamw')
    theirs_adamw = torch.optim.AdamW(vectors[1:], 0.02, (0.9, 0.95), weight_decay=0.0)
    for step in (1, 2, 3, 150, 300, 900):
        for a, b in zip([*ours, vectors[0]], [*theirs, vectors[1]]):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for p in ours:
            if muon.state[p]:
                muon.state[p]['step'].fill_(step - 1)
        theirs_muon.param_groups[0]['momentum'] = 0.85 + 0.1 * min(1, step / 300)
        before = torch.cat([p.detach().flatten() for p in theirs])
        muon.step()
        theirs_muon.step()
        theirs_adamw.step()
        a, b = (torch.cat([p.detach().flatten() for p in each]) for each in (ours, theirs))
        assert (a - b).norm() < 0.03 * (b - before).norm()      # torch computes in bf16
        with torch.no_grad():
            for p, q in zip(ours, theirs):
                p.copy_(q)
    assert torch.allclose(*vectors) and torch.equal(frozen, torch.ones(3, 3))


@pytest.mark.parametrize('shape', [(2, 12, 8), (2, 8, 12), (3, 8, 8), (1, 1, 6)])
def test_orthogonalizing_maps_the_singular_values_by_the_published_polynomial(shape):
    x = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(x / x.norm(dim=(1, 2), keepdim=True), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5           # of Jordan et al. 2024
    assert torch.allclose(orthogonalize(x, torch.float64), u @ s.diag_embed() @ v, atol=1e-9)


# ---- evaluation
@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 12), st.booleans())
def test_packing_counts_each_token_once_and_keeps_documents_whole(lengths, block_size, is_cut):
    eot, stream = 0, []
    for n, length in enumerate(lengths):
        stream += [100 * (n + 1) + i for i in range(length)] + [eot]
    if is_cut and len(stream) > 1:
        stream.pop()
    ids = np.array(stream, dtype=np.int64)
    x, y = read_windows(ids, eot, block_size, window_cuts(ids, eot, block_size))
    assert x.shape == y.shape == (len(x), block_size)
    assert y[y >= 0].tolist() == stream                         # once, and in order
    assert x[y >= 0].tolist() == [eot, *stream][:len(stream)]   # each after the one before it
    for row in y.tolist():
        row = [i for i in row if i >= 0]
        for i in row:
            if i >= 100 and lengths[i // 100 - 1] + 1 <= block_size:
                assert i // 100 * 100 in row            # the beginning of its document is in sight


def validation(ids, nats=None, eval_tokens=0):
    tokenizer = load_tokenizer({'kind': 'char', 'alphabet': ''.join(map(chr, range(300, 350)))})
    meta = {'eot': 50, 'val': {'bytes': len(tokenizer.decode(ids).encode()), 'nats': nats}}
    return Validation(meta, np.array(ids), tokenizer, eval_tokens, 16)


def test_evaluation_is_the_mean_over_tokens_and_changes_no_state():
    model = make(dropout=0.3, vocab_size=51).train()
    documents = [torch.randint(50, (n,)).tolist() + [50] for n in (3, 15, 14, 1, 9, 2)]
    packed = validation(sum(documents, []))
    assert len(packed.cuts) == 5
    shapes, state = set(), torch.get_rng_state()
    watch = model.register_forward_pre_hook(lambda module, inputs: shapes.add(inputs[0].shape))
    fp32 = start_hardware('cpu', 'float32')
    loss = train.evaluate(model, packed, 3, fp32)
    watch.remove()
    assert model.training and torch.equal(state, torch.get_rng_state()) and shapes == {(3, 16)}
    assert loss == pytest.approx(train.evaluate(model, packed, 5, fp32), rel=1e-6)
    assert train.evaluate(model, packed, 2, start_hardware('cpu', 'bfloat16')) != loss
    model.eval()
    # a document sees those before it in its window, so here each is evaluated alone
    alone = sum(train.evaluate(model, validation(d), 3, fp32) * len(d) for d in documents)
    nats = sum(model(torch.tensor([[50, *d[:-1]]]), torch.tensor([d])).item() * len(d)
               for d in documents)
    assert alone == pytest.approx(nats, rel=1e-6)


# ---- checkpoints
def save(path, model, **more):
    content = {'tokenizer': SPEC, 'settings': {'seed': 5}, 'step': 3,
               'best_val_loss': 1.5, 'data': {}}
    checkpoints.save(path, model, **{**content, **more})


def test_a_checkpoint_comes_back_whole(tmp_path):
    path, model, idx = tmp_path / 'a.pt', make('gpt2'), torch.randint(50, (1, 8))
    save(path, model)
    checkpoint = checkpoints.load(path)
    assert [checkpoint[key] for key in ('tokenizer', 'settings', 'step')] == [SPEC, {'seed': 5}, 3]
    assert same_weights(checkpoints.build_model(checkpoint).state_dict(), model.state_dict())
    assert torch.equal(checkpoints.build_model(checkpoint, block_size=8)(idx), model(idx))
    assert torch.load(path, weights_only=True)['step'] == 3
    for block_size in (17, 0):
        with pytest.raises(Error, match='block_size'):
            checkpoints.build_model(checkpoint, block_size=block_size)
    checkpoint['model_config']['n_inner'] *= 2
    with pytest.raises(Error, match='do not match its config'):
        checkpoints.build_model(checkpoint)


def test_damaged_checkpoints_are_refused(tmp_path):
    path, model = tmp_path / 'a.pt', make()
    save(path, model)
    good = path.read_bytes()
    bad = {'cut': good[:-1000], 'empty': b'', 'short': good[:5], 'text': b'hello' * 9,
           'unsealed': good[:-12]}
    for at in torch.linspace(0, len(good) - 1, 60).int().tolist():
        flipped = bytearray(good)
        flipped[at] ^= 1 << at % 8
        bad[f'bit {at}'] = bytes(flipped)
    for name, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(Error, match=r'a\.pt: cannot read'):
            checkpoints.read(path)
            pytest.fail(name)
    path.write_bytes(good)
    assert same_weights(checkpoints.read(path)['model'], model.state_dict())
    with pytest.raises(Error, match='no such checkpoint'):
        checkpoints.load(tmp_path / 'b.pt')


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, 'FORMAT', 7)
    save(tmp_path / 'a.pt', make())
    monkeypatch.undo()
    with pytest.raises(Error, match='format 7; this version reads'):
        checkpoints.read(tmp_path / 'a.pt')


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    model = make()
    model.state_dict = Bomb
    save(tmp_path / 'bomb.pt', model)
    (tmp_path / 'plain.pt').write_bytes(pickle.dumps(Bomb()))
    for name in ('bomb.pt', 'plain.pt'):
        for read in (checkpoints.read, checkpoints.read_settings):
            with pytest.raises(Error, match=name):
                read(tmp_path / name)
    assert not (tmp_path / 'harm').exists()


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    resource = pytest.importorskip('resource')
    path, model = tmp_path / 'a.pt', make()
    save(path, model, step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(Error, match=r'a\.pt'):
            save(path, model, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.read(path)['step'] == 1
    assert [file.name for file in tmp_path.iterdir()] == ['a.pt']


ALONE = """
import sys
sys.path.insert(0, '.')
import torch
from model import GPT, GPTConfig, causal_mask, fused_attend
ids = torch.tensor([ord(c) - 32 for c in 'the cat sat on the mat. ' * 40])
for arch in ('gpt2', 'qwen3'):
    torch.manual_seed(0)
    config = GPTConfig(96, arch, block_size=16, n_layer=2, n_head=2, n_embd=32)
    model = GPT(config)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for step in range(50):
        starts = torch.randint(len(ids) - 17, (8,)).tolist()
        x, y = (torch.stack([ids[i + d:i + d + 16] for i in starts]) for d in (0, 1))
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses
    torch.save(model.state_dict(), 'weights.pt')
    again = GPT(config).eval()
    again.load_state_dict(torch.load('weights.pt', weights_only=True))
    context = ids[None, :5]
    for next_id in again.generate(context, 40, temperature=0):
        if context.shape[1] > 16:
            context = context[:, -8:]
        assert torch.equal(next_id, again(context)[:, -1].argmax(-1))
        context = torch.cat((context, next_id[:, None]), 1)
for shape in ({'n_head': 3}, {'arch': 'rnn'}, {'dropout': 1.0}):
    try:
        GPTConfig(96, **shape)
    except ValueError as e:
        assert next(iter(shape)) in str(e)
    else:
        raise AssertionError(shape)
print('alone')
"""


def test_model_py_works_alone_in_an_empty_folder(tmp_path):
    (tmp_path / 'model.py').write_bytes((ROOT / 'model.py').read_bytes())
    shown = subprocess.run([sys.executable, '-I', '-c', ALONE], cwd=tmp_path, text=True,
                           capture_output=True)
    assert shown.stdout == 'alone\n', shown.stderr


def test_bits_and_floor_are_of_the_tokens_that_are_evaluated():
    ids = [1, 2, 49, 50, 7, 50]                         # characters of two bytes
    whole, part = validation(ids, nats=3.0), validation(ids, nats=3.0, eval_tokens=2)
    assert whole.floor == 0.5 and part.floor is None and validation(ids).floor is None
    assert whole.bits_per_byte(math.log(2)) == pytest.approx(6 / 8)
    assert part.bits_per_byte(math.log(2)) == pytest.approx(2 / 4)
    assert part.ids.tolist() == [1, 2] and validation(ids, 3.0, 6).floor == 0.5
