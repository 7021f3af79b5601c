//! What the end-to-end tests share: leak census, namespaces, node fixtures.
