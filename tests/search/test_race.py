"""Racing on right and wrong answers that are drawn image by image."""

from __future__ import annotations

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.search.race import FEWEST, first_images
from tests.search.test_posterior import SPACE, truth

IMAGES = 4096


class Pictures:
    """Each image is right with the network's true probability; the images are the same for all networks."""

    def __init__(self, seed: int, images: int = IMAGES) -> None:
        self.seed, self.images, self.image_passes = seed, images, 0
        self.asked: dict[tuple[int, ...], list[int]] = {}

    def right(self, row: np.ndarray, images: int) -> float:
        draws = np.random.default_rng([self.seed, *row]).random(self.images)[:images]
        return float((draws < truth(row[None])[0] / 100).mean())

    def on(self, widths, images):
        for row in widths:
            before = self.asked.setdefault(tuple(row.tolist()), [])
            self.image_passes += images - max(before, default=0)
            before.append(images)
        return np.array([100 * self.right(row, images) for row in np.asarray(widths)])

    def __call__(self, widths):
        return self.on(widths, self.images)

    def noise(self, widths, images=None):
        images = images or self.images
        share = np.array([self.right(row, images) for row in np.asarray(widths)])
        share = (share * images + 1) / (images + 2)
        return 100 * np.sqrt(share * (1 - share) / images)


def test_contenders_get_more_images_and_all_together_half_of_a_full_search():
    pictures = Pictures(0)
    result = bd.search(SPACE, pictures, {"macs": "0.5x"}, 100, population_size=20)
    assert result.images == pictures.image_passes <= 100 * IMAGES // 2 + IMAGES
    first = first_images(pictures)
    assert all(asked[0] == first for asked in pictures.asked.values())
    assert all(asked == sorted(set(asked)) for asked in pictures.asked.values())
    found = pictures.asked[tuple(result.widths.tolist())]
    assert found[-1] == IMAGES, "what is reported of the found network is of all images"
    assert result.accuracy == pytest.approx(100 * pictures.right(result.widths, IMAGES))
    more = [widths for widths, asked in pictures.asked.items() if len(asked) > 1]
    assert 0 < len(more) < 60
    values = truth(np.array(list(pictures.asked)))
    assert truth(np.array(more)).mean() > values.mean() + 0.5, "those with more images are the better ones"


def test_with_half_of_the_images_no_worse_than_the_largest_score_of_all():
    raced, lucky = [], []
    for seed in range(10):
        for share in ("0.3x", "0.6x"):
            one, two = Pictures(seed), Pictures(seed)
            fast = bd.search(SPACE, one, {"macs": share}, 60, seed, population_size=20)
            blind = bd.search(SPACE, two.__call__, {"macs": share}, 60, seed, population_size=20)
            assert blind.belief is None and one.image_passes <= 0.55 * two.image_passes
            raced.append(float(truth(fast.widths[None])[0]))
            lucky.append(float(truth(blind.widths[None])[0]))
    assert np.mean(raced) > np.mean(lucky) - 0.02, (np.mean(raced), np.mean(lucky))


def test_same_seed_same_race_and_a_kill_changes_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    expected = bd.search(SPACE, Pictures(3), {"macs": "0.5x"}, 60, checkpoint=path).to_dict()
    lines = path.read_text().splitlines()
    assert len(lines) > 62, "answers on more images are in the journal too"
    for kept in (20, 60, len(lines) - 2):
        path.write_text("\n".join(lines[:kept]) + "\n")
        assert bd.search(SPACE, Pictures(3), {"macs": "0.5x"}, 60, checkpoint=path).to_dict() == expected
    again = Pictures(3)
    assert bd.search(SPACE, again, {"macs": "0.5x"}, 60, checkpoint=path).to_dict() == expected
    assert not again.asked


@pytest.mark.parametrize("images", [1, 100, 2 * FEWEST - 1])
def test_few_images_are_not_divided_and_one_image_is_no_certainty(images):
    pictures = Pictures(1, images)
    result = bd.search(SPACE, pictures, {"macs": "0.5x"}, 40)
    assert all(asked == [images] for asked in pictures.asked.values())
    assert result.images == 40 * images and np.isfinite(result.belief.mean)
    assert result.belief.low < result.belief.high


@pytest.mark.parametrize("pareto", [True, False])
def test_pareto_mode_races_along_the_front(pareto):
    pictures = Pictures(2)
    result = bd.search(SPACE, pictures, {"macs": "0.8x"}, 80, pareto=pareto)
    assert result.images == pictures.image_passes <= 80 * IMAGES // 2 + IMAGES
    raced = [max(pictures.asked[tuple(row)]) for row in result.front.tolist()]
    assert max(raced) == IMAGES
