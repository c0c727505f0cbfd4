//! The program `tpo`: every command for the built-in heads.

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sets options of the allocator, which reads them before `main`: the program is started again in its place.
///
/// No huge pages: the system fills the whole page in which a tensor ends, a tenth of a model more. While
/// training, freed pages are kept for ten seconds, not for one: a step frees and takes hundreds of megabytes, and
/// what is given back in between is zeroed anew, an eighth of the time of a large batch. Other commands keep them
/// for a fifth of a second, which takes a tenth less memory and a fiftieth more time.
#[cfg(target_os = "linux")]
fn set_allocator() {
    use std::os::unix::process::CommandExt;
    let trains = std::env::args_os().any(|arg| arg == "train" || arg == "pretrain");
    let options = [
        ("MIMALLOC_ALLOW_THP", "0"),
        // In milliseconds.
        ("MIMALLOC_PURGE_DELAY", if trains { "10000" } else { "200" }),
    ];
    let missing = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    let options: Vec<_> = options.into_iter().filter(missing).collect();
    let mut args = std::env::args_os();
    if let (false, Ok(program), Some(name)) =
        (options.is_empty(), std::env::current_exe(), args.next())
    {
        let mut again = std::process::Command::new(program);
        // Returns only where it fails, and then everything is as before.
        let _ = again.arg0(name).args(args).envs(options).exec();
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    set_allocator();
    // Ends quietly when `| head` has seen enough.
    sigpipe::reset();
    tpo::cli::main::<tpo::BuiltInHeads>()
}
