"""Reading files of JSON lines."""

import json

import pytest

from othink_jax.errors import UserError
from othink_jax.files import read_json_lines


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_text_may_hold_what_unicode_calls_a_line_separator(tmp_path, separator):
    rows = [{"text": f"a{separator}b"}, {"text": "c"}]
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_json_lines(file) == {1: rows[0], 2: rows[1]}


def test_blank_lines_are_skipped_and_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('\n{"a": 1}\r\n \n{"a": 2}')
    assert read_json_lines(file) == {2: {"a": 1}, 4: {"a": 2}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', r"rows\.jsonl, line 2 is not JSON: "),
        (b'{"a": 1}\n' + b"[" * 100_000, r"rows\.jsonl, line 2 is not JSON: "),
        (b"[1]\n", r"rows\.jsonl, line 1 is not a JSON object"),
        (b'{"a": "\xff"}\n', r"rows\.jsonl is not UTF-8 text"),
        (None, r"rows\.jsonl cannot be read: No such file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, content, message):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json_lines(file)
