// p-queue on the benchmarks' load. By hand, where it is installed:
// `yes 10000 | head -5 | node run-p-queue.mjs`.

import PQueue from "p-queue";
import { rounds } from "./rounds.mjs";

const queue = new PQueue({ concurrency: 100 });

await rounds("p-queue", async (job, jobs) => {
  for (let spawned = 0; spawned < jobs; spawned += 1) {
    queue.add(job);
  }
  await queue.onIdle();
});
