"""Top-1 accuracy, for labels in each of their forms."""

from __future__ import annotations

import numpy as np
import pytest

from dprp_tf.costs.accuracy import top_1_accuracy


def test_top_1_accuracy_reads_every_form_of_labels() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert top_1_accuracy([1, 0, 0], scores) == pytest.approx(2 / 3)
    assert top_1_accuracy([[1], [0], [0]], scores) == pytest.approx(2 / 3)
    assert top_1_accuracy(np.eye(2)[[1, 0, 0]], scores) == pytest.approx(2 / 3)
    assert top_1_accuracy([1, 0], np.array([[np.nan, 1.0], [1.0, 0.0]])) == 0.5
    with pytest.raises(ValueError, match="Pass `score`"):
        top_1_accuracy([1, 0], np.array([[0.1], [0.2]]))
    with pytest.raises(ValueError, match="whole numbers of shape"):
        top_1_accuracy([1, 0], scores)
    for labels in ([2, 0, 1], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"`y` must hold labels from 0 to 1, .* from -?\d to"):
            top_1_accuracy(labels, scores)
