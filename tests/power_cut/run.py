"""Power cuts, many of them: ``python3 -m tests.power_cut.run --images 2000``.

Records the journal and the outbox at work, builds crash images from the recording, opens each and
compares it with what had been acknowledged. A control without syncs must be caught losing.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from d8mesh.errors import D8Error
from tests.power_cut.images import Disk
from tests.power_cut.subjects import SUBJECTS, Recording, State


@dataclass(slots=True)
class Report:
    """What became of the images of one recording."""

    images: int = 0
    acknowledged: int = 0
    #: images that hold a commit which had not been acknowledged yet
    ahead: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def cut_power(
    subject: str, *, images: int, seed: int, synchronous: str = "FULL", commits: int = 300
) -> Report:
    """Record one workload and judge `images` images of it."""
    record, read = SUBJECTS[subject]
    dice = random.Random(seed)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="d8-power-", dir=_fast_folder()) as name:
        folder = Path(name)
        recording = record(folder / "live", seed=seed, commits=commits, synchronous=synchronous)
        # Also cuts while the file is made, before anything could be acknowledged.
        cuts = sorted(dice.randint(0, len(recording.entries)) for _ in range(images))
        disk, done = Disk(), 0
        for cut in cuts:
            while done < cut:
                disk.advance(recording.entries[done])
                done += 1
            image = folder / "image"
            image.mkdir()
            disk.lose_power(image, dice)
            _judge(report, recording, cut, image, read)
            shutil.rmtree(image)
    report.acknowledged = len(recording.states[-1])
    return report


def _fast_folder() -> str | None:
    """Return a folder in memory if there is one: the power cut is in the recording."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _judge(report: Report, recording: Recording, cut: int, image: Path, read: object) -> None:
    assert callable(read)
    report.images += 1
    allowed = recording.allowed(cut)
    try:
        state: State = read(image)
    except (D8Error, AssertionError) as error:
        fault = "cannot be opened" if isinstance(error, D8Error) else "inconsistent"
        detail = str(error)
    else:
        if state in allowed:
            report.ahead += state != allowed[0]
            return
        missing = sum(1 for key, value in allowed[0].items() if state.get(key) != value)
        fault = "acknowledged but missing" if missing else "invented"
        detail = f"{missing} of {len(allowed[0])} differ, {len(state)} there"
    report.faults[fault] += 1
    if len(report.examples) < 5:
        report.examples.append(f"cut {cut} of {len(recording.entries)}: {fault}: {detail}")


def main(arguments: list[str]) -> int:
    """Print a line for each subject and its control; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.power_cut.run", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="of each subject (2000)")
    parser.add_argument("--subject", choices=[*SUBJECTS], help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recordings", type=int, default=10, help="the images come from (10)")
    options = parser.parse_args(arguments)
    is_good = True
    for subject in [options.subject] if options.subject else SUBJECTS:
        for synchronous in ("FULL", "NORMAL", "OFF"):
            total = Report()
            each = max(1, options.images // options.recordings)
            for number in range(options.recordings if synchronous == "FULL" else 1):
                part = cut_power(
                    subject, images=each, seed=options.seed + number, synchronous=synchronous
                )
                total.images += part.images
                total.ahead += part.ahead
                total.faults += part.faults
                total.examples += part.examples
            bad = sum(total.faults.values())
            what = (
                "" if synchronous == "FULL" else f" (control, synchronous={synchronous}: must lose)"
            )
            print(f"{subject}{what}: {total.images} images, {bad} bad {dict(total.faults)},")
            print(f"    {total.ahead} held a commit whose acknowledgement was still on its way")
            for example in total.examples[:5] if synchronous == "FULL" else ():
                print(f"    {example}")
            is_good &= (bad == 0) == (synchronous == "FULL")
            sys.stdout.flush()
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
