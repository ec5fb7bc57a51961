"""Speed-ups at equal held-out loss."""

import dataclasses
import statistics

from training import converged_at


@dataclasses.dataclass
class Speedup:
    """Ours against one baseline, one seed. None: ours did not get there."""
    target: float
    baseline_seconds: float
    baseline_passes: float
    seconds: float | None
    passes: float | None

    @property
    def wall(self):
        return self.baseline_seconds / self.seconds if self.seconds else None

    @property
    def work(self):
        return self.baseline_passes / self.passes if self.passes else None


def target_of(baseline, to_the_end=False):
    """The loss at which a baseline has converged, or its best of all; and the point at which it first had that loss."""
    end = baseline.points[-1] if to_the_end else converged_at(baseline.points)
    target = min(p.loss for p in baseline.points[:baseline.points.index(end) + 1] if p.whole)
    return target, baseline.first_at(target)


def speedup(baseline, ours, to_the_end=False):
    target, there = target_of(baseline, to_the_end)
    here = ours.first_at(target)
    return Speedup(target, there.seconds, there.passes, here.seconds if here else None, here.passes if here else None)


def median(values, failure=0):
    """With `failure` in the place of None: 0 for speed-ups, infinity for times, so that failures never flatter. None when half failed."""
    known = [v for v in values if v is not None]
    if not values or 2 * len(known) <= len(values):
        return None
    return statistics.median(known + [failure] * (len(values) - len(known)))


def spread(values):
    known = [v for v in values if v is not None]
    return (min(known), max(known)) if known else None
