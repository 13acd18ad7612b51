"""The page: one file, nothing from outside, foreign text only as text, and what is missing is said."""

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from karat.errors import InputError
from karat.ledger.lineage import ArtifactRef, Manifest
from karat.records import Estimate, Finding
from karat.report import page as page_module
from karat.report.figures import AtlasCell, Bin, Panel, Series, atlas_figure, calibration_figure, panels_figure
from karat.report.page import (
    AttributedText,
    Curve,
    FeedbackSummary,
    ReportInput,
    ResponseShown,
    SampleShown,
    format_estimate,
    render_page,
    verdict,
    write_page,
)
from karat.report.titles import COLUMNS, policy_title

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>&\u2028"
GOLD = Estimate(0.29, 0.262, 0.316, 400, "paired")


def full_input(text: str = HOSTILE) -> ReportInput:
    series = Series(text, (1.0, 4.0), (0.1, None), (0.0, None), (0.2, None), (text, text), "gold")
    manifest = Manifest(
        text,
        "ppo",
        (ArtifactRef("m", text, "tree:12", "x"),),
        (),
        {"a": text},
        {"s": 1},
        {},
        None,
        "",
        "t",
        3.0,
        notes=(text,),
    )
    return ReportInput(
        run_id=text,
        title=text,
        manifests=(manifest,),
        policies={
            text: {"gold": GOLD, text: replace(GOLD, method=text)},
            "sft": {"gold": Estimate(None, None, None, 0, text)},
        },
        difference=GOLD,
        unsafe=(text,),
        findings=(
            Finding("gate." + text, text, "fail", GOLD, text, text),
            Finding("challenge.D1", text, "info", GOLD, text),
            Finding("watch", text, "warn"),
            Finding("inside." + text, text, "info", GOLD, text),
        ),
        curves=(Curve(text, text, (Panel(text, (series,)),), text),),
        calibration=(Bin(0.5, 0.4, 0.3, 0.5, 10),),
        frontier=(Panel(text, (series,)),),
        held_out=((text, GOLD),),
        feedback=FeedbackSummary(
            10, 2, 5, text, text, GOLD, None, ((text, 3), ("tie", 0)), notes=(text,), answers=((text, 3),)
        ),
        samples=(SampleShown(text, (ResponseShown(text, text, 0.5, None),)),),
        atlas=(AtlasCell(0.0, 1.0, 9, 0.5, -0.5, (text,), (text,), ((text, 1.0),)),),
        atlas_explained_frac=0.4,
        attributed=(AttributedText(text, (text, "b"), (0.5, -0.25), 1.0, text),),
        notes=(text,),
    )


class Seen(HTMLParser):
    """Elements and attributes of a page, script contents left out."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch):
    monkeypatch.setattr(page_module, "_plotly", lambda: "window.Plotly = null;")


def test_foreign_text_stays_text_everywhere():
    harmless, hostile = Seen(render_page(full_input("plain"))), Seen(render_page(full_input()))
    assert hostile.tags == harmless.tags
    assert "onerror" not in dict(hostile.attributes)
    assert hostile.text.count("alert(1)") > 20


def test_held_out_figures_stand_with_what_they_rest_on():
    told = Finding("held_out.rating.honest", "How much better?", "info", GOLD, "12 judgements trained on")
    page = replace(full_input("plain"), held_out=(("How much better?", GOLD),), findings=(told,))
    assert "How much better?12 judgements trained on" in Seen(render_page(page)).text


def test_the_page_refers_to_nothing_outside_itself():
    seen = Seen(render_page(full_input("plain")))
    for name, value in seen.attributes:
        if name in ("src", "href", "action", "data", "poster", "srcset"):
            assert value.startswith("#"), (name, value)
    assert "link" not in seen.tags
    policy = next(value for name, value in seen.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    css = (Path(page_module.__file__).parent / "templates" / "report.css").read_text()
    assert not re.search(r"url\(|@import", css)


def test_the_figures_come_back_from_the_script_element():
    text = render_page(full_input())
    block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL).group(1)
    figures = json.loads(block)
    assert set(figures) == {"curve-0", "calibration", "frontier", "atlas"}
    assert figures["curve-0"]["data"][1]["name"] == HOSTILE
    assert figures["frontier"]["data"][1]["x"] == [1.0, 2.0]


def test_plotly_is_inlined_once_and_only_where_there_is_a_figure(monkeypatch):
    monkeypatch.setattr(page_module, "_plotly", lambda: "PLOTLY-SOURCE")
    assert render_page(full_input("plain")).count("PLOTLY-SOURCE") == 1
    assert "PLOTLY-SOURCE" not in render_page(ReportInput("demo", "Nothing yet"))


def test_an_empty_run_says_not_measured_instead_of_leaving_out():
    text = Seen(render_page(ReportInput("demo", "Nothing yet"))).text
    assert text.count("not measured") == 14 + 5
    assert "has not been measured" in text
    for heading in ("Policies", "Acceptance gate", "Training", "Reward model", "Votes", "Samples", "Lineage"):
        assert heading in text


def test_unsafe_options_stand_before_everything_else():
    text = Seen(render_page(replace(full_input("plain"), unsafe=("allow_ungated_reward is set",)))).text
    assert text.index("allow_ungated_reward is set") < text.index("better than") < text.index("Acceptance gate")
    assert "Unsafe options" not in render_page(replace(full_input("plain"), unsafe=()))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.3, "PPO is better than SFT"), (-0.3, -0.1, "PPO is worse than SFT"), (-0.1, 0.1, "No difference")],
)
def test_the_verdict_says_what_the_interval_allows(low: float, high: float, words: str):
    content = ReportInput("demo", "t", difference=Estimate((low + high) / 2, low, high, 50, "paired"))
    assert verdict(content).startswith(words)
    assert "gold reward" in verdict(content)
    assert "50 prompts" in verdict(content)


def test_why_there_is_no_figure_is_said_once():
    none = Finding("reward.a", "?", "info", Estimate(None, None, None, 20, "20 judgements; it takes 40"))
    assert render_page(ReportInput("demo", "t", findings=(none,))).count("20 judgements; it takes 40") == 1


def test_a_run_that_its_gate_stopped_says_so_first():
    gate = (Finding("gate.likelihood", "?", "fail"),)
    said = "The reward did not pass its gate, and no policy was optimised on it."
    assert verdict(ReportInput("demo", "t", findings=gate)) == said
    assert verdict(ReportInput("demo", "t", findings=(Finding("gate.likelihood", "?", "pass"),))) != said
    # where somebody allowed it, the policy is there and only not measured yet
    trained = full_input().manifests[0]
    assert "has not been measured" in verdict(ReportInput("demo", "t", findings=gate, manifests=(trained,)))


def test_policies_are_called_by_one_name_and_rows_and_columns_are_explained():
    columns = dict.fromkeys(("gold", "distinct", "reward_distance"), GOLD)
    content = ReportInput(
        "demo", "t", policies={"sft": columns, "best_of_4": columns, "online_dpo": columns}, difference=GOLD,
        difference_of="online_dpo", algorithm="DPO on pairs",
    )  # fmt: skip
    seen = Seen(render_page(content)).text
    assert "Online DPO is better than SFT" in seen
    assert "Paired difference of gold reward, Online DPO − SFT" in seen
    assert "online_dpo" not in seen
    for name in ("sft", "best_of_4", "online_dpo"):
        assert policy_title(name) in seen
    assert "of 4 responses by SFT" in seen
    assert "DPO on pairs" in seen
    for name in columns:
        assert COLUMNS[name][1] in seen
        assert COLUMNS[name][1] != COLUMNS[name][0]


def test_negative_numbers_have_one_sign_in_sentences_and_tables_and_names_keep_their_hyphens():
    told = Finding(
        "gate.x", "How much?", "info", detail="by -0.004 [-0.048, 0.040], at most 1e-06, model gpt-2, 10-20, -x"
    )
    seen = Seen(render_page(ReportInput("demo", "t", findings=(told,)))).text
    assert "by −0.004 [−0.048, 0.040], at most 1e-06, model gpt-2, 10-20, -x" in seen


def test_a_marked_position_is_a_line_through_all_panels():
    panel = Panel("a", (Series("a", (1.0, 4.0), (0.1, 0.2)),))
    assert "shapes" not in panels_figure([panel], x_title="x")["layout"]
    (line,) = panels_figure([panel, panel], x_title="x", marked=3.0)["layout"]["shapes"]
    assert (line["x0"], line["x1"], line["yref"], line["y0"], line["y1"]) == (3.0, 3.0, "paper", 0, 1)


def test_the_verdict_has_the_digits_of_the_table_below_it():
    content = ReportInput("demo", "t", difference=Estimate(-3.0, -3.14, -2.87, 160, "paired"))
    assert "gold reward −3.00 (95 % interval −3.14 to −2.87, 160 prompts)" in verdict(content)


def test_figures_have_the_digits_that_their_interval_supports():
    assert format_estimate(Estimate(0.4123, 0.35, 0.47, 9, "")) == ("0.41", "0.35 to 0.47")
    assert format_estimate(Estimate(-1.23456, -1.235, -1.234, 9, ""))[0] == "−1.2346"
    assert format_estimate(Estimate(1834.2, 1500.0, 2100.0, 9, "")) == ("1,834", "1,500 to 2,100")
    assert format_estimate(Estimate(20, 0.05, 20, 9, "")) == ("20", "0.05 to 20")  # 0 is not in it
    assert format_estimate(Estimate(-3.2, -20, -0.04, 9, "")) == ("−3", "−20 to −0.04")
    assert format_estimate(Estimate(3, 0, 20, 9, "")) == ("3", "0 to 20")
    assert format_estimate(Estimate(0.5, None, None, 9, "")) == ("0.5", "no interval")
    assert format_estimate(Estimate(None, None, None, 0, "all votes tied")) == ("–", "all votes tied")
    assert format_estimate(None) == ("–", "not measured")


def test_panels_share_one_axis_do_not_overlap_and_gaps_stay_gaps():
    line = Series("a", (0.0, 1.0, 2.0), (1.0, None, 3.0))
    figure = panels_figure([Panel("one", (line,)), Panel("two", (line,)), Panel("three", (line,))], x_title="step")
    domains = [figure["layout"][name]["domain"] for name in ("yaxis", "yaxis2", "yaxis3")]
    for above, below in itertools.pairwise(domains):
        assert below[1] < above[0]
    assert domains[0][1] == 1
    assert domains[2][0] == pytest.approx(0, abs=1e-9)
    assert figure["layout"]["xaxis"]["anchor"] == "y3"
    assert [trace["y"] for trace in figure["data"]] == [[1.0, None, 3.0]] * 3
    assert [trace["showlegend"] for trace in figure["data"]] == [False] * 3  # the titles of the panels name them


def test_a_legend_names_each_series_once_and_points_always():
    line, other = (Series(name, (0.0, 1.0), (1.0, 2.0)) for name in "ab")
    point = replace(line, name="c", points=True)
    figure = panels_figure(
        [Panel("one", (line, other)), Panel("two", (line, other)), Panel("three", (point,))], x_title="x"
    )
    assert [trace["name"] for trace in figure["data"] if trace["showlegend"]] == ["a", "b", "c"]


def test_a_long_title_of_a_panel_is_set_in_lines_that_fit_beside_it():
    line = Series("a", (0.0, 1.0), (1.0, 2.0))
    title = "share of responses unlike those judged"
    panels = [Panel(title, (line,)), Panel("KL < 1", (line,))]
    layout = panels_figure(panels, x_title="step")["layout"]
    lines = layout["yaxis"]["title"]["text"].split("<br>")
    assert " ".join(lines) == title
    assert max(map(len, lines)) <= 24
    assert layout["yaxis2"]["title"]["text"] == "KL ‹ 1"


def test_intervals_are_bands_on_lines_and_bars_on_points():
    line = Series("a", (0.0, 1.0), (1.0, 2.0), (0.5, 1.5), (1.5, 2.5))
    band, _ = panels_figure([Panel("p", (line,))], x_title="x")["data"]
    assert (band["x"], band["y"]) == ([0.0, 1.0, 1.0, 0.0], [1.5, 2.5, 1.5, 0.5])
    (points,) = panels_figure([Panel("p", (replace(line, points=True),))], x_title="x")["data"]
    assert points["error_y"]["array"] == [0.5, 0.5]
    bins = calibration_figure([Bin(0.2, 0.3, 0.1, 0.6, 5)])["data"][1]
    assert bins["error_y"]["array"] == [pytest.approx(0.3)]
    assert bins["error_y"]["arrayminus"] == [pytest.approx(0.2)]


def test_a_series_of_unequal_lengths_is_refused():
    with pytest.raises(InputError, match="found 1 y for 2 x; expected as many"):
        Series("a", (0.0, 1.0), (1.0,))
    with pytest.raises(InputError, match="found 1 low for 2 x"):
        Series("a", (0.0, 1.0), (1.0, 2.0), (0.5,))


def test_a_challenge_says_whose_figure_it_shows_with_the_sign_of_the_tables():
    gain = Finding("gate.likelihood", "Is it better than length?", "fail", Estimate(-0.06, -0.2, 0.06, 17, "m"))
    text = " ".join(Seen(render_page(ReportInput("demo", "t", findings=(gain,)))).text.split())
    assert "length and format exploitation Reward model: Is it better than length? −0.06" in text


def test_the_page_is_written_whole(tmp_path: Path):
    write_page(tmp_path / "report.html", full_input("plain"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_series_without_a_role_differ_in_colour_and_keep_it_across_panels():
    first, second = (Series(name, (0.0,), (1.0,)) for name in ("ppo", "best of n"))
    traces = panels_figure([Panel("gold", (first, second)), Panel("proxy", (second,))], x_title="x")["data"]
    colours = [trace["line"]["color"] for trace in traces]
    assert colours[0] != colours[1] == colours[2]


def test_the_head_counts_only_what_was_held_against_a_threshold():
    gate = tuple(Finding(f"gate.{status}", "?", status) for status in ("pass", "pass", "fail", "info"))
    assert "<dd>2 of 3 passed</dd>" in render_page(ReportInput("demo", "t", findings=gate))
    unmeasured = (*gate, Finding("gate.praise", "?", "not measured"))
    assert "<dd>2 of 3 passed, 1 not measured</dd>" in render_page(ReportInput("demo", "t", findings=unmeasured))


def test_the_atlas_shows_each_cells_responses_and_lets_the_measure_be_chosen():
    cells = [
        AtlasCell(0.0, 0.0, 4, 1.0, -1.0, ("signed <b>velvet</b>",), ("velvet",), (("ppo", 0.75), ("sft", 0.25))),
        AtlasCell(1.0, 0.0, 16, -1.0, 0.5, ("x" * 200,), ()),
    ]
    figure = atlas_figure(cells)
    marker = figure["data"][0]["marker"]
    assert marker["color"] == [2.0, -1.5]
    assert (marker["cmin"], marker["cmax"]) == (-2.0, 2.0)
    assert marker["size"] == [9 + 27 / 2, 36]
    # begins where the axis' labels do: beside the cells the third button would touch the edge of a phone
    assert figure["layout"]["updatemenus"][0]["pad"]["l"] == 8 - figure["layout"]["margin"]["l"]
    buttons = figure["layout"]["updatemenus"][0]["buttons"]
    assert {b["label"]: b["args"][0]["marker.color"][0] for b in buttons} == {
        "reward − gold": [2.0, -1.5], "reward": [1.0, -1.0], "gold": [-1.0, 0.5],
    }  # fmt: skip
    first, second = figure["data"][0]["text"]
    assert "<b>4 responses</b> (ppo 75%, sft 25%)<br>reward +1.00, gold -1.00, reward − gold +2.00 (sd)" in first
    assert "signed ‹b›velvet‹/b›" in first
    assert "x" * 96 + "…" in second
    blind = atlas_figure([AtlasCell(0.0, 0.0, 4, 1.0, None, ("a",), ("b",))])
    assert [b["label"] for b in blind["layout"]["updatemenus"][0]["buttons"]] == ["reward"]


def test_words_are_coloured_by_the_size_and_sign_of_their_share():
    text = render_page(ReportInput("r", "t", findings=(Finding("inside.x", "?", "info"),), attributed=(
        AttributedText("q", ("good", "bad"), (0.5, -0.25), 1.0, "sft"),
    )))  # fmt: skip
    assert '<span class="word up" style="--share:70%" title="+0.500">good</span>' in text
    assert '<span class="word down" style="--share:35%" title="-0.250">bad</span>' in text
    assert AttributedText("q", ("a",), (0.0,), 0.0, "sft").coloured == [("a", 0.0, 0.0)]
