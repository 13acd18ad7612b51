"""Our side of the replay: `train_group` as in the bench, and every response it drew written down for the peer.

    python -m bench.ours.replay WORK.json

WORK.json: what `bench.ours.group` reads, and {responses: file that gets [iteration][response] as token ids, weights:
directory that gets the trained model}. One turn an iteration, and one more that writes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import transformers
from bench.inputs import hh_prompts
from bench.ours.group import group_config
from bench.ours.ppo import IterationClock
from bench.ours.scores import score_of
from bench.turns import Finished, Turns

from karat.lm.load import load_lm, save_lm
from karat.policy import group
from karat.policy.rollout import collect_rollout
from karat.records import Prompt


class Recorder:
    """`collect_rollout`, with the responses kept in the order of the bench's prompts."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.place = {prompt.id: i for i, prompt in enumerate(prompts)}
        self.responses: list[list[list[int]]] = []

    def __call__(self, *arguments, **named):
        rollout = collect_rollout(*arguments, **named)
        trees = sorted(zip(rollout.prompts, rollout.trees, strict=True), key=lambda pair: self.place[pair[0].id])
        self.responses.append([list(branch) for _, tree in trees for branch in tree.branches])
        return rollout


def main() -> None:
    """Load, train turn by turn, write."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    lm = load_lm(work["model"], for_training=True)
    prompts, _ = hh_prompts(work["n_prompts"])
    config, recorder = group_config(work), Recorder(prompts)
    turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
    # the recipe gives its samples to nobody, so the bench stands between it and its rollouts
    with mock.patch.object(group, "collect_rollout", recorder):
        clock = IterationClock(turns, config.n_sequences)
        group.train_group(lm, prompts, score_of(work["reward"]), config, seed=work["seed"], reporters=[clock])
    Path(work["responses"]).write_text(json.dumps(recorder.responses), encoding="utf-8")
    save_lm(lm, Path(work["weights"]), metadata={})
    turns.done(0)


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
