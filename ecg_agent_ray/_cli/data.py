"""``data prepare …`` for recordings, ``data dialogues …`` for dialogue sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ecg_agent_ray._cli.output import console, emit
from ecg_agent_ray.dialogue.synthesis.phrases import Split
from ecg_agent_ray.errors import ConfigError

__all__ = ["register"]

DialogueFile = Annotated[
    Path,
    typer.Argument(
        help="JSONL or Parquet rows in ECG-MTD's form, or a hub's data set: owner/name[:split]."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]

Config = Annotated[Path | None, typer.Option("--config", help="YAML of the job, see jobs/configs.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Override the YAML.")
]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set as published.")]
Output = Annotated[Path | None, typer.Option(help="Folder for the shards and .mat files.")]
ManifestDir = Annotated[Path | None, typer.Option(help="Folder for the manifests.")]
Seed = Annotated[int | None, typer.Option(help="Of the draw of patients; left out: 42.")]
Valid = Annotated[
    float | None,
    typer.Option(min=0, max=0.9, help="Share of patients for validation; left out: 0.1."),
]
Test = Annotated[
    float | None,
    typer.Option(min=0, max=0.9, help="Share of patients for the test; left out: 0.1."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="parquet (for training here), mat (for fairseq-signals); repeatable. Left out: both.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Shards written at once; left out: 2.")]

SPLITS: dict[Split, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Data sets.")
    dialogues = typer.Typer(help="Dialogues in ECG-MTD's form.")
    dialogues.command("synthesize")(synthesize)
    dialogues.command("validate")(validate)
    dialogues.command("stats")(stats)
    dialogues.command("clean")(clean)
    dialogues.command("drafts")(drafts)
    group.add_typer(dialogues, name="dialogues")
    prepare = typer.Typer(
        help="Public data sets in Parquet and as .mat files, with manifests, for training."
    )
    prepare.command("ptbxl")(prepare_ptbxl)
    prepare.command("physionet2021")(prepare_physionet2021)
    group.add_typer(prepare, name="prepare")
    app.add_typer(group, name="data")


def synthesize(
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of ECG files; repeatable. Left out: the shipped records."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the split files.")] = Path(
        "outputs/dialogues"
    ),
    n: Annotated[int, typer.Option(min=1, help="Dialogues in all splits together.")] = 1000,
    lead_configuration: Annotated[
        list[str] | None, typer.Option(help="12-lead, I or II; repeatable. Left out: 12-lead.")
    ] = None,
    classifier: Annotated[str, typer.Option(help="Classifier folder or builtin:")] = "builtin:",
    threshold: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Of the classifier; repeatable. Left out: 0.5."),
    ] = None,
    explain: Annotated[int, typer.Option(help="Recordings that also get explanations.")] = 20,
    made_up: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the training recordings that get made-up outputs, so that every "
            "statement and missing value occurs; the dialogues about them are marked.",
        ),
    ] = 0.0,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Record ids to leave out; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the writer and the split of records.")] = 42,
    writer: Annotated[
        str, typer.Option(help="offline, or openai:BASE_URL#MODEL (key: OPENAI_API_KEY).")
    ] = "offline",
    in_flight: Annotated[int, typer.Option(min=1, help="Requests to the endpoint at once.")] = 4,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=0.01, help="At most so many requests to the endpoint.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Stop a split here; needs the two prices.")
    ] = None,
    input_price: Annotated[float, typer.Option(min=0, help="Per million input tokens.")] = 0.0,
    output_price: Annotated[float, typer.Option(min=0, help="Per million output tokens.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Write dialogues about recordings from the tools' real outputs.

    Records and wording are both split: no record and no template is in two splits. An endpoint
    words anew what the offline writer outlines; the same command goes on where it was stopped.
    """
    from ecg_agent_ray import ecg
    from ecg_agent_ray.dialogue import LEAD_CONFIGURATIONS, write_dialogues
    from ecg_agent_ray.dialogue.synthesis import synthesize as write
    from ecg_agent_ray.dialogue.synthesis import vary
    from ecg_agent_ray.pipelines.facts import collect_facts, find_recordings, split_records

    endpoint = None
    if writer != "offline":
        from ecg_agent_ray.dialogue.synthesis.endpoint import EndpointWriter, Limits, rewrite

        limits = Limits(
            in_flight=in_flight,
            requests_per_minute=requests_per_minute,
            max_cost=max_cost,
            input_price=input_price,
            output_price=output_price,
        )
        endpoint = EndpointWriter(writer, limits)
    wanted = lead_configuration or ["12-lead"]
    leads = tuple(known for known in LEAD_CONFIGURATIONS if known in wanted)
    if unknown := set(wanted) - set(LEAD_CONFIGURATIONS):
        raise ConfigError(f"unknown lead configuration {', '.join(sorted(unknown))}")
    files = [f for folder in records for f in find_recordings(folder)] if records else ecg.samples()
    files = [file for file in files if file.stem not in set(exclude or [])]
    found = collect_facts(
        files, leads, classifier=classifier, thresholds=threshold or (0.5,), explain=explain
    )
    written, reports = {}, {}
    for split, facts in split_records(found.facts, SPLITS, seed=seed).items():
        if split == "train" and made_up:
            facts += vary(facts, n=round(len(facts) * made_up / (1 - made_up)), seed=seed)
        dialogues = write(facts, n=max(1, round(n * SPLITS[split])), seed=seed, split=split)
        target = output / f"{split}.jsonl"
        if endpoint is None:
            write_dialogues(target, dialogues)
        else:
            reports[split] = rewrite(dialogues, endpoint, target).to_dict()
        written[split] = str(target)
    result = {"records": len(files), "errors": found.errors, "files": written}
    if reports:
        result["writing"] = reports
    if as_json:
        emit(result)
    else:
        for split, path in written.items():
            counts = reports.get(split, {})
            console.print(f"{split}: {path}", *(f"{k}={v}" for k, v in counts.items()))
        for error in found.errors:
            console.print(f"left out {error['file']}: {error['message']}", style="yellow")


def validate(file: DialogueFile, as_json: AsJson = False) -> None:
    """List every problem of a dialogue file; exit code 1 if there is one."""
    from ecg_agent_ray.dialogue import load_dialogues
    from ecg_agent_ray.dialogue import validate as check

    read = load_dialogues(file)
    problems = [*read.problems, *check(read.dialogues)]
    if as_json:
        emit({"dialogues": len(read.dialogues), "problems": [str(item) for item in problems]})
    else:
        for problem in problems:
            console.print(str(problem))
        console.print(f"{len(read.dialogues)} dialogues, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def stats(file: DialogueFile) -> None:
    """Counts of actions, topics, levels and lengths, as JSON."""
    from ecg_agent_ray.dialogue import load_dialogues
    from ecg_agent_ray.dialogue import stats as count

    read = load_dialogues(file)
    emit({**count(read.dialogues).to_dict(), "n_malformed_rows": len(read.problems)})


def clean(
    file: DialogueFile,
    output: Annotated[
        Path | None, typer.Option(help="JSONL or Parquet for the dialogues that are clean.")
    ] = None,
) -> None:
    """Report thoughts that leak the generator's instructions, and malformed rows, as JSON.

    With --output the dialogues without either are written.
    """
    from ecg_agent_ray.dialogue import clean_report, load_dialogues, write_dialogues

    read = load_dialogues(file)
    found = clean_report(read.dialogues)
    leaking = {problem.dialogue for problem in found}
    kept = [item for number, item in enumerate(read.dialogues) if number not in leaking]
    if output is not None:
        write_dialogues(output, kept)
    emit(
        {
            "rows": read.n_rows,
            "malformed_rows": len(read.problems),
            "dialogues_that_leak": len(leaking),
            "kept": len(kept),
            "leaks": len(found),
            "problems": [
                *({"row": item.row, "message": item.message} for item in read.problems),
                *(item.to_dict() for item in found),
            ],
        }
    )


def drafts(
    file: DialogueFile,
    output: Annotated[Path, typer.Option(help="drafts.txt of an agent's folder.")],
    most: Annotated[int, typer.Option(min=1, help="Messages at most.")] = 800,
) -> None:
    """Messages from which an agent's engine guesses its next tokens; the model checks each guess.

    Take dialogues in the wording that the agent was trained on and about nobody: with made-up tool
    outputs. An agent's folder with this file writes the same text in fewer steps.
    """
    from ecg_agent_ray.agent.chat_format import TOOL_OUTPUT_MARKER
    from ecg_agent_ray.agent.drafts import choose_drafts, write_drafts
    from ecg_agent_ray.dialogue import load_dialogues, render_turn

    turns = [turn for item in load_dialogues(file).dialogues for turn in item.turns]
    texts = [
        render_turn(turn).partition(TOOL_OUTPUT_MARKER)
        for turn in turns
        if turn.action and turn.role == "assistant"
    ]
    chosen = choose_drafts([own + ("\n" if marker else "") for own, marker, _ in texts], most)
    write_drafts(output, chosen)
    emit({"messages": len(chosen), "output": str(output)})


def prepare_ptbxl(
    overrides: Overrides = None,
    config: Config = None,
    root: Root = None,
    output: Output = None,
    manifest_dir: ManifestDir = None,
    split: Annotated[
        str | None, typer.Option(help="official (strat_fold 9 and 10) or patient (drawn by seed).")
    ] = None,
    valid: Valid = None,
    test: Test = None,
    seed: Seed = None,
    formats: Formats = None,
    workers: Workers = None,
) -> None:
    """PTB-XL's 10 s records with all 71 statements; can be stopped and started again."""
    given: dict[str, Any] = {
        "root": root,
        "output": output,
        "manifest_dir": manifest_dir,
        "split": split,
    }
    given |= {"valid": valid, "test": test, "seed": seed, "formats": formats, "workers": workers}
    _prepare("ptbxl", config, overrides, given)


def prepare_physionet2021(
    overrides: Overrides = None,
    config: Config = None,
    root: Root = None,
    output: Output = None,
    manifest_dir: ManifestDir = None,
    valid: Valid = None,
    test: Test = None,
    seed: Seed = None,
    resample: Annotated[
        bool | None,
        typer.Option("--resample/--no-resample", help="Take records of other rates too."),
    ] = None,
    ptbxl_database: Annotated[
        Path | None, typer.Option(help="PTB-XL's table, to know the patients of HR records.")
    ] = None,
    formats: Formats = None,
    workers: Workers = None,
) -> None:
    """Challenge 2021 as 5 s segments, with pairs for pre-training; can be started again."""
    given: dict[str, Any] = {
        "root": root,
        "output": output,
        "manifest_dir": manifest_dir,
        "valid": valid,
    }
    given |= {"test": test, "seed": seed, "formats": formats, "workers": workers}
    given |= {"resample": resample, "ptbxl_database": ptbxl_database}
    _prepare("physionet2021", config, overrides, given)


def _prepare(
    dataset: str, config: Path | None, overrides: list[str] | None, given: dict[str, Any]
) -> None:
    """Options of the command line stand above ``key=value``, and those above the file."""
    from ecg_agent_ray._cli.output import stderr_progress
    from ecg_agent_ray.pipelines.prepare_config import PrepareConfig, run
    from ecg_agent_ray.training.config import load_config

    typed = {name: value for name, value in given.items() if value is not None}
    lines = [f"{name}={json.dumps(value, default=str)}" for name, value in typed.items()]
    options = load_config(PrepareConfig, config, [*(overrides or []), *lines, f"dataset={dataset}"])
    with stderr_progress("prepare") as progress:
        done = run(options, progress=progress)
    emit(done.to_dict())
