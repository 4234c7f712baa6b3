"""One MLflow run for one job, opened on the driver around ``trainer.fit()``.

    configure("sqlite:///mlflow.db", artifact_root="mlartifacts", experiment="demo")
    with tracked_run("finetune", params={"lr": 3e-4}) as run:
        trainer = TorchTrainer(loop, run_config=RunConfig(callbacks=[run.callback()]), ...)
        trainer.fit()
        run.log_metrics({"auroc": 0.91})

The run ends ``FINISHED``; ``FAILED`` with the traceback as artifact and the error as tag when the
body raises; ``KILLED`` when it is interrupted. A restart passes ``run_id`` and goes on in the same
run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.plugins.environment import variables
from ecg_agent_ray.plugins.spool import RunSpool, resend
from ecg_agent_ray.plugins.stores import check_store, store_errors
from ecg_agent_ray.settings import load_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ecg_agent_ray.plugins.train_callback import MLflowTrainCallback

__all__ = ["TrackedRun", "configure", "data_digest", "git_commit", "tracked_run"]

logger = logging.getLogger(__name__)

_PACKAGE = "ecg-agent-ray"
_TAG_LIMIT = 5000  # the shortest limit for tag values among MLflow's stores
_FLUSH_S = 30.0  # how long the end of a job waits for an MLflow that is away
_PARAM_LIMIT = 6000  # mlflow.utils.validation.MAX_PARAM_VAL_LENGTH


def configure(
    tracking_uri: str | None = None,
    *,
    artifact_root: str | os.PathLike[str] | None = None,
    experiment: str = "Default",
) -> str:
    """Point MLflow at a store, make the experiment if it is new, and return its id.

    Defaults come from the settings: ``MLFLOW_TRACKING_URI``, else SQLite under ``$ECG_AGENT_HOME``
    with artifacts beside it. ``artifact_root`` is only used for an experiment that is made now;
    with a tracking server leave it out, the server decides. Several processes may start at once.

    Raises
    ------
    ServiceError
        The tracking server does not answer.
    ConfigError
        The URI is a plain folder (MLflow 3 has no file store), or the experiment was deleted.
    """
    import mlflow

    # MLflow draws a bar for every handful of files; whoever sets this variable keeps the say
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    settings = load_settings()
    if tracking_uri is None:
        tracking_uri = settings.mlflow_uri
        if settings.tracking_uri is None and artifact_root is None:
            artifact_root = settings.artifact_root
    check_store(tracking_uri)
    location = None
    if artifact_root is not None:
        location = (Path(artifact_root).resolve() / _folder_name(experiment)).as_uri()
    mlflow.set_tracking_uri(tracking_uri)
    with store_errors(tracking_uri), _prepared_sqlite(tracking_uri):
        experiment_id = _experiment(mlflow.MlflowClient(tracking_uri), experiment, location)
    mlflow.set_experiment(experiment_id=experiment_id)
    return experiment_id


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was quicker
    if found is None or found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"MLflow experiment {name!r} was deleted",
            hint="restore it with `mlflow experiments restore`, or take another name",
        )
    return str(found.experiment_id)


@dataclass(frozen=True)
class TrackedRun:
    """The open run of a job. Writes go through the spool and survive an outage of MLflow."""

    run_id: str
    experiment_id: str
    tracking_uri: str
    spool: RunSpool

    def callback(self, **options: Any) -> MLflowTrainCallback:
        """The Ray Train callback for this run; ``options`` as in :class:`MLflowTrainCallback`."""
        from ecg_agent_ray.plugins.train_callback import MLflowTrainCallback

        options.setdefault("spool_dir", self.spool.directory)
        return MLflowTrainCallback(self.run_id, self.tracking_uri, **options)

    def log_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers (nested mappings as ``a/b``); a step must be above the key's last one."""
        from ecg_agent_ray.plugins.train_callback import numeric_metrics

        self.spool.metrics(numeric_metrics(values), step)
        self.spool.send()

    def set_tags(self, values: Mapping[str, Any]) -> None:
        self.spool.tags({key: str(value)[:_TAG_LIMIT] for key, value in values.items()})
        self.spool.send()

    def log_text(self, text: str, artifact_file: str) -> None:
        self.spool.text(text, artifact_file)
        self.spool.send()

    def log_dict(self, value: Any, artifact_file: str) -> None:
        """Log ``value`` as a JSON artifact."""
        self.log_text(json.dumps(value, indent=2, default=str), artifact_file)

    def log_artifacts(self, directory: str | os.PathLike[str], artifact_path: str) -> None:
        """Log a local directory; it has to stay until the run has ended."""
        self.spool.artifacts(Path(directory).resolve(), artifact_path)
        self.spool.send()

    def log_data(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        context: str = "training",
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a data set as an input of the run (shown by MLflow as dataset and digest).

        ``source`` is a URI or path, ``profile`` its counts. See :func:`data_digest` for the digest;
        MLflow keeps at most 36 characters of it.
        """
        import mlflow
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile)) if profile else None,
        )
        tag = InputTag("mlflow.data.context", context)
        mlflow.MlflowClient(self.tracking_uri).log_inputs(
            self.run_id, datasets=[DatasetInput(dataset=dataset, tags=[tag])]
        )


@contextlib.contextmanager
def tracked_run(
    name: str,
    *,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    artifact_root: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
) -> Iterator[TrackedRun]:
    """Open one MLflow run around a whole job; see the module's text for how it ends.

    ``run_id`` continues a run. So does ``MLFLOW_RUN_ID``, which ``mlflow run`` sets: the run is
    then the project's, in the project's experiment. Within another active run the new one is its
    child. ``experiment`` calls :func:`configure`; without it the active experiment is used.

    Raises
    ------
    ServiceError
        MLflow does not answer now. Later outages are bridged by the spool.
    """
    import mlflow

    project_run = None if run_id else os.environ.get("MLFLOW_RUN_ID")
    if project_run is None and (experiment is not None or tracking_uri is not None):
        configure(tracking_uri, artifact_root=artifact_root, experiment=experiment or "Default")
    uri = mlflow.get_tracking_uri()
    check_store(uri)
    if project_run is not None:
        # start_run refuses a run of another experiment than the one in use
        mlflow.set_experiment(experiment_id=mlflow.get_run(project_run).info.experiment_id)
    directory = Path(spool_dir or load_settings().home / "spool").resolve()
    resend(directory)
    all_tags = {**_standard_tags(), **(tags or {})}
    active = mlflow.start_run(
        run_id=run_id,
        run_name=None if project_run else name,  # a project's run has the name its user gave it
        nested=mlflow.active_run() is not None,
        tags={key: str(value)[:_TAG_LIMIT] for key, value in all_tags.items()},
    )
    run = TrackedRun(
        run_id=active.info.run_id,
        experiment_id=active.info.experiment_id,
        tracking_uri=uri,
        spool=RunSpool(active.info.run_id, uri, directory),
    )
    _log_params(run, params or {}, known=active.data.params)
    with _restored_sigint() as sigint_replaced:
        try:
            yield run
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
            if not interrupted:
                _log_failure(run, error)
            _end(run, "KILLED" if interrupted else "FAILED")
            if isinstance(error, SystemExit) and not error.code and sigint_replaced():
                # Ray Train answers Ctrl-C with sys.exit(0); an interrupted job has not succeeded
                raise KeyboardInterrupt from error
            raise
        else:
            _end(run, "FINISHED")


def data_digest(paths: Iterable[str | os.PathLike[str]]) -> str:
    """36 hex characters of the SHA-256 of the files' names and bytes, in the order of names."""
    total = hashlib.sha256()
    for path in sorted((Path(p) for p in paths), key=lambda p: p.name):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:36]


def git_commit(directory: str | os.PathLike[str] = ".") -> str | None:
    """Commit of the work tree around ``directory``, ``-dirty`` if it was changed; else None."""
    command = ["git", "-C", os.fspath(directory), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _standard_tags() -> dict[str, str]:
    # also set through the entry point, which an uninstalled source tree does not have
    from ecg_agent_ray.plugins.run_context import RayRunContext

    tags = RayRunContext().tags()
    with contextlib.suppress(metadata.PackageNotFoundError):
        tags["package.version"] = metadata.version(_PACKAGE)
    if commit := git_commit():
        tags["git.commit"] = commit
    return tags


def _log_params(run: TrackedRun, params: Mapping[str, Any], *, known: Mapping[str, str]) -> None:
    """Log the new ones. MLflow's params cannot change: one that differs now becomes a tag."""
    import mlflow

    values = {key: str(value)[:_PARAM_LIMIT] for key, value in params.items()}
    new = {key: value for key, value in values.items() if key not in known}
    changed = {f"param.{k}": v for k, v in values.items() if k in known and known[k] != v}
    items = list(new.items())
    for start in range(0, len(items), 100):  # MLflow's limit for one call
        mlflow.log_params(dict(items[start : start + 100]), run_id=run.run_id)
    if changed:
        logger.warning("run %s continues with changed %s", run.run_id, ", ".join(sorted(changed)))
        run.set_tags(changed)


def _log_failure(run: TrackedRun, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    run.spool.text(text, "failures/driver.txt")
    summary = f"{type(error).__name__}: {error}"[:_TAG_LIMIT]
    run.spool.tags({"error": summary, "error.type": type(error).__name__})


def _end(run: TrackedRun, status: str) -> None:
    import mlflow

    run.spool.status(status)
    # who pressed Ctrl-C does not wait for a server that is away
    sent = run.spool.flush(timeout_s=3.0 if status == "KILLED" else _FLUSH_S)
    if not sent:
        logger.warning(
            "MLflow at %s is away; the rest of run %s waits in %s and is sent by the next job",
            run.tracking_uri,
            run.run_id,
            run.spool.directory,
        )
    if (active := mlflow.active_run()) is not None and active.info.run_id == run.run_id:
        # the status itself went through the spool; this takes the run off MLflow's stack
        with contextlib.suppress(Exception), _no_http_retries(not sent):
            mlflow.end_run(status)


def _no_http_retries(active: bool) -> contextlib.AbstractContextManager[None]:
    """Let MLflow's client give up at once; it retries a refused connection for minutes."""
    return variables({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} if active else {})


@contextlib.contextmanager
def _restored_sigint() -> Iterator[Any]:
    """Undo the SIGINT handler that Ray Train installs and leaves behind; yields "was replaced?"."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield lambda: signal.getsignal(signal.SIGINT) is not before
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


@contextlib.contextmanager
def _prepared_sqlite(uri: str) -> Iterator[None]:
    """Hold a lock beside a SQLite file while MLflow opens it.

    Processes that make MLflow's tables at the same time fail each other's migrations (3.17). The
    write-ahead log lets readers and one writer work at once; that mode stays in the file.
    """
    if not uri.startswith("sqlite:///"):
        yield
        return
    import sqlite3

    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as db:
            if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                db.execute("PRAGMA journal_mode=WAL")
        yield


def _folder_name(experiment: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in experiment)
