"""Progress without a terminal: lines at a steady pace, with rate and time left, on the stream given."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from karat.progress import BarDisplay, LineDisplay, counted, duration, in_round, open_progress


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_every_few_seconds_with_rate_and_time_left():
    clock, stream = Clock(), io.StringIO()
    with LineDisplay(stream, interval_s=5.0, clock=clock).stage("ppo", 20) as stage:
        for step in range(1, 11):
            clock.now = float(step)
            stage.log(step, {"kl": 0.5 * step})
    lines = stream.getvalue().splitlines()
    assert lines == [
        "ppo: started, 20 steps",
        "ppo: 5/20 steps, 1/s, 15.0 s left; kl 2.5",
        "ppo: 10/20 steps, 1/s, 10.0 s left; kl 5",
        "ppo: done in 10.0 s; kl 5",
    ]


def test_a_resumed_stage_does_not_count_earlier_steps_into_its_rate():
    clock, stream = Clock(), io.StringIO()
    with LineDisplay(stream, interval_s=1.0, clock=clock).stage("ppo", 104) as stage:
        for step in (101, 102):
            clock.now += 1.0
            stage.log(step, {})
    assert "ppo: 102/104 steps, 1/s, 2.0 s left" in stream.getvalue()


def test_advance_counts_without_a_total():
    clock, stream = Clock(), io.StringIO()
    with LineDisplay(stream, interval_s=1.0, clock=clock).stage("votes", unit="votes") as stage:
        clock.now = 2.0
        stage.advance(500, rate=1)
    assert "votes: 500 votes, 250/s; rate 1" in stream.getvalue().splitlines()


def test_counting_work_counts_its_first_report_into_the_rate():
    clock, stream = Clock(), io.StringIO()
    with LineDisplay(stream, interval_s=1.0, clock=clock).stage("score", unit="responses") as stage:
        clock.now = 2.0
        stage.reach(256, of=1024)
    assert "score: 256/1,024 responses, 128/s, 6.0 s left" in stream.getvalue().splitlines()


def test_waiting_says_each_count_once_and_rates_only_what_came_since():
    clock, stream = Clock(), io.StringIO()
    with LineDisplay(stream, interval_s=5.0, clock=clock).stage("judgements", 48, "answers") as stage:
        stage.resume(40)
        for now, done, wanted in (
            (60, 40, 48),
            (120, 40, 48),
            (600, 44, 48),
            (606, 44, 48),
            (660, 44, 46),
            (720, 46, 46),
        ):
            clock.now = float(now)
            stage.reach(done, of=wanted)
    assert stream.getvalue().splitlines() == [
        "judgements: started, 48 answers",
        "judgements: 40/48 answers",
        "judgements: 44/48 answers, 0.4/min, 10 min 00 s left",
        "judgements: 44/46 answers, 0.364/min, 5 min 30 s left",
        "judgements: 46/46 answers, 0.5/min",
        "judgements: done in 12 min 00 s",
    ]


def test_a_stage_that_counts_nothing_is_not_announced():
    clock, stream = Clock(), io.StringIO()
    display = LineDisplay(stream, interval_s=5.0, clock=clock)
    with counted(display, "last layer", "draws"):
        pass
    assert not stream.getvalue()
    with counted(display, "last layer", "draws") as count:
        for n in (1, 2):
            clock.now += 6.0
            count(n, 4)
    assert stream.getvalue().splitlines() == [
        "last layer: started, 4 draws",
        "last layer: 2/4 draws, 0.333/s, 6.0 s left",
        "last layer: done in 6.0 s",
    ]


def test_nobody_who_watches_is_told_nothing():
    with counted(None, "last layer", "draws") as count:
        assert count is None


def test_large_figures_are_said_in_full():
    clock, stream = Clock(), io.StringIO()
    with LineDisplay(stream, interval_s=1.0, clock=clock).stage("sft", 10) as stage:
        clock.now = 2.0
        stage.log(1, {"n_tokens": 17_834.4, "loss": 0.12345})
    assert "sft: 1/10 steps, 0.5/s, 18.0 s left; n_tokens 17,834 loss 0.123" in stream.getvalue()


def test_a_stage_that_is_not_announced_says_nothing_when_it_fails_at_once():
    clock, stream = Clock(), io.StringIO()
    display = LineDisplay(stream, interval_s=1.0, clock=clock)
    with pytest.raises(ValueError, match="input"), display.stage("score", announced=False):
        raise ValueError("input")
    assert stream.getvalue() == ""
    with display.stage("score", unit="rows", announced=False) as stage:
        clock.now = 2.0
        stage.advance(4)
    assert stream.getvalue().splitlines() == ["score: 4 rows, 2/s", "score: done in 2.0 s"]


def test_no_terminal_means_lines_and_standard_output_stays_clean(capsys):
    stream = io.StringIO()
    with open_progress(stream=stream) as progress, progress.stage("sft", 1) as stage:
        stage.advance()
        progress.note("kept")
    assert stream.getvalue().splitlines()[0] == "sft: started, 1 steps"
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_bars_that_end_in_one_line():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with open_progress(stream=stream) as progress, progress.stage("sft", 2) as stage:
        stage.log(1, {"loss": 1.0})
        stage.log(2, {"loss": 0.5})
    assert "loss 0.5" in stream.getvalue()
    assert "sft" in stream.getvalue()


def test_figures_beside_a_bar_are_cut_to_the_line_and_said_in_full_at_its_end():
    bars = Bars(console=Console(file=io.StringIO()))
    with BarDisplay(bars, room=8).stage("ppo", 2) as stage:
        stage.log(1, {"score": 0.5, "kl": 0.25})
        assert bars.tasks[0].fields["figures"] == "score 0…"
    assert "score 0.5 kl 0.25" in bars.console.file.getvalue()


def test_durations_are_said_as_people_say_them():
    assert [duration(s) for s in (0.04, 59.9, 59.96, 3599.7, 7320)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "2 h 02 min",
    ]  # fmt: skip


def test_the_stages_of_a_later_round_say_so():
    stream = io.StringIO()
    display = LineDisplay(stream, clock=Clock())
    assert in_round(display, 1) is display
    second = in_round(display, 2)
    with second.stage("votes", 40, "votes"):
        second.note("collect-2: done before, kept")
    with second.stage("ppo", announced=False):
        pass
    assert stream.getvalue().splitlines() == [
        "votes, round 2: started, 40 votes", "collect-2: done before, kept", "votes, round 2: done in 0.0 s",
        "ppo, round 2: done in 0.0 s",
    ]  # fmt: skip
