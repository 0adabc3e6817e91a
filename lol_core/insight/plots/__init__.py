"""Figures: data in, a plotly figure out. A file for each subject."""

from lol_core.insight.plots.collection import collection_map, frequencies
from lol_core.insight.plots.edits import edit_path, merged_modules
from lol_core.insight.plots.experiments import (
    across,
    errors_of_models,
    merged_and_turned,
    models_beside_controls,
    sheet,
)
from lol_core.insight.plots.invariance import (
    factor_heatmaps,
    matrices,
    matrix,
    passage,
    spread_of_changes,
)
from lol_core.insight.plots.layers import base_map, module_comparison, module_norms, spectra
from lol_core.insight.plots.predictions import (
    along_run,
    calibration_curve,
    confusion_heatmap,
    learning_curves,
    predicted_against_true,
    ranking,
    residuals,
)
from lol_core.insight.plots.style import COLORS

__all__ = [
    "COLORS",
    "across",
    "along_run",
    "base_map",
    "calibration_curve",
    "collection_map",
    "confusion_heatmap",
    "edit_path",
    "errors_of_models",
    "factor_heatmaps",
    "frequencies",
    "learning_curves",
    "matrices",
    "matrix",
    "merged_and_turned",
    "merged_modules",
    "models_beside_controls",
    "module_comparison",
    "module_norms",
    "passage",
    "predicted_against_true",
    "ranking",
    "residuals",
    "sheet",
    "spectra",
    "spread_of_changes",
]
