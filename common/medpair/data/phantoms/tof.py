"""What a time-of-flight angiography scanner measures: signal of tissue and blood, coil, noise.

Contrast is computed, not drawn: spoiled gradient echo signal from T1 and proton density, inflow
from the number of pulses that blood has seen since it entered its slab. Signals are in parts of
fully relaxed blood. Scanner settings differ from volume to volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medpair.data.phantoms.head import Tissue, smooth_noise

__all__ = [
    "Scan",
    "acquire",
    "blood_signal",
    "coil_gain",
    "draw_scan",
    "resized",
    "rician",
    "tissue_signal",
]

# (T1 in ms at 3 T, proton density): Stanisz et al. 2005 for white, grey, muscle; CSF and fat as
# usually quoted. Bone and air give no signal at echo times of 3 ms; diploe is part fat.
RELAXATION = {
    Tissue.AIR: (1000.0, 0.0),
    Tissue.BONE: (1000.0, 0.04),
    Tissue.MARROW: (420.0, 0.5),
    Tissue.FAT: (380.0, 0.8),
    Tissue.MUSCLE: (1400.0, 0.6),  # lowered for its short T2*
    Tissue.FLUID: (4000.0, 1.0),
    Tissue.GREY: (1600.0, 0.82),
    Tissue.WHITE: (1080.0, 0.7),
    Tissue.MUCOSA: (900.0, 0.75),
    Tissue.VITREOUS: (4200.0, 1.0),
}
BLOOD_T1, BLOOD_DENSITY = 1650.0, 0.85  # Lu et al. 2004
T1_SPREAD = (0.6, 1.05)  # common factor: down to 1.5 T
MT_WHITE, MT_GREY = (0.7, 1.0), (0.78, 1.0)  # left by a magnetisation transfer pulse, if any
FAT_LEFT = (0.35, 1.0)  # by fat suppression, or an echo time at which fat and water oppose
REPETITION = (19.0, 30.0)  # ms
FLIP = (13.0, 22.0)  # degrees; ramped pulses (TONE) act like the low end
PATCHINESS, PATCH = 0.06, 3.0  # slow variation of tissue signal, and the mm it takes

# Inflow. By Murray's law flow goes with r^3, so mean velocity with r.
SPEED = (220.0, 420.0)  # mm/s per mm of radius: 30 to 57 cm/s in M1, as Doppler measures there
DETOUR = 1.2  # path length over height climbed
SLAB = (18.0, 42.0)  # mm of a slab's height that are kept: multiple overlapping thin slabs
ENTRY = 4.0  # mm of slab below that, discarded
CORE_GAIN = 0.12  # laminar flow: the middle of wide vessels is that much brighter, the wall less

# Coil and receiver.
BIAS_SD, BIAS_SCALE = (0.05, 0.2), 40.0  # of the logarithm; mm
BIAS_STEP = 8.0  # mm between the points where that slow field is drawn
COIL_GAIN = (0.0, 0.35)  # of the logarithm: an array is more sensitive at the skin
COIL_REACH = 35.0  # mm over which that gain falls by e
BLUR = (0.15, 0.6)  # point spread, standard deviation in voxels
NOISE = (0.012, 0.04)  # of a channel: white matter then has a signal of 6 to 25 times the noise
FULL_SCALE = (300.0, 1500.0)  # grey value of fully relaxed blood: scanners differ


@dataclass(frozen=True)
class Scan:
    """One scanner setting: ms, radians, factors, mm and parts of fully relaxed blood."""

    repetition: float
    flip: float
    t1: float
    mt_white: float
    mt_grey: float
    fat: float
    speed: float
    slab: float
    slab_start: float
    bias: float
    coil: float
    blur: float
    noise: float
    full_scale: float


def draw_scan(rng: np.random.Generator) -> Scan:
    """Draw a setting."""
    slab = float(rng.uniform(*SLAB))
    return Scan(
        repetition=float(rng.uniform(*REPETITION)),
        flip=float(np.deg2rad(rng.uniform(*FLIP))),
        t1=float(rng.uniform(*T1_SPREAD)),
        mt_white=float(rng.uniform(*MT_WHITE)),
        mt_grey=float(rng.uniform(*MT_GREY)),
        fat=float(rng.uniform(*FAT_LEFT)),
        speed=float(rng.uniform(*SPEED)),
        slab=slab,
        slab_start=float(rng.uniform(0, slab)),
        bias=float(rng.uniform(*BIAS_SD)),
        coil=float(rng.uniform(*COIL_GAIN)),
        blur=float(rng.uniform(*BLUR)),
        noise=float(rng.uniform(*NOISE)),
        full_scale=float(rng.uniform(*FULL_SCALE)),
    )


def _steady(t1: float, scan: Scan) -> float:
    """Longitudinal magnetisation, of 1, that a spoiled gradient echo leaves after many pulses."""
    decay = np.exp(-scan.repetition / (t1 * scan.t1))
    return float((1 - decay) / (1 - np.cos(scan.flip) * decay))


def blood_signal(radius: np.ndarray, height: np.ndarray, scan: Scan) -> np.ndarray:
    """Signal of the blood in vessels of given radius (mm) at given heights in the volume (mm).

    Each pulse leaves cos(flip) of the magnetisation: after n of them it has come from 1 to
    steady + (1 - steady) (cos(flip) E1)^n, where n = path in the slab / velocity / TR.
    """
    path = DETOUR * (ENTRY + (height - scan.slab_start) % scan.slab)
    pulses = path / (scan.speed * radius) / (scan.repetition / 1000)
    decay = np.exp(-scan.repetition / (BLOOD_T1 * scan.t1))
    steady = _steady(BLOOD_T1, scan)
    return steady + (1 - steady) * (np.cos(scan.flip) * decay) ** pulses


def tissue_signal(scan: Scan) -> np.ndarray:
    """Signal of every tissue (float32, by the values of `Tissue`)."""
    table = np.zeros(len(Tissue), np.float32)
    for tissue, (t1, density) in RELAXATION.items():
        table[tissue] = density / BLOOD_DENSITY * _steady(t1, scan)
    table[Tissue.WHITE] *= scan.mt_white
    table[Tissue.GREY] *= scan.mt_grey
    table[[Tissue.FAT, Tissue.MARROW]] *= scan.fat
    return table


def coil_gain(
    intracranial: np.ndarray, step: np.ndarray, scan: Scan, rng: np.random.Generator
) -> np.ndarray:
    """Sensitivity of the coil on a grid of intracranial distances (mm); step: (3,) mm."""
    coarse = tuple(int(n) + 4 for n in np.multiply(intracranial.shape, step) / BIAS_STEP)
    swell = resized(smooth_noise(rng, coarse, BIAS_SCALE / BIAS_STEP), intracranial.shape)
    return np.exp(scan.bias * swell + scan.coil * np.exp(np.minimum(intracranial, 0) / COIL_REACH))


def resized(field: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A field on another grid between the same corner points, linearly interpolated."""
    factors = [n / m for n, m in zip(size, field.shape, strict=True)]
    return ndimage.zoom(field, factors, order=1, mode="nearest")


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a signal with Gaussian noise of ``sigma`` in both channels, same shape."""
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, imaginary)


def acquire(
    signal: np.ndarray, coil: np.ndarray, scan: Scan, rng: np.random.Generator
) -> np.ndarray:
    """What the scanner stores, int16: point spread, coil, noise, scale."""
    seen = ndimage.gaussian_filter(signal, scan.blur, truncate=3.0) * coil
    return np.rint(rician(seen, scan.noise, rng) * scan.full_scale).astype(np.int16)
