"""Brains of a chosen age: numerics only, arrays in and arrays out.

Two steps, kept apart. `grow_old` deforms the average brain so that its lateral ventricles grow
and its cortex thins by chosen factors. `acquire` then looks at such a brain as a scanner would:
another head, another position, a bias field, noise, another voxel size.

The deformation is a flow whose divergence is prescribed tissue by tissue, the idea of Karacali &
Davatzikos (2006) and Khanal et al. (2017) for simulated atrophy. What one tissue gains a neighbour
loses: the ventricles grow into the white matter around them, the sulci open where the cortex
shrinks. The average brain is blurred, and most of its pial voxels are mixtures of cortex and
fluid; what the flow leaves of the thinning is a shift of those mixtures towards fluid.

Arrays are (X, Y, Z) in RAS+ order; template space is ICBM 2009a symmetric at 1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize
from scipy.spatial.transform import Rotation

Array = NDArray[np.float32]

TEMPLATE_AGE = 25.0
"""Mean age, in years, of the people behind the ICBM 152 average brain."""

LIFESPAN_AGES = (20.0, 50.0, 80.0)
LIFESPAN_VOLUMES_ML = {"ventricles": (10.9, 19.8, 40.2), "cortex": (547.0, 468.0, 430.0)}
"""Medians of women at `LIFESPAN_AGES`, from the brain charts of Bethlehem et al. (2022)."""

COARSE_MM = 2  # the flow is smooth; computing it at 2 mm is an eighth of the work


@dataclass(frozen=True)
class Template:
    """An average brain without its skull, at 1 mm.

    Attributes
    ----------
    t1
        T1-weighted intensity, (X, Y, Z), 0 outside the brain.
    gray, white
        Tissue probabilities in [0, 1] on the same grid.
    affine
        4 x 4, voxel index to template RAS mm; voxel edges of 1 mm along the axes.
    """

    t1: Array
    gray: Array
    white: Array
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Ageing:
    """Volume of each region as a multiple of what it is in the template.

    Raises
    ------
    ValueError
        If a factor lies beyond what the deformation can bear without folding.
    """

    ventricles: float = 1.0
    cortex: float = 1.0

    def __post_init__(self) -> None:
        if not (0.5 <= self.ventricles <= 6 and 0.6 <= self.cortex <= 1.15):
            raise ValueError(
                "ventricles may change by a factor of 0.5 to 6 and cortex by 0.6 to 1.15, "
                f"not {self.ventricles:g} and {self.cortex:g}"
            )


@dataclass(frozen=True)
class Regions:
    """Tissue fractions in [0, 1] of the cropped template, averaged over blocks of `COARSE_MM`.

    `origin` is the template voxel at the corner of the first block. `csf` is the fluid outside
    the lateral ventricles.
    """

    ventricles: Array
    cortex: Array
    white: Array
    csf: Array
    origin: tuple[int, int, int]


@dataclass(frozen=True)
class Appearance:
    """How a head and its scan differ from the template; all zero is a plain resampling."""

    resolution: float = 1.0
    """Voxel edge in mm."""
    size: float = 1.0
    """Edge of the head as a multiple of the template's."""
    rotation: float = 0.0
    """Standard deviation of the head's rotation about each axis, in degrees."""
    translation: float = 0.0
    """Standard deviation of the head's offset along each axis, in mm."""
    scale: float = 0.0
    """Standard deviation of the logarithm of the head's size along each axis."""
    warp: float = 0.0
    """Standard deviation of a smooth displacement of the anatomy, in mm of the template."""
    bias: float = 0.0
    """Standard deviation of the logarithm of the bias field."""
    noise: float = 0.0
    """Standard deviation of the noise as a fraction of the 98th percentile of intensity."""


def lifespan_volume(region: str, age: float) -> float:
    """Median volume of a region in women of an age.

    Parameters
    ----------
    region
        ``"ventricles"`` or ``"cortex"``.
    age
        Years, 18 to 90.

    Returns
    -------
    Volume in ml: the parabola through the logarithms of the published medians.

    Raises
    ------
    ValueError
        If the age lies outside the years for which the curve may be believed.
    """
    if not 18 <= age <= 90:
        raise ValueError(f"lifespan curves reach from 18 to 90 years, not to {age:g}")
    curve = np.polyfit(LIFESPAN_AGES, np.log(LIFESPAN_VOLUMES_ML[region]), 2)
    return float(np.exp(np.polyval(curve, age)))


def ageing_at(age: float) -> Ageing:
    """The change from the template's age to `age` (years) that the lifespan curves ask for."""
    return Ageing(
        **{
            field.name: lifespan_volume(field.name, age)
            / lifespan_volume(field.name, TEMPLATE_AGE)
            for field in fields(Ageing)
        }
    )


def csf_fraction(template: Template) -> Array:
    """Fraction of each template voxel that is fluid: brain that is neither grey nor white."""
    fluid = np.clip(1 - template.gray - template.white, 0, 1)
    return np.where(template.t1 > 0, fluid, 0).astype(np.float32)


def cortex_fraction(template: Template) -> Array:
    """Fraction of each template voxel that is cortex of the cerebrum.

    The tissue maps do not tell cortex from other grey matter; in template space geometry does.
    """
    x, y, z = (
        np.arange(n, dtype=np.float32) + np.float32(offset)
        for n, offset in zip(template.t1.shape, template.affine[:3, 3], strict=True)
    )
    x, y, z = np.abs(x)[:, None, None], y[None, :, None], z[None, None, :]
    nuclei = (x / 34) ** 2 + ((y + 5) / 34) ** 2 + ((z - 5) / 24) ** 2 < 1
    cerebellum = (y < -35) & (z < -8 - 0.35 * x)
    brain_stem = (x < 18) & (y > -45) & (y < -8) & (z < -8)
    return np.where(nuclei | cerebellum | brain_stem, np.float32(0), template.gray)


def find_regions(template: Template, within: Array | None = None) -> Regions:
    """Find the regions that age, from the template's tissue maps alone.

    Parameters
    ----------
    template
        The average brain.
    within
        Template voxels, as fractions in [0, 1], outside of which no cortex ages; all may.

    Raises
    ------
    ValueError
        If the template is not an RAS+ image of 1 mm voxels, or holds no lateral ventricles.
    """
    if not np.allclose(template.affine[:3, :3], np.eye(3)):
        raise ValueError("the simulation needs a template of 1 mm voxels along the RAS axes")
    csf = csf_fraction(template)
    ventricles = csf * ndimage.binary_dilation(_ventricle_core(template, csf), iterations=2)

    inside = np.argwhere(template.t1 > 0)
    origin = np.maximum(inside.min(0) - 4, 0)
    blocks = (inside.max(0) + 5 - origin) // COARSE_MM

    def coarse(fine: Array) -> Array:
        box = np.zeros(blocks * COARSE_MM, np.float32)
        part = fine[tuple(slice(o, o + n) for o, n in zip(origin, box.shape, strict=True))]
        box[tuple(slice(n) for n in part.shape)] = part
        shape = [size for n in blocks for size in (n, COARSE_MM)]
        return box.reshape(shape).mean(axis=(1, 3, 5))

    return Regions(
        ventricles=coarse(ventricles),
        cortex=coarse(_inside(cortex_fraction(template), within)),
        white=coarse(template.white),
        csf=coarse(csf - ventricles),
        origin=(int(origin[0]), int(origin[1]), int(origin[2])),
    )


def _inside(cortex: Array, within: Array | None) -> Array:
    return cortex if within is None else cortex * within


def _ventricle_core(template: Template, csf: Array) -> NDArray[np.bool_]:
    # 18 mm under the surface the lateral ventricles are the one body of fluid that a seed in their
    # bodies reaches: cisterns and third ventricle are cut off by tissue.
    depth = ndimage.distance_transform_edt(np.pad(template.t1 > 0, 1))[1:-1, 1:-1, 1:-1]
    pieces, _ = ndimage.label((csf > 0.5) & (depth > 18))
    left, back, low = (np.array([6, -20, 14]) - template.affine[:3, 3]).round().astype(int)
    mirrored = round(-6 - template.affine[0, 3])
    found = {
        int(piece)
        for x in (slice(left, left + 14), slice(mirrored - 14, mirrored))
        for piece in np.unique(pieces[x, back : back + 30, low : low + 10])
    } - {0}
    if not found:
        raise ValueError("no lateral ventricles at their usual place in the template")
    return np.isin(pieces, list(found))


def flow(regions: Regions, ageing: Ageing, steps: int = 8) -> Array:
    """Displacement that changes the volume of ventricles and cortex by the factors asked for.

    Parameters
    ----------
    regions
        From `find_regions`.
    ageing
        The factors.
    steps
        Explicit Euler steps; each corrects the ventricles' growth for what is reached.

    Returns
    -------
    Array (3, X, Y, Z) on the coarse grid, in mm: the aged brain at p shows the template at
    p + displacement(p).
    """
    displacement = np.zeros((3, *regions.cortex.shape), np.float32)
    if ageing == Ageing():
        return displacement
    wanted = ageing.ventricles * regions.ventricles.sum()
    for left in range(steps, 0, -1):
        ventricles, cortex, white, csf = (
            _pull(region, displacement)
            for region in (regions.ventricles, regions.cortex, regions.white, regions.csf)
        )
        swell = ventricles + _compensate(ventricles, white, sigma_mm=12)
        # A map that is carried along gains the integral of map x divergence: voxels at the border
        # are mixtures, so the source must be stronger than the growth wanted.
        missing = np.log(wanted / ventricles.sum()) * ventricles.sum() / left
        swell *= missing / (ventricles * swell).sum()
        thin = np.log(ageing.cortex) / steps * cortex
        divergence = swell + thin + _compensate(thin, csf, sigma_mm=6)
        step = _velocity(divergence)
        displacement = np.stack([_pull(axis, -step) for axis in displacement]) - step
    return displacement


def _pull(image: Array, displacement: Array) -> Array:
    """`image` at every voxel plus displacement (mm), linearly, on the coarse grid."""
    at = np.indices(image.shape, np.float32) + displacement / COARSE_MM
    return ndimage.map_coordinates(image, at, order=1, mode="nearest", output=np.float32)


def _compensate(change: Array, absorber: Array, sigma_mm: float) -> Array:
    """The opposite of `change`, placed in the absorber nearby; both sum to zero."""

    def smooth(image: Array) -> Array:
        return ndimage.gaussian_filter(image, sigma_mm / COARSE_MM, mode="constant", truncate=3)

    return -absorber * smooth(change / np.maximum(smooth(absorber), 1e-3))


def _velocity(divergence: Array) -> Array:
    """The curl-free displacement (3, X, Y, Z) in mm whose divergence is given; Poisson by FFT."""
    shape = [fft.next_fast_len(n + 16, real=True) for n in divergence.shape]
    frequency = [2 * np.pi * np.fft.fftfreq(n, COARSE_MM) for n in shape]
    frequency[2] = np.abs(frequency[2][: shape[2] // 2 + 1])
    k = np.meshgrid(*(f.astype(np.float32) for f in frequency), indexing="ij", sparse=True)
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    square[0, 0, 0] = 1
    potential = fft.rfftn(divergence, shape) / square
    potential[0, 0, 0] = 0
    crop = tuple(slice(n) for n in divergence.shape)
    parts = [fft.irfftn(-1j * axis * potential, shape)[crop] for axis in k]
    return np.stack(parts).astype(np.float32, copy=False)


def grow_old(
    template: Template, regions: Regions, ageing: Ageing, within: Array | None = None
) -> Template:
    """The template with its ventricles and cortex changed by the factors of `ageing`.

    Parameters
    ----------
    template, regions
        The average brain, and what `find_regions` found in it.
    ageing
        The factors.
    within
        As for `find_regions`: only the cortex in there thins.

    Returns
    -------
    A template on the same grid. Where no change is asked for, the template itself.
    """
    if ageing == Ageing():
        return template
    at, box = _fine_coordinates(flow(regions, ageing), regions.origin, template.t1.shape)

    def moved(image: Array, order: int = 1) -> Array:
        whole = np.zeros_like(image)
        whole[box] = ndimage.map_coordinates(image, at, order=order, output=np.float32)
        return whole

    every, fluid = cortex_fraction(template), csf_fraction(template)
    cortex = _inside(every, within)
    wanted = ageing.cortex * float(cortex.sum())
    lost = _cortex_turned_fluid(moved(cortex), moved(fluid), wanted)
    contrast = np.median(template.t1[every > 0.9]) - np.median(template.t1[fluid > 0.9])
    # The spline rings at the cut edge of the brain: the mask, moved with it, is what counts.
    brain = moved((template.t1 > 0).astype(np.float32)) > 0.5
    t1 = moved(template.t1, order=3) - lost * contrast
    return Template(
        t1=np.where(brain, np.maximum(t1, 0), 0).astype(np.float32),
        gray=moved(template.gray) - lost,
        white=moved(template.white),
        affine=template.affine,
    )


def _cortex_turned_fluid(cortex: Array, fluid: Array, wanted: float) -> Array:
    """Cortex to take from each voxel so that `wanted` (voxels) of it are left.

    The odds of fluid in every mixed voxel are multiplied by one number, as they are when fluid
    expands and cortex shrinks by the same factors everywhere.
    """
    mixed = (cortex > 0) & (fluid > 0) & (fluid < 1)
    share, before = cortex[mixed] / (1 - fluid[mixed]), fluid[mixed]
    surplus = float(cortex.sum(dtype=np.float64)) - wanted

    def lost(log_odds: float) -> NDArray[np.floating]:
        odds = np.float32(np.exp(log_odds))
        return share * (odds * before / (1 + (odds - 1) * before) - before)

    log_odds = optimize.brentq(lambda s: lost(s).sum(dtype=np.float64) - surplus, -4, 4, xtol=1e-3)
    out: Array = np.zeros_like(cortex)
    out[mixed] = lost(log_odds)
    return out


def _fine_coordinates(
    displacement: Array, origin: tuple[int, int, int], shape: tuple[int, ...]
) -> tuple[Array, tuple[slice, ...]]:
    """Where each 1 mm voxel of a box comes from in the template (voxels), and that box."""
    box = tuple(
        slice(o, min(o + COARSE_MM * n, whole))
        for o, n, whole in zip(origin, displacement.shape[1:], shape, strict=True)
    )
    index = np.indices([s.stop - s.start for s in box], np.float32)
    inside = (index - (COARSE_MM - 1) / 2) / COARSE_MM
    shift = np.stack(
        [
            ndimage.map_coordinates(axis, inside, order=1, mode="nearest", output=np.float32)
            for axis in displacement
        ]
    )
    corner = np.array([s.start for s in box], np.float32).reshape(3, 1, 1, 1)
    return index + corner + shift, box


def acquire(
    brain: Template, appearance: Appearance, rng: np.random.Generator
) -> tuple[Array, NDArray[np.float64]]:
    """A scan of a brain: another head, held at another angle, through a scanner's imperfections.

    Parameters
    ----------
    brain
        The template or what `grow_old` made of it.
    appearance
        How far head and scan differ from the template.
    rng
        Source of every random number; the same state gives the same scan.

    Returns
    -------
    image
        (X, Y, Z), RAS+ axes, intensities of the template's scale, 0 outside the brain.
    affine
        4 x 4, voxel index to scanner RAS mm.
    """
    shape, affine = _field_of_view(brain, appearance)
    head = _random_head(appearance, rng)
    scanner_to_voxel = np.linalg.inv(head @ brain.affine) @ affine
    index = np.indices(shape, np.float32).reshape(3, -1)
    at = (scanner_to_voxel[:3, :3].astype(np.float32) @ index).reshape(3, *shape)
    at += scanner_to_voxel[:3, 3].astype(np.float32).reshape(3, 1, 1, 1)
    if appearance.warp:
        for axis in range(3):
            at[axis] += appearance.warp * _smooth_noise(shape, appearance.resolution, 16, rng)

    # A voxel is a mean over its volume: smooth to its width before sampling.
    width = appearance.resolution / appearance.size  # in mm of the template
    sigma = np.sqrt(max(width**2 - 1, 0)) / 2.355
    t1 = ndimage.gaussian_filter(brain.t1, sigma) if sigma else brain.t1
    inside = ndimage.map_coordinates(
        (brain.t1 > 0).astype(np.float32), at, order=1, output=np.float32
    )
    image = np.maximum(ndimage.map_coordinates(t1, at, order=3, output=np.float32), 0)

    image *= np.exp(appearance.bias * _smooth_noise(shape, appearance.resolution, 40, rng))
    spread = appearance.noise * np.percentile(brain.t1[brain.t1 > 0], 98)
    real, imaginary = rng.normal(0, 1, (2, *shape)).astype(np.float32) * np.float32(spread)
    return np.where(inside > 0.5, np.hypot(image + real, imaginary), 0).astype(np.float32), affine


def _field_of_view(
    brain: Template, appearance: Appearance
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    # 10 mm more on every side than the template, whose brain stem touches the lowest slice.
    resolution = appearance.resolution
    extent = appearance.size * np.array(brain.t1.shape) + 20
    x, y, z = (int(n) for n in np.ceil(extent / resolution))
    middle = appearance.size * (brain.affine[:3, 3] + (np.array(brain.t1.shape) - 1) / 2)
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = middle - resolution * (np.array([x, y, z]) - 1) / 2
    return (x, y, z), affine


def _random_head(appearance: Appearance, rng: np.random.Generator) -> NDArray[np.float64]:
    """4 x 4, template mm to scanner mm: a size of its own, then a position."""
    scales = appearance.size * np.exp(appearance.scale * rng.normal(size=3))
    angles = appearance.rotation * rng.normal(size=3)
    head = np.eye(4)
    head[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * scales
    head[:3, 3] = appearance.translation * rng.normal(size=3)
    return head


def _smooth_noise(
    shape: tuple[int, int, int], resolution: float, sigma_mm: float, rng: np.random.Generator
) -> Array:
    """Gaussian noise of unit deviation, smooth over `sigma_mm`, on a grid of `resolution` mm."""
    knot_mm = sigma_mm / 4
    knots = [int(np.ceil(n * resolution / knot_mm)) + 2 for n in shape]
    margin = 12  # three sigma in knots: the edge of the box then varies like its middle
    noise = rng.normal(size=[n + 2 * margin for n in knots])
    noise = ndimage.gaussian_filter(noise, 4)[margin:-margin, margin:-margin, margin:-margin]
    # White noise under a Gaussian of s knots keeps the variance 1 / (2 s sqrt(pi))^3.
    noise *= (2 * 4 * np.sqrt(np.pi)) ** 1.5
    at = np.indices(shape, np.float32) * np.float32(resolution / knot_mm)
    return ndimage.map_coordinates(noise.astype(np.float32), at, order=1, output=np.float32)
