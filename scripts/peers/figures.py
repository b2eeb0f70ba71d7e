"""Figures as the tables show them."""

import math
import statistics


def spread(values: list[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Ours over theirs, pair by pair: minimum, median and maximum."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return " · ".join(f"{value:.3f}" for value in (min(each), statistics.median(each), max(each)))


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
