"""Fits the lab's classifiers with scikit-learn, once, and keeps their parameters as JSON.

A lab runs many model servers on few cores, and importing scikit-learn costs each of them more than a second. So the
classifiers are fitted here, their parameters are cached under a key of this file, and the servers compute the same
decision function without scikit-learn (a test compares the two).

The data are scikit-learn's own breast-cancer measurements: the features' scales differ by four orders of magnitude, so
the classic mistake in serving, to forget the scaler, leaves a model that answers every request and is mostly wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.build import cache_folder

GOOD_MEASUREMENTS = 5
"""The first model knows only the first five of thirty measurements: about 0.91 right, where all thirty give 0.98."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """A fitted scaler and logistic regression over the first `len(weights)` features of a row."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float


@dataclass(frozen=True, slots=True)
class Row:
    """One held-out row of the data set with its label, as it is replayed by the load."""

    features: tuple[float, ...]
    label: int


def split_data() -> tuple[Any, Any, Any, Any]:
    """Training features, held-out features, training labels, held-out labels; the same halves every time."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    data = load_breast_cancer()
    halves: tuple[Any, Any, Any, Any] = tuple(
        train_test_split(data.data, data.target, test_size=0.5, random_state=0, stratify=data.target)
    )
    return halves


def fit_pipelines() -> dict[str, Any]:
    """The scikit-learn pipelines by model name, fitted on the training half."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, _, labels, _ = split_data()
    good = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    better = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return {
        "good": good.fit(features[:, :GOOD_MEASUREMENTS], labels),
        "better": better.fit(features, labels),
    }


def load_parameters(name: str, folder: Path | None = None) -> Parameters:
    """The fitted parameters of `good` or `better`; trains first if the cache is empty."""
    stored = json.loads(ensure_trained(folder).read_text())["models"][name]
    return Parameters(
        mean=tuple(stored["mean"]),
        scale=tuple(stored["scale"]),
        weights=tuple(stored["weights"]),
        bias=stored["bias"],
    )


def load_rows(folder: Path | None = None) -> tuple[Row, ...]:
    """The held-out rows, which no model has seen in training."""
    stored = json.loads(ensure_trained(folder).read_text())["rows"]
    return tuple(Row(features=tuple(row["features"]), label=row["label"]) for row in stored)


def ensure_trained(folder: Path | None = None) -> Path:
    """The file with the parameters and the held-out rows, written by the first caller.

    Several processes may train at the same time: each writes its own file and renames it, and all write the same.
    """
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = (folder or cache_folder()) / f"models-{key}.json"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(_train()))
        draft.replace(target)
    return target


def _train() -> dict[str, Any]:
    _, held_out, _, labels = split_data()
    models = {}
    for name, pipeline in fit_pipelines().items():
        scaler, classifier = pipeline[0], pipeline[-1]
        models[name] = {
            "mean": scaler.mean_.tolist(),
            "scale": scaler.scale_.tolist(),
            "weights": classifier.coef_[0].tolist(),
            "bias": float(classifier.intercept_[0]),
        }
    rows = [
        {"features": features.tolist(), "label": int(label)}
        for features, label in zip(held_out, labels, strict=True)
    ]
    return {"models": models, "rows": rows}


if __name__ == "__main__":
    print(ensure_trained())
