"""Talking to a checkpoint and voting blindly between two: the same words streamed and whole, what fits, what is kept."""

import io
import json

import pytest

from karat.cli import main
from karat.errors import InputError
from karat.feedback.store import open_store
from karat.lm.load import load_lm
from karat.records import Turn, user_prompt
from karat.talk.conversation import Conversation, Pieces, TalkSettings, draw_reply
from karat.talk.duel import Duel, arena_name, policy_names, result, run_duel
from karat.talk.script import talk
from tiny_models import tiny_checkpoint

SHORT = TalkSettings(max_new_tokens=8, seed=3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    place = tmp_path_factory.mktemp("talk")
    return [tiny_checkpoint("qwen3", place / name, seed=seed) for seed, name in enumerate(("red", "blue"))]


@pytest.fixture(scope="module")
def lm(checkpoints):
    return load_lm(checkpoints[0])


def test_what_is_heard_is_the_reply_and_a_seed_repeats_it(lm):
    for temperature in (1.0, 0.0):
        settings = TalkSettings(max_new_tokens=12, seed=1, temperature=temperature)
        heard = []
        first = Conversation(lm, settings).reply("hello", heard.append)
        assert "".join(heard) == first.text
        assert Conversation(lm, settings).reply("hello").text == first.text
    other = Conversation(lm, TalkSettings(max_new_tokens=12, seed=2)).reply("hello")
    assert other.text != Conversation(lm, TalkSettings(max_new_tokens=12, seed=1)).reply("hello").text


def test_half_a_character_waits_for_its_other_half(lm):
    pieces = Pieces(lm)
    euro = lm.tokenizer.encode("a€b", add_special_tokens=False)
    assert len(euro) == 5
    assert [pieces.take(token) for token in euro] == ["a", "", "", "€", "b"]
    assert pieces.rest() == ""


def test_half_a_character_at_the_end_is_said_as_it_is(lm):
    pieces = Pieces(lm)
    said = [pieces.take(token) for token in lm.tokenizer.encode("a€", add_special_tokens=False)[:2]]
    assert said == ["a", ""]
    assert pieces.rest() == "\ufffd"


def test_later_turns_read_the_earlier_ones_and_reset_forgets_them(lm):
    conversation = Conversation(lm, SHORT, system="be brief")
    conversation.reply("one")
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]
    conversation.turns.append(Turn("user", "two"))
    with_history, left_out = conversation._fitting()
    conversation.reset()
    conversation.turns.append(Turn("user", "two"))
    without, _ = conversation._fitting()
    assert left_out == 0
    assert len(with_history) > len(without)
    assert "be brief" in lm.tokenizer.decode(without)


def test_what_no_longer_fits_is_left_out_from_the_oldest_and_said(lm):
    conversation = Conversation(lm, SHORT)
    replies = [conversation.reply("some words of a longer message") for _ in range(4)]
    assert replies[0].n_left_out == 0
    assert replies[-1].n_left_out > 0
    assert replies[-1].n_left_out % 2 == 0
    with pytest.raises(InputError, match=r"expected at most \d+, so that a reply fits the model's context of 128"):
        conversation.reply("w" * 200)
    assert conversation.turns[-1].role == "assistant"  # what got no reply was not said


def test_a_reply_is_as_long_as_the_context_allows(lm):
    reply = draw_reply(lm, [5] * 120, TalkSettings(max_new_tokens=256, temperature=0.0), number=0)
    assert len(reply.response_tokens) <= 8


def test_commands_in_a_script(lm):
    notes = []
    conversation = Conversation(lm, SHORT)
    said = talk(
        conversation, ["hi", "", "/system talk like a judge", "again", "/reset", "/quit", "no"], note=notes.append
    )
    assert [exchange.said for exchange in said] == ["hi", "again"]
    assert [exchange.system for exchange in said] == ["", "talk like a judge"]
    assert notes == ["the system message is set", "forgotten"]
    with pytest.raises(InputError, match=r"found /resett; expected /reset, /system, /help, /quit"):
        talk(conversation, ["/resett"])
    talk(conversation, ["/resett", "/help"], note=notes.append, forgiving=True)
    assert "/resett" in notes[2]
    assert "begin anew" in notes[3]


def duel_of(store, checkpoints, rater="ann", **settings):
    names = policy_names(tuple(checkpoints))
    models = {name: load_lm(path) for name, path in zip(names, checkpoints, strict=True)}
    return Duel(store, arena_name(names), models, rater, TalkSettings(**{"max_new_tokens": 6, "seed": 0} | settings))


def test_votes_are_judgements_of_the_rater_for_the_text_she_preferred(tmp_path, checkpoints):
    prompts = [user_prompt(f"say {i}") for i in range(12)]
    sides = []
    with open_store(tmp_path / "k.db") as store:
        duel = duel_of(store, checkpoints)
        shown = []
        ballots = run_duel(
            duel,
            iter(prompts),
            show=shown.append,
            # she always prefers what the red model wrote, wherever it is shown
            ask=lambda: "1" if shown[-1].policies[0] == "red" else "2",
        )
        sides = [one.policies[0] for one in shown]
        found = result(duel)
        stored = store.judgements()
    assert all(ballot.winner == "red" for ballot in ballots if ballot.vote != "same")
    assert (found.n_wins, found.n_ties, found.n_losses) == (len(shown), 0, 0)
    assert found.by_prompt.value == 1.0
    assert found.by_prompt.low is not None
    assert {judgement.annotator for judgement in stored} == {"ann"}
    assert set(sides) == {"red", "blue"}  # sides are drawn; 1 in 2,048 seeds would fail here, this one is fixed


def test_ties_skips_and_a_second_sitting(tmp_path, checkpoints):
    answers = iter(["t", "s", None])
    prompts = [user_prompt(f"say {i}") for i in range(3)]
    with open_store(tmp_path / "k.db") as store:
        duel = duel_of(store, checkpoints)
        first = run_duel(duel, iter(prompts), show=lambda _: None, ask=lambda: next(answers))
        assert [ballot.vote for ballot in first] == ["tie", "skip"]
        second = run_duel(duel, iter(prompts), show=lambda _: None, ask=lambda: "1")
        assert [ballot.shown.prompt for ballot in second] == prompts[1:]  # what was judged is not asked again
        assert result(duel).n_ties == 1
        assert store.n_judgements() == 3
        with pytest.raises(InputError, match=r"found the answer '3'; expected 1, 2, t \(tie\) or s \(skip\)"):
            run_duel(duel, iter([user_prompt("new")]), show=lambda _: None, ask=lambda: "3")


def test_the_same_checkpoint_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected two checkpoints"):
        policy_names((tmp_path / "m", tmp_path / "m"))
    assert len(arena_name(("a/very/long/directory/name/of/a/model", "b/very/long/directory/name"))) <= 40


def outcome(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_person_who_types_what_is_no_vote_is_told_what_is_one_and_asked_again(
    tmp_path, checkpoints, capsys, monkeypatch
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("say a\nsay b\n")
    typed = iter(["3", "", "left", " 2 ", "yes", "/quit"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    command = ("compare", *checkpoints, "--rater", "ann", "--prompts", prompts, "--store", tmp_path / "k.db")
    code, out, err = outcome(capsys, *command, "--max-new-tokens", 6)
    assert code == 0
    assert "won 1, tied 0, lost 0" in out or "won 0, tied 0, lost 1" in out
    expected = "expected 1, 2, t (tie) or s (skip), or /quit"
    told = [line.rpartition("> ")[2] for line in err.splitlines() if "found" in line]
    assert told == [f"found {word!r}; {expected}" for word in ("3", "", "left", "yes")]


@pytest.mark.parametrize("command", ["chat", "generate", "score"])
def test_who_interrupts_what_does_not_continue_is_told_so(command, checkpoints, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for place in ("karat.lm.load.load_lm", "karat.batches.generate_file", "karat.batches.score_file"):
        monkeypatch.setattr(place, interrupt)
    more = {"chat": [], "generate": ["p.jsonl", "--out", "o"], "score": ["r.jsonl", "--out", "o"]}[command]
    code, _, err = outcome(capsys, command, checkpoints[0], *more)
    holds = "what was said is not kept, and the same command begins a new conversation"
    said = holds if command == "chat" else "nothing was written, and the same command begins anew"
    assert (code, err.splitlines()[-1]) == (130, f"karat: interrupted; {said}")


def test_both_commands_from_a_script(tmp_path, checkpoints, capsys):
    turns = tmp_path / "turns.txt"
    turns.write_text("hello\n/reset\nbye\n")
    code, out, _ = outcome(capsys, "chat", checkpoints[0], "--turns", turns, "--max-new-tokens", 4, "--json")
    assert code == 0
    assert [exchange["said"] for exchange in json.loads(out)["exchanges"]] == ["hello", "bye"]
    answers = tmp_path / "answers.txt"
    answers.write_text("say a\n1\nsay b\nt\n")
    command = ("compare", *checkpoints, "--rater", "ann", "--answers", answers, "--store", tmp_path / "k.db")
    code, out, _ = outcome(capsys, *command, "--max-new-tokens", 6, "--json")
    found = json.loads(out)
    assert code == 0
    assert [vote["vote"] for vote in found["votes"]] == ["1", "tie"]
    assert found["all_votes"]["ties"] == 1
    answers.write_text("say c\n3\n")
    code, out, err = outcome(capsys, *command)
    assert code == 2
    assert "\n2: " in out
    assert "expected 1, 2, t (tie) or s (skip)" in err


def test_what_is_no_text_is_one_line_and_a_person_is_asked_again(tmp_path, checkpoints, capsys, monkeypatch):
    """As a shell hands it over: bytes, among them some that are not UTF-8."""

    def piped(said, *command):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said), encoding="utf-8"))
        return outcome(capsys, *command)

    store = tmp_path / "k.db"
    chat = ("chat", checkpoints[0], "--max-new-tokens", 4)
    compare = ("compare", *checkpoints, "--store", store, "--max-new-tokens", 6, "--rater")
    no_text = "line 2: found bytes that are not UTF-8, or the character NUL; expected text"
    for said in (b"hello\nh\xff\xfei\n", b"hello\nh\0i\n"):
        for command in (chat, (*compare, "ann")):
            code, _, err = piped(said, *command)
            assert (code, err.splitlines()[-1]) == (2, f"karat: standard input, {no_text}")
    code, _, err = outcome(capsys, *compare, " ")
    assert (code, err) == (2, "karat: --rater: found ' '; expected a pseudonym\n")
    code, _, err = outcome(capsys, *chat, "--system", "\udcff")
    assert (code, err.partition(": found")[0]) == (2, "karat: --system")
    typed = iter(["h\udcffi", "hello", "/quit"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    code, out, err = outcome(capsys, *chat)
    assert (code, err) == (0, "found bytes that are not UTF-8, or the character NUL; say it again\n")
    assert out.count("\n") == 1
