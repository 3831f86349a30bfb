"""Why a layer is left as it is: from what it is, whatever it is called."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.layers.factorizable import skip_reason

pytestmark = pytest.mark.backend


class Projection(layers.Layer):
    """Holds a convolution and a dense layer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mix = layers.Conv2D(4, 1)
        self.last = layers.Dense(4)

    def build(self, shape: Any) -> None:
        self.mix.build(shape)
        self.last.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return self.last(self.mix(x))


class Table(layers.Layer):
    """Has a matrix of its own."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(shape[-1], 4), name="table")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.table)


# What a name says of a layer is nothing: each holds layers, or a matrix, and is what it is.
NAMES = (
    "PatchEmbedding",
    "GlobalAttentionPool",
    "LSTMFree",
    "GRULike",
    "RNNStem",
    "DepthwiseMix",
    "SeparableHead",
    "BidirectionalFusion",
    "EinsumDenseBlock",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Projection, Table])
def test_a_name_is_no_reason(name: str, kind: type[layers.Layer]) -> None:
    layer = type(name, (kind,), {})()
    layer.build((None, 8, 8, 3))
    if kind is Table:
        assert skip_reason(layer) == f"no SVD layer stands for {name}"
    else:
        assert skip_reason(layer) == (
            f"its kernels are those of layers inside {name} (1 Conv2D, 1 Dense), out of reach of "
            "the graph; dprp_tf.write_out(model) opens it where it can"
        )


@pytest.mark.parametrize(
    ("kind", "arguments", "part"),
    [
        (layers.DepthwiseConv2D, (3,), "depthwise: "),
        (layers.SeparableConv2D, (4, 3), "separable convolution"),
        (layers.Embedding, (9, 4), "looked up"),
        (layers.LSTM, (4,), "recurrent"),
        (layers.RNN, (layers.GRUCell(3),), "recurrent"),
        (layers.ConvLSTM2D, (4, 3), "recurrent"),
        (layers.MultiHeadAttention, (2, 3), "attention: "),
        (layers.GroupQueryAttention, (4, 4, 2), "attention: "),
        (layers.EinsumDense, ("ab,bc->ac", 4), "makes a Dense layer of it"),
        (layers.TimeDistributed, (layers.Dense(3),), "inside a Plain wrapper"),
    ],
)
def test_a_subclass_is_what_it_descends_from(kind: Any, arguments: Any, part: str) -> None:
    assert part in str(skip_reason(type("Plain", (kind,), {})(*arguments)))


def test_an_activation_inside_is_no_kernel_of_a_layer() -> None:
    layer = type("Plain", (layers.Conv2DTranspose,), {})(4, 3, activation=layers.PReLU())
    layer.build((None, 8, 8, 3))
    layer(keras.ops.zeros((1, 8, 8, 3)))
    assert skip_reason(layer) == "no SVD layer stands for Plain"


def test_of_a_dense_model_nothing_that_can_be_factorized_is_called_kept() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="can")(inputs)
    x = layers.DepthwiseConv2D(3, name="never")(x)
    x = Projection(name="inside")(x)
    model = keras.Model(inputs, layers.Dense(5, name="also")(x))
    table = dprp.summarize(model)
    assert {row.name for row in table.skipped} == {"never", "inside"}
    assert "kept dense" not in str(table)
    assert str(table).count("can be factorized") == 2
    low = dprp.factorize(model, layers=["can"])
    reasons = {row.name: row.skipped for row in dprp.summarize(low).rows}
    assert reasons["can"] is None
    assert reasons["also"] == "kept dense"
    assert str(reasons["never"]).startswith("depthwise")
    assert "can be factorized" not in str(dprp.summarize(low))
    folded = dprp.summarize(dprp.fold(low, form="dense"))
    assert {row.name for row in folded.skipped} == {"never", "inside"}
