"""Commands that show what there is: the layers of a file, the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table, print_text
from dprp_tf.cli.next_steps import say_next
from dprp_tf.cli.options import Json

__all__ = ["inspect", "report"]


@command
def inspect(
    file: Annotated[Path, typer.Argument(help="A .keras file.")],
    as_json: Json = False,
) -> None:
    """List a model's layers: ranks, parameters, MACs, and what stayed dense and why.

    Example: dprp inspect runs/cifar/model.keras
    """
    load_keras()
    from dprp_tf.conversion.summaries import summarize
    from dprp_tf.training.saving import load_model

    found = summarize(load_model(file))
    if as_json:
        print_json(found.as_dict())
    else:
        print_table(found.table())
        say_next(("what can be done with it", ("look", file, "PHOTOS")))


@command
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Gather a run's results, benchmarks, fold plan and quantization in plots and one HTML page.

    Example: dprp report runs/demo
    """
    from dprp_tf.report import save_plots, write_report

    save_plots(run)
    print_text(write_report(run))
