"""A width table of a model that has lost channels says what that of the whole one says."""

from __future__ import annotations

import numpy as np
import pytest

from dprp_tf.costs.width_latency import CostGrid, WidthLatency
from dprp_tf.costs.width_table import WidthTable


def _table(rng: np.random.Generator) -> WidthTable:
    def grid(reads: tuple[int, ...], makes: tuple[int, ...]) -> CostGrid:
        # Noise: here and there less costs more, which a table smooths.
        costs = np.outer(reads, makes) * rng.uniform(0.8, 1.2, (len(reads), len(makes))) / 100
        return CostGrid(reads, makes, tuple(tuple(map(float, row)) for row in costs))

    rows = (
        WidthLatency("a", (3, 3), grid((3,), (8, 16, 24, 32))),
        WidthLatency("b", (3, 3), grid((8, 16, 24, 32), (8, 16, 20))),
        WidthLatency("c", (), grid((20,), (10,))),
    )
    whole = sum(row.whole for row in rows)
    return WidthTable(rows, whole + 3.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "1")


@pytest.mark.parametrize("seed", range(5))
def test_what_is_predicted_of_further_cuts_stays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = _table(rng)
    first = {"a": (3, int(rng.integers(9, 32))), "b": (int(rng.integers(9, 32)), 17)}
    narrow = table.narrowed(first, maps=0.8)
    assert narrow.dense == pytest.approx(table.model_cost(first, maps=0.8))
    assert narrow.dense < table.dense
    assert [(row.dense.reads[-1], row.dense.makes[-1]) for row in narrow.layers] == [
        first["a"], first["b"], (20, 10)
    ]  # fmt: skip
    for _ in range(20):
        further = {
            "a": (3, int(rng.integers(1, first["a"][1] + 1))),
            "b": (int(rng.integers(1, first["b"][0] + 1)), int(rng.integers(1, 18))),
        }
        share = float(rng.uniform(0.1, 1))
        expected = table.model_cost(further, maps=0.8 * share)
        assert narrow.model_cost(further, maps=share) == pytest.approx(expected)
    narrow.layers[0].dense.check()
    assert WidthTable.from_dict(narrow.as_dict()) == narrow


def test_a_width_of_a_layer_it_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="must name layers of the table"):
        _table(np.random.default_rng(0)).narrowed({"other": (3, 8)})
