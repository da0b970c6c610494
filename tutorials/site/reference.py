"""The reference: a page for each part of the library, with every public name, found by walking the namespaces."""

import argparse
import importlib
import inspect
import os
import types
from typing import NamedTuple

import energyppl as ep
from energyppl.cli.parser import make_parser

_FOREIGN = (  # bases whose methods are left out
    "Module, TorchDistributionMixin, TorchDistribution, Distribution, Protocol, tuple, dict, Exception, object"
)


class Part(NamedTuple):
    """A page of the reference: a namespace's names, or some of the top level's."""

    title: str
    intro: str
    module: str | None = None  # whose ``__all__`` is documented
    names: str = ""  # of the top level, besides
    others: str = ""  # that signatures name although no namespace exports them


PARTS = {
    "models": Part("Models", "What is trained, sampled and normalized.", "energyppl.models"),
    "networks": Part(
        "Networks",
        "Energies and initializers with weights.",
        "energyppl.models.networks",
        others="models.networks.context.ContextGaussian models.networks.context.NoisedGaussian",
    ),
    "schedules": Part(
        "Noise schedules", "How much noise each level adds.", None, "NoiseSchedule", "schedule.NoisyPair"
    ),
    "training": Part(
        "Training",
        "`fit` in one call, or `Training` step by step.",
        "energyppl.inference.training",
        "save_checkpoint load_checkpoint",
    ),
    "objectives": Part(
        "Objectives",
        "What training minimizes; :doc:`/choosing` says which suits what.",
        "energyppl.objectives",
        others="inference.objectives.contract.KernelState inference.objectives.recovery.RecoveryPairs "
        "inference.objectives.noise_contrastive.NoiseState inference.objectives.persistent.PersistentState "
        "inference.objectives.level_tie.level_tie "
        "inference.objectives.level_tie.level_classification inference.objectives.level0_likelihood.Level0State "
        "inference.objectives.mass_contrast.MassContrast",
    ),
    "kernels": Part("Kernels", "Markov transitions; :doc:`/choosing` says which suits what.", "energyppl.kernels"),
    "sampling": Part(
        "Chains",
        "Many chains on potentials, distributions and Pyro models.",
        "energyppl.sampling",
        "sample_chains adapt Chains PyroKernel",
        "inference.adaptation.warmup.Adaptation inference.sampling.pyro_sites.Site",
    ),
    "levels": Part(
        "Chains at and between noise levels",
        "What the models' own samplers are made of.",
        "energyppl.levels",
        others="inference.levels.step_sizes.LevelKernel inference.levels.generation.LevelTuning",
    ),
    "potentials": Part("Potentials", "Energies as values, and their algebra.", "energyppl.potentials", "Energy"),
    "distributions": Part(
        "Distributions",
        "Energies as Pyro distributions.",
        names="EnergyDistribution RecoveryDistribution",
        others="distributions.Sampler",
    ),
    "normalizing": Part(
        "Normalizing constants",
        "log Z by annealing, bridging and sequential Monte Carlo; :doc:`/intervals` says what its intervals mean.",
        "energyppl.normalizing",
        others="inference.normalizing.recovery.RecoveryNormalizers inference.normalizing.recovery.ProcessLikelihood",
    ),
    "integration": Part(
        "Quadrature and estimates",
        "Integrals on grids, and numbers with their errors.",
        "energyppl.integration",
        others="integration.estimates.AnnealingTrace",
    ),
    "evaluation": Part(
        "Evaluation",
        "What a trained model is worth.",
        "energyppl.evaluation",
        "long_run",
        "inference.evaluation.roc.Bootstrapped inference.evaluation.long_run.Group",
    ),
    "metrics": Part(
        "Metrics of samples",
        "Two-sample tests and distances between images.",
        "energyppl.metrics",
        others="metrics.two_sample.TwoSampleTest metrics.images.Neighbours metrics.images.Memorization "
        "metrics.images.LabelBalance metrics.images.KernelDistance",
    ),
    "data": Part(
        "Data",
        "Tables and images, read and checked.",
        "energyppl.data",
        others="data.columns.Numbers data.columns.FewValues data.columns.TwoValues data.columns.Categories "
        "data.monotone.Spline data.monotone.Atoms",
    ),
    "tables": Part(
        "Densities of tables", "Tables as they are: columns of all kinds, by transforms.", "energyppl.tables"
    ),
    "estimator": Part(
        "scikit-learn", "A density estimator for pipelines and searches of settings.", "energyppl.estimator"
    ),
    "distributed": Part("Several processes", "One run in several processes of torchrun.", "energyppl.distributed"),
    "toys": Part("Toys", "Densities whose truth is known.", "energyppl.toys", others="toys.base.Density"),
    "plots": Part("Plots", "Figures of matplotlib; each is returned, and a notebook shows it.", "energyppl.plots"),
    "autodiff": Part(
        "Energies and gradients", "The one traced door through which chains evaluate energies.", "energyppl.autodiff"
    ),
    "protocols": Part(
        "Protocols of a model",
        "What samplers, objectives and evaluation ask of a model; :doc:`/extending` says how to write your own.",
        others="inference.levels.contract.EnergyModel inference.levels.contract.LevelModel "
        "inference.levels.contract.Conditional",
    ),
    "errors": Part("Errors and warnings", "What is raised, and why.", "energyppl.errors"),
}


def namespace(path: str) -> types.ModuleType:
    """Return a namespace by the path that users write, such as ``energyppl.kernels``."""
    value = ep
    for name in path.split(".")[1:]:
        value = getattr(value, name) if hasattr(value, name) else importlib.import_module(f"{value.__name__}.{name}")
    return value


def public_names(module: types.ModuleType) -> list[str]:
    """List what a namespace offers, without the namespaces in it."""
    names = getattr(module, "__all__", None)
    if names is None:  # errors: whatever it defines itself
        names = [
            n
            for n, v in vars(module).items()
            if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
        ]
    return [name for name in names if not isinstance(getattr(module, name), types.ModuleType) and name != "__version__"]


def find_entries() -> dict[str, list[tuple[str, object]]]:
    """Return, for each page, the names to document and their objects; each object once, by its shortest public name."""
    entries: dict[str, list[tuple[str, object]]] = {}
    seen: set[int] = set()
    for page in sorted(
        PARTS, key=lambda page: page == "models"
    ):  # what is left of the models' when all others have theirs
        part = PARTS[page]
        module = namespace(part.module) if part.module else None
        found = [(name, getattr(module, name)) for name in public_names(module)] if module else []
        found = [(name, getattr(ep, name)) for name in part.names.split()] + found
        entries[page] = []
        for name, value in found:
            if id(value) not in seen:
                seen.add(id(value))
                home = "energyppl" if getattr(ep, name, None) is value else part.module
                entries[page].append((f"{home}.{name}", value))
        for path in part.others.split():
            owner, _, name = f"energyppl.{path}".rpartition(".")
            value = getattr(importlib.import_module(owner), name)
            seen.add(id(value))
            entries[page].append((f"{owner}.{name}", value))
    missing = [name for name in public_names(ep) if id(getattr(ep, name)) not in seen]
    if missing:
        raise SystemExit(f"the reference has no page for {', '.join(missing)}: name them in {__file__}")
    return {page: entries[page] for page in PARTS}


def write_reference() -> dict[str, str]:
    """Return the pages of the reference by name."""
    pages = {"index": _index(), "commands": _commands()}
    for page, found in find_entries().items():
        part = PARTS[page]
        lines = [part.title, "=" * len(part.title), "", part.intro, "", ".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   ~{name}" for name, _ in found] + [""]
        for name, value in sorted(found, key=lambda entry: not inspect.isclass(entry[1])):
            lines += _entry(name, value)
        pages[page] = "\n".join(lines) + "\n"
    return pages


def _entry(name: str, value: object) -> list[str]:
    short = name.rpartition(".")[2]
    heading = [short, "-" * len(short), ""]
    if inspect.isclass(value):
        return [*heading, f".. autoclass:: {name}", "   :members:", f"   :inherited-members: {_FOREIGN}", ""]
    kind = "function" if inspect.isfunction(value) else "data"
    return [*heading, f".. auto{kind}:: {name}", ""]


def _commands() -> str:
    """Return the help texts of the command line, as a terminal of 100 columns shows them."""
    title = "Command line"
    lines = [title, "=" * len(title), "", "``energyppl COMMAND --help`` says the same in a terminal.", ""]
    os.environ["COLUMNS"] = "100"
    groups = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    for name, parser in groups[0].choices.items():
        lines += [name, "-" * len(name), "", ".. code-block:: text", ""]
        lines += [f"   {line}".rstrip() for line in parser.format_help().splitlines()] + [""]
    return "\n".join(lines) + "\n"


def _index() -> str:
    title = "Reference"
    lines = [title, "=" * len(title), "", "Every public name, with an example of its use.", ""]
    lines += [
        "All examples begin with ``import energyppl as ep``. What most scripts need is ``ep.NAME``, the rest is one "
        "dot away, as in ``ep.kernels.MALT``.",
        "",
        ".. list-table::",
        "   :widths: 30 70",
        "",
    ]
    for page, part in PARTS.items():
        lines += [f"   * - :doc:`{page}`", f"     - {part.intro}"]
    lines += ["   * - :doc:`commands`", "     - What ``energyppl`` does in a shell."]
    lines += ["", ".. toctree::", "   :hidden:", "", *[f"   {page}" for page in PARTS], "   commands"]
    return "\n".join(lines) + "\n"
