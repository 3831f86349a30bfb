"""MACs of layers that hold layers, and at the sizes of the call, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.costs.models import folded_cost, model_cost
from dprp_tf.costs.rank_space import RankSpace

pytestmark = pytest.mark.backend


class Residual(layers.Layer):
    """Two convolutions and a shortcut; no compute_output_shape()."""

    def __init__(self, filters: int, **options: Any) -> None:
        super().__init__(**options)
        self.first = layers.Conv2D(filters, 3, strides=2, padding="same")
        self.second = layers.Conv2D(filters, 3, padding="same")
        self.shortcut = layers.Conv2D(filters, 1, strides=2)
        self.norm = layers.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.shortcut.build(shape)
        inner = self.first.compute_output_shape(shape)
        self.second.build(inner)
        self.norm.build(inner)

    def call(self, x: Any, training: Any = None) -> Any:
        inner = self.norm(self.second(self.first(x)), training=training)
        return keras.ops.relu(inner) + self.shortcut(x)


class Shaped(Residual):
    """One that answers from shapes alone."""

    def compute_output_shape(self, shape: Any) -> Any:
        return self.shortcut.compute_output_shape(shape)


class Holder(layers.Layer):
    """Holds layers; a function says what it makes of them."""

    def __init__(
        self, parts: list[layers.Layer], function: Callable[..., Any], **options: Any
    ) -> None:
        super().__init__(**options)
        self.parts, self.function = parts, function

    def call(self, x: Any) -> Any:
        return self.function(x, *self.parts)


class Matrix(layers.Layer):
    """A kernel of its own, by any name."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(shape[-1], self.units), name="table")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.table)


class Scale(layers.Layer):
    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

    def call(self, x: Any) -> Any:
        return x * self.gamma


class ScaledConv(layers.Conv2D):
    def call(self, inputs: Any) -> Any:
        return keras.ops.concatenate([super().call(inputs), super().call(2.0 * inputs)])


class DenseCell(layers.Layer):
    """A cell of a user's own: its matrix runs along the sequence as it likes."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = self.state_size = self.output_size = units

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1] + self.units, self.units), name="kernel")

    def call(self, x: Any, states: Any) -> Any:
        state = keras.ops.matmul(keras.ops.concatenate([x, states[0]], -1), self.kernel)
        return state, [state]


def _macs(layer: layers.Layer, *shapes: tuple[int | None, ...], **options: Any) -> int | None:
    inputs = [keras.Input(shape) for shape in shapes]
    outputs = layer(*inputs, **options)
    return model_cost(keras.Model(inputs, outputs)).macs


def _cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="a"),
            layers.Conv2D(5, 3, strides=2, name="b"),
            layers.GlobalAveragePooling2D(),
        ]
    )


CNN = 6 * 6 * 27 * 4 + 2 * 2 * 36 * 5


def test_a_block_is_counted_inside_at_each_layers_own_positions() -> None:
    def by_hand(height: int, width: int, channels: int, filters: int) -> int:
        places = -(-height // 2) * -(-width // 2)
        return places * (9 * channels * filters + 9 * filters * filters + channels * filters)

    assert _macs(Residual(6), (9, 8, 3)) == by_hand(9, 8, 3, 6)
    assert _macs(Shaped(6), (9, 8, 3)) == by_hand(9, 8, 3, 6)
    inputs = keras.Input((9, 8, 3))
    x = Residual(4, name="deep")(Residual(6, name="wide")(inputs))
    cost = model_cost(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    own = {row.name: row.macs for row in cost.layers}
    assert own["wide"] == by_hand(9, 8, 3, 6)
    assert own["deep"] == by_hand(5, 4, 6, 4)
    assert cost.macs == own["wide"] + own["deep"] + 3 * 2 * 4 * 2


def test_what_a_block_calls_twice_or_holds_deeper_is_counted_so() -> None:
    twice = Holder([layers.Dense(5)], lambda x, dense: dense(dense(x)))
    assert _macs(twice, (7, 5)) == 2 * 7 * 25
    outer = Holder([twice, layers.Dense(3)], lambda x, inner, dense: dense(inner(x)))
    assert _macs(outer, (7, 5)) == 2 * 7 * 25 + 7 * 15
    model = Holder([_cnn()], lambda x, cnn: cnn(x))
    assert _macs(model, (8, 8, 3)) == CNN
    kept = Holder([layers.LSTM(4)], lambda x, lstm: lstm(x))
    assert _macs(kept, (5, 6)) == 5 * (6 + 4) * 16
    low = dprp.SVDDense(6, rank=2)
    low.build((None, 7, 4))
    inputs = keras.Input((7, 4))
    holds = Holder([low], lambda x, dense: dense(x))
    cost = model_cost(keras.Model(inputs, holds(inputs)))
    assert (cost.macs, cost.dense_macs) == (7 * 24 + 24 * 2, 7 * 24)
    assert cost.dense_parameters == 24 + 6
    assert cost.parameters == 2 * (4 + 6 + 1) + 6


def test_time_distributed_multiplies_by_its_steps() -> None:
    each = layers.TimeDistributed
    assert _macs(each(_cnn()), (6, 8, 8, 3)) == 6 * CNN
    assert _macs(each(layers.Conv2D(4, 3, strides=2)), (5, 9, 7, 3)) == 5 * 4 * 3 * 27 * 4
    assert _macs(each(layers.Dense(3)), (5, 4)) == 5 * 12
    assert _macs(each(each(layers.Dense(3))), (5, 2, 4)) == 10 * 12
    assert _macs(each(Shaped(4)), (3, 8, 8, 2)) == 3 * 16 * (72 + 144 + 8)
    assert _macs(each(layers.LSTM(4)), (3, 5, 6)) == 3 * 5 * (6 + 4) * 16
    assert _macs(each(layers.Dense(3)), (None, 4)) is None
    assert _macs(each(layers.ReLU()), (None, 4)) == 0


def test_recurrent_layers_and_their_wrappers() -> None:
    both = layers.Bidirectional(layers.LSTM(4, return_sequences=True))
    assert _macs(both, (5, 6)) == 2 * 5 * (6 + 4) * 16
    other = layers.Bidirectional(
        layers.GRU(4), backward_layer=layers.SimpleRNN(4, go_backwards=True)
    )
    assert _macs(other, (5, 6)) == 5 * (6 + 4) * 12 + 5 * (6 + 4) * 4
    cells = layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])
    assert _macs(cells, (5, 6)) == 5 * ((6 + 4) * 16 + (4 + 3) * 9)
    assert _macs(layers.RNN(DenseCell(4)), (5, 6)) is None
    # The state has the size of the output: 3 x 2 positions, whatever the input's.
    images = layers.ConvLSTM2D(2, 3, strides=2)
    assert _macs(images, (4, 8, 6, 3)) == 4 * 3 * 2 * 9 * (3 + 2) * 8
    maps = layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True)
    assert _macs(maps, (4, 8, 6, 3)) == 4 * 48 * 9 * (3 + 2) * 8


def test_attention_counts_its_projections_at_their_own_lengths() -> None:
    # 2 heads of 3: query on 5 places of 4, keys and values on 7 places of 8.
    attention = layers.MultiHeadAttention(2, 3)
    found = _macs(attention, (5, 4), (7, 8))
    assert found == 5 * 4 * 6 + 2 * (7 * 8 * 6) + 5 * 6 * 4
    grouped = layers.GroupQueryAttention(3, 4, 2)
    assert _macs(grouped, (5, 6), (7, 6)) == 5 * 6 * 12 + 2 * (7 * 6 * 6) + 5 * 12 * 6


def test_normalized_kernels_and_weights_of_several_axes_that_only_scale() -> None:
    assert _macs(layers.SpectralNormalization(layers.Conv2D(4, 3)), (8, 6, 3)) == 24 * 108
    assert _macs(layers.LayerNormalization(axis=[1, 2]), (5, 6)) == 0
    assert _macs(layers.PReLU(), (5, 6)) == 0
    assert _macs(Scale(), (5, 6)) == 0
    block = Holder([layers.Dense(6), Scale()], lambda x, dense, scale: scale(dense(x)))
    assert _macs(block, (5, 6)) == 5 * 36
    tokens = keras.Input((7,), dtype="int32")
    assert model_cost(keras.Model(tokens, layers.Embedding(9, 4)(tokens))).macs == 0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float64"])
def test_blocks_are_counted_in_every_precision(policy: str) -> None:
    class Mixed(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(6)

        def build(self, shape: Any) -> None:
            self.dense.build(shape)
            self.gamma = self.add_weight(shape=(6,), name="gamma")

        def call(self, x: Any) -> Any:
            return self.dense(x) * self.gamma + x

    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((5, 6))
        model = keras.Model(inputs, layers.Dense(2)(Mixed()(inputs)))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model_cost(model).macs == 5 * 36 + 5 * 12


def test_sums_over_axes_of_the_input_are_counted() -> None:
    # 5 places and 6 inputs are both summed over, for each of 4 outputs.
    assert _macs(layers.EinsumDense("abc,cd->ad", (4,)), (5, 6)) == 5 * 6 * 4
    assert _macs(layers.EinsumDense("...c,cd->...d", (4,)), (2, 5, 6)) == 10 * 24


def _tied(x: Any, table: Any) -> Any:
    return keras.ops.matmul(x, keras.ops.transpose(table.kernel))


def _scanned(x: Any, dense: Any) -> Any:
    first = keras.ops.swapaxes(x, 0, 1)
    state = keras.ops.zeros_like(x[:, 0])

    def step(carry: Any, row: Any) -> tuple[Any, Any]:
        made = dense(row + carry)
        return made, made

    return keras.ops.scan(step, state, first)[0]


def _looped(x: Any, dense: Any) -> Any:
    return keras.ops.while_loop(
        lambda i, at: i < 4, lambda i, at: (i + 1, dense(at)), (keras.ops.array(0), x)
    )[1]


def _branched(x: Any, dense: Any) -> Any:
    return keras.ops.cond(keras.ops.sum(x) > 0, lambda: dense(x), lambda: x)


@pytest.mark.parametrize("function", [_tied, _scanned, _looped, _branched])
def test_kernels_used_out_of_sight_in_loops_or_branches_are_not_known(
    function: Callable[..., Any],
) -> None:
    dense = layers.Dense(6)
    dense.build((None, 6))
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.Dense(2)(Holder([dense], function)(inputs)))
    cost = model_cost(model)
    assert cost.macs is None
    assert cost.parameters == 36 + 6 + 14
    rows = {row.name: row.macs for row in cost.layers}
    assert list(rows.values()).count(None) == 1


def test_what_the_users_own_code_multiplies_is_not_known() -> None:
    assert _macs(Matrix(4), (5, 6)) is None
    mixed = Holder([layers.Dense(6), Matrix(4)], lambda x, dense, own: own(dense(x)))
    assert _macs(mixed, (5, 6)) is None
    assert _macs(ScaledConv(4, 3), (8, 8, 3)) is None
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3)(ScaledConv(4, 3)(inputs)))
    summary = dprp.summarize(model)
    assert summary.cost.macs is None
    assert "MACs not known: those of scaled_conv" in str(summary)
    with pytest.raises(ValueError, match=r"`macs` of this model must be known.*MACs are None"):
        dprp.select_ranks(model, method="uniform", budget={"macs": 0.5})


def _windows(x: Any) -> Any:
    """(n, 8, 8, c) -> (4 n, 16, c), as window attention does."""
    cut = keras.ops.reshape(x, (-1, 2, 4, 2, 4, x.shape[-1]))
    return keras.ops.reshape(keras.ops.transpose(cut, (0, 1, 3, 2, 4, 5)), (-1, 16, x.shape[-1]))


def test_parts_of_a_sample_moved_into_the_batch_axis_are_counted_each() -> None:
    inputs = keras.Input((8, 8, 3))
    inside = Holder([layers.Dense(5)], lambda x, dense: dense(_windows(x)))
    assert model_cost(keras.Model(inputs, inside(inputs))).macs == 64 * 15
    model = keras.Model(inputs, layers.Dense(5, name="it")(_windows(inputs)))
    assert model_cost(model).macs == 64 * 15
    low = dprp.factorize(model, ranks=1)
    assert folded_cost(low)[1] == model_cost(dprp.fold(low)).macs == 64 * (3 + 5)
    space = RankSpace(model, "channel")
    assert space.cost({"it": (1,)}).values["macs"] == 64 * (3 + 5)
    assert dict(space.cost({}).dense) == {"parameters": 20, "macs": 64 * 15, "activations": 320}
    fixed = keras.Input((8, 8, 3), batch_size=3)
    assert model_cost(keras.Model(fixed, layers.Dense(5)(_windows(fixed)))).macs == 64 * 15


def test_counting_leaves_the_model_as_it_was() -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(Residual(4)(inputs))))
    block = next(layer for layer in model.layers if isinstance(layer, Residual))
    block.first.activity_regularizer = keras.regularizers.L2(0.1)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    before = keras.ops.convert_to_numpy(model(x))
    weights = model.get_weights()
    config = model.get_config()
    assert model_cost(model).macs
    # None of what is no value.
    assert all(keras.ops.convert_to_numpy(loss) >= 0 for loss in model.losses)
    assert model.get_config() == config
    for part in (block, block.first, block.second, block.norm):
        assert "call" not in vars(part)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), before)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def _head() -> keras.Model:
    inputs = keras.Input((None, None, 6))
    x = layers.Conv2D(6, 3, padding="same", name="h0")(inputs)
    return keras.Model(inputs, layers.Conv2D(4, 3, name="h1")(x), name="head")


def test_a_nested_head_of_open_sizes_is_counted_at_those_it_is_called_with() -> None:
    head = _head()
    inputs = keras.Input((16, 12, 3))
    fine = layers.Conv2D(6, 1, name="stem")(inputs)
    coarse = layers.MaxPooling2D()(fine)
    model = keras.Model(inputs, [head(fine), head(coarse)])
    cost = model_cost(model)
    rows = {row.name: row.macs for row in cost.layers}
    assert rows["h0"] == (16 * 12 + 8 * 6) * 9 * 36
    assert rows["h1"] == (14 * 10 + 6 * 4) * 9 * 24
    assert cost.macs == 192 * 18 + rows["h0"] + rows["h1"]
    budget = dprp.Budget(macs=0.6, tolerance=0.1)
    plan = dprp.select_ranks(model, method="uniform", budget=budget, decomposition="channel")
    folded = dprp.fold(dprp.factorize(model, ranks=plan), form="two_stage")
    assert model_cost(folded).macs == plan.cost["macs"] <= 0.6 * plan.dense["macs"]
    assert plan.dense["macs"] == cost.macs
    # In a model in a model, and in a wrapper of one.
    outer = keras.Input((16, 12, 6))
    inner = keras.Input((None, None, 6))
    middle = keras.Model(inner, head(layers.AveragePooling2D(2)(inner)))
    assert model_cost(keras.Model(outer, middle(outer))).macs == 48 * 324 + 6 * 4 * 216
    frames = keras.Input((5, 8, 6, 6))
    each = layers.TimeDistributed(_head())
    assert model_cost(keras.Model(frames, each(frames))).macs == 5 * (48 * 324 + 24 * 216)


def test_open_sizes_are_counted_at_the_input_shape_given() -> None:
    model = _head()
    assert model_cost(model).macs is None
    expected = 10 * 8 * 324 + 8 * 6 * 216
    assert model_cost(model, input_shape=(10, 8, 6)).macs == expected
    assert "MACs not known: those of h0, h1 can't be counted" in str(dprp.summarize(model))
    summary = dprp.summarize(model, input_shape=[10, 8, 6])
    assert f"{expected:,} MACs for one sample" in str(summary)
    assert summary.cost.macs == expected
    assert [row.macs for row in summary.rows] == [10 * 8 * 324, 8 * 6 * 216]
    words, image = keras.Input((None, 4), name="words"), keras.Input((None, 8, 3), name="image")
    joined = [layers.Dense(5)(words), layers.Conv2D(2, 3)(image)]
    two = keras.Model([words, image], joined)
    expected = 7 * 20 + 4 * 6 * 54
    assert model_cost(two, input_shape=[(7, 4), (6, 8, 3)]).macs == expected
    assert model_cost(two, input_shape={"image": (6, 8, 3), "words": (7, 4)}).macs == expected
    named = keras.Model({"image": image, "words": words}, joined)
    assert model_cost(named, input_shape={"image": (6, 8, 3), "words": (7, 4)}).macs == expected


@pytest.mark.parametrize(
    "wrong",
    [(10, 8), (10, 8, 3), (None, 10, 8, 6), (10.0, 8, 6), (0, 8, 6), 10, {"x": (10, 8, 6)}, ()],
)
def test_input_shapes_that_do_not_fit_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`input_shape` must hold.*None, None, 6.*Received"):
        model_cost(_head(), input_shape=wrong)
