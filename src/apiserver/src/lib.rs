//! The embedded API server of the standalone mode.
