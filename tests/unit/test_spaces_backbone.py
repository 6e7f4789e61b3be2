from pathlib import Path

import numpy as np
import pytest

from spaces import SpaceError, load_search_space

FILE = """
name: backbones
recipe: digits
budget: {trials: 4}
objectives: [{metric: val_top1, mode: max}]
space:
  model.backbone: {choice: [sdt, spikformer]}
  model.attention: {choice: [statten, sdt, ssa]}
  model.block_size: {choice: [1, 2, 3, 4], when: {model.attention: statten}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return path


def test_only_modes_that_a_backbone_has_are_proposed(tmp_path: Path) -> None:
    space = load_search_space(write(tmp_path, FILE)).search_space
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        params = space.sample(rng)
        assert space.problems(params) == []
        seen.add((params["model.backbone"], params["model.attention"]))
    assert ("spikformer", "sdt") not in seen
    assert len(seen) == 5


def test_a_space_without_a_valid_mode_says_why(tmp_path: Path) -> None:
    only = FILE.replace("[sdt, spikformer]", "[spikformer]").replace("[statten, sdt, ssa]", "[sdt]")
    only = only.replace(
        "  model.block_size: {choice: [1, 2, 3, 4], when: {model.attention: statten}}\n", ""
    )
    with pytest.raises(SpaceError, match="spikformer: statten or ssa"):
        load_search_space(write(tmp_path, only))
