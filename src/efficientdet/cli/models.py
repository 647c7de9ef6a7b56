"""models, info, convert, push: about networks and weights rather than images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientdet.atomic_write import write_text
from efficientdet.cli.options import Json, app, print_json, print_table, say
from efficientdet.errors import SettingError


@app.command()
def models(as_json: Json = False) -> None:
    """List the family, with parameters counted from the code, and the weights at hand.

    Example: `efficientdet models --json`
    """
    from efficientdet.network.count import family_rows
    from efficientdet.weights.model_card import bundled_rows, released_rows

    family, bundled, released = family_rows(), bundled_rows(), released_rows()
    if as_json:
        print_json({"family": family, "bundled": bundled, "released": released})
        return
    print_table("the family (90 classes; multiply-adds of convolutions)", family, ("name", "backbone"))
    print_table("bundled weights", bundled, ("name", "network", "classes"))
    print_table("released weights (downloaded at the first use)", released, ("name", "cached", "license"))


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A model of the family, bundled or cached weights, or a checkpoint.")],
    card: Annotated[Path | None, typer.Option(help="Write a model card in markdown here.")] = None,
    as_json: Json = False,
) -> None:
    """Tell what a model is: parameters, multiply-adds, anchors, classes, conventions, scores, license.

    Example: `efficientdet info people`
    """
    from efficientdet.family import MODELS, find_spec
    from efficientdet.weights.checkpoint import read_info
    from efficientdet.weights.model_card import checkpoint_facts, model_card, released_facts
    from efficientdet.weights.names import find_weights

    is_family = name in MODELS or name.startswith(("tf_efficientdet", "efficientdet_"))
    if is_family and card is not None:
        raise SettingError(f"a model card is of weights; '{name}' names a network")
    if is_family:
        facts = released_facts(find_spec(name))
    else:
        found = read_info(find_weights(name))
        facts = checkpoint_facts(found)
        if card is not None:
            write_text(card, model_card(Path(name).stem, found))
    if as_json:
        print_json(facts)
        return
    print_table(name, ({"": key, " ": value} for key, value in facts.items()), ("", " "))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Weights of effdet, zylo117 or TensorFlow, or a checkpoint of ours.")],
    to: Annotated[Path, typer.Option(help="The checkpoint to write, .safetensors.")],
    model: Annotated[str | None, typer.Option(help="Which network; default by the shapes.")] = None,
    source: Annotated[str, typer.Option(help="effdet, zylo, tensorflow; auto tells by the names.")] = "auto",
    classes: Annotated[str | None, typer.Option(help="Class names by label, between commas.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store kernels as float16.")] = False,
    license: Annotated[str, typer.Option(help="License of the weights, to be kept in the file.")] = "",
    trained_on: Annotated[str, typer.Option(help="The data, to be kept in the file.")] = "",
    recipe: Annotated[str, typer.Option(help="Where the weights come from, to be kept in the file.")] = "",
    note: Annotated[str, typer.Option(help="What users should know, to be kept in the file.")] = "",
) -> None:
    """Turn weights of another implementation into a checkpoint of ours; every mismatch is listed.

    Example: `efficientdet convert tf_efficientdet_d0_34-f153e0cf.pth --to d0.safetensors`
    """
    from efficientdet.weights.checkpoint import load_checkpoint, save_checkpoint
    from efficientdet.weights.convert import convert_file, is_ours
    from efficientdet.weights.model_card import with_about

    if to.suffix != ".safetensors":
        raise SettingError(f"--to {to}: the name must end in .safetensors")
    names = [name.strip() for name in classes.split(",")] if classes else None
    network, found = load_checkpoint(file) if is_ours(file) else convert_file(file, model, source, names)
    found = with_about(found, license=license, data=trained_on, source=recipe, note=note)
    save_checkpoint(to, network.state_dict(), found, half)
    say(f"{to}: {found.spec.name}, {len(found.class_names)} classes, {to.stat().st_size / 1e6:.1f} MB")


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of ours.")],
    repository: Annotated[str, typer.Argument(help="owner/repo on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a checkpoint with its model card to the Hugging Face Hub; `hf://owner/repo` then loads it anywhere.

    Example: `efficientdet push runs/1/best.safetensors me/my-detector`
    """
    from efficientdet.weights.checkpoint import read_info
    from efficientdet.weights.hub import HUB_PREFIX, push_to_hub
    from efficientdet.weights.model_card import model_card

    card = model_card(HUB_PREFIX + repository, read_info(checkpoint))
    say(push_to_hub(checkpoint, repository, card, private=private))
