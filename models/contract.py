"""What a model takes, what it says, and the card that tells both.

Standard library only, so that cards can be listed without waiting for torch.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from numbers import Integral, Real
from types import UnionType
from typing import Any, Self, get_args, get_origin

Affine = tuple[tuple[float, ...], ...]
DEGREES_OF_FREEDOM = (6, 7, 12)
"""Of a linear registration: rigid, similarity, affine."""
TISSUES = ("GM", "WM", "CSF")
"""Order of the maps of tissue; outer fluid and ventricles are one."""


class ModelError(ValueError):
    """A card, a weight file or an image that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class InputContract:
    """How an image must look before a model may see it.

    Attributes
    ----------
    template
        TemplateFlow name of the template the image is registered to.
    degrees_of_freedom
        Of the linear registration, one of ``DEGREES_OF_FREEDOM``.
    shape
        Voxels along the three axes of the model's grid.
    affine
        4 x 4, voxel indices of the grid -> template RAS coordinates in mm.
    skull_stripped
        Whether voxels outside the brain are 0.
    bias_corrected
        Whether the intensity bias field is removed.
    intensity
        Name of the intensity rule.
    ages
        Youngest and oldest age trained on, in years.
    needs_sex
        Whether the network takes the sex of the person beside the image.
    """

    template: str
    degrees_of_freedom: int
    shape: tuple[int, int, int]
    affine: Affine
    skull_stripped: bool
    bias_corrected: bool
    intensity: str
    ages: tuple[float, float]
    needs_sex: bool = False

    def __post_init__(self) -> None:
        shape = list(self.shape)
        affine = [[float(value) for value in row] for row in self.affine]
        if self.degrees_of_freedom not in DEGREES_OF_FREEDOM:
            raise ModelError(
                "contract.degrees_of_freedom must be 6 (rigid), 7 (similarity) or 12 (affine)"
            )
        if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
            raise ModelError("contract.shape must be three positive whole numbers")
        if [len(row) for row in affine] != [4] * 4 or affine[3] != [0, 0, 0, 1]:
            raise ModelError("contract.affine must be 4 x 4 with the last row 0 0 0 1")
        _set(self, "shape", tuple(shape))
        _set(self, "affine", tuple(map(tuple, affine)))
        _set(self, "ages", _age_range(self.ages))


@dataclass(frozen=True)
class VolumeContract:
    """Which volumes of a scan a model takes, in place of an image.

    Attributes
    ----------
    volumes
        Their names in the records of the participant level, in the order in which the network
        takes them, in ml.
    ages
        Youngest and oldest age trained on, in years.
    needs_sex
        Whether the network takes the sex of the person beside them.
    """

    volumes: tuple[str, ...]
    ages: tuple[float, float]
    needs_sex: bool = False

    def __post_init__(self) -> None:
        if not self.volumes or not all(isinstance(name, str) for name in self.volumes):
            raise ModelError("contract.volumes must be names of volumes")
        _set(self, "volumes", tuple(self.volumes))
        _set(self, "ages", _age_range(self.ages))

    @property
    def shape(self) -> tuple[int]:
        """Of what the network takes for one scan."""
        return (len(self.volumes),)

    def select(self, volumes: Mapping[str, float | None]) -> list[float]:
        """The volumes of a record in the network's order; nan where one was not measured."""
        found = [volumes.get(name) for name in self.volumes]
        return [float("nan") if value is None else value for value in found]


@dataclass(frozen=True)
class MorphometryContract:
    """Which modulated maps of tissue a model takes, in place of an image, at 4 mm.

    Attributes
    ----------
    template
        TemplateFlow name of the template to which brains are warped.
    tissues
        ``TISSUES``, in the order in which the network takes them.
    grid
        Voxels of a map along the three axes.
    ages
        Youngest and oldest age trained on, in years.
    needs_sex
        Whether the network takes the sex of the person beside them.
    """

    template: str
    tissues: tuple[str, ...]
    grid: tuple[int, int, int]
    ages: tuple[float, float]
    needs_sex: bool = False

    def __post_init__(self) -> None:
        if tuple(self.tissues) != TISSUES:
            raise ModelError(f"contract.tissues must be {', '.join(TISSUES)}")
        if len(self.grid) != 3 or not all(type(side) is int and side > 0 for side in self.grid):
            raise ModelError("contract.grid must be three positive whole numbers")
        _set(self, "tissues", tuple(self.tissues))
        _set(self, "grid", tuple(self.grid))
        _set(self, "ages", _age_range(self.ages))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of what the network takes for one scan."""
        return (len(self.tissues), *self.grid)


Contract = InputContract | VolumeContract | MorphometryContract
_TELLING = {"volumes": VolumeContract, "tissues": MorphometryContract}
"""Key by which the table of a contract tells its kind."""


@dataclass(frozen=True)
class Output:
    """From what the network says to years: age = offset + scale * network(image)."""

    offset: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Uncertainty:
    """How far predictions are from the truth, measured on people the model has not seen.

    Attributes
    ----------
    standard_deviation
        Of true minus predicted age, in years.
    interval
        Lower and upper quantile of true minus predicted age, in years, between which the
        share ``coverage`` of people lies.
    coverage
        That share.
    """

    standard_deviation: float
    interval: tuple[float, float]
    coverage: float = 0.9

    def __post_init__(self) -> None:
        interval = [float(bound) for bound in self.interval]
        if not self.standard_deviation > 0:
            raise ModelError("uncertainty.standard_deviation must be above 0 years")
        if len(interval) != 2 or not interval[0] < interval[1]:
            raise ModelError("uncertainty.interval must be a lower and an upper bound in years")
        if not 0 < self.coverage < 1:
            raise ModelError("uncertainty.coverage must lie between 0 and 1")
        _set(self, "interval", tuple(interval))


@dataclass(frozen=True)
class ModelCard:
    """Everything there is to know about a model beside its weights; a TOML file on disk.

    Attributes
    ----------
    name
        Lower-case letters and digits: it becomes part of BIDS file names.
    license
        SPDX name of the licence of the weights.
    weights_sha256
        Of the weight file that belongs to this card; empty where there is none yet.
    architecture
        The folder of ``models`` whose ``network.py`` builds the network; empty: ``name``.
    network
        Handed to that module's ``build``.
    in_ensemble
        Whether it has a vote in the ensemble, or stands beside it.
    source
        Where weights that are not embedded are published, and how to check them.
    training, figures
        How the weights were made and how well they do, as their maker wrote it.
    known_failures
        One sentence each.
    """

    name: str
    title: str
    version: str
    summary: str
    license: str
    citation: str
    contract: Contract
    uncertainty: Uncertainty
    output: Output = Output()
    weights_sha256: str = ""
    architecture: str = ""
    in_ensemble: bool = True
    known_failures: tuple[str, ...] = ()
    network: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set(self, "architecture", self.architecture or self.name)
        _set(self, "known_failures", tuple(self.known_failures))
        for key in ("name", "architecture"):
            if not re.fullmatch("[a-z][a-z0-9]*", getattr(self, key)):
                raise ModelError(f"the model's {key} must be lower-case letters and digits")
        if not re.fullmatch("([0-9a-f]{64})?", self.weights_sha256):
            raise ModelError("weights_sha256 must be 64 hexadecimal digits, or empty")

    @property
    def image_contract(self) -> InputContract:
        """The contract of the images it takes.

        Raises
        ------
        ModelError
            Where it takes something else in place of an image.
        """
        if isinstance(self.contract, InputContract):
            return self.contract
        what = "volumes" if isinstance(self.contract, VolumeContract) else "maps of tissue"
        raise ModelError(f"The model '{self.name}' takes {what}, and no image.")

    @classmethod
    def from_toml(cls, text: str, where: str = "the model card") -> Self:
        """Read a card.

        Parameters
        ----------
        text
            The TOML.
        where
            The name of the file, for messages.

        Raises
        ------
        ModelError
            Where a key is missing, unknown or has a value it cannot have.
        """
        try:
            table = tomllib.loads(text)
            contract = table.get("contract")
            keys = contract.keys() if isinstance(contract, dict) else ()
            takes = [kind for key, kind in _TELLING.items() if key in keys] or [InputContract]
            for key, kind in ({"contract": takes[0]} | _TABLES).items():
                if key in table:
                    table[key] = _build(kind, table[key], f"{key}.")
            return _build(cls, table, "")
        except (ModelError, TypeError, ValueError) as error:
            raise ModelError(f"{where} is not a valid model card: {error}.") from None

    def to_toml(self) -> str:
        """Write the card; ``from_toml`` reads it back to an equal one."""
        return to_toml(dataclasses.asdict(self))


@dataclass(frozen=True)
class Prediction:
    """What a model says about one scan.

    Attributes
    ----------
    predicted_age, standard_deviation
        Years.
    interval
        Lower and upper bound, in years, that hold the share ``coverage`` of people.
    within_training_ages
        Whether the predicted age, and the age where it is known, were trained on.
    sex_assumed
        Whether the model wanted the sex, did not get it, and averaged over both.
    """

    predicted_age: float
    standard_deviation: float
    interval: tuple[float, float]
    coverage: float
    within_training_ages: bool
    sex_assumed: bool


_TABLES: dict[str, type] = {
    "output": Output,
    "uncertainty": Uncertainty,
}


def _set(instance: object, name: str, value: object) -> None:
    """Normalise one field of a frozen dataclass."""
    object.__setattr__(instance, name, value)


def _age_range(ages: Sequence[float]) -> tuple[float, ...]:
    """Youngest and oldest age, checked."""
    found = tuple(float(age) for age in ages)
    if len(found) != 2 or not found[0] < found[1]:
        raise ModelError("contract.ages must be a younger and an older age in years")
    return found


def _build(kind: type, table: Any, prefix: str) -> Any:
    """Make a dataclass of a TOML table; name the first key that is missing or unknown."""
    if not isinstance(table, dict):
        raise ModelError(f"{prefix.rstrip('.')} must be a table")
    fields = {each.name: each for each in dataclasses.fields(kind)}
    for key in sorted(table.keys() - fields.keys()):
        raise ModelError(f"unknown key {prefix}{key}")
    for key, each in fields.items():
        if key in table:
            _check_type(prefix + key, table[key], each.type)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ModelError(f"the key {prefix}{key} is missing")
    return kind(**table)


def _check_type(key: str, value: object, kind: Any) -> None:
    """Refuse a value of the wrong kind; 1 may stand for 1.0, and TOML's lists are tuples here."""
    if isinstance(kind, UnionType):  # of tables, which are built by now
        kind = next((each for each in get_args(kind) if isinstance(value, each)), kind)
    kind = get_origin(kind) or kind
    if type(value) not in (kind, {float: int, tuple: list}.get(kind)):
        raise ModelError(f"{key} must be of type {kind.__name__}, not {type(value).__name__}")


def to_toml(table: Mapping[str, Any], _path: str = "") -> str:
    """Write a mapping as TOML: values first, then one table per mapping.

    None is left out, for TOML has no word for it. Mappings inside lists become inline tables.
    """
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(k)} = {_value(v)}\n" for k, v in plain.items() if v is not None]
    text = (f"\n[{_path}]\n" if _path else "") + "".join(lines)
    for key, value in table.items():
        if isinstance(value, Mapping):
            text += to_toml(value, f"{_path}.{_key(key)}" if _path else _key(key))
    return text


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: object) -> str:
    """One TOML value; numpy's numbers are numbers too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    raise TypeError(f"a model card cannot hold a value of type {type(value).__name__}")
