"""Whatever a search-space file holds: refused in words and in time, or valid proposals only."""

import multiprocessing

import pytest
from fuzz_spaces import Verdict, judge_all

MOST_S = 2.0  # of processor time, which other work on the machine does not stretch
MOST_MIB = 500
PROCESSES, SLICE = 2, 75


def fuzz(seeds: range) -> list[Verdict]:
    """Judge all of them in processes of their own; returns the verdicts after the checks."""
    slices = [seeds[at : at + SLICE] for at in range(0, len(seeds), SLICE)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        found = pool.map(judge_all, slices, chunksize=1)
    verdicts = [verdict for part, _ in found for verdict in part]
    assert [v for v in verdicts if v.fault] == []
    assert [v for v in verdicts if v.load_s > MOST_S or v.propose_s > MOST_S] == []
    assert max(mib for _, mib in found) < MOST_MIB
    return verdicts


def test_broken_files_are_refused_and_accepted_ones_propose_valid_points() -> None:
    verdicts = fuzz(range(300))
    assert 10 < sum(v.accepted for v in verdicts) < 290, "both kinds are tried"


@pytest.mark.slow
def test_a_hundred_thousand_files() -> None:
    assert len(fuzz(range(10_000, 110_000))) == 100_000
