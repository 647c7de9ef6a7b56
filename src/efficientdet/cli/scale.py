"""scale: the model that compound scaling gives for a phi or a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from efficientdet.cli.options import Json, app, print_facts, print_json, print_table, say
from efficientdet.errors import SettingError


@app.command()
def scale(
    phi: Annotated[float | None, typer.Option(help="Compound coefficient; fractions give models in between.")] = None,
    target_flops: Annotated[
        str | None, typer.Option(help="Largest number of multiply-adds, such as 10B or 800M.")
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option(help="Longest time of one forward pass in PyTorch, such as 20ms.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device on which latency is measured: cpu or cuda.")] = "cpu",
    arxiv_v1: Annotated[
        bool, typer.Option("--arxiv-v1", help="Depth of the paper's first version: a BiFPN cell less than released.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the model that compound scaling gives for a phi, or the largest one within a budget.

    Without options, print the table for phi 0 to 6 and the law beside it.

    Example: `efficientdet scale --target-flops 10B`
    """
    from efficientdet.family import DepthRule, compound_scaling
    from efficientdet.research.scaling import find_phi, scaling_rows
    from efficientdet.research.timing import latency_ms
    from efficientdet.weights.model_card import spec_facts

    given = [option for option in (phi, target_flops, target_latency) if option is not None]
    if len(given) > 1:
        raise SettingError("give one of --phi, --target-flops and --target-latency")
    rule: DepthRule = "arxiv-v1" if arxiv_v1 else "released"
    if phi is not None:
        spec = compound_scaling(phi, rule)
    elif target_flops is not None:
        spec = find_phi(_quantity(target_flops, {"M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}), depth_rule=rule)
    elif target_latency is not None:
        target = _quantity(target_latency, {"ms": 1.0, "s": 1000.0})
        spec = find_phi(target, lambda spec: latency_ms(spec, device), rule)
    else:
        rows = scaling_rows()
        print_json(rows) if as_json else print_table("compound scaling", rows)
        return
    facts = {"name": spec.name, **spec_facts(spec)}
    if as_json:
        print_json(facts)
        return
    print_facts(spec.name, facts)
    arguments = spec.name.removeprefix("phi").removesuffix("-arxiv-v1") + (', "arxiv-v1"' if arxiv_v1 else "")
    say(f"in Python: ed.create_model(ed.family.compound_scaling({arguments}))")


def _quantity(text: str, units: dict[str, float]) -> float:
    """A number with a unit, such as `10B` or `20ms`."""
    number, factor = text.strip().lower(), 1.0
    for unit in sorted(units, key=len, reverse=True):
        if number.endswith(unit.lower()):
            number, factor = number[: -len(unit)], units[unit]
            break
    try:
        return float(number) * factor
    except ValueError:
        raise SettingError(f"'{text}' is no number with a unit ({', '.join(units)})") from None
