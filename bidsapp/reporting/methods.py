"""The methods text: what was done to the scans, said from their records, with its references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

REFERENCES: dict[str, str] = {
    "bids": "Gorgolewski KJ, Auer T, Calhoun VD, et al. (2016). The brain imaging data structure, "
    "a format for organizing and describing outputs of neuroimaging experiments. Scientific Data "
    "3:160044. https://doi.org/10.1038/sdata.2016.44",
    "bids_apps": "Gorgolewski KJ, Alfaro-Almagro F, Auer T, et al. (2017). BIDS apps: improving "
    "ease of use, accessibility, and reproducibility of neuroimaging data analysis methods. PLOS "
    "Computational Biology 13(3):e1005209. https://doi.org/10.1371/journal.pcbi.1005209",
    "pybids": "Yarkoni T, Markiewicz CJ, de la Vega A, et al. (2019). PyBIDS: Python tools for "
    "BIDS datasets. Journal of Open Source Software 4(40):1294. "
    "https://doi.org/10.21105/joss.01294",
    "nibabel": "Brett M, Markiewicz CJ, Hanke M, et al. NiBabel. "
    "https://doi.org/10.5281/zenodo.591597",
    "n4": "Tustison NJ, Avants BB, Cook PA, et al. (2010). N4ITK: improved N3 bias correction. "
    "IEEE Transactions on Medical Imaging 29(6):1310-1320. "
    "https://doi.org/10.1109/TMI.2010.2046908",
    "ants": "Avants BB, Tustison NJ, Song G, Cook PA, Klein A, Gee JC (2011). A reproducible "
    "evaluation of ANTs similarity metric performance in brain image registration. NeuroImage "
    "54(3):2033-2044. https://doi.org/10.1016/j.neuroimage.2010.09.025",
    "syn": "Avants BB, Epstein CL, Grossman M, Gee JC (2008). Symmetric diffeomorphic image "
    "registration with cross-correlation. Medical Image Analysis 12(1):26-41. "
    "https://doi.org/10.1016/j.media.2007.06.004",
    "vbm": "Ashburner J, Friston KJ (2000). Voxel-based morphometry: the methods. NeuroImage "
    "11(6):805-821. https://doi.org/10.1006/nimg.2000.0582",
    "icbm2009": "Fonov VS, Evans AC, McKinstry RC, Almli CR, Collins DL (2009). Unbiased "
    "nonlinear average age-appropriate brain templates from birth to adulthood. NeuroImage "
    "47(S1):S102. https://doi.org/10.1016/S1053-8119(09)70884-5",
    "mni6": "Evans AC, Janke AL, Collins DL, Baillet S (2012). Brain templates and atlases. "
    "NeuroImage 62(2):911-922. https://doi.org/10.1016/j.neuroimage.2012.01.024",
    "templateflow": "Ciric R, Thompson WH, Lorenz R, et al. (2022). TemplateFlow: FAIR-sharing of "
    "multi-scale, multi-species brain models. Nature Methods 19:1568-1571. "
    "https://doi.org/10.1038/s41592-022-01681-2",
    "nilearn": "Abraham A, Pedregosa F, Eickenberg M, et al. (2014). Machine learning for "
    "neuroimaging with scikit-learn. Frontiers in Neuroinformatics 8:14. "
    "https://doi.org/10.3389/fninf.2014.00014",
    "pytorch": "Paszke A, Gross S, Massa F, et al. (2019). PyTorch: an imperative style, "
    "high-performance deep learning library. Advances in Neural Information Processing Systems "
    "32:8024-8035.",
    "unet": "Cicek O, Abdulkadir A, Lienkamp SS, Brox T, Ronneberger O (2016). 3D U-Net: learning "
    "dense volumetric segmentation from sparse annotation. MICCAI 2016, LNCS 9901:424-432. "
    "https://doi.org/10.1007/978-3-319-46723-8_49",
    "wssa": "Kancharla VK, Sinha N (2024). MRI volume-based robust brain age estimation using "
    "weight-shared spatial attention in 3D CNNs. arXiv:2407.06686. "
    "https://doi.org/10.48550/arXiv.2407.06686",
    "brainrotvit": "Jalal W, Rahman MN, Rahman AH, Rahman MS (2025). BrainRotViT: "
    "transformer-ResNet hybrid for explainable modeling of brain aging from 3D sMRI. "
    "arXiv:2511.15188. https://doi.org/10.48550/arXiv.2511.15188",
    "sfcn": "Peng H, Gong W, Beckmann CF, Vedaldi A, Smith SM (2021). Accurate brain age "
    "prediction with lightweight deep neural networks. Medical Image Analysis 68:101871. "
    "https://doi.org/10.1016/j.media.2020.101871",
}

# What a record names -> what is cited for it.
_CITED = {
    r"(?i:\bn4)": "n4",
    r"(?i:\bants)": "ants",
    r"\bSyN\b": "syn",
    r"\bmodulated\b": "vbm",
    r"(?i:\bnibabel)": "nibabel",
    r"(?i:\bnilearn)": "nilearn",
    r"(?i:\bpybids)": "pybids",
    r"(?i:\b(py)?torch\b)": "pytorch",
    r"(?i:\bu-?net\b)|models\.segmentation": "unet",
    r"MNI152NLin2009": "icbm2009",
    r"MNI152NLin6": "mni6",
    r"(?i:\btemplateflow)": "templateflow",
}

_STEPS = {
    "image": "The T1-weighted image was checked and reoriented to RAS axes",
    "load": "The T1-weighted image was checked and reoriented to RAS axes",
    "segmentation": "The brain and its regions were segmented",
    "bias_field": "Intensity non-uniformity was corrected",
    "registration": "The brain was registered to the template",
    "model_registration": "For some models the brain was also registered to the template",
    "resampling": "The image was resampled to the grid of the model",
    "warp": "Tissue was warped to that of the template and modulated by the volume that "
    "the warp took",
    "intensity": "Intensities were scaled",
    "quality": "The quality of the image and of its preprocessing was measured",
}
_MAX_VARIANTS = 3
_MAX_VALUE = 60  # characters of a parameter; matrices and lists of numbers stay in the record

NOT_A_MEDICAL_DEVICE = (
    "This is research software, not a medical device: "
    "its results must not be used for diagnosis or treatment."
)


@dataclass(frozen=True)
class Methods:
    """A methods text with numbered references.

    A paragraph is a tuple of pieces: text, or the number of a reference cited at that place.
    """

    paragraphs: tuple[tuple[str | int, ...], ...]
    references: tuple[str, ...]
    """Reference number n is `references[n - 1]`; numbered in the order they are cited."""

    def markdown(self) -> str:
        """The text and its references as Markdown."""
        paragraphs = [
            "".join(f"[{piece}]" if isinstance(piece, int) else piece for piece in paragraph)
            for paragraph in self.paragraphs
        ]
        references = [f"{number}. {text}" for number, text in enumerate(self.references, 1)]
        return "\n\n".join([*paragraphs, "## References", "\n".join(references)]) + "\n"


def methods_text(
    records: Sequence[Record], cards: Mapping[str, Mapping[str, Any]], version: str
) -> Methods:
    """State what was run, from the records of the scans and the cards of the models.

    Parameters
    ----------
    records : sequence of records
        What `*_brainage.json` holds; read are `predictions`, `steps`, `software`, `age`. A step
        that was not the same for all scans is stated once for each way it was done.
    cards : mapping from model to card
        Model cards as dictionaries; "segmentation" may be among them. Without records, all of
        these models are described.
    version : str
        Version of this app.
    """
    paragraphs = [
        _introduction(records, version),
        " ".join(_step_sentences(records)),
        *_model_paragraphs(records, cards),
        _prediction_sentences(records),
        _software_sentence(records),
    ]
    sources = REFERENCES | {
        f"card:{name}": str(card["citation"])
        for name, card in cards.items()
        if card.get("citation")
    }
    return resolve([text for text in paragraphs if text], sources)


def citation_markdown(
    records: Sequence[Record], cards: Mapping[str, Mapping[str, Any]], version: str
) -> str:
    """The text of `logs/CITATION.md`: how to cite, and the methods text to paste and adapt."""
    text = methods_text(records, cards, version).markdown()
    head = "# Methods\n\nPlease cite the software, the models and the methods that you used."
    return f"{head} {NOT_A_MEDICAL_DEVICE}\n\n{text}"


# --- sentences; "[@key]" marks a citation ------------------------------------------------------


def _introduction(records: Sequence[Record], version: str) -> str:
    app = f"brainage {version}, a BIDS App [@bids_apps] for BIDS [@bids] data"
    if not records:
        return f"Brain age was predicted with {app}."
    scans = "one T1-weighted scan" if len(records) == 1 else f"{len(records)} T1-weighted scans"
    people = len({record.get("participant_id") for record in records})
    of_people = "one participant" if people == 1 else f"{people} participants"
    return f"Brain age was predicted from {scans} of {of_people} with {app}."


def _step_sentences(records: Sequence[Record]) -> list[str]:
    """One sentence per step in the order of the records; more where scans were treated apart."""
    variants: dict[str, dict[str, list[str]]] = {}
    for record in records:
        for step in record.get("steps") or ():
            sentences = variants.setdefault(step_name(step), {})
            stems = sentences.setdefault(_step_sentence(step), [])
            if stem_of(record) not in stems:
                stems.append(stem_of(record))
    said = []
    for name, sentences in variants.items():
        if len(sentences) > _MAX_VARIANTS:
            done = _STEPS.get(name, f"Step “{_spaced(name)}” was run")
            said.append(f"{done}, with parameters that are in the record of each scan.")
            continue
        for sentence, stems in sentences.items():
            of_all = len(stems) == len(records)
            said.append(sentence if of_all else f"{sentence[:-1]} [{_some(stems)}].")
    return said


def _step_sentence(step: Record) -> str:
    name = step_name(step)
    if step.get("skipped"):
        reason = step.get("reason") or (step["skipped"] if step["skipped"] is not True else "")
        return f"Step “{_spaced(name)}” was skipped{': ' if reason else ''}{reason}."
    done = _STEPS.get(name, f"Step “{_spaced(name)}” was run")
    template = str((step.get("template") or {}).get("name") or "")
    tool = tool_words(step)
    parameters = parameter_words(step.get("parameters") or {})
    said = [
        f"{done}{f' {template}' if template else ''}{_citations(template)}",
        f" with {tool}" if tool else "",
        _citations(f"{tool} {parameters}"),
        f" ({parameters})" if parameters else "",
        "; the scan had been stripped of its skull before" if step.get("already_stripped") else "",
    ]
    return f"{''.join(said)}."


def _model_paragraphs(
    records: Sequence[Record], cards: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    used: dict[str, Mapping[str, Any]] = {}
    for record in records:
        for name, prediction in (record.get("predictions") or {}).items():
            used.setdefault(name, prediction)
    names = [n for n in (used if records else cards) if n not in ("ensemble", "segmentation")]
    said = [_model_sentences(name, cards.get(name, {}), used.get(name, {})) for name in names]
    if card := cards.get("segmentation"):
        said.insert(0, _model_sentences("segmentation", card, {}, task="segmented the brain"))
    if "ensemble" in used:
        said.append(_ensemble_sentence(names, cards))
    return said


def _ensemble_sentence(names: Sequence[str], cards: Mapping[str, Mapping[str, Any]]) -> str:
    beside = [name for name in names if not cards.get(name, {}).get("in_ensemble", True)]
    if len(names) == 1:
        return "With one model, the ensemble equals that model."
    if not beside or len(beside) == len(names):
        return "The ensemble is the calibrated combination of these models."
    titles = " and ".join(str(cards[name].get("title") or name) for name in beside)
    return (
        "The ensemble is the calibrated combination of these models but for"
        f" {titles}, which serves for comparison."
    )


def _model_sentences(
    name: str, card: Mapping[str, Any], prediction: Record, task: str = "predicted the age"
) -> str:
    title = card.get("title") or name
    weights = prediction.get("weights_sha256") or card.get("weights_sha256")
    licence = prediction.get("license") or card.get("license")
    details = [
        f"version {card['version']}" if card.get("version") else "",
        f"weights SHA-256 {short_hash(weights)}" if weights else "",
        f"licence {licence}" if licence else "",
    ]
    inside = "; ".join(detail for detail in details if detail)
    family = card.get("architecture") or name
    key = f"card:{name}" if card.get("citation") else family
    cited = f" [@{key}]" if key in REFERENCES or key.startswith("card:") else ""
    said = [f"Model {title}{cited}{f' ({inside})' if inside else ''} {task}."]
    if contract := card.get("contract"):
        said.append(_contract_sentence(contract))
    if training := parameter_words(card.get("training") or {}):
        said.append(f"Training, as its card states: {training}.")
    if figures := parameter_words(card.get("figures") or {}):
        said.append(f"Accuracy, as its card states: {figures}.")
    return " ".join(said)


def _contract_sentence(contract: Record) -> str:
    template = str(contract.get("template") or "native space")
    said = [f"Its input is the image in {template}{_citations(template)}"]
    if volumes := contract.get("volumes"):
        said = [f"Its input is {len(volumes)} volumes ({', '.join(map(_spaced, volumes))})"]
    if tissues := contract.get("tissues"):
        listed = ", ".join(map(str, tissues))
        said = [f"Its input is modulated tissue ({listed}) in {template}{_citations(template)}"]
    if shape := contract.get("shape") or contract.get("grid"):
        said.append(f"{' x '.join(str(n) for n in shape)} voxels")
    if (freedom := contract.get("degrees_of_freedom")) is not None:
        said.append(f"{freedom} degrees of freedom")
    if intensity := contract.get("intensity"):
        said.append(f"intensity rule “{_spaced(str(intensity))}”")
    low, high = contract.get("ages") or (None, None)
    ages = f"; it was trained on people aged {low:g} to {high:g} years" if high else ""
    return f"{', '.join(said)}{ages}."


def _prediction_sentences(records: Sequence[Record]) -> str:
    predictions = [p for r in records for p in (r.get("predictions") or {}).values()]
    coverages = sorted({p["coverage"] for p in predictions if p.get("coverage") is not None})
    said = []
    if coverages:
        percent = " or ".join(f"{100 * c:g} %" for c in coverages)
        said.append(f"Intervals are meant to hold the age of {percent} of people like those the "
                    "models were calibrated on.")  # fmt: skip
    if any(p.get("brain_age_gap") is not None for p in predictions):
        said.append("The brain-age gap is the predicted minus the chronological age, here not "
                    "corrected for its dependence on age.")  # fmt: skip
    if any(p.get("sex_assumed") for p in predictions):
        said.append("Where a model takes sex and it was not known, the predictions for both sexes "
                    "were averaged.")  # fmt: skip
    return " ".join(said)


def _software_sentence(records: Sequence[Record]) -> str:
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in (record.get("software") or {}).items():
            versions.setdefault(str(name), set()).add(words(version))
    listed = [f"{n} {' / '.join(sorted(v))}{_citations(n)}" for n, v in versions.items()]
    return f"Software: {', '.join(listed)}." if listed else ""


# --- words shared with the page ----------------------------------------------------------------


def stem_of(record: Record) -> str:
    """The entities of a record's scan: "sub-01_ses-1_run-2"."""
    name = str(record.get("source") or "").rsplit("/", 1)[-1].split(".", 1)[0]
    stem = name.removesuffix("_T1w")
    entities = [record.get("participant_id"), record.get("session_id")]
    return stem or "_".join(str(entity) for entity in entities if entity)


def step_name(step: Record) -> str:
    """The name of a step record."""
    return str(step.get("name") or step.get("step") or "unnamed")


def tool_words(step: Record) -> str:
    """Tool and version of a step record; "" where it names none."""
    return " ".join(str(step[key]) for key in ("tool", "version") if step.get(key))


def short_hash(digest: object) -> str:
    """The first twelve digits of a hash."""
    return str(digest)[:12]


def words(value: object) -> str:
    """A value of a record as text: "not known" for null, "yes", "no", 4 significant digits."""
    if value is None or value != value:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(words(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return parameter_words(value) or "none"
    return str(value)


def parameter_words(parameters: Mapping[str, Any]) -> str:
    """Parameters in one line; long values are left to the record."""
    said = [(_spaced(key), words(value)) for key, value in parameters.items()]
    return "; ".join(f"{key} {value}" for key, value in said if len(value) <= _MAX_VALUE)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _some(stems: Sequence[str]) -> str:
    return ", ".join(stems) if len(stems) <= 5 else f"{len(stems)} scans, among them {stems[0]}"


def _citations(text: str) -> str:
    return "".join(f" [@{key}]" for pattern, key in _CITED.items() if re.search(pattern, text))


def resolve(paragraphs: Iterable[str], sources: Mapping[str, str]) -> Methods:
    """Number the citations in the order they occur."""
    numbers: dict[str, int] = {}

    def piece(text: str) -> str | int:
        key = text.removeprefix("[@").removesuffix("]")
        if not text.startswith("[@") or key not in sources:
            return text
        return numbers.setdefault(sources[key], len(numbers) + 1)

    marked = [re.split(r"(\[@[^\]]+\])", text) for text in paragraphs]
    pieces = tuple(tuple(piece(text) for text in parts if text) for parts in marked)
    return Methods(pieces, tuple(numbers))
