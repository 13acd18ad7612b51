"""Settings for all tests: examples are drawn from a fixed seed, and slow machines are not failures."""

import os

import torch
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# tiny models gain nothing from a second thread, and lose much where another program has the core
torch.set_num_threads(int(os.environ.get("KARAT_TEST_THREADS", "1")))
settings.register_profile(
    "karat", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("karat")
