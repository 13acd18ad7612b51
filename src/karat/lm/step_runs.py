"""Three ways to run a step of static shapes: as it is, compiled, and recorded as a CUDA graph that is replayed.

Whatever is not the step as it is, is tried on each new shape: its first step is taken both ways, from the same state, and
has to give the same draws. Where it does not, or cannot be made, the step as it is goes on, and a line says why. Knows
states and functions of them; knows nothing about models beyond how their layers are written for a compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from karat.lm.narrow import products_of
from karat.lm.static_step import StepState, take_step
from karat.lm.ways import LOG

Step = Callable[[StepState], None]
"""Draws one token for each row of a state."""
Prepare = Callable[[Step, StepState], Callable[[], None]]
"""Makes of a step and a state what takes that step of that state; it may take steps itself while it does."""
REFUSED = "karat_decode_refused"
"""Attribute of a model with which compiled or recorded steps failed: why."""
GRAPH_GAP = 1e-5
"""Nats: a graph replays the very kernels that it recorded."""
COMPILED_GAP = 1e-3
"""Nats; compiled sums run in another order. Narrow products are allowed their rounding (`narrow.tolerance`)."""
MOST_FLIPS = 0.1
"""Share of the rows whose number may fall so near a boundary that rounding decides on the token; one row in any case."""
MOST_SHAPES = 64
"""Shapes a step is compiled for, before PyTorch gives up: powers of two of five sizes."""


@dataclass(eq=False)
class StepRuns:
    """Takes steps of states in the way that was chosen, or as they are."""

    model: nn.Module
    """Which remembers a refusal, so that the next call does not try again."""
    step: Step
    """The step as it is."""
    prepare: Prepare | None
    """None = as it is."""
    ready: dict[StepState, Callable[[], None]]
    """What takes a step, by state; what is made is put here."""
    gap: float = 0.0
    """Nats by which a log-probability may differ in the trial."""
    flips: float = 0.0
    """Share of the rows that may draw another token in the trial."""

    def __call__(self, state: StepState) -> None:
        """Take one step."""
        if self.prepare is None:
            self.step(state)
        elif state in self.ready:
            self.ready[state]()
        elif (reason := self._tried(state)) is not None:
            self.prepare = None
            self.ready.clear()
            setattr(self.model, REFUSED, reason)
            LOG.warning("decode: found that %s; tokens are drawn by the plain way, which gives the same ones", reason)

    def _tried(self, state: StepState) -> str | None:
        """Take a step both ways; why the other way must not be used, or None. The state is one step further in either case."""
        assert self.prepare is not None
        before = [one.clone() for one in state.changing]
        self.step(state)
        wanted = [one.clone() for one in state.changing]
        runs = before[2]
        try:
            _put(state, before)
            made = self.prepare(self.step, state)
            _put(state, before)
            made()
            reason = _difference(state, wanted, runs, self.gap, self.flips)
        except Exception as error:  # whatever a compiler, a driver or a foreign module raises
            # all of it in one line: of a compiler's complaint the first says only who complains
            reason = f"it cannot be made: {' '.join(str(error).split())[:160] or type(error).__name__}"
        if reason is None:
            self.ready[state] = made
            return None
        _put(state, before)  # keys and values of this step too are to be the plain ones
        self.step(state)
        return reason


def _put(state: StepState, numbers: list[Tensor]) -> None:
    for target, source in zip(state.changing, numbers, strict=True):
        target.copy_(source)


def _difference(state: StepState, wanted: list[Tensor], runs: Tensor, gap: float, flips: float) -> str | None:
    """In what a step that was taken differs from the wanted one, of the rows that ran; None = in nothing that counts."""
    drawn, logprobs, expected_drawn, expected = (
        one[runs, int(wanted[3]) - 1] for one in (state.drawn, state.logprobs, wanted[4], wanted[5])
    )
    same = drawn == expected_drawn
    n_other = int((~same).sum())
    if not torch.equal(state.step, wanted[3]) or n_other > max(flips > 0, flips * len(drawn)):
        return f"{n_other} of {len(drawn)} rows drew other tokens in its trial"
    apart = (logprobs - expected)[same].abs()
    widest = float(apart.max()) if len(apart) else 0.0
    if widest > gap:  # numbers that are none in both are for the sampler to complain of
        return f"log-probabilities differed by {widest:.1e} in its trial, expected at most {gap:.0e}"
    return None


class CudaGraphs:
    """Records steps on a CUDA device; all of them share their memory."""

    def __init__(self, device: torch.device, pool: list[Any]) -> None:
        """Args: pool: the memory that is shared; empty until something is recorded."""
        self.device, self.pool = device, pool

    def __call__(self, step: Step, state: StepState) -> Callable[[], None]:
        """What replays the step: the same kernels on the same addresses, started at once."""
        here, beside = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            step(state)  # libraries make their handles and workspaces now: not while it is recorded
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # other threads (a server's) may go on using the device meanwhile
        with torch.cuda.graph(graph, pool=self.pool[0] if self.pool else None, capture_error_mode="thread_local"):
            step(state)
        self.pool[:] = [graph.pool()]
        return graph.replay


@functools.cache
def compiled_step() -> Callable[..., None]:
    """`take_step` compiled, once for the process: shapes and models it was compiled for are kept by PyTorch."""
    return torch.compile(take_step, fullgraph=True, dynamic=False)


@contextmanager
def plainly_written(model: nn.Module) -> Iterator[None]:
    """Within: layers written so that a compiler can follow them, of the same value.

    `kernels` gives them forward functions that choose between libraries; narrow products look up their rounded weights.
    """
    with ExitStack() as undo:
        for module in model.modules():
            forward = module.__dict__.get("forward")
            if forward is None:
                continue
            products = products_of(module)
            if products is not None and isinstance(module, nn.Linear | Conv1D):
                module.forward = _narrow_forward(module, products)
            else:
                del module.forward
            undo.callback(setattr, module, "forward", forward)
        yield


def _narrow_forward(module: nn.Linear | Conv1D, products: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = module.weight.detach().to(products)
    if isinstance(module, Conv1D):
        weight = weight.t().contiguous()

    def forward(x: Tensor) -> Tensor:
        output = F.linear(x.to(products), weight).to(x.dtype)
        return output if module.bias is None else output + module.bias

    return forward
