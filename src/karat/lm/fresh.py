"""New models from nothing: a tokenizer over a list of words and a small decoder with random weights.

The sandbox's base model and the benches start here. What is written is an ordinary checkpoint directory; nothing
later needs to know that it was made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from karat.errors import ConfigError
from karat.lm.fresh_settings import DecoderShape
from karat.lm.load import quiet

PAD, EOS, UNKNOWN, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<user>", "<assistant>"
SPECIAL = (PAD, EOS, UNKNOWN, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant> ' + message['content'] + ' <eos> ' }}"
    "{% else %}{{ '<user> ' + message['content'] + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a whitespace-separated word, PAD ≠ EOS, and a chat template of two marks.

    Args:
        words: different words without spaces, in the order of their token ids (after the special tokens).
    """
    if len(set(words)) != len(words) or any(not word or word.split() != [word] for word in words):
        raise ConfigError("word_tokenizer: found repeated, empty or spaced words; expected different single words")
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_fresh_decoder(directory: Path, tokenizer: PreTrainedTokenizerFast, shape: DecoderShape, *, seed: int) -> Path:
    """Write a Qwen3-shaped checkpoint with random weights (tied embeddings, no dropout); returns the directory."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # whoever serves it draws from the model itself, not its likeliest text
    model.generation_config.do_sample, model.generation_config.top_k = True, 0
    with quiet():
        model.save_pretrained(directory, safe_serialization=True)
        tokenizer.save_pretrained(directory)
    return directory
