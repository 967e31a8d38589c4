"""What goes wrong with scans, done to sound ones on purpose and by degrees.

Each function takes a head (X, Y, Z; RAS) with its voxel sizes in mm, and a strength whose unit its
docstring names. What is random comes from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """A scan: ``data`` (X, Y, Z; RAS), ``affine`` to mm, and what is ``inside`` of the skull."""

    data: Array
    affine: NDArray[np.float64]
    inside: NDArray[np.bool_]

    @property
    def zooms(self) -> NDArray[np.float64]:
        """Voxel sizes, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def white(self) -> float:
        """About the intensity of white matter."""
        return float(np.percentile(self.data[self.inside], 85))

    @property
    def stripped(self) -> bool:
        """Whether all outside of the brain is zero, as of a scan that was stripped before."""
        return float((self.data[~self.inside] == 0).mean()) > 0.9

    def with_data(self, data: NDArray) -> Head:
        """Other intensities; what was stripped off stays away."""
        if self.stripped:
            data = np.where(self.data == 0, 0, data)
        return Head(np.asarray(data, np.float32), self.affine, self.inside)


def motion(head: Head, strength: float, random: np.random.Generator) -> Head:
    """The head lies elsewhere for parts of the acquisition: ghosts along the phase encoding.

    ``strength``: standard deviation of the displacements, mm. The phase encoding is front to back;
    the head is still while the middle of k-space is read.
    """
    lines = head.data.shape[1]
    moved = np.zeros((2, lines))
    for start in random.integers(0, lines, 8):
        moved[:, start : start + lines // 8] = random.normal(0, strength, (2, 1))
    still = abs(np.arange(lines) - lines // 2) < lines // 20
    moved[:, still] = 0
    shift_x, shift_y = moved[:, None, :, None]
    frequencies = [np.fft.fftfreq(n, zoom) for n, zoom in zip(head.data.shape, head.zooms)]
    k_x, k_y = map(np.fft.fftshift, frequencies[:2])
    phase = np.exp(-2j * np.pi * (k_x[:, None, None] * shift_x + k_y[None, :, None] * shift_y))
    spectrum = np.fft.fftshift(np.fft.fft2(head.data, axes=(0, 1)), axes=(0, 1)) * phase
    return head.with_data(abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(0, 1)), axes=(0, 1))))


def blur(head: Head, strength: float, random: np.random.Generator) -> Head:
    """The outer k-space fades. ``strength``: full width at half maximum of the blur, mm."""
    sigma = strength / 2.355 / head.zooms
    spectrum = ndimage.fourier_gaussian(np.fft.fftn(head.data), sigma)
    return head.with_data(abs(np.fft.ifftn(spectrum)))


def noise(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Rician noise. ``strength``: its standard deviation at 2 mm as a share of white matter."""
    deviation = strength * head.white * np.sqrt(8 / head.zooms.prod())
    real, imaginary = random.normal(0, deviation, (2, *head.data.shape))
    return head.with_data(np.hypot(head.data + real, imaginary))


def bias(head: Head, strength: float, random: np.random.Generator) -> Head:
    """A coil that sees one side more. ``strength``: brightest over darkest place of the brain."""
    towards = random.normal(size=3)
    along = _along(_mm_from_centre(head), towards / np.linalg.norm(towards) / 70)
    field = along + 0.5 * along**2
    low, high = np.percentile(field[head.inside], (1, 99))
    return head.with_data(head.data * strength ** ((field - high) / (high - low)).clip(-2, 1))


def orientation(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Wrong orientation labels: 1 front for back, 2 up for down, 3 front for up."""
    turn: dict[float, Callable[[NDArray], NDArray]] = {
        1: lambda a: a[:, ::-1],
        2: lambda a: a[:, :, ::-1],
        3: lambda a: a.swapaxes(1, 2),
    }
    data, inside = turn[strength](head.data), turn[strength](head.inside)
    zooms = head.zooms[[0, 2, 1]] if strength == 3 else head.zooms
    return Head(data, np.diag([*zooms, 1]) if strength == 3 else head.affine, inside)


def mirror(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Left for right in the header: a sound brain, mirrored."""
    return Head(head.data[::-1], head.affine, head.inside[::-1])


def cropped_vertex(head: Head, strength: float, random: np.random.Generator) -> Head:
    """The field of view ends below the vertex. ``strength``: mm of the brain that are cut off."""
    top = np.flatnonzero(head.inside.any((0, 1))).max()
    end = int(top + 1 - round(strength / head.zooms[2]))
    return Head(head.data[:, :, :end], head.affine, head.inside[:, :, :end])


def missing_slices(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Axial slices without signal. ``strength``: share of the brain's slices."""
    with_brain = np.flatnonzero(head.inside.any((0, 1)))
    lost = random.choice(with_brain, max(1, round(strength * with_brain.size)), replace=False)
    data = head.data.copy()
    data[:, :, lost] = 0
    return head.with_data(data)


def wrong_contrast(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Towards T2 weighting: fluid bright, white matter dark. ``strength``: 1 is all the way."""
    other = np.clip(1.4 * head.white - head.data, 0, None)
    mixed = (1 - strength) * head.data + strength * other
    return head.with_data(np.where(head.inside, mixed, head.data))


def ct(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Computed tomography in Hounsfield units: bright bone, a brain nearly without contrast."""
    near = ndimage.distance_transform_edt(~head.inside, sampling=head.zooms) < 12
    dark = head.data < 0.35 * head.white
    whole = ndimage.binary_fill_holes(head.data > 0.15 * head.white)
    brain = np.where(dark, 5, 40 - 10 * np.clip(head.data / head.white, 0, 1.2))
    values = np.select([head.inside, near & dark, whole], [brain, 900, -50], -1000)
    return head.with_data(values + random.normal(0, 4, values.shape))


def phantom(head: Head, strength: float, random: np.random.Generator) -> Head:
    """A bottle of water of 17 cm with darker balls in it, where the head was."""
    place = _mm_from_centre(head)
    data = 1000.0 * (_distance(place, np.zeros(3)) < 85)
    for centre in random.uniform(-45, 45, (12, 3)):
        data[_distance(place, centre) < 12] = 600
    real, imaginary = random.normal(0, 15, (2, *data.shape))
    return Head(np.hypot(data + real, imaginary).astype(np.float32), head.affine, head.inside)


def rotation(head: Head, strength: float, random: np.random.Generator) -> Head:
    """The head lies turned about any axis. ``strength``: degrees."""
    axis = random.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(strength)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix = np.diag(1 / head.zooms) @ turn @ np.diag(head.zooms)
    centre = np.array(ndimage.center_of_mass(head.inside))
    data = ndimage.affine_transform(head.data, matrix, centre - matrix @ centre, order=1)
    inside = ndimage.affine_transform(head.inside, matrix, centre - matrix @ centre, order=0)
    return Head(data, head.affine, inside)


def masked_away(head: Head, strength: float, random: np.random.Generator) -> Head:
    """All beyond a plane is zero: of the left, right, front or back. ``strength``: share lost."""
    towards = np.array([(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0)])[random.integers(4)]
    along = _along(_mm_from_centre(head), towards)
    lost = along > np.quantile(along[head.inside], 1 - strength)
    return head.with_data(np.where(lost, 0, head.data))


def clipped(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Saturated intensities. ``strength``: the highest one left, white matter being 1."""
    return head.with_data(np.minimum(head.data, strength * head.white))


def voxel_size(head: Head, strength: float, random: np.random.Generator) -> Head:
    """Slices that the header says are thicker. ``strength``: by this factor."""
    return Head(head.data, head.affine @ np.diag([1, 1, strength, 1]), head.inside)


Corruption = Callable[[Head, float, np.random.Generator], Head]

KINDS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "motion": (motion, (2, 5, 10)),
    "blur": (blur, (3, 5, 8)),
    "noise": (noise, (0.05, 0.1, 0.2)),
    "bias": (bias, (3, 6, 12)),
    "orientation": (orientation, (1, 2, 3)),
    "mirror": (mirror, (1,)),
    "cropped_vertex": (cropped_vertex, (10, 20, 35)),
    "missing_slices": (missing_slices, (0.05, 0.15, 0.3)),
    "wrong_contrast": (wrong_contrast, (0.4, 0.7, 1)),
    "ct": (ct, (1,)),
    "phantom": (phantom, (1,)),
    "rotation": (rotation, (20, 45, 90)),
    "masked_away": (masked_away, (0.15, 0.3, 0.5)),
    "clipped": (clipped, (1.0, 0.8, 0.65)),
    "voxel_size": (voxel_size, (1.15, 1.3, 1.6)),
}
"""By name: the function and its strengths, from slight to strong."""


def _mm_from_centre(head: Head) -> list[NDArray[np.float32]]:
    """Place of each voxel along the axes, mm from the centre of the brain; an open grid."""
    centre = ndimage.center_of_mass(head.inside)
    axes = [(np.arange(n, dtype=np.float32) - c) * np.float32(zoom)
            for n, c, zoom in zip(head.data.shape, centre, head.zooms)]  # fmt: skip
    return list(np.ix_(*axes))


def _along(place: list[NDArray[np.float32]], towards: NDArray) -> NDArray[np.float32]:
    """Coordinate of each voxel in a direction, (X, Y, Z)."""
    return sum(np.float32(t) * p for t, p in zip(towards, place))


def _distance(place: list[NDArray[np.float32]], point: NDArray) -> NDArray[np.float32]:
    """Distance of each voxel from a point, (X, Y, Z), mm."""
    return np.sqrt(sum((p - np.float32(c)) ** 2 for p, c in zip(place, point)))
