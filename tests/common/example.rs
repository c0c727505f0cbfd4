//! Running the examples of this package.

use std::path::PathBuf;
use std::process::Command;

/// A command that runs the example called `name`, built in the profile of the running test.
pub fn command(name: &str) -> Command {
    // target/<profile>/deps/<test>
    let test = std::env::current_exe().expect("a test has a path");
    let profile_dir: PathBuf = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("tests are in target/<profile>/deps")
        .to_path_buf();
    let mut build = Command::new(env!("CARGO"));
    build
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--example", name]);
    match profile_dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => {}
        Some(profile) => {
            build.args(["--profile", profile]);
        }
    }
    // `cargo test --test x` builds no examples, and one that is there may be of older sources.
    let built = build.status().expect("cargo runs");
    assert!(built.success(), "the example {name} does not build");
    Command::new(profile_dir.join("examples").join(name))
}
