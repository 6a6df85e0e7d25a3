// What the scripts for Node share.

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

let done = 0;

async function noop() {}

async function counted() {
  done += 1;
}

// For each line on standard input one round of that many no-op jobs; its nanoseconds per job are
// one line on standard output. The first line there tells what runs.
//
// `run` takes a job and how many of them: one producer spawns them all behind limit 100, and waits
// until all have ended.
export async function rounds(name, run) {
  await run(counted, 1000);
  if (done !== 1000) {
    throw new Error(`${name} ran ${done} of 1000 jobs`);
  }
  const manifest = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  const { version } = JSON.parse(await readFile(manifest, "utf8"));
  console.log(`${name} ${version}, Node ${process.versions.node}`);
  for await (const line of createInterface({ input: process.stdin })) {
    const jobs = Number(line);
    const begin = process.hrtime.bigint();
    await run(noop, jobs);
    console.log(Number(process.hrtime.bigint() - begin) / jobs);
  }
}
