//! Nodes as network namespaces: they reach each other, and nothing of them is left.

use berth_testkit::{Fabric, Private, free_port};

#[test]
fn two_nodes_reach_each_other_and_the_test() {
    let private = Private::enter();
    let fabric = Fabric::create(&private, 2);
    let [one, two] = fabric.nodes() else { panic!("two nodes") };
    let listener = format!("TCP-LISTEN:8080,bind={}", Fabric::address_of(2));
    let mut server =
        two.command("socat").args([&listener, "EXEC:'echo hello'"]).spawn().expect("serve");
    let answer = berth_testkit::wait_until(std::time::Duration::from_secs(10), "an answer", || {
        let peer = format!("TCP:{}:8080", Fabric::address_of(2));
        let output = one.command("socat").args(["-u", &peer, "-"]).output().ok()?;
        Some(output.stdout).filter(|text| !text.is_empty())
    });
    assert_eq!(answer, b"hello\n");
    server.wait().expect("the server ends after one connection");
    assert!(private.hint().starts_with("nsenter"));
    assert_ne!(free_port(), 0);
}
