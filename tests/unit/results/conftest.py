"""The study of known numbers, which no test changes."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from tests.support.results import make_metrics, make_study


@pytest.fixture(scope="session")
def metrics() -> pd.DataFrame:
    return make_metrics()


@pytest.fixture(scope="session")
def study() -> dict[str, Any]:
    return make_study()
