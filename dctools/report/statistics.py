# SPDX-License-Identifier: GPL-2.0-or-later
"""Ratios of pairs, their intervals, and what they say."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import scipy.stats

# What a fresh process of a round is: base, base once more (the noise floor, "A/A"), series
ROLES = ["base", "base2", "series"]
CONFIDENCE = 0.95


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Ratio b/a of pairs: estimate, interval, sign-flip p; None where it is undefined."""
    none: dict[str, Any] = {"n": len(a), "ratio": None, "low": None, "high": None, "p": None}
    if not len(a) or not all(x > 0 for x in [*a, *b]):      # nan too
        return none
    d = numpy.log(b) - numpy.log(a)
    result = {**none, "ratio": float(numpy.exp(d.mean()))}
    if len(d) < 2:
        return result
    if numpy.ptp(d) < 1e-12:                                # all ratios alike
        result["low"] = result["high"] = result["ratio"]
    else:
        low, high = scipy.stats.t.interval(CONFIDENCE, len(d) - 1, d.mean(), scipy.stats.sem(d))
        result |= {"low": float(numpy.exp(low)), "high": float(numpy.exp(high))}
    # all 2^n sign flips where that is few, else a fixed sample of them
    result["p"] = float(scipy.stats.permutation_test(
        (d,), lambda x, axis: numpy.mean(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=numpy.inf if len(d) <= 14 else 20000, random_state=0).pvalue)
    return result


def verdict(ab: dict[str, Any], aa: dict[str, Any], more_is_better: bool) -> str:
    """better, worse, none; n/a where one of the intervals is missing."""
    if ab["low"] is None or aa["low"] is None:
        return "n/a"
    floor = min(aa["low"], 1), max(aa["high"], 1)
    if ab["low"] <= 1 <= ab["high"] or floor[0] <= ab["ratio"] <= floor[1]:
        return "none"
    return "better" if (ab["ratio"] > 1) == more_is_better else "worse"


def resolution(row: dict[str, Any]) -> float | None:
    """The smallest difference, as a part of 1, that has a verdict with an interval and a noise floor as these are."""
    ab, aa = row["ab"], row["aa"]
    if ab["low"] is None or aa["low"] is None:
        return None
    return max(ab["high"] / ab["ratio"], ab["ratio"] / ab["low"], aa["high"], 1 / aa["low"]) - 1


def middle(values: Sequence[float]) -> float:
    """Geometric mean, which fits the ratios; the plain one where there are zeros."""
    if not len(values):
        return math.nan
    return float(scipy.stats.gmean(values) if all(v > 0 for v in values) else numpy.mean(values))


def stratified(members: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Ratio b/a over several configurations, each with pairs of its own: [(values a, values b)].

    The mean of the configurations' means. How much they differ among each other is no
    error of it: they are all that there are, not a sample.
    """
    logs = [numpy.log(b) - numpy.log(a) for a, b in members if len(a) and all(x > 0 for x in [*a, *b])]
    result: dict[str, Any] = {"n": sum(map(len, logs)), "ratio": None, "low": None, "high": None, "p": None}
    if not logs:
        return result
    mean = float(numpy.mean([d.mean() for d in logs]))
    result["ratio"] = math.exp(mean)
    if min(map(len, logs)) < 2:
        return result
    parts = numpy.array([d.var(ddof=1) / len(d) for d in logs])
    if parts.sum() < 1e-24:
        return {**result, "low": result["ratio"], "high": result["ratio"]}
    df = parts.sum() ** 2 / sum(v ** 2 / (len(d) - 1) for v, d in zip(parts, logs))       # Welch, Satterthwaite
    reach = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, df) * math.sqrt(parts.sum()) / len(logs)
    result |= {"low": math.exp(mean - reach), "high": math.exp(mean + reach)}
    weighted = numpy.concatenate([d / len(d) for d in logs])
    result["p"] = float(scipy.stats.permutation_test(
        (weighted,), lambda x, axis: numpy.sum(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=numpy.inf if len(weighted) <= 14 else 20000, random_state=0).pvalue)
    return result


def analyse(runs: Sequence[dict[str, Any]], metrics: dict[str, tuple[str, str, bool]]) -> dict[str, dict[str, Any]]:
    """Per metric: values in matched pairs, A/B and A/A ratio, verdict."""
    by_role = {role: {r["pair"]: r["metrics"] for r in runs if r["role"] == role} for role in ROLES}
    rows = {}
    for m, (_, _, more) in metrics.items():
        def pick(role, other, m=m):
            pairs = sorted(by_role[role].keys() & by_role[other].keys())
            return [by_role[role][p][m] for p in pairs]
        base, series = pick("base", "series"), pick("series", "base")
        again = pick("base", "base2"), pick("base2", "base")
        ab, aa = paired(base, series), paired(*again)
        if not base:        # interrupted early: show what there is
            base, series = ([v[m] for v in by_role[r].values()] for r in ("base", "series"))
        rows[m] = {"base": base, "series": series, "again": again, "ab": ab, "aa": aa, "verdict": verdict(ab, aa, more)}
    return rows
