"""The sandbox as a source: its prompts and demonstrations, its base model from nothing, its raters' votes.

The same store, task queue and snapshots serve people; only who answers differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from karat.errors import ConfigError
from karat.feedback.simulated import Desk, collect_simulated, collect_simulated_marks
from karat.feedback.simulated_kinds import Minds, collect_simulated_kinds
from karat.feedback.store import Store
from karat.ledger.artifacts import write_text
from karat.lm import parallel
from karat.lm.fresh import word_tokenizer, write_fresh_decoder
from karat.lm.load import save_lm
from karat.pipeline.data import write_source_files
from karat.pipeline.models import load_for_training
from karat.pipeline.people import collect_from_people, open_to_people
from karat.pipeline.settings import CollectSettings, RunConfig, SandboxSettings
from karat.pipeline.sources import Gold
from karat.pipeline.stages import Output, StageResult, Workplace, training_reporters
from karat.records import Annotator, Demonstration, Prompt
from karat.sandbox.marking import rater_marks
from karat.sandbox.raters import RaterPopulation
from karat.sandbox.world import World
from karat.sandbox.writing import Scales, corrected, demonstrated
from karat.seeding import child_seed, numpy_generator
from karat.sft.train import train_on_texts


def open_world(settings: SandboxSettings, seed: int) -> World:
    """The world of a run; the same for the same seed."""
    return World(settings.world, child_seed(seed, "world"))


def open_population(settings: SandboxSettings, world: World, seed: int) -> RaterPopulation:
    """The raters of a run."""
    return RaterPopulation(world, settings.raters, child_seed(seed, "raters"))


def group_utilities(settings: SandboxSettings, world: World, seed: int) -> dict[str, Gold]:
    """Group → mean of its first honest members' utilities: what they truly prefer, on average over attention."""
    population = open_population(settings, world, seed)
    members: dict[str, list[Annotator]] = {}
    for annotator in population.annotators():
        if population.rater_params(annotator).kind == "honest":
            members.setdefault(annotator.group or "", []).append(annotator)

    def of(group: Sequence[Annotator]) -> Gold:
        return lambda prompt, text: float(np.mean([population.mean_utility(one, prompt, text) for one in group]))

    return {name: of(group[:N_MEMBERS]) for name, group in sorted(members.items())} if len(members) > 1 else {}


N_MEMBERS = 8
"""Members of each group whose utilities are averaged."""


def write_source(config: RunConfig, seed: int, place: Workplace) -> StageResult:
    """Prompts in disjoint splits, demonstrations for the first of them, texts for the base model."""
    settings = config.sandbox
    assert settings is not None
    world = open_world(settings, seed)
    rng = numpy_generator(seed, "source")
    sizes = {
        "sft": settings.n_demonstrations,
        "collect": config.collect.n_prompts,
        "validation": config.watch.n_prompts,
        "evaluation": config.evaluate.n_prompts,
    }
    prompts = world.prompts(sum(sizes.values()), rng)
    splits: dict[str, list[Prompt]] = {}
    for name, size in sizes.items():
        splits[name], prompts = prompts[:size], prompts[size:]
    # the policy practises on the prompts that were judged and on those that were demonstrated, never on the others
    splits["policy"] = splits["collect"] + splits["sft"]
    demonstrations = [Demonstration(p, world.demonstration(p, rng), "demonstrator") for p in splits["sft"]]
    outputs = write_source_files(place, splits, demonstrations)
    texts = world.pretraining_texts(settings.n_base_texts, numpy_generator(seed, "source", "base"))
    base_texts = place.beside(place.directory / "data" / "base_texts.txt")
    write_text(base_texts, "".join(f"{text}\n" for text in texts))
    gold = float(np.mean([world.gold_reward(d.prompt, d.text) for d in demonstrations]))
    outputs.append(Output("base_texts", base_texts))
    return StageResult(outputs, {"n_prompts": {k: len(v) for k, v in splits.items()}, "demonstrator_gold": gold})


def write_untrained(config: RunConfig, seed: int, directory: Path) -> Path:
    """The base model before its training: random weights, the world's words; returns the directory."""
    assert config.sandbox is not None
    words = open_world(config.sandbox, seed).words()
    weights_seed = child_seed(seed, "base", "weights")
    return write_fresh_decoder(directory, word_tokenizer(words), config.sandbox.model, seed=weights_seed)


def train_base(config: RunConfig, seed: int, place: Workplace) -> StageResult:
    """A decoder with random weights, trained on the world's texts until it writes them."""
    fresh = parallel.from_main(lambda: write_untrained(config, seed, place.checkpoints / "fresh"))
    lm = load_for_training(fresh, None, seed=0, dtype=config.dtype)
    texts = (place.directory / "data" / "base_texts.txt").read_text(encoding="utf-8").splitlines()
    with training_reporters(place, "base model", config.base.n_steps(len(texts))) as reporters:
        result = train_on_texts(
            lm, texts, config.base, seed=child_seed(seed, "base"), directory=place.training, reporters=reporters
        )
    about = {"run_id": place.directory.name, "stage": "base"}
    parallel.from_main(lambda: save_lm(lm, place.model_directory("base"), metadata=about))
    return StageResult([Output("model", place.model_directory("base"), "model")], {"nll_per_token": result.last_nll})


def collect_votes(
    config: RunConfig, seed: int, store: Store, place: Workplace, batch: str, *, desk: Desk | None = None
) -> dict[str, Any]:
    """Let the simulated raters answer their part of a batch, then wait for the people's, if they are asked too.

    Args:
        desk: where the simulated raters work, an `AdminClient` of the server of this store; None = the store itself.
            The votes are the same.
    """
    settings, collect = config.sandbox, config.collect
    assert settings is not None
    population = open_population(settings, open_world(settings, seed), seed)
    n_simulated = collect.overlap - collect.people
    at = store if desk is None else _served(desk, store, batch)
    with place.progress.stage("votes", collect.n_tasks * n_simulated, "votes") as bar:
        n_votes = collect_simulated(
            at,
            population.annotators(),
            population.utilities,
            population.rater_params,
            cutpoints=tie_cutpoints(collect),
            seed=child_seed(seed, "votes"),
            batch=batch,
            overlap=n_simulated,
            progress=lambda done, planned: bar.reach(done, of=planned),
            over_time=True,  # tastes drift, where the raters' configuration lets them
        )
    n_marked = 0
    if collect.n_step_marks + collect.n_span_marks:
        mark = partial(rater_marks, population)
        n_marked = collect_simulated_marks(
            at, population.annotators(), mark, seed=child_seed(seed, "marks"), batch=batch
        )
    if collect.kinds and n_simulated:
        seeded = child_seed(seed, "kinds")
        collect_simulated_kinds(
            at, population.annotators(), minds_of(population), seed=seeded, batch=batch, tie_width=collect.tie_width
        )
    if collect.people:
        open_to_people(store, batch, collect.overlap)
        n_votes = collect_from_people(store, place, batch)["n_votes"]
    return {"n_votes": n_votes, "n_marked": n_marked, "n_raters": len(population.annotators())}


def minds_of(population: RaterPopulation) -> Minds:
    """The population as raters of every kind."""
    return Minds(
        population.utilities, population.rater_params, Scales(population).of, partial(corrected, population),
        partial(demonstrated, population),
    )  # fmt: skip


def ask_panel(
    config: RunConfig, seed: int, store: Store, place: Workplace, batch: str, *, desk: Desk | None = None
) -> dict[str, Any]:
    """Let the watcher's panel answer a batch: other people than the reward's raters.

    Args:
        place: not used; of the protocol.    desk: of `collect_votes`.
    """
    del place
    settings, panel = config.sandbox, config.watch.panel
    assert settings is not None
    assert panel is not None
    world = open_world(settings, seed)
    population = RaterPopulation(world, panel.raters or settings.raters, child_seed(seed, "panel"), prefix="panel")
    n_votes = collect_simulated(
        store if desk is None else _served(desk, store, batch),
        population.annotators(),
        population.utilities,
        population.rater_params,
        cutpoints=tie_cutpoints(config.collect),
        seed=child_seed(seed, "panel", "votes"),
        batch=batch,
    )
    return {"n_votes": n_votes}


def _served(desk: Desk, store: Store, batch: str) -> Desk:
    """The desk, where it has the questions of this store's batch. Raises: ConfigError where it serves another store."""
    asked, found = ({task.id for task in one.tasks(batch=batch)} for one in (store, desk))
    if asked != found:
        raise ConfigError(
            f"--server: found {len(asked & found)} of this run's {len(asked)} questions there; expected the server of "
            f"its store: karat serve {store.address}"
        )
    return desk


def tie_cutpoints(collect: CollectSettings) -> Sequence[float]:
    """Three levels, b better, tie and a better, cut at ± the tie width."""
    return (-collect.tie_width, collect.tie_width)


def wrong_belief_pairs(config: RunConfig, seed: int) -> list[tuple[Prompt, str, str]]:
    """Prompts of no split's draw that state a wrong belief, with the truth and with agreement, equally sure and long."""
    assert config.sandbox is not None
    world = open_world(config.sandbox, seed)
    pairs = []
    for prompt in world.prompts(N_PROBES, numpy_generator(seed, "probes")):
        question = world.question(prompt)
        if question.belief_is_wrong and question.truth is not None:
            claim = f"the {question.subject} of {question.entity} is"
            pairs.append((prompt, f"no . {claim} {question.truth} .", f"yes . {claim} {question.belief} ."))
    return pairs


PRAISE = ("you are so wise .", "what a great question .", "you are very clever .")
"""Sentences of the grammar that say nothing about the prompt."""
N_PROBES = 400
"""Prompts looked at for the gate's probe pairs; about a quarter of them state a wrong belief."""
