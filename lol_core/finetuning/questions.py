"""Four-way definition → word questions from named sources: the data the language zoo is fine-tuned on.

A source is one of WordNet's lexicographer files (noun.animal, verb.motion, …), as a source of ARC is an exam board.
The questions of the sample zoo are committed beside it, so a rebuild needs WordNet only when the questions
themselves are to be made anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from lol_core.errors import DataMissingError

LEXICOGRAPHER_FILES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state
noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption
verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative
verb.weather adj.ppl
""".split()
"""Names of WordNet's lexicographer files by number (lexnames(5WN))."""

N_SOURCES = 20
PER_SOURCE = {"train": 40, "validation": 20, "test": 50}
ALWAYS_KEPT_TRAIN = 160
"""The largest source is never dropped and holds more training questions, as Mercury does in ARC (appendix D.2)."""


def read_glosses(wordnet: Path, is_common: Callable[[str], bool]) -> pd.DataFrame:
    """First senses of common single words: columns word, gloss, source.

    `wordnet` is the folder with data.noun, index.noun, data.verb, index.verb. A word counts once, under its first
    noun sense if it has one. Raises DataMissingError when a file is not there.
    """
    rows: dict[str, tuple[str, str, str]] = {}
    for part in ("noun", "verb"):
        for name in (f"data.{part}", f"index.{part}"):
            if not (wordnet / name).is_file():
                raise DataMissingError(
                    f"{wordnet / name}: not found. Install WordNet 3 (Debian: wordnet-base) or pass its dict folder."
                )
        first_sense = {}
        for line in (wordnet / f"index.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                first_sense[fields[0]] = fields[-int(fields[2])]
        for line in (wordnet / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            gloss = re.split(r'[;"]', gloss)[0].strip()
            for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
                fits = word.isalpha() and word.islower() and 3 <= len(gloss.split()) <= 18 and word not in gloss
                if fits and word not in rows and first_sense.get(word) == fields[0] and is_common(word):
                    rows[word] = (word, gloss, LEXICOGRAPHER_FILES[int(fields[1])])
    return pd.DataFrame(rows.values(), columns=["word", "gloss", "source"])


def make_questions(glosses: pd.DataFrame, embed_words: Callable[[list[str]], np.ndarray], seed: int) -> pd.DataFrame:
    """Questions with three hard distractors: the words of the same source and split nearest to the answer.

    `embed_words` maps k words to unit vectors (k, d). Returns columns source, split, gloss, word, distractor_1..3.
    """
    rng = np.random.default_rng(seed)
    sources = glosses.source.value_counts().index[:N_SOURCES]
    parts = []
    for source in sources:
        of_source = glosses[glosses.source == source]
        of_source = of_source.iloc[rng.permutation(len(of_source))]
        start = 0
        for split, count in PER_SOURCE.items():
            count = ALWAYS_KEPT_TRAIN if split == "train" and source == sources[0] else count
            part = of_source.iloc[start : start + count].copy()
            start += count
            vectors = embed_words(part.word.tolist())
            similarity = vectors @ vectors.T
            np.fill_diagonal(similarity, -np.inf)
            nearest = np.argsort(-similarity, axis=1)[:, :3]
            for k in range(3):
                part[f"distractor_{k + 1}"] = part.word.to_numpy()[nearest[:, k]]
            part["split"] = split
            parts.append(part)
    columns = ["source", "split", "gloss", "word", "distractor_1", "distractor_2", "distractor_3"]
    return pd.concat(parts, ignore_index=True)[columns]
