-- Adds a job that the Rust application runs: psql "$DATABASE_URL" -v to=ada@example.org -f enqueue.sql
-- The identifier is the job's KIND. Its attempts and crashes are those of the Rust side; max_attempts bounds both.
SELECT id FROM graphile_worker.add_job(
    'send_email',
    json_build_object('to', :'to'),
    max_attempts => 45
);
