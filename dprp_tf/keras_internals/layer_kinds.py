"""Keras' layers by what they do, for whoever treats all of a kind alike."""

from __future__ import annotations

from keras import layers

__all__ = [
    "CONVOLUTIONS",
    "DEPTHWISE",
    "GLOBAL_POOLINGS",
    "NOISES",
    "POOLINGS",
    "RECURRENT",
    "SEPARABLE",
    "TRANSPOSED",
]

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
RECURRENT = (layers.SimpleRNN, layers.GRU, layers.LSTM)
POOLINGS = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
)
GLOBAL_POOLINGS = (
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
# They change nothing at inference.
NOISES = (
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
