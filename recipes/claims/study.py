#!/usr/bin/env python3
"""The paper's claims in miniature: variants of one training beside each other.

    recipes/claims/study.py run                      # train and judge what is not done yet
    recipes/claims/study.py run --only tpo --seed 4  # another seed of one variant
    recipes/claims/study.py report                   # docs/results.json and the tables of docs/RESULTS.md

study.toml says what is compared. Training and judging are `tpo train` and `tpo evaluate`; kill them whenever you
like, the same command continues. Needs Python 3.11 and nothing else.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STUDY = tomllib.loads((HERE / "study.toml").read_text())
RESULTS = ROOT / "docs/results.json"
DOCUMENT = ROOT / "docs/RESULTS.md"
BEGIN, END = "<!-- tables begin -->", "<!-- tables end -->"
COLUMNS = {
    "conversation": "text/exact match",
    "Acc@0.5": "region/Acc@0.5",
    "R1@0.3": "temporal/R1@0.3",
    "R1@0.5": "temporal/R1@0.5",
    "R1@0.7": "temporal/R1@0.7",
    "mIoU": "temporal/mIoU",
    "HL mAP": "temporal/HL mAP Good",
    "HIT@1": "temporal/HIT@1 Good",
    "J&F": "mask/J&F",
}


def tpo(*args):
    command = ["cargo", "run", "--release", "--features", "cli", "--bin", "tpo", "--", *map(str, args)]
    subprocess.run(command, cwd=ROOT, check=True)


def run_one(variant, seed, runs):
    """Trains a variant, asks it about the held-out clips and keeps what came of it in its scores.json."""
    folder = runs / f"{variant['name']}-{seed}"
    if (folder / "scores.json").exists():
        return
    start = time.monotonic()
    resume = ["--resume"] if (folder / "recipe.toml").exists() else []
    values = [*variant.get("set", []), f"seed={seed}", f"model.start={STUDY['start']}"]
    tpo("train", *resume, HERE / variant["recipe"], *values, "--out", folder)
    hours = (time.monotonic() - start) / 3600
    # Coordinates in words are long.
    how = ["--textual", "--max-new-tokens", 400] if variant.get("textual") else ["--max-new-tokens", 32]
    clips, world = STUDY["evaluation"]["clips"], STUDY["evaluation"]["world"]
    values = {}
    for task in ["text", *variant.get("heads", [])]:
        out = folder / f"held_out-{task}"
        tpo("evaluate", "--checkpoint", folder, "--synthetic", clips, "--seed", world, "--task", task, *how, "--out", out)
        for found in json.loads((out / "results.json").read_text())["scores"]:
            values |= {f"{found['task']}/{s['name']}": s["value"] for s in found["scores"]}
            if task == "text":
                values |= {f"conversation/{g['group']}": g["scores"][0]["value"] for g in found["groups"]}
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {"variant": variant["name"], "seed": seed, "steps": max(steps), "hours": hours}
    scores["values"] = {name: value for name, value in sorted(values.items()) if value is not None}
    (folder / "scores.json").write_text(json.dumps(scores, indent=2))


def spread(values):
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def squares(values):
    return (len(values) - 1) * statistics.variance(values) if len(values) > 1 else 0.0


def judged(ahead, behind, everybody):
    """The difference of two rows, twice its standard error, and what they say of a claim.

    Two rows of three runs say little about how far runs scatter; all rows together say more, so the variance over
    seeds is pooled over `everybody`.
    """
    if not ahead or not behind:
        return "–", "–", "not run"
    here = f"{spread(ahead)} against {spread(behind)}"
    by = statistics.fmean(ahead) - statistics.fmean(behind)
    freedom = sum(len(values) - 1 for values in everybody)
    if freedom == 0:
        return here, f"{by:+.1f}", "one run each is not enough"
    variance = sum(map(squares, everybody)) / freedom
    error = 2 * math.sqrt(variance * (1 / len(ahead) + 1 / len(behind)))
    verdict = "not shown: within the spread"
    if by > error:
        verdict = "holds"
    if by < -error:
        verdict = "does not hold: the opposite does"
    return here, f"{by:+.1f} ± {error:.1f}", verdict


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) + "\n"


def tables(runs):
    of = {v["name"]: [r for r in runs if r["variant"] == v["name"]] for v in STUDY["variants"]}

    def values(name, score):
        return [r["values"][score] for r in of[name] if score in r["values"]]

    claims = []
    for claim in STUDY["claims"]:
        everybody = [found for name in of if (found := values(name, claim["score"]))]
        ahead, behind = (values(claim[side], claim["score"]) for side in ["ahead", "behind"])
        claims.append([claim["claim"], claim["paper"], *judged(ahead, behind, everybody)])
    kinds = sorted({key for r in runs for key in r["values"] if key.startswith("conversation/")})
    kinds = {key.removeprefix("conversation/"): key for key in kinds}
    parts = [table(["claim", "in the paper", "here", "difference", ""], claims)]
    for columns in [COLUMNS, kinds]:
        rows = [
            [v["title"], len(of[v["name"]]), *(spread(values(v["name"], score)) for score in columns.values())]
            for v in STUDY["variants"]
        ]
        parts.append(table(["trained on", "seeds", *columns], rows))
    rows = []
    for variant in STUDY["variants"]:
        done = of[variant["name"]]
        hours = statistics.fmean(r["hours"] for r in done) if done else 0.0
        paper = variant.get("paper", "not in the paper")
        rows.append([variant["title"], paper, done[0]["steps"] if done else 0, f"{hours:.2f}"])
    parts.append(table(["trained on", "the paper's own figures", "steps", "hours a run"], rows))
    return "\n".join(parts)


def report(runs):
    """Collects the scores of the runs; without any, those of the report before are set anew."""
    found = [runs / f"{v['name']}-{seed}/scores.json" for v in STUDY["variants"] for seed in STUDY["seeds"]]
    found = [json.loads(path.read_text()) for path in found if path.exists()]
    if found:
        collected = {"clips": STUDY["evaluation"]["clips"], "runs": found}
        RESULTS.write_text(json.dumps(collected, indent=2) + "\n")
    found = json.loads(RESULTS.read_text())["runs"]
    head, rest = DOCUMENT.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{tables(found)}\n{END}{tail}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs/claims", help="folder of the runs")
    parser.add_argument("--only", nargs="*", help="variants to run", choices=[v["name"] for v in STUDY["variants"]])
    parser.add_argument("--seed", nargs="*", type=int, default=STUDY["seeds"], help="seeds to run")
    args = parser.parse_args()
    if args.what == "report":
        return report(args.runs)
    # All variants of a seed before the next: a study that is cut short compares.
    for seed in args.seed:
        for variant in STUDY["variants"]:
            if not args.only or variant["name"] in args.only:
                run_one(variant, seed, args.runs.resolve())


if __name__ == "__main__":
    main()
