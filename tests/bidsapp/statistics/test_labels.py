"""Decades, codes and words of rows."""

import numpy as np

from bidsapp.statistics.labels import UNKNOWN, codes, decade, words


def test_decades_are_ordered():
    found = decade([39.99, 40, 5, 104, np.nan])
    assert found.astype(object).tolist()[:4] == ["30-39", "40-49", "0-9", "100-109"]
    assert found.isna().tolist() == [False] * 4 + [True]
    assert list(found.cat.categories) == ["0-9", "30-39", "40-49", "100-109"]
    assert decade([]).empty


def test_codes_and_words():
    assert codes(["b", "a", None, "b"]).tolist() == [0, 1, 2, 0]
    assert words([1, None, "å", np.nan], 4).tolist() == ["1", UNKNOWN, "å", UNKNOWN]
    assert words(None, 2).tolist() == [UNKNOWN] * 2 and words([], 0).tolist() == []
