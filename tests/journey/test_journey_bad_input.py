"""What is wrong with the input is one line that says what was found; nothing is half-written."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from journeys import SANDBOX, karat, manifests, n_votes, write_config, write_rows

from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.pipeline.data import one_rater
from tiny_models import tiny_checkpoint, tiny_tokenizer

VOTE = {"prompt": "Which?", "a": "this", "b": "that", "choice": "a", "annotator": "ann"}
PAIR = {"prompt": "Which?", "chosen": "this", "rejected": "that"}


def as_text(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("rows.jsonl", None, "rows.jsonl: no such file"),
    "empty": ("rows.jsonl", b"", "rows.jsonl: the file is empty; expected rows"),
    "blank": ("rows.jsonl", b"\n \n", "rows.jsonl: found no rows; expected one JSON object a line"),
    "truncated": ("rows.jsonl.gz", gzip.compress(as_text(VOTE) * 50)[:-12], "the file is truncated"),
    "not gzip": ("rows.jsonl.gz", as_text(VOTE), "rows.jsonl.gz: found no gzip data"),
    "cut off": (
        "rows.jsonl",
        as_text(VOTE) + b'{"prompt": "Wh',
        "rows.jsonl:2: found no complete JSON object (cut off)",
    ),
    "not an object": ("rows.jsonl", as_text(VOTE, [1]), "rows.jsonl:2: found [1]; expected a JSON object"),
    "not UTF-8": ("rows.jsonl", as_text(VOTE) + b"\xff\n", "found bytes that are not UTF-8"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("kind", ["votes", "preferences", "hh"])
def test_import_of_a_file_that_cannot_be_read(here: Path, case: str, kind: str):
    name, content, words = FILES[case]
    if content is not None:
        rows = as_text(PAIR) if kind == "preferences" else as_text(hh("a", "b"))
        Path(name).write_bytes(content if kind == "votes" else content.replace(as_text(VOTE), rows))
    refused(words, "import", name, "--format", kind, "--store", "karat.db")
    assert_empty_store(here)


def hh(good: str, bad: str) -> dict[str, str]:
    start = "\n\nHuman: Which?\n\nAssistant: "
    return {"chosen": start + good, "rejected": start + bad}


def refused(words: str, *arguments: object) -> None:
    """The command fails with one line on standard error that holds the words, and nothing on standard output."""
    outcome = karat(*arguments)
    assert outcome.code == 2
    assert words in outcome.complaint
    assert (outcome.err.count("\n"), outcome.out) == (1, "")


def assert_empty_store(place: Path) -> None:
    assert n_votes(place) == 0
    assert not list(place.rglob("manifests/*"))


ROWS: dict[str, tuple[str, list[dict[str, Any]], tuple[str, ...]]] = {
    "no choice": ("votes", [VOTE, {k: v for k, v in VOTE.items() if k != "choice"}], ("rows.jsonl:2", "choice")),
    "no text": ("votes", [VOTE, {k: v for k, v in VOTE.items() if k != "b"}], ("rows.jsonl:2", "'b'")),
    "a number": ("votes", [VOTE, {**VOTE, "annotator": 7}], ("rows.jsonl:2", "'annotator'", "expected text")),
    "a wrong choice": ("votes", [VOTE, {**VOTE, "choice": "c"}], ("rows.jsonl:2", "'c'")),
    "a level out of range": ("votes", [{k: v for k, v in VOTE.items() if k != "choice"} | {"level": 5, "n_levels": 5}],
                             ("rows.jsonl:1", "5")),
    "an unknown field": ("votes", [VOTE, {**VOTE, "anotator": "x"}], ("rows.jsonl:2", "did you mean 'annotator'?")),
    "no rejected": ("preferences", [PAIR, {"prompt": "Which?", "chosen": "x"}], ("rows.jsonl:2", "'rejected'")),
    "a list": ("preferences", [PAIR, {**PAIR, "chosen": [1]}], ("rows.jsonl:2",)),
    "no chosen": ("hh", [hh("a", "b"), {"rejected": "x"}], ("rows.jsonl:2", "'chosen'")),
    "another prompt": ("hh", [hh("a", "b"), {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: y"}],
                       ("rows.jsonl:2",)),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_import_of_a_row_that_is_wrong(here: Path, case: str):
    kind, rows, words = ROWS[case]
    write_rows(Path("rows.jsonl"), rows)
    for word in words:
        refused(word, "import", "rows.jsonl", "--format", kind, "--store", "karat.db")
    assert_empty_store(here)


def test_an_id_that_does_not_exist(here: Path):
    write_rows(Path("texts.jsonl"), [{"id": "1", "prompt": "Which?", "text": "this"}])
    write_rows(Path("rows.jsonl"), [{"a": "1", "b": "9", "choice": "a", "annotator": "ann"}])
    command = ("import", "rows.jsonl", "--format", "votes", "--texts", "texts.jsonl", "--store", "karat.db")
    refused("rows.jsonl:1", *command)
    refused("'9'", *command)
    assert_empty_store(here)
    write_config({"votes": {"path": "rows.jsonl", "texts": "texts.jsonl"}})
    assert "'9'" in karat("run", "tiny.yaml").complaint
    assert_empty_store(here / "runs" / "votes")


def test_a_run_on_files_that_are_not_there(here: Path):
    write_config({"votes": {"path": "rows.jsonl"}})
    assert "rows.jsonl: no such file" in karat("run", "tiny.yaml").complaint
    tiny_checkpoint("qwen3", here / "model")
    write_config({"preferences": {"path": "rows.jsonl", "model": "model"}})
    assert "rows.jsonl: no such file" in karat("run", "tiny.yaml").complaint
    write_config({"preferences": {"path": "rows.jsonl", "model": "nowhere"}})
    assert "nowhere: found no directory" in karat("run", "tiny.yaml").complaint
    assert not list(here.rglob("manifests/*"))


def no_tokenizer(model: Path) -> None:
    for file in model.glob("*token*"):
        file.unlink()


def no_eos(model: Path) -> None:
    tokenizer = tiny_tokenizer("qwen3")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")


def truncated(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def encoder(model: Path) -> None:
    from transformers import BertConfig, BertModel

    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 272}
    shutil.rmtree(model)
    BertModel(BertConfig(hidden_size=32, max_position_embeddings=128, **shape)).save_pretrained(model)
    tiny_tokenizer("qwen3").save_pretrained(model)


def encoder_decoder(model: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shutil.rmtree(model)
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=272)
    T5ForConditionalGeneration(config).save_pretrained(model)
    tiny_tokenizer("qwen3").save_pretrained(model)


def unknown_kind(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "abacus"}')


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (no_tokenizer, "model: found no tokenizer; expected tokenizer.json"),
    "no EOS": (no_eos, "model: the tokenizer has no EOS token; set eos_token"),
    "pickled": (pickled, "model: found pickled weights (pytorch_model.bin); expected safetensors"),
    "truncated": (truncated, "truncated or unreadable safetensors"),
    "encoder": (encoder, "model: unsupported kind"),
    "encoder-decoder": (encoder_decoder, "unsupported kind: found an encoder-decoder; expected a decoder-only model"),
    "unknown": (unknown_kind, "model: unsupported kind"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:If you want to use `BertLMHeadModel`")
def test_a_checkpoint_that_cannot_be_used(here: Path, case: str):
    spoil, words = CHECKPOINTS[case]
    spoil(tiny_checkpoint("qwen3", here / "model"))
    write_rows(Path("rows.jsonl"), [hh("a", "b")])
    write_config({"preferences": {"path": "rows.jsonl", "model": "model"}})
    refused(words, "run", "tiny.yaml")
    assert_empty_store(here / "runs" / "run")
    write_rows(Path("prompts.jsonl"), [{"prompt": "Which?"}])
    assert words in karat("generate", "model", "prompts.jsonl", "--out", "answers.jsonl").complaint
    assert not Path("answers.jsonl").exists()


def test_prompts_longer_than_the_context(here: Path):
    tiny_checkpoint("qwen3", here / "model")  # a context of 128 tokens, one a byte
    start = "\n\nHuman: " + "why " * 40 + "{}?\n\nAssistant: "
    rows = [{"chosen": start.format(i) + "yes", "rejected": start.format(i) + "no"} for i in range(40)]
    write_rows(Path("rows.jsonl"), rows)
    write_config({"preferences": {"path": "rows.jsonl", "model": "model"}, "allow_ungated_reward": True})
    complaint = karat("run", "tiny.yaml").complaint
    assert "128" in complaint
    assert "the model's context" in complaint
    assert manifests(here / "runs" / "run") == {}
    write_rows(Path("prompts.jsonl"), [{"prompt": "short"}, {"prompt": "why " * 40}])
    complaint = karat("generate", "model", "prompts.jsonl", "--out", "answers.jsonl").complaint
    assert "expected at most 128" in complaint
    assert not Path("answers.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "ppo.reward.kl_coeff=1"), "unknown configuration key 'ppo.reward.kl_coeff'; did you mean 'ppo.reward.kl_coef'?"),
        (("--set", "ppo.reward.kl_coef"), "--set ppo.reward.kl_coef: expected `key.sub=value`"),
        (("--set", "ppo.n_iterations=many"), "ppo.n_iterations: found 'many'; expected a whole number"),
        (("--set", "ppo.n_iterations=[1,"), "--set ppo.n_iterations=[1,"),
        (("--set", "ppo.n_iterations.deep=1"), "--set ppo.n_iterations.deep=1"),
        (("--set", "aggregator=wisdom"), "aggregator: found 'wisdom'; expected one of"),
        (("--sweep", "ppo.n_iterations"), "--sweep ppo.n_iterations: expected key=value,value"),
        (("--sweep", "ppo.n_iterations="), "--sweep ppo.n_iterations=: expected key=value,value"),
        (("--sweep", "=1,2"), "--sweep =1,2: expected key=value,value"),
        (("--sweep", "seed=1,2"), "--sweep seed=1,2: expected --seeds 1,2"),
        (("--sweep", "name=a,b"), "--sweep name=a,b: expected another key"),
        (("--sweep", "ppo.n_iterations=1,,2"), "--sweep ppo.n_iterations=1,,2: found an empty value"),
        (("--sweep", "ppo.n_iterations=1,2,1"), "--sweep ppo.n_iterations=1,2,1: found 1 twice"),
        (("--sweep", "collect.overlap=1,2", "--sweep", "collect.overlap=3"), "--sweep collect.overlap=3: found collect.overlap in two"),
        (("--sweep", "ppo.nothing=1,2"), "unknown configuration key 'ppo.nothing'"),
        (("--seeds", "4-0"), "--seeds 4-0: expected numbers"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("here")
def test_options_that_cannot_be_used(arguments: tuple[str, str], words: str):
    refused(words, "run", write_config(SANDBOX), *arguments)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("here")
def test_configurations_that_cannot_be_used():
    refused("nowhere.yaml: no such file", "run", "nowhere.yaml")
    refused("unknown configuration key 'sandbocks'; did you mean 'sandbox'?", "run", write_config({"sandbocks": {}}))
    refused("found none of `sandbox`, `preferences` and `people`", "run", write_config({"name": "x"}))
    refused(
        "unknown configuration key 'votes.pth'; did you mean 'votes.path'?", "run", write_config({"votes": {"pth": 1}})
    )
    refused("missing configuration key 'votes.path'", "run", write_config({"votes": {}}))
    Path("tiny.yaml").write_text("a: [")
    refused("not readable as YAML", "run", "tiny.yaml")
    refused("no-kl", "demo", "--fault", "gravity")
    for command in ("trace", "report"):
        refused("expected the directory of a run", command, "nowhere")
    refused("nowhere: nothing is there; expected a run, a model, a store", "verify", "nowhere")
    assert not Path("runs").exists()


@pytest.mark.usefixtures("here")
def test_options_that_a_run_on_votes_does_not_have():
    """Nothing that was asked for is passed over in silence."""
    write_rows(Path("rows.jsonl"), [VOTE])
    write_config({"votes": {"path": "rows.jsonl"}})
    refused("--sweep", "run", "tiny.yaml", "--sweep", "ngram_l2=1,2")
    refused("ppo", "ppo", "tiny.yaml")


def test_a_store_of_a_newer_version(here: Path):
    write_rows(Path("rows.jsonl"), [VOTE])
    command = ("import", "rows.jsonl", "--format", "votes", "--store", "karat.db")
    assert karat(*command).code == 0
    with sqlite3.connect("karat.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = Path("karat.db").read_bytes()
    refused("found a store of version '9999'", *command)
    assert Path("karat.db").read_bytes() == before
    run = here / "runs" / "tiny"
    run.mkdir(parents=True)
    shutil.copy("karat.db", run / "karat.db")
    assert "found a store of version '9999'" in karat("collect", write_config(SANDBOX)).complaint
    assert "collect" not in manifests(run)


def votes_config(rows: list[dict[str, Any]]) -> Path:
    write_rows(Path("rows.jsonl"), rows)
    tiny_checkpoint("qwen3", Path("model"))
    reward = {"n_epochs": 1, "heads": {"n_heads": 2}}
    return write_config({"votes": {"path": "rows.jsonl"}, "decoder": "model", "n_folds": 2, "reward": reward})


def votes(choice: str, raters: list[str], n: int = 24) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {i % 4}?", "topic": f"t{i % 4}", "a": f"yes {i}", "b": f"no {i} no", "annotator": rater,
         "choice": choice or "ab"[i % 2]}
        for i in range(n) for rater in raters
    ]  # fmt: skip


def test_votes_that_are_all_ties(here: Path):
    complaint = karat("run", votes_config(votes("tie", ["ann", "bob", "cat"]))).complaint
    assert "tie" in complaint
    assert not (here / "runs/votes/manifests/reward.json").exists()


def test_one_rater_only(here: Path):
    config = votes_config(votes("", ["ann"]))
    refused("reward: all votes are of one rater only; expected at least two", "run", config)
    assert set(manifests(here / "runs/votes")) == {"collect"}  # the import is done, and no vote is lost
    assert not (here / "runs/votes/models").exists()
    train = ("reward", "--store", "runs/votes/karat.db", "--model", "model", "--out", "reward")
    assert "nowhere.db" in karat("reward", "--store", "nowhere.db", "--model", "model", "--out", "reward").complaint
    assert not Path("nowhere.db").exists()  # a name mistyped makes no empty store
    assert "one rater only" in karat(*train).complaint
    assert not Path("reward").exists()
    assert karat(*train, "--set", "allow_one_rater=true", "--set", "reward.n_epochs=1").code == 0
    allowed = karat("run", config, "--set", "allow_one_rater=true")
    assert allowed.code == 0, allowed.err
    assert allowed.out.startswith("UNSAFE: allow_one_rater is set")
    assert json.loads((here / "runs/votes/summary.json").read_text())["unsafe"]
    assert "one rater only" in karat("run", config).complaint  # a finished reward does not stand in for the permission


def test_a_file_of_votes_that_changed_under_the_same_name(here: Path):
    config = votes_config(votes("tie", ["ann", "bob"], n=2))
    assert "tie" in karat("run", config).complaint
    stored = n_votes(here / "runs/votes")
    refused("Choose another `name`", "run", votes_config(votes("a", ["ann", "bob"], n=3)))
    assert n_votes(here / "runs/votes") == stored


def test_a_run_whose_questions_one_rater_answered(here: Path):
    one = ("--set", "sandbox.raters.n_raters=1", "--set", "collect.overlap=1")
    assert "one rater only" in karat("run", write_config(SANDBOX), *one).complaint
    assert set(manifests(here / "runs/tiny")) == {"source", "base", "sft", "collect"}
    assert n_votes(here / "runs/tiny") > 0


def test_votes_that_name_nobody_may_be_of_many():
    assert one_rater({"ann"})
    assert not one_rater({"ann", "bob"})
    assert not one_rater({UNKNOWN_ANNOTATOR})
