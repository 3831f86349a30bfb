"""The data and the trained network that tests of selections in folders begin from."""

from __future__ import annotations

import keras
import pytest
from digits_network import digits_network

from dprp_tf.data import Dataset
from dprp_tf.data import load as load_data


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", image_size=8)


@pytest.fixture(scope="module")
def dense(digits: Dataset) -> keras.Model:
    return digits_network(digits)
