"""Trained models in files: weights, and everything that is needed to build the model around them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from energyppl._checks import as_path
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.errors import CheckpointError, InvalidInput, first_line
from energyppl.inference import kernels
from energyppl.integration.estimates import LogNormalizer
from energyppl.models.base import EnergyModel
from energyppl.models.conditional import ConditionalEBM
from energyppl.models.ebm import EBM
from energyppl.models.joint import JointEBM
from energyppl.models.latent import LatentPrior
from energyppl.models.multiscale import MultiscaleEBM
from energyppl.models.networks.recipe import own_networks, rebuilt
from energyppl.models.recovery import RecoveryEBM
from energyppl.safetensors_files import is_safetensors, load_safetensors, save_safetensors
from energyppl.schedule import NoiseSchedule

__all__ = ["load", "model_of_tree", "save", "tree_of_model"]

_FORMAT = "energyppl-model-1"
_MODELS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (ConditionalEBM, EBM, JointEBM, LatentPrior, MultiscaleEBM, RecoveryEBM)
}
_KERNELS: dict[str, type[Any]] = {
    name: cls for name in kernels.__all__ if is_dataclass(cls := getattr(kernels, name)) and isinstance(cls, type)
}
_OF_PRIOR = ("num_steps", "adaptation_rate")  # arguments of a LatentPrior
_OF_NETWORKS = ("net.", "initializer.", "contexts.encoder.")
_OF_CHAINS = ("chain_", "log_weights")
_POSITIVE = ("scale", "contexts.scale", "sigmas", "base_sigma", "inverse_temperature")
_POSITIVE_ENDS = (".base.variances",)  # of a network, or of one that it is made of
_CONFIDENCE = 0.95  # of the log Z that is kept: the default


def save(model: EnergyModel, path: str | os.PathLike[str]) -> None:
    """Write a model to one file, whole or not at all.

    The file holds the weights, the schedule, the kernel and its step sizes, the standardization, and log Z where
    annealing has found it and the weights are still the same.  Of this library's networks it holds the arguments too;
    another network is not part of the file but for its weights, and is passed to :func:`load`.  No pickle is written.
    A path that ends in ``.safetensors`` makes a file of that kind, whose weights other tools read by name; it needs the
    package.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rings.ebm"
    >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
    >>> ep.save(ebm, file)
    >>> same = ep.load(file)
    >>> x = torch.randn(5, 2)
    >>> torch.equal(same.marginal().energy(x), ebm.marginal().energy(x))
    True

    Args:
        model: an ``EBM``, ``RecoveryEBM``, ``ConditionalEBM``, ``JointEBM``, ``MultiscaleEBM`` or ``LatentPrior`` (with
            its chains), on any device.
        path: of the file; its folder is made if it is not there, and an older file is replaced.

    Raises:
        InvalidInput: for another object, a view of a model (of a class, a product or the like), a kernel that is not
            this library's, or weights that are NaN or infinite.
    """
    tree = tree_of_model(model)
    if is_safetensors(path):
        save_safetensors(path, tree, tree["weights"])
    else:
        save_checkpoint(path, tree)


def tree_of_model(model: EnergyModel) -> dict[str, Any]:
    """Return all that :func:`save` writes of a model, as tensors, numbers and strings.

    Raises:
        InvalidInput: as :func:`save`.
    """
    kind = type(model).__name__
    if _MODELS.get(kind) is not type(model):
        raise InvalidInput(
            f"model must be one of {', '.join(_MODELS)}; got {kind}: save the model that it is made of, and make it "
            "again after loading"
        )
    initializer = getattr(model, "initializer", None)
    schedule = getattr(model, "schedule", None)
    weights = dict(model.state_dict())
    masks = {name: value for name, value in model.named_buffers() if name.startswith(_OF_NETWORKS)}
    try:
        _require_usable(weights, masks)
    except ValueError as error:
        raise InvalidInput(
            f"a model must have finite weights to be saved, but {error}: load what was saved before, or train anew"
        ) from None
    return {
        "format": _FORMAT,
        "kind": kind,
        "event_shape": list(model.event_shape),
        "net": _network_record(_network(model)),
        "initializer": None if initializer is None else _network_record(initializer),
        "contexts": _context_record(model) if isinstance(model, ConditionalEBM) else None,
        "schedule": None if schedule is None else {f.name: getattr(schedule, f.name) for f in fields(schedule)},
        "kernels": [_packed(k) for k in (model.initial_kernel, model.kernel)] if hasattr(model, "kernel") else None,
        "base_sigma": getattr(model, "base_sigma", None),
        "prior": {name: getattr(model, name) for name in _OF_PRIOR} if isinstance(model, LatentPrior) else None,
        "weights": weights,
        "in_training": [name for name, module in model.named_modules() if module.training],
        "log_z": _known_log_z(model),
    }


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    *,
    initializer: nn.Module | None = None,
    encoder: nn.Module | None = None,
) -> Any:
    """Read a model that :func:`save` wrote, on the CPU: energies and samples are the same bit for bit.

    Args:
        path: of the file.
        net: a network of your own, built as it was when the model was trained, on the device where the model is to
            be; its weights are overwritten.  The file's own description is used if None.
        initializer: likewise.
        encoder: of a conditional model's contexts, likewise.

    Returns:
        The model, of the class that was saved.

    Raises:
        CheckpointError: if there is no such file, or it is damaged or of another kind.
        InvalidInput: if a network of your own is missing, or differs in the names, shapes or dtypes of its weights.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "rings.ebm"
        >>> ep.save(ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3)), file)
        >>> ep.load(file).schedule.levels
        3
    """
    path = as_path(path)
    tree = load_safetensors(path) if is_safetensors(path) else load_checkpoint(path)
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        found = tree.get("format", "a training run") if isinstance(tree, dict) else type(tree).__name__
        raise CheckpointError(f"{path} must hold a model that save wrote; it holds {found}: pass another file")
    with _refused(path):
        return model_of_tree(tree, net, initializer=initializer, encoder=encoder)


def model_of_tree(
    tree: Mapping[str, Any],
    net: nn.Module | None = None,
    *,
    initializer: nn.Module | None = None,
    encoder: nn.Module | None = None,
) -> Any:
    """Build a model of what :func:`tree_of_model` returned, with networks of the caller's own as in :func:`load`.

    Raises:
        InvalidInput: as :func:`load`.
        AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError: for a tree of something else.
    """
    with torch.random.fork_rng(devices=[]):  # building networks draws weights that are overwritten
        weights = tree["weights"]
        prefix = "net.net." if tree["kind"] == "JointEBM" else "net."
        net = _fitting("net", net, tree["net"], _under(prefix, weights))
        if tree["initializer"] is not None:
            initializer = _fitting("initializer", initializer, tree["initializer"], _under("initializer.", weights))
        elif initializer is not None:
            raise InvalidInput("the file's model has no initializer; got one: leave it out")
        contexts = _unpacked_contexts(tree.get("contexts"), encoder, weights)
        model = _build(tree, net, initializer, contexts)
        _require_usable(weights, model.state_dict())
        model.load_state_dict(weights)
        _require_same("the model", model.state_dict(), weights)
        for name, module in model.named_modules():
            module.training = name in tree["in_training"]
        for level, found in tree["log_z"]:
            model._kept.keep(model, (level, _CONFIDENCE), LogNormalizer.from_dict(found))
    return model


def _build(tree: Mapping[str, Any], net: nn.Module, initializer: nn.Module | None, contexts: dict[str, Any]) -> Any:
    """Build a model of the kind, with weights of its own."""
    cls = _MODELS[tree["kind"]]
    options: dict[str, Any] = {"event_shape": tuple(tree["event_shape"]), **contexts}
    if tree["kernels"] is not None:
        options["kernel"] = _unpacked(tree["kernels"][0])
    if initializer is not None:
        options["initializer"] = initializer
    model: Any
    if cls is MultiscaleEBM:
        model = cls(net, tree["weights"]["sigmas"].double(), base_sigma=tree["base_sigma"], **options)
    elif cls is EBM:
        model = cls(net, **options)
    elif cls is LatentPrior:
        model = cls(net, chains=tree["weights"]["chain_points"].shape[1], **tree["prior"], **options)
    else:
        model = cls(net, NoiseSchedule(**tree["schedule"]), **options)
    if tree["kernels"] is not None:
        model.kernel = _unpacked(tree["kernels"][1])
    return model


# --- Networks ---


def _network(model: EnergyModel) -> nn.Module:
    """Return the network that the model was given; a JointEBM wraps it."""
    inner = model.net.net if isinstance(model, JointEBM) else model.net
    assert isinstance(inner, nn.Module)
    return inner


def _network_record(net: nn.Module) -> dict[str, Any]:
    known = own_networks().get(type(net).__name__) is type(net)
    return {"class": type(net).__name__, "recipe": getattr(net, "recipe", None) if known else None}


def _fitting(what: str, net: nn.Module | None, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network that was passed, or else one that is built by the file's recipe; the weights fit it."""
    if net is None:
        if record["recipe"] is None:
            raise InvalidInput(
                f"the file has the weights of its {what} and not how it is built, since {record['class']} is not built "
                f"from numbers by this library: build it as it was and pass it as {what}="
            )
        net = rebuilt(own_networks()[record["class"]], record["recipe"])
        net = net.to(next((w.dtype for w in weights.values() if w.dtype.is_floating_point), torch.float32))
    if not isinstance(net, nn.Module):
        raise InvalidInput(f"{what} must be a torch module; got {type(net).__name__}: pass a network")
    _require_same(what, net.state_dict(), weights)
    return net


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _require_same(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Require weights of the same names, shapes and dtypes.

    Raises:
        InvalidInput: naming the first that differs.
    """
    for name in [*ours, *theirs]:
        here, there = (
            f"{str(side[name].dtype).removeprefix('torch.')} {tuple(side[name].shape)}" if name in side else "missing"
            for side in (ours, theirs)
        )
        if here != there:
            raise InvalidInput(
                f"{what} must have the weights of the file; {name} is {here} here and {there} there: build it as it "
                "was when the model was saved"
            )


def _require_usable(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> None:
    """Require weights without NaN, infinite only where a fresh model's are or chains were lost, and positive scales.

    Raises:
        ValueError: naming the first other one.
    """
    for name, value in weights.items():
        if not value.is_floating_point():
            continue
        if bool(value.isnan().any()):
            raise ValueError(f"{name} has NaN")
        allowed = name.startswith(_OF_CHAINS) or (name in fresh and bool(fresh[name].isinf().any()))
        if bool(value.isinf().any()) and not allowed:
            raise ValueError(f"{name} is not finite")
        if (name in _POSITIVE or name.endswith(_POSITIVE_ENDS)) and not bool((value > 0.0).all()):
            raise ValueError(f"{name} must be positive")


def _context_record(model: ConditionalEBM) -> dict[str, Any]:
    encoder = model.contexts.encoder
    return {"shape": list(model.context_shape), "encoder": None if encoder is None else _network_record(encoder)}


def _unpacked_contexts(
    record: Mapping[str, Any] | None, encoder: nn.Module | None, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return a conditional model's arguments that are about its contexts; none of other models."""
    if record is None or record["encoder"] is None:
        if encoder is not None:
            raise InvalidInput("the file's model has no encoder; got one: leave it out")
        return {} if record is None else {"context_shape": tuple(record["shape"])}
    encoder = _fitting("encoder", encoder, record["encoder"], _under("contexts.encoder.", weights))
    return {"context_shape": tuple(record["shape"]), "encoder": encoder}


# --- Kernels ---


def _packed(value: Any) -> Any:
    """Return a kernel, or one of its fields, as a tree of tensors, numbers and strings."""
    if isinstance(value, np.number):
        return value.item()
    if isinstance(value, Tensor) or value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (tuple, list)):
        return tuple(_packed(item) for item in value)
    if _KERNELS.get(type(value).__name__) is type(value):
        return {
            "class": type(value).__name__,
            **{f.name: _packed(getattr(value, f.name)) for f in fields(value) if f.init},
        }
    raise InvalidInput(
        f"the model's kernel must be one of energyppl.kernels to be saved; got {type(value).__name__}: give the model "
        "such a kernel first"
    )


def _unpacked(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_unpacked(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    return _KERNELS[value["class"]](**{name: _unpacked(item) for name, item in value.items() if name != "class"})


# --- Log Z ---


def _known_log_z(model: EnergyModel) -> list[tuple[int, dict[str, Any]]]:
    """Return the levels whose log Z annealing has found for these very weights, without the runs."""
    levels = range(getattr(model, "levels", 1))
    found = ((level, model._kept.known(model, (level, _CONFIDENCE))) for level in levels)
    return [(level, log_z.to_dict()) for level, log_z in found if log_z is not None]


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn whatever building a model raises inside into a CheckpointError that names the file."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a model that this version can read ({reason}): save it again") from error
