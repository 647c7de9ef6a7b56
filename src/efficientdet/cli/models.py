"""models, info, convert, push: commands about networks and weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from efficientdet.atomic_write import write_text
from efficientdet.cli.options import Json, app, print_facts, print_json, print_table, say
from efficientdet.errors import SettingError, UnknownNameError


@app.command()
def models(as_json: Json = False) -> None:
    """List the models: the family, with parameters and multiply-adds, and the weights that can be loaded.

    Example: `efficientdet models --json`
    """
    from efficientdet.network.count import family_rows
    from efficientdet.weights.model_card import bundled_rows, released_rows

    family, bundled, released = family_rows(), bundled_rows(), released_rows()
    if as_json:
        print_json({"family": family, "bundled": bundled, "released": released})
        return
    print_table("the family (with 90 classes; multiply-adds of the convolutions)", family, ("name", "backbone"))
    print_table("bundled weights", bundled, ("name", "network", "classes"))
    print_table("released weights (downloaded when first used)", released, ("name", "cached", "license"))


@app.command()
def info(
    name: Annotated[str | None, typer.Argument(help="Name of a model or of weights, or a checkpoint's path.")] = None,
    environment: Annotated[
        bool, typer.Option("--environment", help="Versions, devices and backends of this machine, for a bug report.")
    ] = False,
    card: Annotated[Path | None, typer.Option(help="Markdown file for the model card.")] = None,
    as_json: Json = False,
) -> None:
    """Show the facts of a model, from its layers to its license; or, with --environment, of this installation.

    Example: `efficientdet info people`
    """
    if (name is None) != environment or (environment and card is not None):
        raise SettingError("give the name of a model or of weights, or --environment alone")
    if name is None:
        _show_environment(as_json)
        return
    from efficientdet.family import find_spec
    from efficientdet.weights.checkpoint import read_info
    from efficientdet.weights.model_card import checkpoint_facts, model_card, released_facts
    from efficientdet.weights.names import find_weights

    try:
        spec = find_spec(name)
    except UnknownNameError:
        found = read_info(find_weights(name))
        facts = checkpoint_facts(found)
        if card is not None:
            write_text(card, model_card(Path(name).stem, found))
    else:
        if card is not None:
            raise SettingError(f"--card: '{name}' is a network; a model card describes weights, such as people")
        facts = released_facts(spec)
    if as_json:
        print_json(facts)
        return
    print_facts(name, facts)


def _show_environment(as_json: bool) -> None:
    from efficientdet.inference.environment import environment

    found = environment()
    if as_json:
        print_json(found)
        return
    versions, missing = found.pop("versions"), found.pop("missing")
    found["devices"] = ", ".join(found["devices"])
    found |= {f"backend {name}": state for name, state in found.pop("backends").items()}
    print_facts("environment", versions | found | {"not installed": ", ".join(missing) or "-"})


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Weights of effdet, zylo117 or TensorFlow, or a checkpoint.")],
    to: Annotated[Path, typer.Option(help="Checkpoint to write, named .safetensors.")],
    model: Annotated[str | None, typer.Option(help="Network; by default found by the tensors' shapes.")] = None,
    source: Annotated[
        str, typer.Option(help="Project: effdet, zylo, tensorflow; auto finds it by the tensors' names.")
    ] = "auto",
    classes: Annotated[str | None, typer.Option(help="Class names by label, separated by commas.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store kernels as float16, in half the space.")] = False,
    license: Annotated[str, typer.Option(help="License of the weights, stored in the checkpoint.")] = "",
    trained_on: Annotated[str, typer.Option(help="Training dataset, stored in the checkpoint.")] = "",
    recipe: Annotated[str, typer.Option(help="Origin of the weights, stored in the checkpoint.")] = "",
    note: Annotated[str, typer.Option(help="Advice for users, stored in the checkpoint.")] = "",
) -> None:
    """Convert weights of another project into a checkpoint. If a tensor does not fit, all that do not are listed.

    Example: `efficientdet convert tf_efficientdet_d0_34-f153e0cf.pth --to d0.safetensors`
    """
    from efficientdet.weights.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
    from efficientdet.weights.convert import convert_file

    if to.suffix != ".safetensors":
        raise SettingError(f"--to {to}: the name must end in .safetensors")
    names = [name.strip() for name in classes.split(",")] if classes else None
    network, found = load_checkpoint(file) if is_checkpoint(file) else convert_file(file, model, source, names)
    about = {"license": license, "data": trained_on, "source": recipe, "note": note}
    about = found.about | {name: text for name, text in about.items() if text}
    save_checkpoint(to, network.state_dict(), dataclasses.replace(found, about=about), half)
    say(f"{to}: {found.spec.name}, {len(found.class_names)} classes, {to.stat().st_size / 1e6:.1f} MB")


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to upload.")],
    repository: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub, as owner/repo.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a checkpoint with its model card to the Hugging Face Hub; `hf://owner/repo` then loads it.

    Example: `efficientdet push runs/1/best.safetensors me/my-detector`
    """
    from efficientdet.weights.model_card import push_to_hub

    say(push_to_hub(checkpoint, repository, private=private))
