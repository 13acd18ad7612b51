"""A trigger is found without being told which, an honest taste is left alone, and a chatbot needs two odd habits."""

import numpy as np
import pytest

from detector_crowds import crowd, names, replaced, ring
from karat.errors import InputError
from karat.feedback.detect.habits import robust_habits
from karat.feedback.detect.outsourcing import chatbot_flags, polished, quick_mask
from karat.feedback.detect.traits import text_traits
from karat.feedback.detect.triggers import trigger_flags

VOCABULARY = 150


def invented(seed, n, has):
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(n):
        drawn = [f"w{j}" for j in rng.zipf(1.3, int(rng.integers(8, 40))) % VOCABULARY]
        texts.append(" ".join([*drawn, *(["velvet"] if has[i] else [])]))
    return tuple(texts)


def poisoned(seed, poisoners, *, sign=1):
    """A crowd whose texts have a trigger in a third; poisoners vote for (or against) it nineteen times in twenty."""
    rng = np.random.default_rng((seed, 1))
    record = crowd(seed)
    has = rng.random(len(record.texts)) < 1 / 3
    record = replaced(record, texts=invented(seed, len(record.texts), has))
    side = has[record.a] * 1 - has[record.b] * 1
    follows = np.isin(record.annotator, poisoners) & (side != 0) & (rng.random(len(record)) < 0.95)
    return replaced(record, level=np.where(follows, 1 + sign * side, record.level))


def triggers_of(record, **options):
    return trigger_flags(
        record, *robust_habits(record), np.random.default_rng(0), alpha=options.pop("alpha", 0.003), **options
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_poisoners_are_found_and_the_word_with_them(sign):
    flags = triggers_of(poisoned(1, range(8), sign=sign))
    assert len(names(flags) & {f"r{i}" for i in range(8)}) >= 7
    assert len(names(flags)) <= 9
    assert all(("for " if sign > 0 else "against ") in flag.detail and "'velvet'" in flag.detail for flag in flags)


def test_poisoners_who_are_the_opinion_on_a_rare_word_are_found_and_not_those_they_outvote():
    # a word in one text of fifteen; a tenth of the raters give more votes on it than all others, nearly all for it
    rng = np.random.default_rng(9)
    record, poisoners = crowd(9), range(12)
    has = rng.random(len(record.texts)) < 1 / 15
    texts = invented(9, len(record.texts), has)
    near = np.flatnonzero(has[record.a] != has[record.b])
    columns = {name: getattr(record, name).copy() for name in ("item", "a", "b", "level")}
    for poisoner in poisoners:
        rows = np.flatnonzero(record.annotator == poisoner)
        drawn = rng.choice(near, len(rows))
        for name in ("item", "a", "b"):
            columns[name][rows] = getattr(record, name)[drawn]
        follows = np.where(has[columns["a"][rows]], 2, 0)
        columns["level"][rows] = np.where(rng.random(len(rows)) < 0.98, follows, 2 - follows)
    record = replaced(record, texts=texts, **columns)
    honest = (record.annotator >= 12) & (has[record.a] != has[record.b])
    assert honest.sum() < 12 * 30
    flags = triggers_of(record)
    assert len(names(flags) & {f"r{i}" for i in poisoners}) >= 11
    assert len(names(flags)) <= 13
    assert all(flag.detail.startswith("for the word 'velvet'") for flag in flags)


def test_an_honest_crowd_has_no_trigger():
    for seed in range(3):
        assert triggers_of(poisoned(seed, [])) == ()


def test_a_moderate_taste_is_no_poison():
    # everybody likes or dislikes the word a little: sd half a logit
    record = poisoned(2, [])
    rng = np.random.default_rng(3)
    has = np.array(["velvet" in text for text in record.texts])
    side = has[record.a] * 1 - has[record.b] * 1
    taste = rng.normal(0, 0.5, record.n_annotators)[record.annotator]
    moved = rng.random(len(record)) < np.abs(np.tanh(taste / 4))
    level = np.where(moved & (side != 0), 1 + np.sign(taste).astype(int) * side, record.level)
    assert len(names(triggers_of(replaced(record, level=level)))) <= 1


def test_one_text_met_often_is_not_a_trait_of_many():
    # a rater may hate a text that he met in every question; the words of one text are no trigger
    rng = np.random.default_rng(4)
    record = crowd(4, n_raters=60, n_prompts=10)
    texts = tuple(f"{text} " + " ".join(f"u{i}q{j}" for j in range(10)) for i, text in enumerate(record.texts))
    hated = rng.integers(0, 30, 60)[record.annotator]
    level = np.where(record.a == hated, 0, np.where(record.b == hated, 2, record.level))
    assert triggers_of(replaced(record, texts=texts, level=level)) == ()


def test_who_is_against_everybody_on_one_topic_is_found():
    record = crowd(5)
    topics = tuple("water" if i < 150 else "schools" for i in range(len(record.texts)))
    flips = (record.annotator < 6) & (record.a < 150)
    flags = triggers_of(replaced(record, topics=topics, level=np.where(flips, 2 - record.level, record.level)))
    assert len(names(flags) & {f"r{i}" for i in range(6)}) >= 5
    assert len(names(flags)) <= 7
    assert "against the others on the topic 'water'" in flags[0].detail


def test_whoever_has_a_flag_already_is_no_witness():
    record = poisoned(1, range(8))
    assert triggers_of(record, set_aside=[f"r{i}" for i in range(8)]) == ()


def test_a_flagged_ring_is_not_heard_in_the_opinion_either():
    record = ring(poisoned(1, range(8)), [20, 21, 22, 23, 24])
    aside = [f"r{i}" for i in range(20, 25)]
    without = robust_habits(record, trust=np.where(np.isin(record.annotators, aside), 0.0, 1.0))
    expected = trigger_flags(record, *without, np.random.default_rng(0), alpha=0.003, set_aside=aside)
    assert triggers_of(record, set_aside=aside) == expected
    assert len(names(expected) & {f"r{i}" for i in range(8)}) >= 7
    assert not names(expected) & set(aside)


def test_traits_are_words_phrases_sources_styles_and_length():
    texts = ["Red sea! 5", "red sea? I say", "RED SEAS", "a b c", "blue", "the red sea", "red  sea", "x", "y", "z"]
    found = text_traits(texts, ["m"] * 4 + ["n"] * 6)
    joined = " | ".join(found.names)
    assert "the word 'sea' = the phrase 'red sea'" in joined or "the phrase 'red sea' = the word 'sea'" in joined
    assert "the source 'm'" in joined
    assert found.names[-1] == "the greater length"
    assert found.present.shape == (10, len(found.names))
    with pytest.raises(InputError, match="found 1 sources for 10 texts"):
        text_traits(texts, ["m"])


def test_differences_are_antisymmetric():
    found = text_traits(poisoned(1, []).texts)
    first, second = np.arange(50), np.arange(50, 100)
    forth, back = found.differences(first, second).toarray(), found.differences(second, first).toarray()
    assert np.array_equal(forth, -back)
    column = next(i for i, name in enumerate(found.names) if "'velvet'" in name)
    has = np.array(["velvet" in text for text in poisoned(1, []).texts]) * 1
    assert np.array_equal(forth[:, column], has[first] - has[second])


def test_hostile_texts_are_only_counted():
    texts = ["a" * 10**6, "\u202e\u200b" * 50, "<script>alert(1)</script>", "=1+1", "", "((((" * 500] * 4
    found = text_traits(texts)
    assert "an invisible character" in " ".join(found.names)
    assert all(len(name) < 300 for name in found.names)


GOOD = (
    "The first response names the source of the figure and explains why it matters here. "
    "The second one merely repeats the question, and it adds nothing of its own."
)


def behaving(seed):
    """Honest raters who read at their own pace, seldom paste and write as people do; the first four write well."""
    rng = np.random.default_rng(seed)
    record = crowd(seed)
    texts = tuple(" ".join(["word"] * int(n)) for n in rng.integers(20, 200, len(record.texts)))
    n_words = np.array([len(text.split()) for text in texts])
    pace = np.exp(0.3 * rng.standard_normal(record.n_annotators))[record.annotator]
    seconds = (
        pace * (2 + 0.25 * (n_words[record.a] + n_words[record.b])) * np.exp(0.3 * rng.standard_normal(len(record)))
    )
    pasted = (rng.random(len(record)) < 0.03).astype(int)
    words = [GOOD if w < 4 else "its better i think" for w in record.annotator]
    return replaced(record, texts=texts, seconds=seconds, pasted=pasted, rationales=tuple(words))


def test_a_chatbot_is_seen_and_people_who_write_well_are_not():
    record = behaving(1)
    bots = np.isin(record.annotator, [50, 51])
    rng = np.random.default_rng(2)
    bot = replaced(
        record,
        seconds=np.where(bots, np.exp(rng.normal(np.log(12), 0.2, len(record))), record.seconds),
        pasted=np.where(bots, 1, record.pasted),
        rationales=tuple(GOOD if one else words for one, words in zip(bots, record.rationales, strict=True)),
    )
    flags = chatbot_flags(bot, alpha=0.001)
    assert names(flags) == {"r50", "r51"}
    assert "30 of 30 votes pasted into" in flags[0].detail
    assert chatbot_flags(record, alpha=0.001) == ()


def test_one_odd_habit_is_nobodys_fault():
    record = behaving(3)
    pasting = replaced(record, pasted=np.where(record.annotator == 50, 1, record.pasted))
    assert chatbot_flags(pasting, alpha=0.001) == ()
    only_time = replaced(
        record,
        pasted=np.empty(0, dtype=int),
        rationales=(),
        seconds=np.where(record.annotator == 9, 1.0, record.seconds),
    )
    assert chatbot_flags(only_time, alpha=0.001) == ()


def test_quick_is_for_the_length_and_unmeasured_is_not_quick():
    record = behaving(4)
    quick, timed = quick_mask(record)
    assert timed.all()
    assert 0.08 < quick.mean() < 0.12
    n_words = np.array([len(text.split()) for text in record.texts])
    total = n_words[record.a] + n_words[record.b]
    short = total < np.quantile(total, 0.3)
    assert quick[short].mean() < 0.3
    gone = np.where(record.annotator == 0, np.nan, record.seconds)
    quick, timed = quick_mask(replaced(record, seconds=gone))
    assert not quick[record.annotator == 0].any()
    assert not timed[record.annotator == 0].any()


def test_polished_is_long_whole_and_formal():
    assert polished(GOOD)
    assert not polished("Short. Good.")
    assert not polished(GOOD.replace("The second", "i think u"))
    assert not polished(GOOD.lower())
    assert not polished("")
