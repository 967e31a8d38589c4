"""Seconds and memory per scan on one core, beside the pipeline one would write with ANTsPy today.

    python benchmarks/participant.py [--data FOLDER] [--quick]

Prints Markdown tables. Two heads: an IXI scan as it is (2 mm), and the same resampled to 1 mm.
Each runs in a fresh process that is pinned to one core and has the environment that the app gives
to its workers. Let the machine be idle: nothing else here is of any consequence. Linux only.

The other pipeline is what ANTsPyNet's `brain_age` does before its network: N4, and
`antsRegistrationSyNQuickRepro[a]` of the brain to the template at 1 mm. Its brain extraction is
not at hand, so it is given the brain mask that this app has found, free of charge; nor is it asked
to denoise. N4 is run in two ways: on the whole image, as a plain call does, and inside the mask on
the template's grid, as ANTsPyNet orders it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import table  # noqa: E402
from bidsapp.execution import worker_environment  # noqa: E402

HEAD = "ixi/sub-IXI013/anat/sub-IXI013_T1w.nii.gz"
STEM = "sub-01"
TISSUES = {"grey matter": "GM", "white matter": "WM"}
N4_WHOLE, N4_MASK = "N4 on the whole image", "N4 inside the mask, template grid"
Measured = dict[str, Any]


def main() -> None:
    """Measure every head with both pipelines, and print the tables."""
    raw_text = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw_text)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data",
                        help="folder that holds ixi/ (default: %(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="the 2 mm head alone, and the other pipeline at 2 mm too:\n"
                        "to see that this program works")  # fmt: skip
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, head, folder = options.worker
        print(json.dumps({"app": run_app, "peer": run_peer}[what](Path(head), Path(folder))))
        return
    raw = options.data / HEAD
    if not raw.is_file():
        parser.error(f"there is no scan {raw}; name the folder that holds ixi/ with --data")
    peer_mm = 2.0 if options.quick else 1.0
    results: dict[str, tuple[Measured, Measured]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for mm in (2.0,) if options.quick else (2.0, 1.0):
            folder = Path(scratch) / f"{mm:g}mm"
            head = prepare(raw, folder, mm, peer_mm)
            app = in_fresh_process("app", head, folder)
            peer = in_fresh_process("peer", head, folder)
            for measured, transform in ((app, "app.txt"), (peer, "peer.mat")):
                measured["overlap"] = overlap(folder, folder / transform)
            results[f"{mm:g} mm"] = app, peer
    print(report(results, peer_mm))


# --- what is measured ---


def prepare(raw: Path, folder: Path, mm: float, template_mm: float) -> Path:
    """Write the head at its voxel size, and the template's brain and tissue maps."""
    import nibabel as nib
    import numpy as np
    from nibabel.processing import resample_to_output
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    from bidsapp.preprocessing.templates import load_template

    folder.mkdir()
    head = folder / f"{STEM}_T1w.nii.gz"
    image = nib.load(raw)
    if not np.allclose(image.header.get_zooms(), mm, atol=0.1):
        image = resample_to_output(image, (mm,) * 3, order=3)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32).clip(0), image.affine), head)
    brain = load_template().brain
    template = nib.Nifti1Image(brain.data, brain.affine)
    if template_mm != 1:
        template = resample_to_output(template, (template_mm,) * 3, order=1)
    nib.save(template, folder / "template.nii.gz")
    for tissue, load in (("GM", load_mni152_gm_template), ("WM", load_mni152_wm_template)):
        nib.save(load(resolution=1), folder / f"template_{tissue}.nii.gz")
    return head


def in_fresh_process(what: str, head: Path, folder: Path) -> Measured:
    """Run `what` on one core, as a worker of the app would; adds the wall time of the process."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--worker", what, head, folder],
        env=os.environ | worker_environment(threads=1, seed=1),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - began}


def run_app(head: Path, folder: Path) -> Measured:
    """Process a scan with the app's own function; in a process of its own."""
    pin_to_one_core()
    seconds: dict[str, float] = {}
    with timed("imports", seconds):
        import ants  # noqa: F401
        import torch  # noqa: F401

        import bidsapp.preprocessing.bias_field
        import bidsapp.preprocessing.quality
        import bidsapp.preprocessing.registration
        import bidsapp.preprocessing.segmentation
        import bidsapp.reporting.figures  # noqa: F401
        from bidsapp import participant
        from bidsapp.derivatives import Derivatives
        from bidsapp.settings import Settings
        from bidsapp.study import Demographics, Scan
    settings = Settings(folder, folder / "out", ("participant",), nprocs=1, device="cpu")
    out = Derivatives(settings.output_dir, folder, settings.template)
    scan = Scan(head, f"bids:raw:{head.name}", STEM, None, STEM, Demographics())
    with timed("loading", seconds):
        tools = participant.toolbox(settings)
        tools.template_tissue(settings.template)  # made once, for the first scan of a worker
    with timed("total", seconds):
        participant.process(scan, settings, out)
    record = out.read_record(out.record(scan))
    out.xfm(scan, "T1w", settings.template).rename(folder / "app.txt")
    for path, name in ((out.brain_mask(scan), "mask.nii.gz"), (out.dseg(scan), "dseg.nii.gz")):
        path.rename(folder / name)
    steps = record["seconds"]
    steps["reading, writing, the rest"] = seconds["total"] - sum(steps.values())
    age = record["predictions"].get("ensemble", {}).get("predicted_age")
    return seconds | {"steps": steps, "peak_mib": peak_mib(), "predicted_age": age}


def run_peer(head: Path, folder: Path) -> Measured:
    """Run N4 and the affine registration as one would by hand; in a process of its own."""
    pin_to_one_core()
    seconds: dict[str, float] = {}
    steps: dict[str, float] = {}
    with timed("imports", seconds):
        import ants

    def resampled(image: Any, interpolator: str) -> Any:
        return ants.apply_transforms(template, image, result["fwdtransforms"], interpolator)

    with timed("reading", steps):
        image = ants.image_read(str(head))
        mask = ants.image_read(str(folder / "mask.nii.gz"))
        template = ants.image_read(str(folder / "template.nii.gz"))
    with timed(N4_WHOLE, steps):
        corrected = ants.n4_bias_field_correction(image)
    with timed("registration", steps):
        brain = corrected.new_image_like(corrected.numpy() * mask.numpy())
        result = ants.registration(
            template, brain, "antsRegistrationSyNQuickRepro[a]", outprefix=f"{folder}/peer_"
        )
    with timed("resampling", steps):
        resampled(corrected, "linear")
        template_mask = resampled(mask, "genericLabel")
    plain = sum(steps.values())
    raw = resampled(image, "linear")
    with timed(N4_MASK, steps):
        ants.n4_bias_field_correction(raw, mask=template_mask)
    Path(result["fwdtransforms"][0]).rename(folder / "peer.mat")
    return seconds | {
        "steps": steps,
        "total": plain,
        "total_as_antspynet": plain - steps[N4_WHOLE] + steps[N4_MASK],
        "peak_mib": peak_mib(),
    }


def overlap(folder: Path, transform: Path) -> dict[str, float]:
    """Dice of the scan's tissues, carried label by label to the template, with the template's.

    The labels are those of the app for both transforms, so that they alone differ. A voxel of the
    template belongs to a tissue where its map is above half of the map's maximum.
    """
    import ants
    import numpy as np

    from models.segmentation.labels import indices

    maps = {name: ants.image_read(str(folder / f"template_{tissue}.nii.gz"))
            for name, tissue in TISSUES.items()}  # fmt: skip
    labels = ants.apply_transforms(
        next(iter(maps.values())),
        ants.image_read(str(folder / "dseg.nii.gz")),
        [str(transform)],
        interpolator="nearestNeighbor",
    ).numpy()
    dice = {}
    for name, tissue in TISSUES.items():
        found = np.isin(labels, indices(tissue=tissue))
        truth = maps[name].numpy() > 0.5 * maps[name].max()
        dice[name] = 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())
    return dice


def pin_to_one_core() -> None:
    """Stay on one of the cores that are ours, before any library starts its threads."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def peak_mib() -> float:
    """Peak resident memory of this process; unlike getrusage's, without what a parent had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Keep the wall time of what is done inside."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


# --- the tables ---


def report(results: dict[str, tuple[Measured, Measured]], peer_mm: float) -> str:
    """All tables as Markdown."""
    heads = list(results)
    apps, peers = zip(*results.values())
    first = [
        [name.replace("_", " "), *(f"{app['steps'].get(name, 0):.1f}" for app in apps)]
        for name in apps[0]["steps"]
    ]
    first += [
        ["**raw scan to brain age**", *(f"**{app['total']:.1f}**" for app in apps)],
        ["imports, once per worker", *(f"{app['imports']:.1f}" for app in apps)],
        ["networks and template, once per worker", *(f"{app['loading']:.1f}" for app in apps)],
        ["all of it, from the start of a process", *(f"{app['process']:.1f}" for app in apps)],
        ["**peak memory, MiB**", *(f"**{app['peak_mib']:.0f}**" for app in apps)],
        ["predicted age, years", *(_age(app["predicted_age"]) for app in apps)],
    ]
    second = [
        [name, *(f"{peer['steps'][name]:.1f}" for peer in peers)] for name in peers[0]["steps"]
    ]
    second += [
        ["**sum, N4 on the whole image**", *(f"**{peer['total']:.1f}**" for peer in peers)],
        ["**sum, N4 inside the mask**", *(f"**{p['total_as_antspynet']:.1f}**" for p in peers)],
        ["**peak memory, MiB**", *(f"**{peer['peak_mib']:.0f}**" for peer in peers)],
    ]
    third = []
    for head, app, peer in zip(heads, apps, peers):
        like = sum(app["steps"][name] for name in ("bias_field", "registration", "resampling"))
        for n4, total in (("whole image", "total"), ("inside the mask", "total_as_antspynet")):
            row = [head, n4, f"{peer[total] / app['total']:.1f}", f"{peer[total] / like:.1f}"]
            dice = [f"{each['overlap'][name]:.3f}" for name in TISSUES for each in (app, peer)]
            third.append([*row, *dice])
    return "\n".join([
        f"One core of {_processor()}; Python {platform.python_version()}.\n",
        "Seconds of this app:\n",
        table(["step", *heads], first),
        f"\nSeconds of the ANTsPy pipeline (template at {peer_mm:g} mm; brain mask given, no "
        "network, nothing written):\n",
        table(["step", *heads], second),
        "\nHow many times faster the app is: from raw scan to brain age, and in the steps that "
        "both do (bias field, registration, resampling). Overlap (Dice) of the scan's tissues "
        "with the template's after either registration:\n",
        table(["head", "N4 of the other", "all", "same steps",
               *(f"{name}, {who}" for name in TISSUES for who in ("app", "other"))], third),
    ])  # fmt: skip


def _age(age: float | None) -> str:
    return "no model embedded" if age is None else f"{age:.1f}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
