"""Samples of images a few at a time are distributed as all at once."""

from tests.support.image_sampling import model


def test_micro_batches_are_the_same_chains() -> None:
    """One level at a time cannot tell: moments agree within 5 standard errors of 3,000 chains; alarms 1 in 10⁵."""
    ebm = model()
    ebm.step_sizes.fill_(0.5)
    whole = ebm.sample((3000,), steps=5).flatten(1)
    parts = ebm.sample((3, 1000), steps=5, micro_batch=700).flatten(0, 1).flatten(1)
    for a, b in ((whole.mean(1), parts.mean(1)), (whole.var(1), parts.var(1))):
        assert abs(float(a.mean() - b.mean())) < 5.0 * float((a.var() + b.var()).sqrt()) / 3000**0.5
