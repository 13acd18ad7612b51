"""Score functions from outside: a Python function by name, an HTTP endpoint, a weighted sum of several.

Knows how to reach a function; knows nothing about what it judges.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from karat.errors import ConfigError, InputError
from karat.identity import content_id
from karat.lm import parallel
from karat.lm.addresses import is_address
from karat.policy.scores import score_responses
from karat.policy.settings import HttpSettings
from karat.records import Prompt, ScoreFn

BATCH = 64
"""Responses in one request."""


def named_score(name: str, *, key: str = "score", http: HttpSettings | None = None) -> ScoreFn:
    """The score function that a text names: `http://…`, `https://…` or `module:function`.

    Args:
        key: of the configuration, by which a complaint names it.    http: how an address is asked.
    Raises: ConfigError where there is no such function.
    """
    if name.startswith(("http://", "https://")):
        return _http_score(name, http or HttpSettings(), key)
    return python_score(name, key=key)


def _http_score(url: str, settings: HttpSettings, key: str) -> HttpScore:
    secret = os.environ.get(settings.key_variable, "") if settings.key_variable else ""
    headers = {"Authorization": f"Bearer {secret}"} if secret else None
    return HttpScore(url, timeout_s=settings.timeout_s, n_retries=settings.n_retries, headers=headers, key=key)


def asked_once(score: ScoreFn, *, what: str = "score function", name: str = "") -> ScoreFn:
    """A score function from outside that is called in one process for all: it may count its calls, or cost money.

    Args:
        what, name: by which a complaint names it, as in `score_responses`.
    """

    def ask(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return parallel.from_main(lambda: score_responses(score, prompts, responses, what=what, name=name))

    return ask


def source_hash(name: str) -> str:
    """Hash of the file that holds a named function, by which an edited one is told from what it was; "" = unknown.

    What the file imports is not looked at, and what is behind an http address cannot be.

    Raises: ConfigError as `named_score` has it.
    """
    if name.startswith(("http://", "https://")):
        return ""
    function = python_score(name)
    modules = {name.partition(":")[0], getattr(function, "__module__", None)}
    files = {getattr(sys.modules.get(module or ""), "__file__", None) for module in modules}
    known = sorted(file for file in files if file and Path(file).is_file())
    return content_id("score", [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in known]) if known else ""


def python_score(name: str, *, key: str = "score") -> ScoreFn:
    """`module:function`, looked for among installed modules and in the current directory.

    The function takes prompts (`karat.records.Prompt`) and texts, and returns one number each.

    Raises: ConfigError for another form, a module that cannot be imported, or a name that is no function in it.
    """
    module_name, separator, function_name = name.partition(":")
    if not separator or not module_name or not function_name or "/" in name:
        raise ConfigError(f"{key}: found {name!r}; expected module:function or an http address")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key}: importing {module_name} raised {type(error).__name__}: {said}; expected a module with {function_name}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"{key}: found no function {function_name!r} in {module_name}; expected one that takes prompts and texts"
        )
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise ConfigError(
            f"{key}: {name} cannot be called with prompts and texts ({error}); expected a function of these two"
        ) from None
    except ValueError:  # of some that are compiled nothing is known
        pass
    return function


@dataclass(frozen=True)
class HttpScore:
    """Scores by POST {"prompts": [[{"role", "content"}, …], …], "responses": [text, …]} → {"scores": [number, …]}.

    A request that cannot connect, times out or is answered with 429 or 5xx is tried again; anything else is an error.
    """

    url: str
    """Where to ask."""
    timeout_s: float = 30.0
    """Seconds for one request."""
    n_retries: int = 3
    """Further tries after a failed one."""
    pause_s: float = 0.5
    """Seconds before the first further try; doubled before each one after it."""
    headers: Mapping[str, str] | None = None
    """Sent along (a key of one's own, say)."""
    key: str = "score"
    """Of the configuration, by which a complaint names it."""

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise ConfigError(f"{self.key}: found {self.url!r}; expected an address like http://127.0.0.1:8000/score")
        if self.timeout_s <= 0 or self.n_retries < 0 or self.pause_s < 0:
            raise ConfigError(
                f"{self.key} {self.url}: found timeout_s={self.timeout_s}, n_retries={self.n_retries}, pause_s={self.pause_s}; "
                "expected > 0, ≥ 0 and ≥ 0"
            )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Scores in the order given.

        Raises: InputError when the endpoint does not answer, or not with one number for each response.
        """
        scores: list[float] = []
        with httpx.Client(timeout=self.timeout_s, headers=dict(self.headers or {})) as client:
            for start in range(0, len(responses), BATCH):
                part = slice(start, start + BATCH)
                asked = [[{"role": t.role, "content": t.content} for t in prompt.turns] for prompt in prompts[part]]
                scores += self._ask(client, {"prompts": asked, "responses": list(responses[part])})
        return scores

    def _ask(self, client: httpx.Client, body: Mapping[str, Any]) -> list[float]:
        said = ""
        for attempt in range(self.n_retries + 1):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            try:
                answer = client.post(self.url, json=body)
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
                continue
            if answer.status_code == 429 or answer.status_code >= 500:
                said = f"status {answer.status_code}"
                continue
            return self._scores(answer, len(body["responses"]))
        raise InputError(
            f"{self.key} {self.url}: no scores, tried {self.n_retries + 1} × for at most {self.timeout_s:g} s (last: {said}); expected "
            'POST → {"scores": […]}. The run can be continued when the endpoint answers'
        )

    def _scores(self, answer: httpx.Response, n: int) -> list[float]:
        try:
            scores = answer.json()["scores"] if answer.status_code == 200 else None
        except (ValueError, KeyError, TypeError):
            scores = None
        if not isinstance(scores, list) or len(scores) != n:
            found = f"{len(scores)} scores" if isinstance(scores, list) else " ".join(answer.text.split())[:80]
            raise InputError(
                f'{self.key} {self.url}: status {answer.status_code}, found {found}; expected {{"scores": [{n} numbers]}}'
            )
        return scores


@dataclass(frozen=True)
class WeightedScore:
    """Σ weight·score over several score functions."""

    parts: tuple[tuple[ScoreFn, float], ...]
    """Functions and their weights."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("WeightedScore: found no parts; expected at least one function with its weight")

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Scores in the order given."""
        total = [0.0] * len(responses)
        for function, weight in self.parts:
            scores = score_responses(function, prompts, responses)
            total = [so_far + weight * score for so_far, score in zip(total, scores, strict=True)]
        return total
