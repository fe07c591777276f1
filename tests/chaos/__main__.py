"""`python -m chaos --seconds 600`: everything is killed and cut, nothing may get lost. Exit code 1 if anything is."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from chaos.run import make_world, run


def _say(what: str) -> None:
    print(what, flush=True)  # noqa: T201 - a command line


async def _main(seconds: float, seed: int, *, keep: bool) -> int:
    world = make_world()
    _say(f"seed {seed}")
    clean = False
    try:
        report = await run(world, seconds=seconds, seed=seed, tell=_say)
        _say(f"\n{report.text()}")
        clean = report.is_clean
        return 0 if clean else 1
    finally:
        await world.destroy()
        if clean and not keep:
            world.forget()
        else:
            _say(f"logs and journal are kept in {world.folder}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for so long faults are made")
    parser.add_argument("--seed", type=int, help="of an earlier run, to make the same faults again")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and journal")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    sys.exit(asyncio.run(_main(options.seconds, seed, keep=options.keep)))


if __name__ == "__main__":
    main()
