"""A W&B workspace for a project of runs, as code. W&B's workspaces are imported where they are used."""

import json
from typing import Any

STEP = "trainer/global_step"  # meta-batches

# The keys that runs are searched over most -> whether their axis is logarithmic.
SEARCHED = {"algo.inner_lr": True, "algo.inner_steps": False, "algo.outer_lr": True, "data.shots": False}


def workspace(entity: str, project: str, metric: str) -> Any:
    """Return the workspace, which is not saved yet.

    Its sections: learning, adaptation curve, comparison by algorithm, inner rates, parallel coordinates.

    metric: mse or accuracy. Raises ModuleNotFoundError without the package wandb-workspaces.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    # A plain string would name a metric and not a configuration key, and its axis would be empty.
    algorithm = wr.Config("algo.name")
    by_algorithm = {"groupby": algorithm, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    validated, tested = f"val/{metric}", f"test/{metric}"

    def over_steps(title: str, *names: str, **options: Any) -> Any:
        return wr.LinePlot(title=title, x=STEP, y=list(names), title_x="meta-batches", **options)

    def column(name: Any, log: bool = False) -> Any:
        return wr.ParallelCoordinatesPlotColumn(metric=name, log=log or None)

    def against_result(title: str, name: str) -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(name), y=wr.SummaryMetric(tested), log_x=True)

    adapted = f"adaptation/{metric}_mean"
    along = {"x": "adaptation/step", "y": [adapted], "title_x": "inner steps"}
    sections = {
        "Learning": [
            over_steps(f"validation {metric}", validated),
            over_steps(f"training {metric}", f"train/{metric}"),
            over_steps("training loss", "train/loss"),
            over_steps("norm of the meta-gradient", "train/gradient_norm", log_y=True),
            over_steps("outer rate", metric_regex="lr-.*"),
        ],
        "Adaptation curve": [
            wr.LinePlot(title=f"test {metric} along the inner steps", **along),
            wr.LinePlot(title="mean of an algorithm's runs", **along, **by_algorithm),
            wr.MediaBrowser(title="with intervals", media_keys=["plots/adaptation_curve"]),
        ],
        "Comparison by algorithm": [
            over_steps(f"validation {metric}", validated, **by_algorithm),
            wr.BarPlot(title=f"test {metric}", metrics=[tested], **by_algorithm),
            against_result("size and result", "parameters"),
            against_result("cost and result", "train_cpu_seconds"),
        ],
        "Inner rates": [over_steps("mean learned inner rate of each layer", metric_regex="inner_lr/.*")],
        "Parallel coordinates": [
            wr.ParallelCoordinatesPlot(
                columns=[
                    column(algorithm),
                    *(column(wr.Config(key), log) for key, log in SEARCHED.items()),
                    column(wr.SummaryMetric(f"validation/{metric}")),
                    column(wr.SummaryMetric(tested)),
                ]
            ),
            wr.ParameterImportancePlot(with_respect_to=f"validation/{metric}"),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"innerloop: {metric}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def to_json(made: Any) -> dict[str, Any]:
    """Return what `save()` uploads."""
    view = made._to_model()
    spec = view.spec.model_dump_json(by_alias=True, exclude_none=True)
    return {"entity": view.entity, "project": view.project, "name": view.display_name, "spec": json.loads(spec)}
