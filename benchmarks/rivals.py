"""Every rival on one bench: the same trained vanilla models, n, judge, seeds, sampler and steps as our own rows.

    python benchmarks/rivals.py --faces FACES.npz   # everything that is missing, one row after the other; resumable

The sets are those of `balance.py`, `latent_digits.py` and `faces.py`, and so are the vanilla models: they are trained
as there, where they aren't there. One set is new: the latent digits with half of the training prompts naming the digit,
since what acts on words has nothing to act on elsewhere. `rivals/table.py` has the rows, each with its source, what was
read of it, and how ours differs. A strength for which the published number makes no sense at this size is chosen on
another pair, 7v8 at 4:1, by the Frechet distance to balanced images, and used for all sets.
"""

import argparse
from pathlib import Path
from typing import Any

import render
from measured_steps import commit
from rivals import measuring, probe, subjects
from rivals.making import make
from rivals.table import RIVALS, Rival, about, refusal
from store import RESULTS, put, read

TRIED = 200  # images of each strength
PROBE = "EEGDM's probe"
KINDS = tuple(dict.fromkeys(rival.kind for rival in RIVALS))


def choose(subject: subjects.Subject, rival: Rival, before: dict[str, Any]) -> dict[str, Any]:
    """The strength with the least Frechet distance to balanced images, and all that were tried, now and before."""
    tried = list(before.get("tried", ()))
    for strength in untried(rival, before):
        output = make(rival, subject, strength).output
        images = measuring.generate(subject, output, rival.batch, TRIED, TRIED)
        line = subject.measure(images, len(images))
        found = {"strength": strength, "fd_ddm": line["raw"]["scores"]["fd_ddm"], "neither": line["neither"]["share"]}
        tried.append(found | {"frechet": line["quality"]["frechet"]})
        print(f"{subject.name} {rival.name}: {tried[-1]}", flush=True)
    best = min(tried, key=lambda one: one["frechet"])
    tried.sort(key=lambda one: one["strength"])
    return {"n": TRIED, "tried": tried, "chosen": best["strength"]}


def untried(rival: Rival, line: dict[str, Any]) -> list[float]:
    """Strengths of the grid that a line of choices hasn't got."""
    return [strength for strength in rival.grid if strength not in [one["strength"] for one in line.get("tried", ())]]


def row(subject: subjects.Subject, rival: Rival, strength: float | None, work: Path) -> dict[str, Any]:
    """One rival on one set."""
    made = make(rival, subject, strength)
    name = f"{subject.name} {rival.name}".replace(" ", "_").replace(":", "").replace(",", "")
    images, calls = measuring.kept(work / f"{name}.npz", subject, made.output, rival.batch)
    return {
        "strength": strength,
        "evaluation": subject.measure(images, min(measuring.N, len(images))),
        "minority": subject.minority,
        "calls": calls,
        "time": measuring.spent(subject, made.output),
        "learned": made.learned,
        "machine": measuring.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/rivals"), help="images (not committed)")
    parser.add_argument("--balance", type=Path, default=Path("runs/balance"), help="--work of balance.py")
    parser.add_argument("--latent", type=Path, default=Path("runs/latent_digits"), help="--work of latent_digits.py")
    parser.add_argument("--faces-work", type=Path, default=Path("runs/faces"), help="--work of faces.py")
    parser.add_argument("--faces", type=Path, help="the .npz file of faces; without it, sets of faces are left out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of rivals.jsonl and rivals.md")
    parser.add_argument("--sets", nargs="+", choices=subjects.SETS, default=subjects.SETS, help="these alone")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="rows that act on these alone")
    parser.add_argument("--train-only", action="store_true", help="train the models that are missing, measure later")
    arguments = parser.parse_args()
    path = arguments.results / "rivals.jsonl"
    places = subjects.Places(arguments.balance, arguments.latent, arguments.faces_work, arguments.faces)
    wanted = [name for name in arguments.sets if arguments.faces or name not in subjects.FACES]

    def there() -> dict[tuple[str, str], dict[str, Any]]:
        return {(line["set"], line["rival"]): line for line in read(path)}

    def keep(name: str, rival: str, line: dict[str, Any]) -> None:
        put(path, [{"set": name, "rival": rival, **line, "commit": commit()}], "set", "rival")
        print(f"{name} {rival}: done", flush=True)

    for name in (subjects.CHOICE, *wanted):
        lines, choosing = there(), name == subjects.CHOICE
        rows = [rival for rival in RIVALS if rival.kind in arguments.kinds]
        if choosing:
            missing = [rival for rival in rows if untried(rival, lines.get((name, rival.name), {}))]
        else:
            missing = [rival for rival in rows if (name, rival.name) not in lines]
            refused = {
                rival: refusal(rival.kind, name in subjects.PROMPTED, name == subjects.NAMED) for rival in missing
            }
            for rival, reason in refused.items():
                if reason is not None:
                    keep(name, rival.name, about(rival) | {"refused": reason})
            missing = [rival for rival in missing if refused[rival] is None]
        probed = choosing or (name, PROBE) in lines or "plain" not in arguments.kinds
        if not missing and probed and not arguments.train_only:
            continue
        subject = subjects.load(name, places)
        for rival in () if arguments.train_only else missing:
            if choosing:
                keep(name, rival.name, choose(subject, rival, lines.get((name, rival.name), {})))
                continue
            strength = there()[subjects.CHOICE, rival.name]["chosen"] if rival.grid else None
            keep(name, rival.name, about(rival) | row(subject, rival, strength, arguments.work))
        if not probed and not arguments.train_only:
            keep(name, PROBE, probe.ABOUT | {"accuracy": probe.measure(subject)})
    if not arguments.train_only:
        print(render.render("rivals", arguments.results))


if __name__ == "__main__":
    main()
