"""Eight CPU devices for every test, so that sharding is always exercised."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(os.environ.get("TAVR_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of oracles and media beside the checkout, where there is one."""
    if not (SHARED / "oracles").is_dir():
        pytest.skip(f"no oracles and media at {SHARED} (set TAVR_SHARED)")
    return SHARED
