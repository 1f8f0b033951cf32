"""A W&B workspace for a project of runs, as code. W&B's workspaces are imported where they are used."""

import json
from typing import Any

STEP = "trainer/global_step"  # meta-batches

# The keys that runs are searched over most -> whether their axis is logarithmic.
SEARCHED = {"algo.inner_lr": True, "algo.inner_steps": False, "algo.outer_lr": True, "data.shots": False}


def workspace(entity: str, project: str, metric: str) -> Any:
    """Return the workspace, which is not saved yet.

    metric: mse or accuracy. Raises ModuleNotFoundError without the package wandb-workspaces.
    """
    import wandb_workspaces.workspaces as ws

    sections = {
        "Learning": learning(metric),
        "Adaptation curve": adaptation(metric),
        "Comparison by algorithm": comparison(metric),
        "Inner rates": [over_steps("mean learned inner rate of each layer", metric_regex="inner_lr/.*")],
        "Parallel coordinates": searched(metric),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"innerloop: {metric}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def over_steps(title: str, *names: str, **options: Any) -> Any:
    """Return a line plot over meta-batches."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x=STEP, y=list(names), title_x="meta-batches", **options)


def by_algorithm() -> dict[str, Any]:
    """Return the arguments of a plot that averages an algorithm's runs."""
    import wandb_workspaces.reports.v2 as wr

    # A plain string would name a metric and not a configuration key, and its axis would be empty.
    return {"groupby": wr.Config("algo.name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def learning(metric: str) -> list[Any]:
    """Return the panels of learning curves."""
    return [
        over_steps(f"validation {metric}", f"val/{metric}"),
        over_steps(f"training {metric}", f"train/{metric}"),
        over_steps("training loss", "train/loss"),
        over_steps("norm of the meta-gradient", "train/gradient_norm", log_y=True),
        over_steps("outer rate", metric_regex="lr-.*"),
    ]


def adaptation(metric: str) -> list[Any]:
    """Return the panels of the test metric over inner steps."""
    import wandb_workspaces.reports.v2 as wr

    axes = {"x": "adaptation/step", "y": [f"adaptation/{metric}_mean"], "title_x": "inner steps"}
    return [
        wr.LinePlot(title=f"test {metric} over the inner steps", **axes),
        wr.LinePlot(title="mean of an algorithm's runs", **axes, **by_algorithm()),
        wr.MediaBrowser(title="with intervals", media_keys=["plots/adaptation_curve"]),
    ]


def comparison(metric: str) -> list[Any]:
    """Return the panels that compare algorithms, and results with sizes and costs."""
    import wandb_workspaces.reports.v2 as wr

    def against_result(title: str, name: str) -> Any:
        tested = wr.SummaryMetric(f"test/{metric}")
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(name), y=tested, log_x=True)

    return [
        over_steps(f"validation {metric}", f"val/{metric}", **by_algorithm()),
        wr.BarPlot(title=f"test {metric}", metrics=[f"test/{metric}"], **by_algorithm()),
        against_result("size and result", "parameters"),
        against_result("cost and result", "train_cpu_seconds"),
    ]


def searched(metric: str) -> list[Any]:
    """Return the panels of what was searched: parallel coordinates and importances."""
    import wandb_workspaces.reports.v2 as wr

    def column(name: Any, log: bool = False) -> Any:
        return wr.ParallelCoordinatesPlotColumn(metric=name, log=log or None)

    columns = [column(wr.Config("algo.name")), *(column(wr.Config(key), log) for key, log in SEARCHED.items())]
    results = [column(wr.SummaryMetric(f"{split}/{metric}")) for split in ("validation", "test")]
    return [
        wr.ParallelCoordinatesPlot(columns=[*columns, *results]),
        wr.ParameterImportancePlot(with_respect_to=f"validation/{metric}"),
    ]


def to_json(made: Any) -> dict[str, Any]:
    """Return what `save()` uploads."""
    view = made._to_model()
    spec = view.spec.model_dump_json(by_alias=True, exclude_none=True)
    return {"entity": view.entity, "project": view.project, "name": view.display_name, "spec": json.loads(spec)}
