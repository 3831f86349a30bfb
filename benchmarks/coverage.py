"""How much of the networks that people bring low-rank layers reach: weights and MACs, by network.

Reached is what `factorize` replaces of a model as it is, and of what `write_out` makes of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from dprp_tf.conversion.writing_out import reachable
from dprp_tf.costs.models import ModelCost, model_cost
from dprp_tf.files.atomic import write_json
from dprp_tf.keras_internals.layer_kinds import RECURRENT, TRANSPOSED
from dprp_tf.layers.factorizable import factorizable

_SINCE = (*RECURRENT, *TRANSPOSED)


def _reached(model: keras.Model, cost: ModelCost, *, since: bool) -> dict[str, float]:
    """Shares of weights and MACs in layers that are replaced; of kinds without `_SINCE` if not."""
    try:
        found, _ = factorizable(model)
    except ValueError:
        found = {}
    names = {name for name, layer in found.items() if since or not isinstance(layer, _SINCE)}
    rows = [row for row in cost.layers if row.name in names]
    total = cost.parameters + cost.non_trainable_parameters
    shares = {"parameters": sum(row.parameters for row in rows) / total}
    if cost.macs:
        shares["macs"] = sum(row.macs or 0 for row in rows) / cost.macs
    return shares


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print the table of the client networks of the tests.

    Args:
        arguments: Of the command line. Default: `sys.argv`.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON to write")
    chosen = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "clients"))
    from networks import CLIENTS

    rows: dict[str, Any] = {}
    for name, build in CLIENTS.items():
        model = build().model
        plain = reachable(model)
        before = _reached(model, model_cost(model), since=False)
        after = _reached(plain, model_cost(plain), since=True)
        rows[name] = {"convolutions and dense layers": before, "everything": after}
        told = " / ".join(
            f"{100 * shares.get(metric, float('nan')):.0f}"
            for shares in (before, after)
            for metric in ("parameters", "macs")
        )
        print(f"| {name} | {told.replace(' / ', ' | ')} |", flush=True)
    if chosen.out:
        write_json(chosen.out, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
