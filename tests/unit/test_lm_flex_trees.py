"""FlexAttention over trees: what the processor's ways give, gradients included, uncompiled.

On a processor PyTorch refuses its gradients before it begins; the tests lift that guard, for the arithmetic is the same.
Compiled there it is not tested: PyTorch 2.13 writes C++ for these masks that does not compile (docs/decisions/0023).
"""

import pytest
import torch
from torch.nn.attention import flex_attention as torchs

from karat.lm import attention, flex_trees
from karat.lm.flex_trees import flex_tree_attention, places_of
from karat.lm.load import load_lm
from karat.lm.logprobs import response_logprobs
from karat.lm.trees import Tree, TreeLayout, TreeSpan, pack_trees
from tiny_models import tiny_checkpoint

# uncompiled it is slow, says the first; the second is PyTorch's own tracer looking at tensors
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
LAYOUTS = {
    "one tree": TreeLayout((TreeSpan(0, 5, (3, 4, 2)),), 14),
    "several, and filler": TreeLayout((TreeSpan(0, 40, (9, 30)), TreeSpan(79, 1, (1,)), TreeSpan(81, 70, (33,))), 192),
}


def states(layout, heads=4, key_heads=2, size=16, dtype=torch.float32):
    torch.manual_seed(0)
    return [
        torch.randn(1, n, layout.n_positions, size, dtype=dtype, requires_grad=True)
        for n in (heads, key_heads, key_heads)
    ]


@pytest.fixture
def with_gradients(monkeypatch):
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    attention._flex_works.cache_clear()
    yield
    attention._flex_works.cache_clear()


def test_places_say_who_sees_whom():
    layout = TreeLayout((TreeSpan(0, 2, (2, 1)), TreeSpan(5, 1, (1,))), 9)
    tree, part, place = places_of(layout).tolist()
    assert tree == [0, 0, 0, 0, 0, 1, 1, 2, 3]
    assert part == [0, 0, 1, 1, 2, 0, 1, 0, 0]
    assert place == [0, 1, 2, 3, 2, 0, 1, 0, 0]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, 2.0)])
def test_values_and_gradients_are_those_of_each_tree_by_itself(layout, window, softcap, with_gradients):
    del with_gradients
    found, expected = [], []
    for attend, kept in ((flex_tree_attention, found), (attention._by_tree, expected)):
        given = states(layout)
        output = attend(*given, layout, scale=0.3, window=window, softcap=softcap)[:, : layout.spans[-1].stop]
        kept += [output.detach(), *torch.autograd.grad(output.sin().sum(), given)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_stands_behind_the_trees_is_finite(with_gradients):
    del with_gradients
    layout = LAYOUTS["several, and filler"]
    given = states(layout)
    output = flex_tree_attention(*given, layout, scale=0.3)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(one).all() for one in torch.autograd.grad(output.square().sum(), given))


@pytest.mark.parametrize(("kind", "products"), [("llama", None), ("gemma", None), ("llama", torch.bfloat16)])
def test_a_model_takes_this_way_where_it_works(kind, products, tmp_path, monkeypatch, with_gradients):
    del with_gradients
    model = tiny_checkpoint(kind, tmp_path)
    batch = pack_trees([Tree((3, 4, 5), ((6, 7), (8, 9, 10, 11))), Tree((5,), ((6,), (7,)))], token_budget=64)[0]
    asked = []

    def noted(*arguments, **options):
        asked.append(arguments[0].dtype)
        return flex_tree_attention(*arguments, **options)

    def work():
        lm = load_lm(model, for_training=True, products=products)
        logprobs = response_logprobs(lm.model, batch).logprobs
        logprobs.sum().backward()
        return [logprobs.detach(), *(p.grad for p in lm.model.parameters() if p.grad is not None)]

    expected = work()
    monkeypatch.setattr(attention, "flex_tree_attention", noted)
    monkeypatch.setattr(flex_trees, "DEVICES", ("cpu",))
    monkeypatch.setattr(flex_trees, "_compiled", lambda: torchs.flex_attention)
    found = work()
    assert asked.count(products or torch.float32) > 2  # once to try it, then once a layer
    for one, other in zip(found, expected, strict=True):  # bfloat16 products are rounded at other places
        if products is None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert float((one - other).norm()) <= 0.05 * float(other.norm())


def test_where_it_fails_each_tree_is_attended_by_itself(tmp_path, monkeypatch):
    attention._flex_works.cache_clear()
    model = tiny_checkpoint("llama", tmp_path)
    batch = pack_trees([Tree((3, 4, 5), ((6, 7), (8, 9, 10, 11)))], token_budget=64)[0]
    lm = load_lm(model)
    with torch.no_grad():
        expected = response_logprobs(lm.model, batch).logprobs
        monkeypatch.setattr(flex_trees, "DEVICES", ("cpu",))  # whose gradients PyTorch refuses
        monkeypatch.setattr(flex_trees, "_compiled", lambda: torchs.flex_attention)
        torch.testing.assert_close(response_logprobs(lm.model, batch).logprobs, expected, rtol=1e-5, atol=1e-5)
    sizes = (4, 2, 16)
    assert not attention._flex_works(torch.device("cpu"), torch.float32, sizes, None)
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    attention._flex_works.cache_clear()
    assert attention._flex_works(torch.device("cpu"), torch.float32, sizes, None)
    # another answer than that of the trees by themselves is no answer
    attention._flex_works.cache_clear()
    monkeypatch.setattr(attention, "flex_tree_attention", lambda *a, **o: 1.01 * flex_tree_attention(*a, **o))
    assert not attention._flex_works(torch.device("cpu"), torch.float32, sizes, None)
    attention._flex_works.cache_clear()
