"""Pages of code discovery, calibration and drift."""

from pathlib import Path

from store import Line, load, read, table

from ddm_rt.evaluate.comparison.paired import CONFIDENCE, Decision

_CALIBRATION = """# Calibration: error of the achieved share

`python benchmarks/calibration.py --work DIR`; bundle `{bundle}`, judge `{judge}`, groups {groups}, {draws} draws of the
audits from {pool_per_code} generated images per code (half for audits, half for the truth); {machine}.

Error is |achieved - target| of the share of {first}, mean and 90th percentile over the draws; "refused" is how often
the target was called out of reach (its error is then that of the nearest weights, and counts in the mean). Audits are
drawn evenly over the codes, or half evenly and half by the weights so far; with 16 audits and 16 codes nothing is left
for the second half. Effective training images are Kish's. Slant (degrees) and thickness (pixels) are means.
"None" is the uniform target, which knows nothing of the groups.

In the mixed codes, code k takes (k mod 4)/8 of its images from all codes alike, so that codes are impure and differ.

"""


_SPLITS = """# Splits of clothes

`python benchmarks/splits.py FOLDER`: twelve sets of Fashion-MNIST, 1,000 images each, {machine}. The rule of
`ddm-rt discover` was developed on these sets; no other pair was looked at. A candidate is a split of the images; no
label was read for it. "Best of six" is the best balanced accuracy of the first six candidates, against the withheld
classes. A person would accept that one where it is at least .90: {hits} of {sets} sets. Else nothing is trained, and
the set is a miss. FD_ddm is |share - .5| of {n} images that were made with the accepted candidate, by a judge that has
seen other images; its interval is at 95 %. {trained} of the {hits} have been trained so far, and {balanced} of these
keep to the bar of .06. The judge knows ten classes, and takes many real shirts for coats or pullovers; such an image
counts as neither. "Of the two alone" is FD_ddm where it may only choose between the pair, added after FD_ddm was seen;
{alone} keep to .06 by it.

"""


def splits_page(results: Path) -> str:
    """Whether the split that a person means is shown, and what accepting it gives."""
    lines = read(results / "splits.jsonl")
    done = [line["evaluation"] for line in lines if "evaluation" in line]
    head = _SPLITS.format(
        machine=lines[0]["machine"],
        hits=sum(max(line["accuracy"][:6]) >= 0.9 for line in lines),
        sets=len(lines),
        n=done[0]["n"] if done else "so many",
        trained=len(done),
        balanced=sum(each["raw"]["scores"]["fd_ddm"] <= 0.06 for each in done),
        alone=sum(abs(each["pair"]["share"] - 0.5) <= 0.06 for each in done),
    )
    views = list(lines[0]["by_view"])
    rows = []
    for line in lines:
        best = max(line["accuracy"][:6])
        at = line["accuracy"].index(best)
        found = line.get("evaluation")
        figure = (
            ""
            if found is None
            else "{:.3f} [{:.3f}, {:.3f}]".format(found["raw"]["scores"]["fd_ddm"], *found["raw"]["fd_ddm_interval"])
        )
        told = (f"{best:.2f} (no. {at + 1})", line["views"][at], f"{line['stability'][at]:.2f}")
        pair = ("", "")
        if found is not None:
            known = " / ".join(f"{share:.2f}" for share in found["pair"]["known"])
            pair = (f"{abs(found['pair']['share'] - 0.5):.3f}", known)
        rows.append((line["set"], *told, *(f"{max(line['by_view'][view]):.2f}" for view in views), figure, *pair))
    columns = (
        *("set", "best of six", "found in", "its stability", *(f"{view} alone" for view in views), "FD_ddm"),
        *("of the two alone", "of real ones known"),
    )
    return head + table(columns, rows) + f"\nCommit {', '.join(dict.fromkeys(line['commit'] for line in lines))}.\n"


_JOINT = """# Faces with two attributes out of balance

`python benchmarks/joint_faces.py POOL.npz ATTRIBUTES.npz E2=... E2w=... E2c=...`: cartoon faces at 32x32, {machine}.
"joint" has gender 4:1 and race 8:4:2:1 (1,125 images); the control has as many of each (1,200). {n}. Shares are
as judged, not corrected; intervals at 95 %. "accepted": candidates of `ddm-rt discover` on features of a
caption-trained encoder, accepted where their balanced accuracy for an attribute is at least .75. The true attributes
stand in for a person's eyes. "blind": all equal-share factors accepted, without looking. E2w is a weak encoder; E2c
heard gender and race less often. "labels": a probe on E2 features, from so many labels of both attributes.

"""


def joint_faces_page(results: Path) -> str:
    """Two crossing attributes, by diffusion."""
    lines = read(results / "joint_faces.jsonl")
    rows = []
    for line in lines:
        told: list[object] = [line["set"], line["way"], line["seed"]]
        for name in ("gender", "race"):
            best = max(line["accuracy"][name]) if "accuracy" in line else None
            told.append("" if best is None else f"{best:.2f}")
        sides = [line["sides"][number - 1] for number in line.get("accepted", ())]
        told.append(" x ".join(map(str, sides)) + (f", {line['cells']}" if line.get("cells") else ""))
        told.append(f"{line['effective_images']:.0f}" if line.get("effective_images") else "")
        for name in ("gender", "race"):
            raw = line[name]["raw"] if name in line else None
            told.append("not trained" if raw is None else _l2(raw))
        rows.append(told)
    n = next(
        (f"n = {line['gender']['n']} images a cell" for line in lines if "gender" in line), "No cell is trained yet"
    )
    columns = ("set", "codes", "seed", "gender found", "race found", "cells", "n_eff", "gender FD_L2", "race FD_L2")
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    head = _JOINT.format(machine=lines[0]["machine"], n=n)
    return head + table(columns, rows) + f"\nCommit {commits}.\n"


def _l2(raw: Line) -> str:
    """FD_L2 with its interval; of two groups the stored one is FD_ddm's, a √2-th of it."""
    low, high = raw.get("fd_l2_interval") or [2**0.5 * edge for edge in raw["fd_ddm_interval"]]
    return f"{raw['scores']['fd_l2']:.3f} [{low:.3f}, {high:.3f}]"


def codes_page(results: Path) -> str:
    """What codes hold, by labels that nothing else has read."""
    parts = ["# Codes\n"]
    if record := load("code rules", results):
        parts += ["\n## Rules of code discovery\n\n", _code_rules(record)]
    if record := load("indicator", results):
        parts += ["\n## The indicator's confidence, and labels in the codes\n\n", _indicator(record)]
    return "".join(parts)


def _code_rules(record: Line) -> str:
    rows = (
        (row["set"], row["rule"], f"{row['share']:.3f}", " / ".join(map(str, row["top_sizes"])))
        for row in record["rows"]
    )
    return table(("set", "rule", "share of first digit", "images in each top code"), rows) + (
        "\nMean over the top codes of the first digit's share: .5 is balance. Commit "
        f"{', '.join(dict.fromkeys(row['commit'] for row in record['rows']))}; "
        f"`{record['command']}`\n"
    )


def _indicator(record: Line) -> str:
    confidence = (
        (
            row["images"],
            "yes" if row["told"] else "no",
            row["n"],
            *(f"{row[name]:.3f}" for name in ("accuracy", "top_accuracy", "confidence", "ece")),
            f"{row['smooth_ece']:.3f}" if "smooth_ece" in row else "",
            f"{row['floor_mean']:.3f} / {row['floor_p95']:.3f}",
        )
        for row in record["indicator"]
    )
    probes = (
        (
            row["of"],
            row["dimensions"],
            f"{row['accuracy']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]",
            f"{row['balanced_accuracy']:.3f}",
            f"{row['chance']:.3f}",
        )
        for row in record["probes"]
    )
    names = (
        "C reads",
        "UNet told the code",
        "n",
        "names the code",
        "names the top code",
        "mean confidence",
        "ECE",
        "smECE",
    )
    return (
        table((*names, "floor, mean / 95 %"), confidence)
        + "\n"
        + table(
            ("linear probe of the digit from", "dimensions", "accuracy [95 %]", "balanced accuracy", "chance"), probes
        )
        + f"\nPreset digits-demo ({record['source']}), bundle {record['bundle_id'][:12]}; probes by 5-fold "
        "cross-validation over the training images. n counts noised images, 2 of each; floor: ECE of a "
        f"classifier that is right as often as it says. Commit {record['commit']}; `{record['command']}`\n"
    )


def calibration_page(results: Path) -> str:
    """The error of calibrating, by target, number of audits and estimator."""
    if (record := load("calibration", results)) is None:
        return ""
    first, *_ = record["groups"]
    parts = [_CALIBRATION.format(**(record | {"groups": ", ".join(record["groups"]), "first": first}))]
    estimators = list(dict.fromkeys(row["estimator"] for row in record["rows"] if row["n"]))
    for name, codes in record["codes"].items():
        shares = ", ".join(f"{share:.2f}" for share in codes["p"])
        rows = [row for row in record["rows"] if row["codes"] == name]
        parts += [
            f"\n## {name.capitalize()} codes\n\nShare of {first} in each code: {shares}.\n\n",
            _calibration([row for row in rows if row.get("estimator", estimators[0]) == estimators[0]]),
            "\nOther estimators, half drawn by weights (error, 90th percentile):\n\n",
            _estimators(rows, estimators),
        ]
    return "".join(parts)


def _calibration(rows: list[Line]) -> str:
    names = ("target", "audits", "drawn", "error", "90th percentile", "refused", "effective codes")
    return table(
        (*names, "effective training images", "slant", "thickness"),
        (
            (
                f"{row['target']:g}",
                *((row["n"], row["scheme"]) if row["n"] else ("none", "")),
                f"{row['error']:.3f}",
                *((f"{row['error_p90']:.3f}", f"{row['refused']:.0%}") if row["n"] else ("", "")),
                f"{row['effective_codes']:.1f}",
                f"{row['effective_images']:.0f}",
                f"{row['slant']:.1f}",
                f"{row['thickness']:.2f}",
            )
            for row in rows
        ),
    )


def _estimators(rows: list[Line], estimators: list[str]) -> str:
    shown = [row for row in rows if row.get("scheme") == "half by weights"]
    found = {(row["target"], row["n"], row["estimator"]): row for row in shown}
    settings = sorted({(row["target"], row["n"]) for row in shown})
    return table(
        ("target", "audits", *estimators),
        ((f"{target:g}", n, *(_error(found[target, n, name]) for name in estimators)) for target, n in settings),
    )


def _error(row: Line) -> str:
    return f"{row['error']:.3f}, {row['error_p90']:.3f}"


def drift_page(results: Path) -> str:
    """What faster configurations change, how often the gate errs, and what precisions change."""
    parts = ["# Drift\n"]
    if record := load("drift", results):
        parts += ["\n## What `ddm-rt compare` says of faster configurations\n\n", _drift(record)]
    if record := load("drift gate", results):
        parts += ["\n## How often the drift gate errs\n\n", _gate(record)]
    if record := load("precision", results):
        parts += ["\n## Precision\n\n", _precision(record)]
    return "".join(parts)


def _drift(record: Line) -> str:
    first, second = record["groups"]
    names = ("A to B", "labels changed", f"share of {first}, A to B", "difference [90 %]", "neither, A to B", "p")
    more = ("decision", f"Frechet: {first}, A to B", second, "grey levels", "times as fast")
    return table((*names, *more), (_drift_row(row, record["groups"]) for row in record["rows"])) + (
        f"\nn = {record['n']} pairs a row, seed {record['seed']}, margin ±.03 on shares of all images, bundle "
        f"{record['bundle_id'][:12]}. Frechet distances in the judge's features, equal n. Grey levels: mean difference "
        "of a pair. Speed: median of 5 interleaved requests for 16 images, one thread of a machine that also had other "
        "work. The row of the two backends is of a bundle trained for 600 steps, with weights.\n\n"
        f"{record['machine']}, {', '.join(f'{k} {v}' for k, v in record['versions'].items())}, commit "
        f"{record['commit']}; `{record['command']}`\n"
    )


def _drift_row(row: Line, groups: list[str]) -> list[str]:
    labels = row["labels"]
    changes = {change["group"]: change for change in labels["changes"]}
    first = changes[groups[0]]
    low, high = first["interval"]
    quality = {entry["group"]: entry["frechet"] for entry in row["quality"]}
    decision = Decision(labels["decision"]).name.lower()
    return [
        row["row"],
        f"{labels['flip_rate']:.1%}",
        _shares(first),
        f"{first['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
        _shares(changes["neither"]) if "neither" in changes else "0",
        f"{labels['test']['p']:.2g}",
        decision if labels["n_needed"] is None else f"{decision}, needs n = {labels['n_needed']}",
        *(f"{a:.1f} to {b:.1f}" for a, b in (quality[group] or (float("nan"),) * 2 for group in groups)),
        f"{row['images']['mean']:.2f}",
        f"{row['speed']['ratio']:.2f}",
    ]


def _shares(change: Line) -> str:
    return f"{change['share_a']:.3f} to {change['share_b']:.3f}"


def _gate(record: Line) -> str:
    rows = []
    for row in record["rows"]:
        rates, said = row["rates"], ""
        if row["error"] is not None:
            low, high = row["error_interval"]
            name = "false alarm" if row["drift"] == 0 else "miss"
            said = f"{name} {rates[row['error']]:.3f} [{low:.3f}, {high:.3f}]"
        shown = (f"{rates[name]:.3f}" for name in ("equivalent", "undecided", "drift"))
        rows.append((row["groups"], row["n"], f"{row['discordance']:.0%}", f"{row['drift']:.2f}", *shown, said))
    names = ("groups", "n", "discordance", "planted drift", "equivalent", "undecided", "drift", "error: rate [95 %]")
    return table(names, rows) + (
        f"\n{record['runs']} simulated comparisons a row, seed {record['seed']}; margin ±{record['margin']:g}, "
        f"{CONFIDENCE:.0%} intervals, tests at {record['alpha']:g}; `python benchmarks/drift_gate.py`\n"
    )


def _precision(record: Line) -> str:
    rows = []
    for row in record["rows"]:
        error, groups = row["image_error"], row["groups"]
        low, high = groups["intervals"]["3"]
        off = ("", "", "")
        if error:
            off = (
                f"{error['mean_grey_levels']:.3f} ({error['max_grey_levels']})",
                f"{error['psnr_db']:.1f} dB",
                f"{error['share_off_by_more_than_1']:.1%}",
            )
        rows.append(
            (
                row["precision"],
                *off,
                f"{groups['shares']['3']:.3f} [{low:.3f}, {high:.3f}]",
                f"{groups['neither']:.1%}",
                f"{row['groups_changed']} of {record['n']}",
                f"{1000 * row['seconds_per_image']:.1f}",
                f"{row['time_ratio']:.2f}",
                f"{row['graph_mib']:.2f}",
            )
        )
    names = ("precision", "grey levels off, mean (max)", "PSNR", "pixels off by > 1", "share of 3 [95 %]", "neither")
    return table((*names, "group changed", "ms per image", "times fp32", "MiB"), rows) + (
        f"\nn = {record['n']}, bundle {record['bundle_id'][:12]}, {record['machine']}, one thread, "
        f"ONNX Runtime {record['versions']['onnxruntime']}, commit {record['commit']}; `{record['command']}`\n"
    )
