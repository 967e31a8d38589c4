"""A verdict has a name, a sentence and one of three severities."""

import pytest

from bidsapp.statistics.verdict import Verdict


def test_severities():
    assert Verdict("weak_slope", "It is weak.").severity == "warning"
    with pytest.raises(ValueError, match="refused, warning, note"):
        Verdict("weak_slope", "It is weak.", "fatal")
