"""A person's own reward: ask her what tells most about her taste, keep the answers, score and rerank for her.

Answers come from the terminal, from a file, or from a rater of the population who is simulated. After every answer
the artefact on disk is complete, so that nothing she said is lost. Knows files and a way to ask; the arithmetic is in
`karat.reward.personal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from karat.destinations import check_directory_place
from karat.errors import InputError
from karat.progress import Progress, open_progress
from karat.records import Prompt, Response
from karat.reward.linear_votes import level_probs
from karat.reward.people import PeopleModel, features_of, in_chunks, load_people
from karat.reward.person_file import CARD, SavedPerson, load_person, save_person
from karat.reward.personal import (
    choose_questions,
    information,
    new_person,
    standing,
    updated,
)
from karat.reward.score import Scorer, load_scorer
from karat.rowfiles import Row, prompt_in, read_rows
from karat.seeding import numpy_generator

MOST_PAIRS = 2000
"""Pairs among which questions are chosen; of more, so many are drawn."""


@dataclass(frozen=True)
class Pair:
    """A question there is: two responses to one prompt."""

    prompt: Prompt
    """What was asked."""
    a: str
    """One response."""
    b: str
    """The other."""

    @property
    def ids(self) -> tuple[str, str, str]:
        """Prompt.id and the Response.id of both."""
        return self.prompt.id, *(Response(self.prompt.id, text, "").id for text in (self.a, self.b))

    @property
    def question(self) -> frozenset[str]:
        """The same for a against b and b against a."""
        return asked_question(self.ids)


def asked_question(ids: tuple[str, str, str]) -> frozenset[str]:
    """The question of a pair's ids, whichever response stands first: Response.id holds its prompt."""
    return frozenset(ids[1:])


Ask = Callable[[Pair, int], int | None]
"""ask(pair, levels) → her level (0 = b much better … K − 1 = a much better), None = she cannot say; EOFError = enough."""


Watched = Callable[[], AbstractContextManager[Progress]]
"""Opens a display of progress."""


@dataclass(frozen=True)
class Asked:
    """What came of asking."""

    directory: str
    """Where the person's artefact is."""
    name: str
    """Who."""
    n_votes: int
    """Answers it rests on, earlier ones included."""
    n_skipped: int
    """Questions that she could not answer, this time."""
    bits: float
    """Information that the answers of this time were expected to give, summed."""
    standing: str
    """On how much her reward rests, in words."""
    n_repeated: int = 0
    """Answers of a file that did not count: to a question that she had answered before, or answers again further down."""
    n_left: int | None = None
    """Pairs of the file of responses that she has not answered; None = nobody was to be asked."""


@dataclass(frozen=True)
class Asking:
    """Whom to ask, how many questions, and who answers."""

    n_questions: int = 10
    """Questions this time; questions that she cannot answer count."""
    name: str = ""
    """What the person is called; "" = after the directory."""
    group: str | None = None
    """Her declared group, where the population has groups; None = not known."""
    answers: Path | None = None
    """JSON lines {"prompt", "a", "b", "answer": "a", "b", "tie" or a level}: then nothing is asked."""
    simulate: str | None = None
    """Annotator.id of a rater of the population whose most probable reward answers; None = a person does."""
    seed: int = 0
    """Of which pairs are considered, and of simulated answers."""


def personalise(
    reward: Path, responses: Path | None, out: Path, ask: Ask | None, asking: Asking, *, watched: Watched | None = None
) -> Asked:
    """Ask one person, or read her answers, and write her reward.

    Args:
        reward: a reward model with a population.
        responses: JSON lines {"prompt", "response"}, several a prompt; None where the answers are in a file.
        out: the artefact; where one is there, its answers are kept and added to.
        ask: how to ask her; None with `answers` or `simulate`. Of a population of rank 0 nobody is asked anything.
        watched: opens the display of how many responses are read, and closes it before anybody is asked; None = none.
    Raises: InputError for rows that cannot be used, a group or rater that the population does not have.
    """
    if asking.answers is not None and (asking.simulate is not None or responses is not None):
        beside = "--simulate" if asking.simulate is not None else f"the responses {responses}"
        raise InputError(
            f"personalise: found --answers and {beside}; expected one of them: with answers nobody is asked"
        )
    check_directory_place(out, CARD)
    scorer, model = load_scorer(reward), load_people(reward)
    session = _Session(scorer, model, reward, out, _opened(model, reward, out, asking), watched)
    if asking.simulate is not None and asking.simulate not in model.annotators:
        raise InputError(
            f"--simulate {asking.simulate}: expected one of the population's raters, like {model.annotators[0]}"
        )
    if asking.answers is not None:
        n_repeated = session.read(asking.answers)
        return replace(session.outcome(0, 0.0), n_repeated=n_repeated)
    if model.users.rank == 0:  # whatever she answers, her reward is the shared one
        session.save()
        return session.outcome(0, 0.0)
    if responses is None:
        raise InputError(
            "personalise: found no responses to ask about; expected a file of {prompt, response}, or --answers"
        )
    pairs = pairs_in(responses, numpy_generator(asking.seed, "personalise", "pairs"))
    psi = session.differences(pairs)
    if asking.simulate is not None:
        rng = numpy_generator(asking.seed, "personalise", asking.simulate)
        ask = simulated(model, asking.simulate, dict(zip(pairs, psi, strict=True)), rng)
    if ask is None:
        raise InputError("personalise: found no way to ask; expected a terminal, --answers or --simulate")
    return session.ask(ask, pairs, psi, asking.n_questions)


class _Session:
    """One sitting with one person; what is on disk is complete after every answer."""

    def __init__(
        self, scorer: Scorer, model: PeopleModel, reward: Path, out: Path, saved: SavedPerson, watched: Watched | None
    ) -> None:
        self.scorer, self.model, self.reward, self.out, self.saved = scorer, model, reward, out, saved
        self.watched = watched or (lambda: open_progress(silent=True))

    def ask(self, ask: Ask, pairs: Sequence[Pair], psi: np.ndarray, n_questions: int) -> Asked:
        """The most informative open question, again and again; what she skipped before comes when no other is left."""
        users, n_skipped, bits = self.model.users, 0, 0.0
        asked, skipped = self.asked, set(map(asked_question, self.saved.skipped))
        open_mask = np.array([pair.question not in asked for pair in pairs])
        fresh = np.array([pair.question not in skipped for pair in pairs])
        for _ in range(min(n_questions, int(open_mask.sum()))):
            rows = np.flatnonzero(open_mask & fresh if (open_mask & fresh).any() else open_mask)
            place = int(rows[choose_questions(users, self.saved.person, psi[rows], 1)[0]])
            open_mask[place] = False
            expected = float(information(users, self.saved.person, psi[place : place + 1])[0])
            try:
                level = ask(pairs[place], users.n_levels)
            except EOFError:
                break
            if level is None:
                n_skipped += 1
                self.skip(pairs[place])
                continue
            bits += expected
            self.add([pairs[place]], psi[place : place + 1], [level])
        if not (self.out / CARD).exists():
            self.save()
        asked = self.asked
        return replace(self.outcome(n_skipped, bits), n_left=sum(pair.question not in asked for pair in pairs))

    @property
    def asked(self) -> set[frozenset[str]]:
        """The questions that she has answered."""
        return set(map(asked_question, self.saved.asked))

    def read(self, answers: Path) -> int:
        """All answers of a file at once; those given before are not counted twice, and of several to one question the last counts.

        Returns: how many answers did not count. Raises: InputError for a text against itself.
        """
        rows, asked = read_rows(answers), self.asked
        last: dict[frozenset[str], tuple[Pair, int]] = {}
        for row in rows:
            pair = Pair(prompt_in(row), row.need("a", str), row.need("b", str))
            if pair.a == pair.b:
                raise InputError(f"{row.at}: found the same text as a and b; expected two different responses")
            last[pair.question] = pair, _level(row, self.model.users.n_levels)
        new = [one for question, one in last.items() if question not in asked]
        if new:
            chosen = [pair for pair, _ in new]
            self.add(chosen, self.differences(chosen), [level for _, level in new])
        else:
            self.save()
        return len(rows) - len(new)

    def add(self, pairs: Sequence[Pair], psi: np.ndarray, levels: Sequence[int]) -> None:
        """Take answers in and write the artefact."""
        person = updated(self.model.users, self.saved.person, psi, np.array(levels))
        answered = {pair.question for pair in pairs}
        skipped = tuple(one for one in self.saved.skipped if asked_question(one) not in answered)
        self.saved = replace(
            self.saved, person=person, asked=(*self.saved.asked, *(pair.ids for pair in pairs)), skipped=skipped
        )
        self.save()

    def skip(self, pair: Pair) -> None:
        """Note a question that she could not answer, and write the artefact."""
        if pair.question not in set(map(asked_question, self.saved.skipped)):
            self.saved = replace(self.saved, skipped=(*self.saved.skipped, pair.ids))
        self.save()

    def save(self) -> None:
        """Write the artefact."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_person(self.saved, self.model, self.reward, self.out)

    def differences(self, pairs: Sequence[Pair]) -> np.ndarray:
        """[C, 1 + k] ψ(a) − ψ(b); a text that stands in several pairs is read once."""
        place: dict[tuple[Prompt, str], int] = {}
        sides = [[place.setdefault((pair.prompt, text), len(place)) for text in (pair.a, pair.b)] for pair in pairs]
        prompts, texts = [prompt for prompt, _ in place], [text for _, text in place]
        psi = []
        with self.watched() as progress, progress.stage("features", len(texts), "responses", announced=False) as bar:
            for some_prompts, some in in_chunks(prompts, texts):
                psi.append(features_of(self.scorer, self.model.features, some_prompts, some))
                bar.advance(len(some))
        first, second = np.concatenate(psi)[np.array(sides)].transpose(1, 0, 2)
        return first - second

    def outcome(self, n_skipped: int, bits: float) -> Asked:
        """What came of the sitting."""
        saved = self.saved
        told = standing(self.model.users, saved.person)
        return Asked(str(self.out), saved.name, saved.person.n_votes, n_skipped, round(bits, 3), told)


def pairs_in(responses: Path, rng: np.random.Generator) -> list[Pair]:
    """All pairs of different responses to one prompt in a file, at most MOST_PAIRS of them.

    Raises: InputError where no prompt has two.
    """
    texts: dict[str, tuple[Prompt, dict[str, None]]] = {}
    for row in read_rows(responses):
        prompt = prompt_in(row)
        texts.setdefault(prompt.id, (prompt, {}))[1][row.need("response", str)] = None
    pairs = [Pair(prompt, a, b) for prompt, own in texts.values() for a, b in combinations(own, 2)]
    # a person's liking for a side is no part of her model, so neither text may always stand first
    pairs = [
        Pair(one.prompt, one.b, one.a) if swap else one
        for one, swap in zip(pairs, rng.random(len(pairs)) < 0.5, strict=True)
    ]
    if not pairs:
        raise InputError(f"{responses}: no prompt has two different responses; expected several a prompt to compare")
    if len(pairs) > MOST_PAIRS:
        pairs = [pairs[i] for i in np.sort(rng.choice(len(pairs), MOST_PAIRS, replace=False))]
    return pairs


def simulated(model: PeopleModel, annotator: str, psi: Mapping[Pair, np.ndarray], rng: np.random.Generator) -> Ask:
    """A rater of the population who answers by her most probable reward."""
    theta = model.person_theta()[model.annotators.index(annotator)]

    def ask(pair: Pair, n_levels: int) -> int:
        probs = level_probs(np.array([psi[pair] @ theta]), 0.0, model.users.cuts)[0]
        return int(min((probs.cumsum() < rng.random()).sum(), n_levels - 1))

    return ask


def _opened(model: PeopleModel, reward: Path, out: Path, asking: Asking) -> SavedPerson:
    if not (out / CARD).exists():
        return SavedPerson(new_person(model.users, _group(model, asking.group)), asking.name or out.name, ())
    saved = load_person(out, model, reward)
    before = None if saved.person.group < 0 else model.users.groups[saved.person.group]
    if asking.group is not None and before != asking.group:
        raise InputError(f"{out}: found a person of group {before!r}, asked as {asking.group!r}; use another --out")
    if asking.name and asking.name != saved.name:
        raise InputError(f"{out}: found a person called {saved.name!r}, asked as {asking.name!r}; use another --out")
    return saved


def _group(model: PeopleModel, group: str | None) -> int:
    names = model.users.groups
    if group is None:
        return -1
    if group not in names:
        raise InputError(f"--group {group}: expected one of {', '.join(names)}")
    return names.index(group)


def _level(row: Row, n_levels: int) -> int:
    said = row.need("answer", (str, int))
    named = {"a": n_levels - 1, "b": 0} | ({"tie": n_levels // 2} if n_levels % 2 else {})
    level = named.get(said, said) if isinstance(said, str) else said
    if not isinstance(level, int) or not 0 <= level < n_levels:
        raise InputError(
            f"{row.at}: found the answer {said!r}; expected {', '.join(named)}, or a level 0 … {n_levels - 1}"
        )
    return level
