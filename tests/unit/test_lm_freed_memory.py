"""What is freed in a training loop stays with the process until the loop ends."""

import os
import subprocess
import sys

import pytest

from karat.lm import freed_memory
from karat.lm.kernels import onednn_multiplies

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
PROGRAM = """
import resource
import torch
from karat.lm.loop import LoopConfig, TrainState, run_loop

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

def step(i):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [(torch.ones(1_500_000), torch.ones(20_000)) for _ in range(20)]
    del held
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    within.append(resident())
    return {}

faults, within = [], []
before = resident()
run_loop(TrainState({}, {}), step, LoopConfig(n_steps=4))
print(max(faults[1:]) < max(faults) / 10, within[-1] - before > 80, resident() - before < 40)
"""


def said(**variables):
    """What a process says of its steps: whether few pages were cleared anew, memory stayed, and went back at the end."""
    environment = {k: v for k, v in os.environ.items() if k not in freed_memory.TOLD_BY} | variables
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_memory_stays_while_a_loop_runs_and_goes_back_when_it_ends():
    assert said() == ["True", "True", "True"]


def test_who_has_told_the_allocator_is_not_overruled():
    assert said(MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000")[:2] == ["False", "False"]


def test_nothing_is_changed_where_the_allocator_takes_no_options(monkeypatch):
    for name in freed_memory.TOLD_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: object())
    with freed_memory.freed_memory_kept() as kept:
        assert not kept


def test_holes_go_back_where_a_process_has_grown_beyond_what_one_step_takes(monkeypatch):
    trimmed, sizes = [], iter([1000, 1090, 1101, 400, 900, 990, 991, 995])

    class Library:
        def malloc_trim(self, left: int) -> int:
            trimmed.append(left)
            return 1

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: Library())
    monkeypatch.setattr(freed_memory, "resident_bytes", lambda: next(sizes))
    holes = freed_memory.Holes()
    # the step after is what the next ones are measured by
    assert [holes.step_ended() for _ in range(8)] == [False, False, True, False, True, False, False, False]
    assert trimmed == [0, 0]


PRODUCTS = """
import ctypes, sys
import torch
from karat.lm import freed_memory

class Said(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c mapped d e used f g".split()]

ask = ctypes.CDLL(None).mallinfo2
ask.restype = Said
if sys.argv[1] == "few":
    freed_memory.MOST_PRODUCTS = 24
    freed_memory.keep_few_products()
x, weight = torch.randn(600, 64), torch.randn(256, 64)
multiply = lambda n: torch.ops.mkldnn._linear_pointwise(x[:n], weight, None, "none", [], "")
multiply(100)
before = ask().used
for n in range(101, 301):
    multiply(n)
print((ask().used - before) >> 20)
"""


@pytest.mark.skipif(not onednn_multiplies(), reason="oneDNN has products worth having with AVX-512 only")
def test_of_products_with_ever_other_rows_few_are_kept():
    environment = {k: v for k, v in os.environ.items() if k not in freed_memory.PRODUCT_CACHES}

    def grown(how, **variables):
        command = [sys.executable, "-c", PRODUCTS, how]
        return int(subprocess.run(command, env=environment | variables, capture_output=True, check=True).stdout)

    assert grown("few") < 20
    assert grown("all") > 60
    assert grown("few", **dict.fromkeys(freed_memory.PRODUCT_CACHES, "1024")) > 60
