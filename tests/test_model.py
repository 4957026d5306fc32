import math
import os
import pickle

import pytest
import torch
from conftest import same_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import model as model_file
from config import Error, setup
from model import GPT, GPTConfig, evaluate, load_checkpoint, model_from, pack_documents, pick, save_checkpoint

SHAPES = {
    'gpt2': dict(arch='gpt2', bias=True),
    'gpt2-plain': dict(arch='gpt2', tie_weights=False),
    'qwen3': dict(arch='qwen3'),
    'qwen3-grouped': dict(arch='qwen3', n_kv_head=2, head_dim=6, tie_weights=False),
}


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
        assert (
            GPT(
                GPTConfig(arch='gpt2', n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True)
            ).num_params()
            == 124_439_808
        )
    torch.manual_seed(0)
    ids = torch.randint(300, (8, 32))
    for arch in ('gpt2', 'qwen3'):
        loss = GPT(GPTConfig(arch=arch, vocab_size=300, block_size=32))(ids, ids.roll(1)).item()
        assert abs(loss - math.log(300)) < 0.1


def test_residual_projections_start_smaller_and_ties_hold():
    model = GPT(GPTConfig(n_layer=8))
    for block in model.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            assert abs(layer.weight.std().item() - 0.02 / 4) < 5e-4
    assert model.lm_head.weight is model.wte.weight
    assert model_from(
        {'model_config': vars(model.config), 'model': model.state_dict()}
    ).lm_head.weight.data_ptr()


@pytest.mark.parametrize('n_kv_head', [4, 2, 1])
def test_attention_by_plain_products_is_the_fused_one(n_kv_head):
    attention = make(n_kv_head=n_kv_head).h[0].attn
    qkv = [torch.randn(3, 12, heads, 8, requires_grad=True) for heads in (4, n_kv_head, n_kv_head)]
    q, k, v = (t.transpose(1, 2) for t in qkv)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    fused = fused.transpose(1, 2).flatten(2)
    plain = attention.unfused(*qkv)
    assert torch.allclose(plain, fused, atol=1e-6)
    direction = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, qkv, direction) for y in (plain, fused))):
        assert torch.allclose(a, b, atol=1e-5)
    attention.dropout = 0.5
    assert torch.equal(attention.unfused(*qkv), plain)          # not in training
    attention.train()
    mean = sum(attention.unfused(*qkv) for _ in range(2000)) / 2000
    assert (mean - plain).abs().max() < 0.2 and not torch.equal(attention.unfused(*qkv), plain)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_in_bf16_are_those_in_fp32_to_its_rounding(shape, monkeypatch):
    model, ids = make(shape), torch.randint(50, (4, 16))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.div_(5)
    taken, unfused = [], model_file.Attention.unfused
    monkeypatch.setattr(model_file.Attention, 'unfused', lambda *a: taken.append(1) or unfused(*a))

    def gradient(bf16):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            model(ids, ids.roll(1, 1)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradient(False)
    assert not taken                                            # fp32 keeps the fused kernel
    assert (gradient(True) - exact).norm() < 0.02 * exact.norm() and len(taken) == 2
    with torch.autocast('cpu', torch.bfloat16):
        model_file.GPT(GPTConfig(n_layer=1, n_embd=8, block_size=513))(torch.zeros(1, 513, dtype=torch.long))
        with torch.no_grad():                                   # and so do long contexts and evaluation
            whole = model.hidden(ids)
        cache = [[] for _ in model.h]
        spans = (0, 8), *((i, i + 1) for i in range(8, 16))
        parts = [model.hidden(ids[:, a:b], cache, a) for a, b in spans]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=0.1)         # a cache is used, gradients or not
    assert len(taken) == 2


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('prompt', [1, 16, 17, 40])
def test_cached_and_uncached_logits_agree_at_every_position_also_past_block_size(shape, prompt, monkeypatch):
    model = make(shape)
    idx = torch.randint(50, (2, prompt))
    seen = {True: [], False: []}
    tokens = {}
    for cached in (True, False):
        to = seen[cached]
        monkeypatch.setattr(
            model_file, 'pick', lambda logits, *a, to=to: to.append(logits) or pick(logits, *a)
        )
        tokens[cached] = torch.stack(list(model.generate(idx, 40, use_cache=cached)), 1)
    a, b = torch.stack(seen[True]), torch.stack(seen[False])
    assert b.std() > 1 and (a - b).abs().max() < 1e-5 * b.abs().max()
    assert torch.equal(tokens[True], tokens[False])


@pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason='needs bf16 in the CPU',
)
@pytest.mark.parametrize('shape', SHAPES)
def test_packed_weights_give_the_same_logits(shape):
    model = make(shape).bfloat16()
    with torch.inference_mode():
        for idx in torch.randint(50, (1, 1)), torch.randint(50, (3, 16)):
            assert model.lm_head.packed is None
            plain = model(idx)
            model.pack()
            assert model.lm_head.packed.is_mkldnn
            assert torch.allclose(model(idx), plain, rtol=0.02, atol=0.02 * plain.abs().max())
            model = make(shape).bfloat16()


@pytest.mark.slow
@pytest.mark.parametrize('shape', ['gpt2', 'qwen3-grouped'])
def test_a_compiled_step_gives_the_same_logits_for_one_row_and_for_several(shape, monkeypatch):
    model, seen = make(shape), []
    monkeypatch.setattr(model_file, 'pick', lambda logits, *a: seen.append(logits) or pick(logits, *a))
    for rows in (1, 3):
        idx = torch.randint(50, (rows, 4))
        plain = list(model.generate(idx, 40))
        seen[:], before = [], list(seen)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model.compile_step()
        compiled = list(model.generate(idx, 40))
        assert torch._dynamo.utils.counters['stats']['unique_graphs']
        a, b = torch.stack(before), torch.stack(seen)
        assert b.std() > 1 and (a - b).abs().max() < 1e-5 * b.abs().max()
        assert torch.equal(torch.stack(plain), torch.stack(compiled))
        del model.step, seen[:]


@pytest.mark.slow
def test_compiled_models_of_one_process_are_not_mistaken_for_each_other():
    idx = torch.randint(50, (1, 4))
    models = [make(**changes) for changes in ({}, dict(tie_weights=False), dict(n_inner=64))]
    plain = [list(model.generate(idx, 30)) for model in models]
    for model, expected in zip(models, plain):
        model.compile_step()
        assert torch.equal(torch.stack(expected), torch.stack(list(model.generate(idx, 30))))


def test_past_block_size_the_context_restarts_on_its_last_half():
    model = make()
    lengths = [model.context_length(n) for n in range(1, 36)]
    assert lengths == [*range(1, 17), *range(8, 17), *range(8, 17), 8]
    idx = torch.randint(50, (1, 20))
    next_id = next(model.generate(idx, 1, temperature=0))
    assert next_id == model(idx[:, -model.context_length(20) :])[0, -1].argmax()


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
        ids = [pick(logits.expand(len(part), -1), part, *knobs) for part in draws.split(50)]
        return torch.bincount(torch.cat(ids), minlength=5) / 4000

    p = logits[0].softmax(-1)
    assert torch.allclose(shares(1.0, 0, 1.0), p, atol=1e-3)
    assert torch.allclose(shares(0.5, 0, 1.0), (logits[0] / 0.5).softmax(-1), atol=1e-3)
    assert torch.allclose(
        shares(1.0, 2, 1.0).sort()[0], torch.tensor([0, 0, 0, p[1], p[0]]) / p[:2].sum(), atol=1e-3
    )
    for top_p, kept in ((0.5, 1), (0.6, 3), (0.9, 3), (0.99, 4)):  # equals stay together
        expected = p * (torch.arange(5) < kept)
        assert torch.allclose(shares(1.0, 0, top_p), expected / expected.sum(), atol=1e-3)
    assert (shares(1.0, 0, 0.999)[4] == 0) and pick(logits, torch.tensor([[1 - 1e-6]]), 1.0, 0, 1.0) == 3


@pytest.mark.parametrize('sharpness', [0, 0.1, 1, 10, 100])
def test_top_p_keeps_what_a_sort_would_and_each_row_alone(sharpness):
    p = (torch.randn(4, 5000) * sharpness).softmax(-1)
    for top_p in (1e-9, 0.1, 0.5, 0.9, 0.99):
        ordered = p.double().sort(descending=True)[0]
        border = ((ordered.cumsum(-1) - ordered) < top_p).sum(-1, keepdim=True) - 1
        least = model_file.least_kept(p, top_p)
        expected = ordered.gather(1, border)
        assert torch.allclose(least.double(), expected, rtol=1e-3, atol=0)
        assert ((p >= least).sum(-1, keepdim=True) - (p >= expected).sum(-1, keepdim=True)).abs().max() <= 1
        assert torch.equal(torch.cat([model_file.least_kept(row[None], top_p) for row in p]), least)


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
    results = []
    for chunk in (model_file.LOSS_CHUNK, 50 * 7):
        monkeypatch.setattr(model_file, 'LOSS_CHUNK', chunk)
        model.zero_grad()
        loss = model(idx, targets)
        loss.backward()
        results.append((loss.item(), model.wte.weight.grad.clone(), model(idx, targets, 'sum').item()))
    logits = model(idx)
    kept = targets >= 0
    exact = torch.nn.functional.cross_entropy(logits[kept], targets[kept])
    (a, grad_a, sum_a), (b, grad_b, sum_b) = results
    assert a == pytest.approx(b, rel=1e-6) == pytest.approx(exact.item(), rel=1e-6)
    assert (
        sum_a == pytest.approx(sum_b, rel=1e-6) == pytest.approx(exact.item() * kept.sum().item(), rel=1e-6)
    )
    assert torch.allclose(grad_a, grad_b, atol=1e-6)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('shape', SHAPES)
def test_optimizers_hold_each_parameter_once_and_only_matrices_decay(optimizer, shape):
    model = make(shape)
    groups = [g for o in model.make_optimizers(optimizer, 1e-3, 0.1, (0.9, 0.95)) for g in o.param_groups]
    held = [id(p) for g in groups for p in g['params']]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all((p.ndim >= 2) == (g['weight_decay'] > 0) for g in groups for p in g['params'])


def test_dropout_is_on_in_training_alone():
    model, idx = make(dropout=0.5), torch.randint(50, (1, 16))
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


@pytest.mark.parametrize(
    'knobs',
    [
        dict(arch='llama'),
        dict(n_embd=30),
        dict(n_head=4, n_kv_head=3),
        dict(n_layer=0),
        dict(arch='gpt2', n_kv_head=2),
        dict(arch='gpt2', head_dim=7),
        dict(dropout=1.0),
        dict(head_dim=5),
        dict(bias=True),
        dict(block_size=0),
        dict(dropout=-0.1),
    ],
)
def test_impossible_shapes_are_errors(knobs):
    with pytest.raises(Error):
        GPTConfig(**{**dict(n_head=4, n_embd=32), **knobs})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12), st.booleans())
def test_packing_counts_each_token_once_and_keeps_documents_whole(lengths, block_size, torn):
    eot, stream = 0, []
    for n, length in enumerate(lengths):
        stream += [100 * (n + 1) + i for i in range(length)] + [eot]
    if torn and stream:
        stream.pop()
    ids = torch.tensor(stream, dtype=torch.long)
    x, y = pack_documents(ids, eot, block_size)
    assert y[y >= 0].tolist() == stream  # once, and in order
    assert [v for v in x[y >= 0].tolist()] == [eot, *stream][: len(stream)]  # each after the token before it
    for row in y.tolist():
        row = [v for v in row if v >= 0]
        for v in row:
            if v >= 100 and lengths[v // 100 - 1] + 1 <= block_size:
                assert v // 100 * 100 in row  # its document's beginning is in sight


def test_evaluation_is_the_mean_over_documents_each_read_on_its_own_and_leaves_all_as_it_was():
    model = make(dropout=0.3).train()
    documents = [torch.randint(1, 50, (n,)).tolist() + [0] for n in (3, 15, 14, 1, 9, 2)]
    x, y = pack_documents(torch.tensor(sum(documents, [])), 0, 16)
    _, _, autocast = setup('cpu', 'float32', 0)
    state = torch.get_rng_state()
    loss = evaluate(model, x, y, 2, autocast)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert loss == pytest.approx(evaluate(model, x, y, 5, autocast), rel=1e-6)
    model.eval()
    # a document that follows another in its window sees it, so here each window holds one
    single = [pack_documents(torch.tensor(d), 0, 16) for d in documents]
    x, y = torch.cat([x for x, _ in single]), torch.cat([y for _, y in single])
    nats = sum(model(torch.tensor([[0, *d[:-1]]]), torch.tensor([d]), 'sum').item() for d in documents)
    assert evaluate(model, x, y, 3, autocast) == pytest.approx(nats / sum(map(len, documents)), rel=1e-6)


def test_a_checkpoint_comes_back_whole(tmp_path):
    model = make('gpt2')
    save_checkpoint(
        tmp_path / 'a.pt',
        {'model': model.state_dict(), 'model_config': vars(model.config), 'tokenizer': {}, 'step': 3},
    )
    checkpoint = load_checkpoint(tmp_path / 'a.pt')
    assert checkpoint['step'] == 3 and same_weights(model_from(checkpoint).state_dict(), model.state_dict())
    shorter = model_from(checkpoint, block_size=8)
    idx = torch.randint(50, (1, 8))
    assert (
        torch.equal(shorter(idx), model(idx))
        and torch.load(tmp_path / 'a.pt', weights_only=True)['step'] == 3
    )


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / 'a.pt'
    save_checkpoint(path, {'model': make().state_dict()})
    good = path.read_bytes()
    bad = {
        'cut': good[:-1000],
        'empty': b'',
        'short': good[:5],
        'text': b'hello' * 100,
        'unsealed': good[:-12],
    }
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


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, 'FORMAT', 2)
    save_checkpoint(tmp_path / 'a.pt', {})
    monkeypatch.undo()
    with pytest.raises(Error, match='format'):
        load_checkpoint(tmp_path / 'a.pt')


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    torch.save({'format': 1, 'model': Bomb()}, tmp_path / 'bomb.pt')
    seal = model_file.SEAL + model_file.checksum(tmp_path / 'bomb.pt').encode()
    with open(tmp_path / 'bomb.pt', 'ab') as f:
        f.write(seal)
    (tmp_path / 'plain.pt').write_bytes(pickle.dumps(Bomb()))
    for name in ('bomb.pt', 'plain.pt'):
        with pytest.raises(Error, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / 'harm').exists()


def test_a_failed_save_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    import resource

    model = make()
    whole = {'model': model.state_dict(), 'model_config': vars(model.config), 'tokenizer': {}}
    save_checkpoint(tmp_path / 'a.pt', {'step': 1, **whole})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(Error, match=r'a\.pt'):
            save_checkpoint(tmp_path / 'a.pt', {'step': 2, 'weights': torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / 'a.pt')['step'] == 1 and [p.name for p in tmp_path.iterdir()] == [
        'a.pt'
    ]
