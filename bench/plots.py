"""Plots of a run, drawn from its JSON with matplotlib (``pip install d8mesh[bench]``)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench import backlog, latency, rest, throughput, workers
from bench.findings import Findings, Table, findings_of
from d8mesh.errors import D8Error

SIZE_INCHES: Final = (9.0, 5.0)
DPI: Final = 120
OURS_COLOUR: Final = "#d1495b"
OTHERS_COLOUR: Final = "#30638e"
#: 1 / (1 - share) -> how that share is called.
RARITIES: Final = {1: "0 %", 2: "50 %", 10: "90 %", 100: "99 %", 1000: "99.9 %"}
MANY_COLOURS: Final = ("#d1495b", "#edae49", "#30638e", "#66a182", "#8d6a9f", "#2e4057", "#9a8c98")


def draw(told: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the run has figures for; return the files.

    Raises:
        D8Error: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise D8Error("--plot needs matplotlib: pip install d8mesh[bench]") from error
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name, (scenario, painter) in _PLOTS.items():
        read = told["scenarios"].get(scenario)
        if read is None:
            continue
        figure = _figure()
        axes = figure.add_subplot()
        if painter(axes, findings_of(read)):
            axes.spines[["top", "right"]].set_visible(False)
            figure.tight_layout()
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI)
    return files


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=SIZE_INCHES)


# ----------------------------------------------------------------------------- the plots


def _rates(axes: Any, found: Findings) -> bool:
    """Bars of tasks per second, everybody in one order."""
    column = "64 B, 2 workers"
    ours, beside = _table(found, throughput.RATES), _table(found, throughput.BESIDE)
    cells = {row: ours.samples(row, column) for row in ours.rows if ours.samples(row, column)}
    for row in beside.rows:
        if row not in cells and beside.samples(row, column):
            cells[row] = beside.samples(row, column)
    if not cells:
        return False
    names = sorted(cells, key=lambda name: statistics.median(cells[name]))
    _bars(axes, names, [cells[name] for name in names])
    axes.set_xscale("log")
    axes.set_xlim(left=10 ** math.floor(math.log10(min(min(each) for each in cells.values()) / 2)))
    _plain_numbers(axes.xaxis)
    axes.set_xlabel("no-op tasks per second, 64 bytes, 2 workers (log scale)")
    axes.set_title("Throughput: d8mesh acknowledges every task from the disk")
    return True


def _bars(axes: Any, names: Sequence[str], samples: Sequence[Sequence[float]]) -> None:
    medians = [statistics.median(each) for each in samples]
    spans = [
        [median - min(each) for median, each in zip(medians, samples, strict=True)],
        [max(each) - median for median, each in zip(medians, samples, strict=True)],
    ]
    colours = [OURS_COLOUR if name.startswith("d8mesh") else OTHERS_COLOUR for name in names]
    axes.barh(names, medians, xerr=spans, color=colours, capsize=3, ecolor="#555555")
    for place, (median, each) in enumerate(zip(medians, samples, strict=True)):
        axes.annotate(
            f"{median:,.0f}", (max(each), place), (6, 0), textcoords="offset points", va="center"
        )
    axes.margins(x=0.12)


def _distribution(title: str, heading: str) -> Callable[[Any, Findings], bool]:
    """Return a painter of how the latencies of one table are distributed."""

    def paint(axes: Any, found: Findings) -> bool:
        prefix = f"{title} / "
        rows = [name for name in found.series if name.startswith(prefix)]
        if not rows:
            return False
        shared = list(dict.fromkeys(name.rpartition(" at ")[2] for name in rows))
        for name in rows:
            values = sorted(found.series[name])
            # 1 / (1 - share): each further nine takes as much room as the one before
            rarity = [len(values) / (len(values) - index) for index in range(len(values))]
            colour = MANY_COLOURS[shared.index(name.rpartition(" at ")[2]) % len(MANY_COLOURS)]
            style = "--" if "raw loop" in name else "-"
            label = name.removeprefix(prefix)
            axes.plot(rarity, values, label=label, color=colour, linestyle=style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(*zip(*RARITIES.items(), strict=True))
        axes.set_xlim(1, max(RARITIES))
        axes.set_xlabel("share of tasks that took no longer")
        axes.set_ylabel("milliseconds (log scale)")
        _plain_numbers(axes.yaxis)
        axes.set_title(heading)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        return True

    return paint


def _lines(title: str, wording: Sequence[str], *, is_log: bool) -> Callable[[Any, Findings], bool]:
    """Return a painter of one table against the number its columns begin with."""
    heading, across, up = wording

    def paint(axes: Any, found: Findings) -> bool:
        table = _table(found, title)
        if not table.rows:
            return False
        for place, row in enumerate(table.rows):
            columns = [name for name in table.columns if name[0].isdigit()]
            columns = [name for name in columns if table.samples(row, name)]
            columns.sort(key=_count)
            counts = [_count(name) for name in columns]
            samples = [table.samples(row, name) for name in columns]
            colour = MANY_COLOURS[place * 2 % len(MANY_COLOURS)]
            medians = [statistics.median(each) for each in samples]
            axes.plot(counts, medians, "o-", color=colour, label=row)
            axes.fill_between(
                counts,
                [min(s) for s in samples],
                [max(s) for s in samples],
                color=colour,
                alpha=0.2,
            )
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        if is_log:
            axes.set_yscale("log")
            axes.set_ylim(10, 2 * max(max(samples) for samples in table.cells.values()))
            _plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_title(heading)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
        return True

    return paint


def _count(column: str) -> int:
    """Return the number that the name of a column begins with."""
    return int(column.split(" ")[0].replace(",", ""))


def _rest(axes: Any, found: Findings) -> bool:
    """Bars of requests per second in groups, a group for each number of connections."""
    table = _table(found, rest.RATES)
    columns = table.columns
    if not columns:
        return False
    width = 0.8 / len(table.rows)
    for place, row in enumerate(table.rows):
        heights = [statistics.median(table.samples(row, name) or [0.0]) for name in columns]
        at = [group + (place - len(table.rows) / 2 + 0.5) * width for group in range(len(columns))]
        colour = MANY_COLOURS[place % len(MANY_COLOURS)]
        axes.bar(at, heights, width, label=row, color=colour)
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("cycles per second (log scale)")
    axes.set_title("REST")
    axes.margins(y=0.35)
    axes.legend(fontsize=8, ncols=2, loc="upper left")
    return True


def _plain_numbers(axis: Any) -> None:
    """Have a log axis say 1,000 and not a power of ten, and nothing between."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1 else f"{value:,.0f}")
    )
    axis.set_minor_formatter(NullFormatter())


def _table(found: Findings, title: str) -> Table:
    return next((each for each in found.tables if each.title == title), Table(title, ""))


_PLOTS: Final[dict[str, tuple[str, Callable[[Any, Findings], bool]]]] = {
    "throughput": ("throughput", _rates),
    "latency_one_in_flight": ("latency", _distribution(latency.ONE, "One task in flight")),
    "latency_beside_others": (
        "latency",
        _distribution(latency.PEERS, "One task in flight, beside others"),
    ),
    "latency_open_loop": (
        "latency",
        _distribution(latency.OPEN, "Open loop: from the time a task was due to its result"),
    ),
    "latency_beside_rest": (
        "latency",
        _distribution(latency.BESIDE_REST, "Dispatch beside saturated REST"),
    ),
    "queue_cost": (
        "backlog",
        _lines(
            backlog.COSTS,
            ("What a task costs while others wait", "tasks queued", "µs per task"),
            is_log=False,
        ),
    ),
    "queue_memory": (
        "backlog",
        _lines(
            backlog.MEMORY,
            ("Memory of the broker", "tasks queued (64 bytes each)", "MB"),
            is_log=True,
        ),
    ),
    "workers": (
        "workers",
        _lines(
            workers.COSTS,
            ("What a task costs the broker", "one-slot workers", "µs of CPU per task"),
            is_log=False,
        ),
    ),
    "rest": ("rest", _rest),
}
