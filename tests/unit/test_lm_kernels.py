"""Faster kernels: the values and gradients of the layers they stand in for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from karat.lm import kernels, native
from karat.lm.kernels import linear, matmul, rms_norm, use_fast_kernels, weight_gradient


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[True, False])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries, whatever the processor prefers."""
    monkeypatch.setattr("karat.lm.kernels.onednn_is_faster", lambda: request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_rows", [1, 33, 300])
@pytest.mark.parametrize("compiles", [True, False])
def test_a_weight_for_many_products_multiplies_as_it_did(dtype, n_rows, compiles, monkeypatch) -> None:
    own = kernels.onednn_multiplies() and compiles
    monkeypatch.setattr(kernels, "onednn_multiplies", lambda: own)
    x, weight = draws(n_rows, 64, dtype=dtype), draws(96, 64, seed=1, dtype=dtype)
    prepared = kernels.for_many_products(weight)
    assert (prepared is weight) == (dtype == torch.float32 or not own)
    assert prepared.shape == weight.shape
    found, expected = kernels.times(x, prepared), x.double() @ weight.double().t()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (15, 49), (64, 65), (130, 33), (0, 5), (200, 257)])
@pytest.mark.parametrize("compiles", [True, False])
def test_turned_is_the_transpose_laid_out_anew(shape: tuple[int, int], compiles: bool, monkeypatch) -> None:
    if not compiles:
        monkeypatch.setattr(native, "library", lambda _products: None)
    x = draws(*shape)
    for given in (x, draws(shape[1], shape[0]).t(), x.double(), x.bfloat16()):
        found = native.turned(given)
        assert torch.equal(found, given.t())
        assert found.is_contiguous()


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(2, 300), (1, 3)])  # above and below the size from which oneDNN is used
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torch_with_its_gradients(shape: tuple[int, int], bias: bool) -> None:
    tensors = [draws(*shape, 64), draws(96, 64, seed=1), draws(96, seed=2)][: 3 if bias else 2]
    weights = draws(*shape, 96, seed=3)
    results = []
    for function in (linear, nn.functional.linear):
        leaves = [t.clone().requires_grad_() for t in tensors]
        output = function(*leaves)
        (output * weights).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("onednn")
def test_matmul_takes_transposed_views() -> None:
    left, right = draws(300, 120).t(), draws(300, 90, seed=1)
    torch.testing.assert_close(matmul(left, right), left @ right, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(300, 500, 40), (5, 7, 3)])  # above and below the size from which oneDNN is used
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weights_gradient_is_the_product_of_what_comes_in_and_back(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    n, n_out, n_in = shape
    grad, factor = draws(n, n_out, dtype=dtype), draws(n, n_in, seed=1, dtype=dtype)
    expected = torch.zeros(n_out, n_in, dtype=torch.float64)
    for row, own in zip(grad.double(), factor.double(), strict=True):
        expected += row[:, None] * own
    for wide in (True, False):
        found = weight_gradient(grad, factor, wide=wide)
        assert found.dtype == dtype
        close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-1}
        torch.testing.assert_close(found.double(), expected, **close)


def test_float32_products_are_onednns_with_avx512_unless_the_processor_is_intels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for can, maker, expected in (
        (True, "AuthenticAMD", True),
        (True, "", True),
        (True, "GenuineIntel", False),
        (False, "AuthenticAMD", False),
    ):
        monkeypatch.setattr(kernels, "onednn_multiplies", lambda can=can: can)
        monkeypatch.setattr(kernels, "processor_maker", lambda maker=maker: maker)
        assert kernels.onednn_is_faster() is expected


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_gradients_are_finite_differences(offset: float) -> None:
    x = draws(3, 2, 5, dtype=torch.float64).requires_grad_()
    weight = draws(5, seed=1, dtype=torch.float64).requires_grad_()
    expected = (weight + offset) * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, eps=1e-6, offset=offset), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, eps=1e-6, offset=offset), (x, weight))


class OddRMSNorm(Qwen3RMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * 2


@pytest.mark.usefixtures("onednn")
def test_known_layers_are_rerouted_and_keep_their_values_and_names() -> None:
    model = nn.Sequential(nn.Linear(64, 64), Conv1D(64, 64), Qwen3RMSNorm(64), Gemma2RMSNorm(64), OddRMSNorm(64))
    for parameter in model.parameters():
        parameter.data = draws(*parameter.shape, seed=parameter.numel())
    names = list(model.state_dict())
    x = draws(400, 64)
    before = [layer(x) for layer in model]
    assert use_fast_kernels(model) == 4  # the odd norm has a formula nobody here knows
    assert list(model.state_dict()) == names
    for layer, expected in zip(model, before, strict=True):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


def test_other_dtypes_keep_the_layers_own_forward() -> None:
    norm = Qwen3RMSNorm(8)
    use_fast_kernels(nn.ModuleList([norm]))
    x = draws(3, 8).bfloat16()
    assert torch.equal(norm(x), type(norm).forward(norm, x))
