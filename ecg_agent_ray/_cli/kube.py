"""``kube render|validate|submit``: the manifests of ``kube/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecg_agent_ray._cli.output import emit
from ecg_agent_ray.errors import ConfigError

__all__ = ["register"]

Image = Annotated[str | None, typer.Option(help="CPU image, NAME:TAG or NAME@sha256:…")]
CudaImage = Annotated[str | None, typer.Option(help="Image of GPU workers.")]
MlflowImage = Annotated[str | None, typer.Option(help="Image of the MLflow server.")]
Namespace = Annotated[str | None, typer.Option(help="Namespace of everything.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Kubernetes manifests.", no_args_is_help=True)
    group.command("render")(render)
    group.command("validate")(validate)
    group.command("submit")(submit)
    app.add_typer(group, name="kube")


def render(
    overlay: Annotated[str, typer.Argument(help="kind, staging, production, or a folder.")],
    output: Annotated[Path | None, typer.Option(help="File; left out: stdout.")] = None,
    image: Image = None,
    cuda_image: CudaImage = None,
    mlflow_image: MlflowImage = None,
    namespace: Namespace = None,
    storage_class: Annotated[str | None, typer.Option(help="Of every volume claim.")] = None,
    agent: Annotated[str | None, typer.Option(help="URI of the agent to serve.")] = None,
    classifier: Annotated[str | None, typer.Option(help="URI of the classifier to serve.")] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="Optional part to add, e.g. gpu-agent; repeatable.")
    ] = None,
) -> None:
    """Write an overlay as plain manifests, for kubectl or a GitOps repository."""
    from ecg_agent_ray.kube import Parameters
    from ecg_agent_ray.kube import render as run

    parameters = Parameters(
        image=image,
        cuda_image=cuda_image,
        mlflow_image=mlflow_image,
        namespace=namespace,
        storage_class=storage_class,
        agent=agent,
        classifier=classifier,
        components=tuple(component or ()),
    )
    text = run(overlay, parameters)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def validate(
    target: Annotated[str, typer.Argument(help="An overlay's name or folder, or a YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Check manifests without a cluster; exit 2 if anything is wrong."""
    from ecg_agent_ray.kube import load_objects
    from ecg_agent_ray.kube import render as run
    from ecg_agent_ray.kube import validate as check

    path = Path(target)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
    elif target.endswith((".yaml", ".yml")):
        raise ConfigError(f"no manifest file at {path}")
    else:
        text = run(target, origins=True)
    objects = load_objects(text, target)
    problems = check(objects)
    errors = sum(one.severity == "error" for one in problems)
    if as_json:
        for one in problems:
            emit({"target": target, **one.to_dict()})
        emit({"target": target, "objects": len(objects), "errors": errors})
    else:
        for one in problems:
            typer.echo(f"{one.severity}: {target}: {one}", err=True)
        typer.echo(f"{target}: {len(objects)} objects, {errors} errors")
    if errors:
        raise typer.Exit(2)


def submit(
    job: Annotated[str, typer.Argument(help="A RayJob's name in the overlay.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Override its YAML.")
    ] = None,
    overlay: Annotated[str, typer.Option(help="Overlay that has the job.")] = "production",
    image: Image = None,
    cuda_image: CudaImage = None,
    namespace: Namespace = None,
    context: Annotated[str | None, typer.Option(help="kubeconfig context.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it; send nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")] = True,
    name: Annotated[str | None, typer.Option(help="Its name in the cluster; one a run.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds to follow it; it goes on after them.")
    ] = None,
) -> None:
    """Run a job of an applied overlay in the cluster.

    Ends with 0 if the job succeeds, with 1 if it fails; Ctrl-C leaves it running.
    """
    import yaml

    from ecg_agent_ray.kube import Parameters, load_objects, prepare_job, submit_job
    from ecg_agent_ray.kube import render as run

    parameters = Parameters(image=image, cuda_image=cuda_image, namespace=namespace)
    prepared = prepare_job(load_objects(run(overlay, parameters)), job, overrides or [], name)
    if dry_run:
        typer.echo(yaml.safe_dump(prepared, sort_keys=False), nl=False)
        return
    emit(
        submit_job(
            prepared,
            context=context,
            wait=wait,
            timeout_s=timeout,
            progress=lambda text: typer.echo(text, err=True),
        )
    )
