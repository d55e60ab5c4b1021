"""The strict schema of model.json: every key known, every number finite, every name from a list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION = 2
Text = Annotated[str, Field(max_length=100_000)]
_LARGEST = 1e152  # no table that is read holds larger numbers or spreads
Finite = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=_LARGEST, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    column: Text


class NumberPart(_Part):
    """mercer.app.encoders.NumberEncoder."""

    encoder: Literal["number"]
    center: Finite
    scale: Positive
    clip: bool
    absent: bool
    low: Finite
    high: Finite
    kind: Literal["number", "flag", "date"]


class FlagPart(_Part):
    """mercer.app.encoders.FlagEncoder."""

    encoder: Literal["flag"]
    share: Finite
    absent: bool
    kind: Literal["flag"]


class DatePart(_Part):
    """mercer.app.encoders.DateEncoder."""

    encoder: Literal["date"]
    start: Finite
    span: Positive
    cycles: list[Literal["year", "week", "day"]]
    absent: bool
    format: Annotated[str, Field(max_length=100)]
    kind: Literal["date"]


class LevelPart(_Part):
    """mercer.app.encoders.LevelEncoder."""

    encoder: Literal["levels"]
    levels: list[Text]
    absent: bool
    kind: Literal["text"]


class MeanPart(_Part):
    """mercer.app.encoders.MeanEncoder."""

    encoder: Literal["means"]
    means: dict[Text, list[Finite]]
    counts: dict[Text, int]
    prior: list[Finite]
    absent: bool
    kind: Literal["text"]


class WordPart(_Part):
    """mercer.app.encoders.WordEncoder; its directions are in the weights."""

    encoder: Literal["words"]
    absent: bool


ColumnPart = Annotated[
    NumberPart | FlagPart | DatePart | LevelPart | MeanPart | WordPart, Field(discriminator="encoder")
]


class TargetPart(BaseModel):
    """A target: its name, task and classes, and what its column held."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Text
    task: Literal["regression", "classification"]
    classes: list[Text]
    form: Literal["number", "flag", "text"]


_Power = Annotated[float, Field(ge=-700, le=700, allow_inf_nan=False)]  # beyond it exponentials are infinite


class ScalePart(BaseModel):
    """mercer.learn.tails.LogScale."""

    model_config = ConfigDict(extra="forbid", strict=True)
    centre: Finite
    spread: Positive
    even: Annotated[float, Field(ge=1, le=_LARGEST, allow_inf_nan=False)]
    odd: Finite
    low: _Power
    high: _Power


class HeadPart(BaseModel):
    """A learner: the targets it predicts, its state without arrays, its scale, and how it is drawn to the mean."""

    model_config = ConfigDict(extra="forbid", strict=True)
    estimator: Literal["KernelRidge", "KernelClassifier", "NeighbourRidge"]
    targets: list[Annotated[int, Field(ge=0)]]
    state: dict[str, Any]
    scale: ScalePart | None = None
    near: ScalePart | None = None
    pulls: list[Annotated[list[Finite], Field(min_length=2, max_length=2)]] = []


class BandPart(BaseModel):
    """How the bands or sets of a learner are calibrated, without arrays."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["local", "sets"]
    state: dict[str, Any] = {}


class Manifest(BaseModel):
    """model.json."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: Literal[2]
    mercer: Annotated[str, Field(max_length=50)]
    targets: Annotated[list[TargetPart], Field(min_length=1)]
    columns: Annotated[list[ColumnPart], Field(min_length=1)]
    heads: Annotated[list[HeadPart], Field(min_length=1)]
    bands: list[BandPart]
    files: dict[FileName, Digest]
    seal: Annotated[str, Field(max_length=64)]
