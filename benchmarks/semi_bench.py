"""One run of the few-labels benchmark: what a unit is, and what it leaves for later ones.

All training is done by rsseg's own verb, which draws the labelled chips, and reads the opinions of
the simulated VLM where it reads those of a true one. Which labels it gets are those of the chips
to learn on, all of them; it learns from the drawn ones alone.
"""

from __future__ import annotations

import csv
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_bench import MapBench
from accuracy_data import hold_back, make_site
from semi_rows import Row, Run, SemiProtocol, candidate_runs
from semi_vlm import Quality, layer_of, simulate

from rsseg.api import train
from rsseg.config import fingerprint
from rsseg.io.opinions import SiteOpinions
from rsseg.io.site import Site
from rsseg.ops.trust import Trust
from rsseg.progress import Progress, Step


@dataclass(frozen=True, kw_only=True)
class SemiBench(MapBench):
    """One part of a data set of chips, of which few are labelled.

    Args:
        protocol: how large everything is.
    """

    protocol: SemiProtocol

    def site(self) -> Site:
        """Return the site of the chips to learn on; no chip that is scored is in it."""
        data = replace(self.data, learn=self.data.learned(self.part), choose=())
        site = make_site(data, self.out / self.part / "site.zarr", self.progress)
        hold_back(site, [])  # nothing is chosen on the way
        return site

    def chosen(self, row: Row, ratio: float) -> Run | None:
        """Return the run that was best on the choosing part; None until all were measured."""
        runs = {run.key: run for run in candidate_runs(row, ratio, self.protocol)}
        best = self.best(list(runs))
        return None if best is None else runs[best]

    def run(self, run: Run) -> None:
        """Train and score a run."""
        config, semi = run.config(self.protocol.base), run.semi
        quality, learned = run.row.quality, self.data.learned(self.part)
        heard = None if quality is None else layer_of(learned, quality, run.seed)
        way = [run.row.method, run.ratio, heard]
        state = fingerprint(config, semi, self.state("truth"), way)
        self.need("model", run.key, partial(self.fit, run), state)
        self.need("map", run.key, partial(self.score_maps, run.key), state)

    def fit(self, run: Run) -> dict[str, Any]:
        """Train a segmenter; return what was logged of it."""
        site, learned = self.site(), self.data.learned(self.part)
        if run.row.quality is not None:
            simulate(site, learned, run.row.quality, run.seed, self.progress)
        heard = Heard(self.progress)
        model = self.model(run.key)
        train(
            site.path,
            model,
            labels=[image.truth for image in learned],
            method=run.row.method,
            labelled=run.ratio,
            purify="none" if run.row.quality is None else "vlm",
            config=run.config(self.protocol.base),
            semi=run.semi,
            device=self.device,
            overwrite=True,
            progress=heard,
        )
        return {"last": last_row(model.with_name(f"{model.stem}_metrics.csv")), "said": heard.lines}

    def opinions(self, quality: Quality, seed: int) -> None:
        """Count how much a simulated VLM says, and how much of that is right."""
        state = layer_of(self.data.learned(self.part), quality, seed)
        unit = partial(self.count_opinions, quality, seed)
        self.need("opinions", f"{quality.name}, seed {seed}", unit, state)

    def count_opinions(self, quality: Quality, seed: int) -> dict[str, Any]:
        """Return pixels per class with opinions, with right ones, and of the truth."""
        site, learned = self.site(), self.data.learned(self.part)
        simulate(site, learned, quality, seed, self.progress)
        said = SiteOpinions(site)
        trust = Trust(len(site.classes))
        covered = 0
        for image in learned:
            truth = torch.from_numpy(image.read_truth(site.classes).astype(np.int64))
            given = torch.from_numpy(said(image.name, site.scenes[image.name].grid.window))
            trust.add(given[None], truth[None])
            covered += int(((given > 0).any(dim=0) & (truth < len(site.classes))).sum())
        counts = {name: getattr(trust, name).tolist() for name in ("said", "right", "labelled")}
        return {**counts, "covered": covered}


def last_row(metrics: Path) -> dict[str, float]:
    """Return the losses and shares of a training's last epoch."""
    with metrics.open(encoding="utf-8", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    return {name: round(float(value), 4) for name, value in row.items() if value}


@dataclass(frozen=True)
class Heard:
    """Keeps what a training says of the opinions, and passes everything on.

    Args:
        progress: to whom.
    """

    progress: Progress
    lines: list[str] = field(default_factory=list)

    def step(
        self, label: str, total: float, unit: str, done: float = 0
    ) -> AbstractContextManager[Step]:
        return self.progress.step(label, total, unit, done)

    def note(self, message: str) -> None:
        self._keep(message)
        self.progress.note(message)

    def detail(self, message: str) -> None:
        self._keep(message)
        self.progress.detail(message)

    def warn(self, message: str) -> None:
        self.progress.warn(message)

    def _keep(self, message: str) -> None:
        if "opinions" in message:
            self.lines.append(message)
