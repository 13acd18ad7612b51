"""Time to score where a score is of as many responses on both sides: the seventh design, RLOO on `word`.

    python -m bench.equal_scores_study --search [--minutes 7]
    python -m bench.equal_scores_study --races [--seed 12 13 14]
    python -m bench.equal_scores_study --tables

TRL's final score is the mean of its last three iterations, 96 responses; on `word` it is mostly 10.00, none of them short of four times the word. In
the designs before, a score of ours was the mean of three iterations too, whatever they had: 192 responses at 64 an iteration, all of which had to
be without a fault, while a run of TRL's with 16 samples a prompt needed one iteration of 128. Written down before the first run of this one:

- **A score** is the mean of the last iterations that hold 96 responses, the least number of them, for both sides: three of 32, two of 48 or 64,
  one of 96 or 128. TRL's mark and its other setting are read as before. So were samples in the study of fewer samples.
- **This helps us**, on the seeds raced before: read so, the sixth design's races on seeds 6, 7 and 8 would all have their mark. They do not count here.
- **Before it**, six runs of ours on seeds 400 and 401 asked whether momentum makes the score swing (docs/LOG.md); they choose nothing.
- **The list** (`LISTS`): the sixth design's choice and the same with fewer iterations over which the rate falls, at 3e-3, and with 6 and 12 samples a
  prompt, whose iterations hold 48 and 96 responses. All else is as in the sixth design: what a run of the search is, its marks, CAP and cost, TRL's two settings.
- **The search**: every setting on seeds 320 to 322; the cheapest is ours. Runs that can no longer change the choice are left out.
- **What counts**: seeds 12, 13 and 14, which nothing saw; raced as in the sixth design. The target is met by the median of the three ratios of
  wall-clock time, where ours reaches the mark on all three.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # started as a file
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.own_options import NO_CLIP
from bench.own_steps_study import Design, main, setting
from bench.score_cells import Setting
from bench.turns import ROOT

LISTS: dict[str, tuple[Setting, ...]] = {
    "word": (
        setting(2e-3, 1, 8, max_grad_norm=NO_CLIP),
        setting(2e-3, 1, 8, max_grad_norm=NO_CLIP, n_iterations=12),
        setting(3e-3, 1, 8, max_grad_norm=NO_CLIP),
        setting(3e-3, 1, 8, max_grad_norm=NO_CLIP, n_iterations=10),
        setting(2e-3, 1, 12, max_grad_norm=NO_CLIP),
        setting(3e-3, 1, 12, max_grad_norm=NO_CLIP),
        setting(2e-3, 1, 6, max_grad_norm=NO_CLIP),
        setting(3e-3, 1, 12, max_grad_norm=NO_CLIP, max_step_kl=1.0),
    )
}
DESIGN = Design(
    LISTS,
    {"word": ((320, 321, 322),)},
    (12, 13, 14),
    ROOT / "bench" / "results" / "equal_scores_study.json",
    ("<!-- equal_scores_study: begin -->", "<!-- equal_scores_study: end -->"),
    responses=96,
)

if __name__ == "__main__":
    main(DESIGN, __doc__)
