"""Estimates of normalizing constants: values, errors, intervals, and their sums and differences."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from statistics import NormalDist
from types import ModuleType
from typing import Any

from torch import Tensor

from energyppl._checks import check_between, check_count, check_fields, check_kind, is_number
from energyppl._html import summary_table
from energyppl.arviz_export import Groups, to_inference_data
from energyppl.errors import InvalidInput

__all__ = ["AnnealingTrace", "Estimate", "LeftOut", "LogNormalizer"]


class LeftOut(float):
    """Zero in place of a log Z that was asked to be left out, told from one that is zero."""


@dataclass(frozen=True, eq=False)
class AnnealingTrace:
    """Annealing runs behind an estimate, for ArviZ and for plots.

    Attributes:
        betas: temperatures, ``(temperatures + 1,)``, all stretches of the path one after another.
        forward: log weights of runs from the base, ``(n,)``, nats; empty if there were none.
        reverse: log weights of runs from the target, ``(m,)``, nats; empty if there were none.
        acceptance: of the kernel after each change of temperature, ``(moves,)``.
        conditional_size: conditional effective sample size of each change, ``(temperatures,)``, as a share.
        effective_size: effective sample size after it, ``(temperatures,)``, as a share.

    Example:
        >>> toy = ep.toys.Banana()
        >>> method = ep.normalizing.BAR(64, temperatures=8)
        >>> trace = ep.log_normalizer(toy, samples=toy.sample((500,)), method=method).trace
        >>> trace.forward.shape, trace.betas.shape
        (torch.Size([64]), torch.Size([9]))
    """

    betas: Tensor
    forward: Tensor
    reverse: Tensor
    acceptance: Tensor
    conditional_size: Tensor
    effective_size: Tensor

    def shifted(self, by: float) -> "AnnealingTrace":
        """Return the same runs for a target whose log Z is larger by ``by`` nats."""
        return replace(self, forward=self.forward + by, reverse=self.reverse - by)


def _check_numbers(*, standard_error: float, **others: float) -> None:
    """Require numbers, and an error that is not negative; NaN is what is not known."""
    for name, value in {"standard_error": standard_error, **others}.items():
        if not is_number(value):
            raise InvalidInput(f"{name} must be a number; got {value!r}: pass a float")
    if standard_error < 0.0:
        raise InvalidInput(f"standard_error must not be negative; got {standard_error}: pass its size")


@dataclass(frozen=True)
class Estimate:
    """Estimate of a number with its standard error, of which a part may come from log Z.

    >>> print(ep.Estimate(-3.2, 0.1))
    -3.2000 ± 0.1
    >>> round(ep.Estimate(-3.2, 0.1).upper, 3)
    -3.004

    Attributes:
        value: in nats unless it says otherwise.
        standard_error: of the value, everything included.
        from_log_z: the part of it that comes from log Z, which more data don't make smaller.
        confidence: that the interval is meant to cover the truth with.

    Raises:
        InvalidInput: for values that are no numbers, or a confidence outside (0, 1).
    """

    value: float
    standard_error: float
    from_log_z: float = 0.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _check_numbers(value=self.value, standard_error=self.standard_error, from_log_z=self.from_log_z)
        check_between("confidence", self.confidence, 0.0, 1.0)

    @property
    def lower(self) -> float:
        """Lower end of the interval."""
        return self.value - _half_width(self.standard_error, self.confidence)

    @property
    def upper(self) -> float:
        """Upper end of the interval."""
        return self.value + _half_width(self.standard_error, self.confidence)

    def __float__(self) -> float:
        """Return the value, so that the estimate goes wherever a number does."""
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.2g}"


@dataclass(frozen=True, repr=False)
class LogNormalizer:
    """log Z = log ∫ exp(−U), in nats, with its uncertainty.

    A number is added to it as to log Z itself (an energy that is lower by 3 has a log Z larger by 3).  Two of them are
    taken to be independent: sums are the log Z of both together, differences log ratios of normalizers.

    >>> a = ep.LogNormalizer(
    ...     estimate=1.0, standard_error=0.3, lower=0.4, upper=1.6, evaluations=100, method="annealing"
    ... )
    >>> b = ep.LogNormalizer(
    ...     estimate=5.0, standard_error=0.4, lower=4.2, upper=5.8, evaluations=50, method="quadrature"
    ... )
    >>> (b - a).estimate, (b - a).standard_error, (b + 3.0).upper
    (4.0, 0.5, 8.8)

    Attributes:
        estimate: log Z.
        standard_error: of the estimate; for quadrature its own error estimate.
        lower: lower end of the interval.
        upper: upper end of the interval.
        evaluations: how many points the energy was evaluated at, with or without its gradient.
        method: how it was obtained.
        confidence: that the interval is meant to cover log Z with.
        lower_bound: stochastic lower bound: what an eighth of the forward runs says, averaged over the eighths.  Below
            log Z on average over repetitions, not in each; None if there were no such runs.
        upper_bound: stochastic upper bound, likewise from reverse runs.
        effective_samples: of the weights of runs from the base; None if there are none.
        pareto_k: shape of the weights' tail (Vehtari et al. 2024); above .7 their average is not to be trusted.
        seconds: that it took.
        stopped: why no more runs were made, if an interval's width was asked for.
        warning: why not to trust it, in a sentence; None if nothing was noticed.
        searched: where modes were searched for, in a sentence, if there were neither samples nor a base.
        forward: what forward runs say by themselves, where they went beside a bridge.
        bridge: what the bridge from the model's own samples says by itself, likewise.
        unvisited: share of the mass that lies where none of the samples come, beyond the few that always do, likewise.
        trace: the runs themselves, if it was obtained by annealing.
    """

    estimate: float
    standard_error: float
    lower: float
    upper: float
    evaluations: int
    method: str
    confidence: float = 0.95
    lower_bound: float | None = None
    upper_bound: float | None = None
    effective_samples: float | None = None
    pareto_k: float | None = None
    seconds: float | None = None
    stopped: str | None = None
    warning: str | None = None
    searched: str | None = None
    forward: Estimate | None = None
    bridge: Estimate | None = None
    unvisited: float | None = None
    trace: AnnealingTrace | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_numbers(estimate=self.estimate, standard_error=self.standard_error, lower=self.lower, upper=self.upper)
        check_count("evaluations", self.evaluations, at_least=0)
        check_kind("method", self.method, str)
        check_between("confidence", self.confidence, 0.0, 1.0)
        if self.lower > self.upper:
            raise InvalidInput(f"lower must be below upper; got {self.lower} and {self.upper}: swap them")

    def to_dict(self) -> dict[str, Any]:
        """Return all but the runs as numbers and texts, for :meth:`from_dict` to build it again."""
        return {name: value for name, value in asdict(replace(self, trace=None)).items() if name != "trace"}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "LogNormalizer":
        """Build what :meth:`to_dict` gave.

        Raises:
            InvalidInput: if it has been changed to what no estimate can be.
        """
        check_kind("log Z", found, Mapping)
        parts = {name: found[name] for name in ("forward", "bridge") if found.get(name) is not None}
        for name, part in parts.items():
            check_kind(name, part, Mapping)
            parts[name] = Estimate(**part)
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        if not needed <= found.keys():
            raise InvalidInput(f"log Z must have {', '.join(sorted(needed - found.keys()))}: pass what to_dict gave")
        result = cls(**{**found, **parts})
        known = replace(result, pareto_k=None) if isinstance(result.pareto_k, float) else result  # it may be NaN
        for whole in (known, *parts.values()):
            check_fields(whole)
        return result

    def __float__(self) -> float:
        """Return the estimate, so that it goes wherever a number does."""
        return self.estimate

    def __repr__(self) -> str:
        doubt = "; not to be trusted" if self.warning else ""
        return f"LogNormalizer({self.estimate:.4f} ± {self.standard_error:.2g} nats, by {self.method}{doubt})"

    def __str__(self) -> str:
        lines = [
            f"log Z = {self.estimate:.4f} ± {self.standard_error:.2g} nats ({self.confidence:.0%}: {self.lower:.4f} to "
            f"{self.upper:.4f}), by {self.method}"
        ]
        if bounds := self._bounds():
            lines.append(f"  bounds on average: {bounds}")
        lines.append(f"  {', '.join(self._costs())}")
        if self.forward is not None and self.bridge is not None:
            lines.append(f"  forward runs say {self.forward}, the bridge {self.bridge}")
        lines += [f"  {remark}" for remark in self._remarks()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = {
            "estimate": f"{self.estimate:.4f} ± {self.standard_error:.2g} nats, by {self.method}",
            f"interval ({self.confidence:.0%})": f"{self.lower:.4f} to {self.upper:.4f}",
        }
        if bounds := self._bounds():
            rows["bounds on average"] = bounds
        if self.forward is not None and self.bridge is not None:
            rows |= {"forward runs alone": str(self.forward), "bridge alone": str(self.bridge)}
        rows["cost"] = ", ".join(self._costs())
        return summary_table("log Z", rows, self._remarks())

    def _bounds(self) -> str:
        if self.lower_bound is None and self.upper_bound is None:
            return ""
        ends = (f"{end:.3f}" if end is not None else "unknown" for end in (self.lower_bound, self.upper_bound))
        crossed = self.lower_bound is not None and self.upper_bound is not None and self.lower_bound > self.upper_bound
        return " to ".join(ends) + (", which cross within their errors" if crossed else "")

    def _costs(self) -> list[str]:
        costs = [f"{self.evaluations:,} evaluations"]
        if self.seconds is not None:
            costs.append(f"{self.seconds:.1f} s")
        if self.effective_samples is not None:
            costs.append(f"weights worth {self.effective_samples:.0f} particles")
        if self.pareto_k is not None:
            costs.append(f"Pareto k = {self.pareto_k:.2f}")
        return costs

    def _remarks(self) -> list[str]:
        said = {"searched": self.searched, "stopped": self.stopped, "not to be trusted": self.warning}
        return [f"{name}: {text}" for name, text in said.items() if text]

    def __add__(self, other: "LogNormalizer | float") -> "LogNormalizer":
        return self._combined(other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: "LogNormalizer | float") -> "LogNormalizer":
        return self._combined(other, -1.0)

    def __rsub__(self, other: float) -> "LogNormalizer":
        return (-self)._combined(other, 1.0)

    def __neg__(self) -> "LogNormalizer":
        def minus(value: float | None) -> float | None:
            return None if value is None else -value

        return replace(
            self,
            estimate=-self.estimate,
            lower=-self.upper,
            upper=-self.lower,
            lower_bound=minus(self.upper_bound),
            upper_bound=minus(self.lower_bound),
            forward=self.forward and replace(self.forward, value=-self.forward.value),
            bridge=self.bridge and replace(self.bridge, value=-self.bridge.value),
            trace=None,
        )

    def _combined(self, other: Any, sign: float) -> "LogNormalizer":
        if is_number(other):
            return self._shifted(sign * other)
        if not isinstance(other, LogNormalizer):
            return NotImplemented  # type: ignore[no-any-return]
        if other.confidence != self.confidence:
            raise InvalidInput(
                f"intervals of one confidence can be combined; got {self.confidence} and {other.confidence}: estimate "
                "both at one"
            )
        second = other if sign > 0 else -other
        error = math.hypot(self.standard_error, other.standard_error)
        estimate = self.estimate + second.estimate

        # Widths add in quadrature, as independent errors do.
        down = math.hypot(self.estimate - self.lower, second.estimate - second.lower)
        up = math.hypot(self.upper - self.estimate, second.upper - second.estimate)
        words = [w for w in (self.warning, other.warning) if w]
        costs = [s for s in (self.seconds, other.seconds) if s is not None]
        sizes = [s for s in (self.effective_samples, other.effective_samples) if s is not None]
        tails = [k for k in (self.pareto_k, other.pareto_k) if k is not None]
        return LogNormalizer(
            estimate=estimate,
            standard_error=error,
            lower=estimate - down,
            upper=estimate + up,
            evaluations=self.evaluations + other.evaluations,
            method=f"{self.method} {'plus' if sign > 0 else 'minus'} {other.method}",
            confidence=self.confidence,
            lower_bound=_sum(self.lower_bound, second.lower_bound),
            upper_bound=_sum(self.upper_bound, second.upper_bound),
            effective_samples=min(sizes, default=None),
            pareto_k=max(tails, default=None),
            seconds=sum(costs) if costs else None,
            warning="; ".join(words) or None,
        )

    def _shifted(self, by: float) -> "LogNormalizer":
        return replace(
            self,
            estimate=self.estimate + by,
            lower=self.lower + by,
            upper=self.upper + by,
            lower_bound=_sum(self.lower_bound, by),
            upper_bound=_sum(self.upper_bound, by),
            forward=self.forward and replace(self.forward, value=self.forward.value + by),
            bridge=self.bridge and replace(self.bridge, value=self.bridge.value + by),
            trace=None if self.trace is None else self.trace.shifted(by),
        )

    def to_arviz(self, arviz: ModuleType | None = None) -> Any:
        """Hand the runs to ArviZ: log weights as a posterior's draws, each temperature's figures as sample statistics.

        Args:
            arviz: the module to hand them to; the installed ArviZ if None.

        Raises:
            InvalidInput: if the estimate did not come from annealing.
        """
        if self.trace is None:
            raise InvalidInput(f"an estimate by {self.method} has no runs to show: ask for one by annealing")
        weights = {"log_weights": self.trace.forward, "reverse_log_weights": self.trace.reverse}
        steps = {
            "acceptance": self.trace.acceptance,
            "conditional_size": self.trace.conditional_size,
            "effective_size": self.trace.effective_size,
        }
        groups: Groups = {
            "posterior": {name: value.numpy()[None] for name, value in weights.items() if len(value)},
            "sample_stats": {name: value.numpy()[None, None] for name, value in steps.items() if len(value)},
        }
        known = {"log_z": self.estimate, "standard_error": self.standard_error, "method": self.method}
        return to_inference_data(groups, known, arviz)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _half_width(standard_error: float, confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + 0.5 * confidence) * standard_error
