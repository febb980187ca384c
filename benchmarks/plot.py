"""``python -m benchmarks.plot results.json docs/figures/redis.svg``: draws figures from the results of ``--json``.

The name of the file chooses the figure: ``redis.svg`` or ``curves.svg``.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks import database_engines, engines, redis_engines
from benchmarks.curves import CURVES, OVER_LIVE, OVER_SIZE, Curve
from benchmarks.redis_engines import DJANGO_REDIS_CACHE, OUR_REDIS, OUR_REDIS_HASH

_PEER = DJANGO_REDIS_CACHE.name
# All of them stand out on white and on black: the figures have no background of their own.
_TEXT = "#7d7d7d"
_COLOURS = {OUR_REDIS.name: "#3987c9", OUR_REDIS_HASH.name: "#d9772b"}
# Our engines, each with the peer of its targets.
_PAIRS = [
    (engine.name, comparison.peers[0].engine.name)
    for comparison in (*redis_engines.COMPARISONS, *engines.COMPARISONS, *database_engines.COMPARISONS)
    for engine in comparison.ours
]
_COLOURS_OF_PAIRS = (*_COLOURS.values(), "#2f9e62", "#9a6bd1", "#cf4f7a", "#1c9db0")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: a small file, in the reader's font
    "svg.hashsalt": "benchmarks",  # the same ids each time
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT),
}
_BAR = 0.38


def _redis(found: Mapping[str, Any]) -> Figure:
    beyond = CURVES - OVER_SIZE.keys()
    operations = [
        result for result in found["results"] if result["peer"] == _PEER and result["operation"] not in beyond
    ]
    pages = [
        result | {"operation": f"{result['page']}: {result['server']}", "target": None}
        for result in found["pages"]
        if result["peer"] == _PEER
    ]
    parts = [part for part in (operations, pages) if part]
    heights = [len(_names(part)) + 1.5 for part in parts]
    figure = Figure(figsize=(8, 0.42 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(parts), height_ratios=heights, squeeze=False)
    titles = {id(operations): f"Time over that of {_PEER}: shorter is better"}
    titles[id(pages)] = f"Requests a second over those with {_PEER}: longer is better"
    for part, axis in zip(parts, axes.flat, strict=True):
        _bars(axis, part, titles[id(part)])
    return figure


def _names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(result["operation"] for result in results))


def _bars(axis: Axes, results: Sequence[Mapping[str, Any]], title: str) -> None:
    names = _names(results)
    for offset, (engine, colour) in enumerate(_COLOURS.items()):
        mine = [result for result in results if result["ours"] == engine]
        places = [names.index(result["operation"]) + (offset - 0.5) * _BAR for result in mine]
        ratios = [result["ratio"] for result in mine]
        axis.barh(places, ratios, _BAR, color=colour, label=engine)
        for place, ratio in zip(places, ratios, strict=True):
            # At the foot of the bar, away from the mark of the target.
            axis.text(0.01 * max(ratios), place, f"{ratio:.2f}", color="white", fontsize=8, va="center_baseline")
    targets = {result["operation"]: result["target"] for result in results if result["target"] is not None}
    if targets:
        places = [names.index(name) for name in targets]
        axis.scatter(list(targets.values()), places, 260, _TEXT, marker="|", linewidths=2, label="target", zorder=3)
    axis.axvline(1, color=_TEXT, linestyle="dotted", label=_PEER)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, max(1.1, *(result["ratio"] * 1.12 for result in results)))
    axis.set_title(title, loc="left", fontsize="medium")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _curves(found: Mapping[str, Any]) -> Figure:
    # Without wspace the numbers of two axes touch.
    figure = Figure(figsize=(8, 7), layout=ConstrainedLayoutEngine(wspace=0.08))
    figure.suptitle("Time over that of the engine in brackets (logarithmic): lower is better", fontsize="medium")
    axes = figure.subplots(2, 2, sharey=True)
    for row, curves, unit in zip(axes, (OVER_SIZE, OVER_LIVE), ("size of the session", "live sessions"), strict=True):
        for axis, (operation, curve) in zip(row, curves.items(), strict=True):
            _lines(axis, found["results"], curve)
            axis.set_title(f"{operation}, by {unit}", loc="left", fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _lines(axis: Axes, results: Sequence[Mapping[str, Any]], curve: Curve) -> None:
    for (ours, peer), colour in zip(_PAIRS, _COLOURS_OF_PAIRS, strict=True):
        found = {result["operation"]: result for result in results if (result["ours"], result["peer"]) == (ours, peer)}
        points = [(point, found[name]) for point, name in curve.items() if name in found]
        names = [point for point, _ in points]
        axis.plot(names, [result["ratio"] for _, result in points], "o-", color=colour, label=f"{ours} ({peer})")
        lows, highs = ([result[quartile] for _, result in points] for quartile in ("low", "high"))
        axis.fill_between(names, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(1, color=_TEXT, linestyle="dotted")
    axis.set_yscale("log")
    axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
    axis.set_yticks([], minor=True)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.spines[["top", "right"]].set_visible(False)


_FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = {"redis": _redis, "curves": _curves}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draws figures from results.")
    parser.add_argument("results", type=Path, help="what `python -m benchmarks --json` wrote")
    parser.add_argument("figures", type=Path, nargs="+", help="SVG files to write: redis.svg, curves.svg")
    options = parser.parse_args()
    found = json.loads(options.results.read_text("utf-8"))
    for file in options.figures:
        if file.stem not in _FIGURES:
            parser.error(f"{file}: no figure has this name. Name the file one of {', '.join(_FIGURES)}.")
        file.parent.mkdir(parents=True, exist_ok=True)
        with rc_context(_STYLE):
            _FIGURES[file.stem](found).savefig(file, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
