//! Whether a network namespace has TCP connections, which criu takes only if it is told how. Pure.

use std::io::{self, BufRead};

/// `st` of proc_net_tcp(5): closed, and waiting for connections.
const WITHOUT_PEER: [&str; 2] = ["07", "0A"];

/// Whether a table of sockets (`/proc/<pid>/net/tcp`, `tcp6`) shows one with a peer that is somebody's.
/// Blocks as long as the table is read.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn is_connected(table: impl BufRead) -> io::Result<bool> {
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace().skip(3);
        let state = fields.next().unwrap_or_default();
        // Those that the kernel finishes by itself are in no process.
        let is_held = fields.nth(5).is_some_and(|inode| inode != "0");
        if is_held && !WITHOUT_PEER.contains(&state) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> bool {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        is_connected(format!("{head}{line}\n").as_bytes()).unwrap()
    }

    #[test]
    fn a_connection_of_a_process_is_told_and_nothing_else() {
        let socket = |state: &str, inode: &str| {
            format!(
                "   0: 0100007F:1F90 0100007F:A0B2 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 x"
            )
        };
        assert!(told(&socket("01", "4711")));
        assert!(told(&socket("08", "4711")));
        assert!(!told(&socket("0A", "4711")));
        assert!(!told(&socket("07", "4711")));
        assert!(!told(&socket("06", "0")));
        assert!(!told(""));
    }
}
