"""The passes over memory between matrix products, compiled by the machine's own C compiler.

`native_blocks.c`, `native_attention.c` and `native_sampler.c` are compiled on first use, once for products in float32 and
once for bfloat16, and kept in the user's cache under a name that says of which source, compiler and processor it is. Without
a compiler, or with KARAT_NATIVE=0 in the environment, there is no library, and whoever asks does the same with PyTorch's
operations. Knows a compiler, files and tensors' addresses; knows nothing about models.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from karat.devices import processor_listing

SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("native.h", "native_blocks.c", "native_attention.c", "native_sampler.c")
)
SWITCH = "KARAT_NATIVE"
"""Environment variable; 0 = nothing is compiled or loaded."""
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
WIDE_VECTORS = "-mprefer-vector-width=512"
"""Where the compiler knows it: without it GCC uses half of an AVX-512 register."""
OF_PRODUCTS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DNARROW",)}
LONGEST = 120
"""Seconds that a compiler is given."""
A, N, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "narrow_rows": (A, A, N, N, A, N),
    "add_rows": (A, A, A, N, N, A),
    "turn_rows": (A, N, N, A),
    "norm_forward": (A, A, A, N, N, A, F, A, A, A),
    "norm_backward": (A, A, N, N, A, A, A, A, A, A, A),
    "heads_forward": (A, N, N, N, N, A, F, A, A, A, A),
    "heads_backward": (A, N, N, N, N, A, A, A, A, A, A, N, A),
    "attend_trees": (A, A, A),
    "attend_trees_back": (A, A, A, A, A, A),
    "gate_forward": (A, A, N, N, N, A),
    "gate_backward": (A, A, N, N, A, A),
    "choose_forward": (A, A, N, N, A, F, A),
    "decode_rows": (A, N, A, A, N, A, A, A, A, N, A, N, A),
    "draw_rows": (A, N, N, N, A, A, A),
}
"""Addresses, counts and numbers that each function takes, as in the sources."""
ANSWERING = {
    "norm_backward",
    "heads_backward",
    "attend_trees",
    "attend_trees_back",
    "choose_forward",
    "decode_rows",
    "draw_rows",
}
"""Those that say whether there was memory enough."""


class GivenHeads(ctypes.Structure):
    """What `decode_rows` is told of its tokens' heads, as in the sources."""

    _fields_ = (
        *((name, A) for name in ("q", "k", "v")),
        *((name, N) for name in ("q_stride", "k_stride", "v_stride", "heads", "key_heads", "size")),
        ("weight_q", A), ("weight_k", A), ("eps_q", F), ("eps_k", F), ("cosine", A), ("sine", A), ("factor", F),
    )  # fmt: skip


class AskedTrees(ctypes.Structure):
    """What `attend_trees` and `attend_trees_back` are told of heads and layout, as in the sources."""

    _fields_ = (
        *((name, A) for name in ("q", "k", "v")),
        *((name, N) for name in ("q_stride", "k_stride", "v_stride", "heads", "key_heads", "size")),
        ("pieces", A), ("trees", A), ("n_trees", N), ("window", N), ("read", A), ("scale", F),
    )  # fmt: skip


@cache
def library(products: torch.dtype) -> ctypes.CDLL | None:
    """The compiled functions for products of a dtype; None where they cannot be had."""
    if products not in OF_PRODUCTS or os.environ.get(SWITCH) == "0":
        return None
    try:
        found = ctypes.CDLL(str(_compiled(OF_PRODUCTS[products])))
        for name, signature in SIGNATURES.items():
            function = getattr(found, name)
            function.argtypes = signature
            function.restype = ctypes.c_int if name in ANSWERING else None
            if name in ANSWERING:
                function.errcheck = _checked
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError):
        return None
    return found


def address(tensor: Tensor | None, offset: int = 0) -> int | None:
    """Where a tensor's numbers begin, or those from some number on; None stays None."""
    if tensor is None:
        return None
    return tensor.data_ptr() + offset * tensor.element_size() if offset else tensor.data_ptr()


def turned(x: Float[Tensor, "n d"]) -> Float[Tensor, "d n"]:
    """The transpose, its numbers laid out anew: by a compiled pass of all threads where PyTorch's copy, of one, is the slower."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    call = library(torch.float32) if plain else None
    if call is None:
        return x.t().contiguous()
    found = x.new_empty(x.shape[1], x.shape[0])
    call.turn_rows(address(x), *x.shape, address(found))
    return found


def choose_of(products: torch.dtype) -> Callable[[Tensor, Tensor, Tensor | None, float, Tensor], None] | None:
    """What turns rows of logits into probabilities, less 1 at a row's token, and the log-probabilities of the tokens; in place."""
    call = library(products)
    if call is None:
        return None

    def choose(logits: Tensor, tokens: Tensor, bias: Tensor | None, temperature: float, found: Tensor) -> None:
        ids, (n, width) = tokens.contiguous(), logits.shape
        call.choose_forward(address(logits), address(ids), n, width, address(bias), temperature, address(found))

    return choose


def draw_of(logits: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What does the work of `sampling.draw_tokens` in one pass; None where logits do not lie as it reads them."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.stride(1) != 1:
        return None
    call = library(torch.float32)
    if call is None:
        return None

    def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        given = uniforms.double().contiguous()
        tokens, logprobs = torch.empty_like(given, dtype=torch.int64), torch.empty_like(given, dtype=torch.float32)
        places = map(address, (given, tokens, logprobs))
        call.draw_rows(address(logits), logits.stride(0), *logits.shape, *places)
        return tokens, logprobs

    return draw


def _checked(result: int, _function: Any, _given: Any) -> int:
    if not result:
        raise MemoryError("karat.lm.native: found no memory for a few rows of numbers")
    return result


def _compiled(flags: tuple[str, ...]) -> Path:
    """The shared library, compiled unless it is there."""
    compiler = next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )
    if compiler is None:
        raise RuntimeError("no C compiler")
    known = hashlib.sha256(
        "\n".join(
            [*(own.read_text(encoding="utf-8") for own in SOURCES), compiler, *FLAGS, *flags, processor()]
        ).encode()
    )
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karat"
    target = place / f"native-{known.hexdigest()[:16]}.so"
    if not target.exists():
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=place) as own:
            made = Path(own) / target.name
            command = [compiler, *FLAGS, *flags, *map(str, SOURCES[1:]), "-o", str(made), "-lm"]
            for more in ([WIDE_VECTORS], []):
                done = subprocess.run([*command, *more], capture_output=True, timeout=LONGEST, check=False)
                if done.returncode == 0:
                    os.replace(made, target)  # whole or not at all, whoever else compiles
                    break
            else:
                raise RuntimeError("the C compiler refused")
    return target


def processor() -> str:
    """What tells this processor's instructions from another's that sees the same cache."""
    known = {line for line in processor_listing() if line.startswith(("flags", "Features"))}
    return "\n".join([platform.machine(), *sorted(known)])
