"""The crowd: one asyncio task and one connection a rater, in a process (and an environment) of its own.

    python -m bench.load.driver plan.json out.json

Every rater signs in; then all begin within one mean think time of each other, and each repeats: next item (timed),
think, submit (timed). Nobody thinks less because the server was slow, and what is still unanswered at the end is
written down with the time that it had already taken, so that a queue shows in the figures. Needs aiohttp.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from bench.load.plan import Plan, rater_rng, think_time
from bench.load.systems import Refused
from bench.turns import memory_mib

LOGINS_AT_ONCE = 8  # signing in is not what is measured, and password hashes are slow on purpose
GRACE_SECONDS = 20.0  # for requests that are under way when the time is over
TICK_SECONDS = 0.05  # how often the crowd looks whether it keeps up itself


class Crowd:
    """What happened, and until when it goes on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.events: list[tuple[int, str, float, float, str]] = []
        self.acknowledged: list[tuple[int, str]] = []
        self.errors: dict[str, int] = {}
        self.lags: list[float] = []
        self.begins = self.ends = 0.0

    async def timed(self, number: int, kind: str, action: Any) -> Any:
        """Do it and write down how long it took and how it ended; None where it failed."""
        started = time.perf_counter()
        how, answer = "cut", None
        try:
            answer = await asyncio.wait_for(action, self.plan.timeout_seconds)
            how = "ok" if answer is not None else "empty"
        except TimeoutError:
            how = "timeout"
        except (Refused, aiohttp.ClientError, OSError) as error:
            how = "error"
            text = f"{kind}: {type(error).__name__}: {error}"[:200]
            self.errors[text] = self.errors.get(text, 0) + 1
        finally:  # a cancelled request too
            took = time.perf_counter() - started
            self.events.append((number, kind, round(started - self.begins, 4), round(took, 5), how))
        return answer

    async def work(self, number: int, rater: Any) -> None:
        """One rater, from the first item until the time is over."""
        rng = rater_rng(self.plan, number)
        await asyncio.sleep(self.begins - time.perf_counter() + rng.uniform(0, self.plan.think_seconds))
        while time.perf_counter() < self.ends:
            item = await self.timed(number, "next", rater.next_item())
            thinks, choice = think_time(rng, self.plan.think_seconds), rng.randrange(2)
            left = self.ends - time.perf_counter()
            await asyncio.sleep(min(thinks, max(left, 0.0)))
            if thinks >= left:
                return
            if item is None:
                continue
            if await self.timed(number, "submit", rater.submit(item, choice)) is not None:
                self.acknowledged.append((number, item))

    async def watch_itself(self) -> None:
        """How late this process wakes up: a crowd that is late itself measures itself."""
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.lags.append(time.perf_counter() - started - TICK_SECONDS)


async def run(plan: Plan) -> dict[str, Any]:
    """Sign everybody in, let them work, and say what happened."""
    system = importlib.import_module(f"bench.load.{plan.system}")
    crowd = Crowd(plan)
    sessions = [_session() for _ in range(plan.raters)]
    try:
        raters = [system.Rater(session, plan, number) for number, session in enumerate(sessions)]
        started = time.perf_counter()
        await _sign_in(raters)
        signing_in = time.perf_counter() - started
        gc.collect()
        gc.freeze()
        cpu = time.process_time()
        crowd.begins = time.perf_counter() + 0.5
        crowd.ends = crowd.begins + plan.warm_seconds + plan.seconds
        print(json.dumps({"at_work": True}), flush=True)
        watcher = asyncio.create_task(crowd.watch_itself())
        tasks = [asyncio.create_task(crowd.work(number, rater)) for number, rater in enumerate(raters)]
        await asyncio.sleep(crowd.ends - time.perf_counter())
        # who thinks at the end goes home; who waits for the server waits a little longer
        _, late = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for task in (*late, watcher):
            task.cancel()
        outcomes = await asyncio.gather(*tasks, watcher, return_exceptions=True)
        broken = [o for o in outcomes if isinstance(o, Exception)]
        if broken:
            raise broken[0]
        return {
            "events": crowd.events,
            "acknowledged": crowd.acknowledged,
            "errors": crowd.errors,
            "lags": sorted(crowd.lags),
            "signing_in_seconds": signing_in,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": memory_mib("VmHWM"),
        }
    finally:
        for session in sessions:
            with suppress(Exception):
                await session.close()


def _session() -> aiohttp.ClientSession:
    """A browser of her own: cookies, and connections that stay open."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=2, keepalive_timeout=120),
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # the server has an address and no name
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) karat-bench", "Accept-Language": "en"},
    )


async def _sign_in(raters: list[Any]) -> None:
    gate = asyncio.Semaphore(LOGINS_AT_ONCE)

    async def one(rater: Any) -> None:
        async with gate:
            await rater.login()

    await asyncio.gather(*(one(rater) for rater in raters))


def main() -> None:
    """Read the plan, run it, write what happened."""
    plan_path, out_path = (Path(name) for name in sys.argv[1:])
    out_path.write_text(json.dumps(asyncio.run(run(Plan.read(plan_path)))), encoding="utf-8")


if __name__ == "__main__":
    main()
