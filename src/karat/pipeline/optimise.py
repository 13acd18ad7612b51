"""The optimiser station: the method that `algorithm` names, looked at by a watcher that never sees gold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from karat.belief import Belief, aggregator_of, disagreement, lower_bound
from karat.errors import ConfigError
from karat.evaluate.measure import draw, sequence_kl, texts_of
from karat.feedback.snapshot import read_snapshot, snapshot_place, write_snapshot
from karat.feedback.store import open_store
from karat.ledger.artifacts import ArtifactRef, ref_of
from karat.ledger.lineage import METRICS
from karat.lm import parallel
from karat.lm.adapters import is_adapted, merged, reference_mode
from karat.lm.load import LoadedLM, load_lm, save_lm
from karat.overopt import distinct_frac
from karat.pipeline.beside import beside_the_score, paid_by
from karat.pipeline.data import practised, read_demonstrations, read_prompts, read_texts, write_rows
from karat.pipeline.measured import measured_once, scored_once
from karat.pipeline.methods import Around, Material, Trained, n_steps, run_method
from karat.pipeline.models import PRODUCTS, load_for_training
from karat.pipeline.panel import Panel
from karat.pipeline.populations import JURY, OF_GROUPS, open_scorer
from karat.pipeline.rewarding import flat_texts
from karat.pipeline.settings import RunConfig
from karat.pipeline.sources import Gold, Source
from karat.pipeline.stages import Output, Run, StageResult, Workplace, training_reporters
from karat.policy.odd_rewards import OddRewards, usual_range
from karat.policy.score_sources import asked_once, named_score
from karat.policy.watcher import Watcher, WatchRules
from karat.records import Finding, Prompt
from karat.reward.novelty import load_novelty, text_features
from karat.reward.people import GroupScorer
from karat.reward.score import Scorer, score_fn
from karat.seeding import child_seed

ODD = "odd-rewards"
"""Directory of the queue of odd rewards in a run."""


def train(
    run: Run,
    config: RunConfig,
    given: Mapping[str, ArtifactRef],
    source: Source,
    place: Workplace,
) -> StageResult:
    """Optimise the fine-tuned policy, and keep the policy that the settings say.

    Args:
        given: artefacts by name: sft, reward, prompts, samples, snapshot, demonstrations.
    """
    name = config.algorithm
    sft = run.directory / given["sft"].path
    lm = load_for_training(sft, config.lora, seed=child_seed(run.seed, "ppo", "lora"), dtype=config.dtype)
    scorer = open_scorer(run.directory / given["reward"].path, config, lambda: load_lm(sft), run.seed, on=lm)
    splits = read_prompts(place.directory / "data" / "prompts.jsonl")
    samples = read_texts(run.directory / given["samples"].path)
    # 1. what is usual: the ensemble's disagreement on the reference policy's own responses; one head has none
    asked, texts = flat_texts(samples)
    usual = measured_once(place, "usual", lambda: usual_spread(scorer(asked, texts), config))
    lengths = [float(n) for row in samples.lengths for n in row]
    # 2. the method
    score = (
        asked_once(named_score(config.score, http=config.score_http), name=config.score)
        if config.score
        else score_fn(scorer, config.aggregator)
    )
    score = scored_once(place, score) if config.algorithm == "ilql" else score
    if config.watch.odd_quantile is not None:
        low, high = usual_range(list(score(asked, texts)), config.watch.odd_quantile)
        score = OddRewards(score, low, high, place.directory / ODD)
    beside = beside_the_score(
        scorer, run.directory / given["reward"].path, config.dense, config.constraint, http=config.score_http
    )
    beside = replace(beside, paid_by=paid_by(config, given["reward"]))
    if config.ptx_coef:
        known, _ = practised(read_demonstrations(run.directory / given["demonstrations"].path))
        beside = replace(beside, demonstrations=known)
    snapshot = read_snapshot(run.directory / given["snapshot"].path)
    labels = read_snapshot(run.directory / given["labels"].path) if "labels" in given else None
    measuring = frozenset(prompt.id for name in ("validation", "evaluation") for prompt in splits[name])
    material = Material(splits["policy"], score, snapshot, samples, beside, labels, measuring)
    rules = watch_rules(config, usual, lengths, run_steps=n_steps(config, material))
    watcher = Watcher(rules, directory=place.checkpoints / "watcher")
    seed, start = child_seed(run.seed, "look"), None
    if config.rollout is None:
        start = lm if config.lora else load_lm(sft, products=PRODUCTS[config.dtype])
    panel = open_panel(config, source, place, splits["validation"], sft, run_seed=run.seed, look_seed=seed)
    look = looker(
        scorer, splits["validation"], config, source.gold, seed=seed, panel=panel,
        novel_frac=novelty_of(scorer, run.directory / given["reward"].path),
        reference=start,
    )  # fmt: skip
    with training_reporters(place, name, n_steps(config, material)) as reporters:
        seed = child_seed(run.seed, "ppo")
        result = run_method(config, lm, material, Around(seed, place.training, reporters, watcher, look))
    # 3. which policy is kept
    return parallel.from_main(lambda: keep(run, config, place, result, watcher, panel))


def keep(
    run: Run, config: RunConfig, place: Workplace, result: Trained, watcher: Watcher, panel: Panel | None = None
) -> StageResult:
    """Save the policy that the settings say, and what the watcher saw."""
    name = config.algorithm
    directory = place.model_directory(name)
    kept_step, lm = result.n_steps, result.lm
    # by people's votes the start may be the best; a reward that praises nothing it trained is no reason to drop it all
    found = result.best_step is not None and (result.best_step > 0 or config.watch.panel is not None)
    if config.watch.keep == "best" and result.best_path is not None and found:
        kept_step = result.best_step or 0
        shutil.rmtree(directory, ignore_errors=True)
        lm = load_lm(result.best_path)
    save_lm(merged(lm), directory, metadata={"run_id": run.id, "stage": name, "step": str(kept_step)})
    watched = place.beside(place.directory / "metrics" / f"watch{place.suffix}.jsonl")
    write_rows(watched, watcher.history)
    metrics = {
        "alarms": watcher.alarms,
        "peak": watcher.peak,
        "algorithm": name,
        "kl_coef": config.kl_coef,
        "n_iterations": result.n_steps,
        "kept_step": kept_step,
        # by a panel's votes: the probability that no look had much more
        "kept_near_top": watcher.best_value if panel is not None and kept_step == result.best_step else None,
        "stop_reason": result.stop_reason,
        "n_skipped": result.n_skipped,
        "unsafe": list(config.unsafe),
    }
    notes = [f"stopped early: {result.stop_reason}"] if result.stop_reason else []
    notes += [f"optimised for {config.score}, not for the reward model"] if config.score else []
    outputs = [
        Output("model", directory, "model"),
        Output("metrics", place.metrics_path, METRICS),
        Output("watch", watched),
    ]
    outputs += [] if panel is None else panel.outputs()
    return StageResult(outputs, metrics, [leash_finding(config)], notes)


def reads(config: RunConfig, given: Mapping[str, ArtifactRef]) -> tuple[ArtifactRef, ...]:
    """What the optimiser's stage reads: the votes only where it draws no responses, demonstrations only for ptx."""
    names = ["sft", "reward", "prompts", "samples"]
    names += ["snapshot"] * (config.rollout is None) + ["demonstrations"] * bool(config.ptx_coef)
    names += ["labels"] * ("labels" in given)
    return tuple(given[name] for name in names)


def given_labels(run: Run, config: RunConfig) -> dict[str, ArtifactRef]:
    """Judgements from elsewhere that the method learns from, as stages read them; {} where there are none.

    Of a store the run keeps a snapshot, which is another one once more has been judged.
    """
    if config.labels is None or config.algorithm != "kto":
        return {}
    place = config.labels.resolve()

    def taken() -> str:
        with open_store(str(place)) as store:
            path = snapshot_place(store, run.directory / "snapshots" / "labels")
            write_snapshot(store, path)
        return str(path)

    path = place if place.is_dir() else Path(parallel.from_main(taken))
    return {"labels": ref_of(run.directory, path, "snapshot", "labels")}


def check_demonstrations(config: RunConfig, path: Path) -> None:
    """Raise ConfigError where ptx has nothing to stay close to.

    Args:
        path: of the run's demonstrations.
    """
    if config.ptx_coef and not practised(read_demonstrations(path))[0]:
        raise ConfigError(
            f"update.ptx_coef: found {config.ptx_coef:g} in a run without demonstrations to train on; expected some "
            "(prompts with a `response`), or 0"
        )


def leash_finding(config: RunConfig) -> Finding:
    """Whether anything keeps the policy near its reference; a reward is only right about texts like those judged."""
    held = config.kl_coef > 0 or config.watch.kl_budget is not None
    return Finding(
        "gate.leash",
        "Is the policy held near its reference, by a KL penalty or a KL budget?",
        "pass" if held else "fail",
        detail=f"{config.algorithm}: kl_coef {config.kl_coef:g}, KL budget {config.watch.kl_budget or 'none'}",
        threshold="β of the method > 0 or watch.kl_budget set",
    )


def usual_spread(before: Belief, config: RunConfig) -> list[float]:
    """An ensemble's disagreement on each response; [] = a reward with one head, which has none."""
    return spread_of(before, config.aggregator).tolist() if before.n_draws > 1 else []


def watch_rules(
    config: RunConfig, usual: list[float], lengths: list[float], *, run_steps: int | None = None
) -> WatchRules:
    """The rules, stated before the run begins.

    Args:
        usual: disagreement on each reference response; [] = a reward with one head, whose best policy is that with the
            highest score.
        lengths: tokens of each reference response.
        run_steps: of the optimiser, as planned; not needed without a panel.
    """
    settings, panel = config.watch, config.watch.panel
    best = WatchRules.best_metric if usual else "validation/proxy"
    quantile = settings.disagreement_quantile
    return WatchRules(
        best_metric=best if panel is None else WatchRules.panel_metric,
        of_top=None if panel is None else panel.of_top,
        run_steps=None if panel is None else run_steps,
        fallen_sure=None if panel is None else panel.sure,
        candidates=None if panel is None else panel.candidates,
        # a method that draws no responses has its KL measured on the watcher's
        kl_metric="kl/k1_per_sequence" if config.rollout is not None else "validation/kl",
        kl_budget=settings.kl_budget,
        max_novel_frac=settings.max_novel_frac,
        validation_disagreement=() if quantile is None else tuple(usual),
        disagreement_quantile=quantile or WatchRules.disagreement_quantile,
        reference_lengths=tuple(lengths),
        length_limit_sd=settings.length_limit_sd,
        entropy_floor=settings.entropy_floor,
        diversity_floor=settings.diversity_floor,
        peak_metric=best if settings.peak else None,
        on_alarm=settings.on_alarm,
        kl_factor=settings.kl_factor,
    )


def open_panel(
    config: RunConfig,
    source: Source,
    place: Workplace,
    prompts: list[Prompt],
    sft: Path,
    *,
    run_seed: int,
    look_seed: int,
) -> Panel | None:
    """The panel, with the reference responses that it sees; None where none is wanted.

    They are drawn with the random numbers of the looks, so that the policy is compared with itself at the start.
    """
    if config.watch.panel is None:
        return None
    lm = load_lm(sft)
    drawn = draw(lm, prompts, n_samples=config.watch.n_samples, max_new_tokens=config.policy_tokens, seed=look_seed)
    return Panel(config, source, place, prompts, texts_of(lm, drawn), seed=run_seed)


def looker(
    scorer: Scorer | GroupScorer,
    prompts: list[Prompt],
    config: RunConfig,
    gold: Gold | None,
    *,
    seed: int,
    panel: Callable[[int, Sequence[Sequence[str]]], Mapping[str, float]] | None = None,
    novel_frac: Callable[[Sequence[Prompt], Sequence[str]], float] | None = None,
    reference: LoadedLM | None = None,
) -> Callable[[LoadedLM, int], Mapping[str, float]]:
    """What is measured along training on prompts that are not trained on: the same draws at every look.

    Gold is measured where it is known, for the curve; no rule reads it.

    Args:
        panel: fresh votes on the responses of a look; None = nobody is asked.
        novel_frac: the share of some responses that are unlike those judged; None = it is not recorded.
        reference: from which the KL is measured, for methods that draw no responses themselves, of a model with adapters
            the model without them; None = not measured.
    """
    aggregate = aggregator_of(config.aggregator)

    def look(lm: LoadedLM, step: int) -> Mapping[str, float]:
        drawn = draw(lm, prompts, n_samples=config.watch.n_samples, max_new_tokens=config.policy_tokens, seed=seed)
        grouped = texts_of(lm, drawn)
        texts = [text for group in grouped for text in group]
        asked = [prompt for prompt, group in zip(prompts, drawn, strict=True) for _ in group]
        belief = scorer(asked, texts)
        figures = {
            "validation/proxy": float((aggregate(belief).mean() - scorer.scale.shift) / scorer.scale.scale),
            "validation/length": float(np.mean([len(one.response_tokens) for group in drawn for one in group])),
            "validation/entropy": -float(
                np.mean([value for group in drawn for one in group for value in one.logprobs])
            ),
        }
        if belief.n_draws > 1:
            figures["validation/lower_bound"] = float(lowest_bound(belief, config.aggregator).mean())
            figures["validation/disagreement"] = float(spread_of(belief, config.aggregator).mean())
        if novel_frac is not None:
            figures["validation/novel_frac"] = novel_frac(asked, texts)
        if reference is not None:
            with reference_mode(reference.model) if is_adapted(reference.model) else nullcontext():
                figures["validation/kl"] = float(sequence_kl(reference, drawn).mean())
        differ = [share for group in grouped if (share := distinct_frac(group)) is not None]
        if differ:
            figures["validation/diversity"] = float(np.mean(differ))
        if gold is not None:
            figures["validation/gold"] = float(np.mean([gold(p, t) for p, t in zip(asked, texts, strict=True)]))
        return figures if panel is None else figures | panel(step, grouped)

    return look


def novelty_of(scorer: Scorer | GroupScorer, reward: Path) -> Callable[[Sequence[Prompt], Sequence[str]], float] | None:
    """The share of responses that the detector beside a reward model reports as unlike those judged; None without one."""
    detector = load_novelty(reward)
    if detector is None:
        return None

    def novel_frac(prompts: Sequence[Prompt], texts: Sequence[str]) -> float:
        return float(detector.unfamiliar(text_features(scorer.model, prompts, texts)).double().mean())

    return novel_frac


def lowest_bound(belief: Belief, aggregator: str) -> Tensor:
    """Lower bound of the difference to the reference; of the group for which it is lowest, of a jury the jurors' median."""
    if aggregator not in OF_GROUPS:
        return lower_bound(belief)
    each = torch.stack([lower_bound(belief, objective=o) for o in range(len(belief.objectives))])
    return torch.quantile(each, 0.5, dim=0) if aggregator == JURY else each.amin(0)


def spread_of(belief: Belief, aggregator: str) -> Tensor:
    """The disagreement of the draws about each response; the mean over groups, where they count."""
    if aggregator not in OF_GROUPS:
        return disagreement(belief)
    return torch.stack([disagreement(belief, objective=o) for o in range(len(belief.objectives))]).mean(0)


def curve_path(directory: Path, algorithm: str, n_rounds: int = 1) -> Path:
    """The metrics file of the optimiser in the last of so many rounds."""
    return directory / "metrics" / f"{algorithm}{f'-{n_rounds}' if n_rounds > 1 else ''}.jsonl"
