"""What steps of static shapes read, write and were recorded as; a recording outlives the call of the sampler that made it.

A recorded step reads and writes addresses: of weights, which an optimiser changes where they lie, of the sampler's buffers,
and of what a token is drawn by. The next call replays it where all of that is as it was; what differs in anything is freed
before it is made anew. One for each model is kept, as long as the model itself. Knows addresses; knows nothing about which
row runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from karat.lm import parallel
from karat.lm.cache import DecodeCache
from karat.lm.narrow import RoundedWeights, described
from karat.lm.static_step import Choose, StepShape, StepState

MOST_STEPS = 64
"""Recorded steps of a model beyond which all are made anew: each holds some MB of a driver's memory."""
_KEPT: WeakKeyDictionary[nn.Module, Recording] = WeakKeyDictionary()


@dataclass(eq=False)
class Recording:
    """Steps of static shapes and all that lies at addresses they use; it holds no model, so that a model can go."""

    made_for: Hashable
    """What must be as it was for another call to use it."""
    cache: DecodeCache
    """Keys and values."""
    drawing: tuple[Choose, Tensor, int]
    """How a token is drawn, which tokens end a response, and its longest length."""
    pool: list[object] = field(default_factory=list)
    """The memory that recorded steps share, once there is one."""
    rounded: RoundedWeights = field(default_factory=dict)
    """Weights rounded for narrow products."""
    states: dict[StepShape, StepState] = field(default_factory=dict)
    """What steps read and write, by shape."""
    ready: dict[StepState, Callable[[], None]] = field(default_factory=dict)
    """What takes a step, by state."""

    def forget_steps(self) -> None:
        """Let go of all steps: they read buffers that have been exchanged."""
        self.states.clear()
        self.ready.clear()


def recording(model: nn.Module, cache: DecodeCache, drawing: tuple[Choose, Tensor, int], seats: int) -> Recording:
    """The model's recording, if it was made for the same, else an empty one; whoever has it alone has it.

    Args: cache: of the sizes wanted, still without buffers.    seats: most running rows of one prompt.
    """
    choose, stops, limit = drawing
    sizes = cache.n_slots, cache.prompt_tokens, cache.n_rows, cache.response_tokens, cache.dtype, seats, limit
    made_for = (sizes, choose.settings, tuple(stops.tolist()), *described(model), _placed(model), _acting(model))
    kept = _KEPT.pop(model, None)
    return kept if kept is not None and kept.made_for == made_for else Recording(made_for, cache, drawing)


def keep(model: nn.Module, made: Recording) -> None:
    """Leave a recording to the model's next call.

    Not one whose cache has grown, for widths that are read would tell from then on what was drawn before; nor of weights in
    shards, which lie elsewhere each time.
    """
    if made.ready and len(made.ready) <= MOST_STEPS and not made.cache.generation and not parallel.in_shards():
        made.cache.now = None
        _KEPT[model] = made


def _placed(model: nn.Module) -> Hashable:
    """Where a model's numbers lie, and in which form."""
    return tuple(
        (name, one.data_ptr(), one.dtype, one.device, one.shape, one.stride())
        for named in (model.named_parameters(), model.named_buffers())
        for name, one in named
    )


def _acting(model: nn.Module) -> Hashable:
    """Which adapters act and how strongly, and what is hooked to a forward pass: Python decides on these, once for a recording."""
    return tuple(
        (
            name,
            (*part._forward_pre_hooks, *part._forward_hooks),
            _adapters_of(part) if isinstance(part, BaseTunerLayer) else (),
        )
        for name, part in model.named_modules()
        if isinstance(part, BaseTunerLayer) or part._forward_pre_hooks or part._forward_hooks
    )


def _adapters_of(part: BaseTunerLayer) -> tuple[object, ...]:
    scaling = getattr(part, "scaling", {})
    return part.disable_adapters, *part.active_adapters, *part.merged_adapters, *sorted(scaling.items())
