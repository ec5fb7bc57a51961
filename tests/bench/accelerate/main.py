"""Does the acceleration hold? Trains a task by the published method, by a tuned baseline and by ours, through the real service.

Speed-ups are ratios of wall time and of example-passes at equal held-out loss: the loss at which the baseline has converged (less than
0.1 % better over three accepted steps, or its last iteration)."""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import compare
import report
import rivals
import tasks
import training


def number(value, digits=3):
    return "-" if value is None else f"{value:.{digits}g}"


def ratio(values):
    middle, span, failed = compare.median(values), compare.spread(values), sum(v is None for v in values)
    if middle is None:
        return "not reached" if not span else f"not reached by most ({number(span[0])}..{number(span[1])})"
    if len(values) == 1:
        return f"{middle:.2f}x"
    return f"{middle:.2f}x ({span[0]:.2f}..{span[1]:.2f}{f', {failed} not reached' if failed else ''})"


class Bench:
    def __init__(self, name, task, arguments, build, log):
        self.name, self.task, self.arguments, self.build, self.log = name, task, arguments, build, log
        self.seeds = list(range(1, arguments.seeds + 1))
        self.work = pathlib.Path(arguments.work) / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.service = training.Service(build, self.work, arguments.workers, arguments.resume, log, arguments.worker_binary)
        # On one core what is compared with a single-threaded rival, and what has a single worker anyway.
        self.one_core = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
        self.prefix = self.one_core if task.deterministic else ()
        self.all = {}  # trainings by role and seed

    def train(self, role, preset, settings, seed, **limits):
        limits.setdefault("seconds", self.task.seconds)
        done = self.service.train(role, self.task, preset, settings, seed, data=self.arguments.data, prefix=self.prefix, **limits)
        self.all[role, seed] = done
        return done

    def baseline(self, role, settings, seed, **limits):
        limits.setdefault("iterations", None if self.arguments.to_the_end else self.task.iterations)
        return self.train(role, "published", [*self.task.published, *settings], seed, **limits)

    def tune(self, budget):
        """The grid's setting with the lowest held-out loss after `budget` seconds, half of what `published` took, on the first seed."""
        for name, settings in self.task.grid:
            if name == self.arguments.tuned:
                return name, settings
        attempts = [(self.baseline(f"tuning: {name}", settings, self.seeds[0], seconds=budget), name, settings)
                    for name, settings in self.task.grid]
        for attempt, _, _ in attempts:
            del self.all[attempt.name, attempt.seed]  # steps on the way, not results
        _, name, settings = min(attempts, key=lambda a: a[0].best().loss)
        self.log(f"tuned: {name}")
        return name, settings

    def compare(self):
        published = {s: self.baseline("published", (), s) for s in self.seeds}
        budget = max(1.0, published[self.seeds[0]].points[-1].seconds / 2)
        tuned_name, tuned_settings = self.tune(budget)
        tuned = {}
        for s in self.seeds:
            tuned[s] = self.baseline("tuned", tuned_settings, s)
            tuned[s].setting = tuned_name
        results = {}
        for role, baselines in (("published", published), ("tuned", tuned)):
            results[role] = []
            for s in self.seeds:
                target = compare.target_of(baselines[s], self.arguments.to_the_end)[0]
                ours = self.train(f"ours to the loss of {role}", self.task.preset, (), s, target=target)
                results[role].append(compare.speedup(baselines[s], ours, self.arguments.to_the_end))
        return results, tuned_name

    def ablate(self, target):
        rows = []
        for name, settings in self.task.ablation:
            done = self.train(f"ablation: {name}", self.task.preset, settings, self.seeds[0], target=target)
            there = done.first_at(target)
            rows.append([name, number(there and there.seconds), number(there and there.passes, 4),
                         str(there.exchanges) if there else "-", str(done.cg_iterations()), str(done.rejected()), number(done.best().loss, 5)])
        return rows

    def measure_systems(self):
        """CG iterations to relative residuals with and without preconditioner, where training by ours has got to."""
        done = self.train("ours to the end", self.task.preset, (), self.seeds[0])
        # lambda moves over decades from one iteration to the next: the middle of the last twenty that took a step, up to where the loss is within a
        # thousandth of the best. Where nothing more is to be had, rejections raise it until a solve is a gradient step.
        best = done.best().loss
        end = done.points.index(done.first_at(best + 1e-3 * abs(best)))
        damping = statistics.median([i["damping"] for i in done.iterations()[:end + 1] if i["accepted"]][-20:])
        command = [*self.one_core, str(self.build / "tests" / "bench" / "hfopt_preconditioner_bench"), str(done.parameters),
                   str(damping), done.iterations()[-1]["curvature_examples"], "--element-type", self.task.element_type, "--max-iterations",
                   str(2000 if self.task.deterministic else 300), *self.task.model, "--data-seed", str(self.seeds[0])]
        if self.arguments.data:
            command += ["--data", self.arguments.data]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    def run_rivals(self):
        one = dataclasses.replace(self.task, deterministic=True)  # one worker
        done = [self.service.train("ours, one core", one, self.task.preset, (), self.seeds[0], data=self.arguments.data,
                                   prefix=self.one_core, seconds=self.task.rival_seconds)]
        for name in self.task.rivals:
            try:
                done.append(rivals.train(self.build, name, self.task, self.seeds[0], self.task.rival_seconds,
                                         self.arguments.data, self.one_core, self.log))
            except ImportError as error:
                self.log(f"  {rivals.TITLES[name]}: skipped, {error}")
        return done


def word_error_delta(bench, results):
    """Points absolute, ours less the published method's, at the published method's loss; None for tasks without words."""
    if bench.task.quality != "test_word_error_rate":
        return None
    deltas = [100 * (bench.all["ours to the loss of published", s].figures["test_word_error_rate"] -
                     bench.all["published", s].figures["test_word_error_rate"]) for s in bench.seeds]
    return compare.median(deltas)


def summary_rows(bench):
    rows = []
    for (role, seed), t in bench.all.items():
        if role.startswith("ablation"):
            continue
        last, cost = t.points[-1], t.cost()
        n = float(cost["example_passes"]) or 1
        share = lambda examples, factor: f"{100 * factor * int(cost[examples]) / (3 * int(cost['gradient_examples']) + int(cost['linearization_examples']) + 4 * int(cost['product_examples']) + int(cost['loss_examples'])):.0f} %"
        rows.append([role + (f" ({t.setting})" if t.setting else ""), str(seed), f"{last.seconds:.1f}", f"{last.passes:.1f}",
                     share("gradient_examples", 3), share("product_examples", 4), share("loss_examples", 1), str(last.exchanges),
                     str(len(t.iterations())), str(t.cg_iterations()), str(t.rejected()), number(t.best().loss, 5),
                     number(t.figures.get(bench.task.quality), 4)])
    return rows


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def commit():
    answer = subprocess.run(["git", "-C", str(tasks.ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/acceleration", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", choices=sorted(tasks.TASKS))
    parser.add_argument("--quick", action="store_true", help="one seed, two settings in the tuning, no ablation, no rivals")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--resume", action="store_true", help="do not train again what an earlier call has trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--worker-binary", metavar="FILE", help="in the place of hfopt-worker; takes its options")
    parser.add_argument("--tuned", metavar="NAME", help="take this setting of the grid, chosen before, instead of tuning")
    parser.add_argument("--to-the-end", action="store_true",
                        help="baselines train for all of --seconds, and their best loss is the target: for deep nets, which first sit on a plateau that "
                             "looks like convergence")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", default="compare,ablation,systems,rivals", help="what to do; by default all: %(default)s")
    parser.add_argument("--data", metavar="DIR", help="data folder in the layout of the task's own (AN4 or IDX)")
    parser.add_argument("--layers", metavar="WIDTHS", help="other layers than the task's")
    parser.add_argument("--seconds", type=float, help="other limit for each training than the task's")
    parser.add_argument("--work", metavar="DIR", default=str(tasks.ROOT / "hfopt-data" / "acceleration"))
    parser.add_argument("--build", default=str(tasks.ROOT / "build" / "bench"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    task = tasks.TASKS[arguments.task]
    if task.data and not arguments.data:
        parser.error(f"task {arguments.task} needs --data DIR with {task.data}")
    if arguments.layers:
        task = dataclasses.replace(task, model=(*task.model, "--layers", arguments.layers))
    if arguments.seconds:
        task = dataclasses.replace(task, seconds=arguments.seconds, rival_seconds=min(arguments.seconds, task.rival_seconds))
    if arguments.tuned and arguments.tuned not in dict(task.grid):
        parser.error(f"--tuned {arguments.tuned!r} is not in the grid of {arguments.task}: {', '.join(map(repr, dict(task.grid)))}")
    parts = set(arguments.parts.split(","))
    if parts - {"compare", "ablation", "systems", "rivals"} or "ablation" in parts and "compare" not in parts:
        parser.error(f"--parts {arguments.parts}: any of compare, ablation (which needs compare for its target), systems, rivals")
    if arguments.quick:
        arguments.seeds = 1
        parts = {"compare"}
        task = dataclasses.replace(task, grid=task.grid[:2], seconds=min(task.seconds, 60))

    def log(line):
        print(line, flush=True)

    title = f"Acceleration on {arguments.task}"
    subtitle = f"{machine()}; commit {commit()}; {' '.join(['tests/bench/acceleration', *sys.argv[1:]])}"
    log(f"{title}\n{subtitle}")
    bench = Bench(arguments.task, task, arguments, pathlib.Path(arguments.build), log)
    last = {"task": arguments.task, "speedup_wall_published": None, "speedup_wall_tuned": None,
            "speedup_passes_published": None, "speedup_passes_tuned": None, "wer_delta": None}
    tables, shown = [], []

    if "compare" in parts:
        results, tuned_name = bench.compare()
        rows = []
        for role, values in results.items():
            last[f"speedup_wall_{role}"] = compare.median([v.wall for v in values])
            last[f"speedup_passes_{role}"] = compare.median([v.work for v in values])
            rows.append([role + (f" ({tuned_name})" if role == "tuned" else ""), number(compare.median([v.target for v in values]), 5),
                         number(compare.median([v.baseline_seconds for v in values])), number(compare.median([v.seconds for v in values], failure=math.inf)),
                         ratio([v.wall for v in values]), ratio([v.work for v in values])])
        last["wer_delta"] = word_error_delta(bench, results)
        tables.append({"title": f"Ours against the baselines at equal held-out loss, median of {len(bench.seeds)} seeds (spread)",
                       "columns": ["baseline", "loss", "its seconds", "our seconds", "speed-up, wall", "speed-up, passes"], "rows": rows})
        shown += [bench.all[role, 1] for role in ("published", "tuned", "ours to the loss of tuned") if (role, 1) in bench.all]

    if "ablation" in parts:
        target = results["published"][0].target
        tables.append({"title": f"Ablation: to the published method's loss of {target:.5g}, seed 1",
                       "columns": ["variant", "seconds", "passes", "synchronisations", "CG iterations", "rejected", "best loss"],
                       "rows": bench.ablate(target)})
    if "systems" in parts:
        counts = bench.measure_systems()
        damping, residuals, none = counts.pop("damping"), counts.pop("residuals"), counts["none"]
        rows = [[name, *(str(k) if k is not None else "-" for k in ks),
                 *(f"{100 * (k / n - 1):+.0f} %" if k is not None and n else "-" for k, n in zip(ks, none))] for name, ks in counts.items()]
        last["cg_iterations"] = counts
        tables.append({"title": f"CG iterations to a relative residual, late in training by ours (lambda {damping:.3g})",
                       "columns": ["preconditioner", *(f"to {r:g}" for r in residuals), *("against none" for _ in residuals)], "rows": rows})
    if "rivals" in parts:
        others = bench.run_rivals()
        rows = []
        for t in others:
            best = t.best()
            rows.append([t.name + (f" ({t.setting})" if t.setting else ""), number(best.loss, 5), number(best.seconds),
                         number(best.passes, 4), str(best.exchanges), number(t.figures.get(task.quality), 4)])
            last.setdefault("rivals", {})[t.name] = {"loss": best.loss, task.quality: t.figures.get(task.quality)}
        tables.append({"title": f"What a user would pick instead: {task.rival_seconds:g} s on one core each, seed 1",
                       "columns": ["method", "best loss", "at seconds", "at passes", "at synchronisations", task.quality.replace("_", " ")],
                       "rows": rows})
        shown += others
    if bench.all:
        tables.append({"title": "All trainings",
                       "columns": ["variant", "seed", "seconds", "passes", "gradients", "products", "losses", "synchronisations",
                                   "iterations", "CG iterations", "rejected", "best loss", task.quality.replace("_", " ")],
                       "rows": summary_rows(bench)})

    for table in tables:
        log("\n" + report.table_text(table["title"], table["columns"], table["rows"]))
    page = bench.work / "report.html"
    report.write_page(bench.build, page, title, subtitle, tables, shown)
    log(f"\npage: {page}")
    charts = bench.work / "report.svg"
    if not shown:
        log("charts: none of systems alone")
    elif report.write_charts(charts, f"{title} ({machine()})", shown):
        log(f"charts: {charts}")
    else:
        log("charts: skipped, Matplotlib is not installed")
    if arguments.json:
        everything = {**last, "machine": machine(), "commit": commit(), "arguments": sys.argv[1:], "tables": tables,
                      "trainings": [{"name": t.name, "seed": t.seed, "setting": t.setting, "figures": t.figures,
                                     "points": [dataclasses.asdict(p) for p in t.points]} for t in [*bench.all.values(), *shown]]}
        pathlib.Path(arguments.json).write_text(json.dumps(everything, indent=1) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
