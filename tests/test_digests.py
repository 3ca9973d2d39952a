"""Checksums of a directory's files."""

import subprocess

import pytest

from othink_jax.digests import SUMS, check_sums, write_sums
from othink_jax.errors import UserError


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "sub" / "b c.bin").write_bytes(bytes(range(256)))
    write_sums(tmp_path)
    return tmp_path


def test_files_that_are_what_was_written_pass(directory):
    assert check_sums(directory)
    (directory / "new.txt").write_text("of the user's own")
    assert check_sums(directory)


def test_a_directory_without_checksums_is_not_checked(tmp_path):
    assert not check_sums(tmp_path)


def test_the_tool_of_the_system_reads_them(directory):
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=directory, check=True)


def test_every_flipped_bit_is_noticed(directory):
    for file in ("a.json", "sub/b c.bin", SUMS):
        content = (directory / file).read_bytes()
        for byte in range(len(content)):
            changed = bytearray(content)
            changed[byte] ^= 1 << byte % 8
            (directory / file).write_bytes(changed)
            with pytest.raises(UserError, match=r"damaged"):
                check_sums(directory)
        (directory / file).write_bytes(content)


def test_all_that_is_absent_or_differs_is_named(directory):
    (directory / "a.json").unlink()
    (directory / "sub" / "b c.bin").write_bytes(b"other")
    with pytest.raises(UserError, match=r"a\.json is absent; sub/b c\.bin differs"):
        check_sums(directory)


def test_a_list_that_was_cut_is_noticed(directory):
    content = (directory / SUMS).read_bytes()
    for length in range(len(content)):
        if content[:length].endswith(b"\n"):
            continue  # between two lines: what is left is still right
        (directory / SUMS).write_bytes(content[:length])
        with pytest.raises(UserError, match="no list of checksums"):
            check_sums(directory)


def test_a_line_that_is_deleted_accepts_its_file(directory):
    (directory / "a.json").write_text('{"edited": true}')
    lines = (directory / SUMS).read_text().splitlines(keepends=True)
    (directory / SUMS).write_text("".join(line for line in lines if "a.json" not in line))
    assert check_sums(directory)
