"""Responses from a server that speaks OpenAI's chat protocol: vLLM, SGLang, `transformers serve`, and others.

A sampler for best-of-n, generated files and a judge. It cannot train a policy: such a server gives texts, not the tokens
and log-probabilities that an update needs. Knows HTTP and conversations; knows nothing about who asks.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from karat.errors import ConfigError, InputError
from karat.lm.addresses import is_address
from karat.records import Prompt
from karat.seeding import child_seed

RETRIED = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
FIRST_WAIT_S = 0.5
SEED_BITS = 31
"""Servers read the seed into a signed 32-bit number."""


@dataclass(frozen=True)
class EndpointReply:
    """One response of an endpoint."""

    text: str
    """What it said, outer blanks stripped."""
    stopped: bool
    """True = it ended by itself; False = cut off at the limit."""


class Round:
    """Requests of which several are under way at a time; the first that fails ends it, and so does an interruption.

    Neither waits for the others: a server that does not answer would hold the program for as long as it may be asked again.
    """

    def __init__(self, n_parallel: int) -> None:
        """n_parallel: requests under way at a time, ≥ 1."""
        self.n_parallel = n_parallel
        self.over = threading.Event()

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def each(self, ask: Callable[[Any], EndpointReply], wanted: Sequence[Any]) -> list[EndpointReply]:
        """What `ask` gives for each, in their order. Raises: what the first that failed raised."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, EndpointReply | Exception]] = queue.SimpleQueue()
        for number in range(len(wanted)):
            todo.put(number)

        def work() -> None:
            while not self.over.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, ask(wanted[number])))
                except Exception as error:
                    done.put((number, error))

        for _ in range(min(self.n_parallel, len(wanted))):
            threading.Thread(target=work, daemon=True).start()  # daemons: the end of the program does not wait for them
        found: dict[int, EndpointReply] = {}
        while len(found) < len(wanted):
            number, reply = done.get()
            if isinstance(reply, Exception):
                raise reply
            found[number] = reply
        return [found[number] for number in range(len(wanted))]


@dataclass(frozen=True)
class Endpoint:
    """A `Sampler` at the other end of a connection."""

    url: str
    """Base address, as `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name there."""
    max_new_tokens: int = 128
    """Longest response, tokens of the server's tokenizer."""
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    """Probability mass that is drawn from, (0, 1]."""
    timeout_s: float = 120.0
    """Seconds for one response."""
    n_parallel: int = 8
    """Requests under way at a time."""
    n_tries: int = 4
    """Times that a request is sent before giving up; the wait between two doubles from half a second."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key to send; where it is not set none is sent."""

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise ConfigError(f"endpoint: found {self.url!r}; expected an address like http://127.0.0.1:8000/v1")
        for name in ("max_new_tokens", "n_parallel", "n_tries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"endpoint: found {name}={getattr(self, name)}; expected ≥ 1")
        if not 0 < self.timeout_s < math.inf:
            raise ConfigError(f"endpoint: found timeout_s={self.timeout_s}; expected a number > 0")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"endpoint: found temperature={self.temperature}; expected a number ≥ 0")

    def __call__(self, prompts: Sequence[Prompt], *, n_samples: int, seed: int) -> list[list[str]]:
        """n_samples texts for each prompt, in the order given; see `replies`."""
        return [[reply.text for reply in group] for group in self.replies(prompts, n_samples=n_samples, seed=seed)]

    def replies(self, prompts: Sequence[Prompt], *, n_samples: int, seed: int) -> list[list[EndpointReply]]:
        """n_samples responses to each prompt, one request each, so that servers without `n` serve as well.

        Args:
            seed: with the prompt and the sample's number it decides the seed of a request; whether the server repeats
                itself for a seed is the server's promise, not ours.
        Raises: InputError (one line) for a server that cannot be reached, is too slow, refuses, or answers something
            else than a chat completion.
        """
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(self.key_variable)) else {}
        wanted = [(prompt, number) for prompt in prompts for number in range(n_samples)]
        limits = httpx.Limits(max_connections=self.n_parallel)
        with (
            httpx.Client(timeout=self.timeout_s, headers=headers, limits=limits) as client,
            Round(self.n_parallel) as asked,
        ):
            flat = asked.each(lambda one: self._one(client, asked, *one, seed=seed), wanted)
        return [flat[start : start + n_samples] for start in range(0, len(flat), n_samples)]

    def _one(self, client: httpx.Client, asked: Round, prompt: Prompt, number: int, *, seed: int) -> EndpointReply:
        body = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": child_seed(seed, "endpoint", prompt.id, number) % (1 << SEED_BITS),
            "stream": False,
        }
        return self._read(self._send(client, asked, body))

    def _send(self, client: httpx.Client, asked: Round, body: dict[str, Any]) -> httpx.Response:
        """The answer to a request, asked again where that may help."""
        address, problem = f"{self.url.rstrip('/')}/chat/completions", ""
        for attempt in range(self.n_tries):
            if attempt and asked.over.wait(FIRST_WAIT_S * 2 ** (attempt - 1)):
                break
            try:
                response = client.post(address, json=body)
            except httpx.TimeoutException:
                problem = f"no answer within {self.timeout_s:g} s"
                continue
            except httpx.HTTPError as error:
                problem = f"cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"
                continue
            if response.status_code == 200:
                return response
            problem = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
            if response.status_code not in RETRIED:
                break
        raise InputError(f"endpoint {address}: {problem}; expected a chat completion of {self.model!r}")

    def _read(self, response: httpx.Response) -> EndpointReply:
        try:
            choice = response.json()["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
            text.encode()  # half of a surrogate pair is no text: it could be neither written nor read again
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            found = " ".join(response.text.split())[:120]
            raise InputError(f"endpoint {self.url}: found {found!r}; expected choices[0].message.content") from None
        return EndpointReply(text.strip(), reason != "length")
