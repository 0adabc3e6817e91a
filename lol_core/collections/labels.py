"""Tables of labels, and which row belongs to which file."""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO
from unicodedata import normalize

import pandas as pd

from lol_core.collections.names import MODEL_FILE_NAMES, stem_of
from lol_core.errors import ZooError

FILES = ("file", "filename", "file_name", "path", "filepath", "file_path")
NAMES = (*FILES, "lora", "adapter", "name", "id")
"""What a column that names LoRAs is called, in any case."""
_WHOLE = re.compile(r"\s*-?\d+\s*")
_UNNAMED = re.compile(r"Unnamed: \d+")
"""What pandas calls a column without a name."""
_ABSOLUTE = re.compile("/|~|[a-z]:/")
_TOLD = re.compile(r'"?sep=([^\r\n])"?\r?\n', re.IGNORECASE)
"""The line that tells Excel what separates columns."""
LABEL_FILES = ("labels.csv", "labels.parquet")
MOST_LETTERS = 300
"""Of the names of columns in a message."""


def labels_file(folder: Path) -> Path | None:
    """The table of labels that lies in a folder, if one does."""
    return next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)


def read_labels(path: Path, content: BinaryIO | None = None) -> pd.DataFrame:
    """Read a labels table. content: what to read instead of what lies at the path. Raises ZooError naming the file when
    it cannot be read or is empty.
    """
    try:
        read = _read_parquet if path.suffix == ".parquet" else _read_csv
        table = read(path if content is None else content)
    except (OSError, ValueError, ImportError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ZooError(
            f"{path}: the labels cannot be read ({reason}). Expected Parquet, or CSV in UTF-8 with a header line."
        ) from error
    if not isinstance(table.index, pd.RangeIndex):  # Parquet keeps one that was set
        table = table.reset_index()
    for name in [name for name, column in table.items() if _is_yes_or_no(column)]:
        table[name] = table[name].map(lambda text: text.lower() == "yes", na_action="ignore")
    if table.empty or table.shape[1] < 2:
        raise ZooError(
            f"{path}: expected at least one row, a column that names LoRAs and a column of labels; found"
            f" {table.shape[0]} rows and the columns {_listed(table)}. Columns of a CSV file are separated by commas,"
            " semicolons or tabs."
        )
    return table


def as_table(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels, indexed by LoRA, as a table to write; the first column is "path" where no label is so called."""
    name = "path"
    while name in labels.columns:
        name = f"lora_{name}"
    return labels.rename_axis(name).reset_index()


def _is_yes_or_no(column: pd.Series) -> bool:
    """Whether its texts are yes and no, in any case, and nothing else."""
    if pd.api.types.is_numeric_dtype(column):
        return False
    texts = column.dropna().unique()
    if any(str(text).lower() not in ("yes", "no") for text in texts):  # of names the first tells
        return False
    return len({str(text).lower() for text in texts}) == 2


def _listed(table: pd.DataFrame) -> str:
    """The names of its columns, as far as a message has room for them."""
    return shorten(", ".join(map(str, table.columns)), MOST_LETTERS, placeholder=f" … ({table.shape[1]:,} in all)")


def _read_parquet(source: Path | BinaryIO) -> pd.DataFrame:
    """As pandas reads it, but for names of columns, which are text, for decimals, which are numbers, and for lists and
    the like, which are shown as text.
    """
    table = pd.read_parquet(source).rename(columns=str)
    kinds = {str(name): pd.api.types.infer_dtype(column) for name, column in table.items()}
    return table.assign(
        **{name: table[name].astype(float) for name, kind in kinds.items() if kind == "decimal"},
        **{name: table[name].map(str, na_action="ignore") for name, kind in kinds.items() if kind == "mixed"},
    )


def _text(source: Path | BinaryIO) -> str:
    """A CSV file's letters: UTF-8, or UTF-16 where it begins with its mark, as spreadsheets write it."""
    raw = source.read_bytes() if isinstance(source, Path) else source.read()
    try:
        return raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"line {line} is not in UTF-8: save it as UTF-8, which spreadsheets call CSV UTF-8"
        raise ValueError(reason) from error


def _separator(text: str) -> str:
    """A comma; a semicolon or a tab where the header has that and no comma."""
    header = pd.read_csv(StringIO(text), nrows=0).columns
    return next((mark for mark in ";\t" if len(header) == 1 and mark in header[0]), ",")


def _read_csv(source: Path | BinaryIO) -> pd.DataFrame:
    """As pandas reads it, but for whole numbers that begin with a zero, which are names such as 0001, for None
    among texts, which is a class like the others, for separators that end rows, and for decimal commas where columns
    are not separated by commas.
    """
    text = _text(source)
    told = _TOLD.match(text)
    if told:
        text = text[told.end() :]
    mark = told[1] if told else _separator(text)

    def read(**options: Any) -> pd.DataFrame:
        return pd.read_csv(StringIO(text), sep=mark, skipinitialspace=True, **options)

    table = read()
    ends: dict[str, Any] = {}
    if not isinstance(table.index, pd.RangeIndex):  # rows have more fields than the header
        if table.index.nlevels == 1 and table.iloc[:, -1].isna().all():
            ends = {"index_col": False, "usecols": range(table.shape[1])}
            table = read(**ends)
        elif table.index.nlevels > 1:
            raise ValueError(f"its header has {table.shape[1]} columns and its rows have more")
    if mark != ",":
        table = table.apply(_with_points)
    whole = [str(name) for name, column in table.items() if pd.api.types.is_integer_dtype(column)]
    texts = [
        str(name)
        for name, column in table.items()
        if isinstance(column.dtype, pd.StringDtype) and column.isna().any() and column.notna().any()
    ]
    whole = whole if re.search(rf'[\n "{re.escape(mark)}]0\d', text) else []
    texts = texts if "None" in text else []
    if not whole and not texts:
        return table
    written = read(dtype=str, keep_default_na=False, **ends)
    return table.assign(
        **{name: written[name] for name in whole if written[name].str.match(r"\s*0\d").any()},
        **{name: table[name].mask(written[name] == "None", "None") for name in texts},
    )


def _with_points(column: pd.Series) -> pd.Series:
    """A column of texts that are all numbers, some with a decimal comma, as numbers; another as it is."""
    if not isinstance(column.dtype, pd.StringDtype):
        return column
    if not column.str.contains(",", regex=False).any():
        return column
    try:
        return pd.to_numeric(column.str.replace(",", ".", regex=False)).astype(float)
    except ValueError:
        return column


def with_labels(table: pd.DataFrame, labels: pd.DataFrame, after: str) -> pd.DataFrame:
    """A table indexed by LoRA with the labels of each behind one of its columns. A label that is called as one of the
    columns becomes "NAME (label)", as often as it takes.
    """
    taken, called = {*map(str, table.columns), *map(str, labels.columns)}, {}
    for name in labels.columns.intersection(table.columns):
        called[name] = f"{name} (label)"
        while called[name] in taken:
            called[name] += " (label)"
        taken.add(called[name])
    own, told = list(table.columns), labels.rename(columns=called)
    place = own.index(after) + 1
    return table.join(told)[[*own[:place], *told.columns, *own[place:]]]


def _aliases(path: str) -> list[str]:
    """What a labels table may call a file, most specific first: relative path, path without suffix, folder, file name,
    stem, folder name.
    """
    folder, _, name = path.rpartition("/")
    stem = stem_of(name)
    if folder and stem in MODEL_FILE_NAMES:
        return [path, folder, folder.rpartition("/")[2]]
    return [path, f"{folder}/{stem}" if folder else stem, name, stem]


def _plain(name: object) -> str:
    """One spelling of what other systems write: with backslashes, in quotes, in capitals, with accents as letters of
    their own.
    """
    name = str(name).strip().strip("\"'").replace("\\", "/").removeprefix("./").rstrip("/")
    return (name if name.isascii() else normalize("NFC", name)).casefold()


def _moved(told: Sequence[str], known: Mapping[str, str | None]) -> list[str | None]:
    """The files that absolute paths name, all in one folder, wherever that lay when they were written; none otherwise.
    told, known: in one spelling.
    """
    if not all(map(_ABSOLUTE.match, told)):
        return []
    for slash in re.finditer("/", told[0]):
        folder = told[0][: slash.end()]
        if not all(name.startswith(folder) for name in told):
            break
        found = [known.get(name.removeprefix(folder)) for name in told]
        if any(found):
            return found
    return []


def _is_called_so(column: object) -> bool:
    return str(column).strip().lower() in NAMES


def _is_number(values: pd.Series) -> bool:
    """Whether all are whole numbers. Of texts the first mostly tells."""
    return pd.api.types.is_integer_dtype(values) or all(map(_WHOLE.fullmatch, map(str, values)))


def _counts_rows(table: pd.DataFrame, column: str) -> bool:
    """Whether it is the index that pandas and R write beside a table: without a name, 0, 1, 2 … or 1, 2, 3 …"""
    values = table[column]
    if not _UNNAMED.fullmatch(column) or not pd.api.types.is_integer_dtype(values):
        return False
    return values.tolist() in (list(range(len(values))), list(range(1, len(values) + 1)))


def _joining(table: pd.DataFrame, matches: Mapping[str, pd.Series]) -> str | None:
    """The column that names most files. One that is called so counts twice, and so does one of text: where LoRAs are
    called 1, 2, 3, the numbers of rows that pandas writes name files too.
    """

    def weight(column: str) -> tuple[int, bool]:
        text = not _is_number(table[column])
        return int(matches[column].notna().sum()) * (1 + _is_called_so(column)) * (1 + text), text

    return max(matches, key=weight, default=None)


def _chance(table: pd.DataFrame, column: str, matches: Mapping[str, pd.Series], example: str) -> str | None:
    """Why a column of numbers may name files by chance only: another is called a file and names none, or another of
    numbers names as many, and others. example: of a file's name.
    """
    count = matches[column].notna().sum()
    for other in table.columns:
        rival = matches.get(other)
        if str(other).strip().lower() in FILES and (rival is None or rival.isna().all()):
            return (
                f"its column {other!r} names no file of the folder; found {str(table[other].iloc[0])!r}, expected"
                f" relative paths or file names, such as {example!r}. (Numbers of {column!r} would, perhaps by chance.)"
            )
        if rival is not None and other != column and rival.notna().sum() == count and not rival.equals(matches[column]):
            return (
                f"its columns {column!r} and {other!r} both hold numbers that name files. Call the one that is meant"
                " `file`."
            )
    return None


def join_labels(table: pd.DataFrame, ids: Sequence[str], path: Path) -> tuple[pd.DataFrame, str, tuple[str, ...]]:
    """Join a table to files by the column that names most of them: (labels indexed by id, that column, names that
    belong to no file).

    A name that several files share joins none of them. Raises ZooError when nothing joins or a LoRA has two rows.
    """
    owners: dict[str, str | None] = {}
    for id in ids:
        for alias in _aliases(id):
            owners[alias] = id if owners.get(alias, id) == id else None

    textual = [column for column in table.columns if not pd.api.types.is_float_dtype(table[column])]
    texts = {column: table[column].astype(str).str.removeprefix("./").tolist() for column in textual}

    def matched(find: Callable[[str], str | None]) -> dict[str, pd.Series]:
        return {column: pd.Series(map(find, told), table.index, dtype=object) for column, told in texts.items()}

    matches = matched(owners.get)
    column = _joining(table, matches)
    if column is None or matches[column].isna().any():  # asked last: it takes longer, and two names may become one
        plain: dict[str, str | None] = {}
        for alias, known in owners.items():
            name = _plain(alias)
            plain[name] = known if plain.get(name, known) == known else None
        matches = matched(lambda told: owners[told] if told in owners else plain.get(_plain(told)))
        for name, found in matches.items():
            if found.isna().all() and any(moved := _moved([*map(_plain, texts[name])], plain)):
                matches[name] = pd.Series(moved, table.index, dtype=object)
        column = _joining(table, matches)
    if column is None or (ids and matches[column].notna().sum() == 0):
        raise ZooError(
            f"{path}: none of its columns ({_listed(table)}) names a file of the folder. "
            f"One column must hold relative paths or file names, such as {ids[0] if ids else 'loras/a.safetensors'!r}."
        )
    guessed = ids and _is_number(table[column]) and not _is_called_so(column)
    if guessed and (why := _chance(table, column, matches, ids[0])):
        raise ZooError(f"{path}: {why}")
    counting = [name for name in table.columns if name != column and _counts_rows(table, name)]
    joined = matches[column]
    twice = joined[joined.notna() & joined.duplicated()]
    if len(twice):
        raise ZooError(
            f"{path}: {len(twice)} LoRAs have more than one row in column {column!r}, first {twice.iloc[0]!r}. Keep one"
            " row each."
        )
    labels = (
        table[joined.notna()]
        .set_index(joined[joined.notna()].astype(str).rename(None))
        .drop(columns=[column, *counting])
        .reindex(list(ids))
    )
    return labels, str(column), tuple(table.loc[joined.isna(), column].astype(str))
