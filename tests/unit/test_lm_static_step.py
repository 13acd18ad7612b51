"""Steps of static shapes: the sampler's own draws, however they are run, and one line where they cannot be."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

import policy_toys
from ending_models import KINDS, PROMPTS, flat, make_lm
from karat import devices
from karat.errors import InvariantError
from karat.lm import segments, step_runs, ways
from karat.lm.adapters import add_lora
from karat.lm.decoder import Decoder
from karat.lm.generate import SamplingConfig, greedy, sample
from karat.lm.load import load_lm
from karat.lm.static_step import SEGMENT, bucket
from karat.lm.step_runs import REFUSED
from karat.lm.ways import in_ways
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RolloutSettings, UpdateSettings
from pretend_device import pretend_device
from pretend_graphs import pretend_graphs
from tiny_models import tiny_checkpoint

CONFIG = SamplingConfig(22, batch_rows=10)
TRACED = pytest.param("traced", marks=pytest.mark.long)  # half a minute each on busy cores
WAYS = ("steps", TRACED, "graph")


@pytest.fixture
def drawn_by(monkeypatch):
    """Sampling by a named way: "traced" = compiled without the C++ part, "graph" = pretended graphs."""

    def draw(way, lm, work):
        with monkeypatch.context() as patched:
            if way == "traced":
                traced = torch.compile(step_runs.take_step, fullgraph=True, dynamic=False, backend="eager")
                patched.setattr(segments, "compiled_step", lambda: traced)
            patched.setattr(ways, "decode_problem", lambda *_: None)
            with in_ways("compiled" if way == "traced" else way), pretend_graphs(patched) as counts:
                found = work(lm)
        assert getattr(lm.model, REFUSED, None) is None
        return found, counts

    yield draw
    torch._dynamo.reset()


def responses(drawn):
    return [one.response_tokens for one in drawn]


def assert_same(found, expected, *, most=1e-5):
    assert responses(found) == responses(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.stopped == other.stopped
        assert one.logprobs == pytest.approx(other.logprobs, abs=most)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((kind, way) for kind in KINDS for way in ("steps", "graph")),
        ("llama", "traced"),
        *(pytest.param(kind, "traced", marks=pytest.mark.long) for kind in KINDS if kind != "llama"),
    ],
)
def test_the_draws_are_those_of_the_plain_way(kind, way, drawn_by):
    """Grouped heads, windows and soft caps, several samples a prompt, endings early and at the limit, rows that wait."""

    def work(lm):
        return flat(sample(lm, PROMPTS[:5], n_samples=3, config=CONFIG, seed=1))

    expected = work(make_lm(kind, stop_logit=2.0))
    assert {one.stopped for one in expected} == {True, False}
    found, counts = drawn_by(way, make_lm(kind, stop_logit=2.0), work)
    assert_same(found, expected)
    assert (counts.n_replays > 20) == (way == "graph")
    again, _ = drawn_by(way, make_lm(kind, stop_logit=2.0), work)
    assert again == found  # to the bit


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.6, "top_k": 9, "top_p": 0.7}, {"min_new_tokens": 3}, {"max_new_tokens": 1}, {"batch_rows": 1}],
    ids=str,
)
def test_every_setting_of_the_draws_is_obeyed(options, way, drawn_by):
    config = SamplingConfig(**{"max_new_tokens": 20} | options)

    def work(lm):
        return flat(sample(lm, PROMPTS[:4], n_samples=2, config=config, seed=3))

    assert_same(drawn_by(way, make_lm("qwen3", stop_logit=4.0), work)[0], work(make_lm("qwen3", stop_logit=4.0)))


@pytest.mark.parametrize("way", WAYS)
def test_the_likeliest_tokens_are_the_same(way, drawn_by):
    def work(lm):
        return greedy(lm, PROMPTS, max_new_tokens=20, batch_rows=3)

    assert_same(drawn_by(way, make_lm("llama", stop_logit=1.0), work)[0], work(make_lm("llama", stop_logit=1.0)))
    assert greedy(make_lm("llama"), [], max_new_tokens=3) == drawn_by(way, make_lm("llama"), lambda lm: greedy(lm, [], max_new_tokens=3))[0]  # fmt: skip


@pytest.mark.usefixtures("plain_passes")  # which the steps compared here go without
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("adapters", "products"), [(True, None), (False, torch.bfloat16), (True, torch.bfloat16)])
def test_adapters_and_bfloat16_products(adapters, products, way, tmp_path, drawn_by):
    checkpoint = tiny_checkpoint("qwen3", tmp_path)

    def load():
        lm = load_lm(checkpoint, products=products)
        if not adapters:
            return lm
        lm = dataclasses.replace(lm, model=add_lora(lm.model, 4, 8.0, seed=0))
        generator = torch.Generator().manual_seed(0)
        for name, weight in lm.model.named_parameters():
            if "lora_B" in name:  # else they change nothing
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        return lm

    def work(lm):
        return flat(sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(12), seed=5))

    expected = work(load())
    found, _ = drawn_by(way, load(), work)
    if products is None:
        assert_same(found, expected)
        return
    same = sum(one == other for one, other in zip(responses(found), responses(expected), strict=True))
    assert same > 0.7 * len(expected)  # the rest: a rounding of 2⁻⁹ moved a token, and all behind it
    for one, other in zip(found, expected, strict=True):
        if one.response_tokens == other.response_tokens:
            assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) < 0.1


def test_a_model_is_left_as_it_was_found(tmp_path, drawn_by):
    lm = load_lm(tiny_checkpoint("qwen3", tmp_path), products=torch.bfloat16)
    before = {name: module.__dict__.get("forward") for name, module in lm.model.named_modules()}
    for way in ("steps", "graph", "traced"):
        drawn_by(way, lm, lambda lm: sample(lm, PROMPTS[:2], n_samples=2, config=SamplingConfig(3), seed=0))
        assert {name: module.__dict__.get("forward") for name, module in lm.model.named_modules()} == before
        assert lm.model.config._attn_implementation == "karat_tree"


def test_nothing_is_read_between_the_steps_of_a_segment():
    """On a device each reading waits for all work before it: one a segment, not one a token."""
    reads = {}
    with pretend_device() as counts, devices.on_device("auto"), in_ways("steps"):
        lm = policy_toys._loaded.cache_clear() or policy_toys.toy_lm()
        for n in (1 + SEGMENT, 1 + 3 * SEGMENT):
            before = counts.n_reads
            drawn = sample(lm, [[3, 4]], n_samples=3, config=SamplingConfig(n, min_new_tokens=n), seed=0)
            reads[n] = counts.n_reads - before
    policy_toys._loaded.cache_clear()
    expected = sample(policy_toys.toy_lm(), [[3, 4]], n_samples=3, config=SamplingConfig(n, min_new_tokens=n), seed=0)
    assert responses(flat(drawn)) == responses(flat(expected))
    assert reads[1 + 3 * SEGMENT] - reads[1 + SEGMENT] == 2


def test_whoever_watches_sees_each_token_as_it_comes():
    """A segment is one step then."""
    lm, seen, config = make_lm("gpt2", stop_logit=1.0), [], SamplingConfig(6, min_new_tokens=3)
    with in_ways("steps"):
        drawn = sample(lm, PROMPTS[:2], n_samples=2, config=config, seed=0, on_token=lambda *one: seen.append(one))
    for index, group in enumerate(drawn):
        for one in group:
            own = tuple(token for prompt, number, token in seen if (prompt, number) == (index, one.sample))
            assert own == one.response_tokens
    rounds = [(prompt, number) for prompt, number, _ in seen]
    assert rounds[:4] == rounds[4:8]  # a token of each, then the next of each


def test_ppo_goes_on_to_the_same_bits_where_it_was_interrupted(tmp_path):
    config = PPOConfig(
        n_iterations=3, checkpoint_every=1, rollout=RolloutSettings(2, 2, 6), update=UpdateSettings(n_epochs=1, n_minibatches=1)
    )  # fmt: skip

    class Stops:
        def log(self, step, metrics):
            del metrics
            if step == 2:
                raise KeyboardInterrupt

    def train(name, *reporters):
        lm = policy_toys.toy_lm()
        train_ppo(
            lm,
            policy_toys.PROMPTS,
            policy_toys.share_of_w3,
            config,
            seed=3,
            directory=tmp_path / name,
            reporters=reporters,
        )
        return dict(lm.model.named_parameters())

    plain = train("plain")
    with in_ways("steps"):
        straight = train("straight")
        with pytest.raises(KeyboardInterrupt):
            train("half", Stops())
        again = train("half")
    for key, expected in straight.items():
        assert torch.equal(again[key], expected), key
        torch.testing.assert_close(expected, plain[key], rtol=1e-5, atol=1e-5)


def test_logits_that_are_no_numbers_are_refused():
    lm = make_lm("gpt2")
    with torch.no_grad():
        lm.model.transformer.ln_f.bias.fill_(torch.nan)
    with in_ways("steps"), pytest.raises(InvariantError, match="the logits at position 0 are not numbers"):
        sample(lm, PROMPTS[:1], n_samples=1, config=SamplingConfig(2), seed=0)


def test_a_graph_is_recorded_once_a_shape_and_shares_its_memory(drawn_by):
    """Wider responses, other prompts and fewer rows are other shapes; what draws longer responses has other buffers."""
    lm = make_lm("llama", stop_logit=0.0)
    work = lambda lm: sample(lm, PROMPTS[:1], n_samples=2, config=SamplingConfig(60), seed=0)  # noqa: E731
    _, counts = drawn_by("graph", lm, work)
    assert (counts.n_graphs, counts.pools) == (1, [None])
    _, counts = drawn_by("graph", lm, lambda lm: sample(lm, [[5, 6]], n_samples=2, config=SamplingConfig(110), seed=0))
    assert counts.pools == [None, (0, 1)]  # beyond 64 tokens the buffer is read to its end
    long, short = list(range(3, 80)), [5, 6, 7]
    config = SamplingConfig(40, batch_rows=2)
    found, counts = drawn_by(
        "graph", lm, lambda lm: flat(sample(lm, [long, short], n_samples=2, config=config, seed=0))
    )
    assert_same(found, flat(sample(lm, [long, short], n_samples=2, config=config, seed=0)))
    assert len(counts.pools) == 2


def test_buffers_that_are_exchanged_are_recorded_anew(drawn_by, monkeypatch):
    """What was recorded reads the old ones."""
    lm, exchanged, plainly = make_lm("qwen3", stop_logit=2.0), [], Decoder._compact

    def work(lm):
        return flat(sample(lm, PROMPTS, n_samples=3, config=SamplingConfig(40, batch_rows=12), seed=1))

    def also_exchanges(self):
        plainly(self)
        if self.running:
            before = [buffer for pair in self.cache.prompts for buffer in pair]
            self.cache.reserve_slots(1 + self.cache.n_slots)
            exchanged.extend(buffer.fill_(9) for buffer in before)

    expected = work(lm)
    monkeypatch.setattr(Decoder, "_compact", also_exchanges)
    found, _ = drawn_by("graph", lm, work)
    assert_same(found, expected)
    assert exchanged


@pytest.mark.parametrize("fault", ["capture fails", "other numbers", "other tokens"])
def test_where_a_trial_fails_the_plain_way_goes_on_and_a_line_says_why(fault, monkeypatch, caplog):
    lm = make_lm("llama", stop_logit=2.0)
    work = lambda: flat(sample(lm, PROMPTS, n_samples=2, config=CONFIG, seed=1))  # noqa: E731
    expected = work()
    plain_put = step_runs.take_step

    def wrong(_step, state):
        def replay():
            plain_put(*state_arguments(), state, *drawing())
            if fault == "other numbers":
                state.logprobs.add_(0.01)
            else:
                state.drawn.add_(1)

        return replay

    made = []
    monkeypatch.setattr(ways, "decode_problem", lambda *_: None)
    kept = segments._runs

    def runs(model, steps, way):
        found = kept(model, steps, way)
        made.append((model, steps.cache, steps.drawing))
        return found if fault == "capture fails" else dataclasses.replace(found, prepare=wrong)

    def state_arguments():
        return made[-1][:2]

    def drawing():
        return made[-1][2]

    monkeypatch.setattr(segments, "_runs", runs)
    with caplog.at_level(logging.WARNING, "karat.ways"), in_ways("graph"), pretend_graphs(monkeypatch) as counts:
        counts.fail = fault == "capture fails"
        assert_same(work(), expected)
        said = [record.message for record in caplog.records]
        assert_same(work(), expected)
        assert len(made) == 1  # it is not tried again
    assert len(caplog.records) == len(said) == 1
    why = {
        "capture fails": "it cannot be made: operation failed due to a previous error during capture; of two lines",
        "other numbers": "log-probabilities differed by 1.0e-02 in its trial, expected at most 1e-05",
        "other tokens": "rows drew other tokens in its trial",
    }[fault]
    assert why in said[0]
    assert said[0].startswith("decode: found that ")
    assert "\n" not in said[0]


def test_what_reads_a_number_cannot_be_recorded():
    """The pretended graphs refuse what real ones refuse, and a capture leaves no trace."""
    with pytest.MonkeyPatch.context() as patched, pretend_graphs(patched):
        x, y = torch.zeros(3), torch.zeros(3)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            z = x + 1
            y.add_(z * 2)
        assert y.tolist() == [0, 0, 0]
        x.fill_(4)
        with torch.inference_mode():
            graph.replay()
        assert (y.tolist(), z.tolist()) == ([10, 10, 10], [5, 5, 5])
        with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph, capture_error_mode="thread_local"):  # fmt: skip
            float(x.sum())


def test_sizes_are_few_and_stay_while_they_fit():
    assert [bucket(n, 200, least=64) for n in (1, 64, 65, 130, 200)] == [64, 64, 128, 200, 200]
    assert [bucket(n, 128, before=64) for n in (64, 65, 17, 16, 3)] == [64, 128, 64, 64, 4]
    assert segments.capacity(65, powers=False) == 128
    assert segments.capacity(513, powers=False) == 576
    assert segments.capacity(513, powers=True) == 1024


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # PyTorch's own while it compiles: as errors they would end it
def test_compiled_by_this_machines_compiler(tmp_path):
    """Needs a C++ compiler; takes minutes where cores are busy."""
    if problem := ways.decode_problem("compiled", torch.device("cpu")):
        pytest.skip(problem)
    lm = load_lm(tiny_checkpoint("qwen3", tmp_path))
    work = lambda: flat(sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(20), seed=1))  # noqa: E731
    expected = work()
    compiled = []
    with in_ways("compiled"):
        for _ in range(2):
            found = work()
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            assert_same(found, expected)
    assert compiled[0] == compiled[1] > 0  # the second call uses what the first one made
    assert getattr(lm.model, REFUSED, None) is None
