"""One model of several that were trained on the same data, by the mean of their energies."""

import copy

import torch

from energyppl._checks import checked
from energyppl.errors import InvalidInput
from energyppl.models.composition import differences
from energyppl.models.networks.averaged import AveragedEnergy
from energyppl.models.recovery import RecoveryEBM

__all__ = ["averaged"]

_ALIKE = ("event_shape", "device", "dtype")


@checked
def averaged(*ebms: RecoveryEBM) -> RecoveryEBM:
    """Return the model whose energy is at every level the mean of several models': an ensemble.

    Networks that were trained on the same rows from other seeds err differently where rows are few, and their errors
    partly cancel.  Its normalized log density is at every point above the mean of theirs at the same noise by the same
    difference, the mean of their log Z's less its own, which is never negative (:class:`AveragedEnergy`); a single one
    of them may be better still.  So log Z is below the mean of theirs where training ties it to 0, and
    ``implied_log_prob`` too low by as much.

    The average of noised densities is not the noised average, so the levels above 0 are a path towards level 0 and no
    more: where the models disagree about the masses of modes, samples lie between the average's density and the
    noisy levels'.  Follow them by chains of :meth:`RecoveryEBM.marginal` for draws of the density itself.

    Args:
        ebms: models in the same coordinates, on the same device, without initializers, none an average itself.
            Continuous networks may differ in their schedules: that with the noisiest level 0 is taken, at whose log-SNR
            all were trained.

    Returns:
        A model with copies of their weights, and the kernel and step sizes of the one whose schedule it has; it can be
        saved, and trained further.  In the plane call its ``measure_moves``, as ``fit`` does, for cheaper samples.

    Raises:
        InvalidInput: for no model, one of another kind, or models that don't fit together.

    Example:
        >>> rows, schedule = torch.randn(100, 3), ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0)
        >>> ebms = [ep.RecoveryEBM(ep.MLPEnergy((3,)), schedule) for _ in range(2)]
        >>> for ebm in ebms:
        ...     ebm.standardize(rows)  # all rows, so that the models share their coordinates
        ...     _ = ep.fit(ebm, rows, steps=2, progress=False)
        >>> ep.models.averaged(*ebms).sample((4,)).shape
        torch.Size([4, 3])
    """
    if not ebms:
        raise InvalidInput("an average needs at least one model; got none")
    for index, ebm in enumerate(ebms):
        _require_alike(index, ebm, ebms[0])
    chosen = min(ebms, key=lambda ebm: float(ebm.schedule.log_snr[0]))
    net = AveragedEnergy([copy.deepcopy(ebm.net) for ebm in ebms])
    model = RecoveryEBM(net, chosen.schedule, event_shape=chosen.event_shape, kernel=chosen.initial_kernel)
    model = model.to(chosen.loc)
    for name, value in chosen.named_buffers(recurse=False):
        model.get_buffer(name).copy_(value)
    model.set_kernel(chosen.kernel, chosen.step_sizes)
    return model


def _require_alike(index: int, ebm: RecoveryEBM, first: RecoveryEBM) -> None:
    """Require a plain model in the coordinates of the first one."""
    if type(ebm) is not RecoveryEBM:
        raise InvalidInput(
            f"an average is made of RecoveryEBMs, and not of views; the type of model {index} is "
            f"{type(ebm).__name__.lstrip('_')}"
        )
    if isinstance(ebm.net, AveragedEnergy):
        raise InvalidInput(
            f"model {index} is an average already: average the models that it was made of, with the others"
        )
    if ebm.initializer is not None:
        raise InvalidInput(
            f"model {index} has an initializer, which says where chains of its own energy begin: use "
            "product(…, weights=…), which keeps the first model's"
        )
    odd = differences(ebm, first)
    for name in odd:
        if name in _ALIKE:
            raise InvalidInput(
                f"the models of an average must share {', '.join(_ALIKE)}; model {index} has another {name}"
            )
    if not (torch.equal(ebm.loc, first.loc) and torch.equal(ebm.scale, first.scale)):
        raise InvalidInput(
            f"the models of an average must be standardized alike; loc or scale of model {index} differs from that of "
            "model 0: call ebm.standardize(rows) with the same rows before each training, or use "
            "product(…, weights=…), which takes models in coordinates of their own"
        )
    continuous = [bool(getattr(model.net, "continuous", False)) for model in (ebm, first)]
    if continuous[0] != continuous[1]:
        return  # which AveragedEnergy refuses
    if continuous[0]:
        noisiest, their_noisiest = (model.schedule.log_snr[-1] for model in (ebm, first))
        if not torch.isclose(noisiest, their_noisiest, atol=1e-6):
            raise InvalidInput(
                f"the models of an average must have the same noisiest level; the log-SNR there is "
                f"{float(noisiest):.4g} of model {index} and {float(their_noisiest):.4g} of model 0"
            )
    elif odd:
        raise InvalidInput(
            f"the models of an average must have the same schedule, since their networks have whole levels; that of "
            f"model {index} differs from that of model 0"
        )
