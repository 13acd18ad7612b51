"""How far one reward is from another, whatever constant each prompt has: an EPIC-type distance.

Knows numbers only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from karat.errors import InputError


def epic_distance(first: ArrayLike, second: ArrayLike, prompt: ArrayLike) -> float:
    """Distance of two rewards on the same responses, 0 (the same up to scale and a constant a prompt) to 1 (opposite).

        C(r)(x, y) = r(x, y) − mean_{y' ~ D(x)} r(x, y')        d = √((1 − ρ(C(r₁), C(r₂)))/2)

    With one step and no discount the potential of EPIC is a constant a prompt, and D the policy whose responses these are.

    Args:
        first, second: rewards of each response [N].    prompt: what each answers [N]; prompts with one response are left out.
    Returns: NaN where a reward is constant within every prompt.
    Raises: InputError for columns of different lengths.
    Source: Gleave et al. 2021, arXiv:2006.13900 definitions 4.1 and 4.7; sample canonicalisation over a policy's
        responses as in Wulfe et al. 2022, arXiv:2201.10081.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    _, code = np.unique(np.asarray(prompt), return_inverse=True)
    if not one.shape == two.shape == code.shape:
        raise InputError(f"epic_distance: found lengths {one.shape}, {two.shape}, {code.shape}; expected one length")
    n = np.bincount(code)
    kept = n[code] > 1
    one, two = (x - (np.bincount(code, x) / n)[code] for x in (one, two))
    one, two = one[kept], two[kept]
    scale = float(np.sqrt((one @ one) * (two @ two)))
    if scale <= 1e-300:
        return float("nan")
    return float(np.sqrt(max(0.0, (1 - (one @ two) / scale) / 2)))
