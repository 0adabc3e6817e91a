"""What tasks with classes share."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from lol_core.learning.tasks.base import TREES

SURE = 0.98
"""What a known label counts as when it is written as a probability."""


def class_name(value: object) -> str:
    """A class label as text: whole numbers without the decimals that pandas gives a column with gaps."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def class_probabilities(
    constant: bool, X: np.ndarray, y: pd.Series, X_test: np.ndarray, *, classes: list[str], seed: int
) -> np.ndarray:
    """Probabilities (B, classes) by the classes' shares, or by a random forest."""
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import RandomForestClassifier

    model = DummyClassifier(strategy="prior") if constant else RandomForestClassifier(TREES, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # that there are many is not an error
        model.fit(X, y)
    probabilities = np.zeros((len(X_test), len(classes)))
    probabilities[:, [classes.index(name) for name in model.classes_]] = model.predict_proba(X_test)
    return probabilities
