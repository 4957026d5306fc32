import contextlib
import math
import os
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import same_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import extras.loss as loss_file
import model as model_file
import train
from config import Error
from config._files import save_sealed
from extras import cpu
from extras.cache import KVCache, StaticCache, attending_to
from extras.muon import orthogonalize, speed_up
from extras.sampling import Sampler
from model import (
    GPT,
    Attention,
    Block,
    GPTConfig,
    build_model,
    evaluate,
    load_checkpoint,
    save_checkpoint,
)
from prepare import evaluation_windows

SHAPES = {
    'gpt2': dict(arch='gpt2', bias=True),
    'gpt2-plain': dict(arch='gpt2', tie_weights=False),
    'qwen3': dict(arch='qwen3'),
    'qwen3-grouped': dict(arch='qwen3', n_kv_head=2, head_dim=6, tie_weights=False),
}
SPEC = {'kind': 'char', 'alphabet': 'ab'}


def make(shape='qwen3', **more):
    """A small model with weights large enough that its logits differ."""
    torch.manual_seed(0)
    small = dict(n_layer=2, n_head=4, n_embd=32, vocab_size=50, block_size=16)
    model = GPT(GPTConfig(**{**small, **SHAPES[shape], **more})).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10)
    return model


@pytest.mark.parametrize('shape', SHAPES)
def test_a_token_does_not_see_what_follows_it(shape):
    model = make(shape)
    a = torch.randint(50, (1, 16))
    b = a.clone()
    b[0, 9:] = (b[0, 9:] + 7) % 50
    x, y = model(a), model(b)
    assert torch.equal(x[0, :9], y[0, :9]) and not torch.allclose(x[0, 9:], y[0, 9:])


def test_gpt2_has_its_published_size_and_a_fresh_model_knows_nothing():
    with torch.device('meta'):
        shape = dict(arch='gpt2', n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True)
        assert GPT(GPTConfig(50257, **shape)).num_params() == 124_439_808
    torch.manual_seed(0)
    ids = torch.randint(300, (8, 32))
    for arch in ('gpt2', 'qwen3'):
        loss = GPT(GPTConfig(300, arch, block_size=32))(ids, ids.roll(1)).item()
        assert abs(loss - math.log(300)) < 0.1


def test_residual_projections_start_smaller_and_ties_hold():
    model = GPT(GPTConfig(300, n_layer=8))
    for block in model.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            assert abs(layer.weight.std().item() - 0.02 / 4) < 5e-4
    for tied in (model, build_model({'model_config': vars(model.config), 'model': model.state_dict()})):
        assert tied.lm_head.weight is tied.wte.weight


@pytest.mark.parametrize('arch', ['gpt2', 'qwen3'])
def test_head_gain_is_in_the_last_norm_and_out_of_the_output_matrix(arch):
    models = []
    for gain in (1, 20):
        torch.manual_seed(0)
        models.append(GPT(GPTConfig(50, arch, block_size=16, tie_weights=False, head_gain=gain)).eval())
    plain, gained = models
    assert (gained.norm_f.weight == 20).all()
    assert torch.allclose(gained.lm_head.weight * 20, plain.lm_head.weight)
    idx = torch.randint(50, (2, 16))
    assert torch.allclose(gained(idx), plain(idx), atol=1e-6)


@pytest.mark.parametrize('n_kv_head', [4, 2, 1])
def test_attention_by_plain_products_is_the_fused_one(n_kv_head):
    model = make(n_kv_head=n_kv_head)
    cpu.speed_up_training(model)
    attention = model.h[0].attn
    qkv = [torch.randn(3, 12, heads, 8, requires_grad=True).transpose(1, 2) for heads in (4, n_kv_head, n_kv_head)]
    fused = torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    plain = attention.plain_products(*qkv)
    assert torch.allclose(plain, fused, atol=1e-6)
    direction = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, qkv, direction) for y in (plain, fused))):
        assert torch.allclose(a, b, atol=1e-5)
    attention.dropout = 0.5
    assert torch.equal(attention.plain_products(*qkv), plain)           # not in training
    attention.train()
    mean = sum(attention.plain_products(*qkv) for _ in range(2000)) / 2000
    assert (mean - plain).abs().max() < 0.2 and not torch.equal(attention.plain_products(*qkv), plain)


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_in_bf16_are_those_in_fp32_to_its_rounding(shape, fast, monkeypatch):
    model, ids = make(shape), torch.randint(50, (4, 16))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.div_(5)
    taken, plain = [], cpu.CPUAttention.plain_products
    monkeypatch.setattr(cpu.CPUAttention, 'plain_products', lambda *a: taken.append(1) or plain(*a))

    def gradient(bf16):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            model(ids, ids.roll(1, 1)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradient(False)
    if fast:
        cpu.speed_up_training(model)
        taken.clear()                                           # it has compared them with the fused kernel
        assert torch.equal(gradient(False), exact) and not taken        # fp32 keeps the fused kernel
    assert (gradient(True) - exact).norm() < 0.02 * exact.norm() and len(taken) == 2 * fast
    long = GPT(GPTConfig(50, n_layer=1, n_embd=8, block_size=513))
    count = len(taken)
    cpu.speed_up_training(long)
    del taken[count:]
    with torch.autocast('cpu', torch.bfloat16):
        long(torch.zeros(1, 513, dtype=torch.long))
        with torch.no_grad():                                   # and so do long contexts and evaluation
            model.hidden(ids)
        assert len(taken) == 2 * fast


@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('prompt', [1, 16, 17, 40])
def test_each_token_follows_from_a_window_that_restarts_on_its_half_when_full(shape, prompt, fast, monkeypatch):
    model, idx = make(shape), torch.randint(50, (2, prompt))
    used = Sampler().copy_of(model) if fast else model
    read, logits = [], []
    hidden, choose = GPT.hidden, model_file.choose
    monkeypatch.setattr(GPT, 'hidden', lambda self, new, begin=0: read.append((begin, new.shape[1])) or hidden(self, new, begin))
    monkeypatch.setattr(model_file, 'choose', lambda *a: logits.append(a[0]) or choose(*a))
    text = torch.cat((idx, torch.stack(list(used.generate(idx, 40)), 1)), 1)
    windows = [[*range(prompt, 17)], *10 * [[*range(8, 17)]]]           # its lengths as it grows
    lengths = [n for window in windows for n in window][:40]
    cached = [(n - 1, 1) if i else (0, n) for window in windows for i, n in enumerate(window)][:40]
    assert read == (cached if fast else [(0, n) for n in lengths])
    ends = range(prompt, prompt + 40)
    exact = torch.stack([model(text[:, end - length : end])[:, -1] for end, length in zip(ends, lengths)])
    assert exact.std() > 1 and (torch.stack(logits) - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize('shape', SHAPES)
def test_of_a_context_of_one_token_each_follows_from_the_one_before(shape):
    model = make(shape, block_size=1)
    for used in (model, Sampler().copy_of(model)):
        ids = torch.cat((torch.zeros(1, dtype=torch.long), *used.generate(torch.zeros(1, 3, dtype=torch.long), 20, temperature=0)))
        assert torch.equal(ids[1:], model(ids[:-1, None])[:, 0].argmax(-1))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_fast_copy_gives_the_same_logits(shape, dtype, tolerance):
    model, sampler = make(shape).to(dtype), Sampler()
    copy = sampler.copy_of(model)
    assert copy.wte.weight.data_ptr() == model.wte.weight.data_ptr() and sampler.copy_of(model) is copy
    assert isinstance(copy.lm_head, cpu.PackedLinear) == cpu.can_pack(model.wte.weight)
    texts = [(copy.new_text(), torch.randint(50, (3, 16))) for _ in range(2)]
    with torch.inference_mode():                            # both are read token by token, in turn
        found = [[text.next_logits(idx[:, :n]) for text, idx in texts] for n in range(8, 17)]
        model.float()
        for (_, idx), logits in zip(texts, zip(*found)):
            exact = model(idx)[:, 7:]
            assert torch.allclose(torch.stack(logits, 1), exact, rtol=tolerance, atol=tolerance * exact.abs().max())


def shifted(block, x, rope=None):
    """A block that mixes tokens outside its attention: a cache knows nothing of it."""
    x = x + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1]
    return plain_block(block, x, rope)


def with_more_arguments(layer, x, rope, more):
    return plain_forward(layer, x, rope) * more


plain_block, plain_forward = Block.forward, Attention.forward


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_model_whose_tokens_mix_in_another_way_is_sampled_without_caches(shape, dtype, monkeypatch):
    model = make(shape).to(dtype)
    assert Sampler().copy_of(model) is not model
    with monkeypatch.context() as patch:
        patch.setattr(Block, 'forward', shifted)
        assert Sampler().copy_of(model) is model
    with monkeypatch.context() as patch:
        patch.setattr(Attention, 'forward', with_more_arguments)
        patch.setattr(Block, 'forward', lambda block, x, rope=None: x + block.attn(block.norm_1(x), rope, 2))
        assert Sampler().copy_of(model) is model or 'gpt2' in shape     # whose own forward is used
    with monkeypatch.context() as patch:
        patch.setattr(Attention, 'attend', lambda layer, q, k, v, more: v)
        assert Sampler().copy_of(model) is model


@pytest.mark.parametrize('shape', ['qwen3', 'qwen3-grouped'])
def test_a_fast_copy_of_a_model_without_positions(shape, monkeypatch):
    monkeypatch.setattr(Block, 'forward', lambda block, x, rope=None: plain_block(block, x, None))
    model, idx = make(shape), torch.randint(50, (2, 5))
    copy = Sampler().copy_of(model)
    assert copy is not model
    assert torch.equal(torch.stack(list(copy.generate(idx, 30))), torch.stack(list(model.generate(idx, 30))))


@pytest.mark.parametrize('shape', ['gpt2', 'qwen3-grouped'])
def test_a_step_as_gpus_take_it_gives_the_same_logits(shape):
    """Its caches have one shape, and the number of tokens read is a tensor."""
    model = make(shape)
    copy = Sampler().copy_of(model)
    idx = torch.randint(50, (2, 9))
    caches = [KVCache(model.config.block_size) for _ in copy.h]
    with torch.inference_mode():
        with attending_to(copy, caches):
            copy.hidden(idx[:, :5])
        for n in range(5, 9):
            read = torch.tensor([n])
            with attending_to(copy, [StaticCache(cache.room, read, cache.k, cache.v) for cache in caches]):
                found = copy.lm_head(copy.hidden(idx[:, n:n + 1], read)[:, -1])
            expected = model.next_logits(idx[:, :n + 1])
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize('shape', ['gpt2', 'qwen3-grouped'])
def test_a_compiled_step_gives_the_same_logits_for_one_row_and_for_several(shape, monkeypatch):
    model, seen, choose = make(shape), [], model_file.choose
    monkeypatch.setattr(model_file, 'choose', lambda *a: seen.append(a[0]) or choose(*a))
    counts = torch._dynamo.utils.counters
    for rows in (1, 3):
        idx = torch.randint(50, (rows, 4))
        plain = list(model.generate(idx, 40))
        seen[:], before = [], list(seen)
        torch._dynamo.reset()
        counts.clear()
        sampler = Sampler(compile=True)
        compiled = list(sampler.copy_of(model).generate(idx, 40))
        assert counts['stats']['unique_graphs'] == 1
        a, b = torch.stack(before), torch.stack(seen)
        assert b.std() > 1 and (a - b).abs().max() < 1e-5 * b.abs().max()
        assert torch.equal(torch.stack(plain), torch.stack(compiled))
        with torch.no_grad():
            model.wte.weight.mul_(1.5)                      # new weights need no new compilation
        compiled = list(sampler.copy_of(model).generate(idx, 40))
        assert torch.equal(torch.stack(list(model.generate(idx, 40))), torch.stack(compiled))
        assert not torch.equal(torch.stack(plain), torch.stack(compiled))
        assert counts['stats']['unique_graphs'] == 1
        del seen[:]


@pytest.mark.slow
def test_compiled_models_of_one_process_are_not_mistaken_for_each_other():
    idx = torch.randint(50, (1, 4))
    models = [make(**changes) for changes in ({}, dict(tie_weights=False), dict(n_inner=64))]
    plain = [list(model.generate(idx, 30)) for model in models]
    for model, expected in zip(models, plain):
        compiled = Sampler(compile=True).copy_of(model)
        assert torch.equal(torch.stack(expected), torch.stack(list(compiled.generate(idx, 30))))


def test_the_knobs_limits_are_greedy():
    model, idx = make(), torch.randint(50, (3, 5))

    def text(**knobs):
        return torch.stack(list(model.generate(idx, 30, **knobs)), 1)

    greedy = text(temperature=0)
    cold = dict(temperature=1e-4), dict(temperature=1e-39), dict(temperature=0, seed=9)
    for knobs in (dict(top_k=1), dict(top_p=1e-9), *cold):
        assert torch.equal(text(**knobs), greedy)
    assert torch.equal(text(seed=5), text(seed=5)) and not torch.equal(text(seed=5), text(seed=6))


def test_sampling_follows_the_distribution_that_the_knobs_define():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0, -torch.inf]])
    draws = (torch.arange(4000) / 4000)[:, None]

    def shares(*knobs):
        ids = [model_file.choose(logits.expand(len(part), -1), part, *knobs) for part in draws.split(50)]
        return torch.bincount(torch.cat(ids), minlength=5) / 4000

    p = logits[0].softmax(-1)
    assert torch.allclose(shares(1.0, 0, 1.0), p, atol=1e-3)
    assert torch.allclose(shares(0.5, 0, 1.0), (logits[0] / 0.5).softmax(-1), atol=1e-3)
    two = torch.tensor([0, 0, 0, p[1], p[0]]) / p[:2].sum()
    assert torch.allclose(shares(1.0, 2, 1.0).sort()[0], two, atol=1e-3)
    for top_p, kept in ((0.5, 1), (0.6, 3), (0.9, 3), (0.99, 4)):  # equals stay together
        expected = p * (torch.arange(5) < kept)
        assert torch.allclose(shares(1.0, 0, top_p), expected / expected.sum(), atol=1e-3)
    assert shares(1.0, 0, 0.999)[4] == 0
    last = model_file.sample(torch.tensor([[0.1, 0.3]]).expand(4000, -1), draws)        # of any sum
    assert last.float().mean() == 0.75
    assert model_file.choose(logits, torch.tensor([[1 - 1e-6]]), 1.0, 0, 1.0) == 3


@pytest.mark.parametrize('sharpness', [0, 0.1, 1, 10, 100])
def test_top_p_keeps_the_likeliest_and_each_row_alone(sharpness):
    p = (torch.randn(4, 5000) * sharpness).softmax(-1)
    for top_p in (1e-9, 0.1, 0.5, 0.9, 0.99):
        ordered = p.double().sort(descending=True)[0]
        border = ((ordered.cumsum(-1) - ordered) < top_p).sum(-1, keepdim=True) - 1
        kept = model_file.keep_top_p(p, top_p)
        assert torch.equal(kept, p * (kept > 0))            # as they were, or 0
        least = kept.masked_fill(kept == 0, 2).amin(-1, keepdim=True)
        expected = ordered.gather(1, border)
        assert torch.allclose(least.double(), expected, rtol=1e-3, atol=0)
        assert torch.equal(kept > 0, (p >= least) & (p > 0))
        assert ((kept > 0).sum(-1, keepdim=True) - (p >= expected).sum(-1, keepdim=True)).abs().max() <= 1
        assert torch.equal(torch.cat([model_file.keep_top_p(row[None], top_p) for row in p]), kept)


def test_repetition_penalty_lowers_what_occurred():
    model, idx = make(), torch.randint(50, (1, 8))
    plain = torch.stack(list(model.generate(idx, 40, temperature=0)))
    varied = torch.stack(list(model.generate(idx, 40, temperature=0, repetition_penalty=1e9)))
    plain, varied = plain[:30].flatten().tolist(), varied[:30].flatten().tolist()
    assert len(set(varied)) == 30 > len(set(plain)) and not set(varied) & set(idx.flatten().tolist())


def test_a_row_stops_at_end_of_text_and_depends_on_its_own_seed_and_prompt_alone():
    model, idx = make(), torch.randint(1, 50, (6, 4))
    rows = torch.stack(list(model.generate(idx, 100, eot=0, seed=10)), 1)
    ends = [row.tolist().index(0) if 0 in row else 100 for row in rows]
    assert 1 < len(set(ends)) and rows.shape[1] == min(100, max(ends) + 1)
    for i, (row, end) in enumerate(zip(rows, ends)):
        assert not row[end:].any()
        alone = torch.stack(list(model.generate(idx[i : i + 1], 100, eot=0, seed=10 + i)), 1)[0]
        assert torch.equal(alone, row[: end + 1])


def test_the_loss_is_the_same_in_pieces(monkeypatch):
    model, idx = make(), torch.randint(50, (4, 16))
    targets = idx.roll(-1, 1)
    targets[1:3, 5:] = -1
    results, held = [], []
    loss_file.save_memory(model)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: held.append(len(logits)))
    for most, pieces in ((loss_file.MAX_LOGITS, [64]), (50 * 7, [7] * 9 + [1])):
        monkeypatch.setattr(loss_file, 'MAX_LOGITS', most)
        model.zero_grad()
        held.clear()
        loss = model(idx, targets)
        assert held == pieces
        loss.backward()
        results.append((loss.item(), model.wte.weight.grad.clone()))
    logits = model(idx)
    kept = targets >= 0
    exact = torch.nn.functional.cross_entropy(logits[kept], targets[kept])
    (a, grad_a), (b, grad_b) = results
    assert a == pytest.approx(b, rel=1e-6) == pytest.approx(exact.item(), rel=1e-6)
    assert torch.allclose(grad_a, grad_b, atol=1e-6)


def test_a_loss_that_was_changed_is_not_computed_in_pieces(monkeypatch):
    plain = GPT.loss
    monkeypatch.setattr(GPT, 'loss', lambda model, x, targets: plain(model, x, targets) + 0.1 * x.square().mean())
    monkeypatch.setattr(loss_file, 'MAX_LOGITS', 50)
    model, idx = make(), torch.randint(50, (4, 16))
    before = model(idx, idx)
    loss_file.save_memory(model)
    assert torch.equal(model(idx, idx), before)


@pytest.mark.parametrize('fast', [False, True])
def test_ids_that_no_token_has_are_never_sampled_be_their_logits_the_largest(fast):
    model, idx = make('gpt2', tie_weights=False), torch.randint(40, (8, 4))
    with torch.no_grad():
        model.norm_f.weight.zero_()
        model.norm_f.bias.fill_(1)
        model.lm_head.weight[40:] = 1                       # their logits are 32, others far below
    model = Sampler().copy_of(model) if fast else model
    assert (torch.stack(list(model.generate(idx, 20))) >= 40).all()
    greedy = dict(temperature=0), dict(temperature=0, repetition_penalty=9.0)
    for knobs in (*greedy, dict(temperature=9.0), dict(top_k=45), dict(top_p=0.9), dict(top_k=3, top_p=0.99)):
        assert (torch.stack(list(model.generate(idx, 20, vocab_size=40, **knobs))) < 40).all()


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('shape', SHAPES)
def test_optimizers_hold_each_parameter_once_and_only_matrices_decay(optimizer, shape, monkeypatch):
    model = make(shape)
    monkeypatch.setattr(train, 'optimizer', optimizer)
    optimizers = train.make_optimizers(model)
    assert [type(o).__name__ for o in optimizers] == {'adamw': ['AdamW'], 'muon': ['AdamW', 'Muon']}[optimizer]
    groups = [g for o in optimizers for g in o.param_groups]
    assert all((p.ndim >= 2) == (g['weight_decay'] > 0) for g in groups for p in g['params'])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for p in (p for g in groups for p in g['params']):
            p += 1
    assert all((p == 1).all() for p in model.parameters())


@pytest.mark.parametrize('shape', ['gpt2', 'qwen3-grouped'])
def test_muon_treats_stacked_matrices_one_by_one_with_a_momentum_that_rises(shape, monkeypatch):
    model = make(shape)
    for knob, value in dict(optimizer='muon', learning_rate=0.1, weight_decay=0.0, warmup_iters=0).items():
        monkeypatch.setattr(train, knob, value)
    optimizers, momentum = train.make_optimizers(model), []
    for step in (1, 150, 300, 900):
        idx = torch.randint(40, (4, 16))
        model(idx, idx.roll(-1)).backward()
        before = deepcopy(model)
        gradients = [(w.grad / w.grad.norm()).split(rows) for w, rows in (
            (layer.weight, layer.stacked_rows) for layer in (model.h[0].attn.c_attn, model.h[1].mlp.c_fc))]
        train.update(model, optimizers, torch.amp.GradScaler(enabled=False), step)
        assert all(p.grad is None for opt in optimizers for g in opt.param_groups for p in g['params'])
        momentum.append(optimizers[1].param_groups[0]['momentum'])
        changes = [(new.weight - old.weight).split(new.stacked_rows) for new, old in zip(
            (model.h[0].attn.c_attn, model.h[1].mlp.c_fc), (before.h[0].attn.c_attn, before.h[1].mlp.c_fc))]
        assert [len(parts) for parts in changes] == [3, 1 if shape == 'gpt2' else 2]
        for change, gradient in zip(*([part for parts in both for part in parts] for both in (changes, gradients))):
            change = change / (train.learning_rate_at(step) * 0.2 * max(change.shape) ** 0.5)
            if step == 1:       # the steepest descent of its own gradient
                assert -(change * gradient).sum() > 0.6 * torch.linalg.svdvals(gradient).sum()
            singular = torch.linalg.svdvals(change)
            assert 0.6 < singular.median() < singular.max() < 1.3
    assert momentum == pytest.approx([0.85 + 0.1 / 300, 0.9, 0.95, 0.95])


@pytest.mark.parametrize('fast', [False, True])
def test_muon_leaves_frozen_weights_alone_and_takes_whole_ones(fast, monkeypatch):
    model = make()
    monkeypatch.setattr(train, 'optimizer', 'muon')
    optimizers = train.make_optimizers(model)
    optimizers.append(torch.optim.Muon([torch.nn.Parameter(torch.ones(4, 4))], 0.1, adjust_lr_fn='match_rms_adamw'))
    whole = optimizers[2].param_groups[0]['params'][0]
    for muon in optimizers[1:] if fast else []:
        speed_up(muon, torch.float32)
    frozen = model.h[0].attn.c_attn.weight.requires_grad_(False)
    before, other = frozen.clone(), model.h[0].attn.c_proj.weight.clone()
    idx = torch.randint(40, (4, 16))
    model(idx, idx.roll(-1)).backward()
    whole.grad = torch.eye(4)
    train.update(model, optimizers, torch.amp.GradScaler(enabled=False), 100)
    assert torch.equal(frozen, before) and not torch.equal(model.h[0].attn.c_proj.weight, other)
    assert not torch.equal(whole, torch.ones(4, 4))


def test_the_faster_muon_makes_matrices_orthogonal_as_torchs_does():
    for shape in ((2, 12, 8), (2, 8, 12)):
        x = torch.randn(shape, dtype=torch.float64)
        u, s, v = torch.linalg.svd(x / x.norm(dim=(1, 2), keepdim=True), full_matrices=False)
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5       # of Jordan et al. 2024
        assert torch.allclose(orthogonalize(x, torch.float64), u @ s.diag_embed() @ v, atol=1e-9)

    def trained(fast):
        random = torch.Generator().manual_seed(0)
        shapes = (12, 8), (8, 8), (12, 8)
        weights = [torch.nn.Parameter(torch.randn(shape, generator=random) / 50) for shape in shapes]
        optimizer = torch.optim.Muon(weights, 0.02, 0.1, momentum=0.8, adjust_lr_fn='match_rms_adamw')
        if fast:
            speed_up(optimizer, torch.float32)
        before = torch.cat([p.detach().flatten() for p in weights])
        for _ in range(3):
            for p in weights:
                p.grad = torch.randn(p.shape, generator=random)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in weights]) - before
    expected = trained(fast=False)                              # in bf16
    difference = (trained(fast=True) - expected).norm()
    assert 0 < difference < 0.02 * expected.norm()
    for changed in ({'nesterov': False}, {'ns_steps': 6}, {'ns_coefficients': (2, -1.5, 0.5)}, {'adjust_lr_fn': None}):
        settings = {'adjust_lr_fn': 'match_rms_adamw', **changed}
        optimizer = torch.optim.Muon([torch.nn.Parameter(torch.zeros(2, 2))], **settings)
        speed_up(optimizer, torch.float32)
        assert type(optimizer) is torch.optim.Muon                      # it would compute something else


def test_dropout_is_on_in_training_alone():
    model, idx = make(dropout=0.5), torch.randint(50, (1, 16))
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


@pytest.mark.parametrize('knobs', [
    dict(arch='llama'), dict(n_embd=30), dict(n_head=4, n_kv_head=3), dict(n_layer=0), dict(block_size=0),
    dict(arch='gpt2', n_kv_head=2), dict(arch='gpt2', head_dim=7), dict(head_dim=5), dict(bias=True),
    dict(dropout=1.0), dict(dropout=-0.1), dict(vocab_size=0), dict(n_inner=-1), dict(head_gain=0.0),
    dict(n_layer=1001), dict(n_inner=1 << 25),
    dict(head_gain=1e6), dict(norm_eps=1.0), dict(rope_theta=0.0)])
def test_impossible_shapes_are_errors(knobs):
    fine = dict(vocab_size=50, n_head=4, n_embd=32)
    GPTConfig(**fine)
    with pytest.raises(Error):
        GPTConfig(**{**fine, **knobs})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12), st.booleans())
def test_packing_counts_each_token_once_and_keeps_documents_whole(lengths, block_size, torn):
    eot, stream = 0, []
    for n, length in enumerate(lengths):
        stream += [100 * (n + 1) + i for i in range(length)] + [eot]
    if torn and stream:
        stream.pop()
    x, y = evaluation_windows(np.array(stream, dtype=np.int64), eot, block_size)
    assert x.shape == y.shape == (len(x), block_size)
    assert y[y >= 0].tolist() == stream  # once, and in order
    assert x[y >= 0].tolist() == [eot, *stream][: len(stream)]  # each after the token before it
    for row in y.tolist():
        row = [v for v in row if v >= 0]
        for v in row:
            if v >= 100 and lengths[v // 100 - 1] + 1 <= block_size:
                assert v // 100 * 100 in row  # its document's beginning is in sight


def test_evaluation_is_the_mean_over_documents_each_read_on_its_own_and_leaves_all_as_it_was():
    model = make(dropout=0.3).train()
    documents = [torch.randint(1, 50, (n,)).tolist() + [0] for n in (3, 15, 14, 1, 9, 2)]

    def windows(ids):
        return [torch.from_numpy(part) for part in evaluation_windows(np.array(ids), 0, 16)]

    x, y = windows(sum(documents, []))
    assert len(x) == 4
    autocast, shapes = torch.autocast('cpu', enabled=False), set()
    watch = model.register_forward_pre_hook(lambda module, inputs: shapes.add(inputs[0].shape))
    state = torch.get_rng_state()
    loss = evaluate(model, x, y, 3, autocast)
    assert model.training and torch.equal(state, torch.get_rng_state()) and shapes == {(3, 16)}
    watch.remove()
    assert loss == pytest.approx(evaluate(model, x, y, 5, autocast), rel=1e-6)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = evaluate(model, x, y, 2, contextlib.nullcontext())
    assert rounded == evaluate(model, x, y, 2, torch.autocast('cpu', torch.bfloat16)) != loss
    model.eval()
    # a document that follows another in its window sees it, so here each window holds one
    x, y = (torch.cat(parts) for parts in zip(*map(windows, documents)))
    nats = sum(model(torch.tensor([[0, *d[:-1]]]), torch.tensor([d])).item() * len(d) for d in documents)
    assert evaluate(model, x, y, 3, autocast) == pytest.approx(nats / sum(map(len, documents)), rel=1e-6)


def test_a_checkpoint_comes_back_whole(tmp_path):
    model = make('gpt2')
    save_checkpoint(tmp_path / 'a.pt', model, SPEC, {'seed': 5}, step=3)
    checkpoint = load_checkpoint(tmp_path / 'a.pt', 'config', 'step')
    assert (checkpoint['tokenizer'], checkpoint['config'], checkpoint['step']) == (SPEC, {'seed': 5}, 3)
    assert same_weights(build_model(checkpoint).state_dict(), model.state_dict())
    shorter, idx = build_model(checkpoint, block_size=8), torch.randint(50, (1, 8))
    assert torch.equal(shorter(idx), model(idx))
    assert torch.load(tmp_path / 'a.pt', weights_only=True)['step'] == 3
    for changes in (dict(block_size=17), dict(block_size=0)):
        with pytest.raises(Error, match='block_size'):
            build_model(checkpoint, **changes)
    with pytest.raises(Error, match='its optimizer is missing'):
        load_checkpoint(tmp_path / 'a.pt', 'step', 'optimizer')


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / 'a.pt'
    model = make()
    save_checkpoint(path, model, SPEC, {})
    good = path.read_bytes()
    assert same_weights(load_checkpoint(path)['model'], model.state_dict())     # it is whole until then
    bad = {'cut': good[:-1000], 'empty': b'', 'short': good[:5], 'text': b'hello' * 9, 'unsealed': good[:-12]}
    for at in torch.linspace(0, len(good) - 1, 60).int().tolist():
        flipped = bytearray(good)
        flipped[at] ^= 1 << at % 8
        bad[f'bit {at}'] = bytes(flipped)
    for name, data in bad.items():
        path.write_bytes(data)
        with pytest.raises(Error, match=r'a\.pt'):
            load_checkpoint(path)
            pytest.fail(name)
    with pytest.raises(Error, match='no such'):
        load_checkpoint(tmp_path / 'b.pt')


def test_a_checkpoint_whose_tensors_are_larger_than_its_file_is_refused(tmp_path):
    """A tensor of one stored number, repeated, would take any amount of memory."""
    model = make(vocab_size=50_000)
    state = {name: torch.zeros(1).expand(t.shape) for name, t in model.state_dict().items()}
    model.state_dict = lambda: state
    save_checkpoint(tmp_path / 'c.pt', model, {'kind': 'gpt2'}, {})
    assert (tmp_path / 'c.pt').stat().st_size < 50_000
    with pytest.raises(Error, match='larger than the file'):
        load_checkpoint(tmp_path / 'c.pt')


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, 'FORMAT', 2)
    save_checkpoint(tmp_path / 'a.pt', make(), SPEC, {})
    load_checkpoint(tmp_path / 'a.pt')
    monkeypatch.undo()
    with pytest.raises(Error, match='format'):
        load_checkpoint(tmp_path / 'a.pt')


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    save_sealed(tmp_path / 'bomb.pt', {'format': 1, 'model': Bomb()})
    (tmp_path / 'plain.pt').write_bytes(pickle.dumps(Bomb()))
    for name in ('bomb.pt', 'plain.pt'):
        with pytest.raises(Error, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / 'harm').exists()


def test_a_failed_save_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    import resource

    model = make()
    save_checkpoint(tmp_path / 'a.pt', model, SPEC, {}, step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(Error, match=r'a\.pt'):
            save_checkpoint(tmp_path / 'a.pt', model, SPEC, {}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / 'a.pt')['step'] == 1
    assert [p.name for p in tmp_path.iterdir()] == ['a.pt']
