"""A file of prompts in, a file of responses or scores out: the work of `karat generate`, `karat score` and
`karat best-of-n`.

Knows models on disk and files of rows; trains nothing and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from karat.belief import disagreement, mean_score
from karat.destinations import check_file_place
from karat.errors import ConfigError
from karat.evaluate.suite_files import read_suite, score_items
from karat.evaluate.suites import Suite, SuiteResult, suite_result
from karat.lm.chat import prompt_tokens, response_text, room_beside
from karat.lm.endpoint import Endpoint
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import LoadedLM, load_lm
from karat.policy.best_of_n import best_of_n
from karat.policy.score_sources import asked_once, named_score
from karat.prompts.sources import asked_prompts
from karat.records import Prompt, ScoreFn
from karat.reward.score import load_scorer
from karat.rowfiles import prompt_in, read_rows, write_rows

SCORE_ROWS = 256
"""Rows scored together, so that progress is seen; the scores do not depend on it."""


def generate_file(
    model: Path,
    prompts: Path,
    out: Path,
    *,
    n_samples: int,
    config: SamplingConfig,
    seed: int,
    fit: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> int:
    """Sample responses to the prompts of a file; returns how many were written.

    Args:
        prompts: as `prompts.sources.read_prompts` has them; every entry is answered, the same ones too.
        out: JSON lines {"prompt", "response", "sample", "stopped"} in the order of the prompts, written at the end.
        fit: True = where the longest prompt leaves less room than `max_new_tokens`, all responses get what it leaves.
        progress: called with (tokens drawn, responses finished, responses in all).
    Raises: InputError naming file and line; CheckpointError for a model that cannot be used.
    """
    check_file_place(out)
    asked = asked_prompts(prompts)
    lm = load_lm(model)
    tokens = [prompt_tokens(lm.tokenizer, prompt.turns) for _, prompt in asked]
    config = _fitting(config, lm, tokens) if fit else config
    drawn = sample(lm, tokens, n_samples=n_samples, config=config, seed=seed, progress=progress)
    return write_rows(
        out,
        (
            {
                "prompt": written,
                "response": response_text(lm.tokenizer, entry.response_tokens, lm.eos_ids),
                "sample": entry.sample,
                "stopped": entry.stopped,
            }
            for (written, _), group in zip(asked, drawn, strict=True)
            for entry in group
        ),
    )


def _fitting(config: SamplingConfig, lm: LoadedLM, tokens: Sequence[Sequence[int]]) -> SamplingConfig:
    """With no longer responses than the longest prompt leaves room for; unchanged where it leaves none."""
    room = room_beside(tokens, lm.context_length)
    return replace(config, max_new_tokens=room) if 0 < room < config.max_new_tokens else config


def generate_from(endpoint: Endpoint, prompts: Path, out: Path, *, n_samples: int, seed: int) -> int:
    """`generate_file` with a server that speaks OpenAI's chat protocol; returns how many responses were written.

    Raises: InputError naming file and line, or the server's failure in one line.
    """
    check_file_place(out)
    asked = asked_prompts(prompts)
    replies = endpoint.replies([prompt for _, prompt in asked], n_samples=n_samples, seed=seed)
    return write_rows(
        out,
        (
            {"prompt": written, "response": one.text, "sample": number, "stopped": one.stopped}
            for (written, _), group in zip(asked, replies, strict=True)
            for number, one in enumerate(group)
        ),
    )


def score_file(model: Path, responses: Path, out: Path, *, progress: Callable[[int, int], None] | None = None) -> int:
    """Score the responses of a file; returns how many were written.

    Args:
        responses: JSON lines with `prompt` and `response`; other fields are kept.
        out: the same rows with `score` (mean logit) and `score_sd` (spread of its difference to the references).
        progress: called with (rows done, rows in all).
    Raises: InputError naming file and line; CheckpointError for a model that cannot be used.
    """
    check_file_place(out)
    rows = read_rows(responses)
    asked = [prompt_in(row) for row in rows]
    texts = [row.need("response", str) for row in rows]
    scorer = load_scorer(model)
    scored = []
    for start in range(0, len(rows), SCORE_ROWS):
        part = slice(start, start + SCORE_ROWS)
        belief = scorer(asked[part], texts[part])
        spreads = disagreement(belief).tolist() if belief.draws.shape[0] > 1 else [None] * len(rows[part])
        for row, score, spread in zip(rows[part], mean_score(belief).tolist(), spreads, strict=True):
            scored.append({**row.values, "score": score, "score_sd": spread})
        if progress is not None:
            progress(len(scored), len(rows))
    return write_rows(out, scored)


def suite_file(
    model: Path, items: Path, out: Path, suite: Suite, *, progress: Callable[[int, int], None] | None = None
) -> SuiteResult:
    """Score a benchmark's file with a reward model and judge the scores by the benchmark's rules.

    Args:
        items: the benchmark's rows, see `evaluate.suite_files.read_suite`.
        out: JSON lines {"id", "subset", "scores"}, candidates in the order of the file, the right ones first.
        progress: called with (items done, items in all).
    Raises: InputError naming file, entry or item; CheckpointError for a model that cannot be used.
    """
    check_file_place(out)
    read = read_suite(items, suite)
    scorer = load_scorer(model)
    scores = score_items(lambda prompts, texts: mean_score(scorer(prompts, texts)).tolist(), read, progress=progress)
    rows = ({"id": i.id, "subset": i.subset, "scores": row} for i, row in zip(read, scores, strict=True))
    write_rows(out, rows)
    return suite_result(suite, read, scores)


def best_of_n_file(
    model: Path,
    prompts: Path,
    out: Path,
    *,
    score_by: str,
    n: int,
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    fit: bool = False,
    endpoint: Endpoint | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict[str, float]:
    """Best of n for the prompts of a file; returns counts, mean scores and the KL in nats per response.

    Args:
        out: JSON lines {"prompt", "response", "score", "n"} in the order of the prompts.
        score_by: directory of a reward model (its mean score, in logits), `module:function`, or an http address.
        n: competitors.    n_samples: drawn, ≥ n.    fit, progress: as `generate_file` has them.
        endpoint: draws the responses instead of the model in the directory `model`, which is then not read.
    Raises: InputError naming file and line; CheckpointError for a model, ConfigError for a score that cannot be used.
    """
    check_file_place(out)
    asked = asked_prompts(prompts)
    lm = load_lm(model) if endpoint is None else None

    def sampler(wanted: Sequence[Prompt], *, n_samples: int, seed: int) -> list[list[str]]:
        assert lm is not None
        tokens = [prompt_tokens(lm.tokenizer, prompt.turns) for prompt in wanted]
        config = SamplingConfig(max_new_tokens=max_new_tokens)
        config = _fitting(config, lm, tokens) if fit else config
        drawn = sample(lm, tokens, n_samples=n_samples, config=config, seed=seed, progress=progress)
        return [[response_text(lm.tokenizer, one.response_tokens, lm.eos_ids) for one in group] for group in drawn]

    score = _score_by(score_by)
    found = best_of_n([prompt for _, prompt in asked], endpoint or sampler, score, n=n, seed=seed, n_samples=n_samples)
    write_rows(
        out,
        (
            {"prompt": written, "response": text, "score": score, "n": n}
            for (written, _), text, score in zip(asked, found.texts, found.scores, strict=True)
        ),
    )
    every = [score for row in found.candidate_scores for score in row]
    return {
        "n_prompts": len(asked),
        "n": n,
        "n_samples": n_samples,
        "score_mean": sum(found.scores) / len(asked),
        "sample_score_mean": sum(every) / len(every),
        "kl_estimate": found.kl_estimate,
        "kl_bound": found.kl_bound,
        "all_equal": n_samples > 1 and all(len(set(texts)) == 1 for texts in found.candidates),
    }


def _score_by(name: str) -> ScoreFn:
    if Path(name).is_dir():
        return reward_mean(Path(name))
    if ":" not in name:
        raise ConfigError(
            f"--score {name}: found no such directory; expected that of a reward model, module:function or an http address"
        )
    return asked_once(named_score(name), name=name)


def reward_mean(directory: Path) -> ScoreFn:
    """The mean score of a saved reward model, in logits."""
    scorer = load_scorer(directory)
    return lambda prompts, responses: mean_score(scorer(prompts, responses)).tolist()
