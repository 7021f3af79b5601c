//! Pod interfaces, addresses and node-to-node routes.
