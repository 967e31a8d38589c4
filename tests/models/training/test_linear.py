"""The linear map: what was planted in the images is found, and in the place where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.linear.network import LinearMap
from models.registry import load
from models.training.__main__ import main
from models.training.data import TrainingScan
from models.training.linear import fit

SHAPE = (12, 14, 12)
PLACE = (slice(1, 4), slice(4, 8), slice(4, 8))


@pytest.fixture
def scans() -> list[TrainingScan]:
    """60 noisy brains, in the left half of which a spot brightens by 1 % a year."""
    random = np.random.default_rng(4)
    found = []
    for number, age in enumerate(random.uniform(20, 80, 60)):
        image = random.normal(0.6, 0.05, SHAPE).astype(np.float32)
        image[PLACE] += (age - 50) / 100
        tensor = torch.from_numpy(image)
        found.append(TrainingScan(f"sub-{number}", "d", f"sub-{number}", age, "F", "", tensor,
                                  tensor + 0.01))  # fmt: skip
    return found


def targets(scans: list[TrainingScan]) -> np.ndarray:
    return np.array([(scan.age - 50) / 10 for scan in scans])


def test_finds_the_spot_and_the_age(scans: list[TrainingScan]) -> None:
    network, penalty = fit(scans[:40], targets(scans[:40]))
    assert 0.1 <= penalty <= 1
    images = torch.stack([scan.image for scan in scans[40:]])[:, None]
    with torch.inference_mode():
        found = network(images).numpy()
    assert np.abs(found - targets(scans[40:])).mean() < 0.2
    weight = network.weight.detach()
    inside = weight[PLACE].mean()
    assert inside > 3 * weight[4:8].abs().mean() and weight.abs().max() == pytest.approx(1)


def test_ages_are_not_drawn_to_the_mean(scans: list[TrainingScan]) -> None:
    """Noise shrinks ages; of those foretold, true ages are neither further apart nor closer."""
    grainy = [
        replace(scan, image=scan.image + 0.5 * torch.randn(SHAPE, generator=grain), stripped=None)
        for number, scan in enumerate(scans)
        for grain in (torch.Generator().manual_seed(number),)
    ]
    network, _ = fit(grainy[:40], targets(grainy[:40]), stretched=True)
    with torch.inference_mode():
        found = network(torch.stack([scan.image for scan in grainy[40:]])[:, None]).numpy()
    assert found.std() < targets(scans[40:]).std()
    assert np.polyfit(found, targets(scans[40:]), 1)[0] == pytest.approx(1, abs=0.2)


def test_voxels_that_vary_much_need_not_say_most(scans: list[TrainingScan]) -> None:
    """Where the rest of the brain varies ten times as much as the spot of age."""
    random = np.random.default_rng(5)
    loud = []
    for scan in scans:
        image = torch.from_numpy(random.normal(0, 1, SHAPE).astype(np.float32))
        image[:, :10] = scan.image[:, :10]
        loud.append(replace(scan, image=image, stripped=None))
    errors = []
    for evenness in (0.0, 0.75):
        network, _ = fit(loud[:40], targets(loud[:40]), evenness=evenness)
        with torch.inference_mode():
            found = network(torch.stack([scan.image for scan in loud[40:]])[:, None]).numpy()
        errors.append(np.abs(found - targets(scans[40:])).mean())
    assert errors[1] < 0.8 * errors[0]


def test_no_tissue_says_more_than_its_share(scans: list[TrainingScan]) -> None:
    """Three maps tell the age alike, of which one is a hundred times as strong."""
    maps = [
        replace(scan, image=torch.stack([100 * scan.image, scan.image, scan.image]), stripped=None)
        for scan in scans
    ]
    said = []
    for balance in ((), (1.0, 1.0, 0.25)):
        network, _ = fit(maps, targets(maps), balance=balance)
        prepared = network.prepared(torch.stack([scan.image for scan in maps])[:, None])
        parts = (prepared * network.weight).flatten(2).sum(2).detach() * network.gain
        said.append(parts.std(0))
    assert said[0][0] > 50 * said[0][1]
    assert said[1][0].item() == pytest.approx(said[1][1].item(), rel=0.05)
    assert 0.1 * said[1][0] < said[1][2] < 0.5 * said[1][0]


def test_amounts_are_raised_to_a_power(scans: list[TrainingScan]) -> None:
    root = LinearMap((2, 2, 2), smoothing=0, power=0.5)
    amounts = torch.tensor([-1.0, 0, 4, 9, 16, 25, 36, 49]).reshape(1, 1, 2, 2, 2)
    expected = torch.tensor([0.0, 0, 2, 3, 4, 5, 6, 7]).reshape(1, 2, 2, 2)
    torch.testing.assert_close(root.prepared(amounts), (expected + expected.flip(1)) / 2)
    network, _ = fit(scans, targets(scans), preparation={"power": 0.5})
    assert network.power == 0.5


def test_both_sides_count_alike(scans: list[TrainingScan]) -> None:
    network, _ = fit(scans, targets(scans))
    assert torch.equal(network.weight, network.weight.flip(0))
    image = scans[0].image[None, None]
    torch.testing.assert_close(network(image), network(image.flip(2)))


def test_stripped_maps_are_learnt_too(scans: list[TrainingScan]) -> None:
    """A strip that brightens everything moves the age of those who have learnt it by less."""
    strip = torch.full(SHAPE, 0.1)
    strip[PLACE] += 0.1
    moved = []
    for known in (True, False):
        seen = [replace(s, stripped=s.image + strip if known else None) for s in scans]
        network, _ = fit(seen, targets(scans))
        with torch.inference_mode():
            image = scans[0].image[None, None]
            moved.append(abs(float(network(image + strip) - network(image))))
    assert moved[0] < 0.5 * moved[1]


def test_takes_2_mm_and_4_mm() -> None:
    network = LinearMap((3, 4, 5), smoothing=0)
    network.weight.data += torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))
    coarse = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    by_hand = ((coarse[:, 0] + coarse[:, 0].flip(1)) / 2 * network.weight).sum((1, 2, 3))
    torch.testing.assert_close(network(coarse), by_hand)
    wide = LinearMap((34, 4, 5), smoothing=0)
    wide.weight.data += 1
    fine = torch.rand(1, 1, 68, 8, 10, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(wide(fine), fine.sum((1, 2, 3, 4)) / 8)


def test_command(make_derivatives: Callable[..., Path], tmp_path: Path) -> None:
    data = make_derivatives("one", [float(age) for age in np.linspace(20, 80, 9)])
    arguments = ["linear", "--data", str(data), "--out", str(tmp_path / "m"), "--folds", "3"]
    assert main(arguments) == 0
    model = load("linear", weights=tmp_path / "m")
    assert model.card.in_ensemble and len(model.networks) == 3
    assert model.card.training["people"] == 9
    first = (tmp_path / "m" / "weights.safetensors").read_bytes()
    assert main(arguments) == 0
    assert (tmp_path / "m" / "weights.safetensors").read_bytes() == first
    assert main([*arguments, "--whole"]) == 0
    assert len(load("linear", weights=tmp_path / "m").networks) == 1
