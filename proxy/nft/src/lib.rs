//! A small encoder for nf_tables transactions over netlink.
