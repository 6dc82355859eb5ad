"""Configuration: one frozen dataclass per stage and objective, each with a fingerprint.

A fingerprint names the layer or model that a configuration makes. What cannot change a result
(device, worker counts) is not in a configuration.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rsseg.errors import InputError
from rsseg.grid import TILE_MULTIPLE

Proposals = Literal["sam", "superpixels", "none"]
Pooling = Literal["softmax", "mean"]
Consistent = Literal["plain", "refined"]
Jitter = Literal["bands", "colour"]
Optimiser = Literal["adamw", "sgd"]
Decay = Literal["poly", "cosine"]
Method = Literal["supervised", "semi"]
Purify = Literal["none", "vlm"]
Prompting = Literal["adaptive", "grid"]
Scores = Literal["softmax", "minmax"]
CrfEngine = Literal["torch", "pydensecrf"]


@dataclass(frozen=True)
class TileConfig:
    """How a raster is cut.

    Args:
        size: side of a tile in pixels, overlap included; a multiple of 16.
        overlap: share of the size by which neighbours overlap, 0 to 0.75.
    """

    size: int = 256
    overlap: float = 0.25


@dataclass(frozen=True)
class ClassifierConfig:
    """The image-level classifier whose class activation maps (CAM) seed the pseudo-labels.

    The defaults make a fine-grained CAM; ``strides = [16]``, ``hidden = 0`` and
    ``pooling = "mean"`` make the plain one of the papers (global average pooling).

    Args:
        backbone: ``efficientnet_lite0`` (weights come with the installation), ``resnet38d`` (the
            one of the papers), or any timm name, vision transformers included.
        weights: ImageNet weights: ``auto`` (those at hand, else none), ``none``, or a file.
        strides: strides of the backbone's levels that the CAM is made from; the finest is the
            size of a CAM cell in pixels.
        output_stride: 8 or 16 dilates the backbone from there on instead of halving its maps
            further; 0 leaves it as it is (ResNet38-d always has 8).
        frozen_blocks: levels of the backbone, from the image on, that do not learn; a level ends
            where the maps are halved (a vision transformer's with each of its blocks).
        freeze_bn: batch norm of the backbone keeps its pretrained statistics, scale and shift.
        hidden: channels of each level's hidden layer; 0 makes the CAM linear in the features.
        pooling: ``softmax`` (classes compete for each cell) or ``mean`` (global average).
        window: pixels the network should see at once; small tiles are taken in blocks.
        halo: pixels of context around each window's cores; a multiple of 16.
        epochs: passes over the tagged tiles; 0 = as many as make ``min_steps``.
        min_steps: optimiser steps at the least, when ``epochs`` is 0.
        batch_size: windows per optimiser step.
        optimiser: ``adamw`` or ``sgd``.
        momentum: SGD's momentum, and AdamW's of the gradient (its first beta).
        schedule: how the learning rate falls after its warm-up: ``poly``, (1 - s/S)^0.9 at step s
            of S, or ``cosine``.
        warm_up: share of the steps in which the learning rate rises to its peak; 0 starts there.
        lr: peak learning rate of the new layers; the backbone gets ``backbone_lr_factor`` of it.
        backbone_lr_factor: share of ``lr`` for the pretrained layers.
        weight_decay: of convolutions; biases and batch norm have none.
        dropout: share of feature channels dropped in training.
        jitter: ``bands`` (brightness and contrast, a little per band) or ``colour`` (the paper's
            brightness, contrast, saturation and hue of an 8-bit view; imagery of three bands).
        affinity: refine the CAM by the affinity of its cells, which is learnt (SAN eq. 2-4); needs
            ``cross``, or ``consistency`` on the refined maps, to learn from.
        affinity_strides: strides of further levels, from which the affinity is then learnt instead
            of those of the CAM (``[8, 8]`` with ResNet38-d are the ones of PSA and SEAM).
        consistency: weight of the difference between the CAMs of two views of a window (SAN
            eq. 5). This or ``cross`` above 0 trains two branches, at twice the time.
        cross: weight of SEAM's cross term: the refined CAM of one view against the plain CAM of
            the other; needs ``affinity``.
        consistency_on: ``plain`` CAMs, which teaches the backbone, or ``refined`` ones (the paper's
            words), which teaches the affinity alone and can make its maps constant.
        view_scales: sizes at which the second branch may see the window, besides quarter turns and
            mirroring.
        seed: of weights, order and augmentation.
    """

    backbone: str = "efficientnet_lite0"
    weights: str = "auto"
    strides: tuple[int, ...] = (8, 16)
    output_stride: int = 0
    frozen_blocks: int = 0
    freeze_bn: bool = False
    hidden: int = 64
    pooling: Pooling = "softmax"
    window: int = 192
    halo: int = 32
    epochs: int = 0
    min_steps: int = 400
    batch_size: int = 4
    optimiser: Optimiser = "adamw"
    momentum: float = 0.9
    schedule: Decay = "poly"
    warm_up: float = 0.05
    lr: float = 2e-3
    backbone_lr_factor: float = 0.3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    jitter: Jitter = "bands"
    affinity: bool = False
    affinity_strides: tuple[int, ...] = ()
    consistency: float = 0.0
    cross: float = 0.0
    consistency_on: Consistent = "plain"
    view_scales: tuple[float, ...] = (0.5, 1.0)
    seed: int = 0

    @property
    def cell(self) -> int:
        """Side of a CAM cell in pixels."""
        return min(self.strides)

    @property
    def two_branches(self) -> bool:
        """Whether a second view of every window is looked at in training."""
        return self.consistency > 0 or self.cross > 0


@dataclass(frozen=True)
class CamConfig:
    """Class activation maps at inference (scales and flips as in PSA, Ahn and Kwak 2018).

    Args:
        scores: how CAMs become scores: ``softmax`` (each class's share of a cell, for classifiers
            whose classes compete) or ``minmax`` (positive parts, each class stretched to [0, 1] in
            the window, as in the papers).
        scales: input scales whose CAMs are averaged; the papers' are 0.5, 1, 1.5 and 2.
        flips: also the horizontally flipped image.
        refined: take the CAMs refined by affinity, where the classifier has learnt one and scores
            are by ``minmax``.
        background_power: exponent of the background score (1 - max CAM)^power, where the classes
            have a background and scores are by ``minmax`` (SAN eq. 9 applied to pixels).
    """

    scores: Scores = "softmax"
    scales: tuple[float, ...] = (1.0,)
    flips: bool = True
    refined: bool = True
    background_power: float = 2.0


@dataclass(frozen=True)
class CrfConfig:
    """Dense CRF (Krähenbühl and Koltun 2011).

    Args:
        iterations: mean-field steps; 0 leaves the CAM as it is.
        gaussian_sxy: standard deviation of the smoothness kernel, pixels.
        gaussian_compat: weight of the smoothness kernel.
        bilateral_sxy: spatial standard deviation of the appearance kernel, pixels.
        bilateral_srgb: colour standard deviation of the appearance kernel, 8-bit levels.
        bilateral_compat: weight of the appearance kernel.
        engine: ``torch`` (on the device of the networks) or ``pydensecrf``, the reference on the
            CPU, of the extra ``rsseg[crf]``; they agree up to rounding.
    """

    iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 10.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 4.0
    engine: CrfEngine = "torch"


@dataclass(frozen=True)
class ProposalConfig:
    """Class-agnostic regions from Segment Anything (SAN §3.3.1) or superpixels.

    Args:
        proposals: ``none`` (the CRF alone makes the labels), ``sam`` or ``superpixels``.
        window: pixels SAM should see at once, context included; small tiles are taken in blocks.
        halo: pixels of context around each window's cores, in which masks of neighbouring windows
            are recognised as one object; a multiple of 16.
        join: IoU in the pixels that two windows share from which their masks are one object.
        prompting: ``adaptive`` (points where no mask is yet) or ``grid`` (all of them).
        points_per_side: points of the grid per side of a window; adaptive prompting has none.
        max_points: most points for a window under adaptive prompting; the boxes by which nearly
            good masks are asked for again come on top.
        min_area: smaller masks are dropped, pixels.
        score: least predicted IoU of part masks.
        whole_score: least predicted IoU of whole-object masks.
        stability: least stability score.
        nms: box IoU from which the lesser of two masks is dropped.
        prefer_whole: whether a whole counts as more than any of its parts there.
        max_share: largest share of a window that a mask may cover; SAM takes whole towns for one.
        overlap: share of a mask that coarser masks may cover already.
        superpixel_scale: larger makes larger superpixels (Felzenszwalb and Huttenlocher).
        superpixel_min_area: smaller superpixels join a neighbour, pixels.
    """

    proposals: Proposals = "none"
    window: int = 512
    halo: int = 64
    join: float = 0.5
    prompting: Prompting = "adaptive"
    points_per_side: int = 32
    max_points: int = 384
    min_area: int = 100
    max_share: float = 0.5
    score: float = 0.86
    whole_score: float = 0.76
    stability: float = 0.92
    nms: float = 0.7
    prefer_whole: bool = True
    overlap: float = 0.3
    superpixel_scale: float = 60.0
    superpixel_min_area: int = 64


@dataclass(frozen=True)
class LabelConfig:
    """How CRF posteriors become labels (SAN §3.3.2, §3.3.3).

    Args:
        background_power: alpha of eq. 9, where the classes have a background.
        min_confidence: pixels whose CRF posterior is lower and that no proposal covers stay
            unlabelled (255), so that the segmenter does not learn from them.
        stretch: whether the segments' scores are stretched by minimum and maximum over the
            segments of a window (eq. 8, 9); else their mean posterior decides.
        purity: least score of a segment's best class; other segments are left to the CRF.
    """

    background_power: float = 1.0
    stretch: bool = False
    purity: float = 0.8
    min_confidence: float = 0.0


@dataclass(frozen=True)
class VlmConfig:
    """What a vision-language model is asked about (SemiEarth §III-C).

    Args:
        window: pixels that the model sees at once, context included; small tiles are taken in
            blocks.
        halo: pixels of context around each window's cores; a multiple of 16.
        side: pixels that windows are enlarged to a side for the model, for it sees in patches;
            a multiple of 224, which all models of Qwen take as it is.
        max_tokens: longest answer, in tokens.
    """

    window: int = 512
    halo: int = 64
    side: int = 896
    max_tokens: int = 2048


@dataclass(frozen=True)
class TrainConfig:
    """The segmenter.

    Args:
        arch: ``deeplabv3plus``, another architecture of segmentation-models-pytorch, or ``tiny``
            (five convolutions; sees 17 pixels).
        encoder: ``efficientnet_lite0``, ``resnet50`` … or any timm name after ``tu-``.
        weights: ImageNet weights: ``auto``, ``none``, or a file.
        window: side of the training crops and of the prediction windows, pixels; multiple of 32.
        overlap: share of the window by which prediction windows overlap.
        epochs: passes over the labelled tiles, or with few labels over all tiles outside
            validation; 0 = as many as make ``min_steps``.
        min_steps: optimiser steps at the least, when ``epochs`` is 0.
        batch_size: crops per optimiser step, at least 2 (batch norm); as many unlabelled ones come
            on top.
        lr: AdamW's peak learning rate; the encoder gets ``encoder_lr_factor`` of it.
        encoder_lr_factor: share of ``lr`` for the pretrained encoder.
        weight_decay: AdamW's weight decay.
        seed: of weights, order and augmentation.
    """

    arch: str = "deeplabv3plus"
    encoder: str = "efficientnet_lite0"
    weights: str = "auto"
    window: int = 256
    overlap: float = 0.25
    epochs: int = 0
    min_steps: int = 600
    batch_size: int = 8
    lr: float = 1e-3
    encoder_lr_factor: float = 0.3
    weight_decay: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class SemiConfig:
    """Few labels: ``rsseg train --labelled`` and ``--method semi`` (SemiEarth, after UniMatch V2).

    A student learns from the labels and from those that its teacher, a moving average of itself,
    gives to the unlabelled tiles.

    Args:
        resize: smallest and largest scale at which training crops are taken, labelled or not.
        ema: greatest share of itself that the teacher keeps in a step.
        gate: confidence from which the student learns from a label of the teacher's.
        unlabelled_weight: weight w of the unlabelled loss, (L + w U) / (1 + w); 0 leaves the
            unlabelled tiles out, but for the averaging.
        tau_conf: confidence of the teacher below which ``--purify vlm`` hears the vision-language
            model.
        literal: purified labels count fully from ``tau_conf`` on, else not, as in the paper; else
            they count by their confidence.
    """

    resize: tuple[float, ...] = (0.5, 2.0)
    ema: float = 0.996
    gate: float = 0.95
    unlabelled_weight: float = 1.0
    tau_conf: float = 0.7
    literal: bool = False


Config = (
    TileConfig
    | ClassifierConfig
    | CamConfig
    | CrfConfig
    | ProposalConfig
    | LabelConfig
    | VlmConfig
    | TrainConfig
    | SemiConfig
)
ConfigT = TypeVar("ConfigT", bound=Config)


_RANGES: dict[str, tuple[float, float]] = {
    "lr": (1e-12, 10),
    "backbone_lr_factor": (0, 1),
    "encoder_lr_factor": (0, 1),
    "weight_decay": (0, 10),
    "dropout": (0, 0.99),
    "momentum": (0, 0.999),
    "warm_up": (0, 1),
    "consistency": (0, 1000),
    "cross": (0, 1000),
    "view_scales": (0.1, 2),
    "epochs": (0, math.inf),
    "min_steps": (1, math.inf),
    "batch_size": (2, math.inf),
    "seed": (0, 2**31),
    "halo": (0, 4096),
    "window": (32, 8192),
    "side": (224, 8192),
    "max_tokens": (1, math.inf),
    "hidden": (0, 4096),
    "strides": (1, TILE_MULTIPLE),
    "affinity_strides": (1, 32),
    "output_stride": (0, 16),
    "frozen_blocks": (0, 1000),
    "scales": (0.1, 10),
    "background_power": (0.01, 100),
    "iterations": (0, 1000),
    "gaussian_sxy": (0.1, 1000),
    "gaussian_compat": (0, 1000),
    "bilateral_sxy": (0.5, 1000),
    "bilateral_srgb": (0.5, 1000),
    "bilateral_compat": (0, 1000),
    "points_per_side": (1, 256),
    "max_points": (1, math.inf),
    "min_area": (0, math.inf),
    "superpixel_scale": (1, math.inf),
    "superpixel_min_area": (1, math.inf),
    **dict.fromkeys(("max_share", "score", "whole_score", "stability", "nms", "join"), (0, 1)),
    **dict.fromkeys(("min_confidence", "purity", "gate"), (0, 1)),
    "resize": (0.25, 4),
    "ema": (0, 0.9999),
    "unlabelled_weight": (0, 100),
    "tau_conf": (0.01, 1),
}
"""Least and largest value of settings, by name; the same in every configuration."""

_MULTIPLES = {"halo": TILE_MULTIPLE, "window": 32, "side": 224}
"""Settings that must be whole multiples, so that the cells of feature maps fit."""


def checked(config: ConfigT) -> ConfigT:
    """Return the configuration.

    Raises:
        InputError: a value is out of range.
    """
    kind = type(config).__name__.removesuffix("Config").lower()
    for name, value in asdict(config).items():
        low, high = _RANGES.get(name, (-math.inf, math.inf))
        values = value if isinstance(value, tuple) else (value,)
        wrong = [v for v in values if isinstance(v, int | float) and not low <= v <= high]
        if wrong:
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise InputError(f"{kind} {name} = {wrong[0]}: must be {bounds}")
        step = _MULTIPLES.get(name, 1)
        if name in _MULTIPLES and value % step:
            near = max(1, round(value / step)) * step
            raise InputError(f"{kind} {name} = {value}: must be a multiple of {step}; use {near}")
    if isinstance(config, ClassifierConfig):
        _check_branches(config)
    if isinstance(config, SemiConfig):
        _check_resize(config.resize)
    return config


def _check_resize(resize: tuple[float, ...]) -> None:
    if len(resize) != 2 or resize[0] > resize[1]:
        raise InputError(
            f"semi resize = {list(resize)}: give the smallest and the largest scale, like [0.5, 2]"
        )


def _check_branches(config: ClassifierConfig) -> None:
    on_refined = config.consistency > 0 and config.consistency_on == "refined"
    if (config.cross > 0 or on_refined) and not config.affinity:
        what = "cross" if config.cross > 0 else 'consistency_on = "refined"'
        raise InputError(f"classifier {what} needs the refined maps: set affinity = true")
    if config.affinity and not (config.cross > 0 or on_refined):
        raise InputError(
            "classifier affinity = true, but nothing teaches it: set cross = 1, "
            'or consistency = 1 with consistency_on = "refined"'
        )


def fingerprint(*parts: object) -> str:
    """Return 12 hexadecimal digits that stand for configurations and JSON-ready values."""
    described = [
        {type(part).__name__: asdict(part)} if isinstance(part, Config) else part for part in parts
    ]
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_options(config: ConfigT, **options: Any) -> ConfigT:
    """Return the configuration with those options changed that are not None.

    Raises:
        InputError: a value is out of range.
    """
    return checked(replace(config, **{name: v for name, v in options.items() if v is not None}))


def from_table(
    kind: type[ConfigT], table: Mapping[str, Any], source: str, base: ConfigT | None = None
) -> ConfigT:
    """Build a configuration from a TOML table.

    Args:
        kind: which configuration.
        table: the keys that are set.
        source: what errors call the table.
        base: where the other keys come from; the defaults if None.

    Raises:
        InputError: an unknown key, or a value of the wrong type or out of range.
    """
    known = get_type_hints(kind)
    default = kind()
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}; the keys are {', '.join(known)}")
        what = f"{source}: {key}"
        if get_origin(known[key]) is Literal and value not in get_args(known[key]):
            raise InputError(f"{what} = {value!r} is none of {', '.join(get_args(known[key]))}")
        values[key] = _like(getattr(default, key), value, what)
    return checked(replace(default if base is None else base, **values))


def _like(example: object, value: object, what: str) -> object:
    if isinstance(example, tuple) and isinstance(value, list) and (value or not example):
        # What may be empty by default is a list of whole numbers.
        return tuple(_like(example[0] if example else 0, item, what) for item in value)
    if isinstance(example, float) and type(value) is int:
        return float(value)
    if type(value) is not type(example):
        raise InputError(f"{what} = {value!r} is not a {type(example).__name__}")
    return value


SECTIONS: dict[str, type[Config]] = {
    "tile": TileConfig,
    "classifier": ClassifierConfig,
    "cam": CamConfig,
    "crf": CrfConfig,
    "proposals": ProposalConfig,
    "labels": LabelConfig,
    "vlm": VlmConfig,
    "train": TrainConfig,
    "semi": SemiConfig,
}


@dataclass(frozen=True)
class Settings:
    """All configurations of a run; what ``--config FILE.toml`` fills in, one table for each.

    The file's first key may be ``recipe``, which says what is not set in it: ``cover`` (these
    defaults), ``objects`` or ``paper`` (SAN's siamese affinity network on ResNet38-d).
    """

    tile: TileConfig = TileConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    cam: CamConfig = CamConfig()
    crf: CrfConfig = CrfConfig()
    proposals: ProposalConfig = ProposalConfig()
    labels: LabelConfig = LabelConfig()
    vlm: VlmConfig = VlmConfig()
    train: TrainConfig = TrainConfig()
    semi: SemiConfig = SemiConfig()

    def check(self) -> None:
        """Raise InputError where a value is out of range."""
        for name in SECTIONS:
            checked(getattr(self, name))

    @classmethod
    def load(cls, path: Path | None, recipe: str | None = None, default: str = "cover") -> Settings:
        """Read a TOML file; None gives the defaults.

        Args:
            path: the file; its first key may be ``recipe``.
            recipe: of ``RECIPES``, what is not set in the file; None takes the one it names.
            default: the recipe where none is named.

        Raises:
            InputError: no such file, no TOML, or an unknown table, key or recipe.
        """
        if path is None:
            return _recipe(recipe or default, "recipe")
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path}: not a readable TOML file ({error})") from error
        named = tables.pop("recipe", default)
        base = _recipe(recipe or named, f"{path}: recipe")
        for name, table in tables.items():
            if name not in SECTIONS or not isinstance(table, dict):
                raise InputError(
                    f"{path}: unknown table [{name}]; the tables are {', '.join(SECTIONS)}"
                )
        return replace(
            base,
            **{
                name: from_table(SECTIONS[name], table, f"{path} [{name}]", getattr(base, name))
                for name, table in tables.items()
            },
        )


RECIPES: dict[str, Settings] = {
    "cover": Settings(),
    "objects": Settings(
        cam=CamConfig(scores="minmax", scales=(0.5, 1.0, 1.5, 2.0)),
        crf=CrfConfig(bilateral_sxy=30.0),
        proposals=ProposalConfig(proposals="sam"),
    ),
    "paper": Settings(
        classifier=ClassifierConfig(
            backbone="resnet38d",
            strides=(8,),
            frozen_blocks=1,
            freeze_bn=True,
            hidden=0,
            pooling="mean",
            batch_size=16,
            optimiser="sgd",
            warm_up=0.0,
            lr=1e-2,
            backbone_lr_factor=0.1,
            weight_decay=5e-4,
            dropout=0.5,
            jitter="colour",
            affinity=True,
            affinity_strides=(8, 8),
            consistency=1.0,
            cross=1.0,
        ),
        cam=CamConfig(scores="minmax", scales=(0.5, 1.0, 1.5, 2.0)),
        crf=CrfConfig(bilateral_sxy=80.0, bilateral_compat=10.0),
        proposals=ProposalConfig(proposals="sam", prompting="grid"),
        labels=LabelConfig(stretch=True, purity=0.0),
        train=TrainConfig(encoder="resnet50"),
    ),
}
"""Settings by name: for land cover, where every pixel has a class; for objects before a background;
and SAN's as its section 4.3 and its relatives' code say.

SAN's rate of 0.01 for the backbone comes from code in which the weight decay stood in the place of
SGD's momentum; with a true momentum of 0.9 the backbone has a tenth of that, and new layers ten
times the backbone's. SAN says nothing of the number of epochs, nor of the CRF and of SAM's grid;
those are of SEAM, PSA and FMA-WSSS.
"""


def recipe_for(*, background: bool) -> str:
    """Return the recipe for classes with or without a background."""
    return "objects" if background else "cover"


def _recipe(name: object, source: str) -> Settings:
    if not isinstance(name, str) or name not in RECIPES:
        raise InputError(f"{source} = {name!r} is none of {', '.join(RECIPES)}")
    return RECIPES[name]
