"""Where an optimiser step of the PPO rows goes, with blocks as one operation each and without.

    python -m bench.block_study [--dtype bfloat16] [--prompts 4] [--samples 4] [--turns 14] [--threads 1]

Two processes take turns: one as it is, one with KARAT_NATIVE=0 (`lm.native`), both with the same random tokens and the
weights of "small". Printed are processor seconds of a step (forward, backward, clipping, Adam) and of a pass without
gradient, and the median of the turns' ratios with its quartiles; then where a step of the first goes: each operation's own
processor seconds, the lower quintile of `--steps` steps, so that other programs on the same cores disturb little; and what
its products would take at the rate that this process reaches on one of them alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

if "--side" in sys.argv:
    os.environ["KARAT_NATIVE"] = sys.argv[sys.argv.index("--side") + 1]

import torch
from bench.arithmetic import TRAINING, TreeSize, head_flops, trunk_flops
from bench.models import SHAPES, VOCABULARY, checkpoint
from bench.turns import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from karat.lm import block_pass
from karat.lm.freed_memory import freed_memory_kept
from karat.lm.load import load_lm
from karat.lm.loop import TrainState, optimiser_step
from karat.lm.trees import Tree, pack_trees
from karat.policy.actor import build_actor, token_scores
from karat.policy.objectives import ppo_policy_loss, ppo_value_loss

N_PROMPT, N_NEW = (30, 97), 48
PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "mkldnn")


class Step:
    """The work of one minibatch."""

    def __init__(self, dtype: str, n_prompts: int, n_samples: int) -> None:
        products = torch.bfloat16 if dtype == "bfloat16" else None
        self.lm = load_lm(checkpoint("small"), for_training=True, products=products)
        self.actor = build_actor(self.lm, critic=None, zero_head=True, generator=torch.Generator().manual_seed(0))
        weights = [*self.lm.model.parameters(), *self.actor.value_head.parameters()]
        self.state = TrainState({}, {"policy": torch.optim.Adam(weights, lr=3e-6, eps=1e-8, fused=True)})
        draw = torch.Generator().manual_seed(1)

        def ids(n: int) -> tuple[int, ...]:
            return tuple(torch.randint(5, VOCABULARY, (n,), generator=draw).tolist())

        lengths = torch.randint(*N_PROMPT, (n_prompts,), generator=draw).tolist()
        trees = [Tree(ids(n), tuple(ids(N_NEW) for _ in range(n_samples))) for n in lengths]
        self.batches = pack_trees(trees, token_budget=4096)
        self.advantages, self.returns = (torch.randn(n_prompts * n_samples * N_NEW, generator=draw) for _ in range(2))
        sizes = [TreeSize(n, (N_NEW,) * n_samples) for n in lengths]
        n_tokens = n_prompts * n_samples * N_NEW
        self.flops = TRAINING * (
            trunk_flops(sizes, SHAPES["small"]) + head_flops(n_tokens, SHAPES["small"], VOCABULARY)
        )

    def losses(self) -> Iterator[torch.Tensor]:
        """One loss a micro-batch."""
        for batch in self.batches:
            found = token_scores(self.actor, batch, temperature=1.0)
            n = len(found.logprobs)
            mask, shared = torch.ones(n, dtype=torch.bool), {"denominator": n, "clip_range": 0.2}
            own = found.logprobs, found.logprobs.detach(), self.advantages[:n], mask
            policy = ppo_policy_loss(*own, dual_clip=None, **shared)
            value = ppo_value_loss(found.values, found.values.detach(), self.returns[:n], mask, **shared)
            yield policy.loss + 0.1 * value.loss

    def step(self) -> None:
        """An optimiser step."""
        optimiser_step(self.state, "policy", self.losses(), max_grad_norm=1.0, learning_rate=3e-6)

    def forward(self) -> None:
        """The same passes without gradient."""
        with torch.no_grad():
            for batch in self.batches:
                token_scores(self.actor, batch, temperature=1.0)


class Clock(TorchDispatchMode):
    """Notes the processor seconds of every operation of PyTorch, and of every compiled pass."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, float]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.timed(str(operation), operation, *args, **(kwargs or {}))

    def timed(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call's result; what it took is noted."""
        started = time.thread_time()
        result = call(*args, **kwargs)
        self.noted.append((name, time.thread_time() - started))
        return result


class Watched:
    """A compiled library whose calls a clock notes."""

    def __init__(self, library: Any) -> None:
        self.library, self.clock = library, None

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.library, name)
        return call if self.clock is None else lambda *args: self.clock.timed(f"compiled.{name}", call, *args)


def account(work: Step, n_steps: int) -> dict[str, Any]:
    """Milliseconds of a step by operation; products, compiled passes and the rest together."""
    plain = block_pass.library
    watched = {dtype: Watched(plain(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    block_pass.library = watched.__getitem__
    runs, whole = [], []
    for _ in range(n_steps):
        with Clock() as clock:
            for one in watched.values():
                one.clock = clock
            started = time.thread_time()
            work.step()
            whole.append(time.thread_time() - started)
        runs.append(clock.noted)
    block_pass.library = plain
    by_name: dict[str, float] = defaultdict(float)
    for column in zip(*runs, strict=True):
        by_name[column[0][0]] += 1e3 * _low([spent for _, spent in column])
    products = sum(spent for name, spent in by_name.items() if name.startswith(PRODUCTS))
    compiled = sum(spent for name, spent in by_name.items() if name.startswith("compiled."))
    alone = _rate(work)
    most = sorted(by_name, key=lambda name: -by_name[name])[:16]
    return {
        "products_ms": round(products, 1),
        "compiled_ms": round(compiled, 1),
        "other_operations_ms": round(sum(by_name.values()) - products - compiled, 1),
        "gflop": round(work.flops / 1e9, 1),
        "gflop_s_in_step": round(work.flops / products / 1e6),
        "gflop_s_alone": round(alone / 1e9),
        "products_floor_ms": round(1e3 * work.flops / alone, 1),
        "operations_ms": {name: round(by_name[name], 2) for name in most},
    }


def _rate(work: Step) -> float:
    """Operations a second of a product of the output layer's size, again and again in the same memory."""
    dtype = torch.bfloat16 if work.lm.model.model.layers[0].karat_products else torch.float32
    left, right = torch.randn(768, 256).to(dtype), torch.randn(VOCABULARY, 256).to(dtype)
    output, spent = torch.empty(768, VOCABULARY, dtype=dtype), []
    for _ in range(60):
        started = time.thread_time()
        torch.mm(left, right.t(), out=output)
        spent.append(time.thread_time() - started)
    return 2 * 768 * 256 * VOCABULARY / _low(spent)


def _low(numbers: list[float]) -> float:
    return sorted(numbers)[len(numbers) // 5]


def side(given: argparse.Namespace) -> None:
    """A process that does what each line of its input says."""
    torch.set_num_threads(given.threads)
    work = Step(given.dtype, given.prompts, given.samples)
    with freed_memory_kept():
        for _ in range(3):
            work.step(), work.forward()
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "account":
                print(json.dumps(account(work, given.steps)), flush=True)
                continue
            started = time.process_time()
            getattr(work, line.strip())()
            print(time.process_time() - started, flush=True)


def main() -> None:
    """Let both sides take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    for name, default in {"prompts": 4, "samples": 4, "turns": 14, "threads": 1, "steps": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=("0", "1"))
    given = parser.parse_args()
    if given.side:
        return side(given)
    command = [sys.executable, "-m", "bench.block_study", *sys.argv[1:]]
    pipes = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, "--side", which], **pipes) for which in "10"]

    def asked(worker: subprocess.Popen[str], what: str) -> str:
        assert worker.stdin is not None
        assert worker.stdout is not None
        if what:
            worker.stdin.write(what + "\n")
            worker.stdin.flush()
        return worker.stdout.readline()

    for worker in workers:
        asked(worker, "")
    for what in ("step", "forward"):
        spent: tuple[list[float], list[float]] = ([], [])
        for turn in range(given.turns):
            for which in (0, 1) if turn % 2 else (1, 0):
                spent[which].append(float(asked(workers[which], what)))
        ratios = [plain / fused for fused, plain in zip(*spent, strict=True)]
        quartiles = [round(number, 3) for number in statistics.quantiles(ratios, n=4)]
        medians = {
            name: round(1e3 * statistics.median(own), 1) for name, own in zip(("fused", "plain"), spent, strict=True)
        }
        print(json.dumps({"what": what, **medians, "plain/fused": quartiles, "turns": given.turns}), flush=True)
    print(asked(workers[0], "account"), end="")
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return None


if __name__ == "__main__":
    main()
