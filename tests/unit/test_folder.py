"""A search's folder is never taken over by another search."""

from pathlib import Path

import pytest

from search.folder import SearchFolder
from search.recorded import create_ledger
from spaces import load_search_space
from trainables.errors import InputError

DIGITS = Path(__file__).parents[2] / "spaces" / "digits.yaml"


@pytest.mark.parametrize("left", ["manifest.json", "study.db"])
def test_whatever_a_search_left_keeps_its_name_taken(tmp_path: Path, left: str) -> None:
    folder = SearchFolder(tmp_path, "kept")
    folder.path.mkdir()
    (folder.path / left).write_bytes(b"results")
    with pytest.raises(InputError, match="exists already"):
        create_ledger(load_search_space(DIGITS), folder, "text")
    assert [p.name for p in folder.path.iterdir()] == [left]
    assert (folder.path / left).read_bytes() == b"results"
