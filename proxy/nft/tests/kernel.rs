//! Transactions against a real kernel, each in a network namespace of its own, checked through
//! the `nft` program: what this crate writes, it must be able to print and to load again.
//!
//! Needs root. Every test runs on a thread of its own, since a namespace belongs to a thread.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use berth_nft::*;

/// Runs `test` on a thread that lives in a new network namespace.
fn in_new_namespace(test: impl FnOnce() + Send + 'static) {
    let result = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
        test();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `nft` in the calling thread's namespace.
fn nft(args: &[&str], input: Option<&str>) -> Output {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, input.unwrap_or_default().as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn list() -> String {
    let output = nft(&["list", "ruleset"], None);
    assert!(output.status.success(), "nft list: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn load(ruleset: &str) {
    let output = nft(&["-f", "-"], Some(&format!("flush ruleset\n{ruleset}")));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft -f: {stderr}\n{ruleset}");
}

/// Prints the ruleset, loads the print, and expects that the print of that loads as itself.
/// The first print may differ: `nft` moves matches it can infer.
fn assert_reloads() -> String {
    let printed = list();
    load(&printed);
    let again = list();
    assert_eq!(again.lines().count(), printed.lines().count());
    load(&again);
    assert_eq!(list(), again);
    printed
}

fn ip(text: &str) -> Field {
    Field::from(text.parse::<IpAddr>().unwrap())
}

/// One table of a family with every match, statement and kind of set this crate has.
fn everything(family: Family) -> Batch {
    let v6 = family == Family::Ip6;
    let address = if v6 { DataType::Ipv6 } else { DataType::Ipv4 };
    let host = |last: u8| {
        if v6 {
            Field::Ipv6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)))
        } else {
            Field::Ipv4(Ipv4Addr::new(10, 0, 0, last))
        }
    };
    let net: IpAddr = if v6 { "fd00::".parse().unwrap() } else { "10.0.0.0".parse().unwrap() };
    let table = Table::new(family, "every").unwrap().comment("one of each").unwrap();
    let key = [address, DataType::Proto, DataType::Service];
    let mut batch = Batch::new();
    batch.add_table(&table);

    let set = Set::of_keys(&table, "keys", &key).unwrap();
    let map = Set::map(&table, "endpoints", &key, &[address, DataType::Service]).unwrap();
    let services = Set::vmap(&table, "services", &key).unwrap();
    let pick = Set::vmap(&table, "pick", &[DataType::Mark]).unwrap();
    let nets = Set::of_keys(&table, "nets", &[address]).unwrap().interval();
    let allow = Set::of_keys(&table, "allow", &[address, DataType::Service, address]).unwrap();
    let allow = allow.interval();
    let names = Set::of_keys(&table, "names", &[DataType::Ifname]).unwrap();
    let seen = Set::of_keys(&table, "seen", &[address]).unwrap();
    let seen = seen.dynamic(1000).timeout(Duration::from_secs(60));
    for one in [&set, &map, &services, &pick, &nets, &allow, &names, &seen] {
        batch.add_set(one);
    }
    let pre = Chain::base(&table, "pre", Base::nat(Hook::Prerouting, -100)).unwrap();
    let post = Chain::base(&table, "post", Base::nat(Hook::Postrouting, 100)).unwrap();
    let forward = Base::filter(Hook::Forward, 0).policy(Policy::Drop);
    let forward = Chain::base(&table, "forward", forward).unwrap();
    let mangle = Chain::base(&table, "mangle", Base::filter(Hook::Prerouting, -150)).unwrap();
    let chosen = Chain::regular(&table, "chosen").unwrap();
    let aside = Chain::regular(&table, "aside").unwrap();
    for chain in [&pre, &post, &forward, &mangle, &chosen, &aside] {
        batch.add_chain(chain);
    }
    let facts = [Load::daddr(family), Load::L4Proto, Load::Dport];
    let transport = [Field::Proto(6), Field::Proto(17), Field::Proto(132)];
    let any = Rule::new(&pre).is_one_of(Load::L4Proto, &transport);
    batch.add_rule(&any.dnat_map(&facts, &map));
    batch.add_rule(&Rule::new(&mangle).vmap(&[Load::Mark], &pick));
    batch.add_rule(&Rule::new(&pre).is(Load::L4Proto, Field::Proto(6)).goto_one_of([&chosen; 3]));
    batch.add_rule(&Rule::new(&pre).vmap(&facts, &services).comment("pick a service"));
    batch.add_rule(&Rule::new(&pre).daddr_is_local().goto_one_of([&chosen, &chosen]));
    batch.add_rule(&Rule::new(&pre).is(Load::L4Proto, Field::Proto(6)).redirect(10));
    batch.add_rule(&Rule::new(&chosen).is(Load::L4Proto, Field::Proto(6)).dnat_map(&facts, &map));
    batch.add_rule(&Rule::new(&chosen).is(Load::L4Proto, Field::Proto(17)).dnat(
        match host(9) {
            Field::Ipv4(addr) => addr.into(),
            Field::Ipv6(addr) => addr.into(),
            _ => unreachable!(),
        },
        Some(53),
    ));
    let masquerade = Rule::new(&post).ct_status_dnat().saddr_is_not_local();
    batch.add_rule(&masquerade.not_in_set(&[Load::saddr(family)], &nets).masquerade());
    batch.add_rule(&Rule::new(&post).in_prefix(Load::saddr(family), net, 24).snat(net));
    batch.add_rule(&Rule::new(&forward).ct_state(CtState::INVALID).counter().drop());
    batch.add_rule(&Rule::new(&forward).ct_state(CtState::ESTABLISHED | CtState::RELATED).accept());
    batch.add_rule(&Rule::new(&forward).in_set(&facts, &set).reject_with_tcp_reset());
    batch.add_rule(&Rule::new(&forward).in_set(&facts, &set).reject_with_port_unreachable());
    let ports = [Load::daddr(family), Load::Dport, Load::saddr(family)];
    let allowed = Rule::new(&forward).is(Load::L4Proto, Field::Proto(6));
    batch.add_rule(&allowed.in_set(&ports, &allow).goto(&aside));
    let eth0 = Field::ifname("eth0").unwrap();
    batch.add_rule(&Rule::new(&mangle).is(Load::Iifname, eth0).set_mark_bits(0x4000));
    batch
        .add_rule(&Rule::new(&mangle).mark_has(0x4000).is_not(Load::Mark, Field::Mark(7)).accept());
    batch.add_rule(&Rule::new(&mangle).in_set(&[Load::Iifname], &names).verdict(Verdict::Return));
    batch.add_rule(
        &Rule::new(&mangle)
            .not_in_prefix(Load::daddr(family), net, 24)
            .expr(Load::saddr(family).into_expr(Reg::word(0)))
            .expr(Expr::Dynset {
                op: DynsetOp::Update,
                set: Name::new("seen").unwrap(),
                key: Reg::word(0),
                data: None,
                timeout: Some(Duration::from_secs(30)),
            }),
    );

    let to = Name::new("chosen").unwrap();
    let aside = Name::new("aside").unwrap();
    batch.add_elements(&set, [Element::key([host(1), Field::Proto(6), Field::Port(80)])]);
    batch.add_elements(
        &map,
        [Element::data([host(1), Field::Proto(6), Field::Port(80)], [host(2), Field::Port(8080)])],
    );
    batch.add_elements(
        &services,
        [
            Element::verdict(
                [host(1), Field::Proto(6), Field::Port(80)],
                Verdict::Goto(to.clone()),
            ),
            Element::verdict([host(3), Field::Proto(17), Field::Port(53)], Verdict::Drop),
        ],
    );
    batch.add_elements(
        &pick,
        [0, 1].map(|n| Element::verdict(Field::Mark(n), Verdict::Goto(aside.clone()))),
    );
    let high: IpAddr = if v6 { "ff00::".parse().unwrap() } else { "240.0.0.0".parse().unwrap() };
    batch.add_elements(
        &nets,
        [
            Element::key(Key::prefix(net, 24)),
            Element::key(Key::prefix(high, if v6 { 8 } else { 4 })),
        ],
    );
    let from = Data::new(&[host(1), Field::Port(80), host(0)]);
    let until = Data::new(&[host(1), Field::Port(80), host(127)]);
    batch.add_elements(&allow, [Element::key(Key::Range(from, until))]);
    batch.add_elements(&names, [Element::key(eth0)]);
    batch
}

#[test]
fn nft_prints_and_reloads_one_of_everything_in_both_families() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        socket.commit(everything(Family::Ip)).unwrap();
        socket.commit(everything(Family::Ip6)).unwrap();
        let printed = assert_reloads();
        for wanted in [
            "comment \"one of each\"",
            "ip daddr . meta l4proto . th dport vmap @services comment \"pick a service\"",
            "numgen random mod 2 vmap { 0 : goto chosen, 1 : goto chosen }",
            "fib daddr type local",
            "dnat ip to ip daddr . meta l4proto . tcp dport map @endpoints",
            "dnat ip6 to ip6 daddr . meta l4proto . tcp dport map @endpoints",
            "meta l4proto { 6, 17, 132 } dnat ip to",
            "masquerade fully-random",
            "reject with tcp reset",
            "10.0.0.1 . tcp . 80 : 10.0.0.2 . 8080",
            "10.0.0.0/24",
            "ct state invalid",
            "policy drop",
        ] {
            assert!(printed.contains(wanted), "{wanted} is missing in\n{printed}");
        }
    });
}

#[test]
fn elements_come_back_as_they_were_added() {
    in_new_namespace(|| {
        let table = Table::new(Family::Ip, "t").unwrap();
        let key = [DataType::Ipv4, DataType::Proto, DataType::Service];
        let map = Set::map(&table, "m", &key, &[DataType::Ipv4, DataType::Service]).unwrap();
        let nets = Set::of_keys(&table, "n", &[DataType::Ipv4]).unwrap().interval();
        let chain = Chain::regular(&table, "c").unwrap();
        let verdicts = Set::vmap(&table, "v", &[DataType::Ipv4]).unwrap();
        let mut many: Vec<_> = (0..5000u32)
            .map(|n| {
                let vip = Field::Ipv4((0x0a60_0000 + n).into());
                Element::data([vip, Field::Proto(6), Field::Port(80)], [vip, Field::Port(n as u16)])
            })
            .collect();
        let ranges = [Key::prefix([10, 0, 0, 0], 8), Key::prefix([11, 0, 0, 0], 8)];
        let ranges: Vec<_> = ranges.into_iter().map(Element::key).collect();
        let to = Verdict::Jump(Name::new("c").unwrap());
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&chain);
        for set in [&map, &nets, &verdicts] {
            batch.add_set(set);
        }
        batch.add_elements(&map, &many);
        batch.add_elements(&nets, &ranges);
        batch.add_elements(&verdicts, [Element::verdict(ip("1.2.3.4"), to.clone())]);
        let mut socket = Socket::open().unwrap();
        socket.commit(batch).unwrap();

        let mut found = socket.elements(&map).unwrap();
        found.sort();
        many.sort();
        assert_eq!(found, many);
        assert_eq!(socket.elements(&nets).unwrap(), ranges);
        assert_eq!(socket.elements(&verdicts).unwrap(), [Element::verdict(ip("1.2.3.4"), to)]);

        let mut batch = Batch::new();
        batch.delete_elements(&map, &many[1..]);
        batch.delete_elements(&nets, &ranges[..1]);
        batch.flush_set(&verdicts);
        socket.commit(batch).unwrap();
        assert_eq!(socket.elements(&map).unwrap(), many[..1]);
        assert_eq!(socket.elements(&nets).unwrap(), ranges[1..]);
        assert_eq!(socket.elements(&verdicts).unwrap(), []);
    });
}

/// The kernel resizes a set after the transaction that filled it, in the middle of such a dump.
#[test]
fn a_set_that_has_just_grown_is_read_whole() {
    const ROUNDS: usize = 150;
    in_new_namespace(|| {
        let table = Table::new(Family::Ip, "t").unwrap();
        let set = Set::of_keys(&table, "s", &[DataType::Ipv4]).unwrap();
        let mut many: Vec<_> =
            (0..5000u32).map(|n| Element::key(Field::Ipv4((0x0a60_0000 + n).into()))).collect();
        many.sort();
        let mut socket = Socket::open().unwrap();
        for round in 0..ROUNDS {
            let mut batch = Batch::new();
            batch.add_table(&table);
            batch.add_set(&set);
            batch.add_elements(&set, &many);
            socket.commit(batch).unwrap();
            let mut found = socket.elements(&set).unwrap();
            found.sort();
            assert!(found == many, "round {round}: {} of {}", found.len(), many.len());
            let mut batch = Batch::new();
            batch.delete_table(&table);
            socket.commit(batch).unwrap();
        }
    });
}

#[test]
fn a_refused_object_is_named_and_nothing_is_applied() {
    in_new_namespace(|| {
        let table = Table::new(Family::Ip, "t").unwrap();
        let missing = Set::of_keys(&table, "missing", &[DataType::Ipv4]).unwrap();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_elements(&missing, [Element::key(ip("10.0.0.1"))]);
        batch.add_chain(&Chain::regular(&table, "c").unwrap());
        let mut socket = Socket::open().unwrap();
        let error = socket.commit(batch).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT));
        assert!(error.to_string().contains("add elements ip t missing"), "{error}");
        assert_eq!(socket.tables(Family::Ip).unwrap(), []);
        assert!(socket.commit(Batch::new()).is_ok());
    });
}

#[test]
fn an_element_that_does_not_fit_its_set_is_refused_before_it_is_sent() {
    in_new_namespace(|| {
        let table = Table::new(Family::Ip, "t").unwrap();
        let set = Set::of_keys(&table, "s", &[DataType::Ipv4]).unwrap();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(&set);
        batch.add_elements(&set, [Element::key(Field::Port(1))]);
        let error = Socket::open().unwrap().commit(batch).unwrap_err();
        assert!(matches!(error, Error::Element { .. }), "{error}");
    });
}

#[test]
fn tables_chains_rules_and_sets_are_listed_and_the_generation_moves() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let before = socket.generation().unwrap();
        socket.commit(everything(Family::Ip)).unwrap();
        assert_ne!(socket.generation().unwrap(), before);
        let tables = socket.tables(Family::Ip).unwrap();
        assert_eq!(tables.len(), 1);
        assert_eq!(tables[0].comment.as_deref(), Some("one of each"));
        let table = Table::new(Family::Ip, "every").unwrap();
        let chains = socket.chains(&table).unwrap();
        assert!(chains.iter().any(|c| c.name == "pre" && c.base == Some((0, -100))));
        let rules = socket.rules(&table).unwrap();
        assert!(rules.iter().any(|r| r.comment.as_deref() == Some("pick a service")));
        assert_eq!(socket.sets(&table).unwrap().len(), 11);
        assert_eq!(socket.rules(&Table::new(Family::Ip, "none").unwrap()).unwrap(), []);
        let mut batch = Batch::new();
        batch.delete_rule(&Chain::regular(&table, "pre").unwrap(), rules[0].handle);
        batch.flush_chain(&Chain::regular(&table, "mangle").unwrap());
        socket.commit(batch).unwrap();
        assert!(socket.rules(&table).unwrap().len() < rules.len());
    });
}
