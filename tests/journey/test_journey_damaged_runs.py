"""Policies, snapshots and runs whose files were damaged: one line that names the file, and what was there stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from journeys import SANDBOX, karat, write_config, write_rows
from test_journey_damage import flipped, garbage, half, put, tensors, text

from karat import progress
from karat.errors import LedgerError
from karat.feedback.snapshot import read_snapshot
from karat.lm.checksums import SUMS

RUN = Path("runs/tiny")
POLICY, VOTES = RUN / "models/ppo", RUN / "snapshots/votes"
GENERATE = ("generate", POLICY, "prompts.jsonl", "--max-new-tokens", "4", "--out", "answers.jsonl")
EXPORT = ("export", VOTES, "--format", "conversational", "--out", "answers.jsonl")


def swapped(file: Path) -> None:
    first, second, *rest = file.read_text().split("\n")
    file.write_text("\n".join([second, first, *rest]))


def first_line_gone(file: Path) -> None:
    file.write_text(file.read_text().partition("\n")[2])


def bent(file: Path) -> None:
    """A number of it is another."""
    content = json.loads(file.read_text())
    content["policies"]["sft"]["gold"]["value"] += 1
    file.write_text(json.dumps(content))


def another_step(file: Path) -> None:
    file.write_text(file.read_text().replace('"step": 1,', '"step": 7,'))


DAMAGES: dict[str, tuple[tuple[object, ...], Path, Callable[[Path], object], str]] = {
    "weights of NaN": (GENERATE, POLICY / "model.safetensors",
                       tensors(lambda found: [one.fill_(float("nan")) for one in found.values()]), "is not finite; expected finite weights"),
    "a weight of another shape": (GENERATE, POLICY / "model.safetensors",
                                  tensors(lambda found: found.update({"model.norm.weight": found["model.norm.weight"][:3].clone()})),
                                  "1 weights are missing or misshapen (first: model.norm.weight)"),
    "end tokens cut": (GENERATE, POLICY / "generation_config.json", half, "generation_config.json: not readable"),
    "end tokens of text": (GENERATE, POLICY / "generation_config.json", put(eos_token_id="x"), "found eos_token_id 'x'"),
    "a tokenizer's length": (GENERATE, POLICY / "tokenizer_config.json", put(model_max_length="x"), "found model_max_length 'x'"),
    "no context": (GENERATE, POLICY / "config.json", put(max_position_embeddings=-1), "found a context of -1 tokens"),
    "a template cut": (GENERATE, POLICY / "chat_template.jinja", half, f"chat template of {POLICY}"),
    "prompts swapped": (EXPORT, VOTES / "prompts.jsonl", swapped, "prompts.jsonl: found"),
    "responses swapped": (EXPORT, VOTES / "responses.jsonl", swapped, "responses.jsonl: found"),
    "a rater gone": (EXPORT, VOTES / "annotators.jsonl", first_line_gone, "annotators.jsonl: rows are missing or added"),
    "commitments swapped": (EXPORT, VOTES / "commitments.jsonl", swapped, "commitments.jsonl: records are out of order"),
    "a judgement gone": (EXPORT, VOTES / "judgements.jsonl", garbage, "judgements.jsonl:1: not readable"),
    "a snapshot's head": (EXPORT, VOTES / "snapshot.json", put(n_judgements="x"), "snapshot.json: not readable"),
    "brackets without end": (EXPORT, VOTES / "words.jsonl", text("[" * 5000), "words.jsonl:1: not readable"),
    "settings cut": (("report", RUN), RUN / "config.json", half, "config.json: not readable as the settings of a run"),
    "settings gone": (("report", RUN), RUN / "config.json", Path.unlink, "config.json: not readable as the settings of a run"),
    "settings of another kind": (("audit", RUN, "--look-inside"), RUN / "config.json", put(seed="x"), "config.json: not readable"),
    "prompts gone in an audit": (("audit", RUN, "--look-inside"), RUN / "data/prompts.jsonl", text(""), "data/prompts.jsonl: altered since source"),
    "a manifest gone in an audit": (("audit", RUN, "--look-inside"), RUN / "manifests/source.json", Path.unlink, "manifests/source.json: found no such manifest"),
    "a sample flipped in an audit": (("audit", RUN, "--look-inside"), RUN / "data/sft_samples.jsonl", flipped, "sft_samples.jsonl: altered since collect"),
    "an evaluation cut": (("report", RUN), RUN / "evaluation.json", half, "evaluation.json: altered since evaluate wrote it"),
    "another evaluation": (("report", RUN), RUN / "evaluation.json", bent, "evaluation.json: altered since evaluate wrote it"),
    "no evaluation": (("report", RUN), RUN / "evaluation.json", Path.unlink, "evaluation.json: found no such file"),
    "metrics cut": (("report", RUN), RUN / "metrics/ppo.jsonl", half, "metrics/ppo.jsonl: altered since ppo wrote it"),
}  # fmt: skip


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_one_line(case: str):
    command, file, spoil, words = DAMAGES[case]
    write_rows(Path("prompts.jsonl"), [{"prompt": "say a"}])
    report = (RUN / "report.html").read_bytes()
    (file.parent / SUMS).write_text(";\n")  # looked at no more than that of an older karat
    spoil(file)
    outcome = karat(*command)
    assert words in outcome.complaint
    assert not Path("answers.jsonl").exists()
    assert (RUN / "report.html").read_bytes() == report


@pytest.mark.usefixtures("copied")
def test_a_report_does_without_metrics_that_are_not_there():
    (RUN / "metrics/reward.jsonl").unlink()
    assert karat("report", RUN).code == 0


@pytest.mark.usefixtures("copied")
def test_a_vote_never_names_a_response_to_another_prompt():
    head = json.loads((VOTES / "snapshot.json").read_text())
    del head["names_hash"]  # as in snapshots that older versions wrote
    (VOTES / "snapshot.json").write_text(json.dumps(head))
    assert read_snapshot(VOTES).root == head["root"]
    first_line_gone(VOTES / "responses.jsonl")
    with pytest.raises(LedgerError, match=r"found a response to another prompt|found b outside 0 … \d+"):
        read_snapshot(VOTES)


@pytest.fixture
def stopped(here: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted in its policy, with a checkpoint."""
    import shutil

    shutil.copytree(finished, here, dirs_exist_ok=True)
    for stage in ("ppo", "evaluate"):
        (RUN / "manifests" / f"{stage}.json").unlink()
    reach = progress._LineStage._reach

    def stop(bar: progress._LineStage, done: float, figures) -> None:
        reach(bar, done, figures)
        if bar.name == "ppo" and done >= 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress._LineStage, "_reach", stop)
        assert karat("run", write_config(SANDBOX)).code == 130
    return RUN / "checkpoints/ppo"


STOPPED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "state cut": ("loop/step-00000001/state.json", half, "step-00000001: not readable as a checkpoint"),
    "state gone": ("loop/step-00000001/state.json", Path.unlink, "step-00000001: not readable as a checkpoint"),
    "another step": ("loop/step-00000001/state.json", another_step, "found step 7"),
    "weights cut": ("loop/step-00000001/policy.module", half, "policy.module: truncated or unreadable"),
    "a weight flipped": ("loop/step-00000001/policy.module", flipped, "policy.module: found other bytes"),
    "a moment flipped": ("loop/step-00000001/policy.optimiser", flipped, "policy.optimiser: found other bytes"),
    "weights gone": ("loop/step-00000001/policy.module", Path.unlink, "policy.module"),
    "moments garbage": ("loop/step-00000001/policy.optimiser", garbage, "policy.optimiser: truncated or unreadable"),
    "mark cut": ("try.json", half, "try.json: not readable as the mark of an unfinished stage"),
    "mark of nothing": ("try.json", text("[]"), "try.json: not readable as the mark of an unfinished stage"),
    "devices of bytes": ("devices", garbage, "devices: not readable as the devices of a stage"),
    "figures cut": ("usual.json", half, "usual.json: not readable as figures"),
}


def test_a_stopped_run_of_damaged_checkpoints(stopped: Path):
    for case, (name, spoil, words) in STOPPED.items():
        whole = (stopped / name).read_bytes()
        beside = (stopped / name).with_name(SUMS)
        listed = beside.read_bytes() if beside.exists() and spoil is not flipped else None
        if listed is not None:
            beside.unlink()  # as of an older karat
        spoil(stopped / name)
        outcome = karat("run", "tiny.yaml")
        assert words in outcome.complaint, case
        assert "remove " in outcome.complaint, case
        (stopped / name).write_bytes(whole)
        if listed is not None:
            beside.write_bytes(listed)
    # what says only how long it took, or was cut by a kill, is no obstacle
    (stopped / "seconds").write_text("x")
    with (RUN / "metrics/ppo.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "kl": 0.\n\xff\n')
    assert karat("run", "tiny.yaml").code == 0
    assert karat("verify", RUN).code == 0
