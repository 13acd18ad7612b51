"""Response log-probabilities: trees against padded rows, against the model's own logits, gradients included."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from karat.errors import InputError
from karat.lm import logits, logprobs, tiled_logprobs
from karat.lm.load import LoadedLM, load_lm
from karat.lm.logprobs import head_of, hidden_states, response_logprobs, response_logprobs_and_hidden, token_logprobs
from karat.lm.trees import Batch, Tree, pack_trees, padded_batch, rows_of

ALL_KINDS = (*tiny_models.KINDS, "gemma3")
tokens = st.lists(st.integers(3, 250), min_size=1, max_size=9).map(tuple)
tree_lists = st.lists(
    st.builds(Tree, tokens, st.lists(tokens, min_size=1, max_size=3).map(tuple)), min_size=1, max_size=4
)


@cache
def loaded(kind: tiny_models.Kind, dtype: torch.dtype = torch.float64) -> LoadedLM:
    directory = Path(mkdtemp(prefix="karat-test-")) / kind
    tiny_models.tiny_checkpoint(kind, directory, dtype=dtype)
    return load_lm(directory, dtype=dtype, for_training=True)


def some_trees(seed: int = 0) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 250, (n,), generator=generator).tolist())

    shapes = [(5, (4, 7)), (1, (1,)), (12, (3, 9, 1)), (8, (8,)), (20, (2, 2))]
    return [Tree(ids(p), tuple(ids(b) for b in branches)) for p, branches in shapes]


def outcome(lm: LoadedLM, batches: list[Batch], n_branches: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities and entropies as rows, and all gradients of a fixed weighting of them."""
    lm.model.zero_grad()
    results = [response_logprobs(lm.model, batch, temperature=0.7, with_entropy=True) for batch in batches]
    size = {"n_branches": n_branches, "max_len": 9}
    logprobs, _ = rows_of([result.logprobs for result in results], batches, **size)
    entropy, _ = rows_of([result.entropy for result in results], batches, **size)
    weights = torch.randn(2, *logprobs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = torch.stack([logprobs, entropy])
    (rows * weights.to(rows.dtype)).sum().backward()
    return rows.detach(), {name: p.grad.clone() for name, p in lm.model.named_parameters()}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_trees_equal_padded_rows_gradients_included(
    kind: tiny_models.Kind, dtype: torch.dtype, tolerance: float
) -> None:
    lm, trees = loaded(kind, dtype), some_trees()
    rows, grads = outcome(lm, [padded_batch(trees, lm.pad_id)], 9)
    for batches in (
        pack_trees(trees, token_budget=1000, pad_to=64, pad_id=lm.pad_id),
        pack_trees(trees, token_budget=30),
    ):
        tree_rows, tree_grads = outcome(lm, list(batches), 9)
        torch.testing.assert_close(tree_rows, rows, rtol=tolerance, atol=tolerance)
        for name, grad in grads.items():
            scale = max(float(grad.abs().max()), 1.0)
            torch.testing.assert_close(tree_grads[name] / scale, grad / scale, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_order_of_trees_and_branches_does_not_matter(kind: tiny_models.Kind) -> None:
    lm, trees = loaded(kind), some_trees()
    turned = [Tree(tree.prompt, tree.branches[::-1]) for tree in trees[::-1]]
    rows = []
    for order in (trees, turned):
        batches = pack_trees(order, token_budget=40)
        flats = [response_logprobs(lm.model, batch).logprobs for batch in batches]
        rows.append(rows_of(flats, batches, n_branches=9, max_len=9)[0])
    torch.testing.assert_close(rows[0], rows[1].flip(0), rtol=0, atol=1e-10)


@settings(max_examples=8, deadline=None)
@given(tree_lists, st.sampled_from(["gpt2", "gemma"]), st.integers(10, 80))
def test_ragged_trees_equal_padded_rows(trees: list[Tree], kind: tiny_models.Kind, budget: int) -> None:
    lm = loaded(kind)
    n_branches = sum(len(tree.branches) for tree in trees)
    found = []
    with torch.no_grad():
        for batches in (pack_trees(trees, token_budget=budget), [padded_batch(trees, lm.pad_id)]):
            flats = [response_logprobs(lm.model, batch).logprobs for batch in batches]
            found.append(rows_of(flats, batches, n_branches=n_branches, max_len=9)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_logprobs_are_those_of_the_models_own_logits(kind: tiny_models.Kind) -> None:
    lm, tree = loaded(kind), some_trees()[0]
    batch = pack_trees([tree], token_budget=100)[0]
    found = response_logprobs(lm.model, batch, temperature=1.3, with_entropy=True)
    logprobs, entropy = [], []
    for branch in tree.branches:
        ids = torch.tensor([tree.prompt + branch])
        logits = lm.model(input_ids=ids).logits[0, len(tree.prompt) - 1 : -1] / 1.3
        distribution = torch.distributions.Categorical(logits=logits)
        logprobs.append(distribution.log_prob(torch.tensor(branch)))
        entropy.append(distribution.entropy())
    torch.testing.assert_close(found.logprobs, torch.cat(logprobs), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.entropy, torch.cat(entropy), rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_rows", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_chunks_change_no_value_and_gradients_are_finite_differences(kind: tiny_models.Kind, chunk_rows: int) -> None:
    lm = loaded(kind)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 250, 7, 7])

    def both(values: torch.Tensor) -> torch.Tensor:
        logprobs, entropy = token_logprobs(
            lm.model, values, targets, temperature=0.8, chunk_rows=chunk_rows, with_entropy=True
        )
        return torch.stack([logprobs, entropy])

    whole = token_logprobs(lm.model, hidden, targets, temperature=0.8)[0]
    torch.testing.assert_close(both(hidden)[0], whole, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(both, (hidden,), fast_mode=True)


def test_bfloat16_log_softmax_is_float32() -> None:
    lm = loaded("qwen3", torch.bfloat16)
    batch = pack_trees(some_trees(), token_budget=100)[0]
    found = response_logprobs(lm.model, batch)
    hidden = hidden_states(lm.model, batch)[batch.predict_index]
    logits = lm.model.lm_head(hidden).float()
    expected = logits.log_softmax(-1).gather(1, batch.target_ids[:, None])[:, 0]
    assert found.logprobs.dtype == torch.float32
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-5)
    found.logprobs.sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in lm.model.parameters())


def test_one_pass_gives_logprobs_and_the_hidden_states_behind_them() -> None:
    lm = loaded("llama")
    batch = pack_trees(some_trees(), token_budget=100)[0]
    result, hidden = response_logprobs_and_hidden(lm.model, batch)
    torch.testing.assert_close(hidden, hidden_states(lm.model, batch)[batch.predict_index], rtol=0, atol=1e-12)
    hidden.sum().backward()
    assert result.logprobs.shape == (batch.target_ids.numel(),)
    assert lm.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_temperature_of_zero_is_refused() -> None:
    batch = pack_trees(some_trees(), token_budget=100)[0]
    with pytest.raises(InputError, match=r"found temperature 0.0; expected > 0"):
        response_logprobs(loaded("gpt2").model, batch, temperature=0.0)


def test_outside_a_layout_the_model_is_its_plain_self_and_generates() -> None:
    lm = loaded("gemma", torch.float32)
    plain = load_lm(lm.path, attention="sdpa", fast=False)
    ids = torch.tensor([[2, 40, 41, 42, 43, 44, 45, 46, 47, 48], [0, 0, 0, 2, 50, 51, 52, 53, 54, 55]])
    mask = ids != 0
    found, expected = (m.model(input_ids=ids, attention_mask=mask).logits[mask] for m in (lm, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    texts = [
        m.model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for m in (lm, plain)
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("room", [0, 10 * 258, 10**9])
def test_what_is_kept_for_the_gradient_saves_products_and_changes_nothing(with_entropy, room, monkeypatch) -> None:
    lm, batch = loaded("qwen3"), pack_trees(some_trees(), token_budget=1000)[0]
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(len(batch.target_ids), 32, generator=generator, dtype=torch.float64)
    asked = torch.randn(2, len(hidden), generator=generator, dtype=torch.float64)
    made: list[int] = []
    monkeypatch.setattr(logprobs, "KEPT_NUMBERS", room)
    own = logits.linear
    monkeypatch.setattr(logits, "linear", lambda x, *rest: (made.append(len(x)), own(x, *rest))[1])

    def gradients(*, plain: bool) -> list[torch.Tensor]:
        lm.model.zero_grad()
        own_hidden = hidden.clone().requires_grad_()
        if plain:
            log_probs = (head_of(lm.model)[0](own_hidden) / 0.7).log_softmax(-1)
            found = log_probs.gather(1, batch.target_ids[:, None]).squeeze(1), -(log_probs.exp() * log_probs).sum(-1)
        else:
            options = {"temperature": 0.7, "chunk_rows": 4, "with_entropy": with_entropy}
            found = token_logprobs(lm.model, own_hidden, batch.target_ids, **options)
        loss = (asked[0] * found[0]).sum() + ((asked[1] * found[1]).sum() if with_entropy else 0.0)
        loss.backward()
        return [own_hidden.grad, head_of(lm.model)[0].weight.grad.clone()]

    expected = gradients(plain=True)
    made.clear()
    for found, right in zip(gradients(plain=False), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
    n = len(hidden)
    again = {0: n, 10 * 258: n - 8, 10**9: 0}[room]  # two chunks of four rows fit into ten
    assert sum(made) == n + again


@pytest.mark.parametrize("with_entropy", [False, True])
def test_a_second_pass_through_a_kept_graph_gives_the_same_gradients(with_entropy: bool) -> None:
    """The first pass writes over what was kept."""
    head = torch.nn.Linear(3, 11, bias=False, dtype=torch.float64)
    hidden = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "head_of", lambda _: (head, None))
        found = token_logprobs(head, hidden, torch.arange(7), with_entropy=with_entropy)
    loss = found[0].square().sum() + (found[1].square().sum() if with_entropy else 0.0)
    first = torch.autograd.grad(loss, (hidden, head.weight), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, (hidden, head.weight)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_large_vocabulary_is_read_once_for_all_tokens(monkeypatch) -> None:
    """Each product reads its part of the output layer: whole rows of 100,000 numbers would be 128 at a time."""
    made = []
    product = logits.linear
    monkeypatch.setattr(logits, "linear", lambda x, w, b: made.append((len(x), len(w))) or product(x, w, b))
    head = torch.nn.Linear(2, 100_000, bias=False)
    monkeypatch.setattr(logprobs, "head_of", lambda _: (head, None))
    with torch.no_grad():
        found, _ = token_logprobs(head, hidden := torch.randn(200, 2), ids := torch.arange(200))
    assert {rows for rows, _ in made} == {200}
    assert sum(columns for _, columns in made) == 100_000
    expected = head(hidden).log_softmax(1)[torch.arange(200), ids]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", ["both", "hidden", "weight"])
def test_tiles_are_the_whole_with_its_gradients(monkeypatch, softcap, bias, trained) -> None:
    monkeypatch.setattr(logprobs, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", logprobs.rows_at_a_time(30))  # the tiles' sign of a wide vocabulary
    monkeypatch.setattr(tiled_logprobs, "COLUMNS", 7)
    monkeypatch.setattr(tiled_logprobs, "ROWS", 3)
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(5, 30, bias=bias, dtype=torch.float64)
    hidden = (4 * torch.randn(11, 5, generator=generator, dtype=torch.float64)).requires_grad_(trained != "weight")
    head.weight.requires_grad_(trained != "hidden")
    leaves = [t for t in (hidden, *head.parameters()) if t.requires_grad]
    ids = torch.arange(11) * 29 // 10
    asked = torch.randn(11, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(logprobs, "head_of", lambda _: (head, softcap))
    made = []
    own = tiled_logprobs.logits_of
    monkeypatch.setattr(tiled_logprobs, "logits_of", lambda *a: made.append(len(a[1])) or own(*a))
    found, _ = token_logprobs(head, hidden, ids, temperature=0.7)
    assert sum(made) == 4 * 30  # four blocks of rows
    raw = head(hidden)
    whole = (raw if softcap is None else softcap * (raw / softcap).tanh()) / 0.7
    expected = whole.log_softmax(1)[torch.arange(11), ids]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    right = torch.autograd.grad(expected, leaves, asked)
    for _ in range(2):  # nothing is written over
        for mine, other in zip(torch.autograd.grad(found, leaves, asked, retain_graph=True), right, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("products", [None, torch.bfloat16])
def test_tokens_next_to_impossible_or_certain_keep_their_digits(products, monkeypatch) -> None:
    weight = torch.eye(4) * 16
    hidden = torch.tensor([[16.0, 0, 0, 0], [4.0, 0, 0, 0], [4.0, 0, 0, 0]], requires_grad=True)
    head = torch.nn.Linear(4, 4, bias=False)
    head.weight.data = weight
    head.karat_products = products
    monkeypatch.setattr(logprobs, "head_of", lambda _: (head, None))
    for least in (logprobs.LEAST_ROWS, logprobs.rows_at_a_time(4)):
        monkeypatch.setattr(logprobs, "LEAST_ROWS", least)
        monkeypatch.setattr(logprobs, "KEPT_NUMBERS", 0)
        found, _ = token_logprobs(head, hidden, torch.tensor([1, 2, 0]))
        assert found.tolist() == pytest.approx([-256.0, -64.0, 0.0])
        (grad,) = torch.autograd.grad(found.sum(), hidden)
        torch.testing.assert_close(grad, torch.tensor([[-16.0, 16, 0, 0], [-16.0, 0, 16, 0], [0.0, 0, 0, 0]]))


@pytest.mark.parametrize("shape", [(3, 1), (5, 63), (4, 8192), (2, 100_001)])
def test_a_softmax_written_over_its_logits_is_the_same(shape) -> None:
    drawn = 9 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    for wide in (drawn, drawn.double(), drawn.t().contiguous().t()):
        expected = wide.clone().softmax(1)
        assert torch.equal(logits.softmax_(wide), expected)
