"""The command that says which channels of a model may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table
from dprp_tf.cli.next_steps import data_options, say_next
from dprp_tf.cli.options import Json

__all__ = ["channels"]


@command
def channels(
    model: Annotated[Path, typer.Argument(help="A .keras file.")],
    as_json: Json = False,
) -> None:
    """List which channels of a model go together, what reads them, and what must stay and why.

    Example: dprp channels mine.keras
    """
    load_keras()
    from dprp_tf.channels import channel_groups
    from dprp_tf.conversion.writing_out import reachable
    from dprp_tf.training.saving import load_model

    found = channel_groups(reachable(load_model(model)))
    if as_json:
        rows = [
            {
                "name": group.name,
                "channels": group.size,
                "prunable": group.prunable,
                "layers": list(group.layers),
                "readers": list(group.readers),
                "reason": group.reason,
            }
            for group in found.values()
        ]
        print_json({"groups": rows, "prunable_share": found.prunable_share})
        return
    print_table(found)
    folder = Path("runs") / f"{model.stem}-channels"
    words = (*data_options(None), "--folder", folder, "--cut", "channels", "--macs", 0.75)
    if found.prunable_share:
        say_next(("a narrower model", ("select", model, *words)))
