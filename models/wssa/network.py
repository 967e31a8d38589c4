"""Weight-shared spatial attention in a 3D CNN (Kancharla & Sinha 2024).

The paper gives the layers and "approximately 5.4 million" parameters; convolutions of kernel 2
with padding 1, each halved by pooling, end at one voxel, and so at 5,407,541 parameters plus
the attention's own. It does not give the kernel of the attention or the rates of dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.coarse import at_4_mm, smoothed, voxels_per_4_mm


class SpatialAttention(nn.Module):
    """Weigh every voxel by what its channels hold (Woo et al. 2018, carried to 3D).

    A = sigmoid(conv([max over channels, mean over channels])), and x becomes A * x.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> the same."""
        # max, not amax: its gradient is a scatter, a fifth less time per training step
        strongest, mean = x.max(1, keepdim=True).values, x.mean(1, keepdim=True)
        return x * torch.sigmoid(self.conv(torch.cat([strongest, mean], 1)))


class Standardise(nn.Module):
    """Take the mean over people from every feature, and divide by its deviation; no parameters.

    Aligned brains are so alike that their features differ by a hundredth of what they share, and
    training hardly leaves the mean age. Running figures serve in training as well as in use, so
    that nothing depends on who else is in a batch.
    """

    def __init__(self, features: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.variance: Tensor
        self.seen: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) -> the same."""
        x = x.float()
        if self.training:
            with torch.no_grad():
                self.seen += 1
                share = torch.clamp(1 / self.seen, min=self.momentum)
                self.mean.lerp_(x.mean(0), share)
                self.variance.lerp_((x - self.mean).square().mean(0), share)
        return (x - self.mean) / (self.variance + 1e-4 * self.variance.mean() + 1e-12).sqrt()


class WSSA(nn.Module):
    """3D CNN whose layers share one spatial attention module.

    Parameters
    ----------
    channels
        Of the convolutions.
    dense
        Widths of the dense layers before the last, which has one output.
    shared
        One attention module for all layers; False gives each its own (the paper's ablation).
    attention_kernel
        Odd. 3 by default: 7, as in two dimensions, doubles the time of a training step, and the
        deeper half of the layers is smaller than 7 voxels, so that it would read mostly padding.
    attention_after_pooling
        False: conv, attention, ReLU, pooling. True: conv, ReLU, pooling, attention, which the
        paper's text also says, at a third of the time.
    standardise
        Whether the features that the dense layers take are standardised (``Standardise``).
    mirror
        In use, predict from the image and from its mirror image, and average.
    dropout_conv, dropout_dense
        Rates after the last convolution and after the first dense layer.
    leak
        Slope below zero of what the dense layers answer; 0 is the paper's ReLU, by which a narrow
        layer can fall silent in training for everybody and for ever.
    normalise
        Batch normalisation after each convolution, which the paper does not have.
    coarse, smoothing
        Whether the network looks at 4 mm in place of 2, and how often the image is then smoothed
        by the mean of 3 x 3 x 3 voxels; seven layers end at one voxel there too.
    """

    def __init__(
        self,
        channels: Sequence[int] = (12, 16, 32, 64, 128, 512, 1024),
        dense: Sequence[int] = (512, 128, 64, 12),
        shared: bool = True,
        attention_kernel: int = 3,
        attention_after_pooling: bool = False,
        dropout_conv: float = 0.2,
        dropout_dense: float = 0.2,
        standardise: bool = False,
        mirror: bool = False,
        normalise: bool = False,
        coarse: bool = False,
        smoothing: int = 0,
        leak: float = 0.0,
    ) -> None:
        super().__init__()
        self.coarse, self.smoothing, self.leak = coarse, smoothing, leak
        self.channels = tuple(channels)
        self.attention_after_pooling = attention_after_pooling
        self.mirror = mirror
        self.reach = attention_kernel // 2
        self.convs = nn.ModuleList(
            _started(nn.Conv3d(wide_in, wide_out, kernel_size=2, padding=1), gain=2)
            for wide_in, wide_out in zip((1, *channels), channels, strict=False)
        )
        self.norms = nn.ModuleList(
            # slow: what is kept for use must not hang on the last few batches
            nn.BatchNorm3d(wide, momentum=0.02) if normalise else nn.Identity()
            for wide in channels
        )
        self.attention = nn.ModuleList(
            SpatialAttention(attention_kernel) for _ in (channels[:1] if shared else channels)
        )
        self.dense = nn.ModuleList(
            _started(nn.Linear(wide_in, wide_out), gain=2**0.5)
            for wide_in, wide_out in zip((channels[-1], *dense), (*dense, 1), strict=True)
        )
        self.standardise = Standardise(channels[-1]) if standardise else nn.Identity()
        self.dropout_conv = nn.Dropout(dropout_conv)
        self.dropout_dense = nn.Dropout(dropout_dense)

    def attended(self, x: Tensor) -> list[Tensor]:
        """The feature maps that leave the attention of every layer, first layer first.

        Each is computed from the one before, and ``regress`` goes on from the last: gradients
        of the prediction with respect to any of them (Grad-CAM) need no hooks.

        Parameters
        ----------
        x
            (N, 1, X, Y, Z), at most 128 voxels along an axis.
        """
        if self.coarse:
            x = smoothed(at_4_mm(x), self.smoothing)
        return self._onwards(self._layer(0, x))

    def _onwards(self, first: Tensor) -> list[Tensor]:
        """``attended``, from the map of the first layer."""
        maps = [first]
        for number in range(1, len(self.convs)):
            x = maps[-1] if self.attention_after_pooling else _pooled(maps[-1])
            maps.append(self._layer(number, x))
        return maps

    def places(self, shape: Sequence[int]) -> list[tuple[float, float]]:
        """Where the maps of ``attended`` lie: voxel j of a map at step * j + offset of the image.

        A convolution puts its voxel i half a voxel before the image's voxel i, and pooling puts
        that right again. The same for images of any ``shape``, unless they are made coarse.

        Returns
        -------
        list
            Step and offset, in voxels of the image, of each layer.
        """
        pooled = self.attention_after_pooling
        size = voxels_per_4_mm(shape) if self.coarse else 1
        steps = [size * 2.0 ** (layer + pooled) for layer in range(len(self.convs))]
        return [(step, (size - 1) / 2 - (0 if pooled else step / 2)) for step in steps]

    def _layer(self, number: int, x: Tensor) -> Tensor:
        """The map that leaves the attention of a layer."""
        attention = self.attention[number % len(self.attention)]
        x = self.norms[number](self.convs[number](x))
        return attention(_pooled(x) if self.attention_after_pooling else x)

    def features(self, x: Tensor) -> Tensor:
        """What the dense layers take, (N, 1024), before it is standardised."""
        return self._flat(self.attended(x)[-1])

    def regress(self, last: Tensor) -> Tensor:
        """From the last of ``attended`` to the output, (N,)."""
        x = self.dropout_conv(self.standardise(self._flat(last)))
        x = self.dropout_dense(self.activate(self.dense[0](x)))
        for layer in self.dense[1:-1]:
            x = self.activate(layer(x))
        return self.dense[-1](x).squeeze(1)

    def activate(self, x: Tensor) -> Tensor:
        """What a dense layer hands on."""
        return functional.leaky_relu(x, self.leak)

    def _flat(self, last: Tensor) -> Tensor:
        if not self.attention_after_pooling:
            last = _pooled(last)
        if last.shape[2:].numel() != 1:
            raise ValueError("WSSA takes images of at most 128 voxels along an axis")
        return last.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N,), age in the units of the card's output."""
        found = self.regress(self.attended(x)[-1])
        if self.mirror and not self.training:
            found = (found + self.regress(self.attended(x.flip(2))[-1])) / 2
        return found

    def near(self, image: Tensor) -> Callable[..., Tensor]:
        """The network, for images that differ from ``image`` in a box alone.

        Outside of the box the first layer, which is most of the work, is not computed again.

        Parameters
        ----------
        image
            (1, 1, X, Y, Z).

        Returns
        -------
        Callable
            From images (N, 1, X, Y, Z) and ``box``, three slices of X, Y, Z, to (N,).
        """
        if self.coarse:  # quick as it is
            return lambda images, *, box: self(images)
        flips = (False, True) if self.mirror and not self.training else (False,)
        firsts = [self._layer(0, image.flip(2) if flip else image) for flip in flips]

        def network(images: Tensor, *, box: Sequence[slice]) -> Tensor:
            found = []
            for flip, first in zip(flips, firsts, strict=True):
                x, side = (images.flip(2) if flip else images), box[0]
                if flip:
                    side = slice(images.shape[2] - side.stop, images.shape[2] - side.start)
                changed = self._changed(first, x, (side, *box[1:]))
                found.append(self.regress(self._onwards(changed)[-1]))
            return torch.stack(found).mean(0)

        return network

    def _changed(self, first: Tensor, x: Tensor, box: Sequence[slice]) -> Tensor:
        """The first layer's map of ``x``, which is ``first`` but for what a box brings with it."""
        step = 2 if self.attention_after_pooling else 1
        reach = self.reach
        crop, into, taken = list[slice](), list[slice](), list[slice]()
        for side, size, length in zip(box, x.shape[2:], first.shape[2:], strict=True):
            # voxel i of the convolution comes from voxels i - 1 and i
            low = max(0, side.start // step - reach)
            high = min(length, side.stop // step + 1 + reach)
            start = max(0, low - reach - 1) * step
            crop.append(slice(start, min(size, (high + reach + 1) * step)))
            into.append(slice(low, high))
            taken.append(slice(low - start // step, high - start // step))
        changed = first.expand(len(x), -1, -1, -1, -1).clone()
        local = self._layer(0, x[:, :, crop[0], crop[1], crop[2]])
        changed[:, :, into[0], into[1], into[2]] = local[:, :, taken[0], taken[1], taken[2]]
        return changed


def _pooled(x: Tensor) -> Tensor:
    # ReLU and max pooling commute; on the pooled map ReLU is an eighth of the work
    return functional.relu(functional.max_pool3d(x, 2))


def _started(layer: nn.Conv3d | nn.Linear, gain: float) -> nn.Module:
    """Draw the weights of a layer by He's rule (gain sqrt 2), stronger for convolutions.

    Torch's own start, halved by the attention in each of seven layers, makes the output a
    constant that training does not leave; with a gain of 2 signals neither die nor explode.
    """
    nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
    layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
    return layer


def build(config: dict[str, Any]) -> WSSA:
    """Make the network; ``config`` holds arguments of ``WSSA`` that differ from the paper's."""
    return WSSA(**config)
