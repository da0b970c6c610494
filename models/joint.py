"""JointEBM: one energy over points and noise levels, trained by chains that move among both (DA-EBM)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from energyppl._checks import broadcast_shapes, check_count, check_data, check_event, check_shape
from energyppl.autodiff.gradient import energy_only
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput, warn_user
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.joint import draw_levels, level_energies, move_jointly
from energyppl.inference.normalizing.bennett import bennett
from energyppl.inference.objectives.persistent import PersistentLikelihood
from energyppl.models._network_checks import check_parts
from energyppl.models.levels import LevelEnergies
from energyppl.potentials.algebra import Potential
from energyppl.schedule import NoiseSchedule

__all__ = ["JointEBM"]

_AT_A_TIME = 256  # energies


class JointEBM(LevelEnergies):
    """``p(x, t) ∝ exp(−U(x, t))`` over points and levels 0 to ``schedule.levels``, with one normalizer for all.

    Where it fits, every level has the same mass, so that energies of different levels can be compared, and chains walk
    from noise to data and back (Zhang, Tan & Ou 2023).  Train it by :class:`~energyppl.PersistentLikelihood`.  The
    levels include the noisiest marginal, one more than a :class:`RecoveryEBM` has.  A learned offset for each level is
    added to the network's energy, scaled so that it keeps up with masses that differ by many nats.

    Args:
        net: any module ``net(x, level)``, as for :class:`RecoveryEBM`, for levels 0 to ``schedule.levels``.
        schedule: the noise levels; ``NoiseSchedule.sqrtcumlinear`` is the paper's.  The more dimensions, the closer
            they must lie for chains to change between them: the paper has 6 for two dimensions and 50 for images.
            For as many, see ``many_levels`` of the objective, and :meth:`balance` for a network that is trained.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        kernel: moves chains at a fixed level; MALA if None.

    Raises:
        InvalidInput: if the network returns another shape or non-finite values, or has too few levels.

    Example:
        >>> schedule = ep.NoiseSchedule.sqrtcumlinear(levels=6)
        >>> joint = ep.JointEBM(ep.MLPEnergy((2,), levels=7), schedule)
        >>> joint.marginal(level=6).energy(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    default_objective = PersistentLikelihood

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        *,
        event_shape: Sequence[int] | None = None,
        kernel: TunableKernel | None = None,
    ) -> None:
        shape = check_parts(net, schedule, event_shape)
        levels = schedule.levels + 1
        super().__init__(
            _WithOffsets(net, levels, shape), schedule, shape, MALA(0.1) if kernel is None else kernel, levels
        )

    def level_energies(self, x: Tensor) -> Tensor:
        """Evaluate U(x, t) at data points and every level, ``(*batch, *event)`` to ``(*batch, levels)``, in nats."""
        check_event("x", x, self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        energies = level_energies(self, self.to_unit(x.to(self.loc)).reshape(-1, *self.event_shape))
        return energies.movedim(0, -1).reshape(*batch, self.levels)

    def level_probabilities(self, x: Tensor) -> Tensor:
        """Return p(t | x), ``(*batch, levels)``: how noisy the model takes a point to be."""
        return torch.softmax(-self.level_energies(x), -1)

    def balance(self, data: Tensor, *, rows: int = 64) -> None:
        """Set the levels' offsets so that all have the same mass, for a network that has learned each level's density.

        Neighbouring levels' masses are compared by Bennett's ratio on noised data, which takes three energies a row,
        however many levels there are.  Without it a network whose levels had a normalizer each, as after score
        matching, keeps chains from changing levels.

        Args:
            data: rows, ``(n, *event)``, after :meth:`standardize`.
            rows: for each level, drawn from the data.

        Raises:
            InvalidInput: for other data, or before :meth:`standardize`.
            EnergyPPLError: for levels so far apart that nothing tells their masses.

        Example:
            >>> joint = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
            >>> data = torch.randn(100, 2)
            >>> joint.standardize(data)
            >>> joint.balance(data)
            >>> joint.net.offset.shape
            torch.Size([4])
        """
        check_count("rows", rows)
        clean = self.to_unit(check_data("data", data, self.event_shape).to(self.loc))
        if not bool(self.is_standardized):
            raise InvalidInput("the model has no coordinates yet: call standardize(data) before balance(data)")
        level = torch.arange(self.levels, device=clean.device).repeat_interleave(rows)
        x = self.schedule.diffuse(clean[torch.randint(len(clean), level.shape, device=clean.device)], level)

        def energies(at: Tensor) -> Tensor:
            parts = zip(x.split(_AT_A_TIME), at.clamp(0, self.levels - 1).split(_AT_A_TIME), strict=True)
            found = [energy_only(self.potential(part_level), part) for part, part_level in parts]
            return torch.cat(found).reshape(self.levels, rows)

        below, own, above = (energies(level + step) for step in (-1, 0, 1))
        with torch.no_grad():
            for t in range(self.levels - 1):
                ratio, _ = bennett(own[t] - above[t], own[t + 1] - below[t + 1])
                self.net.offset[t + 1 :] += ratio / self.net.factor  # type: ignore[operator, index]

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        level: int = 0,
        visits: int = 10,
        num_steps: int = 5,
        max_sweeps: int = 2000,
    ) -> Tensor:
        """Draw samples, ``(*sample_shape, *event)``, from white noise by moves of points and levels.

        Every chain begins at the noisiest level and is read at its ``visits``-th sweep at ``level``; a chain's points
        at its visits are themselves a Markov chain of that level's density.

        Args:
            sample_shape: shape of the batch.
            level: what to sample; 0 is the data.
            visits: at which visit a chain is read.
            num_steps: of the kernel in each sweep.
            max_sweeps: a chain that has not been there as often by then is read as it was last, with a warning.
        """
        for name, value in (("visits", visits), ("num_steps", num_steps), ("max_sweeps", max_sweeps)):
            check_count(name, value)
        self.schedule.check_level(level, marginal=True)
        shape = check_shape("sample_shape", sample_shape)
        x = torch.randn(max(1, shape.numel()), *self.event_shape).to(self.loc)
        t = torch.full((len(x),), self.levels - 1, device=x.device)
        kept, seen = x.clone(), torch.zeros_like(t)
        for _ in range(max_sweeps):
            run = move_jointly(self, x, t, sweeps=1, num_steps=num_steps)
            x, t = run.x, run.level
            here = (t == level) & (seen < visits)
            kept[here] = x[here]
            seen += here
            if bool((seen >= visits).all()):
                break
        late = int((seen < visits).sum())
        if late:
            warn_user(
                f"{late} of {len(x)} chains visited level {level} fewer than {visits} times in {max_sweeps} sweeps: "
                "they are read as they were last, and the samples are not the model's; train it longer",
            )
            never = seen == 0
            kept[never] = x[never]
        return self.from_unit(kept[: shape.numel()].reshape(*shape, *self.event_shape))

    def forward(self, count: int = 1) -> Tensor:
        """Declare ``count`` points and their levels to Pyro: sites ``level`` and ``x``, in standardized coordinates.

        All levels' energies share one normalizer, so the level may be enumerated (``infer={"enumerate": "parallel"}``
        is set), conditioned or replayed like any discrete site; ``x`` is unnormalized, as inside MCMC.
        """
        check_count("count", count)
        pyro.module("joint_ebm", self)
        with pyro.plate("points", count):
            flat = dist.Categorical(torch.ones(self.levels, device=self.loc.device))
            level = pyro.sample("level", flat, infer={"enumerate": "parallel"})
            energy = EnergyDistribution(
                _AtLevels(self, level, self.event_shape), sampler=_noise, batch_shape=level.shape, like=self.loc
            )
            x: Tensor = pyro.sample("x", energy.unnormalized())
        return x

    def draw_level(self, x: Tensor) -> Tensor:
        """Draw from p(t | x) exactly for points ``(n, *event)`` in data coordinates, ``(n,)``: a Gibbs step."""
        check_event("x", x, self.event_shape)
        return draw_levels(self, self.to_unit(x.to(self.loc)))


class _WithOffsets(nn.Module):
    """A network's energies plus a learned number for each level.

    Its gradient is a level's share of the data less its share of the chains: a level that chains visit too often is
    lifted (the self-adjustment of Tan 2017).  Masses differ by many nats in many dimensions, and an optimizer moves a
    parameter by its learning rate, so the number is scaled.
    """

    def __init__(self, net: nn.Module, levels: int, event_shape: torch.Size) -> None:
        super().__init__()
        self.net = net
        self.event_shape = event_shape
        self.factor = 10.0 * math.sqrt(event_shape.numel())
        like = next((p for p in net.parameters() if p.dtype.is_floating_point), torch.empty(()))
        self.offset = nn.Parameter(torch.zeros(levels, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        energy: Tensor = self.net(x, level) + self.factor * nn.functional.embedding(level, self.offset[:, None])[..., 0]
        return energy


@dataclass(frozen=True, eq=False)
class _AtLevels:
    """The joint energy at levels that may have more batch dimensions than the points, as when they are enumerated."""

    model: LevelEnergies
    level: Tensor
    event_shape: torch.Size

    def __call__(self, x: Tensor) -> Tensor:
        batch = broadcast_shapes(self.level.shape, x.shape[: x.dim() - len(self.event_shape)])
        return self.model.potential(self.level.expand(batch))(x.expand(*batch, *self.event_shape))


def _noise(potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
    return torch.randn(*shape, *potential.event_shape).to(like)
