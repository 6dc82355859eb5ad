"""What the prediction benchmark compares with other tools: rsseg, and the limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, product
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
import torch
from numpy.typing import NDArray
from predict_job import OWN, Job, Prepare, Work
from predict_nets import PIXEL, load
from predict_peers import one_band
from rasterio.windows import Window
from torch import Tensor

from rsseg.nets.segmenter import Forward
from rsseg.progress import SILENT

LAYOUTS = {"rows": torch.contiguous_format, "channels last": torch.channels_last}


def rsseg(job: Job) -> Work:
    """Return ``rsseg.api.predict``, in the precision that its way stands for."""
    import predict_models

    from rsseg.api.prediction import predict

    predict_models.let_in(PIXEL)
    load(job.model)  # the libraries of its architecture, which the others have imported as well

    def work() -> dict[str, Any]:
        made = predict(
            job.raster,
            job.model,
            job.made,
            window=job.window,
            overlap=job.overlap / job.window,
            device=job.device,
            precision=OWN[job.way],
            overwrite=True,
        )
        rows, cols = made[0].plan.windows
        return {"input": rows * cols * made[0].plan.window ** 2}

    return work


def dask(job: Job) -> Work:
    """Return the same by two workers of one thread each, who are there before."""
    from distributed import LocalCluster

    from rsseg.api.prediction import predict

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")

    def work() -> dict[str, Any]:
        with cluster:
            predict(
                job.raster,
                job.model,
                job.made,
                window=job.window,
                overlap=job.overlap / job.window,
                device=job.device,
                dask=cluster.scheduler_address,
                overwrite=True,
            )
        return {}

    return work


def forward(job: Job) -> Work:
    """Return the network and the argmax of its scores, on batches that lie in memory.

    In several batches and orders in memory, and as rsseg runs it, in turns. ``mpix`` is the rate
    of each and ``best`` the best of them; ``alone`` is the best without the argmax.
    """
    forms = forms_of(job)
    warm: set[str] = set()

    def work() -> dict[str, Any]:
        pixels, spent = dict.fromkeys(forms, 0), dict.fromkeys(forms, (0.0, 0.0))
        start = time.perf_counter()
        for name in cycle(forms):
            if time.perf_counter() - start > job.seconds and min(pixels.values()):
                break
            form = forms[name]
            took = timed(form, torch.device(job.device))
            if name in warm:
                pixels[name] += form.windows * job.window**2
                spent[name] = (spent[name][0] + took[0], spent[name][1] + took[1])
            warm.add(name)
        rates = {name: pixels[name] / sum(spent[name]) / 1e6 for name in forms}
        alone = max(pixels[name] / spent[name][0] / 1e6 for name in forms)
        return {"mpix": rates, "best": max(rates.values()), "alone": alone}

    return work


class Form(NamedTuple):
    """One way to run a network on a batch in memory: how many windows, and the call."""

    windows: int
    scores: Callable[[], Tensor]


def forms_of(job: Job) -> dict[str, Form]:
    """Return the ways to run the network that could be the fastest."""
    network, card = load(job.model)
    device = torch.device(job.device)
    own = Forward(load(job.model)[0], device, SILENT)
    network.to(device)
    forms = {}
    for batch in sorted({1, job.batch}):
        images = torch.rand(batch, len(card.mean), job.window, job.window)
        for name, layout in LAYOUTS.items():
            there = images.to(device).contiguous(memory_format=layout)
            forms[f"of {batch}, {name}"] = Form(batch, partial(network, there))
        forms[f"of {batch}, as rsseg"] = Form(batch, partial(logits_of, own, images.numpy()))
    return forms


def logits_of(own: Forward, images: NDArray[np.float32]) -> Tensor:
    """Return what rsseg's forward pass gives, (B, K, S, S), where it leaves it."""
    return torch.from_numpy(np.stack(list(own.logits(images))))


def timed(form: Form, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of the argmax of its scores."""
    start = time.perf_counter()
    with torch.inference_mode():
        scores = form.scores()
        finished(device)
        middle = time.perf_counter()
        scores.argmax(dim=1)
        finished(device)
    return middle - start, time.perf_counter() - middle


def finished(device: torch.device) -> None:
    """Wait for what a GPU was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy(job: Job) -> Work:
    """Return GDAL's copy of the raster, tiled and compressed as maps are."""
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}

    def work() -> dict[str, Any]:
        rasterio.shutil.copy(job.raster, job.made, driver="GTiff", bigtiff="if_safer", **options)
        return {}

    return work


def plain(job: Job) -> Work:
    """Return the map by the book: single precision, every window by itself, all in memory.

    Windows are weighted by a raised cosine over their overlap.
    """
    network, card = load(job.model)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))

    def scored(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        whole = np.repeat(mean, job.window, axis=1).repeat(job.window, axis=2)
        whole[:, : image.shape[1], : image.shape[2]] = image
        with torch.inference_mode():
            logits = network(torch.from_numpy((whole - mean) / std)[None])
        scores: NDArray[np.float32] = logits.softmax(dim=1)[0].numpy()
        return scores

    def work() -> dict[str, Any]:
        with rasterio.open(job.raster) as source:
            profile, labels = source.profile, blended(job, card.classes, source, scored)
        with rasterio.open(job.made, "w", **one_band(profile)) as target:
            target.write(labels, 1)
        return {}

    return work


def blended(
    job: Job, classes: int, source: Any, scored: Callable[..., NDArray[np.float32]]
) -> NDArray[np.uint8]:
    """Return the class whose weighted scores are the greatest, (H, W)."""
    total = np.zeros((classes, *source.shape), np.float32)
    rise = np.sin(np.pi / 2 * (np.arange(job.window) + 0.5) / job.overlap) ** 2
    rise[job.overlap :] = 1
    weights = np.multiply.outer(rise * rise[::-1], rise * rise[::-1]).astype(np.float32)
    for row, col in corners(job, source.shape):
        window = Window(col, row, job.window, job.window)
        image = source.read(window=window.intersection(Window(0, 0, *source.shape[::-1])))
        place = total[:, row : row + job.window, col : col + job.window]
        place += (scored(image) * weights)[:, : place.shape[1], : place.shape[2]]
    return total.argmax(axis=0).astype(np.uint8)


def corners(job: Job, shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the first row and column of each window; the last ones may reach beyond the raster."""
    starts = [range(0, max(side - job.overlap, 1), job.stride) for side in shape]
    yield from product(*starts)


WAYS: dict[str, Prepare] = {
    **dict.fromkeys(OWN, rsseg),
    "dask": dask,
    "forward": forward,
    "copy": copy,
    "plain": plain,
}
