"""A file of real comparisons and a local checkpoint as a source: prompts, demonstrations and votes are in the file.

The preferred responses are the demonstrations. Prompts are parted by hash, so the same file always gives the same
splits.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from karat.damaged import damage_named
from karat.errors import InputError
from karat.feedback.exchange.importers import ImportSummary, import_hh, import_preferences
from karat.feedback.store import Store, open_store
from karat.ledger.artifacts import write_json
from karat.lm.chat import prompt_tokens, response_tokens
from karat.lm.load import LoadedLM, load_lm
from karat.pipeline.data import check_given, write_source_files
from karat.pipeline.settings import PreferencesSettings, RunConfig
from karat.pipeline.stages import Output, StageResult, Workplace
from karat.prompts.splits import split
from karat.records import Demonstration, Judgement, Prompt, Response

IDS = "judgement_ids.json"
"""File of the ids of the judgements that the file of preferences holds now."""
FRACTIONS = {"practice": 0.8, "validation": 0.05, "evaluation": 0.15}


def write_source(config: RunConfig, place: Workplace) -> StageResult:
    """Read the file, leave out what does not fit the model, part the prompts, write demonstrations."""
    settings = config.preferences
    assert settings is not None
    check_given("preferences", {"path": settings.path}, settings.model)
    lm = load_lm(settings.model)
    with open_store(place.directory / "karat.db") as store:
        fill(store, settings)
    with tempfile.TemporaryDirectory() as apart, open_store(Path(apart) / "file.db") as store:
        rows = fill(store, settings)  # the run's store may also hold what the file said before it was changed
        prompts, responses, records = store.prompts(), store.responses(), store.records()
    judgements = [record.judgement for record in records]
    fits = fitting(lm, prompts, responses, judgements, settings)
    check_context(lm, [prompts[judgement.prompt_id] for judgement in fits], config)
    kept = {judgement.prompt_id: prompts[judgement.prompt_id] for judgement in fits}
    parts = split(kept.values(), FRACTIONS, key=lambda prompt: prompt.id)
    if not parts["practice"] or not parts["evaluation"] or not parts["validation"]:
        most = "" if settings.limit is None else f" and among the first {settings.limit} (preferences.limit)"
        raise InputError(
            f"{settings.path}: {len(kept)} of {len(prompts)} prompts have a comparison within {settings.max_prompt_tokens} "
            f"prompt and {settings.max_response_tokens} response tokens{most} ({rows.n_pairs_of_equal_texts} rows have two equal texts "
            "and say nothing); expected enough for training, validation and evaluation, some dozens"
        )
    practice = {prompt.id for prompt in parts["practice"]}
    splits = {
        "sft": parts["practice"],
        "collect": parts["practice"][: config.collect.n_prompts],
        "policy": parts["practice"],
        "validation": parts["validation"][: config.watch.n_prompts],
        "evaluation": parts["evaluation"][: config.evaluate.n_prompts],
    }
    chosen = [
        Demonstration(prompts[judgement.prompt_id], responses[preferred(judgement)].text, settings.path.name)
        for judgement in fits
        if judgement.prompt_id in practice
    ]
    outputs = write_source_files(place, splits, chosen)
    ids = place.beside(place.directory / "data" / IDS)
    write_json(ids, [record.id for record in records])
    outputs.append(Output("judgements", ids))
    counts = {"n_rows": rows.n_rows, "n_prompts": {name: len(group) for name, group in splits.items()}}
    left_out = len(judgements) - len(fits)
    notes = (
        [f"{rows.n_pairs_of_equal_texts} rows have two equal texts and were left out"]
        if rows.n_pairs_of_equal_texts
        else []
    )
    if left_out:
        notes.append(f"{left_out} of {len(judgements)} comparisons are longer than the limits and were left out")
    return StageResult(outputs, {**counts, "n_left_out": left_out}, notes=notes)


def check_context(lm: LoadedLM, prompts: Sequence[Prompt], config: RunConfig) -> None:
    """Raise InputError where a prompt leaves no room for the responses that will be sampled to it."""
    room = max(config.collect.max_new_tokens, config.policy_tokens)
    longest = max((len(prompt_tokens(lm.tokenizer, prompt.turns)) for prompt in prompts), default=0)
    if longest + room > lm.context_length:
        source = "preferences" if config.preferences is not None else "people"
        drawn = ["collect", *([] if config.rollout is None else [f"{config.section}.rollout"])]
        raise InputError(
            f"{lm.path}: found a prompt of {longest} tokens with room wanted for {room} response tokens; expected at most "
            f"{lm.context_length} in all, the model's context. Lower {source}.max_prompt_tokens, or "
            + " and ".join(f"{name}.max_new_tokens" for name in drawn)
        )


def fill(store: Store, settings: PreferencesSettings) -> ImportSummary:
    """Import the file into the store; importing it again changes nothing."""
    read = import_hh if settings.format == "hh" else import_preferences
    return read(store, settings.path)


def judgement_ids(place: Workplace) -> set[str]:
    """The judgements that the file held when its prompts were read."""
    path = place.directory / "data" / IDS
    with damage_named(path, "the judgements of a file"):
        return set(json.loads(path.read_text(encoding="utf-8")))


def import_votes(config: RunConfig, store: Store, place: Workplace, batch: str) -> dict[str, Any]:
    """The votes of the file are in the store since its prompts were read."""
    del config, place, batch
    return {"n_votes": store.n_judgements()}


def fitting(
    lm: LoadedLM,
    prompts: dict[str, Prompt],
    responses: dict[str, Response],
    judgements: Sequence[Judgement],
    settings: PreferencesSettings,
) -> list[Judgement]:
    """Judgements whose prompt and responses are within the limits, in order, at most `limit` of them.

    Raises: InputError where the limits together let through what no context of the model holds.
    """
    n_prompt = {key: len(prompt_tokens(lm.tokenizer, prompt.turns)) for key, prompt in prompts.items()}
    n_response = {
        key: len(response_tokens(lm.tokenizer, response.text, lm.eos_ids[0])) for key, response in responses.items()
    }
    kept = [
        judgement
        for judgement in judgements
        if n_prompt[judgement.prompt_id] <= settings.max_prompt_tokens
        and all(n_response[one] <= settings.max_response_tokens for one in judgement.response_ids)
    ]
    kept = kept if settings.limit is None else kept[: settings.limit]
    lengths = [(n_prompt[one.prompt_id], max(n_response[each] for each in one.response_ids)) for one in kept]
    longest = max(lengths, key=sum, default=(0, 0))
    if sum(longest) > lm.context_length:
        raise InputError(
            f"{settings.path}: found a comparison of {longest[0]} prompt and {longest[1]} response tokens; expected at most "
            f"{lm.context_length} in all, the model's context. Lower preferences.max_prompt_tokens or "
            "preferences.max_response_tokens"
        )
    return kept


def preferred(judgement: Judgement) -> str:
    """Response.id of the better response of a two-level comparison."""
    a, b = judgement.response_ids
    return a if judgement.value["level"] else b
