"""BrainRotViT (Jalal et al. 2025): a ViT over sagittal slices, a residual CNN over its features.

Stage 1 trains the encoder to tell age decade and sex from single slices. Stage 2 freezes it:
each slice becomes the mean of its tokens (or the class token), the slices of a brain a matrix
(slices x hidden), and a residual CNN with dense layers reads the age from that matrix and the sex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.coarse import BALANCE, POWER, SOLID, amounts, at_4_mm, smoothed, voxels_per_4_mm

CONFIGS: dict[str, dict[str, Any]] = {
    # As published: ViT-B/16, and a regressor of 50.37 million parameters.
    "base": {
        "encoder": {},
        "regressor": {},
    },
    # Small enough to be trained on a hundred scans in minutes, at 4 mm: 0.2 million.
    "small": {
        "encoder": {
            "image_size": (48, 42),
            "patch_size": 6,
            "hidden": 64,
            "layers": 2,
            "heads": 4,
            "image_channels": 1,
            "feature": "class",
        },
        "regressor": {
            "slices": 46,
            "hidden": 64,
            "kernels": ((3, 9), (3, 5), (2, 3)),
            "dense": (32, 16),
            "standardise": True,
        },
        "smoothing": 2,
        "centred": True,
        "mirror": True,
    },
    # As small, for modulated maps of three tissues at 4 mm.
    "tissue": {
        "encoder": {
            "image_size": (54, 48),
            "patch_size": 6,
            "hidden": 64,
            "layers": 2,
            "heads": 8,
            "image_channels": 3,
            "feature": "patches",
            "placed": True,
        },
        "regressor": {
            "slices": 46,
            "hidden": 64,
            "kernels": ((3, 9), (3, 5), (2, 3)),
            "dense": (64,),
            "standardise": True,
            "evened": False,
        },
        "smoothing": 2,
        "centred": True,
        "mirror": True,
        "solid": SOLID,
        "power": POWER,
        "balance": BALANCE,
        "regressors": 3,
    },
}


class Attention(nn.Module):
    """Multi-head self-attention; query and value are layers of their own, to be adapted."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, hidden) -> the same."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One layer of the encoder: attention and a perceptron, each normalised before and added."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.attention = Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, hidden) -> the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlacedPatches(nn.Module):
    """Embedding of patches by weights of their own for every place of a slice.

    What age does to a place is small beside what the place is: shared weights can hardly tell.
    """

    def __init__(self, channels: int, hidden: int, size: int, places: int) -> None:
        super().__init__()
        self.size = size
        entries = channels * size * size
        self.weight = nn.Parameter(torch.randn(places, entries, hidden) / entries**0.5)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, channels, height, width) -> (N, places, hidden)."""
        return torch.einsum("npi,pih->nph", self.parts(slices), self.weight)

    def parts(self, slices: Tensor) -> Tensor:
        """(N, channels, height, width) -> (N, places, entries)."""
        return functional.unfold(slices, self.size, stride=self.size).transpose(1, 2)

    @torch.no_grad()
    def start(self, directions: Tensor) -> None:
        """Let the mean over places be the sum of a slice along directions, (hidden, C, H, W)."""
        parts = self.parts(directions)
        self.weight.copy_(parts.permute(1, 2, 0) * parts.shape[1])


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) over single slices; ViT-B/16 by default.

    Parameters
    ----------
    image_size, patch_size
        Sides of a slice (one number for both, or two) and of a patch, in pixels.
    hidden, layers, heads
        Width, depth, and attention heads a layer.
    classes
        Age decade x sex, for the first stage of training.
    image_channels
        Of a slice; 3 repeats a grey one, as weights trained on photographs want it.
    feature
        What a slice becomes: the mean of all tokens, as published, or the class token. It alone is
        trained in the last layer of a shallow encoder, for classes are read from it. ``patches``:
        the mean of the patches' tokens before they are normalised, from which classes are read.
    placed
        Patches have weights of their own for every place, and layers start as if they were not
        there: a slice then starts as a linear map of its voxels.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        hidden: int = 768,
        layers: int = 12,
        heads: int = 12,
        classes: int = 20,
        image_channels: int = 3,
        feature: Literal["mean", "class", "patches"] = "mean",
        placed: bool = False,
    ) -> None:
        super().__init__()
        self.feature, self.placed = feature, placed
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.image_size, self.image_channels = (height, width), image_channels
        self.grid = height // patch_size, width // patch_size
        self.patches: nn.Module = (
            PlacedPatches(image_channels, hidden, patch_size, self.grid[0] * self.grid[1])
            if placed
            else nn.Conv2d(image_channels, hidden, patch_size, stride=patch_size)
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.position = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], hidden))
        self.blocks = nn.Sequential(*(Block(hidden, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, classes)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        with torch.no_grad():
            self.position[0, 1:] = waves(*self.grid, hidden)
            if placed:
                self._start_without_layers()

    def _start_without_layers(self) -> None:
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attention.out, block.mlp[2]):
                for value in layer.parameters():
                    nn.init.zeros_(value)

    def tokens(self, slices: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, 1 + patches, hidden), the class token first."""
        x = self.patches(slices.expand(-1, self.image_channels, -1, -1))
        if not self.placed:
            x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
        x = self.blocks(x)
        return x if self.feature == "patches" else self.norm(x)

    def features(self, slices: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, hidden)."""
        return self.read(self.tokens(slices))

    def read(self, tokens: Tensor) -> Tensor:
        """(N, 1 + patches, hidden) -> (N, hidden), the ``feature`` of each slice."""
        if self.feature == "patches":
            return tokens[:, 1:].mean(1)
        return tokens[:, 0] if self.feature == "class" else tokens.mean(1)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, classes), logits of age decade x sex."""
        tokens = self.tokens(slices)
        told = self.norm(self.read(tokens)) if self.feature == "patches" else tokens[:, 0]
        return self.head(told)


def waves(height: int, width: int, hidden: int) -> Tensor:
    """Sines and cosines of the places of patches, (height * width, hidden).

    Positions start from them (Beyer 2022, arXiv:2205.01580): beside the patches, small random ones
    would be noise for long. A quarter of the numbers each is sine and cosine of the row, sine and
    cosine of the column; what is left over is 0.
    """
    count = hidden // 4
    rates = 10_000 ** -(torch.arange(count) / max(1, count - 1))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = torch.zeros(height * width, hidden)
    angles = [place.reshape(-1, 1) * rates for place in (rows, columns)]
    parts = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    found[:, : 4 * count] = torch.cat(parts, 1)
    return found


class ResidualConv(nn.Module):
    """Convolution without padding, SiLU, pooling by 2 at stride 1, plus the input resized."""

    def __init__(self, wide_in: int, wide_out: int, kernel: Sequence[int]) -> None:
        super().__init__()
        height, width = kernel
        self.conv = nn.Conv2d(wide_in, wide_out, (height, width))
        self.project = nn.Conv2d(wide_in, wide_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H - kernel, W - kernel)."""
        y = functional.max_pool2d(functional.silu(self.conv(x)), 2, stride=1)
        return y + functional.interpolate(self.project(x), size=y.shape[2:], mode="nearest")


class Regressor(nn.Module):
    """From the features of a brain's slices, and the sex, to age.

    Parameters
    ----------
    slices, hidden
        Size of the feature matrix.
    channels, kernels
        Of the residual convolutions.
    dense
        Widths of the dense layers before the last, which also takes the sex.
    dropout
        Rate after each of those.
    standardise
        Take the mean over people from each entry of the matrix, and divide by their standard
        deviation: brains in a template share so much that those of two people hardly differ.
    evened
        Each entry is divided by its own deviation, so that all may say as much; else all by one.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        slices: int = 160,
        hidden: int = 768,
        channels: Sequence[int] = (8, 4, 1),
        kernels: Sequence[Sequence[int]] = ((10, 60), (5, 15), (2, 6)),
        dense: Sequence[int] = (512, 128),
        dropout: float = 0.3,
        standardise: bool = False,
        evened: bool = True,
    ) -> None:
        super().__init__()
        self.slices, self.evened = slices, evened
        self.standardise = standardise
        if standardise:
            self.register_buffer("mean", torch.zeros(slices, hidden))
            self.register_buffer("deviation", torch.ones(slices, hidden))
        self.convs = nn.Sequential(*map(ResidualConv, (1, *channels[:-1]), channels, kernels))
        height, width = (
            side - sum(kernel[axis] for kernel in kernels)
            for axis, side in enumerate((slices, hidden))
        )
        widths = (channels[-1] * height * width, *dense)
        self.dense = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Linear(wide_in, wide_out),
                    nn.LayerNorm(wide_out),
                    nn.SiLU(),
                    nn.Dropout(dropout),
                )
                for wide_in, wide_out in zip(widths, dense, strict=False)
            )
        )
        self.last = nn.Linear(dense[-1] + 1, 1)

    def forward(self, features: Tensor, sex: Tensor) -> Tensor:
        """(N, slices, hidden) and (N,), M 0 and F 1 -> (N,); one brain may meet several sexes."""
        if self.standardise:
            features = (features - self.mean) / self.deviation
        x = self.dense(self.convs(features[:, None]).flatten(1))
        x = x.expand(len(sex), -1)
        return self.last(torch.cat([x, sex[:, None].to(x.dtype)], 1)).squeeze(1)


class BrainRotViT(nn.Module):
    """Encoder and regressor as one network, as it predicts.

    Parameters
    ----------
    encoder, regressor
        Arguments of ``ViT`` and ``Regressor`` that differ from the published sizes.
    smoothing
        How often the image is first averaged over 3 x 3 x 3 voxels of 4 mm; 0: neither smoothed
        nor brought to 4 mm.
    centred
        Slices show how a brain differs from the mean of those it was trained on, which the buffers
        ``mean`` and ``deviation`` hold for every voxel: what age does to a place is little beside
        what it is.
    mirror
        In use, predict from the brain and from its mirror image, and average.
    solid, power
        Of ``models.coarse.amounts``, for modulated maps of tissue; slices have a channel of each.
    balance
        How much the maps of several tissues may say, by the variance of each.
    regressors
        That read the same features, from random starts of their own; the age is their mean.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        encoder: dict[str, Any],
        regressor: dict[str, Any],
        smoothing: int = 0,
        centred: bool = False,
        mirror: bool = False,
        solid: float = 0.0,
        power: float = 1.0,
        balance: Sequence[float] = (1.0,),
        regressors: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = ViT(**encoder)
        self.regressors = nn.ModuleList(Regressor(**regressor) for _ in range(regressors))
        self.smoothing, self.centred, self.mirror = smoothing, centred, mirror
        self.solid, self.power, self.balance = solid, power, tuple(balance)
        if centred:
            size = self._grid[0], len(balance), *self._grid[1:]
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("deviation", torch.ones(size))

    def slices(self, x: Tensor) -> Tensor:
        """Sagittal slices, as many and as large as the network wants them.

        (N, 1, [3,] X, Y, Z) -> (N, slices, maps, height, width); interpolated where they are not.
        """
        x = x.flatten(1, -4)
        if self.solid:
            x = amounts(x, self.solid, self.power)
        if self.smoothing:
            x = smoothed(at_4_mm(x), self.smoothing)
        if not self._fits(x):
            x = functional.interpolate(x, size=self._grid, mode="trilinear")
        x = x.transpose(1, 2)
        return (x - self.mean) / self.deviation if self.centred else x

    @property
    def _grid(self) -> tuple[int, int, int]:
        """Slices, height and width."""
        first = self.regressors[0]
        assert isinstance(first, Regressor)
        return first.slices, *self.encoder.image_size

    def _fits(self, x: Tensor) -> bool:
        return x.shape[-3:] == self._grid

    def encode(self, x: Tensor, slices_at_once: int = 32) -> Tensor:
        """The feature matrix of each brain, a few slices at a time to bound the memory.

        Parameters
        ----------
        x
            (N, 1, [3,] X, Y, Z): sagittal slices from left to right.

        Returns
        -------
        Tensor
            (N, slices, hidden).
        """
        return self._encoded(self.slices(x), slices_at_once)

    def _encoded(self, slices: Tensor, at_once: int = 32) -> Tensor:
        """(N, slices, maps, height, width) -> (N, slices, hidden)."""
        single = slices.flatten(0, 1)
        parts = [self.encoder.features(part) for part in single.split(at_once)]
        return torch.cat(parts).unflatten(0, (len(slices), -1))

    def near(self, image: Tensor) -> Callable[..., Tensor]:
        """The network, for images that differ from ``image`` in a box alone.

        Only the slices that the box touches are encoded again.

        Parameters
        ----------
        image
            (1, 1, X, Y, Z).

        Returns
        -------
        Callable
            From images, sexes and ``box``, whose first slice is of slices, to (N,).
        """
        if self.solid:  # a change anywhere changes the scale of all
            return lambda images, sex, *, box: self(images, sex)
        encoded = self.encode(image)
        voxels, slices = image.shape[2], encoded.shape[1]
        # so far reach the slices that are interpolated, and smoothed, from a voxel
        margin = 0 if self._fits(image) else 1 + -(-slices // voxels)
        if self.smoothing:
            margin += -(-self.smoothing * voxels_per_4_mm(image.shape[2:]) * slices // voxels)

        def network(images: Tensor, sex: Tensor, *, box: Sequence[slice]) -> Tensor:
            start, stop, _ = box[0].indices(voxels)
            first, last = start * slices // voxels, -(-stop * slices // voxels)
            touched = slice(max(0, first - margin), last + margin)
            features = encoded.expand(len(images), -1, -1).clone()
            features[:, touched] = self._encoded(self.slices(images)[:, touched])
            return self.regress(features, sex)

        return network

    def regress(self, features: Tensor, sex: Tensor) -> Tensor:
        """From what ``encode`` gives, (N, slices, hidden), and sexes (N,) to the output, (N,)."""
        found = self.told(features, sex).mean(0)
        if self.mirror and not self.training:  # the slices of a mirror image, from left to right
            found = (found + self.told(features.flip(1), sex).mean(0)) / 2
        return found

    def told(self, features: Tensor, sex: Tensor) -> Tensor:
        """What each regressor says, (regressors, N), of the same as ``regress`` takes."""
        return torch.stack([each(features, sex) for each in self.regressors])

    def forward(self, x: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, [3,] X, Y, Z) and (N,), M 0 and F 1 -> (N,), age in the card's units."""
        return self.regress(self.encode(x), sex)


def build(config: dict[str, Any]) -> BrainRotViT:
    """Make the network of a size.

    Parameters
    ----------
    config
        ``size`` ("base", "tissue" or "small", the default), and under ``encoder`` and
        ``regressor`` what is to differ from it; other arguments of ``BrainRotViT`` as they are.

    Raises
    ------
    ValueError
        Where there is no such size.
    """
    size = config.get("size", "small")
    if size not in CONFIGS:
        raise ValueError(f"BrainRotViT has the sizes {', '.join(CONFIGS)}, not '{size}'")
    known = CONFIGS[size]
    parts = {part: known[part] | config.get(part, {}) for part in ("encoder", "regressor")}
    rest = {name: value for name, value in (known | config).items()
            if name not in ("size", *parts)}  # fmt: skip
    return BrainRotViT(**parts, **rest)
