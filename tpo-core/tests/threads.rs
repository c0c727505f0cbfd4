//! The pool of threads: entered once, of the size that was asked for, and nobody waits for ever.

use std::num::NonZeroUsize;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rayon::prelude::*;
use tpo_core::CoreError;
use tpo_core::threads::{beside, in_pool, set_threads};

/// One test: the size of a process's pool is set once.
#[test]
fn the_pool_is_entered_once_and_never_waits_for_itself() {
    assert_eq!(rayon::current_thread_index(), None);
    set_threads(NonZeroUsize::MIN).unwrap();
    set_threads(NonZeroUsize::MIN).unwrap();
    let other = set_threads(NonZeroUsize::new(7).unwrap()).unwrap_err();
    let (wanted, found) = (7, 1);
    assert!(
        matches!(other, CoreError::Threads { wanted: w, found: f } if (w, f) == (wanted, found))
    );

    // Inside, work is in the pool; nested, it stays on its thread.
    let thread = || std::thread::current().id();
    let [outer, inner] = in_pool(|| {
        assert_eq!(rayon::current_num_threads(), 1);
        [thread(), in_pool(thread)]
    });
    assert_eq!(outer, inner);
    assert_ne!(outer, thread());

    // A pool of the caller's own is not left.
    let own = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    let size = own.install(|| in_pool(rayon::current_num_threads));
    assert_eq!(size, 3);

    // A panic inside reaches the caller, and the pool goes on.
    let panic = std::panic::catch_unwind(|| in_pool(|| -> u32 { panic!("of the work") }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"of the work"));
    assert_eq!(in_pool(|| (0..100u32).into_par_iter().sum::<u32>()), 4950);

    // The only thread of the pool waits for a thread that computes in parallel itself.
    let (send, receive) = sync_channel(0);
    let maker = std::thread::spawn(move || {
        for i in 0..4u32 {
            let sum = beside(|| (0..=i).into_par_iter().sum::<u32>());
            send.send(sum).unwrap();
        }
    });
    let minute = Duration::from_secs(60);
    let made = in_pool(move || [(); 4].map(|()| receive.recv_timeout(minute).unwrap()));
    assert_eq!(made, [0, 1, 3, 6]);
    maker.join().unwrap();
    // In a pool it is just called.
    assert_eq!(own.install(|| beside(rayon::current_num_threads)), 3);
}
