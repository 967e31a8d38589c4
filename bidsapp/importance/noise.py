"""Importance of every voxel, by the noise that it can bear (Bintsi et al. 2021).

The prediction model is frozen. A 3D U-Net looks at a brain and says for each place how strong a
noise may be added there; it is trained to allow as much as it can while the prediction stays.
Where little noise is borne, the prediction depends on what is there.

The paper has no public code and does not give the weight between its two aims. Here the noise has
a deviation of quietest * (loudest / quietest) ** B, in standard deviations of the brain's
intensities, with B in (0, 1): as in U-Noise (Koker et al. 2021), but in logarithms. The loss is

    mean((f(x + noise) - f(x)) ** 2) / tolerance ** 2  -  weight * mean of B over the brain

and the importance is 1 - B. The weight follows from a rule and not from taste (`RULE`).

How the first term changes with the strength of the noise at a place follows from Price's theorem
(1958): by the squared slope of f there, at the noisy image (its Gauss-Newton part). So every draw
of noise tells about every place. To differentiate the term itself through its noise, as U-Noise
does, tells of a place no more than one random number among a hundred thousand, and is ruled by
the shift that noise anywhere brings about in max pooling: tried on brains with a planted effect,
it found large ventricles and no cortex (docs/importance.md).

Convolutions do not know where in the brain they are. So what holds of a place of the template in
everybody has parameters of its own, the field, and the U-Net learns what is a person's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from bidsapp.importance.brain import Array, Brain
from models.prediction import BrainAgeModel

VARIANCE = 0.05
RULE = (
    "The weight is moved during training until the noise changes the predictions by the "
    "tolerance (root mean square), which is the noise that takes "
    f"{VARIANCE:.0%} of the variance of the cohort's predictions."
)
AROUND = 1.0
"""Voxels; Gaussian by which the tissue around a voxel is counted."""
SMALLEST_TOLERANCE = 0.1
"""Years; for cohorts about which the model says the same of everybody."""


@dataclass(frozen=True)
class Options:
    """How a noise model is fitted.

    Attributes
    ----------
    steps, batch
        Steps of the optimiser (Adam), and brains in each.
    channels
        Widths of the U-Net's levels.
    quietest, loudest
        Standard deviations of the noise for B = 0 and B = 1, in those of the brain's intensities;
        for maps of tissue, in what there is around a voxel.
    smoothness
        Standard deviation, in voxels, of the Gaussian by which the noise is smoothed.
    pace
        By how much the logarithm of the weight moves in a step, relative to that of the error.
    """

    steps: int = 200
    batch: int = 2
    learning_rate: float = 1e-2
    channels: tuple[int, ...] = (16, 32, 48)
    quietest: float = 0.01
    loudest: float = 5.0
    smoothness: float = 1.0
    pace: float = 0.05
    seed: int = 1


class Block(nn.Sequential):
    """Two 3x3x3 convolutions, each with group normalisation and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv3d(channels, outputs, 3, padding=1),
                nn.GroupNorm(8, outputs),
                nn.LeakyReLU(0.01),
            ]
        super().__init__(*layers)


FIELD_PACE = 8.0
"""How many times faster the field learns than the weights of the U-Net: it is no convolution's,
so that a step moves each of its places by itself."""


class NoiseUNet(nn.Module):
    """3D U-Net from a brain to B, how much noise each place bears.

    It works on blocks of 2 x 2 x 2 voxels and its answer is as coarse, interpolated linearly:
    an eighth of the work, and neighbours have much in common.

    Parameters
    ----------
    channels
        Widths of the levels, the finest first; multiples of 8.
    shape
        Of the images.
    maps
        Images of each brain.
    """

    def __init__(self, channels: Sequence[int], shape: Sequence[int], maps: int = 1) -> None:
        super().__init__()
        widths = [8 * maps, *channels]
        self.encoder = nn.ModuleList(Block(a, b) for a, b in zip(widths, widths[1:]))
        self.decoder = nn.ModuleList(
            Block(a + b, a) for a, b in zip(channels[-2::-1], channels[:0:-1])
        )
        self.head = nn.Conv3d(channels[0], 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.multiple = 2 ** len(channels)
        blocks = ((side + (-side) % self.multiple) // 2 for side in shape)
        self.field = nn.Parameter(torch.zeros(1, 1, *blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(N, maps, X, Y, Z), standardised, 0 outside of the brain -> (N, 1, X, Y, Z), 0 to 1."""
        shape = x.shape[2:]
        padding = [(-side) % self.multiple for side in shape]
        x = _fold(functional.pad(x, (0, padding[2], 0, padding[1], 0, padding[0])))
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(functional.max_pool3d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1]):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], 1))
        borne = torch.sigmoid(self.head(x) + FIELD_PACE * self.field)
        borne = functional.interpolate(borne, scale_factor=2.0, mode="trilinear")
        return borne[..., : shape[0], : shape[1], : shape[2]]


def _fold(x: Tensor) -> Tensor:
    """(N, maps, X, Y, Z) -> (N, 8 maps, X/2, Y/2, Z/2)."""
    x = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)  # (N, maps, X/2, Y/2, Z/2, 2, 2, 2)
    return x.flatten(5).movedim(-1, 2).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """A fitted U-Net, and what it was fitted to.

    Attributes
    ----------
    about
        JSON-able: ``model`` and ``weights_sha256`` of the prediction model, ``scans``, the
        options, ``weight``, ``tolerance`` and what was reached.
    """

    network: NoiseUNet
    about: dict[str, Any]

    @torch.no_grad()
    def importance(self, brain: Brain) -> Array:
        """1 - B, (X, Y, Z) in [0, 1]; 0 outside of the brain."""
        standard, mask, _ = _tensors(brain, next(self.network.parameters()).device)
        found = (1 - self.network(standard)) * mask
        return found[0, 0].cpu().numpy()

    def belongs(self, model: BrainAgeModel, cohort: str, options: Options) -> bool:
        """Whether a fit of this model to this cohort would give this noise model."""
        key = _key(model, self.about.get("scans", 0), cohort, options)
        return {name: self.about.get(name) for name in key} == key

    def to_bytes(self) -> bytes:
        """As a safetensors file, which holds ``about`` as well."""
        return safetensors.torch.save(
            {key: value.contiguous() for key, value in self.network.state_dict().items()},
            {"about": json.dumps(self.about)},
        )

    @classmethod
    def from_bytes(cls, content: bytes, device: str = "cpu") -> NoiseModel:
        """From what `to_bytes` made.

        Raises
        ------
        ValueError
            Where it was something else that made it.
        """
        tensors, metadata = _unpack(content)
        try:
            about = json.loads(metadata["about"])
            shape = [2 * side for side in tensors["field"].shape[2:]]
            maps = tensors["encoder.0.0.weight"].shape[1] // 8
            network = NoiseUNet(about["options"]["channels"], shape, maps)
            network.load_state_dict(tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"it holds no noise model ({error})") from None
        return cls(network.to(device).eval().requires_grad_(False), about)


def fit(
    model: BrainAgeModel,
    brains: Sequence[Brain],
    options: Options,
    *,
    cohort: str = "",
    checkpoint: bytes | None = None,
    keep: Callable[[bytes], None] = lambda _content: None,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _words: None,
) -> NoiseModel:
    """Fit a noise model to a frozen prediction model and a cohort.

    Parameters
    ----------
    brains
        At least two; one is asked for at a time, so they need not be in memory.
    cohort
        Names these brains, to tell a checkpoint of others.
    checkpoint
        What an earlier call handed to ``keep``; it goes on from there, to the same result. One
        of another model, cohort size or options is ignored.
    keep
        Called with a checkpoint now and then.
    progress
        Called with steps done, steps in all and words, after each step.
    """
    if len(brains) < 2:
        raise ValueError("a noise model is fitted to two scans at least")
    state = _Fit(model, brains, cohort, options)
    if checkpoint:
        state.resume(checkpoint)
    if not state.clean:
        state.clean = _clean_ages(model, brains, progress)
    every = max(1, options.steps // 20)
    while state.step < options.steps:
        state.advance()
        progress(state.step, options.steps, state.words())
        if state.step % every == 0:
            keep(state.to_bytes())
    return state.finished()


def _clean_ages(
    model: BrainAgeModel, brains: Sequence[Brain], progress: Callable[[int, int, str], None]
) -> list[float]:
    """What the model says of everybody, years."""
    found = []
    with torch.no_grad():
        for number, brain in enumerate(brains):
            with _fast(model):
                found.append(model.ages(model.tensor(brain.image), brain.sex).item())
            progress(0, 1, f"prediction {number + 1} of {len(brains)}")
    return found


@dataclass
class _Fit:
    """A fit under way: all that it needs to go on."""

    model: BrainAgeModel
    brains: Sequence[Brain]
    cohort: str
    options: Options
    step: int = 0
    log_weight: float = 0.0
    error: float = 1.0
    """Running mean of the squared change of prediction, over the squared tolerance."""
    quiet: float = 0.0
    """Running mean of B."""
    clean: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.options.seed)
        self.device = next(self.model.networks[0].parameters()).device
        *maps, x, y, z = self.brains[0].image.shape
        network = NoiseUNet(self.options.channels, (x, y, z), math.prod(maps))
        self.network = network.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.options.learning_rate)
        # To first order each place then takes its share, and the errors add up to one tolerance.
        self.log_weight = math.log(2 * self._range)

    @property
    def _range(self) -> float:
        return math.log(self.options.loudest / self.options.quietest)

    @property
    def tolerance(self) -> float:
        """Years, root mean square."""
        return max(SMALLEST_TOLERANCE, math.sqrt(VARIANCE) * float(np.std(self.clean)))

    def advance(self) -> None:
        """One step of the optimiser, and one of the weight."""
        options = self.options
        torch.manual_seed(options.seed * 100_003 + self.step)
        self.optimizer.zero_grad(set_to_none=True)
        errors, quiets = [], []
        for index in self._chosen():
            expected, quiet, error = self._terms(self.brains[index], self.clean[index])
            ((expected - math.exp(self.log_weight) * quiet) / options.batch).backward()
            errors.append(error)
            quiets.append(quiet.item())
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        slower = min(1.0, 2 * (1 - self.step / options.steps))  # in the second half, to settle
        for group in self.optimizer.param_groups:
            group["lr"] = slower * options.learning_rate
        self.optimizer.step()
        share = max(0.05, 1 / (self.step + 1))
        self.error += share * (float(np.mean(errors)) - self.error)
        self.quiet += share * (float(np.mean(quiets)) - self.quiet)
        move = -slower * options.pace * math.log(max(self.error, 1e-3))
        self.log_weight = min(max(self.log_weight + move, -5.0), 10.0)
        self.step += 1

    def _chosen(self) -> list[int]:
        """The brains of a step: every one in turn, each time in another order."""
        first, count = self.step * self.options.batch, len(self.brains)
        return [
            int(np.random.default_rng([self.options.seed, at // count]).permutation(count)[
                at % count
            ])
            for at in range(first, first + self.options.batch)
        ]  # fmt: skip

    def _terms(self, brain: Brain, clean: float) -> tuple[Tensor, Tensor, float]:
        """For one brain and one draw of noise, in squared tolerances where it is about years.

        Returns
        -------
        expected
            Squared change of the prediction as the slopes at the noisy image foretell it.
        quiet
            Mean of B over the brain.
        error
            Squared change as it was.
        """
        standard, mask, unit = _tensors(brain, self.device)
        borne = self.network(standard)
        strength = self.options.quietest * torch.exp(self._range * borne) * unit * mask
        noise = self._smoothed(torch.randn_like(strength)) * strength.detach()
        image = self.model.tensor(brain.image)
        noisy = (image + noise.view_as(image)).requires_grad_(True)
        with _fast(self.model):
            age = self.model.ages(noisy, brain.sex)
        (slope,) = torch.autograd.grad(age.sum(), noisy)
        spread = self._smoothed(strength * slope.float().view_as(strength)) / self.tolerance
        error = ((age.item() - clean) / self.tolerance) ** 2
        return spread.square().sum(), (borne * mask).sum() / mask.sum(), error

    def _smoothed(self, x: Tensor) -> Tensor:
        """Smoothed as the noise is, so that white noise keeps its deviation."""
        if not self.options.smoothness:
            return x
        return smooth(x, self.options.smoothness, unit_variance=True)

    def words(self) -> str:
        """How the fit is doing."""
        moved = self.tolerance * math.sqrt(self.error)
        return (
            f"prediction moves by {moved:.2f} of {self.tolerance:.2f} years, "
            f"noise {self.options.quietest * math.exp(self._range * self.quiet):.3f}"
        )

    def finished(self) -> NoiseModel:
        """The fitted model, with what was reached."""
        about = {
            **self.key,
            "rule": RULE,
            "weight": math.exp(self.log_weight),
            "tolerance_years": self.tolerance,
            "moved_years": self.tolerance * math.sqrt(self.error),
            "mean_borne": self.quiet,
        }
        return NoiseModel(self.network.eval().requires_grad_(False), about)

    @property
    def key(self) -> dict[str, Any]:
        """What the result depends on."""
        return _key(self.model, len(self.brains), self.cohort, self.options)

    # --- checkpoints; safetensors, since nothing is unpickled here ---

    def to_bytes(self) -> bytes:
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        numbers = {
            "key": self.key, "step": self.step, "log_weight": self.log_weight,
            "error": self.error, "quiet": self.quiet, "clean": self.clean,
        }  # fmt: skip
        return safetensors.torch.save(
            {key: value.contiguous() for key, value in tensors.items()},
            {"about": json.dumps(numbers)},
        )

    def resume(self, checkpoint: bytes) -> None:
        """Go on from a checkpoint; from the start where it belongs to something else."""
        try:
            tensors, metadata = _unpack(checkpoint)
            numbers = json.loads(metadata["about"])
            if numbers.pop("key") != self.key:
                return
        except (KeyError, ValueError):
            return
        self.network.load_state_dict(_below("network.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer.", tensors).items():
            number, name = key.split(".")
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for name, value in numbers.items():
            setattr(self, name, value)


def _key(model: BrainAgeModel, scans: int, cohort: str, options: Options) -> dict[str, Any]:
    """Plain values, as they come back from JSON."""
    chosen = json.loads(json.dumps(asdict(options)))
    return {
        "model": model.card.name,
        "weights_sha256": model.card.weights_sha256,
        "scans": scans,
        "cohort": cohort,
        "options": chosen,
    }


def smooth(x: Tensor, sigma: float, *, unit_variance: bool = False) -> Tensor:
    """Gaussian smoothing of (N, C, X, Y, Z); ``unit_variance`` keeps that of white noise."""
    whole, x = x.shape, x.flatten(0, 1)[:, None]
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    kernel = kernel / (kernel.square().sum().sqrt() if unit_variance else kernel.sum())
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [side // 2 for side in shape[2:]]
        x = functional.conv3d(x, kernel.view(shape), padding=padding)
    return x.view(whole)


def _tensors(brain: Brain, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A brain as the U-Net sees it, its mask, and what a noise of 1 is, (1, maps or 1, X, Y, Z).

    Of an image, noise of 1 is the deviation of its intensities. Of maps of tissue it is as much
    tissue as there is around a voxel: the same noise everywhere would be all there is at the rim.
    """
    images = brain.image.reshape(-1, *brain.mask.shape)
    inside = images[:, brain.mask]
    mean, unit = (each[:, None, None, None]
                  for each in (inside.mean(1), inside.std(1).clip(1e-6)))  # fmt: skip
    standard = np.where(brain.mask, (images - mean) / unit, 0)
    if len(images) > 1:
        unit = ndimage.gaussian_filter(images, AROUND, axes=(1, 2, 3))
    image, mask, unit = (
        torch.from_numpy(each.astype(np.float32))[None].to(device)
        for each in (standard, brain.mask[None], unit)
    )
    return image, mask, unit


def _fast(model: BrainAgeModel) -> AbstractContextManager[Any]:
    """bfloat16 where the processor computes in it."""
    device = next(model.networks[0].parameters()).device.type
    if device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return nullcontext()
    return torch.autocast(device, torch.bfloat16)


def _unpack(content: bytes) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"it is not a safetensors file ({error})") from None
    length = int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
