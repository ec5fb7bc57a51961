"""Shows iterations where people look: a table that is updated in a notebook, a bar on a terminal that has rich or tqdm,
lines otherwise."""
from __future__ import annotations

import html
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

Report = Dict[str, Any]

_ROWS_IN_NOTEBOOK = 12


def describe(report: Report) -> List[Tuple[str, str]]:
    """The numbers that people look at first, with their names."""
    cells = [("iteration", str(report["iteration"])), ("held-out", f"{report['held_out_loss']:.6g}")]
    cells += [(name[len("metrics."):], f"{value:.4g}") for name, value in report.items() if name.startswith("metrics.")]
    cells += [("lambda", f"{report['damping']:.3g}"), ("rho", f"{report['reduction_ratio']:.2f}"),
              ("CG", f"{report['cg_iterations']} ({report['cg_stop'].replace('_', ' ')})"),
              ("step", f"{report['step_length']:.3g}" if report["accepted"] else "rejected"),
              ("examples", str(report["gradient_examples"])), ("passes", f"{report['cost.example_passes']:.2f}")]
    return cells


def table(reports: List[Report], seconds: List[float]) -> str:
    """The same as HTML."""
    if not reports:
        return ""
    titles = [name for name, _ in describe(reports[-1])] + ["seconds"]
    rows = "".join("<tr>" + "".join(f"<td style=\"text-align:right\">{html.escape(cell)}</td>"
                                    for cell in [*(value for _, value in describe(report)), f"{s:.1f}"]) + "</tr>"
                   for report, s in zip(reports, seconds))
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


class Progress:
    """Plain lines, to standard error. `note` and `end` may come without a `begin`, of a run that could not be had."""

    def begin(self, run: str, max_iterations: int) -> None:
        pass

    def note(self, text: str) -> None:
        """For example why the run waits."""
        print(text, file=sys.stderr, flush=True)

    def show(self, report: Report, seconds: float) -> None:
        """`seconds` is the time that the run has taken."""
        (_, number), *cells = describe(report)
        print(f"iteration {number}: {', '.join(f'{name} {value}' for name, value in cells)}, {seconds:.1f} s",
              file=sys.stderr, flush=True)

    def end(self) -> None:
        pass


class Silent(Progress):
    def note(self, text: str) -> None:
        pass

    def show(self, report: Report, seconds: float) -> None:
        pass


class _Tqdm(Progress):
    def __init__(self, tqdm: Callable[..., Any]):
        self._tqdm, self._bar = tqdm, None  # type: Callable[..., Any], Any

    def begin(self, run: str, max_iterations: int) -> None:
        self._bar = self._tqdm(desc=run, total=max_iterations or None, unit=" iterations", dynamic_ncols=True)

    def note(self, text: str) -> None:
        if self._bar is None:
            super().note(text)
        else:
            self._bar.write(text, file=sys.stderr)

    def show(self, report: Report, seconds: float) -> None:
        self._bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in describe(report)[1:4]), refresh=False)
        self._bar.update(report["iteration"] - self._bar.n)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Rich(Progress):
    def __init__(self, progress: Any):
        self._progress, self._task = progress, None  # type: Any, Any

    def begin(self, run: str, max_iterations: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(run, total=max_iterations or None, numbers="")

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def show(self, report: Report, seconds: float) -> None:
        self._progress.update(self._task, completed=report["iteration"],
                              numbers=", ".join(f"{name} {value}" for name, value in describe(report)[:4]))

    def end(self) -> None:
        self._progress.stop()


class _Notebook(Progress):
    def __init__(self, display: Callable[..., Any], as_html: Callable[[str], Any]):
        self._display, self._html = display, as_html
        self._handle: Any = None
        self._reports: List[Report] = []
        self._seconds: List[float] = []
        self._text = ""

    def begin(self, run: str, max_iterations: int) -> None:
        self._text = f"run {run}: starting"
        self._handle = self._display(self._html(html.escape(self._text)), display_id=True)

    def note(self, text: str) -> None:
        if self._handle is None:
            super().note(text)
            return
        self._text = text
        self._update()

    def show(self, report: Report, seconds: float) -> None:
        self._reports = [*self._reports, report][-_ROWS_IN_NOTEBOOK:]
        self._seconds = [*self._seconds, seconds][-_ROWS_IN_NOTEBOOK:]
        self._text = ""
        self._update()

    def _update(self) -> None:
        self._handle.update(self._html(table(self._reports, self._seconds) + html.escape(self._text)))


def make_progress(wanted: bool) -> Progress:
    if not wanted:
        return Silent()
    return _in_notebook() or _on_terminal() or Progress()


def _in_notebook() -> Optional[Progress]:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display
    return _Notebook(display, HTML)


def _on_terminal() -> Optional[Progress]:
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        return _Rich(
            Bars(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"),
                 TimeElapsedColumn(), console=Console(stderr=True)))
    except ImportError:
        pass
    try:
        from tqdm import tqdm
        return _Tqdm(tqdm)
    except ImportError:
        return None
