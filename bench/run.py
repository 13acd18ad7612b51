"""The benches: karat beside its peers, the same weights, inputs, threads and optimiser steps on both sides.

    python bench/run.py [--work reward|ppo|ppo-k4|ppo-bf16|ppo-k4-bf16|rloo|grpo|dpo|sft|sample|sample-150k|efficiency-reward|efficiency-ppo|memory-ppo|memory-ppo-k4|memory-rloo|load|all] [--quick]
    python bench/run.py --long [--work ranking|time-to-score|ukp|ukp-curve|real-data|real-marks|methods|hybrid|process|dense|growth|gao|far-top|asking|bounds|coverage|mixture|people|last-layer|all]

Standard output has one JSON object a row; progress goes to standard error. docs/benchmarks.md says what each figure
means.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file, not as `python -m bench`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.environments import PPO_PEER, REWARD_PEER, trl_python
from bench.rows import TARGETS, beside_the_faster, equal_steps, row, take_turns
from bench.turns import ROOT, WORK, Worker, start_pair

THREADS = int(os.environ.get("KARAT_BENCH_THREADS", "2"))
PPO_WORK = {
    "max_new_tokens": 48,
    "n_epochs": 4,
    "n_minibatches": 4,
    "learning_rate": 3e-6,
    "kl_coef": 0.05,
    "adam_eps": 1e-8,
}
N_ITERATIONS = {"small": 9, "medium": 5}
"""Of an online row, the warm-up included."""


def reward_row(*, quick: bool) -> dict[str, Any]:
    """Reward training on HH pairs: pairs a second, and the largest difference between the losses of a step."""
    from bench.inputs import hh_pairs

    n_warm, n_steps, pairs_per_step = (1, 5, 16) if quick else (2, 20, 16)
    pairs = hh_pairs(n_steps * pairs_per_step)
    ours, theirs = _reward_pair("reward", pairs.token_ids, n_steps, pairs_per_step)
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_steps - n_warm, label="reward")
    result = row("reward", "pairs/s", turns[n_warm:], ours, theirs, threads=THREADS)
    gaps = [abs(turn.ours["loss"] - turn.theirs["loss"]) for turn in turns]
    n_tokens = sum(len(a) + len(b) for a, b in pairs.token_ids)
    return result | {
        "max_loss_gap": max(gaps),
        "losses_equal": max(gaps) <= 1e-4,
        "n_losses": len(gaps),
        "tokens_a_pair": {
            "as_rows": round(n_tokens / len(pairs.token_ids)),
            "as_trees": round((n_tokens - pairs.shared_tokens) / len(pairs.token_ids)),
        },
    }


def ranking_row(*, quick: bool) -> dict[str, Any]:
    """Reward training on rankings of four, beside the peer's on the three neighbouring pairs of each: rankings a second."""
    from bench.inputs import hh_rankings

    n_warm, n_steps, rankings_per_step = (1, 4, 5) if quick else (2, 12, 5)
    rankings = hh_rankings(n_steps * rankings_per_step)
    ours, theirs = _reward_pair(
        "ranking", rankings.token_ids, n_steps, 3 * rankings_per_step, rankings_per_step=rankings_per_step
    )
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_steps - n_warm, label="ranking")
    return row("ranking", "rankings/s", turns[n_warm:], ours, theirs, threads=THREADS)


def ppo_row(
    name: str,
    n_prompts: int,
    n_samples: int,
    *,
    quick: bool,
    dtype: str = "float32",
    peer_dtype: str = "float32",
    size: str = "small",
) -> dict[str, Any]:
    """One PPO iteration: samples a second, and the seconds of its parts on our side."""
    from bench.inputs import hh_prompts
    from bench.models import checkpoint, classifier

    n_warm, n_iterations = 1, 3 if quick else N_ITERATIONS[size]
    work = PPO_WORK | {
        "n_prompts": n_prompts,
        "n_samples": n_samples,
        "size": size,
        "model": str(checkpoint(size)),
        "classifier": str(classifier(size)),
        "prompts": hh_prompts(n_prompts)[1],
        "n_iterations": n_iterations,
        "reward": "model",
        "seed": 0,
        "threads": THREADS,
        "output": str(WORK / "trl_ppo"),
        "dtype": dtype,
        "peer_dtype": peer_dtype,
    }
    ours, theirs = _pair(name, work, "bench.ours.ppo", "bench.peers.trl_ppo", trl_python(PPO_PEER))
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_iterations - n_warm, label=name)
    n_steps = equal_steps(name, turns)
    timed = turns[n_warm:]
    parts = {part: statistics.median(turn.ours["parts"][part] for turn in timed) for part in timed[0].ours["parts"]}
    return row(name, "samples/s", timed, ours, theirs, threads=THREADS) | {
        "optimiser_steps": n_steps,
        "seconds_ours": {part: round(seconds, 3) for part, seconds in parts.items()},
    }


def narrow_ppo_row(name: str, n_prompts: int, n_samples: int, *, quick: bool) -> dict[str, Any]:
    """The same with our products in bfloat16, beside the peer in float32 and in its mixed precision: the faster peer counts.

    Weights are float32 everywhere: those of a peer whose weights are bfloat16 do not move at this learning rate.
    """
    row_beside = partial(ppo_row, name, n_prompts, n_samples, quick=quick, dtype="bfloat16")
    return beside_the_faster({peer: row_beside(peer_dtype=peer) for peer in ("float32", "bfloat16")})


def group_row(name: str, *, quick: bool, size: str = "small") -> dict[str, Any]:
    """One RLOO or GRPO iteration, 16 prompts × 8 samples, one optimiser step: samples a second."""
    from bench.inputs import hh_prompts
    from bench.models import checkpoint, classifier, hh_ids

    n_warm, n_iterations = 1, 3 if quick else N_ITERATIONS[size]
    work = {
        "method": name,
        "size": size,
        "n_prompts": 16,
        "n_samples": 8,
        "max_new_tokens": 48,
        "n_minibatches": 1,
        "reward": "model",
        "learning_rate": 3e-6,
        "kl_coef": 0.05,
        "adam_eps": 1e-8,
        "model": str(checkpoint(size)),
        "classifier": str(classifier(size)),
        "prompts": hh_prompts(16)[1],
        "eos_id": hh_ids()[0],
        "n_iterations": n_iterations,
        "seed": 0,
        "threads": THREADS,
        "output": str(WORK / f"trl_{name}"),
    }
    ours, theirs = _pair(name, work, "bench.ours.group", "bench.peers.trl_group", trl_python(REWARD_PEER))
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_iterations - n_warm, label=name)
    n_steps = equal_steps(name, turns)
    timed = turns[n_warm:]
    parts = {part: statistics.median(turn.ours["parts"][part] for turn in timed) for part in timed[0].ours["parts"]}
    scores = {side: statistics.mean(getattr(turn, side)["score"] for turn in turns) for side in ("ours", "theirs")}
    return row(name, "samples/s", timed, ours, theirs, threads=THREADS) | {
        "optimiser_steps": n_steps,
        "seconds_ours": {part: round(seconds, 3) for part, seconds in parts.items()},
        "mean_score": {side: round(score, 4) for side, score in scores.items()},
    }


def memory_row(made: Callable[..., dict[str, Any]], *, quick: bool) -> dict[str, Any]:
    """A row of the "medium" model, for its memory: theirs over ours, each side's peak less what it held before its first turn."""
    found = made(quick=quick, size="medium")
    ratio, work = found["ratio_memory_of_work"], f"memory-{found['work']}"
    return found | {
        "work": work, "unit": "peak bytes", "speed_ratio": found["ratio"], "ratio": ratio,
        "target": TARGETS[work], "met": ratio >= TARGETS[work],
    }  # fmt: skip


def dpo_row(name: str, *, precompute: bool, quick: bool) -> dict[str, Any]:
    """One DPO step on HH pairs: pairs a second, and the largest difference between the losses of a step."""
    from bench.inputs import hh_pairs
    from bench.models import checkpoint

    n_warm, n_steps, pairs_per_step = (1, 4, 16) if quick else (2, 9, 16)
    pairs = hh_pairs(n_steps * pairs_per_step)
    work = {
        "model": str(checkpoint("medium")),
        "triples": pairs.triples,
        "n_steps": n_steps,
        "pairs_per_step": pairs_per_step,
        "learning_rate": 1e-5,
        "beta": 0.1,
        "precompute": precompute,
        "max_grad_norm": 1.0,
        "token_budget": 4096,
        "threads": THREADS,
        "output": str(WORK / f"trl_{name}"),
    }
    ours, theirs = _pair(name, work, "bench.ours.dpo", "bench.peers.trl_dpo", trl_python(REWARD_PEER))
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_steps - n_warm, label=name)
    gaps = [abs(turn.ours["loss"] - turn.theirs["loss"]) for turn in turns]
    return row(name, "pairs/s", turns[n_warm:], ours, theirs, threads=THREADS) | {
        "reference": "before the first step" if precompute else "in every step",
        "max_loss_gap": max(gaps),
        "losses_equal": max(gaps) <= 1e-4,
        "n_losses": len(gaps),
    }


def sft_row(*, quick: bool) -> dict[str, Any]:
    """One SFT step on HH conversations, packed on both sides: tokens learnt a second."""
    from bench.inputs import hh_texts
    from bench.models import checkpoint

    n_warm, n_steps, rows_per_step, row_tokens = (1, 4, 4, 1024) if quick else (2, 14, 4, 1024)
    texts = hh_texts(n_steps * rows_per_step * row_tokens, longest=row_tokens)
    work = {
        "model": str(checkpoint("medium")),
        "texts": texts,
        "texts_per_step": len(texts) // n_steps,
        "rows_per_step": rows_per_step,
        "row_tokens": row_tokens,
        "n_steps": n_steps,
        "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "token_budget": 4096,
        "threads": THREADS,
        "output": str(WORK / "trl_sft"),
    }
    ours, theirs = _pair("sft", work, "bench.ours.sft", "bench.peers.trl_sft", trl_python(REWARD_PEER))
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_steps - n_warm, label="sft")
    means = {side: statistics.mean(getattr(turn, side)["loss"] for turn in turns) for side in ("ours", "theirs")}
    # the same texts in another order a step, so that only means over steps compare
    return row("sft", "tokens/s", turns[n_warm:], ours, theirs, threads=THREADS) | {
        "mean_loss": {side: round(loss, 4) for side, loss in means.items()},
        "tokens_a_step": {
            side: round(statistics.mean(getattr(turn, side)["units"] for turn in turns)) for side in means
        },
    }


def sample_row(name: str, size: str, *, quick: bool) -> dict[str, Any]:
    """Sampling with natural endings: response tokens a second, the end token included."""
    from bench.inputs import hh_prompts
    from bench.models import checkpoint, hh_ids

    n_warm, n_turns = (1, 4) if quick or size == "wide" else (2, 24)
    eos_id, pad_id = hh_ids()
    work = {
        "model": str(checkpoint(size)),
        "prompts": hh_prompts(32)[1],
        "n_samples": 4,
        "max_new_tokens": 64,
        "eos_id": eos_id,
        "pad_id": pad_id,
        "threads": THREADS,
    }
    # any environment with this transformers will do for the peer
    ours, theirs = _pair(name, work, "bench.ours.sample", "bench.peers.hf_generate", trl_python(REWARD_PEER))
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_turns, label=name)[n_warm:]
    n_tokens = {side: statistics.mean(getattr(t, side)["units"] for t in turns) for side in ("ours", "theirs")}
    return row(name, "tokens/s", turns, ours, theirs, threads=THREADS) | {
        "tokens_a_turn": {side: round(n) for side, n in n_tokens.items()},
    }


def _reward_pair(
    name: str,
    pairs: list[tuple[list[int], list[int]]],
    n_steps: int,
    pairs_per_step: int,
    *,
    rankings_per_step: int = 0,
) -> tuple[Worker, Worker]:
    """Both sides of a row that trains a reward; rankings_per_step: what the pairs of a step say, 0 = just these pairs."""
    from bench.models import classifier

    work = {
        "classifier": str(classifier("medium")),
        "pairs": pairs,
        "n_steps": n_steps,
        "pairs_per_step": pairs_per_step,
        "rankings_per_step": rankings_per_step,
        "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "token_budget": 4096,
        "threads": THREADS,
        "output": str(WORK / f"trl_{name}"),
    }
    return _pair(name, work, "bench.ours.reward", "bench.peers.trl_reward", trl_python(REWARD_PEER))


def _pair(name: str, work: dict[str, Any], ours: str, theirs: str, peer_python: Path) -> tuple[Worker, Worker]:
    return start_pair(name, work, ours, theirs, peer_python=peer_python, threads=THREADS)


def load_row(*, quick: bool) -> dict[str, Any]:
    """Many raters at once; see load_study.py, which also has its own options."""
    from bench import load_study

    return load_study.load_row(quick=quick)


def efficiency_row(which: str, *, quick: bool) -> dict[str, Any]:
    """Operations a second beside the machine's matrix rate; see efficiency.py."""
    from bench import efficiency

    rows = {"reward": efficiency.reward_row, "ppo": efficiency.ppo_row}
    return rows[which](quick=quick, threads=THREADS)


ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "reward": reward_row,
    "ppo": partial(ppo_row, "ppo", 64, 1),
    "ppo-k4": partial(ppo_row, "ppo-k4", 16, 4),
    "ppo-bf16": partial(narrow_ppo_row, "ppo-bf16", 64, 1),
    "ppo-k4-bf16": partial(narrow_ppo_row, "ppo-k4-bf16", 16, 4),
    "rloo": partial(group_row, "rloo"),
    "grpo": partial(group_row, "grpo"),
    "dpo": partial(dpo_row, "dpo", precompute=True),
    "dpo-both": partial(dpo_row, "dpo-both", precompute=False),
    "sft": sft_row,
    "sample": partial(sample_row, "sample", "small"),
    "sample-150k": partial(sample_row, "sample-150k", "wide"),
    "efficiency-reward": partial(efficiency_row, "reward"),
    "efficiency-ppo": partial(efficiency_row, "ppo"),
    "memory-ppo": partial(memory_row, partial(ppo_row, "ppo", 64, 1)),
    "memory-ppo-k4": partial(memory_row, partial(ppo_row, "ppo-k4", 16, 4)),
    "memory-rloo": partial(memory_row, partial(group_row, "rloo")),
    "load": load_row,
}


def score_row(*, quick: bool) -> dict[str, Any]:
    """Wall-clock time to the peer's final score; see score_study.py."""
    from bench import own_batch_study, score_study

    found = score_study.score_row(quick=quick, threads=THREADS)
    return found | {"own_batch": own_batch_study.study(quick=quick, threads=THREADS)}


def ukp_row(*, quick: bool) -> dict[str, Any]:
    """The study of the real votes, in its own process; its whole report."""
    folds = ["0"] if quick else ["0", "1", "2", "3"]
    script = [sys.executable, str(ROOT / "bench" / "ukp_study.py"), "--threads", str(THREADS), "--folds", *folds]
    done = subprocess.run(script, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: ukp_study.py ended with code {done.returncode}")
    return {"work": "ukp"} | json.loads(done.stdout)


def real_data_row(*, quick: bool) -> dict[str, Any]:
    """Three sets of real feedback, frozen and trained encoders; see real_data_study.py."""
    from bench import real_data_study

    return real_data_study.real_data_row(quick=quick, threads=THREADS)


def module_row(work: str, *, quick: bool) -> dict[str, Any]:
    """A study that makes its own row: `WORK_row` of WORK_study.py, read only when it is asked for."""
    return getattr(importlib.import_module(f"bench.{work}_study"), f"{work}_row")(quick=quick)


def growth_row(*, quick: bool) -> dict[str, Any]:
    """Seconds an operation over prompt, samples, vocabulary and model; see growth_study.py."""
    from bench import growth_study

    return growth_study.growth_row(quick=quick, threads=THREADS)


def study_row(work: str, script: str, *, quick: bool) -> dict[str, Any]:
    """A study that is a script of its own, in its own process; its whole report, kept under results/ unless it is quick."""
    out = (WORK if quick else ROOT / "bench" / "results") / f"{script}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "bench" / f"{script}.py"), "--out", str(out), *["--quick"] * quick]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {script}.py ended with code {done.returncode}")
    return {"work": work} | json.loads(out.read_text(encoding="utf-8"))


def page_row(work: str, script: str, *, quick: bool) -> dict[str, Any]:
    """A study that keeps its results and its page itself, in its own process; its whole report unless it is quick."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / f"{script}.py"), *["--quick"] * quick],
        cwd=ROOT, stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"bench: {script}.py ended with code {done.returncode}")
    kept = {} if quick else json.loads((ROOT / "bench" / "results" / f"{script}.json").read_text(encoding="utf-8"))
    return {"work": work} | kept


LONG_ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "ranking": ranking_row,
    "time-to-score": score_row,
    "ukp": ukp_row,
    "ukp-curve": partial(page_row, "ukp-curve", "ukp_curve"),
    "real-data": real_data_row,
    "real-marks": partial(page_row, "real-marks", "real_marks_study"),
    "methods": partial(module_row, "methods"),
    "hybrid": partial(module_row, "hybrid"),
    "process": partial(module_row, "process"),
    "dense": partial(module_row, "dense"),
    "growth": growth_row,
    "lora_memory": partial(module_row, "lora_memory"),
    "gao": partial(module_row, "gao"),
    **{
        work: partial(study_row, work, script)
        for work, script in {
            "asking": "asking_study", "bounds": "bounds_study", "coverage": "coverage_study",
            "mixture": "mixture_coverage", "people": "people_study", "last-layer": "last_layer_study", "far-top": "far_top_study",
        }.items()
    },
}  # fmt: skip


def main() -> None:
    """Run the rows asked for, print each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, *LONG_ROWS, "all"]
    parser.add_argument("name", nargs="?", choices=names, help="the same as --work")
    parser.add_argument("--work", choices=names, default="all", help="which row; default all")
    parser.add_argument("--long", action="store_true", help="the studies that take hours, resumable")
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run?")
    options = parser.parse_args()
    chosen = options.name or options.work
    rows = ROWS | LONG_ROWS
    for name in [chosen] if chosen != "all" else LONG_ROWS if options.long else ROWS:
        print(json.dumps(rows[name](quick=options.quick), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
