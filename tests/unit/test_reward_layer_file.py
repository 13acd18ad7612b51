"""A last layer on disk: what is no posterior is not read as one."""

import numpy as np
import pytest

from karat.errors import CheckpointError
from karat.reward.last_layer import LastLayer
from karat.reward.layer_file import load_last_layer, save_last_layers


@pytest.mark.parametrize("factor", [-1.0, np.nan])
def test_a_covariance_that_is_not_positive_definite_is_named(tmp_path, factor):
    layer = LastLayer(np.ones(3), np.diag([1.0, 2.0, 3.0]), 1.0, -2.0, 5.0)
    save_last_layers({"preference": layer}, tmp_path)
    assert load_last_layer(tmp_path).covariance == pytest.approx(layer.covariance)
    worse = LastLayer(layer.mean, layer.covariance * np.diag([1.0, 1.0, factor]), 1.0, -2.0, 5.0)
    save_last_layers({"preference": worse}, tmp_path)
    with pytest.raises(CheckpointError, match=r"last_layer\.safetensors: the covariance is not positive definite"):
        load_last_layer(tmp_path)
