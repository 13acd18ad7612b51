"""What is paid: the rater's own page, the admin's page of her and the overview show one figure from one definition."""

import html
import re

import pytest

import web_app
from feedback_cases import vote
from karat.feedback.documents import Pay, ProjectSettings, put_settings
from karat.feedback.people import accounts
from karat.feedback.work.outlay import outlay
from karat.feedback.work.rates import own_pay


def text_of(answer) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).replace("\u202f", " ").split())


@pytest.mark.parametrize(
    ("per", "hers", "others", "total"), [("hour", "0.40", "0.10", "0.50"), ("judgement", "36.00", "18.00", "54.00")]
)
def test_her_page_the_admins_page_and_the_overview_show_one_figure(tmp_path, per, hers, others, total):
    """20 s, its correction of 40 s, an answer without a time: 80 s and 2 answers; another's answer without a time: 20 s."""
    site = web_app.served(tmp_path)
    store, who = site.store, site.annotator()
    put_settings(store, ProjectSettings(pay=Pay(18.0, "EUR", per)), now=site.now)
    other = accounts.make_account(store, "annotator", now=site.now)
    first, second = store.tasks()[:2]
    given = store.submit(vote(first, who, active_s=20.0))
    store.submit(vote(first, who, level=0, key="again", supersedes=given.id, active_s=40.0))
    store.submit(vote(second, who))
    store.submit(vote(second, other.annotator))
    admin = site.browser("admin")
    for account, money in ((site.accounts["annotator"], hers), (other, others)):
        assert f"So far {money} EUR" in text_of(site.browser(account=account.id).get("/me"))
        assert f"Earned {money} EUR" in text_of(admin.get("/admin/rater", params={"who": account.annotator}))
    assert f"Paid so far {total} EUR" in text_of(admin.get("/admin"))
    assert own_pay(store, who)[1] == 80.0
    assert outlay(store).paid_s == 100.0


def test_where_nothing_is_paid_her_time_is_there_all_the_same(tmp_path):
    site = web_app.served(tmp_path)
    site.store.submit(vote(site.store.tasks()[0], site.annotator(), active_s=300.0))
    said = text_of(site.browser("annotator").get("/me"))
    assert "Active time 5 min" in said
    assert "So far" not in said
    assert own_pay(site.store, "nobody") == (None, 0.0)
