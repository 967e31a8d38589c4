"""The row of a table: error, its mean and correlation."""

from __future__ import annotations

import pandas as pd

from benchmarks.fine_tuning import row


def test_row() -> None:
    ages = pd.DataFrame({"age": [20.0, 40.0, 60.0], "predicted_age": [26.0, 38.0, 65.0]})
    assert row("as it was", ages) == ["as it was", "3", "4.33", "+3.0", "0.98"]
