"""Ways to train the segmenter: supervised or with few labels; what each learns and from what."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rsseg.api.lots import Lots, check_share, tiles_of
from rsseg.config import Method, Purify, SemiConfig, TrainConfig
from rsseg.errors import InputError
from rsseg.io.labels import LabelSource, TileLabels
from rsseg.io.opinions import SiteOpinions
from rsseg.io.site import Site
from rsseg.learn.data import LabelWindows
from rsseg.learn.pairs import Cycled, Pairs, UnlabelledWindows
from rsseg.learn.semi import SemiObjective
from rsseg.learn.supervised import SupervisedObjective
from rsseg.ops.trust import Trust
from rsseg.progress import Progress

Set = Dataset[dict[str, Tensor]]


@dataclass(frozen=True)
class Samples:
    """A site's tiles as samples.

    Args:
        site: the site.
        labels: all labels there are.
        lots: which tiles are for what.
        size: side of the crops, pixels.
        seed: of order and augmentation.
    """

    site: Site
    labels: LabelSource
    lots: Lots
    size: int
    seed: int

    def labelled(self) -> LabelWindows:
        """Return the labelled tiles, and what labels are around them."""
        tiles = tiles_of(self.site, self.lots.labelled)
        return LabelWindows(self.site, tiles, self.labels, self.size, self.seed)

    def held_back(self) -> LabelWindows:
        """Return the tiles kept for validation, and what labels are around them."""
        tiles = tiles_of(self.site, self.lots.validation)
        return LabelWindows(self.site, tiles, self.labels, self.size, self.seed)

    def few(self, resize: tuple[float, ...]) -> Cycled:
        """Return the labelled tiles with no other labels than theirs, again and again.

        An epoch has as many samples as there are valid tiles outside validation, so that it is the
        same with unlabelled samples beside and without.
        """
        tiles = tiles_of(self.site, self.lots.labelled)
        labels = TileLabels(self.labels, self.lots.labelled, self.site.core)
        shown = LabelWindows(self.site, tiles, labels, self.size, self.seed, resize)
        count = sum(int(table.sum()) for table in self.lots.whole.values())
        return Cycled(shown, count, self.seed)

    def few_held_back(self) -> LabelWindows:
        """Return the tiles kept for validation with no other labels than theirs."""
        tiles = tiles_of(self.site, self.lots.validation)
        labels = TileLabels(self.labels, self.lots.held, self.site.core)
        return LabelWindows(self.site, tiles, labels, self.size, self.seed)

    def pairs(
        self, resize: tuple[float, ...], opinions: SiteOpinions | None, trust: Tensor | None
    ) -> Pairs:
        """Return what ``few`` does with an unlabelled sample beside each."""
        unlabelled = UnlabelledWindows(
            self.site,
            tiles_of(self.site, self.lots.whole),
            self.lots.held,
            self.size,
            self.seed,
            resize,
            opinions,
            trust,
        )
        return Pairs(self.few(resize), unlabelled)

    def describe(self) -> list[object]:
        """Return what tells a site and its split from others, JSON-ready."""
        held_back = [
            [name, str(tile.row), str(tile.col)]
            for name, tiles in tiles_of(self.site, self.lots.validation).items()
            for tile in tiles
        ]
        return [held_back, self.site.classes.to_dict(), self.site.bands.to_dict()]

    def trust(self, opinions: SiteOpinions, progress: Progress) -> Tensor:
        """Return how far the opinions of each class are right on the labelled tiles, (K,).

        Args:
            opinions: of a vision-language model.
            progress: told of each class.
        """
        names = self.site.classes.names
        background = self.site.classes.background
        asked = [None if index == background else name for index, name in enumerate(names)]
        trust = Trust(len(names))
        for scene, tiles in tiles_of(self.site, self.lots.labelled).items():
            for tile in tiles:
                said = torch.from_numpy(opinions(scene, tile.core))
                truth = torch.from_numpy(self.labels(scene, tile.core))
                trust.add(said[None], truth[None].long())
        weights = trust.weights()
        for line in trust.switched_off(asked):
            progress.note(line)
        for name, weight in zip(asked, weights.tolist(), strict=True):
            if name is not None:
                progress.detail(f"{name}: opinions count by {weight:.2f}")
        return weights


@dataclass(frozen=True)
class Way:
    """How a segmenter is trained.

    Args:
        method: with the labels alone, or with unlabelled tiles as well.
        labelled: share or number of the labelled tiles to learn from; None for all.
        purify: whether a vision-language model mends the teacher's labels.
        semi: settings of training with few labels.
    """

    method: Method
    labelled: float | None
    purify: Purify
    semi: SemiConfig

    @property
    def few(self) -> bool:
        """Whether this is training with few labels."""
        return self.method == "semi" or self.labelled is not None

    def check(self) -> None:
        """Raise InputError where this is no way to train."""
        check_share(self.labelled)
        if self.purify == "vlm" and self.method != "semi":
            raise InputError(
                "--purify vlm mends a teacher's labels, and supervised training has no teacher: "
                "give --method semi"
            )

    def check_lots(self, lots: Lots) -> None:
        """Raise InputError where there is nothing that a teacher could label."""
        if self.method == "semi" and lots.complete:
            raise InputError(
                "every pixel outside validation has a label, so --method semi has nothing to add: "
                "keep few of them, --labelled 5% for example, or leave --method semi out"
            )

    def describe(self, opinions: SiteOpinions | None) -> list[object]:
        """Return what tells this way from others, JSON-ready; nothing for the plain one."""
        if not self.few:
            return []
        heard = None if opinions is None else opinions.key
        return [[self.method, self.labelled, heard, asdict(self.semi)]]

    def objective(
        self, network: nn.Module, config: TrainConfig, classes: int
    ) -> SupervisedObjective:
        """Return what the network learns."""
        if self.method == "semi":
            return SemiObjective(network, config, self.semi, classes)
        return SupervisedObjective(network, config, classes)

    def sets(
        self, samples: Samples, opinions: SiteOpinions | None, progress: Progress
    ) -> tuple[Set, Set]:
        """Return what it is learnt from and what it is validated on."""
        resize = self.semi.resize
        if not self.few:
            return samples.labelled(), samples.held_back()
        if self.method == "supervised":
            return samples.few(resize), samples.few_held_back()
        trust = None if opinions is None else samples.trust(opinions, progress)
        return samples.pairs(resize, opinions, trust), samples.few_held_back()
