"""Settings for all tests: examples are drawn from a fixed seed, and slow machines are not failures."""

import os

# Read when the libraries are loaded. Threads of OpenBLAS wait for one another by turning in circles: where another
# program has the core, a fit of seconds takes minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ.get("KARAT_TEST_THREADS", "1"))

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
import torch
from hypothesis import HealthCheck, settings

import postgresql_server
from karat.lm import fused_block, native

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# tiny models gain nothing from a second thread, and lose much where another program has the core
torch.set_num_threads(int(os.environ.get("KARAT_TEST_THREADS", "1")))
settings.register_profile(
    "karat", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("karat")


@pytest.fixture
def plain_passes(monkeypatch) -> None:
    """Blocks loaded within the test go their own way, as on a machine without a C compiler."""
    monkeypatch.setattr(native, "library", lambda _products: None)
    monkeypatch.setattr(fused_block, "library", lambda _products: None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[sa.URL]:
    """A running PostgreSQL server; tests that ask for one are skipped where there is none."""
    with postgresql_server.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def new_address(request: pytest.FixtureRequest, tmp_path) -> Callable[[str], str]:
    """Makes addresses of new stores on either database: `new_address("k")`."""
    if request.param == "sqlite":
        return lambda name: str(tmp_path / f"{name}.db")
    url = request.getfixturevalue("postgresql")
    return lambda _: postgresql_server.new_database(url)
