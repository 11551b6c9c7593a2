"""The plot of Evolution: costs by generation, of all and of each island."""

from __future__ import annotations

import math
import re
import sys
from typing import Any, Final

from d8mesh.apps.evolution_file import EvolutionHistory
from d8mesh.apps.islands import EvolutionPlan
from d8mesh.apps.scores import WORST

PLOT_FILE: Final = "fitness.svg"
#: Costs that differ by more than this factor are plotted on a logarithmic scale.
WIDE: Final = 50.0
#: Lines of islands; more cannot be told from each other.
MAX_ISLAND_LINES: Final = 12
#: Generations whose points have dots.
MAX_DOTS: Final = 60
_BEST_COLOUR, _MEAN_COLOUR = "#0b7285", "#e8590c"
_ISLAND_COLOURS: Final = ("#5f3dc4", "#2b8a3e", "#c2255c", "#e67700", "#1864ab", "#868e96")
_SCRIPT: Final = re.compile(r"<script.*?(</script>|/>)", re.DOTALL)


def plot(plan: EvolutionPlan, history: EvolutionHistory) -> str:
    """Return an SVG picture of the best and the mean cost of each generation."""
    pygal = _pygal()
    lines: dict[str, list[float | None]] = {
        "best": _shown(history.best_costs),
        "mean": _shown(history.mean_costs),
    }
    if plan.islands > 1:
        for island in range(min(plan.islands, MAX_ISLAND_LINES)):
            lines[f"island {island + 1}"] = _shown([each[island] for each in history.island_costs])
    known = [cost for costs in lines.values() for cost in costs if cost is not None]
    is_wide = bool(known) and min(known) > 0 and max(known) / min(known) > WIDE
    count = len(history.best_costs)
    labels = [str(i) for i in range(count)]
    colours = (_BEST_COLOUR, _MEAN_COLOUR, *(_ISLAND_COLOURS * 2))
    chart = pygal.Line(
        js=[],  # the picture is alone: no script from elsewhere
        style=pygal.style.CleanStyle(colors=colours),
        title=f"Evolution: {plan.problem.name}, {plan.islands * plan.population} genomes",
        x_title="generation",
        y_title=f"cost, 0 is perfect{' (logarithmic)' if is_wide else ''}",
        logarithmic=is_wide,
        x_labels=labels,
        x_labels_major=labels[:: max(1, math.ceil(count / 10))],
        show_minor_x_labels=False,
        truncate_label=-1,
        show_dots=count <= MAX_DOTS,
        legend_at_bottom=True,
        no_prefix=False,
    )
    for name, costs in lines.items():
        width = 3 if name == "best" else 1
        chart.add(name, costs, stroke_style={"width": width})
    return str(chart.render(is_unicode=True))


def inline_plot(plan: EvolutionPlan, history: EvolutionHistory) -> str:
    """Return the picture as a part of a page: without its head and its script."""
    picture = plot(plan, history)
    return _SCRIPT.sub("", picture[picture.index("<svg") :])


def _shown(costs: list[float]) -> list[float | None]:
    """Return costs as a picture shows them: pygal never ends on almost equal ones."""
    are_failed = any(cost < WORST for cost in costs)
    return [None if are_failed and cost >= WORST else float(f"{cost:.6g}") for cost in costs]


def _pygal() -> Any:
    """Import pygal without its hook, which makes every later failed import warn."""
    import pygal
    import pygal.style

    hooks = [each for each in sys.meta_path if type(each).__name__ == "PluginImportFixer"]
    for hook in hooks:
        sys.meta_path.remove(hook)
    return pygal
