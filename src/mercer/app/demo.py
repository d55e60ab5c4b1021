"""What `make demo` runs: the main job on a medical table, and on a photo of which a tenth of the pixels are known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.image import imsave
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from sklearn.datasets import load_diabetes, load_sample_image
from sklearn.neighbors import KNeighborsRegressor

from mercer.app import jobs, predicting
from mercer.app.cores import threads
from mercer.app.exits import UsageError
from mercer.app.folder import check_place
from mercer.app.progress import Watch
from mercer.app.tables import read_table, write_table
from mercer.app.words import percent, shown

SHARE, SEED, CHANNELS = 0.1, 0, ("red", "green", "blue")
_PHOTO_SECONDS = 40.0


def diabetes(out: Path) -> jobs.Fitted:
    """442 patients, ten measurements, progression after a year: fitted, judged, reported."""
    data = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "progression"})
    write_table(pa.table({name: data[name].to_numpy() for name in data.columns}), out / "diabetes.parquet")
    return jobs.run(jobs.Job(out / "diabetes.parquet", ("progression",), out / "diabetes-model"))


def psnr(true: np.ndarray, found: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels of colours in 0..255."""
    return float(20 * np.log10(255) - 10 * np.log10(np.mean((true - np.clip(found, 0, 255)) ** 2)))


def _png(picture: np.ndarray) -> bytes:
    target = io.BytesIO()
    imsave(target, np.clip(np.rint(picture), 0, 255).astype(np.uint8), format="png")
    return target.getvalue()


def _peers(at: np.ndarray, colours: np.ndarray, everywhere: np.ndarray) -> dict[str, np.ndarray]:
    """What scipy's linear interpolation (nearest outside the hull) and 8 nearest neighbours make of the same pixels."""
    with threads(len(everywhere)):
        linear = LinearNDInterpolator(at, colours)(everywhere)
        outside = np.isnan(linear).any(1)
        linear[outside] = NearestNDInterpolator(at, colours)(everywhere[outside])
        near = KNeighborsRegressor(8, weights="distance").fit(at, colours).predict(everywhere)
    return {"scipy linear": linear, "8 nearest": near}


def photo(out: Path) -> tuple[jobs.Fitted, dict[str, Any]]:
    """A tenth of the pixels of china.jpg as a table of two coordinates and three colours; all pixels predicted."""
    image = load_sample_image("china.jpg").astype(np.float64)
    height, width, _ = image.shape
    y, x = np.divmod(np.arange(height * width), width)
    everywhere = np.stack([x, y], axis=1).astype(np.float64)
    colours = image.reshape(-1, 3)
    known = np.sort(np.random.default_rng(SEED).permutation(len(x))[: int(SHARE * len(x))])
    columns = {"column": x[known], "row": y[known]} | {c: colours[known, i] for i, c in enumerate(CHANNELS)}
    write_table(pa.table(columns), out / "photo-known.parquet")
    write_table(pa.table({"column": x, "row": y}), out / "photo-all.parquet")
    job = jobs.Job(out / "photo-known.parquet", CHANNELS, out / "photo-model", "regression", _PHOTO_SECONDS, folds=3)
    check_place(job.out)
    with Watch(job.seconds, job.folds + 3) as watch:
        fitted = jobs.compute(job, watch)
        watch.stage("all pixels")
        found = _predicted(fitted, out)
        rest = np.setdiff1d(np.arange(len(x)), known)
        quality = {"mercer": psnr(colours[rest], found[rest])}
        for name, other in _peers(everywhere[known], colours[known], everywhere).items():
            quality[name] = psnr(colours[rest], other[rest])
        watch.stage("report")
        drawn = np.full_like(colours, 255.0)
        drawn[known] = colours[known]
        pictures = {
            "known.png": _png(drawn.reshape(image.shape)),
            "reconstructed.png": _png(found.reshape(image.shape)),
            "original.png": _png(image),
        }
        for name, data in pictures.items():
            (out / name).write_bytes(data)
        ranking = ", ".join(f"{name} {value:.2f} dB" for name, value in quality.items())
        facts = fitted.facts | {
            "pictures": [
                {"file": "known.png", "caption": f"What it was given: {percent(SHARE, 0)} of {len(x):,} pixels."},
                {"file": "reconstructed.png", "caption": (f"What it made of them: {quality['mercer']:.2f} dB "
                    "on the pixels it was not given.")},
                {"file": "original.png", "caption": "The photo itself (china.jpg, as it ships with scikit-learn)."},
            ],
            "picture_sentence": f"Peak signal-to-noise ratio on the unknown pixels, more is better: {ranking}.",
        }  # fmt: skip
        fitted = replace(fitted, facts=facts)
        jobs.keep(job, fitted, pictures)
        quality["seconds"] = round(watch.elapsed(), 1)
    return fitted, quality


def _predicted(fitted: jobs.Fitted, out: Path) -> np.ndarray:
    """The colours of all pixels, n x 3, also left as a table."""
    table = read_table(out / "photo-all.parquet")
    written = predicting.predictions(fitted.model, table)
    write_table(written, out / "photo-predicted.parquet")
    return np.stack([written.column(c).to_numpy() for c in CHANNELS], axis=1)


def run(out: Path) -> dict[str, Any]:
    """Both demos into a folder; what they found."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out '{shown(out)}' is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    first = diabetes(out)
    second, quality = photo(out)
    held = {t["name"]: t["coverage"]["measured"] for f in (first, second) for t in f.facts["targets"]}
    return {
        "out": str(out), "diabetes": first.facts["verdict"], "photo": second.facts["verdict"],
        "score": first.facts["targets"][0]["leaderboard"][0]["scores"]["r2"],
        "psnr": {k: v for k, v in quality.items() if k != "seconds"}, "photo_seconds": quality["seconds"],
        "diabetes_seconds": first.facts["seconds"]["everything"], "held": held,
        "interrupted": first.facts["interrupted"] or second.facts["interrupted"],
    }  # fmt: skip


def as_text(facts: dict[str, Any]) -> str:
    """What the demos found, as lines."""
    lines = [f"diabetes ({facts['diabetes_seconds']:.0f} s): {facts['diabetes']}"]
    lines.append(
        f"photo ({facts['photo_seconds']:.0f} s): " + ", ".join(f"{k} {v:.2f} dB" for k, v in facts["psnr"].items())
    )
    lines.append("90 % bands held " + ", ".join(f"{percent(v)} of {k}" for k, v in facts["held"].items()))
    lines.append(
        f"look at {facts['out']}/diabetes-model/report.html, "
        f"{facts['out']}/photo-model/report.html, {facts['out']}/reconstructed.png"
    )
    return "\n".join(lines)
