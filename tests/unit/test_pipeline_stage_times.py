"""When a stage ended is told finely enough: which method a run ended with is read from it."""

import time

from karat.pipeline.stages import utc_now


def test_what_follows_within_a_second_is_later():
    first = utc_now()
    time.sleep(0.002)
    assert first < utc_now()


def test_a_time_of_an_older_manifest_in_the_same_second_is_earlier():
    now = utc_now()
    older = f"{now[: len('2026-11-29T03:00:01')]}+00:00"  # as they were written, without milliseconds
    assert older < now
    assert now < older.replace("+00:00", ".999+00:01")
    assert len(now) == len("2026-11-29T03:00:01.000+00:00")
