"""Score functions from outside: found by name, asked over HTTP with tries again, and one clear line when they fail."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from karat.errors import ConfigError, InputError
from karat.policy.score_sources import (
    BATCH,
    HttpScore,
    HttpSettings,
    WeightedScore,
    asked_once,
    named_score,
    source_hash,
)
from karat.policy.scores import score_responses
from karat.records import user_prompt
from local_server import Quiet, serving

PROMPT = user_prompt("how long?")


@contextmanager
def endpoint(*answers) -> Iterator[tuple[str, list]]:
    """A server that gives these (status, body) answers in turn, the last one for ever; and what it was asked."""
    asked: list = []

    class Handler(Quiet):
        def do_POST(self):
            body = json.loads(self.sent())
            asked.append((dict(self.headers), body))
            status, content = answers[min(len(asked), len(answers)) - 1]
            self.reply(status, content(body) if callable(content) else content)

    with serving(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}", asked


def lengths(body):
    return json.dumps({"scores": [len(text) for text in body["responses"]]})


def test_an_endpoint_is_asked_in_batches_with_the_conversation():
    texts = ["x" * i for i in range(BATCH + 3)]
    with endpoint((200, lengths)) as (url, asked):
        scores = HttpScore(url, headers={"X-Key": "k"})([PROMPT] * len(texts), texts)
    assert scores == [*range(BATCH + 3)]
    assert [len(body["responses"]) for _, body in asked] == [BATCH, 3]
    assert asked[0][1]["prompts"][0] == [{"role": "user", "content": "how long?"}]
    assert asked[0][0]["X-Key"] == "k"


def test_settings_of_a_configuration_send_a_key_from_the_environment_and_limit_the_time(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with endpoint((200, lengths)) as (url, asked):
        assert named_score(url, http=HttpSettings(key_variable="MY_KEY"))([PROMPT], ["abc"]) == [3]
        assert named_score(url)([PROMPT], ["abc"]) == [3]
    assert asked[0][0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in asked[1][0]
    named = named_score("http://x", key="constraint.cost", http=HttpSettings(timeout_s=300, n_retries=0))
    assert (named.timeout_s, named.n_retries, named.key) == (300, 0, "constraint.cost")
    with pytest.raises(ConfigError, match="score_http: found timeout_s=0"):
        HttpSettings(timeout_s=0)


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_one_line():
    with endpoint((503, "busy"), (429, "slow"), (200, lengths)) as (url, asked):
        assert HttpScore(url, pause_s=0.0)([PROMPT], ["abc"]) == [3]
    assert len(asked) == 3
    with (
        endpoint((500, "broken")) as (url, asked),
        pytest.raises(InputError, match=r"tried 3 × for at most 30 s \(last: status 500"),
    ):
        HttpScore(url, n_retries=2, pause_s=0.0)([PROMPT], ["abc"])
    assert len(asked) == 3
    with pytest.raises(InputError, match=r"no scores, tried 1 × for at most 1 s \(last: ConnectError"):
        HttpScore("http://127.0.0.1:9", timeout_s=1.0, n_retries=0)([PROMPT], ["abc"])


def test_an_endpoint_that_times_out_is_one_line():
    release = threading.Event()

    def slow(body):
        release.wait(5)
        return lengths(body)

    with endpoint((200, slow)) as (url, _):
        try:
            with pytest.raises(InputError, match=r"tried 2 × for at most 0\.05 s \(last: ReadTimeout"):
                HttpScore(url, timeout_s=0.05, n_retries=1, pause_s=0.0)([PROMPT], ["abc"])
        finally:
            release.set()


def test_wrong_answers_are_not_tried_again():
    for status, content, said in (
        (404, "not here", "status 404, found not here"),
        (200, "hello", "found hello"),
        (200, '{"scores": [1, 2]}', r"found 2 scores; expected \{\"scores\": \[1 numbers\]\}"),
        (200, '{"score": 1}', "status 200"),
    ):
        with endpoint((status, content)) as (url, asked), pytest.raises(InputError, match=said):
            HttpScore(url)([PROMPT], ["abc"])
        assert len(asked) == 1


def test_a_python_function_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "def words(prompts, texts):\n    return [len(text.split()) for text in texts]\nnumber = 3\n"
    )
    (tmp_path / "my_broken.py").write_text("raise RuntimeError('oh no')\n")
    monkeypatch.chdir(tmp_path)
    assert named_score("my_scores:words")([PROMPT], ["a b c"]) == [3]
    assert isinstance(named_score("https://example.org/score"), HttpScore)
    for name, said in (
        ("my_scores", "expected module:function or an http address"),
        ("my_scores:letters", "found no function 'letters' in my_scores"),
        ("my_scores:number", "found no function 'number'"),
        ("no_such_module_at_all:f", "ModuleNotFoundError"),
        ("my_broken:f", "importing my_broken raised RuntimeError: oh no"),
    ):
        with pytest.raises(ConfigError, match=said):
            named_score(name)


WRONG = """\
def raises(prompts, texts):
    return [1 / len(text) for text in texts]

def nan(prompts, texts):
    return [float(text or "nan") for text in texts]

def words(prompts, texts):
    return [text or "none" for text in texts]

def fewer(prompts, texts):
    return [float(text) for text in texts if text]

def more(prompts, texts):
    return [1.0] * 5

def nothing(prompts, texts):
    pass

class Judge:
    def __call__(self, prompts, texts):
        return [None] * len(texts)

judge = Judge()
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "raises",
            "raised ZeroDivisionError: division by zero (line 2 of wrong_scores.py) for 3 responses, the first '1'",
        ),
        ("nan", "found nan for responses[1] of 3, '' to {prompt}; expected a finite number"),
        ("words", "found 'none' for responses[1] of 3, '' to {prompt}; expected a finite number"),
        ("fewer", "found 2 scores for 3 responses; responses[2] is the first without one; expected one each"),
        ("more", "found 5 scores for 3 responses; expected one each"),
        ("nothing", "found None; expected one finite number for each response"),
        ("judge", "found None for responses[0] of 3, '1' to {prompt}; expected a finite number"),
    ],
)
def test_a_wrong_score_is_said_with_the_function_and_the_first_response(name, said, tmp_path, monkeypatch):
    (tmp_path / "wrong_scores.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_scores", raising=False)
    function = named_score(f"wrong_scores:{name}")
    asked = ([PROMPT] * 3, ["1", "", "2"])
    with pytest.raises(InputError) as caught:
        asked_once(function, name=f"wrong_scores:{name}")(*asked)
    assert str(caught.value).startswith(f"score function wrong_scores:{name}: {said.format(prompt=PROMPT.id)}")
    with pytest.raises(InputError) as caught:  # whoever calls it without a name says where it was defined
        score_responses(function, *asked, what="cost function")
    own = "Judge" if name == "judge" else name
    assert str(caught.value).startswith(f"cost function wrong_scores:{own}: {said.format(prompt=PROMPT.id)}")


def test_an_edited_score_function_is_told_from_what_it_was(tmp_path, monkeypatch):
    file = tmp_path / "my_edited.py"
    file.write_text("def words(prompts, texts):\n    return [1.0 for _ in texts]\n")
    monkeypatch.chdir(tmp_path)
    before = source_hash("my_edited:words")
    assert before
    assert source_hash("my_edited:words") == before
    file.write_text("def words(prompts, texts):\n    return [2.0 for _ in texts]\n")
    assert source_hash("my_edited:words") != before
    assert source_hash("https://example.org/score") == ""


def test_a_weighted_sum_of_scores_and_bad_settings():
    both = WeightedScore(((lambda _, t: [len(x) for x in t], 2.0), (lambda _, t: [1.0] * len(t), -1.0)))
    assert both([PROMPT] * 2, ["ab", ""]) == [3.0, -1.0]
    with pytest.raises(InputError, match="found 1 scores for 2 responses"):
        WeightedScore(((lambda _, t: [1.0], 1.0),))([PROMPT] * 2, ["a", "b"])  # noqa: ARG005
    with pytest.raises(ConfigError, match="no parts"):
        WeightedScore(())
    with pytest.raises(ConfigError, match="timeout_s=0"):
        HttpScore("http://x", timeout_s=0)
