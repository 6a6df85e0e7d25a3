// Adds a job that the Rust application runs: node enqueue.mjs ada@example.org
import { quickAddJob } from "graphile-worker";

const [to] = process.argv.slice(2);
// The identifier is the job's KIND. Its attempts and crashes are those of the Rust side; maxAttempts bounds both.
const job = await quickAddJob(
  { connectionString: process.env.DATABASE_URL },
  "send_email",
  { to },
  { maxAttempts: 45 },
);
console.log(`job ${job.id}`);
