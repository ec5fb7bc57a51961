"""The tasks of the acceleration bench, and the variants that are compared on each.

A variant is a list of options of `hfopt train`. Three have a role in every comparison:
  published  Kingsbury 2012, Algorithm 1, with its constants
  tuned      the same all-data method; its options are chosen from `grid` on the held-out loss
  ours       what a user gets from the preset, with no option of its own
"""

import dataclasses
import itertools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]


def options(**settings):
    """--set section.field=value for each section__field=value."""
    return [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


@dataclasses.dataclass(frozen=True)
class Task:
    model: tuple  # options of the model
    preset: str  # ours
    published: tuple = ()  # options beside the published constants, where the problem asks for them
    grid: tuple = ()  # (name, options) of baselines to choose `tuned` from
    ablation: tuple = ()  # (name, options) of what is switched on or off, one at a time
    element_type: str = "float32"
    seconds: float = 600  # no training of this task may take longer
    iterations: int = 40  # of a baseline that has not converged before
    rivals: tuple = ()  # names from rivals.py
    rival_seconds: float = 60
    quality: str = "held_out_loss"  # the figure that tells how good the model is for its purpose
    deterministic: bool = False  # one shard and worker, held-out loss = training loss
    data: str = ""  # what --data has to name, for data that the repository does not have


PRECONDITIONERS = tuple(
    (f"{mode} m={m}" + (" + diagonal" if diagonal else ""),
     tuple(options(preconditioner__lbfgs=mode, preconditioner__memory=m,
                   preconditioner__diagonal="squared_gradients" if diagonal else "none")))
    for mode, m, diagonal in (("frozen", 8, False), ("frozen", 16, False), ("frozen", 32, False), ("frozen", 64, False),
                              ("flexible", 16, False), ("frozen", 16, True)))


def learning_grid():
    """All data in each gradient; damping that adapts; the first lambda, the curvature sample and the length of CG vary."""
    grid = []
    for damping, fraction, cap in itertools.product((1, 0.1), (0.01, 0.02), (15, 250)):
        grid.append((f"lambda0 {damping}, curvature {fraction:.0%}, CG <= {cap}",
                     tuple(options(damping__rule="continuous", damping__actual_reduction="held_out_at_last",
                                   damping__initial=damping, samples__curvature_fraction=fraction,
                                   conjugate_gradient__max_iterations=cap,
                                   conjugate_gradient__progress_tolerance=5e-4))))
    return tuple(grid)


def deterministic_grid():
    """All data in every evaluation, no preconditioner; damping adapts; the first lambda and the length of CG vary."""
    grid = []
    for damping, tolerance in itertools.product((1, 1e-2), (0.1, 0.01)):
        grid.append((f"lambda0 {damping}, residual {tolerance}",
                     tuple(options(damping__rule="continuous", damping__actual_reduction="held_out_at_last",
                                   damping__initial=damping, samples__curvature_fraction=1,
                                   conjugate_gradient__progress_tolerance=0, line_search__rescue_tries=6,
                                   conjugate_gradient__residual_tolerance=tolerance,
                                   conjugate_gradient__max_iterations=200))))
    return tuple(grid)


# Of `ours`: one thing different at a time.
LEARNING_ABLATION = (
    ("sampling + diagonal (ours)", ()),
    ("sampling only", tuple(options(preconditioner__diagonal="none"))),
    ("diagonal of all the gradient's examples", tuple(options(preconditioner__diagonal_examples=0))),
    ("all data, ours otherwise",
     tuple(options(samples__initial_gradient_examples=0, samples__held_out_fraction=0, samples__curvature_fraction=0.01))),
    ("geometric samples", tuple(options(samples__growth="geometric"))),
    ("variance-driven samples", tuple(options(samples__growth="variance"))),
    ("continuous damping, one target",
     tuple(options(damping__rule="continuous", damping__target_ratio=0.5, damping__actual_reduction="held_out_at_last"))),
    ("Levenberg-Marquardt damping", tuple(options(damping__rule="levenberg_marquardt"))),
    ("CG cut at 15", tuple(options(conjugate_gradient__max_iterations=15))),
    ("CG by Martens' rule, cap 250",
     tuple(options(conjugate_gradient__initial_max_iterations=0, conjugate_gradient__max_iterations=250))),
) + tuple((f"sampling + {name}", settings) for name, settings in PRECONDITIONERS)

DETERMINISTIC_ABLATION = (
    ("frozen m=64 (ours)", ()),
    ("no preconditioner", tuple(options(preconditioner__lbfgs="none"))),
) + tuple((name, settings) for name, settings in PRECONDITIONERS if "m=64" not in name and "diagonal" not in name)

LEARNING_RIVALS = ("sgd", "adam", "lbfgs")
ALL_DATA = tuple(options(samples__curvature_fraction=1))


def an4(task, layers, fraction, seconds):
    return Task(model=("--task", task, "--layers", layers, "--fraction", str(fraction)), preset="accelerated",
                grid=learning_grid(), ablation=LEARNING_ABLATION, seconds=seconds, rivals=LEARNING_RIVALS,
                quality="test_word_error_rate")


def autoencoder(data, layers, seconds):
    return Task(model=("--task", "idx-autoencoder", "--layers", layers), preset="accelerated", grid=learning_grid(),
                ablation=LEARNING_ABLATION, seconds=seconds, rivals=LEARNING_RIVALS, quality="held_out_squared_error",
                data=data)


TASKS = {
    "digits": Task(model=("--task", "digits"), preset="accelerated", grid=learning_grid()[:2],
                   ablation=LEARNING_ABLATION[:2], seconds=20, rivals=LEARNING_RIVALS, rival_seconds=1,
                   quality="held_out_errors"),
    "curves": autoencoder("", "784-400-200-100-50-25-6-25-50-100-200-400-784", 240),
    "mnist-ae": autoencoder("the MNIST images in IDX files", "784-1000-500-250-30-250-500-1000-784", 600),
    "inverse": Task(model=("--task", "inverse"), preset="deterministic", published=ALL_DATA, grid=deterministic_grid(),
                    ablation=DETERMINISTIC_ABLATION, element_type="float64", seconds=240, rivals=("lbfgs",),
                    rival_seconds=120, quality="relative_model_error", deterministic=True),
}
for percent in (25, 50, 100):
    suffix = "" if percent == 100 else f"-{percent}"
    TASKS[f"an4-mono{suffix}"] = an4("an4", "440-256-256-102", percent / 100, 240)
    TASKS[f"an4-cd{suffix}"] = an4("an4-cd", "440-512-512-512-512", percent / 100, 600)
for problem in ("poisson", "convection"):
    TASKS[f"pinn-{problem}"] = Task(
        model=("--task", f"pinn-{problem}"), preset="deterministic", published=ALL_DATA, grid=deterministic_grid(),
        ablation=DETERMINISTIC_ABLATION, element_type="float64", seconds=60, rivals=("lbfgs", "adam"), rival_seconds=60,
        quality="relative_l2_error", deterministic=True)
