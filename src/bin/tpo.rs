//! The program `tpo`: every command for the built-in heads.

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Ends quietly when `| head` has seen enough.
    sigpipe::reset();
    tpo::cli::main::<tpo::BuiltInHeads>()
}
