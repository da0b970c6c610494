"""How the commands print what they found."""

from typing import Any

__all__ = ["about", "listed", "print_table", "quality_lines", "say", "with_error"]


def quality_lines(found: dict[str, Any]) -> dict[str, str]:
    """Return the lines of how good a table's model is, from its record and what ``tables.quality`` found."""
    log_z, test = found["log_z"], found["energy_distance"]
    density, rows = found["log_density"], test["rows"]
    chose = "; these rows also chose the weights" if found["held_out_chose_weights"] else ""
    mean, of_log_z = (f"{value['value']:.3f} ± {value['standard_error']:.2g}" for value in (density, log_z))
    implied = (
        "" if "averaged" in found else ", where training alone implies 0"
    )  # an average's is below by what it gains
    return {
        "log density": f"{mean} nats a held-out row, log Z's error included{chose}",
        "counted as": "a density per unit of a continuous column, a probability per value of a discrete one",
        "finest detail": f"level 0's noise, {found['noise']:.2g} of a transformed column's standard deviation",
        "log Z": f"{of_log_z} in standardized coordinates{implied}, by {log_z['method']}",
        "energy distance": f"{test['statistic']:.4f}, p = {test['p_value']:.3f} ({rows[0]} held-out rows, {rows[1]} "
        "samples)",
    }


def say(verdict: list[str]) -> None:
    """Print a verdict."""
    print("\nverdict:" + "".join(f"\n  - {sentence}" for sentence in verdict))


def listed(chains: list[int], count: int) -> str:
    """Name some chains of so many."""
    if not chains:
        return f"none of {count} chains"
    more = ", …" if len(chains) > 10 else ""
    return f"{len(chains)} of {count} chains: {', '.join(map(str, chains[:10]))}{more}"


def about(record: dict[str, Any]) -> dict[str, str]:
    """Return the lines of what a run was trained on, and how long."""
    rows = dict(zip(("for training", "that chose the weights", "held out"), record["rows"].values(), strict=True))
    lines = {
        "rows": ", ".join(f"{count:,} {of}" for of, count in rows.items() if count),
        "columns": ", ".join(record["columns"]),
        "training": f"{record['steps']} steps in {record['seconds']:.0f} s; {record['stopped']}",
    }
    lines["taken"] = "; ".join(f"{name} {words}" for name, words in record["transforms"].items())
    if record["missing"]:
        lines["missing"] = f"{record['missing']} cells, drawn along the way"
    return lines


def with_error(values: dict[str, float], name: str) -> str:
    """Return a value with its standard error."""
    return f"{values[name]:.4f} ± {values[f'{name}_standard_error']:.4f}"


def print_table(title: str, lines: dict[str, str]) -> None:
    """Print lines by name under a title."""
    print(f"\n{title}")
    width = max(len(name) for name in lines)
    for name, text in lines.items():
        print(f"  {name:<{width}}  {text}")
