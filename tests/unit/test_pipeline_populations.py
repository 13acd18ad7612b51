"""What is said of a population before anything is trained."""

import pytest

from karat.errors import InputError
from karat.pipeline.populations import check_groups
from karat.reward.people_fit import PluralismConfig
from two_groups import opinions


@pytest.mark.parametrize("aggregator", ["worst_group", "jury_median"])
def test_groups_without_votes_enough_are_refused_before_training(aggregator):
    votes, *_ = opinions(n_prompts=9)
    many = PluralismConfig(enabled=True, min_votes=100)
    with pytest.raises(
        InputError, match=rf"found {aggregator} and too few votes .*a median of 9 votes a rater; .*needs 100"
    ):
        check_groups(votes, many, aggregator, ["preference"])
    check_groups(votes, PluralismConfig(enabled=True), aggregator, ["preference"])
    check_groups(votes, many, "mean_score", ["preference"])
    check_groups(votes, many, aggregator, ["helpful", "honest"])  # these stand in the groups' place
