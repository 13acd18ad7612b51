"""The models of the benches: a byte-level BPE tokenizer trained on the HH texts, and Qwen3-shaped random weights.

    small   hidden 256, MLP 704, 4 layers, 4 heads, 2 KV heads, head size 64, tied embeddings, vocabulary 8,192
    medium  hidden 384, MLP 1,024, 6 layers, 6 heads (2 KV heads), otherwise the same
    wide    small with a vocabulary of 151,936, of which the HH texts use the first 8,192

Each is written twice: as a causal language model, and as a sequence-classification model of the same trunk with a
random score head. Both sides of every comparison load the directories written here, so their weights are equal.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from karat.lm.fresh import SPECIAL, DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.load import load_lm, save_lm
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.trunk import DecoderTrunk
from karat.sft.train import SFTConfig, train_on_texts

WORK = Path(__file__).parent / "work"
VOCABULARY, WIDE_VOCABULARY = 8192, 151_936
PAD, EOS = "<|pad|>", "<|end|>"
# One plain head N(0, 1/√(d + 1)) as in Stiennon et al. 2020: −log σ(r₁ − r₂) is then what both sides minimise.
PLAIN_HEAD = HeadConfig(n_heads=1, prior_scale=0.0, init_scale=1.0)
SEED = 0
SHAPES = {
    "small": DecoderShape(hidden=256, mlp=704, layers=4, heads=4, kv_heads=2, head_size=64, context=2048),
    "medium": DecoderShape(hidden=384, mlp=1024, layers=6, heads=6, kv_heads=2, head_size=64, context=2048),
}
SHAPES["wide"] = SHAPES["small"]
# on a GPU: the sizes of Qwen2.5-0.5B and -1.5B, and a toy with which to try the same commands on a processor
SHAPES["qwen-0.5b"] = DecoderShape(hidden=896, mlp=4864, layers=24, heads=14, kv_heads=2, head_size=64, context=2048)
SHAPES["qwen-1.5b"] = DecoderShape(hidden=1536, mlp=8960, layers=28, heads=12, kv_heads=2, head_size=128, context=2048)
SHAPES["qwen-toy"] = DecoderShape(hidden=32, mlp=64, layers=2, heads=4, kv_heads=2, head_size=8, context=2048)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '\n\n' + ('Human' if message['role'] == 'user' else 'Assistant') + ': ' "
    "+ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
)


def data_directory() -> Path:
    """Where the real votes are: the environment variable KARAT_DATA."""
    place = os.environ.get("KARAT_DATA")
    if not place or not Path(place).is_dir():
        raise SystemExit("bench: set KARAT_DATA to the directory with hh_harmless/comparisons.jsonl.gz")
    return Path(place)


def hh_rows() -> list[dict[str, str]]:
    """The HH comparisons, `chosen` and `rejected` conversations."""
    with gzip.open(data_directory() / "hh_harmless" / "comparisons.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def hh_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 8,192 tokens trained on the HH texts; PAD ≠ EOS."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def wide_tokenizer(n_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many tokens, PAD and EOS at the ids of the HH tokenizer; nothing is read or written with it."""
    return word_tokenizer([f"w{i}" for i in range(n_tokens - len(SPECIAL))])


def widen(tokenizer: PreTrainedTokenizerFast, n_tokens: int) -> None:
    """Give a tokenizer so many tokens: further words that no text has, written and read like any other."""
    tokenizer.add_tokens([f"⟦{i}⟧" for i in range(n_tokens - len(tokenizer))])


def hh_ids() -> tuple[int, int]:
    """Ids of the end token and of PAD."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint("small"))
    return tokenizer.eos_token_id, tokenizer.pad_token_id


def checkpoint(size: str) -> Path:
    """The directory of a bench model, written on first use."""
    directory = WORK / size
    if not (directory / "config.json").exists():
        tokenizer = wide_tokenizer(WIDE_VOCABULARY) if size == "wide" else hh_tokenizer()
        if size.startswith("qwen"):
            widen(tokenizer, VOCABULARY + 100 if size == "qwen-toy" else WIDE_VOCABULARY)
        write_fresh_decoder(directory, tokenizer, SHAPES[size], seed=SEED)
    return directory


def trained_checkpoint() -> Path:
    """The directory of "small" after two passes over the HH conversations, written on first use (minutes).

    For the time-to-score study: from random weights over 8,192 tokens nothing is learnt in minutes by anybody.
    """
    directory = WORK / "small-trained"
    if not (directory / "config.json").exists():
        lm = load_lm(checkpoint("small"), for_training=True)
        config = SFTConfig(epochs=2.0, batch_size=16, learning_rate=2e-3)
        result = train_on_texts(lm, [row["chosen"] for row in hh_rows()], config, seed=SEED)
        print(f"bench: small-trained, {result.last_nll:.2f} nats a token at the end", file=sys.stderr)
        save_lm(lm, directory, metadata={})
    return directory


def plain_reward_model(size: str) -> RewardModel:
    """A reward model on the bench's weights as `train_reward` would start it from PLAIN_HEAD and SEED."""
    return RewardModel(DecoderTrunk(load_lm(checkpoint(size))), PLAIN_HEAD, seed=SEED)


def classifier(size: str) -> Path:
    """The directory of the same reward model as a sequence-classification model, written on first use."""
    directory = WORK / f"{size}-classifier"
    if not (directory / "config.json").exists():
        source = checkpoint(size)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
        model.score.weight.data.copy_(plain_reward_model(size).mean_weight())
        model.save_pretrained(directory)
        PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(directory)
    return directory


def _texts() -> Iterator[str]:
    for row in hh_rows():
        yield row["chosen"]
        yield row["rejected"]
