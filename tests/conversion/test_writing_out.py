"""Attention and einsum layers written out: the same function of plain dense layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from channel_checks import draw_removal, masked_outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.channels import channel_groups
from dprp_tf.cli.main import app
from dprp_tf.conversion.writing_out import reachable, unwritten
from dprp_tf.data import load
from dprp_tf.layers.factorizable import factorizable

_LONG, _WIDE = 6, 8


def _filled(model: keras.Model, seed: int = 0) -> keras.Model:
    """With biases and normalizations too that are not those of the beginning."""
    rng = np.random.default_rng(seed)
    model.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def _inputs(model: keras.Model, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    found = []
    for tensor in model.inputs:
        shape = (3, *((5 if size is None else size) for size in tensor.shape[1:]))
        if tensor.dtype == "bool":
            values = rng.random(shape) < 0.7
            # Nothing is forbidden everything.
            values[..., 0] = True
            found.append(values)
        else:
            found.append(rng.normal(size=shape).astype("float32"))
    return found if len(found) > 1 else found[0]


def _assert_same(model: keras.Model, plain: keras.Model, tolerance: float = 2e-5) -> None:
    x = _inputs(model)
    expected, found = (keras.tree.flatten(each(x, training=False)) for each in (model, plain))
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert tuple(one.shape) == tuple(other.shape)
        np.testing.assert_allclose(
            ops.convert_to_numpy(other),
            ops.convert_to_numpy(one),
            atol=tolerance * float(ops.max(ops.abs(one))),
        )
    assert sum(map(np.size, plain.get_weights())) == sum(map(np.size, model.get_weights()))


def _attention(kind: str = "heads", **options: Any) -> keras.layers.Layer:
    if kind == "heads":
        return layers.MultiHeadAttention(2, 4, name="attention", **options)
    return layers.GroupQueryAttention(4, 4, 2, name="attention", **options)


@pytest.mark.parametrize("kind", ["heads", "groups"])
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"use_bias": False}, {}),
        ({"use_gate": True}, {}),
        ({"sliding_window": 2}, {}),
        ({"sliding_window": 3}, {"use_causal_mask": True}),
        ({}, {"use_causal_mask": True}),
        ({"dropout": 0.4}, {}),
        ({"dropout": 0.4, "use_gate": True}, {"use_causal_mask": True}),
        ({}, {"return_attention_scores": True}),
        ({}, {"return_attention_scores": True, "use_causal_mask": True}),
    ],
)
def test_self_attention_computes_the_same(
    kind: str, options: dict[str, Any], call: dict[str, Any]
) -> None:
    x = keras.Input((_LONG, _WIDE))
    model = _filled(keras.Model(x, _attention(kind, **options)(x, x, **call)))
    plain = dprp.write_out(model)
    assert not any("Attention" in type(layer).__name__ for layer in plain.layers)
    _assert_same(model, plain)
    # What it computes depends on its masks and scores: without, it is another function.
    if call or "sliding_window" in options:
        free = _filled(keras.Model(x, _attention(kind)(x, x)))
        if [w.shape for w in free.get_weights()] == [w.shape for w in model.get_weights()]:
            free.set_weights(model.get_weights())
            other = keras.tree.flatten(free(_inputs(model)))[0]
            mine = keras.tree.flatten(plain(_inputs(model)))[0]
            changed = float(ops.max(ops.abs(other - mine)))
            assert (changed > 1e-3) == (
                "sliding_window" in options or call.get("use_causal_mask", False)
            )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("masks", [(), ("attention",), ("query", "value", "key"), ("value",)])
def test_attention_to_others_with_masks_of_every_kind(
    masks: tuple[str, ...], dropout: float
) -> None:
    query, value = keras.Input((_LONG, _WIDE)), keras.Input((4, 5))
    key = keras.Input((4, 7))
    told = {
        name: keras.Input((_LONG, 4) if name == "attention" else (_LONG if name == "query" else 4,),
                          dtype="bool")
        for name in masks
    }  # fmt: skip
    attention = layers.MultiHeadAttention(
        3, 4, value_dim=5, output_shape=9, dropout=dropout, name="attention"
    )
    outputs = attention(query, value, key, **{f"{name}_mask": mask for name, mask in told.items()})
    model = _filled(keras.Model([query, value, key, *told.values()], outputs))
    _assert_same(model, dprp.write_out(model))


def test_sequences_of_unknown_length() -> None:
    x = keras.Input((None, _WIDE))
    model = _filled(keras.Model(x, _attention()(x, x)))
    plain = dprp.write_out(model)
    _assert_same(model, plain)
    longer = np.random.default_rng(0).normal(size=(2, 11, _WIDE)).astype("float32")
    np.testing.assert_allclose(plain(longer), model(longer), atol=1e-4)


_EQUATIONS = [
    ("abc,cd->abd", (4, 3, 5), (3, 6), "d"),
    ("abc,cde->abde", (4, 3, 5), (3, 2, 3), "de"),
    ("abc,cde->abed", (4, 3, 5), (3, 3, 2), "ed"),
    ("abcd,cde->abe", (4, 3, 2, 5), (3, 6), "e"),
    ("abcd,bde->ace", (4, 3, 2, 5), (2, 6), None),
    ("abc,bd->adc", (4, 3, 5), (6, 5), "d"),
    ("...x,xy->...y", (4, 3, 2, 5), (3, 2, 6), "y"),
    ("ab,bcd->acd", (4, 5), (2, 3), "cd"),
]


@pytest.mark.parametrize(("equation", "shape", "made", "bias"), _EQUATIONS)
@pytest.mark.parametrize("activation", [None, "relu", "softmax"])
def test_einsum_layers_compute_the_same(
    equation: str,
    shape: tuple[int, ...],
    made: tuple[int, ...],
    bias: str | None,
    activation: str | None,
) -> None:
    x = keras.Input(shape[1:])
    layer = layers.EinsumDense(
        equation, made, activation=activation, bias_axes=bias, name="product",
        kernel_regularizer=keras.regularizers.L2(0.1),
    )  # fmt: skip
    model = _filled(keras.Model(x, layer(x)))
    plain = dprp.write_out(model)
    _assert_same(model, plain)
    assert type(plain.get_layer("product")) is layers.Dense
    assert float(sum(plain.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_product_of_two_matrices(data: st.DataObject) -> None:
    kept, summed, made = (data.draw(st.integers(low, 3)) for low in (0, 1, 1))
    letters = "abcdefghij"
    batch, stay = letters[0], letters[1 : 1 + kept]
    contracted = letters[1 + kept : 1 + kept + summed]
    outputs = letters[1 + kept + summed : 1 + kept + summed + made]
    sizes = {letter: data.draw(st.integers(1, 4)) for letter in stay + contracted + outputs}
    left = batch + "".join(data.draw(st.permutations(stay + contracted)))
    right = batch + "".join(data.draw(st.permutations(stay + outputs)))
    kernel = "".join(data.draw(st.permutations(contracted + outputs)))
    bias = "".join(letter for letter in right if letter in outputs and data.draw(st.booleans()))
    bias = bias if len(bias) == len(outputs) else ""
    layer = layers.EinsumDense(
        f"{left},{kernel}->{right}",
        tuple(sizes[letter] for letter in right[1:]),
        bias_axes=bias or None,
    )
    x = keras.Input(tuple(sizes[letter] for letter in left[1:]))
    model = _filled(keras.Model(x, layer(x)), data.draw(st.integers(0, 5)))
    plain = dprp.write_out(model)
    _assert_same(model, plain)
    assert not unwritten(model)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda x: layers.EinsumDense("abc,bcd->abd", (_LONG, 4), name="it")(x), "each place"),
        (lambda x: layers.EinsumDense("abc,cd->abd", (_LONG, 4), bias_axes="b", name="it")(x),
         "its bias has other axes"),
        (lambda x: layers.EinsumDense("abc,cde->abde", (_LONG, 4, 2), bias_axes="e", name="it")(x),
         "its bias has other axes"),
        (lambda x: layers.EinsumDense("abc,cd->abd", (_LONG, 4), name="it",
                                      kernel_constraint="non_neg")(x), "a constraint"),
        (lambda x: layers.MultiHeadAttention(2, 4, name="it")(y := layers.Masking()(x), y),
         "carry masks"),
        (lambda x: layers.MultiHeadAttention(2, 4, attention_axes=(2,), name="it")(
            y := layers.Reshape((2, 3, _WIDE))(x), y), "more than one axis"),
    ],
)  # fmt: skip
def test_what_is_left_says_why_and_stays(build: Any, reason: str) -> None:
    x = keras.Input((_LONG, _WIDE))
    model = _filled(keras.Model(x, build(x)))
    ((name, told),) = unwritten(model).items()
    assert name == "it"
    assert reason in told
    plain = dprp.write_out(model)
    assert type(plain.get_layer("it")) is type(model.get_layer("it"))
    _assert_same(model, plain)


def _video(x: Any) -> Any:
    y = layers.TimeDistributed(layers.Conv2D(4, 3, activation="relu"), name="each")(x)
    y = layers.TimeDistributed(layers.MaxPooling2D())(y)
    y = layers.TimeDistributed(layers.Flatten())(y)
    y = layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both")(y)
    return layers.Bidirectional(layers.GRU(4), merge_mode="ave", name="end")(y)


def _video_of_a_backbone(x: Any) -> Any:
    frame = keras.Input(x.shape[2:])
    y = layers.BatchNormalization(trainable=False)(layers.Conv2D(4, 3, name="inside")(frame))
    backbone = keras.Model(frame, layers.GlobalAveragePooling2D()(y), name="backbone")
    return layers.LSTM(3, name="end")(layers.TimeDistributed(backbone, name="each")(x))


def _separable(x: Any) -> Any:
    y = layers.Reshape((24, 8, 3))(x)
    y = layers.SeparableConv2D(
        6, 3, depth_multiplier=2, strides=2, padding="same", activation="relu", name="first"
    )(y)
    y = layers.SeparableConv2D(5, 3, dilation_rate=2, padding="same", use_bias=False, name="other")(
        y
    )
    y = layers.Reshape((16, 15))(y)
    y = layers.SeparableConv1D(4, 3, strides=2, padding="same", name="line")(y)
    both = layers.Bidirectional(
        layers.SimpleRNN(4, return_sequences=True, return_state=True),
        merge_mode=None,
        name="both",
    )
    return both(y)


@pytest.mark.parametrize(
    ("build", "reached"),
    [
        (_video, {"each", "both_forward", "both_backward", "end_forward", "end_backward"}),
        (_video_of_a_backbone, {"inside", "end"}),
        (_separable, {"first", "other", "line", "both_forward", "both_backward"}),
    ],
)
def test_sequences_wrappers_and_separable_convolutions_compute_the_same(
    build: Any, reached: set[str]
) -> None:
    x = keras.Input((3, 8, 8, 3))
    model = keras.Model(x, build(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 0.7, weight.shape))
    plain = dprp.write_out(model)
    _assert_same(model, plain)
    assert not unwritten(model)
    assert reached <= set(factorizable(plain)[0])
    # Ranks and channels of what is written out go as those of any layers.
    lowrank = dprp.factorize(plain, ranks=1, decomposition="channel")
    folded = dprp.fold(lowrank, form="two_stage")
    given = _inputs(model)
    found, cut = (keras.tree.flatten(each(given)) for each in (lowrank, folded))
    for one, other in zip(found, cut, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-4, rtol=1e-4
        )
    removed = draw_removal(channel_groups(plain), rng)
    assert removed
    small = keras.tree.flatten(dprp.remove_channels(plain, removed)(given))
    for one, other in zip(small, masked_outputs(plain, [given], removed), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda x: layers.Bidirectional(layers.RNN(layers.LSTMCell(3)), name="it")(x), "no LSTM"),
        (lambda x: layers.Bidirectional(layers.LSTM(3), name="it")(layers.Masking()(x)), "masks"),
        (lambda x: layers.TimeDistributed(layers.LSTM(2), name="it")(
            layers.Reshape((2, 3, _WIDE))(x)), "LSTM to each step"),
    ],
)  # fmt: skip
def test_wrappers_that_are_left_say_why(build: Any, reason: str) -> None:
    x = keras.Input((_LONG, _WIDE))
    model = _filled(keras.Model(x, build(x)))
    ((name, told),) = unwritten(model).items()
    assert name == "it"
    assert reason in told
    _assert_same(model, dprp.write_out(model))


def test_shared_nested_frozen_and_wrapped_layers_stay_what_they_are() -> None:
    shared = layers.MultiHeadAttention(2, 4, dropout=0.1, name="shared")
    inner_input = keras.Input((_LONG, _WIDE))
    inner = keras.Model(
        inner_input, layers.EinsumDense("abc,cd->abd", (_LONG, _WIDE), name="in")(inner_input),
        name="inner",
    )  # fmt: skip
    x = keras.Input((_LONG, _WIDE))
    y = shared(x, x)
    y = shared(inner(y), x)
    y = layers.TimeDistributed(layers.Dense(5, "relu"), name="timed")(y)
    model = _filled(keras.Model(x, y))
    model.get_layer("inner").trainable = False
    plain = dprp.write_out(model)
    _assert_same(model, plain)
    assert type(plain.get_layer("timed")) is layers.Dense
    assert type(plain.get_layer("inner").get_layer("in")) is layers.Dense
    assert not plain.get_layer("inner").trainable_weights
    # Called twice, its projections exist once.
    assert len([w for w in plain.weights if "shared_query" in w.path]) == 2
    assert len(plain.trainable_weights) == len(model.trainable_weights)


def test_it_trains_as_the_layer_does(tmp_path: Path) -> None:
    def network() -> keras.Model:
        keras.utils.set_random_seed(2)
        x = keras.Input((_LONG, _WIDE))
        y = layers.LayerNormalization()(layers.Add()([x, _attention()(x, x)]))
        return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, _LONG, _WIDE)).astype("float32"), np.arange(32) % 3
    model = network()
    plain = dprp.write_out(model)
    for each in (model, plain):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        each.compile(keras.optimizers.SGD(0.1), loss)
        each.fit(x, y, epochs=4, batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)
    assert np.abs(network().predict(x, verbose=0) - plain.predict(x, verbose=0)).max() > 1e-2
    plain.save(tmp_path / "plain.keras")
    again = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-6)


def _transformer() -> keras.Model:
    """A small vision transformer: patches, two blocks, a head."""
    keras.utils.set_random_seed(4)
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 4, strides=4, name="patches")(inputs)
    x = layers.Reshape((9, 16))(x)
    for block in range(2):
        y = layers.LayerNormalization(name=f"norm_{block}")(x)
        y = layers.MultiHeadAttention(2, 8, dropout=0.1, name=f"attention_{block}")(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization(name=f"second_norm_{block}")(x)
        y = layers.Dense(32, "gelu", name=f"wide_{block}")(y)
        x = layers.Add()([x, layers.Dense(16, name=f"narrow_{block}")(y)])
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling1D()(x)))


def test_ranks_of_a_transformer_are_chosen_cut_and_exported(tmp_path: Path) -> None:
    model = _transformer()
    with_attention = set(factorizable(model)[0])
    plain = dprp.write_out(model)
    reached = set(factorizable(plain)[0])
    assert len(reached - with_attention) == 8
    lowrank = dprp.factorize(plain, decomposition="channel")
    x = np.random.default_rng(3).normal(size=(24, 12, 12, 3)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(lowrank.predict(x, verbose=0), expected, atol=1e-4)
    ranks = dprp.select_ranks(plain, method="activation", budget=0.6, data=x)
    assert {"attention_0_query", "attention_1_output"} & set(ranks.ranks)
    small = dprp.cut(plain, ranks, calibration_data=x)
    assert small.count_params() < 0.65 * model.count_params()
    found = small.predict(x, verbose=0)
    assert np.abs(found - expected).max() > 1e-3
    report = deploy.export(small, tmp_path / "small.tflite", verification_data=x)
    assert report.passed
    np.testing.assert_allclose(deploy.run_file(tmp_path / "small.tflite", x), found, atol=1e-3)


def test_a_compiled_model_stays_compiled_and_one_without_such_layers_is_itself() -> None:
    model = _transformer()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    plain = dprp.write_out(model)
    assert plain.loss.get_config() == loss.get_config()
    other = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert reachable(other) is other
    assert reachable(model) is not model


@pytest.mark.slow
def test_a_transformer_goes_through_selection_and_search_by_the_command_line(
    tmp_path: Path,
) -> None:
    data = load("digits", image_size=12)
    keras.utils.set_random_seed(0)
    inputs = keras.Input(data.image_shape)
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(16, 4, strides=4, name="patches")(x)
    x = layers.Reshape((9, 16))(x)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8, name="attention")(y, y)])
    y = layers.Dense(32, "gelu", name="wide")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(16, name="narrow")(y)])
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(x))
    dprp.FineTuning(epochs=25, batch_size=32, augment=False).fit(model, data)
    model.save(tmp_path / "vit.keras")
    words = ["--data", "digits", "--image-size", "12"]

    def said(*more: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in more])

    looked = said(tmp_path / "vit.keras")
    assert looked.exit_code == 0, looked.output
    assert "in 8 layers" in looked.output
    bounds = ["--parameters", 0.6, "--cut", "both"]
    place = ["--folder", tmp_path / "run", "--samples", 64, "--epochs", 2]
    chosen = said("select", tmp_path / "vit.keras", *words, *bounds, *place)
    assert chosen.exit_code == 0, chosen.output
    rows = json.loads((tmp_path / "run" / "selection.json").read_text())["files"]
    # Of so few images int8 may break it, which is told and ends nothing.
    for row in rows:
        assert row["verified"] or f"{row['file']} is NOT VERIFIED" in chosen.output
    small = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert small.count_params() < 0.65 * model.count_params()
    best = said("compress", tmp_path / "vit.keras", *words, "--folder", tmp_path / "best",
                "--samples", 64, "--minutes", 1.2, "--max-drop", 5)  # fmt: skip
    assert best.exit_code == 0, best.output
    assert (tmp_path / "best" / "best.tflite").exists()


def test_what_a_bidirectional_layer_is_given_besides_keeps_it() -> None:
    x, state, other = keras.Input((_LONG, _WIDE)), keras.Input((5,)), keras.Input((5,))
    both = layers.Bidirectional(layers.GRU(5), name="it")
    model = _filled(keras.Model([x, state, other], both(x, [state, other])))
    assert "a state or a mask" in unwritten(model)["it"]
    _assert_same(model, dprp.write_out(model))


def test_names_flags_and_functions_of_what_is_written_out() -> None:
    def own(x: Any) -> Any:
        return ops.tanh(x) * 0.5

    x = keras.Input((_LONG, _WIDE))
    y = layers.Dense(_WIDE, name="both_forward")(x)
    both = layers.Bidirectional(layers.LSTM(3, return_sequences=True, use_cudnn=False), name="both")
    y = both(y)
    y = layers.TimeDistributed(layers.Dense(4, activation=own), name="each")(y)
    y = layers.Reshape((_LONG, 2, 2))(y)
    y = layers.TimeDistributed(layers.Conv1D(3, 2, activation=own), name="windows")(y)
    y = layers.Reshape((_LONG, 3))(y)
    separable = layers.SeparableConv1D(4, 2, activation=own, name="apart")
    y = separable(layers.Dense(3, name="apart_depthwise")(y))
    model = _filled(keras.Model(x, y))
    both.backward_layer.cell.kernel.trainable = False
    separable.depthwise_kernel.trainable = False
    plain = dprp.write_out(model)
    _assert_same(model, plain)
    names = [layer.name for layer in plain.layers]
    assert len(set(names)) == len(names)
    assert {"both_forward", "both_forward_1", "both_backward", "apart_depthwise_1"} <= set(names)
    assert len(plain.trainable_variables) == len(model.trainable_variables)
    assert not plain.get_layer("both_backward").cell.kernel.trainable
    assert plain.get_layer("both_forward_1").use_cudnn is False
    assert not unwritten(model)
