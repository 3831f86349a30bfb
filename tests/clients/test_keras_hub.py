"""Backbones of keras-hub with a head, end to end; skipped where keras-hub is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.layers.factorizable import factorizable

hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed: pip install keras-hub")
pytestmark = pytest.mark.slow

SHAPE = (32, 32, 3)
BLOCK = "its kernels are those of layers inside"
BACKBONES: dict[str, tuple[Callable[[], Any], float, str | None]] = {
    # What builds it, the least share of parameters reached, and why the rest is not.
    "ResNet": (
        lambda: hub.models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[3],
            stackwise_num_filters=[64, 128],
            stackwise_num_blocks=[1, 1],
            stackwise_num_strides=[1, 2],
            block_type="basic_block",
            image_shape=SHAPE,
        ),
        0.9,
        None,
    ),
    "CSPNet": (
        # Half as many channels in a block as in its stage, which the two halves of it share.
        lambda: hub.models.CSPNetBackbone(
            stem_filters=16,
            stem_kernel_size=3,
            stem_strides=2,
            stackwise_depth=[1, 1],
            stackwise_strides=[1, 2],
            stackwise_num_filters=[16, 32],
            block_type="dark_block",
            stage_type="csp",
            block_ratio=[0.5],
            image_shape=SHAPE,
        ),
        0.9,
        None,
    ),
    "VGG": (
        lambda: hub.models.VGGBackbone(
            stackwise_num_repeats=[1, 2], stackwise_num_filters=[16, 32], image_shape=SHAPE
        ),
        0.9,
        None,
    ),
    "DenseNet": (
        lambda: hub.models.DenseNetBackbone(
            stackwise_num_repeats=[2, 2], compression_ratio=0.5, growth_rate=8, image_shape=SHAPE
        ),
        0.9,
        None,
    ),
    "EfficientNet": (
        lambda: hub.models.EfficientNetBackbone(
            stackwise_width_coefficients=[1.0] * 3,
            stackwise_depth_coefficients=[1.0] * 3,
            stackwise_kernel_sizes=[3, 3, 5],
            stackwise_num_repeats=[1, 1, 1],
            stackwise_input_filters=[16, 16, 24],
            stackwise_output_filters=[16, 24, 32],
            stackwise_expansion_ratios=[1, 4, 4],
            stackwise_strides=[1, 2, 2],
            stackwise_squeeze_and_excite_ratios=[0.25] * 3,
            stackwise_block_types=["v1"] * 3,
            stackwise_force_input_filters=[0] * 3,
            stackwise_nores_option=[False] * 3,
            min_depth=8,
            include_stem_padding=True,
            use_depth_divisor_as_min_depth=True,
            cap_round_filter_decrease=True,
            stem_conv_padding="valid",
            batch_norm_momentum=0.9,
            batch_norm_epsilon=1e-5,
            dropout=0,
            projection_activation=None,
            image_shape=SHAPE,
        ),
        0.8,
        "DepthwiseConv2D: depthwise",
    ),
    "MobileNet": (
        lambda: hub.models.MobileNetBackbone(
            stackwise_expansion=[[16], [48]],
            stackwise_num_blocks=[1, 1],
            stackwise_num_filters=[[16], [24]],
            stackwise_kernel_size=[[3], [3]],
            stackwise_num_strides=[[2], [1]],
            stackwise_se_ratio=[[None], [0.25]],
            stackwise_activation=[["relu"], ["hard_swish"]],
            stackwise_padding=[[1], [1]],
            output_num_filters=48,
            depthwise_filters=8,
            depthwise_stride=2,
            depthwise_residual=False,
            squeeze_and_excite=None,
            last_layer_filter=64,
            image_shape=SHAPE,
        ),
        0.05,
        f"InvertedResidualBlock: {BLOCK} InvertedResidualBlock",
    ),
    "ViT": (
        lambda: hub.models.ViTBackbone(
            image_shape=SHAPE, patch_size=8, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=48
        ),
        0.01,
        f"ViTEncoder: {BLOCK} ViTEncoder",
    ),
    "MiT": (
        # Its encoders can't be made from their own configurations, which name no `sr_ratio`.
        lambda: hub.models.MiTBackbone(
            layerwise_depths=[1, 1],
            num_layers=2,
            layerwise_num_heads=[1, 2],
            layerwise_sr_ratios=[2, 1],
            max_drop_path_rate=0.1,
            layerwise_patch_sizes=[7, 3],
            layerwise_strides=[4, 2],
            hidden_dims=[16, 32],
            image_shape=SHAPE,
        ),
        0.005,
        f"OverlappingPatchingAndEmbedding: {BLOCK} OverlappingPatchingAndEmbedding",
    ),
    "ViTDet": (
        lambda: hub.models.ViTDetBackbone(
            hidden_size=24,
            num_layers=1,
            intermediate_dim=48,
            num_heads=2,
            global_attention_layer_indices=[0],
            patch_size=8,
            num_output_channels=16,
            window_size=2,
            image_shape=SHAPE,
        ),
        0.1,
        f"WindowedTransformerEncoder: {BLOCK} WindowedTransformerEncoder",
    ),
}


def _with_head(backbone: Any) -> keras.Model:
    if backbone.inputs[0].shape[1] is None:
        image = keras.Input(SHAPE)
        backbone = keras.Model(image, backbone(image))
    outputs = backbone.output
    features = list(outputs.values())[-1] if isinstance(outputs, dict) else outputs
    pool = (
        layers.GlobalAveragePooling2D
        if len(features.shape) == 4
        else (layers.GlobalAveragePooling1D)
    )
    return keras.Model(backbone.input, layers.Dense(5, "softmax", name="kind")(pool()(features)))


@pytest.mark.parametrize("name", BACKBONES)
def test_from_the_backbone_to_its_files(name: str, tmp_path: Path) -> None:
    build, least, reason = BACKBONES[name]
    keras.utils.set_random_seed(0)
    model = _with_head(build())
    loss = "sparse_categorical_crossentropy"
    x = np.random.default_rng(0).random((32, *SHAPE)).astype("float32")
    y = np.arange(32) % 5
    model.compile("adam", loss)
    model.fit(x, y, epochs=10, batch_size=8, verbose=0)
    low = dprp.factorize(model, decomposition="channel")
    np.testing.assert_allclose(low.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)
    kernels = sum(int(np.prod(at.kernel_shape)) for at in dprp.layers.factorized_layers(low))
    share = kernels / sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert least < share <= 1
    skipped = [f"{row.type}: {row.skipped}" for row in dprp.summarize(low).rows if row.skipped]
    assert (reason is None) == (not skipped)
    assert reason is None or any(entry.startswith(reason) for entry in skipped)
    low.compile("adam", loss)
    ranks = low.fit(
        x,
        y,
        epochs=3,
        batch_size=8,
        verbose=0,
        callbacks=[dprp.RankPruning(discarded_energy=0.05)],
    ).history["total_rank"]
    assert ranks[-1] <= ranks[0]
    folded = dprp.fold(low)
    plan = dprp.select_ranks(
        model,
        method="energy",
        budget=dprp.Budget(parameters=0.998, tolerance=0.2),
        data=(x, y),
        decomposition="channel",
    )
    assert dprp.cut(model, plan).count_params() < model.count_params()
    for suffix, quantization in ((".tflite", None), (".tflite", "int8"), (".onnx", None)):
        report = deploy.export(
            folded,
            tmp_path / f"a{suffix}",
            quantization=quantization,
            calibration_data=x[:24] if quantization else None,
            verification_data=x[16:],
            minimum_agreement=0.6,
        )
        assert report.passed


REACHED = {
    # The least share of kernels that ranks reach once all is written out that can be.
    "MobileNet": 0.8,
    "ViT": 0.45,
    "MiT": 0.25,
    "ViTDet": 0.7,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_written_out_it_computes_the_same_and_more_is_reached(name: str) -> None:
    build, least, _ = BACKBONES[name]
    keras.utils.set_random_seed(0)
    model = _with_head(build())
    plain = dprp.write_out(model)
    x = np.random.default_rng(0).random((8, *SHAPE)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-5)
    assert plain.count_params() == model.count_params()
    able = factorizable(plain)[0].values()
    kernels = sum(int(np.prod(layer.kernel.shape)) for layer in able)
    share = kernels / sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert share >= REACHED.get(name, least)
    low = dprp.factorize(plain, decomposition="channel")
    np.testing.assert_allclose(low.predict(x, verbose=0), expected, atol=1e-4)
