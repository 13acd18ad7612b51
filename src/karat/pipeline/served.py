"""Policies that a server samples for the evaluation: the run's own checkpoints behind vLLM, SGLang or `transformers serve`.

Knows addresses and the names of policies; what is done with the responses it leaves to `evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from karat.errors import ConfigError
from karat.lm.endpoint import Endpoint


@dataclass(frozen=True)
class ServedPolicy:
    """Where a policy of the run is served, under OpenAI's chat protocol."""

    url: str
    """Base address, as `http://127.0.0.1:8000/v1`."""
    model: str
    """The policy's name there."""
    n_parallel: int = 8
    """Requests under way at a time."""
    timeout_s: float = 120.0
    """Seconds for one response."""

    def __post_init__(self) -> None:
        self.endpoint(1)

    def endpoint(self, max_new_tokens: int) -> Endpoint:
        """The server as a sampler at temperature 1, which alone is the policy itself."""
        return Endpoint(self.url, self.model, max_new_tokens, timeout_s=self.timeout_s, n_parallel=self.n_parallel)


def check_served(served: Mapping[str, ServedPolicy], algorithm: str) -> None:
    """Raise ConfigError for the name of a policy that a run does not have."""
    known = ("sft", algorithm)
    if wrong := sorted(set(served) - set(known)):
        raise ConfigError(
            f"evaluate.served: found {wrong[0]!r}; expected {' or '.join(known)}, the policies of the run"
        )
