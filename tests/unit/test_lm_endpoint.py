"""An endpoint as sampler, against a small server in this process: order, seeds, retries, and one line for each failure."""

import json
import signal
import threading

import pytest

from feedback_cases import small_store
from karat.cli import main
from karat.errors import ConfigError, InputError
from karat.lm import endpoint as module
from karat.lm.endpoint import Endpoint
from karat.records import Prompt, Turn, user_prompt
from local_server import Quiet, serving


@pytest.fixture
def server(monkeypatch):
    """Answers with what was asked and the seed; `server.script` holds (status, body) to give first."""
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)

    class Handler(Quiet):
        def do_POST(self):
            body = json.loads(self.sent())
            served.seen.append((self.path, self.headers.get("Authorization"), body))
            said = f" {body['messages'][-1]['content']} {body['seed']} "
            content = {
                "choices": [{"message": {"content": said}, "finish_reason": "length" if "long" in said else "stop"}]
            }
            self.reply(*(served.script.pop(0) if served.script else (200, json.dumps(content))))

    with serving(Handler) as served:
        served.seen, served.script = [], []
        yield served


def endpoint(server, **options):
    return Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "m", **options)


def test_responses_come_in_order_and_a_seed_repeats_the_requests(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    prompts = [Prompt((Turn("system", "s"), Turn("user", f"q{i}"))) for i in range(5)]
    texts = endpoint(server, n_parallel=4)(prompts, n_samples=3, seed=1)
    assert [[text.split()[0] for text in group] for group in texts] == [[f"q{i}"] * 3 for i in range(5)]
    assert len({text for group in texts for text in group}) == 15  # every request has a seed of its own
    assert endpoint(server, n_parallel=1)(prompts, n_samples=3, seed=1) == texts
    assert endpoint(server)(prompts, n_samples=3, seed=2) != texts
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert all(0 <= seen[2]["seed"] < 2**31 for seen in server.seen)


def test_what_was_cut_off_says_so(server):
    ((short,), (cut,)) = endpoint(server).replies([user_prompt("short"), user_prompt("long")], n_samples=1, seed=0)
    assert (short.stopped, cut.stopped) == (True, False)


def test_it_asks_again_where_that_may_help_and_only_there(server):
    server.script[:] = [(503, "loading"), (429, "slow down")]
    assert endpoint(server)([user_prompt("q")], n_samples=1, seed=0)[0][0].startswith("q ")
    assert len(server.seen) == 3
    server.script[:] = [(404, "no such\nmodel")]
    with pytest.raises(InputError, match=r"status 404: no such model; expected a chat completion of 'm'"):
        endpoint(server)([user_prompt("q")], n_samples=1, seed=0)
    assert len(server.seen) == 4
    server.script[:] = [(500, "broken")] * 4
    with pytest.raises(InputError, match="status 500: broken"):
        endpoint(server)([user_prompt("q")], n_samples=1, seed=0)


HALF = '{"choices": [{"message": {"content": "half a pair \\ud800"}}]}'
OTHERS = ["<html>", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}', HALF, "[" * 100_000]


@pytest.mark.parametrize("answer", OTHERS, ids=["page", "nothing", "null", "half a pair", "deep"])
def test_an_answer_of_another_kind_is_one_line(server, answer):
    server.script[:] = [(200, answer)]
    with pytest.raises(InputError, match=r"expected choices\[0\]\.message\.content$"):
        endpoint(server)([user_prompt("q")], n_samples=1, seed=0)


def test_a_server_that_is_not_there_or_too_slow_is_one_line(server, monkeypatch):
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/v1/chat/completions: cannot be reached \("):
        Endpoint("http://127.0.0.1:9/v1", "m", n_tries=1)([user_prompt("q")], n_samples=1, seed=0)

    def slow(*_, **__):
        raise module.httpx.ReadTimeout("slow")

    monkeypatch.setattr(module.httpx.Client, "post", slow)
    with pytest.raises(InputError, match=r"no answer within 3 s; expected a chat completion"):
        endpoint(server, timeout_s=3.0, n_tries=2)([user_prompt("q")], n_samples=1, seed=0)


@pytest.mark.parametrize("ends", [InputError, KeyboardInterrupt])
def test_nobody_waits_for_requests_of_a_round_that_is_over(ends):
    """The server holds all requests but one until the test lets go, which it does only after the round has ended."""
    held, let_go = threading.Event(), threading.Event()

    class Handler(Quiet):
        def do_POST(self):
            if json.loads(self.sent())["messages"][0]["content"] == "refused":
                held.wait()
                self.reply(400, "no")
            held.set()
            let_go.wait()

    main = threading.main_thread().ident
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us without one
    if ends is KeyboardInterrupt:

        def interrupted(*_: object) -> None:
            held.wait()
            signal.pthread_kill(main, signal.SIGINT)

        threading.Thread(target=interrupted, daemon=True).start()
    asked = [user_prompt("held"), *([user_prompt("refused")] * (ends is InputError))]
    with serving(Handler) as server:
        try:
            with pytest.raises(ends):
                endpoint(server)(asked, n_samples=3, seed=0)
        finally:
            let_go.set()
            signal.signal(signal.SIGINT, before)


def test_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match="expected an address like http://"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(ConfigError, match="n_tries=0; expected ≥ 1"):
        Endpoint("http://localhost", "m", n_tries=0)


def test_the_command_writes_what_the_server_said(server, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "q1"}\n{"prompt": "long"}\n')
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    command = ["generate", "org/name", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--samples", "2"]
    assert main([*command, "--endpoint", address]) == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["sample"], row["stopped"]) for row in rows] == [
        ("q1", 0, True), ("q1", 1, True), ("long", 0, False), ("long", 1, False),
    ]  # fmt: skip
    assert server.seen[0][2]["model"] == "org/name"
    assert "4 responses" in capsys.readouterr().out


def test_best_of_n_takes_its_responses_from_a_server(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text(
        "def last(prompts, texts):\n    return [int(text.split()[-1]) for text in texts]\n"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "q1"}\n{"prompt": "q2"}\n')
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    command = ["best-of-n", "org/name", "p.jsonl", "--score", "digits:last", "--out", "o.jsonl", "--n", "3", "--json"]
    assert main([*command, "--endpoint", address, "--temperature", "0.7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl_estimate"] == pytest.approx(found["kl_bound"])  # no two seeds are the same
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    for row in rows:
        seeds = [body["seed"] for _, _, body in server.seen if body["messages"][-1]["content"] == row["prompt"]]
        assert (len(seeds), row["score"]) == (3, max(seeds))
    assert {body["temperature"] for _, _, body in server.seen} == {0.7}
    assert found["all_equal"] is False
    same = json.dumps({"choices": [{"message": {"content": "w 3"}}]})
    server.script[:] = [(200, same)] * 6
    assert main([*command[:-1], "--endpoint", address]) == 0
    assert "every prompt's samples are one text" in capsys.readouterr().out
    assert main([*command, "--temperature", "0.7"]) == 2
    assert "without --endpoint" in capsys.readouterr().err


def test_a_judge_at_a_server_votes_in_a_store(server, tmp_path, capsys):
    store = small_store(tmp_path / "s.db", n_tasks=3, overlap=1)
    server.script[:] = [(200, json.dumps({"choices": [{"message": {"content": said}}]})) for said in ("2", "4", "no")]
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    assert main(["judge", str(tmp_path / "s.db"), "m", "--endpoint", address, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"annotator": "ai:m", "n_votes": 2, "n_missing": 1, "n_elsewhere": 0}
    assert {judgement.origin for judgement in store.judgements()} == {"ai"}
