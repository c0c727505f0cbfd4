//! The program `tpo`: every command for the built-in heads.

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Has the allocator keep freed pages for ten seconds while training, not for one. A training step frees and
/// takes hundreds of megabytes; what is given back in between is zeroed anew by the system, an eighth of the
/// time of a large batch. The allocator reads its options before `main`, so the program is started again in its
/// place. Other commands give back what they do not need.
#[cfg(target_os = "linux")]
fn keep_freed_pages() {
    use std::os::unix::process::CommandExt;
    /// In milliseconds.
    const OPTION: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "10000");
    let trains = std::env::args_os().any(|arg| arg == "train" || arg == "pretrain");
    let mut args = std::env::args_os();
    let told = std::env::var_os(OPTION.0);
    if let (true, None, Ok(program), Some(name)) =
        (trains, told, std::env::current_exe(), args.next())
    {
        let mut again = std::process::Command::new(program);
        // Returns only where it fails, and then everything is as before.
        let _ = again.arg0(name).args(args).env(OPTION.0, OPTION.1).exec();
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    keep_freed_pages();
    // Ends quietly when `| head` has seen enough.
    sigpipe::reset();
    tpo::cli::main::<tpo::BuiltInHeads>()
}
