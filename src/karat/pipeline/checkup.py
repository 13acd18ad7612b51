"""Looks a configuration over before hours are spent on it: what it comes to, and what would stop it.

The source's own first station runs in a temporary directory, so that files, rows, checkpoint and context are checked by
the very code that will read them; nothing else is run and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from karat.config import apply_overrides, build, load_yaml
from karat.devices import available_bytes, chosen, described, memory_bytes
from karat.doctor import Check
from karat.errors import KaratError
from karat.feedback.store import open_store
from karat.lm.chat import prompt_tokens, response_tokens
from karat.lm.fused_block import may_be_fused
from karat.lm.kernels import prepares
from karat.lm.load import LoadedLM, load_lm
from karat.lm.memory import ModelSize, size_of
from karat.lm.narrow import fast_on
from karat.lm.native import library
from karat.lm.trackers import check_trackers
from karat.lm.ways import GRAPHED, decode_problem
from karat.pipeline.counted_memory import memory_problems
from karat.pipeline.data import read_demonstrations, read_prompts
from karat.pipeline.dead import cautions, contradictions, dead_settings
from karat.pipeline.derived import Counts, Derived, derived
from karat.pipeline.models import PRODUCTS
from karat.pipeline.optimise import check_demonstrations
from karat.pipeline.payment import payment_problems
from karat.pipeline.preferences import fill
from karat.pipeline.runs import source_of
from karat.pipeline.sandbox import write_untrained
from karat.pipeline.settings import PreferencesSettings, RunConfig
from karat.pipeline.stages import Clock, Workplace
from karat.pipeline.votes import load_trunk
from karat.pipeline.votes_settings import VotesConfig
from karat.process_settings import Decode
from karat.progress import Progress
from karat.prompts.sources import read_prompts as read_prompt_file


@dataclass(frozen=True)
class Checkup:
    """What was found out about a configuration."""

    checks: tuple[Check, ...]
    """What was looked at."""
    derived: tuple[Derived, ...]
    """What follows from it; empty where the source cannot be read."""


def check_config(
    path: Path,
    overrides: list[str],
    *,
    directory: Path,
    progress: Progress,
    processes: int = 1,
    in_shards: bool = False,
) -> Checkup:
    """Everything about a configuration that can be known without training.

    Args:
        directory: where runs are kept: its disk is looked at.
        processes: on this machine, whose memory they share.    in_shards: whether they part what is trained.
    Returns: Checkup; a check that is `needed` and not `ok` would stop the run.
    Raises: ConfigError for a file that is no configuration at all.
    """
    given = apply_overrides(load_yaml(path), overrides)
    if "votes" in given:
        return _check_votes(build(VotesConfig, given))
    config = build(RunConfig, given)
    checks = [_passes("tracking", lambda: check_trackers(config.tracking), "packages of the trackers are there")]
    device, look = _device(config.device)
    checks.append(look)
    numbers: list[Derived] = []
    if too_many := [Check("memory", False, problem) for problem in memory_problems(config)]:
        return Checkup((*checks, *too_many, *_settings(config, given)), ())  # the source itself might need it
    with tempfile.TemporaryDirectory(prefix="karat-doctor-") as temporary:
        place = Workplace(
            Path(temporary), Path(temporary) / "c", Path(temporary) / "m", progress, Clock(Path(temporary))
        )
        try:
            counts, lm, size = _look_at_source(config, place, device)
        except KaratError as error:
            checks += [
                Check("source", False, problem) for problem in _problems_of_inputs(config, place) or [str(error)]
            ]
        else:
            checks += [
                Check("source", True, f"{counts.policy_prompts} prompts, {counts.demonstrations} demonstrations"),
                Check("model", True, f"{lm.path if config.sandbox is None else 'from nothing'}: EOS {lm.eos_ids[0]}, "
                      f"PAD {lm.pad_id}, context {lm.context_length} tokens"),
                _dtype(config, device),
                _decode(config, device),
                _context(config, counts, lm),
                _prompts_enough(config, counts),
            ]  # fmt: skip
            if config.ptx_coef:
                path = place.directory / "data" / "demonstrations.jsonl"
                checks.append(_passes("ptx", lambda: check_demonstrations(config, path), "there are demonstrations"))
            numbers = derived(config, counts, size, n_shards=processes if in_shards else 1)
            checks += [_memory(numbers, processes, device, config.decode), _disk(numbers, directory)]
    wrong = [Check("payment", False, problem) for problem in payment_problems(config)]
    checks += wrong or [Check("payment", True, "what pays and charges the policy is there")]
    checks += _settings(config, given)
    return Checkup(tuple(checks), tuple(numbers))


def _settings(config: RunConfig, given: Mapping[str, Any]) -> list[Check]:
    found = [Check("settings", False, problem) for problem in contradictions(config)]
    found += [Check(key, False, f"has no effect: {why}", needed=False) for key, why in dead_settings(config, given)]
    found += [Check("settings", False, text, needed=False) for text in cautions(config)]
    found += [Check("settings", False, text, needed=False) for text in config.unsafe]
    return found or [Check("settings", True, "none is dead, none contradicts another")]


def _look_at_source(config: RunConfig, place: Workplace, device: torch.device) -> tuple[Counts, LoadedLM, ModelSize]:
    """Run the source's first station in the temporary place, and load the model to start from."""
    source = source_of(config, config.seed)
    source.write(place)
    data = place.directory / "data"
    prompts = read_prompts(data / "prompts.jsonl")
    if config.sandbox is not None:
        model = write_untrained(config, config.seed, place.directory / "untrained")
    else:
        settings = config.people or config.preferences
        assert settings is not None
        model = settings.model
    lm = load_lm(model)
    asked = [prompt for group in prompts.values() for prompt in group]
    votes = config.collect.n_tasks * config.collect.overlap
    if not source.asks:
        with open_store(place.directory / "karat.db") as store:
            votes = store.n_judgements()
    shown = read_demonstrations(data / "demonstrations.jsonl")
    lengths = [len(prompt_tokens(lm.tokenizer, prompt.turns)) for prompt in asked]
    written = [len(response_tokens(lm.tokenizer, one.text, lm.eos_ids[0])) for one in shown]
    counts = Counts(
        demonstrations=len(shown),
        policy_prompts=len(prompts["policy"]),
        collect_prompts=len(prompts["collect"]),
        votes=votes,
        longest_prompt=max(lengths, default=0),
        typical_prompt=math.ceil(fmean(lengths)) if lengths else 0,
        typical_response=math.ceil(fmean(written)) if written else 0,
    )
    size = size_of(lm.model.config, _parameters(model))
    here, products = device.type == "cpu", PRODUCTS[config.dtype]
    compiled = here and may_be_fused(lm.model) and library(products or torch.float32) is not None
    narrow, prepared = config.dtype == "bfloat16", here and prepares(products)
    return counts, lm, replace(size, narrow=narrow, compiled=compiled, tiled=here, prepared=prepared)


def _problems_of_inputs(config: RunConfig, place: Workplace) -> list[str]:
    """What is wrong with the checkpoint and with the file of a source, each looked at by itself: one hides the other."""
    looks: list[Callable[[], object]] = []
    if (people := config.people) is not None:
        looks = [lambda: load_lm(people.model), lambda: read_prompt_file(people.prompts)]
    if (given := config.preferences) is not None:
        looks = [lambda: load_lm(given.model), lambda: _read_preferences(place.directory / "looked-at.db", given)]
    found = [_passes("source", look, "") for look in looks]
    return [one.found for one in found if not one.ok]


def _read_preferences(store: Path, given: PreferencesSettings) -> None:
    with open_store(store) as opened:
        fill(opened, given)


def _parameters(model: Path) -> int:
    """Numbers in the weights, tied ones once; made without memory."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, local_files_only=True))
    return sum(parameter.numel() for parameter in empty.parameters())


def _device(asked: str) -> tuple[torch.device, Check]:
    """Where the run would work, or the processor where that is not there."""
    try:
        device = chosen(asked)
    except KaratError as error:
        return torch.device("cpu"), Check("device", False, str(error))
    return device, Check("device", True, described(device))


def _dtype(config: RunConfig, device: torch.device) -> Check:
    if config.dtype == "float32":
        return Check("dtype", True, "float32")
    if fast_on(device):
        return Check("dtype", True, "bfloat16 in matrix products; weights, moments and what is saved are float32")
    return Check(
        "dtype", False, "bfloat16 on a device without arithmetic for it: slower than float32", needed=False
    )  # fmt: skip


def _decode(config: RunConfig, device: torch.device) -> Check:
    if problem := decode_problem(config.decode, device):
        return Check("decode", False, problem)
    if config.decode != "auto":
        return Check("decode", True, config.decode)
    graph = _recorded(config.decode, device)
    return Check("decode", True, "recorded as a graph, where its trial agrees" if graph else "plain")


def _recorded(decode: Decode, device: torch.device) -> bool:
    """Whether steps are recorded, and their buffers kept from one call of the sampler to the next."""
    return decode == "graph" or (decode == "auto" and device.type == GRAPHED)


def _context(config: RunConfig, counts: Counts, lm: LoadedLM) -> Check:
    room = max(config.collect.max_new_tokens, config.policy_tokens)
    wanted = counts.longest_prompt + room
    found = f"longest prompt {counts.longest_prompt} + {room} response tokens = {wanted} of {lm.context_length}"
    advice = "" if wanted <= lm.context_length else "; lower max_new_tokens or use a model of longer context"
    return Check("context", wanted <= lm.context_length, found + advice)


def _prompts_enough(config: RunConfig, counts: Counts) -> Check:
    wanted, there = config.rollout.n_prompts if config.rollout else 0, counts.policy_prompts
    if wanted <= there:
        return Check("prompts", True, f"{there} for rollouts of {wanted}")
    return Check(
        "prompts", False, f"{there} for rollouts of {wanted}: every rollout asks some twice", needed=False
    )  # fmt: skip


def _memory(numbers: list[Derived], processes: int, device: torch.device, decode: Decode) -> Check:
    """Of the machine, which its processes share; of an accelerator for the one process that has it."""
    peaks = {one.name: one.value for one in numbers if one.name.startswith("memory.")}
    cache, learning = peaks.pop("memory.decode_cache"), max(peaks.values())
    peak = cache + learning if _recorded(decode, device) else max(cache, learning)
    free = available_bytes()
    if device.type != "cpu":
        processes, free = 1, (memory_bytes(device) or (None,))[0]
    wanted = processes * peak
    by = "" if processes == 1 else f" by {processes} processes"
    if free is None:
        return Check("memory", True, f"about {_gib(wanted)} wanted{by}; what is free is not known here", needed=False)
    advice = "" if wanted <= free else "; lower token_budget (same result), or use lora"
    return Check("memory", wanted <= free, f"about {_gib(wanted)} wanted at the peak{by}, {_gib(free)} free{advice}")


def _disk(numbers: list[Derived], directory: Path) -> Check:
    wanted = next(one.value for one in numbers if one.name == "disk")
    place = next(parent for parent in (directory.resolve(), *directory.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    advice = "" if wanted <= free else "; free some space"
    return Check("disk", wanted <= free, f"about {_gib(wanted)} wanted, {_gib(free)} free at {place}{advice}")


def _check_votes(config: VotesConfig) -> Checkup:
    files = [path for path in (config.votes.path, config.votes.texts, config.votes.consensus) if path is not None]
    checks = [
        Check(str(path), path.is_file(), "is there" if path.is_file() else "no such file; give the path")
        for path in files
    ]
    checks.append(_passes("model", lambda: load_trunk(config), "loads"))
    checks.append(_device(config.device)[1])
    checks.append(_passes("tracking", lambda: check_trackers(config.tracking), "packages of the trackers are there"))
    return Checkup(tuple(checks), ())


def _passes(name: str, look: Any, says: str) -> Check:
    with _caught() as caught:
        look()
    return Check(name, False, caught[0]) if caught else Check(name, True, says)


@contextlib.contextmanager
def _caught() -> Iterator[list[str]]:
    found: list[str] = []
    try:
        yield found
    except KaratError as error:
        found.append(str(error))


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / (1 << 30):.2f} GiB"
