"""The units of the prediction benchmark: rasters, checkpoints, and child processes that predict."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import predict_models
import predict_rasters
import predict_seams
import rasterio
import torch
from kept import Results
from predict_job import OWN, Job
from predict_peers import PEERS
from predict_runs import OVERLAP, WINDOW, Settings, clear, run

from rsseg.api import predict
from rsseg.nets.device import fast_dtype, pick_device
from rsseg.ops.blend import BLENDS

WARM_UP = 1024
"""Side of the raster with which numba's cache is filled, pixels."""

ROUNDS = {5_000: (3, 2), 10_000: (3, 1), 20_000: (2, 1)}
"""Side in pixels → how often rsseg and the limits, and how often the others are taken, up to it."""


class Bench:
    """What is measured, and where it is kept.

    Args:
        out: the folder.
        settings: what decides the results.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self.out = out
        self.settings = settings
        self.results = Results(out / "results.json")
        self.troubles: dict[str, str] = {}
        for name in ("models", "rasters", "maps"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def raster(self, size: int) -> Path:
        """Return a raster, making it if it is not there yet."""
        path = self.out / "rasters" / f"{size}.tif"
        if not path.exists():
            predict_rasters.write(path, size, predict_rasters.picture_of(self.settings.ortho))
        return path

    def model(self, name: str) -> Path:
        """Return a checkpoint, making it if it is not there yet."""
        path = self.out / "models" / f"{name}.pt"
        if path.exists():
            return path
        if name == predict_models.TRAINED:
            if self.settings.trained is None:
                sys.exit("the model 'trained' needs --model")
            predict_models.take(path, self.settings.trained)
        else:
            picture = predict_rasters.picture_of(self.settings.ortho)
            sample = predict_rasters.windows_of(picture, WINDOW)
            predict_models.make(path, predict_models.MODELS[name], sample)
        return path

    def made(self, model: str, size: int, way: str) -> Path:
        """Return where a way writes its map."""
        return self.out / "maps" / f"{model}_{size}_{way}.tif"

    def warm_up(self, models: Sequence[str]) -> None:
        """Let rsseg compile what it keeps compiled."""
        for model in models:
            self.time(f"warm {model}", "rsseg", model, WARM_UP)

    def times(
        self, sizes: Sequence[int], models: Sequence[str], ways: Sequence[str], keep: int
    ) -> None:
        """Time every way on every raster; the ways take turns.

        Args:
            sizes: sides of the rasters, pixels, ascending.
            models: their names.
            ways: of other tools.
            keep: the size whose maps are kept.
        """
        self.time("bare", "bare", models[0], WARM_UP)
        for model, size, turn, way in turns(sizes, models, ways):
            if not (self.was_too_much(model, size, way) or self.is_slow(way)):
                self.time(f"time {model} {size} {way} {turn}", way, model, size)
            if size != keep or way not in (*OWN, *PEERS):
                clear(self.made(model, size, way))

    def is_slow(self, way: str) -> bool:
        """Whether the device has no instructions for what a way computes in."""
        device = pick_device(self.settings.device)
        return OWN.get(way) == "bfloat16" and fast_dtype(device) != torch.bfloat16

    def was_too_much(self, model: str, size: int, way: str) -> bool:
        """Whether a smaller raster already was."""
        units = self.results.units.items()
        failed = [name.split() for name, unit in units if "failed" in unit]
        return any(
            kind == "time" and (one, which) == (model, way) and int(side) < size
            for kind, one, side, which, _ in failed
        )

    def job(self, way: str, model: str, size: int) -> Job:
        """Return one way on one raster."""
        return Job(
            way=way,
            raster=self.raster(size),
            model=self.model(model),
            made=self.made(model, size, way),
            window=WINDOW,
            overlap=OVERLAP,
            batch=self.settings.batch,
            device=self.settings.device,
        )

    def time(self, name: str, way: str, model: str, size: int) -> None:
        """Time one way on one raster, if that has not been done yet."""
        if self.results.has(name):
            return
        job = self.job(way, model, size)
        clear(job.made)
        found = run(job, self.settings, self.out)
        trouble = found.get("missing") or found.get("error")
        if trouble is not None:
            self.troubles[way] = str(trouble)
            print(f"{name}: {trouble}", flush=True)
            return
        self.results.need(name, lambda: found)

    def dask(self, size: int, model: str) -> None:
        """Time one thread and two Dask workers, and one network alone and two beside each other."""
        settings = replace(self.settings, threads=1)

        def one(way: str) -> dict[str, Any]:
            clear(self.made(model, size, way))
            return run(self.job(way, model, size), settings, self.out)

        def two() -> dict[str, Any]:
            job = self.job("forward", model, size)
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(lambda k: run(job, settings, self.out, k), ("a", "b")))
            return {"best": sum(unit["best"] for unit in found)}

        for way in ("rsseg", "dask", "forward"):
            self.results.need(f"dask {model} {size} {way}", partial(one, way))
        self.results.need(f"dask {model} {size} two forwards", two)

    def agreement(self, size: int, models: Sequence[str]) -> None:
        """Compare the maps that were kept with that by the book."""
        for model in models:
            book = self.made(model, size, "plain")
            self.time(f"plain {model} {size}", "plain", model, size)
            for way in (*OWN, *PEERS):
                path = self.made(model, size, way)
                if path.exists() and book.exists():
                    self.results.need(
                        f"agreement {model} {size} {way}",
                        lambda p=path, b=book: {"share": agreement(p, b)},
                    )

    def seams(self, model: Path, ortho: Path) -> None:
        """Measure the seams of a trained network on a real orthophoto, for each way to blend."""
        for mode in BLENDS:
            state = f"{model.name} on {ortho.name}"
            self.results.need(f"seams {mode}", lambda m=mode: self.seam(model, ortho, m), state)

    def seam(self, model: Path, ortho: Path, mode: str) -> dict[str, Any]:
        """Measure the seams of one way to blend."""
        shares = self.out / "maps" / "shares.tif"
        made = predict(
            ortho,
            model,
            self.out / "maps" / "seams.tif",
            probabilities=shares,
            window=WINDOW,
            overlap=OVERLAP / WINDOW,
            device=self.settings.device,
            overwrite=True,
            blend=mode,
        )
        plan = made[0].plan
        return predict_seams.measure(shares, plan.window, OVERLAP, plan.block_rows)


def turns(
    sizes: Sequence[int], models: Sequence[str], ways: Sequence[str]
) -> Iterator[tuple[str, int, int, str]]:
    """Yield model, size, turn and way; the forward stands beside rsseg in every turn."""
    for size in sizes:
        own, others = rounds_of(size)
        for model in models:
            for turn in range(own):
                for way in (*OWN, "forward", "copy", *ways):
                    once = way == "copy" and model != models[0]
                    if not once and turn < (others if way in ways else own):
                        yield model, size, turn, way


def rounds_of(size: int) -> tuple[int, int]:
    """Return how often rsseg and the limits, and how often the others are taken."""
    return next((rounds for side, rounds in ROUNDS.items() if size <= side), (1, 1))


def agreement(path: Path, book: Path) -> float:
    """Return the share of equal pixels, without the last window's, which tools place differently.

    Args:
        path: a map.
        book: what it is compared with.
    """
    with rasterio.open(path) as one, rasterio.open(book) as other:
        height, width = (max(side - WINDOW, 1) for side in other.shape)
        inner = rasterio.windows.Window(0, 0, width, height)
        same = one.read(1, window=inner) == other.read(1, window=inner)
    return round(float(np.mean(same)), 6)
