import pytest
import torch
from sklearn.datasets import load_digits

from trainables.config import DataConfig, ModelConfig
from trainables.data.digits_dvs import NUM_STEPS, event_frames, load_digit_events, saccades
from trainables.errors import InputError


def test_frames_are_deterministic_counts() -> None:
    first = event_frames(4, 12)
    event_frames.cache_clear()
    again = event_frames(4, 12)
    assert torch.equal(first, again)
    assert first.shape == (1797, 4, 2, 12, 12)
    assert first.dtype == torch.uint8
    assert 0.05 < float(first.float().mean()) < 2.0


@pytest.mark.parametrize("timesteps", [1, 3, 5, 48])
def test_timesteps_share_the_same_events(timesteps: int) -> None:
    whole = event_frames(1, 8).sum(dim=1, dtype=torch.int64)
    split = event_frames(timesteps, 8).sum(dim=1, dtype=torch.int64)
    assert torch.equal(split, whole)
    frames_with_events = event_frames(timesteps, 8).flatten(2).any(dim=2).any(dim=0)
    assert int(frames_with_events.sum()) >= timesteps - 1  # the first step may be too small


def test_every_digit_moves_and_makes_both_polarities() -> None:
    counts = event_frames(1, 16).sum(dim=(1, 3, 4), dtype=torch.int64)
    assert (counts > 0).all()


def test_motion_is_three_closed_saccades() -> None:
    path = saccades(16)
    assert len(path) == NUM_STEPS
    assert path[-1] == (-1.0, -1.0)
    assert path[NUM_STEPS // 3 - 1] == (0.0, 1.0)
    assert path[2 * NUM_STEPS // 3 - 1] == (1.0, -1.0)
    assert max(abs(x) for point in path for x in point) <= 1.0


def test_closed_path_leaves_no_net_change() -> None:
    # the scene ends as it began: ON and OFF events of a pixel cancel, up to what is below threshold
    frames = event_frames(1, 16).to(torch.int64)
    assert int((frames[:, 0, 1] - frames[:, 0, 0]).abs().max()) <= 1


def test_labels_belong_to_the_digits() -> None:
    data, model = DataConfig(name="digits_dvs"), _model(8)
    splits = load_digit_events(data, model)
    target = torch.from_numpy(load_digits().target)
    together = torch.cat([part.labels for part in (splits.train, splits.val, splits.test)])
    assert torch.equal(torch.bincount(together), torch.bincount(target))


def test_more_timesteps_than_motion_steps_are_refused() -> None:
    with pytest.raises(InputError, match="at most 48"):
        load_digit_events(DataConfig(name="digits_dvs"), _model(49))


def _model(timesteps: int) -> ModelConfig:
    return ModelConfig(
        timesteps=timesteps, attention="sdt", image_size=16, in_channels=2, event_data=True
    )
