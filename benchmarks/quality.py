"""Which corrupted scans the quality figures catch, and the limits that catch them.

    python benchmarks/quality.py corrupt --scratch DIR [--data DIR] [--nprocs N]
    python benchmarks/quality.py table --scratch DIR --out ixi=DIR --out ds002748=DIR

`corrupt` takes scans of two data sets, spoils them (`benchmarks/corruptions.py`), preprocesses
them with the app's own function and keeps the results in the scratch folder; ended, it goes on
where it was. `table` computes figures and ages of what is there, takes those of the sound scans
from finished output folders (`run.py DATA DIR participant`) of the same version and weights,
chooses the limits on one half of the people, tests them on the other, writes
docs/quality_evaluation.md, and prints the limits for `LIMITS` and `TISSUE_SHARES` in
bidsapp/preprocessing/quality.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import models  # noqa: E402
from benchmarks.corruptions import KINDS, Head  # noqa: E402
from benchmarks.markdown import table  # noqa: E402
from bidsapp import execution, participant  # noqa: E402
from bidsapp.derivatives import Derivatives  # noqa: E402
from bidsapp.errors import ScanError  # noqa: E402
from bidsapp.prepared import Prepared  # noqa: E402
from bidsapp.preprocessing import quality  # noqa: E402
from bidsapp.preprocessing.grid import GRID_AFFINE  # noqa: E402
from bidsapp.preprocessing.image import Image, load_t1w  # noqa: E402
from bidsapp.preprocessing.segmentation import Parts, Segmentation, volumes  # noqa: E402
from bidsapp.settings import Settings  # noqa: E402
from bidsapp.study import Scan, load_study  # noqa: E402
from bidsapp.toolbox import Toolbox, toolbox  # noqa: E402
from models.ensemble import voters  # noqa: E402
from models.segmentation import labels  # noqa: E402

PAIRS = {"ixi": 7, "ds002748": 2}
"""Pairs of people of like age whose scans are corrupted: one for the choice, one for the test."""
FEWER = {"mirror": 3, "ct": 2, "phantom": 5}
"""Of these kinds, which have one strength, every so many pairs are enough."""
HARM = 3.0
"""Years of change from which a corruption is one that ought to be caught."""
FALSE_ALARMS = 0.02
"""Share of the sound scans that may be flagged."""
MULTIPLES = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
"""Spreads beyond the median, from which the choice is made."""

LOW, HIGH = "low", "high"
JUDGED: dict[str, tuple[str, ...]] = {
    "registration_correlation": (LOW,),
    "mask_overlap": (LOW,),
    "mask_asymmetry": (HIGH,),
    "affine_determinant": (LOW, HIGH),
    "affine_shear": (HIGH,),
    "rotation_degrees": (HIGH,),
    "brain_volume_ml": (LOW, HIGH),
    "tissue_deviation": (HIGH,),
    "side_difference": (HIGH,),
    "largest_cut_cm2": (HIGH,),
    "weakest_slice": (LOW,),
    "cnr": (LOW,),
    "edge_sharpness": (LOW,),
    "noise": (HIGH,),
    "bias_field_ratio": (HIGH,),
    "ghosting": (HIGH,),
}
"""Figures whose limits are chosen here, and the sides on which they have one."""
LOGARITHMIC = {
    "affine_determinant", "brain_volume_ml", "tissue_deviation", "largest_cut_cm2", "cnr",
    "edge_sharpness", "noise", "bias_field_ratio", "ghosting",
}  # fmt: skip
BY_HAND = {name: limits for name, limits in quality.LIMITS.items() if name not in JUDGED}
VOTERS = voters({name: models.card(name) for name in models.embedded()})
"""Of them the ensemble is made, whose age a corruption moves."""
Limits = dict[str, tuple[float, float]]


def main(arguments: list[str] | None = None) -> None:
    """Corrupt, or tabulate."""
    raw_text = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw_text)
    parser.add_argument("what", choices=("corrupt", "table"))
    parser.add_argument("--scratch", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data",
                        help="folder of the data sets (default: %(default)s)")  # fmt: skip
    parser.add_argument("--nprocs", type=int, default=1)
    parser.add_argument("--out", action="append", default=[], metavar="NAME=DIR",
                        help="output folder with the sound scans of a data set")  # fmt: skip
    parser.add_argument("--to", type=Path, default=REPOSITORY / "docs" / "quality_evaluation.md")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.scratch.mkdir(parents=True, exist_ok=True)
    everything = cases(options.data)
    work = {"corrupt": prepare, "table": measure}[options.what]
    execution.run_scans(
        [case for case in everything if options.what == "corrupt" or case.kept(options).exists()],
        partial(work, options=options),
        nprocs=options.nprocs,
        threads=1,
        crash=lambda case, text: logging.error("%s: %s", case.stem, text),
    )
    if options.what == "table":
        folders = {name: Path(path) for name, _, path in (o.partition("=") for o in options.out)}
        sound = sound_scans(folders)
        spoilt = spoilt_scans(everything, sound, options)
        report = page(sound, spoilt, len(everything), list(folders))
        options.to.write_text(report, encoding="utf-8")
        print(for_the_code(sound, spoilt), options.to, sep="\n")


# --- corrupted scans ---


@dataclass(frozen=True)
class Case(Scan):
    """A scan and what is to be done to it; ``half`` is 0 for the choice and 1 for the test."""

    dataset: str
    half: int
    kind: str
    strength: float

    def kept(self, options: argparse.Namespace, ending: str = "npz") -> Path:
        """The file that keeps its arrays, or its measurements."""
        name = f"{self.dataset}_{self.stem}_{self.kind}-{self.strength:g}.{ending}"
        return options.scratch / name


def people(folder: Path) -> list[Scan]:
    """Everybody of a data set, the youngest first."""
    settings = Settings(folder, folder / "derivatives" / "none", ("participant",))
    return sorted(load_study(settings).scans, key=lambda scan: scan.demographics.age or 0)


def cases(data: Path) -> list[Case]:
    """Scans to corrupt: neighbours in age are a pair, of which each half of the study has one.

    Both of a pair get the same. Pairs and kinds are mixed, so that the first hundred cases are
    like all.
    """
    found = []
    for dataset, pairs in PAIRS.items():
        everybody = people(data / dataset)
        chosen = np.linspace(0, len(everybody) // 2 - 1, pairs).round().astype(int)
        for number, pair in enumerate(chosen):
            for index, (kind, (_, strengths)) in enumerate(KINDS.items()):
                if number % FEWER.get(kind, 1) == 0:
                    strength = strengths[(number + index) % len(strengths)]
                    found.append([
                        Case(**vars(everybody[2 * pair + half]), dataset=dataset, half=half,
                             kind=kind, strength=strength)
                        for half in (0, 1)
                    ])  # fmt: skip
    order = np.random.default_rng(1).permutation(len(found))
    return [case for index in order for case in found[index]]


def head_of(case: Case, data: Path) -> Head:
    """The scan, corrupted as the case wants it."""
    image = nib.as_closest_canonical(nib.load(case.path))
    values = np.asarray(image.dataobj, np.float32)
    masks = list((data / case.dataset / "derivatives").rglob(f"{case.participant_id}*.nii.gz"))
    inside = values > 0
    if masks:
        inside = np.asarray(nib.as_closest_canonical(nib.load(masks[0])).dataobj) > 0
    head = Head(values, np.asarray(image.affine), inside)
    seed = zlib.crc32(case.kept(argparse.Namespace(scratch=Path())).stem.encode())
    return KINDS[case.kind][0](head, case.strength, np.random.default_rng(seed))


def prepare(case: Case, options: argparse.Namespace) -> Literal["done", "skipped"]:
    """Corrupt a scan, preprocess it as the app does, and keep what figures and ages need."""
    target = case.kept(options)
    if target.exists():
        return "skipped"
    settings = app_settings(options)
    tools = toolbox(settings)
    head = head_of(case, options.data)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        path = Path(folder) / "sub-01_T1w.nii"
        nib.save(nib.Nifti1Image(head.data, head.affine), path)
        try:
            kept = arrays_of(participant.preprocess(load_t1w(path), tools, settings))
        except ScanError as error:
            kept = {"refused": str(error).partition(": ")[2] or str(error)}
    part = target.with_suffix(".part.npz")
    np.savez_compressed(part, **kept)
    part.rename(target)
    return "done"


def app_settings(options: argparse.Namespace) -> Settings:
    """Settings of the app, without a study, for the models that vote."""
    return Settings(options.data, options.scratch / "none", ("participant",), device="cpu",
                    models=tuple(VOTERS))  # fmt: skip


def arrays_of(found: Prepared) -> dict[str, Any]:
    """What is needed to assess a scan, and to predict it, without preprocessing it again."""
    native, segmentation = found.native, found.segmentation
    assert native is not None
    by = {step["step"]: step for step in found.steps}
    return {
        "working": segmentation.working.data,
        "corrected": native.working.data,
        "working_affine": segmentation.working.affine,
        "working_mask": segmentation.on_working.mask,
        "working_labels": segmentation.on_working.labels,
        "scan_affine": native.t1w.image.affine,
        "brain": found.brain.data,
        "mask": found.mask,
        "shares": found.shares,
        "modulated": found.modulated,
        "to_scan": native.to_scan,
        "levels": [found.levels["cortex"], found.levels["white_matter"]],
        "field_range": by["bias_field"]["field_range"],
        "stripped": by["segmentation"]["already_stripped"],
    }


def measure(case: Case, options: argparse.Namespace) -> Literal["done", "skipped"]:
    """Figures and ages of a corrupted scan, by today's figures and weights."""
    target = case.kept(options, "json")
    tools = toolbox(app_settings(options))
    weights = {name: model.card.weights_sha256 for name, model in tools.models.items()}
    key = {"weights": weights, "code": zlib.crc32(Path(str(quality.__file__)).read_bytes())}
    if target.exists() and json.loads(target.read_text(encoding="utf-8"))["key"] == key:
        return "skipped"
    kept = np.load(case.kept(options))
    found: dict[str, Any] = {"key": key}
    if "refused" in kept:
        found["refused"] = str(kept["refused"])
    else:
        prepared, settings = prepared_from(kept, tools), app_settings(options)
        found["predictions"] = participant.predict(prepared, case, tools, settings)
        found["quality"] = participant.judged(prepared, found["predictions"], tools, settings)
    target.write_text(json.dumps(found), encoding="utf-8")
    return "done"


def prepared_from(kept: Mapping[str, Any], tools: Toolbox) -> Prepared:
    """As ``participant.preprocess`` returned it, with today's figures."""
    working = Image(kept["working"], kept["working_affine"])
    found, mask, stripped = kept["working_labels"], kept["working_mask"], bool(kept["stripped"])
    measured = volumes(found, mask, working, stripped)
    brain = Image(kept["brain"], GRID_AFFINE)
    parts = Parts(found, mask, mask)
    figures = quality.assess(
        Segmentation(working, parts, parts, measured),
        working.with_data(kept["corrected"]), Image(np.zeros((1, 1, 1)), kept["scan_affine"]),
        brain, kept["mask"], tools.template_brain, tools.template_mask, kept["to_scan"],
        [float(each) for each in kept["field_range"]], stripped,
    )  # fmt: skip
    cortex, white = (float(each) for each in kept["levels"])
    levels = {"cortex": cortex, "white_matter": white}
    maps = kept["shares"], kept["modulated"]
    return Prepared(brain, kept["mask"], *maps, levels, measured, dict(figures), [], {})


# --- tables of scans ---


def sound_scans(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Figures and ages of sound scans; every second person by age is of the half of the choice."""
    frames = []
    for dataset, folder in folders.items():
        records = list(Derivatives(folder, folder, "").records())
        rows = [row_of(record) | {"stem": record["participant_id"], "age": record["age"]}
                for record in records]  # fmt: skip
        frame = pd.DataFrame(rows).sort_values("age", kind="stable", ignore_index=True)
        frames.append(frame.assign(dataset=dataset, half=frame.index % 2))
    return pd.concat(frames, ignore_index=True)


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, ages and the weights' hashes of a record or a measurement."""
    ages = record["predictions"]
    sizes = {f"share_{name}": value for name, value in shares_of(record).items()}
    return record["quality"] | sizes | {
        "predicted_age": ages["ensemble"]["predicted_age"],
        "weights": json.dumps({name: ages.get(name, {}).get("weights_sha256")
                               for name in sorted(VOTERS)}),
    }  # fmt: skip


def shares_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Logarithm of the share of each structure in the brain, from the volumes of a record."""
    found = record.get("volumes_ml") or {}
    sums: Counter[str] = Counter()
    for label in labels.LABELS:
        key = label.name.lower().replace(" ", "_")
        sums[label.abbreviation.split("-")[-1]] += found.get(key, 0)
    return {name: float(np.log((sums[name] + 1e-3) / found["brain"]))
            for name in quality.TISSUE_SHARES if found}  # fmt: skip


def spoilt_scans(
    everything: list[Case], sound: pd.DataFrame, options: argparse.Namespace
) -> pd.DataFrame:
    """Figures of corrupted scans, and how many years each has moved."""
    rows = []
    for case in everything:
        path = case.kept(options, "json")
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        row = {"dataset": case.dataset, "half": case.half, "kind": case.kind, "stem": case.stem,
               "strength": case.strength, "refused": "refused" in found}  # fmt: skip
        if not row["refused"]:
            same = sound[(sound["stem"] == case.stem) & (sound["dataset"] == case.dataset)].iloc[0]
            row |= row_of(found)
            if row["weights"] != same["weights"]:
                sys.exit(f"{case.stem}: the output folders were made with other weights; run the "
                         "participant level again")  # fmt: skip
            row["moved"] = row["predicted_age"] - same["predicted_age"]
        rows.append(row)
    return pd.DataFrame(rows)


# --- limits ---


def choose(sound: pd.DataFrame, multiple: float) -> Limits:
    """Limits so many spreads beyond the medians of the data sets."""
    found = {}
    for name, sides in JUDGED.items():
        values = pd.to_numeric(sound[name], errors="coerce").dropna()
        if name in LOGARITHMIC:
            values = np.log(values.clip(lower=1e-4))
        medians = values.groupby(sound["dataset"]).median()
        rest = values - sound["dataset"].map(medians)
        gap = medians.max() - medians.min()
        low = medians.min() - gap + multiple * rest.quantile(0.05) / 1.645
        high = medians.max() + gap + multiple * rest.quantile(0.95) / 1.645
        if name in LOGARITHMIC:
            low, high = np.exp(low), np.exp(high)
        found[name] = (float(low) if LOW in sides else -np.inf,
                       float(high) if HIGH in sides else np.inf)  # fmt: skip
    return found | BY_HAND


def raised(scans: pd.DataFrame, limits: Limits) -> pd.DataFrame:
    """Which flags each scan raises, (scans, figures); what does not apply raises none."""
    return pd.DataFrame({
        name: (values := pd.to_numeric(scans[name], errors="coerce")).lt(low) | values.gt(high)
        for name, (low, high) in limits.items()
    })  # fmt: skip


def harmful(spoilt: pd.DataFrame) -> pd.Series:
    """Corruptions that move the age by more than ``HARM`` years, or leave none."""
    return spoilt["refused"] | (spoilt["moved"].abs() > HARM)


def caught(spoilt: pd.DataFrame, limits: Limits) -> pd.Series:
    """Corruptions that the app refuses or flags."""
    return spoilt["refused"] | raised(spoilt, limits).any(axis=1)


def best_multiple(sound: pd.DataFrame, spoilt: pd.DataFrame) -> float:
    """Of those with few false alarms the one that catches most, and of these the most lenient."""
    bad = spoilt[harmful(spoilt)]
    found = []
    for multiple in MULTIPLES:
        limits = choose(sound, multiple)
        if raised(sound, limits).any(axis=1).mean() <= FALSE_ALARMS:
            found.append((int(caught(bad, limits).sum()), multiple))
    return max(found)[1] if found else MULTIPLES[-1]


def rounded(limits: Limits) -> Limits:
    """To two digits, outwards, so that no sound scan is lost by it."""

    def outwards(value: float, up: bool) -> float:
        if np.isinf(value) or value == 0:
            return value
        unit = 10 ** (np.floor(np.log10(abs(value))) - 1)
        return float(f"{(np.ceil if up else np.floor)(value / unit) * unit:.2g}")

    return {name: limits[name] if name in BY_HAND else
            (outwards(limits[name][0], False), outwards(limits[name][1], True))
            for name in limits}  # fmt: skip


# --- what is said ---


def page(sound: pd.DataFrame, spoilt: pd.DataFrame, planned: int, names: list[str]) -> str:
    """The Markdown page."""
    halves = [(sound[sound["half"] == half], spoilt[spoilt["half"] == half]) for half in (0, 1)]
    multiple = best_multiple(*halves[0])
    limits = choose(halves[0][0], multiple)
    folders = " ".join(f"--out {name}=results/{name}" for name in names)
    tested_sound, tested = halves[1]
    return "\n\n".join([
        "# Quality flags on corrupted scans\n\nMade by `benchmarks/quality.py`, not edited by "
        "hand; [quality.md](quality.md) explains the figures.",
        f"```\npython benchmarks/quality.py corrupt --scratch cases\n"
        f"python benchmarks/quality.py table --scratch cases {folders}\n```",
        f"Sound scans of {', '.join(names)} were corrupted on purpose "
        f"(`benchmarks/corruptions.py`): {len(spoilt)} of {planned} cases that are planned have "
        "been computed. A corruption is harmful if it moves the age of the ensemble by more than "
        f"{HARM:g} years or leads the app to refuse the scan. The ages are of models that were "
        "trained on the sound scans of these people. Limits were chosen on one half of the "
        f"people, and what follows is of the other half: {len(tested_sound)} sound scans and "
        f"{len(tested)} corrupted ones, of {tested['stem'].nunique()} people. The choice was "
        f"{multiple:g} spreads.",
        "## Sensitivity", sensitivity(tested, limits),
        "## False alarms", false_alarms(halves, limits), carried_over(sound, multiple),
        "## Which flags", which(tested, limits),
        "## Missed", missed(tested, limits),
    ]) + "\n"  # fmt: skip


def sensitivity(spoilt: pd.DataFrame, limits: Limits) -> str:
    """By kind: how many there were, were harmful and were caught."""
    spoilt = spoilt.assign(harmful=harmful(spoilt), caught=caught(spoilt, limits))
    rows = []
    for kind in [*KINDS, "all"]:
        part = spoilt if kind == "all" else spoilt[spoilt["kind"] == kind]
        if part.empty:
            continue
        bad, good = part[part["harmful"]], part[~part["harmful"]]
        moved = part["moved"].abs().median()
        rows.append([
            f"**{kind}**" if kind == "all" else kind.replace("_", " "), str(len(part)),
            str(int(part["refused"].sum())), "n/a" if np.isnan(moved) else f"{moved:.1f}",
            str(len(bad)), share(bad["caught"]), share(good["caught"]),
        ])  # fmt: skip
    header = ["corruption", "scans", "refused", "median change, years", "harmful",
              "of these caught", "of the harmless flagged"]  # fmt: skip
    return table(header, rows)


def share(found: pd.Series) -> str:
    """As in "9 of 10 (90 %)"."""
    if found.empty:
        return "none"
    return f"{int(found.sum())} of {len(found)} ({100 * found.mean():.0f} %)"


def false_alarms(halves: list[tuple[pd.DataFrame, pd.DataFrame]], limits: Limits) -> str:
    """Sound scans that are flagged, by half and data set."""
    rows = []
    for (sound, _), words in zip(halves, ("choice", "test")):
        flags = raised(sound, limits)
        named = flags.sum()[lambda counts: counts > 0].to_dict()
        said = ", ".join(f"{name} {count}" for name, count in named.items()) or "none"
        by = [share(flags[sound["dataset"] == name].any(axis=1)) for name in PAIRS]
        rows.append([words, share(flags.any(axis=1)), *by, said])
    return table(["half", "sound scans flagged", *(f"of {name}" for name in PAIRS), "by"], rows)


def carried_over(sound: pd.DataFrame, multiple: float) -> str:
    """What a scanner would see that had no part in the choice."""
    said = []
    for name in PAIRS:
        inside, outside = sound[sound["dataset"] == name], sound[sound["dataset"] != name]
        if inside.empty or outside.empty:
            continue
        flags = raised(outside, choose(inside, multiple))
        named = flags.mean()[lambda shares: shares > 0].sort_values(ascending=False)
        most = ", ".join(f"{each} {100 * value:.0f} %" for each, value in named.head(4).items())
        said.append(f"limits from {name} alone flag {share(flags.any(axis=1))} of the sound scans "
                    f"of the others ({most or 'no flag'})")  # fmt: skip
    return (
        "Two data sets are few. With one of them, another scanner would not be foreseen: "
        f"{'; '.join(said)}. So each limit reaches beyond both data sets by the gap between them."
    )


def which(spoilt: pd.DataFrame, limits: Limits) -> str:
    """How many harmful corruptions each flag is raised by, and by it alone."""
    bad = spoilt[harmful(spoilt) & ~spoilt["refused"]]
    flags = raised(bad, limits)
    alone = flags[flags.sum(axis=1) == 1].sum()
    rows = [
        [f"{name}", str(int(count)), str(int(alone[name]))]
        for name, count in flags.sum().sort_values(ascending=False).items()
        if count
    ]
    return f"Of the {len(bad)} harmful corruptions that the app did not refuse.\n\n" + table(
        ["figure", "flagged", "by no other"], rows
    )


def missed(spoilt: pd.DataFrame, limits: Limits) -> str:
    """Every harmful corruption that raised no flag."""
    bad = spoilt[harmful(spoilt) & ~caught(spoilt, limits)].sort_values(["kind", "strength"])
    if bad.empty:
        return "None."
    rows = [[row.kind.replace("_", " "), f"{row.strength:g}", row.dataset, f"{row.moved:+.1f}"]
            for row in bad.itertuples()]  # fmt: skip
    return table(["corruption", "strength", "data set", "change of the age, years"], rows)


def for_the_code(sound: pd.DataFrame, spoilt: pd.DataFrame) -> str:
    """Limits from everybody, at the spreads that one half chose, and the tissues' shares."""
    multiple = best_multiple(sound[sound["half"] == 0], spoilt[spoilt["half"] == 0])
    limits = rounded(choose(sound, multiple))
    lines = [f"# {multiple:g} spreads", "LIMITS"]
    lines += [f'    "{name}": ({low:g}, {high:g}),'.replace("inf", "np.inf")
              for name, (low, high) in limits.items()]  # fmt: skip
    lines += ["TISSUE_SHARES"]
    for name in quality.TISSUE_SHARES:
        groups = sound[f"share_{name}"].groupby(sound["dataset"])
        between = groups.median().max() - groups.median().min()
        deviation = np.sqrt((groups.std() ** 2).mean() + (between / 2) ** 2)
        lines.append(f'    "{name}": ({groups.median().mean():.2f}, {deviation:.2g}),')
    return "\n".join(lines)


if __name__ == "__main__":
    main()
