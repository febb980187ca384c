"""``python -m benchmarks.plot results.json docs/figures/redis.svg``: draws what ``--json`` wrote of Redis."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.redis_engines import DJANGO_REDIS_CACHE, OUR_REDIS, OUR_REDIS_HASH

_PEER = DJANGO_REDIS_CACHE.name
# All of them stand out on white and on black, so that the background can stay the page's.
_TEXT = "#7d7d7d"
_COLOURS = {OUR_REDIS.name: "#3987c9", OUR_REDIS_HASH.name: "#d9772b"}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: a small file, in the reader's font
    "svg.hashsalt": "benchmarks",  # the same ids each time
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT),
}
_BAR = 0.38


def plot(found: Mapping[str, Any], file: Path) -> None:
    operations = [result for result in found["results"] if result["peer"] == _PEER]
    pages = [
        result | {"operation": f"{result['page']}: {result['server']}", "target": None}
        for result in found["pages"]
        if result["peer"] == _PEER
    ]
    with rc_context(_STYLE):
        parts = [part for part in (operations, pages) if part]
        heights = [len(_names(part)) + 1.5 for part in parts]
        figure = Figure(figsize=(8, 0.42 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(parts), height_ratios=heights, squeeze=False)
        titles = {id(operations): f"Time over that of {_PEER}: shorter is better"}
        titles[id(pages)] = f"Requests a second over those with {_PEER}: longer is better"
        for part, axis in zip(parts, axes.flat, strict=True):
            _bars(axis, part, titles[id(part)])
        figure.savefig(file, transparent=True, metadata={"Date": None})


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
            # At the foot of the bar, where no target is.
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draws the Redis engines' ratios.")
    parser.add_argument("results", type=Path, help="what `python -m benchmarks --json` wrote")
    parser.add_argument("figure", type=Path, help="the SVG file to write")
    options = parser.parse_args()
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    plot(json.loads(options.results.read_text("utf-8")), options.figure)


if __name__ == "__main__":
    main()
