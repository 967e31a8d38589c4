"""Tables of docs/importance.md: whether maps find a planted effect, their cost, what they show.

    python benchmarks/importance.py planted --work DIR [--place hippocampus] [--network wssa]
    python benchmarks/importance.py real --work DIR --out RESULTS/IXI [--network wssa]
    python benchmarks/importance.py tables --work DIR

Each call goes on from what is in the folder `--work` and writes the tables of all that is there
into the page. `planted` simulates cohorts, trains networks on them and maps what they
learned; `real` maps the embedded models on the scans of a finished output folder, and times it.
Needs the atlas of `--importance occlusion`, from TemplateFlow. Seconds are those of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import models  # noqa: E402
from benchmarks.markdown import put, table  # noqa: E402
from bidsapp import noise_models  # noqa: E402
from bidsapp.derivatives import Derivatives  # noqa: E402
from bidsapp.errors import UserError  # noqa: E402
from bidsapp.explain import FILLED, UNITS, atlas_of, average_brain, grid_of  # noqa: E402
from bidsapp.importance import attention, noise  # noqa: E402
from bidsapp.importance.brain import Array, Brain, Mask  # noqa: E402
from bidsapp.importance.gradcam import gradcam, merged, suited  # noqa: E402
from bidsapp.importance.noise import NoiseModel  # noqa: E402
from bidsapp.importance.occlusion import as_map, occlusion  # noqa: E402
from bidsapp.importance.population import Population  # noqa: E402
from bidsapp.importance.regions import Atlas, region_means  # noqa: E402
from bidsapp.preprocessing.morphometry import at_4_mm, modulated_tissue  # noqa: E402
from bidsapp.preprocessing.templates import load_template as standard_template  # noqa: E402
from bidsapp.reporting.importance_figures import map_figure  # noqa: E402
from models.contract import (  # noqa: E402
    TISSUES,
    Contract,
    InputContract,
    ModelCard,
    MorphometryContract,
    Output,
    Uncertainty,
)
from models.prediction import BrainAgeModel  # noqa: E402
from models.simulation.brain import Ageing, Template  # noqa: E402
from models.simulation.dataset import load_template  # noqa: E402
from models.simulation.planted import (  # noqa: E402
    OLDEST,
    YOUNGEST,
    Planted,
    people,
    plant,
    segmented_people,
)
from models.training import linear, morphometry  # noqa: E402
from models.training.data import TrainingScan, TrainingSet  # noqa: E402
from models.training.options import (  # noqa: E402
    AugmentationOptions,
    EncoderOptions,
    Options,
)
from models.training.regression import output_scale, predict_ages, train_fold  # noqa: E402
from models.training.two_stages import TwoStages  # noqa: E402

PAGE = REPOSITORY / "docs" / "importance.md"
TEMPLATE = "MNI152NLin2009aSym"
SHAPE = (91, 109, 91)
AFFINE = ((2.0, 0, 0, -90.0), (0, 2.0, 0, -126.0), (0, 0, 2.0, -72.0), (0, 0, 0, 1.0))
LEARNING, UNSEEN, OCCLUDED, SEED = 64, 12, 3, 1
"""People that a network learns from; others, whose maps are made; those of them for occlusion."""
AGED = 0.05
"""Of white matter's intensity, or of a voxel: by how much a voxel changes from the youngest to the
oldest to count as one of the effect."""
FLUID = 0.2
"""Of white matter's intensity: no voxel gets darker than this by a multiplied change."""
FIT = noise.Options(steps=100, batch=2, channels=(8, 16, 32))


@dataclass(frozen=True)
class Place:
    """Where age shows, and how strongly.

    Attributes
    ----------
    gain
        The change of the images' intensities is multiplied by it.
    regions
        Of the atlas; both sides.
    """

    oldest: Ageing
    gain: float
    regions: tuple[str, ...]


PLACES = {
    "ventricles": Place(Ageing(ventricles=4.0), 1.0, ("Lateral Ventricle",)),
    "hippocampus": Place(Ageing(cortex=0.6), 3.0, ("Hippocampus",)),
    "sensorimotor": Place(Ageing(cortex=0.7), 1.5, ("Precentral", "Postcentral")),
}
WSSA = Options(
    architecture="wssa", epochs=80, learning_rate=1e-3, evaluate_every=10,
    network={"normalise": True, "coarse": True, "smoothing": 1, "attention_after_pooling": True,
             "mirror": True, "dropout_conv": 0.3, "dropout_dense": 0.0,
             "channels": [8, 12, 24, 48, 96, 192, 384], "dense": [256, 64, 32, 12]},
    augmentation=AugmentationOptions.none(), seed=SEED,
)  # fmt: skip
"""As it is shipped, but narrower and less smoothed."""
BRAINROTVIT = Options(
    architecture="brainrotvit", epochs=60, batch_size=4, learning_rate=1e-3, evaluate_every=10,
    network={"size": "tissue"}, encoder=EncoderOptions(20, 1e-4, 12, 6), needs_sex=True,
    augmentation=AugmentationOptions.none(), seed=SEED,
)  # fmt: skip
"""As it is shipped, but with fewer epochs of its regressors."""
OF_TISSUE = ("brainrotvit", "morphometry")
"""See modulated maps of tissue; the others intensities."""
NETWORKS = ("wssa", "linear", *OF_TISSUE)


def main(arguments: list[str] | None = None) -> None:
    """Do a part of the work, and write the tables of all that is done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", choices=("planted", "real", "tables"))
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--place", nargs="+", default=list(PLACES), choices=PLACES)
    parser.add_argument("--network", nargs="+", help="(default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder of the app")
    parser.add_argument("--scans", type=int, default=100, help="of the output folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "planted":
        for network in options.network or NETWORKS:
            for place in options.place:
                kept(options.work / f"planted_{place}_{network}.json",
                     lambda p=place, n=network: planted(p, n, options.work))  # fmt: skip
                write_tables(options.work)
    if options.part == "real":
        if options.out is None:
            parser.error("real needs --out, a finished output folder")
        for network in options.network or noise_models.with_images():
            kept(options.work / f"real_{network}.json",
                 lambda n=network: real(n, options.out, options.scans, options.work))  # fmt: skip
            write_tables(options.work)
    write_tables(options.work)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result, from its file where it is there."""
    if not path.exists():
        path.write_text(json.dumps(make(), indent=1), encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def the_atlas() -> Atlas:
    """CerebrA, fetched where it is not here yet, or an end with the reason."""
    try:
        atlas, why = atlas_of(("cerebra",), TEMPLATE)
    except UserError as error:
        sys.exit(str(error))
    assert atlas, why
    return atlas


# --- planted effects ---


def cohort(name: str, work: Path) -> Mapping[str, Any]:
    """Images (people, X, Y, Z), ages in years, and the size of the effect (X, Y, Z)."""
    path = work / f"cohort_{name}.npz"
    if not path.exists():
        aged, white = ageing_brain(name), white_matter(load_template())
        ages = ages_of_people()
        images = people(aged, list(ages), SEED)
        np.savez(path, images=np.stack([image.astype(np.float16) for image in images]),
                 ages=ages, effect=np.ptp(aged.stages, axis=0) / white)  # fmt: skip
    return dict(np.load(path))


def warped_cohort(name: str, work: Path) -> Mapping[str, Any]:
    """Modulated maps (people, 3, X, Y, Z) at 4 mm of the same people, and the rest as above.

    The effect is how much more or less of any tissue there is in a voxel. Beside it the maps of
    the youngest average brain, (3, X, Y, Z), which is the template.
    """
    path = work / f"cohort_{name}_warped.npz"
    if not path.exists():
        aged, ages = ageing_brain(name), ages_of_people()
        maps = [warped(shares, aged) for shares in segmented_people(aged, list(ages), SEED)]
        youngest = warped(aged.shares[0], aged)
        change = np.abs(warped(aged.shares[-1], aged) - youngest)
        np.savez(path, images=np.stack(maps), ages=ages, effect=change.max(0), average=youngest)
    return dict(np.load(path))


def warped(shares: Array, aged: Planted) -> Array:
    """Modulated maps at 4 mm, (3, X, Y, Z), of a brain warped to the youngest average brain."""
    return at_4_mm(modulated_tissue(shares, aged.shares[0], SEED)[0])


def ageing_brain(name: str) -> Planted:
    """The average brain with age at one place, as strong as is asked for there."""
    place, template, atlas = PLACES[name], load_template(), the_atlas()
    within = None
    if place.oldest.ventricles == 1:
        x, y, z = template.t1.shape
        within = np.isin(atlas.on((x, y, z), template.affine), indices(place.regions, atlas))
        within = within.astype(np.float32)
    aged = plant(template, place.oldest, SHAPE, np.array(AFFINE), within)
    first, darkest = aged.stages[0], FLUID * white_matter(template)
    stages = first + place.gain * (aged.stages - first)
    stages = np.maximum(stages, np.minimum(aged.stages, darkest))  # no holes
    shares = aged.shares[0] + place.gain * (aged.shares - aged.shares[0])
    return replace(aged, stages=stages, shares=np.clip(shares, 0, 1))


def white_matter(template: Template) -> float:
    """Its intensity."""
    return float(np.median(template.t1[template.white > 0.9]))


def ages_of_people() -> NDArray[np.float64]:
    """Years, of those to learn from and of the others."""
    return np.random.default_rng(SEED).uniform(YOUNGEST, OLDEST, LEARNING + UNSEEN)


def indices(names: Sequence[str], atlas: Atlas) -> list[int]:
    """Labels of regions, both sides."""
    return [region.index for region in atlas.regions if region.name in names]


def planted(name: str, network: str, work: Path) -> dict[str, Any]:
    """Train on a cohort, map the people it has not seen, and compare with what was planted."""
    of_tissue = network in OF_TISSUE
    found = warped_cohort(name, work) if of_tissue else cohort(name, work)
    ages, images = found["ages"], found["images"]
    sexes = "FM" * len(ages) if of_tissue else [None] * len(ages)
    scans = tuple(
        TrainingScan(f"{n:03d}", name, f"{n:03d}", float(age), sex, "", image,
                     image if of_tissue else None)
        for n, (age, sex, image) in enumerate(zip(ages, sexes, map(torch.from_numpy, images)))
    )  # fmt: skip
    unseen = np.arange(len(scans)) >= LEARNING
    data = TrainingSet(scans, TEMPLATE, AFFINE).pooled(2)
    trained = learnt(network, data, unseen, f"{name}_{network}", work)
    others = [scan for scan, out in zip(data.scans, unseen) if out]
    output = output_scale(data)
    options = BRAINROTVIT if network == "brainrotvit" else WSSA
    predicted = predict_ages(trained, others, output, options)
    card = card_of(network, images[0].shape[-3:], output)
    model = BrainAgeModel(card, [trained])
    least = FILLED if of_tissue else 0
    brains = [
        Brain(image.astype(np.float32), image.reshape(-1, *image.shape[-3:]).sum(0) > least, sex)
        for image, sex, out in zip(images, sexes, unseen) if out
    ]  # fmt: skip
    average = found["average"] if of_tissue else None
    maps = population_maps(model, brains, average, work / f"{name}_{network}.safetensors")
    mask = np.mean([brain.mask for brain in brains], axis=0) >= 0.5
    atlas, (shape, affine) = the_atlas(), grid_of(card, np.array(AFFINE))
    truth = {"region": np.isin(atlas.on(shape, affine), indices(PLACES[name].regions, atlas)),
             "effect": found["effect"] > AGED}  # fmt: skip
    for method, values in maps.items():
        picture = work / f"{name}_{network}_{method}.png"
        draw(values, affine, UNITS.get(method, ""), picture)
    return {
        "mae": float(np.abs(predicted - ages[unseen]).mean()),
        "r": float(np.corrcoef(predicted, ages[unseen])[0, 1]),
        "baseline": float(np.abs(ages[unseen] - ages[unseen].mean()).mean()),
        "maps": {method: scores(values, mask, truth, PLACES[name].regions, atlas, affine)
                 for method, values in maps.items()},
    }  # fmt: skip


def card_of(network: str, shape: tuple[int, int, int], output: Output) -> ModelCard:
    """The card of a network of planted cohorts, whose images are of this shape."""
    contract: Contract = InputContract(TEMPLATE, 12, shape, AFFINE, True, True, "tissue",
                                       (YOUNGEST, OLDEST))  # fmt: skip
    if network in OF_TISSUE:
        contract = MorphometryContract(TEMPLATE, TISSUES, shape, (YOUNGEST, OLDEST),
                                       network == "brainrotvit")  # fmt: skip
    return ModelCard(network, network, "0", "Planted.", "CC0-1.0", "None.", contract,
                     Uncertainty(5.0, (-8, 8)), output, weights_sha256="0" * 64)  # fmt: skip


def learnt(
    network: str, data: TrainingSet, unseen: NDArray[np.bool_], name: str, work: Path
) -> torch.nn.Module:
    """A network that has learned from those who are not unseen."""
    if network in ("linear", "morphometry"):
        learning = [scan for scan, out in zip(data.scans, unseen) if not out]
        output = output_scale(data)
        targets = (data.ages[~unseen] - output.offset) / output.scale
        fit = linear.fit if network == "linear" else morphometry.method(data).fit
        return fit(learning, targets)[0].requires_grad_(False)
    if network == "wssa":
        return train_fold(data, unseen, name, WSSA, work).requires_grad_(False)
    stages = TwoStages()
    trained = train_fold(data, unseen, name, BRAINROTVIT, work, train_epoch=stages)
    return trained.requires_grad_(False)


def population_maps(
    model: BrainAgeModel, brains: Sequence[Brain], average: Array | None, path: Path
) -> dict[str, Array]:
    """Mean map of each method; the noise model is kept in a file."""
    if not path.exists():
        path.write_bytes(noise.fit(model, brains, FIT, progress=said).to_bytes())
    fitted = NoiseModel.from_bytes(path.read_bytes())
    labels = the_atlas().on(*grid_of(model.card, np.array(AFFINE)))
    maps = {
        "noise": np.mean([fitted.importance(brain) for brain in brains], axis=0),
        "occlusion": np.mean([as_map(occlusion(model, brain, labels, average), labels, brain.mask)
                              for brain in brains[:OCCLUDED]], axis=0),
    }  # fmt: skip
    if suited(model):
        maps["gradcam"] = np.mean([merged(gradcam(model, brain)) for brain in brains], axis=0)
    if attention.suited(model):
        maps["attention"] = np.mean(
            [attention.attention(model, brain) for brain in brains], axis=0
        )
    return maps


def said(done: int, total: int, words: str) -> None:
    """Progress of a fit."""
    if done and done % 10 == 0:
        print(f"{done} of {total}: {words}", flush=True)


def scores(
    values: Array,
    mask: Mask,
    truth: Mapping[str, Mask],
    planted: Sequence[str],
    atlas: Atlas,
    affine: NDArray[np.float64],
) -> dict[str, Any]:
    """How well a map finds a place: average precision over chance, and ranks of the regions."""
    size = np.abs(values)[mask]
    found: dict[str, Any] = {}
    for name, place in truth.items():
        chance = float(place[mask].mean())
        found[name] = float(average_precision_score(place[mask], size)) / chance
    ranked = ranks(np.abs(values), mask, atlas, affine)
    return found | {"ranks": [ranked.index(region) + 1 for region in planted], "top": ranked[:5]}


def ranks(values: Array, mask: Mask, atlas: Atlas, affine: NDArray[np.float64]) -> list[str]:
    """Names of the regions, both sides as one, the highest mean first."""
    x, y, z = values.shape
    labels = atlas.on((x, y, z), affine)
    means: dict[str, float] = {}
    for name in dict.fromkeys(region.name for region in atlas.regions):
        inside = np.isin(labels, indices([name], atlas)) & mask
        if inside.any():
            means[name] = float(values[inside].mean())
    return sorted(means, key=lambda name: -means[name])


def draw(values: Array, affine: NDArray[np.float64], unit: str, path: Path) -> None:
    """The figure that the reports show."""
    x, y, z = values.shape
    template, _ = standard_template(TEMPLATE).on((x, y, z), affine)
    path.write_bytes(map_figure(values, template.data, template.zooms, unit))


# --- real scans, and what it costs ---


def real(name: str, out: Path, most: int, work: Path) -> dict[str, Any]:
    """Population maps of an embedded model, and the seconds that they took."""
    model = models.load(name, "cpu")
    images = noise_models.images(model, [Derivatives(out, out, TEMPLATE)], most)
    path, seconds = work / f"real_{name}.safetensors", {}
    if not path.exists():
        began = time.process_time()
        fitted = noise.fit(model, images, noise.Options(), progress=said)
        seconds["fit"] = time.process_time() - began
        path.write_bytes(fitted.to_bytes())
        path.with_suffix(".seconds").write_text(json.dumps(seconds))
    seconds = json.loads(path.with_suffix(".seconds").read_text())
    fitted = NoiseModel.from_bytes(path.read_bytes())
    shape, affine = grid_of(model.card, np.array(AFFINE))
    labels = the_atlas().on(shape, affine)
    average = average_brain(model.card)
    methods: dict[str, tuple[int, Callable[[Brain], Array]]] = {
        "noise": (len(images), fitted.importance),
        "occlusion": (10, lambda b: as_map(occlusion(model, b, labels, average), labels, b.mask)),
    }
    if suited(model):
        methods["gradcam"] = 40, lambda brain: merged(gradcam(model, brain))
    if attention.suited(model):
        methods["attention"] = 40, lambda brain: attention.attention(model, brain)
    maps = {}
    for method, (scans, make) in methods.items():
        maps[method], seconds[method] = averaged(images, scans, make)
    mask = np.logical_and.reduce([each.all.shown for each in maps.values()])
    for method, each in maps.items():
        draw(each.all.mean, affine, UNITS.get(method, ""), work / f"real_{name}_{method}.png")
    return {
        "weights_sha256": model.card.weights_sha256, "seconds": seconds, "scans": len(images),
        "about": fitted.about,
        "maps": {method: {"scans": each.all.scans, "split_half_r": each.split_half_r,
                          "top": sides(each.all.mean, mask, labels)[:15]}
                 for method, each in maps.items()},
        "agreement": agreement({m: each.all.mean for m, each in maps.items()}, mask, labels),
    }  # fmt: skip


def averaged(
    images: Sequence[Brain], scans: int, make: Callable[[Brain], Array]
) -> tuple[Population, float]:
    """Population map of some scans, spread over all, and the median seconds for one."""
    x, y, z = images[0].mask.shape
    found, seconds = Population((x, y, z)), []
    places = np.linspace(0, len(images) - 1, min(scans, len(images))).round().astype(int)
    for place in places:
        brain = images[int(place)]
        began = time.process_time()
        values = make(brain)
        seconds.append(time.process_time() - began)
        found.add(values, brain.mask, None)
    return found, float(np.median(seconds))


def sides(values: Array, mask: Mask, labels: NDArray[np.int32]) -> list[str]:
    """Regions with their side, the highest mean first; a minus where it makes look younger."""
    atlas = the_atlas()
    means = region_means(values, labels, mask, atlas.regions)
    order = np.argsort(-np.abs(np.nan_to_num(means)), kind="stable")
    return [f"{'-' if means[n] < 0 else ''}{atlas.regions[n].name} {atlas.regions[n].hemisphere}"
            for n in order]  # fmt: skip


def agreement(
    maps: Mapping[str, Array], mask: Mask, labels: NDArray[np.int32]
) -> dict[str, float]:
    """Spearman's correlation over the regions, of sizes, for each pair of methods."""
    from scipy.stats import spearmanr

    atlas = the_atlas()
    means = {name: np.abs(region_means(values, labels, mask, atlas.regions))
             for name, values in maps.items()}  # fmt: skip
    names = list(means)
    return {f"{one} and {other}": float(spearmanr(means[one], means[other],
                                                  nan_policy="omit").statistic)
            for n, one in enumerate(names) for other in names[n + 1 :]}  # fmt: skip


# --- the tables ---


def planted_table(work: Path) -> str:
    """One row for each cohort, network and method."""
    rows = []
    for path in sorted(work.glob("planted_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        _, place, network = path.stem.split("_")
        accuracy = f"{found['mae']:.1f} of {found['baseline']:.1f}, r {found['r']:.2f}"
        rows += [
            [place, network, accuracy, method, f"{each['region']:.1f}", f"{each['effect']:.1f}",
             " and ".join(map(str, each["ranks"])), ", ".join(each["top"][:3])]
            for method, each in found["maps"].items()
        ]  # fmt: skip
    return table(["planted in", "network", "MAE, unseen people", "method",
                  "precision / chance, regions", "precision / chance, effect", "rank",
                  "first three regions"], rows)  # fmt: skip


def cost_table(work: Path) -> str:
    """Seconds of one core."""
    rows = []
    for path in sorted(work.glob("real_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds = found["seconds"]
        rows.append([path.stem.removeprefix("real_"), str(found["scans"]),
                     f"{seconds['fit'] / 60:.1f} min",
                     *(f"{seconds[m]:.2f}" if m in seconds else "n/a"
                       for m in ("noise", "occlusion", "gradcam", "attention"))])  # fmt: skip
    each = [f"{method}, one scan" for method in ("noise", "occlusion", "gradcam", "attention")]
    return table(["model", "scans", "noise model fitted", *each], rows)


def real_table(work: Path) -> str:
    """The first regions of each method, side by side, and how far maps agree."""
    parts = []
    for path in sorted(work.glob("real_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        maps, about = found["maps"], found["about"]
        rows = [[str(n + 1), *(each["top"][n] for each in maps.values())] for n in range(15)]
        halves = "; ".join(
            f"{name} {each['split_half_r']:.2f} ({each['scans']} scans)"
            for name, each in maps.items()
        )
        alike = "; ".join(f"{pair} {r:.2f}" for pair, r in found["agreement"].items())
        parts.append(
            f"`{about['model']}`, weights {found['weights_sha256'][:8]}. Split halves (r over "
            f"voxels): {halves}. Agreement over regions (Spearman): {alike}. The noise moves the "
            f"predictions by {about['moved_years']:.2f} years of {about['tolerance_years']:.2f} "
            f"allowed.\n\n{table(['rank', *maps], rows)}"
        )
    return "\n\n".join(parts)


TABLES = {"planted": planted_table, "cost": cost_table, "real": real_table}


def write_tables(work: Path) -> None:
    """Put the tables of all that is there into the page."""
    for name, text in TABLES.items():
        there = any(work.glob("planted_*.json" if name == "planted" else "real_*.json"))
        if there:
            put(PAGE, name, text(work))


if __name__ == "__main__":
    main()
