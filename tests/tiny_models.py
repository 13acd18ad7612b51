"""Small random checkpoints of real architectures on disk, laid out as a user would find them.

Knows the file layout of `save_pretrained` and nothing of karat. The tokenizer is byte-level, so any text encodes; the
four kinds differ on purpose in what their tokenizers bring along: GPT-2 has no padding token and no spare row in its
embedding, Llama pads with its end token, Qwen3 has two end tokens, spare rows and a chat template, Gemma a begin token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Kind = Literal["gpt2", "llama", "qwen3", "gemma", "gemma3"]
KINDS: tuple[Kind, ...] = ("gpt2", "llama", "qwen3", "gemma")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS: dict[str, list[str]] = {
    "gpt2": ["<|endoftext|>"],
    "llama": ["<s>", "</s>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gemma": ["<pad>", "<eos>", "<bos>"],
    "gemma3": ["<pad>", "<eos>", "<bos>"],
}


def tiny_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: special tokens first, then the 256 bytes."""
    specials = SPECIAL_TOKENS[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kind in ("llama", "gemma", "gemma3"):
        bos = "<s>" if kind == "llama" else "<bos>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    named = {
        "gpt2": {"eos_token": "<|endoftext|>"},
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
        "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>"]},
        "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    }[kind]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **named)
    if kind == "qwen3":
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(kind: Kind, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of 2 layers (Gemma: 1 sliding + 1 full) with hidden size 32 and a context of 128 tokens."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
    }
    gemma = {
        "vocab_size": 259,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gpt2":
            config = GPT2Config(
                vocab_size=257,
                n_positions=128,
                n_embd=32,
                n_layer=2,
                n_head=4,
                initializer_range=0.15,
                bos_token_id=0,
                eos_token_id=0,
            )
            model: PreTrainedModel = GPT2LMHeadModel(config)
        elif kind == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(vocab_size=258, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, **shape)
            )
        elif kind == "qwen3":
            model = Qwen3ForCausalLM(
                Qwen3Config(vocab_size=272, tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, **shape)
            )
        elif kind == "gemma":
            model = Gemma2ForCausalLM(
                Gemma2Config(attn_logit_softcapping=5.0, final_logit_softcapping=8.0, **gemma, **shape)
            )
        else:
            model = Gemma3ForCausalLM(Gemma3TextConfig(**gemma, **shape))
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, mean=float(parameter.data.mean().round()), std=0.1)
    return model.to(dtype)


def tiny_checkpoint(kind: Kind, directory: str | Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write config, safetensors weights, generation config and tokenizer; returns the directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model = tiny_model(kind, seed=seed, dtype=dtype)
    if kind == "qwen3":
        model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(directory)
    tiny_tokenizer(kind).save_pretrained(directory)
    return directory
