"""What a world costs: seconds to build, memory, and time per query, from 10^2 to 10^6 pages.

    python benchmarks/world.py            # 10^2 to 10^5, about a minute
    python benchmarks/world.py --to 6     # up to 10^6, some minutes and GB more

Each size is built in a process of its own, so that peak memory is its own too. Rows are appended as they are measured;
what was measured by the same command before is kept, so a killed run goes on. The figure is drawn from the rows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from agentcpm_kit.environment import describe
from agentcpm_kit.files import append_jsonl, read_jsonl, write_json

QUERIES = 200


def measure(pages: int, language: str) -> dict:
    """Build one world with its index; seconds, MB and milliseconds."""
    from agentcpm_kit.world import Tools, WorldSpec

    spec = WorldSpec.parse(f"entities={pages},language={language},redundancy=4")
    started = time.perf_counter()
    world = spec.open()
    _ = world.index, world.numbers  # made when first asked for
    built = time.perf_counter() - started
    rng, tools, times = random.Random(0), Tools(world), []
    for _ in range(QUERIES):
        query = world.alias(rng.randrange(pages))
        started = time.perf_counter()
        tools.call("search", {"query": [query]})
        times.append(1000 * (time.perf_counter() - started))
    times.sort()
    return {"pages": pages, "language": language, "build_s": round(built, 2),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "query_median_ms": round(times[QUERIES // 2], 2), "query_p99_ms": round(times[int(QUERIES * 0.99)], 2)}


def draw(rows: list[dict], path: Path) -> None:
    """Three panels that share the axis of pages, both axes logarithmic."""
    from agentcpm_kit.report.figures import COLOURS, new_figure, save_figure

    figure, panels = new_figure(3, figsize=(9, 2.8))
    units = {"build_s": "time to build (s)", "peak_mb": "peak memory (MB)", "query_median_ms": "median query (ms)"}
    limits = {"build_s": 180, "peak_mb": 2048, "query_median_ms": 20}
    for axes, (key, label) in zip(panels, units.items(), strict=True):
        axes.loglog([r["pages"] for r in rows], [r[key] for r in rows], "o-", color=COLOURS[0])
        axes.plot(100_000, limits[key], "v", color=COLOURS[1], label="limit at 100,000 pages")
        axes.set(xlabel="pages", ylabel=label)
    panels[1].legend(fontsize=7, loc="upper left")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=int, default=5, choices=range(2, 7), help="largest world, as a power of ten")
    parser.add_argument("--language", default="en", choices=("en", "zh"))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/world"))
    parser.add_argument("--pages", type=int, help=argparse.SUPPRESS)  # measure one size in this process and print it
    args = parser.parse_args()
    if args.pages:
        return print(json.dumps(measure(args.pages, args.language)))
    done = {row["pages"] for row in read_jsonl(args.out / "rows.jsonl")}
    for pages in (10 ** power for power in range(2, args.to + 1)):
        if pages not in done:
            write_json(args.out / "env.json", describe(0) | {"command": " ".join(sys.argv)})
            command = [sys.executable, __file__, "--pages", str(pages), "--language", args.language]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            append_jsonl(args.out / "rows.jsonl", row)
            print(row, flush=True)
    draw(sorted(read_jsonl(args.out / "rows.jsonl"), key=lambda row: row["pages"]), args.out / "cost.png")
    print(f"figure: {args.out / 'cost.png'}")


if __name__ == "__main__":
    main()
