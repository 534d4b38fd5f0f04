"""Draws where each op stands under the roofline of the run: arithmetic intensity across, speed upwards."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.measurement import Measurement


def draw(found: Sequence[Measurement], path: Path, title: str) -> None:
    """A picture in two parts: ops that multiply under the roofline, and of every op its share of its own ceiling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    flops = statistics.median(one.ceiling.flops_per_second for one in found)
    reads = statistics.median(one.ceiling.bytes_per_second for one in found)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, max(6.0, 0.2 * len(found))), layout="constrained")
    multiplying = [one for one in found if one.call.flops]
    intensities = [one.call.flops / one.call.nbytes for one in multiplying] or [1.0]
    ends = [min(0.5, *intensities), max(1000.0, *intensities)]
    edge = flops / reads
    left.plot([ends[0], edge, ends[1]], [ends[0] * reads / 1e9, flops / 1e9, flops / 1e9], color="black")
    for op in dict.fromkeys(one.call.op for one in multiplying):
        points = [one for one in multiplying if one.call.op == op]
        left.plot(
            [one.call.flops / one.call.nbytes for one in points],
            [one.call.flops / one.seconds / 1e9 for one in points],
            "o",
            label=op,
        )
    left.set(xscale="log", yscale="log", xlabel="operations per byte of memory", ylabel="GFLOP/s")
    left.set_title(f"{title}: {flops / 1e9:.0f} GFLOP/s, {reads / 1e9:.1f} GB/s")
    if multiplying:
        left.legend()
    names = [f"{one.call.op} {one.call.detail} T={one.call.rows}" for one in found]
    colours = ["tab:blue" if one.of == "GB/s" else "tab:orange" for one in found]
    right.barh(range(len(found)), [100 * one.share for one in found], color=colours)
    right.set_yticks(range(len(found)), names, fontsize=7)
    right.invert_yaxis()
    right.axvline(100, color="black")
    right.set_xlabel("% of the ceiling that binds (blue: memory, orange: multiplications)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
