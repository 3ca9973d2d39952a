"""Reading files of JSON lines."""

import json

import pytest

from othink_jax.errors import UserError, quoted
from othink_jax.files import read_json, read_json_lines


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


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}')
    assert read_json_lines(tmp_path / "rows.jsonl") == {1: {"a": 1}, 2: {"a": 2}}
    (tmp_path / "one.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "one.json") == {"a": 1}


def test_a_number_that_python_does_not_read_is_exact(tmp_path):
    digits = "7" * 5000
    (tmp_path / "rows.jsonl").write_text(f'{{"a": {digits}}}')
    assert f"{read_json_lines(tmp_path / 'rows.jsonl')[1]['a']:f}" == digits


def test_bytes_that_are_no_utf8_can_be_left_to_the_reader(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n{"a": 2}')
    read = read_json_lines(tmp_path / "rows.jsonl", errors="surrogateescape")
    assert read == {1: {"a": "\udcff"}, 2: {"a": 2}}


def test_a_file_that_is_nested_too_deep_is_named(tmp_path):
    (tmp_path / "one.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=r"one\.json is not a JSON file"):
        read_json(tmp_path / "one.json")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb", r"a\nb"),
        ("\ud83d\0", r"\ud83d\x00"),
        ("x" * 300, "x" * 200 + "..."),
        ("é字", "é字"),
    ],
)
def test_what_a_stranger_wrote_is_quoted_as_part_of_one_line(text, line):
    assert quoted(text) == line
