"""Tables of docs/evaluation.md, from finished output folders of the app.

    python benchmarks/evaluate.py --out IXI=DIR --out ds002748=DIR --muse IXI=DIR

writes docs/evaluation.md; with `--table NAME ...`, prints these tables alone. Ages of a data set
that a model was trained on are taken from the predictions out of fold (benchmarks/ages.py), never
from the output folder: the weights in use have seen those scans.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import stats

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import models  # noqa: E402
from benchmarks import ages as unseen_ages  # noqa: E402
from benchmarks.markdown import table  # noqa: E402
from benchmarks.results import (  # noqa: E402
    OUT_OF_FOLD,
    UNKNOWN,
    UNSEEN,
    Results,
    carried_over,
    of_alone,
    predicted_ages,
)
from benchmarks.retest import CHANGES, moves_of  # noqa: E402
from bidsapp import group  # noqa: E402
from bidsapp.derivatives import Derivatives  # noqa: E402
from bidsapp.preprocessing.quality import LIMITS  # noqa: E402
from bidsapp.settings import Settings  # noqa: E402
from models import registry  # noqa: E402
from models.ensemble import voters  # noqa: E402
from models.segmentation.labels import (  # noqa: E402
    LABELS,
    OUTER_CSF,
    STRUCTURES,
    structures_from_muse,
)
from models.training.evaluation import accuracy  # noqa: E402

FEWEST = 3
"""Scans below which only the errors themselves are shown."""
COVERAGES = (0.5, 0.8, 0.9, 0.95)
ACCURACY_AIMS = {"wssa": (5.5, 0.90), "brainrotvit": (5.5, 0.90), "ensemble": (4.8, 0.93)}
AWAY_AIM, RETEST_AIM = 6.5, 1.0
DICE_AIMS = {"brain_mask": 0.97, "LV": 0.90, "WM": 0.90}
AGE_WIDTH = 5
"""Years within which errors at home count as those of one age."""


@dataclass(frozen=True)
class Material:
    """Everything the tables are made of.

    `ages` has one row per scan and model; `alone` the predictions out of fold of the models that
    were trained on fewer data sets, which calibrate their intervals.
    """

    results: list[Results]
    ages: pd.DataFrame
    alone: pd.DataFrame
    muse: dict[str, Path]
    retest: pd.DataFrame
    command: str


def main(arguments: list[str] | None = None) -> None:
    """Write the page, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", dest="tables", nargs="+", default=[], choices=TABLES,
                        metavar="TABLE",
                        help=f"print these and write nothing: {', '.join(TABLES)}")  # fmt: skip
    parser.add_argument("--out", action="append", required=True, metavar="NAME=DIR",
                        help="output folder of a data set")  # fmt: skip
    parser.add_argument("--ages", type=Path, default=unseen_ages.FOLDER, metavar="DIR",
                        help="with the tables of benchmarks/ages.py (%(default)s)")  # fmt: skip
    parser.add_argument("--muse", action="append", default=[], metavar="NAME=DIR",
                        help="label maps to compare the volumes with")  # fmt: skip
    parser.add_argument("--to", type=Path, default=REPOSITORY / "docs" / "evaluation.md")
    options = parser.parse_args(arguments)
    for item in options.out + options.muse:
        if not Path(item.partition("=")[2]).is_dir():
            parser.error(f"{item} is not NAME=DIR with a folder that exists")
    material = gather(options)
    text = page(material, options.tables or list(TABLES), whole=not options.tables)
    if options.tables:
        print(text, end="")
    else:
        options.to.write_text(text, encoding="utf-8")
        print(options.to)


def gather(options: argparse.Namespace) -> Material:
    """Read the output folders and the predictions for people who had not been seen."""
    results = [
        Results(name, folder, list(Derivatives(folder, folder, "").records()))
        for name, folder in map(name_and_folder, options.out)
    ]
    muse = dict(map(name_and_folder, options.muse))
    # The page must not say where the folders lie on this machine.
    command = ["python benchmarks/evaluate.py"]
    command += [f"--out {each.name}=results/{each.name}" for each in results]
    command += [f"--muse {name}=maps/{name}" for name in muse]
    told = unseen_ages.read(options.ages)
    found = pd.concat([predicted_ages(results, told), *carried_over(results, told)])
    return Material(results, found, of_alone(told), muse, scanned_again(told), " ".join(command))


def name_and_folder(item: str) -> tuple[str, Path]:
    """Split NAME=DIR."""
    name, _, folder = item.partition("=")
    return name, Path(folder)


# --- the tables: each returns what to know before reading it, and the table ---


def aims(material: Material) -> tuple[str, str]:
    """What this version aims at, and what it reaches; no figure that is not in a table below."""
    about = (
        "What was aimed at and what is reached; the tables below say of whom and how sure it is. "
        "Out of fold on the largest data set, and trained on it alone for the others. Aims for "
        "importance maps and corrupted scans are measured in [importance.md](importance.md) and "
        "[quality_evaluation.md](quality_evaluation.md). What was tried, and how far figures out "
        "of fold hang on who is in which fold, is in [training.md](training.md)."
    )
    ages = material.ages
    sizes = ages[ages["kind"] == OUT_OF_FOLD]["dataset"].value_counts()
    home = sizes.idxmax() if len(sizes) else ""
    rows = []

    def row(words: str, aim: str, found: float, reached: bool, digits: int = 2) -> None:
        rows.append([words, aim, f"{found:.{digits}f}", "yes" if reached else "no"])

    for (dataset, model, kind), part in _groups(ages).items():
        error = (part["predicted_age"] - part["age"]).abs().mean()
        if dataset == home and kind == OUT_OF_FOLD and model in ACCURACY_AIMS:
            years, r = ACCURACY_AIMS[str(model)]
            found = part["predicted_age"].corr(part["age"])
            row(f"{model}, {dataset}: MAE, years", f"< {years}", error, error < years)
            row(f"{model}, {dataset}: r", f"> {r}", found, found > r, 3)
        elif kind.startswith(f"{UNSEEN};") and model == "ensemble" and len(part) >= FEWEST:
            row(f"{model}, {dataset}, {kind}: MAE, years", f"< {AWAY_AIM}", error,
                error < AWAY_AIM)  # fmt: skip
    if not material.retest.empty:
        last = material.retest[material.retest["model"] == material.retest["model"].iloc[-1]]
        moved = float(moves_of(last).to_numpy().mean())
        row(f"the same heads again ({len(moves_of(last))} people), mean of models: mean change, "
            "years", f"< {RETEST_AIM}", moved,
            moved < RETEST_AIM)  # fmt: skip
    dice = segmentation_figures().get("dice", {})
    for name, aim in DICE_AIMS.items():
        if name in dice:
            found = dice[name]["mean"]
            structure = name.replace("_", " ")
            row(f"{structure}: Dice, out of fold", f">= {aim}", found, found >= aim, 3)
    return about, table(["", "aim", "found", "reached"], rows)


def segmentation_figures() -> dict[str, Any]:
    """Figures on the card of the segmentation network."""
    path = registry.FOLDER / registry.SEGMENTATION / registry.CARD
    return dict(tomllib.loads(path.read_text(encoding="utf-8")).get("figures", {}))


def runs(material: Material) -> tuple[str, str]:
    """How many scans ran, failed and were flagged."""
    rows = []
    for each in material.results:
        flags = Counter(flag for record in each.records for flag in record["quality"]["flags"])
        scans, complete = each.scans(), each.complete()
        passed = sum(record["quality"]["passed"] for record in each.records)
        named = ", ".join(f"{name} {count}" for name, count in flags.most_common()) or "none"
        rows.append([each.name, *map(str, (len(scans), len(complete), len(scans - complete))),
                     str(passed), named])  # fmt: skip
    header = ["data set", "T1w scans", "complete", "not complete", "quality passed", "flags"]
    about = "Every T1w scan of each data set; flags are explained in `quality.md`."
    return about, table(header, rows)


def predictions(material: Material) -> tuple[str, str]:
    """Agreement of predicted and true age."""
    about = (
        "Years. *Out of fold*: the embedded networks were trained on this data set, so that each "
        "person is predicted by the one member that has not seen them; what the app itself says "
        "about these scans is in-sample and is not shown. *Unseen*: people and scanner are both "
        "new to the networks. Intervals (95 %) by bootstrap over people. *Baseline*: the error of "
        "saying the data set's mean age about everybody."
    )
    header = ["data set", "model", "scans", "n", "MAE", "RMSE", "mean error", "r", "Spearman",
              "slope", "baseline MAE"]  # fmt: skip
    rows = []
    for (dataset, model, kind), part in _groups(material.ages).items():
        error = part["predicted_age"] - part["age"]
        row = [dataset, model, kind, str(len(part))]
        if len(part) < FEWEST:
            row += [f"{error.abs().mean():.1f}", UNKNOWN, f"{error.mean():+.1f}", *[UNKNOWN] * 4]
        else:
            a = accuracy(part["age"].to_numpy(), part["predicted_age"].to_numpy(),
                         part["participant_id"].tolist())  # fmt: skip
            row += [
                f"{a.mae:.2f} [{a.mae_low:.2f}, {a.mae_high:.2f}]", f"{a.rmse:.2f}",
                f"{a.mean_error:+.2f}", f"{a.r:.3f} [{a.r_low:.3f}, {a.r_high:.3f}]",
                f"{a.spearman:.3f}", f"{a.slope:.2f}", f"{a.baseline_mae:.2f}",
            ]  # fmt: skip
        rows.append(row)
    seen = {str(name) for name in material.ages["dataset"]}
    missing = [each.name for each in material.results if each.name not in seen]
    if missing:
        about += f"\n\nNo predictions to show for {', '.join(missing)}."
    return about, table(header, rows)


def decades(material: Material) -> tuple[str, str]:
    """Mean error by age decade."""
    groups = _groups(material.ages)
    groups = {key: part for key, part in groups.items() if len(part) >= FEWEST}
    decade = {key: part["age"] // 10 * 10 for key, part in groups.items()}
    every = sorted(set().union(*(set(each) for each in decade.values()))) if groups else []
    rows = []
    for (dataset, model, kind), part in groups.items():
        row = [dataset, model, kind]
        for low in every:
            inside = part[decade[dataset, model, kind] == low]
            error = (inside["predicted_age"] - inside["age"]).mean()
            row.append(f"{error:+.1f} ({len(inside)})" if len(inside) else UNKNOWN)
        rows.append(row)
    header = ["data set", "model", "scans", *(f"{low:.0f} to {low + 9:.0f}" for low in every)]
    about = (
        "Mean of predicted minus true age in years (number of scans) by decade of age, of the "
        f"predictions above, where a data set has {FEWEST} or more scans. "
        "Regression to the mean shows here: the young come out too old, and the old too young."
    )
    return about, table(header, rows)


def away(material: Material) -> tuple[str, str]:
    """What of an error on an unseen scanner is the scanner's: beside the error at home."""
    diagnosis = {
        (each.name, record["participant_id"]): record.get("group")
        for each in material.results
        for record in each.records
    }
    rows = []
    for (dataset, model, kind), part in _groups(material.ages).items():
        alone = material.alone
        home = alone[(alone["model"] == model) & (alone["kind"] == kind)]
        if len(part) < FEWEST or len(home) < FEWEST:
            continue
        groups = pd.Series([diagnosis.get((dataset, who)) for who in part["participant_id"]])
        parts = {"everybody": part} | dict(list(part.groupby(groups.to_numpy())))
        for group_name, people in parts.items():
            if len(people) < FEWEST:
                continue
            error = people["predicted_age"] - people["age"]
            half = stats.t.ppf(0.975, len(error) - 1) * error.sem()
            at_home = errors_at(people["age"], home)
            rows.append([
                dataset, model, str(group_name), str(len(people)),
                f"{error.mean():+.1f} [{error.mean() - half:+.1f}, {error.mean() + half:+.1f}]",
                f"{at_home.mean():+.1f}", f"{error.abs().mean():.1f}",
                f"{errors_at(people['age'], home, np.abs).mean():.1f}",
            ])  # fmt: skip
    about = (
        "How much of the error on a scanner that the networks have not seen is the scanner's. "
        "Years; *at home*: of people of the same ages out of fold in the data set that the "
        f"networks were trained on (their errors weighted by a normal curve of {AGE_WIDTH} years "
        "about each age). Patients may differ from healthy people of their age, who alone "
        "were trained on: a scanner's own shift is what controls show beyond home. "
        "95 % intervals of means by Student's t."
    )
    header = ["data set", "model", "group", "n", "mean error", "mean error at home", "MAE",
              "MAE at home"]  # fmt: skip
    return about, table(header, rows)


def errors_at(
    ages: pd.Series, home: pd.DataFrame, of: Callable[[Any], Any] = np.asarray
) -> np.ndarray:
    """Mean errors in ``home``, or of what ``of`` makes of them, at each of these ages."""
    distance = ages.to_numpy()[:, None] - home["age"].to_numpy()
    weights = stats.norm.pdf(distance, scale=AGE_WIDTH)
    errors = of((home["predicted_age"] - home["age"]).to_numpy())
    return (weights * errors).sum(1) / weights.sum(1)


def calibration(material: Material) -> tuple[str, str]:
    """Share of people whose age lies in intervals of several coverages."""
    header = ["data set", "model", "scans", "n", *(f"{share:.0%}" for share in COVERAGES),
              "width of 90%"]  # fmt: skip
    known = pd.concat(
        [material.ages[material.ages["kind"] == OUT_OF_FOLD], material.alone], ignore_index=True
    )
    rows = []
    for (dataset, model, kind), part in _groups(material.ages).items():
        source = OUT_OF_FOLD if kind == UNSEEN else kind
        others = known[(known["model"] == model) & (known["kind"] == source)]
        if len(part) < FEWEST or len(others) < FEWEST:
            continue
        found = {share: held(part, others, share) for share in COVERAGES}
        rows.append([dataset, model, kind, str(len(part)),
                     *(f"{inside:.0%}" for inside, _ in found.values()),
                     f"{found[0.9][1]:.1f}"])  # fmt: skip
    about = (
        "Share of people whose age lies within intervals that are meant to hold 50, 80, 90 and "
        "95 % of them, and the mean width of those of 90 %, in years. The interval of a person "
        "reaches from the lower to the upper quantile of the model's errors out of fold over all "
        "*other* people of all data sets that it was trained on, as the intervals on its card do "
        "over everybody."
    )
    return about, table(header, rows)


def held(people: pd.DataFrame, others: pd.DataFrame, share: float) -> tuple[float, float]:
    """Share of people in their intervals, and the mean width; nobody calibrates the own one."""
    errors = (others["age"] - others["predicted_age"]).to_numpy(float)
    whose = (others["dataset"] + others["participant_id"]).to_numpy()
    tails = [(1 - share) / 2, (1 + share) / 2]
    inside, widths = [], []
    for who in people.itertuples():
        low, high = np.quantile(errors[whose != who.dataset + who.participant_id], tails)
        inside.append(low <= who.age - who.predicted_age <= high)
        widths.append(high - low)
    return float(np.mean(inside)), float(np.mean(widths))


def scanned_again(told: pd.DataFrame) -> pd.DataFrame:
    """Ages of the same heads by networks that have not seen them, and their mean."""
    names = {"participant_id": "person", "predicted_age": "age"}
    rows = told[told["kind"] == unseen_ages.AGAIN].drop(columns="age").rename(columns=names)
    voting = voters({name: models.card(name) for name in models.embedded()})
    rows = rows[rows["model"].isin(voting)]
    mean = rows.groupby(["person", "change"], as_index=False)["age"].mean()
    return pd.concat([rows, mean.assign(model="mean of these")], ignore_index=True)


def retest(material: Material) -> tuple[str, str]:
    """How far the age of a head moves when its scan is changed."""
    about = (
        "Years by which the age of the same head moves when its scan is turned by 10 degrees "
        "about two axes, moved by a voxel, made noisier by 3 % of its brightest voxels, or saved "
        "again in 16 bits and another unit (`benchmarks/retest.py`); mean over people (largest). "
        "By networks trained without the person; those in use have seen these heads."
    )
    if material.retest.empty:
        return "No ages of the same heads again are known (`benchmarks/ages.py`).", ""
    rows = []
    for model, part in material.retest.groupby("model", sort=False):
        moves = moves_of(part)
        rows.append([str(model), str(len(moves)),
                     *(f"{moves[name].mean():.2f} ({moves[name].max():.2f})" for name in CHANGES),
                     f"{moves.to_numpy().mean():.2f}"])  # fmt: skip
    return about, table(["model", "people", *CHANGES, "all"], rows)


def groups(material: Material) -> tuple[str, str]:
    """Group level on all data sets as one study of several sites."""
    large = [each for each in material.results if len(each.records) >= FEWEST]
    in_use = material.ages[material.ages["kind"].isin([OUT_OF_FOLD, UNSEEN])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for each in large:
            for record in each.records:
                if joint := _of_joint_study(record, each.name, in_use):
                    person = joint["participant_id"]
                    path = folder / person / "anat" / f"{person}_brainage.json"
                    path.parent.mkdir(parents=True)
                    path.write_text(json.dumps(joint), encoding="utf-8")
        if not any(folder.iterdir()):
            return f"No data set has {FEWEST} scans with a prediction.", ""
        group.run(Settings(folder / "none", folder, ("group",), importance=("none",)))
        tests = pd.read_csv(folder / "group_statistics.tsv", sep="\t")
        content = json.loads((folder / "group_bias_correction.json").read_text(encoding="utf-8"))
    rows = [
        [
            f"{test.contrast}{str(test.term).removeprefix('group').removeprefix('mean')}",
            f"{test.model}{', corrected' if test.outcome == 'corrected_gap' else ''}",
            str(test.measure),
            f"{test.n:.0f}",
            f"{test.effect:{'.2f' if 'odds' in test.measure else '+.2f'}} "
            f"[{test.effect_low:.2f}, {test.effect_high:.2f}]",
            f"{test.hedges_g:+.2f} [{test.hedges_g_low:.2f}, {test.hedges_g_high:.2f}]"
            if test.hedges_g == test.hedges_g else UNKNOWN,
            *(f"{value:.3f}" if value == value else UNKNOWN
              for value in (test.p, test.p_permutation, test.q)),
        ]
        for test in tests[tests["effect"].notna()].itertuples()
    ]  # fmt: skip
    warnings = [each for each in content["verdicts"] if each["severity"] != "note"]
    said = [each["text"] for each in warnings if each["name"] != "tables_not_found"]
    about = (
        f"{' and '.join(each.name for each in large)} as one study, a site each; ages out of "
        "fold where a network has seen a data set. Settings are the defaults of `group.md`. "
        "Differences and means are in years for models and in percent of the brain for volumes; "
        "brackets are 95 % intervals; q is over all tests here. The report begins with these "
        "warnings:\n\n"
    )
    header = ["test", "of", "effect is", "n", "effect", "Hedges' g", "p", "p permuted", "q"]
    return about + "\n".join(f"- {text}" for text in said), table(header, rows)


def segmentation(material: Material) -> tuple[str, str]:
    """Dice of the segmentation network out of fold, as its card says."""
    figures = segmentation_figures()
    names = {structure.abbreviation: structure.name for structure in STRUCTURES}
    rows = [
        [names.get(key, key.replace("_", " ")), f"{of['mean']:.3f}", f"{of['percentile_5']:.3f}"]
        for key, of in figures.get("dice", {}).items()
    ]
    about = (
        "From the card of the network: Dice with the reference maps at 2 mm, over "
        f"{figures.get('held_out_heads', 0)} heads that it has not seen. *Brain mask* is the mask "
        "that is handed out, brain and outer fluid, against all that the maps label; *brain "
        "without fluid* is what the models see of it, whose surface follows every sulcus."
    )
    header = ["structure", "mean Dice", "5 % of heads below"]
    return about, table(header, rows) if rows else "The card holds no figures yet."


def volumes(material: Material) -> tuple[str, str]:
    """Volumes in the records against those of the reference maps."""
    about = (
        "ml, mean over scans, and Pearson's r over scans, against the MUSE maps of the same "
        "scans. The network in use has seen half of these maps: this shows that volumes arrive in "
        "the records as they should; how well unseen heads are segmented, the table above shows."
    )
    rows = []
    for each in material.results:
        if each.name not in material.muse:
            continue
        found, truth = _volumes(each, material.muse[each.name])
        for name in found.columns:
            a, b = found[name], truth[name]
            mean = b.mean()
            difference = f"{100 * (a.mean() / mean - 1):+.1f} %" if mean else UNKNOWN
            r = f"{a.corr(b):.3f}" if a.count() >= FEWEST else UNKNOWN
            rows.append([name, each.name, str(a.count()), f"{a.mean():.1f}",
                         f"{mean:.1f}", difference, r])  # fmt: skip
    header = ["structure", "data set", "n", "app", "MUSE", "difference", "r"]
    return about, table(header, rows) if rows else "No reference maps were given (`--muse`)."


def quality(material: Material) -> tuple[str, str]:
    """Distribution of the quality figures."""
    about = (
        "5 / 50 / 95 % of the scans of each data set. A scan outside of the limits is flagged; "
        "[quality.md](quality.md) explains the figures, and [quality_evaluation.md]"
        f"(quality_evaluation.md) says how many corrupted scans they catch.{apart(material)}"
    )
    frames = {
        each.name: pd.DataFrame([record["quality"] for record in each.records])
        for each in material.results
        if each.records
    }
    names = list(dict.fromkeys(
        name for frame in frames.values() for name in frame if name not in ("passed", "flags")
    ))  # fmt: skip
    rows = []
    for name in names:
        row = [f"`{name}`", limits_words(name)]
        for frame in frames.values():
            column = frame.get(name, pd.Series(dtype=float))
            values = pd.to_numeric(column, errors="coerce").dropna()
            quantiles = values.quantile([0.05, 0.5, 0.95])
            row.append(" / ".join(f"{v:.4g}" for v in quantiles) if len(values) else UNKNOWN)
        rows.append(row)
    return about, table(["figure", "limits", *frames], rows)


def apart(material: Material) -> str:
    """By how many years the models that vote differ on people whom they have not seen."""
    names = voters({name: models.card(name) for name in models.embedded()})
    out_of_fold = material.ages[material.ages["kind"] == OUT_OF_FOLD]
    wide = out_of_fold.pivot(index=["dataset", "participant_id"], columns="model",
                             values="predicted_age")  # fmt: skip
    if len(names) < 2 or not set(names) <= set(wide):
        return ""
    widths = wide[names].max(axis=1) - wide[names].min(axis=1)
    return (f" Out of fold, the models of the ensemble differ by {widths.median():.1f} years in "
            f"the median and {widths.max():.1f} at most.")  # fmt: skip


def limits_words(name: str) -> str:
    """The limits of a quality figure in words."""
    low, high = LIMITS.get(name, (-np.inf, np.inf))
    if np.isinf(low) and np.isinf(high):
        return "none"
    if np.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if low == 0 or np.isinf(low) else f"{low:g} to {high:g}"


def seconds(material: Material) -> tuple[str, str]:
    """Seconds per scan and step."""
    frames = {each.name: pd.DataFrame([record["seconds"] for record in each.records])
              for each in material.results if each.records}  # fmt: skip
    steps = list(dict.fromkeys(name for frame in frames.values() for name in frame))
    rows = [
        [step.replace("_", " "),
         *(f"{frame[step].median():.1f}" if step in frame else UNKNOWN
           for frame in frames.values())]
        for step in steps
    ]  # fmt: skip
    totals = [frame.sum(axis=1) for frame in frames.values()]
    rows.append(["**sum**", *(f"**{total.median():.1f}**" for total in totals)])
    rows.append(["95 % of scans within", *(f"{total.quantile(0.95):.1f}" for total in totals)])
    side = ", ".join(f"{each.name} {each.side_by_side}" for each in material.results)
    about = (
        "Median over scans, as the records say; reading and writing of files not counted. Scans "
        f"side by side: {side}. These are wall times of whatever the machine was "
        "doing; `benchmarks/participant.py` measures on a core of its own."
    )
    return about, table(["step", *frames], rows)


TABLES: dict[str, tuple[str, Callable[[Material], tuple[str, str]]]] = {
    "aims": ("Aims", aims),
    "runs": ("Scans", runs),
    "predictions": ("Predicted age", predictions),
    "decades": ("Error by age", decades),
    "away": ("Unseen scanner", away),
    "calibration": ("Intervals", calibration),
    "retest": ("The same heads again", retest),
    "groups": ("Groups", groups),
    "segmentation": ("Segmentation", segmentation),
    "volumes": ("Volumes", volumes),
    "quality": ("Quality figures", quality),
    "seconds": ("Time", seconds),
}


def page(material: Material, names: list[str], whole: bool) -> str:
    """Make the Markdown page; with `whole`, under a title."""
    parts = []
    if whole:
        parts.append(
            "# Evaluation\n\nThis page is made by `benchmarks/evaluate.py` from finished output "
            "folders (`run.py DATA results/NAME participant`) and is not edited by hand:\n\n"
            f"```\n{material.command}\n```\n\n"
            "With `--table NAME` it prints one table alone; the names stand beside the titles."
        )
    for name in names:
        title, make = TABLES[name]
        about, found = make(material)
        parts.append(f"## {title} (`{name}`)\n\n{about}\n\n{found}")
    return "\n\n".join(parts) + "\n"


def _groups(ages: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Rows by data set, model and kind, in the order in which they came."""
    return dict(list(ages.groupby(["dataset", "model", "kind"], sort=False)))


def _of_joint_study(
    record: dict[str, Any], dataset: str, ages: pd.DataFrame
) -> dict[str, Any] | None:
    """A record with its data set for a site, and with the ages that this page goes by."""
    of_person = ages[
        (ages["dataset"] == dataset) & (ages["participant_id"] == record["participant_id"])
    ]
    honest = dict(zip(of_person["model"], of_person["predicted_age"]))
    predictions = {}
    for model, age in honest.items():
        if found := record["predictions"].get(model):
            shift = age - found["predicted_age"]
            interval = [bound + shift for bound in found.get("interval") or ()]
            predictions[model] = found | {"predicted_age": age, "interval": interval}
    if not predictions:
        return None
    person = f"sub-{dataset}{record['participant_id'].removeprefix('sub-')}"
    source = f"bids:raw:{person}/anat/{person}_T1w.nii.gz"
    about = {"participant_id": person, "session_id": None, "source": source, "site": dataset}
    return record | about | {"predictions": predictions}


def _volumes(results: Results, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Volumes of the app and of the maps, (scans, structures), ml."""
    found, truth = [], []
    for record in results.records:
        maps = sorted((folder / record["participant_id"]).glob("**/*_dseg.nii.gz"))
        if len(maps) != 1:  # none, or of several sessions
            continue
        image = nib.load(maps[0])
        structure = structures_from_muse(np.asarray(image.dataobj))
        ml = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000
        counts = np.bincount(structure.ravel(), minlength=len(STRUCTURES)) * ml
        truth.append({"Brain": counts[OUTER_CSF + 1 :].sum()}
                     | {s.name: counts[i] for i, s in enumerate(STRUCTURES) if i})  # fmt: skip
        found.append(_structure_volumes(record["volumes_ml"]))
    return pd.DataFrame(found).astype(float), pd.DataFrame(truth)


def _structure_volumes(volumes: Mapping[str, float | None]) -> dict[str, float | None]:
    """Volumes of a record by structure, both sides together."""
    by = {"Brain": volumes["brain"], STRUCTURES[OUTER_CSF].name: volumes["csf"]}
    for structure in STRUCTURES[OUTER_CSF + 1 :]:
        keys = [label.name.lower().replace(" ", "_") for label in LABELS
                if label.abbreviation.split("-")[-1] == structure.abbreviation]  # fmt: skip
        by[structure.name] = sum(volumes[key] or 0 for key in keys)
    return by


if __name__ == "__main__":
    main()
