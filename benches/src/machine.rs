//! The machine that the figures come from.

use std::{fs, path::Path, process::Command, thread};

/// The machine, and what the benchmarks were built with, in one line.
pub(crate) fn line(workspace: &Path) -> String {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read(Path::new("/proc/cpuinfo"));
    let cpu = value(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let release = read(Path::new("/proc/sys/kernel/osrelease"));
    let lock = read(&workspace.join("Cargo.lock"));
    let tokio = locked(&lock, "tokio").unwrap_or("(of unknown version)");
    // Without what its builder adds to the version.
    let release = release.trim().split('-').next().unwrap_or_default();
    let system = [std::env::consts::OS, release].join(" ");
    format!("{cpu}, {cores} cores, {}, {}, tokio {tokio}", system.trim(), rustc())
}

/// For how long the threads of this process have run so far, and for how long they have waited for
/// a processor, in nanoseconds, as Linux tells it. Exact while they sleep.
pub fn ran_and_waited() -> Option<(f64, f64)> {
    let (mut ran, mut waited) = (0.0, 0.0);
    for thread in fs::read_dir("/proc/self/task").ok()? {
        let told = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        let mut figures = told.split_whitespace().map(|figure| figure.parse::<f64>().ok());
        ran += figures.next()??;
        waited += figures.next()??;
    }
    Some((ran, waited))
}

/// The compiler of this run: cargo and rustup leave to us the environment they had.
fn rustc() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let told = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    // Without hash and date.
    let version = told.ok().map(|told| told.split(' ').take(2).collect::<Vec<_>>().join(" "));
    version.unwrap_or_else(|| "an unknown rustc".to_owned())
}

/// The first value of a key in `/proc/cpuinfo`.
fn value<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

/// The version of a package in `Cargo.lock`.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, entry) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    entry.split_once('"').map(|(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_by_its_name() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Fast One\nmodel name\t: Other\n";
        assert_eq!(value(cpuinfo, "model name"), Some("Fast One"));
        assert_eq!(value("", "model name"), None);
    }

    #[test]
    fn the_version_of_the_very_package() {
        let lock =
            "name = \"tokio-util\"\nversion = \"0.7.1\"\n\nname = \"tokio\"\nversion = \"1.5.0\"\n";
        assert_eq!(locked(lock, "tokio"), Some("1.5.0"));
        assert_eq!(locked(lock, "hyper"), None);
    }
}
