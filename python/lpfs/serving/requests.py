"""The body of a request: JSON with raw rows, `{"rows": [{"hour": 7, "city": "Ulm"}, …]}`."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from lpfs.data.forms import Numeral
from lpfs.serving.failure import RequestError

__all__ = ["Row", "rows_of"]

Row: TypeAlias = dict[str, Any]
"""Column → None, a boolean, text, or a list of them; a number is text, as it is spelled."""


# As text, a number keeps all its digits, however many it has. NaN and infinities are no JSON, but
# many programs write them.
_PLAIN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
# To tell numbers from text takes three times as long.
_TOLD = json.JSONDecoder(parse_int=Numeral, parse_float=Numeral, parse_constant=Numeral)


def rows_of(body: bytes, most: int, told: bool = False) -> list[Row]:
    """The rows of a body. Raises RequestError for what is none, and for more than `most` rows.

    With `told`, numbers are `Numeral`.

    >>> rows_of(b'{"rows": [{"hour": 7.0, "city": null}]}', 10)
    [{'hour': '7.0', 'city': None}]
    """
    try:
        content = (_TOLD if told else _PLAIN).decode(body.decode())
        if b"\\u" in body:
            # Half of a surrogate pair, which JSON can write, is no text: nothing could hash it.
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(400, "expected text, got half of a surrogate pair") from error
    except UnicodeDecodeError as error:
        raise RequestError(400, f"expected UTF-8, byte {error.start} is not") from error
    except RecursionError as error:
        raise RequestError(400, "expected rows of single values and lists, got deeper ones") from (
            error
        )
    except ValueError as error:
        raise RequestError(400, f"expected JSON: {error}") from error
    if not isinstance(content, dict) or list(content) != ["rows"]:
        raise RequestError(422, 'expected {"rows": […]} and nothing beside it')
    rows = content["rows"]
    if not isinstance(rows, list):
        raise RequestError(422, "rows: expected a list of objects")
    if len(rows) > most:
        raise RequestError(413, f"expected at most {most:,} rows, got {len(rows):,}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RequestError(
                422, f"row {number}: expected an object with a value for every column"
            )
    return rows
