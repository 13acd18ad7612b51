"""How the people beside a reward are fitted. Knows numbers, shares and their limits; knows no votes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from karat.config import check_shares, in_range
from karat.errors import ConfigError
from karat.reward.jury import N_JURORS, JuryComposition
from karat.reward.personal import Limits


@dataclass(frozen=True)
class PluralismConfig:
    """How the people beside a reward model are fitted and reported."""

    enabled: bool = False
    """True = fit the population beside the reward; needs some votes of each rater, and a minute at the demo's size."""
    n_features: int = 16
    """Directions of the reward's features, plain ones (`reward.beside`) included, on which people are fitted beside its own score."""
    max_rank: int = 3
    """Largest rank tried; held-out votes choose. 0 = one reward for all, whatever the votes say."""
    max_kinds: int = 3
    """Largest number of kinds of people tried in the mixture; held-out votes choose."""
    n_starts: int = 3
    """Starts of each mixture."""
    min_votes: float = 8.0
    """Median votes a rater below which no population is fitted: there would be nothing to tell people apart by."""
    jury: dict[str, float] | None = None
    """Group → share of the jury's seats; shares sum to 1, whole numbers are counts; None = equal seats for all declared groups."""
    n_jurors: int = N_JURORS
    """Seats of the jury."""
    target: dict[str, dict[str, float]] | None = None
    """Target population, {"group": {declared group: share}}, for the raked fit; shares sum to 1, whole numbers are counts; None = no raked fit."""
    floors: dict[str, float] = field(default_factory=dict)
    """Objective → lowest acceptable score: what no personal taste may override."""
    principles: tuple[str, ...] = ()
    """Labelled principles that no personal taste may override."""

    def __post_init__(self) -> None:
        in_range("pluralism", self, 1, inf, "n_features", "max_kinds", "n_starts", "n_jurors")
        in_range("pluralism", self, 0, inf, "max_rank", "min_votes")
        if strange := sorted(set(self.target or {}) - {"group"}):
            raise ConfigError(
                f"pluralism.target: found the field {strange[0]!r}; expected only `group`, which a votes file declares: "
                "what raters say on their page is read by `karat quality --population` alone"
            )
        for field_name, shares in (self.target or {}).items():
            check_shares(f"pluralism.target: {field_name}", shares)
        if self.jury is not None:
            check_shares("pluralism.jury", self.jury)
            JuryComposition(self.jury, self.n_jurors)
        for name in ("floors", "principles"):
            if getattr(self, name) and not self.enabled:
                raise ConfigError(
                    f"pluralism.{name}: found it without a population whose tastes it could bound; expected "
                    f"pluralism.enabled: true, or no {name}"
                )

    @property
    def limits(self) -> Limits:
        """Floors and principles together."""
        return Limits(dict(self.floors), self.principles)
