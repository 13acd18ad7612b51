"""Files of tensors that karat writes: the same content is the same bytes, and damage is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from karat.errors import CheckpointError
from karat.lm.headers import read_header_metadata, read_tensors, tensor_names, write_tensors

ABOUT = {name: name.upper() for name in ("run_id", "stage", "snapshot_root", "names", "hash_bits")}


def test_equal_tensors_and_entries_are_equal_bytes_whatever_their_order(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3).t(), "a": np.arange(4, dtype=np.int64)}
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for i, file in enumerate(files):
        order = sorted(ABOUT, reverse=bool(i % 2))
        write_tensors(tensors, file, {name: ABOUT[name] for name in order})
    assert len({file.read_bytes() for file in files}) == 1  # the library alone draws the order anew each time
    assert read_header_metadata(files[0]) == ABOUT
    found = read_tensors(files[0])
    assert torch.equal(found["b"], tensors["b"])
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert sorted(tensor_names(files[0])) == ["a", "b"]


@pytest.mark.parametrize("read", [read_tensors, tensor_names, read_header_metadata])
def test_a_file_that_is_cut_off_is_one_line(tmp_path, read):
    write_tensors({"a": torch.zeros(9)}, tmp_path / "t.safetensors", ABOUT)
    (tmp_path / "t.safetensors").write_bytes((tmp_path / "t.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"t\.safetensors: truncated or unreadable safetensors") as caught:
        read(tmp_path / "t.safetensors")
    assert "\n" not in str(caught.value)
