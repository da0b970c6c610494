"""log Z of trained energies: five 2-D models against quadrature, and a 64-D one whose bounds should meet.

``python -m tests.benchmarks learned [--steps N] [--digits FILE.npz] [TOY …]``

For each toy three estimates: annealed through the model's noise levels, which is its default above two dimensions; the
plain geometric path from a base fitted to the model's own samples, relaxed by MALA; and the same without the samples.
With ``--digits``, 8 × 8 digits (array ``x``): every noise level through the levels above it, then level 0 by both paths
at growing numbers of temperatures.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import energyppl as ep
from tests.benchmarks.density import FIVE, train

WIDE = 4096  # particles


def relaxed(ebm: ep.RecoveryEBM, count: int) -> Tensor:
    """The model's own samples, taken to its energy by MALA."""
    return ep.adapt(ep.MALA(0.1), ebm.marginal().potential, ebm.sample((count,)), 200).state.x


def report(name: str, estimate: Callable[[], ep.LogNormalizer], exact: float | None) -> None:
    """One line: how far from quadrature, what it states, how far its bounds are apart, and the seconds."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = estimate()
    seconds = time.perf_counter() - began
    off = f"{found.estimate:.3f}" if exact is None else f"{found.estimate - exact:+.4f}"
    ends = [end for end in (found.lower_bound, found.upper_bound) if end is not None]
    gap = f", bounds {ends[1] - ends[0]:+.3f} apart" if len(ends) == 2 else ""
    temperatures = len(found.trace.betas) - 1 if found.trace is not None else 0
    print(
        f"  {name:34} {off} ± {found.standard_error:.4f}{gap}; {temperatures} temperatures, "
        f"{found.evaluations:,} evaluations, {seconds:.1f} s; {found.warning or 'no warning'}",
        flush=True,
    )


def digits(path: Path, steps: int) -> None:
    """A model of 8 × 8 digits, its sharpest level blurred by a sixth of their spread, by both paths."""
    with np.load(path, allow_pickle=False) as archive:
        x = torch.as_tensor(archive["x"].reshape(-1, 64).astype(np.float32))
    torch.manual_seed(0)
    x = (x + torch.rand_like(x)) / (x.max() + 1.0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((64,)), ep.NoiseSchedule.cosine(6, log_snr_max=3.5))
    ebm.standardize(x, isotropic=True)
    ep.fit(ebm, x, options=ep.TrainingOptions(steps=steps), progress=False)
    samples = relaxed(ebm, 1024)
    print(f"digits, 64-D, {len(x)} rows")
    for level in reversed(range(ebm.schedule.levels - 1)):
        name = f"level {level}, noise {float(ebm.schedule.sigma_bar[level]):.2f}, 1000 temperatures"
        report(name, lambda t=level: ebm.log_normalizer(t, method=ep.normalizing.BAR(256, temperatures=1000)), None)  # type: ignore[misc]
    for temperatures in (500, 2000, 8000):
        method = ep.normalizing.BAR(128, temperatures=temperatures)
        report(f"levels, {temperatures} temperatures", lambda m=method: ebm.log_normalizer(method=m), None)  # type: ignore[misc]
        report(
            f"geometric, {temperatures} temperatures",
            lambda m=method: ep.log_normalizer(ebm.marginal(), samples=samples, method=m),  # type: ignore[misc]
            None,
        )


def main(arguments: list[str]) -> None:
    """Three lines for each toy."""
    parser = argparse.ArgumentParser(prog="learned", description=__doc__)
    parser.add_argument("toys", nargs="*", default=FIVE)
    parser.add_argument("--steps", type=int, default=ep.TrainingOptions().steps)
    parser.add_argument("--particles", type=int, default=WIDE)
    parser.add_argument("--digits", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.digits is not None:
        digits(args.digits, args.steps)
        return
    for name in args.toys:
        ebm = train(name, 0, ep.TrainingOptions(steps=args.steps))[0]
        exact = ebm.log_normalizer()
        print(f"{name}: log Z {exact.estimate:.4f} by quadrature (± {exact.standard_error:.1g})")
        cases: dict[str, Callable[[], ep.LogNormalizer]] = {
            "through the levels": lambda: ebm.log_normalizer(method=ep.normalizing.BAR(args.particles)),  # noqa: B023
            "fitted base, own samples": lambda: ep.log_normalizer(
                ebm.marginal(),  # noqa: B023
                samples=relaxed(ebm, args.particles + 1024),  # noqa: B023
                method=ep.normalizing.BAR(args.particles),
            ),
            "without samples": lambda: ep.log_normalizer(ebm.marginal(), method=ep.normalizing.SMC(args.particles)),  # noqa: B023
        }
        for case, estimate in cases.items():
            report(case, estimate, exact.estimate)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
