from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vggt_deploy.train.colour import augment_colours, plain_colours
from vggt_deploy.train.recipe import ColourRecipe

NOTHING = ColourRecipe(
    permute=0, gamma=0, gain=0, contrast=0, balance=0, frame_gain=0, noise=0, blur=0
)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(60, 180, (5, 2, 28, 42, 3), dtype=np.uint8)


def test_nothing_asked_nothing_changed(images: NDArray[np.uint8]) -> None:
    changed = augment_colours(images, NOTHING, np.random.default_rng(1))
    np.testing.assert_allclose(changed, plain_colours(images), atol=1e-6)
    assert changed.shape == (5, 2, 3, 28, 42)
    assert changed[1, 1, 2, 3, 4] == pytest.approx(images[1, 1, 3, 4, 2] / 255)


def test_channels_change_places_alike_in_all_views_of_a_scene(images: NDArray[np.uint8]) -> None:
    changed = augment_colours(images, replace(NOTHING, permute=1), np.random.default_rng(2))
    plain = plain_colours(images)
    orders = []
    for scene in range(5):
        order = [
            next(c for c in range(3) if np.allclose(changed[scene, 0, k], plain[scene, 0, c]))
            for k in range(3)
        ]
        np.testing.assert_allclose(changed[scene, 1], plain[scene, 1][order], atol=1e-6)
        orders.append(tuple(order))
    assert len(set(orders)) > 1


def test_values_follow_the_formula(images: NDArray[np.uint8]) -> None:
    """With gamma alone every pixel is a power of what it was, one exponent a scene."""
    changed = augment_colours(images, replace(NOTHING, gamma=0.3), np.random.default_rng(3))
    exponents = np.log(changed) / np.log(plain_colours(images))
    spread = np.ptp(exponents, axis=(1, 2, 3, 4))
    assert spread.max() < 1e-3
    assert np.ptp(exponents.mean(axis=(1, 2, 3, 4))) > 0.05
    gain = augment_colours(images, replace(NOTHING, frame_gain=0.1), np.random.default_rng(3))
    factors = gain / plain_colours(images)
    assert np.ptp(factors, axis=(2, 3, 4)).max() < 1e-5
    assert np.ptp(factors.mean(axis=(2, 3, 4)), axis=1).min() > 1e-4


def test_blur_keeps_flat_areas_and_spreads_a_dot() -> None:
    images = np.zeros((1, 1, 5, 5, 3), np.uint8)
    images[0, 0, 2, 2] = 160
    changed = augment_colours(images, replace(NOTHING, blur=1), np.random.default_rng(4))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    np.testing.assert_allclose(changed[0, 0, 0, 1:4, 1:4], 160 / 255 * kernel, atol=1e-6)
    flat = np.full((1, 1, 5, 5, 3), 100, np.uint8)
    same = augment_colours(flat, replace(NOTHING, blur=1), np.random.default_rng(4))
    np.testing.assert_allclose(same, 100 / 255, atol=1e-6)


def test_noise_is_at_most_as_strong_as_asked(images: NDArray[np.uint8]) -> None:
    noise = augment_colours(
        images, replace(NOTHING, noise=0.05), np.random.default_rng(5)
    ) - plain_colours(images)
    deviations = noise.std(axis=(1, 2, 3, 4))
    assert deviations.max() < 0.052
    assert deviations.max() > 1.5 * deviations.min()
    assert abs(float(noise.mean())) < 1e-3
