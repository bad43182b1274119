"""Frames gathered one by one into an array, in little more memory than that."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model import images
from xdyna_model.errors import InputError
from xdyna_model.images import FrameBuffer


@settings(deadline=None)
@given(count=st.integers(1, 9), block=st.integers(1, 9 * 36))
def test_a_buffer_gives_back_what_it_was_given(count: int, block: int) -> None:
    """Whatever number of pictures fits a block."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 3, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_BLOCK", block)
        buffer = FrameBuffer()
        for picture in pictures:
            buffer.append(picture)
        assert len(buffer) == count
        with pytest.raises(InputError, match=rf"frame {count} is \[3, 3, 3\] but frame 0 is \[4, 3, 3\]"):
            buffer.append(pictures[0, 1:])
        np.testing.assert_array_equal(buffer.take(), pictures)
    assert len(buffer) == 0
    assert buffer.shape is None


def test_a_buffer_takes_little_more_memory_than_what_is_in_it() -> None:
    """In a process of its own: three streams that grow together, as the conditions of a video do."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("only Linux tells a process's peak there")
    code = r"""
import re
from pathlib import Path
import numpy as np
from xdyna_model.images import FrameBuffer
def peak():  # of this process alone: what getrusage tells, the parent's is in
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
picture, buffers = np.ones((600, 700, 3), np.uint8), [FrameBuffer() for _ in range(3)]
before = peak()
for _ in range(250):
    for buffer in buffers:
        buffer.append(picture.copy())
whole = [buffer.take() for buffer in buffers]
print(1024 * (peak() - before) / sum(array.nbytes for array in whole))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 1 <= float(shown) < 1.2
