//! Syncs the pods bound to a node with what runs on it.
