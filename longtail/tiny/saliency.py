"""What the miniature's CLS token is taught to look at: an imperfect, bottom-up measure of the picture."""

import numpy as np

from .world import GRID, PATCH, SIDE, Scene

FLOOR, EDGE, LARGE, SMALL, WRITTEN = 0.06, 0.4, 1.0, 0.2, 0.1
HALO = (0.1, 0.25, 0.3, 0.25, 0.1)  # saliency spills over to the neighbours


def saliency(scene: Scene) -> np.ndarray:
    """The share of attention that each patch deserves, [24, 24], summing to one.

    Large and vivid things first, a halo around them, then small things and letters, then rough ground. No oracle on
    purpose: textures compete with letters.
    """
    pixels = np.asarray(scene.image, np.float32) @ np.array([0.3, 0.59, 0.11], np.float32)
    cells = pixels.reshape(GRID, PATCH, GRID, PATCH)
    roughness = np.minimum(cells.std((1, 3)) / 22, 1)
    weights = np.array([0, *(_weight(scene, i) for i in scene.items), *(WRITTEN for _ in scene.texts)], np.float32)
    painted = np.sqrt(scene.coverage) * weights[scene.patches]
    total = FLOOR + EDGE * roughness + 0.5 * painted + 1.0 * _spread(painted)
    total = total**1.4
    return (total / total.sum()).astype(np.float32)


def _weight(scene: Scene, item) -> float:
    left, top, right, bottom = item.box
    around = np.asarray(
        scene.image.crop((max(0, left - 6), max(0, top - 6), min(SIDE, right + 6), min(SIDE, bottom + 6)))
    )
    ring = np.concatenate([around[:4].reshape(-1, 3), around[-4:].reshape(-1, 3)]).mean(0)
    contrast = np.abs(np.array(item.rgb, np.float32) - ring).sum() / 765
    return (LARGE if item.size == "large" else SMALL) * (0.55 + 0.9 * float(contrast))


def _spread(values: np.ndarray) -> np.ndarray:
    """Blurred once across and once down, the border repeated."""
    for axis in (0, 1):
        padded = np.pad(values, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        parts = [np.take(padded, range(k, k + GRID), axis) for k in range(5)]
        values = sum(w * p for w, p in zip(HALO, parts, strict=True))
    return values
