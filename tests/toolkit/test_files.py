"""Files that appear whole: of several writers at a time, under any name, on a disk that fails."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from lpfs.data.cache import directory
from lpfs.files import appearing, write_durably
from lpfs.unfinished import locked, working_on


def test_two_who_write_the_same_file_at_a_time_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    with appearing(out) as one, one.open("w") as first:
        first.write("a" * 5000)
        with appearing(out) as another:
            another.write_text("b" * 50)
        first.write("a" * 5000)
        assert out.read_text() == "b" * 50
    assert out.read_text() == "a" * 10000
    assert [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize("name", ["x" * 255, "ж" * 127, "a.csv", "." + "b" * 250 + ".tsv"])
def test_a_name_may_be_as_long_as_the_disk_allows(name: str, tmp_path: Path) -> None:
    write_durably(tmp_path / name, b"content")
    assert [*tmp_path.iterdir()] == [tmp_path / name]
    with appearing(tmp_path / name) as place:
        assert place.suffix == Path(name).suffix  # by which some writers know their format
        place.write_bytes(b"more")
    assert (tmp_path / name).read_bytes() == b"more"


def test_a_directory_that_does_not_become_whole_goes(tmp_path: Path) -> None:
    with suppress(KeyError), appearing(tmp_path / "days") as place:
        place.mkdir()
        (place / "day_0").write_text("half")
        raise KeyError
    assert not [*tmp_path.iterdir()]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    out = tmp_path / "gone" / "scores.csv"
    with pytest.raises(FileNotFoundError, match=r"gone/scores\.csv"):
        write_durably(out, b"")


def test_a_result_that_appeared_meanwhile_is_not_worked_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "selection.json").write_text("{}")
    with pytest.raises(OSError, match=r"run: already exists$"), working_on(out):
        pass
    assert [*tmp_path.iterdir()] == [out]


def test_a_directory_that_went_while_its_lock_was_awaited_is_not_worked_in(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def flock(number: int, how: int) -> None:
        place.rmdir()
        place.mkdir()

    with (
        mock.patch("fcntl.flock", flock),
        pytest.raises(OSError, match="another process has worked there until now"),
        locked(place),
    ):
        pass


@pytest.mark.parametrize("number", sorted({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}))
def test_a_file_system_without_locks(number: int, tmp_path: Path) -> None:
    def build(place: Path) -> None:
        (place / "codes").write_bytes(b"2357")

    with mock.patch("fcntl.flock", side_effect=OSError(number, os.strerror(number))):
        # Caches need none.
        path, fault = directory(tmp_path / "cache", "x", build, durable=True)
        assert (path / "codes").read_bytes() == b"2357"
        (path / "codes").write_bytes(b"2356")
        path, fault = directory(tmp_path / "cache", "x", build, durable=True)
        assert fault is not None
        assert (path / "codes").read_bytes() == b"2357"
        # Two processes in one directory would be the end of both.
        with (
            pytest.raises(OSError, match=r"run\.unfinished: cannot be locked: "),
            working_on(tmp_path / "run"),
        ):
            pass
