//! One load by itself, for a profiler: `hot backlog 20000`, or `hot below 20000`, or `hot unlimited
//! 20000`, each with `awaited` after it if handles are kept. Subtract two runs of different length,
//! and what is left is the cost of the jobs.

use tower_jobs_benches::{Awaited, Detached, Entrant, Flavour, Load, names, noop, scheduler};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [load, jobs, rest @ ..] = &arguments[..] else {
        panic!("which load, and how many jobs?");
    };
    let jobs: usize = jobs.parse().expect("a number of jobs");
    let (limit, load) = match &load[..] {
        "backlog" => (Some(100), Load { producers: 1, waves: jobs / 10_000, jobs: 10_000 }),
        "below" => (Some(100), Load { producers: 1, waves: jobs / 50, jobs: 50 }),
        "unlimited" => (None, Load::backlog(jobs)),
        _ => panic!("which load?"),
    };
    let entrant = if rest.is_empty() {
        Entrant::new(names::DETACHED, Detached(scheduler(limit), noop))
    } else {
        Entrant::new(names::AWAITED, Awaited(scheduler(limit), noop))
    };
    entrant.time(&Flavour::CurrentThread.runtime(), load);
}
