//! What a pod costs the agent while nothing happens to it.

use std::future::Future;
use std::mem::size_of;

use super::super::Worker;
use super::super::memory::Container;

fn future_bytes<T, F: Future>(_: impl FnOnce(T) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_worker_is_small_where_it_waits() {
    let bytes = future_bytes(Worker::run);
    assert!(bytes <= 8 << 10, "a worker takes {bytes} bytes: box what is rarely in use");
    // Eleven places for it in a map's node would be 10 KB a pod.
    let boxed = size_of::<(String, Box<Container>)>();
    assert!(boxed < size_of::<Container>() / 10, "{boxed}");
}
