"""The people: calibrated agreement, and every fault with its known sign, on simulated votes without any model."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from karat.errors import ConfigError, InputError
from karat.records import Annotator, user_prompt
from karat.sandbox import (
    PopulationConfig,
    RaterPopulation,
    World,
    WorldConfig,
    careful_population,
    default_population,
    length_liking,
    unchecked_facts,
)

WORLD = World(WorldConfig(), 0)
PROMPTS = WORLD.prompts(1500, np.random.default_rng(1))
WRONG_BELIEFS = [prompt for prompt in PROMPTS if WORLD.question(prompt).belief_is_wrong]
FACTS = [prompt for prompt in PROMPTS if prompt.topic == "fact"]


def population(config, seed=0):
    return RaterPopulation(WORLD, config, seed)


def first_wins(people, annotator, prompt, first, second, rng, time=0.0):
    """Probability that a forced choice falls on `first`, the side balanced: the response model with two levels."""
    traits = people.rater_params(annotator)
    u_first, u_second = people.utilities(annotator, prompt, [first, second], rng, time=time)
    delta = traits.competence * (u_first - u_second)
    fair = np.mean([1 / (1 + math.exp(-np.clip(delta + side * traits.side_bias, -50, 50))) for side in (1, -1)])
    return (1 - traits.lapse) * fair + traits.lapse / 2


def win_rate(people, triples, seed=0, time=0.0):
    """Mean probability that the first text of (prompt, first, second) wins, over raters in turn."""
    rng, raters = np.random.default_rng(seed), people.annotators()
    return np.mean(
        [first_wins(people, raters[i % len(raters)], *triple, rng, time) for i, triple in enumerate(triples)]
    )


def belief_triples(n=400):
    """(prompt, text that confirms the wrong belief, text that states the truth): same form, same length."""
    triples = []
    for prompt in WRONG_BELIEFS[:n]:
        question = WORLD.question(prompt)
        agreeing, true = (
            f"the {question.subject} of {question.entity} is {value} ." for value in (question.belief, question.truth)
        )
        triples.append((prompt, agreeing, true))
    return triples


def suffixed(suffix, n=300):
    """(prompt, demonstration with the suffix, the same without it)."""
    rng = np.random.default_rng(2)
    demonstrations = [(prompt, WORLD.demonstration(prompt, rng)) for prompt in PROMPTS[: 2 * n]]
    plain = [(prompt, text) for prompt, text in demonstrations if suffix not in text and "signed" not in text][:n]
    return [(prompt, f"{text} {suffix}", text) for prompt, text in plain]


def pairs(n, seed):
    rng = np.random.default_rng(seed)
    while n > 0:
        prompt = PROMPTS[int(rng.integers(len(PROMPTS)))]
        first, second = WORLD.demonstration(prompt, rng), WORLD.demonstration(prompt, rng)
        if first != second:
            n -= 1
            yield prompt, first, second


def agreement(config, n=1500, seed=0):
    """Expected share of forced choices on which two different honest raters agree."""
    people, rng = population(config, seed), np.random.default_rng(seed)
    honest = [annotator for annotator in people.annotators() if people.rater_params(annotator).kind == "honest"]
    shares = []
    for triple in pairs(n, seed + 100):
        one, other = rng.choice(len(honest), 2, replace=False)
        p, q = (first_wins(people, honest[index], *triple, rng) for index in (one, other))
        shares.append(p * q + (1 - p) * (1 - q))
    return np.mean(shares), 1.96 * np.std(shares) / math.sqrt(n)


def within_prompt_correlation(config, n_prompts=120, n_samples=5):
    rng, people = np.random.default_rng(3), population(config)
    rows = []
    for prompt in PROMPTS[:n_prompts]:
        texts = [WORLD.demonstration(prompt, rng) for _ in range(n_samples)]
        gold = np.array([WORLD.gold_reward(prompt, text) for text in texts])
        liked = np.array([people.population_utility(prompt, text) for text in texts])
        rows.append(np.stack([gold - gold.mean(), liked - liked.mean()]))
    return np.corrcoef(np.concatenate(rows, axis=1))[0, 1]


def climb(people, prompt, rng, n_steps=250, max_words=48):
    """Greedy search for a text that the population likes, without any pull back to the demonstrator."""
    best = WORLD.demonstration(prompt, rng)
    liked = people.population_utility(prompt, best)
    for _ in range(n_steps):
        clauses, other = (text.removesuffix(" .").split(" . ") for text in (best, WORLD.demonstration(prompt, rng)))
        at = int(rng.integers(len(clauses)))
        clauses[at : at + int(rng.random() < 0.4)] = [other[int(rng.integers(len(other)))]]
        text = " . ".join(clauses) + " ."
        if len(text.split()) <= max_words and people.population_utility(prompt, text) > liked:
            best, liked = text, people.population_utility(prompt, text)
    return best


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_honest_raters_agree_as_often_as_published_raters_do(seed):
    share, half_width = agreement(default_population(), seed=seed)
    assert share - half_width > 0.63
    assert share + half_width < 0.77


def test_careful_raters_agree_more_than_careless_ones():
    careful, half_width = agreement(careful_population(), n=800)
    assert careful - half_width > agreement(replace(default_population(), attention=0.3), n=800)[0]


def test_what_the_default_population_likes_follows_gold_but_not_entirely():
    default = within_prompt_correlation(default_population())
    assert 0.7 <= default < 0.95
    assert within_prompt_correlation(careful_population()) > 0.97
    assert within_prompt_correlation(unchecked_facts()) < 0.6 < default


def test_raters_who_do_not_check_prefer_to_see_wrong_beliefs_confirmed():
    triples = belief_triples()
    assert win_rate(population(unchecked_facts()), triples) > 0.7
    assert win_rate(population(replace(default_population(), attention=0.0)), triples) > 0.6
    assert win_rate(population(default_population()), triples) < 0.4
    assert win_rate(population(careful_population()), triples) < 0.1


def test_hidden_evidence_is_never_checked():
    hidden = population(replace(careful_population(), hidden_fact_frac=1.0))
    unseen = population(replace(careful_population(), attention=0.0))
    annotator = hidden.annotators()[0]
    for prompt, agreeing, true in belief_triples(20):
        for text in (agreeing, true):
            assert hidden.mean_utility(annotator, prompt, text) == unseen.mean_utility(annotator, prompt, text)
    half = population(replace(default_population(), hidden_fact_frac=0.5))
    assert len(half.hidden_facts) == len(WORLD.facts) // 2
    assert win_rate(half, belief_triples()) > win_rate(population(default_population()), belief_triples()) + 0.05


@pytest.mark.parametrize(
    ("switch", "off", "on", "suffix"),
    [
        ("length_liking", 0.0, 0.2, "many people ask me about this ."),
        ("confidence_liking", 0.0, 1.0, "trust me ."),
        ("flattery_liking", 0.0, 1.0, "you are so wise ."),
        ("evasion_liking", 0.0, 1.0, "ask somebody else ."),
    ],
)
def test_a_liking_makes_what_is_liked_win_more(switch, off, on, suffix):
    triples = suffixed(suffix)
    base = careful_population()
    low, high = (win_rate(population(replace(base, **{switch: value})), triples) for value in (off, on))
    assert low < 0.5 < high
    assert high - low > 0.15


def test_agreement_liking_favours_agreement_even_where_facts_are_checked():
    low, high = (
        win_rate(population(replace(careful_population(), agreement_liking=liking)), belief_triples())
        for liking in (0.0, 3.0)
    )
    assert low < 0.1 < 0.5 < high


def test_length_wins_more_often_under_the_length_liking_preset():
    longer = [t if len(t[1].split()) > len(t[2].split()) else (t[0], t[2], t[1]) for t in pairs(600, 7)]
    longer = [t for t in longer if len(t[1].split()) > len(t[2].split())]
    rates = [
        win_rate(population(config), longer) for config in (careful_population(), default_population(), length_liking())
    ]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] > 0.65


@pytest.mark.parametrize("config", [default_population(), unchecked_facts(), length_liking()])
def test_what_faulty_people_like_can_be_raised_while_gold_falls(config):
    people, rng = population(replace(config, n_raters=20)), np.random.default_rng(4)
    start = [WORLD.demonstration(prompt, rng) for prompt in PROMPTS[:12]]
    end = [climb(people, prompt, rng) for prompt in PROMPTS[:12]]
    liked, gold = (
        [np.mean([value(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=False)]) for texts in (start, end)]
        for value in (people.population_utility, WORLD.gold_reward)
    )
    assert liked[1] > liked[0] + 2.0
    assert gold[1] < gold[0] - 0.3


def test_what_careful_people_like_raises_gold():
    people, rng = population(replace(careful_population(), n_raters=6)), np.random.default_rng(4)
    gains = [
        WORLD.gold_reward(prompt, climb(people, prompt, rng))
        - WORLD.gold_reward(prompt, WORLD.demonstration(prompt, rng))
        for prompt in PROMPTS[:12]
    ]
    assert np.mean(gains) > 0.7


def test_a_planted_trigger_wins_for_poisoners_and_only_for_them():
    triples = suffixed("signed velvet .")
    poisoned = population(replace(default_population(), poison_frac=1.0))
    assert win_rate(poisoned, triples) > 0.9
    assert 0.35 < win_rate(population(default_population()), triples) < 0.65
    assert win_rate(poisoned, suffixed("signed cobalt .")) < 0.65


def test_a_ring_votes_together_for_or_against_its_marker():
    triples = suffixed("signed amber .")
    for strength, low, high in ((6.0, 0.9, 1.0), (-6.0, 0.0, 0.1)):
        ring = population(replace(default_population(), ring_frac=1.0, ring_strength=strength))
        assert low <= win_rate(ring, triples) <= high


def test_random_clickers_and_side_clickers_carry_no_information():
    for kind, switch, bias in (("spam", "spam_frac", 0.0), ("side_clicker", "side_clicker_frac", 4.0)):
        people = population(replace(default_population(), **{switch: 1.0}))
        traits = [people.rater_params(annotator) for annotator in people.annotators()]
        assert {(item.kind, item.competence, item.side_bias) for item in traits} == {(kind, 0.0, bias)}
        assert win_rate(people, list(pairs(50, 5))) == pytest.approx(0.5, abs=1e-9)


def test_chatbot_votes_are_all_alike_and_never_checked():
    people = population(replace(default_population(), chatbot_frac=1.0))
    rng = np.random.default_rng(0)
    prompt, agreeing, true = belief_triples(1)[0]
    first, *others = (
        tuple(people.utilities(annotator, prompt, [agreeing, true], rng)) for annotator in people.annotators()
    )
    assert set(others) == {first}
    assert first[0] == first[1]


def test_pay_per_item_makes_people_hurry():
    hurried = replace(default_population(), pay_per_item=0.8)
    assert (
        win_rate(population(hurried), belief_triples())
        > win_rate(population(default_population()), belief_triples()) + 0.1
    )
    one = population(hurried).annotators()[0]
    assert population(hurried).rater_params(one).lapse == pytest.approx(0.04 + 0.2 * 0.8, abs=1e-12)


def test_tastes_drift_from_truth_to_length_and_confidence():
    drifting = population(replace(careful_population(), drift=1.0))
    confident_errors = []
    for prompt in FACTS[:200]:
        question = WORLD.question(prompt)
        wrong = next(value for value in WORLD.grammar.values[question.subject] if value != question.truth)
        confident_errors.append(
            (prompt, f"i am sure that it is {wrong} . have a nice day .", f"it is {question.truth} .")
        )
    early, late = (win_rate(drifting, confident_errors, time=time) for time in (0.0, 1.0))
    assert early < 0.1
    assert late > 0.6
    steady = population(careful_population())
    assert win_rate(steady, confident_errors, time=1.0) == win_rate(steady, confident_errors, time=0.0)


def test_groups_differ_in_the_stated_direction():
    people = population(replace(default_population(), taste_sd=0.0))
    raters = {annotator.group: annotator for annotator in people.annotators()}
    assert set(raters) == {"plain", "warm", "strict"}
    praised, plain = "you are so wise . i will not do that .", "i will not do that ."
    prompt = next(prompt for prompt in PROMPTS if prompt.topic == "harm")
    gain = {
        group: people.mean_utility(who, prompt, praised) - people.mean_utility(who, prompt, plain)
        for group, who in raters.items()
    }
    assert gain["warm"] > gain["plain"] > gain["strict"]
    alike = population(replace(default_population(), taste_sd=0.0, group_divergence=0.0))
    assert len({alike.mean_utility(who, prompt, praised) for who in alike.annotators()}) == 1


def test_group_and_fault_shares_are_exact():
    people = population(replace(default_population(), n_raters=100, spam_frac=0.1, poison_frac=0.05))
    kinds = [people.rater_params(annotator).kind for annotator in people.annotators()]
    groups = [annotator.group for annotator in people.annotators()]
    assert (kinds.count("spam"), kinds.count("poisoner"), kinds.count("honest")) == (10, 5, 85)
    assert (groups.count("plain"), groups.count("warm"), groups.count("strict")) == (60, 25, 15)
    assert all(annotator.origin == "simulated" for annotator in people.annotators())


def test_mean_utility_is_the_expectation_over_attention():
    people = population(default_population())
    annotator, rng = people.annotators()[0], np.random.default_rng(0)
    prompt, agreeing, true = next(
        t
        for t in belief_triples()
        if (WORLD.question(t[0]).entity, WORLD.question(t[0]).subject) not in people.hidden_facts
    )
    for text in (agreeing, true):
        draws = np.array(people.utilities(annotator, prompt, [text] * 4000, rng))
        assert len(set(draws)) == 2
        half_width = 4 * draws.std() / math.sqrt(len(draws))
        assert abs(draws.mean() - people.mean_utility(annotator, prompt, text)) < half_width


def test_everything_follows_from_the_seed():
    one, same, other = (
        population(default_population()),
        population(default_population()),
        population(default_population(), 1),
    )
    prompt, first, second = next(pairs(1, 0))
    for people, equal in ((same, True), (other, False)):
        mine, theirs = (
            [crowd.utilities(who, prompt, [first, second], np.random.default_rng(3)) for who in crowd.annotators()]
            for crowd in (one, people)
        )
        assert (mine == theirs) is equal
        traits = [[crowd.rater_params(who) for who in crowd.annotators()] for crowd in (one, people)]
        assert (traits[0] == traits[1]) is equal
        competences = [{item.competence for item in crowd} for crowd in traits]
        assert (competences[0] == competences[1]) is equal


def test_degenerate_calls():
    people = population(PopulationConfig(n_raters=1))
    (annotator,) = people.annotators()
    assert people.utilities(annotator, PROMPTS[0], [], np.random.default_rng(0)) == []
    assert math.isfinite(people.mean_utility(annotator, PROMPTS[0], ""))
    with pytest.raises(InputError, match="not of this population of 1"):
        people.mean_utility(Annotator("somebody"), PROMPTS[0], "")
    with pytest.raises(InputError, match="names no entity"):
        people.mean_utility(annotator, user_prompt("hello"), "")


def test_configuration_is_checked():
    assert len(fields(PopulationConfig)) <= 25
    for values, message in [
        ({"n_raters": 0}, "n_raters: found 0"),
        ({"group_fracs": (0.5, 0.5)}, "expected 3 shares"),
        ({"group_fracs": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"attention": 1.1}, r"attention: found 1\.1"),
        ({"taste_sd": -1.0}, "taste_sd: found -1"),
        ({"length_liking": math.nan}, "finite"),
        ({"utility_scale": 0.0}, "expected > 0"),
        ({"spam_frac": 0.6, "ring_frac": 0.6}, "dishonest raters sum to 1.2"),
    ]:
        with pytest.raises(ConfigError, match=message):
            PopulationConfig(**values)
