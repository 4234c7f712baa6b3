"""The text of a table: its encoding, the lines before its numbers, its columns and marks.

Nothing here knows what a column means. A table whose commas could be decimal marks as well as
separators is refused rather than guessed.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import axis_kind, name_kind
from ecg_agent_ray.ecg.formats.numerals import Numerals, is_number_text, numerals_of
from ecg_agent_ray.ecg.formats.parsed import check_size
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError

__all__ = ["TextTable", "decode_text", "read_table", "split_cells"]

_DELIMITERS = ("\t", ";", "|", ",")
_GAP = re.compile(r"^(?:|-{1,3}|nan|na|n/a|null|none|\?|[+-]?inf(?:inity)?)$", re.I)
_TIME = re.compile(
    r"^\W?(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}[T ]?)?\s*-?\d{1,4}:\d{2}(?::\d{2}.*|[.,]\d+.*)?$"
)
_SAMPLED_LINES = 400
_NUMERIC_SHARE = 0.5
_SAME_WIDTH_SHARE = 0.8
_MOST_STRAY_LINES = 0.5


@dataclass(frozen=True)
class TextTable:
    """``numbers`` (rows, columns) are NaN where a cell is empty or no number; ``texts`` has the
    cells of the columns that are times or words, by position; ``preamble`` the lines above."""

    header: list[list[str]]
    preamble: list[str]
    numbers: npt.NDArray[np.float64]
    texts: dict[int, list[str]]


def decode_text(data: bytes) -> str | None:
    """UTF-8, UTF-16 (also without its mark) or Latin-1 text; None for what is binary."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    head = data[:4096]
    if b"\0" in head:
        for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
            if zeros.count(0) > 0.9 * len(zeros):
                return data.decode(encoding, errors="replace")
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_table(text: str) -> TextTable | None:
    """The table in a text; None where the text is none.

    Raises RecordingError where the meaning of its commas or dots is ambiguous.
    """
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip(" \t,;|\"'\0")]
    if not lines:
        return None
    sampled = _evenly(lines[len(lines) // 5 :] or lines)
    delimiter, width = _delimiter(sampled)
    numeric = _numeric_columns([split_cells(line, delimiter) for line in sampled], width)
    if not numeric:
        return None
    begin = _body_start(lines, delimiter, width, numeric)
    if begin is None:
        return None
    preamble, body = lines[:begin], lines[begin:]
    if delimiter == "," and width > 1:
        delimiter, width = _checked_commas(body, preamble, width)
        numeric = numeric if width > 1 else [0]
    width = max(width, _width_of_header(preamble, sampled, delimiter))
    check_size(1, width * len(body), "the table")
    return _filled(body, preamble, delimiter, width, numeric)


def _width_of_header(preamble: Sequence[str], sampled: Sequence[str], delimiter: str | None) -> int:
    """The columns that are named, where each line has room for them, be the last ones mostly empty;
    else 0."""
    if not preamble or delimiter in (None, " "):
        return 0
    width = len(split_cells(preamble[-1], delimiter))
    room = min(line.count(str(delimiter)) + 1 for line in sampled)
    return width if room >= width else 0


def _evenly(lines: Sequence[str]) -> Sequence[str]:
    return lines[:: max(len(lines) // _SAMPLED_LINES, 1)]


def split_cells(line: str, delimiter: str | None) -> list[str]:
    """Cells without quotes and blanks; those left empty at the end are dropped but for one."""
    if delimiter is None:
        cells = [line]
    elif delimiter == " ":
        cells = line.split()
    elif '"' in line or "'" in line:
        quote = '"' if '"' in line else "'"
        try:
            cells = next(
                csv.reader([line], delimiter=delimiter, quotechar=quote, skipinitialspace=True)
            )
        except (csv.Error, StopIteration):
            cells = line.split(delimiter)
    else:
        cells = line.split(delimiter)
    cells = [cell.strip().strip("\"'").strip() for cell in cells]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return cells


def _delimiter(sampled: Sequence[str]) -> tuple[str | None, int]:
    """The sign between columns and their number: the first that cuts nearly all lines alike into
    cells that are mostly numbers."""
    for delimiter in (*_DELIMITERS, " "):
        rows = [split_cells(line, delimiter) for line in sampled]
        width, count = Counter(map(len, rows)).most_common(1)[0]
        # rows with gaps at their end are shorter
        width = max(w for w, n in Counter(map(len, rows)).items() if n >= 0.2 * count)
        alike = sum(len(row) <= width and len(row) > 1 for row in rows)
        if width < 2 or alike < _SAME_WIDTH_SHARE * len(rows):
            continue
        numeric = _numeric_columns(rows, width)
        if numeric and not _cuts_numbers(rows, width, numeric):
            return delimiter, width
    return None, 1


def _cuts_numbers(rows: Sequence[list[str]], width: int, numeric: Sequence[int]) -> bool:
    """Whether a column between numbers holds pieces of several (``004 0``), so that the sign is a
    decimal comma rather than between columns."""
    for column in set(range(width)) - set(numeric):
        cells = [row[column] for row in rows if len(row) > column and row[column]]
        pieces = sum(re.fullmatch(r"[\d\s.,+-]+", cell) is not None for cell in cells)
        if pieces > _NUMERIC_SHARE * len(cells):
            return True
    return False


def _is_value(cell: str) -> bool:
    return is_number_text(cell) or _TIME.match(cell) is not None


def _numeric_columns(rows: Sequence[list[str]], width: int) -> list[int]:
    """Columns that hold numbers or times in most rows that have something there; none where the
    table is mostly words."""
    found = []
    for column in range(width):
        cells = [row[column] for row in rows if len(row) > column]
        filled = [cell for cell in cells if not _GAP.match(cell)]
        if filled and sum(map(_is_value, filled)) > _NUMERIC_SHARE * len(filled):
            found.append(column)
    return found if any(is_number_text(r[c]) for r in rows for c in found if len(r) > c) else []


def _body_start(
    lines: Sequence[str], delimiter: str | None, width: int, numeric: Sequence[int]
) -> int | None:
    """The first of three lines of values in a row."""
    run = 0
    for i, line in enumerate(lines):
        run = run + 1 if _is_body(split_cells(line, delimiter), width, numeric) else 0
        if run == min(3, len(lines)):
            begin = i - run + 1
            return begin + 1 if _numbers_columns(lines[begin], delimiter, width) else begin
    return len(lines) - run if run and len(lines) - run <= 2 else None


def _is_body(cells: list[str], width: int, numeric: Sequence[int]) -> bool:
    if len(cells) > width + 1:
        return False
    there = [cells[column] for column in numeric if column < len(cells)]
    values = sum(map(_is_value, there))
    return values > 0 and all(_is_value(cell) or _GAP.match(cell) for cell in there)


def _numbers_columns(line: str, delimiter: str | None, width: int) -> bool:
    """Whether the line counts the columns (``0,1,2,…``), as programs do that have no names."""
    return width > 2 and split_cells(line, delimiter) == [str(i) for i in range(width)]


def _checked_commas(
    body: Sequence[str], preamble: Sequence[str], width: int
) -> tuple[str | None, int]:
    """Whether commas between whole numbers separate columns; None and 1 where they are decimal."""
    if any('"' in line or "'" in line or "." in line for line in _evenly(body)):
        return ",", width
    rows = [split_cells(line, ",") for line in _evenly(body)]
    # whole numbers have no zeros in front and no sign on zero; what is behind a comma has
    decimal = any(re.fullmatch(r"[+-]?0\d+|-0", cell) for row in rows for cell in row)
    headed = any(len(split_cells(line, ",")) == width for line in preamble[-2:])
    if not decimal and (headed or _surely_columns(rows)):
        return ",", width
    if decimal and width == 2 and not _names_two_columns(preamble):
        return None, 1
    raise RecordingError(
        "its commas are decimal marks or separate columns, which cannot be told apart",
        hint="export it with semicolons or tabs between columns, or with decimal points",
    )


def _surely_columns(rows: Sequence[list[str]]) -> bool:
    """Whole numbers behind the comma that no decimal fraction would look like."""
    if len(rows[0]) != 2:
        return len(rows[0]) % 2 == 1 or any(c.startswith("-") for r in rows for c in r[1::2])
    second = [row[1] for row in rows if len(row) == 2]
    if any(cell.startswith(("-", "+")) or cell == "0" for cell in second):
        return True
    if len({len(cell) for cell in second}) > 1 and any(cell.endswith("0") for cell in second):
        return True
    first = [int(row[0]) for row in rows if row[0].lstrip("+-").isdigit()]
    steps = np.diff(first)
    return bool(len(first) > 3 and steps[0] > 0 and np.all(steps == steps[0]))


def _names_two_columns(preamble: Sequence[str]) -> bool:
    cells = split_cells(preamble[-1], ",") if preamble else []
    return len(cells) == 2 and all(axis_kind(c) or name_kind(c) == "ecg" for c in cells)


def _filled(
    body: Sequence[str],
    preamble: list[str],
    delimiter: str | None,
    width: int,
    numeric: Sequence[int],
) -> TextTable:
    sampled = [split_cells(line, delimiter) for line in _evenly(body)]
    texts = [c for c in range(width) if c not in numeric or _is_time_column(sampled, c)]
    columns = [
        [row[c] for row in sampled if len(row) > c and not _GAP.match(row[c])]
        for c in range(width)
        if c not in texts
    ]
    numerals = numerals_of(columns)
    found: dict[int, list[str]] = {column: [] for column in texts}
    numbers = None
    if not texts:
        numbers = _quickly(body, delimiter, width, numerals)
    if numbers is None:
        numbers = np.full((len(body), width), np.nan)
        strays = 0
        for i, line in enumerate(body):
            cells = split_cells(line, delimiter)
            if len(cells) > width:
                raise CorruptRecordingError(
                    f"a line of the table has {len(cells)} columns, others have {width}",
                    hint="were decimal commas written between commas?",
                )
            good = _is_body(cells, width, numeric)
            strays += not good
            for column, cell in enumerate(cells):
                if column in found:
                    found[column].append(cell)
                elif good and not _GAP.match(cell):
                    numbers[i, column] = numerals.value(cell)
            for column in texts:
                if column >= len(cells):
                    found[column].append("")
        if strays > _MOST_STRAY_LINES * len(body):
            raise CorruptRecordingError("the table holds hardly any numbers")
    header = [_header_cells(line, delimiter, width) for line in preamble]
    return TextTable(header, preamble, numbers, found)


def _is_time_column(sampled: Sequence[list[str]], column: int) -> bool:
    cells = [row[column] for row in sampled if len(row) > column and row[column]]
    return sum(_TIME.match(cell) is not None for cell in cells) > _NUMERIC_SHARE * len(cells)


def _quickly(
    body: Sequence[str], delimiter: str | None, width: int, numerals: Numerals
) -> npt.NDArray[np.float64] | None:
    """Plain numbers in one go; None where a gap, a quote or a mark asks for the slower way."""
    if numerals.thousands or any("'" in line for line in body[:3]):
        return None
    text: Sequence[str] = body
    if numerals.decimal == ",":
        if delimiter == "," or any('"' in line for line in body[:3]):
            return None
        text = [line.replace(",", ".") for line in body]
    separator = None if delimiter in (None, " ") else delimiter
    try:
        values = np.loadtxt(
            text, delimiter=separator, comments=None, quotechar='"', ndmin=2, dtype=np.float64
        )
    except ValueError:
        return None
    return values if values.shape == (len(body), width) else None


def _header_cells(line: str, delimiter: str | None, width: int) -> list[str]:
    """A line above the numbers in as many cells as the table, where that can be done."""
    bare = re.sub(r"^\s*(?:#+|%+|//+)\s*", "", line)
    cells = split_cells(bare, delimiter)
    more = len(cells) - width
    if delimiter == " " and more > 0:
        # a name of several words, which only times have before names of leads
        joined = " ".join(cells[: more + 1])
        return [joined, *cells[more + 1 :]] if axis_kind(joined) else cells
    if len(cells) not in (width, width - 1) and len(split_cells(bare, None)) == width:
        return split_cells(bare, None)
    return cells
