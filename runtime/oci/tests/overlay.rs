//! Images of many layers, on kernels that take lower directories one by one and on older ones.

#![allow(clippy::unwrap_used)]

mod fixture;

use berth_oci::protocol::*;
use fixture::{Shim, sandbox, spec_with};
use serde_json::json;

const LAYERS: usize = 120;

/// Runs a container of many layers and looks at the topmost, the lowest and what it writes.
fn run_many_layers(directory: &str) {
    let mut shim = Shim::start(&sandbox());
    let base = shim.root.path().join(directory);
    let mut lower = Vec::new();
    for index in 0..LAYERS {
        let layer = base.join(format!("layer-{index}"));
        std::fs::create_dir_all(&layer).unwrap();
        std::fs::write(layer.join(format!("file-{index}")), "").unwrap();
        std::fs::write(layer.join("top"), index.to_string()).unwrap();
        lower.push(layer);
    }
    lower.push(shim.image());
    let (upper, work) = (base.join("upper"), base.join("work"));
    for directory in [&upper, &work] {
        std::fs::create_dir(directory).unwrap();
    }
    let script = "cat /top; echo; echo /file-* | wc -w; echo new > /written";
    let args = ["/bin/sh", "-c", script];
    let mut request = shim.container("c", &args);
    // Nothing else may need strings of fsconfig(2).
    request.spec = spec_with(&args, |spec| {
        spec["mounts"] = json!([]);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    });
    request.rootfs = Rootfs::Overlay { lower, upper: upper.clone(), work };
    let (exit, text) = shim.run_request(request);
    assert_eq!((exit.exit_code, text), (0, format!("0\n{LAYERS}\n")), "{exit:?}");
    assert_eq!(std::fs::read_to_string(upper.join("written")).unwrap(), "new\n");
    shim.shut_down();
}

#[test]
fn an_image_may_have_more_than_a_hundred_layers() {
    run_many_layers("layers");
}

#[test]
fn paths_of_layers_may_hold_what_separates_options() {
    run_many_layers("layers: a,b\\");
}

#[test]
fn many_layers_need_no_fsconfig_strings() {
    fixture::sys::refuse_fsconfig_strings();
    run_many_layers("layers: a,b\\");
}
