"""aiojobs on the benchmarks' load.

For each line on standard input one round of that many no-op jobs, spawned by one producer behind
limit 100 and waited for until all have ended; its nanoseconds per job are one line on standard
output. The first line there tells what runs. By hand: `yes 10000 | head -5 | python run_aiojobs.py`.
"""

import asyncio
import platform
import sys
import time
from importlib.metadata import version

from aiojobs import Scheduler

done = 0


async def noop():
    pass


async def counted():
    global done
    done += 1


async def new_scheduler():
    # 0 is without a bound.
    return Scheduler(limit=100, pending_limit=0)


async def run(scheduler, job, jobs):
    for _ in range(jobs):
        await scheduler.spawn(job())
    # Not `wait_and_close`: it wraps each job in futures of its own, and that would be timed too.
    while len(scheduler):
        await asyncio.sleep(0)


async def timed(scheduler, jobs):
    begin = time.perf_counter_ns()
    await run(scheduler, noop, jobs)
    return (time.perf_counter_ns() - begin) / jobs


with asyncio.Runner() as runner:
    scheduler = runner.run(new_scheduler())
    runner.run(run(scheduler, counted, 1000))
    if done != 1000:
        sys.exit(f"aiojobs ran {done} of 1000 jobs")
    print(f"aiojobs {version('aiojobs')}, Python {platform.python_version()}", flush=True)
    for line in sys.stdin:
        print(runner.run(timed(scheduler, int(line))), flush=True)
    runner.run(scheduler.close())
