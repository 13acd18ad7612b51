"""Commands that sample a policy: plainly, and the best of n."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from karat.cli.options import (
    MAX_NEW_TOKENS,
    MODELS,
    MOST,
    AsJson,
    Decoding,
    Device,
    MaxNewTokens,
    Out,
    StoreOrRun,
    answer,
    app,
    at_work,
    store_address,
)
from karat.errors import ConfigError

EndpointAddress = Annotated[
    str, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server; MODEL is its name there.")
]
PromptsFile = Annotated[
    Path,
    typer.Argument(
        metavar="PROMPTS", help='Text lines (.txt), or JSON lines: {"prompt": text or [{"role", "content"}]}.'
    ),
]


@app.command(
    rich_help_panel=MODELS,
    epilog="Example: karat generate runs/demo/models/ppo prompts.jsonl --out answers.jsonl --samples 4",
)
def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of a causal language model.")],
    prompts: PromptsFile,
    out: Out,
    samples: Annotated[int, typer.Option(max=MOST, help="Responses for each prompt.")] = 1,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[float, typer.Option(help="1 = the policy's own distribution.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    endpoint: EndpointAddress = "",
    device: Device = "auto",
    decode: Decoding = "auto",
    as_json: AsJson = False,
) -> None:
    """Sample responses of a policy, from a directory or from a server that speaks OpenAI's chat protocol."""
    from karat.batches import generate_file, generate_from
    from karat.lm.generate import SamplingConfig
    from karat.progress import open_progress

    if endpoint:
        from karat.lm.endpoint import Endpoint

        server = Endpoint(endpoint, str(model), max_new_tokens or MAX_NEW_TOKENS, temperature)
        n = generate_from(server, prompts, out, n_samples=samples, seed=seed)
        answer(as_json, {"out": str(out), "n_responses": n}, [f"{out}: {n} responses"])
        return
    config = SamplingConfig(max_new_tokens=max_new_tokens or MAX_NEW_TOKENS, temperature=temperature)
    with (
        at_work(device, decode),
        open_progress() as progress,
        progress.stage("generate", unit="responses", announced=False) as bar,
    ):
        n = generate_file(
            model,
            prompts,
            out,
            n_samples=samples,
            config=config,
            seed=seed,
            fit=max_new_tokens is None,
            progress=lambda tokens, done, total: bar.reach(done, of=total, tokens=tokens),
        )
    answer(as_json, {"out": str(out), "n_responses": n}, [f"{out}: {n} responses"])


@app.command(
    "best-of-n",
    rich_help_panel=MODELS,
    epilog="Example: karat best-of-n runs/demo/models/sft p.jsonl --score runs/demo/models/reward --n 8 --out best.jsonl",
)
def best_of_n(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of a causal language model.")],
    prompts: PromptsFile,
    score_by: Annotated[
        str, typer.Option("--score", help="Directory of a reward model, module:function, or an http address.")
    ],
    out: Out,
    n: Annotated[int, typer.Option("--n", max=MOST, help="Responses that compete for each prompt.")] = 8,
    samples: Annotated[int, typer.Option(max=MOST, help="Responses drawn, ≥ n, for a better KL figure; 0 = n.")] = 0,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[float, typer.Option(help="Of an endpoint's draws; a directory's are at 1.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    endpoint: EndpointAddress = "",
    device: Device = "auto",
    decode: Decoding = "auto",
    as_json: AsJson = False,
) -> None:
    """Sample, score and keep the best of n responses; says what that costs in KL, where scores tie too."""
    from karat.batches import best_of_n_file
    from karat.lm.endpoint import Endpoint
    from karat.progress import open_progress

    if temperature != 1 and not endpoint:
        raise ConfigError(
            f"best-of-n: found --temperature {temperature:g} without --endpoint; expected 1: its KL is from the model"
        )
    longest = max_new_tokens or MAX_NEW_TOKENS
    server = Endpoint(endpoint, str(model), longest, temperature) if endpoint else None

    with (
        at_work(device, decode),
        open_progress() as progress,
        progress.stage("best of n", unit="responses", announced=False) as bar,
    ):
        found = best_of_n_file(
            model,
            prompts,
            out,
            score_by=score_by,
            n=n,
            n_samples=samples or n,
            max_new_tokens=longest,
            seed=seed,
            fit=max_new_tokens is None,
            endpoint=server,
            progress=lambda tokens, done, total: bar.reach(done, of=total, tokens=tokens),
        )
    lines = [
        f"{out}: best of {n} for {found['n_prompts']} prompts, mean score {found['score_mean']:.3f} "
        f"(all samples {found['sample_score_mean']:.3f})",
        f"KL from the model: {found['kl_estimate']:.3f} nats per response by order statistics on "
        f"{found['n_samples']} samples each; bound {found['kl_bound']:.3f}",
    ]
    if found["all_equal"]:
        lines.append("every prompt's samples are one text: does the server draw? (docs/optimisers.md)")
    answer(as_json, {"out": str(out), **found}, lines)


@app.command(
    rich_help_panel=MODELS, epilog="Example: karat judge karat.db qwen --endpoint http://127.0.0.1:8000/v1 --batch main"
)
def judge(
    run_or_store: StoreOrRun,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The judge's name at the endpoint.")],
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server.")],
    name: Annotated[str, typer.Option(help="The rater's name in the store; empty = ai:MODEL.")] = "",
    batch: Annotated[str, typer.Option(help="Only questions of this batch; empty = all.")] = "",
    principle: Annotated[str, typer.Option(help="What to judge by where a question does not say.")] = "",
    max_new_tokens: Annotated[int, typer.Option(max=MOST, help="Longest answer.")] = 16,
    temperature: Annotated[float, typer.Option(help="0 = greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the order in which responses are shown.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Let a language model answer a store's open comparisons; its votes have the origin "ai"."""
    import dataclasses

    from karat.feedback.judge import collect_from_judge
    from karat.feedback.store import open_store
    from karat.lm.endpoint import Endpoint
    from karat.progress import open_progress
    from karat.records import Annotator

    if not model.strip():
        raise ConfigError(f"judge: found the model {model!r}; expected its name at the endpoint")
    server = Endpoint(endpoint, model, max_new_tokens, temperature)
    who = Annotator(name or f"ai:{model}", "ai")
    with (
        open_store(store_address(run_or_store), create=False) as store,
        open_progress() as progress,
        progress.stage("judge", unit="answers", announced=False) as bar,
    ):
        done = collect_from_judge(
            store, who, server, seed=seed, batch=batch or None, principle=principle,
            progress=lambda n, total: bar.reach(n, of=total),
        )  # fmt: skip
    line = f"{who.id}: {done.n_votes:,} votes, {done.n_missing:,} answers without a verdict"
    if done.n_elsewhere:
        line += f"; on {done.n_elsewhere:,} more another process of this name was first, and its votes stand"
    elif not done.n_votes + done.n_missing:
        line += "; no comparison was open"
    answer(as_json, {"annotator": who.id, **dataclasses.asdict(done)}, [line])
