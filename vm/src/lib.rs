//! Boots a real Linux VM and runs commands and test binaries in it.
