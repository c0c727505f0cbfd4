//! The program `tpo`: every command for the built-in heads.

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Leaves freed pages to the system while training, which takes them when it is short of memory; the
/// allocator would give them back once a second. A training step frees and takes hundreds of megabytes, and
/// fetching its pages anew takes a seventh of the time of a large batch. The allocator reads its options before
/// `main`, so the program is started again in its place. Other commands give back what they do not need.
#[cfg(target_os = "linux")]
fn leave_freed_pages() {
    use std::os::unix::process::CommandExt;
    const OPTION: &str = "MIMALLOC_PURGE_DECOMMITS";
    let mut args = std::env::args_os();
    let trains = args.any(|arg| arg == "train" || arg == "pretrain");
    let mut args = std::env::args_os();
    if let (true, None, Ok(program), Some(name)) = (
        trains,
        std::env::var_os(OPTION),
        std::env::current_exe(),
        args.next(),
    ) {
        let mut again = std::process::Command::new(program);
        // Returns only where it fails, and then everything is as before.
        let _ = again.arg0(name).args(args).env(OPTION, "0").exec();
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    leave_freed_pages();
    // Ends quietly when `| head` has seen enough.
    sigpipe::reset();
    tpo::cli::main::<tpo::BuiltInHeads>()
}
