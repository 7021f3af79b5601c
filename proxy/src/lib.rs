//! Services and endpoint slices as nftables elements.
