"""The benchmark of the ways to run many scans: times are taken from the records."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cluster import ONE, TWO, Measured, Stored, counted, plan, report, timed, used


def test_a_scan_is_timed_from_the_first_round_on(tmp_path: Path) -> None:
    def work() -> None:
        for number, after in enumerate((10, 11, 20, 22, 31, 33)):  # two at once
            path = tmp_path / f"sub-{number}_brainage.json"
            path.touch()
            os.utime(path, times=(0, time.time() + after))

    measured = timed(work, tmp_path, at_once=2)
    assert measured.first == pytest.approx(11, abs=0.5)
    assert measured.each == pytest.approx((33 - 11) / 4, abs=0.1)


def test_the_table_compares_within_each_round() -> None:
    rounds = [
        {ONE: Measured(5, 10, 5, 8), TWO: Measured(6, 5, 8, 8), "other": Measured(7, 11, 7, 8.8)},
        {ONE: Measured(5, 20, 5, 4), TWO: Measured(6, 10, 8, 4), "other": Measured(7, 22, 7, 4.4)},
    ]
    lines = report(rounds, 4, 1.234).splitlines()
    assert f"| {TWO} | 6.0 | 7.5 | 480 | 2.00 | 8.0 | 6.0 | +0.0 % |" in lines
    assert "| other | 7.0 | 16.5 | 218 | 0.91 | 7.0 | 6.6 | +10.0 % |" in lines
    assert "1.23 GB" in lines[-1]


def test_the_plan_adds_starting_once_a_task() -> None:
    lines = plan(Measured(20, 10, 0, 0), Stored(4e6, 20, 3), Stored(5e3, 1, 2)).splitlines()
    # 50,000 scans of 10 s, and 2,500 starts of 10 s
    assert "| processor time, hours | 146 |" in lines
    assert "| all with `--output-level full`, GB | 200.0 |" in lines
    assert "| all with `--output-level minimal`, files and folders | 150,000 |" in lines


def test_processor_time_is_that_of_children_too() -> None:
    with counted():
        before = used()
        if math.isnan(before):
            pytest.skip("no control group can be made here")
        spend = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-c", spend], check=True)
        assert 0.3 <= used() - before < 3
    assert math.isnan(used())
