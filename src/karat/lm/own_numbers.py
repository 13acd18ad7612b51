"""Whether karat's ways through a model give the model's own numbers, on a small tree, before anybody trains on it.

Knows models, trees and the sampler's cache; knows nothing about files.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from karat.errors import CheckpointError
from karat.lm.cache import decoded_logits
from karat.lm.final_block import try_alone
from karat.lm.logprobs import hidden_at, hidden_states, token_logprobs, trunk_of
from karat.lm.narrow import products_of
from karat.lm.trees import Tree, pack_trees, padded_batch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative; narrower dtypes are allowed 5e-2


def check_own_numbers(model: PreTrainedModel, pad_id: int, path: str, *, by_tree: bool) -> None:
    """Compare hidden states, log-probabilities, and those that are sampled from, with the model's own.

    Args:
        path: by which a complaint names the model.    by_tree: True = flat rows of trees are compared too.
    Raises: CheckpointError (one line) for a model that karat cannot reproduce.
    """
    n_vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * i + 3) % n_vocabulary for i in range(9)]
    tree = Tree(tuple(ids[:4]), (tuple(ids[4:7]), tuple(ids[7:])))
    most = TOLERANCE.get(products_of(model) or model.dtype, 5e-2)

    def agree(what: str, found: Tensor, expected: Tensor) -> None:
        if not (gap := _gap(found, expected)) <= most:
            broken = (name for name, weight in model.named_parameters() if not bool(weight.isfinite().all()))
            if not math.isfinite(gap) and (name := next(broken, None)):
                raise CheckpointError(
                    f"{path}: {name} is not finite; expected finite weights: restore them, or train anew"
                )
            raise CheckpointError(
                f"{path}: unsupported kind: {what} of {type(model).__name__} differ by {gap:.1e} from the model's "
                f"own; expected at most {most:.0e}"
                + (". Load it with attention='sdpa' and padded batches" if "trees" in what else "")
            )

    try:
        with torch.no_grad():
            _compare(model, tree, pad_id, agree, most=most, by_tree=by_tree)
    except CheckpointError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{path}: unsupported kind: {type(model).__name__} cannot be run on karat's attention and cache ({said}); expected a "
            "decoder whose layers all use transformers' attention interface, as those of Llama, Qwen, Mistral, Gemma or GPT-2"
        ) from error


def _compare(
    model: PreTrainedModel, tree: Tree, pad_id: int, agree: Callable[..., None], *, most: float, by_tree: bool
) -> None:
    batch = padded_batch([tree], pad_id).to(model.device)
    hidden = hidden_states(model, batch).index_select(0, batch.predict_index)
    found, _ = token_logprobs(model, hidden, batch.target_ids)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    logits = output.logits.flatten(0, 1).index_select(0, batch.predict_index)
    own = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    agree("log-probabilities", found, own.gather(1, batch.target_ids[:, None])[:, 0])
    drawn = decoded_logits(model, tree.prompt, tree.branches[0], products_of(model)).to(own.dtype).log_softmax(-1)
    agree("log-probabilities to sample from", drawn, own[: len(drawn)])
    try_alone(trunk_of(model), lambda: _gap(hidden_at(model, batch, batch.predict_index), hidden), most)
    if by_tree:
        packed = pack_trees([tree], token_budget=tree.n_tokens)[0].to(model.device)
        agree("hidden states of trees", hidden_states(model, packed).index_select(0, packed.predict_index), hidden)


def _gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference beside the largest number expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
