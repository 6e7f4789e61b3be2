"""The GPU benchmark, as far as a CPU goes: what it measures, what it prints, and that it ends."""

import pytest
import torch

from spaces.reading import recipe
from tests.benchmarks import gpu
from tests.benchmarks.gpu import CASES, Figures, main, measure, rows
from trainables.config import TrialConfig

SMALL = {"width": 16, "heads": 2, "depth": 1, "image_size": 8, "timesteps": 2, "num_classes": 3}


@pytest.mark.parametrize("fields", [{}, {"event_data": True, "in_channels": 2}])
def test_a_small_step_is_measured(fields: dict[str, object]) -> None:
    config = TrialConfig.model_validate({"model": SMALL | fields})
    found = measure(config, 2, "spikingjelly", "float32", torch.device("cpu"))
    assert found.floor_ms > 0.0
    assert 0.0 < found.step_ms < 60_000
    assert found.peak_mib > 0.0


def test_currents_are_those_of_all_layers() -> None:
    config = TrialConfig.model_validate({"model": SMALL | {"pooling": "0011", "mlp_ratio": 2}})
    trial = gpu.Trial(config, 3, "torch", "float32", torch.device("cpu"))
    embedding = (2 + 4 + 8) * 64 + 16 * 16 + 16 * 4  # the last two at a half and a quarter
    block = (4 * 16 + 32 + 16) * 4
    assert gpu.current_values(trial.model, trial.forward) == 3 * 2 * (embedding + block) + 3 * 2 * 3


def test_cases_are_recipes_that_fit_their_precision() -> None:
    for name, batch in CASES.values():
        assert recipe(name).train.precision in gpu.DTYPES
        assert batch > 0


def test_ratios_are_of_pairs_with_their_spread() -> None:
    ours = [Figures(10.0, 100.0, 5.0), Figures(20.0, 100.0, 5.0), Figures(10.0, 100.0, 5.0)]
    theirs = [Figures(20.0, 400.0, 5.0), Figures(20.0, 400.0, 5.0), Figures(40.0, 400.0, 5.0)]
    plain, fast = rows("case", "fp16", {"torch": theirs, "cuda": ours})
    assert plain == "| case | fp16 | torch | 20.00 | 400 | 2.00 (1.00 to 4.00) | 0.25 | 25% |"
    assert fast == "| case | fp16 | cuda | 10.00 | 100 |  |  | 50% |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_one_line_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["bench-gpu needs a CUDA device, and torch sees none"]
