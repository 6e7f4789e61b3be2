"""Metrics as a person reads them."""

import math

import pytest

from search.wording import metric_column, metric_text


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0275, 0.00203], ["27.5 µJ", "2.03 µJ"]),
        ([0.0275, 0.0123], ["0.0275 mJ", "0.0123 mJ"]),
        ([5.2, 0.00203], ["5.2 mJ", "2.03 µJ"]),  # 5200 µJ would not read better
        ([0.0275, None, 0.00203], ["27.5 µJ", "-", "2.03 µJ"]),
        ([math.nan, 0.00203], ["nan mJ", "2.03 µJ"]),
        ([], []),
    ],
)
def test_energies_of_a_column_share_a_unit(values: list[float | None], shown: list[str]) -> None:
    assert metric_column("energy_mj", values, "-") == shown


def test_other_metrics_have_their_own_unit() -> None:
    assert metric_column("val_top1", [97.2222, 0.001]) == ["97.22 %", "0.00 %"]
    assert metric_text("energy_mj", 0.0275) == "energy 0.0275 mJ"
