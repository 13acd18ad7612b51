"""A file of preferences that changed under the same run name: a new snapshot by content, the old one untouched."""

import pytest

from karat.config import build
from karat.errors import InputError
from karat.feedback.snapshot import read_snapshot
from karat.ledger.artifacts import directory_hash
from karat.ledger.manifest import read_manifests
from karat.pipeline.runs import run_once
from karat.pipeline.settings import RunConfig
from karat.progress import open_progress
from karat.rowfiles import write_rows
from tiny_models import tiny_checkpoint


def rows(n, better="good"):
    start = "\n\nHuman: {i}?\n\nAssistant: "
    return [
        {"chosen": start.format(i=i) + f"{better} {i}", "rejected": start.format(i=i) + f"bad {i}"} for i in range(n)
    ]


def test_a_changed_file_makes_a_new_snapshot_of_its_own_votes(tmp_path):
    tiny_checkpoint("qwen3", tmp_path / "model")
    settings = {
        "preferences": {"path": str(tmp_path / "rows.jsonl"), "model": str(tmp_path / "model")},
        "sft": {"epochs": 0.1},
        "collect": {"n_prompts": 4, "n_samples": 2, "max_new_tokens": 4},
        "ppo": {"rollout": {"max_new_tokens": 4}},
    }
    run = tmp_path / "run"
    hashes = []
    for content in (rows(40), [*rows(30), *rows(4, better="fine")], rows(40)):
        write_rows(tmp_path / "rows.jsonl", content)
        with open_progress() as progress:
            run_once(build(RunConfig, settings), seed=0, directory=run, progress=progress, until="collect")
        hashes.append(directory_hash(run / "snapshots" / "votes"))
    assert len(set(hashes)) == 1
    first, second = sorted((run / "snapshots").iterdir(), key=lambda path: len(path.name))
    assert len(read_snapshot(first).votes) == 40
    texts = {response.text for response in read_snapshot(second).responses.values()}
    assert len(read_snapshot(second).votes) == 34
    assert "fine 0" in texts
    assert "good 39" not in texts


def test_rows_of_two_equal_texts_are_said_to_be_left_out(tmp_path):
    tiny_checkpoint("qwen3", tmp_path / "model")
    alike = [{"chosen": row["chosen"], "rejected": row["chosen"]} for row in rows(50)]
    settings = {"preferences": {"path": str(tmp_path / "rows.jsonl"), "model": str(tmp_path / "model")}}
    settings |= {"sft": {"epochs": 0.1}, "collect": {"max_new_tokens": 4}, "ppo": {"rollout": {"max_new_tokens": 4}}}

    def read(content):
        write_rows(tmp_path / "rows.jsonl", content)
        with open_progress() as progress:
            run_once(build(RunConfig, settings), seed=0, directory=tmp_path / "run", progress=progress, until="sft")

    with pytest.raises(InputError, match=r"0 of 50 prompts have a comparison .* \(50 rows have two equal texts"):
        read(alike)
    read([*rows(40), *alike[40:43]])
    (source,) = (manifest for manifest in read_manifests(tmp_path / "run") if manifest.stage == "source")
    assert list(source.notes) == ["3 rows have two equal texts and were left out"]


@pytest.mark.parametrize("kind", ["preferences", "people"])
def test_what_texts_are_measured_by_is_an_input_of_a_source(tmp_path, kind):
    model = tmp_path / "model"
    tiny_checkpoint("qwen3", model)
    settings = {kind: {"model": str(model), "max_prompt_tokens": 60}, "sft": {"epochs": 0.1}}
    if kind == "people":
        settings["people"]["prompts"] = str(tmp_path / "rows.jsonl")
        content = [{"prompt": f"{i}?"} for i in range(80)]
    else:
        settings["preferences"]["path"] = str(tmp_path / "rows.jsonl")
        content = rows(80)
    write_rows(tmp_path / "rows.jsonl", content)
    settings |= {"collect": {"max_new_tokens": 4}, "ppo": {"rollout": {"max_new_tokens": 4}}}

    def resumed(**changes):
        with open_progress() as progress:
            config = build(RunConfig, settings | changes)
            run_once(config, seed=0, directory=tmp_path / "run", progress=progress, until="sft")
        return next(one for one in read_manifests(tmp_path / "run") if one.stage == "source")

    first = resumed()
    assert first.metrics["n_left_out"] == 0
    assert resumed() == first
    template = model / "chat_template.jinja"
    before = template.read_text()
    template.write_text(before.replace("assistant", "assistant who thinks"))
    assert resumed().key != first.key
    template.write_text(before.replace("assistant", "assistant who thinks, and thinks, and only then answers"))
    with pytest.raises(InputError, match="0 of 80 prompts"):
        resumed()
    # another room for responses is measured, too, before anything is trained
    template.write_text(before)
    with pytest.raises(InputError, match="room wanted for 128 response tokens"):
        resumed(ppo={"rollout": {"max_new_tokens": 128}})
