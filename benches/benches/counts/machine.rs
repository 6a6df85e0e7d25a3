//! What a run executes: valgrind counts how often each instruction does, objdump says which are
//! atomic.
//!
//! On a current-thread runtime, where every run is the same. What a run costs besides its jobs
//! falls out of the difference between a long one and a short one.
//!
//! Counted is all that runs in user space, the allocator of libc too (which takes no locks while
//! there is one thread, and whose fast bins are off), but nothing of the kernel.
//!
//! The clock is one of our own (`clock.c`), so that no count depends on how long a run takes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
};

/// The allocator does not treat every wave of a backlog alike.
const SHORT: usize = 10_000;
const LONG: usize = 40_000;

/// How much of each, per job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) instructions: f64,
    /// With a `lock` prefix, or `xchg` with memory, which has it by nature, or a full fence, which
    /// is what becomes of an atomic operation that changes nothing.
    pub(crate) atomics: f64,
}

/// Whether the instruction at this address is atomic.
type Code = HashMap<u64, bool>;

/// The tools, and the code that they have seen.
pub(crate) struct Machine {
    clock: PathBuf,
    /// By the path of its file.
    code: HashMap<String, Code>,
}

impl Machine {
    /// Says what is missing if nothing can be counted here.
    pub(crate) fn new() -> Result<Self, String> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("only x86-64 code on Linux is understood".into());
        }
        let tools = [("valgrind", "valgrind"), ("objdump", "binutils"), ("cc", "gcc")];
        for (tool, package) in tools {
            if Command::new(tool).arg("--version").output().is_err() {
                return Err(format!("there is no {tool} here: apt-get install {package}"));
            }
        }
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts/clock.c");
        let clock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clock.so");
        output(Command::new("cc").args(["-O2", "-shared", "-fPIC", source, "-o"]).arg(&clock));
        Ok(Self { clock, code: HashMap::new() })
    }

    /// Puts a contender through a load.
    pub(crate) fn per_job(&mut self, load: &str, contender: &str) -> Counts {
        let [short, long] = [SHORT, LONG].map(|jobs| self.count(load, contender, jobs));
        let each = |difference: f64| difference / (LONG - SHORT) as f64;
        Counts {
            instructions: each(long.instructions - short.instructions),
            atomics: each(long.atomics - short.atomics),
        }
    }

    fn count(&mut self, load: &str, contender: &str, jobs: usize) -> Counts {
        let this = std::env::current_exe().expect("our own path");
        let profile = output(
            Command::new("valgrind")
                .args(["--tool=callgrind", "--dump-instr=yes", "--dump-line=no"])
                .args(["--compress-strings=no", "--compress-pos=no"])
                .arg("--callgrind-out-file=/dev/stdout")
                .arg(this)
                // When glibc empties its fast bins hangs on trifles, and is a quarter of a backlog's
                // count. Without them a job takes up to a fifth more.
                .env("GLIBC_TUNABLES", "glibc.malloc.mxfast=0")
                .env("LD_PRELOAD", &self.clock)
                .args(["--run", load, contender, &jobs.to_string()]),
        );
        self.add_up(&profile)
    }

    /// Reads callgrind's own format: `ob=` names the file that the next lines are about, such a
    /// line is an address in it and how often that was executed, except after `calls=`.
    fn add_up(&mut self, profile: &str) -> Counts {
        let mut code = None;
        let mut is_call = false;
        let (mut instructions, mut atomics, mut total) = (0, 0, None);
        for line in profile.lines() {
            if let Some(file) = line.strip_prefix("ob=") {
                code = self.disassemble(file);
            } else if line.starts_with("calls=") {
                is_call = true;
            } else if let Some(line) = line.strip_prefix("0x") {
                if std::mem::take(&mut is_call) {
                    continue;
                }
                let (address, count) = line.split_once(' ').expect("an address and a count");
                let count: u64 = count.parse().expect("a count");
                instructions += count;
                let Some(code) = code else { continue };
                let address = u64::from_str_radix(address, 16).expect("an address");
                if *code.get(&address).expect("valgrind and objdump agree where code is") {
                    atomics += count;
                }
            } else if let Some(count) = line.strip_prefix("totals:") {
                total = Some(count.trim().parse().expect("a count"));
            }
        }
        assert_eq!(Some(instructions), total, "all that was executed, and nothing twice");
        Counts { instructions: instructions as f64, atomics: atomics as f64 }
    }

    /// What a file has for code, by the addresses in the file, which are the same wherever it is
    /// loaded. A few instructions of valgrind's own are in none.
    fn disassemble(&mut self, file: &str) -> Option<&Code> {
        if !Path::new(file).is_file() {
            return None;
        }
        if !self.code.contains_key(file) {
            let listing =
                output(Command::new("objdump").args(["--disassemble", "--no-show-raw-insn", file]));
            let code = listing.lines().filter_map(instruction).collect();
            self.code.insert(file.to_owned(), code);
        }
        self.code.get(file)
    }
}

/// Where an instruction is, and whether it is atomic.
fn instruction(line: &str) -> Option<(u64, bool)> {
    let (address, instruction) = line.split_once(":\t")?;
    let address = u64::from_str_radix(address.trim(), 16).ok()?;
    let (name, operands) = instruction.split_once(' ').unwrap_or((instruction, ""));
    let is_atomic = match name {
        "lock" | "mfence" => true,
        name => name.starts_with("xchg") && operands.contains('('),
    };
    Some((address, is_atomic))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
