"""A reward model from its embeddings up: scores of embedded texts, their words, and what a layer in the middle holds.

Knows the three kinds of trunk and their tokenizers; knows nothing about what is asked of the results.

Dimension letters: P rows, L tokens, d width, M texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from karat.audit.attribution import COMPLETENESS, Attribution, ScoreAt, integrated_gradients
from karat.audit.concepts import Activations
from karat.errors import InputError
from karat.records import Prompt
from karat.reward.classifier import ClassifierTrunk
from karat.reward.model import RewardModel
from karat.reward.trunk import DecoderTrunk, Encoded, EncoderTrunk, Trunk
from karat.seeding import torch_generator

WORD = re.compile(r"\S+")


@dataclass(frozen=True, eq=False)
class ReadText:
    """A response as the reward model reads it."""

    ids: tuple[int, ...]
    """Token ids of the whole sequence, prompt included."""
    words: tuple[str, ...]
    """Words of the response; single tokens where the tokenizer does not say which token belongs where."""
    word_of: tuple[int, ...]
    """Position in `words` of each token, −1 for tokens that are none of the response's."""

    @property
    def places(self) -> list[int]:
        """Positions of the response's tokens."""
        return [place for place, word in enumerate(self.word_of) if word >= 0]


def read_text(trunk: Trunk, prompt: Prompt, text: str) -> ReadText:
    """Tokens and words of a response in its sequence.

    Raises: InputError for a response without any token.
    """
    (item,) = trunk.encode([prompt], [text])
    ids = (*item.prompt, *item.response)
    found = _spans(trunk, item, text)
    if found is None:
        inner = range(len(item.prompt), len(ids) - 1)
        tokens = _tokenizer(trunk).convert_ids_to_tokens(list(ids))
        word_of = [-1] * len(ids)
        for number, place in enumerate(inner):
            word_of[place] = number
        return _checked(ReadText(ids, tuple(tokens[place] for place in inner), tuple(word_of)), text)
    written, spans = found
    words = [(match.start(), match.end(), match.group()) for match in WORD.finditer(written)]
    word_of = [-1] * len(ids)
    for place, (start, end) in spans.items():
        # a token often begins with the blank before its word: its last character tells where it belongs
        holder = next((i for i, (low, high, _) in enumerate(words) if end > start and low < end <= high), -1)
        word_of[place] = holder
    return _checked(ReadText(ids, tuple(word for *_, word in words), tuple(word_of)), text)


def word_shares(attribution: Attribution, read: ReadText) -> list[float]:
    """The shares of a text's tokens, summed over each word."""
    shares = [0.0] * len(read.words)
    for place, word in enumerate(read.word_of):
        if word >= 0:
            shares[word] += float(attribution.tokens[place])
    return shares


def attribute(model: RewardModel, read: ReadText, *, tolerance: float = COMPLETENESS) -> Attribution:
    """Integrated gradients of the mean score; the reference has the vocabulary's mean embedding at every response token.

    Prompt and end mark stay, so the shares say what the response's words add to a response of as many empty ones. The length
    term, which is no function of the embeddings, is left out.
    """
    embed = _embeddings(model.trunk)
    ids = torch.tensor([read.ids], device=embed.weight.device)
    with torch.no_grad():
        end = embed(ids)[0].float()
        start = end.clone()
        start[read.places] = (embed.weight.float().mean(0) * float(getattr(embed, "embed_scale", 1.0))).to(end)
    return integrated_gradients(score_at(model, read), end, start, tolerance=tolerance)


def score_at(model: RewardModel, read: ReadText) -> ScoreAt:
    """The mean score, in logits, as a function of a text's embeddings [P, L, d]."""
    weight = model.mean_weight()

    def score(embeddings: Float[Tensor, "P L d"]) -> Float[Tensor, " P"]:
        features, _ = _forward(model.trunk, read.ids, embeddings, hidden=False)
        return features @ weight.to(features)

    return score


def layer_activations(
    model: RewardModel,
    reads: Sequence[ReadText],
    *,
    layer: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Activations:
    """Mean activation of each response's tokens behind a layer, and the score's gradient for moving all of them alike.

    Args:
        layer: 0 = embeddings … number of layers; None = the middle one.    progress: called with (texts done, of).
    Raises: InputError for a layer that there is not.
    """
    weight, embed = model.mean_weight(), _embeddings(model.trunk)
    values, gradients = [], []
    for number, read in enumerate(reads, 1):
        ids = torch.tensor([read.ids], device=embed.weight.device)
        embedded = embed(ids).detach().requires_grad_()
        with torch.enable_grad():
            features, hidden = _forward(model.trunk, read.ids, embedded, hidden=True)
            chosen = len(hidden) // 2 if layer is None else layer
            if not 0 <= chosen < len(hidden):
                raise InputError(f"layer_activations: found layer {chosen}; expected 0 … {len(hidden) - 1}")
            (gradient,) = torch.autograd.grad((features @ weight.to(features)).sum(), hidden[chosen])
        values.append(hidden[chosen][0, read.places].detach().cpu().double().mean(0))
        gradients.append(gradient[0, read.places].cpu().double().sum(0))
        if progress is not None:
            progress(number, len(reads))
    return Activations(torch.stack(values).numpy(), torch.stack(gradients).numpy())


class ShuffledWeights:
    """Inside, every weight of the trunk and the heads is shuffled in itself; outside, all is as before."""

    def __init__(self, model: RewardModel, *, seed: int) -> None:
        self.model, self.seed = model, seed
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> RewardModel:
        for name, parameter in self.model.named_parameters():
            if parameter.numel() > 1:
                self.kept[name] = parameter.data.clone()
                order = torch.randperm(parameter.numel(), generator=torch_generator(self.seed, "shuffled", name))
                parameter.data.copy_(parameter.data.flatten()[order.to(parameter.device)].view_as(parameter))
        return self.model

    def __exit__(self, *_: object) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.kept:
                parameter.data.copy_(self.kept[name])


def _forward(
    trunk: Trunk, ids: Sequence[int], embeddings: Tensor, *, hidden: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Features [P, d] of embedded texts, and the hidden states behind every layer if asked for."""
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
    inputs = {"inputs_embeds": embeddings.to(next(trunk.module.parameters()).dtype), "output_hidden_states": hidden}
    if isinstance(trunk, ClassifierTrunk):
        return trunk.features_of_embeddings(ids, **inputs)
    if isinstance(trunk, EncoderTrunk):
        output = trunk.module(attention_mask=mask, **inputs)
        features = F.layer_norm(output.last_hidden_state.float().mean(1), (trunk.width,))
    else:
        output = trunk.module(use_cache=False, **inputs)
        features = output.last_hidden_state[:, -1].float()
    return features, output.hidden_states or ()


def _embeddings(trunk: Trunk) -> nn.Embedding:
    return trunk.module.get_input_embeddings()


def _tokenizer(trunk: Trunk) -> PreTrainedTokenizerBase:
    if isinstance(trunk, DecoderTrunk):
        return trunk.lm.tokenizer
    return trunk.classifier.tokenizer if isinstance(trunk, ClassifierTrunk) else trunk.encoder.tokenizer


def _spans(trunk: Trunk, item: Encoded, text: str) -> tuple[str, dict[int, tuple[int, int]]] | None:
    """The response as it was tokenised, and which characters of it each position holds; None where nobody says so."""
    tokenizer = _tokenizer(trunk)
    if not getattr(tokenizer, "is_fast", False) or isinstance(trunk, ClassifierTrunk):
        return None
    if isinstance(trunk, EncoderTrunk):
        if trunk.with_prompt:
            return None
        found = tokenizer(text, truncation=True, max_length=trunk.max_tokens, return_offsets_mapping=True)
        inside = list(item.response)
    else:
        text = text if tokenizer.chat_template is not None or text[:1].isspace() else " " + text
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        inside = list(item.response[:-1])
    if list(found["input_ids"]) != inside:
        return None
    offsets = found["offset_mapping"]
    return text, {len(item.prompt) + i: span for i, span in enumerate(offsets) if span[1] > span[0]}


def _checked(read: ReadText, text: str) -> ReadText:
    if not read.places:
        raise InputError(f"look inside: found no token in the response {text[:40]!r}; expected at least one word")
    return read
