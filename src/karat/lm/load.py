"""Model directories in and out: decoders for policies, encoders for reward models.

What is loaded is checked before anybody trains on it: safetensors only, a tokenizer with an end token, all weights
present, dropout off, and hidden states and logits that agree between karat's paths and the model's own. What is saved
loads with plain transformers and carries its run in `config.json` and in the safetensors headers. Knows files and
models; knows nothing about preferences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from karat import devices
from karat.damaged import damage_named
from karat.destinations import filled_directory
from karat.errors import CheckpointError, InputError
from karat.lm.adapter_files import adapted_model, adapter_settings, holds_adapters, with_adapters
from karat.lm.attention import NAME as TREE_ATTENTION
from karat.lm.checksums import LISTED, check_files, note_files
from karat.lm.freed_memory import keep_few_products
from karat.lm.fused_block import use_fused_blocks
from karat.lm.headers import add_header_metadata, state_on_processor
from karat.lm.kernels import use_fast_kernels
from karat.lm.narrow import use_narrow_products
from karat.lm.own_numbers import check_own_numbers
from karat.lm.tokenizer_files import SETTINGS, check_special_tokens, has_tokenizer, model_tokenizer

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
Attention = Literal["tree", "sdpa"]


@dataclass(frozen=True)
class LoadedLM:
    """A decoder ready for use: dropout off, PAD ≠ EOS."""

    model: PreTrainedModel
    """The causal language model, in eval mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    eos_ids: tuple[int, ...]
    """Tokens that end a response; the first is the tokenizer's own and the one to append."""
    pad_id: int
    """Filler for padded rows, never an end token; masks are explicit, so it is never read."""
    context_length: int
    """Most tokens of prompt and response together."""
    path: str
    """Where it was loaded from."""


@dataclass(frozen=True)
class LoadedEncoder:
    """A BERT-like encoder whose text embedding is the mean of its last hidden states."""

    model: PreTrainedModel
    """The encoder, in eval mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    max_tokens: int
    """Longest input in tokens; longer texts must be cut by the caller, who says so."""
    hidden_size: int
    """Length of an embedding."""
    path: str
    """Where it was loaded from."""


def load_lm(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    attention: Attention = "tree",
    for_training: bool = False,
    fast: bool = True,
    products: torch.dtype | None = None,
) -> LoadedLM:
    """Load a causal language model directory and check that it is what the rest of karat relies on.

    A directory of adapters, as peft and TRL write them, is the model that it names with the adapters added into the weights.

    Args:
        attention: "tree" = flat rows of trees, and plain SDPA otherwise; "sdpa" = what transformers chooses.
        device: None = where this process works.    for_training: True = weights require gradients; dropout is off either way.
        fast: route linear layers and norms through `kernels` (same values to rounding, different last bits).
        products: dtype of the matrix products under weights of `dtype` (`narrow`); None = `dtype`. Needs `fast`.
    Raises: CheckpointError (one line) for a missing or pickled or damaged checkpoint, no tokenizer, no EOS, an
        encoder-decoder, or a model whose hidden states or logits karat cannot reproduce.
    """
    keep_few_products()
    path = Path(path)
    check_files(path)
    adapted = holds_adapters(path)
    base = _base_of(path) if adapted else path
    if adapted:
        check_files(base)
    config = model_config(base)
    if config.is_encoder_decoder:
        raise CheckpointError(f"{path}: unsupported kind: found an encoder-decoder; expected a decoder-only model")
    listed = config.architectures if isinstance(config.architectures, list) else []
    if (kind := str((listed or [""])[0])).endswith("Classification"):
        raise CheckpointError(
            f"{path}: found {kind}, which writes nothing (a reward model?); expected a language model"
        )
    tokenizer = model_tokenizer(path if has_tokenizer(path) else base)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{path}: the tokenizer has no EOS token; set eos_token in {SETTINGS}")
    # transformers' SDPA leaves out the soft cap on attention scores (Gemma 2), and not every release says so
    plain = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    implementation = TREE_ATTENTION if attention == "tree" else plain
    model = model_weights(base, AutoModelForCausalLM, config, dtype=dtype, attn_implementation=implementation)
    if adapted:
        model = with_adapters(model, path)
    model.to(device or devices.current()).eval().requires_grad_(for_training)
    eos_ids = _eos_ids(model, tokenizer, path)
    lm = LoadedLM(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=_pad_id(model, tokenizer, eos_ids),
        context_length=_context_length(path, config, tokenizer),
        path=str(path),
    )
    if fast:
        use_fast_kernels(model)
        use_narrow_products(model, products)
        use_fused_blocks(model)
    check_own_numbers(model, lm.pad_id, lm.path, by_tree=attention == "tree")
    return lm


def _base_of(path: Path) -> Path:
    """The model below a directory of adapters of a policy."""
    if (kind := adapter_settings(path).get("task_type")) not in (None, "CAUSAL_LM"):
        raise CheckpointError(
            f"{path}: found adapters of a {kind} model (a reward model?); expected a language model's"
        )
    return adapted_model(path)


def save_lm(lm: LoadedLM, directory: str | Path, *, metadata: Mapping[str, str]) -> Path:
    """Save model and tokenizer, complete or not at all, so that `AutoModelForCausalLM.from_pretrained` loads them.

    Args:
        metadata: who made it (run_id, snapshot_root …); goes into every safetensors header and, as section "karat",
            into config.json.
    Raises: InputError for a model with adapters: merge them first, or save them alone.
    """
    if isinstance(lm.model, PeftModel):
        raise InputError("save_lm: found a model with adapters; expected adapters.merged(lm), or use save_adapter")
    return _save(lm.model, lm.tokenizer, Path(directory), metadata)


def load_encoder(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    products: torch.dtype | None = None,
) -> LoadedEncoder:
    """Load a BERT-like encoder directory (sentence-transformers layout included).

    Args: device, products: as in `load_lm`, but for the attention's; None = `dtype`.
    Raises: CheckpointError (one line) for a missing, pickled or damaged checkpoint or a decoder.
    """
    path = Path(path)
    check_files(path)
    config = model_config(path)
    if config.is_encoder_decoder:
        raise CheckpointError(f"{path}: unsupported kind: found an encoder-decoder; expected a BERT-like encoder")
    tokenizer = model_tokenizer(path)
    model = model_weights(path, AutoModel, config, dtype=dtype, attn_implementation=None)
    model.to(device or devices.current()).eval()
    if not _sees_ahead(model):
        raise CheckpointError(f"{path}: unsupported kind: found a decoder; expected a BERT-like encoder")
    if products is not None:
        use_fast_kernels(model)
        use_narrow_products(model, products)
    limits = [_context_length(path, config, tokenizer), tokenizer.model_max_length]
    sentence = path / "sentence_bert_config.json"
    if sentence.exists():
        with damage_named(sentence, "the settings of an encoder", CheckpointError):
            limits.append(int(json.loads(sentence.read_text(encoding="utf-8"))["max_seq_length"]))
    return LoadedEncoder(model, tokenizer, min(limits), config.hidden_size, str(path))


def save_encoder(encoder: LoadedEncoder, directory: str | Path, *, metadata: Mapping[str, str]) -> Path:
    """Save an encoder as `save_lm` does a decoder; `AutoModel.from_pretrained` loads it."""
    return _save(encoder.model, encoder.tokenizer, Path(directory), metadata)


def _sees_ahead(model: PreTrainedModel) -> bool:
    """Whether the first token's hidden state depends on the tokens behind it."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=model.device)
    with torch.no_grad():
        first = model(input_ids=ids).last_hidden_state[:, 0]
    return not torch.equal(first[0], first[1])


def mean_pooled(
    model: nn.Module, input_ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], *, normalise: bool
) -> Float[Tensor, "B d"]:
    """Mean of the last hidden states over the tokens that count; scaled to length 1 if `normalise`."""
    hidden = model(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return nn.functional.normalize(pooled, dim=-1) if normalise else pooled


def model_config(path: Path) -> PreTrainedConfig:
    """The configuration of a model directory with safetensors weights, all dropout off."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: found no directory; expected a model directory with config.json")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: found no config.json; expected a transformers model directory")
    _check_weights(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the library checks fields with classes of errors of its own
        raise CheckpointError(f"{path}: unsupported kind: {_first_line(error)}") from error
    more = path / "generation_config.json"
    if more.exists():  # transformers goes on without one that it cannot read, and without the end tokens in it
        with damage_named(
            more, "a configuration of generation", CheckpointError, expected="JSON: restore it, or remove it"
        ):
            dict(json.loads(more.read_text(encoding="utf-8")))
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for pattern in PICKLED for file in path.glob(pattern))
        if pickled:
            raise CheckpointError(
                f"{path}: found pickled weights ({pickled[0]}); expected safetensors, because loading a pickle runs the "
                f"code in it. Convert it with save_pretrained"
            )
        raise CheckpointError(f"{path}: found no weights; expected *.safetensors")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: truncated or unreadable safetensors ({_first_line(error)})") from error


def model_weights(path: Path, kind: Any, config: PreTrainedConfig, *given: str, **options: Any) -> PreTrainedModel:
    """The model of a directory, all weights in it but a pooler's and the layers `given` elsewhere; kind: a transformers Auto class."""
    with quiet(silent=bool(given)):
        try:
            model, info = kind.from_pretrained(
                path, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            if isinstance(error, KeyError) and TREE_ATTENTION in error.args:
                raise CheckpointError(
                    f"{path}: unsupported kind: {config.model_type} picks its attention from a list of its own; expected a "
                    "model that uses transformers' attention interface, as Llama, Qwen, Mistral, Gemma, GPT-2 or OPT do"
                ) from error
            raise CheckpointError(f"{path}: unsupported kind or damaged weights: {_first_line(error)}") from error
    # of a weight of another shape the library tells the name first, then both shapes
    found = [one if isinstance(one, str) else str(one[0]) for one in (*info["missing_keys"], *info["mismatched_keys"])]
    wrong = sorted(key for key in found if "pooler" not in key and key.split(".")[0] not in given)
    if wrong:
        raise CheckpointError(
            f"{path}: unsupported kind or damaged weights: {len(wrong)} weights are missing or misshapen "
            f"(first: {wrong[0]}); expected all that {type(model).__name__} needs"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> tuple[int, ...]:
    listed = model.generation_config.eos_token_id
    more = [] if listed is None else listed if isinstance(listed, list | tuple) else [listed]
    if not all(isinstance(one, int) for one in more):
        raise CheckpointError(
            f"{path}: found eos_token_id {str(listed)[:40]!r}; expected token ids, in generation_config.json"
        )
    check_special_tokens(path, tokenizer, model.get_input_embeddings().weight.shape[0], more)
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *more]))


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> int:
    """The tokenizer's PAD unless it is an end token; else a spare row of the embedding; else any other token.

    The last is safe because masks and positions are explicit everywhere: no filler is ever read or trained on.
    """
    embedding = model.get_input_embeddings()
    n_rows = embedding.weight.shape[0]
    given = tokenizer.pad_token_id
    if given is not None and given not in eos_ids and given < n_rows:
        return given
    if isinstance(embedding, nn.Embedding) and embedding.padding_idx in eos_ids:
        embedding.padding_idx = None  # else the end token's embedding would get no gradient
        model.config.pad_token_id = None
    if len(tokenizer) < n_rows:
        tokenizer.add_special_tokens({"pad_token": "<|karat_pad|>"})
        model.config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        return tokenizer.pad_token_id
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in eos_ids and unknown < n_rows:
        return unknown
    return next(token for token in range(n_rows) if token not in eos_ids)


def _context_length(path: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None and tokenizer.model_max_length < 10**9:  # larger values mean "unknown" in tokenizer files
        limit = tokenizer.model_max_length
    if limit is None:
        raise CheckpointError(f"{path}: found no context length; expected max_position_embeddings in config.json")
    if not isinstance(limit, int | float) or limit < 1:
        raise CheckpointError(f"{path}: found a context of {limit!r} tokens in config.json; expected 1 or more")
    return int(limit)


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, metadata: Mapping[str, str]
) -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with filled_directory(directory) as partial:
        with quiet():
            model.save_pretrained(partial, state_dict=state_on_processor(model), max_shard_size="4GB")
            tokenizer.save_pretrained(partial)
        plain = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        plain["karat"] = dict(metadata)
        (partial / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for file in sorted(partial.glob("*.safetensors")):
            add_header_metadata(file, {**metadata, **LISTED})
        note_files(partial)
    return directory


@contextmanager
def quiet(*, silent: bool = False) -> Iterator[None]:
    """No progress bars of transformers: karat draws its own, and only there where it is asked for one.

    Args: silent: nor reports of heads that were left out.
    """
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    if silent:
        transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
