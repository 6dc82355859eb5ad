"""The options of the command line, each declared once: shared ones, then each command's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rsseg.config import Settings

DEFAULTS = Settings()


class Until(StrEnum):
    """Last step of ``pseudo-label``."""

    CAM = "cam"
    CRF = "crf"
    SAM = "sam"


class ProposalKind(StrEnum):
    """Where segment proposals come from."""

    SAM = "sam"
    SUPERPIXELS = "superpixels"
    NONE = "none"


class RecipeName(StrEnum):
    """Settings that have a name."""

    COVER = "cover"
    OBJECTS = "objects"
    PAPER = "paper"


class BlendName(StrEnum):
    """How overlapping windows pass into each other."""

    RAMP = "ramp"
    GAUSSIAN = "gaussian"
    HANN = "hann"
    CROP = "crop"


class PrecisionName(StrEnum):
    """What a network computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class TtaName(StrEnum):
    """Augmentations while predicting."""

    NONE = "none"
    FLIPS = "flips"


class MethodName(StrEnum):
    """How a segmenter is trained."""

    SUPERVISED = "supervised"
    SEMI = "semi"


class PurifierName(StrEnum):
    """Who mends a teacher's labels."""

    NONE = "none"
    VLM = "vlm"


class CoordinatesName(StrEnum):
    """What a vision-language model measures boxes in."""

    PIXELS = "pixels"
    THOUSANDTHS = "thousandths"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show details too.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
SitePath = Annotated[
    Path, typer.Argument(metavar="SITE", help="The site, a folder that ends in .zarr.")
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="TOML file with settings, one table for each step."),
]
Device = Annotated[str, typer.Option(help="Where networks run: auto, cpu, cuda or mps.")]
Dask = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        show_default="this process",
        help="Have Dask workers compute: auto starts some on this machine, an address takes those "
        "of a running scheduler, like tcp://HOST:8786.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="by device", help="Windows at a time; halved if memory runs out."
    ),
]
Field = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field of vector features with the class name or id."),
]
OneClass = Annotated[
    str | None,
    typer.Option("--class", metavar="NAME", help="The class that all vector features are of."),
]
Aoi = Annotated[Path | None, typer.Option(metavar="FILE", help="Polygons that say where to work.")]
Proposals = Annotated[
    ProposalKind | None,
    typer.Option(
        show_default="by recipe; sam with --sam",
        help="Segments that take one class each, where the CRF is nearly sure of it.",
    ),
]
Sam = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Use SAM; its weights by registry name or file."),
]

Vlm = Annotated[
    str | None,
    typer.Option(
        "--vlm",
        metavar="NAME|DIR",
        help="Local vision-language model, by its name on the Hugging Face hub or its folder.",
    ),
]
VlmUrl = Annotated[
    str | None,
    typer.Option(
        "--vlm-url",
        metavar="URL",
        help="Ask the model of a server that speaks OpenAI's protocol, like "
        "http://localhost:8000/v1, instead. Windows of the imagery are sent there; a key is taken "
        "from the variable OPENAI_API_KEY.",
    ),
]
VlmModel = Annotated[
    str | None,
    typer.Option(
        "--vlm-model",
        metavar="NAME",
        show_default="the only one it has",
        help="What the server calls its model.",
    ),
]
VlmBits = Annotated[
    int | None,
    typer.Option(
        "--vlm-bits",
        metavar="4|8",
        show_default="weights as they are",
        help="Load a local model's weights in so many bits; needs an NVIDIA GPU and bitsandbytes.",
    ),
]
VlmCoordinates = Annotated[
    CoordinatesName | None,
    typer.Option(
        "--vlm-coordinates",
        show_default="pixels for Qwen2.5-VL, else thousandths",
        help="What the model measures boxes in: pixels of the image, or thousandths of its sides.",
    ),
]

Rasters = Annotated[
    list[Path] | None, typer.Argument(metavar="RASTER...", help="Rasters, or folders of rasters.")
]
SiteOut = Annotated[Path, typer.Option(metavar="SITE", help="The site to make, SITE.zarr.")]
ClassNames = Annotated[
    str,
    typer.Option(
        metavar="NAMES|FILE",
        help="Class names (building,other), or a TOML file with names, ids and colours.",
    ),
]
TileSize = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        show_default=str(DEFAULTS.tile.size),
        help="Side of a tile in pixels, overlap included.",
    ),
]
TileOverlap = Annotated[
    float | None,
    typer.Option(
        show_default=str(DEFAULTS.tile.overlap),
        help="Share of the size by which neighbours overlap.",
    ),
]
BandNumbers = Annotated[
    str | None,
    typer.Option(
        metavar="1,2,…", show_default="all but alpha", help="Band numbers for the networks."
    ),
]
Rgb = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        show_default="as the file says",
        help="Band numbers shown as red, green and blue.",
    ),
]
Link = Annotated[
    bool | None,
    typer.Option(
        "--link/--copy",
        show_default="by size",
        help="Leave the pixels in the rasters, or copy them.",
    ),
]
Chips = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of small images; each is a tile of its own."),
]
Patches = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Also write the tiles as GeoTIFFs here.")
]

TagSources = Annotated[
    list[Path],
    typer.Option(
        "--from",
        metavar="FILE",
        help="Tag sheet, CSV, vector features or class raster; of several, later ones fill gaps.",
    ),
]
MinArea = Annotated[
    float, typer.Option(min=0, help="Least area in a tile, from polygons, square metres.")
]
MinShare = Annotated[
    float, typer.Option(min=0, max=1, help="Least share of a tile, from class rasters.")
]
ValShare = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the tiles held back for validation.")
]
SplitSeed = Annotated[int, typer.Option(min=0, help="Draws the tiles held back.")]

LastStep = Annotated[Until, typer.Option(help="Stop after this step.")]
ExportTo = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write the last step's layer as a GeoTIFF."),
]
Recipe = Annotated[
    RecipeName | None,
    typer.Option(
        show_default="objects if the classes have a background, else cover",
        help="Settings that hold where --config does not say.",
    ),
]
LabellingModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Go by a segmenter trained on these labels instead of the classifier: self-training.",
    ),
]
PointsPerSide = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        show_default="points where no segment is yet",
        help="Ask SAM at a regular grid of N x N points per window instead.",
    ),
]
LabelWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="all cores",
        help="Threads for the CRF, processes for superpixels; with --dask auto processes for all.",
    ),
]

ModelOut = Annotated[Path, typer.Option(metavar="FILE", help="The checkpoint to write.")]
Labels = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        show_default="the pseudo-labels",
        help="Class raster or vector features; of several, later ones fill gaps.",
    ),
]
TrainMethod = Annotated[
    MethodName,
    typer.Option(
        "--method",
        help="Learn from the labels alone, or also from all other tiles outside validation, which "
        "a moving average of the network labels (semi).",
    ),
]
Labelled = Annotated[
    str | None,
    typer.Option(
        metavar="5%|N",
        show_default="all",
        help="Learn from this share or number of the labelled tiles, drawn by --seed with every "
        "class among them if it can be, and take the others for unlabelled.",
    ),
]
Purifier = Annotated[
    PurifierName,
    typer.Option(
        "--purify",
        help="Mend labels that are not sure by a vision-language model's opinions (vlm): of the "
        "model that is named, or the layer of that name in the site. Training needs --method semi.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        show_default=DEFAULTS.train.arch, help="An architecture of segmentation-models, or tiny."
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(show_default=DEFAULTS.train.encoder, help="Encoder of the architecture."),
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        show_default=DEFAULTS.train.weights, help="The encoder's weights: auto, none or a file."
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, show_default="by --steps", help="Passes over the tiles.")
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, show_default=str(DEFAULTS.train.min_steps), help="Optimiser steps at the least."
    ),
]
TrainWindow = Annotated[
    int | None,
    typer.Option(
        metavar="PX", show_default=str(DEFAULTS.train.window), help="Side of the network's window."
    ),
]
TrainBatch = Annotated[
    int | None,
    typer.Option(show_default=str(DEFAULTS.train.batch_size), help="Windows per optimiser step."),
]
LearningRate = Annotated[
    float | None, typer.Option(show_default=str(DEFAULTS.train.lr), help="Peak learning rate.")
]
TrainSeed = Annotated[
    int | None,
    typer.Option(
        min=0, show_default=str(DEFAULTS.train.seed), help="Of weights, order, augmentation."
    ),
]

Sources = Annotated[
    list[Path], typer.Argument(metavar="RASTER...", help="Rasters, or a folder of rasters.")
]
Model = Annotated[Path, typer.Option(metavar="FILE", help="Checkpoint of rsseg train.")]
MapOut = Annotated[
    Path, typer.Option(metavar="PATH", help="The map; of several rasters or a folder, a folder.")
]
Confidence = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Also write the confidence, 0 to 254 for 0 to 1."),
]
Probabilities = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Also write every class's probability, a band each."),
]
VectorsOut = Annotated[
    Path | None,
    typer.Option(
        "--vectors",
        metavar="PATH",
        help="Also write the map's polygons (.gpkg, .geojson, .fgb, .shp) with their confidence.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        metavar="PX", show_default="the checkpoint's", help="Side of the network's window."
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        show_default="the checkpoint's", help="Share of the window by which neighbours overlap."
    ),
]
Blend = Annotated[
    BlendName, typer.Option(help="How windows pass into each other where they overlap.")
]
Tta = Annotated[
    TtaName,
    typer.Option(help="flips: the mean over the image and its mirrorings, four times the work."),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        help="bfloat16: half the time where the hardware has it; about one pixel in 100 differs."
    ),
]
Gsd = Annotated[
    float | None,
    typer.Option(
        metavar="METRES",
        show_default="as it is",
        help="Ground resolution to read at; the map keeps the raster's grid.",
    ),
]
BlockRows = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="by width", help="Rows kept at a time; an interruption costs as much."
    ),
]
Readers = Annotated[int, typer.Option(min=0, help="Threads that read ahead.")]
MapWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        show_default="1 on a CPU, 4 on a GPU",
        help="Threads that read ahead; with --dask auto processes, by default one per core or GPU.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it takes; write nothing.")]

VectorFile = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Vector file: .gpkg, .geojson, .fgb or .shp."),
]
MeanOf = Annotated[
    Path | None,
    typer.Option(
        "--confidence", metavar="FILE", help="Confidence of the map, whose mean each polygon gets."
    ),
]
Wanted = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAMES",
        show_default="all",
        help="Names or ids of the classes to write, like building,road.",
    ),
]
Legend = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default="what the map says", help="TOML file of what the ids mean."
    ),
]
LeastArea = Annotated[
    float,
    typer.Option(
        "--min-area",
        metavar="M2",
        help="Merge smaller polygons into the neighbour with the longest shared edge.",
    ),
]
Simplify = Annotated[
    float,
    typer.Option(
        metavar="METRES",
        help="Remove corners whose triangle with their neighbours has less area than the square of "
        "this, smallest first (Visvalingam-Whyatt): an area, not a distance, so a line may move "
        "by more where it is long. Three times the pixel size takes away the steps of pixels. The "
        "outer edge of the map stays.",
    ),
]
RightAngles = Annotated[
    bool,
    typer.Option(
        "--right-angles",
        help="For buildings, with --classes: straight walls and right angles where the outlines "
        "suggest them, else they stay as they are. Footprints then share no edges with other "
        "classes and may differ from the map by a few pixels; none overlaps another.",
    ),
]
StripRows = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="by width", help="Rows of the map held in memory; changes no polygon."
    ),
]

MapPath = Annotated[Path, typer.Argument(metavar="MAP", help="The map.")]
Truth = Annotated[
    Path, typer.Argument(metavar="TRUTH", help="Class raster on any grid, or polygons.")
]
JsonOut = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the scores as JSON; - prints them."),
]
CsvOut = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV.")
]
ReportOut = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Write a report with pictures, one page."),
]
ReportImage = Annotated[
    Path | None,
    typer.Option("--image", metavar="RASTER", help="The raster that was mapped, for the report."),
]
BoundaryWidth = Annotated[
    int,
    typer.Option(
        "--boundary",
        metavar="PX",
        help="Boundary IoU: width of the bands along outlines, in pixels of the map.",
    ),
]
MinMiou = Annotated[
    float | None, typer.Option(min=0, max=1, help="Exit with 1 if the mIoU is below.")
]
MapClasses = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES|FILE",
        show_default="those of the map",
        help="Class names, or a TOML file.",
    ),
]

SampleOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.gpkg",
        show_default="beside the map, MAP_sample.gpkg",
        help="The GeoPackage of points to write.",
    ),
]
SampleCount = Annotated[int, typer.Option("--n", min=2, help="Points in all.")]
MinPerClass = Annotated[
    int,
    typer.Option(
        min=2,
        help="Least points of a class; if --n is too small for it, all classes get the same.",
    ),
]
SampleSeed = Annotated[int, typer.Option(min=0, help="Draws other points.")]
SamplePath = Annotated[
    Path, typer.Argument(metavar="SAMPLE", help="The points, with a class in reference.")
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial", help="Use the points filled so far; sound if you fill them by number."
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LayerName = Annotated[
    str,
    typer.Argument(
        metavar="LAYER",
        help="image, valid, tags, cam, crf, masks or labels; cam:CLASS, crf:CLASS and tags:CLASS "
        "are one class.",
    ),
]
LayerOut = Annotated[
    Path,
    typer.Argument(metavar="OUT.tif", help="GeoTIFF; of several scenes, OUT_SCENE.tif for each."),
]
SceneName = Annotated[str | None, typer.Option(metavar="NAME", help="Write this scene alone.")]

Looked = Annotated[
    Path, typer.Argument(metavar="RASTER", help="The raster; a class raster is drawn as a map.")
]
LookedMap = Annotated[
    Path | None, typer.Argument(metavar="MAP", help="Class raster to be drawn over it.")
]
LookOut = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", show_default="NAME_quicklook.png here", help="The picture."),
]
LookSize = Annotated[int, typer.Option(metavar="PX", help="Longer side of the picture, at most.")]
SideBySide = Annotated[
    bool, typer.Option("--side-by-side", help="Draw the map beside the raster, not over it.")
]
Opacity = Annotated[
    float, typer.Option(help="Of the map over the raster, 0 to 1; a background stays clear.")
]

DemoOut = Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")]
DemoSize = Annotated[int, typer.Option(metavar="PX", help="Side of the orthophoto.")]
DemoSeed = Annotated[int, typer.Option(min=0, help="Draws another landscape.")]

WeightNames = Annotated[list[str], typer.Argument(metavar="NAME...", help="Registry names.")]
WeightName = Annotated[str, typer.Argument(metavar="NAME", help="A registry name.")]
