"""The cost model against the papers' table, brute force and the layers Keras builds."""

from __future__ import annotations

import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import dprp_tf as dprp
from dprp_tf.costs.kernels import (
    break_even_rank,
    factor_parameters,
    two_stage_kernels,
    two_stage_parameters,
)
from dprp_tf.costs.map_entries import map_entries
from dprp_tf.costs.models import __all__, folded_cost, model_cost
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.decomposition import MATRICIZATIONS, full_rank, matrix_shape
from dprp_tf.keras_internals.layer_calls import layer_calls
from dprp_tf.layers import factorized_keys
from dprp_tf.zoo import resnet20

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@pytest.fixture(scope="module")
def residual() -> tuple[keras.Model, dprp.DPRPModel]:
    keras.utils.set_random_seed(1)
    dense = resnet20(shortcut="A")
    return dense, dprp.factorize(dense, decomposition="spatial")


def test_resnet20_at_full_rank_is_larger_by_the_papers_figure(
    residual: tuple[keras.Model, dprp.DPRPModel],
) -> None:
    # Table IV prints -0.67 (% fewer parameters) before training: r(h + w + 1) at full rank.
    dense, lowrank = residual
    before, after = model_cost(dense), model_cost(lowrank)
    assert 100 * after.compression == pytest.approx(-0.67, abs=0.005)
    assert after.dense_parameters == before.parameters == before.dense_parameters
    assert before.compression == 0.0
    assert after.parameters == sum(math.prod(w.shape) for w in lowrank.trainable_weights)
    assert before.non_trainable_parameters == after.non_trainable_parameters > 0


def test_resnet20_costs_the_papers_macs(residual: tuple[keras.Model, dprp.DPRPModel]) -> None:
    # Counted: convolutions and the dense layer, one multiply-accumulate each, padding included;
    # not counted: BatchNorm, ReLU, additions, pooling. By hand, with a 3x3 kernel in every layer:
    stem = 32 * 32 * 9 * 3 * 16
    first = 6 * 32 * 32 * 9 * 16 * 16
    second = 16 * 16 * 9 * (16 * 32 + 5 * 32 * 32)
    third = 8 * 8 * 9 * (32 * 64 + 5 * 64 * 64)
    by_hand = stem + first + second + third + 64 * 10
    dense, lowrank = residual
    assert model_cost(dense).macs == by_hand == model_cost(lowrank).dense_macs
    # Table IV's 41.0 M for the dense network; ours is 40.55 M, 1.1 % below it.
    assert by_hand == pytest.approx(41.0e6, rel=0.015)


def test_training_factors_costs_the_convolution_and_the_rebuilding_of_its_kernel() -> None:
    inputs = keras.Input((8, 6, 3))
    layer = dprp.SVDConv2D(5, 3, strides=2, padding="same", rank=4)
    cost = model_cost(keras.Model(inputs, layer(inputs)))
    assert cost.dense_macs == 4 * 3 * 9 * 3 * 5
    assert cost.macs == cost.dense_macs + 9 * 3 * 5 * 4


@given(shape=SHAPES, matricization=st.sampled_from(MATRICIZATIONS))
def test_break_even_is_the_largest_rank_that_pays(
    shape: tuple[int, ...], matricization: str
) -> None:
    weights = math.prod(shape)
    height, width = matrix_shape(shape, matricization)
    by_search = 0
    for rank in itertools.count(1):
        if rank * (height + width + 1) > weights:
            break
        by_search = rank
    assert break_even_rank(shape, matricization) == by_search
    assert factor_parameters(shape, matricization, 3) == 3 * (height + width + 1)


@pytest.mark.parametrize("matricization", MATRICIZATIONS)
@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: layers.Conv1D(5, 3, padding="same", name="it"), (9, 4)),
        (lambda: layers.Conv2D(5, (3, 2), padding="same", name="it"), (7, 6, 4)),
        (lambda: layers.Conv2D(5, 1, name="it"), (7, 6, 4)),
        (lambda: layers.Conv3D(5, (3, 2, 2), padding="same", name="it"), (5, 5, 5, 4)),
        (lambda: layers.Dense(5, name="it"), (8,)),
    ],
    ids=["Conv1D", "Conv2D", "pointwise", "Conv3D", "Dense"],
)
def test_two_stage_figures_are_those_of_the_layers_built(
    layer: object, inputs: tuple[int, ...], matricization: str
) -> None:
    x = keras.Input(inputs)
    dense = keras.Model(x, layer()(x))  # type: ignore[operator]
    shape = tuple(dense.get_layer("it").kernel.shape)
    bias = shape[-1]
    for rank in (1, 2, full_rank(shape, matricization)):
        lowrank = dprp.factorize(dense, decomposition=matricization, ranks=rank)
        plan = dprp.choose_forms(lowrank, form="two_stage")[0]
        assert plan.form != "dense"
        folded = dprp.fold(lowrank, form="two_stage")
        rank = lowrank.ranks["it"]
        # Without a depthwise convolution to fold into, three axes take `channel`.
        kind = lowrank.get_layer("it").decomposition
        assert folded.count_params() - bias == two_stage_parameters(shape, kind, rank)
        assert plan.folded_parameters == two_stage_parameters(shape, kind, rank)
        second = tuple(folded.get_layer("it").kernel.shape)
        assert second == two_stage_kernels(shape, kind, rank)[1]
        first_macs = model_cost(folded).macs
        positions = math.prod(folded.output_shape[1:-1])
        sizes = [math.prod(k) for k in two_stage_kernels(shape, kind, rank)]
        assert first_macs == positions * sum(sizes)


def test_a_shared_layer_counts_its_weights_once_and_its_macs_at_each_call() -> None:
    shared = layers.Conv2D(3, 3, padding="same", use_bias=False)
    inputs = keras.Input((6, 5, 3))
    twice = keras.Model(inputs, shared(shared(inputs)))
    cost = model_cost(twice)
    assert (cost.parameters, cost.macs) == (81, 2 * 30 * 81)
    lowrank = model_cost(dprp.factorize(twice, ranks=2))
    assert lowrank.parameters == 2 * (9 + 9 + 1)
    assert lowrank.dense_parameters == 81
    assert lowrank.dense_macs == cost.macs


def test_nested_models_are_counted_inside() -> None:
    inner_input = keras.Input((4, 4, 2))
    inner = keras.Model(inner_input, layers.Conv2D(2, 3, padding="same")(inner_input))
    inputs = keras.Input((4, 4, 2))
    outputs = layers.Dense(3)(layers.Flatten()(inner(inner(inputs))))
    cost = model_cost(keras.Model(inputs, outputs))
    assert cost.parameters == (36 + 2) + (32 * 3 + 3)
    assert cost.macs == 2 * 16 * 36 + 96
    sequential = keras.Sequential([keras.Input((4, 4, 2)), inner, layers.Flatten()])
    assert model_cost(sequential).macs == 16 * 36


def test_depthwise_grouped_and_transposed_convolutions() -> None:
    def macs(layer: keras.layers.Layer, shape: tuple[int, ...]) -> int | None:
        inputs = keras.Input(shape)
        return model_cost(keras.Model(inputs, layer(inputs))).macs

    assert macs(layers.DepthwiseConv2D(3, padding="same"), (4, 5, 6)) == 20 * 9 * 6
    assert macs(layers.Conv2D(8, 3, groups=2, padding="same"), (4, 5, 6)) == 20 * 9 * 3 * 8
    # Each of the 20 input values meets each of its 3 x 3 x 6 x 2 kernel entries once.
    assert macs(layers.Conv2DTranspose(2, 3, strides=2, padding="same"), (4, 5, 6)) == 20 * 108
    assert macs(layers.Conv2D(2, 3, data_format="channels_first"), (6, 4, 5)) == 2 * 3 * 108
    assert macs(layers.Dense(3), (7, 5)) == 7 * 15


def test_einsum_dense_and_recurrent_layers_count_every_sum() -> None:
    inputs = keras.Input((5, 6))
    # 5 positions, 6 inputs, 2 heads of 3
    heads = layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de")(inputs)
    model = keras.Model(inputs, heads)
    assert model_cost(model).macs == 5 * 6 * 2 * 3
    back = layers.EinsumDense("abde,dec->abc", (5, 4))(heads)
    assert model_cost(keras.Model(inputs, back)).macs == 5 * 36 + 5 * 6 * 4
    anywhere = layers.EinsumDense("...x,xy->...y", (7,))(inputs)
    assert model_cost(keras.Model(inputs, anywhere)).macs == 5 * 6 * 7
    last = layers.LSTM(4)(inputs)
    # 4 gates, each from 6 inputs and 4 states, in 5 steps
    assert model_cost(keras.Model(inputs, last)).macs == 5 * (6 + 4) * 4 * 4
    both = layers.Bidirectional(layers.GRU(4))(inputs)
    assert model_cost(keras.Model(inputs, both)).macs == 2 * 5 * (6 + 4) * 3 * 4


def test_unknown_sizes_give_no_macs_but_parameters() -> None:
    inputs = keras.Input((None, None, 3))
    cost = model_cost(keras.Model(inputs, layers.Conv2D(2, 3)(inputs)))
    assert cost.macs is None
    assert cost.dense_macs is None
    assert cost.parameters == 56


def test_frozen_layers_are_not_counted_as_trained() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="frozen", trainable=False)(inputs)
    lowrank = dprp.factorize(keras.Model(inputs, layers.Conv2D(2, 3, name="free")(x)))
    cost = model_cost(lowrank)
    assert cost.parameters == sum(math.prod(w.shape) for w in lowrank.trainable_weights)
    assert cost.dense_parameters == 9 * 4 * 2 + 2


def test_a_subclassed_model_is_refused() -> None:
    class Opaque(keras.Model):
        def call(self, inputs: object) -> object:
            return inputs

    with pytest.raises(ValueError, match=r"`model` must be a built Functional.*Opaque"):
        model_cost(Opaque())


def test_costs_are_plain_integers() -> None:
    inputs = keras.Input((8, 8, 3))
    cost = model_cost(dprp.factorize(keras.Model(inputs, layers.Conv2D(4, 3)(inputs)), ranks=2))
    for row in (cost, *cost.layers):
        for name in ("parameters", "macs", "dense_parameters", "dense_macs"):
            assert type(getattr(row, name)) is int
    assert isinstance(cost.compression, float)
    assert not isinstance(cost.compression, np.floating)
    assert "model_cost" in __all__


@pytest.mark.parametrize("matricization", ["spatial", "channel", "separable", "tucker"])
@pytest.mark.parametrize("rank", [2, 50])
def test_folded_cost_is_what_the_folded_model_costs(matricization: str, rank: int) -> None:
    inputs = keras.Input((12, 10, 6))
    shared = keras.layers.Conv2D(6, 3, padding="same", name="shared")
    x = shared(shared(inputs))
    x = keras.layers.Conv2D(16, (3, 5), strides=2, padding="same", name="strided")(x)
    x = keras.layers.Conv2D(8, 1, name="pointwise", trainable=False)(x)
    x = keras.layers.SeparableConv2D(8, 3, name="skipped")(x)
    x = keras.layers.BatchNormalization()(x)
    outputs = keras.layers.Dense(20, name="dense")(x)
    lowrank = dprp.factorize(keras.Model(inputs, outputs), decomposition=matricization, ranks=rank)
    folded = model_cost(dprp.fold(lowrank))
    assert folded_cost(lowrank) == (folded.parameters, folded.macs)
    if rank == 2:
        assert folded.parameters < model_cost(lowrank).dense_parameters


@pytest.mark.parametrize("decomposition", ["spatial", "separable", "tucker"])
def test_transposed_and_recurrent_layers_cost_what_they_fold_into(decomposition: str) -> None:
    inputs = keras.Input((6, 5, 12))
    x = keras.layers.Conv2DTranspose(10, 3, strides=2, padding="same", name="up")(inputs)
    x = keras.layers.Conv2DTranspose(9, (4, 2), strides=(2, 1), name="further")(x)
    x = keras.layers.Reshape((26, 99))(x)
    x = keras.layers.LSTM(7, return_sequences=True, name="each")(x)
    outputs = keras.layers.GRU(6, name="last")(x)
    model = keras.Model(inputs, outputs)
    # Each input meets the kernel once; each step both kernels of the cell.
    up, further = 6 * 5 * 9 * 12 * 10, 12 * 10 * 8 * 10 * 9
    each, last = 26 * (99 + 7) * 28, 26 * (7 + 6) * 18
    assert model_cost(model).macs == up + further + each + last
    lowrank = dprp.factorize(model, decomposition=decomposition, ranks=3)
    assert model_cost(lowrank).dense_macs == model_cost(model).macs
    folded = model_cost(dprp.fold(lowrank, form="two_stage"))
    space = RankSpace(model, decomposition)
    ranks = {key: layer.ranks for key, layer in factorized_keys(lowrank).items()}
    cost = space.cost(ranks)
    assert cost.values["parameters"] == folded.parameters
    assert cost.values["macs"] == folded.macs
    maps = map_entries(layer_calls(dprp.fold(lowrank, form="two_stage")))
    assert cost.values["activations"] == sum(entries or 0 for entries in maps.values())
    assert folded_cost(lowrank) == (folded.parameters, folded.macs)
