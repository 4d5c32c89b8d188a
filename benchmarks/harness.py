"""What the harness itself costs: requests per second against a server that answers at once, many at a time.

All of an evaluation is in the time: the tools' searches, transcripts, scores and reports; of the imports, the kit's own are not.

    python benchmarks/harness.py --out results/reference/benchmarks/harness.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from mock_server import running

from agentcpm_kit.environment import describe
from agentcpm_kit.evaluate.command import evaluate
from agentcpm_kit.evaluate.options import Options
from agentcpm_kit.files import jsonl, write_json
from agentcpm_kit.world import load_family


def tasks_with_gold(path: Path, count: int) -> None:
    """Tasks of the atlas whose questions tell the mock server their answers, in brackets."""
    tasks = load_family("multihop", "test")[:count]
    path.write_text(jsonl({**task.record(), "Question": f"{task.question} [{task.answer}]"} for task in tasks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with running(options.port), tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "mock.jsonl"
        tasks_with_gold(tasks, options.tasks)
        began, cpu = time.perf_counter(), time.process_time()
        rows = evaluate(Options(str(tasks), Path(folder) / "out", "openai", "mock", f"http://127.0.0.1:{options.port}/v1",
                                runs=options.runs, concurrency=options.concurrency))
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    requests = sum(row["turns"] for row in rows)
    found = {"requests": requests, "concurrency": options.concurrency, "seconds": round(wall, 2),
             "requests_per_s": round(requests / wall, 1), "harness_cpu_ms_per_request": round(1000 * cpu / requests, 3),
             "correct": sum(row["outcome"] == "correct" for row in rows), "env": describe(0)}
    print(json.dumps({k: v for k, v in found.items() if k != "env"}, indent=1))
    if options.out:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
