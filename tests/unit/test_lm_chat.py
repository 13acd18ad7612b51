"""Prompts and responses as token ids, and back."""

from __future__ import annotations

import pytest

import tiny_models
from karat.errors import InputError
from karat.lm import chat
from karat.lm.chat import TokenMemory, check_fits, prompt_tokens, response_text, response_tokens
from karat.records import Turn

TURNS = [Turn("user", "hi"), Turn("assistant", "yes"), Turn("user", "why?")]


def test_the_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = tiny_models.tiny_tokenizer("qwen3")
    assert tokenizer.decode(prompt_tokens(tokenizer, TURNS)) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(response_tokens(tokenizer, "so", 2)) == "so<|im_end|>"


def test_the_plain_template_labels_turns_behind_one_bos() -> None:
    gpt2, llama = tiny_models.tiny_tokenizer("gpt2"), tiny_models.tiny_tokenizer("llama")
    plain = "Human: hi\n\nAssistant: yes\n\nHuman: why?\n\nAssistant:"
    assert gpt2.decode(prompt_tokens(gpt2, TURNS)) == plain
    assert llama.decode(prompt_tokens(llama, TURNS)) == "<s>" + plain
    assert llama.decode(response_tokens(llama, "so", 1)) == " so</s>"


def test_text_that_spells_a_special_token_stays_text() -> None:
    tokenizer = tiny_models.tiny_tokenizer("llama")
    assert response_tokens(tokenizer, "a</s>b", 1).count(1) == 1
    assert prompt_tokens(tokenizer, [Turn("user", "a</s>b")]).count(1) == 0


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_responses_come_back_as_they_went_in(kind: tiny_models.Kind) -> None:
    tokenizer = tiny_models.tiny_tokenizer(kind)
    eos = tokenizer.eos_token_id
    ids = response_tokens(tokenizer, "Ça va? 1,5 €", eos)
    assert response_text(tokenizer, ids, (eos,)) == "Ça va? 1,5 €"
    assert response_text(tokenizer, [*ids, *ids], (eos,)) == "Ça va? 1,5 €"


def test_conversations_nobody_can_continue_are_refused() -> None:
    tokenizer = tiny_models.tiny_tokenizer("gpt2")
    with pytest.raises(InputError, match="found no turn"):
        prompt_tokens(tokenizer, [])
    with pytest.raises(InputError, match="an assistant turn at the end"):
        prompt_tokens(tokenizer, TURNS[:2])


def test_turns_that_the_models_template_refuses_are_one_line() -> None:
    tokenizer = tiny_models.tiny_tokenizer("qwen3")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tiny_models.CHAT_TEMPLATE
    )
    assert prompt_tokens(tokenizer, TURNS)
    with pytest.raises(InputError, match=r"turns of system, user, which .* refuses \(System role not supported\)"):
        prompt_tokens(tokenizer, [Turn("system", "Be brief."), Turn("user", "hi")])


def test_prompts_beyond_the_context_are_refused() -> None:
    check_fits([1] * 100, 28, 128)
    with pytest.raises(InputError, match=r"a prompt of 101 tokens .* at most 128 in all"):
        check_fits([1] * 101, 28, 128)


def test_what_is_remembered_is_what_would_be_written_and_each_text_is_written_once(monkeypatch) -> None:
    tokenizer = tiny_models.tiny_tokenizer("qwen3")
    memory = TokenMemory(tokenizer, 7, most=2)
    turns = (Turn("user", "How long is a day?"),)
    assert memory.prompt(turns) == tuple(prompt_tokens(tokenizer, turns))
    assert memory.response("A day.") == tuple(response_tokens(tokenizer, "A day.", 7))
    with monkeypatch.context() as nothing_new:
        nothing_new.setattr(chat, "prompt_tokens", None)
        nothing_new.setattr(chat, "response_tokens", None)
        assert memory.prompt((Turn("user", "How long is a day?"),))[:1] == memory.prompt(turns)[:1]
        assert memory.response("A day.")[-1] == 7
    for text in ("b", "c", "d"):
        assert memory.response(text) == tuple(response_tokens(tokenizer, text, 7))
        assert len(memory._responses) <= 2
