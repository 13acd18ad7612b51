"""Arms act: the page is other, the judgement says so, pay follows, and the effect is that of what was drawn."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import numpy as np
import pytest

import web_app
from feedback_cases import vote
from karat import cli
from karat.errors import InputError
from karat.feedback.arm_changes import ArmChange, change_of, check_experiments, merged, read_arm
from karat.feedback.documents import Budget, Pay, ProjectSettings, project_settings, put_document, put_settings
from karat.feedback.people import accounts
from karat.feedback.people.care import settings_for
from karat.feedback.store import open_store
from karat.feedback.work.assignment import next_work
from karat.feedback.work.experiments import end_experiment, experiment_effects, make_experiment
from karat.feedback.work.outlay import outlay
from karat.questions import Question
from karat.records import Annotator


def only(**change) -> list[tuple[str, float, ArmChange]]:
    """Two arms that change the same, so that everybody is in one that does."""
    return [(name, 1.0, ArmChange(**change)) for name in ("one", "other")]


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    served = web_app.served(tmp_path, 3)
    put_document(served.store, "guideline", "v1", {"text": "Prefer the SHORTER answer."}, now=0.0)
    put_document(served.store, "guideline", "v2", {"text": "Prefer the TRUER answer."}, now=1.0)
    put_settings(
        served.store,
        ProjectSettings(pay=Pay(0.2, "EUR"), gold_rate=0.0, repeat_rate=0.0, budget=Budget(money=100.0)),
        now=1.0,
    )
    return served


def hidden(page: str, name: str) -> str:
    return html.unescape(re.search(rf'name="{name}" value="([^"]*)"', page)[1])


def sent(page: str, **fields: str) -> dict[str, str]:
    return {name: hidden(page, name) for name in ("lease", "submission", "asked")} | {"active_s": "60"} | fields


def choices(page: str) -> list[str]:
    return re.findall(r'<input type="radio" name="choice" value="([^"]*)"', page)


# What an arm changes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seven", ("seven", 1.0, ArmChange())),
        ("binary = 2: levels = 2, rationale = off", ("binary", 2.0, ArmChange(levels=2, rationale="off"))),
        ("low: pay = 0.15", ("low", 1.0, ArmChange(pay=0.15))),
        ("new : guideline = v2, tie = apart,layout=stacked", ("new", 1.0, ArmChange("v2", 0, "apart", "stacked"))),
    ],
)
def test_an_arm_is_read_as_people_write_it(text, expected):
    assert read_arm(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a name"),
        ("a: levels", "expected key = value"),
        ("a: levels = many", "levels = 'many'; expected a number"),
        ("a: levels = 1", "levels = 1; expected 2 to 9"),
        ("a: colour = red", "found 'colour'; expected some of guideline, layout, levels, pay, rationale, tie"),
        ("a: tie = left", "tie = 'left'; expected one of scale, apart"),
        ("a = 0", "weight 0; expected a number above 0"),
        ("a = x", "weight 'x'"),
        ("a: pay = -1", "pay = -1.0"),
        ("a: pay = nan", "pay = nan"),
    ],
)
def test_an_arm_that_changes_nothing_known_is_refused(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read_arm(text)


def test_words_of_a_scale_stay_only_where_they_fit():
    asked = Question(n_levels=3, anchors=("worse", "same", "better"))
    assert ArmChange(levels=5).question(asked).anchors == ()
    assert ArmChange(levels=3).question(asked) == asked
    ends = Question(n_levels=3, anchors=("worse", "better"))
    assert ArmChange(levels=5).question(ends).anchors == ("worse", "better")
    assert ArmChange(levels=5).question(Question(kind="rating")) == Question(kind="rating")
    assert merged([ArmChange(levels=5), ArmChange(), ArmChange(layout="stacked")]) == ArmChange(
        levels=5, layout="stacked"
    )


@pytest.mark.parametrize(
    ("changes", "units", "said"),
    [
        ({"x": {}}, {}, "found the experiment 'x'"),
        ({"a": {"c": {}}}, {}, "found the arm 'c' of 'a'"),
        ({"a": {"p": {"levels": 2}}, "b": {"p": {"levels": 3}}}, {}, "'a' and 'b' both change levels"),
        ({"a": {"p": {"pay": 1.0}}}, {"a": "task"}, "draws tasks and changes pay"),
        ({}, {"a": "team"}, "found a = 'team'".replace("a =", "'a' =")),
    ],
)
def test_experiments_that_could_not_be_told_apart_are_refused(changes, units, said):
    experiments = {name: {"p": 1.0, "q": 1.0} for name in "ab"}
    with pytest.raises(InputError, match=re.escape(said)):
        check_experiments(experiments, changes, units)


# The page follows, and the judgement says so


@pytest.mark.parametrize(("levels", "values"), [(2, "01"), (3, "012"), (5, "01234"), (7, "0123456")])
def test_the_scale_of_an_arm_is_shown_and_stored(site, levels, values):
    make_experiment(site.store, "scale", only(levels=levels), now=2.0)
    rater = site.browser("annotator")
    page = rater.get("/work").text
    scale = [value for value in choices(page) if value.isdigit()]
    assert scale == list(values)
    assert rater.post("/work", sent(page, choice="0")).status_code == 303
    [given] = site.store.judgements()
    # what stands on the left is much better; which response that is follows from the order shown
    assert given.value == {"level": levels - 1 if given.shown_order == (0, 1) else 0, "n_levels": levels}
    assert given.shown["arms"]["scale"] in ("one", "other")


def test_the_guideline_of_an_arm_is_shown_and_named_by_the_judgement(site):
    make_experiment(site.store, "rules", only(guideline="v2"), now=2.0)
    rater = site.browser("annotator")
    page = rater.get("/work").text
    assert "TRUER" in page
    assert "SHORTER" not in page
    assert "TRUER" in rater.get("/guidelines").text
    rater.post("/work", sent(page, choice="0"))
    [given] = site.store.judgements()
    [task] = [one for one in site.store.tasks() if one.id == given.task_id]
    assert (given.guideline, given.shown["guideline"]["version"], task.guideline) == ("v2", "v2", "v1")


def test_the_tie_stands_apart_and_responses_below_one_another(site):
    before = choices(site.browser("annotator").get("/work").text)
    make_experiment(site.store, "tie", only(tie="apart"), now=2.0)
    make_experiment(site.store, "layout", only(layout="stacked"), now=2.0)
    rater = site.browser("annotator")
    page = rater.get("/work").text
    after = choices(page)
    assert before.index("3") == 3
    assert after[:6] == ["0", "1", "2", "4", "5", "6"]
    assert after.index("3") == 6
    assert sorted(after) == sorted(before)
    assert re.search(r'<form id="answer"[^>]* stacked"', page)
    rater.post("/work", sent(page, choice="3", layout="column"))
    [given] = site.store.judgements()
    assert given.value == {"level": 3, "n_levels": 7}
    assert given.shown["layout"] == "column"
    assert given.shown["truncated"] == [False, False]


@pytest.mark.parametrize(
    ("rationale", "box", "status"), [("off", False, 303), ("optional", True, 303), ("required", True, 422)]
)
def test_reasons_are_asked_for_as_the_arm_says(site, rationale, box, status):
    make_experiment(site.store, "why", only(rationale=rationale), now=2.0)
    rater = site.browser("annotator")
    page = rater.get("/work").text
    assert ('name="reason"' in page) == box
    assert rater.post("/work", sent(page, choice="0")).status_code == status


def test_an_answer_on_the_scale_of_before_is_not_read_on_another_one(site):
    rater = site.browser("annotator")
    page = rater.get("/work").text
    make_experiment(site.store, "scale", only(levels=2), now=2.0)
    answer = rater.post("/work", sent(page, choice="1", reason="long words"))
    assert answer.status_code == 422
    assert "has changed since you opened it" in answer.text
    assert "long words" in answer.text
    assert site.store.judgements() == []
    assert rater.post("/work", sent(answer.text, choice="1")).status_code == 303


def test_pay_of_an_arm_is_shown_counted_and_kept_within_the_budget(site):
    store = site.store
    make_experiment(store, "rate", only(pay=0.5), now=2.0)
    rater = site.browser("annotator")
    for page in ("/", "/me"):
        assert "0.50 EUR per judgement" in rater.get(page).text
    rater.post("/work", sent(rater.get("/work").text, choice="0"))
    assert settings_for(store, site.annotator(), now=3.0).pay == Pay(0.5, "EUR")
    assert "0.50 EUR" in rater.get("/me").text
    spent = outlay(store)
    assert (spent.spent, spent.n_judgements) == (0.5, 1)
    assert spent.to_come == pytest.approx(0.5 * spent.n_needed)
    put_settings(store, dataclasses.replace(project_settings(store), budget=Budget(money=0.9)), now=3.0)
    other = accounts.make_account(store, "annotator", now=3.0)
    assert next_work(store, other.annotator, now=3.0).reason == "budget"  # 0.5 + 0.5 would pass 0.9
    put_settings(store, dataclasses.replace(project_settings(store), budget=Budget(money=1.0)), now=3.0)
    assert next_work(store, other.annotator, now=3.0).reason == "work"


def test_a_task_is_in_one_arm_for_everybody_and_arms_are_kept_when_it_comes_again(site):
    arms = [("seven", 1.0, ArmChange()), ("three", 1.0, ArmChange(levels=3))]
    make_experiment(site.store, "scale", arms, unit="task", now=2.0)
    who = [site.accounts["annotator"].id, accounts.make_account(site.store, "annotator", now=2.0).id]
    for account in who:
        rater = site.browser(account=account)
        for _ in site.store.tasks():
            page = rater.get("/work").text
            assert rater.post("/work", sent(page, choice="0")).status_code == 303
    found: dict[str, set] = {}
    for one in site.store.judgements():
        found.setdefault(one.task_id, set()).add((one.shown["arms"]["scale"], one.value["n_levels"]))
    assert all(len(each) == 1 for each in found.values())
    assert {pair for each in found.values() for pair in each} <= {("seven", 7), ("three", 3)}


def test_a_program_is_asked_as_its_arm_says(site):
    make_experiment(site.store, "scale", only(levels=5, guideline="v2"), now=2.0)
    task = site.program("annotator").post("/api/v1/tasks/next").json()["task"]
    assert (task["question"]["n_levels"], task["guideline"]) == (5, "v2")


# Setting up and ending


def test_the_page_sets_an_experiment_up_and_ends_it(site):
    admin = site.browser("admin")
    lines = "seven\nbinary = 2: levels = 2"
    answer = admin.post("/admin/experiments", {"name": "scale", "unit": "rater", "arms": lines})
    assert answer.status_code == 303
    settings = project_settings(site.store)
    assert settings.experiments["scale"] == {"seven": 1.0, "binary": 2.0}
    assert settings.arm_changes["scale"] == {"binary": {"levels": 2}}
    page = admin.get("/admin/experiments").text
    assert "levels = 2" in page
    # the form of the settings keeps what it does not show
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', admin.get("/admin/settings").text))
    fields |= {"pay_per": "judgement", "overlap": "", "experiments": "scale: seven = 1, binary = 3"}
    assert admin.post("/admin/settings", fields).status_code == 303
    assert project_settings(site.store).arm_changes["scale"] == {"binary": {"levels": 2}}
    assert admin.post("/admin/experiments/end", {"name": "scale"}).status_code == 303
    assert project_settings(site.store).experiments == {}
    for form, said in (
        ({"name": "x", "arms": "one"}, "expected two or more"),
        ({"name": "x", "arms": "a\nb: guideline = v9"}, "no guideline of version"),
        ({"name": "", "arms": "a\nb"}, "expected 1 to 64"),
        ({"name": "x", "arms": "a\nb: size = 2"}, "found &#39;size&#39;"),
        ({"name": "x", "unit": "team", "arms": "a\nb"}, "rater or task"),
    ):
        answer = admin.post("/admin/experiments", {"unit": "rater", **form})
        assert (answer.status_code, said in answer.text) == (422, True), said
        assert form["arms"].splitlines()[-1] in html.unescape(answer.text)
    assert admin.post("/admin/experiments/end", {"name": "nothing"}).status_code == 422


def test_a_name_is_used_once(site):
    make_experiment(site.store, "scale", only(levels=2), now=2.0)
    site.browser("annotator").get("/work")
    end_experiment(site.store, "scale", now=3.0)
    with pytest.raises(InputError, match="was used before"):
        make_experiment(site.store, "scale", only(levels=3), now=4.0)


def test_the_api_sets_up_and_reports(site):
    admin = site.program("admin")
    body = {"name": "why", "arms": {"off": {"change": {"rationale": "off"}}, "asked": {"weight": 2}}}
    assert admin.post("/api/v1/experiments", json=body).json() == {"new": 1}
    assert project_settings(site.store).experiments["why"] == {"off": 1.0, "asked": 2.0}
    arms = {"off": {"weight": 1.0, "change": {"rationale": "off"}}, "asked": {"weight": 2.0, "change": {}}}
    about = {"experiment": "why", "unit": "rater", "running": True, "arms": arms}
    assert admin.get("/api/v1/experiments").json() == [{**about, "drawn": {"off": 0, "asked": 0}, "effects": []}]
    for wrong in ({"guideline": "\ud800"}, {"guideline": "v\0"}, {"levels": "9" * 5000}, {"colour": "red"}):
        arms = {"a": {"change": wrong}, "b": {}}
        sent_text = json.dumps({"name": "wrong", "arms": arms})
        answer = admin.post("/api/v1/experiments", content=sent_text, headers={"content-type": "application/json"})
        assert answer.status_code == 422, wrong
    body["name"] = "more"
    assert admin.post("/api/v1/experiments", json=body).status_code == 422  # both change rationale
    rater = site.browser("annotator")
    rater.post("/work", sent(rater.get("/work").text, choice="0"))
    [found] = admin.get("/api/v1/experiments").json()
    assert {name: found[name] for name in about} == about
    assert sum(found["drawn"].values()) == 1
    assert {one["unit"] for one in found["effects"]} == {"rater"}
    end_experiment(site.store, "why", now=9.0)
    [ended] = admin.get("/api/v1/experiments").json()
    assert (ended["running"], ended["arms"], len(ended["effects"])) == (False, {}, len(found["effects"]))


def test_the_command_sets_up_ends_and_reports(tmp_path, capsys):
    address = str(tmp_path / "k.db")
    open_store(address).close()
    make = ["experiment", address, "scale", "--arm", "seven", "--arm", "binary = 2: levels = 2"]
    assert cli.main([*make, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"experiment": "scale", "done": "experiment made"}
    assert cli.main(["experiment", address, "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)["experiments"]
    assert (listed["experiment"], listed["drawn"], listed["effects"]) == ("scale", {"seven": 0, "binary": 0}, [])
    assert cli.main(["experiment", address]) == 0
    assert capsys.readouterr().out == "scale: running; binary (0 raters), seven (0 raters)\n"
    assert cli.main(["experiment", address, "scale", "--end"]) == 0
    for arguments, said in (
        (["scale", "--end"], "none by the name"),
        (["--end"], "found no name"),
        (["x", "--arm", "a"], "two or more"),
        (["nothing"], "lists them"),
    ):
        capsys.readouterr()
        assert cli.main(["experiment", address, *arguments]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line


# What it did


def test_the_effect_of_a_drawn_task_is_over_tasks_not_over_votes(tmp_path):
    site = web_app.served(tmp_path, 12)
    site.store.add_annotators([Annotator(f"r{i}") for i in range(3)])
    arm_of = {}
    for number, task in enumerate(site.store.tasks()):
        arm = arm_of[task.id] = "slow" if number % 2 else "fast"
        for i in range(3):
            seconds = 10.0 + number + (5.0 if arm == "slow" else 0.0)
            site.store.submit(
                dataclasses.replace(vote(task, f"r{i}", level=2, active_s=seconds), shown={"arms": {"pace": arm}})
            )
    effects = {one.outcome: one for one in experiment_effects(site.store, np.random.default_rng(0))}
    found = effects["seconds of activity"]
    assert (found.unit, found.report.n_raters) == ("task", 12)
    means = {arm.arm: arm.mean.value for arm in found.report.arms}
    fast = [10.0 + n for n in range(0, 12, 2)]
    slow = [15.0 + n for n in range(1, 12, 2)]
    assert means == {"fast": pytest.approx(np.mean(fast)), "slow": pytest.approx(np.mean(slow))}
    [difference] = [arm.difference for arm in found.report.arms if arm.difference is not None]
    # Welch over six tasks each, by hand
    half = 2.2281388519649385 * np.sqrt(np.var(fast, ddof=1) / 6 + np.var(slow, ddof=1) / 6)
    assert difference.value == pytest.approx(6.0)
    assert (difference.low, difference.high) == (pytest.approx(6.0 - half), pytest.approx(6.0 + half))
    assert {arm.mean.value for arm in effects["agreement of raters"].report.arms} == {1.0}


def test_names_that_the_store_cannot_hold_are_refused_before_anybody_is_drawn():
    for experiments in ({"x" * 65: {"a": 1.0}}, {"x": {"a" * 65: 1.0}}, {"": {"a": 1.0}}):
        with pytest.raises(InputError, match="expected 1 to 64"):
            check_experiments(experiments, {}, {})


@pytest.mark.parametrize("body", [{"levels": None}, {"levels": 2.5}, {"pay": []}, {"guideline": 5}, {"tie": None}])
def test_plain_json_that_is_no_change_is_refused(body):
    with pytest.raises(InputError, match=f"found {min(body)} = "):
        change_of(body)


def test_only_answers_given_in_an_arm_count_and_an_arm_without_anybody_is_named(tmp_path, capsys):
    site = web_app.served(tmp_path, 4)
    store, tasks = site.store, site.store.tasks()
    store.add_annotators([Annotator("before")])
    rater = site.browser("annotator")
    rater.post("/work", sent(rater.get("/work").text, choice="0", active_s="300"))  # before it began: nobody's arm
    make_experiment(
        store, "layout", [("side", 1.0, ArmChange()), ("stacked", 1.0, ArmChange(layout="stacked"))], now=2.0
    )
    for seconds in ("10", "20"):
        rater.post("/work", sent(rater.get("/work").text, choice="0", active_s=seconds))
    end_experiment(store, "layout", now=3.0)
    rater.post("/work", sent(rater.get("/work").text, choice="0", active_s="500"))
    assert len(store.judgements()) == len(tasks)
    [found] = [
        one for one in experiment_effects(store, np.random.default_rng(0)) if one.outcome == "seconds of activity"
    ]
    assert (found.report.arms[0].mean.value, found.without) == (15.0, ())  # it has ended: nobody is waited for
    make_experiment(store, "tie", [("apart", 1.0, ArmChange(tie="apart")), ("scale", 1.0, ArmChange())], now=4.0)
    store.add_tasks([dataclasses.replace(tasks[0], batch="more")])
    put_settings(store, dataclasses.replace(project_settings(store), gold_rate=0.0, repeat_rate=0.0), now=4.0)
    other = site.browser(account=accounts.make_account(store, "annotator", now=4.0).id)
    other.post("/work", sent(other.get("/work").text, choice="0"))
    [found] = [one for one in experiment_effects(store, np.random.default_rng(0)) if (one.experiment, one.outcome) == ("tie", "seconds of activity")]  # fmt: skip
    drawn = found.report.arms[0].arm
    [empty] = {"apart", "scale"} - {drawn}
    assert found.without == (empty,)
    assert (
        f"{empty}: nobody yet, so there is nothing to compare with"
        in site.browser("admin").get("/admin/experiments").text
    )
    assert cli.main(["experiment", store.address, "tie"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0].partition(";")[0], lines[1]] == ["tie: running", "tie, seconds of activity (1 rater):"]
    assert f"{drawn} (1 rater)" in lines[0]
    assert f"{empty} (0 raters)" in lines[0]
    assert lines[2].split() == [drawn, "60.000", "no", "interval:", "found", "1", "rater,", "an", "interval", "needs", "2,", "1", "rater"]  # fmt: skip
    assert lines[3].split() == [empty, "no", "rater", "yet:", "nothing", "to", "compare", "with"]


def test_the_command_says_what_can_be_told_of_each_arm(tmp_path, capsys):
    site = web_app.served(tmp_path, 12)
    site.store.add_annotators([Annotator("r0")])
    for number, task in enumerate(site.store.tasks()):
        arm = "slow" if number % 2 else "fast"
        given = vote(task, "r0", level=2, active_s=10.0 + number % 3 + (50.0 if arm == "slow" else 0.0))
        site.store.submit(dataclasses.replace(given, shown={"arms": {"pace": arm}}))
    assert cli.main(["experiment", site.store.address]) == 0
    said = capsys.readouterr().out
    assert "pace, seconds of activity (12 tasks):" in said
    assert re.search(r"difference from fast 50\.000 \[.*\], p = 0\.\d+: above 0", said)
    assert re.search(r"share of ties.*\n.*no interval: tasks are all alike, 6 tasks", said)
    assert "permutation of tasks among arms" in said
