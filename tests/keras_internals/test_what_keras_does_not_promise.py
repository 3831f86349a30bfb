"""One test for each private name of Keras that this library stands on.

When a new version of Keras changes one, the test of that name fails and says what broke, before a
training goes wrong. Passed with Keras 3.15.1 on TensorFlow and JAX; `pyproject.toml` says which
versions may be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from test_structure import KERAS_PRIVATE

from dprp_tf.keras_internals.payloads import set_payload

TENSORFLOW_ALONE = {"_distribute_strategy"}
JAX_ALONE = {"jax_state_sync"}
TESTS: dict[str, Callable[[], None]] = {}

pytestmark = pytest.mark.backend


def of(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(test: Callable[[], None]) -> Callable[[], None]:
        TESTS[name] = test
        return test

    return register


@pytest.mark.parametrize("name", sorted(KERAS_PRIVATE))
def test_keras_still_does(name: str) -> None:
    backend = keras.backend.backend()
    if (name in TENSORFLOW_ALONE and backend != "tensorflow") or (
        name in JAX_ALONE and backend != "jax"
    ):
        pytest.skip(f"{name} is not of the {backend} backend")
    TESTS[name]()


def test_every_name_has_a_test() -> None:
    assert set(TESTS) == KERAS_PRIVATE


def branched() -> keras.Model:
    first, second = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    shared = keras.layers.Dense(3, name="shared")
    joined = keras.layers.Add(name="joined")([shared(first), shared(second)])
    return keras.Model({"one": first, "two": second}, {"sum": joined})


def compiled(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="last")])
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(np.ones((4, 4), "float32"), np.ones((4, 2), "float32"), verbose=0)
    return model


@of("_auto_config")
def a_layer_records_what_it_was_made_with() -> None:
    class Made(keras.layers.Layer):
        def __init__(self, size: int, kind: str = "a", **kwargs: object) -> None:
            super().__init__(**kwargs)

    assert Made(3, trainable=False)._auto_config.config == {
        "size": 3,
        "kind": "a",
        "trainable": False,
    }
    assert Made(np.ones(2))._auto_config is None


@of("_batch_shape")
def an_input_layer_is_saved_with_the_shape_it_holds() -> None:
    layer = keras.layers.InputLayer((4,), name="one")
    layer._batch_shape = (None, 3)
    assert layer.get_config()["batch_shape"] == (None, 3)


@of("_build_shapes_dict")
def a_layer_is_built_anew_on_the_shape_it_holds() -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 4))
    vars(layer)["_build_shapes_dict"] = {"input_shape": (None, 3)}
    assert layer.get_build_config() == {"input_shape": (None, 3)}


@of("_call_has_training_arg")
def training_arguments_are_known() -> None:
    assert keras.layers.Dropout(0.5)._call_has_training_arg
    assert not keras.layers.ReLU()._call_has_training_arg


@of("_distribute_strategy")
def a_model_knows_the_strategy_it_was_made_in() -> None:
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = branched()
    assert model._distribute_strategy is strategy
    assert branched()._distribute_strategy is None


@of("_exclude_from_weight_decay")
def weight_decay_leaves_out_the_keys_of_a_set() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    optimizer = keras.optimizers.AdamW(learning_rate=0.0, weight_decay=0.5)
    kernel = model.layers[0].kernel
    optimizer.build([kernel])
    assert optimizer._use_weight_decay(kernel)
    optimizer._exclude_from_weight_decay = {optimizer._var_key(kernel)}
    optimizer._exclude_from_weight_decay_pattern = None
    optimizer._exclude_from_weight_decay_cache = {}
    assert not optimizer._use_weight_decay(kernel)


@of("_flatten_layers")
def layers_inside_a_layer_are_found_in_or_out_of_a_graph() -> None:
    wrapper = keras.layers.TimeDistributed(keras.layers.Dense(2, name="inner"))
    assert [layer.name for layer in wrapper._flatten_layers(include_self=False)] == ["inner"]


@of("_functional")
def a_sequential_model_has_a_functional_one() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert hasattr(model._functional, "_nodes_by_depth")


@of("_inbound_nodes")
def a_layer_has_a_node_for_each_call() -> None:
    assert len(branched().get_layer("shared")._inbound_nodes) == 2


@of("_initialize")
def a_variable_takes_a_payload_of_another_shape() -> None:
    variable = keras.Variable(np.zeros((3, 2), "float32"))
    set_payload(variable, np.full((1, 2), 7.0, "float32"))
    assert tuple(variable.shape) == tuple(ops.shape(variable.value)) == (1, 2)
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), [[7.0, 7.0]])


@of("_shape")
def an_assignment_is_held_against_the_shape() -> None:
    variable = keras.Variable(np.zeros((3, 2), "float32"))
    set_payload(variable, np.zeros((1, 2), "float32"))
    assert variable._shape == (1, 2)
    variable.assign(np.ones((1, 2), "float32"))
    tensor = keras.KerasTensor((None, 2))
    vars(tensor)["_shape"] = (None, 1)
    assert tensor.shape == (None, 1)
    with pytest.raises(ValueError, match="shape"):
        variable.assign(np.ones((3, 2), "float32"))


@of("_inner_optimizers")
def an_optimizer_of_several_holds_them() -> None:
    inner = keras.optimizers.SGD(0.1)
    optimizer = keras.optimizers.MultiOptimizer(lambda variable: inner)
    optimizer.build([keras.Variable(np.zeros(2, "float32"))])
    assert optimizer._inner_optimizers == [inner]
    assert not hasattr(inner, "_inner_optimizers")


@of("_input_spec")
def a_call_is_held_against_the_specification() -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 4))
    other = keras.layers.Dense(2)
    other.build((None, 3))
    vars(layer)["_input_spec"] = other._input_spec
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((1, 4)))


@of("_inputs_struct")
def inputs_keep_their_structure() -> None:
    assert sorted(branched()._inputs_struct) == ["one", "two"]


@of("_outputs_struct")
def outputs_keep_their_structure() -> None:
    assert sorted(branched()._outputs_struct) == ["sum"]


@of("_keras_history")
def a_symbolic_tensor_knows_who_made_it() -> None:
    model = branched()
    history = model.output["sum"]._keras_history
    assert (history.operation.name, history.node_index, history.tensor_index) == ("joined", 0, 0)


@of("_losses")
@of("_loss_ids")
def layers_know_what_they_added_in_their_last_call() -> None:
    layer = keras.layers.ActivityRegularization(l1=0.5, name="adds")
    model = keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(1, name="plain")])
    for _ in range(2):
        model(np.ones((1, 2), "float32"))
        assert [float(loss) for loss in layer._losses] == [1.0]
    assert model.get_layer("plain")._losses == []
    values = [variable.value for variable in model.trainable_variables]
    _, _, losses = model.stateless_call(values, [], np.ones((1, 2), "float32"), return_losses=True)
    # In a scope that collects losses only their identities stay.
    assert {id(loss) for loss in losses} == layer._loss_ids


@of("_keras_mask")
def a_mask_travels_with_its_tensor() -> None:
    words = keras.layers.Embedding(5, 3, mask_zero=True)(np.array([[1, 0]]))
    np.testing.assert_array_equal(ops.convert_to_numpy(words._keras_mask), [[True, False]])


@of("_metrics")
def a_metric_appended_to_a_model_is_logged_by_it() -> None:
    model = compiled(keras.optimizers.SGD(0.1))
    metric = keras.metrics.Mean(name="added")
    model._metrics.append(metric)
    assert any(known is metric for known in model.metrics)


@of("_nodes_by_depth")
def nodes_come_by_depth_outputs_at_zero() -> None:
    depths = branched()._nodes_by_depth
    assert [node.operation.name for node in depths[0]] == ["joined"]
    assert {node.operation.name for node in depths[max(depths)]} == {"one", "two"}


@of("_non_trainable_variables")
def a_layer_lists_its_own_state() -> None:
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    names = [variable.name for variable in layer._non_trainable_variables]
    assert names == ["moving_mean", "moving_variance"]


@of("_trainable_variables")
def a_layer_and_an_optimizer_list_what_they_train_in_order() -> None:
    model = compiled(keras.optimizers.SGD(0.1))
    own = [variable.name for variable in model.get_layer("last")._trainable_variables]
    assert own == ["kernel", "bias"]
    known = model.optimizer._trainable_variables
    assert [id(v) for v in known] == [id(v) for v in model.trainable_variables]


@of("_seed_generators")
def a_random_layer_lists_its_generators() -> None:
    assert len(keras.layers.Dropout(0.5, seed=3)._seed_generators) == 1


@of("_trainable")
def a_layers_own_flag_is_not_its_sublayers() -> None:
    model = branched()
    model._trainable = False
    assert model.get_layer("shared").trainable
    other = branched()
    other.trainable = False
    assert not other.get_layer("shared").trainable


@of("_trainable_variables_indices")
def an_optimizer_finds_a_variables_slots_by_its_key() -> None:
    model = compiled(keras.optimizers.SGD(0.1, momentum=0.9))
    optimizer, bias = model.optimizer, model.get_layer("last").bias
    assert optimizer._trainable_variables_indices[optimizer._var_key(bias)] == 1


@of("_var_key")
def a_key_is_the_payloads_on_tensorflow_and_the_variables_on_jax() -> None:
    optimizer = compiled(keras.optimizers.SGD(0.1)).optimizer
    variable = keras.Variable(np.zeros((3, 2), "float32"))
    before = optimizer._var_key(variable)
    set_payload(variable, np.zeros((1, 2), "float32"))
    assert (optimizer._var_key(variable) != before) == (keras.backend.backend() == "tensorflow")


@of("jax_state_sync")
def a_step_s_state_is_brought_back() -> None:
    model = compiled(keras.optimizers.SGD(0.1))
    seen: list[Any] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.jax_state_sync()
            seen.append(ops.convert_to_numpy(self.model.get_layer("last").kernel))

    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[Watch()])
    assert np.abs(seen[0] - seen[1]).max() > 0
