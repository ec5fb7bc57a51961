"""The pictures: one HTML page with the template of `hfopt run report`, and SVG charts by Matplotlib where it is installed."""

import json


def series_of(training):
    name = training.name if not training.setting else f"{training.name}, {training.setting}"
    if training.summary:
        return {"name": name, "iterations": training.iterations()}
    return {"name": name, "points": [{"seconds": p.seconds, "passes": p.passes, "exchanges": p.exchanges, "loss": p.loss}
                                     for p in training.points]}


def write_page(build, path, title, subtitle, tables, trainings):
    template = (build / "client" / "cli" / "report_template.html").read_text()
    data = {"title": title, "subtitle": subtitle, "tables": tables, "series": [series_of(t) for t in trainings]}
    path.write_text(template.replace("/*data*/", json.dumps(data).replace("<", "\\u003c")))


def write_charts(path, title, trainings):
    """Loss against seconds, passes and synchronisations. False when Matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), sharey=True, constrained_layout=True)
    losses = [p.loss for t in trainings for p in t.points if p.loss < 1e299]
    for panel, (key, label) in zip(panels, (("seconds", "seconds"), ("passes", "example-passes"), ("exchanges", "synchronisations"))):
        for number, training in enumerate(trainings):
            points = [p for p in training.points if p.loss < 1e299]
            panel.plot([getattr(p, key) for p in points], [p.loss for p in points], label=training.name, linewidth=1.6,
                       linestyle="-" if training.summary else "--", color=f"C{number}")
        panel.set_xlabel(label)
        panel.set_xscale("log")
        panel.grid(True, alpha=0.25)
    if losses and max(losses) > 20 * min(losses) > 0:
        panels[0].set_yscale("log")
    else:
        # A start that is far off would leave no room for the rest.
        panels[0].set_ylim(min(losses) * 0.98, sorted(losses)[int(0.9 * (len(losses) - 1))] * 1.05)
    panels[0].set_ylabel("held-out loss\n(ours: of a part while samples are small)"
                         if any(not p.whole for t in trainings for p in t.points) else "held-out loss")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path)
    plt.close(figure)
    return True


def table_text(title, columns, rows):
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [title] if title else []
    for row in [columns, *rows]:
        lines.append("  " + "  ".join(str(cell).ljust(w) if i == 0 else str(cell).rjust(w)
                                      for i, (cell, w) in enumerate(zip(row, widths))).rstrip())
    return "\n".join(lines)
