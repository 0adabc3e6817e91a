"""What tells a part of a collection from the rest, by its labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def explain(labels: pd.DataFrame, selected: Sequence[str]) -> pd.DataFrame:
    """Which columns tell the selected LoRAs from the others: column, effect in 0 … 1, p-value, what it says; the
    largest effect first.

    Numbers: the size of 2 AUC − 1, of the rank-sum test. Texts with at most a quarter as many values as rows: Cramér's
    V. The p-values are those of one test each, not corrected for the number of columns.
    """
    from scipy.stats import chi2_contingency, mannwhitneyu  # takes a second to import

    inside = labels.index.isin(list(selected))
    rows = []
    if inside.any() and not inside.all():
        for column in labels.columns:
            values = labels[column]
            known = values.notna().to_numpy()
            inner, outer = values[inside & known], values[~inside & known]
            if not len(inner) or not len(outer) or values.nunique() < 2:
                continue
            if pd.api.types.is_numeric_dtype(values):
                test = mannwhitneyu(inner.astype(float), outer.astype(float))
                auc = float(test.statistic) / (len(inner) * len(outer))
                text = f"{'higher' if auc > 0.5 else 'lower'}: mean {inner.mean():.4g} against {outer.mean():.4g}"
                rows.append((column, abs(2 * auc - 1), float(test.pvalue), text))
            elif values.nunique() <= max(2, len(values) / 4):
                table = pd.crosstab(inside[known], values[known].astype(str))
                statistic, p, _, _ = chi2_contingency(table, correction=False)
                effect = float(np.sqrt(statistic / table.to_numpy().sum() / max(1, min(table.shape) - 1)))
                inner_share, outer_share = table.loc[True] / len(inner), table.loc[False] / len(outer)
                name = str((inner_share - outer_share).idxmax())
                text = f"{name}: {inner_share[name]:.0%} against {outer_share[name]:.0%}"
                rows.append((column, effect, float(p), text))
    return pd.DataFrame(rows, columns=["column", "effect", "p", "says"]).sort_values(
        "effect", ascending=False, ignore_index=True
    )


def name_clusters(clusters: pd.Series, labels: pd.DataFrame, least: float = 0.3) -> dict[int, str]:
    """Cluster number → what tells it apart in a word or two, from the column with the largest effect (see `explain`);
    "cluster k" when none reaches `least`.

    clusters: by id, −1 for those in none.
    """
    names: dict[int, str] = {}
    for k in sorted(set(clusters) - {-1}):
        members = list(clusters.index[clusters == k])
        reasons = explain(labels.reindex(clusters.index), members)
        names[int(k)] = f"cluster {k + 1}"
        if len(reasons) and reasons["effect"].iloc[0] >= least:
            column = str(reasons.loc[0, "column"])
            inside = labels[column].reindex(members).dropna()
            if not pd.api.types.is_numeric_dtype(inside):
                names[int(k)] = str(inside.astype(str).mode()[0])
            elif set(labels[column].dropna().unique()) <= {0, 1}:
                names[int(k)] = column if inside.mean() > 0.5 else f"no {column}"
            else:
                names[int(k)] = f"{'high' if inside.mean() > labels[column].mean() else 'low'} {column}"
    return names
