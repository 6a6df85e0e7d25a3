// fastq on the benchmarks' load. By hand, where it is installed:
// `yes 10000 | head -5 | node run-fastq.mjs`.

import fastq from "fastq";
import { rounds } from "./rounds.mjs";

// Its worker is the same for all that is pushed: here what is pushed is the job.
const queue = fastq.promise((job) => job(), 100);

await rounds("fastq", async (job, jobs) => {
  for (let spawned = 0; spawned < jobs; spawned += 1) {
    queue.push(job);
  }
  await queue.drained();
});
