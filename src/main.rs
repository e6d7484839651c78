//! The `thalweg` command.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Huge pages and one arena a core: first touches of memory are what a scan or a sort pays most for, and freed memory is
/// found again by the next thread. Dirty pages go back after a second.
#[cfg(target_os = "linux")]
#[allow(non_upper_case_globals, reason = "jemalloc looks for this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static malloc_conf: &[u8] = b"thp:always,percpu_arena:percpu,dirty_decay_ms:1000\0";

fn main() -> ExitCode {
    cli::main()
}
