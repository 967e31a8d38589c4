"""The group level: the records of all scans become one table.

Needs the output folder alone. Bias correction and statistics of the brain-age gap will stand on
this table.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from bidsapp import logs
from bidsapp.derivatives import Derivatives, new_run_id
from bidsapp.errors import NothingToDo
from bidsapp.settings import Settings

log = logging.getLogger(__name__)

YEARS = "years"
COLUMNS: dict[str, Any] = {
    "participant_id": "Participant",
    "session_id": "Session",
    "source": "BIDS URI of the scan",
    "model": "Model that predicted; 'ensemble' is the combination of all",
    "age": {"Description": "Chronological age at the scan", "Units": YEARS},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "site": "Site of the scan",
    "group": "Group of the participant",
    "predicted_age": {"Description": "Predicted age", "Units": YEARS},
    "standard_deviation": {"Description": "Standard deviation of its error", "Units": YEARS},
    "interval_low": {"Description": "Lower bound of the prediction interval", "Units": YEARS},
    "interval_high": {"Description": "Upper bound of the prediction interval", "Units": YEARS},
    "brain_age_gap": {"Description": "Predicted minus chronological age", "Units": YEARS},
    "quality_passed": "Whether no quality figure was out of its range",
    "quality_flags": "Quality figures out of their range",
}


def run(settings: Settings) -> int:
    """Collect the records below the output folder into ``group_brainage.tsv``.

    Raises
    ------
    NothingToDo
        If there is no record with a prediction.
    """
    out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
    rows = [row for record in out.records() for row in _rows(record)]
    if not rows:
        raise NothingToDo(
            f"{settings.output_dir} holds no predictions (in *_brainage.json); run the "
            "participant level first."
        )
    out.prepare()
    with logs.to_console_and_file(out.log_dir(new_run_id()) / "log.txt", settings.log_level):
        out.write_table(out.group("brainage.tsv"), rows, COLUMNS)
        people = {row["participant_id"] for row in rows}
        log.info("Group table: %s (%d participants)", out.group("brainage.tsv"), len(people))
    return 0


def _rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per model that predicted the scan."""
    about = {name: record.get(name) for name in COLUMNS}
    quality = record["quality"]
    for model, prediction in record["predictions"].items():
        low, high = prediction["interval"]
        yield about | {
            "model": model,
            **{name: prediction[name] for name in COLUMNS if name in prediction},
            "interval_low": low,
            "interval_high": high,
            "quality_passed": quality["passed"],
            "quality_flags": ",".join(quality["flags"]),
        }
